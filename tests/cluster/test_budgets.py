"""Every grant has its own budget, the driver's part included, and the figures are NVML's.

One card, whose contexts take memory as real ones do.
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hami_dra.testing.simgpu import A100
from tests.cluster.cluster import Cluster
from tests.cluster.manifests import claim, pod, pod_with_claim, text
from tests.cluster.stack import NODE_HEALTH, Stack

CONTEXT_MIB = 50
SETTLE_SECONDS = 20.0
"""Two readings a second apart, on a machine that does other things besides."""
MIB = 1 << 20


@pytest.fixture(scope="module")
def stack(cluster: Cluster) -> Iterator[Stack]:
    """Install hami-dra with one card."""
    installed = Stack.install(cluster, (replace(A100, context_overhead_mib=CONTEXT_MIB),))
    yield installed
    print(installed.cluster.logs("node")[-4000:])


@dataclass(frozen=True)
class Budget:
    """What the node says of one share, in MiB."""

    limit: int
    charged: int
    overhead: int
    used: int


def read_budgets(stack: Stack) -> dict[str, Budget]:
    """Return what the node's metrics say, by claim and request."""
    found: dict[str, dict[str, int]] = {}
    for family in text_string_to_metric_families(stack.metrics(NODE_HEALTH)):
        if family.name.startswith("hami_dra_share_memory_"):
            field = family.name.removeprefix("hami_dra_share_memory_").removesuffix("_bytes")
            for sample in family.samples:
                share = f"{sample.labels['claim']}/{sample.labels['request']}"
                found.setdefault(share, {})[field] = int(sample.value) // MIB
    return {
        share: Budget(*(fields.get(name, 0) for name in ("limit", "charged", "overhead", "used")))
        for share, fields in found.items()
    }


def wait_budgets(stack: Stack, wanted: Mapping[str, Budget]) -> None:
    """Return once the node says this of shares, by the beginning of their names."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        found = read_budgets(stack)
        chosen = {
            prefix: [budget for share, budget in found.items() if share.startswith(prefix)]
            for prefix in wanted
        }
        if chosen == {prefix: [budget] for prefix, budget in wanted.items()}:
            break
        assert time.monotonic() < deadline, found
        time.sleep(0.5)  # figures of another process
    assert sum(budget.used for budget in found.values()) == stack.host_used_mib()


def allocate(stack: Stack, name: str, mib: int, *, container: str = "main") -> str:
    done = stack.cluster.exec(name, "cuprobe", "alloc", "--json", str(mib), container=container)
    return str(json.loads(done.stdout)["allocations"][0]["result"])


def holding(body: dict[str, Any], mib: int) -> dict[str, Any]:
    body["spec"]["containers"][0]["command"] = ["cuprobe", "hold", str(mib)]
    return body


def test_two_containers_of_one_claim_have_a_budget_each(stack: Stack) -> None:
    body = holding(pod("two-boxes", gpu=1, gpumem=1000), 600)
    (first,) = body["spec"]["containers"]
    second = {
        **first,
        "name": "second",
        "command": ["cuprobe", "hold", "1500"],
        "resources": {"limits": {"nvidia.com/gpumem": 2000}},
    }
    body["spec"]["containers"].append(second)
    stack.cluster.apply(text(body))
    stack.cluster.wait_pod_running("two-boxes")
    requests = [
        item["request"]
        for item in stack.claim_of("two-boxes")["status"]["allocation"]["devices"]["results"]
    ]
    assert len(requests) == 2
    name = stack.claim_of("two-boxes")["metadata"]["name"]

    wait_budgets(
        stack,
        {
            f"{name}/{requests[0]}": Budget(1000, 600, CONTEXT_MIB, 600 + CONTEXT_MIB),
            f"{name}/{requests[1]}": Budget(2000, 1500, CONTEXT_MIB, 1500 + CONTEXT_MIB),
        },
    )
    assert allocate(stack, "two-boxes", 350, container="main") == "CUDA_SUCCESS"
    assert allocate(stack, "two-boxes", 351, container="main") == "CUDA_ERROR_OUT_OF_MEMORY"
    assert allocate(stack, "two-boxes", 450, container="second") == "CUDA_SUCCESS"
    assert allocate(stack, "two-boxes", 451, container="second") == "CUDA_ERROR_OUT_OF_MEMORY"


def test_two_claims_in_one_container_are_one_budget_and_two_figures(stack: Stack) -> None:
    held = 2100  # more than either grants
    body = holding(pod("two-claims", gpu=0), held)
    body["spec"]["resourceClaims"] = [
        {"name": name, "resourceClaimName": name} for name in ("one", "other")
    ]
    body["spec"]["containers"][0]["resources"] = {
        "claims": [{"name": name, "request": "gpu"} for name in ("one", "other")]
    }
    stack.cluster.apply(
        text(
            claim("one", memory="1Gi", cores="0", slots="1"),
            claim("other", memory="2Gi", cores="0", slots="1"),
            body,
        )
    )
    stack.cluster.wait_pod_running("two-claims")
    uids = {item["metadata"]["name"]: item["metadata"]["uid"] for item in stack.claims()}
    limits = {"one": 1024, "other": 2048}
    # libvgpu fills the grants in the order of their names; the driver's part goes to the last.
    first, last = sorted(limits, key=lambda name: uids[name])
    full, rest = limits[first], held - limits[first]

    wait_budgets(
        stack,
        {
            f"{first}/gpu": Budget(full, full, 0, full + CONTEXT_MIB),
            f"{last}/gpu": Budget(limits[last], rest, CONTEXT_MIB, rest),
        },
    )
    free = 3072 - held - CONTEXT_MIB
    assert allocate(stack, "two-claims", free) == "CUDA_SUCCESS"
    assert allocate(stack, "two-claims", free + 1) == "CUDA_ERROR_OUT_OF_MEMORY"
    stack.cluster.kubectl("delete", "pod", "two-claims", "--wait", "--grace-period=1")
    stack.cluster.kubectl("delete", "resourceclaim", "one", "other")


def test_two_pods_of_one_claim_share_its_budget(stack: Stack) -> None:
    stack.cluster.apply(
        text(
            claim("both", memory="2Gi", cores="10", slots="1"),
            holding(pod_with_claim("first", "both"), 500),
            holding(pod_with_claim("second", "both"), 700),
        )
    )
    for name in ("first", "second"):
        stack.cluster.wait_pod_running(name)

    used = 1200 + 2 * CONTEXT_MIB
    wait_budgets(stack, {"both/gpu": Budget(2048, 1200, 2 * CONTEXT_MIB, used)})
    for name in ("first", "second"):
        assert allocate(stack, name, 2048 - used) == "CUDA_SUCCESS"
        assert allocate(stack, name, 2048 - used + 1) == "CUDA_ERROR_OUT_OF_MEMORY"
    stack.cluster.kubectl("delete", "pod", "first", "--wait", "--grace-period=1")
    wait_budgets(stack, {"both/gpu": Budget(2048, 700, CONTEXT_MIB, 700 + CONTEXT_MIB)})
