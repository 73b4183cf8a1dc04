"""The plain pipelines: what somebody writes who calls the model from Python, without this project.

The limit and every peer share this code, so that a comparison is between servers and not between two ways of preparing an input. It needs
numpy, Pillow, ONNX Runtime and msgspec and nothing of this project, because it also runs in the peers' own environments. The models are
whole-model ONNX files that `packages.py` writes: the same graphs as in the packages, with the columns of a row, or the pixels of an image,
as their one input.

Answers have the shape of a V1 prediction: an object keyed by output name, or the bare value where there is one output.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from os import PathLike
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort
from PIL import Image

SHORTER_SIDE = 256
IMAGE_SIZE = 224
#: Of ImageNet's RGB pixels, 0 to 255, one value per channel: the constants ResNet and MobileNetV2 are published with, times 255.
MEAN = np.array([123.675, 116.28, 103.53], dtype=np.float32)[:, np.newaxis, np.newaxis]
STD = np.array([58.395, 57.12, 57.375], dtype=np.float32)[:, np.newaxis, np.newaxis]


class Rows:
    """A model over named numbers.

    Args:
        model_path: ONNX file with one input, float64 [n, len(names)].
        names: Name of each column, in order.
        threads: Threads ONNX Runtime may use inside one execution.
    """

    def __init__(self, model_path: str | PathLike[str], names: Sequence[str], threads: int = 1) -> None:
        self._model = _Model(model_path, threads)
        fields = [(f"f{place}", float) for place in range(len(names))]
        row: Any = msgspec.defstruct("Row", fields, rename={f"f{place}": name for place, name in enumerate(names)}, gc=False)
        body: Any = msgspec.defstruct("Body", [("instances", list[row])])
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(body)

    def decode(self, body: bytes) -> list[tuple[float, ...]]:
        """Return the rows of `{"instances": [{name: number, ...}, ...]}`, numbers in the order of the names.

        Raises:
            msgspec.ValidationError: A number is absent or something else.
            msgspec.DecodeError: It is no JSON.
        """
        return [msgspec.structs.astuple(row) for row in self._decoder.decode(body).instances]

    def run(self, rows: Sequence[Sequence[float]]) -> list[Any]:
        """Return one answer per row."""
        return self._model.answers(self.outputs(rows))

    def outputs(self, rows: Sequence[Sequence[float]]) -> list[np.ndarray]:
        """Return the model's outputs for rows, one array [n, ...] each: `run` before anything is made of them."""
        return self._model.outputs(np.array(rows, dtype=np.float64))


class Images:
    """A model over one photo per instance.

    Args:
        model_path: ONNX file with one input, float32 [n, 3, 224, 224].
        threads: Threads ONNX Runtime may use inside one execution.
    """

    def __init__(self, model_path: str | PathLike[str], threads: int = 1) -> None:
        self._model = _Model(model_path, threads)

    @staticmethod
    def decode(body: bytes) -> np.ndarray:
        """Return what the model takes for one encoded image, float32 [3, 224, 224].

        The shorter side becomes 256 pixels (bilinear, as Pillow does it; the other side is rounded down), the middle 224×224 are kept and
        (x - mean) / std is computed per channel.

        Raises:
            PIL.UnidentifiedImageError: It is no image.
        """
        with Image.open(BytesIO(body)) as opened:
            image = opened.convert("RGB")
        width, height = image.size
        if width < height:
            width, height = SHORTER_SIDE, int(SHORTER_SIDE * height / width)
        else:
            width, height = int(SHORTER_SIDE * width / height), SHORTER_SIDE
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = round((width - IMAGE_SIZE) / 2), round((height - IMAGE_SIZE) / 2)
        pixels = np.asarray(image.crop((left, top, left + IMAGE_SIZE, top + IMAGE_SIZE)))
        # Channels first and then arithmetic: a constant per plane is ten times faster in NumPy than one per last axis of three.
        x: np.ndarray = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32)
        x -= MEAN
        x /= STD
        return x

    def run(self, batch: np.ndarray) -> list[Any]:
        """Return one answer per image.

        Args:
            batch: float32 [n, 3, 224, 224].
        """
        return self._model.answers(self.outputs(batch))

    def outputs(self, batch: np.ndarray) -> list[np.ndarray]:
        """Return the model's outputs for a batch, one array [n, ...] each: `run` before anything is made of them."""
        return self._model.outputs(batch)


class _Model:
    """An ONNX Runtime session on the CPU with one input, and its outputs as JSON values."""

    def __init__(self, path: str | PathLike[str], threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (self._input,) = (value.name for value in self._session.get_inputs())
        self._outputs = [value.name for value in self._session.get_outputs()]

    def outputs(self, batch: np.ndarray) -> list[np.ndarray]:
        return list(self._session.run(self._outputs, {self._input: batch}))

    def answers(self, outputs: Sequence[np.ndarray]) -> list[Any]:
        columns = [array.tolist() for array in outputs]
        if len(columns) == 1:
            return list(columns[0])
        return [dict(zip(self._outputs, values, strict=True)) for values in zip(*columns, strict=True)]
