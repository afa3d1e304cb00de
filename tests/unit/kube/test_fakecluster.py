"""The fake API server does what the real one does, as far as it says it does."""

import pytest

from hami_dra.kube.errors import ApiError
from hami_dra.kube.objects import CLAIMS, SLICES
from hami_dra.testing.fakecluster import FakeCluster


async def test_generate_name_makes_distinct_names_of_legal_length() -> None:
    async with FakeCluster() as cluster:
        body = {"metadata": {"generateName": "x" * 80}}

        first = await cluster.api().create(SLICES, body)
        second = await cluster.api().create(SLICES, body)

        assert first["metadata"]["name"] != second["metadata"]["name"]
        assert len(first["metadata"]["name"]) == 63


async def test_dry_run_stores_nothing() -> None:
    async with FakeCluster() as cluster:
        await cluster.api().session.request(
            "POST",
            CLAIMS.path(namespace="n"),
            params={"dryRun": "All"},
            body={"metadata": {"name": "c"}},
        )

        assert cluster.objects(CLAIMS) == []


async def test_a_list_over_all_namespaces_and_one() -> None:
    async with FakeCluster() as cluster:
        for namespace in ("a", "b"):
            await cluster.put(CLAIMS, {"metadata": {"name": "c", "namespace": namespace}})

        everywhere, _ = await cluster.api().list(CLAIMS)
        only_a, _ = await cluster.api().list(CLAIMS, namespace="a")

        assert len(everywhere) == 2
        assert [item["metadata"]["namespace"] for item in only_a] == ["a"]


async def test_merge_patch_removes_nulls() -> None:
    async with FakeCluster() as cluster:
        await cluster.put(SLICES, {"metadata": {"name": "s"}, "spec": {"a": 1, "b": {"c": 2}}})

        changed = await cluster.api().patch(SLICES, "s", {"spec": {"a": None, "b": {"d": 3}}})

        assert changed["spec"] == {"b": {"c": 2, "d": 3}}


async def test_an_injected_fault_is_answered() -> None:
    async with FakeCluster() as cluster:
        cluster.fault = lambda method, _path: 503 if method == "POST" else None

        with pytest.raises(ApiError, match="injected fault") as caught:
            await cluster.api().create(SLICES, {"metadata": {"name": "s"}})

        assert caught.value.status == 503
