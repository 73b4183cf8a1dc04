#!/usr/bin/env python3
"""Measure what a resize costs by its ONNX body, beside Pillow or OpenCV and the host kernel that stands in for it: CPU of one thread.

    .venv-build/bin/python benchmarks/packages.py mobilenet    once: the photos
    .venv/bin/python benchmarks/resizes.py                     about a minute

Decoded photos of 640 × 427 go to 224 × 224 by every filter: at once, or to a shorter side of 256 and a centre crop. All ways give the
same bits, which is checked before anything is measured, and take turns image by image, in an order that changes. The promise is that a
body costs at most five times the library. Writes benchmarks/results/<date>-resizes.json and .md.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

import numpy as np  # noqa: E402
import onnx  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402
from PIL import Image  # noqa: E402
from samegraph_transforms.executor import OrtExecutor  # noqa: E402
from samegraph_transforms.functions import FILTERS, FilterName, called_functions, library  # noqa: E402
from samegraph_transforms.image import CenterCrop, Resize  # noqa: E402
from samegraph_transforms.kernels import (  # noqa: E402
    Pixels,
    center_window,
    host_kernel,
    native_semantics,
    shorter_side_size,
)
from samegraph_transforms.opencv import CvResize  # noqa: E402
from samegraph_transforms.opencv_functions import CvFilter  # noqa: E402
from samegraph_transforms.opencv_kernels import cv_resize  # noqa: E402
from samegraph_transforms.opsets import IR_VERSION, opset_imports  # noqa: E402

from benchmarks.images import PACKAGES, RESULTS, WrongPixels, interval  # noqa: E402
from benchmarks.machine import Times, describe  # noqa: E402

SIZE, SHORTER_SIDE, ALLOWED = 224, 256, 5.0
LARGER = (256, 384)
NATIVE, KERNEL, BODY = "native", "kernel", "body"
CROPPED, WHOLE = "shorter side 256, centre crop", "224 × 224"

#: Filters of OpenCV; cubic without IPP, whose bits no body gives back.
CV_MEASURED: tuple[CvFilter, ...] = ("nearest", "linear", "area", "cubic", "lanczos4")

#: A decoded photo → uint8 [224, 224, 3].
Way = Callable[[Image.Image], np.ndarray]


def main() -> int:
    """Measure every filter, write the result, print the page; return the exit code."""
    options = _options()
    paths = sorted((PACKAGES / ".plain" / "frames").glob("*.jpg"))[: options.images]
    photos = [Image.open(path).convert("RGB") for path in paths]
    before = Times.now()
    results = []
    cases: list[tuple[str, str, dict[str, Way]]] = [
        (filter_, task, _ways(filter_, task)) for filter_ in FILTERS for task in (CROPPED, WHOLE)
    ]
    cases += [(f"cv2, {filter_}", WHOLE, _opencv_ways(filter_, photos, (SIZE, SIZE))) for filter_ in CV_MEASURED]
    # What a shorter side of 256 asks for before the crop: linear is where cv2 is fastest, and where more pixels are dearer for the body.
    cases.append(("cv2, linear", f"{LARGER[0]} × {LARGER[1]}", _opencv_ways("linear", photos, LARGER)))
    for title, task, ways in cases:
        _check(ways, photos)
        results.append({"filter": title, "task": task, "rounds": _measure(ways, photos, options.rounds)})
    after = Times.now()
    record = {
        "measured_on": datetime.now(UTC).date().isoformat(),
        "command": " ".join(["benchmarks/resizes.py", *sys.argv[1:]]),
        "machine": describe(),
        "others_ratio": round(after.others_ratio_since(before), 3),
        "stolen_ratio": round(after.stolen_ratio_since(before), 3),
        "photos": len(photos),
        "results": results,
    }
    page = _page(record)
    print(page)
    if not options.no_write:
        path = RESULTS / f"{record['measured_on']}-resizes.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        path.with_suffix(".md").write_text(page)
    return 0


def _ways(filter_: FilterName, task: str) -> dict[str, Way]:
    semantics = native_semantics()
    steps = [Resize(SHORTER_SIDE, filter_, semantics), CenterCrop(SIZE)] if task == CROPPED else [Resize((SIZE, SIZE), filter_, semantics)]
    names = ["X", "Y"] if len(steps) == 1 else ["X", "resized", "Y"]
    nodes = [step.node(source, target) for step, source, target in zip(steps, names, names[1:], strict=False)]
    kernel, body = _kernel_and_body(nodes)
    resample = Image.Resampling[filter_.upper()]

    def pillow(photo: Image.Image) -> np.ndarray:
        if task == WHOLE:
            return np.asarray(photo.resize((SIZE, SIZE), resample))
        height, width = shorter_side_size((photo.height, photo.width), SHORTER_SIDE)
        top, left, bottom, right = center_window((height, width), (SIZE, SIZE), "half_even")
        return np.asarray(photo.resize((width, height), resample).crop((left, top, right, bottom)))

    return {NATIVE: pillow, KERNEL: kernel, BODY: body}


def _opencv_ways(filter_: CvFilter, photos: Sequence[Image.Image], size: tuple[int, int]) -> dict[str, Way]:
    """Return the ways of OpenCV, all of which read arrays that are there already."""
    arrays = {id(photo): np.asarray(photo) for photo in photos}
    kernel, body = _kernel_and_body([CvResize(size, filter_, semantics="opencv").node("X", "Y")], arrays)
    return {NATIVE: lambda photo: cv_resize(arrays[id(photo)], size, filter_), KERNEL: kernel, BODY: body}


def _kernel_and_body(nodes: Sequence[onnx.NodeProto], arrays: Mapping[int, np.ndarray] | None = None) -> tuple[Way, Way]:
    kernel = host_kernel(*nodes)
    if kernel is None:
        raise WrongPixels(f"no kernel for {', '.join(node.op_type for node in nodes)}")
    ends = [helper.make_tensor_value_info(name, TensorProto.UINT8, [f"{name}{axis}" for axis in "hwc"]) for name in "XY"]
    graph = helper.make_graph(nodes, "resize", ends[:1], ends[1:])
    functions = library(called_functions(nodes))
    body = OrtExecutor(helper.make_model(graph, functions=functions, opset_imports=opset_imports(), ir_version=IR_VERSION))
    if arrays is not None:
        return lambda photo: kernel(Pixels(array=arrays[id(photo)])).array(), lambda photo: body.run({"X": arrays[id(photo)]})[0]
    return lambda photo: kernel(Pixels(image=photo)).array(), lambda photo: body.run({"X": np.asarray(photo)})[0]


def _check(ways: Mapping[str, Way], photos: Sequence[Image.Image]) -> None:
    for number, photo in enumerate(photos):
        expected = ways[NATIVE](photo)
        for name in (KERNEL, BODY):
            if not np.array_equal(ways[name](photo), expected):
                raise WrongPixels(f"photo {number}: {name} and the library differ")


def _measure(ways: Mapping[str, Way], photos: Sequence[Image.Image], rounds: int) -> list[dict[str, float]]:
    """Return for every round CPU milliseconds per photo by way, the median over the photos."""
    order = random.Random(1)
    kept = []
    for _ in range(rounds):
        seen: dict[str, list[float]] = {name: [] for name in ways}
        for photo in photos:
            for name in order.sample(list(ways), len(ways)):
                ways[name](photo)  # what the way before it left in the caches is not its doing
                started = time.thread_time()
                ways[name](photo)
                seen[name].append((time.thread_time() - started) * 1e3)
        kept.append({name: round(statistics.median(times), 4) for name, times in seen.items()})
    return kept


def _page(record: Mapping[str, Any]) -> str:
    machine = record["machine"]
    size = f"{record['photos']} photos, {len(record['results'][0]['rounds'])} rounds"
    lines = [
        f"# Resizes by their bodies on {machine['class']}, {record['measured_on']}",
        "",
        f"Command: `{record['command']}` at revision {machine['revision']}.",
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}.",
        f"Versions: Python {machine['python']}, {', '.join(f'{name} {version}' for name, version in machine['packages'].items())}.",
        f"Other programs used {record['others_ratio']:.0%} of the CPU time meanwhile, the hypervisor took {record['stolen_ratio']:.0%}.",
        "",
        f"CPU milliseconds of one thread per decoded photo of 640 × 427, {size}:",
        "median of the rounds (smallest to largest). Ratios are taken within each round; in brackets the 95 % bootstrap interval of their",
        f"median. A body is promised to cost at most {ALLOWED:g} times the library. All three gave the same bits on every photo first.",
        "Pillow is measured from a Pillow image to an array, cv2 from array to array.",
        "",
        "| filter | to | library | kernel | body | body / library | body / kernel | promised |",
        "|---|---|--:|--:|--:|--:|--:|---|",
    ]
    for result in record["results"]:
        rounds = result["rounds"]
        spread = [_spread([measured[name] for measured in rounds]) for name in (NATIVE, KERNEL, BODY)]
        ratios = [interval([measured[BODY] / measured[other] for measured in rounds]) for other in (NATIVE, KERNEL)]
        shown = [f"**{middle:.2f}** ({low:.2f}–{high:.2f})" for middle, low, high in ratios]
        kept = "met" if ratios[0][2] <= ALLOWED else "missed" if ratios[0][1] > ALLOWED else "at the median"
        lines.append(f"| {' | '.join([result['filter'], result['task'], *spread, *shown, kept])} |")
    return "\n".join(lines) + "\n"


def _spread(times: Sequence[float]) -> str:
    return f"{statistics.median(times):.2f} ({min(times):.2f}–{max(times):.2f})"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds (default: 15)")
    parser.add_argument("--images", type=int, default=16, help="most photos (default: 16)")
    parser.add_argument("--no-write", action="store_true", help="print the page only")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
