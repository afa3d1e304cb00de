"""Compares what the driver says that processes use with what their claims were granted.

libvgpu runs inside the tenant's process and can be got around (docs/limits.md). This sees it from
outside, after the fact: it reports, and ends pods only where an operator has asked for that.
Of several instances on a node only the one that leads does.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from hami_dra.contract.errors import HamiDraError
from hami_dra.gpu.processes import CardProcess, ProcessSource
from hami_dra.kube import Api
from hami_dra.kube.eviction import evict_pod
from hami_dra.kube.podevents import PodEvents
from hami_dra.kubeletplugin.publisher import always_lead
from hami_dra.policy.audit import Auditor, Excess, HeldClaim, Pod, ProcessUse

_log = structlog.get_logger(__name__)

REASON: Final = "GpuMemoryExceeded"
_NOTHING: Final[Mapping[str, int]] = {}


@dataclass(frozen=True, slots=True)
class AuditStatistics:
    """What was seen.

    Attributes:
        readings: How often the processes were listed.
        failures: How often they could not be.
        violations: Times that pods began to use more than granted, by namespace, pod and card.
        excesses: Those that do at the last reading.
        unclaimed_mib: By card, what pods without a claim on it use.
        evictions: Pods that were asked to end.
    """

    readings: int
    failures: int
    violations: Mapping[tuple[str, str, str], int]
    excesses: Sequence[Excess]
    unclaimed_mib: Mapping[str, int]
    evictions: int


class EnforcementAudit:
    """Reads and judges again and again.

    Args:
        source: Lists processes on cards.
        held: Returns the claims that are prepared here, with their pods.
        events: Tells the pods' authors.
        api: Needs create on pods/eviction if `evict`, else nothing.
        interval_seconds: Between two readings; a pod is reported after the second one.
        context_mib: What each process may have beside its grant: the driver's own memory.
        evict: Whether pods that use more are asked to end.
        leads: Whether this instance is to read; asked before every reading.
    """

    def __init__(
        self,
        source: ProcessSource,
        held: Callable[[], Sequence[HeldClaim]],
        *,
        events: PodEvents,
        api: Api,
        interval_seconds: float,
        context_mib: int,
        evict: bool,
        leads: Callable[[], Awaitable[bool]] = always_lead,
    ) -> None:
        self._source = source
        self._held = held
        self._events = events
        self._api = api
        self._interval_seconds = interval_seconds
        self._evict = evict
        self._leads = leads
        self._context_mib = context_mib
        self._auditor = Auditor(context_mib=context_mib)
        self._readings = self._failures = self._evictions = 0
        self._violations: dict[tuple[str, str, str], int] = {}
        self._excesses: tuple[Excess, ...] = ()
        self._unclaimed_mib: Mapping[str, int] = _NOTHING
        self._blind = False

    def statistics(self) -> AuditStatistics:
        """Return what was seen."""
        return AuditStatistics(
            readings=self._readings,
            failures=self._failures,
            violations=dict(self._violations),
            excesses=self._excesses,
            unclaimed_mib=self._unclaimed_mib,
            evictions=self._evictions,
        )

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._interval_seconds)

    async def look(self) -> None:
        """Read once, and report what is new. Never raises for what is outside."""
        if not await self._leads():
            self._forget_readings()
            # What is seen from here on is another beginning: the other one saw the time between.
            self._auditor = Auditor(context_mib=self._context_mib)
            return
        held = self._held()
        if not held:
            self._forget_readings()
            return  # without claims there is nothing to compare, and NVML may sleep
        try:
            processes = await self._source.list_processes()
        except HamiDraError as error:
            self._failures += 1
            if not self._blind:
                _log.warning("audit.blind", error=str(error))
            self._blind = True
            return
        self._blind = False
        self._readings += 1
        judgement = self._auditor.judge(held, [_describe(process) for process in processes])
        self._excesses = judgement.excesses
        self._unclaimed_mib = judgement.unclaimed_mib
        self._forget({pod for claim in held for pod in claim.pods})
        for excess in judgement.begun:
            await self._report(excess, processes)
        if self._evict:
            for excess in judgement.excesses:
                await self._end(excess.pods[0])

    def _forget_readings(self) -> None:
        self._excesses, self._unclaimed_mib, self._violations = (), _NOTHING, {}

    async def _report(self, excess: Excess, processes: Sequence[CardProcess]) -> None:
        pod = excess.pods[0]
        key = pod.namespace, pod.name, excess.uuid
        self._violations[key] = self._violations.get(key, 0) + 1
        mine = [
            process
            for process in processes
            if process.uuid == excess.uuid
            and process.place is not None
            and process.place.pod_uid == pod.uid
        ]
        _log.warning(
            "audit.exceeded",
            pod=f"{pod.namespace}/{pod.name}",
            claims=excess.claims,
            uuid=excess.uuid,
            used_mib=excess.used_mib,
            granted_mib=excess.granted_mib,
            allowance_mib=excess.allowance_mib,
            processes={process.pid: process.used_mib for process in mine},
            containers=sorted({p.place.container_id for p in mine if p.place is not None}),
        )
        note = (
            f"uses {excess.used_mib} MiB of card {excess.uuid} by the driver's count, but "
            f"{', '.join(excess.claims)} grants {excess.granted_mib} MiB, and "
            f"{excess.allowance_mib} MiB are let pass for contexts; a program goes around libvgpu"
        )
        await self._events.warn(pod, reason=REASON, action="Audit", note=note)

    async def _end(self, pod: Pod) -> None:
        try:
            if await evict_pod(self._api, pod):
                self._evictions += 1
                _log.warning("audit.evicted", pod=f"{pod.namespace}/{pod.name}", uid=pod.uid)
        except HamiDraError as error:
            _log.warning("audit.not_evicted", pod=f"{pod.namespace}/{pod.name}", error=str(error))

    def _forget(self, living: set[Pod]) -> None:
        """Keep no counter of a pod that has left: names would pile up."""
        names = {(pod.namespace, pod.name) for pod in living}
        self._violations = {
            key: count for key, count in self._violations.items() if key[:2] in names
        }


def _describe(process: CardProcess) -> ProcessUse:
    return ProcessUse(
        uuid=process.uuid,
        pid=process.pid,
        used_mib=process.used_mib,
        pod_uid=process.place.pod_uid if process.place is not None else None,
    )
