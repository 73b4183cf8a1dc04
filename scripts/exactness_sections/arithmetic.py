"""Every order in which training code scales pixels, compared with NumPy on all 256 levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from samegraph_transforms.executor import OrtExecutor
from samegraph_transforms.image import (
    Add,
    Decode,
    Divide,
    Multiply,
    Normalize,
    PadTo,
    Preprocess,
    Rescale,
    ScaleAndShift,
    Step,
    ToBGR,
    ToCHW,
    ToFloat,
    ToRGB,
)

from scripts.exactness_sections._counting import Count, onnx_runtime, section, table

ABOUT = "What follows the whole numbers: scaling and normalising in float32, all levels in each channel, channels last and first."

F = np.float32
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
M, S = np.array(MEAN, F), np.array(STD, F)
A, B = [0.0171, 0.0175, 0.0174], [-2.1179, -2.0357, -1.8044]

ARITHMETIC: list[tuple[str, list[Step], Callable[[np.ndarray], np.ndarray]]] = [
    ("`(x / 255 - m) / s`", [ToFloat(), Divide(255), Normalize(MEAN, STD)], lambda x: (x.astype(F) / F(255) - M) / S),
    (
        "`(float32(x * (1/255)) - m) / s`, product in float64",
        [Rescale(1 / 255), Normalize(MEAN, STD)],
        lambda x: ((x * (1 / 255)).astype(F) - M) / S,
    ),
    (
        "`(x - 255 m) / (255 s)`",
        [ToFloat(), Normalize((M * F(255)).tolist(), (S * F(255)).tolist())],
        lambda x: (x.astype(F) - M * F(255)) / (S * F(255)),
    ),
    ("`(x - 127) / 128`", [ToFloat(), Normalize(127, 128)], lambda x: (x.astype(F) - F(127)) / F(128)),
    ("`x * (1/255)`", [ToFloat(), Multiply(1 / 255)], lambda x: x.astype(F) * F(1 / 255)),
    ("`x / 127.5 - 1`", [ToFloat(), Divide(127.5), Add(-1)], lambda x: x.astype(F) / F(127.5) - F(1)),
    ("`x * a + b`", [ToFloat(), ScaleAndShift(A, B)], lambda x: x.astype(F) * np.array(A, F) + np.array(B, F)),
    ("BGR, `x - m`", [ToBGR(), ToFloat(), Normalize([104, 117, 123], 1)], lambda x: x[..., ::-1].astype(F) - np.array([104, 117, 123], F)),
]


def count_arithmetic(steps: Sequence[Step], plain: Callable[[np.ndarray], np.ndarray]) -> Count:
    """Compare all 256 levels in each channel, channels last and first, in ONNX Runtime, with NumPy."""
    levels = np.stack([np.roll(np.arange(768) % 256, 85 * c) for c in range(3)], axis=1).astype(np.uint8).reshape(1, 16, 48, 3)
    count = Count()
    for tail in ([], [ToCHW()]):
        expected = np.ascontiguousarray(np.moveaxis(plain(levels), -1, 1) if tail else plain(levels))
        model = Preprocess([Decode(), ToRGB(), PadTo((16, 48)), *steps, *tail]).stages()[1].model
        count.add(OrtExecutor(model).run({"pixels": levels})[0], expected.reshape(-1))
    return Count(256, count.elements, count.different, count.ulp)


def measure(work: Path, scale: float) -> dict[str, Any]:  # noqa: ARG001 - there is one size, and nothing to install
    """Compare every order of operations."""
    rows = []
    for title, steps, plain in ARITHMETIC:
        count = count_arithmetic(steps, plain)
        rows.append([title, f"NumPy {np.__version__}, float32", count.inputs, count.elements, count.different, count.ulp])
    head = ["order of operations", "reference", "levels a channel", "elements", "different", "largest ULP"]
    return section("Arithmetic", ABOUT, [table("", head, rows)], ["numpy", "onnx", onnx_runtime()])
