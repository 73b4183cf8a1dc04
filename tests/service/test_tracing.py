"""Traces: who is traced, what the spans say, and that a slow collector costs spans and nothing else."""

from __future__ import annotations

import gzip
import json
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from package_builders import ROWS, draft, samples
from samegraph_service.rpc import messages
from samegraph_service.tracing import MAX_SPANS, Exporter, Trace, Tracer, parse_traceparent
from samegraph_transforms.errors import EnvironmentUnfit
from samegraph_transforms.pack import pack
from server_process import ServerProcess

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNSAMPLED = PARENT[:-2] + "00"
BODY = json.dumps({"instances": [{"size": 3.5, "kind": "fern"}, {"size": 1.0, "kind": "moss"}]}).encode()


class Collector:
    """What an OTLP collector received."""

    def __init__(self) -> None:
        self.spans: list[tuple[Any, Mapping[str, str]]] = []
        self.headers: list[Mapping[str, str]] = []
        self.arrived = threading.Condition()

    def of_trace(self, trace_id: str) -> dict[str, Any]:
        """Return name → span of one trace, the request's own first; wait for it."""
        wanted = bytes.fromhex(trace_id)
        with self.arrived:
            assert self.arrived.wait_for(lambda: any(span.trace_id == wanted for span, _ in self.spans), 30)
            return {span.name: span for span, _ in self.spans if span.trace_id == wanted}


@contextmanager
def collector() -> Iterator[tuple[str, Collector]]:
    """Run a collector; yield its address and what it receives."""
    received = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            data = gzip.decompress(data) if self.headers.get("content-encoding") == "gzip" else data
            request = ExportTraceServiceRequest.FromString(data)
            with received.arrived:
                received.headers.append(dict(self.headers))
                for resource in request.resource_spans:
                    about = {a.key: a.value.string_value for a in resource.resource.attributes}
                    received.spans += [(span, about) for scope in resource.scope_spans for span in scope.spans]
                received.arrived.notify_all()
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces", received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(url: str, body: bytes = BODY, **headers: str) -> tuple[int, Mapping[str, str]]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"{url}/v1/models/plants:predict", body, named, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            response.read()
            return response.status, {k.lower(): v for k, v in response.headers.items()}
    except urllib.error.HTTPError as error:
        return error.code, {k.lower(): v for k, v in error.headers.items()}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("repository")
    pack(draft(), samples(), directory)
    return directory


@pytest.mark.parametrize("http", ["direct", "asgi"])
def test_a_traced_request_tells_its_stages(repository: Path, http: str) -> None:
    """The caller's context is the parent, spans nest in time, the answer names its span; refusals are traced, unsampled calls not."""
    with collector() as (endpoint, received):
        settings: dict[str, Any] = {
            "TRACING__ENDPOINT": endpoint,
            "TRACING__SAMPLE_RATIO": "0",
            "TRACING__HEADERS": "x-token=secret, x-tenant=t1",
        }
        server = ServerProcess(repository, SERVER__HTTP=http, TRACING__SERVICE_NAME="plant-server", **settings)
        try:
            status, headers = ask(server.url, traceparent=PARENT, tracestate="vendor=abc", x_request_id="req-1")
            assert status == 200
            _, trace_id, span_id, flags = headers["traceresponse"].split("-")
            assert (trace_id, flags) == (PARENT.split("-")[1], "01")
            assert "traceresponse" not in ask(server.url, traceparent=UNSAMPLED)[1]
            assert "traceresponse" not in ask(server.url)[1]
            other = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
            status, headers = ask(server.url, b"{", traceparent=other)
            assert (status, headers["traceresponse"].split("-")[1]) == (400, "a" * 32)
        finally:
            server.terminate()
            server.close()
        spans = received.of_trace(trace_id)
        assert set(spans) == {"POST v1 plants", "decode", "queue", "batch", "encode"}
        whole = spans["POST v1 plants"]
        assert whole.span_id.hex() == span_id
        assert whole.parent_span_id.hex() == PARENT.split("-")[2]
        assert whole.trace_state == "vendor=abc"
        about = {a.key: a.value.string_value or a.value.int_value for a in whole.attributes}
        assert about["http.response.status_code"] == 200
        assert about["samegraph.request_id"] == "req-1"
        assert (about["samegraph.model"], about["samegraph.version"], about["samegraph.instances"]) == ("plants", 1, 2)
        for name in ("decode", "queue", "batch", "encode"):
            assert spans[name].parent_span_id == whole.span_id
            assert whole.start_time_unix_nano <= spans[name].start_time_unix_nano <= spans[name].end_time_unix_nano
        order = [spans[name].start_time_unix_nano for name in ("decode", "queue", "batch", "encode")]
        assert order == sorted(order)
        failed = received.of_trace("a" * 32)["POST v1 plants"]
        assert {a.key: a.value.string_value for a in failed.attributes}["error.type"] == "malformed_json"
        assert all(about["service.name"] == "plant-server" for _, about in received.spans)
        assert all(headers["x-token"] == "secret" and headers["x-tenant"] == "t1" for headers in received.headers)


def test_grpc_calls_bring_their_context_in_the_metadata(repository: Path) -> None:
    """The same spans as over HTTP, under the caller's; a repeated request is traced as one that computed nothing."""
    with collector() as (endpoint, received):
        server = ServerProcess(repository, GRPC__PORT="0", TRACING__ENDPOINT=endpoint, TRACING__SAMPLE_RATIO="0")
        try:
            port = next(json.loads(line)["port"] for line in server.lines if '"grpc_listening"' in line)
            message = messages.InferRequest(model_name="plants")
            message.inputs.add(name="size", datatype="FP64", shape=[1, 1]).contents.fp64_contents.append(ROWS[0]["size"])
            message.inputs.add(name="kind", datatype="BYTES", shape=[1]).contents.bytes_contents.append(ROWS[0]["kind"].encode())
            ids = ["c" * 32, "d" * 32]
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
                for trace_id in ids:
                    metadata = (("traceparent", f"00-{trace_id}-{'b' * 16}-01"), ("idempotency-key", "one"))
                    _, call = infer.with_call(message.SerializeToString(), timeout=20, metadata=metadata)
                    assert dict(call.initial_metadata())["traceresponse"].split("-")[1] == trace_id
        finally:
            server.terminate()
            server.close()
        first, again = (received.of_trace(trace_id) for trace_id in ids)
        assert {"decode", "queue", "batch", "encode"} < set(first)
        whole = next(span for name, span in first.items() if "plants" in name)
        assert whole.parent_span_id.hex() == "b" * 16
        assert "batch" not in again
        assert len(again) >= 1


def test_share_of_requests_is_traced_and_counted(repository: Path) -> None:
    """With a ratio of one every request has a trace of its own, and the metric says how many."""
    with collector() as (endpoint, received):
        server = ServerProcess(repository, TRACING__ENDPOINT=endpoint, TRACING__SAMPLE_RATIO="1")
        try:
            ids = {ask(server.url)[1]["traceresponse"].split("-")[1] for _ in range(5)}
            page = server.get("/metrics")[1].decode()
        finally:
            server.terminate()
            server.close()
        assert len(ids) == 5
        assert "samegraph_traces_total 5.0" in page
        assert "samegraph_traces_dropped_total 0.0" in page
        for trace_id in ids:
            assert "POST v1 plants" in received.of_trace(trace_id)


def test_collector_that_is_not_there_costs_nobody_anything(repository: Path) -> None:
    """Answers come, and the server stops in time."""
    server = ServerProcess(repository, TRACING__ENDPOINT="http://127.0.0.1:9/v1/traces", TRACING__SAMPLE_RATIO="1")
    try:
        assert [ask(server.url)[0] for _ in range(20)] == [200] * 20
        assert server.terminate() == 0
    finally:
        server.close()


class Stalled(Exporter):
    """Holds the tracer's thread until it is let go."""

    def __init__(self) -> None:
        self.go, self.busy = threading.Event(), threading.Event()
        self.taken = 0

    def take(self, finished: object) -> None:
        self.busy.set()
        self.go.wait(30)
        self.taken += 1

    def close(self, timeout_s: float) -> None:
        pass


def test_a_stalled_thread_drops_traces_and_counts_them() -> None:
    """One is at work, as many as fit wait, the rest is counted; nothing blocks."""
    stalled = Stalled()
    tracer = Tracer(stalled, lambda: 1.0, sample_ratio=1.0, max_queued=3)
    tracer.start()
    for _ in range(10):
        trace = tracer.begin({}, 0.0)
        assert trace is not None
        tracer.finish(trace, "POST", 200, {})
        stalled.busy.wait(30)
    stalled.go.set()
    tracer.stop()
    assert tracer.traced == 10
    assert tracer.dropped == 6
    assert stalled.taken == 4


def test_spans_of_one_trace_are_bounded() -> None:
    """A request of thousands of instances keeps its first stages and says how many it lost."""
    trace = Trace(1, 2, 0, "", 0.0, 0)
    for i in range(MAX_SPANS + 5):
        trace.span("item", i, i + 1)
    assert (len(trace.spans), trace.dropped) == (MAX_SPANS, 5)


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.integers(0, 255))
def test_trace_context_is_read_as_the_specification_says(trace_id: int, span_id: int, flags: int) -> None:
    """Version 00 has exactly four parts, later ones may have more; ids of zeros and version ff are invalid."""
    text = f"{trace_id:032x}-{span_id:016x}-{flags:02x}".encode()
    wanted = (trace_id, span_id, bool(flags & 1))
    assert parse_traceparent(b"00-" + text) == wanted
    assert parse_traceparent(b"cc-" + text + b"-what-comes-later") == wanted
    for broken in (b"ff-" + text, b"00-" + text + b"-more", b"00-" + text.upper() + b"G", b"00-" + text[1:], b""):
        assert parse_traceparent(broken) is None
    assert parse_traceparent(b"00-" + b"0" * 32 + text[32:]) is None
    assert parse_traceparent(b"00-" + text[:33] + b"0" * 16 + text[49:]) is None


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for traces without the SDK learns what to install."""
    import sys

    from samegraph_service.tracing import otlp_exporter

    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(EnvironmentUnfit, match=r"samegraph\[otel\]"):
        otlp_exporter("http://127.0.0.1:9", service_name="s", headers={})
