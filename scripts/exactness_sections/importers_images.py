"""Imported image pipelines, called and served, and the rules of sizes, compared with torchvision, timm and transformers themselves."""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from samegraph_transforms.draft import DraftStage, PackageDraft
from samegraph_transforms.executor import OrtExecutor
from samegraph_transforms.functions import SIZE_RULES, Semantics, library
from samegraph_transforms.image import Preprocess
from samegraph_transforms.image_imports import from_huggingface, from_timm, from_torchvision
from samegraph_transforms.kernels import size_by
from samegraph_transforms.manifest import Output
from samegraph_transforms.opsets import IR_VERSION, opset_imports
from samegraph_transforms.package import write_package
from samegraph_transforms.runtime import PackageRuntime
from transforms.test_image_imports import rebuilt

from scripts.exactness_sections._counting import Count, onnx_runtime, section, table

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "references" / "images.py"
IMAGES = 100
SIZES = 2_000

ABOUT = """Each pipeline is imported without its library, and given {images:,} images (noise, black and white noise, gradients, flat
patches; sides from 8 to 320 pixels, one in nine a long strip). The reference is the library itself, in an environment of its own
(`scripts/references/images.py`). *Called* is the imported object, as training may go on with it; *served* is a package of its graphs
as a server runs them, host kernels included. All of it is float32, and every element counts. A decision is the class that the
`imagenet` example answers (EfficientNet-Lite0, whatever it was trained on), from the library's tensor and from the served one,
where the tensors are [3, 224, 224]. Five and ten crops are in the rows whose name says so.

Sizes are compared apart from pixels: {sizes:,} sizes of images a rule, each with a box or side of its own, all from 1 to 402; where no
library has the rule, the reference is the formula in Python's float64."""

CONTROL = "The same comparison with another order of passes than the reference's, to show that a difference would be seen."
CONTROLS = ("v1-five-crop", "v1-exact-bicubic", "timm-border")

HEAD = [
    "importer and pipeline",
    "reference",
    "images",
    "elements",
    "different, called",
    "different, served",
    "largest ULP",
    "decisions flipped",
]


def measure(work: Path, scale: float) -> dict[str, Any]:
    """Let the libraries make their tensors, in an environment that `work` keeps, and compare."""
    images, sizes = max(1, round(IMAGES * scale)), max(10, round(SIZES * scale))
    directory = work / f"golden-importers-images-{images}"
    if not (directory / "sizes.json").exists():
        command = [str(environment(work)), str(SCRIPT), "--images", str(images), "--sizes", str(sizes), "--out", str(directory)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT / "transforms")})
    made = json.loads((directory / "cases.json").read_text())
    files = [(directory / f"{place}.png").read_bytes() for place in range(images)]
    decide = OrtExecutor(onnx.load(ROOT / "models" / "imagenet" / "1" / "model.onnx"))
    rows = []
    for name, case in made["cases"].items():
        expected = np.load(directory / f"{name}.npy", mmap_mode="r")
        rows.append(_compared(name, case, made["versions"], files, expected, decide))
    rules = [_sizes_compared(rule, json.loads((directory / "sizes.json").read_text()), made["versions"], sizes) for rule in SIZE_RULES]
    size_head = ["rule of sizes", "reference", "inputs tried", "elements", "different, ONNX", "different, kernel"]
    about = ABOUT.format(images=images, sizes=sizes)
    wrong = [_wrong(name, made["cases"][name], files, np.load(directory / f"{name}.npy", mmap_mode="r")) for name in CONTROLS]
    control = table(CONTROL, ["pipeline", "compared with", "elements", "different"], wrong, control=True)
    tables = [table("", HEAD, rows), control, table("", size_head, rules)]
    measured = section("Imported image pipelines", about, tables, ["numpy", "pillow", "onnx", onnx_runtime()])
    return {**measured, "versions": {**measured["versions"], **{f"reference {name}": of for name, of in made["versions"].items()}}}


def environment(work: Path) -> Path:
    """Make an environment with the libraries, unless `work` has it, and return its Python."""
    home = work / "importers-images"
    python = home / "bin" / "python"
    if not (home / "ready").exists():
        venv.create(home, with_pip=True)
        requirements = ROOT / "scripts" / "references" / "requirements-images.txt"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", requirements, ROOT / "transforms"], check=True)
        (home / "ready").touch()
    return python


def imported(case: Mapping[str, Any], semantics: Semantics = "pillow>=13") -> Preprocess:
    """Import one case, with the order of passes of the Pillow it was made with."""
    if case["importer"] == "huggingface":
        return from_huggingface(json.dumps(case["config"]), processor="slow", semantics=semantics)
    if case["importer"] == "timm":
        return from_timm(case["config"], semantics=semantics)
    return from_torchvision(rebuilt(case["transforms"]), semantics=semantics)


def _wrong(name: str, case: Mapping[str, Any], files: Sequence[bytes], expected: np.ndarray) -> list[Any]:
    preprocess, count = imported(case, "pillow<13"), Count()
    for file, wanted in zip(files, expected, strict=True):
        count.add(preprocess(file), np.ravel(wanted))
    return [name, "horizontal pass first", count.elements, count.different]


def _compared(
    name: str, case: Mapping[str, Any], versions: Mapping[str, str], files: Sequence[bytes], expected: np.ndarray, decide: OrtExecutor
) -> list[Any]:
    preprocess = imported(case)
    called, served, flipped = Count(), Count(), 0
    decides = preprocess.output_shape == [3, 224, 224]
    for file, got, wanted in zip(files, _served(preprocess, files), expected, strict=True):
        called.add(preprocess(file), np.ravel(wanted))
        served.add(got, np.ravel(wanted))
        if decides:
            flipped += _class(decide, got) != _class(decide, wanted)
    package = {"huggingface": "transformers"}.get(case["importer"], case["importer"])
    ulp = max(called.ulp, served.ulp)
    title = f"`from_{case['importer']}`, {name}: {_words(case)}"
    reference = f"{package} {versions[package]}"
    return [title, reference, called.inputs, called.elements, called.different, served.different, ulp, flipped if decides else "–"]


def _class(decide: OrtExecutor, tensor: np.ndarray) -> int:
    return int(decide.run({"input": np.ascontiguousarray(tensor[np.newaxis])})[0].argmax())


def _words(case: Mapping[str, Any]) -> str:
    """Say in a few words what a case is."""
    if case["importer"] == "huggingface":
        return str(case["config"]["image_processor_type"])
    if case["importer"] == "timm":
        config = case["config"]
        return f"{config['crop_mode']}, {config['input_size'][1]} × {config['input_size'][2]}, {config['interpolation']}"
    recorded = case["transforms"]
    return ", ".join(one["class"] for one in recorded["attributes"].get("transforms", [recorded]))


def _served(preprocess: Preprocess, files: Sequence[bytes]) -> Iterator[np.ndarray]:
    """Yield what a package of the graphs gives for every file."""
    shape = preprocess.output_shape
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", *shape]) for n in ("input", "tensor")]
    graph = helper.make_graph([helper.make_node("Identity", ["input"], ["tensor"])], "model", values[:1], values[1:])
    draft = PackageDraft(
        name="imported",
        version=1,
        fields=preprocess.fields(),
        decoders=preprocess.decoders(),
        outputs=[Output(name="tensor", dtype="float32", shape=list(shape))],
        stages=[*preprocess.stages(), DraftStage("model", helper.make_model(graph, opset_imports=opset_imports(), ir_version=IR_VERSION))],
    )
    with tempfile.TemporaryDirectory() as directory:
        package = write_package(draft, [], Path(directory) / "imported" / "1")
        with closing(PackageRuntime.load(package)) as runtime:
            for file in files:
                yield runtime.predict([(file,)])["tensor"][0]


# ---------------------------------------------------------------- sizes

#: Rule → the library's own name for it, for those that a library has.
LIBRARY_RULES = {
    "shorter_int": ("torchvision", "`Resize(size)`"),
    "longer_int": ("torchvision", "`Resize(None, max_size=…)`"),
    "capped": ("torchvision", "`Resize(size, max_size=…)`"),
    "within_round": ("timm", "`ResizeKeepRatio(longest=1)`"),
    "cover_round": ("timm", "`ResizeKeepRatio(longest=0)`"),
    "contain": ("pillow", "`ImageOps.contain`, the size of a letterbox"),
}
_WHOLE: dict[str, Callable[[float], int]] = {"int": math.floor, "round": round, "ceil": math.ceil}


def _sizes_compared(rule: str, made: Mapping[str, Any], versions: Mapping[str, str], count: int) -> list[Any]:
    session = OrtExecutor(_size_model(rule))
    bodies, kernels = Count(), Count()
    for height, width, size, multiple, expected in _size_cases(rule, made, count):
        feeds = {"size_in": np.array([height, width]), "size": np.array(size), "k": np.array([multiple])}
        bodies.add(session.run(feeds)[0], np.array(expected))
        kernels.add(np.array(size_by(rule, (height, width), size, multiple)), np.array(expected))
    name, words = LIBRARY_RULES.get(rule, ("", "multiples of 1, 2, 14 and 32"))
    reference = f"{name} {versions[name]}" if name else "Python's float64"
    return [f"`{rule}`: {words}", reference, bodies.inputs, bodies.elements, bodies.different, kernels.different]


def _size_cases(rule: str, made: Mapping[str, Any], count: int) -> Iterator[tuple[int, int, list[int], int, Sequence[int]]]:
    if rule in LIBRARY_RULES:
        for height, width, size, expected in made[rule]:
            yield height, width, size, 1, expected
        return
    rng = np.random.default_rng(21)
    by, _, rounding = rule.partition("_")
    for _ in range(count):
        height, width, box_height, box_width = (int(v) for v in np.exp(rng.uniform(0, 6, 4)))
        multiple = int(rng.choice([1, 2, 14, 32]))
        size = [box_height, box_width] if by in ("inside", "within", "cover") else [box_height]
        sides = _formula(by, height, width, size)
        yield height, width, size, multiple, [max(multiple, multiple * _WHOLE[rounding](side / multiple)) for side in sides]


def _formula(by: str, height: int, width: int, size: Sequence[int]) -> tuple[float, float]:
    if by == "inside":
        scale = min(size[0] / height, size[1] / width)
        return height * scale, width * scale
    if by in ("within", "cover"):
        ratio = (max if by == "within" else min)(height / size[0], width / size[1])
        return height / ratio, width / ratio
    side = min(height, width) if by == "shorter" else max(height, width)
    return size[0] * height / side, size[0] * width / side


def _size_model(rule: str) -> onnx.ModelProto:
    node = helper.make_node(f"SizeBy_{rule}", ["size_in", "size", "k"], ["Y"], domain="samegraph")
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, [d]) for n, d in (("size_in", 2), ("size", "s"), ("k", 1))]
    graph = helper.make_graph([node], "size", inputs, [helper.make_tensor_value_info("Y", TensorProto.INT64, [2])])
    return helper.make_model(graph, functions=library([node.op_type]), opset_imports=opset_imports(), ir_version=IR_VERSION)
