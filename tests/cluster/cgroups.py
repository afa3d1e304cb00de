"""One cgroup of its own for each cluster, on v1 and v2, and its removal afterwards.

Everything the kubelet makes lies below it, so cleaning can never touch another cluster's or the
host's cgroups.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.cluster.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Iterable

MOUNTINFO = Path("/proc/self/mountinfo")
V2_CONTROLLERS = ("cpuset", "cpu", "memory", "pids", "hugetlb", "io")
NEEDED = frozenset({"cpu", "memory", "pids"})


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A mounted cgroup hierarchy."""

    mount: Path
    controllers: frozenset[str]
    unified: bool


def parse_mountinfo(text: str) -> tuple[Hierarchy, ...]:
    """Return the cgroup hierarchies in the text of a mountinfo file, each once."""
    found: dict[Path, Hierarchy] = {}
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        fields, tail = before.split(), after.split()
        if not separator or len(fields) < 5 or len(tail) < 3:
            continue
        if tail[0] == "cgroup2":
            found[Path(fields[4])] = Hierarchy(Path(fields[4]), frozenset(), unified=True)
        elif tail[0] == "cgroup":
            options = frozenset(tail[2].split(",")) - {"rw", "ro", "xattr", "clone_children"}
            found[Path(fields[4])] = Hierarchy(Path(fields[4]), options, unified=False)
    return tuple(found.values())


def hierarchies() -> tuple[Hierarchy, ...]:
    """Return this machine's cgroup hierarchies."""
    return parse_mountinfo(MOUNTINFO.read_text())


def unusable(found: Iterable[Hierarchy]) -> str | None:
    """Return why these hierarchies cannot carry pods, or None if they can."""
    listed = list(found)
    v1 = frozenset().union(*(h.controllers for h in listed if not h.unified))
    if v1 >= NEEDED:
        return None
    available: set[str] = set(v1)
    for hierarchy in listed:
        if hierarchy.unified:
            try:
                available |= set((hierarchy.mount / "cgroup.controllers").read_text().split())
            except OSError as error:
                return f"{hierarchy.mount} cannot be read: {error.strerror}"
    lacking = sorted(NEEDED - available)
    return f"no cgroup controller {', '.join(lacking)}" if lacking else None


def create(name: str) -> None:
    """Make the cgroup ``name`` below the root of every hierarchy. Idempotent."""
    for hierarchy in hierarchies():
        group = hierarchy.mount / name
        try:
            if hierarchy.unified:
                _delegate(hierarchy.mount)
            group.mkdir(exist_ok=True)
            if hierarchy.unified:
                _delegate(group)
            if "cpuset" in hierarchy.controllers:
                for key in ("cpuset.cpus", "cpuset.mems"):
                    (group / key).write_text((hierarchy.mount / key).read_text())
        except OSError as error:
            raise ClusterError(f"cgroup {group} cannot be made: {error}") from error


def remove(name: str, timeout_seconds: float = 5.0) -> list[Path]:
    """Remove the cgroup ``name`` bottom-up in every hierarchy; return what could not be removed.

    The kernel frees a cgroup a moment after its last process ended, hence the repetition.
    """
    if not name or "/" in name or name.startswith("."):
        raise ClusterError(f"{name!r} is not the name of a cluster's cgroup")
    deadline = time.monotonic() + timeout_seconds
    while True:
        left = [g for h in hierarchies() if (g := h.mount / name).is_dir() and not _remove(g)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


def _remove(group: Path) -> bool:
    try:
        children = [child for child in group.iterdir() if child.is_dir()]
        left = [child for child in children if not _remove(child)]
        if not left:
            group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return not left


def _delegate(group: Path) -> None:
    """Enable the controllers that pods need for the children of a v2 cgroup, where possible."""
    available = (group / "cgroup.controllers").read_text().split()
    enabled = (group / "cgroup.subtree_control").read_text().split()
    for controller in V2_CONTROLLERS:
        if controller in available and controller not in enabled:
            try:
                (group / "cgroup.subtree_control").write_text(f"+{controller}")
            except OSError:
                if controller in NEEDED:
                    raise
