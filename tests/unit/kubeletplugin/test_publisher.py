"""ResourceSlices under all that may happen to them."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from hami_dra.kube.objects import NODES, SLICES
from hami_dra.kubeletplugin.publisher import Publisher, always_lead
from hami_dra.kubeletplugin.slices import (
    Pool,
    normalize_devices,
    plan_slices,
    split_counters,
    split_pages,
)
from hami_dra.policy.devices import describe_devices
from hami_dra.policy.migdevices import describe_counter_sets, describe_mig_device, list_mig_devices
from hami_dra.testing.fakecluster import FakeCluster
from hami_dra.testing.fakegpus import make_gpu
from hami_dra.testing.fakemig import divide

DRIVER = "gpu.example.com"
NODE = "node-1"
POOL = Pool(driver=DRIVER, name=NODE, node_name=NODE, node_uid="node-uid")


def devices(count: int) -> list[dict[str, Any]]:
    return describe_devices([make_gpu(i) for i in range(count)], split_count=10)


class States:
    """What the publisher says about itself, and an event for each time it does."""

    def __init__(self) -> None:
        self.last: str | None = "not yet"
        self.said = asyncio.Event()

    def __call__(self, reason: str | None) -> None:  # noqa: D102 - the publisher calls it
        self.last = reason
        self.said.set()


@asynccontextmanager
async def publishing(
    cluster: FakeCluster, leads: Callable[[], Awaitable[bool]] = always_lead
) -> AsyncIterator[tuple[Publisher, States]]:
    await cluster.put(NODES, {"metadata": {"name": NODE, "uid": "node-uid"}})
    states = States()
    publisher = Publisher(
        cluster.api(), driver=DRIVER, node_name=NODE, on_state=states, leads=leads
    )
    task = asyncio.create_task(publisher.run())
    try:
        yield publisher, states
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def mine(cluster: FakeCluster) -> list[dict[str, Any]]:
    return [item for item in cluster.objects(SLICES) if item["spec"]["driver"] == DRIVER]


def generations(cluster: FakeCluster) -> list[int]:
    return [item["spec"]["pool"]["generation"] for item in mine(cluster)]


async def published(cluster: FakeCluster, count: int, *, seconds: float = 2.0) -> None:
    """Wait until the stored slices hold so many devices."""

    def holds() -> bool:
        stored = mine(cluster)
        return bool(stored) and sum(len(i["spec"].get("devices", [])) for i in stored) == count

    await cluster.wait_for(holds, timeout_seconds=seconds)


async def test_cards_are_published_and_belong_to_the_node(cluster: FakeCluster) -> None:
    async with publishing(cluster) as (publisher, states):
        publisher.publish(devices(2))
        await published(cluster, 2)
        await states.said.wait()

        (stored,) = mine(cluster)
        assert stored["metadata"]["name"].startswith(f"00000-{DRIVER}-{NODE}-")
        assert stored["metadata"]["ownerReferences"] == [
            {
                "apiVersion": "v1",
                "kind": "Node",
                "name": NODE,
                "uid": "node-uid",
                "controller": True,
            }
        ]
        assert stored["spec"]["pool"] == {
            "name": NODE,
            "generation": 1,
            "resourceSliceCount": 1,
        }
        assert stored["spec"]["nodeName"] == NODE
        assert states.last is None
        assert publisher.statistics().published


async def test_no_cards_is_an_empty_slice(cluster: FakeCluster) -> None:
    async with publishing(cluster) as (publisher, _):
        publisher.publish([])
        await published(cluster, 0)

        (stored,) = mine(cluster)
        assert stored["spec"]["devices"] == []


async def test_a_wiped_slice_is_back_within_two_seconds(cluster: FakeCluster) -> None:
    async with publishing(cluster) as (publisher, _):
        publisher.publish(devices(2))
        await published(cluster, 2)
        (stored,) = mine(cluster)
        await cluster.remove(SLICES, stored["metadata"]["name"])

        await published(cluster, 2, seconds=2.0)
        assert generations(cluster) == [2]


async def test_one_slice_that_changes_keeps_its_name_and_generation(cluster: FakeCluster) -> None:
    async with publishing(cluster) as (publisher, _):
        publisher.publish(devices(2))
        await published(cluster, 2)
        name = mine(cluster)[0]["metadata"]["name"]
        publisher.publish(devices(3))
        await published(cluster, 3)

        assert [item["metadata"]["name"] for item in mine(cluster)] == [name]
        assert generations(cluster) == [1]


async def test_a_foreign_change_is_put_right(cluster: FakeCluster) -> None:
    async with publishing(cluster) as (publisher, _):
        publisher.publish(devices(2))
        await published(cluster, 2)
        (stored,) = mine(cluster)
        stored["spec"]["devices"] = []
        await cluster.put(SLICES, stored)

        await published(cluster, 2)


async def test_slices_of_others_are_not_touched(cluster: FakeCluster) -> None:
    others = [
        {"metadata": {"name": "x"}, "spec": {"driver": "other", "nodeName": NODE}},
        {"metadata": {"name": "y"}, "spec": {"driver": DRIVER, "nodeName": "node-2"}},
    ]
    stored = [await cluster.put(SLICES, item) for item in others]
    async with publishing(cluster) as (publisher, _):
        publisher.publish(devices(1))
        await cluster.wait_for(lambda: len(cluster.objects(SLICES)) == 3)

        assert [i for i in cluster.objects(SLICES) if i["metadata"]["name"] in "xy"] == stored


@pytest.mark.parametrize("status", [409, 500, 429])
async def test_a_write_that_fails_is_tried_again(cluster: FakeCluster, status: int) -> None:
    failures = iter([status, status])
    cluster.fault = lambda method, _: next(failures, None) if method == "POST" else None
    async with publishing(cluster) as (publisher, states):
        publisher.publish(devices(1))
        await states.said.wait()
        assert "did not take the slices" in str(states.last)
        await published(cluster, 1, seconds=5)

        assert publisher.statistics().errors == 2


async def test_without_the_node_object_it_waits(cluster: FakeCluster) -> None:
    async with publishing(cluster) as (publisher, states):
        await cluster.remove(NODES, NODE)
        publisher.publish(devices(1))
        await states.said.wait()
        assert "nodes/node-1" in str(states.last)
        await cluster.put(NODES, {"metadata": {"name": NODE, "uid": "later"}})
        await published(cluster, 1, seconds=5)

        assert mine(cluster)[0]["metadata"]["ownerReferences"][0]["uid"] == "later"


async def test_an_instance_that_does_not_lead_writes_nothing_until_it_does(
    cluster: FakeCluster,
) -> None:
    answers = [False]

    async def leads() -> bool:
        return answers[0]

    async with publishing(cluster, leads) as (publisher, states):
        publisher.publish(devices(1))
        await states.said.wait()
        assert states.last is None, "the other one sees to it"
        assert mine(cluster) == []
        states.said.clear()
        answers[0] = True
        publisher.refresh()
        await published(cluster, 1, seconds=10)
        await states.said.wait()
        answers[0] = False
        (stored,) = mine(cluster)
        states.said.clear()
        await cluster.remove(SLICES, stored["metadata"]["name"])
        await states.said.wait()

        assert mine(cluster) == []
        assert not publisher.statistics().published


async def test_who_loses_the_lead_in_the_middle_leaves_the_rest_to_the_other(
    cluster: FakeCluster,
) -> None:
    asked = itertools.count()

    async def leads() -> bool:
        return next(asked) < 2  # before the plan, and before the first of two slices

    async with publishing(cluster, leads) as (publisher, states):
        publisher.publish(devices(65))
        await states.said.wait()

        assert states.last is None
        assert [len(item["spec"]["devices"]) for item in mine(cluster)] == [64]
    async with publishing(cluster) as (other, states):
        other.publish(devices(65))
        await published(cluster, 65, seconds=10)
        assert len(set(generations(cluster))) == 1


def store(plan_items: Any, *, first: int = 0) -> list[dict[str, Any]]:
    """Return what an API server would hold after a plan."""
    return [
        {
            **item,
            "metadata": {
                **item["metadata"],
                "name": item["metadata"].get("name") or f"{item['metadata']['generateName']}x{i}",
                "uid": f"uid-{first + i}",
                "resourceVersion": "1",
            },
        }
        for i, item in enumerate(plan_items)
    ]


def test_a_node_with_many_cards_has_several_slices_of_one_generation() -> None:
    plan = plan_slices([], split_pages(devices(65)), POOL, generation=0)

    sizes = [len(item["spec"]["devices"]) for item in plan.creates]
    assert sizes == [64, 1]
    assert [item["spec"]["pool"]["resourceSliceCount"] for item in plan.creates] == [2, 2]
    assert {item["spec"]["pool"]["generation"] for item in plan.creates} == {1}


def test_what_is_stored_needs_no_change_even_in_other_words() -> None:
    stored = store(plan_slices([], split_pages(devices(65)), POOL, generation=0).creates)
    memory = stored[0]["spec"]["devices"][0]["capacity"]["memory"]
    stored[0]["spec"]["devices"][0]["capacity"]["memory"] = {**memory, "value": "40960Mi"}

    assert plan_slices(stored, split_pages(devices(65)), POOL, generation=1).empty


def test_two_slices_that_differ_are_a_new_generation_of_all() -> None:
    stored = store(plan_slices([], split_pages(devices(65)), POOL, generation=0).creates)
    changed = [{**device, "attributes": {}} for device in devices(65)]

    plan = plan_slices(stored, split_pages(changed), POOL, generation=1)

    assert (len(plan.replaces), len(plan.creates), plan.generation) == (2, 0, 2)


def test_fewer_slices_are_a_new_generation_and_a_deletion() -> None:
    stored = store(plan_slices([], split_pages(devices(65)), POOL, generation=0).creates)

    plan = plan_slices(stored, split_pages(devices(3)), POOL, generation=1)

    assert [item["metadata"]["name"][:5] for item in plan.deletes] == ["00001"]
    assert [item["spec"]["pool"]["generation"] for item in plan.replaces] == [2]


def test_left_overs_of_an_older_generation_go_without_a_new_one() -> None:
    pages = split_pages(devices(1))
    old = store(plan_slices([], pages, POOL, generation=0).creates, first=7)
    new = store(plan_slices([], pages, POOL, generation=4).creates)

    plan = plan_slices([*old, *new], pages, POOL, generation=5)

    assert [item["metadata"]["uid"] for item in plan.deletes] == ["uid-7"]
    assert (plan.replaces, plan.creates, plan.generation) == ((), (), 5)


def divided(cards: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return placements and counters of cards that are divided as claims need it."""
    gpus = [divide(make_gpu(number)) for number in range(cards)]
    placements = list_mig_devices(gpus, {"all"}, lambda *_: True)
    counters = describe_counter_sets(gpus, {"all"}, lambda *_: True)
    return [describe_mig_device(each) for each in placements], counters


def test_counters_have_slices_of_their_own_within_the_limits() -> None:
    placements, counters = divided(16)
    plan = plan_slices(
        [], split_pages(placements), POOL, generation=0, counters=split_counters(counters)
    )
    specs = [item["spec"] for item in plan.creates]

    assert [len(spec.get("devices", ())) for spec in specs] == [64] * 6 + [16, 0, 0]
    assert [len(spec.get("sharedCounters", ())) for spec in specs] == [0] * 7 + [8, 8]
    assert all(("devices" in spec) != ("sharedCounters" in spec) for spec in specs)
    assert {spec["pool"]["resourceSliceCount"] for spec in specs} == {9}
    stored = store(plan.creates)
    again = plan_slices(
        stored, split_pages(placements), POOL, generation=1, counters=split_counters(counters)
    )
    assert again.empty


def test_counters_that_change_alone_are_replaced_alone() -> None:
    placements, counters = divided(1)
    pages = split_pages(placements)
    stored = store(
        plan_slices([], pages, POOL, generation=0, counters=split_counters(counters)).creates
    )
    less = [{**counters[0], "counters": {"compute-slices": {"value": "4"}}}]

    plan = plan_slices(stored, pages, POOL, generation=1, counters=split_counters(less))

    assert [item["metadata"]["name"][:5] for item in plan.replaces] == ["00001"]
    assert plan.generation == 1
    gone = plan_slices(stored, pages, POOL, generation=1)
    assert [item["metadata"]["name"][:5] for item in gone.deletes] == ["00001"]


async def test_placements_are_withdrawn_where_nobody_counts(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with the gate off: the API server drops the fields without an error."""
    stored_as_sent = FakeCluster._store

    async def drop(self: FakeCluster, path: str, body: Any, *, created: bool) -> Any:
        if "resourceslices" in path:
            body["spec"].pop("sharedCounters", None)
            for device in body["spec"].get("devices") or ():
                device.pop("consumesCounters", None)
        return await stored_as_sent(self, path, body, created=created)

    monkeypatch.setattr(FakeCluster, "_store", drop)
    placements, counters = divided(1)
    async with publishing(cluster) as (publisher, _):
        publisher.publish([*devices(1), *placements], counters)
        await published(cluster, 1)
        publisher.publish([*devices(2), *placements], counters)
        await published(cluster, 2)

        stored = [device for item in mine(cluster) for device in item["spec"].get("devices", ())]
        assert [device["name"] for device in stored] == [d["name"] for d in devices(2)]


def test_quantities_compare_by_value() -> None:
    first, second = devices(1), devices(1)
    second[0]["capacity"]["memory"]["value"] = str(40 << 30)

    assert normalize_devices(first) == normalize_devices(second)


async def test_a_field_that_the_api_server_drops_is_told_and_not_fought_over(
    cluster: FakeCluster,
) -> None:
    async with publishing(cluster) as (publisher, states):
        wanted = devices(1)
        publisher.publish(wanted)
        await published(cluster, 1)
        await states.said.wait()
        publisher._note_write(
            {"spec": {"devices": wanted}},
            {
                "metadata": {"uid": "u", "resourceVersion": "1", "name": "00000-x"},
                "spec": {
                    "devices": [
                        {k: v for k, v in wanted[0].items() if k != "allowMultipleAllocations"}
                    ]
                },
            },
        )

        assert publisher.statistics().dropped_fields == ("allowMultipleAllocations",)
        assert "allowMultipleAllocations" not in publisher._adopt(0, wanted)[0]
