"""Quantities are exact."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami_dra.contract.quantity import (
    MIB,
    format_count,
    format_mib,
    parse_bytes,
    parse_integer,
    parse_quantity,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("3000", 3000),
        ("3k", 3000),
        ("10Gi", 10 * 2**30),
        ("1.5Gi", 3 * 2**29),
        ("100m", Fraction(1, 10)),
        ("1e3", 1000),
        ("1E3", 1000),
        ("2E", 2 * 10**18),
        (".5", Fraction(1, 2)),
        ("-1", -1),
        (7, 7),
    ],
)
def test_values(text: str | int, value: int | Fraction) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize(
    "text", ["", "Gi", "1 Gi", "1gi", "0x10", "1e", "٣", "1_000", "1" * 80, "nan", "1Gi\n"]
)
def test_what_is_not_a_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        parse_quantity(text)


@given(st.integers(min_value=0, max_value=2**40))
def test_mib_round_trip(mib: int) -> None:
    assert parse_bytes(format_mib(mib)) == mib * MIB


@pytest.mark.parametrize(
    ("mib", "text"), [(0, "0"), (1, "1Mi"), (1536, "1536Mi"), (10240, "10Gi"), (1 << 20, "1Ti")]
)
def test_mib_are_written_as_the_api_server_stores_them(mib: int, text: str) -> None:
    assert format_mib(mib) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (100, "100"), (1000, "1k"), (1500, "1500"), (2_000_000, "2M")]
)
def test_counts_are_written_as_the_api_server_stores_them(count: int, text: str) -> None:
    assert format_count(count) == text


def test_integers_refuse_fractions_and_bytes_round_up() -> None:
    assert parse_integer("1e3") == 1000
    with pytest.raises(ValueError, match="not a whole number"):
        parse_integer("100m")
    assert parse_bytes("100m") == 1
