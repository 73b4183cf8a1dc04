"""V2 on the wire, and servers of other makers: which protocol they speak is found out, not asked."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from samegraph_client import AnswerNotUnderstood, AsyncClient, Client, NotFound, RawInputInvalid
from samegraph_client.v2 import Input, Signature, encode, holds_arrays, predictions
from scripted_server import Received, Reply, ScriptedServer, predicted, refused, scripted_server

FLOATS = Signature((Input("x", "FP32", (2, 3)),), binary=True)
ROW = Signature((Input("city", "BYTES", (1,)), Input("size", "FP64", (1,))), binary=True)


def parts(content: bytes, headers: dict[str, str]) -> tuple[Any, bytes]:
    """Split a binary V2 body into its document and what follows."""
    size = int(headers.get("inference-header-content-length", len(content)))
    return json.loads(content[:size]), content[size:]


def test_arrays_travel_as_their_memory() -> None:
    """One array is one instance; several are stacked."""
    arrays = [np.arange(6, dtype="<f4").reshape(2, 3) + n for n in range(2)]
    body = encode(arrays, FLOATS)
    document, tail = parts(body.content, dict(body.headers))
    assert document == {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 2, 3], "parameters": {"binary_data_size": 48}}]}
    assert np.array_equal(np.frombuffer(tail, "<f4").reshape(2, 2, 3), np.stack(arrays))
    assert not body.single
    assert encode(arrays[0], FLOATS).single


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(np.arange(6, dtype="f8").reshape(2, 3), id="another type"),
        pytest.param(np.arange(6, dtype=">f4").reshape(2, 3), id="big-endian"),
        pytest.param(np.arange(6, dtype="i4").reshape(2, 3), id="integers"),
    ],
)
def test_other_memory_travels_as_text(array: np.ndarray) -> None:
    """Nothing is converted here: what is not the model's datatype is the server's to judge."""
    body = encode(array, FLOATS)
    document, tail = parts(body.content, dict(body.headers))
    (tensor,) = document["inputs"]
    assert (tensor["shape"], tensor["data"], tail) == ([1, 2, 3], [0, 1, 2, 3, 4, 5], b"")


def test_non_contiguous_array_is_row_major() -> None:
    """A transposed view is sent as it reads, not as it lies."""
    array = np.arange(6, dtype="<f4").reshape(3, 2).T
    _, tail = parts(encode(array, FLOATS).content, dict(encode(array, FLOATS).headers))
    assert np.array_equal(np.frombuffer(tail, "<f4").reshape(2, 3), array)


def test_rows_become_columns() -> None:
    """Mappings are one instance each; bytes have their length before them, missing values are null."""
    body = encode([{"city": "Bonn", "size": 1.5}, {"city": None, "size": None}], ROW)
    document, _ = parts(body.content, dict(body.headers))
    assert document == {
        "inputs": [
            {"name": "city", "datatype": "BYTES", "shape": [2, 1], "data": ["Bonn", None]},
            {"name": "size", "datatype": "FP64", "shape": [2, 1], "data": [1.5, None]},
        ]
    }


@pytest.mark.parametrize("binary", [True, False])
def test_images_are_bytes(binary: bool) -> None:
    """With the extension an image is its bytes; without it base64 that says so."""
    body = encode([b"abc", b"de"], Signature((Input("image", "BYTES", (1,)),), binary))
    document, tail = parts(body.content, dict(body.headers))
    (tensor,) = document["inputs"]
    assert tensor["shape"] == [2, 1]
    if binary:
        assert tail == struct.pack("<I", 3) + b"abc" + struct.pack("<I", 2) + b"de"
        assert tensor["parameters"] == {"binary_data_size": len(tail)}
    else:
        assert tensor["parameters"] == {"content_type": "base64"}
        assert tensor["data"] == [base64.b64encode(b"abc").decode(), base64.b64encode(b"de").decode()]


@pytest.mark.parametrize(
    ("raw", "signature", "words"),
    [
        ([], FLOATS, "the list is empty"),
        ({"city": "Bonn"}, ROW, r"missing \['size'\]"),
        ({"city": "Bonn", "size": 1, "colour": 2}, ROW, r"unknown \['colour'\]"),
        (3.0, ROW, "mapping of the model's inputs city, size"),
        ([np.zeros((2, 3)), np.zeros((3, 2))], FLOATS, "differs in shape"),
    ],
)
def test_what_does_not_fit_is_named(raw: object, signature: Signature, words: str) -> None:
    """Nothing is sent that cannot be right."""
    with pytest.raises(RawInputInvalid, match=words):
        encode(raw, signature)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (np.zeros(3), True),
        ([np.zeros(3)] * 2, True),
        ({"x": np.zeros(3), "y": 1}, True),
        ({"x": 1}, False),
        (np.float64(1), False),
        ([], False),
        (b"a", False),
    ],
)
def test_arrays_are_told_from_the_rest(raw: object, expected: bool) -> None:
    """Only what has dimensions is an array."""
    assert holds_arrays(raw) is expected


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ([{"name": "y", "shape": [2], "data": [1, 2]}], [1, 2]),
        ([{"name": "y", "shape": [2, 2], "data": [1, 2, 3, 4]}], [[1, 2], [3, 4]]),
        ([{"name": "y", "shape": [1, 2, 1], "data": [[[1], [2]]]}], [[[1], [2]]]),
        (
            [{"name": "a", "shape": [2], "data": ["p", "q"]}, {"name": "b", "shape": [2, 1], "data": [1, 2]}],
            [{"a": "p", "b": [1]}, {"a": "q", "b": [2]}],
        ),
    ],
)
def test_answers_become_predictions(outputs: list[object], expected: list[object]) -> None:
    """One per instance, as V1 has them."""
    assert predictions({"outputs": outputs}) == expected


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"outputs": []},
        {"outputs": [{"name": "y"}]},
        {"outputs": [{"name": "y", "shape": [3], "data": [1]}]},
        {"outputs": [{"name": "a", "shape": [1], "data": [1]}, {"name": "b", "shape": [2], "data": [1, 2]}]},
    ],
)
def test_other_answers_are_errors(document: object) -> None:
    """A 200 that is not V2 is never mistaken for a prediction."""
    with pytest.raises(AnswerNotUnderstood):
        predictions(document)


# -- servers that are not ours --------------------------------------------------------------------------------------------------------


@contextmanager
def foreign(answer: Callable[[Received], Reply], documents: dict[str, object]) -> Iterator[ScriptedServer]:
    """Run a server that answers by looking at the request."""
    with scripted_server(predicted(0)) as server:
        server.documents.update(documents)

        def next_reply(request: Received) -> Reply:
            server.received.append(request)
            return answer(request)

        server.next_reply = next_reply  # type: ignore[method-assign]
        yield server


def tf_serving(request: Received) -> Reply:
    """Answer as a plain V1 server does: JSON only, one error member, and no hints."""
    try:
        instances = json.loads(request.body)["instances"]
    except ValueError:
        return refused(400, "JSON Parse error: Invalid value. at offset: 0")
    return predicted(*([len(str(instance))] for instance in instances))


def plain_v2(request: Received) -> Reply:
    """Answer as a plain V2 server does."""
    if not request.path.startswith("/v2/"):
        return Reply(status=404, document={"detail": "Not Found"})
    (tensor,) = json.loads(request.body)["inputs"]
    n = tensor["shape"][0]
    return Reply(document={"model_name": "m", "outputs": [{"name": "y", "datatype": "INT64", "shape": [n], "data": list(range(n))}]})


V2_DOCUMENTS: dict[str, object] = {
    "/v2": {"name": "other", "version": "1", "extensions": []},
    "/v2/models/m": {"name": "m", "inputs": [{"name": "x", "datatype": "FP64", "shape": [-1, 2]}], "outputs": []},
}


def test_plain_v1_server_gets_json() -> None:
    """Images go as base64 to a server that takes no raw bodies; that is found out once, and a burst completes."""
    with foreign(tf_serving, {}) as server, Client(server.url) as client:
        outcomes = list(client.predict_many("m", [b"\xff\xd8\xff%d" % n for n in range(60)]))
        assert client.predict("m", {"x": 1}).value == [len("{'x': 1}")]
        assert not client.gate.follows_server
    assert all(outcome.ok for outcome in outcomes)
    raw = [request for request in server.received if request.headers["content-type"] != "application/json"]
    assert 1 <= len(raw) <= 24


@pytest.mark.parametrize("face", ["sync", "async"])
def test_plain_v2_server_is_found_out(face: str) -> None:
    """A server without V1 answers 404 there, and a burst completes in V2 JSON."""

    async def awaited(url: str) -> list[object]:
        async with AsyncClient(url) as client:
            return [outcome.value async for outcome in client.predict_many("m", [[[1.0, n]] for n in range(40)])]

    with foreign(plain_v2, V2_DOCUMENTS) as server:
        if face == "sync":
            with Client(server.url) as client:
                values = [outcome.value for outcome in client.predict_many("m", [[[1.0, n]] for n in range(40)])]
        else:
            values = asyncio.run(awaited(server.url))
    assert values == [[0]] * 40
    assert sum(request.path.startswith("/v1/") for request in server.received) <= 24


def test_v2_can_be_asked_for() -> None:
    """wire="v2" goes there at once, and refuses what V2 has no word for."""
    with foreign(plain_v2, V2_DOCUMENTS) as server, Client(server.url, wire="v2") as client:
        assert client.predict("m", [1.0, 2.0]).predictions == [0, 1]
        with pytest.raises(RawInputInvalid, match="neither labels"):
            client.predict("m", [1.0], label="stable")
    assert all(request.path == "/v2/models/m/infer" for request in server.received)


def test_server_that_speaks_neither_shows_its_first_refusal() -> None:
    """The error is the one of the request that was asked for."""
    page = Reply(status=404, body=b"<h1>nginx</h1>")
    with scripted_server(page) as server, Client(server.url) as client, pytest.raises(NotFound, match="nginx"):
        client.predict("m", {"x": 1})


def test_arrays_use_binary_tensors_where_the_server_has_them() -> None:
    """The metadata is asked for once; a server without the extension gets V1 JSON."""

    def answer(request: Received) -> Reply:
        if request.path.startswith("/v1"):
            return predicted("v1", samegraph_model="m")
        document, _ = parts(request.body, dict(request.headers))
        assert document["inputs"][0]["parameters"] == {"binary_data_size": 16}
        return Reply(document={"outputs": [{"name": "y", "datatype": "BYTES", "shape": [1], "data": ["v2"]}]})

    array = np.zeros(2)
    with foreign(answer, {**V2_DOCUMENTS, "/v2": {"name": "samegraph", "extensions": ["binary_tensor_data"]}}) as server:
        with Client(server.url) as client:
            assert [client.predict("m", array).value for _ in range(3)] == ["v2"] * 3
            assert client.predict("m", array, label="stable").value == "v1"
        assert server.asked == ["/v2/models/m", "/v2"]
    with foreign(answer, V2_DOCUMENTS) as server, Client(server.url) as client:
        assert client.predict("m", array).value == "v1"
    with foreign(answer, {}) as server, Client(server.url) as client:
        assert client.predict("m", array).value == "v1"
