"""A CDI file of somebody else, read as strictly as container runtimes read it.

Facts (tags.cncf.io/container-device-interface 1.1.1, specs-go): an unknown field or version makes
the runtime refuse the whole file, and then none of its devices exists.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

VERSIONS: Final = (
    *("0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0"),
    *("0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"),
)
"""Oldest first."""
_HOOKS: Final = frozenset(
    {
        *("prestart", "createRuntime", "createContainer"),
        *("startContainer", "poststart", "poststop"),
    }
)
_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?")
_KIND: Final = re.compile(r"[A-Za-z]([\w.-]*[A-Za-z0-9])?/[A-Za-z]([\w.-]*[A-Za-z0-9])?", re.ASCII)


class DeviceNode(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A device node; what is not given is taken from the host's node."""

    path: str
    host_path: str = ""
    type: str = ""
    major: int = 0
    minor: int = 0
    file_mode: int | None = None
    permissions: str = ""
    uid: int | None = None
    gid: int | None = None


class Mount(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A bind mount."""

    host_path: str
    container_path: str
    options: list[str] | None = None
    type: str = ""


class Hook(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A program of the host that the runtime runs."""

    hook_name: str
    path: str
    args: list[str] | None = None
    env: list[str] | None = None
    timeout: int | None = None


class Edits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """What happens to a container."""

    env: list[str] | None = None
    device_nodes: list[DeviceNode] | None = None
    net_devices: list[dict[str, str]] | None = None
    hooks: list[Hook] | None = None
    mounts: list[Mount] | None = None
    intel_rdt: dict[str, object] | None = None
    additional_gids: list[int] | None = None

    def is_empty(self) -> bool:
        """Whether nothing would happen."""
        lists = (self.env, self.device_nodes, self.net_devices, self.hooks, self.mounts)
        return not any((*lists, self.additional_gids)) and self.intel_rdt is None

    def paths(self) -> list[str]:
        """Return every path of the host that the runtime will open."""
        found = [mount.host_path for mount in self.mounts or ()]
        found += [hook.path for hook in self.hooks or ()]
        found += [node.host_path or node.path for node in self.device_nodes or ()]
        return [path for path in found if path]


class Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A device by its name in the file."""

    name: str
    container_edits: Edits = Edits()
    annotations: dict[str, str] | None = None


class SpecFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A whole file."""

    cdi_version: str
    kind: str
    devices: list[Device]
    annotations: dict[str, str] | None = None
    container_edits: Edits = Edits()

    def all_edits(self) -> Iterator[Edits]:
        """Yield the edits of each device, and those of the whole file."""
        yield from (device.container_edits for device in self.devices)
        yield self.container_edits


def read_spec(path: Path) -> SpecFile:
    """Read a file. Blocking.

    Raises:
        ValueError: A runtime would refuse it; says why.
        OSError: It cannot be read.
    """
    content = path.read_bytes()
    raw = msgspec.json.decode(content) if path.suffix == ".json" else _decode_yaml(content)
    spec = msgspec.convert(raw, SpecFile)
    for reason in _find_faults(spec):
        raise ValueError(reason)
    return spec


def _decode_yaml(content: bytes) -> object:
    # Imported here: a MiB that a node without such a file never pays.
    import yaml  # noqa: PLC0415

    try:
        return yaml.safe_load(content.decode())
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _find_faults(spec: SpecFile) -> Iterator[str]:
    version = spec.cdi_version.removeprefix("v")
    if version not in VERSIONS:
        yield f"unknown cdiVersion {spec.cdi_version!r}"
        return
    needed = _lowest_version(spec)
    if VERSIONS.index(version) < VERSIONS.index(needed):
        yield f"cdiVersion has to be at least {needed}, it is {version}"
    if not _KIND.fullmatch(spec.kind):
        yield f"{spec.kind!r} is not vendor/class"
    names = [device.name for device in spec.devices]
    if not names or len(set(names)) != len(names):
        yield "device names have to be unique, and there has to be one"
    for device in spec.devices:
        if not _NAME.fullmatch(device.name):
            yield f"{device.name!r} is not a device name"
        if device.container_edits.is_empty():
            yield f"device {device.name} has no edits"
    for edits in spec.all_edits():
        yield from _find_faults_of_edits(edits)


def _find_faults_of_edits(edits: Edits) -> Iterator[str]:
    for variable in edits.env or ():
        if variable.find("=") <= 0:
            yield f"{variable!r} is not a variable"
    for node in edits.device_nodes or ():
        if not node.path or node.type not in {"", "b", "c", "u", "p"}:
            yield f"{node.path!r} is not a device node that a runtime can make"
        if node.permissions != "none" and not set(node.permissions) <= set("rwm"):
            yield f"{node.path}: {node.permissions!r} are no permissions"
    for hook in edits.hooks or ():
        if hook.hook_name not in _HOOKS or not hook.path:
            yield f"{hook.hook_name!r} with path {hook.path!r} is no hook"
    for mount in edits.mounts or ():
        if not mount.host_path or not mount.container_path:
            yield f"a mount of {mount.host_path!r} to {mount.container_path!r} lacks a path"


def _lowest_version(spec: SpecFile) -> str:
    """Return the oldest version that covers a file (specs-go, MinimumRequiredVersion)."""
    edits = list(spec.all_edits())
    relocated = any(node.host_path for each in edits for node in each.device_nodes or ())
    annotated = spec.annotations or any(device.annotations for device in spec.devices)
    if any(each.net_devices for each in edits):
        return "1.1.0"
    if any(each.intel_rdt is not None or each.additional_gids for each in edits):
        return "0.7.0"
    if annotated or "." in spec.kind.partition("/")[2]:
        return "0.6.0"
    if relocated or any(device.name[:1].isdigit() for device in spec.devices):
        return "0.5.0"
    typed = any(mount.type for each in edits for mount in each.mounts or ())
    return "0.4.0" if typed else "0.3.0"
