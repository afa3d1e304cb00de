"""Other vendors' devices, beside our cards and by the operator's table."""

from typing import Any

import jsonpatch
import pytest

from hami_dra.contract.errors import UserError
from hami_dra.contract.settings import decode_settings
from hami_dra.policy.fit import Card, demands_of_shares
from hami_dra.policy.podplan import plan_pod
from tests.golden.rows import load_vendors

_NODES = [(Card(40960, 100, 10),) * 4]
_VENDORS = load_vendors()
_ROW: dict[str, Any] = {
    "name": "npu",
    "driver": "npu.example.com",
    "deviceClass": "npu",
    "count": "example.com/npu",
}


def _container(name: str, **limits: Any) -> dict[str, Any]:
    written = {key.replace("__", "/").replace("_", "."): value for key, value in limits.items()}
    return {"name": name, "resources": {"limits": written}}


def _row(**more: Any) -> dict[str, Any]:
    return {"vendors": [{**_ROW, **more}]}


def _devices(pod: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    plan = plan_pod(pod, decode_settings(settings), nodes=_NODES, rotation=1)
    assert plan is not None
    assert plan.template is not None
    assert jsonpatch.apply_patch(pod, plan.patch) == plan.pod
    devices: dict[str, Any] = plan.template["spec"]["spec"]["devices"]
    return devices


def test_one_pod_may_have_cards_and_devices_of_two_vendors() -> None:
    pod = {
        "metadata": {
            "annotations": {
                "nvidia.com/use-gputype": "A100",
                "nvidia.com/numa-bind": "true",
                "hami.io/gpu-scheduler-policy": "spread",
                "amd.com/use-gputype": "MI300X",
            }
        },
        "spec": {
            "initContainers": [
                _container("fetch", huawei_com__Ascend910B4=1),
                _container("other", huawei_com__Ascend310P=1),
            ],
            "containers": [
                _container("train", nvidia_com__gpu=2),
                _container("serve", huawei_com__Ascend910B4=1),
                _container("draw", amd_com__gpu=2),
                _container("plain", cpu=1),
            ],
        },
    }
    plan = plan_pod(pod, decode_settings(_VENDORS), nodes=_NODES)
    assert plan is not None
    own = {name: name for name in ("train", "serve", "draw", "other")}
    assert plan.request.uses == {**own, "fetch": "serve"}
    left = [each["resources"].get("limits") for each in plan.pod["spec"]["containers"]]
    assert left == [None, None, None, {"cpu": 1}]
    assert set(plan.request.original) == {*own, "fetch"}
    assert plan_pod(plan.pod, decode_settings(_VENDORS), nodes=_NODES) is None
    devices = _devices(pod, _VENDORS)
    classes = {
        each["name"]: [
            ask["deviceClassName"] for ask in each.get("firstAvailable", [each.get("exactly")])
        ]
        for each in devices["requests"]
    }
    assert classes == {
        "train": ["hami-core-gpu.project-hami.io"],
        "serve": ["npu-hamivnpucore.project-hami.io"],
        "draw": ["gpu.amd.com"],
        "other": ["npu-hamivnpucore.project-hami.io"],
    }
    selectors = {
        each["name"]: str(each.get("exactly", {}).get("selectors")) for each in devices["requests"]
    }
    assert '"a100"' in selectors["train"]
    assert "a100" not in selectors["draw"] + selectors["serve"]
    numa = {"matchAttribute": "resource.kubernetes.io/numaNode", "requests": ["train"]}
    assert numa in devices["constraints"]
    assert not any("draw" in entry["requests"] for entry in devices["constraints"])
    assert [demand.what for demand in demands_of_shares(plan.request.shares)] == [
        "container 'train'"
    ]


def test_a_container_with_a_share_may_say_zero_of_another_vendor() -> None:
    limits = {"nvidia_com__gpumem": 1000, "amd_com__gpu": 0}
    pod = {"spec": {"containers": [_container("main", **limits)]}}
    plan = plan_pod(pod, decode_settings(_VENDORS), nodes=_NODES)
    assert plan is not None
    assert plan.request.original["main"] == {
        "limits": {"nvidia.com/gpumem": 1000, "amd.com/gpu": 0}
    }
    assert plan.pod["spec"]["containers"][0]["resources"].get("limits") is None
    again = plan_pod(plan.pod, decode_settings(_VENDORS), nodes=_NODES)
    assert again is None


def test_what_a_row_leaves_out_is_left_to_the_driver() -> None:
    pod = {"spec": {"containers": [_container("main", example_com__npu=1)]}}
    (request,) = _devices(pod, _row())["requests"]
    assert request["exactly"] == {
        "deviceClassName": "npu",
        "allocationMode": "ExactCount",
        "count": 1,
    }


def test_amounts_have_units_and_defaults() -> None:
    memory = {"resource": "example.com/mem", "capacity": "hbm", "unit": "256Mi", "default": 4}
    cores = {"resource": "example.com/core", "capacity": "example.com/aic", "unit": "2.5"}
    row = _row(memory=memory, cores=cores, slots="shares", distinctAttribute="example.com/serial")
    pod = {"spec": {"containers": [_container("main", example_com__npu=2, example_com__core=3)]}}
    devices = _devices(pod, row)
    asked = devices["requests"][0]["exactly"]["capacity"]["requests"]
    assert asked == {"hbm": "1Gi", "example.com/aic": "8", "shares": "1"}
    assert devices["constraints"] == [
        {"distinctAttribute": "example.com/serial", "requests": ["main"]}
    ]
    alone = {"spec": {"containers": [_container("main", example_com__mem=2)]}}
    (request,) = _devices(alone, row)["requests"]
    assert request["exactly"]["capacity"]["requests"] == {"hbm": "512Mi", "shares": "1"}
    none = plan_pod(alone, decode_settings(_row(memory=memory, defaultCount=0)))
    assert none is not None
    assert none.template is None


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (_row(name="Npu"), r"vendors\[0\].name: 'Npu' must be"),
        ({"vendors": [_ROW, {**_ROW, "count": "example.com/x"}]}, r"vendors\[1\].name: 'npu'"),
        ({"vendors": [_ROW, {**_ROW, "name": "b"}]}, r"vendors\[1\]: 'example.com/npu' is the"),
        (_row(count="nvidia.com/gpu"), r"vendors\[0\]: 'nvidia.com/gpu' is the name of two"),
        (_row(count="cpu"), r"vendors\[0\]: 'cpu' is no name of an extended resource"),
        (_row(driver="x" * 64), r"vendors\[0\].driver: "),
        (_row(deviceClass="A"), r"vendors\[0\].deviceClass: 'A'"),
        (_row(slots="a-b"), r"vendors\[0\].slots: 'a-b'"),
        (_row(distinctAttribute='u"'), r"vendors\[0\].distinctAttribute: "),
        (_row(defaultCount=33), r"vendors\[0\].defaultCount: is 33"),
        (_row(memory={"resource": "a.b/m", "unit": "1k"}), r"memory.unit: is 1k; write a whole"),
        (_row(memory={"resource": "a.b/m", "unit": "-1Mi"}), r"memory.unit: is -1Mi; write a pos"),
        (_row(memory={"resource": "a.b/m", "unit": "lots"}), r"memory.unit: 'lots' is not a qua"),
        (_row(memory={"resource": "a.b/m", "capacity": "a/b/c"}), r"memory.capacity: 'a/b/c'"),
        (_row(cores={"resource": "a.b/c", "default": -1}), r"cores.default: is -1"),
        (_row(selectors=[""]), r"vendors\[0\].selectors: an expression has"),
        (_row(selectors=["true"] * 9), r"vendors\[0\].selectors: has more than 8"),
        (_row(annotations=[{"key": "-", "attribute": "a"}]), r"annotations\[0\].key: '-'"),
        (_row(annotations=[{"key": "a", "attribute": "a.b"}]), r"annotations\[0\].attribute: "),
        (_row(annotations=[{"key": "a", "attribute": "a", "match": "?"}]), "Invalid enum value"),
        (_row(colour="red"), "unknown field `colour`"),
        ({"vendors": [{**_ROW, "name": f"v{n}"} for n in range(65)]}, "vendors: has 65 rows"),
    ],
)
def test_rows_that_no_claim_can_be_made_from(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=field):
        decode_settings(wrong)


def test_the_table_that_we_ship_is_a_configuration() -> None:
    names = [vendor.name for vendor in decode_settings(_VENDORS).vendors]
    assert {"amd", "aws-neuron", "hygon", "ascend-910b4"} <= set(names)
