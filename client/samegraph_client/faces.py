"""The two faces of the client: `Client` blocks, `AsyncClient` awaits. Neither decides anything; `core.py` does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Literal, Self

from .core import Answer, Core, Exchange, Pause, Prediction, Send
from .encoding import Wire
from .errors import TransportFailure
from .policy import RetryPolicy
from .transport import AsyncHttpxTransport, AsyncTransport, HttpxTransport, Transport


class Client:
    """Sends raw inputs to a model server and waits for the answers; may be shared by threads.

    Args:
        base_url: Where the server is, for example `http://127.0.0.1:8000`.
        policy: When and how long to retry; the default waits for a minute in total.
        headers: Sent with every request (an API key, say).
        wire: `v1` sends V1 JSON only, for servers that know no raw bodies.
        transport: Sends the requests; closed with the client.
        clock: Monotonic seconds.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        base_url: str,
        *,
        policy: RetryPolicy | None = None,
        headers: Mapping[str, str] | None = None,
        wire: Wire = "auto",
        transport: Transport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._core = Core(base_url.rstrip("/"), policy or RetryPolicy(), dict(headers or {}), wire, clock)
        self._transport = transport or HttpxTransport()
        self._sleep = sleep

    def predict(
        self,
        model: str,
        raw: object,
        *,
        version: int | str | None = None,
        label: str | None = None,
        on_error: Literal["fail", "partial"] = "fail",
        headers: Mapping[str, str] | None = None,
        deadline_s: float | None = None,
    ) -> Prediction:
        """Return the model's prediction for a raw input.

        Args:
            model: Name of the model.
            raw: One instance (a mapping of fields, a bare value, bytes, or a path to a file), or a list of instances.
            version: Pins a version; None takes the server's default.
            label: Pins a label instead.
            on_error: `fail`: one bad instance fails the call. `partial`: it costs only its own place in the list.
            headers: Sent with this call.
            deadline_s: Overrides the policy's deadline for this call.

        Raises:
            RawInputInvalid: The raw input has no form on the wire; nothing was sent.
            ServerError: The server refused it for good, or kept refusing until the policy gave up.
            TransportFailure: No attempt got an answer.
            DeadlineExceeded: The deadline leaves no room for another attempt.
            AnswerNotUnderstood: The answer is not in V1's shape.
        """
        return self._play(
            self._core.predict(model, raw, version=version, label=label, on_error=on_error, headers=headers, deadline_s=deadline_s)
        )

    def _play(self, exchange: Exchange) -> Prediction:
        reply: Answer | TransportFailure | None = None
        while True:
            try:
                step = exchange.send(reply)
            except StopIteration as done:
                return _prediction(done)
            if isinstance(step, Pause):
                self._sleep(step.seconds)
                reply = None
            else:
                reply = self._send(step)

    def _send(self, step: Send) -> Answer | TransportFailure:
        try:
            return self._transport.send(step.request, step.timeout_s)
        except TransportFailure as failure:
            return failure

    def close(self) -> None:
        """Close every connection."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class AsyncClient:
    """The same as `Client`, to be awaited; one per event loop.

    Args:
        base_url: Where the server is.
        policy: When and how long to retry.
        headers: Sent with every request.
        wire: `v1` sends V1 JSON only.
        transport: Sends the requests; closed with the client.
        clock: Monotonic seconds.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        base_url: str,
        *,
        policy: RetryPolicy | None = None,
        headers: Mapping[str, str] | None = None,
        wire: Wire = "auto",
        transport: AsyncTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._core = Core(base_url.rstrip("/"), policy or RetryPolicy(), dict(headers or {}), wire, clock)
        self._transport = transport or AsyncHttpxTransport()
        self._sleep = sleep

    async def predict(
        self,
        model: str,
        raw: object,
        *,
        version: int | str | None = None,
        label: str | None = None,
        on_error: Literal["fail", "partial"] = "fail",
        headers: Mapping[str, str] | None = None,
        deadline_s: float | None = None,
    ) -> Prediction:
        """Return the model's prediction for a raw input; arguments and errors are those of `Client.predict`.

        Cancelling the call cancels it: a cancellation is never retried.
        """
        return await self._play(
            self._core.predict(model, raw, version=version, label=label, on_error=on_error, headers=headers, deadline_s=deadline_s)
        )

    async def _play(self, exchange: Exchange) -> Prediction:
        reply: Answer | TransportFailure | None = None
        while True:
            try:
                step = exchange.send(reply)
            except StopIteration as done:
                return _prediction(done)
            if isinstance(step, Pause):
                await self._sleep(step.seconds)
                reply = None
            else:
                reply = await self._send(step)

    async def _send(self, step: Send) -> Answer | TransportFailure:
        try:
            return await self._transport.send(step.request, step.timeout_s)
        except TransportFailure as failure:
            return failure

    async def close(self) -> None:
        """Close every connection."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()


def _prediction(done: StopIteration) -> Prediction:
    value = done.value
    assert isinstance(value, Prediction)
    return value
