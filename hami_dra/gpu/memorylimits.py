"""Memory limits that the driver itself holds: of a control group on a card (driver 615).

They bind every process of the group, whatever API it uses, and count all that it has of the card's
memory but managed memory. Which are set, and when, `node.driverlimits` decides.

A limit belongs to the container's own group, which exists only after the container was made: one
on a group above does not reach a group that has the dmem controller itself (NVIDIA, "MPS v3 memory
partitioning"). A soft limit is added up in the groups above, and only taken away again by setting
it to 0, so it must be 0 before the group is removed.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from hami_dra.contract.errors import HamiDraError, RetryError
from hami_dra.gpu.daemon import run_in_daemon_thread
from hami_dra.gpu.library import NvmlLibrary

Backend = Literal["dmem", "misc"]
T = TypeVar("T")

FIRST_DRIVER: Final = 615
NOT_LIMITED: Final = 2**64 - 1
"""NVML_DEVICE_MEMORY_LIMIT_MAX (nvml.h)."""
_NO_PERMISSION: Final = 4
_NOT_FOUND: Final = 6
_LONGEST_CAPACITY_BYTES: Final = 1 << 16


class NoLimitsError(HamiDraError):
    """The driver holds no limits on a card, or not for this process; asking again is no use."""


@dataclass(frozen=True, slots=True)
class CardBackend:
    """Whether the driver can hold limits on a card.

    Attributes:
        uuid: The card.
        backend: ``dmem``: the kernel's controller; ``misc``: the driver's own account, which knows
            no hierarchy; ``None``: neither.
        reason: Why there is none; "" if there is one.
    """

    uuid: str
    backend: Backend | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class GroupLimit:
    """What holds for a control group on a card.

    Attributes:
        hard_bytes: Allocations above it fail; ``None``: not limited.
        soft_bytes: What the group is sure of; 0: nothing.
        used_bytes: What counts against it now.
    """

    hard_bytes: int | None
    soft_bytes: int
    used_bytes: int


class DriverMemoryLimits:
    """Asks NVML. One question at a time, in a daemon thread, because NVML may hang with the driver.

    Args:
        library: NVML.
        cgroups: Where control groups of version 2 are mounted, by the name that processes of the
            machine know it by; the driver is told this path.
        timeout_seconds: Longest time for one answer.
    """

    def __init__(
        self,
        library: NvmlLibrary,
        *,
        cgroups: Path = Path("/sys/fs/cgroup"),
        timeout_seconds: float = 10.0,
    ) -> None:
        self._library = library
        self._cgroups = cgroups
        self._timeout_seconds = timeout_seconds
        self._running: asyncio.Future[Any] | None = None

    async def find_backends(self) -> tuple[CardBackend, ...]:
        """Return who could hold limits, card by card. Reads only.

        Raises:
            RetryError: The driver does not answer.
            FatalError: It was replaced; see `NvmlLibrary.session`.
        """
        return await self._ask(self._find)

    async def read_limit(self, uuid: str, group: Path) -> GroupLimit:
        """Return what holds for a group: its own limit, or that of one above.

        Raises:
            RetryError: The driver does not answer, or the group is gone.
            NoLimitsError: The driver holds no limits on this card.
        """
        return await self._ask(lambda: self._read(uuid, group))

    async def set_limit(
        self, uuid: str, group: Path, *, hard_bytes: int | None, soft_bytes: int = 0
    ) -> None:
        """Limit a group on a card; without a hard and a soft limit, lift what was there.

        Idempotent. A limit below what is used takes nothing away: the next allocation fails.

        Args:
            uuid: The card.
            group: The directory of the container's own group.
            hard_bytes: ``None`` for no limit.
            soft_bytes: What the group shall be sure of.

        Raises:
            ValueError: The limits contradict each other, or the group is not below the mount.
            RetryError: The driver does not answer, or the group is gone.
            NoLimitsError: The driver holds no limits on this card, or not for this process.
        """
        hard = NOT_LIMITED if hard_bytes is None else hard_bytes
        if not 0 <= soft_bytes <= hard <= NOT_LIMITED:
            raise ValueError(f"a soft limit of {soft_bytes} bytes and a hard one of {hard_bytes}")
        if not group.is_relative_to(self._cgroups) or group == self._cgroups or ".." in group.parts:
            raise ValueError(f"{group} is not a control group below {self._cgroups}")
        await self._ask(lambda: self._set(uuid, group, soft_bytes, hard))

    async def _ask(self, question: Callable[[], T]) -> T:
        if self._running is not None and not self._running.done():
            raise RetryError("NVML has not answered the last question about memory limits")
        running = run_in_daemon_thread("nvml-memory-limits", question)
        self._running = running
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await asyncio.shield(running)
        except TimeoutError as error:
            raise RetryError(
                f"NVML did not answer about memory limits within {self._timeout_seconds:g} s"
            ) from error

    def _find(self) -> tuple[CardBackend, ...]:
        with self._library.session() as nvml:
            try:
                count = int(nvml.nvmlDeviceGetCount())
                driver = _text(nvml.nvmlSystemGetDriverVersion())
            except nvml.NVMLError as error:
                raise RetryError(f"NVML cannot list the cards: {error}") from error
            found = (self._find_one(nvml, index, driver) for index in range(count))
            return tuple(card for card in found if card is not None)

    def _find_one(self, nvml: Any, index: int, driver: str) -> CardBackend | None:
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = _text(nvml.nvmlDeviceGetUUID(handle))
            bus_id = _text(nvml.nvmlDeviceGetPciInfo(handle).busId)
        except nvml.NVMLError:
            return None  # a card that fell off the bus limits nobody
        if not (self._cgroups / "cgroup.controllers").exists():
            reason = f"control groups of version 2 are not mounted at {self._cgroups}"
            return CardBackend(uuid, None, reason)
        try:
            _get(nvml, handle, self._cgroups)
        except nvml.NVMLError as error:
            if not self._library.is_unsupported(error):
                return CardBackend(uuid, None, f"the driver does not say: {error}")
            old = f"driver {driver} is older than {FIRST_DRIVER}"
            divided = "the driver has no limits for this card (divided into parts, or switched off)"
            return CardBackend(uuid, None, old if _major(driver) < FIRST_DRIVER else divided)
        return CardBackend(uuid, "dmem" if self._has_dmem(bus_id) else "misc")

    def _has_dmem(self, bus_id: str) -> bool:
        """Whether the kernel's controller knows the card: a line ``nvidia/<bus id>/vidmem N``."""
        try:
            with (self._cgroups / "dmem.capacity").open(errors="replace") as file:
                lines = file.read(_LONGEST_CAPACITY_BYTES).splitlines()
        except OSError:
            return False
        wanted = _short_bus_id(bus_id)
        return any(
            len(parts) == 3  # noqa: PLR2004 - driver, card, memory
            and parts[0].startswith("nvidia")
            and _short_bus_id(parts[1]) == wanted
            for parts in (line.partition(" ")[0].split("/") for line in lines)
        )

    def _read(self, uuid: str, group: Path) -> GroupLimit:
        with self._library.session() as nvml:
            try:
                found = _get(nvml, nvml.nvmlDeviceGetHandleByUUID(uuid), group)
            except nvml.NVMLError as error:
                raise self._explain(error, uuid, group) from error
        hard = int(found.hardLimit)
        return GroupLimit(
            hard_bytes=None if hard == NOT_LIMITED else hard,
            soft_bytes=int(found.softLimit),
            used_bytes=int(found.currentUsed),
        )

    def _set(self, uuid: str, group: Path, soft: int, hard: int) -> None:
        with self._library.session() as nvml:
            try:
                nvml.nvmlDeviceSetMemoryLimits_v1(
                    nvml.nvmlDeviceGetHandleByUUID(uuid),
                    nvml.c_nvmlSetMemoryLimits_v1_t(
                        nameSpace=str(group).encode(), softLimit=soft, hardLimit=hard
                    ),
                )
            except nvml.NVMLError as error:
                raise self._explain(error, uuid, group) from error

    def _explain(self, error: Exception, uuid: str, group: Path) -> RetryError | NoLimitsError:
        value = getattr(error, "value", None)
        if self._library.is_unsupported(error):
            return NoLimitsError(f"the driver holds no memory limits on card {uuid}: {error}")
        if value == _NO_PERMISSION:
            return NoLimitsError(f"memory limits of card {uuid} are for root to set: {error}")
        if value == _NOT_FOUND and not group.exists():
            return RetryError(f"control group {group} is gone")
        return RetryError(f"memory limits of {group} on card {uuid}: {error}")


def _get(nvml: Any, handle: Any, group: Path) -> Any:
    limits = nvml.c_nvmlGetMemoryLimits_v1_t(nameSpace=str(group).encode())
    nvml.nvmlDeviceGetMemoryLimits_v1(handle, limits)
    return limits


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _major(driver: str) -> int:
    head = driver.partition(".")[0]
    return int(head) if head.isdecimal() else 0


def _short_bus_id(bus_id: str) -> str:
    """Return a PCI address with four digits of domain, as the kernel writes it."""
    domain, separator, rest = bus_id.lower().partition(":")
    return f"{domain[-4:]}{separator}{rest}"
