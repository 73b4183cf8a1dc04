"""Tests of samegraph_service.exposition: the client library's text to the byte, in small pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import package_builders as build
import pytest
from live_server import live_server
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, UnknownMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector
from samegraph_service.exposition import PIECE, Exposition
from samegraph_service.metrics import Metrics, Reading, VersionMetrics, VersionReading
from samegraph_transforms.pack import pack

FORMATS = [pytest.param(False, generate_latest, id="Prometheus"), pytest.param(True, generate_openmetrics, id="OpenMetrics")]
Generate = Callable[[Collector], bytes]


class Odd(Collector):
    """Families with everything that needs care in text."""

    def collect(self) -> Iterable[Metric]:
        """Give them."""
        text = 'back\\slash, "quotes" and\na line'
        yield GaugeMetricFamily("plain", text, value=1)
        numbers = GaugeMetricFamily("numbers", "Of all sizes.", labels=("z", "a"))
        for i, value in enumerate((0, 1, 999_999, 1_000_000, 123_456_789, 0.1, 1e-9, 1e22, -3, -0.5, float("nan"), float("inf"), True)):
            numbers.add_metric((f'"{i}"\n\\', "ü"), value)
        yield numbers
        counter = CounterMetricFamily("things", text, labels=("model",))
        counter.add_metric(("m",), 3)
        yield counter
        yield UnknownMetricFamily("who_knows", "Untyped.", value=2)
        yield GaugeMetricFamily("nothing", "No samples.", labels=("x",))


def reading(versions: int) -> Reading:
    """Return what many versions in service would say."""
    counted = []
    for version in range(versions):
        metrics = VersionMetrics("m", version)
        for i in range(50):
            metrics.executed(1 + i, 0.0001 * 3**i, [0.001] * i)
        metrics.duration.observe(0.5)
        metrics.instances = 1_234_567
        counted.append(metrics)

    def all_of_them() -> Iterable[VersionReading]:
        for metrics in counted:
            yield VersionReading("m", metrics.version, "ready", "d" * 64, True, 5, 2, 1.0, True, {"onnx": 1}, 0, 1.25, metrics)

    return Reading(all_of_them, lambda: [("samegraph_ready", "Whether.", 1.0)], lambda: {"rows": 2}, lambda: {"success": versions})


def text_of(exposition: Exposition, openmetrics: bool) -> bytes:
    """Return the whole text."""
    return "".join([*exposition.write(openmetrics=openmetrics), "# EOF\n" if openmetrics else ""]).encode()


@pytest.mark.parametrize(("openmetrics", "generate"), FORMATS)
def test_the_text_is_the_client_librarys(openmetrics: bool, generate: Generate) -> None:
    """Every byte, at the first scrape and at later ones, whatever is in names, numbers and sentences."""
    metrics = Metrics()
    metrics.reading = reading(3)
    metrics.request("m", 1, "v1", 200)
    metrics.error("m", "wrong_type")
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Odd())
    registry.register(metrics)
    exposition = Exposition(metrics, [Odd()])
    for _ in range(2):
        assert text_of(exposition, openmetrics).decode().splitlines() == generate(registry).decode().splitlines()
        metrics.request("m", 1, "v1", 200)
    assert text_of(exposition, not openmetrics) != text_of(exposition, openmetrics)


def test_no_piece_is_long_however_many_versions_there_are() -> None:
    """A histogram more than a piece's worth is the most there is in one."""
    metrics = Metrics()
    metrics.reading = reading(40)
    pieces = [piece.count("\n") for piece in Exposition(metrics, ()).write(openmetrics=True)]
    assert sum(pieces) > 5000
    assert max(pieces) <= PIECE + 25


def test_a_scrape_has_both_formats(tmp_path: Path) -> None:
    """Prometheus asks for OpenMetrics; a browser and older tools get the plain text."""
    pack(build.draft(), build.samples(), tmp_path)
    with live_server(tmp_path) as server:
        plain = server.get("/metrics")
        asked = server.request("GET", "/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert plain.headers["content-type"].startswith("text/plain")
    assert asked.headers["content-type"].startswith("application/openmetrics-text")
    assert b"# TYPE samegraph_requests_total counter" in plain.body
    assert b"# TYPE samegraph_requests counter" in asked.body
    assert asked.body.endswith(b"# EOF\n")
    assert b"process_resident_memory_bytes" in plain.body
