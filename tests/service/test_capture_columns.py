"""Rows and answers survive a capture file bit for bit, whatever their types."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samegraph_service.batching import Outputs, Part
from samegraph_service.capture.columns import Layout, input_values, members, output_array, read_facts
from samegraph_service.capture.tap import Captured
from samegraph_transforms.manifest import Dtype, Manifest, Missing, Output, RawField, Stage

DTYPES: tuple[Dtype, ...] = (
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool", "string",
)  # fmt: skip
SHAPES: tuple[tuple[int | None, ...], ...] = ((), (3,), (None,), (2, 2), (None, 2))


def bits(data: st.DataObject, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return any array of the type: every pattern of bits, NaN with a payload and both zeros among them."""
    size = int(np.prod(shape))
    if dtype == "string":
        texts = data.draw(st.lists(st.text(max_size=3), min_size=size, max_size=size))
        array = np.empty(size, dtype=object)
        array[:] = texts
        return array.reshape(shape)
    if dtype == "bool":
        return np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)), dtype=np.bool_).reshape(shape)
    width = np.dtype(dtype).itemsize
    return np.frombuffer(data.draw(st.binary(min_size=size * width, max_size=size * width)), dtype=dtype).reshape(shape)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype == object:
        return bool(a.shape == b.shape and a.tolist() == b.tolist())
    return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())


def manifest(fields: list[RawField], outputs: list[Output]) -> Manifest:
    return Manifest(
        name="any", version=1, fields=fields, outputs=outputs, stages=[Stage(name="model", file="m.onnx", inputs={}, outputs={})]
    )


def written(layout: Layout, captured: list[Captured]) -> pa.RecordBatch:
    """Write a file of the requests and read it."""
    batch = layout.batch([(c, 0, c.n) for c in captured], {})
    file = io.BytesIO()
    pq.write_table(layout.table([batch], [c.time_s for c in captured]), file, compression="zstd")
    table = pq.read_table(io.BytesIO(file.getvalue()))
    facts = read_facts(table.schema, "test")
    assert facts.rows == len(table)
    (found,) = table.combine_chunks().to_batches()
    return found


def request(of: Manifest, rows: list[Any], arrays: list[np.ndarray]) -> Captured:
    n = len(rows)
    return Captured(of, "d" * 64, rows, [Part(0, n, Outputs(arrays), 0)], None, 1_800_000_000.25, "r", "p", "v1", None, None, n, 1)


@settings(max_examples=250, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(DTYPES), shape=st.sampled_from(SHAPES))
def test_tensors_and_answers_keep_every_bit(data: st.DataObject, dtype: Dtype, shape: tuple[int | None, ...]) -> None:
    """Every element type and rank, in requests of their own lengths."""
    field = RawField(name="x", kind="tensor", dtype=dtype, shape=list(shape))
    of = manifest([field], [Output(name="y", dtype=dtype, shape=list(shape))])
    requests, expected_x, expected_y = [], [], []
    for _ in range(data.draw(st.integers(1, 3))):
        n, open_ = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 3))
        concrete = tuple(open_ if d is None else d for d in shape)
        rows = [(bits(data, dtype, concrete),) for _ in range(n)]
        answers = bits(data, dtype, (n, *concrete))
        requests.append(request(of, rows, [answers]))
        expected_x += [row[0] for row in rows]
        expected_y += list(answers.reshape(n, *concrete)) if concrete else [answers[i : i + 1].reshape(()) for i in range(n)]
    found = written(Layout(of, "d" * 64, {"x": "plain"}), requests)
    ((_, x),), ((_, y),) = members(found, "inputs"), members(found, "outputs")
    assert all(same(np.asarray(a, dtype=b.dtype), b) for a, b in zip(input_values(x, field), expected_x, strict=True))
    assert all(same(np.asarray(a), np.asarray(b)) for a, b in zip(output_array(y, of.outputs[0]), expected_y, strict=True))


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.none() | st.floats(allow_nan=False, allow_infinity=False),
            st.none() | st.integers(-(2**53), 2**53),
            st.booleans() | st.none(),
            st.none() | st.text(max_size=5),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_scalars_and_missing_values_come_back_as_they_were(rows: list[tuple[Any, ...]]) -> None:
    """Null is missing, an empty string is not, −0.0 keeps its sign, and no integer becomes a float."""
    nan = Missing(rule="nan")
    fields = [
        RawField(name="n", kind="number", missing=nan),
        RawField(name="i", kind="integer", missing=nan),
        RawField(name="b", kind="boolean", missing=Missing(rule="companion")),
        RawField(name="s", kind="string", missing=Missing(rule="companion")),
    ]
    of = manifest(fields, [Output(name="y", dtype="int64")])
    found = written(Layout(of, "d" * 64, dict.fromkeys("nibs", "plain")), [request(of, rows, [np.arange(len(rows))])])
    columns = {name: input_values(column, of.field(name)) for name, column in members(found, "inputs")}
    assert [repr(row) for row in zip(*columns.values(), strict=True)] == [repr(row) for row in rows]


def test_many_requests_together_are_what_each_is_alone() -> None:
    """Partial answers and answers from several executions fall to their rows."""
    of = manifest([RawField(name="n", kind="number")], [Output(name="y", dtype="float64")])
    layout = Layout(of, "d" * 64, {"n": "plain"})
    parts = [Part(0, 2, Outputs([np.array([9.0, 10.0, 11.0])]), 1), Part(3, 1, Outputs([np.array([13.0])]), 0)]
    partial = Captured(of, "d", [(0.0,), (1.0,), (2.0,), (3.0,)], parts, [0, 1, 3], 5.0, "r", "p", "v1", "e@1", "a", 3, 1)
    whole = request(of, [(7.0,)], [np.array([17.0])])
    found = written(layout, [partial, whole, partial])
    assert found.column("instance").to_pylist() == [0, 1, 3, 0, 0, 1, 3]
    assert [r["n"] for r in found.column("inputs").to_pylist()] == [0.0, 1.0, 3.0, 7.0, 0.0, 1.0, 3.0]
    assert [r["y"] for r in found.column("outputs").to_pylist()] == [10.0, 11.0, 13.0, 17.0, 10.0, 11.0, 13.0]
    assert found.column("arm").to_pylist() == ["a"] * 3 + [None] + ["a"] * 3
    middle = layout.batch([(partial, 1, 2)], {})
    assert [r["y"] for r in middle.column("outputs").to_pylist()] == [11.0, 13.0]


def test_everything_excluded_leaves_the_answers() -> None:
    """A version of which nothing but the answers may be kept."""
    of = manifest([RawField(name="n", kind="number")], [Output(name="y", dtype="float64")])
    found = written(Layout(of, "d" * 64, {"n": "excluded"}), [request(of, [(1.0,), (2.0,)], [np.array([1.0, 2.0])])])
    assert list(members(found, "inputs")) == []
    assert len(found) == 2


def test_a_parquet_file_of_somebody_else_is_no_capture() -> None:
    """Said, instead of a missing column later."""
    from samegraph_service.capture.columns import CaptureFileInvalid

    with pytest.raises(CaptureFileInvalid, match=r"no capture of samegraph's"):
        read_facts(pa.schema([("a", pa.int64())]), "x.parquet")
