"""How soon the cards are published, after a start and when there are very many."""

from __future__ import annotations

import sys
import time
from statistics import median
from typing import TYPE_CHECKING, Any

from hami_dra.testing.simgpu import create_driver_root
from tests.cluster.config import BUILD, ROOT
from tests.cluster.errors import ClusterError
from tests.cluster.nodebench.bed import CARDS, NODE, list_cards
from tests.cluster.webhookbench.report import spread

if TYPE_CHECKING:
    from tests.cluster.nodebench.bed import Bed
    from tests.cluster.webhookbench.report import Report

STARTS = 7
_SLICES = "/apis/resource.k8s.io/v1/resourceslices"


def start(bed: Bed) -> float:
    """Start the process on a node without slices; return the seconds until they are published."""
    cluster = bed.cluster
    cluster.api.request("DELETE", _SLICES)
    cluster.wait_for_all("resourceslices", lambda items: not items)
    began = time.monotonic()
    bed.start_node(ready=False)
    cluster.wait_for_all("resourceslices", _are_complete)
    return time.monotonic() - began


def measure_start(bed: Bed, report: Report) -> None:
    """Start the process again and again; it runs at the end."""
    seconds = []
    for number in range(STARTS):
        if number:
            bed.stop_node()
        seconds.append(start(bed))
    title = f"s from start to {CARDS} cards published"
    report.at_most(title, median(seconds), 1.5, spread(seconds, 2))


def _are_complete(items: list[dict[str, Any]]) -> bool:
    return sum(len(item["spec"].get("devices") or ()) for item in items) == CARDS


def measure_many(bed: Bed, report: Report) -> None:
    """Write, change and write anew all slices of a node with 16 cards of 7 MIG devices each."""
    bed.stop_node()
    bed.cluster.api.request("DELETE", _SLICES)
    cards = list_cards(CARDS, mig=True)
    driver = create_driver_root(bed.cluster.directory / "mig-driver", cards, BUILD)
    done = bed.cluster.run(
        [sys.executable, "-m", "tests.cluster.nodebench.publisher", NODE, str(driver.root)],
        {**bed.environment, **driver.environment(), "PYTHONPATH": str(ROOT)},
    )
    if done.returncode != 0:
        raise ClusterError(f"publisher: {done.stderr[-2000:]}")
    for line in done.stdout.splitlines():
        what, _, figures = line.partition(": ")
        report.say(what, spread([float(each) for each in figures.split()], 1))
