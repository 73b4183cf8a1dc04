"""Sizes, borders, crops, flips and colours: Pillow's bits in the functions, the kernels and the authoring steps."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_oracle import PILLOW_FILTERS, call_model, content, stated_resize
from onnx import helper
from onnx.reference import ReferenceEvaluator
from PIL import Image, ImageOps
from pillow_images import encoded, pillow_images
from samegraph_transforms.decode import DEFAULT_MODES
from samegraph_transforms.errors import AuthoringError, InputError
from samegraph_transforms.executor import OrtExecutor
from samegraph_transforms.functions import FILTERS, PAD_MODES, ROUNDINGS, SIZE_RULES, library, resize_by_function
from samegraph_transforms.image import (
    Add,
    CenterCrop,
    Crop,
    Decode,
    Divide,
    FiveCrop,
    Flip,
    Multiply,
    Normalize,
    OnBackground,
    Pad,
    PadTo,
    PadWith,
    Preprocess,
    Rescale,
    Resize,
    ScaleAndShift,
    Step,
    TenCrop,
    ToBGR,
    ToCHW,
    ToFloat,
    ToL,
    ToRGB,
)
from samegraph_transforms.itemplan import compile_item_plan
from samegraph_transforms.kernels import BATTERY_CASES, Pixels, host_kernel, native_semantics, prove, resized_size, size_by
from samegraph_transforms.manifest import Manifest, Output, Stage

#: Images per step; `IMAGE_SIZES` sets it (2,000 in the nightly setting).
IMAGES = int(os.environ.get("IMAGE_SIZES", "60"))
EVALUATORS = pytest.mark.parametrize("evaluator", [OrtExecutor, ReferenceEvaluator], ids=["onnxruntime", "reference"])


def _run(session: Any, array: np.ndarray) -> np.ndarray:
    result: np.ndarray = session.run({"X": array})[0] if isinstance(session, OrtExecutor) else session.run(None, {"X": array})[0]
    return result


def _model_of(step: Any) -> onnx.ModelProto:
    node = step.node("X", "Y")
    return call_model(node.op_type, **{a.name: helper.get_attribute_value(a) for a in node.attribute})


def _pictures(seed: int, count: int, channels: Sequence[int] = (3, 1)) -> Iterator[np.ndarray]:
    """Yield random content in random sizes, single pixels and single lines among them."""
    rng = np.random.default_rng(seed)
    for case in range(count):
        height, width = (1 if case % 11 == axis else int(rng.integers(1, 90)) for axis in (3, 7))
        yield content(rng, height, width, channels[case % len(channels)])


def _image(array: np.ndarray) -> Image.Image:
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def _array(image: Image.Image) -> np.ndarray:
    array = np.asarray(image)
    return array[:, :, np.newaxis] if array.ndim == 2 else array


# ---------------------------------------------------------------- sizes


def _expected_size(rule: str, height: int, width: int, size: Sequence[int], k: int) -> tuple[int, int]:
    """Write every rule out in Python, side by side with what training code has."""
    if rule == "contain":  # ImageOps.contain never changes pixels before it calls resize with this size
        contained = ImageOps.contain(Image.new("L", (width, height)), (size[1], size[0]), Image.Resampling.NEAREST)
        return max(contained.height, 1), max(contained.width, 1)
    if rule == "capped":  # torchvision's _compute_resized_output_size
        new_short, new_long = size[0], int(size[0] * max(height, width) / min(height, width))
        if new_long > size[1]:
            new_short, new_long = int(size[1] * new_short / new_long), size[1]
        return tuple(max(1, v) for v in ((new_short, new_long) if height <= width else (new_long, new_short)))  # type: ignore[return-value]
    by, _, rounding = rule.partition("_")
    whole: Any = {"int": math.floor, "round": round, "ceil": math.ceil}[rounding]
    short, long = min(height, width), max(height, width)
    if by == "inside":
        r = min(size[0] / height, size[1] / width)
        sides = (height * r, width * r)
    elif by in ("within", "cover"):  # timm's ResizeKeepRatio
        ratios = (height / size[0], width / size[1])
        ratio = max(ratios) * 1.0 + min(ratios) * 0.0 if by == "within" else max(ratios) * 0.0 + min(ratios) * 1.0
        sides = (height * 1.0 / ratio, width * 1.0 / ratio)
    else:
        r_to = short if by == "shorter" else long
        sides = (size[0] * height / r_to, size[0] * width / r_to)
    return max(k, k * whole(sides[0] / k)), max(k, k * whole(sides[1] / k))


@EVALUATORS
@pytest.mark.parametrize("rule", SIZE_RULES)
def test_every_rule_makes_the_size_python_makes(rule: str, evaluator: type) -> None:
    """The graph and the kernel's rule, on sides and boxes that fall on and beside ties, with and without a multiple."""
    node = helper.make_node(f"SizeBy_{rule}", ["size_in", "size", "k"], ["Y"], domain="samegraph")
    inputs = [helper.make_tensor_value_info(n, onnx.TensorProto.INT64, [d]) for n, d in (("size_in", 2), ("size", "s"), ("k", 1))]
    graph = helper.make_graph([node], "size", inputs, [helper.make_tensor_value_info("Y", onnx.TensorProto.INT64, [2])])
    model = helper.make_model(graph, functions=library([node.op_type]), opset_imports=call_model("ToRGB").opset_import, ir_version=10)
    session = evaluator(model)
    rng = np.random.default_rng(21)
    for _ in range(IMAGES * 3):
        height, width, box_height, box_width = (int(v) for v in np.exp(rng.uniform(0, 6, 4)))
        k = 1 if rule in ("contain", "capped") else int(rng.choice([1, 1, 2, 14, 32]))
        size = [box_height, box_width] if rule.startswith(("inside", "within", "cover", "contain")) else [box_height]
        size = [box_height, box_height + box_width] if rule == "capped" else size
        expected = _expected_size(rule, height, width, size, k)
        feeds = {"size_in": np.array([height, width]), "size": np.array(size), "k": np.array([k])}
        (got,) = session.run(feeds) if evaluator is OrtExecutor else session.run(None, feeds)
        assert tuple(got.tolist()) == expected == size_by(rule, (height, width), size, k), (height, width, size, k)


@pytest.mark.parametrize("filter_", FILTERS)
@pytest.mark.parametrize("rule", ["shorter_round", "longer_int", "inside_ceil", "within_round", "contain", "capped"])
def test_resizing_by_a_rule_has_pillows_bits(rule: str, filter_: Any) -> None:
    """Size rule and resize in one function: the pixels of Pillow's resize to that size."""
    semantics = native_semantics()
    assert semantics is not None
    size, k = ([40, 56], 1) if rule in ("contain", "inside_ceil", "within_round", "capped") else ([37], 4)
    session = OrtExecutor(call_model(resize_by_function(rule, filter_, semantics), size=size, multiple=[k]))
    for array in _pictures(5, IMAGES // 3):
        if max(array.shape[:2]) > 30 * min(array.shape[:2]):
            continue
        height, width = _expected_size(rule, array.shape[0], array.shape[1], size, k)
        expected = _image(array).resize((width, height), PILLOW_FILTERS[filter_])
        np.testing.assert_array_equal(_run(session, array), _array(expected))


@settings(max_examples=100, deadline=None)
@given(sides=st.tuples(st.integers(1, 300), st.integers(1, 300)), box=st.tuples(st.integers(1, 64), st.integers(1, 64)))
def test_contain_and_pad_are_image_ops(sides: tuple[int, int], box: tuple[int, int]) -> None:
    """Resize(by="contain") is ImageOps.contain, and PadTo after it is ImageOps.pad, on the same image and box."""
    image = Image.fromarray(content(np.random.default_rng(sides[0]), *sides))
    expected = ImageOps.contain(image, (box[1], box[0]), Image.Resampling.BICUBIC)
    got = Resize(box, "bicubic", by="contain").apply(image)
    if not all(expected.size):  # Pillow makes an image of no pixels, we one of a line
        assert got.size == (max(expected.width, 1), max(expected.height, 1))
        return
    assert (got.size, got.tobytes()) == (expected.size, expected.tobytes())
    for place, centering in (("center", (0.5, 0.5)), ("top_left", (0.0, 0.0)), ("bottom_right", (1.0, 1.0))):
        padded = PadTo(box, (114, 7, 200), place).apply(got)  # type: ignore[arg-type]
        reference = ImageOps.pad(image, (box[1], box[0]), Image.Resampling.BICUBIC, (114, 7, 200), centering)
        assert padded.tobytes() == reference.tobytes()


# ---------------------------------------------------------------- crops, borders, flips, colours

LETTERED = [
    Crop((3, 5, 40, 31)),
    Crop((-9, -4, 20, 12)),
    Crop((200, 300, 210, 340)),
    Crop((-50, -60, -10, -20)),
    Pad(3, 128),
    Pad((0, 4, 9, 1)),
    *[PadTo((41, 37), 200, rounding=rounding) for rounding in ROUNDINGS],
    PadTo((60, 20), place="top_left"),
    PadTo(33, 9, place="bottom_right"),
    *[CenterCrop((41, 37), colour=200, rounding=rounding) for rounding in ROUNDINGS],
    *[PadWith((0, 40, 95, 1), mode) for mode in PAD_MODES],
    Flip("horizontal"),
    Flip("vertical"),
    ToL(),
    OnBackground(),
    OnBackground((3, 77, 240)),
]


@EVALUATORS
@pytest.mark.parametrize("step", LETTERED, ids=repr)
def test_functions_do_what_the_step_does_with_pillow(step: Any, evaluator: type) -> None:
    """Any size, one and three channels, and for colours two and four as well."""
    session = evaluator(_model_of(step))
    channels = (1, 2, 3, 4) if isinstance(step, ToL | OnBackground) else (3, 1)
    for array in _pictures(6, IMAGES, channels):
        np.testing.assert_array_equal(_run(session, array), _array(step.apply(_image(array))), err_msg=str(array.shape))


@pytest.mark.parametrize("step", [PadTo((41, 37), (1, 2, 3)), Pad((5, 0, 1, 2), (9, 0, 255))], ids=repr)
def test_borders_have_a_colour_for_each_channel(step: Any) -> None:
    """Three levels on three channels, in both evaluators and in the kernel."""
    kernel = host_kernel(step.node("X", "Y"))
    assert kernel is not None
    for array in _pictures(8, IMAGES // 2, (3,)):
        expected = _array(step.apply(_image(array)))
        for evaluator in (OrtExecutor, ReferenceEvaluator):
            np.testing.assert_array_equal(_run(evaluator(_model_of(step)), array), expected)
        np.testing.assert_array_equal(kernel(Pixels(array=array)).array(), expected)


def test_borders_are_image_ops_expand() -> None:
    """Pad is ImageOps.expand with its border in the same order."""
    for array in _pictures(9, 20):
        expected = ImageOps.expand(_image(array), (1, 2, 3, 4), 77)
        if array.shape[2] == 1:
            assert Pad((1, 2, 3, 4), 77).apply(_image(array)).tobytes() == expected.tobytes()
        coloured = ImageOps.expand(_image(array).convert("RGB"), (1, 2, 3, 4), (7, 8, 9))
        assert Pad((1, 2, 3, 4), (7, 8, 9)).apply(_image(array).convert("RGB")).tobytes() == coloured.tobytes()


def test_background_is_both_of_pillows_ways_for_every_alpha_level_and_background() -> None:
    """All 256 × 256 pairs of alpha and level on 256 backgrounds: paste, alpha_composite and the function give the same byte."""
    alpha, level = (v.astype(np.uint8) for v in np.indices((256, 256)))
    rgba = np.stack([level, level, level, alpha], axis=2)
    image = Image.fromarray(rgba)
    for behind in range(256):
        colour = (behind, 255 - behind, 128)
        pasted = Image.new("RGB", image.size, colour)
        pasted.paste(image.convert("RGB"), mask=image.getchannel("A"))
        got = OnBackground(colour).apply(image)
        assert got.tobytes() == pasted.tobytes(), behind
        if behind % 16 == 0:
            np.testing.assert_array_equal(_run(OrtExecutor(_model_of(OnBackground(colour))), rgba), np.asarray(pasted))


def test_grey_weighs_every_colour_as_pillow_does() -> None:
    """Every red, green and blue in steps that meet all rounding of the sum: 300,000 colours and all greys."""
    rng = np.random.default_rng(3)
    colours = rng.integers(0, 256, (500, 600, 3), dtype=np.uint8)
    colours[0, :256] = np.arange(256, dtype=np.uint8)[:, None]
    expected = np.asarray(Image.fromarray(colours).convert("L"))[:, :, None]
    np.testing.assert_array_equal(_run(OrtExecutor(_model_of(ToL())), colours), expected)


KERNELS = [
    *LETTERED,
    FiveCrop((9, 40)),
    TenCrop(33),
    TenCrop(24, vertical_flip=True),
    PadTo(20, (1, 2, 3)),
    *[Resize((24, 31), "lanczos", by=by) for by in ("inside", "contain")],
]
KERNELS += [Resize(30, "hamming", "pillow<13", by="longer", rounding="ceil", multiple_of=7), Resize(28, "nearest", rounding="round")]


@pytest.mark.parametrize("step", KERNELS, ids=repr)
def test_every_kernel_passes_its_battery(step: Any, tmp_path: Path) -> None:
    """The native code equals the ONNX body on this machine, so it may stand in."""
    node = step.node("a", "b")
    proof = prove(node, library([node.op_type]), OrtExecutor, cache_dir=tmp_path)
    assert (proof.equal, proof.detail, proof.cases) == (True, "", BATTERY_CASES)


def test_fixed_crop_after_a_resize_is_one_kernel_with_it(tmp_path: Path) -> None:
    """As the centred crop is, also where the box reaches beyond the image."""
    resize = Resize(48, "lanczos").node("a", "b")
    for box in ((4, 6, 30, 40), (-4, 6, 80, 40), (500, 500, 510, 510)):
        crop = Crop(box).node("b", "c")
        proof = prove(resize, library([resize.op_type, crop.op_type]), OrtExecutor, then=crop, cache_dir=tmp_path)
        assert (proof.equal, proof.detail) == (True, "")


def test_sizes_are_known_before_anything_is_made() -> None:
    """Whoever runs the ONNX body can ask first how large it will be; other nodes have no such size."""
    size = resized_size(Resize(256, "box", rounding="ceil").node("a", "b"))
    assert size is not None
    assert size((1, 60_000)) == (256, 15_360_000)
    assert resized_size(Flip("vertical").node("a", "b")) is None
    assert resized_size(helper.make_node("PillowResizeBy_contain_nearest", ["a"], ["b"], domain="samegraph")) is None


# ---------------------------------------------------------------- whole pipelines

TAIL: list[Step] = [ToFloat(), Divide(255), ToCHW()]
PIPELINES: dict[str, list[Step]] = {
    "letterbox": [ToRGB(), Resize((64, 80), "bilinear", by="contain"), PadTo((64, 80), (114, 114, 114)), *TAIL],
    "multiples": [ToRGB(), Resize(50, "lanczos", by="longer", rounding="ceil", multiple_of=14), PadTo(56, place="top_left"), *TAIL],
    "grey": [ToL(), Resize((28, 28), "hamming"), Flip("horizontal"), ToFloat(), Normalize(0.1307, 0.3081), ToCHW()],
    "background": [OnBackground((255, 255, 255)), Resize(40, "nearest", rounding="round"), CenterCrop(40), Pad(2, 9), *TAIL],
    "box": [
        ToRGB(),
        Crop((10, 10, 90, 60)),
        Resize((32, 32), "bicubic"),
        ToBGR(),
        ToFloat(),
        Normalize((104, 117, 123), (1, 2, 3)),
        ToCHW(),
    ],
}


def _files() -> list[bytes]:
    names = ("hopper.jpg", "hopper_gray.jpg", "transparent.png", "pil_sample_cmyk.jpg", "hopper.gif", "flower.webp")
    rng = np.random.default_rng(11)
    tall = [encoded(Image.fromarray(content(rng, int(h), int(w))), "PNG") for h, w in ((300, 40), (40, 300), (1, 1), (90, 90))]
    return [*(pillow_images()[name] for name in names), *tall]


@pytest.mark.parametrize("kernels", ["auto", "off"])
@pytest.mark.parametrize("name", PIPELINES)
def test_served_graphs_give_the_called_objects_bits(name: str, kernels: Any, tmp_path: Path) -> None:
    """Item plan and batch graph equal the called object, with the host kernels and with the ONNX bodies alone."""
    preprocess = Preprocess([Decode(), *PIPELINES[name]])
    drafts = preprocess.stages()
    stages = [
        Stage(
            name=d.name,
            file=f"{d.name}.onnx",
            inputs={i.name: i.name for i in d.model.graph.input},
            outputs={o.name: o.name for o in d.model.graph.output},
        )
        for d in drafts
    ]
    manifest = Manifest(
        name="demo",
        version=1,
        fields=preprocess.fields(),
        outputs=[Output(name="answer", dtype="float32")],
        stages=[*stages, Stage(name="model", file="model.onnx", inputs={}, outputs={"answer": "answer"})],
        decoders=preprocess.decoders(),
    )
    plan = compile_item_plan(drafts[0].model, manifest, make_executor=OrtExecutor, kernels=kernels, cache_dir=tmp_path)
    batch = OrtExecutor(drafts[1].model)
    assert {step.engine for step in plan.steps} == ({"host", "kernel"} if kernels == "auto" else {"host", "onnx"})
    for data in _files():
        trace = preprocess.trace(data)
        pixels = plan({"image": data})["pixels"]
        np.testing.assert_array_equal(pixels, trace["pixels"])
        np.testing.assert_array_equal(batch.run({"pixels": pixels[np.newaxis]})[0][0], trace["input"])


@pytest.mark.parametrize("kernels", ["auto", "off"])
def test_letterbox_of_a_file_is_pillow_written_out(kernels: Any) -> None:
    """The pipeline of docs/image-models.md against the three lines training code has for it."""
    preprocess = Preprocess([Decode(), *PIPELINES["letterbox"]])
    for data in _files():
        image = Image.open(io.BytesIO(data)).convert("RGB")
        padded = ImageOps.pad(image, (80, 64), Image.Resampling.BILINEAR, (114, 114, 114))
        expected = (np.asarray(padded).astype(np.float32) / np.float32(255)).transpose(2, 0, 1)
        np.testing.assert_array_equal(preprocess(data), expected)


def test_alpha_reaches_the_background_only_as_decode_hands_it_over() -> None:
    """A palette with transparent entries is opaque by default, and seen through when Decode hands RGBA over, as convert("RGBA") does."""
    palette = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).quantize(8)
    palette.info["transparency"] = bytes([0, 128, 255, 7, 200, 3, 90, 255])
    data = encoded(palette, "PNG", transparency=palette.info["transparency"])
    opened = Image.open(io.BytesIO(data))
    assert opened.mode == "P"
    white = Image.new("RGBA", opened.size, (255, 255, 255, 255))
    seen = np.asarray(Image.alpha_composite(white, opened.convert("RGBA")).convert("RGB"))
    steps = [OnBackground(), PadTo(8)]
    np.testing.assert_array_equal(Preprocess([Decode(modes={**DEFAULT_MODES, "P": "RGBA"}), *steps])(data), seen)
    assert not np.array_equal(Preprocess([Decode(), *steps])(data), seen)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("rule", ["apply", "ignore"])
def test_all_eight_orientations_are_turned_as_pillow_turns_them(orientation: int, rule: Any) -> None:
    """EXIF 1 to 8, applied and ignored, JPEG and PNG: the pixels of exif_transpose, or of the file."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(content(np.random.default_rng(orientation), 23, 37))
    for format_ in ("JPEG", "PNG", "WEBP"):
        data = encoded(picture, format_, exif=exif.tobytes())
        opened = Image.open(io.BytesIO(data))
        expected = (ImageOps.exif_transpose(opened) if rule == "apply" else opened).convert("RGB")
        got = Preprocess([Decode(exif_orientation=rule), ToRGB(), PadTo(40, place="top_left")])(data)
        assert Image.fromarray(got[: expected.height, : expected.width]).tobytes() == expected.tobytes()
        assert not got[expected.height :].any()
        assert not got[:, expected.width :].any()


# ---------------------------------------------------------------- arithmetic

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
F = np.float32
_MEAN32, _STD32 = np.array(MEAN, F), np.array(STD, F)
ORDERS: dict[str, tuple[list[Step], Any]] = {
    # torchvision: ToTensor, then Normalize
    "(x / 255 - m) / s": ([ToFloat(), Divide(255), Normalize(MEAN, STD)], lambda x: (x.astype(F) / F(255) - _MEAN32) / _STD32),
    # Hugging Face, NumPy processors: rescale in double, normalize in float32
    "(float32(x × (1/255)) - m) / s": (
        [Rescale(1 / 255), Normalize(MEAN, STD)],
        lambda x: ((x.astype(np.float64) * (1 / 255)).astype(F) - _MEAN32) / _STD32,
    ),
    # Hugging Face, tensor processors: mean and std times 255 in float32 first
    "(x - 255 m) / (255 s)": (
        [ToFloat(), Normalize((_MEAN32 * F(255)).tolist(), (_STD32 * F(255)).tolist())],
        lambda x: (x.astype(F) - _MEAN32 * F(255)) / (_STD32 * F(255)),
    ),
    "(x - 127) / 128": ([ToFloat(), Normalize(127, 128)], lambda x: (x.astype(F) - F(127)) / F(128)),
    "x × (1/255)": ([ToFloat(), Multiply(1 / 255)], lambda x: x.astype(F) * F(1 / 255)),
    "x × (2/255) - 1": ([ToFloat(), Multiply(2 / 255), Add(-1)], lambda x: x.astype(F) * F(2 / 255) + F(-1)),
    "x × a + b": (
        [ToFloat(), ScaleAndShift((0.0171, 0.0175, 0.0174), (-2.1179, -2.0357, -1.8044))],
        lambda x: x.astype(F) * np.array((0.0171, 0.0175, 0.0174), F) + np.array((-2.1179, -2.0357, -1.8044), F),
    ),
}


@pytest.mark.parametrize("layout", ["HWC", "CHW", "BGR"])
@pytest.mark.parametrize("order", ORDERS)
def test_every_order_of_arithmetic_has_numpys_bits(order: str, layout: str) -> None:
    """All 256 levels in each channel: the object, ONNX Runtime and onnx.reference give what plain NumPy float32 gives."""
    steps, plain = ORDERS[order]
    tails: dict[str, list[Step]] = {"HWC": [], "CHW": [ToCHW()], "BGR": [ToBGR(), ToCHW()]}
    tail = tails[layout]
    preprocess = Preprocess([Decode(), ToRGB(), PadTo((16, 48)), *steps, *tail])
    pixels = np.stack([np.random.default_rng(c).permutation(768) % 256 for c in range(3)], axis=1).astype(np.uint8).reshape(1, 16, 48, 3)
    expected = plain(pixels)
    expected = expected[..., ::-1] if layout == "BGR" else expected
    expected = expected if layout == "HWC" else np.moveaxis(expected, -1, 1)
    assert expected.dtype == np.float32
    np.testing.assert_array_equal(preprocess.batch(pixels), expected)
    model = preprocess.stages()[1].model
    reference: Any = ReferenceEvaluator(model)
    for got in (OrtExecutor(model).run({"pixels": pixels})[0], reference.run(None, {"pixels": pixels})[0]):
        np.testing.assert_array_equal(got.view(np.uint32), np.ascontiguousarray(expected).view(np.uint32))


def test_orders_of_arithmetic_are_different_functions() -> None:
    """Hugging Face's two kinds of processors differ, and so does a float32 factor; its double factor is torchvision's division."""
    levels = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)
    torchvision, numpy_processor, tensor_processor = (ORDERS[name][1](levels) for name in list(ORDERS)[:3])
    np.testing.assert_array_equal(torchvision, numpy_processor)
    assert np.count_nonzero(torchvision != tensor_processor) > 100
    assert np.count_nonzero(levels.astype(F) * F(1 / 255) != levels.astype(F) / F(255)) > 50


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Resize((8, 8), "box", by="shorter"), "takes one number"),
        (lambda: Resize(8, "box", by="inside"), r"takes \(height, width\)"),
        (lambda: Resize(8, "box", rounding="up"), "int, round, ceil"),  # type: ignore[arg-type]
        (lambda: Resize(8, "box", by="area"), "shorter, longer"),  # type: ignore[arg-type]
        (lambda: Resize(8, "box", multiple_of=0), "from 1 to 4,096"),
        (lambda: Resize((8, 8), "box", rounding="ceil"), "no say"),
        (lambda: Resize((8, 8), "box", by="contain", multiple_of=8), "no say"),
        (lambda: Resize(8, "box", by="within"), r"takes \(height, width\)"),
        (lambda: Resize(8, "box", max_size=8), "above the shorter side"),
        (lambda: Resize((8, 8), "box", max_size=9), "one number"),
        (lambda: Resize(8, "box", rounding="ceil", max_size=9), "one number"),
        (lambda: CenterCrop(fraction=0.5, colour=9), "no say"),
        (lambda: PadWith(1, "wrap"), "edge, reflect, symmetric"),  # type: ignore[arg-type]
        (lambda: PadWith((1, 2), "edge"), "from 0 to 65,535"),  # type: ignore[arg-type]
        (lambda: FiveCrop(0), "from 1 to 65,535"),
        (lambda: Preprocess([Decode(), ToRGB(), FiveCrop(9), CenterCrop(5)]), "after them at most one of FiveCrop"),
        (lambda: Preprocess([Decode(), ToRGB(), FiveCrop(9), TenCrop(5)]), "after them at most one of FiveCrop"),
        (lambda: Preprocess([Decode(), ToRGB(), Resize((8, 20), "box"), TenCrop(9)]), "9 × 9 are larger than the image"),
        (lambda: Crop((5, 5, 5, 9)), "right > left"),
        (lambda: Crop((0, 0, 70_000, 9)), "65,535"),
        (lambda: Crop((1, 2, 3)), r"\(left, top, right, bottom\)"),  # type: ignore[arg-type]
        (lambda: Pad(-1), "from 0 to 65,535"),
        (lambda: Pad(1, 256), "0 to 255"),
        (lambda: PadTo(8, (1, 2), "middle"), "center, top_left"),  # type: ignore[arg-type]
        (lambda: Flip("diagonal"), "horizontal, vertical"),  # type: ignore[arg-type]
        (lambda: OnBackground((1, 2)), "red, green and blue"),  # type: ignore[arg-type]
        (lambda: Preprocess([Decode(), PadTo(8)]), "after ToRGB or ToL"),
        (lambda: Preprocess([Decode(), ToRGB(), PadTo(8, (1, 2))]), "one per channel"),
        (lambda: Preprocess([Decode(), ToL(), PadTo(8), ToBGR()]), "ToRGB"),
        (lambda: Preprocess([Decode(), ToRGB(), Resize(8, "box", by="longer")]), "PadTo"),
        (lambda: Preprocess([Decode(), ToRGB(), Resize(8, "box", rounding="ceil")]), "depends on the image"),
    ],
)
def test_what_cannot_be_is_refused_with_advice(make: Any, says: str) -> None:
    """Every wrong size, rule and colour is refused when it is written, with what to do."""
    with pytest.raises(AuthoringError, match=says):
        make()


def test_nothing_left_of_an_image_is_the_callers_error() -> None:
    """Steps that need a pixel say so when a crop has left none."""
    nothing = Pixels(array=np.zeros((0, 0, 3), np.uint8))
    for step in (ToL(), Resize((8, 9), "lanczos", by="contain"), Resize(8, "box", rounding="round")):
        kernel = host_kernel(step.node("a", "b"))
        assert kernel is not None
        with pytest.raises(InputError, match="too small"):
            kernel(nothing)


def test_shapes_are_known_where_they_can_be() -> None:
    """A square brought to a side by any rule, a border of a known size and a box have one size for every image."""
    square: list[Step] = [Decode(), ToRGB(), CenterCrop(fraction=0.9)]
    assert Preprocess([*square, Resize(50, "box", rounding="ceil", multiple_of=14)]).output_shape == [56, 56, 3]
    assert Preprocess([*square, Resize(50, "box", by="longer")]).output_shape == [50, 50, 3]
    assert Preprocess([Decode(), ToL(), PadTo((5, 6)), Pad((1, 2, 3, 4))]).output_shape == [11, 10, 1]
    assert Preprocess([Decode(), ToRGB(), Crop((0, 0, 9, 4)), Resize(8, "box", by="longer", rounding="round")]).output_shape == [4, 8, 3]


def test_stated_semantics_hold_by_any_rule() -> None:
    """Either order of passes, whatever Pillow is installed."""
    picture = Image.fromarray(content(np.random.default_rng(2), 400, 100))
    for semantics in ("pillow<13", "pillow>=13"):
        step = Resize((64, 90), "lanczos", semantics, by="inside", rounding="round")
        height, width = _expected_size("inside_round", 400, 100, (64, 90), 1)
        expected = stated_resize(picture, height, width, "lanczos", semantics)
        assert step.apply(picture).tobytes() == expected.tobytes()
