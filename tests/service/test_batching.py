"""Queues, works and batch forming, with numbers and no model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samegraph_service.batching import BatchPolicy, Entry, EntryQueue, Outputs, Work, cut, joined
from samegraph_service.errors import ExecutionFailed


def make_work(n: int, *, partial: bool = False) -> tuple[Work, list[Work]]:
    finished: list[Work] = []
    return Work(n, 1e9, partial, {}, finished.append), finished


def put(queue: EntryQueue, work: Work, start: int, n: int) -> Entry:
    entry = Entry(work, start, [(float(start + i),) for i in range(n)], 10 * n)
    work.entries.append(entry)
    queue.put(entry, 0.0)
    return entry


def test_a_batch_takes_whole_entries_from_the_front_while_they_fit() -> None:
    """Rows of one request stay together and in order."""
    queue = EntryQueue()
    work, _ = make_work(7)
    entries = [put(queue, work, start, n) for start, n in ((0, 2), (2, 3), (5, 2))]
    assert queue.pick(5) == entries[:2]
    assert (queue.rows, queue.bytes) == (2, 20)


def test_an_entry_larger_than_the_batch_is_split_and_its_rest_stays_in_front() -> None:
    """A large request runs in as many executions as the policy wants, and those behind it wait for no more than that."""
    queue = EntryQueue()
    work, _ = make_work(9)
    put(queue, work, 0, 8)
    put(queue, work, 8, 1)
    taken = [[(e.start, len(e.items)) for e in queue.pick(3)] for _ in range(3)]
    assert taken == [[(0, 3)], [(3, 3)], [(6, 2), (8, 1)]]
    assert (queue.rows, queue.bytes) == (0, 0)


def test_a_cancelled_work_leaves_the_counts_at_once_and_the_line_when_it_comes_up() -> None:
    """A dead entry holds no capacity and never reaches a batch."""
    queue = EntryQueue()
    gone, finished = make_work(3)
    put(queue, gone, 0, 3)
    alive, _ = make_work(1)
    kept = put(queue, alive, 0, 1)
    gone.fail(ExecutionFailed(0))
    assert (queue.rows, queue.bytes) == (1, 10)
    assert queue.pick(10) == [kept]
    assert finished == [gone]


def test_outputs_come_back_in_request_order_whatever_order_the_parts_finish_in() -> None:
    """Parts are put together by row."""
    work, finished = make_work(4)
    work.answer(2, 2, Outputs([np.array([20.0, 30.0])]))
    work.answer(0, 2, Outputs([np.array([9.0, 0.0, 10.0])]), 1)
    assert finished == [work]
    assert joined(work.in_order())[0].tolist() == [0.0, 10.0, 20.0, 30.0]


def test_one_failed_row_ends_a_work_unless_it_is_partial() -> None:
    """`fail` answers with the first error, `partial` keeps the neighbours."""
    strict, strict_done = make_work(2)
    strict.fail_row(1, ExecutionFailed(1))
    assert strict_done == [strict]
    assert isinstance(strict.failure, ExecutionFailed)
    partial, partial_done = make_work(2, partial=True)
    partial.fail_row(1, ExecutionFailed(1))
    assert partial_done == []
    partial.answer(0, 1, Outputs([np.array([5.0])]))
    assert partial_done == [partial]
    assert partial.failure is None


def test_a_finished_work_ignores_late_results() -> None:
    """A batch that comes back after its caller gave up changes nothing and finishes nothing twice."""
    work, finished = make_work(1)
    work.fail(ExecutionFailed(0))
    work.answer(0, 1, Outputs([np.array([1.0])]))
    work.fail_row(0, ExecutionFailed(0))
    assert finished == [work]


@pytest.mark.parametrize(("waiting", "idle", "want"), [(1, 2, 1), (10, 2, 5), (11, 2, 6), (1000, 2, 32), (3, 4, 1)])
def test_what_waits_is_split_evenly_over_the_idle_slots(waiting: int, idle: int, want: int) -> None:
    """One slot never takes everything while others stand idle."""
    assert BatchPolicy(32).target(waiting, idle, 32) == want


def test_a_batch_is_no_larger_than_pays() -> None:
    """Rows do not wait for each other when that saves nothing."""
    assert BatchPolicy(32).target(1000, 2, 3) == 3


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 9))
def test_cut_keeps_every_row_once_in_runs_of_consecutive_rows(keep: list[bool], size: int) -> None:
    """Property: concatenating the runs gives back the rows; no run is longer than `size`."""
    rows = [(i, str(i)) for i, kept in enumerate(keep) if kept]
    runs = cut(rows, size)
    assert [(start + k, item) for start, items in runs for k, item in enumerate(items)] == rows
    assert all(1 <= len(items) <= size for _, items in runs)


@given(st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=40), st.integers(1, 12))
def test_queue_counts_always_equal_what_waits(plan: list[tuple[int, bool]], size: int) -> None:
    """Property: rows in = rows picked + rows cancelled, and picks respect the size unless one entry alone exceeds it."""
    queue = EntryQueue()
    works = []
    for n, cancel in plan:
        work, _ = make_work(n)
        put(queue, work, 0, n)
        works.append((work, n, cancel))
    for work, _, cancel in works:
        if cancel:
            work.fail(ExecutionFailed(0))
    alive = sum(n for _, n, cancel in works if not cancel)
    assert queue.rows == alive
    picked = 0
    while batch := queue.pick(size):
        rows = sum(len(e.items) for e in batch)
        assert rows <= size or len(batch) == 1
        picked += rows
    assert picked == alive
    assert (queue.rows, queue.bytes) == (0, 0)
