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
    pod = {"spec": {"containers": [{"name": "main", "resources": {"limits": row["limits"]}}]}}
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
    limits = [c["opaque"]["parameters"]["memoryLimitMiB"] for c in devices.get("config", [])]
    assert limits == ([row["limit_mib"]] if "limit_mib" in row else [])
