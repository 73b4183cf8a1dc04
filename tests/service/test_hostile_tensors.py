"""V2 requests that lie about their tensors: each is refused at once with a reason, and nothing is built for what was only declared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import odd_packages as odd
import package_builders as build
import pytest
from live_server import LiveServer, Reply, live_server
from samegraph_transforms.pack import pack

HUGE = 10**30


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    repository = tmp_path_factory.mktemp("models")
    pack(build.draft(), build.samples(), repository)
    odd.pack_tensors(repository)
    odd.pack_lists(repository)
    with live_server(repository, limits={"max_instances": 100}) as live:
        yield live


def x(shape: object = (1, 2, 3), data: object = (1, 2, 3, 4, 5, 6), datatype: object = "FP32") -> dict[str, Any]:
    return {"name": "x", "datatype": datatype, "shape": shape, "data": data}


S = {"name": "s", "datatype": "BYTES", "shape": [1, 2], "data": ["a", "b"]}


def infer(server: LiveServer, model: str, document: object) -> Reply:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return server.request("POST", f"/v2/models/{model}/infer", body)


def test_flat_and_nested_data_mean_the_same(server: LiveServer) -> None:
    """The good requests the bad ones below are made from."""
    for tensor in (x(), x(data=[[[1, 2, 3], [4, 5, 6]]])):
        reply = infer(server, "tensors", {"inputs": [tensor, S]})
        assert reply.status == 200
        assert [o["data"] for o in reply.json()["outputs"]] == [[21.0], ["a", "b"]]


@pytest.mark.parametrize(
    ("tensor", "code"),
    [
        (x([-1, 2, 3]), "wrong_shape"),
        (x([-1, -2, 3]), "wrong_shape"),
        (x([HUGE]), "wrong_shape"),
        (x([HUGE, HUGE, HUGE]), "wrong_shape"),
        (x([HUGE, 0, HUGE], []), "wrong_shape"),
        (x([2**32, 2**32, 1], []), "wrong_shape"),  # the product is 0 in 64 bits
        (x([2**31, 0, 3], []), "wrong_shape"),
        (x([1, 10**9, 0], []), "wrong_shape"),
        (x([4096, 0, 0], []), "too_many_instances"),
        (x([0, 2, 3], []), "wrong_shape"),  # one instance of strings, none of numbers
        (x([1] * 5000, [1]), "wrong_shape"),
        (x([2] * 100_000, [1]), "wrong_shape"),
        (x([1, 6]), "wrong_shape"),
        (x([], [1]), "wrong_shape"),
        (x([1.5]), "bad_body"),
        (x(["1"]), "bad_body"),
        (x(None), "bad_body"),
        (x(datatype="INT64"), "wrong_dtype"),
        (x(datatype="BYTES"), "wrong_dtype"),
        (x(datatype="F" * 10_000), "wrong_dtype"),
        (x(datatype=None), "bad_body"),
        (x(data=None), "bad_body"),
        (x(data={"a": 1}), "bad_body"),
        (x(data=["NaN", 2, 3, 4, 5, 6]), "wrong_type"),
        (x(data=[None] * 6), "wrong_type"),
        (x(data=[1e300, 2, 3, 4, 5, 6]), "out_of_range"),
        (x(data=[[[1, 2], [3, 4, 5, 6]]]), "wrong_shape"),
        (x(data=[[1], 2, 3, 4, 5, 6]), "wrong_shape"),
        (x(data=[1, [2], 3, 4, 5, 6]), "wrong_shape"),
    ],
    ids=lambda v: v if isinstance(v, str) else f"{str(v['shape'])[:30]}-{v['datatype']!s:.8}-{str(v['data'])[:20]}",
)
def test_a_tensor_that_is_not_what_it_says_is_refused(server: LiveServer, tensor: dict[str, Any], code: str) -> None:
    """The answer comes at once, names the tensor, and repeats no more of it than a person can read."""
    reply = infer(server, "tensors", {"inputs": [tensor, S]})
    assert (reply.status, reply.json()["code"]) == (413 if code == "too_many_instances" else 400, code)
    assert len(reply.body) < 1000


@pytest.mark.parametrize(
    ("document", "code"),
    [
        ({"inputs": [x(), x(), S]}, "bad_body"),
        ({"inputs": []}, "no_instances"),
        ({}, "bad_body"),
        ({"inputs": [x([2, 2, 3], [1] * 12), S]}, "wrong_shape"),
        ({"inputs": [x(), S], "outputs": [{"name": "nothing"}]}, "unknown_field"),
        ({"inputs": [x(), S], "outputs": "echo"}, "bad_body"),
        ({"inputs": [x(), S], "id": 5}, "bad_body"),
        ({"inputs": [x(), S], "parameters": [1]}, "bad_body"),
        (b'{"id": "\\ud800", "inputs": []}', "malformed_json"),
        (
            b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1,2,3], "data": ' + b"[" * 90_000 + b"]" * 90_000 + b"}]}",
            "malformed_json",
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else str(v)[:60],
)
def test_a_request_that_is_not_of_the_protocol_is_refused(server: LiveServer, document: object, code: str) -> None:
    """Whatever member is wrong."""
    reply = infer(server, "tensors", document)
    assert (reply.status, reply.json()["code"]) == (400, code)


@pytest.mark.parametrize("timeout", ["1", -1, 1.5, True, {}, [1]], ids=str)
def test_a_timeout_that_is_no_number_of_microseconds_is_refused(server: LiveServer, timeout: object) -> None:
    """A deadline that cannot be understood must not be dropped silently."""
    reply = infer(server, "tensors", {"inputs": [x(), S], "parameters": {"timeout": timeout}})
    assert (reply.status, reply.json()["field"]) == (400, "parameters.timeout")


@pytest.mark.parametrize("timeout", [0, None, 10**18, 10**400], ids=["zero", "null", "ages", "more-than-a-float-holds"])
def test_no_timeout_and_absurdly_long_ones_are_bounded_by_the_server(server: LiveServer, timeout: object) -> None:
    """Triton's 0 is no timeout; a longer one than the server's own is the server's own."""
    assert infer(server, "tensors", {"inputs": [x(), S], "parameters": {"timeout": timeout}}).status == 200


@pytest.mark.parametrize(("datatype", "value"), [("UINT8", 300), ("UINT64", -1), ("INT8", 1.5), ("INT64", 2**63), ("INT32", 1e300)])
def test_an_integer_datatype_holds_what_it_can_hold(server: LiveServer, datatype: str, value: float) -> None:
    """A number field takes any number, but not one that its own declaration rules out."""
    kind = {"name": "kind", "datatype": "BYTES", "shape": [2], "data": ["moss", "moss"]}
    reply = infer(server, "plants", {"inputs": [{"name": "size", "datatype": datatype, "shape": [2], "data": [7, value]}, kind]})
    document = reply.json()
    assert (reply.status, document["code"], document["field"], document["instance"]) == (400, "out_of_range", "size", 1)


def test_an_instance_without_elements_is_an_instance(server: LiveServer) -> None:
    """Zero values of a free length are fine as long as their number of instances is."""
    reply = infer(server, "lists", {"inputs": [{"name": "x", "datatype": "FP64", "shape": [3, 0], "data": []}]})
    assert reply.status == 200
    assert reply.json()["outputs"][0]["shape"] == [3, 0]


def test_the_server_is_as_it_was(server: LiveServer) -> None:
    """After all of this nothing is held, and the next caller is served."""
    assert server.metric("samegraph_in_flight_requests") == server.metric("samegraph_in_flight_bytes") == 0
    assert infer(server, "tensors", {"inputs": [x(), S]}).status == 200
