"""The gRPC way in: a thin adapter that turns calls into the exchanges HTTP has, so that all of `api.front` holds for them too.

    message → Exchange → front.admit → front.run → message or status

A call's metadata are its headers: deadline, request id and everything else that is read there. The library reads a whole message before
it hands over a call, bounded by the limit of a body; refusing on the headers alone is HTTP's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NoReturn, TypeAlias

import grpc
from grpc import aio
from samegraph_transforms.errors import SamegraphError
from samegraph_transforms.signature import Signature
from samegraph_transforms.wire import Decoded

from samegraph_service.api import error_document, v2_service
from samegraph_service.api.front import DECODE_ON_HOST_BYTES, Exchange, Front, Head, Response, decode_v2
from samegraph_service.api.paths import Target
from samegraph_service.call import Answer, Call
from samegraph_service.errors import DeadlineExceeded, Internal, UnknownModel, UnknownVersion
from samegraph_service.logs import get_logger
from samegraph_service.service import Service

from . import messages

log = get_logger("samegraph.grpc")

SERVICE = "inference.GRPCInferenceService"
#: Calls beyond those that admission lets in: they wait for nothing, and are told so in words.
_SPARE_CALLS = 64
#: Metadata that mean something else, or nothing, in a message.
_NOT_HEADERS = frozenset({"content-encoding", "accept-encoding", "content-type", "transfer-encoding", "expect", "content-length"})
#: Those of one call that must not be taken for every request of its stream.
_NOT_OF_A_STREAM = frozenset({b"x-request-id", b"idempotency-key"})
#: Methods of Triton's service that are refused, and the extension each belongs to.
_REFUSED = {
    "SystemSharedMemoryStatus": "systemsharedmemory",
    "SystemSharedMemoryRegister": "systemsharedmemory",
    "SystemSharedMemoryUnregister": "systemsharedmemory",
    "CudaSharedMemoryStatus": "cudasharedmemory",
    "CudaSharedMemoryRegister": "cudasharedmemory",
    "CudaSharedMemoryUnregister": "cudasharedmemory",
    "TraceSetting": "trace",
    "LogSettings": "logging",
}

Context: TypeAlias = Any
Metadata: TypeAlias = list[tuple[str, str | bytes]]
Ask: TypeAlias = Callable[[Any, Context], Awaitable[Mapping[str, Any]]]


class GrpcServer:
    """V2 over gRPC for a running service. Make, start and stop it on the service's event loop.

    Args:
        service: What answers.
        host: Address to listen on.
        port: TCP port; 0 lets the system choose.
        stream_window: Requests of one stream that run at the same time.
    """

    def __init__(self, service: Service, host: str, port: int, stream_window: int) -> None:
        self._service = service
        self._front = service.front
        self._window = stream_window
        self._loop = asyncio.get_running_loop()
        limits = service.settings.limits
        self._server = aio.server(
            options=(
                ("grpc.max_receive_message_length", limits.max_body_bytes),  # inflated, too
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # a second server on the port is an error, not half of the traffic
                ("grpc.http2.min_ping_interval_without_data_ms", 5000),
            ),
            maximum_concurrent_rpcs=limits.max_requests + _SPARE_CALLS,
        )
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(SERVICE, self._methods()),
                grpc.method_handlers_generic_handler(
                    "grpc.health.v1.Health", {"Check": self._unary(messages.HealthRequest, messages.HealthResponse, self._health)}
                ),
            )
        )
        shown = f"[{host}]" if ":" in host else host
        #: The port in use.
        self.port: int = self._server.add_insecure_port(f"{shown}:{port}")

    async def start(self) -> None:
        """Begin to answer."""
        await self._server.start()
        log.info("grpc_listening", port=self.port)

    async def stop(self, grace_s: float) -> None:
        """Stop listening; calls that are still running get `grace_s` seconds."""
        await self._server.stop(grace_s)

    # --- methods ------------------------------------------------------------------------------------------------------

    def _methods(self) -> dict[str, Any]:
        asks: dict[str, Ask] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ServerMetadata": self._metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._statistics,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        methods = {
            name: self._unary(messages.message_type(f"{name}Request"), messages.message_type(f"{name}Response"), ask)
            for name, ask in asks.items()
        }
        methods |= {name: grpc.unary_unary_rpc_method_handler(self._refused(extension)) for name, extension in _REFUSED.items()}
        methods["ModelInfer"] = grpc.unary_unary_rpc_method_handler(self._infer)
        methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream_infer)
        return methods

    def _unary(self, asked: type[Any], answered: type[Any], ask: Ask) -> Any:
        """Return the handler of a method that answers a document."""

        async def handle(data: bytes, context: Context) -> bytes:
            try:
                return messages.filled(answered, await ask(messages.parsed(asked, data), context))
            except SamegraphError as failure:
                error = failure
            except Exception:  # the caller gets the error, and the log the traceback, whatever broke
                log.exception("request_crashed", method=asked.DESCRIPTOR.name)
                error = Internal()
            return await self._abort(context, self._front.failed(error, self._front.fresh_id()))

        return grpc.unary_unary_rpc_method_handler(handle)

    def _refused(self, extension: str) -> Callable[[bytes, Context], Awaitable[bytes]]:
        async def handle(_: bytes, context: Context) -> bytes:
            return await self._abort(context, self._front.failed(v2_service.unsupported(extension), self._front.fresh_id()))

        return handle

    async def _health(self, request: Any, _: Context) -> Mapping[str, Any]:
        """Answer the standard check: of the whole server, of this service, or of a model by its name."""
        name = request.service
        whole = name in ("", SERVICE)
        ready = self._service.readiness()[0] if whole else v2_service.model_ready(self._service, name, None)
        return {"status": "SERVING" if ready else "NOT_SERVING"}

    async def _live(self, _: Any, __: Context) -> Mapping[str, Any]:
        return {"live": True}

    async def _ready(self, _: Any, __: Context) -> Mapping[str, Any]:
        return {"ready": self._service.readiness()[0]}

    async def _metadata(self, _: Any, __: Context) -> Mapping[str, Any]:
        return v2_service.server_metadata()

    async def _model_ready(self, request: Any, _: Context) -> Mapping[str, Any]:
        try:
            return {"ready": v2_service.model_ready(self._service, request.name, v2_service.version_of(request.version))}
        except (UnknownModel, UnknownVersion):
            return {"ready": False}  # as Triton says it: its clients ask this way whether a model is there

    async def _model_metadata(self, request: Any, _: Context) -> Mapping[str, Any]:
        return v2_service.model_metadata(self._service, request.name, v2_service.version_of(request.version))

    async def _model_config(self, request: Any, _: Context) -> Mapping[str, Any]:
        return {"config": v2_service.model_config(self._service, request.name, v2_service.version_of(request.version))}

    async def _statistics(self, request: Any, _: Context) -> Mapping[str, Any]:
        return v2_service.statistics(self._service, request.name or None, v2_service.version_of(request.version))

    async def _index(self, request: Any, _: Context) -> Mapping[str, Any]:
        return {"models": v2_service.index(self._service, ready_only=request.ready)}

    async def _load(self, request: Any, context: Context) -> Mapping[str, Any]:
        self._authorise(context)
        await v2_service.load(self._service, request.model_name, messages.parameters_of(request.parameters))
        return {}

    async def _unload(self, request: Any, context: Context) -> Mapping[str, Any]:
        self._authorise(context)
        await v2_service.unload(self._service, request.model_name)
        return {}

    def _authorise(self, context: Context) -> None:
        v2_service.authorise(self._service, _headers(context).get(b"authorization", b"").decode("latin-1"))

    # --- inference ----------------------------------------------------------------------------------------------------

    async def _infer(self, data: bytes, context: Context) -> bytes:
        response = await self._respond(data, _headers(context), context)
        if response.error is not None:
            await self._abort(context, response)
        await context.send_initial_metadata([(name, value) for name, value in _metadata_of(response) if isinstance(value, str)])
        return response.body

    async def _stream_infer(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        """Answer a stream's requests in order; some run at the same time, so that they share executions."""
        running: asyncio.Queue[asyncio.Task[Response] | None] = asyncio.Queue(self._window)
        headers = {name: value for name, value in _headers(context).items() if name not in _NOT_OF_A_STREAM}

        async def read() -> None:
            async for data in requests:
                await running.put(self._loop.create_task(self._respond(data, headers, context)))
            await running.put(None)

        reader = self._loop.create_task(read())
        task: asyncio.Task[Response] | None = None
        try:
            while (task := await running.get()) is not None:
                yield _streamed(await task)
        finally:
            reader.cancel()
            while task is not None:
                task.cancel()
                task = None if running.empty() else running.get_nowait()

    async def _respond(self, data: bytes, headers: dict[bytes, bytes], context: Context) -> Response:
        """Run one inference request; everything that can go wrong is in the response."""
        front = self._front
        try:
            if len(data) > DECODE_ON_HOST_BYTES:
                message = await self._loop.run_in_executor(self._service.host, messages.parsed, messages.InferRequest, data)
            else:
                message = messages.parsed(messages.InferRequest, data)
            target = Target("v2", message.model_name[:128], v2_service.version_of(message.model_version))
        except SamegraphError as error:
            return self._unread(error)
        head = Head("POST", f"/{SERVICE}/ModelInfer", b"", {**headers, b"content-length": b"%d" % len(data)}, target)
        head.protocol = "grpc"
        exchange = _Exchange(front, head, _address(context.peer()), message, self._loop)
        try:
            front.admit(exchange)
            remaining = context.time_remaining()
            if remaining is not None:
                if remaining <= 0:
                    raise DeadlineExceeded("the deadline passed before the request was read")
                exchange.timeout_s = remaining if exchange.timeout_s is None else min(exchange.timeout_s, remaining)
            response = await exchange.run(data)
        except SamegraphError as error:
            exchange.release()
            response = front.refused(error, exchange)
        except Exception as error:  # noqa: BLE001 - the caller gets a document and the log the traceback, whatever broke
            exchange.release()
            response = front.crashed(exchange, error)
        front.note(exchange, response)
        return response

    def _unread(self, error: SamegraphError) -> Response:
        """Return the response to a message that names no model yet."""
        response = self._front.failed(error, self._front.fresh_id())
        self._front.note_unread("grpc", response)
        return response

    async def _abort(self, context: Context, response: Response) -> NoReturn:
        """End a call with what went wrong: the status, the text, and the whole document in the metadata."""
        error = response.error
        assert error is not None
        status = grpc.StatusCode[error_document.grpc_status(error)]
        await context.abort(status, error_document.document(error, "")["error"], tuple(_metadata_of(response)))
        raise AssertionError("abort raises")


class _Exchange(Exchange):
    """One inference request over gRPC."""

    complete = True  # its message is here before it is admitted

    __slots__ = ("_abandoned", "_front", "_ready", "message")

    def __init__(self, front: Front, head: Head, client: str, message: Any, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(front, head, client)
        self.decode = _decode
        self.message = message
        self._front = front
        self._ready: asyncio.Future[Response] = loop.create_future()
        self._abandoned = False

    async def run(self, data: bytes) -> Response:
        """Run an admitted request; a caller who cancels takes its waiting rows along."""
        self._front.run(self, data)
        if self._ready.done():
            return self._ready.result()
        try:
            await asyncio.wait((self._ready,))
        except asyncio.CancelledError:
            self.cancel()
            if self._ready.done():
                self._front.note(self, self._ready.result())
            self._abandoned = True
            raise
        return self._ready.result()

    def respond(self, response: Response) -> None:
        """See `Exchange.respond`."""
        if self._abandoned:
            self._front.note(self, response)
        elif not self._ready.done():
            self._ready.set_result(response)

    def encode(self, answer: Answer) -> bytes:
        """See `Exchange.encode`."""
        assert self.v2 is not None
        data: bytes = messages.response_to(answer, self.v2).SerializeToString()
        return data


def _decode(call: Call, signature: Signature) -> Decoded:
    assert isinstance(call, _Exchange)
    message = call.message
    if call.undecided is None:  # else another version may have to read it again
        call.message = None
    return decode_v2(call, signature, messages.to_request(message))


def _headers(context: Context) -> dict[bytes, bytes]:
    """Return a call's metadata as headers; of a repeated one the last."""
    return {
        name.encode(): value if isinstance(value, bytes) else value.encode("latin-1", "replace")
        for name, value in context.invocation_metadata() or ()
        if name not in _NOT_HEADERS and not name.startswith("grpc-")
    }


def _metadata_of(response: Response) -> Metadata:
    """Return a response's headers as metadata; of a failed one with its document."""
    metadata: Metadata = [
        (name.decode(), value.decode("latin-1")) for name, value in response.pairs() if not name.startswith((b"content-", b"www-"))
    ]
    if response.error is not None:
        metadata.append(("samegraph-error-bin", response.body))
        # What gRPC's own retries obey (proposal A6): this many milliseconds, or never.
        waits = [value for name, value in metadata if name == "retry-after-ms"]
        metadata += [("grpc-retry-pushback-ms", value) for value in waits]
    return metadata


def _streamed(response: Response) -> bytes:
    """Return a response as an entry of a stream."""
    if response.error is not None:
        text = error_document.document(response.error, "")["error"]
        message = messages.StreamInferResponse(error_message=text)
    else:
        message = messages.StreamInferResponse()
        message.infer_response.MergeFromString(response.body)
        message.infer_response.parameters["triton_final_response"].bool_param = True
    data: bytes = message.SerializeToString()
    return data


def _address(peer: str) -> str:
    """Return the address in `ipv4:127.0.0.1:5000` or `ipv6:%5B::1%5D:5000`."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return ""
    return rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "")
