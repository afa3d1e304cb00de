"""Percentages of cards that differ."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami_dra.contract.errors import RetryError
from hami_dra.contract.quantity import MIB, format_mib, parse_bytes
from hami_dra.policy.claims import check_claim
from hami_dra.policy.fit import Card, NodeCards
from hami_dra.policy.percentage import MOST_ALTERNATIVES, group_sizes, list_alternatives
from hami_dra.policy.podplan import plan_pod
from hami_dra.policy.request import Share
from hami_dra.policy.selectors import memory_between
from hami_dra.policy.templates import build_template
from tests.unit.policy.golden import build_pod, load_cases, name_case


def _mib(size: int | str) -> int:
    return size * 1024 if isinstance(size, int) else parse_bytes(size) // MIB


def _nodes(sizes: list[int | str]) -> list[NodeCards]:
    return [(Card(_mib(size), 100, 10),) for size in sizes]


@pytest.mark.parametrize("row", load_cases("hami/percentage.yaml"), ids=name_case)
def test_percentages_mean_what_they_mean_in_hami(row: dict[str, Any]) -> None:
    plan = plan_pod(build_pod(row, "nvidia.com"), nodes=_nodes(row["sizes"]))
    assert plan is not None
    warns = row.get("warns", [])
    assert len(plan.warnings) == len(warns)
    assert all(part in text for part, text in zip(warns, plan.warnings, strict=True))
    if "asks" not in row:
        assert plan.template is None
        return
    assert plan.template is not None
    devices = plan.template["spec"]["spec"]["devices"]
    (request,) = devices["requests"]
    plain = "exactly" in request
    asks = [request["exactly"]] if plain else request["firstAvailable"]
    assert len(asks) == len(row["asks"])
    for ask, expected in zip(asks, row["asks"], strict=True):
        wanted = {key: value for key, value in expected.items() if key != "card"}
        memory = wanted.get("memory")
        if memory is not None:
            wanted["memory"] = format_mib(parse_bytes(memory) // MIB)
        assert ask["capacity"]["requests"] == {"slots": "1", **wanted}
        assert ask["count"] == row.get("cards", 1)
        if not plain:
            low, _, high = expected["card"].removeprefix("m").partition("-")
            assert ask["name"] == f"m{high or low}"
            expression = memory_between(int(low), int(high or low))
            assert ask["selectors"] == [{"cel": {"expression": expression}}]
    kind = {"apiVersion": "gpu.project-hami.io/v1alpha1", "kind": "ShareConfig"}
    parameters = [entry["opaque"]["parameters"] for entry in devices.get("config", [])]
    assert parameters == ([{**kind, **row["config"]}] if "config" in row else [])


def test_cards_that_are_not_read_yet_postpone_percentages_only() -> None:
    with pytest.raises(RetryError, match="try again in a few seconds"):
        plan_pod(build_pod({"limits": {"gpumem-percentage": 50}}, "nvidia.com"), nodes=None)
    for limits in ({"gpu": 1}, {"gpumem": 1}, {"gpumem-percentage": 100}):
        assert plan_pod(build_pod({"limits": limits}, "nvidia.com"), nodes=None) is not None


_SIZES = st.lists(st.integers(1, 300_000), min_size=1, max_size=20)


@given(_SIZES)
def test_every_size_is_in_one_band(sizes: list[int]) -> None:
    bands = group_sizes(sizes)
    assert len(bands) <= MOST_ALTERNATIVES
    for size in sizes:
        assert sum(band.low_mib <= size <= band.high_mib for band in bands) == 1
    assert [band.low_mib for band in bands] == sorted(band.low_mib for band in bands)


@given(_SIZES, st.integers(1, 99))
def test_every_card_can_give_what_its_alternative_asks(sizes: list[int], percent: int) -> None:
    alternatives = list_alternatives(Share("c", 1, memory_percent=percent), sizes)
    for size, band in ((s, b) for s in sizes for b in group_sizes(sizes)):
        if band.low_mib <= size <= band.high_mib:
            (chosen,) = [a for a in alternatives if a.name in {"", f"m{band.high_mib}"}]
            assert chosen.memory_mib is not None
            assert 1 <= chosen.memory_mib <= size
            if len(set(sizes)) <= MOST_ALTERNATIVES:
                assert chosen.memory_mib == max(1, size * percent // 100)


@given(_SIZES, st.integers(1, 99), st.randoms())
def test_the_template_depends_on_the_set_of_sizes_alone(
    sizes: list[int], percent: int, random: Any
) -> None:
    shares = [Share("c", 2, memory_percent=percent)]
    template = build_template(shares, sizes)
    shuffled = [*sizes, sizes[0]]
    random.shuffle(shuffled)
    assert build_template(shares, shuffled) == template
    assert check_claim(template["spec"]["spec"], field="spec")
