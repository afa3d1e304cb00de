"""What Kubernetes' own suites ask of a DRA driver and nothing else here tests.

docs/reference/conformance.md has the whole list. Each test is about what the driver contributes;
that kubelet and the control plane do their part is theirs to test.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hami_dra.contract.names import CONTAINER_GRANTS_DIR, DEVICE_CLASS, DRIVER_NAME
from tests.cluster.faults import wait_consistent
from tests.cluster.manifests import claim, pod, pod_with_claim, text

if TYPE_CHECKING:
    from tests.cluster.stack import Stack

Object = dict[str, Any]


def grants(stack: Stack, name: str, container: str) -> set[str]:
    """Return the requests whose grants a container sees."""
    listed = f"for each in {CONTAINER_GRANTS_DIR}/*; do echo $each; done"
    done = stack.cluster.exec(name, "sh", "-c", listed, container=container)
    return {line.rpartition("_")[2] for line in done.stdout.split() if "_" in line}


def wait_nothing_left(stack: Stack) -> None:
    """Return once nothing of any claim is on the node.

    The kubelet unprepares before the last pod of a claim leaves the API server, but not when that
    pod was deleted by force: nothing there tells when it is done then, so the node is asked.
    """
    stack.cluster.wait_for_all("resourceclaims", lambda items: not items)
    wait_consistent(stack)


def test_a_claim_that_no_container_uses_is_prepared_and_gives_nobody_a_card(stack: Stack) -> None:
    cluster = stack.cluster
    body = pod_with_claim("unused", "idle")
    body["spec"]["containers"][0] |= {"command": ["sleep", "3600"], "resources": {}}
    cluster.apply(text(claim("idle", memory="1Gi", cores="0", slots="1"), body))
    cluster.wait_pod_running("unused")

    assert len(stack.ledger_rows()) == 1
    assert grants(stack, "unused", "main") == set()
    mounted = cluster.exec("unused", "cat", "/proc/self/mountinfo").stdout
    assert "vgpu" not in mounted

    cluster.kubectl("delete", "pod", "unused", "--wait", "--grace-period=1")
    cluster.kubectl("delete", "resourceclaim", "idle")
    wait_nothing_left(stack)


def test_requests_reach_the_containers_that_name_them(stack: Stack) -> None:
    """One names a request, the next another, the third the whole claim, the last one nothing."""
    cluster = stack.cluster
    shared = claim("several", memory="1Gi", cores="0", slots="1")
    (first,) = shared["spec"]["devices"]["requests"]
    shared["spec"]["devices"]["requests"] = [{**first, "name": name} for name in ("one", "other")]
    body = pod("mapped")
    body["spec"]["resourceClaims"] = [{"name": "gpu", "resourceClaimName": "several"}]
    (main,) = body["spec"]["containers"]
    uses: dict[str, list[Object]] = {
        "a": [{"name": "gpu", "request": "one"}],
        "b": [{"name": "gpu", "request": "other"}],
        "both": [{"name": "gpu"}],
        "none": [],
    }
    body["spec"]["containers"] = [
        {**main, "name": name, "command": ["sleep", "3600"], "resources": {"claims": claims}}
        for name, claims in uses.items()
    ]
    cluster.apply(text(shared, body))
    cluster.wait_pod_running("mapped")

    assert {name: grants(stack, "mapped", name) for name in uses} == {
        "a": {"one"},
        "b": {"other"},
        "both": {"one", "other"},
        "none": set(),
    }

    cluster.kubectl("delete", "pod", "mapped", "--wait", "--grace-period=1")
    cluster.kubectl("delete", "resourceclaim", "several")
    wait_nothing_left(stack)


def test_a_pod_that_came_before_the_driver_runs_once_it_is_there(stack: Stack) -> None:
    cluster = stack.cluster
    stack.stop_node()
    cluster.apply(text(pod("early", gpu=1, gpumem=1000)))
    cluster.wait_for("pods", "early", lambda item: bool(item and item["spec"].get("nodeName")))
    stack.start_node()
    # kubelet asks again 60 to 90 s after it found no driver.
    cluster.wait_pod_running("early", timeout_seconds=150.0)
    assert stack.visible_mib("early") == 1000
    cluster.kubectl("delete", "pod", "early", "--wait")
    wait_nothing_left(stack)


def test_a_claim_of_a_pod_that_was_deleted_by_force_is_unprepared_and_used_again(
    stack: Stack,
) -> None:
    cluster = stack.cluster
    cluster.apply(
        text(claim("kept", memory="1Gi", cores="0", slots="1"), pod_with_claim("first", "kept"))
    )
    cluster.wait_pod_running("first")
    cluster.kubectl("delete", "pod", "first", "--force", "--grace-period=0")
    cluster.apply(text(pod_with_claim("second", "kept")))
    cluster.wait_pod_running("second", timeout_seconds=150.0)
    assert stack.visible_mib("second") == 1024
    cluster.kubectl("delete", "pod", "second", "--wait")
    cluster.kubectl("delete", "resourceclaim", "kept")
    wait_nothing_left(stack)


def test_a_pod_may_have_a_claim_that_is_in_use_and_a_new_one(stack: Stack) -> None:
    """Kubelet asks for the new one alone, and for both in one container."""
    cluster = stack.cluster
    names = ("in-use", "new")
    claims = [claim(name, memory="1Gi", cores="0", slots="1") for name in names]
    both = pod("both-claims")
    both["spec"]["resourceClaims"] = [{"name": name, "resourceClaimName": name} for name in names]
    both["spec"]["containers"][0]["resources"] = {
        "claims": [{"name": name, "request": "gpu"} for name in names]
    }
    cluster.apply(text(*claims, pod_with_claim("holds", "in-use")))
    cluster.wait_pod_running("holds")
    cluster.apply(text(both))
    cluster.wait_pod_running("both-claims")
    assert stack.visible_mib("both-claims") == 2048
    cluster.kubectl("delete", "pod", "both-claims", "--wait")
    assert stack.visible_mib("holds") == 1024
    cluster.kubectl("delete", "pod", "holds", "--wait")
    cluster.kubectl("delete", "resourceclaim", *names)
    wait_nothing_left(stack)


def test_a_pod_that_is_done_frees_its_card_while_it_is_kept(stack: Stack) -> None:
    cluster = stack.cluster
    body = pod("done", gpu=1)
    body["spec"]["containers"][0]["command"] = ["true"]
    body["spec"]["restartPolicy"] = "Never"
    cluster.apply(text(body))
    cluster.wait_for(
        "pods", "done", lambda item: bool(item and item["status"].get("phase") == "Succeeded")
    )
    wait_nothing_left(stack)
    cluster.kubectl("delete", "pod", "done", "--wait")


def test_a_claim_stays_while_its_containers_restart(stack: Stack) -> None:
    cluster = stack.cluster
    body = pod("again", gpu=1, gpumem=1000)
    body["spec"]["containers"][0]["command"] = ["sh", "-c", "sleep 1; exit 1"]
    cluster.apply(text(body))
    uid = ""

    def restarted(item: Object | None) -> bool:
        statuses = (item or {}).get("status", {}).get("containerStatuses") or ()
        return any(each["restartCount"] >= 2 for each in statuses)

    cluster.wait_pod_started("again")
    uid = stack.claim_of("again")["metadata"]["uid"]
    cluster.wait_for("pods", "again", restarted, timeout_seconds=90.0)
    assert stack.claim_of("again")["metadata"]["uid"] == uid
    assert stack.ledger_rows() == [uid]
    cluster.kubectl("delete", "pod", "again", "--wait", "--grace-period=1")
    wait_nothing_left(stack)


def test_a_daemon_with_admin_access_sees_all_cards_beside_their_users(stack: Stack) -> None:
    cluster = stack.cluster
    label = "resource.kubernetes.io/admin-access=true"
    cluster.kubectl("label", "namespace", "default", label)
    ask = {
        "deviceClassName": DEVICE_CLASS,
        "allocationMode": "All",
        "adminAccess": True,
        "capacity": {"requests": {"memory": "0", "cores": "0", "slots": "0"}},
    }
    template = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": {"name": "all-cards", "namespace": "default"},
        "spec": {"spec": {"devices": {"requests": [{"name": "gpu", "exactly": ask}]}}},
    }
    watcher = pod_with_claim("watcher", "")
    watcher["spec"]["resourceClaims"] = [{"name": "gpu", "resourceClaimTemplateName": "all-cards"}]
    watcher["spec"]["containers"][0]["command"] = ["sleep", "3600"]
    labels = {"app": "watcher"}
    daemon = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "watcher", "namespace": "default"},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": watcher["spec"]},
        },
    }
    try:
        cluster.apply(text(pod("user", gpu=1)))
        cluster.wait_pod_running("user")
        cluster.apply(text(template, daemon))

        def runs(items: list[Object]) -> bool:
            return any(
                item["metadata"].get("labels") == {**item["metadata"]["labels"], **labels}
                and item["status"].get("phase") == "Running"
                for item in items
                if item["metadata"].get("labels")
            )

        pods = cluster.wait_for_all("pods", runs, "default", 60.0)
        name = next(item["metadata"]["name"] for item in pods if item["metadata"]["name"] != "user")
        sizes = stack.all_visible_mib(name)
        assert len(sizes) == len(stack.host_cards())
        assert grants(stack, name, "main") == set()
    finally:
        cluster.kubectl("delete", "daemonset", "watcher", "--ignore-not-found", "--wait")
        cluster.kubectl("delete", "resourceclaimtemplate", "all-cards", "--ignore-not-found")
        cluster.kubectl("label", "namespace", "default", "resource.kubernetes.io/admin-access-")
        cluster.kubectl("delete", "pod", "user", "--ignore-not-found", "--wait")
    wait_nothing_left(stack)


def test_an_administrators_rule_evicts_who_holds_the_card(stack: Stack) -> None:
    cluster = stack.cluster
    cluster.apply(text(pod("evicted", gpu=1, gpumem=1000)))
    cluster.wait_pod_running("evicted")
    (result,) = stack.claim_of("evicted")["status"]["allocation"]["devices"]["results"]
    rule = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "DeviceTaintRule",
        "metadata": {"name": "out"},
        "spec": {
            "deviceSelector": {key: result[key] for key in ("driver", "pool", "device")},
            "taint": {"key": "example.com/out", "value": "service", "effect": "NoExecute"},
        },
    }
    assert result["driver"] == DRIVER_NAME
    try:
        cluster.apply(json.dumps(rule))
        cluster.wait_for("pods", "evicted", lambda item: item is None, timeout_seconds=60.0)
        wait_nothing_left(stack)
    finally:
        cluster.kubectl("delete", "devicetaintrule", "out", "--ignore-not-found")
