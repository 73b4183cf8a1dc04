"""A drift report as one HTML page that needs no other file and no network: the same from the command line and on a server."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from samegraph_transforms.baseline_svg import STYLE, histogram
from samegraph_transforms.baseline_view import percent, short
from samegraph_transforms.html_page import PAGE_POLICY, PAGE_STYLE

from .report import Entry, Point, Report
from .statistics import STATES, State, bonferroni

_STYLE = """
:root { --bad: #a40e26; --bad-back: #ffe3e1; }
@media (prefers-color-scheme: dark) { :root { --bad: #ffb1ab; --bad-back: #4a1518; } }
.drifted { background: var(--bad-back); color: var(--bad); } .shifted { background: var(--wait-back); color: var(--wait); }
.quiet-state { background: var(--good-back); color: var(--good); } .not_enough_data { border: 1px solid var(--line); color: var(--quiet); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 10px 0; color: var(--quiet); font-size: 13px; }
.legend i { display: inline-block; width: 14px; height: 10px; margin-right: 6px; vertical-align: -1px; }
.legend .then { background: var(--bar); } .legend .now { border: 2px solid var(--now); } .legend .limit { height: 0; border-top: 2px dashed var(--now); vertical-align: 3px; }
.wide table.ranking { min-width: 640px; } table.ranking td { vertical-align: middle; } table.ranking .chip { margin: 0; white-space: nowrap; }
table.ranking svg.trend { width: 130px; height: 26px; } table.ranking td:first-child { overflow-wrap: anywhere; }
svg.trend { display: block; width: 100%; height: 44px; overflow: visible; }
svg.trend .limit { stroke: var(--now); stroke-dasharray: 4 3; vector-effect: non-scaling-stroke; }
svg.trend .axis { stroke: var(--line); vector-effect: non-scaling-stroke; }
svg.trend rect { fill: var(--bar); } svg.trend rect.over { fill: var(--now); } svg.trend rect.none { fill: var(--line); }
.card > header { display: flex; gap: 10px; justify-content: space-between; align-items: baseline; padding: 0; max-width: none; }
.card > header .chip { flex: none; margin: 0; }
.verdict { margin: 6px 0; font-size: 14px; } .card dl { grid-template-columns: minmax(0, max-content) minmax(0, 1fr); font-size: 13px; }
.card:target { outline: 2px solid var(--link); }
.cards.wider { grid-template-columns: repeat(auto-fill, minmax(min(420px, 100%), 1fr)); align-items: start; }
ul.notes { margin: 8px 0; padding-left: 20px; font-size: 14px; } h1 a { color: inherit; }
@media (max-width: 560px) { table.ranking .less { display: none; } table.list.ranking th, table.list.ranking td { padding: 5px 6px; } .wide table.ranking { min-width: 0; } }
"""  # noqa: E501 - a rule a line reads better

_WORDS: dict[State, str] = {
    "drifted": "drifted",
    "shifted": "shifted",
    "quiet": "quiet",
    "not_enough_data": "not enough data",
}
_MEANINGS: dict[State, str] = {
    "drifted": "the change is larger than what is tolerated, and that is no chance",
    "shifted": "something changed, by less than what is tolerated, or by too few rows to say more",
    "quiet": "no more than chance",
    "not_enough_data": "too few rows to say anything; never read it as fine",
}
_WIDTH, _HEIGHT = 240, 40


def render_report(report: Report, links: Sequence[tuple[str, str]] = ()) -> str:
    """Return the page: summary, ranking, and a card for every variable.

    Args:
        report: The report.
        links: (address, words) of what stands beside it on a server.
    """
    found = report.found
    title = f"Drift of {found.model} version {found.version}"
    return page(
        title,
        f"<h1>{escape(found.model)} <small>version {escape(found.version)}, drift of {escape(found.window)}</small></h1>",
        f"{_summary(report)}<h2>What to look at first</h2>{_ranking(report)}{_accuracy(report)}{_errors(report)}"
        f"<h2>Every variable</h2>{_legend()}<div class='cards wider'>{''.join(map(_card, report.entries))}</div>{_reading(report)}",
        f"made {escape(report.made_at)} from {escape(found.where)}",
        links,
    )


def page(title: str, heading: str, body: str, footer: str, links: Sequence[tuple[str, str]] = ()) -> str:
    """Return a whole page; every argument but `title`, the footer and links is HTML already."""
    bar = "".join(f'<a href="{escape(address)}">{escape(words)}</a>' for address, words in links)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{PAGE_POLICY}"><style>{PAGE_STYLE}{STYLE}{_STYLE}</style></head>\n'
        f"<body><header>{f'<nav>{bar}</nav>' if bar else ''}{heading}</header>\n<main>{body}</main>\n"
        f"<footer>samegraph drift report, {footer}</footer></body></html>\n"
    )


def chip(state: State, words: str | None = None) -> str:
    """Return a state as a coloured word."""
    kind = "quiet-state" if state == "quiet" else state
    return f'<span class="chip {kind}" title="{_MEANINGS[state]}">{escape(_WORDS[state] if words is None else words)}</span>'


def _summary(report: Report) -> str:
    found, baseline = report.found, report.found.baseline
    states: tuple[State, ...] = ("drifted", "shifted", "quiet", "not_enough_data")
    counted = "".join(chip(state, f"{report.count(state)} {_WORDS[state]}") for state in states if report.count(state))
    made_from = f": {escape(baseline.made_from)}" if baseline.made_from else ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in found.notes)
    digest = f'<p class="quiet">Package <code>{escape(found.digest)}</code></p>' if found.digest else ""
    return (
        f"<p>{counted}</p><p><b>{report.rows:,}</b> rows ({escape(found.where)}) against "
        f"<b>{baseline.rows:,}</b> rows of the baseline{made_from}</p>{digest}{f'<ul class=notes>{notes}</ul>' if notes else ''}"
    )


def _ranking(report: Report) -> str:
    shown = [entry for entry in report.entries if entry.found.state in ("drifted", "shifted")]
    if report.says_nothing:
        return f"<p>Fewer than {report.found.rule.min_rows:,} rows: nothing can be said yet.</p>"
    if not shown:
        return "<p>Nothing: no variable differs from the baseline by more than chance.</p>"
    rows = "".join(
        f'<tr><td><a href="#{_anchor(entry)}">{escape(entry.variable.name)}</a></td><td>{chip(entry.found.state)}</td>'
        f"<td class='n less'>{entry.found.psi:.3g}</td><td class='n less'>{entry.found.psi_critical:.3g}</td>"
        f"<td class='n'>{entry.excess:.2f} ×</td><td>{escape(entry.guilty_words)}</td><td class='less'>{_trend(entry.trend)}</td></tr>"
        for entry in shown
    )
    head = (
        "<tr><th>variable</th><th>state</th><th class='n less'>PSI, nats</th><th class='n less'>critical</th><th class='n'>by critical</th>"
        "<th>bin that moved most</th><th class='less'>trend</th></tr>"
    )
    return f'<div class="wide"><table class="list ranking">{head}{rows}</table></div>'


def _legend() -> str:
    return (
        '<p class="legend"><span><i class="then"></i>baseline</span><span><i class="now"></i>now</span>'
        '<span><i class="limit"></i>critical value (trend: PSI by its critical value)</span></p>'
    )


def _anchor(entry: Entry) -> str:
    return escape(f"{entry.side}-{entry.variable.name}")


def _card(entry: Entry) -> str:
    variable, found = entry.variable, entry.found
    where = "answers" if entry.side == "output" else "input"
    important = "" if entry.importance == 1 else f", importance {entry.importance:g}"
    moved = f"<p class='verdict'>Moved most: <b>{escape(entry.guilty_words)}</b></p>" if found.state in ("drifted", "shifted") else ""
    drawn = histogram(variable, entry.counts if sum(entry.counts) else None)
    trend = f"<p class='quiet'>Trend</p>{_trend(entry.trend)}" if entry.trend else ""
    return (
        f'<article class="card" id="{_anchor(entry)}"><header><h3>{escape(variable.name)} <small>{where}{important}</small></h3>'
        f'{chip(found.state)}</header><p class="quiet">{escape(variable.description)}</p><div class="figure">{drawn}</div>{moved}'
        f"{_facts(_figures(entry))}{trend}<details><summary>{len(variable.labels)} bins</summary>{_bins(entry)}</details></article>"
    )


def _figures(entry: Entry) -> Iterable[tuple[str, str]]:
    found, variable = entry.found, entry.variable
    yield "rows", f"{found.rows:,} against {found.baseline_rows:,}"
    if found.state == "not_enough_data":
        return
    yield "PSI (nats)", f"{found.psi:.4f}, critical {found.psi_critical:.4f}"
    yield "smallest PSI that shows", f"{found.psi_detectable:.3g} with these rows, four times of five"
    yield "p value", f"{found.p_value:.2g}" if found.p_value >= 1e-300 else "below 1e-300"
    yield "JS divergence (bits)", f"{found.js_divergence_bits:.4f}"
    bin_ = f", bin {entry.guilty[0]}" if entry.guilty is not None else ""
    yield "L∞ (share)", f"{found.linf:.4f}{bin_}"
    if not math.isnan(found.ks):
        yield "KS (share)", f"{found.ks:.4f}"
    if not math.isnan(found.w1_std):
        yield "W1 (standard deviations)", f"{found.w1_std:.4f}"
    if variable.mean is not None and entry.mean is not None and entry.std is not None:
        yield "mean ± deviation", f"{short(variable.mean)} ± {short(variable.std or 0.0)} → {short(entry.mean)} ± {short(entry.std)}"


def _facts(rows: Iterable[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(label)}</dt><dd>{escape(value)}</dd>' for label, value in rows)}</dl>"


def _trend(points: Sequence[Point]) -> str:
    """Return PSI by its critical value over time as columns, with a line at 1."""
    known = [point.excess for point in points if not math.isnan(point.psi)]
    if not known:
        return '<p class="quiet">no part of it has enough rows</p>' if points else ""
    tallest = max(1.25, min(max(known), 4.0))  # one absurd hour must not flatten all others
    step = _WIDTH / len(points)
    columns = "".join(_column(i * step, step, point, tallest) for i, point in enumerate(points))
    limit = _HEIGHT - _HEIGHT / tallest
    over = sum(value > 1 for value in known)
    label = f"PSI by its critical value over {len(points)} parts of the window, above it in {over}"
    return (
        f'<svg class="trend" viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{label}">{columns}'
        f'<line class="axis" x1="0" x2="{_WIDTH}" y1="{_HEIGHT}" y2="{_HEIGHT}"/>'
        f'<line class="limit" x1="0" x2="{_WIDTH}" y1="{limit:.1f}" y2="{limit:.1f}"/></svg>'
    )


def _column(x: float, width: float, point: Point, tallest: float) -> str:
    if math.isnan(point.psi):
        title = f"{point.label}: {point.rows:,} rows, too few"
        place = f'x="{x + 0.5:.1f}" y="{_HEIGHT - 1}" width="{width - 1:.1f}" height="1"'
        return f'<rect class="none" {place}><title>{escape(title)}</title></rect>'
    tall = max(1.0, min(point.excess, tallest) / tallest * _HEIGHT)
    kind = ' class="over"' if point.excess > 1 else ""
    title = f"{point.label}: PSI {point.psi:.3g}, critical {point.critical:.3g}, {point.rows:,} rows"
    return (
        f'<rect{kind} x="{x + 0.5:.1f}" y="{_HEIGHT - tall:.1f}" width="{width - 1:.1f}" height="{tall:.1f}">'
        f"<title>{escape(title)}</title></rect>"
    )


def _bins(entry: Entry) -> str:
    variable = entry.variable
    then, now = variable.rows or 1, sum(entry.counts) or 1
    rows = "".join(
        f"<tr><td><code>{label}</code></td><td>{escape(variable.describe(label))}</td><td class='n'>{a:,}</td><td class='n'>{b:,}</td>"
        f"<td class='n'>{percent(a / then)} → {percent(b / now)}</td></tr>"
        for label, a, b in zip(variable.labels, variable.counts, entry.counts, strict=True)
    )
    return (
        '<div class="wide"><table class="bins"><tr><th>bin</th><th>holds</th><th class="n">baseline</th><th class="n">now</th>'
        f'<th class="n">share</th></tr>{rows}</table></div>'
    )


def _accuracy(report: Report) -> str:
    rows = []
    for name, now, then, measured in report.accuracies():
        known = "" if measured is None else f"; measured there: {measured:.4f}"
        rows.append((name, f"{now:.4f} ({report.found.expected_over}); on the baseline's rows {then:.4f}{known}"))
    return f"<h2>Accuracy that the probabilities expect</h2>{_facts(rows)}" if rows else ""


def _errors(report: Report) -> str:
    errors = sorted(report.found.errors.items(), key=lambda pair: -pair[1])
    if not errors:
        return ""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td><code>{escape(kind)}</code></td><td class='n'>{n:,}</td></tr>" for (name, kind), n in errors
    )
    return (
        "<h2>What never reached the model</h2><div class='wide'><table class='list'><tr><th>field</th><th>error</th>"
        f"<th class='n'>instances</th></tr>{rows}</table></div>"
    )


def _reading(report: Report) -> str:
    rule = report.found.rule
    each = bonferroni(rule.alpha, len(report.entries))
    meanings = _facts((_WORDS[state], _MEANINGS[state]) for state in reversed(STATES[:3]))
    return (
        f"<h2>How to read this</h2><p>PSI is the sum over bins of (q − p) ln(q / p), p and q the shares of the baseline and of now, "
        f"with half a row more in every bin. It is above 0 by chance alone, the more the fewer rows there are; the critical value is "
        f"what it may be when the true PSI is {rule.least_psi:g}, the drift that is tolerated, at the level {each:.2g} ({rule.alpha:g} "
        f"shared by {len(report.entries)} variables). Below {rule.min_rows:,} rows nothing is said. docs/drift.md explains every number."
        f"</p>{meanings}"
    )
