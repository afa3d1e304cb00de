"""What is measured here is another process: this one has its threads already."""

import subprocess
import sys

ARENAS = """
import ctypes, re, threading
from hami_dra.service.heap import use_one_arena
if {one}:
    use_one_arena()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
done, ready = threading.Event(), threading.Barrier(5)
def hold():
    libc.malloc(ctypes.c_size_t(4096))
    ready.wait()
    done.wait()
threads = [threading.Thread(target=hold) for _ in range(4)]
for thread in threads:
    thread.start()
ready.wait()
libc.fdopen.restype = ctypes.c_void_p
libc.malloc_info(0, ctypes.c_void_p(libc.fdopen(1, b"w")))
libc.fflush(None)
done.set()
"""


def count_arenas(*, one: bool) -> int:
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", ARENAS.format(one=one)], capture_output=True, text=True, check=True
    )
    return done.stdout.count("<heap nr=")


def test_threads_share_one_heap() -> None:
    assert count_arenas(one=True) == 1
    assert count_arenas(one=False) > 1


def test_what_is_kept_is_not_looked_at_again() -> None:
    program = (
        "import gc; from hami_dra.service.heap import keep_what_is_there; "
        "before = len(gc.get_objects()); keep_what_is_there(); "
        "print(gc.get_freeze_count() > before / 2, len(gc.get_objects()) < before / 10)"
    )
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True True\n"


HOLES = """
import ctypes
from hami_dra.service.heap import give_back, use_one_arena
def count_resident_kib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4
use_one_arena()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
pieces = [libc.malloc(ctypes.c_size_t(16 << 10)) for _ in range(1000)]
for piece in pieces:
    ctypes.memset(piece, 1, 16 << 10)
for piece in pieces[:-1]:  # the last one keeps the heap's end where it is
    libc.free(ctypes.c_void_p(piece))
before = count_resident_kib()
give_back()
print(before - count_resident_kib() > 12 << 10)
"""


def test_holes_in_the_heap_are_given_back() -> None:
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", HOLES], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"


def test_no_huge_pages() -> None:
    program = (
        "from hami_dra.service.heap import use_small_pages; use_small_pages(); "
        "print(*(line for line in open('/proc/self/status') if line.startswith('THP_enabled')))"
    )
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["THP_enabled:", "0"]
