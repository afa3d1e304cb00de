"""What a GPU is, and how it is written into a ResourceSlice.

Limits of the API (k8s.io/kubernetes pkg/apis/resource/validation): a device's name is a DNS label,
string values have at most 64 bytes, a version is a strict semantic version, a capacity's
range must divide into whole steps. All hold here by construction, because one bad device makes
the API server refuse its whole slice.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from hami_dra.contract import names
from hami_dra.contract.quantity import format_mib
from hami_dra.policy.mig import MigFacts
from hami_dra.policy.taints import Taint, describe_taints

CORES_PER_CARD: Final = 100
"""Compute is shared out in percent of a card."""

_LONGEST_VALUE: Final = 64
_LONGEST_NAME: Final = 63
_VERSION_PARTS: Final = 3
_LARGEST_PART: Final = 2**31 - 1
"""The API server reads each part as a machine's number."""
_NO_TAINTS: Final[Mapping[str, Collection[Taint]]] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuFacts:
    """One card, as its driver describes it.

    Attributes:
        uuid: ``GPU-8-4-4-4-12``; the only name that outlives a reboot.
        index: Position in NVML's order (by PCI address).
        minor: N of ``/dev/nvidiaN``.
        product_name: Model as HAMi registers it: NVML's name, with "NVIDIA-" before it unless it
            begins with "NVIDIA".
        brand: Such as ``Tesla`` or ``GeForce``.
        architecture: Such as ``Hopper``.
        compute_capability: ``major.minor``.
        driver_version: As the driver writes it, such as ``580.95.05``.
        cuda_driver_version: ``major.minor`` of the newest CUDA the driver can run.
        memory_mib: Whole MiB of the card's memory, rounded down; 0 if the driver does not say it
            (memory that the card shares with the CPU).
        pci_bus_id: ``dddd:bb:dd.f``, lower case; "" for a card on no PCI bus.
        pcie_root: ``pciDDDD:BB`` of the root complex; ``None`` if the machine does not show it.
        numa_node: Node of the card's memory; ``None`` if it has none (never -1).
        mig: What it says of its parts; ``None`` for a card that cannot be divided.
    """

    uuid: str
    index: int
    minor: int
    product_name: str
    brand: str
    architecture: str
    compute_capability: str
    driver_version: str
    cuda_driver_version: str
    memory_mib: int
    pci_bus_id: str
    pcie_root: str | None = None
    numa_node: int | None = None
    mig: MigFacts | None = None


@dataclass(frozen=True, slots=True)
class CardCapacity:
    """How much of a card may be given away."""

    memory_mib: int
    cores: int
    slots: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CardService:
    """The daemon of NVIDIA's Multi-Process Service that serves a card.

    Attributes:
        pipe_directory: Of the host, with the daemon's pipes.
        shm_directory: Of the host, its /dev/shm; "": containers keep their own.
        default: Whether claims that do not choose are served.
    """

    pipe_directory: str
    shm_directory: str = ""
    default: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class CardOffer:
    """A card as the node offers it: what is published, and what the ledger holds claims to.

    Attributes:
        gpu: The card; its memory is the physical one.
        capacity: What all claims together may take of it.
        hidden: Why it is not published; "" when it is. Claims that hold it stay.
        mps: Who serves its shares, if they want; ``None``: nobody.
    """

    gpu: GpuFacts
    capacity: CardCapacity
    hidden: str = ""
    mps: CardService | None = None


def offer_whole(gpu: GpuFacts, *, split_count: int) -> CardOffer:
    """Return a card offered as it is: nothing scaled, nothing hidden."""
    return CardOffer(gpu=gpu, capacity=CardCapacity(gpu.memory_mib, CORES_PER_CARD, split_count))


@lru_cache(maxsize=1024)
def name_device(uuid: str) -> str:
    """Return the device name of a card: its UUID as a DNS label.

    Never the minor, which may belong to another card after a reboot while the allocation stays.
    """
    label = re.sub(r"[^a-z0-9]+", "-", uuid.lower()).strip("-")
    return (label if label.startswith("gpu-") else f"gpu-{label}")[:_LONGEST_NAME].rstrip("-")


@lru_cache(maxsize=256)
def normalize_version(text: str) -> str:
    """Return a strict semantic version: ``580.95.05`` becomes ``580.95.5``, ``9.0`` ``9.0.0``.

    Text without a sensible number in front becomes ``0.0.0``, so that an odd driver never costs the
    node its whole slice.
    """
    match = re.match(r"[0-9]+(?:\.[0-9]+)*", text.strip())
    parts = [int(part) for part in match[0].split(".")] if match else []
    if max(parts, default=0) > _LARGEST_PART:
        parts = []
    padded = (parts + [0] * _VERSION_PARTS)[:_VERSION_PARTS]
    return ".".join(str(part) for part in padded)


def describe_devices(
    gpus: Iterable[GpuFacts],
    *,
    split_count: int,
    taints: Mapping[str, Collection[Taint]] = _NO_TAINTS,
) -> list[dict[str, Any]]:
    """Return the DRA devices of cards that are offered whole; see `describe_offers`."""
    return describe_offers([offer_whole(gpu, split_count=split_count) for gpu in gpus], taints)


def describe_offers(
    offers: Iterable[CardOffer], taints: Mapping[str, Collection[Taint]] = _NO_TAINTS
) -> list[dict[str, Any]]:
    """Return the DRA devices of a node's cards, in a stable order (by PCI address).

    The order is part of what is published: the scheduler takes the first device that fits.

    Args:
        offers: The cards; hidden ones are left out.
        taints: By the UUID of the card that they are on.
    """
    shown = [offer for offer in offers if not offer.hidden]
    devices = []
    for offer in sorted(shown, key=lambda each: (each.gpu.pci_bus_id, each.gpu.uuid)):
        device = describe_offer(offer)
        if marks := taints.get(offer.gpu.uuid):
            device["taints"] = describe_taints(marks)
        devices.append(device)
    return devices


def describe_device(gpu: GpuFacts, *, split_count: int) -> dict[str, Any]:
    """Return a card that is offered whole as a ``resource.k8s.io/v1`` device."""
    return describe_offer(offer_whole(gpu, split_count=split_count))


def describe_attributes(gpu: GpuFacts) -> dict[str, Any]:
    """Return what a card is, as attributes of a device."""
    attributes = {
        names.ATTR_TYPE: _string(names.DEVICE_TYPE),
        names.ATTR_UUID: _string(gpu.uuid),
        names.ATTR_INDEX: {"int": gpu.index},
        names.ATTR_MINOR: {"int": gpu.minor},
        names.ATTR_PRODUCT_NAME: _string(gpu.product_name),
        names.ATTR_BRAND: _string(gpu.brand),
        names.ATTR_ARCHITECTURE: _string(gpu.architecture),
        names.ATTR_COMPUTE_CAPABILITY: {"version": normalize_version(gpu.compute_capability)},
        names.ATTR_DRIVER_VERSION: {"version": normalize_version(gpu.driver_version)},
        names.ATTR_CUDA_DRIVER_VERSION: {"version": normalize_version(gpu.cuda_driver_version)},
    }
    if gpu.pci_bus_id:
        attributes[names.ATTR_PCIE_BUS_ID] = _string(gpu.pci_bus_id)
        attributes[names.ATTR_STD_PCI_BUS_ID] = _string(gpu.pci_bus_id)
    if gpu.pcie_root is not None:
        attributes[names.ATTR_STD_PCIE_ROOT] = _string(gpu.pcie_root)
    if gpu.numa_node is not None:
        attributes[names.ATTR_STD_NUMA_NODE] = {"int": gpu.numa_node}
    return attributes


def describe_offer(offer: CardOffer) -> dict[str, Any]:
    """Return one card as a ``resource.k8s.io/v1`` device."""
    gpu, capacity = offer.gpu, offer.capacity
    memory, cores = format_mib(capacity.memory_mib), str(capacity.cores)
    attributes = describe_attributes(gpu)
    if capacity.memory_mib != gpu.memory_mib:
        attributes[names.ATTR_PHYSICAL_MEMORY] = {"int": gpu.memory_mib}
    if offer.mps is not None:
        attributes[names.ATTR_MPS] = {"bool": True}
    return {
        "name": name_device(gpu.uuid),
        "allowMultipleAllocations": True,
        "attributes": attributes,
        "capacity": {
            # The defaults are the whole card, so that a claim without numbers, and an extended
            # resource, mean what they say. A range from 0 on every capacity: without one, a
            # negative request is stored and counted as a gain (Kubernetes up to 1.36).
            names.CAPACITY_MEMORY: _capacity(memory, default=memory, step="1Mi"),
            names.CAPACITY_CORES: _capacity(cores, default=cores),
            names.CAPACITY_SLOTS: _capacity(str(capacity.slots), default="1"),
        },
    }


def _string(text: str) -> dict[str, Any]:
    return {"string": text.encode(errors="replace")[:_LONGEST_VALUE].decode(errors="ignore")}


def _capacity(value: str, *, default: str, step: str = "1") -> dict[str, Any]:
    return {
        "value": value,
        "requestPolicy": {
            "default": default,
            "validRange": {"min": "0", "max": value, "step": step},
        },
    }
