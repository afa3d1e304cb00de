"""Processes on cards, from a stand-in for nvidia-ml-py and a /proc of files."""
# ruff: noqa: D102, N802 - the stand-in has NVML's names and needs no words

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


class FakeNvml:
    """Lists what it is told to, by card."""

    NVMLError = NvmlError

    def __init__(self, *cards: tuple[dict[int, int | None], dict[int, int | None]] | None) -> None:
        self.cards = cards
        self.fault: str | None = None
        self.gate: threading.Event | None = None
        self.open = 0

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
        CardProcess("GPU-0", 10, 5, place),
        CardProcess("GPU-0", 11, 2, None),
        CardProcess("GPU-0", 13, 0, None),
        CardProcess("GPU-2", 10, 7, place),
    )
    assert nvml.open == 0


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
