"""Templates that nobody needs go, and those that somebody waits for come back."""

import asyncio
import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from hami_dra.controller.collect import Collector
from hami_dra.controller.metrics import ControllerMetrics
from hami_dra.kube.objects import EVENTS, PODS, TEMPLATES
from hami_dra.policy.podplan import plan_pod
from hami_dra.service.clock import ManualClock
from hami_dra.testing.fakecluster import FakeCluster

_AGE = 3600.0
_CREATED = "2023-11-14T22:13:20Z"
"""The epoch of a ManualClock."""


def _admit(name: str, gpumem: int = 1000) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return an admitted pod of namespace n, and its template as it is stored."""
    resources = {"limits": {"nvidia.com/gpu": "1", "nvidia.com/gpumem": str(gpumem)}}
    plan = plan_pod(
        {
            "metadata": {"name": name, "namespace": "n"},
            "spec": {"containers": [{"name": "main", "resources": resources}]},
        }
    )
    assert plan is not None
    assert plan.template is not None
    template = copy.deepcopy(plan.template)
    template["metadata"] |= {"namespace": "n", "creationTimestamp": _CREATED}
    return plan.pod, template


class _Rig:
    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.clock = ManualClock()
        self.metrics = ControllerMetrics()
        self.collector = Collector(
            cluster.api(), self.clock, self.metrics, age_seconds=_AGE, grace_seconds=0
        )

    def names(self) -> set[str]:
        return {item["metadata"]["name"] for item in self.cluster.objects(TEMPLATES)}

    async def knows(self, *, templates: int, pods: int) -> None:
        async with asyncio.timeout(5):
            while True:
                found = self.collector.statistics()
                if (found.templates, found.pods) == (templates, pods):
                    return
                # Either may change next.
                changes = [
                    asyncio.create_task(informer.changed.wait())
                    for informer in (self.collector._templates, self.collector._pods)
                ]
                await asyncio.wait(changes, return_when=asyncio.FIRST_COMPLETED)
                for change, informer in zip(
                    changes, (self.collector._templates, self.collector._pods), strict=True
                ):
                    change.cancel()
                    informer.changed.clear()

    def count(self, counter: str, result: str) -> float:
        name = f"hami_dra_controller_template_{counter}_total"
        return self.metrics.registry.get_sample_value(name, {"result": result}) or 0.0


@asynccontextmanager
async def _watching(cluster: FakeCluster, *, working: bool = False) -> AsyncIterator[_Rig]:
    """Let a collector watch, and leave it to the test when it works unless it does by itself."""
    rig = _Rig(cluster)
    collector = rig.collector
    task = asyncio.create_task(collector.run() if working else collector.watch())
    try:
        async with asyncio.timeout(5):
            await rig.collector.wait_synced()
        yield rig
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_an_unused_template_goes_after_its_age_and_a_used_one_stays() -> None:
    async with FakeCluster() as cluster:
        pod, used = _admit("p", 1000)
        _, unused = _admit("q", 2000)
        foreign = copy.deepcopy(_admit("r", 3000)[1])
        foreign["spec"]["spec"]["devices"]["requests"][0]["exactly"]["count"] = 3
        await cluster.put(PODS, pod)
        for template in (used, unused, foreign):
            await cluster.put(TEMPLATES, template)
        async with _watching(cluster) as rig:
            await rig.collector.sweep()
            rig.clock.advance(_AGE - 1)
            await rig.collector.sweep()
            assert len(rig.names()) == 3
            rig.clock.advance(1)
            await rig.collector.sweep()
            assert rig.names() == {used["metadata"]["name"], foreign["metadata"]["name"]}
            assert rig.count("deletions", "deleted") == rig.collector.statistics().deleted == 1


async def test_a_pod_that_came_and_went_starts_the_time_anew() -> None:
    async with FakeCluster() as cluster:
        pod, template = _admit("p")
        await cluster.put(TEMPLATES, template)
        async with _watching(cluster) as rig:
            await rig.collector.sweep()
            rig.clock.advance(_AGE)
            await cluster.put(PODS, pod)
            await rig.knows(templates=1, pods=1)
            await cluster.remove(PODS, "p", namespace="n")
            await rig.knows(templates=1, pods=0)
            await rig.collector.sweep()
            assert len(rig.names()) == 1
            rig.clock.advance(_AGE)
            await rig.collector.sweep()
            assert not rig.names()


async def test_a_pod_that_the_watch_has_not_shown_yet_keeps_its_template() -> None:
    async with FakeCluster() as cluster:
        pod, template = _admit("p")
        await cluster.put(TEMPLATES, template)
        async with _watching(cluster) as rig:
            await rig.collector.sweep()
            rig.clock.advance(_AGE)
            await cluster.put(PODS, pod)
            await rig.collector.sweep()  # no turn of the loop for the watch in between
            assert len(rig.names()) == 1


async def test_what_changed_in_the_meantime_is_kept_and_an_error_is_no_end() -> None:
    async with FakeCluster() as cluster:
        _, template = _admit("p")
        await cluster.put(TEMPLATES, template)
        async with _watching(cluster) as rig:
            await rig.collector.sweep()
            rig.clock.advance(_AGE)
            cluster.fault = lambda method, _: 409 if method == "DELETE" else None
            await rig.collector.sweep()
            assert rig.count("deletions", "kept") == 1
            cluster.fault = lambda method, _: 500 if method == "DELETE" else None
            await rig.collector.sweep()  # notes it as unused anew
            rig.clock.advance(_AGE)
            await rig.collector.sweep()
            assert rig.count("deletions", "failed") == 1
            cluster.fault = None
            await rig.collector.sweep()
            assert not rig.names()


async def test_a_pod_that_comes_after_the_deletion_gets_its_template_back_at_once() -> None:
    async with FakeCluster() as cluster:
        pod, template = _admit("p")
        name = template["metadata"]["name"]
        await cluster.put(TEMPLATES, template)
        async with _watching(cluster, working=True) as rig:
            await rig.collector.sweep()
            rig.clock.advance(_AGE)
            await rig.collector.sweep()
            assert not rig.names()
            await rig.knows(templates=0, pods=0)
            await cluster.put(PODS, pod)
            await cluster.wait_for(lambda: rig.names() == {name}, timeout_seconds=2)
            (made,) = cluster.objects(TEMPLATES)
            assert made["spec"] == template["spec"]
            assert made["metadata"]["labels"] == template["metadata"]["labels"]
            # And once more, when a person deletes it under the waiting pod.
            await rig.knows(templates=1, pods=1)
            await cluster.remove(TEMPLATES, name, namespace="n")
            rig.clock.advance(60)
            await cluster.wait_for(lambda: rig.names() == {name}, timeout_seconds=2)


async def test_a_pod_that_has_its_claim_needs_no_template() -> None:
    async with FakeCluster() as cluster:
        pod, _ = _admit("p")
        pod["status"] = {"phase": "Pending", "resourceClaimStatuses": [{"name": "hami-gpu"}]}
        await cluster.put(PODS, pod)
        async with _watching(cluster) as rig:
            await rig.collector.restore()
            assert rig.collector.statistics().missing == 0
            assert not rig.names()


async def test_a_pod_that_leads_elsewhere_is_reported_and_left_alone() -> None:
    async with FakeCluster() as cluster:
        pod, _ = _admit("p")
        name = "hami-gpu-0123456789abcdef"
        pod["spec"]["resourceClaims"][0]["resourceClaimTemplateName"] = name
        await cluster.put(PODS, pod)
        async with _watching(cluster) as rig:
            await rig.collector.restore()
            rig.clock.advance(60)
            await rig.collector.restore()
            assert rig.count("restorations", "changed") == 2
            (event,) = cluster.objects(EVENTS)
            assert (event["regarding"]["name"], event["reason"]) == (
                "p",
                "ResourceClaimTemplateLost",
            )
            assert name in event["note"]
            assert "create the pod again" in event["note"]
            assert rig.collector.statistics().missing == 1
            assert not rig.names()
            # One honest pod is enough, whatever others have in their annotations.
            honest, template = _admit("honest")
            pod["spec"]["resourceClaims"][0]["resourceClaimTemplateName"] = template["metadata"][
                "name"
            ]
            pod["metadata"]["annotations"] = {}
            await cluster.put(PODS, pod)
            await cluster.put(PODS, honest)
            await rig.knows(templates=0, pods=2)
            await rig.collector.restore()
            assert rig.names() == {template["metadata"]["name"]}


async def test_an_api_server_that_refuses_is_asked_again_later_and_later() -> None:
    async with FakeCluster() as cluster:
        pod, _ = _admit("p")
        await cluster.put(PODS, pod)
        cluster.fault = lambda method, _: 403 if method == "PATCH" else None
        async with _watching(cluster) as rig:
            assert await rig.collector.restore() == 1
            rig.clock.advance(1)
            assert await rig.collector.restore() == 2
            assert await rig.collector.restore() == 2  # not due: nothing is tried
            assert rig.count("restorations", "failed") == 2
            cluster.fault = None
            rig.clock.advance(2)
            await rig.collector.restore()
            assert len(rig.names()) == 1


async def test_an_event_that_cannot_be_written_stops_nothing() -> None:
    async with FakeCluster() as cluster:
        pod, _ = _admit("p")
        pod["metadata"]["annotations"] = {}
        await cluster.put(PODS, pod)
        cluster.fault = lambda _, path: 403 if "events.k8s.io" in path else None
        async with _watching(cluster) as rig:
            await rig.collector.restore()
            assert rig.count("restorations", "changed") == 1
            assert cluster.objects(EVENTS) == []
