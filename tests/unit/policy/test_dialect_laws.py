"""Laws of the dialects that divide cards and add up containers."""

import json
from fractions import Fraction
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from hami_dra.contract.errors import UserError
from hami_dra.contract.quantity import MIB
from hami_dra.contract.settings import decode_settings
from hami_dra.policy.fit import Card
from hami_dra.policy.podplan import plan_pod
from hami_dra.policy.request import Share

_KOORDINATOR = decode_settings({"dialects": ["koordinator"]})
_KAI = decode_settings({"dialects": ["kai"]})
_PERCENT = st.integers(0, 10).map(lambda tens: tens * 10) | st.sampled_from([200, 300, 3300])
_AMOUNTS = {
    "gpu": _PERCENT,
    "gpu.shared": st.integers(0, 4),
    "gpu-core": _PERCENT,
    "gpu-memory-ratio": _PERCENT,
    "gpu-memory": st.integers(0, 16 << 30),
}
_LISTS = st.fixed_dictionaries({}, optional=_AMOUNTS)
_BESIDE = {key: _AMOUNTS[key] for key in ("gpu.shared", "gpu-core")}
_SETS = (
    st.fixed_dictionaries({"gpu": _PERCENT})
    | st.fixed_dictionaries({"gpu-memory": _AMOUNTS["gpu-memory"]}, optional=_BESIDE)
    | st.fixed_dictionaries({"gpu-memory-ratio": _PERCENT}, optional=_BESIDE)
)


_NASTY = st.text(max_size=20) | st.sampled_from(
    ["0.5", "1", "-1", "2000", "1e999", "{}", "[]", "null", '{"gpu": 1}', '{"gpu": {}}', "[" * 5000]
)
_HINTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["PCIe", "DeviceLevel", ""]),
    lambda inner: (
        st.dictionaries(
            st.sampled_from(
                ["gpu", "rdma", "selector", "requiredTopologyScope", "exclusivePolicy"]
            ),
            inner,
            max_size=3,
        )
        | st.lists(inner, max_size=2)
    ),
    max_leaves=6,
).map(json.dumps)
_ANNOTATIONS = st.dictionaries(
    st.sampled_from(
        [
            "gpu-fraction",
            "gpu-memory",
            "gpu-fraction-num-devices",
            "gpu-fraction-container-name",
            "gpu-fraction-limit",
            "gpu-memory-limit",
            "mps",
            "scheduling.koordinator.sh/device-allocate-hint",
            "scheduling.koordinator.sh/device-joint-allocate",
            "scheduling.koordinator.sh/gpu-partition-spec",
        ]
    ),
    _NASTY | _HINTS,
    max_size=4,
)
_ALL = decode_settings({"dialects": ["kai", "koordinator", "gpushare"]})


@given(
    _ANNOTATIONS,
    st.dictionaries(st.just("aliyun.com/gpu-count"), _NASTY),
    st.dictionaries(
        st.sampled_from(["koordinator.sh/gpu", "aliyun.com/gpu-mem", "koordinator.sh/gpu.shared"]),
        _NASTY | st.integers(-1, 400),
        max_size=2,
    ),
)
def test_whatever_is_written_is_read_or_refused_and_once_is_enough(
    annotations: dict[str, str], labels: dict[str, str], limits: dict[str, Any]
) -> None:
    containers = [{"name": "a", "resources": {"limits": limits}}, {"name": "b"}]
    metadata = {"annotations": annotations, "labels": labels}
    pod = {"metadata": metadata, "spec": {"containers": containers}}
    try:
        plan = plan_pod(pod, _ALL, nodes=[(Card(16384, 100, 10),)])
    except UserError:
        return
    if plan is None:
        return
    again = plan_pod(plan.pod, _ALL, nodes=[(Card(16384, 100, 10),)])
    assert again is None or (again.patch, again.template) == ([], plan.template)


def _containers(*lists: dict[str, int]) -> list[dict[str, Any]]:
    return [
        {
            "name": f"c{number}",
            "resources": {
                "limits": {f"koordinator.sh/{key}": str(value) for key, value in said.items()}
            },
        }
        for number, said in enumerate(lists)
    ]


def _read(spec: dict[str, Any]) -> Share | str | None:
    """Return the one share of a pod, ``None`` for none, or why it is refused."""
    try:
        plan = plan_pod({"spec": spec}, _KOORDINATOR, nodes=[(Card(16384, 100, 10),)])
    except UserError as error:
        return str(error).partition(": ")[2]
    if plan is None or not plan.request.shares:
        return None
    (share,) = plan.request.shares
    return share


@given(_SETS)
@example({"gpu": 200})
@example({"gpu.shared": 2, "gpu-core": 100, "gpu-memory": 3 << 30})
def test_the_cards_of_a_pod_give_its_total(said: dict[str, int]) -> None:
    share = _read({"containers": _containers(said)})
    if not isinstance(share, Share):
        return
    both = said.get("gpu", 0)
    cores = said.get("gpu-core", 0) or both
    assert share.cards * share.cores_percent <= cores < share.cards * (share.cores_percent + 1)
    if memory := said.get("gpu-memory", 0):
        assert share.memory_mib is not None
        assert memory - share.cards < share.memory_mib * share.cards * MIB
        assert (share.memory_mib - 1) * share.cards * MIB < memory
        assert share.memory_percent is None
    else:
        percent = 100 if share.memory_percent is None else share.memory_percent
        assert share.cards * percent == (said.get("gpu-memory-ratio", 0) or both)
        assert share.memory_mib is None
    assert share.cards == (said.get("gpu.shared", 0) or share.cards)


@given(_SETS | _LISTS, _SETS)
def test_containers_are_added_up(one: dict[str, int], other: dict[str, int]) -> None:
    total = {key: one.get(key, 0) + other.get(key, 0) for key in _AMOUNTS}
    together = _read({"containers": _containers(one, other)})
    alone = _read({"containers": _containers(total)})
    if isinstance(alone, Share):
        assert isinstance(together, Share)
        assert together.container in {"c0", "c1"}
        assert _amount(together) == _amount(alone)
    else:
        assert together == alone


@given(_SETS)
def test_an_init_container_that_wants_the_same_changes_nothing(said: dict[str, int]) -> None:
    containers = _containers(said)
    before = [{**containers[0], "name": "before"}]
    assert _read({"containers": containers, "initContainers": before}) == _read(
        {"containers": containers}
    )


def _amount(share: Share) -> tuple[Any, ...]:
    return share.cards, share.memory_mib, share.memory_percent, share.cores_percent


@given(st.decimals("0.0001", "0.9999", places=4), st.integers(1024, 200_000))
def test_fractions_of_a_card_fit_on_it(fraction: Any, size: int) -> None:
    pod = {
        "metadata": {"annotations": {"gpu-fraction": str(fraction)}},
        "spec": {"containers": [{"name": "c"}]},
    }
    plan = plan_pod(pod, _KAI, nodes=[(Card(size, 100, 10),)])
    assert plan is not None
    assert plan.template is not None
    (share,) = plan.request.shares
    assert share.memory_percent == Fraction(fraction) * 100
    (request,) = plan.template["spec"]["spec"]["devices"]["requests"]
    text = request["exactly"]["capacity"]["requests"]["memory"]
    mib = int(text[:-2]) * {"Mi": 1, "Gi": 1024}[text[-2:]]
    assert mib == max(1, int(Fraction(fraction) * size))
