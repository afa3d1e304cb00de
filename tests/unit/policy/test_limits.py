"""Where a claim, an annotation or a name has no room for what a pod asks."""

import json
from typing import Any

import pytest

from hami_dra.contract.errors import UserError
from hami_dra.policy.fit import Card
from hami_dra.policy.podplan import PodPlan, plan_pod
from tests.generate.rules import breaches_of_template

_ORIGINAL = "gpu.project-hami.io/original-request"


def _pod(containers: int = 1, annotations: dict[str, str] | None = None, **keys: int) -> Any:
    limits = {f"nvidia.com/{key}": str(value) for key, value in (keys or {"gpu": 1}).items()}
    return {
        "metadata": {"name": "p", "annotations": annotations or {}},
        "spec": {
            "containers": [
                {"name": f"c{i}", "resources": {"limits": dict(limits)}} for i in range(containers)
            ]
        },
    }


def _plan(pod: Any) -> PodPlan:
    plan = plan_pod(pod, nodes=[tuple(Card(1000 * 2**i, 100, 10) for i in range(4))])
    assert plan is not None
    return plan


def test_a_preference_gives_way_where_constraints_have_no_room() -> None:
    wishes = {"nvidia.com/numa-bind": "true", "hami.io/gpu-scheduler-policy": "topology-aware"}
    for containers, kept in ((10, True), (11, False), (16, False)):
        plan = _plan(_pod(containers, wishes, gpu=2, gpumem=1))
        assert plan.template is not None
        assert list(breaches_of_template(plan.template)) == []
        text = json.dumps(plan.template)
        assert ("pcieRoot" in text) == kept
        assert "numaNode" in text
        assert any("a claim has room for 32 constraints" in each for each in plan.warnings) != kept


def test_lists_of_cards_for_many_containers_are_denied_by_size() -> None:
    # 10 KiB of condition in each of eight alternatives of each of 32 requests.
    lists = {f"nvidia.com/{key}": "x" * 10_000 for key in ("use-gputype", "nouse-gputype")}
    pod = _pod(32, lists, **{"gpumem-percentage": 10})
    with pytest.raises(
        UserError, match=r"32 containers, make a claim of 2[0-9]{6} bytes"
    ) as caught:
        _plan(pod)
    assert caught.value.field == "metadata.annotations"


@pytest.mark.parametrize("left", [59, 100])
def test_the_kept_request_counts_among_the_annotations(left: int) -> None:
    kept = len('{"c0":{"limits":{"nvidia.com/gpu":"1"}}}') + len(_ORIGINAL)
    filler = (256 << 10) - left - len("filler")
    pod = _pod(1, {"filler": "x" * filler})
    if kept <= left:
        assert _plan(pod).template is not None
        return
    with pytest.raises(UserError, match="an object has at most 262144") as caught:
        _plan(pod)
    assert caught.value.field == "metadata.annotations"


def test_a_container_cannot_use_our_claim_before_it_exists() -> None:
    pod = _pod(2)
    pod["spec"]["containers"][1]["resources"] = {"claims": [{"name": "hami-gpu"}]}
    with pytest.raises(UserError) as caught:
        _plan(pod)
    assert caught.value.field == "spec.containers[1].resources.claims[0].name"


@pytest.mark.parametrize(
    "original",
    [
        '{"c0":{"claims":{}}}',
        '{"c0":{"limits":{"nvidia.com/gpu":{}}}}',
        '{"c0":{"limits":{"nvidia.com/gpu":true}}}',
        '{"c0":{"limits":[]}}',
        '{"c0":{"image":{"x":"y"}}}',
    ],
)
def test_a_forged_annotation_reaches_no_other_field(original: str) -> None:
    pod = _pod()
    pod["metadata"]["annotations"][_ORIGINAL] = original
    pod["spec"]["resourceClaims"] = [
        {"name": "hami-gpu", "resourceClaimTemplateName": "hami-gpu-0123456789abcdef"}
    ]
    pod["spec"]["containers"][0]["resources"]["claims"] = [{"name": "hami-gpu", "request": "c0"}]
    with pytest.raises(UserError) as caught:
        _plan(pod)
    assert caught.value.field == "spec.resourceClaims[0].name"


def test_values_that_no_dialect_looks_at_are_kept_and_found_again() -> None:
    pod = _pod()
    requests = {"nvidia.com/priority": None, "nvidia.com/gpu": 0.5}
    pod["spec"]["containers"][0]["resources"]["requests"] = requests
    first = _plan(pod)
    late = {"name": "late", "resources": {"limits": {"nvidia.com/gpu": "1"}}}
    first.pod["spec"]["containers"].append(late)
    second = _plan(first.pod)
    assert [share.container for share in second.request.shares] == ["c0", "late"]
