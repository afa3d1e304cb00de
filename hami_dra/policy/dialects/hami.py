"""HAMi: ``nvidia.com/gpu``, ``gpumem``, ``gpumem-percentage`` and ``gpucores`` on containers.

Meaning, case by case: HAMi v2.10 ``pkg/device/nvidia/device.go`` (MutateAdmission,
GenerateResourceRequests, defaultExclusiveCoreIfNeeded). Where HAMi drops a wrong number and lets
the pod run without a limit, we deny it.

``priority`` only orders work inside a card and is not carried yet: it is removed with a warning.
"""

from dataclasses import dataclass
from typing import Any, Final

from hami_dra.contract.errors import UserError
from hami_dra.contract.names import (
    RESOURCE_CORES,
    RESOURCE_GPU,
    RESOURCE_MEMORY,
    RESOURCE_MEMORY_PERCENTAGE,
    RESOURCE_PRIORITY,
)
from hami_dra.contract.quantity import MIB, parse_integer
from hami_dra.policy.podview import Place, PodView, list_places
from hami_dra.policy.request import MOST_CARDS, WHOLE_CORES_PERCENT, PodRequest, Share, place_shares

KEYS: Final[tuple[str, ...]] = (
    RESOURCE_GPU,
    RESOURCE_MEMORY,
    RESOURCE_MEMORY_PERCENTAGE,
    RESOURCE_CORES,
    RESOURCE_PRIORITY,
)
_LISTS: Final = ("limits", "requests")
"""Where a key may stand; the first that has it wins."""
_BYTE_SUFFIXES: Final = ("Mi", "Gi", "Ti", "Pi", "Ei")
_MOST_MIB: Final = 2**31 - 1
"""HAMi keeps the number in an int32."""
_WHOLE_PERCENT: Final = 100


@dataclass(frozen=True, slots=True)
class _Number:
    value: int
    field: str


def read_pod(pod: PodView) -> PodRequest | None:
    """Read what a pod asks for; ``None`` if it has none of the keys.

    Raises:
        UserError: A number that means nothing, or a key that is not supported, by its path.
    """
    original: dict[str, dict[str, dict[str, Any]]] = {}
    warnings: list[str] = []
    beside: list[Share] = []
    before: list[Share] = []
    for place in list_places(pod):
        written = _find_keys(place)
        if not written:
            continue
        original[place.container.name] = written
        share = _read_container(place, written, warnings)
        if share is not None:
            (beside if place.runs_beside_others else before).append(share)
    if not original:
        return None
    shares, uses = place_shares(beside, before)
    return PodRequest(
        shares=shares, uses=uses, original=original, keys=KEYS, warnings=tuple(warnings)
    )


def _find_keys(place: Place) -> dict[str, dict[str, Any]]:
    resources = place.container.resources
    if resources is None:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for name, values in (("limits", resources.limits), ("requests", resources.requests)):
        keys = {key: values[key] for key in KEYS if key in values} if values else {}
        if keys:
            found[name] = keys
    return found


def _read_container(
    place: Place, written: dict[str, dict[str, Any]], warnings: list[str]
) -> Share | None:
    priority = _field(place, written, RESOURCE_PRIORITY)
    if priority is not None:
        warnings.append(f"{priority}: is not supported yet and has no effect")
    cards = _read(place, written, RESOURCE_GPU)
    memory = _read_memory(place, written)
    percentage = _read_percentage(place, written)
    cores = _read(place, written, RESOURCE_CORES)
    if cores is not None and cores.value > WHOLE_CORES_PERCENT:
        warnings.append(
            f"{cores.field}: {cores.value} is more than a whole card; "
            f"taken as {WHOLE_CORES_PERCENT}"
        )
        cores = _Number(WHOLE_CORES_PERCENT, cores.field)
    if cards is None:
        if memory is None and percentage is None and cores is None:
            return None
        count = 1
    else:
        count = cards.value
        if count > MOST_CARDS:
            raise UserError(
                f"asks for {count} cards; a claim holds at most {MOST_CARDS}", field=cards.field
            )
    if count == 0:
        return None
    if cores is None:
        # HAMi's rule looks at whether a key is there, not at its value: 0 turns it off too. The
        # percentage is looked at first, although the MiB decide how much memory there is.
        whole = percentage is not None and percentage.value == _WHOLE_PERCENT
        exclusive = whole or (percentage is None and memory is None)
        cores_percent = WHOLE_CORES_PERCENT if exclusive else 0
    else:
        cores_percent = cores.value
        exclusive = cores_percent == WHOLE_CORES_PERCENT
    mib, percent = _choose_memory(memory, percentage, warnings)
    return Share(
        container=place.container.name,
        cards=count,
        memory_mib=mib,
        memory_percent=percent,
        cores_percent=cores_percent,
        exclusive=exclusive,
    )


def _choose_memory(
    memory: _Number | None, percentage: _Number | None, warnings: list[str]
) -> tuple[int | None, int | None]:
    """Return MiB or percent, the other ``None``; both ``None`` for all that the card has."""
    if memory is not None and memory.value > 0:
        if percentage is not None and percentage.value > 0:
            warnings.append(
                f"{percentage.field}: {percentage.value} % contradicts {memory.value} MiB in "
                f'"{RESOURCE_MEMORY}", which decides; write one of them'
            )
        return memory.value, None
    if percentage is not None and 0 < percentage.value < _WHOLE_PERCENT:
        return None, percentage.value
    return None, None


def _field(place: Place, written: dict[str, dict[str, Any]], key: str) -> str | None:
    """Return the path of a key, limits first."""
    for name in _LISTS:
        if key in written.get(name, {}):
            return f'{place.path}.resources.{name}["{key}"]'
    return None


def _read(place: Place, written: dict[str, dict[str, Any]], key: str) -> _Number | None:
    field = _field(place, written, key)
    if field is None:
        return None
    text = _text(place, written, key)
    try:
        value = parse_integer(text)
    except ValueError as error:
        raise UserError(f"{error}; write a whole number", field=field) from error
    if value < 0:
        raise UserError(f"is {value}; write 0 or a positive number", field=field)
    return _Number(value, field)


def _read_memory(place: Place, written: dict[str, dict[str, Any]]) -> _Number | None:
    number = _read(place, written, RESOURCE_MEMORY)
    if number is None:
        return None
    text = str(_text(place, written, RESOURCE_MEMORY))
    if number.value and text.endswith(_BYTE_SUFFIXES):
        raise UserError(
            f"is a number of MiB; write {-(-number.value // MIB)} for {text}", field=number.field
        )
    if number.value > _MOST_MIB:
        hint = f"; write {-(-number.value // MIB)} if {text} was meant in bytes"
        raise UserError(
            f"is a number of MiB, and {number.value} MiB is more than the largest possible "
            f"{_MOST_MIB}{hint}",
            field=number.field,
        )
    return number


def _read_percentage(place: Place, written: dict[str, dict[str, Any]]) -> _Number | None:
    number = _read(place, written, RESOURCE_MEMORY_PERCENTAGE)
    if number is not None and number.value > _WHOLE_PERCENT:
        raise UserError(
            f"is {number.value}; write a whole number from 0 to {_WHOLE_PERCENT}",
            field=number.field,
        )
    return number


def _text(place: Place, written: dict[str, dict[str, Any]], key: str) -> str | int:
    values = written["limits"] if key in written.get("limits", {}) else written["requests"]
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(
            f"{value!r} is not a number; write a whole number",
            field=str(_field(place, written, key)),
        )
    return value
