"""The rooms that know the node's cards, wired to each other: what one finds, the others follow.

Looks, events and the configuration come in; the offer to the scheduler and the health stream to
the kubelet go out.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from hami_dra.contract.nodeconfig import NodeConfig
from hami_dra.gpu.mig import InstanceControl
from hami_dra.gpu.source import EventSource, GpuSource
from hami_dra.node.configfile import ConfigFile
from hami_dra.node.health import CardHealth, Faults
from hami_dra.node.healthstream import HealthStream
from hami_dra.node.inventory import Inventory
from hami_dra.node.ledger import Ledger
from hami_dra.node.migmode import MigModes
from hami_dra.node.offer import Offer, Publish
from hami_dra.node.partitions import Partitions
from hami_dra.node.settings import NodeSettings
from hami_dra.policy.cardrules import CardRules, resolve_rules
from hami_dra.policy.devices import GpuFacts
from hami_dra.policy.health import CardEvent
from hami_dra.service.clock import Clock
from hami_dra.service.supervise import Supervisor

Object = dict[str, Any]


class Cards:
    """Everything about cards but what claims do with them.

    Attributes:
        offer: What the scheduler is offered.
        health: What is wrong with cards.
        inventory: Which cards there are.
        partitions: Which MIG instances are ours.

    Args:
        settings: The node's.
        config_file: Read already.
        config: What was in it.
        source: Finds the cards.
        events: Hears of their errors; ``None``: nobody does.
        stream: Tells the kubelet.
        clock: Time.
        control: Divides cards.
        ledger: Says what claims have of cards.
        boot_id: Of the running kernel.
        alone: See `MigModes`.
        publish: Takes the devices for the scheduler.
        on_cards: Called after the list of cards has changed, with the UUIDs of those that are lost.
        on_state: See `Inventory`.
        on_rules: Called after the rules of the offer have changed.
    """

    def __init__(
        self,
        *,
        settings: NodeSettings,
        config_file: ConfigFile,
        config: NodeConfig,
        source: GpuSource,
        events: EventSource | None,
        stream: HealthStream,
        clock: Clock,
        control: InstanceControl,
        ledger: Ledger,
        boot_id: str,
        alone: Callable[[], AbstractContextManager[bool]],
        publish: Publish,
        on_cards: Callable[[frozenset[str]], None],
        on_state: Callable[[str | None], None],
        on_rules: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._config_file = config_file
        self._events = events
        self._stream = stream
        self._on_cards = on_cards
        self._on_rules = on_rules
        self.partitions = Partitions(
            control, ledger, chosen=self._list_dynamic, boot_id=boot_id, clock=clock
        )
        self.offer = Offer(
            publish,
            rules=self._resolve(config),
            dynamic=settings.mig_dynamic,
            is_foreign=self.partitions.is_foreign,
        )
        self.health = CardHealth(config=config.health, clock=clock, on_change=self._mark)
        self.inventory = Inventory(
            source,
            interval_seconds=settings.rediscover_seconds,
            on_change=self._announce,
            on_state=on_state,
            on_look=self.health.note_look,
            on_stale=events.reopen if events else lambda: None,
        )
        self._modes = MigModes(
            self.partitions,
            ledger,
            gpus=self.inventory.gpus,
            look=self.inventory.refresh,
            alone=alone,
            on_parts=self._announce_parts,
        )

    def spawn(self, supervisor: Supervisor) -> None:
        """Start the tasks."""
        supervisor.spawn("inventory", self.inventory.run())
        supervisor.spawn("health", self.health.run())
        supervisor.spawn("mig-modes", self._modes.run())
        supervisor.spawn("config", self._config_file.follow(self._configure))
        if self._events:
            events = self._events.run(self._note_event, self.health.set_watch)
            supervisor.spawn("events", events)

    def _list_dynamic(self) -> frozenset[str]:
        return self.offer.dynamic()

    def _resolve(self, config: NodeConfig) -> CardRules:
        settings = self._settings
        return resolve_rules(config, node_name=settings.node_name, split_count=settings.split_count)

    def _configure(self, config: NodeConfig) -> None:
        self.offer.set_rules(self._resolve(config))
        self.health.set_config(config.health)
        self._modes.wake()
        self._on_rules()

    def _announce(self, gpus: tuple[GpuFacts, ...], lost: frozenset[str]) -> None:
        self.offer.set_cards(gpus, lost)
        self._stream.set_cards(gpus, self.partitions.list_present(gpus))
        self._on_cards(lost)
        self._modes.wake()

    def _announce_parts(self) -> None:
        self.offer.refresh()

    def _mark(self, faults: Faults) -> None:
        self.offer.set_faults(faults)
        self._stream.set_faults(faults)

    def _note_event(self, event: CardEvent) -> None:
        self.health.note_event(event)
        self.inventory.refresh()
