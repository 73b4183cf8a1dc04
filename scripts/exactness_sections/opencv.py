"""OpenCV's resizes and letterbox, as ONNX and as kernel, compared with three versions of OpenCV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from scripts.exactness_sections._counting import compare, onnx_runtime, section, table
from scripts.exactness_sections._opencv import TITLES, Golden, goldens, keep_golden, run_bodies, run_kernels

IMAGES = 2_000
REFERENCE_CASES = 100

ABOUT = """{images:,} images a step, made by integer arithmetic (`tests/support/opencv_reference.py`): noise, black and white noise,
gradients and flat patches, one channel or three, sides from 1 to 256 pixels, some smaller by whole numbers. The reference is plain
cv2 of the wheels `opencv-python-headless` for x86-64, the older versions in environments of their own, in a program that knows
nothing of samegraph. *ONNX* is the function in the package, run by ONNX Runtime; *onnx.reference* the same function in an evaluator
that shares no code with it, on the first {reference} images; *kernel* is the installed cv2 as a server calls it. All of this is in
whole numbers: one level more or less in one pixel counts. No decision is made in it.

INTER_CUBIC is handed to Intel's IPP by the wheels for x86-64, unless `cv2.ipp.setUseIPP(False)` was called. The order in which IPP
sums is not published, so that step has a table of its own: its function is not exact, the bound is one level, and a package with it
is only served where cv2 gives training's pixels."""

HEAD = ["step", "reference", "images", "elements", "different, ONNX", "different, onnx.reference", "different, kernel"]
NOT_EXACT = "Not exact as a graph: cv2 itself has to run. Levels off are of the graph; no package is answered by it."
CONTROL = "INTER_LINEAR held against INTER_AREA, and OpenCV's own INTER_CUBIC against IPP's, to show that a difference would be seen."


def measure(work: Path, scale: float) -> dict[str, Any]:
    """Compare every step with every OpenCV; keep digests of the first results for the tests when the count is the full one."""
    count = max(1, round(IMAGES * scale))
    made = goldens(work, count)
    if scale >= 1:
        for one in made:
            keep_golden(one, count)
    rows = {name: _compared(name, made, count) for name in TITLES}
    exact = [row for name, compared in rows.items() if name != "cubic_ipp" for row in compared]
    bound = [[row[0], f"{row[1]}, {one.ipp}", *row[2:], _levels(one, count)] for row, one in zip(rows["cubic_ipp"], made, strict=True)]
    bound = [[r[0], r[1], r[2], r[3], f"{r[4]:,} by at most {r[7]} level", f"{r[6]:,}"] for r in bound]
    control = [
        [TITLES[name], f"OpenCV {made[-1].opencv}", TITLES[other], (wrong := compare(run_bodies(other, count), made[-1].of(name))).elements,
         wrong.different]
        for name, other in (("linear", "area"), ("cubic_ipp", "cubic"))
    ]  # fmt: skip
    tables = [
        table("", HEAD, exact),
        table(NOT_EXACT, ["step", "reference", "images", "elements", "graph off", "kernel here off"], bound, control=True),
        table(CONTROL, ["step", "reference", "compared with", "elements", "different"], control, control=True),
    ]
    about = ABOUT.format(images=count, reference=min(count, REFERENCE_CASES))
    return section("OpenCV", about, tables, ["opencv-python-headless", "numpy", "onnx", onnx_runtime()])


def _compared(name: str, made: list[Golden], count: int) -> list[list[Any]]:
    """Return the rows of one step, one for each OpenCV."""
    evaluated = list(run_bodies(name, min(count, REFERENCE_CASES), reference=True))
    bodies, kernels = list(run_bodies(name, count)), list(run_kernels(name, count))
    rows = []
    for one in made:
        expected = one.of(name)
        body, kernel, independent = (compare(iter(results), expected) for results in (bodies, kernels, evaluated))
        differences = [body.different, independent.different, kernel.different]
        rows.append([TITLES[name], f"OpenCV {one.opencv}", body.inputs, body.elements, *differences])
    return rows


def _levels(one: Golden, count: int) -> int:
    """Return the most levels between the graph and IPP."""
    got = np.concatenate([result.reshape(-1) for result in run_bodies("cubic_ipp", count)])
    return int(np.abs(got.astype(np.int16) - one.of("cubic_ipp")).max())
