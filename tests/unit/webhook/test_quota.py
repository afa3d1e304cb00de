"""Counting at admission, against a fake API server that refuses writes to outdated versions."""

import asyncio
import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from hami_dra.contract.errors import RetryError, UserError
from hami_dra.contract.names import ANNOTATION_RESERVATIONS
from hami_dra.contract.settings import DEFAULT_SETTINGS
from hami_dra.kube.objects import QUOTAS
from hami_dra.policy.charge import Charge
from hami_dra.service.clock import ManualClock
from hami_dra.testing.fakecluster import FakeCluster
from hami_dra.webhook.metrics import WebhookMetrics
from hami_dra.webhook.quota import QuotaLedger


def _quota(name: str = "gpus", *, counted: bool = True, **hard: int) -> dict[str, Any]:
    keys = {f"limits.nvidia.com/{key}": str(value) for key, value in hard.items()}
    return {
        "metadata": {"namespace": "team", "name": name},
        "spec": {"hard": keys},
        "status": {"used": dict.fromkeys(keys, "0") if counted else {}},
    }


def _used(cluster: FakeCluster, name: str = "gpus") -> dict[str, int]:
    (item,) = (item for item in cluster.objects(QUOTAS) if item["metadata"]["name"] == name)
    used = item["status"].get("used") or {}
    return {key.rpartition("/")[2]: int(value) for key, value in used.items()}


def _noted(cluster: FakeCluster) -> dict[str, Any]:
    (item,) = cluster.objects(QUOTAS)
    text = (item["metadata"].get("annotations") or {}).get(ANNOTATION_RESERVATIONS) or "{}"
    notes: dict[str, Any] = msgspec.json.decode(text)
    return notes


class _Rig:
    def __init__(self, cluster: FakeCluster, replicas: int) -> None:
        self.cluster = cluster
        self.metrics = WebhookMetrics()
        self.watching: list[asyncio.Task[None]] = []
        self.ledgers = [
            QuotaLedger(cluster.api(), ManualClock(), self.metrics, DEFAULT_SETTINGS.nvidia)
            for _ in range(replicas)
        ]

    async def charge(self, key: str, mib: int = 1000, *, replica: int = 0, **options: bool) -> None:
        await self.ledgers[replica].charge("team", {key: Charge(1, mib, 0)}, **options)

    def count(self, counter: str, result: str) -> float:
        name = f"hami_dra_webhook_quota_{counter}_total"
        return self.metrics.registry.get_sample_value(name, {"result": result}) or 0.0


@asynccontextmanager
async def _running(
    cluster: FakeCluster, *quotas: dict[str, Any], replicas: int = 1
) -> AsyncIterator[_Rig]:
    for quota in quotas:
        await cluster.put(QUOTAS, quota)
    rig = _Rig(cluster, replicas)
    tasks = rig.watching = [asyncio.create_task(ledger.run()) for ledger in rig.ledgers]
    try:
        for ledger in rig.ledgers:
            async with asyncio.timeout(5):
                await ledger._informer.synced.wait()
        yield rig
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _knows(ledger: QuotaLedger, *, limits: bool) -> None:
    async with asyncio.timeout(5):
        while ledger.limits("team") != limits:
            await ledger._moved.wait()


async def test_what_fits_is_counted_and_the_rest_refused() -> None:
    async with FakeCluster() as cluster, _running(cluster, _quota(gpumem=2500)) as rig:
        await rig.charge("a")
        await rig.charge("b")
        with pytest.raises(UserError, match=r"gpumem=1000, used: .*=2000, limited: .*=2500"):
            await rig.charge("c")
        await rig.charge("b")  # asked again, counted once
        assert _used(cluster) == {"gpumem": 2000}
        assert sorted(_noted(cluster)) == ["a", "b"]
        assert rig.count("charges", "counted") == 3
        assert rig.count("charges", "exceeded") == 1


@pytest.mark.parametrize("replicas", [1, 2, 4])
async def test_of_many_at_once_exactly_as_many_as_fit_pass(replicas: int) -> None:
    quota = _quota(gpumem=50_000, gpu=1000)
    async with FakeCluster() as cluster, _running(cluster, quota, replicas=replicas) as rig:
        results = await asyncio.gather(
            *(rig.charge(f"p-{i}", replica=i % replicas) for i in range(200)),
            return_exceptions=True,
        )
        assert sum(result is None for result in results) == 50
        assert sum(isinstance(result, UserError) for result in results) == 150
        assert _used(cluster) == {"gpumem": 50_000, "gpu": 50}
        assert len(_noted(cluster)) == 50
        # Together, not one by one.
        assert 0 < rig.count("writes", "written") <= replicas * 10


async def test_namespaces_without_such_quotas_cost_nothing() -> None:
    other = _quota()
    other["spec"]["hard"] = {"pods": "1"}
    async with FakeCluster() as cluster, _running(cluster, other) as rig:
        before = len(cluster.requests)
        await rig.charge("a")
        assert not rig.ledgers[0].limits("team")
        assert len(cluster.requests) == before


async def test_while_quotas_are_not_known_every_namespace_may_have_one() -> None:
    async with FakeCluster() as cluster:
        rig = _Rig(cluster, 1)
        assert rig.ledgers[0].limits("team")


async def test_a_dry_run_looks_and_writes_nothing() -> None:
    async with FakeCluster() as cluster, _running(cluster, _quota(gpumem=1000)) as rig:
        await rig.charge("a", dry_run=True)
        with pytest.raises(UserError, match="exceeded quota"):
            await rig.charge("b", 1001, dry_run=True)
        assert _used(cluster) == {"gpumem": 0}


async def test_one_that_any_quota_refuses_is_counted_in_none() -> None:
    async with (
        FakeCluster() as cluster,
        _running(cluster, _quota("a-wide", gpumem=9000), _quota("b-narrow", gpu=1)) as rig,
    ):
        results = await asyncio.gather(*(rig.charge(key) for key in "xyz"), return_exceptions=True)
        assert sum(result is None for result in results) == 1
        with pytest.raises(UserError, match="exceeded quota: b-narrow"):
            await rig.charge("w")
        assert _used(cluster, "a-wide")["gpumem"] in {1000, 3000}
        assert _used(cluster, "b-narrow") == {"gpu": 1}


async def test_somebody_elses_write_is_looked_at_before_the_next_try() -> None:
    async with FakeCluster() as cluster, _running(cluster, _quota(gpumem=1500)) as rig:
        rig.watching[0].cancel()
        await asyncio.wait(rig.watching)
        fuller = _quota(gpumem=1500)
        fuller["status"]["used"]["limits.nvidia.com/gpumem"] = "1000"
        stored = await cluster.put(QUOTAS, fuller)
        with pytest.raises(UserError, match=r"gpumem=1000, used: .*gpumem=1000"):
            await rig.charge("a")
        assert rig.count("writes", "conflict") == 1
        (now,) = cluster.objects(QUOTAS)
        assert now == stored


async def test_a_new_quota_is_waited_for_until_it_is_counted() -> None:
    quota = _quota(counted=False, gpumem=1000)
    async with FakeCluster() as cluster, _running(cluster, quota) as rig:
        charging = asyncio.create_task(rig.charge("a"))
        await asyncio.sleep(0)
        counted = copy.deepcopy(quota)
        counted["status"]["used"] = {"limits.nvidia.com/gpumem": "1"}
        await cluster.put(QUOTAS, counted)
        with pytest.raises(UserError, match=r"used: .*gpumem=1,"):
            await charging


async def test_a_quota_that_nobody_counts_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hami_dra.webhook.quota._COUNTED_SECONDS", 0.01)
    quota = _quota(counted=False, gpumem=1000)
    async with FakeCluster() as cluster, _running(cluster, quota) as rig:
        with pytest.raises(RetryError, match="gpus has not been counted yet"):
            await rig.charge("a")
        assert rig.count("charges", "postponed") == 1


@pytest.mark.parametrize("status", [403, 500])
async def test_a_write_that_fails_postpones_all_that_wait(status: int) -> None:
    async with FakeCluster() as cluster, _running(cluster, _quota(gpumem=9000)) as rig:
        cluster.fault = lambda method, _: status if method == "PATCH" else None
        results = await asyncio.gather(*(rig.charge(key) for key in "abc"), return_exceptions=True)
        assert all(isinstance(result, RetryError) for result in results)
        cluster.fault = None
        await rig.charge("a")
        assert _used(cluster) == {"gpumem": 1000}


async def test_a_quota_that_is_deleted_limits_nobody() -> None:
    async with FakeCluster() as cluster, _running(cluster, _quota(gpumem=0)) as rig:
        with pytest.raises(UserError):
            await rig.charge("a")
        await cluster.remove(QUOTAS, "gpus", namespace="team")
        await _knows(rig.ledgers[0], limits=False)
        await rig.charge("a")
        await cluster.put(QUOTAS, _quota(gpumem=5000))
        await _knows(rig.ledgers[0], limits=True)
        await rig.charge("a")
        await cluster.remove(QUOTAS, "gpus", namespace="team")
        await rig.charge("b")  # the watch has not shown it yet
        await _knows(rig.ledgers[0], limits=False)


async def test_if_the_one_that_writes_is_cancelled_the_next_goes_on() -> None:
    async with FakeCluster() as cluster, _running(cluster, _quota(gpumem=9000)) as rig:
        charges = [asyncio.create_task(rig.charge(key)) for key in "abc"]
        seen = asyncio.Event()

        def fault(method: str, _: str) -> None:
            if method == "PATCH":
                seen.set()

        cluster.fault = fault
        await seen.wait()  # the write of all three is under way
        charges[0].cancel()
        results = await asyncio.gather(*charges, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert results[1:] == [None, None]
        # Whether the write of the cancelled one went through or not, each counts once.
        assert _used(cluster)["gpumem"] == 1000 * len(_noted(cluster))
        assert {"b", "c"} <= set(_noted(cluster))
