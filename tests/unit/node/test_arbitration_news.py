"""What wakes an arbitration that has nobody to be told: the kernel, and whoever has news."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hami_dra.node.arbitration import Arbitration
from hami_dra.service.directorywatch import DirectoryWatch
from tests.unit.node.arbitrating import Node, making_node
from tests.unit.node.test_regionfile import encode_region
from tests.unit.policy.test_audit import CARD


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with making_node(tmp_path) as made:
        yield made


@asynccontextmanager
async def running(node: Node) -> AsyncIterator[None]:
    """Let it look by itself; the clock stands still, so nothing is due for its age."""
    task = asyncio.create_task(node.arbitration.run())
    try:
        async with asyncio.timeout(9):  # a second less than until it looks anyway
            yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_first_program_is_seen_when_its_region_comes(node: Node) -> None:
    node.add("a")
    (node.directory("a") / "region").unlink()
    async with running(node):
        await node.driver.wait_for(1)
        await wait_until(lambda: node.alone("a") == [True])
        hidden = node.directory("a") / "region.0123.new"
        hidden.write_bytes(encode_region(CARD))
        (node.directory("a") / "region").hardlink_to(hidden)
        hidden.unlink()
        await node.driver.wait_for(3)  # each second from here on


async def test_claims_that_come_and_a_lead_that_is_won_are_news(node: Node) -> None:
    node.leads = False
    async with running(node):
        node.add("a")
        (node.directory("a") / "region").unlink()
        node.arbitration.refresh()
        await asyncio.sleep(0)
        assert node.driver.asked == 0
        node.leads = True
        node.arbitration.refresh()
        await node.driver.wait_for(1)
        node.add("b")
        (node.directory("b") / "region").unlink()
        node.arbitration.refresh()
        await node.driver.wait_for(2)
        await wait_until(lambda: node.alone("a", "b") == [True, True])


async def test_a_directory_that_was_made_anew_is_listened_at(node: Node) -> None:
    node.add("a")
    (node.directory("a") / "region").unlink()
    async with running(node):
        await node.driver.wait_for(1)
        await wait_until(lambda: node.alone("a") == [True])
        held = node.directory("a").rename(node.directory("a").with_name("elsewhere"))
        node.directories.ensure(node.held[0].binding)
        node.arbitration.refresh()  # as the repair does
        (node.directory("a") / "region").write_bytes(encode_region(CARD))
        await node.driver.wait_for(2)
        held.rmdir()


async def test_where_the_kernel_tells_nothing_regions_are_looked_for(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DirectoryWatch, "arm", lambda *_: False)
    node.add("a")
    (node.directory("a") / "region").unlink()
    async with running(node):
        await node.driver.wait_for(1)
        (node.directory("a") / "region").write_bytes(encode_region(CARD))
        await node.driver.wait_for(2)


async def test_a_tenant_that_makes_files_without_end_costs_a_look_a_second(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    look = Arbitration.look

    async def count(arbitration: Arbitration) -> None:
        nonlocal looks
        looks += 1
        await look(arbitration)

    monkeypatch.setattr(Arbitration, "look", count)
    node.add("a")
    (node.directory("a") / "region").unlink()
    async with running(node):
        loop = asyncio.get_running_loop()
        begin = loop.time()
        number = 0
        while looks < 3:
            (node.directory("a") / f"{number}").touch()
            number += 1
            await asyncio.sleep(0.005)
        assert loop.time() - begin >= 2
        assert node.driver.asked == 1


async def wait_until(reached: Callable[[], bool]) -> None:
    """Wait for what another thread does; whoever calls sets the limit."""
    while not reached():  # noqa: ASYNC110 - another thread's doing
        await asyncio.sleep(0.005)
