"""Koordinator's annotations: which cards a pod wants, and how they lie to each other.

Meaning: Koordinator ``apis/extension/device_share.go`` and ``pkg/scheduler/plugins/deviceshare``. A
requirement that the stock scheduler cannot fulfil is refused, a preference is told.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec

from hami_dra.contract.errors import UserError
from hami_dra.policy.dialects.cardlists import locate
from hami_dra.policy.request import Placement

_HINT: Final = "scheduling.koordinator.sh/device-allocate-hint"
_JOINT: Final = "scheduling.koordinator.sh/device-joint-allocate"
_PARTITION: Final = "scheduling.koordinator.sh/gpu-partition-spec"
_RESULT: Final = "scheduling.koordinator.sh/device-allocated"
_Form = TypeVar("_Form")
_SCOPES: Final = ("Device", "PCIe", "NUMANode", "Node")
_POLICIES: Final = ("", "DeviceLevel")


class _Hint(msgspec.Struct, frozen=True, rename="camel"):
    """One device type of the hint; what it selects by is only looked at for being there."""

    selector: Any = None
    vf_selector: Any = msgspec.field(name="vfSelector", default=None)
    allocate_strategy: str = ""
    required_topology_scope: str = ""
    exclusive_policy: str = ""


class _Joint(msgspec.Struct, frozen=True, rename="camel"):
    device_types: list[str] | None = None
    required_scope: str = ""


class _Partition(msgspec.Struct, frozen=True, rename="camel"):
    allocate_policy: str = ""
    ring_bus_bandwidth: Any = None


@dataclass(frozen=True, slots=True)
class Hints:
    """What the annotations say.

    Attributes:
        placement: Where the cards should be.
        alone: Each card must have no other share.
    """

    placement: Placement
    alone: bool


def read_hints(annotations: Mapping[str, str], cards: int, warnings: list[str]) -> Hints:
    """Read a pod's annotations.

    Args:
        annotations: All that the pod has.
        cards: How many it asks for.
        warnings: Takes what has no effect.

    Raises:
        UserError: An annotation that cannot be read, or requires what cannot be given.
    """
    hints = _decode(annotations, _HINT, dict[str, _Hint | None]) or {}
    hint = hints.get("gpu") or _Hint()
    others = sorted(kind for kind, value in hints.items() if kind != "gpu" and value is not None)
    if others:
        warnings.append(f"{locate(_HINT)}: {others[0][:63]!r} has no effect; only cards are shared")
    _check_joint(annotations, warnings)
    _check_partition(annotations, cards, warnings)
    if _RESULT in annotations:
        warnings.append(
            f"{locate(_RESULT)}: is a result that Koordinator's scheduler writes, and is not read"
        )
    return Hints(_read_scope(hint, cards, warnings), hint.exclusive_policy == "DeviceLevel")


def _read_scope(hint: _Hint, cards: int, warnings: list[str]) -> Placement:
    if hint.selector or hint.vf_selector is not None:
        raise UserError(
            "selects cards by labels of Koordinator's Device objects, which nobody publishes here; "
            "remove the selector, and choose nodes by nodeSelector",
            field=locate(_HINT),
        )
    if hint.exclusive_policy not in _POLICIES:
        raise UserError(
            f"the exclusive policy {hint.exclusive_policy[:63]!r} cannot be held; write "
            "'DeviceLevel', or remove it",
            field=locate(_HINT),
        )
    if hint.allocate_strategy:
        warnings.append(
            f"{locate(_HINT)}: allocateStrategy has no effect on cards, neither in Koordinator"
        )
    scope = hint.required_topology_scope
    if scope not in {"", *_SCOPES} or (scope == "Device" and cards > 1):
        raise UserError(
            f"the topology scope {scope[:63]!r} cannot hold {cards} cards; write one of "
            f"{', '.join(_SCOPES[1:])}",
            field=locate(_HINT),
        )
    return Placement(one_numa_node=scope == "NUMANode", one_pcie_root=scope == "PCIe")


def _check_joint(annotations: Mapping[str, str], warnings: list[str]) -> None:
    joint = _decode(annotations, _JOINT, _Joint)
    others = [kind for kind in (joint and joint.device_types) or () if kind != "gpu"]
    if joint is None or not others:
        return
    if joint.required_scope:
        raise UserError(
            f"requires cards and {others[0][:63]!r} in one place, but only cards are allocated "
            "here; remove requiredScope",
            field=locate(_JOINT),
        )
    warnings.append(
        f"{locate(_JOINT)}: has no effect; only cards are allocated here, not {others[0][:63]!r}"
    )


def _check_partition(annotations: Mapping[str, str], cards: int, warnings: list[str]) -> None:
    partition = _decode(annotations, _PARTITION, _Partition)
    if partition is None or cards == 1:
        return
    if partition.allocate_policy == "Restricted" or partition.ring_bus_bandwidth is not None:
        raise UserError(
            "requires a partition of linked cards, and links are unknown to the scheduler; remove "
            f'it, or require one PCIe root by "{_HINT}"',
            field=locate(_PARTITION),
        )
    warnings.append(
        f"{locate(_PARTITION)}: has no effect; links between cards are unknown to the scheduler"
    )


def _decode(annotations: Mapping[str, str], key: str, form: type[_Form]) -> _Form | None:
    text = annotations.get(key)
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=form)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError) as error:
        raise UserError(f"cannot be read: {str(error)[:200]}", field=locate(key)) from error
