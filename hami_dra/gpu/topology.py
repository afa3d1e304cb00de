"""Where a card sits in the machine, read from /sys."""

import re
from pathlib import Path
from typing import Final

_ADDRESS: Final = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_ROOT: Final = re.compile(r"pci[0-9a-f]{4,}:[0-9a-f]{2}")


def find_bound_devices(sysfs: Path) -> frozenset[str]:
    """Return the PCI addresses that NVIDIA's driver holds; none if /sys does not show it.

    NVML finds cards when it is initialised and never again; this list changes at once.
    """
    try:
        names = [entry.name for entry in (sysfs / "bus/pci/drivers/nvidia").iterdir()]
    except OSError:
        return frozenset()
    return frozenset(name for name in names if _ADDRESS.fullmatch(name))


def find_pcie_root(sysfs: Path, bus_id: str) -> str | None:
    """Return ``pciDDDD:BB`` of the card's root complex, ``None`` if /sys does not show it.

    It is the first ``pci…`` component of the real path of the device's link (KEP-6072).
    """
    if not bus_id:
        return None
    link = sysfs / "bus/pci/devices" / bus_id
    try:
        parts = link.resolve(strict=True).parts
    except (OSError, RuntimeError):
        return None
    return next((part for part in parts if _ROOT.fullmatch(part)), None)


def find_numa_node(sysfs: Path, bus_id: str) -> int | None:
    """Return the card's NUMA node; ``None`` where the machine has none (the kernel says -1)."""
    if not bus_id:
        return None
    try:
        number = int((sysfs / "bus/pci/devices" / bus_id / "numa_node").read_text())
    except (OSError, ValueError):
        return None
    return number if number >= 0 else None
