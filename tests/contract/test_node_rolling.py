"""Two versions of the node plugin on one data directory, as an update with maxSurge has them."""

import asyncio
import signal
from pathlib import Path
from typing import Any, Final

import pytest

from hami_dra.contract.names import DRIVER_NAME
from hami_dra.kube.objects import CLAIMS, SLICES
from hami_dra.kubeletplugin.places import name_sockets
from hami_dra.testing.fakecluster import FakeCluster
from hami_dra.testing.fakekubelet import FakeClaim, FakeKubelet
from hami_dra.testing.nextversion import ATTRIBUTE
from tests.contract.nodeprocess import CARD, Place, make_claim

OLD, NEW, LAST = (f"{number:08x}-0000-4000-8000-000000000000" for number in range(1, 4))
NEXT: Final = ("hami_dra.testing.nextversion", "--")
BROKEN: Final = ("hami_dra.testing.nextversion", "--broken", "--")
START_SECONDS: Final = 120.0


def slice_writes(cluster: FakeCluster) -> list[str]:
    return [verb for verb, path in cluster.requests if "slices" in path and verb != "GET"]


def published_by_next(cluster: FakeCluster) -> bool:
    (item,) = cluster.objects(SLICES)
    return ATTRIBUTE in item["spec"]["devices"][0]["attributes"]


async def put(cluster: FakeCluster, name: str, memory_mib: int = 100) -> FakeClaim:
    await cluster.put(CLAIMS, make_claim(name, memory_mib))
    return FakeClaim(f"uid-{name}", name, "team")


async def prepare(kubelet: FakeKubelet, info: Any, *claims: FakeClaim) -> list[str]:
    answers = await kubelet.prepare(info.endpoint, *claims)
    return [answers[claim.uid].error for claim in claims]


@pytest.mark.timeout(400)
async def test_an_update_and_its_undoing_are_not_noticed(base: Path, cluster: FakeCluster) -> None:
    async with Place.make(base, cluster) as place:
        kubelet = FakeKubelet(place.kubelet_dir)
        old = await place.start(pod_uid=OLD)
        first = await kubelet.register(DRIVER_NAME, timeout_seconds=START_SECONDS)
        await cluster.wait_for(lambda: bool(cluster.objects(SLICES)))
        before = await put(cluster, "before")
        assert await prepare(kubelet, first, before) == [""]
        assert slice_writes(cluster) == ["POST"]

        new = await place.start(program=NEXT, pod_uid=NEW)
        while len(kubelet.sockets()) < 2:  # noqa: ASYNC110 - a socket sets no event
            await asyncio.sleep(0.01)
        assert not published_by_next(cluster)
        beside = {first.endpoint}
        second = await kubelet.register(DRIVER_NAME, beside=beside, timeout_seconds=START_SECONDS)
        await cluster.wait_for(lambda: published_by_next(cluster))

        # Both are at work: each claim through both at a time, and one that the other prepared.
        claims = [await put(cluster, f"c{number}") for number in range(8)]
        errors = await asyncio.gather(
            *(prepare(kubelet, info, claim) for claim in claims for info in (first, second))
        )
        assert {error for answer in errors for error in answer} == {""}
        assert await kubelet.unprepare(second.endpoint, before) == {before.uid: ""}
        too_much = await put(cluster, "too-much", CARD.memory_mib - 500)
        for info in (first, second):
            (refusal,) = await prepare(kubelet, info, too_much)
            assert "has no room" in refusal
        await kubelet.unprepare(first.endpoint, too_much)

        await place.stop(old)
        assert kubelet.sockets() == [registration_of(place, NEW)]
        assert set((await kubelet.unprepare(second.endpoint, *claims)).values()) == {""}
        assert slice_writes(cluster) == ["POST", "PUT"], "one writer at a time"

        # Back to the old version, the new one killed.
        last = await place.start(pod_uid=LAST)
        third = await kubelet.register(
            DRIVER_NAME, beside={second.endpoint}, timeout_seconds=START_SECONDS
        )
        await cluster.wait_for(lambda: not published_by_next(cluster))
        during = await put(cluster, "during")
        assert await prepare(kubelet, second, during) == [""]
        new.send_signal(signal.SIGKILL)
        await new.wait()
        assert await prepare(kubelet, third, during) == [""]
        assert await kubelet.unprepare(third.endpoint, during) == {during.uid: ""}
        await place.stop(last)

        assert slice_writes(cluster) == ["POST", "PUT", "PUT"]
        assert await place.leftovers() == []


def registration_of(place: Place, pod_uid: str) -> Path:
    return name_sockets(place.kubelet_dir, DRIVER_NAME, pod_uid=pod_uid).registration


@pytest.mark.timeout(400)
async def test_an_update_that_fails_leaves_the_old_version_alone(
    base: Path, cluster: FakeCluster
) -> None:
    async with Place.make(base, cluster) as place:
        kubelet = FakeKubelet(place.kubelet_dir)
        old = await place.start(pod_uid=OLD)
        info = await kubelet.register(DRIVER_NAME, timeout_seconds=START_SECONDS)
        await cluster.wait_for(lambda: bool(cluster.objects(SLICES)))
        before = await put(cluster, "before")
        assert await prepare(kubelet, info, before) == [""]

        broken = await place.start(program=BROKEN, pod_uid=NEW)
        assert await broken.wait() != 0

        after = await put(cluster, "after")
        assert await prepare(kubelet, info, before, after) == ["", ""]
        assert slice_writes(cluster) == ["POST"]
        assert len(kubelet.sockets()) == 1
        await kubelet.unprepare(info.endpoint, before, after)
        await place.stop(old)
        assert await place.leftovers() == []
