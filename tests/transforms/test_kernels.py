"""Host kernels: equal to the ONNX bodies, and used only where a battery has shown it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_oracle import c_weights, call_model, content, stated_array, stated_resize
from onnx import helper, numpy_helper
from PIL import Image
from pillow_images import photos
from samegraph_transforms import kernels
from samegraph_transforms.errors import ExecutionError, InputError
from samegraph_transforms.executor import OrtExecutor
from samegraph_transforms.functions import FILTERS, ROUNDINGS, SEMANTICS, FilterName, Semantics, library, resize_function
from samegraph_transforms.kernels import (
    BATTERY_CASES,
    Pixels,
    Proof,
    battery_images,
    default_cache_dir,
    host_kernel,
    native_semantics,
    prove,
    resize_image,
    resize_window,
)
from samegraph_transforms.opsets import DOMAIN


def _call(function: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(function, ["a"], ["b"], name="node", domain=DOMAIN, **attributes)


def _fraction(value: float) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array([value], dtype=np.float64))


CALLS = [
    _call("ToRGB"),
    *[_call(f"CenterCrop_{r}", size=[40, 31]) for r in ROUNDINGS],
    *[_call(f"CenterCropFraction_{r}", fraction=_fraction(0.875)) for r in ROUNDINGS],
    *[_call(resize_function(f, s), size=[57, 64]) for f in FILTERS for s in SEMANTICS],
    *[_call(resize_function(f, s, shorter_side=True), size=48) for f in FILTERS for s in SEMANTICS],
]


@pytest.mark.parametrize("node", CALLS, ids=lambda n: str(n.op_type))
def test_every_kernel_passes_its_battery(node: onnx.NodeProto, tmp_path: Path) -> None:
    """On this machine each kernel equals its ONNX body on every case, in well under a second."""
    started = time.perf_counter()
    proof = prove(node, library([node.op_type]), OrtExecutor, cache_dir=tmp_path)
    assert (proof.equal, proof.detail, proof.cases, proof.function) == (True, "", BATTERY_CASES, node.op_type)
    assert time.perf_counter() - started < 5.0


@pytest.mark.parametrize("node", CALLS, ids=lambda n: str(n.op_type))
def test_kernel_equals_the_body_beyond_the_battery(node: onnx.NodeProto) -> None:
    """On other images than the battery's, from arrays and from Pillow images, kernel and body agree."""
    kernel = host_kernel(node)
    assert kernel is not None
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    body = OrtExecutor(call_model(node.op_type, **attributes))
    rng = np.random.default_rng(99)
    for _ in range(25):
        array = content(rng, int(rng.integers(4, 150)), int(rng.integers(4, 150)), 3)
        expected = body.run({"X": array})[0]
        np.testing.assert_array_equal(kernel(Pixels(array=array)).array(), expected)
        np.testing.assert_array_equal(kernel(Pixels(image=Image.fromarray(array))).array(), expected)


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("filter_", FILTERS)
def test_either_semantics_can_be_had_from_the_installed_pillow(filter_: FilterName, semantics: Semantics) -> None:
    """resize_image gives the stated order's pixels, whichever order the installed Pillow takes by itself."""
    rng = np.random.default_rng(8)
    for case in range(60):
        height, width, out_height, out_width = (int(v) for v in rng.integers(1, 160, 4))
        height = 220 if case % 2 else height
        image = Image.fromarray(content(rng, height, width, 3))
        got = resize_image(image, (out_height, out_width), filter_, semantics)
        assert got.tobytes() == stated_resize(image, out_height, out_width, filter_, semantics).tobytes()


def test_native_order_is_probed_by_behaviour(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Pillow that resizes in an order of its own is recognised as unknown, and the kernel still gives the stated one."""
    assert native_semantics() in SEMANTICS
    original = Image.Image.resize

    def strange(self: Image.Image, size: tuple[int, int], resample: int | None = None, **options: Any) -> Image.Image:
        one_axis = size[0] == self.width or size[1] == self.height
        resized = original(self, size, resample, **options)
        return resized if one_axis else resized.point(lambda level: 255 - level)

    monkeypatch.setattr(Image.Image, "resize", strange)
    native_semantics.cache_clear()
    try:
        assert native_semantics() is None
        image = Image.fromarray(content(np.random.default_rng(1), 90, 20, 3))
        for semantics in SEMANTICS:
            got = resize_image(image, (20, 18), "bicubic", semantics)
            assert got.tobytes() == stated_resize(image, 20, 18, "bicubic", semantics).tobytes()
    finally:
        native_semantics.cache_clear()


SIDE = st.one_of(st.integers(1, 9), st.integers(1, 130), st.sampled_from([16, 32, 48, 64, 96, 128]))


@st.composite
def _windows(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int]]:
    """Sizes before and after a resize (an axis kept now and then) and a part of the result: a pixel, a line, most or all of it."""
    height, width = draw(SIDE), draw(SIDE)
    to_height, to_width = draw(st.one_of(SIDE, st.just(height))), draw(st.one_of(SIDE, st.just(width)))
    top, left = draw(st.integers(0, to_height - 1)), draw(st.integers(0, to_width - 1))
    return (height, width), (to_height, to_width), (top, left, draw(st.integers(top + 1, to_height)), draw(st.integers(left + 1, to_width)))


@settings(max_examples=1_000, deadline=None)
@given(
    case=_windows(), choice=st.sampled_from([(f, s) for f in FILTERS for s in SEMANTICS]), grey=st.booleans(), seed=st.integers(0, 2**32)
)
def test_any_window_of_a_resize_has_pillows_bits(
    case: tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int]], choice: tuple[FilterName, Semantics], grey: bool, seed: int
) -> None:
    """Hypothesis looks for sizes, a window and a content for which resizing less than everything differs from resizing everything."""
    (height, width), size, (top, left, bottom, right) = case
    array = content(np.random.default_rng(seed), height, width, 3)
    image = Image.fromarray(array[:, :, 0] if grey else array)
    expected = stated_resize(image, size[0], size[1], *choice).crop((left, top, right, bottom))
    got = resize_window(image, size, (top, left, bottom, right), *choice)
    assert (got.mode, got.size, got.tobytes()) == (expected.mode, expected.size, expected.tobytes())


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("filter_", FILTERS)
def test_windows_of_photos_have_pillows_bits(filter_: FilterName, semantics: Semantics) -> None:
    """The usual resize and centre crop of real photos, landscape, portrait, tall enough for the other order, and enlarged."""
    for name, photo in photos().items():
        for array in (photo, photo.transpose(1, 0, 2), photo[:, :130], photo[:60, :90]):
            image = Image.fromarray(np.ascontiguousarray(array))
            for shorter, side in ((256, 224), (232, 224), (96, 96), (518, 518)):
                height, width = kernels.shorter_side_size((image.height, image.width), shorter)
                window = kernels.center_window((height, width), (side, side), "half_even")
                expected = stated_resize(image, height, width, filter_, semantics).crop((window[1], window[0], window[3], window[2]))
                got = resize_window(image, (height, width), window, filter_, semantics)
                assert got.tobytes() == expected.tobytes(), f"{name} {image.size} to {shorter}, crop {side}"


def test_windows_of_large_photos_have_pillows_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the bound of what is worth copying, the first pass is made on all lines, to the same result."""
    monkeypatch.setattr(kernels, "_MOST_COPIED", 1_000)
    for name, photo in photos().items():
        for size in ((256, 383), (341, 256), (170, 700)):
            image = Image.fromarray(photo)
            expected = stated_resize(image, *size, "bicubic", "pillow>=13").crop((20, 30, 200, 160))
            assert resize_window(image, size, (30, 20, 160, 200), "bicubic", "pillow>=13").tobytes() == expected.tobytes(), name


def test_boxes_are_used_only_where_their_weights_are_the_whole_axis_weights() -> None:
    """Pillow's C arithmetic, with its float32 box, gives the same integer weights; and of 3,000 axes a good part qualifies."""
    rng = np.random.default_rng(8)
    weighted = [name for name in FILTERS if name != "nearest"]
    used = 0
    for case in range(3_000):
        n_in, n_out = int(rng.integers(1, 700)), int(rng.choice([16, 48, 224, 256, 384, int(rng.integers(1, 400))]))
        start = int(rng.integers(0, n_out))
        stop = int(rng.integers(start + 1, n_out + 1))
        edges = kernels._edges(n_in, n_out, start, stop)
        if edges is not None and n_in != n_out:
            used += 1
            filter_ = weighted[case % len(weighted)]
            assert c_weights(n_in, stop - start, filter_, edges) == c_weights(n_in, n_out, filter_)[start:stop], (n_in, n_out, start, stop)
    assert used > 500


def test_long_narrow_images_are_not_blown_up() -> None:
    """A shorter side of 256 would make gigabytes of a few hundred bytes: refused, whole or cropped, before anything is allocated."""
    call = _call(resize_function("bilinear", "pillow>=13", shorter_side=True), size=256)
    crop = _call("CenterCrop_half_even", size=[224, 224])
    for kernel in (host_kernel(call), host_kernel(call, crop)):
        assert kernel is not None
        with pytest.raises(InputError, match="256 × 15,360,000 = ") as caught:
            kernel(Pixels(array=np.zeros((60_000, 1, 3), np.uint8)))
        assert caught.value.code == "too_many_pixels"


PAIRS = [
    (_call(resize_function("bilinear", "pillow>=13", shorter_side=True), size=48), _call("CenterCrop_half_even", size=[40, 40])),
    (_call(resize_function("bicubic", "pillow<13", shorter_side=True), size=48), _call("CenterCrop_floor", size=[60, 40])),
    (_call(resize_function("box", "pillow>=13"), size=[57, 64]), _call("CenterCropFraction_ceil", fraction=_fraction(0.6))),
]


@pytest.mark.parametrize(("node", "then"), PAIRS, ids=lambda n: str(n.op_type))
def test_resize_and_crop_in_one_pass_the_battery(node: onnx.NodeProto, then: onnx.NodeProto, tmp_path: Path) -> None:
    """The kernel for both equals the two bodies one after the other, also where the crop sticks out of the image."""
    functions = library([node.op_type, then.op_type])
    proof = prove(node, functions, OrtExecutor, then=then, cache_dir=tmp_path)
    assert (proof.equal, proof.detail, proof.function) == (True, "", f"{node.op_type} + {then.op_type}")
    assert proof.key != prove(node, functions, OrtExecutor, cache_dir=tmp_path).key


def test_only_a_crop_after_a_resize_is_one_kernel_with_it() -> None:
    """Any other pair is two kernels."""
    resize, crop = PAIRS[0]
    assert host_kernel(resize, crop) is not None
    assert host_kernel(crop, resize) is None
    assert host_kernel(resize, resize) is None
    assert host_kernel(_call("ToRGB"), crop) is None
    assert host_kernel(resize, _call("CenterCrop_half_even")) is None


def test_wrong_body_of_the_crop_gets_no_kernel_for_both(tmp_path: Path) -> None:
    """What is compared is the pair: a crop that rounds another way than its name says is seen."""
    node, then = PAIRS[1]
    functions = library([node.op_type, then.op_type])
    renamed = onnx.FunctionProto()
    renamed.CopyFrom(library(["CenterOffset_ceil"])[0])
    renamed.name = "CenterOffset_floor"
    proof = prove(node, [renamed if f.name == renamed.name else f for f in functions], OrtExecutor, then=then, cache_dir=tmp_path)
    assert not proof.equal
    assert "values differ" in proof.detail


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_resize_treats_every_channel_by_itself(channels: int) -> None:
    """Two and four channels are not taken for grey or colour with alpha, which Pillow would premultiply."""
    array = content(np.random.default_rng(channels), 61, 47, channels)
    kernel = host_kernel(_call(resize_function("bicubic", "pillow>=13"), size=[20, 30]))
    assert kernel is not None
    np.testing.assert_array_equal(kernel(Pixels(array=array)).array(), stated_array(array, 20, 30, "bicubic", "pillow>=13"))


def test_resize_of_nothing_is_refused() -> None:
    """An image that a crop left empty is the caller's fault, said in words."""
    for node in (
        _call(resize_function("bicubic", "pillow<13"), size=[4, 4]),
        _call(resize_function("box", "pillow<13", shorter_side=True), size=4),
    ):
        kernel = host_kernel(node)
        assert kernel is not None
        with pytest.raises(InputError, match="too small") as caught:
            kernel(Pixels(array=np.zeros((0, 0, 3), np.uint8)))
        assert caught.value.code == "wrong_shape"


def test_battery_is_fixed_and_covers_the_shapes_that_matter() -> None:
    """The same images every time; grey and colour, smaller and larger than the target, tall enough to part the semantics."""
    node = _call(resize_function("bicubic", "pillow>=13"), size=[64, 64])
    first, again = list(battery_images(node)), list(battery_images(node))
    assert len(first) == BATTERY_CASES
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    shapes = {a.shape for a in first}
    assert {s[2] for s in shapes} == {1, 3, 4}
    assert sum(s[0] - 64 > max(0, 2 * (s[1] - 64)) for s in shapes) >= 3
    assert sum(max(s[:2]) < 64 for s in shapes) >= 10
    assert (1, 1) in {s[:2] for s in shapes}
    assert {a.shape[2] for a in battery_images(_call("ToRGB"))} == {1, 2, 3, 4}


def _library_with(name: str, change: Callable[[onnx.NodeProto], None]) -> list[onnx.FunctionProto]:
    """Return the functions behind `name` with every node offered to `change`."""
    changed = []
    for proto in library([name]):
        copy = onnx.FunctionProto()
        copy.CopyFrom(proto)
        for node in copy.node:
            change(node)
        changed.append(copy)
    return changed


def _another_rounding(node: onnx.NodeProto) -> None:
    if node.output[0] == "half" and node.attribute and node.attribute[0].t.data_type == onnx.TensorProto.INT32:
        node.attribute[0].t.CopyFrom(numpy_helper.from_array(np.array(2097151, dtype=np.int32)))


def test_kernel_that_differs_by_one_level_is_not_used(tmp_path: Path) -> None:
    """A package whose body rounds ties the other way gets no kernel, and the verdict says which case told."""
    name = resize_function("bilinear", "pillow<13")
    functions = _library_with(name, _another_rounding)
    proof = prove(_call(name, size=[64, 64]), functions, OrtExecutor, cache_dir=tmp_path)
    assert not proof.equal
    assert re.match(r"case \d+: image \(.*\): \d+ of \d+ values differ", proof.detail)
    kept = [json.loads(p.read_text()) for p in tmp_path.iterdir()]
    assert [k["equal"] for k in kept] == [False]


class _Counting:
    """Makes real executors and counts them."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, model: onnx.ModelProto) -> OrtExecutor:
        self.made += 1
        return OrtExecutor(model)


def test_verdict_is_kept_and_found_again(tmp_path: Path) -> None:
    """The battery runs once per machine and package; a second look only reads the file."""
    make = _Counting()
    node, functions = _call("ToRGB"), library(["ToRGB"])
    first = prove(node, functions, make, cache_dir=tmp_path)
    second = prove(node, functions, make, cache_dir=tmp_path)
    assert make.made == 1
    assert first == second
    assert [p.name for p in tmp_path.iterdir()] == [f"{first.key}.json"]


@pytest.mark.parametrize("damage", ["", "{}", "[1]", '{"equal": true}', "\x00\xff"])
def test_damaged_verdict_is_measured_again(damage: str, tmp_path: Path) -> None:
    """A file that is no verdict is never taken for one."""
    make = _Counting()
    node, functions = _call("ToRGB"), library(["ToRGB"])
    key = prove(node, functions, make, cache_dir=tmp_path).key
    (tmp_path / f"{key}.json").write_text(damage)
    assert prove(node, functions, make, cache_dir=tmp_path).equal
    assert make.made == 2


def test_verdict_of_another_environment_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another Pillow build, CPU or battery, another function body and other attributes are other keys."""
    node, functions = _call("CenterCrop_floor", size=[4, 4]), library(["CenterCrop_floor"])
    keys = {prove(node, functions, OrtExecutor, cache_dir=tmp_path).key}
    keys.add(prove(_call("CenterCrop_floor", size=[4, 5]), functions, OrtExecutor, cache_dir=tmp_path).key)
    keys.add(prove(node, [*functions, *library(["ToRGB"])], OrtExecutor, cache_dir=tmp_path).key)
    here = kernels._environment()
    assert set(here) == {"battery", "pillow", "pillow_core", "numpy", "onnxruntime", "cpu"}
    for fact in here:
        monkeypatch.setattr(kernels, "_environment", lambda fact=fact: {**here, fact: "another"})
        keys.add(prove(node, functions, OrtExecutor, cache_dir=tmp_path).key)
    assert len(keys) == 3 + len(here)


def test_copied_verdict_does_not_pass_for_another(tmp_path: Path) -> None:
    """A verdict under a wrong file name is ignored: it carries its own key."""
    good = prove(_call("ToRGB"), library(["ToRGB"]), OrtExecutor, cache_dir=tmp_path)
    make = _Counting()
    node = _call("CenterCrop_floor", size=[4, 4])
    other = prove(node, library(["CenterCrop_floor"]), make, cache_dir=tmp_path)
    (tmp_path / f"{other.key}.json").write_bytes((tmp_path / f"{good.key}.json").read_bytes())
    assert prove(node, library(["CenterCrop_floor"]), make, cache_dir=tmp_path).function == "CenterCrop_floor"
    assert make.made == 2


def test_cache_that_cannot_be_written_only_costs_time(tmp_path: Path) -> None:
    """Where the directory would be there is a file: the verdict is found all the same."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert prove(_call("ToRGB"), library(["ToRGB"]), OrtExecutor, cache_dir=blocked / "kernels").equal


def test_battery_that_cannot_run_is_no_verdict_to_keep(tmp_path: Path) -> None:
    """When the body itself fails, the kernel is not used now, and tried again next time."""

    def broken(model: onnx.ModelProto) -> OrtExecutor:
        raise ExecutionError("the graph does not load")

    proof = prove(_call("ToRGB"), library(["ToRGB"]), broken, cache_dir=tmp_path)
    assert (proof.equal, proof.cases) == (False, 0)
    assert "does not load" in proof.detail
    assert not list(tmp_path.iterdir())


def test_concurrent_proofs_agree(tmp_path: Path) -> None:
    """Several threads (or processes) may prove the same kernel at once; one whole file is left."""
    node, functions = _call("CenterCrop_ceil", size=[9, 9]), library(["CenterCrop_ceil"])
    with ThreadPoolExecutor(4) as pool:
        proofs: list[Proof] = list(pool.map(lambda _: prove(node, functions, OrtExecutor, cache_dir=tmp_path), range(8)))
    assert len(set(proofs)) == 1
    assert [p.name for p in tmp_path.iterdir()] == [f"{proofs[0].key}.json"]


def test_unknown_functions_and_odd_attributes_have_no_kernel() -> None:
    """What we would not have written is left to its ONNX body."""
    assert host_kernel(_call("Sharpen")) is None
    assert host_kernel(_call("CenterCrop_floor")) is None
    assert host_kernel(_call("CenterCrop_floor", size=[1, 2, 3])) is None
    assert host_kernel(helper.make_node("ToRGB", ["a"], ["b"])) is None


def test_default_cache_follows_the_users_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """XDG_CACHE_HOME moves the verdicts."""
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "samegraph" / "kernels"
