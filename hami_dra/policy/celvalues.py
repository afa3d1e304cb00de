"""Values of the expressions in device selectors, as the API server compares and reads them.

Text, numbers, truth, lists and maps are Python's own. Quantities, versions and optional values are
the types below (k8s.io/apiserver pkg/cel quantity, semver; cel-go optional types).
"""

import math
import operator
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

from hami_dra.contract.quantity import parse_quantity

INT64: Final = 1 << 63
"""Where signed 64-bit numbers end."""
_UINT64: Final = 1 << 64
_SEMVER: Final = re.compile(
    r"(?P<major>0|[1-9][0-9]*)\.(?P<minor>0|[1-9][0-9]*)\.(?P<patch>0|[1-9][0-9]*)"
    r"(?:-(?P<pre>[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?"
)
_NUMBER: Final = re.compile(r"[+-]?([0-9]*)\.?([0-9]*)")
_DECIMAL_DIGITS: Final = 18
_BINARY_DIGITS: Final = 14


class CelError(Exception):
    """Evaluating goes wrong in the API server's words too; ``||`` and ``&&`` may absorb it."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A Kubernetes quantity."""

    value: Fraction
    exact_integer: bool = True
    """Whether it converts to int, which depends on how it was written."""


@dataclass(frozen=True, slots=True)
class Version:
    """A semantic version; what follows ``+`` does not count."""

    core: tuple[int, int, int]
    pre: tuple[str, ...] = ()

    def rank(self) -> tuple[Any, ...]:
        """Return a key that sorts as semver.org says."""
        parts = tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in self.pre)
        return self.core, not self.pre, parts


@dataclass(frozen=True, slots=True)
class Optional:
    """A value that may be missing."""

    values: tuple[Any, ...] = ()
    """The value, or nothing."""


def name_type(value: Any) -> str:
    """Return how messages call the type of a value."""
    names = {bool: "bool", int: "int", float: "double", str: "string", list: "list", dict: "map"}
    return names.get(type(value), type(value).__name__)


def check_int(value: int) -> int:
    """Return an integer that 64 bits can hold.

    Raises:
        CelError: They cannot.
    """
    if not -INT64 <= value < INT64:
        raise CelError("integer overflow")
    return value


def equal(left: Any, right: Any) -> bool:
    """Compare as CEL does: numbers by value, everything else only with its own type.

    Raises:
        CelError: A quantity or a version is compared with something else.
    """
    numbers = {int, float}
    if type(left) in numbers and type(right) in numbers:
        return bool(left == right)
    if isinstance(left, Quantity | Version) and type(left) is not type(right):
        raise CelError(f"no such overload: {name_type(left)} == {name_type(right)}")
    if type(left) is not type(right):
        return False
    if isinstance(left, list):
        return len(left) == len(right) and all(map(equal, left, right))
    if isinstance(left, Quantity):
        return bool(left.value == right.value)
    if isinstance(left, Optional):
        return equal(list(left.values), list(right.values))
    return bool(left == right)


def compare(left: Any, right: Any) -> int:
    """Return -1, 0 or 1.

    Raises:
        CelError: The two have no order.
    """
    numbers = {int, float}
    if not (type(left) in numbers and type(right) in numbers) and (
        type(left) is not type(right) or type(left) not in {str, bool}
    ):
        raise CelError(f"no such overload: {name_type(left)} < {name_type(right)}")
    return int(left > right) - int(left < right)


def calculate(operation: str, left: Any, right: Any) -> Any:
    """Add, subtract, multiply, divide or take the remainder.

    Args:
        operation: ``add``, ``sub``, ``mul``, ``div`` or ``mod``.
        left: Before the operator.
        right: After it.

    Raises:
        CelError: The types do not go together, or the result is not a number of 64 bits.
    """
    kind = type(left)
    if kind is int and not left and type(right) is float and operation == "sub":
        kind = float  # the sign in front of a number
    elif kind is not type(right):
        raise CelError(f"no such overload: {operation}({name_type(left)}, {name_type(right)})")
    if operation == "add" and kind in {str, list}:
        return left + right
    if kind is float and operation in _FLOATS:
        return _FLOATS[operation](left, right)
    if kind is not int:
        raise CelError(f"no such overload: {operation}({name_type(left)}, {name_type(right)})")
    if operation in {"div", "mod"}:
        if not right:
            raise CelError("division by zero")
        quotient = abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)
        return check_int(quotient if operation == "div" else left - quotient * right)
    return check_int(_INTS[operation](left, right))


def _divide(left: float, right: float) -> float:
    if right:
        return left / right
    return math.nan if not left or math.isnan(left) else math.copysign(math.inf, left)


_INTS: Final = {"add": operator.add, "sub": operator.sub, "mul": operator.mul}
_FLOATS: Final = {**_INTS, "div": _divide}


def parse_version(text: str, normalize: bool = False) -> Version:  # noqa: FBT001, FBT002 - CEL's own signature
    """Read a semantic version, strictly unless ``normalize``.

    Raises:
        CelError: It is none.
    """
    if normalize:
        text = _normalize(text.removeprefix("v"))
    match = _SEMVER.fullmatch(text)
    if match is None:
        raise CelError(f"{text!r} is not a semantic version")
    core = int(match["major"]), int(match["minor"]), int(match["patch"])
    pre = tuple(match["pre"].split(".")) if match["pre"] else ()
    if max(core) >= _UINT64 or any(p.isdigit() and len(p) > 1 and p[0] == "0" for p in pre):
        raise CelError(f"{text!r} is not a semantic version")
    return Version(core, pre)


def _normalize(text: str) -> str:
    parts = text.split(".", 2)
    for index, part in enumerate(parts):
        if len(part) > 1:
            bare = part.lstrip("0")
            parts[index] = bare if bare[:1].isascii() and bare[:1].isdigit() else f"0{bare}"
    missing = 3 - len(parts)
    if missing and any(c in parts[-1] for c in "+-"):
        raise CelError(f"{text!r} is short and cannot have what follows - or +")
    return ".".join([*parts, *["0"] * missing])


def read_quantity(text: str) -> Quantity:
    """Read a Kubernetes quantity.

    Raises:
        CelError: It is none.
    """
    try:
        return Quantity(parse_quantity(text), _converts(text))
    except ValueError as error:
        raise CelError(str(error)) from error


def _converts(text: str) -> bool:
    """Whether the API server converts a quantity to an integer.

    Not a matter of its value: "2000m", "1.0Gi" and "1Pi" are stored in a form that it does not
    convert (apimachinery pkg/api/resource ParseQuantity).
    """
    match = _NUMBER.match(text)
    digits = len(match[1].lstrip("0")) if match else 0
    decimals = len(match[2] or "") if match else 0
    suffix = text[match.end() :] if match else ""
    if suffix.endswith("i"):
        bits = 10 * (1 + "KMGTPE".index(suffix[0]))
        return not decimals and digits + bits * 3 // 10 <= _BINARY_DIGITS
    exponent = int(suffix[1:]) if suffix[1:] else 3 * ("num kMGTPE".find(suffix or " ") - 3)
    return digits + decimals <= _DECIMAL_DIGITS and exponent >= decimals
