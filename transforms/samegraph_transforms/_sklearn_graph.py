"""Writing ONNX graphs for fitted scikit-learn steps: tensors, columns and one small writer.

A table travels through the graph as a *block*: a list of `Column`s, each naming the tensor and the place in it where its
values are. Nothing is copied until a step needs a matrix; a matrix that is already there is used as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from . import opsets
from .errors import UnsupportedStep

ColumnDtype: TypeAlias = Literal["float64", "int64", "bool", "string"]
Array: TypeAlias = NDArray[Any]

_ONNX_TYPES: Final[dict[str, int]] = {
    "float64": TensorProto.DOUBLE,
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
    "string": TensorProto.STRING,
}
#: Most columns of text that become a table with all its zeros.
MAX_DENSE: Final = 8192
_ML_OPERATORS: Final = frozenset({"LabelEncoder", "TreeEnsemble"})


class _NoNull:
    """The type of `NO_NULL`; a class of its own so that it prints well."""

    def __repr__(self) -> str:
        return "NO_NULL"


#: Marks a column that cannot hold a missing value at this point of the pipeline.
NO_NULL: Final = _NoNull()


@dataclass(frozen=True)
class Column:
    """One column of a block: where its values are and what is known about them.

    Attributes:
        label: Name for people: the raw column, or what a step made of it.
        tensor: Graph tensor of shape [n, width] that holds it.
        index: Place along that tensor's last axis.
        width: Width of that tensor.
        dtype: Element type of that tensor. A missing number is NaN; a missing string is the package's sentinel.
        field: The raw field whose non-missing values these still are, or None once a step has changed them.
        null: What a missing value is in training at this point (None, NaN or pandas.NA), or `NO_NULL`.
        also_accepted: Raw values that an imputer replaced, so that they are fine even in a closed set.
    """

    label: str
    tensor: str
    index: int
    width: int
    dtype: ColumnDtype
    field: str | None = None
    null: object = NO_NULL
    also_accepted: tuple[object, ...] = ()

    @property
    def is_string(self) -> bool:
        """Whether the values are strings; all others are numbers in training's eyes."""
        return self.dtype == "string"

    def without_field(self) -> Column:
        """Return this column as computed values, no longer those of a raw field."""
        return replace(self, field=None, also_accepted=())


Block: TypeAlias = list[Column]


@dataclass(frozen=True)
class Sparse:
    """A matrix of which every row keeps only some elements, in the order of its columns: scipy's CSR, rows padded to one length.

    Attributes:
        columns: Graph tensor with the elements' columns, int64 [n, elements]; 0 where there is padding.
        values: Graph tensor with their values, float64 [n, elements]; 0 where there is padding.
        width: Columns of the whole matrix.
        counts: Whether the values are whole numbers above 0.
        as_scipy: Whether the elements are the very ones scipy keeps, none left out or added.
    """

    columns: str
    values: str
    width: int
    counts: bool = False
    as_scipy: bool = True


@dataclass
class GraphWriter:
    """Collects nodes, constants, inputs and outputs of one graph, with names that say where in the pipeline they come from.

    Internal names start with "/", which no raw field or value name may, so they never collide.

    Attributes:
        rows: Training rows of the graph's only input, for steps inside an estimator; None where nobody asks.
    """

    name: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    sparse: dict[str, Sparse] = field(default_factory=dict)  # by the tensor of its values
    rows: Array | None = None
    _counts: dict[str, int] = field(default_factory=dict)
    _constants: dict[tuple[object, ...], str] = field(default_factory=dict)
    _matrices: dict[tuple[tuple[str, int], ...], str] = field(default_factory=dict)

    def _unique(self, stem: str) -> str:
        count = self._counts.get(stem, 0)
        self._counts[stem] = count + 1
        return stem if count == 0 else f"{stem}_{count}"

    def input(self, name: str, dtype: str, width: int | str) -> str:
        """Declare a graph input of shape [n, width] (a word for an open length) and return its name."""
        self.inputs.append(helper.make_tensor_value_info(name, _ONNX_TYPES[dtype], ["n", width]))
        return name

    def output(self, tensor: str, name: str, dtype: str, shape: Sequence[int | str]) -> None:
        """Give `tensor` out under `name`, of shape [n, *shape]."""
        self.node("Identity", [tensor], at=name, output=name)
        self.outputs.append(helper.make_tensor_value_info(name, _ONNX_TYPES[dtype], ["n", *shape]))

    def node(self, op: str, inputs: Sequence[str], *, at: str, output: str = "", **attributes: Any) -> str:
        """Append one node placed at pipeline path `at` and return the name of its only output."""
        unique = self._unique(f"/{at}/{op}")
        result = output or unique
        domain = "ai.onnx.ml" if op in _ML_OPERATORS else ""
        self.nodes.append(helper.make_node(op, list(inputs), [result], name=unique, domain=domain, **attributes))
        return result

    def several(self, op: str, inputs: Sequence[str], count: int, *, at: str, **attributes: Any) -> list[str]:
        """Append one node and return the names of its `count` outputs."""
        unique = self._unique(f"/{at}/{op}")
        results = [f"{unique}_{i}" for i in range(count)]
        self.nodes.append(helper.make_node(op, list(inputs), results, name=unique, **attributes))
        return results

    def constant(self, value: Array | Sequence[str], *, at: str) -> str:
        """Add an initializer (equal ones are shared) and return its name; a sequence of str becomes a string tensor."""
        array = np.asarray(value)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = self._unique(f"/{at}/constant")
            self.initializers.append(string_tensor(name, value) if array.dtype.kind == "U" else numpy_helper.from_array(array, name))
            self._constants[key] = name
        return self._constants[key]

    def cast(self, tensor: str, dtype: str, *, at: str) -> str:
        """Cast `tensor` to `dtype`."""
        return self.node("Cast", [tensor], at=at, to=_ONNX_TYPES[dtype])

    def label_encoder(self, tensor: str, keys: Array, values: Array, default: Array, *, at: str) -> str:
        """Map each key to its value and everything else to `default`; NaN is a key like any other."""
        attributes: dict[str, Any] = {
            "keys_tensor": string_tensor("keys", keys) if keys.dtype.kind == "U" else numpy_helper.from_array(keys, "keys"),
            "values_tensor": numpy_helper.from_array(values, "values"),
            "default_tensor": numpy_helper.from_array(default, "default"),
        }
        return self.node("LabelEncoder", [tensor], at=at, **attributes)

    def concat(self, tensors: Sequence[str], *, at: str) -> str:
        """Join [n, ·] tensors along their last axis; one tensor stays as it is."""
        return tensors[0] if len(tensors) == 1 else self.node("Concat", tensors, at=at, axis=1)

    def product(self, left: str, right: str, *, at: str) -> str:
        """Multiply two matrices.

        Gemm and not MatMul: ONNX Runtime 1.31 fuses a scalar factor beside a MatMul into it as a float32 attribute, in float64 graphs too,
        with which a kernel of support vectors was off by 6e-8.
        """
        return self.node("Gemm", [left, right], at=at)

    def single(self, column: Column, *, at: str) -> str:
        """Return a [n, 1] tensor of one column in its own element type."""
        return self._take([column], at=at)

    def matrix(self, columns: Sequence[Column], *, at: str) -> str:
        """Return a float64 [n, len(columns)] tensor of number columns, in order."""
        key = tuple((c.tensor, c.index) for c in columns)
        if key not in self._matrices:
            self._matrices[key] = self.concat(list(self._float_runs(columns, at)), at=at)
        return self._matrices[key]

    def _float_runs(self, columns: Sequence[Column], at: str) -> Iterator[str]:
        """Yield float64 tensors that joined give `columns`: neighbours of one element type share one cast."""
        for dtype, same_dtype in groupby(columns, key=lambda c: c.dtype):
            parts = [self._take(list(run), at=at) for _, run in groupby(same_dtype, key=lambda c: c.tensor)]
            joined = self.concat(parts, at=at)
            yield joined if dtype == "float64" else self.cast(joined, "float64", at=at)

    def _take(self, columns: Sequence[Column], *, at: str) -> str:
        """Return columns of one tensor as a tensor; the tensor itself when they are all of it."""
        first = columns[0]
        indices = [c.index for c in columns]
        if first.tensor in self.sparse:
            return self.dense(self.sparse[first.tensor], indices, at=at)
        if indices == list(range(first.width)):
            return first.tensor
        return self.node("Gather", [first.tensor, self.constant(np.array(indices, dtype=np.int64), at=at)], at=at, axis=1)

    def dense(self, sparse: Sparse, indices: Sequence[int], *, at: str) -> str:
        """Return some columns of a sparse matrix with all their zeros, float64 [n, len(indices)].

        Raises:
            UnsupportedStep: They are more than a row may be made of.
        """
        if len(indices) > MAX_DENSE:
            raise UnsupportedStep(
                f"{at} computes on a table of {len(indices):,} columns of text, zeros and all, at most {MAX_DENSE:,} are; use a model that "
                "computes on sparse rows, or max_features",
                step=at,
            )
        places, width = sparse.columns, len(indices)
        if list(indices) != list(range(sparse.width)):
            table = np.full(sparse.width, len(indices), dtype=np.int64)
            table[list(indices)] = np.arange(len(indices))
            places, width = self.node("Gather", [self.constant(table, at=at), sparse.columns], at=at), len(indices) + 1
        rows = self.node("Shape", [sparse.columns], at=at, start=0, end=1)
        shape = self.node("Concat", [rows, self.constant(np.array([width], dtype=np.int64), at=at)], at=at, axis=0)
        zeros = self.node("ConstantOfShape", [shape], at=at, value=numpy_helper.from_array(np.zeros(1)))
        # Added, not set: padding adds nothing to column 0.
        filled = self.node("ScatterElements", [zeros, places, sparse.values], at=at, axis=1, reduction="add")
        if width == len(indices):
            return filled
        ends = [self.constant(np.array([v], dtype=np.int64), at=at) for v in (0, len(indices), 1)]
        return self.node("Slice", [filled, *ends], at=at)

    def elements(self, columns: Sequence[Column], *, at: str) -> Sparse:
        """Return a block that has sparse columns as one sparse matrix, its elements in the order of the block.

        Raises:
            UnsupportedStep: Columns of one sparse matrix are not in ascending order.
        """
        places, values, offset, as_scipy = [], [], 0, True
        runs = [list(run) for _, run in groupby(columns, key=lambda c: c.tensor if c.tensor in self.sparse else None)]
        for run in runs:
            sparse = self.sparse.get(run[0].tensor)
            if sparse is None:
                matrix = self.matrix(run, at=at)
                own = self.constant(np.arange(offset, offset + len(run), dtype=np.int64).reshape(1, -1), at=at)
                places.append(self.node("Expand", [own, self.node("Shape", [matrix], at=at)], at=at))
                values.append(matrix)
                as_scipy = False
            else:
                place, value = self._moved(sparse, [c.index for c in run], offset, at)
                places.append(place)
                values.append(value)
                as_scipy = as_scipy and sparse.as_scipy and len(run) == sparse.width
            offset += len(run)
        whole = self.sparse[columns[0].tensor] if len(runs) == 1 else None
        counts = whole is not None and whole.counts
        return Sparse(self.concat(places, at=at), self.concat(values, at=at), offset, counts, as_scipy)

    def _moved(self, sparse: Sparse, indices: Sequence[int], offset: int, at: str) -> tuple[str, str]:
        """Return columns and values of some columns of a sparse matrix, counted from `offset`; the others become zeros in column 0."""
        if list(indices) == list(range(sparse.width)):
            if offset == 0:
                return sparse.columns, sparse.values
            return self.node("Add", [sparse.columns, self.constant(np.array(offset, dtype=np.int64), at=at)], at=at), sparse.values
        if any(a >= b for a, b in pairwise(indices)):
            raise UnsupportedStep(f"{at}: takes columns of one text vectorizer in another order, or twice", step=at)
        table = np.zeros(sparse.width, dtype=np.int64)
        table[list(indices)] = offset + np.arange(len(indices))
        kept = np.zeros(sparse.width, dtype=np.bool_)
        kept[list(indices)] = True
        there = self.node("Gather", [self.constant(kept, at=at), sparse.columns], at=at)
        value = self.node("Where", [there, sparse.values, self.constant(np.array(0.0), at=at)], at=at)
        return self.node("Gather", [self.constant(table, at=at), sparse.columns], at=at), value

    def columns_of(self, tensor: str, like: Sequence[Column]) -> Block:
        """Describe `tensor` [n, len(like)] as computed float64 columns named and nullable as `like` are."""
        return [
            replace(c, tensor=tensor, index=i, width=len(like), dtype="float64", field=None, also_accepted=()) for i, c in enumerate(like)
        ]

    def build(self) -> onnx.ModelProto:
        """Return the finished, checked model."""
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, self.initializers)
        imports = [i for i in opsets.opset_imports() if i.domain != opsets.DOMAIN]
        model = helper.make_model(graph, opset_imports=imports, ir_version=opsets.IR_VERSION, producer_name="samegraph")
        onnx.checker.check_model(model)
        return model


def string_tensor(name: str, values: Sequence[str] | Array) -> onnx.TensorProto:
    """Return a string tensor; ONNX strings are UTF-8 bytes."""
    encoded = [str(v).encode() for v in values]
    return helper.make_tensor(name, TensorProto.STRING, [len(encoded)], encoded)  # type: ignore[arg-type]  # its stub forgets bytes
