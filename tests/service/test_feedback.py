"""Feedback, one item at a time: what is counted, what is refused and why, and that nothing is counted twice."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samegraph_service.experiments.counters import REJECTIONS, Counters, Experiment, Metric
from samegraph_service.experiments.feedback import Feedback, Remembered
from samegraph_service.experiments.prediction_id import NO_BUCKET, Key, PredictionIds, label_hash

MODEL = "flights"
METRICS = {
    "clicked": Metric("clicked", "binary"),
    "visits": Metric("visits", "count", 0.0, 10.0),
    "delay": Metric("delay", "number", -100.0, 2000.0, "decrease"),
    "correct": Metric("correct", "label"),
}


class Scene:
    """One replica that takes feedback, with clocks set by hand."""

    def __init__(self, window_s: float = 3600, entries: int = 1000) -> None:
        self.now = 1_795_000_000.0
        self.ids = PredictionIds((Key(b"k" * 32),), max_age_s=86_400, clock=lambda: self.now)
        self.counters = Counters(lambda: self.now)
        self.counters.install([Experiment(MODEL, "trees", "aaaaaaaa", {"control": 1.0, "treatment": 1.0}, METRICS)])
        self.feedback = Feedback(self.ids, self.counters, Remembered(window_s, entries, lambda: self.now))

    def predicted(self, instances: int = 1, labels: tuple[str, ...] = (), model: str = MODEL, **facts: Any) -> str:
        whole: dict[str, Any] = {"experiment": "trees", "revision": "aaaaaaaa", "arm": "treatment", "bucket": 7} | facts
        return self.ids.sign(self.ids.prefix(model, 2, **whole), instances, [label_hash(label) for label in labels]).decode()

    def outside(self, instances: int = 1, labels: tuple[str, ...] = ()) -> str:
        return self.predicted(instances, labels, experiment="", revision="", arm="", bucket=NO_BUCKET)

    def send(self, prediction_id: str, label: Any = None, **values: Any) -> dict[str, Any]:
        item = {"prediction_id": prediction_id, **({"values": values} if values else {}), **({} if label is None else {"label": label})}
        return self.feedback.take(MODEL, item)

    def refused(self, prediction_id: str, label: Any = None, **values: Any) -> str:
        result = self.send(prediction_id, label, **values)
        assert result["status"] == "rejected", result
        assert len(result["error"]) > 15
        return str(result["reason"])

    def counted(self, metric: str, arm: str = "treatment", revision: str = "aaaaaaaa", bucket: int = 7) -> tuple[int, float, float]:
        """Return n, the sum and the sum of squares above the least."""
        known = self.counters.experiment(MODEL, "trees")
        assert known is not None
        n, total, squares = known.revisions[revision].arm(arm).feedback_of(metric)
        assert (sum(n), sum(total), sum(squares)) == (n[bucket], total[bucket], squares[bucket])
        return n[bucket], total[bucket], squares[bucket]

    def rejected(self, reason: str) -> int:
        return self.counters.rejected.get(MODEL, {}).get(reason, 0)


def test_values_are_counted_for_arm_bucket_and_version() -> None:
    """n, sum and sum of squares above the metric's least; true is 1."""
    scene = Scene()
    assert scene.send(scene.predicted(), clicked=True, visits=3, delay=-40.5) == {
        "status": "accepted",
        "counted": ["clicked", "visits", "delay"],
    }
    scene.send(scene.predicted(), clicked=0, delay=20)
    assert scene.counted("clicked") == (2, 1, 1)
    assert scene.counted("visits") == (1, 3, 9)
    assert scene.counted("delay") == (2, 59.5 + 120, 59.5**2 + 120**2)
    assert scene.counted("delay", arm="control") == (0, 0, 0)
    assert scene.counters.versions[MODEL, 2]["delay"] == [2, 179.5]


def test_a_true_label_is_compared_with_the_answered_one() -> None:
    """Each instance has its own; the metrics of kind `label` and the version count whether it was right."""
    scene = Scene()
    first = scene.predicted(2, ("late", "on time"))
    assert scene.send(f"{first}.0", label="late")["counted"] == ["label", "correct"]
    scene.send(f"{first}.1", label="late")
    assert scene.counted("correct") == (2, 1, 1)
    assert scene.counters.versions[MODEL, 2]["label"] == [2, 1.0]
    assert set(scene.counters.versions[MODEL, 2]) == {"label"}


def test_a_label_that_cannot_be_compared_is_refused() -> None:
    """Of many instances, of a model without labels, or of nobody knows which instance."""
    scene = Scene()
    assert scene.refused(scene.predicted(17) + ".3", label="late") == "label_unchecked"
    assert scene.refused(scene.predicted(), label="late") == "label_unchecked"
    assert scene.refused(scene.predicted(2, ("late", "late")), label="late") == "label_unchecked"
    assert scene.rejected("label_unchecked") == 3


def test_outside_of_experiments_the_version_counts() -> None:
    """Pinned and unassigned predictions belong to no arm; they still say how good a version is."""
    scene = Scene()
    assert scene.send(scene.outside(1, ("late",)), label="late", clicked=1)["counted"] == ["clicked", "label"]
    assert scene.counted("clicked") == scene.counted("correct") == (0, 0, 0)
    assert scene.counters.versions[MODEL, 2] == {"clicked": [1, 1.0], "label": [1, 1.0]}
    scene.counters.install([])
    assert scene.refused(scene.outside(), clicked=1) == "unknown_metric"
    assert scene.send(scene.outside(1, ("late",)), label="on time")["counted"] == ["label"]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"clicked": 2}, "out_of_range"),
        ({"clicked": 0.5}, "out_of_range"),
        ({"clicked": "yes"}, "wrong_type"),
        ({"clicked": None}, "wrong_type"),
        ({"visits": -1}, "out_of_range"),
        ({"visits": 11}, "out_of_range"),
        ({"visits": 1.5}, "out_of_range"),
        ({"visits": True}, "wrong_type"),
        ({"delay": -100.1}, "out_of_range"),
        ({"delay": 10**400}, "out_of_range"),
        ({"visits": 10**5000}, "out_of_range"),
        ({"delay": [1]}, "wrong_type"),
        ({"correct": 1}, "wrong_type"),
        ({"bounced": 1}, "unknown_metric"),
    ],
    ids=lambda given: given if isinstance(given, str) else next(iter(given)),
)
def test_a_value_that_cannot_be_is_refused(values: dict[str, Any], reason: str) -> None:
    """The result names the metric; nothing of the item is counted, and it may be sent again as it should be."""
    scene = Scene()
    prediction_id = scene.predicted()
    result = scene.send(prediction_id, clicked=1, **values) if "clicked" not in values else scene.send(prediction_id, **values)
    assert (result["status"], result["reason"]) == ("rejected", reason)
    assert result["metric"] == next(iter(values))
    assert scene.rejected(reason) == 1
    assert scene.counted("clicked") == (0, 0, 0)
    assert scene.send(prediction_id, clicked=1)["status"] == "accepted"


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (7, "malformed"),
        ({}, "malformed"),
        ({"prediction_id": 7, "values": {"clicked": 1}}, "malformed"),
        ({"prediction_id": "ID", "values": [1]}, "malformed"),
        ({"prediction_id": "ID", "value": {"clicked": 1}}, "malformed"),
        ({"prediction_id": "ID", "values": {"clicked": 1}, "feedback_id": "x" * 129}, "malformed"),
        ({"prediction_id": "ID"}, "no_values"),
        ({"prediction_id": "ID", "values": {}}, "no_values"),
        ({"prediction_id": "ID", "label": ["late"]}, "wrong_type"),
        ({"prediction_id": "ID", "label": "x" * 1025}, "wrong_type"),
        ({"prediction_id": "ID", "label": 10**5000}, "wrong_type"),
        ({"prediction_id": "70cc3d-1f", "values": {"clicked": 1}}, "malformed"),
    ],
    ids=[
        "number", "empty", "id-no-text", "values-no-object", "unknown-member", "long-feedback-id", "no-values", "empty-values",
        "label-list", "label-long", "label-huge", "unsigned-id",
    ],
)  # fmt: skip
def test_an_item_of_another_shape_is_refused(item: Any, reason: str) -> None:
    """It says what an item has."""
    scene = Scene()
    if isinstance(item, dict) and item.get("prediction_id") == "ID":
        item = {**item, "prediction_id": scene.predicted()}
    result = scene.feedback.take(MODEL, item)
    assert (result["status"], result["reason"]) == ("rejected", reason)
    assert scene.rejected(reason) == 1


def test_ids_that_are_refused_are_counted_by_reason() -> None:
    """Late, of the future, forged, of another model, of no instance, of no experiment and of an old revision."""
    scene = Scene()
    old = scene.predicted()
    scene.now += 2 * 86_400
    assert scene.refused(old, clicked=1) == "late"
    future = scene.predicted()
    scene.now -= 3600
    assert scene.refused(future, clicked=1) == "future"
    assert scene.refused("A" * 88, clicked=1) == "forged"
    assert scene.refused(scene.predicted(model="penguins"), clicked=1) == "wrong_model"
    assert scene.refused(scene.predicted(2) + ".2", clicked=1) == "unknown_instance"
    assert scene.refused(scene.predicted(experiment="gone"), clicked=1) == "unknown_experiment"
    known = scene.counters.experiment(MODEL, "trees")
    assert known is not None
    early = scene.predicted(revision="00000000")
    scene.now += 600
    scene.counters.install([Experiment(MODEL, "trees", "bbbbbbbb", {"control": 1.0, "treatment": 1.0}, METRICS)])
    assert scene.refused(early, clicked=1) == "unknown_revision"
    counted = {reason: n for reason, n in scene.counters.rejected[MODEL].items() if n}
    assert counted == dict.fromkeys(
        ("late", "future", "forged", "wrong_model", "unknown_instance", "unknown_experiment", "unknown_revision"), 1
    )
    assert set(counted) < set(REJECTIONS)


def test_feedback_for_the_revision_before_and_after_is_counted() -> None:
    """Outcomes come late, and replicas take a change a few seconds apart."""
    scene = Scene()
    before = scene.predicted()
    scene.counters.install([Experiment(MODEL, "trees", "bbbbbbbb", {"control": 1.0, "treatment": 9.0}, METRICS)])
    scene.send(before, clicked=1)
    assert scene.counted("clicked", revision="aaaaaaaa") == (1, 1, 1)
    scene.now += 120
    scene.send(scene.predicted(revision="cccccccc"), clicked=1)
    assert scene.counted("clicked", revision="cccccccc") == (1, 1, 1)


def test_what_was_counted_is_not_counted_again() -> None:
    """A repeat is told so; new metrics beside it count; another instance is another prediction."""
    scene = Scene()
    prediction_id = scene.predicted(2)
    scene.send(f"{prediction_id}.0", clicked=1)
    assert scene.refused(f"{prediction_id}.0", clicked=1) == "duplicate"
    assert scene.refused(f"{prediction_id}.0", clicked=0) == "duplicate"
    assert scene.send(f"{prediction_id}.0", clicked=1, visits=2) == {"status": "accepted", "counted": ["visits"], "repeated": ["clicked"]}
    assert scene.send(f"{prediction_id}.1", clicked=1)["status"] == "accepted"
    assert scene.send(prediction_id, clicked=1)["status"] == "accepted"
    assert scene.counted("clicked") == (3, 3, 3)
    assert scene.rejected("duplicate") == 3
    single = scene.predicted()
    scene.send(single, clicked=1)
    assert scene.refused(f"{single}.0", clicked=1) == "duplicate"


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["clicked", "visits"])), max_size=60))
def test_any_order_and_number_of_repeats_counts_each_once(sent: list[tuple[int, str]]) -> None:
    """However often and in whatever order a caller repeats himself, the counts are those of each value once."""
    scene = Scene()
    ids = [scene.predicted() for _ in range(10)]
    for which, metric in sent:
        scene.send(ids[which], **{metric: 1})
    once = set(sent)
    for metric in ("clicked", "visits"):
        n = sum(m == metric for _, m in once)
        assert scene.counted(metric) == (n, n, n)
    assert scene.rejected("duplicate") == len(sent) - len(once)


def test_the_memory_is_bounded_in_time_and_number() -> None:
    """Beyond the window, or when too many came since, a repeat counts again; what was forgotten early is counted."""
    scene = Scene(window_s=60, entries=100)
    prediction_id = scene.predicted()
    scene.send(prediction_id, clicked=1)
    scene.now += 59
    assert scene.refused(prediction_id, clicked=1) == "duplicate"
    scene.now += 1
    assert scene.send(prediction_id, clicked=1)["status"] == "accepted"
    assert len(scene.feedback.remembered) == 1
    assert scene.counters.forgotten == 0
    for _ in range(100):
        scene.send(scene.predicted(), clicked=1)
    assert len(scene.feedback.remembered) == 100
    assert scene.counters.forgotten == 1
    assert scene.send(prediction_id, clicked=1)["status"] == "accepted"


def test_a_memory_without_room_remembers_nothing() -> None:
    """It can be switched off."""
    scene = Scene(entries=0)
    prediction_id = scene.predicted()
    assert [scene.send(prediction_id, clicked=1)["status"] for _ in range(2)] == ["accepted"] * 2
    assert len(scene.feedback.remembered) == 0


def test_the_callers_own_id_comes_back() -> None:
    """Whatever became of the item."""
    scene = Scene()
    item = {"prediction_id": scene.predicted(), "values": {"clicked": 1}, "feedback_id": "order-17"}
    assert [scene.feedback.take(MODEL, item)["feedback_id"] for _ in range(2)] == ["order-17"] * 2
