"""What happened, item by item: kept in memory, bounded, and reduced to the figures the report shows.

Latency of an open load counts from when an item *was due*, not from when it was sent: a generator that falls behind would otherwise hide
exactly the waits that matter (coordinated omission). How far it fell behind is a figure of its own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

#: Items remembered one by one; beyond it a run is refused rather than thinned, so that no percentile is a guess.
MOST_ITEMS = 2_000_000


@dataclass(slots=True)
class Item:
    """One item of a scenario, from when it was due to its end. Times are seconds since the scenario began.

    Attributes:
        role: Which part of the scenario sent it (`burst`, `interactive`, …).
        due: When it was to be sent.
        sent: When it was handed to the client.
        ended: When it was over.
        ok: Whether it was answered.
        wrong: Where the answer differs from the golden one; empty when it does not.
        attempts: Times it was sent.
        refusals: Refusals with a hint among them.
        waited_s: Seconds between its attempts.
        error: Class of what failed it, or "".
        unit: Who it is about, in an experiment.
        arm: The arm that was assigned.
        version: The version that answered.
    """

    role: str
    due: float
    sent: float
    ended: float
    ok: bool
    wrong: str = ""
    attempts: int = 1
    refusals: int = 0
    waited_s: float = 0.0
    error: str = ""
    unit: str = ""
    arm: str = ""
    version: str = ""

    @property
    def latency(self) -> float:
        """Seconds from when it was due to its end."""
        return self.ended - self.due


@dataclass
class Burst:
    """One burst: what the client's own report says of it.

    Attributes:
        items: How many.
        makespan_s: First start to last end.
        lower_bound_s: Least it could have been at the observed service rate, when there were enough answers to observe one.
        hint_returns: Times an item came back after a hint.
        hint_hits: Times it was let in then.
        hint_error_s: Seconds by which hints were too early, summed.
    """

    items: int
    makespan_s: float
    lower_bound_s: float | None = None
    hint_returns: int = 0
    hint_hits: int = 0
    hint_error_s: float = 0.0


@dataclass
class Moment:
    """What the replicas said of themselves at one time, summed.

    Attributes:
        at: Seconds since the scenario began.
        queue_rows: Instances that wait.
        in_flight: Requests accepted and unanswered.
        batch: Mean instances of an execution since the moment before; None without any.
        refused: Refusals a second since then.
        answered: Answers a second since then.
        replicas: Replicas that answered.
    """

    at: float
    queue_rows: float
    in_flight: float
    batch: float | None
    refused: float
    answered: float
    replicas: int


@dataclass
class Record:
    """Everything one run saw.

    Attributes:
        items: Every item.
        bursts: Every burst.
        moments: What the replicas said, about once a second.
        notes: (seconds, sentence) of what was done to the fleet.
        ends: How attempts ended → how often.
        executed: Instances the replicas that are there at the end say they have computed; None when none was asked.
    """

    items: list[Item] = field(default_factory=list)
    bursts: list[Burst] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    notes: list[tuple[float, str]] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    executed: float | None = None

    def add(self, item: Item) -> None:
        """Remember an item.

        Raises:
            OverflowError: There are `MOST_ITEMS` already.
        """
        if len(self.items) >= MOST_ITEMS:
            raise OverflowError(f"a run remembers at most {MOST_ITEMS:,} items; lower the rate or the duration")
        self.items.append(item)

    def roles(self) -> list[str]:
        """Return the roles in the order they first appear."""
        return list(dict.fromkeys(item.role for item in self.items))

    def of(self, role: str | None = None) -> list[Item]:
        """Return the items of a role, or all."""
        return self.items if role is None else [item for item in self.items if item.role == role]

    def lost(self, role: str | None = None) -> int:
        """Return how many items ended without an answer."""
        return sum(not item.ok for item in self.of(role))

    def wrong(self) -> list[Item]:
        """Return the items whose answer is not the golden one."""
        return [item for item in self.items if item.wrong]

    def errors(self) -> Counter[str]:
        """Return class of error → items."""
        return Counter(item.error for item in self.items if item.error)

    def attempts_per_item(self, role: str | None = None) -> float:
        """Return how often an item was sent in the mean; NaN without items."""
        items = self.of(role)
        return sum(item.attempts for item in items) / len(items) if items else math.nan

    def latency(self, q: float, role: str | None = None, where: Callable[[Item], bool] | None = None) -> float:
        """Return a quantile of the latency of answered items (nearest rank); NaN without any."""
        return quantile([item.latency for item in self.of(role) if item.ok and (where is None or where(item))], q)

    def mean_latency(self, role: str) -> float:
        """Return the mean latency of a role's answered items; NaN without any."""
        latencies = [item.latency for item in self.of(role) if item.ok]
        return sum(latencies) / len(latencies) if latencies else math.nan

    def lateness(self, q: float) -> float:
        """Return a quantile of how late items were handed to the client; large values say the generator fell behind."""
        return quantile([item.sent - item.due for item in self.items], q)

    @property
    def hint_hit_ratio(self) -> float | None:
        """Share of returns after a hint that were let in; None without any."""
        returns = sum(burst.hint_returns for burst in self.bursts)
        return sum(burst.hint_hits for burst in self.bursts) / returns if returns else None

    @property
    def duration(self) -> float:
        """Seconds to the last item's end."""
        return max((item.ended for item in self.items), default=0.0)


def quantile(values: Iterable[float], q: float) -> float:
    """Return the value of nearest rank; NaN without values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)] if ordered else math.nan


def per_second(values: Sequence[tuple[float, float]], duration: float, reduce: Callable[[list[float]], float]) -> list[tuple[float, float]]:
    """Return (middle of the second, what `reduce` makes of the values in it) for every second that has any."""
    seconds: dict[int, list[float]] = {}
    for at, value in values:
        seconds.setdefault(int(at), []).append(value)
    return [(second + 0.5, reduce(seconds[second])) for second in range(math.ceil(duration) + 1) if second in seconds]
