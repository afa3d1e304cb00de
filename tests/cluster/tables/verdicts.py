"""Compares what the API server has with what a case wants."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from hami_dra.contract.names import CONFIG_API_VERSION, CONFIG_KIND, DRIVER_NAME
from hami_dra.contract.quantity import parse_quantity
from hami_dra.policy.devices import name_device

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from tests.cluster.simnodes import SimNode
    from tests.cluster.tables.cases import Allocated, Object, Pods

_WHOLE_PERCENT: Final = 100
_KIND: Final = {"apiVersion": CONFIG_API_VERSION, "kind": CONFIG_KIND}


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What there is of a case.

    Attributes:
        pods: All of its namespace.
        claims: All of its namespace, by name.
        nodes: The case's own.
        prefix: Of the names of its nodes.
    """

    pods: Sequence[Object]
    claims: Mapping[str, Object]
    nodes: Sequence[SimNode]
    prefix: str


def find_pods(wanted: Pods, pods: Iterable[Object]) -> list[Object]:
    """Return the pods that an expectation is about."""
    return [pod for pod in pods if fnmatch.fnmatchcase(pod["metadata"]["name"], wanted.match)]


def is_bound(pod: Object) -> bool:
    """Whether the scheduler has chosen a node."""
    return bool(pod["spec"].get("nodeName"))


def explain_pending(pod: Object) -> str:
    """Return what the scheduler says of a pod that it cannot place; "" if it says nothing."""
    for condition in pod.get("status", {}).get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message", ""))
    return ""


def is_settled(wanted: Sequence[Pods], pods: Sequence[Object]) -> bool:
    """Whether nothing more has to happen to these pods."""
    return all(
        len(found := find_pods(each, pods)) >= each.count
        and all(_is_as_wanted(each, pod) for pod in found)
        for each in wanted
    )


def is_decided(pod: Object) -> bool:
    """Whether the scheduler has placed a pod, or said why it cannot for lack of room."""
    said = explain_pending(pod)
    return is_bound(pod) or "nodes are available" in said


def _is_as_wanted(wanted: Pods, pod: Object) -> bool:
    if wanted.untaken:
        return bool(pod["spec"].get("resourceClaims"))
    if wanted.pending is None:
        return is_bound(pod)
    said = explain_pending(pod)
    return bool(said) and all(part in said for part in wanted.pending)


def compare(wanted: Sequence[Pods], seen: Seen) -> list[str]:
    """Return what is not as wanted, pod by pod."""
    problems: list[str] = []
    expected: set[str] = set()
    for each in wanted:
        found = find_pods(each, seen.pods)
        expected.update(pod["metadata"]["name"] for pod in found)
        if len(found) != each.count:
            problems.append(f"{len(found)} pods match {each.match!r} instead of {each.count}")
        for pod in found:
            name = pod["metadata"]["name"]
            problems += [f"pod {name}: {text}" for text in _compare_pod(each, pod, seen)]
    names = {pod["metadata"]["name"] for pod in seen.pods}
    problems += [f"pod {name} is not expected" for name in sorted(names - expected)]
    return problems


def _compare_pod(wanted: Pods, pod: Object, seen: Seen) -> Iterator[str]:
    said = explain_pending(pod)
    if wanted.untaken:
        if is_bound(pod) or said:
            yield f"is bound, or the scheduler says {said!r}"
        yield from _list_missing(wanted.stored, pod, "")
        return
    if is_bound(pod) != (wanted.pending is None):
        yield "is bound" if is_bound(pod) else f"is not bound: {said or pod['status']}"
        return
    yield from _list_missing(wanted.stored, pod, "")
    if wanted.pending is not None:
        yield from (f"{part!r} is not in {said!r}" for part in wanted.pending if part not in said)
        return
    node = pod["spec"]["nodeName"].removeprefix(f"{seen.prefix}-")
    if wanted.node and node != wanted.node:
        yield f"is bound to node {node} instead of {wanted.node}"
    requests = _list_results(pod, seen.claims)
    if requests.keys() != wanted.allocated.keys():
        yield f"has {sorted(requests)} allocated instead of {sorted(wanted.allocated)}"
        return
    for name, allocated in wanted.allocated.items():
        for text in _compare_request(allocated, *requests[name], seen):
            yield f"request {name}: {text}"


def _list_results(
    pod: Object, claims: Mapping[str, Object]
) -> dict[str, tuple[list[Object], list[Object]]]:
    """Return device results and configurations by request."""
    status = pod.get("status", {})
    names = [each.get("resourceClaimName") for each in status.get("resourceClaimStatuses", ())]
    names += [
        each["resourceClaimName"]
        for each in pod["spec"].get("resourceClaims", ())
        if "resourceClaimName" in each
    ]
    if extended := status.get("extendedResourceClaimStatus"):
        names.append(extended["resourceClaimName"])
    found: dict[str, tuple[list[Object], list[Object]]] = {}
    for name in names:
        devices = claims.get(name, {}).get("status", {}).get("allocation", {}).get("devices", {})
        config = devices.get("config", [])
        for result in devices.get("results", ()):
            request = result["request"].partition("/")[0]
            found.setdefault(request, ([], config))[0].append(result)
    return found


def _compare_request(
    wanted: Allocated, results: list[Object], config: list[Object], seen: Seen
) -> Iterator[str]:
    if len(results) != wanted.cards:
        yield f"has {len(results)} devices instead of {wanted.cards}"
        return
    drivers = {result["driver"] for result in results}
    if drivers != {wanted.driver}:
        yield f"has devices of {sorted(drivers)} instead of {wanted.driver}"
        return
    chosen = results[0]["request"].partition("/")[2]
    if wanted.alternative and chosen != wanted.alternative:
        yield f"took alternative {chosen!r} instead of {wanted.alternative!r}"
    yield from _compare_places(wanted, results, seen)
    sizes = {
        (node.name, name_device(card.uuid)): card.memory_mib
        for node in seen.nodes
        for card in node.cards
    }
    for index, result in enumerate(results):
        consumed = _normalize(result.get("consumedCapacity") or {})
        size_mib = sizes.get((result["pool"], result["device"]), 0)
        expected = _normalize(_list_consumed(wanted, index, size_mib))
        if consumed != expected:
            yield f"{result['device']} gives {result.get('consumedCapacity')}, not {expected}"
    parameters = _find_parameters(config, results[0]["request"])
    if parameters != wanted.config:
        yield f"carries the configuration {parameters} instead of {wanted.config}"


def _compare_places(wanted: Allocated, results: list[Object], seen: Seen) -> Iterator[str]:
    places, models = _list_places(seen)
    where = sorted(places[result["pool"], result["device"]] for result in results)
    if wanted.node and {place.partition("/")[0] for place in where} != {wanted.node}:
        yield f"is on {where} instead of on node {wanted.node}"
    only = seen.nodes[0].name.removeprefix(f"{seen.prefix}-")
    at = sorted(place if "/" in str(place) else f"{only}/{place}" for place in map(str, wanted.at))
    if at and where != at:
        yield f"is on {where} instead of {at}"
    products = [models.get((result["pool"], result["device"]), "") for result in results]
    if wanted.product:
        texts = wanted.product
        expected = [texts] * wanted.cards if isinstance(texts, str) else texts
        if not all(part in model for part, model in zip(expected, products, strict=True)):
            yield f"has {products} instead of {expected}"


def _list_places(seen: Seen) -> tuple[dict[tuple[str, str], str], dict[tuple[str, str], str]]:
    """Return ``NODE/POSITION`` and the model of every device."""
    places: dict[tuple[str, str], str] = {}
    models: dict[tuple[str, str], str] = {}
    for node in seen.nodes:
        name = node.name.removeprefix(f"{seen.prefix}-")
        for position, card in enumerate(node.cards):
            key = node.name, name_device(card.uuid)
            places[key], models[key] = f"{name}/{position}", card.product_name
        for device in (*node.devices, *(each for pool in node.others.values() for each in pool)):
            key = node.name, device["name"]
            places[key] = f"{name}/{device['name']}"
            model = device.get("attributes", {}).get("productName", {})
            models[key] = model.get("string", "")
    return places, models


def _list_consumed(wanted: Allocated, index: int, size_mib: int) -> Object:
    if wanted.driver != DRIVER_NAME or wanted.consumed:
        return wanted.consumed
    if wanted.memory is None and wanted.cores is None:
        return {}
    memory = wanted.memory[index] if isinstance(wanted.memory, list) else wanted.memory
    if isinstance(memory, str) and memory.endswith("%"):
        memory = f"{size_mib * int(memory[:-1]) // _WHOLE_PERCENT}Mi"
    return {"memory": memory, "cores": wanted.cores, "slots": wanted.slots}


def _normalize(capacity: Object) -> Object:
    return {
        name: None if value is None else parse_quantity(str(value))
        for name, value in capacity.items()
    }


def _find_parameters(config: list[Object], request: str) -> Object:
    """Return our parameters for a request, as the node reads them: the last that names it."""
    names = {request, request.partition("/")[0]}
    found: Object = {}
    for entry in config:
        opaque = entry.get("opaque", {})
        if opaque.get("driver") == DRIVER_NAME and (
            not entry.get("requests") or names & set(entry["requests"])
        ):
            found = opaque["parameters"]
    return {key: value for key, value in found.items() if _KIND.get(key) != value}


def _list_missing(wanted: Any, stored: Any, path: str) -> Iterator[str]:
    if isinstance(wanted, dict) and isinstance(stored, dict):
        for key, value in wanted.items():
            yield from _list_missing(value, stored.get(key), f"{path}.{key}")
    elif wanted != stored:
        yield f"{path.lstrip('.')} is {stored!r} instead of {wanted!r}"
