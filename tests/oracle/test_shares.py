"""Shares of cards as our webhook asks for them and our node publishes them, case by case."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from hami_dra.contract.names import (
    ANNOTATION_DEVICE_CORDON,
    ATTR_UUID,
    DEVICE_CLASS,
    DRIVER_NAME,
    TAINT_LOST,
    TAINT_XID,
)
from hami_dra.kubeletplugin.slices import PAGE_SIZE
from hami_dra.policy.devices import name_device
from hami_dra.policy.request import Placement, Share
from hami_dra.policy.taints import CORDONED, Taint, describe_taints
from hami_dra.policy.templates import build_template
from tests.cluster.simcards import make_cards
from tests.cluster.simnodes import SimNode
from tests.oracle.allocator import GATES, Allocator
from tests.oracle.model import Model
from tests.oracle.world import World, ask_for

if TYPE_CHECKING:
    from hami_dra.contract.healthconfig import Effect

Object = dict[str, Any]

MEMORY = {"A100": 40960, "T4": 16384, "L4": 23034, "H100": 81559}


def describe(*shares: Share, **more: Any) -> Object:
    """Return the spec of the claims that a template of these shares gives."""
    spec: Object = build_template(shares, **more)["spec"]["spec"]
    return spec


def start(allocator: Allocator, *kinds: str, split_count: int = 10, **more: Any) -> World:
    """Return one node ``n`` with cards of these kinds."""
    node = SimNode(name="n", cards=make_cards(kinds), split_count=split_count)
    return World(allocator, [node], **more)


def positions(results: list[Object]) -> list[int]:
    """Return which cards of a node it is, by their place; none where there is no room."""
    return [int(result["device"].rsplit("-", 1)[1], 16) for result in results]


def check(world: World) -> None:
    """Fail if the model finds anything wrong."""
    assert list(Model(world.slices).list_breaches(world.held.values())) == []


def test_shares_fill_the_first_card_until_something_of_it_is_gone(allocator: Allocator) -> None:
    world = start(allocator, "T4", "T4")
    share = describe(Share("main", 1, 6000, cores_percent=30))
    got = [positions(world.allocate(f"c{number}", share, "n")) for number in range(5)]
    # Three times 30 cores would fit, three times 6000 MiB do not.
    assert got == [[0], [0], [1], [1], []]
    check(world)


@pytest.mark.parametrize("split_count", [1, 3])
def test_no_card_has_more_shares_than_its_slots(allocator: Allocator, split_count: int) -> None:
    world = start(allocator, "A100", split_count=split_count)
    share = describe(Share("main", 1, 10))
    got = [world.allocate(f"c{number}", share, "n") for number in range(split_count + 1)]
    assert [bool(each) for each in got] == [True] * split_count + [False]
    world.free("c0")
    assert world.allocate("again", share, "n")


def test_no_cores_reserve_none_and_a_claim_without_words_takes_the_whole_card(
    allocator: Allocator,
) -> None:
    world = start(allocator, "A100", "T4")
    assert positions(world.allocate("free", describe(Share("main", 1, 100)), "n")) == [0]
    full = describe(Share("main", 1, 100, cores_percent=100))
    assert positions(world.allocate("full", full, "n")) == [0]
    (result,) = world.allocate("bare", ask_for(), "n")
    assert result["consumedCapacity"] == {"memory": "16Gi", "cores": "100", "slots": "1"}
    assert not world.allocate("more", ask_for(), "n")
    check(world)


def test_memory_is_rounded_up_to_a_mib(allocator: Allocator) -> None:
    world = start(allocator, "A100")
    (result,) = world.allocate("c", ask_for(memory="1G", cores="0", slots="1"), "n")
    assert result["consumedCapacity"]["memory"] == "954Mi"


@pytest.mark.parametrize("memory", ["-1Gi", "-1"])
def test_a_negative_request_takes_nothing_and_gives_nothing_back(
    allocator: Allocator, memory: str
) -> None:
    world = start(allocator, "A100")
    (result,) = world.allocate("c", ask_for(memory=memory, cores="0", slots="1"), "n")
    assert result["consumedCapacity"]["memory"] == "0"
    assert world.allocate("all", ask_for(memory="40Gi", cores="0", slots="1"), "n")
    assert not world.allocate("more", ask_for(memory="1Mi", cores="0", slots="1"), "n")


@pytest.mark.parametrize("key", ["memroy", f"{DRIVER_NAME}/memory"])
def test_a_capacity_that_no_card_has_is_never_satisfied(allocator: Allocator, key: str) -> None:
    world = start(allocator, "A100")
    assert not world.allocate("c", ask_for(**{key: "1Gi"}), "n")


def test_more_than_a_card_has_fits_no_card(allocator: Allocator) -> None:
    world = start(allocator, "T4", "A100")
    assert positions(world.allocate("c", describe(Share("main", 1, 16385)), "n")) == [1]
    assert not world.allocate("d", describe(Share("main", 1, 40961)), "n")


@pytest.mark.parametrize("count", [1, 2, 4])
def test_several_cards_are_different_cards(allocator: Allocator, count: int) -> None:
    world = start(allocator, "A100", "A100", "A100", "A100")
    share = describe(Share("main", count, 1000))
    assert positions(world.allocate("c", share, "n")) == list(range(count))
    assert not world.allocate("d", describe(Share("main", 5, 1000)), "n")
    check(world)


def test_containers_may_share_a_card_and_must_if_they_say_so(allocator: Allocator) -> None:
    world = start(allocator, "T4", "T4")
    two = (Share("a", 1, 9000), Share("b", 1, 9000))
    assert positions(world.allocate("apart", describe(*two), "n")) == [0, 1]
    together = Placement(one_card=True)
    assert not world.allocate("big", describe(*two, placement=together), "n")
    small = (Share("a", 1, 3000), Share("b", 1, 3000))
    assert positions(world.allocate("small", describe(*small, placement=together), "n")) == [0, 0]
    check(world)


def test_an_exclusive_share_takes_an_empty_card_and_keeps_it(allocator: Allocator) -> None:
    world = start(allocator, "A100", "A100")
    assert positions(world.allocate("some", describe(Share("main", 1, 1)), "n")) == [0]
    own = describe(Share("main", 1, exclusive=True, cores_percent=100))
    (result,) = world.allocate("own", own, "n")
    assert positions([result]) == [1]
    assert result["consumedCapacity"] == {"memory": "40Gi", "cores": "100", "slots": "1"}
    assert not world.allocate("second", own, "n")
    assert positions(world.allocate("after", describe(Share("main", 1, 30000)), "n")) == [0]
    check(world)


def test_an_exclusive_share_with_a_limit_takes_a_card_that_has_so_much(
    allocator: Allocator,
) -> None:
    world = start(allocator, "T4", "A100")
    own = describe(Share("main", 1, 20000, exclusive=True))
    (result,) = world.allocate("own", own, "n")
    assert positions([result]) == [1]
    assert result["consumedCapacity"]["memory"] == "40Gi"


@pytest.mark.parametrize("percent", [1, 25, 50, 99])
@pytest.mark.parametrize("kinds", list(itertools.permutations(["A100", "T4", "L4"], 2)))
def test_a_percentage_is_of_the_card_it_gets(
    allocator: Allocator, percent: int, kinds: tuple[str, ...]
) -> None:
    world = start(allocator, *kinds)
    sizes = {MEMORY[kind] for kind in kinds}
    spec = describe(Share("main", 1, memory_percent=percent), sizes=sizes)
    for number in range(100 // percent * len(kinds)):
        got = world.allocate(f"c{number}", spec, "n")
        if not got:
            break
        (result,) = got
        size = MEMORY[kinds[positions(got)[0]]]
        assert result["consumedCapacity"]["memory"] in {
            f"{size * percent // 100}Mi",
            f"{size * percent // 100 / 1024:g}Gi",
        }
    check(world)


def test_the_first_alternative_with_room_is_taken(allocator: Allocator) -> None:
    world = start(allocator, "A100", "A100")
    spread = Placement(spread_cards=True)
    share = Share("main", 1, 30000)
    first = world.allocate("c0", describe(share, placement=spread, index=1), "n")
    assert positions(first) == [1]
    second = world.allocate("c1", describe(share, placement=spread, index=1), "n")
    assert positions(second) == [0]
    assert [result["request"] for result in first] != [result["request"] for result in second]
    check(world)


@pytest.mark.parametrize(("kinds", "near"), [(("A100",) * 4, [2, 3]), (("A100",) * 2, [0, 1])])
def test_near_cards_are_preferred_and_not_demanded(
    allocator: Allocator, kinds: tuple[str, ...], near: list[int]
) -> None:
    world = start(allocator, *kinds)
    world.allocate("one", describe(Share("main", 1, 40000)), "n")
    placement = Placement(near="resource.kubernetes.io/numaNode")
    small = describe(Share("main", 2, 900 if len(kinds) == 2 else 2000), placement=placement)
    assert positions(world.allocate("two", small, "n")) == near
    check(world)


def test_one_numa_node_is_demanded(allocator: Allocator) -> None:
    world = start(allocator, "A100", "A100", "A100", "A100")
    placement = Placement(one_numa_node=True)
    two = describe(Share("main", 2, 30000), placement=placement)
    assert positions(world.allocate("a", describe(Share("main", 1, 30000)), "n")) == [0]
    assert positions(world.allocate("b", two, "n")) == [2, 3]
    assert not world.allocate("c", describe(Share("main", 3, 10), placement=placement), "n")
    check(world)


@pytest.mark.parametrize("effect", ["NoSchedule", "NoExecute"])
@pytest.mark.parametrize(
    ("mark", "key"),
    [
        (CORDONED, ANNOTATION_DEVICE_CORDON),
        (Taint(TAINT_LOST, "not-described"), TAINT_LOST),
        (Taint(TAINT_XID, "79"), TAINT_XID),
    ],
)
def test_a_marked_card_gets_no_new_claim_unless_it_is_tolerated(
    allocator: Allocator, mark: Taint, key: str, effect: Effect
) -> None:
    world = start(allocator, "A100", "T4")
    share = describe(Share("main", 1, 1000))
    first, _ = make_cards(("A100", "T4"))
    assert positions(world.allocate("before", share, "n")) == [0]
    (taint,) = describe_taints([replace(mark, effect=effect)])
    world.set_taint(name_device(first.uuid), taint)
    assert positions(world.allocate("after", share, "n")) == [1]
    tolerant = describe(Share("main", 1, 1000))
    exactly = tolerant["devices"]["requests"][0]["exactly"]
    exactly["tolerations"] = [{"key": key, "operator": "Exists"}]
    assert positions(world.allocate("tolerant", tolerant, "n")) == [0]
    exactly["tolerations"] = [{"key": key, "operator": "Equal", "value": "another"}]
    assert positions(world.allocate("other", tolerant, "n")) == [1]
    world.set_taint(name_device(first.uuid), None)
    assert positions(world.allocate("healed", share, "n")) == [0]
    check(world)


def test_an_effect_that_only_informs_keeps_nobody_away(allocator: Allocator) -> None:
    world = start(allocator, "A100")
    (card,) = make_cards(("A100",))
    world.set_taint(name_device(card.uuid), {"key": "a.b/c", "value": "", "effect": "None"})
    assert positions(world.allocate("c", describe(Share("main", 1, 1)), "n")) == [0]


def _administer(mode: str) -> Object:
    ask: Object = {
        "deviceClassName": DEVICE_CLASS,
        "adminAccess": True,
        "capacity": {"requests": {"memory": "0", "cores": "0", "slots": "0"}},
    }
    ask |= {"allocationMode": "All"} if mode == "All" else {"count": 2}
    return {"devices": {"requests": [{"name": "main", "exactly": ask}]}}


@pytest.mark.parametrize("mode", ["All", "ExactCount"])
def test_an_administrator_sees_cards_that_are_full_and_takes_nothing(
    allocator: Allocator, mode: str
) -> None:
    world = start(allocator, "A100", "T4")
    own = describe(Share("main", 2, exclusive=True, cores_percent=100))
    assert world.allocate("own", own, "n")
    results = world.allocate("admin", _administer(mode), "n")
    assert positions(results) == [0, 1]
    assert all(result["adminAccess"] for result in results)
    world.free("own")
    assert world.allocate("again", own, "n")
    check(world)


def test_without_the_gate_a_card_is_given_whole_and_without_a_share(allocator: Allocator) -> None:
    gates = {**GATES, "ConsumableCapacity": False, "FractionalCapacityRange": False}
    world = start(allocator, "A100", "T4", gates=gates)
    for body in world.slices:  # what an API server without the gate stores
        for device in body["spec"]["devices"]:
            del device["allowMultipleAllocations"]
            for capacity in device["capacity"].values():
                del capacity["requestPolicy"]
    (result,) = world.allocate("c", ask_for(), "n")
    assert result.keys() & {"shareID", "consumedCapacity"} == set()
    assert positions(world.allocate("d", ask_for(), "n")) == [1]
    assert not world.allocate("e", ask_for(), "n")


def test_cards_of_all_slices_of_a_node_are_found_in_their_order(allocator: Allocator) -> None:
    count = PAGE_SIZE + 6
    world = start(allocator, *["T4"] * count)
    assert len(world.slices) == 2
    whole = ask_for()
    got = [positions(world.allocate(f"c{number}", whole, "n")) for number in range(count + 1)]
    assert got == [[number] for number in range(count)] + [[]]


def test_a_pool_that_is_not_complete_gives_nothing(allocator: Allocator) -> None:
    world = start(allocator, *["T4"] * (PAGE_SIZE + 1))
    lost = world.slices.pop()
    assert world.try_claims({"c": ask_for()}, "n").allocations is None
    world.slices.append(lost)
    assert world.allocate("d", ask_for(), "n")


def test_cards_of_another_node_are_not_given(allocator: Allocator) -> None:
    nodes = [
        SimNode(name="a", cards=make_cards(["A100"])),
        SimNode(name="b", cards=make_cards(["T4"], node=1)),
    ]
    world = World(allocator, nodes)
    big = describe(Share("main", 1, 20000))
    assert not world.allocate("c", big, "b")
    assert world.allocate("d", big, "a")


def test_the_attribute_of_every_constraint_is_that_of_the_published_card(
    allocator: Allocator,
) -> None:
    world = start(allocator, "A100", "A100")
    spec = describe(Share("main", 2, 1000))
    (constraint,) = spec["devices"]["constraints"]
    assert constraint["distinctAttribute"] == f"{DRIVER_NAME}/{ATTR_UUID}"
    for body in world.slices:
        for device in body["spec"]["devices"]:
            del device["attributes"][ATTR_UUID]
    assert world.try_claims({"c": spec}, "n").allocations is None


def test_two_requests_without_a_constraint_may_land_on_one_card(allocator: Allocator) -> None:
    """Why the constraint is always there."""
    world = start(allocator, "A100", "A100")
    ask = ask_for(memory="1Gi", cores="0", slots="1")["devices"]["requests"][0]
    spec = {"devices": {"requests": [ask, {**ask, "name": "other"}]}}
    assert positions(world.allocate("c", spec, "n")) == [0, 0]
