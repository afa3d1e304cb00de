"""Any order of claims that come and go, on any cards: the allocator does what the model predicts.

The model is ours and independent (`tests.oracle.model`), so that an error in what we publish or ask
for, in what we believe of the scheduler, or in the scheduler, makes the two differ.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from hypothesis import given
from hypothesis import strategies as st

from hami_dra.contract.names import ATTR_STD_NUMA_NODE, DRIVER_NAME, TAINT_LOST
from hami_dra.contract.quantity import parse_quantity
from hami_dra.policy.devices import name_device
from hami_dra.policy.request import Placement, Share
from hami_dra.policy.taints import CORDONED, Taint, describe_taints
from hami_dra.policy.templates import build_template
from tests.cluster.simcards import KINDS, make_cards
from tests.cluster.simnodes import SimNode
from tests.generate.budget import budget
from tests.oracle.model import Model, Pick
from tests.oracle.world import World, make_claim

if TYPE_CHECKING:
    from tests.oracle.allocator import Allocator

Object = dict[str, Any]

_LOST: Final = Taint(TAINT_LOST, "not-described")
_TOLERATION: Final = {"key": CORDONED.key, "operator": "Exists", "effect": "NoSchedule"}
_SIZE: Final = re.compile(r'device\.capacity\[".*"\]\.memory\.compareTo\(quantity\("(.*)"\)\) == 0')
_POSITION: Final = re.compile(r'device\.attributes\[".*"\]\.index == (\d+)')
_PLACEMENTS: Final = (
    Placement(),
    Placement(one_card=True),
    Placement(one_numa_node=True),
    Placement(near=ATTR_STD_NUMA_NODE),
    Placement(spread_cards=True),
)


@st.composite
def _shares(draw: st.DrawFn, sizes: list[int]) -> list[Share]:
    found = []
    for name in ("a", "b", "c")[: draw(st.sampled_from((1, 1, 1, 2, 3)))]:
        kind = draw(st.sampled_from(("mib", "mib", "percent", "all", "exclusive")))
        share = Share(
            name,
            draw(st.sampled_from((1, 1, 1, 2, 3))),
            memory_mib=draw(st.integers(1, max(sizes) + 1)) if kind == "mib" else None,
            memory_percent=draw(st.integers(1, 99)) if kind == "percent" else None,
            cores_percent=100 if kind == "exclusive" else draw(st.sampled_from((0, 0, 1, 30, 100))),
            exclusive=kind == "exclusive",
        )
        found.append(share)
    return found


@st.composite
def _claims(draw: st.DrawFn, sizes: list[int]) -> Object:
    placement = draw(st.sampled_from(_PLACEMENTS))
    index = draw(st.integers(0, 3)) if placement.spread_cards else None
    template = build_template(draw(_shares(sizes)), set(sizes), placement, index=index)
    spec: Object = template["spec"]["spec"]
    if draw(st.integers(0, 5)) == 0:
        for request in spec["devices"]["requests"]:
            for ask in request.get("firstAvailable") or [request["exactly"]]:
                ask["tolerations"] = [_TOLERATION]
    return spec


@st.composite
def _histories(draw: st.DrawFn) -> tuple[list[str], int, list[Any]]:
    kinds = draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=4))
    sizes = sorted({KINDS[kind].memory_mib for kind in kinds})
    step = st.one_of(
        _claims(sizes),
        _claims(sizes),
        _claims(sizes),
        st.integers(0, 11),  # a claim that goes, if there are so many
        st.tuples(st.integers(0, len(kinds) - 1), st.sampled_from((None, CORDONED, _LOST))),
    )
    steps = draw(st.lists(step, min_size=4, max_size=14))
    return kinds, draw(st.sampled_from((1, 2, 10))), steps


def _suits(device: Object, ask: Object) -> bool:
    """Answer the few conditions that these templates have: which size, which position."""
    for selector in ask.get("selectors", ()):
        expression = selector["cel"]["expression"]
        if size := _SIZE.fullmatch(expression):
            found = parse_quantity(device["capacity"]["memory"]["value"]) == parse_quantity(size[1])
        elif position := _POSITION.fullmatch(expression):
            found = device["attributes"]["index"]["int"] == int(position[1])
        else:
            raise AssertionError(f"the model does not know {expression}")
        if not found:
            return False
    return True


@budget(0.1)
@given(history=_histories())
def test_claims_that_come_and_go(
    allocators: list[Allocator], history: tuple[list[str], int, list[Any]]
) -> None:
    for allocator in allocators:
        _play(allocator, *history)


def _play(allocator: Allocator, kinds: list[str], split_count: int, steps: list[Any]) -> None:
    cards = make_cards(kinds)
    world = World(allocator, [SimNode(name="n", cards=cards, split_count=split_count)])
    model = Model(world.slices, _suits)
    for number, step in enumerate(steps):
        if isinstance(step, int):
            if step < len(world.held):
                world.free(sorted(world.held)[step])
        elif isinstance(step, tuple):
            card, taint = step
            described = describe_taints([taint])[0] if taint else None
            world.set_taint(name_device(cards[card].uuid), described)
        else:
            before = list(world.held.values())
            expected = model.predict(make_claim("c", step)["spec"], before, "n")
            results = world.allocate(f"c{number:02}", step, "n")
            assert _list_picks(results) == _flatten(expected), (allocator.version, step)
        assert list(model.list_breaches(world.held.values())) == [], allocator.version


def _list_picks(results: list[Object]) -> list[tuple[str, str]]:
    assert {result["driver"] for result in results} <= {DRIVER_NAME}
    return [(result["request"], result["device"]) for result in results]


def _flatten(picks: list[Pick]) -> list[tuple[str, str]]:
    return [(pick.request, pick.key[1]) for pick in picks]
