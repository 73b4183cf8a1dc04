"""The executor of a device: greedy batches, fairness, bisection, deadlines; on a loop that moves only when told."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fakes import Doubler, FakeLoop, ManualPool, Recorder
from samegraph_service.batching import BatchPolicy, Entry, Work, joined
from samegraph_service.cost import CostModel
from samegraph_service.device import Device, Lane, execute
from samegraph_service.errors import CallerGone, DeadlineExceeded, ExecutionFailed


class BatchingPays(CostModel):
    """A cost for which larger batches are always better, whatever the stand-in model takes on this machine."""

    def efficient_size(self, largest: int, waste_ratio: float = 0.02) -> int:
        return largest


class Bench:
    """A device on a fake loop with one lane per model."""

    def __init__(self, *, slots: int = 1, inline_below_s: float = 0.0) -> None:
        self.loop = FakeLoop()
        self.pool = ManualPool()
        self.device = Device(self.loop, slots, inline_below_s, self.pool)
        self.finished: list[Work] = []

    def lane(self, runner: Doubler, *, max_batch_size: int = 8, delay_s: float = 0.0) -> Lane:
        lane = Lane("m/1", runner, BatchPolicy(max_batch_size, delay_s), BatchingPays(), Recorder())
        self.device.add(lane)
        return lane

    def send(self, lane: Lane, *values: float, deadline_s: float = 1e6, partial: bool = False) -> Work:
        work = Work(len(values), self.loop.now + deadline_s, partial, {}, self.finished.append)
        self.device.watch(lane, work)
        entry = Entry(work, 0, [(v,) for v in values])
        work.entries.append(entry)
        self.device.put(lane, entry)
        return work

    def run(self) -> None:
        self.loop.run()
        while self.pool.jobs:
            self.pool.run_one()
            self.loop.run()


def result(work: Work) -> list[float]:
    values: list[float] = joined(work.in_order())[0].tolist()
    return values


def test_an_idle_device_starts_with_what_is_there_and_the_queue_grows_meanwhile() -> None:
    """Greedy batching: the first request runs alone at once, what arrives during its run is the next batch."""
    bench, model = Bench(), Doubler()
    lane = bench.lane(model)
    works = [bench.send(lane, 1.0)]
    bench.loop.run()
    works += [bench.send(lane, float(v)) for v in (2, 3, 4)]
    bench.run()
    assert model.batches == [[1.0], [2.0, 3.0, 4.0]]
    assert [result(w) for w in works] == [[2.0], [4.0], [6.0], [8.0]]


def test_requests_of_one_turn_of_the_loop_share_a_batch() -> None:
    """Everything the sockets held is gathered before a batch is formed."""
    bench, model = Bench(), Doubler()
    lane = bench.lane(model)
    for v in range(5):
        bench.send(lane, float(v))
    bench.run()
    assert model.batches == [[0.0, 1.0, 2.0, 3.0, 4.0]]


def test_a_batch_never_exceeds_its_bound() -> None:
    """A backlog is served in full batches."""
    bench, model = Bench(), Doubler()
    lane = bench.lane(model, max_batch_size=4)
    works = [bench.send(lane, float(v)) for v in range(10)]
    bench.run()
    assert [len(b) for b in model.batches] == [4, 4, 2]
    assert [result(w) for w in works] == [[2.0 * v] for v in range(10)]


class Watched(Lane):
    """A lane that counts how often somebody asks whether it has anything to do."""

    looks = 0

    @property
    def waits(self) -> bool:
        self.looks += 1
        return super().waits


def test_models_nobody_asks_cost_those_that_are_asked_nothing() -> None:
    """Of two hundred loaded models one is used: the others are looked at once after their own last work, not with every request."""
    bench, model = Bench(), Doubler()
    idle = [Watched(f"m/{n}", Doubler(), BatchPolicy(8), BatchingPays(), Recorder()) for n in range(200)]
    for lane in idle:
        bench.device.add(lane)
        bench.send(lane, 1.0)
    bench.run()
    used = bench.lane(model)
    bench.send(used, 1.0)
    bench.run()
    looks = sum(lane.looks for lane in idle)
    for v in range(100):
        bench.send(used, float(v))
        bench.run()
    assert sum(lane.looks for lane in idle) == looks
    assert len(model.batches) == 101
    assert all(work.failure is None for work in bench.finished)


def test_idle_slots_share_a_backlog() -> None:
    """Two free slots take half each."""
    bench, model = Bench(slots=2), Doubler()
    lane = bench.lane(model)
    for v in range(6):
        bench.send(lane, float(v))
    bench.run()
    assert [len(b) for b in model.batches] == [3, 3]


def test_one_poisonous_instance_fails_alone() -> None:
    """A failing batch is bisected; its neighbours get their answers."""
    bench, model = Bench(), Doubler(poison=[3.0])
    lane = bench.lane(model)
    works = [bench.send(lane, float(v)) for v in range(8)]
    bench.run()
    assert [w.failure is None for w in works] == [True, True, True, False, True, True, True, True]
    assert isinstance(works[3].failure, ExecutionFailed)
    assert [result(w) for i, w in enumerate(works) if i != 3] == [[2.0 * v] for v in range(8) if v != 3]


def test_a_partial_request_keeps_its_good_rows_beside_a_poisonous_one() -> None:
    """Bisection goes through a request, not only between requests."""
    bench = Bench()
    lane = bench.lane(Doubler(poison=[2.0]))
    work = bench.send(lane, 1.0, 2.0, 3.0, partial=True)
    bench.run()
    assert work.failure is None
    assert set(work.errors) == {1}
    assert result(work) == [2.0, 6.0]


def test_a_model_that_loses_rows_is_caught() -> None:
    """Rows out equal rows in, or nobody gets another's answer."""
    bench = Bench()
    lane = bench.lane(Doubler(lose_a_row=True))
    works = [bench.send(lane, float(v)) for v in range(3)]
    bench.run()
    assert [result(w) for w in works] == [[0.0], [2.0], [4.0]]


def test_waiting_work_expires_at_its_deadline_and_is_never_run() -> None:
    """One timer a lane; what is late leaves before a batch is formed."""
    bench, model = Bench(), Doubler()
    lane = bench.lane(model)
    first = bench.send(lane, 1.0)
    bench.loop.run()
    late = bench.send(lane, 2.0, deadline_s=0.5)
    kept = bench.send(lane, 3.0, deadline_s=5.0)
    bench.loop.advance(1.0)
    assert isinstance(late.failure, DeadlineExceeded)
    assert (first.finished, kept.finished) == (False, False)
    bench.run()
    assert model.batches == [[1.0], [3.0]]
    assert lane.observer.expired_works == 1  # type: ignore[attr-defined]


def test_a_running_work_is_answered_even_after_its_deadline() -> None:
    """The answer is there; nobody is served by throwing it away."""
    bench = Bench()
    lane = bench.lane(Doubler())
    work = bench.send(lane, 1.0, deadline_s=0.5)
    bench.loop.run()
    bench.loop.advance(1.0)
    assert not work.finished
    bench.run()
    assert result(work) == [2.0]


def test_a_caller_who_left_costs_his_neighbours_nothing() -> None:
    """A cancelled entry leaves; its batch runs without it."""
    bench, model = Bench(), Doubler()
    lane = bench.lane(model)
    works = [bench.send(lane, float(v)) for v in range(3)]
    works[1].fail(CallerGone("gone"))
    bench.run()
    assert model.batches == [[0.0, 2.0]]
    assert result(works[2]) == [4.0]


def test_the_lane_with_the_least_served_time_goes_first() -> None:
    """A slow model's backlog does not starve a quick one."""
    bench = Bench()
    slow, quick = bench.lane(Doubler(), max_batch_size=1), bench.lane(Doubler(), max_batch_size=1)
    for v in range(3):
        bench.send(slow, float(v))
    bench.loop.run()
    slow.served_s = 10.0
    answered = bench.send(quick, 7.0)
    bench.pool.run_one()
    bench.loop.run()
    bench.pool.run_one()
    bench.loop.run()
    assert answered.finished


def test_an_idle_lane_does_not_save_up_time() -> None:
    """A lane that wakes up starts level with the busy ones instead of shutting them out."""
    bench = Bench()
    busy, idle = bench.lane(Doubler()), bench.lane(Doubler())
    busy.served_s = 50.0
    bench.send(busy, 1.0)
    bench.send(idle, 1.0)
    assert idle.served_s == 50.0


def test_an_opt_in_delay_waits_for_more_rows_but_not_when_full() -> None:
    """`max_queue_delay_s` is honoured by a timer, not by polling."""
    bench, model = Bench(), Doubler()
    lane = bench.lane(model, max_batch_size=2, delay_s=0.1)
    bench.send(lane, 1.0)
    bench.run()
    assert model.batches == []
    bench.loop.advance(0.1)
    bench.run()
    assert model.batches == [[1.0]]
    bench.send(lane, 2.0)
    bench.send(lane, 3.0)
    bench.run()
    assert model.batches[1:] == [[2.0, 3.0]]


def test_a_cheap_model_runs_on_the_loop_itself() -> None:
    """Below half a millisecond a hop to a thread costs more than the model."""
    bench = Bench(inline_below_s=0.0005)
    lane = bench.lane(Doubler())
    lane.cost.observe(1, 1e-5)
    work = bench.send(lane, 4.0)
    bench.loop.run()
    assert result(work) == [8.0]
    assert not bench.pool.jobs


def test_nothing_is_armed_when_nothing_waits() -> None:
    """An idle device owns no timer and no callback: idle CPU is zero."""
    bench = Bench()
    lane = bench.lane(Doubler())
    work = bench.send(lane, 1.0, deadline_s=2.0)
    bench.run()
    assert work.finished
    bench.loop.advance(3.0)
    assert bench.loop.armed == 0


@pytest.mark.parametrize("n", [1, 2, 7])
def test_segments_cover_every_item_once(n: int) -> None:
    """Bisection neither loses nor repeats an item."""
    segments = execute(Doubler(poison=[0.0, 5.0]), [(float(v),) for v in range(n)])
    assert [i for s in segments for i in range(s.start, s.stop)] == list(range(n))
    assert [s.start for s in segments if s.error is not None] == [v for v in (0, 5) if v < n]


# --- the item stage in the slots -------------------------------------------------------------------------------------------


def prepare(bench: Bench, lane: Lane, *values: float) -> list[Work]:
    """Send one request per value whose row has to be prepared in a slot first."""
    works = []
    for value in values:
        work = Work(1, bench.loop.now + 1e6, False, {}, bench.finished.append)
        bench.device.watch(lane, work)
        works.append(work)

        def job(work: Work = work, value: float = value) -> Callable[[], None]:
            def enqueue() -> None:
                entry = Entry(work, 0, [(value,)])
                work.entries.append(entry)
                bench.device.put(lane, entry)

            return enqueue

        bench.device.prepare(lane, job)
    return works


def test_a_single_row_is_prepared_and_run_without_waiting_for_others() -> None:
    """An idle device adds no delay to the item stage either."""
    bench, model = Bench(), Doubler()
    (work,) = prepare(bench, bench.lane(model), 4.0)
    bench.run()
    assert result(work) == [8.0]


def test_slots_are_shared_by_preparing_and_running() -> None:
    """Never more jobs at a time than slots, whichever kind they are."""
    bench = Bench(slots=2)
    works = prepare(bench, bench.lane(Doubler()), *range(20))
    most = 0
    bench.loop.run()
    while bench.pool.jobs:
        most = max(most, len(bench.pool.jobs))
        bench.pool.run_one()
        bench.loop.run()
    assert most == 2
    assert bench.device.busy_slots == 0
    assert [result(w) for w in works] == [[2.0 * v] for v in range(20)]


def test_a_batch_that_pays_goes_before_preparing_more() -> None:
    """Callers finish about in the order they came instead of all at the end."""
    bench, model = Bench(), Doubler()
    lane = bench.lane(model)
    lane.cost = CostModel()
    for n in (1, 2, 4, 8):
        lane.cost.observe(n, 0.010 * n)
    prepare(bench, lane, *range(6))
    bench.run()
    assert [len(b) for b in model.batches] == [2, 2, 2]
    assert model.batches[0] == [0.0, 1.0]


def test_where_batches_pay_everything_is_prepared_first() -> None:
    """With a fixed cost per execution the rows are gathered."""
    bench, model = Bench(), Doubler()
    prepare(bench, bench.lane(model), *range(6))
    bench.run()
    assert [len(b) for b in model.batches] == [6]


def test_rows_left_to_prepare_count_as_work_in_the_hint() -> None:
    """A refused caller is told of all that is before him."""
    bench = Bench()
    lane = bench.lane(Doubler())
    prepare(bench, lane, 1.0)
    bench.run()
    lane.item_s = 0.5
    prepare(bench, lane, 2.0, 3.0)
    assert bench.device.pending_s() >= 1.0
