"""Which claims are counted with their pod."""

from typing import Any

import pytest

from hami_dra.contract.errors import UserError
from hami_dra.contract.names import ANNOTATION_QUOTA
from hami_dra.policy.limited import check_template, list_own_claims, mark_limited
from hami_dra.policy.podplan import plan_pod

_NAME = "hami-gpu-0123456789abcdef"


def _pod(*templates: Any, **metadata: Any) -> dict[str, Any]:
    entries = [
        {"name": f"c{i}", "resourceClaimTemplateName": template}
        for i, template in enumerate(templates)
    ]
    return {"metadata": metadata, "spec": {"containers": [], "resourceClaims": entries}}


def test_only_claims_from_templates_of_ours_are_listed() -> None:
    pod = _pod("mine", _NAME, "hami-gpu-x", None, 5)
    pod["spec"]["resourceClaims"].append({"name": "direct", "resourceClaimName": _NAME})
    assert list_own_claims(pod) == {"c1": _NAME}
    for odd in ({}, {"spec": None}, {"spec": {"resourceClaims": 5}}, _pod()):
        assert list_own_claims(odd) == {}


def test_a_pod_is_marked_once_and_only_with_reason() -> None:
    plain = _pod("mine")
    assert mark_limited(plain) is plain
    marked = mark_limited(_pod(_NAME, annotations={"a": "b"}))
    assert marked["metadata"]["annotations"] == {"a": "b", ANNOTATION_QUOTA: "true"}
    assert mark_limited(marked) is marked


def _template() -> dict[str, Any]:
    resources = {"limits": {"nvidia.com/gpumem": "1000"}}
    plan = plan_pod({"spec": {"containers": [{"name": "main", "resources": resources}]}})
    assert plan is not None
    assert plan.template is not None
    return plan.template


def test_what_admission_writes_is_its_own_template() -> None:
    template = _template()
    check_template(template)
    template["spec"]["metadata"]["creationTimestamp"] = None  # API servers before 1.34
    check_template(template)
    check_template({"metadata": {"name": "mine"}, "spec": {"spec": template["spec"]["spec"]}})


@pytest.mark.parametrize("change", ["name", "content", "label"])
def test_a_look_alike_is_refused(change: str) -> None:
    template = _template()
    if change == "name":
        template["metadata"]["name"] = _NAME
    elif change == "content":
        template["spec"]["spec"]["devices"]["requests"][0]["exactly"]["count"] = 2
    else:
        template["metadata"]["name"] = "mine"
    with pytest.raises(UserError, match="reserved for templates made by admission"):
        check_template(template)
