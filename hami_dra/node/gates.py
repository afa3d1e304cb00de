"""Gates: words in regions that hold a share's launches back while a higher priority works.

libvgpu looks at the gate before each launch and sleeps on it as on a futex, so opening one lets
launches go at once. A closed gate has to be changed again and again: one that stays the same for
two seconds is taken for one whose node has died.
"""

import asyncio
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from hami_dra.node.regionfile import RegionFile, open_region, wait_for_answers
from hami_dra.policy.shares import ShareName
from hami_dra.service.clock import Clock

_log = structlog.get_logger(__name__)

STEP_SECONDS: Final = 0.02
"""Between two looks at whether somebody of a higher priority launches, if nobody says so before."""
LINGER_SECONDS: Final = 0.1
"""How long a launch counts as work: programs of many short kernels pause between them."""
_RENEW_SECONDS: Final = 0.5
_COUNTER_BITS: Final = 31


@dataclass(frozen=True, slots=True)
class Place:
    """Where a share's words are.

    Attributes:
        name: Which share.
        directory: Of its region.
    """

    name: ShareName
    directory: Path


@dataclass(frozen=True, slots=True)
class Contest:
    """A share that has to wait, and those that it waits for.

    Attributes:
        waits: Whose gate it is.
        rivals: Those of higher priorities.
        busy: Whether one of them works by the driver's count, and cannot be seen to launch.
    """

    waits: Place
    rivals: tuple[Place, ...]
    busy: bool = False


class Gates:
    """Closes and opens gates.

    Args:
        clock: Tells how much time has passed.

    Attributes:
        executor: The one thread that touches regions.
    """

    def __init__(self, clock: Clock) -> None:
        self.executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="regions")
        self._clock = clock
        self._contests: tuple[Contest, ...] = ()
        self._wake = asyncio.Event()
        self._reopen = False
        self._held: frozenset[ShareName] = frozenset()
        # From here on, the executor's thread alone.
        self._files: dict[Path, RegionFile] = {}
        self._busy_ns: dict[ShareName, int] = {}
        self._asked: set[ShareName] = set()
        self._launched: dict[ShareName, float] = {}
        self._closed: dict[ShareName, tuple[Place, float]] = {}
        self._counter = 0
        self._questions: list[tuple[RegionFile, int]] = []

    def watch(self, contests: Sequence[Contest]) -> None:
        """Look after these contests from now on, and open all other gates."""
        self._contests = tuple(contests)
        self._reopen = True
        if contests:
            self._wake.set()

    def held(self) -> frozenset[ShareName]:
        """Return the shares that a gate holds now."""
        return self._held

    async def run(self) -> None:
        """Go on until cancelled; then open all gates."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                self._wake.clear()
                waited = await loop.run_in_executor(self.executor, self._step_and_wait)
                if not self._contests:
                    await self._wake.wait()
                elif not waited:
                    await asyncio.sleep(STEP_SECONDS)
        finally:
            self._contests = ()
            self.executor.submit(self.step)
            self.executor.shutdown()

    def step(self) -> None:
        """Look once who launches, and move the gates. Blocking."""
        if self._reopen:
            # A tenant may have put another file into the place.
            self._reopen = False
            self._close_files()
        now, contests = self._clock.monotonic(), self._contests
        self._look({rival.name: rival for contest in contests for rival in contest.rivals}, now)
        closing = {}
        for contest in contests:
            seen = (self._launched.get(rival.name, -LINGER_SECONDS) for rival in contest.rivals)
            if contest.busy or any(now - at < LINGER_SECONDS for at in seen):
                closing[contest.waits.name] = contest.waits
        self._questions = self._list_questions(contests, closing)
        for place in closing.values():
            known = self._closed.get(place.name)
            if known is None or now - known[1] >= _RENEW_SECONDS:
                self._counter = self._counter % (1 << _COUNTER_BITS) + 1
                if self._write(place, self._counter):
                    self._closed[place.name] = place, now
        for name, (place, _) in list(self._closed.items()):
            if name not in closing:
                self._write(place, 0)
                del self._closed[name]
        self._held = frozenset(self._closed)
        if not contests:
            self._close_files()

    def _list_questions(
        self, contests: Iterable[Contest], closing: Collection[ShareName]
    ) -> list[tuple[RegionFile, int]]:
        """Return whose next launch closes a gate: only behind an open one it matters at once.

        A rival that launches all the time would wake this thread all the time.
        """
        rivals = {
            rival.name: rival
            for contest in contests
            if contest.waits.name not in closing
            for rival in contest.rivals
        }
        return [
            (self._files[rival.directory], name.index)
            for name, rival in rivals.items()
            if name in self._asked
        ]

    def _step_and_wait(self) -> bool:
        self.step()
        return wait_for_answers(self._questions, STEP_SECONDS)

    def _look(self, rivals: dict[ShareName, Place], now: float) -> None:
        busy: dict[ShareName, int] = {}
        asked: set[ShareName] = set()
        for name, place in rivals.items():
            with suppress(OSError, ValueError):
                file = self._open(place)
                if file is None:
                    continue
                busy[name], waits = file.read_launches(name.index)
                if (name in self._asked and not waits) or (
                    self._busy_ns.get(name, busy[name]) != busy[name]
                ):
                    self._launched[name] = now
                if not waits:
                    file.ask_launches(name.index)
                asked.add(name)
        self._busy_ns, self._asked = busy, asked
        self._launched = {name: at for name, at in self._launched.items() if name in rivals}

    def _write(self, place: Place, value: int) -> bool:
        try:
            file = self._open(place)
            if file is not None:
                file.write_gate(place.name.index, value)
        except (OSError, ValueError) as error:
            _log.debug("gate.not_written", claim=place.name.grant.claim_uid, error=str(error))
            return False
        return file is not None

    def _open(self, place: Place) -> RegionFile | None:
        file = self._files.get(place.directory)
        if file is None:
            file = open_region(place.directory, write=True)
            if file is not None:
                self._files[place.directory] = file
        return file

    def _close_files(self) -> None:
        files: Iterable[RegionFile] = self._files.values()
        for file in files:
            file.close()
        self._files = {}
