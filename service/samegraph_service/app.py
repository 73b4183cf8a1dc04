"""Composition root: `create_app(settings)` is the ASGI application uvicorn runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from samegraph_transforms.errors import InputError, SamegraphError
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from . import __version__
from .api import error_document
from .api.access import CODE
from .api.drift import drift_router
from .api.experiments import experiments_router
from .api.feedback import feedback_router
from .api.meta import meta_router
from .api.routing import routing_router
from .api.v2_routes import v2_router
from .errors import Internal, MethodNotAllowed, NoSuchRoute, NotReady
from .logs import LogOutput, get_logger
from .openapi import openapi_document
from .pages import docs_router
from .service import Service
from .settings import Settings

log = get_logger("samegraph.app")

_METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")


class Application:
    """The ASGI application: FastAPI, with the prediction gateway in front of it while the service runs.

    Attributes:
        fastapi: Everything but predictions.
        service: The running service, or None before start-up and after shutdown.
    """

    def __init__(self, settings: Settings, log_output: LogOutput | None) -> None:
        self.settings = settings
        self.service: Service | None = None
        self._log_output = log_output
        self.fastapi = self._fastapi()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI scope."""
        service = self.service
        if service is not None and scope["type"] == "http":
            await service.gateway(scope, receive, send)
        else:
            await self.fastapi(scope, receive, send)

    def running(self) -> Service:
        """Return the running service.

        Raises:
            NotReady: It has not started.
        """
        if self.service is None:
            raise NotReady("the service is starting", retry_after_s=1.0)
        return self.service

    def _fastapi(self) -> FastAPI:
        app = FastAPI(
            title="samegraph",
            version=__version__,
            description="Raw inputs in, predictions out, through the exact preprocessing each model was trained with.",
            docs_url=None,
            redoc_url=None,
            openapi_url=None,
            redirect_slashes=False,  # a redirect would name the host the caller named, and be no answer of the one document
            lifespan=self._lifespan,
        )
        app.include_router(feedback_router(self.running))  # before the models' own: a model is not called `flights:feedback`
        app.include_router(meta_router(self.running))
        app.include_router(v2_router(self.running))
        app.include_router(drift_router(self.running))
        app.include_router(routing_router(self.running))
        app.include_router(experiments_router(self.running))
        base: dict[str, Any] = {}

        def document() -> dict[str, Any]:
            if not base:
                base.update(app.openapi())
            return openapi_document(self.running().model_docs(), base=base)

        app.include_router(docs_router(document, get_models=lambda: self.running().model_entries()))
        _handle_errors(app, lambda: "" if self.service is None else self.service.front.fresh_id())
        return app

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        service = Service(self.settings, self._log_output, self.fastapi)
        await service.start()
        self.service = service
        try:
            yield
        finally:
            self.service = None
            await service.close()


def create_app(settings: Settings, *, log_output: LogOutput | None = None) -> Application:
    """Return the ASGI application.

    Args:
        settings: The settings in force.
        log_output: Where access lines go, from `configure_logging`; None for no access log.
    """
    return Application(settings, log_output)


def _allowed(request: Request) -> list[str]:
    """Return the methods of every route at the request's path; the framework names those of the first route only."""
    routes, scope = request.app.router.routes, request.scope
    return [m for m in _METHODS if any(route.matches({**scope, "method": m})[0] is Match.FULL for route in routes)]


def _handle_errors(app: FastAPI, fresh_id: Callable[[], str]) -> None:
    """Answer every failure of the other routes with the one error document."""

    def answer(request: Request, error: SamegraphError) -> Response:
        request.scope[CODE] = error_document.mapping_of(error).code
        status, headers, body = error_document.response(error, fresh_id())
        return Response(body, status_code=status, headers={k.decode(): v.decode() for k, v in headers})

    @app.exception_handler(SamegraphError)
    async def ours(request: Request, error: SamegraphError) -> Response:
        return answer(request, error)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        if error.status_code == 405 and ":" in request.url.path.rpartition("/")[2]:
            return answer(request, NoSuchRoute(f"nothing answers {request.url.path[:200]}; a model's verbs are `:predict` and `:feedback`"))
        if error.status_code == 405:
            allowed = _allowed(request)
            text = f"{request.url.path[:200]} does not take {request.method}; it takes {', '.join(allowed)}"
            return answer(request, MethodNotAllowed(text, allowed=allowed))
        if error.status_code == 404:
            return answer(request, NoSuchRoute(f"nothing answers {request.url.path[:200]}; see /docs for what does"))
        return answer(request, InputError(str(error.detail), code="bad_body"))

    @app.exception_handler(RequestValidationError)
    async def validation(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return answer(request, InputError("the body is not valid JSON", code="malformed_json"))
        field = ".".join(str(part) for part in first["loc"][1:])
        return answer(request, InputError(f"{field or 'the body'}: {first['msg']}", code="wrong_type", field=field or None))

    @app.exception_handler(Exception)
    async def crashed(request: Request, error: Exception) -> Response:
        log.error("request_crashed", exc_info=error, path=request.url.path)
        return answer(request, Internal())
