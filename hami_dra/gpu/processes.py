"""Which processes have memory on the cards, by the driver's own count, and where they run."""

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
_LONGEST_CGROUP_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class CardProcess:
    """One process on one card.

    Attributes:
        uuid: The card.
        pid: In this process's PID namespace, which must be the node's.
        used_mib: MiB, rounded up.
        place: Pod and container; ``None`` if it runs in none, or has ended since.
    """

    uuid: str
    pid: int
    used_mib: int
    place: ContainerPlace | None


class ProcessSource(Protocol):
    """Lists processes on cards."""

    async def list_processes(self) -> tuple[CardProcess, ...]:
        """Return all of them at one moment.

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

    async def list_processes(self) -> tuple[CardProcess, ...]:
        """Return all processes on cards; see `ProcessSource`."""
        if self._running is not None and not self._running.done():
            raise RetryError("NVML has not answered the last question about processes")
        self._running = run_in_daemon_thread("nvml-processes", self._list)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await asyncio.shield(self._running)
        except TimeoutError as error:
            raise RetryError(
                f"NVML did not list the processes within {self._timeout_seconds:g} s"
            ) from error

    def _list(self) -> tuple[CardProcess, ...]:
        with self._library.session() as nvml:
            try:
                count = int(nvml.nvmlDeviceGetCount())
            except nvml.NVMLError as error:
                raise RetryError(f"NVML cannot list the cards: {error}") from error
            return tuple(
                process for index in range(count) for process in self._list_on(nvml, index)
            )

    def _list_on(self, nvml: Any, index: int) -> Iterator[CardProcess]:
        used: dict[int, int] = {}
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = nvml.nvmlDeviceGetUUID(handle)
            for listing in (
                nvml.nvmlDeviceGetComputeRunningProcesses,
                nvml.nvmlDeviceGetGraphicsRunningProcesses,
            ):
                for process in listing(handle):
                    # A process that does both is in both lists, with the same number.
                    amount = process.usedGpuMemory  # None: the driver does not know
                    if amount is not None:
                        used[int(process.pid)] = max(used.get(int(process.pid), 0), int(amount))
        except nvml.NVMLError:
            return  # a card that fell off the bus has no processes
        uuid = uuid.decode(errors="replace") if isinstance(uuid, bytes) else str(uuid)
        for pid, amount in sorted(used.items()):
            yield CardProcess(uuid, pid, -(-amount // _MIB), self._find_place(pid))

    def _find_place(self, pid: int) -> ContainerPlace | None:
        try:
            with (self._proc / str(pid) / "cgroup").open(errors="replace") as file:
                return find_container(file.read(_LONGEST_CGROUP_BYTES))
        except OSError:
            return None
