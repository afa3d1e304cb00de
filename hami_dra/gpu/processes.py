"""What processes have and do on the cards, by the driver's own count, and where they run."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from hami_dra.contract.errors import RetryError
from hami_dra.gpu.daemon import run_in_daemon_thread
from hami_dra.gpu.library import NvmlLibrary
from hami_dra.policy.cgroups import ContainerPlace, find_container

_MIB: Final = 1 << 20
_LONGEST_FILE_BYTES: Final = 1 << 16
_WHOLE_PERCENT: Final = 100
_NOT_FOUND: Final = 6
"""NVML_ERROR_NOT_FOUND: no process did anything since."""
_START_TIME: Final = 21 - 2
"""Field 22 of /proc/<pid>/stat, counted from the one behind the name, which is the third."""


@dataclass(frozen=True, slots=True)
class CardProcess:
    """One process on one card.

    Attributes:
        uuid: The card.
        pid: In this process's PID namespace, which must be the node's.
        used_bytes: What it has of the card's memory, the driver's own part included.
        place: Pod and container; ``None`` if it runs in none, or has ended since.
        busy_percent: Of the card's time since the reading before; ``None`` if the driver does not
            tell, or was not asked.
        inner_pid: In its own PID namespace; 0 if not known.
        start_ticks: When it began, as field 22 of /proc/<pid>/stat; 0 if not known.
        pid_namespace: Inode of its PID namespace; 0 where this process may not ask.
    """

    uuid: str
    pid: int
    used_bytes: int
    place: ContainerPlace | None
    busy_percent: int | None = None
    inner_pid: int = 0
    start_ticks: int = 0
    pid_namespace: int = 0

    @property
    def used_mib(self) -> int:
        """MiB, rounded up."""
        return -(-self.used_bytes // _MIB)


class ProcessSource(Protocol):
    """Lists processes on cards."""

    async def list_processes(self, *, busy: bool = False) -> tuple[CardProcess, ...]:
        """Return all of them at one moment.

        Args:
            busy: Also ask how busy each kept its card. Only one caller should: what is told is
                told since the question before.

        Raises:
            RetryError: The driver does not answer.
        """
        ...


class NvmlProcesses:
    """Asks NVML. One reading at a time, in a daemon thread, because NVML may hang with the driver.

    Args:
        library: NVML.
        proc: The node's /proc.
        timeout_seconds: Longest time for one reading.
    """

    def __init__(
        self, library: NvmlLibrary, *, proc: Path = Path("/proc"), timeout_seconds: float = 10.0
    ) -> None:
        self._library = library
        self._proc = proc
        self._timeout_seconds = timeout_seconds
        self._running: asyncio.Future[tuple[CardProcess, ...]] | None = None
        self._told: dict[str, int] = {}

    async def list_processes(self, *, busy: bool = False) -> tuple[CardProcess, ...]:
        """Return all processes on cards; see `ProcessSource`."""
        while self._running is not None and not self._running.done():
            # Another caller's, as a rule: there are several, and each wants its own answer.
            await asyncio.wait({self._running}, timeout=self._timeout_seconds)
            if not self._running.done():
                raise RetryError("NVML has not answered the last question about processes")
        self._running = run_in_daemon_thread("nvml-processes", lambda: self._list(busy=busy))
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await asyncio.shield(self._running)
        except TimeoutError as error:
            raise RetryError(
                f"NVML did not list the processes within {self._timeout_seconds:g} s"
            ) from error

    def _list(self, *, busy: bool) -> tuple[CardProcess, ...]:
        with self._library.session() as nvml:
            try:
                count = int(nvml.nvmlDeviceGetCount())
            except nvml.NVMLError as error:
                raise RetryError(f"NVML cannot list the cards: {error}") from error
            return tuple(
                process
                for index in range(count)
                for process in self._list_on(nvml, index, busy=busy)
            )

    def _list_on(self, nvml: Any, index: int, *, busy: bool) -> Iterator[CardProcess]:
        used: dict[int, int] = {}
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = nvml.nvmlDeviceGetUUID(handle)
            listed = [
                *nvml.nvmlDeviceGetComputeRunningProcesses(handle),
                *nvml.nvmlDeviceGetGraphicsRunningProcesses(handle),
                *self._list_served(nvml, handle),
            ]
            for process in listed:
                # A process that does several things is in several lists, with the same number.
                amount = process.usedGpuMemory  # None: the driver does not know
                if amount is not None:
                    used[int(process.pid)] = max(used.get(int(process.pid), 0), int(amount))
        except nvml.NVMLError:
            return  # a card that fell off the bus has no processes
        uuid = uuid.decode(errors="replace") if isinstance(uuid, bytes) else str(uuid)
        percents = self._read_busy(nvml, handle, uuid) if busy else None
        for pid, amount in sorted(used.items()):
            yield CardProcess(
                uuid,
                pid,
                amount,
                self._find_place(pid),
                busy_percent=None if percents is None else percents.get(pid, 0),
                inner_pid=self._find_inner_pid(pid),
                start_ticks=self._find_start(pid),
                pid_namespace=self._find_namespace(pid),
            )

    def _list_served(self, nvml: Any, handle: Any) -> list[Any]:
        """Return the clients of an MPS daemon; none where the driver knows no such list."""
        try:
            return list(nvml.nvmlDeviceGetMPSComputeRunningProcesses(handle))
        except nvml.NVMLError as error:
            if self._library.is_unsupported(error):
                return []
            raise

    def _read_busy(self, nvml: Any, handle: Any, uuid: str) -> dict[int, int] | None:
        """Return percent of the card's time by process; ``None`` where the driver cannot tell."""
        try:
            samples = nvml.nvmlDeviceGetProcessUtilization(handle, self._told.get(uuid, 0))
        except nvml.NVMLError as error:
            return {} if getattr(error, "value", None) == _NOT_FOUND else None
        percents: dict[int, int] = {}
        for sample in samples:
            # Samples of old drivers may hold a percentage that is none.
            percents[int(sample.pid)] = min(int(sample.smUtil), _WHOLE_PERCENT)
            self._told[uuid] = max(self._told.get(uuid, 0), int(sample.timeStamp))
        return percents

    def _find_place(self, pid: int) -> ContainerPlace | None:
        text = self._read(pid, "cgroup")
        return None if text is None else find_container(text)

    def _find_inner_pid(self, pid: int) -> int:
        for line in (self._read(pid, "status") or "").splitlines():
            name, _, value = line.partition(":")
            if name == "NSpid":  # one for each namespace, its own last
                return _read_number(value.split()[-1:])
        return 0

    def _find_start(self, pid: int) -> int:
        # The name stands in brackets and may hold anything, brackets too.
        fields = (self._read(pid, "stat") or "").rpartition(")")[2].split()
        return _read_number(fields[_START_TIME : _START_TIME + 1])

    def _find_namespace(self, pid: int) -> int:
        try:
            link = str((self._proc / str(pid) / "ns/pid").readlink())  # "pid:[4026531836]"
        except OSError:
            return 0
        return _read_number([link.removeprefix("pid:[").removesuffix("]")])

    def _read(self, pid: int, name: str) -> str | None:
        try:
            with (self._proc / str(pid) / name).open(errors="replace") as file:
                return file.read(_LONGEST_FILE_BYTES)
        except OSError:
            return None


def _read_number(texts: list[str]) -> int:
    return int(texts[0]) if texts and texts[0].isascii() and texts[0].isdigit() else 0
