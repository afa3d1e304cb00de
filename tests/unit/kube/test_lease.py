"""At most one leads, and soon somebody does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from hami_dra.contract.errors import FatalError
from hami_dra.kube.lease import LeaderLease, LeaseTiming
from hami_dra.kube.objects import LEASES
from hami_dra.service.clock import ManualClock
from hami_dra.testing.fakecluster import FakeCluster

_TIMING = LeaseTiming(duration_seconds=15, deadline_seconds=0.3, retry_seconds=0.01)
"""Candidates wait by a clock that stands still; only the deadline passes in real time."""


class _Candidate:
    def __init__(self, cluster: FakeCluster, identity: str, clock: ManualClock) -> None:
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self.changes: list[bool] = []
        self.lease = LeaderLease(
            cluster.api(),
            namespace="n",
            name="l",
            identity=identity,
            clock=clock,
            timing=_TIMING,
            on_change=self.changes.append,
        )

    async def work(self) -> None:
        self.ended.clear()
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.started.clear()
            self.ended.set()


@asynccontextmanager
async def _running(candidate: _Candidate) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(candidate.lease.run(candidate.work))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})


async def _soon(event: asyncio.Event) -> None:
    async with asyncio.timeout(5):
        await event.wait()


async def _looks(cluster: FakeCluster, count: int = 3) -> None:
    """Return once candidates have asked a few times more."""
    enough = asyncio.Event()
    left = iter(range(count))

    def count_reads(method: str, _: str) -> None:
        if method == "GET" and next(left, None) is None:
            enough.set()

    cluster.fault = count_reads
    await _soon(enough)
    cluster.fault = None


def _version(cluster: FakeCluster) -> str:
    (lease,) = cluster.objects(LEASES)
    return str(lease["metadata"]["resourceVersion"])


async def _renewed(cluster: FakeCluster, clock: ManualClock, seconds: float) -> None:
    """Let time pass and return once the Lease says so."""
    version = _version(cluster)
    clock.advance(seconds)
    await cluster.wait_for(lambda: _version(cluster) != version)


def _holder(cluster: FakeCluster) -> str:
    (lease,) = cluster.objects(LEASES)
    return str(lease["spec"]["holderIdentity"])


async def test_one_of_two_leads_and_keeps_leading() -> None:
    clock = ManualClock()
    async with FakeCluster() as cluster:
        first, second = (_Candidate(cluster, name, clock) for name in "ab")
        async with _running(first):
            await _soon(first.started)
            async with _running(second):
                await _looks(cluster)
                # Renewed in between, so that these 20 seconds are not 15 without a change.
                for _ in range(2):
                    await _renewed(cluster, clock, 10)
                    await _looks(cluster)
                assert (first.lease.leading, second.lease.leading) == (True, False)
                assert not second.started.is_set()
                assert _holder(cluster) == "a"


async def test_a_silent_leader_is_replaced_after_the_duration_and_not_before() -> None:
    clock = ManualClock()
    async with FakeCluster() as cluster:
        # Its clock is an hour ahead: what counts is when we saw the Lease change.
        await cluster.put(
            LEASES,
            {
                "metadata": {"name": "l", "namespace": "n"},
                "spec": {
                    "holderIdentity": "dead",
                    "leaseDurationSeconds": 30,
                    "leaseTransitions": 4,
                    "renewTime": "2099-01-01T00:00:00.000000Z",
                },
            },
        )
        heir = _Candidate(cluster, "heir", clock)
        async with _running(heir):
            await _looks(cluster)
            clock.advance(29.9)
            await _looks(cluster)
            assert not heir.started.is_set()
            clock.advance(0.1)
            await _soon(heir.started)
            (lease,) = cluster.objects(LEASES)
            assert lease["spec"]["leaseTransitions"] == 5
            assert lease["spec"]["leaseDurationSeconds"] == 15
            assert lease["spec"]["acquireTime"] < "2099"


async def test_release_hands_over_at_once() -> None:
    clock = ManualClock()
    async with FakeCluster() as cluster:
        first, second = (_Candidate(cluster, name, clock) for name in "ab")
        async with _running(second):
            async with _running(first):
                await asyncio.wait(
                    [asyncio.create_task(_soon(c.started)) for c in (first, second)],
                    return_when=asyncio.FIRST_COMPLETED,
                )
                leader, other = (first, second) if first.started.is_set() else (second, first)
                assert not other.started.is_set()
            if leader is first:
                await _soon(second.started)  # the clock never moved
                assert first.ended.is_set()
            assert _holder(cluster) == "b"
        assert _holder(cluster) == ""


async def test_who_was_slower_does_not_lead() -> None:
    async with FakeCluster() as cluster:
        candidate = _Candidate(cluster, "a", ManualClock())
        answers = iter([409, 409])
        cluster.fault = lambda method, _: next(answers, None) if method == "POST" else None
        async with _running(candidate):
            await _soon(candidate.started)
        assert [m for m, _ in cluster.requests if m == "POST"] == ["POST"] * 3


async def test_a_stranger_in_the_lease_ends_the_work_and_a_label_does_not() -> None:
    clock = ManualClock()
    async with FakeCluster() as cluster:
        candidate = _Candidate(cluster, "a", clock)
        async with _running(candidate):
            await _soon(candidate.started)
            (lease,) = cluster.objects(LEASES)
            lease["metadata"]["labels"] = {"by": "a person"}
            await cluster.put(LEASES, lease)
            await _renewed(cluster, clock, 1)
            assert candidate.started.is_set()
            (lease,) = cluster.objects(LEASES)
            assert lease["metadata"]["labels"] == {"by": "a person"}
            lease["spec"]["holderIdentity"] = "b"
            await cluster.put(LEASES, lease)
            await _soon(candidate.ended)
            await _looks(cluster)
            assert _holder(cluster) == "b"
            assert candidate.changes == [True, False]


async def test_an_outage_past_the_deadline_ends_the_work_which_returns_later() -> None:
    async with FakeCluster() as cluster:
        candidate = _Candidate(cluster, "a", ManualClock())
        async with _running(candidate):
            await _soon(candidate.started)
            cluster.fault = lambda *_: 503
            await _soon(candidate.ended)
            cluster.fault = None
            await _soon(candidate.started)  # the Lease still has our name
            assert candidate.changes == [True, False, True]


async def test_a_short_outage_does_no_harm() -> None:
    clock = ManualClock()
    async with FakeCluster() as cluster:
        candidate = _Candidate(cluster, "a", clock)
        async with _running(candidate):
            await _soon(candidate.started)
            answers = iter([500, 429, 503])
            cluster.fault = lambda *_: next(answers, None)
            await _renewed(cluster, clock, 1)
            assert next(answers, None) is None
            assert candidate.changes == [True]


async def test_work_that_fails_or_returns_ends_the_process_and_frees_the_lease() -> None:
    async with FakeCluster() as cluster:
        candidate = _Candidate(cluster, "a", ManualClock())

        async def fail() -> None:
            raise LookupError("broken")

        async def stop() -> None:
            pass

        with pytest.raises(LookupError, match="broken"):
            await candidate.lease.run(fail)
        assert _holder(cluster) == ""
        with pytest.raises(FatalError, match="returned"):
            await candidate.lease.run(stop)
        assert _holder(cluster) == ""


def test_timings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="retry < deadline < duration"):
        LeaseTiming(duration_seconds=10, deadline_seconds=10)
