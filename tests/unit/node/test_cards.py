"""Cards that get lost, are cordoned, and come back: what the node offers then."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from hami_dra.contract.errors import FatalError
from hami_dra.contract.healthconfig import HealthConfig
from hami_dra.contract.names import ANNOTATION_DEVICE_CORDON, TAINT_DIVIDING, TAINT_LOST
from hami_dra.contract.nodeconfig import DeviceFilter, ProfileList
from hami_dra.gpu.source import Discovery, SkippedGpu
from hami_dra.kube.objects import NODES
from hami_dra.kubeletplugin.slices import Pool, plan_slices
from hami_dra.node.cordon import CordonWatch
from hami_dra.node.inventory import Inventory
from hami_dra.node.offer import Offer
from hami_dra.policy.cardrules import CardRules
from hami_dra.policy.devices import GpuFacts, describe_devices, name_device
from hami_dra.policy.health import CardVitals, find_lost
from hami_dra.policy.mig import Instance, Part
from hami_dra.policy.taints import CORDONED, read_cordon
from hami_dra.testing.fakecluster import FakeCluster
from hami_dra.testing.fakegpus import FakeGpus, make_gpu
from hami_dra.testing.fakemig import divide

FIRST, SECOND = make_gpu(0), make_gpu(1)
OTHERS_PART = Part(number=0, uuid="MIG-others", slices=3, multiprocessors=42)
Told = list[tuple[list[str], list[str]]]


def watch(gpus: FakeGpus) -> tuple[Inventory, Told]:
    told: Told = []
    inventory = Inventory(
        gpus,
        interval_seconds=60.0,
        on_change=lambda cards, lost: told.append(([gpu.uuid for gpu in cards], sorted(lost))),
        on_state=lambda _: None,
    )
    return inventory, told


async def test_a_card_is_lost_when_it_is_missing_twice_and_found_at_once() -> None:
    gpus = FakeGpus(FIRST, SECOND)
    inventory, told = watch(gpus)
    both = [FIRST.uuid, SECOND.uuid]
    assert await inventory.look()
    gpus.gpus, gpus.skipped = (FIRST,), (SkippedGpu(1, "GPU is lost"),)
    assert not await inventory.look()
    assert told == [(both, [])]
    assert not await inventory.look()
    assert told[1:] == [(both, [SECOND.uuid])]
    assert list(inventory.gpus()) == [name_device(FIRST.uuid)]
    gpus.gpus, gpus.skipped = (FIRST, SECOND), ()
    assert await inventory.look()
    assert told[2:] == [(both, [])]
    assert len(inventory.gpus()) == 2


async def test_nvml_looks_anew_when_the_driver_holds_other_cards_or_misses_some() -> None:
    gpus = FakeGpus(FIRST)
    gpus.bound = frozenset({FIRST.pci_bus_id})
    reopened: list[None] = []
    inventory = Inventory(
        gpus,
        interval_seconds=60.0,
        on_change=lambda *_: None,
        on_state=lambda _: None,
        on_stale=lambda: reopened.append(None),
    )
    assert await inventory.look()
    assert await inventory.look()
    assert reopened == []
    gpus.bound = frozenset({FIRST.pci_bus_id, SECOND.pci_bus_id})
    assert await inventory.look()
    assert len(reopened) == 1
    gpus.gpus = (FIRST, SECOND)
    assert await inventory.look()
    assert len(reopened) == 1
    gpus.gpus = (FIRST,)
    assert not await inventory.look()
    assert len(reopened) == 2
    gpus.skipped = (SkippedGpu(1, "no answer within 5 s", hangs=True),)
    assert not await inventory.look()
    assert len(reopened) == 2


async def test_a_card_that_is_not_well_is_looked_at_again_soon() -> None:
    gpus = FakeGpus(FIRST)
    looks: list[int] = []
    inventory = Inventory(
        gpus,
        interval_seconds=60.0,
        on_change=lambda *_: None,
        on_state=lambda _: None,
        on_look=lambda vitals, _: looks.append(len(vitals)),
    )
    gpus.vitals = {FIRST.uuid: CardVitals(recovery_action=1)}
    assert not await inventory.look()
    gpus.vitals = {FIRST.uuid: CardVitals(0, remap_failed=False, recovery_action=0)}
    assert await inventory.look()
    assert looks == [1, 1]


async def test_a_refresh_looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hami_dra.node.inventory._SETTLE_SECONDS", 0.0)
    looked = asyncio.Event()
    inventory = Inventory(
        FakeGpus(FIRST),
        interval_seconds=3600.0,
        on_change=lambda *_: None,
        on_state=lambda _: None,
        on_look=lambda *_: looked.set(),
    )
    task = asyncio.create_task(inventory.run())
    async with asyncio.timeout(5):
        await looked.wait()
        looked.clear()
        inventory.refresh()
        await looked.wait()
    task.cancel()


async def test_a_fault_of_the_driver_that_a_new_process_heals_is_not_swallowed() -> None:
    class Replaced(FakeGpus):
        async def discover(self) -> Discovery:
            raise FatalError("the driver was replaced")

    inventory, _ = watch(Replaced())
    with pytest.raises(FatalError):
        await inventory.look()


async def test_without_a_driver_all_cards_are_lost() -> None:
    gpus = FakeGpus(FIRST, SECOND)
    inventory, told = watch(gpus)
    await inventory.look()
    gpus.fault = "NVML does not initialise"
    await inventory.look()
    await inventory.look()
    assert told[-1] == ([FIRST.uuid, SECOND.uuid], [FIRST.uuid, SECOND.uuid])
    assert inventory.gpus() == {}


async def test_a_driver_that_never_answered_means_no_cards() -> None:
    gpus = FakeGpus()
    gpus.fault = "no driver"
    inventory, told = watch(gpus)
    for _ in range(3):
        await inventory.look()
    assert told == [([], [])]


def _taints(published: list[dict[str, Any]]) -> dict[str, list[str]]:
    return {
        device["attributes"]["uuid"]["string"]: [taint["key"] for taint in device["taints"]]
        for device in published
        if "taints" in device
    }


def test_causes_add_up_on_a_card_and_end_alone() -> None:
    published: list[list[dict[str, Any]]] = []
    offer = Offer(lambda devices, _: published.append(devices), rules=CardRules())
    offer.set_cordoned({SECOND.uuid, "GPU-elsewhere"})
    assert published == []
    offer.set_cards((FIRST, SECOND), ())
    assert _taints(published[-1]) == {SECOND.uuid: [ANNOTATION_DEVICE_CORDON]}
    offer.set_faults({SECOND.uuid: (find_lost(HealthConfig()),)})
    assert _taints(published[-1]) == {SECOND.uuid: [TAINT_LOST, ANNOTATION_DEVICE_CORDON]}
    offer.set_cordoned(())
    assert _taints(published[-1]) == {SECOND.uuid: [TAINT_LOST]}
    offer.set_faults({})
    assert published[-1] == describe_devices((FIRST, SECOND), split_count=10)


async def test_the_annotation_of_this_node_cordons() -> None:
    told: list[frozenset[str]] = []
    changed = asyncio.Event()

    def note(uuids: frozenset[str]) -> None:
        told.append(uuids)
        changed.set()

    def node(name: str, *uuids: str) -> dict[str, Any]:
        annotations = {ANNOTATION_DEVICE_CORDON: ", ".join(uuids)} if uuids else {}
        return {"metadata": {"name": name, "annotations": annotations}}

    async with FakeCluster() as cluster, asyncio.timeout(10):
        await cluster.put(NODES, node("mine", FIRST.uuid))
        await cluster.put(NODES, node("other", SECOND.uuid))
        watcher = CordonWatch(cluster.api(), node_name="mine", on_change=note)
        task = asyncio.create_task(watcher.run())
        for uuids in ((FIRST.uuid, SECOND.uuid), ()):
            await changed.wait()
            changed.clear()
            await cluster.put(NODES, node("mine", *uuids))
        await changed.wait()
        task.cancel()
    assert told == [{FIRST.uuid}, {FIRST.uuid, SECOND.uuid}, frozenset()]


def test_a_cordon_is_a_comma_list() -> None:
    assert read_cordon(None) == read_cordon(" , ") == frozenset()
    assert read_cordon("GPU-a, GPU-b,") == {"GPU-a", "GPU-b"}


def test_a_taint_keeps_its_time_and_is_no_difference_for_it() -> None:
    pool = Pool(driver="d", name="n", node_name="n", node_uid="u")

    def page(*marked: str, count: int = 2) -> list[list[dict[str, Any]]]:
        cards = tuple(make_gpu(number) for number in range(count))
        return [
            describe_devices(cards, split_count=10, taints={uuid: [CORDONED] for uuid in marked})
        ]

    (stored,) = plan_slices((), page(FIRST.uuid), pool, generation=0).creates
    stored["metadata"]["name"] = stored["metadata"]["generateName"] + "x"
    stored["spec"]["devices"][0]["taints"][0]["timeAdded"] = "2026-01-01T00:00:00Z"
    assert plan_slices([stored], page(FIRST.uuid), pool, generation=1).empty

    (changed,) = plan_slices([stored], page(FIRST.uuid, SECOND.uuid), pool, generation=1).replaces
    first, second = (device["taints"] for device in changed["spec"]["devices"])
    assert first[0]["timeAdded"] == "2026-01-01T00:00:00Z"
    assert "timeAdded" not in second[0]
    (other,) = plan_slices([stored], page(count=2), pool, generation=1).replaces
    assert "taints" not in other["spec"]["devices"][0]


def offered(
    *gpus: GpuFacts, dynamic: tuple[str, ...] = (), **rules: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return what is published of cards: devices and counters."""
    published: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]] = []
    offer = Offer(
        lambda devices, counters: published.append((devices, counters)),
        rules=CardRules(**rules),
        dynamic=dynamic,
    )
    offer.set_cards(gpus, ())
    return published[-1]


def kinds(devices: list[dict[str, Any]]) -> list[str]:
    return sorted({device["attributes"]["type"]["string"] for device in devices})


def test_a_card_in_mig_mode_is_never_shared() -> None:
    devices, counters = offered(divide(FIRST), SECOND)
    assert [device["name"] for device in devices] == [name_device(SECOND.uuid)]
    assert counters == []


def test_a_node_in_mode_mig_divides_its_cards() -> None:
    waiting = divide(SECOND, enabled=False)
    devices, counters = offered(divide(FIRST), waiting, operating_mode="mig")
    assert kinds(devices) == ["hami-mig"]
    assert [group["name"] for group in counters] == [name_device(FIRST.uuid)]


def test_a_card_that_waits_to_be_divided_gets_no_new_claims() -> None:
    devices, counters = offered(divide(FIRST, enabled=False), SECOND, dynamic=("0",))
    assert [device.get("taints", [{}])[0].get("key") for device in devices] == [
        TAINT_DIVIDING,
        None,
    ]
    assert counters == []


def test_filters_keep_the_parts_of_a_card_out_as_well() -> None:
    hidden = DeviceFilter(uuid=(FIRST.uuid,))
    for dynamic in ((), ("all",)):
        assert offered(divide(FIRST), dynamic=dynamic, filter_devices=hidden) == ([], [])


def test_cards_are_divided_into_the_profiles_that_are_allowed_for_their_model() -> None:
    def lists(model: str) -> tuple[ProfileList, ...]:
        small = ProfileList(models=(model, "A30"), profiles=("1g.5gb", "9g.90gb"))
        return (small, ProfileList(models=("A100",), profiles=("7g.40gb",)))

    gpu = replace(FIRST, product_name="NVIDIA A100-SXM4-40GB")
    for model, count in (("SXM4", 8), ("H100", 1)):
        devices, counters = offered(divide(gpu), dynamic=("all",), mig_profiles=lists(model))
        assert len(devices) == count
        assert len(counters) == 1
    assert offered(divide(gpu), dynamic=("all",), mig_profiles=())[0] == []
    made = Instance(number=1, profile=9, start=0, size=4, slices=3, parts=(OTHERS_PART,))
    devices, _ = offered(divide(gpu, made), mig_profiles=())
    assert [device["attributes"]["profile"]["string"] for device in devices] == ["3g.20gb"]


def test_parts_carry_the_marks_of_their_card() -> None:
    published: list[list[dict[str, Any]]] = []
    offer = Offer(lambda devices, _: published.append(devices), rules=CardRules(), dynamic=("all",))
    offer.set_cards((divide(FIRST),), ())
    offer.set_cordoned({FIRST.uuid})
    assert len(published[-1]) == 25
    assert all(device["taints"][0]["key"] == ANNOTATION_DEVICE_CORDON for device in published[-1])
