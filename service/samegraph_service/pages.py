"""The pages a person opens in a browser: the start page and the API documentation, from files of our own only.

Everything is addressed relative to the page, so it works below any path prefix, and nothing is taken from another host: the
service must be usable on a closed network, and a Content-Security-Policy makes the browser enforce it.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import msgspec
from fastapi import APIRouter, HTTPException, Request, Response

_STATIC = Path(__file__).parent / "static"
_CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    "": "text/plain; charset=utf-8",
}
#: The closed set of files that are served: a path from a request is only ever looked up here, never opened.
_FILES = {p.relative_to(_STATIC).as_posix(): p for p in sorted(_STATIC.rglob("*")) if p.is_file() and p.suffix in _CONTENT_TYPES}

_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:{images}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'{more}"
)
_INDEX_POLICY = _POLICY.format(images="", more="")
# blob: is how Swagger UI shows an answer that is an image.
_DOCS_POLICY = _POLICY.format(images=" blob:", more="; script-src 'self'; connect-src 'self'")
_PAGE_HEADERS = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}

_CURRENT = ' aria-current="page"'
_LINKS = (
    ("docs", "API documentation"),
    ("openapi.json", "OpenAPI"),
    ("drift", "Drift"),
    ("metrics", "Metrics"),
    ("readyz", "Readiness"),
)


@dataclass(frozen=True)
class VersionEntry:
    """One version on the start page.

    Attributes:
        version: Its number.
        state: loading, ready, failed or unloading.
        reason: Why it is in that state; empty when there is nothing to say.
        default: Whether it answers when a request names no version.
        labels: Names that route to it.
        digest: The package's identity, SHA-256 in hex; empty when unknown.
    """

    version: int
    state: str
    reason: str = ""
    default: bool = False
    labels: Sequence[str] = ()
    digest: str = ""


@dataclass(frozen=True)
class ModelEntry:
    """One model on the start page; notes say how its calls are divided."""

    name: str
    description: str = ""
    versions: Sequence[VersionEntry] = field(default_factory=tuple)
    notes: Sequence[str] = ()


def docs_router(
    get_document: Callable[[], Mapping[str, Any]], *, get_models: Callable[[], Sequence[ModelEntry]] | None = None
) -> APIRouter:
    """Make the routes `/docs`, `/openapi.json`, `/static/…` and, when `get_models` is given, `/`.

    None of them is in the OpenAPI document. Both callables are called on the event loop, once per request.

    Args:
        get_document: Returns the OpenAPI document of the moment; it is not changed here.
        get_models: Returns the models of the moment.
    """
    docs_page()  # reads the static files' digests now, so that no request does it on the event loop
    router = APIRouter(include_in_schema=False)

    @router.api_route("/docs", methods=["GET", "HEAD"])
    async def docs() -> Response:
        return _html(docs_page(), _DOCS_POLICY)

    @router.api_route("/openapi.json", methods=["GET", "HEAD"])
    async def openapi(request: Request) -> Response:
        body = msgspec.json.encode(_at_prefix(get_document(), request.scope.get("root_path", "")))
        return _conditional(
            request, body, f'"{hashlib.sha256(body).hexdigest()[:32]}"', {**_PAGE_HEADERS, "Content-Type": "application/json"}
        )

    # Not async: the first request of a file reads and compresses it, which belongs on a thread.
    @router.api_route("/static/{path:path}", methods=["GET", "HEAD"])
    def static(path: str, request: Request, v: str = "") -> Response:
        return _static(path, request, v)

    if get_models is not None:

        @router.api_route("/", methods=["GET", "HEAD"])
        async def index() -> Response:
            return _html(index_page(get_models()), _INDEX_POLICY)

    return router


def _at_prefix(document: Mapping[str, Any], root_path: str) -> Mapping[str, Any]:
    """Tell where the routes are when the service lies below a path prefix and the document does not say so itself."""
    return {**document, "servers": [{"url": root_path}]} if root_path and not document.get("servers") else document


def _html(page: str, policy: str) -> Response:
    return Response(page, media_type="text/html; charset=utf-8", headers={**_PAGE_HEADERS, "Content-Security-Policy": policy})


# --- static files ----------------------------------------------------------------------------------------------------


@cache
def _digest(path: str) -> str:
    return hashlib.sha256(_FILES[path].read_bytes()).hexdigest()[:16]


@cache
def _body(path: str, *, zipped: bool) -> bytes:
    body = _FILES[path].read_bytes()
    return gzip.compress(body, 6, mtime=0) if zipped else body


def _address(path: str) -> str:
    """Return the address of a static file, relative to the pages, with its digest so that browsers may keep it for ever."""
    return f"static/{path}?v={_digest(path)}"


def _static(path: str, request: Request, version: str) -> Response:
    if path not in _FILES:
        raise HTTPException(404, f"there is no file {path[:100]!r} here")
    digest = _digest(path)
    zipped = "gzip" in request.headers.get("accept-encoding", "")
    headers = {
        "Content-Type": _CONTENT_TYPES[_FILES[path].suffix],
        "Cache-Control": "public, max-age=31536000, immutable" if version == digest else "no-cache",
        "Vary": "Accept-Encoding",
        "X-Content-Type-Options": "nosniff",
    }
    if zipped:
        headers["Content-Encoding"] = "gzip"
    return _conditional(request, _body(path, zipped=zipped), f'"{digest}{"-gzip" if zipped else ""}"', headers)


def _conditional(request: Request, body: bytes, etag: str, headers: Mapping[str, str]) -> Response:
    """Answer 304 when the browser has these bytes already."""
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    headers = {**headers, "ETag": etag}
    if etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers)


# --- pages -----------------------------------------------------------------------------------------------------------


def _page(title: str, body_class: str, body: str, *, links: str) -> str:
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" type="image/svg+xml" href="{_address("favicon.svg")}">
{links}<link rel="stylesheet" href="{_address("pages.css")}">
</head>
<body class="{body_class}">
{body}
</body>
</html>
"""


def _bar(current: str) -> str:
    entries = "".join(f'<a href="{path}"{_CURRENT if path == current else ""}>{words}</a>' for path, words in _LINKS)
    brand = f'<a class="brand" href="./"><img src="{_address("favicon.svg")}" alt="">samegraph</a>'
    return f'<header class="bar">{brand}<nav aria-label="Service">{entries}</nav></header>'


@cache
def docs_page() -> str:
    """Return the API documentation page: Swagger UI on `openapi.json`, which lies beside the page."""
    body = f"""{_bar("docs")}
<noscript><p class="missing">This page needs JavaScript. The same facts are in <a href="openapi.json">openapi.json</a>.</p></noscript>
<main id="swagger-ui" data-openapi="openapi.json"></main>
<script src="{_address("swagger-ui/swagger-ui-bundle.js")}"></script>
<script src="{_address("docs.js")}"></script>"""
    links = f'<link rel="stylesheet" href="{_address("swagger-ui/swagger-ui.css")}">\n'
    return _page("API documentation · samegraph", "docs", body, links=links)


def index_page(models: Sequence[ModelEntry]) -> str:
    """Return the start page: every model with its versions, their states, and where to go from here.

    Args:
        models: In the order they are shown.

    Returns:
        Plain HTML that needs no script; every text from a package is escaped.
    """
    shown = "\n".join(_model_section(m) for m in models) or (
        '<p class="none">No model is loaded. Put a package into the model repository as '
        "<code>&lt;name&gt;/&lt;version&gt;/</code>; it is picked up without a restart.</p>"
    )
    body = f"""{_bar("")}
<main>
<h1>Models</h1>
<p class="lead">Each model answers raw inputs through the preprocessing it was trained with. The
<a href="docs">API documentation</a> shows what each of them takes, with an example to try.</p>
{shown}
</main>
<footer>States are those of the moment the page was loaded.</footer>"""
    return _page("samegraph", "page", body, links="")


def _model_section(model: ModelEntry) -> str:
    name = escape(model.name)
    rows = "\n".join(_version_row(v) for v in sorted(model.versions, key=lambda v: -v.version))
    description = f"<p>{escape(model.description)}</p>\n" if model.description else ""
    docs = f'<a href="docs#/{name}" aria-label="Try {name}">Try it</a>' if any(v.state == "ready" for v in model.versions) else ""
    notes = "".join(f"\n<p>{escape(note)}</p>" for note in model.notes)
    heading = f'<header><h2 id="{name}">{name}</h2>{docs}</header>'
    return f"""<section class="model" aria-labelledby="{name}">
{heading}
{description}<table>
<thead><tr><th scope="col">Version</th><th scope="col">State</th><th scope="col">Notes</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>{notes}
</section>"""


def _version_row(version: VersionEntry) -> str:
    state = escape(version.state)
    notes = ["default"] if version.default else []
    notes += [f"label {escape(label)}" for label in version.labels]
    if version.reason:
        notes.append(escape(version.reason))
    if version.digest:
        notes.append(f'digest <code title="{escape(version.digest)}">{escape(version.digest[:12])}</code>')
    return f'<tr><th scope="row">{version.version}</th><td><span class="state {state}">{state}</span></td><td>{" · ".join(notes)}</td></tr>'
