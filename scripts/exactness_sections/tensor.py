"""Resizes of tensors, as ONNX and in NumPy, compared with PyTorch in an environment of its own; pipelines on tensors with golden files."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from image_oracle import call_model
from onnx.reference import ReferenceEvaluator
from samegraph_transforms.executor import OrtExecutor
from samegraph_transforms.image import Preprocess
from samegraph_transforms.image_imports import from_huggingface, from_torchvision
from samegraph_transforms.torch_functions import ARITHMETICS, TORCH_FILTERS, Arithmetic, TorchFilter, torch_resize_function
from samegraph_transforms.torch_resize import resize_uint8

from scripts.exactness_sections import _torch_reference
from scripts.exactness_sections._counting import Count, compare, onnx_runtime, section, table

ROOT = Path(__file__).resolve().parents[2]
REFERENCES = ROOT / "tests" / "transforms" / "references"
#: Versions of PyTorch with the torchvision that goes with each.
VERSIONS = (("2.15.0", "0.29.2"), ("2.8.0", "0.23.0"))
IMAGES = 2_000
REFERENCE_CASES = 100

ABOUT = """PyTorch's `interpolate(antialias=True)` on uint8 tensors: {images:,} images a filter (noise, black and white noise,
gradients; sides from 1 to 256 pixels before and after, 1 to 4 channels, both memory layouts by turns), resized by two versions of
PyTorch on a CPU with {cpu}. *ONNX* is the function in the package, run by ONNX Runtime, *onnx.reference* the same function in an
evaluator that shares no code with it, on the first {reference} images, *NumPy* the step as it is called in training. Levels are
compared. No native kernel stands in for these functions. *float32* is the same against version 1 of torchvision's functions, which
resize a uint8 tensor in float32 and round; both sides are at least 2 there.

Whole pipelines on tensors (Hugging Face's fast processors, torchvision), as they are imported, are compared with the golden files
that `scripts/references/tensors.py` made: {files} images a pipeline, every element of the float32 tensors."""


def measure(work: Path, scale: float) -> dict[str, Any]:
    """Let PyTorch make its results, in an environment that `work` keeps, and compare."""
    count = max(1, round(IMAGES * scale))
    rows: list[list[Any]] = []
    capability = ""
    for torch, torchvision in VERSIONS:
        directory = work / f"golden-torch-{torch}-{count}"
        if not (directory / "about.json").exists():
            directory.mkdir(exist_ok=True)
            subprocess.run([environment(work, torch, torchvision), _torch_reference.__file__, str(count), directory], check=True)
        capability = json.loads((directory / "about.json").read_text())["cpu"]
        rows += _compared(directory, torch, torchvision, count)
    head = ["step", "reference", "images", "elements", "different, ONNX", "different, onnx.reference", "different, NumPy"]
    pipelines = table("", ["importer and pipeline", "reference", "images", "elements", "different", "largest ULP"], _pipelines())
    about = ABOUT.format(images=count, reference=min(count, REFERENCE_CASES), files=len(_files()), cpu=capability)
    return section("Resizes of tensors", about, [table("", head, sorted(rows)), pipelines], ["numpy", "onnx", onnx_runtime()])


def _compared(directory: Path, torch: str, torchvision: str, count: int) -> Iterator[list[Any]]:
    """Yield a row for each arithmetic and filter."""
    for arithmetic, filter_ in itertools.product(ARITHMETICS, TORCH_FILTERS):
        expected = np.load(directory / f"{arithmetic}_{filter_}.npy")
        bodies, numpy = compare(_bodies(filter_, arithmetic, count), expected), compare(_numpy(filter_, arithmetic, count), expected)
        evaluated = compare(_evaluated(filter_, arithmetic, min(count, REFERENCE_CASES)), expected)
        differences = [bodies.different, evaluated.different, numpy.different]
        library = f"PyTorch {torch}" if arithmetic == "integer" else f"torchvision {torchvision}, version 1, with PyTorch {torch}"
        yield [f"`TorchResize`, {filter_}, {arithmetic}", library, bodies.inputs, bodies.elements, *differences]


def environment(work: Path, torch: str, torchvision: str) -> Path:
    """Make an environment with that PyTorch, unless `work` has it, and return its Python."""
    home = work / f"torch-{torch}"
    python = home / "bin" / "python"
    if not (home / "ready").exists():
        venv.create(home, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"torch=={torch}", f"torchvision=={torchvision}", "numpy"], check=True)
        (home / "ready").touch()
    return python


def _cases(arithmetic: Arithmetic, count: int) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    return ((array, _torch_reference.size_of(arithmetic, size)) for array, size in _torch_reference.cases(count))


def _model(filter_: TorchFilter, arithmetic: Arithmetic) -> onnx.ModelProto:
    return call_model(torch_resize_function(filter_, arithmetic).replace("Resize_", "ResizeTo_"), size_input=True)


def _bodies(filter_: TorchFilter, arithmetic: Arithmetic, count: int) -> Iterator[np.ndarray]:
    executor = OrtExecutor(_model(filter_, arithmetic))
    for array, size in _cases(arithmetic, count):
        yield executor.run({"X": array, "size": np.array(size)})[0]


def _evaluated(filter_: TorchFilter, arithmetic: Arithmetic, count: int) -> Iterator[np.ndarray]:
    evaluator = ReferenceEvaluator(_model(filter_, arithmetic))
    for array, size in _cases(arithmetic, count):
        (got,) = evaluator.run(None, {"X": array, "size": np.array(size)})
        yield np.asarray(got)


def _numpy(filter_: TorchFilter, arithmetic: Arithmetic, count: int) -> Iterator[np.ndarray]:
    for array, size in _cases(arithmetic, count):
        yield resize_uint8(array, size, filter_, arithmetic)


# ---------------------------------------------------------------- pipelines


def _files() -> dict[str, bytes]:
    photo = ROOT / "docs" / "photos" / "coffee.jpg"
    return {path.name: path.read_bytes() for path in (*sorted((REFERENCES / "images").glob("*.png")), photo)}


def _pipelines() -> Iterator[list[Any]]:
    """Yield a row for each pipeline of the golden files. Large tensors are there as digests: of one that differs all counts."""
    known = json.loads((REFERENCES / "tensors" / "cases.json").read_text())
    versions = known["versions"]
    with np.load(REFERENCES / "tensors" / "tensors.npz") as tensors:
        for name, case in known["cases"].items():
            fast = case["importer"] == "huggingface"
            preprocess = from_huggingface(case["config"]) if fast else _torchvision(case)
            count = Count()
            for file, content in _files().items():
                got, expected = preprocess(content), tensors[f"{name}/{file}"]
                if expected.dtype == np.uint8:
                    same = hashlib.sha256(np.ascontiguousarray(got).tobytes()).digest() == expected.tobytes()
                    expected = got.ravel() if same else np.full(got.size, np.nan, got.dtype)
                count.add(got, np.asarray(expected).ravel())
            library = f"transformers {versions['transformers']}" if fast else f"torchvision {versions['torchvision']}"
            importer = "`from_huggingface`" if fast else "`from_torchvision`"
            yield [f"{importer}, `{name}`", library, count.inputs, count.elements, count.different, count.ulp]


def _torchvision(case: dict[str, Any]) -> Preprocess:
    return from_torchvision(_rebuilt(case["transforms"]), given=case.get("given", "image"))


def _rebuilt(recorded: dict[str, Any]) -> Any:
    """Return an object of a recorded class with its attributes: the importer reads nothing else."""
    made = type(recorded["class"], (), {"__module__": recorded["module"]})()
    for name, value in recorded["attributes"].items():
        nested = isinstance(value, list) and value and isinstance(value[0], dict)
        setattr(made, name, [_rebuilt(v) for v in value] if nested else value)
    return made
