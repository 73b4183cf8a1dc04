"""What every HTTP way in does with a predict request, without I/O: head → admitted → body → response.

    front.admit(head)              early refusals and the reservation, before the body is read
    front.run(head, place, body)   call, answer, response; calls back once, perhaps before it returns
    front.note(head, response)     counts and logs what was sent

`asgi.py` and `protocol.py` differ only in how they read and write bytes.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from urllib.parse import parse_qsl

from samegraph_transforms.errors import InputError, SamegraphError
from samegraph_transforms.signature import Signature
from samegraph_transforms.wire import Decoded

from samegraph_service.admission import Gate, Reservation
from samegraph_service.api import error_document, v1, v2
from samegraph_service.api.paths import Target
from samegraph_service.call import Answer, Call, Failure, Loop, OnError, Outcome
from samegraph_service.errors import BadDeadline, BodyTooLarge, BodyTooSlow, CallerGone, Internal, MethodNotAllowed
from samegraph_service.logs import AccessLog, bind_request_id, get_logger
from samegraph_service.metrics import UNKNOWN_MODEL, Metrics
from samegraph_service.predict import Handle, Predictor, Served
from samegraph_service.routing import RouteTable

log = get_logger("samegraph.http")

Headers = list[tuple[bytes, bytes]]

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._\-]{1,128}")
#: Answers with more values than this are written on a host thread: a thousand values take the loop about half a millisecond.
ENCODE_ON_HOST_VALUES = 4096
#: JSON and multipart bodies larger than this are decoded on a host thread.
DECODE_ON_HOST_BYTES = 32768


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of a request on the wire.

    Attributes:
        max_body_bytes: Largest body.
        max_instances: Most instances.
        body_timeout_s: Longest time head and body may take to arrive, in seconds.
        discard_s: Longest time the rest of a refused body is read to be thrown away, in seconds.
    """

    max_body_bytes: int
    max_instances: int
    body_timeout_s: float
    discard_s: float = 5.0


class Head:
    """A predict request's line and headers.

    Attributes:
        target: What the path names.
        headers: Lower-case name → value; of a repeated header the last.
        declared: `content-length`, or 0.
        has_body: Whether a body follows.
        request_id: The caller's, when it is a safe one, else a fresh one.
        protocol: `v1`, `raw`, `multipart` or `v2`.
    """

    __slots__ = (
        "client",
        "content_type",
        "declared",
        "has_body",
        "headers",
        "method",
        "path",
        "protocol",
        "query",
        "received",
        "request_id",
        "target",
    )

    def __init__(
        self, method: str, path: str, query: bytes, headers: dict[bytes, bytes], client: str, target: Target, received: float, fresh_id: str
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.client = client
        self.target = target
        self.received = received
        given = headers.get(b"x-request-id")
        self.request_id = fresh_id if given is None or not _REQUEST_ID.fullmatch(given) else given.decode()
        self.content_type = headers[b"content-type"].decode("latin-1") if b"content-type" in headers else "application/json"
        self.protocol = "v2" if target.protocol == "v2" else v1.protocol_of(self.content_type)
        length = headers.get(b"content-length", b"")
        self.declared = int(length) if length.isdigit() else 0
        self.has_body = self.declared > 0 or b"transfer-encoding" in headers


@dataclass(slots=True)
class Place:
    """A request that was let in on its head."""

    served: Served
    reservation: Reservation
    timeout_s: float | None
    on_error: OnError


@dataclass(frozen=True, slots=True)
class Static:
    """The headers that are the same for every answer of a version, in both spellings."""

    pairs: tuple[tuple[bytes, bytes], ...]
    raw: bytes


class Response:
    """One answer, ready to be written by either way in.

    Attributes:
        status: HTTP status.
        body: Its bytes.
        error: What went wrong, or None.
        answer: What was answered, or None.
    """

    __slots__ = ("_headers", "_request_id", "_static", "answer", "body", "error", "status")

    def __init__(
        self, status: int, body: bytes, *, request_id: bytes = b"", static: Static | None = None, headers: Headers | None = None
    ) -> None:
        self.status = status
        self.body = body
        self.error: SamegraphError | None = None
        self.answer: Answer | None = None
        self._request_id = request_id
        self._static = static
        self._headers = headers

    def pairs(self) -> Headers:
        """Return the headers for ASGI."""
        if self._static is None:
            return list(self._headers or ())
        return [
            *self._static.pairs,
            *(self._headers or ()),
            (b"content-length", b"%d" % len(self.body)),
            (b"x-request-id", self._request_id),
            (b"samegraph-prediction-id", self._request_id),
        ]

    def http1(self, *, close: bool, with_body: bool = True) -> bytes:
        """Return the whole HTTP/1.1 response, or its head only (the answer to HEAD)."""
        end = b"connection: close\r\n\r\n" if close else b"\r\n"
        if self._static is not None and not self._headers and with_body:
            identifier = self._request_id
            return b"%bcontent-length: %d\r\nx-request-id: %b\r\nsamegraph-prediction-id: %b\r\n%b%b" % (
                self._static.raw,
                len(self.body),
                identifier,
                identifier,
                end,
                self.body,
            )
        lines = [_status_line(self.status), *(b"%b: %b\r\n" % pair for pair in self.pairs()), end, self.body if with_body else b""]
        return b"".join(lines)


class Front:
    """Shared by all HTTP ways in. For the event loop's thread only.

    Args:
        loop: The event loop.
        predictor: The prediction path.
        gate: Admission.
        routes: Returns the table in force.
        metrics: Counts answers.
        access_log: Notes answers; None for no access log.
        host: Threads for large answers.
        limits: Bounds on the wire.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        predictor: Predictor,
        gate: Gate,
        routes: Callable[[], RouteTable[Served]],
        metrics: Metrics,
        access_log: AccessLog | None,
        host: ThreadPoolExecutor,
        limits: HttpLimits,
    ) -> None:
        self.limits = limits
        self.now = loop.time  # the clock of `Head.received`: the core's, not uvloop's, which stands still within a turn
        self._loop = loop
        self._predictor = predictor
        self._gate = gate
        self._routes = routes
        self._metrics = metrics
        self._access_log = access_log
        self._host = host
        self._ids = itertools.count(1)
        self._boot = os.urandom(6).hex()

    @property
    def draining(self) -> bool:
        """Whether answers should end their connections."""
        return self._gate.draining

    def fresh_id(self) -> str:
        """Return an id no other request of this process, and very likely of any other, has."""
        return f"{self._boot}-{next(self._ids):x}"

    # --- before the body ----------------------------------------------------------------------------------------------

    def admit(self, head: Head) -> Place:
        """Let a request in on its head, or refuse it before its body is read.

        Raises:
            SamegraphError: Why not.
        """
        if head.method != "POST":
            raise MethodNotAllowed(f"predictions are asked for with POST, not {head.method[:16]}", allowed=("POST",))
        timeout_s = _timeout_s(head.headers)
        on_error: OnError = "fail" if head.protocol == "v1" and not head.query else _on_error(head)
        if head.declared > self.limits.max_body_bytes:
            raise self.too_large()
        encoding = head.headers.get(b"content-encoding", b"identity")
        if encoding.lower() != b"identity":
            raise InputError(
                f"content-encoding {encoding[:40].decode('latin-1')!r} is not supported; send the body as it is",
                code="unsupported_media_type",
            )
        target = head.target
        served = self._predictor.route(target.model, target.version, target.label)
        if head.protocol not in ("v1", "v2"):
            v1.check_media_type(served.runtime.signature, head.content_type)
        return Place(served, self._gate.reserve(head.declared), timeout_s, on_error)

    def too_large(self) -> BodyTooLarge:
        """Return the refusal of a body over the limit."""
        limit = self.limits.max_body_bytes
        return BodyTooLarge(f"the body is larger than the limit of {limit} bytes; send fewer instances or smaller images per request")

    def too_slow(self) -> BodyTooSlow:
        """Return the refusal of a body that does not arrive."""
        limit = self.limits.body_timeout_s
        return BodyTooSlow(f"the body did not arrive within {limit:g} s; send it faster or in smaller requests")

    # --- with the body ------------------------------------------------------------------------------------------------

    def run(self, head: Head, place: Place, body: bytes, done: Callable[[Response], None]) -> Handle:
        """Run an admitted request; `done` is called exactly once, perhaps before this returns."""
        call, encode = _exchange(head, place, body, self.limits)

        def finished(outcome: Outcome) -> None:
            if isinstance(outcome, Failure):
                done(self.failed(outcome.error, head))
            elif outcome.n * place.served.values_per_row > ENCODE_ON_HOST_VALUES:
                self._host.submit(lambda: self._loop.call_soon_threadsafe(respond, outcome, *_encoded(encode, outcome)))
            else:
                respond(outcome, *_encoded(encode, outcome))

        def respond(answer: Answer, body: bytes | SamegraphError, seconds: float) -> None:
            place.served.metrics.encode.observe(seconds)
            done(self.failed(body, head) if isinstance(body, SamegraphError) else _answered(head, answer, body))

        return self._predictor.submit(place.served, call, place.reservation, finished)

    def failed(self, error: SamegraphError, head: Head) -> Response:
        """Return the response to a request that failed."""
        status, headers, body = error_document.response(error, head.request_id)
        response = Response(status, body, headers=headers)
        response.error = error
        return response

    def crashed(self, head: Head, error: Exception) -> Response:
        """Log an exception nobody expected and return a response that does not tell it."""
        with bind_request_id(head.request_id):
            log.error("request_crashed", exc_info=error, path=head.path)
        return self.failed(Internal(), head)

    # --- taps ---------------------------------------------------------------------------------------------------------

    def note(self, head: Head, response: Response) -> None:
        """Count and log an answer, or a caller who left before it."""
        seconds = self._loop.time() - head.received
        answer = response.answer
        if answer is not None:
            model, version, code = answer.model, answer.version, ""
            self._count(answer, seconds)
        else:
            version = 0
            model, code = self._count_failure(head, response)
        self._metrics.request(model, version, head.protocol, response.status)
        if self._access_log is not None:
            self._access_log.record(
                head.method,
                head.path,
                response.status,
                seconds,
                head.request_id,
                head.client,
                head.declared,
                len(response.body),
                model,
                version,
                0 if answer is None else answer.n,
                code,
            )

    def _count(self, answer: Answer, seconds: float) -> None:
        served = self._routes().models[answer.model].ready.get(answer.version) if answer.model in self._routes().models else None
        if served is not None:
            served.metrics.duration.observe(seconds)
        for failure in answer.errors.values():
            self._metrics.error(answer.model, error_document.mapping_of(failure).code)

    def _count_failure(self, head: Head, response: Response) -> tuple[str, str]:
        """Count a request that failed; return its model (of the closed set) and error code."""
        model = head.target.model if head.target.model in self._routes().models else UNKNOWN_MODEL
        if response.error is None:
            return model, ""
        if isinstance(response.error, CallerGone):
            self._metrics.cancelled += 1
        code = error_document.mapping_of(response.error).code
        self._metrics.error(model, code)
        return model, code


# --- protocols ------------------------------------------------------------------------------------------------------------


def _exchange(head: Head, place: Place, body: bytes, limits: HttpLimits) -> tuple[Call, Callable[[Answer], bytes]]:
    """Return a request's call and what writes its answer."""
    target, size, protocol = head.target, len(body), head.protocol
    content_type, most = head.content_type, limits.max_instances

    def decode(signature: Signature) -> Decoded:
        return v1.decode(signature, content_type, body, most)

    call = Call(
        target.model,
        target.version,
        target.label,
        decode,
        head.request_id,
        size,
        place.timeout_s,
        head.received,
        place.on_error,
        protocol,
        size > DECODE_ON_HOST_BYTES and protocol != "raw",
    )
    if protocol != "v2":
        return call, v1.encode
    exchange = _V2(call, body, most)
    call.decode = exchange.decode
    return call, exchange.encode


class _V2:
    """A V2 request: its body may ask for outputs and set a deadline."""

    __slots__ = ("_body", "_call", "_limit", "_request")

    def __init__(self, call: Call, body: bytes, max_instances: int) -> None:
        self._call = call
        self._body = body
        self._limit = max_instances
        self._request: v2.InferRequest | None = None

    def decode(self, signature: Signature) -> Decoded:
        """Read the body; a deadline in it shortens the call's."""
        request = v2.parse(self._body)
        asked = v2.timeout_s(request)
        if asked is not None:
            self._call.timeout_s = asked if self._call.timeout_s is None else min(self._call.timeout_s, asked)
        self._request = request
        return v2.decode(signature, request, self._limit)

    def encode(self, answer: Answer) -> bytes:
        """Write the answer; InputError when it asks for an output there is not."""
        assert self._request is not None
        v2.check_outputs(answer.signature_outputs, self._request)
        return v2.encode(answer, self._request)


def _encoded(encode: Callable[[Answer], bytes], answer: Answer) -> tuple[bytes | SamegraphError, float]:
    """Write an answer and take the time."""
    started = time.perf_counter()
    body: bytes | SamegraphError
    try:
        body = encode(answer)
    except SamegraphError as error:
        body = error
    except Exception as error:
        log.error("encode_failed", exc_info=error, model=answer.model, version=answer.version)
        body = Internal()
    return body, time.perf_counter() - started


def _answered(head: Head, answer: Answer, body: bytes) -> Response:
    headers = [(b"samegraph-failed-instances", b"%d" % len(answer.errors))] if answer.errors else None
    static = _static(answer.model, answer.version, answer.digest)
    response = Response(200, body, request_id=head.request_id.encode(), static=static, headers=headers)
    response.answer = answer
    return response


@lru_cache(maxsize=1024)
def _static(model: str, version: int, digest: str) -> Static:
    pairs = (
        (b"content-type", b"application/json"),
        (b"samegraph-model", model.encode()),
        (b"samegraph-model-version", b"%d" % version),
        (b"samegraph-package-digest", digest.encode()),
    )
    return Static(pairs, _status_line(200) + b"".join(b"%b: %b\r\n" % pair for pair in pairs))


@lru_cache(maxsize=128)
def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode()


def _timeout_s(headers: dict[bytes, bytes]) -> float | None:
    """Return the caller's deadline in seconds from its header.

    Raises:
        BadDeadline: The header is not a positive number.
    """
    for name, scale in ((b"x-request-timeout-seconds", 1.0), (b"x-deadline-ms", 0.001)):
        if name in headers:
            try:
                seconds = -1.0 if b"_" in headers[name] else float(headers[name]) * scale  # Python alone reads 1_000 as a number
            except ValueError:
                seconds = -1.0
            if not (seconds > 0 and math.isfinite(seconds)):
                raise BadDeadline(f"header {name.decode()} must be a positive number; got {headers[name][:40].decode('latin-1')!r}")
            return seconds
    return None


def _on_error(head: Head) -> OnError:
    default = v1.default_on_error(v1.protocol_of(head.content_type)) if head.target.protocol == "v1" else "fail"
    for name, value in parse_qsl(head.query.decode("latin-1"), keep_blank_values=True):
        if name == "on_error":
            if value not in ("fail", "partial") or (value == "partial" and head.target.protocol == "v2"):
                raise InputError(f"on_error must be 'fail' or, in V1, 'partial'; got {value[:40]!r}", code="bad_body", field="on_error")
            return "partial" if value == "partial" else "fail"
    return default
