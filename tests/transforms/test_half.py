"""Half precision: which nodes are converted, how near the answers stay, and that the package's promise decides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import package_builders as build
import pytest
from click.testing import CliRunner
from gpu_models import convnet, pixels
from onnx import TensorProto, helper
from samegraph_transforms import golden
from samegraph_transforms.cli import cli
from samegraph_transforms.errors import PackageError
from samegraph_transforms.executor import OrtExecutor
from samegraph_transforms.gpu import GpuOptions
from samegraph_transforms.half import PROFILE, half_nodes, to_half
from samegraph_transforms.manifest import DEFAULT_TOLERANCES, Tolerance
from samegraph_transforms.pack import pack
from samegraph_transforms.package import Package
from samegraph_transforms.runtime import PackageRuntime
from samegraph_transforms.verify import verify


def half_of(model: onnx.ModelProto) -> list[str]:
    """Return the operators that compute in half precision, in order."""
    return [node.op_type for node in to_half(model).graph.node if node.op_type != "Cast" and node.output[0].endswith("/half")]


def test_products_and_what_follows_them_are_converted_and_nothing_else() -> None:
    """Normalisation before the first convolution, the mean over the picture, softmax and the label stay as they were."""
    model = convnet()
    converted = to_half(model)
    assert half_of(model) == ["Conv", "Relu", "Conv", "Gemm"]
    assert half_nodes(converted) == 4
    assert half_nodes(model) == 0
    onnx.checker.check_model(converted, full_check=True)
    assert list(converted.graph.input) == list(model.graph.input)
    assert list(converted.graph.output) == list(model.graph.output)


def test_answers_stay_within_what_ten_bits_of_mantissa_can_hold() -> None:
    """The converted graph really runs, and differs by about as much as half precision must, not more and not nothing."""
    full, half = OrtExecutor(convnet()), OrtExecutor(to_half(convnet()))
    feeds = {"pixels": pixels(64)}
    expected, answer = full.run(feeds)[0], half.run(feeds)[0]
    assert answer.dtype == np.float32
    assert 0 < np.abs(answer - expected).max() < 2e-2


def test_weights_are_stored_once_and_in_half_precision() -> None:
    """The converted graph holds no float32 copy of a weight it does not read any more."""
    names = {tensor.name: tensor.data_type for tensor in to_half(convnet()).graph.initializer}
    assert {name for name, kind in names.items() if kind == TensorProto.FLOAT16} == {f"{n}/half" for n in ("w1", "b1", "w2", "w3", "b3")}
    assert {"w1", "w2", "w3"}.isdisjoint(names)
    assert {"scale", "mean"} <= names.keys()


def test_a_constant_beyond_the_range_keeps_its_node_in_float32() -> None:
    """65504 is the largest number half precision holds: a weight of 70000 would become infinity."""
    for largest, converted in ((60000.0, ["Gemm"]), (70000.0, [])):
        weights = build.WEIGHTS.copy()
        weights[0, 0] = largest
        assert half_of(build.classifier(weights)) == converted


def test_a_value_read_in_both_precisions_has_both() -> None:
    """A graph output, and a node that stays in float32, get the value back through one cast."""
    model = build.model_of(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"]),
            helper.make_node("Relu", ["product"], ["positive"]),
            helper.make_node("Exp", ["product"], ["power"]),
        ],
        [("x", TensorProto.FLOAT, ["n", 2])],
        [(name, TensorProto.FLOAT, ["n", 3]) for name in ("product", "positive", "power")],
        w=build.WEIGHTS,
    )
    converted = to_half(model)
    onnx.checker.check_model(converted, full_check=True)
    assert [node.output[0] for node in converted.graph.node if node.op_type == "Cast"] == ["x/half", "product", "positive"]
    feeds = {"x": np.array([[0.5, 2.0], [-1.0, 0.25]], dtype=np.float32)}
    for answer, expected in zip(OrtExecutor(converted).run(feeds), OrtExecutor(model).run(feeds), strict=True):
        np.testing.assert_allclose(answer, expected, rtol=5e-3)


def test_a_subgraph_still_finds_the_outer_values_it_reads() -> None:
    """What only a branch of an If reads is brought back to float32 before it."""
    branch = {
        name: helper.make_graph(
            [helper.make_node(op, ["product"], ["y"])], name, [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])]
        )
        for name, op in (("yes", "Relu"), ("no", "Neg"))
    }
    model = build.model_of(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"]),
            helper.make_node("If", ["flag"], ["z"], then_branch=branch["yes"], else_branch=branch["no"]),
        ],
        [("x", TensorProto.FLOAT, ["n", 2]), ("flag", TensorProto.BOOL, [])],
        [("z", TensorProto.FLOAT, ["n", 3])],
        w=build.WEIGHTS,
    )
    feeds = {"x": np.ones((2, 2), np.float32)}
    for flag in (True, False):
        fed = {**feeds, "flag": np.array(flag)}
        np.testing.assert_allclose(OrtExecutor(to_half(model)).run(fed)[0], OrtExecutor(model).run(fed)[0], rtol=5e-3)


def test_a_graph_without_products_is_left_as_it_is() -> None:
    """Boosted trees and encoders have nothing to gain."""
    assert to_half(build.preprocess()) == build.preprocess()


# --- through the proof ------------------------------------------------------------------------------------------------

GENEROUS = {**DEFAULT_TOLERANCES, PROFILE: Tolerance(atol=5e-3)}
STRICT = {**DEFAULT_TOLERANCES, PROFILE: Tolerance(ulp=4)}


def packed(repository: Path, tolerances: dict[str, Tolerance]) -> Package:
    """Pack the small package with these promises."""
    return pack(replace(build.draft(), tolerances=tolerances), build.samples(), repository)


def test_only_a_package_that_promises_it_computes_in_half_precision(tmp_path: Path) -> None:
    """The operator's choice alone is not enough: a package states beforehand how far its answers may be off."""
    silent = PackageRuntime.load(packed(tmp_path / "silent", DEFAULT_TOLERANCES), gpu=GpuOptions(half=True))
    assert not silent.half
    willing = packed(tmp_path / "willing", GENEROUS)
    assert not PackageRuntime.load(willing, gpu=GpuOptions()).half
    runtime = PackageRuntime.load(willing, gpu=GpuOptions(half=True))
    assert runtime.half
    assert golden.runtime_profile(runtime) == PROFILE
    row = (123.4, "oak")
    assert runtime.predict([row])["probability"].tolist() != silent.predict([row])["probability"].tolist()


@pytest.mark.parametrize(("tolerances", "passes"), [(GENEROUS, True), (STRICT, False)], ids=["within", "beyond"])
@pytest.mark.parametrize("merge", [True, False], ids=["one graph", "chain"])
def test_golden_samples_decide_against_the_promise_for_half_precision(
    tolerances: dict[str, Tolerance], passes: bool, merge: bool, tmp_path: Path
) -> None:
    """The replay a server does before serving holds the converted graph to `gpu.half`, and to no other promise."""
    package = packed(tmp_path, tolerances)
    runtime = PackageRuntime.load(package, gpu=GpuOptions(half=True), merge=merge)
    results = golden.replay(runtime, golden.read_samples(package.golden_dir()), [1, 4, 8], intermediates=False)
    assert all(result.passed for result in results) is passes


def test_verify_proves_half_precision_on_a_machine_without_a_gpu(tmp_path: Path) -> None:
    """A trainer learns before shipping whether the promise is kept; the CPU emulates the arithmetic."""
    report = verify(packed(tmp_path, GENEROUS), half=True)
    assert report.ok
    assert report.profile == PROFILE
    with pytest.raises(PackageError, match=r"promises nothing for half precision.*'gpu\.half'"):
        verify(packed(tmp_path / "silent", DEFAULT_TOLERANCES), half=True)


def test_the_verify_command_has_the_choice(tmp_path: Path) -> None:
    """Exit codes as ever: 0 within the promise, 1 not."""
    for tolerances, code in ((GENEROUS, 0), (STRICT, 1)):
        package = packed(tmp_path / str(code), tolerances)
        done = CliRunner().invoke(cli, ["verify", str(package.path), "--half"])
        assert done.exit_code == code, done.output
