"""Selectors get the scheduler's answers (tests/cluster/test_cel.py asks it), and never crash."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami_dra.contract.names import DRIVER_NAME
from hami_dra.policy.cel import Unanswered, evaluate, view_device
from hami_dra.policy.selectors import product_contains, uuid_among
from tests.golden.selectors import Row, read_table

DEVICES, ROWS = read_table()


def ask(expression: str, device: dict[str, Any]) -> bool | Unanswered:
    view = view_device(DRIVER_NAME, device)
    assert not isinstance(view, Unanswered)
    return evaluate(expression, view)


def name_answer(answer: bool | Unanswered) -> str:  # noqa: FBT001
    if isinstance(answer, Unanswered):
        assert answer.reason
        return {"fails": "error", "unknown": "unknown"}[answer.kind]
    return str(answer).lower()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.expression[:80])
def test_the_answer_is_the_schedulers(row: Row) -> None:
    answer = name_answer(ask(row.expression, DEVICES[row.device]))
    if row.want != "refused":  # no stored object has it
        assert answer == row.here


def test_the_table_asks_for_enough() -> None:
    assert len(ROWS) >= 80
    assert sum(row.here == "unknown" for row in ROWS) < 20


@given(st.text(max_size=40), st.text(max_size=40))
def test_text_that_people_write_is_compared_and_nothing_else(name: str, part: str) -> None:
    device = {"attributes": {"productName": {"string": name}, "uuid": {"string": name}}}
    upper = {c: c + 32 for c in range(ord("A"), ord("Z") + 1)}

    assert ask(product_contains([part]), device) is (part.translate(upper) in name.translate(upper))
    assert ask(uuid_among([part, name]), device) is True
    assert ask(uuid_among([f"{name}x", part]), device) is (part == name)


PARTS = [
    "device",
    ".attributes",
    "[",
    "]",
    "(",
    ")",
    '"',
    "'",
    '"""',
    "\\",
    "x",
    "?",
    ".?",
    ":",
    "1",
    "-",
    "&&",
    "||",
    "!",
    "has",
    "exists",
    ",",
    "in",
    "{",
    "}",
    "==",
    "b",
    "r",
    "lambda",
    "__class__",
    "é",
    "//",
    "u",
    "0x",
    "1e",
    "null",
    "true",
]


@given(st.lists(st.sampled_from([*PARTS, " ", "\n", "\x00"]), max_size=25).map("".join))
def test_no_text_crashes(text: str) -> None:
    assert isinstance(ask(text, DEVICES["card"]), bool | Unanswered)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 +", "cannot be parsed here at line 1, column 3"),
        ('format("a")', "the function format cannot be evaluated here"),
        ('"' + "a" * 11000 + '" == "a"', "is longer than 10240 bytes"),
        ("(" * 3000 + "true" + ")" * 3000, "nested too deeply"),
        ('"a', "a string does not end"),
        (f'device.attributes["{DRIVER_NAME}"].absent == 1', "no such key: absent"),
        ('"a"', "is a string, neither true nor false"),
        ("device.driver < 1", "no such overload: string < int"),
    ],
)
def test_reasons_are_for_people(text: str, reason: str) -> None:
    answer = ask(text, DEVICES["card"])
    assert isinstance(answer, Unanswered)
    assert reason in answer.reason


@pytest.mark.parametrize(
    "device",
    [
        {"attributes": {"v": {"version": "1.2"}}},
        {"attributes": {"v": {}}},
        {"capacity": {"memory": {"value": "1GB"}}},
    ],
)
def test_a_device_that_the_scheduler_cannot_read_either(device: dict[str, Any]) -> None:
    assert isinstance(view_device("gpu.example.com", device), Unanswered)
