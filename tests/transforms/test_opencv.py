"""OpenCV's steps: cv2's bits, by ONNX Runtime, by onnx.reference and by cv2 as a kernel, whichever version trained."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_oracle import content
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from opencv_reference import REFERENCES
from PIL import Image
from pillow_images import photos
from samegraph_transforms import opencv_kernels
from samegraph_transforms.draft import DraftStage, PackageDraft
from samegraph_transforms.errors import AuthoringError, EnvironmentUnfit, InputError
from samegraph_transforms.executor import OrtExecutor
from samegraph_transforms.functions import library
from samegraph_transforms.image import Decode, Divide, Preprocess, Step, ToCHW, ToFloat, ToRGB
from samegraph_transforms.itemplan import ItemPlan, compile_item_plan
from samegraph_transforms.kernels import BATTERY_CASES, Pixels, host_kernel, prove
from samegraph_transforms.manifest import Manifest, Output, Stage
from samegraph_transforms.opencv import CvResize, SwapChannels, imread, letterbox
from samegraph_transforms.opencv_functions import CV_FILTERS, CV_ROUNDINGS, CV_SIZES_BY, IPP_BOUND, CvFilter, CvRounding, CvSizeBy
from samegraph_transforms.opencv_kernels import cv_resize, ipp_digest, native_cv_semantics, opencv_size
from samegraph_transforms.opsets import DOMAIN, IR_VERSION, opset_imports
from samegraph_transforms.package import write_package

from scripts.exactness_sections._opencv import GOLDEN, GOLDEN_CASES, TITLES, run_bodies, run_kernels

PHOTOS = Path(__file__).parents[2] / "docs" / "photos"
FILES = sorted(GOLDEN.glob("opencv-*.json"))
#: Sizes per filter in ONNX Runtime; `IMAGE_SIZES` sets it (2,000 in the nightly setting).
RUNTIME_SIZES = int(os.environ.get("IMAGE_SIZES", "200"))
INTERPOLATION = {
    "nearest": cv2.INTER_NEAREST,
    "linear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "cubic": cv2.INTER_CUBIC,
    "lanczos4": cv2.INTER_LANCZOS4,
}
EXACT = [name for name in TITLES if name != "cubic_ipp"]


@pytest.fixture(autouse=True)
def _without_ipp() -> Iterator[None]:
    """Let cv2 compute by itself, as the functions do; whoever wants IPP asks for it."""
    used = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)
    yield
    cv2.ipp.setUseIPP(used)


def _plain(array: np.ndarray, size: tuple[int, int], filter_: str) -> np.ndarray:
    made = cv2.resize(array, (size[1], size[0]), interpolation=INTERPOLATION[filter_])
    return np.asarray(made).reshape(*size, array.shape[2])


def _model(filter_: str) -> onnx.ModelProto:
    node = helper.make_node(f"OpenCVResizeTo_{filter_}", ["X", "size"], ["Y"], domain=DOMAIN)
    inputs = [
        helper.make_tensor_value_info("X", TensorProto.UINT8, ["H", "W", "C"]),
        helper.make_tensor_value_info("size", TensorProto.INT64, [2]),
    ]
    graph = helper.make_graph([node], "resize", inputs, [helper.make_tensor_value_info("Y", TensorProto.UINT8, ["h", "w", "c"])])
    model = helper.make_model(graph, functions=library([node.op_type]), opset_imports=opset_imports(), ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model


@functools.cache
def _runtime(filter_: str) -> OrtExecutor:
    return OrtExecutor(_model(filter_))


@functools.cache
def _reference(filter_: str) -> ReferenceEvaluator:
    return ReferenceEvaluator(_model(filter_))


def _resized(array: np.ndarray, size: tuple[int, int], filter_: str) -> np.ndarray:
    return _runtime(filter_).run({"X": array, "size": np.array(size)})[0]


def _sizes(seed: int, count: int, largest: int) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    """Yield images with sizes to bring them to: up, down, by whole numbers, to exactly half, an axis kept now and then."""
    rng = np.random.default_rng(seed)
    for case in range(count):
        height, width, out_height, out_width = (int(v) for v in np.exp(rng.uniform(0, np.log(largest), 4)).astype(int))
        if case % 5 == 1:
            out_height, out_width = min(out_height, largest // 6), min(out_width, largest // 6)
            height, width = out_height * int(rng.integers(1, 6)), out_width * int(rng.integers(1, 6))
        if case % 10 == 4:
            height, width = 2 * out_height, 2 * out_width
        out_height = height if case % 17 == 3 else out_height
        out_width = width if case % 17 == 5 else out_width
        yield content(rng, height, width, (3, 1)[case % 2]), (out_height, out_width)


@pytest.mark.parametrize("filter_", CV_FILTERS)
def test_runtime_gives_opencvs_bits_on_random_sizes(filter_: CvFilter) -> None:
    """200 random sizes a filter, one channel and three, up to 300 pixels a side."""
    for array, size in _sizes(3, RUNTIME_SIZES, 300):
        np.testing.assert_array_equal(_resized(array, size, filter_), _plain(array, size, filter_), err_msg=f"{array.shape} to {size}")


@pytest.mark.parametrize("filter_", CV_FILTERS)
def test_reference_evaluator_gives_opencvs_bits_on_random_sizes(filter_: CvFilter) -> None:
    """60 random sizes a filter in an evaluator that shares no code with ONNX Runtime."""
    for array, size in _sizes(4, 60, 90):
        (got,) = _reference(filter_).run(None, {"X": array, "size": np.array(size)})
        np.testing.assert_array_equal(got, _plain(array, size, filter_), err_msg=f"{array.shape} to {size}")


@pytest.mark.parametrize("filter_", CV_FILTERS)
def test_photos_to_the_sizes_of_models_give_opencvs_bits(filter_: CvFilter) -> None:
    """Five photos to two sizes a model may want."""
    for name, photo in photos().items():
        for size in ((224, 224), (171, 256)):
            np.testing.assert_array_equal(_resized(photo, size, filter_), _plain(photo, size, filter_), err_msg=f"{name} to {size}")


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 130)] * 4),
    filter_=st.sampled_from(CV_FILTERS),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_small_size_gives_opencvs_bits(sizes: tuple[int, int, int, int], filter_: CvFilter, channels: int, seed: int) -> None:
    """Hypothesis looks for a size or a content that breaks the equality."""
    height, width, *size = sizes
    array = content(np.random.default_rng(seed), height, width, channels)
    np.testing.assert_array_equal(_resized(array, (size[0], size[1]), filter_), _plain(array, (size[0], size[1]), filter_))


@pytest.mark.parametrize("size", [((2, 106), (98, 39)), ((1, 11), (161, 47)), ((9, 116), (48, 40)), ((118, 7), (18, 2))], ids=str)
def test_places_that_lie_on_a_pixel_within_rounding_are_opencvs(size: tuple[tuple[int, int], tuple[int, int]]) -> None:
    """Where one rounding more or less takes another pixel, or a weight would be divided by nothing."""
    array = content(np.random.default_rng(1), *size[0], 3)
    for filter_ in CV_FILTERS:
        np.testing.assert_array_equal(_resized(array, size[1], filter_), _plain(array, size[1], filter_), err_msg=filter_)


@pytest.mark.parametrize("filter_", CV_FILTERS)
def test_sizes_known_beforehand_change_nothing(filter_: CvFilter) -> None:
    """A graph of fixed sizes, which ONNX Runtime folds, has the same bits: no product and quotient become one."""
    for height, width, to_height, to_width in ((116, 40, 40, 48), (64, 50, 32, 25), (12, 19, 130, 9), (60, 90, 20, 30)):
        array = content(np.random.default_rng(9), height, width, 3)
        node = CvResize((to_height, to_width), filter_, semantics="opencv").node("X", "Y")
        values = [helper.make_tensor_value_info("X", TensorProto.UINT8, array.shape)]
        values.append(helper.make_tensor_value_info("Y", TensorProto.UINT8, [to_height, to_width, 3]))
        graph = helper.make_graph([node], "fixed", values[:1], values[1:])
        model = helper.make_model(graph, functions=library([node.op_type]), opset_imports=opset_imports(), ir_version=IR_VERSION)
        np.testing.assert_array_equal(OrtExecutor(model).run({"X": array})[0], _plain(array, (to_height, to_width), filter_))


# ---------------------------------------------------------------- other versions


def test_there_are_golden_images_of_old_and_new_versions() -> None:
    """An old 4, the last 4 and a 5, each step of the reference, and nothing of a machine."""
    made = [json.loads(path.read_text()) for path in FILES]
    assert [m["opencv"].split(".")[0] for m in sorted(made, key=lambda m: m["opencv"])] == ["4", "4", "5"]
    assert all(set(m) == {"opencv", "digests"} and set(m["digests"]) == set(REFERENCES) == set(TITLES) for m in made)
    assert all(len(digests) == GOLDEN_CASES for m in made for digests in m["digests"].values())


@pytest.mark.parametrize("run", [run_bodies, run_kernels], ids=["onnx", "kernel"])
@pytest.mark.parametrize("name", EXACT)
def test_pixels_are_those_of_every_version(name: str, run: Callable[..., Any]) -> None:
    """Each step on 60 images gives the bytes that OpenCV 4.5, 4.14 and 5.0 gave, letterbox with `copyMakeBorder` included."""
    digests = [hashlib.sha256(np.ascontiguousarray(got).tobytes()).hexdigest()[:16] for got in run(name, GOLDEN_CASES)]
    for path in FILES:
        assert digests == json.loads(path.read_text())["digests"][name], path.name


def test_ipp_is_within_its_bound_of_the_graph_in_every_version() -> None:
    """The graph of INTER_CUBIC through IPP is one level off at most, and not equal."""
    got = np.concatenate([pixels.reshape(-1) for pixels in run_bodies("cubic_ipp", 20)]).astype(np.int16)
    for path in sorted(GOLDEN.glob("cubic-ipp-*.npz")):
        apart = np.abs(got - np.load(path)["pixels"])
        assert 0 < np.count_nonzero(apart) < apart.size // 50, path.name
        assert apart.max() == IPP_BOUND, path.name


# ---------------------------------------------------------------- kernels


@pytest.mark.parametrize("filter_", CV_FILTERS)
def test_opencv_passes_its_battery_as_a_kernel(filter_: CvFilter, tmp_path: Path) -> None:
    """On this machine cv2 equals the ONNX body on every case, for an exact size and for a rule, whatever IPP is set to."""
    calls = [helper.make_node(f"OpenCVResize_{filter_}", ["a"], ["b"], domain=DOMAIN, size=[57, 64])]
    calls.append(helper.make_node(f"OpenCVResizeBy_inside_round_{filter_}", ["a"], ["b"], domain=DOMAIN, size=[48, 64], multiple=[1]))
    for node, ipp in zip(calls, (True, False), strict=True):
        cv2.ipp.setUseIPP(ipp)
        proof = prove(node, library([node.op_type]), OrtExecutor, cache_dir=tmp_path)
        assert (proof.equal, proof.detail, proof.cases) == (True, "", BATTERY_CASES)
        assert cv2.ipp.useIPP() == ipp


def test_without_opencv_the_body_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server without cv2 has no kernel and the same pixels."""
    step = CvResize((30, 40), "area")
    array = content(np.random.default_rng(2), 90, 70, 3)
    expected = _plain(array, (30, 40), "area")
    preprocess = Preprocess([Decode(), ToRGB(), step])
    png = _png(array)
    assert [s.engine for s in _plan(preprocess).steps] == ["host", "kernel", "kernel"]
    monkeypatch.setattr(opencv_kernels, "cv2_module", lambda: None)
    plan = _plan(preprocess)
    assert plan.steps[-1].engine == "onnx"
    np.testing.assert_array_equal(plan({"image": png})["pixels"], expected)
    with pytest.raises(AuthoringError, match=r"samegraph-transforms\[opencv\]"):
        preprocess.item(png)


def test_a_kernel_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another OpenCV than the one we know loses the battery; the body runs, and the plan says why."""
    real = cv2.resize

    def darker(array: np.ndarray, *arguments: Any, **options: Any) -> np.ndarray:
        return np.asarray(real(array, *arguments, **options)) // 2

    preprocess = Preprocess([Decode(), ToRGB(), CvResize((30, 41), "linear")])
    monkeypatch.setattr(cv2, "resize", darker)
    step = _plan(preprocess, tmp_path).steps[-1]
    assert step.engine == "onnx"
    assert "values differ" in step.note


@pytest.mark.parametrize("factor", [0.5, 1.0])
def test_channels_are_swapped_as_a_view_and_in_the_graph(factor: float) -> None:
    """RGB to BGR is the last axis the other way round, for kernel and graph."""
    array = content(np.random.default_rng(4), int(20 * factor), 31, 3)
    node = SwapChannels().node("X", "Y")
    kernel = host_kernel(node)
    assert kernel is not None
    np.testing.assert_array_equal(kernel(Pixels(array=array)).array(), cv2.cvtColor(array, cv2.COLOR_RGB2BGR))
    np.testing.assert_array_equal(
        _plan(Preprocess([Decode(), ToRGB(), SwapChannels(), CvResize((9, 8))]), kernels="off")({"image": _png(array)})["pixels"],
        _plain(array[:, :, ::-1].copy(), (9, 8), "linear"),
    )


# ---------------------------------------------------------------- steps


@pytest.mark.parametrize("kernels", ["auto", "off"])
@pytest.mark.parametrize("filter_", CV_FILTERS)
def test_a_pipeline_of_cv2_is_served_with_its_bits(filter_: CvFilter, kernels: str) -> None:
    """imread, resize: what training code writes with cv2 alone, on a JPEG photo, is what the item stage gives, as kernel and as graph."""
    photo = (PHOTOS / "coffee.jpg").read_bytes()
    image = _imdecode(photo)
    expected = cv2.resize(image, (61, 47), interpolation=INTERPOLATION[filter_])
    preprocess = Preprocess([*imread(), CvResize((47, 61), filter_)])
    np.testing.assert_array_equal(preprocess.item(photo), expected)
    np.testing.assert_array_equal(_plan(preprocess, kernels=kernels)({"image": photo})["pixels"], expected)


@pytest.mark.parametrize("size_in", [(90, 120), (121, 64), (33, 200), (40, 56)], ids=str)
@pytest.mark.parametrize("center", [True, False])
def test_letterbox_is_the_detectors(size_in: tuple[int, int], center: bool) -> None:
    """Resize by the smaller ratio and copyMakeBorder, as detectors are trained, in BGR with a colour for each channel."""
    array = content(np.random.default_rng(6), *size_in, 3)
    height, width = size_in
    ratio = min(64 / height, 96 / width)
    new = round(width * ratio), round(height * ratio)
    resized = cv2.resize(array[:, :, ::-1], new, interpolation=cv2.INTER_LINEAR)
    across, down = 96 - new[0], 64 - new[1]
    left, top = (round(across / 2 - 0.1), round(down / 2 - 0.1)) if center else (0, 0)
    expected = cv2.copyMakeBorder(resized, top, down - top, left, across - left, cv2.BORDER_CONSTANT, value=(114, 7, 200))
    preprocess = Preprocess([*imread(), *letterbox((64, 96), (114, 7, 200), center=center)])
    np.testing.assert_array_equal(preprocess.item(_png(array)), expected)
    for kernels in ("auto", "off"):
        np.testing.assert_array_equal(_plan(preprocess, kernels=kernels)({"image": _png(array)})["pixels"], expected)


def _as_written(by: CvSizeBy, rounding: CvRounding, size_in: tuple[int, int], size: int, multiple: int) -> tuple[int, int]:
    """Compute a size as training code writes it."""
    height, width = size_in
    roundings: dict[str, Callable[[float], int]] = {"int": int, "round": round, "ceil": math.ceil, "half_up": lambda v: int(v + 0.5)}
    whole = roundings[rounding]
    reference = min(height, width) if by.startswith("shorter") else max(height, width)
    if by == "inside":
        scale = min(size / height, size / width)
        exact = height * scale, width * scale
    elif by.endswith("_ratio"):
        exact = height * (size / reference), width * (size / reference)
    else:
        exact = height * size / reference, width * size / reference
    return max(whole(exact[0] / multiple), 1) * multiple, max(whole(exact[1] / multiple), 1) * multiple


@settings(max_examples=300, deadline=None)
@given(
    rule=st.tuples(st.sampled_from(CV_SIZES_BY), st.sampled_from(CV_ROUNDINGS)),
    size_in=st.tuples(st.integers(1, 5_000), st.integers(1, 5_000)),
    size=st.integers(1, 900),
    multiple=st.sampled_from([1, 2, 8, 32]),
)
def test_sizes_are_those_training_code_computes(
    rule: tuple[CvSizeBy, CvRounding], size_in: tuple[int, int], size: int, multiple: int
) -> None:
    """Every rule, rounding and multiple, in Python and in the graph."""
    expected = _as_written(*rule, size_in, size, multiple)
    wanted = [size, size] if rule[0] == "inside" else [size]
    name = f"{rule[0]}_{rule[1]}"
    assert opencv_size(name, size_in, wanted, multiple) == expected
    feeds = {"size_in": np.array(size_in), "size": np.array(wanted), "multiple": np.array([multiple])}
    assert tuple(_size_graph(name).run(feeds)[0]) == expected


@functools.cache
def _size_graph(rule: str) -> OrtExecutor:
    inputs = ["size_in", "size", "multiple"]
    node = helper.make_node(f"OpenCVSizeBy_{rule}", inputs, ["height_width"], domain=DOMAIN)
    values = [helper.make_tensor_value_info(name, TensorProto.INT64, [None]) for name in [*inputs, "height_width"]]
    graph = helper.make_graph([node], "size", values[:3], values[3:])
    made = helper.make_model(graph, functions=library([node.op_type]), opset_imports=opset_imports(), ir_version=IR_VERSION)
    return OrtExecutor(made)


def test_a_resize_by_a_rule_serves_what_it_trains_with() -> None:
    """By the longer side to a multiple, then padded: graph, kernel and cv2 agree."""
    array = content(np.random.default_rng(7), 97, 61, 3)
    steps: list[Step] = [Decode(), ToRGB(), CvResize(60, "area", by="longer_ratio", rounding="half_up", multiple_of=4), *letterbox(64)[1:]]
    preprocess = Preprocess(steps)
    expected = preprocess.item(_png(array))
    resized = cv2.resize(array, (int(61 * (60 / 97) / 4 + 0.5) * 4, 60), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(expected[2:62, 14:50], resized)
    for kernels in ("auto", "off"):
        np.testing.assert_array_equal(_plan(preprocess, kernels=kernels)({"image": _png(array)})["pixels"], expected)


def test_a_resize_that_would_be_enormous_is_refused_by_field() -> None:
    """A line of pixels by its shorter side: too many pixels, from the graph and from the kernel."""
    line = _png(np.zeros((1, 60_000, 3), np.uint8))
    preprocess = Preprocess([Decode(), ToRGB(), CvResize(256, "linear", by="shorter"), *letterbox(64)[1:]])
    for kernels in ("auto", "off"):
        with pytest.raises(InputError, match=r"field 'image'.*pixels") as caught:
            _plan(preprocess, kernels=kernels)({"image": line})
        assert caught.value.code == "too_many_pixels"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CvResize(64), "takes \\(height, width\\)"),
        (lambda: CvResize((64, 64), by="shorter"), "one number, the shorter side"),
        (
            lambda: CvResize((64, 64), "bicubic"),  # type: ignore[arg-type]
            "filter must be one of nearest, linear, area, cubic, lanczos4",
        ),
        (lambda: CvResize((64, 64), rounding="round"), "no say"),
        (lambda: CvResize(64, by="longer", multiple_of=0), "multiple_of"),
        (
            lambda: CvResize((64, 64), semantics="opencv<5"),  # type: ignore[arg-type]
            "opencv\\+ipp",
        ),
        (lambda: Preprocess([Decode(), CvResize((64, 64))]), "after ToRGB"),
        (lambda: Preprocess([Decode(), SwapChannels(), CvResize((64, 64))]), "put ToRGB"),
    ],
)
def test_what_cannot_be_is_refused_when_written(make: Callable[[], object], words: str) -> None:
    """With the choices there are."""
    with pytest.raises(AuthoringError, match=words):
        make()


# ---------------------------------------------------------------- reading files


def _files() -> dict[str, bytes]:
    """Return files that cv2 and Pillow both read: photos, subsamplings, progressive, grey, alpha, palette, every EXIF orientation."""
    made = {path.name: path.read_bytes() for path in PHOTOS.glob("*.jpg")}
    photo = Image.open(PHOTOS / "coffee.jpg").convert("RGB").resize((201, 133))
    for quality, subsampling, progressive in ((50, 0, False), (75, 1, False), (85, 2, True), (95, 2, False)):
        made[f"{quality}-{subsampling}.jpg"] = _file(photo, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
    made["grey.jpg"] = _file(photo.convert("L"), "JPEG")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        made[f"exif-{orientation}.jpg"] = _file(photo, "JPEG", exif=exif)
    alpha = photo.copy()
    alpha.putalpha(photo.convert("L"))
    made |= {"alpha.png": _file(alpha, "PNG"), "grey.png": _file(photo.convert("L"), "PNG"), "colour.bmp": _file(photo, "BMP")}
    made |= {"palette.png": _file(photo.quantize(64), "PNG"), "two.png": _file(photo.convert("1"), "PNG")}
    return made


def _imdecode(data: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image


def _file(image: Image.Image, container: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, container, **options)
    return file.getvalue()


@pytest.mark.parametrize("name", _files())
def test_files_are_read_as_cv2_reads_them(name: str) -> None:
    """Decode as `imread()` sets it gives cv2.imdecode's pixels, in BGR."""
    data = _files()[name]
    expected = _imdecode(data)
    whole = Preprocess([*imread(), CvResize((expected.shape[0], expected.shape[1]), "nearest")])
    np.testing.assert_array_equal(whole.item(data), expected)


def test_files_that_cv2_reads_otherwise_are_refused() -> None:
    """16 bits, CMYK and GIF become something else there."""
    whole = Preprocess([*imread(), CvResize((8, 8))])
    photo = Image.open(PHOTOS / "coffee.jpg").convert("RGB").resize((40, 30))
    files = [
        _file(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40)), "PNG"),
        _file(photo.convert("CMYK"), "JPEG"),
        _file(photo, "GIF"),
    ]
    for data in files:
        with pytest.raises(InputError):
            whole.item(data)


# ---------------------------------------------------------------- IPP


def _ipp_preprocess() -> Preprocess:
    return Preprocess([*imread(), CvResize((48, 40), "cubic", semantics="opencv+ipp"), ToFloat(), Divide(255), ToCHW()])


def test_the_semantics_of_cubic_are_found_by_trying() -> None:
    """What this thread's cv2 does decides, not its version."""
    assert CvResize((9, 9), "cubic").semantics == "opencv"
    cv2.ipp.setUseIPP(True)
    expected = "opencv" if np.array_equal(_cubic(True), _cubic(False)) else "opencv+ipp"
    assert CvResize((9, 9), "cubic").semantics == native_cv_semantics() == expected


def _cubic(ipp: bool) -> np.ndarray:
    return cv_resize(content(np.random.default_rng(8), 100, 100, 3), (60, 60), "cubic_ipp" if ipp else "cubic")


def test_ipp_runs_in_opencv_whether_kernels_are_wanted_or_not() -> None:
    """Its pixels are cv2's in every setting, since a graph has others; the plan says that it is required."""
    photo = (PHOTOS / "coffee.jpg").read_bytes()
    image = _imdecode(photo)
    cv2.ipp.setUseIPP(True)
    expected = cv2.resize(image, (40, 48), interpolation=cv2.INTER_CUBIC)
    cv2.ipp.setUseIPP(False)
    preprocess = _ipp_preprocess()
    np.testing.assert_array_equal(preprocess.item(photo), expected)
    for kernels in ("auto", "off"):
        plan = _plan(preprocess, kernels=kernels)
        assert (plan.steps[-1].engine, plan.steps[-1].library) == ("kernel", f"OpenCV {cv2.__version__}")
        assert "required, equal to training's OpenCV" in plan.steps[-1].note
        np.testing.assert_array_equal(plan({"image": photo})["pixels"], expected)


def test_a_package_that_needs_opencv_is_refused_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, or with other pixels than training's: a clear error either way, never the graph's pixels."""
    preprocess = _ipp_preprocess()
    with monkeypatch.context() as patch:
        patch.setattr(opencv_kernels, "ipp_digest", lambda: "0" * 64)
        with pytest.raises(EnvironmentUnfit, match="gives other pixels than the one training ran with"):
            _plan(preprocess)
    monkeypatch.setattr(opencv_kernels, "cv2_module", lambda: None)
    with pytest.raises(EnvironmentUnfit, match=r"not installed: pip install \"samegraph-transforms\[opencv\]\""):
        _plan(preprocess)


def test_the_bound_of_what_is_not_exact_is_in_the_manifest(tmp_path: Path) -> None:
    """Node, function, library, version, bound and digest."""
    preprocess = _ipp_preprocess()
    nodes = [helper.make_node("ReduceMean", ["input", "axes"], ["mean"], keepdims=0)]
    graph = helper.make_graph(
        nodes,
        "mean",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, 48, 40])],
        [helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3])],
    )
    network = helper.make_model(graph, opset_imports=opset_imports(), ir_version=IR_VERSION)
    package_draft = PackageDraft(
        name="cubic",
        version=1,
        fields=preprocess.fields(),
        outputs=[Output(name="mean", dtype="float32")],
        stages=[*preprocess.stages(), DraftStage("model", network)],
        decoders=preprocess.decoders(),
    )
    manifest = write_package(package_draft, [], tmp_path / "cubic" / "1").manifest
    (kernel,) = manifest.host_kernels
    assert (kernel.node, kernel.function, kernel.library) == ("cvresize_2", "OpenCVResize_cubic_ipp", "OpenCV")
    assert (kernel.library_version, kernel.bound, kernel.digest) == (cv2.__version__, IPP_BOUND, ipp_digest())


def _manifest(preprocess: Preprocess) -> Manifest:
    stages = [
        Stage(
            name=one.name,
            file=f"{one.name}.onnx",
            inputs={i.name: i.name for i in one.model.graph.input},
            outputs={o.name: o.name for o in one.model.graph.output},
        )
        for one in preprocess.stages()
    ]
    return Manifest(
        name="demo",
        version=1,
        fields=preprocess.fields(),
        outputs=[Output(name="answer", dtype="float32")],
        stages=[*stages, Stage(name="model", file="model.onnx", inputs={}, outputs={"answer": "answer"})],
        decoders=preprocess.decoders(),
    )


def _plan(preprocess: Preprocess, cache: Path | None = None, kernels: Any = "auto") -> ItemPlan:
    model = preprocess.stages()[0].model
    return compile_item_plan(model, _manifest(preprocess), make_executor=OrtExecutor, kernels=kernels, cache_dir=cache)


def _png(array: np.ndarray) -> bytes:
    return _file(Image.fromarray(array), "PNG")
