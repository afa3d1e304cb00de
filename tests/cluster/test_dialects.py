"""Other dialects' pods on a real node: what their containers see, and what holds them."""

import json
from typing import Any

import pytest

from hami_dra.testing.simgpu import A100, T4
from tests.cluster.cluster import Cluster
from tests.cluster.manifests import HELD_MIB, IMAGE, text
from tests.cluster.stack import Stack

_SETTINGS = {"dialects": ["hami", "kai", "koordinator", "gpushare"]}


@pytest.fixture(scope="module")
def stack(cluster: Cluster) -> Stack:
    """Return an installation that understands the dialects."""
    return Stack.install(cluster, [A100, T4], _SETTINGS)


def _pod(
    name: str, containers: dict[str, dict[str, str]], annotations: dict[str, str] | None = None
) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations or {}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": container,
                    "image": IMAGE,
                    "command": ["cuprobe", "hold", str(HELD_MIB)],
                    "resources": {"limits": limits},
                }
                for container, limits in containers.items()
            ],
        },
    }


def _allocate(stack: Stack, name: str, container: str, mib: int) -> str:
    done = stack.cluster.exec(name, "cuprobe", "alloc", "--json", str(mib), container=container)
    return str(json.loads(done.stdout)["allocations"][0]["result"])


def test_a_fraction_finer_than_a_percent_is_held(stack: Stack) -> None:
    stack.cluster.apply(text(_pod("kai", {"main": {}}, {"gpu-fraction": "0.125"})))
    stack.cluster.wait_pod_running("kai")
    # An eighth of the smaller card.
    assert stack.visible_mib("kai") == 2048
    assert _allocate(stack, "kai", "main", 2048 - HELD_MIB) == "CUDA_SUCCESS"
    assert _allocate(stack, "kai", "main", 2049 - HELD_MIB) == "CUDA_ERROR_OUT_OF_MEMORY"
    stack.cluster.kubectl("delete", "pod", "kai", "--wait")


def test_koordinators_containers_have_one_budget(stack: Stack) -> None:
    key = "koordinator.sh/gpu-memory"
    stack.cluster.apply(text(_pod("koordinator", {"a": {key: "1Gi"}, "b": {key: "3Gi"}})))
    stack.cluster.wait_pod_running("koordinator")
    # Each container holds 2 MiB of the same 4096.
    left = 4096 - 2 * HELD_MIB
    for container in ("a", "b"):
        assert _allocate(stack, "koordinator", container, left) == "CUDA_SUCCESS"
        assert _allocate(stack, "koordinator", container, left + 1) == "CUDA_ERROR_OUT_OF_MEMORY"
    stack.cluster.kubectl("delete", "pod", "koordinator", "--wait")


def test_gpushares_containers_are_on_one_card_with_a_limit_each(stack: Stack) -> None:
    key = "aliyun.com/gpu-mem"
    stack.cluster.apply(text(_pod("gpushare", {"a": {key: "1"}, "b": {key: "3"}})))
    stack.cluster.wait_pod_running("gpushare")
    results = stack.claim_of("gpushare")["status"]["allocation"]["devices"]["results"]
    assert len({result["device"] for result in results}) == 1
    assert len(results) == 2
    for container, mib in (("a", 1024), ("b", 3072)):
        left = mib - HELD_MIB
        assert _allocate(stack, "gpushare", container, left) == "CUDA_SUCCESS"
        assert _allocate(stack, "gpushare", container, left + 1) == "CUDA_ERROR_OUT_OF_MEMORY"
    stack.cluster.kubectl("delete", "pod", "gpushare", "--wait")
    stack.cluster.wait_for_all("resourceclaims", lambda items: not items)
    assert stack.leftovers().none
