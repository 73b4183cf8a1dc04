"""EfficientNet-Lite0 as an ONNX graph, built straight from the published weights.

The architecture is that of the package efficientnet-lite-pytorch 0.1.0 (`EfficientNet.from_name("efficientnet-lite0")`), in evaluation
mode: a stem, sixteen mobile inverted bottleneck blocks without squeeze-and-excitation, a head, average pooling and a linear layer.
Convolutions pad as TensorFlow's SAME does: by an amount that depends on the input size, with the odd row below and on the right. It
is written out for 224×224 here, as explicit pads. Batch normalisation stays a node of its own, so that the graph shows the trained
weights as published; ONNX Runtime folds it into the convolution when it loads the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from samegraph_transforms.opsets import AI_ONNX, IR_VERSION

IMAGE_SIZE = 224
N_CLASSES = 1000
BATCH_NORM_EPSILON = 1e-3
STEM_FILTERS = 32
HEAD_FILTERS = 1280


@dataclass(frozen=True)
class BlockGroup:
    """Consecutive blocks of one kind; only the first of them strides and changes the number of channels."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    filters_in: int
    filters_out: int


#: `r1_k3_s11_e1_i32_o16` and so on in the package's `utils.efficientnet_lite`.
BLOCK_GROUPS = (
    BlockGroup(1, 3, 1, 1, 32, 16),
    BlockGroup(2, 3, 2, 6, 16, 24),
    BlockGroup(2, 5, 2, 6, 24, 40),
    BlockGroup(3, 3, 2, 6, 40, 80),
    BlockGroup(3, 5, 1, 6, 80, 112),
    BlockGroup(4, 5, 2, 6, 112, 192),
    BlockGroup(1, 3, 1, 6, 192, 320),
)


def same_pads(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the padding before and after one axis that TensorFlow's SAME uses; the odd one goes after.

    Args:
        size: Elements along the axis.
        kernel: Width of the filter.
        stride: Step of the filter.
    """
    n_out = -(-size // stride)
    total = max((n_out - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class WeightsDoNotFit(ValueError):
    """Raised when the checkpoint lacks a tensor of the architecture, has one too many, or has one of another shape."""


@dataclass
class _GraphBuilder:
    """Appends layers to a graph; `size` is the height and width of the newest value."""

    weights: Mapping[str, np.ndarray]
    size: int = IMAGE_SIZE
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, np.ndarray] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def constant(self, name: str, value: np.ndarray) -> str:
        self.initializers[name] = value
        return name

    def weight(self, name: str, shape: tuple[int, ...]) -> str:
        """Take one published tensor into the graph under its published name."""
        value = self.weights.get(name)
        if value is None or value.shape != shape or value.dtype != np.float32:
            got = "none" if value is None else f"{value.dtype}{list(value.shape)}"
            raise WeightsDoNotFit(f"the architecture needs {name} as float32{list(shape)}; the checkpoint has {got}")
        self.used.add(name)
        return self.constant(name, value)

    def add(self, operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def conv(self, x: str, name: str, filters: tuple[int, int], kernel: int, stride: int = 1, groups: int = 1) -> str:
        """Append a convolution without bias and with SAME padding."""
        before, after = same_pads(self.size, kernel, stride)
        weight = self.weight(f"{name}.weight", (filters[1], filters[0] // groups, kernel, kernel))
        self.size = -(-self.size // stride)
        return self.add(
            "Conv",
            [x, weight],
            name,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[before, before, after, after],
            group=groups,
        )

    def batch_norm(self, x: str, name: str, channels: int) -> str:
        parts = [self.weight(f"{name}.{part}", (channels,)) for part in ("weight", "bias", "running_mean", "running_var")]
        return self.add("BatchNormalization", [x, *parts], name, epsilon=BATCH_NORM_EPSILON)

    def relu6(self, x: str) -> str:
        return self.add("Clip", [x, "zero", "six"], f"{x}.relu6")

    def block(self, x: str, name: str, group: BlockGroup, first: bool) -> str:
        """Append one mobile inverted bottleneck block: expand, filter by channel, project, add its input back where shapes allow."""
        filters_in = group.filters_in if first else group.filters_out
        stride = group.stride if first else 1
        filters = filters_in * group.expand
        inside = x
        if group.expand != 1:
            inside = self.conv(inside, f"{name}._expand_conv", (filters_in, filters), 1)
            inside = self.relu6(self.batch_norm(inside, f"{name}._bn0", filters))
        inside = self.conv(inside, f"{name}._depthwise_conv", (filters, filters), group.kernel, stride, groups=filters)
        inside = self.relu6(self.batch_norm(inside, f"{name}._bn1", filters))
        inside = self.conv(inside, f"{name}._project_conv", (filters, group.filters_out), 1)
        inside = self.batch_norm(inside, f"{name}._bn2", group.filters_out)
        skips = stride == 1 and filters_in == group.filters_out
        return self.add("Add", [inside, x], f"{name}.skip") if skips else inside


def build_efficientnet_lite0(weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """Return the network as a checked ONNX model: `input` float32 [n, 3, 224, 224] → `logits` float32 [n, 1000].

    The same weights give the same bytes.

    Args:
        weights: The published state dictionary (`read_legacy_checkpoint`).

    Raises:
        WeightsDoNotFit: A tensor is absent, of another shape, or left over.
    """
    graph = _GraphBuilder(weights)
    graph.constant("zero", np.array(0, np.float32))
    graph.constant("six", np.array(6, np.float32))
    x = graph.conv("input", "_conv_stem", (3, STEM_FILTERS), 3, stride=2)
    x = graph.relu6(graph.batch_norm(x, "_bn0", STEM_FILTERS))
    blocks = [(group, i == 0) for group in BLOCK_GROUPS for i in range(group.repeats)]
    for number, (group, first) in enumerate(blocks):
        x = graph.block(x, f"_blocks.{number}", group, first)
    x = graph.conv(x, "_conv_head", (BLOCK_GROUPS[-1].filters_out, HEAD_FILTERS), 1)
    x = graph.relu6(graph.batch_norm(x, "_bn1", HEAD_FILTERS))
    x = graph.add("GlobalAveragePool", [x], "_avg_pooling")
    x = graph.add("Flatten", [x], "_flatten", axis=1)
    fc = [graph.weight("_fc.weight", (N_CLASSES, HEAD_FILTERS)), graph.weight("_fc.bias", (N_CLASSES,))]
    graph.add("Gemm", [x, *fc], "logits", transB=1)
    _refuse_leftovers(graph)
    return _model(graph)


def _refuse_leftovers(graph: _GraphBuilder) -> None:
    # num_batches_tracked counts training steps; evaluation does not read it.
    left = sorted(name for name in graph.weights.keys() - graph.used if not name.endswith(".num_batches_tracked"))
    if left:
        raise WeightsDoNotFit(f"the checkpoint has tensors this architecture does not use: {', '.join(left[:5])}")


def _model(graph: _GraphBuilder) -> onnx.ModelProto:
    source = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, IMAGE_SIZE, IMAGE_SIZE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", N_CLASSES])
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in graph.initializers.items()]
    proto = helper.make_graph(graph.nodes, "efficientnet_lite0", [source], [logits], tensors)
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", AI_ONNX)], ir_version=IR_VERSION, producer_name="samegraph")
    onnx.checker.check_model(model, full_check=True)
    return model
