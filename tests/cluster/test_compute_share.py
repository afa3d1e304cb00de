"""Compute is shared as granted: by the work that programs get done, and by NVML on the node.

Kernels are simulated in real time, and each process has its own: what is measured is who is let
go when, not how a card divides itself. The machine does other things besides, hence the margins.
"""

import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tests.cluster.manifests import claim, pod, pod_with_claim, text
from tests.cluster.stack import Stack

KERNEL_US = 5000
SETTLED_SECONDS = 5.0
"""From the first launch: a neighbour is seen within a second, and NVML's second passes."""
MARGIN_POINTS = 4.0
NEARLY_ALL = 78.0
"""Percent that nothing but a lifted limit gives: no share here has more than 70. The rest is what a
machine that is busy with something else lets a program launch."""

# Mean percent of each process over the seconds, by NVML of the node.
WATCH = """
import json, sys, time, pynvml as n
n.nvmlInit()
time.sleep(3)  # until the driver's second is full of what is measured
cards = [n.nvmlDeviceGetHandleByIndex(i) for i in range(n.nvmlDeviceGetCount())]
seconds, sums = int(sys.argv[1]), {}
for _ in range(seconds):
    time.sleep(1)
    for card in cards:
        try:
            samples = n.nvmlDeviceGetProcessUtilization(card, 0)
        except n.NVMLError:
            continue
        for sample in samples:
            sums[sample.pid] = sums.get(sample.pid, 0) + sample.smUtil
found = {}
for pid, total in sums.items():
    with open(f"/proc/{pid}/cgroup") as file:
        group = file.read()
    found[group] = found.get(group, 0) + total / seconds
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Second:
    """What a program got done in about a second of the machine's monotonic clock."""

    from_ms: int
    until_ms: int
    busy_ms: int


def work(stack: Stack, name: str, seconds: int) -> list[Second]:
    """Keep the card busy from inside a pod."""
    done = stack.cluster.exec(name, "cuprobe", "work", str(KERNEL_US), str(seconds))
    return [Second(**json.loads(line)) for line in done.stdout.splitlines()]


def percent(seconds: Sequence[Second], begin_ms: int, end_ms: int) -> float:
    """Return the share of the card's time that a program had in a while."""
    inside = [s for s in seconds if s.from_ms >= begin_ms and s.until_ms <= end_ms]
    elapsed = sum(s.until_ms - s.from_ms for s in inside)
    if not elapsed:
        raise AssertionError(f"no second within {begin_ms}..{end_ms} of {seconds}")
    return 100 * sum(s.busy_ms for s in inside) / elapsed


def settled(seconds: Sequence[Second]) -> float:
    """Return the same from when everybody knew of everybody."""
    begin = seconds[0].from_ms + int(SETTLED_SECONDS * 1000)
    return percent(seconds, begin, seconds[-1].until_ms)


def watch(stack: Stack, seconds: int) -> dict[str, float]:
    """Return percent by pod UID, as NVML on the node says."""
    program = [sys.executable, "-c", WATCH, str(seconds)]
    done = stack.cluster.run(program, stack.driver.environment())
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = {}
    for group, value in json.loads(done.stdout).items():
        for item in stack.cluster.api.items("pods", "default"):
            uid = item["metadata"]["uid"]
            if uid in group or uid.replace("-", "_") in group:
                name = item["metadata"]["name"]
                found[name] = found.get(name, 0.0) + value
    return found


def start(stack: Stack, *bodies: dict[str, Any]) -> None:
    stack.cluster.apply(text(*bodies))
    for body in bodies:
        if body["kind"] == "Pod":
            stack.cluster.wait_pod_running(body["metadata"]["name"])


def with_policy(name: str, cores: int, policy: str, **more: Any) -> list[dict[str, Any]]:
    parameters = {"corePolicy": policy, **more}
    capacity = {"memory": "1Gi", "cores": str(cores), "slots": "1"}
    return [claim(name, parameters=parameters, **capacity), pod_with_claim(name, name)]


def together(*calls: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(calls)) as pool:
        futures: list[Future[Any]] = [pool.submit(call) for call in calls]
        return [future.result() for future in futures]


def test_two_pods_have_thirty_and_seventy(stack: Stack, measured: Callable[[str], None]) -> None:
    start(
        stack,
        pod("less", gpu=1, gpumem=1000, gpucores=30),
        pod("more", gpu=1, gpumem=1000, gpucores=70),
    )
    cards = {
        stack.claim_of(name)["status"]["allocation"]["devices"]["results"][0]["device"]
        for name in ("less", "more")
    }
    assert len(cards) == 1

    # Both know of each other; then the node looks on for as long as they work.
    together(*(lambda name=name: work(stack, name, 4) for name in ("less", "more")))
    less, more, seen = together(
        lambda: work(stack, "less", 16),
        lambda: work(stack, "more", 16),
        lambda: watch(stack, 8),
    )

    done = {"less": settled(less), "more": settled(more)}
    measured(
        f"30:70 on one card: {done['less']:.1f} and {done['more']:.1f} percent by work done, "
        f"{seen['less']:.1f} and {seen['more']:.1f} by NVML on the node"
    )
    for name, wanted in (("less", 30), ("more", 70)):
        assert abs(done[name] - wanted) <= MARGIN_POINTS
        assert abs(seen[name] - wanted) <= MARGIN_POINTS


def test_alone_the_default_limits_nobody_and_force_does(
    stack: Stack, measured: Callable[[str], None]
) -> None:
    start(stack, pod("free", gpu=1, gpumem=1000, gpucores=30))
    alone = settled(work(stack, "free", 9))
    stack.cluster.kubectl("delete", "pod", "free", "--wait", "--grace-period=1")
    start(stack, *with_policy("held", 30, "force"))
    forced = settled(work(stack, "held", 9))

    measured(f"30 percent alone: {alone:.1f} by default, {forced:.1f} under force")
    assert alone >= NEARLY_ALL
    assert abs(forced - 30) <= MARGIN_POINTS


def test_the_limit_comes_with_a_neighbour_and_goes_with_it(
    stack: Stack, measured: Callable[[str], None]
) -> None:
    start(
        stack,
        pod("stays", gpu=1, gpumem=1000, gpucores=40),
        pod("visits", gpu=1, gpumem=1000, gpucores=40),
        *with_policy("never", 20, "disable"),
    )

    def visit() -> list[Second]:
        stack.cluster.run(["sleep", "4"])
        return work(stack, "visits", 8)

    stays, visits = together(lambda: work(stack, "stays", 22), visit)
    came, left = visits[0].from_ms, visits[-1].until_ms
    before = percent(stays, stays[0].from_ms + 1500, came - 500)
    beside = percent(stays, came + 3000, left - 500)
    after = percent(stays, left + 5000, stays[-1].until_ms)
    measured(f"40 percent: {before:.1f} alone, {beside:.1f} beside another, {after:.1f} after it")
    assert before >= NEARLY_ALL
    assert abs(beside - 40) <= MARGIN_POINTS
    assert after >= NEARLY_ALL

    never, beside_it = together(
        lambda: settled(work(stack, "never", 10)), lambda: settled(work(stack, "stays", 10))
    )
    measured(f"policy disable beside another: {never:.1f}, the other {beside_it:.1f} of 40")
    assert never >= NEARLY_ALL
    assert abs(beside_it - 40) <= MARGIN_POINTS


def test_a_lower_priority_waits_while_a_higher_works(
    stack: Stack, measured: Callable[[str], None]
) -> None:
    start(
        stack,
        pod("urgent", gpu=1, gpumem=1000, gpucores=50, priority=0),
        pod("patient", gpu=1, gpumem=1000, gpucores=50, priority=1),
    )

    def hurry() -> list[Second]:
        stack.cluster.run(["sleep", "6"])
        return work(stack, "urgent", 8)

    patient, urgent = together(lambda: work(stack, "patient", 26), hurry)
    came, left = urgent[0].from_ms, urgent[-1].until_ms
    before = percent(patient, patient[0].from_ms + 1500, came - 500)
    # A program that waits says nothing: what spans the while may have been done outside of it.
    outside = [max(came - s.from_ms, 0) + max(s.until_ms - left, 0) for s in patient]
    meanwhile = [s.until_ms > came and s.from_ms < left for s in patient]
    waited = sum(
        max(second.busy_ms - spare, 0)
        for second, spare, counts in zip(patient, outside, meanwhile, strict=True)
        if counts
    )
    resumed = next(second.until_ms - left for second in patient if second.until_ms > left)
    after = percent(patient, left + 6500, patient[-1].until_ms)
    first = percent(urgent, came + 3000, left)
    measured(
        f"priority 0 had {first:.1f} percent beside priority 1, which had {before:.1f} before, "
        f"{waited} ms of work in {left - came} ms meanwhile, the next {resumed} ms later, and "
        f"{after:.1f} after"
    )
    assert first >= NEARLY_ALL
    assert waited <= (left - came) * 0.05
    assert resumed < 4000
    assert before >= NEARLY_ALL
    assert after >= NEARLY_ALL


def test_a_ceiling_bounds_what_is_had_alone(stack: Stack, measured: Callable[[str], None]) -> None:
    start(stack, *with_policy("capped", 20, "force", coreCeilingPercent=60, coreBurstMs=50))
    had = settled(work(stack, "capped", 10))

    measured(f"20 percent with a ceiling of 60, alone: {had:.1f}")
    assert abs(had - 60) <= MARGIN_POINTS
