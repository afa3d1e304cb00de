"""HAMi's wishes beyond MiB, as the stock scheduler, kubelet and libvgpu carry them out."""

import json
from typing import Any

import pytest

from tests.cluster.errors import CommandError
from tests.cluster.manifests import pod, text
from tests.cluster.stack import Stack

A100_NAME = "gpu-a1000000"
T4_NAME = "gpu-74000000"


def annotated(name: str, annotations: dict[str, str], *, gpu: int, gpumem: int) -> dict[str, Any]:
    body = pod(name, gpu=gpu, gpumem=gpumem)
    body["metadata"]["annotations"] = annotations
    return body


def cards_of(stack: Stack, name: str) -> list[str]:
    results = stack.claim_of(name)["status"]["allocation"]["devices"]["results"]
    return [str(result["device"])[: len(A100_NAME)] for result in results]


def test_half_a_card_is_half_of_whichever_card_it_is(stack: Stack) -> None:
    cluster = stack.cluster
    names = [f"half-{i}" for i in range(4)]
    half = {"gpumem-percentage": 50}
    cluster.apply(text(*(pod(name, half, gpu=1) for name in names)))
    for name in names:
        cluster.wait_pod_running(name)

    # 50 % of 16384 MiB twice, and of 40960 MiB twice: whoever landed where.
    assert sorted(stack.visible_mib(name) for name in names) == [8192, 8192, 20480, 20480]
    cluster.apply(text(pod("fifth", half, gpu=1)))
    cluster.wait_for_all(
        "events",
        lambda items: any(
            item["reason"] == "FailedScheduling" and item["involvedObject"]["name"] == "fifth"
            for item in items
        ),
        namespace="default",
    )


def test_a_percentage_beyond_a_card_is_denied_by_field(stack: Stack) -> None:
    with pytest.raises(CommandError, match=r"gpumem-percentage.*101"):
        stack.cluster.apply(text(pod("wrong", {"gpumem-percentage": 101}, gpu=1)))


def test_type_and_uuid_wishes_choose_the_card(stack: Stack) -> None:
    cluster = stack.cluster
    cluster.apply(
        text(
            annotated("tesla", {"nvidia.com/use-gputype": "tesla, h200"}, gpu=1, gpumem=100),
            annotated("other", {"nvidia.com/nouse-gputype": "TESLA"}, gpu=1, gpumem=100),
            annotated(
                "named",
                {"nvidia.com/use-gpuuuid": "GPU-74000000-5157-4a2b-9c3d-0123456789ab"},
                gpu=1,
                gpumem=100,
            ),
        )
    )
    for name in ("tesla", "other", "named"):
        cluster.wait_pod_running(name)

    assert cards_of(stack, "tesla") == [T4_NAME]
    assert cards_of(stack, "other") == [A100_NAME]
    assert cards_of(stack, "named") == [T4_NAME]


def test_two_cards_on_one_numa_node_are_not_to_be_had_here(stack: Stack) -> None:
    cluster = stack.cluster
    cluster.apply(
        text(
            annotated("bound", {"nvidia.com/numa-bind": "true"}, gpu=2, gpumem=100),
            annotated("free", {}, gpu=2, gpumem=100),
        )
    )
    cluster.wait_pod_running("free")
    cluster.wait_for_all(
        "events",
        lambda items: any(
            item["reason"] == "FailedScheduling" and item["involvedObject"]["name"] == "bound"
            for item in items
        ),
        namespace="default",
    )

    assert sorted(cards_of(stack, "free")) == sorted([A100_NAME, T4_NAME])


def test_control_that_is_switched_off_leaves_the_card_as_it_is(stack: Stack) -> None:
    cluster = stack.cluster
    body = pod("uncontrolled", gpu=1, gpumem=1000)
    body["spec"]["containers"][0]["env"] = [{"name": "CUDA_DISABLE_CONTROL", "value": "true"}]
    said = stack.apply_and_hear(text(body))
    cluster.wait_pod_running("uncontrolled")

    assert "CUDA_DISABLE_CONTROL" in said
    consumed = stack.claim_of("uncontrolled")["status"]["allocation"]["devices"]["results"][0]
    assert consumed["consumedCapacity"]["memory"] == "1000Mi"
    done = cluster.exec("uncontrolled", "cuprobe", "alloc", "--json", "1200")
    assert json.loads(done.stdout)["allocations"][0]["result"] == "CUDA_SUCCESS"
