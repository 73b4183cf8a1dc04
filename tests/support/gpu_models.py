"""Graphs for the tests of the GPU executor, and a backend that writes down what it is asked to do."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from package_builders import model_of
from samegraph_transforms.gpu import Port

CLASSES = 5
SIDE = 6


def pixels(n: int, seed: int = 0) -> np.ndarray:
    """Return n small random pictures, uint8 [n, SIDE, SIDE, 3]."""
    return np.random.default_rng(seed).integers(0, 256, size=(n, SIDE, SIDE, 3), dtype=np.uint8)


def convnet() -> onnx.ModelProto:
    """Pixels uint8 [n, h, w, 3] → probability float32 [n, 5] and label, string [n]; normalisation is part of the graph."""
    rng = np.random.default_rng(7)
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["planes", "scale"], ["small"]),
        helper.make_node("Sub", ["small", "mean"], ["normal"]),
        helper.make_node("Conv", ["normal", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"]),
        helper.make_node("GlobalAveragePool", ["c2"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probability"], axis=1),
        helper.make_node("ArgMax", ["probability"], ["best"], axis=1, keepdims=0),
        helper.make_node(
            "LabelEncoder",
            ["best"],
            ["label"],
            domain="ai.onnx.ml",
            keys_int64s=list(range(CLASSES)),
            values_strings=[f"class {i}" for i in range(CLASSES)],
        ),
    ]
    return model_of(
        nodes,
        [("pixels", TensorProto.UINT8, ["n", SIDE, SIDE, 3])],
        [("probability", TensorProto.FLOAT, ["n", CLASSES]), ("label", TensorProto.STRING, ["n"])],
        scale=np.array(1 / 64, dtype=np.float32),
        mean=np.array([1.9, 1.8, 1.6], dtype=np.float32).reshape(3, 1, 1),
        w1=rng.normal(size=(8, 3, 3, 3)).astype(np.float32) / 3,
        b1=rng.normal(size=8).astype(np.float32),
        w2=rng.normal(size=(16, 8, 3, 3)).astype(np.float32) / 6,
        w3=rng.normal(size=(16, CLASSES)).astype(np.float32),
        b3=rng.normal(size=CLASSES).astype(np.float32),
    )


def lengths() -> onnx.ModelProto:
    """Ids int64 [n, length] of any length → their doubles [n, length] and their sum [n]."""
    return model_of(
        [
            helper.make_node("Add", ["ids", "ids"], ["twice"]),
            helper.make_node("ReduceSum", ["ids", "axis"], ["total"], keepdims=0),
        ],
        [("ids", TensorProto.INT64, ["n", "length"])],
        [("twice", TensorProto.INT64, ["n", "length"]), ("total", TensorProto.INT64, ["n"])],
        axis=np.array([1]),
    )


def mean_of_batch() -> onnx.ModelProto:
    """X float32 [n, 1] → the batch's mean [1, 1]: a graph whose answer depends on the padding."""
    return model_of(
        [helper.make_node("ReduceMean", ["x", "axis"], ["mean"], keepdims=1)],
        [("x", TensorProto.FLOAT, ["n", 1])],
        [("mean", TensorProto.FLOAT, [1, 1])],
        axis=np.array([0]),
    )


@dataclass(frozen=True)
class FakeBuffer:
    """A device buffer: what was copied into it last."""

    content: list[np.ndarray]


@dataclass(frozen=True)
class FakeBinding:
    """A binding: its buffers, the outputs it was given a place for, and the answers of its last run."""

    inputs: Mapping[str, Any]
    outputs: Mapping[str, np.ndarray]
    answers: list[np.ndarray]


class FakeBackend:
    """Doubles `x` into `y`, float32 [n, 2], and writes down every call; `gate` and `fail` let a test hold or break a run."""

    inputs: Sequence[Port] = (Port("x", np.dtype("float32"), ("n", 2)),)
    outputs: Sequence[Port] = (Port("y", np.dtype("float32"), ("n", 2)),)
    providers: Sequence[str] = ("FakeExecutionProvider",)

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.runs: list[bool] = []
        self.fail: Exception | None = None
        self.running = threading.Semaphore(0)
        self.gate: threading.Event | None = None

    def allocate_host(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        self.calls.append(f"host {shape}")
        return np.empty(shape, dtype)

    def allocate_device(self, port: Port, shape: tuple[int, ...], host: np.ndarray) -> FakeBuffer:
        self.calls.append(f"device {shape}")
        return FakeBuffer([])

    def copy_in(self, buffer: FakeBuffer, host: np.ndarray) -> None:
        self.calls.append(f"copy in {host[:, 0].tolist()}")
        buffer.content[:] = [host.copy()]

    def bind(self, inputs: Mapping[str, FakeBuffer], outputs: Mapping[str, np.ndarray]) -> FakeBinding:
        self.calls.append(f"bind {[*inputs]} {[*outputs]}")
        return FakeBinding(inputs, outputs, [])

    def run(self, binding: FakeBinding, *, shrink: bool) -> None:
        self.calls.append("run and shrink" if shrink else "run")
        self.runs.append(shrink)
        self.running.release()
        if self.gate is not None:
            assert self.gate.wait(10)
        if self.fail is not None:
            raise self.fail
        answer = binding.inputs["x"].content[0] * 2
        if "y" in binding.outputs:
            binding.outputs["y"][...] = answer
            answer = binding.outputs["y"]
        binding.answers[:] = [answer]

    def copy_out(self, binding: FakeBinding) -> list[np.ndarray]:
        self.calls.append("copy out")
        return binding.answers
