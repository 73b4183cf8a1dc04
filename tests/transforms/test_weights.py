"""Tests of samegraph_transforms.weights: tensors leave the protobuf and arrive in the session, and nothing else changes."""

from __future__ import annotations

import gc
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import package_builders as build
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from samegraph_transforms import external
from samegraph_transforms.errors import ExecutionError
from samegraph_transforms.executor import OrtExecutor
from samegraph_transforms.pack import pack
from samegraph_transforms.package import parse_model, read_package
from samegraph_transforms.runtime import PackageRuntime
from samegraph_transforms.weights import MIN_DETACHED_BYTES, Weights, is_detached

SIDE = 64
X = np.random.default_rng(5).normal(size=(3, SIDE)).astype(np.float32)


def large(dtype: Any = np.float32, shape: tuple[int, ...] = (SIDE, SIDE)) -> np.ndarray:
    """Return numbers of a type, many enough to be cut out."""
    return np.random.default_rng(7).integers(0, 100, shape).astype(dtype)


def two_products(**tensors: np.ndarray) -> onnx.ModelProto:
    """X · a · b + c, with a and b large."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["xa"]),
        helper.make_node("MatMul", ["xa", "b"], ["xab"]),
        helper.make_node("Add", ["xab", "c"], ["y"]),
    ]
    given: dict[str, np.ndarray] = {"a": large() / 100, "b": large() / 50, "c": np.ones(SIDE, np.float32), **tensors}
    return build.model_of(nodes, [("x", TensorProto.FLOAT, ["n", SIDE])], [("y", TensorProto.FLOAT, ["n", SIDE])], **given)


def cut(model: onnx.ModelProto, weights: Weights) -> onnx.ModelProto:
    """Take a model through its bytes."""
    return parse_model(weights.cut(model.SerializeToString()), "test")


def test_a_session_gets_the_very_same_weights() -> None:
    """Large initializers are references in the graph, and the answers are those of the whole graph, bit for bit."""
    weights = Weights()
    model = two_products()
    light = cut(model, weights)
    assert [t.name for t in light.graph.initializer if is_detached(t)] == ["a", "b"]
    assert len(weights) == 2
    assert light.ByteSize() < 2000
    answer = OrtExecutor(light, weights=weights).run({"x": X})[0]
    assert answer.tobytes() == OrtExecutor(model).run({"x": X})[0].tobytes()
    assert len(weights) == 0


def test_references_survive_copies_and_new_names() -> None:
    """Merging renames initializers; the reference says what it stands for, not the name."""
    weights = Weights()
    light = onnx.compose.add_prefix(cut(two_products(), weights), prefix="s0/")
    copied = onnx.ModelProto()
    copied.CopyFrom(light)
    answer = OrtExecutor(copied, weights=weights).run({"s0/x": X})[0]
    assert answer.tobytes() == OrtExecutor(two_products()).run({"x": X})[0].tobytes()


def test_a_session_owns_what_it_was_given() -> None:
    """The bytes of the file are free once the session is made, and whatever comes to lie in their place changes no answer."""
    weights = Weights()
    model = two_products()
    light = cut(model, weights)
    arrays = [weakref.ref(array) for array in vars(weights)["_arrays"].values()]
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    executor = OrtExecutor(light, weights=weights)
    gc.collect()
    assert [ref() for ref in arrays] == [None, None]
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    clutter = [np.full(SIDE * SIDE * 4, 7, np.uint8) for _ in range(500)]
    assert executor.run({"x": X})[0].tobytes() == OrtExecutor(model).run({"x": X})[0].tobytes()
    del clutter


def test_without_files_in_memory_a_temporary_one_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Systems without them load the same weights, and nothing is left on the disk."""
    monkeypatch.delattr("os.memfd_create")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    weights = Weights()
    answer = OrtExecutor(cut(two_products(), weights), weights=weights).run({"x": X})[0]
    assert answer.tobytes() == OrtExecutor(two_products()).run({"x": X})[0].tobytes()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "dtype",
    [
        np.float32, np.float64, np.float16, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64, np.bool_,
    ],
)  # fmt: skip
def test_every_plain_type_arrives_as_it_was(dtype: Any) -> None:
    """A graph that returns its initializer returns it unchanged, whatever its type; offsets in the file are not aligned."""
    tensor = large(dtype)
    model = build.model_of(
        [helper.make_node("Identity", ["w"], ["y"])], [], [("y", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), [SIDE, SIDE])], w=tensor
    )
    weights = Weights()
    light = cut(model, weights)
    assert is_detached(light.graph.initializer[0])
    got = OrtExecutor(light, weights=weights).run({})[0]
    assert (got.dtype, got.tobytes()) == (tensor.dtype, tensor.tobytes())


def _typed(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].CopyFrom(helper.make_tensor("a", TensorProto.FLOAT, [SIDE, SIDE], large().ravel().tolist()))


def _half_precision(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = TensorProto.BFLOAT16


def _short(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-1]


def _negative(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [-SIDE, -SIDE]


def _small(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros(MIN_DETACHED_BYTES // 8, np.float32), "a"))


def _external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")


@pytest.mark.parametrize("change", [_typed, _half_precision, _short, _negative, _small, _external])
def test_other_tensors_stay_in_their_graph(change: Any) -> None:
    """What is small, of another kind, or wrong is left to ONNX Runtime, which says what it thinks of it."""
    model = two_products()
    change(model)
    weights = Weights()
    light = cut(model, weights)
    assert light.graph.initializer[0] == model.graph.initializer[0]
    assert [t.name for t in light.graph.initializer if is_detached(t)] == ["b"]


def test_a_graph_cannot_forge_a_reference() -> None:
    """External data that looks like a reference of ours is external data: it is checked, and refused, like any other."""
    mine = Weights()
    (real,) = [t for t in cut(two_products(b=np.ones(1, np.float32)), mine).graph.initializer if is_detached(t)]
    forged = two_products()
    tensor = forged.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=real.external_data[0].value.replace("memory-", "memory-0"))
    weights = Weights()
    light = cut(forged, weights)
    assert not is_detached(light.graph.initializer[0])
    with pytest.raises(ExecutionError, match="does not load"):
        OrtExecutor(light, weights=weights)


def test_a_reference_to_nothing_is_an_error() -> None:
    """A graph whose tensors were given away, or cut out for another load, is refused and names the tensor."""
    weights = Weights()
    light = cut(two_products(), weights)
    OrtExecutor(light, weights=weights)
    with pytest.raises(ExecutionError, match="tensor 'a' was cut out of its graph and is not here"):
        OrtExecutor(light, weights=weights)


@given(st.data())
def test_damaged_bytes_end_as_the_parser_says(data: st.DataObject) -> None:
    """Cut short or overwritten anywhere, a file gives what the parser makes of the same bytes: never another error, never more tensors."""
    whole = two_products(a=large(shape=(2, 600)), b=large(shape=(3, 500))).SerializeToString()
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 3))):
        if damaged:
            damaged[data.draw(st.integers(0, min(len(damaged) - 1, 200)))] = data.draw(st.integers(0, 255))
    weights = Weights()
    light = weights.cut(bytes(damaged))
    assert _parsed(light, weights) == _parsed(bytes(damaged), None)


def _parsed(data: bytes, weights: Weights | None) -> bytes | None:
    """Return a model as canonical bytes with the tensors that were cut out put back; None when it does not parse."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception:  # noqa: BLE001 - the parser's own class, whichever implementation is installed
        return None
    for tensor in model.graph.initializer:
        if weights is not None and is_detached(tensor):
            array = vars(weights)["_arrays"][tensor.external_data[0].value]
            tensor.ClearField("data_location")
            del tensor.external_data[:]
            tensor.raw_data = array.tobytes()
    return model.SerializeToString(deterministic=True)


def test_tensors_in_files_of_their_own_become_references_too() -> None:
    """Weights beyond what a protobuf holds never enter one; tensors elsewhere than in the main graph are brought in."""
    model = two_products()
    moved, pieces = external.move_out(model, "weights.bin")
    weights = Weights()
    light = cut(moved, weights)
    external.embed(light, {"weights.bin": b"".join(pieces)}.__getitem__, weights)
    assert [t.name for t in light.graph.initializer if is_detached(t)] == ["a", "b"]
    assert external.locations(light) == []
    assert OrtExecutor(light, weights=weights).run({"x": X})[0].tobytes() == OrtExecutor(model).run({"x": X})[0].tobytes()


def test_a_package_is_loaded_without_its_weights_in_a_protobuf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What serving hands to ONNX Runtime is small, merged or as a chain, and answers as the package promises."""
    path = pack(build.draft(), build.samples(), tmp_path).path
    sources: list[type] = []
    make = ort.InferenceSession

    def seen(source: bytes | str, *arguments: Any, **options: Any) -> Any:
        sources.append(type(source))
        return make(source, *arguments, **options)

    package = read_package(path)
    monkeypatch.setattr("samegraph_transforms.weights.MIN_DETACHED_BYTES", 1)
    monkeypatch.setattr("onnxruntime.InferenceSession", seen)
    for merge in (True, False):
        with_references = PackageRuntime.load(package, merge=merge)
        rows = [(1.5, "fern"), (None, "oak")]
        monkeypatch.setattr("samegraph_transforms.weights.sys", type("Big", (), {"byteorder": "big"}))
        whole = PackageRuntime.load(package, merge=merge)
        monkeypatch.setattr("samegraph_transforms.weights.sys", sys)
        for name, array in whole.predict(rows).items():
            assert with_references.predict(rows)[name].tolist() == array.tolist()
    assert sources == [str, bytes, str, str, bytes, bytes, bytes, bytes]  # nothing to cut out of the labels


def test_a_failing_run_writes_nothing_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    """ONNX Runtime would, from whatever thread it runs on, and would wait there for a reader who stalls."""
    model = build.model_of(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [("x", TensorProto.FLOAT, ["n", 2]), ("shape", TensorProto.INT64, ["k"])],
        [("y", TensorProto.FLOAT, ["a", "b"])],
    )
    with pytest.raises(ExecutionError, match="failed to run"):
        OrtExecutor(model).run({"x": np.zeros((2, 2), np.float32), "shape": np.array([7, 7])})
    assert capfd.readouterr().err == ""
