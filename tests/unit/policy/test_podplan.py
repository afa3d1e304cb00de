"""Laws that hold for every pod."""

import copy
from typing import Any

import jsonpatch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hami_dra.contract.errors import UserError
from hami_dra.contract.settings import DEFAULT_SETTINGS
from hami_dra.policy.podcore import LEFT_OUT_OF_CONTAINER, LEFT_OUT_OF_SPEC, take_core
from hami_dra.policy.podpatch import diff
from hami_dra.policy.podplan import PodPlan, plan_pod
from hami_dra.policy.podview import Container, PodSpec
from hami_dra.policy.request import Enforcement, Share, place_shares

KEYS = DEFAULT_SETTINGS.nvidia.keys
_NAMES = st.sampled_from(["a", "b", "c", "with-dash", "x" * 63])
_QUANTITIES = st.one_of(
    st.integers(0, 40).map(str),
    st.integers(-3, 2**33),
    st.sampled_from(["3k", "10Gi", "100", "0.5", "x", ""]),
)
_RESOURCES = st.dictionaries(
    st.sampled_from([*KEYS, "cpu", "memory", "nvidia.com/mig-1g.5gb", "a~b/c"]), _QUANTITIES
)
_CONTAINERS = st.fixed_dictionaries(
    {"name": _NAMES},
    optional={
        "image": st.text(max_size=5),
        "restartPolicy": st.just("Always"),
        "resources": st.fixed_dictionaries(
            {},
            optional={
                "limits": _RESOURCES,
                "requests": _RESOURCES,
                "claims": st.lists(st.fixed_dictionaries({"name": _NAMES}), max_size=2),
            },
        ),
    },
)
_PODS = st.fixed_dictionaries(
    {
        "spec": st.fixed_dictionaries(
            {
                "containers": st.lists(
                    _CONTAINERS, min_size=1, max_size=3, unique_by=lambda c: str(c["name"])
                )
            },
            optional={
                "initContainers": st.lists(_CONTAINERS, max_size=2),
                "resourceClaims": st.lists(st.fixed_dictionaries({"name": _NAMES}), max_size=2),
                "schedulerName": st.sampled_from(["hami-scheduler", "default-scheduler", "other"]),
            },
        )
    },
    optional={
        "metadata": st.fixed_dictionaries(
            {"name": st.text(max_size=5)},
            optional={"annotations": st.dictionaries(st.text(max_size=9), st.text(max_size=9))},
        )
    },
)

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats(-1, 1) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text("ab~/01", max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


def _try_plan(pod: dict[str, Any]) -> PodPlan | None:
    try:
        return plan_pod(pod)
    except UserError:
        return None


@given(_PODS)
@example(
    {
        "spec": {
            "containers": [{"name": "a"}],
            "initContainers": [{"name": "a", "resources": {"limits": {"nvidia.com/gpu": 0}}}],
        }
    }
)
def test_the_patch_leads_to_the_rewritten_pod_which_needs_no_other(pod: dict[str, Any]) -> None:
    before = copy.deepcopy(pod)
    plan = _try_plan(pod)
    assert pod == before, "the pod that came in is changed"
    if plan is None:
        return
    assert jsonpatch.apply_patch(pod, plan.patch) == plan.pod
    assert not any(f"'{key}'" in str(plan.pod["spec"]) for key in KEYS)
    assert plan_pod(plan.pod) is None


@given(_PODS)
def test_a_plan_for_the_core_of_a_pod_is_the_plan_for_the_pod(pod: dict[str, Any]) -> None:
    for container in pod["spec"]["containers"]:
        container["volumeMounts"] = [{"name": "kube-api-access-x7k2p"}]
    pod["spec"]["volumes"] = [{"name": "kube-api-access-x7k2p"}]
    plan = _try_plan(pod)
    of_core = _try_plan(take_core(pod))
    assert (plan is None) == (of_core is None)
    if plan is not None and of_core is not None:
        assert sorted(map(str, of_core.patch)) == sorted(map(str, plan.patch))
        assert (of_core.template, of_core.warnings) == (plan.template, plan.warnings)
        assert jsonpatch.apply_patch(pod, of_core.patch) == plan.pod


def test_the_core_has_everything_that_decisions_read() -> None:
    assert not LEFT_OUT_OF_SPEC & set(PodSpec.__struct_encode_fields__)
    assert not LEFT_OUT_OF_CONTAINER & set(Container.__struct_encode_fields__)


@given(_JSON)
def test_what_is_no_pod_has_a_core_that_is_refused_alike(value: Any) -> None:
    for pod in ({"spec": value}, {"metadata": value}, {"spec": {"containers": value}}, {}):
        errors = []
        for each in (pod, take_core(pod)):
            try:
                plan_pod(each)
                errors.append("")
            except UserError as error:
                errors.append(str(error))
        assert errors[0] == errors[1]


@given(_PODS)
def test_pods_without_gpu_keys_are_left_alone(pod: dict[str, Any]) -> None:
    for kind in ("containers", "initContainers"):
        for container in pod["spec"].get(kind, []):
            for values in container.get("resources", {}).values():
                if isinstance(values, dict):
                    for key in KEYS:
                        values.pop(key, None)
    assert plan_pod(pod) is None


@given(_JSON, _JSON)
@settings(max_examples=300)
def test_a_diff_applied_is_the_other_value(before: Any, after: Any) -> None:
    patched = jsonpatch.apply_patch({"v": before}, diff({"v": before}, {"v": after}))
    assert repr(patched) == repr({"v": after}) or _json_equal(patched["v"], after)


def _json_equal(left: Any, right: Any) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_json_equal(left[k], right[k]) for k in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(_json_equal, left, right))
    return bool(left == right)


_SHARES = st.builds(
    Share,
    container=st.just("x"),
    cards=st.integers(1, 2),
    memory_mib=st.none() | st.integers(1, 3),
    cores_percent=st.sampled_from([0, 30, 100]),
    exclusive=st.booleans(),
    enforcement=st.builds(
        Enforcement,
        priority=st.none() | st.integers(0, 2),
        core_policy=st.sampled_from([None, "force"]),
        control=st.booleans(),
    ),
)


@given(_SHARES, _SHARES, _SHARES)
def test_covering_is_an_order(a: Share, b: Share, c: Share) -> None:
    assert a.covers(a)
    assert not (a.covers(b) and b.covers(c)) or a.covers(c)


@given(_SHARES, _SHARES)
def test_a_covering_share_never_gives_less(a: Share, b: Share) -> None:
    if a.covers(b):
        assert a.cards == b.cards
        assert a.memory_mib is None or (b.memory_mib or 99) <= a.memory_mib
        assert a.cores_percent >= b.cores_percent
        assert a.exclusive or not b.exclusive
        assert a.enforcement.control == b.enforcement.control


def test_the_smallest_covering_share_is_taken() -> None:
    large, small = Share("large", 1, 9000), Share("small", 1, 2000)
    shares, uses = place_shares([large, small], [Share("init", 1, 1000)])
    assert shares == (large, small)
    assert uses["init"] == "small"


def _gpu(name: str, memory: str) -> dict[str, Any]:
    return {"name": name, "resources": {"limits": {"nvidia.com/gpumem": memory}}}


def test_a_container_added_after_our_rewrite_joins_the_claim() -> None:
    first = plan_pod({"spec": {"containers": [_gpu("a", "1000")]}})
    assert first is not None
    again = copy.deepcopy(first.pod)
    again["spec"]["containers"].append(_gpu("injected", "500"))
    plan = plan_pod(again)
    at_once = plan_pod({"spec": {"containers": [_gpu("a", "1000"), _gpu("injected", "500")]}})
    assert plan is not None
    assert at_once is not None
    assert plan.pod == at_once.pod
    assert jsonpatch.apply_patch(again, plan.patch) == at_once.pod


def test_a_value_changed_after_our_rewrite_wins() -> None:
    first = plan_pod({"spec": {"containers": [_gpu("a", "1000")]}})
    assert first is not None
    again = copy.deepcopy(first.pod)
    again["spec"]["containers"][0]["resources"]["limits"] = {"nvidia.com/gpumem": "700"}
    plan = plan_pod(again)
    assert plan is not None
    assert plan.request.shares == (Share("a", 1, 700),)
    assert len(plan.pod["spec"]["resourceClaims"]) == 1
    assert len(plan.pod["spec"]["containers"][0]["resources"]["claims"]) == 1


def test_a_template_is_named_by_its_content_alone() -> None:
    def name(pod: dict[str, Any]) -> str:
        plan = plan_pod(pod)
        assert plan is not None
        assert plan.template is not None
        return str(plan.template["metadata"]["name"])

    one = {"metadata": {"name": "p1"}, "spec": {"containers": [_gpu("a", "1000")]}}
    other = {"metadata": {"name": "p2"}, "spec": {"containers": [_gpu("a", "1k")]}}
    assert name(one) == name(other)
    assert name(one) != name({"spec": {"containers": [_gpu("a", "1001")]}})
