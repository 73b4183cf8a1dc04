"""`samegraph drift`: reports on what moved."""

from __future__ import annotations

import datetime as dt
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from samegraph_transforms.errors import AuthoringError

if TYPE_CHECKING:
    from samegraph_transforms.baseline import Baseline
    from samegraph_transforms.package import Package

    from .drift.report import Found

#: Exit codes that say something about the data; 1 and 2 are failures and wrong usage, as with every command.
DRIFTED, TOO_FEW_ROWS = 3, 4


@click.group()
def drift() -> None:
    """Say what moved since training."""


@drift.command(
    epilog="""\b
Examples:
  samegraph drift report --url http://127.0.0.1:8000 --model flights
  samegraph drift report --url http://a:8000 --url http://b:8000 --model flights --html drift.html
  samegraph drift report --prometheus http://prometheus:9090 --package models/flights --window 24h
  samegraph drift report --data january.parquet --data february.csv --package models/flights/1
  samegraph drift report --capture s3://captured/ --package models/flights
  samegraph drift report --url http://127.0.0.1:8000 --model flights --json | jq '.variables[0]'

\b
Exit codes, for cron: 0 nothing has drifted, 3 something has, 4 too few rows to say anything,
1 no report could be made (the message says why), 2 wrong usage.
"""
)
@click.option("--url", "urls", multiple=True, help="A replica; several are added up.")
@click.option("--prometheus", "prometheus_url", help="A Prometheus that scrapes the replicas. Needs --package.")
@click.option(
    "--data",
    "files",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="Rows: Parquet, CSV, JSON, JSON Lines. Needs --package.",
)
@click.option("--capture", "captures", multiple=True, help="A directory or URL the service captured to. Needs --package.")
@click.option(
    "--package", "package_path", type=click.Path(exists=True, path_type=Path), help="The package whose baseline is held against it."
)
@click.option("--model", help="Which model of the replicas. [default: their only one]")
@click.option("--version", type=click.IntRange(1), help="Which version. [default: the replicas route]")
@click.option("--window", help="Which window: of replicas one of theirs, of Prometheus any, such as 6h. [default: their longest; 24h]")
@click.option("--job", help="Only this Prometheus job.")
@click.option("--header", "headers", multiple=True, help="A header for every request, such as 'Authorization: Bearer …'.")
@click.option("--least-psi", type=click.FloatRange(0), default=0.1, show_default=True, help="With rows: the PSI that is tolerated.")
@click.option(
    "--alpha", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.001, show_default=True, help="With rows: level."
)
@click.option("--min-rows", type=click.IntRange(1), default=200, show_default=True, help="With rows: rows below which nothing is said.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--all", "all_", is_flag=True, help="Show all variables in the table, not only what moved.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing; the exit code says it.")
def report(
    urls: Sequence[str],
    prometheus_url: str | None,
    files: Sequence[Path],
    captures: Sequence[str],
    html: Path | None,
    as_json: bool,
    all_: bool,
    quiet: bool,
    **more: Any,
) -> None:
    """Hold what was counted against the training baseline, rank what moved, and say so.

    Counts come from one replica or several (--url), from a Prometheus (--prometheus), from rows in files (--data), or from what was
    captured (--capture).
    """
    from .drift.report import make_report
    from .drift.report_html import render_report
    from .drift.report_text import ReportText

    sources: list[Path | str] = [*files, *captures]
    _check_usage(urls, prometheus_url, sources, more)
    found = _found(urls, prometheus_url, sources, more, quiet=quiet or as_json)
    made = make_report(found, f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC")
    if html is not None:
        html.write_text(render_report(made), encoding="utf-8")
    if as_json and not quiet:
        click.echo(json.dumps(made.to_json(), indent=2, ensure_ascii=False))
    elif not quiet:
        Console(highlight=False, markup=False).print(ReportText(made, all_=all_))
        if html is not None:
            click.echo(f"written to {html}")
    sys.exit(DRIFTED if made.drifted else TOO_FEW_ROWS if made.says_nothing else 0)


def _check_usage(urls: Sequence[str], prometheus_url: str | None, files: Sequence[Path | str], more: dict[str, Any]) -> None:
    if sum(map(bool, (urls, prometheus_url, files))) != 1:
        raise click.UsageError("give --url (once or more), --prometheus, or --data and --capture: one kind of source")
    if not urls and more["package_path"] is None:
        raise click.UsageError("--prometheus, --data and --capture need --package: it has the baseline, and says what the bins hold")
    if urls and more["package_path"] is not None:
        raise click.UsageError("replicas bring their baseline; leave --package out, or choose with --model and --version")


def _found(urls: Sequence[str], prometheus_url: str | None, files: Sequence[Path | str], more: dict[str, Any], *, quiet: bool) -> Found:
    from .drift.report_sources import JsonApi, found_in_files, found_in_prometheus, found_on_replicas
    from .drift.statistics import AlarmRule

    headers = _headers(more["headers"])
    if urls:
        return found_on_replicas([JsonApi(url, headers) for url in urls], more["model"], more["version"], more["window"])
    package, baseline = _package(more["package_path"])
    if prometheus_url is not None:
        window = more["window"] or "24h"
        _check_window(window)
        return found_in_prometheus(JsonApi(prometheus_url, headers), package, baseline, window=window, job=more["job"])
    rule = AlarmRule(more["least_psi"], more["alpha"], more["min_rows"])
    with _progress(f"{package}: counting", hidden=quiet) as step:
        return found_in_files(files, package, baseline, rule, step)


def _check_window(window: str) -> None:
    from .drift.window_sizes import parse_windows

    try:
        (_,) = parse_windows(window)
    except ValueError as error:
        raise click.UsageError(f"--window: {error}") from error


def _headers(given: Sequence[str]) -> dict[str, str]:
    headers = {}
    for text in given:
        name, colon, value = text.partition(":")
        if not colon or not name.strip():
            raise click.UsageError(f"--header is a name, a colon and a value; got {text[:20]!r}")
        headers[name.strip()] = value.strip()
    return headers


def _package(path: Path) -> tuple[Package, Baseline]:
    from samegraph_transforms.package import read_latest

    package = read_latest(path)
    baseline = package.baseline()
    if baseline is None:
        raise AuthoringError(f"{package} has no baseline; pack it with held-out training rows (docs/drift.md)")
    return package, baseline


@contextmanager
def _progress(what: str, *, hidden: bool) -> Iterator[Callable[[int, int], None]]:
    """Count rows on a terminal's stderr; silent elsewhere."""
    from rich.progress import Progress, TextColumn

    console = Console(stderr=True, highlight=False, markup=False)
    columns = (TextColumn("{task.description}"), TextColumn("{task.completed} rows"))
    with Progress(*columns, console=console, transient=True, disable=hidden or not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, _: bar.update(task, completed=done)
