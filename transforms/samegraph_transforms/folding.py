"""Let a model that takes one image see the five or ten crops of it, and answer once.

    preprocess = Preprocess([Decode(), ToRGB(), Resize(256, "bilinear"), TenCrop(224), ToFloat(), …, ToCHW()])
    model = fold(network, preprocess.crops, combine="mean")

is, as a graph, what training code does with them:

    n, k, c, h, w = x.shape
    y = model(x.view(-1, c, h, w)).view(n, k, -1)
    answer = sum(y.unbind(1)) / k

So a batch has the same first axis at every boundary between stages, the number of instances, and everything that counts rows goes on as
with any other package.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .errors import AuthoringError

#: What becomes of the answers for the crops of an image.
Combine = Literal["mean", "mean_of_softmax"]

_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
_EACH = "each"


def fold(model: onnx.ModelProto, crops: int | None, *, combine: Combine) -> onnx.ModelProto:
    """Return a model that takes `crops` images an instance, runs `model` on all of them at once and combines its answers.

    The mean adds the crops' answers in their order, one by one from the first, and divides by their number, in the answers' own type:
    the bits of torch's `sum(y.unbind(1)) / k`. Its `y.mean(1)` adds the last classes, those that fill no vector of the processor, in
    another order: up to 3.5e-7 of the largest answer apart (2,000 × 11 and 1,000 logits in float32), where a package promises 1e-7
    unless it says otherwise.

    Args:
        model: Every input [n, …] and every output [n, …], with a first axis of any length. Not changed.
        crops: How many there are, `Preprocess.crops`.
        combine: `mean` of the outputs as they are: of logits where the model gives logits, of probabilities where it gives those;
            `mean_of_softmax` of each output's softmax along its last axis.

    Returns:
        The model with inputs [n, crops, …] and outputs [n, …] of the same names.

    Raises:
        AuthoringError: There are no crops, an output is no float, or the graph is fixed to a number of images.
    """
    if crops is None or crops < 1:
        raise AuthoringError("fold: the preprocessing makes no crops; put FiveCrop(size) or TenCrop(size) into it")
    if combine not in get_args(Combine):
        raise AuthoringError(f"fold: combine must be one of {', '.join(get_args(Combine))}; got {combine!r}")
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    graph = folded.graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    for value in (*inputs, *graph.output):
        _check(value)
    for value in graph.output:
        if value.type.tensor_type.elem_type not in _FLOATS:
            raise AuthoringError(f"fold: output {value.name!r} is no float and has no mean; make it from the mean, in the stage after")
    _rename(graph.node, {value.name: f"{value.name}/{_EACH}" for value in (*inputs, *graph.output)})
    body = list(graph.node)
    del graph.node[:]
    for value in inputs:
        graph.node.extend(_fold_input(graph, value, crops))
    graph.node.extend(body)
    for value in graph.output:
        graph.node.extend(_combine_output(graph, value, crops, combine))
    del graph.value_info[:]  # a name of the model may stand for another value now
    return folded


def _check(value: onnx.ValueInfoProto) -> None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape") or not tensor.shape.dim:
        raise AuthoringError(f"fold: the graph states no shape for {value.name!r}; state it, with the images as the first axis")
    if tensor.shape.dim[0].HasField("dim_value"):
        raise AuthoringError(
            f"fold: {value.name!r} holds exactly {tensor.shape.dim[0].dim_value} image(s); export the model with a first axis of any length"
        )


def _fold_input(graph: onnx.GraphProto, value: onnx.ValueInfoProto, crops: int) -> list[onnx.NodeProto]:
    """Turn the value into [n, crops, …] and return the nodes that make [n × crops, …] of it for the model."""
    dims = value.type.tensor_type.shape.dim
    rest = [d.dim_value for d in dims[1:]] if all(d.HasField("dim_value") for d in dims[1:]) else None
    nodes, shape = _shape(graph, value.name, f"{value.name}/folded", [-1], rest, range(2, len(dims) + 1))
    shaped = onnx.TensorShapeProto()
    shaped.dim.extend([dims[0], onnx.TensorShapeProto.Dimension(dim_value=crops), *dims[1:]])
    value.type.tensor_type.shape.CopyFrom(shaped)
    return [*nodes, helper.make_node("Reshape", [value.name, shape], [f"{value.name}/{_EACH}"], name=f"{value.name}/fold")]


def _combine_output(graph: onnx.GraphProto, value: onnx.ValueInfoProto, crops: int, combine: Combine) -> list[onnx.NodeProto]:
    """Return the nodes that make the output [n, …] of the model's [n × crops, …]."""
    name, tensor = value.name, value.type.tensor_type
    dims = tensor.shape.dim
    source, nodes = f"{name}/{_EACH}", []
    if combine == "mean_of_softmax":
        if len(dims) < 2:
            raise AuthoringError(f"fold: output {name!r} is one number for an image, which has no softmax; take combine='mean'")
        nodes.append(helper.make_node("Softmax", [source], [f"{name}/softmax"], name=f"{name}/softmax", axis=len(dims) - 1))
        source = f"{name}/softmax"
    rest = [d.dim_value for d in dims[1:]] if all(d.HasField("dim_value") for d in dims[1:]) else None
    more, shape = _shape(graph, source, f"{name}/unfolded", [-1, crops], rest, range(1, len(dims)))
    nodes += [*more, helper.make_node("Reshape", [source, shape], [f"{name}/crops"], name=f"{name}/unfold")]
    total = ""
    for crop in range(crops):
        at = _constant(graph, f"{name}/crop_{crop}/at", np.array(crop, dtype=np.int64))
        one = f"{name}/crop_{crop}"
        nodes.append(helper.make_node("Gather", [f"{name}/crops", at], [one], name=one, axis=1))
        if crop:
            nodes.append(helper.make_node("Add", [total, one], [f"{name}/sum_{crop}"], name=f"{name}/sum_{crop}"))
        total = f"{name}/sum_{crop}" if crop else one
    count = _constant(graph, f"{name}/count", np.array(crops, dtype=helper.tensor_dtype_to_np_dtype(tensor.elem_type)))
    return [*nodes, helper.make_node("Div", [total, count], [name], name=f"{name}/mean")]


def _shape(
    graph: onnx.GraphProto, source: str, target: str, leading: Sequence[int], rest: Sequence[int] | None, axes: Iterable[int]
) -> tuple[list[onnx.NodeProto], str]:
    """Return the name of a shape, `leading` followed by `rest` or by those axes of `source`, and the nodes that make it."""
    if rest is not None:
        return [], _constant(graph, f"{target}/shape", np.array([*leading, *rest], dtype=np.int64))
    front = _constant(graph, f"{target}/leading", np.array(leading, dtype=np.int64))
    which = _constant(graph, f"{target}/axes", np.array(list(axes), dtype=np.int64))
    nodes = [
        helper.make_node("Shape", [source], [f"{target}/whole"], name=f"{target}/whole"),
        helper.make_node("Gather", [f"{target}/whole", which], [f"{target}/rest"], name=f"{target}/rest", axis=0),
        helper.make_node("Concat", [front, f"{target}/rest"], [f"{target}/shape"], name=f"{target}/shape", axis=0),
    ]
    return nodes, f"{target}/shape"


def _constant(graph: onnx.GraphProto, name: str, value: np.ndarray) -> str:
    graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def _rename(nodes: Iterable[onnx.NodeProto], names: Mapping[str, str]) -> None:
    """Give values other names, subgraphs included."""
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _rename(inner.node, names)
                for value in inner.output:
                    value.name = names.get(value.name, value.name)
