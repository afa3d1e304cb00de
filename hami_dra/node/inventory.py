"""The cards that this node has, looked at again and again."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from hami_dra.contract.errors import RetryError
from hami_dra.gpu.source import GpuSource
from hami_dra.policy.devices import GpuFacts, name_device
from hami_dra.policy.health import CardVitals

_log = structlog.get_logger(__name__)

_BACKOFF_SECONDS: Final = (1.0, 30.0)
_LOST_LOOKS: Final = 2
"""One look may fall into a reset of the driver."""
_SETTLE_SECONDS: Final = 0.5
"""A card that fails reports several things; one look answers them all."""


Listener = Callable[[tuple[GpuFacts, ...], frozenset[str]], None]
"""Called with all cards, and with the UUIDs of those among them that are lost."""
LookListener = Callable[[Mapping[str, CardVitals], frozenset[str]], None]
"""Called with the health of the cards that were described, and with the lost ones."""


class Inventory:
    """Knows the cards, and tells when they change.

    A driver that has never answered means no cards: an empty slice says that the node is alive
    without them. A card that was there once stays in the list, because claims hold it; one that
    the driver does not describe twice in a row, or all if it does not answer, is lost until it
    is described again.

    Args:
        source: Finds the cards.
        interval_seconds: How often they are looked at again.
        on_change: Called after each change, and once without cards if the first look fails.
        on_state: Called with ``None`` when the driver answers for every card, else with a reason.
        on_look: Called after each look, before `on_change`.
        on_stale: Called when the driver holds other cards than before, or does not describe all
            that were there: NVML may have to look for them anew.
    """

    def __init__(
        self,
        source: GpuSource,
        *,
        interval_seconds: float,
        on_change: Listener,
        on_state: Callable[[str | None], None],
        on_look: LookListener = lambda *_: None,
        on_stale: Callable[[], None] = lambda: None,
    ) -> None:
        self._source = source
        self._interval_seconds = interval_seconds
        self._on_change = on_change
        self._on_state = on_state
        self._on_look = on_look
        self._on_stale = on_stale
        self._bound: frozenset[str] | None = None
        self._wake = asyncio.Event()
        self._cards: dict[str, GpuFacts] = {}
        self._misses: dict[str, int] = {}
        self._told: tuple[tuple[GpuFacts, ...], frozenset[str]] | None = None

    def gpus(self) -> Mapping[str, GpuFacts]:
        """Return the cards that are not lost, by device name."""
        lost = self._lost()
        return {name_device(uuid): gpu for uuid, gpu in self._cards.items() if uuid not in lost}

    async def look(self) -> bool:
        """Look once; return whether the driver answered for every card, and all are well.

        Raises:
            FatalError: Only a new process can see the cards.
        """
        try:
            found = await self._source.discover()
        except RetryError as error:
            _log.warning("gpus.unknown", error=str(error))
            self._on_state(str(error))
            self._note((), {})
            return False
        skipped = "; ".join(f"card {gpu.index}: {gpu.reason}" for gpu in found.skipped)
        self._on_state(f"skipped {skipped}" if skipped and not found.gpus else None)
        self._note(found.gpus, found.vitals, skipped)
        complete = not any(self._misses.values())
        stale = not complete or self._bound not in {None, found.bound}
        if stale and not any(gpu.hangs for gpu in found.skipped):
            # Whoever listens anew asks every card, and would hang with one that does.
            self._on_stale()
        self._bound = found.bound
        return complete and all(map(_is_well, found.vitals.values()))

    def refresh(self) -> None:
        """Look soon: something happened to a card. Returns at once."""
        self._wake.set()

    def _note(
        self, seen: tuple[GpuFacts, ...], vitals: Mapping[str, CardVitals], skipped: str = ""
    ) -> None:
        for uuid in self._cards:
            self._misses[uuid] += 1
        for gpu in seen:
            self._cards[gpu.uuid] = gpu
            self._misses[gpu.uuid] = 0
        state = tuple(self._cards.values()), self._lost()
        self._on_look(vitals, state[1])
        if state != self._told:
            self._told = state
            _log.info(
                "gpus.found",
                uuids=[gpu.uuid for gpu in seen],
                lost=sorted(state[1]),
                skipped=skipped or None,
            )
            self._on_change(*state)

    def _lost(self) -> frozenset[str]:
        return frozenset(uuid for uuid, count in self._misses.items() if count >= _LOST_LOOKS)

    async def run(self) -> None:
        """Look until cancelled; more often while a card is missing."""
        low, high = _BACKOFF_SECONDS
        delay = low
        while True:
            self._wake.clear()
            if await self.look():
                delay = low
                await self._pause(self._interval_seconds)
            else:
                await self._pause(delay)
                delay = min(delay * 2, high)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return
        await asyncio.sleep(_SETTLE_SECONDS)


def _is_well(vitals: CardVitals) -> bool:
    return not (vitals.remap_failed or vitals.recovery_action)
