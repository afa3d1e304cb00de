"""vgpu-manager's words, and those of NVIDIA's device plugin."""

from contextlib import suppress
from typing import Any

import jsonpatch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami_dra.contract.errors import UserError
from hami_dra.contract.names import DEVICE_CLASS, DRIVER_NAME
from hami_dra.contract.settings import decode_settings
from hami_dra.policy.fit import Card
from hami_dra.policy.podplan import PodPlan, plan_pod
from tests.golden.rows import build_pod, load_cases, load_vendors, name_case

_NODES = [(Card(40960, 100, 10),) * 4]
_VGPU = {"dialects": ["hami", "vgpu-manager"]}
_PLUGIN = {"dialects": ["hami", "nvidia"], "nvidiaPlugin": {"replicas": 10}}


def _pod(row: dict[str, Any]) -> dict[str, Any]:
    return build_pod(row, "nvidia.com")


def _check(row: dict[str, Any], usual: dict[str, Any]) -> None:
    pod = _pod(row)
    settings = decode_settings(row.get("settings", usual))
    if "refused" in row:
        with pytest.raises(UserError) as caught:
            plan_pod(pod, settings, nodes=_NODES)
        assert [part for part in row["refused"] if part not in str(caught.value)] == []
        return
    plan = plan_pod(pod, settings, nodes=_NODES, rotation=2)
    assert plan is not None
    warns = row.get("warns", [])
    assert len(plan.warnings) == len(warns), plan.warnings
    assert [part for part, text in zip(warns, plan.warnings, strict=True) if part not in text] == []
    assert "/" not in "".join(plan.pod["spec"]["containers"][0]["resources"].get("limits", {}))
    assert jsonpatch.apply_patch(pod, plan.patch) == plan.pod
    assert plan_pod(plan.pod, settings, nodes=_NODES) is None
    assert list(plan.pod["spec"].get("affinity", {})) == (
        [row["affinity"]] if "affinity" in row else []
    )
    if "request" in row:
        _check_template(row, plan)
    else:
        assert plan.template is None


def _check_template(row: dict[str, Any], plan: PodPlan) -> None:
    assert plan.template is not None
    devices = plan.template["spec"]["spec"]["devices"]
    (request,) = devices["requests"]
    asks = request.get("firstAvailable", [request.get("exactly")])
    assert [ask["name"] for ask in asks if "name" in ask] == row.get("names", [])
    for ask in asks:
        ours = "class" not in row["request"]
        expected = {**({"slots": "1"} if ours else {}), "class": DEVICE_CLASS, **row["request"]}
        said = ask.get("capacity", {}).get("requests", {})
        assert {"cards": ask["count"], "class": ask["deviceClassName"], **said} == expected
        selectors = " ".join(entry["cel"]["expression"] for entry in ask.get("selectors", []))
        selectors = selectors.replace(f'device.attributes["{DRIVER_NAME}"]', "DRV")
        assert [part for part in row.get("selects", []) if part not in selectors] == []
    constraints = [
        entry["matchAttribute"]
        for entry in devices.get("constraints", [])
        if "matchAttribute" in entry
    ]
    assert constraints == row.get("constraints", [])
    config = {}
    for entry in devices.get("config", []):
        config = dict(entry["opaque"]["parameters"])
        del config["apiVersion"], config["kind"]
    assert config == row.get("config", {})


@pytest.mark.parametrize("row", load_cases("vgpu_manager.yaml"), ids=name_case)
def test_vgpu_manager(row: dict[str, Any]) -> None:
    if "nvidia.com/gpu" not in row["limits"]:
        assert plan_pod(_pod(row)) is None, "off by default"
    _check(row, _VGPU)


@pytest.mark.parametrize("row", load_cases("nvidia_plugin.yaml"), ids=name_case)
def test_nvidia_plugin(row: dict[str, Any]) -> None:
    if "nvidia.com/gpu" not in _pod(row)["spec"]["containers"][0]["resources"]["limits"]:
        assert plan_pod(_pod(row)) is None, "off by default"
    _check(row, _PLUGIN)


@pytest.mark.parametrize("row", load_cases("vendors.yaml"), ids=name_case)
def test_vendors(row: dict[str, Any]) -> None:
    if not any(key.startswith("nvidia.com") for key in row["limits"]):
        assert plan_pod(_pod(row)) is None, "off by default"
    _check(row, load_vendors())


def test_an_init_container_of_vgpu_manager_uses_the_share_that_covers_it() -> None:
    def ask(memory: int) -> dict[str, Any]:
        return {"resources": {"limits": {"nvidia.com/vgpu-memory": memory}}}

    spec = {
        "initContainers": [
            {"name": "small", **ask(100)},
            {"name": "large", **ask(9000)},
            {"name": "sidecar", "restartPolicy": "Always", **ask(50)},
        ],
        "containers": [{"name": "main", **ask(1000)}],
    }
    plan = plan_pod({"spec": spec}, decode_settings(_VGPU), nodes=_NODES)
    assert plan is not None
    assert plan.request.uses == {
        "small": "main",
        "large": "large",
        "sidecar": "sidecar",
        "main": "main",
    }


def test_containers_of_one_pod_may_have_mig_devices_and_parts_of_cards() -> None:
    spec = {
        "containers": [
            {"name": "a", "resources": {"limits": {"nvidia.com/mig-1g.5gb": "1"}}},
            {"name": "b", "resources": {"limits": {"nvidia.com/gpu-10gb": "1"}}},
            {"name": "c", "resources": {"limits": {"nvidia.com/gpu-x": "1"}}},
        ]
    }
    plan = plan_pod({"spec": spec}, decode_settings(_PLUGIN), nodes=_NODES)
    assert plan is not None
    assert plan.request.keys == ("nvidia.com/gpu-10gb", "nvidia.com/mig-1g.5gb")
    left = [container["resources"].get("limits") for container in plan.pod["spec"]["containers"]]
    assert left == [None, None, {"nvidia.com/gpu-x": "1"}]


def test_preferences_are_about_our_cards_only() -> None:
    usual = {"gpuSchedulerPolicy": "spread"}
    settings = decode_settings({**_PLUGIN, "defaultSchedulerPolicy": usual})
    pod = _pod({"limits": {"mig-1g.5gb": 1}})
    plan = plan_pod(pod, settings, nodes=_NODES)
    assert plan is not None
    assert plan.template is not None
    assert "exactly" in plan.template["spec"]["spec"]["devices"]["requests"][0]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"vgpuManager": {"domain": "Nvidia"}}, "vgpuManager.domain: "),
        ({"vgpuManager": {"memoryFactor": 0}}, "vgpuManager.memoryFactor: is 0"),
        ({"vgpuManager": {"computePolicy": "soft"}}, "Invalid enum value 'soft'"),
        ({"nvidiaPlugin": {"replicas": -1}}, "nvidiaPlugin.replicas: is -1"),
        ({"nvidiaPlugin": {"replicas": 101}}, "nvidiaPlugin.replicas: is 101"),
        ({"nvidiaPlugin": {"sharedResourceName": "x"}}, "nvidiaPlugin.sharedResourceName: 'x'"),
    ],
)
def test_settings_that_mean_nothing(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=field):
        decode_settings(wrong)


_KEYS = (
    *(f"nvidia.com/{name}" for name in ("gpu", "gpumem", "gpumem-percentage", "gpu.shared")),
    *(f"nvidia.com/vgpu-{name}" for name in ("number", "memory", "cores")),
    *(
        f"nvidia.com/{name}"
        for name in ("mig-1g.5gb", "mig-x", "mig-", "gpu-10gb", "gpu-", "gpu-x")
    ),
    *(f"huawei.com/Ascend310P{name}" for name in ("", "-memory", "-core")),
    *(f"hygon.com/dcu{name}" for name in ("num", "mem", "cores")),
    *(f"amd.com/gpu{name}" for name in ("", "mem", "cores")),
)
_VALUES = st.sampled_from(["0", "1", "2", "33", "100", "101", "5k", "4Gi", "3G", "-1", "x", 1, 1.5])
_ALL = decode_settings(
    {
        "dialects": ["hami", "vgpu-manager", "nvidia"],
        "nvidiaPlugin": {"replicas": 3, "failRequestsGreaterThanOne": False},
        **load_vendors(),
    }
)


@given(
    st.lists(st.dictionaries(st.sampled_from(_KEYS), _VALUES, max_size=3), min_size=1, max_size=3),
    st.integers(0, 2),
    st.dictionaries(
        st.sampled_from(
            [
                "nvidia.com/include-gpu-uuid",
                "nvidia.com/device-topology-mode",
                "nvidia.com/memory-scheduler-policy",
                "amd.com/use-gputype",
                "hami.io/no-use-Ascend310P-uuid",
            ]
        ),
        st.text(max_size=20) | st.sampled_from(["numa", "link-strict", "virtual", "a,b"]),
        max_size=2,
    ),
)
def test_any_pod_becomes_a_claim_once_or_is_refused(
    lists: list[dict[str, Any]], before: int, annotations: dict[str, str]
) -> None:
    containers = [
        {"name": f"c{number}", "resources": {"limits": limits}}
        for number, limits in enumerate(lists)
    ]
    spec = {"initContainers": containers[:before], "containers": containers[before:]}
    pod = {"metadata": {"annotations": annotations}, "spec": spec}
    plan = None
    with suppress(UserError):
        plan = plan_pod(pod, _ALL, nodes=_NODES)
    if plan is None:
        return
    assert jsonpatch.apply_patch(pod, plan.patch) == plan.pod
    assert plan_pod(plan.pod, _ALL, nodes=_NODES) is None
    requests = plan.template["spec"]["spec"]["devices"]["requests"] if plan.template else []
    names = [request["name"] for request in requests]
    assert sorted(set(plan.request.uses.values())) == sorted(names)


@pytest.mark.parametrize("dialect", ["hami", "volcano"])
def test_nobody_lifts_limits_where_the_operator_forbids_it(dialect: str) -> None:
    key = {"hami": "nvidia.com/gpumem", "volcano": "volcano.sh/vgpu-memory"}[dialect]
    container = {
        "name": "main",
        "resources": {"limits": {key: "100"}},
        "env": [{"name": "CUDA_DISABLE_CONTROL", "value": "true"}],
    }
    pod = {"spec": {"containers": [{"name": "other"}, container]}}
    plan = plan_pod(pod, decode_settings({"dialects": [dialect]}), nodes=_NODES)
    assert plan is not None
    assert not plan.request.shares[0].enforcement.control
    strict = decode_settings({"dialects": [dialect], "allowDisableControl": False})
    with pytest.raises(UserError, match=r"spec\.containers\[1\]\.env: switches off the limits"):
        plan_pod(pod, strict, nodes=_NODES)
