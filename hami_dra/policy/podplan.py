"""One pod: what it asks for, the template it needs, the patch it gets, and what to tell its author.

A scheduler that only knew the keys, by default ``hami-scheduler``, becomes the stock scheduler. Any
other name is kept: the keys would be unschedulable there too, and a scheduler that knows Dynamic
Resource Allocation needs nothing else.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from hami_dra.contract.errors import RetryError, UserError
from hami_dra.contract.names import ANNOTATION_ORIGINAL_REQUEST, POD_CLAIM_NAME
from hami_dra.contract.settings import DEFAULT_SETTINGS, AdmissionSettings
from hami_dra.policy import podpatch
from hami_dra.policy.dialects import read_request
from hami_dra.policy.fit import NodeCards, list_sizes
from hami_dra.policy.hiding import hide_cards
from hami_dra.policy.native import is_native
from hami_dra.policy.percentage import list_alternatives, warn_percentage
from hami_dra.policy.placement import choose_index, fit_constraints, warn_preferences
from hami_dra.policy.podview import Container, PodView, list_places, view_pod
from hami_dra.policy.request import PodRequest
from hami_dra.policy.templates import build_template, is_template_name

_MOST_ANNOTATION_BYTES: Final = 256 << 10
"""Keys and values of one object together (apimachinery ValidateAnnotationsSize)."""
_DNS_LABEL: Final = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")

Original = dict[str, dict[str, dict[str, str | int | float | None]]]


@dataclass(frozen=True, slots=True)
class PodPlan:
    """What admission does with a pod.

    Attributes:
        request: What was read.
        template: Template that must exist in the pod's namespace; ``None`` if it has no share.
        pod: The rewritten pod.
        patch: JSON patch from the pod as it came.
        warnings: For the author of the pod.
    """

    request: PodRequest
    template: dict[str, Any] | None
    pod: dict[str, Any]
    patch: list[podpatch.Operation]
    warnings: tuple[str, ...]


def plan_pod(
    pod: Mapping[str, Any],
    settings: AdmissionSettings = DEFAULT_SETTINGS,
    *,
    nodes: Collection[NodeCards] | None = (),
    rotation: int = 0,
) -> PodPlan | None:
    """Decide about a pod; ``None`` if there is nothing to do, and so also if it is done already.

    Args:
        pod: The pod.
        settings: The operator's.
        nodes: The distinct sets of cards that nodes publish; ``None`` while they are not known,
            which only percentages of a card cannot do without.
        rotation: Any number that differs from pod to pod, for spreading over cards.

    Raises:
        UserError: The pod cannot get what it asks for, with the field and what to do.
        RetryError: It asks for a percentage before the published cards are known.
    """
    view = view_pod(pod)
    request = None if is_native(view, settings) else read_request(view, settings)
    if request is None:
        return _plan_without_keys(pod, view) if settings.nvidia.overwrite_env else None
    source = pod
    original = find_own_rewrite(view)
    if original is not None:
        source = podpatch.restore_pod(pod, original)
        request = read_request(view_pod(source), settings) or request
    warnings = list(request.warnings)
    template = None
    if request.shares:
        _check_pod(view, request)
        sizes = _list_sizes(request, nodes)
        placement, dropped = fit_constraints(request.shares, request.placement)
        request = replace(request, placement=placement)
        warnings += dropped
        index = choose_index(nodes or (), rotation) if placement.spread_cards else None
        template = build_template(request.shares, sizes, placement, index=index)
        warnings += _warn_shares(request, sizes)
    if view.spec.scheduler_name in settings.replace_schedulers:
        warnings.append(
            f"spec.schedulerName: {view.spec.scheduler_name!r} is not needed; the pod goes to "
            f"{podpatch.STOCK_SCHEDULER!r}"
        )
    name = template["metadata"]["name"] if template else None
    rewritten = podpatch.rewrite_pod(source, request, name, settings.replace_schedulers)
    _check_annotations(rewritten)
    if original is not None:
        _check_restored(pod, rewritten)
    if settings.nvidia.overwrite_env:
        rewritten = hide_cards(rewritten, view_pod(rewritten), request.uses)
    return PodPlan(
        request=request,
        template=template,
        pod=rewritten,
        patch=podpatch.diff(pod, rewritten),
        warnings=tuple(warnings),
    )


def _plan_without_keys(pod: Mapping[str, Any], view: PodView) -> PodPlan | None:
    rewritten = hide_cards(pod, view, ())
    patch = podpatch.diff(pod, rewritten)
    if not patch:
        return None
    request = PodRequest(shares=(), uses={}, original={}, keys=())
    return PodPlan(request=request, template=None, pod=rewritten, patch=patch, warnings=())


def _list_sizes(request: PodRequest, nodes: Collection[NodeCards] | None) -> tuple[int, ...]:
    if nodes is not None:
        return list_sizes(nodes)
    if any(share.memory_percent is not None for share in request.shares):
        raise RetryError(
            "the pod asks for a percentage of a card, and the sizes of the cluster's cards have "
            "not been read yet; try again in a few seconds"
        )
    return ()


def _warn_shares(request: PodRequest, sizes: Collection[int]) -> Iterator[str]:
    for share in request.shares:
        alternatives = len(list_alternatives(share, sizes))
        for text in (
            warn_percentage(share, sizes),
            warn_preferences(share, request.placement, alternatives),
        ):
            if text is not None:
                yield text


def find_own_rewrite(view: PodView) -> Original | None:
    """Return the keys that we took from this pod earlier.

    Raises:
        UserError: The claim name is taken by somebody else's claim.
    """
    for index, entry in enumerate(view.spec.resource_claims or ()):
        if entry.get("name") != POD_CLAIM_NAME:
            continue
        template = entry.get("resourceClaimTemplateName")
        original = _read_annotation(view)
        if is_template_name(template) and original:
            return original
        raise _reserved(f"spec.resourceClaims[{index}].name")
    for place in list_places(view):
        resources = place.container.resources
        for index, claim in enumerate((resources and resources.claims) or ()):
            if claim.get("name") == POD_CLAIM_NAME:
                raise _reserved(f"{place.path}.resources.claims[{index}].name")
    return None


def _reserved(field: str) -> UserError:
    return UserError(
        f"{POD_CLAIM_NAME!r} is the name of the claim that replaces a pod's GPU keys; "
        "give your own claim another name, or remove the keys",
        field=field,
    )


def _read_annotation(view: PodView) -> Original | None:
    text = (view.metadata.annotations or {}).get(ANNOTATION_ORIGINAL_REQUEST, "")
    try:
        found = msgspec.json.decode(text, type=Original)
    except (msgspec.DecodeError, RecursionError):
        return None
    # Anybody can write the annotation; nothing in it may reach another field than it came from.
    known = all(lists.keys() <= {"limits", "requests", "annotations"} for lists in found.values())
    return found if known else None


def _check_restored(pod: Mapping[str, Any], rewritten: Mapping[str, Any]) -> None:
    """Refuse an annotation with resources that no claim replaces: they would stay in the pod.

    Anybody can write it, and what it says need not even be valid in a pod.

    Raises:
        UserError: With the container and the resource.
    """
    for before, after in zip(
        list_places(view_pod(pod)), list_places(view_pod(rewritten)), strict=True
    ):
        written = _list_resources(before.container)
        for name, key in _list_resources(after.container):
            if (name, key) not in written:
                raise UserError(
                    f"says that {key!r} in the {name} of container {after.container.name!r} was "
                    f"replaced by a claim, which it never is; remove the annotation, and the claim "
                    f"{POD_CLAIM_NAME!r} from the pod",
                    field=f'metadata.annotations["{ANNOTATION_ORIGINAL_REQUEST}"]',
                )


def _list_resources(container: Container) -> list[tuple[str, str]]:
    resources = container.resources
    if resources is None:
        return []
    lists = (("limits", resources.limits), ("requests", resources.requests))
    return [(name, key) for name, values in lists for key in values or ()]


def _check_annotations(pod: Mapping[str, Any]) -> None:
    """Refuse a pod that has no room for the annotation that keeps its keys.

    Raises:
        UserError: With the sizes.
    """
    annotations = pod["metadata"].get("annotations") or {}
    size = sum(len(key.encode()) + len(value.encode()) for key, value in annotations.items())
    if size > _MOST_ANNOTATION_BYTES:
        own = len(annotations.get(ANNOTATION_ORIGINAL_REQUEST, ""))
        raise UserError(
            f"are {size} bytes with the {own} in which the pod's GPU keys are kept; an object has "
            f"at most {_MOST_ANNOTATION_BYTES}",
            field="metadata.annotations",
        )


def _check_pod(view: PodView, request: PodRequest) -> None:
    """Refuse pods whose share could not be given or enforced.

    Raises:
        UserError: With the reason.
    """
    if view.spec.node_name:
        raise UserError(
            "is set, so the pod passes by the scheduler and nothing would allocate its GPU; use "
            'nodeSelector "kubernetes.io/hostname" instead',
            field="spec.nodeName",
        )
    names: set[str] = set()
    for place in list_places(view):
        security = place.container.security_context
        if security is not None and security.privileged:
            raise UserError(
                "a privileged container sees every device of its node, so no limit of this pod's "
                "GPUs would hold; remove it or the pod's GPU keys",
                field=f"{place.path}.securityContext.privileged",
            )
        name = place.container.name
        if name in names or (name in request.uses and not _DNS_LABEL.fullmatch(name)):
            raise UserError(
                f"{name[:64]!r} must be a lower-case DNS label, unique in the pod",
                field=f"{place.path}.name",
            )
        names.add(name)
