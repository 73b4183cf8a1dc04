"""The authoring API: training code in, two graphs out, the same bits from both."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from image_oracle import stated_resize
from onnx.reference import ReferenceEvaluator
from PIL import Image, ImageOps
from pillow_images import encoded, noisy_picture, photos, pillow_images
from samegraph_transforms.draft import DraftStage
from samegraph_transforms.errors import AuthoringError, InputError
from samegraph_transforms.executor import OrtExecutor
from samegraph_transforms.functions import SEMANTICS, resize_function
from samegraph_transforms.image import CenterCrop, Decode, Divide, Multiply, Normalize, Preprocess, Resize, ToCHW, ToFloat, ToRGB
from samegraph_transforms.itemplan import ItemPlan, compile_item_plan
from samegraph_transforms.kernels import native_semantics
from samegraph_transforms.manifest import Manifest, Output, Stage

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _efficientnet() -> Preprocess:
    return Preprocess(
        [
            Decode(),
            ToRGB(),
            CenterCrop(fraction=224 / (224 + 32), rounding="ceil"),
            Resize((224, 224), "bicubic"),
            ToFloat(),
            Normalize(127, 128),
            ToCHW(),
        ]
    )


def _torchvision() -> Preprocess:
    steps = [
        Decode(),
        ToRGB(),
        Resize(256, "bilinear"),
        CenterCrop(224),
        ToFloat(),
        ToCHW(),
        Divide(255),
        Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
    return Preprocess(steps)


def _plain_efficientnet(data: bytes) -> np.ndarray:
    """EfficientNet-Lite0's preprocessing as its authors write it, with Pillow and NumPy and nothing of ours."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = image.size
    side = int(224 / (224 + 32) * min(height, width))
    top, left = ((height - side) + 1) // 2, ((width - side) + 1) // 2
    image = image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    x = np.asarray(image).astype(np.float32)
    return ((x - 127) / 128).transpose(2, 0, 1)


def _plain_torchvision(data: bytes) -> np.ndarray:
    """Torchvision's classification preset on a Pillow image, with Pillow and NumPy and nothing of ours."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = image.size
    short, long = min(width, height), max(width, height)
    new_long = int(256 * long / short)
    image = image.resize((256, new_long) if width <= height else (new_long, 256), Image.Resampling.BILINEAR)
    top, left = round((image.height - 224) / 2.0), round((image.width - 224) / 2.0)
    x = np.asarray(image.crop((left, top, left + 224, top + 224))).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    mean, std = (np.array(v, dtype=np.float32)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (x - mean) / std


def _files() -> list[bytes]:
    """Photos and Pillow's test images, re-encoded and as they are, landscape, portrait and odd modes."""
    rng = np.random.default_rng(5)
    files = [
        pillow_images()[name]
        for name in ("hopper.jpg", "pil_sample_cmyk.jpg", "hopper_gray.jpg", "transparent.png", "flower.webp", "hopper.gif")
    ]
    for photo in photos().values():
        for _ in range(3):
            height, width = int(rng.integers(150, photo.shape[0])), int(rng.integers(150, photo.shape[1]))
            top, left = int(rng.integers(0, photo.shape[0] - height)), int(rng.integers(0, photo.shape[1] - width))
            part = Image.fromarray(photo[top : top + height, left : left + width])
            part = part.transpose(Image.Transpose.ROTATE_90) if rng.random() < 0.5 else part
            files.append(encoded(part, "JPEG", quality=int(rng.integers(40, 96))))
    return files


def _manifest(preprocess: Preprocess) -> Manifest:
    stages = [_stage(draft) for draft in preprocess.stages()]
    return Manifest(
        name="demo",
        version=1,
        fields=preprocess.fields(),
        outputs=[Output(name="answer", dtype="float32")],
        stages=[*stages, Stage(name="model", file="model.onnx", inputs={}, outputs={"answer": "answer"})],
        decoders=preprocess.decoders(),
    )


def _stage(draft: DraftStage) -> Stage:
    graph = draft.model.graph
    return Stage(
        name=draft.name,
        file=f"{draft.name}.onnx",
        inputs={i.name: i.name for i in graph.input},
        outputs={o.name: o.name for o in graph.output},
    )


def _item_plan(preprocess: Preprocess, cache: Path, kernels: Any = "auto") -> ItemPlan:
    return compile_item_plan(
        preprocess.stages()[0].model, _manifest(preprocess), make_executor=OrtExecutor, kernels=kernels, cache_dir=cache
    )


@pytest.mark.parametrize(
    ("make", "plain"), [(_efficientnet, _plain_efficientnet), (_torchvision, _plain_torchvision)], ids=["efficientnet", "torchvision"]
)
def test_called_object_is_the_plain_training_code(make: Any, plain: Any) -> None:
    """Called on bytes or on an opened Pillow image, it returns exactly what the handwritten Pillow and NumPy code returns."""
    preprocess = make()
    for data in _files():
        expected = plain(data)
        got = preprocess(data)
        assert (got.dtype, got.shape) == (np.dtype(np.float32), (3, 224, 224))
        np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(preprocess(Image.open(io.BytesIO(data))), expected)


@pytest.mark.parametrize("kernels", ["auto", "off"])
@pytest.mark.parametrize("make", [_efficientnet, _torchvision])
def test_served_graphs_give_the_called_objects_bits(make: Any, kernels: str, tmp_path: Path) -> None:
    """Item plan and batch graph, image by image and in a batch, equal the called object at both stages."""
    preprocess = make()
    plan = _item_plan(preprocess, tmp_path, kernels)
    batch = OrtExecutor(preprocess.stages()[1].model)
    traces = []
    for data in _files():
        trace = preprocess.trace(data)
        pixels = plan({"image": data})["pixels"]
        np.testing.assert_array_equal(pixels, trace["pixels"])
        np.testing.assert_array_equal(batch.run({"pixels": pixels[np.newaxis]})[0][0], trace["input"])
        traces.append(trace)
    stacked = batch.run({"pixels": np.stack([t["pixels"] for t in traces])})[0]
    np.testing.assert_array_equal(stacked, np.stack([t["input"] for t in traces]))


@pytest.mark.parametrize("make", [_efficientnet, _torchvision])
def test_batch_graph_is_exact_on_every_level_and_in_an_independent_evaluator(make: Any) -> None:
    """All 256 levels in each channel: ONNX Runtime, onnx.reference and NumPy give the same float32 bits."""
    preprocess = make()
    levels = np.arange(224 * 224 * 3, dtype=np.int64).reshape(1, 224, 224, 3)
    pixels = ((levels // 3 + 85 * (levels % 3)) % 256).astype(np.uint8)
    assert all(len(np.unique(pixels[..., c])) == 256 for c in range(3))
    model = preprocess.stages()[1].model
    expected = preprocess.batch(pixels)
    np.testing.assert_array_equal(OrtExecutor(model).run({"pixels": pixels})[0], expected)
    (evaluated,) = ReferenceEvaluator(model).run(None, {"pixels": pixels})
    np.testing.assert_array_equal(evaluated, expected)


def test_order_of_arithmetic_is_the_stated_one() -> None:
    """Dividing first and scaling first are different functions, and each is emitted as written."""
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    before = [Decode(), ToRGB(), Resize((16, 16), "box"), ToFloat()]
    divided = Preprocess([*before, Divide(255), Normalize(0.485, 0.229)])
    multiplied = Preprocess([*before, Multiply(1 / 255), Normalize(0.485, 0.229)])
    folded = Preprocess([*before, Normalize(0.485 * 255, 0.229 * 255)])
    results = [p.batch(pixels) for p in (divided, multiplied, folded)]
    assert not np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])
    for preprocess, expected in zip((divided, multiplied, folded), results, strict=True):
        np.testing.assert_array_equal(OrtExecutor(preprocess.stages()[1].model).run({"pixels": pixels})[0], expected)


def test_per_channel_constants_meet_their_channel_in_either_layout() -> None:
    """Normalising before and after ToCHW is the same, and neither mixes channels up."""
    pixels = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    head = [Decode(), ToRGB(), Resize((8, 8), "box"), ToFloat()]
    first = Preprocess([*head, Normalize(IMAGENET_MEAN, IMAGENET_STD), ToCHW()])
    last = Preprocess([*head, ToCHW(), Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    np.testing.assert_array_equal(first.batch(pixels), last.batch(pixels))
    for preprocess in (first, last):
        np.testing.assert_array_equal(OrtExecutor(preprocess.stages()[1].model).run({"pixels": pixels})[0], preprocess.batch(pixels))


def test_channels_last_pipelines_normalise_per_channel() -> None:
    """Without ToCHW, constants per channel still meet their channel, in a batch of any size."""
    preprocess = Preprocess([Decode(), ToRGB(), Resize((5, 7), "box"), ToFloat(), Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    pixels = np.random.default_rng(1).integers(0, 256, (3, 5, 7, 3), dtype=np.uint8)
    mean, std = (np.array(v, dtype=np.float32) for v in (IMAGENET_MEAN, IMAGENET_STD))
    expected = (pixels.astype(np.float32) - mean) / std
    np.testing.assert_array_equal(preprocess.batch(pixels), expected)
    np.testing.assert_array_equal(preprocess.batch(pixels[0]), expected[0])
    np.testing.assert_array_equal(OrtExecutor(preprocess.stages()[1].model).run({"pixels": pixels})[0], expected)


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_stated_semantics_hold_on_both_sides(semantics: Any, tmp_path: Path) -> None:
    """Under any installed Pillow, a package that states a semantics trains and serves with it."""
    preprocess = Preprocess([Decode(), ToRGB(), Resize((64, 90), "bicubic", semantics)])
    picture = noisy_picture(3, 400, 100)
    expected = np.asarray(stated_resize(picture, 64, 90, "bicubic", semantics))
    data = encoded(picture, "PNG")
    np.testing.assert_array_equal(preprocess(data), expected)
    np.testing.assert_array_equal(_item_plan(preprocess, tmp_path)({"image": data})["pixels"], expected)
    np.testing.assert_array_equal(_item_plan(preprocess, tmp_path, "off")({"image": data})["pixels"], expected)


def test_semantics_default_to_the_installed_pillows_and_are_written_down() -> None:
    """Left open, the semantics are probed when the step is made, and shown."""
    step = Resize((10, 10), "bicubic")
    assert step.semantics == native_semantics()
    assert repr(native_semantics()) in repr(step)


def test_exif_orientation_is_applied_when_asked_for(tmp_path: Path) -> None:
    """Applied or ignored, training and serving agree, on bytes and on opened images."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(noisy_picture(9, 40, 70), "JPEG", exif=exif)
    opened = Image.open(io.BytesIO(data)).convert("RGB")
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    for rule, image in (("ignore", opened), ("apply", turned)):
        preprocess = Preprocess([Decode(exif_orientation=rule), ToRGB(), CenterCrop((30, 40), rounding="floor")])  # type: ignore[arg-type]
        left, top = (image.width - 40) // 2, (image.height - 30) // 2
        expected = np.asarray(image.crop((left, top, left + 40, top + 30)))
        np.testing.assert_array_equal(preprocess(data), expected)
        np.testing.assert_array_equal(preprocess(Image.open(io.BytesIO(data))), expected)
        np.testing.assert_array_equal(_item_plan(preprocess, tmp_path)({"image": data})["pixels"], expected)


def test_pipeline_without_arithmetic_has_one_stage(tmp_path: Path) -> None:
    """A model that takes uint8 pixels needs no batch stage; the item's output is the result."""
    preprocess = Preprocess([Decode(), ToRGB(), Resize((20, 30), "bilinear")], pixels="tile")
    (stage,) = preprocess.stages("photo")
    assert stage.name == "preprocess.item"
    assert [(i.name, o.name) for i, o in zip(stage.model.graph.input, stage.model.graph.output, strict=True)] == [("photo", "tile")]
    assert preprocess.output == "tile"
    data = encoded(noisy_picture(1, 50, 50), "PNG")
    assert list(preprocess.trace(data)) == ["tile"]
    assert preprocess(data).dtype == np.uint8
    assert preprocess.output_shape == [20, 30, 3]


def test_graphs_are_valid_readable_and_deterministic() -> None:
    """Both graphs pass the checker, use only standard operators and functions they carry, and are the same bytes every time."""
    for first, again in zip(_torchvision().stages(), _torchvision().stages(), strict=True):
        onnx.checker.check_model(first.model, full_check=True)
        assert first.model.SerializeToString(deterministic=True) == again.model.SerializeToString(deterministic=True)
    item, batch = _torchvision().stages()
    semantics = native_semantics()
    assert semantics is not None
    resize = resize_function("bilinear", semantics, shorter_side=True)
    assert [n.op_type for n in item.model.graph.node] == ["ImageDecoder", "ToRGB", resize, "CenterCrop_half_even"]
    assert [n.op_type for n in batch.model.graph.node if n.op_type != "Constant"] == ["Transpose", "Cast", "Div", "Sub", "Div"]
    carried = {f.name for f in item.model.functions}
    assert {n.op_type for n in item.model.graph.node if n.domain == "samegraph"} <= carried
    assert len(item.model.SerializeToString()) < 30_000


def test_fields_and_decoders_describe_the_input() -> None:
    """One image field with limits, one decoder with the library that is installed."""
    preprocess = Preprocess([Decode(formats=["PNG"]), ToRGB(), CenterCrop(8)])
    (field,) = preprocess.fields("photo", max_pixels=10)
    assert (field.name, field.kind, field.required, field.max_pixels) == ("photo", "image", True, 10)
    assert "PNG" in field.description
    (decoder,) = preprocess.decoders()
    assert (decoder.node, decoder.formats) == (preprocess.stages()[0].model.graph.node[0].name, ["PNG"])


def test_bad_images_are_input_errors_when_training_too() -> None:
    """The object refuses what the server refuses."""
    preprocess = _efficientnet()
    for data, code in ((b"no image", "undecodable"), (pillow_images()["truncated_jpeg.jpg"], "truncated"), (b"GIF89a", "truncated")):
        with pytest.raises(InputError) as caught:
            preprocess(data)
        assert caught.value.code == code
    with pytest.raises(InputError, match="too small"):
        preprocess(Image.new("RGB", (1, 1)))
    with pytest.raises(InputError, match="'F'"):
        preprocess(Image.new("F", (9, 9)))


def test_pillow_images_of_the_caller_are_left_alone() -> None:
    """A Pillow image handed over is neither converted in place nor closed."""
    image = noisy_picture(1, 300, 300).quantize(9)
    image.info["transparency"] = bytes(range(9))
    before = image.tobytes()
    _efficientnet()(image)
    assert (image.mode, image.tobytes(), "transparency" in image.info) == ("P", before, True)


TAIL = [ToFloat(), Normalize(127, 128), ToCHW()]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Preprocess([]), "starts with Decode"),
        (lambda: Preprocess([ToRGB()]), "starts with Decode"),
        (lambda: Preprocess([Decode(), ToRGB(), ToFloat(), Resize((8, 8), "box")]), "steps on the image"),
        (lambda: Preprocess([Decode(), Decode(), ToRGB()]), "comes first and once"),
        (lambda: Preprocess([Decode(), Resize((8, 8), "box")]), "after ToRGB"),
        (lambda: Preprocess([Decode(), ToRGB(), Resize(8, "box"), *TAIL]), "depends on the image"),
        (lambda: Preprocess([Decode(), ToRGB(), CenterCrop(fraction=0.5), *TAIL]), "depends on the image"),
        (lambda: Preprocess([Decode(), CenterCrop(8)]), "use ToRGB"),
        (lambda: Preprocess([Decode(), ToRGB(), CenterCrop(8), Normalize(1, 2)]), "ToFloat"),
        (lambda: Preprocess([Decode(), ToRGB(), CenterCrop(8), ToFloat(), ToFloat()]), "ToFloat comes once"),
        (lambda: Preprocess([Decode(), ToRGB(), CenterCrop(8), ToCHW(), ToCHW()]), "ToCHW comes once"),
        (lambda: Preprocess([Decode(), ToRGB(), CenterCrop(8), ToFloat(), Normalize((1, 2), 3)]), "one per channel"),
        (CenterCrop, "either size or fraction"),
        (lambda: CenterCrop(8, fraction=0.5), "either size or fraction"),
        (lambda: CenterCrop(fraction=1.5), "at most 1"),
        (lambda: CenterCrop(0), "from 1 to 65,535"),
        (lambda: CenterCrop(8, rounding="up"), "floor, ceil, half_even"),  # type: ignore[arg-type]
        (lambda: Resize((8, 0), "box"), "from 1 to 65,535"),
        (lambda: Resize((8, 8), "gauss"), "bilinear, bicubic, box"),  # type: ignore[arg-type]
        (lambda: Resize((8, 8), "box", "pillow 12"), "pillow<13, pillow>=13"),  # type: ignore[arg-type]
        (lambda: Normalize(0, (1, 0, 1)), "must not be zero"),
        (lambda: Divide(0), "divide by zero"),
        (lambda: Preprocess([Decode(formats=["PCX"]), ToRGB(), CenterCrop(8)]), "PCX"),
    ],
)
def test_pipelines_that_cannot_be_are_refused_with_advice(make: Any, says: str) -> None:
    """Every wrong order, size and choice is refused when it is written, with what to do."""
    with pytest.raises(AuthoringError, match=says):
        make()


def test_square_crop_then_shorter_side_has_a_fixed_size() -> None:
    """A fraction crop is square, so a resize of the shorter side decides both sides."""
    preprocess = Preprocess([Decode(), ToRGB(), CenterCrop(fraction=0.9), Resize(32, "bilinear"), *TAIL])
    assert preprocess.output_shape == [3, 32, 32]
    assert preprocess(encoded(noisy_picture(2, 47, 91), "PNG")).shape == (3, 32, 32)
