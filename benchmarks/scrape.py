#!/usr/bin/env python3
"""What a scrape at the cap on drift's series does to the latency of predictions.

    .venv/bin/python benchmarks/scrape.py            about a minute on two cores; writes results/<date>-<class>-scrape.*
    .venv/bin/python benchmarks/scrape.py --quick    one short round, written nowhere

All example models with four windows have more series than SAMEGRAPH_DRIFT__MAX_SERIES lets through, so a scrape is as large as it gets.
Load is one JSON row to `flights` 2, open arrivals at a share of what the server does in a closed loop; windows with a scrape every second
and without follow each other in an order that turns. Ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.load import load, open_load
from benchmarks.machine import Times, describe, machine_class
from benchmarks.operation import ARRIVALS, CLIENTS, RESULTS, Scraper, Serving, scrape, serving
from benchmarks.ratios import median_interval, verdict
from benchmarks.workloads import FLIGHTS

WINDOWS = "5m,1h,6h,24h"
#: Most that p99 may grow by.
BOUND = 1.1


@dataclass
class ScrapeFigures:
    """What was measured.

    Attributes:
        started_on: Date, UTC.
        machine: See `machine.describe`.
        series: Series in one scrape, and drift's alone that are exported and that the cap leaves out.
        bytes: Size of one scrape.
        rate_per_s: Arrivals per second.
        p99_ms: p99 without scrapes and with, a pair per round.
        p50_ms: Likewise the median.
        others_ratio: Share of CPU time that other programs used meanwhile.
        stolen_ratio: Share of it that the hypervisor gave to others.
    """

    started_on: str = ""
    machine: dict[str, Any] = field(default_factory=dict)
    series: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    rate_per_s: float = 0.0
    p99_ms: list[tuple[float, float]] = field(default_factory=list)
    p50_ms: list[tuple[float, float]] = field(default_factory=list)
    others_ratio: float = 0.0
    stolen_ratio: float = 0.0


def read_series(figures: ScrapeFigures, server: Serving) -> None:
    """Take note of how large a scrape is."""
    text = scrape(server)
    lines = [line for line in text.decode().splitlines() if not line.startswith("#")]
    own = {kind: int(float(line.rpartition(" ")[2])) for line in lines for kind in ("exported", "capped") if _is_series(line, kind)}
    figures.series, figures.bytes = {"all": len(lines), **own}, len(text)


def _is_series(line: str, kind: str) -> bool:
    return line.startswith(f'samegraph_drift_series{{kind="{kind}"}}')


def measure(rounds: int, window_s: float, load_ratio: float) -> ScrapeFigures:
    """Measure.

    Args:
        rounds: How often.
        window_s: Seconds of open arrivals with scrapes, and without.
        load_ratio: Arrivals, as a share of what a closed loop does.
    """
    figures = ScrapeFigures(dt.datetime.now(dt.UTC).date().isoformat(), describe())
    before = Times.now()
    with tempfile.TemporaryDirectory() as directory, serving("--no-access-log", DRIFT__WINDOWS=WINDOWS) as server:
        files = []
        for number, body in enumerate(FLIGHTS.bodies()):
            files.append(Path(directory) / f"body{number}")
            files[-1].write_bytes(body)
        figures.rate_per_s = load(server.running, FLIGHTS, files, CLIENTS, min(window_s, 2.0)).per_s * load_ratio
        read_series(figures, server)
        for number in range(rounds):
            found = {}
            for scraped in (False, True) if number % 2 else (True, False):
                with Scraper(server) if scraped else contextlib.nullcontext():
                    found[scraped] = open_load(server.running, FLIGHTS, files, figures.rate_per_s, window_s)
            figures.p99_ms.append((found[False].p99_ms, found[True].p99_ms))
            figures.p50_ms.append((found[False].p50_ms, found[True].p50_ms))
            print(f"  p99 {found[False].p99_ms:.2f} ms without scrapes, {found[True].p99_ms:.2f} ms with", flush=True)
    after = Times.now()
    figures.others_ratio, figures.stolen_ratio = after.others_ratio_since(before), after.stolen_ratio_since(before)
    return figures


def page(figures: ScrapeFigures) -> str:
    """Return the page of results."""
    machine, series = figures.machine, figures.series
    conditions = (
        f"{figures.started_on} on {machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, "
        f"revision {machine['revision']}. Other programs used {100 * figures.others_ratio:.0f} % of the CPU, the hypervisor took "
        f"{100 * figures.stolen_ratio:.1f} %. `.venv/bin/python benchmarks/scrape.py` repeats it."
    )
    what = (
        f"One scrape: {series['all']:,} series, {figures.bytes / 1000:,.0f} kB; of drift {series['exported']:,} are exported and "
        f"{series['capped']:,} left out by the cap. One JSON row to `flights` 2, {figures.rate_per_s:,.0f} arrivals a second, a scrape "
        "every second or none, in turns."
    )
    head = "| | without | with | ratio within a round (95 % interval) | bound | |\n|---|--:|--:|--:|--:|---|"
    rows = [_row("p99, ms", figures.p99_ms, BOUND), _row("p50, ms", figures.p50_ms, None)]
    return "\n\n".join(["# A scrape at the cap", conditions, what, "\n".join([head, *rows])]) + "\n"


def _row(what: str, pairs: Sequence[tuple[float, float]], bound: float | None) -> str:
    without, scraped = (median_interval([pair[i] for pair in pairs]).median for i in (0, 1))
    ratio = median_interval([b / a for a, b in pairs])
    judged = ("", "") if bound is None else (f"≤ {bound}", verdict(ratio, at_most=bound))
    spread = f"{ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f}, n = {ratio.n})"
    return f"| {what} | {without:.2f} | {scraped:.2f} | {spread} | {' | '.join(judged)} |"


def main() -> int:
    """Measure, show and write; return the exit code."""
    parser = argparse.ArgumentParser(description="Measure what a scrape at the cap does to p99.")
    parser.add_argument("--quick", action="store_true", help="one short round, written nowhere")
    parser.add_argument("--rounds", type=int, default=9, help="rounds (default: 9)")
    parser.add_argument("--window", type=float, default=2.5, help="seconds of a window (default: 2.5)")
    parser.add_argument("--load", type=float, default=ARRIVALS, help="share of the closed loop's requests (default: 0.5)")
    options = parser.parse_args()
    rounds, window_s = (1, 1.2) if options.quick else (options.rounds, options.window)
    figures = measure(rounds, window_s, options.load)
    print(page(figures))
    if not options.quick:
        path = RESULTS / f"{figures.started_on}-{machine_class()}-scrape.json"
        path.write_text(json.dumps(asdict(figures), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(page(figures), encoding="utf-8")
        print(f"written to {path.name} and the page beside it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
