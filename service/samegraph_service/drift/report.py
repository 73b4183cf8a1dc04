"""What a drift report says: counts from any source held against a baseline, ranked by what an operator should look at first.

    Found           what a source found of one version: counts per variable, of a window and of its parts
    make_report     Found → Report: statistics, states and trend of every variable, ranked
    found_in        the JSON documents of one or several replicas → Found, counts added up

Where counts come from (replicas, Prometheus, files) is `report_sources`' matter; how a report looks is `report_html`'s and `report_text`'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from samegraph_transforms.baseline import Baseline, Variable
from samegraph_transforms.baseline_view import percent

from .counting import Side
from .statistics import STATES, AlarmRule, Comparison, State, bonferroni, compare, effective_rows, psi_critical_closed_form, smoothed_shares
from .version import scale_of

Counts: TypeAlias = np.ndarray
#: Mean and standard deviation; None where there are no numbers.
Moments: TypeAlias = tuple[float | None, float | None]

_SEVERITY: dict[State, int] = {"drifted": 3, "shifted": 2, "quiet": 1, "not_enough_data": 0}


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of the window.

    Attributes:
        label: When it was, in words.
        counts: Rows per bin for every variable, in the baseline's order; empty when it had no rows.
    """

    label: str
    counts: Sequence[Counts]


@dataclass(frozen=True, slots=True)
class Found:
    """What a source found of one version. Lists have one entry per variable, in the order inputs, then answers.

    Attributes:
        where: The source, in words.
        model: The model.
        version: Its version.
        digest: The package's digest; empty when unknown.
        baseline: What the counts are held against.
        rule: What makes an alarm.
        window: What the counts are of, in words: `24h`.
        counts: Rows per bin.
        moments: Of the numbers that were counted.
        trend: The window's parts, oldest first.
        expected: Output → cells of the accuracy its probabilities expect.
        expected_over: What these cells are of, in words.
        errors: (field, error code) → instances that broke the signature.
        notes: What else should be known about the counts, a sentence each.
    """

    where: str
    model: str
    version: str
    digest: str
    baseline: Baseline
    rule: AlarmRule
    window: str
    counts: Sequence[Counts]
    moments: Sequence[Moments]
    trend: Sequence[Part] = ()
    expected: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    expected_over: str = ""
    errors: Mapping[tuple[str, str], int] = field(default_factory=dict)
    notes: Sequence[str] = ()


class Point(NamedTuple):
    """One part of a trend; PSI and its critical value are NaN with too few rows."""

    label: str
    rows: int
    psi: float
    critical: float

    @property
    def excess(self) -> float:
        """PSI by its critical value."""
        return self.psi / self.critical


@dataclass(frozen=True, slots=True)
class Entry:
    """One variable in a report.

    Attributes:
        side: Of the inputs or of the answers.
        owner: The field or output.
        variable: Its bins, with the baseline's counts.
        importance: How much drift of it matters.
        counts: The window's rows per bin.
        mean: Of the window's numbers.
        std: Of the window's numbers.
        found: The comparison.
        trend: The window in parts, oldest first.
    """

    side: Side
    owner: str
    variable: Variable
    importance: float
    counts: Sequence[int]
    mean: float | None
    std: float | None
    found: Comparison
    trend: Sequence[Point]

    @property
    def excess(self) -> float:
        """PSI by its critical value: above 1 the variable has drifted; 0 with too few rows."""
        return 0.0 if math.isnan(self.found.psi) else self.found.psi / self.found.psi_critical

    @property
    def guilty(self) -> tuple[str, str, float, float] | None:
        """The bin whose share changed most: its label, what it holds, its share then and now; None when none changed."""
        if self.found.linf_bin is None:
            return None
        place = self.found.linf_bin
        label = self.variable.labels[place]
        return label, self.variable.describe(label), self.variable.counts[place] / self.variable.rows, self.counts[place] / sum(self.counts)

    @property
    def guilty_words(self) -> str:
        """The same for people."""
        if self.guilty is None:
            return "none"
        _, holds, then, now = self.guilty
        return f"{holds}: {percent(then)} → {percent(now)}"


@dataclass(frozen=True, slots=True)
class Report:
    """A report on one version.

    Attributes:
        found: What it was made from.
        made_at: When, for people.
        entries: All variables, the one to look at first in front.
    """

    found: Found
    made_at: str
    entries: Sequence[Entry]

    @property
    def rows(self) -> int:
        """Rows of the window."""
        return max((entry.found.rows for entry in self.entries), default=0)

    def count(self, state: State) -> int:
        """Return how many variables are in a state."""
        return sum(entry.found.state == state for entry in self.entries)

    @property
    def drifted(self) -> bool:
        """Whether any variable has drifted."""
        return self.count("drifted") > 0

    @property
    def says_nothing(self) -> bool:
        """Whether there were too few rows to say anything."""
        return self.count("not_enough_data") == len(self.entries)

    def accuracies(self) -> Iterator[tuple[str, float, float, float | None]]:
        """Yield output, expected accuracy now, of the baseline's rows, and what was measured on those."""
        for output in self.found.baseline.outputs:
            cells = self.found.expected.get(output.name)
            total = 0.0 if cells is None else cells["correct"] + cells["wrong"]
            if output.expected is not None and cells is not None and total > 0:
                yield output.name, cells["correct"] / total, output.expected.accuracy, output.expected.measured_accuracy

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON document, variables ranked."""
        found, rule = self.found, self.found.rule
        return {
            "model": found.model,
            "version": found.version,
            "digest": found.digest,
            "from": found.where,
            "window": found.window,
            "made_at": self.made_at,
            "rows": self.rows,
            "baseline": {"rows": found.baseline.rows, "made_from": found.baseline.made_from},
            "rule": {
                "least_psi": rule.least_psi,
                "alpha": rule.alpha,
                "alpha_each": bonferroni(rule.alpha, len(self.entries)),
                "min_rows": rule.min_rows,
            },
            "states": {state: self.count(state) for state in STATES},
            "variables": [_entry_json(entry) for entry in self.entries],
            "expected_accuracy": [
                {"output": name, "now": now, "baseline": then, "measured": measured} for name, now, then, measured in self.accuracies()
            ],
            "errors": [{"field": name, "kind": kind, "count": n} for (name, kind), n in sorted(found.errors.items())],
            "notes": list(found.notes),
        }


def _entry_json(entry: Entry) -> dict[str, Any]:
    found, variable, guilty = entry.found, entry.variable, entry.guilty
    said = {name: _finite(getattr(found, name)) for name in _STATISTICS}
    return {
        "name": variable.name,
        "side": entry.side,
        "of": entry.owner,
        "kind": variable.kind,
        "importance": entry.importance,
        "state": found.state,
        "rows": found.rows,
        **said,
        "psi_over_critical": entry.excess if found.state != "not_enough_data" else None,
        "linf_bin": None if guilty is None else {"bin": guilty[0], "holds": guilty[1], "share_then": guilty[2], "share_now": guilty[3]},
        "bins": [
            {"bin": label, "holds": variable.describe(label), "baseline": then, "now": int(now)}
            for label, then, now in zip(variable.labels, variable.counts, entry.counts, strict=True)
        ],
        "mean": {"baseline": variable.mean, "now": entry.mean},
        "std": {"baseline": variable.std, "now": entry.std},
        "trend": [{"part": p.label, "rows": p.rows, "psi": _finite(p.psi), "psi_critical": _finite(p.critical)} for p in entry.trend],
    }


_STATISTICS = ("psi", "psi_critical", "psi_detectable", "p_value", "js_divergence_bits", "linf", "ks", "w1_std")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


# --- making ---------------------------------------------------------------------------------------------------------------


def make_report(found: Found, made_at: str) -> Report:
    """Compare every variable with its baseline, and rank them.

    In front stands what has drifted, then what has shifted, then the rest; among equals the more important, then the larger PSI by its
    critical value. Answers are as important as the most important field: they are what callers act on.

    Args:
        found: Counts and baseline.
        made_at: When, for people.
    """
    owners = _owners(found.baseline)
    entries = []
    for i, (side, owner, variable, importance) in enumerate(owners):
        mean, std = found.moments[i]
        entries.append(
            Entry(
                side,
                owner,
                variable,
                importance,
                np.rint(found.counts[i]).astype(np.int64).tolist(),
                mean,
                std,
                compare(variable.counts, found.counts[i], found.rule, tests=len(owners), scale=scale_of(variable)),
                _points(variable, [(part.label, part.counts[i] if part.counts else None) for part in found.trend], found.rule, len(owners)),
            )
        )
    entries.sort(key=lambda entry: (-_SEVERITY[entry.found.state], -entry.importance, -entry.excess))
    return Report(found, made_at, entries)


def _owners(baseline: Baseline) -> list[tuple[Side, str, Variable, float]]:
    most = max((field_.importance for field_ in baseline.fields if field_.monitored != "off"), default=1.0)
    found: list[tuple[Side, str, Variable, float]] = [("input", of.name, variable, of.importance) for of, variable in baseline.inputs()]
    return [*found, *(("output", of.name, variable, most) for of, variable in baseline.answers())]


def _points(variable: Variable, parts: Sequence[tuple[str, Counts | None]], rule: AlarmRule, tests: int) -> list[Point]:
    """Return PSI and critical value of each part, the latter by the closed form: a line to look along, not a verdict."""
    p = smoothed_shares(variable.counts)
    points = []
    for label, counts in parts:
        n = 0.0 if counts is None else float(counts.sum())
        if counts is None or n < max(rule.min_rows, 1):
            points.append(Point(label, int(n), math.nan, math.nan))
            continue
        q = smoothed_shares(counts)
        n_eff = effective_rows(n, variable.rows)
        critical = psi_critical_closed_form(len(p), n_eff, least_psi=rule.least_psi, alpha=bonferroni(rule.alpha, tests))
        points.append(Point(label, int(n), float(np.sum((q - p) * np.log(q / p))), critical))
    return points


# --- documents of replicas --------------------------------------------------------------------------------------------------


def found_in(documents: Sequence[Mapping[str, Any]], baseline: Baseline, window: str, where: str) -> Found:
    """Return what one or several replicas say of a version, their counts added up.

    Args:
        documents: `GET /v1/models/{model}/versions/{version}/drift?trend={window}` of each, at least one.
        baseline: The baseline all of them hold.
        window: The window's label; replicas that have not looked yet count for nothing.
        where: The source, in words.
    """
    first = documents[0]
    rule = first["rule"]
    n = len(first["variables"])
    windows = [[variable["windows"].get(window) for variable in document["variables"]] for document in documents]
    looked = [of for of in windows if of and of[0] is not None]
    empty = [np.zeros(len(variable["bins"]), dtype=np.int64) for variable in first["variables"]]
    counts = [sum((np.array(of[i]["counts"]) for of in looked), start=empty[i]) for i in range(n)]
    variables = [variable for _, _, variable, _ in _owners(baseline)]
    moments = [_pooled(variables[i], [of[i] for of in looked]) for i in range(n)]
    return Found(
        where,
        first["model"],
        first["version"],
        first["digest"],
        baseline,
        AlarmRule(rule["least_psi"], rule["alpha"], rule["min_rows"]),
        window,
        counts,
        moments,
        _pooled_trend([document.get("trend") for document in documents], n),
        _pooled_cells(documents),
        "since the start",
        _pooled_errors(documents),
        _notes(documents, looked),
    )


def pooled_moments(variable: Variable, parts: Sequence[tuple[Counts, Moments]]) -> Moments:
    """Return mean and standard deviation of several samples together, from their counts, means and deviations."""
    known = [
        (float(counts[: variable.n_bins + 2].sum()), mean, std) for counts, (mean, std) in parts if mean is not None and std is not None
    ]
    n = sum(rows for rows, _, _ in known)
    if not n:
        return None, None
    mean = sum(rows * of for rows, of, _ in known) / n
    return mean, math.sqrt(sum(rows * (std * std + (of - mean) ** 2) for rows, of, std in known) / n)


def _pooled(variable: Variable, windows: Sequence[Mapping[str, Any]]) -> Moments:
    return pooled_moments(variable, [(np.array(of["counts"]), (of["mean"], of["std"])) for of in windows])


def _pooled_trend(trends: Sequence[Mapping[str, Any] | None], n: int) -> list[Part]:
    """Return the parts of all replicas, added up by their age: they are aligned to within a minute, as each looks once a minute."""
    given = [trend for trend in trends if trend is not None and trend["parts"]]
    if not given:
        return []
    length, number = given[0]["part_minutes"], len(given[0]["parts"])
    parts = []
    for k in range(number):
        counted = [trend["parts"][k] for trend in given if trend["parts"][k] is not None]
        counts = [np.sum([np.array(of[i]) for of in counted], axis=0) for i in range(n)] if counted else []
        parts.append(Part(_age(length * (number - 1 - k), length), counts))
    return parts


def _age(minutes: int, length: int) -> str:
    def words(m: int) -> str:
        return f"{m} min" if m < 120 else f"{m / 60:.3g} h" if m < 2880 else f"{m / 1440:.3g} d"

    return f"the last {words(length)}" if minutes == 0 else f"{words(minutes + length)} to {words(minutes)} ago"


def _pooled_cells(documents: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    cells: dict[str, dict[str, float]] = {}
    for document in documents:
        for of in document["expected"]:
            sums = cells.setdefault(of["output"], {})
            for cell, value in of["total"]["cells"].items():
                sums[cell] = sums.get(cell, 0.0) + value
    return cells


def _pooled_errors(documents: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], int]:
    errors: dict[tuple[str, str], int] = {}
    for document in documents:
        for of in document["errors"]:
            key = of["field"], of["kind"]
            errors[key] = errors.get(key, 0) + of["count"]
    return errors


def _notes(documents: Sequence[Mapping[str, Any]], looked: Sequence[object]) -> list[str]:
    notes = []
    if len(looked) < len(documents):
        notes.append(
            f"{len(documents) - len(looked)} of {len(documents)} replicas have not looked at their windows yet; they do once a minute."
        )
    dropped = sum(sum(document["dropped_rows"].values()) for document in documents)
    if dropped:
        rows = sum(document["rows"] for document in documents)
        notes.append(
            f"Since the start {dropped:,} answered rows were not counted ({dropped / (dropped + rows):.1%}); those counted are a sample."
        )
    return notes
