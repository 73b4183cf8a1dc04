"""Every supported preprocessing step gives scikit-learn's features bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from samegraph_transforms.tabular import from_sklearn
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.feature_selection import SelectKBest, VarianceThreshold
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    RobustScaler,
    StandardScaler,
)
from training.parity import NUMBERS, STRINGS, Parity, compare_with_training, make_frame, make_value

FRAME = make_frame()
VALUE = make_value(FRAME)


def check(columns: Any, frame: pd.DataFrame = FRAME, **keywords: Any) -> Parity:
    """Fit columns → linear regression, compare, and require exactness."""
    pipeline = Pipeline([("columns", columns), ("model", LinearRegression())]).fit(frame, make_value(FRAME))
    result = compare_with_training(pipeline, frame, **keywords)
    result.assert_exact()
    return result


def numeric(*steps: Any) -> ColumnTransformer:
    """Apply steps to the number columns, imputed first."""
    return ColumnTransformer([("numbers", make_pipeline(*steps), NUMBERS)])


def categorical(*steps: Any) -> ColumnTransformer:
    """Apply steps to the string columns."""
    return ColumnTransformer([("strings", make_pipeline(*steps), STRINGS)])


IMPUTE = SimpleImputer()


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([StandardScaler()], id="standard"),
        pytest.param([StandardScaler(with_mean=False)], id="standard-without-mean"),
        pytest.param([StandardScaler(with_std=False)], id="standard-without-std"),
        pytest.param([StandardScaler(with_mean=False, with_std=False)], id="standard-that-does-nothing"),
        pytest.param([MinMaxScaler()], id="min-max"),
        pytest.param([MinMaxScaler(feature_range=(-3, 0.7), clip=True)], id="min-max-clipped"),
        pytest.param([RobustScaler()], id="robust"),
        pytest.param([RobustScaler(unit_variance=True, quantile_range=(10, 90))], id="robust-unit-variance"),
        pytest.param([RobustScaler(with_centering=False)], id="robust-without-centring"),
        pytest.param([RobustScaler(with_scaling=False)], id="robust-without-scaling"),
        pytest.param([MaxAbsScaler()], id="max-abs"),
        pytest.param([StandardScaler(), MinMaxScaler(), MaxAbsScaler(), RobustScaler()], id="four-in-a-row"),
        pytest.param([FunctionTransformer()], id="identity-function"),
        pytest.param([VarianceThreshold(threshold=200.0)], id="variance-threshold"),
        pytest.param([FeatureUnion([("scaled", StandardScaler()), ("raw", "passthrough"), ("none", "drop")])], id="feature-union"),
        pytest.param([Pipeline([("inner", Pipeline([("scale", StandardScaler())])), ("nothing", "passthrough")])], id="nested-pipelines"),
    ],
)
def test_step_on_numbers_is_bit_equal(steps: list[Any]) -> None:
    """Scalers, selectors and composites on imputed numbers compute what scikit-learn computes."""
    check(numeric(IMPUTE, *steps))


@pytest.mark.parametrize(
    "scaler", [StandardScaler(), MinMaxScaler(clip=True), RobustScaler(), MaxAbsScaler()], ids=lambda s: type(s).__name__
)
def test_scaler_before_imputer_keeps_missing_values(scaler: Any) -> None:
    """A scaler passes NaN on, and the imputer after it fills with the mean of scaled values."""
    check(numeric(scaler, SimpleImputer(strategy="mean")))


@pytest.mark.parametrize(
    "imputer",
    [
        pytest.param(SimpleImputer(strategy="mean"), id="mean"),
        pytest.param(SimpleImputer(strategy="median"), id="median"),
        pytest.param(SimpleImputer(strategy="most_frequent"), id="most-frequent"),
        pytest.param(SimpleImputer(strategy="constant", fill_value=-1.5), id="constant"),
        pytest.param(SimpleImputer(strategy="constant"), id="constant-zero"),
        pytest.param(SimpleImputer(add_indicator=True), id="indicator"),
        pytest.param(SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True), id="indicator-keep-empty"),
    ],
)
def test_imputer_on_numbers_is_bit_equal(imputer: SimpleImputer) -> None:
    """Every strategy fills numbers, and integers that are missing only when served, as training does."""
    result = check(numeric(imputer))
    rules = {f.name: f.missing.rule for f in result.draft.fields}
    assert rules["amount"] == "nan"


def test_imputer_of_a_marker_value_fills_that_value() -> None:
    """missing_values=-1 fills −1 and leaves null to be refused, as training refuses it."""
    frame = FRAME.assign(count=FRAME["count"].where(FRAME["count"] % 7 != 0, -1))
    columns = ColumnTransformer([("numbers", SimpleImputer(missing_values=-1, strategy="median", add_indicator=True), ["count", "height"])])
    result = check(columns, frame, extra=[{"count": -1, "height": 170.0}, {"count": 3, "height": -1.0}])
    assert [f.missing.rule for f in result.draft.fields] == ["refuse", "refuse"]


def test_imputer_drops_a_column_that_was_empty_after_scaling() -> None:
    """A column the imputer found empty is dropped from the features, as in training."""
    frame = FRAME.assign(empty=np.where(np.arange(len(FRAME)) == 0, 1.0, np.nan))
    fitted = FRAME.assign(empty=np.nan)
    columns = ColumnTransformer([("numbers", make_pipeline(SimpleImputer(), StandardScaler()), ["height", "empty"])])
    pipeline = Pipeline([("columns", columns), ("model", LinearRegression())])
    with pytest.warns(UserWarning, match="Skipping features without any observed values"):
        pipeline.fit(fitted, VALUE)
    result = compare_with_training(pipeline, frame)
    result.assert_exact()
    assert result.draft.stages[0].model.graph.output[0].type.tensor_type.shape.dim[1].dim_value == 1


@pytest.mark.parametrize(
    "imputer",
    [
        pytest.param(SimpleImputer(strategy="most_frequent"), id="most-frequent"),
        pytest.param(SimpleImputer(strategy="constant", fill_value="keiner"), id="constant"),
        pytest.param(SimpleImputer(strategy="constant"), id="constant-default"),
        pytest.param(SimpleImputer(strategy="most_frequent", missing_values="RED"), id="marker"),
    ],
)
def test_imputer_on_strings_feeds_the_encoder_as_in_training(imputer: SimpleImputer) -> None:
    """Strings are filled, or kept missing for the encoder when the marker is an ordinary value."""
    frame = FRAME if imputer.missing_values != "RED" else FRAME.assign(colour=FRAME["colour"].fillna("RED"))
    check(categorical(imputer, OneHotEncoder(handle_unknown="ignore")), frame)


def test_indicator_on_strings_becomes_a_feature() -> None:
    """add_indicator on a string column gives an encodable column of booleans."""
    columns = ColumnTransformer(
        [
            (
                "colour",
                make_pipeline(SimpleImputer(strategy="most_frequent", add_indicator=True), OneHotEncoder(handle_unknown="ignore")),
                ["colour"],
            )
        ]
    )
    check(columns)


@pytest.mark.parametrize(
    "encoder",
    [
        pytest.param(OneHotEncoder(handle_unknown="ignore"), id="ignore"),
        pytest.param(OneHotEncoder(handle_unknown="ignore", sparse_output=False), id="dense"),
        pytest.param(OneHotEncoder(handle_unknown="ignore", drop="first"), id="drop-first"),
        pytest.param(OneHotEncoder(handle_unknown="ignore", drop="if_binary"), id="drop-if-binary"),
        pytest.param(OneHotEncoder(handle_unknown="ignore", drop=["grün", "town 3"]), id="drop-named"),
        pytest.param(OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=18), id="infrequent-min-frequency"),
        pytest.param(OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=4), id="infrequent-max-categories"),
        pytest.param(OneHotEncoder(handle_unknown="infrequent_if_exist"), id="infrequent-without-any"),
        pytest.param(OneHotEncoder(handle_unknown="warn", max_categories=4), id="warn"),
        pytest.param(OneHotEncoder(handle_unknown="ignore", max_categories=4, drop="first"), id="infrequent-and-drop"),
        pytest.param(OneHotEncoder(handle_unknown="ignore", dtype=np.int64), id="integer-output"),
        pytest.param(OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2), id="ordinal"),
        pytest.param(
            OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=99, encoded_missing_value=-2, max_categories=5),
            id="ordinal-infrequent",
        ),
    ],
)
def test_encoder_maps_known_missing_and_unseen_as_in_training(encoder: Any) -> None:
    """Known, dropped, infrequent, missing, empty, non-ASCII and unseen strings are encoded bit for bit."""
    result = check(categorical(encoder))
    colour = result.draft.fields[0]
    assert colour.missing.rule == "sentinel"
    assert colour.allowed is None
    assert colour.known == ["", "RED", "grün", "red", "青い"]


def test_encoder_whose_missing_values_stay_nan_feeds_an_imputer() -> None:
    """OrdinalEncoder's default for missing and unknown, NaN, is filled by the imputer behind it."""
    check(categorical(OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan), SimpleImputer(strategy="median")))


@pytest.mark.parametrize("encoder", [OneHotEncoder(), OrdinalEncoder(encoded_missing_value=-1)], ids=["one-hot", "ordinal"])
def test_encoder_that_raises_on_unknown_closes_the_field(encoder: Any) -> None:
    """handle_unknown='error' becomes the closed set of the raw field; null stays allowed where it is a category."""
    fields = {f.name: f for f in check(categorical(encoder)).draft.fields}
    assert fields["colour"].allowed == ["", "RED", "grün", "red", "青い"]
    assert fields["colour"].missing.rule == "sentinel"
    assert fields["town"].missing.rule == "refuse"


def test_encoder_that_raises_behind_an_imputer_closes_the_raw_field() -> None:
    """Behind an imputer the closed set is that of the categories, and the marker the imputer replaces is accepted too."""
    imputer = SimpleImputer(strategy="constant", fill_value="none", missing_values="RED")
    frame = FRAME.assign(colour=FRAME["colour"].fillna("RED"))
    columns = ColumnTransformer([("colour", make_pipeline(imputer, OneHotEncoder()), ["colour"])])
    (field,) = check(columns, frame).draft.fields
    assert set(field.allowed or []) == {"", "none", "grün", "red", "青い", "RED"}


@pytest.mark.parametrize("column", ["count", "height", "flag"])
def test_encoder_on_numbers_and_booleans_is_bit_equal(column: str) -> None:
    """Integers, floats and booleans are categories by value."""
    frame = FRAME.assign(height=FRAME["height"].round())
    check(
        ColumnTransformer([("encoded", OneHotEncoder(handle_unknown="ignore"), [column])]),
        frame,
        extra=[{column: False if column == "flag" else 0}],
    )


def test_encoder_with_a_missing_number_as_category() -> None:
    """NaN among the categories of a number column is one of them; minus zero is zero."""
    frame = FRAME.assign(amount=FRAME["amount"].round(-2))
    check(ColumnTransformer([("encoded", OneHotEncoder(handle_unknown="ignore"), ["amount"])]), frame, extra=[{"amount": -0.0}])


def test_closed_set_of_integers() -> None:
    """An encoder that raises closes an integer field to integers."""
    (field,) = check(ColumnTransformer([("encoded", OneHotEncoder(), ["count"])])).draft.fields
    assert field.kind == "integer"
    assert field.allowed == sorted(FRAME["count"].unique().tolist())


@pytest.mark.parametrize(
    "columns",
    [
        pytest.param(make_column_selector(dtype_include=np.number), id="selector"),
        pytest.param(lambda X: [c for c in X.columns if c in ("height", "count")], id="callable"),
        pytest.param(["count", "height"], id="names"),
        pytest.param([2, 1], id="positions"),
        pytest.param(slice("height", "count"), id="slice"),
        pytest.param([False, True, True, False, False, False], id="mask"),
    ],
)
def test_columns_can_be_chosen_in_every_way(columns: Any) -> None:
    """ColumnTransformer's ways to choose columns give the same columns in the same order."""
    check(ColumnTransformer([("chosen", make_pipeline(SimpleImputer(), StandardScaler()), columns)]))


def test_dropped_columns_are_not_asked_of_callers() -> None:
    """Columns that a ColumnTransformer drops are no raw fields."""
    draft = check(ColumnTransformer([("kept", StandardScaler(), ["height"]), ("gone", "drop", ["town", "count"])])).draft
    assert [f.name for f in draft.fields] == ["height"]


def test_remainder_passes_through_in_place() -> None:
    """remainder='passthrough' keeps the other columns behind the transformed ones, booleans and integers as numbers."""
    columns = ColumnTransformer([("strings", OneHotEncoder(handle_unknown="ignore"), STRINGS)], remainder="passthrough")
    check(make_pipeline(columns, SimpleImputer()))


def test_remainder_can_be_a_transformer() -> None:
    """A transformer as remainder works on the columns nobody named."""
    check(ColumnTransformer([("gone", "drop", [*STRINGS, "flag"])], remainder=make_pipeline(SimpleImputer(), RobustScaler())))


def test_a_column_may_be_used_twice() -> None:
    """One raw column can feed several transformers."""
    check(
        ColumnTransformer(
            [
                ("scaled", StandardScaler(), ["height"]),
                ("raw", "passthrough", ["height", "count"]),
                ("hot", OneHotEncoder(handle_unknown="ignore"), ["count"]),
            ]
        )
    )


def test_mixed_block_is_imputed_column_by_column() -> None:
    """Strings and numbers through one imputer keep their own fills."""
    check(
        Pipeline(
            [
                ("fill", ColumnTransformer([("all", SimpleImputer(strategy="most_frequent"), ["amount", "colour", "count"])])),
                ("encode", ColumnTransformer([("hot", OneHotEncoder(handle_unknown="ignore"), [1]), ("rest", StandardScaler(), [0, 2])])),
            ]
        )
    )


def test_sparse_features_are_scaled_as_training_scales_them() -> None:
    """Scalers multiply sparse data by a reciprocal, which rounds differently from a division."""
    hot = ("hot", OneHotEncoder(handle_unknown="ignore"), STRINGS)
    columns = ColumnTransformer([hot, ("numbers", SimpleImputer(), NUMBERS)], sparse_threshold=1.0)
    check(make_pipeline(columns, StandardScaler(with_mean=False)))
    check(make_pipeline(columns, MaxAbsScaler()))
    check(make_pipeline(columns, RobustScaler(with_centering=False)))


def test_frames_between_steps_change_nothing() -> None:
    """set_output(transform='pandas') only changes what travels between steps."""
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    check(
        ColumnTransformer([("numbers", make_pipeline(IMPUTE, StandardScaler()), NUMBERS), ("hot", encoder, STRINGS)]).set_output(
            transform="pandas"
        )
    )


def every_seventh(X: Any, y: Any) -> Any:
    """Score columns by their place."""
    return np.arange(X.shape[1], dtype=float) % 7


def test_selection_by_score_keeps_the_chosen_features() -> None:
    """SelectKBest behind a one-hot encoder keeps training's columns."""
    columns = ColumnTransformer([("hot", OneHotEncoder(handle_unknown="ignore"), STRINGS), ("numbers", IMPUTE, NUMBERS)])
    check(make_pipeline(columns, SelectKBest(every_seventh, k=9)))


def column_variants() -> dict[str, pd.Series]:
    """Return the string column in every pandas type it can have."""
    colour = FRAME["colour"].astype(object).where(FRAME["colour"].notna(), None)
    return {
        "str": FRAME["colour"],
        "object with None": colour,
        "object with NaN": colour.where(colour.notna(), np.nan),
        "category": FRAME["colour"].astype("category"),
    }


@pytest.mark.parametrize("variant", column_variants())
@pytest.mark.parametrize(
    "encoder",
    [
        OneHotEncoder(handle_unknown="ignore"),
        OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2),
    ],
    ids=["one-hot", "ordinal"],
)
def test_null_means_what_missing_meant_in_the_column(variant: str, encoder: Any) -> None:
    """Whether training saw None or NaN, in strings, objects or categories: null is encoded as that was."""
    result = check(ColumnTransformer([("encoded", encoder, ["colour"])]), FRAME.assign(colour=column_variants()[variant]))
    assert result.draft.fields[0].missing.rule == "sentinel"


def test_imputer_fills_none_only_when_it_looks_for_none() -> None:
    """None in an object column is a category of its own unless missing_values is None."""
    frame = FRAME.assign(colour=column_variants()["object with None"])
    encoder = OneHotEncoder(handle_unknown="ignore")
    filled = check(
        ColumnTransformer([("c", make_pipeline(SimpleImputer(missing_values=None, strategy="most_frequent"), encoder), ["colour"])]), frame
    )
    kept = check(ColumnTransformer([("c", make_pipeline(SimpleImputer(strategy="constant", fill_value="x"), encoder), ["colour"])]), frame)
    assert filled.comparisons["features"].elements < kept.comparisons["features"].elements


@pytest.mark.parametrize(
    ("dtype", "kind", "rule"),
    [
        ("Int64", "integer", "nan"),
        ("Float64", "number", "nan"),
        ("int8", "integer", "nan"),
        ("uint16", "integer", "nan"),
        ("float64", "number", "nan"),
    ],
)
def test_number_types_of_pandas_are_float64_in_the_graph(dtype: str, kind: str, rule: str) -> None:
    """Nullable and narrow integers and nullable floats give training's features."""
    frame = FRAME.assign(count=FRAME["count"].astype(dtype))
    (field,) = check(ColumnTransformer([("n", make_pipeline(SimpleImputer(), StandardScaler()), ["count"])]), frame).draft.fields
    assert (field.kind, field.missing.rule) == (kind, rule)


@pytest.mark.parametrize("marker", [pd.NA, np.nan], ids=["NA", "NaN"])
def test_imputer_looks_for_the_marker_of_nullable_types(marker: object) -> None:
    """pandas.NA of nullable strings and integers is filled when missing_values says so, or when training turned it into NaN."""
    frame = FRAME.assign(colour=FRAME["colour"].astype("string"), count=FRAME["count"].astype("Int64").where(FRAME["height"] > 160))
    numbers = ("numbers", SimpleImputer(missing_values=marker), ["count"])
    fill = SimpleImputer(missing_values=pd.NA, strategy="most_frequent", add_indicator=True)
    strings = ("strings", make_pipeline(fill, OneHotEncoder(handle_unknown="ignore")), ["colour"])
    result = check(ColumnTransformer([numbers, strings]), frame)
    assert [f.missing.rule for f in result.draft.fields] == ["nan", "sentinel"]


def test_columns_that_may_be_missing_may_be_missing_together() -> None:
    """A boolean that was never missing is refused as null when that would make another column's null fail in training."""
    frame = FRAME.assign(count=FRAME["count"].astype("Int64").where(FRAME["height"] > 160))
    result = check(ColumnTransformer([("mixed", SimpleImputer(strategy="most_frequent"), ["count", "amount", "flag"])]), frame)
    assert {f.name: f.missing.rule for f in result.draft.fields} == {"amount": "nan", "count": "nan", "flag": "refuse"}


def test_encoder_with_categories_of_its_own_order() -> None:
    """Categories given by hand keep their order; those training never saw are known all the same."""
    order = [["RED", "violet", "red"], [f"town {i}" for i in range(25, -1, -1)]]
    check(categorical(OneHotEncoder(categories=order, handle_unknown="ignore")), extra=[{"colour": "violet", "town": "town 25"}])
    check(categorical(OrdinalEncoder(categories=order, handle_unknown="use_encoded_value", unknown_value=-1)))


def test_nullable_booleans_get_a_companion() -> None:
    """A missing boolean travels as a companion input and is filled as in training."""
    frame = FRAME.assign(flag=FRAME["flag"].astype("boolean").where(FRAME["count"] % 5 != 0))
    (field,) = check(ColumnTransformer([("n", SimpleImputer(strategy="mean"), ["flag"])]), frame).draft.fields
    assert field.missing.rule == "companion"


def test_booleans_of_an_object_column_with_none() -> None:
    """An object column of True, False and None is a nullable boolean, None a category of its own."""
    flags = FRAME["flag"].astype(object).where(FRAME["count"] % 5 != 0, None)
    check(ColumnTransformer([("n", OneHotEncoder(handle_unknown="ignore"), ["flag"])]), FRAME.assign(flag=flags))


def test_stage_boundary_is_the_features_matrix() -> None:
    """The preprocessing graph ends in `features`, and node names say where in the pipeline they come from."""
    draft = check(numeric(IMPUTE, StandardScaler())).draft
    assert [s.name for s in draft.stages] == ["preprocess.batch", "model"]
    assert draft.stages[1].model.graph.input[0].name == "features"
    assert any("columns.numbers.standardscaler" in node.name for node in draft.stages[0].model.graph.node)


def test_sentinel_never_equals_a_training_value() -> None:
    """When the frame holds the stand-in for missing strings, another one is chosen."""
    first = from_sklearn(*_pipeline_and_frame(FRAME), name="s", version=1).fields[0].missing.sentinel
    frame = FRAME.assign(colour=FRAME["colour"].where(FRAME["count"] > 5, str(first)))
    result = check(categorical(OneHotEncoder(handle_unknown="ignore")), frame, extra=[{"colour": str(first), "town": "town 1"}])
    assert result.draft.fields[0].missing.sentinel != first


def _pipeline_and_frame(frame: pd.DataFrame) -> tuple[Pipeline, pd.DataFrame]:
    pipeline = Pipeline([("columns", categorical(OneHotEncoder(handle_unknown="ignore"))), ("model", LinearRegression())])
    return pipeline.fit(frame, VALUE), frame
