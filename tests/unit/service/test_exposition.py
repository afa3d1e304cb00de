"""What we write down is what prometheus_client would have written, to its own parser."""

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from hami_dra.service.exposition import (
    CounterFamily,
    Exposition,
    Family,
    GaugeFamily,
    HistogramFamily,
)

BOUNDS = (0.001, 0.1, 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ['"', "\\", "\n", '\\"', "\\n", "a\\", "},", "=", " "]
)
FIGURES = st.floats(allow_nan=False) | st.integers(0, 2**60)


class Ours:
    """Families of ours."""

    def __init__(self, *families: Family) -> None:
        self.families = families

    def collect(self) -> Iterable[Family]:
        """Return them."""
        return self.families


class Theirs(Collector):
    """Families of theirs."""

    def __init__(self, *families: Metric) -> None:
        self.families = families

    def collect(self) -> Iterable[Metric]:
        """Return them."""
        return self.families


def render(*families: Family) -> str:
    exposition = Exposition()
    exposition.register(Ours(*families))
    return exposition.render().decode()


def render_theirs(*families: Metric) -> str:
    registry = CollectorRegistry()
    registry.register(Theirs(*families))
    return generate_latest(registry).decode()


def read(text: str) -> list[Metric]:
    return list(text_string_to_metric_families(text))


@given(
    st.lists(st.tuples(TEXTS, TEXTS, FIGURES, st.tuples(*[st.integers(0, 1000)] * 4)), max_size=4),
    TEXTS,
    FIGURES,
)
def test_the_same_is_read(
    samples: list[tuple[str, str, float, tuple[int, ...]]], text: str, alone: float
) -> None:
    labels = ["pod", "namespace"]
    ours: list[Family] = [CounterFamily("one", text, alone), GaugeFamily("two", text, alone)]
    theirs: list[Metric] = [
        CounterMetricFamily("one", text, alone),
        GaugeMetricFamily("two", text, alone),
    ]
    gauge = GaugeFamily("some", text, labels=labels)
    their_gauge = GaugeMetricFamily("some", text, labels=labels)
    waits = HistogramFamily("waits_seconds", text, labels=labels)
    their_waits = HistogramMetricFamily("waits_seconds", text, labels=labels)
    for pod, namespace, value, counts in samples:
        gauge.add_metric([pod, namespace], value)
        their_gauge.add_metric([pod, namespace], value)
        waits.add_histogram([pod, namespace], BOUNDS, counts, value)
        bounds = [*map(str, BOUNDS), "+Inf"]
        known = [float(sum(counts[: place + 1])) for place in range(len(counts))]
        their_waits.add_metric([pod, namespace], list(zip(bounds, known, strict=True)), value)

    found = render(*ours, gauge, waits)

    assert read(found) == read(render_theirs(*theirs, their_gauge, their_waits))


def test_a_page_is_byte_for_byte_theirs() -> None:
    labels = ["uuid", "xid"]
    ours = CounterFamily("xids", "XIDs,\nby \\ card.", labels=labels)
    theirs = CounterMetricFamily("xids", "XIDs,\nby \\ card.", labels=labels)
    for family in (ours, theirs):
        family.add_metric(["GPU-0", "13"], 2)
        family.add_metric(['"\n\\', "79"], 0.5)
    ours_free, theirs_free = GaugeFamily("free", "Free."), GaugeMetricFamily("free", "Free.")

    assert render(ours, ours_free) == render_theirs(theirs, theirs_free)
