"""Estimators beside trees and plain linear models answer as in training: labels equal, floats to the last bits of their sums."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samegraph_transforms.errors import UnsupportedStep
from samegraph_transforms.pack import pack
from samegraph_transforms.tabular import OutputNames, capture, from_sklearn, rows_of
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import (
    BaggingClassifier,
    BaggingRegressor,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import (
    ARDRegression,
    GammaRegressor,
    LarsCV,
    LassoLarsCV,
    LassoLarsIC,
    LogisticRegression,
    OrthogonalMatchingPursuit,
    Perceptron,
    PoissonRegressor,
    QuantileRegressor,
    Ridge,
    RidgeClassifier,
    RidgeClassifierCV,
    SGDClassifier,
    SGDRegressor,
    TheilSenRegressor,
    TweedieRegressor,
)
from sklearn.naive_bayes import BernoulliNB, ComplementNB, GaussianNB, MultinomialNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import KBinsDiscretizer, OneHotEncoder, PowerTransformer, StandardScaler
from sklearn.svm import SVC, SVR, LinearSVC, LinearSVR, NuSVC, NuSVR
from training.parity import NUMBERS, STRINGS, compare_with_training, make_frame, make_target, make_value, run_package

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning", "ignore:.*regression with penalty.*:UserWarning")
FRAME = make_frame(300)
TWO, FOUR = ["no", "yes"], ["north", "south", "östlich", "west"]


def fitted(model: Any, target: Any) -> Pipeline:
    """Fit the usual preprocessing, dense, and the model."""
    columns = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), NUMBERS),
            ("strings", make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")), STRINGS),
        ],
        sparse_threshold=0,
    )
    return Pipeline([("columns", columns), ("model", model)]).fit(FRAME, target)


def forest() -> RandomForestClassifier:
    """Return a small forest."""
    return RandomForestClassifier(5, random_state=0)


THREE_VOTES = [("line", LogisticRegression()), ("forest", forest()), ("bayes", GaussianNB())]

CLASSIFIERS = [
    pytest.param(LinearSVC(random_state=0), TWO, id="linear-svc"),
    pytest.param(LinearSVC(random_state=0), FOUR, id="linear-svc-four"),
    pytest.param(RidgeClassifier(), FOUR, id="ridge"),
    pytest.param(RidgeClassifierCV(), TWO, id="ridge-cv"),
    pytest.param(Perceptron(random_state=0), FOUR, id="perceptron"),
    pytest.param(SGDClassifier(random_state=0), TWO, id="sgd-hinge"),
    pytest.param(SGDClassifier(loss="log_loss", random_state=0), TWO, id="sgd-log"),
    pytest.param(SGDClassifier(loss="log_loss", random_state=0), FOUR, id="sgd-log-four"),
    pytest.param(StackingClassifier([("huber", SGDClassifier(loss="modified_huber", random_state=0))], cv=2), TWO, id="stack-of-huber"),
    pytest.param(LinearDiscriminantAnalysis(), TWO, id="discriminant"),
    pytest.param(LinearDiscriminantAnalysis(), FOUR, id="discriminant-four"),
    pytest.param(SVC(), TWO, id="svc"),
    pytest.param(SVC(), FOUR, id="svc-four"),
    pytest.param(SVC(break_ties=True), FOUR, id="svc-break-ties"),
    pytest.param(SVC(kernel="poly", degree=3, coef0=0.5), TWO, id="svc-poly"),
    pytest.param(SVC(kernel="sigmoid"), FOUR, id="svc-sigmoid"),
    pytest.param(NuSVC(nu=0.2, kernel="linear"), FOUR, id="nu-svc-linear"),
    pytest.param(KNeighborsClassifier(), FOUR, id="neighbours"),
    pytest.param(GaussianNB(), TWO, id="gaussian-bayes"),
    pytest.param(GaussianNB(), FOUR, id="gaussian-bayes-four"),
    pytest.param(BernoulliNB(), FOUR, id="bernoulli-bayes"),
    pytest.param(MLPClassifier((16, 8), max_iter=30, random_state=0), TWO, id="network"),
    pytest.param(MLPClassifier((16,), activation="tanh", max_iter=30, random_state=0), FOUR, id="network-tanh"),
    pytest.param(MLPClassifier((16,), activation="logistic", max_iter=30, random_state=0), FOUR, id="network-logistic"),
    pytest.param(VotingClassifier(THREE_VOTES, voting="soft", weights=[1, 2, 0.5]), FOUR, id="soft-votes"),
    pytest.param(VotingClassifier([("power", make_pipeline(PowerTransformer(), LogisticRegression())), ("svm", LinearSVC()),
                                   ("out", "drop")], weights=[2, 1, 5]), FOUR, id="hard-votes-of-pipelines"),
    pytest.param(StackingClassifier(THREE_VOTES, cv=2), TWO, id="stack"),
    pytest.param(StackingClassifier([("svm", SVC()), ("near", make_pipeline(StandardScaler(), KNeighborsClassifier()))], passthrough=True,
                                    final_estimator=GradientBoostingClassifier(n_estimators=4), cv=2), FOUR, id="stack-passthrough"),
    pytest.param(StackingClassifier([("tree", forest()), ("svm", LinearSVC())], stack_method="predict", cv=2), FOUR, id="stack-of-labels"),
    pytest.param(CalibratedClassifierCV(LinearSVC(), cv=2), TWO, id="calibrated"),
    pytest.param(CalibratedClassifierCV(GaussianNB(), cv=2), FOUR, id="calibrated-four"),
    pytest.param(CalibratedClassifierCV(forest(), method="isotonic", cv=2), TWO, id="calibrated-isotonic"),
    pytest.param(CalibratedClassifierCV(SVC(), method="isotonic", cv=2), FOUR, id="calibrated-isotonic-four"),
    pytest.param(CalibratedClassifierCV(LogisticRegression(fit_intercept=False), cv=2, ensemble=False), TWO, id="calibrated-once"),
    pytest.param(BaggingClassifier(n_estimators=4, max_features=0.5, random_state=0), FOUR, id="bag"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "classes"), CLASSIFIERS)
def test_classifier_answers_as_in_training(model: Any, classes: list[str]) -> None:
    """Labels are equal; probabilities, or the scores of a classifier that has none, agree to the last bits."""
    result = compare_with_training(fitted(model, make_target(FRAME, classes)), FRAME)
    result.assert_exact()
    hard = isinstance(model, VotingClassifier) and model.voting == "hard"
    decides = [] if hard else ["probability" if hasattr(model, "predict_proba") else "score"]
    assert [o.name for o in result.draft.outputs] == ["label", *decides]
    assert all(result.comparisons[name].max_abs < 1e-9 for name in decides)


REGRESSORS = [
    pytest.param(LinearSVR(random_state=0), id="linear-svr"),
    pytest.param(SGDRegressor(random_state=0), id="sgd"),
    pytest.param(QuantileRegressor(alpha=0.01), id="quantile"),
    pytest.param(OrthogonalMatchingPursuit(n_nonzero_coefs=4), id="matching-pursuit"),
    pytest.param(ARDRegression(), id="ard"),
    pytest.param(LarsCV(cv=2), id="lars-cv"),
    pytest.param(LassoLarsCV(cv=2), id="lasso-lars-cv"),
    pytest.param(LassoLarsIC(noise_variance=1.0), id="lasso-lars-ic"),
    pytest.param(TheilSenRegressor(random_state=0, max_subpopulation=50, n_subsamples=60), id="theil-sen"),
    pytest.param(SVR(), id="svr"),
    pytest.param(SVR(kernel="poly"), id="svr-poly"),
    pytest.param(NuSVR(kernel="sigmoid"), id="nu-svr-sigmoid"),
    pytest.param(KNeighborsRegressor(p=1), id="neighbours-manhattan"),
    pytest.param(MLPRegressor(hidden_layer_sizes=(16,), max_iter=30, random_state=0), id="network"),
    pytest.param(VotingRegressor([("a", Ridge()), ("b", SVR())], weights=[0.3, 0.7]), id="votes"),
    pytest.param(StackingRegressor([("a", Ridge()), ("b", RandomForestRegressor(4, random_state=0))], cv=2), id="stack"),
    pytest.param(BaggingRegressor(SVR(), 3, random_state=0), id="bag"),
]
POSITIVE = [
    pytest.param(PoissonRegressor(), id="poisson"),
    pytest.param(GammaRegressor(), id="gamma"),
    pytest.param(TweedieRegressor(power=0), id="tweedie-identity"),
    pytest.param(TransformedTargetRegressor(Ridge(), func=np.log1p, inverse_func=np.expm1), id="log1p-target"),
    pytest.param(
        TransformedTargetRegressor(
            make_pipeline(StandardScaler(), HistGradientBoostingRegressor(max_iter=5)), func=np.log, inverse_func=np.exp
        ),
        id="log-target-of-a-pipeline",
    ),
]


@pytest.mark.parametrize(("model", "target"), [*((p.values[0], "any") for p in REGRESSORS), *((p.values[0], "positive") for p in POSITIVE)],
                         ids=[str(p.id) for p in (*REGRESSORS, *POSITIVE)])  # fmt: skip
def test_regressor_answers_as_in_training(model: Any, target: str) -> None:
    """Values agree to the last bits of their sums."""
    value = make_value(FRAME)
    compare_with_training(fitted(model, value if target == "any" else np.exp(value)), FRAME).assert_exact()


@pytest.mark.parametrize("model", [MultinomialNB(), ComplementNB()], ids=["multinomial", "complement"])
def test_bayes_on_counts_answers_as_in_training(model: Any) -> None:
    """On counts that cannot be negative: categories switched on."""
    columns = ColumnTransformer([("strings", OneHotEncoder(handle_unknown="ignore"), STRINGS)])
    pipeline = make_pipeline(columns, model).fit(FRAME, make_target(FRAME, FOUR))
    compare_with_training(pipeline, FRAME).assert_exact()


@pytest.mark.parametrize(
    "model",
    [
        VotingClassifier([("bayes", MultinomialNB()), ("tree", forest()), ("line", LogisticRegression())], voting="soft"),
        StackingClassifier([("bayes", MultinomialNB()), ("tree", forest())], passthrough=True, cv=2),
        CalibratedClassifierCV(LinearSVC(), cv=2),
        BaggingClassifier(MultinomialNB(), 3, max_features=0.5, random_state=0),
        MLPClassifier((8,), max_iter=20, random_state=0),
    ],
    ids=["votes", "stack", "calibrated", "bag", "network"],
)
def test_texts_reach_estimators_of_estimators(model: Any) -> None:
    """Sparse rows of terms are read as they are where a part can, and as a table where not."""
    rng = np.random.default_rng(2)
    words = np.array(["good", "bad", "fine", "awful", "nice", "poor", "great", "dull"])
    texts = pd.Series([" ".join(rng.choice(words, size=6)) for _ in range(120)], name="text")
    pipeline = make_pipeline(TfidfVectorizer(), model).fit(texts, rng.choice(["no", "yes"], size=120))
    draft = from_sklearn(pipeline, texts, name="mood", version=1)
    samples = capture(pipeline, texts, [{"text": t} for t in texts[:40]], draft=draft)
    with tempfile.TemporaryDirectory() as folder:
        package = pack(draft, samples, folder)
    assert {m.tensor: m.flips for m in package.manifest.measured}["label"] == 0


@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(0, 10_000),
    st.integers(1, 12),
    st.sampled_from(["uniform", "distance"]),
    st.sampled_from([1, 2]),
    st.sampled_from(["kd_tree", "ball_tree", "brute"]),
)
def test_any_neighbours_are_those_of_training(seed: int, k: int, weights: Any, p: int, algorithm: Any) -> None:
    """Rows of training, rows beside them and others: the same neighbours wherever the next one is further away, whatever finds them."""
    if weights == "distance" and p == 2 and algorithm == "brute":
        algorithm = "kd_tree"
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(rng.normal(size=(80, 3)), columns=["a", "b", "c"])
    model = KNeighborsClassifier(k, weights=weights, p=p, algorithm=algorithm).fit(frame, rng.choice(["x", "y", "z"], size=80))
    values = pd.DataFrame(
        np.concatenate([frame, frame + 1e-9 * rng.normal(size=frame.shape), rng.normal(size=(60, 3)) * 3]), columns=frame.columns
    )
    distances, _ = model.kneighbors(values, n_neighbors=k + 1)
    apart = distances[:, -1] - distances[:, -2] > 1e-9
    assert apart.sum() > 100
    answers = run_package(from_sklearn(model, frame, name="near", version=1), rows_of(model, frame, values))
    expected = model.predict_proba(values)
    np.testing.assert_allclose(answers["probability"][apart], expected[apart], rtol=1e-6 if weights == "distance" else 1e-12, atol=1e-12)
    top = np.sort(expected, axis=1)
    clear = apart & (top[:, -1] - top[:, -2] > 1e-6)
    assert (answers["label"] == model.predict(values))[clear].all()


def test_scalar_factors_stay_in_float64() -> None:
    """ONNX Runtime fuses a scalar factor into a MatMul as float32; a polynomial kernel with such a gamma would be off by 6e-8."""
    rng = np.random.default_rng(4)
    frame = pd.DataFrame(rng.normal(size=(100, 4)), columns=list("abcd"))
    model = SVR(kernel="poly", gamma=0.1, coef0=0.3).fit(frame, rng.normal(size=100))
    answers = run_package(from_sklearn(model, frame, name="scaled", version=1), rows_of(model, frame, frame))["value"]
    assert np.abs(answers - model.predict(frame)).max() < 1e-12


def test_score_is_named_and_its_sign_decides() -> None:
    """A classifier without probabilities gives a column a class, the largest of which decides; the name can be chosen."""
    pipeline = fitted(LinearSVC(random_state=0), make_target(FRAME, TWO))
    draft = from_sklearn(pipeline, FRAME, name="scored", version=1, names=OutputNames(score="margin"))
    label, margin = draft.outputs
    assert (label.decided_by, margin.name, margin.element_names) == ("margin", "margin", TWO)
    answers = run_package(draft, rows_of(pipeline, FRAME, FRAME))
    np.testing.assert_array_equal(np.array(TWO)[answers["margin"].argmax(axis=1)], answers["label"])
    np.testing.assert_allclose(answers["margin"][:, 1], pipeline.decision_function(FRAME), rtol=1e-9)


@pytest.mark.parametrize("model", [SVC(), VotingClassifier([("a", forest()), ("b", GaussianNB())])], ids=["score", "label-only"])
def test_package_of_a_classifier_without_probabilities_is_packed(model: Any, tmp_path: Any) -> None:
    """Pack accepts it: its golden samples carry scores, or labels alone."""
    pipeline = fitted(model, make_target(FRAME, FOUR))
    draft = from_sklearn(pipeline, FRAME, name="packed", version=1)
    pack(draft, capture(pipeline, FRAME, FRAME.iloc[:20], draft=draft), tmp_path)


def frame_with_category() -> pd.DataFrame:
    """Return a number and a category of numbers."""
    return FRAME[["height"]].assign(code=pd.Categorical(FRAME["count"] % 4))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (KNeighborsClassifier(metric="cosine"), "cosine"),
        (KNeighborsClassifier(weights=lambda d: 1 / (1 + d)), "Python code"),
        (KNeighborsClassifier(weights="distance", algorithm="brute"), "kd_tree"),
        (SVC(decision_function_shape="ovo"), "'ovr'"),
        (SVC(kernel=lambda a, b: a @ b.T), "kernel"),
        (CalibratedClassifierCV(LogisticRegression(), method="temperature"), "temperature"),
        (StackingClassifier([("a", GaussianNB())], final_estimator=make_pipeline(StandardScaler(), GaussianNB())), "put its steps before"),
        (
            VotingClassifier(
                [("a", make_pipeline(KBinsDiscretizer(3, encode="ordinal", quantile_method="linear", dtype=np.float32), GaussianNB()))]
            ),
            "float32",
        ),
    ],
    ids=[
        "metric",
        "python-weights",
        "brute-distance",
        "one-against-one",
        "python-kernel",
        "temperature",
        "stacked-pipeline",
        "float32",
    ],
)
def test_parameter_without_exact_graph_is_named(model: Any, words: str) -> None:
    """The message names the parameter, or what could be used instead."""
    frame = FRAME[["height", "count"]].astype(float)
    with pytest.raises(UnsupportedStep, match=words) as caught:
        from_sklearn(Pipeline([("model", model)]).fit(frame, make_target(FRAME, FOUR)), frame, name="odd", version=1)
    assert caught.value.step.startswith("model")


def test_estimator_inside_another_is_refused_by_its_path() -> None:
    """The path leads to the part that has no graph."""
    frame = frame_with_category()
    inner = HistGradientBoostingClassifier(max_iter=2, categorical_features="from_dtype")
    model = VotingClassifier([("good", GaussianNB()), ("boost", inner)]).fit(frame, make_target(FRAME, TWO))
    with pytest.raises(UnsupportedStep, match="native categories") as caught:
        from_sklearn(Pipeline([("model", model)]), frame, name="odd", version=1)
    assert caught.value.step == "model.boost"
