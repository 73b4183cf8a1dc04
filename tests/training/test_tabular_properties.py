"""Laws that hold for every row and every tree, searched with generated values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samegraph_transforms.exactness import compare
from samegraph_transforms.executor import OrtExecutor
from samegraph_transforms.tabular import capture, from_sklearn
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, RobustScaler, StandardScaler
from sklearn.tree import DecisionTreeRegressor
from training.parity import TOLERANCE, make_frame, make_target, run_package

FRAME = make_frame()
SETTINGS = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

MIXED = Pipeline(
    [
        (
            "columns",
            ColumnTransformer(
                [
                    ("scaled", make_pipeline(SimpleImputer(add_indicator=True), StandardScaler()), ["amount", "height"]),
                    ("count", make_pipeline(SimpleImputer(strategy="median"), RobustScaler()), ["count"]),
                    ("colour", make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")), ["colour"]),
                    ("town", OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2), ["town"]),
                    ("flag", "passthrough", ["flag"]),
                ]
            ),
        ),
        ("model", LogisticRegression(max_iter=5000)),
    ]
).fit(FRAME, make_target(FRAME, ["a", "b", "c"]))
MIXED_DRAFT = from_sklearn(MIXED, FRAME, name="mixed", version=1)

#: Numbers a caller may send: any float64 whose features and scores stay finite.
NUMBERS = st.none() | st.floats(-1e100, 1e100)
TEXT = st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\ue000"), max_size=12)
ROWS = st.fixed_dictionaries(
    {
        "amount": NUMBERS,
        "height": NUMBERS,
        "count": st.none() | st.integers(-(2**53), 2**53),
        "flag": st.booleans(),
        "colour": TEXT | st.sampled_from(["red", "grün", "青い"]),
        "town": TEXT | st.sampled_from(["town 1", "town 24"]),
    }
)


@SETTINGS
@given(st.lists(ROWS, min_size=1, max_size=6))
def test_any_rows_are_answered_as_in_training(rows: list[dict[str, Any]]) -> None:
    """Whatever a caller may send: features are bit-equal, labels equal, probabilities within the promise."""
    (expected,) = capture(MIXED, FRAME, rows, draft=MIXED_DRAFT, rows_per_request=len(rows))
    actual = run_package(MIXED_DRAFT, rows)
    np.testing.assert_array_equal(actual["features"], expected.values["features"])
    assert compare(expected.outputs["probability"], actual["probability"], TOLERANCE).passed
    top = np.sort(expected.outputs["probability"], axis=1)
    clear = top[:, -1] - top[:, -2] > 1e-12
    assert (actual["label"] == expected.outputs["label"])[clear].all()


@SETTINGS
@given(ROWS)
def test_leaving_order_of_fields_aside(row: dict[str, Any]) -> None:
    """The order in which a caller names the fields does not matter."""
    backwards = dict(reversed(row.items()))
    for name, array in run_package(MIXED_DRAFT, [row]).items():
        np.testing.assert_array_equal(array, run_package(MIXED_DRAFT, [backwards])[name])


@SETTINGS
@given(st.integers(0, 10_000), st.integers(1, 40), st.floats(0, 0.5))
def test_any_fitted_tree_is_bit_equal(seed: int, leaves: int, missing: float) -> None:
    """Trees of every size, grown on data with any share of missing values, give bit-equal answers, NaN included."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(rng.normal(size=(120, 3)).round(2), columns=["a", "b", "c"])
    frame = frame.mask(rng.random(frame.shape) < missing)
    frame.iloc[0] = [0.0, 1.0, 2.0]
    tree = DecisionTreeRegressor(max_leaf_nodes=leaves + 1, random_state=0).fit(frame, rng.normal(size=120))
    draft = from_sklearn(tree, frame, name="tree", version=1)
    values = frame.to_numpy()
    rows = [{n: None if np.isnan(v) else float(v) for n, v in zip("abc", row, strict=True)} for row in values]
    accepted = [f.missing.rule == "nan" for f in draft.fields]
    kept = [i for i, row in enumerate(rows) if all(ok or row[n] is not None for ok, n in zip(accepted, "abc", strict=True))]
    np.testing.assert_array_equal(run_package(draft, [rows[i] for i in kept])["value"], tree.predict(frame.iloc[kept]))


@SETTINGS
@given(st.integers(0, 10_000), st.integers(1, 254), st.integers(2, 31))
def test_any_categorical_split_is_bit_equal(seed: int, n_categories: int, leaves: int) -> None:
    """Histogram trees over any number of categories give bit-equal answers for every category, missing and unseen ones."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, n_categories, size=600)
    frame = pd.DataFrame({"code": pd.Categorical([f"c{v}" for v in codes]), "x": rng.normal(size=600)})
    frame.loc[rng.random(600) < 0.1, "code"] = np.nan
    target = rng.normal(size=n_categories)[codes] + frame["x"]
    model = HistGradientBoostingRegressor(max_iter=3, max_leaf_nodes=leaves, min_samples_leaf=2, random_state=0).fit(frame, target)
    draft = from_sklearn(model, frame, name="sets", version=1)
    rows = [{"code": c, "x": x} for c in (*frame["code"].cat.categories, None, "unseen") for x in (None, 0.3)]
    (expected,) = capture(model, frame, rows, draft=draft, rows_per_request=len(rows))
    np.testing.assert_array_equal(run_package(draft, rows)["value"], expected.outputs["value"])


@SETTINGS
@given(st.lists(ROWS, min_size=2, max_size=8))
def test_batch_of_rows_equals_rows_alone_up_to_the_model(rows: list[dict[str, Any]]) -> None:
    """Preprocessing is elementwise: a batch's features are the rows' own, bit for bit."""
    executor = OrtExecutor(MIXED_DRAFT.stages[0].model)
    assert executor.output_names == ("features",)
    together = run_package(MIXED_DRAFT, rows)["features"]
    alone = np.concatenate([run_package(MIXED_DRAFT, [row])["features"] for row in rows])
    np.testing.assert_array_equal(together, alone)
