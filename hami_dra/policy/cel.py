"""Device selectors, evaluated as the scheduler does: for explanations, never for its decisions.

cel-python parses. Its own evaluation is not used: one of its runners turns the text, which a
tenant wrote, into Python and runs that; both differ from the API server on missing attributes and
mixed types (docs/decisions/0007-cel.md). What is evaluated, and how, is k8s.io/
dynamic-resource-allocation cel/compile.go; a table of expressions holds both to the same answers.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import re2
from celpy.celparser import CELParseError, CELParser

from hami_dra.policy.celfunctions import Overload
from hami_dra.policy.celtext import UnknownError, take_strings
from hami_dra.policy.celtree import Compiler, Domains, Step
from hami_dra.policy.celvalues import CelError, name_type, parse_version, read_quantity

_LONGEST: Final = 10 << 10
"""Bytes of an expression (resource.k8s.io/v1 validation)."""
_DEVICE: Final = "device"

Device = dict[str, Any]
"""What `view_device` makes of a device."""


@dataclass(frozen=True, slots=True)
class Unanswered:
    """Why an expression has no answer.

    Attributes:
        kind: "fails": in the scheduler too, which then gives the whole pod up. "unknown": it
            cannot be parsed or evaluated here; the scheduler may well do so.
        reason: For a person.
    """

    kind: Literal["fails", "unknown"]
    reason: str


def view_device(driver: str, device: Mapping[str, Any]) -> Device | Unanswered:
    """Return what expressions see of a device in a ResourceSlice."""
    attributes, capacity = Domains(), Domains()
    try:
        for name, written in (device.get("attributes") or {}).items():
            domain, key = _split_name(name, driver)
            attributes.setdefault(domain, {})[key] = _read_attribute(name, written)
        for name, written in (device.get("capacity") or {}).items():
            domain, key = _split_name(name, driver)
            capacity.setdefault(domain, {})[key] = read_quantity(str(written.get("value", "")))
    except CelError as error:
        return Unanswered("fails", str(error))
    return {
        "driver": driver,
        "allowMultipleAllocations": device.get("allowMultipleAllocations") is True,
        "attributes": attributes,
        "capacity": capacity,
    }


def _split_name(name: str, driver: str) -> tuple[str, str]:
    domain, slash, key = name.rpartition("/")
    return (domain, key) if slash else (driver, name)


def _read_attribute(name: str, written: Mapping[str, Any]) -> Any:
    for kind in ("int", "bool", "string", "ints", "bools", "strings"):
        if written.get(kind) is not None:
            return written[kind]
    if written.get("version") is not None:
        return parse_version(str(written["version"]))
    if written.get("versions") is not None:
        return [parse_version(str(text)) for text in written["versions"]]
    raise CelError(f"attribute {name} has no value")


def evaluate(expression: str, device: Device) -> bool | Unanswered:
    """Say whether a device satisfies a selector. Never raises, whatever the text."""
    program = _compile(expression)
    if isinstance(program, Unanswered):
        return program
    try:
        answer = program({_DEVICE: device})
    except CelError as error:
        return Unanswered("fails", str(error))
    except RecursionError:
        return Unanswered("unknown", "is nested too deeply to be evaluated here")
    if not isinstance(answer, bool):
        return Unanswered("fails", f"is a {name_type(answer)}, neither true nor false")
    return answer


def find_fault(expression: str) -> str | None:
    """Return why an expression can never be evaluated here, ``None`` if it can."""
    program = _compile(expression)
    return program.reason if isinstance(program, Unanswered) else None


@functools.lru_cache(maxsize=1024)
def _compile(expression: str) -> Step | Unanswered:
    if len(expression.encode(errors="replace")) > _LONGEST:
        return Unanswered("unknown", f"is longer than {_LONGEST} bytes")
    try:
        text, strings = take_strings(expression)
        return Compiler(strings, _MATCHES).build(CELParser().parse(text), frozenset({_DEVICE}))
    except UnknownError as error:
        return Unanswered("unknown", str(error))
    except CELParseError as error:
        place = f" at line {error.line}, column {error.column}" if error.line else ""
        return Unanswered("unknown", f"cannot be parsed here{place}")
    except RecursionError:
        return Unanswered("unknown", "is nested too deeply to be evaluated here")


_QUIET: Final = re2.Options()
_QUIET.log_errors = False


def _matches(text: str, pattern: str) -> bool:
    """Search as Go does: in linear time, whatever the pattern."""
    try:
        return re2.compile(pattern, _QUIET).search(text) is not None
    except re2.error as error:
        raise CelError(f"{pattern!r} is not a regular expression") from error


_MATCHES: Final = {"matches": (Overload((str, str), _matches),)}
