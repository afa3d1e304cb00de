"""What the node offers the scheduler: its cards, and the marks that keep claims off some."""

from collections.abc import Callable, Collection
from typing import Any

from hami_dra.policy.devices import GpuFacts, describe_devices
from hami_dra.policy.taints import CORDONED, LOST, Taint

Object = dict[str, Any]


class Offer:
    """Puts together what different watchers know; every change is published as a whole.

    Args:
        publish: Takes the devices; equal ones twice are no change to it.
        split_count: Shares that may exist on one card at a time.
    """

    def __init__(self, publish: Callable[[list[Object]], None], *, split_count: int) -> None:
        self._publish = publish
        self._split_count = split_count
        self._cards: tuple[GpuFacts, ...] | None = None
        self._lost: frozenset[str] = frozenset()
        self._cordoned: frozenset[str] = frozenset()

    def set_cards(self, cards: tuple[GpuFacts, ...], lost: Collection[str]) -> None:
        """Offer these cards.

        Args:
            cards: All that are known.
            lost: UUIDs of those among them that the driver no longer describes.
        """
        self._cards = cards
        self._lost = frozenset(lost)
        self._announce()

    def set_cordoned(self, uuids: Collection[str]) -> None:
        """Keep new claims off these cards; others, and what holds a card already, stay."""
        self._cordoned = frozenset(uuids)
        self._announce()

    def _announce(self) -> None:
        if self._cards is None:
            return
        taints = {gpu.uuid: self._mark(gpu.uuid) for gpu in self._cards}
        self._publish(describe_devices(self._cards, split_count=self._split_count, taints=taints))

    def _mark(self, uuid: str) -> list[Taint]:
        marks = ((LOST, self._lost), (CORDONED, self._cordoned))
        return [taint for taint, uuids in marks if uuid in uuids]
