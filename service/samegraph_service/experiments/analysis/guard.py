"""Guarding a running experiment: harm withdraws an arm for good, and a rollout goes on only while there is none.

Decisions are made from evidence of the revision in force alone. Each of an experiment's bounds gets its part of `alpha`: over all arms,
all guardrails, all steps of a rollout and all looks ever, an arm as good as the fallback is withdrawn with chance alpha at most.

    judge(spec, evidence, …)   what to do about one experiment: pure
    Guard                      looks, judges, writes routing.yaml, and tells what it did
"""

from __future__ import annotations

import json
import math
import sys
import time as clock
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TextIO

from samegraph_transforms.errors import SamegraphError

from samegraph_service.errors import NoEvidence, RoutingConflict
from samegraph_service.experiments.routing_file import ExperimentSpec, MetricSpec, ModelRouting, share_as_weight

from .clusters import Moments, difference
from .evidence import ArmCounts, Events, Evidence, Revision
from .report import LEAST_BUCKETS, number, p_words, sample_ratio
from .routing_edit import Edits, edited
from .routing_store import RepositoryStore, RoutingStore
from .sources import PrometheusSource

Do = Literal["hold", "wait", "withdraw", "advance", "start", "done"]
EXIT_FINE, EXIT_ERROR, EXIT_WITHDRAWN = 0, 1, 3
#: Share of replicas whose circuit-break has taken an arm out, from which on it is withdrawn everywhere.
BROKEN_REPLICAS = 0.5
#: How often a change is made again from the file as somebody else has left it.
WRITES = 3
#: What the names of guardrails on outcomes begin with: their path in the file, which no event is called.
OUTCOME = "metrics."


@dataclass(frozen=True)
class Bound:
    """One guardrail of one arm, as it stands.

    Attributes:
        arm: The arm.
        event: errors, slow, or metrics.NAME for an outcome that the file guards.
        harm: How much worse than the fallback it is estimated to be (the increase of the share of such requests, or the difference of an
            outcome's means against its goal); NaN while nothing can be said.
        low: Its one-sided lower bound, valid at every look; -inf while nothing can be said.
        margin: The harm that is tolerated.
        requests: Requests of the arm, or its outcomes.
    """

    arm: str
    event: str
    harm: float
    low: float
    margin: float
    requests: float

    @property
    def broken(self) -> bool:
        """Whether harm beyond the margin is shown."""
        return self.low > self.margin

    @property
    def fine(self) -> bool:
        """Whether what is seen so far lies within the margin."""
        return self.harm <= self.margin

    @property
    def metric(self) -> str:
        """The outcome it is about; empty for errors and slow answers."""
        return self.event.removeprefix(OUTCOME) if self.event.startswith(OUTCOME) else ""


@dataclass(frozen=True)
class Fleet:
    """What is known besides the counters.

    Attributes:
        replicas: Replicas that export the experiment.
        withdrawn: Arm → replicas whose circuit-break has taken it out.
        failed_checks: Versions of the model whose golden check fails somewhere, or that failed to load there.
        step_s: Seconds since the revision in force was first seen; None when it was not.
        ready: Version of the model → replicas that serve it; None when that is not known.
    """

    replicas: int = 0
    withdrawn: Mapping[str, float] = field(default_factory=dict)
    failed_checks: Sequence[int] = ()
    step_s: float | None = None
    ready: Mapping[int, float] | None = None


@dataclass(frozen=True)
class Decision:
    """What to do about one experiment, and why.

    Attributes:
        model: The model.
        experiment: The experiment.
        do: hold (nothing to do), wait (not enough is known to go on), withdraw, advance (to the next step), start (make the weights
            those of the step in the file), done (the last step stands).
        arm: The arm it is about; empty when none.
        reason: A word: errors, slow, outcome, sample_ratio, golden_check, circuit_break, error_ratio; or what is waited for.
        words: The same in a sentence.
        edits: What changes in the file.
        bounds: Guardrails as they stand.
        revision: The revision that was judged.
        notes: What is wrong with an arm and asks for no withdrawal: its version is not ready everywhere, or some replicas took it out.
    """

    model: str
    experiment: str
    do: Do
    arm: str
    reason: str
    words: str
    edits: Edits = field(default_factory=dict)
    bounds: Sequence[Bound] = ()
    revision: str = ""
    notes: Sequence[str] = ()


# --- judging --------------------------------------------------------------------------------------------------------------


def judge(model: str, routing: ModelRouting, evidence: Evidence | None, fleet: Fleet) -> Decision | None:
    """Return what to do about the model's experiment; None when it has none that is enabled.

    Args:
        model: The model's name.
        routing: Its part of the routing file.
        evidence: What was counted; None when nothing was.
        fleet: What is known besides.
    """
    plan = routing.plan(model)
    if plan is None or routing.enabled is None:
        return None
    name, spec = routing.enabled
    judged = _Judged(model, name, spec, routing, plan.revision, fleet)
    revision = next((r for r in evidence.revisions if r.name == plan.revision), None) if evidence is not None else None
    bounds = [] if revision is None else bounds_of(spec, revision)
    harm = judged.harm(revision, bounds)
    if harm is not None:
        return harm
    if spec.rollout is None or spec.rollout.paused:
        return judged.decision(
            "hold", "", "holds", "the guardrails hold" if revision else "nothing was counted in this revision yet", bounds
        )
    return judged.rollout(revision, bounds)


def bounds_of(spec: ExperimentSpec, revision: Revision) -> list[Bound]:
    """Return the guardrails of every arm that gets requests, but the fallback."""
    control = revision.arms.get(spec.fallback_arm)
    arms = [name for name, part in spec.arms.items() if name != spec.fallback_arm and part.weight > 0]
    rails = _rails(spec)
    steps = len(spec.rollout.steps) if spec.rollout is not None else 1
    alpha = spec.guardrails.alpha / (max(1, len(arms)) * len(rails) * steps)
    return [_bound(name, rail, control, revision.arms.get(name), alpha, spec.guardrails.min_requests) for name in arms for rail in rails]


@dataclass(frozen=True)
class _Rail:
    """One thing that must not be worse than the fallback's: a name for it, the harm that is tolerated, and where its counts are."""

    name: str
    margin: float
    moments: Callable[[ArmCounts], Moments]
    more_is_harm: bool = True


def _rails(spec: ExperimentSpec) -> list[_Rail]:
    def event(name: Events, margin: float) -> _Rail:
        return _Rail(name, margin, lambda arm: arm.share_of(name))

    def outcome(name: str, metric: MetricSpec) -> _Rail:
        return _Rail(OUTCOME + name, metric.margin, lambda arm: arm.feedback.get(name, Moments()), metric.goal == "decrease")

    found = [event("errors", spec.guardrails.error_margin)]
    if spec.slo_ms is not None:
        found.append(event("slow", spec.guardrails.slow_margin))
    return found + [outcome(name, metric) for name, metric in spec.metrics.items() if metric.guard]


def _bound(name: str, rail: _Rail, control: ArmCounts | None, arm: ArmCounts | None, alpha: float, least: int) -> Bound:
    theirs, own = (Moments() if counts is None else rail.moments(counts) for counts in (control, arm))
    d = difference(theirs, own) if rail.more_is_harm else difference(own, theirs)
    # Without any variance every outcome was the same: that says how little is known, not how much.
    if d is None or own.count < least or d.buckets < LEAST_BUCKETS or d.variance <= 0:
        return Bound(name, rail.name, math.nan, -math.inf, rail.margin, own.count)
    return Bound(name, rail.name, d.estimate, d.lower(alpha).low, rail.margin, own.count)


@dataclass(frozen=True)
class _Judged:
    """One experiment while it is being judged."""

    model: str
    name: str
    spec: ExperimentSpec
    routing: ModelRouting
    revision: str
    fleet: Fleet

    def decision(self, do: Do, arm: str, reason: str, words: str, bounds: Sequence[Bound], edits: Edits | None = None) -> Decision:
        notes = [note for name in self.spec.arms for _, note in self._absent(name)]
        return Decision(self.model, self.name, do, arm, reason, words, edits or {}, bounds, self.revision, notes)

    def _version(self, arm: str) -> int:
        part = self.spec.arms[arm]
        return self.routing.number(part.version, part.label)

    def _absent(self, arm: str) -> Iterator[tuple[str, str]]:
        """Yield why an arm with a weight is not what answers its units everywhere: a word and a sentence."""
        if not self.spec.arms[arm].weight:
            return
        version, out, ready = self._version(arm), self.fleet.withdrawn.get(arm, 0.0), self.fleet.ready
        if ready is not None and ready.get(version, 0.0) < self.fleet.replicas:
            yield "not_ready", f"version {version} of {arm} is ready on {ready.get(version, 0.0):.0f} of {self.fleet.replicas} replicas"
        if out:
            yield "withdrawn", f"the circuit-break of {out:.0f} of {self.fleet.replicas} replicas has taken {arm} out"

    @property
    def arms(self) -> list[str]:
        """Arms that get requests and can be withdrawn."""
        return [name for name, part in self.spec.arms.items() if name != self.spec.fallback_arm and part.weight > 0]

    def harm(self, revision: Revision | None, bounds: Sequence[Bound]) -> Decision | None:
        """Return the withdrawal of the first arm that does harm."""
        for arm, reason, words in self._harms(revision, bounds):
            return self.decision("withdraw", arm, reason, words, bounds, self._withdrawn(arm))
        return None

    def _harms(self, revision: Revision | None, bounds: Sequence[Bound]) -> Iterator[tuple[str, str, str]]:
        rules, fleet = self.spec.guardrails, self.fleet
        for arm in self.arms:
            version = self._version(arm)
            if version in fleet.failed_checks:
                yield arm, "golden_check", f"version {version} fails its golden check, or does not load"
            broken = fleet.withdrawn.get(arm, 0.0)
            if broken and broken >= BROKEN_REPLICAS * fleet.replicas:
                yield arm, "circuit_break", f"the circuit-break of {broken:.0f} of {fleet.replicas} replicas has taken it out"
            if revision is None or arm not in revision.arms:
                continue
            counts = revision.arms[arm]
            requests, errors = math.fsum(counts.exposures), math.fsum(counts.errors)
            if requests >= rules.min_requests and errors > rules.max_error_ratio * requests:
                yield arm, "error_ratio", f"{100 * errors / requests:.3g} % of {requests:,.0f} requests failed"
        for bound in bounds:
            if bound.broken:
                than = f"than {self.spec.fallback_arm}'s; tolerated is {bound.margin:g}"
                if bound.metric:
                    yield bound.arm, "outcome", f"{bound.metric} is at least {number(bound.low)} worse {than}"
                else:
                    what = "failed requests" if bound.event == "errors" else "slow answers"
                    yield bound.arm, bound.event, f"the share of {what} is at least {number(bound.low)} higher {than}"
        ratio = None if revision is None else sample_ratio(revision)
        if ratio is not None and ratio.p < rules.sample_ratio_alpha and self.arms:
            arm = self.spec.rollout.arm if self.spec.rollout is not None and self.spec.rollout.arm in self.arms else self.arms[0]
            yield arm, "sample_ratio", f"arms do not get their shares ({p_words(ratio.p)}), so nothing that is counted can be trusted"

    def _withdrawn(self, arm: str) -> Edits:
        """Return what takes an arm out for good: no weight, and a rollout that stays where it is."""
        at = ("models", self.model, "experiments", self.name)
        edits: dict[tuple[str, ...], float | int | bool] = {(*at, "arms", arm, "weight"): 0}
        others = [name for name, part in self.spec.arms.items() if name != arm and part.weight > 0]
        if not others:  # a rollout that had come to 100 %
            edits[*at, "arms", self.spec.fallback_arm, "weight"] = 1
        if self.spec.rollout is not None and self.spec.rollout.arm == arm:
            edits[*at, "rollout", "paused"] = True
        return edits

    def rollout(self, revision: Revision | None, bounds: Sequence[Bound]) -> Decision:
        """Return how a rollout goes on; there is no harm."""
        plan = self.spec.rollout
        assert plan is not None
        if self.spec.arms[plan.arm].weight == 0 and plan.step > 0:
            return self.decision("hold", plan.arm, "withdrawn", "its weight is 0; raise it in the file to go on", bounds)
        share = self._share(plan.arm)
        if abs(share - plan.steps[plan.step]) > 1e-6 * share + 1e-9:
            words = f"{plan.arm} gets {plan.steps[plan.step]:g} % of units, as step {plan.step} says, instead of {share:.4g} %"
            return self.decision("start", plan.arm, "step", words, bounds, self._step(plan.arm, plan.step))
        if plan.step == len(plan.steps) - 1:
            return self.decision("done", plan.arm, "last_step", f"{plan.arm} gets {share:g} % of units, the last step", bounds)
        reason, words = self._inconclusive(revision, bounds)
        if reason:
            return self.decision("wait", plan.arm, reason, words, bounds)
        words = f"{plan.arm} goes from {share:g} % to {plan.steps[plan.step + 1]:g} % of units: the guardrails hold"
        return self.decision("advance", plan.arm, "holds", words, bounds, self._step(plan.arm, plan.step + 1))

    def _inconclusive(self, revision: Revision | None, bounds: Sequence[Bound]) -> tuple[str, str]:
        """Return what is missing before the next step; empty when nothing is."""
        plan, fleet = self.spec.rollout, self.fleet
        assert plan is not None
        for word, sentence in self._absent(plan.arm):
            return word, sentence  # its units get the fallback's answers there, which look as good as the fallback's
        mine = [b for b in bounds if b.arm == plan.arm]
        if revision is None or fleet.step_s is None or not mine:
            return "no_data", "nothing was counted in this revision yet"
        requests = min(b.requests for b in mine if not b.metric)
        if requests < plan.min_requests or fleet.step_s < plan.min_step_s:
            return (
                "too_early",
                f"{requests:,.0f} of {plan.min_requests:,} requests, {fleet.step_s:,.0f} of {plan.min_step_s:,.0f} s on this step",
            )
        unknown = [b for b in mine if math.isnan(b.harm)]
        if unknown:
            return "no_data", f"too little is known of {unknown[0].metric or unknown[0].event}"
        over = [b for b in mine if not b.fine]
        if over:
            worst = over[0]
            looks = (
                f"{worst.metric} looks {number(worst.harm)} worse" if worst.metric else f"{worst.event} look {number(worst.harm)} higher"
            )
            return "inconclusive", f"{looks}, beyond the tolerated {worst.margin:g}, and it is not sure"
        if sample_ratio(revision) is None:
            return "no_data", "the sample ratio cannot be judged yet"
        return "", ""

    def _share(self, arm: str) -> float:
        whole = math.fsum(part.weight for part in self.spec.arms.values())
        return 100 * self.spec.arms[arm].weight / whole

    def _step(self, arm: str, step: int) -> Edits:
        """Return what gives an arm the share of a step; the others keep their shares among each other."""
        plan = self.spec.rollout
        assert plan is not None
        at = ("models", self.model, "experiments", self.name)
        edits: dict[tuple[str, ...], float | int | bool] = {(*at, "rollout", "step"): step}
        others = {name: part.weight for name, part in self.spec.arms.items() if name != arm and part.weight > 0}
        if plan.steps[step] >= 100:
            edits[*at, "arms", arm, "weight"] = 1
            edits.update({(*at, "arms", name, "weight"): 0 for name in others})
        elif others:
            weight = share_as_weight(math.fsum(others.values()), plan.steps[step])
            edits[*at, "arms", arm, "weight"] = float(f"{weight:.9g}")
        else:  # back from 100 %, by hand
            edits[*at, "arms", self.spec.fallback_arm, "weight"] = 1
            edits[*at, "arms", arm, "weight"] = float(f"{share_as_weight(1.0, plan.steps[step]):.9g}")
        return edits


# --- looking and acting -------------------------------------------------------------------------------------------------------


class Guard:
    """Looks at every enabled experiment of a repository, judges it, and writes the file where that is needed.

    Args:
        repository: The directory with routing.yaml, or what else holds the file.
        source: The Prometheus server that scrapes the fleet.
        only: Names of experiments to guard; empty is all.
        dry_run: Decide, tell and write nothing.
        log: Where events go, a JSON object a line.
        now: The clock, in seconds since the epoch.
    """

    def __init__(
        self,
        repository: Path | RoutingStore,
        source: PrometheusSource,
        *,
        only: Sequence[str] = (),
        dry_run: bool = False,
        log: TextIO | None = None,
        now: Callable[[], float] = clock.time,
    ) -> None:
        self._store = RepositoryStore(repository) if isinstance(repository, Path) else repository
        self._source = source
        self._only = frozenset(only)
        self._dry_run = dry_run
        self._log = log if log is not None else sys.stderr
        self._now = now
        self.metrics = GuardMetrics()

    def look(self) -> list[Decision]:
        """Look once at everything and do what is needed.

        Returns:
            A decision for each experiment. Those that could not be judged, because the file or Prometheus cannot be read or the file cannot
            be written, are missing, and told as the event `guard_failed`.
        """
        self.metrics.looks += 1
        decisions = []
        try:
            models = list(self._store.read().models)
        except SamegraphError as error:
            self._failed("", error)
            return []
        for model in models:
            try:
                decision = self._look_at(model)
            except SamegraphError as error:
                self._failed(model, error)
                continue
            if decision is not None:
                decisions.append(decision)
        return decisions

    def _failed(self, model: str, error: Exception) -> None:
        self.metrics.failed_looks += 1
        self._event("guard_failed", model=model, error=str(error))

    def _look_at(self, model: str) -> Decision | None:
        for _ in range(WRITES - 1):
            try:
                return self._look_once(model)
            except RoutingConflict:  # somebody changed the file meanwhile; what he wrote is judged, not written over
                continue
        return self._look_once(model)

    def _look_once(self, model: str) -> Decision | None:
        file = self._store.read()
        routing = file.models.get(model)
        if routing is None or routing.enabled is None or (self._only and routing.enabled[0] not in self._only):
            return None
        name = routing.enabled[0]
        at = self._now()
        try:
            evidence = self._source.evidence(model, name, at)
        except NoEvidence:
            evidence = None
        plan = routing.plan(model)
        assert plan is not None
        decision = judge(model, routing, evidence, self._fleet(model, name, plan.revision, at))
        assert decision is not None
        if decision.edits and not self._dry_run:
            self._store.write(edited(file.text, decision.edits), file.revision)
        self._tell(decision)
        return decision

    def _fleet(self, model: str, name: str, revision: str, at: float) -> Fleet:
        of = f"model={json.dumps(model)}"
        withdrawn = self._source.vector(self._source.selected("samegraph_experiment_withdrawn", model, name), at)
        info = self._source.value(f"count({self._source.selected('samegraph_experiment_info', model, name, revision)})", at)
        checks = self._source.vector(self._source.with_matchers("samegraph_golden_check", of) + " == 0", at)
        failed = self._source.vector(self._source.with_matchers("samegraph_model_state", f'{of},state="failed"') + " == 1", at)
        up = self._source.with_matchers("samegraph_model_state", f'{of},state="ready"')
        ready = self._source.vector(f"count by (version) ({up} == 1)", at)
        began = self._source.first_seen(model, name, at, revision)
        counts: dict[str, float] = {}
        for sample in withdrawn:
            counts[sample.labels["arm"]] = counts.get(sample.labels["arm"], 0.0) + sample.value
        return Fleet(
            replicas=int(info or 0),
            withdrawn=counts,
            failed_checks=sorted({int(s.labels["version"]) for s in (*checks, *failed)}),
            step_s=None if began is None else max(0.0, at - began),
            ready={int(s.labels["version"]): s.value for s in ready} or None,
        )

    def _tell(self, decision: Decision) -> None:
        self.metrics.decided(decision, acted=not self._dry_run)
        name = {"withdraw": "arm_withdrawn", "advance": "rollout_advanced", "start": "rollout_started"}.get(decision.do, "guard_looked")
        self._event(
            name,
            model=decision.model,
            experiment=decision.experiment,
            revision=decision.revision,
            arm=decision.arm,
            do=decision.do,
            reason=decision.reason,
            words=decision.words,
            notes=list(decision.notes),
            dry_run=self._dry_run,
            bounds=[
                {
                    "arm": b.arm,
                    "event": b.event,
                    "harm": _or_null(b.harm),
                    "low": _or_null(b.low),
                    "margin": b.margin,
                    "requests": b.requests,
                }
                for b in decision.bounds
            ],
        )

    def _event(self, event: str, **fields: object) -> None:
        line = {"time": self._now(), "level": "warning" if event in ("arm_withdrawn", "guard_failed") else "info", "event": event, **fields}
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None


class GuardMetrics:
    """What the guard did, for a textfile of the node exporter or a page of its own.

    Attributes:
        looks: Times it looked.
        failed_looks: Experiments it could not judge, and files it could not read.
    """

    def __init__(self) -> None:
        self.looks = 0
        self.failed_looks = 0
        self._actions: dict[tuple[str, str, str, str, str], int] = {}
        self._last: dict[tuple[str, str], Decision] = {}

    def decided(self, decision: Decision, *, acted: bool) -> None:
        """Count a decision; one that was not acted on (a dry run) is kept and not counted."""
        self._last[decision.model, decision.experiment] = decision
        if acted and decision.edits:
            key = (decision.model, decision.experiment, decision.arm, decision.do, decision.reason)
            self._actions[key] = self._actions.get(key, 0) + 1

    def text(self) -> str:
        """Return the page in Prometheus' text format; nothing in it is NaN."""
        lines = _family("samegraph_guard_looks_total", "counter", "Times the guard looked.", [({}, self.looks)])
        lines += _family("samegraph_guard_failed_looks_total", "counter", "Experiments it could not judge.", [({}, self.failed_looks)])
        labels = ("model", "experiment", "arm", "action", "reason")
        actions = [(dict(zip(labels, key, strict=True)), n) for key, n in self._actions.items()]
        lines += _family("samegraph_guard_actions_total", "counter", "What it wrote into routing.yaml.", actions)
        bounds = [
            ({"model": d.model, "experiment": d.experiment, "arm": b.arm, "guardrail": b.event}, b)
            for d in self._last.values()
            for b in d.bounds
        ]
        known = [(own, b.low) for own, b in bounds if math.isfinite(b.low)]
        lines += _family("samegraph_guard_harm_lower_bound", "gauge", "Look-proof lower bound of the increase over the fallback.", known)
        requests = [(own, b.requests) for own, b in bounds]
        lines += _family("samegraph_guard_requests", "gauge", "Requests of the arm that the bound rests on.", requests)
        return "\n".join(lines) + "\n"


def _family(name: str, kind: str, help_: str, samples: Sequence[tuple[Mapping[str, str], float]]) -> list[str]:
    head = [f"# HELP {name} {help_}", f"# TYPE {name} {kind}"]
    return head + [
        f"{name}{{{','.join(f'{k}={json.dumps(v)}' for k, v in own.items())}}} {value!r}" if own else f"{name} {value!r}"
        for own, value in samples
    ]


def exit_code(decisions: Sequence[Decision], metrics: GuardMetrics) -> int:
    """Return what one look ends with: 3 an arm was withdrawn, 1 something could not be judged, 0 otherwise."""
    if any(d.do == "withdraw" for d in decisions):
        return EXIT_WITHDRAWN
    return EXIT_ERROR if metrics.failed_looks else EXIT_FINE


__all__ = ["Bound", "Decision", "Fleet", "Guard", "GuardMetrics", "bounds_of", "exit_code", "judge"]
