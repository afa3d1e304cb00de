"""Where Prepare and Unprepare can be cut, taken from what they do, and nothing done elsewhere.

The lists below are not what makes the crash tests complete: those take the points from the running
code. They are here so that a new write or call is seen by who adds it, and put into an order in
which a crash does no harm.
"""

import hashlib
import re
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from hami_dra.testing.crashpoints import Point, watch_points
from hami_dra.testing.fakecluster import FakeCluster
from tests.unit.node.dividedcard import DividedCard, make_part
from tests.unit.node.rig import Rig, make_claim, make_share, put_claim, start_rig

WHOLE = ("open T", "chmod T", "write T", "rename F")
"""A file that is replaced for its readers: F in directory D by way of T."""
DURABLE = (*WHOLE[:-1], "fsync T", "rename F", "fsync D")
"""One that is so for a power cut as well."""


def replace(directory: str, name: str, how: tuple[str, ...] = DURABLE) -> list[str]:
    words = {
        "T": f"{directory}/.{name}.tmp",
        "F": f"{directory}/{name}",
        "D": directory,
    }
    return [f"{verb} {words[key]}" for verb, key in (step.split() for step in how)]


CLAIM = "claims/UID"
INTENT = [
    "sql BEGIN IMMEDIATE",
    "sql INSERT INTO claims",
    "sql DELETE FROM shares",
    "sql INSERT INTO shares",
    "sql COMMIT",
]
PREPARE = [
    "api get resourceclaims",
    "mkdir cdi",
    *replace("cdi", "card.json"),
    *INTENT,
    "mkdir claims",
    f"mkdir {CLAIM}",
    # A power cut ends the readers of all this: nobody waits for it.
    *replace(CLAIM, "record.json", WHOLE),
    f"mkdir {CLAIM}/gpu",
    f"mkdir {CLAIM}/gpu/region",
    f"chmod {CLAIM}/gpu/region",
    *replace(f"{CLAIM}/gpu", "grant", WHOLE),
    *replace(f"{CLAIM}/gpu", "metadata.json", WHOLE),
    # Both are written before either is waited for; they get their names in this order.
    *replace("cdi", "metadata-UID.json", WHOLE[:-1]),
    *replace("cdi", "claim-UID.json", WHOLE[:-1]),
    *replace("cdi", "metadata-UID.json", DURABLE[3:4]),
    *replace("cdi", "claim-UID.json", DURABLE[3:4]),
    *replace("cdi", "metadata-UID.json", DURABLE[4:5]),
    *replace("cdi", "claim-UID.json", DURABLE[4:]),
    "sql BEGIN IMMEDIATE",
    "sql UPDATE claims",
    "sql COMMIT",
]
MAKE_INSTANCE = [
    "nvml nvmlDeviceCreateGpuInstanceWithPlacement",
    "nvml nvmlGpuInstanceCreateComputeInstance",
    "sql BEGIN IMMEDIATE",
    "sql UPDATE claims",
    "sql COMMIT",
]
END_INSTANCE = [
    "nvml nvmlComputeInstanceDestroy",
    "nvml nvmlGpuInstanceDestroy",
]
UNPREPARE = [
    "unlink cdi/claim-UID.json",
    "unlink cdi/metadata-UID.json",
    f"unlink {CLAIM}/record.json",
    f"unlink {CLAIM}/gpu/grant",
    f"unlink {CLAIM}/gpu/metadata.json",
    f"rmdir {CLAIM}/gpu/region",
    f"rmdir {CLAIM}/gpu",
    f"rmdir {CLAIM}",
    "fsync cdi",
    "sql BEGIN IMMEDIATE",
    "sql DELETE FROM claims",
    "sql COMMIT",
]


class Recorder:
    """Keeps each point, and what changed in the directories between it and the one before."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self.restart()

    def restart(self) -> None:
        """Forget everything: from here on."""
        self._known = look(self._base)
        self.points: list[Point] = []
        self.unannounced: list[str] = []

    def __call__(self, point: Point) -> None:  # noqa: D102 - the listener's
        self.settle()
        self.points.append(point)

    def settle(self) -> None:
        """Compare with the last look: only what the last point named may have changed."""
        now = look(self._base)
        changed = {path for path in {*now, *self._known} if now.get(path) != self._known.get(path)}
        self._known = now
        last = self.points[-1] if self.points else Point("nothing", "")
        for path in sorted(changed):
            if path.endswith(".db-shm") or (last.verb == "sql" and path.startswith("state/ledger")):
                continue  # readers move marks in the shared memory, which no crash outlives
            target = last.target.removeprefix(f"{self._base}/")
            near = {target, str(Path(target).parent)}
            if last.verb == "rename":  # its source has a name of its own
                near |= {path} if path.endswith(".tmp") else set()
            if path not in near:
                self.unannounced.append(f"{path} after {last.verb} {target}")

    def names(self) -> list[str]:
        """Return the points without what differs from run to run."""
        return [self._name(point) for point in self.points]

    def _name(self, point: Point) -> str:
        text = point.target.removeprefix(f"{self._base}/").removeprefix("state/")
        if point.verb == "sql":
            text = re.match(r"(INSERT INTO|DELETE FROM|UPDATE) \w+|.*", text)[0]  # type: ignore[index]
        text = text.replace("uid-job", "UID").replace("hami-core-gpu.project-hami.io-", "")
        return f"{point.verb} {re.sub(r'[.][0-9a-f]{8}[.]tmp', '.tmp', text)}"


@asynccontextmanager
async def start_recorded(
    base: Path, cluster: FakeCluster, **options: Any
) -> AsyncIterator[tuple[Rig, Recorder]]:
    recorder = Recorder(base)
    # Around everything: a connection made before would not be watched.
    with watch_points(recorder, base / "state", base / "cdi"):
        async with start_rig(base, cluster, **options) as rig:
            yield rig, recorder


def look(base: Path) -> dict[str, Any]:
    """Return every file and directory below, with what can be told of it without times."""
    found: dict[str, Any] = {}
    for path in base.rglob("*"):
        entry = path.lstat()
        content = hashlib.sha256(path.read_bytes()).digest() if stat.S_ISREG(entry.st_mode) else b""
        found[str(path.relative_to(base))] = (entry.st_mode, entry.st_ino, content)
    return found


async def test_nothing_changes_but_at_a_point_and_these_are_all(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    ref = await put_claim(cluster, make_claim("job", make_share()))
    async with start_recorded(tmp_path, cluster) as (rig, recorder):
        both = ((rig.preparer.prepare, PREPARE), (rig.preparer.unprepare, UNPREPARE))
        for work, expected in both:
            recorder.restart()
            await work(ref)
            recorder.settle()

            assert recorder.unannounced == []
            names = recorder.names()
            # What a directory holds is removed in the order in which the file system lists it.
            assert (names[:2], names[-4:]) == (expected[:2], expected[-4:])
            assert sorted(names) == sorted(expected)
            if work == rig.preparer.prepare:
                assert names == expected


async def test_an_instance_is_made_between_intent_and_record(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    card = DividedCard(tmp_path)
    ref = await put_claim(cluster, make_claim("job", make_part()))
    options: dict[str, Any] = {"control": card, "mig_dynamic": ("0",), "procfs": card.procfs}
    async with start_recorded(tmp_path, cluster, **options) as (rig, recorder):
        card.show_to(rig)
        for work in (rig.preparer.prepare, rig.preparer.prepare, rig.preparer.unprepare):
            recorder.restart()
            await work(ref)
            recorder.settle()

            assert [path for path in recorder.unannounced if not path.startswith("proc/")] == []
            names = recorder.names()
            nvml = [name for name in names if name.startswith("nvml")]
            if work == rig.preparer.unprepare:
                assert nvml == END_INSTANCE
                first = names.index(nvml[0])
                assert all("cdi" in name for name in names[:first])
                assert names[-3:] == UNPREPARE[-3:]
            elif nvml:
                first = names.index(nvml[0])
                assert names[first - 5 : first] == INTENT
                assert names[first : first + 5] == MAKE_INSTANCE
                assert not any("record" in name for name in names[:first])
            else:
                assert "sql UPDATE claims" not in names[:-2], "what is recorded stays"
    assert card.places == []


async def test_a_limit_that_changes_is_written_at_points_too(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    ref = await put_claim(cluster, make_claim("job", make_share()))
    async with start_recorded(tmp_path, cluster) as (rig, recorder):
        await rig.preparer.prepare(ref)
        await put_claim(cluster, make_claim("job", make_share(memory_mib=2000)))
        recorder.restart()
        await rig.preparer.prepare(ref)
        recorder.settle()

    grant = "claims/UID/gpu/grant"
    assert recorder.unannounced == []
    assert [name for name in recorder.names() if name.endswith("/grant")] == [
        f"open {grant}",
        *[f"pwrite {grant}"] * 3,
    ]


async def test_a_write_beside_the_points_is_seen(tmp_path: Path) -> None:
    """The test above can fail: what a C library writes, say, has no point."""
    (tmp_path / "state").mkdir()
    recorder = Recorder(tmp_path)
    with watch_points(recorder, tmp_path / "state"):
        (tmp_path / "state" / "announced").mkdir()
    recorder.settle()
    (tmp_path / "state" / "not-announced").mkdir()
    recorder.settle()

    assert recorder.unannounced == ["state/not-announced after mkdir state/announced"]
