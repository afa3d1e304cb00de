"""Faults of the node process and of those it works with, under a real kubelet."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from functools import partial

import pytest

from hami_dra.contract.names import ANNOTATION_DEVICE_CORDON, DRIVER_NAME
from hami_dra.testing.simgpu import A100
from tests.cluster.config import Config
from tests.cluster.faults import (
    STARTED_SECONDS,
    STEADY,
    SYNC_SECONDS,
    RunningPod,
    ShiftedClock,
    away,
    live_claims,
    require_no_overlap,
    running_containers,
    stopped,
    wait_consistent,
    wait_prepare_failed,
    wait_ready,
    wait_reason,
    wait_until,
)
from tests.cluster.manifests import pod, text
from tests.cluster.plan import Flags
from tests.cluster.stack import NODE_HEALTH, Stack
from tests.cluster.test_card_marks import wait_health
from tests.cluster.test_recovery import WIPE_SECONDS, seconds_without_slices

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

STOPPED_SECONDS = 60.0
KUBELET_CALL_SECONDS = 45.0
API_AWAY_SECONDS = 120.0
API_BACK_SECONDS = 120.0
"""After so long the kubelet's, the scheduler's and the controllers' watches (client-go) wait for up
to a minute before they look again."""
ETCD_AWAY_SECONDS = 15.0
HOUR_SECONDS = 3600
RECONCILE_SECONDS = 150.0
"""The kubelet looks every minute for prepared claims whose pods it no longer knows."""
HEALTH_SECONDS = 90.0
"""A report counts for 30 s; the kubelet writes pod statuses once in its sync period."""

Measured = Callable[[str], None]


@pytest.fixture(scope="module")
def cluster_config(kubernetes: str) -> Config:
    """Return a cluster whose kubelet asks again soon."""
    return Config(
        kubernetes=kubernetes,
        flags=Flags(kubelet_config={"syncFrequency": f"{SYNC_SECONDS}s"}),
    )


@pytest.fixture(scope="module")
def steady(stack: Stack) -> RunningPod:
    """Return a pod that runs through all faults of this module."""
    stack.cluster.kubectl("create", "namespace", STEADY)
    stack.cluster.wait_for("serviceaccounts", "default", lambda item: item is not None, STEADY)
    return RunningPod.start(stack, "steady", 3000, namespace=STEADY)


@pytest.fixture(autouse=True)
def clean_namespace(stack: Stack, steady: RunningPod) -> Iterator[None]:
    """After each fault everything else is gone, and one pod has never noticed."""
    yield
    stack.ensure_node()
    stack.cluster.kubectl("delete", "pods", "--all", "--grace-period=1")
    stack.cluster.wait_for_all("resourceclaims", lambda items: not items, namespace="default")
    wait_ready(stack)
    wait_consistent(stack)
    assert live_claims(stack) == {steady.claim_uid}
    steady.require_untouched()


def create(stack: Stack, prefix: str, count: int) -> list[str]:
    names = [f"{prefix}-{number}" for number in range(count)]
    stack.cluster.apply(text(*(pod(name, gpu=1, gpumem=500) for name in names)))
    return names


def wait_bound(stack: Stack, names: list[str]) -> None:
    """Return once the pods are the kubelet's business."""
    stack.cluster.wait_for_all(
        "pods",
        lambda items: {
            item["metadata"]["name"] for item in items if item["spec"].get("nodeName")
        }.issuperset(names),
    )


def seconds_until_running(
    stack: Stack, names: list[str], within_seconds: float = STARTED_SECONDS
) -> float:
    """Return how long it took until all run, each within its limit."""
    started = time.monotonic()
    pods = [RunningPod.find(stack, name, 500, timeout_seconds=within_seconds) for name in names]
    seconds = time.monotonic() - started
    for each in pods:
        each.require_limit()
    require_no_overlap(stack)
    return seconds


def has_rows(stack: Stack, count: int) -> bool:
    return len(stack.ledger_rows()) > count


def wait_gone(stack: Stack, name: str) -> None:
    stack.cluster.wait_for("pods", name, lambda item: item is None, timeout_seconds=STARTED_SECONDS)


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM])
def test_pods_that_come_and_go_while_the_node_process_is_away(
    stack: Stack, steady: RunningPod, sig: signal.Signals, measured: Measured
) -> None:
    RunningPod.start(stack, "leaves", 700)
    stack.stop_node(sig)
    stack.cluster.kubectl("delete", "pod", "leaves", "--grace-period=1", "--wait=false")
    names = create(stack, sig.name.lower(), 4)
    wait_prepare_failed(stack, names[-1], DRIVER_NAME)
    steady.require_untouched()

    stack.start_node()
    seconds = seconds_until_running(stack, names)
    wait_gone(stack, "leaves")
    measured(f"{sig.name}: pods made meanwhile ran {seconds:.1f} s after the node process")


def test_killed_again_and_again_while_pods_come(
    stack: Stack, steady: RunningPod, measured: Measured
) -> None:
    names = create(stack, "burst", 8)
    started = time.monotonic()
    for rows in (1, 3, 6):  # the steady pod's is always there
        wait_until("some are prepared", partial(has_rows, stack, rows))
        stack.stop_node(signal.SIGKILL)
        steady.require_limit()
        stack.start_node()
    seconds_until_running(stack, names)
    measured(f"3 x SIGKILL: 8 pods ran {time.monotonic() - started:.1f} s after they were made")


def test_stopped_for_a_minute(stack: Stack, steady: RunningPod, measured: Measured) -> None:
    RunningPod.start(stack, "leaves", 700)
    started = time.monotonic()
    with stopped(stack, "node"):
        stack.cluster.kubectl("delete", "pod", "leaves", "--grace-period=1", "--wait=false")
        names = create(stack, "stopped", 3)
        wait_prepare_failed(stack, names[-1], "DeadlineExceeded", KUBELET_CALL_SECONDS + 15)
        steady.require_untouched()
        time.sleep(max(0.0, started + STOPPED_SECONDS - time.monotonic()))  # the fault itself
    seconds = seconds_until_running(stack, names)
    wait_gone(stack, "leaves")
    measured(f"SIGSTOP for {STOPPED_SECONDS:g} s: pods ran {seconds:.1f} s after SIGCONT")


def test_without_the_api_server_for_two_minutes(
    stack: Stack, steady: RunningPod, measured: Measured
) -> None:
    """Even a node process that starts meanwhile repairs, and lets go of what has ended."""
    cluster = stack.cluster
    ends = RunningPod.start(stack, "ends", 700, restartPolicy="Never")
    dies = RunningPod.start(stack, "dies", 800)
    lost = [stack.cdi_file({"metadata": {"uid": each.claim_uid}}) for each in (steady, dies)]
    contents = [path.read_text() for path in lost]
    started = time.monotonic()
    with away(cluster, "kube-apiserver"):
        stack.stop_node(signal.SIGKILL)
        for path in lost:
            path.unlink()
        cluster.start_again("node", wait=False)
        repaired = wait_until("CDI files are back", lambda: all(p.exists() for p in lost))
        assert [path.read_text() for path in lost] == contents
        wait_reason(stack, "slices: the API server did not take the slices")
        wait_until("registered", lambda: "registered: ok" in stack.readiness(NODE_HEALTH))

        cluster.run(["kill", "-TERM", str(ends.host_pid())])
        unprepared = wait_until(
            "Unprepare of an ended pod", lambda: ends.claim_uid not in stack.ledger_rows()
        )
        assert not any(ends.claim_uid in path.name for path in stack.cdi_files())
        before = running_containers(cluster)
        cluster.run(["kill", "-KILL", str(dies.host_pid())])
        wait_until("a container again", lambda: bool(running_containers(cluster) - before))
        (container,) = running_containers(cluster) - before
        replace(dies, container_id=container).require_limit()
        time.sleep(max(0.0, started + API_AWAY_SECONDS - time.monotonic()))  # the fault itself
        steady.require_limit()
        assert cluster.process_status("node")["exit_status"] is None
    again = wait_ready(stack)
    names = create(stack, "after", 2)
    seconds = seconds_until_running(stack, names, API_BACK_SECONDS)
    measured(
        f"API server away for {API_AWAY_SECONDS:g} s: CDI files back {repaired:.1f} s after the "
        f"node process's start, Unprepare {unprepared:.1f} s after a pod's end; ready "
        f"{again:.1f} s after its return, new pods ran in {seconds:.1f} s"
    )


def test_etcd_away_and_back(stack: Stack, steady: RunningPod, measured: Measured) -> None:
    slices = [item["metadata"]["uid"] for item in stack.slices()]
    RunningPod.start(stack, "leaves", 700)
    with away(stack.cluster, "etcd"):
        time.sleep(ETCD_AWAY_SECONDS)  # the fault itself
        steady.require_limit()
    ready = wait_until("the API server answers", lambda: answers(stack), 60)
    names = create(stack, "after", 2)
    seconds = seconds_until_running(stack, names, API_BACK_SECONDS)
    stack.cluster.kubectl("delete", "pod", "leaves", "--grace-period=1")
    assert [item["metadata"]["uid"] for item in stack.slices()] == slices
    measured(
        f"etcd away for {ETCD_AWAY_SECONDS:g} s: the API server answered after {ready:.1f} s, "
        f"new pods ran in {seconds:.1f} s"
    )


def answers(stack: Stack) -> bool:
    return stack.cluster.kubectl("get", "--raw", "/readyz", check=False) == "ok"


def test_watches_are_cut_by_a_restart_of_the_api_server(stack: Stack, measured: Measured) -> None:
    """What changes after it is seen: the node's annotation, and slices that somebody deletes."""
    cluster = stack.cluster
    cluster.restart("kube-apiserver", signal.SIGKILL)
    started = time.monotonic()
    cluster.kubectl("annotate", "node", stack.node_name, f"{ANNOTATION_DEVICE_CORDON}={A100.uuid}")
    cluster.wait_for_all(
        "resourceslices", lambda _: any(device.get("taints") for device in stack.devices())
    )
    seen = time.monotonic() - started
    cluster.kubectl("annotate", "node", stack.node_name, f"{ANNOTATION_DEVICE_CORDON}-")
    cluster.wait_for_all(
        "resourceslices", lambda _: not any(device.get("taints") for device in stack.devices())
    )
    gap = seconds_after_deletion(stack)
    measured(
        f"API server restarted: a cordon was seen after {seen:.1f} s, deleted slices were back "
        f"after {gap:.2f} s"
    )
    assert gap <= WIPE_SECONDS


def seconds_after_deletion(stack: Stack) -> float:
    with ThreadPoolExecutor(1) as pool:
        gap = pool.submit(seconds_without_slices, stack)
        stack.cluster.kubectl("delete", "resourceslices", "--all")
        return gap.result(timeout=90)


def prepared_at(stack: Stack, running: RunningPod) -> float:
    """Return the wall time at which the node process says that it prepared a pod's claim."""
    written = stack.cluster.logs("node").splitlines()
    lines = [json.loads(line) for line in written if line.startswith("{")]
    (stamp,) = (
        line["timestamp"]
        for line in lines
        if (line["event"], line.get("uid")) == ("prepare", running.claim_uid)
    )
    return datetime.fromisoformat(stamp).timestamp()


def test_the_wall_clock_jumps_by_an_hour(
    stack: Stack, steady: RunningPod, measured: Measured
) -> None:
    """Forwards and back again: nothing of ours expires by it."""
    clock = ShiftedClock(stack)
    stack.stop_node()
    stack.node_environment = clock.environment
    stack.start_node()
    try:
        before = [item["metadata"]["resourceVersion"] for item in stack.slices()]
        for seconds in (HOUR_SECONDS, 0, -HOUR_SECONDS, 0):
            clock.turn(seconds)
            name = f"at{seconds}".replace("-", "-minus-")
            running = RunningPod.start(stack, name, 600)
            running.require_limit()
            steady.require_untouched()
            wait_health(stack, name, "Healthy")
            # Within a minute by the node's own account: the shift has really reached it.
            assert abs(prepared_at(stack, running) - time.time() - seconds) < 60
            stack.cluster.kubectl("delete", "pod", name, "--grace-period=1")
            wait_ready(stack)
            assert [item["metadata"]["resourceVersion"] for item in stack.slices()] == before
        measured("clock +1 h, back, -1 h, back: slices as they were, pods came and went")
    finally:
        stack.stop_node()
        stack.node_environment = {}
        stack.start_node()


def test_kubelet_is_killed_while_pods_come(
    stack: Stack, steady: RunningPod, measured: Measured
) -> None:
    RunningPod.start(stack, "leaves", 700)
    names = create(stack, "during", 6)
    wait_bound(stack, names)
    stack.cluster.kubectl("delete", "pod", "leaves", "--grace-period=1", "--wait=false")
    with ThreadPoolExecutor(1) as pool:
        gap = pool.submit(seconds_without_slices, stack)
        stack.cluster.restart("kubelet", signal.SIGKILL)
        slices = gap.result(timeout=90)
    seconds = seconds_until_running(stack, names)
    wait_gone(stack, "leaves")
    steady.require_untouched()
    measured(
        f"kubelet SIGKILL: slices were gone for {slices:.2f} s, 6 pods ran {seconds:.1f} s later"
    )
    assert slices <= WIPE_SECONDS


def test_containerd_is_killed_during_prepare_and_under_running_pods(
    stack: Stack, steady: RunningPod, measured: Measured
) -> None:
    cluster = stack.cluster
    RunningPod.start(stack, "leaves", 700)
    with stopped(stack, "node"):  # so that Prepare is under way for as long as it takes
        names = create(stack, "during", 3)
        wait_bound(stack, names)
        cluster.kubectl("delete", "pod", "leaves", "--grace-period=1", "--wait=false")
        with away(cluster, "containerd"):
            steady.require_limit()
    seconds = seconds_until_running(stack, names)
    wait_gone(stack, "leaves")
    steady.require_untouched()
    measured(f"containerd SIGKILL in Prepare: 3 pods ran {seconds:.1f} s after its return")


def test_unprepare_is_asked_for_again_by_a_kubelet_that_starts(
    stack: Stack, measured: Measured
) -> None:
    """What it could not have done before its restart, for want of a node process, it has done."""
    leaves = RunningPod.start(stack, "leaves", 700)
    stack.stop_node(signal.SIGKILL)
    stack.cluster.kubectl("delete", "pod", "leaves", "--grace-period=1", "--wait=false")
    wait_until(
        "the container is gone",
        lambda: leaves.container_id not in running_containers(stack.cluster),
    )
    stack.cluster.restart("kubelet", signal.SIGKILL)
    assert leaves.claim_uid in stack.ledger_rows()
    stack.start_node()
    started = time.monotonic()
    stack.cluster.wait_for(
        "pods", "leaves", lambda item: item is None, timeout_seconds=RECONCILE_SECONDS
    )
    wait_consistent(stack)
    measured(f"Unprepare again after a restart of kubelet: {time.monotonic() - started:.1f} s")


def test_a_pod_is_deleted_by_force_while_kubelet_is_away(stack: Stack, measured: Measured) -> None:
    """Nothing but its own checkpoint tells the kubelet of the claim when it is back."""
    leaves = RunningPod.start(stack, "leaves", 700)
    with away(stack.cluster, "kubelet"):
        stack.cluster.kubectl("delete", "pod", "leaves", "--force", "--grace-period=0")
    started = time.monotonic()
    wait_until(
        "its claim is unprepared",
        lambda: leaves.claim_uid not in stack.ledger_rows(),
        RECONCILE_SECONDS,
    )
    wait_consistent(stack)
    measured(f"deleted while kubelet was away: unprepared {time.monotonic() - started:.1f} s later")


def test_health_is_unknown_while_the_node_process_is_away(stack: Stack, measured: Measured) -> None:
    """And the connection that was lost serves health and claims again when it is back."""
    RunningPod.start(stack, "seen", 700)
    wait_health(stack, "seen", "Healthy")
    stack.stop_node(signal.SIGKILL)
    started = time.monotonic()
    wait_health(stack, "seen", "Unknown", timeout_seconds=HEALTH_SECONDS)
    unknown = time.monotonic() - started
    stack.start_node()
    started = time.monotonic()
    wait_health(stack, "seen", "Healthy", timeout_seconds=HEALTH_SECONDS)
    measured(
        f"node process away: health unknown after {unknown:.1f} s, "
        f"known again {time.monotonic() - started:.1f} s after its return"
    )
    seconds_until_running(stack, create(stack, "after", 1))
