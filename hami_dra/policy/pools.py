"""Devices as the scheduler finds them in ResourceSlices, and what claims have taken of them.

Sources: k8s.io/dynamic-resource-allocation structured (pools, allocated state) and
docs of KEP-5075 (consumable capacity) for what a share consumes.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from hami_dra.contract.quantity import parse_quantity
from hami_dra.policy import cel
from hami_dra.policy.nodeselection import matches_selector

Object = Mapping[str, Any]
DeviceKey = tuple[str, str, str]
"""Driver, pool and name of a device."""
Amounts = Mapping[str, Fraction]


@dataclass(frozen=True, slots=True)
class PooledDevice:
    """One device of a pool.

    Attributes:
        key: Driver, pool and name.
        raw: As it stands in its slice.
        view: What expressions see of it.
        taints: Its own, and those that rules give it.
        counters: What the pool has of each counter, by set and name.
    """

    key: DeviceKey
    raw: Object
    view: cel.Device | cel.Unanswered
    taints: tuple[Object, ...] = ()
    counters: Amounts = field(default_factory=dict)

    @property
    def shared(self) -> bool:
        """Whether several claims may have a part of it."""
        return self.raw.get("allowMultipleAllocations") is True

    @property
    def capacity(self) -> Mapping[str, Object]:
        """Its capacities."""
        return self.raw.get("capacity") or {}

    def total(self, name: str) -> Fraction:
        """Return how much it has of a capacity."""
        return read_amount((self.capacity.get(name) or {}).get("value"))

    def attribute(self, name: str) -> Any:
        """Return the value of an attribute by its qualified name, ``None`` without one."""
        attributes = self.raw.get("attributes") or {}
        domain, _, key = name.rpartition("/")
        found = attributes.get(name) or (attributes.get(key) if domain == self.key[0] else None)
        return next(iter(found.values()), None) if found else None


@dataclass(slots=True)
class Usage:
    """What is taken of devices.

    Attributes:
        consumed: Of each capacity of a shared device.
        holders: Claims that have it or a part of it.
        whole: Devices that are taken as a whole.
        counters: Taken of each pool's counters, by driver and pool.
    """

    consumed: dict[DeviceKey, dict[str, Fraction]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(Fraction))
    )
    holders: dict[DeviceKey, list[str]] = field(default_factory=lambda: defaultdict(list))
    whole: set[DeviceKey] = field(default_factory=set)
    counters: dict[tuple[str, str], dict[str, Fraction]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(Fraction))
    )

    def copy_for(self, devices: Iterable["PooledDevice"]) -> "Usage":
        """Return what is taken of some devices, to be changed at will."""
        copy = Usage()
        for key in {device.key for device in devices}:
            if key in self.holders:
                copy.holders[key] = list(self.holders[key])
            if key in self.consumed:
                copy.consumed[key].update(self.consumed[key])
            if key in self.whole:
                copy.whole.add(key)
            if key[:2] in self.counters:
                copy.counters[key[:2]].update(self.counters[key[:2]])
        return copy


def read_amount(value: Any) -> Fraction:
    """Return a quantity, 0 for what cannot be read."""
    try:
        return parse_quantity(value) if isinstance(value, str | int) else Fraction(0)
    except ValueError:
        return Fraction(0)


def select_slices(slices: Iterable[Object]) -> tuple[list[Object], list[str]]:
    """Return the slices of complete pools in the scheduler's order, and the pools that are not.

    Only the newest generation of a pool counts, and only when all of its slices are there.
    """
    pools: dict[tuple[str, str], list[Object]] = defaultdict(list)
    for item in slices:
        pools[item["spec"]["driver"], item["spec"]["pool"]["name"]].append(item)
    chosen: list[Object] = []
    incomplete = []
    for (driver, name), members in sorted(pools.items()):
        newest = max(int(item["spec"]["pool"].get("generation", 0)) for item in members)
        current = [m for m in members if int(m["spec"]["pool"].get("generation", 0)) == newest]
        if len(current) != int(current[0]["spec"]["pool"].get("resourceSliceCount", 1)):
            incomplete.append(f"{name} of {driver}")
            continue
        chosen += sorted(current, key=lambda item: str(item["metadata"]["name"]))
    return chosen, incomplete


class Pools:
    """The devices of a cluster.

    Attributes:
        incomplete: Pools that the scheduler does not use yet, because slices of them are missing.
    """

    def __init__(self, slices: Iterable[Object], taint_rules: Sequence[Object] = ()) -> None:
        chosen, self.incomplete = select_slices(slices)
        self._of_node: dict[str, list[PooledDevice]] = defaultdict(list)
        self._elsewhere: list[tuple[Object, PooledDevice]] = []
        self.by_key: dict[DeviceKey, PooledDevice] = {}
        counters = _read_counters(chosen)
        for item in chosen:
            spec = item["spec"]
            place = spec["driver"], spec["pool"]["name"]
            for raw in spec.get("devices") or ():
                device = _read_device(place, raw, taint_rules, counters.get(place, {}))
                self.by_key[device.key] = device
                where = raw if spec.get("perDeviceNodeSelection") else spec
                if where.get("nodeName"):
                    self._of_node[where["nodeName"]].append(device)
                else:
                    self._elsewhere.append((where, device))

    def list_devices(self, node: Object) -> list[PooledDevice]:
        """Return the devices that pods on a node can have."""
        name = str(node["metadata"]["name"])
        remote = [
            device
            for where, device in self._elsewhere
            if where.get("allNodes") or matches_selector(where.get("nodeSelector") or {}, node)
        ]
        return [*self._of_node.get(name, ()), *remote]

    def count_usage(self, claims: Iterable[Object]) -> Usage:
        """Return what the allocations of all claims have taken."""
        usage = Usage()
        for claim in claims:
            metadata = claim["metadata"]
            name = f"{metadata.get('namespace', '')}/{metadata['name']}"
            allocation = (claim.get("status") or {}).get("allocation") or {}
            for result in (allocation.get("devices") or {}).get("results") or ():
                if not result.get("adminAccess"):
                    key = result["driver"], result["pool"], result["device"]
                    self._take(usage, key, result, name)
        return usage

    def _take(self, usage: Usage, key: DeviceKey, result: Object, holder: str) -> None:
        device = self.by_key.get(key)
        if device is not None and key not in usage.holders:
            for name, amount in list_counters(device):
                usage.counters[key[:2]][name] += amount
        usage.holders[key].append(holder)
        if not result.get("shareID"):
            usage.whole.add(key)
        for name, value in (result.get("consumedCapacity") or {}).items():
            usage.consumed[key][name] += read_amount(value)


def _read_device(
    place: tuple[str, str], raw: Object, rules: Sequence[Object], counters: Amounts
) -> PooledDevice:
    key = (*place, str(raw["name"]))
    extra = [rule["spec"]["taint"] for rule in rules if _rule_selects(rule, key)]
    return PooledDevice(
        key=key,
        raw=raw,
        view=cel.view_device(place[0], raw),
        taints=(*(raw.get("taints") or ()), *extra),
        counters=counters,
    )


def _rule_selects(rule: Object, key: DeviceKey) -> bool:
    selector = (rule.get("spec") or {}).get("deviceSelector")
    if selector is None:
        return False
    wanted = (selector.get("driver"), selector.get("pool"), selector.get("device"))
    return all(want is None or want == have for want, have in zip(wanted, key, strict=True))


def _read_counters(slices: Iterable[Object]) -> dict[tuple[str, str], dict[str, Fraction]]:
    found: dict[tuple[str, str], dict[str, Fraction]] = defaultdict(dict)
    for item in slices:
        place = item["spec"]["driver"], item["spec"]["pool"]["name"]
        for group in item["spec"].get("sharedCounters") or ():
            for name, counter in (group.get("counters") or {}).items():
                found[place][f"{group['name']}/{name}"] = read_amount(counter.get("value"))
    return found


def list_counters(device: PooledDevice) -> list[tuple[str, Fraction]]:
    """Return what a device takes of its pool's counters as soon as somebody has it."""
    return [
        (f"{group['counterSet']}/{name}", read_amount(counter.get("value")))
        for group in device.raw.get("consumesCounters") or ()
        for name, counter in (group.get("counters") or {}).items()
    ]
