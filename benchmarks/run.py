#!/usr/bin/env python3
"""Measure the servers side by side with this machine's own limit, in one run, and write a table of ratios.

    make bench                                   everything
    make bench BENCH="--quick"                   a glance: one short round of a few, written nowhere
    .venv/bin/python benchmarks/run.py --workload mobilenet --server samegraph --rounds 5
    .venv/bin/python benchmarks/run.py --workload trees --merge benchmarks/results/<file>.json
    .venv/bin/python benchmarks/run.py --plan    how long a run will take, and nothing else

The packages must be built and the peers installed (`make bench` sees to both). What is not there is said and left out. Writes
benchmarks/results/<date>-<machine class>.json, .md and .svg, after every round, so that a run that is stopped loses nothing. The exit code
is 1 when samegraph did not start, answered wrongly or failed a request.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import analysis, picture, record, report  # noqa: E402
from benchmarks.analysis import OURS  # noqa: E402
from benchmarks.contenders import VARIANTS, clients_of, contenders, groups, role, rotated, takes_burst, takes_offered, takes_part  # noqa: E402
from benchmarks.limit import Limit, Measured, Way, WorkerDied, limit  # noqa: E402
from benchmarks.load import Load, burst, check, load, open_load  # noqa: E402
from benchmarks.machine import Times, describe, machine_class  # noqa: E402
from benchmarks.plan import OFFERED_S, QUICK, Pace, Progress, group_s, offered_s, slices_s, total_s, turn_s  # noqa: E402
from benchmarks.processes import ProcessesLeft  # noqa: E402
from benchmarks.record import Contender, Plain, Record, Result, Round, Turn  # noqa: E402
from benchmarks.report import NOISY  # noqa: E402
from benchmarks.servers import Running, ServerFailed, running  # noqa: E402
from benchmarks.workloads import WORKLOADS, Workload  # noqa: E402
from benchmarks.workloads import Plain as PlainPython  # noqa: E402

#: What `--quick` looks at when nothing is named.
QUICK_WORKLOADS = ("trees", "rows1000", "mobilenet", "burst")
QUICK_SERVERS = (OURS, "mosec", "fastapi")
#: Rates of open arrivals, as shares of what ours answers at most in a closed loop: rows, where servers differ by orders of magnitude, and
#: images, where they do not.
OFFERED_ROWS: Final = (0.02, 0.05, 0.15, 0.3, 0.5, 0.75, 1.0, 1.2)
OFFERED_IMAGES: Final = (0.2, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.3)
#: A server that answers less than this share of what is offered is not asked for more.
OVERWHELMED: Final = 0.6


class Disturbed(Protocol):
    """Something measured while other programs used the CPU."""

    @property
    def others_ratio(self) -> float:
        """The share of CPU time they used."""


DisturbedT = TypeVar("DisturbedT", bound=Disturbed)


def calmest(measure_round: Callable[[int], DisturbedT], rounds: int, patience: int) -> tuple[list[DisturbedT], int]:
    """Measure rounds until enough were calm; return them in order, and how many were set aside.

    A round in which other programs used the CPU is measured again, at most `patience` times in all; then the least disturbed count.
    """
    done: list[DisturbedT] = []
    while len(done) < rounds + patience and sum(one.others_ratio <= NOISY for one in done) < rounds:
        done.append(measure_round(len(done) + 1))
    kept = sorted(sorted(range(len(done)), key=lambda number: done[number].others_ratio)[:rounds])
    return [done[number] for number in kept], len(done) - len(kept)


@dataclass(frozen=True)
class GroupRound:
    """One round of all workloads of a group."""

    rounds: dict[str, Round]
    others_ratio: float


@dataclass(frozen=True)
class Sending:
    """What is sent for one workload, and what must come back."""

    workload: Workload
    bodies: list[bytes]
    files: list[Path]
    expected: list[list[Any]]

    @classmethod
    def of(cls, workload: Workload, scratch: Path) -> Sending:
        """Read the bodies, write each to a file for the load generator, and ask plain Python for the answers."""
        bodies = workload.bodies()
        directory = scratch / workload.name
        directory.mkdir()
        files = [directory / str(number) for number in range(len(bodies))]
        for file, body in zip(files, bodies, strict=True):
            file.write_bytes(body)
        plain = PlainPython(workload)
        return cls(workload, bodies, files, [plain.answers(body) for body in bodies])


class Session:
    """The workloads of one model, measured together: each server is started once a round for all of them.

    Args:
        group: The workloads.
        names: Who may take part.
        options: The command line.
        progress: Told of every turn.
        save: Called when there is more to keep.
    """

    def __init__(
        self, group: Sequence[Workload], names: Sequence[str], options: argparse.Namespace, progress: Progress, save: Callable[[], None]
    ) -> None:
        self.group = list(group)
        self.results = {workload.name: _empty(workload, options) for workload in group}
        self._pace: Pace = options.pace
        self._progress = progress
        self._save = save
        self._servers = contenders()
        self._names = [name for name in names if self._joins(name)]
        self._kept: dict[str, list[Round]] = {workload.name: [] for workload in group}

    def measure(self, offered: bool) -> None:
        """Measure everything; results fill up round by round.

        Args:
            offered: Whether open arrivals are measured too.

        Raises:
            ServerFailed: Ours did.
            WorkerDied: Plain Python did.
        """
        print(f"\n{'; '.join(workload.title for workload in self.group)}", flush=True)
        with ExitStack() as stack:
            self._scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self._sendings = [Sending.of(workload, self._scratch) for workload in self.group]
            self._limit = stack.enter_context(limit(self.group))
            self._ways = self._candidates(self._limit)
            for result, workload in zip(self.results.values(), self.group, strict=True):
                result.plain_mib = _plain_mib(workload)
            own = [name for name in self._names if role(name) in ("ours", "variant")] or self._names
            with_peers, alone = self._pace.rounds_of(self.group)
            self._rounds(self._names, with_peers)
            self._rounds(own, alone)
            if offered:
                for sending in self._sendings:
                    self._offer(sending)

    def _joins(self, name: str) -> bool:
        """Whether a contender takes part; when something stands in its way, that is noted."""
        wanted = [workload for workload in self.group if takes_part(name, workload)]
        if not wanted:
            return False
        server = self._servers[name]
        reason = server.unavailable(wanted[0])
        for workload in wanted:
            known = Contender(role(name), note=reason or server.version(), does_less=name in VARIANTS and VARIANTS[name].does_less)
            self.results[workload.name].contenders[name] = known
        if reason:
            print(f"  {name}: {reason}", flush=True)
        return reason is None

    def _candidates(self, plain: Limit) -> dict[str, list[Way]]:
        """Find the ways of each workload; those that send the same to the same model share theirs."""
        found: dict[tuple[str, str], list[Way]] = {}
        for workload in self.group:
            if workload.source not in found:
                alike = sorted({number for other in self.group if other.source == workload.source for number in other.in_flight})
                found[workload.source] = plain.candidates(workload, self._pace.slice_of(workload), _show_way, alike)
        return {workload.name: found[workload.source] for workload in self.group}

    def _rounds(self, names: Sequence[str], rounds: int) -> None:
        """Measure rounds with these contenders and keep the calmest of them beside those that were kept before."""
        before = {name: list(kept) for name, kept in self._kept.items()}

        def one(number: int) -> GroupRound:
            done = self._round(names, number)
            for name, result in self.results.items():
                result.rounds.append(done.rounds[name])
            self._save()
            return done

        if rounds == 0:
            return
        kept, repeated = calmest(one, rounds, self._pace.patience)
        for name, result in self.results.items():
            self._kept[name] = before[name] + [one.rounds[name] for one in kept]
            result.rounds = list(self._kept[name])
            result.repeated += repeated
        self._save()

    def _round(self, names: Sequence[str], number: int) -> GroupRound:
        """Measure everybody once, in an order that changes from round to round; the limit stands before and after ours."""
        order = [name for name in rotated(names, number - 1) if name in self._names]
        beside = OURS if OURS in order else next(iter(order), None)
        began = Times.now()
        turns: dict[str, dict[str, Turn]] = {workload.name: {} for workload in self.group}
        slices: list[dict[str, list[Measured]]] = []
        for name in order:
            if name == beside:
                slices.append(self._slice())
            self._turn(name, number, turns)
            if name == beside:
                slices.append(self._slice())
                self._progress.done(slices_s(self.group, self._pace))
        while len(slices) < 2:
            slices.append(self._slice())
        ended = Times.now()
        stolen, others = ended.stolen_ratio_since(began), ended.others_ratio_since(began)
        rounds = {}
        for workload in self.group:
            ways = self._ways[workload.name]
            plain = [Plain(*three) for three in zip(ways, slices[0][workload.name], slices[1][workload.name], strict=True)]
            rounds[workload.name] = Round(plain, turns[workload.name], stolen, others)
        print(f"  other programs used {others:.0%} of the CPU time in round {number} of {', '.join(rounds)}  {self._progress}", flush=True)
        return GroupRound(rounds, others)

    def _slice(self) -> dict[str, list[Measured]]:
        """Measure the limit: each way of each source once."""
        done: dict[tuple[str, str], list[Measured]] = {}
        for workload in self.group:
            if workload.source not in done:
                seconds = self._pace.slice_of(workload)
                done[workload.source] = [self._limit.measure(workload, way, seconds) for way in self._ways[workload.name]]
        return {workload.name: done[workload.source] for workload in self.group}

    def _turn(self, name: str, number: int, turns: dict[str, dict[str, Turn]]) -> None:
        """Start one contender, check its answers, load it; a peer that fails is left out from then on, ours ends the run."""
        log = self._scratch / f"{name}.log"
        sendings = [sending for sending in self._sendings if takes_part(name, sending.workload)]
        try:
            with running(self._servers[name], sendings[0].workload, log) as up:
                loading_s = _loading_s(log) if role(name) in ("ours", "variant") else None
                for sending in sendings:
                    check(up, sending.workload, sending.bodies, sending.expected)
                ready_mib = up.processes.pss_bytes() / 2**20
                for sending in sendings:
                    loads = {clients: self._load(up, sending, clients, number) for clients in clients_of(name, sending.workload)}
                    sent = None
                    if takes_burst(name, sending.workload):
                        sent = burst(up, sending.workload, sending.files, sending.expected, sending.workload.burst)
                        print(
                            f"  round {number}: {name} burst of {sent.requests} in {sent.makespan_s:.2f} s, {sent.refused} refused",
                            flush=True,
                        )
                    turns[sending.workload.name][name] = Turn(up.ready_s, loading_s, ready_mib, loads, sent)
                    self._note(sending.workload, name, command=" ".join(up.command))
        except (ServerFailed, ProcessesLeft, OSError) as error:
            if role(name) == "ours":
                raise ServerFailed(str(error)) from error
            print(f"  {name}: FAILED, left out from here on: {error}", flush=True)
            self._names.remove(name)
            for sending in sendings:
                self._note(sending.workload, name, note=f"failed: {str(error).splitlines()[0]}")
        self._progress.done(turn_s(name, self.group, self._pace))

    def _load(self, up: Running, sending: Sending, clients: int, number: int) -> Load:
        name = up.server.name
        one = load(up, sending.workload, sending.files, clients, self._pace.seconds_of(name, sending.workload), sending.expected)
        if one.wrong and role(name) == "ours":
            raise ServerFailed(
                f"{name} answered {one.wrong} of {one.compared} sampled requests of {sending.workload.name} wrongly under load"
            )
        latency = f"p50 {one.p50_ms:8.2f} ms   p99 {one.p99_ms:8.2f} ms   {one.cpu_ms:7.3f} CPU ms each"
        bad = f"   {one.failed} FAILED, {one.wrong} WRONG" if one.failed or one.wrong else ""
        print(
            f"  round {number}: {sending.workload.name:<9} {name:<20} {clients:>2} clients {one.per_s:9,.1f}/s   {latency}{bad}", flush=True
        )
        return one

    def _offer(self, sending: Sending) -> None:
        """Load a few servers with open arrivals at rising rates, until they answer much less than is offered."""
        workload, result = sending.workload, self.results[sending.workload.name]
        best = analysis.figure(result, OURS, max(workload.clients), "per_s") if workload.clients else None
        if best is None:
            return
        for name in [name for name in self._names if takes_offered(name, workload)]:
            try:
                with running(self._servers[name], workload, self._scratch / f"{name}.log") as up:
                    check(up, workload, sending.bodies, sending.expected)
                    found = result.offered.setdefault(name, [])
                    for share in OFFERED_IMAGES if workload.is_image else OFFERED_ROWS:
                        one = open_load(up, workload, sending.files, share * best.median, OFFERED_S, sending.expected)
                        found.append(one)
                        print(
                            f"  offered {one.offered_per_s:9,.1f}/s to {name:<12} answered {one.per_s:9,.1f}/s   "
                            f"p50 {one.p50_ms:8.2f} ms   p99 {one.p99_ms:8.2f} ms   {one.failed} failed",
                            flush=True,
                        )
                        if one.per_s < OVERWHELMED * one.offered_per_s:
                            break
            except (ServerFailed, ProcessesLeft, OSError) as error:
                print(f"  {name}: FAILED under open arrivals: {error}", flush=True)
            self._progress.done(offered_s([name], workload))
            self._save()

    def _note(self, workload: Workload, name: str, *, command: str | None = None, note: str | None = None) -> None:
        known = self.results[workload.name].contenders
        known[name] = replace(known[name], command=command or known[name].command, note=note or known[name].note)


def main() -> int:
    """Measure what the command line asks for; return the exit code."""
    options = _options()
    workloads = [WORKLOADS[name] for name in options.workload]
    missing = _what_is_missing(workloads)
    if missing:
        print(missing, file=sys.stderr)
        return 1
    planned_s = total_s(workloads, options.server, options.pace, offered=options.offered)
    print(
        f"{_plan(workloads, options)}about {planned_s / 60:.0f} minutes in all, some more where other programs disturb a round", flush=True
    )
    if options.plan:
        return 0
    _adopt_orphans()
    for number in (signal.SIGINT, signal.SIGTERM):  # servers have sessions of their own: whoever stops the benchmark must stop them too
        signal.signal(number, signal.default_int_handler)
    older = record.read(options.merge) if options.merge else Record(machine_class())
    measured = Record(machine_class())
    path = options.merge or free_path(options.output, f"{datetime.now(UTC):%Y-%m-%d}-{machine_class()}")

    def save() -> None:
        if options.write:
            _write(record.merged(older, measured), path)

    progress = Progress(planned_s)
    code = 0
    began = time.monotonic()
    for group in groups(workloads):
        session = Session(group, options.server, options, progress, save)
        measured.workloads.update(session.results)
        try:
            session.measure(options.offered)
        except (ServerFailed, WorkerDied) as error:
            print(f"\nFAILED: {error}", file=sys.stderr)
            code = 1
        except KeyboardInterrupt:
            print("\nstopped", file=sys.stderr)
            code = 130
            break
    measured.workloads = {name: result for name, result in measured.workloads.items() if result.rounds}
    if measured.workloads:
        save()
        print(f"\n{report.page(measured)}\n({time.monotonic() - began:.0f} s)")
        if options.write:
            print(f"wrote {', '.join(str(file) for suffix in ('.json', '.md', '.svg') if (file := path.with_suffix(suffix)).exists())}")
    return code or int(any(analysis.failed(result, OURS) for result in measured.workloads.values()))


def _write(done: Record, path: Path) -> None:
    """Write the record, the page and the picture."""
    done.workloads = {name: result for name, result in done.workloads.items() if result.rounds}
    if not done.workloads:
        return
    record.write(done, path)
    path.with_suffix(".md").write_text(report.page(done))
    drawn = picture.offered(done)
    if drawn:
        path.with_suffix(".svg").write_text(drawn)


def free_path(directory: Path, stem: str) -> Path:
    """Return a file that is not there yet: a second run of a day stands beside the first."""
    names = [stem, *(f"{stem}-{number}" for number in range(2, 1000))]
    return next(path for name in names if not (path := directory / f"{name}.json").exists())


def _options() -> argparse.Namespace:
    known = contenders()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", action="append", choices=list(WORKLOADS), help="one of them; may be repeated (default: all)")
    parser.add_argument("--server", action="append", choices=list(known), help="one of them; may be repeated (default: all)")
    pace = Pace()
    parser.add_argument("--rounds", type=int, default=pace.rounds, help=f"rounds of ours and the limit (default: {pace.rounds})")
    parser.add_argument(
        "--peer-rounds", type=int, default=pace.peer_rounds, help=f"of them with everybody else (default: {pace.peer_rounds})"
    )
    parser.add_argument(
        "--patience", type=int, default=pace.patience, help=f"most rounds of each kind to repeat when disturbed (default: {pace.patience})"
    )
    parser.add_argument("--seconds", type=int, default=pace.seconds, help=f"length of each measurement of ours (default: {pace.seconds})")
    parser.add_argument("--no-open", dest="offered", action="store_false", help="leave out open arrivals and the picture")
    parser.add_argument("--quick", action="store_true", help="one round of a second each, of a few; nothing is written")
    parser.add_argument("--plan", action="store_true", help="only say how long it will take")
    parser.add_argument("--merge", type=Path, metavar="JSON", help="put what is measured into this result, and keep its other workloads")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results", help="where results go")
    options = parser.parse_args()
    options.write = not options.quick
    if options.rounds < 1 or options.seconds < 1 or options.peer_rounds < 0 or options.patience < 0:
        parser.error("at least one round of one second is needed")
    if options.merge and options.quick:
        parser.error("a quick look is written nowhere; leave out --quick or --merge")
    chosen = options.workload or (QUICK_WORKLOADS if options.quick else WORKLOADS)
    options.workload = [name for name in WORKLOADS if name in chosen]
    named = options.server or (QUICK_SERVERS if options.quick else known)
    options.server = [name for name in known if name in named]
    options.offered = options.offered and not options.quick
    options.pace = (
        QUICK
        if options.quick
        else Pace(
            rounds=options.rounds,
            peer_rounds=options.peer_rounds,
            example_rounds=min(options.rounds, pace.example_rounds),
            patience=options.patience,
            seconds=options.seconds,
        )
    )
    return options


def _what_is_missing(workloads: Sequence[Workload]) -> str | None:
    """Return a sentence that says what to do first, or None."""
    for workload in workloads:
        if not (workload.package() / "manifest.json").exists():
            how = ".venv-build/bin/python benchmarks/packages.py" if workload.sent else "make models"
            return f"{workload.package().relative_to(ROOT)} is not there; run: {how}"
    return None


def _plan(workloads: Sequence[Workload], options: argparse.Namespace) -> str:
    lines = []
    for group in groups(workloads):
        names = [name for name in options.server if any(takes_part(name, workload) for workload in group)]
        with_peers, alone = options.pace.rounds_of(group)
        what = ", ".join(workload.name for workload in group)
        lines.append(
            f"{what}: {with_peers} × ({'; '.join(names)}), {alone} × ours alone: {group_s(group, names, options.pace) / 60:.0f} min\n"
        )
    return "".join(lines)


def _empty(workload: Workload, options: argparse.Namespace) -> Result:
    from benchmarks.workloads import limiting

    command = shlex.join(["benchmarks/run.py", *(word.replace(f"{ROOT}/", "") for word in sys.argv[1:])])
    return Result(
        title=workload.title,
        measured_on=f"{datetime.now(UTC):%Y-%m-%d}",
        command=command,
        machine=describe(),
        seconds=options.pace.seconds,
        limiting=list(limiting(workload)),
        burst=workload.burst,
    )


def _show_way(way: Way, measured: Measured) -> None:
    print(f"  limit: {way!s:<38} {measured.per_s:10,.1f}/s   {measured.cpu_ms:8.3f} CPU ms each", flush=True)


def _loading_s(log: Path) -> float | None:
    """Return the seconds our server's log says it spent on loading and proving packages."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("{") and '"version_ready"' in line]
    return sum(float(json.loads(line)["seconds"]) for line in lines) if lines else None


def _plain_mib(workload: Workload) -> float | None:
    """Return the resident memory of a bare process that runs a workload's plain model, the median of three."""
    model = workload.plain_model()
    if model is None:
        return None
    command = [sys.executable, str(ROOT / "benchmarks/footprint.py"), str(model)]
    found = [int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(3)]
    return statistics.median(found) / 2**20


def _adopt_orphans() -> None:
    """Become the parent of servers' daemons whose own parent ends, so that their CPU time counts as the measurement's, not as others'."""
    pr_set_child_subreaper = 36
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_child_subreaper, 1, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
