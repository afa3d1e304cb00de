"""Errors of cards as NVML reports them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hami_dra.contract.errors import FatalError
from hami_dra.gpu.events import NvmlEvents
from hami_dra.gpu.library import NvmlLibrary
from hami_dra.gpu.source import Watch
from hami_dra.policy.health import CardEvent
from tests.unit.gpu.fakenvml import GPU_IS_LOST, FakeCard, FakeNvml, NvmlError, report

XID, DOUBLE_BIT = 0x8, 0x2


class Listener:
    """What was told, to be waited for."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[CardEvent] = asyncio.Queue()
        self.watches: asyncio.Queue[Watch] = asyncio.Queue()


@asynccontextmanager
async def listening(nvml: FakeNvml) -> AsyncIterator[tuple[NvmlEvents, Listener]]:
    """Listen for the length of the block; afterwards NVML is let go."""
    heard = Listener()
    events = NvmlEvents(NvmlLibrary(Path("/"), nvml=nvml), again_seconds=0.01)
    task = asyncio.create_task(events.run(heard.events.put_nowait, heard.watches.put_nowait))
    async with asyncio.timeout(10):
        yield events, heard
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while nvml.sessions:  # noqa: ASYNC110 - a thread sets no event of this loop
            await asyncio.sleep(0.005)


async def test_events_are_told_with_their_card() -> None:
    nvml = FakeNvml(2)
    nvml.events = [report(1, XID, 79), report(0, DOUBLE_BIT), report(7, XID, 13)]
    async with listening(nvml) as (_, heard):
        assert await heard.watches.get() == Watch(frozenset({"GPU-0", "GPU-1"}))
        told = [await heard.events.get() for _ in range(3)]
    assert told == [
        CardEvent("GPU-1", "xid", 79),
        CardEvent("GPU-0", "ecc"),
        CardEvent("", "xid", 13),
    ]
    assert nvml.registered == [XID | DOUBLE_BIT] * 2


async def test_a_card_that_cannot_be_watched_costs_the_others_nothing() -> None:
    nvml = FakeNvml(3)
    nvml.cards[0].answers["GetSupportedEventTypes"] = 0
    nvml.cards[1].answers["GetHandleByIndex"] = NvmlError(GPU_IS_LOST, "GPU is lost")
    nvml.events = [report(2, XID, 48)]
    async with listening(nvml) as (_, heard):
        assert await heard.watches.get() == Watch(
            frozenset({"GPU-2"}), {"GPU-0": "it does not report XIDs", "card 1": "GPU is lost"}
        )
        assert await heard.events.get() == CardEvent("GPU-2", "xid", 48)


async def test_after_a_failure_it_listens_again() -> None:
    nvml = FakeNvml(1)
    nvml.events = [NvmlError(GPU_IS_LOST, "GPU is lost"), report(0, XID, 31)]
    async with listening(nvml) as (_, heard):
        watches = [await heard.watches.get() for _ in range(3)]
        assert watches == [
            Watch(frozenset({"GPU-0"})),
            Watch(reason="GPU is lost"),
            Watch(frozenset({"GPU-0"})),
        ]
        assert await heard.events.get() == CardEvent("GPU-0", "xid", 31)
    assert nvml.inits == 2


async def test_a_driver_that_comes_later_is_listened_to() -> None:
    nvml = FakeNvml(1)

    def fail() -> None:
        raise NvmlError(9, "Driver Not Loaded")

    nvml.init = fail
    async with listening(nvml) as (_, heard):
        assert "Driver Not Loaded" in (await heard.watches.get()).reason
        nvml.init = lambda: None
        while (await heard.watches.get()).reason:
            pass


async def test_cards_that_came_are_watched_after_a_reopening() -> None:
    nvml = FakeNvml(1)
    async with listening(nvml) as (events, heard):
        assert await heard.watches.get() == Watch(frozenset({"GPU-0"}))
        nvml.cards.append(FakeCard(1))
        events.reopen()
        assert await heard.watches.get() == Watch(frozenset({"GPU-0", "GPU-1"}))


async def test_without_cards_it_waits_for_some() -> None:
    nvml = FakeNvml(0)
    async with listening(nvml) as (_, heard):
        assert await heard.watches.get() == Watch()
        nvml.cards.append(FakeCard(0))
        while not (await heard.watches.get()).cards:
            pass


async def test_what_only_a_new_process_can_do_ends_this_one() -> None:
    nvml = FakeNvml(1)

    def fail() -> None:
        raise FatalError("the driver was replaced")

    nvml.init = fail
    events = NvmlEvents(NvmlLibrary(Path("/"), nvml=nvml))
    with pytest.raises(FatalError, match="was replaced"):
        await events.run(print, print)
