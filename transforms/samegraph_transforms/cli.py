"""The `samegraph` command: pack, import, inspect, verify, predict, and what other distributions plug in (`serve` comes with the service).

A plug-in is an entry point of the group `samegraph.commands` that names a click command.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from .errors import SamegraphError

if TYPE_CHECKING:
    from .draft import GoldenSample, PackageDraft
    from .package import Package
    from .predicting import Item, Predictor, Result

GROUP = "samegraph.commands"
#: Rows a table on the terminal shows; --output has them all.
MAX_TABLE_ROWS = 100
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class SamegraphGroup(click.Group):
    """The command group: finds plug-in commands, and turns errors into one message and exit code 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return our own commands and those of plug-ins, sorted."""
        return sorted({*super().list_commands(ctx), *_plugins()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; a plug-in that does not load becomes a command that says so."""
        own = super().get_command(ctx, cmd_name)
        plugin = _plugins().get(cmd_name)
        return own if own is not None or plugin is None else _load_plugin(plugin)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command line."""
        try:
            return super().invoke(ctx)
        except (SamegraphError, OSError) as error:
            if ctx.params.get("debug") or isinstance(error, BrokenPipeError):
                raise
            _fail(error)
            ctx.exit(1)


def _plugins() -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=GROUP)}


def _load_plugin(point: metadata.EntryPoint) -> click.Command:
    try:
        command = point.load()
    except Exception as error:  # noqa: BLE001 - a broken plug-in must not take the other commands with it
        return _broken(point, f"{type(error).__name__}: {error}")
    return command if isinstance(command, click.Command) else _broken(point, f"it is no click command but {type(command).__name__}")


def _broken(point: metadata.EntryPoint, reason: str) -> click.Command:
    """Return a command that stands in for one that does not load, and says why."""

    @click.command(point.name, help=f"Not available: {reason}", context_settings={"ignore_unknown_options": True, "help_option_names": []})
    @click.argument("_arguments", nargs=-1, type=click.UNPROCESSED)
    def broken(_arguments: tuple[str, ...]) -> None:
        raise SamegraphError(f"the command {point.name!r} ({point.value}) does not load: {reason}; install its distribution again")

    return broken


def _fail(error: BaseException) -> None:
    message = Text.assemble(("error: ", "red bold"), str(error) or type(error).__name__)
    _stderr().print(message, soft_wrap=True)


def _stderr() -> Console:
    return Console(stderr=True, highlight=False, markup=False)


def _stdout() -> Console:
    return Console(highlight=False, markup=False)


def _examples(text: str) -> str:
    """Return an epilog that click does not rewrap."""
    return "\n\n".join(f"\b\n{block}" for block in text.strip().split("\n\n"))


@click.group(
    cls=SamegraphGroup,
    context_settings=CONTEXT,
    epilog=_examples("""
Start here:
  samegraph pack train.py                       prove a trained model and write its package
  samegraph inspect models/penguins/1           what it takes, gives and promises
  samegraph predict rows.csv --package models/penguins
  samegraph serve                               answer raw inputs over HTTP (comes with the service)

Exit codes: 0 done, 1 it failed (the message says why), 2 wrong usage.
"""),
)
@click.version_option(package_name="samegraph-transforms", prog_name="samegraph")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Model packages: pack them, prove them, look into them, predict with them.

    A model package answers raw inputs (a row, a JPEG, a sentence) through the exact preprocessing its model was trained with, and
    holds the proof.
    """


# --- pack ------------------------------------------------------------------------------------------------------------


@cli.command(
    short_help="Prove a trained model and write its package.",
    epilog=_examples("""
Examples:
  samegraph pack train.py                              what its packages() yields, into ./models
  samegraph pack exported/ --into /srv/models          a draft directory that any tool exported
  samegraph pack exported/ --check                     prove only, write nothing

A trainer's script has a function packages() that yields (PackageDraft, [GoldenSample, ...]) pairs.
A draft directory has draft.json, the .onnx files it names, assets/ and golden/; docs/model-package.md describes it.

Exit codes: 0 packed (or already there, unchanged), 1 refused: not exact, or the draft does not fit, 2 wrong usage.
"""),
)
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--into",
    "repository",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("models"),
    show_default=True,
    help="The model repository.",
)
@click.option("--check", is_flag=True, help="Prove, but write nothing.")
@click.option("--quiet", "-q", is_flag=True, help="Say nothing but the result.")
def pack(source: Path, repository: Path, check: bool, quiet: bool) -> None:
    """Prove SOURCE (a trainer's script or a draft directory) and write its packages.

    Every golden sample runs through the server's own code, alone, in pairs and in full batches, and is compared with what the
    training code gave. A package that differs by more than it promises is refused, by name of the sample and of the first tensor.
    """
    from .pack import pack as pack_one

    err = _stderr()
    say: Callable[[str], None] = (lambda _: None) if quiet else (lambda line: err.print(Text(line, "dim"), soft_wrap=True))
    with _target(repository, check=check) as target:
        done = 0
        for draft, samples in _drafts(source):
            package = pack_one(draft, samples, target, progress=say)
            where = "proven (nothing was written)" if check else str(package.path)
            click.echo(f"{package}  {package.digest}  {where}")
            done += 1
    if not done:
        raise SamegraphError(f"{source}: packages() yielded nothing, so nothing was packed")


@contextmanager
def _target(repository: Path, *, check: bool) -> Iterator[Path]:
    if not check:
        yield repository
        return
    with tempfile.TemporaryDirectory(prefix="samegraph-check-") as directory:
        yield Path(directory)


def _drafts(source: Path) -> Iterable[tuple[PackageDraft, Sequence[GoldenSample]]]:
    from .pack import packages_of, read_draft

    return [read_draft(source)] if source.is_dir() else packages_of(source)


# --- import ----------------------------------------------------------------------------------------------------------


@cli.group("import")
def import_() -> None:
    """Make packages of models that other tools exported, proven by rows with the training code's answers."""


def _named_columns(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, list[str]]:
    """Read INPUT=a,b,c options."""
    del ctx, parameter
    found = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not equals or not name or not rest:
            raise click.BadParameter(f"{value!r} is not of the form INPUT=name,name,…")
        found[name] = [part.strip() for part in rest.split(",")]
    return found


def _shape(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, list[int | None]]:
    """Read INPUT=3,any,any options."""
    try:
        return {
            name: [None if part == "any" else int(part) for part in parts] for name, parts in _named_columns(ctx, parameter, values).items()
        }
    except ValueError as error:
        raise click.BadParameter("a shape is whole numbers and `any`, as in image=any,any,3") from error


def _import_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add what all imports take."""
    options = (
        click.option("--name", required=True, help="The model's name."),
        click.option("--version", type=click.IntRange(1), default=1, show_default=True, help="Its version."),
        click.option(
            "--rows",
            "golden",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            required=True,
            help="JSON Lines: instances with the training code's answers.",
        ),
        click.option("--split-at", metavar="VALUE", help="Value where preprocessing ends: a stage of its own."),
        click.option(
            "--atol",
            type=click.FloatRange(0),
            default=0.0,
            help="How far floats may be from training's, absolute, beside the usual 4 ULP: state it before you look.",
        ),
        click.option(
            "--max-batch-size",
            type=click.IntRange(1, 65536),
            default=64,
            show_default=True,
            help="Most rows an execution; 1 where batches differ.",
        ),
        click.option(
            "--into",
            "repository",
            type=click.Path(file_okay=False, path_type=Path),
            default=Path("models"),
            show_default=True,
            help="The model repository.",
        ),
        click.option("--check", is_flag=True, help="Prove, but write nothing."),
        click.option("--quiet", "-q", is_flag=True, help="Say nothing but warnings and the result."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@import_.command(
    "onnx",
    short_help="Import an ONNX file that contains its preprocessing.",
    epilog=_examples("""
Examples:
  samegraph import onnx pipeline.onnx --name churn --rows golden.jsonl
  samegraph import onnx pipeline.onnx --name churn --rows golden.jsonl --columns X=age,income --split-at variable
  samegraph import onnx net.onnx --name net --rows golden.jsonl --shape image=any,any,3 --check

A line of the rows: {"instance": {"age": 31, "town": "Ulm"}, "outputs": {"label": "yes", "probability": [0.2, 0.8]}}
holds a raw instance and what the training code (not the ONNX file) answered; `values` beside `outputs` may hold what
training had at the split. Images are {"b64": ...}.

Exit codes: 0 packed (or already there, unchanged), 1 refused: not exact, or an operator that cannot run exactly, 2 wrong usage.
"""),
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--columns", multiple=True, callback=_named_columns, metavar="INPUT=a,b", help="Names of the columns of an input [n, k]: k fields."
)
@click.option(
    "--shape", "shapes", multiple=True, callback=_shape, metavar="INPUT=any,3", help="Shape of an instance, in place of the file's."
)
@click.option("--unbatched", is_flag=True, help="The graph takes one instance, without a batch dimension.")
@_import_options
def import_onnx(file: Path, golden: Path, unbatched: bool, repository: Path, check: bool, quiet: bool, **how: Any) -> None:
    """Import FILE, which takes raw columns, text, or decoded images and does the preprocessing itself.

    The signature is read from the graph. Every row runs through the server's own code and is compared with what training answered; a
    file that differs by more than promised is refused, by name of the first node.
    """
    from .onnx_import import from_onnx

    how["batched"] = False if unbatched else None
    _import(from_onnx, file, golden, repository, check=check, quiet=quiet, **how)


@import_.command(
    "saved-model",
    short_help="Import a Keras or TensorFlow SavedModel.",
    epilog=_examples("""
Examples:
  samegraph import saved-model exported/ --name houses --rows golden.jsonl

DIRECTORY is what model.export(...) wrote, preprocessing layers included. Rows are those of `samegraph import onnx --help`. The conversion
needs TensorFlow and tf2onnx: pip install 'samegraph-transforms[keras]'.

Exit codes: 0 packed (or already there, unchanged), 1 refused: not exact, or a layer that has no exact graph, 2 wrong usage.
"""),
)
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--signature", default="serving_default", show_default=True, help="Which of its signatures.")
@_import_options
def import_saved_model(directory: Path, golden: Path, repository: Path, check: bool, quiet: bool, **how: Any) -> None:
    """Import the SavedModel in DIRECTORY by way of tf2onnx, what it gets wrong put right or refused by layer."""
    from .keras_import import from_saved_model

    _import(from_saved_model, directory, golden, repository, check=check, quiet=quiet, **how)


def _import(
    read: Callable[..., PackageDraft],
    source: Path,
    golden: Path,
    repository: Path,
    *,
    check: bool,
    quiet: bool,
    atol: float,
    max_batch_size: int,
    **how: Any,
) -> None:
    """Make a draft of a source and of rows with training's answers, prove it and write it."""
    from .manifest import DEFAULT_TOLERANCES, Batching
    from .onnx_import import golden_rows, golden_samples

    rows, outputs, values = golden_rows(golden)
    wider = DEFAULT_TOLERANCES["cpu.same"].model_copy(update={"atol": atol})
    tolerances = DEFAULT_TOLERANCES | {"cpu.same": wider}
    draft = read(source, rows=rows, batching=Batching(max_batch_size=max_batch_size), tolerances=tolerances, **how)
    made = {value for stage in draft.stages for value in (stage.outputs or {}).values()}
    for unchecked in sorted(set(values) - made):
        _stderr().print(f"{unchecked} is no value of a stage, so it is not compared; --split-at {unchecked} makes it one", soft_wrap=True)
    kept = {value: array for value, array in values.items() if value in made}
    _pack_imported(draft, golden_samples(draft, rows, outputs, values=kept), repository, check=check, quiet=quiet)


def _pack_imported(draft: PackageDraft, samples: Sequence[GoldenSample], repository: Path, *, check: bool, quiet: bool) -> None:
    """Prove a draft and write it; warnings are said even when the rest is not."""
    from .pack import pack as pack_one
    from .pack import warnings_of

    err = _stderr()
    if quiet:
        for warning in warnings_of(draft):
            err.print(Text(f"warning: {warning}", "yellow"), soft_wrap=True)
    say: Callable[[str], None] = (lambda _: None) if quiet else (lambda line: err.print(Text(line, "dim"), soft_wrap=True))
    with _target(repository, check=check) as target:
        package = pack_one(draft, samples, target, progress=say)
        where = "proven (nothing was written)" if check else str(package.path)
        click.echo(f"{package}  {package.digest}  {where}")


# --- inspect ---------------------------------------------------------------------------------------------------------


@cli.command(
    short_help="Show what a package takes, gives, runs and promises.",
    epilog=_examples("""
Examples:
  samegraph inspect models/penguins/1
  samegraph inspect models/penguins                    its latest version
  samegraph inspect models/imagenet/1 --json | jq .manifest.fields
  samegraph inspect models/flights --html flights.html   one page with every histogram, to open or pass on

Exit codes: 0 shown, 1 not a package or not intact, 2 wrong usage.
"""),
)
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a page.")
@click.option("--html", "html", type=click.Path(dir_okay=False, path_type=Path), help="Write an HTML page to this file instead.")
def inspect(path: Path, as_json: bool, html: Path | None) -> None:
    """Show what the package in PATH is: inputs, outputs, baseline, stages, what runs them, promises, files, provenance.

    Every file is checked against its digest on the way.
    """
    from .inspection import inspect as look
    from .package import read_latest

    if as_json and html is not None:
        raise click.UsageError("give --json or --html, not both")
    page = look(read_latest(path))
    if html is not None:
        from .inspection_html import render

        html.write_text(render(page), encoding="utf-8")
        click.echo(f"{page.package}  {html}")
    elif as_json:
        click.echo(json.dumps(page.to_json(), indent=2, ensure_ascii=False))
    else:
        page.render(_stdout())


# --- verify ----------------------------------------------------------------------------------------------------------


@cli.command(
    short_help="Prove a package again, on this machine.",
    epilog=_examples("""
Examples:
  samegraph verify models/penguins/1
  samegraph verify models/imagenet --batch 1 --batch 32
  samegraph verify models/flights/2 --samples models/.heldout/flights/2
  samegraph verify models/penguins/1 --json > report.json
  samegraph verify models/flights/2 --against models/flights/1   node by node against another version
  samegraph verify models/flights/2 --url http://127.0.0.1:8000  what a running server answers
  samegraph verify models/imagenet/1 --html report.html          a page, with the images where images differ

Where answers differ, the first node that diverges is named, with the element and the raw values that show it.

Exit codes: 0 exact (no node differs; the server serves this very package), 1 it differs, or not a package, or no server, 2 wrong usage.
"""),
)
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--samples",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Replay the samples in this directory instead of the package's own.",
)
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(1, 65536),
    multiple=True,
    help="Instances in one execution; may be repeated. [default: 1, 2 and the package's largest]",
)
@click.option(
    "--profile",
    type=click.Choice(["cpu.same", "cpu.other", "gpu"]),
    help="Which promise to hold it to. [default: the one that applies here]",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="cpu", show_default=True, help="Where batches run.")
@click.option("--half", is_flag=True, help="Compute the model in half precision and hold it to what the package promises for gpu.half.")
@click.option(
    "--against",
    type=click.Path(exists=True, path_type=Path),
    help="Run the samples through this package too, and name the first node that differs from its namesake there.",
)
@click.option("--url", help="Send the samples to the server at this address instead of running the package here.")
@click.option("--model", help="The model's name there. [default: the package's]")
@click.option("--version", type=click.IntRange(1), help="Its version there. [default: the package's]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a page.")
@click.option("--html", "html", type=click.Path(dir_okay=False, path_type=Path), help="Write an HTML page to this file as well.")
def verify(
    path: Path,
    samples: Path | None,
    batches: tuple[int, ...],
    profile: str | None,
    device: str,
    half: bool,
    against: Path | None,
    url: str | None,
    model: str | None,
    version: int | None,
    as_json: bool,
    html: Path | None,
) -> None:
    """Replay the golden samples of the package in PATH on this machine.

    Compares every captured intermediate and every output with what the training code gave, stage by stage and as it is served, and
    says how far apart they are and what was promised.
    """
    from .executor import available_providers
    from .golden import read_samples
    from .package import read_latest
    from .verify import verify as replay
    from .verify_server import verify_server

    _check_verify_usage(url=url, against=against, here=bool(batches or half or device != "cpu"), there=bool(model or version), html=html)
    package = read_latest(path)
    given = read_samples(samples) if samples is not None else None
    if against is not None:
        sys.exit(_compare_versions(package, read_latest(against), given, profile, as_json))
    with _progress(f"{package}: replaying", hidden=as_json) as step:
        if url is not None:
            report = verify_server(package, url, model=model, version=version, samples=given, profile=profile, progress=step)
        else:
            providers = available_providers(device)
            report = replay(package, given, batches or None, profile=profile, providers=providers, half=half, progress=step)
    if html is not None:
        from .verify_html import render

        html.write_text(render(report), encoding="utf-8")
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    else:
        report.render(_stdout())
    sys.exit(0 if report.ok and (report.server is None or report.server.same_package) else 1)


def _check_verify_usage(*, url: str | None, against: Path | None, here: bool, there: bool, html: Path | None) -> None:
    if url is not None and (against is not None or here):
        raise click.UsageError("--url asks a running server; --against, --batch, --device and --half are about running the package here")
    if url is None and there:
        raise click.UsageError("--model and --version choose on a server; give its address with --url")
    if against is not None and html is not None:
        raise click.UsageError("--html shows a replay; --against compares two packages")


def _compare_versions(package: Package, other: Package, given: Sequence[GoldenSample] | None, profile: str | None, as_json: bool) -> int:
    """Say which node of `package` first differs from its namesake in `other`; return the exit code."""
    from .divergence import against
    from .golden import promised
    from .verify import describe, golden_samples

    samples = given if given is not None else golden_samples(package)
    found = against(package, other, samples, promised(package.manifest, profile or "cpu.same"))
    if as_json:
        document = {"package": str(package), "against": str(other), "samples": len(samples)}
        click.echo(json.dumps({**document, "divergence": found.to_json() if found else None}, indent=2, ensure_ascii=False))
    elif found is None:
        _stdout().print(f"{package}: every node that {other} has too gives the same values for {len(samples)} samples")
    else:
        _stdout().print(*describe(found), sep="\n")
    return 0 if found is None else 1


@contextmanager
def _progress(what: str, *, hidden: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal's stderr; silent elsewhere."""
    console = _stderr()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=hidden or not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


# --- golden ----------------------------------------------------------------------------------------------------------


@cli.group()
def golden() -> None:
    """Work with golden samples: raw requests with the answers the training code gave."""


@golden.command(
    short_help="Write golden samples as JSON Lines.",
    epilog=_examples("""
Examples:
  samegraph golden export models/flights/2 > flights.jsonl
  samegraph golden export models/imagenet --samples models/.heldout/imagenet/1 --output frames.jsonl

A line is {"name", "model", "version", "path", "headers", "body" (base64), "predictions", "tolerance"}: what to send, what a V1 answer must
hold, and how far floats may be off. Load tests send them and check every answer.

Exit codes: 0 written, 1 not a package, or its samples cannot be read, 2 wrong usage.
"""),
)
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--samples",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Write the samples in this directory instead of the package's own.",
)
@click.option(
    "--profile", type=click.Choice(["cpu.same", "cpu.other", "gpu"]), default="cpu.same", show_default=True, help="Which promise to state."
)
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file instead of standard output.")
def export(path: Path, samples: Path | None, profile: str, output: Path | None) -> None:
    """Write the golden samples of the package in PATH, with the answers they must get."""
    from .golden import read_samples
    from .golden_export import export as lines
    from .package import read_latest

    package = read_latest(path)
    given = read_samples(samples) if samples is not None else None
    with output.open("w", encoding="utf-8") if output is not None else nullcontext(sys.stdout) as stream:
        count = sum(1 for line in lines(package, given, profile=profile) if stream.write(json.dumps(line, ensure_ascii=False) + "\n"))
    _stderr().print(f"{package}: {count} samples" + (f" in {output}" if output else ""))


# --- predict ---------------------------------------------------------------------------------------------------------


@cli.command(
    short_help="Predict files with a package or a running server.",
    epilog=_examples("""
Examples:
  samegraph predict coffee.png --package models/imagenet
  samegraph predict photos/ --url http://127.0.0.1:8000 --model imagenet
  samegraph predict rows.csv --package models/penguins/1 --output answers.jsonl
  samegraph predict requests.jsonl --url http://127.0.0.1:8000 --model flights --version 2
  echo '{"island": "Dream", "bill_length_mm": 50.1}' | samegraph predict - --package models/penguins

Inputs: an image or text file, a directory of them, .csv or .tsv with a header (an empty cell is null; for image fields a cell is
a path), .json (an instance, a list of them, or a whole request), .jsonl (an instance a line), or - for JSON Lines on stdin.

Output: a table on a terminal, else JSON Lines: {"item": ..., "prediction": ...} or {"item": ..., "error": ..., "code": ..., "field": ...}.

Exit codes: 0 every item was predicted, 1 some item failed (the others were still predicted), 2 wrong usage.
"""),
)
@click.argument("source", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--package", "package_path", type=click.Path(exists=True, path_type=Path), help="Predict with this package, here.")
@click.option("--url", help="Predict with the server at this address.")
@click.option("--model", help="Which model of the server. [default: its only one]")
@click.option("--version", type=click.IntRange(1), help="Which version of the server's model. [default: the server routes]")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Write JSON Lines to this file.")
@click.option("--format", "form", type=click.Choice(["auto", "table", "jsonl"]), default="auto", show_default=True, help="What to print.")
@click.option("--ignore-extra", is_flag=True, help="Leave out columns and members that are no fields of the model.")
@click.option("--concurrency", type=click.IntRange(1, 256), default=8, show_default=True, help="Requests to the server under way at once.")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0.001), default=60.0, show_default=True, help="Longest wait for one answer, in seconds."
)
def predict(
    source: Path, package_path: Path | None, url: str | None, output: Path | None, form: str, ignore_extra: bool, **server: Any
) -> None:
    """Predict what is in SOURCE with a package (--package) or through a running server (--url).

    An item that fails is reported with its reason and does not stop the others.
    """
    from .predicting import read_items

    _check_usage(package_path, url, server)
    with closing(_predictor(package_path, url, server)) as predictor:
        items = read_items(source, predictor.fields, ignore_extra=ignore_extra)
        failed = _write(_counted(predictor, items), predictor.output_names, output, form)
    sys.exit(1 if failed else 0)


def _check_usage(package_path: Path | None, url: str | None, server: dict[str, Any]) -> None:
    if (package_path is None) == (url is None):
        raise click.UsageError("give either --package DIRECTORY or --url ADDRESS (with --model NAME)")
    if package_path is not None and (server["model"] or server["version"]):
        raise click.UsageError("--model and --version choose on a server; --package names the version directory itself")


def _predictor(package_path: Path | None, url: str | None, server: dict[str, Any]) -> Predictor:
    from .package import read_latest
    from .predicting import PackagePredictor, ServerPredictor

    if package_path is not None:
        return PackagePredictor(read_latest(package_path))
    assert url is not None
    return ServerPredictor(url, server["model"], server["version"], concurrency=server["concurrency"], timeout_s=server["timeout_s"])


def _counted(predictor: Predictor, items: Iterable[Item]) -> Iterator[Result]:
    with _progress("predicting") as step:
        for done, result in enumerate(predictor.predict(items), 1):
            step(done, 0)
            yield result


def _write(results: Iterable[Result], output_names: Sequence[str], output: Path | None, form: str) -> int:
    """Write results as they come; return how many failed."""
    as_table = output is None and (form == "table" or (form == "auto" and sys.stdout.isatty()))
    shown: list[Result] = []
    failed = total = 0
    stream = output.open("w", encoding="utf-8") if output is not None else None
    try:
        for result in results:
            total += 1
            failed += result.error is not None
            if as_table:
                shown.append(result)
            else:
                click.echo(json.dumps(result.to_json(), ensure_ascii=False), file=stream)
    finally:
        if stream is not None:
            stream.close()
    if as_table:
        _print_table(shown, output_names)
    _stderr().print(
        f"{total - failed} of {total} predicted" + (f", {failed} failed" if failed else "") + (f"; written to {output}" if output else "")
    )
    return failed


def _print_table(results: Sequence[Result], output_names: Sequence[str]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("item", *output_names):
        table.add_column(heading, overflow="fold")
    for result in results[:MAX_TABLE_ROWS]:
        if result.error is not None:
            table.add_row(Text(result.item), Text(f"{result.error} ({result.code})", "red"), *[""] * (len(output_names) - 1))
        else:
            values = result.prediction if isinstance(result.prediction, dict) else {output_names[0]: result.prediction}
            table.add_row(Text(result.item), *(Text(_shown(values.get(name))) for name in output_names))
    _stdout().print(table)
    if len(results) > MAX_TABLE_ROWS:
        _stderr().print(f"… and {len(results) - MAX_TABLE_ROWS} more; --output FILE writes them all")


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(_shown(v) for v in value[:10]) + (", …" if len(value) > 10 else "")
    return "" if value is None else str(value)


# --- schema ----------------------------------------------------------------------------------------------------------


@cli.command(hidden=True)
@click.argument("what", type=click.Choice(["manifest", "baseline"]), default="manifest")
def schema(what: str) -> None:
    """Print the JSON Schema of manifest.json or baseline.json (docs/manifest.schema.json and docs/baseline.schema.json are these)."""
    from . import baseline, manifest

    document = manifest.json_schema() if what == "manifest" else baseline.json_schema()
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def main() -> None:
    """Run the command line: the console script `samegraph`."""
    cli()


if __name__ == "__main__":
    main()
