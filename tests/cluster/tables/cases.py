"""A case: what is there, what somebody writes, and what the scheduler must make of it."""

from typing import Any, Final

import msgspec

from hami_dra.contract.names import DRIVER_NAME
from tests.cluster.tables.nodes import NodeSpec

Object = dict[str, Any]
Quantity = int | str


class Allocated(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one request of a pod's claims must be allocated.

    Attributes:
        cards: How many devices.
        memory: Consumed of each card; a list where cards differ; ``50%`` of what the card has.
        cores: Consumed of each card.
        slots: Consumed of each card.
        consumed: The same by name, for capacities of other drivers; all of them.
        product: Model of the cards, or a list of models in their order.
        at: The devices in any order, as ``NODE/POSITION`` or ``NODE/NAME``; the node may be left
            out if there is only one.
        node: Where they are.
        alternative: The chosen one of ``firstAvailable``.
        config: Our opaque parameters that the node will see, without apiVersion and kind.
        driver: Whose devices they are.
    """

    cards: int = 1
    memory: Quantity | list[Quantity] | None = None
    cores: Quantity | None = None
    slots: Quantity = 1
    consumed: dict[str, Quantity] = {}
    product: str | list[str] = ""
    at: list[Quantity] = []
    node: str = ""
    alternative: str = ""
    config: Object = {}
    driver: str = DRIVER_NAME


class Pods(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What must come of the pods whose names match.

    Attributes:
        match: Shell pattern of names.
        count: How many there must be.
        allocated: By request, which has the name of its container; empty: bound without a claim.
        pending: Not bound, and the scheduler's message has these parts.
        untaken: Not bound, and no scheduler says anything: another's name is on the pod.
        node: Where they are bound.
        stored: Part of the pod as the API server has it: maps may have more, lists not.
    """

    match: str = "*"
    count: int = 1
    allocated: dict[str, Allocated] = {}
    pending: list[str] | None = None
    untaken: bool = False
    node: str = ""
    stored: Object = {}


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first document of a file with a whole manifest, see tests/golden/README.md.

    Attributes:
        case: What it is about.
        reference: Where the meaning is from.
        nodes: Name of a cluster in nodes.yaml, or its nodes.
        settings: Admission settings, instead of those of the dialect.
        pods: What must come of the pods.
        denied: Parts of the message with which pods are refused, instead of ``pods``.
        warns: Parts of warnings, each of another one, that the writer of an object is shown.
        in_turn: Create an object once the scheduler has decided about the pods before it.
    """

    case: str
    reference: str
    nodes: str | list[NodeSpec] = "a100x4"
    settings: Object | None = None
    pods: list[Pods] = []
    denied: list[str] = []
    warns: list[str] = []
    in_turn: bool = False


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One case, wherever it was written.

    Attributes:
        name: Unique, for the report.
        dialect: In whose words it is written.
        kind: ``row`` of a table or ``manifest``.
        nodes: What is there.
        settings: Content of the admission configuration.
        objects: What is created, in this order.
        pods: What must come of it.
        denied: Parts of the message with which pods are refused.
        warns: Parts of warnings, each of another one.
        in_turn: Create an object once the scheduler has decided about the pods before it.
    """

    name: str
    dialect: str
    kind: str
    nodes: tuple[NodeSpec, ...]
    settings: Object
    objects: tuple[Object, ...]
    pods: tuple[Pods, ...] = ()
    denied: tuple[str, ...] = ()
    warns: tuple[str, ...] = ()
    in_turn: bool = False


REFUSED_UNREAD: Final = 400
"""Status of an object that the API server cannot read, whatever admission would say."""
