"""A CDI file of somebody else, read as strictly as container runtimes read it.

Facts (tags.cncf.io/container-device-interface 1.1.1, specs-go): an unknown field or version makes
the runtime refuse the whole file, and then none of its devices exists.
"""

from pathlib import Path
from typing import Final

import msgspec
import yaml

VERSIONS: Final = frozenset(
    {
        *("0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0"),
        *("0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"),
    }
)


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


def read_spec(path: Path) -> SpecFile:
    """Read a file. Blocking.

    Raises:
        ValueError: A runtime would refuse it; says why.
        OSError: It cannot be read.
    """
    content = path.read_bytes()
    try:
        raw = (
            msgspec.json.decode(content)
            if path.suffix == ".json"
            else yaml.safe_load(content.decode())
        )
        spec = msgspec.convert(raw, SpecFile)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    if spec.cdi_version.removeprefix("v") not in VERSIONS:
        raise ValueError(f"unknown cdiVersion {spec.cdi_version!r}")
    return spec
