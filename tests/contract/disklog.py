"""A disk that remembers every write, so that a power cut can be tried at any of them.

``python -m tests.contract.disklog IMAGE LOG`` serves the file IMAGE by FUSE, over itself, until it
is unmounted. A loop device on it makes it the disk of a real file system. Each write is in LOG
before the file system is told that it is done, and each wait for the disk is a line between what
survives a power cut and what may be lost: the disk's cache, of which any part may have reached it.
"""

import ctypes
import os
import random
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SECTOR: Final = 4096
"""What a disk writes whole or not at all."""

_RECORD: Final = struct.Struct("<QI")
_IS_SYNC: Final = 0xFFFFFFFFFFFFFFFF

_IN: Final = struct.Struct("<IIQQIIIHH")  # fuse_in_header
_OUT: Final = struct.Struct("<IiQ")  # fuse_out_header
_INIT_OUT: Final = struct.Struct("<IIIIHHIIHH8I")
_ATTR_OUT: Final = struct.Struct("<QII QQQ QQQ III IIIIIII")
_OPEN_OUT: Final = struct.Struct("<QII")
_TRANSFER: Final = struct.Struct("<QQIIQII")  # fuse_read_in, fuse_write_in
_WRITTEN: Final = struct.Struct("<II")
_MAJOR: Final = 7
_MINOR: Final = 31
_LARGEST: Final = 128 << 10
_BIG_WRITES: Final = 1 << 5
_GETATTR, _SETATTR, _OPEN, _READ, _WRITE, _RELEASE = 3, 4, 14, 15, 16, 18
_FSYNC, _FLUSH, _INIT, _FORGET, _INTERRUPT = 20, 25, 26, 2, 36
_ENOSYS: Final = 38


@dataclass(frozen=True, slots=True)
class Write:
    """What the file system wrote."""

    offset: int
    data: bytes


def serve(image: Path, log: Path) -> None:
    """Serve a file over itself, until it is unmounted. Blocking.

    Raises:
        OSError: This machine does not let us.
    """
    backing = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=100600,user_id=0,group_id=0"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"disklog", os.fsencode(image), b"fuse", 0, options.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount of FUSE at {image}: {os.strerror(number)}")
    print("mounted", flush=True)  # noqa: T201 - whoever started it waits for this
    size = os.fstat(backing).st_size
    while True:
        try:
            request = os.read(device, _LARGEST + (4 << 10))
        except OSError:  # ENODEV: unmounted
            return
        _, code, unique, *_ = _IN.unpack_from(request)
        if code in {_FORGET, _INTERRUPT}:
            continue  # no answer is expected
        answer = _answer(code, request[_IN.size :], backing, written, size)
        error = -_ENOSYS if answer is None else 0
        answer = answer or b""
        os.write(device, _OUT.pack(_OUT.size + len(answer), error, unique) + answer)


def _answer(code: int, body: bytes, backing: int, log: int, size: int) -> bytes | None:
    """Return what a request is answered with, ``None`` if we do not know it."""
    if code in {_READ, _WRITE}:
        _, offset, length, *_ = _TRANSFER.unpack_from(body)
        if code == _READ:
            return os.pread(backing, length, offset)
        data = body[_TRANSFER.size : _TRANSFER.size + length]
        os.pwrite(backing, data, offset)
        os.write(log, _RECORD.pack(offset, length) + data)
        return _WRITTEN.pack(length, 0)
    if code == _FSYNC:
        os.write(log, _RECORD.pack(_IS_SYNC, 0))
    return {
        _INIT: _INIT_OUT.pack(
            *(_MAJOR, _MINOR, _LARGEST, _BIG_WRITES, 16, 12, _LARGEST, 1), *[0] * 10
        ),
        _GETATTR: (attributes := _describe(size)),
        _SETATTR: attributes,
        _OPEN: _OPEN_OUT.pack(1, 0, 0),
        _FSYNC: b"",
        _RELEASE: b"",
        _FLUSH: b"",
    }.get(code)


def _describe(size: int) -> bytes:
    blocks, mode, links, block_bytes = size // 512, 0o100600, 1, 4096
    return _ATTR_OUT.pack(
        *(3600, 0, 0, 1, size, blocks), *[0] * 6, mode, links, 0, 0, 0, block_bytes, 0
    )


class Replay:
    """Makes the disks that a power cut may leave, later and later ones.

    Args:
        image: The disk before the first write.
        log: What was written; its length at a moment is a place in it.
    """

    def __init__(self, image: Path, log: Path) -> None:
        self._sure = bytearray(image.read_bytes())
        self._log = _read_log(log)
        self._cached: list[Write] = []
        self._place = 0

    def cut(self, place: int, chance: random.Random, kept: float) -> bytes:
        """Return a disk whose power was cut at a place, none before the last.

        Args:
            place: In the log.
            chance: Says which sectors of the cache reached the disk.
            kept: How many of them, from 0 to 1.
        """
        while self._place < place:
            size, write = next(self._log)
            self._place += size
            if write is not None:
                self._cached.append(write)
                continue
            for each in self._cached:
                self._sure[each.offset : each.offset + len(each.data)] = each.data
            self._cached.clear()
        disk = bytearray(self._sure)
        for each in self._cached:
            for start in range(0, len(each.data), SECTOR):
                if chance.random() < kept:
                    sector = each.data[start : start + SECTOR]
                    disk[each.offset + start : each.offset + start + len(sector)] = sector
        return bytes(disk)


def list_places(log: Path) -> list[int]:
    """Return every place between two writes."""
    places, place = [0], 0
    for size, _ in _read_log(log):
        place += size
        places.append(place)
    return places


def _read_log(log: Path) -> Iterator[tuple[int, Write | None]]:
    """Return how long each entry of the log is, and the write that it is, if not a wait."""
    with log.open("rb") as file:
        while head := file.read(_RECORD.size):
            offset, length = _RECORD.unpack(head)
            is_sync = offset == _IS_SYNC
            yield _RECORD.size + length, None if is_sync else Write(offset, file.read(length))


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]))
