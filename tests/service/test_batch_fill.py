"""How full batches are: what the policy wants while there is a backlog, whatever is there when there is none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import package_builders as build
import pytest
from fakes import Doubler, FakeLoop, ManualPool, Recorder
from hypothesis import given
from hypothesis import strategies as st
from live_server import LiveServer, live_server
from raw_http import PATIENCE_S
from samegraph_service.batching import BatchPolicy, Entry, Work, joined
from samegraph_service.cost import BucketCost, CostModel
from samegraph_service.device import Device, Lane
from samegraph_transforms.draft import GoldenSample, PackageDraft
from samegraph_transforms.manifest import Batching
from samegraph_transforms.pack import pack

PER_ROW_S, FIXED_S = 0.001, 0.0005


def known_cost(fixed_s: float = FIXED_S, cost: CostModel | None = None) -> CostModel:
    """Return a cost of a millisecond a row and a fixed part."""
    cost = cost or CostModel()
    for n in (1, 2, 4, 8, 16, 32, 64):
        cost.observe(n, fixed_s + PER_ROW_S * n)
    return cost


class Bench:
    """One lane of a device whose time is the cost model's own, on a clock set by hand."""

    def __init__(self, *, slots: int = 1, max_batch_size: int = 64, cost: CostModel | None = None) -> None:
        self.loop = FakeLoop()
        self.pool = ManualPool()
        self.device = Device(self.loop, slots, 0.0, self.pool)
        self.model = Doubler()
        self.seen = Recorder()
        self.lane = Lane("m/1", self.model, BatchPolicy(max_batch_size), cost or known_cost(), self.seen)
        self.lane.cost.observe = _nothing  # type: ignore[assignment, method-assign]  # what the stand-in takes on this machine says nothing
        self.device.add(self.lane)

    def send(self, rows: int, first: float = 0.0) -> Work:
        work = Work(rows, 1e9, False, {}, lambda work: self.device.unwatch(self.lane, work))
        self.device.watch(self.lane, work)
        entry = Entry(work, 0, [(first + i,) for i in range(rows)], 10 * rows)
        work.entries.append(entry)
        self.device.put(self.lane, entry)
        return work

    def run(self) -> None:
        self.loop.run()
        while self.pool.jobs:
            self.pool.run_one()
            self.loop.run()

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.model.batches]

    @property
    def fill(self) -> float:
        rows, wanted = (sum(column) for column in zip(*self.seen.backlog, strict=True))
        return float(rows / wanted)


def answer(work: Work) -> list[float]:
    values: list[float] = joined(work.in_order())[0].tolist()
    return values


def test_requests_of_several_rows_are_split_so_that_batches_are_full() -> None:
    """Requests of 5 rows where 8 pay: without splitting, every batch would hold 5."""
    cost = known_cost(fixed_s=0.00016)  # 2 % of eight rows' time
    assert cost.efficient_size(64) == 8
    bench = Bench(cost=cost)
    works = [bench.send(5, 10.0 * i) for i in range(9)]
    bench.run()
    assert bench.sizes == [8, 8, 8, 8, 8, 5]
    assert bench.fill == 1.0
    assert [answer(work) for work in works] == [[2 * (10.0 * i + k) for k in range(5)] for i in range(9)]


def test_a_tenth_of_a_batch_is_not_worth_a_split() -> None:
    """Two requests of 61 rows in batches of up to 64 run whole."""
    bench = Bench(cost=known_cost(fixed_s=1.0))
    for _ in range(3):
        bench.send(61)
    bench.run()
    assert bench.sizes == [61, 61, 61]
    assert bench.fill >= 0.9


def test_one_large_request_uses_every_idle_slot() -> None:
    """Its rows are shared out instead of making one slot run all of them."""
    bench = Bench(slots=2, cost=known_cost(fixed_s=1.0))
    work = bench.send(40)
    bench.run()
    assert bench.sizes == [20, 20]
    assert answer(work) == [2.0 * i for i in range(40)]


def test_an_idle_device_waits_for_nobody() -> None:
    """One row starts in the turn it came in, alone, although 64 would pay; no timer is set, and it is no backlog."""
    bench = Bench(cost=known_cost(fixed_s=1.0))
    for _ in range(5):
        work = bench.send(1)
        bench.loop.run()
        assert len(bench.pool.jobs) == 1
        assert bench.loop.armed == 1  # the work's own deadline
        bench.run()
        assert work.finished
    assert bench.sizes == [1] * 5
    assert bench.seen.backlog == []


@given(
    st.lists(st.integers(1, 64), min_size=1, max_size=60),
    st.integers(1, 4),
    st.integers(1, 64),
    st.sampled_from([0.0, 0.0001, 0.0005, 0.002, 0.01, 1.0]),
)
def test_a_backlog_fills_batches_to_nine_tenths_of_what_pays(requests: list[int], slots: int, largest: int, fixed_s: float) -> None:
    """Property: over any requests, slots, bounds and costs, every execution that leaves others waiting is nearly full, and all rows run."""
    bench = Bench(slots=slots, max_batch_size=largest, cost=known_cost(fixed_s))
    works = [bench.send(min(rows, largest), 100.0 * i) for i, rows in enumerate(requests)]
    bench.run()
    assert all(rows >= 0.9 * wanted for rows, wanted in bench.seen.backlog)
    assert max(bench.sizes) <= largest
    for i, (work, rows) in enumerate(zip(works, requests, strict=True)):
        assert answer(work) == [2 * (100.0 * i + k) for k in range(min(rows, largest))]
    assert (bench.lane.queue.rows, bench.lane.queue.bytes) == (0, 0)


# --- batch sizes that cost no padding ------------------------------------------------------------------------------------

POWERS = (1, 2, 4, 8, 16, 32, 64)


def test_a_batch_is_cut_to_a_bucket_when_padding_would_cost_more() -> None:
    """17 rows would run as 32: 16 now and one after it is quicker where time goes with the rows."""
    bench = Bench(cost=known_cost(0.001, BucketCost(POWERS)))
    for _ in range(17):
        bench.send(1)
    bench.run()
    assert bench.sizes == [16, 1]


def test_a_batch_is_padded_when_a_second_execution_would_cost_more() -> None:
    """Where an execution costs as much as many rows, 17 rows run as 32 at once."""
    bench = Bench(cost=known_cost(0.1, BucketCost(POWERS)))
    for _ in range(17):
        bench.send(1)
    bench.run()
    assert bench.sizes == [17]


@given(st.integers(1, 64), st.floats(0.0, 0.2))
def test_cutting_a_batch_never_takes_longer_than_padding_it(rows: int, fixed_s: float) -> None:
    """Property: what is run now is a bucket or everything, and by the fit the two executions take no longer than one."""
    cost = known_cost(fixed_s, BucketCost(POWERS))
    assert isinstance(cost, BucketCost)
    now = cost.without_waste(rows)
    assert now == rows or (now in POWERS and cost.predict_s(now) + cost.predict_s(rows - now) <= cost.predict_s(rows) + 1e-12)


def test_executions_are_fitted_by_what_they_were_padded_to() -> None:
    """17 rows that take as long as 32 do not spoil the fit, and what 20 will take is what 32 take."""
    cost = BucketCost(POWERS)
    for n in (1, 3, 5, 17, 33):
        cost.observe(n, 0.002 + 0.001 * next(size for size in POWERS if size >= n))
    assert cost.per_row_s == pytest.approx(0.001)
    assert cost.predict_s(20) == pytest.approx(0.034)
    assert cost.predict_s(100) == pytest.approx(0.102)


# --- a real model and real callers ---------------------------------------------------------------------------------------

LARGEST = 16


def package() -> tuple[PackageDraft, Sequence[GoldenSample]]:
    return build.draft(batching=Batching(max_batch_size=LARGEST)), build.samples()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiveServer]:
    pack(*package(), tmp_path)
    with live_server(tmp_path, execution={"run_slots": 1, "inline_below_s": 0}) as live:
        yield live


def test_many_callers_of_a_busy_server_share_full_batches(server: LiveServer) -> None:
    """60 callers with requests of 1 to 7 rows queue behind a busy device; once it is free, batches are at least nine tenths full."""
    lane = server.service.predictor.route("plants").lane
    gate = threading.Event()

    def hold() -> Callable[[], None]:
        gate.wait(PATIENCE_S)
        return _nothing

    server.run(server.service.device.prepare, lane, hold)  # the only slot is taken
    sizes = [1 + i % 7 for i in range(60)]

    def ask(number: int) -> bool:
        rows = [build.ROWS[(number + k) % len(build.ROWS)] for k in range(sizes[number])]
        reply = server.predict("plants", {"instances": rows})
        return [p["label"] for p in reply.json()["predictions"]] == list(build.reference(rows)["label"])

    with ThreadPoolExecutor(len(sizes)) as callers:
        answers = [callers.submit(ask, i) for i in range(len(sizes))]
        wait_until(lambda: server.run(lambda: lane.queue.rows) == sum(sizes))
        gate.set()
        assert all(one.result(30) for one in answers)
    rows, wanted = (server.metric(f"samegraph_backlog_{what}_total", model="plants") for what in ("rows", "wanted_rows"))
    assert wanted >= sum(sizes) - 2 * LARGEST
    assert rows / wanted >= 0.9


def test_a_single_caller_is_answered_without_company(server: LiveServer) -> None:
    """One request after the other: each runs alone at once, and none of it counts as backlog."""
    for _ in range(5):
        assert server.predict("plants", {"instances": [build.ROWS[0]]}).status == 200
    assert server.metric("samegraph_batch_size_count", model="plants") == 5
    assert server.metric("samegraph_backlog_wanted_rows_total", model="plants") == 0


def _nothing(*_: object) -> None:
    """Do nothing."""


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that is about to hold; a server that hangs fails the test instead of the run."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
