"""Claims and templates at admission."""

from typing import Any

from hami_dra.contract.names import DEVICE_CLASS, DRIVER_NAME
from hami_dra.policy.fit import Card, NodeCards
from hami_dra.webhook.review import Verdict, decode_review
from hami_dra.webhook.validate import ClaimReviewer
from tests.unit.webhook.reviews import KINDS, build_review, encode

_NODES: frozenset[NodeCards] = frozenset({(Card(40960, 100, 10),)})


def _spec(**capacity: str) -> dict[str, Any]:
    exactly = {"deviceClassName": DEVICE_CLASS, "capacity": {"requests": capacity}}
    return {"devices": {"requests": [{"name": "gpu", "exactly": exactly}]}}


def _claim(**capacity: str) -> dict[str, Any]:
    return {"metadata": {"name": "mine"}, "spec": _spec(**capacity)}


async def _review(item: Any, *, kind: str = "ResourceClaim", **request: Any) -> Verdict:
    body = encode(build_review(item, kind=kind, **request))
    return await ClaimReviewer(lambda: _NODES).review(decode_review(body))


async def test_a_good_claim_passes() -> None:
    assert await _review(_claim(memory="1Gi", cores="0", slots="1")) == Verdict()


async def test_a_bad_claim_is_named_with_its_field() -> None:
    verdict = await _review(_claim(memroy="1Gi"))
    assert verdict.code == 403
    assert verdict.message.startswith(
        'ResourceClaim team/mine: spec.devices.requests[0].exactly.capacity.requests["memroy"]: '
    )


async def test_a_template_is_checked_one_level_deeper() -> None:
    item = {"metadata": {"generateName": "t-"}, "spec": {"spec": _spec(memory="-1")}}
    verdict = await _review(item, kind="ResourceClaimTemplate")
    assert verdict.message.startswith(
        'ResourceClaimTemplate team/t-: spec.spec.devices.requests[0].exactly.capacity.requests["m'
    )


async def test_a_claim_above_every_card_is_a_warning() -> None:
    verdict = await _review(_claim(memory="80Gi"))
    assert verdict.allowed
    assert "request 'gpu': no card of the cluster has 81920 MiB" in verdict.warnings[0]


async def test_an_update_that_leaves_a_bad_spec_alone_passes() -> None:
    old, new = _claim(memory="0"), _claim(memory="0")
    new["metadata"]["finalizers"] = []
    assert await _review(new, operation="UPDATE", oldObject=old) == Verdict()
    assert not (await _review(new, operation="UPDATE", oldObject=_claim(memory="1Gi"))).allowed


async def test_other_operations_pass() -> None:
    assert await _review(None, operation="DELETE") == Verdict()


async def test_what_it_does_not_understand_is_refused() -> None:
    review = build_review({}, kind="ResourceClaim")
    review["request"]["kind"] = {**KINDS["ResourceClaim"], "version": "v1beta1"}
    verdict = await ClaimReviewer(lambda: None).review(decode_review(encode(review)))
    assert "not resource.k8s.io/v1beta1 ResourceClaim" in verdict.message
    assert "spec: is missing" in (await _review({"metadata": {"name": "x"}})).message
    assert (
        "spec.spec: is missing"
        in (await _review({"spec": 1}, kind="ResourceClaimTemplate")).message
    )


async def test_the_operator_may_forbid_claims_that_lift_their_limits() -> None:
    claim = _claim(memory="1Gi")
    parameters = {
        "apiVersion": "gpu.project-hami.io/v1alpha1",
        "kind": "ShareConfig",
        "disableControl": True,
    }
    claim["spec"]["devices"]["config"] = [
        {"opaque": {"driver": DRIVER_NAME, "parameters": parameters}}
    ]
    assert await _review(claim) == Verdict()
    reviewer = ClaimReviewer(lambda: _NODES, allow_disable_control=False)
    body = encode(build_review(claim, kind="ResourceClaim"))
    verdict = await reviewer.review(decode_review(body))
    assert verdict.code == 403
    assert "disableControl: lifts the limits of the share" in verdict.message
