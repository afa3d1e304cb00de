"""The driver's libraries: which there are, and by which names containers get them.

What belongs to a driver follows the toolkit: every library whose name ends in the driver's version
(``libcuda.so.580.95.05``), whatever it is called, so that a new driver's new libraries are there
without a new release of ours; and the few of its EGL platforms that have versions of their own.

Each is mounted under its own name and under every name that links to it (SONAME, development
link), into both ``/usr/lib/<triplet>`` and ``/usr/lib64``. glibc searches one of the two when its
cache does not know a library: Debian's and Ubuntu's build the first, Fedora's and its kin the
second; neither needs ldconfig to run in the container. LD_LIBRARY_PATH is not used: pods set it
themselves, and then ours is gone.
"""

import os
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hami_dra.cdi.driverroot import DriverRoot, LinkError
from hami_dra.cdi.elf import is_library_of
from hami_dra.cdi.spec import Mount
from hami_dra.contract.driverroot import CUDA_SONAME, NVML_SONAME, library_directories
from hami_dra.contract.errors import RetryError

_NAME: Final = re.compile(
    r"(lib(?:cuda|nv|[A-Za-z0-9_]*nvidia)[A-Za-z0-9_+-]*)\.so(?:\.[A-Za-z0-9_.-]+)?"
)
_OWN_VERSION: Final = re.compile(r"libnvidia-egl-[a-z0-9]+\.so\.\d+\.\d+(\.\d+)*", re.ASCII)
_SUBDIRECTORIES: Final = ("", "vdpau")
_DRIVER_STEMS: Final = frozenset({"libcuda", "libnvidia-ml"})
_ALLOCATOR: Final = "libnvidia-allocator.so.1"
_GBM_BACKEND: Final = "gbm/nvidia-drm_gbm.so"
"""GBM's loader opens its backend by this name; it is the allocator by another."""
_SHARED_64: Final = "/usr/lib64"


@dataclass(slots=True)
class Findings:
    """What was found, what was left out and why, and where was looked."""

    mounts: list[Mount] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    directories: list[Path] = field(default_factory=list)


def container_directories(machine: str | None = None) -> tuple[str, str]:
    """Return where containers get libraries; see the module."""
    return f"/usr/lib/{machine or platform.machine()}-linux-gnu", _SHARED_64


def find_libraries(root: DriverRoot, driver_version: str) -> Findings:
    """Return the mounts of the driver's libraries, in a stable order.

    Raises:
        RetryError: libcuda or NVML of that driver version is not there; says which version is.
    """
    scan = _Scan(root, driver_version)
    for part in library_directories(platform.machine()):
        for subdirectory in _SUBDIRECTORIES:
            scan.look_into(Path(part, subdirectory), subdirectory)
    names = scan.names
    for soname in (CUDA_SONAME, NVML_SONAME):
        versioned = f"{soname.removesuffix('.1')}.{driver_version}"
        if soname not in names and versioned in names:
            names[soname] = names[versioned]  # ldconfig has not run since the installation
        if soname not in names:
            raise RetryError(_explain_absence(root, soname, driver_version, scan))
    if _ALLOCATOR in names:
        names[_GBM_BACKEND] = names[_ALLOCATOR]
    mounts = [
        Mount(root.to_host(real), f"{target}/{name}")
        for target in container_directories()
        for name, real in sorted(names.items())
    ]
    return Findings(mounts, scan.problems, scan.directories)


def _explain_absence(root: DriverRoot, soname: str, driver_version: str, scan: "_Scan") -> str:
    others = sorted(scan.other_versions)
    if others:
        return (
            f"{soname} of the loaded driver {driver_version} is not below {root.local}, but that "
            f"of {', '.join(others)} is: an update of the driver is half done; reload the kernel "
            "modules or reboot the node"
        )
    reasons = "".join(f"; {problem}" for problem in scan.problems if soname[:-2] in problem)
    return (
        f"no library directory below {root.local} has {soname} of driver {driver_version}; set "
        f"--driver-root to where the driver is installed{reasons}"
    )


class _Scan:
    """Collects names and the real files behind them; the first directory with a name has it."""

    def __init__(self, root: DriverRoot, driver_version: str) -> None:
        self._root = root
        self._version = driver_version
        self._judged: dict[Path, bool] = {}
        self.names: dict[str, Path] = {}
        self.problems: list[str] = []
        self.directories: list[Path] = []
        self.other_versions: set[str] = set()

    def look_into(self, part: Path, prefix: str) -> None:
        try:
            directory = self._root.resolve(part)
        except LinkError:
            return
        if directory in self.directories:
            return
        entries = list_names(directory)
        if entries is None:
            return
        self.directories.append(directory)
        for entry in entries:
            if match := _NAME.fullmatch(entry):
                self._judge(directory, entry, match[1], prefix)

    def _judge(self, directory: Path, entry: str, stem: str, prefix: str) -> None:
        try:
            real = self._root.resolve_in(directory, entry)
            if not self._belongs(real):
                real = self._find_loaded(directory, entry, stem, real)
        except LinkError as error:
            self.problems.append(str(error))
            return
        if self._belongs(real) and self._is_usable(real):
            for name in (entry, real.name):
                self.names.setdefault(f"{prefix}/{name}" if prefix else name, real)

    def _belongs(self, real: Path) -> bool:
        version = real.name.partition(".so.")[2]
        return version == self._version or _OWN_VERSION.fullmatch(real.name) is not None

    def _find_loaded(self, directory: Path, entry: str, stem: str, real: Path) -> Path:
        """Return the loaded driver's file for a link that leads to another version's."""
        version = real.name.partition(".so.")[2]
        if stem in _DRIVER_STEMS and "." in version:
            self.other_versions.add(version)
        loaded = f"{stem}.so.{self._version}"
        if entry == real.name or not os.path.lexists(directory / loaded):
            return real  # another version's own file, or no driver library at all
        self.problems.append(
            f"{directory / entry} leads to {real.name}, but driver {self._version} is loaded: an "
            f"update is half done; containers get {loaded}"
        )
        return self._root.resolve_in(directory, loaded)

    def _is_usable(self, real: Path) -> bool:
        known = self._judged.get(real)
        if known is None:
            # A name that is not plain text cannot be written into a CDI file.
            plain = _NAME.fullmatch(real.name) and self._root.to_host(real).isprintable()
            known = self._judged[real] = bool(plain) and real.is_file() and is_library_of(real)
            if not known:
                self.problems.append(f"{real} is not a library for {platform.machine()}")
        return known


def list_names(directory: Path) -> Iterable[str] | None:
    """Return the names in a directory, sorted; ``None`` if it cannot be read."""
    try:
        return sorted(entry.name for entry in directory.iterdir())
    except OSError:
        return None
