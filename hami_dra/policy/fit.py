"""Could any published card ever satisfy this? An answer for warnings, never for a denial.

Whether cards are free now is the scheduler's question; here only their sizes count. A request that
fits no card today may fit one that is added tomorrow, so the pod is admitted and told.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hami_dra.contract.names import (
    ATTR_TYPE,
    CAPACITY_CORES,
    CAPACITY_MEMORY,
    CAPACITY_SLOTS,
    DEVICE_TYPE,
    DRIVER_NAME,
)
from hami_dra.contract.quantity import MIB, parse_bytes
from hami_dra.policy.request import Share
from hami_dra.policy.target import OUR_CARDS


@dataclass(frozen=True, slots=True, order=True)
class Card:
    """The size of a published card."""

    memory_mib: int
    cores: int
    slots: int


NodeCards = tuple[Card, ...]
"""The cards of one node, sorted; equal nodes are equal values."""


@dataclass(frozen=True, slots=True)
class Need:
    """What one alternative of a request wants of each card; 0 for anything."""

    cards: int
    memory_mib: int = 0
    cores: int = 0
    slots: int = 0


@dataclass(frozen=True, slots=True)
class Demand:
    """One request and its alternatives.

    Attributes:
        what: How the request is called in a message.
        needs: Any one of them is enough.
    """

    what: str
    needs: tuple[Need, ...]


def list_sizes(nodes: Iterable[NodeCards]) -> tuple[int, ...]:
    """Return the distinct memory sizes of cards in MiB, smallest first."""
    return tuple(sorted({card.memory_mib for node in nodes for card in node if card.memory_mib}))


def demands_of_shares(shares: Iterable[Share], *, one_card: bool = False) -> list[Demand]:
    """Return what the shares want of a card, as demands named after their containers.

    A percentage is no demand: every card has it. Of other devices nothing is known here.

    Args:
        shares: Those of a pod.
        one_card: Whether all of them must be on the same card.
    """
    demands = [
        Demand(
            f"container {share.container!r}",
            (Need(share.cards, share.memory_mib or 0, share.cores_percent, 1),),
        )
        for share in shares
        if share.target is OUR_CARDS
    ]
    if one_card and len(demands) > 1:
        needs = [need for demand in demands for need in demand.needs]
        together = Need(
            cards=1,
            memory_mib=sum(need.memory_mib for need in needs),
            cores=sum(need.cores for need in needs),
            slots=sum(need.slots for need in needs),
        )
        demands.append(Demand("the containers together", (together,)))
    return demands


def read_cards(slice_: Mapping[str, Any]) -> list[Card]:
    """Return the cards in one of our ResourceSlices; what cannot be read is left out."""
    spec = slice_.get("spec") or {}
    if spec.get("driver") != DRIVER_NAME:
        return []
    cards = []
    for device in spec.get("devices") or ():
        kind = (device.get("attributes") or {}).get(ATTR_TYPE, {}).get("string", DEVICE_TYPE)
        capacity = device.get("capacity") or {}
        if kind != DEVICE_TYPE:
            continue
        try:
            cards.append(
                Card(
                    memory_mib=_value(capacity, CAPACITY_MEMORY) // MIB,
                    cores=_value(capacity, CAPACITY_CORES),
                    slots=_value(capacity, CAPACITY_SLOTS),
                )
            )
        except ValueError:
            continue
    return cards


def _value(capacity: Mapping[str, Any], name: str) -> int:
    return parse_bytes((capacity.get(name) or {}).get("value", "0"))


def warn_unfit(demands: Sequence[Demand], nodes: Iterable[NodeCards]) -> list[str]:
    """Return one warning per demand that no node's cards can ever satisfy.

    Args:
        demands: What is asked for.
        nodes: The distinct sets of cards that nodes publish.
    """
    shapes = [node for node in nodes if node]
    if not demands:
        return []
    if not shapes:
        return ["no node publishes a GPU yet; the pod will stay Pending until one does"]
    return [
        f"{demand.what}: {_explain(demand.needs, shapes)}; the pod will stay Pending until one "
        "is added"
        for demand in demands
        if not any(_fits(need, node) for need in demand.needs for node in shapes)
    ]


def _fits(need: Need, node: NodeCards) -> bool:
    return sum(_suits(need, card) for card in node) >= need.cards


def _suits(need: Need, card: Card) -> bool:
    return (
        card.memory_mib >= need.memory_mib and card.cores >= need.cores and card.slots >= need.slots
    )


def _explain(needs: Sequence[Need], nodes: Sequence[NodeCards]) -> str:
    """Say what is missing for the alternative that comes last, which is the least wanted one."""
    need = needs[-1]
    cards = [card for node in nodes for card in node]
    memory = max(card.memory_mib for card in cards)
    cores = max(card.cores for card in cards)
    slots = max(card.slots for card in cards)
    if need.memory_mib > memory:
        return f"no card of the cluster has {need.memory_mib} MiB; the largest has {memory} MiB"
    if need.cores > cores:
        return f"no card of the cluster has {need.cores} cores; the most is {cores}"
    if need.slots > slots:
        return f"no card of the cluster has {need.slots} slots; the most is {slots}"
    if not any(_suits(need, card) for card in cards):
        return (
            f"no card of the cluster has {need.memory_mib} MiB, {need.cores} cores and "
            f"{need.slots} slots at once"
        )
    most = max(sum(_suits(need, card) for card in node) for node in nodes)
    return f"no node has {need.cards} such cards; the most is {most}"
