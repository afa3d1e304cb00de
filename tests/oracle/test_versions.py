"""What is known to differ between the versions, so that a change in either is noticed.

docs/reference/conformance.md says what each difference means for users.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from hami_dra.contract.names import DEVICE_CLASS
from tests.cluster.simcards import make_cards
from tests.cluster.simnodes import SimNode
from tests.oracle.world import World, ask_for

if TYPE_CHECKING:
    from tests.oracle.allocator import Allocator

Object = dict[str, Any]


@pytest.fixture
def minor(allocator: Allocator) -> int:
    """Return the Kubernetes minor of the allocator."""
    return int(allocator.version.split(".")[1])


def _all_of(**capacity: str) -> Object:
    ask = {
        "deviceClassName": DEVICE_CLASS,
        "allocationMode": "All",
        "capacity": {"requests": capacity},
    }
    return {"devices": {"requests": [{"name": "main", "exactly": ask}]}}


def test_all_cards_when_one_has_no_room(allocator: Allocator, minor: int) -> None:
    world = World(allocator, [SimNode(name="n", cards=make_cards(["A100", "T4"]))])
    assert world.allocate("some", ask_for(memory="39Gi", cores="0", slots="1"), "n")
    results = world.allocate("all", _all_of(memory="2Gi", cores="0", slots="1"), "n")
    assert len(results) == (1 if minor < 37 else 0)


@pytest.mark.parametrize(("cores", "consumed"), [("500m", "1"), ("1500m", "2")])
def test_parts_of_a_unit_are_rounded_up_to_the_step(
    allocator: Allocator, cores: str, consumed: str
) -> None:
    world = World(allocator, [SimNode(name="n", cards=make_cards(["A100"]))])
    (result,) = world.allocate("c", ask_for(memory="1Gi", cores=cores, slots="1"), "n")
    assert result["consumedCapacity"]["cores"] == consumed


def _publish_without_range(world: World) -> None:
    for body in world.slices:
        for device in body["spec"]["devices"]:
            del device["capacity"]["memory"]["requestPolicy"]


def test_why_every_capacity_has_a_range(allocator: Allocator, minor: int) -> None:
    """Without one, a negative request is stored as a gain by 1.36, and is an error for 1.37."""
    world = World(allocator, [SimNode(name="n", cards=make_cards(["A100"]))])
    _publish_without_range(world)
    answer = world.try_claims({"c": ask_for(memory="-1Gi", cores="0", slots="1")}, "n")
    if minor < 37:
        assert answer.allocations is not None
        (result,) = answer.allocations[0]["devices"]["results"]
        assert result["consumedCapacity"]["memory"] == "-1Gi"
    else:
        assert answer.allocations is None
