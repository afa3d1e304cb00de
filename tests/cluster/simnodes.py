"""Nodes that only exist in the API server, with the ResourceSlices that their cards would have.

For a cluster whose `Flags.node` is false. A Node stays Ready, because nobody watches over it, and
its slices stay, because no kubelet takes them away: the scheduler binds pods to it and allocates
claims for them as on any other node. The slices are made by the node plugin's own functions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hami_dra.contract.names import DRIVER_NAME
from hami_dra.kubeletplugin.slices import Pool, plan_slices, split_pages
from hami_dra.policy.devices import GpuFacts, describe_devices
from tests.cluster.calls import Call, require_done, send_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tests.cluster.api import Api

_NODES = "/api/v1/nodes"
_SLICES = "/apis/resource.k8s.io/v1/resourceslices"
_READY = {"type": "Ready", "status": "True", "reason": "Simulated", "message": "no kubelet"}

Object = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimNode:
    """A node and what its drivers publish.

    Attributes:
        name: Of the Node.
        cards: Published as the node plugin does.
        split_count: How many shares may exist on one card.
        devices: More devices of our driver, as they are, such as MIG slices.
        others: Devices by the name of another driver.
        labels: Beside ``kubernetes.io/hostname``.
        taints: Of the Node.
        allocatable: What pods may ask for.
    """

    name: str
    cards: tuple[GpuFacts, ...] = ()
    split_count: int = 10
    devices: tuple[Object, ...] = ()
    others: Mapping[str, tuple[Object, ...]] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Object, ...] = ()
    allocatable: Mapping[str, str] = field(
        default_factory=lambda: {"cpu": "64", "memory": "512Gi", "pods": "500"}
    )


def create_nodes(api: Api, nodes: Iterable[SimNode], *, clients: int = 8) -> None:
    """Create Nodes and then all of their slices.

    Raises:
        CommandError: The API server refused one, such as a node that is there already.
    """
    wanted = list(nodes)
    calls = [Call("POST", _NODES, describe_node(node)) for node in wanted]
    answers = send_all(api, calls, clients)
    require_done(calls, answers)
    uids = [str(answer.body["metadata"]["uid"]) for answer in answers]
    slices = [
        Call("POST", _SLICES, body)
        for node, uid in zip(wanted, uids, strict=True)
        for body in describe_slices(node, uid)
    ]
    require_done(slices, send_all(api, slices, clients))


def delete_nodes(api: Api, names: Sequence[str], *, clients: int = 8) -> None:
    """Delete Nodes and their slices, slices first; what is gone already is no error."""
    gone = set(names)
    slices = [
        Call("DELETE", f"{_SLICES}/{item['metadata']['name']}")
        for item in api.items("resourceslices")
        if item["spec"].get("nodeName") in gone
    ]
    send_all(api, slices, clients)
    send_all(api, [Call("DELETE", f"{_NODES}/{name}") for name in names], clients)


def describe_node(node: SimNode) -> Object:
    """Return the Node object, ready for pods."""
    resources = dict(node.allocatable)
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": node.name,
            "labels": {"kubernetes.io/hostname": node.name, **node.labels},
        },
        "spec": {"taints": list(node.taints)},
        "status": {"capacity": resources, "allocatable": resources, "conditions": [_READY]},
    }


def describe_slices(node: SimNode, uid: str) -> list[Object]:
    """Return the ResourceSlices of a node that has this UID."""
    ours = [*describe_devices(node.cards, split_count=node.split_count), *node.devices]
    pools = {**({DRIVER_NAME: ours} if ours else {}), **node.others}
    found: list[Object] = []
    for driver, devices in pools.items():
        pool = Pool(driver=driver, name=node.name, node_name=node.name, node_uid=uid)
        found += plan_slices((), split_pages(devices), pool, generation=0).creates
    return found
