"""A package whose preprocessing takes ten crops, with its training code in Pillow and NumPy written out."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper
from package_builders import model_of
from PIL import Image
from samegraph_transforms.draft import BaselineRows, DraftStage, GoldenSample, PackageDraft
from samegraph_transforms.executor import OrtExecutor
from samegraph_transforms.folding import fold
from samegraph_transforms.image import Decode, Divide, Normalize, Preprocess, Resize, TenCrop, ToCHW, ToFloat, ToRGB
from samegraph_transforms.manifest import Batching, Output

SIZE, RESIZED, LARGEST = (17, 21), (24, 33), 4
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
PATH = "/v1/models/crops:predict"


def preprocess() -> Preprocess:
    """Return the pipeline, as its author writes it."""
    steps = [Resize(RESIZED, "bilinear"), TenCrop(SIZE), ToFloat(), Divide(255), Normalize(MEAN.tolist(), STD.tolist()), ToCHW()]
    return Preprocess([Decode(), ToRGB(), *steps])


def network() -> onnx.ModelProto:
    """Return a small convolutional network on one image: input [n, 3, 17, 21] → logits [n, 5]."""
    rng = np.random.default_rng(4)
    return model_of(
        [
            helper.make_node("Conv", ["input", "kernel"], ["convolved"], strides=[3, 3]),
            helper.make_node("Relu", ["convolved"], ["active"]),
            helper.make_node("Flatten", ["active"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        ],
        [("input", TensorProto.FLOAT, ["n", 3, *SIZE])],
        [("logits", TensorProto.FLOAT, ["n", 5])],
        kernel=rng.normal(0, 0.2, (4, 3, 5, 5)).astype(np.float32),
        weights=rng.normal(0, 0.2, (4 * 5 * 6, 5)).astype(np.float32),
    )


def label() -> onnx.ModelProto:
    """Return the last stage: mean logits → the class."""
    return model_of(
        [helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0)],
        [("logits", TensorProto.FLOAT, ["n", 5])],
        [("label", TensorProto.INT64, ["n"])],
    )


def files(count: int, seed: int = 3) -> list[bytes]:
    """Return images of odd sizes as PNG."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        file = io.BytesIO()
        shape = (*(int(v) for v in rng.integers(9, 70, 2)), 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(file, "PNG")
        made.append(file.getvalue())
    return made


def crops(file: bytes) -> np.ndarray:
    """Return torchvision's ten crops of the resized image, uint8 [10, h, w, 3], with nothing of samegraph."""
    image = Image.open(io.BytesIO(file)).convert("RGB").resize((RESIZED[1], RESIZED[0]), Image.Resampling.BILINEAR)
    (height, width), (rows, columns) = SIZE, RESIZED
    corners = [(0, 0), (0, columns - width), (rows - height, 0), (rows - height, columns - width)]
    places = [*corners, (round((rows - height) / 2.0), round((columns - width) / 2.0))]
    turned = (image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    return np.stack([np.asarray(one.crop((left, top, left + width, top + height))) for one in turned for top, left in places])


def answer(file: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return what training answers: the mean logits of the ten crops, added in order, and their argmax."""
    tensors = ((crops(file).astype(np.float32) / np.float32(255) - MEAN) / STD).transpose(0, 3, 1, 2)
    (logits,) = OrtExecutor(network()).run({"input": np.ascontiguousarray(tensors)})
    total = logits[0]
    for one in logits[1:]:
        total = total + one
    mean = total / np.float32(10)
    return mean, np.array(mean.argmax())


def sample(file: bytes, name: str) -> GoldenSample:
    """Return a golden sample of one file, its crops among the captured values."""
    logits, decided = answer(file)
    return GoldenSample(
        name=name,
        path=PATH,
        headers={"content-type": "image/png"},
        body=file,
        outputs={"logits": logits[np.newaxis], "label": decided[np.newaxis]},
        values={"pixels": crops(file)[np.newaxis]},
    )


def draft(stages: Sequence[DraftStage] | None = None) -> PackageDraft:
    """Return the draft, with held-out rows for a baseline."""
    made = preprocess()
    usual = [*made.stages(), DraftStage("model", fold(network(), made.crops, combine="mean")), DraftStage("postprocess", label())]
    return PackageDraft(
        name="crops",
        version=1,
        fields=made.fields(),
        decoders=made.decoders(),
        outputs=[Output(name="label", dtype="int64", decided_by="logits"), Output(name="logits", dtype="float32", shape=[5])],
        stages=usual if stages is None else stages,
        batching=Batching(max_batch_size=LARGEST),
        baseline=BaselineRows(rows=[{"image": file} for file in files(30, 8)], made_from="Held-out noise."),
    )


def without_baseline(made: PackageDraft) -> PackageDraft:
    """Return the draft without held-out rows, for tests that pack many."""
    return replace(made, baseline=None)
