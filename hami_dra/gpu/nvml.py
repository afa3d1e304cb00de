"""Cards as NVML describes them.

NVML may hang for as long as a driver hangs, and often hangs for one card alone. The list of cards
and the cards are looked at in threads of their own, with a time limit for each card; where one
hangs, another thread goes on with the others, and no second one asks it the same question.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pynvml

from hami_dra.contract.errors import RetryError
from hami_dra.gpu.daemon import run_in_daemon_thread, tell
from hami_dra.gpu.facts import (
    GpuFacts,
    name_architecture,
    name_brand,
    normalize_bus_id,
    register_name,
)
from hami_dra.gpu.library import NvmlLibrary
from hami_dra.gpu.mig import read_mig
from hami_dra.gpu.source import Discovery, SkippedGpu
from hami_dra.gpu.topology import find_bound_devices, find_numa_node, find_pcie_root
from hami_dra.gpu.vitals import read_vitals
from hami_dra.policy.devices import name_device
from hami_dra.policy.health import CardVitals

_MIB: Final = 1 << 20

Described = tuple[GpuFacts, CardVitals]


@dataclass(frozen=True, slots=True)
class _Driver:
    version: str
    cuda_version: str
    count: int
    bound: frozenset[str]


class NvmlSource:
    """Reads cards through nvidia-ml-py.

    Args:
        driver_root: See `NvmlLibrary`.
        sysfs: The machine's /sys.
        timeout_seconds: Longest time until NVML lists the cards.
        card_timeout_seconds: Time in which it has to describe one; twice as long may pass.
        nvml: See `NvmlLibrary`.
    """

    def __init__(
        self,
        driver_root: Path,
        *,
        sysfs: Path = Path("/sys"),
        timeout_seconds: float = 20.0,
        card_timeout_seconds: float = 5.0,
        nvml: Any = pynvml,
    ) -> None:
        self.library = NvmlLibrary(driver_root, nvml=nvml)
        self._sysfs = sysfs
        self._timeout_seconds = timeout_seconds
        self._card_timeout_seconds = card_timeout_seconds
        self._holding: asyncio.Future[None] | None = None
        self._asked: dict[int, asyncio.Future[None]] = {}

    async def discover(self) -> Discovery:
        """Look at every card; see `GpuSource.discover`."""
        if self._holding is not None and not self._holding.done():
            raise RetryError(
                f"NVML has not answered an earlier call for over {self._timeout_seconds:g} s; the "
                "driver hangs (look at dmesg for Xid messages)"
            )
        loop = asyncio.get_running_loop()
        listed: asyncio.Future[_Driver] = loop.create_future()
        leave = threading.Event()

        def hold() -> None:
            with self.library.session() as nvml:
                tell(loop, listed.set_result, self._list(nvml))
                leave.wait()

        holding = self._holding = run_in_daemon_thread("nvml", hold)
        try:
            futures: set[asyncio.Future[Any]] = {listed, holding}
            await asyncio.wait(
                futures,
                timeout=self._timeout_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if holding.done():
                holding.result()
            if not listed.done():
                raise RetryError(f"NVML did not answer within {self._timeout_seconds:g} s")
            driver = listed.result()
            return self._collect(await self._look(driver), driver)
        finally:
            leave.set()
            if listed.done():
                await asyncio.wait({holding}, timeout=self._timeout_seconds)

    def _list(self, nvml: Any) -> _Driver:
        try:
            cuda = int(nvml.nvmlSystemGetCudaDriverVersion_v2())
            return _Driver(
                version=_text(nvml.nvmlSystemGetDriverVersion()),
                cuda_version=f"{cuda // 1000}.{cuda % 1000 // 10}",
                count=int(nvml.nvmlDeviceGetCount()),
                bound=find_bound_devices(self._sysfs),
            )
        except nvml.NVMLError as error:
            raise RetryError(f"NVML cannot list the cards: {error}") from error

    async def _look(self, driver: _Driver) -> list[Described | SkippedGpu]:
        answers: dict[int, Described | SkippedGpu] = {
            index: SkippedGpu(index, "an earlier question has not been answered yet", hangs=True)
            for index, asked in self._asked.items()
            if not asked.done()
        }
        free = [index for index in range(driver.count) if index not in answers]
        answers |= await self._ask(free, driver)
        behind = [index for index in free if index not in answers]
        for answer in await asyncio.gather(*(self._ask([index], driver) for index in behind)):
            answers |= answer
        return [answers[index] for index in range(driver.count)]

    async def _ask(
        self, indices: Sequence[int], driver: _Driver
    ) -> dict[int, Described | SkippedGpu]:
        """Ask cards one after the other in one thread, up to the first that hangs.

        A thread for each would cost three times as much, since they run one at a time.
        """
        given_up = threading.Event()
        answers: list[Described | SkippedGpu] = []

        def work() -> None:
            for index in indices:
                if given_up.is_set():
                    return
                answers.append(self._try_to_describe(index, driver))

        asked = run_in_daemon_thread("nvml-cards", work)
        known = -1
        try:
            while not asked.done() and known < len(answers):
                known = len(answers)
                await asyncio.wait({asked}, timeout=self._card_timeout_seconds)
        finally:
            given_up.set()
        found = dict(zip(indices, tuple(answers), strict=False))
        if not asked.done() and len(found) < len(indices):
            stuck = indices[len(found)]
            self._asked[stuck] = asked
            reason = f"no answer within {self._card_timeout_seconds:g} s"
            found[stuck] = SkippedGpu(stuck, reason, hangs=True)
        return found

    def _collect(self, answers: list[Described | SkippedGpu], driver: _Driver) -> Discovery:
        found: dict[str, Described] = {}
        skipped: list[SkippedGpu] = []
        for answer in answers:
            if isinstance(answer, SkippedGpu):
                skipped.append(answer)
                continue
            gpu, _ = answer
            name = name_device(gpu.uuid)
            if name in found:
                other = found[name][0].index
                skipped.append(SkippedGpu(gpu.index, f"has the UUID {gpu.uuid} of card {other}"))
            else:
                found[name] = answer
        return Discovery(
            tuple(gpu for gpu, _ in found.values()),
            tuple(skipped),
            vitals={gpu.uuid: vitals for gpu, vitals in found.values()},
            bound=driver.bound,
        )

    def _try_to_describe(self, index: int, driver: _Driver) -> Described | SkippedGpu:
        try:
            return self._describe(index, driver)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this card's alone
            return SkippedGpu(index, str(error) or type(error).__name__)

    def _describe(self, index: int, driver: _Driver) -> Described:
        # A session of its own: if this thread hangs, NVML stays what it is to it.
        with self.library.session() as nvml:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
            uuid = _text(nvml.nvmlDeviceGetUUID(handle))
            if not uuid:
                raise ValueError("it has no UUID")
            bus_id = self._read_bus_id(handle)
            gpu = GpuFacts(
                uuid=uuid,
                index=index,
                minor=int(nvml.nvmlDeviceGetMinorNumber(handle)),
                product_name=register_name(_text(nvml.nvmlDeviceGetName(handle))),
                brand=name_brand(self._optional(nvml.nvmlDeviceGetBrand, handle, otherwise=0)),
                architecture=name_architecture(int(major), int(minor)),
                compute_capability=f"{major}.{minor}",
                driver_version=driver.version,
                cuda_driver_version=driver.cuda_version,
                memory_mib=self._read_memory_mib(handle),
                pci_bus_id=bus_id,
                pcie_root=find_pcie_root(self._sysfs, bus_id),
                numa_node=find_numa_node(self._sysfs, bus_id),
                mig=read_mig(nvml, handle),
            )
            return gpu, read_vitals(nvml, handle)

    def _read_bus_id(self, handle: Any) -> str:
        """Return the PCI address; "" for a card that is part of the machine's own chip."""
        info = self._optional(self.library.nvml.nvmlDeviceGetPciInfo, handle, otherwise=None)
        return "" if info is None else normalize_bus_id(_text(info.busId))

    def _read_memory_mib(self, handle: Any) -> int:
        memory = self._optional(self.library.nvml.nvmlDeviceGetMemoryInfo, handle, otherwise=None)
        return 0 if memory is None else int(memory.total) // _MIB

    def _optional(self, question: Callable[[Any], Any], handle: Any, *, otherwise: Any) -> Any:
        try:
            return question(handle)
        except self.library.nvml.NVMLError as error:
            if self.library.is_unsupported(error):
                return otherwise
            raise


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
