"""Follows the claims that are prepared here: their wish for other limits, their pods, their status.

The node reads each of its own claims by name every few seconds. A watch would need the right to
list every claim of the cluster, and would bring every node the changes of all; the read needs the
right that Prepare has already, and is answered from the API server's memory
(docs/decisions/0023-claims-on-a-node.md).

Of several instances on a node only the one that leads looks: two versions would write their own
status in turn.
"""

import asyncio
import datetime as dt
import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Final

import structlog

from hami_dra.contract.errors import HamiDraError
from hami_dra.kube import Api, NotFoundError
from hami_dra.kube.objects import CLAIMS
from hami_dra.kubeletplugin.locks import ClaimLocks
from hami_dra.kubeletplugin.publisher import always_lead
from hami_dra.kubeletplugin.service import ClaimHandler, ClaimRef, PreparedDevice
from hami_dra.node.ledger import Ledger
from hami_dra.node.preparer import Preparer
from hami_dra.policy.audit import HeldClaim, read_pods
from hami_dra.policy.claimstatus import Situation, describe_devices, is_current, own_entries
from hami_dra.policy.driverlimits import DriverHold
from hami_dra.policy.limits import Settled, keep_limits, read_wish
from hami_dra.service.clock import Clock

_log = structlog.get_logger(__name__)

_AT_ONCE: Final = 4
"""Claims looked at together: a node that starts must not flood the API server."""
_BACKOFF_SECONDS: Final = (1.0, 60.0)
_SETTLE_SECONDS: Final = 0.5
"""After Prepare: kubelet's calls come in bursts, and none of them should wait for us."""
_LONGEST_BURST_SECONDS: Final = 3.0
"""So long claims wait for calls to end, and then are looked at between them."""
_LOOKS: Final = 4
"""Every so many a claim is gone through although nothing about it is new: cards change as well."""
_TURNS: Final = 5
"""In how many turns all claims are looked at: one after the other they would cost twice as much,
since each would wake the process."""
_UNDER_WAY: Final = -2
"""In place of the version at which nothing was left to do."""
_WRITTEN: Final = frozenset({"resourceVersion", "managedFields"})
_SEEN_INTERVALS: Final = 2.0
"""How long a claim counts as being there after it was read."""


@dataclass(frozen=True, slots=True)
class WatchStatistics:
    """What was done since the start."""

    claims: int
    writes: int
    changes: int
    errors: int


@dataclass(slots=True)
class _Followed:
    """One claim: when to look again, and what was seen.

    Attributes:
        due: When to look again.
        failures: Since it was last seen.
        version: The newest that was seen.
        done: The version at which nothing was left to do; less than 0 if there may be something.
        looks: How often it was looked at since.
        fresh: Whether it was not gone through in the life of this process.
        seen: When the API server last had it; ``None`` if it did not, the last time.
        held: What the audit has to know of it.
    """

    due: float
    failures: int = 0
    version: int = 0
    done: int = -1
    looks: int = 0
    fresh: bool = True
    seen: float | None = None
    held: HeldClaim | None = None


class ClaimWatch:
    """Looks at every prepared claim again and again.

    Args:
        api: Needs get on resourceclaims, patch on resourceclaims/status, and
            associated-node:patch on resourceclaims/driver for our driver.
        ledger: What is prepared.
        preparer: Understands claims and changes limits.
        locks: Shared with the service.
        clock: Dates conditions.
        interval_seconds: How often each claim is looked at.
        leads: Whether this instance is to look. Call `refresh` when the answer changes.
        on_missing: Called when the API server has a claim no more, or seems to.
        driver_holds: Returns what the driver itself holds of a claim, by card; see `Situation`.
            ``None``: not known yet, `look_again` is called when it is.
        on_held: Called when `held` returns something else than before.
    """

    def __init__(
        self,
        *,
        api: Api,
        ledger: Ledger,
        preparer: Preparer,
        locks: ClaimLocks,
        clock: Clock,
        interval_seconds: float,
        leads: Callable[[], Awaitable[bool]] = always_lead,
        on_missing: Callable[[], None] = lambda: None,
        driver_holds: Callable[[str], Mapping[str, DriverHold] | None] = lambda _: {},
        on_held: Callable[[], None] = lambda: None,
    ) -> None:
        self._api = api
        self._driver_holds = driver_holds
        self._on_held = on_held
        self._leads = leads
        self._on_missing = on_missing
        self._led = True
        self._ledger = ledger
        self._preparer = preparer
        self._locks = locks
        self._clock = clock
        self._interval_seconds = interval_seconds
        self._followed: dict[str, _Followed] = {}
        self._burst_from = self._burst_until = -inf
        self._lost: frozenset[str] = frozenset()
        self._wake = asyncio.Event()
        self._storable = True
        self._writes = self._changes = self._errors = 0

    def make_way(self) -> None:
        """Look at no further claims for a moment: kubelet calls."""
        now = self._clock.monotonic()
        if now >= self._burst_until:
            self._burst_from = now
        self._burst_until = min(now + _SETTLE_SECONDS, self._burst_from + _LONGEST_BURST_SECONDS)

    def note(self, uid: str) -> None:
        """Look at a claim soon: it was prepared."""
        self.make_way()
        self._expect(uid)

    def forget(self, uid: str) -> None:
        """Look at a claim no more. Idempotent."""
        followed = self._followed.pop(uid, None)
        if followed is not None and followed.held is not None:
            self._on_held()

    def look_again(self, uid: str) -> None:
        """Look at a claim soon, if it is followed: what there is to say of it has changed."""
        if uid in self._followed:
            self._expect(uid)

    def refresh(self) -> None:
        """Ask anew whether this instance is to look."""
        self._wake.set()

    def set_lost(self, uuids: Collection[str]) -> None:
        """Say in the status of their claims which cards are lost."""
        if self._lost != frozenset(uuids):
            self._lost = frozenset(uuids)
            for followed in self._followed.values():
                followed.due, followed.done = self._clock.monotonic(), -1
            self._wake.set()

    def held(self) -> list[HeldClaim]:
        """Return the prepared claims that were read at least once, with their pods."""
        return [item.held for item in self._followed.values() if item.held is not None]

    def has_seen(self, uid: str) -> bool:
        """Whether the API server had a claim when it was last read, which is not long ago."""
        followed = self._followed.get(uid)
        if followed is None or followed.seen is None:
            return False
        return self._clock.monotonic() - followed.seen < _SEEN_INTERVALS * self._interval_seconds

    def statistics(self) -> WatchStatistics:
        """Return counts since the start."""
        return WatchStatistics(
            claims=len(self._followed),
            writes=self._writes,
            changes=self._changes,
            errors=self._errors,
        )

    async def run(self) -> None:
        """Follow until cancelled."""
        next_meeting = self._clock.monotonic()
        while True:
            self._wake.clear()
            if self._clock.monotonic() >= next_meeting:
                next_meeting = self._clock.monotonic() + self._interval_seconds
                try:
                    await self.meet()
                except HamiDraError as error:
                    _log.warning("claims.unknown", error=str(error))
            await self.look()
            try:
                async with asyncio.timeout(self._pause()):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def meet(self) -> None:
        """Follow what the ledger has, and no more: after a start, spread over one interval.

        Raises:
            RetryError: The ledger does not answer.
        """
        # One that is prepared meanwhile may be missing in what is read.
        before = set(self._followed)
        ready = {
            record.binding.claim_uid for record in await self._ledger.records() if record.ready
        }
        for uid in ready - set(self._followed):
            wait = self._interval_seconds * random.random()  # noqa: S311 - spreads load
            self._followed[uid] = _Followed(due=self._find_turn(wait))
        for uid in before - ready:
            self.forget(uid)

    async def look(self) -> None:
        """Look at every claim whose time has come, once, if this instance leads.

        Those that are left when kubelet calls meanwhile are looked at when its calls have ended.
        """
        self._led = await self._leads()
        if not self._led:
            return
        now = self._clock.monotonic()
        due = sorted(uid for uid, item in self._followed.items() if item.due <= now)
        for first in range(0, len(due), _AT_ONCE):
            if self._clock.monotonic() < self._burst_until:
                return
            await asyncio.gather(*(self._look_at(uid) for uid in due[first : first + _AT_ONCE]))

    def _pause(self) -> float:
        if not self._led:
            return self._interval_seconds
        soonest = min((item.due for item in self._followed.values()), default=inf)
        soonest = max(soonest, self._burst_until)
        return min(max(soonest - self._clock.monotonic(), 0.0), self._interval_seconds)

    def _expect(self, uid: str) -> None:
        due = self._clock.monotonic() + _SETTLE_SECONDS
        followed = self._followed.setdefault(uid, _Followed(due=due))
        followed.due, followed.failures, followed.done = due, 0, -1
        self._wake.set()

    async def _look_at(self, uid: str) -> None:
        followed = self._followed.get(uid)
        if followed is None:
            return
        try:
            await self._follow(uid, followed)
            followed.failures = 0
            followed.due = self._find_turn(self._interval_seconds)
        except HamiDraError as error:
            low, high = _BACKOFF_SECONDS
            delay = min(low * 2**followed.failures, high)
            followed.failures = min(followed.failures + 1, 16)
            self._errors += 1
            followed.due = self._clock.monotonic() + delay
            if followed.failures == 1:
                _log.warning("claim.not_followed", uid=uid, error=str(error))

    def _find_turn(self, delay: float) -> float:
        """Return the last turn before so many seconds from now are over."""
        turn = self._interval_seconds / _TURNS
        return (self._clock.monotonic() + delay) // turn * turn

    async def _follow(self, uid: str, followed: _Followed) -> None:
        if followed.held is not None:
            binding = followed.held.binding
        else:
            record = await self._ledger.find(uid)
            if record is None or not record.ready:
                return
            binding = record.binding
        try:
            claim = await self._api.get(
                CLAIMS, binding.name, namespace=binding.namespace, cached=True
            )
        except NotFoundError:
            self._miss(followed)
            return
        version = _read_version(claim)
        if claim["metadata"].get("uid") != uid:
            self._miss(followed)
            return
        followed.seen = self._clock.monotonic()
        if version < followed.version:
            return  # an API server that is behind: never go back in time
        followed.version = version
        followed.looks += 1
        if 0 < version == followed.done and followed.looks < _LOOKS:
            return
        followed.looks, followed.done = 0, _UNDER_WAY
        settled = await self._settle(claim, uid, fresh=followed.fresh)
        if settled is None:
            return
        followed.fresh = False
        held = HeldClaim(
            binding=settled.binding, pods=read_pods(claim), changed=read_wish(claim) is not None
        )
        if held != followed.held:
            followed.held = held
            self._on_held()
        done = await self._write(claim, settled, followed)
        if followed.done == _UNDER_WAY:  # and nobody had news meanwhile
            followed.done = done

    def _miss(self, followed: _Followed) -> None:
        """Take note that a claim is gone, or replaced; `Recovery.sweep` finds out what to do."""
        if followed.seen is not None:
            followed.seen = None
            self._on_missing()

    async def _settle(self, claim: Mapping[str, Any], uid: str, *, fresh: bool) -> Settled | None:
        """Put the limits that the claim asks for into force; return what holds now."""
        async with self._locks.hold(uid):
            record = await self._ledger.find(uid)
            if record is None or not record.ready:
                return None
            try:
                settled = self._preparer.bind(claim, record)
            except HamiDraError as error:
                # The card is lost, or the claim is being given back: what was prepared holds.
                _log.debug("claim.not_bound", uid=uid, error=str(error))
                return Settled(record.binding)
            binding = keep_limits(record.binding, settled.binding)
            if binding != record.binding:
                await self._preparer.change(replace(record, binding=binding))
                self._changes += 1
                _log.info(
                    "limits.changed",
                    uid=uid,
                    claim=f"{binding.namespace}/{binding.name}",
                    limits=[
                        f"{d.request}: {d.memory_mib} MiB, {d.cores_percent} %"
                        for d in binding.devices
                    ],
                )
            elif fresh:
                await self._preparer.refresh_metadata(binding)
            return Settled(binding, settled.refused)

    async def _write(self, claim: Mapping[str, Any], settled: Settled, followed: _Followed) -> int:
        """Bring the status up to date; return the version at which it is, -1 if there is none."""
        binding = settled.binding
        stored = own_entries((claim.get("status") or {}).get("devices") or (), binding)
        holds = self._driver_holds(binding.claim_uid)
        if holds is None:
            return -1
        now = dt.datetime.fromtimestamp(self._clock.wall(), tz=dt.UTC)
        situation = Situation(
            settled,
            limits=read_wish(claim),
            lost=self._lost,
            driver_holds=holds,
        )
        wanted = describe_devices(situation, stored, stamp=now.strftime("%Y-%m-%dT%H:%M:%SZ"))
        if not self._storable or is_current(stored, wanted):
            return _read_version(claim)
        body = {
            "apiVersion": CLAIMS.api_version,
            "kind": CLAIMS.kind,
            # The UID refuses a claim that took the name since.
            "metadata": {
                "name": binding.name,
                "namespace": binding.namespace,
                "uid": binding.claim_uid,
            },
            "status": {"devices": wanted},
        }
        try:
            answer = await self._api.apply(
                CLAIMS,
                binding.name,
                body,
                namespace=binding.namespace,
                subresource="status",
                force=True,
            )
        except NotFoundError:
            return -1
        self._writes += 1
        followed.version = max(followed.version, _read_version(answer))
        now_stored = own_entries((answer.get("status") or {}).get("devices") or (), binding)
        if not now_stored:
            self._storable = False
            _log.warning(
                "claims.no_status",
                reason="the API server does not store status.devices: the feature gate "
                "DRAResourceClaimDeviceStatus is off",
            )
        # What others changed in the meantime has to be gone through as well.
        done = is_current(now_stored, wanted) and _is_same(claim, answer)
        return _read_version(answer) if done else -1


class FollowedClaims:
    """A handler of kubelet's calls that tells `ClaimWatch` of what it did."""

    def __init__(self, handler: ClaimHandler, watch: ClaimWatch) -> None:
        self._handler = handler
        self._watch = watch

    async def prepare(self, claim: ClaimRef) -> Sequence[PreparedDevice]:
        """See `ClaimHandler.prepare`."""
        self._watch.make_way()
        devices = await self._handler.prepare(claim)
        self._watch.note(claim.uid)
        return devices

    async def unprepare(self, claim: ClaimRef) -> None:
        """See `ClaimHandler.unprepare`."""
        self._watch.make_way()
        await self._handler.unprepare(claim)
        self._watch.forget(claim.uid)


def _is_same(claim: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two versions of a claim differ in nothing but what we wrote."""

    def strip(item: Mapping[str, Any]) -> tuple[object, ...]:
        metadata = {k: v for k, v in item["metadata"].items() if k not in _WRITTEN}
        status = {k: v for k, v in (item.get("status") or {}).items() if k != "devices"}
        return metadata, status, item.get("spec")

    return strip(claim) == strip(other)


def _read_version(item: Mapping[str, Any]) -> int:
    """Return the resourceVersion as a number (comparable by KEP-5504); 0 if it is none."""
    text = str((item.get("metadata") or {}).get("resourceVersion", ""))
    return int(text) if text.isascii() and text.isdigit() else 0
