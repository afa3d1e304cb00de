"""Prepared claims are followed: status, wishes for other limits, pods."""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from hami_dra.contract.grant import decode_grant
from hami_dra.contract.limits import digest_limits
from hami_dra.contract.names import ANNOTATION_LIMITS
from hami_dra.contract.quantity import MIB
from hami_dra.kube import Api
from hami_dra.kube.objects import CLAIMS
from hami_dra.kubeletplugin.service import ClaimRef
from hami_dra.node.claimwatch import ClaimWatch, FollowedClaims
from hami_dra.node.preparer import CHANGE_STEPS, Step, no_step
from hami_dra.policy.audit import Pod
from hami_dra.policy.driverlimits import DriverHold
from hami_dra.policy.metadata import decode_metadata
from hami_dra.service.clock import ManualClock, SystemClock
from hami_dra.testing.fakecluster import FakeCluster
from hami_dra.testing.fakegpus import make_gpu
from tests.unit.node.cuts import PowerCut, cut_after
from tests.unit.node.rig import Rig, make_claim, make_share, put_claim, start_rig

STRANGER = {"driver": "nic.example.com", "pool": "p", "device": "nic0", "data": {"a": 1}}


class Watched:
    """A node with its watch, and hands on the clock."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.clock = ManualClock()
        self.leads = True
        self.missed = self.held_changes = 0
        self.holds: dict[str, DriverHold] | None = {}
        self.watch = ClaimWatch(
            api=rig.cluster.api(),
            ledger=rig.ledger,
            preparer=rig.preparer,
            locks=rig.locks,
            clock=self.clock,
            interval_seconds=15,
            leads=self._check_lead,
            on_missing=self._note_missing,
            driver_holds=lambda _: self.holds,
            on_held=self._note_held,
        )
        self.handler = FollowedClaims(rig.preparer, self.watch)

    async def _check_lead(self) -> bool:
        return self.leads

    def _note_missing(self) -> None:
        self.missed += 1

    def _note_held(self) -> None:
        self.held_changes += 1

    async def look(self) -> None:
        """Let more than an interval pass, and look."""
        await self.watch.meet()
        self.clock.advance(120)
        await self.watch.look()

    def claim(self) -> dict[str, Any]:
        """Return the claim as it is stored."""
        (stored,) = self.rig.cluster.objects(CLAIMS)
        return stored

    def entry(self) -> dict[str, Any]:
        """Return what the status says of its only device."""
        (entry,) = self.claim()["status"]["devices"]
        return dict(entry)

    def conditions(self) -> dict[str, tuple[str, str]]:
        """Return status and reason of each condition."""
        return {c["type"]: (c["status"], c["reason"]) for c in self.entry()["conditions"]}

    def limits(self) -> tuple[int, int]:
        """Return MiB and percent in the grant."""
        uid = self.claim()["metadata"]["uid"]
        path = self.rig.settings.state_dir / "claims" / uid / "gpu" / "grant"
        (device,) = decode_grant(path.read_bytes()).devices
        return device.memory_limit_bytes // MIB, device.cores_percent

    async def ask(self, text: str | None) -> None:
        """Write the annotation as a person would."""
        metadata = {"annotations": {ANNOTATION_LIMITS: text}}
        await self.rig.cluster.api().patch(CLAIMS, "job", {"metadata": metadata}, namespace="team")


@asynccontextmanager
async def watching(
    base: Path, cluster: FakeCluster, *, step: Step = no_step
) -> AsyncIterator[Watched]:
    async with start_rig(base, cluster, step=step) as rig:
        yield Watched(rig)


@pytest.fixture
async def ref(cluster: FakeCluster) -> ClaimRef:
    claim = make_claim("job", make_share())
    claim["status"]["reservedFor"] = [{"resource": "pods", "name": "p", "uid": "uid-p"}]
    return await put_claim(cluster, claim)


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


async def test_a_prepared_claim_says_so_and_is_not_written_again(
    tmp_path: Path, cluster: FakeCluster, ref: ClaimRef
) -> None:
    async with watching(tmp_path, cluster) as node:
        await node.handler.prepare(ref)
        before = len(cluster.requests)
        await node.watch.look()
        assert len(cluster.requests) == before, "kubelet's next calls come first"
        await node.look()
        entry = node.entry()
        await node.look()
        await node.look()

        assert node.conditions() == {
            "Ready": ("True", "Prepared"),
            "Enforced": ("True", "Libvgpu"),
        }
        assert entry["data"]["memoryMiB"] == 3000
        assert entry["shareID"] == "00000001-0000-4000-8000-000000000000"
        assert node.watch.statistics().writes == 1
        assert node.watch.held()[0].pods == {Pod("team", "p", "uid-p")}
        path = "/apis/resource.k8s.io/v1/namespaces/team/resourceclaims/job/status"
        assert [r for r in cluster.requests if r[0] != "GET"] == [("PATCH", path)]


async def test_what_the_driver_holds_is_told_when_it_is_known(
    tmp_path: Path, cluster: FakeCluster, ref: ClaimRef
) -> None:
    async with watching(tmp_path, cluster) as node:
        await node.handler.prepare(ref)
        node.holds = None
        await node.look()
        assert "devices" not in node.claim()["status"], "half of it would be told twice"
        node.holds = {make_gpu(0).uuid: DriverHold("Held", "it holds", holds=True)}
        node.watch.look_again(ref.uid)
        node.watch.look_again("another")
        node.clock.advance(1)
        await node.watch.look()

        assert node.conditions()["DriverLimit"] == ("True", "Held")
        assert node.entry()["data"]["backend"] == "libvgpu, driver"
        assert node.watch.statistics().claims == 1


async def test_of_two_instances_only_the_one_that_leads_writes(
    tmp_path: Path, cluster: FakeCluster, ref: ClaimRef
) -> None:
    async with watching(tmp_path, cluster) as first, watching(tmp_path, cluster) as second:
        second.leads = False
        await first.handler.prepare(ref)
        await first.ask('{"gpu": {"memoryMiB": 2000}}')
        for node in (second, first):
            await node.look()
        assert second.watch.statistics().writes == second.watch.statistics().changes == 0
        assert second.watch.held() == []
        assert first.watch.statistics().writes == first.watch.statistics().changes == 1

        first.leads, second.leads = False, True
        await first.ask('{"gpu": {"memoryMiB": 1000}}')
        for node in (first, second):
            await node.look()
        assert first.watch.statistics().writes == first.watch.statistics().changes == 1
        assert second.watch.statistics().writes == second.watch.statistics().changes == 1
        assert second.limits() == (1000, 30)
        assert second.watch.held()[0].pods == {Pod("team", "p", "uid-p")}


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


async def test_it_is_written_until_it_is_stored(
    tmp_path: Path, cluster: FakeCluster, ref: ClaimRef
) -> None:
    async with watching(tmp_path, cluster) as node:
        await node.handler.prepare(ref)
        for status in (403, 500, 409):
            cluster.fault = _refuse("PATCH", status)
            await node.look()
        assert "devices" not in node.claim()["status"]
        cluster.fault = None
        await node.look()

        assert node.conditions()["Ready"] == ("True", "Prepared")
        assert node.watch.statistics().errors == 3


def _refuse(method: str, status: int) -> Callable[[str, str], int | None]:
    return lambda called, _: status if called == method else None


async def test_what_somebody_removed_is_restored_after_a_restart_too(
    tmp_path: Path, cluster: FakeCluster, ref: ClaimRef
) -> None:
    async with watching(tmp_path, cluster) as node:
        await node.handler.prepare(ref)
        await node.look()
        first = node.entry()
    stored = cluster.objects(CLAIMS)[0]
    stored["status"]["devices"] = [STRANGER]
    await cluster.put(CLAIMS, stored)
    async with watching(tmp_path, cluster) as node:
        await node.rig.recovery.start()
        await node.look()

        assert node.entry()["data"] == first["data"]


async def test_limits_change_in_place_and_are_back_after_a_restart(
    tmp_path: Path, cluster: FakeCluster, ref: ClaimRef
) -> None:
    async with watching(tmp_path, cluster) as node:
        await node.handler.prepare(ref)
        path = tmp_path / "state" / "claims" / ref.uid / "gpu" / "grant"
        inode, sequence = path.stat().st_ino, decode_grant(path.read_bytes()).sequence
        text = '{"gpu":{"memoryMiB":1000,"coresPercent":10}}'
        await node.ask(text)
        await node.look()

        assert node.limits() == (1000, 10)
        assert path.stat().st_ino == inode, "containers have it mapped"
        assert decode_grant(path.read_bytes()).sequence == sequence + 2
        assert node.conditions()["LimitsChanged"] == ("True", "Applied")
        assert node.entry()["data"]["memoryMiB"] == 1000
        assert node.entry()["data"]["limitsSeen"] == digest_limits(text)
        document, generation = decode_metadata((path.parent / "metadata.json").read_bytes())
        assert generation == 2
        assert document["requests"][0]["devices"][0]["attributes"]["memoryMiB"] == {"int": 1000}
    (path.parent / "grant").unlink()
    async with watching(tmp_path, cluster) as node:
        await node.rig.recovery.start()
        assert node.limits() == (1000, 10), "from the ledger, before the API server is asked"
        await node.rig.preparer.prepare(ref)
        assert node.limits() == (1000, 10)
        await node.ask(None)
        await node.look()

        assert node.limits() == (3000, 30)
        assert "LimitsChanged" not in node.conditions()


async def test_a_wish_that_is_refused_changes_nothing_and_says_why(
    tmp_path: Path, cluster: FakeCluster, ref: ClaimRef
) -> None:
    async with watching(tmp_path, cluster) as node:
        await node.handler.prepare(ref)
        await node.ask('{"gpu":{"memoryMiB":1000}}')
        await node.look()
        for text in ('{"gpu":{"memoryMiB":3001}}', "nonsense", '{"x":{}}'):
            await node.ask(text)
            await node.look()

            assert node.limits() == (1000, 30)
            assert node.conditions()["LimitsChanged"] == ("False", "Refused")
            assert node.entry()["data"]["limitsSeen"] == digest_limits(text)
        # Prepare, too, leaves what holds.
        await node.handler.prepare(ref)
        assert node.limits() == (1000, 30)


@pytest.mark.parametrize("step", CHANGE_STEPS)
async def test_a_crash_while_limits_change_is_finished_by_the_next_start(
    tmp_path: Path, cluster: FakeCluster, ref: ClaimRef, step: str
) -> None:
    async with watching(tmp_path, cluster, step=cut_after(step)) as node:
        await node.handler.prepare(ref)
        await node.ask('{"gpu":{"memoryMiB":1000}}')
        with pytest.raises(PowerCut):
            await node.look()
    async with watching(tmp_path, cluster) as node:
        await node.rig.recovery.start()
        assert node.limits() == ((3000, 30) if step == "limits-record" else (1000, 30))
        await node.look()

        assert node.limits() == (1000, 30)
        path = tmp_path / "state" / "claims" / ref.uid / "gpu" / "metadata.json"
        document, _ = decode_metadata(path.read_bytes())
        assert document["requests"][0]["devices"][0]["attributes"]["memoryMiB"] == {"int": 1000}
        assert node.conditions()["LimitsChanged"] == ("True", "Applied")
        (record,) = await node.rig.ledger.records()
        beside = json.loads((path.parent.parent / "record.json").read_text())
        assert record.ready
        assert beside["binding"]["devices"][0]["memory_mib"] == 1000


async def test_an_api_server_that_is_behind_takes_nothing_back(
    tmp_path: Path, cluster: FakeCluster, ref: ClaimRef
) -> None:
    async with watching(tmp_path, cluster) as node:
        await node.handler.prepare(ref)
        old = cluster.objects(CLAIMS)[0]
        await node.ask('{"gpu":{"memoryMiB":1000}}')
        await node.look()
        path = CLAIMS.path(namespace="team", name="job")
        now, cluster._objects[path] = cluster._objects[path], old
        await node.look()
        assert node.limits() == (1000, 30)
        cluster._objects[path] = now
        await node.look()

        assert node.watch.statistics().changes == 1


async def test_a_lost_card_is_said_and_forgotten_claims_are_left_alone(
    tmp_path: Path, cluster: FakeCluster, ref: ClaimRef
) -> None:
    async with watching(tmp_path, cluster) as node:
        await node.handler.prepare(ref)
        await node.look()
        gpus = dict(node.rig.gpus)
        node.rig.gpus.clear()
        node.watch.set_lost({make_gpu(0).uuid})
        await node.watch.look()
        assert node.conditions()["Ready"] == ("False", "CardLost")
        node.rig.gpus.update(gpus)
        node.watch.set_lost(())
        await node.watch.look()
        assert node.conditions()["Ready"] == ("True", "Prepared")
        await node.handler.unprepare(ref)
        before = len(cluster.requests)
        await node.look()

        assert len(cluster.requests) == before
        assert node.watch.held() == []


async def test_a_claim_that_took_the_name_is_not_touched(
    tmp_path: Path, cluster: FakeCluster, ref: ClaimRef
) -> None:
    async with watching(tmp_path, cluster) as node:
        await node.handler.prepare(ref)
        await cluster.remove(CLAIMS, "job", namespace="team")
        await node.look()
        await put_claim(cluster, make_claim("job", make_share(), uid="another"))
        await node.look()

        assert "devices" not in node.claim()["status"]
        assert node.watch.statistics().errors == 0


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


async def test_a_server_that_stores_no_status_is_not_asked_again_and_again(
    tmp_path: Path, cluster: FakeCluster, ref: ClaimRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watching(tmp_path, cluster) as node:
        await node.handler.prepare(ref)
        monkeypatch.setattr(cluster, "_change", _drop_status(cluster))
        for _ in range(3):
            await node.look()

        assert node.watch.statistics().writes == 1


def _drop_status(cluster: FakeCluster) -> Callable[..., Any]:
    async def change(_: object, path: str) -> Any:
        return cluster._get(path)

    return change


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


async def test_a_second_pod_of_a_claim_loses_nothing_of_what_is_known(
    tmp_path: Path, cluster: FakeCluster, ref: ClaimRef
) -> None:
    async with watching(tmp_path, cluster) as node:
        await node.handler.prepare(ref)
        await node.look()
        held = node.watch.held()
        await node.handler.prepare(ref)

        assert node.watch.held() == held


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
