"""Rows of a table in a Markdown page, between two comments. Pure, but for `write_section`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

NOT_MEASURED: Final = "not measured"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `held` is None where there is no target, or nothing was measured."""

    what: str
    figure: str = NOT_MEASURED
    target: str = ""
    held: bool | None = None

    def cells(self) -> tuple[str, str, str, str]:
        """Return what stands in the table."""
        verdict = "" if self.held is None else "held" if self.held else "not held"
        return self.what, self.figure, self.target, verdict


def render(rows: Iterable[Row], *, note: str) -> str:
    """Return a section's text: a sentence on the circumstances, and the table."""
    lines = [note, "", "| what | figure | target | |", "|---|---|---|---|"]
    lines += [_render(row) for row in rows]
    return "\n".join(lines)


def _render(row: Row) -> str:
    cells = (cell.replace("|", "\\|").replace("\n", " ") for cell in row.cells())
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def split_page(page: str, name: str) -> tuple[str, str, str]:
    """Return what stands before a section's text, the text, and what stands after it.

    Raises:
        ValueError: The page has not one pair of comments around such a section.
    """
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise ValueError(f"the page needs one {begin.strip()} and one {end} after it")
    head, _separator, rest = page.partition(begin)
    body, _separator, tail = rest.partition(end)
    return head + begin, body, end + tail


def write_section(path: Path, name: str, rows: Sequence[Row], *, note: str) -> bool:
    """Write rows into a page; return whether they stand there now.

    Rows without a figure do not take the place of measured ones.

    Raises:
        ValueError: The page has no place for them.
        OSError: It cannot be read or written.
    """
    before, old, after = split_page(path.read_text(encoding="utf-8"), name)
    if _has_figures(old) and all(row.figure == NOT_MEASURED for row in rows):
        return False
    path.write_text(before + render(rows, note=note) + "\n" + after, encoding="utf-8")
    return True


def _has_figures(body: str) -> bool:
    lines = [line for line in body.splitlines() if line.startswith("| ")][1:]
    return any(f"| {NOT_MEASURED} |" not in line for line in lines)
