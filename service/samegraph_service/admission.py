"""Admission: the rule (numbers in, verdict out) and the gate that applies it.

The rule bounds what the server has accepted and not yet answered, in requests, rows and bytes. A refused caller is told
when the present work is predicted to be done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .errors import Draining, Overloaded

MIN_HINT_S = 0.05
MAX_HINT_S = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds of accepted, unanswered work."""

    max_requests: int
    max_rows: int
    max_bytes: int


@dataclass(slots=True)
class Load:
    """Accepted, unanswered work."""

    requests: int = 0
    rows: int = 0
    bytes: int = 0


def over(load: Load, limits: Limits, *, requests: int = 0, rows: int = 0, size_bytes: int = 0) -> str | None:
    """Return which bound that much more work would break (`requests`, `rows`, `bytes`), or None.

    A request too large for an empty server is let in when the server is empty: the body and instance limits bound it already.
    """
    if load.requests + requests > limits.max_requests:
        return "requests"
    if load.rows and load.rows + rows > limits.max_rows:
        return "rows"
    if load.bytes and load.bytes + size_bytes > limits.max_bytes:
        return "bytes"
    return None


def hint_s(drain_s: float) -> float:
    """Return the seconds to advise a refused caller to wait, from the predicted seconds of all accepted work."""
    return min(MAX_HINT_S, max(MIN_HINT_S, drain_s))


class Reservation:
    """A request's place in the server: taken on its headers, given back when it is answered."""

    __slots__ = ("_bytes", "_gate", "_rows")

    def __init__(self, gate: Gate, declared_bytes: int) -> None:
        self._gate: Gate | None = gate
        self._bytes = declared_bytes
        self._rows = 0

    def hold(self, body_bytes: int) -> None:
        """Count so many bytes of a body that is still arriving, if they are more than were declared.

        Raises:
            Overloaded: They do not fit; the reservation is kept, the caller releases it.
        """
        gate, more = self._gate, body_bytes - self._bytes
        if gate is None or more <= 0:
            return
        gate.check(size_bytes=more)
        gate.load.bytes += more
        self._bytes = body_bytes

    def confirm(self, rows: int, body_bytes: int) -> None:
        """Replace the declared size by the real one.

        Raises:
            Overloaded: The real size does not fit; the reservation is kept, the caller releases it.
        """
        gate = self._gate
        if gate is None:
            return
        load, limits, more = gate.load, gate.limits, body_bytes - self._bytes
        if load.rows + rows > limits.max_rows or (more > 0 and load.bytes + more > limits.max_bytes):
            gate.check(rows=rows, size_bytes=max(0, more))
        load.rows += rows - self._rows
        load.bytes += more
        self._rows, self._bytes = rows, body_bytes

    def release(self) -> None:
        """Give the place back; a second call does nothing."""
        gate = self._gate
        if gate is None:
            return
        self._gate = None
        load = gate.load
        load.requests -= 1
        load.rows -= self._rows
        load.bytes -= self._bytes
        if load.requests == 0 and gate.on_idle is not None:
            gate.on_idle()


class Gate:
    """Applies the rule. Lives on the event loop's thread.

    Args:
        limits: The bounds.
        drain_s: Returns the predicted seconds until all accepted work is done.

    Attributes:
        load: What is accepted and not answered.
        draining: Refuse everything new.
        on_idle: Called when the last accepted request is answered.
        refused: Reason → how often.
    """

    def __init__(self, limits: Limits, drain_s: Callable[[], float]) -> None:
        self.limits = limits
        self.load = Load()
        self.draining = False
        self.on_idle: Callable[[], None] | None = None
        self.refused: dict[str, int] = {"requests": 0, "rows": 0, "bytes": 0, "draining": 0}
        self._drain_s = drain_s

    def reserve(self, declared_bytes: int) -> Reservation:
        """Take a place for a request whose headers were read.

        Raises:
            Draining: The server is shutting down.
            Overloaded: A bound is met.
        """
        if self.draining:
            self.refused["draining"] += 1
            raise Draining
        load, limits = self.load, self.limits
        if load.requests >= limits.max_requests or load.bytes + declared_bytes > limits.max_bytes:  # the rule itself has exceptions
            self.check(requests=1, size_bytes=declared_bytes)
        load.requests += 1
        load.bytes += declared_bytes
        return Reservation(self, declared_bytes)

    def check(self, *, requests: int = 0, rows: int = 0, size_bytes: int = 0) -> None:
        """Raise Overloaded when that much more does not fit."""
        reason = over(self.load, self.limits, requests=requests, rows=rows, size_bytes=size_bytes)
        if reason is None:
            return
        self.refused[reason] += 1
        wait = hint_s(self._drain_s())
        bound = {"requests": self.limits.max_requests, "rows": self.limits.max_rows, "bytes": self.limits.max_bytes}[reason]
        raise Overloaded(
            f"the server has all the work it may accept ({bound} {reason}); try again in {wait:.2f} s", reason=reason, retry_after_s=wait
        )
