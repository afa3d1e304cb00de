"""Truth values as Go reads them (strconv.ParseBool), because HAMi's annotations are read by it."""

from typing import Final

_TRUE: Final = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "FALSE", "false", "False"})


def parse_bool(text: str) -> bool | None:
    """Return the truth value, ``None`` for any other text."""
    return True if text in _TRUE else False if text in _FALSE else None
