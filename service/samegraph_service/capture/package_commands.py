"""`samegraph revalidate` and `samegraph baseline`: captured data held against packages, and made into a baseline."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from .commands import Moment, choice_of, choice_options, open_capture

if TYPE_CHECKING:
    from samegraph_transforms.package import Package

    from .reader import Capture, CaptureFile, Choice
    from .revalidation import Against, OutputAgreement, Revalidation

#: Exit codes that say something about the data; 1 and 2 are failures and wrong usage, as with every command.
DRIFTED, NOT_REPLAYED = 3, 4


@click.command(
    short_help="Run captured requests again: same answers, same data?",
    epilog="""\b
Examples:
  samegraph revalidate captured/                                   every version that was captured, from ./models
  samegraph revalidate captured/ --model flights --since 24h
  samegraph revalidate captured/ --package models/flights/1 --against models/flights/2
  samegraph revalidate captured/ --package models/flights/1 --against models/flights/2 --min-agreement 0.99
  samegraph revalidate captured/ --model flights --json | jq '.[0].outputs'

\b
Exit codes: 0 same answers and nothing drifted; 1 answers differ by more than promised, or --min-agreement is missed, or it
failed (the message says why); 2 wrong usage; 3 same answers, but the data has drifted; 4 nothing could be run again, because a
field was excluded or hashed or the images are gone.
""",
)
@click.argument("url")
@choice_options
@click.option(
    "--repository",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("models"),
    show_default=True,
    help="Where the packages are that gave the answers.",
)
@click.option(
    "--package",
    "package_path",
    type=click.Path(exists=True, path_type=Path),
    help="The package to run; only rows of its model and version.",
)
@click.option("--against", type=click.Path(exists=True, path_type=Path), help="Another version to compare the captured answers with.")
@click.option("--min-agreement", type=click.FloatRange(0, 1), help="With --against: least share of rows whose decision stays.")
@click.option("--least-psi", type=click.FloatRange(0), default=0.1, show_default=True, help="Drift that is tolerated.")
@click.option("--alpha", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.001, show_default=True, help="Level.")
@click.option("--min-rows", type=click.IntRange(1), default=200, show_default=True, help="Rows below which nothing is said about drift.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a page.")
def revalidate(
    url: str, repository: Path, package_path: Path | None, against: Path | None, min_agreement: float | None, as_json: bool, **more: Any
) -> None:
    """Run what was captured at URL through the packages that answered it.

    Says whether they give the same answers (bit for bit, within the promise, or not), what another version would have answered
    (--against), and whether the inputs and answers have drifted from the training baseline.
    """
    from samegraph_service.drift.statistics import AlarmRule

    if min_agreement is not None and against is None:
        raise click.UsageError("--min-agreement is about the version in --against, so it needs one")
    captured = open_capture(url)
    choice, targets = _targets(captured, choice_of(more), repository, package_path)
    other = _read(against) if against is not None else None
    rule = AlarmRule(more["least_psi"], more["alpha"], more["min_rows"])
    found = [_run(captured, files, choice, package, other, rule, hidden=as_json) for files, package in targets]
    if as_json:
        click.echo(json.dumps([one.to_json() for one in found], indent=2, ensure_ascii=False))
    else:
        for one in found:
            _print(one)
    sys.exit(_status(found, min_agreement))


def _targets(
    captured: Capture, choice: Choice, repository: Path, package_path: Path | None
) -> tuple[Choice, list[tuple[list[CaptureFile], Package]]]:
    """Return which files are run through which package."""
    from dataclasses import replace

    from samegraph_transforms.package import open_version

    from .reader import CaptureError

    if package_path is not None:
        package = _read(package_path)
        model, version = choice.model or package.manifest.name, choice.version or package.manifest.version
        choice = replace(choice, model=model, version=version)
        files = captured.files(choice)
        if not files:
            raise CaptureError(f"{captured.url} holds no rows of {model}/{version}; choose others with --model and --version")
        return choice, [(files, package)]
    groups: dict[tuple[str, int], list[CaptureFile]] = {}
    for file in captured.files(choice):
        groups.setdefault((file.facts.model, file.facts.version), []).append(file)
    if not groups:
        raise CaptureError(f"{captured.url} holds no rows of this choice")
    return choice, [(groups[key], open_version(repository, *key)) for key in sorted(groups)]


def _read(path: Path) -> Package:
    from samegraph_transforms.package import read_latest

    return read_latest(path)


def _run(
    captured: Capture, files: Sequence[CaptureFile], choice: Choice, package: Package, other: Package | None, rule: Any, *, hidden: bool
) -> Revalidation:
    from .revalidation import revalidate as replay

    with progress_bar(f"{package}: running captured rows", hidden=hidden) as step:
        return replay(captured, files, choice, package, against=other, rule=rule, progress=step)


def _status(found: Sequence[Revalidation], min_agreement: float | None) -> int:
    if any(not one.same_answers for one in found):
        return 1
    if min_agreement is not None and any(one.against is not None and one.against.agreement < min_agreement for one in found):
        return 1
    if any(not one.replayed for one in found):
        return NOT_REPLAYED
    return DRIFTED if any(one.drift is not None and one.drift.drifted for one in found) else 0


@contextmanager
def progress_bar(what: str, *, hidden: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal's standard error; silent elsewhere."""
    console = Console(stderr=True, highlight=False, markup=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=hidden or not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


# --- baseline -------------------------------------------------------------------------------------------------------------


@click.group()
def baseline() -> None:
    """Make the baseline of a package from later data."""


@baseline.command(
    epilog="""\b
Examples:
  samegraph baseline update models/flights/2 --from captured/ --since 30d
  samegraph baseline update flights/2 --from s3://bucket/captured --into /srv/models --to-version 5
  samegraph inspect models/flights/3                    the new baseline, and under each line the one before

\b
Exit codes: 0 written, 1 refused (too few rows, rows of another version, fields that were not captured; the message says which),
2 wrong usage.
"""
)
@click.argument("package")
@click.option("--from", "url", required=True, help="What the service captures to: a directory, or any URL that fsspec knows.")
@click.option(
    "--repository",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("models"),
    show_default=True,
    help="Where MODEL/VERSION is looked for when it is no path.",
)
@click.option("--into", type=click.Path(file_okay=False, path_type=Path), help="The repository to write to. [default: the package's own]")
@click.option("--to-version", type=click.IntRange(1), help="Number of the new version. [default: one more than the highest]")
@click.option("--since", type=Moment(), help="Rows answered at this time or later: 2026-11-21, 2026-11-21T15:00:00Z, or 30d ago.")
@click.option("--until", type=Moment(), help="Rows answered before this time.")
@click.option("--min-rows", type=click.IntRange(1), default=1000, show_default=True, help="Fewest rows a baseline is made from.")
@click.option("--max-rows", type=click.IntRange(1), default=200_000, show_default=True, help="Most rows; of more, a sample is taken.")
@click.option("--any-version", is_flag=True, help="Take rows that other versions of the model answered, too.")
def update(package: str, url: str, repository: Path, into: Path | None, to_version: int | None, **more: Any) -> None:
    """Write a new version of PACKAGE whose baseline is captured data.

    Graphs and golden samples are the same, byte for byte; the digest is another, because the baseline is. The baseline before is kept in
    the package beside the new one. A running server that watches the repository takes the new version up like any other.
    """
    from .renewal import renew

    path = Path(package) if Path(package).exists() else repository / package
    source = _read(path)
    captured = open_capture(url)
    with progress_bar(f"{source}: running captured rows") as step:
        made = renew(captured, source, repository=into or source.path.parent.parent, version=to_version, progress=step, **more)
    words = made.baseline()
    assert words is not None
    click.echo(f"{made}  {made.digest}  {made.path}")
    click.echo(f"baseline: {words.rows:,} rows; {words.made_from}", err=True)


# --- printing -------------------------------------------------------------------------------------------------------------


def _print(one: Revalidation) -> None:
    from samegraph_service.drift.report_text import ReportText

    console = Console(highlight=False, markup=False)
    facts = one.facts
    console.print(Text.assemble((f"{facts.model}/{facts.version}", "bold"), f"  {one.rows:,} captured rows, run with {one.package}"))
    if not one.same_package:
        console.print(Text(f"note: {facts.digest[:12]} gave the answers, {one.digest[:12]} was run", "yellow"))
    if one.gone:
        console.print(Text(f"note: {one.gone:,} rows were left out: their images were deleted since", "yellow"))
    if one.not_replayed:
        console.print(Text(f"not run again: {one.not_replayed}", "yellow"))
    else:
        console.print(_agreements(one.outputs.values(), verdict=True))
        _print_changes(console, one.outputs.values())
        _print_refused(console, one.refused, one.package)
        console.print(_verdict(one))
    if one.against is not None and not one.not_replayed:
        _print_against(console, one.against)
    if one.drift is not None:
        console.print()
        console.print(ReportText(one.drift))
    elif not one.not_replayed:
        console.print(Text("drift: the package has no baseline for these fields", "dim"))
    console.print()


def _verdict(one: Revalidation) -> Text:
    if not one.replayed and not one.refused:
        return Text("nothing was left to run", "yellow")
    if not one.same_answers:
        return Text("OTHER ANSWERS: this package does not answer as was captured", "red bold")
    equal = all(not output.different for output in one.outputs.values())
    return Text("the same answers, bit for bit" if equal else f"the same answers within the promise ({one.profile})", "green")


def _agreements(outputs: Any, *, verdict: bool) -> Table:
    from samegraph_transforms.exactness import UNREACHABLE

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    table.add_column("output", overflow="fold", min_width=8)
    steps = ("max ULP",) if verdict else ()  # between two models it says nothing
    for heading in ("rows", "equal", "differ", *steps, "max abs", "flipped"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict" if verdict else "agreement", no_wrap=True, justify="left" if verdict else "right")
    for output in outputs:
        ulp = "∞" if output.max_ulp == UNREACHABLE else "–" if output.decision else f"{output.max_ulp:,}"
        cells = [
            f"{output.rows:,}",
            f"{output.equal_rows:,}",
            f"{output.different:,}",
            *([ulp] if verdict else []),
            f"{output.max_abs:.3g}",
            f"{output.flipped:,}" if output.decision else "–",
        ]
        table.add_row(output.name, *cells, _word(output) if verdict else f"{output.agreement:.2%}")
    return table


def _word(output: OutputAgreement) -> Text:
    if not output.passed:
        return Text("DIFFERS", "red bold")
    return Text("equal", "green") if not output.different else Text("within", "yellow")


def _print_changes(console: Console, outputs: Any) -> None:
    from .revalidation import CHANGES_SHOWN

    for output in outputs:
        if output.first:
            console.print(Text(f"{output.name}: {output.first}", "red"))
        for (before, now), n in output.changes.most_common(CHANGES_SHOWN):
            console.print(Text(f"  {output.name}: {before} → {now}  {n:,} rows"))


def _print_refused(console: Console, refused: Any, package: str) -> None:
    for code, n in refused.most_common():
        console.print(Text(f"{n:,} rows are refused by {package}: {code}", "red"))


def _print_against(console: Console, against: Against) -> None:
    console.print()
    console.print(Text.assemble(("against ", ""), (against.package, "bold"), f"  agreement {against.agreement:.2%}"))
    console.print(_agreements(against.outputs.values(), verdict=False))
    for output in against.outputs.values():
        for (before, now), n in output.changes.most_common(10):
            console.print(Text(f"  {output.name}: {before} → {now}  {n:,} rows"))
    _print_refused(console, against.refused, against.package)
    if against.only_here:
        console.print(Text(f"note: {against.package} has no output {', '.join(against.only_here)}", "yellow"))
