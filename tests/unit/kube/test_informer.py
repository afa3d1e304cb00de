"""The informer's store follows the collection through everything a watch can do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from hami_dra.kube.informer import Informer
from hami_dra.kube.objects import PODS, SLICES
from hami_dra.testing.fakecluster import FakeCluster


def slice_named(name: str, node: str = "node-a") -> dict[str, Any]:
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceSlice",
        "metadata": {"name": name},
        "spec": {"driver": "d", "nodeName": node},
    }


@asynccontextmanager
async def running(informer: Informer) -> AsyncIterator[Informer]:
    task = asyncio.create_task(informer.run())
    try:
        async with asyncio.timeout(5):
            await informer.synced.wait()
        yield informer
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(informer: Informer, names: set[str]) -> None:
    async with asyncio.timeout(5):
        while {name for _, name in informer.store} != names:
            informer.changed.clear()
            await informer.changed.wait()


async def test_lists_what_exists_and_follows_changes() -> None:
    async with FakeCluster() as cluster:
        await cluster.put(SLICES, slice_named("a"))

        async with running(Informer(cluster.api(), SLICES)) as informer:
            await until(informer, {"a"})
            await cluster.put(SLICES, slice_named("b"))
            await until(informer, {"a", "b"})
            await cluster.remove(SLICES, "a")
            await until(informer, {"b"})


async def test_field_selector_keeps_other_nodes_out() -> None:
    async with FakeCluster() as cluster:
        await cluster.put(SLICES, slice_named("mine"))
        await cluster.put(SLICES, slice_named("theirs", node="node-b"))
        informer = Informer(cluster.api(), SLICES, field_selector="spec.nodeName=node-a")

        async with running(informer):
            await until(informer, {"mine"})


async def test_label_selector_keeps_other_objects_out() -> None:
    async with FakeCluster() as cluster:
        mine = slice_named("mine")
        mine["metadata"]["labels"] = {"owner": "me"}
        await cluster.put(SLICES, mine)
        await cluster.put(SLICES, slice_named("theirs"))

        async with running(Informer(cluster.api(), SLICES, label_selector="owner=me")) as informer:
            await until(informer, {"mine"})
            await cluster.put(SLICES, slice_named("theirs-too"))
            await cluster.put(SLICES, {**mine, "metadata": {**mine["metadata"], "name": "other"}})
            await until(informer, {"mine", "other"})


def _keep_mine(item: dict[str, Any]) -> dict[str, Any] | None:
    return {"metadata": item["metadata"]} if item["spec"]["nodeName"] == "mine" else None


async def test_only_what_is_kept_is_stored_and_told() -> None:
    async with FakeCluster() as cluster:
        await cluster.put(SLICES, slice_named("a", "mine"))
        await cluster.put(SLICES, slice_named("b", "theirs"))
        told: list[tuple[str, dict[str, Any]]] = []
        informer = Informer(
            cluster.api(),
            SLICES,
            keep=_keep_mine,
            handler=lambda kind, item: told.append((kind, item)),
        )

        async with running(informer):
            await until(informer, {"a"})
            assert set(informer.store["", "a"]) == {"metadata"}
            await cluster.put(SLICES, slice_named("c", "theirs"))
            await cluster.put(SLICES, slice_named("b", "mine"))
            await until(informer, {"a", "b"})
            # Given away, which is as good as deleted; then really deleted, which is no news.
            await cluster.put(SLICES, slice_named("a", "theirs"))
            await until(informer, {"b"})
            await cluster.remove(SLICES, "a")
            await cluster.remove(SLICES, "b")
            await until(informer, set())

        assert [(kind, item["metadata"]["name"]) for kind, item in told] == [
            ("ADDED", "a"),
            ("MODIFIED", "b"),
            ("DELETED", "a"),
            ("DELETED", "b"),
        ]
        assert all(set(item) == {"metadata"} for _, item in told)


async def test_compacted_history_is_listed_again_and_deletions_are_noticed() -> None:
    async with FakeCluster() as cluster:
        await cluster.put(SLICES, slice_named("a"))
        seen: list[tuple[str, str]] = []
        informer = Informer(
            cluster.api(),
            SLICES,
            handler=lambda kind, item: seen.append((kind, item["metadata"]["name"])),
        )

        async with running(informer):
            await until(informer, {"a"})
            # Both happen while the history is lost, so only a fresh list can show them.
            cluster.fault = lambda method, _path: 500 if method == "GET" else None
            await cluster.compact()
            await cluster.remove(SLICES, "a")
            await cluster.put(SLICES, slice_named("b"))
            cluster.fault = None
            await until(informer, {"b"})

        assert ("DELETED", "a") in seen
        assert informer.statistics().lists >= 2


async def test_a_list_of_many_pages_is_whole_however_it_is_interrupted() -> None:
    names = {f"s-{number:03}" for number in range(250)}
    async with FakeCluster() as cluster:
        for name in names:
            await cluster.put(SLICES, slice_named(name))
        turns = iter([None, 410, None, None, 500])
        cluster.fault = lambda _method, _path: next(turns, None)

        async with running(Informer(cluster.api(), SLICES)) as informer:
            assert {name for _, name in informer.store} == names
            assert informer.statistics().errors == 2
            assert informer.statistics().events == 250
            assert informer.statistics().lists == 1


async def test_server_errors_are_outlived() -> None:
    async with FakeCluster() as cluster:
        failures = iter([500, 503, 429])
        cluster.fault = lambda _method, _path: next(failures, None)
        await cluster.put(PODS, {"metadata": {"name": "p", "namespace": "n"}})

        async with running(Informer(cluster.api(), PODS)) as informer:
            await until(informer, {"p"})

            assert informer.statistics().errors == 3
