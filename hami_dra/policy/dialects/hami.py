"""HAMi: ``nvidia.com/gpu``, ``gpumem``, ``gpumem-percentage`` and ``gpucores`` on containers.

Meaning, case by case: HAMi v2.10 ``pkg/device/nvidia/device.go`` (MutateAdmission,
GenerateResourceRequests, defaultExclusiveCoreIfNeeded). Where HAMi drops a wrong number and lets
the pod run without a limit, we deny it. The names of the keys, and what holds where they are
silent, are the operator's (`NvidiaSettings`).
"""

from dataclasses import replace
from typing import Final

from hami_dra.contract.errors import UserError
from hami_dra.contract.names import ANNOTATION_MODE
from hami_dra.contract.settings import AdmissionSettings, NvidiaSettings
from hami_dra.policy.dialects.hami_annotations import read_wishes
from hami_dra.policy.dialects.hami_env import read_control, read_core_policy, read_oversubscription
from hami_dra.policy.dialects.mib import read_mib
from hami_dra.policy.dialects.parts import take_part
from hami_dra.policy.podview import Place, PodView
from hami_dra.policy.request import (
    MOST_CARDS,
    WHOLE_CORES_PERCENT,
    Enforcement,
    Placement,
    PodRequest,
    Share,
    place_shares,
)
from hami_dra.policy.written import Number, Written, keep_written, list_written

_MOST_PRIORITY: Final = 2**31 - 1
_WHOLE_PERCENT: Final = 100


def list_keys(admission: AdmissionSettings) -> tuple[str, ...]:
    """Return the resources that this dialect reads."""
    return admission.nvidia.keys


def read_pod(pod: PodView, admission: AdmissionSettings) -> PodRequest | None:
    """Read what a pod asks for; ``None`` if it has none of the keys.

    Raises:
        UserError: A number that means nothing, or an annotation that cannot be fulfilled, by its
            path.
    """
    settings = admission.nvidia
    found = list_written(pod, settings.keys)
    if not found:
        return None
    warnings: list[str] = []
    beside: list[Share] = []
    before: list[Share] = []
    for written in found:
        place = written.place
        share = _Reader(written, settings, warnings).read_share()
        if share is not None:
            (beside if place.runs_beside_others else before).append(share)
    placement = Placement()
    if beside or before:
        annotations = pod.metadata.annotations or {}
        wishes = read_wishes(annotations, admission.default_scheduler_policy)
        warnings += wishes.warnings
        placement = wishes.placement
        parts = wishes.parts
        if parts is not None:
            beside, before = (
                [
                    take_part(pod, share, parts, mode=ANNOTATION_MODE, memory="gpumem")
                    for share in shares
                ]
                for shares in (beside, before)
            )
        elif wishes.alone:
            beside, before = (
                [replace(share, exclusive=True) for share in shares] for shares in (beside, before)
            )
    shares, uses = place_shares(beside, before)
    return PodRequest(
        shares=shares,
        uses=uses,
        original=keep_written(found),
        keys=settings.keys,
        warnings=tuple(warnings),
        placement=placement,
    )


class _Reader:
    """Reads one container; what it should be told goes to the warnings."""

    def __init__(self, written: Written, settings: NvidiaSettings, warnings: list[str]) -> None:
        self._written = written
        self._settings = settings
        self._warnings = warnings
        self._place: Place = written.place

    def read_share(self) -> Share | None:
        """Return what the container wants, ``None`` for no card."""
        settings = self._settings
        memory = read_mib(self._written, settings.resource_memory_name, settings.memory_factor)
        percentage = self._read_percentage()
        cores = self._read_cores()
        said = [number for number in (memory, percentage, cores) if number is not None]
        cards = self._count_cards(said)
        if cards == 0:
            return None
        # HAMi's rule looks at whether a key is there, not at its value: 0 turns it off too.
        if cores is None:
            whole = percentage is not None and percentage.value == _WHOLE_PERCENT
            alone = percentage is None and memory is None
            cores_percent = WHOLE_CORES_PERCENT if whole or alone else settings.default_cores
        else:
            cores_percent = cores.value
        mib, percent = self._choose_memory(memory, percentage)
        return Share(
            container=self._place.container.name,
            cards=cards,
            memory_mib=mib,
            memory_percent=percent,
            cores_percent=cores_percent,
            exclusive=cores_percent == WHOLE_CORES_PERCENT,
            enforcement=Enforcement(
                priority=self._read_priority(),
                core_policy=read_core_policy(self._place, settings.gpu_core_policy, self._warnings),
                control=read_control(self._place, self._warnings),
                oversubscription=read_oversubscription(self._place, self._warnings),
            ),
        )

    def _count_cards(self, said: list[Number]) -> int:
        cards = self._written.read(self._settings.resource_count_name)
        if cards is None:
            return self._settings.default_gpu_num if said else 0
        if cards.value > MOST_CARDS:
            raise UserError(
                f"asks for {cards.value} cards; a claim holds at most {MOST_CARDS}",
                field=cards.field,
            )
        return cards.value

    def _read_priority(self) -> int | None:
        key = self._settings.resource_priority_name
        # HAMi looks at limits only.
        limits = self._written.lists.get("limits", {})
        priority = Written(self._place, {"limits": limits}).read(key)
        if priority is None:
            return None
        if priority.value > _MOST_PRIORITY:
            raise UserError(
                f"is {priority.value}; write a number from 0 (first) to {_MOST_PRIORITY}",
                field=priority.field,
            )
        return priority.value

    def _read_cores(self) -> Number | None:
        cores = self._written.read(self._settings.resource_core_name)
        if cores is None or cores.value <= WHOLE_CORES_PERCENT:
            return cores
        self._warnings.append(
            f"{cores.field}: {cores.value} is more than a whole card; "
            f"taken as {WHOLE_CORES_PERCENT}"
        )
        return Number(WHOLE_CORES_PERCENT, cores.field)

    def _read_percentage(self) -> Number | None:
        number = self._written.read(self._settings.resource_memory_percentage_name)
        if number is not None and number.value > _WHOLE_PERCENT:
            raise UserError(
                f"is {number.value}; write a whole number from 0 to {_WHOLE_PERCENT}",
                field=number.field,
            )
        return number

    def _choose_memory(
        self, memory: Number | None, percentage: Number | None
    ) -> tuple[int | None, int | None]:
        """Return MiB or percent, the other ``None``; both ``None`` for all that the card has."""
        if memory is not None and memory.value > 0:
            if percentage is not None and percentage.value > 0:
                self._warnings.append(
                    f"{percentage.field}: {percentage.value} % contradicts {memory.value} MiB in "
                    f'"{self._settings.resource_memory_name}", which decides; write one of them'
                )
            return memory.value, None
        if percentage is not None and percentage.value > 0:
            whole = percentage.value == _WHOLE_PERCENT
            return None, None if whole else percentage.value
        return self._settings.default_memory or None, None
