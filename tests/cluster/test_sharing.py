"""Shares are separate, exact, and placed by the stock scheduler."""

import json
from typing import Any

from tests.cluster.manifests import HELD_MIB, claim, pod, pod_with_claim, text
from tests.cluster.stack import Stack


def allocations(stack: Stack, name: str, *mib: int) -> list[str]:
    done = stack.cluster.exec(name, "cuprobe", "alloc", "--json", *map(str, mib))
    return [item["result"] for item in json.loads(done.stdout)["allocations"]]


def allocate(stack: Stack, name: str, container: str, program: str, mib: int) -> str:
    done = stack.cluster.exec(name, program, "alloc", "--json", str(mib), container=container)
    return str(json.loads(done.stdout)["allocations"][0]["result"])


def card_of(item: dict[str, Any]) -> str:
    return str(item["status"]["allocation"]["devices"]["results"][0]["device"])


def test_the_limit_holds_to_the_mib_and_over_processes(stack: Stack) -> None:
    cluster = stack.cluster
    cluster.apply(text(pod("exact", gpu=1, gpumem=3000, gpucores=30)))
    cluster.wait_pod_running("exact")

    # The pod itself holds 2 MiB; the budget is the grant's, not the process's.
    assert allocations(stack, "exact", 2998) == ["CUDA_SUCCESS"]
    assert allocations(stack, "exact", 2999) == ["CUDA_ERROR_OUT_OF_MEMORY"]
    assert allocations(stack, "exact", 2900, 200, 98) == [
        "CUDA_SUCCESS",
        "CUDA_ERROR_OUT_OF_MEMORY",
        "CUDA_SUCCESS",
    ]

    cluster.kubectl("delete", "pod", "exact", "--wait")


def test_two_pods_share_a_card_and_a_third_goes_to_the_other(stack: Stack) -> None:
    cluster = stack.cluster
    cluster.apply(
        text(
            pod("a", gpu=1, gpumem=20000),
            pod("b", gpu=1, gpumem=20000),
        )
    )
    for name in ("a", "b"):
        cluster.wait_pod_running(name)
    cards = {name: card_of(stack.claim_of(name)) for name in ("a", "b")}
    assert len(set(cards.values())) == 1

    cluster.apply(text(pod("c", gpu=1, gpumem=15000)))
    cluster.wait_pod_running("c")
    assert {name: stack.visible_mib(name) for name in ("a", "b", "c")} == {
        "a": 20000,
        "b": 20000,
        "c": 15000,
    }
    assert card_of(stack.claim_of("c")) not in cards.values()
    assert stack.host_used_mib() == 3 * HELD_MIB

    cluster.kubectl("delete", "pod", "a", "b", "c", "--wait")
    cluster.wait_for_all("resourceclaims", lambda items: not items)
    assert stack.leftovers().none


def test_an_exclusive_pod_gets_a_whole_card_and_two_cards_are_different_ones(stack: Stack) -> None:
    cluster = stack.cluster
    cluster.apply(text(pod("whole", gpu=2)))
    cluster.wait_pod_running("whole")

    assert sorted(stack.all_visible_mib("whole")) == [16384, 40960]
    cluster.apply(text(pod("late", gpu=1, gpumem=100)))
    cluster.wait_for_all(
        "events",
        lambda items: any(
            item["reason"] == "FailedScheduling" and item["involvedObject"]["name"] == "late"
            for item in items
        ),
        namespace="default",
    )
    cluster.kubectl("delete", "pod", "whole", "--wait")
    cluster.wait_pod_running("late")
    cluster.kubectl("delete", "pod", "late", "--wait")


def test_two_pods_may_share_one_claim_and_its_budget(stack: Stack) -> None:
    cluster = stack.cluster
    cluster.apply(
        text(
            claim("both", memory="2Gi", cores="10", slots="1"),
            pod_with_claim("first", "both"),
            pod_with_claim("second", "both"),
        )
    )
    for name in ("first", "second"):
        cluster.wait_pod_running(name)

    assert stack.visible_mib("first") == stack.visible_mib("second") == 2048
    # Both pods hold 2 MiB of the same 2048.
    assert allocations(stack, "first", 2044) == ["CUDA_SUCCESS"]
    assert allocations(stack, "second", 2045) == ["CUDA_ERROR_OUT_OF_MEMORY"]

    cluster.kubectl("delete", "pod", "first", "--wait")
    assert stack.visible_mib("second") == 2048, "the claim stays prepared for the other pod"
    cluster.kubectl("delete", "pod", "second", "--wait")
    cluster.kubectl("delete", "resourceclaim", "both")
    assert stack.leftovers().none


def test_two_claims_in_one_container_are_two_shares(stack: Stack) -> None:
    cluster = stack.cluster
    body = pod("two", gpu=0)
    body["spec"]["resourceClaims"] = [
        {"name": name, "resourceClaimName": name} for name in ("one", "other")
    ]
    body["spec"]["containers"][0]["resources"] = {
        "claims": [{"name": name, "request": "gpu"} for name in ("one", "other")]
    }
    cluster.apply(
        text(
            claim("one", memory="1Gi", cores="0", slots="1"),
            claim("other", memory="2Gi", cores="0", slots="1"),
            body,
        )
    )
    cluster.wait_pod_running("two")
    cards = {card_of(item) for item in stack.claims()}

    # First fit puts both on the same card; two shares of one card add up.
    assert len(cards) == 1
    assert stack.visible_mib("two") == 3072
    assert allocations(stack, "two", 3070) == ["CUDA_SUCCESS"]
    assert allocations(stack, "two", 3071) == ["CUDA_ERROR_OUT_OF_MEMORY"]

    cluster.kubectl("delete", "pod", "two", "--wait")
    cluster.kubectl("delete", "resourceclaim", "one", "other")
    assert stack.leftovers().none


def test_each_container_of_a_pod_is_held_to_its_own_share(stack: Stack) -> None:
    cluster = stack.cluster
    body = pod("several", gpu=1, gpumem=1000)
    (first,) = body["spec"]["containers"]
    second = {**first, "name": "second", "resources": {"limits": {"nvidia.com/gpumem": 2000}}}
    plain = {**first, "name": "plain", "command": ["sleep", "600"], "resources": {}}
    body["spec"]["containers"] = [first, second, plain]
    body["spec"]["initContainers"] = [
        {
            **first,
            "name": "setup",
            "command": ["cuprobe", "alloc", "500"],
            "resources": {"limits": {"nvidia.com/gpu": 1, "nvidia.com/gpumem": 600}},
        }
    ]
    cluster.apply(text(body))
    cluster.wait_pod_running("several")

    assert cluster.pod_logs("several", container="setup").startswith("allocated 500 MiB: ok")
    for program in ("cuprobe", "cuprobe-dl"):
        assert allocate(stack, "several", "main", program, 998) == "CUDA_SUCCESS"
        assert allocate(stack, "several", "main", program, 999) == "CUDA_ERROR_OUT_OF_MEMORY"
        assert allocate(stack, "several", "second", program, 1998) == "CUDA_SUCCESS"
        assert allocate(stack, "several", "second", program, 1999) == "CUDA_ERROR_OUT_OF_MEMORY"
    plain_devices = cluster.exec("several", "ls", "/dev", container="plain").stdout
    assert "nvidia" not in plain_devices


def test_the_limit_holds_for_any_user_on_a_read_only_root(stack: Stack) -> None:
    cluster = stack.cluster
    body = pod("restricted", gpu=1, gpumem=1000)
    body["spec"]["containers"][0]["securityContext"] = {
        "runAsUser": 4711,
        "runAsNonRoot": True,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    cluster.apply(text(body))
    cluster.wait_pod_running("restricted")

    assert stack.visible_mib("restricted") == 1000
    assert allocations(stack, "restricted", 998) == ["CUDA_SUCCESS"]
    assert allocations(stack, "restricted", 999) == ["CUDA_ERROR_OUT_OF_MEMORY"]
    attempt = "echo x > /run/vgpu/*/grant || rm /run/vgpu/*/grant || umount /run/vgpu/*/grant"
    assert cluster.exec("restricted", "sh", "-c", attempt, check=False).returncode != 0
    assert stack.visible_mib("restricted") == 1000


def test_replicas_share_one_template(stack: Stack) -> None:
    cluster = stack.cluster
    cluster.apply(text(*(pod(f"replica-{i}", gpu=1, gpumem=500) for i in range(4))))
    for i in range(4):
        cluster.wait_pod_running(f"replica-{i}")

    names = {
        item["spec"]["resourceClaims"][0]["resourceClaimTemplateName"]
        for item in cluster.api.items("pods", "default")
    }

    assert len(names) == 1
    cluster.kubectl("delete", "pod", "--all", "--wait")
    cluster.wait_for_all("resourceclaims", lambda items: not items)


def test_the_cards_are_described_by_what_nvml_and_the_kernel_say(stack: Stack) -> None:
    first, second = stack.devices()

    assert first["attributes"]["productName"] == {"string": "NVIDIA A100-SXM4-40GB"}
    assert second["attributes"]["productName"] == {"string": "NVIDIA-Tesla T4"}
    assert first["attributes"]["driverVersion"] == {"version": "580.95.5"}
    assert first["attributes"]["resource.kubernetes.io/pciBusID"] == {"string": "0000:3b:00.0"}
    assert first["attributes"]["resource.kubernetes.io/pcieRoot"] == {"string": "pci0000:3a"}
    assert [d["attributes"]["resource.kubernetes.io/numaNode"]["int"] for d in (first, second)] == [
        0,
        1,
    ]
    assert first["capacity"]["memory"]["value"] == "40Gi"
    assert first["capacity"]["memory"]["requestPolicy"]["validRange"]["max"] == "40Gi"
    assert first["allowMultipleAllocations"]
