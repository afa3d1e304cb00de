"""Other people's words for fractional GPUs."""

from typing import Any

import jsonpatch
import pytest

from hami_dra.contract.errors import UserError
from hami_dra.contract.settings import decode_settings
from hami_dra.policy.fit import Card
from hami_dra.policy.podplan import plan_pod
from tests.unit.policy.golden import load_cases, name_case

_BOTH = decode_settings({"dialects": ["hami", "volcano"]})
_NODES = [(Card(16384, 100, 10),)]


def _pod(row: dict[str, Any], prefix: str) -> dict[str, Any]:
    resources = {
        key: {f"{prefix}/{name}": value for name, value in row[key].items()}
        for key in ("limits", "requests")
        if key in row
    }
    containers = [{"name": "main", "resources": resources}]
    metadata = {"annotations": row.get("annotations", {})}
    return {"metadata": metadata, "spec": {"containers": containers}}


@pytest.mark.parametrize("row", load_cases("volcano.yaml"), ids=name_case)
def test_volcano(row: dict[str, Any]) -> None:
    pod = _pod(row, "volcano.sh")
    assert plan_pod(pod) is None, "off by default"
    if "refused" in row:
        with pytest.raises(UserError) as caught:
            plan_pod(pod, _BOTH, nodes=_NODES)
        assert [part for part in row["refused"] if part not in str(caught.value)] == []
        return
    plan = plan_pod(pod, _BOTH, nodes=_NODES)
    assert plan is not None
    warns = row.get("warns", [])
    assert len(plan.warnings) == len(warns)
    assert all(part in text for part, text in zip(warns, plan.warnings, strict=True))
    assert "volcano.sh" not in str(plan.pod["spec"])
    assert jsonpatch.apply_patch(pod, plan.patch) == plan.pod
    assert plan_pod(plan.pod, _BOTH, nodes=_NODES) is None
    if "request" not in row:
        assert plan.template is None
        return
    assert plan.template is not None
    (request,) = plan.template["spec"]["spec"]["devices"]["requests"]
    exactly = request["exactly"]
    assert {"cards": exactly["count"], **exactly["capacity"]["requests"]} == {
        "slots": "1",
        **row["request"],
    }
    selectors = " ".join(entry["cel"]["expression"] for entry in exactly.get("selectors", []))
    assert [part for part in row.get("selects", []) if part not in selectors] == []


def test_volcano_gives_init_containers_nothing() -> None:
    limits = {"resources": {"limits": {"volcano.sh/vgpu-number": "1"}}}
    spec = {"initContainers": [{"name": "i", **limits}], "containers": [{"name": "m", **limits}]}
    plan = plan_pod({"spec": spec}, _BOTH)
    assert plan is not None
    assert plan.pod["spec"]["initContainers"] == [{"name": "i", "resources": {}}]
    assert len(plan.request.shares) == 1
    assert "spec.initContainers[0]: Volcano gives init containers no card" in plan.warnings[0]


def test_two_dialects_in_one_pod_are_denied_with_both_named() -> None:
    hami, volcano = ({"nvidia.com/gpumem": "1"}, {"volcano.sh/vgpu-number": "1"})
    containers = [
        {"name": "a", "resources": {"limits": hami}},
        {"name": "b", "resources": {"limits": volcano}},
    ]
    with pytest.raises(UserError) as caught:
        plan_pod({"spec": {"containers": containers}}, _BOTH)
    assert "hami (nvidia.com/gpumem in container 'a')" in str(caught.value)
    assert "volcano (volcano.sh/vgpu-number in container 'b')" in str(caught.value)
    plan = plan_pod({"spec": {"containers": containers}})
    assert plan is not None
    assert plan.request.uses == {"a": "a"}


def test_a_dialect_can_be_switched_off() -> None:
    only = decode_settings({"dialects": ["volcano"]})
    assert plan_pod(_pod({"limits": {"gpu": 1}}, "nvidia.com"), only) is None
    for wrong in ([], ["hami", "hami"]):
        with pytest.raises(UserError, match="dialects: "):
            decode_settings({"dialects": wrong})
    with pytest.raises(UserError, match="Invalid enum value 'esperanto'"):
        decode_settings({"dialects": ["esperanto"]})
