"""Every supported estimator gives scikit-learn's answers: labels equal, floats to the last bits."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from samegraph_transforms.tabular import OutputNames, capture, from_sklearn
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import (
    BayesianRidge,
    ElasticNet,
    ElasticNetCV,
    HuberRegressor,
    Lars,
    Lasso,
    LassoCV,
    LassoLars,
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    Ridge,
    RidgeCV,
)
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor, ExtraTreeClassifier, ExtraTreeRegressor
from training.parity import NUMBERS, STRINGS, Parity, compare_with_training, make_frame, make_target, make_value, run_package

FRAME = make_frame()
TWO = ["no", "yes"]
FOUR = ["north", "south", "östlich", "west"]


def preprocessing() -> ColumnTransformer:
    """Return the usual preprocessing, dense."""
    return ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler()), NUMBERS),
            ("strings", make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")), STRINGS),
            ("flag", "passthrough", ["flag"]),
        ],
        sparse_threshold=0,
    )


def check(model: Any, target: Any, frame: pd.DataFrame = FRAME, columns: Any = None) -> Parity:
    """Fit preprocessing → model, compare, and require exactness."""
    pipeline = Pipeline([("columns", preprocessing() if columns is None else columns), ("model", model)]).fit(frame, target)
    result = compare_with_training(pipeline, frame)
    result.assert_exact()
    return result


CLASSIFIERS = [
    pytest.param(LogisticRegression(max_iter=2000), id="logistic"),
    pytest.param(LogisticRegression(max_iter=2000, fit_intercept=False), id="logistic-without-intercept"),
    pytest.param(DecisionTreeClassifier(random_state=0), id="tree"),
    pytest.param(DecisionTreeClassifier(random_state=0, max_leaf_nodes=12), id="tree-best-first"),
    pytest.param(ExtraTreeClassifier(random_state=0), id="extra-tree"),
    pytest.param(RandomForestClassifier(25, random_state=0), id="forest"),
    pytest.param(RandomForestClassifier(15, random_state=0, max_depth=3, class_weight="balanced"), id="forest-weighted"),
    pytest.param(ExtraTreesClassifier(15, random_state=0, max_depth=6), id="extra-trees"),
    pytest.param(GradientBoostingClassifier(n_estimators=15, random_state=0), id="boosting"),
    pytest.param(GradientBoostingClassifier(n_estimators=10, init="zero", random_state=0, subsample=0.7), id="boosting-from-zero"),
    pytest.param(HistGradientBoostingClassifier(max_iter=15, random_state=0), id="histogram-boosting"),
]


@pytest.mark.parametrize("classes", [TWO, FOUR], ids=["two-classes", "four-classes"])
@pytest.mark.parametrize("model", CLASSIFIERS)
def test_classifier_answers_as_in_training(model: Any, classes: list[str]) -> None:
    """Labels are equal and probabilities within the promise, for two and for four classes."""
    result = check(model, make_target(FRAME, classes))
    label, probability = result.draft.outputs
    assert (label.name, label.dtype, label.decided_by) == ("label", "string", "probability")
    assert (probability.shape, probability.element_names) == ([len(classes)], sorted(classes))


def test_exponential_loss_doubles_the_score() -> None:
    """GradientBoosting with loss='exponential' turns twice its score into a probability."""
    check(GradientBoostingClassifier(loss="exponential", n_estimators=10, random_state=0), make_target(FRAME, TWO))


def test_cross_validated_logistic_regression() -> None:
    """LogisticRegressionCV predicts as the model it chose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # scikit-learn announces new defaults; the prediction is what is tested
        check(LogisticRegressionCV(Cs=3, cv=3, max_iter=2000), make_target(FRAME, FOUR))


@pytest.mark.parametrize(
    ("classes", "dtype"),
    [
        pytest.param([3, 5, -7], "int64", id="integers"),
        pytest.param([False, True], "bool", id="booleans"),
        pytest.param([0.0, 1.0], "float64", id="floats"),
        pytest.param(np.array(["a", "bé", ""], dtype=object), "string", id="object-strings"),
        pytest.param(np.array([1, 2, 9], dtype=np.int8), "int64", id="small-integers"),
    ],
)
@pytest.mark.parametrize(
    "model", [LogisticRegression(max_iter=2000), RandomForestClassifier(7, random_state=0)], ids=["logistic", "forest"]
)
def test_labels_keep_the_type_of_the_target(model: Any, classes: Any, dtype: str) -> None:
    """Integer, boolean, float and string classes come back as what they were."""
    result = check(model, make_target(FRAME, classes))
    assert result.draft.outputs[0].dtype == dtype


REGRESSORS = [
    LinearRegression(),
    LinearRegression(fit_intercept=False),
    Ridge(),
    RidgeCV(),
    Lasso(alpha=0.01),
    LassoCV(cv=3),
    LassoLars(alpha=0.01),
    Lars(n_nonzero_coefs=4),
    ElasticNet(alpha=0.01),
    ElasticNetCV(cv=3),
    BayesianRidge(),
    HuberRegressor(max_iter=3000),
    DecisionTreeRegressor(random_state=0),
    ExtraTreeRegressor(random_state=0),
    RandomForestRegressor(20, random_state=0),
    ExtraTreesRegressor(10, random_state=0),
    GradientBoostingRegressor(n_estimators=20, random_state=0),
    GradientBoostingRegressor(n_estimators=10, init="zero", random_state=0),
    GradientBoostingRegressor(n_estimators=10, loss="huber", random_state=0),
    HistGradientBoostingRegressor(max_iter=15, random_state=0),
    HistGradientBoostingRegressor(max_iter=10, loss="absolute_error", random_state=0),
    HistGradientBoostingRegressor(max_iter=10, loss="quantile", quantile=0.9, random_state=0),
]


@pytest.mark.parametrize("model", REGRESSORS, ids=str)
def test_regressor_answers_as_in_training(model: Any) -> None:
    """Values are within the promise."""
    (value,) = check(model, make_value(FRAME)).draft.outputs
    assert (value.name, value.dtype, value.shape) == ("value", "float64", [])


@pytest.mark.parametrize("loss", ["poisson", "gamma"])
def test_log_link_is_undone(loss: str) -> None:
    """Losses with a logarithmic link answer through the exponential."""
    check(HistGradientBoostingRegressor(loss=loss, max_iter=10, random_state=0), np.exp(make_value(FRAME)))


@pytest.mark.parametrize(
    "model",
    [
        RandomForestClassifier(20, random_state=0),
        ExtraTreesClassifier(10, random_state=0),
        DecisionTreeClassifier(random_state=0),
        HistGradientBoostingClassifier(max_iter=15, random_state=0),
        RandomForestRegressor(10, random_state=0),
    ],
    ids=lambda m: type(m).__name__,
)
def test_trees_route_missing_values_as_in_training(model: Any) -> None:
    """A missing number takes the branch that training learned, also in columns where training saw none missing."""
    target = make_value(FRAME) if isinstance(model, RandomForestRegressor) else make_target(FRAME, FOUR)
    result = check(model, target, columns=ColumnTransformer([("raw", "passthrough", [*NUMBERS, "flag"])]))
    assert {f.name: f.missing.rule for f in result.draft.fields} == {"amount": "nan", "height": "nan", "count": "nan", "flag": "companion"}


def test_tree_sums_are_bit_equal() -> None:
    """Forests average in scikit-learn's order, so that nothing differs, not even the last bit."""
    for model in (RandomForestClassifier(60, random_state=0), ExtraTreesClassifier(30, random_state=0)):
        assert check(model, make_target(FRAME, FOUR)).comparisons["probability"].different == 0
    for regressor in (
        RandomForestRegressor(60, random_state=0),
        GradientBoostingRegressor(random_state=0),
        HistGradientBoostingRegressor(random_state=0),
    ):
        assert check(regressor, make_value(FRAME)).comparisons["value"].different == 0


def test_tree_that_is_one_leaf() -> None:
    """A tree without a split answers its one value, also for missing values."""
    for model in (DecisionTreeClassifier(max_depth=1, min_samples_leaf=399), RandomForestClassifier(3, min_samples_leaf=399)):
        result = check(model, make_target(FRAME, FOUR), columns=ColumnTransformer([("raw", "passthrough", NUMBERS)]))
        assert result.comparisons["probability"].different == 0


def test_single_class_tree_answers_that_class() -> None:
    """A tree that saw one class gives it probability 1."""
    result = check(DecisionTreeClassifier(), np.full(len(FRAME), "only"))
    assert result.draft.outputs[1].element_names == ["only"]


# --- histogram boosting with categories -------------------------------------------------------------------------------


def as_categories(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with its string columns as pandas categories."""
    return frame.astype(dict.fromkeys(STRINGS, "category"))


@pytest.mark.parametrize("classes", [TWO, FOUR], ids=["two-classes", "four-classes"])
def test_native_categories_split_by_membership(classes: list[str]) -> None:
    """Pandas categories, missing, unseen and non-ASCII ones too, take the branches training learned."""
    frame = as_categories(make_frame(1500))
    model = HistGradientBoostingClassifier(max_iter=20, random_state=0, min_samples_leaf=5).fit(
        frame, make_target(frame.astype({"colour": "str"}), classes)
    )
    result = compare_with_training(model, frame)
    result.assert_exact()
    (node,) = (n for n in result.draft.stages[1].model.graph.node if n.op_type == "TreeEnsemble")
    assert any(a.name == "membership_values" for a in node.attribute)
    assert {f.name: f.kind for f in result.draft.fields}["colour"] == "string"


@pytest.mark.parametrize("n_categories", [2, 63, 64, 65, 130, 254])
def test_categorical_splits_of_every_width(n_categories: int) -> None:
    """Sets of up to 254 categories, in and beyond ONNX Runtime's 64-bit masks, split as in training."""
    rng = np.random.default_rng(n_categories)
    frame = pd.DataFrame({"code": rng.integers(0, n_categories, size=4000), "x": rng.normal(size=4000)})
    frame["code"] = pd.Categorical([f"c{v}" if v else None for v in frame["code"]])
    effect = dict(zip(frame["code"].cat.categories, rng.normal(size=len(frame["code"].cat.categories)), strict=True))
    target = frame["code"].map(effect).astype(float).fillna(0.4).to_numpy() + frame["x"].to_numpy() / 3
    model = HistGradientBoostingRegressor(max_iter=15, min_samples_leaf=3, random_state=0).fit(frame, target)
    every = [{"code": code, "x": x} for code in [*effect, None, "c0", "unseen"] for x in (-1.0, 0.5, None)]
    result = compare_with_training(model, frame, extra=every)
    result.assert_exact()
    assert result.comparisons["value"].different == 0


@pytest.mark.parametrize("chosen", [["colour", "town", "flag"], [3, 4, 5]], ids=["by-name", "by-position"])
def test_categories_named_by_the_booster(chosen: list[Any]) -> None:
    """categorical_features given by name or position encodes strings and booleans as training does."""
    frame = FRAME.astype({"colour": object, "town": object})
    frame["colour"] = frame["colour"].where(frame["colour"].notna(), np.nan)
    model = HistGradientBoostingClassifier(categorical_features=chosen, max_iter=10, random_state=0).fit(frame, make_target(FRAME, FOUR))
    compare_with_training(model, frame).assert_exact()


def test_categories_that_are_numbers() -> None:
    """A pandas category of integers is an integer field."""
    frame = FRAME[["height", "count"]].assign(count=(FRAME["count"] % 12).astype("category"))
    model = HistGradientBoostingClassifier(max_iter=10, random_state=0).fit(frame, make_target(FRAME, TWO))
    result = compare_with_training(model, frame, extra=[{"height": 170.0, "count": 12}, {"height": None, "count": None}])
    result.assert_exact()
    assert {f.name: f.kind for f in result.draft.fields} == {"height": "number", "count": "integer"}


def test_encoded_codes_as_categories() -> None:
    """An OrdinalEncoder in the pipeline with categorical_features on its columns splits by membership."""
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan)
    columns = ColumnTransformer([("codes", encoder, STRINGS), ("numbers", "passthrough", NUMBERS)])
    check(
        HistGradientBoostingClassifier(categorical_features=[0, 1], max_iter=15, random_state=0), make_target(FRAME, FOUR), columns=columns
    )


# --- forms of the whole -----------------------------------------------------------------------------------------------


def test_bare_estimator_reads_the_columns_as_they_are() -> None:
    """An estimator without preprocessing takes number, integer and boolean columns."""
    frame = FRAME[["height", "count", "flag"]]
    result = compare_with_training(LogisticRegression(max_iter=5000).fit(frame, make_target(FRAME, TWO)), frame)
    result.assert_exact()
    assert [f.missing.rule for f in result.draft.fields] == ["refuse"] * 3


def test_search_stands_for_its_best_estimator() -> None:
    """A grid search predicts as the pipeline it chose."""
    pipeline = Pipeline([("columns", preprocessing()), ("model", LogisticRegression(max_iter=2000))])
    search = GridSearchCV(pipeline, {"model__C": [0.1, 1.0]}, cv=2).fit(FRAME, make_target(FRAME, TWO))
    compare_with_training(search, FRAME).assert_exact()


def test_estimator_inside_a_nested_pipeline() -> None:
    """A pipeline whose last step is a pipeline is taken apart."""
    pipeline = Pipeline([("columns", preprocessing()), ("rest", Pipeline([("scale", StandardScaler()), ("model", Ridge())]))])
    compare_with_training(pipeline.fit(FRAME, make_value(FRAME)), FRAME).assert_exact()


def test_sparse_features_reach_a_linear_model() -> None:
    """A sparse one-hot matrix gives the same answers as its dense form."""
    columns = ColumnTransformer([("hot", OneHotEncoder(handle_unknown="ignore"), STRINGS)], sparse_threshold=1.0)
    check(LogisticRegression(max_iter=2000), make_target(FRAME, FOUR), columns=columns)


def test_outputs_can_be_called_otherwise() -> None:
    """OutputNames renames outputs and the boundary value, which frees the usual names for columns."""
    frame = FRAME[["height"]].assign(label=FRAME["count"])
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(frame, make_target(FRAME, TWO))
    names = OutputNames(label="answer", probability="chances", features="matrix")
    draft = from_sklearn(pipeline, frame, name="renamed", version=1, names=names)
    (sample,) = capture(pipeline, frame, frame.iloc[:1], draft=draft)
    assert sorted(sample.outputs) == ["answer", "chances"]
    assert sorted(sample.values) == ["matrix"]


def test_row_answers_do_not_depend_on_its_batch() -> None:
    """A row alone and the same row among others get the same label and bit-equal tree scores."""
    pipeline = Pipeline([("columns", preprocessing()), ("model", RandomForestClassifier(20, random_state=0))]).fit(
        FRAME, make_target(FRAME, FOUR)
    )
    draft = from_sklearn(pipeline, FRAME, name="alone", version=1)
    rows: list[dict[str, Any]] = [{f.name: f.example for f in draft.fields} | {"height": 150.0 + i} for i in range(30)]
    together = run_package(draft, rows)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(run_package(draft, [row])["probability"][0], together["probability"][i])
