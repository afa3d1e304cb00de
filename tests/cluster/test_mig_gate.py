"""Where nobody counts what placements take, a card that is to be divided is not offered at all."""

import pytest

from hami_dra.testing.simgpu import A100, T4
from tests.cluster.cluster import Cluster
from tests.cluster.config import Config
from tests.cluster.manifests import pod, text
from tests.cluster.plan import Flags
from tests.cluster.stack import Stack


@pytest.fixture(scope="module")
def cluster_config() -> Config:
    """Return a cluster that drops counters."""
    return Config(flags=Flags(feature_gates={"DRAPartitionableDevices": False}))


@pytest.fixture(scope="module")
def stack(cluster: Cluster) -> Stack:
    """Return an installation that would divide a card."""
    return Stack.install(cluster, [A100, T4], node_options=("--mig-dynamic", "0"))


def test_placements_are_withdrawn_and_other_cards_stay(stack: Stack) -> None:
    cluster = stack.cluster
    cluster.wait_for_all(
        "resourceslices",
        lambda _: [d["attributes"]["type"]["string"] for d in stack.devices()] == ["hami-gpu"],
        timeout_seconds=60,
    )
    assert "slices.no_counters" in cluster.logs("node")
    assert not any(item["spec"].get("sharedCounters") for item in stack.slices())
    cluster.apply(text(pod("share", gpu=1, gpumem=1000)))
    cluster.wait_pod_running("share")
    assert stack.visible_mib("share") == 1000
