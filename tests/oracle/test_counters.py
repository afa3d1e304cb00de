"""Cards that are shared, parted or given whole, one at a time: counters (partitionable devices).

The slices are written out here: what matters is that a share of a card and a part of it exclude
each other, whoever publishes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami_dra.contract.names import DEVICE_CLASS, DEVICE_CLASS_MIG, DRIVER_NAME
from hami_dra.contract.settings import decode_settings
from tests.cluster.simcards import make_cards
from tests.cluster.simnodes import SimNode, describe_slices
from tests.generate.budget import budget
from tests.oracle.model import Model
from tests.oracle.world import World, ask_for, list_classes

if TYPE_CHECKING:
    from tests.oracle.allocator import Allocator

Object = dict[str, Any]

_PARTS: Final = {"1g": (1, 1), "2g": (2, 2), "3g": (3, 4), "7g": (7, 8)}
"""Multiprocessor and memory slices of a profile; a card has 7 and 8."""
_CLASSES: Final = list_classes(decode_settings({"dialects": ["nvidia"]}))
_SHARE: Final = ask_for(memory="1Gi", cores="0", slots="1")


def _count(slices: int, memory: int) -> Object:
    return {"compute": {"value": str(slices)}, "memory": {"value": str(memory)}}


def _consume(card: str, slices: int, memory: int) -> list[Object]:
    return [{"counterSet": card, "counters": _count(slices, memory)}]


def _describe_part(card: Object, profile: str, number: int) -> Object:
    slices, memory = _PARTS[profile]
    return {
        "name": f"{card['name'][-12:]}-{profile}-{number}",
        "attributes": {
            "type": {"string": "hami-mig"},
            "profile": {"string": profile},
            "uuid": card["attributes"]["uuid"],
        },
        "capacity": {"memory": {"value": f"{5 * memory}Gi"}},
        "consumesCounters": _consume(card["name"], slices, memory),
    }


def _publish(count: int) -> list[Object]:
    """Return a slice of counters and one of devices: cards, and each part of each of them."""
    described = SimNode(name="n", cards=make_cards(["A100"] * count))
    pool = {"name": "n", "generation": 1, "resourceSliceCount": 2}
    common = {"driver": DRIVER_NAME, "nodeName": "n", "pool": pool}
    (shared,) = describe_slices(described, "")
    devices, sets = [], []
    for card in shared["spec"]["devices"]:
        name = card["name"]
        sets.append({"name": name, "counters": _count(7, 8)})
        devices.append({**card, "consumesCounters": _consume(name, 7, 8)})
        devices += [
            _describe_part(card, profile, number)
            for profile, (slices, _) in _PARTS.items()
            for number in range(7 // slices)
        ]
    return [
        {"metadata": {"name": "0"}, "spec": {**common, "sharedCounters": sets}},
        {"metadata": {"name": "1"}, "spec": {**common, "devices": devices}},
    ]


def _start(allocator: Allocator, count: int = 1) -> World:
    node = SimNode(name="n")
    return World(allocator, [node], slices=_publish(count), classes=_CLASSES)


def _part(profile: str, count: int = 1) -> Object:
    expression = f'device.attributes["{DRIVER_NAME}"].profile == "{profile}"'
    ask = {
        "deviceClassName": DEVICE_CLASS_MIG,
        "count": count,
        "selectors": [{"cel": {"expression": expression}}],
    }
    return {"devices": {"requests": [{"name": "main", "exactly": ask}]}}


def _suits(device: Object, ask: Object) -> bool:
    """Answer for the classes and the one condition of these claims."""
    kind = device["attributes"]["type"]["string"]
    if kind != {DEVICE_CLASS: "hami-gpu", DEVICE_CLASS_MIG: "hami-mig"}[ask["deviceClassName"]]:
        return False
    profile = device["attributes"].get("profile", {}).get("string")
    return all(f'"{profile}"' in each["cel"]["expression"] for each in ask.get("selectors", ()))


def test_shares_of_a_card_count_as_one_user_of_it(allocator: Allocator) -> None:
    world = _start(allocator)
    for number in range(10):
        assert world.allocate(f"c{number}", _SHARE, "n")
    assert not world.allocate("more", _SHARE, "n")
    assert list(Model(world.slices, _suits).list_breaches(world.held.values())) == []


@pytest.mark.parametrize("profile", sorted(_PARTS))
def test_a_shared_card_is_not_parted_and_a_parted_one_not_shared(
    allocator: Allocator, profile: str
) -> None:
    world = _start(allocator)
    assert world.allocate("share", _SHARE, "n")
    assert not world.allocate("part", _part(profile), "n")
    world.free("share")
    assert world.allocate("part", _part(profile), "n")
    assert not world.allocate("share", _SHARE, "n")
    assert not world.allocate("whole", ask_for(), "n")
    world.free("part")
    assert world.allocate("whole", ask_for(), "n")


def test_parts_fit_together_until_the_counters_are_used_up(allocator: Allocator) -> None:
    world = _start(allocator)
    assert world.allocate("a", _part("3g"), "n")
    assert world.allocate("b", _part("2g"), "n")
    assert not world.allocate("c", _part("3g"), "n")
    assert world.allocate("d", _part("2g"), "n")
    assert not world.allocate("e", _part("1g"), "n")
    world.free("b")
    assert world.allocate("f", _part("1g", 2), "n")


def test_a_second_card_takes_what_the_first_cannot(allocator: Allocator) -> None:
    world = _start(allocator, 2)
    assert world.allocate("share", _SHARE, "n")
    (part,) = world.allocate("part", _part("7g"), "n")
    assert part["device"].startswith("000000000001-")
    assert "shareID" not in part
    assert "consumedCapacity" not in part


_SPECS: Final = st.one_of(
    st.just(_SHARE),
    st.just(ask_for()),
    st.builds(lambda mib: ask_for(memory=f"{mib}Mi", cores="10"), st.integers(1, 40960)),
    st.builds(_part, st.sampled_from(sorted(_PARTS)), st.integers(1, 3)),
)


@budget(0.05)
@given(count=st.integers(1, 2), steps=st.lists(st.one_of(_SPECS, st.integers(0, 9)), max_size=12))
def test_shares_and_parts_that_come_and_go(
    allocators: list[Allocator], count: int, steps: list[Any]
) -> None:
    for allocator in allocators:
        world = _start(allocator, count)
        model = Model(world.slices, _suits)
        for number, step in enumerate(steps):
            if isinstance(step, int):
                if step < len(world.held):
                    world.free(sorted(world.held)[step])
                continue
            expected = model.predict(step, world.held.values(), "n")
            results = world.allocate(f"c{number:02}", step, "n")
            assert [result["device"] for result in results] == [pick.key[1] for pick in expected], (
                allocator.version
            )
            assert list(model.list_breaches(world.held.values())) == []
