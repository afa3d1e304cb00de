"""Removes what a cluster leaves when its processes are gone: mounts, cgroups, its directory.

The supervisor does it as its last act; the client does it again, for the case that the supervisor
itself was killed; the next start does it for clusters whose client and supervisor were both killed.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import time
from pathlib import Path

from tests.cluster import cgroups
from tests.cluster.wire import KEEP_FILE, LOCK_FILE

PREFIX = "hdc-"
MNT_DETACH = 2
YOUNG_SECONDS = 60.0


def mounts_below(directory: Path, mountinfo: str) -> list[Path]:
    """Return the mount points below ``directory``, the innermost first."""
    points = []
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        if len(fields) > 4:
            point = Path(fields[4].encode().decode("unicode_escape"))
            if point != directory and point.is_relative_to(directory):
                points.append(point)
    return points[::-1]


def filesystem_of(path: Path, mountinfo: str) -> str:
    """Return the type of the file system that holds ``path``."""
    best, kind = Path("/"), ""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        point = Path(before.split(" ")[4].encode().decode("unicode_escape"))
        if path.is_relative_to(point) and point.is_relative_to(best):
            best, kind = point, after.split(" ")[0]
    return kind


def remove_directory(directory: Path) -> list[str]:
    """Remove a cluster's directory; return what stands in the way.

    Never descends into a mount: if one cannot be detached, nothing is deleted.
    """
    if not directory.name.startswith(PREFIX):
        return [f"{directory} is not a cluster's directory"]
    libc = ctypes.CDLL(None, use_errno=True)
    for point in mounts_below(directory, cgroups.MOUNTINFO.read_text()):
        libc.umount2(os.fsencode(point), MNT_DETACH)
    left = mounts_below(directory, cgroups.MOUNTINFO.read_text())
    if left:
        return [f"{point} is still mounted" for point in left]
    if directory.is_dir() and not (directory / KEEP_FILE).exists():
        shutil.rmtree(directory, ignore_errors=True)
        if directory.exists():
            shutil.rmtree(directory, ignore_errors=True)
        if directory.exists():
            return [f"{directory} cannot be removed"]
    return []


def remove_all(directory: Path) -> list[str]:
    """Remove the cgroups and the directory of a cluster whose processes are gone. Idempotent."""
    groups = [f"cgroup {group} cannot be removed" for group in cgroups.remove(directory.name)]
    return groups + remove_directory(directory)


def sweep(base: Path) -> list[Path]:
    """Remove what clusters left whose every process was killed; return their directories.

    A cluster in use holds a lock on a file of its directory, from its first moment to its last.
    """
    removed = []
    for lock in base.glob(f"{PREFIX}*/{LOCK_FILE}"):
        directory = lock.parent
        try:
            if time.time() - lock.stat().st_mtime < YOUNG_SECONDS:
                continue
            with lock.open("r+") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not (directory / KEEP_FILE).exists() and not remove_all(directory):
                    removed.append(directory)
        except OSError:
            continue  # in use, or someone else is removing it
    return removed
