"""A file system on a disk that remembers, and what it looks like after a power cut."""

import asyncio
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.contract.disklog import SECTOR, Replay

_MIB: Final = 40
_MAKE: Final = ("mkfs.ext4", "-q", "-b", str(SECTOR), "-J", "size=4")
_END_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class FileSystem:
    """How a disk is used.

    Attributes:
        mount: Options of mount.
    """

    mount: str


FILE_SYSTEMS: Final = {
    "ordered": FileSystem("data=ordered"),
    # Names and sizes may be there before what is in the files.
    "writeback": FileSystem("data=writeback,noauto_da_alloc"),
}


def list_lacking() -> list[str]:
    """Return what this machine lacks for a disk of ours."""
    needed = {
        "root": os.geteuid() == 0,
        "/dev/fuse": Path("/dev/fuse").exists(),
        "/dev/loop-control": Path("/dev/loop-control").exists(),
        "mkfs.ext4": shutil.which(_MAKE[0]) is not None,
    }
    return [what for what, there in needed.items() if not there]


@dataclass(frozen=True, slots=True)
class RecordedDisk:
    """A mounted file system whose every write is recorded.

    Attributes:
        kind: How it is used.
        root: Where it is mounted; a replayed one is mounted there too.
        before: The disk before the first write.
        log: What was written since.
    """

    kind: FileSystem
    root: Path
    before: Path
    log: Path

    def place(self) -> int:
        """Return where in the log the disk is now."""
        return self.log.stat().st_size if self.log.exists() else 0


@contextmanager
def make_disk(kind: FileSystem) -> Iterator[RecordedDisk]:
    """Make a disk in memory; `record` uses it."""
    with tempfile.TemporaryDirectory(prefix="hd-", dir="/dev/shm") as name:
        base = Path(name)
        disk = RecordedDisk(kind, base / "disk", base / "before.img", base / "log")
        disk.root.mkdir()
        with disk.before.open("wb") as file:
            file.truncate(_MIB << 20)
        _run(*_MAKE, str(disk.before))
        yield disk


@asynccontextmanager
async def record(disk: RecordedDisk) -> AsyncIterator[None]:
    """Mount a disk for the length of the block, and record what is written to it."""
    image = disk.root.with_name("image")
    shutil.copyfile(disk.before, image)
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.contract.disklog", str(image), str(disk.log)),
        stdout=subprocess.PIPE,
    )
    try:
        assert server.stdout is not None
        async with asyncio.timeout(_END_SECONDS):
            assert await server.stdout.readline() == b"mounted\n"
        try:
            with _mount(image, disk):
                yield
        finally:
            _run("umount", "--lazy", str(image))
        assert server.returncode in {None, 0}
    finally:
        # Not waited for: a mount namespace that somebody made meanwhile keeps a copy of the mount.
        with suppress(ProcessLookupError):
            server.kill()
        await server.wait()


class PowerCuts:
    """Shows a disk as it may be after power cuts, later and later ones.

    Args:
        disk: As it was recorded.
        chance: Says what of the disk's cache is lost.
    """

    def __init__(self, disk: RecordedDisk, chance: random.Random) -> None:
        self._disk = disk
        self._chance = chance
        self._replay = Replay(disk.before, disk.log)

    @contextmanager
    def mount(self, place: int) -> Iterator[None]:
        """Mount the disk after a power cut, where it was.

        Args:
            place: In the log; none before the last.
        """
        image = self._disk.root.with_name("replayed")
        image.unlink(missing_ok=True)  # the kernel may be slow to let go of the last one
        kept = self._chance.choice((0.0, 1.0, self._chance.random()))
        image.write_bytes(self._replay.cut(place, self._chance, kept))
        with _mount(image, self._disk):
            yield


@contextmanager
def _mount(image: Path, disk: RecordedDisk) -> Iterator[None]:
    device = _run("losetup", "--find", "--show", str(image)).strip()
    try:
        _run("mount", "-t", "ext4", "-o", disk.kind.mount, device, str(disk.root))
        try:
            yield
        finally:
            _run("umount", str(disk.root))
    finally:
        _run("losetup", "--detach", device)


def _run(*command: str) -> str:
    done = subprocess.run(  # noqa: S603 - mount and the like
        command, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}")
    return done.stdout
