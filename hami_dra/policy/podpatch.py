"""The rewritten pod, and the JSON patch (RFC 6902) that leads there.

The pod is never changed in place: what is not rewritten stays the same object, which also lets
`diff` skip it without looking.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec

from hami_dra.contract.names import ANNOTATION_ORIGINAL_REQUEST, LABEL_SHARES, POD_CLAIM_NAME
from hami_dra.policy.request import NodePolicy, PodRequest

STOCK_SCHEDULER: Final = "default-scheduler"

Pod = Mapping[str, Any]
Operation = dict[str, Any]
_CONTAINER_LISTS: Final = ("initContainers", "containers")
_RESOURCE_LISTS: Final = ("limits", "requests")
_MISSING: Final = object()
_PREFERRED: Final = "preferredDuringSchedulingIgnoredDuringExecution"
_NODE_PREFERENCE: Final = {
    "weight": 50,
    "podAffinityTerm": {
        "labelSelector": {"matchLabels": {LABEL_SHARES: "true"}},
        "namespaceSelector": {},
        "topologyKey": "kubernetes.io/hostname",
    },
}
"""Counts pods that have shares, of all namespaces; weighs less than what must matter more (100)."""


def rewrite_pod(
    pod: Pod,
    request: PodRequest,
    template_name: str | None,
    replace_schedulers: Collection[str] = (),
) -> dict[str, Any]:
    """Return the pod without GPU keys and, if it has shares, with the claim that replaces them.

    Args:
        pod: The pod.
        request: What was read from it.
        template_name: Of its claim; ``None`` if it has no share.
        replace_schedulers: Names that become the stock scheduler's.
    """
    spec: dict[str, Any] = dict(pod["spec"])
    for kind in _CONTAINER_LISTS:
        if spec.get(kind):
            spec[kind] = [_rewrite_container(container, request) for container in spec[kind]]
    if spec.get("schedulerName") in replace_schedulers:
        spec["schedulerName"] = STOCK_SCHEDULER
    metadata = dict(pod.get("metadata") or {})
    if template_name is not None:
        entry = {"name": POD_CLAIM_NAME, "resourceClaimTemplateName": template_name}
        spec["resourceClaims"] = [*(spec.get("resourceClaims") or []), entry]
        original = msgspec.json.encode(request.original, order="sorted").decode()
        metadata["annotations"] = {
            **(metadata.get("annotations") or {}),
            ANNOTATION_ORIGINAL_REQUEST: original,
        }
        metadata["labels"] = {**(metadata.get("labels") or {}), LABEL_SHARES: "true"}
        if request.placement.nodes:
            spec["affinity"] = _prefer_nodes(spec.get("affinity") or {}, request.placement.nodes)
    return {**pod, "metadata": metadata, "spec": spec}


def _prefer_nodes(affinity: Pod, policy: NodePolicy) -> dict[str, Any]:
    """Return the affinity with a preference for nodes with many or few pods that have shares."""
    kind = "podAntiAffinity" if policy == "spread" else "podAffinity"
    pods = dict(affinity.get(kind) or {})
    preferred = pods.get(_PREFERRED) or []
    if _NODE_PREFERENCE not in preferred:
        pods[_PREFERRED] = [*preferred, _NODE_PREFERENCE]
    return {**affinity, kind: pods}


def _rewrite_container(container: dict[str, Any], request: PodRequest) -> dict[str, Any]:
    name = container.get("name")
    takes = name in request.uses
    if name not in request.original or not (takes or container.get("resources")):
        return container
    resources = dict(container.get("resources") or {})
    for key in _RESOURCE_LISTS:
        if not resources.get(key):
            continue
        kept = {name: value for name, value in resources[key].items() if name not in request.keys}
        if kept:
            resources[key] = kept
        else:
            del resources[key]
    if takes:
        claim = {"name": POD_CLAIM_NAME, "request": request.uses[name]}
        resources["claims"] = [*(resources.get("claims") or []), claim]
    return {**container, "resources": resources}


def restore_pod(pod: Pod, original: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Pod:
    """Undo `rewrite_pod`: put the original keys back, except where a new value was written.

    For a pod to which another webhook added GPU keys after we rewrote it.
    """
    spec: dict[str, Any] = dict(pod["spec"])
    spec["resourceClaims"] = [
        entry for entry in spec.get("resourceClaims") or [] if entry.get("name") != POD_CLAIM_NAME
    ]
    for kind in _CONTAINER_LISTS:
        if spec.get(kind):
            spec[kind] = [_restore_container(container, original) for container in spec[kind]]
    return {**pod, "spec": spec}


def _restore_container(
    container: dict[str, Any], original: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> dict[str, Any]:
    resources = dict(container.get("resources") or {})
    claims = resources.get("claims") or []
    own = [claim for claim in claims if claim.get("name") == POD_CLAIM_NAME]
    written = original.get(str(container.get("name")), {})
    if not own and not written:
        return container
    for key in _RESOURCE_LISTS:
        values = written.get(key)
        if not values:
            continue
        resources[key] = {**values, **(resources.get(key) or {})}
    resources["claims"] = [claim for claim in claims if claim not in own]
    return {**container, "resources": resources}


def diff(before: Any, after: Any, path: str = "") -> list[Operation]:
    """Return the operations that turn one JSON value into another.

    Only add, replace and remove. A list that only grew at its end gets additions; one of the same
    length is compared element by element; any other is replaced as a whole. What is the same
    object on both sides is not looked into.
    """
    operations: list[Operation] = []
    if before is not after:
        _compare(before, after, path, operations)
    return operations


def _compare(before: Any, after: Any, path: str, operations: list[Operation]) -> None:
    # Exact classes, which JSON decoding makes: the abstract ones cost more than the comparison.
    kind = type(before)
    if kind is type(after):
        if kind is dict:
            _compare_objects(before, after, path, operations)
            return
        if kind is list:
            if len(after) >= len(before):
                _compare_lists(before, after, path, operations)
                return
        elif before == after:
            return
    # 1, 1.0 and True are equal in Python, but not in JSON.
    operations.append({"op": "replace", "path": path, "value": after})


def _compare_lists(
    before: list[Any], after: list[Any], path: str, operations: list[Operation]
) -> None:
    for index, (old, new) in enumerate(zip(before, after, strict=False)):
        if old is not new:
            _compare(old, new, f"{path}/{index}", operations)
    operations += [
        {"op": "add", "path": f"{path}/-", "value": value} for value in after[len(before) :]
    ]


def _compare_objects(
    before: dict[str, Any], after: dict[str, Any], path: str, operations: list[Operation]
) -> None:
    if not before.keys() <= after.keys():
        operations += [
            {"op": "remove", "path": f"{path}/{_escape(key)}"} for key in before if key not in after
        ]
    for key, value in after.items():
        old = before.get(key, _MISSING)
        if old is value:
            continue
        here = f"{path}/{_escape(key)}"
        if old is _MISSING:
            operations.append({"op": "add", "path": here, "value": value})
        else:
            _compare(old, value, here, operations)


def _escape(key: str) -> str:
    """Write a key as a JSON pointer's token (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")
