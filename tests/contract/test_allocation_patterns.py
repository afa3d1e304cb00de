"""How PyTorch's allocator and NCCL use the driver, held to a share on the simulated one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hami_dra.testing.simgpu import A100
from tests.contract.clients import run_client
from tests.gpu.bed import simulate
from tests.gpu.setups import Limits, list_setups

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("HAMI_DRA_BUILD_DIR", REPOSITORY / "build/libvgpu")).resolve()
SHARE_MIB = 1000
COMMON = """
import json, sys
from cuda.bindings import driver as d
MIB = 1 << 20
def ok(result):
    assert result[0] == d.CUresult.CUDA_SUCCESS, result
    return result[1] if len(result) == 2 else result[1:]
def begin():
    ok(d.cuInit(0))
    ok(d.cuCtxSetCurrent(ok(d.cuDevicePrimaryCtxRetain(ok(d.cuDeviceGet(0))))))
def free_mib():
    return ok(d.cuMemGetInfo())[0] // MIB
"""


@pytest.fixture
def share(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of programs that have a share of one card together."""
    with simulate(BUILD) as extra:
        ours = list_setups(BUILD, None, extra)[1]
        yield ours.environment(Limits(A100.uuid, memory_mib=SHARE_MIB), tmp_path)


CACHING = """
# CUDACachingAllocator: segments of 20 MiB for blocks up to 10 MiB, 2 MiB for blocks up to 1 MiB;
# what does not fit is tried again once all cached segments are given back.
begin()
segments, refusals = [], 0
def segment(mib):
    global refusals
    result, pointer = d.cuMemAlloc(mib * MIB)
    if result == d.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        refusals += 1
        return None
    assert result == d.CUresult.CUDA_SUCCESS, result
    return pointer
while (pointer := segment(20)) is not None:
    segments.append(pointer)
small = [segment(2) for _ in range(4)]
full = free_mib()
for pointer in segments[1:]:
    ok(d.cuMemFree(pointer))
large = segment(900)
print(json.dumps({"segments": len(segments), "small": sum(p is not None for p in small),
                  "free when full": full, "refusals": refusals, "again": large is not None,
                  "free": free_mib()}))
"""


def test_caching_allocator_gets_room_by_giving_back(share: dict[str, str]) -> None:
    assert run_client(share, COMMON + CACHING) == {
        "segments": 50,
        "small": 0,
        "free when full": 0,
        "refusals": 5,
        "again": True,
        "free": 80,
    }


EXPANDABLE = """
# expandable_segments:True: addresses for all of the card, and pages of 20 MiB behind them.
begin()
props = d.CUmemAllocationProp()
props.type = d.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
props.location.type = d.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
access = d.CUmemAccessDesc()
access.location = props.location
access.flags = d.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
page = 20 * MIB
base = ok(d.cuMemAddressReserve(40960 * MIB, 0, 0, 0))
handles = []
while True:
    result, handle = d.cuMemCreate(page, props, 0)
    if result == d.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        break
    assert result == d.CUresult.CUDA_SUCCESS, result
    at = int(base) + len(handles) * page
    ok(d.cuMemMap(at, page, 0, handle, 0))
    ok(d.cuMemSetAccess(at, page, [access], 1))
    handles.append(handle)
full = free_mib()
for number in range(len(handles) // 2, len(handles)):
    ok(d.cuMemUnmap(int(base) + number * page, page))
    ok(d.cuMemRelease(handles[number]))
half = free_mib()
print(json.dumps([len(handles), full, half]))
"""


def test_expandable_segments_are_held(share: dict[str, str]) -> None:
    assert run_client(share, COMMON + EXPANDABLE) == [50, 0, 500]


RANKS = r"""
# As NCCL's ranks on one node: each offers a buffer by an IPC handle, opens those of all others,
# writes to them, and goes. The ranks are started by exec, as torchrun does.
import ctypes, subprocess
RANKS, SIZE = 4, 100
def rank(number):
    begin()
    own = ok(d.cuMemAlloc(SIZE * MIB))
    handle = ok(d.cuIpcGetMemHandle(own))
    print(ctypes.string_at(handle.getPtr(), 64).hex(), flush=True)
    handles = json.loads(sys.stdin.readline())
    opened = []
    for other, text in enumerate(handles):
        if other != number:
            handle = d.CUipcMemHandle()
            ctypes.memmove(handle.getPtr(), bytes.fromhex(text), 64)
            opened.append(ok(d.cuIpcOpenMemHandle(handle, 1)))
            ok(d.cuMemcpyHtoD(int(opened[-1]) + number, bytes([number + 1]), 1))
    print(free_mib(), flush=True)
    sys.stdin.readline()
    back = bytearray(RANKS)
    ok(d.cuMemcpyDtoH(back, own, RANKS))
    for pointer in opened:
        ok(d.cuIpcCloseMemHandle(pointer))
    ok(d.cuMemFree(own))
    print(back.hex(), flush=True)
if len(sys.argv) > 1:
    rank(int(sys.argv[1]))
    raise SystemExit
ranks = [subprocess.Popen([sys.executable, "-c", PROGRAM, str(n)], text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) for n in range(RANKS)]
def hear():
    return [process.stdout.readline().strip() for process in ranks]
def tell(line):
    for process in ranks:
        process.stdin.write(line + "\n")
        process.stdin.flush()
tell(json.dumps(hear()))
free = hear()
tell("go on")
wrote = hear()
ended = [process.wait() for process in ranks]
begin()
print(json.dumps({"free": free, "wrote": wrote, "ended": ended, "after": free_mib()}))
"""


def test_ranks_of_one_share_pay_once_for_what_they_open_of_each_other(
    share: dict[str, str],
) -> None:
    program = f"import sys\nPROGRAM = {COMMON + RANKS!r}\n"
    told = run_client(share, COMMON + program + "exec(compile(PROGRAM, 'ranks', 'exec'))\n")
    expected = ["00020304", "01000304", "01020004", "01020300"]
    assert told == {"free": ["600"] * 4, "wrote": expected, "ended": [0] * 4, "after": 1000}
