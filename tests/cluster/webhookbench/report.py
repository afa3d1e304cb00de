"""Figures beside their targets. A missed target is said, and is no error: machines differ."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(slots=True)
class Report:
    """Prints each figure when it is known, and all of them as a table at the end."""

    rows: list[tuple[str, str, str, str]] = field(default_factory=list)

    def say(self, what: str, figure: str) -> None:
        """Enter a figure without a target."""
        self._add(what, figure, "", "")

    def at_least(self, what: str, value: float, target: float, figure: str) -> None:
        """Enter a figure that should not be less than its target."""
        self._add(what, figure, f">= {target:g}", "held" if value >= target else "not held")

    def at_most(self, what: str, value: float, target: float, figure: str) -> None:
        """Enter a figure that should not be more than its target."""
        self._add(what, figure, f"<= {target:g}", "held" if value <= target else "not held")

    def table(self) -> str:
        """Return everything as a table."""
        head = ("what", "figure", "target", "")
        rows = [head, *self.rows]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([lines[0], "-" * sum(widths), *lines[1:]])

    def _add(self, what: str, figure: str, target: str, verdict: str) -> None:
        self.rows.append((what, figure, target, verdict))
        print(f"  {what}: {figure} {verdict}".rstrip(), flush=True)


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Write the median of some values with the least and the most."""
    low, high = min(values), max(values)
    return f"{median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
