"""`samegraph serve`: start the service."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError
from samegraph_transforms.errors import EnvironmentUnfit

from .openapi import ModelDoc, example_instance
from .service import Service


@click.command(
    epilog="""\b
Examples:
  samegraph serve                                   serve ./models on 127.0.0.1:8000
  samegraph serve --repository /models --host 0.0.0.0
  SAMEGRAPH_LIMITS__MAX_REQUESTS=500 samegraph serve

\b
Exit codes: 0 stopped after draining, 1 could not start, 2 wrong usage.
Every setting is also a variable SAMEGRAPH_<GROUP>__<NAME>; docs/settings.md lists them.
"""
)
@click.option("--repository", type=click.Path(path_type=Path), help="Directory of models, <name>/<version>/. [default: models]")
@click.option("--host", help="Address to listen on. [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; 0 lets the system choose. [default: 8000]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where batches run. [default: auto]")
@click.option("--log-format", type=click.Choice(["auto", "json", "console"]), help="How events are written. [default: auto]")
@click.option("--no-access-log", is_flag=True, help="Write no line per request.")
def serve(
    repository: Path | None, host: str | None, port: int | None, device: str | None, log_format: str | None, no_access_log: bool
) -> None:
    """Serve the models of a repository over HTTP.

    Loads the latest two versions of every model, proves each against its golden samples, and answers raw inputs. New versions
    are picked up while it runs (or at once on SIGHUP); SIGTERM drains.
    """
    overrides: dict[str, dict[str, Any]] = {
        "repository": {"path": repository},
        "server": {"host": host, "port": port},
        "execution": {"device": device},
        "log": {"format": log_format, "access": False if no_access_log else None},
    }
    sys.exit(_run(overrides))


def _run(overrides: dict[str, dict[str, Any]]) -> int:
    # Imported here so that `samegraph --help` and the other commands do not load a web framework.
    from samegraph_transforms.executor import available_providers, check_environment

    from .app import create_app
    from .logs import configure_logging
    from .server import CannotListen, Server
    from .settings import Settings, unknown_variables

    unknown = unknown_variables(dict(os.environ))
    if unknown:
        raise click.UsageError(f"unknown setting {', '.join(unknown)}; variables are SAMEGRAPH_<GROUP>__<NAME>, see docs/settings.md")
    given: Any = {
        group: {k: v for k, v in values.items() if v is not None}
        for group, values in overrides.items()
        if any(v is not None for v in values.values())
    }
    try:
        settings = Settings(**given)
    except ValidationError as error:
        raise click.UsageError(_settings_errors(error)) from error
    output = configure_logging(settings.log.format, level=settings.log.level)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # its life is told by our own events
    try:
        check_environment()
        available_providers(settings.execution.device)
    except EnvironmentUnfit as error:
        raise click.ClickException(str(error)) from error
    server = Server(create_app(settings, log_output=output), settings, on_listening=_announce_when_ready)
    try:
        server.run()
    except CannotListen as error:
        raise click.ClickException(str(error)) from error
    return 0 if server.started else 1


def _settings_errors(error: ValidationError) -> str:
    """Say which variables are wrong and why; the value of a secret is never shown."""
    lines = []
    for found in error.errors():
        name = "SAMEGRAPH_" + "__".join(str(part).upper() for part in found["loc"])
        if found["type"] == "extra_forbidden":
            lines.append(f"{name}: there is no such setting; docs/settings.md lists them")
        else:
            shown = "" if found["loc"][-1] == "token" else f" (got {str(found['input'])[:80]!r})"
            lines.append(f"{name}: {found['msg']}{shown}")
    return "; ".join(lines)


def _announce_when_ready(service: Service, url: str) -> None:
    """Print what to try next once the models have loaded, for a person at a terminal or in front of `make serve`."""

    async def announce() -> None:
        await service.loaded.wait()
        click.echo(_what_next(service, url), err=True)

    service.background(announce())


def _curl(doc: ModelDoc, url: str) -> str:
    """Return a command line that asks the model something it can answer."""
    manifest = doc.versions[doc.default if doc.default is not None else max(doc.versions)]
    route = f"{url}/v1/models/{doc.name}:predict"
    if any(f.kind == "image" for f in manifest.fields):
        photo = "docs/photos/coffee.jpg" if Path("docs/photos/coffee.jpg").is_file() else "photo.jpg"
        return f"curl {route} -H 'content-type: image/jpeg' --data-binary @{photo}"
    body = json.dumps({"instances": [example_instance(manifest)]}, ensure_ascii=False)
    return f"curl {route} -H 'content-type: application/json' -d {shlex.quote(body)}"


def _what_next(service: Service, url: str) -> str:
    ready, state = service.readiness()
    lines = ["", f"samegraph answers on {url}" if ready else f"samegraph listens on {url}, but is not ready:"]
    lines += [f"  {reason}" for reason in state["reasons"]]
    for doc in service.model_docs():
        versions = ", ".join(str(v) for v in sorted(doc.versions))
        lines += ["", f"  {doc.name} (version {versions})", f"    {_curl(doc, url)}"]
    lines += [
        "",
        f"  API page   {url}/docs",
        f"  Readiness  {url}/readyz",
        f"  Metrics    {url}/metrics",
        "  Requests to try are in README.md. Ctrl-C drains and stops.",
        "",
    ]
    return "\n".join(lines)
