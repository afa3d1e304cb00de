"""Our own rendering of the driver: what a container needs to use a card without a vendor runtime.

Libraries are mounted file by file, under their versioned name and under every name that the
driver's root links to it (SONAME, development link), into both ``/usr/lib/<triplet>`` and
``/usr/lib64``. glibc searches one of the two when its cache does not know a library: Debian's and
Ubuntu's build the first, Fedora's and its kin the second; neither needs ldconfig to run in the
container. LD_LIBRARY_PATH is not used: pods set it themselves, and then ours is gone. What this
does not cover is graphics (GL, EGL, Vulkan): those want configuration files and many more
libraries, and the toolkit's own CDI specification, which is preferred when it is there.
"""

import os
import platform
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hami_dra.cdi.spec import DeviceNode, Edits, Mount
from hami_dra.contract.driverroot import CUDA_SONAME, NVML_SONAME, library_directories
from hami_dra.contract.errors import RetryError

_LIBRARIES: Final = (
    "libcuda",
    "libcudadebugger",
    "libnvcuvid",
    "libnvidia-allocator",
    "libnvidia-cfg",
    "libnvidia-encode",
    "libnvidia-gpucomp",
    "libnvidia-ml",
    "libnvidia-nvvm",
    "libnvidia-nvvm70",
    "libnvidia-opencl",
    "libnvidia-opticalflow",
    "libnvidia-pkcs11",
    "libnvidia-pkcs11-openssl3",
    "libnvidia-ptxjitcompiler",
    "libnvidia-sandboxutils",
    "libnvidia-tileiras",
)
"""Compute, video and management; what each driver version has of them."""
_BINARIES: Final = ("usr/bin/nvidia-smi",)
_COMMON_NODES: Final = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")
_LONGEST_LINK_CHAIN: Final = 16


@dataclass(frozen=True, slots=True)
class DriverRoot:
    """A driver's directory, as this process sees it and as the container runtime sees it.

    They differ where this process runs in a container with the host mounted somewhere.
    """

    local: Path
    host: Path

    def to_host(self, path: Path) -> str:
        """Return the host's path of something below the root."""
        return str(self.host / path.relative_to(self.local))

    def to_local(self, host_path: str) -> Path | None:
        """Return where this process sees a path of the host; ``None`` if it does not."""
        path = Path(host_path)
        if not path.is_relative_to(self.host):
            return None
        return self.local / path.relative_to(self.host)


def find_common_edits(root: DriverRoot, driver_version: str) -> Edits:
    """Return what every card needs: libraries, tools and the driver's control nodes.

    Raises:
        RetryError: libcuda or NVML of that driver version is not there.
    """
    mounts = find_libraries(root, driver_version) + find_binaries(root)
    nodes = [
        node for name in _COMMON_NODES if (node := _find_node(root, f"dev/{name}")) is not None
    ]
    return Edits(mounts=tuple(mounts), nodes=tuple(nodes))


def find_card_edits(root: DriverRoot, minor: int) -> Edits:
    """Return what one card needs: its device node.

    Raises:
        RetryError: There is no such character device.
    """
    node = _find_node(root, f"dev/nvidia{minor}")
    if node is None:
        raise RetryError(
            f"{root.local}/dev/nvidia{minor} is not a character device; is the NVIDIA kernel "
            "module loaded (nvidia-modprobe creates the node)?"
        )
    return Edits(nodes=(node,))


def find_libraries(root: DriverRoot, driver_version: str) -> list[Mount]:
    """Return the mounts of the driver's libraries, in a stable order.

    Raises:
        RetryError: libcuda or NVML of that driver version is not there.
    """
    machine = platform.machine()
    targets = (f"/usr/lib/{machine}-linux-gnu", "/usr/lib64")
    for part in library_directories(machine):
        names = _list_libraries(root.local, root.local / part, driver_version)
        if CUDA_SONAME in names and NVML_SONAME in names:
            return [
                Mount(root.to_host(path), f"{target}/{name}")
                for target in targets
                for name, path in sorted(names.items())
            ]
    raise RetryError(
        f"no directory below {root.local} has {CUDA_SONAME} and {NVML_SONAME} of driver "
        f"{driver_version}; set --driver-root to where the driver is installed"
    )


def find_binaries(root: DriverRoot) -> list[Mount]:
    """Return the mounts of the driver's tools that exist."""
    found = (root.local / part for part in _BINARIES)
    return [Mount(root.to_host(p), f"/{p.relative_to(root.local)}") for p in found if p.is_file()]


def _list_libraries(root: Path, directory: Path, driver_version: str) -> dict[str, Path]:
    """Return names in the directory and the real file behind each."""
    names: dict[str, Path] = {}
    try:
        entries = sorted(directory.iterdir())
    except OSError:
        return names
    for entry in entries:
        stem, separator, suffix = entry.name.partition(".so")
        if stem not in _LIBRARIES or not separator or (suffix and not suffix.startswith(".")):
            continue
        real = _resolve_below(root, entry)
        if real is None or _is_other_version(real.name, driver_version):
            continue
        names[entry.name] = real
        names[real.name] = real
    return names


def _is_other_version(name: str, driver_version: str) -> bool:
    """Whether a file is of another driver: ``.so.570.1`` of an update half done."""
    suffix = name.partition(".so.")[2]
    return "." in suffix and suffix != driver_version


def _resolve_below(root: Path, path: Path) -> Path | None:
    """Follow links as a process whose root is ``root`` would; ``None`` for a dead link."""
    for _ in range(_LONGEST_LINK_CHAIN):
        if not path.is_symlink():
            return path if path.is_file() else None
        target = path.readlink()
        path = root / target.relative_to("/") if target.is_absolute() else path.parent / target
        path = Path(os.path.normpath(path))
    return None


def _find_node(root: DriverRoot, part: str) -> DeviceNode | None:
    path = root.local / part
    try:
        status = path.stat()
    except OSError:
        return None
    if not stat.S_ISCHR(status.st_mode):
        return None
    return DeviceNode(
        host_path=root.to_host(path),
        container_path=f"/{part}",
        major=os.major(status.st_rdev),
        minor=os.minor(status.st_rdev),
    )
