"""Hears from the kernel that names came or went in directories (inotify(7)), instead of looking.

Each directory tells of one change for each time it is armed (IN_ONESHOT), so nothing has to be read
out of events, and whoever writes there without end wakes nobody without end. An event says only
that it is time to look; a look now and then stays the reader's, for what the kernel does not tell:
directories that were removed while somebody else holds them, and changes made by another machine.
"""

import asyncio
import ctypes
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_CLOSE_ON_EXEC, _NOT_BLOCKING = os.O_CLOEXEC, os.O_NONBLOCK
_MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF = 0x400, 0x800
_ONLY_DIRECTORIES, _NO_LINKS, _ONCE = 0x1000000, 0x2000000, 0x80000000
_MASK: Final = (
    _MOVED_FROM
    | _MOVED_TO
    | _CREATE
    | _DELETE
    | _DELETE_SELF
    | _MOVE_SELF
    | _ONLY_DIRECTORIES
    | _NO_LINKS
    | _ONCE
)
"""Of <sys/inotify.h>. A tenant's link leads nowhere."""
_READ_BYTES: Final = 1 << 16


class DirectoryWatch:
    """Listens for the length of a ``with`` block, inside a running loop.

    Where the kernel gives nothing to listen with (it counts instances and directories of each
    user), `arm` says so, and whoever needs to know has to look.

    Args:
        on_change: Called in the loop's thread after a change in an armed directory, and now and
            then without one.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._descriptor = -1
        self._turn = threading.Lock()

    def __enter__(self) -> Self:
        """Begin to listen."""
        descriptor = _load_libc().inotify_init1(_CLOSE_ON_EXEC | _NOT_BLOCKING)
        if descriptor >= 0:
            asyncio.get_running_loop().add_reader(descriptor, self._hear)
            self._descriptor = descriptor
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Hear no more."""
        with self._turn:
            descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)

    def arm(self, directories: Iterable[Path]) -> bool:
        """Tell of the next change in each of these directories. Thread-safe and idempotent.

        What happened before is not told: look afterwards. What was armed earlier stays armed until
        it has told.

        Returns:
            Whether all are armed. Not where there is one that is no directory.
        """
        with self._turn:
            if self._descriptor < 0:
                return False
            add = _load_libc().inotify_add_watch
            return all(add(self._descriptor, os.fsencode(path), _MASK) >= 0 for path in directories)

    def _hear(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._descriptor, _READ_BYTES)
        self._on_change()


@cache
def _load_libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.inotify_add_watch.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32]
    return libc
