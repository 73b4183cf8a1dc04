"""Routes about drift: what is counted, what it is compared with, and what that says; as JSON, and as pages for people."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from html import escape
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Response
from samegraph_transforms.errors import InputError
from samegraph_transforms.html_page import PAGE_POLICY

from samegraph_service.drift.document import drift_document
from samegraph_service.drift.report import found_in, make_report
from samegraph_service.drift.report_html import chip, page, render_report
from samegraph_service.drift.statistics import STATES
from samegraph_service.drift.version import VersionDrift
from samegraph_service.errors import NoBaseline
from samegraph_service.service import Service


def drift_router(service: Callable[[], Service]) -> APIRouter:
    """Return the routes; `service` gives the running service."""
    router = APIRouter()

    @router.get("/v1/models/{model}/drift", tags=["drift"], summary="Counts, windows and states of the default version")
    async def drift(model: str, trend: str | None = None) -> dict[str, Any]:
        return _drift(service(), model, None, trend)

    @router.get("/v1/models/{model}/versions/{version}/drift", tags=["drift"], summary="Counts, windows and states of one version")
    async def version_drift(model: str, version: int, trend: str | None = None) -> dict[str, Any]:
        return _drift(service(), model, version, trend)

    @router.get("/v1/models/{model}/baseline", tags=["drift"], summary="The training baseline of the default version")
    async def baseline(model: str) -> dict[str, Any]:
        return _watched(service(), model, None).baseline.model_dump(mode="json")

    @router.get("/v1/models/{model}/versions/{version}/baseline", tags=["drift"], summary="The training baseline of one version")
    async def version_baseline(model: str, version: int) -> dict[str, Any]:
        return _watched(service(), model, version).baseline.model_dump(mode="json")

    # The pages are not async: writing one takes tens of milliseconds, in which predictions go on.
    @router.api_route("/drift", methods=["GET", "HEAD"], include_in_schema=False)
    def overview() -> Response:
        return _html(_overview(service()))

    @router.api_route("/drift/{model}/{version}", methods=["GET", "HEAD"], include_in_schema=False)
    def report(model: str, version: int, window: str | None = None) -> Response:
        return _html(_report(service(), model, version, window))

    return router


def _drift(service: Service, model: str, version: int | None, trend: str | None) -> dict[str, Any]:
    watched = _watched(service, model, version)
    if trend is not None:
        _window(service, trend)
    return drift_document(watched, service.drift, service.drift.now(), service.drift_exposition.is_exported, trend)


def _window(service: Service, label: str | None) -> str:
    """Return a window's label: the one that is named, or the longest.

    Raises:
        InputError: There is none of that name.
    """
    sizes = service.drift.options.windows
    if label is None:
        return max(sizes, key=lambda size: size.minutes).label
    if label not in {size.label for size in sizes}:
        raise InputError(f"there is no window {label[:20]!r}; there are {', '.join(size.label for size in sizes)}", code="not_allowed")
    return label


def _html(text: str) -> Response:
    headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    return Response(text, media_type="text/html; charset=utf-8", headers={**headers, "Content-Security-Policy": PAGE_POLICY})


def _report(service: Service, model: str, version: int, window: str | None) -> str:
    """Return the report page of one version, as this replica sees it."""
    watched, label = _watched(service, model, version), _window(service, window)
    document = drift_document(watched, service.drift, service.drift.now(), service.drift_exposition.is_exported, label)
    found = found_in([document], watched.baseline, label, "this replica")
    others = [size.label for size in service.drift.options.windows if size.label != label]
    links = [("../../", "Models"), ("../../drift", "Drift of all models"), *((f"?window={other}", f"Window {other}") for other in others)]
    return render_report(make_report(found, f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M:%S} UTC"), links)


def _overview(service: Service) -> str:
    """Return the page that lists all versions with what their windows say."""
    labels = [size.label for size in service.drift.options.windows]
    rows = "".join(_overview_row(version, labels) for version in service.drift.versions)
    heads = "".join(f"<th>{escape(label)}</th>" for label in labels)
    table = (
        f"<div class='wide'><table class='list'><tr><th>model</th><th class='n'>rows since the start</th>{heads}</tr>{rows}</table></div>"
        if rows
        else "<p>No version that is served has a baseline, or drift is switched off.</p>"
    )
    note = (
        "<p class='quiet'>What this replica counted by itself, looked at once a minute. Over all replicas: Prometheus, or "
        "<code>samegraph drift report --url … --url …</code>.</p>"
    )
    return page("Drift", "<h1>Drift</h1>", table + note, "of this replica", [("./", "Models")])


def _overview_row(version: VersionDrift, labels: list[str]) -> str:
    readings = version.readings
    cells = []
    for label in labels:
        said = [] if readings is None else [comparison.state for comparison in readings.windows[label].comparisons]
        counted = [(state, said.count(state)) for state in ("drifted", "shifted", *STATES) if state in said]
        words = "".join(chip(state, f"{n} {state.replace('_', ' ')}") for state, n in dict(counted).items())
        address = f"drift/{quote(version.model, safe='')}/{version.version}?window={label}"
        cells.append(f'<td><a href="{escape(address)}">{words or "not looked at yet"}</a></td>')
    name = f"<b>{escape(version.model)}</b> version {version.version}"
    return f"<tr><td>{name}</td><td class='n'>{version.totals.rows:,}</td>{''.join(cells)}</tr>"


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
