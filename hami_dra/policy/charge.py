"""What a claim counts against a quota: cards, MiB, and percent of multiprocessors.

An allocated claim counts what it consumes. One that still waits counts the most that it may take,
key by key, as Kubernetes counts devices (pkg/quota/v1/evaluator/core/resource_claims.go), so that
no allocation can raise the sum.

A MIG device is a card by number. What it has is not in the claim, so it counts the MiB that are
asked for, allocated or not, and no compute: its share of that is the card's to give.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from hami_dra.contract.names import (
    ANNOTATION_POD_CLAIM,
    CAPACITY_CORES,
    CAPACITY_MEMORY,
    DEVICE_CLASS,
    DEVICE_CLASS_MIG,
    DRIVER_NAME,
)
from hami_dra.contract.quantity import MIB, parse_bytes
from hami_dra.policy.claims import Ask, ClaimSpec
from hami_dra.policy.devices import CORES_PER_CARD
from hami_dra.policy.request import MOST_CARDS

_EXACT_COUNT: Final = "ExactCount"


@dataclass(frozen=True, slots=True)
class Take:
    """What one alternative of a request takes.

    Attributes:
        cards: Their number.
        memory_mib: MiB of each; ``None`` for all that the card has.
        cores_percent: Of each.
    """

    cards: int
    memory_mib: int | None
    cores_percent: int


Takes = tuple[tuple[Take, ...], ...]
"""Requests, each with its alternatives."""


@dataclass(frozen=True, slots=True)
class Charge:
    """What counts.

    Attributes:
        cards: Number of cards; two shares of one card count as two.
        memory_mib: MiB, over all cards.
        cores_percent: Percent of a card's multiprocessors, over all cards.
        unsized: Memory of a whole card is missing in ``memory_mib``, because no card is known.
    """

    cards: int = 0
    memory_mib: int = 0
    cores_percent: int = 0
    unsized: bool = False


@dataclass(frozen=True, slots=True)
class ClaimUse:
    """A stored claim, as far as quotas need it.

    Attributes:
        uid: Of the claim.
        made_for: ``POD UID/NAME`` of the entry in a pod's spec for which it was made, else "".
        takes: What it consumes, or may.
    """

    uid: str
    made_for: str
    takes: Takes


def read_spec(spec: Mapping[str, Any]) -> Takes:
    """Return what a claim with this spec may take of our cards, admin access left out.

    A number that means nothing counts as a whole card, and a negative one as nothing: what counts
    must not shrink by it.
    """
    try:
        devices = msgspec.convert(spec, ClaimSpec).devices
    except msgspec.ValidationError:
        return ((Take(MOST_CARDS, None, CORES_PER_CARD),),)
    asks = (
        [request.exactly] if request.exactly is not None else request.first_available or []
        for request in devices.requests or ()
    )
    found = (tuple(_read_ask(ask) for ask in each if _counts(ask)) for each in asks)
    return tuple(takes for takes in found if takes)


def read_claim(body: Mapping[str, Any]) -> ClaimUse | None:
    """Return what matters of a stored claim, ``None`` if it has nothing to do with our cards."""
    allocation = (body.get("status") or {}).get("allocation")
    if allocation:
        parts = _find_parts(body.get("spec") or {})
        takes = _read_results((allocation.get("devices") or {}).get("results") or (), parts)
    else:
        takes = read_spec(body.get("spec") or {})
    if not takes:
        return None
    metadata = body["metadata"]
    return ClaimUse(uid=str(metadata.get("uid", "")), made_for=_find_pod(metadata), takes=takes)


def sum_takes(takes: Takes, largest_mib: int | None) -> Charge:
    """Return the worst case, key by key.

    Args:
        takes: Requests and their alternatives.
        largest_mib: Memory of the largest published card; ``None`` if none is known.
    """
    cards = memory_mib = cores_percent = 0
    unsized = False
    for request in takes:
        cards += max(take.cards for take in request)
        cores_percent += max(take.cards * take.cores_percent for take in request)
        memory_mib += max(_memory(take, largest_mib) for take in request)
        unsized |= largest_mib is None and any(take.memory_mib is None for take in request)
    return Charge(cards, memory_mib, cores_percent, unsized)


def name_pod_claim(pod_uid: str, entry: str) -> str:
    """Return how a claim is called that will be made for an entry of a pod's spec."""
    return f"{pod_uid}/{entry}"


def _memory(take: Take, largest_mib: int | None) -> int:
    return take.cards * ((largest_mib or 0) if take.memory_mib is None else take.memory_mib)


def _counts(ask: Ask) -> bool:
    return ask.device_class_name in {DEVICE_CLASS, DEVICE_CLASS_MIG} and not ask.admin_access


def _read_ask(ask: Ask) -> Take:
    requests = (ask.capacity and ask.capacity.requests) or {}
    divided = ask.device_class_name == DEVICE_CLASS_MIG
    memory_mib = _read_memory(requests)
    return Take(
        # Of all the cards of some node there are at most as many as one allocation can hold.
        cards=max(ask.count, 0) if ask.allocation_mode == _EXACT_COUNT else MOST_CARDS,
        memory_mib=(memory_mib or 0) if divided else memory_mib,
        cores_percent=0 if divided else _read_cores(requests),
    )


def _find_parts(spec: Mapping[str, Any]) -> dict[str, Take]:
    """Return what each MIG device takes of the requests that ask for such."""
    try:
        requests = msgspec.convert(spec, ClaimSpec).devices.requests or ()
    except msgspec.ValidationError:
        return {}
    asks = {
        name: ask
        for request in requests
        for name, ask in (
            (request.name, request.exactly),
            *((f"{request.name}/{each.name}", each) for each in request.first_available or ()),
        )
        if ask is not None and ask.device_class_name == DEVICE_CLASS_MIG
    }
    return {name: replace(_read_ask(ask), cards=1) for name, ask in asks.items()}


def _read_results(results: Iterable[Mapping[str, Any]], parts: Mapping[str, Take]) -> Takes:
    return tuple(
        (
            parts.get(str(result.get("request", "")))
            or Take(1, _read_memory(consumed), _read_cores(consumed)),
        )
        for result in results
        if result.get("driver") == DRIVER_NAME and not result.get("adminAccess")
        for consumed in [result.get("consumedCapacity") or {}]
    )


def _read_memory(capacity: Mapping[str, Any]) -> int | None:
    number = _read_number(capacity, CAPACITY_MEMORY)
    return None if number is None else -(-number // MIB)


def _read_cores(capacity: Mapping[str, Any]) -> int:
    number = _read_number(capacity, CAPACITY_CORES)
    return CORES_PER_CARD if number is None else number


def _read_number(capacity: Mapping[str, Any], name: str) -> int | None:
    """Return a capacity in its base unit; ``None`` for the default, which is all of it."""
    text = capacity.get(name)
    try:
        return None if text is None else max(parse_bytes(text), 0)
    except ValueError:
        return None


def _find_pod(metadata: Mapping[str, Any]) -> str:
    entry = (metadata.get("annotations") or {}).get(ANNOTATION_POD_CLAIM)
    for owner in metadata.get("ownerReferences") or ():
        if owner.get("controller") and owner.get("kind") == "Pod" and entry:
            return name_pod_claim(str(owner.get("uid", "")), str(entry))
    return ""
