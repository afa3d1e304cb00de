"""Which pods the scheduler understands without us."""

from typing import Any

import pytest

from hami_dra.contract.errors import UserError
from hami_dra.contract.settings import decode_settings
from hami_dra.policy.fit import Card
from hami_dra.policy.podplan import plan_pod
from hami_dra.policy.podview import view_pod

_NATIVE = {"nativeWholeCards": True, "dialects": ["hami", "nvidia", "kai"]}
_NODES = [(Card(40960, 100, 10),)]


def _pod(*limits: dict[str, Any], **annotations: str) -> dict[str, Any]:
    containers = [
        {"name": f"c{index}", "resources": {"limits": each, "requests": dict(each)}}
        for index, each in enumerate(limits)
    ]
    keys = {key.replace("__", "/").replace("_", "-"): text for key, text in annotations.items()}
    return {"metadata": {"annotations": keys}, "spec": {"containers": containers}}


def _plans(pod: dict[str, Any], settings: dict[str, Any] = _NATIVE) -> bool:
    return plan_pod(pod, decode_settings(settings), nodes=_NODES) is not None


def test_whole_cards_alone_are_left_to_the_scheduler_where_the_operator_wants_it() -> None:
    whole = {"nvidia.com/gpu": "1"}
    assert _plans(_pod(whole), {})
    assert not _plans(_pod(whole))
    assert not _plans(_pod({**whole, "cpu": 1}, {"memory": "1Gi"}, {"nvidia.com/gpu": "2"}))
    assert not _plans(_pod(whole, example_com__note="x"))


@pytest.mark.parametrize(
    "pod",
    [
        _pod({"nvidia.com/gpu": "1", "nvidia.com/gpumem": "100"}),
        _pod({"nvidia.com/gpu": "1", "nvidia.com/priority": "0"}),
        _pod({"nvidia.com/gpu": "1"}, {"nvidia.com/gpucores": "10"}),
        _pod({"nvidia.com/gpu": "1"}, nvidia_com__x="", **{"nvidia.com/use-gputype": "A100"}),
        _pod({"nvidia.com/gpu": "1"}, **{"nvidia.com/numa-bind": "true"}),
        _pod({"nvidia.com/gpu": "1"}, **{"hami.io/node-scheduler-policy": "spread"}),
        {
            "spec": {
                **_pod({"nvidia.com/gpu": "1"})["spec"],
                "schedulerName": "hami-scheduler",
            }
        },
    ],
    ids=["memory", "priority", "another container", "type", "numa", "nodes", "scheduler"],
)
def test_any_other_word_needs_us(pod: dict[str, Any]) -> None:
    assert _plans(pod)


@pytest.mark.parametrize(
    "pod",
    [
        _pod({"nvidia.com/gpu": "1"}, {"nvidia.com/mig-1g.5gb": "1"}),
        _pod({"nvidia.com/gpu": "1"}, **{"gpu-fraction": "0.5"}),
    ],
    ids=["MIG", "KAI"],
)
def test_another_dialect_in_the_pod_is_refused_as_ever(pod: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        _plans(pod)


def test_a_pod_without_a_card_is_nobodys() -> None:
    assert not _plans(_pod({"cpu": "1"}))
    assert not _plans({"spec": {"containers": [{"name": "c"}]}})


def test_a_pod_that_was_rewritten_before_stays_ours() -> None:
    ours = plan_pod(_pod({"nvidia.com/gpumem": "100"}), decode_settings(_NATIVE), nodes=_NODES)
    assert ours is not None
    again: dict[str, Any] = ours.pod
    again["spec"]["containers"].append(_pod({"nvidia.com/gpu": "1"})["spec"]["containers"][0])
    again["spec"]["containers"][-1]["name"] = "injected"
    plan = plan_pod(again, decode_settings(_NATIVE), nodes=_NODES)
    assert plan is not None
    assert set(plan.request.uses) == {"c0", "injected"}


def test_containers_without_a_card_still_see_none() -> None:
    settings = {"nativeWholeCards": True, "nvidia": {"overwriteEnv": True}}
    pod = _pod({"nvidia.com/gpu": "1"}, {"cpu": "1"})
    plan = plan_pod(pod, decode_settings(settings), nodes=_NODES)
    assert plan is not None
    containers = view_pod(plan.pod).spec.containers
    assert containers is not None
    whole, other = containers
    assert not whole.env
    assert [variable.value for variable in other.env or ()] == ["none"]
    assert plan.template is None


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"nvidia": {"defaultMemory": 1000}}, "nvidia.defaultMemory: with nativeWholeCards"),
        ({"defaultSchedulerPolicy": {"gpuSchedulerPolicy": "spread"}}, "defaultSchedulerPolicy: "),
        ({"dialects": ["volcano"]}, 'dialects: lacks "hami"'),
    ],
)
def test_settings_that_would_have_no_effect(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=field):
        decode_settings({"nativeWholeCards": True, **wrong})
