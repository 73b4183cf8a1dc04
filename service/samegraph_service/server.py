"""Run the application under uvicorn, with our own order of shutdown."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from samegraph_transforms.errors import SamegraphError

from .api.front import Front
from .api.protocol import protocol_class
from .app import Application
from .logs import get_logger
from .service import Service
from .settings import Settings

if TYPE_CHECKING:
    from .rpc.server import GrpcServer

log = get_logger("samegraph.server")

#: Seconds that calls whose answers were just made have to be written.
_GRPC_GRACE_S = 1.0


class CannotListen(SamegraphError):
    """Raised when the address cannot be listened on."""


class Server(uvicorn.Server):
    """uvicorn that drains before it stops listening.

    SIGTERM or SIGINT: not ready → refuse new work → drain within grace → answer the rest 503 → stop listening → close.
    A second signal stops at once. SIGHUP looks at the repository.
    """

    def __init__(self, application: Application, settings: Settings, on_listening: Callable[[Service, str], None] | None = None) -> None:
        server = settings.server
        self._application = application
        super().__init__(
            uvicorn.Config(
                application,
                host=server.host,
                port=server.port,
                backlog=server.backlog,
                loop="uvloop",
                http=protocol_class(self._front) if server.http == "direct" else "httptools",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                root_path=server.root_path,
                timeout_keep_alive=server.keep_alive_s,
                timeout_graceful_shutdown=5,
            )
        )
        self._on_listening = on_listening
        self._grpc_settings = settings.grpc
        #: Answers gRPC while the server runs, if a port is set for it.
        self.grpc: GrpcServer | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Start listening, and take SIGHUP for a look at the repository."""
        self._loop = asyncio.get_running_loop()
        try:
            await super().startup(sockets)  # type: ignore[arg-type]
        except SystemExit as error:
            raise CannotListen(
                f"cannot listen on {self.config.host}:{self.config.port}; is the port taken, or the address not this machine's?"
            ) from error
        await self._start_grpc()
        if self._on_listening is not None and self._application.service is not None:
            self._on_listening(self._application.service, f"http://{self.config.host}:{self.port()}")
        if hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
            self._loop.add_signal_handler(signal.SIGHUP, self._rescan)

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Stop listening and close; everything accepted was answered before, or there was no time for it."""
        if self.grpc is not None:
            await self.grpc.stop(0.0 if self.force_exit else _GRPC_GRACE_S)
        await super().shutdown(sockets)  # type: ignore[arg-type]

    async def _start_grpc(self) -> None:
        port, service = self._grpc_settings.port, self._application.service
        if port is None or service is None:
            return
        from .rpc.server import GrpcServer  # not above: the library takes a tenth of a second to load, and most servers do without

        try:
            self.grpc = GrpcServer(service, self.config.host, port, self._grpc_settings.stream_window)
        except RuntimeError as error:
            raise CannotListen(
                f"cannot listen on {self.config.host}:{port} for gRPC; is the port taken, or the address not this machine's?"
            ) from error
        await self.grpc.start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start draining at the first signal; stop at once at the second."""
        if self._loop is None or self._stopping is not None:
            log.warning("shutdown_forced", signal=signal.Signals(sig).name)
            self.should_exit = self.force_exit = True
            return
        self._loop.call_soon_threadsafe(self._begin_drain)

    def port(self) -> int:
        """Return the port in use (settings may say 0)."""
        for server in self.servers:
            for socket in server.sockets:
                return int(socket.getsockname()[1])
        return self.config.port

    def _front(self) -> Front | None:
        service = self._application.service
        return None if service is None else service.front

    def _begin_drain(self) -> None:
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._drain(), name="samegraph-drain")

    async def _drain(self) -> None:
        try:
            if self._application.service is not None:
                await self._application.service.drain()
        finally:
            self.should_exit = True

    def _rescan(self) -> None:
        if self._application.service is not None:
            self._application.service.rescan()
