"""What the counters of an experiment say, in numbers and in one sentence that says no more than they do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from .clusters import Difference, Moments, SampleRatio, check_shares, combined
from .evidence import ArmCounts, Events, Evidence, Metric, Revision
from .sequences import Interval
from .sources import Look

ALPHA = 0.05
#: Below either, an interval rests on a normal approximation that does not hold yet, and nothing is decided: effective observations of both
#: arms together, and buckets with observations in each.
LEAST_EFFECTIVE_N = 200.0
LEAST_BUCKETS = 32
#: Requests in all below which a sample ratio is not judged.
LEAST_EXPOSED = 100.0
EVENTS: tuple[Events, ...] = ("errors", "slow")
YEAR_S = 365 * 86400.0

Decision = Literal["too_few", "undecided", "better", "worse"]
State = Literal["no_data", "sample_ratio_broken", "undecided", "better", "worse", "mixed"]


@dataclass(frozen=True)
class Effect:
    """One arm against the control, for one outcome.

    Attributes:
        metric: The outcome, or `errors` or `slow`.
        arm: The arm.
        goal: Which direction is better.
        control_mean: Mean of the control, over all revisions that were compared, each as it came.
        arm_mean: The same of the arm.
        control_n: Outcomes of the control.
        arm_n: Outcomes of the arm.
        difference: Treatment minus control; None while one of them has hardly any outcomes.
        interval: Its confidence sequence.
        alpha: Of the sequence.
        p: The two-sided p-value that holds at every look.
        needed: Outcomes in all at which the sequence would exclude 0 if the difference stayed; None if never.
        seconds: Time until then at the present rate; None when the rate is not known, or never.
    """

    metric: str
    arm: str
    goal: Literal["increase", "decrease"]
    control_mean: float
    arm_mean: float
    control_n: float
    arm_n: float
    difference: Difference | None
    interval: Interval
    alpha: float
    p: float
    needed: float | None = None
    seconds: float | None = None

    @property
    def decision(self) -> Decision:
        """What the sequence has decided."""
        d = self.difference
        if d is None or d.effective_n < LEAST_EFFECTIVE_N or d.buckets < LEAST_BUCKETS:
            return "too_few"
        if not self.interval.excludes_zero:
            return "undecided"
        return "better" if (self.interval.low > 0) == (self.goal == "increase") else "worse"

    def to_json(self) -> dict[str, Any]:
        """Return the effect as plain values."""
        d = self.difference
        return {
            "metric": self.metric,
            "arm": self.arm,
            "goal": self.goal,
            "decision": self.decision,
            "control_mean": self.control_mean,
            "arm_mean": self.arm_mean,
            "control_n": self.control_n,
            "arm_n": self.arm_n,
            "effect": None if d is None else d.estimate,
            "low": self.interval.low,
            "high": self.interval.high,
            "alpha": self.alpha,
            "p": self.p,
            "e": None if d is None else d.e_value(self.alpha),
            "standard_error": None if d is None else math.sqrt(d.variance),
            "design_effect": None if d is None else d.design_effect,
            "effective_n": None if d is None else d.effective_n,
            "buckets": None if d is None else d.buckets,
            "needed": self.needed,
            "seconds_to_decision": self.seconds,
        }


@dataclass(frozen=True)
class RevisionReport:
    """One revision by itself.

    Attributes:
        revision: Its counters.
        sample_ratio: Whether its arms got their shares; None when nothing was planned or hardly anything came.
        effects: Its effects, without those of other revisions.
    """

    revision: Revision
    sample_ratio: SampleRatio | None
    effects: Sequence[Effect]


@dataclass(frozen=True)
class Report:
    """Everything `samegraph experiment report` tells.

    Attributes:
        evidence: What it was made from.
        control: The arm others are compared with.
        effects: Each arm and outcome over all revisions.
        guardrails: Each arm's errors and slow answers, the same way.
        revisions: Each revision by itself, the current one last.
        state: The verdict in a word.
        verdict: The verdict in a sentence.
        alpha: Chance that any of the intervals of `effects` is ever wrong.
        time: Moment of the evidence in seconds since the epoch; None when unknown.
        looks: The effects at earlier moments, oldest first.
        notes: What a reader should know besides.
    """

    evidence: Evidence
    control: str
    effects: Sequence[Effect]
    guardrails: Sequence[Effect]
    revisions: Sequence[RevisionReport]
    state: State
    verdict: str
    alpha: float
    time: float | None = None
    looks: Sequence[tuple[float, Sequence[Effect]]] = field(default_factory=tuple)
    notes: Sequence[str] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values; what is not finite is null."""
        document = {
            "model": self.evidence.model,
            "experiment": self.evidence.experiment,
            "source": self.evidence.source,
            "time": self.time,
            "state": self.state,
            "verdict": self.verdict,
            "control": self.control,
            "alpha": self.alpha,
            "notes": list(self.notes),
            "effects": [e.to_json() for e in self.effects],
            "guardrails": [e.to_json() for e in self.guardrails],
            "withdrawn_by_replicas": {arm: n for arm, n in self.evidence.withdrawn.items() if n},
            "revisions": [_revision_json(r) for r in self.revisions],
            "history": [{"time": t, "effects": [_point(e) for e in effects]} for t, effects in self.looks],
        }
        finite: dict[str, Any] = _finite(document)
        return finite


def make_report(
    evidence: Evidence,
    *,
    control: str | None = None,
    metric: str | None = None,
    alpha: float = ALPHA,
    time: float | None = None,
    rates: Mapping[str, float] | None = None,
    looks: Sequence[Look] = (),
) -> Report:
    """Return what the evidence says.

    With several outcomes or arms each interval gets its part of `alpha` (Bonferroni), so that with chance 1 - alpha all of them hold at all
    looks; naming one outcome beforehand keeps all of it for that one.

    Args:
        evidence: The counters.
        control: The arm to compare with; None is `control`, or the first by name.
        metric: The one outcome that decides; None is all.
        alpha: Chance of ever being wrong.
        time: Moment of the evidence, in seconds since the epoch.
        rates: Outcome → outcomes a second at present, in all arms; makes times to a decision.
        looks: Evidence of earlier moments, for the picture.

    Raises:
        NoEvidence: There is no such arm.
    """
    base = evidence.control(control)
    trusted, spoilt = _trusted(evidence)
    effects = effects_of(trusted, base, alpha, metric, rates or {})
    guardrails = _guardrails(trusted.revisions, trusted.arms, base, alpha)
    revisions = [
        RevisionReport(r, sample_ratio(r), _effects([r], list(r.arms), evidence.metrics, base, alpha, metric, {}))
        for r in evidence.revisions
    ]
    state, verdict = _verdict(effects, guardrails, revisions)
    return Report(
        evidence=evidence,
        control=base,
        effects=effects,
        guardrails=guardrails,
        revisions=revisions,
        state=state,
        verdict=verdict,
        alpha=alpha,
        time=time,
        looks=[(look.time, _all_effects(_without(look.evidence, spoilt), base, alpha, metric)) for look in looks],
        notes=_notes(evidence, spoilt),
    )


def _all_effects(evidence: Evidence, control: str, alpha: float, metric: str | None) -> list[Effect]:
    return [*effects_of(evidence, control, alpha, metric), *_guardrails(evidence.revisions, evidence.arms, control, alpha)]


def _trusted(evidence: Evidence) -> tuple[Evidence, list[str]]:
    """Return the evidence without earlier revisions whose sample ratio is broken, and their names; the current one always stays."""
    spoilt = [r.name for r in evidence.revisions[:-1] if (ratio := sample_ratio(r)) is not None and ratio.broken]
    return _without(evidence, spoilt), spoilt


def _without(evidence: Evidence, names: Sequence[str]) -> Evidence:
    return replace(evidence, revisions=tuple(r for r in evidence.revisions if r.name not in names))


def effects_of(
    evidence: Evidence, control: str, alpha: float = ALPHA, metric: str | None = None, rates: Mapping[str, float] | None = None
) -> list[Effect]:
    """Return each arm's effect on each outcome over all revisions."""
    return _effects(evidence.revisions, evidence.arms, evidence.metrics, control, alpha, metric, rates or {})


def sample_ratio(revision: Revision) -> SampleRatio | None:
    """Return whether the arms of a revision got their shares.

    None when no weights are known, fewer than two arms have one, or fewer than 100 requests came. An arm of weight 0 is left out.
    """
    planned = {name: arm.weight for name, arm in revision.arms.items() if arm.weight}
    if len(planned) < 2 or revision.exposed < LEAST_EXPOSED:
        return None
    return check_shares([revision.arms[name].exposures for name in planned], list(planned.values()))


def _effects(
    revisions: Sequence[Revision],
    arms: Sequence[str],
    metrics: Mapping[str, Metric],
    control: str,
    alpha: float,
    only: str | None,
    rates: Mapping[str, float],
) -> list[Effect]:
    names = sorted({*metrics, *(m for r in revisions for a in r.arms.values() for m in a.feedback)}) if only is None else [only]
    others = [arm for arm in arms if arm != control]
    share = alpha / max(1, len(names) * len(others))
    return [
        _effect(name, arm, metrics.get(name, Metric()), _strata(revisions, control, arm, name), share, rates.get(name))
        for arm in others
        for name in names
    ]


def _strata(revisions: Sequence[Revision], control: str, arm: str, metric: str) -> list[tuple[Moments, Moments]]:
    none = ArmCounts()
    pairs = [(r.arms.get(control, none).feedback.get(metric), r.arms.get(arm, none).feedback.get(metric)) for r in revisions]
    return [(a or Moments(), b or Moments()) for a, b in pairs if a or b]


def _guardrails(revisions: Sequence[Revision], arms: Sequence[str], control: str, alpha: float) -> list[Effect]:
    found = []
    for arm in arms:
        if arm == control:
            continue
        both = [r for r in revisions if arm in r.arms and control in r.arms]
        for name in EVENTS:
            strata = [(r.arms[control].share_of(name), r.arms[arm].share_of(name)) for r in both]
            found.append(_effect(name, arm, Metric("binary", 0.0, "decrease"), strata, alpha / (2 * max(1, len(arms) - 1)), None))
    return found


def _effect(name: str, arm: str, metric: Metric, strata: Sequence[tuple[Moments, Moments]], alpha: float, rate: float | None) -> Effect:
    found = combined(strata)
    interval = Interval(math.nan, -math.inf, math.inf) if found is None else found.sequence(alpha)
    needed = None if found is None else found.needed(alpha)
    if needed is not None and math.isinf(needed):
        needed = None
    seconds = None
    if found is not None and needed is not None and rate:
        seconds = max(0.0, needed - found.n) / rate
    (control_mean, control_n), (arm_mean, arm_n) = (_mean([pair[i] for pair in strata], metric.minimum) for i in (0, 1))
    return Effect(
        metric=name,
        arm=arm,
        goal=metric.goal,
        control_mean=control_mean,
        arm_mean=arm_mean,
        control_n=control_n,
        arm_n=arm_n,
        difference=found,
        interval=interval,
        alpha=alpha,
        p=1.0 if found is None else found.p_value(alpha),
        needed=needed,
        seconds=seconds,
    )


def _mean(moments: Sequence[Moments], minimum: float) -> tuple[float, float]:
    n = math.fsum(m.count for m in moments)
    return (math.fsum(x for m in moments for x in m.total) / n + minimum if n else math.nan), n


# --- the sentence ---------------------------------------------------------------------------------------------------------


def _verdict(effects: Sequence[Effect], guardrails: Sequence[Effect], revisions: Sequence[RevisionReport]) -> tuple[State, str]:
    current = revisions[-1]
    if current.sample_ratio is not None and current.sample_ratio.broken:
        return "sample_ratio_broken", _broken_words(current)
    exposed = math.fsum(r.revision.exposed for r in revisions)
    if not exposed:
        return "no_data", "No decision yet: no request was assigned to an arm."
    decided = [e for e in (*effects, *guardrails) if e.decision in ("better", "worse")]
    if decided:
        words = "; ".join(_decided_words(e) for e in decided)
        kinds = {e.decision for e in decided}
        state: State = "mixed" if len(kinds) > 1 else "better" if "better" in kinds else "worse"
        return state, words[0].upper() + words[1:] + "."
    if not any(e.arm_n or e.control_n for e in effects):
        return "no_data", f"No decision yet: {exposed:,.0f} requests were assigned, and no outcome of any of them was reported."
    return "undecided", f"No decision yet: {'; '.join(_undecided_words(e) for e in effects)}."


def _broken_words(found: RevisionReport) -> str:
    ratio = found.sample_ratio
    assert ratio is not None
    names = [name for name, arm in found.revision.arms.items() if arm.weight]
    n = math.fsum(ratio.exposures)
    parts = ", ".join(
        f"{name} got {100 * x / n:.4g} % where {100 * share:.4g} % was planned"
        for name, x, share in zip(names, ratio.exposures, ratio.shares, strict=True)
    )
    return f"Sample ratio is broken: do not read the rest. In revision {found.revision.name} {parts} ({p_words(ratio.p)})."


def _decided_words(effect: Effect) -> str:
    low, high = sorted((abs(effect.interval.low), abs(effect.interval.high)))
    return f"{effect.arm} is {effect.decision} for {effect.metric} by between {number(low)} and {number(high)}"


def _undecided_words(effect: Effect) -> str:
    if effect.decision == "too_few":
        return f"too few outcomes of {effect.metric} for {effect.arm} ({effect.control_n:,.0f} and {effect.arm_n:,.0f})"
    text = (
        f"the effect of {effect.arm} on {effect.metric} lies between {number(effect.interval.low)} and {number(effect.interval.high)}"
        " and may be none"
    )
    if effect.seconds is not None:
        text += f"; if it is what it looks like now, deciding takes {duration(effect.seconds)} more"
    return text


def _notes(evidence: Evidence, spoilt: Sequence[str]) -> list[str]:
    notes = [f"The sample ratio of revision {name} was broken, so it is left out." for name in spoilt]
    for arm, n in sorted(evidence.withdrawn.items()):
        if n:
            notes.append(f"{n:.0f} replica{'s have' if n > 1 else ' has'} taken {arm} out for a time by the circuit-break.")
    current = evidence.current
    for reason, n in sorted(current.unassigned.items()):
        if not n:
            continue
        words = {"no_unit": "carried no unit id", "pinned": "named a version or label", "not_enrolled": "were not enrolled"}
        notes.append(f"{n:,.0f} requests {words.get(reason, reason)} and are in no arm.")
    for name, counts in current.arms.items():
        elsewhere = math.fsum(n for served, n in counts.served.items() if served != name)
        if elsewhere:
            notes.append(f"{elsewhere:,.0f} requests assigned to {name} were answered by another arm; they count as {name}'s.")
    if len(evidence.revisions) > 1 + len(spoilt):
        notes.append(
            "Effects are combined over revisions; each by itself stands below. They mean one thing while arms kept their versions."
        )
    return notes


def number(value: float, digits: int = 4) -> str:
    """Return a figure with so many significant digits and without an exponent where that reads well."""
    if not math.isfinite(value):
        return "unknown" if math.isnan(value) else "∞" if value > 0 else "−∞"
    text = f"{value:.{digits}g}" if value == 0 or 1e-4 <= abs(value) < 1e6 else f"{value:.{digits - 1}e}"
    return text.replace("-", "−", 1) if value < 0 else text


def p_words(p: float) -> str:
    """Return a p-value as people write it."""
    return "p < 1e-9" if p < 1e-9 else f"p = {p:.3g}"


def duration(seconds: float) -> str:
    """Return a time in the one unit that reads best, or that it is too long to matter."""
    if seconds > YEAR_S:
        return "more than a year"
    for unit, size in (("day", 86400.0), ("hour", 3600.0), ("minute", 60.0)):
        if seconds >= 1.5 * size:
            return f"about {seconds / size:.0f} {unit}s"
    return "about a minute" if seconds > 45 else "less than a minute"


# --- plain values ---------------------------------------------------------------------------------------------------------


def _revision_json(report: RevisionReport) -> dict[str, Any]:
    revision, ratio = report.revision, report.sample_ratio
    return {
        "revision": revision.name,
        "current": revision.current,
        "exposed": revision.exposed,
        "arms": {name: _arm_json(arm) for name, arm in revision.arms.items()},
        "unassigned": dict(revision.unassigned),
        "sample_ratio": None
        if ratio is None
        else {
            "broken": ratio.broken,
            "p": ratio.p,
            "chi_square": ratio.chi_square,
            "fixed_p": ratio.fixed_p,
            "design_effect": ratio.design_effect,
            "planned": list(ratio.shares),
            "exposures": list(ratio.exposures),
        },
        "effects": [e.to_json() for e in report.effects],
    }


def _arm_json(arm: ArmCounts) -> dict[str, Any]:
    exposed = math.fsum(arm.exposures)
    return {
        "weight": arm.weight,
        "exposures": exposed,
        "errors": math.fsum(arm.errors),
        "error_ratio": math.fsum(arm.errors) / exposed if exposed else None,
        "slow": math.fsum(arm.slow),
        "slow_ratio": math.fsum(arm.slow) / exposed if exposed else None,
        "served": dict(arm.served),
        "latency_s": {
            "mean": arm.latency.mean_s,
            **{f"p{round(q * 100)}": arm.latency.quantile_s(q) for q in (0.5, 0.9, 0.99)},
        },
    }


def _point(effect: Effect) -> dict[str, Any]:
    d = effect.difference
    return {
        "metric": effect.metric,
        "arm": effect.arm,
        "effect": None if d is None else d.estimate,
        "low": effect.interval.low,
        "high": effect.interval.high,
        "n": effect.control_n + effect.arm_n,
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
