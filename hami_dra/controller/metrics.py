"""What the controller counts."""

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest


class ControllerMetrics:
    """Counters and gauges in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.leading = Gauge(
            "hami_dra_controller_leading",
            "1 in the process that holds the Lease, 0 in the others.",
            registry=self.registry,
        )
        self.templates = Gauge(
            "hami_dra_controller_templates",
            "ResourceClaimTemplates with a name of admission's, by whether a pod refers to them.",
            ["used"],
            registry=self.registry,
        )
        self.missing = Gauge(
            "hami_dra_controller_missing_templates",
            "ResourceClaimTemplates that pods wait for.",
            registry=self.registry,
        )
        self.deletions = Counter(
            "hami_dra_controller_template_deletions",
            "Deletions of unused ResourceClaimTemplates by result; kept: somebody was faster.",
            ["result"],
            registry=self.registry,
        )
        self.restorations = Counter(
            "hami_dra_controller_template_restorations",
            "Attempts to make a missing ResourceClaimTemplate again by result; changed: its pods "
            "do not lead to it any more.",
            ["result"],
            registry=self.registry,
        )
        self.quotas = Gauge(
            "hami_dra_controller_quotas",
            "ResourceQuotas that limit GPUs.",
            registry=self.registry,
        )
        self.recounts = Counter(
            "hami_dra_controller_quota_recounts",
            "Counts of a ResourceQuota that were not as they should be, by result of writing them "
            "anew; conflict: somebody was faster.",
            ["result"],
            registry=self.registry,
        )

    def render(self) -> bytes:
        """Return what Prometheus reads."""
        return generate_latest(self.registry)

    def lead(self, leading: bool) -> None:  # noqa: FBT001 - a callback's only argument
        """Note whether this process leads; one that does not knows nothing."""
        self.leading.set(leading)
        if not leading:
            self.templates.clear()
            self.missing.set(0)
            self.quotas.set(0)
