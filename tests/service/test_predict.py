"""The one path, on a fake loop: what is refused, what is released, what happens to callers who leave."""

from __future__ import annotations

from typing import Any

import package_builders as build
import pytest
from fakes import FakeLoop, ManualPool
from samegraph_service.admission import Asked, Gate, Limits, Load, hint_s, over
from samegraph_service.batching import BatchPolicy
from samegraph_service.call import Answer, Call, Failure, Outcome
from samegraph_service.cost import CostModel
from samegraph_service.device import Device, Lane
from samegraph_service.errors import (
    CallerGone,
    DeadlineExceeded,
    DeadlineTooShort,
    Draining,
    NotReady,
    Overloaded,
    UnknownModel,
    UnknownVersion,
)
from samegraph_service.metrics import VersionMetrics
from samegraph_service.predict import Deadlines, Predictor, Served, served_version
from samegraph_service.routing import ModelRoutes, RouteTable
from samegraph_transforms.errors import InputError
from samegraph_transforms.pack import pack
from samegraph_transforms.runtime import PackageRuntime
from samegraph_transforms.wire import decode_v1


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> PackageRuntime:
    return PackageRuntime.load(pack(build.draft(), build.samples(), tmp_path_factory.mktemp("models")))


class OnePath:
    """A predictor over one real model on a loop and threads that move when told."""

    def __init__(self, runtime: PackageRuntime, limits: Limits | None = None) -> None:
        self.loop = FakeLoop()
        self.pool = ManualPool()
        self.host = ManualPool()
        self.device = Device(self.loop, 1, 0.0, self.pool)
        self.lane = Lane("plants/1", runtime, BatchPolicy(8), CostModel(), VersionMetrics("plants", 1))
        self.device.add(self.lane)
        self.metrics = VersionMetrics("plants", 1)
        served = served_version(runtime, self.lane, self.metrics)
        self.table: RouteTable[Served] = RouteTable({"plants": ModelRoutes({1: served}, {2: "failed: why"}, {"production": 1})})
        self.gate = Gate(limits or Limits(10, 100, 10_000), self.device, self.loop.time)
        self.predictor = Predictor(self.loop, self.device, self.host, Deadlines(30.0, 60.0), lambda: self.table)
        self.outcomes: list[Outcome] = []

    def submit(self, rows: Any = None, **changes: Any) -> Any:
        body = build.sample("x", rows or [build.ROWS[0]]).body if not isinstance(rows, bytes) else rows
        call = Call(lambda call, signature: decode_v1(signature, call.body), "r", changes.pop("received", self.loop.now), self.done)
        call.body, call.body_bytes = body, len(body)
        label = changes.pop("label", None)
        for name, value in changes.items():
            setattr(call, name, value)
        served = self.predictor.route("plants", None, label)
        call.reservation = self.gate.reserve(len(body), self.gate.callers.of("a"), served.asked)
        self.predictor.submit(served, call)
        return call

    def done(self, call: Call, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def run(self) -> None:
        self.loop.run()
        while self.host.jobs or self.pool.jobs:
            self.host.run_all()
            self.loop.run()
            self.pool.run_all()
            self.loop.run()

    def failure(self) -> Any:
        (outcome,) = self.outcomes
        assert isinstance(outcome, Failure)
        return outcome.error


@pytest.fixture
def path(runtime: PackageRuntime) -> OnePath:
    return OnePath(runtime)


def test_a_call_is_answered_once_and_its_reservation_released(path: OnePath) -> None:
    """What was reserved on the headers is given back with the answer."""
    path.submit([build.ROWS[0], build.ROWS[1]])
    assert path.gate.load.rows == 2
    path.run()
    (answer,) = path.outcomes
    assert isinstance(answer, Answer)
    assert answer.arrays[0].tolist() == build.reference(build.ROWS[:2])["label"].tolist()
    assert path.gate.load == Load()
    assert path.metrics.instances == 2


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"rows": b"{"}, InputError),
        ({"rows": b'{"instances":[{"size":"x","kind":"y"}]}'}, InputError),
    ],
)
def test_a_refused_call_releases_its_reservation(path: OnePath, changes: dict[str, Any], error: type[Exception]) -> None:
    """No failure leaks a place."""
    path.submit(**changes)
    assert isinstance(path.failure(), error)
    assert path.gate.load == Load()


@pytest.mark.parametrize(
    ("asked", "error"),
    [(("trees",), UnknownModel), (("plants", 9), UnknownVersion), (("plants", 2), NotReady), (("plants", None, "canary"), UnknownVersion)],
)
def test_what_cannot_answer_is_refused_before_a_place_is_taken(path: OnePath, asked: tuple[Any, ...], error: type[Exception]) -> None:
    """Routing comes first, on the path alone."""
    with pytest.raises(error):
        path.predictor.route(*asked)


def test_a_version_that_was_retired_meanwhile_still_answers_its_call(path: OnePath) -> None:
    """A call that chose a version is answered by it, although no route names it any more."""
    served = path.predictor.route("plants")
    path.table = RouteTable({})
    path.device.remove(path.lane)
    body = build.sample("x", [build.ROWS[0]]).body
    call = Call(lambda _, signature: decode_v1(signature, body), "r", path.loop.now, path.done)
    path.predictor.submit(served, call)
    path.run()
    assert isinstance(path.outcomes[0], Answer)
    path.loop.advance(1.0)
    assert not path.lane.attached


def test_labels_route_to_their_version(path: OnePath) -> None:
    """A label is a name for a version."""
    path.submit(label="production")
    path.run()
    assert isinstance(path.outcomes[0], Answer)


def test_a_large_body_is_decoded_on_a_host_thread(path: OnePath) -> None:
    """The loop does no long work."""
    path.submit(heavy=True)
    assert len(path.host.jobs) == 1
    assert path.gate.load.rows == 0
    path.run()
    assert isinstance(path.outcomes[0], Answer)


def test_a_caller_who_leaves_while_his_body_is_decoded_is_not_run(path: OnePath) -> None:
    """Cancelling works at every stage."""
    handle = path.submit(heavy=True)
    handle.cancel()
    path.run()
    assert isinstance(path.failure(), CallerGone)
    assert path.gate.load == Load()


def test_a_caller_who_leaves_while_waiting_frees_the_queue_at_once(path: OnePath) -> None:
    """Nobody's answer is computed for nobody."""
    handle = path.submit()
    assert path.lane.queue.rows == 1
    handle.cancel()
    assert path.lane.queue.rows == 0
    path.run()
    assert isinstance(path.failure(), CallerGone)


def test_a_deadline_in_the_queue_is_answered_504_by_one_timer(path: OnePath) -> None:
    """A waiting call is failed at its deadline, without its rows having run."""
    path.submit()
    path.loop.run()
    path.submit(timeout_s=0.5)
    path.loop.advance(1.0)
    (outcome,) = path.outcomes
    assert isinstance(outcome, Failure)
    assert isinstance(outcome.error, DeadlineExceeded)


def test_a_deadline_no_execution_could_meet_is_refused_at_once(path: OnePath) -> None:
    """Not retryable: the same call will never fit."""
    path.lane.cost.observe(1, 2.0)
    path.submit(timeout_s=1.0)
    assert isinstance(path.failure(), DeadlineTooShort)


def test_a_call_that_arrives_late_is_not_queued(path: OnePath) -> None:
    """The deadline counts from the headers, so a slow body uses it up."""
    path.submit(timeout_s=1.0, received=path.loop.now - 2)
    assert isinstance(path.failure(), DeadlineExceeded)


def test_the_servers_longest_deadline_bounds_the_callers(path: OnePath) -> None:
    """Nobody holds a place for a day."""
    path.submit()
    path.loop.run()
    path.submit(timeout_s=86400.0)
    path.loop.advance(61)
    assert isinstance(path.failure(), DeadlineExceeded)


def test_rows_over_the_bound_are_refused_with_a_hint(runtime: PackageRuntime) -> None:
    """429 says when to come back: when the first batch is over, and a quarter of its time."""
    path = OnePath(runtime, Limits(10, 4, 10_000))
    path.lane.cost.observe(1, 0.5)
    path.submit([build.ROWS[0]] * 3)
    path.submit([build.ROWS[0]] * 2)
    error = path.failure()
    assert isinstance(error, Overloaded)
    assert error.reason == "rows"
    assert error.retry_after_s == pytest.approx(1.25)
    assert path.gate.load.rows == 3


def test_the_rest_of_a_drain_is_answered(path: OnePath) -> None:
    """What does not finish in grace is told so, once."""
    path.submit()
    path.submit()
    assert path.predictor.fail_all(Draining()) == 2
    path.run()
    assert [type(o.error) for o in path.outcomes if isinstance(o, Failure)] == [Draining, Draining]


# --- the rule -----------------------------------------------------------------------------------------------------------


def test_the_rule_names_the_bound_that_is_met() -> None:
    """Numbers in, verdict out."""
    limits = Limits(2, 10, 100)
    assert over(Load(1, 5, 50), limits, requests=1, rows=5, size_bytes=50) is None
    assert over(Load(2, 0, 0), limits, requests=1) == "requests"
    assert over(Load(1, 6, 0), limits, rows=5) == "rows"
    assert over(Load(1, 0, 60), limits, requests=1, size_bytes=50) == "bytes"


def test_an_empty_server_takes_what_is_larger_than_its_queue() -> None:
    """A request the body limit allows is never impossible."""
    assert over(Load(), Limits(2, 10, 100), requests=1, rows=99, size_bytes=999) is None


def test_hints_are_bounded() -> None:
    """Never zero, which would make callers spin, and never longer than a minute, which nobody could take back."""
    assert (hint_s(0.0), hint_s(2.5), hint_s(1e6)) == (0.05, 2.5, 60.0)


def test_a_draining_gate_refuses_and_says_when_it_is_empty() -> None:
    """Shutdown waits for exactly what was accepted."""
    loop = FakeLoop()
    gate = Gate(Limits(5, 5, 500), Device(loop, 1, 0.0, ManualPool()), loop.time)
    caller = gate.callers.of("a")
    idle: list[bool] = []
    gate.on_idle = lambda: idle.append(True)
    place = gate.reserve(10, caller, Asked())
    gate.draining = True
    with pytest.raises(Draining):
        gate.reserve(1, caller, Asked())
    place.release()
    place.release()
    assert idle[0]
    assert gate.load == Load()


def test_cost_is_fitted_and_never_negative() -> None:
    """T = a·n + b from observations; one size alone says nothing of b."""
    cost = CostModel()
    assert (cost.known, cost.predict_s(5)) == (False, 0.0)
    cost.observe(4, 0.4)
    assert cost.predict_s(8) == pytest.approx(0.8)
    for n in (1, 2, 4, 8, 16) * 100:
        cost.observe(n, 0.010 + 0.002 * n)
    assert cost.per_row_s == pytest.approx(0.002, rel=0.05)
    assert cost.fixed_s == pytest.approx(0.010, rel=0.05)
    assert cost.efficient_size(64) == 64
    linear = CostModel()
    for n in (1, 4, 16, 32) * 50:
        linear.observe(n, 0.0005 + 0.0100 * n)
    assert linear.efficient_size(32) == 3
    assert CostModel().efficient_size(32) == 32
    falling = CostModel()
    for n, t in ((1, 1.0), (10, 0.5)):
        falling.observe(n, t)
    assert falling.per_row_s == 0
    assert falling.fixed_s > 0
