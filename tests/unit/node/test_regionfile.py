"""Region files are written by tenants; touching one must not be a way to hurt the node."""

import ctypes
import fcntl
import mmap
import os
import platform
import signal
import struct
import threading
import time
from pathlib import Path

import pytest

from hami_dra.contract import region
from hami_dra.node.regionfile import open_region, read_region

UUID = "GPU-a1000000-5157-4a2b-9c3d-0123456789ab"


def encode_region(*uuids: str, slots: dict[int, tuple[int, int, int]] | None = None) -> bytearray:
    """Return a region as libvgpu makes it; slots by number: pid, start, bytes on device 0."""
    data = bytearray(region.FILE_SIZE)
    struct.pack_into(
        "<8sHHIIIIIII",
        data,
        0,
        region.MAGIC,
        region.ABI_MAJOR,
        region.ABI_MINOR,
        region.FILE_SIZE,
        region.HEADER_SIZE,
        region.DEVICE_SIZE,
        region.SLOT_SIZE,
        len(uuids),
        region.SLOT_COUNT,
        0,
    )
    for index, uuid in enumerate(uuids):
        offset = region.DEVICES_OFFSET + index * region.DEVICE_SIZE
        struct.pack_into("<48s", data, offset, uuid.encode())
    for number, (pid, start, used) in (slots or {}).items():
        offset = region.slot_lock_offset(number)
        struct.pack_into("<IIIIQ", data, offset, region.SLOT_LIVE, 0, pid, 0, start)
        struct.pack_into("<Q", data, offset + region.SLOT_OFFSETS["used_bytes"], used)
    return data


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A share's directory with a region of one card and one process."""
    (tmp_path / "region").write_bytes(encode_region(UUID, slots={5: (7, 1000, 1 << 20)}))
    return tmp_path


def test_before_a_program_has_run_there_is_none(tmp_path: Path) -> None:
    assert read_region(tmp_path) is None
    assert open_region(tmp_path, write=True) is None


def test_the_nodes_words_are_read_back_where_they_belong(directory: Path) -> None:
    opened = open_region(directory, write=True)
    assert opened is not None
    with opened:
        opened.write_overhead(0, 5 << 40)
        opened.write_trim(0, 1200)
        opened.write_gate(0, 77)
        opened.write_host_pid(5, 4711)
        view = opened.read()

    (device,), (process,) = view.devices, view.processes
    assert (device.overhead_bytes, device.trim_permille, device.gate) == (5 << 40, 1200, 77)
    assert (process.slot, process.host_pid, process.pid) == (5, 4711, 7)
    assert process.used_bytes == (1 << 20,)
    untouched = encode_region(UUID, slots={5: (7, 1000, 1 << 20)})
    assert sum(a != b for a, b in zip(untouched, read_all(directory), strict=True)) <= 8


def test_a_count_of_the_driver_that_is_nonsense_is_only_too_much(directory: Path) -> None:
    opened = open_region(directory, write=True)
    assert opened is not None
    with opened:
        opened.write_overhead(0, 5 << 64)
        assert opened.read().devices[0].overhead_bytes == 1 << 62


def read_all(directory: Path) -> bytes:
    return (directory / "region").read_bytes()


@pytest.mark.parametrize("write", [False, True])
def test_what_is_no_region_is_said_and_left_alone(tmp_path: Path, *, write: bool) -> None:
    (tmp_path / "region").write_bytes(b"not a region")

    with pytest.raises(ValueError, match="12"):
        open_region(tmp_path, write=write)
    assert read_all(tmp_path) == b"not a region"


@pytest.mark.parametrize("write", [False, True])
def test_a_link_is_not_followed(tmp_path: Path, *, write: bool) -> None:
    target = tmp_path / "target"
    target.write_bytes(encode_region(UUID))
    (tmp_path / "region").symlink_to(target)

    with pytest.raises(ValueError, match="plain file"):
        open_region(tmp_path, write=write)


@pytest.mark.parametrize("write", [False, True])
def test_a_pipe_is_not_waited_for(tmp_path: Path, *, write: bool) -> None:
    os.mkfifo(tmp_path / "region")

    with pytest.raises(ValueError, match="plain file"):
        open_region(tmp_path, write=write)


def test_a_directory_and_a_socket_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "region").mkdir()

    with pytest.raises(ValueError, match="plain file"):
        open_region(tmp_path)


def test_a_lease_on_the_file_is_not_waited_for(directory: Path) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGIO, lambda number, _: heard.append(number))
    holder = os.open(directory / "region", os.O_RDONLY)
    try:
        fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        began = time.monotonic()
        with pytest.raises(BlockingIOError):
            open_region(directory, write=True)
        assert time.monotonic() - began < 5
    finally:
        os.close(holder)
        signal.signal(signal.SIGIO, before)


def test_a_file_cut_short_under_our_hands_hurts_nobody(directory: Path) -> None:
    opened = open_region(directory, write=True)
    assert opened is not None
    with opened:
        os.truncate(directory / "region", 0)
        with pytest.raises(ValueError, match="is 336128 bytes long, this is 0"):
            opened.read()
        assert opened.read_launches(0) == (0, False)
        opened.write_gate(0, 0)  # wakes at a page that is not there
        opened.write_host_pid(region.SLOT_COUNT - 1, 1)
        opened.write_overhead(region.MAX_DEVICES - 1, 1)
    assert len(read_all(directory)) <= region.FILE_SIZE
    with pytest.raises(ValueError, match="region"):
        read_region(directory)


def test_a_file_that_was_replaced_is_not_the_one_that_is_written(directory: Path) -> None:
    opened = open_region(directory, write=True)
    assert opened is not None
    with opened:
        other = directory / "other"
        other.write_bytes(encode_region(UUID))
        other.rename(directory / "region")
        opened.write_overhead(0, 99)
    found = read_region(directory)
    assert found is not None
    assert found.devices[0].overhead_bytes == 0


@pytest.mark.skipif(platform.machine() != "x86_64", reason="a futex by its number")
def test_opening_a_gate_wakes_who_waits(directory: Path) -> None:
    opened = open_region(directory, write=True)
    assert opened is not None
    offset = region.DEVICES_OFFSET + region.DEVICE_OFFSETS["gate"]
    woken: list[float] = []
    libc = ctypes.CDLL(None, use_errno=True)
    with opened, (directory / "region").open("r+b") as file:
        opened.write_gate(0, 3)
        memory = mmap.mmap(file.fileno(), 4096)
        word = ctypes.c_uint32.from_buffer(memory, offset)
        started = threading.Event()

        def wait(word: ctypes.c_uint32) -> None:
            limit = struct.pack("qq", 20, 0)
            started.set()
            libc.syscall(202, ctypes.byref(word), 0, 3, limit, None, 0)
            woken.append(time.monotonic())

        waiter = threading.Thread(target=wait, args=(word,))
        waiter.start()
        started.wait()
        while not is_asleep(waiter):
            os.sched_yield()
        opened.write_gate(0, 0)
        told = time.monotonic()
        waiter.join()
        del word
        memory.close()
    assert woken[0] - told < 5, "it slept its 20 s out"


def is_asleep(thread: threading.Thread) -> bool:
    text = Path(f"/proc/self/task/{thread.native_id}/stat").read_text()
    return text.rpartition(")")[2].split()[0] == "S"
