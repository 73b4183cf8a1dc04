"""Small packages with the inputs that `package_builders` has not: tensors, tensors of free length, text, images."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import package_builders as build
from onnx import TensorProto, helper
from PIL import Image
from samegraph_transforms.decode import FORMATS
from samegraph_transforms.draft import BaselineRows, DraftStage, GoldenSample
from samegraph_transforms.image import Decode, Preprocess, Resize, ToRGB
from samegraph_transforms.manifest import Batching, Output, RawField
from samegraph_transforms.pack import pack

JSON = {"content-type": "application/json"}
SIDE = 16


def pack_tensors(repository: Path) -> None:
    """`tensors`: float32 [2, 3] and string [2] in, their sum and the strings out."""
    model = build.model_of(
        [helper.make_node("ReduceSum", ["x", "axes"], ["total"], keepdims=0), helper.make_node("Identity", ["s"], ["echo"])],
        [("x", TensorProto.FLOAT, ["n", 2, 3]), ("s", TensorProto.STRING, ["n", 2])],
        [("total", TensorProto.FLOAT, ["n"]), ("echo", TensorProto.STRING, ["n", 2])],
        axes=np.array([1, 2]),
    )
    fields = [
        RawField(name="x", kind="tensor", dtype="float32", shape=[2, 3]),
        RawField(name="s", kind="tensor", dtype="string", shape=[2]),
    ]
    outputs = [Output(name="total", dtype="float32"), Output(name="echo", dtype="string", shape=[2])]
    body = {"instances": [{"x": [[1, 2, 3], [4, 5, 6]], "s": ["a", "b"]}]}
    _pack(
        repository, "tensors", fields, outputs, model, body, {"total": np.array([21], np.float32), "echo": np.array([["a", "b"]], object)}
    )


def pack_lists(repository: Path) -> None:
    """`lists`: float64 of any length in, the same doubled out, so that answers differ in shape."""
    model = build.model_of(
        [helper.make_node("Add", ["x", "x"], ["y"])], [("x", TensorProto.DOUBLE, ["n", "k"])], [("y", TensorProto.DOUBLE, ["n", "k"])]
    )
    fields = [RawField(name="x", kind="tensor", dtype="float64", shape=[None])]
    outputs = [Output(name="y", dtype="float64", shape=[None])]
    _pack(repository, "lists", fields, outputs, model, {"instances": [[1, 2]]}, {"y": np.array([[2.0, 4.0]])})


def pack_greeting(repository: Path, baseline: BaselineRows | None = None) -> None:
    """`greeting`: text in, whether it is exactly `hello` out."""
    nodes = [
        helper.make_node("Equal", ["text", "hello"], ["same"]),
        helper.make_node("Cast", ["same"], ["column"], to=TensorProto.INT64),
        helper.make_node("Squeeze", ["column", "axis"], ["hit"]),
    ]
    model = build.model_of(
        nodes,
        [("text", TensorProto.STRING, ["n", 1])],
        [("hit", TensorProto.INT64, ["n"])],
        hello=np.array(["hello"], dtype=object),
        axis=np.array([1]),
    )
    fields = [RawField(name="text", kind="text", max_length=100)]
    _pack(
        repository,
        "greeting",
        fields,
        [Output(name="hit", dtype="int64")],
        model,
        {"instances": ["hello"]},
        {"hit": np.array([1])},
        baseline,
    )


def _pack(
    repository: Path,
    name: str,
    fields: Sequence[RawField],
    outputs: Sequence[Output],
    model: Any,
    body: Any,
    answer: dict[str, np.ndarray],
    baseline: BaselineRows | None = None,
) -> None:
    stages, batching = [DraftStage("model", model)], Batching(max_batch_size=4)
    draft = build.draft(name=name, fields=fields, outputs=outputs, stages=stages, batching=batching, baseline=baseline)
    pack(draft, [GoldenSample("one", f"/v1/models/{name}:predict", JSON, json.dumps(body).encode(), answer)], repository)


# --- images ---------------------------------------------------------------------------------------------------------------


@cache
def tint_preprocess() -> Preprocess:
    return Preprocess([Decode(formats=FORMATS), ToRGB(), Resize((SIDE, SIDE), "bilinear")])


def tint(data: bytes) -> list[float]:
    """What training computes for one file: the sum of each channel after the resize, exact in float32."""
    return [float(v) for v in tint_preprocess().item(data).sum(axis=(0, 1), dtype=np.int64)]


def pack_tint(repository: Path, version: int = 1, baseline: BaselineRows | None = None) -> None:
    """`tint`: an image file of any format in, the sums of its channels out."""
    preprocess = tint_preprocess()
    model = build.model_of(
        [
            helper.make_node("Cast", ["pixels"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["numbers", "axes"], ["tint"], keepdims=0),
        ],
        [("pixels", TensorProto.UINT8, ["n", SIDE, SIDE, 3])],
        [("tint", TensorProto.FLOAT, ["n", 3])],
        axes=np.array([1, 2]),
    )
    draft = build.draft(
        name="tint",
        version=version,
        fields=preprocess.fields(max_bytes=4_000_000, max_pixels=1_000_000),
        decoders=preprocess.decoders(),
        outputs=[Output(name="tint", dtype="float32", shape=[3])],
        stages=[*preprocess.stages(), DraftStage("model", model)],
        batching=Batching(max_batch_size=8),
        baseline=baseline,
    )
    data = image_file(0)
    sample = GoldenSample(
        "one", "/v1/models/tint:predict", {"content-type": "image/png"}, data, {"tint": np.array([tint(data)], np.float32)}
    )
    pack(draft, [sample], repository)


def image_file(seed: int, format_: str = "PNG", size: tuple[int, int] = (23, 17), **options: object) -> bytes:
    """Return a small image file, the same for the same arguments."""
    levels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(levels).save(stream, format_, **options)
    return stream.getvalue()
