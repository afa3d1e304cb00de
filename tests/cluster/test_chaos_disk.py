"""Disks without a free block under the state directory and under the CDI directory."""

from collections.abc import Callable

import pytest

from hami_dra.testing.simgpu import A100, T4
from tests.cluster.cluster import Cluster
from tests.cluster.config import Config
from tests.cluster.faults import (
    SYNC_SECONDS,
    RunningPod,
    full,
    require_no_overlap,
    wait_consistent,
    wait_prepare_failed,
    wait_ready,
    wait_reason,
)
from tests.cluster.manifests import pod, text
from tests.cluster.plan import Flags
from tests.cluster.stack import Stack

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

Measured = Callable[[str], None]


@pytest.fixture(scope="module")
def cluster_config(kubernetes: str) -> Config:
    """Return a cluster with small disks of their own where we write."""
    return Config(
        kubernetes=kubernetes,
        flags=Flags(
            kubelet_config={"syncFrequency": f"{SYNC_SECONDS}s"},
            tmpfs={"hami-dra": "size=4m,mode=0755", "cdi": "size=256k,mode=0755"},
        ),
    )


@pytest.fixture(scope="module")
def stack(cluster: Cluster) -> Stack:
    """Install hami-dra; its node process tells soon what does not work, and looks often."""
    options = ("--prepare-budget-seconds", "2", "--repair-seconds", "1")
    return Stack.install(cluster, (A100, T4), node_options=options)


def create(stack: Stack, name: str, mib: int = 500) -> None:
    stack.cluster.apply(text(pod(name, gpu=1, gpumem=mib)))


def delete(stack: Stack, *pods: RunningPod) -> None:
    names = [each.name for each in pods]
    stack.cluster.kubectl("delete", "pod", *names, "--grace-period=1", "--wait")


@pytest.mark.parametrize(
    ("directory", "condition"),
    [("hami-dra", "state-dir: state directory"), ("cdi", "cdi-dir: CDI directory")],
    ids=["state", "cdi"],
)
def test_a_full_disk(stack: Stack, directory: str, condition: str, measured: Measured) -> None:
    """New claims are refused with the reason, old ones keep their limits and can be let go."""
    cluster = stack.cluster
    place = cluster.directory / directory
    stays, leaves, restarts = (
        RunningPod.start(stack, name, 600) for name in ("stays", "leaves", "restarts")
    )
    with full(cluster, place):
        told = wait_reason(stack, f"{condition} {place}: No space left on device")
        create(stack, "refused")
        message = wait_prepare_failed(stack, "refused", str(place))
        assert any(words in message for words in ("disk is full", "No space left on device"))
        uid = stack.claim_of("refused")["metadata"]["uid"]
        assert not any(uid in path.name for path in stack.cdi_files())
        temporaries = [path.name for path in cluster.inside(place).rglob("*.tmp")]
        assert temporaries == []
        stays.require_untouched()
        delete(stack, leaves)
        assert leaves.claim_uid not in stack.ledger_rows()
        stack.stop_node()
        with full(cluster, place):  # what the ended process has given back
            stack.start_node(ready=False)
            wait_reason(stack, "registered: ok")
            delete(stack, restarts)
        stays.require_untouched()
        require_no_overlap(stack)
    ready = wait_ready(stack)
    refused = RunningPod.find(stack, "refused", 500)
    refused.require_limit()
    stays.require_untouched()
    wait_consistent(stack)
    delete(stack, stays, refused)
    wait_consistent(stack)
    assert stack.leftovers().none
    measured(
        f"{place.name} full: told by /readyz after {told:.1f} s; with room again ready after "
        f"{ready:.1f} s, and the refused pod runs"
    )
