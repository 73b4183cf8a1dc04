#!/usr/bin/env python3
"""Where the time of one row goes inside the process: decode, collate, run, encode; packed columns beside separate ones.

    .venv/bin/python benchmarks/stages.py              a table on standard output; about half a minute

No HTTP and no server: see run.py for those. Each figure is the median of interleaved rounds, in microseconds of one thread.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import msgspec  # noqa: E402
from samegraph_transforms.golden import read_samples  # noqa: E402
from samegraph_transforms.package import read_package  # noqa: E402
from samegraph_transforms.runtime import PackageRuntime  # noqa: E402
from samegraph_transforms.wire import decode_v1, predictions  # noqa: E402

EXAMPLES = (("penguins", 1), ("flights", 1), ("flights", 2))


def main() -> int:
    """Measure and print; return the exit code."""
    options = _options()
    columns = ("decode", "collate, packed", "run, packed", "collate, separate", "run, separate", "encode")
    print("| model | rows | " + " | ".join(columns) + " |")
    print("|---|--:|" + "--:|" * len(columns))
    for name, version in EXAMPLES:
        for rows in (1, 64):
            stages = _stages(options.repository / name / str(version), rows)
            figures = _measure(stages, options.rounds, max(20, options.calls // rows))
            print(f"| {name} {version} | {rows} | " + " | ".join(f"{figures[c]:.1f}" for c in columns) + " |", flush=True)
    return 0


def _stages(path: Path, rows: int) -> dict[str, Callable[[], Any]]:
    package = read_package(path)
    packed, separate = PackageRuntime.load(package), PackageRuntime.load(package, merge=False)
    instance = msgspec.json.decode(read_samples(package.golden_dir())[0].body)["instances"][0]
    body = msgspec.json.encode({"instances": [instance] * rows})
    items: list[Any] = list(decode_v1(packed.signature, body).rows)
    packed_feeds, separate_feeds = packed.collate(items), separate.collate(items)
    outputs, arrays = package.manifest.outputs, packed.run(packed_feeds)
    return {
        "decode": lambda: decode_v1(packed.signature, body),
        "collate, packed": lambda: packed.collate(items),
        "run, packed": lambda: packed.run(packed_feeds),
        "collate, separate": lambda: separate.collate(items),
        "run, separate": lambda: separate.run(separate_feeds),
        "encode": lambda: msgspec.json.encode({"predictions": predictions(outputs, arrays)}),
    }


def _measure(stages: dict[str, Callable[[], Any]], rounds: int, calls: int) -> dict[str, float]:
    """Return microseconds per call, the median of `rounds` interleaved rounds."""
    seen: dict[str, list[float]] = {name: [] for name in stages}
    for _ in range(rounds):
        for name, stage in stages.items():
            stage()
            started = time.perf_counter()
            for _ in range(calls):
                stage()
            seen[name].append((time.perf_counter() - started) / calls * 1e6)
    return {name: statistics.median(figures) for name, figures in seen.items()}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=ROOT / "models", help="where the packages are (default: models)")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (default: 7)")
    parser.add_argument("--calls", type=int, default=1500, help="calls per round of one row (default: 1500)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
