"""A comparison of two versions on a terminal and as a page; both show the same tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from .compare import Calibration, Comparison
from .page import document, table
from .paired import Range
from .report import number, p_words

#: Slices that are shown; the JSON document has them all.
SHOWN_SLICES = 25
_COLOURS = {"better": "green", "worse": "red", "undecided": "yellow", "same": "green", "differs": "yellow"}
_CLASSES = {"better": "good", "worse": "bad", "undecided": "wait", "same": "good", "differs": "wait"}


class Section(NamedTuple):
    """One table with its title; columns from `right` on are numbers."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: int = 1


def show(found: Comparison, console: Console) -> None:
    """Print it on a terminal."""
    one, two = found.versions
    console.print(Text.assemble((found.model, "bold"), f" version {one} and version {two}, {found.both:,} of {found.rows:,} rows"))
    console.print(Text(found.verdict, f"bold {_COLOURS[found.state]}"), soft_wrap=True)
    for section in sections(found):
        console.print()
        console.print(Text(section.title, "bold"))
        lines = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
        for i, head in enumerate(section.heads):
            lines.add_column(head, justify="right" if i >= section.right else "left", overflow="fold")
        for row in section.rows:
            lines.add_row(*map(Text, row))
        console.print(lines)
    for note in found.notes:
        console.print(Text(note, "dim"), soft_wrap=True)


def page(found: Comparison) -> str:
    """Return it as one HTML page that needs no other file and no network."""
    one, two = found.versions
    header = (
        f"<h1>{escape(found.model)} <small>version {one} and version {two}</small></h1>"
        f'<p class="quiet">{found.both:,} of {found.rows:,} rows were answered by both.</p>'
        f'<p class="verdict {_CLASSES[found.state]}">{escape(found.verdict)}</p>'
    )
    body = "".join(
        f"<section><h2>{escape(s.title)}</h2>{table(s.heads, s.rows, range(s.right, len(s.heads)))}</section>" for s in sections(found)
    )
    notes = "".join(f"<p>{escape(note)}</p>" for note in found.notes)
    return document(f"{found.model}: version {one} and version {two}", header, f"{body}<footer>{notes}</footer>")


def sections(found: Comparison) -> Iterator[Section]:
    """Yield the tables in the order they are read: right or wrong, what changes, where, by how much, how sure, refused."""
    one, two = (f"version {v}" for v in found.versions)
    rows: list[tuple[str, ...]]
    if found.accuracy is not None:
        a = found.accuracy
        yield Section(
            "Accuracy",
            ("", one, two, "difference", "only first right", "only second right", "McNemar"),
            [("all", _share(a.first), _share(a.second), _shown(a.difference), f"{a.only_first:,}", f"{a.only_second:,}", p_words(a.p))],
        )
    if found.errors is not None:
        e = found.errors
        rows = [("mean absolute error", _shown(e.first), _shown(e.second), _shown(e.difference))]
        yield Section("Distance from the truth", ("", one, two, "difference"), rows)
    if found.changed is not None:
        rows = [("any", "", f"{_share(found.changed)}")]
        rows += [(a, b, f"{n:,} ({100 * n / found.both:.3g} %)") for a, b, n in found.flips[:8]]
        yield Section(f"Answers that change ({found.answer})", (one, two, "rows"), rows, 2)
    if found.slices:
        yield _slices(found)
    if found.numbers:
        rows = [
            (
                f"{n.output}.{n.element}" if n.element else n.output,
                _shown(n.mean),
                number(n.absolute_mean),
                *map(number, n.quantiles.values()),
            )
            for n in found.numbers[:40]
        ]
        heads = ("output", "mean", "mean size", "median", "95 %", "99 %", "largest")
        yield Section(f"Numbers: {two} minus {one}", heads, [tuple(r) for r in rows])
    if found.calibration is not None:
        yield from _calibration(found, one, two)
    if found.refused:
        rows = [(code, f"{a:,}", f"{b:,}") for code, (a, b) in found.refused.items()]
        yield Section("Rows only one of them refused", ("code", one, two), rows)


def _slices(found: Comparison) -> Section:
    rows = []
    for one in found.slices[:SHOWN_SLICES]:
        row = [one.field, one.value, f"{one.n:,}"]
        if found.changed is not None:
            row.append("" if one.changed is None else f"{100 * one.changed.estimate:.1f} %")
        row.append("" if one.shift is None else f"{one.shift.estimate:+.3f}")
        if found.accuracy is not None:
            row += ["", ""] if one.accuracy is None else [f"{100 * one.accuracy.first.estimate:.1f} %", _points(one.accuracy.difference)]
        rows.append(row)
    heads = ["field", "value", "rows"] + ["changes"] * (found.changed is not None) + ["shift"]
    heads += [f"version {found.versions[0]} right", "difference"] * (found.accuracy is not None)
    more = f" (first {SHOWN_SLICES} of {len(found.slices)})" if len(found.slices) > SHOWN_SLICES else ""
    return Section(f"Where they differ{more}", heads, rows, 2)


def _calibration(found: Comparison, one: str, two: str) -> Iterator[Section]:
    assert found.calibration is not None
    first, second = found.calibration
    yield Section(
        "Calibration",
        ("", one, two),
        [
            ("expected calibration error", number(first.error), number(second.error)),
            ("Brier score", number(first.brier), number(second.brier)),
            ("log loss", number(first.log_loss), number(second.log_loss)),
        ],
    )
    edges = sorted({edge for side in (first, second) for edge, *_ in side.bins})
    rows = [(f"{edge:.1f} to {edge + 0.1:.1f}", *_tenth(first, edge), *_tenth(second, edge)) for edge in edges]
    yield Section(
        "Confidence and how often it is right", ("confidence", "rows", "mean", f"right, {one}", "rows", "mean", f"right, {two}"), rows
    )


def _tenth(side: Calibration, edge: float) -> tuple[str, str, str]:
    for low, n, confidence, right in side.bins:
        if low == edge:
            return f"{n:,}", f"{confidence:.3f}", f"{right:.3f}"
    return "", "", ""


def _share(share: Range) -> str:
    return f"{100 * share.estimate:.2f} % ({100 * share.low:.2f} to {100 * share.high:.2f})"


def _points(value: Range) -> str:
    return f"{value.estimate:+.3f} ({value.low:+.3f} to {value.high:+.3f})"


def _shown(value: Range) -> str:
    bounds = f" ({number(value.low)} to {number(value.high)})" if math.isfinite(value.low) else ""
    return f"{number(value.estimate)}{bounds}"
