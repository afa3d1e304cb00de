"""KAI and Run:ai: the annotations ``gpu-fraction`` and ``gpu-memory``, for one container of a pod.

Meaning: KAI ``pkg/binder/plugins/gpusharing/gpu-request`` (ValidateGpuRequests) and
``pkg/common/resources`` (gpu_sharing.go, GetFractionContainerRef); Run:ai's documentation of
dynamic GPU fractions. There is no word for compute. Decisions: docs/decisions/0013-dialects.md.
"""

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Final

from hami_dra.contract.errors import UserError
from hami_dra.contract.quantity import MIB, parse_quantity
from hami_dra.contract.settings import AdmissionSettings
from hami_dra.policy.dialects.cardlists import locate
from hami_dra.policy.dialects.hami_env import read_control, read_core_policy
from hami_dra.policy.dialects.schedulers import warn_kept_scheduler
from hami_dra.policy.dialects.wholecards import refuse_whole_cards
from hami_dra.policy.podview import Place, PodView, list_places
from hami_dra.policy.request import MOST_CARDS, Enforcement, PodRequest, Share

_FRACTION: Final = "gpu-fraction"
_MEMORY: Final = "gpu-memory"
_CARDS: Final = "gpu-fraction-num-devices"
_CONTAINER: Final = "gpu-fraction-container-name"
_MPS: Final = "mps"
_FRACTION_LIMITS: Final = ("gpu-fraction-limit", "gpu-fraction.limit")
_MEMORY_LIMITS: Final = ("gpu-memory-limit", "gpu-memory.limit")
"""As Run:ai and KAI spell them."""
_ENV_LIMIT: Final = "RUNAI_GPU_MEMORY_LIMIT"
_NEWER: Final = "nvidia.com/container."
"""Prefix of the annotations by which KAI's later releases ask for fractions."""
_READ: Final = (
    _FRACTION,
    _MEMORY,
    _CARDS,
    _CONTAINER,
    _MPS,
    *_FRACTION_LIMITS,
    *_MEMORY_LIMITS,
)
ANNOTATIONS: Final = (_FRACTION, _MEMORY, _CARDS)
_SCHEDULERS: Final = ("kai-scheduler", "runai-scheduler")
_DECIMAL: Final = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_DIGITS: Final = re.compile(r"[0-9]{1,19}")
_MOST_DIGITS: Final = 32
_MOST_MIB: Final = 2**31 - 1
_WHOLE_PERCENT: Final = 100


def list_keys(admission: AdmissionSettings) -> tuple[str, ...]:
    """Return no resource: this dialect speaks in annotations."""
    del admission
    return ()


def read_pod(pod: PodView, admission: AdmissionSettings) -> PodRequest | None:
    """Read what a pod asks for; ``None`` if it has none of the annotations.

    Raises:
        UserError: An annotation that means nothing or contradicts another, by its path.
    """
    annotations = pod.metadata.annotations or {}
    said = next((key for key in ANNOTATIONS if key in annotations), None)
    if said is None:
        return None
    refuse_whole_cards(pod, admission, said)
    warnings: list[str] = []
    memory_mib, memory_percent = _read_memory(annotations)
    place = _find_place(pod, annotations.get(_CONTAINER))
    share = Share(
        container=place.container.name,
        cards=_read_cards(annotations),
        memory_mib=memory_mib,
        memory_percent=memory_percent,
        enforcement=Enforcement(
            core_policy=read_core_policy(place, admission.nvidia.gpu_core_policy, warnings),
            control=read_control(place, warnings),
        ),
    )
    _check_limits(annotations, share)
    warnings += _warn(annotations, place, share)
    warn_kept_scheduler(
        pod,
        admission,
        _SCHEDULERS,
        warnings,
        danger=f'it reads "{said}" too, and sets a card aside a second time',
    )
    found: dict[str, Any] = {key: annotations[key] for key in _READ if key in annotations}
    return PodRequest(
        shares=(share,),
        uses={share.container: share.container},
        original={share.container: {"annotations": found}},
        keys=(),
        warnings=tuple(warnings),
    )


def _read_memory(annotations: Mapping[str, str]) -> tuple[int | None, int | Fraction | None]:
    """Return MiB or percent, the other ``None``."""
    if _FRACTION in annotations and _MEMORY in annotations:
        raise UserError(f'contradicts "{_FRACTION}"; write one of them', field=locate(_MEMORY))
    if _MEMORY in annotations:
        return _read_mib(_MEMORY, annotations[_MEMORY]), None
    if _FRACTION not in annotations:
        raise UserError(
            f'says how many cards, but not how much of each; write "{_FRACTION}" or "{_MEMORY}", '
            "or remove it",
            field=locate(_CARDS),
        )
    fraction = _read_fraction(_FRACTION, annotations[_FRACTION])
    if fraction == 1:
        raise UserError(
            f"is a whole card; write nvidia.com/gpu: 1 in the container's limits instead of "
            f'"{_FRACTION}"',
            field=locate(_FRACTION),
        )
    return None, _to_percent(fraction)


def _read_fraction(key: str, text: str) -> Fraction:
    """Return a number over 0 and up to 1."""
    value = parse_quantity(text) if len(text) < _MOST_DIGITS and _DECIMAL.fullmatch(text) else 0
    if not 0 < value <= 1:
        raise UserError(
            f"is {text[:63]!r}; write a decimal number over 0 and under 1, such as 0.5",
            field=locate(key),
        )
    return Fraction(value)


def _to_percent(fraction: Fraction) -> int | Fraction:
    percent = fraction * _WHOLE_PERCENT
    return percent.numerator if percent.denominator == 1 else percent


def _read_mib(key: str, text: str) -> int:
    mib = int(text) if _DIGITS.fullmatch(text) else 0
    if 0 < mib <= _MOST_MIB:
        return mib
    try:
        value = parse_quantity(text)
    except ValueError:
        value = Fraction(0)
    wanted = -(-value // MIB)
    hint = f"; write {wanted} for {text}" if 1 < wanted <= _MOST_MIB else ""
    raise UserError(
        f"is {text[:63]!r}, not a whole number of MiB from 1 to {_MOST_MIB}{hint}",
        field=locate(key),
    )


def _read_cards(annotations: Mapping[str, str]) -> int:
    text = annotations.get(_CARDS)
    if text is None:
        return 1
    cards = int(text) if _DIGITS.fullmatch(text) else 0
    if not 0 < cards <= MOST_CARDS:
        raise UserError(
            f"is {text[:63]!r}; write a whole number of cards from 1 to {MOST_CARDS}",
            field=locate(_CARDS),
        )
    return cards


def _find_place(pod: PodView, name: str | None) -> Place:
    """Return the container that the annotations are about: the first one, unless they name one."""
    for place in list_places(pod):
        if place.container.name == name or (name is None and place.kind == "containers"):
            return place
    raise UserError(
        f"no container has the name {str(name)[:63]!r}; write the name of one of the pod's",
        field=locate(_CONTAINER),
    )


def _check_limits(annotations: Mapping[str, str], share: Share) -> None:
    """Refuse limits below what is asked for, and of another kind."""
    percent = share.memory_percent
    wrong, right = (
        (_FRACTION_LIMITS, _MEMORY_LIMITS)
        if percent is None
        else (_MEMORY_LIMITS, _FRACTION_LIMITS)
    )
    for key in wrong:
        if key in annotations:
            asked = _MEMORY if percent is None else _FRACTION
            raise UserError(f'is no limit of "{asked}"; remove it', field=locate(key))
    for key in right:
        if key not in annotations:
            continue
        text = annotations[key]
        if percent is None:
            enough = _read_mib(key, text) >= (share.memory_mib or 0)
        else:
            enough = _read_fraction(key, text) * _WHOLE_PERCENT >= percent
        if not enough:
            raise UserError(
                f"is {text[:63]!r}, less than what is asked for; raise or remove it",
                field=locate(key),
            )


def _warn(annotations: Mapping[str, str], place: Place, share: Share) -> list[str]:
    """Return what has no effect."""
    warnings = []
    asked = _FRACTION if share.memory_mib is None else _MEMORY
    limits = [locate(key) for key in (*_FRACTION_LIMITS, *_MEMORY_LIMITS) if key in annotations]
    if any(variable.name == _ENV_LIMIT for variable in place.container.env or ()):
        limits.append(f"{place.path}.env[{_ENV_LIMIT}]")
    warnings += [
        f'{limit}: has no effect; a share cannot grow beyond what "{asked}" guarantees'
        for limit in limits
    ]
    if annotations.get(_MPS) == "true":
        warnings.append(f"{locate(_MPS)}: has no effect; shares of a card take turns without MPS")
    newer = sorted(key for key in annotations if key.startswith(_NEWER))
    if newer:
        warnings.append(f'{locate(newer[0][:253])}: is not read; "{asked}" decides')
    return warnings
