"""The real process is killed at points of its work, and the next one goes on."""

import random
import signal
from pathlib import Path
from typing import Final

import grpc
import pytest

from hami_dra.contract.names import DRIVER_NAME
from hami_dra.kube.objects import CLAIMS
from hami_dra.testing.fakecluster import FakeCluster
from hami_dra.testing.fakekubelet import FakeClaim, FakeKubelet
from tests.contract.nodeprocess import Place, make_claim

CLAIM: Final = FakeClaim("uid-job", "job", "team")
POINTS: Final = 48
"""Of Prepare and Unprepare; tests/unit/node/test_crash_points.py says what they are."""
_CHANCE: Final = random.Random(20)  # noqa: S311 - to be repeated
KILLS: Final = sorted({*_CHANCE.sample(range(POINTS), 6), POINTS - 1})


async def prepare_and_unprepare(kubelet: FakeKubelet, endpoint: str) -> None:
    assert (await kubelet.prepare(endpoint, CLAIM))[CLAIM.uid].error == ""
    await kubelet.unprepare(endpoint, CLAIM)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("before", KILLS)
async def test_a_killed_process_is_followed_by_one_that_goes_on(
    base: Path, cluster: FakeCluster, before: int
) -> None:
    await cluster.put(CLAIMS, make_claim("job", 3000))
    async with Place.make(base, cluster) as place:
        kubelet = FakeKubelet(place.kubelet_dir)
        below = ("--below", str(base / "state"), "--below", str(base / "cdi"))
        crash = ("hami_dra.testing.crash", "--before", str(before), *below, "--")
        killed = await place.start(program=crash)
        info = await kubelet.register(DRIVER_NAME, timeout_seconds=120)
        with pytest.raises(grpc.aio.AioRpcError):
            await prepare_and_unprepare(kubelet, info.endpoint)
        assert await killed.wait() == -signal.SIGKILL

        again = await place.start()
        info = await kubelet.register(DRIVER_NAME, timeout_seconds=120)
        answer = (await kubelet.prepare(info.endpoint, CLAIM))[CLAIM.uid]
        assert answer.error == ""
        assert len(answer.devices[0].cdi_device_ids) == 3  # limits, card, metadata
        assert await kubelet.unprepare(info.endpoint, CLAIM) == {CLAIM.uid: ""}
        await place.stop(again)

        assert await place.leftovers() == []
        assert kubelet.sockets() == []
