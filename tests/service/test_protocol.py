"""HTTP/1.1 on a raw socket, through both ways in: order, boundaries, impatience and rudeness."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any, Self

import package_builders as build
import pytest
from live_server import LiveServer, live_server
from samegraph_transforms.pack import pack

ROW = json.dumps({"instances": [{"size": 1.5, "kind": "moss"}]}).encode()
PATH = b"/v1/models/plants:predict"


@pytest.fixture(scope="module", params=["direct", "asgi"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    repository = tmp_path_factory.mktemp("models")
    pack(build.draft(), build.samples(), repository)
    with live_server(repository, server={"http": request.param}, limits={"max_body_bytes": 1_000_000, "body_timeout_s": 1.0}) as live:
        yield live


class Client:
    """A connection that reads one answer at a time."""

    def __init__(self, server: LiveServer) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self) -> tuple[int, dict[str, str], bytes]:
        """Read one whole answer."""
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, rest = self._buffer.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:])}
        length = int(headers.get("content-length", "0"))
        self._buffer = rest
        while len(self._buffer) < length:
            self._more()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return int(lines[0].split()[1]), headers, body

    def ended(self) -> bool:
        """Whether the server closed the connection and nothing is left to read."""
        return self._buffer == b"" and self.socket.recv(1) == b""

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError(f"closed after {self._buffer[:200]!r}")
        self._buffer += data


def post(body: bytes = ROW, path: bytes = PATH, *headers: bytes) -> bytes:
    lines = [b"POST " + path + b" HTTP/1.1", b"host: x", b"content-type: application/json", b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def with_id(identifier: str, **changes: Any) -> bytes:
    return post(changes.get("body", ROW), changes.get("path", PATH), b"x-request-id: " + identifier.encode())


def test_pipelined_requests_are_answered_in_order_whatever_way_each_goes(server: LiveServer) -> None:
    """Predictions, failures and other routes on one connection keep their order."""
    plan = [
        with_id("a"),
        b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n",
        with_id("b", body=b"{"),
        with_id("c"),
        b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n",
        with_id("d", path=b"/v1/models/none:predict"),
        with_id("e"),
    ]
    with Client(server) as client:
        client.send(b"".join(plan))
        answers = [client.read() for _ in plan]
    assert [a[0] for a in answers] == [200, 200, 400, 200, 404, 404, 200]
    assert [answers[i][1]["x-request-id"] for i in (0, 2, 3, 5, 6)] == ["a", "b", "c", "d", "e"]


def test_hundreds_of_pipelined_requests_do_not_exhaust_the_stack(server: LiveServer) -> None:
    """Answers on the spot are a loop, not a recursion."""
    with Client(server) as client:
        client.send(with_id("x", path=b"/v1/models/none:predict") * 300)
        assert {client.read()[0] for _ in range(300)} == {404}


def test_a_body_in_single_bytes_is_put_together(server: LiveServer) -> None:
    """Boundaries of packets mean nothing."""
    with Client(server) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in post():
            client.send(bytes([byte]))
        assert client.read()[0] == 200


def test_chunked_bodies_are_read(server: LiveServer) -> None:
    """A client that does not know its length up front is served."""
    pieces = [ROW[:5], ROW[5:6], ROW[6:]]
    body = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"
    with Client(server) as client:
        client.send(b"POST " + PATH + b" HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + body)
        client.send(post())
        assert [client.read()[0], client.read()[0]] == [200, 200]


def test_expect_continue_is_asked_for_when_the_request_is_let_in(server: LiveServer) -> None:
    """The body is sent only after 100."""
    head, _, body = post(ROW, PATH, b"expect: 100-continue").partition(b"\r\n\r\n")
    with Client(server) as client:
        client.send(head + b"\r\n\r\n")
        assert client.read()[0] == 100
        client.send(body)
        assert client.read()[0] == 200


def test_a_refused_caller_who_waits_for_100_sends_no_body(server: LiveServer) -> None:
    """The refusal comes instead of 100, and the connection ends because a body was announced."""
    head = b"POST " + PATH + b" HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 20000000\r\n\r\n"
    with Client(server) as client:
        client.send(head)
        status, headers, body = client.read()
        assert (status, headers["connection"]) == (413, "close")
        assert json.loads(body)["code"] == "body_too_large"
        assert client.ended()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (post(b"{"), 400),
        (post(ROW, b"/v1/models/none:predict"), 404),
        (post(ROW, PATH).replace(b"application/json", b"image/png"), 415),
        (post(ROW, PATH).replace(b"POST", b"PUT"), 405),
        (post(ROW, PATH, b"x-deadline-ms: x"), 400),
    ],
)
def test_a_refusal_leaves_the_connection_in_step(server: LiveServer, request_bytes: bytes, status: int) -> None:
    """The body of a refused request is never taken for the next request."""
    with Client(server) as client:
        client.send(request_bytes + with_id("next"))
        assert client.read()[0] == status
        after = client.read()
        assert (after[0], after[1]["x-request-id"]) == (200, "next")


def test_an_oversized_body_gets_its_answer_although_it_is_still_being_sent(server: LiveServer) -> None:
    """A reset would hide the reason."""
    with Client(server) as client:
        client.send(post(b"x" * 1_000_001))
        status, headers, _ = client.read()
        assert (status, headers["connection"]) == (413, "close")


def test_a_slow_body_is_given_up_with_408(server: LiveServer) -> None:
    """A sender who stops holds a place for a bounded time."""
    with Client(server) as client:
        client.send(post()[:-5])
        status, _, body = client.read()
        assert (status, json.loads(body)["code"]) == (408, "body_too_slow")
    assert server.metric("samegraph_in_flight_requests") == 0


def test_http_1_0_is_answered_and_closed(server: LiveServer) -> None:
    """Old clients read to the end of the connection."""
    with Client(server) as client:
        client.send(post().replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert client.read()[0] == 200
        assert client.ended()


def test_connection_close_is_honoured(server: LiveServer) -> None:
    """The caller says that it was his last request."""
    with Client(server) as client:
        client.send(post(ROW, PATH, b"connection: close"))
        status, headers, _ = client.read()
        assert (status, headers["connection"]) == (200, "close")
        assert client.ended()


def test_bytes_that_are_not_http_end_the_connection(server: LiveServer) -> None:
    """Nothing after them could be understood."""
    with Client(server) as client:
        client.send(b"\x16\x03\x01 not http\r\n\r\n")
        assert client.read()[0] == 400
        assert client.ended()


def test_content_length_and_chunked_together_are_refused(server: LiveServer) -> None:
    """The oldest way to smuggle a request."""
    with Client(server) as client:
        client.send(
            b"POST "
            + PATH
            + b" HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /livez HTTP/1.1\r\n\r\n"
        )
        assert client.read()[0] == 400


def test_escaped_paths_reach_no_other_model(server: LiveServer) -> None:
    """An escaped slash is part of a name, and no name has one."""
    with Client(server) as client:
        client.send(post(ROW, b"/v1/models/..%2f..%2fplants:predict"))
        assert client.read()[0] == 404


def test_a_caller_who_leaves_is_counted_once_and_frees_his_place(server: LiveServer) -> None:
    """Hanging up with half a body leaves nothing behind."""
    before = server.metric("samegraph_cancelled_requests_total")
    with Client(server) as client:
        client.send(post()[:-5])
    for _ in range(500):
        if server.metric("samegraph_cancelled_requests_total") > before:
            break
    assert server.metric("samegraph_cancelled_requests_total") == before + 1
    assert server.metric("samegraph_in_flight_requests") == 0
