"""The count follows what exists."""

import asyncio
import copy
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import msgspec

from hami_dra.contract.names import (
    ANNOTATION_POD_CLAIM,
    ANNOTATION_RESERVATIONS,
    DEVICE_CLASS,
    DRIVER_NAME,
)
from hami_dra.contract.settings import DEFAULT_SETTINGS
from hami_dra.controller.metrics import ControllerMetrics
from hami_dra.controller.quota import QuotaCounter
from hami_dra.kube.inventory import Inventory
from hami_dra.kube.objects import CLAIMS, QUOTAS, SLICES
from hami_dra.policy.charge import Take, Takes
from hami_dra.policy.collection import PodUse
from hami_dra.policy.quota import RESERVED_SECONDS
from hami_dra.service.clock import ManualClock
from hami_dra.testing.fakecluster import FakeCluster

_KEYS = {"gpu": 10, "gpumem": 50_000}


def _quota(
    used: dict[str, int] | None = None, noted: dict[str, Any] | None = None, **spec: Any
) -> dict[str, Any]:
    annotations = {ANNOTATION_RESERVATIONS: msgspec.json.encode(noted).decode()} if noted else {}
    return {
        "metadata": {"namespace": "team", "name": "gpus", "annotations": annotations},
        "spec": {"hard": {f"limits.nvidia.com/{k}": str(v) for k, v in _KEYS.items()}, **spec},
        "status": {"used": {f"limits.nvidia.com/{k}": str(v) for k, v in (used or {}).items()}},
    }


def _claim(name: str, memory: str | None, *, pod: str = "", consumed: str = "") -> dict[str, Any]:
    capacity = {"cores": "0", "slots": "1"} | ({"memory": memory} if memory else {})
    ask = {"deviceClassName": DEVICE_CLASS, "capacity": {"requests": capacity}}
    metadata: dict[str, Any] = {"namespace": "team", "name": name, "uid": f"uid-{name}"}
    if pod:
        metadata["annotations"] = {ANNOTATION_POD_CLAIM: "hami-gpu"}
        metadata["ownerReferences"] = [{"kind": "Pod", "name": "p", "uid": pod, "controller": True}]
    claim = {
        "metadata": metadata,
        "spec": {"devices": {"requests": [{"name": "r", "exactly": ask}]}},
    }
    if consumed:
        result = {"driver": DRIVER_NAME, "consumedCapacity": {"memory": consumed, "cores": "0"}}
        claim["status"] = {"allocation": {"devices": {"results": [result]}}}
    return claim


def _slice(memory: str) -> dict[str, Any]:
    capacity = {"memory": {"value": memory}, "cores": {"value": "100"}, "slots": {"value": "10"}}
    devices = [{"name": "gpu-0", "capacity": capacity}]
    spec = {"driver": DRIVER_NAME, "pool": {"name": "n"}, "devices": devices}
    return {"metadata": {"name": "s"}, "spec": spec}


class _Rig:
    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.clock = ManualClock()
        self.metrics = ControllerMetrics()
        self.inventory = Inventory(cluster.api())
        self.counter = QuotaCounter(
            cluster.api(),
            self.clock,
            self.metrics,
            settings=DEFAULT_SETTINGS.nvidia,
            inventory=self.inventory,
            templates=lambda key: self.templates.get(key[1]),
        )
        self.templates: dict[str, Takes] = {}

    def used(self) -> dict[str, int]:
        (quota,) = self.cluster.objects(QUOTAS)
        used = (quota.get("status") or {}).get("used") or {}
        return {key.rpartition("/")[2]: int(value) for key, value in used.items()}

    def noted(self) -> dict[str, Any]:
        (quota,) = self.cluster.objects(QUOTAS)
        text = quota["metadata"].get("annotations", {}).get(ANNOTATION_RESERVATIONS) or "{}"
        notes: dict[str, Any] = msgspec.json.decode(text)
        return notes

    async def counts(self, cards: int, mib: int) -> None:
        """Return once the quota counts this."""
        wanted = {"gpu": cards, "gpumem": mib}
        await self.cluster.wait_for(lambda: self.used() == wanted)

    async def wait(self, condition: Callable[[], bool]) -> None:
        await self.cluster.wait_for(condition)

    async def wait_request(self, method: str, part: str, status: int | None = None) -> None:
        """Return once the next such request has come; answer it with a status, if there is one."""
        seen = asyncio.Event()

        def fault(by: str, path: str) -> int | None:
            if seen.is_set() or by != method or part not in path:
                return None
            seen.set()
            return status

        self.cluster.fault = fault
        async with asyncio.timeout(5):
            await seen.wait()

    def later(self, seconds: float) -> None:
        """Let time pass, and the counter notice."""
        self.clock.advance(seconds)
        self.counter._moved.set()

    def count(self, result: str) -> float:
        name = "hami_dra_controller_quota_recounts_total"
        return self.metrics.registry.get_sample_value(name, {"result": result}) or 0.0


@asynccontextmanager
async def _running(*quotas: dict[str, Any]) -> AsyncIterator[_Rig]:
    async with FakeCluster() as cluster:
        rig = _Rig(cluster)
        for quota in quotas:
            await cluster.put(QUOTAS, quota)
        tasks = [
            asyncio.create_task(rig.inventory.run()),
            asyncio.create_task(rig.counter.run()),
        ]
        try:
            yield rig
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


async def test_claims_count_as_long_as_they_exist() -> None:
    async with _running(_quota()) as rig:
        await rig.counts(0, 0)
        await rig.cluster.put(CLAIMS, _claim("a", "1Gi"))
        await rig.cluster.put(CLAIMS, _claim("b", "2Gi"))
        await rig.counts(2, 3072)
        await rig.cluster.put(CLAIMS, _claim("b", "2Gi", consumed="1Gi"))
        await rig.counts(2, 2048)
        other = _claim("c", "1Gi")
        other["spec"]["devices"]["requests"][0]["exactly"]["deviceClassName"] = "other"
        await rig.cluster.put(CLAIMS, other)
        await rig.cluster.remove(CLAIMS, "a", namespace="team")
        await rig.counts(1, 1024)
        await rig.cluster.remove(CLAIMS, "b", namespace="team")
        await rig.counts(0, 0)


async def test_the_note_of_a_claim_that_came_and_went_between_two_counts_goes_with_it() -> None:
    until = int(ManualClock().wall()) + RESERVED_SECONDS
    noted = {"uid-a": [until, [1, 1024, 0]]}
    async with _running(_quota({"gpu": 1, "gpumem": 1024}, noted)) as rig:
        await rig.wait_request("GET", CLAIMS.path())
        await rig.cluster.put(CLAIMS, _claim("a", "1Gi"))
        await rig.cluster.remove(CLAIMS, "a", namespace="team")
        await rig.counts(0, 0)
        assert rig.noted() == {}


async def test_without_quotas_claims_are_not_even_watched() -> None:
    scoped = _quota(scopes=["Terminating"])
    async with _running(scoped) as rig:
        await rig.wait_request("GET", QUOTAS.path())
        await rig.cluster.put(CLAIMS, _claim("a", "1Gi"))
        assert ("GET", CLAIMS.path()) not in rig.cluster.requests
        await rig.cluster.put(QUOTAS, _quota())
        await rig.counts(1, 1024)


async def test_a_whole_card_counts_as_the_largest_and_goes_on_when_none_is_left() -> None:
    async with _running(_quota()) as rig:
        await rig.cluster.put(SLICES, _slice("16Gi"))
        await rig.cluster.put(CLAIMS, _claim("a", None))
        await rig.counts(1, 16_384)
        rig.inventory.changed.clear()
        await rig.cluster.put(SLICES, _slice("40Gi"))
        await rig.inventory.changed.wait()
        rig.counter.note_cards()
        await rig.counts(1, 40_960)
        rig.inventory.changed.clear()
        await rig.cluster.remove(SLICES, "s")
        await rig.inventory.changed.wait()
        rig.counter.note_cards()
        await rig.cluster.put(CLAIMS, _claim("b", "1Gi"))
        await rig.counts(2, 41_984)


async def test_what_is_under_way_counts_until_its_claim_is_there() -> None:
    until = int(ManualClock().wall()) + RESERVED_SECONDS
    noted = {"pod-1/hami-gpu": [until, [1, 3000, 0]], "uid-c": [until, [1, 1000, 0]]}
    async with _running(_quota({"gpu": 2, "gpumem": 4000}, noted)) as rig:
        await rig.cluster.put(CLAIMS, _claim("other", "1Gi"))
        await rig.counts(3, 5024)
        await rig.cluster.put(CLAIMS, _claim("c", "1000Mi"))
        await rig.wait(lambda: list(rig.noted()) == ["pod-1/hami-gpu"])
        assert rig.used() == {"gpu": 3, "gpumem": 5024}
        await rig.cluster.put(CLAIMS, _claim("made", "2000Mi", pod="pod-1"))
        await rig.counts(3, 4024)
        assert rig.noted() == {}


async def test_a_reservation_is_kept_for_a_waiting_pod_and_goes_with_it() -> None:
    until = int(ManualClock().wall()) + RESERVED_SECONDS
    noted = {"pod-1/hami-gpu": [until, [1, 3000, 0]]}
    async with _running(_quota({"gpu": 1, "gpumem": 3000}, noted)) as rig:
        use = PodUse("team", "p", "pod-1", (("team", "t"),), awaits="t")
        rig.counter.note_pod(use)
        await rig.wait_request("GET", CLAIMS.path())
        rig.later(RESERVED_SECONDS - 5)
        await rig.wait(lambda: rig.noted()["pod-1/hami-gpu"][0] > until)
        rig.later(RESERVED_SECONDS - 5)
        await rig.wait(lambda: rig.noted()["pod-1/hami-gpu"][0] > until + RESERVED_SECONDS)
        assert rig.used() == {"gpu": 1, "gpumem": 3000}
        rig.counter.note_pod(use, gone=True)
        # Its claim may still be on its way.
        await rig.cluster.put(CLAIMS, _claim("other", "1Gi"))
        await rig.counts(2, 4024)
        rig.later(1)
        await rig.counts(1, 1024)


async def test_a_pod_that_waits_counts_by_its_template_until_its_claim_is_seen() -> None:
    until = int(ManualClock().wall()) + RESERVED_SECONDS
    noted = {"pod-1/hami-gpu": [until, [1, 3000, 0]]}
    async with _running(_quota({"gpu": 1, "gpumem": 3000}, noted)) as rig:
        rig.templates["t"] = ((Take(1, 3000, 0),),)
        use = PodUse("team", "p", "pod-1", (("team", "t"),), awaits="t")
        rig.counter.note_pod(use)
        # Nothing has to be noted for it any more.
        await rig.wait(lambda: rig.noted() == {})
        assert rig.used() == {"gpu": 1, "gpumem": 3000}
        # It is said to have its claim, which is watched apart and seen later.
        rig.counter.note_pod(replace(use, awaits=""))
        await rig.cluster.put(CLAIMS, _claim("other", "1Gi"))
        await rig.counts(2, 4024)
        await rig.cluster.put(CLAIMS, _claim("made", "2000Mi", pod="pod-1"))
        await rig.counts(2, 3024)
        rig.counter.note_pod(use)  # old news
        await rig.cluster.remove(CLAIMS, "other", namespace="team")
        await rig.counts(1, 2000)
        # The pod has ended, and kube-controller-manager deletes its claim.
        rig.counter.note_pod(replace(use, awaits="", ended=True))
        await rig.cluster.remove(CLAIMS, "made", namespace="team")
        await rig.counts(0, 0)


async def test_a_pod_that_ends_without_a_claim_counts_a_moment_longer() -> None:
    async with _running(_quota()) as rig:
        rig.templates["t"] = ((Take(1, 3000, 0),),)
        for uid in ("pod-1", "pod-2"):
            rig.counter.note_pod(PodUse("team", uid, uid, (("team", "t"),), awaits="t"))
        await rig.counts(2, 6000)
        rig.counter.note_pod(PodUse("team", "pod-1", "pod-1", (("team", "t"),), ended=True))
        rig.counter.note_pod(PodUse("team", "pod-2", "pod-2", (("team", "t"),)), gone=True)
        await rig.cluster.put(CLAIMS, _claim("other", "1Gi"))
        await rig.counts(3, 7024)
        rig.later(1)
        await rig.counts(1, 1024)


async def test_without_quotas_pods_with_claims_are_forgotten() -> None:
    async with _running() as rig:
        use = PodUse("team", "p", "pod-1", (("team", "t"),), awaits="t")
        rig.counter.note_pod(use)
        rig.counter.note_pod(replace(use, awaits=""))
        assert rig.counter._waiting == {}


async def test_what_never_comes_is_forgotten_after_a_look_at_the_server() -> None:
    until = int(ManualClock().wall()) + RESERVED_SECONDS
    noted = {"pod-1/hami-gpu": [until, [1, 3000, 0]]}
    async with _running(_quota({"gpu": 1, "gpumem": 3000}, noted)) as rig:
        await rig.wait_request("GET", CLAIMS.path())
        rig.later(RESERVED_SECONDS)
        await rig.counts(0, 0)
        assert ("GET", CLAIMS.path(namespace="team")) in rig.cluster.requests


async def test_what_the_webhook_writes_at_the_same_time_is_not_lost() -> None:
    async with _running(_quota({"gpu": 5, "gpumem": 5})) as rig:
        until = int(rig.clock.wall()) + RESERVED_SECONDS
        await rig.wait_request("PATCH", "/status", 409)
        noted = {"uid-x": [until, [2, 700, 0]]}
        await rig.cluster.put(QUOTAS, _quota({"gpu": 7, "gpumem": 705}, noted))
        await rig.counts(2, 700)
        assert list(rig.noted()) == ["uid-x"]
        assert rig.count("conflict") == 1


async def test_an_api_server_that_refuses_is_asked_again(monkeypatch: Any) -> None:
    monkeypatch.setattr("hami_dra.controller.quota._BACKOFF_SECONDS", 0.01)
    async with _running(_quota()) as rig:
        await rig.cluster.put(CLAIMS, _claim("a", "1Gi"))
        await rig.wait_request("PATCH", "/status", 403)
        await rig.counts(1, 1024)
        assert rig.count("failed") == 1


async def test_other_fields_of_the_quota_stay() -> None:
    quota = _quota()
    quota["metadata"]["annotations"] = {"mine": "kept"}
    quota["spec"]["hard"]["pods"] = "5"
    quota["status"]["used"]["pods"] = "3"
    async with _running(copy.deepcopy(quota)) as rig:
        await rig.wait(lambda: "gpu" in rig.used())
        (stored,) = rig.cluster.objects(QUOTAS)
        assert stored["metadata"]["annotations"] == {"mine": "kept"}
        assert stored["spec"] == quota["spec"]
        assert stored["status"]["used"]["pods"] == "3"
