"""Every golden case without a scheduler: pods of all dialects, through admission to an allocation.

The rows and manifests say what must be allocated (tests/golden/README.md). Here one pod after the
other is rewritten, and the allocator is asked node by node. Which of several nodes a pod goes to is
the scheduler's business and is not judged: one node that gives what is wanted is enough. What
happens between the API server and the scheduler belongs to tests/cluster/test_tables.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest

from hami_dra.contract.names import LABEL_VGPU_MANAGER_IGNORE, LABEL_WEBHOOK_IGNORE
from hami_dra.contract.settings import decode_settings
from hami_dra.policy.native import is_native
from hami_dra.policy.podplan import plan_pod
from hami_dra.policy.podview import view_pod
from tests.cluster.tables.manifests import load_manifests
from tests.cluster.tables.nodes import build_nodes, shape_nodes
from tests.cluster.tables.objects import count_pods, expand
from tests.cluster.tables.rows import load_rows
from tests.cluster.tables.verdicts import Seen, compare, find_pods
from tests.oracle.model import Model
from tests.oracle.world import World, list_classes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.cluster.simnodes import SimNode
    from tests.cluster.tables.cases import Case, Pods
    from tests.oracle.allocator import Allocator

Object = dict[str, Any]

_PREFIX: Final = "case"
_IGNORED: Final = {(LABEL_WEBHOOK_IGNORE, "ignore"), (LABEL_VGPU_MANAGER_IGNORE, "true")}


def _list_pods(case: Case) -> Iterator[Object]:
    """Yield the pods that controllers would create, with names like those that they give."""
    for number, body in enumerate(expand(case.objects)):
        if body["kind"] == "Pod":
            metadata = {"name": f"{body['metadata'].get('generateName', '')}{number}"}
            yield {**body, "metadata": {**metadata, **body["metadata"]}}
            continue
        for index in range(count_pods(body)):
            template = body["spec"]["template"]
            end = "" if body["kind"] == "StatefulSet" else "-0"
            metadata = {"name": f"{body['metadata']['name']}-{index}{end}"}
            yield {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {**template.get("metadata", {}), **metadata},
                "spec": template["spec"],
            }


def _is_judged(case: Case) -> bool:
    """Whether the case is about an allocation that needs no scheduler."""
    if case.denied or any(each.untaken for each in case.pods):
        return False
    waiting = any(each.pending is not None for each in case.pods)
    if waiting and len(case.pods) > 1 and not case.in_turn:
        return False  # who waits is decided by who comes first
    if any("affinity" in part for each in case.pods for part in each.pending or ()):
        return False  # cards are not what it waits for
    settings = decode_settings(case.settings)
    return not any(
        _IGNORED & (body["metadata"].get("labels") or {}).items()  # admission never sees it
        or is_native(view_pod(body), settings)  # the claim is the scheduler's own
        for body in _list_pods(case)
    )


CASES: Final = [*load_rows(), *load_manifests()]
JUDGED: Final = [case for case in CASES if _is_judged(case)]


def test_nearly_all_cases_that_allocate_are_judged() -> None:
    allocating = [case for case in CASES if any(each.allocated for each in case.pods)]
    judged = [case for case in JUDGED if any(each.allocated for each in case.pods)]
    assert len(judged) > 0.9 * len(allocating)


@pytest.mark.parametrize("case", JUDGED, ids=lambda case: case.name)
def test_the_allocator_gives_what_the_case_wants(allocator: Allocator, case: Case) -> None:
    settings = decode_settings(case.settings)
    nodes = build_nodes(case.nodes, _PREFIX)
    classes = [body for body in case.objects if body["kind"] == "DeviceClass"]
    world = World(allocator, nodes, classes=[*list_classes(settings), *classes])
    specs = {
        body["metadata"]["name"]: body["spec"]["spec"]
        for body in case.objects
        if body["kind"] == "ResourceClaimTemplate"
    }
    own = {
        body["metadata"]["name"]: body["spec"]
        for body in case.objects
        if body["kind"] == "ResourceClaim"
    }
    for number, body in enumerate(_list_pods(case)):
        plan = plan_pod(body, settings, nodes=shape_nodes(case.nodes), rotation=number)
        pod = body if plan is None else plan.pod
        if plan is not None and plan.template is not None:
            specs[plan.template["metadata"]["name"]] = plan.template["spec"]["spec"]
        (wanted,) = (each for each in case.pods if find_pods(each, [pod]))
        if pod["spec"].get("resourceClaims"):
            assert _place(world, nodes, pod, specs, own, wanted) == []
    if all(node.cards and not node.devices and not node.others for node in nodes):
        assert list(Model(world.slices).list_breaches(world.held.values())) == []


def _place(  # noqa: PLR0917 - one call
    world: World,
    nodes: Sequence[SimNode],
    pod: Object,
    templates: Mapping[str, Object],
    claims: Mapping[str, Object],
    wanted: Pods,
) -> list[str]:
    """Try one node after the other; return what is wrong with each, nothing if one is right.

    A pod that must wait has to be turned away by all of them.
    """
    name = pod["metadata"]["name"]
    new: dict[str, Object] = {}
    statuses = []
    for entry in pod["spec"]["resourceClaims"]:
        if template := entry.get("resourceClaimTemplateName"):
            new[f"{name}-{entry['name']}"] = templates[template]
            statuses.append({"name": entry["name"], "resourceClaimName": f"{name}-{entry['name']}"})
        elif (claim := entry["resourceClaimName"]) not in world.held:
            new[claim] = claims[claim]
    # Whatever the scheduler says of a pod that waits, and what is stored, is judged elsewhere.
    pending: list[str] | None = None if wanted.pending is None else []
    one = msgspec.structs.replace(wanted, count=1, stored={}, pending=pending)
    problems: list[str] = []
    for node in nodes:
        before = dict(world.held)
        answer = world.try_claims(new, node.name)
        seen = {**pod, "status": {"resourceClaimStatuses": statuses}}
        if answer.allocations is not None:
            seen["spec"] = {**pod["spec"], "nodeName": node.name}
        found = compare(
            [one], Seen(pods=[seen], claims=dict(world.held), nodes=nodes, prefix=_PREFIX)
        )
        if not found and pending is None:
            return []
        world.held = before
        problems += [f"{node.name}: {text} {answer.error}" for text in found]
    return problems
