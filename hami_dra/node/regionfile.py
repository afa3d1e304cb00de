"""Region files, read and written from outside: the tenant owns them and may do anything to them.

Nothing here maps a region to look at it: a tenant who truncates the file would end this process
with SIGBUS. `pread` of a short file is short, and `pwrite` to one grows it, to a region's size at
most. Both go through the page cache that the tenant's processes have mapped, so they see the same
words at once. Each word that is written is aligned and of 4 or 8 bytes, and one that is seen half
written for a moment does no harm (docs/decisions/0025-the-nodes-words-in-the-region.md).

A file is opened in two steps. The first only finds it (O_PATH) and follows no link, so that what it
is can be looked at before anything happens: opening a device node, or a pipe, is an action.
"""

import ctypes
import errno
import mmap
import os
import platform
import stat
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Final, Self

from hami_dra.contract import names
from hami_dra.contract.region import (
    DEVICE_OFFSETS,
    DEVICE_SIZE,
    DEVICES_OFFSET,
    FILE_SIZE,
    SLOT_OFFSETS,
    RegionView,
    decode_region,
    slot_lock_offset,
)

_LONGEST_BYTES: Final = FILE_SIZE + 1
"""Enough to see that a file is too long; a tenant may make it as large as it likes."""
_MOST_BYTES: Final = 1 << 62
"""More than any card has; the driver's count may be nonsense, and the sum of it must fit."""
_LAUNCHES: Final = struct.Struct("<Q20xI")
"""From busy_ns to watched."""
_FUTEX_NUMBERS: Final = {"x86_64": 202, "aarch64": 98}
_FUTEX_WAKE: Final = 1
_EVERYBODY: Final = 2**31 - 1
_FUTEX_WAITV: Final = 449
"""``futex_waitv(2)``, from Linux 5.16 on, with the same number on every processor."""
_FUTEX_32: Final = 2
_MOST_WAITED: Final = 128
_ASKED: Final = 1


class RegionFile:
    """An open region. Blocking.

    What is read is what a tenant wrote. What is written reaches the file that was opened, even if
    another one has its name by now.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __enter__(self) -> Self:
        """Close it at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close it. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read(self) -> RegionView:
        """Return what it says now.

        Raises:
            ValueError: The file is no region; the message says why.
            OSError: It cannot be read.
        """
        return decode_region(os.pread(self._descriptor, _LONGEST_BYTES, 0))

    def read_launches(self, index: int) -> tuple[int, bool]:
        """Return what shows that programs launch on a device; zeros if the file is too short.

        Returns:
            The GPU time that was charged so far, and whether a question (`ask_launches`) is
            still without an answer.

        Raises:
            OSError: It cannot be read.
        """
        raw = os.pread(self._descriptor, _LAUNCHES.size, _device_offset(index, "busy_ns"))
        if len(raw) < _LAUNCHES.size:
            return 0, False
        busy_ns, watched = _LAUNCHES.unpack(raw)
        return busy_ns, watched == _ASKED

    def ask_launches(self, index: int) -> None:
        """Ask whether a program launches on a device, charged or not: the next launch answers.

        Raises:
            OSError: It cannot be written.
        """
        self._write(_device_offset(index, "watched"), _ASKED, 4)

    def map_question(self, index: int) -> AbstractContextManager[int]:
        """Return the address of a question, to sleep on and not to look at.

        Raises:
            OSError: It cannot be mapped.
        """
        return _map_page(self._descriptor, _device_offset(index, "watched"))

    def write_overhead(self, index: int, value: int) -> None:
        """Say how many bytes of a device the driver has for the grant's processes.

        Raises:
            OSError: It cannot be written.
        """
        self._write(_device_offset(index, "overhead_bytes"), min(value, _MOST_BYTES), 8)

    def write_trim(self, index: int, permille: int) -> None:
        """Say by how much charges on a device are to be corrected.

        Raises:
            OSError: It cannot be written.
        """
        self._write(_device_offset(index, "trim_permille"), permille, 4)

    def write_host_pid(self, slot: int, pid: int) -> None:
        """Say by which number the node knows the process of a slot.

        Raises:
            OSError: It cannot be written.
        """
        self._write(slot_lock_offset(slot) + SLOT_OFFSETS["host_pid"], pid, 4)

    def write_gate(self, index: int, value: int) -> None:
        """Hold launches on a device back, or let them go and wake those that wait.

        Raises:
            OSError: It cannot be written.
        """
        offset = _device_offset(index, "gate")
        self._write(offset, value, 4)
        if not value:
            with suppress(OSError):  # those that nobody wakes look again by themselves
                _wake(self._descriptor, offset)

    def _write(self, offset: int, value: int, size: int) -> None:
        # A file that was cut short gets a hole, no more than up to where the word belongs.
        os.pwrite(self._descriptor, value.to_bytes(size, "little"), offset)


def open_region(directory: Path, *, write: bool = False) -> RegionFile | None:
    """Open the region in a share's directory; ``None`` before a program has made one. Blocking.

    Raises:
        ValueError: It is not a plain file, or not of a region's size.
        OSError: It cannot be opened.
    """
    path = directory / names.REGION_FILE
    try:
        found = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(found)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is not a plain file")
        if status.st_size != FILE_SIZE:
            raise ValueError(f"{path}: a region is {FILE_SIZE} bytes long, not {status.st_size}")
        # O_NONBLOCK: its owner may hold a lease on it, which open would wait for.
        flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_NONBLOCK | os.O_CLOEXEC
        return RegionFile(os.open(f"/proc/self/fd/{found}", flags))
    finally:
        os.close(found)


def read_region(directory: Path) -> RegionView | None:
    """Return what the region in a share's directory says; ``None`` if there is none. Blocking.

    Raises:
        ValueError: The file is not a region; the message says why.
        OSError: It cannot be read.
    """
    region = open_region(directory)
    if region is None:
        return None
    with region:
        return region.read()


class _Waiter(ctypes.Structure):
    """``struct futex_waitv`` of <linux/futex.h>."""

    _fields_ = (
        ("value", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    )


class _Time(ctypes.Structure):
    """``struct timespec`` of a 64-bit kernel."""

    _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_int64))


def wait_for_answers(questions: Sequence[tuple[RegionFile, int]], timeout_seconds: float) -> bool:
    """Wait until somebody launches, of those that were asked, or so long. Blocking.

    A question that has an answer already ends the wait at once.

    Args:
        questions: Regions and indices of devices for which `RegionFile.ask_launches` was called.
        timeout_seconds: At most.

    Returns:
        Whether there was a wait, or was no need of one. Not where the kernel knows none for several
        words (before 5.16), forbids it, there are too many, or a tenant has cut a file short.
    """
    if not 0 < len(questions) <= _MOST_WAITED:
        return False
    until_ns = time.monotonic_ns() + int(timeout_seconds * 1e9)
    until = _Time(*divmod(until_ns, 10**9))
    try:
        with ExitStack() as mappings:
            waiters = (_Waiter * len(questions))(
                *(
                    _Waiter(_ASKED, mappings.enter_context(file.map_question(index)), _FUTEX_32)
                    for file, index in questions
                )
            )
            woken = _load_libc().syscall(
                ctypes.c_long(_FUTEX_WAITV),
                waiters,
                ctypes.c_uint(len(waiters)),
                ctypes.c_uint(0),
                ctypes.byref(until),
                ctypes.c_int(time.CLOCK_MONOTONIC),
            )
    except OSError:
        return False
    return woken >= 0 or ctypes.get_errno() in {errno.EAGAIN, errno.ETIMEDOUT, errno.EINTR}


def _device_offset(index: int, field: str) -> int:
    return DEVICES_OFFSET + index * DEVICE_SIZE + DEVICE_OFFSETS[field]


@cache
def _load_libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


@contextmanager
def _map_page(descriptor: int, offset: int) -> Iterator[int]:
    """Map the page of a file that has a byte, and yield the byte's address: not to be looked at."""
    libc = _load_libc()
    begin = offset - offset % mmap.PAGESIZE
    address = libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, begin)
    if address in {None, ctypes.c_void_p(-1).value}:
        raise OSError(ctypes.get_errno(), "mmap")
    try:
        yield address + offset - begin
    finally:
        libc.munmap(address, mmap.PAGESIZE)


def _wake(descriptor: int, offset: int) -> None:
    """Wake everybody who waits for a word of a file to change.

    A futex of a shared file is known to the kernel by file and offset, which it finds through a
    mapping. It reads nothing at the address for this, and answers EFAULT if the page is gone.
    """
    number = _FUTEX_NUMBERS.get(platform.machine())
    if number is None:
        return
    with _map_page(descriptor, offset) as address:
        _load_libc().syscall(
            ctypes.c_long(number),
            ctypes.c_void_p(address),
            ctypes.c_int(_FUTEX_WAKE),
            ctypes.c_int(_EVERYBODY),
            None,
            None,
            ctypes.c_int(0),
        )
