"""From logits to what a caller reads: the five likeliest classes by name, with their probabilities.

Written twice on purpose: as the ONNX graph that is served, and in NumPy as the reference it is held against.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper
from samegraph_transforms.opsets import AI_ONNX, IR_VERSION

TOP = 5


def build_answer(labels: Sequence[str]) -> onnx.ModelProto:
    """Return the graph: `logits` float32 [n, classes] → `label` string [n, 5] and `probability` float32 [n, 5], likeliest first."""
    nodes = [
        helper.make_node("Softmax", ["logits"], ["probabilities"], name="softmax", axis=1),
        helper.make_node("TopK", ["probabilities", "top"], ["probability", "number"], name="top_k", axis=1, largest=1, sorted=1),
        helper.make_node("Gather", ["labels", "number"], ["label"], name="name", axis=0),
    ]
    constants = [
        helper.make_tensor("labels", TensorProto.STRING, [len(labels)], np.array(labels, dtype=object)),
        helper.make_tensor("top", TensorProto.INT64, [1], [TOP]),
    ]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", len(labels)])
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.STRING, ["n", TOP]),
        helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n", TOP]),
    ]
    graph = helper.make_graph(nodes, "top_labels", [logits], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", AI_ONNX)], ir_version=IR_VERSION, producer_name="samegraph")
    onnx.checker.check_model(model, full_check=True)
    return model


def reference_answer(logits: np.ndarray, labels: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the same outputs computed with NumPy, the softmax in float64 and rounded once.

    Args:
        logits: float32 [n, classes].
        labels: One name per class.
    """
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    probabilities = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    # A stable sort keeps equal probabilities in class order, as TopK does.
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]
    return {
        "label": np.array(labels, dtype=object)[order],
        "probability": np.take_along_axis(probabilities, order, axis=1),
    }
