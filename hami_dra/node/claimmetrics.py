"""What the node tells Prometheus about the claims that it follows and audits."""

from collections.abc import Callable, Iterable, Mapping

from hami_dra.node.audit import AuditStatistics
from hami_dra.node.claimwatch import WatchStatistics
from hami_dra.service.exposition import CounterFamily, Family, GaugeFamily


class ClaimMetrics:
    """Reads the statistics when asked.

    Args:
        watch: Claims followed.
        audit: What the audit saw; ``None`` if there is none.
        driver_limits: Containers that the driver itself holds, by card.
    """

    def __init__(
        self,
        watch: Callable[[], WatchStatistics],
        audit: Callable[[], AuditStatistics] | None,
        driver_limits: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self._driver_limits = driver_limits
        self._watch = watch
        self._audit = audit

    def collect(self) -> Iterable[Family]:
        """Return every family with its values of now."""
        watch = self._watch()
        yield GaugeFamily(
            "hami_dra_node_claims_followed", "Prepared claims that are followed.", watch.claims
        )
        yield CounterFamily(
            "hami_dra_node_claim_status_writes", "Claims whose status was written.", watch.writes
        )
        yield CounterFamily(
            "hami_dra_node_limit_changes", "Claims whose limits were changed.", watch.changes
        )
        yield CounterFamily(
            "hami_dra_node_claim_errors", "Looks at a claim that failed.", watch.errors
        )
        limits = GaugeFamily(
            "hami_dra_node_driver_limits",
            "Containers of which the driver limits the memory, their pods' sandboxes included.",
            labels=["uuid"],
        )
        for uuid, count in sorted(self._driver_limits().items()):
            limits.add_metric([uuid], count)
        yield limits
        if self._audit is not None:
            yield from _describe(self._audit())


def _describe(audit: AuditStatistics) -> Iterable[Family]:
    readings = CounterFamily(
        "hami_dra_enforcement_readings",
        "Times that the driver was asked for its processes, by result.",
        labels=["result"],
    )
    readings.add_metric(["ok"], audit.readings)
    readings.add_metric(["failed"], audit.failures)
    yield readings
    violations = CounterFamily(
        "hami_dra_enforcement_violations",
        "Times that a pod began to use more of a card than was granted, while its claim is here.",
        labels=["namespace", "pod", "uuid"],
    )
    for key, count in sorted(audit.violations.items()):
        violations.add_metric(key, count)
    yield violations
    over = GaugeFamily(
        "hami_dra_enforcement_excess_mib",
        "MiB used above the grant and the allowance for contexts, by those that do now.",
        labels=["namespace", "pod", "uuid"],
    )
    for excess in audit.excesses:
        pod = excess.pods[0]
        amount = excess.used_mib - excess.granted_mib - excess.allowance_mib
        over.add_metric([pod.namespace, pod.name, excess.uuid], amount)
    yield over
    unclaimed = GaugeFamily(
        "hami_dra_enforcement_unclaimed_mib",
        "MiB of a card used by pods that have no claim on it.",
        labels=["uuid"],
    )
    for uuid, amount in sorted(audit.unclaimed_mib.items()):
        unclaimed.add_metric([uuid], amount)
    yield unclaimed
    yield CounterFamily(
        "hami_dra_enforcement_evictions", "Pods asked to end by the audit.", audit.evictions
    )
