"""Where facts about cards come from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from hami_dra.policy.devices import GpuFacts
from hami_dra.policy.health import CardEvent, CardVitals


@dataclass(frozen=True, slots=True)
class SkippedGpu:
    """A card that could not be described.

    Attributes:
        index: Its position in the driver's order.
        reason: What failed, for a person.
        hangs: It did not answer at all; whoever asks it next may wait for ever.
    """

    index: int
    reason: str
    hangs: bool = False


@dataclass(frozen=True, slots=True)
class Discovery:
    """What one look at the node found. One bad card never hides the others.

    Attributes:
        gpus: Cards that were described.
        skipped: Cards that were not.
        vitals: Health of those that were, by UUID.
        bound: PCI addresses that the driver holds, as the kernel shows them; may be empty.
    """

    gpus: tuple[GpuFacts, ...]
    skipped: tuple[SkippedGpu, ...] = ()
    vitals: Mapping[str, CardVitals] = field(default_factory=dict)
    bound: frozenset[str] = frozenset()


class GpuSource(Protocol):
    """Finds the node's cards."""

    async def discover(self) -> Discovery:
        """Look at every card. Idempotent; safe to cancel.

        Raises:
            RetryError: The driver is not there or does not answer; later it may.
            FatalError: Only a new process can get answers.
        """
        ...


@dataclass(frozen=True, slots=True)
class Watch:
    """Of which cards events are heard.

    Attributes:
        cards: UUIDs of those that are watched.
        unwatched: Reasons by UUID, or by "card N" where the UUID is not known.
        reason: Why nothing is heard at all; "" if something is.
    """

    cards: frozenset[str] = frozenset()
    unwatched: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""


class EventSource(Protocol):
    """Hears what the driver reports of cards."""

    async def run(
        self, on_event: Callable[[CardEvent], None], on_watch: Callable[[Watch], None]
    ) -> None:
        """Listen until cancelled.

        Args:
            on_event: Called with each event, in the event loop.
            on_watch: Called whenever other cards are watched than before.
        """
        ...

    def reopen(self) -> None:
        """Watch the cards that are there now: some came or went. Idempotent; returns at once."""
        ...
