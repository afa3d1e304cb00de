"""What claims ask of devices, and why one device does not do.

The reasons bear the names that HAMi's scheduler gives them in its events, where it has one.
Sources: k8s.io/dynamic-resource-allocation structured/internal (selectors, taints, consumable
capacity), HAMi pkg/device/common.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final

from hami_dra.contract.names import (
    ATTR_PRODUCT_NAME,
    ATTR_UUID,
    CAPACITY_CORES,
    CAPACITY_MEMORY,
    CAPACITY_SLOTS,
)
from hami_dra.contract.quantity import MIB
from hami_dra.policy import cel
from hami_dra.policy.nodeselection import find_untolerated, name_taint
from hami_dra.policy.pools import Object, PooledDevice, Usage, list_counters, read_amount

INSUFFICIENT: Final = {
    CAPACITY_MEMORY: "CardInsufficientMemory",
    CAPACITY_CORES: "CardInsufficientCore",
    CAPACITY_SLOTS: "CardTimeSlicingExhausted",
}
TAINTED: Final = "CardNotHealth"
_LONGEST: Final = 160


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a device does not do: a name for programs, a text for people.

    Attributes:
        code: One of `report.WORDS`.
        text: Short, without the selector.
        selector: The expression that is meant, "" for none.
    """

    code: str
    text: str
    selector: str = ""


@dataclass(frozen=True, slots=True)
class Ask:
    """One way to satisfy a request.

    Attributes:
        name: Of the request, or ``request/subrequest``.
        device_class: Name of the DeviceClass.
        class_selectors: What makes a device one of the class.
        selectors: What the request itself demands.
        count: How many devices.
        every: All that match, instead of a number.
        admin: Whether it looks on, and takes nothing.
        capacity: What it asks of each capacity.
        tolerations: Of taints of devices.
    """

    name: str
    device_class: str
    class_selectors: tuple[str, ...] = ()
    selectors: tuple[str, ...] = ()
    count: int = 1
    every: bool = False
    admin: bool = False
    capacity: Mapping[str, Any] = field(default_factory=dict, hash=False)
    tolerations: tuple[Object, ...] = field(default=(), hash=False)


@dataclass(frozen=True, slots=True)
class Wish:
    """A request: the first of its asks that can be satisfied."""

    name: str
    asks: tuple[Ask, ...]


@dataclass(frozen=True, slots=True)
class Constraint:
    """An attribute in which devices must agree, or must all differ.

    Attributes:
        attribute: Its qualified name.
        equal: Agree, not differ.
        requests: To whose devices it applies; empty for all of the claim.
    """

    attribute: str
    equal: bool
    requests: frozenset[str]

    def concerns(self, ask: Ask) -> bool:
        """Whether the devices of an ask are under it."""
        names = {ask.name, ask.name.partition("/")[0]}
        return not self.requests or not self.requests.isdisjoint(names)


@dataclass(frozen=True, slots=True)
class ClaimAsk:
    """What one claim asks for."""

    wishes: tuple[Wish, ...]
    constraints: tuple[Constraint, ...] = ()


def read_asks(spec: Object, classes: Mapping[str, Object]) -> ClaimAsk:
    """Read the spec of a claim; a class that is not there has no selectors."""
    devices = spec.get("devices") or {}
    wishes = []
    for request in devices.get("requests") or ():
        name = str(request.get("name", ""))
        if request.get("exactly"):
            asks = [_read_ask(name, request["exactly"], classes)]
        else:
            asks = [
                _read_ask(f"{name}/{sub.get('name', '')}", sub, classes)
                for sub in request.get("firstAvailable") or ()
            ]
        wishes.append(Wish(name, tuple(asks)))
    constraints = [
        Constraint(str(raw[key]), key == "matchAttribute", frozenset(raw.get("requests") or ()))
        for raw in devices.get("constraints") or ()
        for key in ("matchAttribute", "distinctAttribute")
        if raw.get(key)
    ]
    return ClaimAsk(tuple(wishes), tuple(constraints))


def _read_ask(name: str, raw: Object, classes: Mapping[str, Object]) -> Ask:
    device_class = str(raw.get("deviceClassName", ""))
    class_spec = (classes.get(device_class) or {}).get("spec") or {}
    return Ask(
        name=name,
        device_class=device_class,
        class_selectors=_read_selectors(class_spec),
        selectors=_read_selectors(raw),
        count=int(raw.get("count") or 1),
        every=raw.get("allocationMode") == "All",
        admin=raw.get("adminAccess") is True,
        capacity=(raw.get("capacity") or {}).get("requests") or {},
        tolerations=tuple(raw.get("tolerations") or ()),
    )


def _read_selectors(raw: Object) -> tuple[str, ...]:
    return tuple(
        str(each["cel"].get("expression", ""))
        for each in raw.get("selectors") or ()
        if each.get("cel")
    )


def is_of_class(device: PooledDevice, ask: Ask) -> bool:
    """Whether a device is of the class, or fails to say."""
    return all(_answer(device, each) is not False for each in ask.class_selectors)


def judge_kind(device: PooledDevice, ask: Ask) -> Iterator[Reason]:
    """Yield why a device is none of those that an ask means, whatever is free."""
    for expression in (*ask.class_selectors, *ask.selectors):
        answer = _answer(device, expression)
        if isinstance(answer, cel.Unanswered):
            code = "SelectorFails" if answer.kind == "fails" else "SelectorUnknown"
            verb = "fails" if answer.kind == "fails" else "has no answer"
            yield Reason(code, f"{verb}: {answer.reason}", expression)
        elif not answer:
            yield Reason(_name_mismatch(expression), "is false", expression)
    taint = None if ask.admin else find_untolerated(device.taints, ask.tolerations)
    if taint is not None:
        yield Reason(TAINTED, f"taint {name_taint(taint)}")
    if device.shared or not ask.capacity:
        return
    for name, asked in ask.capacity.items():
        if device.total(name) < read_amount(asked):
            has = format_amount(device.total(name)) if name in device.capacity else "none"
            wanted = format_amount(read_amount(asked))
            yield Reason(name_shortage(name), f"{name}: {wanted} asked, the card has {has}")


def _answer(device: PooledDevice, expression: str) -> bool | cel.Unanswered:
    if isinstance(device.view, cel.Unanswered):
        return device.view
    return cel.evaluate(expression, device.view)


def _name_mismatch(expression: str) -> str:
    if f".{ATTR_PRODUCT_NAME}" in expression:
        return "CardTypeMismatch"
    if f".{ATTR_UUID} in" in expression:
        return "CardUuidMismatch"
    return "CardNotFoundCustomFilterRule"


def name_shortage(capacity: str) -> str:
    """Return the name of the reason for too little of a capacity."""
    return INSUFFICIENT.get(capacity, f"CardInsufficient{capacity[:1].upper()}{capacity[1:]}")


def judge_free(device: PooledDevice, ask: Ask, usage: Usage) -> Iterator[Reason]:
    """Yield what of a device is taken that an ask needs."""
    if ask.admin:
        return
    if device.key in usage.whole or (not device.shared and usage.holders.get(device.key)):
        holders = ", ".join(usage.holders[device.key]) or "this pod"
        yield Reason("ExclusiveDeviceAllocateConflict", f"is wholly taken by {holders}")
        return
    if device.shared:
        for name in ask.capacity:
            if name not in device.capacity:
                yield Reason("NoSuchCapacity", f"has no capacity {name!r}")
        for name in sorted(device.capacity, key=_rank):
            yield from _judge_capacity(device, ask, usage, name)
    if not usage.holders.get(device.key):
        for counter, amount in list_counters(device):
            taken = usage.counters[device.key[:2]][counter]
            if taken + amount > device.counters.get(counter, Fraction(0)):
                yield Reason("CountersExhausted", f"its part of {counter} is taken by others")


def _rank(capacity: str) -> tuple[int, str]:
    """Order capacities as HAMi looks at them."""
    known = list(INSUFFICIENT)
    return (known.index(capacity) if capacity in known else len(known)), capacity


def _judge_capacity(device: PooledDevice, ask: Ask, usage: Usage, name: str) -> Iterator[Reason]:
    total, taken = device.total(name), usage.consumed[device.key][name]
    need = consume(device, ask, name)
    free = f"{format_amount(total - taken)} of {format_amount(total)} free"
    if need is None:
        asked = format_amount(read_amount(ask.capacity[name]))
        most = f"a share has {format_amount(total)} at most"
        yield Reason(name_shortage(name), f"{name}: {asked} asked, {most}")
    elif need + taken > total:
        whole = name not in ask.capacity and need == total
        asked = "all of it" if whole else format_amount(need)
        code = "ExclusiveDeviceAllocateConflict" if whole else name_shortage(name)
        yield Reason(code, f"{name}: {asked} asked, {free}")


def consume(device: PooledDevice, ask: Ask, name: str) -> Fraction | None:
    """Return how much of a capacity an ask takes; ``None`` if no share can be so large."""
    policy = device.capacity[name].get("requestPolicy") or {}
    if name not in ask.capacity:
        return read_amount(policy["default"]) if policy.get("default") else device.total(name)
    asked = read_amount(ask.capacity[name])
    if policy.get("validValues"):
        return min((v for v in map(read_amount, policy["validValues"]) if v >= asked), default=None)
    limits = policy.get("validRange") or {}
    if limits.get("min") is not None:
        low, step = read_amount(limits["min"]), read_amount(limits.get("step"))
        if asked <= low:
            asked = low
        elif step:
            asked = low + -((low - asked) // step) * step
    if limits.get("max") is not None and asked > read_amount(limits["max"]):
        return None
    return asked


def format_amount(amount: Fraction) -> str:
    """Write an amount for people: bytes in MiB, anything else as a number."""
    if amount.denominator == 1 and amount and amount.numerator % MIB == 0:
        return f"{amount.numerator // MIB} MiB"
    return str(amount.numerator) if amount.denominator == 1 else f"{float(amount):g}"


def shorten(expression: str) -> str:
    """Return an expression on one line, cut where it gets long."""
    line = " ".join(expression.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
