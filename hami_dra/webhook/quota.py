"""Counts what is admitted, in the status of the namespace's ResourceQuotas.

Whoever writes first wins; the others look again and decide anew, in this process or another. All
that waits for one namespace at a time is written together, so that a burst costs a few writes.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from hami_dra.contract.errors import HamiDraError, RetryError, UserError
from hami_dra.contract.settings import NvidiaSettings
from hami_dra.kube import Api, ApiError, ConflictError, Informer, NotFoundError
from hami_dra.kube.objects import QUOTAS
from hami_dra.policy.charge import Charge
from hami_dra.policy.quota import Quota, admit, build_patch, list_quota_keys, read_quota
from hami_dra.service.clock import Clock
from hami_dra.webhook.metrics import WebhookMetrics

_log = structlog.get_logger(__name__)

_COUNTED_SECONDS: Final = 5.0
"""A quota that was just made is counted within a moment; a review may wait for that."""


@dataclass(slots=True, eq=False)
class _Waiter:
    """An admission that waits for its turn."""

    wanted: Mapping[str, Charge]
    settled: bool = False
    error: HamiDraError | None = None


@dataclass(slots=True)
class _Queue:
    """The admissions of one namespace; one of them at a time settles for all that wait."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: list[_Waiter] = field(default_factory=list)


class QuotaLedger:
    """The quotas of all namespaces, as far as they limit GPUs."""

    def __init__(
        self, api: Api, clock: Clock, metrics: WebhookMetrics, settings: NvidiaSettings
    ) -> None:
        self._api = api
        self._clock = clock
        self._metrics = metrics
        self._keys = list_quota_keys(settings)
        self._informer = Informer(api, QUOTAS, keep=self._keep, handler=self._hear)
        self._quotas: dict[str, dict[str, Quota]] = {}
        self._queues: dict[str, _Queue] = {}
        self._moved = asyncio.Event()

    async def run(self) -> None:
        """Follow the quotas until cancelled."""
        await self._informer.run()

    def limits(self, namespace: str) -> bool:
        """Whether a namespace limits GPUs; also while that is not known yet."""
        return namespace in self._quotas or not self._informer.synced.is_set()

    async def wait_synced(self) -> None:
        """Return once the quotas have been read."""
        await self._informer.synced.wait()

    async def charge(
        self, namespace: str, wanted: Mapping[str, Charge], *, dry_run: bool = False
    ) -> None:
        """Count what is wanted in every quota of the namespace. Idempotent for each key.

        Cancelling may leave it counted; the reservation then ends by its time.

        Args:
            namespace: Of the pod or claim.
            wanted: See `admit`.
            dry_run: Only look whether there is room.

        Raises:
            UserError: There is no room in some quota.
            RetryError: It cannot be told now.
        """
        await self._informer.synced.wait()
        if not self.limits(namespace):
            return
        try:
            await self._wait_counted(namespace)
            if dry_run:
                self._check(namespace, _Waiter(wanted))
                return
            await self._settle(namespace, _Waiter(wanted))
        except (UserError, RetryError) as error:
            exceeded = isinstance(error, UserError)
            self._metrics.charges.labels("exceeded" if exceeded else "postponed").inc()
            raise
        self._metrics.charges.labels("counted").inc()

    async def _wait_counted(self, namespace: str) -> None:
        """Return once there is a count, or after a few seconds: `admit` then tells why not."""
        try:
            async with asyncio.timeout(_COUNTED_SECONDS):
                while not all(quota.counted for quota in self._list(namespace)):
                    await self._moved.wait()
        except TimeoutError:
            return

    async def _settle(self, namespace: str, waiter: _Waiter) -> None:
        queue = self._queues.setdefault(namespace, _Queue())
        queue.waiting.append(waiter)
        try:
            async with queue.lock:
                if not waiter.settled:
                    await self._settle_all(namespace, queue, waiter)
        finally:
            if waiter in queue.waiting:  # cancelled
                queue.waiting.remove(waiter)
            if not queue.waiting and not queue.lock.locked():
                self._queues.pop(namespace, None)
        if waiter.error is not None:
            raise waiter.error

    async def _settle_all(self, namespace: str, queue: _Queue, leader: _Waiter) -> None:
        batch, queue.waiting = queue.waiting, []
        try:
            # Nothing is written for one that any quota refuses.
            for waiter in batch:
                self._try(namespace, waiter)
            for quota in self._list(namespace):
                await self._write(quota, [each for each in batch if each.error is None])
            for waiter in batch:
                waiter.settled = True
        except ApiError as error:
            for waiter in batch:
                waiter.settled = True
                waiter.error = RetryError(f"cannot count for the namespace's quota: {error}")
        finally:
            # If this review was cancelled, the next one in line goes on.
            queue.waiting[:0] = [each for each in batch if not each.settled and each is not leader]

    def _try(self, namespace: str, waiter: _Waiter) -> None:
        try:
            self._check(namespace, waiter)
        except (UserError, RetryError) as error:
            waiter.error = error

    def _check(self, namespace: str, waiter: _Waiter) -> None:
        now = self._clock.wall()
        for quota in self._list(namespace):
            admit(quota, waiter.wanted, keys=self._keys, now=now)

    async def _write(self, quota: Quota, batch: list[_Waiter]) -> None:
        """Count a batch in one quota; those that are refused have their error afterwards.

        Raises:
            ApiError: It cannot be written.
        """
        known: Quota | None = quota
        while known is not None:
            changed = self._admit_all(known, batch)
            if changed is known:
                return
            try:
                body = await self._api.patch(
                    QUOTAS,
                    quota.name,
                    build_patch(changed, self._keys),
                    namespace=quota.namespace,
                    subresource="status",
                )
            except ConflictError:
                self._metrics.quota_writes.labels("conflict").inc()
                known = await self._read(quota)
            except NotFoundError:
                return  # what was removed limits nobody
            except ApiError:
                self._metrics.quota_writes.labels("failed").inc()
                raise
            else:
                self._metrics.quota_writes.labels("written").inc()
                self._note(body)
                return

    def _admit_all(self, quota: Quota, batch: list[_Waiter]) -> Quota:
        now = self._clock.wall()
        for waiter in batch:
            waiter.error = None
            try:
                quota = admit(quota, waiter.wanted, keys=self._keys, now=now)
            except (UserError, RetryError) as error:
                waiter.error = error
        return quota

    async def _read(self, quota: Quota) -> Quota | None:
        try:
            body = await self._api.get(QUOTAS, quota.name, namespace=quota.namespace)
        except NotFoundError:
            return None
        self._note(body)
        return read_quota(body, self._keys)

    def _list(self, namespace: str) -> list[Quota]:
        """Return the quotas as last known, always in the same order."""
        return [quota for _, quota in sorted(self._quotas.get(namespace, {}).items())]

    def _note(self, body: Mapping[str, Any]) -> None:
        """Remember a quota; what a write returned is shown by the watch only later."""
        quota = read_quota(body, self._keys)
        if quota is None or (quota.namespace, quota.name) not in self._informer.store:
            return  # an answer that came after the news of its deletion
        known = self._quotas.setdefault(quota.namespace, {}).get(quota.name)
        # Versions of one resource can be compared (KEP-5504).
        if known is None or int(known.version) < int(quota.version):
            self._quotas[quota.namespace][quota.name] = quota

    def _keep(self, body: dict[str, Any]) -> dict[str, Any] | None:
        return body if read_quota(body, self._keys) is not None else None

    def _hear(self, event: str, body: dict[str, Any]) -> None:
        if event == "DELETED":
            metadata = body["metadata"]
            namespace = str(metadata.get("namespace", ""))
            self._quotas.get(namespace, {}).pop(str(metadata["name"]), None)
            if not self._quotas.get(namespace):
                self._quotas.pop(namespace, None)
        else:
            self._note(body)
        self._moved.set()
        self._moved = asyncio.Event()
