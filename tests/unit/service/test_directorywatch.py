"""What the kernel tells of directories."""

import asyncio
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hami_dra.service.directorywatch import DirectoryWatch


class Listener:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.told = 0
        self.heard = asyncio.Event()

    def note(self) -> None:
        """Be told."""
        self.told += 1
        self.heard.set()

    async def hear(self) -> None:
        """Wait until something is told that was not when this began."""
        self.heard.clear()
        async with asyncio.timeout(10):
            await self.heard.wait()


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.mark.parametrize("change", ["create", "move", "link", "delete", "removed", "moved"])
async def test_each_kind_of_change_is_told(tmp_path: Path, listener: Listener, change: str) -> None:
    watched, outside = tmp_path / "watched", tmp_path / "outside"
    watched.mkdir()
    outside.write_text("")
    if change == "delete":
        (watched / "name").write_text("")
    changes: dict[str, Callable[[], object]] = {
        "create": (watched / "name").touch,
        "move": lambda: outside.rename(watched / "name"),
        "link": lambda: (watched / "name").hardlink_to(outside),
        "delete": (watched / "name").unlink,
        "removed": watched.rmdir,
        "moved": lambda: watched.rename(tmp_path / "elsewhere"),
    }
    with DirectoryWatch(listener.note) as watch:
        assert watch.arm([watched])
        changes[change]()
        await listener.hear()


async def test_whoever_writes_without_end_is_told_of_once(
    tmp_path: Path, listener: Listener
) -> None:
    loud, silent = tmp_path / "loud", tmp_path / "silent"
    loud.mkdir()
    silent.mkdir()
    with DirectoryWatch(listener.note) as watch:
        for _ in range(3):
            assert watch.arm([loud, silent])
        for number in range(1000):
            (loud / str(number)).touch()
        await listener.hear()
        for number in range(1000):
            (loud / str(number)).unlink()
        (silent / "name").touch()
        await listener.hear()
        assert listener.told == 2, "the loud one was not armed again"

        assert watch.arm([loud])
        (loud / "name").touch()
        await listener.hear()


async def test_what_happened_before_is_not_told_and_a_file_that_is_written_is_no_change(
    tmp_path: Path, listener: Listener
) -> None:
    file = tmp_path / "before"
    file.touch()
    with DirectoryWatch(listener.note) as watch:
        assert watch.arm([tmp_path])
        file.write_text("content")
        file.chmod(0o600)
        for _ in range(3):
            await asyncio.sleep(0)
        assert listener.told == 0
        (tmp_path / "after").touch()
        await listener.hear()
        assert listener.told == 1


async def test_a_directory_that_is_not_there_or_only_a_link_is_not_listened_to(
    tmp_path: Path, listener: Listener
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").touch()
    with DirectoryWatch(listener.note) as watch:
        for name in ("absent", "link", "file"):
            assert not watch.arm([tmp_path, tmp_path / name])
    assert not watch.arm([tmp_path]), "it listens no more"
    assert not DirectoryWatch(listener.note).arm([tmp_path]), "nor yet"


async def test_without_a_descriptor_there_is_nothing_to_listen_with(
    tmp_path: Path, listener: Listener
) -> None:
    with no_descriptors(), DirectoryWatch(listener.note) as watch:
        assert not watch.arm([tmp_path])


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Let this process open nothing more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
