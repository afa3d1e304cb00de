"""Device selectors in the Common Expression Language, for devices of our class.

An unknown attribute or capacity aborts the allocation of the whole pod, so an expression may only
name what every device of the class has. Text written by people enters only through `quote`.
"""

import json
from collections.abc import Iterable
from typing import Final

from hami_dra.contract.names import (
    ATTR_INDEX,
    ATTR_PARENT_UUID,
    ATTR_PRODUCT_NAME,
    ATTR_PROFILE,
    ATTR_UUID,
    CAPACITY_MEMORY,
    DRIVER_NAME,
)
from hami_dra.contract.quantity import format_mib


def quote(text: str) -> str:
    """Write a text as a CEL string literal.

    JSON's escapes are a subset of CEL's, except that CEL knows no surrogate pairs: other
    characters therefore stay themselves, and lone surrogates, which no UTF-8 can carry, become
    question marks.
    """
    clean = text.encode("utf-8", errors="replace").decode("utf-8")
    return json.dumps(clean, ensure_ascii=False)


_MEMORY: Final = f"device.capacity[{quote(DRIVER_NAME)}].{CAPACITY_MEMORY}"
_ATTRIBUTES: Final = f"device.attributes[{quote(DRIVER_NAME)}]"
_ASCII_LOWER: Final = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def memory_at_least(mib: int) -> str:
    """Return the expression for cards with at least so much memory, used or not."""
    return f"{_MEMORY}.compareTo(quantity({quote(format_mib(mib))})) >= 0"


def memory_between(low_mib: int, high_mib: int) -> str:
    """Return the expression for cards of these sizes, both included."""
    if low_mib == high_mib:
        return f"{_MEMORY}.compareTo(quantity({quote(format_mib(low_mib))})) == 0"
    return (
        f"{memory_at_least(low_mib)} && "
        f"{_MEMORY}.compareTo(quantity({quote(format_mib(high_mib))})) <= 0"
    )


def product_contains(parts: Iterable[str]) -> str:
    """Return the expression for cards whose model contains any of the texts, in any case."""
    return text_contains(f"{_ATTRIBUTES}.{ATTR_PRODUCT_NAME}", parts)


def uuid_contains(parts: Iterable[str]) -> str:
    """Return the expression for cards whose UUID contains any of the texts, in any case."""
    return text_contains(f"{_ATTRIBUTES}.{ATTR_UUID}", parts)


def text_contains(value: str, parts: Iterable[str]) -> str:
    """Return the expression for values (an expression) that contain any of the texts, any case."""
    texts = ", ".join(quote(part.translate(_ASCII_LOWER)) for part in parts)
    return f"[{texts}].exists(t, {value}.lowerAscii().contains(t))"


def uuid_among(uuids: Iterable[str]) -> str:
    """Return the expression for cards with one of the UUIDs."""
    return f"{_ATTRIBUTES}.{ATTR_UUID} in [{', '.join(map(quote, uuids))}]"


def parent_among(uuids: Iterable[str]) -> str:
    """Return the expression for MIG devices of one of the cards."""
    return f"{_ATTRIBUTES}.{ATTR_PARENT_UUID} in [{', '.join(map(quote, uuids))}]"


def profile_is(profile: str) -> str:
    """Return the expression for MIG devices of a profile, with ``.`` written for its ``+``."""
    return f'{_ATTRIBUTES}.{ATTR_PROFILE}.replace("+", ".") == {quote(profile)}'


def index_is(index: int) -> str:
    """Return the expression for the card with this position on its node."""
    return f"{_ATTRIBUTES}.{ATTR_INDEX} == {index}"


def negate(expression: str) -> str:
    """Return the expression for all other cards."""
    return f"!({expression})"
