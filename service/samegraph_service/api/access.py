"""The access log of everything that is not a prediction: health, metrics, metadata, pages, admin, and what nothing answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from samegraph_service.logs import AccessLog

#: Where an error handler leaves the code of the error it answered, in the scope.
CODE = "samegraph.code"


class AccessLogged:
    """An ASGI application that notes every HTTP answer of another.

    Predictions note themselves (`api.front`), on both ways in, with what only they know.

    Args:
        app: The application.
        log: Where answers are noted.
        now: Reads a monotonic clock, in seconds.
    """

    def __init__(self, app: ASGIApp, log: AccessLog, now: Callable[[], float]) -> None:
        self._app = app
        self._log = log
        self._now = now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, answer = self._now(), _Answer(send)
        try:
            await self._app(scope, receive, answer.send)
        finally:
            client = scope.get("client")
            self._log.record(
                scope["method"],
                scope["path"],
                answer.status,
                self._now() - started,
                answer.request_id,
                client[0] if client else "",
                _declared(scope),
                answer.bytes,
                code=scope.get(CODE, ""),
            )


class _Answer:
    """What went out; status 500 when the application ended without an answer."""

    __slots__ = ("_send", "bytes", "request_id", "status")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 500
        self.bytes = 0
        self.request_id = ""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.request_id = _header(message, b"x-request-id")
        elif message["type"] == "http.response.body":
            self.bytes += len(message.get("body", b""))
        await self._send(message)


def _declared(scope: Scope) -> int:
    length = _header(scope, b"content-length")
    return int(length) if length.isdecimal() and len(length) < 20 else 0


def _header(message: Any, wanted: bytes) -> str:
    return next((value.decode("latin-1") for name, value in message.get("headers", ()) if name == wanted), "")
