"""When prepared claims are looked at, and when they are not."""

import asyncio
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from hami_dra.kube import Api
from hami_dra.kube.objects import CLAIMS
from hami_dra.kubeletplugin.service import ClaimRef
from hami_dra.node.claimwatch import ClaimWatch, FollowedClaims
from hami_dra.service.clock import SystemClock
from hami_dra.testing.fakecluster import FakeCluster
from hami_dra.testing.fakegpus import make_gpu
from tests.unit.node.rig import make_claim, make_share, put_claim, start_rig
from tests.unit.node.watched import put_watched, watching


@pytest.fixture
async def ref(cluster: FakeCluster) -> ClaimRef:
    return await put_watched(cluster)


async def test_claims_wait_for_a_burst_of_calls_to_end_but_not_for_ever(
    tmp_path: Path, cluster: FakeCluster, ref: ClaimRef
) -> None:
    async with watching(tmp_path, cluster) as node:
        await node.handler.prepare(ref)
        seconds = 0.0
        while not node.watch.statistics().writes:
            node.clock.advance(0.25)
            seconds += 0.25
            await node.watch.look()
            node.watch.note("another")  # kubelet goes on
            assert seconds < 5
        assert seconds == 3


async def test_a_call_waits_for_no_more_than_the_claims_that_are_being_read(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    async with watching(tmp_path, cluster) as node:
        for number in range(10):
            claim = make_claim(f"job-{number}", make_share(share=number, memory_mib=100, cores=1))
            await node.rig.preparer.prepare(await put_claim(cluster, claim))
        await node.watch.meet()
        node.clock.advance(20)
        cluster.requests.clear()

        def call(*_: str) -> None:
            node.watch.make_way()
            cluster.fault = None

        cluster.fault = call
        await node.watch.look()
        assert sum(method == "GET" for method, _ in cluster.requests) == 4
        await node.watch.look()
        assert sum(method == "GET" for method, _ in cluster.requests) == 4
        node.clock.advance(1)
        await node.watch.look()
        assert sum(method == "GET" for method, _ in cluster.requests) == 10


async def test_claims_that_came_together_are_read_each_interval(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    async with watching(tmp_path, cluster) as node:
        for number in range(10):
            claim = make_claim(f"job-{number}", make_share(share=number, memory_mib=100, cores=1))
            await node.handler.prepare(await put_claim(cluster, claim))
        reads: dict[str, list[float]] = defaultdict(list)

        def note(method: str, path: str) -> None:
            if method == "GET":
                reads[path].append(node.clock.monotonic())

        cluster.fault = note
        for _ in range(200):
            node.clock.advance(0.5)
            await node.watch.look()
        assert len(reads) == 10
        gaps = {later - earlier for times in reads.values() for earlier, later in pairwise(times)}
        assert max(gaps) == 15


async def test_a_watch_that_gets_the_lead_looks_at_once(
    tmp_path: Path, cluster: FakeCluster, ref: ClaimRef
) -> None:
    async with watching(tmp_path, cluster) as node:
        node.leads = False
        await node.handler.prepare(ref)
        node.clock.advance(120)
        task = asyncio.create_task(node.watch.run())
        before = len(cluster.requests)
        for _ in range(3):
            node.watch.refresh()
            await node.rig.ledger.records()  # a round of its thread: the watch had its turn
        assert len(cluster.requests) == before
        node.leads = True
        node.watch.refresh()
        await cluster.wait_for(lambda: "devices" in node.claim()["status"])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_whether_a_claim_is_there_is_known_for_a_moment(
    tmp_path: Path, cluster: FakeCluster, ref: ClaimRef
) -> None:
    async with watching(tmp_path, cluster) as node:
        await node.handler.prepare(ref)
        assert not node.watch.has_seen(ref.uid)
        await node.look()
        node.clock.advance(29)
        assert node.watch.has_seen(ref.uid)
        node.clock.advance(2)
        assert not node.watch.has_seen(ref.uid)

        await node.look()
        await cluster.remove(CLAIMS, "job", namespace="team")
        for _ in range(2):
            await node.look()
            assert (node.watch.has_seen(ref.uid), node.missed) == (False, 1)
        await put_claim(cluster, make_claim("job", make_share(), uid="another"))
        await node.look()
        assert not node.watch.has_seen(ref.uid)


async def test_a_claim_that_is_prepared_while_the_ledger_is_read_is_not_forgotten(
    tmp_path: Path, cluster: FakeCluster, ref: ClaimRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watching(tmp_path, cluster) as node:
        read = node.rig.ledger.records

        async def read_too_early() -> Any:
            records = await read()
            await node.handler.prepare(ref)
            return records

        monkeypatch.setattr(node.rig.ledger, "records", read_too_early)
        await node.watch.meet()

        assert node.watch.statistics().claims == 1


async def test_whoever_wants_to_know_is_told_when_other_claims_are_held(
    tmp_path: Path, cluster: FakeCluster, ref: ClaimRef
) -> None:
    async with watching(tmp_path, cluster) as node:
        await node.handler.prepare(ref)
        assert node.held_changes == 0
        for _ in range(5):
            await node.look()
        assert node.held_changes == 1, "it is gone through now and then, and is what it was"
        await node.ask('{"gpu":{"memoryMiB":1000}}')
        await node.look()
        assert node.held_changes == 2
        await node.handler.unprepare(ref)
        assert (node.held_changes, node.watch.held()) == (3, [])


async def test_it_runs_until_it_is_cancelled_and_survives_a_server_that_is_away(
    tmp_path: Path, cluster: FakeCluster, ref: ClaimRef
) -> None:
    async with start_rig(tmp_path, cluster) as rig:
        watch = ClaimWatch(
            api=cluster.api(),
            ledger=rig.ledger,
            preparer=rig.preparer,
            locks=rig.locks,
            clock=SystemClock(),
            interval_seconds=0.05,
        )
        handler = FollowedClaims(rig.preparer, watch)
        cluster.fault = lambda _, path: 503 if path.endswith("/status") else None
        task = asyncio.create_task(watch.run())
        await handler.prepare(ref)
        async with asyncio.timeout(10):
            while watch.statistics().errors == 0:  # noqa: ASYNC110 - a counter sets no event
                await asyncio.sleep(0.01)
        cluster.fault = None
        await cluster.wait_for(
            lambda: "devices" in cluster.objects(CLAIMS)[0]["status"], timeout_seconds=10
        )
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_claim_that_nothing_happened_to_is_read_and_no_more(
    tmp_path: Path, cluster: FakeCluster, ref: ClaimRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone_through: list[bool] = []
    async with watching(tmp_path, cluster) as watched:
        await watched.handler.prepare(ref)
        bind = watched.rig.preparer.bind

        def count(*arguments: Any) -> Any:
            gone_through.append(True)
            return bind(*arguments)

        monkeypatch.setattr(watched.rig.preparer, "bind", count)

        async def look() -> int:
            gone_through.clear()
            cluster.requests.clear()
            await watched.look()
            assert sum(method == "GET" for method, _ in cluster.requests) == 1
            return len(gone_through)

        # The status is written; then there is nothing new.
        assert [await look() for _ in range(4)] == [1, 0, 0, 0]
        # Once a minute all the same, because cards change without a claim changing.
        assert [await look() for _ in range(3)] == [1, 0, 0]
        watched.watch.set_lost({make_gpu(0).uuid})
        assert [await look() for _ in range(3)] == [1, 0, 0]
        await watched.ask('{"gpu": {"memory": "1Gi"}}')
        assert await look() == 1


@pytest.mark.parametrize("news", ["a pod more", "a limit of the driver's", "nothing"])
async def test_what_happens_while_the_status_is_written_is_gone_through(
    tmp_path: Path,
    cluster: FakeCluster,
    ref: ClaimRef,
    monkeypatch: pytest.MonkeyPatch,
    news: str,
) -> None:
    gone_through = 0
    async with watching(tmp_path, cluster) as node:
        await node.handler.prepare(ref)
        bind, apply = node.rig.preparer.bind, Api.apply

        def count(*arguments: Any) -> Any:
            nonlocal gone_through
            gone_through += 1
            return bind(*arguments)

        async def interrupt(*arguments: Any, **options: Any) -> Any:
            if news == "a pod more":
                pods = [{"resource": "pods", "name": name, "uid": f"uid-{name}"} for name in "pq"]
                await cluster.put(CLAIMS, with_pods(node.claim(), pods))
            elif news != "nothing":
                node.watch.look_again(ref.uid)
            return await apply(*arguments, **options)

        monkeypatch.setattr(node.rig.preparer, "bind", count)
        monkeypatch.setattr(Api, "apply", interrupt)
        await node.look()
        monkeypatch.setattr(Api, "apply", apply)
        await node.look()
        assert gone_through == (1 if news == "nothing" else 2)
        assert len(node.watch.held()[0].pods) == (2 if news == "a pod more" else 1)


def with_pods(claim: dict[str, Any], pods: list[dict[str, str]]) -> dict[str, Any]:
    return claim | {"status": claim["status"] | {"reservedFor": pods}}
