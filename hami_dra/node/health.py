"""What is wrong with the node's cards, kept up to date: events, looks, and time that passes."""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from hami_dra.contract.healthconfig import HealthConfig
from hami_dra.gpu.source import Watch
from hami_dra.policy.health import (
    CardEvent,
    CardState,
    CardVitals,
    Fault,
    classify_xid,
    find_lost,
    find_next_change,
    forget_ended,
    list_faults,
    note_event,
    note_return,
    note_vitals,
)
from hami_dra.service.clock import Clock

_log = structlog.get_logger(__name__)

_LONGEST_SECONDS: Final = 3600.0

Faults = Mapping[str, tuple[Fault, ...]]
"""By UUID; a card that is well is not in it."""


@dataclass(frozen=True, slots=True)
class HealthStatistics:
    """What was heard since the start, and what holds now.

    Attributes:
        xids: Reports by UUID and number.
        ecc_errors: Reported errors that memory could not correct, by UUID.
        faults: See `Faults`.
        watch: Of which cards events are heard.
    """

    xids: Mapping[tuple[str, int], int]
    ecc_errors: Mapping[str, int]
    faults: Faults
    watch: Watch


class CardHealth:
    """Knows what is wrong with each card.

    Args:
        config: When cards are marked.
        clock: Only its monotonic time.
        on_change: Called whenever other faults hold than before.
    """

    def __init__(
        self, *, config: HealthConfig, clock: Clock, on_change: Callable[[Faults], None]
    ) -> None:
        self._config = config
        self._clock = clock
        self._on_change = on_change
        self._states: dict[str, CardState] = {}
        self._lost: frozenset[str] = frozenset()
        self._faults: dict[str, tuple[Fault, ...]] = {}
        self._xids: Counter[tuple[str, int]] = Counter()
        self._ecc_errors: Counter[str] = Counter()
        self._watch = Watch(reason="not yet")
        self._judged = clock.monotonic()
        self._changed = asyncio.Event()

    def statistics(self) -> HealthStatistics:
        """Return counts since the start."""
        return HealthStatistics(self._xids, self._ecc_errors, self._faults, self._watch)

    def set_config(self, config: HealthConfig) -> None:
        """Judge what was reported, and what will be, by another configuration."""
        self._config = config
        self._judge()

    def set_watch(self, watch: Watch) -> None:
        """Note of which cards events are heard."""
        if watch != self._watch:
            self._watch = watch
            _log.info(
                "cards.watched",
                uuids=sorted(watch.cards),
                unwatched=dict(watch.unwatched) or None,
                reason=watch.reason or None,
            )

    def note_event(self, event: CardEvent) -> None:
        """Note what the driver reported."""
        if event.kind == "xid":
            self._xids[event.uuid, event.number] += 1
            kind = classify_xid(event.number, self._config.xids)
        else:
            self._ecc_errors[event.uuid] += 1
            kind = "suspect"
        log = _log.info if kind == "ignored" else _log.warning
        log("card.event", uuid=event.uuid, event_kind=event.kind, number=event.number, meaning=kind)
        if event.uuid:
            state = self._states.get(event.uuid, CardState())
            self._states[event.uuid] = note_event(state, event, self._clock.monotonic())
            self._judge()

    def note_look(self, vitals: Mapping[str, CardVitals], lost: frozenset[str]) -> None:
        """Note what a look at the cards found.

        Args:
            vitals: Of the cards that were described.
            lost: Cards that are lost after this look.
        """
        now = self._clock.monotonic()
        for uuid in self._lost - lost:
            self._states[uuid] = note_return(self._states.get(uuid, CardState()))
        for uuid, each in vitals.items():
            state = self._states.get(uuid, CardState())
            self._states[uuid] = note_vitals(state, each, now, self._config)
        self._lost = lost
        self._judge()

    async def run(self) -> None:
        """End faults that end by time, until cancelled."""
        while True:
            self._changed.clear()
            try:
                async with asyncio.timeout(self._find_delay()):
                    await self._changed.wait()
            except TimeoutError:
                self._judge()

    def _find_delay(self) -> float:
        judged, config = self._judged, self._config
        changes = [find_next_change(state, judged, config) for state in self._states.values()]
        soonest = min((at for at in changes if at is not None), default=math.inf)
        return min(max(soonest - self._clock.monotonic(), 0.0), _LONGEST_SECONDS)

    def _judge(self) -> None:
        now = self._judged = self._clock.monotonic()
        faults: dict[str, tuple[Fault, ...]] = {}
        for uuid in {*self._states, *self._lost}:
            state = forget_ended(self._states.get(uuid, CardState()), now, self._config)
            self._states[uuid] = state
            held = list_faults(state, now, self._config)
            if uuid in self._lost:
                held = (find_lost(self._config), *held)
            if held:
                faults[uuid] = held
        self._changed.set()
        if faults != self._faults:
            self._tell_differences(faults)
            self._faults = faults
            self._on_change(faults)

    def _tell_differences(self, faults: Faults) -> None:
        for uuid in sorted({*faults, *self._faults}):
            now = {(fault.taint.key, fault.taint.value) for fault in faults.get(uuid, ())}
            before = {(fault.taint.key, fault.taint.value) for fault in self._faults.get(uuid, ())}
            if now != before:
                log = _log.warning if now else _log.info
                log(
                    "card.health",
                    uuid=uuid,
                    faults=[f"{key}={value}" for key, value in sorted(now)],
                    ended=[f"{key}={value}" for key, value in sorted(before - now)],
                )
