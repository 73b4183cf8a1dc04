"""PyTorch's antialiased resize of uint8 tensors, without PyTorch: NumPy, ONNX Runtime and onnx.reference give its bits.

The references were written by scripts/references/tensors.py with PyTorch, torchvision and transformers themselves: digests of what
`interpolate` made of noise, and the tensors of whole pipelines.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_oracle import call_model, content, stated_array
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from PIL import Image
from samegraph_transforms.draft import DraftStage, GoldenSample, PackageDraft
from samegraph_transforms.errors import AuthoringError, InputError, UnsupportedStep
from samegraph_transforms.executor import OrtExecutor
from samegraph_transforms.functions import library
from samegraph_transforms.image import CenterCrop, Decode, Preprocess, ToCHW, ToFloat, ToRGB
from samegraph_transforms.image_imports import from_huggingface, from_torchvision
from samegraph_transforms.itemplan import ItemPlan, compile_item_plan
from samegraph_transforms.kernels import host_kernel, resized_size
from samegraph_transforms.manifest import Manifest, Output, Stage
from samegraph_transforms.opsets import DOMAIN, IR_VERSION, opset_imports
from samegraph_transforms.pack import pack
from samegraph_transforms.torch_functions import ARITHMETICS, TORCH_FILTERS, Arithmetic, TorchFilter, torch_resize_function
from samegraph_transforms.torch_resize import TorchResize, _fused, resize_uint8

ROOT = Path(__file__).parents[2]
REFERENCES = Path(__file__).parent / "references"
RESIZES: list[dict[str, Any]] = json.loads((REFERENCES / "tensors" / "resizes.json").read_text())
CASES: dict[str, dict[str, Any]] = json.loads((REFERENCES / "tensors" / "cases.json").read_text())["cases"]
FILES = {p.name: p.read_bytes() for p in (*sorted((REFERENCES / "images").glob("*.png")), ROOT / "docs" / "photos" / "coffee.jpg")}
#: Sizes per filter in ONNX Runtime; `IMAGE_SIZES` sets it (2,000 in the nightly setting).
SIZES = int(os.environ.get("IMAGE_SIZES", "200"))


RESIZING = pytest.mark.parametrize(("filter_", "arithmetic"), list(itertools.product(TORCH_FILTERS, ARITHMETICS)))


def _function(filter_: TorchFilter, arithmetic: Arithmetic) -> str:
    return torch_resize_function(filter_, arithmetic).replace("Resize_", "ResizeTo_")


@functools.cache
def _runtime(filter_: TorchFilter, arithmetic: Arithmetic) -> OrtExecutor:
    return OrtExecutor(call_model(_function(filter_, arithmetic), size_input=True))


@functools.cache
def _reference(filter_: TorchFilter, arithmetic: Arithmetic) -> ReferenceEvaluator:
    return ReferenceEvaluator(call_model(_function(filter_, arithmetic), size_input=True))


def _noise(case: dict[str, Any]) -> np.ndarray:
    """Return the image that scripts/references/tensors.py makes of a seed."""
    array = np.random.default_rng(case["seed"]).integers(0, 256, case["shape"], dtype=np.uint8)
    return np.asarray((array // 128) * np.uint8(255) if case["seed"] % 3 == 0 else array)


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def test_numpy_and_onnx_runtime_give_pytorchs_bits() -> None:
    """500 resizes that PyTorch made: both filters, 1 to 4 channels, both memory layouts, axes kept, up to 400 pixels a side."""
    assert len(RESIZES) > 500
    for case in RESIZES:
        array, size = _noise(case), (case["size"][0], case["size"][1])
        assert _digest(resize_uint8(array, size, case["mode"], case["arithmetic"])) == case["sha256"], case
        (got,) = _runtime(case["mode"], case["arithmetic"]).run({"X": array, "size": np.array(size)})
        assert _digest(got) == case["sha256"], case


def test_the_reference_evaluator_gives_pytorchs_bits() -> None:
    """Every small one of them in an evaluator that shares no code with ONNX Runtime."""
    small = [case for case in RESIZES if np.prod(case["shape"]) < 8_000 and np.prod(case["size"]) < 2_000][::2]
    assert len(small) > 100
    for case in small:
        (got,) = _reference(case["mode"], case["arithmetic"]).run(None, {"X": _noise(case), "size": np.array(case["size"])})
        assert _digest(np.asarray(got)) == case["sha256"], case


@RESIZING
def test_onnx_runtime_gives_numpys_bits_on_random_sizes(filter_: TorchFilter, arithmetic: Arithmetic) -> None:
    rng = np.random.default_rng(31)
    for case in range(SIZES if arithmetic == "integer" else SIZES // 2):
        height, width, *wanted = (int(v) for v in np.exp(rng.uniform(0, np.log(400), 4)).astype(int))
        size = (height if case % 17 == 3 else wanted[0], width if case % 17 == 5 else wanted[1])
        array = content(rng, height, width, 1 + case % 4)
        (got,) = _runtime(filter_, arithmetic).run({"X": array, "size": np.array(size)})
        np.testing.assert_array_equal(got, resize_uint8(array, size, filter_, arithmetic), err_msg=f"{array.shape} to {size}")


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 130)] * 4),
    choice=st.sampled_from(list(itertools.product(TORCH_FILTERS, ARITHMETICS))),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_small_size_gives_the_same_bits(sizes: tuple[int, int, int, int], choice: tuple[TorchFilter, Arithmetic], seed: int) -> None:
    """Hypothesis looks for a size that breaks the equality."""
    height, width, *size = sizes
    array = content(np.random.default_rng(seed), height, width, 3)
    (got,) = _runtime(*choice).run({"X": array, "size": np.array(size)})
    np.testing.assert_array_equal(got, resize_uint8(array, (size[0], size[1]), *choice))


@pytest.mark.parametrize("filter_", TORCH_FILTERS)
def test_extreme_shrinking_stays_exact(filter_: TorchFilter) -> None:
    """Sums over tens of thousands of taps, with weights of up to 22 fractional bits, neither overflow nor round."""
    rng = np.random.default_rng(3)
    for length in (1_500, 20_000, 60_000):
        for line in (np.full(length, 255, np.uint8), rng.integers(0, 2, length, dtype=np.uint8) * np.uint8(255)):
            for out in (1, 2, 7):
                wide, tall = line.reshape(1, -1, 1), line.reshape(-1, 1, 1)
                for array, size in ((wide, (1, out)), (tall, (out, 1))):
                    (got,) = _runtime(filter_, "integer").run({"X": array, "size": np.array(size)})
                    np.testing.assert_array_equal(got, resize_uint8(array, size, filter_))
        assert (resize_uint8(np.full((length, 1), 255, np.uint8), (7, 1), filter_) == 255).all()


def test_the_weights_are_not_pillows() -> None:
    """Pillow keeps 22 bits of each weight where PyTorch keeps 15 or so: a resize of the one is no resize of the other."""
    array = np.random.default_rng(4).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    for filter_ in TORCH_FILTERS:
        pillow = stated_array(array, 41, 53, filter_, "pillow<13")
        torch = resize_uint8(array, (41, 53), filter_)
        assert 0 < np.count_nonzero(pillow != torch) < 0.05 * torch.size
        assert int(np.abs(pillow.astype(int) - torch).max()) == 1


def test_the_two_arithmetics_differ() -> None:
    """What version 1 of torchvision makes of a tensor is not what version 2 makes of it."""
    array = np.random.default_rng(4).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    for filter_ in TORCH_FILTERS:
        assert (resize_uint8(array, (41, 53), filter_) != resize_uint8(array, (41, 53), filter_, "float32")).any()


def test_a_fused_sum_is_rounded_once() -> None:
    """On sums of which the double lies on or next to the middle of two floats, which rounding twice gets wrong, and on random ones."""
    rng = np.random.default_rng(6)
    a, b = (rng.integers(-(2**24), 2**24, 20_000).astype(np.float32) for _ in range(2))
    c = rng.integers(-(2**24), 2**24, 20_000).astype(np.float32) * np.float32(2.0) ** rng.integers(-40, 60, 20_000).astype(np.float32)
    c[::2] = (a[::2].astype(np.float64) * b[::2]).astype(np.float32) * np.float32(2.0**29)  # far above: the double drops what it adds
    tie = np.float32(1) + np.float32(2.0**-23)  # tie × 2^-24 × (1 + a little) lies beyond half a step above 1
    a[0], b[0], c[0] = np.float32(2.0**-24) * tie, np.float32(1), np.float32(1)
    a[1], b[1], c[1] = np.float32(2.0**-24), np.float32(1), np.float32(1)
    a[2], b[2], c[2] = np.float32(2.0**-35) * tie, np.float32(2.0**-40), np.float32(1)
    exact = [Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)) for x, y, z in zip(a, b, c, strict=True)]
    wanted = np.array([_nearest(value) for value in exact], dtype=np.float32)
    node = helper.make_node("FusedMultiplyAdd", ["a", "b", "c"], ["y"], domain=DOMAIN)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "abcy"]
    graph = helper.make_graph([node], "fused", values[:3], values[3:])
    model = helper.make_model(graph, functions=library([node.op_type]), opset_imports=opset_imports(), ir_version=IR_VERSION)
    (got,) = OrtExecutor(model).run({"a": a, "b": b, "c": c})
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(_fused(a, b, c), wanted)


def _nearest(value: Fraction) -> float:
    """Return the float32 nearest to a fraction, half to even."""
    if value == 0:
        return 0.0
    sign, size = (-1, -value) if value < 0 else (1, value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= Fraction(2) ** exponent > size
    step = Fraction(2) ** (exponent - 23)
    return float(sign * round(size / step) * step)  # Python rounds a fraction half to even


def _rebuilt(recorded: dict[str, Any]) -> Any:
    made = type(recorded["class"], (), {"__module__": recorded["module"]})()
    for name, value in recorded["attributes"].items():
        nested = isinstance(value, list) and value and isinstance(value[0], dict)
        setattr(made, name, [_rebuilt(v) for v in value] if nested else value)
    return made


def _imported(case: dict[str, Any]) -> Preprocess:
    if case["importer"] == "huggingface":
        return from_huggingface(json.dumps(case["config"]))
    return from_torchvision(_rebuilt(case["transforms"]), given=case.get("given", "image"))


def _assert_same(actual: np.ndarray, reference: np.ndarray) -> None:
    assert actual.dtype == np.float32
    if reference.dtype == np.uint8:
        assert hashlib.sha256(np.ascontiguousarray(actual).tobytes()).digest() == reference.tobytes()
    else:
        np.testing.assert_array_equal(actual, reference)


@pytest.mark.parametrize("name", CASES)
def test_an_imported_pipeline_on_tensors_gives_the_library_s_tensors(name: str) -> None:
    preprocess = _imported(CASES[name])
    with np.load(REFERENCES / "tensors" / "tensors.npz") as tensors:
        for file, file_content in FILES.items():
            _assert_same(preprocess(file_content), tensors[f"{name}/{file}"])


def test_the_margin_of_a_fast_processors_crop_is_cut_toward_zero() -> None:
    """int(margin / 2), of what is left over and of what is missing; slow processors take margin // 2."""
    config = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 21}, "crop_size": {"height": 30, "width": 30}}
    assert "rounding='toward_zero'" in repr(from_huggingface(config, processor="fast"))
    assert "rounding='floor'" in repr(from_huggingface(config, processor="slow"))


def _draft(preprocess: Preprocess) -> PackageDraft:
    shape = preprocess.output_shape
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", *shape]) for n in ("input", "tensor")]
    graph = helper.make_graph([helper.make_node("Identity", ["input"], ["tensor"])], "model", values[:1], values[1:])
    return PackageDraft(
        name="imported",
        version=1,
        fields=preprocess.fields(),
        decoders=preprocess.decoders(),
        outputs=[Output(name="tensor", dtype="float32", shape=list(shape))],
        stages=[*preprocess.stages(), DraftStage("model", helper.make_model(graph, opset_imports=opset_imports(), ir_version=IR_VERSION))],
    )


@pytest.mark.parametrize("name", ["hf-fast-clip-small", "hf-fast-detr-fixed", "v2-tensor", "v1-tensor"])
def test_an_imported_pipeline_becomes_a_package_proven_against_the_library(name: str, tmp_path: Path) -> None:
    preprocess = _imported(CASES[name])
    with np.load(REFERENCES / "tensors" / "tensors.npz") as tensors:
        samples = [
            GoldenSample(
                name=file,
                path="/v1/models/imported:predict",
                headers={"content-type": "image/jpeg" if file.endswith("jpg") else "image/png"},
                body=body,
                outputs={"tensor": tensors[f"{name}/{file}"][np.newaxis]},
            )
            for file, body in FILES.items()
        ]
    measured = pack(_draft(preprocess), samples, tmp_path).manifest.measured
    assert {m.tensor: m.different for m in measured} == {"tensor": 0}


def test_a_shorter_side_has_torchvisions_size() -> None:
    model = OrtExecutor(call_model("TorchResizeShorterSide_bilinear", size=29))
    for height, width in ((60, 47), (29, 200), (33, 29), (1, 3)):
        short, long = min(height, width), max(height, width)
        (got,) = model.run({"X": np.zeros((height, width, 1), np.uint8)})
        assert sorted(got.shape[:2]) == sorted((29, int(29 * long / short)))


def _plan(preprocess: Preprocess, cache: Path) -> ItemPlan:
    item = preprocess.stages()[0]
    names = [i.name for i in item.model.graph.input], [o.name for o in item.model.graph.output]
    stage = Stage(name="preprocess.item", file="item.onnx", inputs={n: n for n in names[0]}, outputs={n: n for n in names[1]})
    model = Stage(name="model", file="model.onnx", inputs={}, outputs={"answer": "answer"})
    manifest = Manifest(
        name="demo",
        version=1,
        fields=preprocess.fields(),
        outputs=[Output(name="answer", dtype="float32")],
        stages=[stage, model],
        decoders=preprocess.decoders(),
    )
    return compile_item_plan(item.model, manifest, make_executor=OrtExecutor, cache_dir=cache)


def test_no_kernel_stands_in_and_a_long_narrow_image_is_refused(tmp_path: Path) -> None:
    """There is no native code of PyTorch to prove equal; the guard of a shorter side is the one of Pillow's resizes."""
    node = TorchResize(256, "bicubic").node("X", "Y")
    assert host_kernel(node) is None
    size = resized_size(node)
    assert size is not None
    assert size((100, 65_000)) == (256, 166_400)
    preprocess = Preprocess([Decode(), ToRGB(), TorchResize(1_500, "bilinear"), CenterCrop(28), ToFloat(), ToCHW()])
    plan = _plan(preprocess, tmp_path)
    assert [(step.engine, step.nodes) for step in plan.steps][-2:] == [("onnx", ("torch_resize_1",)), ("kernel", ("center_crop_2",))]
    file = io.BytesIO()
    Image.new("RGB", (60_000, 1)).save(file, "PNG")
    for refuses in (preprocess.item, lambda content: plan({"image": content})):
        with pytest.raises(InputError, match="would be resized to") as refused:
            refuses(file.getvalue())
        assert refused.value.code == "too_many_pixels"
    for content_ in FILES.values():
        np.testing.assert_array_equal(plan({"image": content_})["pixels"], preprocess.item(content_))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: TorchResize(0, "bilinear"), "a side must be from 1", id="size"),
        pytest.param(lambda: TorchResize((8, 1), "bilinear", "float32"), "at least 2 pixels in float32", id="width"),
        pytest.param(lambda: TorchResize(8, "bilinear", "float64"), "arithmetic must be", id="arithmetic"),  # type: ignore[arg-type]
        pytest.param(lambda: TorchResize(8, "lanczos"), "filter must be one of bilinear, bicubic", id="filter"),  # type: ignore[arg-type]
        pytest.param(lambda: Preprocess([Decode(), TorchResize((8, 8), "bilinear")]), "comes after ToRGB", id="channels"),
        pytest.param(lambda: Preprocess([Decode(), ToRGB(), TorchResize(8, "bilinear")]), "depends on the image", id="shape"),
        pytest.param(lambda: torch_resize_function("box"), "no bit-exact 'box' resize of tensors", id="function"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_is_refused_when_it_is_written(make: Any, message: str) -> None:
    with pytest.raises(AuthoringError, match=message):
        make()


V1, V2 = "torchvision.transforms.transforms", "torchvision.transforms.v2._geometry"


def _transform(module: str, name: str, **attributes: Any) -> Any:
    return _rebuilt({"module": module, "class": name, "attributes": attributes})


TO_FLOAT = _transform(V2, "ToDtype", dtype="torch.float32", scale=True)
RESIZE = {"size": [8, 8], "interpolation": "bilinear", "max_size": None, "antialias": True}


def test_the_same_transforms_are_other_pixels_on_an_image_and_on_a_tensor() -> None:
    transforms = [_transform(V2, "Resize", **RESIZE), _transform(V2, "ToImage"), TO_FLOAT]
    assert "TorchResize" not in repr(from_torchvision(transforms))
    on_tensor = from_torchvision(transforms, given="tensor")
    assert repr(on_tensor) == repr(from_torchvision([_transform(V2, "ToImage"), _transform(V2, "Resize", **RESIZE), TO_FLOAT]))
    assert "arithmetic='integer'" in repr(on_tensor)
    version_1 = [_transform(V1, "Resize", **RESIZE), TO_FLOAT]
    assert "arithmetic='float32'" in repr(from_torchvision(version_1, given="tensor"))


@pytest.mark.parametrize(
    ("transforms", "step"),
    [
        pytest.param([_transform(V1, "Resize", **{**RESIZE, "antialias": False}), TO_FLOAT], "Resize", id="version 1, antialias off"),
        pytest.param([_transform(V2, "Resize", **{**RESIZE, "antialias": False}), TO_FLOAT], "Resize", id="antialias off"),
        pytest.param([_transform(V2, "Resize", **{**RESIZE, "interpolation": "lanczos"}), TO_FLOAT], "Resize", id="filter"),
        pytest.param([TO_FLOAT, _transform(V2, "Resize", **RESIZE)], "Resize", id="float"),
    ],
)
def test_resizes_of_tensors_without_an_exact_step_are_refused(transforms: list[Any], step: str) -> None:
    with pytest.raises(UnsupportedStep) as refused:
        from_torchvision(transforms, given="tensor")
    assert refused.value.step == step
