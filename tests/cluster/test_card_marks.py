"""Cards that must get no new claims, on a real node with a real scheduler."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from hami_dra.contract.names import ANNOTATION_DEVICE_CORDON, TAINT_LOST, TAINT_RECOVERY, TAINT_XID
from hami_dra.policy.devices import name_device
from hami_dra.testing.simgpu import A100, T4, report_xid, write_cards
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


def healths(container: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a container's status says of each device, under the kubelet's name for it."""
    return [
        resource
        for status in container.get("allocatedResourcesStatus") or ()
        for resource in status.get("resources") or ()
    ]


def wait_health(
    stack: Stack, name: str, health: str, message: str = "", timeout_seconds: float = 30.0
) -> dict[str, Any]:
    """Return a pod once kubelet says of all devices of each container: this health, and why."""

    def says(item: dict[str, Any] | None) -> bool:
        containers = (item or {}).get("status", {}).get("containerStatuses") or ()
        return bool(containers) and all(
            bool(healths(container))
            and all(
                each.get("health") == health and message in (each.get("message") or "")
                for each in healths(container)
            )
            for container in containers
        )

    found = stack.cluster.wait_for("pods", name, says, timeout_seconds=timeout_seconds)
    return found or {}


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


def test_two_shares_of_one_card_have_a_health_each(stack: Stack) -> None:
    """The kubelet knows them by the CDI ids, which differ, and both are as well as their card."""
    cluster = stack.cluster
    both = on_t4("both")
    (first,) = both["spec"]["containers"]
    both["spec"]["containers"].append({**first, "name": "other"})
    cluster.apply(text(both))
    cluster.wait_pod_running("both")
    found = wait_health(stack, "both", "Healthy")
    containers = found["status"]["containerStatuses"]
    names = [each["resourceID"] for container in containers for each in healths(container)]
    assert len(names) == len(set(names)) == 2, names
    try:
        write_cards(stack.driver.sim_dir, (A100, replace(T4, health="lost")))
        wait_health(stack, "both", "Unhealthy")
    finally:
        write_cards(stack.driver.sim_dir, (A100, T4))
    wait_health(stack, "both", "Healthy")


@contextmanager
def configured(stack: Stack, config: dict[str, Any]) -> Iterator[None]:
    """Configure the node plugin for the length of the block."""
    stack.configure_node(config)
    try:
        yield
    finally:
        stack.configure_node({})


def on_t4(name: str) -> dict[str, Any]:
    wanted = pod(name, gpu=1, gpumem=1000)
    wanted["metadata"]["annotations"] = {"nvidia.com/use-gputype": "T4"}
    return wanted


def is_pending(item: dict[str, Any] | None) -> bool:
    """Whether the scheduler has found no place for a pod."""
    return any(
        condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable"
        for condition in (item or {}).get("status", {}).get("conditions") or ()
    )


def test_a_suspected_card_gets_no_new_claim_until_it_was_quiet(stack: Stack) -> None:
    cluster = stack.cluster
    with configured(stack, {"health": {"quietSeconds": 3600}}):
        cluster.apply(text(on_t4("holder")))
        cluster.wait_pod_running("holder")
        report_xid(stack.driver.sim_dir, T4, 13)
        report_xid(stack.driver.sim_dir, T4, 74)
        wait_marks(stack, {name_device(T4.uuid): [TAINT_XID]})
        wait_health(stack, "holder", "Unhealthy", "XID 74")
        cluster.apply(text(on_t4("late")))
        cluster.wait_for("pods", "late", is_pending)
        assert stack.visible_mib("holder") == 1000

        stack.configure_node({"health": {"quietSeconds": 0}})
        wait_marks(stack, {})
        cluster.wait_pod_running("late")
        wait_health(stack, "holder", "Healthy")


def test_a_card_that_needs_a_reset_loses_its_pods_if_the_operator_says_so(stack: Stack) -> None:
    cluster = stack.cluster
    with configured(stack, {"health": {"fatalEffect": "NoExecute", "quietSeconds": 1}}):
        cluster.apply(text(on_t4("victim")))
        cluster.wait_pod_running("victim")
        try:
            write_cards(stack.driver.sim_dir, (A100, replace(T4, recovery_action=1)))
            report_xid(stack.driver.sim_dir, T4, 79)
            wait_marks(stack, {name_device(T4.uuid): [TAINT_RECOVERY, TAINT_XID]})
            cluster.wait_for("pods", "victim", lambda item: item is None)
        finally:
            write_cards(stack.driver.sim_dir, (A100, T4))
        wait_marks(stack, {})
        cluster.apply(text(on_t4("heir")))
        cluster.wait_pod_running("heir")


def test_a_card_that_hangs_leaves_the_other_one_to_work(stack: Stack) -> None:
    cluster = stack.cluster
    try:
        write_cards(stack.driver.sim_dir, (A100, replace(T4, hangs=True)))
        wait_marks(stack, {name_device(T4.uuid): [TAINT_LOST]})
        cluster.apply(text(pod("works", gpu=1, gpumem=1000)))
        cluster.wait_pod_running("works")
    finally:
        write_cards(stack.driver.sim_dir, (A100, T4))
    wait_marks(stack, {})


def test_a_changed_configuration_reaches_the_scheduler(stack: Stack) -> None:
    cluster = stack.cluster
    hidden = {"filterdevices": {"cel": [f"device.attributes[device.driver].uuid == '{T4.uuid}'"]}}
    node = {"name": stack.node_name, "devicememoryscaling": 2, **hidden}
    with configured(stack, {"nvidia": {"deviceSplitCount": 3}, "nodeconfig": [node]}):

        def published() -> dict[str, tuple[str, str]]:
            return {
                device["name"]: (
                    device["capacity"]["memory"]["value"],
                    device["capacity"]["slots"]["value"],
                )
                for device in stack.devices()
            }

        wanted = {name_device(A100.uuid): ("80Gi", "3")}
        cluster.wait_for_all("resourceslices", lambda _: published() == wanted)
        cluster.apply(text(pod("large", gpu=1, gpumem=60000)))
        cluster.wait_pod_running("large")
        # More than the card has is not there to be seen.
        assert stack.visible_mib("large") == A100.memory_mib
        stack.configure_node({})
        cluster.wait_for_all("resourceslices", lambda _: len(published()) == 2)
        assert published()[name_device(A100.uuid)] == ("40Gi", "10")
        assert stack.visible_mib("large") == A100.memory_mib
