"""CDI specifications as plain dicts. Pure.

Facts (CDI SPEC.md and its Go library): unknown fields and unknown versions make a runtime refuse
the whole file; a device's edits must not be empty; a device name is unique in its file; of mounts
with one container path the last wins, so equal mounts of several devices are harmless.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

_LIBRARY_OPTIONS: Final = ("ro", "nosuid", "nodev", "rbind", "rprivate")
_SOCKET_OPTIONS: Final = ("ro", "nosuid", "nodev", "noexec", "rbind", "rprivate")
_READ_WRITE_OPTIONS: Final = ("rw", "nosuid", "nodev", "noexec", "rbind", "rprivate")
_FREE_OPTIONS: Final = ("rw", "nosuid", "rbind", "rprivate")


@dataclass(frozen=True, slots=True)
class Mount:
    """A bind mount.

    Attributes:
        host_path: As the container runtime sees it.
        container_path: Where it appears.
        read_only: A socket on it can be connected to nonetheless.
        private_data: Writable, and nothing on it can be executed.
        executable: Of read-only mounts; false for sockets.
    """

    host_path: str
    container_path: str
    read_only: bool = True
    private_data: bool = False
    executable: bool = True

    def render(self) -> dict[str, Any]:
        """Return the mount as CDI writes it."""
        writable = _READ_WRITE_OPTIONS if self.private_data else _FREE_OPTIONS
        readable = _LIBRARY_OPTIONS if self.executable else _SOCKET_OPTIONS
        return {
            "hostPath": self.host_path,
            "containerPath": self.container_path,
            "options": list(readable if self.read_only else writable),
        }


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A character device."""

    host_path: str
    container_path: str
    major: int
    minor: int

    def render(self) -> dict[str, Any]:
        """Return the node as CDI writes it."""
        node = {
            "path": self.container_path,
            "type": "c",
            "major": self.major,
            "minor": self.minor,
            "permissions": "rw",
        }
        if self.host_path != self.container_path:
            node["hostPath"] = self.host_path
        return node


@dataclass(frozen=True, slots=True)
class Edits:
    """What happens to a container."""

    mounts: tuple[Mount, ...] = ()
    nodes: tuple[DeviceNode, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()

    def render(self) -> dict[str, Any]:
        """Return the edits without empty lists."""
        rendered: dict[str, Any] = {}
        if self.environment:
            rendered["env"] = [f"{name}={value}" for name, value in self.environment]
        if self.nodes:
            rendered["deviceNodes"] = [node.render() for node in self.nodes]
        if self.mounts:
            rendered["mounts"] = [mount.render() for mount in self.mounts]
        return rendered

    def host_paths(self) -> list[str]:
        """Return every path of the host that the runtime will open."""
        return [mount.host_path for mount in self.mounts] + [node.host_path for node in self.nodes]


def render_spec(
    kind: str, devices: Sequence[tuple[str, Edits]], common: Edits | None = None
) -> dict[str, Any]:
    """Return a specification in the lowest version that covers its content.

    Args:
        kind: ``vendor/class``.
        devices: Names and edits; at least one, names unique, edits not empty.
        common: Edits for every container that uses any of the devices.

    Raises:
        ValueError: A device twice, without edits, or none at all.
    """
    names = [name for name, _ in devices]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"{kind}: device names must be unique and at least one, got {names}")
    rendered = [{"name": name, "containerEdits": edits.render()} for name, edits in devices]
    empty = [device["name"] for device in rendered if not device["containerEdits"]]
    if empty:
        raise ValueError(f"{kind}: {empty} would change nothing in a container")
    nodes = [node for _, edits in devices for node in edits.nodes]
    nodes += common.nodes if common else ()
    spec: dict[str, Any] = {
        "cdiVersion": _lowest_version(names, nodes),
        "kind": kind,
        "devices": rendered,
    }
    shared = common.render() if common else {}
    if shared:
        spec["containerEdits"] = shared
    return spec


def _lowest_version(names: Iterable[str], nodes: Iterable[DeviceNode]) -> str:
    relocated = any(node.host_path != node.container_path for node in nodes)
    # 0.5.0: hostPath of device nodes, and names that begin with a digit (as claim UIDs may).
    return "0.5.0" if relocated or any(name[0].isdigit() for name in names) else "0.3.0"
