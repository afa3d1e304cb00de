"""What the operator's settings make of a pod."""

from typing import Any

import pytest

from hami_dra.contract.errors import UserError
from hami_dra.contract.settings import decode_settings
from hami_dra.policy.podplan import plan_pod
from tests.unit.policy.golden import load_cases, name_case


@pytest.mark.parametrize("row", load_cases("hami/settings.yaml"), ids=name_case)
def test_settings_mean_what_they_mean_in_hami(row: dict[str, Any]) -> None:
    settings = decode_settings({"nvidia": row["nvidia"]})
    container: dict[str, Any] = {"name": "main", "resources": {"limits": row["limits"]}}
    if "env" in row:
        container["env"] = [{"name": "GPU_CORE_UTILIZATION_POLICY", "value": row["env"]}]
    pod = {"spec": {"containers": [container]}}
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
