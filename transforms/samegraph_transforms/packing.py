"""Feed many columns as few tensors: scalar fields of one type become one [n, k] input that the graph splits again.

ONNX Runtime takes one to two microseconds per input and NumPy as long to make each column, so a row of 17 fields spent
more time on the way into the graph than inside it (measured: 53 µs to make the columns and 65 µs to run 17 inputs; packed,
see docs/performance.md). The graph after the split is untouched, and the golden samples are replayed on the packed form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .manifest import RawField

#: Element types that are packed, and how ONNX names them.
_PACKABLE = {
    "float64": onnx.TensorProto.DOUBLE,
    "int64": onnx.TensorProto.INT64,
    "bool": onnx.TensorProto.BOOL,
    "string": onnx.TensorProto.STRING,
}


@dataclass(frozen=True)
class ColumnGroup:
    """Scalar fields that enter a graph as one tensor.

    Attributes:
        input: Name of the packed graph input, [n, k].
        dtype: Element type of all of them.
        fields: The k fields, in column order.
    """

    input: str
    dtype: str
    fields: tuple[RawField, ...]

    def collator(self, places: Mapping[str, int], width: int) -> Callable[[Sequence[Sequence[Any]]], np.ndarray]:
        """Return the function that turns rows into the packed tensor.

        Args:
            places: Field name → place in a row.
            width: Values in a row.

        Returns:
            A function from rows (None is missing) to an array [n, k] with every field's missing rule applied.
        """
        wanted = [places[f.name] for f in self.fields]
        take = itemgetter(*wanted)
        dtype: Any = object if self.dtype == "string" else self.dtype
        sentinels = [(i, f.missing.sentinel) for i, f in enumerate(self.fields) if f.missing.rule == "sentinel"]
        if not sentinels:
            # numpy turns None into NaN when it builds a float64 array, which is the `nan` rule.
            if wanted == list(range(width)) and dtype is not object:
                return _whole_rows(dtype, width)
            return lambda rows: np.array([take(row) for row in rows], dtype=dtype)

        def with_sentinels(rows: Sequence[Sequence[Any]]) -> np.ndarray:
            taken = [take(row) for row in rows]
            for i, sentinel in sentinels:
                for n, values in enumerate(taken):
                    if values[i] is None:
                        taken[n] = (*values[:i], sentinel, *values[i + 1 :])
            return np.array(taken, dtype=dtype)

        return with_sentinels


def _whole_rows(dtype: str, width: int) -> Callable[[Sequence[Sequence[Any]]], np.ndarray]:
    """Return the function for rows whose values are the columns, in order and with none beside them.

    Value after value costs half of what NumPy takes to find out how deep a list of tuples is nested: 27 instead of 54 µs for 64 rows of 30
    numbers, 1.0 instead of 1.5 for one.
    """
    flat, fill = chain.from_iterable, np.fromiter

    def whole_rows(rows: Sequence[Sequence[Any]]) -> np.ndarray:
        n = len(rows)
        return fill(flat(rows), dtype, n * width).reshape(n, width)

    return whole_rows


def pack_columns(model: onnx.ModelProto, fields: Sequence[RawField]) -> tuple[onnx.ModelProto, list[ColumnGroup]]:
    """Replace scalar inputs of a merged graph by packed ones.

    Args:
        model: A graph whose inputs are named after raw fields (others are left alone).
        fields: The raw fields.

    Returns:
        The new graph and its groups; the same graph and no groups when nothing is gained.
    """
    inputs = {value.name: value for value in model.graph.input}
    groups = [g for g in (_group(dtype, fields, inputs, model.graph) for dtype in _PACKABLE) if g is not None]
    if not groups:
        return model, []
    packed = onnx.ModelProto()
    packed.CopyFrom(model)
    graph = packed.graph
    gone = {f.name for g in groups for f in g.fields}
    kept = [value for value in graph.input if value.name not in gone]
    del graph.input[:]
    graph.input.extend([*kept, *(helper.make_tensor_value_info(g.input, _PACKABLE[g.dtype], ["n", len(g.fields)]) for g in groups)])
    body = list(graph.node)
    del graph.node[:]
    for group in groups:
        body = _split(graph, group, body)
    graph.node.extend(body)
    return packed, groups


def _group(dtype: str, fields: Sequence[RawField], inputs: Mapping[str, onnx.ValueInfoProto], graph: onnx.GraphProto) -> ColumnGroup | None:
    mine = {f.name: f for f in fields if f.name in inputs and f.graph_dtype == dtype and _is_scalar(f)}
    if len(mine) < 2:
        return None
    order = _concatenated(graph, mine)
    return ColumnGroup(f"samegraph/{dtype}", dtype, tuple(mine[name] for name in (*order, *(n for n in mine if n not in order))))


def _is_scalar(field: RawField) -> bool:
    """Whether a field is one [n, 1] column and nothing else."""
    return field.kind not in ("image", "bytes", "tensor") and field.companion is None


def _concatenated(graph: onnx.GraphProto, mine: Mapping[str, RawField]) -> list[str]:
    """Return the fields of the largest Concat of packed columns, in its order: that Concat then is a slice of the packed input."""
    sources = _sources(graph.node)
    best: list[str] = []
    for node in graph.node:
        names = [sources.get(name, name) for name in node.input]
        if _joins_columns(node) and len(set(names)) == len(names) > len(best) and all(name in mine for name in names):
            best = names
    return best


def _joins_columns(node: onnx.NodeProto) -> bool:
    return node.op_type == "Concat" and node.domain in ("", "ai.onnx") and helper.get_node_attr_value(node, "axis") in (1, -1)


def _sources(nodes: Sequence[onnx.NodeProto]) -> dict[str, str]:
    """Return Identity output → what it stands for."""
    sources: dict[str, str] = {}
    for node in nodes:
        if node.op_type == "Identity" and node.domain in ("", "ai.onnx"):
            sources[node.output[0]] = sources.get(node.input[0], node.input[0])
    return sources


def _split(graph: onnx.GraphProto, group: ColumnGroup, body: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Put the group's columns back under their own names; whole Concats of leading columns become one slice."""
    names = [f.name for f in group.fields]
    sources = _sources(body)
    kept: list[onnx.NodeProto] = []
    head: list[onnx.NodeProto] = []
    for node in body:
        joined = [sources.get(name, name) for name in node.input] if _joins_columns(node) else []
        if len(joined) > 1 and joined == names[: len(joined)]:
            head.append(_leading(graph, group, len(joined), node.output[0]))
        else:
            kept.append(node)
    kept = _without_dead_identities(kept, graph)
    if set(names) & {name for node in kept for name in names_read(node)} or set(names) & {value.name for value in graph.output}:
        sizes = numpy_helper.from_array(np.ones(len(names), dtype=np.int64), f"{group.input}/sizes")
        graph.initializer.append(sizes)
        head.insert(0, helper.make_node("Split", [group.input, sizes.name], names, name=f"{group.input}/split", axis=1))
    return [*head, *kept]


def _leading(graph: onnx.GraphProto, group: ColumnGroup, k: int, output: str) -> onnx.NodeProto:
    if k == len(group.fields):
        return helper.make_node("Identity", [group.input], [output], name=f"{group.input}/all")
    bounds = []
    for what, value in (("starts", 0), ("ends", k), ("axes", 1)):
        tensor = numpy_helper.from_array(np.array([value], dtype=np.int64), f"{group.input}/{output}/{what}")
        graph.initializer.append(tensor)
        bounds.append(tensor.name)
    return helper.make_node("Slice", [group.input, *bounds], [output], name=f"{group.input}/{output}")


def _without_dead_identities(nodes: Sequence[onnx.NodeProto], graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Drop Identity nodes nobody reads: they may name a column that is not split off any more."""
    read = {value.name for value in graph.output}
    alive: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if node.op_type == "Identity" and node.output[0] not in read:
            continue
        read |= names_read(node)
        alive.append(node)
    return alive[::-1]


def names_read(node: onnx.NodeProto) -> set[str]:
    """Return every outer name a node reads, subgraphs included."""
    names = set(node.input)
    for attribute in node.attribute:
        graphs = [attribute.g, *attribute.graphs] if attribute.HasField("g") else list(attribute.graphs)
        for graph in graphs:
            for inner in graph.node:
                names |= names_read(inner)
    return names
