"""Where facts about cards come from."""

from dataclasses import dataclass
from typing import Protocol

from hami_dra.policy.devices import GpuFacts


@dataclass(frozen=True, slots=True)
class SkippedGpu:
    """A card that could not be described.

    Attributes:
        index: Its position in the driver's order.
        reason: What failed, for a person.
    """

    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class Discovery:
    """What one look at the node found. One bad card never hides the others."""

    gpus: tuple[GpuFacts, ...]
    skipped: tuple[SkippedGpu, ...] = ()


class GpuSource(Protocol):
    """Finds the node's cards."""

    async def discover(self) -> Discovery:
        """Look at every card. Idempotent; safe to cancel.

        Raises:
            RetryError: The driver is not there or does not answer; later it may.
        """
        ...
