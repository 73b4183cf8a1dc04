"""MobileNetV2 and ResNet-50 v1.5 as ONNX graphs with seeded weights, for measuring speed.

The layers, their shapes and their order are those of the papers; the weights are not trained, because nothing here may depend on a model
hub. Speed depends on the architecture, not on what was learnt. Answers are still compared with the plain pipeline's, so they must be sane
and differ between photos; plain random weights give neither (activations of different photos grow alike from layer to layer). So each
convolution is drawn by He's rule and then normalised on a few real photos, as batch normalisation does in training, and the normalisation
is folded into weight and bias, as an exporter does for inference.

Sources: Sandler et al., MobileNetV2 (table 2); He et al., Deep residual learning (table 1), with the stride in the 3×3 convolution (v1.5);
He et al., Delving deep into rectifiers (the rule for weights).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from samegraph_transforms.opsets import AI_ONNX, IR_VERSION

IMAGE_SIZE = 224
N_CLASSES = 1000
TOP = 5
#: Standard deviation of the logits over the photos: about what trained networks give, so that the likeliest class is not all or nothing.
LOGIT_SPREAD = 2.0


@dataclass(frozen=True)
class _Value:
    """A tensor of the graph, and what it is for the photos."""

    name: str
    seen: np.ndarray

    @property
    def channels(self) -> int:
        return int(self.seen.shape[1])


class _Drawing:
    """A graph that grows layer by layer, each drawn for what the photos look like at its place.

    Args:
        photos: float32 [k, 3, 224, 224].
        seed: Of the weights.
    """

    def __init__(self, photos: np.ndarray, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, np.ndarray] = {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
        self.input = _Value("input", photos)

    def add(self, operator: str, inputs: Sequence[_Value], constants: Sequence[str] = (), **attributes: Any) -> _Value:
        """Append a node and compute its value for the photos."""
        name = f"{operator.lower()}_{len(self._nodes)}"
        node = helper.make_node(operator, [*(value.name for value in inputs), *constants], [name], name=name, **attributes)
        self._nodes.append(node)
        return _Value(name, self._computed(node, inputs, constants))

    def conv(self, x: _Value, filters: int, kernel: int, stride: int = 1, groups: int = 1, activation: str = "", gain: float = 1) -> _Value:
        """Append a convolution whose outputs have mean 0 and standard deviation `gain` per channel on the photos, and an activation."""
        weight, bias = f"w{len(self._nodes)}", f"w{len(self._nodes)}.bias"
        shape = (filters, x.channels // groups, kernel, kernel)
        drawn = self._generator.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        self._constants[weight], self._constants[bias] = drawn.astype(np.float32), np.zeros(filters, np.float32)
        places = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4, "group": groups}
        raw = self.add("Conv", [x], [weight, bias], **places)
        mean, spread = (of(raw.seen, axis=(0, 2, 3), dtype=np.float64) for of in (np.mean, np.std))
        scale = gain / np.maximum(spread, 1e-3)
        self._constants[weight] = (drawn * scale[:, np.newaxis, np.newaxis, np.newaxis]).astype(np.float32)
        self._constants[bias] = (-mean * scale).astype(np.float32)
        out = _Value(raw.name, self._computed(self._nodes[-1], [x], [weight, bias]))
        match activation:
            case "relu":
                return self.add("Relu", [out])
            case "relu6":
                return self.add("Clip", [out], ["zero", "six"])
        return out

    def classifier(self, x: _Value) -> _Value:
        """Append average pooling and a linear layer; the logits of each class have mean 0 over the photos."""
        flat = self.add("Flatten", [self.add("GlobalAveragePool", [x])], axis=1)
        features = flat.seen.astype(np.float64)
        weight = self._generator.normal(0, 1, (N_CLASSES, features.shape[1]))
        weight *= LOGIT_SPREAD / ((features - features.mean(axis=0)) @ weight.T).std()
        self._constants["w.logits"] = weight.astype(np.float32)
        self._constants["w.logits.bias"] = (-features.mean(axis=0) @ weight.T).astype(np.float32)
        return self.add("Gemm", [flat], ["w.logits", "w.logits.bias"], transB=1)

    def model(self, name: str) -> onnx.ModelProto:
        """Return the checked model: `input` float32 [n, 3, 224, 224] → `logits` float32 [n, 1000], the newest value."""
        self._nodes[-1].output[0] = "logits"
        source = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", *self.input.seen.shape[1:]])
        target = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", N_CLASSES])
        used = {constant for node in self._nodes for constant in node.input}
        constants = [numpy_helper.from_array(value, key) for key, value in self._constants.items() if key in used]
        return _checked(helper.make_graph(self._nodes, name, [source], [target], constants))

    def _computed(self, node: onnx.NodeProto, inputs: Sequence[_Value], constants: Sequence[str]) -> np.ndarray:
        """Run one node alone on what its inputs are for the photos."""
        sources = [helper.make_tensor_value_info(value.name, TensorProto.FLOAT, list(value.seen.shape)) for value in inputs]
        target = onnx.ValueInfoProto(name=node.output[0])  # ONNX Runtime infers its shape
        weights = [numpy_helper.from_array(self._constants[name], name) for name in constants]
        alone = _model(helper.make_graph([node], "alone", sources, [target], weights))
        session = ort.InferenceSession(alone.SerializeToString(), providers=["CPUExecutionProvider"])
        value: np.ndarray = session.run(None, {value.name: value.seen for value in inputs})[0]
        return value


def mobilenet_v2(photos: np.ndarray, seed: int) -> onnx.ModelProto:
    """Return MobileNetV2 at width 1.0: 3.5 million weights, 0.3 billion multiplications an image.

    Args:
        photos: What the layers are normalised on, float32 [k, 3, 224, 224].
        seed: Of the weights.
    """
    graph = _Drawing(photos, seed)
    x = graph.conv(graph.input, 32, 3, stride=2, activation="relu6")
    for expand, filters, repeats, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for number in range(repeats):
            x = _inverted_residual(graph, x, filters, expand, stride if number == 0 else 1)
    x = graph.conv(x, 1280, 1, activation="relu6")
    graph.classifier(x)
    return graph.model("mobilenet_v2")


def _inverted_residual(graph: _Drawing, x: _Value, filters: int, expand: int, stride: int) -> _Value:
    inside, hidden = x, x.channels * expand
    if expand != 1:
        inside = graph.conv(inside, hidden, 1, activation="relu6")
    inside = graph.conv(inside, hidden, 3, stride, groups=hidden, activation="relu6")
    inside = graph.conv(inside, filters, 1)
    return graph.add("Add", [inside, x]) if stride == 1 and x.channels == filters else inside


def resnet_50(photos: np.ndarray, seed: int) -> onnx.ModelProto:
    """Return ResNet-50 v1.5: 25.6 million weights, 4.1 billion multiplications an image.

    Args:
        photos: What the layers are normalised on, float32 [k, 3, 224, 224].
        seed: Of the weights.
    """
    graph = _Drawing(photos, seed)
    x = graph.conv(graph.input, 64, 7, stride=2, activation="relu")
    x = graph.add("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for filters, repeats, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for number in range(repeats):
            x = _bottleneck(graph, x, filters, stride if number == 0 else 1)
    graph.classifier(x)
    return graph.model("resnet_50")


def _bottleneck(graph: _Drawing, x: _Value, filters: int, stride: int) -> _Value:
    inside = graph.conv(x, filters, 1, activation="relu")
    inside = graph.conv(inside, filters, 3, stride, activation="relu")
    inside = graph.conv(inside, 4 * filters, 1, gain=0.5)  # less than the way past, so that depth does not wash the photo out
    past = x if x.channels == 4 * filters else graph.conv(x, 4 * filters, 1, stride)
    return graph.add("Relu", [graph.add("Add", [inside, past])])


def top_classes() -> onnx.ModelProto:
    """Return the graph from `logits` float32 [n, 1000] to `class` int64 [n, 5] and `probability` float32 [n, 5], likeliest first."""
    nodes = [
        helper.make_node("Softmax", ["logits"], ["probabilities"], name="softmax", axis=1),
        helper.make_node("TopK", ["probabilities", "top"], ["probability", "class"], name="top_k", axis=1, largest=1, sorted=1),
    ]
    source = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", N_CLASSES])
    outputs = [
        helper.make_tensor_value_info("class", TensorProto.INT64, ["n", TOP]),
        helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n", TOP]),
    ]
    return _checked(helper.make_graph(nodes, "top_classes", [source], outputs, [helper.make_tensor("top", TensorProto.INT64, [1], [TOP])]))


def reference_top_classes(logits: np.ndarray) -> dict[str, np.ndarray]:
    """Return the same outputs computed with NumPy, the softmax in float64 and rounded once.

    Args:
        logits: float32 [n, 1000].
    """
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    probabilities = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]
    return {"class": order.astype(np.int64), "probability": np.take_along_axis(probabilities, order, axis=1)}


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", AI_ONNX)], ir_version=IR_VERSION, producer_name="samegraph")


def _checked(graph: onnx.GraphProto) -> onnx.ModelProto:
    model = _model(graph)
    onnx.checker.check_model(model, full_check=True)
    return model


#: By the name of the benchmark package.
NETWORKS: dict[str, Callable[[np.ndarray, int], onnx.ModelProto]] = {"mobilenet": mobilenet_v2, "resnet50": resnet_50}
