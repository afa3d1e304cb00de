"""HAMi's annotations."""

import json
import re
from typing import Any

import jsonpatch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami_dra.contract.errors import UserError
from hami_dra.contract.names import DEVICE_CLASS, DRIVER_NAME
from hami_dra.contract.settings import decode_settings
from hami_dra.policy.claims import check_claim
from hami_dra.policy.fit import Card
from hami_dra.policy.podplan import PodPlan, plan_pod
from tests.unit.policy.golden import build_pod, load_cases, name_case

_KEYS = [
    "nvidia.com/use-gputype",
    "nvidia.com/nouse-gputype",
    "nvidia.com/use-gpuuuid",
    "nvidia.com/nouse-gpuuuid",
    "nvidia.com/numa-bind",
    "nvidia.com/vgpu-mode",
    "hami.io/node-scheduler-policy",
    "hami.io/gpu-scheduler-policy",
    "hami.io/device-scoring-weights",
    "hami.io/vgpu-node",
]


def _expand(expression: str) -> str:
    if expression.startswith("SIZE "):
        size = expression.removeprefix("SIZE ")
        return f'device.capacity["{DRIVER_NAME}"].memory.compareTo(quantity("{size}")) == 0'
    return re.sub(r"DRV(?=\.)", lambda _: f'device.attributes["{DRIVER_NAME}"]', expression)


def _pod(row: dict[str, Any]) -> dict[str, Any]:
    return build_pod({"limits": {"gpu": 1, "gpumem": 1000}, **row}, "nvidia.com")


def _plan(row: dict[str, Any]) -> PodPlan:
    settings = decode_settings({"defaultSchedulerPolicy": row.get("settings", {})})
    nodes = [tuple(Card(mib, 100, 10) for mib in node) for node in row.get("cards", [[40960] * 4])]
    plan = plan_pod(_pod(row), settings, nodes=nodes, rotation=row.get("rotation", 0))
    assert plan is not None
    return plan


@pytest.mark.parametrize("row", load_cases("hami/annotations.yaml"), ids=name_case)
def test_annotations_mean_what_they_mean_in_hami(row: dict[str, Any]) -> None:
    if "refused" in row:
        with pytest.raises(UserError) as caught:
            _plan(row)
        assert [part for part in row["refused"] if part not in str(caught.value)] == []
        return
    plan = _plan(row)
    warns = row.get("warns", [])
    assert len(plan.warnings) == len(warns)
    assert all(part in text for part, text in zip(warns, plan.warnings, strict=True))
    affinity = plan.pod["spec"].get("affinity")
    assert (affinity and list(affinity)) == ([row["affinity"]] if "affinity" in row else None)
    if "nothing" in row:
        assert plan.template is None
        return
    assert plan.template is not None
    devices = plan.template["spec"]["spec"]["devices"]
    (request,) = devices["requests"]
    asks = [request["exactly"]] if "exactly" in request else request["firstAvailable"]
    assert [ask.get("name") for ask in asks] == list(row.get("names", {None: None}))
    for ask in asks:
        more = row.get("names", {}).get(ask.get("name"), [])
        expressions = [entry["cel"]["expression"] for entry in ask.get("selectors", [])]
        assert expressions == [_expand(each) for each in [*row.get("selectors", []), *more]]
        assert ask["deviceClassName"] == row.get("class", DEVICE_CLASS)
        if "class" in row:
            assert ask["capacity"] == {"requests": {"memory": row["memory"]}}, "of any compute"
            continue
        assert ("memory" not in ask["capacity"]["requests"]) == (
            "alone" in row
            or list(row.get("limits", {})) == ["gpu"]
            or row.get("limits") == {"gpucores": 100, "gpumem": 4096}
        )
    constraints = [c for c in devices.get("constraints", []) if "distinctAttribute" not in c]
    assert constraints == row.get("constraints", [])


_LITERAL = re.compile(r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-f]{4})*"')
_CARD = f'device.attributes["{DRIVER_NAME}"]'
_SKELETONS = {
    "[L].exists(t, device.attributes[L].productName.lowerAscii().contains(t))",
    "!([L].exists(t, device.attributes[L].productName.lowerAscii().contains(t)))",
    "device.attributes[L].uuid in [L]",
    "!(device.attributes[L].uuid in [L])",
}
_TEXTS = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="\"\\'[](){}|&!,;\n\r\t\x00$`a \u2028é", max_size=40),
    st.sampled_from(["true", "hami-core", "spread", "numa,mutex", '"] || true || ["']),
)


@given(st.dictionaries(st.sampled_from(_KEYS), _TEXTS), st.integers(1, 3), st.integers(0, 9))
def test_what_people_write_is_only_ever_a_literal(
    annotations: dict[str, str], cards: int, rotation: int
) -> None:
    resources = {"limits": {"nvidia.com/gpu": cards, "nvidia.com/gpumem": 1}}
    pod = {
        "metadata": {"annotations": annotations},
        "spec": {"containers": [{"name": "main", "resources": resources}]},
    }
    try:
        plan = plan_pod(pod, nodes=[(Card(1024, 100, 10),) * 4], rotation=rotation)
    except UserError:
        return
    assert plan is not None
    assert plan.template is not None
    assert plan_pod(plan.pod) is None
    assert jsonpatch.apply_patch(pod, plan.patch) == plan.pod
    assert check_claim(plan.template["spec"]["spec"], field="spec")
    (request,) = plan.template["spec"]["spec"]["devices"]["requests"]
    asks = [request["exactly"]] if "exactly" in request else request["firstAvailable"]
    assert len(asks) <= 8
    written = [part.strip() for text in annotations.values() for part in text.split(",")]
    lowered = {re.sub("[A-Z]", lambda m: m[0].lower(), part) for part in written}
    for ask in asks:
        for entry in ask.get("selectors", []):
            expression = entry["cel"]["expression"]
            if "compareTo" in expression or re.fullmatch(
                rf"{re.escape(_CARD)}\.index == [0-9]+", expression
            ):
                assert not any(part in expression for part in written if len(part) > 20)
                continue
            skeleton = re.sub(r"L(, L)+", "L", _LITERAL.sub("L", expression))
            assert skeleton in _SKELETONS
            literals = {json.loads(literal) for literal in _LITERAL.findall(expression)}
            assert literals <= {*written, *lowered, DRIVER_NAME}


def test_a_preference_for_nodes_is_added_once_and_beside_others() -> None:
    pod = _pod({"annotations": {"hami.io/node-scheduler-policy": "spread"}})
    own = {"weight": 1, "podAffinityTerm": {"topologyKey": "zone"}}
    required = [{"topologyKey": "rack"}]
    pod["spec"]["affinity"] = {
        "nodeAffinity": {},
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": required,
            "preferredDuringSchedulingIgnoredDuringExecution": [own],
        },
    }
    first = plan_pod(pod)
    assert first is not None
    anti = first.pod["spec"]["affinity"]["podAntiAffinity"]
    preferred = anti["preferredDuringSchedulingIgnoredDuringExecution"]
    assert preferred[0] == own
    assert preferred[1]["podAffinityTerm"]["labelSelector"] == {
        "matchLabels": {"gpu.project-hami.io/shares": "true"}
    }
    assert anti["requiredDuringSchedulingIgnoredDuringExecution"] == required
    assert first.pod["metadata"]["labels"] == {"gpu.project-hami.io/shares": "true"}
    again = {**first.pod, "spec": {**first.pod["spec"]}}
    again["spec"]["containers"] = [
        *again["spec"]["containers"],
        {"name": "late", "resources": {"limits": {"nvidia.com/gpumem": 5}}},
    ]
    second = plan_pod(again)
    assert second is not None
    assert second.pod["spec"]["affinity"] == first.pod["spec"]["affinity"]
