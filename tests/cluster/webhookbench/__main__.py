"""Run everything and print the table: ``python -m tests.cluster.webhookbench``."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from tests.cluster import toolchain
from tests.cluster.cluster import Cluster
from tests.cluster.config import Config
from tests.cluster.errors import ClusterError
from tests.cluster.installation import Installation
from tests.cluster.plan import Flags
from tests.cluster.webhookbench import binding, creation, serving, stages
from tests.cluster.webhookbench.load import Generator
from tests.cluster.webhookbench.report import Report

if TYPE_CHECKING:
    from collections.abc import Collection

# What kube-controller-manager and kube-scheduler have without flags.
_USUAL_RATES = Flags(
    node=False,
    controller_manager=("--kube-api-qps=20", "--kube-api-burst=30"),
    scheduler=("--kube-api-qps=50", "--kube-api-burst=100"),
)
_PARTS = ("creation", "serving", "binding", "tenants", "large", "usual")


def main() -> int:
    """Measure what is asked for; a missed target is no failure."""
    parser = argparse.ArgumentParser(prog="webhookbench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of creating pods in each way")
    parser.add_argument("--only", choices=_PARTS, action="append", help="one part of it")
    options = parser.parse_args()
    parts = options.only or _PARTS
    report, began = Report(), time.monotonic()
    try:
        programs = toolchain.ensure_bench_programs()
        # Thousands of pods are left behind by the first part, and nobody else should meet them.
        for together in ({"creation"}, set(_PARTS) - {"creation", "usual"}):
            if not together.isdisjoint(parts):
                with Cluster.start(Config(flags=Flags(node=False))) as cluster:
                    chosen = together.intersection(parts)
                    _measure(cluster, Generator(cluster, programs), chosen, options.rounds, report)
        if "usual" in parts:
            with Cluster.start(Config(flags=_USUAL_RATES)) as cluster:
                generator = Generator(cluster, programs)
                turns = ("direct", "ours")
                binding.measure(_install(cluster), generator, turns, "default QPS", report)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\n{report.table()}\n\nmeasured in {time.monotonic() - began:.0f} s")
    return 0


def _measure(
    cluster: Cluster, generator: Generator, parts: Collection[str], rounds: int, report: Report
) -> None:
    installation = _install(cluster)
    authority = cluster.directory / "webhook-ca.crt"
    authority.write_bytes(creation.read_authority(cluster))
    if "creation" in parts:
        creation.measure(installation, generator, rounds, report)
    if "serving" in parts:
        serving.measure_rate(installation, generator, authority, report)
        stages.measure(report)
    if "binding" in parts:
        turns = ("direct", "ours", "ours", "direct")  # each as early as the other
        binding.measure(installation, generator, turns, "raised QPS", report)
    if "tenants" in parts:
        serving.measure_tenants(installation, generator, authority, report)
    if "large" in parts:
        serving.measure_large_cluster(installation, generator, authority, report)


def _install(cluster: Cluster) -> Installation:
    """Install hami-dra, with its webhooks registered and none running."""
    installation = Installation.install_admission(cluster)
    cluster.stop_process("webhook")
    return installation


if __name__ == "__main__":
    sys.exit(main())
