"""Whole cards without admission: the scheduler reads ``nvidia.com/gpu`` itself."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from hami_dra.contract.names import DEVICE_CLASS, DEVICE_CLASS_MIG, DRIVER_NAME, RESOURCE_GPU
from hami_dra.testing.simgpu import A100, T4
from tests.cluster.cluster import Cluster
from tests.cluster.errors import CommandError
from tests.cluster.manifests import pod, text
from tests.cluster.stack import Stack

SIZES_MIB = {A100.memory_mib, T4.memory_mib}


@pytest.fixture(scope="module")
def stack(cluster: Cluster) -> Iterator[Stack]:
    """Install hami-dra, whole cards left to the scheduler."""
    installed = Stack.install(cluster, (A100, T4), {"nativeWholeCards": True})
    yield installed
    print(installed.cluster.logs("node")[-4000:])
    print(installed.cluster.logs("webhook")[-4000:])


def _claim(stack: Stack, name: str) -> dict[str, Any]:
    """Return the claim that the scheduler made for a pod."""
    claim = stack.claim_of(name)
    marks = claim["metadata"]["annotations"]
    assert marks["resource.kubernetes.io/extended-resource-claim"] == "true"
    return claim


def test_a_whole_card_is_allocated_and_prepared_for_an_untouched_pod(stack: Stack) -> None:
    cluster = stack.cluster
    offered = {
        item["metadata"]["name"]: item["spec"].get("extendedResourceName")
        for item in cluster.api.items("deviceclasses")
    }
    assert offered == {DEVICE_CLASS: RESOURCE_GPU, DEVICE_CLASS_MIG: None}

    cluster.apply(text(pod("whole", gpu=1)))
    cluster.wait_pod_running("whole")
    stored = cluster.kubectl_json("get", "pod", "whole")
    assert stored["spec"]["containers"][0]["resources"]["limits"] == {RESOURCE_GPU: "1"}
    assert not stored["spec"].get("resourceClaims")
    assert cluster.api.items("resourceclaimtemplates") == []

    (result,) = _claim(stack, "whole")["status"]["allocation"]["devices"]["results"]
    assert result["driver"] == DRIVER_NAME
    consumed = result["consumedCapacity"]
    assert (consumed["cores"], consumed["slots"]) == ("100", "1")
    size = stack.visible_mib("whole")
    assert size in SIZES_MIB
    assert consumed["memory"] == f"{size // 1024}Gi"

    # Nobody else comes onto that card: what is left is the other one.
    cluster.apply(text(pod("part", gpumem=1000), pod("too-much", gpu=2)))
    cluster.wait_pod_running("part")
    (other,) = stack.claim_of("part")["status"]["allocation"]["devices"]["results"]
    assert other["device"] != result["device"]
    assert stack.visible_mib("part") == 1000
    cluster.wait_for_all(
        "events",
        lambda items: any(
            item["reason"] == "FailedScheduling" and item["involvedObject"]["name"] == "too-much"
            for item in items
        ),
        namespace="default",
    )


def test_two_whole_cards_are_two_different_ones(stack: Stack) -> None:
    stack.cluster.apply(text(pod("both", gpu=2)))
    stack.cluster.wait_pod_running("both")
    results = _claim(stack, "both")["status"]["allocation"]["devices"]["results"]
    assert len({result["device"] for result in results}) == 2
    assert set(stack.all_visible_mib("both")) == SIZES_MIB


def test_a_wish_brings_the_pod_to_admission(stack: Stack) -> None:
    wish = pod("tesla", gpu=1)
    wish["metadata"]["annotations"] = {"nvidia.com/use-gputype": "tesla"}
    named = pod("named", gpu=1)
    named["spec"]["schedulerName"] = "hami-scheduler"
    stack.cluster.apply(text(wish, named))
    for name, sizes in (("tesla", {T4.memory_mib}), ("named", SIZES_MIB)):
        stack.cluster.wait_pod_running(name)
        assert stack.visible_mib(name) in sizes
        stored = stack.cluster.kubectl_json("get", "pod", name)
        assert stored["spec"]["resourceClaims"][0]["name"] == "hami-gpu"
        assert stored["spec"]["schedulerName"] == "default-scheduler"


def test_whole_cards_need_no_webhook_and_parts_do(stack: Stack) -> None:
    cluster = stack.cluster
    cluster.stop_process("webhook")
    cluster.apply(text(pod("alone", gpu=1)))
    cluster.wait_pod_running("alone")
    with pytest.raises(CommandError, match=r"failed calling webhook .pods\.gpu"):
        cluster.apply(text(pod("needs-us", gpumem=1000)))
    # What admission would have refused, it does not see.
    privileged = pod("privileged", gpu=1)
    privileged["spec"]["containers"][0]["securityContext"] = {"privileged": True}
    said = json.dumps(privileged)
    assert "created" in cluster.kubectl("create", "--dry-run=server", "-f", "-", input=said)
