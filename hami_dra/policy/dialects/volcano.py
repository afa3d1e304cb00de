"""Volcano: ``volcano.sh/vgpu-number``, ``vgpu-memory``, ``vgpu-memory-percentage``, ``vgpu-cores``.

Meaning: Volcano ``pkg/scheduler/api/devices`` (ExtractResourceRequest) and ``nvidia/vgpu``. Unlike
HAMi it reads limits only, lets the percentage win over MiB, ignores init containers, and a card
without a word about cores is not exclusive.
"""

from typing import Final

from hami_dra.contract.errors import UserError
from hami_dra.contract.names import ANNOTATION_NOUSE_TYPE, ANNOTATION_USE_TYPE
from hami_dra.contract.settings import AdmissionSettings
from hami_dra.policy.dialects.cardlists import CardList, list_selectors, locate
from hami_dra.policy.dialects.hami_env import read_control, read_core_policy
from hami_dra.policy.dialects.mib import read_mib
from hami_dra.policy.dialects.parts import MIG_MODE, take_part
from hami_dra.policy.podview import PodView
from hami_dra.policy.request import (
    MOST_CARDS,
    WHOLE_CORES_PERCENT,
    Enforcement,
    Placement,
    PodRequest,
    Share,
)
from hami_dra.policy.selectors import parent_among, product_contains, uuid_among
from hami_dra.policy.written import Number, Written, keep_written, list_written

_NUMBER: Final = "volcano.sh/vgpu-number"
_MEMORY: Final = "volcano.sh/vgpu-memory"
_PERCENTAGE: Final = "volcano.sh/vgpu-memory-percentage"
_CORES: Final = "volcano.sh/vgpu-cores"
_MODE: Final = "volcano.sh/vgpu-mode"
_PODGROUP_POLICY: Final = "volcano.sh/vgpu-podgroup-policy"
_OUR_MODE: Final = "hami-core"
_WHOLE_PERCENT: Final = 100
KEYS: Final = (_NUMBER, _MEMORY, _PERCENTAGE, _CORES)
_USE_UUID: Final = "volcano.sh/vgpu-use-gpuuuid"
_NOUSE_UUID: Final = "volcano.sh/vgpu-nouse-gpuuuid"
_MODEL_LISTS: Final = (
    CardList(ANNOTATION_USE_TYPE, product_contains),
    CardList(ANNOTATION_NOUSE_TYPE, product_contains, refused=True),
)
_CARD_LISTS: Final = (
    *_MODEL_LISTS,
    CardList(_USE_UUID, uuid_among),
    CardList(_NOUSE_UUID, uuid_among, refused=True),
)
_PART_LISTS: Final = (
    *_MODEL_LISTS,
    CardList(_USE_UUID, parent_among),
    CardList(_NOUSE_UUID, parent_among, refused=True),
)
"""The same of MIG devices, which have UUIDs of their own."""


def list_keys(admission: AdmissionSettings) -> tuple[str, ...]:
    """Return the resources that this dialect reads."""
    del admission
    return KEYS


def read_pod(pod: PodView, admission: AdmissionSettings) -> PodRequest | None:
    """Read what a pod asks for; ``None`` if it has none of the keys.

    Raises:
        UserError: A number or an annotation that means nothing, by its path.
    """
    found = list_written(pod, KEYS)
    if not found:
        return None
    warnings: list[str] = []
    shares: list[Share] = []
    for written in found:
        place = written.place
        if place.kind == "initContainers":
            warnings.append(f"{place.path}: Volcano gives init containers no card; none is given")
            continue
        share = _read_share(written, admission, warnings)
        if share is not None:
            shares.append(share)
    placement = Placement()
    if shares:
        annotations = pod.metadata.annotations or {}
        if _PODGROUP_POLICY in annotations:
            warnings.append(f"{locate(_PODGROUP_POLICY)}: is Volcano's own and has no effect")
        if _is_divided(annotations):
            parts = tuple(list_selectors(annotations, _PART_LISTS))
            shares = [take_part(pod, share, parts, mode=_MODE, memory=_MEMORY) for share in shares]
        else:
            placement = Placement(selectors=tuple(list_selectors(annotations, _CARD_LISTS)))
    return PodRequest(
        shares=tuple(shares),
        uses={share.container: share.container for share in shares},
        original=keep_written(found),
        keys=KEYS,
        warnings=tuple(warnings),
        placement=placement,
    )


def _read_share(
    written: Written, admission: AdmissionSettings, warnings: list[str]
) -> Share | None:
    place = written.place
    limits = Written(place, {"limits": written.lists.get("limits", {})})
    number = limits.read(_NUMBER)
    memory = read_mib(limits, _MEMORY, admission.volcano.gpu_memory_factor)
    percentage, cores = limits.read(_PERCENTAGE), limits.read(_CORES)
    if number is None and memory is None:
        warnings.append(f'{place.path}: without "{_NUMBER}" in limits no card is given')
        return None
    cards = 1 if number is None else number.value
    if cards == 0:
        return None
    _check(number, MOST_CARDS)
    _check(percentage, _WHOLE_PERCENT)
    _check(cores, WHOLE_CORES_PERCENT)
    mib, percent = memory.value if memory is not None else 0, 0
    if percentage is not None and percentage.value:
        if mib:
            warnings.append(
                f"{percentage.field}: {percentage.value} % contradicts {mib} MiB in "
                f'"{_MEMORY}"; the percentage decides'
            )
        mib, percent = 0, percentage.value % _WHOLE_PERCENT
    cores_percent = cores.value if cores is not None else 0
    return Share(
        container=place.container.name,
        cards=cards,
        memory_mib=mib or None,
        memory_percent=percent or None,
        cores_percent=cores_percent,
        exclusive=cores_percent == WHOLE_CORES_PERCENT,
        enforcement=Enforcement(
            core_policy=read_core_policy(place, admission.nvidia.gpu_core_policy, warnings),
            control=read_control(place, warnings),
        ),
    )


def _check(number: Number | None, most: int) -> None:
    if number is not None and number.value > most:
        raise UserError(f"is {number.value}; the most is {most}", field=number.field)


def _is_divided(annotations: dict[str, str]) -> bool:
    """Return whether a pod wants parts of cards, and no shares."""
    mode = annotations.get(_MODE, "")
    if mode not in {"", _OUR_MODE, MIG_MODE}:
        raise UserError(
            f"is {mode[:63]!r}, but cards here are shared ({_OUR_MODE!r}) or divided "
            f"({MIG_MODE!r}); write one of them, or remove the annotation",
            field=locate(_MODE),
        )
    return mode == MIG_MODE
