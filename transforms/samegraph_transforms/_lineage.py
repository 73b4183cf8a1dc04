"""Which elements of a node's inputs an element of its output comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx
from onnx import helper, numpy_helper

#: An element of an array, or None for all of them.
Place: TypeAlias = tuple[int, ...] | None
Arrays: TypeAlias = Mapping[str, np.ndarray]

#: Constants of more elements than this are not kept: they are weights, and no one asks which of them an index picks.
MAX_CONSTANT = 1 << 16

_SAME_PLACE = frozenset({"Identity", "Cast", "CastLike", "Dropout", "IsNaN", "IsInf", "Not", "Neg", "Abs", "Sqrt", "Exp", "Log", "Round"})
_SAME_PLACE |= {"Floor", "Ceil", "Sigmoid", "Relu", "Clip", "Reciprocal", "Sign", "Erf", "Tanh", "LabelEncoder", "Scaler", "Imputer"}
_BROADCAST = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Mod"}
)
_BROADCAST |= {"And", "Or", "Xor"}
_RESHAPED = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
#: Nodes that only move values about.
_MOVES = frozenset({"Identity", "Concat", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Gather", "Slice", "Split", "Expand"})
_MOVES |= {"Dropout", "GatherElements", "GatherND", "Shape", "Size", "ConstantOfShape", "Constant"}


def label(node: onnx.NodeProto) -> str:
    """Return a node's name, or that of the first value it makes."""
    return node.name or node.output[0]


def reads(node: onnx.NodeProto) -> list[str]:
    """Name the values a node reads, those its subgraphs take from outside included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            own = {i.name for i in graph.input} | {t.name for t in graph.initializer} | {n for inner in graph.node for n in inner.output}
            inside = [name for inner in graph.node for name in reads(inner)] + [o.name for o in graph.output]
            names += [name for name in inside if name not in own]
    return names


def constants_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Return the small constants of a graph: initializers that are no inputs, and what `Constant` nodes make."""
    found: dict[str, np.ndarray] = {}
    for tensor in model.graph.initializer:
        if np.prod(tensor.dims, dtype=np.int64) <= MAX_CONSTANT and tensor.data_location != onnx.TensorProto.EXTERNAL:
            found[tensor.name] = numpy_helper.to_array(tensor)
    for node in model.graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            (attribute,) = node.attribute
            value = helper.get_attribute_value(attribute)
            if isinstance(value, onnx.TensorProto):
                found[node.output[0]] = numpy_helper.to_array(value)
            elif isinstance(value, int | float | list):
                found[node.output[0]] = np.array(value, dtype=np.float32 if "float" in attribute.name else np.int64)
            else:
                found[node.output[0]] = np.array(value)
    return found


def sources(node: onnx.NodeProto, name: str, place: Place, values: Arrays, constants: Arrays) -> list[tuple[str, Place]]:
    """Return the inputs that element `place` of the output `name` of `node` depends on, with their elements; constants are left out.

    Where the operator is not known here, the element depends on every element of every input.
    """
    found = _exact(node, name, place, values, constants) if place is not None else None
    if found is None:
        found = [(source, None) for source in reads(node)]
    return [(source, where) for source, where in found if source not in constants]


def _exact(node: onnx.NodeProto, name: str, place: tuple[int, ...], values: Arrays, constants: Arrays) -> list[tuple[str, Place]] | None:
    operator = node.op_type
    shapes = {n: (constants[n] if n in constants else values[n]).shape for n in node.input if n in constants or n in values}
    made = values.get(name)
    if made is None or any(n not in shapes for n in node.input[:1]):
        return None
    first = node.input[0]
    if operator in _SAME_PLACE:
        return [(first, place)]
    if operator in _BROADCAST:
        return [(n, _broadcast(place, shapes[n])) for n in node.input if n in shapes]
    if operator == "Where":
        return _where(node, place, shapes, values, constants)
    if operator in _RESHAPED:
        flat = int(np.ravel_multi_index(place, made.shape)) if made.size else 0
        return [(first, tuple(int(i) for i in np.unravel_index(flat, shapes[first])))]
    if operator == "Transpose":
        order = next((list(a.ints) for a in node.attribute if a.name == "perm"), list(range(len(place)))[::-1])
        back = [0] * len(place)
        for axis, source in enumerate(order):
            back[source] = place[axis]
        return [(first, tuple(back))]
    if operator == "Concat":
        return _concat(node, place, shapes)
    if operator == "Gather" and node.input[1] in constants:
        return [(first, _gathered(place, _axis(node), constants[node.input[1]], shapes[first]))]
    return None


def _broadcast(place: tuple[int, ...], shape: Sequence[int]) -> tuple[int, ...]:
    """Return where an element of a broadcast result comes from in an operand of `shape`."""
    tail = place[len(place) - len(shape) :]
    return tuple(0 if size == 1 else i for i, size in zip(tail, shape, strict=True))


def _where(
    node: onnx.NodeProto, place: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]], values: Arrays, constants: Arrays
) -> list[tuple[str, Place]]:
    picked = _picked(node, place, values, constants)
    wanted = [n for n in node.input if n in shapes] if picked is None else [picked]
    if picked is not None and picked in constants:
        wanted.append(node.input[0])  # the rule struck: what decided that matters
    return [(n, _broadcast(place, shapes[n])) for n in wanted]


def _picked(node: onnx.NodeProto, place: tuple[int, ...], values: Arrays, constants: Arrays) -> str | None:
    """Return the branch that a `Where` took for an element."""
    condition = values.get(node.input[0], constants.get(node.input[0]))
    return None if condition is None else node.input[1 if condition[_broadcast(place, condition.shape)] else 2]


def _concat(node: onnx.NodeProto, place: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[str, Place]] | None:
    axis = (_axis(node)) % len(place)
    at = place[axis]
    for source in node.input:
        if source not in shapes:
            return None
        if at < shapes[source][axis]:
            return [(source, (*place[:axis], at, *place[axis + 1 :]))]
        at -= shapes[source][axis]
    return None


def _gathered(place: tuple[int, ...], axis: int, indices: np.ndarray, shape: Sequence[int]) -> tuple[int, ...]:
    axis %= len(shape)
    picked = int(indices[place[axis : axis + indices.ndim]]) % shape[axis]
    return (*place[:axis], picked, *place[axis + indices.ndim :])


def _axis(node: onnx.NodeProto) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "axis"), 0)


def hands_through(node: onnx.NodeProto, place: Place, values: Arrays, constants: Arrays) -> bool:
    """Whether a node gives this run's element on as it came: it only moves values, or changes none of them."""
    if node.domain in ("", "ai.onnx"):
        if node.op_type in _MOVES:
            return True
        if node.op_type == "Where" and place is not None:
            picked = _picked(node, place, values, constants)
            return picked is not None and picked not in constants
    before, after = (values.get(names[0]) if names else None for names in (node.input, node.output))
    if before is None or after is None or before.shape != after.shape or len([n for n in node.input if n]) != 1:
        return False
    if before.dtype == after.dtype:
        return bool(np.array_equal(before, after, equal_nan=before.dtype.kind == "f"))
    if node.op_type not in ("Cast", "CastLike") or before.dtype.kind not in "fiub" or after.dtype.kind not in "fiub":
        return False
    with np.errstate(all="ignore"):
        return bool(np.array_equal(after.astype(before.dtype), before, equal_nan=before.dtype.kind == "f"))
