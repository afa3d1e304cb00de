"""Figures that are looked up when Prometheus asks, as its text.

prometheus_client counts and keeps what a process tells it. Where everything is known anyway and
only has to be written down, it is 1.4 MiB, most of them for its servers and for pushing
(docs/decisions/0034-memory-of-the-node.md).
The format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from collections.abc import Iterable, Sequence
from math import inf
from typing import ClassVar, Final, Protocol

_IN_HELP: Final = str.maketrans({"\\": r"\\", "\n": r"\n"})
_IN_VALUE: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


class Family:
    """Samples that share a name. Names and labels are ours; the values of labels may be anyone's.

    Args:
        name: Without the endings that Prometheus wants, such as ``_total``.
        text: What it is, for people.
        labels: Names of the labels of all samples.
    """

    kind: ClassVar[str]
    ending: ClassVar[str] = ""

    def __init__(self, name: str, text: str, *, labels: Sequence[str] = ()) -> None:
        self._name = name + self.ending
        self._labels = labels
        self._lines = [
            f"# HELP {self._name} {text.translate(_IN_HELP)}\n# TYPE {self._name} {self.kind}\n"
        ]

    def render(self) -> str:
        """Return the lines of all samples."""
        return "".join(self._lines)

    def _label(self, values: Sequence[str]) -> list[tuple[str, str]]:
        return list(zip(self._labels, values, strict=True))

    def _add(self, ending: str, labels: Iterable[tuple[str, str]], value: float) -> None:
        pairs = ",".join(f'{key}="{text.translate(_IN_VALUE)}"' for key, text in sorted(labels))
        name = f"{self._name}{ending}{{{pairs}}}" if pairs else f"{self._name}{ending}"
        self._lines.append(f"{name} {float(value)}\n")


class _ValueFamily(Family):
    def __init__(
        self, name: str, text: str, value: float | None = None, *, labels: Sequence[str] = ()
    ) -> None:
        super().__init__(name, text, labels=labels)
        if value is not None:
            self.add_metric((), value)

    def add_metric(self, values: Sequence[str], value: float) -> None:
        """Add a sample with these values of its labels."""
        self._add("", self._label(values), value)


class CounterFamily(_ValueFamily):
    """What only grows. One without labels takes its ``value`` at once."""

    kind = "counter"
    ending = "_total"


class GaugeFamily(_ValueFamily):
    """What is so now. One without labels takes its ``value`` at once."""

    kind = "gauge"


class HistogramFamily(Family):
    """How many were no greater than which bound."""

    kind = "histogram"

    def add_histogram(
        self, values: Sequence[str], bounds: Sequence[float], counts: Sequence[int], total: float
    ) -> None:
        """Add the samples of one histogram.

        Args:
            values: Of its labels.
            bounds: Upper ends of the buckets but the last, which has none.
            counts: Of each bucket what is in no lower one.
            total: Sum of all that was counted.
        """
        labels = self._label(values)
        known = 0
        for bound, count in zip((*bounds, inf), counts, strict=True):
            known += count
            end = "+Inf" if bound == inf else str(bound)
            self._add("_bucket", [*labels, ("le", end)], known)
        self._add("_count", labels, known)
        self._add("_sum", labels, total)


class Collector(Protocol):
    """Who knows something that Prometheus wants."""

    def collect(self) -> Iterable[Family]:
        """Return every family with its values of now."""
        ...


class Exposition:
    """All collectors of a process."""

    def __init__(self) -> None:
        self._collectors: list[Collector] = []

    def register(self, collector: Collector) -> None:
        """Ask a collector as well from now on. No two may have families of one name."""
        self._collectors.append(collector)

    def render(self) -> bytes:
        """Return what Prometheus reads."""
        return "".join(
            family.render() for collector in self._collectors for family in collector.collect()
        ).encode()
