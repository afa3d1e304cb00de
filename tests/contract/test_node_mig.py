"""The real process divides a card by NVML: killed meanwhile, and with another one beside it."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Final

import grpc
import pytest

from hami_dra.contract.names import DRIVER_NAME
from hami_dra.kube.objects import CLAIMS, SLICES
from hami_dra.policy.migdevices import name_placement
from hami_dra.testing.fakecluster import FakeCluster
from hami_dra.testing.fakekubelet import FakeClaim, FakeKubelet
from tests.contract.nodeprocess import CARD, NODE, Place

CLAIM: Final = FakeClaim("uid-job", "job", "team")
POINTS: Final = (
    (0, "again"),
    (1, "again"),
    (1, "never"),
    (2, "again"),
    (3, "never"),
)
"""What NVML is about to do (make a GPU instance, make a compute instance, end that, end the other:
tests/unit/node/test_crash_points.py), and whether the kubelet asks for the devices again."""
DIVIDE: Final = ("--mig-dynamic", CARD.uuid)
_PROGRAM: Final = """
import ctypes, json, sys, pynvml as n
n.nvmlInit()
card = n.nvmlDeviceGetHandleByIndex(0)
if sys.argv[1:]:
    place = n.c_nvmlGpuInstancePlacement_t(0, 4)
    gi = n.nvmlDeviceCreateGpuInstanceWithPlacement(card, 9, ctypes.byref(place))
    for number in (0, 1, 2):
        part = n.nvmlGpuInstanceGetComputeInstanceProfileInfo(gi, number, 0)
    n.nvmlGpuInstanceCreateComputeInstance(gi, part.id)
found = []
for profile in (9, 14, 19):
    count = ctypes.c_uint()
    listed = (n.c_nvmlGpuInstance_t * 7)()
    n.nvmlDeviceGetGpuInstances(card, profile, listed, ctypes.byref(count))
    found += [n.nvmlGpuInstanceGetInfo(gi).placement for gi in listed[: count.value]]
print(json.dumps(sorted((place.start, place.size) for place in found)))
"""


async def ask_driver(place: Place, *arguments: str) -> list[tuple[int, int]]:
    """Return first slice and size of every instance, as another program sees them."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PROGRAM, *arguments,
        env=os.environ | place.driver.environment(), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    text, _ = await process.communicate()
    return [(start, size) for start, size in json.loads(text)]


def make_claim(profile: str, start: int, name: str = "job") -> dict[str, Any]:
    result = {
        "request": "gpu",
        "driver": DRIVER_NAME,
        "pool": NODE,
        "device": name_placement(CARD.uuid, profile, start),
    }
    return {
        "metadata": {"namespace": "team", "name": name, "uid": f"uid-{name}"},
        "status": {"allocation": {"devices": {"results": [result]}}},
    }


def is_divided(cluster: FakeCluster) -> bool:
    return any(item["spec"].get("sharedCounters") for item in cluster.objects(SLICES))


async def prepare_and_unprepare(kubelet: FakeKubelet, endpoint: str) -> None:
    assert (await kubelet.prepare(endpoint, CLAIM))[CLAIM.uid].error == ""
    await kubelet.unprepare(endpoint, CLAIM)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("before", "asked"), POINTS)
async def test_a_process_killed_between_two_changes_of_a_card_leaves_one_owner(
    base: Path, cluster: FakeCluster, before: int, asked: str
) -> None:
    await cluster.put(CLAIMS, make_claim("2g.10gb", 4))
    async with Place.make(base, cluster) as place:
        kubelet = FakeKubelet(place.kubelet_dir)
        crash = ("hami_dra.testing.crash", "--before", str(before), "--only", "nvml", "--")
        killed = await place.start(program=crash, options=DIVIDE)
        info = await kubelet.register(DRIVER_NAME, timeout_seconds=120)
        await cluster.wait_for(lambda: is_divided(cluster))
        assert await ask_driver(place, "others") == [(0, 4)]
        with pytest.raises(grpc.aio.AioRpcError):
            await prepare_and_unprepare(kubelet, info.endpoint)
        assert await killed.wait() == -signal.SIGKILL
        # Before the first there is none yet; the others are made or ended one by one.
        assert await ask_driver(place) == [(0, 4), *([(4, 2)] if before else [])]

        prepared = before >= 2
        again = await place.start(options=DIVIDE)
        info = await kubelet.register(DRIVER_NAME, timeout_seconds=120)
        assert await ask_driver(place) == [(0, 4), *([(4, 2)] if prepared else [])]
        if asked == "again":
            await cluster.wait_for(lambda: is_divided(cluster))
            assert (await kubelet.prepare(info.endpoint, CLAIM))[CLAIM.uid].error == ""
            assert await ask_driver(place) == [(0, 4), (4, 2)]
        if prepared or asked == "again":
            assert await kubelet.unprepare(info.endpoint, CLAIM) == {CLAIM.uid: ""}
        assert await ask_driver(place) == [(0, 4)]
        await place.stop(again)
        assert await place.leftovers() == []


def count_placements(cluster: FakeCluster) -> int:
    devices = [d for item in cluster.objects(SLICES) for d in item["spec"].get("devices") or ()]
    return sum(bool(device.get("consumesCounters")) for device in devices)


@pytest.mark.timeout(400)
async def test_two_processes_divide_one_card_and_neither_takes_the_others_parts_for_foreign(
    base: Path, cluster: FakeCluster
) -> None:
    old_uid, new_uid = (f"{number:08x}-0000-4000-8000-000000000000" for number in (1, 2))
    look_often = (*DIVIDE, "--rediscover-seconds", "1")
    by_old, by_new = FakeClaim("uid-a", "a", "team"), FakeClaim("uid-b", "b", "team")
    await cluster.put(CLAIMS, make_claim("2g.10gb", 4, "a"))
    await cluster.put(CLAIMS, make_claim("1g.5gb", 6, "b"))
    async with Place.make(base, cluster) as place:
        kubelet = FakeKubelet(place.kubelet_dir)
        old = await place.start(pod_uid=old_uid, options=look_often)
        first = await kubelet.register(DRIVER_NAME, timeout_seconds=120)
        await cluster.wait_for(lambda: is_divided(cluster))
        every = count_placements(cluster)
        assert (await kubelet.prepare(first.endpoint, by_old))[by_old.uid].error == ""

        new = await place.start(pod_uid=new_uid, options=look_often)
        second = await kubelet.register(DRIVER_NAME, beside={first.endpoint}, timeout_seconds=120)
        for info in (first, second, first):
            answers = await kubelet.prepare(info.endpoint, by_old, by_new)
            assert [answer.error for answer in answers.values()] == ["", ""]
        assert await ask_driver(place) == [(4, 2), (6, 1)]
        assert await kubelet.unprepare(second.endpoint, by_old) == {by_old.uid: ""}
        assert await ask_driver(place) == [(6, 1)]
        await place.stop(old)
        await cluster.wait_for(lambda: count_placements(cluster) == every)

        assert await ask_driver(place, "others") == [(0, 4), (6, 1)]
        # What exists there was made by nobody of ours: its places are withdrawn, ours stay.
        await cluster.wait_for(lambda: count_placements(cluster) < every)
        assert name_placement(CARD.uuid, "1g.5gb", 6) in {
            device["name"]
            for item in cluster.objects(SLICES)
            for device in item["spec"].get("devices") or ()
        }
        assert await kubelet.unprepare(second.endpoint, by_new) == {by_new.uid: ""}
        assert await ask_driver(place) == [(0, 4)]
        await place.stop(new)
        assert await place.leftovers() == []
