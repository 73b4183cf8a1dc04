"""Compute a graph's matrix products and convolutions in half precision, and leave everything else as it is.

The inputs, the outputs and every operator outside two short lists keep float32; a cast stands where a value crosses over. Products and
convolutions cross over on their own (`SEEDS`); what only carries or combines their results follows them (`FOLLOWERS`). Sums over many
numbers, exponentials and normalisations stay in float32, where half precision costs most. Whether the answers are good enough is not
decided here but by the golden samples, against the tolerance the package states for `gpu.half`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .packing import names_read

PROFILE = "gpu.half"
#: Operators that are worth crossing over for.
SEEDS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
#: Operators that compute in half precision when a value they read is there already.
FOLLOWERS = frozenset(
    {
        "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Div", "Dropout", "Elu", "Flatten", "Gelu", "GlobalMaxPool",
        "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "MaxPool", "Mul", "PRelu", "Pad", "Relu", "Reshape", "Selu", "Sigmoid",
        "Slice", "Split", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
_LARGEST = float(np.finfo(np.float16).max)


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of `model` that computes products and convolutions in half precision; its inputs and outputs are unchanged.

    A node with a constant beyond the range of half precision (65504) stays in float32, and so does one whose element type ONNX cannot
    infer. Nodes inside subgraphs and functions stay as they are.
    """
    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    _Converter(converted).convert()
    return converted


def half_nodes(model: onnx.ModelProto) -> int:
    """Return how many of a graph's nodes `to_half` has put in half precision."""
    return sum(output.endswith("/half") for node in model.graph.node if node.op_type != "Cast" for output in node.output[:1])


class _Converter:
    """One conversion, node by node in the order of the graph.

    Attributes:
        _halves: Float32 value → its half-precision twin, where there is one by now.
        _only_half: Values whose float32 form nobody has asked for yet.
        _constants: Float32 constants by name.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._types = _element_types(model)
        self._constants = {t.name: t for t in self._graph.initializer if t.data_type == TensorProto.FLOAT}
        self._halves: dict[str, str] = {}
        self._only_half: set[str] = set()
        self._nodes: list[onnx.NodeProto] = []

    def convert(self) -> None:
        for node in list(self._graph.node):
            if self._is_half(node):
                self._add_half(node)
            else:
                self._add_full(node)
        for value in self._graph.output:
            self._need_full(value.name)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        del self._graph.value_info[:]  # some say float32 where it is half precision now
        self._drop_unread_constants()

    def _is_half(self, node: onnx.NodeProto) -> bool:
        floats = [name for name in node.input if self._types.get(name) == TensorProto.FLOAT]
        known = all(name in self._types for name in node.input if name)
        if node.domain not in ("", "ai.onnx") or not floats or not known or not all(self._fits(name) for name in floats):
            return False
        if any(self._types.get(name) != TensorProto.FLOAT for name in node.output if name):
            return False
        return node.op_type in SEEDS or (node.op_type in FOLLOWERS and any(name in self._halves for name in floats))

    def _fits(self, name: str) -> bool:
        constant = self._constants.get(name)
        if constant is None:
            return True
        values = numpy_helper.to_array(constant)
        return bool(np.all(np.abs(values) <= _LARGEST))

    def _add_half(self, node: onnx.NodeProto) -> None:
        for i, name in enumerate(node.input):
            if self._types.get(name) == TensorProto.FLOAT:
                node.input[i] = self._half(name)
        for i, name in enumerate(node.output):
            if name:
                self._halves[name] = node.output[i] = f"{name}/half"
                self._only_half.add(name)
        self._nodes.append(node)

    def _add_full(self, node: onnx.NodeProto) -> None:
        for name in sorted(names_read(node)):
            self._need_full(name)
        self._nodes.append(node)

    def _half(self, name: str) -> str:
        """Return the half-precision twin of a float32 value, made by a cast or, for a constant, ahead of time."""
        twin = self._halves.get(name)
        if twin is None:
            twin = self._halves[name] = f"{name}/half"
            constant = self._constants.get(name)
            if constant is None:
                self._nodes.append(helper.make_node("Cast", [name], [twin], name=f"{twin}/cast", to=TensorProto.FLOAT16))
            else:
                self._graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(constant).astype(np.float16), twin))
        return twin

    def _need_full(self, name: str) -> None:
        if name in self._only_half:
            self._only_half.remove(name)
            self._nodes.append(helper.make_node("Cast", [self._halves[name]], [name], name=f"{name}/full", to=TensorProto.FLOAT))

    def _drop_unread_constants(self) -> None:
        read = {name for node in self._graph.node for name in names_read(node)} | {value.name for value in self._graph.output}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in read]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    types |= {value.name: value.type.tensor_type.elem_type for value in _values(inferred) if value.type.tensor_type.elem_type}
    return types


def _values(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from graph.input
    yield from graph.value_info
    yield from graph.output
