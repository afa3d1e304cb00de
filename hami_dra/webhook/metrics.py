"""What the webhook counts."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

_BUCKETS_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 2.5, 5, 10)


class WebhookMetrics:
    """Counters and a histogram in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reviews = Counter(
            "hami_dra_webhook_reviews",
            "Admission reviews by path and result; result malformed got HTTP 400.",
            ["path", "result"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "hami_dra_webhook_review_seconds",
            "Time from the complete body to the answer.",
            ["path"],
            buckets=_BUCKETS_SECONDS,
            registry=self.registry,
        )
        self.reloads = Counter(
            "hami_dra_webhook_certificate_reloads",
            "Certificates taken from the files, by result.",
            ["result"],
            registry=self.registry,
        )
        self.charges = Counter(
            "hami_dra_webhook_quota_charges",
            "Pods and claims held against the quotas of their namespaces, by result; postponed: it "
            "could not be told.",
            ["result"],
            registry=self.registry,
        )
        self.quota_writes = Counter(
            "hami_dra_webhook_quota_writes",
            "Writes of a ResourceQuota's count by result; conflict: somebody was faster.",
            ["result"],
            registry=self.registry,
        )

    def render(self) -> bytes:
        """Return what Prometheus reads."""
        return generate_latest(self.registry)
