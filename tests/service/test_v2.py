"""V2 over HTTP as its clients speak it: tensors in bytes both ways, classification, metadata, statistics, repository."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import odd_packages as odd
import package_builders as build
import pytest
from live_server import LiveServer, Reply, live_server
from samegraph_transforms.pack import pack

TOKEN = "a-token-of-sixteen"
ADMIN = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    repository = tmp_path_factory.mktemp("models")
    pack(build.draft(), build.samples(), repository)
    odd.pack_tensors(repository)
    odd.pack_greeting(repository)
    with live_server(repository, limits={"max_instances": 100}, admin={"token": TOKEN}) as live:
        yield live


def strings(*texts: str | bytes) -> bytes:
    encoded = [t.encode() if isinstance(t, str) else t for t in texts]
    return b"".join(struct.pack("<I", len(t)) + t for t in encoded)


def post(server: LiveServer, model: str, document: Any, *tails: bytes, **headers: str) -> Reply:
    text = json.dumps(document).encode()
    sent = {"inference-header-content-length": str(len(text)), "content-type": "application/octet-stream", **headers}
    return server.request("POST", f"/v2/models/{model}/infer", text + b"".join(tails), sent)


def probabilities(server: LiveServer, *rows: build.Row) -> list[list[float]]:
    """What V1 answers to the same rows."""
    return [p["probability"] for p in server.predict("plants", {"instances": rows}).json()["predictions"]]


def plants(size: bytes, kind: bytes, n: int, datatype: str = "FP64", **more: Any) -> dict[str, Any]:
    return {
        "inputs": [
            {"name": "size", "datatype": datatype, "shape": [n, 1], "parameters": {"binary_data_size": len(size)}},
            {"name": "kind", "datatype": "BYTES", "shape": [n], "parameters": {"binary_data_size": len(kind)}},
        ],
        **more,
    }


def unpacked(reply: Reply) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the JSON of an answer and the bytes of each binary output."""
    length = int(reply.headers["inference-header-content-length"])
    document, at, found = json.loads(reply.body[:length]), length, {}
    for output in document["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is not None:
            found[output["name"]] = reply.body[at : at + size]
            at += size
    assert at == len(reply.body)
    return document, found


def test_tensors_travel_in_bytes_both_ways(server: LiveServer) -> None:
    """Binary in, binary out is bit-equal to what V1 answers; NaN is missing, and the JSON's order decides."""
    size = np.array([r["size"] if r["size"] is not None else np.nan for r in build.ROWS], "<f8").tobytes()
    kind = strings(*(r["kind"] for r in build.ROWS))
    reply = post(server, "plants", plants(size, kind, 5, id="b1", parameters={"binary_data_output": True}), size, kind)
    assert reply.status == 200, reply.body
    assert reply.headers["content-type"] == "application/octet-stream"
    document, tails = unpacked(reply)
    want = build.reference(build.ROWS)
    assert document["id"] == "b1"
    assert tails["label"] == strings(*want["label"])
    assert tails["probability"] == np.array(probabilities(server, *build.ROWS), "<f4").tobytes()


def test_json_and_bytes_mix_in_one_request_and_one_answer(server: LiveServer) -> None:
    """One input in JSON, one in bytes; one output each way, the output's own wish winning."""
    kind = strings("moss")
    document = {
        "inputs": [
            {"name": "size", "datatype": "FP64", "shape": [1], "data": [1.5]},
            {"name": "kind", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(kind)}},
        ],
        "parameters": {"binary_data_output": True},
        "outputs": [{"name": "label", "parameters": {"binary_data": False}}, {"name": "probability"}],
    }
    answer, tails = unpacked(post(server, "plants", document, kind))
    row = {"size": 1.5, "kind": "moss"}
    assert [o.get("data") for o in answer["outputs"]] == [list(build.reference([row])["label"]), None]
    assert tails == {"probability": np.array(probabilities(server, row), "<f4").tobytes()}


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("INT8", [-2, 7]), ("INT16", [-2, 7]), ("INT32", [-2, 7]), ("INT64", [-2, 7]),
        ("UINT8", [2, 7]), ("UINT16", [2, 7]), ("UINT32", [2, 7]), ("UINT64", [2, 7]),
        ("FP16", [0.1, 7]), ("FP32", [0.1, 7]), ("FP64", [0.1, 7]), ("BF16", [1.5, -3]),
    ],
)  # fmt: skip
def test_every_number_type_widens_into_a_number(server: LiveServer, datatype: str, values: list[float]) -> None:
    """In bytes, and where JSON can hold it in JSON too, to the same answer: a value means what its datatype holds."""
    if datatype == "BF16":
        array = (np.array(values, "<f4").view("<u4") >> 16).astype("<u2")
        exact = np.array(values)
    else:
        name = datatype.lower().replace("fp", "float")
        array = np.array(values, np.dtype(name).newbyteorder("<"))
        exact = array.astype(np.float64)
    kind = strings("moss", "oak")
    outputs = {"outputs": [{"name": "probability"}]}
    sent = post(server, "plants", plants(array.tobytes(), kind, 2, datatype, **outputs), array.tobytes(), kind)
    assert sent.status == 200, sent.body
    want = probabilities(server, {"size": float(exact[0]), "kind": "moss"}, {"size": float(exact[1]), "kind": "oak"})
    assert sent.json()["outputs"][0]["data"] == want[0] + want[1]
    if datatype != "BF16":
        document = plants(b"", kind, 2, datatype, **outputs)
        document["inputs"][0] = {"name": "size", "datatype": datatype, "shape": [2], "data": values}
        assert post(server, "plants", document, kind).json()["outputs"] == sent.json()["outputs"]


def test_fp32_in_json_is_read_as_float32(server: LiveServer) -> None:
    """0.1 declared FP32 is float32's 0.1, not float64's; a number beyond float32 is refused."""
    kind = {"name": "kind", "datatype": "BYTES", "shape": [1], "data": ["moss"]}

    def reply_to(value: float) -> Reply:
        size = {"name": "size", "datatype": "FP32", "shape": [1], "data": [value]}
        return server.request("POST", "/v2/models/plants/infer", json.dumps({"inputs": [size, kind]}))

    (want,) = probabilities(server, {"size": float(np.float32(0.1)), "kind": "moss"})
    assert reply_to(0.1).json()["outputs"][1]["data"] == want
    reply = reply_to(1e39)
    assert reply.status == 400
    assert (reply.json()["code"], reply.json()["instance"]) == ("out_of_range", 0)


@pytest.mark.parametrize(
    ("tails", "length", "change", "code"),
    [
        ((b"",), None, {}, "truncated"),
        ((struct.pack("<d", 1), strings("moss"), b"x"), None, {}, "wrong_shape"),
        ((struct.pack("<d", 1), b"\x05\0\0\0mos"), None, {}, "truncated"),
        ((struct.pack("<d", 1), strings("moss")), "7", {}, "malformed_json"),
        ((struct.pack("<d", 1), strings("moss")), "-1", {}, "bad_body"),
        ((struct.pack("<d", 1), strings("moss")), "99999", {}, "bad_body"),
        ((struct.pack("<d", 1), strings(b"\xff\xfe..")), None, {}, "undecodable"),
        ((struct.pack("<d", 1), strings("moss")), None, {"datatype": "INT64", "shape": [2]}, "wrong_shape"),
        ((struct.pack("<q", 2**60), strings("moss")), None, {"datatype": "INT64"}, "out_of_range"),
        ((struct.pack("<d", 1), strings("moss")), None, {"parameters": {"binary_data_size": -1}}, "bad_body"),
        ((struct.pack("<d", 1), strings("moss")), None, {"data": [1]}, "bad_body"),
        ((struct.pack("<d", 1), strings("moss")), None, {"datatype": "FP8"}, "wrong_dtype"),
        ((struct.pack("<d", 5000), strings("moss")), None, {}, "out_of_range"),
        ((struct.pack("<d", np.inf), strings("moss")), None, {}, "out_of_range"),
    ],
)
def test_bytes_that_do_not_fit_are_refused(
    server: LiveServer, tails: tuple[bytes, ...], length: str | None, change: dict[str, Any], code: str
) -> None:
    """Every lie about sizes is a 400 of its own."""
    document = plants(b"12345678", b"12345678", 1)
    document["inputs"][0].update(change)
    headers = {} if length is None else {"inference-header-content-length": length}
    reply = post(server, "plants", document, *tails, **headers)
    assert (reply.status, reply.json()["code"]) == (400, code), reply.body


def test_a_raw_binary_request_is_one_instance_of_the_one_input(server: LiveServer) -> None:
    """With a header of 0 the body is the input's bytes and all outputs come back in bytes; a model of two inputs refuses."""
    reply = server.request("POST", "/v2/models/plants/infer", b"12345678", {"inference-header-content-length": "0"})
    assert (reply.status, reply.json()["code"]) == (400, "bad_body")
    reply = server.request("POST", "/v2/models/greeting/infer", b"hello", {"inference-header-content-length": "0"})
    _, tails = unpacked(reply)
    assert tails == {"hit": struct.pack("<q", 1)}


def test_classification_names_the_largest(server: LiveServer) -> None:
    """`value:index:label`, as Triton writes it; strings have no largest."""
    size, kind = struct.pack("<dd", 1.5, 7), strings("moss", "fern")
    asked = [{"name": "probability", "parameters": {"classification": 2}}]
    (output,) = post(server, "plants", plants(size, kind, 2, outputs=asked), size, kind).json()["outputs"]
    want = np.array(probabilities(server, {"size": 1.5, "kind": "moss"}, {"size": 7, "kind": "fern"}), np.float32)
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
    best = [[f"{row[i]:f}:{i}:{build.LABELS[i]}" for i in np.argsort(-row)[:2]] for row in want]
    assert output["data"] == best[0] + best[1]
    reply = post(server, "plants", plants(size, kind, 2, outputs=[{"name": "label", "parameters": {"classification": 1}}]), size, kind)
    assert (reply.status, reply.json()["field"]) == (400, "label")


@pytest.mark.parametrize(("priority", "status"), [(0, 200), (1, 200), (2**64 - 1, 200), (-1, 400), (1.5, 400), ("1", 400), (True, 400)])
def test_priority_is_a_whole_number(server: LiveServer, priority: object, status: int) -> None:
    """As Triton's clients send it; anything else names the parameter."""
    size, kind = struct.pack("<d", 1), strings("moss")
    reply = post(server, "plants", plants(size, kind, 1, parameters={"priority": priority}), size, kind)
    assert reply.status == status
    assert status == 200 or reply.json()["field"] == "parameters.priority"


def test_an_unknown_output_is_refused_before_the_model_runs(server: LiveServer) -> None:
    """No execution is spent on a request that cannot be answered."""
    size, kind = struct.pack("<d", 1), strings("moss")
    before = server.metric("samegraph_batch_size_count")
    reply = post(server, "plants", plants(size, kind, 1, outputs=[{"name": "nothing"}]), size, kind)
    assert (reply.status, reply.json()["field"]) == (400, "nothing")
    assert server.metric("samegraph_batch_size_count") == before


@pytest.mark.parametrize(
    "document",
    [
        plants(b"12345678", strings("moss"), 1, parameters={"sequence_id": 5, "sequence_start": True}),
        plants(b"12345678", strings("moss"), 1, outputs=[{"name": "label", "parameters": {"shared_memory_region": "r"}}]),
    ],
    ids=["sequence", "shared-memory"],
)
def test_what_the_server_does_not_have_is_refused_by_name(server: LiveServer, document: Any) -> None:
    """Ignoring a sequence or a shared memory region would give an answer that is wrong or lost."""
    reply = post(server, "plants", document, b"12345678", strings("moss"))
    assert (reply.status, reply.json()["code"]) == (400, "unsupported_extension")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/systemsharedmemory/status"),
        ("POST", "/v2/systemsharedmemory/region/r/register"),
        ("POST", "/v2/cudasharedmemory/unregister"),
        ("GET", "/v2/trace/setting"),
        ("POST", "/v2/models/plants/trace/setting"),
        ("GET", "/v2/logging"),
    ],
)
def test_routes_of_refused_extensions_say_so(server: LiveServer, method: str, path: str) -> None:
    """A Triton client reads `error`; an unknown route would leave it guessing."""
    reply = server.request(method, path, b"{}" if method == "POST" else None)
    assert (reply.status, reply.json()["code"]) == (400, "unsupported_extension")


def test_metadata_config_and_statistics_agree(server: LiveServer) -> None:
    """What perf_analyzer puts together: names and datatypes of one are those of the other, and statistics count."""
    metadata, config = server.get("/v2/models/plants").json(), server.get("/v2/models/plants/versions/1/config").json()
    assert [i["name"] for i in metadata["inputs"]] == [i["name"] for i in config["input"]] == ["size", "kind"]
    assert [i["data_type"] for i in config["input"]] == ["TYPE_FP64", "TYPE_STRING"]
    assert config["max_batch_size"] == 8
    assert "binary_tensor_data" in server.get("/v2").json()["extensions"]
    (before,) = server.get("/v2/models/plants/stats").json()["model_stats"]
    size, kind = struct.pack("<ddd", 1, 2, 3), strings("moss", "oak", "fern")
    assert post(server, "plants", plants(size, kind, 3), size, kind).status == 200
    (after,) = server.get("/v2/models/plants/versions/1/stats").json()["model_stats"]
    assert after["inference_count"] - before["inference_count"] == 3
    assert after["execution_count"] - before["execution_count"] == 1
    assert after["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"] == 1
    assert after["inference_stats"]["compute_infer"]["ns"] > before["inference_stats"]["compute_infer"]["ns"]
    assert 3 in [b["batch_size"] for b in after["batch_stats"]]
    assert after["last_inference"] > 1.7e12
    assert {m["name"] for m in server.get("/v2/models/stats").json()["model_stats"]} == {"greeting", "plants", "tensors"}


def test_a_model_is_unloaded_and_loaded_by_its_operator(server: LiveServer) -> None:
    """With the token; the readiness of the process does not hang on a model its operator does not want served."""
    path = "/v2/repository/models/tensors"
    assert server.request("POST", f"{path}/unload", b"{}").status == 401
    assert server.request("POST", f"{path}/unload", b'{"parameters": {"unload_dependents": false}}', ADMIN).status == 200
    assert server.get("/v2/models/tensors/ready").status == 503
    index = {e["name"]: e for e in server.request("POST", "/v2/repository/index").json()}
    assert index["tensors"]["state"] == "UNAVAILABLE"
    assert "unloaded" in index["tensors"]["reason"]
    assert server.get("/readyz").status == 200
    server.await_(server.service.repository.sync())
    assert server.get("/v2/models/tensors/ready").status == 503
    assert server.request("POST", f"{path}/load", b'{"parameters": {"config": "{}"}}', ADMIN).status == 400
    assert server.request("POST", f"{path}/load", None, ADMIN).status == 200
    assert server.get("/v2/models/tensors/ready").status == 200
    assert server.request("POST", "/v2/repository/models/nothing/load", None, ADMIN).status == 404
