#!/usr/bin/env python3
"""Write docs/exactness.md: everything that is promised to be exact, measured against the libraries it is named after.

    .venv/bin/python scripts/exactness.py                       2,000 images a step; installs Pillow 11 and 12 in environments of their own
    .venv/bin/python scripts/exactness.py --images 100 --out -  a quick look, on the terminal

Golden results of the other versions are made there by tests/support/pillow_reference.py, which knows nothing of samegraph. The kernels are
then run under each of those versions too, on what was made by all of them. Digests of the first results go to tests/support/pillow_golden,
where the tests find them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SUPPORT = ROOT / "tests" / "support"
sys.path[:0] = [str(ROOT / "transforms"), str(SUPPORT)]

import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnxruntime  # noqa: E402
import PIL  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402
from pillow_reference import BOX, COLOUR, FILTERS, cases  # noqa: E402
from samegraph_transforms.exactness import ulp_distance  # noqa: E402
from samegraph_transforms.executor import OrtExecutor  # noqa: E402
from samegraph_transforms.functions import SEMANTICS, Semantics, called_functions, library  # noqa: E402
from samegraph_transforms.image import (  # noqa: E402
    Add,
    CenterCrop,
    Crop,
    Decode,
    Divide,
    Flip,
    Multiply,
    Normalize,
    OnBackground,
    Pad,
    PadTo,
    Preprocess,
    Rescale,
    Resize,
    ScaleAndShift,
    Step,
    ToBGR,
    ToCHW,
    ToFloat,
    ToL,
    ToRGB,
)
from samegraph_transforms.kernels import Pixels, host_kernel  # noqa: E402
from samegraph_transforms.opsets import IR_VERSION, opset_imports  # noqa: E402

OTHER_PILLOWS = ("11.3.0", "12.1.1", "12.3.0")
GOLDEN = SUPPORT / "pillow_golden"
GOLDEN_CASES = 40
REFERENCE_CASES = 100
KERNEL_CASES = 300


# ---------------------------------------------------------------- what is compared


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


@dataclass
class Count:
    """How far results are from a reference."""

    inputs: int = 0
    elements: int = 0
    different: int = 0
    ulp: int = 0

    def add(self, got: np.ndarray, expected: np.ndarray) -> None:
        """Compare one result of any shape with the reference's values."""
        self.inputs += 1
        self.elements += expected.size
        got = got.reshape(-1)
        assert got.size == expected.size, f"{got.size} elements for {expected.size}"
        if got.dtype.kind == "f":
            distance = ulp_distance(got, expected)
            self.different += int(np.count_nonzero(distance))
            self.ulp = max(self.ulp, int(distance.max()))
        else:
            self.different += int(np.count_nonzero(got != expected))


def compare(results: Iterator[np.ndarray], expected: np.ndarray) -> Count:
    """Compare results, one after the other, with a flat array that holds the reference's in the same order."""
    count, at = Count(), 0
    for got in results:
        count.add(got, expected[at : at + got.size])
        at += got.size
    return count


# ---------------------------------------------------------------- Pillow in environments of its own


@dataclass(frozen=True)
class Golden:
    """Results that one version of Pillow gave."""

    directory: Path
    pillow: str
    semantics: Semantics
    python: Path

    def of(self, name: str) -> np.ndarray:
        """Return a step's results, all cases flattened one after the other."""
        values: np.ndarray = np.load(self.directory / f"{name}.npy", mmap_mode="r")
        return values


def environment(version: str, work: Path) -> Path:
    """Make an environment with that Pillow and NumPy alone and return its Python."""
    home = work / f"pillow-{version}"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", f"pillow=={version}", "numpy"], check=True)
    return python


def golden(python: Path, count: int, directory: Path) -> Golden:
    """Let the Pillow behind `python` make its results."""
    directory.mkdir()
    subprocess.run([python, SUPPORT / "pillow_reference.py", str(count), directory], check=True)
    about = json.loads((directory / "about.json").read_text())
    return Golden(directory, about["pillow"], about["semantics"], python)


def kernels_under(python: Path, directories: Sequence[Path], count: int) -> tuple[str, dict[str, Count]]:
    """Run this program's `--kernels` under another Pillow; everything else comes from the environment of this one."""
    program, packages = str(Path(__file__).resolve()), sysconfig.get_path("purelib")
    code = f"import runpy, sys; sys.path.append({packages!r}); sys.argv[0] = {program!r}; runpy.run_path({program!r}, run_name='__main__')"
    command = [str(python), "-c", code, "--kernels", str(count), *map(str, directories)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    pillow, counts = json.loads(done.stdout.splitlines()[-1])
    return pillow, {trained: Count(*numbers) for trained, numbers in counts.items()}


def count_kernels(count: int, directories: Sequence[Path]) -> tuple[str, dict[str, list[int]]]:
    """Compare the kernels under the Pillow installed here with what others made: its version, and by theirs the numbers of a Count."""
    found: dict[str, list[int]] = {}
    for directory in directories:
        about = json.loads((directory / "about.json").read_text())
        total = Count()
        for name in TITLES:
            part = compare(run_kernels(name, about["semantics"], count), np.load(directory / f"{name}.npy", mmap_mode="r"))
            total = Count(total.inputs + part.inputs, total.elements + part.elements, total.different + part.different)
        found[about["pillow"]] = [total.inputs, total.elements, total.different]
    return PIL.__version__, found


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


# ---------------------------------------------------------------- arithmetic

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


# ---------------------------------------------------------------- the page


def row(*cells: object) -> str:
    """Write a row of a table; numbers with their thousands parted."""
    return "| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells) + " |"


def page(count: int, work: Path) -> Iterator[str]:
    """Yield the lines of the page while everything is measured."""
    others = [golden(environment(version, work), count, work / f"golden-{version}") for version in OTHER_PILLOWS]
    here = golden(Path(sys.executable), count, work / "golden-here")
    made = [*others, here]
    for one in made:
        keep_golden(one, count)
    yield PREAMBLE.format(
        date=datetime.now(UTC).date().isoformat(),
        python=platform.python_version(),
        pillow=PIL.__version__,
        numpy=np.__version__,
        onnx=onnx.__version__,
        ort=onnxruntime.__version__,
        machine=f"{platform.system()} {platform.machine()}",
        images=count,
        reference=min(count, REFERENCE_CASES),
    )
    yield "## Images\n"
    yield row(
        "step", "reference", "images", "elements", "different, ONNX", "different, onnx.reference", "different, kernel", "decisions flipped"
    )
    yield row("---", "---", "--:", "--:", "--:", "--:", "--:")
    for name, title in TITLES.items():
        evaluated = {s: list(run_bodies(name, s, min(count, REFERENCE_CASES), reference=True)) for s in SEMANTICS}
        bodies = {s: list(run_bodies(name, s, count)) for s in SEMANTICS}
        kernels = {s: list(run_kernels(name, s, count)) for s in SEMANTICS}
        for one in made:
            expected = one.of(name)
            body = compare(iter(bodies[one.semantics]), expected)
            kernel = compare(iter(kernels[one.semantics]), expected)
            independent = compare(iter(evaluated[one.semantics]), expected)
            yield row(
                title,
                f"Pillow {one.pillow}",
                body.inputs,
                body.elements,
                body.different,
                independent.different,
                kernel.different,
            )
    yield "\n## A server with another Pillow\n"
    yield row("package trained under", "kernels run under", "images", "elements", "different")
    yield row("---", "---", "--:", "--:", "--:")
    for one in others:
        pillow, found = kernels_under(one.python, [m.directory for m in made], min(count, KERNEL_CASES))
        for trained, counts in found.items():
            yield row(f"Pillow {trained}", f"Pillow {pillow}", counts.inputs, counts.elements, counts.different)
    yield "\n## Where it must differ\n"
    yield "The same comparison with another order of passes than the reference's, to show that a wrong one would be seen.\n"
    yield row("step", "reference", "compared with", "elements", "different")
    yield row("---", "---", "---", "--:", "--:")
    for name in ("resize_bilinear", "resize_bicubic", "resize_lanczos"):
        for one in (others[-1], here):
            other: Semantics = "pillow<13"
            wrong = compare(run_bodies(name, other, count), one.of(name))
            yield row(TITLES[name], f"Pillow {one.pillow}", f"`{other}`", wrong.elements, wrong.different)
    yield "\n## Arithmetic\n"
    yield row("order of operations", "reference", "levels a channel", "elements", "different", "largest ULP")
    yield row("---", "---", "--:", "--:", "--:", "--:")
    for title, steps, plain in ARITHMETIC:
        arithmetic = count_arithmetic(steps, plain)
        yield row(title, f"NumPy {np.__version__}, float32", arithmetic.inputs, arithmetic.elements, arithmetic.different, arithmetic.ulp)
    yield CLOSING


PREAMBLE = """# Exactness, measured

What is promised to be exact, compared with the library it is named after. Written by `.venv/bin/python scripts/exactness.py` on {date}:
Python {python}, Pillow {pillow}, NumPy {numpy}, onnx {onnx}, ONNX Runtime {ort}, {machine}.

{images:,} images a step, made by integer arithmetic (`tests/support/pillow_reference.py`): noise, black and white noise, gradients and
flat patches, sides from 1 to 256 pixels, a third of them so tall that the order of Pillow's two passes decides. There are three
such orders: up to 12.1, 12.2 to 12.3, and since 13. The reference is plain Pillow, the older versions in environments of their own, in a
program that knows nothing of samegraph. *ONNX* is the function in the package, run by ONNX Runtime; *onnx.reference* the same function in
an evaluator that shares no code with it, on the first {reference} images; *kernel* is what a server runs in its place here. All of these
steps are in whole numbers: one level more or less in one pixel would count. There is no ULP to them, and no decision is made in them.
"""

CLOSING = """
## What is not in these tables

- Decoding: what a JPEG becomes is the decoder's own affair. The installed Pillow decodes on both sides, its codecs are in the manifest, and
  golden samples prove it for every package.
- OpenCV's resizes and antialiased resizes of tensors: there are no steps for them yet.
- Machines other than x86-64, and Pillow builds other than those on the package index.
"""


def main() -> None:
    """Write the page, or do what the child process of it does."""
    if sys.argv[1:2] == ["--kernels"]:
        print(json.dumps(count_kernels(int(sys.argv[2]), [Path(p) for p in sys.argv[3:]])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2_000, help="images a step (default: %(default)s)")
    parser.add_argument(
        "--out", default=str(ROOT / "docs" / "exactness.md"), help="file to write, - for the terminal (default: docs/exactness.md)"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        lines = []
        for line in page(options.images, Path(work)):
            lines.append(line)
            print(line, file=sys.stdout if options.out == "-" else sys.stderr, flush=True)
    if options.out != "-":
        Path(options.out).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
