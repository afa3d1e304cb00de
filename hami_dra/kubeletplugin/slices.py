"""What has to change so that a pool's ResourceSlices say what they should. Pure.

Semantics (k8s.io/dynamic-resource-allocation resourceslice): readers ignore a pool whose newest
generation is incomplete. One slice that differs is updated in place, in the same generation;
anything more is a new generation of all. A slice's name begins with its number, because the
scheduler walks slices in the order of their names. Shared counters (KEP-4815) are in slices without
devices, after those with devices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hami_dra.contract.quantity import parse_quantity

PAGE_SIZE: Final = 64
"""Devices of a slice: the API allows 128, but 64 once a device has a taint or counters."""

COUNTER_PAGE_SIZE: Final = 8
"""Counter sets of a slice."""

_TIME_ADDED: Final = "timeAdded"
"""Of a taint; the API server sets it, and whoever waits for a toleration to end counts from it."""
_QUANTITY_KEYS: Final = frozenset({"value", "default", "min", "max", "step"})

Object = dict[str, Any]
_COUNTERS: Final = "sharedCounters"
Page = tuple[str, Sequence[Object]]
"""The field of a slice's spec that has content, and the content."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """Whose slices they are.

    Attributes:
        driver: Driver name.
        name: Pool name.
        node_name: The node that has the devices.
        node_uid: UID of the Node object, the slices' owner.
    """

    driver: str
    name: str
    node_name: str
    node_uid: str


@dataclass(frozen=True, slots=True)
class SlicePlan:
    """Changes in the order in which they are to be made: delete, replace, create."""

    generation: int
    deletes: tuple[Object, ...] = ()
    replaces: tuple[Object, ...] = ()
    creates: tuple[Object, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing has to change."""
        return not (self.deletes or self.replaces or self.creates)


def split_pages(devices: Sequence[Object]) -> list[list[Object]]:
    """Return the devices by slice; without any, one empty slice says "alive, nothing here"."""
    return [list(devices[i : i + PAGE_SIZE]) for i in range(0, len(devices), PAGE_SIZE)] or [[]]


def split_counters(sets: Sequence[Object]) -> list[list[Object]]:
    """Return counter sets by slice."""
    step = COUNTER_PAGE_SIZE
    return [list(sets[i : i + step]) for i in range(0, len(sets), step)]


def plan_slices(
    existing: Sequence[Object],
    devices: Sequence[Sequence[Object]],
    pool: Pool,
    *,
    generation: int,
    counters: Sequence[Sequence[Object]] = (),
) -> SlicePlan:
    """Compare what is stored with what should be.

    Args:
        existing: The driver's slices of the node, as stored.
        devices: Devices of each slice, in order; at least one page.
        pool: Whose they are.
        generation: The newest generation that this process ever published.
        counters: Counter sets of each slice that follows.
    """
    pages: list[Page] = [("devices", page) for page in devices]
    pages += [(_COUNTERS, page) for page in counters]
    newest = max([generation, *(_generation(item) for item in existing)], default=0)
    current: dict[int, Object] = {}
    obsolete: list[Object] = []
    for item in sorted(existing, key=lambda item: str(item["metadata"].get("name", ""))):
        index = _find_index(item, pool, len(pages))
        if index is None or index in current or _generation(item) != newest:
            obsolete.append(item)
        else:
            current[index] = item
    differing = [
        index
        for index, item in current.items()
        if not _is_as_wanted(item, pages[index], len(pages), pool)
    ]
    complete = len(current) == len(pages)
    if complete and not obsolete and len(differing) <= 1:
        return SlicePlan(
            max(newest, 1),
            replaces=tuple(
                _render(pages[i], pool, len(pages), i, newest, current[i]) for i in differing
            ),
        )
    if complete and not differing:
        # Left-overs of an older generation: readers ignore them already.
        return SlicePlan(newest, deletes=tuple(obsolete))
    following = newest + 1
    return SlicePlan(
        following,
        deletes=tuple(obsolete),
        replaces=tuple(
            _render(pages[i], pool, len(pages), i, following, item)
            for i, item in sorted(current.items())
        ),
        creates=tuple(
            _render(page, pool, len(pages), i, following, None)
            for i, page in enumerate(pages)
            if i not in current
        ),
    )


def normalize_devices(devices: Sequence[Object] | None) -> Any:
    """Return a form in which devices compare by meaning: ``40960Mi`` equals ``40Gi``.

    When a taint was added is not what it means.
    """
    return [_normalize(device) for device in devices or ()]


def find_dropped_fields(wanted: Sequence[Object], stored: Sequence[Object] | None) -> list[str]:
    """Return the names of device fields that the API server did not store.

    A field whose feature gate is off vanishes without an error.
    """
    dropped: set[str] = set()
    by_name = {device.get("name"): device for device in stored or ()}
    for device in wanted:
        _compare(device, by_name.get(device["name"], {}), "", dropped)
    return sorted(dropped)


def _compare(wanted: Any, stored: Any, path: str, dropped: set[str]) -> None:
    if isinstance(wanted, dict):
        for key, value in wanted.items():
            inner = f"{path}.{key}" if path else str(key)
            if not isinstance(stored, dict) or key not in stored:
                dropped.add(inner)
            else:
                _compare(value, stored[key], inner, dropped)


def _normalize(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {k: _normalize(v, k) for k, v in value.items() if k != _TIME_ADDED}
    if isinstance(value, list):
        return [_normalize(item) for item in value]
    if key in _QUANTITY_KEYS and isinstance(value, str):
        try:
            return parse_quantity(value)
        except ValueError:
            return value
    return value


def _generation(item: Mapping[str, Any]) -> int:
    return int(item.get("spec", {}).get("pool", {}).get("generation", 0))


def _prefix(index: int, pool: Pool) -> str:
    return f"{index:05x}-{pool.driver}-{pool.node_name}-"


def _find_index(item: Mapping[str, Any], pool: Pool, count: int) -> int | None:
    if item["spec"].get("pool", {}).get("name") != pool.name:
        return None
    name = str(item["metadata"].get("generateName") or item["metadata"].get("name", ""))
    return next(
        # The API server cuts a generateName at 58 characters; ours keeps what it was given.
        (index for index in range(count) if name[:6] == _prefix(index, pool)[:6]),
        None,
    )


def _owner(pool: Pool) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "name": pool.node_name,
        "uid": pool.node_uid,
        "controller": True,
    }


def _is_as_wanted(item: Object, page: Page, count: int, pool: Pool) -> bool:
    spec = item["spec"]
    field, content = page
    other = "devices" if field == _COUNTERS else _COUNTERS
    return (
        normalize_devices(spec.get(field)) == normalize_devices(content)
        and not spec.get(other)
        and int(spec["pool"].get("resourceSliceCount", 0)) == count
        and item["metadata"].get("ownerReferences") == [_owner(pool)]
    )


def _render(  # noqa: PLR0917 - private, and each call is one line
    page: Page, pool: Pool, count: int, index: int, generation: int, old: Object | None
) -> Object:
    field, content = page
    known = old["metadata"] if old else {}
    metadata: Object = {"ownerReferences": [_owner(pool)]}
    if old:
        metadata |= {key: known[key] for key in ("name", "uid", "resourceVersion") if key in known}
        metadata |= {key: known[key] for key in ("generateName",) if key in known}
    else:
        metadata["generateName"] = _prefix(index, pool)
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceSlice",
        "metadata": metadata,
        "spec": {
            "driver": pool.driver,
            "nodeName": pool.node_name,
            "pool": {
                "name": pool.name,
                "generation": generation,
                "resourceSliceCount": count,
            },
            field: content if field == _COUNTERS else _keep_times(content, old),
        },
    }


def _keep_times(page: Sequence[Object], old: Object | None) -> list[Object]:
    """Return the devices, each taint with the time since when it is stored."""
    stored = (old or {}).get("spec", {}).get("devices") or ()
    times = {
        (device.get("name"), taint.get("key"), taint.get("effect")): taint[_TIME_ADDED]
        for device in stored
        for taint in device.get("taints") or ()
        if _TIME_ADDED in taint
    }
    if not times:
        return list(page)
    return [_date_taints(device, times) for device in page]


def _date_taints(device: Object, times: Mapping[Any, str]) -> Object:
    if "taints" not in device:
        return device
    taints = []
    for taint in device["taints"]:
        time = times.get((device["name"], taint["key"], taint["effect"]))
        taints.append({**taint, _TIME_ADDED: time} if time else taint)
    return {**device, "taints": taints}
