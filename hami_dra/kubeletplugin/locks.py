"""One lock for each claim: work on different claims runs at once, on one claim in turn.

The turn holds for every instance on the node: each claim has its byte in one file, and holding
the claim's lock is holding that byte (an open file description lock, fcntl(2)). The kernel drops
it however the process ends, so whoever gets the lock knows that nobody works on the claim.
"""

import asyncio
import errno
import fcntl
import hashlib
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from hami_dra.contract.errors import RetryError

_FLOCK: Final = "hhqqi0q"
"""struct flock of 64-bit Linux: type, whence, start, length, pid."""
_OFFSETS: Final = 1 << 62
_POLL_SECONDS: Final = (0.005, 0.1)
"""Two instances meet for seconds during an update, and hardly ever on one claim."""


class ClaimLocks:
    """Locks by claim UID that exist only while somebody holds or awaits them.

    Args:
        path: A file on a local disk that all instances share; ``None`` where there is only one.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._locks: dict[str, asyncio.Lock] = {}
        self._users: dict[str, int] = {}

    @asynccontextmanager
    async def hold(self, uid: str) -> AsyncIterator[None]:
        """Hold a claim's lock for the block; waiting may be cancelled.

        Raises:
            RetryError: The file cannot be opened at the moment.
        """
        lock = self._locks.setdefault(uid, asyncio.Lock())
        self._users[uid] = self._users.get(uid, 0) + 1
        try:
            async with lock:
                byte = await self._wait_for_byte(uid)
                try:
                    yield
                finally:
                    _release(byte)
        finally:
            self._users[uid] -= 1
            if not self._users[uid]:
                del self._users[uid], self._locks[uid]

    @asynccontextmanager
    async def try_hold(self, uid: str) -> AsyncIterator[bool]:
        """Hold a claim's lock if nobody works on the claim; tells whether it is held.

        Raises:
            RetryError: The file cannot be opened at the moment.
        """
        if uid in self._users:
            yield False
            return
        byte = self._take_byte(uid)
        if byte is None and self._path is not None:
            yield False
            return
        lock = self._locks.setdefault(uid, asyncio.Lock())
        self._users[uid] = 1
        try:
            async with lock:  # nobody has it: no other task ran since the check
                yield True
        finally:
            _release(byte)
            self._users[uid] -= 1
            if not self._users[uid]:
                del self._users[uid], self._locks[uid]

    async def _wait_for_byte(self, uid: str) -> int | None:
        delay, longest = _POLL_SECONDS
        while self._path is not None:
            byte = self._take_byte(uid)
            if byte is not None:
                return byte
            await asyncio.sleep(delay)
            delay = min(delay * 2, longest)
        return None

    def _take_byte(self, uid: str) -> int | None:
        """Return a descriptor that holds the claim's byte, ``None`` if another instance does.

        The file is opened anew each time, so that one that was deleted is not locked in vain.
        """
        if self._path is None:
            return None
        offset = int.from_bytes(hashlib.sha256(uid.encode()).digest()[:8]) % _OFFSETS
        request = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise RetryError(f"lock file {self._path}: {error.strerror or error}") from error
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
        except OSError as error:
            os.close(descriptor)
            if error.errno in {errno.EAGAIN, errno.EACCES}:
                return None
            raise RetryError(f"lock file {self._path}: {error.strerror or error}") from error
        return descriptor


def _release(descriptor: int | None) -> None:
    if descriptor is not None:
        with suppress(OSError):
            os.close(descriptor)
