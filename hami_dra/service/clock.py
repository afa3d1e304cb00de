"""Time as a parameter, so that tests decide how late it is."""

import time
from dataclasses import dataclass, field
from typing import Protocol


class Clock(Protocol):
    """What a room may ask about time."""

    def monotonic(self) -> float:
        """Return seconds that never go back; only differences mean something."""
        ...

    def wall(self) -> float:
        """Return seconds since the epoch; may jump."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def monotonic(self) -> float:
        """Return CLOCK_MONOTONIC in seconds."""
        return time.monotonic()

    def wall(self) -> float:
        """Return CLOCK_REALTIME in seconds."""
        return time.time()


@dataclass
class ManualClock:
    """A clock that stands still until a test moves it."""

    now: float = field(default=1_000.0)
    epoch: float = field(default=1_700_000_000.0)

    def monotonic(self) -> float:
        """Return the set time."""
        return self.now

    def wall(self) -> float:
        """Return the set time counted from a fixed epoch."""
        return self.epoch + self.now

    def advance(self, seconds: float) -> None:
        """Move both clocks forward."""
        self.now += seconds
