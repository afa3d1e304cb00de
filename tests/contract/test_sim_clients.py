"""Clients that nobody here wrote run unchanged on the simulated driver."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hami_dra.testing.simgpu import A100, T4, SimCard, write_cards
from tests.contract.clients import run_client

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("HAMI_DRA_BUILD_DIR", REPOSITORY / "build/libvgpu"))


@pytest.fixture
def driver(tmp_path: Path) -> dict[str, str]:
    """The environment of a process on a host with an A100 and a T4."""
    for library in ("libcuda.so.1", "libnvidia-ml.so.1"):
        if not (BUILD / "sim" / library).exists():
            pytest.fail(
                f"{BUILD / 'sim' / library} is not built: meson setup build/libvgpu libvgpu"
            )
    write_cards(tmp_path, [A100, T4])
    for card in (A100, T4):
        (tmp_path / f"nvidia{card.minor}").touch()
    return {
        **os.environ,
        "LD_LIBRARY_PATH": str(BUILD / "sim"),
        "VGPU_SIM_DIR": str(tmp_path),
        "VGPU_SIM_DEV": str(tmp_path),
    }


NVML = """
import json, pynvml as n
n.nvmlInit()
out = []
for i in range(n.nvmlDeviceGetCount()):
    h = n.nvmlDeviceGetHandleByIndex(i)
    assert n.nvmlDeviceGetUUID(n.nvmlDeviceGetHandleByUUID(n.nvmlDeviceGetUUID(h)))
    pci = n.nvmlDeviceGetPciInfo(h)
    memory = n.nvmlDeviceGetMemoryInfo(h)
    v2 = n.nvmlDeviceGetMemoryInfo(h, version=n.nvmlMemory_v2)
    assert v2.total == memory.total == memory.used + memory.free
    try:
        n.nvmlDeviceGetMigMode(h)
    except n.NVMLError_NotSupported:
        pass
    try:
        n.nvmlDeviceGetBoardId(h)
    except n.NVMLError_NotSupported:
        pass
    out.append({
        "uuid": n.nvmlDeviceGetUUID(h), "name": n.nvmlDeviceGetName(h),
        "minor": n.nvmlDeviceGetMinorNumber(h), "index": n.nvmlDeviceGetIndex(h),
        "mib": memory.total >> 20, "pci": pci.busId, "numa": n.nvmlDeviceGetNumaNodeId(h),
        "cc": n.nvmlDeviceGetCudaComputeCapability(h), "brand": n.nvmlDeviceGetBrand(h),
        "architecture": n.nvmlDeviceGetArchitecture(h),
        "processes": len(n.nvmlDeviceGetComputeRunningProcesses(h)),
        "utilization": n.nvmlDeviceGetUtilizationRates(h).gpu,
    })
events = n.nvmlEventSetCreate()
n.nvmlDeviceRegisterEvents(h, n.nvmlEventTypeXidCriticalError, events)
try:
    n.nvmlEventSetWait_v2(events, 20)
except n.NVMLError_Timeout:
    pass
n.nvmlEventSetFree(events)
level = n.nvmlDeviceGetTopologyCommonAncestor(n.nvmlDeviceGetHandleByIndex(0), h)
version = n.nvmlSystemGetDriverVersion()
cuda = n.nvmlSystemGetCudaDriverVersion()
n.nvmlShutdown()
print(json.dumps({"cards": out, "level": level, "driver": version, "cuda": cuda}))
"""


def test_nvidia_ml_py_describes_the_cards(driver: dict[str, str]) -> None:
    told = run_client(driver, NVML)
    assert told["driver"] == "580.95.05"
    assert told["cuda"] == 13000
    assert told["level"] == 50
    first, second = told["cards"]
    assert first == {
        "uuid": A100.uuid,
        "name": A100.name,
        "minor": 0,
        "index": 0,
        "mib": 40960,
        "pci": "00000000:3B:00.0",
        "numa": 0,
        "cc": [8, 0],
        "brand": 14,
        "architecture": 7,
        "processes": 0,
        "utilization": 0,
    }
    assert (second["uuid"], second["mib"], second["cc"]) == (T4.uuid, 16384, [7, 5])


def test_nvml_that_fails_to_initialise_says_so(driver: dict[str, str], tmp_path: Path) -> None:
    write_cards(tmp_path, [A100], init_error=18)
    program = """
import json, pynvml as n
try:
    n.nvmlInit()
except n.NVMLError as error:
    print(json.dumps(error.value))
"""
    assert run_client(driver, program) == 18


def test_nvml_starts_in_a_running_process_once_the_driver_is_there(
    driver: dict[str, str], tmp_path: Path
) -> None:
    write_cards(tmp_path, [A100], init_error=9)
    program = f"""
import json, pathlib, pynvml as n
from hami_dra.testing.simgpu import A100, write_cards
try:
    n.nvmlInit()
except n.NVMLError_DriverNotLoaded:
    write_cards(pathlib.Path({str(tmp_path)!r}), [A100])
    n.nvmlInit()
    print(json.dumps(n.nvmlDeviceGetCount()))
"""
    assert run_client(driver, program) == 1


def test_lost_card_is_seen_by_a_running_process(driver: dict[str, str], tmp_path: Path) -> None:
    lost = SimCard(
        uuid=A100.uuid,
        name=A100.name,
        memory_mib=A100.memory_mib,
        sm_count=A100.sm_count,
        pci_bus_id=A100.pci_bus_id,
        minor=A100.minor,
        health="lost",
    )
    write_cards(tmp_path / "later", [lost, T4])
    program = f"""
import json, os, time, pynvml as n
n.nvmlInit()
h = n.nvmlDeviceGetHandleByIndex(0)
before = n.nvmlDeviceGetName(h)
os.replace({str(tmp_path / "later/cards.ini")!r}, {str(tmp_path / "cards.ini")!r})
time.sleep(0.05)
try:
    n.nvmlDeviceGetName(h)
except n.NVMLError as error:
    print(json.dumps([before, error.value]))
"""
    assert run_client(driver, program) == [A100.name, 15]


CUDA = """
import json
from cuda.bindings import driver as d
def ok(result):
    assert result[0] == d.CUresult.CUDA_SUCCESS, result
    return result[1] if len(result) == 2 else result[1:]
ok(d.cuInit(0))
device = ok(d.cuDeviceGet(0))
name = ok(d.cuDeviceGetName(64, device)).split(b"\\0")[0].decode()
sm = ok(d.cuDeviceGetAttribute(
    d.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device))
context = ok(d.cuDevicePrimaryCtxRetain(device))
ok(d.cuCtxSetCurrent(context))
pointer = ok(d.cuMemAlloc(1 << 30))
free, total = ok(d.cuMemGetInfo())
ok(d.cuMemcpyHtoD(pointer, b"hello", 5))
back = bytearray(5)
ok(d.cuMemcpyDtoH(back, pointer, 5))
refused = d.cuMemAlloc(50 << 30)[0].name
ok(d.cuMemFree(pointer))
print(json.dumps({"count": ok(d.cuDeviceGetCount()), "name": name, "sm": sm, "back": back.decode(),
                  "used": (total - free) >> 20, "refused": refused}))
"""


def test_cuda_bindings_allocates_and_copies(driver: dict[str, str]) -> None:
    assert run_client(driver, CUDA) == {
        "count": 2,
        "name": A100.name,
        "sm": 108,
        "back": "hello",
        "used": 1024,
        "refused": "CUDA_ERROR_OUT_OF_MEMORY",
    }


def test_nvitop_shows_cards_and_processes(driver: dict[str, str]) -> None:
    holder = subprocess.Popen(  # noqa: S603 - built here
        [BUILD / "probe/cuprobe", "hold", "2900"], env=driver, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holding 2900 MiB\n"
        program = """
import json, nvitop
cards = nvitop.Device.all()
print(json.dumps([[c.name(), c.memory_total() >> 20, c.memory_used() >> 20,
                   list(c.processes())] for c in cards]))
"""
        told = run_client(driver, program)
        once = subprocess.run(
            [sys.executable, "-m", "nvitop", "--once", "--no-unicode"],
            env={**driver, "TERM": "xterm", "COLUMNS": "120"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        holder.terminate()
        holder.wait(10)
        if holder.stdout is not None:
            holder.stdout.close()
    assert told[0] == [A100.name, 40960, 2900, [holder.pid]]
    assert told[1] == [T4.name, 16384, 0, []]
    assert once.returncode == 0, once.stderr
    assert "2900MiB / 40.00GiB" in once.stdout
