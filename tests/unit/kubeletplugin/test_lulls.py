"""Something is done when kubelet's calls have paused, once, and not between them."""

import asyncio
from collections.abc import Sequence

import pytest

from hami_dra.contract.errors import RetryError
from hami_dra.kubeletplugin.lulls import Lulls
from hami_dra.kubeletplugin.service import ClaimRef, PreparedDevice

pytestmark = pytest.mark.looptime

CLAIM = ClaimRef("team", "job", "uid")


class Handler:
    """Takes its time, and fails when told to."""

    def __init__(self) -> None:
        self.seconds = 1.0
        self.fault = False

    async def prepare(self, claim: ClaimRef) -> Sequence[PreparedDevice]:
        """See `ClaimHandler`."""
        await asyncio.sleep(self.seconds)
        return [PreparedDevice("gpu", "node", claim.name, (), None)]

    async def unprepare(self, _: ClaimRef) -> None:
        """See `ClaimHandler`."""
        await asyncio.sleep(self.seconds)
        if self.fault:
            raise RetryError("not now")


class Rests:
    """When it was rested, by the loop's clock."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self) -> None:
        """Note the time."""
        self.times.append(asyncio.get_running_loop().time())


async def test_each_burst_is_followed_by_one_rest() -> None:
    rests, handler = Rests(), Handler()
    lulls = Lulls(handler, rests, pause_seconds=5)

    assert (await lulls.prepare(CLAIM))[0].device == "job"  # ends at 1
    await asyncio.sleep(3)
    await asyncio.gather(lulls.unprepare(CLAIM), lulls.prepare(CLAIM))  # end at 5
    await asyncio.sleep(4.5)
    assert rests.times == []
    await asyncio.sleep(20)  # until 29.5
    assert rests.times == [10]
    await lulls.prepare(CLAIM)
    await asyncio.sleep(20)
    assert rests.times == [10, 35.5]


async def test_a_call_that_fails_has_ended_too() -> None:
    rests, handler = Rests(), Handler()
    handler.fault = True
    lulls = Lulls(handler, rests, pause_seconds=5)

    with pytest.raises(RetryError):
        await lulls.unprepare(CLAIM)
    cancelled = asyncio.ensure_future(lulls.prepare(CLAIM))
    await asyncio.sleep(0.5)
    cancelled.cancel()
    await asyncio.sleep(10)

    assert rests.times == [6.5]
