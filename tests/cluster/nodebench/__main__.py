"""Run everything and print the table: ``python -m tests.cluster.nodebench``."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from tests.cluster.cluster import Cluster
from tests.cluster.config import Config
from tests.cluster.errors import ClusterError
from tests.cluster.nodebench import podway, preparing, publishing
from tests.cluster.nodebench.bed import Bed
from tests.cluster.plan import Flags
from tests.cluster.webhookbench.report import Report

if TYPE_CHECKING:
    from collections.abc import Collection

_PARTS = ("start", "prepare", "memory", "idle", "slices", "pods")


def main() -> int:
    """Measure what is asked for; a missed target is no failure."""
    parser = argparse.ArgumentParser(prog="nodebench", description=__doc__)
    parser.add_argument("--only", choices=_PARTS, action="append", help="one part of it")
    parser.add_argument("--pods", type=int, default=12, help="of each kind, in part pods")
    options = parser.parse_args()
    parts = options.only or _PARTS
    report, began = Report(), time.monotonic()
    try:
        if set(parts) - {"pods"}:
            with Cluster.start(Config(flags=Flags(node=False))) as cluster:
                _measure(Bed.make(cluster), parts, report)
        if "pods" in parts:
            with Cluster.start(Config()) as cluster:
                podway.measure(cluster, options.pods, report)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\n{report.table()}\n\nmeasured in {time.monotonic() - began:.0f} s")
    return 0


def _measure(bed: Bed, parts: Collection[str], report: Report) -> None:
    """Measure in an order in which nothing is left behind that the next part would feel."""
    if "start" in parts:
        publishing.measure_start(bed, report)
    else:
        publishing.start(bed)
    claims = bed.create_claims(preparing.CLAIMS)
    if "memory" in parts:
        preparing.measure_memory(bed, claims, report)
    if "prepare" in parts:
        preparing.measure(bed, claims, report)
    if "idle" in parts:
        preparing.measure_idle(bed, claims, report)
    if "slices" in parts:
        publishing.measure_many(bed, report)


if __name__ == "__main__":
    sys.exit(main())
