"""The sans-IO policy core: what happened goes in, what to send comes out. No socket, no clock, no thread, no event loop.

One `Dispatcher` stands for one server. A face (`blocking.py`, `awaiting.py`) hands it calls, asks which attempts are due, sends those, and
tells how each ended; the dispatcher decides about order, window, pauses, retries, budget and deadlines. Time is always an argument.
"""

from __future__ import annotations

import heapq
import logging
import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from .errors import ClientError, DeadlineExceeded, ServerError, TransportFailure, Unreachable, from_answer
from .gate import Gate
from .hints import Advertised, advertised
from .policy import RetryBudget, RetryPolicy, Tries, has_hint

if TYPE_CHECKING:
    from .core import Prediction

_log = logging.getLogger("samegraph_client")
#: Timers are this exact, in seconds; what is due within it is due.
TICK_S = 1e-6
#: Longest pause between two looks whether a server that restarts is there again.
PROBE_S = 2.0
#: A proxy that cuts answers off sooner than this, in seconds, is not impatient but broken.
IMPATIENT_S = 1.0
#: Longest that the question for the server's limit may take, in seconds.
ASK_S = 5.0
#: Shortest and longest pause, in seconds, before it is put again to a server that is not there, and its part of the time waited so far.
ASK_AGAIN_S, ASK_LATEST_S, ASK_RATIO = 0.05, 1.0, 0.1
#: Part of a proxy's patience that the server is told, so that its answer is through in time.
PATIENCE_RATIO = 0.9
INTERACTIVE, BATCH = 0, 1


@dataclass(frozen=True)
class Request:
    """One HTTP request; the body is bytes, so it can be sent again.

    Attributes:
        method: HTTP method.
        url: Where to.
        headers: Names in lower case.
        body: The whole body.
    """

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """One whole HTTP answer; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


#: How a call speaks: it yields requests, is sent the answer to each (or the error that is left after all retries), and returns its result.
Exchange = Generator[Request, Answer | ClientError, "Prediction"]


Kind = Literal["sent", "answered", "refused", "failed", "finished"]


@dataclass(frozen=True)
class Event:
    """Something that happened, for hooks.

    Attributes:
        kind: `sent`: an attempt leaves. `answered`: it got a good answer. `refused`: a refusal with a hint. `failed`: any other end.
            `finished`: the call is over.
        at: Monotonic seconds.
        attempt: Number of the attempt, from 1; of a finished call, how many there were.
        duration_s: Of an ended attempt, how long it took; of a finished call, from its start.
        wait_s: Until the next attempt, at least; None when there is none.
        error: What failed; None when nothing did.
        in_flight: Requests in flight to the server after this.
        window: How many may be.
        paused: Whether the gate is paused.
    """

    kind: Kind
    at: float
    attempt: int
    duration_s: float
    wait_s: float | None
    error: Exception | None
    in_flight: int
    window: int
    paused: bool


Hook = Callable[[Event], None]


@dataclass(eq=False)
class Call:
    """One call: an exchange, its retries, and how it ended.

    Attributes:
        exchange: What it says.
        tries: What has happened to it.
        priority: Lower goes first; `INTERACTIVE` calls overtake `BATCH` ones.
        patient: Whether it waits for the retry budget, rather than failing when there is none.
        deadline: Monotonic time by which it must be over; infinite for none.
        on_done: Called when it is over, by whatever ended it.
        state: Where it is.
        not_before: Its next attempt may not leave before this time.
        request: What its next attempt sends.
        result: Its result once it has succeeded.
        error: Its error once it has failed.
        ready_within_s: Longest it waits for a server that nobody has reached yet, if it is patient; infinite: until its deadline.
        waits_from: Monotonic time before which that does not count.
    """

    exchange: Exchange
    tries: Tries
    priority: int = INTERACTIVE
    patient: bool = False
    deadline: float = math.inf
    on_done: Callable[[Call, float], object] = lambda _call, _now: None
    state: Literal["new", "waiting", "sent", "done"] = "new"
    not_before: float = -math.inf
    request: Request | None = None
    result: Prediction | None = None
    error: Exception | None = None
    order: int = 0
    ready_within_s: float = math.inf
    waits_from: float = -math.inf
    watched: bool = False
    last: ClientError | None = field(default=None, repr=False)

    def begin(self) -> None:
        """Encode the raw input, which may take a while; called before the call is submitted.

        Raises:
            RawInputInvalid: It has no form on the wire.
        """
        self.request = next(self.exchange)


@dataclass(frozen=True, eq=False)
class Attempt:
    """Asks the face to send a request, and to tell `Dispatcher.landed` what came of it.

    Attributes:
        call: Whose attempt it is.
        request: What to send.
        timeout_s: Longest the attempt may take; None: no limit.
        sent_at: When it left.
    """

    call: Call
    request: Request
    timeout_s: float | None
    sent_at: float


@dataclass
class Absence:
    """When the server could not be connected to, as far as it was tried.

    Attributes:
        since: Monotonic time of the first refused connection; None while the server is there.
        last: What the last one failed with.
        times: How often the server was away.
        probes: Times it was asked whether it is there again.
    """

    since: float | None = None
    last: Unreachable | None = None
    times: int = 0
    probes: int = 0
    _before_s: float = 0.0

    def found(self, failure: Unreachable, now: float) -> None:
        """Note that no connection was made."""
        self.last = failure
        if self.since is None:
            self.since = now
            self.times += 1

    def over(self, now: float) -> None:
        """Note that one was."""
        if self.since is not None:
            self._before_s += now - self.since
            self.since = self.last = None

    def lasts_s(self, now: float, since: float = -math.inf) -> float:
        """Return for how many seconds it has been away now, those before `since` left out; 0 when it is not."""
        return 0.0 if self.since is None else now - max(self.since, since)

    def total_s(self, now: float) -> float:
        """Return the seconds of all times together."""
        return self._before_s + self.lasts_s(now)


#: Calls by when (or how urgently) they come, then by order of arrival.
Heap = list[tuple[float, int, Call]]


class Dispatcher:
    """Decides, for everything sent to one server, what leaves when.

    Args:
        gate: The window of the server.
        budget: Tokens for retries without a hint.
        hooks: Each is called with every event.
        ask: Asks the server for its limit, once a burst's window is full, and whether it is there, while it cannot be connected to.
            None asks nobody.

    Attributes:
        gate: The window.
        absence: When the server was away.
    """

    def __init__(self, gate: Gate, budget: RetryBudget, hooks: tuple[Hook, ...] = (), ask: Request | None = None) -> None:
        self.gate = gate
        self._budget = budget
        self._hooks = hooks
        self._ready: Heap = []
        self._delayed: Heap = []
        self._deadlines: Heap = []
        self._order = 0
        self._answered = False
        self.absence = Absence()
        self._ask = ask
        self._tells_limit = True
        self._asking: Call | None = None
        self._ask_from = -math.inf
        self._ask_since: float | None = None
        self._patience_s = math.inf  # of whatever is between here and the server, as far as it has shown

    def submit(self, call: Call, now: float) -> None:
        """Take a call that has begun; it goes behind those of its priority that came before."""
        self._order += 1
        call.order = self._order
        self._queue(call, now)

    def due(self, now: float) -> list[Attempt]:
        """Return the attempts that leave now; each is in flight from here on."""
        self._expire(now)
        while self._delayed and self._delayed[0][0] <= now + TICK_S:
            self._make_ready(heapq.heappop(self._delayed)[2])
        attempts = []
        while self._ready and self.gate.is_open(now + TICK_S):
            call = self._ready[0][2]
            if call.state == "waiting" and self._held_back(call):
                break
            heapq.heappop(self._ready)
            if call.state == "waiting":
                attempts.append(self._launch(call, now))
        self._forget_the_ended()
        if now + TICK_S >= self._ask_from and self._wants_to_ask():
            assert self._ask is not None
            self.absence.probes += self.gate.away
            self._ask_since = now if self._ask_since is None else self._ask_since
            self._asking = Call(_question(self._ask), Tries(RetryPolicy(), now), state="sent", request=self._ask)
            attempts.append(Attempt(self._asking, self._ask, ASK_S, now))
        return attempts

    def wake_at(self) -> float:
        """Return when `due` should be asked again if nothing happens before; infinite for never."""
        self._forget_the_ended()
        times = [heap[0][0] for heap in (self._delayed, self._deadlines) if heap]
        if self._ready and self.gate.has_room() and not self._held_back(self._ready[0][2]):
            times.append(self.gate.paused_until)
        if self._wants_to_ask():
            times.append(self._ask_from)
        return min(times, default=math.inf)

    def landed(self, attempt: Attempt, reply: Answer | Exception | None, now: float) -> None:
        """Take note of how an attempt ended; None when it was cancelled before it had an answer."""
        call = attempt.call
        if call is self._asking:
            self._heard(reply, now)
            return
        self.gate.landed()
        if reply is None:
            self.cancel(call)
            return
        error = _error(reply)
        self._answered = self._answered or isinstance(reply, Answer)
        said = advertised(reply.headers) if isinstance(reply, Answer) else None
        if isinstance(error, Unreachable):
            self.absence.found(error, now)
        if call.state == "done":  # cancelled meanwhile, but the server's word still counts
            self._learn(attempt, error, said, now, 0.0)
            return
        self._learn_patience(error, now - attempt.sent_at)
        call.tries.landed(error if isinstance(error, ClientError) else None, now)
        if error is None or not isinstance(error, ClientError):
            self._learn(attempt, error, said, now, 0.0)
            self._tell("answered" if error is None else "failed", call, now, now - attempt.sent_at, None, error)
            self._go_on(call, reply, now)
            return
        error.attempts = call.tries.attempts
        wait_s, final = self._verdict(call, error, now)
        self._learn(attempt, error, said, now, wait_s or 0.0)
        self._tell("refused" if has_hint(error) else "failed", call, now, now - attempt.sent_at, wait_s, error)
        if final is not None:
            self._go_on(call, final, now)
            return
        call.last = error
        call.not_before = now + (wait_s or 0.0)
        self._queue(call, now)

    def cancel(self, call: Call) -> None:
        """Forget a call; if an attempt of it is in flight, the face still tells how that ended."""
        if call.state != "done":
            call.state = "done"
            call.exchange.close()

    def shut(self, now: float, error: Exception) -> None:
        """End every call that waits; those in flight end when they have landed."""
        for _, _, call in [*self._ready, *self._delayed]:
            if call.state == "waiting":
                call.exchange.close()
                self.finish(call, now, error)

    def finish(self, call: Call, now: float, error: Exception) -> None:
        """End a call with an error."""
        call.error = error
        self._end(call, now)

    # -- inside ------------------------------------------------------------------------------------------------------------------------

    def _held_back(self, call: Call) -> bool:
        """Whether a call waits until the question has found the server there again: one looks for all of a burst."""
        return self._ask is not None and call.patient and self.gate.away

    def _wants_to_ask(self) -> bool:
        """Whether to ask the server: calls of a burst wait for one that is away, or for a window that nobody has told the size of."""
        if self._ask is None or self._asking is not None or not (self.gate.away or (self._tells_limit and self.gate.wants_limit)):
            return False
        return any(call.state == "waiting" and call.patient for _, _, call in (*self._ready[:1], *self._delayed[:1]))

    def _heard(self, reply: Answer | Exception | None, now: float) -> None:
        """Take what the server said to the question; one that is not there yet is asked again, for its limit one without limits never."""
        self._asking = None
        if self.gate.away and isinstance(reply, Unreachable):
            self.absence.found(reply, now)
            self._give_up_on_server(now)
        elif self.gate.away:  # somebody took the connection, whatever he made of the question
            self.gate.told(None)
            self.absence.over(now)
        if isinstance(reply, Answer) and reply.status not in (429, 502, 503, 504):
            said = advertised(reply.headers)
            self._ask_since = None
            self._answered = True
            self.gate.told(said)
            self._tells_limit = said is not None
        else:
            waited_s = 0.0 if self._ask_since is None else now - self._ask_since
            self._ask_from = now + min(ASK_LATEST_S, max(ASK_AGAIN_S, ASK_RATIO * waited_s))

    def _give_up_on_server(self, now: float) -> None:
        """End the calls that have waited long enough for a server that nobody has reached yet."""
        if self._answered:
            return
        for _, _, call in [*self._ready, *self._delayed]:
            if call.state == "waiting" and call.patient and self.absence.lasts_s(now, call.waits_from) >= call.ready_within_s:
                call.exchange.close()
                self.finish(call, now, self._unreached(call, now))

    def _unreached(self, call: Call, now: float) -> Unreachable:
        waited_s = self.absence.lasts_s(now, call.waits_from)
        error = Unreachable(
            f"the server could not be reached for {waited_s:.3g} s ({self.absence.last}): is it started, and is the address right? "
            f"RetryPolicy(wait_for_ready_s=…) or a deadline of the burst makes it wait longer"
        )
        error.attempts, error.waited_s = call.tries.attempts, waited_s
        error.__cause__ = self.absence.last
        return error

    def _forget_the_ended(self) -> None:
        for heap in (self._ready, self._delayed):
            while heap and heap[0][2].state == "done":
                heapq.heappop(heap)
        while self._deadlines and self._deadlines[0][2].state != "waiting":  # an attempt in flight has its own limit
            heapq.heappop(self._deadlines)[2].watched = False

    def _queue(self, call: Call, now: float) -> None:
        call.state = "waiting"
        if call.deadline < math.inf and not call.watched:
            call.watched = True
            heapq.heappush(self._deadlines, (call.deadline, call.order, call))
        if call.not_before > now:
            heapq.heappush(self._delayed, (call.not_before, call.order, call))
        else:
            self._make_ready(call)

    def _make_ready(self, call: Call) -> None:
        if call.state == "waiting":
            heapq.heappush(self._ready, (call.priority, call.order, call))

    def _launch(self, call: Call, now: float) -> Attempt:
        """Return the call's next attempt with the time it has; the server is told that, or less if a proxy in between waits less."""
        assert call.request is not None
        limits = [limit for limit in (call.deadline - now, call.tries.policy.attempt_timeout_s) if limit is not None and limit < math.inf]
        timeout_s = min(limits) if limits else None
        headers = {**call.request.headers, "x-attempt": str(call.tries.number)}
        told_s = min(self._patience_s, math.inf if timeout_s is None else timeout_s)
        if told_s < math.inf:
            headers["x-request-timeout-seconds"] = f"{told_s:.3f}"
        call.state = "sent"
        call.tries.sent(now)
        self._budget.sent(now)
        self.gate.sent()
        self._tell("sent", call, now, 0.0, None, None)
        return Attempt(call, Request(call.request.method, call.request.url, headers, call.request.body), timeout_s, now)

    def _verdict(self, call: Call, error: ClientError, now: float) -> tuple[float | None, ClientError | None]:
        """Return the wait before the next attempt, or the error the call is left with."""
        waits_for_server = call.patient and isinstance(error, Unreachable)  # nothing was sent, so trying again is always safe
        if waits_for_server and not self._answered and self.absence.lasts_s(now, call.waits_from) >= call.ready_within_s:
            return None, self._unreached(call, now)
        wait_s = call.tries.after(error, now, excused=waits_for_server)
        if wait_s is None:
            return None, error
        if waits_for_server:
            wait_s = min(wait_s, PROBE_S) if self._ask is None else 0.0
        elif not (has_hint(error) or (call.patient and call.tries.first_loss and self._repeats_cheaply(error))):
            if call.patient:
                wait_s = max(wait_s, self._budget.reserve(now))
            elif not self._budget.try_take(now):
                return None, error
        if now + wait_s >= call.deadline:  # fail now, with what is known, rather than sleep towards a deadline that cannot be met
            return None, _too_late(call, error, wait_s, self.absence.lasts_s(now))
        return wait_s, None

    def _repeats_cheaply(self, error: ClientError) -> bool:
        """Whether a lost attempt can be repeated at once: a server that was cut off is busy, unless it knows keys and drops who is gone."""
        return isinstance(error, TransportFailure) or self.gate.follows_server

    def _learn_patience(self, error: Exception | None, took_s: float) -> None:
        """See how long a proxy in between waits, so that the server accepts only what it can answer by then."""
        if isinstance(error, ServerError) and error.cut_off:
            if took_s >= IMPATIENT_S:
                self._patience_s = min(self._patience_s, PATIENCE_RATIO * took_s)
        elif isinstance(error, ServerError) and error.status == 504:
            if self.gate.in_flight == 0:  # alone, and still too little time: it was no proxy's limit, or nothing passes it
                self._patience_s *= 2
        elif error is None and took_s > self._patience_s / PATIENCE_RATIO:
            self._patience_s = math.inf

    def _learn(self, attempt: Attempt, error: Exception | None, said: Advertised | None, now: float, wait_s: float) -> None:
        """Let the gate know. A lost connection says nothing about load, unless there was none to be had."""
        overloaded = (isinstance(error, ServerError) and (error.status in (429, 503) or error.cut_off)) or (
            isinstance(error, TransportFailure) and error.overload
        )
        if overloaded:
            late = attempt.call.patient and isinstance(error, ServerError) and error.code == "deadline_unreachable"
            self.gate.refused(said, attempt.sent_at, now, wait_s, late=late)
        elif isinstance(error, Unreachable):
            self.gate.unreachable(attempt.sent_at, now, wait_s)
        elif error is None or isinstance(error, ServerError):
            self.gate.accepted(said, attempt.sent_at)
        if not self.gate.away:
            self.absence.over(now)

    def _go_on(self, call: Call, reply: Answer | Exception, now: float) -> None:
        """Let the exchange take the answer, or the error that is left; it ends, or has something else to send."""
        if not isinstance(reply, Answer | ClientError):
            call.exchange.close()
            self.finish(call, now, reply)
            return
        try:
            call.request = call.exchange.send(reply)
        except StopIteration as done:
            call.result = done.value
            self._end(call, now)
        except ClientError as error:
            error.attempts = call.tries.attempts
            self.finish(call, now, error)
        else:
            call.tries.next_request()
            call.not_before = now
            self._queue(call, now)

    def _end(self, call: Call, now: float) -> None:
        call.state = "done"
        self._tell("finished", call, now, now - call.tries.started, None, call.error)
        call.on_done(call, now)

    def _expire(self, now: float) -> None:
        while self._deadlines and (self._deadlines[0][0] <= now or self._deadlines[0][2].state != "waiting"):
            call = heapq.heappop(self._deadlines)[2]
            call.watched = False
            if call.state == "waiting":
                call.exchange.close()
                self.finish(call, now, _too_late(call, call.last or self.absence.last, None, self.absence.lasts_s(now)))

    def _tell(self, kind: Kind, call: Call, now: float, duration_s: float, wait_s: float | None, error: Exception | None) -> None:
        if self._hooks:
            gate = self.gate
            event = Event(kind, now, call.tries.attempts, duration_s, wait_s, error, gate.in_flight, gate.limit, now < gate.paused_until)
            for hook in self._hooks:
                try:
                    hook(event)
                except Exception:  # noqa: BLE001 - a user's hook must not cost a request
                    _log.exception("a hook of samegraph_client failed")


def _error(reply: Answer | Exception) -> Exception | None:
    if isinstance(reply, Exception):
        return reply
    return None if 200 <= reply.status < 300 else from_answer(reply.status, reply.headers, reply.body)


def _too_late(call: Call, last: ClientError | None, wait_s: float | None, away_s: float) -> DeadlineExceeded:
    why = f"the next attempt would have to wait {wait_s:.3g} s" if wait_s is not None else "the time is over"
    failed = f"; the last one failed: {last}" if last else ""
    if away_s > 0:
        failed = f"; the server could not be reached for {away_s:.3g} s: {last}"
    limit_s = call.deadline - call.tries.started
    error = DeadlineExceeded(
        f"no answer within {limit_s:.6g} s: {why} after {call.tries.attempts} attempts{failed}", last=last, wait_s=wait_s
    )
    error.attempts = call.tries.attempts
    return error


def _question(request: Request) -> Exchange:
    """Ask for the limit; the answer goes to the gate, never back in here."""
    raise LookupError((yield request))
