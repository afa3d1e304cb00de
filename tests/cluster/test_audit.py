"""A program that goes around libvgpu is seen from outside; an honest one never is."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hami_dra.testing.simgpu import A100
from tests.cluster.cluster import Cluster
from tests.cluster.manifests import claim, pod, pod_with_claim, text
from tests.cluster.stack import NODE_HEALTH, Stack

AUDIT_SECONDS = 1.0
REPORT_SECONDS = 15.0
"""Two readings, the Event's way, and a machine that does other things besides."""
CONTEXT_MIB, ALLOWANCE_MIB = 50, 64
ROOT = Path(__file__).resolve().parents[2]

# The dynamic loader reads /etc/ld.so.preload because its path is in it. A copy with another path
# reads nothing, and libvgpu is never loaded: what any tenant can do who can write a file.
BYPASS = (
    "loader=$(ls /lib64/ld-linux-x86-64.so.2 /lib/ld-linux-aarch64.so.1 2>/dev/null | head -n 1); "
    "cp $loader /run/loader && sed s#/etc/ld.so.preload#/etc/ld.so.nothing#g $loader > /run/loader "
    "&& exec /run/loader /usr/local/bin/cuprobe hold {mib}"
)


class WatchedStack(Stack):
    """A stack whose node looks at processes every second."""

    evict = False

    def node_arguments(self) -> list[str]:
        """Return the usual options and the audit's."""
        return [
            *super().node_arguments(),
            "--claim-poll-seconds", "1",
            "--audit-seconds", str(AUDIT_SECONDS),
            "--audit-context-mib", str(ALLOWANCE_MIB),
            *(["--audit-evict"] if self.evict else []),
        ]  # fmt: skip


@pytest.fixture(scope="module")
def stack(cluster: Cluster) -> Iterator[WatchedStack]:
    """Install hami-dra with a card whose contexts take memory, as real ones do."""
    card = replace(A100, context_overhead_mib=CONTEXT_MIB)
    installed = WatchedStack.install(cluster, (card,))
    yield installed
    print(installed.cluster.logs("node")[-4000:])


def bypassing(name: str, mib: int, gpumem: int) -> dict[str, Any]:
    body = pod(name, gpu=1, gpumem=gpumem)
    body["spec"]["containers"][0]["command"] = ["sh", "-c", BYPASS.format(mib=mib)]
    return body


def reports(items: list[dict[str, Any]]) -> dict[str, str]:
    """Return what our Events say, by pod."""
    return {
        item["involvedObject"]["name"]: item["message"]
        for item in items
        if item["reason"] == "GpuMemoryExceeded"
    }


def wait_reported(stack: WatchedStack, name: str) -> str:
    items = stack.cluster.wait_for_all(
        "events",
        lambda items: name in reports(items),
        namespace="default",
        timeout_seconds=REPORT_SECONDS,
    )
    return reports(items)[name]


def readings(stack: WatchedStack) -> int:
    for line in stack.metrics(NODE_HEALTH).splitlines():
        if line.startswith('hami_dra_enforcement_readings_total{result="ok"}'):
            return int(float(line.split()[-1]))
    return 0


def wait_readings(stack: WatchedStack, more: int) -> None:
    """Return once the driver was asked so many times more."""
    goal = readings(stack) + more
    deadline = time.monotonic() + REPORT_SECONDS + more * AUDIT_SECONDS
    while readings(stack) < goal:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {more} readings more")
        time.sleep(AUDIT_SECONDS / 2)  # a counter of another process


def test_who_goes_around_libvgpu_is_reported_and_the_honest_are_not(stack: WatchedStack) -> None:
    cluster = stack.cluster
    honest = pod("honest", gpu=1, gpumem=1000)
    honest["spec"]["containers"][0]["command"] = ["cuprobe", "hold", "1000"]
    cluster.apply(text(honest, bypassing("modest", 500, 1000), bypassing("greedy", 5000, 1000)))
    for name in ("honest", "modest", "greedy"):
        cluster.wait_pod_running(name)
    stack.wait_pod_log("greedy", "holding 5000 MiB")
    told = wait_reported(stack, "greedy")

    assert f"uses {5000 + CONTEXT_MIB} MiB of card {A100.uuid}" in told
    assert "grants 1000 MiB" in told
    wait_readings(stack, 4)
    metrics = stack.metrics(NODE_HEALTH)
    labels = f'{{namespace="default",pod="greedy",uuid="{A100.uuid}"}}'
    assert f"hami_dra_enforcement_violations_total{labels} 1.0" in metrics
    excess = 5000 + CONTEXT_MIB - 1000 - ALLOWANCE_MIB
    assert f"hami_dra_enforcement_excess_mib{labels} {excess:.1f}" in metrics
    accused = [line for line in metrics.splitlines() if line.startswith("hami_dra_enforcement_")]
    assert not any("honest" in line or "modest" in line for line in accused)
    assert set(reports(cluster.api.items("events", "default"))) == {"greedy"}
    described = cluster.kubectl("describe", "pod", "greedy")
    assert "GpuMemoryExceeded" in described
    cluster.kubectl("delete", "pod", "honest", "modest", "greedy", "--wait", "--grace-period=1")


def test_a_limit_that_was_lowered_accuses_nobody(stack: WatchedStack) -> None:
    cluster = stack.cluster
    body = pod_with_claim("has-more", "live")
    body["spec"]["containers"][0]["command"] = ["cuprobe", "hold", "2000"]
    cluster.apply(text(claim("live", memory="3000Mi", cores="0"), body))
    cluster.wait_pod_running("has-more")
    stack.wait_pod_log("has-more", "holding 2000 MiB")
    wait_readings(stack, 1)
    wish = json.dumps({"gpu": {"memoryMiB": 500}})
    cluster.kubectl("annotate", "resourceclaim", "live", f"gpu.project-hami.io/limits={wish}")
    cluster.wait_for(
        "resourceclaims",
        "live",
        lambda item: '"memoryMiB": 500' in json.dumps((item or {})["status"].get("devices")),
        "default",
        30.0,
    )
    wait_readings(stack, 4)
    # The plugin forgets what it has seen, and still accuses nobody.
    stack.stop_node()
    stack.start_node()
    wait_readings(stack, 4)

    assert "has-more" not in reports(cluster.api.items("events", "default"))
    cluster.kubectl("delete", "pod", "has-more", "--wait", "--grace-period=1")
    cluster.kubectl("delete", "resourceclaim", "live")


def test_pods_are_ended_where_an_operator_asked_for_it(stack: WatchedStack) -> None:
    cluster = stack.cluster
    cluster.apply((ROOT / "deploy" / "manifests" / "audit-eviction.yaml").read_text())
    stack.stop_node()
    stack.evict = True
    stack.start_node()
    quiet = pod("quiet", gpu=1, gpumem=1000)
    cluster.apply(text(quiet, bypassing("ends", 5000, 1000)))
    cluster.wait_pod_running("quiet")
    stack.wait_pod_log("ends", "holding 5000 MiB")

    cluster.wait_for("pods", "ends", lambda item: item is None, "default", 60.0)
    assert cluster.kubectl_json("get", "pod", "quiet")["status"]["phase"] == "Running"
    assert "hami_dra_enforcement_evictions_total 1.0" in stack.metrics(NODE_HEALTH)
    cluster.kubectl("delete", "pod", "quiet", "--wait", "--grace-period=1")
