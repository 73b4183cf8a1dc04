"""The retry policy: when to try again, and after how long. Numbers in, verdict out; no clock, no socket.

The vocabulary is tenacity's: `wait` and `stop` take any of its strategies (or a callable of yours). Two rules are ours and hold whatever
strategies are given, because the stock ones lose requests without them: a wait is never shorter than the server's hint, and a refusal
that carries a hint does not count as an attempt.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tenacity import Future, RetryCallState, Retrying
from tenacity.stop import stop_after_attempt
from tenacity.wait import wait_base

from .errors import AddressInvalid, ClientError, ConnectionFailed, ServerError, TransportFailure, Unreachable

Wait = wait_base | Callable[[RetryCallState], float]
Stop = Callable[[RetryCallState], bool]
Uniform = Callable[[float, float], float]


class wait_hint(wait_base):  # noqa: N801 - named like the strategies it stands beside
    """Wait as long as the server asked, plus a little, so that callers with the same hint do not return together.

    A samegraph server may say `spread: true`: the hint is this caller's own place in the queue, and needs next to no jitter. Any other
    server gives everyone the same number. Without a hint it waits 0 s. The result is never below the hint.

    Args:
        own_ratio: Most jitter, as a fraction of a hint that is this caller's own; at most one second.
        shared_ratio: Most jitter, as a fraction of a hint that others got too.
        uniform: Draws a number between two others.
    """

    def __init__(self, own_ratio: float = 0.1, shared_ratio: float = 0.25, uniform: Uniform = random.uniform) -> None:
        if own_ratio < 0 or shared_ratio < 0:
            raise ValueError(f"jitter goes upward only: own_ratio and shared_ratio must be >= 0, got {own_ratio} and {shared_ratio}")
        self.own_ratio = own_ratio
        self.shared_ratio = shared_ratio
        self._uniform = uniform

    def __call__(self, retry_state: RetryCallState) -> float:
        """Return the wait before the next attempt, in seconds."""
        error = retry_state.outcome.exception() if retry_state.outcome else None
        if not isinstance(error, ServerError) or error.hint_s is None:
            return 0.0
        most = min(self.own_ratio * error.hint_s, 1.0) if error.document.spread else self.shared_ratio * error.hint_s
        return error.hint_s + self._uniform(0.0, most)


class wait_full_jitter(wait_base):  # noqa: N801 - named like the strategies it stands beside
    """Wait anywhere between nothing and a limit that doubles with every failure.

    The same as tenacity's `wait_random_exponential`, but for the source of randomness, which can be given.

    Args:
        base_s: The limit after the first failure.
        most_s: The limit never grows beyond this.
        uniform: Draws a number between two others.
    """

    def __init__(self, base_s: float = 0.5, most_s: float = 20.0, uniform: Uniform = random.uniform) -> None:
        self.base_s = base_s
        self.most_s = most_s
        self._uniform = uniform

    def __call__(self, retry_state: RetryCallState) -> float:
        """Return the wait before the next attempt, in seconds."""
        doublings = min(retry_state.attempt_number - 1, 60)
        return self._uniform(0.0, min(self.most_s, self.base_s * 2.0**doublings))


@dataclass(frozen=True)
class RetryPolicy:
    """What a call does when an attempt fails.

    Attributes:
        stop: Given the failures so far (hinted refusals left out), whether to give up.
        wait: The wait before the next attempt when the server gave no hint: full jitter by default.
        hint_wait: The wait when it did.
        deadline_s: Longest the whole call may take, waits included; None: no limit.
        attempt_timeout_s: Longest one attempt may take; None: whatever is left until the deadline.
        wait_for_ready_s: How long a burst without a deadline waits for a server that nobody has reached yet, counted from the first refused
            connection; None: as long as the deadlines of its items allow. A burst with a deadline waits until that, a single call never.
    """

    stop: Stop = field(default_factory=lambda: stop_after_attempt(5))
    wait: Wait = field(default_factory=wait_full_jitter)
    hint_wait: Wait = field(default_factory=wait_hint)
    deadline_s: float | None = 60.0
    attempt_timeout_s: float | None = None
    wait_for_ready_s: float | None = 120.0

    def __post_init__(self) -> None:
        """Refuse times that are not positive."""
        for name in ("deadline_s", "attempt_timeout_s", "wait_for_ready_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be > 0 seconds or None, got {value}")


class RetryBudget:
    """How many retries without a hint a client may make: a bucket of tokens that everything it sends fills.

    A server that fails without saying when to return may be failing because of the retries. In any stretch of L seconds at most
    `floor + L × floor / ttl_s + ratio × requests sent` retries get a token. Refusals with a hint cost none.

    Args:
        ratio: Tokens that each request sent brings.
        floor: Tokens there are at the start, and at most.
        ttl_s: An empty bucket refills by itself in so many seconds.
    """

    def __init__(self, ratio: float = 0.1, floor: float = 10.0, ttl_s: float = 10.0) -> None:
        if ratio < 0 or floor < 1 or ttl_s <= 0:
            raise ValueError(f"a retry budget needs ratio >= 0, floor >= 1 and ttl_s > 0, got {ratio}, {floor} and {ttl_s}")
        self._ratio, self._floor, self._refill_per_s = ratio, floor, floor / ttl_s
        self._tokens = floor
        self._at: float | None = None

    def sent(self, now: float) -> None:
        """Count a request that was sent."""
        self._refill(now)
        self._tokens = min(self._floor, self._tokens + self._ratio)

    def try_take(self, now: float) -> bool:
        """Take a token for a retry now, if there is one."""
        self._refill(now)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def reserve(self, now: float) -> float:
        """Take the next token there will be, and return how many seconds it takes to come."""
        self._refill(now)
        self._tokens -= 1.0
        return max(0.0, -self._tokens / self._refill_per_s)

    def _refill(self, now: float) -> None:
        if self._at is not None and now > self._at:
            self._tokens = min(self._floor, self._tokens + (now - self._at) * self._refill_per_s)
        self._at = now if self._at is None else max(now, self._at)


@dataclass
class Tries:
    """What has happened to one call so far; `after` says what to do next.

    Attributes:
        policy: The rules.
        started: Monotonic time of the call's start, seconds.
        attempts: Times something was sent.
        refusals: Refusals with a hint among them.
        waited_s: Seconds spent waiting between attempts.
        queued_s: Seconds spent waiting for the gate before the first attempt.
        hint_returns: Times it came back after a hint.
        hint_hits: Times it was let in then.
        hint_error_s: Seconds by which hints were too early, summed: what the server asked for on top when it refused again.
        ended: Monotonic time of the last attempt's end; None before that.
        first_loss: Whether the last attempt was the first whose connection was lost, or was cut off by a proxy. Either takes a whole window
            with it at once; sending each of those again once is no storm, and under their keys no double work.
    """

    policy: RetryPolicy
    started: float
    attempts: int = 0
    refusals: int = 0
    waited_s: float = 0.0
    queued_s: float = 0.0
    hint_returns: int = 0
    hint_hits: int = 0
    hint_error_s: float = 0.0
    ended: float | None = None
    first_loss: bool = False
    _losses: int = 0
    _hinted: bool = False
    _before: int = 0
    _refused_before: int = 0
    _excused: int = 0

    @property
    def number(self) -> int:
        """Attempts of the request that is being made: a call that asks for metadata first makes more than one."""
        return self.attempts - self._before

    def next_request(self) -> None:
        """Start counting anew: the call goes on with another request."""
        self._before, self._refused_before, self._excused = self.attempts, self.refusals, 0

    def sent(self, now: float) -> None:
        """Count an attempt that leaves now."""
        self.attempts += 1
        self.hint_returns += self._hinted
        if self.ended is None:
            self.queued_s = now - self.started
        else:
            self.waited_s += now - self.ended

    def landed(self, error: ClientError | None, now: float) -> None:
        """Count the end of an attempt: how honest the last hint was, and whether there is one now."""
        self.ended = now
        lost = isinstance(error, ConnectionFailed) and not isinstance(error, Unreachable)  # what was not sent was not lost
        lost = lost or (isinstance(error, ServerError) and error.cut_off)
        self._losses += lost
        self.first_loss = lost and self._losses == 1
        hint_s = error.hint_s if isinstance(error, ServerError) and error.hinted_refusal else None
        if self._hinted and hint_s is not None:
            self.hint_error_s += hint_s
        elif self._hinted and not isinstance(error, TransportFailure):
            self.hint_hits += 1
        self._hinted = hint_s is not None
        self.refusals += self._hinted

    def after(self, error: ClientError, now: float, *, excused: bool = False) -> float | None:
        """Return the wait before the next attempt in seconds, or None to give up for good; an excused failure costs no attempt.

        The deadline is the caller's business: it may find that the wait does not fit.
        """
        if not _worth_repeating(error):
            return None
        counted = max(1, self.number - (self.refusals - self._refused_before))
        self._excused += excused
        if not has_hint(error) and not excused and self.policy.stop(self._state(error, now, counted - self._excused)):
            return None
        state = self._state(error, now, counted)
        hint_s = error.hint_s if isinstance(error, ServerError) else None
        if hint_s is None:
            return max(0.0, float(self.policy.wait(state)))
        return max(hint_s, float(self.policy.hint_wait(state)))

    def _state(self, error: ClientError, now: float, attempts: int) -> RetryCallState:
        """Return tenacity's view of the call, with our clock and without hinted refusals in the count."""
        state = RetryCallState(retry_object=Retrying(), fn=None, args=(), kwargs={})
        state.attempt_number = max(1, attempts)
        state.outcome = Future(state.attempt_number)
        state.outcome.set_exception(error)
        state.start_time, state.outcome_timestamp = self.started, now
        state.idle_for = self.waited_s
        return state


def has_hint(error: ClientError) -> bool:
    """Whether this is a refusal that says when to come back; it costs neither an attempt nor a token."""
    return isinstance(error, ServerError) and error.hinted_refusal


def _worth_repeating(error: ClientError) -> bool:
    """Whether the same request may succeed later. A prediction is safe to repeat: it changes nothing, and it carries its key."""
    if isinstance(error, AddressInvalid):
        return False
    return isinstance(error, TransportFailure) or (isinstance(error, ServerError) and error.retryable)
