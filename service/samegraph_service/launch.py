"""Start the service in this process, say how it went, and see to it that what was said comes out."""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError
from samegraph_transforms.errors import EnvironmentUnfit
from samegraph_transforms.executor import available_providers, check_environment

from .app import create_app
from .errors import FeedbackKeyError
from .logs import LogOutput, configure_logging, get_logger, report_crashes
from .openapi import ModelDoc, example_instance
from .operation import StartTimes
from .server import CannotListen, Server
from .service import Service, capture_options, prediction_ids
from .settings import Settings, unknown_variables

log = get_logger("samegraph.start")


def launch(overrides: Mapping[str, Mapping[str, Any]]) -> int:
    """Serve until stopped.

    Args:
        overrides: Settings from the command line by group and name; None leaves a setting to the environment.

    Returns:
        0 after draining, 1 when the server could not start.

    Raises:
        click.UsageError: A setting is wrong or unknown; it names the variable.
        click.ClickException: The environment is unfit, or the address cannot be listened on.
    """
    times = StartTimes()
    times.lap("imports")
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
    output.start()
    try:
        with report_crashes():
            return _serve(settings, output, times)
    finally:
        output.stop()


def _serve(settings: Settings, output: LogOutput, times: StartTimes) -> int:
    try:
        check_environment()
        available_providers(settings.execution.device)
        capture_options(settings)
        prediction_ids(settings)
    except (EnvironmentUnfit, FeedbackKeyError) as error:
        raise click.ClickException(str(error)) from error
    server = Server(create_app(settings, log_output=output), settings, on_listening=partial(_announce_when_ready, output, times))
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


def _announce_when_ready(output: LogOutput, times: StartTimes, service: Service, url: str) -> None:
    """Once the models have loaded, log how long that took, and print what to try next for a person at a terminal or behind `make serve`."""
    times.lap("setup")

    async def announce() -> None:
        await service.loaded.wait()
        times.lap("loading")
        service.operation.start = times.phases
        phases = {phase: round(seconds, 3) for phase, seconds in times.phases.items()}
        log.info("server_started", ready=service.readiness()[0], seconds=round(times.seconds, 3), phases=phases, url=url)
        output.put(_what_next(service, url) + "\n")  # not click.echo: it would wait for a reader who stalls

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
