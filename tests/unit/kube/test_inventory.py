"""Cards in ResourceSlices."""

import asyncio
from typing import Any

from hami_dra.contract.names import DRIVER_NAME
from hami_dra.kube.inventory import Inventory
from hami_dra.kube.objects import SLICES
from hami_dra.policy.fit import Card
from hami_dra.testing.fakecluster import FakeCluster


def _slice(name: str, pool: str, *memory: str) -> dict[str, Any]:
    devices = [
        {"name": f"d{i}", "capacity": {"memory": {"value": m}}} for i, m in enumerate(memory)
    ]
    spec = {"driver": DRIVER_NAME, "pool": {"name": pool}, "devices": devices}
    return {"metadata": {"name": name}, "spec": spec}


def _card(mib: int) -> Card:
    return Card(mib, 0, 0)


async def test_equal_nodes_are_one_shape_and_changes_are_followed() -> None:
    async with FakeCluster() as cluster, asyncio.timeout(10):
        await cluster.put(SLICES, _slice("a-1", "a", "2Gi"))
        await cluster.put(SLICES, _slice("a-2", "a", "1Gi"))
        await cluster.put(SLICES, _slice("b-1", "b", "1Gi", "2Gi"))
        await cluster.put(
            SLICES, {"metadata": {"name": "x"}, "spec": {"driver": "other", "devices": [{}]}}
        )
        inventory = Inventory(cluster.api())
        assert inventory.nodes() is None
        task = asyncio.create_task(inventory.run())
        await inventory.wait_synced()
        assert inventory.nodes() == frozenset({(_card(1024), _card(2048))})
        inventory.changed.clear()
        await cluster.put(SLICES, _slice("b-1", "b", "4Gi"))
        await inventory.changed.wait()
        assert inventory.nodes() == frozenset({(_card(1024), _card(2048)), (_card(4096),)})
        inventory.changed.clear()
        await cluster.remove(SLICES, "b-1")
        await inventory.changed.wait()
        assert inventory.nodes() == frozenset({(_card(1024), _card(2048))})
        task.cancel()


async def test_a_slice_that_says_the_same_again_changes_nothing() -> None:
    async with FakeCluster() as cluster, asyncio.timeout(10):
        await cluster.put(SLICES, _slice("a-1", "a", "2Gi"))
        await cluster.put(SLICES, _slice("b-1", "b", "2Gi"))
        inventory = Inventory(cluster.api())
        task = asyncio.create_task(inventory.run())
        await inventory.wait_synced()
        nodes = inventory.nodes()
        for pool in ("b", "c"):  # as it was, and then moved to another pool
            inventory.changed.clear()
            body = _slice("b-1", pool, "2Gi")
            body["metadata"]["labels"] = {"new": pool}
            await cluster.put(SLICES, body)
            await inventory.changed.wait()
            assert inventory.nodes() is nodes
        for name in ("a-1", "b-1"):
            inventory.changed.clear()
            await cluster.remove(SLICES, name)
            await inventory.changed.wait()
        assert inventory.nodes() == frozenset()
        task.cancel()
