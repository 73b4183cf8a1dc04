"""Instances that make executions fail: named, refused after two losses, forgotten in time; nobody else is blamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import ragged_models as models
from fakes import Doubler, FakeLoop, ManualPool, Recorder
from hypothesis import given
from hypothesis import strategies as st
from live_server import LiveServer, live_server
from samegraph_service import poison
from samegraph_service.batching import BatchPolicy, Entry, Work
from samegraph_service.cost import CostModel
from samegraph_service.device import Device, Lane
from samegraph_service.errors import ExecutionFailed
from samegraph_service.poison import REMEMBERED_S, Quarantine, fingerprint
from samegraph_transforms.errors import ExecutionError
from samegraph_transforms.pack import pack

GOOD = 1.0
BAD = 13.0


class Broken(Doubler):
    """A model that fails on everything while `broken`, as one whose device has no memory left does."""

    broken = True

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        if self.broken:
            self.batches.append(feeds["x"].tolist())
            raise ExecutionError("out of memory")
        return super().run(feeds)


class Bench:
    """One lane on a loop and threads that move when told."""

    def __init__(self, model: Doubler, canary: Any = (GOOD,)) -> None:
        self.loop = FakeLoop()
        self.pool = ManualPool()
        self.device = Device(self.loop, 1, 0.0, self.pool)
        self.seen = Recorder()
        self.model = model
        self.lane = Lane("m/1", model, BatchPolicy(8), CostModel(), self.seen, canary)
        self.device.add(self.lane)

    def send(self, *values: float, partial: bool = False) -> Work:
        work = Work(len(values), 1e9, partial, {}, lambda work: self.device.unwatch(self.lane, work))
        self.device.watch(self.lane, work)
        entry = Entry(work, 0, [(v,) for v in values])
        work.entries.append(entry)
        self.device.put(self.lane, entry)
        return work

    def run(self) -> None:
        self.loop.run()
        while self.pool.jobs:
            self.pool.run_one()
            self.loop.run()

    def outcome(self, *values: float) -> str:
        """Send one request alone and say how it ended."""
        work = self.send(*values)
        self.run()
        assert work.finished
        return "answered" if work.failure is None else type(work.failure).__name__


def test_an_instance_is_refused_after_two_losses_and_not_run_again() -> None:
    """The third time nothing is executed for it, and its neighbours never notice."""
    bench = Bench(Doubler(poison=[BAD]))
    assert [bench.outcome(BAD) for _ in range(2)] == ["ExecutionFailed"] * 2
    ran = len(bench.model.batches)
    assert bench.outcome(BAD) == "PoisonInstance"
    assert len(bench.model.batches) == ran
    assert bench.outcome(GOOD) == "answered"
    assert bench.seen.refused == 1


def test_a_loss_among_neighbours_counts_once_however_often_the_batch_was_halved() -> None:
    """Bisection runs an instance several times for one request; that is one loss."""
    bench = Bench(Doubler(poison=[BAD]))
    for _ in range(2):
        works = [bench.send(v) for v in (1.0, 2.0, BAD, 4.0)]
        bench.run()
        assert [type(w.failure).__name__ for w in works] == ["NoneType", "NoneType", "ExecutionFailed", "NoneType"]
    work = bench.send(1.0, BAD, 3.0, partial=True)
    bench.run()
    assert [(row, type(error).__name__, error.instance) for row, error in work.errors.items()] == [(1, "PoisonInstance", 1)]  # type: ignore[attr-defined]
    assert [(part.start, part.arrays()[0].tolist()) for part in work.in_order()] == [(0, [2.0]), (2, [6.0])]


def test_a_request_without_partial_is_refused_whole() -> None:
    """As for any other error, the caller decides what one bad instance costs."""
    bench = Bench(Doubler(poison=[BAD]))
    for _ in range(2):
        bench.outcome(BAD)
    assert bench.outcome(GOOD, BAD) == "PoisonInstance"
    assert bench.lane.queue.rows == 0


def test_a_model_that_fails_on_everything_blames_nobody() -> None:
    """What a broken model or a full device fails is answered as soon as it works again."""
    model = Broken()
    bench = Bench(model)
    for _ in range(4):
        works = [bench.send(v) for v in (GOOD, 2.0, 3.0)]
        bench.run()
        assert all(isinstance(w.failure, ExecutionFailed) for w in works)
        assert bench.outcome(GOOD) == "ExecutionFailed"
    model.broken = False
    assert [bench.outcome(v) for v in (GOOD, 2.0, 3.0)] == ["answered"] * 3


def test_callers_who_all_send_the_same_poison_are_told_from_a_broken_model() -> None:
    """A whole batch fails row by row, but the instance known to be good runs: the batch was the problem."""
    bench = Bench(Doubler(poison=[BAD]))
    works = [bench.send(BAD) for _ in range(3)]
    bench.run()
    assert all(isinstance(w.failure, ExecutionFailed) for w in works)
    assert bench.outcome(BAD) == "PoisonInstance"


def test_without_a_known_good_instance_the_first_that_runs_becomes_it() -> None:
    """A model without golden samples: nobody is blamed until something has shown that the model works."""
    bench = Bench(Doubler(poison=[BAD]), canary=None)
    assert [bench.outcome(BAD) for _ in range(3)] == ["ExecutionFailed"] * 3
    assert bench.outcome(GOOD) == "answered"
    assert [bench.outcome(BAD) for _ in range(3)] == ["ExecutionFailed", "ExecutionFailed", "PoisonInstance"]


def test_an_instance_is_forgotten_in_time_and_rows_are_not_looked_at_any_more() -> None:
    """What was fixed in the meantime is served again; and the lane's rows go unhashed as before."""
    model = Doubler(poison=[BAD])
    bench = Bench(model)
    for _ in range(2):
        bench.outcome(BAD)
    assert not bench.lane.plain
    bench.loop.advance(REMEMBERED_S - 1)
    assert bench.outcome(BAD) == "PoisonInstance"
    bench.loop.advance(2)
    model.poison.clear()
    assert bench.outcome(BAD) == "answered"
    assert bench.lane.plain


def test_nothing_is_hashed_while_nothing_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers pay for this only after an instance was lost twice."""
    hashed: list[Any] = []
    monkeypatch.setattr(poison, "fingerprint", lambda item: (hashed.append(item), fingerprint(item))[1])  # type: ignore[func-returns-value]
    bench = Bench(Doubler(poison=[BAD]))
    for v in range(10):
        bench.outcome(float(v))
    assert hashed == []
    bench.outcome(BAD)
    bench.outcome(GOOD)
    assert hashed == [(BAD,)]


def test_a_quarantine_is_bounded_and_lets_go_of_those_lost_longest_ago() -> None:
    """A caller who sends endless new poison does not fill the memory."""
    quarantine = Quarantine(capacity=2)
    for value in (1, 1, 2, 2, 3):
        quarantine.lost((value,), 0.0)
    assert [quarantine.refuses((v,)) for v in (1, 2, 3)] == [False, True, False]
    assert quarantine.refusing == 1
    quarantine.forget(REMEMBERED_S)
    assert (quarantine.refusing, quarantine.refuses((2,))) == (0, False)


VALUES = st.one_of(
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.lists(st.integers(-2, 2), max_size=4).map(np.array),
    st.lists(st.integers(0, 2), max_size=4).map(lambda v: np.array(v, dtype=np.uint8)),
    st.lists(st.text(max_size=2), max_size=3).map(lambda v: np.array(v, dtype=object)),
    st.just(np.array(1)),
)


def shown(item: Sequence[Any]) -> Any:
    return [(str(v.dtype), v.shape, repr(v.tolist())) if isinstance(v, np.ndarray) else repr(v) for v in item]


@given(st.lists(VALUES, max_size=3), st.lists(VALUES, max_size=3))
def test_a_fingerprint_is_equal_exactly_for_equal_content(first: list[Any], second: list[Any]) -> None:
    """Property: type, shape and every value count; nothing else does, and no two values run into each other."""
    assert (fingerprint(first) == fingerprint(second)) == (shown(first) == shown(second))


# --- jobs that end a thread ---------------------------------------------------------------------------------------------


class Panics(Doubler):
    """A model whose library ends with something that is not an `Exception`, as Rust extensions do."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        if BAD in feeds["x"].tolist():
            raise BaseException("panic")
        return super().run(feeds)


def test_an_execution_that_panics_costs_neither_its_neighbours_nor_its_slot() -> None:
    """Whatever a library raises ends at the rows that made it do so."""
    bench = Bench(Panics())
    works = [bench.send(v) for v in (1.0, BAD, 3.0)]
    bench.run()
    assert [w.failure is None for w in works] == [True, False, True]
    assert bench.device.busy_slots == 0
    assert bench.outcome(GOOD) == "answered"


def test_a_slot_comes_back_from_an_item_job_that_panics() -> None:
    """The row is late and its caller is told by his deadline; everyone else goes on."""
    bench = Bench(Doubler())

    def panic() -> Callable[[], None]:
        raise BaseException("panic")

    bench.device.prepare(bench.lane, panic)
    bench.run()
    assert bench.device.busy_slots == 0
    assert bench.outcome(GOOD) == "answered"


# --- over HTTP ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    root = tmp_path_factory.mktemp("models")
    pack(models.draft(), models.samples(), root)
    with live_server(root) as live:
        yield live


def test_a_real_model_refuses_what_made_it_fail_twice(server: LiveServer) -> None:
    """A token id outside the vocabulary makes ONNX Runtime fail; the third time the answer comes without it, with a code of its own."""
    bad = {"instances": [{"ids": [1, 2, models.VOCABULARY + 7]}]}
    replies = [server.predict("sentences", bad) for _ in range(4)]
    assert [r.status for r in replies] == [500, 500, 422, 422]
    error = replies[-1].json()
    assert (error["code"], error["retryable"], error["instance"]) == ("poison_instance", False, 0)
    assert "failed twice" in error["error"]
    assert server.metric("samegraph_poison_refused_instances_total", model="sentences") == 2
    assert server.metric("samegraph_errors_total", model="sentences", code="poison_instance") == 2
    mixed = server.predict("sentences", {"instances": [{"ids": [1, 2, 3]}, *bad["instances"]]}, "?on_error=partial")
    answer = mixed.json()
    assert [e["code"] for e in answer["errors"]] == ["poison_instance"]
    np.testing.assert_allclose(answer["predictions"][0], models.scores([1, 2, 3]), rtol=1e-4, atol=1e-5)
