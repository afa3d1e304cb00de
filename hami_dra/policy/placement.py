"""Preferences about cards, as alternatives that are tried first.

The stock scheduler knows conditions and an order of alternatives, no scores
(docs/decisions/0011-annotations.md).
"""

from collections.abc import Collection
from dataclasses import replace

from hami_dra.policy.fit import NodeCards
from hami_dra.policy.percentage import MOST_ALTERNATIVES, Alternative
from hami_dra.policy.request import Placement, Share
from hami_dra.policy.selectors import index_is
from hami_dra.policy.target import OUR_CARDS


def choose_index(nodes: Collection[NodeCards], rotation: int) -> int | None:
    """Return the position of the card whose turn it is, ``None`` where there is no choice.

    Args:
        nodes: The distinct sets of cards that nodes publish.
        rotation: Any number that differs from pod to pod.
    """
    most = max((len(node) for node in nodes), default=0)
    return rotation % most if most > 1 else None


def prefer(
    alternatives: tuple[Alternative, ...], share: Share, placement: Placement, index: int | None
) -> tuple[Alternative, ...]:
    """Return the alternatives with the preferred ones before them, if a claim has room for both.

    Only our own cards are known well enough to prefer one.

    Args:
        alternatives: What the share may take.
        share: What is wanted.
        placement: What is preferred.
        index: Position of the card to prefer, see `choose_index`.
    """
    if share.target is not OUR_CARDS:
        return alternatives
    first = tuple(_narrow(each, share, placement, index) for each in alternatives)
    if first == alternatives or len(first) + len(alternatives) > MOST_ALTERNATIVES:
        return alternatives
    return (*first, *(replace(each, name=_join("any", each.name)) for each in alternatives))


def warn_preferences(share: Share, placement: Placement, alternatives: int) -> str | None:
    """Return what the author of a preference should know about it.

    Args:
        share: What is wanted.
        placement: What is preferred.
        alternatives: How many there are without preferences.
    """
    if share.target is not OUR_CARDS:
        return None
    one = share.cards == 1
    if placement.spread_cards and not one:
        return (
            f"container {share.container!r}: spreading over cards has an effect for single cards "
            f"only; its {share.cards} cards are different ones in any case"
        )
    wanted = (placement.spread_cards and one) or (placement.near and not one)
    if wanted and alternatives * 2 > MOST_ALTERNATIVES:
        return (
            f"container {share.container!r}: the percentage of its cards already takes "
            f"{alternatives} of {MOST_ALTERNATIVES} alternatives, so the preference for cards has "
            "no effect"
        )
    return None


def _narrow(
    alternative: Alternative, share: Share, placement: Placement, index: int | None
) -> Alternative:
    if share.cards > 1 and placement.near:
        name = _join("near", alternative.name)
        return replace(alternative, name=name, near=placement.near)
    if share.cards == 1 and placement.spread_cards and index is not None:
        selectors = (*alternative.selectors, index_is(index))
        name = _join(f"card{index}", alternative.name)
        return replace(alternative, name=name, selectors=selectors)
    return alternative


def _join(prefix: str, name: str) -> str:
    return f"{prefix}-{name}" if name else prefix
