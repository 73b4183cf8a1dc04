"""HTTP as hostile and clumsy clients speak it: refused or understood, never a 5xx, and the next request is always the next request."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import package_builders as build
import pytest
from live_server import LiveServer, live_server
from raw_http import PATIENCE_S, RawReply, Wire, chunked, request
from samegraph_service.api import paths, protocol
from samegraph_transforms.pack import pack

ROW = {"size": 1.5, "kind": "moss"}
BODY = json.dumps({"instances": [ROW]}).encode()
LABEL = build.reference([ROW])["label"][0]
MAX_BODY = 20_000
BODY_TIMEOUT_S = 0.5


def serve(tmp_path_factory: pytest.TempPathFactory, way_in: str) -> Iterator[LiveServer]:
    repository = tmp_path_factory.mktemp("models")
    pack(build.draft(), build.samples(), repository)
    limits = {
        "max_body_bytes": MAX_BODY,
        "body_timeout_s": BODY_TIMEOUT_S,
        "max_queued_bytes": 40 * MAX_BODY // 9,
    }  # a tenth of it is kept for interactive requests
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
        (request(body=NESTED, x_deadline_ms="1_000"), 400),
        (request(body=NESTED, x_deadline_ms="\xb2"), 400),
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


# --- what is not HTTP -----------------------------------------------------------------------------------------------------

PLAIN = request(body=BODY)


@pytest.mark.parametrize(
    "sent",
    [
        request(body=BODY, content_length=str(len(BODY)), transfer_encoding="chunked"),
        PLAIN.replace(b"\r\n\r\n", b"\r\ncontent-length: 5\r\n\r\n"),
        request(body=b"", content_length="-5"),
        request(body=b"", content_length="+5"),
        request(body=b"", content_length="5_0"),
        request(body=b"", content_length="9" * 30),
        request(body=BODY, transfer_encoding="gzip"),
        request(body=BODY, transfer_encoding="chunked, identity"),
        request(body=b"-1\r\nabc\r\n0\r\n\r\n", transfer_encoding="chunked"),
        request(body=b"fffffffffffffffff\r\nabc\r\n", transfer_encoding="chunked"),
        request(body=b"3\r\nabcdef\r\n0\r\n\r\n", transfer_encoding="chunked"),
        request(body=b"0x3\r\nabc\r\n0\r\n\r\n", transfer_encoding="chunked"),
        request(method="FROBNICATE"),
        request(method="post"),
        request(version="3.1"),
        PLAIN.replace(b"\r\n", b"\n"),
        PLAIN.replace(b"content-length:", b"content-length :"),
        PLAIN.replace(b"host: localhost", b"x-folded: a\r\n b"),
        PLAIN.replace(b"host: localhost", b"no colon"),
        PLAIN.replace(b"host: localhost", b"x-nul: a\0b"),
        request("/v1/models/pl\0ants:predict"),
        request("/v1/models/pl\xe4nts:predict"),
        b"CONNECT somewhere:80 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    ],
    ids=lambda v: repr(v[:70]),
)
def test_what_is_not_http_is_answered_400_and_closed(direct: LiveServer, sent: bytes) -> None:
    """Nothing after it could be understood; the answer is the one document, and it is the only one."""
    with Wire(direct.port) as wire:
        wire.send(sent)
        reply = wire.reply()
        assert (reply.status, reply.json()["code"], reply.headers["connection"]) == (400, "bad_request", "close")
        assert wire.is_closed()


def test_noise_behind_a_good_request_waits_for_its_answer(direct: LiveServer) -> None:
    """The refusal of what cannot be understood is never taken for the answer to what was."""
    for good in (PLAIN, request("/livez", None, "GET")):
        with Wire(direct.port) as wire:
            wire.send(good * 3 + b"\0\1\2\3 noise\r\n\r\n")
            assert [wire.reply().status for _ in range(4)] == [200, 200, 200, 400]
            assert wire.is_closed()


@pytest.mark.parametrize(
    "sent",
    [
        request(body=BODY, x_large="y" * 600_000),
        request("/livez", None, "GET", x_large="y" * 600_000),
        PLAIN[: -len(BODY) - 2] + b"a: b\r\n" * 100_000,
    ],
    ids=["predict", "other", "many"],
)
def test_a_head_without_an_end_is_cut_off(direct: LiveServer, sent: bytes) -> None:
    """Headers are held in memory before anyone is admitted, so they have a bound of their own."""
    with Wire(direct.port) as wire:
        with contextlib.suppress(ConnectionError):
            wire.send(sent)
        reply = wire.reply()
        assert (reply.status, reply.json()["code"]) == (431, "head_too_large")
        assert wire.is_closed()


# --- paths ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/..%2f..:predict",
        "/v1/models/../../etc/passwd",
        "/v1/models/%2e%2e:predict",
        "/v1/models/pl%00ants:predict",
        "/v1/models/plants%00:predict",
        "/v1/models/%ff%fe:predict",
        "/v1/models/plants/versions/1%00:predict",
        "/v1/models/plants/versions/99999999999:predict",
        "/v1/models/plants/versions/-1:predict",
        "/v1/models/plants/versions/1e0:predict",
        "/v1/models/plants/versions/%D9%A1:predict",
        "/v1/models/plants/labels/..:predict",
        "/v1/models//plants:predict",
        "//v1/models/plants:predict",
        "/v1/models/plants:predict/",
        "/V1/models/plants:predict",
        "/v1/models/plants:Predict",
        "/v1/models/.plants:predict",
        "/v1/models/plants\\..:predict",
        "/v1/models/" + "a" * 129 + ":predict",
        "/v1/models/" + "a" * 30_000 + ":predict",
        "*",
        "/v2/models/../infer",
        "/v2/models/plants/versions//infer",
        "/static/..%2f..%2fsettings.py",
        "/static/../app.py",
    ],
)
def test_a_path_that_names_nothing_reaches_nothing(server: LiveServer, path: str) -> None:
    """Not a file, not another model, and not a 5xx; the connection goes on."""
    with Wire(server.port) as wire:
        wire.send(request(path, BODY))
        reply = wire.reply()
        assert reply.status in (404, 405)
        assert len(reply.body) < 1000
        assert "code" in reply.json()
        wire.send(PLAIN)
        assert is_right(wire.reply())


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/plants%3Apredict",
        "/v1/models/pl%61nts:predict",
        "http://elsewhere/v1/models/plants:predict",
        "/v1/models/plants:predict#x",
        "/v1/models/plants:predict?" + "a=b&" * 5000,
        "/v1/models/plants:predict?on_error=fail&on_error=%00",
        "/v1/models/plants/versions/0001:predict",
    ],
    ids=lambda v: v[:40],
)
def test_another_spelling_of_a_path_is_the_same_path(server: LiveServer, path: str) -> None:
    """Escapes, an absolute form and a long query change nothing."""
    with Wire(server.port) as wire:
        wire.send(request(path, BODY))
        assert is_right(wire.reply())


@pytest.mark.parametrize("host", ["", "[", "a b", "x" * 300, "evil.example:99999999"])
@pytest.mark.parametrize("path", ["/nowhere", "/livez", "/v1/models/", "/docs/", "/openapi.json", "/"])
def test_a_senseless_host_breaks_no_route(server: LiveServer, path: str, host: str) -> None:
    """Nobody asked which host this is; and no answer sends the caller to one."""
    with Wire(server.port) as wire:
        wire.send(request(path, None, "GET").replace(b"host: localhost", b"host: " + host.encode()))
        reply = wire.reply()
        assert reply.status in (200, 404)
        assert "location" not in reply.headers


@pytest.mark.parametrize("remembered", [paths._target, protocol._predict_path], ids=["text", "bytes"])
def test_long_paths_and_queries_are_not_remembered(direct: LiveServer, remembered: Any) -> None:
    """What a path names is kept for speed, a thousand times over: of a kilobyte each that would be memory for nothing."""
    before = remembered.cache_info().currsize
    with Wire(direct.port) as wire:
        for i in range(20):
            wire.send(request(f"/v1/models/{i}{'a' * 1000}:predict", BODY), request(f"/v1/models/plants:predict?{i}{'a' * 1000}", BODY))
            assert wire.reply().status == 404
            assert is_right(wire.reply())
    assert remembered.cache_info().currsize <= before + 1


# --- slow, rude and absent-minded -----------------------------------------------------------------------------------------


def in_flight(server: LiveServer) -> tuple[int, int, int]:
    load = server.run(lambda: server.service.gate.load)
    return load.requests, load.rows, load.bytes


def until(server: LiveServer, condition: Callable[[], bool]) -> None:
    """Ask the server's loop again and again until something is so; each time is one turn of it at least."""
    deadline = time.monotonic() + PATIENCE_S
    while not server.run(condition):
        assert time.monotonic() < deadline, "it did not come to pass"


@pytest.mark.parametrize(
    "pieces",
    [
        [b"%x;name=value\r\n" % len(BODY), BODY, b"\r\n0\r\nx-trailer: 1\r\n\r\n"],
        [b"%016x\r\n" % len(BODY), BODY, b"\r\n000\r\n\r\n"],
        [b"1\r\n%c\r\n" % b for b in BODY] + [b"0\r\n\r\n"],
        [bytes([b]) for b in chunked(BODY)],
        [chunked(BODY) + request(body=BODY)],
    ],
    ids=["extension-and-trailer", "zeros", "single-bytes", "single-packets", "next-in-the-same-packet"],
)
def test_chunks_of_any_size_are_a_body(server: LiveServer, pieces: list[bytes]) -> None:
    """Where chunks and packets end means nothing."""
    with Wire(server.port) as wire:
        wire.send(request(body=b"", transfer_encoding="chunked"), *pieces)
        assert is_right(wire.reply())
        if len(pieces) > 1:
            wire.send(PLAIN)
        assert is_right(wire.reply())


@pytest.mark.parametrize("sent", [PLAIN[:-5], request(body=chunked(BODY)[:-5], transfer_encoding="chunked")], ids=["length", "chunked"])
def test_a_body_that_stops_is_answered_408(direct: LiveServer, sent: bytes) -> None:
    """Within the time a body may take, and the place is free again."""
    with Wire(direct.port) as wire:
        wire.send(sent)
        reply = wire.reply()
        assert (reply.status, reply.json()["code"]) == (408, "body_too_slow")
        assert wire.is_closed()
    assert in_flight(direct) == (0, 0, 0)


@pytest.mark.parametrize("sent", [b"P", PLAIN[:40], PLAIN[: -len(BODY) - 2], PLAIN + b"P"], ids=["letter", "line", "headers", "second"])
def test_a_head_that_stops_ends_the_connection(direct: LiveServer, sent: bytes) -> None:
    """A thousand connections that send one letter each would otherwise stay for ever."""
    with Wire(direct.port) as wire:
        wire.send(sent)
        if sent.startswith(PLAIN):
            assert is_right(wire.reply())
        assert wire.is_closed()


@pytest.mark.parametrize("sent", [PLAIN, PLAIN[:-5], PLAIN[:40], b""], ids=["whole", "half-a-body", "half-a-head", "nothing"])
def test_a_caller_who_closes_his_side_leaves_nothing_behind(server: LiveServer, sent: bytes) -> None:
    """Answered or not, the connection ends and his place is free."""
    before = in_flight(server)
    with Wire(server.port) as wire:
        wire.send(sent)
        wire.end_sending()
        with contextlib.suppress(EOFError):
            wire.reply()
        assert wire.is_closed()
    assert before == in_flight(server) == (0, 0, 0)


@pytest.mark.parametrize("path", ["/v1/models/plants:predict", "/v1/models/nope:predict", "/livez", "/nowhere"])
def test_who_waits_for_100_and_is_refused_sends_no_body(direct: LiveServer, path: str) -> None:
    """Whether he sends it all the same cannot be known, so the connection ends with the refusal."""
    with Wire(direct.port) as wire:
        wire.send(request(path, None, expect="100-continue", content_length="20000000"))
        reply = wire.reply()
        assert reply.status in (404, 405, 413)
        assert reply.headers["connection"] == "close"
        assert wire.is_closed()


def test_who_waits_for_100_and_is_let_in_may_still_be_refused(direct: LiveServer) -> None:
    """A chunked body shows its size only while it arrives; the refusal is not lost to a reset."""
    with Wire(direct.port) as wire:
        wire.send(request(body=None, expect="100-continue", transfer_encoding="chunked"))
        assert wire.reply().status == 100
        wire.send(chunked(*[NOISE] * 7))
        assert wire.reply().status == 413
        assert wire.is_closed()


def test_bodies_that_declare_no_size_are_counted_as_they_arrive(direct: LiveServer) -> None:
    """Thousands of chunked uploads may hold no more memory than the bound says; the one too many is told to come back."""
    with contextlib.ExitStack() as open_wires:
        wires = [open_wires.enter_context(Wire(direct.port)) for _ in range(6)]
        for wire in wires:
            wire.send(request(body=b"", transfer_encoding="chunked") + b"%x\r\n%b\r\n" % (MAX_BODY - 100, b" " * (MAX_BODY - 100)))
        refused = [wires[4].reply(), wires[5].reply()]
        assert [r.status for r in refused] == [429, 429]
        assert "retry-after-ms" in refused[0].headers
        for wire in wires[:4]:
            wire.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))
            assert is_right(wire.reply())
        for wire in wires[4:]:
            wire.send(b"0\r\n\r\n", PLAIN)
            assert is_right(wire.reply())
    assert in_flight(direct) == (0, 0, 0)


def test_trailers_are_not_kept(direct: LiveServer) -> None:
    """There is no end to them, so they must cost nothing."""
    until(direct, lambda: not direct.server.server_state.connections)
    with Wire(direct.port) as wire:
        wire.send(request(body=b"", transfer_encoding="chunked"), chunked(BODY)[:-2])
        for _ in range(50):
            wire.send(b"a: b\r\n" * 2000)
        until(direct, lambda: len(direct.server.server_state.connections) == 1)
        (connection,) = direct.server.server_state.connections
        wire.send(b"\r\n")
        assert is_right(wire.reply())
        assert direct.run(lambda: len(connection.headers)) < 10  # type: ignore[union-attr]


def test_a_client_who_reads_nothing_is_cut_off(direct: LiveServer) -> None:
    """An answer nobody takes must not be kept for ever; closing the connection would wait for him to read it."""
    sockets = [socket.socket(fileno=os.dup(s.fileno())) for server in direct.server.servers for s in server.sockets]
    for listening in sockets:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # what is accepted from here on has little room
    rows = json.dumps({"instances": [ROW] * 500}).encode()
    with Wire(direct.port, receive_buffer=4096) as wire:
        wire.send(request(body=rows))
        until(direct, lambda: any(c.transport.get_write_buffer_size() > 0 for c in direct.server.server_state.connections))
        until(direct, lambda: not direct.server.server_state.connections)
    for listening in sockets:
        listening.close()


def test_the_server_is_as_it_was(server: LiveServer) -> None:
    """After all of this nothing is held, and no answer was a 5xx."""
    assert in_flight(server) == (0, 0, 0)
    for status in ("500", "503", "504"):
        assert server.metric("samegraph_requests_total", status=status) == 0
