"""HAMi's annotations: which cards a pod wants, and how it should be placed.

Meaning: HAMi v2.10 ``pkg/device/devices.go`` (CheckType, CheckUUID), ``pkg/device/nvidia``
(checkType, assertNuma) and ``pkg/scheduler/policy``. What the stock scheduler cannot do is told
in a warning (docs/decisions/0011-annotations.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from hami_dra.contract.errors import UserError
from hami_dra.contract.names import (
    ANNOTATION_GPU_POLICY,
    ANNOTATION_MODE,
    ANNOTATION_NODE_POLICY,
    ANNOTATION_NOUSE_TYPE,
    ANNOTATION_NOUSE_UUID,
    ANNOTATION_NUMA_BIND,
    ANNOTATION_SCORING_WEIGHTS,
    ANNOTATION_USE_TYPE,
    ANNOTATION_USE_UUID,
    ANNOTATIONS_OF_SCHEDULER,
    ATTR_STD_NUMA_NODE,
    ATTR_STD_PCIE_ROOT,
)
from hami_dra.contract.settings import SchedulerPolicy
from hami_dra.policy.dialects.cardlists import CardList, list_selectors, locate, split_list
from hami_dra.policy.dialects.parts import MIG_MODE
from hami_dra.policy.request import NodePolicy, Placement
from hami_dra.policy.selectors import parent_among, product_contains, uuid_among
from hami_dra.policy.truth import parse_bool

_OUR_MODE: Final = "hami-core"
_MODEL_LISTS: Final = (
    CardList(ANNOTATION_USE_TYPE, product_contains),
    CardList(ANNOTATION_NOUSE_TYPE, product_contains, refused=True),
)
_CARD_LISTS: Final = (
    *_MODEL_LISTS,
    CardList(ANNOTATION_USE_UUID, uuid_among),
    CardList(ANNOTATION_NOUSE_UUID, uuid_among, refused=True),
)
_PART_LISTS: Final = (
    *_MODEL_LISTS,
    CardList(ANNOTATION_USE_UUID, parent_among),
    CardList(ANNOTATION_NOUSE_UUID, parent_among, refused=True),
)
"""The same of MIG devices, which have UUIDs of their own."""
WISHES: Final = (
    *(card_list.key for card_list in _CARD_LISTS),
    ANNOTATION_NUMA_BIND,
    ANNOTATION_MODE,
    ANNOTATION_NODE_POLICY,
    ANNOTATION_GPU_POLICY,
)
"""Annotations that have an effect."""
_NEAR: Final = {"numa": ATTR_STD_NUMA_NODE, "topology-aware": ATTR_STD_PCIE_ROOT}
_GPU_POLICIES: Final = ("binpack", "spread", "mutex", *_NEAR)
_NODE_POLICIES: Final = ("binpack", "spread")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the annotations say.

    Attributes:
        placement: Where the cards should be.
        alone: Each card should have no other share (policy ``mutex``).
        warnings: What has no, or another effect.
        parts: Conditions on MIG devices, where the pod wants those (``vgpu-mode: mig``); ``None``:
            it wants shares.
    """

    placement: Placement
    alone: bool
    warnings: tuple[str, ...]
    parts: tuple[str, ...] | None = None


def read_wishes(annotations: Mapping[str, str], defaults: SchedulerPolicy) -> Wishes:
    """Read a pod's annotations.

    Args:
        annotations: All that the pod has.
        defaults: The policies of pods that do not say one.

    Raises:
        UserError: A wish that no card can ever fulfil, or a list that is too long.
    """
    warnings: list[str] = []
    divided = _read_mode(annotations)
    gpu_policies = _read_gpu_policies(annotations, defaults, warnings)
    near = next((_NEAR[policy] for policy in gpu_policies if policy in _NEAR), "")
    order = next((policy for policy in gpu_policies if policy in _NODE_POLICIES), "")
    placement = Placement(
        selectors=tuple(list_selectors(annotations, _CARD_LISTS)),
        one_numa_node=_read_numa_bind(annotations, warnings),
        near=near,
        spread_cards=order == "spread",
        nodes=_read_node_policy(annotations, defaults, warnings),
    )
    if ANNOTATION_SCORING_WEIGHTS in annotations:
        warnings.append(
            f"{locate(ANNOTATION_SCORING_WEIGHTS)}: has no effect; the scheduler gives cards no "
            "scores"
        )
    stale = sorted(key for key in annotations if key.startswith(ANNOTATIONS_OF_SCHEDULER))
    if stale:
        warnings.append(
            f"{locate(stale[0])}: is a result that HAMi's scheduler writes, and is not read"
        )
    parts = tuple(list_selectors(annotations, _PART_LISTS)) if divided else None
    return Wishes(placement, "mutex" in gpu_policies, tuple(warnings), parts)


def _read_mode(annotations: Mapping[str, str]) -> bool:
    """Return whether a pod wants parts of cards, and no shares."""
    mode = annotations.get(ANNOTATION_MODE, "").strip()
    # HAMi looks for the card's mode inside the annotation: "hami-core,mig" is either.
    if not mode or _OUR_MODE in mode:
        return False
    if MIG_MODE not in mode:
        raise UserError(
            f"is {mode[:63]!r}, but cards here are shared ({_OUR_MODE!r}) or divided "
            f"({MIG_MODE!r}); remove the annotation, or add such a mode to it",
            field=locate(ANNOTATION_MODE),
        )
    return True


def _read_numa_bind(annotations: Mapping[str, str], warnings: list[str]) -> bool:
    text = annotations.get(ANNOTATION_NUMA_BIND)
    if text is None:
        return False
    bound = parse_bool(text)
    if bound is None:
        warnings.append(
            f"{locate(ANNOTATION_NUMA_BIND)}: {text[:63]!r} is neither true nor false, and so "
            "has no effect"
        )
    return bool(bound)


def _read_gpu_policies(
    annotations: Mapping[str, str], defaults: SchedulerPolicy, warnings: list[str]
) -> list[str]:
    text = annotations.get(ANNOTATION_GPU_POLICY)
    policies = split_list(defaults.gpu_scheduler_policy if text is None else text)
    unknown = [policy for policy in policies if policy not in _GPU_POLICIES]
    if unknown:
        warnings.append(
            f"{locate(ANNOTATION_GPU_POLICY)}: {unknown[0][:63]!r} is no policy (they are "
            f"{', '.join(_GPU_POLICIES)}) and has no effect"
        )
    if "topology-aware" in policies and text is not None:
        warnings.append(
            f"{locate(ANNOTATION_GPU_POLICY)}: the scheduler does not know the links between "
            "cards; several cards below one PCIe root are preferred, a single card is any"
        )
    return policies


def _read_node_policy(
    annotations: Mapping[str, str], defaults: SchedulerPolicy, warnings: list[str]
) -> NodePolicy:
    text = annotations.get(ANNOTATION_NODE_POLICY)
    if text is None:
        return defaults.node_scheduler_policy
    if text not in _NODE_POLICIES:
        warnings.append(
            f"{locate(ANNOTATION_NODE_POLICY)}: {text[:63]!r} is no policy; taken as 'binpack'"
        )
    return "spread" if text == "spread" else "binpack"
