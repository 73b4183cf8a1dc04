"""Known ways in which served trees differ from trained ones, each shown to be real and then absent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from onnx.reference import ReferenceEvaluator
from samegraph_transforms.draft import PackageDraft
from samegraph_transforms.executor import OrtExecutor
from samegraph_transforms.signature import Signature
from samegraph_transforms.tabular import capture, from_sklearn, rows_of
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from training.parity import compare_with_training, make_frame, make_target, manifest_of, run_package

ROWS = 6000


def make_flights(n: int = ROWS, seed: int = 3) -> tuple[pd.DataFrame, np.ndarray]:
    """Return rows like flights, with a class that depends on them: integers with many ties, decimals of one digit, and an
    altimeter setting in pascal, whose second decimal float32 cannot hold.
    """
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "month": rng.integers(1, 13, n),
            "hour": rng.integers(5, 24, n),
            "minute": rng.integers(0, 60, n),
            "distance": rng.choice(rng.integers(80, 4983, 200), n),
            "temp": rng.normal(55, 18, n).round(1),
            "pressure": 101_700 + rng.integers(0, 60, n) / 100,
        }
    )
    setting = (frame["pressure"] * 50).round() % 3
    late = (frame["hour"] - 14) / 5 + (frame["temp"] - 55) / 30 + setting + rng.normal(size=n) > 1.3
    return frame, np.where(late, "late", "on time")


@pytest.mark.parametrize(
    "model",
    [RandomForestClassifier(60, random_state=0, n_jobs=1), GradientBoostingClassifier(n_estimators=60, max_depth=5, random_state=0)],
    ids=["forest", "boosting"],
)
def test_scaler_before_trees_flips_no_label(model: Any) -> None:
    """Scaled in float64, no label of 6,000 changes; scaled in float32, as converters do, some do."""
    frame, target = make_flights()
    pipeline = Pipeline([("scale", StandardScaler()), ("model", model)]).fit(frame, target)
    draft = from_sklearn(pipeline, frame, name="trap", version=1)
    answers = run_package(draft, rows_of(pipeline, frame, frame))
    expected = pipeline.predict_proba(frame)
    assert (answers["label"] == pipeline.predict(frame)).all()
    assert np.abs(answers["probability"] - expected).max() < 1e-15
    scaler = pipeline.named_steps["scale"]
    in_float32 = (frame.to_numpy(np.float32) - scaler.mean_.astype(np.float32)) / scaler.scale_.astype(np.float32)
    assert (model.predict(in_float32) != pipeline.predict(frame)).any(), "these rows do not show the trap"


def test_values_between_two_float32_take_the_trained_branch() -> None:
    """Trees compare the float32 rounding of a value with a double threshold: values within one float32 step follow training."""
    frame, target = make_flights(1500)
    model = RandomForestClassifier(10, random_state=0).fit(frame, target)
    thresholds = np.unique(np.concatenate([t.tree_.threshold[t.tree_.feature == 4] for t in model.estimators_]))[:300]
    steps = [s * np.spacing(np.float32(t)) for t in thresholds for s in (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0)]
    rows = pd.concat([frame.iloc[[0]]] * len(steps), ignore_index=True).assign(temp=np.repeat(thresholds, 7) + steps)
    draft = from_sklearn(model, frame, name="edges", version=1)
    np.testing.assert_array_equal(run_package(draft, rows_of(model, frame, rows))["probability"], model.predict_proba(rows))


def test_thresholds_of_histogram_boosting_are_met_exactly() -> None:
    """Histogram boosting compares in float64: a value on its threshold, and its neighbours, follow training."""
    frame, target = make_flights(3000)
    model = HistGradientBoostingClassifier(max_iter=20, random_state=0).fit(frame, target)
    nodes = np.concatenate([p.nodes for stage in model._predictors for p in stage])
    thresholds = np.unique(nodes["num_threshold"][(nodes["feature_idx"] == 4) & (nodes["is_leaf"] == 0)])
    around = np.concatenate([thresholds, np.nextafter(thresholds, np.inf), np.nextafter(thresholds, -np.inf)])
    rows = pd.concat([frame.iloc[[0]]] * len(around), ignore_index=True).assign(temp=around)
    draft = from_sklearn(model, frame, name="edges", version=1)
    actual = run_package(draft, rows_of(model, frame, rows))
    assert (actual["label"] == model.predict(rows)).all()
    assert np.abs(actual["probability"] - model.predict_proba(rows)).max() < 1e-15


def test_probability_far_from_one_half_keeps_its_digits() -> None:
    """ONNX Runtime's Sigmoid returns noise for scores far below zero; the written-out logistic function does not."""
    frame = pd.DataFrame({"x": np.linspace(-60, 60, 200)})
    model = LogisticRegression(C=1e6, max_iter=5000).fit(frame, np.where(frame["x"] > 1, "b", "a"))
    small = pd.DataFrame({"x": np.linspace(-14, -1, 50)})
    draft = from_sklearn(model, frame, name="tails", version=1)
    actual = run_package(draft, rows_of(model, frame, small))["probability"][:, 1]
    expected = model.predict_proba(small)[:, 1]
    assert expected.min() < 1e-12
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("n", [1, 5], ids=["one-row", "some-rows"])
def test_graphs_mean_the_same_to_an_independent_evaluator(n: int) -> None:
    """onnx.reference, which shares no code with ONNX Runtime, computes the same features, labels and scores, sets included."""
    frame = make_frame(1200).astype({"colour": "category", "town": "category"})
    target = make_target(frame.astype({"colour": "str"}), ["no", "yes"])
    boosted = HistGradientBoostingClassifier(max_iter=8, min_samples_leaf=5, random_state=0).fit(frame, target)
    columns = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(add_indicator=True), StandardScaler()), ["amount", "height", "count"]),
            ("strings", make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")), ["colour", "town"]),
        ]
    )
    linear = Pipeline([("columns", columns), ("model", LogisticRegression(max_iter=2000))])
    plain = make_frame(1200)
    for pipeline, data in ((boosted, frame), (linear.fit(plain, target), plain)):
        draft = from_sklearn(pipeline, data, name="reference", version=1)
        for sample in capture(pipeline, data, data.iloc[: 8 * n], draft=draft, rows_per_request=n):
            values = _inputs(draft, sample.body)
            for stage in draft.stages:
                feeds = {i.name: values[i.name] for i in stage.model.graph.input}
                names = [o.name for o in stage.model.graph.output]
                independent = dict(zip(names, ReferenceEvaluator(stage.model).run(None, feeds), strict=True))
                served = dict(zip(names, OrtExecutor(stage.model).run(feeds), strict=True))
                for name, array in independent.items():
                    if array.dtype.kind == "f":
                        np.testing.assert_allclose(array, served[name], rtol=1e-13, atol=0)
                    else:
                        np.testing.assert_array_equal(array, served[name])
                values.update(served)


def _inputs(draft: PackageDraft, body: bytes) -> dict[str, np.ndarray]:
    signature = Signature(manifest_of(draft))
    rows = signature.decode_rows(body)
    assert rows is not None
    return signature.columns(rows)


def test_many_rows_agree_with_training() -> None:
    """A frame of 1,500 rows through a mixed pipeline: nothing but last bits differs."""
    frame = make_frame(1500, seed=11)
    columns = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), ["amount", "height", "count"]),
            ("strings", OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=40), ["colour", "town"]),
        ]
    )
    pipeline = Pipeline([("columns", columns), ("model", LogisticRegression(max_iter=2000))]).fit(
        frame, make_target(frame, ["a", "b", "c"])
    )
    result = compare_with_training(pipeline, frame, extra=rows_of(pipeline, frame, frame))
    result.assert_exact()
    assert result.comparisons["probability"].max_abs < 1e-14
