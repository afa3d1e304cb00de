"""From a process's control groups to the pod and container that it runs in.

Facts: ``/proc/<pid>/cgroup`` has a line ``hierarchy:controllers:path`` for each hierarchy, one with
``0::`` for version 2 (cgroups(7)). Kubelet names a pod's group ``pod<uid>`` (driver cgroupfs) or
``kubepods[-<class>]-pod<uid with _ for ->.slice`` (systemd, where each slice's name begins with its
parent's, so a ``--cgroup-root`` shows as more words in front); containers are ``<64 hex>`` or
``<runtime>-<64 hex>.scope`` below (pkg/kubelet/cm, containerd, CRI-O). Under a process in another
control group namespace the path begins with ``/..``.

Groups below a container's own may be made by what runs in it, so the outermost names count.
"""

import re
from dataclasses import dataclass
from typing import Final

_UID: Final = (
    r"[0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32}"
)
_POD: Final = re.compile(
    rf"(?:[A-Za-z0-9_:.-]*kubepods(?:-[a-z]+)?-)?pod(?P<uid>{_UID})(?:\.slice)?"
)
_CONTAINER: Final = re.compile(
    r"(?:(?P<runtime>[a-z][a-z0-9-]*?)-)?(?P<id>[0-9a-f]{64})(?:\.scope)?"
)
_WITHOUT_SYSTEMD: Final = re.compile(
    rf"kubepods(?:-[a-z]+)?-pod(?P<uid>{_UID})\.slice:[a-z-]+:(?P<id>[0-9a-f]{{64}})"
)
"""What containerd makes when kubelet has the systemd driver and containerd does not."""
_CONMON: Final = "crio-conmon"
"""CRI-O's monitor, which lives beside the container and outside of it."""


@dataclass(frozen=True, slots=True)
class ContainerPlace:
    """Where a process runs.

    Attributes:
        pod_uid: As Kubernetes writes it.
        container_id: 64 hexadecimal digits; "" for a process of the pod outside its containers.
    """

    pod_uid: str
    container_id: str


def find_container(text: str) -> ContainerPlace | None:
    """Return where a process runs; ``None`` if in no pod.

    Args:
        text: Of ``/proc/<pid>/cgroup``. Any text: what makes no sense is in no pod.
    """
    for line in text.split("\n"):
        parts = line.split(":", 2)
        if len(parts) == 3:  # noqa: PLR2004 - cgroups(7)
            place = _read_path(parts[2])
            if place is not None:
                return place
    return None


def _read_path(path: str) -> ContainerPlace | None:
    segments = [segment for segment in path.split("/") if segment not in {"", ".."}]
    for index, segment in enumerate(segments):
        joined = _WITHOUT_SYSTEMD.fullmatch(segment)
        if joined is not None:
            return ContainerPlace(_write_uid(joined["uid"]), joined["id"])
        pod = _POD.fullmatch(segment)
        if pod is not None and _is_kubepods(segments[: index + 1]):
            return ContainerPlace(_write_uid(pod["uid"]), _read_container(segments[index + 1 :]))
    return None


def _is_kubepods(segments: list[str]) -> bool:
    """Whether a pod's group is kubelet's: anybody may call a group "pod" and a number.

    A path that begins inside the tree (another namespace's view) shows no parents.
    """
    return len(segments) == 1 or any("kubepods" in segment for segment in segments)


def _read_container(segments: list[str]) -> str:
    if not segments:
        return ""
    found = _CONTAINER.fullmatch(segments[0])
    return "" if found is None or found["runtime"] == _CONMON else found["id"]


def _write_uid(text: str) -> str:
    return text.replace("_", "-")
