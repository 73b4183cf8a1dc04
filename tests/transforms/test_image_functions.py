"""The ONNX functions: Pillow's bits, by ONNX Runtime and by onnx.reference, with nothing but standard operators."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_oracle import PILLOW_FILTERS, c_weights, call_model, content, stated_array, stated_resize
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from PIL import Image
from pillow_images import photos
from samegraph_transforms.errors import AuthoringError
from samegraph_transforms.executor import OrtExecutor
from samegraph_transforms.functions import (
    FILTERS,
    ROUNDINGS,
    SEMANTICS,
    FilterName,
    Semantics,
    called_functions,
    function,
    function_names,
    library,
    resize_function,
    resize_to_function,
)
from samegraph_transforms.kernels import native_semantics, vertical_first
from samegraph_transforms.opsets import AI_ONNX, DOMAIN, IR_VERSION, opset_imports

RESIZES = pytest.mark.parametrize(("filter_", "semantics"), [(f, s) for f in FILTERS for s in SEMANTICS])
#: Sizes per filter and semantics in ONNX Runtime and in onnx.reference; `IMAGE_SIZES` sets the first (2,000 in the nightly setting).
RUNTIME_SIZES = int(os.environ.get("IMAGE_SIZES", "300"))
REFERENCE_SIZES = 80


@functools.cache
def _runtime(filter_: FilterName, semantics: Semantics) -> OrtExecutor:
    return OrtExecutor(call_model(resize_to_function(filter_, semantics), size_input=True))


@functools.cache
def _reference(filter_: FilterName, semantics: Semantics) -> ReferenceEvaluator:
    return ReferenceEvaluator(call_model(resize_to_function(filter_, semantics), size_input=True))


def _resized(array: np.ndarray, size: tuple[int, int], filter_: FilterName, semantics: Semantics) -> np.ndarray:
    return _runtime(filter_, semantics).run({"X": array, "size": np.array(size)})[0]


def _cases(seed: int, count: int, largest: int) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    """Yield images with sizes to bring them to: each direction up and down, portrait and landscape, an axis kept now and then."""
    rng = np.random.default_rng(seed)
    for case in range(count):
        height, width, out_height, out_width = (int(v) for v in np.exp(rng.uniform(0, np.log(largest), 4)).astype(int))
        if case % 4 == 1:  # much taller than wanted, which is where the two semantics part
            height, width = largest - int(rng.integers(0, 9)), out_width + int(rng.integers(0, 20))
        if case % 11 == 8:  # a line, where the two older semantics part
            height, width = largest - int(rng.integers(0, 9)), int(rng.integers(1, 4))
        out_height = height if case % 17 == 3 else out_height
        out_width = width if case % 17 == 5 else out_width
        yield content(rng, height, width, 1 + case % 4), (out_height, out_width)


@RESIZES
def test_runtime_gives_pillows_bits_on_random_sizes(filter_: FilterName, semantics: Semantics) -> None:
    """300 random sizes for each filter and semantics, 1 to 4 channels, up to 400 pixels a side."""
    parted = tall = 0
    for array, size in _cases(1, RUNTIME_SIZES, 400):
        expected = stated_array(array, *size, filter_, semantics)
        np.testing.assert_array_equal(_resized(array, size, filter_, semantics), expected, err_msg=f"{array.shape} to {size}")
        parted += vertical_first("pillow>=13", (array.shape[0], array.shape[1]), size)
        tall += vertical_first("pillow>=12.2,<13", (array.shape[0], array.shape[1]), size)
    assert parted >= RUNTIME_SIZES // 6, "the sizes must exercise the other orders too"
    assert tall >= RUNTIME_SIZES // 20


@RESIZES
def test_reference_evaluator_gives_pillows_bits_on_random_sizes(filter_: FilterName, semantics: Semantics) -> None:
    """80 random sizes for each filter and semantics in an evaluator that shares no code with ONNX Runtime."""
    for array, size in _cases(2, REFERENCE_SIZES, 90):
        (got,) = _reference(filter_, semantics).run(None, {"X": array, "size": np.array(size)})
        np.testing.assert_array_equal(got, stated_array(array, *size, filter_, semantics), err_msg=f"{array.shape} to {size}")


@RESIZES
def test_real_photos_in_both_orientations_give_pillows_bits(filter_: FilterName, semantics: Semantics) -> None:
    """Five photos, landscape and portrait, to four sizes a model may want, in ONNX Runtime; one size each in onnx.reference."""
    for name, photo in photos().items():
        for array in (photo, np.ascontiguousarray(photo.transpose(1, 0, 2))):
            image = Image.fromarray(array)
            for height, width in ((224, 224), (256, 170), (96, 320), (640, 480)):
                expected = np.asarray(stated_resize(image, height, width, filter_, semantics))
                np.testing.assert_array_equal(
                    _resized(array, (height, width), filter_, semantics), expected, err_msg=f"{name} to {height}×{width}"
                )
        upright = Image.fromarray(photo.transpose(1, 0, 2))
        (got,) = _reference(filter_, semantics).run(None, {"X": np.asarray(upright), "size": np.array([96, 64])})
        np.testing.assert_array_equal(got, np.asarray(stated_resize(upright, 96, 64, filter_, semantics)), err_msg=name)


@settings(max_examples=120, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 130)] * 4),
    choice=st.sampled_from([(f, s) for f in FILTERS for s in SEMANTICS]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_small_size_gives_pillows_bits(sizes: tuple[int, int, int, int], choice: tuple[FilterName, Semantics], seed: int) -> None:
    """Hypothesis looks for a size that breaks the equality."""
    height, width, *size = sizes
    array = content(np.random.default_rng(seed), height, width, 3)
    expected = stated_array(array, size[0], size[1], *choice)
    np.testing.assert_array_equal(_resized(array, (size[0], size[1]), *choice), expected)


@pytest.mark.parametrize("filter_", FILTERS)
def test_extreme_shrinking_stays_exact(filter_: FilterName) -> None:
    """Sums over tens of thousands of taps neither overflow nor round, at any brightness."""
    rng = np.random.default_rng(3)
    for width in (1_500, 20_000, 60_000):
        for array in (np.full((1, width, 1), 255, np.uint8), rng.integers(0, 2, (1, width, 1), dtype=np.uint8) * np.uint8(255)):
            for out in (1, 2, 7):
                expected = stated_array(array, 1, out, filter_, "pillow<13")
                np.testing.assert_array_equal(_resized(array, (1, out), filter_, "pillow<13"), expected)
                np.testing.assert_array_equal(
                    _resized(array.transpose(1, 0, 2), (out, 1), filter_, "pillow<13"), expected.transpose(1, 0, 2)
                )


@pytest.mark.parametrize("filter_", [f for f in FILTERS if f != "nearest"])
@pytest.mark.parametrize("evaluator", [OrtExecutor, ReferenceEvaluator], ids=["onnxruntime", "reference"])
def test_every_weight_is_the_c_codes_integer(filter_: FilterName, evaluator: type) -> None:
    """On 350 pairs of sizes each 22-bit weight is equal, which pixels alone would show only by luck."""
    node = helper.make_node(f"PillowTaps_{filter_}", ["n_in", "n_out"], ["rows", "digits"], domain=DOMAIN)
    sizes = [helper.make_tensor_value_info(name, TensorProto.INT64, [1]) for name in ("n_in", "n_out")]
    outputs = [
        helper.make_tensor_value_info("rows", TensorProto.INT64, ["b", "t"]),
        helper.make_tensor_value_info("digits", TensorProto.UINT8, ["b", "d", "t"]),
    ]
    graph = helper.make_graph([node], "taps", sizes, outputs)
    model = helper.make_model(graph, functions=library([node.op_type]), opset_imports=opset_imports(), ir_version=IR_VERSION)
    session = evaluator(model)
    rng = np.random.default_rng(12)
    pairs = [(373, 224), (640, 256), (427, 171), (1000, 7), *rng.integers(1, 300, (346, 2)).tolist()]
    for n_in, n_out in pairs:
        feeds = {"n_in": np.array([n_in]), "n_out": np.array([n_out])}
        rows, digits = session.run(feeds) if evaluator is OrtExecutor else session.run(None, feeds)
        assert _weights_by_row(rows, digits)[:n_out] == c_weights(n_in, n_out, filter_), f"{n_in} to {n_out}"


def _weights_by_row(rows: np.ndarray, digits: np.ndarray) -> list[dict[int, int]]:
    """Put base-256 digits back together: for every output row, input row → weight, zeros left out."""
    high, middle, low = np.moveaxis(digits.reshape(len(digits), 3, -1, digits.shape[2]).astype(np.int64) - 128, 1, 0)
    weights = (high * 256 + middle) * 256 + low
    return [{int(rows[b, t]): int(w) for t, w in enumerate(line) if w} for b, block in enumerate(weights) for line in block]


@pytest.mark.parametrize("evaluator", [OrtExecutor, ReferenceEvaluator], ids=["onnxruntime", "reference"])
def test_nearest_takes_the_pixel_that_pillows_running_sum_reaches(evaluator: type) -> None:
    """On pairs of sides up to 40, and on over a hundred where a product would take another pixel than the sum."""
    pairs = [(a, b) for a in range(1, 41) for b in range(1, 41)]
    candidates = ((a, b) for a in range(7, 120, 7) for b in range(20, 200))
    told_apart = [(a, b) for a, b in candidates if _nearest_by_product(a, b) != _nearest_by_pillow(a, b)]
    assert len(told_apart) > 100
    session = evaluator(call_model(resize_to_function("nearest", "pillow<13"), size_input=True))
    for n_in, n_out in [*pairs[::7], *told_apart]:
        feeds = {"X": np.arange(n_in, dtype=np.uint8).reshape(1, n_in, 1), "size": np.array([1, n_out])}
        (got,) = session.run(feeds) if evaluator is OrtExecutor else session.run(None, feeds)
        assert got.ravel().tolist() == _nearest_by_pillow(n_in, n_out), f"{n_in} to {n_out}"


def _nearest_by_pillow(n_in: int, n_out: int) -> list[int]:
    line = Image.fromarray(np.arange(n_in, dtype=np.uint8).reshape(1, n_in))
    return [int(v) for v in np.asarray(line.resize((n_out, 1), Image.Resampling.NEAREST))[0]]


def _nearest_by_product(n_in: int, n_out: int) -> list[int]:
    return [int((i + 0.5) * (n_in / n_out)) for i in range(n_out)]


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_order_turns_exactly_where_pillow_turns(semantics: Semantics) -> None:
    """Height lost equal to twice the width lost is still horizontal first; one row more is not, under pillow>=13."""
    rng = np.random.default_rng(14)
    for height, vertical in ((99, False), (100, False), (101, True), (102, True)):
        array = rng.integers(0, 256, (height, 70, 3), dtype=np.uint8)
        image = Image.fromarray(array)
        high_first = image.resize((70, 20), Image.Resampling.BICUBIC).resize((30, 20), Image.Resampling.BICUBIC)
        wide_first = image.resize((30, height), Image.Resampling.BICUBIC).resize((30, 20), Image.Resampling.BICUBIC)
        assert high_first.tobytes() != wide_first.tobytes()
        expected = high_first if vertical and semantics == "pillow>=13" else wide_first
        np.testing.assert_array_equal(_resized(array, (20, 30), "bicubic", semantics), np.asarray(expected), err_msg=str(height))


@pytest.mark.parametrize("evaluator", [OrtExecutor, ReferenceEvaluator], ids=["onnxruntime", "reference"])
def test_order_turns_at_a_hundred_times_as_high_as_wide_in_pillow_12_2(evaluator: type) -> None:
    """Exactly a hundred times is horizontal first, one row more vertical first, and an image that gets no lower stays horizontal first."""
    rng = np.random.default_rng(15)
    session = evaluator(call_model(resize_to_function("bicubic", "pillow>=12.2,<13"), size_input=True))
    for height, to_height, vertical in ((200, 20, False), (201, 20, True), (201, 201, False), (201, 300, False), (202, 201, True)):
        array = rng.integers(0, 256, (height, 2, 3), dtype=np.uint8)
        image = Image.fromarray(array)
        high_first = image.resize((2, to_height), Image.Resampling.BICUBIC).resize((30, to_height), Image.Resampling.BICUBIC)
        wide_first = image.resize((30, height), Image.Resampling.BICUBIC).resize((30, to_height), Image.Resampling.BICUBIC)
        feeds = {"X": array, "size": np.array([to_height, 30])}
        (got,) = session.run(feeds) if evaluator is OrtExecutor else session.run(None, feeds)
        np.testing.assert_array_equal(got, np.asarray(high_first if vertical else wide_first), err_msg=f"{height} to {to_height}")


def test_installed_pillow_takes_the_order_that_is_emulated() -> None:
    """Two one-axis calls give what the installed Pillow's single call gives, on 200 sizes: the oracle of these tests holds."""
    semantics = native_semantics()
    assert semantics in SEMANTICS
    other_order_differs = 0
    for array, (height, width) in _cases(4, 200, 300):
        image = Image.fromarray(array[:, :, 0])
        for filter_, resample in PILLOW_FILTERS.items():
            whole = image.resize((width, height), resample)
            assert whole.tobytes() == stated_resize(image, height, width, filter_, semantics).tobytes(), (
                f"{image.size} to {width}×{height} {filter_}"
            )
            other = "pillow<13" if semantics != "pillow<13" else "pillow>=13"
            other_order_differs += whole.tobytes() != stated_resize(image, height, width, filter_, other).tobytes()
    assert other_order_differs >= 50, "the two semantics must be told apart by these sizes"


def test_the_two_semantics_differ_on_a_tall_photo() -> None:
    """A portrait photo to a square gives other pixels under the other semantics, so a package has to say which it means."""
    portrait = np.ascontiguousarray(photos()["coffee"].transpose(1, 0, 2))
    before, since = (_resized(portrait, (100, 224), "bilinear", s) for s in SEMANTICS[:2])
    changed = float(np.mean(before != since))
    assert 0.01 < changed < 0.5
    assert int(np.abs(before.astype(int) - since).max()) <= 8


@pytest.mark.parametrize("shape", [(427, 640), (640, 427), (300, 300), (33, 1000)])
@pytest.mark.parametrize("shorter", [1, 64, 224, 333])
def test_shorter_side_has_torchvisions_size_and_pillows_bits(shape: tuple[int, int], shorter: int) -> None:
    """The longer side is cut to an integer, never rounded."""
    height, width = shape
    # torchvision.transforms.functional._compute_resized_output_size, written out
    short, long = (width, height) if width <= height else (height, width)
    new_long = int(shorter * long / short)
    expected_size = (new_long, shorter) if width <= height else (shorter, new_long)
    array = content(np.random.default_rng(shorter), height, width)
    got = OrtExecutor(call_model(resize_function("bilinear", "pillow>=13", shorter_side=True), size=shorter)).run({"X": array})[0]
    assert got.shape[:2] == expected_size
    np.testing.assert_array_equal(got, stated_array(array, *expected_size, "bilinear", "pillow>=13"))


def test_shorter_side_cuts_every_ratio_as_python_does() -> None:
    """int(size × long / short) agrees for every pair of sides, where a multiplied-out ratio would not."""
    model = call_model(resize_function("box", "pillow<13", shorter_side=True), size=29)
    runtime = OrtExecutor(model)
    for height in range(1, 60):
        for width in (29, 31, 47, 58, 59):
            got = runtime.run({"X": np.zeros((height, width, 1), np.uint8)})[0].shape[:2]
            short, long = min(height, width), max(height, width)
            assert sorted(got) == sorted((29, int(29 * long / short)))


def _offset(margin: int, rounding: str) -> int:
    """Return where a centred crop starts, in the words of the libraries that do it so."""
    if rounding == "floor":  # many hand-written pipelines; Hugging Face's center_crop
        return margin // 2
    if rounding == "ceil":  # EfficientNet-Lite: ((h - c) + 1) // 2
        return (margin + 1) // 2
    if rounding == "toward_zero":  # Hugging Face's fast processors: int((height - size) / 2.0), or (missing // 2) in front
        return int(margin / 2.0)
    # torchvision: pad (missing // 2) in front when smaller, else int(round(margin / 2.0))
    return round(margin / 2.0) if margin >= 0 else -(-margin // 2)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("evaluator", [OrtExecutor, ReferenceEvaluator], ids=["onnxruntime", "reference"])
def test_center_crop_takes_the_stated_pixels(rounding: str, evaluator: type) -> None:
    """Every margin from -9 to 9 on each axis: odd, even, none, and zeros where the image is smaller."""
    session = evaluator(call_model(f"CenterCrop_{rounding}", size=[12, 15]))
    rng = np.random.default_rng(5)
    for height in range(3, 22):
        width = 15 + (height * 5) % 19 - 9
        array = rng.integers(1, 256, (height, width, 3), dtype=np.uint8)
        top, left = _offset(height - 12, rounding), _offset(width - 15, rounding)
        expected = np.asarray(Image.fromarray(array).crop((left, top, left + 15, top + 12)))
        got = session.run({"X": array})[0] if evaluator is OrtExecutor else session.run(None, {"X": array})[0]
        np.testing.assert_array_equal(got, expected, err_msg=f"{height}×{width}")


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("fraction", [224 / (224 + 32), 0.9, 1.0, 1 / 3])
def test_fraction_crop_takes_the_stated_pixels(rounding: str, fraction: float) -> None:
    """The side is int(fraction × shorter side) in double, EfficientNet-Lite's rule, for every side up to 120."""
    tensor = onnx.numpy_helper.from_array(np.array([fraction], dtype=np.float64))
    session = OrtExecutor(call_model(f"CenterCropFraction_{rounding}", fraction=tensor))
    rng = np.random.default_rng(6)
    for height in range(4, 121):
        width = 4 + (height * 37) % 117
        array = rng.integers(0, 256, (height, width, 2), dtype=np.uint8)
        side = int(fraction * min(height, width))
        top, left = _offset(height - side, rounding), _offset(width - side, rounding)
        np.testing.assert_array_equal(
            session.run({"X": array})[0], array[top : top + side, left : left + side], err_msg=f"{height}×{width}"
        )


@pytest.mark.parametrize("evaluator", [OrtExecutor, ReferenceEvaluator], ids=["onnxruntime", "reference"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_to_rgb_is_pillows_conversion(mode: str, evaluator: type) -> None:
    """Grey is copied and alpha dropped, as convert("RGB") does."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    array = np.random.default_rng(7).integers(0, 256, (17, 23, channels), dtype=np.uint8)
    image = Image.fromarray(array[:, :, 0] if channels == 1 else array)
    assert image.mode == mode
    session = evaluator(call_model("ToRGB"))
    got = session.run({"X": array})[0] if evaluator is OrtExecutor else session.run(None, {"X": array})[0]
    np.testing.assert_array_equal(got, np.asarray(image.convert("RGB")))


def test_bodies_hold_standard_operators_only() -> None:
    """Every node of every function is ai.onnx at the pinned opset, or a call of another function of this library."""
    operators = {
        schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == "" and schema.since_version <= AI_ONNX
    }
    for name in function_names():
        proto = function(name)
        assert {(i.domain, i.version) for i in proto.opset_import} == {("", AI_ONNX), (DOMAIN, 1)}
        for node in _all_nodes(proto.node):
            assert node.op_type in operators if node.domain == "" else node.op_type in function_names(), (
                f"{name}: {node.domain}::{node.op_type}"
            )


def _all_nodes(nodes: object) -> Iterator[onnx.NodeProto]:
    for node in nodes:  # type: ignore[attr-defined]
        yield node
        for attribute in node.attribute:
            yield from _all_nodes(attribute.g.node)


def test_library_is_closed_and_ordered() -> None:
    """Whatever is asked for comes with all it calls, once, callees before callers."""
    for name in function_names():
        names = [f.name for f in library([name, name])]
        assert names[-1] == name
        assert len(names) == len(set(names))
        for i, f in enumerate(library([name])):
            assert set(called_functions(f.node)) <= set(names[:i])


def test_documented_functions_exist() -> None:
    """The names in the module's docstring are the names the library has."""
    import samegraph_transforms.functions as module

    for pattern in re.findall(r"^    ([A-Z]\w*(?:\{\w+\}\w*)*)", module.__doc__ or "", re.MULTILINE):
        expression = re.sub(r"\{\w+\}", r"\\w+", pattern)
        assert any(re.fullmatch(expression, name) for name in function_names()), pattern


def test_unknown_filter_and_semantics_are_refused_with_the_choices() -> None:
    """The message lists what there is."""
    with pytest.raises(AuthoringError, match="bilinear, bicubic, box"):
        resize_function("gauss", "pillow<13")  # type: ignore[arg-type]
    with pytest.raises(AuthoringError, match="pillow<13, pillow>=13"):
        resize_function("bicubic", "pillow 9")  # type: ignore[arg-type]
