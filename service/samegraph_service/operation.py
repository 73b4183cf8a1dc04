"""What an operator asks about the process rather than about requests: how the start went, and what the log lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector


class OperationMetrics(Collector):
    """Renders the process's own figures when somebody scrapes.

    Args:
        dropped_events: Returns how many events the log lost so far.
    """

    def __init__(self, *, dropped_events: Callable[[], int]) -> None:
        self._dropped_events = dropped_events

    def collect(self) -> Iterable[Metric]:
        """Render everything (called by the Prometheus client at a scrape)."""
        yield CounterMetricFamily(
            "samegraph_log_events_dropped", "Events dropped because the log's reader fell behind.", self._dropped_events()
        )
