"""Rows find their place in a page, and leave everything else as it is."""

from pathlib import Path

import pytest

from tests.gpu.table import Row, render, split_page, write_section

PAGE = """# Figures

<!-- one: begin -->
<!-- one: end -->
between
<!-- two: begin -->
old
<!-- two: end -->
"""


def test_a_table_has_verdicts_only_where_there_are_targets() -> None:
    rows = [
        Row("a", "1", "1", held=True),
        Row("b", "2", "1", held=False),
        Row("c | d", "3"),
        Row("e", target="5"),
    ]

    assert render(rows, note="Here.").splitlines()[4:] == [
        "| a | 1 | 1 | held |",
        "| b | 2 | 1 | not held |",
        "| c \\| d | 3 | | |",
        "| e | not measured | 5 | |",
    ]


def test_a_section_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(PAGE)

    assert write_section(path, "two", [Row("a", "1")], note="There.")
    assert write_section(path, "two", [Row("a", "2")], note="Here.")

    text = path.read_text()
    assert "old" not in text
    assert "There." not in text
    before, body, after = split_page(text, "two")
    assert before == PAGE[: PAGE.index("old")]
    assert body.startswith("Here.\n")
    assert "| a | 2 | | |" in body
    assert after == PAGE[PAGE.index("<!-- two: end") :]


def test_measured_figures_are_not_replaced_by_none(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    nothing = [Row("a", target="1"), Row("b")]

    assert write_section(path, "one", nothing, note="No card.")
    assert write_section(path, "one", [Row("a", "1", "1", held=True), Row("b")], note="A card.")
    measured = path.read_text()
    assert not write_section(path, "one", nothing, note="No card.")
    assert path.read_text() == measured


@pytest.mark.parametrize(
    "page",
    ["", PAGE + PAGE, PAGE.replace("one: end", "end"), "<!-- one: end --><!-- one: begin -->\n"],
)
def test_a_page_without_one_place_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="needs one <!-- one: begin -->"):
        split_page(page, "one")
