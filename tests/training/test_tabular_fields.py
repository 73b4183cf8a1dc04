"""Raw fields are inferred from frame and pipeline, shown, overridden within what training accepts, and refused otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from samegraph_transforms.draft import PackageDraft
from samegraph_transforms.errors import AuthoringError, InputError, UnsupportedStep
from samegraph_transforms.signature import Signature
from samegraph_transforms.tabular import describe_fields, from_sklearn, print_fields
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from training.parity import compare_with_training, make_frame, make_target, manifest_of

FRAME = make_frame()


def fitted(frame: pd.DataFrame = FRAME, *, unknown: str = "ignore") -> Pipeline:
    """Return a fitted pipeline over most kinds of columns."""
    columns = ColumnTransformer(
        [
            ("filled", make_pipeline(SimpleImputer(), StandardScaler()), ["amount", "count"]),
            ("scaled", StandardScaler(), ["height"]),
            ("hot", OneHotEncoder(handle_unknown=unknown), ["colour", "town"]),
            ("flag", "passthrough", ["flag"]),
        ]
    )
    return Pipeline([("columns", columns), ("model", LogisticRegression(max_iter=2000))]).fit(frame, make_target(FRAME, ["no", "yes"]))


def draft_of(overrides: Mapping[str, Mapping[str, Any]] | None = None, **keywords: Any) -> PackageDraft:
    """Return the draft of `fitted`, with overrides."""
    return from_sklearn(fitted(**keywords), FRAME, name="fields", version=3, overrides=overrides)


def test_kinds_and_missing_rules_are_those_of_the_training_code() -> None:
    """A column may be null exactly where the pipeline answers a row without it."""
    fields = {f.name: (f.kind, f.missing.rule) for f in draft_of().fields}
    assert fields == {
        "amount": ("number", "nan"),
        "height": ("number", "refuse"),
        "count": ("integer", "nan"),
        "flag": ("boolean", "refuse"),
        "colour": ("string", "sentinel"),
        "town": ("string", "sentinel"),
    }


def test_fields_tell_what_training_saw() -> None:
    """Ranges, gaps, values and an example are in the field."""
    fields = {f.name: f for f in draft_of().fields}
    assert f"{FRAME['height'].min():g} to {FRAME['height'].max():g}" in fields["height"].description
    assert f"missing in {FRAME['amount'].isna().sum()} of 400 rows" in fields["amount"].description
    assert fields["town"].known == sorted(FRAME["town"].unique())
    assert fields["colour"].example == "red"
    assert fields["flag"].example is False


def test_every_field_has_an_example_that_works() -> None:
    """The examples together are a row the signature accepts."""
    draft = draft_of()
    assert Signature(manifest_of(draft)).check_row({f.name: f.example for f in draft.fields})


def test_fields_are_shown_as_a_table() -> None:
    """The table names every field, its kind and its rule."""
    screen = StringIO()
    print_fields(
        draft_of({"height": {"minimum": 0, "maximum": 300}, "town": {"allowed": ["town 1", "town 2"]}}), Console(file=screen, width=200)
    )
    text = screen.getvalue()
    for words in ("amount", "integer", "null is refused", "null is handled as in training", "0 to 300", 'only "town 1", "town 2"'):
        assert words in text
    assert describe_fields(draft_of().fields).row_count == 6


def test_numbers_that_training_refuses_are_refused() -> None:
    """Trees that read float32 fail on what float32 cannot hold, so the signature does."""
    frame = FRAME[["height", "count"]]
    draft = from_sklearn(RandomForestClassifier(3).fit(frame, make_target(FRAME, [0, 1])), frame, name="limits", version=1)
    assert (draft.fields[0].minimum, draft.fields[0].maximum) == (-1e35, 1e35)
    signature = Signature(manifest_of(draft))
    assert signature.check_row({"height": 1e34, "count": 1})
    with pytest.raises(InputError) as caught:
        signature.check_row({"height": 1e39, "count": 1})
    assert (caught.value.code, caught.value.field) == ("out_of_range", "height")


@pytest.mark.parametrize(
    ("field", "override", "attribute", "expected"),
    [
        ("height", {"minimum": 50, "maximum": 260}, "maximum", 260),
        ("town", {"max_length": 20}, "max_length", 20),
        ("town", {"allowed": [f"town {i}" for i in range(12)]}, "allowed", [f"town {i}" for i in range(12)]),
        ("colour", {"allowed": ["grün", "青い", "RED", ""]}, "example", "grün"),
        ("height", {"minimum": 175}, "example", 175.0),
        ("amount", {"missing": "refuse"}, "missing.rule", "refuse"),
        ("amount", {"missing": {"rule": "sentinel", "sentinel": 5.0}}, "missing.sentinel", 5.0),
        ("height", {"missing": {"rule": "sentinel", "sentinel": 170.0}}, "missing.rule", "sentinel"),
        ("colour", {"missing": {"rule": "sentinel", "sentinel": "red"}}, "missing.sentinel", "red"),
        ("colour", {"missing": "companion"}, "missing.rule", "companion"),
        ("colour", {"missing": "sentinel"}, "missing.rule", "sentinel"),
        ("amount", {"missing": "companion"}, "missing.rule", "companion"),
        ("count", {"missing": "companion"}, "missing.rule", "companion"),
        ("count", {"missing": "refuse"}, "graph_dtype", "int64"),
        ("count", {"kind": "number"}, "kind", "number"),
        ("town", {"required": False, "default": "town 2"}, "default", "town 2"),
        ("colour", {"required": False}, "required", False),
    ],
)
def test_override_is_in_force_and_exact(field: str, override: dict[str, Any], attribute: str, expected: object) -> None:
    """An override changes the field, and the package still answers like the training code under it."""
    absent = [{"amount": 1.0, "height": 160.0, "count": 3, "flag": True, "colour": "red", "town": "town 1"}]
    extra = [{k: v for k, v in row.items() if k != field} for row in absent] if override.get("required") is False else []
    result = compare_with_training(fitted(), FRAME, overrides={field: override}, extra=extra)
    result.assert_exact()
    found: Any = next(f for f in result.draft.fields if f.name == field)
    for part in attribute.split("."):
        found = getattr(found, part)
    assert found == expected


def test_integral_floats_can_be_called_integers() -> None:
    """A float column of whole numbers becomes an integer field when the author says so."""
    frame = FRAME.assign(amount=FRAME["amount"].round())
    result = compare_with_training(fitted(frame), frame, overrides={"amount": {"kind": "integer"}})
    result.assert_exact()
    assert result.draft.fields[0].kind == "integer"


def test_limits_of_float32_do_not_reach_integers() -> None:
    """An integer field ends at 2^53, well before float32 does, also when training had floats."""
    frame = FRAME[["height"]].assign(count=FRAME["count"].astype("float64"))
    forest = RandomForestClassifier(3).fit(frame, make_target(FRAME, [0, 1]))
    result = compare_with_training(forest, frame, overrides={"count": {"kind": "integer"}}, extra=[{"height": 1.5, "count": 2**53}])
    result.assert_exact()
    assert [f.maximum for f in result.draft.fields] == [1e35, None]


def test_description_keeps_what_training_saw() -> None:
    """The author's words come first."""
    (field, *_) = draft_of({"amount": {"description": "Paid, in euro."}}).fields
    assert field.description.startswith("Paid, in euro. Training saw ")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"hieght": {"minimum": 1}}, "'hieght': the pipeline reads no such column"),
        ({"height": {"shape": [1]}}, "'shape' cannot be set"),
        ({"height": {"missing": "nan"}}, "the training code fails when it is missing"),
        ({"height": {"missing": "sentinel"}}, "sentinel"),
        ({"height": {"missing": {"rule": "sentinel", "sentinel": "tall"}}}, "is not a number"),
        ({"flag": {"missing": {"rule": "sentinel", "sentinel": 1}}}, "is not a boolean"),
        ({"height": {"kind": "integer"}}, "not whole numbers"),
        ({"town": {"kind": "number"}}, "training had a string"),
        ({"town": {"minimum": 3}}, "minimum and maximum are for numbers"),
        ({"town": {"required": True, "default": "x"}}, "a default is for fields that are not required"),
        ({"town": {"max_length": 0}}, "max_length"),
    ],
)
def test_override_that_cannot_be_is_refused(overrides: dict[str, dict[str, Any]], words: str) -> None:
    """The message names the field and what is wrong."""
    with pytest.raises(AuthoringError) as caught:
        draft_of(overrides)
    assert words in str(caught.value)


def test_closed_set_can_only_be_narrowed() -> None:
    """What the encoder would raise on cannot be let in."""
    frame = FRAME.assign(colour=FRAME["colour"].fillna("red"))
    pipeline = fitted(frame, unknown="error")
    narrowed = from_sklearn(pipeline, frame, name="closed", version=1, overrides={"colour": {"allowed": ["red"]}})
    assert next(f for f in narrowed.fields if f.name == "colour").allowed == ["red"]
    for allowed in (["red", "violet"], None):
        with pytest.raises(AuthoringError, match="training accepts only"):
            from_sklearn(pipeline, frame, name="closed", version=1, overrides={"colour": {"allowed": allowed}})


def test_accepted_range_can_only_be_narrowed() -> None:
    """Numbers that training fails on cannot be let in."""
    frame = FRAME[["height"]]
    forest = RandomForestClassifier(3).fit(frame, make_target(FRAME, [0, 1]))
    with pytest.raises(AuthoringError, match="fails beyond"):
        from_sklearn(forest, frame, name="limits", version=1, overrides={"height": {"maximum": 1e300}})


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (FRAME["height"].astype("float32"), "is float32"),
        (pd.Series(pd.date_range("2013-01-01", periods=400)), "datetime64"),
        (pd.Series([1, "a"] * 200, dtype=object), "mixed-integer"),
        (pd.Series([None, np.nan, "a", "b"] * 100, dtype=object), "several ways"),
        (pd.Series([np.nan] * 400), "has no value at all"),
        (pd.Series([np.inf, 1.0] * 200), "infinite"),
    ],
    ids=["float32", "dates", "mixed", "two-nulls", "empty", "infinite"],
)
def test_column_without_an_exact_field_is_refused(column: pd.Series, words: str) -> None:
    """The error names the column and what to do."""
    frame = FRAME[["count"]].assign(odd=column.to_numpy() if column.dtype == "float64" else column)
    pipeline = make_pipeline(
        ColumnTransformer([("n", StandardScaler(), ["count"]), ("odd", OneHotEncoder(handle_unknown="ignore"), ["odd"])]),
        LogisticRegression(),
    )
    readable = frame.assign(odd=frame["odd"].astype("str"))
    pipeline.fit(readable, make_target(FRAME, [0, 1]))
    with pytest.raises(UnsupportedStep) as caught:
        from_sklearn(pipeline, frame, name="odd", version=1)
    assert caught.value.step == "columns.odd"
    assert words in str(caught.value)


def test_column_with_the_name_of_an_output_is_refused() -> None:
    """Two values of one name cannot be told apart; the message says how to rename."""
    frame = FRAME[["height"]].rename(columns={"height": "label"})
    with pytest.raises(AuthoringError, match="OutputNames"):
        from_sklearn(LogisticRegression().fit(frame, make_target(FRAME, [0, 1])), frame, name="clash", version=1)


def test_column_name_that_cannot_be_a_field_is_refused() -> None:
    """Field names are also graph and JSON names."""
    frame = FRAME[["height"]].rename(columns={"height": "height/cm"})
    with pytest.raises(AuthoringError, match="height/cm"):
        from_sklearn(LogisticRegression().fit(frame, make_target(FRAME, [0, 1])), frame, name="named", version=1)


def test_frame_that_is_not_the_training_frame_is_refused() -> None:
    """A frame without the pipeline's columns, an empty one, and an array are named as such."""
    with pytest.raises(AuthoringError, match="lacks 'town'"):
        from_sklearn(fitted(), FRAME.drop(columns="town"), name="f", version=1)
    with pytest.raises(AuthoringError, match="at least one row"):
        from_sklearn(fitted(), FRAME.iloc[:0], name="f", version=1)
    with pytest.raises(AuthoringError, match="several columns called 'town'"):
        from_sklearn(fitted(), pd.concat([FRAME, FRAME[["town"]]], axis=1), name="f", version=1)


def test_pipeline_without_column_names_is_refused() -> None:
    """A pipeline fitted on an array has no names a caller could use."""
    model = LogisticRegression().fit(FRAME[["height"]].to_numpy(), make_target(FRAME, [0, 1]))
    with pytest.raises(AuthoringError, match="without column names"):
        from_sklearn(model, FRAME[["height"]], name="f", version=1)


def test_unfitted_pipeline_is_refused() -> None:
    """The message says to call fit."""
    with pytest.raises(AuthoringError, match="call fit first"):
        from_sklearn(Pipeline([("model", LogisticRegression())]), FRAME, name="f", version=1)
