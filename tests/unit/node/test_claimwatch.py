"""Prepared claims are followed: status, wishes for other limits, pods."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hami_dra.contract.grant import decode_grant
from hami_dra.contract.limits import digest_limits
from hami_dra.kube.objects import CLAIMS
from hami_dra.kubeletplugin.service import ClaimRef
from hami_dra.node.preparer import CHANGE_STEPS
from hami_dra.policy.audit import Pod
from hami_dra.policy.driverlimits import DriverHold
from hami_dra.policy.metadata import decode_metadata
from hami_dra.testing.fakecluster import FakeCluster
from hami_dra.testing.fakegpus import make_gpu
from tests.unit.node.cuts import PowerCut, cut_after
from tests.unit.node.rig import make_claim, make_share, put_claim
from tests.unit.node.watched import put_watched, watching

STRANGER = {"driver": "nic.example.com", "pool": "p", "device": "nic0", "data": {"a": 1}}


@pytest.fixture
async def ref(cluster: FakeCluster) -> ClaimRef:
    return await put_watched(cluster)


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


async def test_a_second_pod_of_a_claim_loses_nothing_of_what_is_known(
    tmp_path: Path, cluster: FakeCluster, ref: ClaimRef
) -> None:
    async with watching(tmp_path, cluster) as node:
        await node.handler.prepare(ref)
        await node.look()
        held = node.watch.held()
        await node.handler.prepare(ref)

        assert node.watch.held() == held
