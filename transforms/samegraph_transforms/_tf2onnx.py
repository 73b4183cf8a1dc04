"""What tf2onnx writes of Keras' preprocessing layers, put right where its graph is another than TensorFlow's, else refused by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from ._lineage import reads
from .errors import UnsupportedStep

PRODUCER: Final = "tf2onnx"

#: TensorFlow's operators that tf2onnx leaves in the graph → the layer they are of, and what to do instead.
_LEFT_OVER: Final[dict[str, str]] = {
    "LookupTableFindV2": "IntegerLookup: tf2onnx alone does not write its vocabulary; convert with keras_import, which does",
    "StaticRegexReplace": "TextVectorization(standardize=…): split text with samegraph_transforms.text.Tokenize, and give the model tokens",
    "StringSplitV2": "TextVectorization(split=…): split text with samegraph_transforms.text.Tokenize, and give the model tokens",
    "StringToHashBucketFast": "Hashing: ONNX has no such hash; use StringLookup, or send the bucket",
    "StringToHashBucketStrong": "Hashing: ONNX has no such hash; use StringLookup, or send the bucket",
    "ScaleAndTranslate": "Resizing(antialias=True): put samegraph_transforms.image.Resize in front of the model (`images=`)",
}
#: TensorFlow's operators that tf2onnx makes an ONNX Resize of, which is another filter or does not run.
_WRONG_RESIZE: Final[dict[str, str]] = {
    "ResizeArea": "tf2onnx writes interpolation='area' as the nearest pixel (off by up to 172 of 255 levels)",
    "ResizeBicubic": "tf2onnx writes interpolation='bicubic' in a form that ONNX Runtime does not run",
}


#: Operators that give an element per element, of which shape inference does not know it.
_ONE_TO_ONE: Final = frozenset({"CategoryMapper", "LabelEncoder"})


def repair(model: onnx.ModelProto) -> list[str]:
    """Put right, in place, what tf2onnx writes wrongly or not at all.

    `Bucketize` (Discretization) counts the boundaries that a value is not below; resizing is TensorFlow's arithmetic; outputs that
    are declared as scalars get the shape they have.

    Args:
        model: A graph of tf2onnx.

    Returns:
        What the author should know, a sentence each.

    Raises:
        UnsupportedStep: A layer has no exact graph; `.step` is its name.
    """
    nodes = list(model.graph.node)
    makers = {name: node for node in nodes for name in node.output}
    del model.graph.node[:]
    for node in nodes:
        _refuse_wrong(node, nodes)
        if node.op_type == "Bucketize" and node.domain == "":
            model.graph.node.extend(_bucketized(node, model))
        elif (built := _resized(node, model, makers)) is not None:
            model.graph.node.extend(built)
        else:
            if node.op_type in _LEFT_OVER and not onnx.defs.has(node.op_type):
                raise UnsupportedStep(f"layer {layer_of(node)!r} has no exact graph. {_LEFT_OVER[node.op_type]}", step=layer_of(node))
            model.graph.node.append(node)
    _drop_unread(model)
    _declare_outputs(model)
    return [
        f"layer {layer_of(node)!r} divides by multiplying with the reciprocal (TensorFlow folded it while converting): the last bit "
        "differs; keras_import converts without that"
        for node in model.graph.node
        if node.op_type == "Mul" and "truediv" in node.name
    ]


def layer_of(node: onnx.NodeProto) -> str:
    """Return the name of the layer a node of tf2onnx comes from: `string_lookup_1`."""
    for part in (node.name or node.output[0]).split("/"):
        if not part.endswith("PartitionedCall") and not part.startswith(("functional", "sequential", "model")):
            return part
    return node.name


def _refuse_wrong(node: onnx.NodeProto, nodes: Sequence[onnx.NodeProto]) -> None:
    layer = layer_of(node)
    why = _WRONG_RESIZE.get(node.name.rpartition("/")[2])  # the name stays with the last node of what was made of it
    if why is not None:
        raise UnsupportedStep(
            f"layer {layer!r} is a Resizing that has no exact graph: {why}. Use 'bilinear' or 'nearest', or put "
            "samegraph_transforms.image.Resize in front of the model (`images=`)",
            step=layer,
        )
    if node.op_type == "Unique" and "/bincount/" in node.name and not _by_row(node, nodes):
        raise UnsupportedStep(
            f"layer {layer!r} (CategoryEncoding, multi_hot or count) is written as one count over the whole batch, as tf2onnx knows no "
            "shape behind a lookup: put keras.layers.Reshape((k,)) between the two, or use output_mode='one_hot'",
            step=layer,
        )
    if node.op_type == "Cast" and "/Equal__" in node.name and "lookup" in node.name:
        raise UnsupportedStep(
            f"layer {layer!r} compares strings with its mask_token, which tf2onnx does through numbers and fails: train without mask_token",
            step=layer,
        )


def _by_row(node: onnx.NodeProto, nodes: Sequence[onnx.NodeProto]) -> bool:
    """Whether a count is made row by row: what is counted then has its row beside it, by a Concat."""
    makers = {name: maker for maker in nodes for name in maker.output}
    maker, steps = makers.get(node.input[0]), 0
    while maker is not None and maker.op_type in ("Cast", "Reshape", "Squeeze", "Unsqueeze", "Identity") and steps < len(nodes):
        maker, steps = makers.get(maker.input[0]), steps + 1
    return maker is not None and maker.op_type == "Concat"


def _bucketized(node: onnx.NodeProto, model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """std::upper_bound: how many boundaries the value is not below; NaN is below none.

    TensorFlow's threads take numbers smaller than the smallest normal one for zero, and so does this.
    """
    boundaries = next((list(a.floats) for a in node.attribute if a.name == "boundaries"), [])
    source, made, at = node.input[0], node.output[0], node.name
    tensors: dict[str, np.ndarray] = {
        f"{at}/boundaries": np.array(boundaries, dtype=np.float32),
        f"{at}/last": np.array([-1], dtype=np.int64),
        f"{at}/normal": np.array(np.finfo(np.float32).tiny),
        f"{at}/zero": np.array(0, dtype=np.float32),
    }
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in tensors.items())
    return [
        helper.make_node("Cast", [source], [f"{at}/single"], name=f"{at}/single", to=TensorProto.FLOAT),
        helper.make_node("Abs", [f"{at}/single"], [f"{at}/size"], name=f"{at}/size"),
        helper.make_node("Less", [f"{at}/size", f"{at}/normal"], [f"{at}/tiny"], name=f"{at}/tiny"),
        helper.make_node("Where", [f"{at}/tiny", f"{at}/zero", f"{at}/single"], [f"{at}/flushed"], name=f"{at}/flushed"),
        helper.make_node("Unsqueeze", [f"{at}/flushed", f"{at}/last"], [f"{at}/each"], name=f"{at}/each"),
        helper.make_node("Less", [f"{at}/each", f"{at}/boundaries"], [f"{at}/below"], name=f"{at}/below"),
        helper.make_node("Not", [f"{at}/below"], [f"{at}/reached"], name=f"{at}/reached"),
        helper.make_node("Cast", [f"{at}/reached"], [f"{at}/ones"], name=f"{at}/ones", to=TensorProto.INT32),
        helper.make_node("ReduceSum", [f"{at}/ones", f"{at}/last"], [made], name=at, keepdims=0),
    ]


def _drop_unread(model: onnx.ModelProto) -> None:
    """Drop nodes and inputs that nothing reads: what was replaced, and handles of tables."""
    kept_nodes: list[onnx.NodeProto] = []
    needed = {o.name for o in model.graph.output}
    for node in reversed(model.graph.node):
        if any(name in needed for name in node.output):
            kept_nodes.append(node)
            needed.update(reads(node))
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept_nodes))
    read = {name for node in model.graph.node for name in reads(node)}
    kept = [i for i in model.graph.input if i.name in read]
    del model.graph.input[:]
    model.graph.input.extend(kept)


def _declare_outputs(model: onnx.ModelProto) -> None:
    """Give outputs that are declared as scalars, or not at all, the shape they have."""
    makers = {name: node for node in model.graph.node for name in node.output}
    vague = [o for o in model.graph.output if not o.type.tensor_type.shape.dim]
    for output in vague:
        output.type.tensor_type.ClearField("shape")
    try:
        inferred = shape_inference.infer_shapes(model).graph
    except (shape_inference.InferenceError, ValueError):
        return
    known = {v.name: v.type.tensor_type for v in (*inferred.input, *inferred.value_info, *inferred.output)}
    for output in vague:
        name = output.name
        while name in makers and makers[name].op_type in _ONE_TO_ONE and not known[name].shape.dim:  # of these inference knows no shape
            name = makers[name].input[0]
        if name in known and known[name].HasField("shape"):
            output.type.tensor_type.shape.CopyFrom(known[name].shape)


# --- resizing -------------------------------------------------------------------------------------------------------------

#: TensorFlow's operator, which the last node of what tf2onnx writes for it is named after → whether it interpolates.
_RESIZES: Final = {"ResizeBilinear": True, "ResizeNearestNeighbor": False}


def _resized(node: onnx.NodeProto, model: onnx.ModelProto, makers: Mapping[str, onnx.NodeProto]) -> list[onnx.NodeProto] | None:
    """Return TensorFlow's own arithmetic for a Resizing, in place of an ONNX Resize whose last bits are others.

    Source: tensorflow/core/kernels/image, resize_bilinear_op.cc and resize_nearest_neighbor_op.cc, half pixel centers, all in float32.
    Bilinear positions are (i + 0.5)·(in / out) − 0.5; a value is left + (right − left)·fraction, first along the width, then along the
    height. The nearest pixel is the floor of (i + 0.5)·(in / out).

    Returns:
        The nodes, ending in what `node` makes; None when it is none, or the graph around it is not what tf2onnx writes.
    """
    bilinear = _RESIZES.get(node.name.rpartition("/")[2])
    resize = makers.get(node.input[0]) if bilinear is not None and node.op_type == "Transpose" else None
    if resize is None or resize.op_type != "Resize" or len(resize.input) != 4:
        return None
    turned, sizes = makers.get(resize.input[0]), makers.get(resize.input[3])
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    wanted = next((constants[n] for n in sizes.input if n in constants and constants[n].size == 2), None) if sizes is not None else None
    if turned is None or turned.op_type != "Transpose" or wanted is None:
        return None
    writer = _Writer(node.name, model)
    source = writer.node("Cast", [turned.input[0]], "single", to=TensorProto.FLOAT) if bilinear else turned.input[0]
    shape = writer.node("Shape", [source], "shape")
    places = [writer.places(shape, axis, int(wanted[axis - 1])) for axis in (1, 2)]
    if not bilinear:
        rows, columns = (writer.nearest(*place) for place in places)
        wide = writer.node("Gather", [source, columns], "wide", axis=2)
        writer.nodes.append(helper.make_node("Gather", [wide, rows], [node.output[0]], name=node.name, axis=1))
        return writer.nodes
    for axis, place in ((2, places[1]), (1, places[0])):
        low, high, fraction = writer.neighbours(*place, shape=[1, -1, 1] if axis == 2 else [-1, 1, 1])
        first = writer.node("Gather", [source, low], f"{axis}/first", axis=axis)
        second = writer.node("Gather", [source, high], f"{axis}/second", axis=axis)
        step = writer.node("Mul", [writer.node("Sub", [second, first], f"{axis}/difference"), fraction], f"{axis}/step")
        source = writer.node("Add", [first, step], f"{axis}/between")
    writer.nodes[-1].output[0], writer.nodes[-1].name = node.output[0], node.name
    return writer.nodes


class _Writer:
    """Collects the nodes that stand in for one node."""

    def __init__(self, at: str, model: onnx.ModelProto) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._at = at
        self._model = model
        self._half = self._constant("half", np.array(0.5, dtype=np.float32))

    def node(self, operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Append a node and return what it makes."""
        self.nodes.append(helper.make_node(operator, inputs, [f"{self._at}/{name}"], name=f"{self._at}/{name}", **attributes))
        return f"{self._at}/{name}"

    def _constant(self, name: str, value: np.ndarray) -> str:
        self._model.graph.initializer.append(numpy_helper.from_array(value, f"{self._at}/{name}"))
        return f"{self._at}/{name}"

    def places(self, shape: str, axis: int, length: int) -> tuple[str, str, str]:
        """Return (i + 0.5)·(in / out) of an axis, the last index of it, and a name for it."""
        size = self.node("Gather", [shape, self._constant(f"{axis}/axis", np.array(axis))], f"{axis}/size")
        wide = self.node("Cast", [size], f"{axis}/float", to=TensorProto.FLOAT)
        scale = self.node("Div", [wide, self._constant(f"{axis}/out", np.array(length, dtype=np.float32))], f"{axis}/scale")
        centres = self._constant(f"{axis}/centres", np.arange(length, dtype=np.float32) + np.float32(0.5))
        last = self.node("Sub", [size, self._constant(f"{axis}/one", np.array(1))], f"{axis}/last")
        return self.node("Mul", [centres, scale], f"{axis}/scaled"), last, str(axis)

    def nearest(self, scaled: str, last: str, name: str) -> str:
        """Return the index of the nearest pixel."""
        floor = self.node("Cast", [self.node("Floor", [scaled], f"{name}/floor")], f"{name}/whole", to=TensorProto.INT64)
        return self.node("Min", [floor, last], f"{name}/index")

    def neighbours(self, scaled: str, last: str, name: str, *, shape: list[int]) -> tuple[str, str, str]:
        """Return the indices of the pixels before and behind, and how far between them the place is, in a shape to broadcast."""
        place = self.node("Sub", [scaled, self._half], f"{name}/place")
        floor = self.node("Floor", [place], f"{name}/floor")
        zero = self._constant(f"{name}/zero", np.array(0, dtype=np.float32))
        low = self.node("Cast", [self.node("Max", [floor, zero], f"{name}/at least 0")], f"{name}/whole", to=TensorProto.INT64)
        above = self.node("Cast", [self.node("Ceil", [place], f"{name}/ceil")], f"{name}/above", to=TensorProto.INT64)
        high = self.node("Min", [above, last], f"{name}/high")
        offset = self.node("Sub", [place, floor], f"{name}/offset")
        fraction = self.node("Reshape", [offset, self._constant(f"{name}/shape", np.array(shape))], f"{name}/fraction")
        return self.node("Min", [low, high], f"{name}/low"), high, fraction
