"""Reads the golden tables."""

from pathlib import Path
from typing import Any

import yaml

_ROOT = Path(__file__).parents[2] / "golden"


def load_cases(file: str) -> list[Any]:
    """Return the rows of a table."""
    rows = yaml.safe_load((_ROOT / file).read_text(encoding="utf-8"))
    assert isinstance(rows, list)
    return rows


def name_case(row: dict[str, Any]) -> str:
    """Name a row in the report."""
    return str(row["case"])
