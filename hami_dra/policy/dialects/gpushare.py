"""Aliyun gpushare and ACK: ``aliyun.com/gpu-mem``, ``gpu-core.percentage``, ``gpu-count``.

Meaning: gpushare-scheduler-extender ``pkg/utils/pod.go`` (limits only, containers added up, one
card for all of them) and ACK's documentation of GPU sharing (the pod label
``aliyun.com/gpu-count`` divides the memory among cards; percent of compute). Decisions:
docs/decisions/0013-dialects.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from hami_dra.contract.errors import UserError
from hami_dra.contract.quantity import MIB
from hami_dra.contract.settings import AdmissionSettings
from hami_dra.policy.dialects.hami_env import read_control, read_core_policy
from hami_dra.policy.dialects.wholecards import refuse_whole_cards
from hami_dra.policy.podview import PodView
from hami_dra.policy.request import (
    MOST_CARDS,
    WHOLE_CORES_PERCENT,
    Enforcement,
    Placement,
    PodRequest,
    Share,
)
from hami_dra.policy.written import Number, Written, keep_written, list_written

_MEMORY: Final = "aliyun.com/gpu-mem"
_CORES: Final = "aliyun.com/gpu-core.percentage"
_COUNT: Final = "aliyun.com/gpu-count"
KEYS: Final = (_MEMORY, _CORES, _COUNT)
_COUNT_FIELD: Final = f'metadata.labels["{_COUNT}"]'
_UNIT_MIB: Final = {"GiB": 1024, "MiB": 1}
_CORES_STEP: Final = 5
_BYTE_SUFFIXES: Final = ("Mi", "Gi", "Ti", "Pi", "Ei")
_MOST_MIB: Final = 2**31 - 1
_DIGITS: Final = 9


@dataclass(frozen=True, slots=True)
class _Part:
    """What one container wants: memory in the operator's unit, 0 cores where none are said."""

    written: Written
    memory: Number
    cores: int


def list_keys(admission: AdmissionSettings) -> tuple[str, ...]:
    """Return the resources that this dialect reads."""
    del admission
    return KEYS


def read_pod(pod: PodView, admission: AdmissionSettings) -> PodRequest | None:
    """Read what a pod asks for; ``None`` if it has none of the keys.

    Raises:
        UserError: A number that means nothing, by its path.
    """
    found = list_written(pod, KEYS)
    if not found:
        return None
    warnings: list[str] = []
    parts: list[_Part] = []
    for written in found:
        place = written.place
        if place.kind == "initContainers":
            warnings.append(f"{place.path}: gpushare gives init containers no card; none is given")
            continue
        part = _read_part(written, admission, warnings)
        if part is not None:
            parts.append(part)
    shares: list[Share] = []
    if parts:
        refuse_whole_cards(pod, admission, _MEMORY)
        _check_cores(parts)
        cards = _count_cards(pod.metadata.labels or {})
        shares = [_build_share(part, admission, warnings) for part in parts]
        if cards > 1:
            shares = [_divide(shares, parts, cards, warnings)]
    return PodRequest(
        shares=tuple(shares),
        uses={
            part.written.place.container.name: shares[min(index, len(shares) - 1)].container
            for index, part in enumerate(parts)
        },
        original=keep_written(found),
        keys=KEYS,
        warnings=tuple(warnings),
        placement=Placement(one_card=True),
    )


def _read_part(written: Written, admission: AdmissionSettings, warnings: list[str]) -> _Part | None:
    place = written.place
    limits = Written(place, {"limits": written.lists.get("limits", {})})
    memory, cores, count = limits.read(_MEMORY), limits.read(_CORES), limits.read(_COUNT)
    percent = 0 if cores is None else cores.value
    if cores is not None and (percent % _CORES_STEP or percent > WHOLE_CORES_PERCENT):
        raise UserError(
            f"is {percent}; write a multiple of {_CORES_STEP} up to {WHOLE_CORES_PERCENT}",
            field=cores.field,
        )
    if memory is None or not memory.value:
        if cores is not None and percent:
            raise UserError(
                f'is shared together with memory only; write "{_MEMORY}" too', field=cores.field
            )
        if memory is None:
            warnings.append(f'{place.path}: without "{_MEMORY}" in limits no card is given')
        return None
    if count is not None and count.value != 1:
        warnings.append(
            f"{count.field}: {count.value} has no effect, as in gpushare: the pod is on one card, "
            f'unless its label "{_COUNT}" divides the memory among several'
        )
    _check_memory(limits, memory, admission)
    return _Part(written, memory, percent)


def _check_memory(limits: Written, memory: Number, admission: AdmissionSettings) -> None:
    unit = admission.gpushare.memory_unit
    text = str(limits.text(_MEMORY))
    if text.endswith(_BYTE_SUFFIXES) or memory.value * _UNIT_MIB[unit] > _MOST_MIB:
        wanted = -(-memory.value // (MIB * _UNIT_MIB[unit]))
        raise UserError(
            f"is a number of {unit}; write {wanted} if {text[:63]} was meant in bytes",
            field=memory.field,
        )


def _check_cores(parts: Sequence[_Part]) -> None:
    total = sum(part.cores for part in parts)
    if total > WHOLE_CORES_PERCENT:
        raise UserError(
            f'the containers ask for {total} in "{_CORES}" together, but the pod is on one card; '
            f"write up to {WHOLE_CORES_PERCENT}",
            field="spec.containers",
        )


def _count_cards(labels: Mapping[str, str]) -> int:
    text = labels.get(_COUNT)
    if text is None:
        return 1
    cards = int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS else 0
    if not 0 < cards <= MOST_CARDS:
        raise UserError(
            f"is {text[:63]!r}; write a number of cards from 1 to {MOST_CARDS}", field=_COUNT_FIELD
        )
    return cards


def _build_share(part: _Part, admission: AdmissionSettings, warnings: list[str]) -> Share:
    place = part.written.place
    return Share(
        container=place.container.name,
        cards=1,
        memory_mib=part.memory.value * _UNIT_MIB[admission.gpushare.memory_unit],
        cores_percent=part.cores,
        enforcement=Enforcement(
            core_policy=read_core_policy(place, admission.nvidia.gpu_core_policy, warnings),
            control=read_control(place, warnings),
        ),
    )


def _divide(
    shares: Sequence[Share], parts: Sequence[_Part], cards: int, warnings: list[str]
) -> Share:
    """Return one share of several cards for all containers, because their cards are the same."""
    for part in parts:
        if part.cores:
            raise UserError(
                f"compute is not divided among the {cards} cards of {_COUNT_FIELD}; remove one of "
                "the two",
                field=f'{part.written.place.path}.resources.limits["{_CORES}"]',
            )
    total = sum(part.memory.value for part in parts)
    if total % cards:
        raise UserError(
            f"is {total} for the pod, which {cards} cards of {_COUNT_FIELD} cannot give in equal "
            f"parts; write a multiple of {cards}",
            field=parts[0].memory.field,
        )
    mib = sum(share.memory_mib or 0 for share in shares) // cards
    if len(parts) > 1:
        warnings.append(
            f"{_COUNT_FIELD}: the pod's containers are on the same {cards} cards, and use {mib} "
            "MiB of each together"
        )
    return replace(shares[0], cards=cards, memory_mib=mib)
