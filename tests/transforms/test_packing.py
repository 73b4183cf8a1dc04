"""Columns fed as one tensor per type answer exactly as columns fed one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import package_builders as build
import pytest
from onnx import TensorProto, helper
from samegraph_transforms.draft import DraftStage
from samegraph_transforms.manifest import Missing, Output, RawField
from samegraph_transforms.package import Package, write_package
from samegraph_transforms.packing import ColumnGroup, pack_columns
from samegraph_transforms.runtime import PackageRuntime

FIELDS = [
    RawField(name="a", kind="number", missing=Missing(rule="nan")),
    RawField(name="s", kind="string", missing=Missing(rule="sentinel", sentinel="none")),
    RawField(name="b", kind="number", missing=Missing(rule="sentinel", sentinel=-1.0)),
    RawField(name="i", kind="integer"),
    RawField(name="t", kind="string"),
    RawField(name="c", kind="number", missing=Missing(rule="companion")),
    RawField(name="j", kind="integer", missing=Missing(rule="sentinel", sentinel=9)),
    RawField(name="d", kind="number"),
    RawField(name="k", kind="boolean"),
    RawField(name="l", kind="boolean"),
]
ROWS: list[tuple[Any, ...]] = [
    (1.5, "x", 2.5, 3, "y", None, None, 7.25, True, False),
    (None, None, None, -4, "", 0.5, 2, -0.0, False, False),
    (0.1, "é", 0.2, 0, "z", 1e300, 5, 1e-300, True, True),
]


def graph() -> onnx.ModelProto:
    """Concatenate what is packed in several orders, and use some columns alone, in an If as well."""
    nodes = [
        helper.make_node("Identity", ["b"], ["b_again"]),
        helper.make_node("Concat", ["d", "b_again", "a"], ["features"], axis=1),
        helper.make_node("Concat", ["d", "b"], ["two"], axis=1),
        helper.make_node("Concat", ["a", "a"], ["twice"], axis=1),
        helper.make_node("Concat", ["s", "t"], ["words"], axis=1),
        helper.make_node("Add", ["i", "j"], ["total"]),
        helper.make_node("And", ["k", "l"], ["both"]),
        helper.make_node("If", ["yes"], ["chosen"], then_branch=_branch("a"), else_branch=_branch("d")),
        helper.make_node("Where", ["c__missing", "a", "c"], ["filled"]),
    ]
    columns = [(f.name, getattr(TensorProto, _TYPES[f.graph_dtype]), ["n", 1]) for f in FIELDS]
    outputs = [(o.name, getattr(TensorProto, _TYPES[o.dtype]), ["n", *o.shape]) for o in OUTPUTS]
    return build.model_of(nodes, [*columns, ("c__missing", TensorProto.BOOL, ["n", 1])], outputs, yes=np.array(True))


_TYPES = {"float64": "DOUBLE", "int64": "INT64", "bool": "BOOL", "string": "STRING"}
OUTPUTS = [
    Output(name="features", dtype="float64", shape=[3]),
    Output(name="two", dtype="float64", shape=[2]),
    Output(name="twice", dtype="float64", shape=[2]),
    Output(name="words", dtype="string", shape=[2]),
    Output(name="total", dtype="int64", shape=[1]),
    Output(name="both", dtype="bool", shape=[1]),
    Output(name="chosen", dtype="float64", shape=[1]),
    Output(name="filled", dtype="float64", shape=[1]),
]


def _branch(name: str) -> onnx.GraphProto:
    out = helper.make_tensor_value_info(f"{name}_out", TensorProto.DOUBLE, ["n", 1])
    return helper.make_graph([helper.make_node("Identity", [name], [f"{name}_out"])], name, [], [out])


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    draft = build.draft(fields=FIELDS, outputs=OUTPUTS, stages=[DraftStage("model", graph())])
    return write_package(draft, [], tmp_path_factory.mktemp("models") / "plants" / "1", [])


@pytest.mark.parametrize("n", [1, 2, 3, 40])
def test_packed_columns_answer_as_separate_ones(package: Package, n: int) -> None:
    """Every type, every missing rule, every order, bit for bit."""
    rows = [ROWS[i % len(ROWS)] for i in range(n)]
    packed, apart = PackageRuntime.load(package), PackageRuntime.load(package, merge=False)
    assert len(packed.collate(rows)) < len(apart.collate(rows))
    want = apart.predict(rows)
    for name, array in packed.predict(rows).items():
        assert array.dtype == want[name].dtype
        np.testing.assert_array_equal(array, want[name])


def test_the_largest_concat_of_columns_becomes_the_packed_tensor_itself() -> None:
    """The order of the packed columns is that of the model's own features."""
    model, groups = pack_columns(graph(), FIELDS)
    floats = next(g for g in groups if g.dtype == "float64")
    assert [f.name for f in floats.fields] == ["d", "b", "a"]
    assert not any(list(n.input) == ["d", "b_again", "a"] for n in model.graph.node)
    onnx.checker.check_model(model)


def test_fields_with_a_companion_and_lone_columns_stay_apart() -> None:
    """Nothing is packed that is not at least two columns of one type."""
    _, groups = pack_columns(graph(), FIELDS)
    assert "c" not in {f.name for g in groups for f in g.fields}
    alone, none = pack_columns(build.preprocess(), build.draft().fields)
    assert none == []
    assert alone.SerializeToString() == build.preprocess().SerializeToString()


def test_missing_values_keep_their_rules_when_packed(package: Package) -> None:
    """NaN and sentinels are put in where the tensor is made."""
    feeds = PackageRuntime.load(package).collate([ROWS[1]])
    assert np.isnan(feeds["samegraph/float64"][0]).tolist() == [False, False, True]
    assert feeds["samegraph/float64"][0, 1] == -1.0
    assert feeds["samegraph/string"].tolist() == [["none", ""]]
    assert feeds["c__missing"].tolist() == [[False]]


@pytest.mark.parametrize("width", [3, 4])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_rows_that_are_the_columns_make_the_same_tensor(n: int, width: int) -> None:
    """Whole rows are read value by value, those that hold more than the columns are not; None is NaN either way."""
    kinds: list[tuple[Any, list[Any]]] = [
        ("number", [1.5, None, 2**60 + 1, -0.0]),
        ("integer", [2**62, -1, 0, 7]),
        ("boolean", [True, False, True, True]),
    ]
    for kind, values in kinds:
        fields = tuple(RawField(name=name, kind=kind) for name in "abc")
        group = ColumnGroup("all", fields[0].graph_dtype, fields)
        rows = [tuple(values[(i + k) % 4] for k in range(width)) for i in range(n)]
        made = group.collator({"a": 0, "b": 1, "c": 2}, width)(rows)
        assert made.dtype == group.dtype
        np.testing.assert_array_equal(made, np.array([row[:3] for row in rows], dtype=group.dtype))


def test_columns_in_another_order_than_the_rows() -> None:
    """The tensor's order is the group's."""
    fields = tuple(RawField(name=name, kind="number") for name in "ba")
    made = ColumnGroup("all", "float64", fields).collator({"a": 0, "b": 1}, 2)([(1.0, 2.0), (3.0, 4.0)])
    assert made.tolist() == [[2.0, 1.0], [4.0, 3.0]]


def test_files_are_not_touched_by_packing(package: Package, tmp_path: Path) -> None:
    """Packing happens in memory; the package stays what was proven."""
    before = {p.name: p.read_bytes() for p in package.path.glob("*.onnx")}
    PackageRuntime.load(package).predict(ROWS)
    assert {p.name: p.read_bytes() for p in package.path.glob("*.onnx")} == before
