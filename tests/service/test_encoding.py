"""Compressed bodies: the same answer as without, on both ways in, and a small body that would become a huge one is refused."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Literal

import odd_packages as odd
import package_builders as build
import pytest
from live_server import LiveServer, live_server
from samegraph_service.api import encoding
from samegraph_service.errors import BodyTooLarge
from samegraph_transforms.errors import InputError
from samegraph_transforms.pack import pack

LIMIT = 1 << 20


def raw_deflate(body: bytes) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    return stream.compress(body) + stream.flush()


CODINGS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("GZIP", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", raw_deflate),
    ("gzip", lambda body: gzip.compress(body[:7]) + gzip.compress(body[7:])),
    ("identity", bytes),
]


@pytest.fixture(scope="module", params=["direct", "asgi"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    repository = tmp_path_factory.mktemp("models")
    pack(build.draft(), build.samples(), repository)
    odd.pack_greeting(repository)
    with live_server(
        repository, server={"port": 0, "http": request.param, "compress_from_bytes": 2000}, limits={"max_body_bytes": LIMIT}
    ) as live:
        yield live


@pytest.mark.parametrize(("name", "compress"), CODINGS)
def test_a_compressed_body_means_what_it_inflates_to(server: LiveServer, name: str, compress: Callable[[bytes], bytes]) -> None:
    """V1, V2 and raw bodies, with either form of deflate and with gzip in several members."""
    row = json.dumps({"instances": [{"size": 1.5, "kind": "moss"}] * 3}).encode()
    size = {"name": "size", "datatype": "FP64", "shape": [1], "data": [2]}
    kind = {"name": "kind", "datatype": "BYTES", "shape": [1], "data": ["oak"]}
    tensors = {"id": "t", "inputs": [size, kind]}
    for path, body, content_type in (
        ("/v1/models/plants:predict", row, "application/json"),
        ("/v2/models/plants/infer", json.dumps(tensors).encode(), "application/json"),
        ("/v1/models/greeting:predict", b"hello", "text/plain"),
    ):
        plain = server.request("POST", path, body, {"content-type": content_type, "x-request-id": "same"})
        sent = server.request(
            "POST", path, compress(body), {"content-type": content_type, "content-encoding": name, "x-request-id": "same"}
        )
        assert (sent.status, sent.body) == (200, plain.body)


@pytest.mark.parametrize(("coding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_the_limit_holds_for_what_a_body_inflates_to(server: LiveServer, coding: str, compress: Callable[[bytes], bytes]) -> None:
    """A kilobyte that would become more than the limit is 413, and the server goes on."""
    bomb = compress(b" " * (LIMIT + 1))
    assert len(bomb) < 3000
    reply = server.request("POST", "/v1/models/plants:predict", bomb, {"content-encoding": coding})
    assert (reply.status, reply.json()["code"]) == (413, "body_too_large")
    assert server.metric("samegraph_in_flight_bytes") == 0


@pytest.mark.parametrize(
    ("coding", "body", "code"),
    [
        ("gzip", b"{}", "undecodable"),
        ("gzip", gzip.compress(b"{}")[:-4], "truncated"),
        ("gzip", gzip.compress(b"{}") + b"rest", "undecodable"),
        ("deflate", zlib.compress(b"{}") + b"rest", "undecodable"),
        ("deflate", b"\xff\xff\xff", "undecodable"),
        ("gzip", b"", "truncated"),
    ],
)
def test_bytes_that_are_not_what_the_header_says_are_refused(server: LiveServer, coding: str, body: bytes, code: str) -> None:
    """With the reason, not with a server error."""
    reply = server.request("POST", "/v1/models/plants:predict", body, {"content-encoding": coding})
    assert (reply.status, reply.json()["code"]) == (400, code)


@pytest.mark.parametrize("name", ["br", "zstd", "gzip, gzip"])
def test_other_encodings_are_refused_before_the_body(server: LiveServer, name: str) -> None:
    """415, saying what may be sent."""
    reply = server.request("POST", "/v1/models/plants:predict", b"{}", {"content-encoding": name})
    assert (reply.status, reply.json()["code"]) == (415, "unsupported_media_type")
    assert "gzip" in reply.json()["error"]


@pytest.mark.parametrize(
    ("accepts", "coding"),
    [
        ("gzip, deflate", "gzip"),
        ("deflate", "deflate"),
        ("gzip;q=0.5, deflate", "deflate"),
        ("br", None),
        ("gzip;q=0", None),
        ("*", "gzip"),
    ],
)
def test_large_answers_are_compressed_for_those_who_accept_it(server: LiveServer, accepts: str, coding: str | None) -> None:
    """In the coding they like best; the content is the same."""
    body = json.dumps({"instances": [{"size": i / 7, "kind": "moss"} for i in range(100)]}).encode()
    plain = server.request("POST", "/v1/models/plants:predict", body, {"x-request-id": "same"})
    reply = server.request("POST", "/v1/models/plants:predict", body, {"x-request-id": "same", "accept-encoding": accepts})
    assert reply.headers.get("content-encoding") == coding
    content = gzip.decompress(reply.body) if coding == "gzip" else zlib.decompress(reply.body) if coding else reply.body
    assert content == plain.body
    if coding is not None:
        assert reply.headers["vary"] == "accept-encoding"
        assert len(reply.body) < len(plain.body) / 2


def test_small_answers_and_errors_are_not_compressed(server: LiveServer) -> None:
    """It would cost more than it saves."""
    for body, status in ((b'{"instances": [{"size": 1, "kind": "oak"}]}', 200), (b"{", 400)):
        reply = server.request("POST", "/v1/models/plants:predict", body, {"accept-encoding": "gzip"})
        assert (reply.status, reply.headers.get("content-encoding")) == (status, None)


def test_a_body_of_many_empty_members_is_refused() -> None:
    """Each takes twenty bytes and a stream of its own."""
    with pytest.raises(InputError, match="follow the end"):
        encoding.inflate(gzip.compress(b"") * 5000, "gzip", LIMIT)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 200_000])
def test_inflating_undoes_deflating_up_to_the_limit_exactly(coding: Literal["gzip", "deflate"], size: int) -> None:
    """One byte more than the limit is too many."""
    body = bytes(i * i % 251 for i in range(size))
    assert encoding.inflate(encoding.deflate(body, coding), coding, size) == body
    with pytest.raises(BodyTooLarge):
        encoding.inflate(encoding.deflate(body + b"x", coding), coding, size)
