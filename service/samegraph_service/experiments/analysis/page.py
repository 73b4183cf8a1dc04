"""The report as one HTML page that needs no other file and no network, and the pieces other pages of this kind are made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape

from .plot import STYLE as PLOT_STYLE
from .plot import Point, sequence_plot
from .report import Effect, Report, RevisionReport, duration, number, p_words

#: The browser is told to load nothing at all, so that a page passed on cannot call home.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLE = """
:root { color-scheme: light dark; --back: #f6f8fa; --card: #fff; --text: #1f2328; --quiet: #57606a; --line: #d0d7de; --bar: #4a7fc1;
  --band: #c9dcf3; --good: #116329; --good-back: #dafbe1; --bad: #a40e26; --bad-back: #ffe2e0; --wait: #7a4a00; --wait-back: #fff4cf; }
@media (prefers-color-scheme: dark) { :root { --back: #0d1117; --card: #161b22; --text: #e6edf3; --quiet: #9ea7b3; --line: #30363d;
  --bar: #6ca4e8; --band: #1f3a5c; --good: #7ee2a0; --good-back: #12331f; --bad: #ff9a93; --bad-back: #45161a; --wait: #f2cc60;
  --wait-back: #3a2d05; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main, header { max-width: 1080px; margin: 0 auto; padding: 0 16px; } header { padding-top: 24px; }
h1 { margin: 0; font-size: 26px; overflow-wrap: anywhere; } h1 small { color: var(--quiet); font-weight: normal; }
h2 { margin: 32px 0 10px; padding-top: 8px; border-top: 1px solid var(--line); font-size: 19px; }
h3 { margin: 0 0 4px; font-size: 15px; overflow-wrap: anywhere; }
p { margin: 4px 0; max-width: 85ch; overflow-wrap: anywhere; } .quiet { color: var(--quiet); font-size: 13px; }
.verdict { margin: 16px 0; padding: 14px 16px; border-radius: 8px; font-size: 18px; max-width: none; }
.good { background: var(--good-back); color: var(--good); } .bad { background: var(--bad-back); color: var(--bad); }
.wait { background: var(--wait-back); color: var(--wait); } p.bad { padding: 4px 10px; border-radius: 6px; }
.verdict.bad { padding: 14px 16px; }
.chip { display: inline-block; padding: 1px 9px; border-radius: 10px; font-size: 13px; font-weight: normal; white-space: nowrap; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(460px, 100%), 1fr)); gap: 14px; }
.card { min-width: 0; padding: 12px 14px; border: 1px solid var(--line); border-radius: 8px; background: var(--card); }
.wide { overflow-x: auto; margin: 6px 0 12px; } .wide table { min-width: 560px; }
table { border-collapse: collapse; width: 100%; background: var(--card); border: 1px solid var(--line); font-size: 14px; }
th, td { padding: 5px 10px; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--quiet); font-weight: 600; } .n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
summary { cursor: pointer; } footer { margin: 36px 0 20px; color: var(--quiet); font-size: 13px; }
ul { margin: 6px 0; padding-left: 20px; }
"""
_KIND = {"better": "good", "worse": "bad", "undecided": "wait", "too_few": "wait"}
_VERDICT = {"better": "good", "worse": "bad", "sample_ratio_broken": "bad", "mixed": "bad"}
_WORDS = {"better": "better", "worse": "worse", "undecided": "undecided", "too_few": "too few outcomes"}


def document(title: str, header: str, body: str) -> str:
    """Return a whole page.

    Args:
        title: Plain text.
        header: HTML of its head.
        body: HTML below it.
    """
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><style>{STYLE}{PLOT_STYLE}</style></head>\n'
        f"<body><header>{header}</header>\n<main>{body}</main></body></html>\n"
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Return a table that scrolls by itself on a narrow screen; cells are plain text."""

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}{' class=n' if i in right else ''}>{escape(cell)}</{tag}>" for i, cell in enumerate(row))

    lines = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{cells(heads, "th")}</tr>{lines}</table></div>'


def render(report: Report) -> str:
    """Return the page: verdict, effects with their sequences over time, guardrails, arms, revisions, notes."""
    evidence = report.evidence
    when = "" if report.time is None else f", {moment(report.time)}"
    header = (
        f"<h1>{escape(evidence.experiment)} <small>on {escape(evidence.model)}</small></h1>"
        f'<p class="quiet">{escape(evidence.source)}{when}. Compared with {escape(report.control)}; '
        f"revision {escape(evidence.current.name)}{'' if evidence.current.current else ' (no longer in force)'}.</p>"
        f'<p class="verdict {_VERDICT.get(report.state, "wait")}">{escape(report.verdict)}</p>'
    )
    broken = report.state == "sample_ratio_broken"
    effects = "".join(_card(report, e) for e in report.effects)
    sections = [
        ("Effects", f'<div class="cards">{effects}</div>' if effects else '<p class="quiet">No outcome is defined.</p>'),
        ("Errors and slow answers", f'<div class="cards">{"".join(_card(report, e) for e in report.guardrails)}</div>'),
        ("Arms", _arms(report)),
        ("Revisions", "".join(_revision(r) for r in reversed(report.revisions))),
    ]
    if broken:  # nobody scrolls past a warning as surely as past a closed section
        sections = [
            sections[3],
            sections[2],
            ("What the ratio spoils", f"<details><summary>Show anyway</summary>{sections[0][1]}</details>"),
        ]
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    body = "".join(f"<section><h2>{title}</h2>{content}</section>" for title, content in sections)
    reading = (
        f"Intervals hold at every look together with {100 * (1 - report.alpha):g} %: they may be looked at as often as one likes. "
        "Variances are over 64 buckets of units, so units that come often do not pass for many."
    )
    return document(
        f"{evidence.experiment} on {evidence.model}", header, f"{f'<ul>{notes}</ul>' if notes else ''}{body}<footer>{reading}</footer>"
    )


def _card(report: Report, effect: Effect) -> str:
    d = effect.difference
    chip = f'<span class="chip {_KIND[effect.decision]}">{_WORDS[effect.decision]}</span>'
    words = (
        f"{number(effect.control_mean)} → {number(effect.arm_mean)} ({effect.control_n:,.0f} and {effect.arm_n:,.0f}); lower is better"
        if effect.goal == "decrease"
        else f"{number(effect.control_mean)} → {number(effect.arm_mean)} ({effect.control_n:,.0f} and {effect.arm_n:,.0f})"
    )
    head = f"<h3>{escape(effect.metric)}, {escape(effect.arm)} {chip}</h3><p>{words}</p>"
    if d is None:
        return f'<div class="card">{head}</div>'
    points = [
        Point(t, e.interval.estimate, e.interval.low, e.interval.high)
        for t, found in report.looks
        for e in found
        if (e.metric, e.arm) == (effect.metric, effect.arm) and e.difference is not None
    ]
    now = Point(report.time if report.time is not None else math.inf, d.estimate, effect.interval.low, effect.interval.high)
    drawn = sequence_plot([p for p in points if p.time < now.time] + [now], f"Effect of {effect.arm} on {effect.metric} over time")
    facts = (
        f"effect {number(d.estimate)}, {100 * (1 - effect.alpha):.4g} % sequence {number(effect.interval.low)} to "
        f"{number(effect.interval.high)}, {p_words(effect.p)}; design effect {d.design_effect:.3g}, worth {d.effective_n:,.0f} units"
    )
    return f'<div class="card">{head}{drawn}<p class="quiet">{facts}{_more(effect)}</p></div>'


def _more(effect: Effect) -> str:
    if effect.decision != "undecided" or effect.difference is None or effect.needed is None:
        return ""
    more = max(0.0, effect.needed - effect.difference.n)
    time = "" if effect.seconds is None else f", {duration(effect.seconds)} at the present rate"
    return f"; if it is what it looks like now, {more:,.0f} more outcomes decide{time}"


def _arms(report: Report) -> str:
    rows = []
    for found in reversed(report.revisions):
        for name, arm in found.revision.arms.items():
            n = math.fsum(arm.exposures)
            times = (arm.latency.mean_s, arm.latency.quantile_s(0.5), arm.latency.quantile_s(0.99))
            rows.append(
                (
                    found.revision.name,
                    name,
                    "" if arm.weight is None else f"{arm.weight:g}",
                    f"{n:,.0f}",
                    _share(math.fsum(arm.errors), n),
                    _share(math.fsum(arm.slow), n),
                    *(milliseconds(t) for t in times),
                )
            )
    heads = ("revision", "arm", "weight", "requests", "errors", "slow", "mean", "median", "p99")
    return table(heads, rows, right=range(2, 9))


def _share(part: float, n: float) -> str:
    return f"{part:,.0f} ({100 * part / n:.3g} %)" if n else "–"


def milliseconds(seconds: float | None) -> str:
    """Return a time in milliseconds."""
    return "–" if seconds is None else f"{1000 * seconds:.3g} ms"


def _revision(found: RevisionReport) -> str:
    revision, ratio = found.revision, found.sample_ratio
    title = f"{revision.name}{', in force' if revision.current else ''}: {revision.exposed:,.0f} requests"
    if ratio is None:
        words = "sample ratio not judged yet"
    else:
        state = "broken" if ratio.broken else "as planned"
        words = (
            f"sample ratio {state}: {p_words(ratio.p)} at every look (one look: chi² {ratio.chi_square:.3g}, {p_words(ratio.fixed_p)}); "
            f"{ratio.design_effect:.3g} requests are worth one assignment"
        )
    rows = [
        (
            e.metric,
            e.arm,
            number(e.control_mean),
            number(e.arm_mean),
            number(e.interval.estimate),
            f"{number(e.interval.low)} to {number(e.interval.high)}",
            p_words(e.p),
        )
        for e in found.effects
        if e.difference is not None
    ]
    heads = ("outcome", "arm", "control", "arm's", "effect", "sequence", "p")
    broken = ratio is not None and ratio.broken
    effects = table(heads, rows, right=range(2, 7)) if rows and not broken else ""
    kind = "bad" if broken else "quiet"
    return f'<h3>{escape(title)}</h3><p class="{kind}">{escape(words)}</p>{effects}'


def moment(time: float) -> str:
    """Return a moment as people read it, UTC."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
