"""The V2 routes over HTTP that are not predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Header, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError
from samegraph_transforms.errors import InputError
from samegraph_transforms.wire import parse_json

from samegraph_service.errors import BodyTooLarge
from samegraph_service.service import Service

from . import v2_service

Body = TypeVar("Body", bound=BaseModel)
#: V2 clients read the status; the body is the same with the other value.
_NOT_READY: dict[int | str, dict[str, Any]] = {503: {"description": "Not ready", "content": {"application/json": {"schema": {}}}}}
_FAULTY: dict[int | str, dict[str, Any]] = {status: {"$ref": f"#/components/responses/Error{status}"} for status in (400, 413)}
_CLOSED: dict[int | str, dict[str, Any]] = {
    **_FAULTY,
    **{status: {"$ref": f"#/components/responses/Error{status}"} for status in (401, 404, 503)},
}
_TOKEN = Header(description="`Bearer` and the admin token.")


#: Largest body of a route that is no prediction.
MAX_BODY_BYTES = 65_536


class RepositoryQuery(BaseModel):
    """Body of the V2 repository index."""

    ready: bool = Field(default=False, description="List only versions that are ready.")


class RepositoryChange(BaseModel):
    """Body of a V2 load or unload."""

    parameters: dict[str, Any] = Field(default={}, description="A load takes none; `unload_dependents` of an unload changes nothing.")


def _body_of(model: type[BaseModel]) -> dict[str, Any]:
    """Describe a route's body to OpenAPI; it is read by hand, because Triton's clients send JSON without saying so."""
    return {"requestBody": {"content": {"application/json": {"schema": model.model_json_schema()}}}}


async def _read(request: Request, model: type[Body]) -> Body:
    """Read a small JSON body; an empty one is all defaults.

    Raises:
        BodyTooLarge: It is not small.
        InputError: It is not JSON, or not of the model's shape.
    """
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise BodyTooLarge(f"the body is larger than {MAX_BODY_BYTES} bytes, the limit of this route")
    document = parse_json(body) if body else None
    try:
        return model.model_validate({} if document is None else document, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{field or 'the body'}: {first['msg']}", code="wrong_type", field=field or None) from error


def v2_router(service: Callable[[], Service]) -> APIRouter:
    """Return the routes; `service` gives the running service."""
    router = APIRouter()
    _server(router, service)
    _models(router, service)
    _repository(router, service)
    _refused(router)
    return router


def _server(router: APIRouter, service: Callable[[], Service]) -> None:
    @router.get("/v2", tags=["v2"], summary="Server metadata")
    async def server() -> dict[str, Any]:
        return v2_service.server_metadata()

    @router.get("/v2/health/live", tags=["v2"], summary="Whether the server is live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @router.get("/v2/health/ready", tags=["v2"], summary="Whether the server is ready", responses=_NOT_READY)
    async def ready(request: Request) -> JSONResponse:
        running = service()
        answer, _ = running.readiness()
        response = JSONResponse({"ready": answer}, status_code=200 if answer else 503)
        if answer:
            header = running.front.limits.caller_header
            named = request.headers.get(header.decode()) if header else None
            response.headers.update(running.front.advert_to(named, request.client.host if request.client else ""))
        return response


def _models(router: APIRouter, service: Callable[[], Service]) -> None:
    @router.get("/v2/models/stats", tags=["v2"], summary="What was counted about every version")
    async def all_statistics() -> dict[str, Any]:
        return v2_service.statistics(service())

    @router.get("/v2/models/{model}", tags=["v2"], summary="Tensor metadata of the default version")
    async def model_metadata(model: str) -> dict[str, Any]:
        return v2_service.model_metadata(service(), model, None)

    @router.get("/v2/models/{model}/versions/{version}", tags=["v2"], summary="Tensor metadata of one version")
    async def version_metadata(model: str, version: int) -> dict[str, Any]:
        return v2_service.model_metadata(service(), model, version)

    @router.get("/v2/models/{model}/ready", tags=["v2"], summary="Whether a model is ready", responses=_NOT_READY)
    async def model_ready(model: str) -> JSONResponse:
        return _ready(service(), model, None)

    @router.get("/v2/models/{model}/versions/{version}/ready", tags=["v2"], summary="Whether a version is ready", responses=_NOT_READY)
    async def version_ready(model: str, version: int) -> JSONResponse:
        return _ready(service(), model, version)

    @router.get("/v2/models/{model}/config", tags=["v2"], summary="Model configuration of the default version")
    async def model_config(model: str) -> dict[str, Any]:
        return v2_service.model_config(service(), model, None)

    @router.get("/v2/models/{model}/versions/{version}/config", tags=["v2"], summary="Model configuration of one version")
    async def version_config(model: str, version: int) -> dict[str, Any]:
        return v2_service.model_config(service(), model, version)

    @router.get("/v2/models/{model}/stats", tags=["v2"], summary="What was counted about a model's versions")
    async def model_statistics(model: str) -> dict[str, Any]:
        return v2_service.statistics(service(), model)

    @router.get("/v2/models/{model}/versions/{version}/stats", tags=["v2"], summary="What was counted about one version")
    async def version_statistics(model: str, version: int) -> dict[str, Any]:
        return v2_service.statistics(service(), model, version)


def _ready(service: Service, model: str, version: int | None) -> JSONResponse:
    ready = v2_service.model_ready(service, model, version)
    return JSONResponse({"name": model, "ready": ready}, status_code=200 if ready else 503)


def _repository(router: APIRouter, service: Callable[[], Service]) -> None:
    @router.post(
        "/v2/repository/index",
        tags=["v2"],
        summary="Every known version with its state",
        responses=_FAULTY,
        openapi_extra=_body_of(RepositoryQuery),
    )
    async def index(request: Request) -> list[dict[str, str]]:
        return v2_service.index(service(), ready_only=(await _read(request, RepositoryQuery)).ready)

    @router.post(
        "/v2/repository/models/{model}/load",
        tags=["v2"],
        summary="Serve a model's newest versions",
        responses=_CLOSED,
        openapi_extra=_body_of(RepositoryChange),
    )
    async def load(model: str, request: Request, authorization: Annotated[str, _TOKEN] = "") -> dict[str, Any]:
        running = service()
        v2_service.authorise(running, authorization)
        await v2_service.load(running, model, (await _read(request, RepositoryChange)).parameters)
        return {}

    @router.post(
        "/v2/repository/models/{model}/unload",
        tags=["v2"],
        summary="Stop serving a model until it is loaded",
        responses=_CLOSED,
        openapi_extra=_body_of(RepositoryChange),
    )
    async def unload(model: str, request: Request, authorization: Annotated[str, _TOKEN] = "") -> dict[str, Any]:
        running = service()
        v2_service.authorise(running, authorization)
        await _read(request, RepositoryChange)
        await v2_service.unload(running, model)
        return {}


def _refused(router: APIRouter) -> None:
    """Say of every route that Triton's clients know and this server does not have that it is left out, not unknown."""

    async def system_memory() -> None:
        raise v2_service.unsupported("systemsharedmemory")

    async def cuda_memory() -> None:
        raise v2_service.unsupported("cudasharedmemory")

    async def trace() -> None:
        raise v2_service.unsupported("trace")

    async def logging() -> None:
        raise v2_service.unsupported("logging")

    options: dict[str, Any] = {"methods": ["GET", "POST"], "include_in_schema": False}
    router.add_api_route("/v2/systemsharedmemory/{rest:path}", system_memory, **options)
    router.add_api_route("/v2/cudasharedmemory/{rest:path}", cuda_memory, **options)
    router.add_api_route("/v2/trace/setting", trace, **options)
    router.add_api_route("/v2/models/{model}/trace/setting", trace, **options)
    router.add_api_route("/v2/logging", logging, **options)
