"""Routes about routing: how a model's calls are divided and why a unit gets its arm, and the routing file itself for who has the token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from samegraph_transforms.errors import InputError

from samegraph_service.errors import BodyTooLarge, RoutingConflict, UnknownModel
from samegraph_service.experiments.assignment import MAX_UNIT_BYTES
from samegraph_service.experiments.routing_file import MAX_BYTES, looks_like_revision
from samegraph_service.experiments.view import explanation, routes_document
from samegraph_service.service import Service

from .v2_service import authorise

_Token = Annotated[str, Header(description="`Bearer` and the admin token.")]
_ADMIN: dict[int | str, dict[str, Any]] = {401: {"$ref": "#/components/responses/Error401"}}


def routing_router(service: Callable[[], Service]) -> APIRouter:
    """Return the routes; `service` gives the running service."""
    router = APIRouter()

    @router.get("/v1/models/{model}/routing", tags=["models"], summary="How calls to a model are divided, or what one unit gets")
    async def routing(
        model: str, unit: Annotated[str | None, Query(max_length=MAX_UNIT_BYTES, description="A unit id to explain.")] = None
    ) -> dict[str, Any]:
        repository = service().repository
        routes = repository.routes.models.get(model)
        if routes is None:
            raise UnknownModel(model, sorted(repository.routes.models))
        if unit is not None:
            return {"model": model, **explanation(routes, unit)}
        return {"model": model, "file": repository.routing.revision, **routes_document(routes)}

    @router.get("/admin/routing", tags=["admin"], summary="The routing file in force", responses=_ADMIN, response_class=Response)
    async def read(authorization: _Token = "") -> Response:
        running = service()
        authorise(running, authorization)
        file = running.repository.routing
        return Response(file.text, media_type="application/yaml", headers={"etag": f'"{file.revision}"', "cache-control": "no-store"})

    @router.put(
        "/admin/routing",
        tags=["admin"],
        summary="Check a routing file, write it, and answer once it is in force",
        responses=_ADMIN,
        openapi_extra={"requestBody": {"required": True, "content": {"application/yaml": {"schema": {"type": "string"}}}}},
    )
    async def write(
        request: Request,
        response: Response,
        authorization: _Token = "",
        if_match: Annotated[str, Header(description="The revision the change was made from, or `*` for any.")] = "",
    ) -> dict[str, Any]:
        running = service()
        authorise(running, authorization)
        text = await _text(request)
        file = await running.repository.write_routing(text, _revision(if_match, running.repository.routing.revision))
        in_force = running.repository.routing.revision == file.revision
        response.headers["etag"] = f'"{file.revision}"'
        return {"revision": file.revision, "in_force": in_force, "problems": list(running.repository.routing_problems)}

    return router


def _revision(if_match: str, there: str) -> str | None:
    """Return the revision a change was made from, or None for any."""
    if if_match.strip() == "*":
        return None
    revision = if_match.strip().strip('"')
    if not looks_like_revision(revision):
        raise RoutingConflict(if_match, there)
    return revision


async def _text(request: Request) -> str:
    """Return the body as text, bounded."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BYTES:
            raise BodyTooLarge(f"a routing file has at most {MAX_BYTES // 1024} KiB")
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"the routing file is not UTF-8: byte {error.start}", code="bad_body") from error
