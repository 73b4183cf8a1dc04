"""What is made of counters: evidence that adds up, effects, and verdicts that say no more than the numbers."""

from __future__ import annotations

import json
import math

import pytest
from experiment_pages import Replica, simulate
from samegraph_service.errors import NoEvidence
from samegraph_service.experiments.analysis.evidence import Evidence, Latency, experiments_in
from samegraph_service.experiments.analysis.report import Report, duration, make_report, number
from samegraph_service.experiments.analysis.sources import Look, SourceError, from_pages, page_samples

EVEN = {"control": 0.3, "treatment": 0.3}


def evidence(*replicas: Replica) -> Evidence:
    return from_pages([r.page() for r in replicas], "flights", "trees")


def reported(units: int = 1200, *, seed: int = 1, better: float = 0.3, **more: object) -> Report:
    replica = Replica()
    simulate([replica], units, {"control": 0.3, "treatment": better}, seed=seed, **more)  # type: ignore[arg-type]
    return make_report(evidence(replica))


# --- evidence -------------------------------------------------------------------------------------------------------------


def test_three_replicas_are_one() -> None:
    """What three replicas counted adds up to what one would have counted."""
    three, one = [Replica(), Replica(), Replica()], Replica()
    simulate(three, 300, EVEN, seed=3)
    simulate([one], 0, EVEN, seed=3)
    for replica in three:
        for key, value in replica.counts.items():
            one.counts[key] += value
    together, alone = evidence(*three), evidence(one)
    assert together.revisions == alone.revisions
    assert make_report(together).to_json() == make_report(alone).to_json()
    assert sum(sum(arm.exposures) for arm in together.current.arms.values()) > 1000


def test_other_experiments_and_models_are_left_alone() -> None:
    """A page tells of many things; only what is asked about is counted."""
    mine, other, stranger = Replica(), Replica(experiment="other"), Replica(model="penguins")
    for replica in (mine, other, stranger):
        replica.expose("u", "control")
    noise = "# TYPE python_info gauge\npython_info 1.0\nsamegraph_ready 1\n"
    found = from_pages([noise + r.page() for r in (mine, other, stranger)], "flights", "trees")
    assert found.current.exposed == 1
    samples = [s for r in (mine, other, stranger) for s in page_samples(r.page())]
    assert experiments_in(samples) == [("flights", "other"), ("flights", "trees"), ("penguins", "trees")]


def test_the_current_revision_comes_last() -> None:
    """Older revisions stand before the one in force, whatever their size."""
    old, new = Replica(revision="ffff0000", current=False), Replica(revision="00001111")
    old.expose("u", "control", n=50)
    new.expose("u", "control")
    assert [r.name for r in evidence(old, new).revisions] == ["ffff0000", "00001111"]


def test_the_control_is_found_or_asked_for() -> None:
    """It is `control`, or the first by name; asking for one that is not there says which there are."""
    found = evidence(Replica())
    assert found.control() == "control"
    assert found.control("treatment") == "treatment"
    with pytest.raises(NoEvidence, match="it has control, treatment"):
        found.control("b")
    assert evidence(Replica(weights={"b": 1, "a": 1})).control() == "a"


def test_nothing_known_is_said_so() -> None:
    """An experiment that nobody counted is an error that says what to look at."""
    with pytest.raises(NoEvidence, match=r"is it in routing\.yaml"):
        from_pages(["# nothing\n"], "flights", "trees")
    with pytest.raises(SourceError, match="no metrics page"):
        from_pages(["samegraph_experiment_info{ 1\n"], "flights", "trees")


def test_latency_quantiles_lie_between_bounds() -> None:
    """As PromQL has them: straight inside a bucket, and the last finite bound beyond it."""
    latency = Latency({0.1: 50.0, 0.2: 100.0, math.inf: 110.0}, 12.0, 110.0)
    assert latency.quantile_s(0.5) == pytest.approx(0.11)
    assert latency.quantile_s(0.99) == pytest.approx(0.2)
    assert latency.mean_s == pytest.approx(12 / 110)
    assert Latency().quantile_s(0.5) is None


# --- the report -----------------------------------------------------------------------------------------------------------


def test_a_clear_effect_is_named_with_its_bounds() -> None:
    """The sentence has the arm, the outcome and the interval, and the interval holds the truth."""
    report = reported(better=0.45)
    [effect] = report.effects
    assert report.state == "better"
    assert effect.interval.low < 0.15 < effect.interval.high
    assert report.verdict == (
        f"Treatment is better for clicked by between {number(effect.interval.low)} and {number(effect.interval.high)}."
    )


def test_a_goal_to_decrease_turns_the_word_around() -> None:
    """More of what should be less is worse."""
    replica = Replica(metrics={"clicked": {"kind": "binary", "goal": "decrease"}})
    simulate([replica], 1200, {"control": 0.3, "treatment": 0.45}, seed=1)
    report = make_report(evidence(replica))
    assert report.state == "worse"
    assert report.verdict.startswith("Treatment is worse for clicked by between 0.")


def test_no_effect_is_no_decision() -> None:
    """The sentence gives the interval and says that there may be no effect."""
    report = reported()
    assert report.state == "undecided"
    assert report.verdict.startswith("No decision yet: the effect of treatment on clicked lies between −0.")
    assert report.verdict.endswith("and may be none.")


def test_the_time_to_a_decision_needs_a_rate() -> None:
    """With outcomes coming at a known rate the sentence says how long; the same difference at twice the rate takes half as long."""
    replica = Replica()
    simulate([replica], 1200, {"control": 0.3, "treatment": 0.32}, seed=8)
    slow, fast = (make_report(evidence(replica), rates={"clicked": r}) for r in (0.5, 1.0))
    assert slow.state == "undecided"
    assert slow.effects[0].seconds is not None
    assert fast.effects[0].seconds == pytest.approx(slow.effects[0].seconds / 2)
    assert "if it is what it looks like now, deciding takes about" in slow.verdict


def test_a_few_outcomes_decide_nothing() -> None:
    """Before an interval can be trusted, no verdict rests on it, however extreme the counts."""
    replica = Replica()
    for i in range(12):
        replica.expose(f"u{i}", "control" if i % 2 else "treatment")
        replica.feedback(f"u{i}", "control" if i % 2 else "treatment", "clicked", [float(i % 2)])
    report = make_report(evidence(replica))
    assert report.state == "undecided"
    assert report.verdict == "No decision yet: too few outcomes of clicked for treatment (6 and 6)."


def test_a_broken_ratio_silences_the_rest() -> None:
    """Where arms did not get their shares, the sentence says so and nothing of the effect, however clear it looks."""
    replica = Replica()
    simulate([replica], 1200, {"control": 0.3, "treatment": 0.6}, seed=2)
    for i in range(4000):
        replica.expose(f"more-{i}", "treatment")
    report = make_report(evidence(replica))
    assert report.state == "sample_ratio_broken"
    assert report.verdict.startswith("Sample ratio is broken: do not read the rest. In revision 0badcafe control got ")
    assert "better" not in report.verdict


def test_a_broken_revision_before_this_one_is_left_out() -> None:
    """What was repaired since does not silence the report; the revision in which it was broken counts for nothing, and is named."""
    old, new = Replica(revision="aaaa0000", current=False, weights={"control": 9, "treatment": 1}), Replica()
    simulate([old], 1500, {"control": 0.9, "treatment": 0.1}, seed=11)
    simulate([new], 1200, {"control": 0.3, "treatment": 0.45}, seed=1)
    both, alone = make_report(evidence(old, new)), make_report(evidence(new))
    assert both.verdict == alone.verdict
    assert both.notes[0] == "The sample ratio of revision aaaa0000 was broken, so it is left out."


def test_sticky_heavy_units_break_no_ratio() -> None:
    """Shares of requests that differ because a few units ask very often are no broken ratio."""
    replica = Replica()
    for i in range(600):
        replica.expose(f"u{i}", "control" if i % 2 else "treatment", n=400 if i in (1, 7) else 5)
    report = make_report(evidence(replica))
    ratio = report.revisions[0].sample_ratio
    assert ratio is not None
    assert ratio.design_effect > 20
    assert report.state == "no_data"
    assert report.verdict == "No decision yet: 3,790 requests were assigned, and no outcome of any of them was reported."


def test_unequal_weights_are_the_plan() -> None:
    """Nine to one as planned is no broken ratio; one to one where nine to one was planned is."""
    planned, broken = Replica(weights={"control": 9, "treatment": 1}), Replica(weights={"control": 9, "treatment": 1})
    for i in range(5000):
        planned.expose(f"u{i}", "treatment" if i % 10 == 0 else "control")
        broken.expose(f"u{i}", "treatment" if i % 2 else "control")
    assert make_report(evidence(planned)).state == "no_data"
    assert make_report(evidence(broken)).state == "sample_ratio_broken"


def test_more_errors_are_named_beside_a_gain() -> None:
    """A gain in one and a harm in the other are both said."""
    report = reported(units=2500, better=0.45, error={"treatment": 0.05})
    assert report.state == "mixed"
    assert "treatment is better for clicked by between" in report.verdict.lower()
    assert "treatment is worse for errors by between" in report.verdict


def test_several_outcomes_share_alpha() -> None:
    """Each of two outcomes gets half; naming one beforehand keeps all for it."""
    replica = Replica(metrics={"clicked": {"kind": "binary", "goal": "increase"}, "visits": {"kind": "count", "goal": "increase"}})
    simulate([replica], 300, EVEN, seed=4)
    both, one = make_report(evidence(replica)), make_report(evidence(replica), metric="clicked")
    assert [e.alpha for e in both.effects] == [0.025, 0.025]
    assert [e.alpha for e in one.effects] == [0.05]
    assert both.effects[0].interval.half > one.effects[0].interval.half


def test_numbers_below_zero_are_told_as_they_were_reported() -> None:
    """Sums are kept above the minimum; means are not, and differences never were."""
    replica = Replica(metrics={"delay": {"kind": "number", "min": "-100", "max": "2000", "goal": "decrease"}})
    for i in range(2000):
        arm = "control" if i % 2 else "treatment"
        replica.expose(f"u{i}", arm)
        replica.feedback(f"u{i}", arm, "delay", [100.0 + (i % 7) - (5 if arm == "treatment" else 0)])
    [effect] = make_report(evidence(replica)).effects
    assert effect.control_mean == pytest.approx(3, abs=0.1)
    assert effect.arm_mean == pytest.approx(-2, abs=0.1)
    assert effect.decision == "better"
    assert effect.interval.low < -5 < effect.interval.high


def test_revisions_are_told_apart_and_together() -> None:
    """Two revisions, other weights in each: each has its own interval, and together they know more."""
    old = Replica(revision="aaaa0000", current=False)
    new = Replica(revision="bbbb0000", weights={"control": 1, "treatment": 3})
    simulate([old], 900, {"control": 0.3, "treatment": 0.4}, seed=5)
    rng_units = 900
    for i in range(rng_units):
        arm = "treatment" if i % 4 else "control"
        new.expose(f"n{i}", arm, n=5)
        new.feedback(f"n{i}", arm, "clicked", [1.0] * (i % 3 + (arm == "treatment")) + [0.0] * 3)
    report = make_report(evidence(old, new))
    assert [r.revision.name for r in report.revisions] == ["aaaa0000", "bbbb0000"]
    alone = [r.effects[0] for r in report.revisions]
    assert report.effects[0].interval.half < min(e.interval.half for e in alone)
    assert min(e.interval.estimate for e in alone) <= report.effects[0].interval.estimate <= max(e.interval.estimate for e in alone)
    assert any("combined over revisions" in note for note in report.notes)


def test_what_is_left_out_is_said() -> None:
    """Requests in no arm, and those another arm answered, are notes of the report."""
    replica = Replica()
    replica.expose("u", "control", n=3)
    replica.unassigned("no_unit", 7)
    replica._add("served_total", 2, arm="treatment", served="control")
    notes = make_report(evidence(replica)).notes
    assert "7 requests carried no unit id and are in no arm." in notes
    assert "2 requests assigned to treatment were answered by another arm; they count as treatment's." in notes


def test_the_document_is_plain_json() -> None:
    """No NaN and no infinity, even of an experiment that has just begun."""
    replica = Replica()
    replica.expose("u", "control")
    document = make_report(evidence(replica), looks=[Look(1.0, evidence(replica))]).to_json()
    json.loads(json.dumps(document, allow_nan=False))
    assert document["effects"][0]["low"] is None
    assert document["history"][0]["effects"][0]["n"] == 0


@pytest.mark.parametrize(
    ("seconds", "words"), [(3, "less than a minute"), (700, "about 12 minutes"), (200_000, "about 2 days"), (1e9, "more than a year")]
)
def test_durations(seconds: float, words: str) -> None:
    """Times read as people say them."""
    assert duration(seconds) == words
