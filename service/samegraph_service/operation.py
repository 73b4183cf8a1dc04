"""What an operator asks about the process rather than about requests: where the start went, and what the log lost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

#: From the start of the process until the code is there, until it listens, and until every version was tried.
START_PHASES = ("imports", "setup", "loading")
#: Model, version, and seconds by phase of its load.
LoadPhases = tuple[str, str, Mapping[str, float]]


class StartTimes:
    """Seconds by phase of a start, counted from the start of the process where the system tells when that was.

    Attributes:
        phases: Phase → seconds, in order.
    """

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}
        self._since = time.perf_counter() - process_age_s()

    @property
    def seconds(self) -> float:
        """All phases together."""
        return sum(self.phases.values())

    def lap(self, phase: str) -> None:
        """Count what passed since the phase before ended."""
        now = time.perf_counter()
        self.phases[phase] = now - self._since
        self._since = now


def process_age_s() -> float:
    """Return how many seconds ago this process was started, to a hundredth; 0 where the system does not tell."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


class OperationMetrics(Collector):
    """Renders the process's own figures when somebody scrapes.

    Args:
        dropped_events: Returns how many events the log lost so far.
        loads: Returns how long the served versions took to load.

    Attributes:
        start: Phase → seconds of the start; zeros until it is over.
    """

    def __init__(self, *, dropped_events: Callable[[], int], loads: Callable[[], Iterable[LoadPhases]]) -> None:
        self._dropped_events = dropped_events
        self._loads = loads
        self.start: Mapping[str, float] = dict.fromkeys(START_PHASES, 0.0)

    def collect(self) -> Iterable[Metric]:
        """Render everything (called by the Prometheus client at a scrape)."""
        yield CounterMetricFamily(
            "samegraph_log_events_dropped", "Events dropped because the log's reader fell behind.", self._dropped_events()
        )
        start = GaugeMetricFamily("samegraph_start_seconds", "How long each phase of the start took.", labels=("phase",))
        for phase, seconds in self.start.items():
            start.add_metric((phase,), seconds)
        yield start
        loads = GaugeMetricFamily(
            "samegraph_load_phase_seconds", "How long each phase of loading the version took.", labels=("model", "version", "phase")
        )
        for model, version, phases in self._loads():
            for phase, seconds in phases.items():
                loads.add_metric((model, version, phase), seconds)
        yield loads
