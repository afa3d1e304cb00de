"""Pods before they are stored, in namespaces that limit GPUs."""

import asyncio
import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jsonpatch

from hami_dra.contract.names import ANNOTATION_QUOTA, CLAIM_CONTROLLERS, DEVICE_CLASS
from hami_dra.contract.settings import DEFAULT_SETTINGS
from hami_dra.kube.objects import QUOTAS, TEMPLATES
from hami_dra.policy.fit import Card, NodeCards
from hami_dra.service.clock import ManualClock
from hami_dra.testing.fakecluster import FakeCluster
from hami_dra.webhook.charge import PodChargeReviewer
from hami_dra.webhook.metrics import WebhookMetrics
from hami_dra.webhook.mutate import PodReviewer
from hami_dra.webhook.quota import QuotaLedger
from hami_dra.webhook.review import Verdict, decode_review
from hami_dra.webhook.templatestore import TemplateStore
from hami_dra.webhook.validate import ClaimReviewer
from tests.unit.webhook.reviews import build_pod, build_review, encode

_NODES: frozenset[NodeCards] = frozenset({(Card(40960, 100, 10),)})
_KEY = "limits.nvidia.com/gpumem"
_BY_CONTROLLER: dict[str, Any] = {"userInfo": {"username": CLAIM_CONTROLLERS[0]}}


class _Webhook:
    def __init__(self, cluster: FakeCluster) -> None:
        api = cluster.api()
        self.cluster = cluster
        self.nodes: frozenset[NodeCards] | None = _NODES
        self.ledger = QuotaLedger(api, ManualClock(), WebhookMetrics(), DEFAULT_SETTINGS.nvidia)
        self.pods = PodReviewer(
            TemplateStore(api, ManualClock()), self._nodes, limits=self.ledger.limits
        )
        self.claims = ClaimReviewer(self._nodes, self.ledger)
        self.charges = self.restart()
        self.uids = 0

    def restart(self) -> PodChargeReviewer:
        """Return a reviewer that has forgotten every template."""
        self.charges = PodChargeReviewer(
            self.cluster.api(), self.ledger, self._nodes, DEFAULT_SETTINGS
        )
        return self.charges

    def _nodes(self) -> frozenset[NodeCards] | None:
        return self.nodes

    async def mutate(self, pod: dict[str, Any], **request: Any) -> dict[str, Any]:
        """Return the pod as the API server has it after the first webhook, with its UID."""
        review = decode_review(encode(build_review(pod, **request)))
        patch = list((await self.pods.review(review)).patch)
        patched: dict[str, Any] = jsonpatch.apply_patch(pod, patch)
        self.uids += 1
        metadata = {**patched["metadata"], "name": f"p-{self.uids}", "uid": f"u-{self.uids}"}
        return {**patched, "metadata": {**metadata, "namespace": "team"}}

    async def charge(self, pod: dict[str, Any], **request: Any) -> Verdict:
        return await self.charges.review(decode_review(encode(build_review(pod, **request))))

    async def create(self, **limits: Any) -> Verdict:
        return await self.charge(await self.mutate(build_pod(**limits)))

    async def claim(self, kind: str = "ResourceClaim", **request: Any) -> Verdict:
        spec = {"devices": {"requests": [{"name": "r", "exactly": _ASK}]}}
        item = {"metadata": {"name": "c", "uid": "c-1"}, "spec": spec}
        if kind == "ResourceClaimTemplate":
            item["spec"] = {"spec": spec}
        review = decode_review(encode(build_review(item, kind=kind, **request)))
        return await self.claims.review(review)

    def used(self) -> int:
        (quota,) = self.cluster.objects(QUOTAS)
        return int(quota["status"]["used"][_KEY])


_ASK = {
    "deviceClassName": DEVICE_CLASS,
    "capacity": {"requests": {"memory": "3Gi", "cores": "0", "slots": "1"}},
}


@asynccontextmanager
async def _running(gpumem: int | None) -> AsyncIterator[_Webhook]:
    async with FakeCluster() as cluster:
        if gpumem is not None:
            metadata = {"namespace": "team", "name": "gpus"}
            await cluster.put(
                QUOTAS,
                {
                    "metadata": metadata,
                    "spec": {"hard": {_KEY: str(gpumem)}},
                    "status": {"used": {_KEY: "0"}},
                },
            )
        webhook = _Webhook(cluster)
        task = asyncio.create_task(webhook.ledger.run())
        try:
            async with asyncio.timeout(5):
                await webhook.ledger._informer.synced.wait()
            yield webhook
        finally:
            task.cancel()
            await asyncio.wait({task})


async def test_only_pods_of_a_limited_namespace_are_marked() -> None:
    async with _running(5000) as webhook:
        pod = await webhook.mutate(build_pod(gpumem=1000))
        assert pod["metadata"]["annotations"][ANNOTATION_QUOTA] == "true"
        again = await webhook.pods.review(decode_review(encode(build_review(pod))))
        assert again == Verdict()
        elsewhere = await webhook.mutate(build_pod(gpumem=1000), namespace="other")
        assert ANNOTATION_QUOTA not in elsewhere["metadata"]["annotations"]
    async with _running(None) as webhook:
        pod = await webhook.mutate(build_pod(gpumem=1000))
        assert ANNOTATION_QUOTA not in pod["metadata"]["annotations"]
        assert await webhook.charge(pod) == Verdict()


async def test_a_claim_by_hand_from_a_template_of_ours_is_marked_too() -> None:
    async with _running(5000) as webhook:
        own = await webhook.mutate(build_pod(gpumem=1000))
        by_hand = build_pod()
        by_hand["spec"]["resourceClaims"] = [
            {**own["spec"]["resourceClaims"][0], "name": "another"}
        ]
        pod = await webhook.mutate(by_hand)
        assert pod["metadata"]["annotations"] == {ANNOTATION_QUOTA: "true"}
        assert (await webhook.charge(pod)).allowed
        assert webhook.used() == 1000


async def test_pods_are_counted_until_there_is_no_room() -> None:
    async with _running(2500) as webhook:
        for _ in range(2):
            assert await webhook.create(gpumem=1000) == Verdict()
        refused = await webhook.create(gpumem=1000)
        assert (refused.result, refused.code) == ("denied", 403)
        assert refused.message == (
            f"Pod team/p-3: exceeded quota: gpus, requested: {_KEY}=1000, used: {_KEY}=2000, "
            f"limited: {_KEY}=2500"
        )
        assert await webhook.create() == Verdict()  # without a GPU
        assert webhook.used() == 2000


async def test_a_template_is_read_once() -> None:
    async with _running(5000) as webhook:
        await webhook.create(gpumem=1000)
        reads = [path for method, path in webhook.cluster.requests if method == "GET"]
        await webhook.create(gpumem=1000)
        assert reads == [path for method, path in webhook.cluster.requests if method == "GET"]


async def test_a_dry_run_needs_no_template_and_counts_nothing() -> None:
    async with _running(1500) as webhook:
        pod = await webhook.mutate(build_pod(gpumem=1000), dryRun=True)
        assert (await webhook.charge(pod, dryRun=True)).allowed
        large = await webhook.mutate(build_pod(gpumem=2000), dryRun=True)
        assert "exceeded quota" in (await webhook.charge(large, dryRun=True)).message
        assert webhook.cluster.objects(TEMPLATES) == []
        assert webhook.used() == 0


async def test_a_template_that_was_deleted_is_found_out_from_the_pod() -> None:
    async with _running(5000) as webhook:
        pod = await webhook.mutate(build_pod(gpumem=1000))
        (template,) = webhook.cluster.objects(TEMPLATES)
        await webhook.cluster.remove(TEMPLATES, template["metadata"]["name"], namespace="team")
        assert (await webhook.charge(pod)).allowed
        assert webhook.used() == 1000
        webhook.restart()
        del pod["metadata"]["annotations"]
        verdict = await webhook.charge(pod)
        assert (verdict.result, verdict.code) == ("unavailable", 503)
        assert "does not exist" in verdict.message


async def test_something_else_under_the_name_of_a_template_is_refused() -> None:
    async with _running(5000) as webhook:
        pod = await webhook.mutate(build_pod(gpumem=1000))
        (template,) = webhook.cluster.objects(TEMPLATES)
        changed = copy.deepcopy(template)
        changed["spec"]["spec"]["devices"]["requests"] = []
        await webhook.cluster.put(TEMPLATES, changed)
        assert "exists with other content" in (await webhook.charge(pod)).message
        webhook.cluster.fault = lambda method, _: 500 if method == "GET" else None
        assert (await webhook.charge(pod)).result == "unavailable"


async def test_a_whole_card_cannot_be_counted_while_none_is_known() -> None:
    async with _running(99999) as webhook:
        webhook.nodes = frozenset()
        verdict = await webhook.create(gpu=1)
        assert verdict.result == "unavailable"
        assert "its memory is not known" in verdict.message
        webhook.nodes = _NODES
        assert (await webhook.create(gpu=1)).allowed
        assert webhook.used() == 40960


async def test_other_operations_pass() -> None:
    async with _running(0) as webhook:
        pod = await webhook.mutate(build_pod(gpumem=1000))
        assert await webhook.charge(pod, operation="UPDATE") == Verdict()


async def test_claims_are_counted_and_templates_are_not() -> None:
    async with _running(4000) as webhook:
        assert (await webhook.claim("ResourceClaimTemplate")).allowed
        assert webhook.used() == 0
        assert (await webhook.claim(dryRun=True)).allowed
        assert webhook.used() == 0
        assert (await webhook.claim()).allowed
        assert webhook.used() == 3072
        assert (await webhook.claim()).allowed  # the same claim


async def test_what_the_claim_controller_makes_is_counted_but_not_checked_again() -> None:
    async with _running(3000) as webhook:
        verdict = await webhook.claim(**_BY_CONTROLLER)
        assert verdict.message.startswith("ResourceClaim team/c: exceeded quota: gpus, requested: ")
        item = {"metadata": {"name": "c", "uid": "c-2"}, "spec": {"devices": {"config": [5]}}}
        by_controller = build_review(item, kind="ResourceClaim", **_BY_CONTROLLER)
        by_author = build_review(item, kind="ResourceClaim")
        assert (await webhook.claims.review(decode_review(encode(by_author)))).code == 403
        verdict = await webhook.claims.review(decode_review(encode(by_controller)))
        assert "exceeded quota" in verdict.message, "what cannot be read counts as a lot"


async def test_look_alikes_of_our_templates_are_refused() -> None:
    async with _running(None) as webhook:
        spec = {
            "metadata": {"labels": {"app.kubernetes.io/managed-by": "hami-dra"}},
            "spec": {"devices": {"requests": [{"name": "r", "exactly": _ASK}]}},
        }
        review = build_review(
            {"metadata": {"name": "t"}, "spec": spec}, kind="ResourceClaimTemplate"
        )
        verdict = await webhook.claims.review(decode_review(encode(review)))
        assert "reserved for templates made by admission" in verdict.message
