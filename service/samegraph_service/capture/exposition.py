"""What a scrape says about capture."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .sink import CaptureSink


class CaptureMetrics(Collector):
    """Renders a sink's counters when somebody scrapes.

    Args:
        sink: The sink.
    """

    def __init__(self, sink: CaptureSink) -> None:
        self._sink = sink

    def collect(self) -> Iterable[Metric]:
        """Render everything (called by the Prometheus client at a scrape)."""
        sink = self._sink
        for name, text, by_version in (
            ("samegraph_capture_sampled_rows", "Rows of sampled requests that were answered.", sink.tap.sampled),
            ("samegraph_capture_written_rows", "Rows in capture files.", sink.written),
        ):
            family = CounterMetricFamily(name, text, labels=("model", "version"))
            for (model, version), n in sorted(by_version.copy().items()):
                family.add_metric((model, str(version)), n)
            yield family
        dropped = CounterMetricFamily("samegraph_capture_dropped_rows", "Sampled rows that are in no file.", labels=("reason",))
        for reason, n in sink.dropped.items():
            dropped.add_metric((reason,), n)
        yield dropped
        yield CounterMetricFamily("samegraph_capture_files", "Capture files written.", sink.files)
        yield CounterMetricFamily("samegraph_capture_images", "Images and byte strings written.", sink.images)
        yield CounterMetricFamily("samegraph_capture_written_bytes", "Bytes written, images included.", sink.bytes)
        yield CounterMetricFamily("samegraph_capture_write_failures", "Writes that failed.", sink.failures)
        yield CounterMetricFamily("samegraph_capture_deleted_files", "Local files and images deleted to keep to the bounds.", sink.deleted)
        rows, size = sink.tap.waiting()
        yield GaugeMetricFamily("samegraph_capture_waiting_rows", "Sampled rows that are not yet in a file.", rows)
        yield GaugeMetricFamily("samegraph_capture_waiting_bytes", "What those take in memory, about.", size)
        stored = GaugeMetricFamily("samegraph_capture_stored_bytes", "Bytes in a local directory.", labels=("kind",))
        for kind, n in sink.stored.items():
            stored.add_metric((kind,), n)
        yield stored
