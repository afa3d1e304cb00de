"""The region file: what a container does use. Mirror of libvgpu/include/vgpu/region.h.

Pure: bytes in, values out. The tenant can write anything to a region, so its
bytes are hostile here. Offsets are compared with the C header in
tests/contract/test_abi.py.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

MAGIC = b"VGPUREGN"
ABI_MAJOR = 1
ABI_MINOR = 4
MAX_DEVICES = 32
SPILL_DEVICES = 16
SLOT_COUNT = 1024
HEADER_SIZE = 256
DEVICE_SIZE = 256
SLOT_SIZE = 320
DEVICES_OFFSET = HEADER_SIZE
SLOTS_OFFSET = DEVICES_OFFSET + MAX_DEVICES * DEVICE_SIZE
FILE_SIZE = SLOTS_OFFSET + SLOT_COUNT * SLOT_SIZE
SLOT_LIVE = 1
REPAIR_LOCK_OFFSET = 0
WAIT_BOUNDS_SECONDS = (0.0001, 0.001, 0.01, 0.1, 1.0)

HEADER_OFFSETS = {
    "magic": 0,
    "abi_major": 8,
    "abi_minor": 10,
    "file_size": 12,
    "header_size": 16,
    "device_size": 20,
    "slot_size": 24,
    "device_count": 28,
    "slot_count": 32,
    "flags": 36,
    "instance": 40,
    "created_ns": 48,
    "reserved0": 56,
    "gate": 120,
    "repairs": 124,
    "shares_turns": 128,
    "reserved": 132,
}
DEVICE_OFFSETS = {
    "uuid": 0,
    "limit_bytes": 48,
    "reserved0": 56,
    "used_bytes": 64,
    "overhead_bytes": 72,
    "peak_bytes": 80,
    "long_ns": 88,
    "reserved1": 96,
    "spill_count": 120,
    "bucket_ns": 128,
    "last_refill_ns": 136,
    "trim_permille": 144,
    "gate": 148,
    "busy_ns": 152,
    "due_ns": 160,
    "throttled_ns": 168,
    "limit_permille": 176,
    "watched": 180,
    "known_ns": 184,
    "alloc_count": 192,
    "free_count": 200,
    "oom_count": 208,
    "driver_oom_count": 216,
    "unhooked_count": 224,
    "waits": 232,
}
SLOT_OFFSETS = {
    "state": 0,
    "inflight": 4,
    "pid": 8,
    "host_pid": 12,
    "start_time": 16,
    "pid_namespace": 24,
    "reserved": 32,
    "used_bytes": 64,
}

_HEADER = struct.Struct("<8sHHIIIIIIIQQ64xII")
_DEVICE = struct.Struct("<48sQ8xQQQQ24xQ16xIIQQQI12xQQQQQ6I")
_SLOT = struct.Struct(f"<IIIIQQ32x{MAX_DEVICES}Q")
_UNLIMITED = 2**64 - 1


@dataclass(frozen=True, slots=True)
class RegionDevice:
    """One card as its region tells it; limit_bytes is None when it is not limited.

    Attributes:
        spilled_bytes: Of the processes' used bytes, those for which the card had no room: the
            driver keeps them on the card or in the host's memory, as there is room.
        spill_count: Allocations that went this way since the region was made.
        busy_ns: GPU time charged since the region was made.
        long_ns: Of that, what the node's correction is for.
        due_ns: CLOCK_MONOTONIC time by which all that was launched is paid for; 0 before any.
        throttled_ns: How long launches were held back, added up.
        limit_permille: The compute limit that was last obeyed; 1000 = none, 0 = not launched yet.
        trim_permille: What charges are multiplied with, as the node wrote it; 0 = as they are.
        gate: Not 0 holds launches back, as long as the node goes on changing it.
        waits: Launches held back up to each of WAIT_BOUNDS_SECONDS, and longer; they wrap at 2**32.
    """

    uuid: str
    limit_bytes: int | None
    used_bytes: int
    overhead_bytes: int
    peak_bytes: int
    spilled_bytes: int
    spill_count: int
    busy_ns: int
    long_ns: int
    due_ns: int
    throttled_ns: int
    limit_permille: int
    trim_permille: int
    gate: int
    alloc_count: int
    free_count: int
    oom_count: int
    driver_oom_count: int
    unhooked_count: int
    waits: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RegionProcess:
    """One process slot in use; whether the process lives, only its lock can say."""

    slot: int
    pid: int
    host_pid: int
    start_time: int
    pid_namespace: int
    used_bytes: tuple[int, ...]
    spilled_bytes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RegionView:
    """A region as read at one moment; sums may be off by what was in flight."""

    instance: int
    created_ns: int
    repairs: int
    devices: tuple[RegionDevice, ...]
    processes: tuple[RegionProcess, ...]


def slot_lock_offset(slot: int) -> int:
    """Return the byte of the file that the slot's living owner keeps locked."""
    return SLOTS_OFFSET + slot * SLOT_SIZE


def _decode_device(index: int, data: bytes, spilled: int) -> RegionDevice:
    uuid, limit, used, overhead, peak, long, spills, trim, gate, *rest = _DEVICE.unpack_from(
        data, DEVICES_OFFSET + index * DEVICE_SIZE
    )
    busy, due, throttled, permille, *counts = rest
    head, separator, _rest = uuid.partition(b"\0")
    if not separator or not head.isascii() or not head.decode("ascii").isprintable():
        message = f"devices[{index}].uuid is not printable text"
        raise ValueError(message)
    return RegionDevice(
        uuid=head.decode("ascii"),
        limit_bytes=None if limit in {0, _UNLIMITED} else limit,
        used_bytes=used,
        overhead_bytes=overhead,
        peak_bytes=peak,
        spilled_bytes=spilled,
        spill_count=spills,
        busy_ns=busy,
        long_ns=long,
        due_ns=due,
        throttled_ns=throttled,
        limit_permille=permille,
        trim_permille=trim,
        gate=gate,
        alloc_count=counts[0],
        free_count=counts[1],
        oom_count=counts[2],
        driver_oom_count=counts[3],
        unhooked_count=counts[4],
        waits=tuple(counts[5:]),
    )


def _spilled(used: list[int], device_count: int) -> tuple[int, ...]:
    """Return what spilled of each device; larger regions have no room to say it."""
    if device_count > SPILL_DEVICES:
        return (0,) * device_count
    return tuple(used[MAX_DEVICES - 1 - index] for index in range(device_count))


def decode_region(data: bytes) -> RegionView:
    """Return what `data`, the whole file, tells.

    Raises ValueError if it is no region; the message says why. Never another
    exception, whatever the bytes are.
    """
    if len(data) != FILE_SIZE:
        message = f"a region is {FILE_SIZE} bytes long, this is {len(data)}"
        raise ValueError(message)
    magic, major, _minor, *sizes = _HEADER.unpack_from(data)
    size, header, device, slot, device_count, slot_count, _flags, *rest = sizes
    instance, created_ns, _gate, repairs = rest
    if magic != MAGIC:
        message = f"a region begins with {MAGIC!r}, this with {magic!r}"
        raise ValueError(message)
    if major != ABI_MAJOR:
        message = f"ABI major version {major} is not {ABI_MAJOR}"
        raise ValueError(message)
    found = (size, header, device, slot, slot_count)
    expected = (FILE_SIZE, HEADER_SIZE, DEVICE_SIZE, SLOT_SIZE, SLOT_COUNT)
    if found != expected:
        message = f"sizes of file, header, device, slot and slot count are {found}, not {expected}"
        raise ValueError(message)
    if not 1 <= device_count <= MAX_DEVICES:
        message = f"device_count is {device_count}, not within 1..{MAX_DEVICES}"
        raise ValueError(message)
    processes = []
    # Few slots are in use, as a rule: the low byte of each state, before all of it.
    states = data[SLOTS_OFFSET:FILE_SIZE:SLOT_SIZE]
    for index in (index for index, low in enumerate(states) if low == SLOT_LIVE):
        state, _inflight, pid, host_pid, start, namespace, *used = _SLOT.unpack_from(
            data, slot_lock_offset(index)
        )
        if state == SLOT_LIVE:
            processes.append(
                RegionProcess(
                    slot=index,
                    pid=pid,
                    host_pid=host_pid,
                    start_time=start,
                    pid_namespace=namespace,
                    used_bytes=tuple(used[:device_count]),
                    spilled_bytes=_spilled(used, device_count),
                )
            )
    return RegionView(
        instance=instance,
        created_ns=created_ns,
        repairs=repairs,
        devices=tuple(
            _decode_device(index, data, sum(process.spilled_bytes[index] for process in processes))
            for index in range(device_count)
        ),
        processes=tuple(processes),
    )
