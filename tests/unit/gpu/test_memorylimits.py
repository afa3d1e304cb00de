"""Limits that the driver holds itself, from a stand-in for nvidia-ml-py and a folder of groups."""
# ruff: noqa: D102, N802, N815 - the stand-in has NVML's names and needs no words

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hami_dra.contract.errors import RetryError
from hami_dra.gpu.library import NvmlLibrary
from hami_dra.gpu.memorylimits import (
    NOT_LIMITED,
    CardBackend,
    DriverMemoryLimits,
    GroupLimit,
    NoLimitsError,
)

GIB = 1 << 30


class NvmlError(Exception):
    """As pynvml.NVMLError."""

    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


class FakeNvml:
    """Cards that hold what they are told, or answer with an error."""

    NVMLError = NvmlError
    c_nvmlSetMemoryLimits_v1_t = SimpleNamespace
    c_nvmlGetMemoryLimits_v1_t = SimpleNamespace

    def __init__(self, *errors: int | None, driver: str = "615.10") -> None:
        self.errors = errors
        self.driver = driver
        self.limits: dict[tuple[str, bytes], tuple[int, int]] = {}
        self.gate: threading.Event | None = None

    def nvmlInit(self) -> None:
        if self.gate is not None:
            self.gate.wait(10)

    def nvmlShutdown(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return len(self.errors)

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return self.driver.encode()

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        if self.errors[index] == 15:
            raise NvmlError(15)
        return f"GPU-{index}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return handle

    def nvmlDeviceGetPciInfo(self, handle: str) -> Any:
        return SimpleNamespace(busId=f"00000000:{int(handle[4:]) + 0x3B:02X}:00.0".encode())

    def nvmlDeviceGetMemoryLimits_v1(self, handle: str, limits: Any) -> None:
        self._check(handle)
        soft, hard = self.limits.get((handle, limits.nameSpace), (0, NOT_LIMITED))
        limits.softLimit, limits.hardLimit, limits.currentUsed = soft, hard, 7

    def nvmlDeviceSetMemoryLimits_v1(self, handle: str, limits: Any) -> None:
        self._check(handle)
        self.limits[handle, limits.nameSpace] = (limits.softLimit, limits.hardLimit)

    def _check(self, handle: str) -> None:
        error = self.errors[int(handle[4:])]
        if error is not None:
            raise NvmlError(error)


def ask(nvml: FakeNvml, cgroups: Path, **changes: Any) -> DriverMemoryLimits:
    (cgroups / "cgroup.controllers").touch()
    return DriverMemoryLimits(NvmlLibrary(Path("/"), nvml=nvml), cgroups=cgroups, **changes)


async def test_each_card_says_who_could_hold_limits(tmp_path: Path) -> None:
    (tmp_path / "dmem.capacity").write_text(
        "drm/0000:00:02.0/vram0 8192\nnvidia/0000:3b:00.0/vidmem 85899345920\n"
    )

    found = await ask(FakeNvml(None, None, 3, 15, 999), tmp_path).find_backends()

    assert found[:2] == (CardBackend("GPU-0", "dmem"), CardBackend("GPU-1", "misc"))
    assert [(card.uuid, card.backend) for card in found[2:]] == [("GPU-2", None), ("GPU-4", None)]
    assert "divided into parts" in found[2].reason
    assert "NVML error 999" in found[3].reason


@pytest.mark.parametrize("error", [3, 13])
async def test_an_older_driver_holds_none(tmp_path: Path, error: int) -> None:
    nvml = FakeNvml(error, driver="580.95.05")
    limits = ask(nvml, tmp_path)

    (card,) = await limits.find_backends()

    assert card == CardBackend("GPU-0", None, "driver 580.95.05 is older than 615")
    with pytest.raises(NoLimitsError, match="no memory limits on card GPU-0"):
        await limits.set_limit("GPU-0", tmp_path / "pod", hard_bytes=GIB)


async def test_without_groups_of_version_2_there_is_nothing_to_limit(tmp_path: Path) -> None:
    limits = ask(FakeNvml(None), tmp_path)
    (tmp_path / "cgroup.controllers").unlink()

    (card,) = await limits.find_backends()

    assert card.backend is None
    assert "version 2" in card.reason


async def test_a_limit_is_set_read_and_lifted(tmp_path: Path) -> None:
    limits, group = ask(FakeNvml(None), tmp_path), tmp_path / "pod/container"

    await limits.set_limit("GPU-0", group, hard_bytes=3 * GIB, soft_bytes=GIB)
    assert await limits.read_limit("GPU-0", group) == GroupLimit(3 * GIB, GIB, 7)
    await limits.set_limit("GPU-0", group, hard_bytes=None)
    assert await limits.read_limit("GPU-0", group) == GroupLimit(None, 0, 7)


@pytest.mark.parametrize(
    ("group", "hard", "soft", "words"),
    [
        ("pod", 1, 2, "soft limit of 2 bytes and a hard one of 1"),
        ("pod", -1, 0, "hard one of -1"),
        ("pod", None, -1, "soft limit of -1"),
        ("pod", 2**64, 0, "hard one of"),
        (".", 1, 0, "not a control group below"),
        ("../etc", 1, 0, "not a control group below"),
        ("/etc", 1, 0, "not a control group below"),
    ],
)
async def test_what_makes_no_sense_is_not_asked_of_the_driver(
    tmp_path: Path, group: str, hard: int | None, soft: int, words: str
) -> None:
    nvml = FakeNvml(None)

    with pytest.raises(ValueError, match=words):
        await ask(nvml, tmp_path).set_limit(
            "GPU-0", tmp_path / group, hard_bytes=hard, soft_bytes=soft
        )
    assert nvml.limits == {}


@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [
        (4, NoLimitsError, "are for root to set"),
        (6, RetryError, "is gone"),
        (999, RetryError, "NVML error 999"),
    ],
)
async def test_refusals_are_told_apart(
    tmp_path: Path, error: int, expected: type[Exception], words: str
) -> None:
    limits = ask(FakeNvml(error), tmp_path)

    with pytest.raises(expected, match=words):
        await limits.set_limit("GPU-0", tmp_path / "pod", hard_bytes=1)


async def test_a_driver_that_hangs_is_asked_once(tmp_path: Path) -> None:
    nvml = FakeNvml(None)
    nvml.gate = threading.Event()
    limits = ask(nvml, tmp_path, timeout_seconds=0.05)

    with pytest.raises(RetryError, match="did not answer about memory limits"):
        await limits.find_backends()
    with pytest.raises(RetryError, match="last question"):
        await limits.find_backends()
    nvml.gate.set()
    while limits._running is not None and not limits._running.done():
        await limits._running
    assert (await limits.find_backends())[0].backend == "misc"
