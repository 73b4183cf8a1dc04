"""The raw-input signature: what is accepted, what is refused and how it is said, and that both ways in agree."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samegraph_transforms.errors import InputError
from samegraph_transforms.manifest import Manifest, Missing, Output, RawField, Stage
from samegraph_transforms.signature import Signature

FIELDS = [
    RawField(name="age", kind="number", minimum=0, maximum=120, missing=Missing(rule="nan")),
    RawField(name="count", kind="integer", missing=Missing(rule="companion")),
    RawField(name="city", kind="string", max_length=8, missing=Missing(rule="sentinel", sentinel="__none__")),
    RawField(name="sex", kind="string", allowed=["female", "male"]),
    RawField(name="member", kind="boolean", required=False, default=False),
]
GOOD = {"age": 41, "count": 3, "city": "Turin", "sex": "male", "member": True}


def signature_of(*fields: RawField) -> Signature:
    stage = Stage(name="model", file="model.onnx", inputs={}, outputs={})
    return Signature(Manifest(name="m", version=1, fields=list(fields), outputs=[Output(name="y", dtype="float64")], stages=[stage]))


@pytest.fixture(scope="module")
def signature() -> Signature:
    return signature_of(*FIELDS)


def refused(signature: Signature, instance: object) -> InputError:
    with pytest.raises(InputError) as caught:
        signature.check_row(instance, 7)
    return caught.value


def test_a_good_instance_becomes_a_row_in_manifest_order(signature: Signature) -> None:
    """Keys may come in any order; the row has the manifest's."""
    shuffled = dict(reversed(GOOD.items()))
    assert signature.check_row(shuffled) == (41.0, 3, "Turin", "male", True)


def test_null_and_absent_follow_the_rules(signature: Signature) -> None:
    """Null is missing where training had missing values; a default stands in only for what was left out."""
    row = signature.check_row({"age": None, "count": None, "city": None, "sex": "female"})
    assert row == (None, None, None, "female", False)


@pytest.mark.parametrize(
    ("change", "code", "field", "says"),
    [
        ({"age": "41"}, "wrong_type", "age", "a number or null"),
        ({"age": True}, "wrong_type", "age", "got a boolean"),
        ({"age": 121}, "out_of_range", "age", "between 0 and 120"),
        ({"age": 10**400}, "out_of_range", "age", "too large"),
        ({"count": 2.5}, "wrong_type", "count", "whole number"),
        ({"count": 2**53 + 1}, "out_of_range", "count", "2^53"),
        ({"city": "Thessaloniki"}, "too_long", "city", "limit is 8"),
        ({"city": 5}, "wrong_type", "city", "a string or null"),
        ({"sex": "diverse"}, "not_allowed", "sex", "'female', 'male'"),
        ({"sex": None}, "wrong_type", "sex", "must not be null"),
        ({"member": 1}, "wrong_type", "member", "true or false"),
        ({"colour": "red"}, "unknown_field", "colour", "fields are 'age'"),
    ],
    ids=lambda v: str(v)[:24] if not isinstance(v, dict) else next(iter(v)),
)
def test_a_bad_value_is_refused_with_its_field_instance_and_what_to_do(
    signature: Signature, change: dict[str, Any], code: str, field: str, says: str
) -> None:
    """The error names field and instance and says what is accepted."""
    error = refused(signature, {**GOOD, **change})
    assert (error.code, error.field, error.instance) == (code, field, 7)
    assert says in str(error)


def test_a_missing_required_field_is_named(signature: Signature) -> None:
    """Leaving a field out is not the same as sending null."""
    error = refused(signature, {k: v for k, v in GOOD.items() if k != "city"})
    assert (error.code, error.field) == ("missing_field", "city")


def test_whole_floats_are_integers(signature: Signature) -> None:
    """A data frame with missing integers sends 3.0; it is the integer 3."""
    assert signature.check_row({**GOOD, "count": 3.0})[1] == 3
    body = json.dumps({"instances": [{**GOOD, "count": 3.0}]}).encode()
    rows = signature.decode_rows(body)
    assert rows is not None
    assert (rows[0][1], type(rows[0][1])) == (3, int)


def test_columns_apply_the_missing_rules(signature: Signature) -> None:
    """NaN, companion and sentinel are made where rows become graph inputs."""
    columns = signature.columns([(None, None, None, "female", False), (5.0, 2, "Oslo", "male", True)])
    assert columns["age"].dtype == np.float64
    assert math.isnan(columns["age"][0, 0])
    assert columns["count"].tolist() == [[0], [2]]
    assert columns["count__missing"].tolist() == [[True], [False]]
    assert columns["city"].tolist() == [["__none__"], ["Oslo"]]
    assert columns["member"].dtype == np.bool_
    assert all(c.shape == (2, 1) for c in columns.values())


def test_bytes_come_as_b64_objects_bare_or_named() -> None:
    """A single binary field takes both shapes, and text that is not base64 is refused instead of passed on."""
    signature = signature_of(RawField(name="image", kind="image", max_bytes=10))
    assert signature.check_row({"image": {"b64": "/9j/"}}) == signature.check_row({"b64": "/9j/"}) == (b"\xff\xd8\xff",)
    assert signature.decode_rows(b'{"instances":[{"b64":"/9j/"}]}') == [(b"\xff\xd8\xff",)]
    assert signature.decode_rows(b'{"instances":[{"image":{"b64":"/9j/"}}]}') == [(b"\xff\xd8\xff",)]
    assert refused(signature, {"b64": "not base64!"}).code == "undecodable"
    assert refused(signature, {"b64": ""}).code == "undecodable"
    assert refused(signature, {"b64": "AAAAAAAAAAAAAAAAAAAA"}).code == "too_large"
    assert refused(signature, "AAAA").code == "wrong_type"


def test_tensors_are_checked_for_shape_and_type() -> None:
    """Nested lists become arrays of the field's dtype; nothing is narrowed or guessed."""
    signature = signature_of(RawField(name="x", kind="tensor", dtype="float32", shape=[2, None]))
    array = signature.check_row([[1, 2.5], [3, 4]])[0]
    assert (array.dtype, array.tolist()) == (np.float32, [[1.0, 2.5], [3.0, 4.0]])
    assert refused(signature, [[1, 2]]).code == "wrong_shape"
    assert refused(signature, [[1], [2, 3]]).code == "wrong_shape"
    assert refused(signature, [[True, 1], [1, 1]]).code == "wrong_type"
    integers = signature_of(RawField(name="x", kind="tensor", dtype="uint8", shape=[1]))
    assert refused(integers, [300]).code == "out_of_range"
    assert refused(integers, [1.5]).code == "wrong_type"


@pytest.mark.parametrize(("dtype", "value"), [("float32", 1e300), ("float32", -(10**39)), ("float16", 70000), ("float64", 10**400)])
def test_a_number_that_a_tensor_cannot_hold_is_refused_and_never_becomes_infinity(dtype: Any, value: float) -> None:
    """Infinity would run through the graph and come back as null; the caller sent a number."""
    signature = signature_of(RawField(name="x", kind="tensor", dtype=dtype, shape=[2]))
    assert refused(signature, [1, value]).code == "out_of_range"


@pytest.mark.parametrize("value", [[["a"], ["b", "c"]], ["a", ["b"]], [[], ["a"]]], ids=str)
def test_unequal_lists_are_no_tensor_of_strings(value: object) -> None:
    """An array of objects would take the inner lists for its elements, and the graph would see their Python spelling."""
    signature = signature_of(RawField(name="x", kind="tensor", dtype="string", shape=[2]))
    assert refused(signature, value).code == "wrong_shape"


def test_typed_arrays_widen_and_never_narrow() -> None:
    """A float32 column fits a float64 tensor; the reverse would lose bits."""
    wide = signature_of(RawField(name="x", kind="tensor", dtype="float64", shape=[2]))
    assert wide.row_of({"x": np.array([1, 2], np.float32)})[0].dtype == np.float64
    narrow = signature_of(RawField(name="x", kind="tensor", dtype="float32", shape=[2]))
    with pytest.raises(InputError, match="would lose information"):
        narrow.row_of({"x": np.array([1, 2], np.float64)})


def test_columns_of_different_length_are_refused(signature: Signature) -> None:
    """The columnar form lines up or is refused as a whole."""
    with pytest.raises(InputError, match="different lengths"):
        signature.check_columns({"age": [1, 2], "count": [1]})


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=10),
    st.sampled_from(["male", "female", "Turin"]),
    st.lists(st.integers(), max_size=2),
)
instances = st.fixed_dictionaries(
    {},
    optional={
        "age": st.one_of(values, st.floats(0, 120)),
        "count": st.one_of(values, st.integers(-5, 5), st.just(4.0)),
        "city": st.one_of(values, st.text(max_size=8)),
        "sex": st.one_of(values, st.sampled_from(["male", "female"])),
        "member": values,
        "extra": st.just(1),
    },
)
almost_good = st.builds(lambda change: {**GOOD, **change}, instances)


def same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and (a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b)))


@settings(max_examples=600, deadline=None)
@given(st.lists(st.one_of(instances, almost_good), min_size=1, max_size=3))
def test_the_typed_and_the_explaining_way_accept_the_same_values(batch: list[dict[str, Any]]) -> None:
    """Property: whatever the typed pass accepts the explaining one accepts with equal rows, and what that refuses the typed one refuses."""
    signature = signature_of(*FIELDS)
    body = json.dumps({"instances": batch}).encode()
    typed = signature.decode_rows(body)
    explained = [signature.try_row(instance, i) for i, instance in enumerate(json.loads(body)["instances"])]
    if typed is None:
        # The only good values the typed pass leaves to the other are whole floats for integers.
        whole_float = any(isinstance(i.get("count"), float) for i in batch)
        assert whole_float or any(isinstance(row, InputError) for row in explained)
        return
    assert [str(row) for row in explained if isinstance(row, InputError)] == []
    assert all(same(a, b) for fast, slow in zip(typed, explained, strict=True) for a, b in zip(fast, slow, strict=True))  # type: ignore[arg-type]


COLUMNS: dict[str, list[object]] = {
    "age": [41, 0.5, None],
    "count": [3, 4.0, 2**53],
    "city": ["Turin", "Oslo", None],
    "sex": ["male", "female", "male"],
    "member": [True, False, True],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("age", True),
        ("age", "1"),
        ("age", 1e400),
        ("count", 3.5),
        ("count", 2**53 + 1),
        ("count", True),
        ("city", 1),
        ("sex", "other"),
        ("member", 1),
        ("member", None),
    ],
)
def test_whole_columns_accept_what_single_rows_do(signature: Signature, name: str, value: object) -> None:
    """The pass over columns gives the rows that the pass over rows gives, and hands over to it when anything is not as it should be."""
    columns = {key: values for key, values in COLUMNS.items() if key in signature.names}
    rows = [{key: values[i] for key, values in columns.items()} for i in range(3)]
    one_by_one = [signature.try_row(row, i) for i, row in enumerate(rows)]
    together = signature.rows_of_columns(columns, 3)
    if together is not None:
        assert together == one_by_one
        assert [[type(v) for v in row] for row in together] == [[type(v) for v in row] for row in one_by_one if isinstance(row, tuple)]
    bad = {**columns, name: [*columns[name][:2], value]}
    assert signature.rows_of_columns(bad, 3) is None
