"""One leader among several processes, by a coordination.k8s.io/v1 Lease.

The rules of client-go's leaderelection. Nobody's wall clock is compared with another's: a candidate
counts on its own monotonic clock how long the Lease has not changed, and the leader gives up,
by the same kind of clock, before any candidate can think it dead.
"""

import asyncio
import datetime as dt
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import structlog

from hami_dra.contract.errors import FatalError
from hami_dra.kube.errors import ApiError, ConflictError, NotFoundError
from hami_dra.kube.objects import LEASES, Api
from hami_dra.service.clock import Clock

_log = structlog.get_logger(__name__)

_RELEASE_SECONDS: Final = 2.0
"""Releasing is a courtesy: without it the next leader waits for the expiry."""

Work = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True, kw_only=True)
class LeaseTiming:
    """How fast a leader is replaced. The defaults are those of Kubernetes' own components.

    Attributes:
        duration_seconds: A Lease that did not change for so long is free.
        deadline_seconds: A leader that could not renew for so long stops its work. The difference
            to the duration is the time that the work has to end.
        retry_seconds: Between two looks at the Lease, up to a fifth more.
    """

    duration_seconds: int = 15
    deadline_seconds: float = 10.0
    retry_seconds: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.retry_seconds < self.deadline_seconds < self.duration_seconds:
            raise ValueError(f"need 0 < retry < deadline < duration, not {self}")


_DEFAULT_TIMING: Final = LeaseTiming()


class LeaderLease:
    """A candidate for one Lease.

    Attributes:
        leading: Whether this process holds the Lease, as far as it knows.
    """

    def __init__(
        self,
        api: Api,
        *,
        namespace: str,
        name: str,
        identity: str,
        clock: Clock,
        timing: LeaseTiming = _DEFAULT_TIMING,
        on_change: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """Prepare; `run` takes part.

        Args:
            api: Where the Lease is.
            namespace: Of the Lease.
            name: Of the Lease; made if it does not exist.
            identity: Of this candidate, different in every process.
            clock: Measures how long the Lease has not changed.
            timing: See `LeaseTiming`.
            on_change: Hears whether this process leads.
        """
        self.leading = False
        self._api = api
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._clock = clock
        self._timing = timing
        self._on_change = on_change
        self._seen_version = ""
        self._seen_at = 0.0
        self._held: dict[str, Any] = {}
        self._renewed_at = 0.0

    async def run(self, work: Work) -> None:
        """Do the work whenever this process leads; cancel it as soon as it no longer does.

        The work must end soon after it is cancelled. Cancelling `run` ends it, then releases the
        Lease, so that the next candidate need not wait for the expiry.

        Raises:
            FatalError: The work returned, though it should run for as long as it may.
            Exception: Whatever the work raised; the Lease is released.
        """
        while True:
            await self._acquire()
            self._change(leading=True)
            try:
                await self._lead(work)
            finally:
                self._change(leading=False)

    async def _acquire(self) -> None:
        reported = ""
        while True:
            try:
                async with asyncio.timeout(self._timing.deadline_seconds):
                    if await self._try():
                        return
                reported = ""
            except (ApiError, TimeoutError) as error:
                text = str(error) or "no answer in time"
                if text != reported:
                    reported = text
                    _log.warning("lease.unavailable", lease=self._name, error=reported)
            await self._pause()

    async def _try(self) -> bool:
        """Take the Lease if it is free; whether this process now holds it."""
        started = asyncio.get_running_loop().time()
        try:
            found = await self._api.get(LEASES, self._name, namespace=self._namespace)
        except NotFoundError:
            found = None
        if found is not None and not self._is_free(found):
            return False
        try:
            if found is None:
                body = self._write({"metadata": {"name": self._name}}, self._identity)
                self._held = await self._api.create(LEASES, body, namespace=self._namespace)
            else:
                body = self._write(found, self._identity)
                self._held = await self._replace(body)
        except ConflictError:
            return False  # somebody was faster
        self._renewed_at = started
        return True

    def _is_free(self, lease: dict[str, Any]) -> bool:
        """Whether the Lease has no holder, is our own, or has not changed for its duration."""
        spec = lease.get("spec") or {}
        version = str(lease["metadata"].get("resourceVersion", ""))
        if version != self._seen_version:
            self._seen_version = version
            self._seen_at = self._clock.monotonic()
        if spec.get("holderIdentity") in {None, "", self._identity}:
            return True
        duration = spec.get("leaseDurationSeconds") or self._timing.duration_seconds
        return self._clock.monotonic() - self._seen_at >= float(duration)

    async def _lead(self, work: Work) -> None:
        working = asyncio.create_task(work(), name=f"leader-of-{self._name}")
        renewing = asyncio.create_task(self._renew(), name=f"lease-{self._name}")
        tasks = (working, renewing)
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            # Not gather: that would take a second cancellation for the end of the work.
            await asyncio.wait(tasks)
            if not renewing.cancelled() and renewing.exception() is None:
                _log.warning("lease.lost", lease=self._name, reason=renewing.result())
            else:
                await self._release()
        for task in tasks:
            if not task.cancelled():
                task.result()
        if working in done:
            raise FatalError(f"the work of the leader of {self._name!r} returned")

    async def _renew(self) -> str:
        """Renew until that is impossible; return why."""
        while True:
            await self._pause()
            try:
                async with asyncio.timeout_at(self._renewed_at + self._timing.deadline_seconds):
                    await self._renew_once()
            except TimeoutError:
                return f"not renewed within {self._timing.deadline_seconds:g} s"
            except _TakenError as error:
                return str(error)

    async def _renew_once(self) -> None:
        """Renew, trying again until it works.

        Raises:
            _TakenError: Somebody else holds the Lease, or it was deleted.
        """
        while True:
            started = asyncio.get_running_loop().time()
            try:
                self._held = await self._replace(self._write(self._held, self._identity))
            except (ConflictError, NotFoundError):
                await self._look()
            except ApiError as error:
                _log.warning("lease.retry", lease=self._name, error=str(error))
                await self._pause()
            else:
                self._renewed_at = started
                return

    async def _look(self) -> None:
        """Read the Lease anew: an answer may have been lost, or somebody wrote a label."""
        try:
            found = await self._api.get(LEASES, self._name, namespace=self._namespace)
        except NotFoundError:
            raise _TakenError("the Lease was deleted") from None
        except ApiError as error:
            _log.warning("lease.retry", lease=self._name, error=str(error))
            await self._pause()
            return
        holder = (found.get("spec") or {}).get("holderIdentity")
        if holder != self._identity:
            raise _TakenError(f"the Lease is held by {holder!r}")
        self._held = found

    async def _release(self) -> None:
        # An error here costs the next leader the wait for the expiry, and nothing else.
        with suppress(ApiError, TimeoutError):
            async with asyncio.timeout(_RELEASE_SECONDS):
                await self._replace(self._write(self._held, ""))
                _log.info("lease.released", lease=self._name)

    async def _replace(self, body: dict[str, Any]) -> dict[str, Any]:
        return await self._api.replace(LEASES, self._name, body, namespace=self._namespace)

    def _write(self, lease: dict[str, Any], holder: str) -> dict[str, Any]:
        """Return the Lease as held by a candidate from now on."""
        spec = dict(lease.get("spec") or {})
        now = _format_micro_time(self._clock.wall())
        if spec.get("holderIdentity") != holder and holder:
            spec["acquireTime"] = now
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + ("spec" in lease)
        spec |= {
            "holderIdentity": holder,
            "leaseDurationSeconds": self._timing.duration_seconds if holder else 1,
            "renewTime": now,
        }
        return {**lease, "apiVersion": LEASES.api_version, "kind": LEASES.kind, "spec": spec}

    async def _pause(self) -> None:
        # Jitter keeps the candidates from asking in step.
        await asyncio.sleep(self._timing.retry_seconds * random.uniform(1.0, 1.2))  # noqa: S311

    def _change(self, *, leading: bool) -> None:
        self.leading = leading
        _log.info("lease.leading" if leading else "lease.following", lease=self._name)
        self._on_change(leading)


class _TakenError(Exception):
    """The Lease is not ours any more."""


def _format_micro_time(epoch_seconds: float) -> str:
    """Write a time as meta/v1 MicroTime."""
    moment = dt.datetime.fromtimestamp(epoch_seconds, tz=dt.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
