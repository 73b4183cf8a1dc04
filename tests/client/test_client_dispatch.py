"""The policy core in simulated time: its laws, and the simulation of the burst it was designed by."""

from __future__ import annotations

import re
from collections import defaultdict
from itertools import pairwise

import pytest
import tenacity
from hypothesis import given, settings
from hypothesis import strategies as st
from samegraph_client.dispatch import BATCH, INTERACTIVE, Answer, Attempt, Call, Dispatcher, Event, Request
from samegraph_client.errors import AttemptTimedOut, ClientError, ConnectionFailed, DeadlineExceeded, Refused, ServerFault, Unreachable
from samegraph_client.gate import Gate
from samegraph_client.policy import RetryBudget, RetryPolicy, Tries
from simulated_burst import Simulation, Slots, exchange


def call(index: int = 0, priority: int = BATCH, patient: bool = True, deadline: float = 600.0, policy: RetryPolicy | None = None) -> Call:
    """Return a call that has begun."""
    made = Call(exchange(index), Tries(policy or RetryPolicy(), 0.0), priority, patient, deadline)  # type: ignore[arg-type]
    made.begin()
    return made


def refusal(hint_s: float | None = None, status: int = 429) -> Answer:
    """Return a refusal with or without a hint."""
    return Answer(status, {} if hint_s is None else {"retry-after-ms": str(hint_s * 1000)}, b'{"error": "full", "retryable": true}')


GOOD = Answer(200, {}, b"")

# -- laws -------------------------------------------------------------------------------------------------------------------------------

replies = st.one_of(
    st.just(GOOD),
    st.floats(0.001, 30).map(refusal),
    st.just(refusal()),
    st.just(refusal(status=503)),
    st.just(Answer(400, {}, b"{}")),
    st.just(Answer(504, {}, b"gateway time-out")),
    st.builds(ConnectionFailed, st.just("lost")),
    st.builds(Unreachable, st.just("refused")),
    st.just(None),
    st.integers(0, 30).map(lambda r: Answer(200, {"ratelimit": f'"inflight";r={r}', "ratelimit-policy": '"inflight";q=20'}, b"")),
)


class Watched(RetryBudget):
    """A budget that notes what is taken from it."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[float] = []
        self.filled: list[float] = []

    def sent(self, now: float) -> None:
        self.filled.append(now)
        super().sent(now)

    def reserve(self, now: float) -> float:
        delay_s = super().reserve(now)
        self.taken.append(now + delay_s)
        return delay_s


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(1, 30), st.floats(5, 300))
def test_laws_hold_whatever_the_server_does(data: st.DataObject, n: int, deadline: float) -> None:
    """One end per call; no attempt before its hint or after its deadline, none beyond the gate; no more retries than the budget has."""
    budget, now = Watched(), 0.0
    events: list[Event] = []
    dispatcher = Dispatcher(Gate(), budget, (events.append,))
    ends: dict[int, int] = defaultdict(int)
    calls = [call(index, deadline=deadline) for index in range(n)]
    for index, made in enumerate(calls):
        made.on_done = lambda _call, _now, index=index: ends.__setitem__(index, ends[index] + 1)  # type: ignore[misc]
        dispatcher.submit(made, now)
    flying: list[Attempt] = []
    not_before: dict[Call, float] = {}
    while sum(ends.values()) < n and len(events) < 3000:
        for attempt in dispatcher.due(now):
            assert dispatcher.gate.in_flight <= max(dispatcher.gate.limit, len(flying) + 1)
            assert now >= not_before.get(attempt.call, 0.0) - 2e-6
            assert attempt.timeout_s is None or attempt.timeout_s <= deadline - now + 1e-9
            flying.append(attempt)
        assert len(flying) == dispatcher.gate.in_flight
        if flying:
            now += data.draw(st.floats(0, 2))
            attempt = flying.pop(data.draw(st.integers(0, len(flying) - 1)))
            reply = data.draw(replies) if len(events) < 1500 else GOOD
            if reply is None:
                ends[calls.index(attempt.call)] += 1  # cancelled: the caller knows
            if isinstance(reply, Answer) and "retry-after-ms" in reply.headers:
                not_before[attempt.call] = now + float(reply.headers["retry-after-ms"]) / 1000
            dispatcher.landed(attempt, reply, now)
        elif sum(ends.values()) < n:
            assert dispatcher.wake_at() < float("inf")
            now = max(now, dispatcher.wake_at())
    assert dict(ends) == dict.fromkeys(range(n), 1)
    assert all(made.state == "done" for made in calls)
    for start in (0.0, 5.0, 20.0):
        for end in (start + 1, start + 10, start + 60):
            taken = sum(start < at <= end for at in budget.taken)
            filled = sum(at <= end for at in budget.filled)
            assert taken <= 10 + (end - start) + 0.1 * filled + 1e-6


def test_refusals_hint_is_obeyed_to_the_letter() -> None:
    """The call that was refused waits for its own hint, though the gate opens earlier for others."""
    dispatcher = Dispatcher(Gate(start=2), RetryBudget())
    for index in range(3):
        dispatcher.submit(call(index), 0.0)
    first, second = dispatcher.due(0.0)
    dispatcher.landed(first, refusal(1.0), 0.1)
    dispatcher.landed(second, refusal(9.0), 0.1)
    assert dispatcher.due(1.0) == []
    assert 1.1 <= dispatcher.wake_at() <= 1.4
    (third,) = dispatcher.due(1.4)  # the gate is cut to one by now
    assert third.call is first.call
    dispatcher.landed(third, GOOD, 1.5)
    (fourth,) = dispatcher.due(1.5)
    assert fourth.request.url == "/2"
    dispatcher.landed(fourth, GOOD, 1.6)
    assert dispatcher.due(9.0) == []
    (fifth,) = dispatcher.due(9.1 + 0.25 * 9)
    assert fifth.call is second.call


def test_interactive_calls_overtake() -> None:
    """What a person waits for goes ahead of a burst that was there first."""
    dispatcher = Dispatcher(Gate(start=1), RetryBudget())
    items = [call(index) for index in range(3)]
    for item in items:
        dispatcher.submit(item, 0.0)
    (first,) = dispatcher.due(0.0)
    urgent = call(9, INTERACTIVE)
    dispatcher.submit(urgent, 0.1)
    dispatcher.landed(first, Answer(200, {"ratelimit": '"inflight";r=1'}, b""), 0.2)
    assert [attempt.call for attempt in dispatcher.due(0.2)] == [urgent]


def test_one_refusal_pauses_everything_once() -> None:
    """Eight refusals of one round are one pause."""
    dispatcher = Dispatcher(Gate(), RetryBudget())
    for index in range(300):
        dispatcher.submit(call(index), 0.0)
    for attempt in dispatcher.due(0.0):
        dispatcher.landed(attempt, refusal(5.0), 0.1)
    assert dispatcher.gate.pauses == 1
    assert dispatcher.due(5.0) == []
    assert len(dispatcher.due(6.4)) == dispatcher.gate.limit


def test_empty_budget_makes_a_burst_wait_and_a_single_call_fail() -> None:
    """A server that fails without a hint gets ten retries (and one per item for its first lost connection), then one a second or none."""
    policy = RetryPolicy(stop=tenacity.stop_never, wait=tenacity.wait_none())
    dispatcher = Dispatcher(Gate(start=1), RetryBudget(ratio=0.0))
    patient = call(policy=policy)
    dispatcher.submit(patient, 0.0)
    now = 0.0
    times: list[float] = []
    while len(times) < 16:
        for attempt in dispatcher.due(now):
            times.append(now)
            dispatcher.landed(attempt, ConnectionFailed("lost"), now)
        now = max(now, dispatcher.wake_at())
    assert times[11] == 0.0  # the first, the one again that is free, and ten
    assert times[12:] == pytest.approx([1.0, 2.0, 3.0, 4.0], abs=1e-5)
    dispatcher.cancel(patient)
    hasty = call(patient=False, policy=policy)
    dispatcher.submit(hasty, now)
    (attempt,) = dispatcher.due(now + 0.1)
    dispatcher.landed(attempt, ConnectionFailed("lost"), now + 0.1)
    assert isinstance(hasty.error, ConnectionFailed)


@pytest.mark.parametrize("was_there", [True, False])
@pytest.mark.parametrize(("patient", "survives"), [(True, True), (False, False)])
def test_burst_waits_for_a_server_that_is_away(was_there: bool, patient: bool, survives: bool) -> None:
    """Half a minute without a server costs no item, whether there ever was one or not; a single call ends after five attempts."""
    dispatcher = Dispatcher(Gate(), RetryBudget())
    if was_there:
        dispatcher.submit(call(9), 0.0)
        dispatcher.landed(dispatcher.due(0.0)[0], GOOD, 0.1)
    items = [call(index, patient=patient) for index in range(20)]
    for item in items:
        dispatcher.submit(item, 1.0)
    now, sent = 1.0, 0
    while any(item.state != "done" for item in items):
        for attempt in dispatcher.due(now):
            sent += 1
            up = now > 31.0 and survives
            dispatcher.landed(attempt, GOOD if up else Unreachable("nobody listens"), now)
        now = max(now, dispatcher.wake_at()) if any(item.state != "done" for item in items) else now
    assert all((item.error is None) is survives for item in items)
    assert sent <= 100
    assert now <= 36.0 or not survives


def test_server_that_dies_with_a_full_window_costs_a_second() -> None:
    """A hundred connections lost at once are sent again at once, not one a second; each only once for free."""
    dispatcher = Dispatcher(Gate(start=100), RetryBudget())
    items = [call(index) for index in range(100)]
    for item in items:
        dispatcher.submit(item, 0.0)
    for attempt in dispatcher.due(0.0):
        dispatcher.landed(attempt, ConnectionFailed("reset"), 1.0)
    again = dispatcher.due(1.5)
    assert len(again) == 100
    for attempt in again:
        dispatcher.landed(attempt, ConnectionFailed("reset"), 2.0)
    assert len(dispatcher.due(5.0)) <= 15


CUT_OFF = Answer(504, {}, b"<html><body><h1>504 Gateway Time-out</h1></body></html>")
TOO_LATE = Answer(504, {}, b'{"error": "the deadline passed", "code": "deadline_exceeded", "retryable": true}')


def told_s(dispatcher: Dispatcher, reply: Answer, at: float, took_s: float) -> float:
    """Send a call at a time and let it end so; return the seconds the server was told to have."""
    dispatcher.submit(call(deadline=10_000.0), at)
    (attempt,) = dispatcher.due(at)
    assert attempt.timeout_s == 10_000.0 - at  # a longer answer is waited for all the same
    dispatcher.landed(attempt, reply, at + took_s)
    dispatcher.cancel(attempt.call)
    dispatcher.gate.paused_until = 0.0
    return float(attempt.request.headers["x-request-timeout-seconds"])


def test_impatience_of_a_proxy_is_learned_and_forgotten() -> None:
    """The server is told nine tenths of what a proxy waits, until that proves wrong: then it is told the deadline again."""
    dispatcher = Dispatcher(Gate(), RetryBudget())
    assert told_s(dispatcher, CUT_OFF, 0.0, 0.5) == 10_000.0  # a broken proxy is no impatient one
    assert told_s(dispatcher, CUT_OFF, 1.0, 60.0) == 9999.0
    assert told_s(dispatcher, GOOD, 100.0, 59.0) == 54.0
    assert told_s(dispatcher, TOO_LATE, 200.0, 54.0) == 54.0
    assert told_s(dispatcher, CUT_OFF, 300.0, 60.0) == 108.0  # alone, it was too little, so twice that was tried, which was too much
    assert told_s(dispatcher, GOOD, 400.0, 70.0) == 54.0
    assert told_s(dispatcher, GOOD, 500.0, 1.0) == 9500.0


@pytest.mark.parametrize("ours", [True, False])
def test_window_that_a_proxy_cut_off_is_sent_again_to_a_server_that_knows_keys(ours: bool) -> None:
    """There it is joined to what runs; to any other it would be more load, so that one's window is cut and the budget is asked."""
    dispatcher = Dispatcher(Gate(start=100), RetryBudget())
    if ours:
        dispatcher.submit(call(200), 0.0)
        said = {"ratelimit": '"inflight";r=200', "ratelimit-policy": '"inflight";q=200;qu="concurrent-requests"'}
        dispatcher.landed(dispatcher.due(0.0)[0], Answer(200, said, b""), 0.0)
    items = [call(index) for index in range(100)]
    for item in items:
        dispatcher.submit(item, 0.0)
    for attempt in dispatcher.due(0.0):
        dispatcher.landed(attempt, CUT_OFF, 60.0)
    again = dispatcher.due(61.0)
    assert len(again) == 100 if ours else len(again) <= 20
    assert dispatcher.gate.follows_server is ours
    assert all(attempt.request.headers["x-request-timeout-seconds"] == "54.000" for attempt in again)


def test_waiting_for_the_gate_counts_against_the_deadline() -> None:
    """A call that got no place in time fails then, not when the place comes."""
    dispatcher = Dispatcher(Gate(start=1), RetryBudget())
    first, second = call(0), call(1, deadline=3.0)
    dispatcher.submit(first, 0.0)
    dispatcher.submit(second, 0.0)
    (attempt,) = dispatcher.due(0.0)
    assert dispatcher.wake_at() == 3.0
    assert dispatcher.due(3.0) == []
    assert isinstance(second.error, DeadlineExceeded)
    assert str(second.error) == "no answer within 3 s: the time is over after 0 attempts"
    dispatcher.landed(attempt, GOOD, 4.0)
    assert first.error is None


def test_cancelled_call_gives_its_place_back() -> None:
    """What was in flight for it is counted until it has landed, and then is free."""
    dispatcher = Dispatcher(Gate(start=1), RetryBudget())
    gone, waiting = call(0), call(1)
    dispatcher.submit(gone, 0.0)
    dispatcher.submit(waiting, 0.0)
    (attempt,) = dispatcher.due(0.0)
    dispatcher.cancel(gone)
    assert dispatcher.due(0.1) == []
    dispatcher.landed(attempt, None, 0.2)
    assert [attempt.call for attempt in dispatcher.due(0.2)] == [waiting]
    assert gone.result is None
    assert gone.error is None


def test_broken_hooks_cost_no_request(caplog: pytest.LogCaptureFixture) -> None:
    """A hook that fails is logged."""

    def broken(event: Event) -> None:
        raise KeyError(event.kind)

    dispatcher = Dispatcher(Gate(), RetryBudget(), (broken,))
    made = call()
    dispatcher.submit(made, 0.0)
    (attempt,) = dispatcher.due(0.0)
    dispatcher.landed(attempt, GOOD, 0.1)
    assert made.result is not None
    assert "a hook of samegraph_client failed" in caplog.text


@pytest.mark.parametrize(("reply", "kind"), [(Answer(500, {}, b"{}"), ServerFault), (refusal(700.0), DeadlineExceeded)])
def test_final_errors_end_the_call(reply: Answer, kind: type[ClientError]) -> None:
    """What cannot pass, and a hint beyond the deadline, fail at once."""
    dispatcher = Dispatcher(Gate(), RetryBudget())
    made = call()
    dispatcher.submit(made, 0.0)
    (attempt,) = dispatcher.due(0.0)
    dispatcher.landed(attempt, reply, 0.1)
    assert type(made.error) is kind
    if isinstance(made.error, DeadlineExceeded):
        assert isinstance(made.error.last, Refused)


# -- the founding burst: 300 frames, 20 one-at-a-time workers, 10 s each; the least makespan is 150 s ----------------------------------

SEEDS = range(3)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("server", "gate", "makespan_s", "attempts"),
    [
        pytest.param(Slots(queue=20, hint="ticket", advertise=24), Gate(start=24), 155, 300, id="advertised limit, known from the start"),
        pytest.param(Slots(queue=20, hint="ticket", advertise=24), None, 165, 300, id="advertised limit, learned from the first answer"),
        pytest.param(Slots(queue=20, hint="ticket"), None, 165, 306, id="AIMD, a queue of one wave"),
        pytest.param(Slots(hint="slot"), None, 190, 309, id="AIMD, no queue"),
        pytest.param(Slots(), None, 190, 309, id="AIMD, no queue and no hints"),
        pytest.param(Slots(queue=300), None, 165, 300, id="AIMD, all may wait"),
        pytest.param(
            Slots(n=16, service_s=0.4, queue=32, hint="late", advertise=3000, front_s=0.0005),
            None,
            8.7,
            400,
            id="advertised limit, too little time",
        ),
    ],
)
def test_the_burst_through_the_gate(server: Slots, gate: Gate | None, makespan_s: float, attempts: int, seed: int) -> None:
    """About one attempt per frame and a makespan near the least possible, whatever the server tells."""
    fresh = Slots(server.n, server.service_s, server.queue, server.hint, server.advertise)
    burst = Simulation(fresh, seed=seed, gate=Gate(24) if gate else None)
    burst.run()
    assert burst.lost == 0
    assert set(burst.outcomes.values()) == {1}
    assert burst.over_limit <= 0
    assert len(burst.sent) <= attempts
    assert burst.makespan_s <= makespan_s
    for at, index, hint_s in burst.refused:
        returns = [time for time, sent in burst.sent if sent == index and time >= at]
        assert not returns or returns[0] >= at + hint_s - 2e-6


@pytest.mark.parametrize("seed", SEEDS)
def test_a_limit_that_is_asked_for_is_as_good_as_a_known_one(seed: int) -> None:
    """One question beside the first requests, and no frame waits for the first answer, which takes ten seconds."""
    burst = Simulation(Slots(queue=20, hint="ticket", advertise=24), seed=seed, ask=True)
    burst.run()
    assert (burst.lost, burst.asked, len(burst.sent)) == (0, 1, 300)
    assert burst.over_limit <= 0
    assert burst.makespan_s <= 155
    assert sum(at < 1 for at, _ in burst.sent) == 24


def asking(gate: Gate, calls: int, patient: bool = True) -> Dispatcher:
    """Return a dispatcher that may ask, with so many calls."""
    dispatcher = Dispatcher(gate, RetryBudget(), ask=Request("GET", "/limit", {}, b""))
    for index in range(calls):
        dispatcher.submit(call(index, patient=patient), 0.0)
    return dispatcher


def test_nobody_is_asked_for_a_limit_that_would_not_help() -> None:
    """While there is room, for single calls, for a window that cannot grow, and once the server has told."""
    assert [a.request.method for a in asking(Gate(8), 8).due(0.0)] == ["POST"] * 8
    assert [a.request.method for a in asking(Gate(2), 4, patient=False).due(0.0)] == ["POST"] * 2
    assert [a.request.method for a in asking(Gate(2, 2), 4).due(0.0)] == ["POST"] * 2
    dispatcher = asking(Gate(2), 9)
    first, _, question = dispatcher.due(0.0)
    assert question.request.method == "GET"
    dispatcher.landed(first, Answer(200, {"ratelimit": '"inflight";r=1'}, b""), 1.0)
    assert [a.request.method for a in dispatcher.due(1.0)] == ["POST"]


@pytest.mark.parametrize("status", [200, 404, 401])
def test_a_server_without_limits_is_asked_once(status: int) -> None:
    """Whatever it answers; the window is learned as before."""
    dispatcher = asking(Gate(2), 9)
    first, _, question = dispatcher.due(0.0)
    dispatcher.landed(question, Answer(status, {}, b""), 0.1)
    assert dispatcher.gate.limit == 2
    dispatcher.landed(first, GOOD, 1.0)
    assert [a.request.method for a in dispatcher.due(1.0)] == ["POST"] * 2


def test_a_server_that_is_away_is_asked_until_it_is_there() -> None:
    """Ever more rarely, in proportion to the time it has been away; then everything that waits may leave at once."""
    dispatcher = asking(Gate(2), 9)
    away = Unreachable("connection refused")
    for attempt in dispatcher.due(0.0):
        dispatcher.landed(attempt, away, 0.0)
    now, asked = 0.0, [0.0]
    while now < 10:
        now = dispatcher.wake_at()
        for attempt in dispatcher.due(now):
            dispatcher.landed(attempt, away, now)
            asked += [now] if attempt.request.method == "GET" else []
    pauses = [later - earlier for earlier, later in pairwise(asked)]
    assert all(later >= 0.999 * earlier for earlier, later in pairwise(pauses))
    assert pauses[0] == pytest.approx(0.05)
    assert pauses[-1] == pytest.approx(0.1 * asked[-2], rel=0.01)
    while not (questions := [a for a in dispatcher.due(now) if a.request.method == "GET"]):
        now = dispatcher.wake_at()
    dispatcher.landed(questions[0], Answer(200, {"ratelimit": '"inflight";r=5'}, b""), now)
    assert dispatcher.gate.limit >= 5
    assert dispatcher.gate.is_open(now)


def play(dispatcher: Dispatcher, calls: list[Call], up_from: float, now: float = 0.0) -> tuple[float, dict[str, int]]:
    """Let time pass until the calls are over; the server takes connections from `up_from` on. Return the time and requests by method."""
    requests: dict[str, int] = defaultdict(int)
    while any(made.state != "done" for made in calls):
        for attempt in dispatcher.due(now):
            requests[attempt.request.method] += 1
            there = Answer(404, {}, b"") if attempt.request.method == "GET" else GOOD
            dispatcher.landed(attempt, there if now >= up_from else Unreachable("connection refused"), now)
        if any(made.state != "done" for made in calls):
            assert sum(requests.values()) < 3000
            now = max(now, dispatcher.wake_at())
    return now, requests


def test_one_question_looks_for_a_whole_burst() -> None:
    """Ten minutes before a refused port cost the first window one attempt each, the others none; then everything goes on at once."""
    dispatcher = Dispatcher(Gate(), RetryBudget(), ask=Request("GET", "/ready", {}, b""))
    items = [call(index, deadline=3600.0) for index in range(300)]
    for item in items:
        dispatcher.submit(item, 0.0)
    now, requests = play(dispatcher, items, 600.0)
    assert all(item.error is None for item in items)
    assert 600.0 <= now <= 601.1
    assert requests["POST"] == 300 + 8
    assert sum(item.tries.attempts for item in items) == 300 + 8
    assert requests["GET"] <= 650
    absence = dispatcher.absence
    assert (absence.times, absence.since, absence.probes) == (1, None, requests["GET"] - 1)  # the first was for the limit
    assert absence.total_s(9999.0) == pytest.approx(now, abs=0.01)


def test_burst_without_a_deadline_waits_as_long_as_its_policy_says() -> None:
    """Then every item that waits ends with an error that says how long that was, and what can be done."""
    dispatcher = Dispatcher(Gate(), RetryBudget(), ask=Request("GET", "/ready", {}, b""))
    items = [call(index) for index in range(20)]
    for item in items:
        item.ready_within_s = 120.0
        dispatcher.submit(item, 0.0)
    now, _ = play(dispatcher, items, 9999.0)
    assert 120.0 <= now <= 121.1
    for item in items:
        assert isinstance(item.error, Unreachable)
        assert item.error.waited_s == now
        assert item.error.attempts == item.tries.attempts
        assert re.search(r"not be reached for 12\d s \(connection refused\).*wait_for_ready_s.*deadline", str(item.error))
    later = call(21, deadline=9999.0)  # another burst, an hour later, waits as long again
    later.ready_within_s, later.waits_from = 120.0, 3600.0
    dispatcher.submit(later, 3600.0)
    assert play(dispatcher, [later], 3700.0, 3600.0)[0] <= 3701.1
    assert later.error is None


def test_single_call_does_not_wait_with_the_burst() -> None:
    """It ends after its five attempts, which also look whether the server is there; the deadline of an item says why it ended."""
    dispatcher = Dispatcher(Gate(), RetryBudget(), ask=Request("GET", "/ready", {}, b""))
    items, single = [call(index, deadline=100.0) for index in range(20)], call(99, INTERACTIVE, patient=False)
    for made in [*items, single]:
        dispatcher.submit(made, 0.0)
    assert play(dispatcher, [single], 9999.0)[0] <= 8.0
    assert isinstance(single.error, Unreachable)
    assert (single.error.attempts, single.error.waited_s) == (5, None)
    assert play(dispatcher, items, 9999.0, 8.0)[0] == 100.0
    assert all(isinstance(item.error, DeadlineExceeded) for item in items)
    assert re.search(r"could not be reached for .* s: connection refused", str(items[-1].error))


@pytest.mark.parametrize("reply", [Answer(503, {}, b""), Answer(200, {}, b""), AttemptTimedOut("slow"), ConnectionFailed("reset")])
def test_whoever_takes_the_connection_ends_the_wait(reply: Answer | Exception) -> None:
    """What becomes of the requests themselves is then for them to find out."""
    dispatcher = asking(Gate(2), 9)
    for attempt in dispatcher.due(0.0):
        dispatcher.landed(attempt, Unreachable("connection refused"), 0.0)
    assert dispatcher.due(0.0) == []
    (question,) = dispatcher.due(1.0)
    assert question.request.method == "GET"
    dispatcher.landed(question, reply, 1.1)
    assert [a.request.url for a in dispatcher.due(1.1)] == ["/0", "/1"]


def test_answers_to_what_was_sent_before_do_not_end_the_wait() -> None:
    """A server that drains answers what it has and takes nothing new."""
    dispatcher = asking(Gate(2), 9)
    first, second, question = dispatcher.due(0.0)
    dispatcher.landed(question, Answer(404, {}, b""), 0.1)
    dispatcher.landed(first, Unreachable("connection refused"), 1.0)
    dispatcher.landed(second, GOOD, 1.1)
    assert [a.request.method for a in dispatcher.due(1.1)] == ["GET"]


def test_a_slower_caller_is_not_starved_by_the_order() -> None:
    """Lowest frame first: the largest number of outcomes that wait for an earlier one stays below two windows."""
    burst = Simulation(Slots(queue=20, hint="ticket", advertise=24))
    burst.run()
    order = sorted(burst.ended, key=lambda index: burst.ended[index][0])
    held = most = expected = 0
    done: set[int] = set()
    for index in order:
        done.add(index)
        while expected in done:
            expected += 1
        held = len(done) - expected
        most = max(most, held)
    assert most <= 48
