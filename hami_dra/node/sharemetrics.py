"""What the node tells Prometheus of each share: granted, used, waited for.

Labels come from claims that are prepared here and from the driver's UUIDs, never from a region: a
tenant who writes into one can make figures wrong, but neither new series nor new names.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from hami_dra.contract.region import WAIT_BOUNDS_SECONDS, RegionDevice
from hami_dra.node.arbitration import ArbitrationStatistics, ShareFigures
from hami_dra.policy.audit import HeldClaim
from hami_dra.service.exposition import CounterFamily, Family, GaugeFamily, HistogramFamily

_LABELS: Final = ("namespace", "claim", "request", "index", "uuid")
_NS_PER_SECOND: Final = 1e9

Value = Callable[[ShareFigures], float]
Told = Callable[[RegionDevice], float]

_GAUGES: Final[tuple[tuple[str, str, Value], ...]] = (
    (
        "memory_limit_bytes",
        "Memory of the card that the share may use; 0 = not limited.",
        lambda figures: figures.share.memory_bytes,
    ),
    (
        "memory_used_bytes",
        "Memory that the share's processes have by the driver's count.",
        lambda figures: figures.used_bytes,
    ),
    (
        "memory_overhead_bytes",
        "Memory that counts against the share without having been asked for: contexts, modules.",
        lambda figures: figures.overhead_bytes,
    ),
    (
        "compute_limit_ratio",
        "Part of the card's time that the share may use now; 1 = not limited.",
        lambda figures: (
            (figures.share.permille_alone if figures.alone else figures.share.permille) / 1000
        ),
    ),
    (
        "alone",
        "1 while nobody else works on the share's card.",
        lambda figures: figures.alone,
    ),
    (
        "held",
        "1 while the share's launches wait for one of a higher priority.",
        lambda figures: figures.held,
    ),
)
_REGION_GAUGES: Final[tuple[tuple[str, str, Told], ...]] = (
    (
        "memory_charged_bytes",
        "Memory that libvgpu has charged to the share.",
        lambda device: device.used_bytes,
    ),
    (
        "memory_peak_bytes",
        "The most that libvgpu ever had charged to the share.",
        lambda device: device.peak_bytes,
    ),
    (
        "memory_spilled_bytes",
        "Memory charged for which the card had no room: it is where there is some, or the host's.",
        lambda device: device.spilled_bytes,
    ),
)
_REGION_COUNTERS: Final[tuple[tuple[str, str, Told], ...]] = (
    (
        "charged_seconds",
        "GPU time that libvgpu charged to the share; nothing while its compute is not limited.",
        lambda device: device.busy_ns / _NS_PER_SECOND,
    ),
    (
        "throttled_seconds",
        "Time that launches of the share were held back, added up over threads.",
        lambda device: device.throttled_ns / _NS_PER_SECOND,
    ),
    (
        "refused_allocations",
        "Allocations that the share's limit refused.",
        lambda device: device.oom_count,
    ),
    (
        "failed_allocations",
        "Allocations within the limit that the card had no memory for.",
        lambda device: device.driver_oom_count,
    ),
    (
        "spilled_allocations",
        "Allocations within the limit for which the card had no room.",
        lambda device: device.spill_count,
    ),
)


class ShareMetrics:
    """Reads the last figures when asked.

    Args:
        statistics: What was read and told.
        held: Returns the claims that are prepared here, with their pods.
    """

    def __init__(
        self,
        statistics: Callable[[], ArbitrationStatistics],
        held: Callable[[], Sequence[HeldClaim]],
    ) -> None:
        self._statistics = statistics
        self._held = held

    def collect(self) -> Iterable[Family]:
        """Return every family with its values of now."""
        statistics = self._statistics()
        readings = CounterFamily(
            "hami_dra_arbitration_readings",
            "Times that the driver was asked what processes have and do, by result.",
            labels=["result"],
        )
        readings.add_metric(["ok"], statistics.readings)
        readings.add_metric(["failed"], statistics.failures)
        yield readings
        yield GaugeFamily(
            "hami_dra_arbitration_damaged_regions",
            "Regions of prepared claims that cannot be read.",
            statistics.damaged,
        )
        for name, text, value in _GAUGES:
            gauge = GaugeFamily(f"hami_dra_share_{name}", text, labels=_LABELS)
            for figures in statistics.shares:
                gauge.add_metric(_label(figures), value(figures))
            yield gauge
        busy = CounterFamily(
            "hami_dra_share_compute_seconds",
            "GPU time that the share's processes had by the driver's count.",
            labels=_LABELS,
        )
        for figures in statistics.shares:
            busy.add_metric(_label(figures), figures.busy_seconds)
        yield busy
        yield from _collect_regions(statistics.shares)
        yield self._collect_pods()

    def _collect_pods(self) -> Family:
        pods = GaugeFamily(
            "hami_dra_claim_pod",
            "1 for each pod that a claim prepared here is reserved for.",
            labels=["namespace", "claim", "pod"],
        )
        for claim in self._held():
            for pod in sorted(claim.pods):
                pods.add_metric([claim.binding.namespace, claim.binding.name, pod.name], 1)
        return pods


def _collect_regions(shares: Sequence[ShareFigures]) -> Iterable[Family]:
    known = [(_label(item), item.device) for item in shares if item.device is not None]
    for name, text, told in _REGION_GAUGES:
        gauge = GaugeFamily(f"hami_dra_share_{name}", text, labels=_LABELS)
        for labels, device in known:
            gauge.add_metric(labels, told(device))
        yield gauge
    for name, text, told in _REGION_COUNTERS:
        counter = CounterFamily(f"hami_dra_share_{name}", text, labels=_LABELS)
        for labels, device in known:
            counter.add_metric(labels, told(device))
        yield counter
    waits = HistogramFamily(
        "hami_dra_share_launch_wait_seconds",
        "How long launches of the share were held back, of those that were.",
        labels=_LABELS,
    )
    for labels, device in known:
        seconds = device.throttled_ns / _NS_PER_SECOND
        waits.add_histogram(labels, WAIT_BOUNDS_SECONDS, device.waits, seconds)
    yield waits


def _label(figures: ShareFigures) -> list[str]:
    share = figures.share
    return [
        share.namespace,
        share.claim,
        share.name.grant.request,
        str(share.name.index),
        share.uuid,
    ]
