"""OpenCV in environments of their own, and our functions and kernels on the same images."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from opencv_reference import BOX, REFERENCES, SIDE, cases
from samegraph_transforms.executor import OrtExecutor
from samegraph_transforms.functions import called_functions, library
from samegraph_transforms.image import PadTo
from samegraph_transforms.kernels import Pixels, host_kernel
from samegraph_transforms.opencv import CvResize
from samegraph_transforms.opsets import DOMAIN, IR_VERSION, opset_imports

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"
GOLDEN = ROOT / "tests" / "transforms" / "references" / "opencv"
GOLDEN_CASES = 60
#: Another major version and an old one with the NumPy it was built for; the installed one is measured beside them.
OTHER_OPENCVS = {"4.5.5.64": "numpy<2", "4.14.0.94": "numpy"}

TITLES = {
    "nearest": "`cv2.resize`, INTER_NEAREST",
    "linear": "`cv2.resize`, INTER_LINEAR",
    "area": "`cv2.resize`, INTER_AREA",
    "cubic": "`cv2.resize`, INTER_CUBIC, without IPP",
    "cubic_ipp": "`cv2.resize`, INTER_CUBIC, through IPP",
    "lanczos4": "`cv2.resize`, INTER_LANCZOS4",
    "letterbox": "letterbox, `cv2.resize` and `cv2.copyMakeBorder`",
    "shorter_side": "shorter side, `int(w * (64 / min(h, w)))`, INTER_AREA",
}


def nodes_of(name: str, size: tuple[int, int], channels: int) -> list[onnx.NodeProto]:
    """Return the nodes of a step of opencv_reference, a → b."""
    if name == "letterbox":
        resized = CvResize(BOX, "linear", by="inside", rounding="round").node("X", "v")
        colour = (114, 7, 200)[:channels]
        return [resized, PadTo(BOX, colour, "center", "floor").node("v", "Y")]
    if name == "shorter_side":
        return [CvResize(SIDE, "area", by="shorter_ratio").node("X", "Y")]
    return [helper.make_node(f"OpenCVResize_{name}", ["X"], ["Y"], domain=DOMAIN, size=list(size))]


def pictures(name: str, count: int) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    """Yield what opencv_reference hands to a step: the array as that step takes it, and the size."""
    for array, size in _cases(count):
        yield (np.ascontiguousarray(array[: 8 * array.shape[1], : 8 * array.shape[0]]) if name == "shorter_side" else array), size


@cache
def _cases(count: int) -> list[tuple[np.ndarray, tuple[int, int]]]:
    return list(cases(count))


@cache
def graph(name: str, channels: int) -> onnx.ModelProto:
    """Return the step as a graph, X (and size, where the step resizes to one) → Y, with the ONNX functions it calls."""
    nodes = nodes_of(name, (1, 1), channels)
    inputs = [helper.make_tensor_value_info("X", TensorProto.UINT8, ["H", "W", "C"])]
    if takes_size(name):
        nodes = [helper.make_node(f"OpenCVResizeTo_{name}", ["X", "size"], ["Y"], domain=DOMAIN)]
        inputs.append(helper.make_tensor_value_info("size", TensorProto.INT64, [2]))
    outputs = [helper.make_tensor_value_info("Y", TensorProto.UINT8, ["h", "w", "c"])]
    made = helper.make_graph(nodes, "exactness", inputs, outputs)
    return helper.make_model(made, functions=library(called_functions(nodes)), opset_imports=opset_imports(), ir_version=IR_VERSION)


def takes_size(name: str) -> bool:
    """Whether the step resizes to the size that comes with an image."""
    return name not in ("letterbox", "shorter_side")


@cache
def _runtime(name: str, channels: int) -> OrtExecutor:
    return OrtExecutor(graph(name, channels))


@cache
def _evaluator(name: str, channels: int) -> Any:
    return ReferenceEvaluator(graph(name, channels))


def run_bodies(name: str, count: int, *, reference: bool = False) -> Iterator[np.ndarray]:
    """Yield what the ONNX functions give for every case, by ONNX Runtime or by onnx.reference."""
    for array, size in pictures(name, count):
        channels = array.shape[2] if name == "letterbox" else 0
        feeds = {"X": array, "size": np.array(size)} if takes_size(name) else {"X": array}
        yield _evaluator(name, channels).run(None, feeds)[0] if reference else _runtime(name, channels).run(feeds)[0]


def run_kernels(name: str, count: int) -> Iterator[np.ndarray]:
    """Yield what the host kernels give for every case, under the cv2 that is installed here."""
    for array, size in pictures(name, count):
        pixels = Pixels(array=array)
        for node in nodes_of(name, size, array.shape[2]):
            kernel = host_kernel(node)
            assert kernel is not None, name
            pixels = kernel(pixels)
        yield pixels.array()


@dataclass(frozen=True)
class Golden:
    """Results that one version of OpenCV gave."""

    directory: Path
    opencv: str
    ipp: str

    def of(self, name: str) -> np.ndarray:
        """Return a step's results, all cases flattened one after the other."""
        values: np.ndarray = np.load(self.directory / f"{name}.npy", mmap_mode="r")
        return values


def goldens(work: Path, count: int) -> list[Golden]:
    """Let other versions of OpenCV and the one installed here make their results."""
    made = [_golden(_environment(version, numpy, work), count, work / f"golden-{version}") for version, numpy in OTHER_OPENCVS.items()]
    return [*made, _golden(Path(sys.executable), count, work / "golden-here")]


def _environment(version: str, numpy: str, work: Path) -> Path:
    home = work / f"opencv-{version}"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", f"opencv-python-headless=={version}", numpy], check=True)
    return python


def _golden(python: Path, count: int, directory: Path) -> Golden:
    directory.mkdir()
    subprocess.run([python, SUPPORT / "opencv_reference.py", str(count), directory], check=True)
    about = json.loads((directory / "about.json").read_text())
    return Golden(directory, about["opencv"], about["ipp"])


def keep_golden(made: Golden, count: int) -> None:
    """Keep digests of the first results, for the tests; of the step that is not exact, the pixels themselves."""
    digests: dict[str, list[str]] = {}
    for name in REFERENCES:
        expected, at, kept, sizes = made.of(name), 0, [], []
        for got in run_bodies(name, min(count, GOLDEN_CASES)):
            kept.append(hashlib.sha256(expected[at : at + got.size].tobytes()).hexdigest()[:16])
            sizes.append(got.size)
            at += got.size
        digests[name] = kept
        if name == "cubic_ipp":
            np.savez_compressed(GOLDEN / f"cubic-ipp-{made.opencv}.npz", pixels=np.asarray(expected[: sum(sizes[:20])]))
    GOLDEN.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"opencv": made.opencv, "digests": digests}, indent=1)
    (GOLDEN / f"opencv-{made.opencv}.json").write_text(text + "\n")
