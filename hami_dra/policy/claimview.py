"""A claim of ours as a person wants to see it, from what the API server has."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hami_dra.contract import names
from hami_dra.contract.errors import UserError
from hami_dra.contract.limits import LimitChange, decode_limits
from hami_dra.contract.quantity import MIB, parse_bytes, parse_integer
from hami_dra.policy.audit import read_pods
from hami_dra.policy.binding import Binding, BoundDevice
from hami_dra.policy.claimstatus import ENFORCED, LIMITS_CHANGED, LIMITS_SEEN, READY
from hami_dra.policy.limits import change_limits, read_wish


@dataclass(frozen=True, kw_only=True, slots=True)
class ShareView:
    """One of our results of an allocation, and what its node says of it.

    Attributes:
        request: In the claim's spec, without the alternative.
        node: The pool, which is the node's name.
        device: Name in the ResourceSlice.
        uuid: The card; "" until the node has said it.
        consumed_mib: What it takes of the card; ``None`` for a whole card.
        consumed_cores: Percent; ``None`` for a whole card.
        memory_mib: What is enforced; ``None`` until the node has said it.
        cores_percent: What is enforced, 0 = not limited; ``None`` until the node has said it.
        backend: Who enforces.
        ready: "True", "False" or "" as the node's condition says.
        messages: Why a condition is not as one would like.
        limits_seen: Which wish for other limits the node speaks of.
        limits_refused: Why it does not follow it; "" if it does.
        admin: Whether it is there for administration only.
    """

    request: str
    node: str
    device: str
    uuid: str = ""
    consumed_mib: int | None = None
    consumed_cores: int | None = None
    memory_mib: int | None = None
    cores_percent: int | None = None
    backend: str = ""
    ready: str = ""
    messages: tuple[str, ...] = ()
    limits_seen: str = ""
    limits_refused: str = ""
    admin: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimView:
    """A claim with shares of ours.

    Attributes:
        namespace: Of the claim.
        name: Of the claim.
        uid: Of the claim.
        shares: In the order of the allocation.
        pods: Names of those that it is reserved for.
        wish: Text of the annotation for other limits.
    """

    namespace: str
    name: str
    uid: str
    shares: tuple[ShareView, ...]
    pods: tuple[str, ...]
    wish: str | None = None


def view_claim(claim: Mapping[str, Any]) -> ClaimView | None:
    """Return a claim's view; ``None`` if nothing of ours is allocated to it."""
    metadata = claim.get("metadata") or {}
    status = claim.get("status") or {}
    results = ((status.get("allocation") or {}).get("devices") or {}).get("results") or ()
    entries = {_key(entry): entry for entry in status.get("devices") or ()}
    shares = tuple(
        _view_share(result, entries.get(_key(result)) or {})
        for result in results
        if result.get("driver") == names.DRIVER_NAME
    )
    if not shares:
        return None
    return ClaimView(
        namespace=str(metadata.get("namespace", "")),
        name=str(metadata.get("name", "")),
        uid=str(metadata.get("uid", "")),
        shares=shares,
        pods=tuple(sorted(pod.name for pod in read_pods(claim))),
        wish=read_wish(claim),
    )


def plan_wish(
    view: ClaimView, request: str | None, change: LimitChange | None
) -> dict[str, LimitChange]:
    """Return the whole wish of a claim after one request's part changed.

    Args:
        view: The claim.
        request: Which one; ``None`` where there is one only.
        change: Its new part; ``None``: as granted.

    Raises:
        UserError: No such request, or a limit that the node would refuse.
    """
    requests = list(dict.fromkeys(share.request for share in view.shares))
    label = f"claim {view.namespace}/{view.name}"
    if request is None and len(requests) > 1:
        raise UserError(f"{label} has the requests {', '.join(requests)}; name one with --request")
    chosen = requests[0] if request is None else request
    try:
        known = decode_limits(view.wish) if view.wish is not None else {}
    except UserError:
        known = {}  # the node refuses it as well: nothing of it holds
    changes = {name: part for name, part in known.items() if name in requests and name != chosen}
    if change is not None:
        changes[chosen] = change
    try:
        change_limits(_suppose(view), {chosen: change} if change is not None else {})
    except UserError as error:
        raise UserError(f"{label}: {error}") from error
    if chosen not in requests:
        raise UserError(f"{label} has no request {chosen}; it has {', '.join(requests)}")
    return changes


def _view_share(result: Mapping[str, Any], entry: Mapping[str, Any]) -> ShareView:
    data = entry.get("data") or {}
    conditions = {str(c.get("type")): c for c in entry.get("conditions") or ()}
    changed = conditions.get(LIMITS_CHANGED) or {}
    admin = bool(result.get("adminAccess"))
    consumed = {} if admin else result.get("consumedCapacity") or {}
    return ShareView(
        request=str(result.get("request", "")).partition("/")[0],
        node=str(result.get("pool", "")),
        device=str(result.get("device", "")),
        uuid=str(data.get("uuid", "")),
        consumed_mib=_read(consumed, names.CAPACITY_MEMORY, MIB),
        consumed_cores=_read(consumed, names.CAPACITY_CORES, 1),
        memory_mib=_number(data.get("memoryMiB")),
        cores_percent=_number(data.get("coresPercent")),
        backend=str(data.get("backend", "")),
        ready=str((conditions.get(READY) or {}).get("status", "")),
        messages=tuple(
            f"{kind} {condition.get('reason')}: {condition.get('message')}"
            for kind, condition in conditions.items()
            if kind in {READY, ENFORCED, LIMITS_CHANGED} and condition.get("status") == "False"
        ),
        limits_seen=str(data.get(LIMITS_SEEN, "")),
        limits_refused=(
            str(changed.get("message") or "refused") if changed.get("status") == "False" else ""
        ),
        admin=admin,
    )


def _suppose(view: ClaimView) -> Binding:
    """Return what the node would bind, as far as the allocation tells it."""
    devices = tuple(
        BoundDevice(
            request=share.request,
            pool=share.node,
            device=share.device,
            uuid=share.uuid or share.device,
            minor=0,
            share_id=None,
            memory_mib=share.consumed_mib or 0,
            cores_percent=share.consumed_cores or 0,
            consumed_memory_mib=share.consumed_mib or 0,
            consumed_cores=share.consumed_cores or 0,
            consumed_slots=0,
            exclusive=share.consumed_mib is None and not share.admin,
            admin=share.admin,
        )
        for share in view.shares
    )
    return Binding(claim_uid=view.uid, namespace=view.namespace, name=view.name, devices=devices)


def _key(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(entry.get(name) for name in ("driver", "device", "pool", "shareID"))


def _read(consumed: Mapping[str, Any], capacity: str, unit: int) -> int | None:
    text = consumed.get(capacity)
    if text is None:
        return None
    try:
        return parse_bytes(text) // MIB if unit == MIB else parse_integer(text)
    except ValueError:
        return None


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
