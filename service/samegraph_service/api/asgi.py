"""The ASGI way in: predict paths go straight to the prediction path, everything else to FastAPI."""

from __future__ import annotations

import asyncio
import contextlib

from samegraph_transforms.errors import SamegraphError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from samegraph_service.api.front import Exchange, Front, Head, Response
from samegraph_service.api.paths import Target, predict_target
from samegraph_service.errors import BodyTooLarge, BodyTooSlow, CallerGone


class PredictGateway:
    """An ASGI application that answers predict paths and hands every other request to `fallback`.

    Args:
        fallback: The FastAPI application.
        front: What is done with a predict request.
    """

    def __init__(self, fallback: ASGIApp, front: Front) -> None:
        self._fallback = fallback
        self._front = front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI request."""
        if scope["type"] == "http":
            root = scope.get("root_path", "")
            path = scope["path"]
            target = predict_target(path[len(root) :] if root and path.startswith(root) else path)
            if target is not None:
                await _Exchange(self._front, scope, target, receive, send).serve()
                return
        await self._fallback(scope, receive, send)


class _Exchange(Exchange):
    """One predict request over ASGI."""

    def __init__(self, front: Front, scope: Scope, target: Target, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        head = Head(scope["method"], scope["path"], scope["query_string"], dict(scope["headers"]), target)
        super().__init__(front, head, client[0] if client else "")
        self._front = front
        self._receive = receive
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[Response] = self._loop.create_future()
        self._unread = head.has_body

    async def serve(self) -> None:
        front = self._front
        try:
            response = await self._response()
        except SamegraphError as error:
            response = front.refused(error, self)
        except Exception as error:  # noqa: BLE001 - the caller gets a document and the log the traceback, whatever broke
            response = front.crashed(self, error)
        if not isinstance(response.error, CallerGone):
            await self._write(response)
        front.note(self, response)

    async def _response(self) -> Response:
        self._front.admit(self)
        try:
            body = await self._body()
        except BaseException:  # cancelled as well: the place must not stay taken
            self.release()
            raise
        self._unread = False
        return await self._run(body)

    def respond(self, response: Response) -> None:
        """See `Exchange.respond`."""
        if not self._ready.done():
            self._ready.set_result(response)

    async def _run(self, body: bytes) -> Response:
        """Run the request; a caller who hangs up takes his waiting rows along."""
        done = self._ready
        self._front.run(self, body)
        if done.done():
            return done.result()
        gone = self._loop.create_task(self._hung_up())  # uvicorn tells a handler that its client left but does not cancel it
        try:
            await asyncio.wait((done, gone), return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                self.cancel()
            return await done
        except asyncio.CancelledError:
            self.cancel()
            raise
        finally:
            gone.cancel()

    async def _hung_up(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    # --- reading ------------------------------------------------------------------------------------------------------

    async def _body(self) -> bytes:
        """Read the whole body within the limits of size and time, counting what was not declared."""
        try:
            async with asyncio.timeout(self._front.limits.body_timeout_s):
                return await self._chunks(await self._receive())
        except TimeoutError as error:
            raise self._front.too_slow() from error

    async def _chunks(self, message: Message) -> bytes:
        chunks: list[bytes] = []
        size = 0
        while True:
            if message["type"] == "http.disconnect":
                raise CallerGone("the caller hung up before the body was complete")
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self._front.limits.max_body_bytes:
                raise self._front.too_large()
            if self.reservation is not None:
                self.reservation.hold(size)
            chunks.append(chunk)
            if not message.get("more_body", False):
                return chunk if len(chunks) == 1 else b"".join(chunks)
            message = await self._receive()

    async def _discard(self) -> None:
        """Read the rest of a body, up to the size and for the time a good one may have."""
        left = self._front.limits.max_body_bytes
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._front.limits.discard_s):
                while left > 0:
                    message = await self._receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return

    # --- writing ------------------------------------------------------------------------------------------------------

    async def _write(self, response: Response) -> None:
        """Write the answer; one that came before the body was read must not be lost to it.

        Closing a connection on which bytes still arrive resets it, and the caller may never see why he was refused. So the
        answer goes out whole, the rest of the body is read and thrown away within bounds, and only then is the answer ended.
        A caller who waits for `100 Continue` sends no body: reading would ask him for it.
        """
        headers = response.pairs()
        waits = self._unread and b"expect" in self.head.headers
        if self._front.draining or waits or isinstance(response.error, BodyTooLarge | BodyTooSlow):
            headers.append((b"connection", b"close"))
        await self._send({"type": "http.response.start", "status": response.status, "headers": headers})
        if self._unread and not waits and not isinstance(response.error, BodyTooSlow):
            await self._send({"type": "http.response.body", "body": response.body, "more_body": True})
            await self._discard()
            await self._send({"type": "http.response.body", "body": b""})
        else:
            await self._send({"type": "http.response.body", "body": response.body})
