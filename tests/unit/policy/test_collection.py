"""Which templates may go, and which can be made again."""

import copy
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hami_dra.contract.errors import RetryError, UserError
from hami_dra.contract.names import (
    ANNOTATION_GPU_POLICY,
    ANNOTATION_ORIGINAL_REQUEST,
    ANNOTATION_USE_TYPE,
    LABEL_MANAGED_BY,
)
from hami_dra.contract.settings import DEFAULT_SETTINGS, decode_settings
from hami_dra.policy.collection import (
    PodUse,
    StoredTemplate,
    find_unused,
    read_template,
    read_use,
    rebuild_template,
)
from hami_dra.policy.fit import Card, NodeCards
from hami_dra.policy.podplan import plan_pod

_NODES: tuple[NodeCards, ...] = ((Card(16384, 100, 10), Card(40960, 100, 10)),)
_OTHER_NODES: tuple[NodeCards, ...] = ((Card(81920, 100, 10),),)


def _admit(pod: dict[str, Any], nodes: tuple[NodeCards, ...] = _NODES, rotation: int = 0) -> Any:
    plan = plan_pod(pod, nodes=nodes, rotation=rotation)
    assert plan is not None
    assert plan.template is not None
    return plan


def _pod(annotations: dict[str, str] | None = None, /, **limits: int) -> dict[str, Any]:
    resources = {"limits": {f"nvidia.com/{key}": str(value) for key, value in limits.items()}}
    return {
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "annotations": annotations or {}},
        "spec": {
            "containers": [
                {
                    "name": "main",
                    "image": "i",
                    "env": [{"name": "CUDA_DISABLE_CONTROL", "value": "true"}],
                    "resources": resources,
                },
                {"name": "plain", "volumeMounts": [{"name": "v", "mountPath": "/v"}]},
            ],
            "volumes": [{"name": "v"}],
        },
    }


def _use(pod: dict[str, Any]) -> PodUse:
    use = read_use(pod)
    assert use is not None
    return use


def _stored(pod: dict[str, Any]) -> dict[str, Any]:
    """Return the template of a pod as the API server has it."""
    template: dict[str, Any] = copy.deepcopy(_admit(pod).template)
    template["metadata"] |= {
        "namespace": "n",
        "uid": "t",
        "resourceVersion": "7",
        "creationTimestamp": "1970-01-01T00:01:40Z",
    }
    return template


@pytest.mark.parametrize(
    "pod",
    [
        _pod(gpu=1, gpumem=3000, gpucores=30),
        _pod(gpu=2),
        _pod(gpu=1, **{"gpumem-percentage": 50}),
        _pod({ANNOTATION_USE_TYPE: "A100"}, gpu=1, gpumem=100),
        _pod({ANNOTATION_GPU_POLICY: "spread"}, gpu=1, gpumem=100),
    ],
)
@pytest.mark.parametrize("rotation", [0, 1, 5])
def test_a_waiting_pod_leads_back_to_its_template(pod: dict[str, Any], rotation: int) -> None:
    plan = _admit(pod, rotation=rotation)
    assert rebuild_template(_use(plan.pod), DEFAULT_SETTINGS, _NODES) == plan.template


@given(
    gpus=st.integers(1, 4),
    memory=st.none() | st.integers(0, 1 << 20),
    cores=st.none() | st.integers(0, 100),
    sidecar=st.booleans(),
)
def test_every_share_leads_back_to_its_template(
    *, gpus: int, memory: int | None, cores: int | None, sidecar: bool
) -> None:
    limits = {"gpu": gpus, "gpumem": memory, "gpucores": cores}
    pod = _pod(**{key: value for key, value in limits.items() if value is not None})
    if sidecar:
        first = {**pod["spec"]["containers"][0], "name": "side", "restartPolicy": "Always"}
        pod["spec"]["initContainers"] = [first]
    try:
        plan = _admit(pod)
    except UserError:
        assume(False)  # noqa: FBT003 - hypothesis's own spelling
        raise
    assert rebuild_template(_use(plan.pod), DEFAULT_SETTINGS, _NODES) == plan.template


def test_what_came_out_differently_is_reported() -> None:
    half = _use(_admit(_pod(gpu=1, **{"gpumem-percentage": 50})).pod)
    with pytest.raises(UserError, match=r"sizes of the cluster's cards have changed"):
        rebuild_template(half, DEFAULT_SETTINGS, _OTHER_NODES)
    with pytest.raises(RetryError, match="not been read yet"):
        rebuild_template(half, DEFAULT_SETTINGS, None)
    renamed = decode_settings({"nvidia": {"resourceCountName": "other.example/gpu"}})
    with pytest.raises(UserError, match="settings"):
        rebuild_template(_use(_admit(_pod(gpu=1)).pod), renamed, _NODES)


@pytest.mark.parametrize("text", ["", "x", "[]", '{"main": 1}', "[" * 100_000])
def test_an_annotation_that_says_nothing_is_reported(text: str) -> None:
    pod = _admit(_pod(gpu=1)).pod
    pod["metadata"]["annotations"][ANNOTATION_ORIGINAL_REQUEST] = text
    with pytest.raises(UserError):
        rebuild_template(_use(pod), DEFAULT_SETTINGS, _NODES)


def test_a_pod_is_kept_as_small_as_it_can_be() -> None:
    assert read_use(_pod(gpu=1)) is None
    pod = _admit(_pod(gpu=1)).pod
    pod["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"] = "long"
    waiting = _use(pod)
    (name,) = {name for _, name in waiting.templates}
    assert waiting.awaits == name
    assert "long" not in repr(waiting)
    assert "volume" not in repr(waiting)
    for change in (
        {"status": {"phase": "Running"}},
        {"status": {"phase": "Pending", "resourceClaimStatuses": [{"name": "hami-gpu"}]}},
        {"metadata": {**pod["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}},
    ):
        use = _use({**pod, **change})
        assert (use.awaits, use.pod) == ("", None)
        assert use.templates == (("n", name),)


def test_a_reference_by_hand_counts_as_use_but_is_not_rebuilt() -> None:
    name = "hami-gpu-0123456789abcdef"
    entry = {"name": "mine", "resourceClaimTemplateName": name}
    pod = {"metadata": {"namespace": "n"}, "spec": {"resourceClaims": [entry]}}
    use = _use(pod)
    assert (use.templates, use.awaits) == ((("n", name),), "")
    with pytest.raises(UserError, match="does not wait"):
        rebuild_template(use)


def test_only_what_admission_made_is_ours() -> None:
    body = _stored(_pod(gpu=1))
    template = read_template(body)
    assert template is not None
    assert template.own
    assert template.created_at == 100
    body["spec"]["metadata"]["creationTimestamp"] = None
    assert (read_template(body) or template).own

    foreign = copy.deepcopy(body)
    foreign["spec"]["spec"]["devices"]["requests"][0]["exactly"]["count"] = 2
    unlabelled = copy.deepcopy(body)
    del unlabelled["metadata"]["labels"][LABEL_MANAGED_BY]
    leaving = copy.deepcopy(body)
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    for other in (foreign, unlabelled, leaving):
        found = read_template(other)
        assert found is not None
        assert not found.own
    named = copy.deepcopy(body)
    named["metadata"]["name"] = "hami-gpu-by-hand"
    assert read_template(named) is None


def test_old_and_long_unused_templates_go() -> None:
    def template(name: str, *, created: float | None = 0, own: bool = True) -> StoredTemplate:
        return StoredTemplate(("n", name), "u", "1", created, own)

    templates = [
        template("z-old"),
        template("used"),
        template("young", created=1),
        template("just-seen"),
        template("lately-used"),
        template("foreign", own=False),
        template("undated", created=None),
        template("old"),
    ]
    idle_since = {t.key: 0.0 for t in templates} | {("n", "lately-used"): 1.0}
    del idle_since["n", "just-seen"]
    unused = find_unused(
        templates, {("n", "used")}, idle_since, now=3600, wall=3600, age_seconds=3600
    )
    assert [t.key[1] for t in unused] == ["old", "z-old"]
