"""Koordinator: ``koordinator.sh/gpu``, ``gpu-core``, ``gpu-memory``, ``gpu-memory-ratio``, shares.

Meaning: Koordinator ``pkg/scheduler/plugins/deviceshare/utils.go`` (GetPodDeviceRequests,
ValidateDeviceRequest, calcDesiredRequestsAndCountForGPU). The keys of all containers are added up,
and the pod's containers use the sum together: one share, which every container that names a key
gets. Decisions: docs/decisions/0013-dialects.md.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from hami_dra.contract.errors import UserError
from hami_dra.contract.quantity import MIB
from hami_dra.contract.settings import AdmissionSettings
from hami_dra.policy.dialects.hami_env import read_control, read_core_policy
from hami_dra.policy.dialects.koordinator_annotations import read_hints
from hami_dra.policy.dialects.schedulers import warn_kept_scheduler
from hami_dra.policy.dialects.wholecards import refuse_whole_cards
from hami_dra.policy.podview import PodView, list_places
from hami_dra.policy.request import (
    MOST_CARDS,
    WHOLE_CORES_PERCENT,
    Enforcement,
    Placement,
    PodRequest,
    Share,
)
from hami_dra.policy.written import Number, Written, find_keys, keep_written, list_written

_GPU: Final = "koordinator.sh/gpu"
_SHARED: Final = "koordinator.sh/gpu.shared"
_CORES: Final = "koordinator.sh/gpu-core"
_MEMORY: Final = "koordinator.sh/gpu-memory"
_RATIO: Final = "koordinator.sh/gpu-memory-ratio"
KEYS: Final = (_GPU, _SHARED, _CORES, _MEMORY, _RATIO)
_AMOUNTS: Final = ({_MEMORY}, {_RATIO}, {_CORES, _MEMORY}, {_CORES, _RATIO})
_ISOLATION: Final = "koordinator.sh/gpu-isolation-provider"
_OUR_ISOLATION: Final = "HAMi-core"
_SCHEDULERS: Final = ("koord-scheduler",)
_WHOLE_PERCENT: Final = 100
_MOST_MIB: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class _Amount:
    """What a pod wants of each card; no MiB and no percent for all that the card has."""

    cards: int
    cores_percent: int
    memory_mib: int | None
    memory_percent: int | None


def list_keys(admission: AdmissionSettings) -> tuple[str, ...]:
    """Return the resources that this dialect reads."""
    del admission
    return KEYS


def read_pod(pod: PodView, admission: AdmissionSettings) -> PodRequest | None:
    """Read what a pod asks for; ``None`` if it has none of the keys.

    Raises:
        UserError: A number, a combination or an annotation that means nothing, by its path.
    """
    containers = list_written(pod, KEYS)
    if not containers:
        return None
    warnings: list[str] = []
    totals = _add_up(pod)
    shares: tuple[Share, ...] = ()
    uses: dict[str, str] = {}
    placement = Placement()
    if totals:
        refuse_whole_cards(pod, admission, next(iter(totals)))
        amount = _read_amount(totals, warnings)
        users = _list_users(containers)
        place = users[0].place
        hints = read_hints(pod.metadata.annotations or {}, amount.cards, warnings)
        share = Share(
            container=place.container.name,
            cards=amount.cards,
            memory_mib=amount.memory_mib,
            memory_percent=amount.memory_percent,
            cores_percent=amount.cores_percent,
            exclusive=hints.alone,
            enforcement=Enforcement(
                core_policy=read_core_policy(place, admission.nvidia.gpu_core_policy, warnings),
                control=read_control(place, warnings),
            ),
        )
        shares, placement = (share,), hints.placement
        uses = {user.place.container.name: share.container for user in users}
        _warn_isolation(pod.metadata.labels or {}, warnings)
        warn_kept_scheduler(pod, admission, _SCHEDULERS, warnings)
    return PodRequest(
        shares=shares,
        uses=uses,
        original=keep_written(containers),
        keys=KEYS,
        warnings=tuple(warnings),
        placement=placement,
    )


def _list_users(containers: Collection[Written]) -> list[Written]:
    """Return the containers that name an amount, those that live as long as the pod first."""
    users = [written for written in containers if any(map(_is_some, _read_all(written).values()))]
    return sorted(users, key=lambda written: not written.place.runs_beside_others)


def _is_some(number: Number) -> bool:
    return number.value > 0


def _read_all(written: Written) -> dict[str, Number]:
    return {key: number for key in KEYS if (number := written.read(key)) is not None}


def _add_up(pod: PodView) -> dict[str, Number]:
    """Return the pod's request for each key as Kubernetes computes it, without those that are 0.

    What runs together is added; an init container counts where it alone, with the sidecars that
    have started before it, wants more (k8s.io/component-helpers/resource, PodRequests).
    """
    fields: dict[str, str] = {}
    running = dict.fromkeys(KEYS, 0)
    sidecars = dict.fromkeys(KEYS, 0)
    peaks = dict.fromkeys(KEYS, 0)
    for place in list_places(pod):
        for key, number in _read_all(find_keys(place, KEYS)).items():
            fields.setdefault(key, number.field)
            if place.kind == "containers":
                running[key] += number.value
            elif place.runs_beside_others:
                sidecars[key] += number.value
            else:
                peaks[key] = max(peaks[key], sidecars[key] + number.value)
    totals = {key: max(running[key] + sidecars[key], peaks[key]) for key in KEYS}
    return {key: Number(total, fields[key]) for key, total in totals.items() if total}


def _read_amount(totals: Mapping[str, Number], warnings: list[str]) -> _Amount:
    _check_combination(totals)
    whole = totals.get(_GPU)
    cores = totals.get(_CORES, whole)
    ratio = totals.get(_RATIO, whole)
    shared = totals.get(_SHARED)
    for number in (cores, ratio):
        if number is not None:
            _check_percent(number, shared)
    if shared is not None:
        cards = shared.value
    else:
        cards = max(1, ratio.value // _WHOLE_PERCENT) if ratio is not None else 1
    if cards > MOST_CARDS:
        raise UserError(
            f"asks for {cards} cards; a claim holds at most {MOST_CARDS}",
            field=(shared or ratio or totals[_MEMORY]).field,
        )
    ratio_percent = ratio.value // cards if ratio is not None else _WHOLE_PERCENT
    memory = totals.get(_MEMORY)
    return _Amount(
        cards=cards,
        cores_percent=_divide_cores(cores, cards, warnings),
        memory_mib=None if memory is None else _divide_memory(memory, cards),
        memory_percent=None if ratio_percent == _WHOLE_PERCENT else ratio_percent,
    )


def _check_combination(totals: Mapping[str, Number]) -> None:
    keys = set(totals)
    if keys == {_GPU} or keys - {_SHARED} in _AMOUNTS:
        return
    first = min(totals, key=KEYS.index)
    raise UserError(
        f"{' with '.join(sorted(keys))} means nothing; write {_MEMORY} or {_RATIO}, with or "
        f"without {_CORES} and {_SHARED}, or {_GPU} alone",
        field=totals[first].field,
    )


def _check_percent(number: Number, shared: Number | None) -> None:
    value = number.value
    if shared is None:
        if value > _WHOLE_PERCENT and value % _WHOLE_PERCENT:
            raise UserError(
                f"is {value} for the pod; write up to {_WHOLE_PERCENT} for part of a card, or a "
                "multiple of it for whole ones",
                field=number.field,
            )
    elif value % shared.value or value // shared.value > _WHOLE_PERCENT:
        raise UserError(
            f"is {value} for the pod, to be divided among {shared.value} cards; write a multiple "
            f"of {shared.value} up to {shared.value * _WHOLE_PERCENT}",
            field=number.field,
        )


def _divide_cores(cores: Number | None, cards: int, warnings: list[str]) -> int:
    if cores is None:
        return 0
    each, rest = divmod(cores.value, cards)
    if each > WHOLE_CORES_PERCENT:
        raise UserError(
            f"is {cores.value} for the pod, but its memory is of {cards} cards; write "
            f"{_RATIO}: {cores.value} for whole cards",
            field=cores.field,
        )
    if rest:
        warnings.append(
            f"{cores.field}: {cores.value} is divided among {cards} cards; each gives {each}"
        )
    return each


def _divide_memory(memory: Number, cards: int) -> int:
    each = memory.value // cards
    if each < MIB:
        raise UserError(
            f"is a number of bytes, and {each} of each card is less than 1 MiB; write "
            f"{memory.value}Mi if MiB were meant",
            field=memory.field,
        )
    mib = -(-each // MIB)
    if mib > _MOST_MIB:
        raise UserError(
            f"is a number of bytes, and {mib} MiB of each card is more than the largest possible "
            f"{_MOST_MIB}",
            field=memory.field,
        )
    return mib


def _warn_isolation(labels: Mapping[str, str], warnings: list[str]) -> None:
    provider = labels.get(_ISOLATION, _OUR_ISOLATION)
    if provider != _OUR_ISOLATION:
        warnings.append(
            f'metadata.labels["{_ISOLATION}"]: {provider[:63]!r} has no effect; shares are held '
            "inside the container in any case"
        )
