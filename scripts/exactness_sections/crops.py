"""Five and ten crops, crops beyond the image and borders that continue it, as ONNX and as kernel, compared with torchvision and timm."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from samegraph_transforms.executor import OrtExecutor
from samegraph_transforms.functions import library
from samegraph_transforms.image import CenterCrop, FiveCrop, PadWith, TenCrop
from samegraph_transforms.kernels import Pixels, crops_of, host_kernel
from samegraph_transforms.opsets import IR_VERSION, opset_imports

from scripts.exactness_sections import _crops_reference
from scripts.exactness_sections._counting import compare, onnx_runtime, section, table
from scripts.exactness_sections._crops_reference import BORDER, CENTRE, COLOUR, CROP, cases
from scripts.exactness_sections.importers_images import environment

IMAGES = 2_000
REFERENCE_CASES = 100

#: Step of the reference → ours, and what it is in training code.
STEPS: dict[str, tuple[Any, str, str]] = {
    "five_crop": (FiveCrop(CROP), "`FiveCrop`", "torchvision"),
    "ten_crop": (TenCrop(CROP), "`TenCrop`", "torchvision"),
    "ten_crop_vertical": (TenCrop(CROP, vertical_flip=True), "`TenCrop(vertical_flip=True)`", "torchvision"),
    "center_crop": (CenterCrop(CENTRE), "`CenterCrop`, mostly of smaller images", "torchvision"),
    "center_crop_or_pad": (CenterCrop(CENTRE, colour=COLOUR), "`CenterCropOrPad` with a colour", "timm"),
    **{f"pad_{mode}": (PadWith(BORDER, mode), f"`Pad(padding_mode={mode!r})`", "torchvision") for mode in ("edge", "reflect", "symmetric")},
}

ABOUT = """{images:,} images a step, noise and gradients by turns, sides of up to 100 pixels, one in 13 exactly as large as the crops
are; borders are wider than some images, so that reflections go to and fro. *ONNX* is the function in the package, run by ONNX
Runtime, *onnx.reference* the same function in an evaluator that shares no code with it, on the first {reference} images, *kernel*
what a server runs in its place. All of it is in whole numbers."""


def measure(work: Path, scale: float) -> dict[str, Any]:
    """Let the libraries cut, in the environment of the importers, and compare."""
    count = max(1, round(IMAGES * scale))
    directory = work / f"golden-crops-{count}"
    if not (directory / "versions.json").exists():
        directory.mkdir(exist_ok=True)
        subprocess.run([str(environment(work)), _crops_reference.__file__, str(count), str(directory)], check=True)
    versions = json.loads((directory / "versions.json").read_text())
    rows = []
    for name, (step, title, package) in STEPS.items():
        expected, model = np.load(directory / f"{name}.npy"), _model(step)
        bodies = compare(_bodies(model, count), expected)
        evaluated, kernels = compare(_evaluated(model, min(count, REFERENCE_CASES)), expected), compare(_kernels(step, count), expected)
        differences = [bodies.different, evaluated.different, kernels.different]
        rows.append([title, f"{package} {versions[package]}", bodies.inputs, bodies.elements, *differences])
    head = ["step", "reference", "images", "elements", "different, ONNX", "different, onnx.reference", "different, kernel"]
    about = ABOUT.format(images=count, reference=min(count, REFERENCE_CASES))
    return section("Crops and borders", about, [table("", head, rows)], ["pillow", "numpy", "onnx", onnx_runtime()])


def _model(step: Any) -> onnx.ModelProto:
    node = step.node("X", "Y")
    dims = ["h", "w", "c"] if crops_of(node) is None else ["k", "h", "w", "c"]
    values = [
        helper.make_tensor_value_info("X", TensorProto.UINT8, ["H", "W", "C"]),
        helper.make_tensor_value_info("Y", TensorProto.UINT8, dims),
    ]
    graph = helper.make_graph([node], "crops", values[:1], values[1:])
    return helper.make_model(graph, functions=library([node.op_type]), opset_imports=opset_imports(), ir_version=IR_VERSION)


def _bodies(model: onnx.ModelProto, count: int) -> Iterator[np.ndarray]:
    executor = OrtExecutor(model)
    for array in cases(count):
        yield executor.run({"X": array})[0]


def _evaluated(model: onnx.ModelProto, count: int) -> Iterator[np.ndarray]:
    evaluator: Any = ReferenceEvaluator(model)
    for array in cases(count):
        yield evaluator.run(None, {"X": array})[0]


def _kernels(step: Any, count: int) -> Iterator[np.ndarray]:
    kernel = host_kernel(step.node("X", "Y"))
    assert kernel is not None
    for array in cases(count):
        yield kernel(Pixels(array=array)).array()
