"""Cards that must get no new claims, on a real node with a real scheduler."""

from dataclasses import replace
from typing import Any

from hami_dra.contract.names import ANNOTATION_DEVICE_CORDON, TAINT_LOST
from hami_dra.policy.devices import name_device
from hami_dra.testing.simgpu import A100, T4, write_cards
from tests.cluster.manifests import pod, text
from tests.cluster.stack import Stack


def marks(stack: Stack) -> dict[str, list[str]]:
    """Return the keys of the taints by device."""
    return {
        device["name"]: [taint["key"] for taint in device["taints"]]
        for device in stack.devices()
        if device.get("taints")
    }


def wait_marks(stack: Stack, expected: dict[str, list[str]]) -> None:
    stack.cluster.wait_for_all("resourceslices", lambda _: marks(stack) == expected)


def test_a_cordoned_card_gets_no_new_claim_and_keeps_its_pods(stack: Stack) -> None:
    cluster = stack.cluster
    cluster.apply(text(pod("before", gpu=1, gpumem=1000)))
    cluster.wait_pod_running("before")
    (result,) = stack.claim_of("before")["status"]["allocation"]["devices"]["results"]
    uuids = {name_device(card.uuid): card.uuid for card in (A100, T4)}
    cordoned = result["device"]
    (other,) = uuids.keys() - {cordoned}
    annotation = f"{ANNOTATION_DEVICE_CORDON}={uuids[cordoned]}"

    cluster.kubectl("annotate", "node", stack.node_name, annotation)
    wait_marks(stack, {cordoned: [ANNOTATION_DEVICE_CORDON]})
    cluster.apply(text(pod("after", gpu=1, gpumem=1000)))
    cluster.wait_pod_running("after")

    (result,) = stack.claim_of("after")["status"]["allocation"]["devices"]["results"]
    assert result["device"] == other
    assert stack.visible_mib("before") == 1000
    cluster.kubectl("annotate", "node", stack.node_name, f"{ANNOTATION_DEVICE_CORDON}-")
    wait_marks(stack, {})


def wait_health(stack: Stack, name: str, health: str) -> None:
    """Return once kubelet says of every device of a pod that it has this health."""

    def says(item: dict[str, Any] | None) -> bool:
        (container,) = (item or {}).get("status", {}).get("containerStatuses") or [{}]
        resources = [
            resource
            for status in container.get("allocatedResourcesStatus") or ()
            for resource in status.get("resources") or ()
        ]
        return bool(resources) and all(each.get("health") == health for each in resources)

    stack.cluster.wait_for("pods", name, says)


def test_a_card_that_falls_off_the_bus_is_marked_and_returns(stack: Stack) -> None:
    cluster = stack.cluster
    holder = pod("holder", gpu=1, gpumem=1000)
    holder["metadata"]["annotations"] = {"nvidia.com/use-gputype": "T4"}
    cluster.apply(text(holder))
    cluster.wait_pod_running("holder")
    wait_health(stack, "holder", "Healthy")
    try:
        write_cards(stack.driver.sim_dir, (A100, replace(T4, health="lost")))
        wait_marks(stack, {name_device(T4.uuid): [TAINT_LOST]})
        wait_health(stack, "holder", "Unhealthy")
    finally:
        write_cards(stack.driver.sim_dir, (A100, T4))
    wait_marks(stack, {})
    wait_health(stack, "holder", "Healthy")
