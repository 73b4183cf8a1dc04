#!/usr/bin/env python3
"""What watching costs: drift, the access log and scrapes, each on and off, on rows and on images; and whether a flood of rows is counted.

    .venv/bin/python benchmarks/watching.py            five minutes on two cores; writes results/<date>-<class>-watching.*
    .venv/bin/python benchmarks/watching.py --quick    one short round of everything, written nowhere

Servers that differ in one thing live side by side and are loaded in turns, for a second or a few at a time, forwards in one round and
backwards in the next: what the machine does meanwhile meets all of them alike. A ratio is taken between two windows of one round;
shown are the median of the rounds and its 95 % bootstrap interval. Load comes from closed loops, so requests per second and the server's
CPU per request tell the same story; the second is the steadier figure.

The flood is rows in large bodies, as fast as they come: every answered row must be counted for drift, or counted as left out.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.load import load
from benchmarks.machine import Times, describe, machine_class
from benchmarks.operation import RESULTS, Scraper, Serving, scrape, serving
from benchmarks.ratios import median_interval, verdict
from benchmarks.workloads import FLIGHTS, IMAGENET, Workload

#: Most that watching may add to the CPU of a request, and take from the requests per second.
BOUND = 0.03
NOTHING = "nothing"
#: How servers are watched: options and settings. Everything but nothing is scraped every second.
ROWS: Mapping[str, tuple[Sequence[str], Mapping[str, str]]] = {
    NOTHING: (["--no-access-log"], {"DRIFT__ENABLED": "false"}),
    "drift": (["--no-access-log"], {}),
    "access log": ([], {"DRIFT__ENABLED": "false"}),
    "drift and access log": ([], {}),
}
IMAGES = {name: ROWS[name] for name in (NOTHING, "drift", "drift and access log")}
#: Rows of one body of the flood.
FLOOD_ROWS = 1_000
FLOOD_CLIENTS = 8
#: How long what waits after it may take to be counted, by a thread that may use half a percent of a CPU.
COUNTED_WITHIN_S = 60.0
#: What the flood is called where it is told of.
FLOODED = "samegraph_instances_total"


@dataclass(frozen=True)
class Case:
    """What is sent to servers that are watched in different ways.

    Attributes:
        workload: One kind of request.
        clients: How many send it, each in a closed loop.
        watched: See `ROWS`.
        rounds: How often every server has its turn.
        window_s: Seconds of a turn.
    """

    workload: Workload
    clients: int
    watched: Mapping[str, tuple[Sequence[str], Mapping[str, str]]]
    rounds: int
    window_s: float


CASES = (Case(FLIGHTS, 64, ROWS, 40, 1.0), Case(IMAGENET, 32, IMAGES, 16, 4.0))
QUICK = (Case(FLIGHTS, 64, ROWS, 1, 1.0), Case(IMAGENET, 32, IMAGES, 1, 2.0))


@dataclass
class Watched:
    """What was measured.

    Attributes:
        started_on: Date, UTC.
        machine: See `machine.describe`.
        cpu_ms: Workload → how the server is watched → CPU milliseconds per request, one per round.
        per_s: Likewise requests per second.
        flood: Rows per second, rows answered, counted, and left out by reason.
        others_ratio: Share of CPU time that other programs used meanwhile.
        stolen_ratio: Share of it that the hypervisor gave to others.
    """

    started_on: str = ""
    machine: dict[str, Any] = field(default_factory=dict)
    cpu_ms: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    per_s: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    flood: dict[str, float] = field(default_factory=dict)
    others_ratio: float = 0.0
    stolen_ratio: float = 0.0


def measure_case(figures: Watched, case: Case) -> None:
    """Give every server its turns."""
    name = case.workload.name
    cpu_ms = figures.cpu_ms.setdefault(name, {kind: [] for kind in case.watched})
    per_s = figures.per_s.setdefault(name, {kind: [] for kind in case.watched})
    with ExitStack() as stack:
        files = stack.enter_context(written(case.workload.bodies()))
        servers = {kind: stack.enter_context(serving(*options, **settings)) for kind, (options, settings) in case.watched.items()}
        for server in servers.values():
            load(server.running, case.workload, files, case.clients, case.window_s)
        for number in range(case.rounds):
            for kind in list(servers)[:: -1 if number % 2 else 1]:
                with contextlib.nullcontext() if kind == NOTHING else Scraper(servers[kind]):
                    found = load(servers[kind].running, case.workload, files, case.clients, case.window_s)
                if found.failed:
                    raise RuntimeError(f"{found.failed} requests failed")
                cpu_ms[kind].append(found.cpu_ms)
                per_s[kind].append(found.per_s)
            print(f"  {name}, CPU per request: " + ", ".join(f"{kind} {ms[-1]:.4f} ms" for kind, ms in cpu_ms.items()), flush=True)


@contextlib.contextmanager
def written(bodies: Sequence[bytes]) -> Iterator[list[Path]]:
    """Write bodies to files that live as long as the context."""
    with tempfile.TemporaryDirectory() as directory:
        files = [Path(directory) / f"body{number}" for number in range(len(bodies))]
        for file, body in zip(files, bodies, strict=True):
            file.write_bytes(body)
        yield files


def flood_body(bodies: Sequence[bytes], rows: int = FLOOD_ROWS) -> bytes:
    """Return one body of so many rows, taken in turn from bodies of one row each."""
    singles = [json.loads(body)["instances"][0] for body in bodies]
    return json.dumps({"instances": [singles[number % len(singles)] for number in range(rows)]}).encode()


def measure_flood(figures: Watched, seconds: float) -> None:
    """Send rows in large bodies, and compare what was answered with what was counted or left out."""
    flood = Workload("flood", "", FLIGHTS.model, FLIGHTS.version, FLIGHTS.content_type, (FLOOD_CLIENTS,), (1,), home=FLIGHTS.home)
    with serving("--no-access-log") as server, written([flood_body(FLIGHTS.bodies())]) as files:
        before = _ledger(server)
        found = load(server.running, flood, files, FLOOD_CLIENTS, seconds)
        told = time.monotonic() + COUNTED_WITHIN_S
        while (after := _ledger(server))["waiting"] > 0 or _missing(_grown(before, after)) != 0:  # the last of them are being counted
            if time.monotonic() > told:
                break
            time.sleep(0.2)
    if found.failed or found.refused:
        raise RuntimeError(f"{found.failed} requests failed, {found.refused} were refused")
    figures.flood = {"rows_per_s": found.per_s * FLOOD_ROWS, **_grown(before, after)}


def _grown(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    return {name: rows - before[name] for name, rows in after.items()}


def _missing(ledger: Mapping[str, float]) -> float:
    """Return the answered rows that are neither counted nor left out nor waiting."""
    return ledger["answered"] - sum(rows for name, rows in ledger.items() if name not in ("answered", "rows_per_s"))


def _ledger(server: Serving) -> dict[str, float]:
    """Return the rows answered, counted, waiting to be, and left out by reason."""
    ledger = {"answered": 0.0, "counted": 0.0, "waiting": 0.0}
    of_it = f'model="{FLIGHTS.model}",version="{FLIGHTS.version}"'
    for line in scrape(server).decode().splitlines():
        name, _, rest = line.partition("{")
        labels, _, value = rest.rpartition("} ")
        if of_it not in labels:
            continue
        if name == FLOODED:
            ledger["answered"] += float(value)
        elif name == "samegraph_input_rows_total":
            ledger["counted"] += float(value)
        elif name == "samegraph_drift_waiting_rows":
            ledger["waiting"] += float(value)
        elif name == "samegraph_drift_dropped_rows_total":
            ledger[labels.partition('reason="')[2].partition('"')[0]] = float(value)
    return ledger


# --- the page -------------------------------------------------------------------------------------------------------------


def page(figures: Watched) -> str:
    """Return the page of results."""
    machine = figures.machine
    conditions = (
        f"{figures.started_on} on {machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, revision {machine['revision']}. "
        f"Other programs used {100 * figures.others_ratio:.0f} % of the CPU, the hypervisor took {100 * figures.stolen_ratio:.1f} %. "
        "`.venv/bin/python benchmarks/watching.py` repeats it."
    )
    sections = ["# What watching costs", conditions]
    for case in CASES:
        name = case.workload.name
        if name in figures.cpu_ms:
            sections += [f"## {case.workload.title}", f"{case.clients} clients, {case.window_s:g} s a turn.", _table(figures, name)]
    if figures.flood:
        sections += ["## A flood of rows", _flood(figures.flood)]
    return "\n\n".join(sections) + "\n"


def _table(figures: Watched, name: str) -> str:
    cpu_ms, per_s = figures.cpu_ms[name], figures.per_s[name]
    lines = [
        "| on | CPU ms per request | against nothing (95 % interval) | requests/s | against nothing (95 % interval) | promised |  |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for kind, found in cpu_ms.items():
        own = f"| {kind} | {median_interval(found).median:.4f} |"
        rate = f"{median_interval(per_s[kind]).median:,.0f}"
        if kind == NOTHING:
            lines.append(f"{own}  | {rate} |  |  |  |")
            continue
        cpu = median_interval([a / b for a, b in zip(found, cpu_ms[NOTHING], strict=True)])
        speed = median_interval([a / b for a, b in zip(per_s[kind], per_s[NOTHING], strict=True)])
        judged = verdict(cpu, at_most=1 + BOUND)
        lines.append(
            f"{own} {cpu.median:.3f} ({cpu.low:.3f} to {cpu.high:.3f}, n = {cpu.n}) | {rate} | "
            f"{speed.median:.3f} ({speed.low:.3f} to {speed.high:.3f}) | ≤ {1 + BOUND:.2f} of the CPU | {judged} |"
        )
    return "\n".join(lines)


def _flood(flood: Mapping[str, float]) -> str:
    left_out = {name: rows for name, rows in flood.items() if name not in ("rows_per_s", "answered", "counted")}
    return (
        f"{FLOOD_CLIENTS} clients with bodies of {FLOOD_ROWS:,} rows: {flood['rows_per_s']:,.0f} rows a second, "
        f"{flood['answered']:,.0f} rows answered, {flood['counted']:,.0f} counted, left out and counted as that: "
        + ", ".join(f"{rows:,.0f} {name}" for name, rows in left_out.items())
        + f". Rows that are none of it: {_missing(flood):,.0f}."
    )


def measure(cases: Sequence[Case], flood_s: float) -> Watched:
    """Measure everything."""
    figures = Watched(dt.datetime.now(dt.UTC).date().isoformat(), describe())
    before = Times.now()
    measure_flood(figures, flood_s)
    for case in cases:
        print(case.workload.title, flush=True)
        measure_case(figures, case)
    after = Times.now()
    figures.others_ratio, figures.stolen_ratio = after.others_ratio_since(before), after.stolen_ratio_since(before)
    return figures


def main() -> int:
    """Measure, show and write; return the exit code."""
    parser = argparse.ArgumentParser(description="Measure what watching costs.")
    parser.add_argument("--quick", action="store_true", help="one short round of everything, written nowhere")
    quick = parser.parse_args().quick
    figures = measure(QUICK if quick else CASES, 1.0 if quick else 5.0)
    print(page(figures))
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{figures.started_on}-{machine_class()}-watching.json"
        path.write_text(json.dumps(asdict(figures), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(page(figures), encoding="utf-8")
        print(f"written to {path.name} and the page beside it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
