"""The ASGI way in: predict paths go straight to the prediction path, everything else to FastAPI."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

from samegraph_transforms.errors import InputError, SamegraphError
from samegraph_transforms.signature import Signature
from samegraph_transforms.wire import Decoded
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from samegraph_service.admission import Gate
from samegraph_service.call import Answer, Call, Failure, OnError, Outcome
from samegraph_service.errors import BadDeadline, BodyTooLarge, BodyTooSlow, CallerGone, Internal, MethodNotAllowed
from samegraph_service.logs import AccessLog, bind_request_id, get_logger
from samegraph_service.metrics import UNKNOWN_MODEL, Metrics
from samegraph_service.predict import Predictor, Served
from samegraph_service.routing import RouteTable

from . import error_document, v1, v2
from .paths import Target, predict_target

log = get_logger("samegraph.http")

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._\-]{1,128}")
#: Answers with more values than this are written on a host thread: a thousand values take the loop about half a millisecond.
ENCODE_ON_HOST_VALUES = 4096
#: JSON and multipart bodies larger than this are decoded on a host thread.
DECODE_ON_HOST_BYTES = 32768
#: Longest time a refused body is read to be thrown away, in seconds.
DISCARD_S = 5.0

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of a request on the wire."""

    max_body_bytes: int
    max_instances: int
    body_timeout_s: float


@dataclass(frozen=True, slots=True)
class _Response:
    status: int
    headers: Headers
    body: bytes
    error: SamegraphError | None = None
    answer: Answer | None = None


class _Request:
    """One predict request as it arrives."""

    __slots__ = ("client", "content_type", "declared", "headers", "method", "path", "query", "received", "request_id", "target", "unread")

    def __init__(self, scope: Scope, target: Target, received: float, fresh_id: Callable[[], str]) -> None:
        self.target = target
        self.received = received
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        client = scope.get("client")
        self.client = client[0] if client else ""
        given = self.headers.get(b"x-request-id", b"")
        self.request_id = given.decode() if _REQUEST_ID.fullmatch(given) else fresh_id()
        self.content_type = self.headers.get(b"content-type", b"application/json").decode("latin-1")
        length = self.headers.get(b"content-length", b"")
        self.declared = int(length) if length.isdigit() else 0
        self.unread = self.declared > 0 or b"transfer-encoding" in self.headers


class PredictGateway:
    """An ASGI application that answers predict paths and hands every other request to `fallback`.

    Args:
        fallback: The FastAPI application.
        predictor: The prediction path.
        gate: Admission.
        routes: Returns the table in force.
        metrics: Counts answers.
        access_log: Notes answers; None for no access log.
        host: Threads for large bodies and answers.
        limits: Bounds on the wire.
    """

    def __init__(
        self,
        fallback: ASGIApp,
        *,
        predictor: Predictor,
        gate: Gate,
        routes: Callable[[], RouteTable[Served]],
        metrics: Metrics,
        access_log: AccessLog | None,
        host: ThreadPoolExecutor,
        limits: HttpLimits,
    ) -> None:
        self._fallback = fallback
        self._predictor = predictor
        self._gate = gate
        self._routes = routes
        self._metrics = metrics
        self._access_log = access_log
        self._host = host
        self._limits = limits
        self._ids = itertools.count(1)
        self._boot = os.urandom(6).hex()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI request."""
        if scope["type"] == "http":
            root = scope.get("root_path", "")
            path = scope["path"]
            target = predict_target(path[len(root) :] if root and path.startswith(root) else path)
            if target is not None:
                await self._answer(scope, target, receive, send)
                return
        await self._fallback(scope, receive, send)

    def fresh_id(self) -> str:
        """Return an id no other request of this process, and very likely of any other, has."""
        return f"{self._boot}-{next(self._ids):x}"

    # --- one request --------------------------------------------------------------------------------------------------

    async def _answer(self, scope: Scope, target: Target, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        request = _Request(scope, target, loop.time(), self.fresh_id)
        try:
            response = await self._respond(request, receive)
        except SamegraphError as error:
            response = _failed(error, request.request_id)
        except Exception:
            with bind_request_id(request.request_id):
                log.exception("request_crashed", path=request.path)
            response = _failed(Internal(), request.request_id)
        if isinstance(response.error, CallerGone):
            self._metrics.cancelled += 1
        else:
            await self._send(request, response, receive, send)
        self._note(request, response, loop.time() - request.received)

    async def _respond(self, request: _Request, receive: Receive) -> _Response:
        if request.method != "POST":
            raise MethodNotAllowed(f"predictions are asked for with POST, not {request.method[:16]}", allowed=("POST",))
        timeout_s = _timeout_s(request.headers)
        on_error = _on_error(request)
        if request.declared > self._limits.max_body_bytes:
            raise self._too_large()
        target = request.target
        _, served = self._routes().resolve(target.model, target.version, target.label)
        if target.protocol == "v1":
            v1.check_media_type(served.runtime.signature, request.content_type)
        reservation = self._gate.reserve(request.declared)
        try:
            body = await self._body(receive)
            request.unread = False
            call, encode = self._call(request, body, timeout_s, on_error)
        except BaseException:
            reservation.release()
            raise
        outcome = await self._submit(call, reservation, receive)
        if isinstance(outcome, Failure):
            return _failed(outcome.error, request.request_id)
        return await self._encoded(outcome, encode, served)

    def _call(self, request: _Request, body: bytes, timeout_s: float | None, on_error: OnError) -> tuple[Call, Callable[[Answer], bytes]]:
        """Build the call, and what will write its answer."""
        target, limit = request.target, self._limits.max_instances
        if target.protocol == "v2":
            infer = v2.parse(body)
            asked = v2.timeout_s(infer)
            call = Call(
                target.model,
                target.version,
                None,
                lambda signature: v2.decode(signature, infer, limit),
                request.request_id,
                len(body),
                asked if timeout_s is None else min(timeout_s, asked or timeout_s),
                request.received,
                "fail",
                "v2",
                len(body) > DECODE_ON_HOST_BYTES,
            )
            return call, lambda answer: _encode_v2(answer, infer)
        content_type = request.content_type
        protocol = v1.protocol_of(content_type)

        def decode(signature: Signature) -> Decoded:
            return v1.decode(signature, content_type, body, limit)

        call = Call(
            target.model,
            target.version,
            target.label,
            decode,
            request.request_id,
            len(body),
            timeout_s,
            request.received,
            on_error,
            protocol,
            protocol != "raw" and len(body) > DECODE_ON_HOST_BYTES,
        )
        return call, v1.encode

    async def _body(self, receive: Receive) -> bytes:
        """Read the whole body within the limits of size and time."""
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                message = await receive()
                if message["type"] == "http.request" and not message.get("more_body", False):
                    return self._within(message.get("body", b""))
                return await self._chunks(message, receive)
        except TimeoutError as error:
            raise BodyTooSlow(
                f"the body did not arrive within {self._limits.body_timeout_s:g} s; send it faster or in smaller requests"
            ) from error

    async def _chunks(self, message: Message, receive: Receive) -> bytes:
        chunks: list[bytes] = []
        size = 0
        while True:
            if message["type"] == "http.disconnect":
                raise CallerGone("the caller hung up before the body was complete")
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self._limits.max_body_bytes:
                raise self._too_large()
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)
            message = await receive()

    def _within(self, body: bytes) -> bytes:
        if len(body) > self._limits.max_body_bytes:
            raise self._too_large()
        return body

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(
            f"the body is larger than the limit of {self._limits.max_body_bytes} bytes; send fewer instances or smaller images per request"
        )

    async def _submit(self, call: Call, reservation: Any, receive: Receive) -> Outcome:
        """Run the call; a caller who hangs up takes his waiting rows along."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Outcome] = loop.create_future()
        handle = self._predictor.submit(call, reservation, lambda outcome: None if done.done() else done.set_result(outcome))
        if done.done():
            return done.result()
        gone = loop.create_task(_disconnected(receive))  # uvicorn tells a handler that its client left but does not cancel it
        try:
            await asyncio.wait((done, gone), return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                handle.cancel()
            return await done
        except asyncio.CancelledError:
            handle.cancel()
            raise
        finally:
            gone.cancel()

    async def _encoded(self, answer: Answer, encode: Callable[[Answer], bytes], served: Served) -> _Response:
        loop = asyncio.get_running_loop()
        started = loop.time()
        if sum(a.size for a in answer.arrays) > ENCODE_ON_HOST_VALUES:
            body = await loop.run_in_executor(self._host, encode, answer)
        else:
            body = encode(answer)
        served.metrics.stages["encode"].observe(loop.time() - started)
        headers = _answer_headers(answer.model, answer.version, answer.digest).copy()
        identifier = answer.request_id.encode()
        headers += [(b"content-length", b"%d" % len(body)), (b"x-request-id", identifier), (b"samegraph-prediction-id", identifier)]
        if answer.errors:
            headers.append((b"samegraph-failed-instances", b"%d" % len(answer.errors)))
        return _Response(200, headers, body, answer=answer)

    async def _send(self, request: _Request, response: _Response, receive: Receive, send: Send) -> None:
        """Write the answer; one that came before the body was read must not be lost to it.

        Closing a connection on which bytes still arrive resets it, and the caller may never see why he was refused. So the
        answer goes out whole, the rest of the body is read and thrown away within bounds, and only then is the answer ended.
        A caller who waits for `100 Continue` sends no body: reading would ask him for it.
        """
        waits = request.unread and b"expect" in request.headers
        if self._gate.draining or waits or isinstance(response.error, BodyTooLarge | BodyTooSlow):
            response.headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": response.status, "headers": response.headers})
        if request.unread and not waits:
            await send({"type": "http.response.body", "body": response.body, "more_body": True})
            await self._discard(receive)
            await send({"type": "http.response.body", "body": b""})
        else:
            await send({"type": "http.response.body", "body": response.body})

    async def _discard(self, receive: Receive) -> None:
        """Read the rest of a body, up to the size and for the time a good one may have."""
        left = self._limits.max_body_bytes
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(self._limits.body_timeout_s, DISCARD_S)):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return

    # --- taps ---------------------------------------------------------------------------------------------------------

    def _note(self, request: _Request, response: _Response, seconds: float) -> None:
        protocol = "v2" if request.target.protocol == "v2" else v1.protocol_of(request.content_type)
        answer = response.answer
        code = None if response.error is None else error_document.mapping_of(response.error).code
        routes = self._routes().models.get(request.target.model)
        model = request.target.model if routes is not None else UNKNOWN_MODEL
        version = str(answer.version) if answer is not None else ""
        self._metrics.request(model, version, protocol, response.status, code)
        if answer is not None:
            served = routes.ready.get(answer.version) if routes is not None else None
            if served is not None:
                served.metrics.duration.observe(seconds)
            for error in answer.errors.values():
                self._metrics.error(model, error_document.mapping_of(error).code)
        if self._access_log is not None:
            self._access_log.record(
                request.method,
                request.path,
                response.status,
                seconds,
                request.request_id,
                request.client,
                request.declared,
                len(response.body),
                model,
                answer.version if answer is not None else 0,
                answer.n if answer is not None else 0,
                code or "",
            )


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _failed(error: SamegraphError, request_id: str) -> _Response:
    status, headers, body = error_document.response(error, request_id)
    return _Response(status, headers, body, error=error)


def _encode_v2(answer: Answer, infer: v2.InferRequest) -> bytes:
    v2.check_outputs(answer.signature_outputs, infer)
    return v2.encode(answer, infer)


@lru_cache(maxsize=1024)
def _answer_headers(model: str, version: int, digest: str) -> Headers:
    return [
        (b"content-type", b"application/json"),
        (b"samegraph-model", model.encode()),
        (b"samegraph-model-version", b"%d" % version),
        (b"samegraph-package-digest", digest.encode()),
    ]


def _timeout_s(headers: dict[bytes, bytes]) -> float | None:
    """Return the caller's deadline in seconds from its header.

    Raises:
        BadDeadline: The header is not a positive number.
    """
    for name, scale in ((b"x-request-timeout-seconds", 1.0), (b"x-deadline-ms", 0.001)):
        if name in headers:
            try:
                seconds = float(headers[name]) * scale
            except ValueError:
                seconds = -1.0
            if not (seconds > 0 and math.isfinite(seconds)):
                raise BadDeadline(f"header {name.decode()} must be a positive number; got {headers[name][:40].decode('latin-1')!r}")
            return seconds
    return None


def _on_error(request: _Request) -> OnError:
    default = v1.default_on_error(v1.protocol_of(request.content_type)) if request.target.protocol == "v1" else "fail"
    if not request.query:
        return default
    for name, value in parse_qsl(request.query.decode("latin-1"), keep_blank_values=True):
        if name == "on_error":
            if value not in ("fail", "partial") or (value == "partial" and request.target.protocol == "v2"):
                raise InputError(f"on_error must be 'fail' or, in V1, 'partial'; got {value[:40]!r}", code="bad_body", field="on_error")
            return "partial" if value == "partial" else "fail"
    return default
