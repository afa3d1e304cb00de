"""What the node tells Prometheus of memory that cards had no room for.

Containers write the figures themselves: they say what a tenant wants known of its own share.
"""

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hami_dra.node.regionfile import read_region
from hami_dra.node.sharedir import ShareDirectories


class SpillMetrics(Collector):
    """Reads the regions of shares that may be oversubscribed, when asked; no others.

    Args:
        directories: Where the shares are.
    """

    def __init__(self, directories: ShareDirectories) -> None:
        self._directories = directories

    def collect(self) -> Iterable[Metric]:
        """Return every family with its values of now."""
        labels = ["claim_uid", "request", "uuid"]
        spilled = GaugeMetricFamily(
            "hami_dra_share_spilled_bytes",
            "Bytes of a share for which its card had no room, as its containers say: they are on "
            "the card or in the host's memory, as there is room.",
            labels=labels,
        )
        spills = CounterMetricFamily(
            "hami_dra_share_spills",
            "Allocations of a share for which its card had no room, as its containers say.",
            labels=labels,
        )
        for uid, request in self._directories.find_oversubscribed():
            try:
                region = read_region(self._directories.region_path(uid, request))
            except (OSError, ValueError):
                continue  # a tenant broke its own; whoever follows the claim says so
            for device in region.devices if region else ():
                spilled.add_metric([uid, request, device.uuid], device.spilled_bytes)
                spills.add_metric([uid, request, device.uuid], device.spill_count)
        yield spilled
        yield spills
