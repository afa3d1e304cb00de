"""Preferences about cards, as alternatives that are tried first.

The stock scheduler knows conditions and an order of alternatives, no scores
(docs/decisions/0011-annotations.md).
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Final

from hami_dra.policy.fit import NodeCards
from hami_dra.policy.percentage import MOST_ALTERNATIVES, Alternative
from hami_dra.policy.request import Placement, Share
from hami_dra.policy.selectors import index_is
from hami_dra.policy.target import OUR_CARDS

MOST_CONSTRAINTS: Final = 32
"""resource.k8s.io/v1 validation."""


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


def fit_constraints(
    shares: Sequence[Share], placement: Placement
) -> tuple[Placement, tuple[str, ...]]:
    """Return the placement without what a claim has no room for, and a warning if that is much.

    Each share of several cards needs one constraint to keep them different, one for each thing
    that they must have in common, and one for a preference; only the last can be done without.
    """
    several = sum(share.cards > 1 for share in shares)
    each = 2 + placement.one_numa_node + placement.one_pcie_root
    needed = several * each + placement.one_card
    if not placement.near or needed <= MOST_CONSTRAINTS:
        return placement, ()
    warning = (
        f"a claim has room for {MOST_CONSTRAINTS} constraints, too few for {several} containers "
        "with several cards each, so the preference for cards near each other has no effect"
    )
    return replace(placement, near=""), (warning,)


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
