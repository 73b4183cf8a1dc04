"""The circuit-break of one replica: an arm that fails outright is withdrawn for a while, then tried with a few requests.

A replica alone knows too little to say that an arm is *worse*; that is for statistics over all replicas. It may only say that an arm is
broken: that more than a fixed share of its last requests failed. What it does about it ends by itself.

    closed ── too many failures ──> open ── the time is up ──> trying ── all went well ──> closed
                                     ^                            └── one too many ──┐
                                     └────────── twice as long, up to a bound ───────┘
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

State = Literal["closed", "open", "trying"]


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
        on_change: Called with the state before and the state after.
    """

    def __init__(self, policy: BreakPolicy, clock: Callable[[], float], on_change: Callable[[State, State], None]) -> None:
        self.policy = policy
        self.state: State = "closed"
        self.opened = 0
        self._clock = clock
        self._on_change = on_change
        self._requests = 0
        self._failed_at: deque[int] = deque(maxlen=policy.tolerated + 1)
        self._hold_s = policy.hold_s
        self._until = 0.0
        self._closed_at = -1.0
        self._sent = self._succeeded = self._failed = 0

    @property
    def withdrawn(self) -> bool:
        """Whether the arm's units go elsewhere, but for the few that try it."""
        return self.state != "closed"

    @property
    def hold_s(self) -> float:
        """How long the present withdrawal lasts, or the last one did, in seconds."""
        return self._hold_s

    def admits(self) -> bool:
        """Whether this request of the arm may go to it; to be asked once for each while the arm is withdrawn."""
        if self.state == "closed":
            return True
        now = self._clock()
        if self.state == "open":
            if now < self._until:
                return False
            self._try(now)
        elif now >= self._until:  # some of those that tried never came back
            self._try(now)
        if self._sent >= self.policy.trial_requests:
            return False
        self._sent += 1
        return True

    def succeeded(self) -> None:
        """Count a request the arm answered."""
        self._requests += 1
        if self.state == "trying":
            self._succeeded += 1
            self._judge_trial()

    def failed(self) -> None:
        """Count a request the arm failed, through no fault of the caller."""
        self._requests += 1
        if self.state == "trying":
            self._failed += 1
            self._judge_trial()
        elif self.state == "closed":
            failed_at = self._failed_at
            failed_at.append(self._requests)
            least = self.policy.min_requests
            if self._requests >= least and len(failed_at) > self.policy.tolerated and self._requests - failed_at[0] < least:
                self._open()

    def _try(self, now: float) -> None:
        self._sent = self._succeeded = self._failed = 0
        self._until = now + self._hold_s
        self._become("trying")

    def _judge_trial(self) -> None:
        """Close when all of the trial came back and few enough failed; open again as soon as too many did."""
        n = self.policy.trial_requests
        if self._failed > self.policy.max_error_ratio * n:
            self._open()
        elif self._succeeded + self._failed >= n:
            self._requests = 0
            self._failed_at.clear()
            self._closed_at = self._clock()
            self._become("closed")

    def _open(self) -> None:
        now = self._clock()
        # Soon after the last time: it was closed for less long than it had been open.
        again = self.state == "trying" or (self.opened > 0 and now - self._closed_at < self._hold_s)
        self._hold_s = min(2 * self._hold_s, self.policy.longest_s) if again else self.policy.hold_s
        self._until = now + self._hold_s
        self.opened += 1
        self._become("open")

    def _become(self, state: State) -> None:
        before, self.state = self.state, state
        if before != state:
            self._on_change(before, state)
