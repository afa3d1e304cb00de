"""Files that become durable together, and what goes wrong with one of them."""

import asyncio
import errno
import os
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from hami_dra.cdi.durable import Disk, DurableWork, Job, Writes, write_durably, write_whole
from hami_dra.cdi.durable import do_together as do_on_disk
from hami_dra.testing.crashpoints import Point, watch_points


@pytest.fixture
def points(tmp_path: Path) -> Iterator[list[str]]:
    """What is done below the directory, in its order."""
    found: list[str] = []

    def note(point: Point) -> None:
        found.append(f"{point.verb} {Path(point.target).name}")

    with watch_points(note, tmp_path):
        yield found


@pytest.fixture(params=[0, 3], ids=["in turn", "in threads"])
def disk(request: pytest.FixtureRequest) -> Iterator[Disk]:
    """One that waits in either way."""
    with ThreadPoolExecutor() as threads:
        yield Disk(threads, request.param) if request.param else Disk()


def do_together(jobs: list[Job[Any]], disk: Disk | None = None) -> list[Any]:
    return do_on_disk(jobs, disk or Disk())


def replacing(*paths: Path, content: bytes = b"new") -> Job[str]:
    """Return a job that replaces files, one after the other, each durable before the next."""

    def job(writes: Writes) -> Generator[None, None, str]:
        for path in paths:
            writes.replace(path, content, mode=0o600)
            yield
        return paths[0].name

    return job


def test_all_are_written_before_one_is_waited_for_and_a_directory_is_waited_for_once(
    tmp_path: Path, points: list[str], disk: Disk
) -> None:
    names = "abcde"
    assert do_together([replacing(tmp_path / name) for name in names], disk) == list(names)

    written = [f"{verb} .{name}.tmp" for name in names for verb in ("open", "chmod", "write")]
    waited = sorted(f"fsync .{name}.tmp" for name in names)
    named = [f"rename {name}" for name in names]
    first = len(written)
    assert points[:first] == written
    assert sorted(points[first : first + len(names)]) == waited
    assert points[first + len(names) :] == [*named, f"fsync {tmp_path.name}"]


def test_nobody_goes_on_before_the_disk_has_what_he_waits_for(
    tmp_path: Path, points: list[str]
) -> None:
    do_together([replacing(tmp_path / "a1", tmp_path / "a2"), replacing(tmp_path / "b")])

    assert points.index(f"fsync {tmp_path.name}") < points.index("open .a2.tmp")
    assert points.count(f"fsync {tmp_path.name}") == 2


def test_what_goes_wrong_with_one_job_is_no_other_jobs_concern(tmp_path: Path) -> None:
    def broken(writes: Writes) -> Generator[None, None, None]:
        writes.replace(tmp_path / "half", b"new", mode=0o600)
        raise ValueError("of this job")
        yield

    outcomes = do_together([replacing(tmp_path / "a"), broken, replacing(tmp_path / "b")])

    assert [outcomes[0], str(outcomes[1]), outcomes[2]] == ["a", "of this job", "b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_an_error_of_the_disk_is_told_to_who_waits_for_that_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: Disk
) -> None:
    real = os.fsync

    def fail_once(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == ".ill.tmp":
            raise OSError(errno.EIO, "disk on fire")
        real(descriptor)

    def patient(writes: Writes) -> Generator[None, None, str]:
        writes.replace(tmp_path / "ill", b"new", mode=0o600)
        try:
            yield
        except OSError as error:
            return f"told: {error.strerror}"
        return "not told"

    monkeypatch.setattr(os, "fsync", fail_once)

    names = "abcd"
    jobs: list[Job[Any]] = [replacing(tmp_path / name) for name in names]
    assert do_together([patient, *jobs], disk) == ["told: disk on fire", *names]
    assert sorted(path.name for path in tmp_path.iterdir()) == list(names)


def test_an_error_of_a_directory_is_told_to_all_who_share_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: Disk
) -> None:
    real, shared = os.fsync, tmp_path / "shared"
    shared.mkdir()

    def fail(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink() == shared:
            raise OSError(errno.EIO, "disk on fire")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    outcomes = do_together(
        [replacing(shared / "a"), replacing(shared / "b"), replacing(tmp_path / "c")], disk
    )

    assert [getattr(each, "errno", each) for each in outcomes] == [errno.EIO, errno.EIO, "c"]


def test_nothing_is_left_open_or_lying_about(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    write_durably(tmp_path / "a", b"1" * 100_000, mode=0o640)
    write_whole(tmp_path / "b", b"2", mode=0o444)
    write_whole(tmp_path / "b", b"3", mode=0o444)
    with pytest.raises(OSError, match="directory"):
        write_durably(tmp_path, b"", mode=0o600)

    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert (tmp_path / "a").read_bytes() == b"1" * 100_000
    assert (tmp_path / "b").read_bytes() == b"3"
    assert oct((tmp_path / "a").stat().st_mode & 0o777) == "0o640"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_what_jobs_wish_for_is_done_together_once_their_files_are_on_the_disk(
    tmp_path: Path, points: list[str]
) -> None:
    def wishing(name: str) -> Job[str]:
        def job(writes: Writes) -> Generator[Any, None, str]:
            writes.replace(tmp_path / name, b"new", mode=0o600)
            try:
                yield f"wish of {name}"
            except ValueError as error:
                return f"told: {error}"
            return f"{name} granted"

        return job

    def grant(wishes: Sequence[Any]) -> list[Exception | None]:
        points.append(f"granted {', '.join(wishes)}")
        return [ValueError("not this one") if wish == "wish of b" else None for wish in wishes]

    jobs: list[Job[Any]] = [wishing("a"), replacing(tmp_path / "plain"), wishing("b")]
    outcomes = do_on_disk(jobs, Disk(), grant)

    assert outcomes == ["a granted", "plain", "told: not this one"]
    assert points[-2:] == [f"fsync {tmp_path.name}", "granted wish of a, wish of b"]


def test_nothing_is_wished_for_where_the_disk_failed_or_nobody_grants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wishing(writes: Writes) -> Generator[Any, None, None]:
        writes.replace(tmp_path / "a", b"new", mode=0o600)
        yield "a wish"

    (unheard,) = do_together([wishing])
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(errno.EIO, "disk on fire")))
    asked = Mock()
    (failed,) = do_on_disk([wishing], Disk(), asked)

    assert isinstance(unheard, TypeError)
    assert isinstance(failed, OSError)
    asked.assert_not_called()


async def test_jobs_that_come_together_share_a_wait(tmp_path: Path, points: list[str]) -> None:
    with ThreadPoolExecutor(max_workers=1) as executor:
        work = DurableWork(executor)
        await asyncio.gather(*(work.do(replacing(tmp_path / str(n))) for n in range(5)))

    assert points.count(f"fsync {tmp_path.name}") == 1
