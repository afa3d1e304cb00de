"""Cards as NVML describes them.

NVML may hang for as long as a driver hangs. Every look runs in its own daemon thread with a time
limit, one at a time: a thread that never returns costs this room its answers, never the process
its exit (a ThreadPoolExecutor's thread would be waited for).
"""

import asyncio
import ctypes
import platform
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pynvml

from hami_dra.contract.driverroot import NVML_SONAME, library_directories
from hami_dra.contract.errors import RetryError
from hami_dra.gpu.facts import (
    GpuFacts,
    name_architecture,
    name_brand,
    normalize_bus_id,
    register_name,
)
from hami_dra.gpu.source import Discovery, SkippedGpu
from hami_dra.gpu.topology import find_numa_node, find_pcie_root

_MIB: Final = 1 << 20


def find_library(driver_root: Path) -> Path | None:
    """Return ``libnvidia-ml.so.1`` below a root, if it is there."""
    candidates = (
        driver_root / directory / NVML_SONAME
        for directory in library_directories(platform.machine())
    )
    return next((path for path in candidates if path.exists()), None)


class NvmlSource:
    """Reads cards through nvidia-ml-py.

    Args:
        driver_root: Where the driver is installed, as this process sees it. For "/" the dynamic
            loader finds the library, so LD_LIBRARY_PATH counts.
        sysfs: The machine's /sys.
        timeout_seconds: Longest time for one look at all cards.
        nvml: The nvidia-ml-py module, or something with its functions.
    """

    def __init__(
        self,
        driver_root: Path,
        *,
        sysfs: Path = Path("/sys"),
        timeout_seconds: float = 20.0,
        nvml: Any = pynvml,
    ) -> None:
        self._driver_root = driver_root
        self._sysfs = sysfs
        self._timeout_seconds = timeout_seconds
        self._nvml = nvml
        self._running: asyncio.Future[Discovery] | None = None

    async def discover(self) -> Discovery:
        """Look at every card; see `GpuSource.discover`."""
        if self._running is not None and not self._running.done():
            raise RetryError(
                f"NVML has not answered an earlier call for over {self._timeout_seconds:g} s; the "
                "driver hangs (look at dmesg for Xid messages)"
            )
        self._running = _run_in_daemon_thread("nvml", self._discover)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await asyncio.shield(self._running)
        except TimeoutError as error:
            raise RetryError(f"NVML did not answer within {self._timeout_seconds:g} s") from error

    def _discover(self) -> Discovery:
        nvml = self._nvml
        self._load()
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            raise RetryError(
                f"NVML does not initialise: {error}; is the NVIDIA driver loaded, and is its "
                f"library below {self._driver_root}?"
            ) from error
        try:
            return self._describe_all()
        except nvml.NVMLError as error:
            raise RetryError(f"NVML cannot list the cards: {error}") from error
        finally:
            nvml.nvmlShutdown()

    def _load(self) -> None:
        """Load the root's own library, so that the loader answers its SONAME with it.

        nvidia-ml-py opens the library by its bare SONAME; the dynamic loader compares that with
        what is loaded already before it searches any directory.
        """
        if self._driver_root == Path("/"):
            return
        path = find_library(self._driver_root)
        if path is None:
            raise RetryError(
                f"no {NVML_SONAME} below {self._driver_root}; set --driver-root to where the "
                "NVIDIA driver is installed"
            )
        try:
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise RetryError(f"{path} cannot be loaded: {error}") from error

    def _describe_all(self) -> Discovery:
        nvml = self._nvml
        driver = _text(nvml.nvmlSystemGetDriverVersion())
        cuda = int(nvml.nvmlSystemGetCudaDriverVersion_v2())
        gpus: list[GpuFacts] = []
        skipped: list[SkippedGpu] = []
        for index in range(int(nvml.nvmlDeviceGetCount())):
            try:
                gpus.append(self._describe(index, driver, f"{cuda // 1000}.{cuda % 1000 // 10}"))
            except (nvml.NVMLError, ValueError) as error:
                skipped.append(SkippedGpu(index, str(error)))
        return Discovery(tuple(gpus), tuple(skipped))

    def _describe(self, index: int, driver_version: str, cuda_version: str) -> GpuFacts:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        bus_id = normalize_bus_id(_text(nvml.nvmlDeviceGetPciInfo(handle).busId))
        return GpuFacts(
            uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
            index=index,
            minor=int(nvml.nvmlDeviceGetMinorNumber(handle)),
            product_name=register_name(_text(nvml.nvmlDeviceGetName(handle))),
            brand=name_brand(int(nvml.nvmlDeviceGetBrand(handle))),
            architecture=name_architecture(int(major), int(minor)),
            compute_capability=f"{major}.{minor}",
            driver_version=driver_version,
            cuda_driver_version=cuda_version,
            memory_mib=int(nvml.nvmlDeviceGetMemoryInfo(handle).total) // _MIB,
            pci_bus_id=bus_id,
            pcie_root=find_pcie_root(self._sysfs, bus_id),
            numa_node=find_numa_node(self._sysfs, bus_id),
        )


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _run_in_daemon_thread(name: str, work: Callable[[], Discovery]) -> asyncio.Future[Discovery]:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Discovery] = loop.create_future()
    # Someone who timed out has left; the result that comes too late is nobody's error.
    future.add_done_callback(lambda done: done.cancelled() or done.exception())

    def settle(result: Discovery | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        elif result is not None:
            future.set_result(result)

    def run() -> None:
        try:
            outcome: tuple[Discovery | None, Exception | None] = (work(), None)
        except Exception as error:  # noqa: BLE001 - handed over to the waiting task as it is
            outcome = (None, error)
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
