"""What is promised survives crashes and restarts of the node plugin and of kubelet."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from hami_dra.contract.names import DRIVER_NAME
from tests.cluster.manifests import pod, text
from tests.cluster.stack import Stack

WIPE_SECONDS = 2.0


def ours(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [item for item in items if item["spec"]["driver"] == DRIVER_NAME]


def seconds_without_slices(stack: Stack) -> float:
    """Wait for a wipe and return how long it took until complete slices were back."""
    cluster = stack.cluster
    cluster.wait_for_all("resourceslices", lambda items: not ours(items), timeout_seconds=60)
    wiped = time.monotonic()
    cluster.wait_for_all(
        "resourceslices", lambda items: any(item["spec"].get("devices") for item in ours(items))
    )
    return time.monotonic() - wiped


def container_of(stack: Stack, name: str) -> tuple[str, int]:
    found = stack.cluster.kubectl_json("get", "pod", name)
    status = found["status"]["containerStatuses"][0]
    return status["containerID"], status["restartCount"]


def test_pods_run_although_the_node_plugin_was_killed_while_preparing_them(stack: Stack) -> None:
    cluster = stack.cluster
    steps = ("ledger-intent", "cdi")
    stack.stop_node()
    for step in steps:
        stack.start_node(crash_at=step)
        cluster.apply(text(pod(f"crash-{step}", gpu=1, gpumem=1000)))
        assert stack.wait_node_ended()["exit_status"] == -signal.SIGKILL
        uid = stack.claim_of(f"crash-{step}")["metadata"]["uid"]
        assert uid in stack.ledger_rows(), "the crash has to come after the intent is recorded"
    assert len(stack.cdi_files()) == 1, "only the second crash came after its CDI file"
    stack.start_node()

    # kubelet asks again at a pod's next resync, 60 to 90 s after the failed call.
    for step in steps:
        cluster.wait_pod_running(f"crash-{step}", timeout_seconds=150)
        assert stack.visible_mib(f"crash-{step}") == 1000
    cluster.kubectl("delete", "pod", *(f"crash-{step}" for step in steps), "--wait")
    cluster.wait_for_all("resourceclaims", lambda items: not items)
    assert stack.leftovers().none


def test_a_restart_of_kubelet_wipes_the_slices_and_they_are_back_within_two_seconds(
    stack: Stack,
) -> None:
    cluster = stack.cluster
    cluster.apply(text(pod("stays", gpu=1, gpumem=3000)))
    cluster.wait_pod_running("stays")
    before = container_of(stack, "stays")

    with ThreadPoolExecutor(1) as pool:
        gap = pool.submit(seconds_without_slices, stack)
        cluster.restart("kubelet")
        seconds = gap.result(timeout=90)
    print(f"slices were gone for {seconds:.2f} s")

    assert seconds <= WIPE_SECONDS
    stack.wait_exec("stays")
    assert container_of(stack, "stays") == before
    assert stack.visible_mib("stays") == 3000
    cluster.kubectl("delete", "pod", "stays", "--wait")


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_of_the_node_plugin_leaves_pods_alone_and_serves_new_ones(
    stack: Stack, sig: signal.Signals
) -> None:
    cluster = stack.cluster
    cluster.apply(text(pod("old", gpu=1, gpumem=3000)))
    cluster.wait_pod_running("old")
    before = container_of(stack, "old")

    stack.stop_node(sig)
    assert stack.visible_mib("old") == 3000
    stack.start_node()
    cluster.apply(text(pod("new", gpu=1, gpumem=2000)))
    cluster.wait_pod_running("new")

    assert container_of(stack, "old") == before
    assert stack.visible_mib("old") == 3000
    assert stack.visible_mib("new") == 2000
    cluster.kubectl("delete", "pod", "old", "new", "--wait")
    cluster.wait_for_all("resourceclaims", lambda items: not items)
    assert stack.leftovers().none


def test_lost_cdi_files_are_made_again_at_the_start(stack: Stack) -> None:
    cluster = stack.cluster
    cluster.apply(text(pod("keeps", gpu=1, gpumem=3000)))
    cluster.wait_pod_running("keeps")
    path = stack.cdi_file(stack.claim_of("keeps"))
    content = path.read_text()

    stack.stop_node()
    path.unlink()
    stack.start_node()

    assert path.read_text() == content
    cluster.kubectl("delete", "pod", "keeps", "--wait")
