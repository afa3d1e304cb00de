"""Memory in percent of cards that differ in size: which sizes a claim offers to take.

A claim asks for MiB, a person wrote percent, and the scheduler chooses the card afterwards. So the
sizes of the published cards become alternatives, each with its own MiB
(docs/decisions/0010-percentages.md).
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from hami_dra.policy.request import Share
from hami_dra.policy.selectors import memory_between

MOST_ALTERNATIVES: Final = 8
"""Subrequests in one ``firstAvailable`` (resource.k8s.io/v1 validation)."""
_WHOLE_PERCENT: Final = 100


@dataclass(frozen=True, slots=True)
class Alternative:
    """One way to satisfy a share.

    Attributes:
        name: Unique in the share, a DNS label; "" for the only one.
        memory_mib: MiB to consume on each card; ``None`` for all that the card has.
        selectors: CEL expressions that the card must satisfy.
        near: Attribute in which all cards of this alternative must be equal; "" for none.
    """

    name: str = ""
    memory_mib: int | None = None
    selectors: tuple[str, ...] = ()
    near: str = ""


@dataclass(frozen=True, slots=True)
class SizeBand:
    """Cards from one size to another, both included, in MiB."""

    low_mib: int
    high_mib: int


def group_sizes(sizes: Collection[int], most: int = MOST_ALTERNATIVES) -> tuple[SizeBand, ...]:
    """Group card sizes into at most ``most`` bands, smallest first.

    Neighbours that differ least, relative to their size, are joined first: a driver that keeps
    a little more memory to itself makes a new size, but hardly another card.
    """
    bands = [SizeBand(size, size) for size in sorted(set(sizes))]
    while len(bands) > most:
        at = min(range(len(bands) - 1), key=lambda i: bands[i + 1].high_mib / bands[i].low_mib)
        bands[at : at + 2] = [SizeBand(bands[at].low_mib, bands[at + 1].high_mib)]
    return tuple(bands)


def list_alternatives(share: Share, sizes: Collection[int]) -> tuple[Alternative, ...]:
    """Return the sizes that a share may take, smallest cards first; at least one.

    Args:
        share: What is wanted.
        sizes: The distinct sizes of published cards in MiB; none if there are no cards.
    """
    percent = share.memory_percent
    if share.exclusive or (percent is not None and not sizes):
        return (Alternative(),)
    if percent is None:
        return (Alternative(memory_mib=share.memory_mib),)
    bands = group_sizes(sizes)
    if len(bands) == 1:
        return (Alternative(memory_mib=_resolve(percent, bands[0])),)
    return tuple(
        Alternative(
            name=f"m{band.high_mib}",
            memory_mib=_resolve(percent, band),
            selectors=(memory_between(band.low_mib, band.high_mib),),
        )
        for band in bands
    )


def choose_limit(share: Share, sizes: Collection[int]) -> int | None:
    """Return the percent that the node must hold a share to, ``None`` for what it consumes.

    The two differ when the claim takes a whole card, or stands for cards of several sizes; then
    the node works the limit out from the card. It knows whole percents: a part of one counts as
    one, and the node never allows more than what is consumed.
    """
    percent = share.memory_percent
    if percent is None:
        return None
    known = not share.exclusive and 0 < len(set(sizes)) <= MOST_ALTERNATIVES
    return None if known else math.ceil(percent)


def warn_percentage(share: Share, sizes: Collection[int]) -> str | None:
    """Return what the author of a percentage should know about it."""
    percent = share.memory_percent
    if percent is None or share.exclusive:
        return None
    if not sizes:
        return (
            f"container {share.container!r}: no node publishes a GPU yet, so the memory that is "
            f"{_write(percent)} % of one is not known; the pod will reserve a whole card and may "
            f"use {math.ceil(percent)} % of it. Create it again when there are cards, or ask for "
            "MiB"
        )
    distinct = len(set(sizes))
    if distinct > MOST_ALTERNATIVES:
        return (
            f"container {share.container!r}: the cluster has cards of {distinct} sizes and a claim "
            f"has room for {MOST_ALTERNATIVES}; sizes close to each other reserve the same MiB"
        )
    return None


def _write(percent: int | Fraction) -> str:
    return f"{float(percent):g}"


def _resolve(percent: int | Fraction, band: SizeBand) -> int:
    """Return the MiB that cover the percentage on every card of a band, if each has so many."""
    return max(1, min(band.high_mib * percent // _WHOLE_PERCENT, band.low_mib))
