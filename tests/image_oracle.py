"""Pillow as the oracle of image tests: either order of passes out of any Pillow, by two calls that change one axis each.

Written out here on purpose instead of taken from samegraph_transforms.kernels: a test must not ask the code it tests.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image
from samegraph_transforms.functions import library
from samegraph_transforms.opsets import DOMAIN, IR_VERSION, opset_imports

PILLOW_FILTERS = {name: Image.Resampling[name.upper()] for name in ("box", "bilinear", "bicubic", "nearest", "hamming", "lanczos")}


def stated_resize(image: Image.Image, height: int, width: int, filter_: str, semantics: str) -> Image.Image:
    """Resize one axis at a time, in the order the stated Pillow takes."""
    resample = PILLOW_FILTERS[filter_]
    lost_height, lost_width = image.height - height, image.width - width
    if semantics == "pillow>=13" and lost_height > 0 and lost_height > 2 * lost_width:
        return image.resize((image.width, height), resample).resize((width, height), resample)
    if semantics == "pillow>=12.2,<13" and image.height > 100 * image.width and height < image.height:  # PIL/Image.py of 12.2
        return image.resize((image.width, height), resample).resize((width, height), resample)
    return image.resize((width, image.height), resample).resize((width, height), resample)


def stated_array(array: np.ndarray, height: int, width: int, filter_: str, semantics: str) -> np.ndarray:
    """Do the same for uint8 [H, W, C] of any C, channel by channel."""
    planes = [
        stated_resize(Image.fromarray(np.ascontiguousarray(plane)), height, width, filter_, semantics) for plane in np.moveaxis(array, 2, 0)
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=2)


def call_model(function: str, *, size_input: bool = False, **attributes: Any) -> onnx.ModelProto:
    """Make a model that calls one function: X (and size: int64 [2]) → Y."""
    node = helper.make_node(function, ["X", "size"] if size_input else ["X"], ["Y"], domain=DOMAIN, **attributes)
    inputs = [helper.make_tensor_value_info("X", TensorProto.UINT8, ["H", "W", "C"])]
    if size_input:
        inputs.append(helper.make_tensor_value_info("size", TensorProto.INT64, [2]))
    outputs = [helper.make_tensor_value_info("Y", TensorProto.UINT8, ["h", "w", "c"])]
    graph = helper.make_graph([node], "call", inputs, outputs)
    model = helper.make_model(graph, functions=library([function]), opset_imports=opset_imports(), ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model


def content(rng: np.random.Generator, height: int, width: int, channels: int = 3) -> np.ndarray:
    """Make uint8 [H, W, C]: noise, black and white noise, a gradient, or flat patches, by chance."""
    kind = int(rng.integers(0, 4))
    if kind == 0:
        return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    if kind == 1:
        return rng.integers(0, 2, (height, width, channels), dtype=np.uint8) * np.uint8(255)
    if kind == 2:
        rows, columns, depth = np.indices((height, width, channels))
        return np.asarray((rows * int(rng.integers(1, 9)) + columns * int(rng.integers(1, 9)) + 60 * depth) % 256, dtype=np.uint8)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, channels), dtype=np.uint8)
    return np.ascontiguousarray(np.repeat(np.repeat(coarse, 8, 0), 8, 1)[:height, :width])


def c_weights(n_in: int, n_out: int, filter_: str, box: tuple[float, float] | None = None) -> list[dict[int, int]]:
    """Compute Pillow's integer weights as its C code does (precompute_coeffs and normalize_coeffs_8bpc, in Python's doubles).

    Args:
        n_in: Positions of the axis.
        n_out: Positions wanted.
        filter_: Pillow's filter of that name.
        box: The part of the axis to resize, which the C code takes as two float32; all of it by default.

    Returns:
        For every output row, input row → weight of 22 fractional bits, zero weights left out.
    """
    radius = {"box": 0.5, "bilinear": 1.0, "bicubic": 2.0, "hamming": 1.0, "lanczos": 3.0}[filter_]
    start, stop = (np.float32(edge) for edge in box or (0, n_in))
    scale = float(stop - start) / n_out
    filter_scale = max(scale, 1.0)
    support, inverse = radius * filter_scale, 1.0 / filter_scale
    rows = []
    for xx in range(n_out):
        center = float(start) + (xx + 0.5) * scale
        first, end = max(int(center - support + 0.5), 0), min(int(center + support + 0.5), n_in)
        weights, total = [], 0.0
        for x in range(end - first):
            weights.append(_c_kernel((x + first - center + 0.5) * inverse, filter_))
            total += weights[-1]
        fixed = [w / total * (1 << 22) for w in weights]
        integers = [int(-0.5 + w) if w < 0 else int(0.5 + w) for w in fixed]
        rows.append({first + x: w for x, w in enumerate(integers) if w})
    return rows


def _c_kernel(x: float, filter_: str) -> float:
    if filter_ == "box":
        return 1.0 if -0.5 < x <= 0.5 else 0.0
    if filter_ == "lanczos":
        return _c_sinc(x) * _c_sinc(x / 3) if -3.0 <= x < 3.0 else 0.0
    x = abs(x)
    if filter_ == "hamming":
        window = float(np.float32(0.54)) + float(np.float32(0.46)) * math.cos(x * math.pi)
        return 1.0 if x == 0.0 else _c_sinc(x) * window if x < 1.0 else 0.0
    if filter_ == "bilinear":
        return 1.0 - x if x < 1.0 else 0.0
    if x < 1.0:
        return ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2.0 else 0.0


def _c_sinc(x: float) -> float:
    return 1.0 if x == 0.0 else math.sin(x * math.pi) / (x * math.pi)
