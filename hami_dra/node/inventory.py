"""The cards that this node has, looked at again and again."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from hami_dra.contract.errors import HamiDraError
from hami_dra.gpu.source import Discovery, GpuSource
from hami_dra.policy.devices import GpuFacts, name_device

_log = structlog.get_logger(__name__)

_BACKOFF_SECONDS: Final = (1.0, 30.0)


class Inventory:
    """Knows the cards, and tells when they change.

    A driver that has never answered means no cards: an empty slice says that the node is alive
    without them. One that stops answering later leaves the cards as they were: pods run on them.

    Args:
        source: Finds the cards.
        interval_seconds: How often they are looked at again.
        on_change: Called with all cards after each change, and once with none if the first look
            fails.
        on_state: Called with ``None`` when the driver answers for every card, else with a reason.
    """

    def __init__(
        self,
        source: GpuSource,
        *,
        interval_seconds: float,
        on_change: Callable[[tuple[GpuFacts, ...]], None],
        on_state: Callable[[str | None], None],
    ) -> None:
        self._source = source
        self._interval_seconds = interval_seconds
        self._on_change = on_change
        self._on_state = on_state
        self._known: Discovery | None = None
        self._announced = False

    def gpus(self) -> Mapping[str, GpuFacts]:
        """Return the cards by device name."""
        found = self._known.gpus if self._known else ()
        return {name_device(gpu.uuid): gpu for gpu in found}

    async def look(self) -> bool:
        """Look once; return whether the driver answered."""
        try:
            found = await self._source.discover()
        except HamiDraError as error:
            _log.warning("gpus.unknown", error=str(error))
            self._on_state(str(error))
            if not self._announced:
                self._announced = True
                self._on_change(())
            return False
        skipped = "; ".join(f"card {gpu.index}: {gpu.reason}" for gpu in found.skipped)
        self._on_state(f"skipped {skipped}" if skipped and not found.gpus else None)
        if found != self._known:
            _log.info("gpus.found", uuids=[gpu.uuid for gpu in found.gpus], skipped=skipped or None)
            self._known = found
            self._announced = True
            self._on_change(found.gpus)
        return True

    async def run(self) -> None:
        """Look until cancelled; a driver that does not answer is asked more often."""
        low, high = _BACKOFF_SECONDS
        delay = low
        while True:
            if await self.look():
                delay = low
                await asyncio.sleep(self._interval_seconds)
            else:
                await asyncio.sleep(delay)
                delay = min(delay * 2, high)
