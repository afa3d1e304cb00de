"""Which limits hold on a granted share after somebody asked for others.

Whoever may write the claim may ask, so nothing here can give more than the claim consumes of the
card: that is what the scheduler counted, and what nobody else was promised.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from hami_dra.contract.errors import UserError
from hami_dra.contract.limits import FIELD, LimitChange, decode_limits
from hami_dra.contract.names import ANNOTATION_LIMITS
from hami_dra.policy.binding import Binding, BoundDevice
from hami_dra.policy.devices import CORES_PER_CARD

_NOT_LIMITED: Final = 0


@dataclass(frozen=True, slots=True)
class Settled:
    """What holds.

    Attributes:
        binding: With the limits that hold.
        refused: Why the wish was not followed; ``None`` if it was, or there is none.
    """

    binding: Binding
    refused: UserError | None = None


def read_wish(claim: Mapping[str, Any]) -> str | None:
    """Return the text of a claim's annotation, if it has one."""
    text = ((claim.get("metadata") or {}).get("annotations") or {}).get(ANNOTATION_LIMITS)
    return None if text is None else str(text)


def settle_limits(granted: Binding, text: str | None, known: Binding | None) -> Settled:
    """Follow the annotation, whole or not at all.

    Args:
        granted: As the allocation says.
        text: Of the annotation; ``None`` if the claim has none.
        known: What holds now; it goes on holding when the wish is refused.
    """
    if text is None:
        return Settled(granted)
    try:
        return Settled(change_limits(granted, decode_limits(text)))
    except UserError as error:
        return Settled(keep_limits(granted, known) if known else granted, error)


def change_limits(granted: Binding, changes: Mapping[str, LimitChange]) -> Binding:
    """Return a binding with other limits.

    Raises:
        UserError: A request that is not in the claim, a card without limits, or more than the
            claim consumes.
    """
    requests = granted.requests
    for request in changes:
        if request not in requests:
            raise UserError(
                f"the claim has no such request on this node; it has {', '.join(requests)}",
                field=f"{FIELD}.{request}",
            )
    return replace(
        granted,
        devices=tuple(
            _change(device, changes[device.request]) if device.request in changes else device
            for device in granted.devices
        ),
    )


def keep_limits(granted: Binding, known: Binding) -> Binding:
    """Return a binding with the limits that hold now, where the share is still the same."""
    held = {_identify(device): device for device in known.devices}
    return replace(
        granted,
        devices=tuple(
            replace(device, memory_mib=old.memory_mib, cores_percent=old.cores_percent)
            if (old := held.get(_identify(device))) is not None
            else device
            for device in granted.devices
        ),
    )


def _identify(device: BoundDevice) -> tuple[str, str, str | None]:
    return device.request, device.uuid, device.share_id


def _change(device: BoundDevice, change: LimitChange) -> BoundDevice:
    field = f"{FIELD}.{device.request}"
    if not device.controlled:
        raise UserError(
            f"card {device.uuid} is the claim's own or shown for administration: nothing limits it",
            field=field,
        )
    memory_mib, cores = device.memory_mib, device.cores_percent
    if change.memory_mib is not None:
        memory_mib = _limit_memory(device, change.memory_mib, f"{field}.memoryMiB")
    if change.cores_percent is not None:
        cores = _limit_cores(device, change.cores_percent, f"{field}.coresPercent")
    return replace(device, memory_mib=memory_mib, cores_percent=cores)


def _limit_memory(device: BoundDevice, wanted_mib: int, field: str) -> int:
    if not 1 <= wanted_mib <= device.consumed_memory_mib:
        raise UserError(
            f"must be from 1 to {device.consumed_memory_mib}, which is what the claim consumes of "
            f"card {device.uuid}; got {wanted_mib}",
            field=field,
        )
    whole = device.memory_mib == _NOT_LIMITED and wanted_mib == device.consumed_memory_mib
    return _NOT_LIMITED if whole else wanted_mib


def _limit_cores(device: BoundDevice, wanted: int, field: str) -> int:
    # A claim that reserves no compute is not limited, so any limit is a lower one.
    lowest = 1 if device.consumed_cores else _NOT_LIMITED
    highest = min(device.consumed_cores, CORES_PER_CARD) or CORES_PER_CARD
    if not lowest <= wanted <= highest:
        raise UserError(
            f"must be from {lowest} to {highest}, because the claim consumes "
            f"{device.consumed_cores} % of card {device.uuid}; got {wanted}",
            field=field,
        )
    return _NOT_LIMITED if wanted >= CORES_PER_CARD else wanted
