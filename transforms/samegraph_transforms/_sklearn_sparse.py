"""Arithmetic on sparse rows in scikit-learn's and scipy's own order: one element after the other, in the order of the columns.

`CumSum` adds along an axis one after the other, from the first element on (ONNX Runtime's kernel and numpy's do; a test holds it), which
no reduction operator promises. Padding adds zeros at the end.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from ._sklearn_graph import GraphWriter, Sparse

#: Counts up to this one have their logarithm in a table, as numpy computes it.
LOGARITHMS: Final = 4096


def row_sums(writer: GraphWriter, tensor: str, *, at: str, axes: int = 1) -> str:
    """Sum [n, elements] or, with `axes=2`, [n, elements, k] along the elements, from 0.0 on: [n] or [n, k]."""
    before = [0, 1, *([0] * (2 * axes))]  # a zero in front: a row without elements has a last one too
    padded = writer.node("Pad", [tensor, writer.constant(np.array(before, dtype=np.int64), at=at)], at=at)
    summed = writer.node("CumSum", [padded, writer.constant(np.array(1, dtype=np.int64), at=at)], at=at)
    return writer.node("Gather", [summed, writer.constant(np.array(-1, dtype=np.int64), at=at)], at=at, axis=1)


def sparse_dot(writer: GraphWriter, sparse: Sparse, table: Any, *, at: str) -> str:
    """Return the product with a dense matrix, float64 [width, k], as scipy's `csr_matvecs` adds it: [n, k]."""
    rows = writer.node("Gather", [writer.constant(np.ascontiguousarray(table, dtype=np.float64), at=at), sparse.columns], at=at)
    values = writer.node("Unsqueeze", [sparse.values, writer.constant(np.array([2], dtype=np.int64), at=at)], at=at)
    return row_sums(writer, writer.node("Mul", [values, rows], at=at), at=at, axes=2)


def weighted(writer: GraphWriter, sparse: Sparse, *, idf: Any, sublinear: bool, norm: str | None, at: str) -> Sparse:
    """Return the elements with tf-idf weights: 1 + log, times idf, by the norm of the row, in that order."""
    values = sparse.values
    if sublinear:
        values = _sublinear(writer, values, at)
    if idf is not None:
        weights = writer.node("Gather", [writer.constant(np.asarray(idf, dtype=np.float64), at=at), sparse.columns], at=at)
        values = writer.node("Mul", [values, weights], at=at)
    if norm is not None:
        values = _normalized(writer, values, norm, at)
    result = Sparse(sparse.columns, values, sparse.width, counts=sparse.counts and values == sparse.values)
    writer.sparse[values] = result
    return result


def _sublinear(writer: GraphWriter, counts: str, at: str) -> str:
    """1 + log of whole counts; 0, which is padding, stays 0."""
    with np.errstate(divide="ignore"):
        table = np.log(np.arange(LOGARITHMS + 1, dtype=np.float64))
    table += 1.0
    table[0] = 0.0
    last = writer.constant(np.array(float(LOGARITHMS)), at=at)
    place = writer.cast(writer.node("Min", [counts, last], at=at), "int64", at=at)
    known = writer.node("Gather", [writer.constant(table, at=at), place], at=at)
    computed = writer.node("Add", [writer.node("Log", [counts], at=at), writer.constant(np.array(1.0), at=at)], at=at)
    return writer.node("Where", [writer.node("LessOrEqual", [counts, last], at=at), known, computed], at=at)


def _normalized(writer: GraphWriter, values: str, norm: str, at: str) -> str:
    sizes = writer.node("Mul", [values, values], at=at) if norm == "l2" else writer.node("Abs", [values], at=at)
    total = row_sums(writer, sizes, at=at)
    if norm == "l2":
        total = writer.node("Sqrt", [total], at=at)
    empty = writer.node("Equal", [total, writer.constant(np.array(0.0), at=at)], at=at)
    total = writer.node("Where", [empty, writer.constant(np.array(1.0), at=at), total], at=at)
    column = writer.node("Unsqueeze", [total, writer.constant(np.array([1], dtype=np.int64), at=at)], at=at)
    return writer.node("Div", [values, column], at=at)
