"""Claims that people write."""

from typing import Any

import pytest

from hami_dra.contract.errors import UserError
from hami_dra.contract.names import DEVICE_CLASS, DRIVER_NAME
from hami_dra.policy.claims import check_claim
from hami_dra.policy.fit import Demand, Need
from tests.unit.policy.golden import load_cases, name_case

_CONFIG = {"apiVersion": "gpu.project-hami.io/v1alpha1", "kind": "ShareConfig"}


def _claim(row: dict[str, Any]) -> dict[str, Any]:
    exactly = {"deviceClassName": DEVICE_CLASS, **row.get("request", {})}
    config = [
        entry
        if "opaque" in entry
        else {
            "requests": entry.get("requests", []),
            "opaque": {
                "driver": DRIVER_NAME,
                "parameters": {**_CONFIG, **{k: v for k, v in entry.items() if k != "requests"}},
            },
        }
        for entry in row.get("config", [])
    ]
    return {"devices": {"requests": [{"name": "gpu", "exactly": exactly}], "config": config}}


@pytest.mark.parametrize("row", load_cases("claims/refused.yaml"), ids=name_case)
def test_claims_that_cannot_work_are_refused_by_field(row: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        check_claim(_claim(row), field="spec")
    assert [part for part in row["says"] if part not in str(caught.value)] == []


def test_a_good_claim_says_what_it_demands() -> None:
    spec = _claim(
        {
            "request": {"count": 2, "capacity": {"requests": {"memory": "1500M", "cores": "30"}}},
            "config": [{"requests": ["gpu"], "memoryLimitMiB": 1000}],
        }
    )
    assert check_claim(spec, field="spec") == [Demand("request 'gpu'", (Need(2, 1431, 30),))]


def test_subrequests_are_checked_and_named() -> None:
    alternatives = [
        {"name": "big", "deviceClassName": DEVICE_CLASS},
        {"name": "odd", "deviceClassName": DEVICE_CLASS, "capacity": {"requests": {"core": "1"}}},
    ]
    spec = {"devices": {"requests": [{"name": "g", "firstAvailable": alternatives}]}}
    with pytest.raises(
        UserError, match=r"requests\[0\]\.firstAvailable\[1\].*did you mean 'cores'"
    ):
        check_claim(spec, field="spec.spec")


def test_a_configuration_may_name_a_subrequest() -> None:
    alternatives = [
        {
            "name": "big",
            "deviceClassName": DEVICE_CLASS,
            "capacity": {"requests": {"memory": "2Gi"}},
        },
        {"name": "foreign", "deviceClassName": "other"},
    ]
    parameters = {**_CONFIG, "memoryLimitMiB": 2048}
    config = {"requests": ["g/big"], "opaque": {"driver": DRIVER_NAME, "parameters": parameters}}
    spec = {
        "devices": {"requests": [{"name": "g", "firstAvailable": alternatives}], "config": [config]}
    }
    assert check_claim(spec, field="spec") == []  # the other class may satisfy it
    parameters["memoryLimitMiB"] = 2049
    with pytest.raises(UserError, match="consumes only 2048 MiB"):
        check_claim(spec, field="spec")


def test_an_administrator_may_look_without_memory() -> None:
    row = {"request": {"adminAccess": True, "capacity": {"requests": {"memory": "0"}}}}
    assert check_claim(_claim(row), field="spec")


def test_other_drivers_are_none_of_our_business() -> None:
    spec = {
        "devices": {
            "requests": [
                {
                    "name": "n",
                    "exactly": {"deviceClassName": "x", "capacity": {"requests": {"q": "-1"}}},
                }
            ],
            "config": [{"opaque": {"driver": "other", "parameters": {"any": "thing"}}}],
        }
    }
    assert check_claim(spec, field="spec") == []


def test_a_claim_may_lift_its_limits_only_where_that_is_allowed() -> None:
    spec = _claim({"config": [{"disableControl": True}]})
    assert check_claim(spec, field="spec")
    with pytest.raises(UserError) as caught:
        check_claim(spec, field="spec", allow_disable_control=False)
    assert caught.value.field == "spec.devices.config[0].opaque.parameters.disableControl"
    kept = _claim({"config": [{"disableControl": False}]})
    assert check_claim(kept, field="spec", allow_disable_control=False)
