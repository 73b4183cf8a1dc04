"""The machine's own limit: the same work in plain Python without HTTP, by threads and by processes."""

from __future__ import annotations

import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.machine import cores
from benchmarks.workloads import Pipeline, Plain, Workload, limiting


@dataclass(frozen=True)
class Way:
    """One way to use the machine.

    Attributes:
        pipeline: Name of the pipeline.
        processes: Worker processes.
        threads: Threads in each.
        batch: Requests per execution.
    """

    pipeline: str
    processes: int
    threads: int
    batch: int

    @property
    def in_flight(self) -> int:
        """Requests it works on at once: no fewer clients could keep it busy."""
        return self.processes * self.threads * self.batch

    def __str__(self) -> str:
        workers = f"{self.processes} processes" if self.processes > 1 else f"{self.threads} threads" if self.threads > 1 else "1 thread"
        return f"{workers}, batch {self.batch}, {self.pipeline}"


@dataclass(frozen=True)
class Measured:
    """What plain Python did.

    Attributes:
        per_s: Requests per second.
        cpu_ms: CPU milliseconds per request, all threads.
        p50_ms: Median time of one execution, item stage included.
    """

    per_s: float
    cpu_ms: float
    p50_ms: float


class Limit:
    """Worker processes that stay loaded, so that a measurement is seconds of work and no loading."""

    def __init__(self, workers: list[Connection]) -> None:
        self._workers = workers

    def candidates(
        self, workload: Workload, seconds: float, show: Callable[[Way, Measured], None], in_flight: Sequence[int] = ()
    ) -> list[Way]:
        """Try every way once and return those worth measuring in every round.

        For each number of requests in flight, and each layout of threads and processes that so many can keep busy, this is the one that
        spends the least CPU on a request: on a machine shared with others the steadiest figure. Which of them is the limit, the rounds
        decide. Where the plain pipeline is the limit, the code that serving uses comes last, to show what it gains over it.

        Args:
            workload: Of the loaded ones.
            seconds: Length of each measurement.
            show: Told of every measurement.
            in_flight: Numbers of requests to find ways for; those of the workload when left out.
        """
        wanted = tuple(in_flight) or workload.in_flight
        cpu_ms: dict[Way, float] = {}
        for way in ways(workload, wanted):
            measured = self.measure(workload, way, seconds)
            show(way, measured)
            cpu_ms[way] = measured.cpu_ms
        best: dict[tuple[int, int, int], Way] = {}
        for way in sorted(cpu_ms, key=lambda way: -cpu_ms[way]):
            for number in wanted:
                if may_limit(way, number):
                    best[number, way.processes, way.threads] = way
        found = list(dict.fromkeys(best[key] for key in sorted(best)))
        own = [Way("package", 1, min(cores(), max(wanted)), 1)] if workload.sent and workload.is_image else []
        return [*found, *own]

    def measure(self, workload: Workload, way: Way, seconds: float) -> Measured:
        """Run one way for so many seconds; workers start together."""
        start = time.monotonic() + 0.1
        used = self._workers[: way.processes]
        for worker in used:
            worker.send((workload.name, way, start, start + seconds))
        results: list[tuple[int, float, float, list[float]]] = [_receive(worker) for worker in used]
        done = sum(count for count, _, _, _ in results)
        cpu_s = sum(cpu for _, cpu, _, _ in results)
        wall_s = max(wall for _, _, wall, _ in results)
        return Measured(done / wall_s, 1e3 * cpu_s / done, 1e3 * statistics.median(t for _, _, _, times in results for t in times))


def ways(workload: Workload, in_flight: Sequence[int]) -> list[Way]:
    """Return every way worth trying on this machine for these numbers of requests in flight."""
    layouts = [(1, 1), (1, cores()), (cores(), 1)] if cores() > 1 else [(1, 1)]
    tried = [Way(p, processes, threads, b) for p in limiting(workload) for processes, threads in layouts for b in workload.batches]
    return [way for way in tried if any(may_limit(way, number) for number in in_flight)]


def may_limit(way: Way, in_flight: int) -> bool:
    """Whether a way can work on so many requests in flight: it needs no more of them, and leaves no core idle for which there is work."""
    return way.in_flight <= in_flight and way.processes * way.threads == min(in_flight, cores())


@contextmanager
def limit(workloads: Sequence[Workload], repository: Path | None = None) -> Iterator[Limit]:
    """Start the workers and wait until each has its packages loaded.

    Args:
        workloads: What will be measured.
        repository: Where their packages are, if not where they are built.
    """
    context = multiprocessing.get_context("spawn")  # ONNX Runtime's threads do not survive a fork
    pipes = [context.Pipe() for _ in range(cores())]
    processes = [context.Process(target=_worker, args=(list(workloads), repository, theirs), daemon=True) for _, theirs in pipes]
    for process, (_, theirs) in zip(processes, pipes, strict=True):
        process.start()
        theirs.close()  # so that a worker that dies is seen as a closed pipe
    ours = [pipe for pipe, _ in pipes]
    try:
        for pipe in ours:
            _receive(pipe)
        yield Limit(ours)
    finally:
        for process, pipe in zip(processes, ours, strict=True):
            pipe.close()
            process.terminate()
            process.join()


class WorkerDied(RuntimeError):
    """Raised when a worker ended; its own traceback stands above."""


def _receive(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except EOFError as error:
        raise WorkerDied("plain Python failed; the worker's traceback is above") from error


def _worker(workloads: list[Workload], repository: Path | None, pipe: Connection) -> None:
    """Load, warm up, then measure what is asked for until the parent hangs up."""
    loaded = {workload.name: (Plain(workload, repository).pipelines, workload.bodies(repository)) for workload in workloads}
    for pipelines, bodies in loaded.values():
        for pipeline in pipelines.values():
            pipeline(bodies[:1])
    pipe.send("ready")
    while True:
        try:
            name, way, start, stop = pipe.recv()
        except EOFError:
            return
        pipelines, bodies = loaded[name]
        pipe.send(_run(pipelines[way.pipeline], bodies, way, start, stop))


def _run(pipeline: Pipeline, bodies: list[bytes], way: Way, start: float, stop: float) -> tuple[int, float, float, list[float]]:
    """Run the pipeline on `way.threads` threads; return requests, CPU seconds, wall seconds, seconds of each execution."""
    times: list[float] = []

    def loop(offset: int) -> None:
        place = offset
        time.sleep(max(0.0, start - time.monotonic()))
        while (began := time.monotonic()) < stop:
            pipeline([bodies[(place + i) % len(bodies)] for i in range(way.batch)])
            place += way.batch
            times.append(time.monotonic() - began)

    cpu = time.process_time()
    threads = [threading.Thread(target=loop, args=(i * 7,)) for i in range(way.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(times) * way.batch, time.process_time() - cpu, time.monotonic() - start, times
