"""Nodes as golden cases write them."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

import msgspec
import yaml

from hami_dra.policy.devices import CORES_PER_CARD, GpuFacts
from hami_dra.policy.fit import Card, NodeCards
from tests.cluster.simcards import KINDS, make_card
from tests.cluster.simnodes import SimNode
from tests.golden.rows import ROOT

LABEL: Final = "hami-dra-case"
"""On the nodes of a case; its pods go nowhere else."""


class CardSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Equal cards; what is not said depends on the kind and on the position."""

    kind: str = "A100"
    count: int = 1
    mib: int | None = None
    product: str = ""
    uuid: str = ""
    numa: int | msgspec.UnsetType | None = msgspec.UNSET
    root: int | msgspec.UnsetType | None = msgspec.UNSET


class NodeSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A node, and what drivers publish for it.

    Attributes:
        name: In the case; also the label ``kubernetes.io/hostname``.
        cards: Kinds, or cards with more said about them.
        split: Shares of a card at a time.
        devices: More devices of our driver, as in a ResourceSlice.
        others: Devices by the name of another driver.
        labels: Of the Node.
        taints: Of the Node.
        allocatable: Beside cpu, memory and pods.
    """

    name: str
    cards: list[str | CardSpec] = []
    split: int = 10
    devices: list[dict[str, Any]] = []
    others: dict[str, list[dict[str, Any]]] = {}
    labels: dict[str, str] = {}
    taints: list[dict[str, Any]] = []
    allocatable: dict[str, str] = {}


_NAMED: Final = msgspec.convert(
    yaml.safe_load((ROOT / "nodes.yaml").read_text(encoding="utf-8")), dict[str, list[NodeSpec]]
)


def find_nodes(wanted: str | list[NodeSpec]) -> tuple[NodeSpec, ...]:
    """Return the nodes of a cluster by its name in nodes.yaml, or those that are given."""
    return tuple(_NAMED[wanted] if isinstance(wanted, str) else wanted)


def list_cards(node: NodeSpec, number: int) -> tuple[GpuFacts, ...]:
    """Return the cards of a node that is the ``number``-th of its case."""
    specs = [CardSpec(kind=each) if isinstance(each, str) else each for each in node.cards]
    flat = [spec for spec in specs for _ in range(spec.count)]
    half = (len(flat) + 1) // 2
    cards = []
    for index, spec in enumerate(flat):
        card = make_card(
            KINDS[spec.kind],
            index,
            node=number,
            uuid=spec.uuid or None,
            numa_node=index // half if spec.numa is msgspec.UNSET else spec.numa,
            root=index // 2 if spec.root is msgspec.UNSET else spec.root,
        )
        cards.append(
            replace(
                card,
                memory_mib=spec.mib or card.memory_mib,
                product_name=spec.product or card.product_name,
            )
        )
    return tuple(cards)


def build_nodes(nodes: Iterable[NodeSpec], case: str) -> list[SimNode]:
    """Return a case's own copy of nodes; ``case`` is a label value."""
    return [
        SimNode(
            name=f"{case}-{node.name}",
            cards=list_cards(node, number),
            split_count=node.split,
            devices=tuple(node.devices),
            others={driver: tuple(devices) for driver, devices in node.others.items()},
            labels={"kubernetes.io/hostname": node.name, **node.labels, LABEL: case},
            taints=tuple(node.taints),
            allocatable={"cpu": "64", "memory": "512Gi", "pods": "500", **node.allocatable},
        )
        for number, node in enumerate(nodes)
    ]


def shape_nodes(nodes: Iterable[NodeSpec]) -> frozenset[NodeCards]:
    """Return what the webhook knows of these nodes."""
    return frozenset(
        tuple(sorted(Card(card.memory_mib, CORES_PER_CARD, node.split) for card in cards))
        for number, node in enumerate(nodes)
        if (cards := list_cards(node, number))
    )
