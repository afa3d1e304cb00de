"""Room on a disk that is kept so that a full disk never keeps us from letting go of something.

Removing a claim frees its files, but the ledger first has to write that it is gone. On a disk that
others have filled, that write needs blocks which nobody else can have taken.
"""

import os
from pathlib import Path
from typing import Final

from hami_dra.contract.errors import RetryError

SIZE_BYTES: Final = 256 << 10
"""What SQLite needs to open a closed ledger (its index, 32 KiB, and the log's first pages) and to
delete a few hundred rows."""
_PROBE_BYTES: Final = 4096


class Reserve:
    """A file in the state directory that means nothing. Blocking; one thread at a time.

    Args:
        directory: The state directory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "reserve"

    def hold(self) -> None:
        """Make the reserve whole, and prove that a block more can be written. Idempotent.

        What can be had of it is kept even if it is not all.

        Raises:
            RetryError: The disk is full, or cannot be written for another reason.
        """
        probe = self._directory / ".probe.tmp"
        try:
            _grow(self._path, SIZE_BYTES)
            try:
                _grow(probe, _PROBE_BYTES)
            finally:
                probe.unlink(missing_ok=True)
        except OSError as error:
            raise RetryError(
                f"state directory {self._directory}: {error.strerror or error}"
            ) from error

    def release(self) -> bool:
        """Give the room up; return whether there was any."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True


def _grow(path: Path, size_bytes: int) -> None:
    """Append real blocks, also where holes and zeros take no room.

    A full disk refuses the write itself, so nothing has to be flushed to learn of it.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        left = size_bytes - os.fstat(descriptor).st_size
        while left > 0:
            left -= os.write(descriptor, os.urandom(left))
    finally:
        os.close(descriptor)
