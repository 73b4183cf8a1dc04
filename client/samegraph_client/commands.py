"""The commands `predict`, `frames` and `burst`: one raw input, the frames of a video, many raw inputs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import click
from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table

from .blocking import Client, Results
from .core import Options
from .errors import ClientError
from .journal import JournalFile
from .output import Format, format_of, writer
from .policy import RetryPolicy
from .report import Report
from .video import StreamReport

F = TypeVar("F", bound=Callable[..., Any])
#: Exit codes: 1, items were lost; 2, the command was used wrongly (click's own).
LOST = 1
_PER_S = 5


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="samegraph-client")
def samegraph_client() -> None:
    """Send raw inputs to a model server, and lose none of them."""


def _backwards(*options: Callable[[F], F]) -> Sequence[Callable[[F], F]]:
    """Return decorators so that the help shows them in this order."""
    return options[::-1]


def _server(command: F) -> F:
    """Add the options that say which server and how it is asked."""
    for option in _backwards(
        click.option(
            "--url", default="http://127.0.0.1:8000", show_default=True, envvar="SAMEGRAPH_CLIENT_URL", help="Where the server is."
        ),
        click.option("--version", "version", metavar="N", help="Pin a version of the model."),
        click.option("--label", metavar="NAME", help="Pin a label instead."),
        click.option("--unit", metavar="ID", help="Who it is about: decides the arm of an experiment."),
        click.option("--header", "headers", multiple=True, metavar="NAME:VALUE", help="Send this header; may be given several times."),
        click.option("--wire", type=click.Choice(["auto", "v1", "v2"]), default="auto", show_default=True, help="The protocol spoken."),
    ):
        command = option(command)
    return command


def _burst(command: F) -> F:
    """Add the options of what sends many."""
    for option in _backwards(
        click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="File to write; without it, standard output."),
        click.option("--format", "kind", type=click.Choice(["jsonl", "csv", "parquet"]), help="Its format; otherwise its name decides."),
        click.option("--as-completed", is_flag=True, help="Write outcomes as they come, not in order."),
        click.option(
            "--journal", type=click.Path(dir_okay=False, path_type=Path), help="File that lets a killed command go on where it was."
        ),
        click.option(
            "--fsync",
            type=click.Choice(["always", "interval", "never"]),
            default="interval",
            show_default=True,
            help="When it reaches the disk.",
        ),
        click.option(
            "--deadline", "deadline_s", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Longest it may all take."
        ),
        click.option("--report", "report_to", type=click.Path(dir_okay=False, path_type=Path), help="File for the report, as JSON."),
        click.option("--quiet", "-q", is_flag=True, help="Show no progress."),
    ):
        command = option(command)
    return command


@samegraph_client.command()
@click.argument("model")
@click.argument("raw")
@_server
@click.option(
    "--deadline", "deadline_s", type=click.FloatRange(min=0, min_open=True), default=60.0, show_default=True, help="Seconds it may take."
)
def predict(model: str, raw: str, deadline_s: float, **server: Any) -> None:
    """Ask MODEL about one raw input and print the prediction.

    RAW is JSON, `@FILE` for the bytes of a file, or `-` for JSON from standard input.
    """
    client, options = _client(server)
    with client, _told():
        prediction = client.predict(model, _raw(raw), deadline_s=deadline_s, **options)
        click.echo(json.dumps(prediction.value))


@samegraph_client.command()
@click.argument("model")
@click.argument("video", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_server
@_burst
@click.option(
    "--image-format",
    type=click.Choice(["png", "bmp", "jpeg"]),
    default="png",
    show_default=True,
    help="PNG and BMP keep the decoded pixels.",
)
@click.option("--jpeg-quality", type=click.IntRange(1, 100), default=95, show_default=True, help="For --image-format jpeg.")
def frames(model: str, video: Path, image_format: Any, jpeg_quality: int, **given: Any) -> None:
    """Ask MODEL about every frame of VIDEO.

    The exit code is 1 when a frame has no prediction, or when the stream is damaged.
    """
    burst = _Burst(given)
    with burst.running():
        results = burst.client.predict_frames(model, video, image_format=image_format, jpeg_quality=jpeg_quality, **burst.arguments())
        burst.write(results, None)
    burst.exit(results.report, _damage(video, cast("StreamReport", results.report.stream)))


@samegraph_client.command()
@click.argument("model")
@click.argument("inputs", nargs=-1, required=True)
@_server
@_burst
def burst(model: str, inputs: Sequence[str], **given: Any) -> None:
    """Ask MODEL about many raw inputs: INPUTS are files whose bytes are one raw input each, or `.jsonl` files with one on each line.

    `-` reads JSON lines from standard input. The exit code is 1 when an input has no prediction.
    """
    run = _Burst(given)
    names: dict[int, str] = {}
    with run.running():
        results = run.client.predict_many(model, _items(inputs, names), **run.arguments())
        run.write(results, names)
    run.exit(results.report)


class _Burst:
    """What `frames` and `burst` share: where outcomes go, what is shown, and how it ends."""

    def __init__(self, given: dict[str, Any]) -> None:
        self._output: Path | None = given.pop("output")
        self._kind = _kind(self._output, given.pop("kind"))
        self._ordered = not given.pop("as_completed")
        journal, fsync = given.pop("journal"), given.pop("fsync")
        self._journal = None if journal is None else JournalFile(journal, fsync)
        self._deadline_s = given.pop("deadline_s")
        self._report_to: Path | None = given.pop("report_to")
        quiet = given.pop("quiet") or (self._output is None and sys.stdout.isatty())  # a display between the lines would be neither
        self._console = Console(stderr=True, quiet=quiet)
        self._report: Report | None = None
        self._first_error: Exception | None = None
        self.client, self._options = _client(given)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments both kinds of burst take."""
        return {
            **self._options,
            "ordered": self._ordered,
            "journal": self._journal,
            "deadline_s": self._deadline_s,
            "item_deadline_s": self._deadline_s or 600.0,
        }

    @contextmanager
    def running(self) -> Iterator[None]:
        """Show what happens until it is over; errors become sentences."""
        with self.client, _told(), Live(console=self._console, refresh_per_second=_PER_S, transient=True, get_renderable=self._display):
            yield

    def _display(self) -> RenderableType:
        return "" if self._report is None else _shown(self._report, self.client)

    def write(self, results: Results, names: dict[int, str] | None) -> None:
        """Write every outcome as it comes."""
        self._report = results.report
        with results, writer(self._output, self._kind, sys.stdout) as out:
            for outcome in results:
                self._first_error = self._first_error or outcome.error
                out.write(outcome, None if names is None else names.pop(outcome.index, None))

    def exit(self, report: Report, damage: str | None = None) -> None:
        """Say how it went, and leave with the code for it."""
        if self._report_to is not None:
            self._report_to.write_text(json.dumps(report.as_dict(), indent=1) + "\n", encoding="utf-8")
        self._console.print(_told_in_a_line(report), highlight=False, soft_wrap=True)
        if report.failed:
            kinds = ", ".join(f"{n} × {name}" for name, n in sorted(report.errors.items()))
            click.echo(f"{report.failed} of {report.items} have no prediction: {kinds}; the first: {self._first_error}", err=True)
        if damage is not None:
            click.echo(damage, err=True)
        if report.failed or damage is not None:
            sys.exit(LOST)


def _damage(video: Path, stream: StreamReport) -> str | None:
    """Return a sentence about what a stream has lost, if anything."""
    if not stream.damaged:
        return None
    claimed = "" if stream.claimed is None else f" of {stream.claimed} claimed"
    first = f" (the first: {stream.messages[0]})" if stream.messages else ""
    return (
        f"{video.name} is damaged: {stream.decoded} frames{claimed} were decoded, {stream.corrupt} of them marked as damaged; "
        f"{stream.errors} errors{first}"
    )


def _client(given: dict[str, Any]) -> tuple[Client, dict[str, Any]]:
    """Return the client, and the arguments that say how the model is asked."""
    headers = {}
    for header in given["headers"]:
        name, colon, value = header.partition(":")
        if not colon or not name.strip():
            raise click.UsageError(f"--header {header!r} is not NAME:VALUE")
        headers[name.strip()] = value.strip()
    try:
        Options(given["version"], given["label"])
    except ClientError as error:
        raise click.UsageError(str(error)) from error
    client = Client(given["url"], policy=RetryPolicy(), headers=headers, wire=given["wire"])
    return client, {"version": given["version"], "label": given["label"], "unit": given["unit"]}


@contextmanager
def _told() -> Iterator[None]:
    """Turn our errors into a sentence and exit code 1, and a lost pipe into silence."""
    try:
        yield
    except (ClientError, ValueError) as error:
        click.echo(str(error), err=True)
        sys.exit(LOST)


def _kind(output: Path | None, kind: str | None) -> Format:
    if kind is not None:
        if kind == "parquet" and output is None:
            raise click.UsageError("Parquet is no text: give a file with --output")
        return cast("Format", kind)
    try:
        return "jsonl" if output is None else format_of(output)
    except ValueError as error:
        raise click.UsageError(f"{error} (--format)") from error


def _raw(text: str) -> object:
    if text.startswith("@"):
        return Path(text[1:])
    return _json(sys.stdin.read() if text == "-" else text, "RAW")


def _json(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"{where} is not JSON ({error}); `@FILE` sends the bytes of a file") from error


def _items(inputs: Sequence[str], names: dict[int, str]) -> Iterator[object]:
    """Yield raw inputs one by one, and note what each is called."""
    index = 0
    for given in inputs:
        if given != "-" and not given.endswith((".jsonl", ".ndjson")):
            names[index] = given
            yield Path(given)
            index += 1
            continue
        with _lines(given) as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    names[index] = f"{given}:{number}"
                    yield _json(line, f"{given}, line {number},")
                    index += 1


@contextmanager
def _lines(given: str) -> Iterator[IO[str]]:
    if given == "-":
        yield sys.stdin
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(Path(given).open(encoding="utf-8"))
        except OSError as error:
            raise click.UsageError(f"cannot read {given}: {error.strerror}") from error
        yield file


def _shown(report: Report, client: Client) -> Table:
    """Return the live display."""
    table = Table.grid(padding=(0, 2))
    rate = report.service_rate_per_s
    gate = client.gate
    table.add_row("answered", f"{report.answered}", "failed", f"{report.failed}", "replayed", f"{report.replayed}")
    table.add_row("attempts", f"{report.attempts}", "refusals", f"{report.refusals}", "in flight", f"{gate.in_flight} of {gate.limit}")
    table.add_row("seconds", f"{report.makespan_s:.1f}", "a second", "-" if rate is None else f"{rate:.1f}")
    if gate.away:
        table.add_row("server", "waited for")
    return table


def _told_in_a_line(report: Report) -> str:
    ratio = report.makespan_ratio
    beside = "" if ratio is None else f", {ratio:.2f} × the least at {report.service_rate_per_s:.1f} a second"
    per_item = "" if report.attempts_per_item is None else f" ({report.attempts_per_item:.2f} each)"
    away = f", {report.unreachable_s:.1f} s of them without a server" if report.unreachable_waits else ""
    replayed = f", {report.replayed} of them from the journal" if report.replayed else ""
    return (
        f"{report.answered} of {report.items} answered{replayed}; {report.attempts} attempts{per_item}, {report.refusals} refusals; "
        f"{report.makespan_s:.1f} s{away}{beside}"
    )
