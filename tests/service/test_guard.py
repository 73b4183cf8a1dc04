"""The guard's rules, with counters given by hand: what withdraws an arm, what takes a rollout on, what only waits, and what is written."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from experiment_pages import Replica, bucket_of
from samegraph_service.experiments import routing_file
from samegraph_service.experiments.analysis import sequences
from samegraph_service.experiments.analysis.evidence import Evidence, Sample
from samegraph_service.experiments.analysis.guard import Decision, Fleet, Guard, GuardMetrics, exit_code, judge
from samegraph_service.experiments.analysis.routing_edit import edited
from samegraph_service.experiments.analysis.routing_store import RepositoryStore
from samegraph_service.experiments.analysis.sources import PrometheusSource, from_pages
from samegraph_service.experiments.routing_file import ModelRouting

FILE = """\
# who answers
models:
  flights:
    labels: {canary: 2}   # the new trees
    experiments:
      trees:
        salt: s1
        unit: {header: samegraph-unit}
        arms:
          control: {version: 1, weight: 1}   # logistic regression
          treatment: {label: canary}
        slo_ms: 250
        guardrails: {error_margin: 0.01, slow_margin: 0.05, alpha: 0.05, min_requests: 200}
"""
ROLLOUT = """\
        rollout:
          arm: treatment     # from one per cent to all
          min_step_s: 600
          min_requests: 500
"""
READY = Fleet(replicas=3, step_s=1000.0)


def routing(text: str = FILE) -> ModelRouting:
    return routing_file.parse(text.encode()).models["flights"]


def counted(
    text: str = FILE, *, n: int = 3000, errors: dict[str, float] | None = None, slow: dict[str, float] | None = None, treatment: float = 0.5
) -> Evidence:
    """Return what replicas would have counted of `n` units with a request each, in the file's revision."""
    plan = routing(text).plan("flights")
    assert plan is not None
    replica = Replica(revision=plan.revision, weights={arm.name: arm.weight for arm in plan.arms})
    rng = random.Random(7)
    for i in range(n):
        arm = "treatment" if rng.random() < treatment else "control"
        bad, late = rng.random() < (errors or {}).get(arm, 0.002), rng.random() < (slow or {}).get(arm, 0.01)
        replica.expose(f"u{i}", arm, error=bad, slow=late)
    return from_pages([replica.page()], "flights", "trees")


def judged(text: str = FILE, evidence: Evidence | None = None, fleet: Fleet = READY) -> Decision:
    decision = judge("flights", routing(text), evidence, fleet)
    assert decision is not None
    return decision


def after(text: str, decision: Decision) -> Any:
    """Return the experiment in the file after a decision."""
    changed = edited(text, decision.edits)
    routing_file.parse(changed.encode())  # it is valid
    return yaml.safe_load(changed)["models"]["flights"]["experiments"]["trees"]


# --- withdrawing ----------------------------------------------------------------------------------------------------------


def test_an_arm_that_does_no_harm_is_left_alone() -> None:
    """Equal arms change nothing."""
    decision = judged(evidence=counted())
    assert (decision.do, decision.edits) == ("hold", {})
    assert {(b.arm, b.event) for b in decision.bounds} == {("treatment", "errors"), ("treatment", "slow")}


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (counted(errors={"treatment": 0.2}), "errors"),
        (counted(slow={"treatment": 0.4}), "slow"),
        (counted(errors={"treatment": 0.9}, n=600), "error_ratio"),
        (counted(treatment=0.7), "sample_ratio"),
    ],
    ids=["errors", "slow", "error-ratio", "sample-ratio"],
)
def test_harm_withdraws_the_arm(evidence: Evidence, reason: str) -> None:
    """It gets no weight, in words that say why; the rest of the file stays, comments and all."""
    decision = judged(evidence=evidence)
    assert (decision.do, decision.arm, decision.reason) == ("withdraw", "treatment", reason)
    text = edited(FILE, decision.edits)
    assert text == FILE.replace("treatment: {label: canary}", "treatment: {label: canary, weight: 0}")


def test_harm_within_the_margin_is_tolerated() -> None:
    """A share that is surely higher, and by less than the file tolerates, withdraws nothing."""
    evidence = counted(n=60_000, slow={"control": 0.01, "treatment": 0.03})
    decision = judged(evidence=evidence)
    slow = next(b for b in decision.bounds if b.event == "slow")
    assert 0 < slow.low < slow.margin
    assert decision.do == "hold"


def test_harm_in_the_fallback_withdraws_nobody() -> None:
    """The bound is one-sided: an arm that is better than the fallback stays."""
    assert judged(evidence=counted(errors={"control": 0.2}, slow={"control": 0.4})).do == "hold"


def test_a_few_requests_withdraw_nobody() -> None:
    """Below the file's least number of requests nothing is judged, however bad it looks."""
    assert judged(evidence=counted(n=150, errors={"treatment": 0.9})).do == "hold"


@pytest.mark.parametrize(
    ("fleet", "reason"),
    [
        (replace(READY, failed_checks=[2]), "golden_check"),
        (replace(READY, withdrawn={"treatment": 2.0}), "circuit_break"),
        (replace(READY, withdrawn={"treatment": 1.0}), None),
        (replace(READY, failed_checks=[1, 3]), None),
    ],
    ids=["golden", "two-of-three", "one-of-three", "other-versions"],
)
def test_what_replicas_say_of_themselves(fleet: Fleet, reason: str | None) -> None:
    """A failed golden check of the arm's version, or a circuit-break on half of the replicas, needs no statistics."""
    decision = judged(evidence=counted(), fleet=fleet)
    assert (decision.do == "withdraw") == (reason is not None)
    assert reason in (None, decision.reason)


#: Metric → arm → mean.
Means = Mapping[str, Mapping[str, float]]
OUTCOMES = """\
        metrics:
          correct: {kind: label, guard: true, margin: 0.02}
          delay: {kind: number, min: 0, max: 60, goal: decrease, guard: true, margin: 1.0}
          clicked: {kind: binary}
"""


def outcomes(n: int, means: Means, seed: int = 7, text: str = FILE + OUTCOMES) -> Evidence:
    """Return what `n` units with a request each, none of which failed or was slow, and their outcomes would have counted.

    Args:
        n: Units, half of them in either arm.
        means: Metric → arm → mean; means above 1 are of numbers that scatter by ± 5.
        seed: Of everything random.
        text: The routing file.
    """
    plan = routing(text).plan("flights")
    assert plan is not None
    replica = Replica(revision=plan.revision, weights={arm.name: arm.weight for arm in plan.arms})
    rng = random.Random(seed)
    for i in range(n):
        arm = rng.choice(["control", "treatment"])
        replica.expose(f"u{i}", arm)
        for metric, of in means.items():
            mean = of[arm]
            replica.feedback(f"u{i}", arm, metric, [rng.uniform(mean - 5, mean + 5) if mean > 1 else float(rng.random() < mean)])
    return from_pages([replica.page()], "flights", "trees")


WORSE_LABELS = {"control": 0.9, "treatment": 0.78}
FINE_DELAY = {"control": 20.0, "treatment": 20.0}
FINE: Means = {"correct": {"control": 0.9, "treatment": 0.9}, "delay": FINE_DELAY}


@pytest.mark.parametrize(
    ("means", "words"),
    [
        ({"correct": WORSE_LABELS, "delay": FINE_DELAY}, "correct is at least"),
        ({"correct": {"control": 0.9, "treatment": 0.9}, "delay": {"control": 20.0, "treatment": 24.0}}, "delay is at least"),
    ],
    ids=["labels", "delay"],
)
def test_an_outcome_that_is_surely_worse_withdraws_the_arm(means: Means, words: str) -> None:
    """Wrong labels and longer delays, each against its goal, beyond the margin in its own unit; no request failed or was slow."""
    decision = judged(FILE + OUTCOMES, outcomes(4000, means))
    assert (decision.do, decision.arm, decision.reason) == ("withdraw", "treatment", "outcome")
    assert decision.words.startswith(words)
    assert "worse than control's; tolerated is" in decision.words
    assert {b.event for b in decision.bounds} == {"errors", "slow", "metrics.correct", "metrics.delay"}


@pytest.mark.parametrize(
    "means",
    [
        {"correct": {"control": 0.78, "treatment": 0.9}, "delay": {"control": 24.0, "treatment": 20.0}},
        {"correct": {"control": 0.9, "treatment": 0.89}, "delay": {"control": 20.0, "treatment": 20.5}},
        {"correct": {"control": 0.9, "treatment": 0.9}, "delay": FINE_DELAY, "clicked": {"control": 0.5, "treatment": 0.2}},
    ],
    ids=["better", "within-the-margin", "not-guarded"],
)
def test_outcomes_that_withdraw_nobody(means: Means) -> None:
    """Better ones, worse ones that the file tolerates, and metrics it does not guard."""
    assert judged(FILE + OUTCOMES, outcomes(8000, means)).do == "hold"


def test_wrong_labels_go_within_the_number_the_theory_gives() -> None:
    """From 0.90 to 0.78 with a margin of 0.02: the median of withdrawals, looked for every 50 outcomes, is that of the formula."""
    share, margin, alpha = (0.9, 0.78), 0.02, 0.05 / 4
    spread = sum(p * (1 - p) for p in share)
    theory = next(
        n for n in range(200, 10_000, 10) if share[0] - share[1] - sequences.one_sided_half_width(spread / n, 2 * n, alpha) > margin
    )
    found = []
    for seed in range(9):
        for n in range(200, 6001, 100):
            evidence = outcomes(n, {"correct": WORSE_LABELS}, seed)
            if judged(FILE + OUTCOMES, evidence).do == "withdraw":
                found.append(evidence.current.arms["treatment"].feedback["correct"].count)
                break
    assert len(found) == 9
    assert sorted(found)[4] == pytest.approx(theory, rel=0.5)
    assert max(found) <= 2.5 * theory


def test_outcomes_share_alpha_with_the_other_guardrails() -> None:
    """Two outcomes more to be wrong about make the bound on slow answers wider."""
    evidence = outcomes(4000, FINE)
    two, four = (next(b for b in judged(text, evidence).bounds if b.event == "slow") for text in (FILE, FILE + OUTCOMES))
    assert four.low < two.low


def test_outcomes_that_are_all_the_same_prove_nothing() -> None:
    """Two constants differ without any variance; the guard takes that for too little knowledge."""
    plan = routing(FILE + OUTCOMES).plan("flights")
    assert plan is not None
    replica = Replica(revision=plan.revision, weights={arm.name: arm.weight for arm in plan.arms})
    for i in range(1000):
        arm = ("control", "treatment")[i % 2]
        replica.expose(f"u{i}", arm)
        replica.feedback(f"u{i}", arm, "delay", [10.0 if arm == "control" else 30.0])
    decision = judged(FILE + OUTCOMES, from_pages([replica.page()], "flights", "trees"))
    assert decision.do == "hold"


def test_a_rollout_waits_for_outcomes_it_guards() -> None:
    """Requests without outcomes are no reason to go on; outcomes that look worse are none either; good ones are."""
    text = edited(FILE + OUTCOMES + ROLLOUT, judged(FILE + OUTCOMES + ROLLOUT).edits)
    text = stepped(4, text)
    none = judged(text, outcomes(3000, {}, text=text))
    assert (none.do, none.reason, none.words) == ("wait", "no_data", "too little is known of correct")
    looks = judged(text, outcomes(3000, {**FINE, "correct": {"control": 0.9, "treatment": 0.85}}, text=text))
    assert (looks.do, looks.reason) == ("wait", "inconclusive")
    assert "correct looks" in looks.words
    assert judged(text, outcomes(3000, FINE, text=text)).do == "advance"


def test_a_withdrawal_is_final() -> None:
    """After it the guard finds nothing to do, whatever the counters of the old revision said; a rollout stays where it was."""
    text = FILE + ROLLOUT
    bad = counted(text, errors={"treatment": 0.5})
    decision = judged(text, bad)
    changed = edited(text, decision.edits)
    assert after(text, decision)["rollout"]["paused"] is True
    for evidence in (bad, counted(changed, treatment=0.0), None):
        again = judged(changed, evidence)
        assert (again.do, again.edits) == ("hold", {})


def test_other_revisions_are_not_judged() -> None:
    """Harm in a revision that is no longer in force withdraws nobody in the one that is."""
    assert judged(FILE.replace("salt: s1", "salt: s2"), counted(errors={"treatment": 0.5})).do == "hold"


def test_an_experiment_that_is_not_enabled_is_not_judged() -> None:
    """Nor is a model without one."""
    assert judge("flights", routing(FILE.replace("salt: s1", "enabled: false\n        salt: s1")), None, READY) is None


# --- rolling out ----------------------------------------------------------------------------------------------------------


def stepped(step: int, text: str = FILE + ROLLOUT) -> str:
    """Return the file with the rollout on a step and the weights of it."""
    steps = [1, 5, 10, 25, 50, 100]
    share = steps[step]
    edits: dict[tuple[str, ...], float | int | bool] = {
        ("models", "flights", "experiments", "trees", "rollout", "step"): step,
        ("models", "flights", "experiments", "trees", "arms", "treatment", "weight"): share / (100 - share) if share < 100 else 1,
    }
    if share == 100:
        edits["models", "flights", "experiments", "trees", "arms", "control", "weight"] = 0
    return edited(text, edits)


def test_a_rollout_begins_with_its_first_step() -> None:
    """Whatever the weights were, the guard makes them those of the step in the file; nothing needs to have been counted."""
    decision = judged(FILE + ROLLOUT)
    assert decision.do == "start"
    arms = after(FILE + ROLLOUT, decision)["arms"]
    assert arms["treatment"]["weight"] / (arms["treatment"]["weight"] + arms["control"]["weight"]) == pytest.approx(0.01)


def test_a_rollout_goes_all_the_way() -> None:
    """While nothing is wrong each look takes one step; at 100 % it is done, and each file keeps its comments."""
    text = stepped(0)
    shares: list[float] = []
    decision = judged(text)
    for _ in range(10):
        share = shares[-1] if shares else 1.0
        decision = judged(text, counted(text, n=80_000 if share < 5 else 12_000, treatment=share / 100))
        if decision.do == "done":
            break
        assert decision.do == "advance", decision.words
        text = edited(text, decision.edits)
        weights = {name: part.weight for name, part in routing(text).experiments["trees"].arms.items()}
        shares.append(round(100 * weights["treatment"] / sum(weights.values()), 6))
    assert shares == [5, 10, 25, 50, 100]
    assert decision.reason == "last_step"
    assert "# from one per cent to all" in text


@pytest.mark.parametrize(
    ("fleet", "reason", "note"),
    [
        (replace(READY, ready={1: 3, 2: 2}), "not_ready", "version 2 of treatment is ready on 2 of 3 replicas"),
        (replace(READY, ready={1: 3}), "not_ready", "version 2 of treatment is ready on 0 of 3 replicas"),
        (replace(READY, withdrawn={"treatment": 1.0}), "withdrawn", "the circuit-break of 1 of 3 replicas has taken treatment out"),
    ],
    ids=["loading-on-one", "nowhere", "taken-out-on-one"],
)
def test_a_rollout_waits_for_an_arm_that_others_answer_for(fleet: Fleet, reason: str, note: str) -> None:
    """Where the fallback answers for it, it looks as good as the fallback; that is no reason to go on, and the decision says so."""
    decision = judged(stepped(4), counted(stepped(4)), fleet)
    assert (decision.do, decision.reason, decision.words, list(decision.notes)) == ("wait", reason, note, [note])
    assert judged(evidence=counted(), fleet=fleet).notes == [note]  # without a rollout it is told all the same
    fine = judged(stepped(4), counted(stepped(4)), replace(READY, ready={1: 3, 2: 3}))
    assert (fine.do, list(fine.notes)) == ("advance", [])


@pytest.mark.parametrize(
    ("evidence", "fleet", "reason"),
    [
        (None, READY, "no_data"),
        (counted(stepped(4), n=400), READY, "too_early"),
        (counted(stepped(4)), replace(READY, step_s=599.0), "too_early"),
        (counted(stepped(4)), replace(READY, step_s=None), "no_data"),
        (counted(stepped(4), n=1300, errors={"control": 0.0, "treatment": 0.02}), READY, "inconclusive"),
    ],
    ids=["nothing", "few-requests", "too-soon", "not-seen", "looks-bad"],
)
def test_a_rollout_waits_while_nothing_is_sure(evidence: Evidence | None, fleet: Fleet, reason: str) -> None:
    """Missing data never passes for good data, and what looks bad without being sure is no reason to go on."""
    decision = judged(stepped(4), evidence, fleet)
    assert (decision.do, decision.reason, decision.edits) == ("wait", reason, {})


def test_harm_at_100_per_cent_goes_back_to_the_fallback() -> None:
    """There is nobody left to compare with; a failed golden check still takes the arm out, and the fallback answers all."""
    decision = judged(stepped(5), None, replace(READY, failed_checks=[2]))
    assert decision.do == "withdraw"
    arms = after(stepped(5), decision)["arms"]
    assert (arms["control"]["weight"], arms["treatment"]["weight"]) == (1, 0)


def test_alpha_is_shared_over_steps() -> None:
    """A rollout has six chances to be wrong where a test has one, so each step's bound is wider."""
    [one, *_] = judged(evidence=counted()).bounds
    [six, *_] = judged(stepped(4), counted(stepped(4))).bounds
    assert six.low < one.low


# --- files and metrics ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "models:\n  m:\n    experiments: {e: {salt: s, arms: {a: {version: 1}, b: {version: 2, weight: 3.5}}}}\n",
        (
            "models:\n  m:\n    experiments:\n      e:\n        salt: s\n        arms:\n          a:\n            version: 1\n"
            "          b:\n            # heavy\n            version: 2\n            weight: 3.5 # so far\n"
        ),
        '{"models": {"m": {"experiments": {"e": {"salt": "s", "arms": {"a": {"version": 1}, "b": {"version": 2, "weight": 3.5}}}}}}}',
    ],
    ids=["flow", "block", "json"],
)
def test_edits_change_what_they_say_and_nothing_else(text: str) -> None:
    """In any layout of YAML, values that are there and values that are not."""
    at = ("models", "m", "experiments", "e", "arms")
    changed = edited(text, {(*at, "a", "weight"): 0, (*at, "b", "weight"): 0.0101010101})
    wanted = yaml.safe_load(text)
    wanted["models"]["m"]["experiments"]["e"]["arms"] = {"a": {"version": 1, "weight": 0}, "b": {"version": 2, "weight": 0.0101010101}}
    assert yaml.safe_load(changed) == wanted
    assert ("# heavy" in text) == ("# heavy" in changed)
    assert ("# so far" in text) == ("# so far" in changed)


def test_metrics_tell_actions_and_bounds_and_never_nan() -> None:
    """What was written is counted, what would have been is not, and a bound that is not known is left out beside its count."""
    metrics = GuardMetrics()
    metrics.decided(judged(evidence=counted(errors={"treatment": 0.2})), acted=True)
    metrics.decided(judged(evidence=counted(n=100)), acted=False)
    text = metrics.text()
    assert 'samegraph_guard_actions_total{model="flights",experiment="trees",arm="treatment",action="withdraw",reason="errors"} 1' in text
    assert "nan" not in text.lower()
    assert "inf" not in text.lower()
    assert 'guardrail="errors"} 41.0' in text
    assert "samegraph_guard_harm_lower_bound{" not in text
    assert exit_code([judged(evidence=counted(errors={"treatment": 0.2}))], metrics) == 3
    assert exit_code([judged(evidence=counted())], metrics) == 0
    metrics.failed_looks = 1
    assert exit_code([], metrics) == 1


def test_buckets_are_those_of_servers() -> None:
    """The pages made for these tests put units where the service does."""
    from samegraph_service.experiments.assignment import bucket_of as served

    assert [bucket_of(f"u{i}") for i in range(100)] == [served(f"u{i}".encode()) for i in range(100)]


class Known(PrometheusSource):
    """A Prometheus that answers with counters given by hand."""

    def __init__(self, evidence: Evidence) -> None:
        super().__init__("http://127.0.0.1:1")
        self._known = evidence

    def evidence(self, model: str, experiment: str, at: float | None = None) -> Evidence:
        return self._known

    def vector(self, expression: str, at: float | None = None) -> list[Sample]:
        return []

    def value(self, expression: str, at: float | None = None) -> float | None:
        return 3.0

    def first_seen(self, model: str, experiment: str, end: float, revision: str | None = None) -> float | None:
        return end - 1000


class Contended(RepositoryStore):
    """A file that somebody else changes between the guard's reading and its writing, so many times."""

    def __init__(self, repository: Path, times: int) -> None:
        super().__init__(repository)
        self._path = repository / "routing.yaml"
        self._times = times

    def write(self, text: str, revision: str) -> None:
        if self._times:
            self._times -= 1
            self._path.write_text(self._path.read_text(encoding="utf-8") + "# somebody else\n", encoding="utf-8")
        super().write(text, revision)


@pytest.mark.parametrize(("times", "done"), [(1, True), (2, True), (3, False)])
def test_a_file_that_others_change_is_judged_again(tmp_path: Path, times: int, done: bool) -> None:
    """The withdrawal is made from what they left, at once; where they never rest, the next look goes on and nothing is written over."""
    path, log = tmp_path / "routing.yaml", io.StringIO()
    path.write_text(FILE, encoding="utf-8")
    guard = Guard(Contended(tmp_path, times), Known(counted(errors={"treatment": 0.2})), log=log)
    assert [d.do for d in guard.look()] == ["withdraw"] * done
    assert path.read_text(encoding="utf-8").count("# somebody else") == times
    assert ("weight: 0}" in path.read_text(encoding="utf-8")) == done
    events = [json.loads(line)["event"] for line in log.getvalue().splitlines()]
    assert events == (["arm_withdrawn"] if done else ["guard_failed"])


def test_a_file_that_cannot_be_read_stops_no_watch(tmp_path: Path) -> None:
    """A bad file, and a Prometheus that does not answer, are told and counted; the guard goes on and changes nothing."""
    log = io.StringIO()
    guard = Guard(tmp_path, PrometheusSource("http://127.0.0.1:1"), log=log, now=lambda: 5.0)
    for text in ("models: [", FILE):
        (tmp_path / "routing.yaml").write_text(text, encoding="utf-8")
        assert guard.look() == []
        assert (tmp_path / "routing.yaml").read_text(encoding="utf-8") == text
    events = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [(e["event"], e["model"]) for e in events] == [("guard_failed", ""), ("guard_failed", "flights")]
    assert "not valid YAML" in events[0]["error"]
    assert exit_code([], guard.metrics) == 1
