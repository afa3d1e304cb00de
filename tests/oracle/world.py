"""A cluster as the allocator sees it: nodes with what our node plugin publishes, and claims."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final

from hami_dra.contract.names import DEVICE_CLASS
from hami_dra.contract.settings import DEFAULT_SETTINGS, AdmissionSettings
from hami_dra.controller.manifests import WebhookAddress, render_objects
from tests.cluster.simnodes import describe_node, describe_slices
from tests.golden.rows import load_cases
from tests.oracle.allocator import GATES, Answer, Question

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tests.cluster.simnodes import SimNode
    from tests.oracle.allocator import Allocator

Object = dict[str, Any]

_NODE_UID: Final = "00000000-0000-4000-8000-{:012x}"
_SUFFIX: Final = "00000"
"""Stands for what the API server adds to a generated name."""


def list_classes(settings: AdmissionSettings = DEFAULT_SETTINGS) -> list[Object]:
    """Return the DeviceClasses that we install with these settings, and those of other vendors."""
    ours = [
        body
        for _, body in render_objects(WebhookAddress(), b"", settings)
        if body["kind"] == "DeviceClass"
    ]
    return [*ours, *load_cases("deviceclasses.yaml")]


def name_slices(slices: Iterable[Object]) -> list[Object]:
    """Return slices with names as the API server makes them: the allocator goes by their order."""
    return [
        {**body, "metadata": {**body["metadata"], "name": f"{generated}{_SUFFIX}"}}
        for body in slices
        for generated in [body["metadata"]["generateName"]]
    ]


def make_claim(name: str, spec: Object) -> Object:
    """Return a stored claim, not allocated."""
    metadata = {"name": name, "namespace": "default", "uid": f"uid-{name}"}
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": metadata,
        "spec": copy.deepcopy(spec),
    }


def ask_for(**capacity: str) -> Object:
    """Return the spec of a claim with one request ``main`` for one of our cards."""
    exactly: Object = {"deviceClassName": DEVICE_CLASS}
    if capacity:
        exactly["capacity"] = {"requests": capacity}
    return {"devices": {"requests": [{"name": "main", "exactly": exactly}]}}


class World:
    """Nodes, and the claims that hold devices of them.

    Args:
        allocator: Who decides.
        nodes: What there is.
        slices: ResourceSlices as they are, besides those of the nodes' cards.
        classes: DeviceClasses.
        gates: Allocator features.
    """

    def __init__(
        self,
        allocator: Allocator,
        nodes: Sequence[SimNode],
        *,
        slices: Sequence[Object] = (),
        classes: Sequence[Object] | None = None,
        gates: Mapping[str, bool] = GATES,
    ) -> None:
        self._allocator = allocator
        self._nodes = {node.name: describe_node(node) for node in nodes}
        self._classes = list_classes() if classes is None else classes
        self._gates = gates
        self.slices = [*slices]
        for number, node in enumerate(nodes):
            self.slices += name_slices(describe_slices(node, _NODE_UID.format(number)))
        self.held: dict[str, Object] = {}

    def try_claims(self, specs: Mapping[str, Object], node: str) -> Answer:
        """Ask for claims on a node, and let them hold what they are given."""
        claims = [make_claim(name, spec) for name, spec in specs.items()]
        question = Question(
            node=self._nodes[node],
            slices=self.slices,
            classes=self._classes,
            claims=claims,
            allocated=list(self.held.values()),
            gates=self._gates,
        )
        answer = self._allocator.ask(question)
        for claim, allocation in zip(claims, answer.allocations or (), strict=False):
            name = claim["metadata"]["name"]
            self.held[name] = {**claim, "status": {"allocation": allocation}}
        return answer

    def allocate(self, name: str, spec: Object, node: str) -> list[Object]:
        """Allocate one claim; return its device results, none where there is no room.

        Raises:
            AssertionError: The allocator gave the claim up with an error.
        """
        answer = self.try_claims({name: spec}, node)
        assert not answer.error, answer.error
        return [
            result
            for allocation in answer.allocations or ()
            for result in allocation["devices"]["results"]
        ]

    def free(self, name: str) -> None:
        """Let a claim's devices go."""
        del self.held[name]

    def set_taint(self, device: str, taint: Object | None) -> None:
        """Put a mark on a device, or take all of its marks away."""
        for body in self.slices:
            for found in body["spec"].get("devices") or ():
                if found["name"] == device:
                    found.pop("taints", None)
                    if taint is not None:
                        found["taints"] = [taint]
