"""Figures of what programs got done. Pure."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_WHOLE: Final = 100.0


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of some values.

        Raises:
            ValueError: There are none.
        """
        if not values:
            raise ValueError("a spread needs at least one value")
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int = 1) -> str:
        """Return it for a table: ``1.5 (1.0 to 2.0)``, or one figure if there is one."""
        if self.least == self.most:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} ({self.least:.{digits}f} to {self.most:.{digits}f})"


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How well a share was held.

    Attributes:
        share: Percent of what the card can do of the program's work.
        error: Points by which that is above what was expected; negative below.
        wander: Mean distance of single windows from what was expected, in points (MAE).
    """

    share: float
    error: float
    wander: float


def judge_share(done: Sequence[float], full: float, expected: float) -> Accuracy:
    """Compare what was done per second, in several windows, with what the card can do.

    Args:
        done: Of the program under a limit.
        full: Of a program that keeps the card busy with the same work.
        expected: Percent.

    Raises:
        ValueError: There is no window, or the card does nothing.
    """
    if not done or full <= 0:
        raise ValueError("a share needs windows, and a full figure above zero")
    shares = [_WHOLE * value / full for value in done]
    share = statistics.fmean(shares)
    return Accuracy(
        share=share,
        error=share - expected,
        wander=statistics.fmean(abs(value - expected) for value in shares),
    )


def split_ratio(first: float, second: float) -> float:
    """Return the first of two tenants' part of what both got done, in percent.

    Raises:
        ValueError: Neither got anything done.
    """
    if first + second <= 0:
        raise ValueError("neither tenant got anything done")
    return _WHOLE * first / (first + second)
