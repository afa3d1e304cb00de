"""How much of a namespace's GPUs is in use, and whether there is room for more.

The count is the ``status.used`` of each ResourceQuota, written under the condition that nobody
wrote in between, so that any number of writers agree. What was counted for a claim that does not
exist yet is noted in an annotation beside it, written at the same time: a recount of what exists
then forgets nothing that is under way (docs/decisions/0006-quota.md).
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from hami_dra.contract.errors import RetryError, UserError
from hami_dra.contract.names import ANNOTATION_RESERVATIONS
from hami_dra.contract.quantity import parse_bytes
from hami_dra.contract.settings import NvidiaSettings
from hami_dra.policy.charge import Charge, ClaimUse, sum_takes

RESERVED_SECONDS: Final = 75
"""An API server gives up a request after 60 s (--request-timeout); the rest is for clocks that
differ between machines."""
_RENEW_SECONDS: Final = 40
_MOST_RESERVATIONS: Final = 2048
"""About 150 KiB; annotations of an object hold 256 KiB (apimachinery TotalAnnotationSizeLimitB)."""
_MOST: Final = 2**63 - 1
"""Quantities above are cut (apimachinery resource.Quantity)."""

Amounts = tuple[int, int, int]
"""Cards, units of memory, percent of multiprocessors."""
Limits = tuple[int | None, int | None, int | None]
"""The same; ``None`` where nothing is said."""


@dataclass(frozen=True, slots=True)
class QuotaKeys:
    """Names of what is limited.

    Attributes:
        names: For cards, memory and multiprocessors.
        memory_factor: MiB in a unit of memory.
    """

    names: tuple[str, str, str]
    memory_factor: int

    def measure(self, charge: Charge) -> Amounts:
        """Return a charge in the units of the keys, memory rounded up."""
        memory = -(-charge.memory_mib // self.memory_factor)
        return charge.cards, memory, charge.cores_percent


def list_quota_keys(settings: NvidiaSettings) -> QuotaKeys:
    """Return HAMi's quota keys under the operator's names."""
    count, memory = settings.resource_count_name, settings.resource_memory_name
    cores = settings.resource_core_name
    return QuotaKeys(
        (f"limits.{count}", f"limits.{memory}", f"limits.{cores}"), settings.memory_factor
    )


class Reservation(msgspec.Struct, frozen=True, array_like=True):
    """What was counted for a claim that does not exist yet.

    Attributes:
        until: Seconds since the epoch; afterwards it counts no longer.
        amounts: What was counted.
    """

    until: int
    amounts: Amounts


@dataclass(frozen=True, slots=True)
class Quota:
    """A ResourceQuota with keys of ours, without scopes.

    Attributes:
        namespace: Of the object.
        name: Of the object.
        version: resourceVersion of the object that this was read from.
        hard: The limits.
        used: The count; ``None`` where there has been none yet.
        reservations: By UID of the claim, or by what `name_pod_claim` returns.
    """

    namespace: str
    name: str
    version: str
    hard: Limits
    used: Limits
    reservations: Mapping[str, Reservation]

    @property
    def counted(self) -> bool:
        """Whether there is a count for every limit."""
        return not any(
            used is None and hard is not None
            for used, hard in zip(self.used, self.hard, strict=True)
        )


@dataclass(frozen=True, slots=True)
class PodStates:
    """What is known of pods, by UID.

    Attributes:
        awaiting: They exist, and have yet to get their claim.
        gone: They, or claims that are named by themselves, were deleted a short while ago.
    """

    awaiting: Collection[str] = ()
    gone: Collection[str] = ()


def read_quota(body: Mapping[str, Any], keys: QuotaKeys) -> Quota | None:
    """Return what matters of a ResourceQuota, ``None`` if it does not limit our resources.

    One with scopes does not: scopes are properties of pods, and Kubernetes itself counts no claims
    against such a quota.
    """
    spec = body.get("spec") or {}
    hard = _read_limits(spec.get("hard") or {}, keys)
    if is_scoped(body) or all(limit is None for limit in hard):
        return None
    metadata = body["metadata"]
    return Quota(
        namespace=str(metadata.get("namespace", "")),
        name=str(metadata.get("name", "")),
        version=str(metadata.get("resourceVersion", "")),
        hard=hard,
        used=_read_limits((body.get("status") or {}).get("used") or {}, keys),
        reservations=_read_reservations(metadata.get("annotations") or {}),
    )


def is_scoped(body: Mapping[str, Any]) -> bool:
    """Whether a ResourceQuota counts only some pods."""
    spec = body.get("spec") or {}
    return bool(spec.get("scopes") or (spec.get("scopeSelector") or {}).get("matchExpressions"))


def admit(quota: Quota, wanted: Mapping[str, Charge], *, keys: QuotaKeys, now: float) -> Quota:
    """Return the quota with charges counted. Idempotent: those that are noted count once.

    Args:
        quota: As last known.
        wanted: By UID of the claim, or by what `name_pod_claim` returns.
        keys: What is limited.
        now: Seconds since the epoch.

    Raises:
        UserError: There is no room.
        RetryError: It cannot be told yet.
    """
    fresh = {key: charge for key, charge in wanted.items() if key not in quota.reservations}
    asked = _add(keys.measure(charge) for charge in fresh.values())
    if not any(asked) and not any(charge.unsized for charge in fresh.values()):
        return quota
    if not quota.counted:
        raise RetryError(
            f"quota {quota.name} has not been counted yet; `hami-dra controller run` does it"
        )
    if quota.hard[1] is not None and any(charge.unsized for charge in fresh.values()):
        raise RetryError(
            f"quota {quota.name} limits {keys.names[1]}, and a whole card is asked for, but no "
            "node publishes a card yet, so its memory is not known; ask for a number of MiB or "
            "wait for a node"
        )
    _check(quota, asked, keys)
    if len(quota.reservations) + len(fresh) > _MOST_RESERVATIONS:
        raise RetryError(
            f"quota {quota.name} has {len(quota.reservations)} claims under way, as many as it has "
            "room for; `hami-dra controller run` clears those that have been made"
        )
    until = int(now) + RESERVED_SECONDS
    noted = {key: Reservation(until, keys.measure(charge)) for key, charge in fresh.items()}
    return replace(
        quota,
        used=_count(quota, _add([_known(quota.used), asked])),
        reservations={**quota.reservations, **noted},
    )


def recount(
    quota: Quota,
    claims: Collection[ClaimUse],
    pods: PodStates,
    *,
    keys: QuotaKeys,
    now: float,
    largest_mib: int | None,
    listed: Collection[str] | None = None,
) -> Quota:
    """Return the quota as what exists says. Idempotent.

    A reservation goes when its claim is known, or when that or its pod has gone; it is kept alive
    while its pod waits for the claim. It ends by its time only if the claim is not there by a list
    from which nothing is missing: a watch may lag behind.

    Args:
        quota: As last known.
        claims: Of the namespace, as far as they are known; never less than the last time.
        pods: See `PodStates`.
        keys: What is limited.
        now: Seconds since the epoch.
        largest_mib: Memory of the largest published card; ``None`` if none is known.
        listed: `name_claims` of such a list, made after the last reservation that may end.
    """
    present = name_claims(claims)
    kept: dict[str, Reservation] = {}
    for key, noted in quota.reservations.items():
        pod, entry, _ = key.partition("/")
        if key in present or pod in pods.gone:
            continue
        if (entry and pod in pods.awaiting) or (listed is not None and key in listed):
            late = noted.until < now + _RENEW_SECONDS
            kept[key] = _renew(noted, now) if late else noted
        elif noted.until > now or listed is None:
            kept[key] = noted
    amounts = [keys.measure(sum_takes(claim.takes, largest_mib)) for claim in claims]
    amounts += [noted.amounts for noted in kept.values()]
    return replace(quota, used=_count(quota, _add(amounts)), reservations=kept)


def name_claims(claims: Iterable[ClaimUse]) -> frozenset[str]:
    """Return all that reservations for these claims may be called."""
    return frozenset(name for claim in claims for name in (claim.uid, claim.made_for))


def due_at(quota: Quota, now: float) -> float | None:
    """Return when a reservation has to be looked at again, in seconds since the epoch."""
    times = [
        at
        for noted in quota.reservations.values()
        for at in (noted.until - _RENEW_SECONDS + 1, noted.until)
        if at > now
    ]
    return min(times, default=now + 1 if quota.reservations else None)


def is_overdue(quota: Quota, now: float) -> bool:
    """Whether some reservation has to be looked at."""
    return any(noted.until < now + _RENEW_SECONDS for noted in quota.reservations.values())


def has_expired(quota: Quota, now: float) -> bool:
    """Whether the time of some reservation is over."""
    return any(noted.until <= now for noted in quota.reservations.values())


def build_patch(quota: Quota, keys: QuotaKeys) -> dict[str, Any]:
    """Return the merge patch for the status subresource that writes a quota's count.

    It holds only for the version that the quota was read from. The subresource keeps changes of
    metadata (pkg/registry/core/resourcequota/strategy.go).
    """
    noted = None
    if quota.reservations:
        noted = msgspec.json.encode(quota.reservations, order="sorted").decode()
    used = {
        key: str(value)
        for key, value in zip(keys.names, quota.used, strict=True)
        if value is not None
    }
    return {
        "metadata": {
            "resourceVersion": quota.version,
            "annotations": {ANNOTATION_RESERVATIONS: noted},
        },
        "status": {"used": used},
    }


def _renew(noted: Reservation, now: float) -> Reservation:
    return Reservation(int(now) + RESERVED_SECONDS, noted.amounts)


def _check(quota: Quota, asked: Amounts, keys: QuotaKeys) -> None:
    over = [
        (name, want, used or 0, hard)
        for name, want, used, hard in zip(keys.names, asked, quota.used, quota.hard, strict=True)
        if hard is not None and want and (used or 0) + want > hard
    ]
    if not over:
        return
    requested = ",".join(f"{name}={want}" for name, want, _, _ in over)
    used = ",".join(f"{name}={count}" for name, _, count, _ in over)
    limited = ",".join(f"{name}={limit}" for name, _, _, limit in over)
    raise UserError(
        f"exceeded quota: {quota.name}, requested: {requested}, used: {used}, limited: {limited}"
    )


def _count(quota: Quota, amounts: Amounts) -> Limits:
    cards, memory, cores = (
        None if hard is None else min(amount, _MOST)
        for hard, amount in zip(quota.hard, amounts, strict=True)
    )
    return cards, memory, cores


def _known(limits: Limits) -> Amounts:
    cards, memory, cores = (limit or 0 for limit in limits)
    return cards, memory, cores


def _add(amounts: Iterable[Amounts]) -> Amounts:
    cards = memory = cores = 0
    for each in amounts:
        cards, memory, cores = cards + each[0], memory + each[1], cores + each[2]
    return cards, memory, cores


def _read_limits(values: Mapping[str, Any], keys: QuotaKeys) -> Limits:
    cards, memory, cores = (_read_quantity(values.get(name)) for name in keys.names)
    return cards, memory, cores


def _read_quantity(text: Any) -> int | None:
    try:
        return None if text is None else max(parse_bytes(text), 0)
    except ValueError:
        return None


def _read_reservations(annotations: Mapping[str, Any]) -> Mapping[str, Reservation]:
    """Read the notes; those that were spoilt by hand count as none, and are written anew."""
    text = annotations.get(ANNOTATION_RESERVATIONS)
    if not isinstance(text, str):
        return {}
    try:
        found = msgspec.json.decode(text, type=dict[str, Reservation])
    except (msgspec.DecodeError, RecursionError):
        return {}
    return {key: noted for key, noted in found.items() if min(noted.amounts) >= 0}
