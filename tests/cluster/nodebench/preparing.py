"""Prepare and Unprepare, one at a time and fifty at once, and what ten thousand of them leave."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

import msgspec

from tests.cluster.config import ROOT
from tests.cluster.errors import ClusterError
from tests.cluster.nodebench.caller import Calls, Plan
from tests.cluster.webhookbench.load import read_usage
from tests.cluster.webhookbench.report import spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tests.cluster.nodebench.bed import Bed
    from tests.cluster.webhookbench.report import Report

CLAIMS = 50
ROUNDS = 200
"""Of all claims: ten thousand prepares."""
_PARTS = 10
_REPEATS = 5
_ROUNDS_OF_REPEAT = 8
IDLE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Timing:
    """One call.

    Attributes:
        whole_ms: From the client's request to its answer.
        read_ms: Of it, from the GET of the claim to its object; 0 for Unprepare, which has none.
    """

    whole_ms: float
    read_ms: float

    @property
    def own_ms(self) -> float:
        """What is ours: everything but the API server's answer."""
        return self.whole_ms - self.read_ms


def measure(bed: Bed, claims: Sequence[dict[str, str]], report: Report) -> None:
    """Measure on a node process that runs and is used for nothing else."""
    _call(bed, claims, rounds=3, at_once=CLAIMS)  # connections, caches, the first WAL
    for at_once, said in ((1, "one at a time"), (CLAIMS, f"{CLAIMS} at once")):
        before = read_usage(bed.cluster, "node").cpu_seconds
        runs = [
            _measure_calls(bed, claims, rounds=_ROUNDS_OF_REPEAT, at_once=at_once)
            for _ in range(_REPEATS)
        ]
        used = read_usage(bed.cluster, "node").cpu_seconds - before
        each = used / (_REPEATS * _ROUNDS_OF_REPEAT * CLAIMS) * 1000
        report.say(f"CPU of a Prepare and an Unprepare, {said}, ms", f"{each:.1f}")
        for verb, number in (("Prepare", 0), ("Unprepare", 1)):
            _report_calls(report, f"{verb}, {said}", [run[number] for run in runs])


def _report_calls(report: Report, what: str, runs: Sequence[Sequence[Timing]]) -> None:
    reads = [median(each.read_ms for each in run) for run in runs]
    wholes = [median(each.whole_ms for each in run) for run in runs]
    report.say(f"{what}: ms with the GET, p50", spread(wholes, 1))
    if any(reads):
        report.say(f"{what}: ms of the GET, p50", spread(reads, 1))
    for percent, target in ((50, 5.0), (99, 15.0)):
        values = [_quantile((each.own_ms for each in run), percent) for run in runs]
        title = f"{what}: ms besides the GET, p{percent}"
        report.at_most(title, median(values), target, spread(values, 1))


def measure_memory(bed: Bed, claims: Sequence[dict[str, str]], report: Report) -> None:
    """Prepare and unprepare until ten thousand are done, and see what the process has grown by."""
    report.say(
        "RSS before the first Prepare, MiB", f"{read_usage(bed.cluster, 'node').rss_mib:.1f}"
    )
    sizes = []
    for _ in range(_PARTS):
        _call(bed, claims, rounds=ROUNDS // _PARTS, at_once=CLAIMS)
        sizes.append(read_usage(bed.cluster, "node").rss_mib)
    count = CLAIMS * ROUNDS
    each = ", ".join(f"{size:.1f}" for size in sizes)
    report.say(f"RSS after every {count // _PARTS} prepares, MiB", each)
    report.at_most(f"RSS after {count} prepares, MiB", sizes[-1], 65, f"{sizes[-1]:.1f}")
    # The second half: the first one fills pools and caches that have a size.
    half = sizes[_PARTS // 2 :]
    slope = (half[-1] - half[0]) / (count / 2 / 1000) * (len(half) / (len(half) - 1))
    report.at_most("growth of RSS, KiB per 1000 prepares", slope * 1024, 100, f"{slope * 1024:.0f}")


def measure_idle(bed: Bed, claims: Sequence[dict[str, str]], report: Report) -> None:
    """See what a process with prepared claims uses that is asked nothing."""
    _call(bed, claims, rounds=1, at_once=CLAIMS, keep=True)
    before = read_usage(bed.cluster, "node").cpu_seconds
    time.sleep(IDLE_SECONDS)  # what is measured is that nothing happens
    used = read_usage(bed.cluster, "node").cpu_seconds - before
    percent = used / IDLE_SECONDS * 100
    title = f"CPU with {CLAIMS} claims and nothing to do, % of a core"
    step = 100 / os.sysconf("SC_CLK_TCK") / IDLE_SECONDS
    report.at_most(title, percent, 0.5, f"{percent:.2f} (in steps of {step:.2f})")


def _measure_calls(
    bed: Bed, claims: Sequence[dict[str, str]], *, rounds: int, at_once: int
) -> tuple[list[Timing], list[Timing]]:
    before = len(bed.cluster.logs("node"))
    calls = _call(bed, claims, rounds=rounds, at_once=at_once)
    reads: dict[str, list[float]] = {}
    for line in _list_lines(bed.cluster.logs("node")[before:]):
        if line.get("event") == "prepare":
            reads.setdefault(str(line["uid"]), []).append(float(line["read_ms"]))
    prepared = [
        Timing(whole, read)
        for uid, wholes in calls.prepare_ms.items()
        for whole, read in zip(wholes, reads[uid], strict=True)
    ]
    unprepared = [Timing(whole, 0.0) for wholes in calls.unprepare_ms.values() for whole in wholes]
    return prepared, unprepared


def _call(
    bed: Bed,
    claims: Sequence[dict[str, str]],
    *,
    rounds: int,
    at_once: int,
    keep: bool = False,
) -> Calls:
    cluster = bed.cluster
    plan = Plan(
        kubelet_dir=str(cluster.kubelet_directory),
        claims=list(claims),
        rounds=rounds,
        at_once=at_once,
        keep=keep,
    )
    path = cluster.directory / "calls.json"
    path.write_bytes(msgspec.json.encode(plan))
    done = cluster.run(
        [sys.executable, "-m", "tests.cluster.nodebench.caller", str(path)],
        {"PYTHONPATH": str(ROOT)},
        timeout_seconds=300.0,
    )
    if done.returncode != 0:
        raise ClusterError(f"caller: {done.stderr[-2000:]}\n{cluster.logs('node')[-2000:]}")
    return msgspec.json.decode(done.stdout, type=Calls)


def _list_lines(log: str) -> Iterator[dict[str, Any]]:
    for line in log.splitlines():
        if line.startswith("{"):
            yield msgspec.json.decode(line)


def _quantile(values: Iterable[float], percent: int) -> float:
    return quantiles(values, n=100, method="inclusive")[percent - 1]
