"""A control plane with simulated nodes: the scheduler allocates from what they publish."""

import pytest

from hami_dra.contract.names import DRIVER_NAME
from hami_dra.policy.devices import name_device
from tests.cluster.cluster import Cluster
from tests.cluster.config import Config
from tests.cluster.installation import Installation
from tests.cluster.manifests import pod, text
from tests.cluster.plan import Flags
from tests.cluster.simcards import make_cards
from tests.cluster.simnodes import SimNode, create_nodes, delete_nodes

OTHER = {"name": "npu-0", "attributes": {"model": {"string": "x"}}}


@pytest.fixture(scope="module")
def cluster_config(kubernetes: str) -> Config:
    """Return a cluster without kubelet."""
    return Config(kubernetes=kubernetes, flags=Flags(node=False))


def test_pods_are_allocated_shares_of_simulated_cards(cluster: Cluster) -> None:
    cards = make_cards(["A100", "A100", "T4"], node=7)
    nodes = [SimNode(name=f"plain-{number}") for number in range(20)]
    nodes.append(SimNode(name="gpus", cards=cards, others={"npu.example.com": (OTHER,)}))
    create_nodes(cluster.api, nodes)
    stack = Installation.install_admission(cluster)
    stack.start_controller()
    for name, mib, memory, card in (
        ("half", 20480, "20Gi", cards[0]),
        ("more", 30000, "30000Mi", cards[1]),
    ):
        # One after the other: two at once may be scheduled in either order.
        cluster.apply(text(pod(name, gpumem=mib, gpucores=50)))
        bound = cluster.wait_for(
            "pods", name, lambda item: bool(item and item["spec"].get("nodeName"))
        )
        assert bound is not None
        assert bound["spec"]["nodeName"] == "gpus"
        (result,) = stack.claim_of(name)["status"]["allocation"]["devices"]["results"]
        assert result["device"] == name_device(card.uuid)
        assert result["consumedCapacity"]["memory"] == memory
    drivers = {item["spec"]["driver"] for item in cluster.api.items("resourceslices")}
    assert drivers == {DRIVER_NAME, "npu.example.com"}
    delete_nodes(cluster.api, [node.name for node in nodes])
    assert cluster.api.items("nodes") == cluster.api.items("resourceslices") == []
