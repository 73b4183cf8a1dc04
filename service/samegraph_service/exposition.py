"""Metrics in Prometheus' text formats, in pieces small enough that predictions go on between two of them.

The client library takes 12 µs for a sample, so a scrape of 740 held the event loop for 9 to 14 ms. Here the part of a line before its
value is written once and kept, and histograms, which are nearly all samples, are written from their counts: one microsecond a sample. The
text is the client library's to the byte; a test holds it to that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from .metrics import HistogramFamily, Labels, Metrics

#: Samples written at a stretch: about a quarter of a millisecond.
PIECE = 250
#: Most beginnings of lines that are kept, of every kind; more than a scrape at its cap of series has.
KEPT = 20_000


class Exposition:
    """Writes what Prometheus scrapes. For the event loop's thread.

    Args:
        metrics: The metrics of requests and versions.
        others: Collectors of everything else.
    """

    def __init__(self, metrics: Metrics, others: Sequence[Collector]) -> None:
        self._metrics = metrics
        self._others = others
        self._beginnings: dict[tuple[object, ...], str] = {}
        self._histograms: dict[tuple[object, ...], list[str]] = {}

    def write(self, *, openmetrics: bool) -> Iterator[str]:
        """Yield the text of all metrics, some lines at a time, without the mark that ends OpenMetrics.

        Args:
            openmetrics: Whether to write that format, or Prometheus' own; they differ in the heads of counters.
        """
        if len(self._beginnings) > KEPT or len(self._histograms) > KEPT:  # versions come and go
            self._beginnings.clear()
            self._histograms.clear()
        for collector in self._others:
            for metric in collector.collect():
                yield from self._family(metric, openmetrics)
        for family in self._metrics.families():
            if isinstance(family, HistogramFamily):
                yield from self._histogram_family(family, openmetrics)
            else:
                yield from self._family(family, openmetrics)

    def _family(self, metric: Metric, openmetrics: bool) -> Iterator[str]:
        lines = [_head(metric.name, metric.type, metric.documentation, openmetrics)]
        known = self._beginnings
        for sample in metric.samples:
            key = (sample.name, *sample.labels.values())
            beginning = known.get(key)
            if beginning is None:
                beginning = known[key] = _beginning(sample.name, tuple(sample.labels.items()))
            lines.append(f"{beginning}{_number(sample.value)}\n")
            if len(lines) >= PIECE:
                yield "".join(lines)
                lines.clear()
        yield "".join(lines)

    def _histogram_family(self, family: HistogramFamily, openmetrics: bool) -> Iterator[str]:
        text = _head(family.name, "histogram", family.help, openmetrics)
        known = self._histograms
        size = 0
        for labels, histogram in family.series:
            key = (family.name, labels)
            beginnings = known.get(key)
            if beginnings is None:
                beginnings = known[key] = _histogram_beginnings(family.name, labels, histogram.bounds)
            numbers = [_number(n) for n in histogram.cumulative()]
            numbers += (numbers[-1], _number(histogram.total))
            text += "".join([f"{beginning}{number}\n" for beginning, number in zip(beginnings, numbers, strict=True)])
            size += len(numbers)
            if size >= PIECE:
                yield text
                text, size = "", 0
        yield text


def _histogram_beginnings(name: str, labels: Labels, bounds: Sequence[float]) -> list[str]:
    """Return the beginnings of a histogram's lines: its buckets, then count and sum."""
    buckets = [_beginning(f"{name}_bucket", (*labels, ("le", repr(bound)))) for bound in bounds]
    infinite = _beginning(f"{name}_bucket", (*labels, ("le", "+Inf")))
    return [*buckets, infinite, _beginning(f"{name}_count", labels), _beginning(f"{name}_sum", labels)]


def _head(name: str, kind: str, text: str, openmetrics: bool) -> str:
    """Return the lines before a family's samples."""
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    if openmetrics:
        text = text.replace('"', r"\"")
    elif kind == "counter":
        name += "_total"
    elif kind == "unknown":
        kind = "untyped"
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


def _beginning(name: str, labels: Labels) -> str:
    if not labels:
        return f"{name} "
    return name + "{" + ",".join(f'{label}="{_escaped(value)}"' for label, value in sorted(labels)) + "} "


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    """Write a number as Go does; most are small counts."""
    return f"{value}.0" if type(value) is int and 0 <= value < 1_000_000 else str(floatToGoString(value))  # type: ignore[no-untyped-call]
