"""Other people's words for fractional GPUs."""

from typing import Any, get_args

import jsonpatch
import pytest

from hami_dra.contract.errors import UserError
from hami_dra.contract.names import DEVICE_CLASS
from hami_dra.contract.settings import DialectName, decode_settings
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
    settings = decode_settings(row["settings"]) if "settings" in row else _BOTH
    if "refused" in row:
        with pytest.raises(UserError) as caught:
            plan_pod(pod, settings, nodes=_NODES)
        assert [part for part in row["refused"] if part not in str(caught.value)] == []
        return
    plan = plan_pod(pod, settings, nodes=_NODES)
    assert plan is not None
    warns = row.get("warns", [])
    assert len(plan.warnings) == len(warns)
    assert all(part in text for part, text in zip(warns, plan.warnings, strict=True))
    assert "volcano.sh" not in str(plan.pod["spec"])
    assert jsonpatch.apply_patch(pod, plan.patch) == plan.pod
    assert plan_pod(plan.pod, settings, nodes=_NODES) is None
    if "request" not in row:
        assert plan.template is None
        return
    assert plan.template is not None
    (request,) = plan.template["spec"]["spec"]["devices"]["requests"]
    exactly = request["exactly"]
    shared = "class" not in row["request"]
    expected = {**({"slots": "1"} if shared else {}), "class": DEVICE_CLASS, **row["request"]}
    asked = {"cards": exactly["count"], "class": exactly["deviceClassName"]}
    assert {**asked, **exactly["capacity"]["requests"]} == expected
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


_SPOKEN: dict[DialectName, tuple[str, dict[str, Any], dict[str, str]]] = {
    "hami": ("nvidia.com/gpumem", {"nvidia.com/gpumem": "1"}, {}),
    "volcano": ("volcano.sh/vgpu-number", {"volcano.sh/vgpu-number": "1"}, {}),
    "kai": ("gpu-fraction", {}, {"gpu-fraction": "0.5"}),
    "koordinator": ("koordinator.sh/gpu", {"koordinator.sh/gpu": "50"}, {}),
    "vgpu-manager": ("nvidia.com/vgpu-number", {"nvidia.com/vgpu-number": "1"}, {}),
    "nvidia": ("nvidia.com/gpu.shared", {"nvidia.com/gpu.shared": "1"}, {}),
    "gpushare": ("aliyun.com/gpu-mem", {"aliyun.com/gpu-mem": "2"}, {}),
}
"""A key of each dialect, as limits and annotations of a pod."""


def test_every_dialect_is_spoken_here() -> None:
    assert set(_SPOKEN) == set(get_args(DialectName))


@pytest.mark.parametrize("first", _SPOKEN)
@pytest.mark.parametrize("second", _SPOKEN)
def test_two_dialects_in_one_pod_are_denied_with_both_named(
    first: DialectName, second: DialectName
) -> None:
    spoken = [_SPOKEN[first], _SPOKEN[second]]
    containers = [
        {"name": name, "resources": {"limits": limits}}
        for name, (_, limits, _) in zip("ab", spoken, strict=True)
    ]
    annotations = {key: value for _, _, said in spoken for key, value in said.items()}
    pod = {"metadata": {"annotations": annotations}, "spec": {"containers": containers}}
    replicas = {"nvidiaPlugin": {"replicas": 10}}
    both = decode_settings({"dialects": list(dict.fromkeys([first, second])), **replicas})
    alone = plan_pod(pod, decode_settings({"dialects": [first], **replicas}), nodes=_NODES)
    assert alone is not None
    if first == second:
        return
    assert alone.request.uses == {"a": "a"}, "the other dialect is off"
    with pytest.raises(UserError) as caught:
        plan_pod(pod, both, nodes=_NODES)
    for dialect, (key, limits, _), name in zip((first, second), spoken, "ab", strict=True):
        assert f"{dialect} ({key} in container '{name if limits else 'a'}')" in str(caught.value)


def test_a_dialect_can_be_switched_off() -> None:
    only = decode_settings({"dialects": ["volcano"]})
    assert plan_pod(_pod({"limits": {"gpu": 1}}, "nvidia.com"), only) is None
    for wrong in ([], ["hami", "hami"]):
        with pytest.raises(UserError, match="dialects: "):
            decode_settings({"dialects": wrong})
    with pytest.raises(UserError, match="Invalid enum value 'esperanto'"):
        decode_settings({"dialects": ["esperanto"]})
