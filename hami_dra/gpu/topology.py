"""Where a card sits in the machine, read from /sys."""

import re
from pathlib import Path
from typing import Final

_ROOT: Final = re.compile(r"pci[0-9a-f]{4,}:[0-9a-f]{2}")


def find_pcie_root(sysfs: Path, bus_id: str) -> str | None:
    """Return ``pciDDDD:BB`` of the card's root complex, ``None`` if /sys does not show it.

    It is the first ``pci…`` component of the real path of the device's link (KEP-6072).
    """
    link = sysfs / "bus/pci/devices" / bus_id
    try:
        parts = link.resolve(strict=True).parts
    except (OSError, RuntimeError):
        return None
    return next((part for part in parts if _ROOT.fullmatch(part)), None)


def find_numa_node(sysfs: Path, bus_id: str) -> int | None:
    """Return the card's NUMA node; ``None`` where the machine has none (the kernel says -1)."""
    try:
        number = int((sysfs / "bus/pci/devices" / bus_id / "numa_node").read_text())
    except (OSError, ValueError):
        return None
    return number if number >= 0 else None
