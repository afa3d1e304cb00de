"""Our own rendering of the driver: what a container needs to use a card without a vendor runtime.

The groups are those of the toolkit's CDI specification: libraries of all uses, tools, sockets of
the driver's daemons, GSP firmware, and the configuration by which GL, EGL and Vulkan find the
libraries. There is no hook, so what a hook would do is done by names (see `libraries`) or is not
done: docs/decisions/0019 has the list.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hami_dra.cdi.driverroot import DriverRoot, LinkError
from hami_dra.cdi.elf import LOADERS, read_elf
from hami_dra.cdi.libraries import Findings, container_directories, find_libraries, list_names
from hami_dra.cdi.nodes import find_card_edits, find_control_nodes
from hami_dra.cdi.spec import Edits, Mount
from hami_dra.contract.driverroot import (
    BINARY_DIRECTORIES,
    CONFIG_DIRECTORIES,
    FIRMWARE_DIRECTORIES,
    library_directories,
)

__all__ = ["DriverFiles", "DriverRoot", "find_card_edits", "find_driver_files"]

_BINARIES: Final = (
    "nvidia-smi",
    "nvidia-debugdump",
    "nvidia-persistenced",
    "nvidia-cuda-mps-control",
    "nvidia-cuda-mps-server",
    "nvidia-imex",
    "nvidia-imex-ctl",
)
_SOCKETS: Final = ("nvidia-persistenced/socket", "nvidia-fabricmanager/socket")
_SOCKET_DIRECTORIES: Final = ("run", "var/run")
_CONFIGS: Final = (
    ("glvnd/egl_vendor.d", re.compile(r"\d+_nvidia\.json")),
    ("egl/egl_external_platform.d", re.compile(r"\d+_nvidia_[a-z0-9]+\.json")),
    ("nvidia", re.compile(r"nvoptix\.bin")),
    ("OpenCL/vendors", re.compile(r"nvidia\.icd")),
    ("X11/xorg.conf.d", re.compile(r"10-nvidia\.conf|nvidia-drm-outputclass\.conf")),
    ("vulkan/icd.d", re.compile(r"nvidia_(icd(\.x86_64|\.aarch64)?|layers)\.json")),
    ("vulkan/implicit_layer.d", re.compile(r"nvidia_layers\.json")),
)
"""Folder and names; Vulkan's go to /etc/vulkan wherever they were found, as with the toolkit."""
_STANDARD_CONFIGS: Final = ("etc", "usr/local/share", "usr/share")
_FIRMWARE: Final = re.compile(r"gsp[a-z0-9_]*\.bin")
_XORG_PLACES: Final = (
    *("nvidia/xorg", "xorg/modules/drivers", "xorg/modules/extensions"),
    *("xorg/modules/updates/drivers", "xorg/modules/updates/extensions"),
)
_TRITON: Final = ("TRITON_LIBCUDA_PATH", container_directories()[1])
"""Triton, PyTorch's compiler, asks the image's ld.so.cache where libcuda is, and gives up when it
does not know. Only a hook could change the cache; Triton reads this variable first."""


@dataclass(frozen=True, slots=True)
class DriverFiles:
    """What all cards of a driver have in common.

    Attributes:
        edits: For every container with a card.
        problems: What was left out and why, for a person.
        directories: Where it was looked: a change in one of them may change the answer.
    """

    edits: Edits
    problems: tuple[str, ...] = ()
    directories: tuple[Path, ...] = ()


def find_driver_files(root: DriverRoot, driver_version: str) -> DriverFiles:
    """Return the libraries, tools, sockets, firmware and control nodes of a driver. Blocking.

    Raises:
        RetryError: libcuda, NVML or a control node of that driver version is not there.
    """
    findings = find_libraries(root, driver_version)
    search = _Search(root, findings)
    search.find_binaries()
    search.find_sockets()
    search.find_firmware(driver_version)
    search.find_configs()
    search.find_xorg(driver_version)
    return DriverFiles(
        edits=Edits(
            mounts=tuple(findings.mounts),
            nodes=find_control_nodes(root),
            environment=(_TRITON,),
        ),
        problems=tuple(dict.fromkeys(findings.problems)),
        directories=tuple(dict.fromkeys(findings.directories)),
    )


class _Search:
    """Adds to findings; what exists and cannot be used is said, what does not exist is not."""

    def __init__(self, root: DriverRoot, findings: Findings) -> None:
        self._root = root
        self._findings = findings

    def find_binaries(self) -> None:
        for name in _BINARIES:
            for real in self._look_up(BINARY_DIRECTORIES, name):
                if not os.access(real, os.X_OK):
                    self._findings.problems.append(f"{real} is left out: it is not executable")
                    continue
                facts = read_elf(real)
                if facts is None or facts.interpreter not in {None, *LOADERS}:
                    loader = facts.interpreter if facts else "no ELF file"
                    self._findings.problems.append(
                        f"{real} is left out: it needs a loader that images do not have ({loader})"
                    )
                    continue
                self._add(real, f"/usr/bin/{name}")
                break

    def find_sockets(self) -> None:
        for name in _SOCKETS:
            for real in self._look_up(_SOCKET_DIRECTORIES, name):
                if real.is_socket():
                    self._add(real, f"/run/{name}", executable=False)
                    break

    def find_firmware(self, driver_version: str) -> None:
        release = os.uname().release
        parts = [f"{part}{below}" for part in FIRMWARE_DIRECTORIES for below in (f"/{release}", "")]
        for part in parts:
            names = self._list(f"{part}/nvidia/{driver_version}", _FIRMWARE)
            for name, real in names:
                self._add(real, f"/lib/firmware/nvidia/{driver_version}/{name}")
            if names:
                return

    def find_configs(self) -> None:
        taken: set[str] = set()
        for part in CONFIG_DIRECTORIES:
            for folder, pattern in _CONFIGS:
                standard = f"/{part}" if part in _STANDARD_CONFIGS else "/usr/share"
                place = "/etc" if folder.startswith("vulkan/") else standard
                for name, real in self._list(f"{part}/{folder}" if part else folder, pattern):
                    if f"{folder}/{name}" not in taken:
                        taken.add(f"{folder}/{name}")
                        self._add(real, f"{place}/{folder}/{name}")

    def find_xorg(self, driver_version: str) -> None:
        glx = f"libglxserver_nvidia.so.{driver_version}"
        wanted = re.compile(rf"nvidia_drv\.so|{re.escape(glx)}")
        taken: set[str] = set()
        for library_directory in library_directories(os.uname().machine):
            for part in (f"{library_directory}/{place}" for place in _XORG_PLACES):
                for name, real in self._list(part, wanted):
                    if name not in taken:
                        taken.add(name)
                        self._add(real, f"/{part}/{name}")
                        if name == glx:
                            self._add(real, f"/{part}/libglxserver_nvidia.so")

    def _look_up(self, directories: Iterable[str], name: str) -> Iterable[Path]:
        """Yield the real files of a name, directory by directory."""
        for part in directories:
            try:
                directory = self._root.resolve(Path(part, name).parent)
            except LinkError:
                continue
            self._findings.directories.append(directory)
            last = Path(name).name
            if not os.path.lexists(directory / last):
                continue
            try:
                yield self._root.resolve_in(directory, last)
            except LinkError as error:
                self._findings.problems.append(str(error))

    def _list(self, part: str, pattern: re.Pattern[str]) -> list[tuple[str, Path]]:
        """Return names of a directory and the real file behind each."""
        try:
            directory = self._root.resolve(part)
        except LinkError:
            return []
        names = list_names(directory)
        if names is None:
            return []
        self._findings.directories.append(directory)
        found = []
        for name in (name for name in names if pattern.fullmatch(name)):
            try:
                found.append((name, self._root.resolve_in(directory, name)))
            except LinkError as error:
                self._findings.problems.append(str(error))
        return found

    def _add(self, real: Path, container_path: str, *, executable: bool = True) -> None:
        host_path = self._root.to_host(real)
        if not host_path.isprintable():
            self._findings.problems.append(f"{real!r} is left out: its name is not plain text")
            return
        self._findings.mounts.append(Mount(host_path, container_path, executable=executable))
