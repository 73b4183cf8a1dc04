"""The compiled item stage: the right engine for every node, the graph's answer from all of them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from image_oracle import stated_resize
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from PIL import Image
from pillow_images import encoded, noisy_picture
from samegraph_transforms.decode import pillow_decoder
from samegraph_transforms.errors import EnvironmentUnfit, InputError, ManifestInvalid
from samegraph_transforms.executor import OrtExecutor
from samegraph_transforms.functions import called_functions, library, resize_function
from samegraph_transforms.itemplan import ItemPlan, compile_item_plan, describe
from samegraph_transforms.manifest import Decoder, Manifest, Output, RawField, Stage
from samegraph_transforms.opsets import DOMAIN, IR_VERSION, opset_imports

IMAGE = RawField(name="photo", kind="image", max_pixels=1_000_000)
RESIZE = resize_function("bicubic", "pillow>=13")
UINT8, INT64, DOUBLE, STRING, BOOL = TensorProto.UINT8, TensorProto.INT64, TensorProto.DOUBLE, TensorProto.STRING, TensorProto.BOOL
Kernels = Literal["auto", "off"]
BOTH = pytest.mark.parametrize("kernels", ["auto", "off"])


def _decode_node(name: str = "decode", source: str = "photo", target: str = "decoded", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("ImageDecoder", [source], [target], name=name, **attributes)


def _ours(function: str, source: str, target: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(function, [source], [target], name=f"{function}_node", domain=DOMAIN, **attributes)


def _model(
    nodes: Sequence[onnx.NodeProto], inputs: Sequence[tuple[str, int, list[Any]]], outputs: Sequence[tuple[str, int, list[Any]]]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes), "item", [helper.make_tensor_value_info(*i) for i in inputs], [helper.make_tensor_value_info(*o) for o in outputs]
    )
    return helper.make_model(graph, functions=library(called_functions(nodes)), opset_imports=opset_imports(), ir_version=IR_VERSION)


def _manifest(
    model: onnx.ModelProto,
    fields: Sequence[RawField] = (IMAGE,),
    decoders: Sequence[Decoder] | None = None,
    rename: dict[str, str] | None = None,
) -> Manifest:
    rename = rename or {}
    item = Stage(
        name="preprocess.item",
        file="preprocess.item.onnx",
        inputs={i.name: rename.get(i.name, i.name) for i in model.graph.input},
        outputs={o.name: rename.get(o.name, o.name) for o in model.graph.output},
    )
    return Manifest(
        name="demo",
        version=1,
        fields=list(fields),
        outputs=[Output(name="answer", dtype="float32")],
        stages=[item, Stage(name="model", file="model.onnx", inputs={}, outputs={"answer": "answer"})],
        decoders=[pillow_decoder("decode")] if decoders is None else list(decoders),
    )


def _plan(model: onnx.ModelProto, tmp_path: Path, kernels: Kernels = "auto", **options: Any) -> ItemPlan:
    return compile_item_plan(model, _manifest(model, **options), make_executor=OrtExecutor, kernels=kernels, cache_dir=tmp_path)


def _pipeline() -> onnx.ModelProto:
    """Decode, colour, crop and resize: the item stage of an ordinary image model."""
    nodes = [
        _decode_node(),
        _ours("ToRGB", "decoded", "rgb"),
        _ours("CenterCropFraction_ceil", "rgb", "cropped", fraction=numpy_helper.from_array(np.array([0.875]))),
        _ours(RESIZE, "cropped", "pixels", size=[32, 32]),
    ]
    return _model(nodes, [("photo", UINT8, ["k"])], [("pixels", UINT8, [32, 32, 3])])


def _expected(picture: Image.Image) -> np.ndarray:
    side = int(0.875 * min(picture.size))
    left, top = (picture.width - side + 1) // 2, (picture.height - side + 1) // 2
    return np.asarray(stated_resize(picture.crop((left, top, left + side, top + side)), 32, 32, "bicubic", "pillow>=13"))


@BOTH
def test_plan_gives_the_training_codes_pixels(kernels: Kernels, tmp_path: Path) -> None:
    """Forty pictures of many sizes and formats, through kernels and through ONNX alone."""
    plan = _plan(_pipeline(), tmp_path, kernels)
    rng = np.random.default_rng(1)
    for seed in range(40):
        picture = noisy_picture(seed, int(rng.integers(3, 200)), int(rng.integers(3, 200)))
        for format_ in ("PNG", "BMP"):
            got = plan({"photo": encoded(picture, format_)})
            assert list(got) == ["pixels"]
            np.testing.assert_array_equal(got["pixels"], _expected(picture))


def test_steps_say_what_runs_where(tmp_path: Path) -> None:
    """With kernels every node is the host's and says why it may be; without, ONNX Runtime runs one session."""
    auto, off = _plan(_pipeline(), tmp_path).steps, _plan(_pipeline(), tmp_path, "off").steps
    assert [s.engine for s in auto] == ["host", "kernel", "kernel", "kernel"]
    assert [s.nodes for s in auto] == [("decode",), ("ToRGB_node",), ("CenterCropFraction_ceil_node",), (f"{RESIZE}_node",)]
    assert all("48 of 48" in s.note for s in auto[1:])
    assert auto[0].library.startswith("Pillow ")
    assert "trained with Pillow" in auto[0].note
    assert [(s.engine, len(s.nodes)) for s in off] == [("host", 1), ("onnx", 3)]
    assert off[1].library.startswith("ONNX Runtime ")
    assert describe(off).count("\n") == 1
    assert "kernel" in describe(auto)


def test_result_is_contiguous_and_owned_by_no_one_else(tmp_path: Path) -> None:
    """Two calls never share memory, and arrays can be stacked and sent as they are."""
    plan = _plan(_pipeline(), tmp_path)
    data = encoded(noisy_picture(1, 50, 60), "PNG")
    first, second = plan({"photo": data})["pixels"], plan({"photo": data})["pixels"]
    assert first.flags.c_contiguous
    assert first.dtype == np.uint8
    assert not np.shares_memory(first, second)


def _classifier(also: Sequence[tuple[str, int, list[Any]]] = (), shorter: int = 32) -> onnx.ModelProto:
    """Resize the shorter side and keep the middle: torchvision's order."""
    nodes = [
        _decode_node(),
        _ours("ToRGB", "decoded", "rgb"),
        _ours(resize_function("bilinear", "pillow<13", shorter_side=True), "rgb", "resized", size=shorter),
        _ours("CenterCrop_half_even", "resized", "pixels", size=[28, 28]),
    ]
    return _model(nodes, [("photo", UINT8, ["k"])], [("pixels", UINT8, [28, 28, 3]), *also])


@BOTH
@pytest.mark.parametrize("read_twice", [False, True])
def test_resize_and_its_crop_are_one_step_where_nothing_else_reads_between(kernels: Kernels, read_twice: bool, tmp_path: Path) -> None:
    """One kernel for both where only the crop reads the resized image, two where it is an output too; the same pixels from all ways."""
    plan = _plan(_classifier([("resized", UINT8, ["h", "w", 3])] if read_twice else ()), tmp_path, kernels)
    if kernels == "auto":
        assert [len(s.nodes) for s in plan.steps] == ([1, 1, 1, 1] if read_twice else [1, 1, 2])
        assert {s.engine for s in plan.steps[1:]} == {"kernel"}
        assert all("48 of 48" in s.note for s in plan.steps[1:])
    rng = np.random.default_rng(6)
    for seed in range(30):
        picture = noisy_picture(seed, int(rng.integers(3, 120)), int(rng.integers(3, 120)))
        short = min(picture.size)
        height, width = int(picture.height * 32 / short), int(picture.width * 32 / short)
        top, left = round((height - 28) / 2), round((width - 28) / 2)
        resized = stated_resize(picture, height, width, "bilinear", "pillow<13")
        got = plan({"photo": encoded(picture, "PNG")})
        np.testing.assert_array_equal(got["pixels"], np.asarray(resized.crop((left, top, left + 28, top + 28))))
        if read_twice:
            np.testing.assert_array_equal(got["resized"], np.asarray(resized))


@BOTH
def test_image_too_narrow_to_enlarge_is_refused(kernels: Kernels, tmp_path: Path) -> None:
    """A 200-byte file whose shorter side would be resized to gigapixels is refused at once, and names the field."""
    plan = _plan(_classifier(shorter=64), tmp_path, kernels)
    data = encoded(Image.new("RGB", (1, 65_000)), "PNG")
    assert len(data) < 2_000
    with pytest.raises(InputError, match=r"field 'photo': the image would be resized to 64 × 4,160,000") as caught:
        plan({"photo": data})
    assert (caught.value.code, caught.value.field) == ("too_many_pixels", "photo")
    assert plan({"photo": encoded(Image.new("RGB", (40, 2_000)), "PNG")})["pixels"].shape == (28, 28, 3)


def _mixed() -> onnx.ModelProto:
    """Host nodes between ONNX nodes: a threshold on decoded pixels, a crop that a kernel can do, scalars on the side."""
    nodes = [
        _decode_node(),
        helper.make_node("Constant", [], ["white"], value=numpy_helper.from_array(np.array(255, np.uint8))),
        helper.make_node("Sub", ["white", "decoded"], ["negative"], name="negative"),
        _ours("CenterCrop_floor", "negative", "cropped", size=[10, 12]),
        helper.make_node("ReduceMax", ["cropped"], ["brightest"], name="brightest", keepdims=0),
        helper.make_node("Mul", ["weight", "weight"], ["squared"], name="squared"),
        helper.make_node("Not", ["weight__missing"], ["known"], name="known"),
        helper.make_node("Identity", ["label"], ["same_label"], name="same_label"),
    ]
    inputs: list[tuple[str, int, list[Any]]] = [
        ("photo", UINT8, ["k"]),
        ("weight", DOUBLE, [1]),
        ("weight__missing", BOOL, [1]),
        ("label", STRING, [1]),
    ]
    outputs: list[tuple[str, int, list[Any]]] = [
        ("cropped", UINT8, [10, 12, 3]),
        ("brightest", UINT8, []),
        ("squared", DOUBLE, [1]),
        ("known", BOOL, [1]),
        ("same_label", STRING, [1]),
    ]
    return _model(nodes, inputs, outputs)


@BOTH
def test_host_and_onnx_steps_alternate(kernels: Kernels, tmp_path: Path) -> None:
    """Values flow between engines; scalars, booleans and strings arrive as arrays of one."""
    fields = [IMAGE, RawField(name="weight", kind="number", missing={"rule": "companion"}), RawField(name="label", kind="string")]  # type: ignore[arg-type]
    plan = _plan(_mixed(), tmp_path, kernels, fields=fields)
    picture = noisy_picture(4, 30, 25)
    values = {"photo": encoded(picture, "PNG"), "weight": 1.5, "weight__missing": False, "label": "é x"}
    got = plan(values)
    negative = 255 - np.asarray(picture)
    np.testing.assert_array_equal(got["cropped"], negative[10:20, 6:18])
    assert got["brightest"] == negative[10:20, 6:18].max()
    assert got["squared"].tolist() == [2.25]
    assert got["known"].tolist() == [True]
    assert got["same_label"].tolist() == ["é x"]
    engines = [s.engine for s in plan.steps]
    assert engines == (["host", "onnx", "kernel", "onnx"] if kernels == "auto" else ["host", "onnx"])
    assert set(plan.inputs) == set(values)


def test_names_are_bound_as_the_manifest_says(tmp_path: Path) -> None:
    """Graph inputs read the field they are bound to, outputs carry their value's name."""
    model = _pipeline()
    model.graph.input[0].name = "raw"
    model.graph.node[0].input[0] = "raw"
    plan = _plan(model, tmp_path, rename={"raw": "photo", "pixels": "tile"})
    assert (plan.inputs, plan.outputs) == (("photo",), ("tile",))
    picture = noisy_picture(2, 40, 40)
    np.testing.assert_array_equal(plan({"photo": encoded(picture, "PNG")})["tile"], _expected(picture))


def test_nodes_no_output_needs_are_left_out(tmp_path: Path) -> None:
    """A second decoder whose result nobody reads costs nothing and needs no entry in the manifest."""
    model = _pipeline()
    model.graph.node.append(_decode_node("unused", target="elsewhere"))
    assert [s.nodes for s in _plan(model, tmp_path).steps if s.engine == "host"] == [("decode",)]


def test_two_images_are_decoded_by_their_own_rules(tmp_path: Path) -> None:
    """Every ImageDecoder node has its decoder, its field and its limits."""
    nodes = [
        _decode_node("first", "a", "a_decoded"),
        _decode_node("second", "b", "b_decoded"),
        helper.make_node("Concat", ["a_decoded", "b_decoded"], ["both"], axis=1, name="join"),
    ]
    model = _model(nodes, [("a", UINT8, ["k"]), ("b", UINT8, ["l"])], [("both", UINT8, ["h", "w", 3])])
    fields = [RawField(name="a", kind="image", max_pixels=100), RawField(name="b", kind="image", max_pixels=10_000)]
    decoders = [pillow_decoder("first"), pillow_decoder("second", formats=["PNG"])]
    plan = _plan(model, tmp_path, fields=fields, decoders=decoders)
    small, large = noisy_picture(1, 10, 10), noisy_picture(2, 10, 40)
    got = plan({"a": encoded(small, "BMP"), "b": encoded(large, "PNG")})["both"]
    np.testing.assert_array_equal(got, np.concatenate([np.asarray(small), np.asarray(large)], axis=1))
    for values, code, field in (
        ({"a": encoded(large, "BMP"), "b": encoded(large, "PNG")}, "too_many_pixels", "a"),
        ({"a": encoded(small, "BMP"), "b": encoded(large, "BMP")}, "unsupported_format", "b"),
    ):
        with pytest.raises(InputError) as caught:
            plan(values)
        assert (caught.value.code, caught.value.field) == (code, field)


def test_control_flow_captures_values_from_outside(tmp_path: Path) -> None:
    """An If whose branches read outer values and constants is cut out with all it needs."""
    then = helper.make_graph(
        [helper.make_node("Sub", ["limit", "decoded"], ["t"])], "then", [], [helper.make_tensor_value_info("t", UINT8, None)]
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["decoded"], ["e"])], "other", [], [helper.make_tensor_value_info("e", UINT8, None)]
    )
    nodes = [
        _decode_node(),
        helper.make_node("Constant", [], ["limit"], value=numpy_helper.from_array(np.array(255, np.uint8))),
        helper.make_node("Squeeze", ["invert"], ["flag"], name="flag"),
        helper.make_node("If", ["flag"], ["pixels"], name="maybe", then_branch=then, else_branch=other),
    ]
    model = _model(nodes, [("photo", UINT8, ["k"]), ("invert", BOOL, [1])], [("pixels", UINT8, ["h", "w", 3])])
    plan = _plan(model, tmp_path, fields=[IMAGE, RawField(name="invert", kind="boolean")])
    picture = noisy_picture(3, 9, 11)
    data = encoded(picture, "PNG")
    np.testing.assert_array_equal(plan({"photo": data, "invert": False})["pixels"], np.asarray(picture))
    np.testing.assert_array_equal(plan({"photo": data, "invert": True})["pixels"], 255 - np.asarray(picture))


def test_encoded_bytes_can_feed_onnx_nodes(tmp_path: Path) -> None:
    """A byte string without a decoder arrives as uint8 [k]."""
    model = _model([helper.make_node("Shape", ["blob"], ["length"], name="length")], [("blob", UINT8, ["k"])], [("length", INT64, [1])])
    plan = _plan(model, tmp_path, fields=[RawField(name="blob", kind="bytes")], decoders=[])
    assert plan({"blob": b"12345"})["length"].tolist() == [5]


def test_function_with_another_body_is_run_as_onnx(tmp_path: Path) -> None:
    """A package is never given a kernel for a body that does something else, whatever its name; the step says so."""
    model = _pipeline()
    to_rgb = next(f for f in model.functions if f.name == "ToRGB")
    invert = onnx.parser.parse_function(
        '<domain: "samegraph", opset_import: ["" : 21]> ToRGB (X) => (Y) { w = Constant <value = uint8 {255}> () Y = Sub (w, X) }'
    )
    to_rgb.CopyFrom(invert)
    plan = _plan(model, tmp_path)
    assert [s.engine for s in plan.steps] == ["host", "onnx", "kernel", "kernel"]
    assert "no host kernel, case 0" in plan.steps[1].note
    picture = noisy_picture(1, 40, 50)
    inverted = Image.fromarray(255 - np.asarray(picture))
    np.testing.assert_array_equal(plan({"photo": encoded(picture, "PNG")})["pixels"], _expected(inverted))


def test_graph_means_the_same_to_an_independent_evaluator(tmp_path: Path) -> None:
    """From decoded pixels on, onnx.reference running the package's graph gives the plan's pixels."""
    model = _pipeline()
    rest = onnx.ModelProto()
    rest.CopyFrom(model)
    del rest.graph.node[0]
    rest.graph.input[0].CopyFrom(helper.make_tensor_value_info("decoded", UINT8, ["h", "w", "c"]))
    picture = noisy_picture(6, 45, 61)
    (expected,) = ReferenceEvaluator(rest).run(None, {"decoded": np.asarray(picture)})
    np.testing.assert_array_equal(_plan(model, tmp_path)({"photo": encoded(picture, "PNG")})["pixels"], expected)


@BOTH
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"not an image", "undecodable"),
        (encoded(noisy_picture(1, 64, 64), "JPEG")[:900], "truncated"),
        (encoded(Image.new("RGB", (1001, 1000)), "PNG"), "too_many_pixels"),
        (b"II*\x00", "unsupported_format"),
        (encoded(Image.new("RGB", (1, 1)), "PNG"), "wrong_shape"),
        (None, "missing_field"),
    ],
    ids=["text", "truncated", "too_large", "tiff", "one_pixel", "null"],
)
def test_refusals_name_the_field(kernels: Kernels, data: bytes | None, code: str, tmp_path: Path) -> None:
    """Whatever is wrong with the image, and whichever step notices, the error names the field."""
    plan = _plan(_pipeline(), tmp_path, kernels)
    with pytest.raises(InputError) as caught:
        plan({"photo": data})
    assert (caught.value.code, caught.value.field) == (code, "photo")
    assert "'photo'" in str(caught.value)


def test_missing_value_is_named(tmp_path: Path) -> None:
    """A value that was not handed over at all is named too."""
    with pytest.raises(InputError, match="'photo'") as caught:
        _plan(_pipeline(), tmp_path)({})
    assert caught.value.code == "missing_field"


def test_failure_inside_onnx_is_laid_at_the_fields_door(tmp_path: Path) -> None:
    """An instance that makes a graph fail is an InputError for that field, so its neighbours are safe."""
    nodes = [helper.make_node("Gather", ["table", "index"], ["found"], name="look_up")]
    graph = helper.make_graph(
        nodes,
        "item",
        [helper.make_tensor_value_info("index", INT64, [1])],
        [helper.make_tensor_value_info("found", DOUBLE, [1])],
        [numpy_helper.from_array(np.array([1.0, 2.0]), "table")],
    )
    model = helper.make_model(graph, opset_imports=opset_imports(), ir_version=IR_VERSION)
    plan = _plan(model, tmp_path, fields=[RawField(name="index", kind="integer")], decoders=[])
    assert plan({"index": 1})["found"].tolist() == [2.0]
    with pytest.raises(InputError, match="'index'") as caught:
        plan({"index": 7})
    assert (caught.value.code, caught.value.field) == ("execution_failed", "index")


def _without_item(manifest: Manifest) -> Manifest:
    return manifest.model_copy(update={"stages": manifest.stages[1:]})


def test_packages_that_do_not_fit_are_refused_when_loaded(tmp_path: Path) -> None:
    """Missing decoders, decoders fed by something else, unsupported pixel formats and constant outputs are found before any request."""
    model = _pipeline()
    with pytest.raises(ManifestInvalid, match="no decoder for node 'decode'"):
        _plan(model, tmp_path, decoders=[])
    with pytest.raises(ManifestInvalid, match="must read an image field"):
        _plan(model, tmp_path, fields=[RawField(name="photo", kind="bytes")])
    with pytest.raises(EnvironmentUnfit, match="PCX"):
        _plan(model, tmp_path, decoders=[pillow_decoder("decode").model_copy(update={"formats": ["PCX"]})])
    with pytest.raises(ManifestInvalid, match=r"no preprocess\.item stage"):
        compile_item_plan(model, _without_item(_manifest(model)), make_executor=OrtExecutor, cache_dir=tmp_path)
    grey = _model([_decode_node(pixel_format="Grayscale")], [("photo", UINT8, ["k"])], [("decoded", UINT8, ["h", "w", "c"])])
    with pytest.raises(ManifestInvalid, match="pixel_format"):
        _plan(grey, tmp_path)
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array([1.0])))
    with pytest.raises(ManifestInvalid, match="is a constant"):
        _plan(_model([constant], [("photo", UINT8, ["k"])], [("c", DOUBLE, [1])]), tmp_path)
    dangling = _model([helper.make_node("Add", ["nowhere", "nowhere"], ["c"], name="add")], [("photo", UINT8, ["k"])], [("c", DOUBLE, [1])])
    with pytest.raises(ManifestInvalid, match="'add' reads a value nothing makes"):
        _plan(dangling, tmp_path)


@BOTH
def test_many_threads_share_one_plan(kernels: Kernels, tmp_path: Path) -> None:
    """Good, broken and differently sized images at once: every caller gets his own answer."""
    plan = _plan(_pipeline(), tmp_path, kernels)
    pictures = [noisy_picture(seed, 20 + 7 * seed, 90 - 5 * seed) for seed in range(8)]
    files = [encoded(p, "PNG") for p in pictures]
    answers = [_expected(p) for p in pictures]
    gate = threading.Barrier(4)

    def work(worker: int) -> int:
        gate.wait(timeout=30)
        right = 0
        for i in range(40):
            k = (worker * 3 + i) % len(files)
            right += np.array_equal(plan({"photo": files[k]})["pixels"], answers[k])
            with pytest.raises(InputError, match="cut off"):
                plan({"photo": files[k][:-40]})
        return right

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [40] * 4
