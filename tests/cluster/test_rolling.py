"""An update of the node plugin with two versions beside each other, as maxSurge makes it.

Kubelet, runtime and API server are the real ones. The two instances are processes with pod UIDs of
their own on one data directory, started, made ready and ended in the DaemonSet controller's order.
"""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any

import pytest

from hami_dra.contract.names import DRIVER_NAME
from hami_dra.testing.nextversion import ATTRIBUTE
from tests.cluster.manifests import pod, text
from tests.cluster.rolling import BROKEN, NEXT, OLD, Instances, instances_in_turn, prepare_failures
from tests.cluster.stack import Stack
from tests.cluster.test_recovery import container_of, ours

WATCH_SECONDS = 240.0

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def instances(stack: Stack) -> Iterator[Instances]:
    """Let instances take the place of the only node plugin, for the length of a test."""
    with instances_in_turn(stack) as started:
        yield started


@contextmanager
def watched_slices(stack: Stack) -> Iterator[list[list[bool]]]:
    """Note every state of our slices: for each, whether its cards are the next version's."""
    states: list[list[bool]] = []
    enough = Event()

    def note(items: list[dict[str, Any]]) -> bool:
        state = [
            ATTRIBUTE in item["spec"]["devices"][0]["attributes"]
            for item in ours(items)
            if item["spec"].get("devices")
        ]
        if not states or states[-1] != state:
            states.append(state)
        return enough.is_set()

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(
            stack.cluster.wait_for_all, "resourceslices", note, timeout_seconds=WATCH_SECONDS
        )
        try:
            yield states
        finally:
            enough.set()
            # The watch ends with the next change, which this makes.
            stack.touch_slice()
            watching.result(timeout=30)


def run_pod(stack: Stack, name: str) -> tuple[str, int]:
    stack.cluster.apply(text(pod(name, gpu=1, gpumem=1000)))
    stack.cluster.wait_pod_running(name)
    assert stack.visible_mib(name) == 1000
    return container_of(stack, name)


def sockets(stack: Stack) -> list[str]:
    registry = stack.cluster.kubelet_directory / "plugins_registry"
    return sorted(path.name for path in registry.iterdir() if path.name.startswith(DRIVER_NAME))


def test_an_update_and_its_undoing_disturb_no_pod(stack: Stack, instances: Instances) -> None:
    instances.start("node-old", OLD)
    instances.wait_published(by_next=False)
    with watched_slices(stack) as states:
        pods = {"before": run_pod(stack, "before")}
        instances.start("node-next", NEXT)
        instances.wait_published(by_next=True)
        pods["during"] = run_pod(stack, "during")
        assert len(sockets(stack)) == 2
        instances.stop("node-old")
        pods["after"] = run_pod(stack, "after")
        assert len(sockets(stack)) == 1

        instances.start("node-undone", OLD)
        instances.wait_published(by_next=False)
        pods["undoing"] = run_pod(stack, "undoing")
        instances.stop("node-next", signal.SIGKILL)
        pods["undone"] = run_pod(stack, "undone")
        assert {name: container_of(stack, name) for name in pods} == pods
        # Each was prepared by one of three instances, and ends with the last.
        stack.cluster.kubectl("delete", "pod", *pods, "--wait", "--grace-period=1")
        stack.cluster.wait_for_all("resourceclaims", lambda items: not items)

    assert states == [[False], [True], [False]], "no moment without slices, no going to and fro"
    assert prepare_failures(stack) == []
    assert stack.leftovers().none


def test_an_update_to_a_version_that_fails_disturbs_nothing(
    stack: Stack, instances: Instances
) -> None:
    instances.start("node-good", OLD)
    instances.wait_published(by_next=False)
    with watched_slices(stack) as states:
        before = run_pod(stack, "before")
        for attempt in range(2):  # kubelet starts the container again
            instances.start(f"node-broken-{attempt}", BROKEN, ready=False)
            ended = stack.cluster.wait_process_ended(f"node-broken-{attempt}")
            assert ended["exit_status"] != 0
        run_pod(stack, "after")
        assert container_of(stack, "before") == before
        stack.cluster.kubectl("delete", "pod", "before", "after", "--wait", "--grace-period=1")
        stack.cluster.wait_for_all("resourceclaims", lambda items: not items)

    assert states == [[False]]
    assert len(sockets(stack)) == 1
    assert prepare_failures(stack) == []
    assert stack.leftovers().none


def test_one_after_the_other_keeps_the_slices(stack: Stack, instances: Instances) -> None:
    """As maxUnavailable does it; kubelet takes the slices away only after 30 s."""
    instances.start("node-first", OLD)
    instances.wait_published(by_next=False)
    with watched_slices(stack) as states:
        before = run_pod(stack, "before")
        instances.stop("node-first")
        stopped = time.monotonic()
        instances.start("node-second", NEXT)
        instances.wait_published(by_next=True)
        print(f"the plugin was away for {time.monotonic() - stopped:.2f} s")
        run_pod(stack, "after")
        assert container_of(stack, "before") == before
        stack.cluster.kubectl("delete", "pod", "before", "after", "--wait", "--grace-period=1")
        stack.cluster.wait_for_all("resourceclaims", lambda items: not items)

    assert states == [[False], [True]]
    assert prepare_failures(stack) == []
    assert stack.leftovers().none
