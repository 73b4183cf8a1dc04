#!/usr/bin/env python3
"""Measure what preparing an image costs beside the plain pipeline, on one thread: CPU per image, and the ratio with its interval.

    .venv-build/bin/python benchmarks/packages.py mobilenet    once: the package and the photos
    .venv/bin/python benchmarks/images.py                      about three minutes

The plain pipeline is `plain.py`: Pillow decode, resize, crop, NumPy normalise. Ours is what serving runs: the item plan, the stacking of a
batch of one, and the batch stage that normalises, here in a session of its own. Both end with the same float32 [3, 224, 224], compared bit
by bit before anything is measured. Ways take turns image by image, in an order that changes, so that a machine whose speed drifts still
gives true ratios; time is the thread's own CPU time. Writes benchmarks/results/<date>-images.json and .md.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

import numpy as np  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402
from PIL import Image  # noqa: E402
from samegraph_transforms.decode import open_image  # noqa: E402
from samegraph_transforms.executor import OrtExecutor  # noqa: E402
from samegraph_transforms.kernels import (  # noqa: E402
    Kernel,
    Pixels,
    center_window,
    host_kernel,
    resize_image,
    shorter_side_size,
)
from samegraph_transforms.opsets import DOMAIN  # noqa: E402
from samegraph_transforms.package import Package, read_package  # noqa: E402
from samegraph_transforms.runtime import PackageRuntime  # noqa: E402

from benchmarks.machine import Times, describe  # noqa: E402
from benchmarks.plain import IMAGE_SIZE, SHORTER_SIDE, Images  # noqa: E402

PACKAGES = ROOT / "benchmarks/.packages"
RESULTS = ROOT / "benchmarks/results"
PLAIN, OURS, WHOLE, BODIES = "plain", "ours", "ours, whole resize", "ours, no kernels"
PLAIN_MODEL, OUR_MODEL = "plain, with the model", "ours, with the model"
PILLOW_RESIZE, KERNEL, BODY = "resize and crop alone, Pillow", "the same, our kernel", "the same, ONNX bodies"
#: What each ratio is of; the first is the one that counts.
RATIOS = ((OURS, PLAIN), (WHOLE, PLAIN), (BODIES, PLAIN), (OUR_MODEL, PLAIN_MODEL), (KERNEL, PILLOW_RESIZE), (BODY, PILLOW_RESIZE))
RESAMPLES = 4_000

#: One image's encoded bytes → float32 [3, 224, 224], or the model's outputs.
Way = Callable[[bytes], Any]


class WrongPixels(Exception):
    """Raised when two ways do not give the same bits."""


@dataclass(frozen=True)
class Photos:
    """One kind of file.

    Attributes:
        title: What they are, in words.
        files: Encoded images.
    """

    title: str
    files: list[bytes]


def main() -> int:
    """Measure, write the result, print the page; return the exit code."""
    options = _options()
    package = read_package(PACKAGES / "mobilenet" / "1")
    ways = _ways(package, PACKAGES / ".plain" / "mobilenet.onnx")
    results = []
    before = Times.now()
    for photos in _photos(options.images):
        _check(ways, photos)
        print(f"{photos.title}: {len(photos.files)} files, {options.rounds} rounds", file=sys.stderr, flush=True)
        results.append({"photos": _facts(photos), "rounds": _measure(ways, photos.files, options.rounds)})
    after = Times.now()
    record = {
        "measured_on": datetime.now(UTC).date().isoformat(),
        "command": " ".join(["benchmarks/images.py", *sys.argv[1:]]),
        "machine": describe(),
        "others_ratio": round(after.others_ratio_since(before), 3),
        "stolen_ratio": round(after.stolen_ratio_since(before), 3),
        "results": results,
    }
    page = _page(record)
    print(page)
    if not options.no_write:
        path = RESULTS / f"{record['measured_on']}-images.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        path.with_suffix(".md").write_text(page)
    return 0


# --- what is measured ---------------------------------------------------------------------------------------------------------------------


def _ways(package: Package, plain_model: Path) -> dict[str, Way]:
    runtime, bodies = PackageRuntime.load(package), PackageRuntime.load(package, kernels="off")
    plain = Images(plain_model)
    model = OrtExecutor(plain_model)
    normalise = OrtExecutor(package.load_stage("preprocess.batch"))
    decoder = package.manifest.decoders[0]

    def normalised(feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        (batch,) = normalise.run(feeds)
        x: np.ndarray = batch[0]
        return x

    def prepared(loaded: PackageRuntime, data: bytes) -> np.ndarray:
        return normalised(loaded.collate([loaded.prepare((data,))]))

    @cache
    def decoded(data: bytes) -> Pixels:
        pixels = Pixels(image=open_image(data, decoder, max_pixels=None, field="image"))
        pixels.array()
        return pixels

    def cropped(image: Image.Image) -> np.ndarray:
        height, width = shorter_side_size((image.height, image.width), SHORTER_SIDE)
        top, left, bottom, right = center_window((height, width), (IMAGE_SIZE, IMAGE_SIZE), "half_even")
        return np.asarray(resize_image(image, (height, width), "bilinear", "pillow>=13").crop((left, top, right, bottom)))

    def whole(data: bytes) -> np.ndarray:
        return normalised({"pixels": cropped(open_image(data, decoder, max_pixels=None, field="image"))[np.newaxis]})

    kernel, body = _resize_and_crop(package)
    return {
        PLAIN: plain.decode,
        OURS: lambda data: prepared(runtime, data),
        WHOLE: whole,
        BODIES: lambda data: prepared(bodies, data),
        PLAIN_MODEL: lambda data: model.run({model.input_names[0]: plain.decode(data)[np.newaxis]}),
        OUR_MODEL: lambda data: runtime.run(runtime.collate([runtime.prepare((data,))])),
        PILLOW_RESIZE: lambda data: cropped(decoded(data).image()),
        KERNEL: lambda data: kernel(Pixels(image=decoded(data).image())).array(),
        BODY: lambda data: body.run({body.input_names[0]: decoded(data).array()})[0],
    }


def _resize_and_crop(package: Package) -> tuple[Kernel, OrtExecutor]:
    """Return the host kernel of the package's resize and crop, and the two as ONNX Runtime runs their bodies."""
    item = package.load_stage("preprocess.item")
    nodes = [node for node in item.graph.node if node.domain == DOMAIN and node.op_type != "ToRGB"]
    kernel = host_kernel(*nodes)
    if kernel is None:
        raise WrongPixels(f"the item stage is not a resize and a crop: {', '.join(node.op_type for node in nodes)}")
    ends = (nodes[0].input[0], nodes[-1].output[0])
    values = [helper.make_tensor_value_info(name, TensorProto.UINT8, [f"{name}_{axis}" for axis in "hwc"]) for name in ends]
    graph = helper.make_graph(nodes, "resize_and_crop", values[:1], values[1:])
    functions, imports = list(item.functions), list(item.opset_import)
    return kernel, OrtExecutor(helper.make_model(graph, functions=functions, opset_imports=imports, ir_version=item.ir_version))


def _photos(most: int) -> list[Photos]:
    """Return the benchmark's frames as they are, as cameras and web sites save them, and turned upright."""
    frames = [path.read_bytes() for path in sorted((PACKAGES / ".plain" / "frames").glob("*.jpg"))][:most]
    images = [Image.open(io.BytesIO(frame)).convert("RGB") for frame in frames]
    web = [_jpeg(image, quality=75, subsampling="4:2:0") for image in images]
    upright = [_jpeg(image.transpose(Image.Transpose.ROTATE_90), quality=75, subsampling="4:2:0") for image in images]
    return [
        Photos("640 × 427 as in the benchmark of servers", frames),
        Photos("640 × 427, quality 75, 4:2:0", web),
        Photos("427 × 640, quality 75, 4:2:0", upright),
    ]


def _jpeg(image: Image.Image, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **options)
    return out.getvalue()


def _check(ways: Mapping[str, Way], photos: Photos) -> None:
    for number, data in enumerate(photos.files):
        expected = ways[PLAIN](data)
        for name in (OURS, WHOLE, BODIES):
            if not np.array_equal(ways[name](data), expected):
                raise WrongPixels(f"{photos.title}, file {number}: {name!r} and {PLAIN!r} differ")
        if not all(np.array_equal(ways[name](data), ways[PILLOW_RESIZE](data)) for name in (KERNEL, BODY)):
            raise WrongPixels(f"{photos.title}, file {number}: the resized pixels differ")
        plain, ours = ways[PLAIN_MODEL](data), ways[OUR_MODEL](data)
        if not all(np.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(plain, ours, strict=True)):
            raise WrongPixels(f"{photos.title}, file {number}: the model answers differently")


def _facts(photos: Photos) -> dict[str, Any]:
    return {"title": photos.title, "files": len(photos.files), "mean_bytes": round(statistics.mean(map(len, photos.files)))}


def _measure(ways: Mapping[str, Way], files: Sequence[bytes], rounds: int) -> list[dict[str, float]]:
    """Return for every round CPU milliseconds per image by way, the median over the files; a first round that warms up is not kept."""
    order = random.Random(1)
    kept = []
    for _ in range(rounds + 1):
        seen: dict[str, list[float]] = {name: [] for name in ways}
        for data in files:
            for name in order.sample(list(ways), len(ways)):
                ways[name](data)  # what the way before it left in the caches is not its doing
                started = time.thread_time()
                ways[name](data)
                seen[name].append((time.thread_time() - started) * 1e3)
        kept.append({name: round(statistics.median(times), 4) for name, times in seen.items()})
    return kept[1:]


# --- the page -----------------------------------------------------------------------------------------------------------------------------


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median and its 95 % bootstrap interval: from resampled rounds, the same every time."""
    chance = random.Random(1)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return statistics.median(values), medians[round(0.025 * RESAMPLES)], medians[round(0.975 * RESAMPLES) - 1]


def _page(record: Mapping[str, Any]) -> str:
    machine = record["machine"]
    lines = [
        f"# Images on {machine['class']}, {record['measured_on']}",
        "",
        f"Command: `{record['command']}` at revision {machine['revision']}.",
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}.",
        f"Versions: Python {machine['python']}, {', '.join(f'{name} {version}' for name, version in machine['packages'].items())}.",
        f"Other programs used {record['others_ratio']:.0%} of the CPU time meanwhile, the hypervisor took {record['stolen_ratio']:.0%}.",
        "",
        *EXPLANATION,
    ]
    for result in record["results"]:
        lines += ["", *_table(result)]
    lines += ["", *NOTES]
    return "\n".join(lines) + "\n"


EXPLANATION = (
    "CPU milliseconds of one thread per image, from the encoded file to float32 [3, 224, 224] (shorter side 256, bilinear, centre crop,",
    "(x - mean) / std): median of the rounds (smallest to largest). Ratios are taken within each round; in brackets the 95 % bootstrap",
    "interval of their median. Every way gave the plain pipeline's bits on every file first.",
)
NOTES = (
    "- *plain*: `benchmarks/plain.py`: Pillow decode, convert, resize, crop, NumPy normalise. *With the model*: MobileNetV2 in ONNX",
    "  Runtime, one thread, a batch of one.",
    "- *ours*: the item plan that serving runs, the batch of one, and the batch stage that normalises, here in a session of its own.",
    "- *Resize and crop alone* take the decoded image and return the pixels; ratios are to Pillow's own two calls.",
    "- *whole resize*: the same without leaving out what the crop throws away. *No kernels*: every function by its ONNX body.",
    "- A photo's content moves the decoder's share, its size the resize's: other photos give other ratios.",
)


def _table(result: Mapping[str, Any]) -> list[str]:
    photos, rounds = result["photos"], result["rounds"]
    lines = [
        f"## {photos['title']}",
        "",
        f"{photos['files']} files of {photos['mean_bytes']:,} bytes on average, {len(rounds)} rounds.",
        "",
        "| | CPU ms | of the plain way |",
        "|---|--:|--:|",
    ]
    compared = dict(RATIOS)
    for name in rounds[0]:
        times = [measured[name] for measured in rounds]
        ratio = ""
        if name in compared:
            middle, low, high = interval([measured[name] / measured[compared[name]] for measured in rounds])
            ratio = f"**{middle:.3f}** ({low:.3f}–{high:.3f})"
        lines.append(f"| {name} | {statistics.median(times):.2f} ({min(times):.2f}–{max(times):.2f}) | {ratio} |")
    return lines


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds (default: 15)")
    parser.add_argument("--images", type=int, default=16, help="most files of each kind (default: 16)")
    parser.add_argument("--no-write", action="store_true", help="print the page only")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
