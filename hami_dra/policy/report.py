"""What an explanation says: of cards, of nodes, and of all of them in one line."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hami_dra.policy.asks import Reason

_MOST_NAMES: Final = 3
_MOST_PARTS: Final = 5

WORDS: Final[Mapping[str, str]] = {
    "CardInsufficientMemory": "too little free memory",
    "CardInsufficientCore": "too little free compute",
    "CardTimeSlicingExhausted": "no free slot for another share",
    "ExclusiveDeviceAllocateConflict": "not free as a whole",
    "CardTypeMismatch": "another model than asked for",
    "CardUuidMismatch": "not one of the UUIDs asked for",
    "CardNotFoundCustomFilterRule": "a selector is false",
    "CardNotHealth": "a taint that is not tolerated",
    "NumaNotFit": "not enough of them on one NUMA node",
    "NodeInsufficientDevice": "fewer cards than asked for",
    "AllocatedCardsInsufficientRequest": "fewer cards fit than asked for",
    "CardsInsufficientTogether": "enough cards for each request, not for all together",
    "SelectorFails": "a selector fails, and the scheduler gives the pod up",
    "SelectorUnknown": "a selector that cannot be evaluated here",
    "NoSuchCapacity": "without a capacity that is asked for",
    "CountersExhausted": "its part of the card is taken",
}
"""Reasons in words, most of them by the names of HAMi's events."""


@dataclass(frozen=True, slots=True)
class CardReport:
    """One device of a node and one request.

    Attributes:
        device: Name of the device.
        model: Of the card, if it says.
        request: Whose.
        fits: Whether the request could have it now.
        reasons: Why it could not.
    """

    device: str
    model: str
    request: str
    fits: bool
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class NodeReport:
    """One node.

    Attributes:
        node: Its name.
        fits: Whether its devices would do; ``None`` if that was not found out.
        reasons: Why not, for the node as a whole.
        cards: Those of the classes that are asked for.
    """

    node: str
    fits: bool | None
    reasons: tuple[Reason, ...]
    cards: tuple[CardReport, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """The explanation.

    Attributes:
        subject: The pod or the claim.
        state: "allocated", "possible", "impossible", "unclear", "missing", "untouched" (by
            admission) or "nothing".
        summary: All of it in one line.
        asks: What each request asks for.
        allocated: Which cards each claim got.
        nodes: Every node, if something waits.
        notes: What to know besides.
        selectors: Those of the requests, by their numbers in ``asks``.
    """

    subject: str
    state: str
    summary: str
    asks: tuple[str, ...] = ()
    allocated: tuple[str, ...] = ()
    nodes: tuple[NodeReport, ...] = ()
    notes: tuple[str, ...] = ()
    selectors: tuple[str, ...] = ()


def summarize(nodes: Sequence[NodeReport]) -> tuple[str, str]:
    """Return the state of a report, and all that its nodes say in one line."""
    good = [node for node in nodes if node.fits]
    if good:
        more = ", ..." if len(good) > _MOST_NAMES else ""
        names = ", ".join(node.node for node in good[:_MOST_NAMES]) + more
        return "possible", (
            f"{len(good)} of {plural(len(nodes), 'node')} can give the cards now ({names}); the "
            "scheduler has not tried since, or something else keeps the pod away"
        )
    if any(node.fits is None for node in nodes):
        return "unclear", "there are too many ways to place the claims to try them all here"
    parts = [
        f"{plural(count, 'card')}: {WORDS.get(code, code)} ({code})"
        for code, count in _count_reasons(nodes).most_common()
    ]
    parts += [
        f"{plural(count, 'node')}: {text}"
        for text, count in Counter(
            f"{WORDS[reason.code]} ({reason.code})"
            if reason.code == "NodeInsufficientDevice"
            else reason.text
            for node in nodes
            for reason in node.reasons
            if reason.code != "AllocatedCardsInsufficientRequest"
        ).most_common(_MOST_PARTS)
    ]
    state = "unclear" if any("SelectorUnknown" in part for part in parts) else "impossible"
    detail = "; ".join(parts) or "there is no node"
    return state, f"0 of {plural(len(nodes), 'node')} can give the cards: {detail}"


def _count_reasons(nodes: Sequence[NodeReport]) -> Counter[str]:
    """Count cards by the first reason why each does not do."""
    seen = {
        (node.node, card.device, card.reasons[0].code)
        for node in nodes
        for card in node.cards
        if card.reasons
    }
    return Counter(code for _, _, code in seen)


def plural(count: int, word: str) -> str:
    """Return a number of things."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
