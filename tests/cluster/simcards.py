"""Kinds of cards for simulated nodes, and what NVML and /sys would say of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from hami_dra.gpu.facts import normalize_bus_id, register_name
from hami_dra.policy.devices import GpuFacts
from hami_dra.testing.simgpu import A100, DRIVER_VERSION, T4, SimCard

if TYPE_CHECKING:
    from collections.abc import Sequence


def _kind(name: str, memory_mib: int, compute_capability: str, architecture: str) -> SimCard:
    return replace(
        A100,
        name=name,
        memory_mib=memory_mib,
        compute_capability=compute_capability,
        architecture=architecture,
    )


KINDS: Final[dict[str, SimCard]] = {
    "A100": A100,
    "T4": T4,
    "A100-80G": _kind("NVIDIA A100-SXM4-80GB", 81920, "8.0", "ampere"),
    "A100-PCIE": _kind("NVIDIA A100-PCIE-40GB", 40960, "8.0", "ampere"),
    "A10": _kind("NVIDIA A10", 23028, "8.6", "ampere"),
    "V100": _kind("Tesla V100-SXM2-16GB", 16384, "7.0", "volta"),
    "L4": _kind("NVIDIA L4", 23034, "8.9", "ada lovelace"),
    "L40S": _kind("NVIDIA L40S", 46068, "8.9", "ada lovelace"),
    "H100": _kind("NVIDIA H100 80GB HBM3", 81559, "9.0", "hopper"),
    "H200": _kind("NVIDIA H200", 143771, "9.0", "hopper"),
}
"""Memory is what nvidia-smi shows of such cards."""


def make_cards(kinds: Sequence[str], *, node: int = 0) -> tuple[GpuFacts, ...]:
    """Return the cards of a node: half of them on each of two NUMA nodes, two below each PCIe root.

    Card C of node N has the UUID ``GPU-N-0000-4000-8000-C``, both in hexadecimal.

    Args:
        kinds: Names of `KINDS`, in the order of their PCI addresses.
        node: The node's number.
    """
    half = (len(kinds) + 1) // 2
    return tuple(
        make_card(KINDS[kind], index, node=node, numa_node=index // half, root=index // 2)
        for index, kind in enumerate(kinds)
    )


def make_card(
    kind: SimCard,
    index: int,
    *,
    node: int = 0,
    uuid: str | None = None,
    numa_node: int | None = 0,
    root: int | None = 0,
) -> GpuFacts:
    """Return one card of a kind.

    Args:
        kind: Model and memory; its place and UUID are not used.
        index: Position on the node.
        node: The node's number.
        uuid: Instead of the one that `make_cards` describes.
        numa_node: Of the card; ``None`` if the machine does not say.
        root: Number of its PCIe root; ``None`` if the machine does not say.
    """
    return GpuFacts(
        uuid=uuid or f"GPU-{node:08x}-0000-4000-8000-{index:012x}",
        index=index,
        minor=index,
        product_name=register_name(kind.name),
        brand=kind.brand.title(),
        architecture=kind.architecture.title(),
        compute_capability=kind.compute_capability,
        driver_version=DRIVER_VERSION,
        cuda_driver_version="13.0",
        memory_mib=kind.memory_mib,
        pci_bus_id=normalize_bus_id(f"0000:{index + 1:02x}:00.0"),
        pcie_root=None if root is None else f"pci0000:{root:02x}",
        numa_node=numa_node,
    )
