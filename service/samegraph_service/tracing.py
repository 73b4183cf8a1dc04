"""Traces: what one sampled request spent its time on, as OpenTelemetry spans sent to a collector. Off unless an endpoint is configured.

    begin     on the head: whether this request is traced (the caller's `traceparent` decides; without one, the sample ratio does)
    span      a stage of it is over: a name and two times are kept, nothing more
    finish    it was answered: everything goes to a thread, which makes spans of it and hands them to OpenTelemetry's own batch processor

So a request that is not traced pays for one comparison, and one that is pays for a few appends; what a collector's slowness costs is
spans, which are counted, never time. Trace context: https://www.w3.org/TR/trace-context-2/ (`traceparent` in, `traceresponse` out).
"""

from __future__ import annotations

import queue
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector
from samegraph_transforms.errors import EnvironmentUnfit

from .batching import Entry
from .logs import get_logger

log = get_logger("samegraph.tracing")

#: Spans of one trace beside the request's own; a request of thousands of instances keeps its first ones.
MAX_SPANS: Final = 64
_TRACEPARENT: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE: Final = b"0" * 32
_NO_SPAN: Final = b"0" * 16


@dataclass(slots=True)
class Trace:
    """One traced request on its way.

    Attributes:
        trace_id: Of the whole trace, 128 bits.
        span_id: Of this request's span.
        parent_id: Of the caller's span; 0 without one.
        state: The caller's `tracestate`, passed on.
        began: Loop time of the request's headers, in seconds.
        wall_ns: Wall clock less loop clock, in nanoseconds: added to a loop time it gives the time of day.
        spans: (name, start, end, attributes), loop times in seconds.
        dropped: Spans beyond `MAX_SPANS`.
    """

    trace_id: int
    span_id: int
    parent_id: int
    state: str
    began: float
    wall_ns: int
    spans: list[tuple[str, float, float, Mapping[str, Any]]] = field(default_factory=list)
    dropped: int = 0

    def span(self, name: str, start: float, end: float, **attributes: Any) -> None:
        """Keep a stage's two times."""
        if len(self.spans) < MAX_SPANS:
            self.spans.append((name, start, end, attributes))
        else:
            self.dropped += 1

    @property
    def hex_id(self) -> str:
        """The trace's id as logs and headers have it."""
        return f"{self.trace_id:032x}"

    @property
    def response_header(self) -> tuple[bytes, bytes]:
        """`traceresponse`, which tells the caller under which span he was served."""
        return b"traceresponse", f"00-{self.trace_id:032x}-{self.span_id:016x}-01".encode()


@dataclass(frozen=True, slots=True)
class _Finished:
    """A trace with what became of its request."""

    trace: Trace
    name: str
    ended: float
    status: int
    attributes: Mapping[str, Any]


class Tracer:
    """Decides, collects and hands over. For the event loop's thread, but for its own.

    Args:
        export: Takes OpenTelemetry's spans; called in this object's thread.
        clock: The loop's clock, in seconds.
        sample_ratio: Share of requests without a caller's trace context that is traced.
        max_queued: Most finished traces that wait for the thread.
        rng: Returns a number in [0, 1).

    Attributes:
        traced: Requests traced.
        dropped: Traces dropped because the thread fell behind.
    """

    def __init__(
        self,
        export: Exporter,
        clock: Callable[[], float],
        *,
        sample_ratio: float,
        max_queued: int = 2048,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._export = export
        self._clock = clock
        self._ratio = sample_ratio
        self._rng = rng
        self._ids = random.Random()  # seeded by the system; ids need be unique, not secret
        self._room = max_queued
        self._queue: queue.SimpleQueue[_Finished | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="samegraph-traces", daemon=True)
        self.traced = 0
        self.dropped = 0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Send what waits, for so long at most, and end."""
        self._queue.put(None)
        self._thread.join(timeout_s)
        self._export.close(timeout_s)

    def begin(self, headers: Mapping[bytes, bytes], received: float) -> Trace | None:
        """Return a trace for a request whose headers were read, or None when it is not to be traced."""
        parent = headers.get(b"traceparent")
        if parent is None:
            if self._rng() >= self._ratio:
                return None
            trace_id, parent_id, state = self._ids.getrandbits(128) or 1, 0, ""
        else:
            found = parse_traceparent(parent)
            if found is None:  # broken context starts a new trace, as the specification asks
                return self.begin({}, received)
            trace_id, parent_id, sampled = found
            if not sampled:
                return None
            state = headers.get(b"tracestate", b"")[:512].decode("latin-1")
        self.traced += 1
        wall_ns = time.time_ns() - int(self._clock() * 1e9)
        return Trace(trace_id, self._ids.getrandbits(64) or 1, parent_id, state, received, wall_ns)

    def executed(self, batch: Sequence[Entry], queued: Sequence[float], seconds: float) -> None:
        """Note an execution in the traces of the requests that took part in it (see `device.Lane.traced`).

        Args:
            batch: Its entries.
            queued: How long each had waited, in seconds.
            seconds: How long it took.
        """
        ended = now = 0.0
        for entry, waited in zip(batch, queued, strict=True):
            trace: Trace | None = getattr(entry.work, "trace", None)
            if trace is None:
                continue
            if not now:
                now = ended = self._clock()
            rows = len(entry.items)
            started = ended - seconds
            trace.span("queue", started - waited, started, **{"samegraph.rows": rows})
            trace.span("batch", started, ended, **{"samegraph.rows": rows, "samegraph.batch_size": sum(len(e.items) for e in batch)})

    def finish(self, trace: Trace, name: str, status: int, attributes: Mapping[str, Any]) -> None:
        """Hand an answered request's trace over; drop it when the thread is too far behind."""
        if self._queue.qsize() >= self._room:
            self.dropped += 1
            return
        self._queue.put(_Finished(trace, name, self._clock(), status, attributes))

    def _run(self) -> None:
        while (finished := self._queue.get()) is not None:
            try:
                self._export.take(finished)
            except Exception:  # a span no exporter takes costs itself, not those after it
                log.exception("trace_not_exported")


class Exporter:
    """Makes OpenTelemetry spans of finished traces and hands them to the SDK's batch processor.

    Args:
        processor: The SDK's `SpanProcessor`.
        resource: What the spans are about: the SDK's `Resource`.
    """

    def __init__(self, processor: Any, resource: Any) -> None:
        self._processor = processor
        self._resource = resource
        self._ids = random.Random()

    def take(self, finished: _Finished) -> None:
        """Make spans of one trace and hand them over."""
        for span in self.spans(finished):
            self._processor.on_end(span)

    def spans(self, finished: _Finished) -> Iterator[Any]:
        """Yield the request's span, then one for each stage, as the SDK's `ReadableSpan`."""
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace import SpanContext, SpanKind, TraceFlags, TraceState
        from opentelemetry.trace.status import Status, StatusCode

        trace = finished.trace
        scope = InstrumentationScope("samegraph")
        state = TraceState.from_header([trace.state]) if trace.state else TraceState()

        def context(span_id: int, *, remote: bool = False) -> SpanContext:
            return SpanContext(trace.trace_id, span_id, is_remote=remote, trace_flags=TraceFlags(TraceFlags.SAMPLED), trace_state=state)

        def at(loop_s: float) -> int:
            return trace.wall_ns + int(loop_s * 1e9)

        own = context(trace.span_id)
        code = StatusCode.ERROR if finished.status >= 500 else StatusCode.UNSET
        dropped = {"samegraph.dropped_spans": trace.dropped} if trace.dropped else {}
        yield ReadableSpan(
            finished.name,
            context=own,
            parent=context(trace.parent_id, remote=True) if trace.parent_id else None,
            resource=self._resource,
            attributes={**finished.attributes, **dropped},
            kind=SpanKind.SERVER,
            status=Status(code),
            start_time=at(trace.began),
            end_time=at(finished.ended),
            instrumentation_scope=scope,
        )
        for name, start, end, attributes in trace.spans:
            yield ReadableSpan(
                name,
                context=context(self._ids.getrandbits(64) or 1),
                parent=own,
                resource=self._resource,
                attributes=attributes,
                kind=SpanKind.INTERNAL,
                status=Status(StatusCode.UNSET),
                start_time=at(start),
                end_time=at(max(start, end)),
                instrumentation_scope=scope,
            )

    def close(self, timeout_s: float) -> None:
        """Send what waits, for so long at most."""
        self._processor.force_flush(int(timeout_s * 1000))
        self._processor.shutdown()


class TraceMetrics(Collector):
    """What tracing did, for Prometheus.

    Args:
        tracer: The tracer, or None when nothing is traced.
    """

    def __init__(self, tracer: Tracer | None) -> None:
        self._tracer = tracer

    def collect(self) -> Iterable[Metric]:
        """Yield the two counters."""
        traced, dropped = (0, 0) if self._tracer is None else (self._tracer.traced, self._tracer.dropped)
        yield CounterMetricFamily("samegraph_traces", "Requests traced.", value=traced)
        yield CounterMetricFamily("samegraph_traces_dropped", "Traces dropped because their thread fell behind.", value=dropped)


def parse_traceparent(value: bytes) -> tuple[int, int, bool] | None:
    """Return (trace id, parent's span id, whether it is sampled) of a `traceparent` header, or None when it is not a valid one."""
    found = _TRACEPARENT.fullmatch(value.strip())
    if found is None:
        return None
    version, trace_id, parent_id, flags, rest = found.groups()
    if version == b"ff" or trace_id == _NO_TRACE or parent_id == _NO_SPAN or (version == b"00" and rest):
        return None
    return int(trace_id, 16), int(parent_id, 16), bool(int(flags, 16) & 1)


def otlp_exporter(endpoint: str, *, service_name: str, headers: Mapping[str, str], timeout_s: float = 10.0) -> Exporter:
    """Return an exporter that sends spans to a collector by OTLP over HTTP.

    Args:
        endpoint: The collector's address for traces, for example `http://127.0.0.1:4318/v1/traces`.
        service_name: `service.name` of the spans.
        headers: Sent with every export (a token, say).
        timeout_s: Longest one export may take.

    Raises:
        EnvironmentUnfit: The extra that traces need is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise EnvironmentUnfit("traces need OpenTelemetry's SDK; install samegraph[otel], or unset SAMEGRAPH_TRACING__ENDPOINT") from error
    exporter = OTLPSpanExporter(endpoint=endpoint, headers=dict(headers), timeout=timeout_s)
    return Exporter(BatchSpanProcessor(exporter), Resource.create({"service.name": service_name}))
