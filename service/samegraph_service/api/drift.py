"""Routes about drift: what is counted, what it is compared with, and what that says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter

from samegraph_service.drift.document import drift_document
from samegraph_service.drift.version import VersionDrift
from samegraph_service.errors import NoBaseline
from samegraph_service.service import Service


def drift_router(service: Callable[[], Service]) -> APIRouter:
    """Return the routes; `service` gives the running service."""
    router = APIRouter()

    @router.get("/v1/models/{model}/drift", tags=["drift"], summary="Counts, windows and states of the default version")
    async def drift(model: str) -> dict[str, Any]:
        return _drift(service(), model, None)

    @router.get("/v1/models/{model}/versions/{version}/drift", tags=["drift"], summary="Counts, windows and states of one version")
    async def version_drift(model: str, version: int) -> dict[str, Any]:
        return _drift(service(), model, version)

    @router.get("/v1/models/{model}/baseline", tags=["drift"], summary="The training baseline of the default version")
    async def baseline(model: str) -> dict[str, Any]:
        return _watched(service(), model, None).baseline.model_dump(mode="json")

    @router.get("/v1/models/{model}/versions/{version}/baseline", tags=["drift"], summary="The training baseline of one version")
    async def version_baseline(model: str, version: int) -> dict[str, Any]:
        return _watched(service(), model, version).baseline.model_dump(mode="json")

    return router


def _drift(service: Service, model: str, version: int | None) -> dict[str, Any]:
    return drift_document(_watched(service, model, version), service.drift, service.drift.now(), service.drift_exposition.is_exported)


def _watched(service: Service, model: str, version: int | None) -> VersionDrift:
    """Return what is kept about a version that answers.

    Raises:
        NoBaseline: Nothing is: its package has no baseline, or drift is switched off.
    """
    number, _ = service.repository.routes.resolve(model, version)
    found = service.drift.find(model, number)
    if found is not None:
        return found
    if not service.settings.drift.enabled:
        raise NoBaseline("drift is switched off on this server (SAMEGRAPH_DRIFT__ENABLED=false)")
    raise NoBaseline(
        f"version {number} of model {model!r} has no baseline, so there is nothing to compare its rows with; pack it with held-out "
        "training rows (docs/drift.md)"
    )
