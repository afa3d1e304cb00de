"""The grant file: what a container may use. Mirror of libvgpu/include/vgpu/grant.h.

Pure: bytes in, values out. Offsets are compared with the C header in
tests/contract/test_abi.py.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hami_dra.contract.claimconfig import CorePolicy

MAGIC = b"VGPUGRNT"
ABI_MAJOR = 1
ABI_MINOR = 4
MAX_DEVICES = 32
HEADER_SIZE = 256
DEVICE_SIZE = 128
FILE_SIZE = HEADER_SIZE + MAX_DEVICES * DEVICE_SIZE
CONTROL_DISABLED = 1
ALONE = 2
SPILL = 4
MPS = 8

HEADER_OFFSETS = {
    "magic": 0,
    "abi_major": 8,
    "abi_minor": 10,
    "file_size": 12,
    "sequence": 16,
    "device_count": 24,
    "flags": 28,
    "claim_uid": 32,
    "request": 96,
    "heartbeat": 160,
    "reserved": 164,
    "devices": 256,
}
DEVICE_OFFSETS = {
    "uuid": 0,
    "memory_limit_bytes": 48,
    "cores_percent": 56,
    "flags": 60,
    "share_id": 64,
    "core_policy": 104,
    "priority_plus_one": 108,
    "ceiling_percent": 112,
    "burst_ms": 116,
    "reserved": 120,
}

_HEADER = struct.Struct("<8sHHIQII64s64sI92x")
_DEVICE = struct.Struct("<48sQII40sIIII8x")
_COUNT = struct.Struct("<I")
_MAX_UINT64 = 2**64 - 1
_MAX_UINT32 = 2**32 - 1
_POLICIES: tuple[CorePolicy, ...] = ("default", "force", "disable")  # the index is the encoding


@dataclass(frozen=True, slots=True)
class GrantDevice:
    """One card of a grant; a limit of 0 means that it is not limited.

    Attributes:
        core_policy: When cores_percent holds, as HAMi's GPU_CORE_UTILIZATION_POLICY.
        priority: HAMi's task priority, 0 first; None = not said.
        alone: Nobody else uses the card just now, which lifts cores_percent under "default".
        ceiling_percent: What it is lifted to, also under "force"; 0 = the whole card.
        burst_ms: How much wall time of an unused share can be saved up; 0 = libvgpu's 10 ms.
        spill: Below the limit, what the card has no room for may be memory of the host.
        mps: The node serves the card by MPS: what that holds in space is not held in time as well.
    """

    uuid: str
    memory_limit_bytes: int
    cores_percent: int
    share_id: str = ""
    control_disabled: bool = False
    core_policy: CorePolicy = "default"
    priority: int | None = None
    alone: bool = False
    ceiling_percent: int = 0
    burst_ms: int = 0
    spill: bool = False
    mps: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    """What one request of one claim may use.

    Attributes:
        sequence: Odd while the values change.
        heartbeat: Another number every few seconds while a node speaks; 0 = none has.
    """

    claim_uid: str
    request: str
    devices: tuple[GrantDevice, ...]
    sequence: int = 0
    heartbeat: int = 0


def _field(name: str, text: str, size: int) -> bytes:
    raw = text.encode()
    if len(raw) >= size:
        message = f"{name} {text!r} is {len(raw)} bytes long, at most {size - 1} fit"
        raise ValueError(message)
    if b"\0" in raw:
        message = f"{name} {text!r} contains a NUL character"
        raise ValueError(message)
    return raw


def _text(name: str, raw: bytes) -> str:
    head, separator, _rest = raw.partition(b"\0")
    if not separator:
        message = f"{name} does not end within its {len(raw)} bytes"
        raise ValueError(message)
    try:
        return head.decode()
    except UnicodeDecodeError as error:
        message = f"{name} is not UTF-8"
        raise ValueError(message) from error


def _check_range(name: str, value: int, highest: int) -> None:
    if not 0 <= value <= highest:
        message = f"{name} is {value}, not within 0..{highest}"
        raise ValueError(message)


def encode_grant(grant: Grant) -> bytes:
    """Return the grant file's content, always FILE_SIZE bytes.

    Raises ValueError for what does not fit; the message names the field.
    """
    if not 1 <= len(grant.devices) <= MAX_DEVICES:
        message = f"devices: {len(grant.devices)}, a grant has 1 to {MAX_DEVICES}"
        raise ValueError(message)
    _check_range("sequence", grant.sequence, _MAX_UINT64)
    _check_range("heartbeat", grant.heartbeat, _MAX_UINT32)
    parts = [
        _HEADER.pack(
            MAGIC,
            ABI_MAJOR,
            ABI_MINOR,
            FILE_SIZE,
            grant.sequence,
            len(grant.devices),
            0,
            _field("claim_uid", grant.claim_uid, 64),
            _field("request", grant.request, 64),
            grant.heartbeat,
        )
    ]
    for index, device in enumerate(grant.devices):
        where = f"devices[{index}]"
        _check_range(f"{where}.memory_limit_bytes", device.memory_limit_bytes, _MAX_UINT64)
        _check_range(f"{where}.cores_percent", device.cores_percent, 100)
        _check_range(f"{where}.ceiling_percent", device.ceiling_percent, 100)
        _check_range(f"{where}.burst_ms", device.burst_ms, _MAX_UINT32)
        priority = 0 if device.priority is None else device.priority
        _check_range(f"{where}.priority", priority, _MAX_UINT32 - 1)
        parts.append(
            _DEVICE.pack(
                _field(f"{where}.uuid", device.uuid, 48),
                device.memory_limit_bytes,
                device.cores_percent,
                device.control_disabled * CONTROL_DISABLED
                | device.alone * ALONE
                | device.spill * SPILL
                | device.mps * MPS,
                _field(f"{where}.share_id", device.share_id, 40),
                _POLICIES.index(device.core_policy),
                0 if device.priority is None else priority + 1,
                device.ceiling_percent,
                device.burst_ms,
            )
        )
    return b"".join(parts).ljust(FILE_SIZE, b"\0")


def says_alone(data: bytes, alone: Sequence[bool]) -> bool:
    """Whether a grant says just this of its cards; nothing else in it is looked at."""
    end = HEADER_SIZE + len(alone) * DEVICE_SIZE
    if len(data) < end or _COUNT.unpack_from(data, HEADER_OFFSETS["device_count"])[0] != len(alone):
        return False
    places = range(HEADER_SIZE + DEVICE_OFFSETS["flags"], end, DEVICE_SIZE)
    return all(
        bool(_COUNT.unpack_from(data, place)[0] & ALONE) == value
        for place, value in zip(places, alone, strict=True)
    )


def decode_grant(data: bytes) -> Grant:
    """Return the grant in `data`.

    Raises ValueError if it is none; the message says why. Never another exception.
    """
    if len(data) != FILE_SIZE:
        message = f"a grant is {FILE_SIZE} bytes long, this is {len(data)}"
        raise ValueError(message)
    (magic, major, _minor, size, sequence, count, _flags, claim_uid, request, heartbeat) = (
        _HEADER.unpack_from(data)
    )
    if magic != MAGIC:
        message = f"a grant begins with {MAGIC!r}, this with {magic!r}"
        raise ValueError(message)
    if major != ABI_MAJOR:
        message = f"ABI major version {major} is not {ABI_MAJOR}"
        raise ValueError(message)
    if size != FILE_SIZE:
        message = f"file_size is {size}, not {FILE_SIZE}"
        raise ValueError(message)
    if not 1 <= count <= MAX_DEVICES:
        message = f"device_count is {count}, not within 1..{MAX_DEVICES}"
        raise ValueError(message)
    devices = []
    for index in range(count):
        uuid, memory, cores, flags, share_id, policy, priority, ceiling, burst = (
            _DEVICE.unpack_from(data, HEADER_SIZE + index * DEVICE_SIZE)
        )
        if policy >= len(_POLICIES):
            message = (
                f"devices[{index}].core_policy is {policy}, not within 0..{len(_POLICIES) - 1}"
            )
            raise ValueError(message)
        devices.append(
            GrantDevice(
                uuid=_text(f"devices[{index}].uuid", uuid),
                memory_limit_bytes=memory,
                cores_percent=cores,
                share_id=_text(f"devices[{index}].share_id", share_id),
                control_disabled=bool(flags & CONTROL_DISABLED),
                core_policy=_POLICIES[policy],
                priority=priority - 1 if priority else None,
                alone=bool(flags & ALONE),
                ceiling_percent=ceiling,
                burst_ms=burst,
                spill=bool(flags & SPILL),
                mps=bool(flags & MPS),
            )
        )
    return Grant(
        claim_uid=_text("claim_uid", claim_uid),
        request=_text("request", request),
        devices=tuple(devices),
        sequence=sequence,
        heartbeat=heartbeat,
    )
