"""Which devices a divided card is, and how they are written into a ResourceSlice. Pure.

A card in MIG mode is not published itself. Its parts are: those that exist (static), or, on a card
that this program divides, every placement that could (dynamic). Placements take what they need of
the card's counters (KEP-4815), so the scheduler never gives out two that exclude each other.

Limits of the API: names of devices, counter sets and counters are DNS labels; of counter sets a
slice has at most 8, of counters a set at most 32, and they are in slices without devices.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hami_dra.contract import names
from hami_dra.contract.quantity import format_mib
from hami_dra.policy.devices import GpuFacts, describe_attributes, name_device
from hami_dra.policy.mig import (
    Instance,
    MigFacts,
    Part,
    Place,
    Profile,
    consume,
    consume_instance,
    count_totals,
    leave,
    name_part,
    order_starts,
    overlap,
    render_counters,
    share_of_card,
)

_LONGEST_NAME: Final = 63
_HASH_DIGITS: Final = 8
ALL_CARDS: Final = "all"
"""Instead of a UUID or index: every card that can be divided."""

IsForeign = Callable[[GpuFacts, Instance], bool]
"""Whether an instance was made by somebody else than this program."""
Allows = Callable[[GpuFacts, str], bool]
"""Whether a card may be divided into parts of a profile, by its name."""


def allow_all(_gpu: GpuFacts, _profile: str) -> bool:
    """Divide cards into whatever they can be."""
    return True


@dataclass(frozen=True, kw_only=True, slots=True)
class MigDevice:
    """One published device of a divided card.

    Attributes:
        name: Of the device.
        uuid: Its attribute: ``MIG-…`` of what exists, ``<card>/<profile>@<start>`` of a placement.
        card: The card.
        profile: Kind of its GPU instance.
        label: Attribute ``profile``: the profile's name, or that of a part of an instance.
        cores: Percent of the card's compute.
        start: First memory slice.
        instance: NVML's id of the GPU instance; ``None`` for a placement.
        part: NVML's id of the compute instance; ``None`` for a placement.
    """

    name: str
    uuid: str
    card: GpuFacts
    profile: Profile
    label: str
    cores: int
    start: int
    instance: int | None = None
    part: int | None = None

    @property
    def dynamic(self) -> bool:
        """Whether an instance must be made for it."""
        return self.instance is None


def is_divided(gpu: GpuFacts) -> bool:
    """Whether a card is in MIG mode: nobody can use it as a whole then."""
    return gpu.mig is not None and gpu.mig.enabled


def is_dynamic(gpu: GpuFacts, chosen: Collection[str]) -> bool:
    """Whether an operator lets us divide a card: by UUID, index, or "all" that can be."""
    return gpu.mig is not None and not {gpu.uuid, str(gpu.index), ALL_CARDS}.isdisjoint(chosen)


def list_mig_devices(
    gpus: Iterable[GpuFacts],
    chosen: Collection[str],
    is_foreign: IsForeign,
    allows: Allows = allow_all,
) -> list[MigDevice]:
    """Return the devices of divided cards, in a stable order: by PCI address, smallest first.

    Args:
        gpus: The node's cards, divided or not.
        chosen: Cards that this program divides (`is_dynamic`).
        is_foreign: Tells instances of others from our own.
        allows: What there may be placements of.
    """
    devices: list[MigDevice] = []
    for gpu in sorted(gpus, key=lambda gpu: (gpu.pci_bus_id, gpu.uuid)):
        if gpu.mig is None or not gpu.mig.enabled:
            continue
        foreign = [item for item in gpu.mig.instances if is_foreign(gpu, item)]
        if is_dynamic(gpu, chosen):
            profiles = [each for each in gpu.mig.profiles if allows(gpu, each.name)]
            devices += _list_placements(gpu, gpu.mig, profiles, foreign)
        else:
            devices += _list_parts(gpu, gpu.mig, foreign)
    return devices


def describe_mig_device(device: MigDevice) -> dict[str, Any]:
    """Return a part of a card as a ``resource.k8s.io/v1`` device."""
    described: dict[str, Any] = {
        "name": device.name,
        "attributes": describe_attributes(device.card)
        | {
            names.ATTR_TYPE: {"string": names.DEVICE_TYPE_MIG},
            names.ATTR_UUID: {"string": device.uuid},
            names.ATTR_PROFILE: {"string": device.label},
            names.ATTR_PARENT_UUID: {"string": device.card.uuid},
        },
        # Taken whole, so without a policy of requests: a claim may ask for at least so much.
        "capacity": {
            names.CAPACITY_MEMORY: {"value": format_mib(device.profile.memory_mib)},
            names.CAPACITY_CORES: {"value": str(device.cores)},
            names.CAPACITY_SLOTS: {"value": "1"},
        },
    }
    if device.dynamic:
        described["consumesCounters"] = [
            {
                "counterSet": name_device(device.card.uuid),
                "counters": render_counters(consume(device.profile, device.start)),
            }
        ]
    return described


def describe_counter_sets(
    gpus: Iterable[GpuFacts], chosen: Collection[str], is_foreign: IsForeign
) -> list[dict[str, Any]]:
    """Return the counters of the cards that this program divides, without what others took."""
    sets = []
    for gpu in sorted(gpus, key=lambda gpu: (gpu.pci_bus_id, gpu.uuid)):
        if gpu.mig is None or not gpu.mig.enabled or not is_dynamic(gpu, chosen):
            continue
        taken = [
            consume_instance(gpu.mig, item) for item in gpu.mig.instances if is_foreign(gpu, item)
        ]
        left = leave(count_totals(gpu.mig.profiles), taken)
        sets.append({"name": name_device(gpu.uuid), "counters": render_counters(left)})
    return sets


def place_of(device: MigDevice) -> Place:
    """Return where the instance of a device is."""
    return device.card.uuid, device.start, device.profile.size


def index_by_name(devices: Iterable[MigDevice]) -> Mapping[str, MigDevice]:
    """Return devices by name."""
    return {device.name: device for device in devices}


def name_placement(uuid: str, profile: str, start: int) -> str:
    """Return the device name of a placement: ``gpu-<uuid>-1g-5gb-6``, a DNS label.

    ``1g.24gb+me`` and ``1g.24gb-me`` are different profiles, so "+" becomes "plus".
    """
    label = re.sub(r"[^a-z0-9]+", "-", profile.lower().replace("+", "-plus-")).strip("-")
    name = f"{name_device(uuid)}-{label}-{start}"
    if len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:_HASH_DIGITS]
    return f"{name[: _LONGEST_NAME - _HASH_DIGITS - 1].rstrip('-')}-{digest}"


def _list_placements(
    gpu: GpuFacts, facts: MigFacts, profiles: Sequence[Profile], foreign: Collection[Instance]
) -> Iterator[MigDevice]:
    for profile in profiles:
        for start in order_starts(profile, profiles):
            if any(overlap(start, profile.size, item.start, item.size) for item in foreign):
                continue
            yield MigDevice(
                name=name_placement(gpu.uuid, profile.name, start),
                uuid=f"{gpu.uuid}/{profile.name}@{start}",
                card=gpu,
                profile=profile,
                label=profile.name,
                cores=share_of_card(facts, profile.multiprocessors),
                start=start,
            )


def _list_parts(
    gpu: GpuFacts, facts: MigFacts, foreign: Collection[Instance]
) -> Iterator[MigDevice]:
    """Yield what exists; not what we made ourselves while the card was ours to divide."""
    found: list[tuple[Profile, Instance, Part]] = [
        (profile, item, part)
        for item in foreign
        if (profile := facts.find_profile(item.profile)) is not None
        for part in item.parts
    ]
    for profile, item, part in sorted(
        found, key=lambda entry: (entry[0].memory_mib, entry[1].start, entry[2].number)
    ):
        yield MigDevice(
            name=name_device(part.uuid),
            uuid=part.uuid,
            card=gpu,
            profile=profile,
            label=name_part(profile, part),
            cores=share_of_card(facts, part.multiprocessors),
            start=item.start,
            instance=item.number,
            part=part.number,
        )
