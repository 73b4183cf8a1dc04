#!/usr/bin/env python3
"""Measure the GPU executor beside plain `session.run` on the same GPU, in one run: same graph, same batches, every answer checked.

    make bench-gpu                                     the imagenet package; about two minutes
    .venv/bin/python benchmarks/gpu.py --package models/flights/2 --rounds 9

Both load the package's merged batch stages with the same provider options; what differs is how a batch gets there and back. Rounds are
interleaved. Writes benchmarks/results/<date>-gpu-<name>.json and .md. The exit code is 1 without a GPU, or when an answer is wrong.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnxruntime as ort  # noqa: E402
from samegraph_transforms import cuda, golden  # noqa: E402
from samegraph_transforms.errors import InputError  # noqa: E402
from samegraph_transforms.executor import CPU, CUDA, OrtExecutor, gpu_present, session_options  # noqa: E402
from samegraph_transforms.gpu import GpuOptions, provider_options  # noqa: E402
from samegraph_transforms.manifest import Tolerance  # noqa: E402
from samegraph_transforms.package import Package, read_package  # noqa: E402
from samegraph_transforms.runtime import Item, PackageRuntime  # noqa: E402
from samegraph_transforms.wire import decode_request  # noqa: E402

from benchmarks.machine import describe  # noqa: E402
from benchmarks.report import spread  # noqa: E402

NO_GPU = "There is no GPU here that ONNX Runtime can use, so there is nothing to measure; docs/gpu.md says what it needs."
WAYS = ("session.run", "bound buffers")
#: Runs at the same time: alone, and as many as the server uses on a GPU.
THREADS = (1, 2)


class WrongAnswer(Exception):
    """Raised when the two ways do not answer alike."""


class PlainSession:
    """What anybody would write first: a session on the GPU and `session.run` with NumPy arrays."""

    def __init__(self, model: onnx.ModelProto, providers: Sequence[tuple[str, dict[str, str]]]) -> None:
        self._session = ort.InferenceSession(model.SerializeToString(), session_options(1), providers=list(providers))
        self.input_names = tuple(i.name for i in self._session.get_inputs())
        self.output_names = tuple(o.name for o in self._session.get_outputs())
        self.providers = tuple(self._session.get_providers())

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run the graph once."""
        return self._session.run(list(self.output_names), feeds)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Figure:
    """One way at one batch size and number of threads: instances a second, a number a round."""

    way: str
    rows: int
    threads: int
    per_s: list[float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; return the exit code."""
    options = _options(arguments)
    if not (gpu_present() and cuda.usable()):
        print(NO_GPU, file=sys.stderr)
        return 1
    if not (options.package / "manifest.json").exists():
        print(f"{options.package} is not there; run: make models", file=sys.stderr)
        return 1
    try:
        package = read_package(options.package)
        figures = measure(package, CUDA, rounds=options.rounds, seconds=options.seconds, show=print)
    except WrongAnswer as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    found = record(package, figures, options, device_facts())
    print(f"\n{page(found)}")
    for path in write(found, options.output):
        print(f"wrote {path}")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, default=ROOT / "models/imagenet/1", help="a built package (default: models/imagenet/1)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: 5)")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of each measurement (default: 0.5)")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results", help="where results go")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("at least one round of some length is needed")
    return options


def measure(
    package: Package, providers: Sequence[str], *, rounds: int, seconds: float, show: Callable[[str], object] = lambda _: None
) -> list[Figure]:
    """Check the answers of both ways at every batch size, then measure them in turn.

    Args:
        package: What to run; its golden samples are the inputs.
        providers: `CUDA`, or `CPU` for a test of this program.
        rounds: How often everything is measured.
        seconds: Length of one measurement.
        show: Told of every figure.

    Raises:
        WrongAnswer: The two ways differ by more than the package promises for a GPU.
    """
    bound = PackageRuntime.load(package, providers=providers, gpu=GpuOptions(small_on_cpu=False))
    runtimes = {WAYS[0]: plain_runtime(package, providers), WAYS[1]: bound}
    items = _items(bound, package)
    bound.warm_up(items)
    sizes = batch_sizes(package.manifest.batching.max_batch_size)
    batches = {size: [items[i % len(items)] for i in range(size)] for size in sizes}
    promise = golden.promised(package.manifest, golden.runtime_profile(bound))
    for size, batch in batches.items():
        answers = [runtime.run(runtime.collate(batch)) for runtime in runtimes.values()]
        check(size, answers[0], answers[1], promise)
    figures = [Figure(way, size, threads, []) for size in sizes for threads in THREADS for way in WAYS]
    for _ in range(rounds):
        for figure in figures:
            figure.per_s.append(rate(runtimes[figure.way], batches[figure.rows], figure.threads, seconds) * figure.rows)
    for figure in figures:
        show(f"{figure.rows:5} rows, {figure.threads} at once, {figure.way:<14} {statistics.median(figure.per_s):12,.1f}/s")
    return figures


def batch_sizes(largest: int) -> list[int]:
    """Return the powers of two up to the largest batch, that itself, and sizes that need padding: 3 and one more than half the largest."""
    powers = {1 << i for i in range(largest.bit_length())}
    return sorted(size for size in powers | {largest, 3, largest // 2 + 1} if size <= largest)


def plain_runtime(package: Package, providers: Sequence[str]) -> PackageRuntime:
    """Load the package with plain sessions that have the same provider options."""
    chosen = provider_options(GpuOptions()) if tuple(providers) == CUDA else [(name, {}) for name in CPU]

    def plain(model: onnx.ModelProto) -> PlainSession:
        return PlainSession(model, chosen)

    return PackageRuntime(
        package,
        read_stage=lambda stage: package.load_stage(stage.name),
        make_item=OrtExecutor,
        make_merged=plain,
        load_stage=lambda stage: plain(package.load_stage(stage.name)),
        kernels="auto",
        merge=True,
    )


def _items(runtime: PackageRuntime, package: Package) -> list[Item]:
    items: list[Item] = []
    for sample in golden.read_samples(package.golden_dir()):
        rows = decode_request(runtime.signature, sample.headers, sample.body).rows
        items.extend(runtime.prepare(row) for row in rows if not isinstance(row, InputError))
    return items


def check(rows: int, expected: Sequence[np.ndarray], answer: Sequence[np.ndarray], promise: Tolerance) -> None:
    """Compare two answers: what is no float must be equal, floats within the promise of the package for a GPU.

    Raises:
        WrongAnswer: They differ.
    """
    for wanted, got in zip(expected, answer, strict=True):
        if wanted.shape != got.shape or wanted.dtype != got.dtype:
            raise WrongAnswer(f"a batch of {rows} gives {got.dtype}{list(got.shape)}; session.run gives {wanted.dtype}{list(wanted.shape)}")
        floats = wanted.dtype.kind == "f"
        if floats and not np.allclose(got, wanted, atol=promise.atol or 1e-5, rtol=promise.rtol or 1e-5, equal_nan=True):
            raise WrongAnswer(f"a batch of {rows} is {np.nanmax(np.abs(got - wanted)):.3g} away from what session.run gives")
        if not floats and not np.array_equal(got, wanted):
            raise WrongAnswer(f"a batch of {rows} gives other labels than session.run")


def rate(runtime: PackageRuntime, batch: Sequence[Item], threads: int, seconds: float) -> float:
    """Return runs a second with `threads` runs at the same time, after one that is not counted.

    Stacking the rows is part of a run: into an array for one way, into the page-locked buffer for the other.
    """

    def many() -> int:
        runs = 0
        while True:
            runtime.run(runtime.collate(batch))
            runs += 1
            if time.perf_counter() >= until:
                return runs

    runtime.run(runtime.collate(batch))
    with ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        until = began + seconds
        runs = sum(future.result() for future in [pool.submit(many) for _ in range(threads)])
        return runs / (time.perf_counter() - began)


# --- the result -------------------------------------------------------------------------------------------------------


def device_facts() -> dict[str, str]:
    """Return the GPU's name, memory and driver as nvidia-smi gives them."""
    names = ("name", "memory.total", "driver_version", "power.limit")
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader", "--id=0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    values = done.stdout.strip().splitlines()[0].split(", ") if done.stdout.strip() else []
    return dict(zip(names, values, strict=False)) or {"name": "unknown"}


def record(package: Package, figures: Sequence[Figure], options: argparse.Namespace, device: Mapping[str, str]) -> dict[str, Any]:
    """Return everything a reader needs to judge the figures."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": " ".join(["benchmarks/gpu.py", *sys.argv[1:]]).strip(),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "package": str(package),
        "digest": package.digest,
        "gpu": dict(device),
        "cuda": cuda.built_with(),
        "provider_options": provider_options(GpuOptions()),
        "machine": describe(),
        "figures": [
            {"way": f.way, "rows": f.rows, "threads": f.threads, "per_s": spread(f.per_s), "rounds": [round(v, 1) for v in f.per_s]}
            for f in figures
        ],
    }


def page(found: Mapping[str, Any]) -> str:
    """Return the result as Markdown: a row per batch size and number of runs at once."""
    machine, gpu = found["machine"], found["gpu"]
    libraries = [f"{name} {version}" for name, version in machine["packages"].items() if name.startswith(("onnx", "numpy"))]
    lines = [
        f"# {found['package']} on one {gpu['name']}",
        "",
        (
            f"{found['date']}, `{found['command']}`, revision {machine['revision']}. "
            f"{found['rounds']} interleaved rounds of {found['seconds']} s; medians, least and most in brackets. "
            f"Driver {gpu.get('driver_version', 'unknown')}, CUDA {found['cuda']}, {machine['cpu']}, {', '.join(libraries)}."
        ),
        "",
        "Instances a second from arrays in host memory to arrays in host memory; no HTTP, no decoding. Every answer was compared before.",
        "",
        f"| rows | runs at once | {WAYS[0]} | {WAYS[1]} | ratio |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *_table(found["figures"]), ""])


def _table(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    by_place = {(f["rows"], f["threads"], f["way"]): f for f in figures}
    lines = []
    for rows, threads in dict.fromkeys((f["rows"], f["threads"]) for f in figures):
        plain, bound = (by_place[rows, threads, way] for way in WAYS)
        ratios = spread([b / p for b, p in zip(bound["rounds"], plain["rounds"], strict=True)])
        cells = [str(rows), str(threads), _cell(plain["per_s"], ",.0f"), _cell(bound["per_s"], ",.0f"), _cell(ratios, ".2f")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cell(value: Mapping[str, float], form: str) -> str:
    return f"{value['median']:{form}} ({value['min']:{form}} to {value['max']:{form}})"


def write(found: Mapping[str, Any], directory: Path) -> tuple[Path, Path]:
    """Write the result as JSON and as a page; return both paths."""
    directory.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", found["gpu"]["name"].lower()).strip("-")
    data, text = (directory / f"{found['date']}-gpu-{name}.{suffix}" for suffix in ("json", "md"))
    data.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    text.write_text(page(found), encoding="utf-8")
    return data, text


if __name__ == "__main__":
    sys.exit(main())
