"""The health stream, watched as the kubelet watches it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hami_dra.contract.healthconfig import HealthConfig
from hami_dra.kubeletplugin.socket import open_server
from hami_dra.node.healthstream import HealthStream
from hami_dra.policy.devices import name_device
from hami_dra.policy.health import find_lost
from hami_dra.policy.migdevices import list_mig_devices
from hami_dra.service.clock import ManualClock
from hami_dra.testing.fakegpus import make_gpu
from hami_dra.testing.fakekubelet import FakeKubelet
from hami_dra.testing.fakemig import divide

LOST = find_lost(HealthConfig())
CARDS = (make_gpu(0), make_gpu(1))
FIRST, SECOND = (name_device(gpu.uuid) for gpu in CARDS)


@asynccontextmanager
async def serving(base: Path) -> AsyncIterator[tuple[HealthStream, str]]:
    stream = HealthStream(pool="node", clock=ManualClock())
    socket = base / "dra.sock"
    server = await open_server(socket, stream.services())
    try:
        yield stream, str(socket)
    finally:
        stream.close()
        async with asyncio.timeout(5):
            await server.stop(60)


@pytest.mark.parametrize("version", ["v1", "v1alpha1"])
async def test_every_change_is_told_at_once(base: Path, version: str) -> None:
    async with serving(base) as (stream, socket), asyncio.timeout(5):
        stream.set_cards(CARDS)
        async with FakeKubelet(base).watch_health(socket, version=version) as reports:
            assert await anext(reports) == {FIRST: "HEALTHY", SECOND: "HEALTHY"}
            stream.set_faults({CARDS[1].uuid: (LOST,)})
            assert await anext(reports) == {FIRST: "HEALTHY", SECOND: "UNHEALTHY"}
            stream.set_faults({})
            assert await anext(reports) == {FIRST: "HEALTHY", SECOND: "HEALTHY"}


async def test_the_same_is_told_again_before_the_kubelet_forgets(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hami_dra.node.healthstream._RESEND_SECONDS", 0.01)
    async with serving(base) as (stream, socket), asyncio.timeout(5):
        stream.set_cards(CARDS[:1])
        async with FakeKubelet(base).watch_health(socket) as reports:
            for _ in range(3):
                assert await anext(reports) == {FIRST: "HEALTHY"}


async def test_closing_ends_the_streams_so_that_nobody_waits(base: Path) -> None:
    async with (
        asyncio.timeout(5),
        serving(base) as (stream, socket),
        FakeKubelet(base).watch_health(socket) as reports,
    ):
        assert await anext(reports) == {}
        stream.close()
        assert [report async for report in reports] == []


async def test_parts_are_as_well_as_their_card(base: Path) -> None:
    gpu = divide(CARDS[0])
    parts = list_mig_devices([gpu], {"all"}, lambda *_: False)[:1]
    async with serving(base) as (stream, socket), asyncio.timeout(5):
        stream.set_cards((gpu,), parts)
        async with FakeKubelet(base).watch_health(socket) as reports:
            assert await anext(reports) == {FIRST: "HEALTHY", parts[0].name: "HEALTHY"}
            stream.set_faults({gpu.uuid: (LOST,)})
            assert await anext(reports) == {FIRST: "UNHEALTHY", parts[0].name: "UNHEALTHY"}
