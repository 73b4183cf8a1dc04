"""A real HTTP server on a loopback port that answers from a script and remembers what it was sent."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer


@dataclass(frozen=True)
class Received:
    """One request as the server read it; header names are in lower case."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> object:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    """One scripted answer; `drop` closes the connection instead of answering."""

    status: int = 200
    document: object = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    drop: bool = False
    before: Callable[[], object] | None = None

    def content(self) -> bytes:
        """The bytes of the body."""
        return self.body if self.body is not None else json.dumps(self.document).encode()


def predicted(*predictions: object, **headers: str) -> Reply:
    """Return a good V1 answer with these predictions."""
    return Reply(document={"predictions": list(predictions)}, headers={name.replace("_", "-"): value for name, value in headers.items()})


def refused(status: int = 429, error: str = "overloaded", headers: Mapping[str, str] | None = None, **members: object) -> Reply:
    """Return an error document."""
    return Reply(status=status, document={"error": error, **members}, headers=headers or {})


@dataclass
class ScriptedServer:
    """What a test sees of the server.

    Attributes:
        url: Where it listens.
        received: Every POST so far, in order of arrival.
        documents: Path → JSON that a GET is answered with; other paths are 404.
        asked: Paths of every GET so far.
        listen: Opens the port of a server that did not listen from the beginning.
    """

    url: str
    script: list[Reply]
    received: list[Received] = field(default_factory=list)
    documents: dict[str, object] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    listen: Callable[[], None] = lambda: None

    def next_reply(self, request: Received) -> Reply:
        """Remember the request and take the next answer of the script; the last one repeats."""
        self.received.append(request)
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]


def _body(handler: BaseHTTPRequestHandler) -> bytes | None:
    """Read a request's body; None when its client was killed in the middle of it."""
    length = int(handler.headers.get("content-length", "0"))
    body = handler.rfile.read(length)
    return body if len(body) == length else None


@contextmanager
def scripted_server(*script: Reply, listening: bool = True) -> Iterator[ScriptedServer]:
    """Run a server that gives these answers in turn, the last one for ever; one that does not listen yet has its port all the same."""
    state = ScriptedServer(url="", script=list(script))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = _body(self)
            if body is None:
                self.close_connection = True
                return
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = state.next_reply(Received(self.path, headers, body))
            if reply.before:
                reply.before()
            if reply.drop:
                self.close_connection = True
                return
            content = reply.content()
            self.send_response(reply.status)
            for name, value in {"content-type": "application/json", **reply.headers, "content-length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            state.asked.append(self.path)
            found = self.path in state.documents
            content = json.dumps(state.documents[self.path] if found else {"error": "no such path"}).encode()
            self.send_response(200 if found else 404)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base class's name
            """Stay quiet."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 128
        daemon_threads = True  # a kept connection must not hold the test up

        def handle_error(self, request: object, client_address: object) -> None:
            """Say nothing about a client that was killed."""
            if not isinstance(sys.exception(), ConnectionError):
                super().handle_error(request, client_address)  # type: ignore[arg-type]

    with Server(("127.0.0.1", 0), Handler, bind_and_activate=False) as server:
        server.server_bind()  # from here on the port is taken, and connections to it are refused
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        with _served(server, state, listening):
            yield state


@contextmanager
def _served(server: HTTPServer, state: ScriptedServer, listening: bool) -> Iterator[None]:
    """Serve in a thread, from now on or from `state.listen()` on."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})

    def listen() -> None:
        server.server_activate()
        thread.start()

    state.listen = listen
    if listening:
        listen()
    try:
        yield
    finally:
        if thread.ident is not None:
            server.shutdown()
            thread.join()
