"""`samegraph capture`: what was captured, some of it, and all of it in other forms."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from samegraph_transforms.errors import EnvironmentUnfit

from .options import check_libraries

if TYPE_CHECKING:
    from .reader import Capture, CaptureFile, Choice

_Command = TypeVar("_Command", bound=Callable[..., Any])
#: Formats of `export` and how their files end.
FORMATS = ("jsonl", "instances", "csv", "parquet")


class Moment(click.ParamType[datetime]):
    """A time: `2026-11-21`, `2026-11-21T15:00:00Z`, or `2h` for so long ago."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return the moment; wrong usage when it is none."""
        from .reader import parse_time

        if isinstance(value, datetime):
            return value
        try:
            return parse_time(value)
        except ValueError:
            self.fail(f"{value!r} is no time; write 2026-11-21, 2026-11-21T15:00:00Z, or 30m, 2h, 7d for so long ago", param, ctx)


def choice_options(command: _Command) -> _Command:
    """Add the options that choose rows."""
    options = (
        click.option("--model", help="Rows of this model only."),
        click.option("--version", type=click.IntRange(1), help="Rows of this version only."),
        click.option("--arm", help="Rows of requests assigned to this arm only."),
        click.option("--since", type=Moment(), help="Answered at this time or later: 2026-11-21, 2026-11-21T15:00:00Z, or 2h ago."),
        click.option("--until", type=Moment(), help="Answered before this time."),
        click.option("--below", type=float, help="Answered with a confidence (highest class score) below this."),
        click.option("--above", type=float, help="Answered with this confidence or a higher one."),
        click.option("--limit", type=click.IntRange(1), help="At most so many rows."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def choice_of(chosen: dict[str, Any]) -> Choice:
    """Return what the options of `choice_options` say."""
    from .reader import Choice

    return Choice(
        model=chosen["model"],
        version=chosen["version"],
        arm=chosen["arm"],
        since=chosen["since"],
        until=chosen["until"],
        below=chosen["below"],
        above=chosen["above"],
        most=chosen["limit"],
    )


def open_capture(url: str) -> Capture:
    """Return what lies there; the error of a missing extra names it."""
    try:
        check_libraries(url)
    except EnvironmentUnfit as error:
        raise click.ClickException(str(error).replace("capture is on but ", "")) from error
    from .reader import Capture

    return Capture(url)


@click.group()
def capture() -> None:
    """Look into captured requests: what there is, some rows, everything in other forms.

    URL is what the service captures to: a directory, or any URL that fsspec knows.
    """


# --- ls -------------------------------------------------------------------------------------------------------------------


@capture.command(
    epilog="""\b
Examples:
  samegraph capture ls captured/
  samegraph capture ls s3://bucket/captured --model flights --since 7d
  samegraph capture ls captured/ --json | jq .versions

\b
Exit codes: 0 listed, 1 there is no capture, 2 wrong usage.
"""
)
@click.argument("url")
@choice_options
@click.option("--files", "each", is_flag=True, help="A line for every file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def ls(url: str, each: bool, as_json: bool, **chosen: Any) -> None:
    """List models and versions with their files, rows and time spans."""
    captured = open_capture(url)
    files = captured.files(choice_of(chosen))
    images = captured.images()
    if as_json:
        document = {
            "url": url,
            "versions": [_version_document(group, each) for group in _groups(files)],
            "images": {"files": len(images), "bytes": sum(s.bytes for s in images)},
            "unreadable": [{"file": name, "reason": reason} for name, reason in captured.unreadable],
        }
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    table = _table("model", "files", "rows", "from", "to", "bytes", right=("files", "rows", "bytes"))
    groups = _groups(files)
    for group in groups:
        rows, size = sum(f.facts.rows for f in group), sum(f.stored.bytes for f in group)
        since, until = min(f.facts.since for f in group), max(f.facts.until for f in group)
        table.add_row(_named(group, groups), f"{len(group):,}", f"{rows:,}", _moment(since), _moment(until), _bytes(size))
    _stdout().print(table)
    for file in files if each else ():
        click.echo(f"{file.stored.name}  {file.facts.rows:,} rows  {_bytes(file.stored.bytes)}")
    for group in groups:
        if group[0].facts.treated:
            click.echo(f"{_named(group, groups)}: " + ", ".join(f"{name} {how}" for name, how in group[0].facts.treated.items()))
    if images:
        click.echo(f"{len(images):,} images, {_bytes(sum(s.bytes for s in images))}")
    for name, reason in captured.unreadable:
        click.echo(f"unreadable: {name}: {reason}", err=True)


def _groups(files: list[CaptureFile]) -> list[list[CaptureFile]]:
    found: dict[tuple[str, int, str], list[CaptureFile]] = {}
    for file in files:
        found.setdefault((file.facts.model, file.facts.version, file.facts.digest), []).append(file)
    return [found[key] for key in sorted(found)]


def _named(group: list[CaptureFile], groups: list[list[CaptureFile]]) -> str:
    """Return a version's name, with its digest where several packages had that number."""
    facts = group[0].facts
    several = sum((g[0].facts.model, g[0].facts.version) == (facts.model, facts.version) for g in groups) > 1
    return f"{facts.model}/{facts.version}" + (f" {facts.digest[:8]}" if several else "")


def _version_document(group: list[CaptureFile], each: bool) -> dict[str, Any]:
    facts = group[0].facts
    document: dict[str, Any] = {
        "model": facts.model,
        "version": facts.version,
        "digest": facts.digest,
        "files": len(group),
        "rows": sum(f.facts.rows for f in group),
        "bytes": sum(f.stored.bytes for f in group),
        "from": min(f.facts.since for f in group).isoformat(),
        "to": max(f.facts.until for f in group).isoformat(),
        "treated": dict(facts.treated),
    }
    if each:
        document["names"] = [f.stored.name for f in group]
    return document


# --- show -----------------------------------------------------------------------------------------------------------------


@capture.command(
    epilog="""\b
Examples:
  samegraph capture show captured/ --model flights --limit 5
  samegraph capture show captured/ --model imagenet --below 0.3 --since 24h
  samegraph capture show captured/ --json | jq .outputs.label

\b
Exit codes: 0 shown, 1 there is no capture, 2 wrong usage.
"""
)
@click.argument("url")
@choice_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON Lines instead of a table.")
def show(url: str, as_json: bool, **chosen: Any) -> None:
    """Show some rows: 20 unless --limit says otherwise."""
    from dataclasses import replace

    from .export import row_document, shown

    choice = choice_of(chosen)
    choice = replace(choice, most=choice.most or 20)
    table = _table("time", "model", "arm", "inputs", "outputs")
    for batch in open_capture(url).batches(choice):
        for i in range(batch.n):
            if as_json:
                click.echo(json.dumps(row_document(batch, i), ensure_ascii=False))
                continue
            inputs = ", ".join(f"{name} {shown(values[i])}" for name, values in batch.inputs.items())
            outputs = ", ".join(f"{name} {shown(values[i])}" for name, values in batch.outputs.items())
            facts = batch.facts
            arm = batch.meta["arm"][i] or ""
            table.add_row(_moment(batch.meta["time"][i]), f"{facts.model}/{facts.version}", Text(arm), Text(inputs), Text(outputs))
    if not as_json:
        _stdout().print(table)


# --- export ---------------------------------------------------------------------------------------------------------------


@capture.command(
    epilog="""\b
Examples:
  samegraph capture export captured/ --model flights --output flights.jsonl     requests, to be sent again
  samegraph capture export captured/ --model flights --format instances | samegraph predict - --package models/flights/2
  samegraph capture export captured/ --model flights --version 2 --format csv --output flights.csv
  samegraph capture export captured/ --model imagenet --below 0.4 --coco to-label/

\b
Formats: jsonl is a V1 body a line, one for each captured request; instances is an instance a line; csv and parquet have inputs, answers
and circumstances of the rows of one version. --coco writes images with the model's answers as pre-annotations: images/ and
annotations/instances_default.json, to load into CVAT, Label Studio and others.

\b
Exit codes: 0 written, 1 there is no capture, or a field that is needed was not captured, 2 wrong usage.
"""
)
@click.argument("url")
@choice_options
@click.option("--format", "form", type=click.Choice(FORMATS), default="jsonl", show_default=True, help="What to write.")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file. [default: standard output]")
@click.option("--coco", type=click.Path(file_okay=False, path_type=Path), help="Write images and COCO annotations into this directory.")
def export(url: str, form: str, output: Path | None, coco: Path | None, **chosen: Any) -> None:
    """Write captured rows in another form."""
    from . import export as forms

    if coco is not None and output is not None:
        raise click.UsageError("give --output or --coco, not both")
    captured = open_capture(url)
    batches = captured.batches(choice_of(chosen))
    if coco is not None:
        written = forms.export_coco(captured, batches, coco)
        click.echo(f"{written.rows:,} images with their answers in {coco}", err=True)
    else:
        with _target(output) as binary:
            if form == "parquet":
                written = forms.export_parquet(batches, binary)
            else:
                text = forms.text_stream(binary)
                if form == "csv":
                    written = forms.export_csv(batches, text)
                else:
                    written = (forms.export_requests if form == "jsonl" else forms.export_instances)(captured, batches, text)
                text.flush()
                text.detach()  # or it would close what it writes to
        of_requests = f" of {written.requests:,} requests" if written.requests else ""
        click.echo(f"{written.rows:,} rows{of_requests}" + (f" in {output}" if output is not None else ""), err=True)
    if written.left_out:
        click.echo(f"{written.left_out:,} rows were left out: their images were deleted since, or cannot be read", err=True)


@contextmanager
def _target(output: Path | None) -> Iterator[BinaryIO]:
    """Open a file that is there whole or not at all, or standard output."""
    if output is None:
        yield sys.stdout.buffer
        return
    partial = output.with_name(f".{output.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)


# --- printing -------------------------------------------------------------------------------------------------------------


def _table(*headings: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    return table


def _stdout() -> Console:
    return Console(highlight=False, markup=False)


def _moment(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M")


def _bytes(n: int) -> str:
    size = float(n)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.3g} {unit}" if size < 1000 else f"{size:,.0f} {unit}"
        size /= 1000
    return ""
