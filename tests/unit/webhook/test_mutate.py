"""Pods, templates and the API server between them."""

import asyncio
from typing import Any

import pytest

from hami_dra.kube.objects import TEMPLATES
from hami_dra.policy.fit import Card, NodeCards
from hami_dra.service.clock import ManualClock
from hami_dra.testing.fakecluster import FakeCluster
from hami_dra.webhook.mutate import PodReviewer
from hami_dra.webhook.review import Verdict, decode_review
from hami_dra.webhook.templatestore import TemplateStore
from tests.unit.webhook.reviews import build_pod, build_review, encode

_NODES: frozenset[NodeCards] = frozenset({(Card(40960, 100, 10),)})


class _Webhook:
    def __init__(self, cluster: FakeCluster) -> None:
        self.clock = ManualClock()
        self.store = TemplateStore(cluster.api(), self.clock)
        self.nodes: frozenset[NodeCards] | None = _NODES

    async def review(self, pod: dict[str, Any], **request: Any) -> Verdict:
        reviewer = PodReviewer(self.store, lambda: self.nodes)
        return await reviewer.review(decode_review(encode(build_review(pod, **request))))


async def test_a_pod_gets_its_template_and_the_next_one_writes_nothing() -> None:
    async with FakeCluster() as cluster:
        webhook = _Webhook(cluster)
        first = await webhook.review(build_pod(gpu=1, gpumem=3000))
        (template,) = cluster.objects(TEMPLATES)
        assert template["metadata"]["namespace"] == "team"
        assert template["metadata"]["labels"] == {"app.kubernetes.io/managed-by": "hami-dra"}
        entry = {"name": "hami-gpu", "resourceClaimTemplateName": template["metadata"]["name"]}
        assert {"op": "add", "path": "/spec/resourceClaims", "value": [entry]} in first.patch
        assert first.result == "patched"
        assert first.warnings == ()
        requests = len(cluster.requests)
        assert await webhook.review(build_pod(gpu=1, gpumem=3000)) == first
        assert len(cluster.requests) == requests
        await webhook.review(build_pod(gpu=1, gpumem=3000), namespace="other")
        assert len(cluster.objects(TEMPLATES)) == 2


async def test_pods_that_arrive_together_write_one_template() -> None:
    async with FakeCluster() as cluster, asyncio.TaskGroup() as group:
        webhook = _Webhook(cluster)
        reviews = [group.create_task(webhook.review(build_pod(gpumem=mib))) for mib in (1, 2) * 8]
        for review in reviews:
            assert (await review).result == "patched"
        assert webhook.store.writes == 2


async def test_who_waits_for_a_template_that_cannot_be_written_tries_too() -> None:
    async with FakeCluster() as cluster, asyncio.TaskGroup() as group:
        answers = iter([503, None])
        cluster.fault = lambda _method, _path: next(answers, None)
        webhook = _Webhook(cluster)
        reviews = [group.create_task(webhook.review(build_pod(gpumem=1))) for _ in range(3)]
        assert [(await review).result for review in reviews] == ["unavailable"] + ["patched"] * 2
        assert webhook.store.writes == 2


async def test_a_forgotten_template_is_written_again() -> None:
    async with FakeCluster() as cluster:
        webhook = _Webhook(cluster)
        await webhook.review(build_pod(gpumem=1))
        (template,) = cluster.objects(TEMPLATES)
        await cluster.remove(TEMPLATES, template["metadata"]["name"], namespace="team")
        webhook.clock.advance(301)
        await webhook.review(build_pod(gpumem=1))
        assert len(cluster.objects(TEMPLATES)) == 1


async def test_a_dry_run_only_patches() -> None:
    async with FakeCluster() as cluster:
        verdict = await _Webhook(cluster).review(build_pod(gpumem=1), dryRun=True)
        assert verdict.patch
        assert cluster.requests == []


async def test_other_pods_and_operations_pass() -> None:
    async with FakeCluster() as cluster:
        webhook = _Webhook(cluster)
        assert await webhook.review(build_pod()) == Verdict()
        assert await webhook.review(build_pod(gpu=1), operation="UPDATE") == Verdict()
        assert cluster.requests == []


async def test_a_pod_at_the_wrong_address_is_refused() -> None:
    async with FakeCluster() as cluster:
        verdict = await _Webhook(cluster).review({}, kind="ResourceClaim")
        assert "reviews pods, not ResourceClaim" in verdict.message


async def test_bad_numbers_are_denied_and_write_nothing() -> None:
    async with FakeCluster() as cluster:
        verdict = await _Webhook(cluster).review(build_pod(gpu=1, gpumem="10Gi"))
        assert (verdict.result, verdict.code) == ("denied", 403)
        assert verdict.message.startswith("Pod team/p-: spec.containers[0].resources.limits[")
        assert "write 10240 for 10Gi" in verdict.message
        assert cluster.requests == []


async def test_somebody_elses_template_under_our_name_is_an_error() -> None:
    async with FakeCluster() as cluster:
        webhook = _Webhook(cluster)
        await webhook.review(build_pod(gpumem=1))
        (template,) = cluster.objects(TEMPLATES)
        # A merge leaves what we do not write, as the real server's apply does.
        template["spec"]["spec"]["devices"]["constraints"] = [{"matchAttribute": "a/b"}]
        await cluster.put(TEMPLATES, template)
        webhook.clock.advance(301)
        for _ in range(2):
            verdict = await webhook.review(build_pod(gpumem=1))
            assert verdict.result == "denied"
            assert "exists with other content" in verdict.message


@pytest.mark.parametrize("status", [409, 422])
async def test_a_refused_write_is_settled_by_looking(status: int) -> None:
    async with FakeCluster() as cluster:
        await _Webhook(cluster).review(build_pod(gpumem=2048))
        (template,) = cluster.objects(TEMPLATES)
        requests = template["spec"]["spec"]["devices"]["requests"]
        capacity = requests[0]["exactly"]["capacity"]["requests"]
        assert capacity["memory"] == "2Gi"
        capacity["memory"] = "2048Mi"  # equal by value
        await cluster.put(TEMPLATES, template)
        cluster.fault = lambda method, _: status if method == "PATCH" else None
        assert (await _Webhook(cluster).review(build_pod(gpumem=2048))).allowed
        capacity["memory"] = "1Gi"
        await cluster.put(TEMPLATES, template)
        assert not (await _Webhook(cluster).review(build_pod(gpumem=2048))).allowed


_FORBIDDEN = 'resourceclaimtemplates.resource.k8s.io "hami-gpu-1" is forbidden: '


@pytest.mark.parametrize(
    ("status", "says", "code", "result"),
    [
        (503, "etcd is away", 503, "unavailable"),
        (401, "Unauthorized", 500, "failed"),
        (403, f'{_FORBIDDEN}User "system:serviceaccount:a:b" cannot patch', 500, "failed"),
        (403, f"{_FORBIDDEN}exceeded quota: q, requested: count/x=1, limited: 0", 403, "denied"),
        (403, f"{_FORBIDDEN}unable to create new content in namespace team", 403, "denied"),
        (404, 'namespaces "team" not found', 403, "denied"),
        (422, "ResourceClaimTemplate is invalid: spec.spec.devices", 403, "denied"),
    ],
)
async def test_a_refused_template_denies_with_the_reason(
    status: int, says: str, code: int, result: str
) -> None:
    async with FakeCluster() as cluster:
        webhook = _Webhook(cluster)
        cluster.fault = lambda method, _: status if method == "PATCH" else None
        cluster.fault_message = says
        verdict = await webhook.review(build_pod(gpumem=1))
        assert (verdict.code, verdict.result) == (code, result)
        assert says in verdict.message
        cluster.fault = None
        assert (await webhook.review(build_pod(gpumem=1))).allowed


async def test_what_fits_no_card_is_a_warning() -> None:
    async with FakeCluster() as cluster:
        webhook = _Webhook(cluster)
        verdict = await webhook.review(build_pod(gpu=1, gpumem=99999))
        assert verdict.allowed
        (warning,) = verdict.warnings
        assert "no card of the cluster has 99999 MiB; the largest has 40960 MiB" in warning
        webhook.nodes = None
        assert (await webhook.review(build_pod(gpu=1, gpumem=99999))).warnings == ()


async def test_memory_of_templates_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hami_dra.webhook.templatestore._REMEMBERED", 2)
    async with FakeCluster() as cluster:
        webhook = _Webhook(cluster)
        for mib in (1, 2, 1, 3, 1):  # 2 is the one used longest ago when 3 comes
            await webhook.review(build_pod(gpumem=mib))
        assert webhook.store.writes == 3
        await webhook.review(build_pod(gpumem=2))
        assert webhook.store.writes == 4
