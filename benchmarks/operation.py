#!/usr/bin/env python3
"""The server in operation: start, memory, idling, a reload under load, and what a scrape costs.

    .venv/bin/python benchmarks/operation.py            four minutes on two cores; writes results/<date>-<class>-operation.*
    .venv/bin/python benchmarks/operation.py --quick    one short round of everything, written nowhere

All with the three example models loaded. Windows with and without what is looked at follow each other, in an order that turns; ratios are
taken within a round and shown as the median with a 95 % bootstrap interval. Load is one JSON row to `flights` 2, open arrivals at an
eighth of what the server does in a closed loop of 64 clients: alone, a request takes four or five times the CPU that it takes among
64, so an eighth keeps the event loop about half busy, and half would overload it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from samegraph_transforms.merging import merge_stages
from samegraph_transforms.package import canonical_json, read_package
from samegraph_transforms.packing import pack_columns

from benchmarks.load import check, load, open_load
from benchmarks.machine import Times, describe, machine_class
from benchmarks.processes import MARK
from benchmarks.ratios import Interval, median_interval, verdict
from benchmarks.servers import SERVERS, Running
from benchmarks.workloads import EXAMPLES, FLIGHTS, Plain

RESULTS = Path(__file__).with_name("results")
MODELS = ("flights", "imagenet", "penguins")
#: The model that is loaded again and again.
RELOADED = "imagenet"
TOKEN = "operation-benchmark-token"  # noqa: S105 - of a server that lives for minutes on this machine only
CLIENTS = 64
#: Open arrivals, as a share of what a closed loop of so many clients does.
ARRIVALS = 1 / 8
MIB = 1 << 20


@dataclass(frozen=True)
class Plan:
    """How often and how long.

    Attributes:
        starts: Starts that are timed.
        rounds: Rounds of everything that is compared.
        load_s: Seconds of a closed loop.
        window_s: Seconds of open arrivals in which one reload happens, and without one.
        within_s: The same for a window that lies within a reload.
        idle_s: Seconds of idling.
    """

    starts: int = 3
    rounds: int = 9
    load_s: float = 3.0
    window_s: float = 6.0
    within_s: float = 1.5
    idle_s: float = 30.0


QUICK = Plan(starts=1, rounds=1, load_s=1.0, window_s=4.0, idle_s=3.0)


@dataclass
class Figures:
    """What was measured.

    Attributes:
        started_on: Date, UTC.
        machine: See `machine.describe`.
        start_s: Every start: phase → seconds; `ready` is all of it, `load: <phase>` sums over the versions.
        memory_mib: Resident memory: of the server when ready and after the load, and of a bare process with the same graphs.
        idle_cpu_ratio: CPUs used while nothing is asked.
        capacity_per_s: Requests per second in the closed loop.
        p99_ms: Kind of window → p99 without and with a reload, a pair per round.
        reload_s: How long the reloads took that happened in the windows.
        scrape: Milliseconds of CPU, bytes and series of one scrape.
        others_ratio: Share of CPU time that other programs used meanwhile.
        stolen_ratio: Share of it that the hypervisor gave to others.
    """

    started_on: str = ""
    machine: dict[str, Any] = field(default_factory=dict)
    start_s: list[dict[str, float]] = field(default_factory=list)
    memory_mib: dict[str, float] = field(default_factory=dict)
    idle_cpu_ratio: float = 0.0
    capacity_per_s: float = 0.0
    p99_ms: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    reload_s: list[float] = field(default_factory=list)
    scrape: dict[str, float] = field(default_factory=dict)
    others_ratio: float = 0.0
    stolen_ratio: float = 0.0


# --- servers --------------------------------------------------------------------------------------------------------------


class Serving:
    """A server with all examples.

    Attributes:
        running: As the rest of the benchmarks knows it.
        repository: Where its models are.
        log: What it wrote.
    """

    def __init__(self, running: Running, repository: Path, log: Path) -> None:
        self.running = running
        self.repository = repository
        self.log = log

    def ask(self, method: str, path: str, headers: Mapping[str, str] | None = None) -> bytes:
        """Send a request without a body and return the answer's."""
        connection = http.client.HTTPConnection("127.0.0.1", self.running.port, timeout=120)
        with contextlib.closing(connection):
            connection.request(method, path, headers=dict(headers or {}))
            answer = connection.getresponse()
            body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{method} {path}: status {answer.status}: {body[:300]!r}")
        return body

    def reload(self) -> None:
        """Have the server look at its models, and wait until everything new was tried."""
        self.ask("POST", "/admin/reload", {"authorization": f"Bearer {TOKEN}"})

    def events(self) -> list[dict[str, Any]]:
        """Return the events of its log."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def started(self, within_s: float = 10.0) -> dict[str, Any]:
        """Return what it says about its start, which a thread of its own writes down soon after it answers that it is ready."""
        deadline = time.monotonic() + within_s
        while True:
            told = [event for event in self.events() if event["event"] == "server_started"]
            if told or time.monotonic() > deadline:
                (only,) = told
                return only
            time.sleep(0.01)

    def resident_mib(self) -> float:
        """Return its resident memory."""
        return resident_mib(self.running.pid)


def resident_mib(pid: int) -> float:
    """Return the resident memory of one process, shared pages included."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


@contextmanager
def serving(*options: str, **settings: str) -> Iterator[Serving]:
    """Start a server over a copy of the examples and wait until it is ready.

    Args:
        options: Of the command.
        settings: Variables without their prefix.
    """
    with tempfile.TemporaryDirectory(prefix="sg-") as scratch:
        repository, log = Path(scratch) / "models", Path(scratch) / "log"
        for model in MODELS:
            for version in (EXAMPLES / model).iterdir():
                if version.name.isdecimal():
                    shutil.copytree(version, repository / model / version.name)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [
            str(Path(sys.executable).with_name("samegraph")),
            "serve",
            "--repository",
            str(repository),
            "--port",
            str(port),
            *options,
        ]
        mark = uuid.uuid4().hex
        ours = {"ADMIN__TOKEN": TOKEN, "REPOSITORY__POLL_S": "3600", "LOG__FORMAT": "json", **settings}
        began = time.monotonic()
        with log.open("w") as out:
            process = subprocess.Popen(
                command, stderr=out, env={**os.environ, **{f"SAMEGRAPH_{k}": v for k, v in ours.items()}, MARK: mark}
            )
        running = Running(SERVERS["samegraph"], process.pid, port, 0.0, command, mark)
        found = Serving(running, repository, log)
        try:
            _wait_until_ready(found, process, began + 120)
            yield found
        finally:
            running.processes.end()
            process.wait()


def _wait_until_ready(server: Serving, process: subprocess.Popen[bytes], deadline: float) -> None:
    while time.monotonic() < deadline and process.poll() is None:
        try:
            server.ask("GET", "/readyz")
        except (OSError, RuntimeError, http.client.HTTPException):
            time.sleep(0.01)
        else:
            return
    raise RuntimeError(f"the server is not ready:\n{server.log.read_text()[-2000:]}")


# --- what is measured -------------------------------------------------------------------------------------------------------


def measure_starts(figures: Figures, starts: int) -> None:
    """Start the server a few times and read what it says about where the time went."""
    for _ in range(starts):
        with serving("--no-access-log") as server:
            started, events = server.started(), server.events()
        phases = {**started["phases"], "ready": started["seconds"]}
        for event in events:
            if event["event"] == "version_ready":
                for phase, seconds in event["phases"].items():
                    phases[f"load: {phase}"] = phases.get(f"load: {phase}", 0.0) + seconds
        figures.start_s.append(phases)


#: A process that does with the same graphs what a server must: loads them and runs one row through each, on every core.
BARE = """
import os, sys, threading
import numpy as np, onnxruntime as ort
KINDS = {"float": np.float32, "double": np.float64, "uint8": np.uint8, "int64": np.int64, "bool": np.bool_}
sessions = []
for path in sys.argv[1:]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions.append(ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]))
def run(session):
    feeds = {}
    for source in session.get_inputs():
        shape, kind = [1, *source.shape[1:]], source.type[7:-1]
        feeds[source.name] = np.full(shape, "a", object) if kind == "string" else np.zeros(shape, KINDS[kind])
    threads = [threading.Thread(target=session.run, args=(None, feeds)) for _ in os.sched_getaffinity(0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
for session in sessions:
    run(session)
print(int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
"""


def bare_mib(scratch: Path) -> float:
    """Return the resident memory of a bare process that runs the graphs the server runs."""
    paths = []
    for model in MODELS:
        for version in sorted(path for path in (EXAMPLES / model).iterdir() if path.name.isdecimal()):
            package = read_package(version)
            stages = [(stage, package.load_stage(stage.name)) for stage in package.manifest.stages if stage.name != "preprocess.item"]
            merged, _ = pack_columns(merge_stages(stages, [o.name for o in package.manifest.outputs]), package.manifest.fields)
            paths.append(scratch / f"{model}-{version.name}.onnx")
            paths[-1].write_bytes(merged.SerializeToString())
    done = subprocess.run([sys.executable, "-c", BARE, *map(str, paths)], capture_output=True, text=True, check=True)
    return int(done.stdout) / MIB


def idle_ratio(server: Serving, seconds: float) -> float:
    """Return how many CPUs a server uses that nobody asks anything."""
    time.sleep(1.0)
    before, began = server.running.processes.cpu_s(), time.monotonic()
    time.sleep(seconds)
    return (server.running.processes.cpu_s() - before) / (time.monotonic() - began)


class Reloads:
    """Gives a server new versions of a model to load, over and over.

    Attributes:
        seconds: How long each took, from the request to the answer that everything was tried.
    """

    def __init__(self, server: Serving, model: str = RELOADED) -> None:
        self._server = server
        self._home = server.repository / model
        self._number = 100
        self._staged: Path | None = None
        self.seconds: list[float] = []

    def stage(self) -> None:
        """Lay the next version out where the server does not see it, and take away the last but two."""
        self._number += 1
        source = EXAMPLES / self._home.name / "1"
        self._staged = self._server.repository.parent / "staged"
        shutil.copytree(source, self._staged)
        manifest = read_package(self._staged).manifest.model_copy(update={"version": self._number})
        (self._staged / "manifest.json").write_bytes(canonical_json(manifest))
        shutil.rmtree(self._home / str(self._number - 3), ignore_errors=True)

    def happen(self) -> None:
        """Let the server find the staged version, and wait until it answers."""
        assert self._staged is not None
        self._staged.rename(self._home / str(self._number))
        began = time.monotonic()
        self._server.reload()
        self.seconds.append(time.monotonic() - began)


def measure_reloads(figures: Figures, server: Serving, files: list[Path], plan: Plan) -> None:
    """Compare p99 of `flights` in windows with a reload of another model and without."""
    figures.capacity_per_s = load(server.running, FLIGHTS, files, CLIENTS, plan.load_s).per_s
    reloads = Reloads(server)
    rate = figures.capacity_per_s * ARRIVALS

    def p99(seconds: float, *, reloading: bool, lead_s: float) -> float:
        reloads.stage()
        happening = threading.Thread(target=reloads.happen)
        if reloading:
            happening.start()
            time.sleep(lead_s)
        measured = open_load(server.running, FLIGHTS, files, rate, seconds)
        if reloading:
            happening.join()
        else:
            reloads.happen()  # the same state of the repository for whoever comes next
        if measured.failed:
            raise RuntimeError(f"{measured.failed} requests failed")
        time.sleep(0.5)
        return measured.p99_ms

    p99(plan.within_s, reloading=True, lead_s=0)  # the first of its kind
    for kind, seconds, lead_s in (("one reload", plan.window_s, 0.0), ("within a reload", plan.within_s, 0.1)):
        pairs = figures.p99_ms.setdefault(kind, [])
        for number in range(plan.rounds):
            found = {on: p99(seconds, reloading=on, lead_s=lead_s) for on in _turned([False, True], number)}
            pairs.append((found[False], found[True]))
            print(f"  {kind}: p99 {found[False]:.2f} ms without, {found[True]:.2f} ms with", flush=True)
    figures.reload_s = reloads.seconds


def _turned(things: list[Any], number: int) -> list[Any]:
    """Return things in an order that changes from round to round."""
    turn = number % len(things)
    return things[turn:] + things[:turn]


class Scraper:
    """Asks for the metrics every second, as Prometheus would with the shortest interval people use."""

    def __init__(self, server: Serving) -> None:
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            scrape(self._server)


def scrape(server: Serving) -> bytes:
    """Ask for the metrics in the format Prometheus asks for."""
    return server.ask("GET", "/metrics", {"accept": "application/openmetrics-text; version=1.0.0"})


def measure_scrapes(figures: Figures, server: Serving, times: int = 100) -> None:
    """Find out what one scrape costs an idle server, the way through HTTP included."""
    text = scrape(server)
    before = server.running.processes.cpu_s()
    for _ in range(times):
        text = scrape(server)
    cpu_s = server.running.processes.cpu_s() - before
    series = sum(not line.startswith(b"#") for line in text.splitlines())
    figures.scrape = {"cpu_ms": 1e3 * cpu_s / times, "bytes": float(len(text)), "series": float(series)}


# --- the page ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Promise:
    """One line of the table.

    Attributes:
        what: In words.
        bound: Most that is promised.
        measured: What was found.
        write: How a figure is written.
    """

    what: str
    bound: float
    measured: Interval
    write: Callable[[float], str]

    def row(self) -> tuple[str, ...]:
        """Return it as a row of the table."""
        found = self.measured
        spread = f" ({self.write(found.low)} to {self.write(found.high)}, n = {found.n})" if found.n > 1 else ""
        return self.what, f"≤ {self.write(self.bound)}", f"{self.write(found.median)}{spread}", verdict(found, at_most=self.bound)


def promises(figures: Figures) -> list[Promise]:
    """Return what is promised beside what was measured."""

    def seconds(value: float) -> str:
        return f"{value:.2f} s"

    def mib(value: float) -> str:
        return f"{value:.0f} MiB"

    def percent(value: float) -> str:
        return f"{100 * value:.2f} %"

    def ratio(value: float) -> str:
        return f"{value:.3f} ×"

    found = [
        Promise("start, beside loading and proving", 1.5, median_interval([s["imports"] + s["setup"] for s in figures.start_s]), seconds),
        Promise(
            "resident memory when ready, over a bare process with the same graphs",
            80 * 1e6 / MIB,
            median_interval([figures.memory_mib["ready"] - figures.memory_mib["bare"]]),
            mib,
        ),
        Promise("CPU while idle", 0.005, median_interval([figures.idle_cpu_ratio]), percent),
    ]
    found += [
        Promise(f"p99 of `flights`: {kind} of `{RELOADED}`, against none", 1.1, median_interval([b / a for a, b in pairs]), ratio)
        for kind, pairs in figures.p99_ms.items()
    ]
    return found


def page(figures: Figures) -> str:
    """Return the page of results."""
    machine, scraped = figures.machine, figures.scrape
    reload_s = median_interval(figures.reload_s).median
    conditions = (
        f"{figures.started_on} on {machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, revision {machine['revision']}. "
        f"Other programs used {100 * figures.others_ratio:.0f} % of the CPU, the hypervisor took {100 * figures.stolen_ratio:.1f} %. "
        "All with the three example models (four versions). `.venv/bin/python benchmarks/operation.py` repeats it."
    )
    start = (
        "Seconds, medians. `load` sums over the versions, which load side by side: it is more than the time that passes. A battery of "
        "kernels runs once per machine and is part of `item_stage`."
    )
    memory = (
        "Resident MiB. The bare process imports NumPy and ONNX Runtime, loads the same four graphs and runs one row through each on "
        "every core."
    )
    reloads = (
        f"{figures.capacity_per_s * ARRIVALS:,.0f} arrivals a second, an eighth of what a closed loop does. A reload took {reload_s:.2f} s "
        f"(median of {len(figures.reload_s)}): another version of `{RELOADED}` is read, proven and warmed up."
    )
    one = f"{scraped['cpu_ms']:.1f} ms of CPU for {scraped['series']:.0f} series ({scraped['bytes'] / 1000:.0f} kB)"
    watching = f"One scrape takes {one}, HTTP included. What else watching costs: `watching.py`."
    sections = [
        "# The server in operation",
        conditions,
        _table("promise | bound | measured (95 % interval) | ", [promise.row() for promise in promises(figures)]),
        "## Start",
        start,
        _table("phase | s", [(name, _median([start[name] for start in figures.start_s], 3)) for name in figures.start_s[0]]),
        "## Memory",
        memory,
        _table("process | MiB", [(name, f"{value:.0f}") for name, value in figures.memory_mib.items()]),
        "## A reload under load",
        reloads,
        _table(
            "window | p99 without, ms | p99 with, ms | rounds",
            [
                (kind, _median([without for without, _ in pairs], 2), _median([reloading for _, reloading in pairs], 2), str(len(pairs)))
                for kind, pairs in figures.p99_ms.items()
            ],
        ),
        "## A scrape",
        watching,
    ]
    return "\n\n".join(sections) + "\n"


def _median(values: Sequence[float], digits: int) -> str:
    return f"{median_interval(values).median:.{digits}f}"


def _table(head: str, rows: Iterable[Sequence[str]]) -> str:
    columns = head.count("|") + 1
    return "\n".join([f"| {head} |", "|---" + "|--:" * (columns - 1) + "|", *(f"| {' | '.join(row)} |" for row in rows)])


def measure(plan: Plan) -> Figures:
    """Measure everything."""
    figures = Figures(dt.datetime.now(dt.UTC).date().isoformat(), describe())
    before = Times.now()
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        bodies = FLIGHTS.bodies()
        files = []
        for number, body in enumerate(bodies):
            files.append(scratch / f"body{number}")
            files[-1].write_bytes(body)
        print("starts", flush=True)
        measure_starts(figures, plan.starts)
        print("memory, idling, scrapes, reloads", flush=True)
        with serving("--no-access-log") as server:
            figures.memory_mib = {"bare": bare_mib(scratch), "ready": server.resident_mib()}
            plain = Plain(FLIGHTS)
            check(server.running, FLIGHTS, bodies, [plain.answers(body) for body in bodies])
            figures.idle_cpu_ratio = idle_ratio(server, plan.idle_s)
            measure_scrapes(figures, server)
            measure_reloads(figures, server, files, plan)
            figures.memory_mib["after the load and the reloads"] = server.resident_mib()
    after = Times.now()
    figures.others_ratio, figures.stolen_ratio = after.others_ratio_since(before), after.stolen_ratio_since(before)
    return figures


def main() -> int:
    """Measure, show and write; return the exit code."""
    parser = argparse.ArgumentParser(description="Measure the server in operation: start, memory, idling, scrapes, reloads.")
    parser.add_argument("--quick", action="store_true", help="one short round of everything, written nowhere")
    quick = parser.parse_args().quick
    figures = measure(QUICK if quick else Plan())
    print(page(figures))
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{figures.started_on}-{machine_class()}-operation.json"
        path.write_text(json.dumps(asdict(figures), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(page(figures), encoding="utf-8")
        print(f"written to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path.name} and the page beside it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
