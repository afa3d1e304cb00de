"""The functions that expressions in device selectors may call.

Sources: k8s.io/apiserver pkg/cel/library (quantity, semver, lists), cel-go ext (strings version 2,
sets, optional values).
"""

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

from hami_dra.policy.celvalues import (
    INT64,
    CelError,
    Optional,
    Quantity,
    Version,
    check_int,
    compare,
    equal,
    parse_version,
    read_quantity,
)

_LOWER: Final = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}
_UPPER: Final = {code + 32: code for code in _LOWER}
_BLANKS: Final = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
"""What ``trim`` takes away (Go's unicode.IsSpace)."""


@dataclass(frozen=True, slots=True)
class Overload:
    """One meaning of a function: the types that it takes, receiver first, and what it does."""

    types: tuple[type, ...]
    call: Callable[..., Any]

    def accepts(self, values: Sequence[Any]) -> bool:
        """Whether the function has this meaning for these values."""
        return len(values) == len(self.types) and all(
            want is object or type(value) is want or (want is dict and isinstance(value, dict))
            for value, want in zip(values, self.types, strict=True)
        )


Functions = Mapping[str, tuple[Overload, ...]]


def _succeeds(read: Callable[..., Any]) -> Callable[..., bool]:
    def attempt(*values: Any) -> bool:
        try:
            read(*values)
        except CelError:
            return False
        return True

    return attempt


def _as_integer(quantity: Quantity) -> int:
    if not quantity.exact_integer or not -INT64 <= quantity.value < INT64:
        raise CelError("the quantity cannot be converted to an integer")
    return quantity.value.numerator


def _add(left: Quantity, right: Quantity | int, sign: int = 1) -> Quantity:
    other = right if isinstance(right, Quantity) else Quantity(Fraction(right))
    value = left.value + sign * other.value
    return Quantity(value, left.exact_integer and other.exact_integer)


def _rank(value: Quantity | Version) -> Any:
    return value.value if isinstance(value, Quantity) else value.rank()


def _sign_of(left: Quantity | Version, right: Quantity | Version) -> int:
    return int(_rank(left) > _rank(right)) - int(_rank(left) < _rank(right))


def _slice(text: str, start: int, end: int | None = None) -> str:
    stop = len(text) if end is None else end
    if not 0 <= start <= stop <= len(text):
        raise CelError(f"index out of range: {start}, {stop}")
    return text[start:stop]


def _char_at(text: str, index: int) -> str:
    if not 0 <= index <= len(text):
        raise CelError(f"index out of range: {index}")
    return text[index : index + 1]


def _index_of(text: str, part: str, start: int = 0) -> int:
    if not part:
        return start
    if not 0 <= start <= len(text):
        raise CelError(f"index out of range: {start}")
    return text.find(part, start)


def _last_index_of(text: str, part: str, last: int | None = None) -> int:
    if last is None:
        return text.rfind(part)
    if not part:
        return last
    if not 0 <= last <= len(text):
        raise CelError(f"index out of range: {last}")
    return text.rfind(part, 0, last + len(part))


def _split(text: str, separator: str, most: int = -1) -> list[str]:
    if most == 0:
        return []
    if separator:
        return text.split(separator, most - 1 if most > 0 else -1)
    cut = len(text) if most < 0 else most - 1
    rest = text[cut:]
    return [*text[:cut], *([rest] if rest else [])]


def _join(parts: list[Any], separator: str = "") -> str:
    if not all(type(part) is str for part in parts):
        raise CelError("join: not every element is a string")
    return separator.join(parts)


def _to_int(value: Any) -> int:
    if isinstance(value, str) and not re.fullmatch(r"[+-]?[0-9]+", value):
        raise CelError(f"{value!r} cannot be converted to int")
    try:
        return check_int(int(value))
    except (ValueError, OverflowError) as error:
        raise CelError(f"{value!r} cannot be converted to int") from error


def _to_double(value: Any) -> float:
    try:
        return float(value)
    except (ValueError, OverflowError) as error:
        raise CelError(f"{value!r} cannot be converted to double") from error


def _to_bool(text: str) -> bool:
    if text in {"1", "t", "T", "true", "TRUE", "True"}:
        return True
    if text in {"0", "f", "F", "false", "FALSE", "False"}:
        return False
    raise CelError(f"{text!r} cannot be converted to bool")


def _contains_all(sets: list[Any], wanted: Iterable[Any]) -> bool:
    return all(any(equal(have, want) for have in sets) for want in wanted)


def _best(values: list[Any], sign: int) -> Any:
    if not values:
        raise CelError("min and max of an empty list")
    best = values[0]
    for value in values[1:]:
        if compare(value, best) == sign:
            best = value
    return best


def _position(values: list[Any], wanted: Any, step: int) -> int:
    places = range(len(values))[::step]
    return next((index for index in places if equal(values[index], wanted)), -1)


def _total(values: list[Any]) -> Any:
    if not all(type(value) in {int, float} for value in values):
        raise CelError("sum: not every element is a number")
    return sum(values)


def _value_of(optional: Optional) -> Any:
    if not optional.values:
        raise CelError("optional.none() has no value")
    return optional.values[0]


def _of(call: Callable[..., Any], *types: tuple[type, ...]) -> tuple[Overload, ...]:
    return tuple(Overload(each, call) for each in types)


_QUANTITY_OR_VERSION: Final = ((Quantity, Quantity), (Version, Version))

GLOBALS: Final[Functions] = {
    "quantity": _of(read_quantity, (str,)),
    "isQuantity": _of(_succeeds(read_quantity), (str,)),
    "sign": _of(lambda q: int(q.value > 0) - int(q.value < 0), (Quantity,)),
    "semver": _of(parse_version, (str,), (str, bool)),
    "isSemver": _of(_succeeds(parse_version), (str,), (str, bool)),
    "size": _of(len, (str,), (list,), (dict,)),
    "int": _of(_to_int, (int,), (float,), (str,)),
    "double": _of(_to_double, (int,), (float,), (str,)),
    "bool": _of(_to_bool, (str,)) + _of(bool, (bool,)),
    "string": (
        *_of(str, (str,), (int,)),
        *_of(lambda truth: "true" if truth else "false", (bool,)),
    ),
    "dyn": _of(lambda value: value, (object,)),
}

SPACES: Final[Mapping[str, Functions]] = {
    "sets": {
        "contains": _of(_contains_all, (list, list)),
        "equivalent": _of(lambda a, b: _contains_all(a, b) and _contains_all(b, a), (list, list)),
        "intersects": _of(lambda a, b: any(equal(x, y) for x in a for y in b), (list, list)),
    },
    "optional": {
        "of": _of(lambda value: Optional((value,)), (object,)),
        "none": _of(Optional, ()),
    },
}
"""Functions whose names begin with the name of a library."""

METHODS: Final[Functions] = {
    "compareTo": _of(_sign_of, *_QUANTITY_OR_VERSION),
    "isGreaterThan": _of(lambda a, b: _sign_of(a, b) > 0, *_QUANTITY_OR_VERSION),
    "isLessThan": _of(lambda a, b: _sign_of(a, b) < 0, *_QUANTITY_OR_VERSION),
    "asInteger": _of(_as_integer, (Quantity,)),
    "isInteger": _of(_succeeds(_as_integer), (Quantity,)),
    "asApproximateFloat": _of(lambda q: float(q.value), (Quantity,)),
    "add": _of(_add, (Quantity, Quantity), (Quantity, int)),
    "sub": _of(lambda a, b: _add(a, b, -1), (Quantity, Quantity), (Quantity, int)),
    "major": _of(lambda v: v.core[0], (Version,)),
    "minor": _of(lambda v: v.core[1], (Version,)),
    "patch": _of(lambda v: v.core[2], (Version,)),
    "size": GLOBALS["size"],
    "contains": _of(lambda text, part: part in text, (str, str)),
    "startsWith": _of(str.startswith, (str, str)),
    "endsWith": _of(str.endswith, (str, str)),
    "lowerAscii": _of(lambda text: text.translate(_LOWER), (str,)),
    "upperAscii": _of(lambda text: text.translate(_UPPER), (str,)),
    "charAt": _of(_char_at, (str, int)),
    "indexOf": (
        *_of(_index_of, (str, str), (str, str, int)),
        *_of(lambda values, wanted: _position(values, wanted, 1), (list, object)),
    ),
    "lastIndexOf": (
        *_of(_last_index_of, (str, str), (str, str, int)),
        *_of(lambda values, wanted: _position(values, wanted, -1), (list, object)),
    ),
    "replace": _of(
        lambda text, old, new, most=-1: text.replace(old, new, most),
        (str, str, str),
        (str, str, str, int),
    ),
    "split": _of(_split, (str, str), (str, str, int)),
    "substring": _of(_slice, (str, int), (str, int, int)),
    "trim": _of(lambda text: text.strip(_BLANKS), (str,)),
    "join": _of(_join, (list,), (list, str)),
    "min": _of(lambda values: _best(values, -1), (list,)),
    "max": _of(lambda values: _best(values, 1), (list,)),
    "sum": _of(_total, (list,)),
    "isSorted": _of(
        lambda values: all(compare(a, b) <= 0 for a, b in itertools.pairwise(values)),
        (list,),
    ),
    "orValue": _of(lambda opt, other: opt.values[0] if opt.values else other, (Optional, object)),
    "or": _of(lambda opt, other: opt if opt.values else other, (Optional, Optional)),
    "hasValue": _of(lambda opt: bool(opt.values), (Optional,)),
    "value": _of(_value_of, (Optional,)),
}
