"""Images through our functions and kernels, and through other versions of Pillow in environments of their own.

Golden results of the other versions are made there by tests/support/pillow_reference.py, which knows nothing of samegraph.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from pillow_reference import BOX, COLOUR, FILTERS, cases
from samegraph_transforms.executor import OrtExecutor
from samegraph_transforms.functions import Semantics, called_functions, library
from samegraph_transforms.image import CenterCrop, Crop, Flip, OnBackground, Pad, PadTo, Resize, ToL, ToRGB
from samegraph_transforms.kernels import Pixels, host_kernel
from samegraph_transforms.opsets import IR_VERSION, opset_imports

SUPPORT = Path(__file__).resolve().parents[2] / "tests" / "support"
OTHER_PILLOWS = ("11.3.0", "12.1.1", "12.3.0")
GOLDEN = SUPPORT / "pillow_golden"
GOLDEN_CASES = 40


def steps_of(name: str, size: tuple[int, int], semantics: Semantics) -> list[Any]:
    """Return our steps for a step of pillow_reference, which resizes to `size` where it resizes."""
    if name.startswith("resize_"):
        return [Resize(size, name.removeprefix("resize_"), semantics)]  # type: ignore[arg-type]
    chains: dict[str, list[Any]] = {
        "shorter_side_and_center_crop": [Resize(64, "bilinear", semantics), CenterCrop(56)],
        "letterbox": [Resize(BOX, "bicubic", semantics, by="contain"), PadTo(BOX, COLOUR)],
        "fixed_crop": [Crop((-3, 5, 40, 31))],
        "border": [Pad((1, 2, 3, 4), COLOUR)],
        "flip_horizontal": [Flip("horizontal")],
        "flip_vertical": [Flip("vertical")],
        "grey": [ToL()],
        "grey_to_rgb": [ToL(), ToRGB()],
        "background_paste": [OnBackground(COLOUR)],
        "background_alpha_composite": [OnBackground(COLOUR)],
    }
    return chains[name]


#: Step of pillow_reference → what it is, as training code has it.
TITLES: dict[str, str] = {
    **{f"resize_{name}": f"`resize`, {name}" for name in FILTERS},
    "shorter_side_and_center_crop": "shorter side by torchvision's rule, `bilinear`, centre crop",
    "letterbox": "letterbox, `ImageOps.pad`, `bicubic`",
    "fixed_crop": "`crop` of a fixed box, partly outside",
    "border": "`ImageOps.expand`",
    "flip_horizontal": "`FLIP_LEFT_RIGHT`",
    "flip_vertical": "`FLIP_TOP_BOTTOM`",
    "grey": '`convert("L")`',
    "grey_to_rgb": '`convert("L")`, then `convert("RGB")`',
    "background_paste": "alpha on a background by `paste`",
    "background_alpha_composite": "alpha on a background by `alpha_composite`",
}


def pictures(name: str, count: int) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    """Yield what pillow_reference hands to a step: the array as that step takes it, and the size."""
    for array, size in _cases(count):
        if name in ("shorter_side_and_center_crop", "letterbox"):
            array = array[: 8 * array.shape[1], : 8 * array.shape[0]]
        yield (array if name.startswith("background") else np.ascontiguousarray(array[:, :, :3])), size


@cache
def _cases(count: int) -> list[tuple[np.ndarray, tuple[int, int]]]:
    return list(cases(count))


@cache
def graph(name: str, semantics: Semantics) -> onnx.ModelProto:
    """Return the steps as a graph, X (and size, where the step resizes to one) → Y, with the ONNX functions it calls."""
    nodes: list[onnx.NodeProto] = []
    inputs = [helper.make_tensor_value_info("X", TensorProto.UINT8, ["H", "W", "C"])]
    for place, step in enumerate(steps_of(name, (1, 1), semantics)):
        nodes.append(step.node(f"v{place}" if place else "X", f"v{place + 1}"))
    if name.startswith("resize_"):
        nodes[0].op_type = nodes[0].op_type.replace("PillowResize_", "PillowResizeTo_")
        nodes[0].input.append("size")
        del nodes[0].attribute[:]
        inputs.append(helper.make_tensor_value_info("size", TensorProto.INT64, [2]))
    nodes[-1].output[0] = "Y"
    outputs = [helper.make_tensor_value_info("Y", TensorProto.UINT8, ["h", "w", "c"])]
    made = helper.make_graph(nodes, "exactness", inputs, outputs)
    return helper.make_model(made, functions=library(called_functions(nodes)), opset_imports=opset_imports(), ir_version=IR_VERSION)


def run_bodies(name: str, semantics: Semantics, count: int, *, reference: bool = False) -> Iterator[np.ndarray]:
    """Yield what the ONNX functions give for every case, by ONNX Runtime or by onnx.reference."""
    model = graph(name, semantics)
    run: Callable[[dict[str, np.ndarray]], Any]
    if reference:
        evaluator: Any = ReferenceEvaluator(model)
        run = lambda feeds: evaluator.run(None, feeds)[0]  # noqa: E731
    else:
        executor = OrtExecutor(model)
        run = lambda feeds: executor.run(feeds)[0]  # noqa: E731
    for array, size in pictures(name, count):
        yield run({"X": array, "size": np.array(size)} if name.startswith("resize_") else {"X": array})


def run_kernels(name: str, semantics: Semantics, count: int) -> Iterator[np.ndarray]:
    """Yield what the host kernels give for every case, under the Pillow that is installed here; a resize and its crop are one kernel."""
    for array, size in pictures(name, count):
        nodes = [step.node("a", "b") for step in steps_of(name, size, semantics)]
        fused = host_kernel(*nodes) if len(nodes) == 2 else None
        kernels = [fused] if fused is not None else [host_kernel(node) for node in nodes]
        pixels = Pixels(image=Pixels(array=array).image())
        for kernel in kernels:
            assert kernel is not None, name
            pixels = kernel(pixels)
        yield pixels.array()


@dataclass(frozen=True)
class Golden:
    """Results that one version of Pillow gave."""

    directory: Path
    pillow: str
    semantics: Semantics
    python: Path
    cases: int

    def of(self, name: str) -> np.ndarray:
        """Return a step's results, all cases flattened one after the other."""
        values: np.ndarray = np.load(self.directory / f"{name}.npy", mmap_mode="r")
        return values


def environment(version: str, work: Path) -> Path:
    """Make an environment with that Pillow and NumPy alone, unless `work` has it, and return its Python."""
    home = work / f"pillow-{version}"
    python = home / "bin" / "python"
    if (home / "ready").exists():
        return python
    venv.create(home, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", f"pillow=={version}", "numpy"], check=True)
    (home / "ready").touch()
    return python


def goldens(work: Path, count: int) -> list[Golden]:
    """Return the results of every Pillow, the installed one last; in `work` they are made once."""
    others = [_golden(environment(version, work), count, work / f"golden-{version}-{count}") for version in OTHER_PILLOWS]
    return [*others, _golden(Path(sys.executable), count, work / f"golden-here-{count}")]


def _golden(python: Path, count: int, directory: Path) -> Golden:
    """Let the Pillow behind `python` make its results, unless `directory` has them."""
    if not (directory / "about.json").exists():
        directory.mkdir(exist_ok=True)
        subprocess.run([python, SUPPORT / "pillow_reference.py", str(count), directory], check=True)
    about = json.loads((directory / "about.json").read_text())
    return Golden(directory, about["pillow"], about["semantics"], python, count)


def keep_golden(made: Golden, count: int) -> None:
    """Keep digests of the first results, for the tests."""
    digests: dict[str, list[str]] = {}
    for name in TITLES:
        expected, at, kept = made.of(name), 0, []
        for got in run_bodies(name, made.semantics, min(count, GOLDEN_CASES)):
            kept.append(hashlib.sha256(expected[at : at + got.size].tobytes()).hexdigest()[:16])
            at += got.size
        digests[name] = kept
    GOLDEN.mkdir(exist_ok=True)
    text = json.dumps({"pillow": made.pillow, "semantics": made.semantics, "digests": digests}, indent=1)
    (GOLDEN / f"pillow-{made.pillow}.json").write_text(text + "\n")
