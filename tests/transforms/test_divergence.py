"""The first node that diverges: wrong packages are refused, and the node at fault is named."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from efficientnet import random_weights
from onnx import TensorProto, helper
from package_builders import KINDS, WEIGHTS, classifier, draft, model_of, preprocess, reference, sample, samples
from PIL import Image
from rich.console import Console
from samegraph_transforms.divergence import against
from samegraph_transforms.draft import DraftStage, GoldenSample, PackageDraft
from samegraph_transforms.errors import NotExact
from samegraph_transforms.executor import OrtExecutor
from samegraph_transforms.image import CenterCrop, Decode, Normalize, Preprocess, Resize, Step, ToCHW, ToFloat, ToRGB
from samegraph_transforms.manifest import Batching, Missing, Output, RawField, Tolerance
from samegraph_transforms.opencv import CvResize
from samegraph_transforms.opencv_functions import CvFilter
from samegraph_transforms.pack import pack
from samegraph_transforms.package import write_package
from samegraph_transforms.torch_resize import TorchResize
from samegraph_transforms.verify import verify

from models.imagenet.efficientnet import build_efficientnet_lite0


def refused(directory: Path, package_draft: PackageDraft, given: Sequence[GoldenSample]) -> NotExact:
    """Pack, which must be refused, and return the refusal."""
    with pytest.raises(NotExact) as caught:
        pack(package_draft, given, directory)
    assert f"node {caught.value.node!r}" in str(caught.value)
    return caught.value


# --- images ---------------------------------------------------------------------------------------------------------------


def photo() -> bytes:
    """Return a lossless picture with edges and noise."""
    generator = np.random.default_rng(5)
    pixels = generator.integers(0, 256, (90, 120, 3)).astype(np.uint8)
    pixels[20:60, 30:70] = (250, 20, 90)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def steps(*, size: int, resize: str = "bicubic", mean: float | Sequence[float] = 127.0, std: float | Sequence[float] = 128.0) -> list[Step]:
    """Return the steps EfficientNet-Lite0 was trained with, or others."""
    crop, turned = CenterCrop(fraction=0.875, rounding="ceil"), Resize((size, size), resize)  # type: ignore[arg-type]
    return [Decode(), ToRGB(), crop, turned, ToFloat(), Normalize(mean=mean, std=std), ToCHW()]


def image_package(trained: Preprocess, packed: Preprocess, network: onnx.ModelProto) -> tuple[PackageDraft, list[GoldenSample]]:
    """Return a draft whose preprocessing is `packed`, with golden samples by `trained`."""
    outputs = [Output(name="logits", dtype="float32", shape=[None])]
    stages = [*packed.stages(), DraftStage("model", network)]
    whole = PackageDraft(
        name="frames",
        version=1,
        fields=packed.fields(),
        outputs=outputs,
        stages=stages,
        decoders=packed.decoders(),
        batching=Batching(max_batch_size=2),
        tolerances={"cpu.same": Tolerance(relative_to_max=1e-5, ulp=4)},
    )
    seen = trained.trace(photo())
    (logits,) = OrtExecutor(network).run({"input": seen["input"][None]})
    golden = GoldenSample(
        "noise.png",
        "/v1/models/frames:predict",
        {"content-type": "image/png"},
        photo(),
        {"logits": logits},
        {"pixels": seen["pixels"][None]},
    )
    return whole, [golden]


def small_network(size: int) -> onnx.ModelProto:
    """Return a network of one layer: input [n, 3, size, size] → logits [n, 4]."""
    weights = np.random.default_rng(2).standard_normal((3 * size * size, 4)).astype(np.float32)
    nodes = [helper.make_node("Flatten", ["input"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["logits"], name="layer")]
    return model_of(nodes, [("input", TensorProto.FLOAT, ["n", 3, size, size])], [("logits", TensorProto.FLOAT, ["n", 4])], w=weights)


def test_imagenet_normalisation_on_efficientnet_lite0_is_refused_by_name(tmp_path: Path) -> None:
    """The network was trained on (x − 127) / 128; with ImageNet's mean and deviation the node that subtracts the mean is at fault."""
    trained = Preprocess(steps(size=224))
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    wrong = Preprocess(steps(size=224, mean=mean, std=std))
    error = refused(tmp_path, *image_package(trained, wrong, build_efficientnet_lite0(random_weights())))
    assert (error.node, error.kind, error.tensor) == ("input_sub", "arithmetic", "logits")
    assert "with (x − 127) / 128 instead of what this node begins the values are training's" in str(error)


@pytest.mark.parametrize("packed", ["bilinear", "box"])
def test_another_resize_is_refused_by_name(tmp_path: Path, packed: str) -> None:
    """Another filter than training's: the resize is at fault, and the function that would be right is named."""
    trained, wrong = Preprocess(steps(size=24)), Preprocess(steps(size=24, resize=packed))
    error = refused(tmp_path, *image_package(trained, wrong, small_network(24)))
    assert (error.node, error.kind, error.tensor) == ("resize_2", "resize", "pixels")
    assert "with PillowResize_bicubic_since13 in its place the values are training's" in str(error)


def test_a_resize_without_antialiasing_is_refused_by_name(tmp_path: Path) -> None:
    """Training looked at four neighbours of every point, as OpenCV does, so no filter of Pillow's is right: the resize is suspected."""
    trained = Preprocess(steps(size=24, resize="bilinear"))
    package_draft, (golden,) = image_package(trained, trained, small_network(24))
    picture = np.asarray(Image.open(io.BytesIO(photo())).crop((21, 6, 99, 84)), dtype=np.float64)
    at = np.clip((np.arange(24) + 0.5) * 78 / 24 - 0.5, 0, 77)
    low, part = np.floor(at).astype(int), at % 1
    rows = picture[low] * (1 - part)[:, None, None] + picture[np.minimum(low + 1, 77)] * part[:, None, None]
    pixels = rows[:, low] * (1 - part)[:, None] + rows[:, np.minimum(low + 1, 77)] * part[:, None]
    error = refused(tmp_path, package_draft, [replace(golden, values={"pixels": pixels.round().astype(np.uint8)[None]})])
    assert (error.node, error.kind, error.tensor) == ("resize_2", "resize", "pixels")


@pytest.mark.parametrize(("size", "function"), [((24, 24), "TorchResize_bicubic"), (24, "TorchResizeShorterSide_bicubic")])
def test_a_tensors_resize_declared_as_pillows_is_refused_by_name(tmp_path: Path, size: Any, function: str) -> None:
    """Training ran a fast image processor, the package says Pillow: the resize is at fault, and PyTorch's function is named."""
    trained_steps, wrong_steps = steps(size=24), steps(size=24)
    trained_steps[3], wrong_steps[3] = TorchResize(size, "bicubic"), Resize(size, "bicubic", semantics="pillow>=13")
    error = refused(tmp_path, *image_package(Preprocess(trained_steps), Preprocess(wrong_steps), small_network(24)))
    assert (error.kind, error.tensor) == ("resize", "pixels")
    assert f"with {function} in its place the values are training's" in str(error)


@pytest.mark.parametrize(("filter_", "function"), [("linear", "OpenCVResize_linear"), ("area", "OpenCVResize_area")])
def test_opencvs_resize_declared_as_pillows_is_refused_by_name(tmp_path: Path, filter_: CvFilter, function: str) -> None:
    """Training resized with cv2, the package says Pillow: the resize is at fault, and OpenCV's function is named."""
    interpolation = {"linear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA}[filter_]
    trained_steps, wrong = steps(size=24), Preprocess(steps(size=24, resize="bilinear"))
    trained_steps[3] = CvResize((24, 24), filter_)
    trained = Preprocess(trained_steps)
    cropped = Preprocess([*steps(size=24)[:3], Resize((78, 78), "nearest")]).item(photo())
    np.testing.assert_array_equal(trained.item(photo()), cv2.resize(cropped, (24, 24), interpolation=interpolation))
    error = refused(tmp_path, *image_package(trained, wrong, small_network(24)))
    assert (error.node, error.kind, error.tensor) == ("resize_2", "resize", "pixels")
    assert f"with {function} in its place the values are training's" in str(error)
    pack(*image_package(trained, trained, small_network(24)), tmp_path / "right")


def test_another_crop_is_not_taken_for_a_resize(tmp_path: Path) -> None:
    """When no other filter gives training's pixels, nothing is claimed as proven."""
    trained = Preprocess(steps(size=24))
    wrong_steps = steps(size=24)
    wrong_steps[2] = CenterCrop(fraction=0.8, rounding="ceil")
    package_draft, golden = image_package(trained, Preprocess(wrong_steps), small_network(24))
    report = verify(write_package(package_draft, golden, tmp_path / "frames" / "1"), golden, [1])
    assert report.divergence is not None
    assert report.divergence.kind == "resize"
    assert not report.divergence.proven
    assert {report.divergence.node, *report.divergence.suspects} == {"center_crop_1", "resize_2"}


# --- rows -----------------------------------------------------------------------------------------------------------------


def encoded(kinds: Sequence[str]) -> onnx.ModelProto:
    """Return the preprocessing with its categories in the order given."""
    model = preprocess()
    encoder = next(node for node in model.graph.node if node.op_type == "LabelEncoder")
    encoder.name = "kind_code"
    keys = next(attribute for attribute in encoder.attribute if attribute.name == "keys_strings")
    keys.strings[:] = [kind.encode() for kind in kinds]
    return model


def with_stage(name: str, model: onnx.ModelProto) -> PackageDraft:
    """Return the small draft with one stage's graph replaced."""
    return draft(stages=[replace(s, model=model) if s.name == name else s for s in draft().stages])


def captured() -> list[GoldenSample]:
    """Return the small package's samples with their intermediate."""
    rows: list[dict[str, Any]] = [{"size": 3.5, "kind": "moss"}, {"size": None, "kind": "oak"}, {"size": -1.25, "kind": "lichen"}]
    return [replace(s, values={"features": reference([row])["features"]}) for row, s in ((r, sample(f"row {r}", [r])) for r in rows)]


def test_shuffled_categories_are_refused_by_name(tmp_path: Path) -> None:
    """The encoder is named, with the category that shows it and nothing of the other column."""
    error = refused(tmp_path, with_stage("preprocess.batch", encoded(KINDS[1:] + KINDS[:1])), captured())
    assert (error.node, error.kind, error.tensor) == ("kind_code", "vocabulary", "features")
    report = verify(
        write_package(with_stage("preprocess.batch", encoded(KINDS[1:] + KINDS[:1])), captured(), tmp_path / "plants" / "1"),
        captured(),
        [1],
    )
    assert report.divergence is not None
    assert report.divergence.raw == {"kind": "moss"}
    assert (report.divergence.expected, report.divergence.got) == (0.0, 2.0)
    assert report.divergence.proven


def test_another_fill_for_missing_values_is_refused_by_name(tmp_path: Path) -> None:
    """The value that shows it is null, so the rule for missing values is at fault: the node that fills the gap."""
    model = preprocess()
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.array(1.0), "zero"))
    next(node for node in model.graph.node if node.op_type == "Where").name = "fill"
    error = refused(tmp_path, with_stage("preprocess.batch", model), captured())
    assert (error.node, error.kind) == ("fill", "missing rule")


def tree_draft(*, narrowed: bool) -> PackageDraft:
    """Return one split at a double that float32 does not have, with or without a cast in front of it."""
    nodes = [
        helper.make_node(
            "TreeEnsemble",
            ["x64" if narrowed else "x"],
            ["score"],
            domain="ai.onnx.ml",
            name="trees",
            n_targets=1,
            aggregate_function=1,
            post_transform=0,
            tree_roots=[0],
            nodes_modes=helper.make_tensor("m", TensorProto.UINT8, (1,), [0]),
            nodes_featureids=[0],
            nodes_splits=helper.make_tensor("s", TensorProto.DOUBLE, (1,), [0.1]),
            nodes_truenodeids=[0],
            nodes_trueleafs=[1],
            nodes_falsenodeids=[1],
            nodes_falseleafs=[1],
            leaf_targetids=[0, 0],
            leaf_weights=helper.make_tensor("w", TensorProto.DOUBLE, (2,), [1.0, 2.0]),
        )
    ]
    if narrowed:
        nodes = [
            helper.make_node("Cast", ["x"], ["x32"], name="narrow", to=TensorProto.FLOAT),
            helper.make_node("Cast", ["x32"], ["x64"], name="widen", to=TensorProto.DOUBLE),
            *nodes,
        ]
    model = model_of(nodes, [("x", TensorProto.DOUBLE, ["n", 1])], [("score", TensorProto.DOUBLE, ["n", 1])])
    return PackageDraft(
        name="plants",
        version=1,
        fields=[RawField(name="x", kind="number", missing=Missing(rule="nan"))],
        outputs=[Output(name="score", dtype="float64", shape=[1])],
        stages=[DraftStage("model", model)],
        batching=Batching(max_batch_size=2),
    )


def scored(value: float, score: float) -> GoldenSample:
    """Return one row and what the tree says."""
    body = json.dumps({"instances": [{"x": value}]}).encode()
    return GoldenSample(
        f"x={value!r}", "/v1/models/plants:predict", {"content-type": "application/json"}, body, {"score": np.array([[score]])}
    )


def test_a_float32_cast_before_trees_is_refused_by_name(tmp_path: Path) -> None:
    """0.1 goes left of a split at 0.1; rounded to float32 it is larger, and the cast is at fault, not the trees."""
    rows = [scored(0.05, 1.0), scored(0.1, 1.0), scored(0.2, 2.0)]
    pack(tree_draft(narrowed=False), rows, tmp_path / "right")
    error = refused(tmp_path / "wrong", tree_draft(narrowed=True), rows)
    assert (error.node, error.kind, error.sample) == ("narrow", "dtype", "x=0.1")
    assert "without it the values are training's" in str(error)


# --- the runtime, the batch, another version ----------------------------------------------------------------------------------


def test_a_runtime_that_does_not_do_what_the_operator_means_is_named(tmp_path: Path) -> None:
    """ONNX Runtime writes 3.0 as '3', the reference of the standard as '3.0': the cast is named, on the reference's word."""
    nodes = [
        helper.make_node("Add", ["x", "one"], ["more"], name="add"),
        helper.make_node("Cast", ["more"], ["words"], name="write", to=TensorProto.STRING),
        helper.make_node("Identity", ["words"], ["score"], name="last"),
    ]
    model = model_of(nodes, [("x", TensorProto.DOUBLE, ["n", 1])], [("score", TensorProto.STRING, ["n", 1])], one=np.array(1.0))
    text = replace(
        tree_draft(narrowed=False), stages=[DraftStage("model", model)], outputs=[Output(name="score", dtype="string", shape=[1])]
    )
    given = [replace(scored(2.0, 0.0), outputs={"score": np.array([["3.0"]], dtype=object)})]
    report = verify(write_package(text, given, tmp_path / "plants" / "1"), given, [1])
    found = report.divergence
    assert found is not None
    assert (found.node, found.kind, found.reference, found.proven) == ("write", "dtype", "onnx.reference", True)
    assert (found.expected, found.got, found.raw) == ("3.0", "3", {"x": 2.0})


def test_wrong_weights_are_named_after_the_last_value_that_is_right(tmp_path: Path) -> None:
    """Features are right, so the first node of the model is suspected, and what else it may be is said."""
    given = [
        replace(s, values={"features": reference([r])["features"]})
        for r, s in [({"size": 2.0, "kind": "oak"}, sample("one", [{"size": 2.0, "kind": "oak"}]))]
    ]
    report = verify(write_package(with_stage("model", classifier(-WEIGHTS)), given, tmp_path / "plants" / "1"), given, [1])
    found = report.divergence
    assert found is not None
    assert (found.operator, found.kind, found.proven, found.suspects) == ("Gemm", "arithmetic", False, ("probability",))
    document: dict[str, Any] = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert document["divergence"]["node"] == "scores"
    console = Console(file=io.StringIO(), width=200)
    report.render(console)
    assert isinstance(console.file, io.StringIO)
    assert "first suspect: node scores  Gemm  in stage model  [arithmetic]" in console.file.getvalue()


def test_two_versions_are_told_apart_by_node(tmp_path: Path) -> None:
    """The first node, in the order the data flows, that makes something else than its namesake in the other version."""
    first = pack(draft(), samples(), tmp_path)
    changed = with_stage("preprocess.batch", encoded(KINDS[::-1]))
    second = write_package(replace(changed, version=2), samples(), tmp_path / "plants" / "2")
    found = against(second, first, samples(), Tolerance())
    assert found is not None
    assert (found.node, found.kind, found.reference) == ("kind_code", "vocabulary", "plants/1")
    assert against(first, first, samples(), Tolerance()) is None
