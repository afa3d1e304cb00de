"""Processes on cards, from a stand-in for nvidia-ml-py and a /proc of files."""
# ruff: noqa: D102, N802 - the stand-in has NVML's names and needs no words

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hami_dra.contract.errors import RetryError
from hami_dra.gpu.library import NvmlLibrary
from hami_dra.gpu.processes import CardProcess, NvmlProcesses
from hami_dra.policy.cgroups import ContainerPlace

MIB = 1 << 20
UID, ID = "0f2c1d34-5a6b-4c7d-8e9f-0123456789ab", "a1" * 32


class NvmlError(Exception):
    """What the module raises."""

    def __init__(self, text: str, value: int = 15) -> None:
        super().__init__(text)
        self.value = value


class FakeNvml:
    """Lists what it is told to, by card."""

    NVMLError = NvmlError

    def __init__(self, *cards: tuple[dict[int, int | None], dict[int, int | None]] | None) -> None:
        self.cards = cards
        self.fault: str | None = None
        self.gate: threading.Event | None = None
        self.open = 0
        self.samples: list[Any] | NvmlError = []
        self.since: list[int] = []
        self.served: dict[int, int] | None = None

    def nvmlInit(self) -> None:
        if self.gate is not None:
            self.gate.wait(10)
        if self.fault:
            raise NvmlError(self.fault)
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if self.cards[index] is None:
            raise NvmlError("GPU is lost")
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> Any:
        return f"GPU-{handle}".encode() if handle else f"GPU-{handle}"

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:
        return self._list(handle, 0)

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: int) -> list[Any]:
        return self._list(handle, 1)

    def nvmlDeviceGetMPSComputeRunningProcesses(self, handle: int) -> list[Any]:
        if self.served is None or handle:
            raise NvmlError("Function Not Found", value=13)
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.served.items()]

    def nvmlDeviceGetProcessUtilization(self, handle: int, since: int) -> list[Any]:
        assert handle == 0
        self.since.append(since)
        if isinstance(self.samples, NvmlError):
            raise self.samples
        return self.samples

    def _list(self, handle: int, kind: int) -> list[Any]:
        card = self.cards[handle]
        assert card is not None
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in card[kind].items()]


def load(nvml: FakeNvml) -> NvmlLibrary:
    return NvmlLibrary(Path("/"), nvml=nvml)


def make_proc(root: Path, **groups: str) -> Path:
    for pid, text in groups.items():
        (root / pid[1:]).mkdir(parents=True)
        (root / pid[1:] / "cgroup").write_text(text)
    return root


async def test_processes_have_their_memory_and_their_pod(tmp_path: Path) -> None:
    nvml = FakeNvml(
        ({10: 3 * MIB, 11: MIB + 1, 12: None}, {10: 5 * MIB, 13: 0}),
        None,
        ({10: 7 * MIB}, {}),
    )
    proc = make_proc(tmp_path, p10=f"0::/kubepods/pod{UID}/{ID}\n", p11="0::/init.scope\n")

    found = await NvmlProcesses(load(nvml), proc=proc).list_processes()

    place = ContainerPlace(UID, ID)
    assert found == (
        CardProcess("GPU-0", 10, 5 * MIB, place),
        CardProcess("GPU-0", 11, MIB + 1, None),
        CardProcess("GPU-0", 13, 0, None),
        CardProcess("GPU-2", 10, 7 * MIB, place),
    )
    assert [process.used_mib for process in found] == [5, 2, 0, 7]
    assert nvml.open == 0


async def test_how_busy_processes_were_is_told_since_the_question_before(tmp_path: Path) -> None:
    nvml = FakeNvml(({10: MIB, 11: MIB}, {}))
    source = NvmlProcesses(load(nvml), proc=tmp_path)

    async def ask() -> list[int | None]:
        return [process.busy_percent for process in await source.list_processes(busy=True)]

    nvml.samples = [SimpleNamespace(pid=10, smUtil=42, timeStamp=7_000)]
    assert await ask() == [42, 0]
    nvml.samples = [SimpleNamespace(pid=11, smUtil=4_000_000_000, timeStamp=6_000)]
    assert await ask() == [0, 100]
    nvml.samples = NvmlError("Not Found", 6)
    assert await ask() == [0, 0]
    nvml.samples = NvmlError("Not Supported", 3)
    assert await ask() == [None, None]
    assert nvml.since == [0, 7_000, 7_000, 7_000]
    assert [process.busy_percent for process in await source.list_processes()] == [None, None]
    assert len(nvml.since) == 4


async def test_processes_are_known_by_their_number_inside_and_their_start(tmp_path: Path) -> None:
    proc = make_proc(tmp_path, p10="", p11="")
    (proc / "10/status").write_text("Name:\tx\nNSpid:\t10\t3\t1\nVmPeak:\t5 kB\n")
    (proc / "10/stat").write_text("10 (a) b (c) S 1 " + " ".join(map(str, range(5, 60))) + "\n")
    (proc / "10/ns").mkdir()
    (proc / "10/ns/pid").symlink_to("pid:[4026531836]")
    (proc / "11/status").write_text("NSpid:\n")
    (proc / "11/stat").write_text("11 (cut")

    nvml = FakeNvml(({10: 0, 11: 0, 12: 0}, {}))
    found = await NvmlProcesses(load(nvml), proc=proc).list_processes()

    assert [(item.inner_pid, item.start_ticks) for item in found] == [(1, 22), (0, 0), (0, 0)]
    assert [item.pid_namespace for item in found] == [4026531836, 0, 0]


async def test_two_callers_are_answered_in_turn(tmp_path: Path) -> None:
    nvml = FakeNvml(({10: MIB}, {}))
    nvml.gate = threading.Event()
    source = NvmlProcesses(load(nvml), proc=tmp_path)
    both = asyncio.gather(source.list_processes(), source.list_processes(busy=True))
    await asyncio.sleep(0)
    nvml.gate.set()

    first, second = await both
    assert [item.busy_percent for item in first + second] == [None, 0]


async def test_a_driver_that_is_not_there_may_come_back(tmp_path: Path) -> None:
    nvml = FakeNvml(({}, {}))
    source = NvmlProcesses(load(nvml), proc=tmp_path)
    nvml.fault = "Driver Not Loaded"
    with pytest.raises(RetryError, match="Driver Not Loaded"):
        await source.list_processes()
    nvml.fault = None

    assert await source.list_processes() == ()


async def test_a_driver_that_hangs_is_asked_once(tmp_path: Path) -> None:
    nvml = FakeNvml(({}, {}))
    nvml.gate = threading.Event()
    source = NvmlProcesses(load(nvml), proc=tmp_path, timeout_seconds=0.01)
    with pytest.raises(RetryError, match=r"did not list the processes within 0\.01 s"):
        await source.list_processes()
    with pytest.raises(RetryError, match="has not answered"):
        await source.list_processes()
    nvml.gate.set()


async def test_clients_of_mps_are_listed_where_the_driver_knows_them(tmp_path: Path) -> None:
    nvml = FakeNvml(({10: MIB}, {}))
    processes = NvmlProcesses(load(nvml), proc=tmp_path)
    assert [p.pid for p in await processes.list_processes()] == [10]
    nvml.served = {11: 2 * MIB, 10: 3 * MIB}

    found = await processes.list_processes()

    assert [(p.pid, p.used_bytes) for p in found] == [(10, 3 * MIB), (11, 2 * MIB)]
