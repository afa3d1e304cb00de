"""What the node offers the scheduler: its cards, and the marks that keep claims off some."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Final

import structlog

from hami_dra.policy.cardrules import CardRules, offer_card, offer_cards
from hami_dra.policy.devices import CardOffer, GpuFacts, describe_offers, name_device
from hami_dra.policy.health import Fault
from hami_dra.policy.migdevices import (
    ALL_CARDS,
    IsForeign,
    describe_counter_sets,
    describe_mig_device,
    is_divided,
    is_dynamic,
    list_mig_devices,
)
from hami_dra.policy.taints import CORDONED, DIVIDING, Taint, describe_taints

_log = structlog.get_logger(__name__)

Object = dict[str, Any]
Publish = Callable[[list[Object], list[Object]], None]
"""Takes devices and sets of counters."""
_DIVIDED: Final = "it is in MIG mode: its parts are published instead"


class Offer:
    """Puts together what different watchers know; every change is published as a whole.

    Args:
        publish: Takes the devices; equal ones twice are no change to it.
        rules: How cards are offered.
        dynamic: Cards that this program divides whatever the rules say: UUIDs, indices or "all".
        is_foreign: Tells MIG instances of others from our own.
    """

    def __init__(
        self,
        publish: Publish,
        *,
        rules: CardRules,
        dynamic: Collection[str] = (),
        is_foreign: IsForeign = lambda *_: True,
    ) -> None:
        self._publish = publish
        self._rules = rules
        self._dynamic = frozenset(dynamic)
        self._is_foreign = is_foreign
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

    @property
    def rules(self) -> CardRules:
        """How cards are offered now."""
        return self._rules

    def dynamic(self) -> frozenset[str]:
        """Return which cards this program divides: UUIDs, indices or "all"."""
        if self._rules.operating_mode == "mig":
            return self._dynamic | {ALL_CARDS}
        return self._dynamic

    def set_cards(self, cards: tuple[GpuFacts, ...], lost: Collection[str]) -> None:
        """Offer these cards.

        Args:
            cards: All that are known.
            lost: UUIDs of those among them that nothing can be prepared on now.
        """
        self._cards = cards
        self._lost = frozenset(lost)
        self._announce()

    def refresh(self) -> None:
        """Put everything together anew: whose an instance is has changed."""
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
        self._offers = tuple(
            replace(offer, hidden=offer.hidden or _DIVIDED) if is_divided(offer.gpu) else offer
            for offer in offer_cards(self._cards, self._rules)
        )
        self._note_hidden()
        taints = {gpu.uuid: self._mark(gpu) for gpu in self._cards}
        devices = describe_offers(self._offers, taints)
        divided = [gpu for gpu in self._cards if is_divided(gpu) and self._is_wanted(gpu)]
        allows = self._rules.allows_profile
        for part in list_mig_devices(divided, self.dynamic(), self._is_foreign, allows):
            device = describe_mig_device(part)
            if marks := taints[part.card.uuid]:
                device["taints"] = describe_taints(marks)
            devices.append(device)
        self._publish(devices, describe_counter_sets(divided, self.dynamic(), self._is_foreign))

    def _is_wanted(self, gpu: GpuFacts) -> bool:
        """Whether no filter keeps the card, and so its parts, out of the cluster."""
        return not offer_card(gpu, replace(self._rules, operating_mode="hami-core")).hidden

    def _note_hidden(self) -> None:
        hidden = {offer.gpu.uuid: offer.hidden for offer in self._offers if offer.hidden}
        if hidden != self._hidden:
            _log.info("cards.hidden", reasons=hidden)
            self._hidden = hidden

    def _mark(self, gpu: GpuFacts) -> list[Taint]:
        marks = [fault.taint for fault in self._faults.get(gpu.uuid, ())]
        if gpu.uuid in self._cordoned:
            marks.append(CORDONED)
        if is_dynamic(gpu, self.dynamic()) and not is_divided(gpu):
            marks.append(DIVIDING)
        return marks
