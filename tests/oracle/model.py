"""What must hold of allocations, worked out from slices and claims alone.

Written from the API's description and from what we promise, not from anybody's code: it is what
our code and kube-scheduler's are compared with. It knows as much as our templates use: one class,
exact counts, alternatives, capacities with a range, counters, marks on cards, constraints; of
conditions it knows what a caller tells it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

from hami_dra.contract.quantity import parse_quantity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

Object = dict[str, Any]
Key = tuple[str, str]
"""Pool and device."""
Amounts = dict[str, Fraction]

_REPELLING: Final = frozenset({"NoSchedule", "NoExecute"})


@dataclass(slots=True)
class Taken:
    """What is gone of a device, or of a counter set."""

    shares: int = 0
    whole: int = 0
    amounts: defaultdict[str, Fraction] = field(default_factory=lambda: defaultdict(Fraction))


@dataclass(frozen=True, slots=True)
class Pick:
    """One device of an allocation."""

    request: str
    key: Key
    consumed: Mapping[str, Fraction] | None


class Model:
    """Devices in the order in which they are tried.

    Args:
        slices: All of one driver; of other pools than a claim's node nothing is looked at.
        suits: Whether a device satisfies a request's selectors and is of its class.
    """

    def __init__(
        self,
        slices: Iterable[Object],
        suits: Callable[[Object, Object], bool] = lambda _device, _ask: True,
    ) -> None:
        self.devices: dict[Key, Object] = {}
        self.counters: dict[tuple[str, str, str], Fraction] = {}
        self._suits = suits
        for body in sorted(slices, key=lambda body: str(body["metadata"]["name"])):
            spec = body["spec"]
            pool = str(spec["pool"]["name"])
            for device in spec.get("devices") or ():
                self.devices[pool, device["name"]] = device
            for group in spec.get("sharedCounters") or ():
                for name, counter in group["counters"].items():
                    self.counters[pool, group["name"], name] = parse_quantity(counter["value"])

    # --- what holds of any state

    def list_breaches(self, claims: Iterable[Object]) -> Iterator[str]:
        """Yield what is wrong with the allocations of claims, one by one and together."""
        stored = list(claims)
        taken = self._sum_up(stored)
        for key, device in self.devices.items():
            used = taken[key]
            if used.whole + used.shares > 1 and used.whole:
                yield f"{key} is given to {used.whole} as a whole and to {used.shares} in shares"
            for name, capacity in (device.get("capacity") or {}).items():
                if used.amounts[name] > parse_quantity(capacity["value"]):
                    yield f"{key}: {used.amounts[name]} of {capacity['value']} {name} are given"
        for counter, used_of_it in self._sum_counters(taken).items():
            if used_of_it > self.counters.get(counter, Fraction(0)):
                yield f"counter {counter}: {used_of_it} of {self.counters.get(counter)} are given"
        ids = [result["shareID"] for result in _results(stored) if "shareID" in result]
        if len(set(ids)) < len(ids):
            yield "two results have one shareID"
        for claim in stored:
            for text in self._list_breaches_of_claim(claim):
                yield f"claim {claim['metadata']['name']}: {text}"

    def _list_breaches_of_claim(self, claim: Object) -> Iterator[str]:
        spec, results = claim["spec"]["devices"], list(_results([claim]))
        chosen = defaultdict(list)
        for result in results:
            key = result["pool"], result["device"]
            if key not in self.devices:
                yield f"{key} is not published"
                return
            yield from self._list_breaches_of_result(result, find_ask(spec, result["request"]))
            chosen[result["request"]].append(key)
        names = {request.partition("/")[0] for request in chosen}
        if names != {request["name"] for request in spec["requests"]} or len(names) < len(chosen):
            yield f"has {sorted(chosen)}"
        for request, keys in chosen.items():
            ask = find_ask(spec, request)
            if ask.get("allocationMode") != "All" and len(set(keys)) != ask.get("count", 1):
                yield f"request {request} has {keys}"
        picks = [Pick(request, key, None) for request, keys in chosen.items() for key in keys]
        for constraint in spec.get("constraints", ()):
            if not self._holds(constraint, picks):
                yield f"{constraint} does not hold for {chosen}"

    def _list_breaches_of_result(self, result: Object, ask: Object) -> Iterator[str]:
        device = self.devices[result["pool"], result["device"]]
        consumed = result.get("consumedCapacity")
        wanted = consume(device, ask)
        if ("shareID" in result) != bool(device.get("allowMultipleAllocations")):
            yield f"{device['name']}: a shareID without sharing, or sharing without one"
        if (None if consumed is None else _parse_amounts(consumed)) != wanted:
            yield f"{device['name']}: consumes {consumed} instead of {wanted}"
        if not self._suits(device, ask):
            yield f"{device['name']} does not satisfy {result['request']}"

    # --- what must be allocated next

    def predict(self, spec: Object, claims: Iterable[Object], pool: str) -> list[Pick]:
        """Return the devices that a claim gets on a node; none if there is no room.

        It is the first solution there is: requests in their order, of each the alternatives in
        theirs, of each the devices in theirs.
        """
        wanted = [
            [
                (
                    f"{request['name']}/{ask['name']}" if "firstAvailable" in request else name,
                    ask,
                )
                for name, ask in _alternatives(request)
            ]
            for request in spec["devices"]["requests"]
        ]
        constraints = spec["devices"].get("constraints", ())
        return self._search(wanted, constraints, self._sum_up(claims), pool)

    def _search(
        self,
        wanted: Sequence[list[tuple[str, Object]]],
        constraints: Sequence[Object],
        taken: dict[Key, Taken],
        pool: str,
    ) -> list[Pick]:
        picks: list[Pick] = []

        def extend(index: int, name: str, ask: Object, left: int, start: int) -> bool:
            if left == 0:
                return choose(index + 1)
            for position, (key, device) in enumerate(in_pool[start:], start):
                pick = self._try(key, device, name, ask, taken)
                if pick is None:
                    continue
                picks.append(pick)
                share = 0 if _is_admin(ask) else 1
                _add(taken[key], pick.consumed, share)
                if (
                    self._counters_hold(taken)
                    and all(self._holds(constraint, picks) for constraint in constraints)
                    and extend(index, name, ask, left - 1, position + 1)
                ):
                    return True
                _add(taken[key], pick.consumed, -share)
                picks.pop()
            return False

        def choose(index: int) -> bool:
            if index == len(wanted):
                return True
            return any(
                extend(index, name, ask, int(ask.get("count", 1)), 0) for name, ask in wanted[index]
            )

        in_pool = [(key, device) for key, device in self.devices.items() if key[0] == pool]
        return picks if choose(0) else []

    def _try(
        self, key: Key, device: Object, name: str, ask: Object, taken: dict[Key, Taken]
    ) -> Pick | None:
        if not self._suits(device, ask) or not _tolerates(device, ask):
            return None
        consumed = consume(device, ask)
        used = taken[key]
        if device.get("allowMultipleAllocations"):
            assert consumed is not None
            room = all(
                amount + used.amounts[capacity]
                <= parse_quantity(device["capacity"][capacity]["value"])
                for capacity, amount in consumed.items()
            )
            fits = room and not used.whole and consumed.keys() == device["capacity"].keys()
        else:
            asked = _parse_amounts(ask.get("capacity", {}).get("requests", {}))
            has = {n: parse_quantity(c["value"]) for n, c in device.get("capacity", {}).items()}
            enough = all(n in has and amount <= has[n] for n, amount in asked.items())
            fits = enough and (_is_admin(ask) or not (used.whole or used.shares))
        return Pick(name, key, consumed) if fits else None

    def _holds(self, constraint: Object, picks: Sequence[Pick]) -> bool:
        """Whether a constraint holds for the devices that it is about."""
        about = constraint.get("requests")
        keys = [
            pick.key
            for pick in picks
            if not about or {pick.request, pick.request.partition("/")[0]} & set(about)
        ]
        match = "matchAttribute" in constraint
        name = constraint["matchAttribute" if match else "distinctAttribute"]
        values = [self._read_attribute(self.devices[key], name) for key in keys]
        if None in values:
            return False
        return len(set(values)) <= 1 if match else len(set(values)) == len(values)

    @staticmethod
    def _read_attribute(device: Object, qualified: str) -> str | None:
        attributes = device.get("attributes") or {}
        # Names without a domain are of the driver's own.
        value = attributes.get(qualified) or attributes.get(qualified.partition("/")[2])
        return None if value is None else str(sorted(value.items()))

    def _sum_up(self, claims: Iterable[Object]) -> dict[Key, Taken]:
        taken: dict[Key, Taken] = defaultdict(Taken)
        for result in _results(claims):
            consumed = result.get("consumedCapacity")
            amounts = None if consumed is None else _parse_amounts(consumed)
            key = result["pool"], result["device"]
            _add(taken[key], amounts, 0 if result.get("adminAccess") else 1)
        return taken

    def _sum_counters(self, taken: Mapping[Key, Taken]) -> dict[tuple[str, str, str], Fraction]:
        """Return what is gone of each counter: a device consumes, however many hold a share."""
        sums: dict[tuple[str, str, str], Fraction] = defaultdict(Fraction)
        for key, used in taken.items():
            if not used.whole and not used.shares:
                continue
            for group in self.devices.get(key, {}).get("consumesCounters") or ():
                for name, counter in group["counters"].items():
                    sums[key[0], group["counterSet"], name] += parse_quantity(counter["value"])
        return sums

    def _counters_hold(self, taken: Mapping[Key, Taken]) -> bool:
        sums = self._sum_counters(taken)
        return all(amount <= self.counters[counter] for counter, amount in sums.items())


def consume(device: Object, ask: Object) -> Amounts | None:
    """Return what a request consumes of a shared device; ``None`` of one that is not shared.

    A capacity is left out if the device cannot give so much at once, whoever else has some.
    """
    if not device.get("allowMultipleAllocations"):
        return None
    asked = ask.get("capacity", {}).get("requests", {})
    found: Amounts = {}
    if not asked.keys() <= device["capacity"].keys():
        return found
    for name, capacity in device["capacity"].items():
        policy = capacity["requestPolicy"]
        allowed = policy["validRange"]
        amount = parse_quantity(asked.get(name, policy["default"]))
        least, step = parse_quantity(allowed["min"]), parse_quantity(allowed["step"])
        steps = max(0, math.ceil((amount - least) / step))
        rounded = least + steps * step
        if rounded <= parse_quantity(allowed["max"]):
            found[name] = rounded
    return found


def find_ask(spec: Object, request: str) -> Object:
    """Return the part of a claim's spec that a result is for; its name may have two parts."""
    base, _, chosen = request.partition("/")
    (found,) = (each for each in spec["requests"] if each["name"] == base)
    for name, ask in _alternatives(found):
        if name == (chosen or base):
            return ask
    raise AssertionError(f"{request} is not in {spec}")


def _alternatives(request: Object) -> list[tuple[str, Object]]:
    if "exactly" in request:
        return [(request["name"], request["exactly"])]
    return [(each["name"], each) for each in request["firstAvailable"]]


def _results(claims: Iterable[Object]) -> Iterator[Object]:
    for claim in claims:
        yield from (
            claim.get("status", {}).get("allocation", {}).get("devices", {}).get("results", ())
        )


def _is_admin(ask: Object) -> bool:
    return bool(ask.get("adminAccess"))


def _tolerates(device: Object, ask: Object) -> bool:
    return all(
        taint["effect"] not in _REPELLING
        or any(_matches(each, taint) for each in ask.get("tolerations", ()))
        for taint in device.get("taints") or ()
    )


def _matches(toleration: Object, taint: Object) -> bool:
    return (
        toleration.get("key", "") in {"", taint["key"]}
        and toleration.get("effect", "") in {"", taint["effect"]}
        and (
            toleration.get("operator") == "Exists"
            or toleration.get("value", "") == taint.get("value", "")
        )
    )


def _add(used: Taken, consumed: Mapping[str, Fraction] | None, sign: int) -> None:
    if consumed is None:
        used.whole += sign
        return
    used.shares += sign
    for name, amount in consumed.items():
        used.amounts[name] += sign * amount


def _parse_amounts(written: Mapping[str, Any]) -> Amounts:
    return {name: parse_quantity(str(amount)) for name, amount in written.items()}
