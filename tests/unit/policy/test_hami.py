"""Golden tables: what an unchanged HAMi pod means."""

from typing import Any

import jsonpatch
import pytest

from hami_dra.contract.errors import UserError
from hami_dra.contract.names import DRIVER_NAME
from hami_dra.policy.podplan import PodPlan, plan_pod
from tests.unit.policy.golden import build_pod, load_cases, name_case


def _plan(row: dict[str, Any]) -> PodPlan:
    plan = plan_pod(build_pod(row, "nvidia.com"))
    assert plan is not None
    return plan


@pytest.mark.parametrize("row", load_cases("hami/truth.yaml"), ids=name_case)
def test_numbers_mean_what_they_mean_in_hami(row: dict[str, Any]) -> None:
    plan = _plan(row)
    warns = row.get("warns", [])
    assert len(plan.warnings) == len(warns)
    assert all(part in text for part, text in zip(warns, plan.warnings, strict=True))
    assert "nvidia.com" not in str(plan.pod["spec"])
    if "request" not in row:
        assert plan.template is None
        assert "resourceClaims" not in plan.pod["spec"]
        return
    assert plan.template is not None
    devices = plan.template["spec"]["spec"]["devices"]
    exactly = devices["requests"][0]["exactly"]
    capacity = exactly["capacity"]["requests"]
    assert {"cards": exactly["count"], **capacity} == {"slots": "1", **row["request"]}
    config = [entry["opaque"]["parameters"] for entry in devices.get("config", [])]
    kind = {"apiVersion": "gpu.project-hami.io/v1alpha1", "kind": "ShareConfig"}
    limit = {"memoryLimitMiB": row["limit_mib"]} if "limit_mib" in row else {}
    expected = {**limit, **row.get("config", {})}
    assert config == ([{**kind, **expected}] if expected else [])
    distinct = [{"distinctAttribute": f"{DRIVER_NAME}/uuid", "requests": ["main"]}]
    assert devices.get("constraints", []) == (distinct if exactly["count"] > 1 else [])


@pytest.mark.parametrize("row", load_cases("hami/refused.yaml"), ids=name_case)
def test_bad_input_is_refused_by_field(row: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        plan_pod(build_pod(row, "nvidia.com"))
    assert [part for part in row["says"] if part not in str(caught.value)] == []


@pytest.mark.parametrize("row", load_cases("hami/pods.yaml"), ids=name_case)
def test_whole_pods(row: dict[str, Any]) -> None:
    plan = plan_pod(row["pod"])
    assert plan is not None
    if plan.template is None:
        assert "devices" not in row
    else:
        assert plan.template["spec"]["spec"]["devices"] == row["devices"]
        assert plan.template["metadata"]["name"] == row["name"]
    assert plan.pod == row["stored"]
    assert jsonpatch.apply_patch(row["pod"], plan.patch) == row["stored"]
    warns = row.get("warns", [])
    assert len(plan.warnings) == len(warns)
    assert all(part in text for part, text in zip(warns, plan.warnings, strict=True))


def test_the_shares_of_a_pod_must_fit_one_claim() -> None:
    limits = {"limits": {"nvidia.com/gpu": "17"}}
    pod = {"spec": {"containers": [{"name": n, "resources": limits} for n in ("a", "b")]}}
    with pytest.raises(UserError, match=r"spec\.containers: .* 34 cards together; .* at most 32"):
        plan_pod(pod)


def test_percent_of_priority_in_both_lists_is_stripped_from_both() -> None:
    plan = _plan({"limits": {"gpumem": 1, "priority": 1}, "requests": {"priority": 1, "gpumem": 1}})
    assert plan.pod["spec"]["containers"][0]["resources"] == {
        "claims": [{"name": "hami-gpu", "request": "main"}]
    }
