"""Why a pod waits for cards, node by node and card by card; or which cards it got.

Everything here is read from objects as they are at one moment; the scheduler may have decided from
others. It is an explanation, and nothing depends on it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hami_dra.contract.names import ATTR_PRODUCT_NAME
from hami_dra.policy.asks import (
    Ask,
    ClaimAsk,
    Reason,
    Wish,
    format_amount,
    is_of_class,
    judge_free,
    judge_kind,
    read_asks,
    shorten,
)
from hami_dra.policy.nodeselection import describe_mismatch, matches_selector
from hami_dra.policy.placing import Search
from hami_dra.policy.pools import Object, PooledDevice, Pools, Usage, read_amount
from hami_dra.policy.report import CardReport, NodeReport, Report, plural, summarize


@dataclass(frozen=True, slots=True)
class PodClaim:
    """A claim of the pod, or what will become one.

    Attributes:
        name: In the pod; the claim's own for a claim without a pod.
        origin: Which object says what is asked, for people.
        spec: What is asked; ``None`` if that object does not exist.
        allocation: Of the claim, ``None`` if it has none.
    """

    name: str
    origin: str
    spec: Object | None
    allocation: Object | None = None


@dataclass(frozen=True, slots=True)
class Situation:
    """All that an explanation is made of, read at about one moment.

    Attributes:
        subject: The pod or the claim, for people.
        pod: The pod; ``None`` for a claim without one.
        claims: Of the pod.
        nodes: Of the cluster.
        slices: Of every driver.
        all_claims: Of every namespace, for what is taken.
        classes: DeviceClasses by name.
        taint_rules: DeviceTaintRules.
        notes: What could not be read.
    """

    subject: str
    pod: Object | None
    claims: tuple[PodClaim, ...]
    nodes: tuple[Object, ...]
    slices: tuple[Object, ...]
    all_claims: tuple[Object, ...]
    classes: Mapping[str, Object]
    taint_rules: tuple[Object, ...] = ()
    notes: tuple[str, ...] = ()


def explain(situation: Situation) -> Report:
    """Say what keeps the claims from being allocated, or where they are."""
    waiting = [claim for claim in situation.claims if claim.allocation is None]
    allocated = tuple(
        line
        for claim in situation.claims
        if claim.allocation is not None
        for line in _list_got(claim)
    )
    notes = (*situation.notes, *_note_pod(situation.pod))
    if not waiting:
        summary = "its cards are allocated" if allocated else "it asks for no devices by a claim"
        state = "allocated" if situation.claims else "nothing"
        return Report(situation.subject, state, summary, (), allocated, (), notes)
    missing = [claim for claim in waiting if claim.spec is None]
    if missing:
        summary = "; ".join(claim.origin for claim in missing)
        return Report(situation.subject, "missing", summary, (), allocated, (), notes)
    pools = Pools(situation.slices, situation.taint_rules)
    asks = [read_asks(claim.spec or {}, situation.classes) for claim in waiting]
    selectors = tuple(dict.fromkeys(_list_selectors(asks)))
    lines = tuple(_describe_asks(waiting, asks, selectors))
    absent = sorted(
        {
            each.device_class
            for ask in asks
            for wish in ask.wishes
            for each in wish.asks
            if each.device_class not in situation.classes
        }
    )
    if absent:
        summary = f"DeviceClass {', '.join(absent)} does not exist"
        return Report(situation.subject, "missing", summary, lines, allocated, (), notes)
    nodes = tuple(_judge_nodes(situation, pools, asks))
    notes += tuple(
        f"pool {name} is not complete; its devices do not count" for name in pools.incomplete
    )
    state, summary = summarize(nodes)
    return Report(situation.subject, state, summary, lines, allocated, nodes, notes, selectors)


def _note_pod(pod: Object | None) -> Iterator[str]:
    """Yield what the scheduler says, and what else keeps a pod."""
    if pod is None:
        return
    for gate in (pod.get("spec") or {}).get("schedulingGates") or ():
        yield f"scheduling gate {gate.get('name')!r} keeps the pod from the scheduler"
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            message, _, _ = str(condition.get("message", "")).partition(" preemption: ")
            yield f"the scheduler says: {shorten(message)}"


def _list_got(claim: PodClaim) -> Iterator[str]:
    devices = (claim.allocation or {}).get("devices") or {}
    for result in devices.get("results") or ():
        consumed = ", ".join(
            f"{name} {format_amount(read_amount(value))}"
            for name, value in sorted((result.get("consumedCapacity") or {}).items())
        )
        device = f"{result.get('device')} of {result.get('pool')}"
        yield f"{result.get('request')}: {device}" + (f" ({consumed})" if consumed else "")


def _list_selectors(asks: Sequence[ClaimAsk]) -> Iterator[str]:
    for ask in asks:
        for wish in ask.wishes:
            for each in wish.asks:
                yield from each.selectors


def _describe_asks(
    claims: Sequence[PodClaim], asks: Sequence[ClaimAsk], selectors: Sequence[str]
) -> Iterator[str]:
    numbers = {selector: number for number, selector in enumerate(selectors, start=1)}
    for claim, ask in zip(claims, asks, strict=True):
        yield f"claim {claim.name} ({claim.origin})"
        for wish in ask.wishes:
            for index, each in enumerate(wish.asks):
                label = f"{wish.name}:" if index == 0 else "or:"
                yield f"  {label} {_describe_ask(each)}"
                for selector in each.selectors:
                    yield f"    where ({numbers[selector]}) {shorten(selector)}"
        for constraint in ask.constraints:
            names = ", ".join(sorted(constraint.requests)) or "all"
            word = "the same" if constraint.equal else "different"
            yield f"  {names}: {word} {constraint.attribute.rpartition('/')[2]}"


def _describe_ask(ask: Ask) -> str:
    count = (
        "every device" if ask.every else "1 device" if ask.count == 1 else f"{ask.count} devices"
    )
    amounts = [
        f"{name} {format_amount(read_amount(v))}" for name, v in sorted(ask.capacity.items())
    ]
    return ", ".join([f"{count} of class {ask.device_class}", *amounts])


def _judge_nodes(
    situation: Situation, pools: Pools, asks: Sequence[ClaimAsk]
) -> Iterator[NodeReport]:
    usage = pools.count_usage(situation.all_claims)
    places = [
        claim.allocation["nodeSelector"]
        for claim in situation.claims
        if claim.allocation is not None and claim.allocation.get("nodeSelector")
    ]
    for node in sorted(situation.nodes, key=lambda each: str(each["metadata"]["name"])):
        name = str(node["metadata"]["name"])
        away = describe_mismatch(situation.pod, node) if situation.pod is not None else ""
        if not away and not all(matches_selector(place, node) for place in places):
            away = "another claim of the pod is allocated elsewhere"
        devices = pools.list_devices(node)
        wishes = [wish for ask in asks for wish in ask.wishes]
        shown = [d for d in devices if any(is_of_class(d, a) for w in wishes for a in w.asks)]
        if away:
            yield NodeReport(name, fits=False, reasons=(Reason("NodeUnfitPod", away),))
        elif not shown:
            yield NodeReport(
                name, fits=False, reasons=(Reason("NodeUnfitPod", "has no such card"),)
            )
        else:
            yield _judge_node(name, shown, usage, asks)


def _judge_node(
    name: str, devices: Sequence[PooledDevice], usage: Usage, asks: Sequence[ClaimAsk]
) -> NodeReport:
    wishes = [wish for ask in asks for wish in ask.wishes]
    cards = tuple(_judge_card(device, wish, usage) for wish in wishes for device in devices)
    fits = Search(devices, usage.copy_for(devices), asks).run()
    if fits is not False:
        return NodeReport(name, fits, (), cards)
    reasons = []
    for index, wish in enumerate(wishes):
        good = sum(card.fits for card in cards[index * len(devices) : (index + 1) * len(devices)])
        least = min(1 if ask.every else ask.count for ask in wish.asks)
        if good < least:
            need = " or ".join(sorted({_count(ask) for ask in wish.asks}))
            few = len(devices) < least
            code = "NodeInsufficientDevice" if few else "AllocatedCardsInsufficientRequest"
            text = f"{wish.name}: {good} of {plural(len(devices), 'card')} fit, {need} needed"
            reasons.append(Reason(code, text))
    if not reasons:
        reasons = [_find_conflict(devices, usage, asks)]
    return NodeReport(name, fits, tuple(reasons), cards)


def _count(ask: Ask) -> str:
    return "all" if ask.every else str(ask.count)


def _judge_card(device: PooledDevice, wish: Wish, usage: Usage) -> CardReport:
    """Return why a request cannot have a device: of its alternatives the one that comes nearest."""
    best: tuple[Reason, ...] | None = None
    rank = (0, 0)
    for ask in wish.asks:
        kind = tuple(judge_kind(device, ask))
        reasons = kind or tuple(judge_free(device, ask, usage))
        here = len(kind), len(reasons)
        if best is None or here < rank:
            best, rank = reasons, here
    model = device.attribute(f"{device.key[0]}/{ATTR_PRODUCT_NAME}")
    return CardReport(
        device=device.key[2],
        model=str(model or ""),
        request=wish.name,
        fits=not best,
        reasons=best or (),
    )


def _find_conflict(
    devices: Sequence[PooledDevice], usage: Usage, asks: Sequence[ClaimAsk]
) -> Reason:
    """Return why enough cards for each request are not enough."""
    free = Search(devices, usage.copy_for(devices), asks, constrained=False)
    if free.run() is False:
        return Reason(
            "CardsInsufficientTogether",
            "there are cards for each request, but not for all of them at once",
        )
    named = [c for ask in asks for c in ask.constraints]
    words = sorted(
        f"{'the same' if c.equal else 'different'} {c.attribute.rpartition('/')[2]}" for c in named
    )
    numa = any(c.equal and c.attribute.lower().endswith("numanode") for c in named)
    code = "NumaNotFit" if numa else "CardsInsufficientTogether"
    return Reason(code, f"enough cards fit, but not with {' and '.join(dict.fromkeys(words))}")
