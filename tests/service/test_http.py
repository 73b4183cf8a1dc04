"""The service over real HTTP with a small real package: every protocol, every refusal, one document."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import package_builders as build
import pytest
from live_server import LiveServer, live_server
from onnx import TensorProto, helper
from samegraph_transforms.draft import DraftStage, GoldenSample
from samegraph_transforms.manifest import Batching, Output, RawField
from samegraph_transforms.pack import pack

GOOD = {"size": 1.5, "kind": "moss"}
DOCUMENT_KEYS = {"error", "code", "retryable", "field", "instance", "request_id"}


@pytest.fixture(scope="module", params=["direct", "asgi"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One server for each of the two ways in: every test here holds for both."""
    repository = tmp_path_factory.mktemp("models")
    pack(build.draft(), build.samples(), repository)
    pack(build.draft(version=2, stages=second_version()), second_samples(), repository)
    pack(*length_model(), repository)
    with live_server(repository, server={"http": request.param}, limits={"max_body_bytes": 20_000, "max_instances": 50}) as live:
        yield live


def second_version() -> list[DraftStage]:
    return [build.draft().stages[0], DraftStage("model", build.classifier(build.WEIGHTS * 2)), build.draft().stages[2]]


def second_samples() -> list[GoldenSample]:
    scores = build.reference(build.ROWS)["features"] @ (build.WEIGHTS * 2) + build.BIAS
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    probability = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    label = np.array([build.LABELS[i] for i in probability.argmax(axis=1)], dtype=object)
    sample = build.samples()[-1]
    return [GoldenSample("all rows", sample.path, sample.headers, sample.body, {"label": label, "probability": probability})]


def length_model() -> tuple[Any, list[GoldenSample]]:
    """A text model with one output: how many times the text is exactly `hello`."""
    nodes = [helper.make_node("Equal", ["text", "hello"], ["same"]), helper.make_node("Cast", ["same"], ["hit2"], to=TensorProto.INT64),
             helper.make_node("Squeeze", ["hit2", "axis"], ["hit"])]  # fmt: skip
    model = build.model_of(
        nodes,
        [("text", TensorProto.STRING, ["n", 1])],
        [("hit", TensorProto.INT64, ["n"])],
        hello=np.array(["hello"], dtype=object),
        axis=np.array([1]),
    )
    draft = build.draft(
        name="greeting",
        fields=[RawField(name="text", kind="text", max_length=100)],
        outputs=[Output(name="hit", dtype="int64")],
        stages=[DraftStage("model", model)],
        batching=Batching(max_batch_size=4),
    )
    sample = GoldenSample("hello", "/v1/models/greeting:predict", {"content-type": "text/plain"}, b"hello", {"hit": np.array([1])})
    return draft, [sample]


def expected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    answer = build.reference(rows)
    return [{"label": str(label), "probability": p.tolist()} for label, p in zip(answer["label"], answer["probability"], strict=True)]


# --- answers ------------------------------------------------------------------------------------------------------------


def test_v1_rows_are_answered_by_the_latest_version_unless_another_is_named(server: LiveServer) -> None:
    """No version means the latest; the path pins one."""
    latest = server.predict("plants", {"instances": [GOOD]})
    pinned = server.predict("plants", {"instances": [GOOD]}, "/versions/1")
    assert (latest.status, latest.headers["samegraph-model-version"]) == (200, "2")
    assert (pinned.status, pinned.headers["samegraph-model-version"]) == (200, "1")
    assert pinned.json()["predictions"][0]["label"] == expected([GOOD])[0]["label"]
    np.testing.assert_allclose(pinned.json()["predictions"][0]["probability"], expected([GOOD])[0]["probability"], atol=1e-7)
    assert latest.json()["predictions"] != pinned.json()["predictions"]


def test_an_answer_names_model_version_digest_and_prediction(server: LiveServer) -> None:
    """Whoever reads the answer can say where it came from."""
    reply = server.predict("plants", {"instances": [GOOD]}, **{"x-request-id": "r-42"})
    digest = server.get("/v1/models/plants/metadata").json()["digest"]
    assert (reply.headers["samegraph-model"], reply.headers["samegraph-package-digest"]) == ("plants", digest)
    assert reply.headers["samegraph-prediction-id"] == reply.headers["x-request-id"] == reply.json()["prediction_id"] == "r-42"
    assert (reply.json()["model_name"], reply.json()["model_version"]) == ("plants", "2")


def test_columns_are_answered_in_columns(server: LiveServer) -> None:
    """The columnar form goes both ways."""
    rows = [dict(r) for r in build.ROWS]
    reply = server.predict("plants", {"inputs": {k: [r[k] for r in rows] for k in ("size", "kind")}}, "/versions/1")
    assert reply.json()["outputs"]["label"] == [e["label"] for e in expected(rows)]


def test_more_rows_than_a_batch_come_back_in_order(server: LiveServer) -> None:
    """A request is cut into batches and put together again."""
    rows = [{"size": float(i) / 7, "kind": build.KINDS[i % 3]} for i in range(45)]
    reply = server.predict("plants", {"instances": rows}, "/versions/1")
    got = np.array([p["probability"] for p in reply.json()["predictions"]])
    np.testing.assert_allclose(got, build.reference(rows)["probability"], atol=1e-7)


def test_raw_text_and_bare_values_are_one_instance_each(server: LiveServer) -> None:
    """A single field needs no name, and a raw body no JSON."""
    raw = server.request("POST", "/v1/models/greeting:predict", b"hello", {"content-type": "text/plain"})
    bare = server.predict("greeting", {"instances": ["hello", "bye"]})
    assert raw.json()["predictions"] == [1]
    assert bare.json()["predictions"] == [1, 0]


def test_v2_answers_tensors_and_only_those_asked_for(server: LiveServer) -> None:
    """The same path under the other protocol."""
    body = {
        "id": "abc",
        "inputs": [
            {"name": "size", "datatype": "FP32", "shape": [2, 1], "data": [[1.5], [7]]},
            {"name": "kind", "datatype": "BYTES", "shape": [2], "data": ["moss", "fern"]},
        ],
        "outputs": [{"name": "probability"}],
    }
    reply = server.request("POST", "/v2/models/plants/versions/1/infer", json.dumps(body))
    answer = reply.json()
    assert (reply.status, answer["id"], answer["model_version"]) == (200, "abc", "1")
    assert [(o["name"], o["datatype"], o["shape"]) for o in answer["outputs"]] == [("probability", "FP32", [2, 3])]
    want = build.reference([GOOD, {"size": 7, "kind": "fern"}])["probability"].ravel()
    np.testing.assert_allclose(answer["outputs"][0]["data"], want, atol=1e-7)


def test_v2_metadata_and_health(server: LiveServer) -> None:
    """What a V2 client asks before it infers."""
    tensors = server.get("/v2/models/plants").json()
    assert tensors["versions"] == ["1", "2"]
    assert tensors["inputs"] == [
        {"name": "size", "datatype": "FP64", "shape": [-1, 1]},
        {"name": "kind", "datatype": "BYTES", "shape": [-1, 1]},
    ]
    assert server.get("/v2/health/live").json() == {"live": True}
    assert server.get("/v2/health/ready").json() == {"ready": True}
    assert server.get("/v2/models/plants/versions/1/ready").json() == {"name": "plants", "ready": True}


# --- partial answers ------------------------------------------------------------------------------------------------------


def test_a_bad_instance_fails_the_request_or_only_itself_as_asked(server: LiveServer) -> None:
    """`fail` is the default in JSON; `partial` keeps the neighbours and lists what failed."""
    rows = [GOOD, {"size": "big", "kind": "moss"}, {"size": 7, "kind": "fern"}]
    whole = server.predict("plants", {"instances": rows})
    assert (whole.status, whole.json()["instance"], whole.json()["field"]) == (400, 1, "size")
    partial = server.predict("plants", {"instances": rows}, "?on_error=partial")
    answer = partial.json()
    assert (partial.status, partial.headers["samegraph-failed-instances"]) == (200, "1")
    assert [p is None for p in answer["predictions"]] == [False, True, False]
    assert [(e["instance"], e["code"], e["field"], e["retryable"]) for e in answer["errors"]] == [(1, "wrong_type", "size", False)]


def test_when_every_instance_is_bad_the_first_error_answers(server: LiveServer) -> None:
    """Nothing to answer partially."""
    reply = server.predict("plants", {"instances": [{"size": "x", "kind": "moss"}, {}]}, "?on_error=partial")
    assert (reply.status, reply.json()["instance"], reply.json()["code"]) == (400, 0, "wrong_type")


def test_multipart_parts_are_instances_in_order_and_partial_by_default(server: LiveServer) -> None:
    """One part a line of text; here the model takes no parts, so it says what it takes."""
    body = b'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\nhello\r\n--b--\r\n'
    reply = server.request("POST", "/v1/models/greeting:predict", body, {"content-type": "multipart/form-data; boundary=b"})
    assert (reply.status, reply.json()["code"]) == (415, "unsupported_media_type")


# --- refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "code"),
    [
        ("POST", "/v1/models/plants:predict", b"{", {}, 400, "malformed_json"),
        ("POST", "/v1/models/plants:predict", b'{"instances":[{"size":NaN,"kind":"x"}]}', {}, 400, "not_a_number"),
        ("POST", "/v1/models/plants:predict", b'{"instances":[]}', {}, 400, "no_instances"),
        ("POST", "/v1/models/plants:predict", b'{"instances":[{"size":1}]}', {}, 400, "missing_field"),
        ("POST", "/v1/models/plants:predict", b'{"instances":[{"size":1,"kind":"x","z":0}]}', {}, 400, "unknown_field"),
        ("POST", "/v1/models/plants:predict", b'{"instances":[{"size":1e7,"kind":"x"}]}', {}, 400, "out_of_range"),
        ("POST", "/v1/models/plants:predict", json.dumps({"instances": [GOOD] * 51}).encode(), {}, 413, "too_many_instances"),
        ("POST", "/v1/models/plants:predict", b"x" * 20_001, {}, 413, "body_too_large"),
        ("POST", "/v1/models/plants:predict", b"x", {"content-type": "image/png"}, 415, "unsupported_media_type"),
        ("POST", "/v1/models/plants:predict", b"\x1f\x8b", {"content-encoding": "br"}, 415, "unsupported_media_type"),
        ("POST", "/v1/models/plants:predict", b"{}", {"x-request-timeout-seconds": "soon"}, 400, "bad_deadline"),
        ("POST", "/v1/models/plants:predict", b"{}", {"x-deadline-ms": "-1"}, 400, "bad_deadline"),
        ("POST", "/v1/models/plants:predict?on_error=maybe", b"{}", {}, 400, "bad_body"),
        ("POST", "/v1/models/plants/versions/9:predict", b"{}", {}, 404, "unknown_version"),
        ("POST", "/v1/models/plants/labels/canary:predict", b"{}", {}, 404, "unknown_version"),
        ("POST", "/v1/models/trees:predict", b"{}", {}, 404, "unknown_model"),
        ("GET", "/v1/models/plants:predict", None, {}, 405, "method_not_allowed"),
        ("POST", "/v2/models/plants/infer", b'{"inputs": 3}', {}, 400, "bad_body"),
        (
            "POST",
            "/v2/models/plants/infer",
            b'{"inputs":[{"name":"size","datatype":"BYTES","shape":[1],"data":["x"]}]}',
            {},
            400,
            "wrong_dtype",
        ),
        (
            "POST",
            "/v2/models/plants/infer",
            b'{"inputs":[{"name":"size","datatype":"FP64","shape":[2],"data":[1]}]}',
            {},
            400,
            "wrong_shape",
        ),
        (
            "POST",
            "/v2/models/plants/infer",
            b'{"inputs":[{"name":"what","datatype":"FP64","shape":[1],"data":[1]}]}',
            {},
            400,
            "unknown_field",
        ),
        ("POST", "/v2/models/plants/infer?on_error=partial", b"{}", {}, 400, "bad_body"),
        ("GET", "/v1/models/trees", None, {}, 404, "unknown_model"),
        ("GET", "/v1/models/plants/versions/x", None, {}, 400, "wrong_type"),
        ("GET", "/nowhere", None, {}, 404, "no_such_route"),
        ("PUT", "/livez", b"", {}, 405, "method_not_allowed"),
    ],
)
def test_every_refusal_is_the_one_document(
    server: LiveServer, method: str, path: str, body: bytes | None, headers: dict[str, str], status: int, code: str
) -> None:
    """Whatever fails, on whatever route, answers in one shape with a stable code."""
    reply = server.request(method, path, body, headers)
    document = reply.json()
    assert (reply.status, document["code"]) == (status, code)
    assert set(document) == DOCUMENT_KEYS
    assert document["error"]
    assert document["request_id"] == reply.headers["x-request-id"]
    assert reply.headers["content-type"] == "application/json"


def test_unsafe_request_ids_are_replaced(server: LiveServer) -> None:
    """An id goes into headers and logs, so only plain ones are taken over."""
    reply = server.predict("plants", {"instances": [GOOD]}, **{"x-request-id": "a b<script>"})
    assert reply.headers["x-request-id"] != "a b<script>"


def test_text_in_v2_is_never_taken_for_base64(server: LiveServer) -> None:
    """BYTES in JSON is text, even when it happens to be valid base64."""
    text = base64.b64encode(b"hello").decode()
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": [text, "hello"]}]}
    reply = server.request("POST", "/v2/models/greeting/infer", json.dumps(body))
    assert reply.json()["outputs"][0]["data"] == [0, 1]


def test_a_chunked_body_over_the_limit_is_refused_although_it_declared_nothing(server: LiveServer) -> None:
    """The bound holds for what arrives, not for what was promised."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"POST /v1/models/plants:predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        client.sendall(b"7000\r\n" + b"x" * 0x7000 + b"\r\n0\r\n\r\n")
        assert client.recv(200).startswith(b"HTTP/1.1 413")


def test_a_caller_who_hangs_up_is_counted_and_costs_nobody_anything(server: LiveServer) -> None:
    """Half a body and a closed connection leave nothing behind."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"POST /v1/models/plants:predict HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    assert server.predict("plants", {"instances": [GOOD]}).status == 200
    for _ in range(200):
        if server.metric("samegraph_cancelled_requests_total") >= 1:
            break
    assert server.metric("samegraph_in_flight_requests") == 0
    assert server.metric("samegraph_cancelled_requests_total") == 1


# --- readings -------------------------------------------------------------------------------------------------------------


def test_readiness_names_its_models(server: LiveServer) -> None:
    """A balancer reads the status, a person the body."""
    reply = server.get("/readyz")
    assert reply.status == 200
    assert reply.json() == {"ready": True, "status": "ready", "reasons": [], "degraded": [], "models": ["greeting", "plants"]}
    assert server.get("/livez").json() == {"live": True}


def test_status_has_tensorflow_servings_shape(server: LiveServer) -> None:
    """Existing V1 clients read the state of a version."""
    status = server.get("/v1/models/plants").json()
    assert [v["version"] for v in status["model_version_status"]] == ["2", "1"]
    assert {v["state"] for v in status["model_version_status"]} == {"AVAILABLE"}
    assert server.get("/v1/models").json() == {"models": ["greeting", "plants"]}


def test_metadata_says_what_was_promised_and_what_was_proven(server: LiveServer) -> None:
    """The proof is readable by whoever calls the model."""
    metadata = server.get("/v1/models/plants/versions/1/metadata").json()
    assert [f["name"] for f in metadata["fields"]] == ["size", "kind"]
    assert metadata["proof"]["proven"]
    assert metadata["proof"]["golden_samples"] == len(build.samples())
    assert metadata["execution"]["one_graph"]


def test_metrics_count_requests_by_status_and_time_every_stage(server: LiveServer) -> None:
    """What an operator alerts on is there and moves."""
    labels = {"model": "plants", "version": "1"}
    before = server.metric("samegraph_requests_total", status="200", **labels)
    server.predict("plants", {"instances": [GOOD, GOOD]}, "/versions/1")
    assert server.metric("samegraph_requests_total", status="200", **labels) == before + 1
    for stage in ("decode", "queue", "batch", "encode"):
        assert server.metric("samegraph_stage_duration_seconds_count", stage=stage, **labels) > 0
    assert server.metric("samegraph_batch_size_count", **labels) > 0
    assert server.metric("samegraph_golden_check", **labels) == 1
    assert server.metric("samegraph_model_state", state="ready", **labels) == 1
    assert server.metric("process_resident_memory_bytes") > 0


def test_unknown_models_do_not_make_new_series(server: LiveServer) -> None:
    """Label values come from the closed set, whatever callers send."""
    for name in ("a1", "b2", "c3"):
        server.predict(name, {})
    body = server.get("/metrics").body.decode()
    assert 'model="_unknown"' in body
    assert not any(f'model="{name}"' in body for name in ("a1", "b2", "c3"))


def test_the_scrape_is_valid_in_both_formats(server: LiveServer) -> None:
    """Prometheus asks for OpenMetrics, people for text."""
    from prometheus_client.openmetrics.parser import text_string_to_metric_families

    accept = "application/openmetrics-text; version=1.0.0"
    reply = server.request("GET", "/metrics", headers={"accept": accept})
    assert reply.headers["content-type"].startswith("application/openmetrics-text")
    families = list(text_string_to_metric_families(reply.body.decode()))  # type: ignore[no-untyped-call]
    assert len(families) > 20


# --- admin ----------------------------------------------------------------------------------------------------------------


def test_the_repository_index_lists_versions_with_their_states(server: LiveServer) -> None:
    """The V2 repository extension's read side is open; it changes nothing."""
    index = json.loads(server.request("POST", "/v2/repository/index", b'{"ready": true}', {"content-type": "application/json"}).body)
    assert [(m["name"], m["version"], m["state"]) for m in index] == [
        ("greeting", "1", "READY"),
        ("plants", "1", "READY"),
        ("plants", "2", "READY"),
    ]


def test_routes_that_change_state_are_closed_without_a_token(server: LiveServer) -> None:
    """No token configured: nobody gets in."""
    reply = server.request("POST", "/admin/reload", headers={"authorization": "Bearer "})
    assert (reply.status, reply.json()["code"]) == (401, "unauthorized")
    assert reply.headers["www-authenticate"] == "Bearer"


def test_the_admin_token_opens_the_reload_and_no_other_word_does(tmp_path: Path) -> None:
    """A package that was copied in is served when the reload answers."""
    token = "correct horse battery"
    with live_server(tmp_path, admin={"token": token}) as own:
        pack(build.draft(), build.samples(), tmp_path)
        assert own.request("POST", "/admin/reload", headers={"authorization": "Bearer wrong horse battery"}).status == 401
        reply = own.request("POST", "/admin/reload", headers={"authorization": f"Bearer {token}"})
        assert [(m["name"], m["state"]) for m in reply.json()] == [("plants", "READY")]
        assert own.predict("plants", {"instances": [GOOD]}).status == 200


def test_the_series_that_alerts_read_begin_at_zero(server: LiveServer) -> None:
    """A counter that appears with its first event shows Prometheus no increase, and the first failures would be missed."""
    text = server.get("/metrics").body.decode()
    for status in ("400", "429", "500", "503", "504"):
        assert f'samegraph_requests_total{{model="plants",protocol="v2",status="{status}",version=""}} ' in text
    assert 'samegraph_requests_total{model="plants",protocol="v2",status="200",version="1"} ' in text
