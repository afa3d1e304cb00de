"""The audit between a driver that lists processes and an API server that takes Events."""

from typing import TYPE_CHECKING, Any

import pytest

from hami_dra.contract.errors import RetryError
from hami_dra.gpu.processes import CardProcess
from hami_dra.kube.objects import EVENTS
from hami_dra.kube.podevents import PodEvents
from hami_dra.node.audit import EnforcementAudit
from hami_dra.node.claimmetrics import ClaimMetrics
from hami_dra.node.claimwatch import WatchStatistics
from hami_dra.policy.cgroups import ContainerPlace
from hami_dra.service.clock import ManualClock
from hami_dra.service.exposition import Exposition
from hami_dra.testing.fakecluster import FakeCluster
from tests.unit.policy.test_audit import CARD, A, B, hold

if TYPE_CHECKING:
    from hami_dra.policy.audit import HeldClaim

EVICTION = "/api/v1/namespaces/team/pods/a/eviction"


class Driver:
    """Says what it is told to."""

    def __init__(self) -> None:
        self.used: dict[int, tuple[int, str | None]] = {}
        self.fault = False
        self.asked = 0

    async def list_processes(self, *, busy: bool = False) -> tuple[CardProcess, ...]:
        """See `ProcessSource`."""
        assert not busy
        self.asked += 1
        if self.fault:
            raise RetryError("NVML does not initialise")
        return tuple(
            CardProcess(CARD, pid, used << 20, ContainerPlace(pod, "c" * 64) if pod else None)
            for pid, (used, pod) in self.used.items()
        )


class Audited:
    """An audit, its driver and the claims that are held."""

    def __init__(self, cluster: FakeCluster, *, evict: bool = False) -> None:
        self.driver = Driver()
        self.held: list[HeldClaim] = [hold("job", A)]
        self.leads = True
        self.audit = EnforcementAudit(
            self.driver,
            lambda: self.held,
            events=PodEvents(cluster.api(), ManualClock(), reporter="hami-dra-node"),
            api=cluster.api(),
            interval_seconds=10,
            context_mib=100,
            evict=evict,
            leads=self._check_lead,
        )

    async def _check_lead(self) -> bool:
        return self.leads

    async def look(self, times: int = 1) -> None:
        """Read so many times."""
        for _ in range(times):
            await self.audit.look()

    def metrics(self) -> str:
        """Return what Prometheus reads."""
        exposition = Exposition()
        exposition.register(
            ClaimMetrics(lambda: WatchStatistics(1, 2, 3, 4), self.audit.statistics)
        )
        return exposition.render().decode()


async def test_a_violation_is_an_event_and_a_metric_once(cluster: FakeCluster) -> None:
    node = Audited(cluster)
    node.driver.used = {7: (3200, A.uid), 8: (50, B.uid), 9: (99, None)}
    await node.look()
    assert cluster.objects(EVENTS) == []
    await node.look(3)

    (event,) = cluster.objects(EVENTS)
    assert event["regarding"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": "team",
        "name": "a",
        "uid": "uid-a",
    }
    assert (event["reason"], event["type"]) == ("GpuMemoryExceeded", "Warning")
    assert event["reportingController"] == "gpu.project-hami.io/hami-dra-node"
    assert "uses 3200 MiB of card GPU-0" in event["note"]
    assert "team/job grants 3000 MiB" in event["note"]
    told = node.metrics()
    labels = '{namespace="team",pod="a",uuid="GPU-0"}'
    assert f"hami_dra_enforcement_violations_total{labels} 1.0" in told
    assert f"hami_dra_enforcement_excess_mib{labels} 100.0" in told
    assert 'hami_dra_enforcement_unclaimed_mib{uuid="GPU-0"} 50.0' in told
    assert "hami_dra_node_limit_changes_total 3.0" in told

    node.driver.used = {7: (3000, A.uid)}
    await node.look()
    told = node.metrics()
    assert f"hami_dra_enforcement_violations_total{labels} 1.0" in told
    assert "excess_mib{" not in told
    node.held = [hold("other", B)]
    await node.look()
    assert "violations_total{" not in node.metrics()


async def test_an_instance_that_does_not_lead_reads_nothing_and_takes_over(
    cluster: FakeCluster,
) -> None:
    node = Audited(cluster)
    node.driver.used = {7: (3200, A.uid)}
    node.leads = False
    await node.look(3)
    assert (node.driver.asked, cluster.objects(EVENTS)) == (0, [])

    node.leads = True
    await node.look(2)
    assert len(cluster.objects(EVENTS)) == 1
    assert "excess_mib{" in node.metrics()

    node.leads = False
    await node.look()
    assert "excess_mib{" not in node.metrics(), "the other one tells of it"
    node.leads = True
    await node.look()
    assert "excess_mib{" not in node.metrics(), "one reading is not enough, as at the beginning"


async def test_pods_are_ended_only_where_that_was_asked_for(cluster: FakeCluster) -> None:
    node = Audited(cluster)
    node.driver.used = {7: (9000, A.uid)}
    await node.look(3)
    assert ("POST", EVICTION) not in cluster.requests

    node = Audited(cluster, evict=True)
    node.driver.used = {7: (9000, A.uid)}
    await node.look()
    assert ("POST", EVICTION) not in cluster.requests
    # A budget forbids it at first: asked again for as long as it goes on.
    cluster.fault = lambda _, path: 429 if path == EVICTION else None
    await node.look()
    cluster.fault = lambda _, path: 201 if path == EVICTION else None
    await node.look()

    assert cluster.requests.count(("POST", EVICTION)) == 2
    assert node.audit.statistics().evictions == 1


@pytest.mark.parametrize("status", [404, 409])
async def test_a_pod_that_left_is_no_error(cluster: FakeCluster, status: int) -> None:
    node = Audited(cluster, evict=True)
    node.driver.used = {7: (9000, A.uid)}
    cluster.fault = lambda _, path: status if path == EVICTION else None
    await node.look(2)

    assert node.audit.statistics().evictions == 0


async def test_a_driver_that_does_not_answer_accuses_nobody(cluster: FakeCluster) -> None:
    node = Audited(cluster)
    node.driver.used = {7: (9000, A.uid)}
    await node.look()
    node.driver.fault = True
    await node.look(5)
    assert cluster.objects(EVENTS) == []
    node.driver.fault = False
    await node.look()

    assert len(cluster.objects(EVENTS)) == 1
    statistics = node.audit.statistics()
    assert (statistics.readings, statistics.failures) == (2, 5)


async def test_without_claims_the_driver_is_left_asleep(cluster: FakeCluster) -> None:
    node = Audited(cluster)
    node.held = []
    await node.look(3)

    assert node.driver.asked == 0


async def test_an_event_that_cannot_be_written_stops_nothing(cluster: FakeCluster) -> None:
    node = Audited(cluster)
    node.driver.used = {7: (9000, A.uid)}
    cluster.fault = _forbid
    await node.look(3)

    assert len(node.audit.statistics().excesses) == 1


def _forbid(*_: Any) -> int:
    return 403
