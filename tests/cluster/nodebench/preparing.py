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
from tests.cluster.nodebench.floor import Place
from tests.cluster.webhookbench.load import read_usage
from tests.cluster.webhookbench.report import spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from tests.cluster.nodebench.bed import Bed
    from tests.cluster.webhookbench.report import Report

CLAIMS = 50
ROUNDS = 200
"""Of all claims: ten thousand prepares."""
_PARTS = 10
_REPEATS = 5
_ROUNDS = 8
IDLE_SECONDS = 60.0
_LULL_SECONDS = 8
"""After five without a call the node gives back what it can."""
_FLOOR = "floor"


@dataclass(frozen=True, slots=True)
class Arrival:
    """How the calls of a round begin.

    Attributes:
        said: In the table.
        rounds: Of a repeat: what takes long says the same each time.
        at_once: How many belong together.
        spread_seconds: Over how long those begin.
    """

    said: str
    rounds: int
    at_once: int
    spread_seconds: float = 0.0


def _burst(rounds: int) -> Arrival:
    return Arrival(f"{CLAIMS} at once", rounds, CLAIMS)


_ARRIVALS = (
    Arrival("one at a time", 2, 1),
    Arrival(f"{CLAIMS} in a second", 2, CLAIMS, 1.0),
    _burst(_ROUNDS),
)


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


@dataclass(frozen=True, slots=True)
class Run:
    """Rounds of calls.

    Attributes:
        prepared: Every Prepare.
        unprepared: Every Unprepare.
        prepare_ms: From the first call to the last answer of those that began at once.
        unprepare_ms: The same.
    """

    prepared: list[Timing]
    unprepared: list[Timing]
    prepare_ms: list[float]
    unprepare_ms: list[float]


def measure(bed: Bed, claims: Sequence[dict[str, str]], report: Report) -> None:
    """Measure on a node process that runs and is used for nothing else."""
    _call(bed, claims, _burst(3))  # connections, caches, the first WAL
    floor = _measure_floor(bed, claims, report)
    for arrival in _ARRIVALS:
        said, at_once = arrival.said, arrival.at_once
        before = read_usage(bed.cluster, "node").cpu_seconds
        runs = [_measure_calls(bed, claims, arrival) for _ in range(_REPEATS)]
        used = read_usage(bed.cluster, "node").cpu_seconds - before
        each = used / (_REPEATS * arrival.rounds * CLAIMS) * 1000
        report.say(f"CPU of a Prepare and an Unprepare, {said}, ms", f"{each:.1f}")
        own = _report_calls(report, f"Prepare, {said}", [run.prepared for run in runs])
        _report_calls(report, f"Unprepare, {said}", [run.unprepared for run in runs])
        if at_once > 1 and not arrival.spread_seconds:
            _report_queue(report, "Prepare", at_once, [run.prepare_ms for run in runs])
            _report_queue(report, "Unprepare", at_once, [run.unprepare_ms for run in runs])
            title = f"Prepare, {said}: p50 besides the GET, times that floor"
            report.say(title, f"{own / floor:.1f}")


def _report_calls(report: Report, what: str, runs: Sequence[Sequence[Timing]]) -> float:
    """Report calls; return the median of what is ours."""
    reads = [median(each.read_ms for each in run) for run in runs]
    wholes = [median(each.whole_ms for each in run) for run in runs]
    report.say(f"{what}: ms with the GET, p50", spread(wholes, 1))
    if any(reads):
        report.say(f"{what}: ms of the GET, p50", spread(reads, 1))
    middle = 0.0
    for percent, target in ((50, 5.0), (99, 15.0)):
        values = [_quantile((each.own_ms for each in run), percent) for run in runs]
        title = f"{what}: ms besides the GET, p{percent}"
        report.at_most(title, median(values), target, spread(values, 1))
        middle = middle or median(values)
    return middle


def _report_queue(report: Report, verb: str, at_once: int, runs: Sequence[Sequence[float]]) -> None:
    """Report what one call costs where many wait: all of them, divided by how many they are."""
    each = [median(run) / at_once for run in runs]
    report.say(
        f"{verb}, {at_once} at once: ms of work for each, GET and client included", spread(each, 1)
    )


def _measure_floor(bed: Bed, claims: Sequence[dict[str, str]], report: Report) -> float:
    """Report what a service takes that does nothing, and the bare writes; return both, p50."""
    cluster = bed.cluster
    kubelet = cluster.directory / _FLOOR
    result = cluster.directory / "floor-result.json"
    place = Place(
        kubelet_dir=str(kubelet),
        state_dir=str(bed.installation.state.with_name("floor-state")),
        cdi_dir=f"{bed.cdi_directory}-floor",
        claims=CLAIMS,
        result=str(result),
    )
    path = cluster.directory / "floor.json"
    path.write_bytes(msgspec.json.encode(place))
    program = [sys.executable, "-m", "tests.cluster.nodebench.floor", str(path)]
    cluster.start_process(_FLOOR, program, {"PYTHONPATH": str(ROOT)}, ready="started")
    try:
        _call(bed, claims, _burst(2), kubelet=kubelet)
        middle = [_measure_nothing(bed, claims, each, kubelet, report) for each in _ARRIVALS][-1]
    finally:
        cluster.stop_process(_FLOOR)
    disk = msgspec.json.decode(result.read_bytes(), type=list[float])
    report.say(f"floor: the bare writes of {CLAIMS} claims, ms", spread(disk, 1))
    # Half of the calls have their answer when half of the writes are done.
    floor = middle + median(disk) / 2
    report.say("floor: p50 of both together, ms", f"{floor:.1f}")
    return floor


def _measure_nothing(
    bed: Bed, claims: Sequence[dict[str, str]], arrival: Arrival, kubelet: Path, report: Report
) -> float:
    """Report what a service that does nothing takes for calls; return the median, in ms."""
    calls = [
        [
            ms
            for each in _call(bed, claims, arrival, kubelet=kubelet).prepare_ms.values()
            for ms in each
        ]
        for _ in range(_REPEATS)
    ]
    for percent in (50, 99):
        title = f"floor: a service that does nothing, {arrival.said}, ms, p{percent}"
        report.say(title, spread([_quantile(each, percent) for each in calls], 1))
    return median(median(each) for each in calls)


def measure_memory(bed: Bed, claims: Sequence[dict[str, str]], report: Report) -> None:
    """Prepare and unprepare until ten thousand are done, and see what the process has grown by."""
    report.say("RSS before the first Prepare, MiB", f"{_read_rss(bed):.1f}")
    sizes = []
    for _ in range(_PARTS):
        _call(bed, claims, _burst(ROUNDS // _PARTS))
        sizes.append(_read_rss(bed))
    count = CLAIMS * ROUNDS
    each = ", ".join(f"{size:.1f}" for size in sizes)
    report.say(f"RSS after every {count // _PARTS} prepares, MiB", each)
    report.at_most(f"RSS after {count} prepares, MiB", sizes[-1], 65, f"{sizes[-1]:.1f}")
    time.sleep(_LULL_SECONDS)  # what is measured is that nothing is asked
    title = f"RSS {_LULL_SECONDS} s after the last call, MiB"
    report.say(title, f"{_read_rss(bed):.1f}")
    # The second half: the first one fills pools and caches that have a size.
    half = sizes[_PARTS // 2 :]
    slope = (half[-1] - half[0]) / (count / 2 / 1000) * (len(half) / (len(half) - 1))
    report.at_most("growth of RSS, KiB per 1000 prepares", slope * 1024, 100, f"{slope * 1024:.0f}")


def _read_rss(bed: Bed) -> float:
    """Return the resident MiB of the node process without the simulated cards it has mapped."""
    pid = bed.cluster.process_status("node")["pid"]
    sizes: dict[str, int] = {}
    path = ""
    for line in bed.cluster.run(["cat", f"/proc/{pid}/smaps"]).stdout.splitlines():
        words = line.split(maxsplit=5)
        if words[0] == "Rss:":
            sizes[path] = sizes.get(path, 0) + int(words[1])
        elif not words[0].endswith(":"):
            path = words[5] if len(words) > 5 else ""
    simulated = sum(
        size for path, size in sizes.items() if path.startswith(f"{bed.driver.sim_dir}/")
    )
    return (sum(sizes.values()) - simulated) / 1024


def measure_idle(bed: Bed, claims: Sequence[dict[str, str]], report: Report) -> None:
    """See what a process with prepared claims uses that is asked nothing."""
    _call(bed, claims, _burst(1), keep=True)
    # What follows a Prepare is not nothing: the node says in each claim's status that it is ready.
    bed.cluster.wait_for_all(
        "resourceclaims", lambda items: all(item["status"].get("devices") for item in items)
    )
    before = read_usage(bed.cluster, "node").cpu_seconds
    time.sleep(IDLE_SECONDS)  # what is measured is that nothing happens
    used = read_usage(bed.cluster, "node").cpu_seconds - before
    percent = used / IDLE_SECONDS * 100
    title = f"CPU with {CLAIMS} claims and nothing to do, % of a core"
    step = 100 / os.sysconf("SC_CLK_TCK") / IDLE_SECONDS
    report.at_most(title, percent, 0.5, f"{percent:.2f} (in steps of {step:.2f})")


def _measure_calls(bed: Bed, claims: Sequence[dict[str, str]], arrival: Arrival) -> Run:
    before = len(bed.cluster.logs("node"))
    calls = _call(bed, claims, arrival)
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
    batches = calls.batches_ms
    return Run(prepared, unprepared, batches["prepare"], batches["unprepare"])


def _call(
    bed: Bed,
    claims: Sequence[dict[str, str]],
    arrival: Arrival,
    *,
    keep: bool = False,
    kubelet: Path | None = None,
) -> Calls:
    cluster = bed.cluster
    plan = Plan(
        kubelet_dir=str(kubelet or cluster.kubelet_directory),
        claims=list(claims),
        rounds=arrival.rounds,
        at_once=arrival.at_once,
        spread_seconds=arrival.spread_seconds,
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
