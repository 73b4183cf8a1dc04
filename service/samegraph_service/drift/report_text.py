"""A drift report for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text
from samegraph_transforms.baseline_view import sparkline

from .report import Entry, Point, Report
from .statistics import State

_STYLES: dict[State, str] = {"drifted": "bold red", "shifted": "yellow", "quiet": "green", "not_enough_data": "dim"}
_BLOCKS = "▁▂▃▄▅▆▇█"
#: Characters of a histogram.
_WIDTH = 12
#: Columns a terminal must have for everything.
WIDE = 140


class ReportText:
    """A report that rich can print.

    Args:
        report: The report.
        all_: Whether the table has all variables, not only what has moved.
    """

    def __init__(self, report: Report, *, all_: bool = False) -> None:
        self._report = report
        self._all = all_

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield what is printed."""
        report, found = self._report, self._report.found
        yield Text.assemble((f"{found.model}/{found.version}", "bold"), f"  drift of {found.window}, {found.where}")
        made_from = f"; {found.baseline.made_from}" if found.baseline.made_from else ""
        yield Text(f"{report.rows:,} rows against {found.baseline.rows:,} of the baseline{made_from}")
        counted = [(f"{report.count(state)} {state.replace('_', ' ')}", style) for state, style in _STYLES.items() if report.count(state)]
        yield Text("  ").join(Text(words, style) for words, style in counted)
        for note in found.notes:
            yield Text(f"note: {note}", "yellow")
        shown = [entry for entry in report.entries if self._all or entry.found.state in ("drifted", "shifted")]
        if shown:
            yield _table(shown, wide=options.max_width >= WIDE)
        for state in ("quiet", "not_enough_data"):
            names = [entry.variable.name for entry in report.entries if entry not in shown and entry.found.state == state]
            if names:
                yield Text.assemble((f"{state.replace('_', ' ')}: ", _STYLES[state]), ", ".join(names))
        for name, now, then, measured in report.accuracies():
            known = "" if measured is None else f", measured there {measured:.4f}"
            yield Text(
                f"accuracy that {name} expects of itself: {now:.4f} ({found.expected_over}); on the baseline's rows {then:.4f}{known}"
            )
        for (name, kind), n in sorted(found.errors.items(), key=lambda pair: -pair[1]):
            yield Text(f"never reached the model: {n:,} × {kind} of {name}", "yellow")


def _table(entries: Sequence[Entry], *, wide: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("variable", overflow="fold")
    table.add_column("state", no_wrap=True)
    for heading in ("PSI", "critical", *(["p", "W1, std"] if wide else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("baseline", "now", "trend") if wide else ():
        table.add_column(heading, no_wrap=True)
    table.add_column("bin that moved most", min_width=14)
    for entry in entries:
        found = entry.found
        now = entry.variable.model_copy(update={"counts": entry.counts})
        table.add_row(
            Text(entry.variable.name),
            Text(found.state.replace("_", " "), _STYLES[found.state]),
            *(_number(value) for value in (found.psi, found.psi_critical, *((found.p_value, found.w1_std) if wide else ()))),
            *((sparkline(entry.variable, _WIDTH), sparkline(now, _WIDTH), _trend(entry.trend)) if wide else ()),
            Text(entry.guilty_words),
        )
    return table


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"


def _trend(points: Sequence[Point]) -> Text:
    """Return PSI by its critical value over time: full height is twice the critical value, red is above it."""
    text = Text()
    for point in points:
        if math.isnan(point.psi):
            text.append("·", "dim")
        else:
            text.append(_BLOCKS[min(7, int(point.excess * 4))], "red" if point.excess > 1 else "")
    return text
