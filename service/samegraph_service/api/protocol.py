"""The way in below ASGI: predict requests are answered by the connection itself, without a task, a scope or a queue each.

Every other path is handed to uvicorn's own handling, and so to FastAPI. Measured gain: docs/performance.md.

A connection answers its requests one after another, in order, whichever of the two ways each goes. One timer a connection
bounds idle connections, slow heads and slow bodies. A client that closes its sending side has left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import httptools
from samegraph_transforms.errors import SamegraphError
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from samegraph_service.admission import Caller
from samegraph_service.api import error_document
from samegraph_service.api.front import Exchange, Front, Head, Response
from samegraph_service.api.paths import MAX_LENGTH, Target, predict_target
from samegraph_service.errors import BadRequest, BodyTooLarge, BodyTooSlow, CallerGone, HeadTooLarge

#: Largest request line and headers together; llhttp itself has no bound.
MAX_HEAD_BYTES: Final = 65536
#: The headers that say how long a body is.
_FRAMING: Final = (b"content-length", b"transfer-encoding")


@lru_cache(maxsize=1024)
def _predict_path(path: bytes) -> tuple[Target, str] | None:
    """Return target and text of a plain predict path; None for every other, escaped ones included."""
    if b"%" in path or not path.isascii():
        return None
    text = path.decode("ascii")
    target = predict_target(text)
    return None if target is None else (target, text)


#: Heads that were parsed before, byte for byte: the same bytes between two requests mean the same again. A client on a kept connection
#: sends one head with every request, give or take the length of the body, and parsing it is a fifth of what a small request costs.
_KNOWN_HEADS: dict[bytes, Head] = {}
#: Bounds of that memory: so many heads (then all are forgotten), each so long.
MAX_KNOWN_HEADS: Final = 1024
MAX_KNOWN_HEAD_BYTES: Final = 1024
#: Headers that differ from request to request: to remember such a head would only fill the memory.
_PASSING: Final = frozenset(
    {b"x-request-id", b"idempotency-key", b"samegraph-unit", b"traceparent", b"x-b3-traceid", b"expect", b"upgrade", b"transfer-encoding"}
)


def _remember(cycle: object, data: bytes) -> None:
    """Keep the head of a request that was all of `data`, if it may come again just so."""
    if not isinstance(cycle, PredictCycle) or not cycle.complete or not cycle.keep_alive:
        return
    head, end = cycle.head, data.find(b"\r\n\r\n") + 4
    if head.method == "POST" and len(data) - end == head.declared and end <= MAX_KNOWN_HEAD_BYTES and _PASSING.isdisjoint(head.headers):
        if len(_KNOWN_HEADS) >= MAX_KNOWN_HEADS:
            _KNOWN_HEADS.clear()
        head.shared = True
        _KNOWN_HEADS[bytes(data[:end])] = head


class _NoEvent:
    """Stands where uvicorn's own cycle has an event; a predict cycle waits for none."""

    def set(self) -> None:
        """Do nothing."""


class PredictCycle(Exchange):
    """One predict request on a connection. Has the attributes uvicorn's protocol reads of its own cycles."""

    __slots__ = (
        "_chunks", "_connection", "_discarding", "_front", "_size", "_too_large", "answered", "complete", "disconnected",
        "expects", "keep_alive", "response_complete", "since", "started",
    )  # fmt: skip
    message_event = _NoEvent()

    def __init__(self, connection: PredictProtocol, front: Front, head: Head, keep_alive: bool, expects: bool) -> None:
        Exchange.__init__(self, front, head, connection.client_host)
        self.caller = connection.caller
        self._connection = connection
        self._front = front
        self._chunks: list[bytes] = []
        self._size = 0
        self._too_large = False
        self._discarding = False
        self.keep_alive = keep_alive
        self.expects = expects
        self.answered = False
        self.complete = False
        self.started = False
        self.disconnected = False
        self.response_complete = False
        self.since = self.received

    # --- reading ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin once every earlier request of the connection is answered."""
        self.started = True
        try:
            self._front.admit(self)
        except SamegraphError as error:
            self._refuse(error)
            return
        except Exception as error:  # noqa: BLE001 - the caller gets a document and the log the traceback, whatever broke
            self.respond(self._front.crashed(self, error))
            return
        if self._too_large:
            self._refuse(self._front.too_large())
        elif self.complete:
            self._run()
        elif self.expects:
            self.expects = False
            self._connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def feed(self, chunk: bytes) -> None:
        """Take in a piece of the body."""
        self._size += len(chunk)
        if self._discarding:
            if self._size > self._front.limits.max_body_bytes:
                self._end(close=True)
        elif self._size > self._front.limits.max_body_bytes:
            self._too_large = True
            self._chunks.clear()
            if self.started:
                self._refuse(self._front.too_large())
        else:
            self._chunks.append(chunk)
            if self._size > self.head.declared and self.reservation is not None:
                try:  # a body that declared no size fills no more memory than others
                    self.reservation.hold(self._size)
                except SamegraphError as error:
                    self._refuse(error)

    def body_complete(self) -> None:
        """The whole body has arrived."""
        self.complete = True
        if self._discarding:
            self._end(close=not self.keep_alive)
        elif self.started and not self.answered:
            self._run()

    def overdue(self) -> None:
        """The body did not arrive in time, or the rest of a refused one did not."""
        if self._discarding:
            self._end(close=True)
        else:
            self.keep_alive = False
            self._refuse(self._front.too_slow(), discard=False)

    def lost(self) -> None:
        """The connection is gone: waiting rows leave their queue."""
        if self.disconnected or self.response_complete:
            return
        self.disconnected = True
        if self.complete:
            self.cancel()
        elif self.started and not self.answered:
            self.answered = True
            self.release()
            self._front.note(self, self._front.failed(CallerGone("the caller hung up before the body was complete"), self.request_id))

    def start_whole(self, body: bytes) -> None:
        """Begin with a body that arrived with its head."""
        self.started = self.complete = True
        try:
            self._front.admit(self)
        except SamegraphError as error:
            self._refuse(error)
        except Exception as error:  # noqa: BLE001 - as in `start`
            self.respond(self._front.crashed(self, error))
        else:
            self._front.run(self, body)

    # --- answering ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        chunks = self._chunks
        self._chunks = []
        self._front.run(self, chunks[0] if len(chunks) == 1 else b"".join(chunks))

    def _refuse(self, error: SamegraphError, *, discard: bool = True) -> None:
        """Answer before the body is read; what is left of it is read and thrown away, or the answer would be lost to a reset."""
        self.release()
        self._chunks.clear()
        self._size = 0
        unread = self.head.has_body and not self.complete
        # A caller who waits for `100 Continue` sends no body.
        self._discarding = unread and discard and not self.expects
        if (unread and not self._discarding) or isinstance(error, BodyTooLarge | BodyTooSlow):
            self.keep_alive = False
        self.respond(self._front.refused(error, self))

    def respond(self, response: Response) -> None:
        """Write the response; see `Exchange.respond`."""
        connection = self._connection
        self.answered = True
        if self.disconnected or isinstance(response.error, CallerGone):
            self._front.note(self, response if isinstance(response.error, CallerGone) else self._gone())
            return
        if self._front.gate.draining:
            self.keep_alive = False
        connection.transport.write(response.http1(not self.keep_alive, self.head.method != "HEAD"))
        self._front.note(self, response)
        if self._discarding:
            self.since = connection.loop.time()
        elif self.keep_alive:
            self.response_complete = True
            connection.on_response_complete()
        else:
            self._end(close=True)

    def _gone(self) -> Response:
        return self._front.failed(CallerGone("the caller hung up before his answer was ready"), self.request_id)

    def _end(self, *, close: bool) -> None:
        if self.response_complete:
            return
        self.response_complete = True
        if close:
            self._connection.transport.close()
        self._connection.on_response_complete()


class _BodyOn:
    """Parser callbacks of a connection, but for the first head, which another parser has read."""

    __slots__ = ("_connection", "in_head")

    def __init__(self, connection: PredictProtocol) -> None:
        self._connection = connection
        self.in_head = True

    def on_message_begin(self) -> None:
        if not self.in_head:
            self._connection.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self.in_head:
            self._connection.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.in_head:
            self._connection.on_header(name, value)

    def on_headers_complete(self) -> None:
        if not self.in_head:
            self._connection.on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._connection.on_body(body)

    def on_message_complete(self) -> None:
        self._connection.on_message_complete()


class PredictProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol with predict requests answered in place. Make it with `protocol_class`."""

    get_front: Callable[[], Front | None]

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._front: Front | None = None
        self.client_host = ""
        self.caller: Caller | None = None
        self._at_boundary = True
        self._active: PredictCycle | RequestResponseCycle | None = None
        self._head_bytes = 0
        self._in_head = False
        self._body_framing = b""
        self._failure: SamegraphError | None = None
        self._pumping = False
        self._writable = True
        self._unread = 0
        self._stalled = 0.0
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._body_timeout_s = float(self.timeout_keep_alive)

    # --- connection ---------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a new connection; see `asyncio.Protocol`."""
        super().connection_made(transport)
        self._front = type(self).get_front()
        self.client_host = self.client[0] if self.client else ""
        if self._front is not None:
            self.caller = self._front.caller_at(self.client_host)
        if self._front is not None:
            self._body_timeout_s = self._front.limits.body_timeout_s
        self._since = self.loop.time()
        self._timer = self.loop.call_later(min(self.timeout_keep_alive, self._body_timeout_s), self._look_at_the_clock)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel what the caller waited for."""
        if self._timer is not None:
            self._timer.cancel()
        active, waiting = self._active, [cycle for cycle, _ in self.pipeline]
        self.pipeline.clear()
        for cycle in (active, *waiting):
            if isinstance(cycle, PredictCycle):
                cycle.lost()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; see `asyncio.Protocol`."""
        if self._failure is not None or self.transport.is_closing():
            return  # what follows a broken request cannot be told apart from it
        fresh = self._at_boundary and self._active is None
        if fresh:
            end = data.find(b"\r\n\r\n") + 4
            head = _KNOWN_HEADS.get(data[:end])
            if head is not None and len(data) - end == head.declared and self._front is not None:
                self._serve(self._front, head, data[end:])
                return
        if self._active is None and not self._in_head:
            self._since = self.loop.time()
        self._head_bytes += len(data)
        try:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as stopped:
                self._feed_on(memoryview(data)[stopped.args[0] :])
        except httptools.HttpParserError:
            self._fail(BadRequest("this is not a valid HTTP/1.1 request"))
            return
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES:
            self._fail(HeadTooLarge(f"the request line and headers are larger than {MAX_HEAD_BYTES} bytes"))
        elif fresh and self._at_boundary:
            _remember(self.cycle, data)

    def _serve(self, front: Front, head: Head, body: bytes) -> None:
        """Answer a request that came in one piece and whose head is known; the parser has not seen it and need not."""
        cycle = PredictCycle(self, front, head, True, False)  # keywords would make a dict of every request's
        self.cycle = cycle  # type: ignore[assignment]
        self._active = cycle
        cycle.start_whole(body)

    def _feed_on(self, rest: memoryview) -> None:
        """Go on after the head of a request that asks for an upgrade, where the parser stops.

        No upgrade is offered, so the request is answered as it stands (Java's client asks for h2c with its first POST). Its body,
        which the parser would take for the next request, is read by another parser that is told how long it is.
        """
        while not self.transport.is_closing():
            if self._body_framing:
                self.parser = self._parser_of_body()
            try:
                self.parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as stopped:
                rest = rest[stopped.args[0] :]

    def _parser_of_body(self) -> Any:
        """Return a parser that stands where the body of the present request begins."""
        framing, self._body_framing = self._body_framing, b""
        callbacks = _BodyOn(self)
        parser = httptools.HttpRequestParser(callbacks)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n")
        callbacks.in_head = False
        return parser

    def pause_writing(self) -> None:
        """The client does not read: take no further request from it; see `asyncio.Protocol`."""
        self._writable = False
        self.flow.pause_reading()
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._writable = True
        super().resume_writing()
        self._pump()

    def shutdown(self) -> None:
        """Finish the request in progress, then close (called by the server when it stops)."""
        if self._active is None:
            self.transport.close()
        else:
            self._active.keep_alive = False

    # --- parser callbacks ---------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._in_head = True
        self._at_boundary = False
        self._head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header was read; those after a chunked body say nothing we need, and there is no end to them."""
        if self._in_head:  # and then as uvicorn does, without a call for every header
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """A request's head is complete: answer it here, or hand it to uvicorn."""
        self._in_head = False
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._body_framing = b"".join(b"%b: %b\r\n" % (n, v) for n, v in self.headers if n in _FRAMING)
        url, _, query = self.url.partition(b"?")
        found = _predict_path(url) if len(url) <= MAX_LENGTH else None
        front = self._front
        if found is None or front is None:
            self._hand_over()
            return
        parser = self.parser
        target, path = found
        head = Head(parser.get_method().decode("ascii"), path, query, dict(self.headers), target)
        keep_alive = parser.get_http_version() != "1.0" and parser.should_keep_alive() and head.method != "CONNECT"
        cycle = PredictCycle(self, front, head, keep_alive, self.expect_100_continue)
        self.cycle = cycle  # type: ignore[assignment]
        if self._active is None:
            self._start_asgi_task(cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))  # type: ignore[arg-type]

    def _hand_over(self) -> None:
        """Let uvicorn make its own cycle: the scope it builds in `on_message_begin` is made here, where it is needed."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers = headers
        self.scope["headers"] = headers
        super().on_headers_complete()
        if expects:
            self.cycle.keep_alive = False  # no other route reads a body, and a caller who waits for 100 may or may not send his

    def on_body(self, body: bytes) -> None:
        """A piece of the latest request's body arrived."""
        cycle: Any = self.cycle
        if isinstance(cycle, PredictCycle):
            cycle.feed(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The latest request is complete."""
        if self._body_framing:
            return  # the parser skips the body of a request that asks for an upgrade
        self._at_boundary = True
        cycle: Any = self.cycle
        if isinstance(cycle, PredictCycle):
            cycle.body_complete()
        else:
            super().on_message_complete()

    # --- one after another --------------------------------------------------------------------------------------------

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._active = cycle
        if isinstance(cycle, PredictCycle):
            cycle.start()
        else:
            super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """An answer was written: go on with the next request."""
        self.server_state.total_requests += 1
        self._active = None
        self._since = self.loop.time()
        if (self.pipeline or self.flow.read_paused or self._failure is not None) and not self.transport.is_closing():
            self._pump()

    def _pump(self) -> None:
        """Start waiting requests until one takes time, without recursion: many may be answered on the spot."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._active is None and self._writable and self.pipeline and not self.transport.is_closing():
                cycle, app = self.pipeline.pop()
                self._start_asgi_task(cycle, app)
        finally:
            self._pumping = False
        if not self._writable or self.transport.is_closing():
            return
        if self._active is not None:
            if isinstance(self._active, PredictCycle) and not self._active.complete:
                self.flow.resume_reading()  # its body is on its way, or it would not have been held up
            return
        if self._failure is not None:
            self._write_failure()
        else:
            self.flow.resume_reading()

    # --- faults -------------------------------------------------------------------------------------------------------

    def _fail(self, error: SamegraphError) -> None:
        """Answer what is not HTTP with the one document, after everything before it."""
        self._failure = error
        if self._active is None or (isinstance(self._active, PredictCycle) and not self._active.complete):
            self._write_failure()

    def _write_failure(self) -> None:
        assert self._failure is not None
        if isinstance(self._active, PredictCycle):
            self._active.lost()
        front = self._front
        status, headers, body = error_document.response(self._failure, "" if front is None else front.fresh_id())
        self.transport.write(Response(status, body, headers).http1(close=True))
        self.transport.close()

    def _look_at_the_clock(self) -> None:
        """The connection's one timer.

        It closes a connection that idles, answers 408 to a request that takes too long to arrive, and cuts off a client that
        reads nothing of what waits for him: closing alone would wait for him for ever.
        """
        now = self.loop.time()
        if self._reads_nothing(now):
            self.transport.abort()
            return
        active = self._active
        if isinstance(active, PredictCycle) and not active.complete:
            left = active.since + self._body_timeout_s - now
            if left <= 0:
                active.overdue()
        elif active is None:
            limit = self._body_timeout_s if self._in_head else float(self.timeout_keep_alive)
            left = self._since + limit - now
            if left <= 0:
                self.transport.close()
        else:
            left = self._body_timeout_s
        if left <= 0 or self.transport.is_closing():
            left = self._body_timeout_s
        self._timer = self.loop.call_later(min(left, self.timeout_keep_alive, self._body_timeout_s), self._look_at_the_clock)

    def _reads_nothing(self, now: float) -> bool:
        """Whether answers have waited for the client for a whole body's time without becoming fewer."""
        unread = self.transport.get_write_buffer_size()
        if unread == 0 or unread < self._unread or self._since > self._stalled:
            self._stalled = now
        self._unread = unread
        return now - self._stalled >= self._body_timeout_s


def protocol_class(get_front: Callable[[], Front | None]) -> type[PredictProtocol]:
    """Return the protocol class for `uvicorn.Config(http=...)`.

    Args:
        get_front: Returns what answers predict requests; None while the service is not running.
    """
    return type("BoundPredictProtocol", (PredictProtocol,), {"get_front": staticmethod(get_front)})
