"""What has no exact graph is refused by its path in the pipeline, never approximated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from samegraph_transforms.errors import UnsupportedStep
from samegraph_transforms.tabular import from_sklearn
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.ensemble import AdaBoostClassifier, GradientBoostingClassifier, RandomForestRegressor
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfTransformer, TfidfVectorizer
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    OneHotEncoder,
    SplineTransformer,
    StandardScaler,
)
from training.parity import make_frame, make_target, make_value

FRAME = make_frame()


class Doubling(StandardScaler):  # type: ignore[misc]  # scikit-learn ships no types
    """A subclass may compute anything."""

    def transform(self, X: Any, copy: bool | None = None) -> Any:
        """Scale twice as far."""
        return 2 * super().transform(X, copy)


@pytest.mark.parametrize(
    ("step", "columns", "words"),
    [
        (KNNImputer(), ["amount", "height"], "KNNImputer"),
        (Doubling(), ["height"], "Doubling"),
        (FunctionTransformer(np.cbrt), ["height"], "cbrt"),
        (SplineTransformer(), ["height"], "SplineTransformer"),
        (OneHotEncoder(dtype=np.float32), ["count"], "float32"),
        (make_pipeline(StandardScaler(), OneHotEncoder()), ["count"], "handle_unknown='error'"),
        (CountVectorizer(tokenizer=str.split, token_pattern=None), "town", "tokenizer=split is Python code"),
        (CountVectorizer(preprocessor=str.strip), "town", "preprocessor=strip is Python code"),
        (TfidfVectorizer(analyzer=str.split), "town", "analyzer=split is Python code"),
        (TfidfVectorizer(strip_accents=str.strip), "town", "strip_accents=strip is Python code"),
        (CountVectorizer(token_pattern=r"(?:[a-z]+)+\d|town"), "town", "can take seconds"),
        (TfidfVectorizer(dtype=np.float32), "town", "float32"),
        (CountVectorizer(dtype=np.float32), "town", "float32"),
        (
            make_pipeline(HashingVectorizer(n_features=16, alternate_sign=False), TfidfTransformer(sublinear_tf=True)),
            "town",
            "sublinear_tf",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_step_without_exact_graph_is_named_by_path(step: Any, columns: list[str] | str, words: str) -> None:
    """The error carries the step's path and says what it is."""
    pipeline = Pipeline([("columns", ColumnTransformer([("odd", step, columns)])), ("model", LinearRegression())])
    pipeline.fit(FRAME, make_value(FRAME))
    with pytest.raises(UnsupportedStep) as caught:
        from_sklearn(pipeline, FRAME, name="odd", version=1)
    assert caught.value.step.startswith("columns.odd")
    assert words in str(caught.value)


def test_message_lists_what_is_supported() -> None:
    """A trainer learns at once what he could use."""
    pipeline = make_pipeline(KNNImputer(), LinearRegression()).fit(FRAME[["height"]], make_value(FRAME))
    with pytest.raises(UnsupportedStep, match="supported are Binarizer, ColumnTransformer, CountVectorizer"):
        from_sklearn(pipeline, FRAME[["height"]], name="odd", version=1)


def two_targets() -> np.ndarray:
    """Return two targets a row."""
    return np.stack([make_value(FRAME), make_value(FRAME, seed=2)], axis=1)


@pytest.mark.parametrize(
    ("model", "target", "words"),
    [
        (QuadraticDiscriminantAnalysis(), make_target(FRAME, [0, 1]), "QuadraticDiscriminantAnalysis"),
        (CalibratedClassifierCV(AdaBoostClassifier(), cv=2), make_target(FRAME, [0, 1]), "AdaBoostClassifier"),
        (TransformedTargetRegressor(LinearRegression(), func=np.sinh, inverse_func=np.arcsinh), make_value(FRAME), "by Python code"),
        (LinearRegression(), two_targets(), "one, as a 1-D array"),
        (RandomForestRegressor(3), two_targets(), "one, as a 1-D array"),
        (GradientBoostingClassifier(init=GaussianNB(), n_estimators=2), make_target(FRAME, [0, 1]), "init=GaussianNB"),
    ],
    ids=["quadratic", "calibrated", "transformed-target", "linear-two-targets", "forest-two-targets", "boosting-from-a-model"],
)
def test_estimator_without_exact_graph_is_named(model: Any, target: np.ndarray, words: str) -> None:
    """The error names the estimator, or the part of it."""
    frame = FRAME[["height", "count"]]
    with pytest.raises(UnsupportedStep) as caught:
        from_sklearn(Pipeline([("model", model)]).fit(frame, target), frame, name="odd", version=1)
    assert caught.value.step.startswith("model")
    assert words in str(caught.value)


def test_pipeline_that_does_not_predict_is_refused() -> None:
    """A package answers; a transformer alone does not."""
    frame = FRAME[["height"]]
    with pytest.raises(UnsupportedStep, match="does not predict"):
        from_sklearn(make_pipeline(SimpleImputer(), StandardScaler()).fit(frame), frame, name="odd", version=1)


def test_model_trained_in_float32_is_refused() -> None:
    """Coefficients in float32 mean that training computed in float32."""
    frame = FRAME[["height"]]
    model = LogisticRegression().fit(frame.astype("float32"), make_target(FRAME, [0, 1]))
    with pytest.raises(UnsupportedStep, match="float32"):
        from_sklearn(Pipeline([("model", model)]), frame, name="odd", version=1)


def test_numeric_text_is_not_computed_on() -> None:
    """scikit-learn turns strings of digits into numbers; a string field cannot, and says so."""
    frame = FRAME[["count"]].assign(count=FRAME["count"].astype("str").astype(object))
    pipeline = make_pipeline(StandardScaler(), LinearRegression()).fit(frame, make_value(FRAME))
    with pytest.raises(UnsupportedStep, match="string column 'count'"):
        from_sklearn(pipeline, frame, name="odd", version=1)
