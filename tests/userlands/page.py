"""The table of a page: a row for each program, a column for each userland. Pure but for one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.gpu.table import split_page

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SECTION: Final = "userlands"


@dataclass(frozen=True, slots=True)
class Cell:
    """One program in one userland.

    Attributes:
        program: Its name.
        userland: Release and C library.
        seen: What was seen, if all is well.
        good: Whether it is.
    """

    program: str
    userland: str
    seen: str
    good: bool


def render_table(cells: Sequence[Cell]) -> str:
    """Return a Markdown table."""
    userlands = list(dict.fromkeys(cell.userland for cell in cells))
    found = {(cell.program, cell.userland): cell for cell in cells}
    lines = [f"| program | {' | '.join(userlands)} |", "|---" * (len(userlands) + 1) + "|"]
    for program in dict.fromkeys(cell.program for cell in cells):
        row = [_word(found.get((program, userland))) for userland in userlands]
        lines.append(f"| {program} | {' | '.join(row)} |")
    return "\n".join(lines)


def write_table(page: Path, cells: Sequence[Cell]) -> None:
    """Write the table between the page's two comments.

    Raises:
        ValueError: The page has no place for it.
        OSError: It cannot be read or written.
    """
    before, _old, after = split_page(page.read_text(encoding="utf-8"), SECTION)
    page.write_text(before + render_table(cells) + "\n" + after, encoding="utf-8")


def _word(cell: Cell | None) -> str:
    if cell is None:
        return "not run"
    return cell.seen if cell.good else "**differs**"
