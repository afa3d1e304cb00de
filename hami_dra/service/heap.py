"""How a process that lives for months treats its memory."""

import ctypes
import gc
from contextlib import suppress
from typing import Final

_M_ARENA_MAX: Final = -8
"""mallopt(3)."""
_PR_SET_THP_DISABLE: Final = 41
"""prctl(2)."""


def use_small_pages() -> None:
    """Keep the kernel from giving this process huge pages; call it before there are threads.

    Where transparent huge pages are for everybody ("always", the default of several distributions),
    a thread that uses 12 KiB of its stack may have 2 MiB, at once or when the kernel's daemon gets
    to it. A child inherits it.
    """
    with suppress(OSError, AttributeError):
        yes, none = ctypes.c_ulong(1), ctypes.c_ulong(0)  # as the kernel takes them
        ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, yes, none, none, none)


def use_one_arena() -> None:
    """Let all threads allocate from one heap; call it before there are threads.

    glibc gives each thread a heap of its own, which is never empty enough to be given back. Python
    runs one thread at a time, so they do not wait for each other. Another C library has nothing
    like it.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Return the heap's free pages to the kernel: 0.3 ms, and they are zeroed when used again.

    glibc by itself gives back only what is free at the heap's end. Another C library has nothing
    like it.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_what_is_there() -> None:
    """Take what exists by now out of garbage collection: modules, and what lives as long as they.

    They are most of all objects, and each full collection would look at all of them.
    """
    gc.collect()
    gc.freeze()
