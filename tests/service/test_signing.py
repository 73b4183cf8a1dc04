"""Which label an answer's id carries, for every shape of output a model can have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from samegraph_service.batching import Outputs, Part
from samegraph_service.call import Answer, Origin
from samegraph_service.errors import ExecutionFailed
from samegraph_service.experiments.assignment import Assignment
from samegraph_service.experiments.prediction_id import KEY_BYTES, LABELLED_INSTANCES, NO_BUCKET, Key, Prediction, PredictionIds
from samegraph_service.experiments.signing import AnswerSigner, label_place
from samegraph_transforms.manifest import Output

SCORE = Output(name="score", dtype="float32", shape=[2])


def output(dtype: Any, shape: list[int | None] | None = None, decided_by: str | None = "score") -> Output:
    return Output(name="label", dtype=dtype, shape=shape or [], decided_by=decided_by)


def signed(outputs: list[Output], labels: np.ndarray, n: int, errors: Any = None, assignment: Assignment | None = None) -> list[Prediction]:
    """Return what the ids of an answer's instances say; its rows stand behind others in the execution, in two parts where there are two."""
    ids = PredictionIds((Key(bytes(KEY_BYTES)),), max_age_s=60)
    gave = Outputs([labels, np.zeros((len(labels), 2), np.float32)])
    first = n // 2
    parts = [Part(0, first, gave, 1), Part(first, n - first, gave, 1 + first)] if first else [Part(0, n, gave, 1)]
    text = AnswerSigner(ids)(Answer(Origin("m", 3, "digest", outputs), "r", "r", parts, n, errors or {}, assignment=assignment))
    return [ids.read(f"{text}.{i}", "m") for i in range(n)]


@pytest.mark.parametrize(
    ("declared", "labels", "right"),
    [
        (output("string"), np.array(["other", "late", "on time", "late"], object), ["late", "on time", "late"]),
        (output("int64"), np.array([9, 3, 4, 5]), [3, 4.0, "5"]),
        (output("bool"), np.array([False, True, False, True]), [True, False, "true"]),
        (output("string", [2]), np.array([["x", "y"], ["late", "z"], ["b", "c"], ["d", "e"]], object), ["late", "b", "d"]),
        (output("int64", [1]), np.array([[9], [3], [4], [5]]), [3, 4, 5]),
        (output("string", decided_by=None), np.array(["", "a", "b", "c"], object), ["a", "b", "c"]),
    ],
    ids=["text", "class-number", "boolean", "ranking", "column", "text-of-nobody"],
)
def test_each_instance_has_its_own_label(declared: Output, labels: np.ndarray, right: list[object]) -> None:
    """Alone and among others, wherever in an execution its row was."""
    for n in (1, 3):
        for prediction, label in zip(signed([declared, SCORE], labels, n), right, strict=False):
            assert prediction.answered(label) is True
            assert prediction.answered("another") is False
            assert (prediction.version, prediction.bucket) == (3, NO_BUCKET)


def test_where_there_is_no_label_there_is_none() -> None:
    """Numbers alone, empty rankings, more instances than are carried, and partial answers."""
    texts = np.array(["a"] * 40, object)
    cases = [
        ([output("float32", decided_by=None), SCORE], np.zeros(40, np.float32), 2, None),
        ([output("string", [None]), SCORE], np.empty((40, 0), object), 2, None),
        ([output("string"), SCORE], texts, LABELLED_INSTANCES + 1, None),
        ([output("string"), SCORE], texts, 2, {1: ExecutionFailed(1)}),
    ]
    for outputs, labels, n, errors in cases:
        assert [prediction.answered("a") for prediction in signed(outputs, labels, n, errors)] == [None] * n
    assert [prediction.answered("a") for prediction in signed([output("string"), SCORE], texts, LABELLED_INSTANCES)] == [True] * 16


def test_the_label_is_what_another_output_decides_before_any_text() -> None:
    """A model may give a remark beside its label; matrices are no labels."""
    remark = Output(name="remark", dtype="string")
    assert label_place([remark, output("int64")]) == 1
    assert label_place([SCORE, remark]) == 1
    assert label_place([SCORE, output("string", [2, 2])]) is None


@pytest.mark.parametrize("reason", ["", "no_unit", "pinned"])
def test_only_what_counts_for_an_arm_names_it(reason: Any) -> None:
    """Feedback for a request that was not assigned counts for its version alone."""
    assignment = Assignment("m", "e", "0a1b2c3d", arm="treatment", served_arm="treatment", served_version=3, bucket=5, reason=reason)
    (prediction,) = signed([output("string"), SCORE], np.array(["a", "b"], object), 1, assignment=assignment)
    found = (prediction.experiment, prediction.revision, prediction.arm, prediction.bucket)
    assert found == (("", "", "", NO_BUCKET) if reason else ("e", "0a1b2c3d", "treatment", 5))
    assert prediction.answered("b") is True
