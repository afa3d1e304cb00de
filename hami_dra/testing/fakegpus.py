"""Cards that a test puts in and takes out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from hami_dra.contract.errors import RetryError
from hami_dra.gpu.source import Discovery, SkippedGpu, Watch
from hami_dra.policy.devices import GpuFacts

if TYPE_CHECKING:
    from collections.abc import Callable

    from hami_dra.policy.health import CardEvent, CardVitals


def make_gpu(number: int = 0, *, memory_mib: int = 40960) -> GpuFacts:
    """Return a plausible card; different numbers make different cards."""
    return GpuFacts(
        uuid=f"GPU-{number:08x}-1111-2222-3333-444444444444",
        index=number,
        minor=number,
        product_name="NVIDIA A100-PCIE-40GB",
        brand="Nvidia",
        architecture="Ampere",
        compute_capability="8.0",
        driver_version="580.95.05",
        cuda_driver_version="13.0",
        memory_mib=memory_mib,
        pci_bus_id=f"0000:{number + 1:02x}:00.0",
        pcie_root="pci0000:00",
        numa_node=number % 2,
    )


class FakeGpus:
    """A `GpuSource` whose answers a test sets.

    Attributes:
        gpus: What is found.
        skipped: Cards that cannot be described.
        vitals: Health by UUID.
        bound: PCI addresses that the driver holds.
        fault: Text of the error instead of an answer, ``None`` for an answer.
    """

    def __init__(self, *gpus: GpuFacts) -> None:
        self.gpus = gpus
        self.skipped: tuple[SkippedGpu, ...] = ()
        self.vitals: dict[str, CardVitals] = {}
        self.bound: frozenset[str] = frozenset()
        self.fault: str | None = None

    async def discover(self) -> Discovery:
        """Return what was set, or raise it."""
        if self.fault is not None:
            raise RetryError(self.fault)
        return Discovery(self.gpus, self.skipped, dict(self.vitals), self.bound)


class FakeEvents:
    """An `EventSource` whose events a test makes.

    Attributes:
        pending: Events that will be heard.
        reopened: How often it was to begin anew.
    """

    def __init__(self, *uuids: str) -> None:
        self._uuids = frozenset(uuids)
        self.pending: asyncio.Queue[CardEvent] = asyncio.Queue()
        self.reopened = 0

    async def run(
        self, on_event: Callable[[CardEvent], None], on_watch: Callable[[Watch], None]
    ) -> None:
        """Pass on what is pending."""
        on_watch(Watch(self._uuids))
        while True:
            on_event(await self.pending.get())

    def reopen(self) -> None:
        """Count."""
        self.reopened += 1
