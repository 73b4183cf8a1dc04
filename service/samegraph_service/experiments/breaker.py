"""The circuit-break of one replica: an arm that fails outright is withdrawn for a while, then tried with a few requests.

A replica alone knows too little to say that an arm is *worse*; that is for statistics over all replicas. It may only say that an arm is
broken: that more than a fixed share of its last requests failed. What it does about it ends by itself.

    closed -- too many failures --> open -- the time is up --> trying -- enough were sent --> waiting -- all went well --> closed
                                      ^                           |                              |
                                      +--- twice as long, up to a bound, after one too many -----+
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

State = Literal["closed", "open", "trying", "waiting"]


@dataclass(frozen=True, slots=True)
class BreakPolicy:
    """When an arm is withdrawn, and for how long.

    Attributes:
        max_error_ratio: Share of failed requests above which it is.
        min_requests: Number of last requests the share is taken of; before there were as many, nothing happens.
        hold_s: How long the first withdrawal lasts, in seconds; each one that follows soon lasts twice as long.
        longest_s: Bound of that, in seconds.
        trial_requests: Requests that try the arm when the time is up.
    """

    max_error_ratio: float = 0.05
    min_requests: int = 200
    hold_s: float = 300.0
    longest_s: float = 3600.0
    trial_requests: int = 20

    @property
    def tolerated(self) -> int:
        """Failures among the last `min_requests` that withdraw nothing."""
        return int(self.max_error_ratio * self.min_requests)


class Breaker:
    """Decides about one arm. For one thread.

    A success costs an addition: the positions of the last failures alone say whether there were too many among the last requests.

    Args:
        policy: When and for how long.
        clock: Seconds, monotonic.
        on_change: Called with the breaker after each change of state. The arm answers in the states `closed` and `trying`; `started` is to
            be called for every request that goes to it while it is tried, and `wake` at `due`.

    Attributes:
        state: What it is about.
        requests: Requests of the arm since it was last restored; whoever counts a success adds one.
        tried: Whether successes are to be told by `succeeded`, instead of being added to `requests`.
        opened: How often it was withdrawn.
    """

    __slots__ = (
        "_clock", "_closed_at", "_failed", "_failed_at", "_hold_s", "_on_change", "_sent", "_succeeded", "due", "opened", "policy",
        "requests", "state", "tried",
    )  # fmt: skip

    def __init__(self, policy: BreakPolicy, clock: Callable[[], float], on_change: Callable[[Breaker], None]) -> None:
        self.policy = policy
        self.state: State = "closed"
        self.requests = 0
        self.tried = False
        self.opened = 0
        #: When to call `wake`, by the clock; None for not at all.
        self.due: float | None = None
        self._clock = clock
        self._on_change = on_change
        self._failed_at: deque[int] = deque(maxlen=policy.tolerated + 1)
        self._hold_s = policy.hold_s
        self._closed_at = -1.0
        self._sent = self._succeeded = self._failed = 0

    @property
    def withdrawn(self) -> bool:
        """Whether the arm is withdrawn, or only tried."""
        return self.state != "closed"

    @property
    def answers(self) -> bool:
        """Whether requests may go to the arm."""
        return self.state in ("closed", "trying")

    @property
    def hold_s(self) -> float:
        """How long the present withdrawal lasts, or the last one did, in seconds."""
        return self._hold_s

    def wake(self) -> None:
        """Try the arm when its time is up; or again, when some of those that tried it never came back."""
        if self.due is not None and self._clock() >= self.due and self.state in ("open", "waiting"):
            self._sent = self._succeeded = self._failed = 0
            self._become("trying", None)

    def started(self) -> None:
        """Count a request that went to the arm while it is tried; the last of the trial ends that."""
        self._sent += 1
        if self.state == "trying" and self._sent >= self.policy.trial_requests:
            self._become("waiting", self._clock() + self._hold_s)

    def succeeded(self) -> None:
        """Count a request the arm answered."""
        self.requests += 1
        if self.tried:
            self._succeeded += 1
            self._judge_trial()

    def failed(self) -> None:
        """Count a request the arm failed, through no fault of the caller."""
        self.requests += 1
        if self.tried:
            self._failed += 1
            self._judge_trial()
        elif self.state == "closed":
            failed_at, least = self._failed_at, self.policy.min_requests
            failed_at.append(self.requests)
            if self.requests >= least and len(failed_at) > self.policy.tolerated and self.requests - failed_at[0] < least:
                self._open()

    def _judge_trial(self) -> None:
        """Close when all of the trial came back and few enough failed; open again as soon as too many did."""
        n = self.policy.trial_requests
        if self._failed > self.policy.max_error_ratio * n:
            self._open()
        elif self._succeeded + self._failed >= n:
            self.requests = 0
            self._failed_at.clear()
            self._closed_at = self._clock()
            self._become("closed", None)

    def _open(self) -> None:
        now = self._clock()
        # Soon after the last time: it was closed for less long than it had been open.
        again = self.tried or (self.opened > 0 and now - self._closed_at < self._hold_s)
        self._hold_s = min(2 * self._hold_s, self.policy.longest_s) if again else self.policy.hold_s
        self.opened += 1
        self._become("open", now + self._hold_s)

    def _become(self, state: State, due: float | None) -> None:
        self.state, self.due, self.tried = state, due, state in ("trying", "waiting")
        self._on_change(self)
