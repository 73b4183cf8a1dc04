"""`samegraph experiment` and `samegraph compare`: what running experiments say, what is done about it, and what can be known before."""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
import time as clock
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from .evidence import Evidence
    from .report import Report
    from .routing_store import RoutingStore
    from .sources import Look, PrometheusSource

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Duration(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A time such as 90s, 15m, 6h or 14d, as seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        if isinstance(value, int | float):
            return float(value)
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", str(value).strip())
        if found is None or float(found[1]) <= 0:
            self.fail(f"{value!r} is no duration; write 90s, 15m, 6h, 14d or 4w", param, ctx)
        return float(found[1]) * _UNITS[found[2]]


class Headers(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """One `Name: value`."""

    name = "header"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Return name and value."""
        if isinstance(value, tuple):
            return value
        name, colon, rest = str(value).partition(":")
        if not colon or not name.strip():
            self.fail(f"{value!r} is no header; write 'Name: value'", param, ctx)
        return name.strip(), rest.strip()


@click.group(name="experiment", context_settings={"help_option_names": ["-h", "--help"]})
def experiment() -> None:
    """A/B tests: report what they say, and guard them (docs/ab-testing.md)."""


@experiment.command(
    epilog="""\b
Examples:
  samegraph experiment report --prometheus http://prometheus:9090
  samegraph experiment report delay-trees --prometheus http://prometheus:9090 --html report.html
  samegraph experiment report --replica 10.0.0.1:8000 --replica 10.0.0.2:8000 --json
  samegraph experiment report --replica 127.0.0.1:8000 --append looks.jsonl --html report.html    every hour, from cron

\b
Exit codes: 0 reported, whatever it says, 1 it could not be (the message says why), 2 wrong usage.
"""
)
@click.argument("name", required=False)
@click.option("--model", help="The model's name. [default: the only one with such an experiment]")
@click.option("--prometheus", "prometheus_url", help="Read a Prometheus server: restarts and replicas that are gone are counted too.")
@click.option("--replica", "replicas", multiple=True, help="Read /metrics of this replica; repeat for each. [default: 127.0.0.1:8000]")
@click.option(
    "--header", "headers", type=Headers(), multiple=True, help="Header for the Prometheus server, 'Name: value'; may be repeated."
)
@click.option("--selector", default="", help="""Further label matchers for it, such as 'job="samegraph"'.""")
@click.option("--since", type=Duration(), default="30d", show_default=True, help="How far back it is asked.")
@click.option("--control", help="The arm to compare with. [default: control, or the first by name]")
@click.option("--metric", help="The one outcome that decides, named beforehand; it keeps all of alpha. [default: all share it]")
@click.option("--alpha", type=click.FloatRange(1e-9, 0.5), default=0.05, show_default=True, help="Chance that any interval is ever wrong.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a page.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write an HTML page with the sequences over time.")
@click.option(
    "--append",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Keep this look in a file, a line each, and draw what it holds; for replicas without Prometheus.",
)
def report(name: str | None, as_json: bool, html: Path | None, append: Path | None, **options: Any) -> None:
    """Report what experiment NAME says: each arm's effect, valid at every look, and a verdict in a sentence."""
    found = _report(name, options, append, picture=html is not None)
    if html is not None:
        from .page import render

        html.write_text(render(found), encoding="utf-8")
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2, ensure_ascii=False, allow_nan=False))
        return
    from rich.console import Console

    from .terminal import render as show

    show(found, Console(highlight=False, markup=False))
    if html is not None:
        click.echo(f"written to {html}", err=True)


def _report(name: str | None, options: dict[str, Any], append: Path | None, *, picture: bool) -> Report:
    from .report import make_report
    from .snapshots import add_look, read_looks

    source, now = source_of(options), clock.time()
    model, name = choose(source, options["model"], name)
    evidence = evidence_of(source, model, name)
    rates: dict[str, float] = {}
    looks: Sequence[Look] = ()
    if not isinstance(source, tuple):
        began = source.first_seen(model, name, now)
        if began is not None:
            rates = source.rates(model, name, evidence.current.name, window_s=min(3600.0, max(now - began, 60.0)))
            looks = source.history(model, name, began, now) if picture else ()
    if append is not None:
        kept = read_looks(append, model, name)
        looks = kept or looks
        rates = rates or _rates_since(kept, evidence, now)
        add_look(append, evidence, now)
    return make_report(
        evidence, control=options["control"], metric=options["metric"], alpha=options["alpha"], time=now, rates=rates, looks=looks
    )


def _rates_since(looks: Sequence[Look], evidence: Evidence, now: float) -> dict[str, float]:
    """Return outcomes a second since the last look at the same revision that is at least a minute old."""
    for look in reversed(looks):
        before = next((r for r in look.evidence.revisions if r.name == evidence.current.name), None)
        if before is None or now - look.time < 60:
            continue
        counts: dict[str, float] = {}
        for sign, revision in ((1, evidence.current), (-1, before)):
            for arm in revision.arms.values():
                for metric, moments in arm.feedback.items():
                    counts[metric] = counts.get(metric, 0.0) + sign * moments.count
        return {metric: n / (now - look.time) for metric, n in counts.items() if n > 0}
    return {}


def source_of(options: dict[str, Any]) -> PrometheusSource | tuple[str, ...]:
    """Return what the options say to read."""
    url, replicas = options["prometheus_url"], options["replicas"]
    if url and replicas:
        raise click.UsageError("give either --prometheus or --replica: the one has what the other tells")
    return _prometheus(url, options) if url else tuple(replicas) or ("http://127.0.0.1:8000",)


def _prometheus(url: str, options: dict[str, Any]) -> PrometheusSource:
    from .sources import PrometheusSource

    return PrometheusSource(url, lookback_s=options["since"], headers=dict(options["headers"]), selector=options["selector"])


def choose(source: PrometheusSource | tuple[str, ...], model: str | None, name: str | None) -> tuple[str, str]:
    """Return the model and the experiment that are meant.

    Raises:
        NoEvidence: There is none, or several that could be.
    """
    from samegraph_service.errors import NoEvidence

    from .evidence import experiments_in
    from .sources import fetch_pages, page_samples

    if model is not None and name is not None:
        return model, name
    if isinstance(source, tuple):
        found = experiments_in(s for page in fetch_pages(source) for s in page_samples(page))
    else:
        found = source.experiments()
    fitting = [(m, e) for m, e in found if model in (None, m) and name in (None, e)]
    if len(fitting) == 1:
        return fitting[0]
    listed = ", ".join(f"{e} of {m}" for m, e in fitting or found) or "none"
    raise NoEvidence(
        f"several experiments fit: {listed}; name one, with --model where names repeat"
        if fitting
        else f"no such experiment was found; there are: {listed}"
    )


def evidence_of(source: PrometheusSource | tuple[str, ...], model: str, name: str) -> Evidence:
    """Return what the source knows."""
    from . import sources

    return sources.evidence_of(source, model, name)


@experiment.command(
    epilog="""\b
Examples:
  samegraph experiment guard --prometheus http://prometheus:9090 --repository /models --every 30s
  samegraph experiment guard --prometheus http://prometheus:9090 --once --textfile /var/lib/node_exporter/guard.prom    from cron
  samegraph experiment guard --prometheus http://prometheus:9090 --once --dry-run
  samegraph experiment guard --prometheus http://prometheus:9090 --every 30s --url http://10.0.0.1:8000 --token-file admin.token

\b
Exit codes of --once: 0 nothing to do, or a rollout went on, 3 an arm was withdrawn (or would have been: --dry-run),
1 something could not be judged (nothing was changed for it), 2 wrong usage.
With --every it runs until SIGTERM or Ctrl-C and ends with 0.
"""
)
@click.argument("names", nargs=-1)
@click.option(
    "--repository",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The directory with routing.yaml. [default: models]",
)
@click.option("--url", help="Read and write the file through the admin endpoint of this server instead; needs --token-file.")
@click.option("--token-file", type=click.Path(dir_okay=False, path_type=Path), help="A file with the server's admin token.")
@click.option("--prometheus", "prometheus_url", required=True, help="The Prometheus server that scrapes every replica.")
@click.option("--header", "headers", type=Headers(), multiple=True, help="Header for it, 'Name: value'; may be repeated.")
@click.option("--selector", default="", help="""Further label matchers for it, such as 'job="samegraph"'.""")
@click.option("--since", type=Duration(), default="30d", show_default=True, help="How far back it is asked.")
@click.option("--once", is_flag=True, help="Look once, act, and end.")
@click.option("--every", type=Duration(), help="Look again and again, this far apart.")
@click.option("--dry-run", is_flag=True, help="Decide and tell, and write nothing.")
@click.option(
    "--textfile", type=click.Path(dir_okay=False, path_type=Path), help="Write metrics here after each look, for the node exporter."
)
@click.option("--metrics-port", type=click.IntRange(1, 65535), help="Serve the same on http://127.0.0.1:PORT/metrics while it runs.")
def guard(
    names: tuple[str, ...],
    repository: Path | None,
    url: str | None,
    token_file: Path | None,
    prometheus_url: str,
    once: bool,
    every: float | None,
    dry_run: bool,
    textfile: Path | None,
    metrics_port: int | None,
    **options: Any,
) -> None:
    """Withdraw arms that do harm, and take rollouts to their next step, by writing routing.yaml.

    Guards every enabled experiment, or those of these NAMES. Each look is told as a line of JSON on stderr. A withdrawal is final: the
    guard never gives weight again to an arm that it took it from.
    """
    if once == (every is not None):
        raise click.UsageError("give either --once or --every DURATION")
    from .guard import Guard, exit_code

    watching = Guard(_store(repository, url, token_file), _prometheus(prometheus_url, options), only=names, dry_run=dry_run)
    with _stop_event() as stop, _page(metrics_port, watching.metrics.text):
        while True:
            decisions = watching.look()
            if textfile is not None:
                _replace(textfile, watching.metrics.text())
            if every is None:
                sys.exit(exit_code(decisions, watching.metrics))
            if stop.wait(every):
                return


def _store(repository: Path | None, url: str | None, token_file: Path | None) -> RoutingStore:
    from .routing_store import AdminStore, RepositoryStore

    if url is None:
        if token_file is not None:
            raise click.UsageError("--token-file goes with --url")
        directory = repository or Path("models")
        if not directory.is_dir():
            raise click.UsageError(f"{str(directory)!r} is no directory; give --repository, or --url with --token-file")
        return RepositoryStore(directory)
    if repository is not None:
        raise click.UsageError("give either --repository or --url")
    if token_file is None:
        raise click.UsageError("--url needs --token-file: a file with the server's admin token")
    return AdminStore(url, token_file)


@click.command(
    epilog="""\b
Examples:
  samegraph compare models/flights/1 models/flights/2 --data held-out.jsonl --label late
  samegraph compare models/flights/1 models/flights/2 --data captured.parquet --html compare.html
  samegraph compare models/imagenet/1 /tmp/candidate --data photos/ --json

\b
DATA is what `samegraph predict` reads (images, a directory of them, .csv, .tsv, .json, .jsonl, - for JSON Lines on stdin), or a
.parquet file with a column per field. A label is one more column or member.

\b
Exit codes: 0 compared, whatever it says, 1 it could not be (the message says why), 2 wrong usage; with --fail-if-worse 3 when the
second version is worse, surely, for the labels that were given.
"""
)
@click.argument("first", type=click.Path(exists=True, path_type=Path))
@click.argument("second", type=click.Path(exists=True, path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path, allow_dash=True), help="Raw inputs to run through both.")
@click.option("--label", help="Column or member that holds what is true.")
@click.option("--limit", type=click.IntRange(1), help="Most rows to read. [default: all]")
@click.option("--ignore-extra", is_flag=True, help="Leave out columns and members that are fields of neither version.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a page.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write an HTML page.")
@click.option("--fail-if-worse", is_flag=True, help="End with 3 when the second version is surely worse.")
def compare(first: Path, second: Path, data: Path, as_json: bool, html: Path | None, fail_if_worse: bool, **options: Any) -> None:
    """Run the same raw inputs through the packages FIRST and SECOND, and say where and by how much their answers differ.

    The offline twin of an A/B test: agreement, differences by the values of raw fields, and with labels accuracy and calibration, each with
    its interval; before any traffic moves.
    """
    from rich.console import Console
    from samegraph_transforms.package import read_latest

    from . import comparison_page
    from .compare import compare as run

    errors = Console(stderr=True)
    with errors.status("comparing", spinner="line") if errors.is_terminal else nullcontext() as status:

        def step(done: int) -> None:
            if status is not None and done % 500 == 0:
                status.update(f"{done:,} rows")

        found = run(read_latest(first), read_latest(second), data, step=step, **options)
    if html is not None:
        html.write_text(comparison_page.page(found), encoding="utf-8")
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        comparison_page.show(found, Console(highlight=False, markup=False))
    if fail_if_worse and found.state == "worse":
        sys.exit(3)


@contextmanager
def _stop_event() -> Iterator[threading.Event]:
    """Give an event that SIGTERM and SIGINT set; the handlers that were there come back."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _page(port: int | None, text: Callable[[], str]) -> Iterator[None]:
    """Serve one page on loopback."""
    if port is None:
        yield
        return

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = text().encode()
            self.send_response(200 if self.path == "/metrics" else 404)
            self.send_header("content-type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Page) as server:
        thread = threading.Thread(target=server.serve_forever, name="guard-metrics", daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def _replace(path: Path, text: str) -> None:
    """Write a file in one step: whoever collects it never sees half of it."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
