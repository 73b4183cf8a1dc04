"""Calm under overload: the acceptance scenarios, over a real ONNX model that is declared to take 200 ms for 32 rows, on a bench's clock."""

from __future__ import annotations

import os
import random
import tracemalloc
from collections.abc import Callable

import package_builders as build
import pytest
from burst_bench import BATCH, BATCH_S, Bench, Job, Told, percentile
from samegraph_service.admission import Limits, Load
from samegraph_service.turns import BACKGROUND, INTERACTIVE, NORMAL
from samegraph_transforms.pack import pack
from samegraph_transforms.runtime import PackageRuntime

#: Seconds of arrivals in the open scenarios; the whole minute when asked for.
OPEN_S = float(os.environ.get("SAMEGRAPH_TEST_OVERLOAD_S", "6"))
RATE = BATCH / BATCH_S
#: Places of a server that keeps one batch running and two waiting.
TIGHT = Limits(3 * BATCH, 100_000, 1 << 30)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> PackageRuntime:
    return PackageRuntime.load(pack(build.draft(), build.samples(), tmp_path_factory.mktemp("models")))


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("keyed", [True, False], ids=["keys", "no keys"])
@pytest.mark.parametrize("noise", [0.0, 0.1], ids=["even", "uneven"])
def test_three_hundred_callers_who_obey_get_in_when_they_were_told(runtime: PackageRuntime, slots: int, keyed: bool, noise: float) -> None:
    """Nine of ten find their place at the promised moment, and the promises are off by no more than a batch."""
    rng = random.Random(7)
    places = Limits(TIGHT.max_requests * slots, TIGHT.max_rows, TIGHT.max_bytes)
    bench = Bench(runtime, limits=places, slots=slots, noise=lambda: rng.uniform(1 - noise, 1 + noise))
    jobs = [
        Job(bench, f"caller {i}", f"key {i}" if keyed else None, obeys=lambda hint_s: hint_s * rng.uniform(1, 1.02)) for i in range(300)
    ]
    for job in jobs:
        job.start()
    bench.loop.play(bench.loop.now + 60)
    assert all(job.done is not None for job in jobs)
    seen = bench.gate.tickets.seen
    assert seen.issued >= 300 - places.max_requests
    assert seen.hits / (seen.hits + seen.misses) >= 0.9, seen
    assert percentile([abs(error) for error in bench.errors], 0.95) <= BATCH_S
    lower_bound_s = 300 / RATE / slots
    assert max(job.done - job.begun for job in jobs if job.done is not None) <= 1.25 * lower_bound_s + BATCH_S
    assert sum(job.attempts for job in jobs) <= 2.2 * len(jobs)
    assert bench.gate.load == Load()
    assert len(bench.gate.tickets) == 0


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("places", [32, 48, 64, 96, 128])
@pytest.mark.parametrize(
    ("callers", "spread_s"), [(300, 0.0), (300, 0.3), (1, 0.0)], ids=["at once", "over a batch and a half", "all one's"]
)
def test_hints_hold_however_little_room_there_is(runtime: PackageRuntime, slots: int, places: int, callers: int, spread_s: float) -> None:
    """With room for one batch a slot too: hints know that what a batch frees has to come back, and nobody else takes it meanwhile."""
    rng = random.Random(11)
    bench = Bench(runtime, limits=Limits(places * slots, 100_000, 1 << 30), slots=slots, noise=lambda: rng.uniform(0.95, 1.05))
    jobs = [
        Job(bench, f"caller {i}", f"key {i}", obeys=lambda hint_s: hint_s * rng.uniform(1, 1.02) + rng.uniform(0, 0.003))
        for i in range(300)
    ]
    for i, job in enumerate(jobs):
        bench.loop.call_at(bench.loop.now + i * spread_s / len(jobs), job.start)
    bench.loop.play(bench.loop.now + 60)
    assert all(job.done is not None for job in jobs)
    seen = bench.gate.tickets.seen
    assert seen.hits >= 0.95 * (seen.hits + seen.misses), seen
    assert sum(job.attempts for job in jobs) <= 2.0 * len(jobs)


class Arrivals:
    """Callers that arrive at random, at ten times what the server gets through, each with five seconds for its job."""

    def __init__(self, bench: Bench, make: Callable[[int], Job]) -> None:
        self.bench = bench
        self.jobs: list[Job] = []
        self._make = make
        self._rng = random.Random(3)
        self._until = bench.loop.now + OPEN_S
        self.began = bench.loop.now
        self._next()

    def _next(self) -> None:
        when = self.bench.loop.now + self._rng.expovariate(10 * RATE)
        if when < self._until:
            self.bench.loop.call_at(when, self._arrive)

    def _arrive(self) -> None:
        job = self._make(len(self.jobs))
        self.jobs.append(job)
        job.start()
        self._next()

    def check(self) -> None:
        """See that the server did what it could, and told everybody else."""
        answered = [job for job in self.jobs if job.done is not None]
        in_time = [job for job in answered if job.done is not None and job.done - job.begun <= 5.0]
        in_window = [job for job in in_time if job.done is not None and job.done <= self._until]
        assert len(in_window) >= 0.95 * RATE * (OPEN_S - BATCH_S), f"goodput {len(in_window) / (OPEN_S * RATE):.3f} of saturation"
        assert percentile([job.done - job.begun for job in answered if job.done is not None], 0.99) <= 5.0
        assert {job.lost for job in self.jobs if job.lost} <= {"gave up", "too short"}
        assert not any(job.unhinted for job in self.jobs)


def test_open_arrivals_at_ten_times_the_rate_lose_no_goodput(runtime: PackageRuntime) -> None:
    """What is let in is answered in time, what is not is told when to come; the server is as busy as can be and its tables do not grow."""
    bench = Bench(runtime, limits=TIGHT)
    arrivals = Arrivals(bench, lambda i: Job(bench, f"caller {i % 50}", f"key {i}", deadline_s=5.0))
    bench.loop.play(arrivals.began + OPEN_S / 2)
    tracemalloc.start()
    kept = len(bench.gate.tickets), len(bench.gate.arriving), len(bench.loop._timers)
    bench.loop.play(arrivals.began + OPEN_S)
    tracemalloc.stop()
    assert len(bench.gate.tickets) <= max(2 * kept[0], 5 * RATE)
    bench.loop.play(arrivals.began + OPEN_S + 10)
    arrivals.check()
    seen = bench.gate.tickets.seen
    assert seen.hits >= 100
    assert seen.hits / (seen.hits + seen.misses) >= 0.9, "fresh arrivals took the places of those who came when they were told"
    assert bench.gate.load == Load()


def test_deadlines_alone_bound_the_queue(runtime: PackageRuntime) -> None:
    """With places for thousands, a caller is let in as long as his answer comes in time, and not a moment longer."""
    bench = Bench(runtime, limits=Limits(4096, 100_000, 1 << 30))
    arrivals = Arrivals(bench, lambda i: Job(bench, f"caller {i % 50}", f"key {i}", deadline_s=5.0))
    bench.loop.play(arrivals.began + OPEN_S + 10)
    arrivals.check()
    assert bench.gate.refused["deadline"] > 0
    assert bench.metrics.expired_works == 0


def test_callers_who_ignore_hints_and_hang_up_cost_nobody_his_place(runtime: PackageRuntime) -> None:
    """One of three comes back at once whatever he is told, one of three leaves while he waits; the others are answered at the full rate."""
    bench = Bench(runtime, limits=TIGHT)
    rng = random.Random(5)

    def make(i: int) -> Job:
        if i % 3 == 0:
            return Job(bench, f"rude {i % 20}", None, deadline_s=5.0, obeys=lambda _: rng.uniform(0.01, 0.2))
        job = Job(bench, f"caller {i % 50}", f"key {i}", deadline_s=5.0)
        if i % 3 == 1:
            bench.loop.call_at(bench.loop.now + rng.uniform(0, 0.3), job.hang_up)
        return job

    arrivals = Arrivals(bench, make)
    bench.loop.play(arrivals.began + OPEN_S + 10)
    ran = sum(rows * count for rows, count in zip((1, 2, 4, 8, 16, 32), bench.metrics.batch_size.counts, strict=False))
    assert ran >= 0.9 * RATE * OPEN_S
    answered = [job for job in arrivals.jobs if job.done is not None and job.done <= arrivals.began + OPEN_S]
    assert len(answered) >= 0.8 * RATE * OPEN_S, len(answered) / (RATE * OPEN_S)
    assert not any(job.unhinted for job in arrivals.jobs)
    assert bench.gate.load == Load()


def test_half_a_body_keeps_no_place_that_others_want(runtime: PackageRuntime) -> None:
    """Bodies that never come give up their places to those that do, and get one again if they come after all."""
    bench = Bench(runtime, limits=TIGHT)
    stuck = []
    for i in range(87):
        reservation = bench.gate.reserve(100, bench.gate.callers.of(f"slow {i}"), bench.served.asked)
        reservation.arriving(bench.loop.now)
        stuck.append(reservation)
    bench.loop.play(bench.loop.now + 1.5)
    told: list[Told] = []
    for i in range(40):
        bench.attempt(told.append, caller=f"caller {i}")
    bench.loop.play(bench.loop.now + 2)
    assert [t.answer for t in told] == [True] * 40
    stuck[0].confirm(1, 100)
    assert bench.gate.load.requests == 1
    for reservation in stuck:
        reservation.release()
    assert bench.gate.load == Load()
    assert bench.gate.lapsed == 0


@pytest.mark.parametrize("limits", [Limits(4096, 100_000, 1 << 30), TIGHT], ids=["wide", "tight"])
@pytest.mark.parametrize("frames", [300, 600])
def test_a_burst_does_not_starve_another_caller(runtime: PackageRuntime, limits: Limits, frames: int) -> None:
    """While one caller's burst is worked off, another's single requests wait no more than 15 % of its makespan on average."""
    bench = Bench(runtime, limits=limits)
    burst = [Job(bench, "burst", f"frame {i}") for i in range(frames)]
    for job in burst:
        job.start()
    visits: list[Job] = []

    def visit() -> None:
        if any(job.done is None for job in burst):
            visits.append(Job(bench, "visitor", f"visit {len(visits)}"))
            visits[-1].start()
            bench.loop.call_at(bench.loop.now + 0.25, visit)

    bench.loop.call_at(bench.loop.now + 0.05, visit)
    bench.loop.play(bench.loop.now + 60)
    makespan_s = max(job.done - job.begun for job in burst if job.done is not None)
    waits = [job.done - job.begun for job in visits if job.done is not None]
    assert len(waits) == len(visits) >= 8
    assert sum(waits) / len(waits) <= 0.15 * makespan_s, (sum(waits) / len(waits), makespan_s)
    assert max(waits) <= 3.5 * BATCH_S, "not even the one that came in the first rush"
    assert makespan_s <= 1.25 * frames / RATE + 2 * BATCH_S


def test_a_burst_does_not_push_the_interactive_class_past_its_deadline(runtime: PackageRuntime) -> None:
    """Of one and the same caller even: its interactive requests are in the next batch."""
    bench = Bench(runtime, limits=TIGHT)
    burst = [Job(bench, "one", f"frame {i}") for i in range(600)]
    for job in burst:
        job.start()
    clicks: list[Job] = []

    def click() -> None:
        clicks.append(Job(bench, "one", f"click {len(clicks)}", deadline_s=0.7, priority=INTERACTIVE))
        clicks[-1].start()
        if len(clicks) < 10:
            bench.loop.call_at(bench.loop.now + 0.3, click)

    bench.loop.call_at(bench.loop.now + 0.05, click)
    bench.loop.play(bench.loop.now + 60)
    assert all(job.done is not None and job.done - job.begun <= 0.7 for job in clicks), [job.lost for job in clicks]
    assert all(job.attempts == 1 for job in clicks)


def test_the_background_class_is_not_starved(runtime: PackageRuntime) -> None:
    """An eighth of every batch is theirs while they wait."""
    bench = Bench(runtime, limits=Limits(4096, 100_000, 1 << 30))
    low = [Job(bench, "low", f"low {i}", priority=BACKGROUND) for i in range(16)]
    high = [Job(bench, f"high {i}", f"high {i}", priority=(INTERACTIVE, NORMAL)[i % 2]) for i in range(600)]
    for job in (*high, *low):
        job.start()
    bench.loop.play(bench.loop.now + 10 * BATCH_S)
    assert all(job.done is not None for job in low)
    assert any(job.done is None for job in high)
