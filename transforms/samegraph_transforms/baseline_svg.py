"""Histograms of variables as pieces of HTML with inline SVG; whoever includes them brings `STYLE`.

Given counts of another time, both are drawn: the baseline filled, the others as an outline or a second bar.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .baseline import Variable
from .baseline_view import columns, is_log, percent, short

#: Columns of a number's histogram.
COLUMNS = 40
#: Values of a category that get a bar; the rest is in the table of bins.
MAX_BARS = 8
_WIDTH, _HEIGHT = 320, 72

#: Colours are variables, so that a page can set its own: `--bar` the baseline, `--now` the other counts, `--line`, `--quiet`.
STYLE = """
svg.histogram { display: block; width: 100%; height: 72px; }
svg.histogram .column { fill: var(--bar); }
svg.histogram .column:hover { fill: var(--text); }
svg.histogram .now { fill: none; stroke: var(--now); stroke-width: 1.6; vector-effect: non-scaling-stroke; }
svg.histogram .axis { stroke: var(--line); vector-effect: non-scaling-stroke; }
.ends { display: flex; justify-content: space-between; color: var(--quiet); font-size: 12px; font-variant-numeric: tabular-nums; }
table.bars { width: 100%; border-collapse: collapse; table-layout: fixed; font-size: 13px; }
table.bars th { width: 34%; padding: 1px 8px 1px 0; overflow: hidden; font-weight: normal; text-align: left; text-overflow: ellipsis; white-space: nowrap; }
table.bars td { padding: 1px 0; }
table.bars td.share { width: 64px; text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
table.bars td.both { width: 126px; }
table.bars svg { display: block; width: 100%; height: 12px; }
table.bars .column { fill: var(--bar); }
table.bars .now { fill: var(--now); }
"""  # noqa: E501 - a rule a line reads better


def histogram(variable: Variable, current: Sequence[int] | None = None) -> str:
    """Return a variable's histogram as HTML.

    Args:
        variable: The variable with its baseline's counts.
        current: Counts of another time in the same bins; the special bins that hold rows then and now are drawn too.
    """
    drawn = _columns(variable, current) if variable.kind == "numeric" else _bars(variable, current)
    return drawn if current is None else drawn + _specials(variable, current)


def _columns(variable: Variable, current: Sequence[int] | None) -> str:
    shares = columns(variable, COLUMNS)
    if not shares:
        return '<p class="quiet">no finite number among these rows</p>'
    others = columns(variable, COLUMNS, current) if current is not None else []
    tallest = max(*shares, *others, 1e-12)
    step = _WIDTH / COLUMNS
    drawn = "".join(_column(i * step, step, share / tallest, share) for i, share in enumerate(shares))
    label = f"Histogram of {variable.name} from {short(variable.bounds[0][0])} to {short(variable.bounds[-1][1])}"
    return (
        f'<svg class="histogram" viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">'
        f'{drawn}<line class="axis" x1="0" x2="{_WIDTH}" y1="{_HEIGHT - 0.5}" y2="{_HEIGHT - 0.5}"/>'
        f"{_outline(others, step, tallest)}</svg>"
        f'<div class="ends"><span>{short(variable.bounds[0][0])}</span>'
        f"<span>{'log scale' if is_log(variable) else ''}</span><span>{short(variable.bounds[-1][1])}</span></div>"
    )


def _column(x: float, width: float, height: float, share: float) -> str:
    if not share:
        return ""
    tall = max(1.0, height * (_HEIGHT - 4))  # what holds rows is never invisible
    title = f"<title>{percent(share)} of all rows</title>"
    return f'<rect class="column" x="{x + 0.5:.2f}" y="{_HEIGHT - tall:.2f}" width="{width - 1:.2f}" height="{tall:.2f}">{title}</rect>'


def _outline(shares: Sequence[float], step: float, tallest: float) -> str:
    if not shares:
        return ""
    points = [f"0,{_HEIGHT}"]
    for i, share in enumerate(shares):
        y = _HEIGHT - share / tallest * (_HEIGHT - 4)
        points += [f"{i * step:.2f},{y:.2f}", f"{(i + 1) * step:.2f},{y:.2f}"]
    return f'<polyline class="now" points="{" ".join([*points, f"{_WIDTH},{_HEIGHT}"])}"/>'


def _bars(variable: Variable, current: Sequence[int] | None) -> str:
    rows = variable.rows or 1
    now = sum(current) or 1 if current is not None else 1
    bins = [
        (variable.describe(label), count / rows, None if current is None else current[i] / now)
        for i, (label, count) in enumerate(zip(variable.labels, variable.counts[: variable.n_bins], strict=False))
    ]
    if variable.kind == "categorical":
        bins = [b for b in bins if b[1] or b[2]]
        bins.sort(key=lambda b: -max(b[1], b[2] or 0.0))
    tallest = max((max(b[1], b[2] or 0.0) for b in bins), default=0.0) or 1.0
    shown = "".join(_bar(*b, tallest) for b in bins[:MAX_BARS])
    more = f'<p class="quiet">and {len(bins) - MAX_BARS} more</p>' if len(bins) > MAX_BARS else ""
    return f'<table class="bars">{shown}</table>{more}' if bins else '<p class="quiet">no known value among these rows</p>'


def _specials(variable: Variable, current: Sequence[int]) -> str:
    before, now = variable.rows or 1, sum(current) or 1
    found = [
        (variable.describe(label), variable.counts[i] / before, current[i] / now)
        for i, label in enumerate(variable.labels)
        if i >= variable.n_bins and (variable.counts[i] or current[i])
    ]
    return f'<table class="bars">{"".join(_bar(*b, 1.0) for b in found)}</table>' if found else ""


def _bar(name: str, share: float, now: float | None, tallest: float) -> str:
    height = 12 if now is None else 6
    drawn = f'<rect class="column" width="{100 * share / tallest:.2f}" height="{height}"/>'
    drawn += "" if now is None else f'<rect class="now" y="6" width="{100 * now / tallest:.2f}" height="6"/>'
    text = percent(share) if now is None else f"{percent(share)} → {percent(now)}"
    return (
        f'<tr><th title="{escape(name)}">{escape(name)}</th><td><svg viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">'
        f'{drawn}</svg></td><td class="share{"" if now is None else " both"}">{text}</td></tr>'
    )


def bins_table(variable: Variable) -> str:
    """Return every bin of a variable as an HTML table: its label in metrics, what it holds, rows, share."""
    total = variable.rows or 1
    rows = "".join(
        f"<tr><td><code>{label}</code></td><td>{escape(variable.describe(label))}</td><td class='n'>{n:,}</td>"
        f"<td class='n'>{percent(n / total)}</td></tr>"
        for label, n in zip(variable.labels, variable.counts, strict=True)
    )
    return f'<table class="bins"><tr><th>bin</th><th>holds</th><th class="n">rows</th><th class="n">share</th></tr>{rows}</table>'
