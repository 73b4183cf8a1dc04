"""Five and ten crops: what the steps cut, how a model takes them, and that a package of them is proven and explained as any other."""

from __future__ import annotations

import io
import itertools
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import crops_package as ten
import numpy as np
import onnx
import pytest
from image_oracle import content
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from package_builders import model_of
from PIL import Image
from samegraph_transforms.baseline_images import pixel_facts
from samegraph_transforms.draft import DraftStage
from samegraph_transforms.errors import AuthoringError, InputError, NotExact
from samegraph_transforms.exactness import ulp_distance
from samegraph_transforms.executor import OrtExecutor
from samegraph_transforms.folding import fold
from samegraph_transforms.functions import library
from samegraph_transforms.gpu import GpuOptions
from samegraph_transforms.half import half_nodes, to_half
from samegraph_transforms.image import CenterCrop, Decode, FiveCrop, Preprocess, Resize, TenCrop, ToBGR, ToCHW, ToFloat, ToRGB
from samegraph_transforms.kernels import Pixels, host_kernel
from samegraph_transforms.manifest import Output
from samegraph_transforms.opsets import IR_VERSION, opset_imports
from samegraph_transforms.pack import pack
from samegraph_transforms.package import Package, write_package
from samegraph_transforms.runtime import PackageRuntime
from samegraph_transforms.verify import verify

REFERENCES = Path(__file__).parent / "references" / "images" / "tensors.npz"


def five(image: Image.Image, height: int, width: int) -> list[np.ndarray]:
    """Return torchvision's five_crop, written out."""
    right, bottom = image.width - width, image.height - height
    places = [(0, 0), (right, 0), (0, bottom), (right, bottom), (round(right / 2.0), round(bottom / 2.0))]
    return [np.asarray(image.crop((left, top, left + width, top + height))) for left, top in places]


@pytest.mark.parametrize("step", [FiveCrop((7, 12)), TenCrop(8), TenCrop((9, 4), vertical_flip=True)], ids=repr)
def test_crops_are_torchvisions(step: Any) -> None:
    """Step, kernel, ONNX Runtime and onnx.reference, on every pair of odd and even margins, the image of the crops' size among them."""
    node = step.node("X", "Y")
    values = [helper.make_tensor_value_info(n, TensorProto.UINT8, list(dims)) for n, dims in (("X", "HWC"), ("Y", "KhwC"))]
    graph = helper.make_graph([node], "crops", values[:1], values[1:])
    model = helper.make_model(graph, functions=library([node.op_type]), opset_imports=opset_imports(), ir_version=IR_VERSION)
    reference: Any = ReferenceEvaluator(model)
    runtime, kernel = OrtExecutor(model), host_kernel(node)
    assert kernel is not None
    height, width = step.size if isinstance(step.size, tuple) else (step.size, step.size)
    for more_height, more_width in itertools.product(range(6), repeat=2):
        array = content(np.random.default_rng(more_height), height + more_height, width + more_width)
        image = Image.fromarray(array)
        crops = five(image, height, width)
        if isinstance(step, TenCrop):
            way = Image.Transpose.FLIP_TOP_BOTTOM if step.vertical_flip else Image.Transpose.FLIP_LEFT_RIGHT
            crops += five(image.transpose(way), height, width)
        expected = np.stack(crops)
        np.testing.assert_array_equal(np.stack([np.asarray(crop) for crop in step.apply(image)]), expected)
        np.testing.assert_array_equal(kernel(Pixels(array=array)).array(), expected)
        np.testing.assert_array_equal(runtime.run({"X": array})[0], expected)
        np.testing.assert_array_equal(reference.run(None, {"X": array})[0], expected)


def test_crops_go_through_the_steps_on_arrays() -> None:
    """Layout, channel order and arithmetic happen to each crop, called and in the graph."""
    pipeline = Preprocess([Decode(), ToRGB(), Resize((20, 30), "box"), FiveCrop(16), ToBGR(), ToFloat(), ToCHW()])
    assert (pipeline.output_shape, pipeline.crops) == ([5, 3, 16, 16], 5)
    picture = Image.fromarray(content(np.random.default_rng(1), 41, 35))
    expected = np.stack(five(picture.resize((30, 20), Image.Resampling.BOX), 16, 16))[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32)
    np.testing.assert_array_equal(pipeline(picture), expected)
    batch = OrtExecutor(pipeline.stages()[1].model)
    np.testing.assert_array_equal(batch.run({"pixels": np.stack([pipeline.item(picture)] * 3)})[0], np.stack([expected] * 3))


# ---------------------------------------------------------------- fold


def identity(*dims: Any, element: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """Return a model that answers its input."""
    return model_of([helper.make_node("Identity", ["x"], ["y"])], [("x", element, list(dims))], [("y", element, list(dims))])


@pytest.mark.parametrize("crops", [5, 10])
def test_the_mean_has_torchs_bits(crops: int) -> None:
    """Added crop by crop as sum(unbind) does; softmax and torch.mean within what is promised of them."""
    with np.load(REFERENCES) as kept:
        answers, mean, torch_mean, softmax = (kept[f"answers/{crops}{end}"] for end in ("", "/mean", "/torch.mean", "/mean_of_softmax"))
    for rows in (1, 2, len(answers)):
        (got,) = OrtExecutor(fold(identity("n", 11), crops, combine="mean")).run({"x": answers[:rows]})
        np.testing.assert_array_equal(got, mean[:rows])
    assert np.abs(mean - torch_mean).max() <= 3.5e-7 * np.abs(torch_mean).max()
    (got,) = OrtExecutor(fold(identity("n", 11), crops, combine="mean_of_softmax")).run({"x": answers})
    assert ulp_distance(got, softmax).max() <= 8
    np.testing.assert_allclose(got.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("dims", [("n",), ("n", 3), ("n", "length"), ("n", "length", 4)], ids=str)
def test_shapes_may_be_open(dims: tuple[Any, ...]) -> None:
    """Axes that differ from batch to batch go through, in either evaluator; double stays double."""
    model = fold(identity(*dims, element=TensorProto.DOUBLE), 5, combine="mean")
    onnx.checker.check_model(model, full_check=True)
    x = np.random.default_rng(2).normal(size=(3, 5, 6, 4)[: len(dims) + 1])
    x = x[:, :, :3] if dims == ("n", 3) else x
    expected = (((x[:, 0] + x[:, 1]) + x[:, 2]) + x[:, 3] + x[:, 4]) / 5
    np.testing.assert_array_equal(OrtExecutor(model).run({"x": x})[0], expected)
    reference: Any = ReferenceEvaluator(model)
    np.testing.assert_array_equal(reference.run(None, {"x": x})[0], expected)


def test_names_inside_subgraphs_are_followed() -> None:
    """A branch that reads the input and is the output still does."""
    value = helper.make_tensor_value_info("half", TensorProto.FLOAT, None)
    branches = [
        helper.make_graph([helper.make_node("Mul", ["x", factor], ["half"])], factor, [], [value]) for factor in ("one_half", "quarter")
    ]
    model = model_of(
        [helper.make_node("If", ["yes"], ["y"], then_branch=branches[0], else_branch=branches[1])],
        [("x", TensorProto.FLOAT, ["n", 2])],
        [("y", TensorProto.FLOAT, ["n", 2])],
        yes=np.array(True),
        one_half=np.array(0.5, dtype=np.float32),
        quarter=np.array(0.25, dtype=np.float32),
    )
    x = np.arange(20, dtype=np.float32).reshape(2, 5, 2)
    np.testing.assert_array_equal(OrtExecutor(fold(model, 5, combine="mean")).run({"x": x})[0], x.mean(axis=1) / 2)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: fold(identity("n", 2), None, combine="mean"), r"makes no crops; put FiveCrop"),
        (lambda: fold(identity("n", 2), 5, combine="max"), "mean, mean_of_softmax"),  # type: ignore[arg-type]
        (lambda: fold(identity(1, 2), 5, combine="mean"), r"holds exactly 1 image"),
        (lambda: fold(identity("n", element=TensorProto.INT64), 5, combine="mean"), "no float and has no mean"),
        (lambda: fold(identity("n"), 5, combine="mean_of_softmax"), "no softmax"),
        (lambda: fold(identity(), 5, combine="mean"), "states no shape"),
    ],
)
def test_models_that_cannot_be_folded_are_refused(make: Any, says: str) -> None:
    with pytest.raises(AuthoringError, match=says):
        make()


def test_a_folded_model_computes_in_half_precision_too() -> None:
    """The conversion finds the network's products behind the fold, and the answers stay near."""
    model = fold(ten.network(), 10, combine="mean")
    half = to_half(model)
    assert half_nodes(half) >= 2
    x = np.random.default_rng(1).normal(size=(2, 10, 3, *ten.SIZE)).astype(np.float32)
    np.testing.assert_allclose(OrtExecutor(half).run({"input": x})[0], OrtExecutor(model).run({"input": x})[0], atol=0.02)


# ---------------------------------------------------------------- a package


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """A package of ten crops, proven with intermediates, with a baseline."""
    return pack(ten.draft(), [ten.sample(file, f"noise {i}") for i, file in enumerate(ten.files(7))], tmp_path_factory.mktemp("models"))


def test_pack_proves_crops_and_answers(package: Package) -> None:
    """Batches of 1, 2 and the largest, stages apart, merged, and without kernels: pixels and labels equal, logits as promised."""
    measured = {m.tensor: m for m in package.manifest.measured}
    assert measured["pixels"].different == measured["label"].different == 0
    assert measured["pixels"].elements >= 7 * 10 * 17 * 21 * 3
    assert measured["logits"].max_ulp <= 4 or measured["logits"].max_abs <= 1e-6


@pytest.mark.parametrize("how", [{}, {"kernels": "off"}, {"merge": False}, {"gpu": GpuOptions(max_batch_size=4)}], ids=str)
def test_every_way_of_running_answers_alike(package: Package, how: dict[str, Any]) -> None:
    """Kernels or bodies, merged or not, in buffers of few sizes as a GPU has them, warmed up: batches of 1, 2, 3 and 4."""
    files = ten.files(4, 12)
    with closing(PackageRuntime.load(package, **how)) as runtime:
        items = [runtime.prepare((file,)) for file in files]
        runtime.warm_up(items[:1])
        for count in (1, 2, 3, 4):
            answers = runtime.predict([(file,) for file in files[:count]])
            for place, file in enumerate(files[:count]):
                logits, label = ten.answer(file)
                np.testing.assert_allclose(answers["logits"][place], logits, rtol=0, atol=2e-7 * float(np.abs(logits).max()))
                assert answers["label"][place] == label


def test_statistics_look_at_the_centre(package: Package) -> None:
    """The baseline has the pixel statistics of the centre crop, the size of a crop, and verify finds nothing."""
    baseline = package.baseline()
    assert baseline is not None
    (field,) = baseline.fields
    assert (field.pixels, field.model_size) == ("pixels", ten.SIZE)
    crops = ten.crops(ten.files(1)[0])
    assert pixel_facts(crops) == pixel_facts(crops[4]) != pixel_facts(crops[0])
    assert verify(package).ok


@pytest.mark.parametrize("kernels", ["auto", "off"])
def test_an_image_smaller_than_the_crops_is_the_callers_error(kernels: Any, tmp_path: Path) -> None:
    """Also where another step is in between in the same graph; the message has the field and both sizes."""
    pipeline = Preprocess([Decode(), ToRGB(), CenterCrop(fraction=0.5), FiveCrop((20, 16)), ToFloat(), ToCHW()])
    output = Output(name="logits", dtype="float32", shape=[5, 3, 20, 16])
    stages = [*pipeline.stages("photo"), DraftStage("model", identity("n", 5, 3, 20, 16), inputs={"x": "input"}, outputs={"y": "logits"})]
    made = replace(ten.draft(stages), fields=pipeline.fields("photo"), decoders=pipeline.decoders(), outputs=[output], baseline=None)
    package = write_package(made, [], tmp_path / "crops" / "1")
    large, small = (_png(40, 40), _png(40, 39))
    with closing(PackageRuntime.load(package, kernels=kernels)) as runtime:
        assert runtime.predict([(large,)])["logits"].shape == (1, 5, 3, 20, 16)
        with pytest.raises(
            InputError, match=r"field 'photo': the image is 19 × 19 pixels where crops of 16 × 20 are cut .* send one"
        ) as refused:
            runtime.predict([(small,)])
    assert (refused.value.code, refused.value.field) == ("wrong_shape", "photo")


def _png(height: int, width: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_wrong_crops_are_refused_and_the_node_is_named(tmp_path: Path) -> None:
    """Flipped the other way: pack names the crop node, the crop that differs is the picture."""
    pipeline = Preprocess([*ten.preprocess().steps[:3], TenCrop(ten.SIZE, vertical_flip=True), *ten.preprocess().steps[4:]])
    wrong = ten.without_baseline(ten.draft([*pipeline.stages(), *ten.draft().stages[2:]]))
    with pytest.raises(NotExact) as refused:
        pack(wrong, [ten.sample(file, f"noise {i}") for i, file in enumerate(ten.files(2))], tmp_path)
    assert refused.value.tensor == "pixels"
    assert refused.value.node == "ten_crop_2"
    package = write_package(wrong, [ten.sample(file, f"noise {i}") for i, file in enumerate(ten.files(2))], tmp_path / "crops" / "1")
    report = verify(package)
    assert not report.ok
    assert report.divergence is not None
    assert report.divergence.picture is not None
    assert report.divergence.picture.tensor == "pixels[5]"
    assert report.divergence.picture.expected.shape == (*ten.SIZE, 3)


def test_the_order_of_answers_matters(tmp_path: Path) -> None:
    """The mean of softmax where training took the mean of logits is refused."""
    made = ten.draft()
    stages = [*made.stages[:2], DraftStage("model", fold(ten.network(), 10, combine="mean_of_softmax")), made.stages[3]]
    with pytest.raises(NotExact, match="logits"):
        pack(ten.without_baseline(ten.draft(stages)), [ten.sample(file, "noise") for file in ten.files(1)], tmp_path)
