"""The control groups of containers, found by the names that kubelet gives to those of pods."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from hami_dra.policy.cgroups import find_container

_DEEPEST: Final = 8
"""Below the mount, the deepest known is ``<root>/kubelet.slice/…/kubepods-…-pod….slice/…``."""


def find_container_groups(cgroups: Path, pod_uids: Collection[str]) -> dict[Path, str]:
    """Return the groups of the containers of some pods, with the pod's UID. Blocking.

    The group of a pod's sandbox is among them: it is a container like the others. What vanishes
    meanwhile is left out.

    Args:
        cgroups: Where control groups of version 2 are mounted.
        pod_uids: As Kubernetes writes them.
    """
    return dict(_walk(cgroups, "", frozenset(pod_uids), _DEEPEST)) if pod_uids else {}


def _walk(
    directory: Path, path: str, pod_uids: frozenset[str], depth: int
) -> Iterator[tuple[Path, str]]:
    try:
        with os.scandir(directory) as entries:
            names = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
    except OSError:
        return
    for name in names:
        below = f"{path}/{name}"
        place = find_container(f"0::{below}")
        if place is not None and place.container_id:
            if place.pod_uid in pod_uids:
                yield directory / name, place.pod_uid
        elif depth and (place is None or place.pod_uid in pod_uids):
            yield from _walk(directory / name, below, pod_uids, depth - 1)
