"""What a node says of a prepared claim in ``status.devices`` (KEP-4817).

Facts (k8s.io/api/resource/v1 AllocatedDeviceStatus): a list map with the keys driver, device, pool
and shareID; at most 8 conditions and 10 KiB of data for each entry; an entry whose device is not
in the allocation is refused; entries go away when the claim is deallocated.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from hami_dra.contract import names
from hami_dra.contract.limits import digest_limits
from hami_dra.policy.audit import is_limited
from hami_dra.policy.binding import Binding, BoundDevice
from hami_dra.policy.driverlimits import DriverHold
from hami_dra.policy.limits import Settled

READY: Final = "Ready"
ENFORCED: Final = "Enforced"
LIMITS_CHANGED: Final = "LimitsChanged"
DRIVER_LIMIT: Final = "DriverLimit"
LIMITS_SEEN: Final = "limitsSeen"
"""Key in the data: `digest_limits` of the annotation that the conditions speak of."""

_LONGEST_MESSAGE: Final = 1024
_NONE: Final[Mapping[str, Any]] = {}
_NO_HOLDS: Final[Mapping[str, DriverHold]] = {}


@dataclass(frozen=True, slots=True)
class Situation:
    """What there is to say of a claim beside its binding.

    Attributes:
        lost: UUIDs of cards that the driver does not describe any more.
        settled: The binding, and whether a wish for other limits was refused.
        limits: Text of that wish; ``None`` if there is none.
        driver_holds: Whether the driver itself holds the containers, by UUID of the card; a card
            of which there is nothing to say is not there.
    """

    settled: Settled
    limits: str | None = None
    lost: Collection[str] = ()
    driver_holds: Mapping[str, DriverHold] = field(default_factory=lambda: _NO_HOLDS)


def describe_devices(
    situation: Situation, stored: Sequence[Mapping[str, Any]], *, stamp: str
) -> list[dict[str, Any]]:
    """Return our entries of ``status.devices``.

    Args:
        situation: What to say.
        stored: The entries that the claim has. A condition that still holds keeps its time.
        stamp: RFC 3339 time of conditions that are new or changed.
    """
    known = {_key(entry): entry for entry in stored}
    entries = []
    for device in situation.settled.binding.devices:
        entry: dict[str, Any] = {
            "driver": names.DRIVER_NAME,
            "pool": device.pool,
            "device": device.device,
        }
        if device.share_id is not None:
            entry["shareID"] = device.share_id
        before = {
            condition.get("type"): condition
            for condition in known.get(_key(entry), _NONE).get("conditions") or ()
        }
        entry["conditions"] = [
            _date(condition, before.get(condition["type"]), stamp)
            for condition in _list_conditions(device, situation)
        ]
        entry["data"] = _describe_data(device, situation)
        entries.append(entry)
    return entries


def own_entries(stored: Iterable[Mapping[str, Any]], binding: Binding) -> list[Mapping[str, Any]]:
    """Return the entries of this driver and this node's pools among all of a claim."""
    pools = {device.pool for device in binding.devices}
    return [
        entry
        for entry in stored
        if entry.get("driver") == names.DRIVER_NAME and entry.get("pool") in pools
    ]


def is_current(stored: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]]) -> bool:
    """Whether what is stored says the same; the order does not count."""
    if len(stored) != len(wanted):
        return False
    known = {_key(entry): entry for entry in stored}
    return all(known.get(_key(entry)) == entry for entry in wanted)


def name_backend(device: BoundDevice, hold: DriverHold | None = None) -> str:
    """Return who holds a device to its limits.

    Args:
        device: Of a claim.
        hold: What there is to say of the driver's own limit, if anything.
    """
    if device.admin:
        return "none (admin access)"
    if device.mig is not None:
        return "mig"
    if device.exclusive:
        return "none (whole card)"
    if device.control_disabled:
        return "none (disabled by the claim)"
    driver = hold is not None and hold.holds and is_limited(device)
    others = (["driver"] if driver else []) + (["mps"] if device.mps is not None else [])
    return ", ".join(["libvgpu", *others])


def _key(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(entry.get(name) for name in ("driver", "device", "pool", "shareID"))


def _list_conditions(device: BoundDevice, situation: Situation) -> list[dict[str, str]]:
    conditions = [
        _condition(
            READY, "CardLost", f"the driver does not describe card {device.card}", holds=False
        )
        if device.card in situation.lost
        else _condition(READY, "Prepared", f"{_name(device)} is prepared"),
        _say_enforced(device),
    ]
    hold = situation.driver_holds.get(device.card)
    if hold is not None and is_limited(device):
        conditions.append(_condition(DRIVER_LIMIT, hold.reason, hold.message, holds=hold.holds))
    refused = situation.settled.refused
    if refused is not None:
        conditions.append(_condition(LIMITS_CHANGED, "Refused", str(refused), holds=False))
    elif situation.limits is not None:
        conditions.append(
            _condition(LIMITS_CHANGED, "Applied", "the limits are those of the annotation")
        )
    return conditions


def _say_enforced(device: BoundDevice) -> dict[str, str]:
    if device.admin:
        return _condition(ENFORCED, "AdminAccess", "admin access has no limits", holds=False)
    if device.mig is not None:
        return _condition(
            ENFORCED, "Mig", f"card {device.card} keeps its MIG instance apart from all others"
        )
    if device.exclusive:
        return _condition(ENFORCED, "WholeCard", "the claim has the whole card", holds=False)
    if device.control_disabled:
        return _condition(
            ENFORCED, "ControlDisabled", "the claim's disableControl lifts its limits", holds=False
        )
    spills = device.oversubscription and device.memory_mib
    return _condition(
        ENFORCED,
        "Libvgpu",
        f"libvgpu holds the containers to {_memory(device)} MiB of the card"
        + (", some of them in the host's memory when it is full" if spills else "")
        + (f", MPS to {device.thread_percent} % of its multiprocessors" if device.mps else ""),
    )


def _memory(device: BoundDevice) -> int:
    return device.memory_mib or device.consumed_memory_mib


def _name(device: BoundDevice) -> str:
    if device.mig is None:
        return f"card {device.uuid}"
    return f"{device.mig.label} of card {device.card}"


def _describe_data(device: BoundDevice, situation: Situation) -> dict[str, Any]:
    backend = name_backend(device, situation.driver_holds.get(device.card))
    data: dict[str, Any] = {"uuid": device.uuid, "backend": backend}
    if not device.admin:
        data["memoryMiB"] = _memory(device)
        data["coresPercent"] = device.cores_percent
    if device.mig is not None:
        data |= {
            "uuid": device.mig.uuid or device.uuid,
            "parentUUID": device.card,
            "profile": device.mig.label,
            "coresPercent": device.consumed_cores,
        }
    if situation.limits is not None:
        data[LIMITS_SEEN] = digest_limits(situation.limits)
    return data


def _condition(kind: str, reason: str, message: str, *, holds: bool = True) -> dict[str, str]:
    return {
        "type": kind,
        "status": "True" if holds else "False",
        "reason": reason,
        "message": message[:_LONGEST_MESSAGE],
    }


def _date(
    condition: dict[str, str], before: Mapping[str, Any] | None, stamp: str
) -> dict[str, str]:
    same = before is not None and before.get("status") == condition["status"]
    since = before.get("lastTransitionTime") if before is not None and same else stamp
    return {**condition, "lastTransitionTime": str(since)}
