"""Counters for a Prometheus of the caller's own. Needs `prometheus-client` (`samegraph-client[metrics]`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .dispatch import Event
from .errors import ExtraMissing

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


class ClientMetrics:
    """A hook that counts what a client does: `Client(url, hooks=[ClientMetrics()])`.

    | metric | labels | |
    |---|---|---|
    | `samegraph_client_attempts_total` | `outcome`: `answered`, `refused`, `failed` | requests sent, by how they ended |
    | `samegraph_client_calls_total` | `outcome`: `answered`, `failed` | calls and items that are over |
    | `samegraph_client_wait_seconds_total` | | waits decided on after refusals and failures |
    | `samegraph_client_attempt_duration_seconds` | | histogram of how long attempts took |
    | `samegraph_client_in_flight` | | requests in flight |
    | `samegraph_client_window` | | requests that may be |

    Args:
        registry: Where they are registered; the library's own by default.

    Raises:
        ExtraMissing: `prometheus-client` is not installed.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        try:
            from prometheus_client import REGISTRY, Counter, Gauge, Histogram
        except ImportError as error:
            raise ExtraMissing("ClientMetrics", "metrics") from error
        where = registry or REGISTRY
        attempts = Counter("samegraph_client_attempts_total", "Requests sent, by how they ended.", ["outcome"], registry=where)
        calls = Counter("samegraph_client_calls_total", "Calls and items that are over.", ["outcome"], registry=where)
        self._attempts = {outcome: attempts.labels(outcome) for outcome in ("answered", "refused", "failed")}
        self._calls = {outcome: calls.labels(outcome) for outcome in ("answered", "failed")}
        self._waits = Counter("samegraph_client_wait_seconds_total", "Waits after refusals and failures.", registry=where)
        self._duration = Histogram("samegraph_client_attempt_duration_seconds", "How long attempts took.", registry=where)
        self._in_flight = Gauge("samegraph_client_in_flight", "Requests in flight.", registry=where)
        self._window = Gauge("samegraph_client_window", "Requests that may be in flight.", registry=where)

    def __call__(self, event: Event) -> None:
        """Count an event."""
        self._in_flight.set(event.in_flight)
        self._window.set(event.window)
        if event.kind == "finished":
            self._calls["answered" if event.error is None else "failed"].inc()
        elif event.kind != "sent":
            self._attempts[event.kind].inc()
            self._duration.observe(event.duration_s)
            self._waits.inc(event.wait_s or 0.0)
