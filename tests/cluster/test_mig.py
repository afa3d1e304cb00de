"""Divided cards on a real node: what the scheduler gives out is what the driver makes."""

import json
import signal
import sys
from dataclasses import replace
from typing import Any

import pytest

from hami_dra.contract.names import DEVICE_CLASS_MIG, DRIVER_NAME
from hami_dra.kubeletplugin.slices import (
    Pool,
    normalize_devices,
    plan_slices,
    split_counters,
    split_pages,
)
from hami_dra.policy.migdevices import describe_counter_sets, describe_mig_device, list_mig_devices
from hami_dra.testing.fakegpus import make_gpu
from hami_dra.testing.fakemig import divide
from hami_dra.testing.simgpu import A100, T4
from tests.cluster.cluster import Cluster
from tests.cluster.manifests import HELD_MIB, pod, text
from tests.cluster.rolling import NEXT, OLD, instances_in_turn, prepare_failures
from tests.cluster.stack import Stack

STATIC = replace(
    A100,
    uuid="GPU-b2000000-5157-4a2b-9c3d-0123456789ab",
    pci_bus_id="0000:5e:00.0",
    minor=2,
    mig=True,
)
_SETTINGS = {"dialects": ["hami", "nvidia"]}
_PARTS = """
import ctypes, json, sys, pynvml as n
n.nvmlInit()
card = n.nvmlDeviceGetHandleByUUID(sys.argv[1])
"""
_MAKE = """
place = n.c_nvmlGpuInstancePlacement_t(int(sys.argv[3]), int(sys.argv[4]))
gi = n.nvmlDeviceCreateGpuInstanceWithPlacement(card, int(sys.argv[2]), ctypes.byref(place))
parts = [n.nvmlGpuInstanceGetComputeInstanceProfileInfo(gi, i, 0) for i in range(int(sys.argv[5]))]
n.nvmlGpuInstanceCreateComputeInstance(gi, parts[-1].id)
"""
_END = """
gi = n.nvmlDeviceGetGpuInstanceById(card, int(sys.argv[2]))
n.nvmlComputeInstanceDestroy(n.nvmlGpuInstanceGetComputeInstanceById(gi, 0))
n.nvmlGpuInstanceDestroy(gi)
"""
_LIST = """
found = []
for index in range(7):
    try:
        device = n.nvmlDeviceGetMigDeviceHandleByIndex(card, index)
    except n.NVMLError_NotFound:
        continue
    gi = n.nvmlDeviceGetGpuInstanceById(card, n.nvmlDeviceGetGpuInstanceId(device))
    place = n.nvmlGpuInstanceGetInfo(gi).placement
    found.append([place.start, place.size, n.nvmlDeviceGetUUID(device)])
print(json.dumps(sorted(found)))
"""


def _run(stack: Stack, program: str, *arguments: str) -> str:
    done = stack.cluster.run(
        [sys.executable, "-c", _PARTS + program, *arguments], stack.driver.environment()
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def instances(stack: Stack, uuid: str = A100.uuid) -> list[tuple[int, int]]:
    """Return first slice and size of every instance, as another program sees them."""
    return [(start, size) for start, size, _ in json.loads(_run(stack, _LIST, uuid))]


@pytest.fixture(scope="module")
def stack(cluster: Cluster) -> Stack:
    """Return an installation that may divide one card and finds another divided."""
    return Stack.install(
        cluster, [A100, T4, STATIC], _SETTINGS, node_options=("--mig-dynamic", A100.uuid)
    )


def mig_pod(name: str, profile: str, count: int = 1) -> dict[str, Any]:
    body = pod(name, {f"mig-{profile}": count})
    body["spec"]["terminationGracePeriodSeconds"] = 1
    return body


def mig_devices(stack: Stack, parent: str) -> list[dict[str, Any]]:
    return [
        device
        for device in stack.devices()
        if device["attributes"].get("parentUUID") == {"string": parent}
    ]


def wait_mig_devices(stack: Stack, parent: str, count: int) -> list[dict[str, Any]]:
    def settled(items: list[dict[str, Any]]) -> bool:
        ours = [item["spec"] for item in items if item["spec"]["driver"] == DRIVER_NAME]
        if not ours or any(
            spec["pool"]["resourceSliceCount"] != len(ours)
            or spec["pool"]["generation"] != ours[0]["pool"]["generation"]
            for spec in ours
        ):
            return False
        found = [
            device
            for spec in ours
            for device in spec.get("devices") or ()
            if device["attributes"].get("parentUUID") == {"string": parent}
        ]
        return len(found) == count

    stack.cluster.wait_for_all("resourceslices", settled, timeout_seconds=60)
    return mig_devices(stack, parent)


def wait_unschedulable(stack: Stack, name: str) -> None:
    stack.cluster.wait_for_all(
        "events",
        lambda items: any(
            item["reason"] == "FailedScheduling" and item["involvedObject"]["name"] == name
            for item in items
        ),
        namespace="default",
    )


def delete(stack: Stack, *names: str) -> None:
    stack.cluster.kubectl("delete", "pod", *names, "--wait")
    stack.cluster.wait_for_all("resourceclaims", lambda items: not items)


def test_a_card_that_we_may_divide_is_its_placements_and_no_card(stack: Stack) -> None:
    placements = wait_mig_devices(stack, A100.uuid, 25)
    counters = [
        group for item in stack.slices() for group in item["spec"].get("sharedCounters") or ()
    ]
    assert [len(group["counters"]) for group in counters] == [13]
    assert all(device["consumesCounters"] for device in placements)
    whole = [d for d in stack.devices() if "parentUUID" not in d["attributes"]]
    assert [d["attributes"]["productName"]["string"] for d in whole] == ["NVIDIA-Tesla T4"]


def test_a_pod_with_a_mig_key_has_an_instance_of_its_own_while_it_runs(stack: Stack) -> None:
    cluster = stack.cluster
    wait_mig_devices(stack, A100.uuid, 25)
    cluster.apply(text(mig_pod("one", "2g.10gb"), mig_pod("two", "1g.5gb")))
    for name in ("one", "two"):
        cluster.wait_pod_running(name)

    assert instances(stack) == [(4, 2), (6, 1)]
    assert stack.visible_mib("one") == 9984
    assert stack.visible_mib("two") == 4864
    over = cluster.exec("two", "cuprobe", "alloc", "--json", str(4864 - HELD_MIB + 1))
    assert json.loads(over.stdout)["allocations"][0]["result"] == "CUDA_ERROR_OUT_OF_MEMORY"
    nodes = cluster.exec("two", "ls", "/dev/nvidia-caps").stdout.split()
    assert len(nodes) == 2, "the rights to one GPU instance and one compute instance"
    assert "libvgpu" not in cluster.exec("two", "cat", "/proc/self/maps").stdout

    delete(stack, "one", "two")
    assert instances(stack) == []
    assert stack.leftovers().none


def test_overlapping_placements_are_never_given_out_together(stack: Stack) -> None:
    cluster = stack.cluster
    wait_mig_devices(stack, A100.uuid, 25)
    cluster.apply(text(mig_pod("half", "3g.20gb"), mig_pod("smalls", "1g.5gb", 3)))
    for name in ("half", "smalls"):
        cluster.wait_pod_running(name)
    taken = instances(stack)
    assert len(taken) == 4
    slices = [index for start, size in taken for index in range(start, start + size)]
    assert len(slices) == len(set(slices))

    cluster.apply(text(mig_pod("late", "7g.40gb")))
    wait_unschedulable(stack, "late")
    assert instances(stack) == taken
    delete(stack, "half", "smalls", "late")
    assert instances(stack) == []


def test_a_pod_whose_profile_does_not_fit_waits_until_it_does(stack: Stack) -> None:
    cluster = stack.cluster
    wait_mig_devices(stack, A100.uuid, 25)
    cluster.apply(text(mig_pod("all", "7g.40gb")))
    cluster.wait_pod_running("all")
    cluster.apply(text(mig_pod("next", "4g.20gb")))
    wait_unschedulable(stack, "next")
    assert instances(stack) == [(0, 8)]

    cluster.kubectl("delete", "pod", "all", "--wait")
    cluster.wait_pod_running("next")
    assert instances(stack) == [(0, 4)]
    delete(stack, "next")
    assert instances(stack) == []


def test_a_share_is_not_taken_from_a_divided_card(stack: Stack) -> None:
    """The other card has 16 GiB; this one would have the room, were it not divided."""
    cluster = stack.cluster
    wait_mig_devices(stack, A100.uuid, 25)
    cluster.apply(text(pod("share", gpu=1, gpumem=20000)))
    wait_unschedulable(stack, "share")
    assert instances(stack) == []
    delete(stack, "share")


def test_hamis_mode_mig_is_the_smallest_part_with_the_memory(stack: Stack) -> None:
    cluster = stack.cluster
    wait_mig_devices(stack, A100.uuid, 25)
    body = pod("hami", gpu=1, gpumem=9000)
    body["metadata"]["annotations"] = {"nvidia.com/vgpu-mode": "mig"}
    cluster.apply(text(body))
    cluster.wait_pod_running("hami")
    assert instances(stack) == [(6, 2)], "1g.10gb; 1g.5gb has too little"
    assert 9000 <= stack.visible_mib("hami") < 10000
    delete(stack, "hami")
    assert instances(stack) == []


def test_a_claim_says_which_instance_it_has(stack: Stack) -> None:
    cluster = stack.cluster
    wait_mig_devices(stack, A100.uuid, 25)
    cluster.apply(text(mig_pod("told", "1g.10gb")))
    cluster.wait_pod_running("told")
    ((_, _, uuid),) = json.loads(_run(stack, _LIST, A100.uuid))

    def is_told(items: list[dict[str, Any]]) -> bool:
        entries = [entry for item in items for entry in item["status"].get("devices") or ()]
        return [
            (entry["data"]["uuid"], entry["data"]["profile"], entry["data"]["backend"])
            for entry in entries
        ] == [(uuid, "1g.10gb", "mig")]

    cluster.wait_for_all("resourceclaims", is_told, timeout_seconds=60)
    delete(stack, "told")


def test_a_crash_between_instance_and_ready_leaves_one_owner(stack: Stack) -> None:
    cluster = stack.cluster
    wait_mig_devices(stack, A100.uuid, 25)
    for step in ("mig-instance", "ledger-instances"):
        name = f"crash-{step}"
        stack.stop_node()
        stack.start_node(crash_at=step)
        cluster.apply(text(mig_pod(name, "3g.20gb")))
        assert stack.wait_node_ended()["exit_status"] == -signal.SIGKILL
        stack.start_node()
    # kubelet asks again at a pod's next resync, 60 to 90 s after the failed call.
    for step in ("mig-instance", "ledger-instances"):
        cluster.wait_pod_running(f"crash-{step}", timeout_seconds=150)
    assert sorted(instances(stack)) == [(0, 4), (4, 4)]
    delete(stack, "crash-mig-instance", "crash-ledger-instances")
    assert instances(stack) == []
    assert stack.leftovers().none


def test_a_crash_before_the_pod_is_deleted_leaves_no_instance(stack: Stack) -> None:
    cluster = stack.cluster
    wait_mig_devices(stack, A100.uuid, 25)
    stack.stop_node()
    stack.start_node(crash_at="unprepare-mig")
    cluster.apply(text(mig_pod("going", "1g.10gb")))
    cluster.wait_pod_running("going")
    cluster.kubectl("delete", "pod", "going", "--wait=false")
    assert stack.wait_node_ended()["exit_status"] == -signal.SIGKILL
    stack.start_node()
    cluster.wait_for_all("resourceclaims", lambda items: not items, timeout_seconds=150)
    assert instances(stack) == []
    assert stack.leftovers().none


def test_instances_of_others_are_left_alone_and_their_places_not_offered(stack: Stack) -> None:
    cluster = stack.cluster
    wait_mig_devices(stack, A100.uuid, 25)
    _run(stack, _MAKE, A100.uuid, "9", "4", "4", "3")
    wait_mig_devices(stack, A100.uuid, 4 + 4 + 2 + 2 + 1 + 1)
    cluster.apply(text(mig_pod("beside", "1g.5gb")))
    cluster.wait_pod_running("beside")
    assert instances(stack) == [(3, 1), (4, 4)]
    stack.stop_node(signal.SIGKILL)
    stack.start_node()
    delete(stack, "beside")
    assert instances(stack) == [(4, 4)]
    _run(stack, _END, A100.uuid, "2")
    wait_mig_devices(stack, A100.uuid, 25)


def test_instances_that_exist_are_devices_of_a_card_that_we_do_not_divide(stack: Stack) -> None:
    cluster = stack.cluster
    _run(stack, _MAKE, STATIC.uuid, "14", "0", "2", "2")
    (device,) = wait_mig_devices(stack, STATIC.uuid, 1)
    ((_, _, uuid),) = json.loads(_run(stack, _LIST, STATIC.uuid))
    assert device["attributes"]["uuid"] == {"string": uuid}
    assert device["attributes"]["profile"] == {"string": "2g.10gb"}
    selector = {
        "cel": {"expression": f'device.attributes["{DRIVER_NAME}"].uuid == "{uuid}"'},
    }
    request = {"deviceClassName": DEVICE_CLASS_MIG, "selectors": [selector]}
    body = pod("static")
    body["spec"]["terminationGracePeriodSeconds"] = 1
    body["spec"]["resourceClaims"] = [{"name": "gpu", "resourceClaimName": "static"}]
    body["spec"]["containers"][0]["resources"] = {"claims": [{"name": "gpu"}]}
    claim = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": "static"},
        "spec": {"devices": {"requests": [{"name": "gpu", "exactly": request}]}},
    }
    cluster.apply(text(claim, body))
    cluster.wait_pod_running("static")
    assert stack.visible_mib("static") == 9984
    cluster.kubectl("delete", "pod", "static", "--wait")
    assert instances(stack, STATIC.uuid) == [(0, 2)]


def test_the_api_server_takes_the_slices_of_sixteen_divided_cards(stack: Stack) -> None:
    gpus = [divide(make_gpu(number)) for number in range(16)]
    devices = [describe_mig_device(d) for d in list_mig_devices(gpus, {"all"}, lambda *_: True)]
    counters = describe_counter_sets(gpus, {"all"}, lambda *_: True)
    (node,) = stack.cluster.api.items("nodes")
    pool = Pool(
        driver=DRIVER_NAME,
        name="many",
        node_name=node["metadata"]["name"],
        node_uid=node["metadata"]["uid"],
    )
    plan = plan_slices(
        [], split_pages(devices), pool, generation=0, counters=split_counters(counters)
    )
    assert len(devices) == 400
    assert len(plan.creates) == 9
    for item in plan.creates:
        answer = stack.cluster.api.request(
            "POST", "/apis/resource.k8s.io/v1/resourceslices?dryRun=All", item
        )
        stored = json.loads(answer)
        for field in ("devices", "sharedCounters"):
            assert normalize_devices(stored["spec"].get(field)) == normalize_devices(
                item["spec"].get(field)
            )


def test_an_update_takes_over_the_instances_that_the_old_version_made(stack: Stack) -> None:
    cluster = stack.cluster
    wait_mig_devices(stack, A100.uuid, 25)

    def listed() -> list[list[Any]]:
        found: list[list[Any]] = json.loads(_run(stack, _LIST, A100.uuid))
        return found

    def counted(what: str) -> dict[str, int]:
        counts = {name: cluster.logs(name).count(what) for name in update.names}
        return {name: count for name, count in counts.items() if count}

    failures = prepare_failures(stack)
    with instances_in_turn(stack) as update:
        update.start("mig-old", OLD)
        update.wait_published(by_next=False)
        cluster.apply(text(mig_pod("before", "2g.10gb"), mig_pod("stays", "1g.5gb")))
        for name in ("before", "stays"):
            cluster.wait_pod_running(name)
        made = listed()
        assert [place[:2] for place in made] == [[4, 2], [6, 1]]

        update.start("mig-next", NEXT)
        update.wait_published(by_next=True)
        cluster.apply(text(mig_pod("during", "3g.20gb")))
        cluster.wait_pod_running("during")
        update.stop("mig-old")
        assert [place for place in listed() if place in made] == made

        # What the old version made, the new one ends, and nothing else.
        cluster.kubectl("delete", "pod", "before", "--wait")
        cluster.wait_for_all("resourceclaims", lambda items: len(items) == 2)
        left = listed()
        assert [place for place in left if place in made] == made[1:]
        assert len(left) == 2

        # And back, without a good-bye.
        update.start("mig-undone", OLD)
        update.wait_published(by_next=False)
        update.stop("mig-next", signal.SIGKILL)
        cluster.apply(text(mig_pod("after", "2g.10gb")))
        cluster.wait_pod_running("after")
        assert [place for place in listed() if place in left] == left
        delete(stack, "stays", "during", "after")
        assert listed() == []
        assert stack.leftovers().none
        # Each was made once, and ended once, by whoever was asked.
        assert counted("mig.made") == {"mig-old": 2, "mig-next": 1, "mig-undone": 1}
        assert counted("mig.ended") == {"mig-next": 1, "mig-undone": 3}
    assert prepare_failures(stack) == failures
