"""Cards that we divide: what the scheduler gives out of our slices is what a driver can make."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from hypothesis import given
from hypothesis import strategies as st

from hami_dra.contract.errors import RetryError
from hami_dra.contract.names import DEVICE_CLASS, DEVICE_CLASS_MIG, DRIVER_NAME
from hami_dra.kubeletplugin.slices import Pool, plan_slices, split_counters, split_pages
from hami_dra.policy.devices import describe_offers, offer_whole
from hami_dra.policy.migdevices import (
    describe_counter_sets,
    describe_mig_device,
    index_by_name,
    list_mig_devices,
    place_of,
)
from hami_dra.policy.selectors import profile_is
from hami_dra.testing.fakegpus import make_gpu
from hami_dra.testing.fakemig import A100_PROFILES, FakeInstances, divide
from tests.cluster.simnodes import SimNode
from tests.generate.budget import budget
from tests.oracle.model import Model
from tests.oracle.world import World, ask_for, name_slices

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hami_dra.policy.devices import GpuFacts
    from hami_dra.policy.migdevices import MigDevice
    from tests.oracle.allocator import Allocator

Object = dict[str, Any]

_SHARE: Final = ask_for(memory="1Gi", cores="0", slots="1")
_PROFILES: Final = {profile.name: profile for profile in A100_PROFILES}
_NOBODYS: Final = lambda *_: True  # noqa: E731 - instances of a driver without any


def _publish(divided: list[GpuFacts], shared: list[GpuFacts]) -> list[Object]:
    """Return the slices that the node plugin writes."""
    offers = [offer_whole(gpu, split_count=10) for gpu in shared]
    devices = [
        *describe_offers(offers, {}),
        *map(describe_mig_device, list_mig_devices(divided, {"all"}, _NOBODYS)),
    ]
    counters = describe_counter_sets(divided, {"all"}, _NOBODYS)
    pool = Pool(driver=DRIVER_NAME, name="n", node_name="n", node_uid="uid-n")
    plan = plan_slices(
        [], split_pages(devices), pool, generation=0, counters=split_counters(counters)
    )
    return name_slices(plan.creates)


def _start(allocator: Allocator, count: int) -> tuple[World, Mapping[str, MigDevice]]:
    divided = [divide(make_gpu(number)) for number in range(count)]
    slices = _publish(divided, [make_gpu(count, memory_mib=16384)])
    world = World(allocator, [SimNode(name="n")], slices=slices)
    return world, index_by_name(list_mig_devices(divided, {"all"}, _NOBODYS))


def _part(profile: str, count: int = 1) -> Object:
    ask = {
        "deviceClassName": DEVICE_CLASS_MIG,
        "count": count,
        "selectors": [{"cel": {"expression": profile_is(profile.replace("+", "."))}}],
    }
    return {"devices": {"requests": [{"name": "main", "exactly": ask}]}}


def _suits(device: Object, ask: Object) -> bool:
    """Answer for the classes and the one condition of these claims."""
    kind = device["attributes"]["type"]["string"]
    if kind != {DEVICE_CLASS: "hami-gpu", DEVICE_CLASS_MIG: "hami-mig"}[ask["deviceClassName"]]:
        return False
    profile = device["attributes"].get("profile", {}).get("string", "").replace("+", ".")
    return all(f'== "{profile}"' in each["cel"]["expression"] for each in ask.get("selectors", ()))


class Driver(FakeInstances):
    """Makes what claims hold, as the node does when it prepares them."""

    def make(self, device: MigDevice) -> None:
        """Make the instance of a device.

        Raises:
            RetryError: There is no room for it.
        """
        asyncio.run(self.create_instance(place_of(device), device.profile.number))

    def end(self, device: MigDevice) -> None:
        """End it."""
        uuid, start, size = place_of(device)
        (found,) = [each for each in self.cards[uuid] if (each.start, each.size) == (start, size)]
        asyncio.run(self.destroy(uuid, found.number))

    def has_room(self, device: MigDevice) -> bool:
        """Whether the instance could be made."""
        try:
            self.make(device)
        except RetryError:
            return False
        self.end(device)
        return True


def test_a_share_is_never_of_a_divided_card(allocator: Allocator) -> None:
    world, parts = _start(allocator, 1)
    given_out = [world.allocate(f"c{number}", _SHARE, "n") for number in range(11)]
    assert [len(results) for results in given_out] == [*[1] * 10, 0]
    assert not {result["device"] for results in given_out for result in results} & parts.keys()


def test_small_parts_leave_room_for_large_ones(allocator: Allocator) -> None:
    world, parts = _start(allocator, 1)
    for number in range(3):
        assert world.allocate(f"small{number}", _part("1g.5gb"), "n")
    (large,) = world.allocate("large", _part("4g.20gb"), "n")
    assert parts[large["device"]].start == 0
    assert not world.allocate("late", _part("1g.5gb"), "n")


_SPECS: Final = st.builds(
    lambda name, count: (name, count), st.sampled_from(sorted(_PROFILES)), st.integers(1, 3)
)


@budget(0.05)
@given(count=st.integers(1, 2), steps=st.lists(st.one_of(_SPECS, st.integers(0, 9)), max_size=12))
def test_what_is_given_out_can_be_made_and_what_can_be_made_is_given_out(
    allocators: list[Allocator], count: int, steps: list[Any]
) -> None:
    for allocator in allocators:
        world, parts = _start(allocator, count)
        model, driver = Model(world.slices, _suits), Driver()
        owned: dict[str, list[str]] = {}
        for number, step in enumerate(steps):
            if isinstance(step, int):
                if step < len(owned):
                    name = sorted(owned)[step]
                    world.free(name)
                    for device in owned.pop(name):
                        driver.end(parts[device])
                continue
            profile, wanted = step
            expected = model.predict(_part(profile, wanted), world.held.values(), "n")
            name = f"c{number:02}"
            results = [r["device"] for r in world.allocate(name, _part(profile, wanted), "n")]
            assert results == [pick.key[1] for pick in expected], allocator.version
            assert list(model.list_breaches(world.held.values())) == []
            for device in results:
                driver.make(parts[device])
            if results:
                owned[name] = results
            elif wanted == 1 and "+" not in profile:  # the fake driver counts no engines
                alike = [part for part in parts.values() if part.label == profile]
                assert not any(driver.has_room(part) for part in alike)
