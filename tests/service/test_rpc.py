"""V2 over gRPC on a real port: the same path as HTTP, with gRPC's own statuses, deadlines and metadata."""

from __future__ import annotations

import gzip
import json
import struct
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import odd_packages as odd
import package_builders as build
import pytest
from samegraph_service.api import error_document
from samegraph_service.errors import Overloaded
from samegraph_service.rpc import messages
from samegraph_transforms.pack import pack
from server_process import ServerProcess

from scripts.protocols import sources_digest

TOKEN = "a-token-of-sixteen"
LIMIT = 1 << 20


class Client:
    """Calls the server's methods by name, with messages of our own classes."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        port = next(e["port"] for e in server.events() if e["event"] == "grpc_listening")
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=(("grpc.max_receive_message_length", -1),))

    def call(self, method: str, message: Any, *, service: str = "inference.GRPCInferenceService", **options: Any) -> Any:
        answered = messages.HealthResponse if method == "Check" else messages.message_type(f"{method}Response")
        ask = self.channel.unary_unary(f"/{service}/{method}")
        data, call = ask.with_call(message.SerializeToString(), timeout=options.pop("timeout", 20), **options)
        self.metadata = dict(call.initial_metadata())
        return answered.FromString(data)

    def failure(self, method: str, message: Any, **options: Any) -> tuple[str, dict[str, Any]]:
        """Return status and error document of a call that fails."""
        with pytest.raises(grpc.RpcError) as caught:
            self.call(method, message, **options)
        error: Any = caught.value
        self.trailing = dict(error.trailing_metadata())
        document = self.trailing.get("samegraph-error-bin")
        return error.code().name, {} if document is None else json.loads(document)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    repository: Path = tmp_path_factory.mktemp("models")
    pack(build.draft(), build.samples(), repository)
    odd.pack_tensors(repository)
    odd.pack_greeting(repository)
    server = ServerProcess(
        repository, GRPC__PORT="0", GRPC__STREAM_WINDOW="4", ADMIN__TOKEN=TOKEN, LIMITS__MAX_BODY_BYTES=str(LIMIT), LOG__LEVEL="info"
    )
    client = Client(server)
    yield client
    client.channel.close()
    server.close()


def plants(*rows: build.Row, model: str = "plants", **more: Any) -> Any:
    """Return a request with typed contents."""
    message = messages.InferRequest(model_name=model, **more)
    size = message.inputs.add(name="size", datatype="FP64", shape=[len(rows), 1])
    size.contents.fp64_contents.extend(np.nan if r["size"] is None else r["size"] for r in rows)
    kind = message.inputs.add(name="kind", datatype="BYTES", shape=[len(rows)])
    kind.contents.bytes_contents.extend(r["kind"].encode() for r in rows)
    return message


def raw(message: Any) -> Any:
    """Return the same request with its tensors in bytes."""
    copy = messages.InferRequest.FromString(message.SerializeToString())
    for tensor in copy.inputs:
        if tensor.datatype == "BYTES":
            copy.raw_input_contents.append(b"".join(struct.pack("<I", len(t)) + t for t in tensor.contents.bytes_contents))
        else:
            copy.raw_input_contents.append(np.array(tensor.contents.fp64_contents, "<f8").tobytes())
        tensor.ClearField("contents")
    return copy


def over_http(client: Client, *rows: build.Row) -> np.ndarray:
    body = json.dumps({"instances": rows}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{client.server.url}/v1/models/plants:predict", body), timeout=20) as answer:
        return np.array([p["probability"] for p in json.load(answer)["predictions"]], np.float32)


def test_the_compiled_messages_are_those_of_the_sources() -> None:
    """Run scripts/protocols.py after changing a .proto file."""
    from samegraph_service.rpc import descriptors

    assert sources_digest() == descriptors.SOURCES_SHA256


def test_typed_and_raw_contents_give_what_http_gives(client: Client) -> None:
    """To the bit; the answer's outputs are raw, and its metadata say who answered."""
    request = plants(*build.ROWS, id="call-1")
    for message in (request, raw(request)):
        answer = client.call("ModelInfer", message, metadata=(("x-request-id", "mine"),))
        assert (answer.model_name, answer.model_version, answer.id) == ("plants", "1", "call-1")
        assert [(o.name, o.datatype, list(o.shape)) for o in answer.outputs] == [("label", "BYTES", [5]), ("probability", "FP32", [5, 3])]
        assert answer.raw_output_contents[1] == over_http(client, *build.ROWS).tobytes()
        assert client.metadata["x-request-id"] == "mine"
        assert client.metadata["samegraph-model-version"] == "1"


def test_a_repeated_key_gets_the_stored_answer(client: Client) -> None:
    """Idempotency keys travel as metadata; another request under the same key is refused."""
    request, key = plants(build.ROWS[0], id="k"), (("idempotency-key", "once"),)
    first = client.call("ModelInfer", request, metadata=key)
    assert client.call("ModelInfer", request, metadata=key) == first
    assert client.metadata["samegraph-replayed"] == "stored"
    assert client.failure("ModelInfer", plants(build.ROWS[1]), metadata=key)[1]["code"] == "key_reused"


def test_deadline_and_priority_travel_as_metadata(client: Client) -> None:
    """As HTTP's headers do: understood when they are right, refused by name when they are not; the shorter of two deadlines counts."""
    request = plants(build.ROWS[0])
    client.call("ModelInfer", request, metadata=(("samegraph-priority", "interactive"), ("x-request-timeout-seconds", "20")))
    status, document = client.failure("ModelInfer", request, metadata=(("samegraph-priority", "urgent"),))
    assert status == "INVALID_ARGUMENT"
    assert "samegraph-priority" in document["error"]
    status, document = client.failure("ModelInfer", request, metadata=(("x-request-timeout-seconds", "0.000001"),))
    assert status in {"DEADLINE_EXCEEDED", "INVALID_ARGUMENT"}
    assert document["code"] in {"deadline_exceeded", "deadline_too_short"}


def test_watching_health_is_refused_as_unimplemented(client: Client) -> None:
    """Clients that would watch go over to asking: so the health protocol wants it."""
    watch = client.channel.unary_stream("/grpc.health.v1.Health/Watch")
    with pytest.raises(grpc.RpcError) as caught:
        next(iter(watch(messages.HealthRequest(service="").SerializeToString(), timeout=20)))
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


def test_outputs_are_chosen_and_classified(client: Client) -> None:
    """As over HTTP."""
    message = plants(build.ROWS[0])
    message.outputs.add(name="probability").parameters["classification"].int64_param = 1
    answer = client.call("ModelInfer", message)
    best = over_http(client, build.ROWS[0])[0]
    text = f"{best.max():f}:{best.argmax()}:{build.LABELS[best.argmax()]}".encode()
    assert list(answer.raw_output_contents) == [struct.pack("<I", len(text)) + text]


def test_what_is_wrong_comes_as_a_status_with_the_document(client: Client) -> None:
    """The text for people, the status for gRPC clients, the whole document for ours."""
    row = build.ROWS[0]
    status, document = client.failure("ModelInfer", plants(row, model="nothing"))
    assert (status, document["code"]) == ("NOT_FOUND", "unknown_model")
    assert client.failure("ModelInfer", plants({"size": 5000, "kind": "moss"}))[1]["code"] == "out_of_range"
    assert client.failure("ModelInfer", plants(row, model_version="x"))[0] == "NOT_FOUND"
    assert client.failure("ModelInfer", plants(row, model_version="7"))[1]["code"] == "unknown_version"
    bad = plants(row)
    bad.parameters["sequence_id"].int64_param = 3
    assert client.failure("ModelInfer", bad)[0] == "UNIMPLEMENTED"
    short = raw(plants(row))
    del short.raw_input_contents[1]
    assert client.failure("ModelInfer", short)[1]["code"] == "wrong_shape"
    twice = raw(plants(row))
    twice.inputs[0].contents.fp64_contents.append(1)
    assert client.failure("ModelInfer", twice)[1]["code"] == "bad_body"
    half = plants(row)
    half.inputs[0].datatype = "FP16"
    assert client.failure("ModelInfer", half)[1]["code"] == "wrong_dtype"
    status, document = client.failure("ModelInfer", plants(row), metadata=(("x-deadline-ms", "soon"),))
    assert (status, document["code"]) == ("INVALID_ARGUMENT", "bad_deadline")


def test_every_status_that_alerts_are_about_has_its_series_from_the_start(client: Client) -> None:
    """Prometheus sees no increase in a series that begins with its first event."""
    assert b'samegraph_requests_total{model="tensors",protocol="grpc",status="503",version=""} 0.0' in client.server.get("/metrics")[1]


def test_bytes_that_are_no_message_are_refused(client: Client) -> None:
    """And counted, of no model."""
    with pytest.raises(grpc.RpcError) as caught:
        client.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(b"\xff\xff\xff", timeout=20)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert b'samegraph_requests_total{model="_unknown",protocol="grpc",status="400",version=""} ' in client.server.get("/metrics")[1]


def test_a_message_over_the_limit_is_refused_compressed_or_not(client: Client) -> None:
    """A small message that inflates to a huge one is not taken either."""
    message = messages.InferRequest(model_name="greeting", raw_input_contents=[b" " * (LIMIT + 1)])
    message.inputs.add(name="text", datatype="BYTES", shape=[1])
    for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
        status, _ = client.failure("ModelInfer", message, compression=compression)
        assert status in ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT")
    assert len(gzip.compress(message.SerializeToString())) < 3000


def test_compressed_messages_and_large_ones_are_read(client: Client) -> None:
    """A message large enough to be read on a host thread, compressed by the caller."""
    rows = [{"size": i / 7, "kind": "moss"} for i in range(3000)]
    answer = client.call("ModelInfer", raw(plants(*rows)), compression=grpc.Compression.Gzip)
    assert answer.raw_output_contents[1] == over_http(client, *rows).tobytes()


def test_a_stream_is_answered_in_order_and_goes_on_after_an_error(client: Client) -> None:
    """More requests than its window, one of them bad."""
    asked = [plants({"size": i, "kind": "moss"}, id=str(i)) for i in range(30)]
    asked[7].model_name = "nothing"
    stream = client.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    answers = [messages.StreamInferResponse.FromString(a) for a in stream(iter(a.SerializeToString() for a in asked), timeout=20)]
    assert [a.infer_response.id for a in answers] == ["" if i == 7 else str(i) for i in range(30)]
    assert "nothing" in answers[7].error_message
    assert answers[0].infer_response.parameters["triton_final_response"].bool_param
    want = over_http(client, *({"size": i, "kind": "moss"} for i in range(30)))
    assert b"".join(a.infer_response.raw_output_contents[1] for a in answers if not a.error_message) == np.delete(want, 7, 0).tobytes()


def test_a_stream_whose_caller_leaves_leaves_nothing_behind(client: Client) -> None:
    """The requests it still had are cancelled, and the next caller is served."""
    stream = client.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    answers = stream(iter(plants({"size": 1, "kind": "moss"}).SerializeToString() for _ in range(500)), timeout=20)
    next(answers)
    answers.cancel()
    client.call("ModelInfer", plants(build.ROWS[0]))
    assert b"\nsamegraph_in_flight_requests 0.0" in client.server.get("/metrics")[1]


def test_everything_else_is_told(client: Client) -> None:
    """Health, metadata, configuration, statistics and the index, as HTTP tells them."""
    kind = messages.message_type
    assert client.call("ServerLive", kind("ServerLiveRequest")()).live
    assert client.call("ServerReady", kind("ServerReadyRequest")()).ready
    assert client.call("ModelReady", kind("ModelReadyRequest")(name="plants", version="1")).ready
    assert "binary_tensor_data" in client.call("ServerMetadata", kind("ServerMetadataRequest")()).extensions
    metadata = client.call("ModelMetadata", kind("ModelMetadataRequest")(name="plants"))
    assert [(i.name, i.datatype, list(i.shape)) for i in metadata.inputs] == [("size", "FP64", [-1, 1]), ("kind", "BYTES", [-1, 1])]
    client.call("ModelInfer", plants(build.ROWS[0]))
    config = client.call("ModelConfig", kind("ModelConfigRequest")(name="plants")).config
    assert (config.max_batch_size, config.WhichOneof("scheduling_choice")) == (8, "dynamic_batching")
    (statistics,) = client.call("ModelStatistics", kind("ModelStatisticsRequest")(name="plants")).model_stats
    assert statistics.inference_count >= 1
    assert statistics.inference_stats.success.count >= 1
    models = client.call("RepositoryIndex", kind("RepositoryIndexRequest")(ready=True)).models
    assert [m.name for m in models] == ["greeting", "plants", "tensors"]
    assert client.failure("ModelMetadata", kind("ModelMetadataRequest")(name="nothing"))[0] == "NOT_FOUND"


def test_the_standard_health_check_is_answered(client: Client) -> None:
    """Of the server, of the service, and of a model."""
    for name in ("", "inference.GRPCInferenceService", "plants"):
        answer = client.call("Check", messages.HealthRequest(service=name), service="grpc.health.v1.Health")
        assert answer.status == messages.HealthResponse.DESCRIPTOR.enum_types_by_name["ServingStatus"].values_by_name["SERVING"].number
    assert client.failure("Check", messages.HealthRequest(service="nothing"), service="grpc.health.v1.Health")[0] == "NOT_FOUND"


def test_a_model_is_unloaded_and_loaded_with_the_token(client: Client) -> None:
    """The token travels as metadata."""
    kind = messages.message_type
    unload, admin = kind("RepositoryModelUnloadRequest")(model_name="tensors"), (("authorization", f"Bearer {TOKEN}"),)
    assert client.failure("RepositoryModelUnload", unload)[0] == "UNAUTHENTICATED"
    client.call("RepositoryModelUnload", unload, metadata=admin)
    assert not client.call("ModelReady", kind("ModelReadyRequest")(name="tensors")).ready
    client.call("RepositoryModelLoad", kind("RepositoryModelLoadRequest")(model_name="tensors"), metadata=admin)
    assert client.call("ModelReady", kind("ModelReadyRequest")(name="tensors")).ready


def test_shared_memory_is_refused_by_name(client: Client) -> None:
    """UNIMPLEMENTED with a sentence, not the library's empty one."""
    with pytest.raises(grpc.RpcError) as caught:
        client.channel.unary_unary("/inference.GRPCInferenceService/SystemSharedMemoryStatus")(b"", timeout=20)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "shared memory" in error.details()


def test_every_status_has_its_counterpart() -> None:
    """A new error cannot be left without a gRPC status."""
    for mapped in {*error_document._BY_CLASS.values()}:
        assert mapped.status in error_document._GRPC_STATUS
    for name in error_document._GRPC_STATUS.values():
        assert name in grpc.StatusCode.__members__
    assert error_document.grpc_status(Overloaded("full", reason="rows", retry_after_s=1)) == "RESOURCE_EXHAUSTED"


def in_flight(server: ServerProcess) -> int:
    text = server.get("/metrics")[1].decode()
    return int(float(text.partition("\nsamegraph_in_flight_requests ")[2].partition("\n")[0]))


def until(server: ServerProcess, requests: int) -> None:
    """Wait until so many requests are in flight."""
    deadline = time.monotonic() + 20
    while in_flight(server) != requests:
        assert time.monotonic() < deadline


def test_deadlines_and_callers_who_leave_free_the_queue_and_a_drain_answers_the_rest(tmp_path: Path) -> None:
    """Executions of a second, one at a time: a deadline of gRPC that they cannot meet is refused with a hint, a cancelled call leaves the
    queue, and SIGTERM waits for those that run.
    """
    pack(build.draft(), build.samples(), tmp_path)
    server = ServerProcess(tmp_path, GRPC__PORT="0", EXECUTION__SIMULATED_BATCH_S="1", EXECUTION__RUN_SLOTS="1")
    try:
        client = Client(server)
        ask = client.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        data = plants(build.ROWS[0]).SerializeToString()
        first = ask.future(data, timeout=20)
        until(server, 1)
        gone = ask.future(data, timeout=20)
        until(server, 2)
        status, document = client.failure("ModelInfer", plants(build.ROWS[0]), timeout=1.4)
        assert (status, document["code"]) == ("RESOURCE_EXHAUSTED", "deadline_unreachable")
        assert int(client.trailing["grpc-retry-pushback-ms"]) == int(client.trailing["retry-after-ms"]) > 0
        gone.cancel()
        until(server, 1)
        assert first.code() is grpc.StatusCode.OK
        until(server, 0)
        last = ask.future(data, timeout=20)
        until(server, 1)
        assert server.terminate() == 0
        assert last.code() is grpc.StatusCode.OK
        client.channel.close()
    finally:
        server.close()


def test_a_port_that_is_taken_stops_the_start(client: Client, tmp_path: Path) -> None:
    """With a sentence that names it."""
    port = next(e["port"] for e in client.server.events() if e["event"] == "grpc_listening")
    server = ServerProcess(tmp_path, GRPC__PORT=str(port))
    try:
        assert server.process.wait(60) == 1
        assert server.url == ""
        assert any(f"cannot listen on 127.0.0.1:{port} for gRPC" in line for line in server.lines)
    finally:
        server.close()
