"""What the node offers the scheduler: its cards, and the marks that keep claims off some."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import structlog

from hami_dra.policy.cardrules import CardRules, offer_cards
from hami_dra.policy.devices import CardOffer, GpuFacts, describe_offers, name_device
from hami_dra.policy.health import Fault
from hami_dra.policy.taints import CORDONED, Taint

_log = structlog.get_logger(__name__)

Object = dict[str, Any]


class Offer:
    """Puts together what different watchers know; every change is published as a whole.

    Args:
        publish: Takes the devices; equal ones twice are no change to it.
        rules: How cards are offered.
    """

    def __init__(self, publish: Callable[[list[Object]], None], *, rules: CardRules) -> None:
        self._publish = publish
        self._rules = rules
        self._cards: tuple[GpuFacts, ...] | None = None
        self._offers: tuple[CardOffer, ...] = ()
        self._lost: frozenset[str] = frozenset()
        self._cordoned: frozenset[str] = frozenset()
        self._faults: Mapping[str, tuple[Fault, ...]] = {}
        self._hidden: dict[str, str] = {}

    def offers(self) -> Mapping[str, CardOffer]:
        """Return the cards that are not lost, by device name, those that are hidden as well."""
        return {
            name_device(offer.gpu.uuid): offer
            for offer in self._offers
            if offer.gpu.uuid not in self._lost
        }

    def set_cards(self, cards: tuple[GpuFacts, ...], lost: Collection[str]) -> None:
        """Offer these cards.

        Args:
            cards: All that are known.
            lost: UUIDs of those among them that nothing can be prepared on now.
        """
        self._cards = cards
        self._lost = frozenset(lost)
        self._announce()

    def set_rules(self, rules: CardRules) -> None:
        """Offer the cards by other rules; what claims hold already stays theirs."""
        self._rules = rules
        self._announce()

    def set_faults(self, faults: Mapping[str, tuple[Fault, ...]]) -> None:
        """Mark the cards with these UUIDs for what is wrong with them."""
        self._faults = dict(faults)
        self._announce()

    def set_cordoned(self, uuids: Collection[str]) -> None:
        """Keep new claims off these cards; others, and what holds a card already, stay."""
        self._cordoned = frozenset(uuids)
        self._announce()

    def _announce(self) -> None:
        if self._cards is None:
            return
        self._offers = offer_cards(self._cards, self._rules)
        self._note_hidden()
        taints = {gpu.uuid: self._mark(gpu.uuid) for gpu in self._cards}
        self._publish(describe_offers(self._offers, taints))

    def _note_hidden(self) -> None:
        hidden = {offer.gpu.uuid: offer.hidden for offer in self._offers if offer.hidden}
        if hidden != self._hidden:
            _log.info("cards.hidden", reasons=hidden)
            self._hidden = hidden

    def _mark(self, uuid: str) -> list[Taint]:
        marks = [fault.taint for fault in self._faults.get(uuid, ())]
        return [*marks, CORDONED] if uuid in self._cordoned else marks
