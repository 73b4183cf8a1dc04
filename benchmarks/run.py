#!/usr/bin/env python3
"""Measure the servers side by side with this machine's own limit, in one run, and write a table of ratios.

    make bench                                   everything; a few minutes
    make bench BENCH="--quick"                   a glance: one short round, written nowhere
    .venv/bin/python benchmarks/run.py --workload images --rounds 5

The example packages must be built (`make models`) and wrk installed (`make bench` sees to both). Writes
benchmarks/results/<date>-<machine class>.json and .md. The exit code is 1 when a server answered wrongly or failed a request.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.limit import Limit, Measured, Way, WorkerDied, limit  # noqa: E402
from benchmarks.load import Load, check, load  # noqa: E402
from benchmarks.machine import Times, describe  # noqa: E402
from benchmarks.report import NOISY, Result, Round, page, summary, write  # noqa: E402
from benchmarks.report import Plain as PlainRound  # noqa: E402
from benchmarks.servers import SERVERS, Running, ServerFailed, running  # noqa: E402
from benchmarks.workloads import WORKLOADS, Plain, Workload  # noqa: E402


def main() -> int:
    """Measure what the command line asks for; return the exit code."""
    options = _options()
    missing = _what_is_missing(options)
    if missing:
        print(missing, file=sys.stderr)
        return 1
    servers: dict[str, dict[str, Any]] = {}
    began = time.monotonic()
    try:
        results = [measure(WORKLOADS[name], options, servers) for name in options.workload]
    except (ServerFailed, WorkerDied) as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        return 1
    record = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": "benchmarks/run.py " + " ".join(sys.argv[1:]),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "machine": describe(),
        "servers": servers,
        "workloads": {result.workload.name: summary(result) for result in results},
    }
    record["command"] = str(record["command"]).strip()
    print(f"\n{page(record)}\n({time.monotonic() - began:.0f} s)")
    if options.write:
        data, text = write(record, results, options.output)
        print(f"wrote {data} and {text.name}")
    return 1 if any(one.failed for result in results for one in _loads(result)) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", action="append", choices=list(WORKLOADS), help="one of them (default: all)")
    parser.add_argument("--server", action="append", choices=list(SERVERS), help="one of them (default: all)")
    parser.add_argument("--rounds", type=int, default=4, help="interleaved rounds (default: 4)")
    parser.add_argument("--patience", type=int, default=4, help="most rounds to repeat because other programs used the CPU (default: 4)")
    parser.add_argument("--seconds", type=int, default=5, help="length of each measurement (default: 5)")
    parser.add_argument("--quick", action="store_true", help="one round of 1 s, nothing written")
    parser.add_argument("--repository", type=Path, default=ROOT / "models", help="where the packages are (default: models)")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results", help="where results go")
    options = parser.parse_args()
    options.workload = options.workload or list(WORKLOADS)
    options.server = options.server or list(SERVERS)
    options.write = not options.quick
    if options.quick:
        options.rounds, options.seconds, options.patience = 1, 1, 0
    if options.rounds < 1 or options.seconds < 1:
        parser.error("at least one round of one second is needed")
    return options


def _what_is_missing(options: argparse.Namespace) -> str | None:
    """Return a sentence that says what to do first, or None."""
    if shutil.which("wrk") is None:
        return "wrk, the load generator, is not installed; run scripts/system-packages"
    for name in options.workload:
        package = WORKLOADS[name].package(options.repository)
        if not (package / "manifest.json").exists():
            return f"{package} is not there; run: make models"
    return None


def measure(workload: Workload, options: argparse.Namespace, servers: dict[str, dict[str, Any]]) -> Result:
    """Find the best plain ways, check every server's answers, then measure all in interleaved rounds.

    Args:
        workload: What to send.
        options: The command line.
        servers: Filled with how each server was started.
    """
    repository = options.repository.resolve()
    print(f"\n{workload.title}", flush=True)
    bodies = workload.bodies(repository)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        files = [scratch / str(number) for number in range(len(bodies))]
        for file, body in zip(files, bodies, strict=True):
            file.write_bytes(body)
        expected = _expected(workload, repository, bodies)
        plain = stack.enter_context(limit(workload, repository))
        ways = plain.candidates(1.0, _show_way)
        result = Result(workload)
        sending = _Sending(workload, repository, bodies, files, expected, scratch)
        result.rounds, result.repeated = calmest(
            lambda number: _round(number, ways, plain, options, sending, servers), options.rounds, options.patience
        )
    return result


def calmest(measure_round: Callable[[int], Round], rounds: int, patience: int) -> tuple[list[Round], int]:
    """Measure rounds until enough were calm; return them in order, and how many were set aside.

    A round in which other programs used the CPU is measured again, at most `patience` times in all; then the least disturbed count.
    """
    done: list[Round] = []
    while len(done) < rounds + patience and sum(one.others_ratio <= NOISY for one in done) < rounds:
        done.append(measure_round(len(done) + 1))
    kept = sorted(sorted(range(len(done)), key=lambda number: done[number].others_ratio)[:rounds])
    return [done[number] for number in kept], len(done) - len(kept)


class _Sending:
    """What a round needs to know to load a server."""

    def __init__(
        self, workload: Workload, repository: Path, bodies: list[bytes], files: list[Path], expected: list[list[Any]], scratch: Path
    ) -> None:
        self.workload = workload
        self.repository = repository
        self.bodies = bodies
        self.files = files
        self.expected = expected
        self.scratch = scratch


def _expected(workload: Workload, repository: Path, bodies: list[bytes]) -> list[list[Any]]:
    plain = Plain(workload, repository)
    return [plain.answers(body) for body in bodies]


def _show_way(way: Way, measured: Measured) -> None:
    print(f"  limit: {way!s:<38} {measured.per_s:10,.1f}/s   {measured.cpu_ms:8.3f} CPU ms each", flush=True)


def _round(
    number: int, ways: list[Way], plain: Limit, options: argparse.Namespace, sending: _Sending, servers: dict[str, dict[str, Any]]
) -> Round:
    """Measure the limit, each server at each number of clients, and the limit again; servers run one at a time."""
    began = Times.now()
    earlier = [plain.measure(way, options.seconds / 4) for way in ways]
    loads: dict[str, dict[int, Load]] = {}
    for name in options.server:
        with _checked(name, sending) as up:
            servers[name] = {"command": " ".join(up.command), "ready_s": round(up.ready_s, 2)}
            loads[name] = {}
            for clients in sending.workload.clients:
                one = load(up, sending.workload, sending.files, clients, options.seconds)
                loads[name][clients] = one
                latency = f"p50 {one.p50_ms:7.2f} ms   p99 {one.p99_ms:7.2f} ms   {one.cpu_ms:7.3f} CPU ms each"
                failed = f"   {one.failed} FAILED" if one.failed else ""
                print(f"  round {number}: {name} at {clients:>2} clients {one.per_s:10,.1f}/s   {latency}{failed}", flush=True)
    later = [plain.measure(way, options.seconds / 4) for way in ways]
    ended = Times.now()
    measured = [PlainRound(*three) for three in zip(ways, earlier, later, strict=True)]
    done = Round(measured, loads, ended.stolen_ratio_since(began), ended.others_ratio_since(began))
    for clients in sending.workload.clients:
        best = done.limit(clients)
        print(f"  round {number}: limit with {clients:>2} in flight {best.mean('per_s'):10,.1f}/s   {best.way}", flush=True)
    print(f"  round {number}: other programs used {done.others_ratio:.0%} of the CPU time", flush=True)
    return done


@contextmanager
def _checked(name: str, sending: _Sending) -> Iterator[Running]:
    """Start a server and let it be measured only when its answers are right."""
    with running(SERVERS[name], sending.repository, sending.scratch / f"{name}.log") as up:
        check(up, sending.workload, sending.bodies, sending.expected)
        yield up


def _loads(result: Result) -> Iterator[Load]:
    for one in result.rounds:
        for by_clients in one.loads.values():
            yield from by_clients.values()


if __name__ == "__main__":
    sys.exit(main())
