"""`samegraph routes`: check a routing file, show what it does, explain what a unit gets; on a directory or a running server."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from samegraph_transforms.errors import AuthoringError, RemoteError, SamegraphError

if TYPE_CHECKING:
    from samegraph_transforms.manifest import RawField

    from .experiments.routing_file import RoutingFile
    from .routing import ModelRoutes


@click.group()
def routes() -> None:
    """Say which version answers whom: labels, experiments and shadows of routing.yaml."""


_REPOSITORY = click.option(
    "--repository", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path("models"), show_default=True,
    help="Directory of models with the routing.yaml.",
)  # fmt: skip
_URL = click.option("--url", help="Ask a running server instead of reading a directory.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@routes.command(
    epilog="""\b
Examples:
  samegraph routes check                            models/routing.yaml against models/
  samegraph routes check candidate.yaml --repository /models

\b
Exit codes: 0 the file would be put in force, 1 it would not, 2 wrong usage.
"""
)
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_REPOSITORY
def check(file: Path | None, repository: Path) -> None:
    """Check a routing file as the server does: its form, its names, and that the versions it names are there.

    FILE is the file to check; without it the repository's own.
    """
    from .errors import RoutingProblem
    from .experiments.routing_file import FILE_NAME, MAX_BYTES, advice_on, parse, problems_with, read

    versions = _versions(repository)
    if file is None and not (repository / FILE_NAME).exists():
        click.echo(f"{repository / FILE_NAME} is not there: every model answers with its latest version")
        return
    try:
        found = read(repository) if file is None else parse(_head(file, MAX_BYTES + 1))
        problems = problems_with(found, versions, lambda model, version: _fields(repository, model, version))
        if problems:
            raise RoutingProblem(problems)
    except RoutingProblem as problem:
        click.echo("\n".join(problem.problems), err=True)
        sys.exit(1)
    for sentence in advice_on(found, {name: max(numbers) for name, numbers in versions.items() if numbers}):
        click.echo(f"worth a look: {sentence}")
    click.echo(f"revision {found.revision} is valid; it routes {', '.join(found.models) or 'no model'}")


@routes.command()
@_REPOSITORY
@_URL
@_JSON
def show(repository: Path, url: str | None, as_json: bool) -> None:
    """Show how the calls of every model are divided."""
    document = _shown_by(url) if url else _shown_in(repository)
    if as_json:
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    click.echo(f"routing.yaml, revision {document['revision']}")
    for name, model in document["models"].items():
        for line in _lines(name, model):
            click.echo(line)


@routes.command(
    epilog="""\b
Examples:
  samegraph routes explain user-1
  samegraph routes explain user-1 --model flights --url http://127.0.0.1:8000
"""
)
@click.argument("unit")
@click.option("--model", help="Which model. [default: the only one with an experiment]")
@_REPOSITORY
@_URL
@_JSON
def explain(unit: str, model: str | None, repository: Path, url: str | None, as_json: bool) -> None:
    """Say which arm and version UNIT gets and why: its enrolment draw, every arm's score, its bucket."""
    from .experiments.view import explanation

    models = _shown_by(url)["models"] if url else {name: _routes(repository, name) for name in _read(repository).models}
    name = model or _only(models, "experiment" if url else "")
    if url:
        document = _get(url, f"/v1/models/{name}/routing", unit=unit)
    else:
        found = models.get(name) or _routes(repository, name)
        document = {"model": name, **explanation(found, unit)}
    if as_json:
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    for line in _explained(document):
        click.echo(line)


@routes.command()
def schema() -> None:
    """Print the JSON Schema of routing.yaml."""
    from .experiments.routing_file import json_schema

    click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


# --- where it comes from --------------------------------------------------------------------------------------------------


def _head(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


def _versions(repository: Path) -> dict[str, list[int]]:
    from samegraph_transforms.package import list_models, list_versions

    return {name: list_versions(repository, name) for name in list_models(repository)}


def _fields(repository: Path, model: str, version: int) -> Sequence[RawField] | None:
    from samegraph_transforms.package import read_package

    try:
        return read_package(repository / model / str(version), verify_digests=False).manifest.fields
    except (SamegraphError, OSError):
        return None


def _read(repository: Path) -> RoutingFile:
    from .errors import RoutingProblem
    from .experiments.routing_file import problems_with, read

    try:
        file = read(repository)
        problems = problems_with(file, _versions(repository), lambda model, version: _fields(repository, model, version))
    except RoutingProblem as problem:
        raise AuthoringError(f"no server would put this file in force: {problem}") from problem
    if problems:
        raise AuthoringError(f"no server would put this file in force: {'; '.join(problems)}")
    return file


def _routes(repository: Path, model: str) -> ModelRoutes[int]:
    """Return a model's routes as a server would have them once every version of the directory is ready."""
    from .experiments.routing_file import model_routes
    from .routing import ModelRoutes

    versions = _versions(repository)
    if model not in versions:
        raise AuthoringError(f"{repository} has no model {model!r}; it has {', '.join(versions) or 'none'}")
    routing = _read(repository).models.get(model)
    ready = {version: version for version in versions[model]}
    return ModelRoutes(ready) if routing is None else model_routes(model, routing, ready, {})


def _shown_in(repository: Path) -> dict[str, Any]:
    from .experiments.view import routes_document

    file = _read(repository)
    return {"revision": file.revision, "models": {name: routes_document(_routes(repository, name)) for name in file.models}}


def _get(url: str, path: str, **parameters: str) -> Any:
    from .drift.report_sources import JsonApi

    try:
        return JsonApi(url).get(path, **parameters)
    except RemoteError as error:
        raise AuthoringError(str(error)) from error


def _shown_by(url: str) -> dict[str, Any]:
    found = {name: _get(url, f"/v1/models/{name}/routing") for name in _get(url, "/v1/models")["models"]}
    revision = next((model["file"] for model in found.values()), "none")
    return {"revision": revision, "models": found}


def _only(models: Mapping[str, Any], key: str) -> str:
    having = [name for name, model in models.items() if (model[key] if key else model.experiment) is not None]
    if len(having) == 1:
        return having[0]
    raise AuthoringError(f"say which model with --model: {', '.join(having) if having else 'none'} has an experiment")


# --- what is printed ------------------------------------------------------------------------------------------------------


def _lines(name: str, model: Mapping[str, Any]) -> list[str]:
    default = model["default"]
    latest = default["policy"] == "latest"
    lines = [f"{name}: default " + (f"latest (version {default['version']})" if latest else f"version {default['policy']}")]
    lines += [f"  label {label}: version {version}" for label, version in model["labels"].items()]
    experiment = model["experiment"]
    if experiment is not None:
        lines.append(f"  experiment {experiment['name']}@{experiment['revision']}, unit from {experiment['unit']}")
        for arm, facts in experiment["arms"].items():
            instead = "" if facts["answered_by"] == facts["version"] else f", answered by version {facts['answered_by']}"
            marked = " (fallback)" if arm == experiment["fallback"] else ""
            lines.append(f"    {arm}{marked}: version {facts['version']}, {100 * facts['share']:.4g} % of units{instead}")
        if experiment["enrolment_share"] < 1:
            lines.append(f"    not enrolled: {100 * (1 - experiment['enrolment_share']):.4g} %, answered by the default")
    lines += [f"  shadow: version {shadow['version']}, {100 * shadow['share']:.4g} % of requests" for shadow in model["shadows"]]
    return lines


def _explained(document: Mapping[str, Any]) -> list[str]:
    if document["experiment"] is None or "scores" not in document:
        return [f"{document['unit']!r} gets version {document['version']} of {document['model']}: {document['why']}"]
    enrolment = document["enrolment"]
    arm = f"arm {document['arm']}, " if document["arm"] else ""
    lines = [
        f"{document['unit']!r} gets {arm}version {document['version']} of {document['model']}",
        f"  experiment {document['experiment']}, unit from {document['unit_from']}, bucket {document['bucket']}",
        f"  enrolment  draw {enrolment['draw']:.6f}, share {enrolment['share']:g}: {'' if enrolment['enrolled'] else 'not '}enrolled",
    ]
    for name, score in sorted(document["scores"].items(), key=lambda pair: pair[1]):
        lines.append(f"  arm {name}  -ln(u)/weight {score:.6f}")
    return [*lines, f"  because {document['why']}"]
