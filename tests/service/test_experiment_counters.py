"""Counts about experiments: they add up over replicas, keep two revisions, and are bounded in what they export."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families
from samegraph_service.experiments.counters import KEPT_EXPERIMENTS, KEPT_VERSIONS, REJECTIONS, Counters, Experiment, Metric
from samegraph_service.experiments.exposition import ExperimentExposition

METRICS = {
    "clicked": Metric("clicked", "binary"),
    "delay": Metric("delay", "number", -100.0, 2000.0, "decrease"),
}
Sample = tuple[str, frozenset[tuple[str, str]]]


def experiment(
    revision: str = "aaaaaaaa", name: str = "trees", arms: Mapping[str, float] | None = None, slow_s: float = 0.25
) -> Experiment:
    return Experiment("flights", name, revision, arms or {"control": 1.0, "treatment": 3.0}, METRICS, slow_s)


class Replica:
    """One replica's counts and what it exports."""

    def __init__(self, max_series: int = 20_000) -> None:
        self.minutes = 100.0
        self.counters = Counters(lambda: self.minutes * 60)
        self.withdrawn: set[str] = set()
        self.exposition = ExperimentExposition(self.counters, lambda _model, _name, arm: arm in self.withdrawn, max_series)

    def text(self) -> str:
        return "".join(self.exposition.write(openmetrics=False))

    def samples(self) -> dict[Sample, float]:
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.text())
            for sample in family.samples
        }

    def total(self, name: str, **labels: str) -> float:
        return sum(v for (n, own), v in self.samples().items() if n == name and labels.items() <= dict(own).items())

    def revisions(self) -> dict[str, str]:
        """Return revision → whether it is current."""
        info = [dict(own) for name, own in self.samples() if name == "samegraph_experiment_info"]
        return {own["revision"]: own["current"] for own in info}


def test_sums_over_replicas_are_those_of_a_recount() -> None:
    """Three replicas, 6,000 requests of units in 64 buckets and 3,000 values: each sum equals a recount of all of them, exactly."""
    rng = random.Random(3)
    replicas = [Replica() for _ in range(3)]
    for replica in replicas:
        replica.counters.install([experiment()])
    expected: Counter[Sample] = Counter()

    def counted(name: str, by: float, **labels: str) -> None:
        expected[
            "samegraph_experiment_" + name, frozenset({"model": "flights", "experiment": "trees", "revision": "aaaaaaaa", **labels}.items())
        ] += by  # type: ignore[assignment]

    for _ in range(6000):
        counters = rng.choice(replicas).counters
        arm, bucket = rng.choice(("control", "treatment")), rng.randrange(64)
        reason = rng.choice(("", "", "", "", "no_unit", "not_enrolled", "pinned"))
        served = arm if rng.random() < 0.9 else "control"
        seconds = rng.choice((0.125, 0.5))
        tally = counters.tally("flights", "trees", "aaaaaaaa", arm=arm, served=served, bucket=bucket, reason=reason)
        failed = rng.random() < 0.1
        (tally.failed if failed else tally.answered)(seconds)
        if reason:
            counted("unassigned_total", 1, reason=reason)
            continue
        own = {"arm": arm, "bucket": str(bucket)}
        counted("exposures_total", 1, **own)
        counted("errors_total", failed, **own)
        counted("slow_total", seconds > 0.25, **own)
        counted("served_total", 1, arm=arm, served=served)
        counted("duration_seconds_count", 1, arm=arm)
        counted("duration_seconds_sum", seconds, arm=arm)
    for _ in range(3000):
        counters = rng.choice(replicas).counters
        arm, bucket, above = rng.choice(("control", "treatment")), rng.randrange(64), float(rng.randrange(2000))
        known = counters.experiment("flights", "trees")
        assert known is not None
        counters.value(known.revisions["aaaaaaaa"], arm, "delay", bucket, above)
        own = {"arm": arm, "metric": "delay", "bucket": str(bucket)}
        counted("feedback_total", 1, **own)
        counted("feedback_value_sum_total", above, **own)
        counted("feedback_value_sumsq_total", above * above, **own)
    summed: Counter[Sample] = Counter()
    for replica in replicas:
        summed.update(replica.samples())
    names = {name for name, _ in expected}
    assert len(names) == 10
    assert {k: v for k, v in summed.items() if k[0] in names and v} == {k: v for k, v in expected.items() if v}


def test_series_are_there_before_the_first_event() -> None:
    """Prometheus sees no increase in a series that begins with its first event."""
    replica = Replica()
    replica.counters.expect("flights")
    replica.counters.expect_version("flights", 2, ["label"])
    replica.counters.install([experiment()])
    samples = replica.samples()
    count = Counter(name for name, _ in samples)
    assert count["samegraph_experiment_exposures_total"] == count["samegraph_experiment_errors_total"] == 2 * 64
    assert count["samegraph_experiment_slow_total"] == 2 * 64
    assert count["samegraph_experiment_feedback_total"] == count["samegraph_experiment_feedback_value_sumsq_total"] == 2 * 2 * 64
    assert count["samegraph_experiment_served_total"] == 4
    assert count["samegraph_experiment_feedback_rejected_total"] == len(REJECTIONS)
    assert replica.total("samegraph_experiment_arm_weight", arm="treatment") == 3
    assert replica.total("samegraph_experiment_metric_info", metric="delay", kind="number", min="-100", max="2000", goal="decrease") == 1
    assert count["samegraph_version_feedback_total"] == 1
    exported = {n: v for (n, own), v in samples.items() if ("kind", "exported") in own and n == "samegraph_experiment_series"}
    uncapped = ("samegraph_experiment_withdrawn", "samegraph_experiment_series", "samegraph_feedback_forgotten_total")
    own_lines = sum(count.values()) - sum(count[name] for name in uncapped)
    assert exported["samegraph_experiment_series"] == own_lines
    before = set(samples)
    replica.counters.tally("flights", "trees", "aaaaaaaa", arm="control", served="treatment", bucket=5, reason="").failed(1.0)
    known = replica.counters.experiment("flights", "trees")
    assert known is not None
    replica.counters.value(known.revisions["aaaaaaaa"], "control", "clicked", 5, 1.0)
    replica.counters.reject("flights", "late")
    replica.counters.version_value("flights", 2, "label", 1.0)
    assert set(replica.samples()) == before


def test_both_formats_parse() -> None:
    """The strict parser of OpenMetrics takes every line."""
    replica = Replica()
    replica.counters.install([experiment()])
    replica.counters.tally("flights", "trees", "aaaaaaaa", arm="control", served="default", bucket=5, reason="").answered(0.1)
    families = {
        f.name: f
        for f in openmetrics_families(  # type: ignore[no-untyped-call]
            "".join(replica.exposition.write(openmetrics=True)) + "# EOF\n"
        )
    }
    assert families["samegraph_experiment_exposures"].type == "counter"
    assert families["samegraph_experiment_duration_seconds"].type == "histogram"
    assert replica.total("samegraph_experiment_served_total", arm="control", served="default") == 1


def test_nothing_is_exported_about_no_experiments() -> None:
    """A server without a routing file has not one line more."""
    assert Replica().text() == ""


def test_the_last_two_revisions_are_kept() -> None:
    """What was counted before a change stays beside what is counted since; a third change lets the first go."""
    replica = Replica()
    for revision in ("aaaaaaaa", "bbbbbbbb", "cccccccc"):
        replica.counters.install([experiment(revision)])
        replica.counters.tally("flights", "trees", revision, arm="control", served="control", bucket=1, reason="").answered(0.1)
    assert replica.revisions() == {"bbbbbbbb": "false", "cccccccc": "true"}
    assert replica.total("samegraph_experiment_exposures_total", revision="bbbbbbbb") == 1
    replica.counters.install([experiment("bbbbbbbb")])
    assert replica.revisions() == {"cccccccc": "false", "bbbbbbbb": "true"}
    assert replica.total("samegraph_experiment_exposures_total", revision="bbbbbbbb") == 1
    replica.counters.install([])
    assert replica.revisions() == {"cccccccc": "false", "bbbbbbbb": "false"}


def test_a_request_in_flight_while_the_routes_changed_is_counted_where_it_belongs() -> None:
    """Its assignment keeps its revision; one whose revision is gone costs nothing and breaks nothing."""
    replica = Replica()
    replica.counters.install([experiment("aaaaaaaa")])
    tally = replica.counters.tally("flights", "trees", "aaaaaaaa", arm="control", served="control", bucket=1, reason="")
    replica.counters.install([experiment("bbbbbbbb")])
    tally.answered(0.1)
    assert replica.total("samegraph_experiment_exposures_total", revision="aaaaaaaa") == 1
    replica.counters.install([experiment("cccccccc")])
    tally.answered(0.1)
    replica.counters.tally("flights", "trees", "aaaaaaaa", arm="control", served="control", bucket=1, reason="").answered(0.1)
    assert replica.total("samegraph_experiment_exposures_total") == 0


def test_a_revision_that_only_feedback_tells_of_is_taken_in() -> None:
    """A replica that started after a change, or is behind one, counts feedback for the other revision; an older one is refused."""
    replica = Replica()
    replica.counters.install([experiment("cccccccc")])
    known = replica.counters.experiment("flights", "trees")
    assert known is not None
    told = known.told_by("bbbbbbbb", 90)
    assert told is not None
    replica.counters.value(told, "treatment", "clicked", 3, 1.0)
    assert known.told_by("aaaaaaaa", 80) is None
    assert known.told_by("bbbbbbbb", 70) is told
    assert replica.total("samegraph_experiment_feedback_total", revision="bbbbbbbb", arm="treatment", bucket="3") == 1
    younger = known.told_by("dddddddd", 99)
    assert younger is not None
    replica.counters.value(younger, "treatment", "clicked", 3, 1.0)
    assert replica.revisions() == {"dddddddd": "false", "cccccccc": "true"}
    replica.counters.install([experiment("dddddddd")])
    assert replica.total("samegraph_experiment_feedback_total", revision="dddddddd") == 1
    assert replica.revisions() == {"cccccccc": "false", "dddddddd": "true"}


def test_what_is_exported_has_a_cap_that_can_be_seen() -> None:
    """The revision before is left out first, and the number of what is left out is told; what is counted stays."""
    roomy = Replica()
    capped = Replica(max_series=1300)
    for replica in (roomy, capped):
        for revision in ("aaaaaaaa", "bbbbbbbb"):
            replica.counters.install([experiment(revision)])
            replica.counters.tally("flights", "trees", revision, arm="control", served="control", bucket=1, reason="").answered(0.1)
    assert roomy.total("samegraph_experiment_series", kind="capped") == 0
    assert capped.total("samegraph_experiment_exposures_total", revision="bbbbbbbb") == 1
    assert capped.total("samegraph_experiment_exposures_total", revision="aaaaaaaa") == 0
    left_out = capped.total("samegraph_experiment_series", kind="capped")
    assert left_out > 0
    assert left_out + capped.total("samegraph_experiment_series", kind="exported") == roomy.total(
        "samegraph_experiment_series", kind="exported"
    )
    assert len(capped.samples()) <= 1300 + 2 + 2


def test_experiments_and_versions_are_bounded() -> None:
    """Whoever renames his experiment every day, or trains every hour, has a bounded number of each."""
    replica = Replica()
    for i in range(3 * KEPT_EXPERIMENTS):
        replica.counters.install([experiment(name=f"day-{i}")])
    assert len(replica.counters.experiments) <= KEPT_EXPERIMENTS
    assert replica.counters.experiments["flights", f"day-{3 * KEPT_EXPERIMENTS - 1}"].current
    for version in range(1, 3 * KEPT_VERSIONS):
        replica.counters.version_value("flights", version, "label", 1.0)
    assert len(replica.counters.versions) == KEPT_VERSIONS
    assert min(version for _, version in replica.counters.versions) == 2 * KEPT_VERSIONS


def test_withdrawals_are_told() -> None:
    """One while an arm is withdrawn here, for every arm in force."""
    replica = Replica()
    replica.counters.install([experiment()])
    assert replica.total("samegraph_experiment_withdrawn") == 0
    replica.withdrawn.add("treatment")
    assert replica.total("samegraph_experiment_withdrawn", arm="treatment") == 1


@pytest.mark.parametrize("slow_s", [0.25, math.inf])
def test_slow_answers_are_told_only_where_slow_is_defined(slow_s: float) -> None:
    """Without slo_ms there is nothing to count."""
    replica = Replica()
    replica.counters.install([experiment(slow_s=slow_s)])
    replica.counters.tally("flights", "trees", "aaaaaaaa", arm="control", served="control", bucket=1, reason="").answered(0.3)
    assert ("samegraph_experiment_slow_total" in replica.text()) == (slow_s < 1)
    assert replica.total("samegraph_experiment_slow_total") == (1 if slow_s < 1 else 0)
