"""Cards in parts (MIG): profiles, placements, and which of them exclude each other. Pure.

A card has memory slices and compute slices, and engines of a few kinds. A profile takes so many of
each; where its memory slices begin is its placement. Placements that overlap, or that would take
more engines than there are, cannot exist together. What is known of a model comes from its driver:
there is no list of models here.

Facts: NVIDIA MIG user guide (profiles, placements), nvml.h (``nvmlGpuInstanceProfileInfo_v2_t``).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

ENGINES: Final = ("copy-engines", "decoders", "encoders", "jpeg-engines", "ofa-engines")
"""Counters of a card besides its slices, in the order of `Profile.engines`."""
COMPUTE_SLICES: Final = "compute-slices"

Place = tuple[str, int, int]
"""UUID of a card, first memory slice, number of memory slices."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """A kind of GPU instance that a card can have.

    Attributes:
        name: As NVML names it, without "MIG ": ``1g.5gb``.
        number: NVML's id of the profile on this model.
        memory_mib: Whole MiB of an instance.
        slices: Compute slices.
        size: Memory slices.
        starts: Memory slices at which an instance may begin, ascending.
        instances: How many of it the card can have at most.
        multiprocessors: Of an instance.
        engines: Of an instance, as listed in `ENGINES`.
    """

    name: str
    number: int
    memory_mib: int
    slices: int
    size: int
    starts: tuple[int, ...]
    instances: int
    multiprocessors: int
    engines: tuple[int, ...] = (0, 0, 0, 0, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One compute instance: what a program opens as a device.

    Attributes:
        number: NVML's id of it in its GPU instance.
        uuid: ``MIG-…``.
        slices: Its compute slices.
        multiprocessors: Its own.
    """

    number: int
    uuid: str
    slices: int
    multiprocessors: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """One GPU instance that exists.

    Attributes:
        number: NVML's id of it.
        profile: NVML's id of its profile.
        start: First memory slice.
        size: Memory slices.
        slices: Compute slices, which its compute instances divide among them.
        parts: Its compute instances, by number.
    """

    number: int
    profile: int
    start: int
    size: int
    slices: int
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class MigFacts:
    """What a card says of its parts.

    Attributes:
        enabled: Whether the card is in MIG mode; else it has neither profiles nor instances.
        profiles: All kinds, smallest first.
        instances: Those that exist, whoever made them.
        read_at: When the driver was asked, CLOCK_MONOTONIC; no part of what is said.
    """

    enabled: bool
    profiles: tuple[Profile, ...] = ()
    instances: tuple[Instance, ...] = ()
    read_at: float = field(default=0.0, compare=False)

    def find_profile(self, number: int) -> Profile | None:
        """Return a profile by NVML's id."""
        return next((profile for profile in self.profiles if profile.number == number), None)


def overlap(start: int, size: int, other_start: int, other_size: int) -> bool:
    """Whether two runs of memory slices have one in common."""
    return start < other_start + other_size and other_start < start + size


def name_part(profile: Profile, part: Part) -> str:
    """Return the profile of a compute instance: ``1c.3g.20gb`` for less than its GPU instance."""
    if part.slices == profile.slices:
        return profile.name
    return f"{part.slices}c.{profile.name}"


def share_of_card(facts: MigFacts, multiprocessors: int) -> int:
    """Return percent of the card's compute, rounded up as HAMi does; the largest profile is all."""
    most = max((profile.multiprocessors for profile in facts.profiles), default=0)
    return min(100, math.ceil(100 * multiprocessors / most)) if most else 0


def order_starts(profile: Profile, profiles: Sequence[Profile]) -> list[int]:
    """Return a profile's placements, those first that leave most room for others.

    The scheduler takes the first device that fits. What an instance at a place would exclude is
    counted over all profiles; of equals the highest comes first, so that low slices, where the
    large profiles begin, stay free.
    """

    def excluded(start: int) -> int:
        return sum(
            overlap(start, profile.size, other, rival.size)
            for rival in profiles
            for other in rival.starts
        )

    return sorted(profile.starts, key=lambda start: (excluded(start), -start))


def count_totals(profiles: Iterable[Profile]) -> dict[str, int]:
    """Return what a card has of each counter.

    Of what is not a memory slice it has what the hungriest profile takes in as many instances as
    the driver allows of it: never less than any set of instances that the driver would make of one
    profile, so that counters refuse nothing that the hardware can do.
    """
    totals: dict[str, int] = {}
    for profile in profiles:
        for start in profile.starts:
            for index in range(start, start + profile.size):
                totals[name_slice(index)] = 1
        for name, amount in _consume_engines(profile).items():
            totals[name] = max(totals.get(name, 0), amount * profile.instances)
    return {name: totals[name] for name in sorted(totals)}


def consume(profile: Profile, start: int) -> dict[str, int]:
    """Return what an instance takes of each counter; nothing is left out but zeros."""
    slices = {name_slice(index): 1 for index in range(start, start + profile.size)}
    return slices | _consume_engines(profile)


def consume_instance(facts: MigFacts, instance: Instance) -> dict[str, int]:
    """Return what an instance that exists takes; of an unknown profile, its memory slices."""
    profile = facts.find_profile(instance.profile)
    if profile is not None:
        return consume(profile, instance.start)
    return {name_slice(index): 1 for index in range(instance.start, instance.start + instance.size)}


def name_slice(index: int) -> str:
    """Return the counter of one memory slice."""
    return f"memory-slice-{index}"


def leave(totals: Mapping[str, int], taken: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return what is left of a card's counters when some of it is not ours to give."""
    left = dict(totals)
    for amounts in taken:
        for name, amount in amounts.items():
            left[name] = max(0, left.get(name, 0) - amount)
    return left


def render_counters(amounts: Mapping[str, int]) -> dict[str, Any]:
    """Return counters as the API writes them."""
    return {name: {"value": str(amount)} for name, amount in amounts.items()}


def _consume_engines(profile: Profile) -> dict[str, int]:
    named = zip(ENGINES, profile.engines, strict=True)
    return {COMPUTE_SLICES: profile.slices} | {name: count for name, count in named if count}
