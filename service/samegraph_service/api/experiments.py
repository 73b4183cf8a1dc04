"""Routes about experiments: what this replica alone counted, and what that says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter

from samegraph_service.errors import NoEvidence, UnknownModel
from samegraph_service.experiments.analysis.evidence import Sample, experiments_in, gather
from samegraph_service.experiments.analysis.report import make_report
from samegraph_service.experiments.analysis.sources import page_samples
from samegraph_service.service import Service

#: Said in every answer: a report of one replica of several is about a part of the traffic.
SOURCE = "this replica alone, since it started; `samegraph experiment report --prometheus` has all replicas"


def experiments_router(service: Callable[[], Service]) -> APIRouter:
    """Return the routes; `service` gives the running service."""
    router = APIRouter()

    @router.get("/v1/models/{model}/experiments", tags=["experiments"], summary="Experiments of a model that this replica counted")
    async def experiments(model: str) -> dict[str, Any]:
        page = await _page(service(), model)

        def answer() -> dict[str, Any]:
            samples = list(page_samples(page))
            names = [name for of, name in experiments_in(samples) if of == model]
            return {"model": model, "source": SOURCE, "experiments": [_summary(samples, model, name) for name in names]}

        return await asyncio.to_thread(answer)

    @router.get("/v1/models/{model}/experiments/{experiment}", tags=["experiments"], summary="Report of one experiment on this replica")
    async def experiment(model: str, experiment: str, control: str | None = None, metric: str | None = None) -> dict[str, Any]:
        page = await _page(service(), model)

        def answer() -> dict[str, Any]:
            return make_report(gather(page_samples(page), model, experiment, SOURCE), control=control, metric=metric).to_json()

        return await asyncio.to_thread(answer)

    return router


async def _page(service: Service, model: str) -> str:
    """Return this replica's own counters as they are scraped; predictions go on between two pieces.

    Raises:
        UnknownModel: The repository has no such model.
    """
    known = service.repository.routes.models
    if model not in known:
        raise UnknownModel(model, sorted(known))
    pieces = []
    for piece in service.experiment_exposition.write(openmetrics=False):
        pieces.append(piece)
        await asyncio.sleep(0)
    return "".join(pieces)


def _summary(samples: list[Sample], model: str, name: str) -> dict[str, Any]:
    try:
        report = make_report(gather(samples, model, name, SOURCE))
    except NoEvidence:  # defined, and no arm is known yet
        return {"experiment": name, "state": "no_data", "verdict": "No decision yet: nothing was counted."}
    return {"experiment": name, "revision": report.evidence.current.name, "state": report.state, "verdict": report.verdict}
