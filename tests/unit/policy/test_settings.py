"""What the operator's settings make of a pod."""

from typing import Any

import jsonpatch
import pytest

from hami_dra.contract.errors import UserError
from hami_dra.contract.settings import decode_settings
from hami_dra.policy.podplan import plan_pod
from tests.unit.policy.golden import build_pod, load_cases, name_case


@pytest.mark.parametrize("row", load_cases("hami/settings.yaml"), ids=name_case)
def test_settings_mean_what_they_mean_in_hami(row: dict[str, Any]) -> None:
    settings = decode_settings({"nvidia": row["nvidia"]})
    pod = build_pod(row, "nvidia.com")
    if "refused" in row:
        with pytest.raises(UserError) as caught:
            plan_pod(pod, settings)
        assert [part for part in row["refused"] if part not in str(caught.value)] == []
        return
    plan = plan_pod(pod, settings)
    if "untouched" in row:
        assert plan is None
        return
    assert plan is not None
    assert "limits" not in plan.pod["spec"]["containers"][0]["resources"]
    if "request" not in row:
        assert plan.template is None
        return
    assert plan.template is not None
    devices = plan.template["spec"]["spec"]["devices"]
    exactly = devices["requests"][0]["exactly"]
    asked = {"cards": exactly["count"], **exactly["capacity"]["requests"]}
    assert asked == {"slots": "1", **row["request"]}
    config = [entry["opaque"]["parameters"] for entry in devices.get("config", [])]
    names = {"memoryLimitMiB": "limit_mib", "corePolicy": "core_policy"}
    expected = {key: row[name] for key, name in names.items() if name in row}
    kind = {"apiVersion": "gpu.project-hami.io/v1alpha1", "kind": "ShareConfig"}
    assert config == ([{**kind, **expected}] if expected else [])


_HIDE = decode_settings({"nvidia": {"overwriteEnv": True}})
_NONE = {"name": "NVIDIA_VISIBLE_DEVICES", "value": "none"}
_ALL = {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}
_OTHER = {"name": "A", "value": "b"}


@pytest.mark.parametrize(
    ("container", "env"),
    [
        ({}, [_NONE]),
        ({"env": [_OTHER]}, [_OTHER, _NONE]),
        ({"env": [_ALL, _OTHER]}, [_OTHER, _NONE]),
        ({"env": [_NONE, _OTHER]}, [_NONE, _OTHER]),
        ({"env": [_NONE, _ALL]}, [_NONE]),
        ({"resources": {"limits": {"cpu": "1"}}}, [_NONE]),
        ({"resources": {"limits": {"nvidia.com/gpu": "0"}}}, [_NONE]),
        ({"resources": {"limits": {"nvidia.com/gpu": "1"}}, "env": [_ALL]}, [_ALL]),
        ({"resources": {"limits": {"nvidia.com/mig-1g.5gb": "1"}}}, None),
        ({"resources": {"claims": [{"name": "mine"}]}}, None),
    ],
)
@pytest.mark.parametrize("kind", ["containers", "initContainers"])
def test_cards_are_hidden_from_containers_without_one(
    container: dict[str, Any], env: Any, kind: str
) -> None:
    main = {"name": "main", "resources": {"limits": {"nvidia.com/gpumem": "9"}}}
    spec: dict[str, Any] = {"containers": [main]}
    spec[kind] = [*spec.get(kind, []), {"name": "it", **container}]
    pod = {"spec": spec}
    plan = plan_pod(pod, _HIDE)
    assert plan is not None
    assert plan.pod["spec"][kind][-1].get("env") == env
    assert "env" not in plan.pod["spec"]["containers"][0], "main has a share"
    assert jsonpatch.apply_patch(pod, plan.patch) == plan.pod
    assert plan_pod(plan.pod, _HIDE) is None


def test_cards_are_hidden_in_pods_that_ask_for_none_if_the_operator_wants_it() -> None:
    pod = {"spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "b"}]}}
    plan = plan_pod(pod, _HIDE)
    assert plan is not None
    assert plan.template is None
    assert plan.pod["spec"]["containers"] == [{"name": "a", "env": [_NONE]}]
    assert plan_pod(plan.pod, _HIDE) is None
    assert plan_pod(pod) is None


def test_a_privileged_container_sees_cards_anyway() -> None:
    container = {"name": "a", "securityContext": {"privileged": True}}
    assert plan_pod({"spec": {"containers": [container]}}, _HIDE) is None
