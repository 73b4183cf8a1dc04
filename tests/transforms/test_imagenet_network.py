"""The EfficientNet-Lite0 graph and the graph that names its five best classes."""

from __future__ import annotations

import numpy as np
import pytest
from efficientnet import random_weights
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from samegraph_transforms.executor import OrtExecutor

from models.imagenet.answer import TOP, build_answer, reference_answer
from models.imagenet.efficientnet import WeightsDoNotFit, build_efficientnet_lite0, same_pads


@pytest.mark.parametrize(
    ("size", "kernel", "stride"),
    [(224, 3, 2), (112, 3, 1), (112, 3, 2), (56, 5, 2), (28, 3, 2), (14, 5, 1), (14, 5, 2), (7, 3, 1), (7, 1, 1)],
)
def test_same_padding_is_what_the_standard_calls_same_upper(size: int, kernel: int, stride: int) -> None:
    """For every layer size of the network, explicit pads give bit for bit what ONNX Runtime's SAME_UPPER gives."""
    before, after = same_pads(size, kernel, stride)
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1, 1, kernel, kernel], np.arange(1.0, kernel * kernel + 1))
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["explicit"], strides=[stride] * 2, pads=[before, before, after, after]),
        helper.make_node("Conv", ["x", "w"], ["same"], strides=[stride] * 2, auto_pad="SAME_UPPER"),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, size, size])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("explicit", "same")]
    graph = helper.make_graph(nodes, "pads", inputs, outputs, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    x = np.random.default_rng(0).standard_normal((1, 1, size, size)).astype(np.float32)
    explicit, same = OrtExecutor(model).run({"x": x})
    np.testing.assert_array_equal(explicit, same)


def test_strided_layers_pad_only_below_and_right_where_sizes_are_even() -> None:
    """The stem pads (0, 1), not PyTorch's usual (1, 1): the difference that costs accuracy silently."""
    assert same_pads(224, 3, 2) == (0, 1)
    assert same_pads(56, 5, 2) == (1, 2)
    assert same_pads(112, 3, 1) == (1, 1)


def test_the_same_weights_give_the_same_bytes_in_the_published_layout() -> None:
    """143 nodes, batch normalisation kept, any batch size, and no byte that depends on the run."""
    weights = random_weights()
    model = build_efficientnet_lite0(weights)
    operators = [node.op_type for node in model.graph.node]
    assert (len(operators), operators.count("Conv"), operators.count("BatchNormalization")) == (143, 49, 49)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "n"
    again = build_efficientnet_lite0(dict(reversed(weights.items())))
    assert model.SerializeToString() == again.SerializeToString()


def test_an_image_gets_the_same_logits_alone_and_in_a_batch() -> None:
    """Batching changes no bit of an instance's logits on the CPU."""
    network = OrtExecutor(build_efficientnet_lite0(random_weights()))
    images = np.random.default_rng(1).uniform(-1, 1, (3, 3, 224, 224)).astype(np.float32)
    together = network.run({"input": images})[0]
    assert together.shape == (3, 1000)
    assert together.dtype == np.float32
    assert np.isfinite(together).all()
    for image, logits in zip(images, together, strict=True):
        np.testing.assert_array_equal(network.run({"input": image[None]})[0][0], logits)


@pytest.mark.parametrize("fault", ["absent", "shape", "dtype", "left over"])
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(fault: str) -> None:
    """A network is never built from the wrong tensors."""
    weights = random_weights()
    name = "_blocks.7._depthwise_conv.weight"
    if fault == "absent":
        del weights[name]
    elif fault == "shape":
        weights[name] = weights[name].transpose(1, 0, 2, 3)
    elif fault == "dtype":
        weights[name] = weights[name].astype(np.float16)
    else:
        name = "_blocks.7._se_reduce.weight"
        weights[name] = np.zeros(3, np.float32)
    with pytest.raises(WeightsDoNotFit, match=name):
        build_efficientnet_lite0(weights)


def _logits(rows: int) -> np.ndarray:
    return (np.random.default_rng(5).standard_normal((rows, 40)) * 3).astype(np.float32)


LABELS = [f"class {number}" for number in range(40)]


def test_the_answer_graph_names_the_five_likeliest_classes() -> None:
    """Labels equal NumPy's and probabilities are within 4 ULP of it, for one row and for many."""
    answer = OrtExecutor(build_answer(LABELS))
    for logits in (_logits(1), _logits(16)):
        label, probability = answer.run({"logits": logits})
        expected = reference_answer(logits, LABELS)
        np.testing.assert_array_equal(label, expected["label"])
        np.testing.assert_array_max_ulp(probability, expected["probability"], maxulp=4)
        assert label.shape == (len(logits), TOP)


def test_equal_probabilities_come_in_class_order() -> None:
    """A tie is broken the same way by the graph, its ONNX reference evaluation and NumPy."""
    logits = np.zeros((2, 40), np.float32)
    logits[0, [30, 7]] = 2.0
    model = build_answer(LABELS)
    expected = reference_answer(logits, LABELS)["label"]
    assert expected.tolist() == [["class 7", "class 30", "class 0", "class 1", "class 2"], [f"class {i}" for i in range(5)]]
    np.testing.assert_array_equal(OrtExecutor(model).run({"logits": logits})[0], expected)
    evaluated = np.asarray(next(iter(ReferenceEvaluator(model).run(["label"], {"logits": logits}))))
    np.testing.assert_array_equal(evaluated.astype(str), expected.astype(str))


def test_huge_logits_do_not_overflow() -> None:
    """The softmax subtracts the maximum first, so that logits of ±10000 still give probabilities that sum to one."""
    logits = np.array([[-1e4, 1e4, 1e4] + [0.0] * 37], np.float32)
    probability = OrtExecutor(build_answer(LABELS)).run({"logits": logits})[1]
    np.testing.assert_allclose(probability[0, :2], [0.5, 0.5], rtol=1e-6)
