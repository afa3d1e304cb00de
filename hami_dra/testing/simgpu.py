"""Simulated GPUs: a directory that looks like a host with the NVIDIA driver.

The libraries in it are libvgpu/sim's; everything above them, NVML clients, CUDA
programs and libvgpu itself, is the real thing. Nothing here knows Kubernetes.
"""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

DRIVER_VERSION = "580.95.05"
CUDA_VERSION = 13000
_EVENT_DOUBLE_BIT_ECC = 0x2
_EVENT_XID = 0x8
_NULL_DEVICE = os.makedev(1, 3)
_PROC_DEVICES = "Character devices:\n  1 mem\n511 nvidia-caps\n\nBlock devices:\n  7 loop\n"
"""511 is libvgpu/sim's number too: no driver of the machine has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimCard:
    """One simulated card, as NVML and CUDA will describe it.

    Health may change under running processes: `health` "lost" answers nothing, a card that `hangs`
    never answers, `memory_info` "none" is a card without memory of its own, `recovery_action` is
    NVML's number of what the driver wants done.
    `mig` is the mode that it begins with; the errors are NVML return codes with which GPU instances
    are not created or not destroyed.
    """

    uuid: str
    name: str
    memory_mib: int
    sm_count: int
    pci_bus_id: str
    minor: int
    numa_node: int = 0
    compute_capability: str = "8.0"
    architecture: str = "ampere"
    brand: str = "nvidia"
    nvlink: tuple[int, ...] = field(default=())
    health: str = "ok"
    hangs: bool = False
    memory_info: str = "own"
    remap_failed: bool = False
    recovery_action: int = 0
    uncorrected_errors: int = 0
    context_overhead_mib: int = 0
    mig: bool = False
    mig_create_error: int = 0
    mig_destroy_error: int = 0


A100 = SimCard(
    uuid="GPU-a1000000-5157-4a2b-9c3d-0123456789ab",
    name="NVIDIA A100-SXM4-40GB",
    memory_mib=40960,
    sm_count=108,
    pci_bus_id="0000:3b:00.0",
    minor=0,
)
T4 = SimCard(
    uuid="GPU-74000000-5157-4a2b-9c3d-0123456789ab",
    name="Tesla T4",
    memory_mib=16384,
    sm_count=40,
    pci_bus_id="0000:86:00.0",
    minor=1,
    numa_node=1,
    compute_capability="7.5",
    architecture="turing",
    brand="tesla",
)


@dataclass(frozen=True, slots=True)
class DriverRoot:
    """A directory laid out like the root of a host with the driver installed."""

    root: Path

    @property
    def library_dir(self) -> Path:
        """The directory of libcuda.so.1 and libnvidia-ml.so.1."""
        return self.root / "usr/lib/x86_64-linux-gnu"

    @property
    def dev_dir(self) -> Path:
        """The directory of the device nodes."""
        return self.root / "dev"

    @property
    def sim_dir(self) -> Path:
        """The directory of cards.ini and of the state shared by all processes."""
        return self.root / "run/vgpu-sim"

    @property
    def sysfs_dir(self) -> Path:
        """What /sys shows of the simulated cards: NUMA node and root complex."""
        return self.root / "sys"

    @property
    def procfs_dir(self) -> Path:
        """What /proc shows of the driver: the capabilities of MIG instances, and their major."""
        return self.sim_dir / "proc"

    def environment(self) -> dict[str, str]:
        """Return what a process outside of a container needs in its environment."""
        return {
            "LD_LIBRARY_PATH": str(self.library_dir),
            "VGPU_SIM_DIR": str(self.sim_dir),
            "VGPU_SIM_DEV": str(self.dev_dir),
        }


def _section(card: SimCard) -> list[str]:
    lines = [
        "",
        "[card]",
        f"uuid = {card.uuid}",
        f"name = {card.name}",
        f"memory_mib = {card.memory_mib}",
        f"sm_count = {card.sm_count}",
        f"pci = {card.pci_bus_id}",
        f"minor = {card.minor}",
        f"numa_node = {card.numa_node}",
        f"compute_capability = {card.compute_capability}",
        f"architecture = {card.architecture}",
        f"brand = {card.brand}",
        f"health = {card.health}",
        f"hangs = {int(card.hangs)}",
        f"memory_info = {card.memory_info}",
        f"remap_failed = {int(card.remap_failed)}",
        f"recovery_action = {card.recovery_action}",
        f"uncorrected_errors = {card.uncorrected_errors}",
        f"context_overhead_mib = {card.context_overhead_mib}",
        f"mig_mode = {'enabled' if card.mig else 'disabled'}",
        f"mig_create_error = {card.mig_create_error}",
        f"mig_destroy_error = {card.mig_destroy_error}",
    ]
    if card.nvlink:
        lines.append(f"nvlink = {', '.join(str(index) for index in card.nvlink)}")
    return lines


def write_cards(
    directory: Path,
    cards: Iterable[SimCard],
    *,
    driver_version: str = DRIVER_VERSION,
    init_error: int | None = None,
    cgroup_root: Path | None = None,
) -> Path:
    """Write cards.ini, which running processes re-read for the cards' health.

    The file is replaced as a whole. `init_error` is an NVML return code with
    which nvmlInit shall fail, `cgroup_root` where control groups are for limits of the driver's
    own, if not at the usual place.
    """
    lines = [f"driver_version = {driver_version}", f"cuda_version = {CUDA_VERSION}"]
    if init_error is not None:
        lines.append(f"init_error = {init_error}")
    if cgroup_root is not None:
        lines.append(f"cgroup_root = {cgroup_root}")
    for card in cards:
        lines += _section(card)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "cards.ini"
    temporary = directory / ".cards.ini.new"
    temporary.write_text("\n".join(lines) + "\n")
    temporary.replace(path)
    return path


def report_xid(directory: Path, card: SimCard, number: int) -> None:
    """Let NVML report an XID of a card to whoever listens."""
    _report(directory, card, _EVENT_XID, number)


def report_double_bit_error(directory: Path, card: SimCard) -> None:
    """Let NVML report a memory error that could not be corrected to whoever listens."""
    _report(directory, card, _EVENT_DOUBLE_BIT_ECC, 0)


def _report(directory: Path, card: SimCard, kind: int, data: int) -> None:
    with (directory / "events").open("a") as file:
        file.write(f"{card.uuid} {kind} {data}\n")


def _place_library(source: Path, directory: Path, stem: str, version: str) -> None:
    if not source.is_file():
        message = (
            f"{source} is not built: run `meson setup build/libvgpu libvgpu` and "
            "`meson compile -C build/libvgpu`"
        )
        raise FileNotFoundError(message)
    real = directory / f"{stem}.{version}"
    temporary = directory / f".{real.name}.new"
    shutil.copyfile(source, temporary)
    temporary.chmod(0o755)
    temporary.replace(real)
    for link, target in ((f"{stem}.1", real.name), (stem, f"{stem}.1")):
        (directory / link).unlink(missing_ok=True)
        (directory / link).symlink_to(target)


def _place_on_bus(sysfs: Path, card: SimCard) -> None:
    """Show a card as the kernel does: its device below its root complex, and a link by address."""
    domain, bus, _ = card.pci_bus_id.split(":")
    device = sysfs / "devices" / f"pci{domain}:{int(bus, 16) - 1:02x}" / card.pci_bus_id
    device.mkdir(parents=True, exist_ok=True)
    (device / "numa_node").write_text(f"{card.numa_node}\n")
    link = sysfs / "bus/pci/devices" / card.pci_bus_id
    link.parent.mkdir(parents=True, exist_ok=True)
    bound = sysfs / "bus/pci/drivers/nvidia" / card.pci_bus_id
    bound.parent.mkdir(parents=True, exist_ok=True)
    for place in (link, bound):
        if not place.is_symlink():
            place.symlink_to(device)


def create_driver_root(
    root: Path,
    cards: Sequence[SimCard],
    build_dir: Path,
    *,
    driver_version: str = DRIVER_VERSION,
) -> DriverRoot:
    """Lay a driver installation out under `root` and return it; needs root.

    `build_dir` is Meson's build directory of libvgpu. May be called again on the
    same root: libraries and cards are replaced, the shared state is kept. The
    device nodes are copies of /dev/null under the names of GPUs.
    """
    driver = DriverRoot(root)
    for directory in (driver.library_dir, driver.dev_dir, driver.sim_dir):
        directory.mkdir(parents=True, exist_ok=True)
    for stem in ("libcuda.so", "libnvidia-ml.so"):
        source = build_dir / f"sim/{stem}.1"
        _place_library(source, driver.library_dir, stem, driver_version)
    for name in (*(f"nvidia{card.minor}" for card in cards), "nvidiactl", "nvidia-uvm"):
        node = driver.dev_dir / name
        if not node.exists():
            os.mknod(node, stat.S_IFCHR | 0o666, _NULL_DEVICE)
            node.chmod(0o666)
    for card in cards:
        _place_on_bus(driver.sysfs_dir, card)
    driver.procfs_dir.mkdir(exist_ok=True)
    (driver.procfs_dir / "devices").write_text(_PROC_DEVICES)
    # Containers of any user create and map the state.
    driver.sim_dir.chmod(0o777)
    write_cards(driver.sim_dir, cards, driver_version=driver_version)
    for name in ("state", "pids", "events"):
        (driver.sim_dir / name).touch()
        (driver.sim_dir / name).chmod(0o666)
    return driver
