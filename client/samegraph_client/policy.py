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
from tenacity.wait import wait_base, wait_random_exponential

from .errors import ClientError, ServerError, TransportFailure

Wait = wait_base | Callable[[RetryCallState], float]
Stop = Callable[[RetryCallState], bool]


class wait_hint(wait_base):  # noqa: N801 - named like the strategies it stands beside
    """Wait as long as the server asked, plus a little, so that callers with the same hint do not return together.

    A samegraph server may say `spread: true`: the hint is this caller's own place in the queue, and needs next to no jitter. Any other
    server gives everyone the same number. Without a hint it waits 0 s. The result is never below the hint.

    Args:
        own_ratio: Most jitter, as a fraction of a hint that is this caller's own; at most one second.
        shared_ratio: Most jitter, as a fraction of a hint that others got too.
    """

    def __init__(self, own_ratio: float = 0.1, shared_ratio: float = 0.25) -> None:
        if own_ratio < 0 or shared_ratio < 0:
            raise ValueError(f"jitter goes upward only: own_ratio and shared_ratio must be >= 0, got {own_ratio} and {shared_ratio}")
        self.own_ratio = own_ratio
        self.shared_ratio = shared_ratio

    def __call__(self, retry_state: RetryCallState) -> float:
        """Return the wait before the next attempt, in seconds."""
        error = retry_state.outcome.exception() if retry_state.outcome else None
        if not isinstance(error, ServerError) or error.hint_s is None:
            return 0.0
        most = min(self.own_ratio * error.hint_s, 1.0) if error.document.spread else self.shared_ratio * error.hint_s
        return error.hint_s + random.uniform(0.0, most)


@dataclass(frozen=True)
class RetryPolicy:
    """What a call does when an attempt fails.

    Attributes:
        stop: Given the failures so far (hinted refusals left out), whether to give up.
        wait: The wait before the next attempt when the server gave no hint: full jitter by default.
        hint_wait: The wait when it did.
        deadline_s: Longest the whole call may take, waits included; None: no limit.
        attempt_timeout_s: Longest one attempt may take; None: whatever is left until the deadline.
    """

    stop: Stop = field(default_factory=lambda: stop_after_attempt(5))
    wait: Wait = field(default_factory=lambda: wait_random_exponential(multiplier=0.5, max=20))
    hint_wait: Wait = field(default_factory=wait_hint)
    deadline_s: float | None = 60.0
    attempt_timeout_s: float | None = None

    def __post_init__(self) -> None:
        """Refuse times that are not positive."""
        for name in ("deadline_s", "attempt_timeout_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be > 0 seconds or None, got {value}")


@dataclass
class Tries:
    """What has happened to one call so far; `after` says what to do next.

    Attributes:
        policy: The rules.
        started: Monotonic time of the call's start, seconds.
        attempts: Times something was sent.
        refusals: Refusals with a hint among them.
        waited_s: Seconds spent waiting between attempts.
    """

    policy: RetryPolicy
    started: float
    attempts: int = 0
    refusals: int = 0
    waited_s: float = 0.0

    def remaining_s(self, now: float) -> float | None:
        """Seconds until the deadline (negative: passed), or None when there is none."""
        return None if self.policy.deadline_s is None else self.started + self.policy.deadline_s - now

    def after(self, error: ClientError, now: float) -> float | None:
        """Return the wait before the next attempt in seconds, or None to give up for good.

        The deadline is the caller's business: it may find that the wait does not fit.
        """
        hinted = isinstance(error, ServerError) and error.hinted_refusal
        self.refusals += hinted
        if not _worth_repeating(error):
            return None
        state = self._state(error, now)
        if not hinted and self.policy.stop(state):
            return None
        hint_s = error.hint_s if isinstance(error, ServerError) else None
        if hint_s is None:
            return max(0.0, float(self.policy.wait(state)))
        return max(hint_s, float(self.policy.hint_wait(state)))

    def _state(self, error: ClientError, now: float) -> RetryCallState:
        """Return tenacity's view of the call, with our clock and without hinted refusals in the count."""
        state = RetryCallState(retry_object=Retrying(), fn=None, args=(), kwargs={})
        state.attempt_number = max(1, self.attempts - self.refusals)
        state.outcome = Future(state.attempt_number)
        state.outcome.set_exception(error)
        state.start_time, state.outcome_timestamp = self.started, now
        state.idle_for = self.waited_s
        return state


def _worth_repeating(error: ClientError) -> bool:
    """Whether the same request may succeed later. A prediction is safe to repeat: it changes nothing, and it carries its key."""
    return isinstance(error, TransportFailure) or (isinstance(error, ServerError) and error.retryable)
