"""A node loses power and comes back with what its disks kept."""

import shutil
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.cluster.config import Config
from tests.cluster.faults import (
    SYNC_SECONDS,
    RunningPod,
    lose_power,
    power_on,
    wait_consistent,
    wait_ready,
)
from tests.cluster.plan import Flags
from tests.cluster.stack import Stack

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

BACK_SECONDS = 90.0

Measured = Callable[[str], None]


@pytest.fixture(scope="module")
def cluster_config(kubernetes: str) -> Config:
    """Return a cluster whose CDI directory no disk keeps, as on a real node."""
    return Config(
        kubernetes=kubernetes,
        flags=Flags(
            kubelet_config={"syncFrequency": f"{SYNC_SECONDS}s"},
            tmpfs={"cdi": "size=1m,mode=0755"},
        ),
    )


def regions(stack: Stack, running: RunningPod) -> list[tuple[int, bytes]]:
    """Return inode and instance of the region files of a pod's claim."""
    claim = stack.cluster.inside(stack.state / "claims" / running.claim_uid)
    return [
        (path.stat().st_ino, path.read_bytes()[:64])
        for path in sorted(claim.rglob("region/*"))
        if path.is_file()
    ]


def test_pods_come_back_with_their_claims_and_limits(stack: Stack, measured: Measured) -> None:
    cluster = stack.cluster
    disk = RunningPod.start(stack, "disk", 3000)
    volatile = RunningPod.start(stack, "volatile", 2000)
    leaves = RunningPod.start(stack, "leaves", 1000)
    ends = RunningPod.start(stack, "ends", 900, restartPolicy="Never")
    before = cluster.kubectl_json("get", "node", stack.node_name)["status"]["nodeInfo"]["bootID"]
    old = {each.name: regions(stack, each) for each in (disk, volatile)}
    assert all(old.values())

    lose_power(stack)
    for region in (stack.state / "claims" / volatile.claim_uid).rglob("region"):
        shutil.rmtree(region)  # as if regions were in memory
    cluster.kubectl("delete", "pod", "leaves", "--wait=false")
    started = time.monotonic()
    power_on(stack)

    after = []
    for each in (disk, volatile):
        cluster.wait_for(
            "pods",
            each.name,
            partial(runs_anew, each),
            timeout_seconds=BACK_SECONDS,
        )
        after.append(RunningPod.find(stack, each.name, each.mib))
    seconds = time.monotonic() - started
    cluster.wait_for("pods", "leaves", lambda item: item is None, timeout_seconds=BACK_SECONDS)
    for was, now in zip((disk, volatile), after, strict=True):
        assert now.claim_uid == was.claim_uid
        now.require_limit()
        found = regions(stack, now)
        assert found
        assert not set(found) & set(old[now.name]), "accounts of the last boot are not this one's"
    info = cluster.kubectl_json("get", "node", stack.node_name)["status"]["nodeInfo"]
    assert info["bootID"] != before
    wait_ready(stack)
    cluster.kubectl("delete", "pod", ends.name)
    wait_consistent(stack)
    fresh = RunningPod.start(stack, "fresh", 1000)
    fresh.require_limit()
    assert leaves.claim_uid not in stack.ledger_rows()
    cluster.kubectl("delete", "pod", "disk", "volatile", "fresh", "--grace-period=1")
    cluster.wait_for_all("resourceclaims", lambda items: not items)
    wait_consistent(stack)
    assert stack.leftovers().none
    measured(f"reboot: both pods ran with their claims {seconds:.1f} s after containerd's start")


def runs_anew(was: RunningPod, item: dict[str, Any] | None) -> bool:
    statuses = (item or {}).get("status", {}).get("containerStatuses") or [{}]
    return (
        "running" in statuses[0].get("state", {})
        and was.container_id not in statuses[0]["containerID"]
    )
