"""Extended resources that the scheduler fulfils with devices, as the claim that it would make.

``DeviceClass.spec.extendedResourceName`` (KEP-5004): of several classes with one name the newest
counts, then the first by name. The claim itself is made when the pod is bound.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from hami_dra.contract.quantity import parse_integer

Object = Mapping[str, Any]


def describe_claim(pod: Object, classes: Iterable[Object]) -> dict[str, Any] | None:
    """Return the spec of the claim for a pod's extended resources, ``None`` if it has none.

    Init containers count where no other container asks: they use the others' devices.
    """
    by_name = _choose_classes(classes)
    spec = pod.get("spec") or {}
    requests: list[dict[str, Any]] = []
    for kind in ("containers", "initContainers"):
        for index, container in enumerate(spec.get(kind) or ()):
            limits = (container.get("resources") or {}).get("limits") or {}
            for key, value in limits.items():
                count = _read_count(value) if key in by_name else 0
                if count:
                    name = f"container-{index}-request-{len(requests)}"
                    ask = {"deviceClassName": by_name[key], "count": count}
                    requests.append({"name": name, "exactly": ask})
        if requests:
            return {"devices": {"requests": requests}}
    return None


def _choose_classes(classes: Iterable[Object]) -> dict[str, str]:
    chosen: dict[str, str] = {}
    named = sorted(classes, key=lambda each: str(each["metadata"]["name"]))
    for each in sorted(named, key=_read_birth, reverse=True):
        resource = (each.get("spec") or {}).get("extendedResourceName")
        if resource:
            chosen.setdefault(str(resource), str(each["metadata"]["name"]))
    return chosen


def _read_birth(each: Object) -> str:
    return str(each["metadata"].get("creationTimestamp") or "")


def _read_count(value: Any) -> int:
    try:
        return max(0, parse_integer(value))
    except (ValueError, TypeError):
        return 0
