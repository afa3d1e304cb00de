"""Device selectors in the Common Expression Language, for devices of our class.

An unknown attribute or capacity aborts the allocation of the whole pod, so an expression may only
name what every device of the class has. Text written by people enters only through `quote`.
"""

import json
from typing import Final

from hami_dra.contract.names import CAPACITY_MEMORY, DRIVER_NAME
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
