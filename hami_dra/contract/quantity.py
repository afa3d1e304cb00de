"""Kubernetes quantities as exact integers.

Grammar: k8s.io/apimachinery/pkg/api/resource/quantity.go. Nothing here rounds silently: a value
that is not a whole number of the wanted unit is rounded up, as the API server does (its canonical
form never loses precision downwards), or refused where the caller asks for an exact integer.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Final

_BINARY: Final = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_DECIMAL: Final = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15}
_DECIMAL_EXA: Final = {"E": 18}
_PATTERN: Final = re.compile(
    r"(?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))"
    r"(?:(?P<suffix>Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE])|[eE](?P<exponent>[+-]?[0-9]{1,3}))?"
)
_LONGEST: Final = 64

MIB: Final = 1 << 20


def parse_quantity(text: str | int) -> Fraction:
    """Return the exact value of a quantity in base units.

    Raises:
        ValueError: The text is not a quantity.
    """
    if isinstance(text, bool):
        raise ValueError(f"{text!r} is not a quantity")  # noqa: TRY004 - one error for bad input
    if isinstance(text, int):
        return Fraction(text)
    if len(text) > _LONGEST:
        raise ValueError(f"{text[:_LONGEST]!r} is not a quantity")
    return _parse(text)


@lru_cache(maxsize=1024)
def _parse(text: str) -> Fraction:
    # Remembered, because the cards of a cluster have few sizes, each written thousands of times.
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a quantity")
    number = Fraction(match["number"])
    suffix = match["suffix"] or ""
    if suffix in _BINARY:
        return number * (1 << _BINARY[suffix])
    exponent = int(match["exponent"] or 0) + {**_DECIMAL, **_DECIMAL_EXA}[suffix]
    return number * Fraction(10) ** exponent


def parse_integer(text: str | int) -> int:
    """Return a quantity that must be a whole number, such as an extended resource's.

    Raises:
        ValueError: Not a quantity, or not whole.
    """
    # What nearly everybody writes; a fraction costs twenty times as much.
    if isinstance(text, str) and len(text) <= _LONGEST and text.isascii() and text.isdigit():
        return int(text)
    value = parse_quantity(text)
    if value.denominator != 1:
        raise ValueError(f"{text!r} is not a whole number")
    return value.numerator


def parse_bytes(text: str | int) -> int:
    """Return a quantity of bytes, rounded up to a whole byte as the API server does.

    Raises:
        ValueError: Not a quantity.
    """
    value = parse_quantity(text)
    return -(-value.numerator // value.denominator)


def format_mib(mib: int) -> str:
    """Write MiB as the API server stores them: in the largest binary unit that is exact."""
    return _shorten(mib, 1024, ("Mi", "Gi", "Ti", "Pi", "Ei"))


def format_count(count: int) -> str:
    """Write a number as the API server stores it: 1000 is ``1k``."""
    return _shorten(count, 1000, ("", "k", "M", "G", "T", "P", "E"))


def _shorten(number: int, step: int, units: Sequence[str]) -> str:
    if not number:
        return "0"
    place = 0
    while number % step == 0 and place + 1 < len(units):
        number //= step
        place += 1
    return f"{number}{units[place]}"
