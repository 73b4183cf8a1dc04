"""HTTP as hostile and clumsy clients speak it: refused or understood, never a 5xx, and the next request is always the next request."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import package_builders as build
import pytest
from live_server import LiveServer, live_server
from raw_http import RawReply, Wire, chunked, request
from samegraph_transforms.pack import pack

ROW = {"size": 1.5, "kind": "moss"}
BODY = json.dumps({"instances": [ROW]}).encode()
LABEL = build.reference([ROW])["label"][0]
MAX_BODY = 20_000
BODY_TIMEOUT_S = 0.5


def serve(tmp_path_factory: pytest.TempPathFactory, way_in: str) -> Iterator[LiveServer]:
    repository = tmp_path_factory.mktemp("models")
    pack(build.draft(), build.samples(), repository)
    limits = {"max_body_bytes": MAX_BODY, "body_timeout_s": BODY_TIMEOUT_S, "max_queued_bytes": 4 * MAX_BODY}
    with live_server(repository, server={"http": way_in}, limits=limits) as live:
        yield live


@pytest.fixture(scope="module", params=["direct", "asgi"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server, by each way in."""
    yield from serve(tmp_path_factory, request.param)


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server by the way in that is ours alone."""
    yield from serve(tmp_path_factory, "direct")


def is_right(reply: RawReply) -> bool:
    return reply.status == 200 and reply.json()["predictions"][0]["label"] == LABEL


# --- the next request is the next request ---------------------------------------------------------------------------------

NOISE = random.Random(1).randbytes(5000)
NESTED = request(body=BODY)  # a body that is itself a request: taken for one, it would be answered


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request("/v1/models/nope:predict", NOISE), 404),
        (request("/v1/models/nope:predict", NESTED), 404),
        (request("/v1/models/nope:predict", chunked(NESTED, NOISE), transfer_encoding="chunked"), 404),
        (request("/v1/models/plants/versions/9:predict", NESTED), 404),
        (request("/nowhere", NESTED), 404),
        (request("/livez", NESTED), 405),
        (request("/livez", chunked(NESTED), transfer_encoding="chunked"), 405),
        (request("/v1/models/plants", NESTED, "PUT"), 405),
        (request(body=NESTED, method="PUT"), 405),
        (request(body=NESTED, method="GET"), 405),
        (request(body=NESTED, method="DELETE"), 405),
        (request(body=NESTED), 400),
        (request(body=b"{"), 400),
        (request(body=b""), 400),
        (request(body=chunked(NESTED), transfer_encoding="chunked"), 400),
        (request(body=NESTED, x_deadline_ms="-1"), 400),
        (request(body=NESTED, x_deadline_ms="nan"), 400),
        (request(body=NESTED, x_deadline_ms="inf"), 400),
        (request(body=NESTED, x_deadline_ms="1e-300"), 400),
        (request(body=NESTED, x_request_timeout_seconds=""), 400),
        (request("/v1/models/plants:predict?on_error=%ff", NESTED), 400),
        (request(body=NESTED, content_type="image/png"), 415),
        (request(body=NESTED, content_type="multipart/form-data"), 415),
        (request(body=NESTED, content_type="\xff\xfe"), 415),
    ],
    ids=lambda v: str(v) if isinstance(v, int) else repr(v[:60]),
)
def test_after_every_refusal_the_next_answer_is_right(server: LiveServer, sent: bytes, status: int) -> None:
    """The refused body is read and thrown away; not one byte of it is taken for a request."""
    with Wire(server.port) as wire:
        for _ in range(2):
            wire.send(sent)
            assert wire.reply().status == status
            wire.send(request(body=BODY))
            assert is_right(wire.reply())


def test_all_of_it_in_one_packet_keeps_its_order(server: LiveServer) -> None:
    """Pipelined good and bad requests are answered one by one."""
    bad = [
        (request("/v1/models/nope:predict", NESTED), 404),
        (request(body=NESTED, method="PUT"), 405),
        (request("/livez", NESTED), 405),
        (request(body=NESTED), 400),
        (request(body=NESTED, content_type="image/png"), 415),
    ]
    with Wire(server.port) as wire:
        wire.send(b"".join(sent + request(body=BODY) for sent, _ in bad * 5))
        for _, status in bad * 5:
            assert wire.reply().status == status
            assert is_right(wire.reply())


@pytest.mark.parametrize("path", ["/v1/models/plants:predict", "/livez", "/nowhere"])
def test_the_answer_to_head_is_a_head(server: LiveServer, path: str) -> None:
    """A body after it would be read as the beginning of the next answer."""
    with Wire(server.port) as wire:
        wire.send(request(path, None, "HEAD"))
        assert wire.reply(head_only=True).status in (200, 404, 405)
        wire.send(request(body=BODY))
        assert is_right(wire.reply())


UPGRADE = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2_settings": "AAMAAABkAAQAoAAAAAIAAAAA"}


@pytest.mark.parametrize("pieces", ["one-packet", "body-apart", "bytes"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_request_that_offers_an_upgrade_is_answered_as_it_stands(direct: LiveServer, framing: str, pieces: str) -> None:
    """Java's client and `curl --http2` ask for HTTP/2 with the first request, body and all."""
    if framing == "length":
        sent = request(body=BODY, **UPGRADE)
    else:
        sent = request(body=chunked(BODY[:10], BODY[10:]), transfer_encoding="chunked", **UPGRADE)
    head, mark, body = sent.partition(b"\r\n\r\n")
    with Wire(direct.port) as wire:
        for _ in range(3):
            if pieces == "one-packet":
                wire.send(sent)
            elif pieces == "body-apart":
                wire.send(head + mark, body)
            else:
                wire.send(*(bytes([b]) for b in sent))
            assert is_right(wire.reply())
        wire.send((sent + request(body=BODY)) * 3)
        assert all(is_right(wire.reply()) for _ in range(6))


@pytest.mark.parametrize("path", ["/v1/models/plants:predict", "/v1/models/nope:predict", "/livez"])
def test_the_body_of_an_upgrade_is_never_a_request(direct: LiveServer, path: str) -> None:
    """A proxy that let the head through has not looked at the body."""
    with Wire(direct.port) as wire:
        wire.send(*request(path, NESTED, **UPGRADE).partition(b"\r\n\r\n"))
        assert wire.reply().status in (400, 404, 405)
        wire.send(request("/readyz", None, "GET"))
        assert wire.reply().json()["models"] == ["plants"]


def test_an_upgrade_without_a_body_is_a_request_like_any_other(direct: LiveServer) -> None:
    """With no body, or one that is declared to be empty; what follows in the same packet is answered."""
    asked = [
        request("/livez", None, "GET", **UPGRADE),
        request("/livez", b"", "GET", **UPGRADE),
        request("/livez", None, "GET", upgrade="websocket", connection="upgrade"),
    ]
    with Wire(direct.port) as wire:
        wire.send(b"".join(sent + request(body=BODY) for sent in asked))
        for _ in asked:
            assert wire.reply().json() == {"live": True}
            assert is_right(wire.reply())


def test_what_follows_connect_is_not_read(direct: LiveServer) -> None:
    """Nobody is a proxy here, and what comes after CONNECT need not be HTTP."""
    with Wire(direct.port) as wire:
        wire.send(request(body=NESTED, method="CONNECT"))
        assert wire.reply().status == 405
        assert wire.is_closed()
