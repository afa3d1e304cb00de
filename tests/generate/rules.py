"""What the API server demands of the objects that admission writes, as far as admission could fail.

Numbers and forms: k8s.io/kubernetes pkg/apis/resource/validation and pkg/apis/core/validation,
k8s.io/api resource/v1 types.go. The cluster tests ask the API server itself.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from tests.generate.texts import MOST_ANNOTATION_BYTES

_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_MOST_ENTRIES: Final = 32
_MOST_SELECTORS: Final = 32
_MOST_ALTERNATIVES: Final = 8
_MOST_EXPRESSION_BYTES: Final = 10 << 10
_MOST_PARAMETER_BYTES: Final = 10 << 10
_MOST_OBJECT_BYTES: Final = 1 << 20
"""etcd takes 1.5 MiB; a claim has an allocation, and both have managed fields, beside the spec."""


def breaches_of_template(template: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the API server would not accept of a template."""
    if len(msgspec.json.encode(template)) > _MOST_OBJECT_BYTES:
        yield "the template is too large to be stored"
    devices = template["spec"]["spec"]["devices"]
    for kind in ("requests", "constraints", "config"):
        if len(devices.get(kind, ())) > _MOST_ENTRIES:
            yield f"{len(devices[kind])} {kind}"
    known: set[str] = set()
    cards = 0
    for request in devices["requests"]:
        subrequests = request.get("firstAvailable") or []
        known |= {request["name"], *(f"{request['name']}/{each['name']}" for each in subrequests)}
        cards += (subrequests or [request["exactly"]])[0]["count"]
        yield from _breaches_of_request(request)
    if cards > _MOST_ENTRIES:
        yield f"{cards} cards"
    for entry in (*devices.get("constraints", ()), *devices.get("config", ())):
        if not known.issuperset(entry["requests"]) or len(entry["requests"]) > _MOST_ENTRIES:
            yield f"requests of {entry}"
    for entry in devices.get("config", ()):
        if len(msgspec.json.encode(entry["opaque"]["parameters"])) > _MOST_PARAMETER_BYTES:
            yield "the parameters are too long"


def _breaches_of_request(request: Mapping[str, Any]) -> Iterator[str]:
    subrequests = request.get("firstAvailable") or []
    names = [request["name"], *(each["name"] for each in subrequests)]
    if len(set(names[1:])) < len(subrequests) or len(subrequests) > _MOST_ALTERNATIVES:
        yield f"alternatives {names}"
    if not all(map(_LABEL.fullmatch, names)):
        yield f"names {names}"
    for ask in subrequests or [request["exactly"]]:
        for text in ask.get("capacity", {}).get("requests", {}).values():
            if not _is_canonical(text):
                yield f"{text} is stored as another text, and the name with it is another's"
        expressions = [each["cel"]["expression"] for each in ask.get("selectors", ())]
        if len(expressions) > _MOST_SELECTORS:
            yield f"{len(expressions)} selectors"
        if any(len(each.encode()) > _MOST_EXPRESSION_BYTES for each in expressions):
            yield "an expression is too long"


def _is_canonical(text: str) -> bool:
    """Whether a quantity is stored as it is written (apimachinery's resource.Quantity)."""
    match = re.fullmatch(r"([1-9][0-9]*)([kMGTPE]?|[KMGTPE]i)", text)
    if match is None:
        return text == "0"
    number, unit = int(match[1]), match[2]
    return unit in {"E", "Ei"} or number % (1024 if unit.endswith("i") else 1000) != 0


def breaches_of_pod(
    pod: Mapping[str, Any], before: Mapping[str, Any], template: Mapping[str, Any] | None
) -> Iterator[str]:
    """Yield what the API server would not accept of a rewritten pod, unless it was so before."""
    size = _annotation_bytes(pod)
    if size > MOST_ANNOTATION_BYTES >= _annotation_bytes(before):
        yield f"{size} bytes of annotations"
    entries = pod["spec"].get("resourceClaims") or []
    names = [entry.get("name") for entry in entries]
    if len(set(names)) < len(names):
        yield f"resourceClaims {names}"
    if template is None:
        return
    own = [entry for entry in entries if entry["name"] == "hami-gpu"]
    if [entry.get("resourceClaimTemplateName") for entry in own] != [template["metadata"]["name"]]:
        yield f"resourceClaims {own}"
    requests = {each["name"] for each in template["spec"]["spec"]["devices"]["requests"]}
    for kind in ("initContainers", "containers"):
        for container in pod["spec"].get(kind) or ():
            claims = (container.get("resources") or {}).get("claims") or []
            used = [each.get("request") for each in claims if each["name"] == "hami-gpu"]
            if not requests.issuperset(used) or len(set(used)) < len(used):
                yield f"claims {claims} of container {container.get('name')!r}"


def _annotation_bytes(pod: Mapping[str, Any]) -> int:
    annotations = (pod.get("metadata") or {}).get("annotations") or {}
    return sum(len(key.encode()) + len(value.encode()) for key, value in annotations.items())
