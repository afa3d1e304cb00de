"""The golden tables themselves: nothing is said twice, and everything has its source."""

from pathlib import Path
from typing import Any

import pytest

from tests.golden.rows import ROOT, load_cases

_DIALECTS = (
    "gpushare",
    "kai",
    "koordinator",
    "nvidia_plugin",
    "vendors",
    "vgpu_manager",
    "volcano",
)
_TABLES = [
    *(f"hami/{path.name}" for path in sorted(ROOT.glob("hami/*.yaml"))),
    *(f"{name}.yaml" for name in _DIALECTS),
]
_SOURCED = [name for name in _TABLES if Path(name).parent.name == "hami" or name == "volcano.yaml"]


@pytest.mark.parametrize("table", _TABLES)
def test_every_row_has_a_name_of_its_own(table: str) -> None:
    names = [row["case"] for row in load_cases(table)]
    assert sorted({name for name in names if names.count(name) > 1}) == []


@pytest.mark.parametrize("table", _SOURCED)
def test_every_row_cites_its_source(table: str) -> None:
    rows: list[dict[str, Any]] = load_cases(table)
    assert [row["case"] for row in rows if not row.get("ref")] == []


@pytest.mark.parametrize("table", _TABLES)
def test_every_row_with_a_claim_says_what_the_scheduler_makes_of_it(table: str) -> None:
    verdicts = {"allocated", "pending", "untaken", "refused", "says"}
    claims = {"request", "asks", "devices"}
    rows: list[dict[str, Any]] = [row for row in load_cases(table) if not row.get("offline")]
    assert [row["case"] for row in rows if claims & row.keys() and not verdicts & row.keys()] == []
