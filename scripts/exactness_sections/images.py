"""Every step on images in whole numbers, as ONNX and as kernel, compared with four versions of Pillow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samegraph_transforms.functions import SEMANTICS, Semantics

from scripts.exactness_sections._counting import compare, onnx_runtime, section, table
from scripts.exactness_sections._pillow import TITLES, Golden, goldens, keep_golden, run_bodies, run_kernels

IMAGES = 2_000
REFERENCE_CASES = 100

ABOUT = """{images:,} images a step, made by integer arithmetic (`tests/support/pillow_reference.py`): noise, black and white noise,
gradients and flat patches, sides from 1 to 256 pixels, a third of them so tall that the order of Pillow's two passes decides.
There are three such orders: up to 12.1, 12.2 to 12.3, and since 13. The reference is plain Pillow, the older versions in
environments of their own, in a program that knows nothing of samegraph. *ONNX* is the function in the package, run by ONNX
Runtime; *onnx.reference* the same function in an evaluator that shares no code with it, on the first {reference} images;
*kernel* is what a server runs in its place. All of these steps are in whole numbers: one level more or less in one pixel would
count. There is no ULP to them, and no decision is made in them."""

HEAD = ["step", "reference", "images", "elements", "different, ONNX", "different, onnx.reference", "different, kernel"]
CONTROL = "The same comparison with another order of passes than the reference's, to show that a wrong one would be seen."


def measure(work: Path, scale: float) -> dict[str, Any]:
    """Compare every step with every Pillow; keep digests of the first results for the tests when the count is the full one."""
    count = max(1, round(IMAGES * scale))
    made = goldens(work, count)
    if scale >= 1:
        for one in made:
            keep_golden(one, count)
    about = ABOUT.format(images=count, reference=min(count, REFERENCE_CASES))
    rows = [row for name in TITLES for row in _compared(name, made, count)]
    tables = [
        table("", HEAD, rows),
        table(CONTROL, ["step", "reference", "compared with", "elements", "different"], _wrong(made, count), control=True),
    ]
    return section("Images", about, tables, ["pillow", "numpy", "onnx", onnx_runtime()])


def _compared(name: str, made: list[Golden], count: int) -> list[list[Any]]:
    """Return the rows of one step, one for each Pillow."""
    evaluated = {s: list(run_bodies(name, s, min(count, REFERENCE_CASES), reference=True)) for s in SEMANTICS}
    bodies = {s: list(run_bodies(name, s, count)) for s in SEMANTICS}
    kernels = {s: list(run_kernels(name, s, count)) for s in SEMANTICS}
    rows = []
    for one in made:
        expected = one.of(name)
        body, kernel, independent = (compare(iter(by[one.semantics]), expected) for by in (bodies, kernels, evaluated))
        differences = [body.different, independent.different, kernel.different]
        rows.append([TITLES[name], f"Pillow {one.pillow}", body.inputs, body.elements, *differences])
    return rows


def _wrong(made: list[Golden], count: int) -> list[list[Any]]:
    """Return what the order of passes of the oldest Pillow gives where another one is the reference."""
    other: Semantics = "pillow<13"
    rows = []
    for name in ("resize_bilinear", "resize_bicubic", "resize_lanczos"):
        for one in made[-2:]:
            wrong = compare(run_bodies(name, other, count), one.of(name))
            rows.append([TITLES[name], f"Pillow {one.pillow}", f"`{other}`", wrong.elements, wrong.different])
    return rows
