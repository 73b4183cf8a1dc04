"""The report on a terminal."""

from __future__ import annotations

import math

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .page import milliseconds
from .report import Effect, Report, RevisionReport, number, p_words

#: Columns of a terminal below which what is needed least is left out.
WIDE = 100
_COLOURS = {"better": "green", "worse": "red", "sample_ratio_broken": "red", "mixed": "yellow"}
_DECISIONS = {
    "better": ("better", "green"),
    "worse": ("worse", "red"),
    "undecided": ("undecided", "yellow"),
    "too_few": ("too few", "yellow"),
}


def render(report: Report, console: Console) -> None:
    """Print verdict, effects, arms, sample ratios and notes."""
    evidence = report.evidence
    console.print(Text.assemble((evidence.experiment, "bold"), f" on {evidence.model}, read from {evidence.source}"))
    console.print(Text(report.verdict, f"bold {_COLOURS.get(report.state, 'yellow')}"), soft_wrap=True)
    console.print()
    wide = console.width >= WIDE
    heads = ("outcome", "arm", report.control, "arm's", "effect", "sequence", *(("p", "worth") if wide else ()), "")
    effects = _table(*heads)
    for effect in (*report.effects, *report.guardrails):
        cells = _effect(effect)
        effects.add_row(*(cells if wide else (*cells[:-3], cells[-1])))
    console.print(effects)
    arms = _table("revision", "arm", "weight", "requests", "errors", "slow", "mean", "median", "p99")
    for found in reversed(report.revisions):
        _arms(found, arms)
    console.print(arms)
    for found in reversed(report.revisions):
        console.print(_ratio(found), soft_wrap=True)
    for note in report.notes:
        console.print(Text(note), soft_wrap=True)
    console.print(
        Text(
            f"All intervals of the outcomes hold at every look together with {100 * (1 - report.alpha):g} %. "
            + ("`worth`: outcomes in independent units." if wide else ""),
            "dim",
        ),
        soft_wrap=True,
    )


def _table(*heads: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i < 2 or not head else "right", no_wrap=i > 1, min_width=min(8, len(head)))
    return table


def _effect(effect: Effect) -> tuple[str | Text, ...]:
    d, (word, colour) = effect.difference, _DECISIONS[effect.decision]
    return (
        effect.metric,
        effect.arm,
        number(effect.control_mean, 3),
        number(effect.arm_mean, 3),
        "" if d is None else number(d.estimate, 3),
        f"{number(effect.interval.low, 3)} to {number(effect.interval.high, 3)}",
        p_words(effect.p).removeprefix("p = ").removeprefix("p "),
        "" if d is None else f"{d.effective_n:,.0f}",
        Text(word, colour),
    )


def _arms(found: RevisionReport, table: Table) -> None:
    for name, arm in found.revision.arms.items():
        n = math.fsum(arm.exposures)
        table.add_row(
            found.revision.name,
            name,
            "" if arm.weight is None else f"{arm.weight:g}",
            f"{n:,.0f}",
            f"{math.fsum(arm.errors):,.0f}",
            f"{math.fsum(arm.slow):,.0f}",
            *(milliseconds(t) for t in (arm.latency.mean_s, arm.latency.quantile_s(0.5), arm.latency.quantile_s(0.99))),
        )


def _ratio(found: RevisionReport) -> Text:
    ratio, name = found.sample_ratio, found.revision.name
    if ratio is None:
        return Text(f"Sample ratio of {name}: not judged yet (it takes weights and a hundred requests).")
    shares = ", ".join(
        f"{100 * x / math.fsum(ratio.exposures):.4g} % of {100 * s:.4g} %" for x, s in zip(ratio.exposures, ratio.shares, strict=True)
    )
    state = ("broken", "red") if ratio.broken else ("as planned", "green")
    return Text.assemble(f"Sample ratio of {name}: ", state, f" ({shares}; {p_words(ratio.p)}, design effect {ratio.design_effect:.3g})")
