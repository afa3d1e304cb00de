"""The tests that docs/reference/conformance.md names exist."""

import ast
import re
from functools import cache
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[3]
DOCUMENT: Final = ROOT / "docs" / "reference" / "conformance.md"
_NAMED: Final = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
_REASON: Final = "not applicable"


def list_named() -> list[tuple[str, str]]:
    """Return files and tests, each once."""
    return sorted(set(_NAMED.findall(DOCUMENT.read_text(encoding="utf-8"))))


def list_rows() -> list[tuple[str, str]]:
    """Return scenarios with what is said of each."""
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    return [(row[0].strip(), row[1].strip()) for row in rows if row[0].strip("- ") != "scenario"]


@cache
def list_tests(file: str) -> frozenset[str]:
    """Return the names of the tests in a file; none if there is no file."""
    path = ROOT / file
    if not path.is_file():
        return frozenset()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in tree.body if isinstance(node, functions))


@pytest.mark.parametrize(("file", "test"), [named for named in list_named() if named[1]])
def test_a_test_that_is_named_exists(file: str, test: str) -> None:
    assert test.startswith("test_")
    assert test in list_tests(file), f"{file} has no {test}"


def test_every_scenario_has_a_test_or_a_reason() -> None:
    rows = [row for row in list_rows() if set(row[1]) - set("- ")]
    assert len(rows) > 60
    for scenario, said in rows:
        covered = any(test for _, test in _NAMED.findall(said))
        assert covered or _REASON in said, scenario


def test_no_file_is_named_without_a_test() -> None:
    for scenario, said in list_rows():
        assert all(test for _, test in _NAMED.findall(said)), scenario


def test_no_scenario_is_listed_twice_in_one_table() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for table in re.split(r"^#", text, flags=re.MULTILINE):
        scenarios = re.findall(r"^\| ([^|]+) \|", table, flags=re.MULTILINE)
        assert len(set(scenarios)) == len(scenarios)
