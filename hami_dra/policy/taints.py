"""Marks on a card that keep claims away from it (device taints, KEP-5055).

The key is part of what people write into tolerations, so each cause has one of its own.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from hami_dra.contract.healthconfig import Effect
from hami_dra.contract.names import ANNOTATION_DEVICE_CORDON, TAINT_DIVIDING


@dataclass(frozen=True, slots=True, order=True)
class Taint:
    """One mark.

    Attributes:
        key: Its cause; a label key.
        value: More about the cause; a label value.
        effect: Whether new claims are kept away, or pods that hold the card are evicted as well.
    """

    key: str
    value: str
    effect: Effect = "NoSchedule"


CORDONED: Final = Taint(ANNOTATION_DEVICE_CORDON, "cordoned")
"""A person keeps new claims off the card."""

DIVIDING: Final = Taint(TAINT_DIVIDING, "waiting")
"""The card is to be divided as soon as nobody has a share of it."""


def describe_taints(taints: Iterable[Taint]) -> list[dict[str, Any]]:
    """Return taints as a device has them, in a stable order; the API server adds the time."""
    return [
        {"key": taint.key, "value": taint.value, "effect": taint.effect} for taint in sorted(taints)
    ]


def read_cordon(annotation: str | None) -> frozenset[str]:
    """Return the UUIDs in HAMi's node annotation: a comma list, exact and trimmed."""
    return frozenset(part.strip() for part in (annotation or "").split(",") if part.strip())
