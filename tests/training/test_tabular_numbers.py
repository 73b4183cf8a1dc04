"""Bins, quantiles, powers, projections, polynomials and named functions give scikit-learn's features: bit for bit, or to a stated bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samegraph_transforms.errors import InputError, UnsupportedStep
from samegraph_transforms.exactness import ulp_distance
from samegraph_transforms.signature import Signature
from samegraph_transforms.tabular import from_sklearn, rows_of
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.feature_selection import SelectKBest, f_regression
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import (
    Binarizer,
    FunctionTransformer,
    KBinsDiscretizer,
    MinMaxScaler,
    Normalizer,
    OneHotEncoder,
    PolynomialFeatures,
    PowerTransformer,
    QuantileTransformer,
    StandardScaler,
    TargetEncoder,
)
from training.parity import NUMBERS, STRINGS, compare_with_training, make_frame, make_value, manifest_of, run_package

EPSILON = float(np.finfo(np.float64).eps)
FRAME = make_frame()
VALUE = make_value(FRAME)
SEEDS = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def numbers(rng: np.random.Generator, n: int = 150) -> pd.DataFrame:
    """Return a smooth, a skewed and a rounded column; the rounded one has many equal values and zeros of both signs."""
    rounded = rng.normal(size=n).round(1)
    return pd.DataFrame(
        {"smooth": rng.normal(3, 2, size=n), "skewed": rng.lognormal(1, 2, size=n), "rounded": np.where(rounded == 0, -0.0, rounded)}
    )


def around(values: Any) -> np.ndarray:
    """Return values and their neighbours."""
    flat = np.unique(np.concatenate([np.asarray(v, dtype=np.float64).ravel() for v in values]))
    return np.concatenate([flat, np.nextafter(flat, np.inf), np.nextafter(flat, -np.inf)])


def features(step: Any, frame: pd.DataFrame, values: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Fit step → regression on `frame` and return what the package and what scikit-learn make of `values` (no field has limits)."""
    pipeline = Pipeline([("step", step), ("model", HistGradientBoostingRegressor(max_iter=1))]).fit(frame, np.arange(len(frame)))
    draft = from_sklearn(pipeline, frame, name="numbers", version=1)
    return run_package(draft, rows_of(pipeline, frame, values))["features"], np.asarray(step.transform(values), dtype=np.float64)


def everywhere(column: np.ndarray, rng: np.random.Generator, frame: pd.DataFrame) -> pd.DataFrame:
    """Return rows that hold each value of `column` in every place, with other columns drawn from the frame."""
    rows = frame.iloc[rng.integers(0, len(frame), size=len(column))].reset_index(drop=True)
    return pd.concat([rows.assign(**{name: column}) for name in frame], ignore_index=True)


@SEEDS
@given(
    st.integers(0, 10_000),
    st.integers(2, 30),
    st.sampled_from(["uniform", "quantile", "kmeans"]),
    st.sampled_from(["ordinal", "onehot-dense"]),
)
@pytest.mark.filterwarnings("ignore:Bins whose width", "ignore:Number of distinct clusters")
def test_any_fitted_bins_are_met_exactly(seed: int, n_bins: int, strategy: Any, encode: Any) -> None:
    """A value on an edge, one step beside it, and far outside falls into the bin that scikit-learn chooses."""
    rng = np.random.default_rng(seed)
    frame = numbers(rng)
    step = KBinsDiscretizer(n_bins, encode=encode, strategy=strategy, quantile_method="averaged_inverted_cdf", random_state=0).fit(frame)
    values = np.concatenate([around(step.bin_edges_), rng.normal(size=100) * 5, [0.0, -0.0, 1e300, -1e300, 5e-324]])
    got, expected = features(step, frame, everywhere(values, rng, frame))
    np.testing.assert_array_equal(got, expected)


@SEEDS
@given(st.integers(0, 10_000), st.integers(2, 150))
def test_any_fitted_uniform_quantiles_are_bit_equal(seed: int, n_quantiles: int) -> None:
    """Interpolated from both ends, at quantiles, beside them, between them, where several are equal, beyond the ends, and at NaN."""
    rng = np.random.default_rng(seed)
    frame = numbers(rng)
    frame.iloc[::9] = np.nan
    step = QuantileTransformer(n_quantiles=n_quantiles).fit(frame)
    values = np.concatenate([around([step.quantiles_]), rng.normal(size=100) * 5, [0.0, -0.0, 1e300, -1e300, np.nan]])
    got, expected = features(step, frame, everywhere(values, rng, frame))
    np.testing.assert_array_equal(got, expected)


@SEEDS
@given(st.integers(0, 10_000), st.integers(2, 150))
def test_any_fitted_normal_quantiles_are_within_eight_ulp(seed: int, n_quantiles: int) -> None:
    """The normal quantile is bit-equal between exp(-2) and 1 - exp(-2), where no logarithm is in it, and within 8 ULP in the tails."""
    rng = np.random.default_rng(seed)
    frame = numbers(rng)
    step = QuantileTransformer(n_quantiles=n_quantiles, output_distribution="normal").fit(frame)
    values = np.concatenate([around([step.quantiles_]), rng.normal(size=100) * 5, [0.0, 1e300, -1e300]])
    got, expected = features(step, frame, everywhere(values, rng, frame))
    distance = ulp_distance(got, expected)
    assert distance.max() <= 8
    assert distance[np.abs(expected) < 1.1].max() == 0


@SEEDS
@given(st.integers(0, 10_000), st.booleans(), st.floats(-3, 5))
def test_any_fitted_power_is_within_its_bound(seed: int, standardize: bool, lmbda: float) -> None:
    """Yeo-Johnson with any power: 64 steps of the value before it is standardised, which is the bound docs/exactness.md states."""
    rng = np.random.default_rng(seed)
    frame = numbers(rng)
    step = PowerTransformer(standardize=standardize).fit(frame)
    step.lambdas_[0] = lmbda
    values = np.concatenate([rng.normal(size=150) * 5, 10.0 ** rng.uniform(-20, 3, size=50), [0.0, -0.0, 5e-324, 1.0, -1.0, np.nan]])
    got, expected = features(step, frame, everywhere(values, rng, frame))
    scale, mean = (step._scaler.scale_, step._scaler.mean_) if standardize else (np.ones(3), np.zeros(3))
    raw = np.abs(expected * scale + mean) + np.abs(mean)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    assert np.nanmax(np.abs(got - expected) / (64 * EPSILON * raw / scale + 1e-320)) <= 1


@pytest.mark.parametrize("standardize", [True, False])
def test_box_cox_is_within_its_bound_and_asks_for_positive_numbers(standardize: bool) -> None:
    """The same bound; what training refuses, zero and below, the signature refuses by name."""
    columns = ["smooth", "skewed"]
    frame = numbers(np.random.default_rng(3))[columns].abs() + 1e-3
    pipeline = make_pipeline(PowerTransformer(method="box-cox", standardize=standardize), LinearRegression()).fit(frame, np.arange(150))
    draft = from_sklearn(pipeline, frame, name="box", version=1)
    assert all(f.minimum is not None and f.minimum > 0 for f in draft.fields)
    got, expected = run_package(draft, rows_of(pipeline, frame, frame))["features"], np.asarray(pipeline[0].transform(frame))
    assert np.abs(got - expected).max() < 64 * EPSILON * 10
    refused = Signature(manifest_of(draft)).try_row({"smooth": 0.0, "skewed": 1.0}, 0)
    assert isinstance(refused, InputError)
    assert "smooth" in str(refused)


@SEEDS
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(0, 2), st.booleans(), st.booleans())
def test_any_polynomial_is_bit_equal(seed: int, degree: int, least: int, interaction_only: bool, include_bias: bool) -> None:
    """Terms of every degree are products in scikit-learn's order."""
    rng = np.random.default_rng(seed)
    frame = numbers(rng)
    step = PolynomialFeatures((min(least, degree), degree), interaction_only=interaction_only, include_bias=include_bias).fit(frame)
    got, expected = features(step, frame, frame.sample(60, random_state=seed, replace=True))
    np.testing.assert_array_equal(got, expected)


def components_bound(step: Any, values: pd.DataFrame) -> np.ndarray:
    """Return how far a projection may be from scikit-learn's: what any two orders of adding the same products may differ."""
    mean = np.abs(getattr(step, "mean_", np.zeros(values.shape[1])))
    total = (np.abs(values.to_numpy()) + mean) @ np.abs(step.components_).T
    scale = np.sqrt(step.explained_variance_) if getattr(step, "whiten", False) else 1.0
    return np.asarray(2 * (values.shape[1] + 2) * EPSILON * total / scale)


@SEEDS
@given(st.integers(0, 10_000), st.sampled_from([PCA(2), PCA(2, whiten=True), TruncatedSVD(2, random_state=0)]))
def test_any_projection_is_within_the_bound_of_its_sum(seed: int, step: Any) -> None:
    """A matrix product of k terms: 2 (k + 2) epsilon times the sum of the terms' magnitudes."""
    rng = np.random.default_rng(seed)
    frame = numbers(rng)
    step.fit(frame)
    values = frame.sample(80, random_state=seed, replace=True)
    got, expected = features(step, frame, values)
    assert (np.abs(got - expected) <= components_bound(step, values)).all()


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
def test_rows_are_normalised_within_four_ulp(norm: Any) -> None:
    """`max` is bit-equal; a row of zeros stays."""
    rng = np.random.default_rng(5)
    frame = numbers(rng)
    values = pd.concat([frame, pd.DataFrame([[0.0] * 3, [1e-17, 0, 0], [5e-324, 0, 0]], columns=frame.columns)], ignore_index=True)
    got, expected = features(Normalizer(norm), frame, values)
    assert ulp_distance(got, expected).max() <= (0 if norm == "max" else 4)


#: Function → largest distance in ULP; 0 for those that IEEE 754 fixes.
FUNCTIONS = {
    np.abs: 0, np.fabs: 0, np.ceil: 0, np.floor: 0, np.rint: 0, np.sign: 0, np.negative: 0, np.sqrt: 0, np.square: 0,
    np.log: 2, np.log2: 4, np.log10: 4, np.log1p: 3, np.exp: 3, np.expm1: 8,
}  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_named_function_is_within_its_bound(function: Any) -> None:
    """A NumPy function by its name computes what NumPy computes, at every magnitude it takes."""
    rng = np.random.default_rng(8)
    frame = pd.DataFrame({"x": np.concatenate([10.0 ** rng.uniform(-12, 2, size=150), rng.uniform(0.3, 3, size=150)])})
    pipeline = make_pipeline(FunctionTransformer(function), LinearRegression()).fit(frame, np.arange(300))
    draft = from_sklearn(pipeline, frame, name="function", version=1)
    (field,) = draft.fields
    values = pd.DataFrame({"x": np.concatenate([frame["x"], -frame["x"], [0.0, 1e-300, 0.5, 1.0, -0.5]])})
    low, high = (-np.inf if field.minimum is None else field.minimum), (np.inf if field.maximum is None else field.maximum)
    values = values[(values["x"] >= low) & (values["x"] <= high)]
    with np.errstate(all="ignore"):
        expected = function(values.to_numpy())
    assert np.isfinite(expected).all(), "the field lets in what training does not answer"
    assert len(values) >= 300
    assert ulp_distance(run_package(draft, rows_of(pipeline, frame, values))["features"], expected).max() <= FUNCTIONS[function]


@pytest.mark.parametrize(
    ("function", "low", "high"),
    [(np.log1p, -1.0, None), (np.log, 0.0, None), (np.sqrt, 0.0, None), (np.exp, None, 709.0)],
    ids=["log1p", "log", "sqrt", "exp"],
)
def test_numbers_a_function_cannot_take_are_refused_by_the_field(function: Any, low: float | None, high: float | None) -> None:
    """Log of nothing is no feature: the limit is found by asking training, and stands in the signature."""
    frame = pd.DataFrame({"x": np.linspace(0.5, 40, 60), "y": np.linspace(-1, 1, 60)})
    columns = ColumnTransformer([("log", FunctionTransformer(function), ["x"]), ("y", "passthrough", ["y"])])
    pipeline = make_pipeline(columns, LinearRegression()).fit(frame, frame["x"])
    x, y = from_sklearn(pipeline, frame, name="limits", version=1).fields
    assert (x.minimum is None) == (low is None)
    assert low is None or (x.minimum is not None and low <= x.minimum <= low + 1e-15)
    assert x.maximum == high
    assert (y.minimum, y.maximum) == (None, None)


def test_numbers_a_function_cannot_take_stay_open_where_training_takes_them() -> None:
    """Histogram boosting answers when log1p gave NaN, so nothing is refused, and the answer is the same."""
    frame = pd.DataFrame({"x": np.where(np.arange(200) % 7 == 0, np.nan, np.linspace(0, 40, 200))})
    pipeline = make_pipeline(FunctionTransformer(np.log1p), HistGradientBoostingRegressor(max_iter=5)).fit(frame, np.arange(200))
    draft = from_sklearn(pipeline, frame, name="open", version=1)
    assert draft.fields[0].minimum is None
    rows = pd.DataFrame({"x": [-5.0, -1.5, 3.0, np.nan]})
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(run_package(draft, rows_of(pipeline, frame, rows))["value"], pipeline.predict(rows))


@pytest.mark.parametrize(
    "columns",
    [
        pytest.param(make_pipeline(SimpleImputer(), KBinsDiscretizer(5, quantile_method="averaged_inverted_cdf")), id="sparse-bins"),
        pytest.param(make_pipeline(SimpleImputer(), Binarizer(threshold=20.0)), id="binarizer"),
        pytest.param(FeatureUnion([("filled", SimpleImputer()), ("gaps", MissingIndicator())]), id="missing-indicator"),
        pytest.param(FeatureUnion([("filled", SimpleImputer()), ("gaps", MissingIndicator(features="all"))]), id="missing-indicator-all"),
        pytest.param(make_pipeline(SimpleImputer(), SelectKBest(f_regression, k=2)), id="select-k-best"),
        pytest.param(
            make_pipeline(
                SimpleImputer(),
                FeatureUnion([("a", StandardScaler()), ("b", MinMaxScaler())], transformer_weights={"a": 0.3}),
            ),
            id="feature-union-with-weights",
        ),
        pytest.param(
            make_pipeline(SimpleImputer(), QuantileTransformer(n_quantiles=99), PolynomialFeatures(2)), id="quantiles-then-products"
        ),
    ],
)
def test_step_in_a_pipeline_is_bit_equal(columns: Any) -> None:
    """The whole way from raw instances, missing values and edges of every field included."""
    pipeline = make_pipeline(ColumnTransformer([("numbers", columns, NUMBERS)]), LinearRegression()).fit(FRAME, VALUE)
    compare_with_training(pipeline, FRAME).assert_exact()


def test_weights_of_a_column_transformer_are_applied() -> None:
    """transformer_weights multiplies what one transformer gives."""
    columns = ColumnTransformer(
        [("scaled", StandardScaler(), ["height"]), ("raw", "passthrough", ["count"])], transformer_weights={"scaled": 0.1, "raw": 3}
    )
    compare_with_training(make_pipeline(columns, LinearRegression()).fit(FRAME, VALUE), FRAME).assert_exact()


@pytest.mark.parametrize("classes", [None, 2, 3], ids=["regression", "two-classes", "three-classes"])
def test_target_encoder_maps_known_missing_and_unseen_as_in_training(classes: int | None) -> None:
    """Strings and numbers become their mean target, one for each class where there are several."""
    target = VALUE if classes is None else np.digitize(VALUE, np.quantile(VALUE, np.linspace(0, 1, classes + 1)[1:-1]))
    for columns in (STRINGS, ["count"]):
        encoder = TargetEncoder()
        pipeline = make_pipeline(ColumnTransformer([("mean", encoder, columns)]), LinearRegression()).fit(FRAME, target)
        compare_with_training(pipeline, FRAME).assert_exact()


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (make_pipeline(StandardScaler(), FunctionTransformer(np.log1p)), "put it first"),
        (make_pipeline(StandardScaler(), FunctionTransformer(np.cbrt)), "cbrt"),
        (FunctionTransformer(np.clip, kw_args={"a_min": 0, "a_max": 1}), "clip"),
        (FunctionTransformer(np.square), "int64"),
        (make_pipeline(OneHotEncoder(handle_unknown="ignore"), PolynomialFeatures(3)), "another order"),
    ],
    ids=["computed-column", "unknown-function", "with-arguments", "square-of-integers", "sparse-cubes"],
)
def test_what_has_no_exact_graph_is_refused_by_its_path(columns: Any, words: str) -> None:
    """The message names the step and what is wrong with it."""
    transformer = ColumnTransformer([("odd", columns, ["count"])], sparse_threshold=1.0)
    frame = FRAME.assign(count=FRAME["count"] % 5 + 2)
    with np.errstate(all="ignore"):
        pipeline = Pipeline([("columns", transformer), ("model", HistGradientBoostingRegressor(max_iter=1))])
        transformed = transformer.fit_transform(frame)
        pipeline.steps[1][1].fit(np.nan_to_num(transformed.toarray() if hasattr(transformed, "toarray") else transformed), VALUE)
    with pytest.raises(UnsupportedStep, match=words) as caught:
        from_sklearn(pipeline, frame, name="odd", version=1)
    assert caught.value.step.startswith("columns.odd")
