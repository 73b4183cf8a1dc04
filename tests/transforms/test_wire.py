"""Request bodies: which rows they hold, and what is said of bodies that hold none."""

from __future__ import annotations

import contextlib
import json

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samegraph_transforms.errors import InputError
from samegraph_transforms.manifest import Manifest, Missing, Output, RawField, Stage
from samegraph_transforms.signature import Signature
from samegraph_transforms.wire import (
    MAX_JSON_VALUES,
    decode_request,
    decode_v1,
    media_types,
    parse_json,
    prediction_columns,
    predictions,
    written_predictions,
)


def signature_of(*fields: RawField) -> Signature:
    stage = Stage(name="model", file="model.onnx", inputs={}, outputs={})
    return Signature(Manifest(name="m", version=1, fields=list(fields), outputs=[Output(name="y", dtype="float64")], stages=[stage]))


TABLE = signature_of(RawField(name="a", kind="number", missing=Missing(rule="nan")), RawField(name="b", kind="string"))
IMAGE = signature_of(RawField(name="image", kind="image"))
TEXT = signature_of(RawField(name="text", kind="text"))


def code_of(body: bytes, signature: Signature = TABLE) -> str:
    with pytest.raises(InputError) as caught:
        decode_v1(signature, body, max_instances=3)
    return caught.value.code


def test_rows_and_columns_hold_the_same_instances() -> None:
    """`instances` and `inputs` are two spellings of one request; the answer keeps the spelling."""
    rows = decode_v1(TABLE, b'{"instances": [{"a": 1, "b": "x"}, {"a": null, "b": "y"}]}')
    columns = decode_v1(TABLE, b'{"inputs": {"a": [1, null], "b": ["x", "y"]}}')
    assert list(rows.rows) == list(columns.rows) == [(1.0, "x"), (None, "y")]
    assert (rows.form, columns.form) == ("rows", "columns")


def test_one_bad_instance_is_an_error_in_its_place() -> None:
    """The neighbours stay good; who decides what that means is the server."""
    decoded = decode_v1(TABLE, b'{"instances": [{"a": 1, "b": "x"}, {"a": "no", "b": "y"}]}')
    assert decoded.rows[0] == (1.0, "x")
    assert isinstance(decoded.rows[1], InputError)
    assert (decoded.rows[1].instance, decoded.rows[1].field) == (1, "a")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "malformed_json"),
        (b"   ", "malformed_json"),
        (b"{", "malformed_json"),
        (b"\xff\xfe", "malformed_json"),
        (b'{"instances": [{"a": 1, "b": "\xff"}]}', "malformed_json"),
        (b'{"instances": [{"a": 1, "b": "\xed\xa0\x80"}]}', "malformed_json"),
        (b'{"inputs": {"a": [1], "b": ["\xff"]}}', "malformed_json"),
        (b'{"instances": [{"a": 1, "b": "\\ud800"}]}', "malformed_json"),
        (b'{"instances": [{"a": NaN, "b": "x"}]}', "not_a_number"),
        (b'{"instances": [{"a": -Infinity, "b": "x"}]}', "not_a_number"),
        (b'{"instances": [{"a": 1e999, "b": "x"}]}', "out_of_range"),
        (b"[1]", "bad_body"),
        (b"{}", "bad_body"),
        (b'{"instances": [], "inputs": {}}', "bad_body"),
        (b'{"instances": []}', "no_instances"),
        (b'{"instances": {}}', "bad_body"),
        (b'{"instances": [{}, {}, {}, {}]}', "too_many_instances"),
        (b'{"instances": [{"a": 1, "b": "x"}], "parameters": {"k": 1}}', "bad_body"),
        (b'{"instances": [{"a": 1, "b": "x"}], "signature_name": "other"}', "bad_body"),
        (b'{"inputs": {"a": 1}}', "wrong_shape"),
        (b'{"inputs": {"a": [1], "b": ["x", "y"]}}', "wrong_shape"),
        (b'{"inputs": {"zz": [1]}}', "unknown_field"),
    ],
    ids=lambda v: v if isinstance(v, str) else v[:40].decode("latin-1"),
)
def test_a_body_that_cannot_be_read_says_why(body: bytes, code: str) -> None:
    """Each way of being wrong has its own word."""
    assert code_of(body) == code


def test_deeply_nested_json_is_refused_without_exhausting_the_stack() -> None:
    """Ten thousand brackets are a refusal, not a crash."""
    assert code_of(b'{"instances": ' + b"[" * 10_000 + b"]" * 10_000 + b"}") in ("malformed_json", "bad_body")


@pytest.mark.parametrize("value", [b"[]", b"{}", b"1", b"null"])
def test_more_values_than_memory_is_for_are_refused_before_they_are_read(value: bytes) -> None:
    """Millions of tiny values take many times their bytes, and hold up everything else while they are read."""
    body = b'{"instances": [' + (value + b",") * MAX_JSON_VALUES + value + b"]}"
    assert code_of(body) == "too_large"
    with pytest.raises(InputError, match="JSON values"):
        parse_json(body)


def test_large_bodies_of_few_values_are_read() -> None:
    """It is not the size that costs: an encoded image is one value."""
    body = b'{"instances": [{"a": 1, "b": "' + b"x" * (MAX_JSON_VALUES + 1) + b'"}]}'
    assert len(decode_v1(TABLE, body).rows[0][1]) == MAX_JSON_VALUES + 1  # type: ignore[index]


def test_raw_bodies_fill_the_single_field_they_fit() -> None:
    """An image body is one instance of an image model; a table takes none."""
    assert decode_request(IMAGE, {"content-type": "image/jpeg"}, b"\xff\xd8").rows == [(b"\xff\xd8",)]
    assert decode_request(IMAGE, {"content-type": "application/octet-stream"}, b"x").rows == [(b"x",)]
    assert decode_request(TEXT, {"content-type": "text/plain; charset=UTF-8"}, "é".encode()).rows == [("é",)]
    with pytest.raises(InputError, match="takes application/json"):
        decode_request(TABLE, {"content-type": "image/png"}, b"x")
    bad = decode_request(TEXT, {"content-type": "text/plain"}, b"\xff").rows[0]
    assert isinstance(bad, InputError)
    assert bad.code == "undecodable"


def test_a_model_says_which_media_types_it_takes() -> None:
    """The list is what the 415 error and the API page show."""
    assert media_types(TABLE) == ["application/json"]
    assert media_types(IMAGE) == ["application/json", "image/*", "application/octet-stream", "multipart/form-data"]
    assert media_types(TEXT) == ["application/json", "text/plain"]


def test_one_output_answers_bare_and_several_by_name() -> None:
    """The rule of the V1 protocol."""
    label, score = Output(name="label", dtype="string"), Output(name="score", dtype="float64", shape=[2])
    labels, scores = np.array(["x", "y"], dtype=object), np.array([[0.25, 0.75], [1.0, 0.0]])
    assert predictions([label], [labels]) == ["x", "y"]
    assert predictions([label, score], [labels, scores]) == [{"label": "x", "score": [0.25, 0.75]}, {"label": "y", "score": [1.0, 0.0]}]
    assert prediction_columns([label, score], [labels, scores]) == {"label": ["x", "y"], "score": [[0.25, 0.75], [1.0, 0.0]]}
    assert prediction_columns([label], [labels]) == ["x", "y"]


@pytest.mark.parametrize(
    "names", [["label"], ["label", "score"], ["with space", "é"], ['quo"te', "b"], ["back\\slash", "b"], ["class", "\x01"]]
)
def test_what_is_written_is_what_the_predictions_are(names: list[str]) -> None:
    """Records are written as the objects they stand for, whatever the outputs are called; NaN is null in both."""
    arrays = [np.array(["x", 'y"'], dtype=object), np.array([[0.25, np.nan], [1.0, 0.0]])][: len(names)]
    outputs = [Output.model_construct(name=name, dtype="float64", shape=[]) for name in names]
    written = msgspec.json.encode(written_predictions(outputs, arrays))
    assert written == msgspec.json.encode(predictions(outputs, arrays))
    assert written_predictions(outputs, [array[:0] for array in arrays]) == []


@given(st.binary(max_size=60))
def test_no_bytes_whatever_raise_anything_but_an_input_error(body: bytes) -> None:
    """Property: a body is rows or an InputError, never another exception."""
    with contextlib.suppress(InputError):
        assert decode_v1(TABLE, body).rows


@given(st.binary(min_size=1, max_size=12))
def test_no_bytes_whatever_inside_a_string_raise_anything_but_an_input_error(text: bytes) -> None:
    """Property: the same for bytes in the middle of a body that is otherwise right, where most decoders look last."""
    with contextlib.suppress(InputError):
        assert decode_v1(TABLE, b'{"instances": [{"a": 1, "b": "' + text + b'"}]}').rows


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda c: st.lists(c, max_size=3) | st.dictionaries(st.text(max_size=5), c, max_size=3),
        max_leaves=8,
    )
)
def test_no_json_whatever_raises_anything_but_an_input_error(document: object) -> None:
    """Property: any JSON under `instances` is rows or errors in their places."""
    for body in (json.dumps(document), json.dumps({"instances": document}), json.dumps({"inputs": document})):
        for signature in (IMAGE, TABLE):
            with contextlib.suppress(InputError):
                assert decode_v1(signature, body.encode()).rows


def test_parse_json_points_at_the_byte() -> None:
    """A person can find the place."""
    with pytest.raises(InputError, match=r"\(byte [0-9]+\)"):
        parse_json(b'{"a": nope}')
