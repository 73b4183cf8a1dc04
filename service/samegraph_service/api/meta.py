"""Everything that is not a prediction: status, metadata, health, metrics."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from prometheus_client.exposition import choose_encoder
from samegraph_transforms import fingerprint
from samegraph_transforms.manifest import Manifest

from samegraph_service.errors import UnknownVersion
from samegraph_service.predict import Served
from samegraph_service.repository import VersionState
from samegraph_service.service import Service, dumps

from . import v2_service

_TFS_STATES = {"loading": "LOADING", "ready": "AVAILABLE", "failed": "END", "unloading": "UNLOADING", "unloaded": "END"}


def meta_router(service: Callable[[], Service]) -> APIRouter:
    """Return the routes; `service` gives the running service."""
    router = APIRouter()
    _health(router, service)
    _metrics(router, service)
    _v1(router, service)
    _admin(router, service)
    return router


def _health(router: APIRouter, service: Callable[[], Service]) -> None:
    @router.get("/livez", tags=["health"], summary="Whether the process answers")
    async def livez() -> dict[str, bool]:
        return {"live": True}

    @router.head("/livez", include_in_schema=False)
    async def livez_head() -> Response:
        return Response()

    @router.head("/readyz", include_in_schema=False)
    async def readyz_head() -> Response:
        return Response(status_code=200 if service().readiness()[0] else 503)

    @router.get(
        "/readyz",
        tags=["health"],
        summary="Whether the process should get traffic, with reasons",
        responses={503: {"description": "Not ready"}},
    )
    async def readyz() -> Response:
        ready, document = service().readiness()
        return Response(dumps(document), status_code=200 if ready else 503, media_type="application/json")


def _metrics(router: APIRouter, service: Callable[[], Service]) -> None:
    @router.get("/metrics", tags=["health"], summary="Prometheus metrics", response_class=Response)
    async def metrics(request: Request) -> Response:
        _, content_type = choose_encoder(request.headers.get("accept", ""))
        running = service()
        openmetrics = content_type.startswith("application/openmetrics-text")
        text = []
        for piece in itertools.chain(
            running.exposition.write(openmetrics=openmetrics),
            running.drift_exposition.write(openmetrics=openmetrics),
            running.experiment_exposition.write(openmetrics=openmetrics),
        ):
            text.append(piece)
            await asyncio.sleep(0)  # there may be thousands of series: predictions go on between two pieces
        return Response("".join([*text, "# EOF\n" if openmetrics else ""]), media_type=content_type)


# --- V1 -----------------------------------------------------------------------------------------------------------------


def _v1(router: APIRouter, service: Callable[[], Service]) -> None:
    @router.get("/v1/models", tags=["models"], summary="The models")
    async def models() -> dict[str, list[str]]:
        return {"models": sorted(service().repository.routes.models)}

    @router.get("/v1/models/{model}", tags=["models"], summary="State of every version of a model")
    async def status(model: str) -> dict[str, Any]:
        return _status(service(), model, None)

    @router.get("/v1/models/{model}/versions/{version}", tags=["models"], summary="State of one version")
    async def version_status(model: str, version: int) -> dict[str, Any]:
        return _status(service(), model, version)

    @router.get("/v1/models/{model}/metadata", tags=["models"], summary="Raw inputs, outputs and proof of the default version")
    async def metadata(model: str) -> dict[str, Any]:
        return _metadata(service(), model, None)

    @router.get("/v1/models/{model}/versions/{version}/metadata", tags=["models"], summary="Raw inputs, outputs and proof of one version")
    async def version_metadata(model: str, version: int) -> dict[str, Any]:
        return _metadata(service(), model, version)

    @router.get("/v1/models/{model}/labels/{label}", tags=["models"], summary="State of the version behind a label")
    async def label_status(model: str, label: str) -> dict[str, Any]:
        return _status(service(), model, service().repository.routes.labelled(model, label))

    @router.get("/v1/models/{model}/labels/{label}/metadata", tags=["models"], summary="Raw inputs, outputs and proof of that version")
    async def label_metadata(model: str, label: str) -> dict[str, Any]:
        return _metadata(service(), model, service().repository.routes.labelled(model, label))


def _known(service: Service, model: str, version: int | None) -> list[VersionState]:
    """Return the known versions of a model (all, or one); the errors are those of a prediction."""
    states = [s for s in service.repository.states() if s.model == model and version in (None, s.version)]
    if not states:
        service.repository.routes.resolve(model, version)
        raise UnknownVersion(f"model {model!r} has no version {version}")
    return states


def _status(service: Service, model: str, version: int | None) -> dict[str, Any]:
    states = _known(service, model, version)
    return {
        "name": model,
        "ready": any(s.state == "ready" for s in states),
        "model_version_status": [
            {
                "version": str(s.version),
                "state": _TFS_STATES[s.state],
                "status": {
                    "error_code": "UNKNOWN" if s.state == "failed" else "OK",
                    "error_message": s.reason if s.state != "ready" else "",
                },
            }
            for s in reversed(states)
        ],
    }


def _resolve(service: Service, model: str, version: int | None) -> tuple[int, Served]:
    return service.repository.routes.resolve(model, version)


def _metadata(service: Service, model: str, version: int | None) -> dict[str, Any]:
    number, served = _resolve(service, model, version)
    state = next(s for s in service.repository.states() if s.served is served)
    loaded = state.loaded
    assert loaded is not None
    manifest: Manifest = loaded.package.manifest
    steps = [] if loaded.runtime.item_plan is None else loaded.runtime.item_plan.steps
    return {
        "model_spec": {"name": model, "version": str(number), "signature_name": "serving_default"},
        "labels": sorted(label for label, v in service.repository.routes.models[model].labels.items() if v == number),
        "digest": loaded.package.digest,
        "description": manifest.description,
        "fields": [f.model_dump(mode="json", exclude_defaults=True) for f in manifest.fields],
        "outputs": [o.model_dump(mode="json", exclude_defaults=True) for o in manifest.outputs],
        "proof": {
            "proven": loaded.package.proven,
            "golden_samples": loaded.golden_samples,
            "max_ulp": loaded.max_ulp,
            "promised": {name: t.model_dump(mode="json") for name, t in manifest.tolerances.items()},
        },
        "loading": {"seconds": round(loaded.seconds, 3), "phases": {phase: round(s, 3) for phase, s in loaded.phases.items()}},
        "execution": {
            "providers": list(loaded.runtime.providers),
            "one_graph": loaded.runtime.merged,
            "item_steps": [{"nodes": list(s.nodes), "engine": s.engine, "library": s.library, "note": s.note} for s in steps],
            "max_batch_size": loaded.max_batch_size,
            **({"simulated_s": {"batch": service.pace.batch_s, "row": service.pace.row_s}} if service.pace else {}),
            "predicted_seconds": {"per_row": served.lane.cost.per_row_s, "fixed": served.lane.cost.fixed_s},
        },
        "provenance": manifest.provenance.model_dump(mode="json"),
        "environment": {
            "here": (here := fingerprint.environment(loaded.runtime.providers, service.settings.execution.intra_op_threads)),
            "proven": fingerprint.proven_environment(manifest),
            "differs": [{"what": d.what, "proven": d.proven, "here": d.here} for d in fingerprint.deviations(manifest, here)],
        },
    }


# --- admin --------------------------------------------------------------------------------------------------------------


def _admin(router: APIRouter, service: Callable[[], Service]) -> None:
    @router.post(
        "/admin/reload",
        tags=["admin"],
        summary="Look at the repository now; answers when everything new was tried",
        responses={401: {"$ref": "#/components/responses/Error401"}},
    )
    async def reload(authorization: Annotated[str, Header(description="`Bearer` and the admin token.")] = "") -> list[dict[str, str]]:
        running = service()
        v2_service.authorise(running, authorization)
        await running.repository.sync()
        return v2_service.index(running)
