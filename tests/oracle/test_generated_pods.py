"""Pods that nobody would think of: whatever admission makes of them, the allocator understands.

A condition that does not compile, or that fails for one card, aborts the scheduling of its pod for
good (k8s.io/dynamic-resource-allocation/structured), so no template may ever cause an error.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from hami_dra.contract.errors import UserError
from hami_dra.policy.fit import demands_of_shares, warn_unfit
from hami_dra.policy.podplan import plan_pod
from tests.cluster.simcards import make_cards
from tests.cluster.simnodes import SimNode
from tests.cluster.tables.nodes import NodeSpec, shape_nodes
from tests.generate.budget import EXAMPLES, sample
from tests.generate.pods import pods
from tests.generate.words import EVERYTHING
from tests.oracle.model import Model
from tests.oracle.world import World, list_classes

if TYPE_CHECKING:
    from tests.oracle.allocator import Allocator

Object = dict[str, Any]

_KINDS: Final = ("A100", "T4", "H100", "H200", "A100", "L4", "T4", "A100")
_SHAPES: Final = shape_nodes([NodeSpec(name="n", cards=list(_KINDS))])
_CLASSES: Final = list_classes(EVERYTHING)


def test_no_template_is_an_error(allocators: list[Allocator]) -> None:
    seen: Counter[str] = Counter()
    for pod in sample(pods(EVERYTHING), EXAMPLES // 2):
        seen[_judge(allocators, pod)] += 1
    assert seen["allocated"] > EXAMPLES // 100
    assert seen["no room"] > EXAMPLES // 100


def _judge(allocators: list[Allocator], pod: Object) -> str:
    try:
        plan = plan_pod(pod, EVERYTHING, nodes=_SHAPES)
    except UserError:
        return "refused"
    if plan is None or plan.template is None:
        return "no claim"
    spec = plan.template["spec"]["spec"]
    verdicts = {_allocate(allocator, spec) for allocator in allocators}
    assert len(verdicts) == 1, f"the versions differ: {spec}"
    if not verdicts.pop():
        return "no room"
    # Who is told that no card is large enough must never be given one.
    one_card = plan.request.placement.one_card
    assert warn_unfit(demands_of_shares(plan.request.shares, one_card=one_card), _SHAPES) == []
    return "allocated"


def _allocate(allocator: Allocator, spec: Object) -> bool:
    node = SimNode(name="n", cards=make_cards(_KINDS))
    world = World(allocator, [node], classes=_CLASSES)
    answer = world.try_claims({"c": spec}, "n")
    assert answer.error == "", (allocator.version, spec)
    # Conditions are the allocator's business here.
    assert list(Model(world.slices).list_breaches(world.held.values())) == []
    return answer.allocations is not None
