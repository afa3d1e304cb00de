"""Our server alone: reviews per second and per core, their latency, and memory."""

from __future__ import annotations

import re
import sys
import time
from typing import TYPE_CHECKING

import msgspec

from tests.cluster.installation import NAMESPACE, WEBHOOK, WEBHOOK_HEALTH
from tests.cluster.simcards import make_cards
from tests.cluster.simnodes import SimNode, describe_slices
from tests.cluster.webhookbench import pods
from tests.cluster.webhookbench.load import Generator, get_text, read_usage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from tests.cluster.cluster import Cluster
    from tests.cluster.installation import Installation
    from tests.cluster.webhookbench.report import Report

REVIEWS = 50_000
NODES = 5_000
CARDS_PER_NODE = 8
TENANTS = 500
SPECS = 20
_PODS = "/mutate-pods"
_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
# structlog imports a package for pretty terminals where it finds it; a container has none.
_PROGRAM = "import sys; sys.modules['rich'] = None; from hami_dra.cli import main; main()"
_BUCKET = re.compile(r'review_seconds_bucket\{le="([^"]+)",path="/mutate-pods"\} (\S+)')
_KINDS = ("A100", "H100", "T4", "L4", "A100-80G")


def start_webhook(installation: Installation, *, cpu: int | None = None) -> None:
    """Start the webhook with a container's credentials: the ServiceAccount's files and variables.

    Args:
        installation: Where; `Installation.start_webhook` has run before.
        cpu: The only core that it may use.
    """
    cluster = installation.cluster
    certs = cluster.directory / "certs"
    installation.kubeconfig("hami-dra-webhook")  # asks for the token
    token = certs / f"sa.{NAMESPACE}.hami-dra-webhook.token"
    script = f"mkdir -p {_ACCOUNT} && cp {token} {_ACCOUNT}/token && cp {certs}/ca.crt {_ACCOUNT}/"
    cluster.run(["sh", "-c", script])
    cluster.start_process(
        "webhook",
        [
            *(() if cpu is None else ("taskset", "-c", str(cpu))),
            sys.executable, "-c", _PROGRAM, "webhook",
            "--cert-dir", str(installation.state / "webhook-certs"),
            "--listen", WEBHOOK.removeprefix("https://"),
            "--health-listen", WEBHOOK_HEALTH.removeprefix("http://"),
        ],
        {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "6443"},
        ready=f"{WEBHOOK_HEALTH}/readyz",
        timeout_seconds=120.0,
    )  # fmt: skip


def measure_rate(
    installation: Installation, generator: Generator, authority: Path, report: Report
) -> None:
    """Load one core with reviews, from the other one; the API server has nothing to do."""
    cluster = installation.cluster
    cluster.api.request("POST", "/api/v1/namespaces", {"metadata": {"name": pods.NAMESPACE}})
    start_webhook(installation, cpu=0)
    report.say("RSS before the first review, MiB", f"{read_usage(cluster, 'webhook').rss_mib:.1f}")
    more = ("-ca", str(authority))
    url = f"{WEBHOOK}{_PODS}"
    alike = generator.write_bodies("reviews", pods.list_reviews(2000))
    generator.post(url, alike, 2000, more, cpu=1)  # templates are written
    metrics = f"{WEBHOOK_HEALTH}/metrics"
    before = _read_buckets(get_text(cluster, metrics))
    rate = _load(
        generator, alike, REVIEWS * 4 // 5, more, what="replicas of 8 workloads", report=report
    )
    report.at_least("reviews/s per core, replicas of 8 workloads", rate, 4000, f"{rate:.0f}")
    buckets = _read_buckets(get_text(cluster, metrics))
    p99_ms = _find_quantile({le: n - before[le] for le, n in buckets.items()}, 0.99) * 1000
    report.at_most("p99 of the review itself, 16 clients, ms", p99_ms, 5, f"<= {p99_ms:g}")
    distinct = generator.write_bodies("distinct", pods.list_distinct_reviews(REVIEWS // 5))
    rate = _load(generator, distinct, REVIEWS // 5, more, what="no two alike", report=report)
    report.say("reviews/s per core, no two alike", f"{rate:.0f}")
    rss = read_usage(cluster, "webhook").rss_mib
    report.at_most(f"RSS after {REVIEWS} reviews, MiB", rss, 50, f"{rss:.1f}")
    cluster.stop_process("webhook")


def measure_tenants(
    installation: Installation, generator: Generator, authority: Path, report: Report
) -> None:
    """Review every spec in every namespace, twice: only the first time a template is written."""
    cluster = installation.cluster
    start_webhook(installation)
    names = generator.write_bodies(
        "namespaces",
        (
            msgspec.json.encode({"metadata": {"name": f"tenant-{number}"}})
            for number in range(TENANTS)
        ),
    )
    generator.create("/api/v1/namespaces", names, TENANTS)
    count = TENANTS * SPECS
    bodies = generator.write_bodies("tenants", pods.list_tenants(TENANTS, SPECS))
    before = _count_templates(cluster)
    more = ("-ca", str(authority))
    first = generator.post(f"{WEBHOOK}{_PODS}", bodies, count, more)
    written = _count_templates(cluster) - before
    second = generator.post(f"{WEBHOOK}{_PODS}", bodies, count, more)
    report.say(
        f"{TENANTS} namespaces x {SPECS} specs: reviews/s, first and then",
        f"{first.per_second:.0f} and {second.per_second:.0f}; {written} templates written, then "
        f"{_count_templates(cluster) - before - written}",
    )
    rss = read_usage(cluster, "webhook").rss_mib
    report.say(f"RSS with {count} remembered templates, MiB", f"{rss:.1f}")
    cluster.stop_process("webhook")


def measure_large_cluster(
    installation: Installation, generator: Generator, authority: Path, report: Report
) -> None:
    """Publish the slices of a large cluster, then start the webhook and load it."""
    cluster = installation.cluster
    slices = generator.write_bodies("slices", _list_slices())
    generator.create("/apis/resource.k8s.io/v1/resourceslices", slices, NODES)
    began = time.monotonic()
    start_webhook(installation)
    report.say(f"ready with {NODES} x {CARDS_PER_NODE} cards, s", f"{time.monotonic() - began:.1f}")
    bodies = generator.write_bodies("large", pods.list_reviews(2000))
    generator.post(f"{WEBHOOK}{_PODS}", bodies, 10_000, ("-ca", str(authority)))
    usage = read_usage(cluster, "webhook")
    report.at_most(
        f"RSS with {NODES} x {CARDS_PER_NODE} cards, after 10000 reviews, MiB",
        usage.rss_mib,
        150,
        f"{usage.rss_mib:.1f} (peak {usage.peak_mib:.1f})",
    )
    cluster.stop_process("webhook")


def _list_slices() -> Iterator[bytes]:
    for number in range(NODES):
        cards = make_cards([_KINDS[number % len(_KINDS)]] * CARDS_PER_NODE, node=number)
        node = SimNode(name=f"large-{number}", cards=cards)
        (body,) = describe_slices(node, f"00000000-0000-4000-8000-{number:012x}")
        yield msgspec.json.encode(body)


def _count_templates(cluster: Cluster) -> int:
    found = cluster.api.get("/apis/resource.k8s.io/v1/resourceclaimtemplates?limit=1")
    more = int(found["metadata"].get("remainingItemCount") or 0)
    return len(found["items"]) + more


def _load(
    generator: Generator,
    bodies: Path,
    count: int,
    more: Sequence[str],
    *,
    what: str,
    report: Report,
) -> float:
    """Load the server from the second core; return the reviews per second of its own CPU time."""
    cluster = generator.cluster
    before = read_usage(cluster, "webhook").cpu_seconds
    load = generator.post(f"{WEBHOOK}{_PODS}", bodies, count, more, cpu=1)
    used = read_usage(cluster, "webhook").cpu_seconds - before
    figure = f"{load.per_second:.0f} (p50 {load.p50_ms:.1f} ms, p99 {load.p99_ms:.1f} ms)"
    report.say(f"reviews/s over TLS, {what}", figure)
    report.say(f"CPU of a review, {what}, us", f"{used / count * 1e6:.0f}")
    return count / used


def _read_buckets(metrics: str) -> dict[float, float]:
    """Return the counts of reviews by the upper bounds of their duration in seconds."""
    return {float(bound): float(count) for bound, count in _BUCKET.findall(metrics)}


def _find_quantile(buckets: Mapping[float, float], quantile: float) -> float:
    """Return the upper bound of the bucket that has a quantile."""
    wanted = max(buckets.values()) * quantile
    return min(bound for bound, count in buckets.items() if count >= wanted)
