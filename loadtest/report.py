"""The page of a run: verdicts first, then what happened over time. One file, no scripts, nothing loaded from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape

from .checks import Check
from .record import Item, Record, per_second, quantile

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --quiet: #667; --line: #d8dde3; --good: #14773a; --bad: #b3261e;
  --a: #1f6feb; --b: #d9730d; --c: #8250df; --d: #14773a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --paper: #14171a; --quiet: #9aa3ad; --line: #333a41; --good: #57c77d;
  --bad: #ff8f85; --a: #6cb0ff; --b: #ffb066; --c: #c8a5ff; --d: #57c77d; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto; padding: 1.5rem;
  max-width: 68rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .4rem; }
p { margin: .3rem 0; } .quiet { color: var(--quiet); }
.verdict { font-size: 1.15rem; font-weight: 600; } .good { color: var(--good); } .bad { color: var(--bad); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .25rem .9rem .25rem 0; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; }
td.number, th.number { text-align: right; } figure { margin: 0; } figcaption { color: var(--quiet); font-size: .9rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1.4rem; }
svg { width: 100%; height: auto; display: block; } svg text { font: 11px system-ui, sans-serif; fill: var(--quiet); }
svg .axis { stroke: var(--line); } svg path { fill: none; stroke-width: 2; }
.a { stroke: var(--a); } .b { stroke: var(--b); } .c { stroke: var(--c); } .d { stroke: var(--d); }
.key b { display: inline-block; width: .9rem; height: .2rem; margin: 0 .3rem .2rem .8rem; } .key .a { background: var(--a); }
.key .b { background: var(--b); } .key .c { background: var(--c); } .key .d { background: var(--d); }
"""
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 560, 210, 46, 24

Series = Sequence[tuple[float, float]]


def render(title: str, facts: Mapping[str, str], record: Record, checks: Sequence[Check]) -> str:
    """Return the page.

    Args:
        title: The scenario.
        facts: What was run, label → value.
        record: What was seen.
        checks: The thresholds with their verdicts.
    """
    missed = [check for check in checks if not check.met]
    verdict = f'<p class="verdict bad">{len(missed)} of {len(checks)} thresholds missed</p>'
    if not missed:
        verdict = f'<p class="verdict good">all {len(checks)} thresholds met</p>'
    parts = [
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>',
        f"<h1>{escape(title)}</h1>",
        "".join(f'<p class="quiet">{escape(label)}: {escape(value)}</p>' for label, value in facts.items()),
        verdict,
        _table(("threshold", "seen", "asked for", ""), [_check_row(check) for check in checks], numbers=(1, 2)),
        "<h2>Callers</h2>",
        _callers(record),
        _bursts(record),
        "<h2>Over time</h2>",
        f'<div class="plots">{_plots(record)}</div>',
        _notes(record),
        _failures(record),
        "</body></html>\n",
    ]
    return "".join(parts)


def _check_row(check: Check) -> list[str]:
    mark = '<span class="good">met</span>' if check.met else '<span class="bad">missed</span>'
    return [escape(check.what), escape(check.figure), escape(check.bound), mark]


def _callers(record: Record) -> str:
    rows = []
    for role in record.roles():
        items = record.of(role)
        rows.append(
            [
                escape(role),
                f"{len(items):,}",
                f"{sum(item.ok for item in items):,}",
                f"{record.attempts_per_item(role):.3g}",
                f"{sum(item.refusals for item in items):,}",
                *(_seconds(record.latency(q, role)) for q in (0.5, 0.95, 0.99)),
                _seconds(quantile([item.sent - item.due for item in items], 0.99)),
            ]
        )
    headings = ("caller", "items", "answered", "attempts each", "refusals", "p50", "p95", "p99", "sent late, p99")
    return _table(headings, rows, numbers=range(1, 9)) + '<p class="quiet">Latency counts from when an item was due.</p>'


def _bursts(record: Record) -> str:
    if not record.bursts:
        return ""
    rows = []
    for number, burst in enumerate(record.bursts, 1):
        ratio = f"{burst.makespan_s / burst.lower_bound_s:.3f}" if burst.lower_bound_s else "–"
        hits = f"{burst.hint_hits / burst.hint_returns:.0%} of {burst.hint_returns}" if burst.hint_returns else "no refusal"
        error = _seconds(burst.hint_error_s / burst.hint_returns) if burst.hint_returns else "–"
        rows.append([str(number), f"{burst.items:,}", _seconds(burst.makespan_s), _seconds(burst.lower_bound_s), ratio, hits, error])
    headings = ("burst", "items", "makespan", "lower bound", "ratio", "hints that held", "mean hint error")
    return f"<h2>Bursts</h2>{_table(headings, rows, numbers=range(7))}"


def _plots(record: Record) -> str:
    duration = max(record.duration, 1.0)
    ended = [(item.ended, item.latency) for item in record.items if item.ok]
    retried = [(item.ended, float(item.attempts - 1)) for item in record.items]
    moments = record.moments
    latency = {f"p{q}": per_second(ended, duration, partial(quantile, q=q / 100)) for q in (50, 99)}
    refusals = {
        "refused by the server": [(m.at, m.refused) for m in moments],
        "attempts after the first": per_second(retried, duration, sum),
    }
    waiting = {
        "instances in queues": [(m.at, m.queue_rows) for m in moments],
        "requests in flight": [(m.at, m.in_flight) for m in moments],
    }
    figures = [
        _figure("answers a second", duration, {"answers": per_second(ended, duration, len)}),
        _figure("latency from when an item was due, seconds", duration, latency),
        _figure("refusals and retries a second", duration, refusals),
        _figure("waiting in the server", duration, waiting),
        _figure("mean instances in an execution", duration, {"batch": [(m.at, m.batch) for m in moments if m.batch is not None]}),
        _figure("replicas that answer", duration, {"replicas": [(m.at, float(m.replicas)) for m in moments]}),
    ]
    roles = record.roles()
    if len(roles) > 1:
        of = {role: [(item.ended, item.latency) for item in record.of(role) if item.ok] for role in roles}
        lines = {role: per_second(values, duration, partial(quantile, q=0.95)) for role, values in of.items()}
        figures.append(_figure("95th percentile of latency by caller, seconds", duration, lines))
    return "".join(figures)


def _figure(caption: str, duration: float, series: Mapping[str, Series]) -> str:
    top = max((y for points in series.values() for _, y in points if math.isfinite(y)), default=0.0)
    top = _round_up(top)
    x, y = _scale(0.0, duration, _LEFT, _WIDTH - 8), _scale(0.0, top, _HEIGHT - _BOTTOM, 12)
    ticks = "".join(
        f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        f'<text x="{_LEFT - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{_short(v)}</text>'
        for v in (0.0, top / 2, top)
    )
    times = "".join(
        f'<text x="{x(t):.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{_short(t)} s</text>' for t in (0.0, duration / 2, duration * 0.97)
    )
    lines = "".join(f'<path class="{name}" d="{_path(points, x, y)}"/>' for name, points in zip("abcd", series.values(), strict=False))
    key = "".join(f'<b class="{name}"></b>{escape(label)}' for name, label in zip("abcd", series, strict=False)) if len(series) > 1 else ""
    return (
        f'<figure><figcaption>{escape(caption)} <span class="key">{key}</span></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(caption)}">{ticks}{times}{lines}</svg></figure>'
    )


def _path(points: Series, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    drawn = [(at, value) for at, value in points if math.isfinite(value)]
    if len(drawn) == 1:
        drawn = [(drawn[0][0] - 0.2, drawn[0][1]), (drawn[0][0] + 0.2, drawn[0][1])]
    return "".join(f"{'L' if i else 'M'}{x(at):.1f},{y(value):.1f}" for i, (at, value) in enumerate(drawn))


def _notes(record: Record) -> str:
    if not record.notes:
        return ""
    return "<h2>What was done meanwhile</h2>" + _table(("at", "what"), [[f"{at:.1f} s", escape(text)] for at, text in record.notes])


def _failures(record: Record) -> str:
    rows = [[escape(name), f"{count:,}"] for name, count in record.errors().most_common(20)]
    wrong = [[escape(item.wrong)] for item in record.wrong()[:20]]
    text = f"<h2>Failures</h2>{_table(('error', 'items'), rows, numbers=(1,))}" if rows else ""
    return text + (f"<h2>Wrong answers</h2>{_table(('where',), wrong)}" if wrong else "")


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(f'<{tag} class="number">{c}</{tag}>' if i in numbers else f"<{tag}>{c}</{tag}>" for i, c in enumerate(row))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{cells("th", [escape(h) for h in headings])}</tr>{body}</table></div>'


def _scale(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (stop - start)


def _round_up(value: float) -> float:
    if value <= 0 or not math.isfinite(value):
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    return next((step * unit for step in (1, 2, 2.5, 5) if step * unit >= value * 0.999), 10 * unit)


def _short(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:.3g}k"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _seconds(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"


def summary(record: Record, checks: Sequence[Check]) -> list[str]:
    """Return the page in a few lines for a terminal."""
    lines = []
    for role in record.roles():
        items: list[Item] = record.of(role)
        words = ", ".join(f"{name} {_seconds(record.latency(q, role))}" for name, q in (("p50", 0.5), ("p99", 0.99)))
        answered, attempts = sum(item.ok for item in items), record.attempts_per_item(role)
        lines.append(f"{role}: {len(items):,} items, {answered:,} answered, {attempts:.3g} attempts each, {words}")
    if record.ends:
        lines.append("attempts: " + ends(record))
    width = max((len(check.what) for check in checks), default=0)
    lines += [f"{'met   ' if check.met else 'MISSED'} {check.what:<{width}}  {check.figure}  (asked: {check.bound})" for check in checks]
    return lines


def ends(record: Record) -> str:
    """Return how attempts ended in words, the most frequent first."""
    return ", ".join(f"{count:,} {name}" for name, count in record.ends.most_common() if count)
