"""Metrics of the routing file: whether what lies there is in force."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


@dataclass(frozen=True)
class RoutingReading:
    """State of the routing file at a scrape.

    Attributes:
        revision: Of the file in force.
        problems: How many there are with the file that lies there.
        reads: Result → files that were read.
    """

    revision: str
    problems: int
    reads: Mapping[str, int]


class RoutingMetrics(Collector):
    """Renders the state of the routing file when somebody scrapes.

    Args:
        reading: Returns it.
    """

    def __init__(self, reading: Callable[[], RoutingReading]) -> None:
        self._reading = reading

    def collect(self) -> Iterable[Metric]:
        """Render everything (called by the Prometheus client at a scrape)."""
        reading = self._reading()
        info = GaugeMetricFamily("samegraph_routing_info", "One for the routing file in force.", labels=("revision",))
        info.add_metric((reading.revision,), 1)
        reads = CounterMetricFamily("samegraph_routing_reads", "Routing files that were read, by result.", labels=("result",))
        for result, n in reading.reads.items():
            reads.add_metric((result,), n)
        yield from (info, reads)
        yield GaugeMetricFamily("samegraph_routing_problems", "Problems of the routing file that lies there.", value=reading.problems)
