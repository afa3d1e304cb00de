"""What the node process tells Prometheus: its rooms' statistics, read at each scrape."""

from collections.abc import Callable, Iterable

from hami_dra.kubeletplugin.publisher import PublisherStatistics
from hami_dra.kubeletplugin.service import ServiceStatistics
from hami_dra.node.configfile import ConfigStatistics
from hami_dra.node.health import HealthStatistics
from hami_dra.service.exposition import CounterFamily, Family, GaugeFamily


class NodeMetrics:
    """Reads the statistics when asked, so that counting costs nothing in between.

    Args:
        service: Claims answered.
        publisher: Slices written.
        config: What became of the configuration file.
        health: What was heard of cards.
    """

    def __init__(
        self,
        service: Callable[[], ServiceStatistics],
        publisher: Callable[[], PublisherStatistics],
        config: Callable[[], ConfigStatistics],
        health: Callable[[], HealthStatistics],
    ) -> None:
        self._service = service
        self._publisher = publisher
        self._config = config
        self._health = health

    def collect(self) -> Iterable[Family]:
        """Return every family with its values of now."""
        service, publisher = self._service(), self._publisher()
        answers = CounterFamily(
            "hami_dra_node_claims", "Claims answered to the kubelet, by result.", labels=["result"]
        )
        for result in ("prepared", "unprepared", "failed"):
            answers.add_metric([result], getattr(service, result))
        yield answers
        yield GaugeFamily(
            "hami_dra_node_claims_running", "Claims being worked on now.", service.running
        )
        writes = CounterFamily(
            "hami_dra_node_slice_writes", "ResourceSlices written, by verb.", labels=["verb"]
        )
        for verb in ("creates", "updates", "deletes"):
            writes.add_metric([verb.removesuffix("s")], getattr(publisher, verb))
        yield writes
        yield CounterFamily(
            "hami_dra_node_slice_errors", "Reconciles of slices that failed.", publisher.errors
        )
        yield GaugeFamily(
            "hami_dra_node_devices", "Devices that should be published.", publisher.devices
        )
        yield GaugeFamily(
            "hami_dra_node_slices_published",
            "1 while the API server holds exactly what should be published.",
            int(publisher.published),
        )
        yield GaugeFamily(
            "hami_dra_node_dropped_fields",
            "Device fields that the API server does not store, for lack of a feature gate.",
            len(publisher.dropped_fields),
        )
        yield from self._collect_config()
        yield from self._collect_health()

    def _collect_config(self) -> Iterable[Family]:
        config = self._config()
        reloads = CounterFamily(
            "hami_dra_node_config_reloads",
            "Changes of the configuration file, by result.",
            labels=["result"],
        )
        for result in ("accepted", "refused"):
            reloads.add_metric([result], getattr(config, result))
        yield reloads
        yield GaugeFamily(
            "hami_dra_node_config_current",
            "1 while the configuration file says what is in force.",
            int(config.current),
        )

    def _collect_health(self) -> Iterable[Family]:
        health = self._health()
        xids = CounterFamily(
            "hami_dra_node_card_xids", "XIDs that the driver reported.", labels=["uuid", "xid"]
        )
        for (uuid, number), count in sorted(health.xids.items()):
            xids.add_metric([uuid, str(number)], count)
        yield xids
        errors = CounterFamily(
            "hami_dra_node_card_ecc_errors",
            "Reported errors that a card's memory could not correct.",
            labels=["uuid"],
        )
        for uuid, count in sorted(health.ecc_errors.items()):
            errors.add_metric([uuid], count)
        yield errors
        faults = GaugeFamily(
            "hami_dra_node_card_fault",
            "1 for each fault that marks a card.",
            labels=["uuid", "key"],
        )
        for uuid, held in sorted(health.faults.items()):
            for fault in held:
                faults.add_metric([uuid, fault.taint.key], 1)
        yield faults
        yield GaugeFamily(
            "hami_dra_node_cards_watched",
            "Cards whose events are heard.",
            len(health.watch.cards),
        )
