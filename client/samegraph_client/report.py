"""What a burst was like: attempts, refusals, waits, how honest the hints were, and the makespan beside the least it could have been."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

#: Completion times kept for the service rate; beyond this every second one is dropped, and so on.
_MOST_TIMES = 4096


@dataclass
class Report:
    """Counts up while a burst runs; complete when it is over.

    Attributes:
        items: Items read so far.
        answered: Items with a prediction, those of an earlier run included.
        failed: Items that ended in an error.
        replayed: Items answered in an earlier run and taken from the journal.
        sent: Items sent at least once that are over.
        attempts: Requests sent.
        refusals: Refusals with a hint among them.
        retries: Attempts after the first of an item, refusals or not.
        waited_s: Seconds items spent between attempts, summed over items.
        queued_s: Seconds items spent waiting for the gate, summed over items.
        hint_returns: Times an item came back after a hint.
        hint_hits: Times it was let in then.
        hint_error_s: Seconds by which hints were too early, summed.
        makespan_s: From the first item's start to the last item's end.
        gate_pauses: Pauses of the gate since the burst began, those due to other calls included.
        unreachable_waits: Times the server could not be connected to since the burst began, so that all of it waited.
        unreachable_s: Seconds of that.
        readiness_probes: Times it was asked then whether it is there again; costs no attempt.
        errors: Name of the error's class → items that ended so.
        stream: What a video's stream was like; None for other bursts.
    """

    items: int = 0
    answered: int = 0
    failed: int = 0
    replayed: int = 0
    sent: int = 0
    attempts: int = 0
    refusals: int = 0
    retries: int = 0
    waited_s: float = 0.0
    queued_s: float = 0.0
    hint_returns: int = 0
    hint_hits: int = 0
    hint_error_s: float = 0.0
    makespan_s: float = 0.0
    gate_pauses: int = 0
    unreachable_waits: int = 0
    unreachable_s: float = 0.0
    readiness_probes: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    stream: object | None = None
    _times: list[float] = field(default_factory=list, repr=False)
    _stride: int = field(default=1, repr=False)
    _seen: int = field(default=-1, repr=False)

    @property
    def attempts_per_item(self) -> float | None:
        """Attempts per item that was sent in this run; None when none was."""
        return self.attempts / self.sent if self.sent else None

    @property
    def hint_hit_ratio(self) -> float | None:
        """Part of the returns after a hint that were let in; None when there was no hint."""
        return self.hint_hits / self.hint_returns if self.hint_returns else None

    @property
    def mean_hint_error_s(self) -> float | None:
        """Mean of how much longer the server asked for when an item came back as told; None when there was no hint."""
        return self.hint_error_s / self.hint_returns if self.hint_returns else None

    @property
    def service_rate_per_s(self) -> float | None:
        """Answers per second between the first and the last tenth of them; None for fewer than ten answers."""
        n = len(self._times)
        first, last = n // 10, n - 1 - n // 10
        if n * self._stride < 10 or last <= first or self._times[last] <= self._times[first]:
            return None
        return (last - first) * self._stride / (self._times[last] - self._times[first])

    @property
    def lower_bound_s(self) -> float | None:
        """The least makespan at the observed service rate: what a server busy from the first to the last moment would need."""
        rate = self.service_rate_per_s
        return (self.answered - self.replayed) / rate if rate else None

    @property
    def makespan_ratio(self) -> float | None:
        """Makespan over the lower bound; 1 is perfect."""
        bound = self.lower_bound_s
        return self.makespan_s / bound if bound else None

    def finished_at(self, at: float) -> None:
        """Note the time of an answer."""
        self._seen += 1
        if self._seen % self._stride:
            return
        self._times.append(at)
        if len(self._times) > _MOST_TIMES:
            del self._times[1::2]
            self._stride *= 2

    def as_dict(self) -> dict[str, object]:
        """Return everything as JSON values."""
        counted = {name: value for name, value in asdict(self).items() if not name.startswith("_")}
        derived = ("attempts_per_item", "hint_hit_ratio", "mean_hint_error_s", "service_rate_per_s", "lower_bound_s", "makespan_ratio")
        return {**counted, **{name: getattr(self, name) for name in derived}}
