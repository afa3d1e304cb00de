"""Counts anew, from the claims that exist, what the webhook counted at admission.

What is deleted, or allocated less than it might have taken, makes room again within a moment. The
webhook and this process write the same count, each under the condition that nobody was faster.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final

import structlog

from hami_dra.contract.names import POD_CLAIM_NAME
from hami_dra.contract.settings import NvidiaSettings
from hami_dra.controller.metrics import ControllerMetrics
from hami_dra.kube import Api, ApiError, ConflictError, Informer, NotFoundError
from hami_dra.kube.inventory import Inventory
from hami_dra.kube.objects import CLAIMS, QUOTAS
from hami_dra.policy.charge import ClaimUse, Takes, name_pod_claim, read_claim
from hami_dra.policy.collection import Key, PodUse
from hami_dra.policy.fit import list_sizes
from hami_dra.policy.quota import (
    RESERVED_SECONDS,
    PodStates,
    Quota,
    build_patch,
    due_at,
    has_expired,
    is_overdue,
    is_scoped,
    list_quota_keys,
    name_claims,
    read_quota,
    recount,
)
from hami_dra.service.clock import Clock

_log = structlog.get_logger(__name__)

_PAUSE_SECONDS: Final = 0.2
"""Between two rounds, so that a burst of news is one recount, and admission seldom waits for it."""
_BACKOFF_SECONDS: Final = 2.0
_PARTING_SECONDS: Final = 1.0
"""How long after the end of a pod its claim may still be on its way: kube-controller-manager had
read the pod, and has yet to write."""


FindTakes = Callable[[Key], Takes | None]
"""What claims from a template of admission's may take, ``None`` if there is no such template."""


@dataclass(frozen=True, slots=True)
class _Parting:
    """A pod that has ended, and when its claim can no longer be on its way."""

    due_at: float
    namespace: str
    uid: str
    gone: bool


class QuotaCounter:
    """Keeps the count of every quota true, for as long as this process leads."""

    def __init__(
        self,
        api: Api,
        clock: Clock,
        metrics: ControllerMetrics,
        *,
        settings: NvidiaSettings,
        inventory: Inventory,
        templates: FindTakes,
    ) -> None:
        """Prepare; `run` starts.

        Args:
            api: Where everything is.
            clock: Ends reservations.
            metrics: Counts what is done.
            settings: The operator's, the same as the webhook's.
            inventory: Sizes of the published cards; somebody else runs it.
            templates: See `FindTakes`.
        """
        self._api = api
        self._clock = clock
        self._metrics = metrics
        self._keys = list_quota_keys(settings)
        self._inventory = inventory
        self._largest_mib: int | None = None
        self._quotas = Informer(api, QUOTAS, keep=self._keep_quota, handler=self._hear_quota)
        # Lists are consistent, so a new leader does not know less than the one before it, which has
        # ended reservations.
        self._claims = Informer(api, CLAIMS, keep=_keep_claim, handler=self._hear_claim)
        self._by_namespace: dict[str, dict[str, ClaimUse]] = {}
        self._templates = templates
        self._made: set[str] = set()
        self._waiting: dict[str, dict[str, str]] = {}
        self._parting: deque[_Parting] = deque()
        self._gone: dict[str, float] = {}
        self._dirty: set[str] = set()
        self._moved = asyncio.Event()
        self._needed = asyncio.Event()

    def note_pod(self, use: PodUse, *, gone: bool = False) -> None:
        """Hear what became of a pod with a claim from one of admission's templates.

        A pod counts until its claim is seen, and not only until it is said to have one: the two
        are watched apart.
        """
        if use.awaits and not gone:
            if _name_claim(use.uid) not in self._made:
                self._waiting.setdefault(use.namespace, {})[use.uid] = use.awaits
                self._mark(use.namespace)
        elif not self._needed.is_set() or _name_claim(use.uid) in self._made:
            self._drop(use.namespace, use.uid)
        if gone or (use.ended and use.uid in self._waiting.get(use.namespace, {})):
            due_at = self._clock.monotonic() + _PARTING_SECONDS
            self._parting.append(_Parting(due_at, use.namespace, use.uid, gone=gone))
            self._moved.set()

    def note_cards(self) -> None:
        """Hear that other cards are published."""
        sizes = list_sizes(self._inventory.nodes() or ())
        # While there is none, waiting claims count as before: what was admitted stays counted.
        largest_mib = sizes[-1] if sizes else self._largest_mib
        if largest_mib != self._largest_mib:
            self._largest_mib = largest_mib
            for namespace, _ in self._quotas.store:
                self._mark(namespace)

    async def run(self) -> None:
        """Watch and count until cancelled. Start it when pods are known.

        Claims are watched from the first quota on: a cluster without quotas pays for none.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._quotas.run(), name="watch-quotas")
            await self._needed.wait()
            group.create_task(self._claims.run(), name="watch-claims")
            await self._claims.synced.wait()
            await self._inventory.wait_synced()
            self.note_cards()
            _log.info("quota.started", quotas=len(self._quotas.store))
            while True:
                await self._wait_moved(await self.sweep())

    async def sweep(self) -> float | None:
        """Count where something has changed or ended; return after how many seconds to look again.

        Trouble with the API server leaves a namespace for the next time.
        """
        now = self._clock.wall()
        self._part()
        quotas = [item["quota"] for item in self._quotas.store.values()]
        self._metrics.quotas.set(len(quotas))
        overdue = {quota.namespace for quota in quotas if is_overdue(quota, now)}
        dirty, self._dirty = self._dirty | overdue, set()
        for quota in sorted(quotas, key=lambda quota: (quota.namespace, quota.name)):
            if quota.namespace in dirty:
                await self._count(quota)
        if self._dirty:
            return _BACKOFF_SECONDS
        times = [due_at(item["quota"], now) for item in self._quotas.store.values()]
        left = [time - now for time in times if time is not None]
        if self._parting:
            left.append(self._parting[0].due_at - self._clock.monotonic())
        return max(min(left), 0.0) if left else None

    async def _wait_moved(self, delay_seconds: float | None) -> None:
        try:
            async with asyncio.timeout(delay_seconds):
                await self._moved.wait()
        except TimeoutError:
            return
        await asyncio.sleep(_PAUSE_SECONDS)
        self._moved.clear()

    async def _count(self, quota: Quota) -> None:
        claims = [*self._by_namespace.get(quota.namespace, {}).values()]
        claims += self._list_waiting(quota.namespace)
        try:
            counted = self._recount(quota, claims)
            if has_expired(counted, self._clock.wall()):
                bodies, _ = await self._api.list(CLAIMS, namespace=quota.namespace)
                uses = [use for body in bodies if (use := read_claim(body)) is not None]
                counted = self._recount(quota, claims, name_claims(uses))
            if counted == quota:
                return
            await self._api.patch(
                QUOTAS,
                quota.name,
                build_patch(counted, self._keys),
                namespace=quota.namespace,
                subresource="status",
            )
        except NotFoundError:
            return
        except ConflictError:
            # The watch brings what somebody else wrote, most often before the next attempt.
            self._metrics.recounts.labels("conflict").inc()
            self._dirty.add(quota.namespace)
        except ApiError as error:
            self._metrics.recounts.labels("failed").inc()
            self._dirty.add(quota.namespace)
            _log.warning("quota.postponed", namespace=quota.namespace, error=str(error))
        else:
            self._metrics.recounts.labels("written").inc()

    def _recount(
        self,
        quota: Quota,
        claims: Collection[ClaimUse],
        listed: Collection[str] | None = None,
    ) -> Quota:
        return recount(
            quota,
            claims,
            PodStates(awaiting=self._waiting.get(quota.namespace, {}), gone=self._gone),
            keys=self._keys,
            now=self._clock.wall(),
            largest_mib=self._largest_mib,
            listed=listed,
        )

    def _part(self) -> None:
        """Let go of pods that have ended; forget those for which no reservation can be left."""
        now = self._clock.monotonic()
        while self._parting and self._parting[0].due_at <= now:
            parting = self._parting.popleft()
            self._drop(parting.namespace, parting.uid)
            if parting.gone:
                self._gone[parting.uid] = now
                self._dirty.add(parting.namespace)
        while self._gone and next(iter(self._gone.values())) < now - 2 * RESERVED_SECONDS:
            del self._gone[next(iter(self._gone))]

    def _list_waiting(self, namespace: str) -> Iterator[ClaimUse]:
        """Yield claims that have yet to be made; not those of which the template is missing."""
        for uid, template in self._waiting.get(namespace, {}).items():
            takes = self._templates((namespace, template))
            if takes is not None:
                yield ClaimUse(uid="", made_for=_name_claim(uid), takes=takes)

    def _drop(self, namespace: str, uid: str) -> None:
        pods = self._waiting.get(namespace, {})
        if pods.pop(uid, None) is not None:
            self._mark(namespace)
        if not pods:
            self._waiting.pop(namespace, None)

    def _mark(self, namespace: str) -> None:
        self._dirty.add(namespace)
        self._moved.set()

    def _keep_quota(self, body: dict[str, Any]) -> dict[str, Any] | None:
        quota = read_quota(body, self._keys)
        if quota is None:
            hard = (body.get("spec") or {}).get("hard") or {}
            if is_scoped(body) and any(name in hard for name in self._keys.names):
                _log.warning(
                    "quota.scoped",
                    namespace=body["metadata"].get("namespace"),
                    name=body["metadata"].get("name"),
                    error="a quota with scopes does not limit GPUs; write one without",
                )
            return None
        return {**_identify(body), "quota": quota}

    def _hear_quota(self, event: str, item: dict[str, Any]) -> None:
        if event != "DELETED":
            self._needed.set()
            self._mark(item["quota"].namespace)

    def _hear_claim(self, event: str, item: dict[str, Any]) -> None:
        metadata, use = item["metadata"], item["claim"]
        namespace, name = str(metadata.get("namespace", "")), str(metadata["name"])
        claims = self._by_namespace.setdefault(namespace, {})
        if event == "DELETED":
            claims.pop(name, None)
            self._made.discard(use.made_for)
            # It may have come and gone between two counts, which then never knew it.
            self._gone[use.uid] = self._clock.monotonic()
            if not claims:
                del self._by_namespace[namespace]
        else:
            claims[name] = use
            self._made.add(use.made_for)
            pod, _, entry = use.made_for.partition("/")
            if entry == POD_CLAIM_NAME:
                self._drop(namespace, pod)
        self._mark(namespace)


def _name_claim(pod_uid: str) -> str:
    return name_pod_claim(pod_uid, POD_CLAIM_NAME)


def _keep_claim(body: dict[str, Any]) -> dict[str, Any] | None:
    use = read_claim(body)
    return None if use is None else {**_identify(body), "claim": use}


def _identify(body: dict[str, Any]) -> dict[str, Any]:
    """Return what an informer needs of an object."""
    metadata = body["metadata"]
    names = ("namespace", "name", "resourceVersion")
    return {"metadata": {name: metadata[name] for name in names if name in metadata}}
