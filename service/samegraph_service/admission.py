"""Admission: the rule (numbers in, verdict out) and the gate that applies it.

The rule bounds what the server has accepted and not yet answered, in requests, rows and bytes, over all and for each caller, and lets in
only what is predicted to be answered within its deadline. Who is refused gets a ticket and the moment its place comes free (tickets.py).

A request that meets no contention pays for a few comparisons only: everything else is in `Gate._reserve_with_care`.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import islice
from typing import Any, NoReturn, Protocol

import msgspec

from .errors import DeadlineUnreachable, Draining, Overloaded
from .tickets import Ticket, TicketTable
from .turns import BACKGROUND, INTERACTIVE, NORMAL

MIN_HINT_S = 0.05
MAX_HINT_S = 60.0
#: Share of a batch's time by which predictions are on the safe side.
SLACK = 0.25
#: Share of all bounds that is kept for the interactive class.
KEPT = 0.1
#: Largest share of the places that is kept for refused callers whose moment has come; before it, all that came free for them are.
HELD = 0.5
#: Tickets one caller may hold at least, if the table has room: a video's worth and more, however few places there are.
LEAST_TICKETS = 1024
#: Seconds a request whose body has not arrived keeps its place while others are refused.
BODY_PLACE_S = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds of accepted, unanswered work."""

    max_requests: int
    max_rows: int
    max_bytes: int

    def shared(self, ratio: float) -> Limits:
        """Return a share of these, at least one of each."""
        return Limits(*(max(1, int(bound * ratio)) for bound in (self.max_requests, self.max_rows, self.max_bytes)))

    def without(self, ratio: float) -> Limits:
        """Return what is left when a share of these, rounded down, is kept."""
        return Limits(*(bound - int(bound * ratio) for bound in (self.max_requests, self.max_rows, self.max_bytes)))


@dataclass(slots=True)
class Load:
    """Accepted, unanswered work."""

    requests: int = 0
    rows: int = 0
    bytes: int = 0


def over(load: Load | Caller, limits: Limits, *, requests: int = 0, rows: int = 0, size_bytes: int = 0) -> str | None:
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


def hint_s(wait_s: float, longest_s: float = MAX_HINT_S, chance: float = 1.0) -> float:
    """Return the seconds to advise a refused caller to wait.

    Args:
        wait_s: Until its place is predicted to be free.
        longest_s: Above it, the hint is between half of it and itself: nobody believes more, and it could not be called back.
        chance: Where between the two, from 0 to 1.
    """
    if wait_s > longest_s:
        return longest_s * (0.5 + 0.5 * chance)
    return max(MIN_HINT_S, wait_s)


class Caller:
    """One caller and what he has here.

    Attributes:
        name: Header value or address; "" for all those who found no room in the table.
        requests: Accepted and unanswered.
        rows: Theirs.
        bytes: Theirs.
    """

    __slots__ = ("bytes", "name", "requests", "rows")

    def __init__(self, name: str) -> None:
        self.name = name
        self.requests = self.rows = self.bytes = 0


class Callers:
    """The callers that are told apart: those with work here, and the latest others.

    Args:
        capacity: Most of them; beyond it one `Caller` stands for all the rest.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._known: OrderedDict[str, Caller] = OrderedDict()
        self._rest = Caller("")

    def __len__(self) -> int:
        return len(self._known)

    def of(self, name: str) -> Caller:
        """Return the caller of that name."""
        caller = self._known.get(name)
        if caller is not None:
            self._known.move_to_end(name)
            return caller
        if len(self._known) >= self._capacity and not self._make_room():
            return self._rest
        caller = self._known[name] = Caller(name)
        return caller

    def _make_room(self) -> bool:
        """Forget one of the eight seen longest ago, if one of them has nothing here."""
        idle = next((name for name, caller in islice(self._known.items(), 8) if caller.requests == 0), None)
        if idle is None:
            return False
        del self._known[idle]
        return True


class Forecast(Protocol):
    """What the gate asks of the device; all in seconds from now."""

    def pending_s(self) -> float:
        """Return the predicted seconds of everything that waits."""
        ...

    def start_s(self, lane: Any, ahead: int) -> float:
        """Return when the row with `ahead` rows of its lane before it starts."""
        ...

    def free_s(self, lane: Any, rows: int, accepted: int, back_s: float) -> float:
        """Return when the place with `rows` others before it is free, `accepted` rows being here and freed places taken `back_s` later."""
        ...

    def rate_per_s(self, lane: Any) -> float | None:
        """Return the rows a second of a lane alone."""
        ...

    def slowest_rate_per_s(self) -> float | None:
        """Return the least of those rates; None before anything was measured."""
        ...


class Reservation(msgspec.Struct, eq=False):
    """A request's place in the server: taken on its headers, given back when it is answered."""

    _gate: Gate | None
    _bytes: int
    caller: Caller
    asked: Asked
    _rows: int = 0
    _arriving: bool = False
    lapsed: bool = False

    def arriving(self, now: float) -> None:
        """Its body has not arrived yet: under load it keeps its place for so long only."""
        gate = self._gate
        if gate is not None:
            self._arriving = True
            gate.arriving[self] = now

    def lapse(self) -> None:
        """Let go of the place, until the body is here."""
        gate = self._gate
        if gate is not None:
            del gate.arriving[self]
            self._arriving, self.lapsed = False, True
            gate.load.requests -= 1
            self.caller.requests -= 1
            gate.lapsed += 1

    def hold(self, body_bytes: int) -> None:
        """Count so many bytes of a body that is still arriving, if they are more than were declared.

        Raises:
            Overloaded: They do not fit; the reservation is kept, the caller releases it.
        """
        gate, more = self._gate, body_bytes - self._bytes
        if gate is None or more <= 0:
            return
        gate.check(self.asked, self.caller, size_bytes=more)
        gate.load.bytes += more
        self.caller.bytes += more
        self._bytes = body_bytes

    def ask(self, timeout_s: float | None, priority: int) -> None:
        """Take in what the body says of deadline and priority."""
        asked = self.asked
        if asked.timeout_s != timeout_s or asked.priority != priority:
            self.asked = Asked(asked.lane, timeout_s, priority, asked.key)

    def confirm(self, rows: int, body_bytes: int) -> None:
        """Replace the declared size by the real one; once.

        Args:
            rows: Instances.
            body_bytes: Size of the body.

        Raises:
            Overloaded: The real size does not fit, or it is predicted to take too long; the reservation is kept, the caller releases it.
        """
        gate = self._gate
        if gate is None:
            return
        if self._arriving:
            self._arriving = False
            del gate.arriving[self]
        load, caller, more = gate.load, self.caller, body_bytes - self._bytes
        if load.rows + rows > gate.calm_rows or not self.asked.plain or self.lapsed or (more > 0 and load.bytes + more > gate.calm_bytes):
            gate.confirm_with_care(self, rows, more)
        load.rows += rows
        caller.rows += rows
        self._rows = rows
        if more:
            load.bytes += more
            caller.bytes += more
            self._bytes = body_bytes

    def release(self) -> None:
        """Give the place back; a second call does nothing."""
        gate = self._gate
        if gate is None:
            return
        self._gate = None
        load, caller = gate.load, self.caller
        if self._arriving:
            del gate.arriving[self]
        if self.lapsed:
            gate.lapsed -= 1
        else:
            load.requests -= 1
            caller.requests -= 1
        load.rows -= self._rows
        caller.rows -= self._rows
        load.bytes -= self._bytes
        caller.bytes -= self._bytes
        if gate.line:
            gate.place_freed(self._rows)
        if load.requests == 0 and gate.on_idle is not None:
            gate.on_idle()


class Asked:
    """What a request asks for beyond a place; the same for all that ask for nothing.

    Attributes:
        lane: Its queue on the device; None where that is not known.
        timeout_s: Its deadline in seconds from now; None for the server's own.
        priority: Its class (turns.py).
        key: Its idempotency key, or None.
        plain: Whether it asks for nothing.
    """

    __slots__ = ("key", "lane", "plain", "priority", "timeout_s")

    def __init__(self, lane: Any = None, timeout_s: float | None = None, priority: int = NORMAL, key: Hashable | None = None) -> None:
        self.lane = lane
        self.timeout_s = timeout_s
        self.priority = priority
        self.key = key
        self.plain = timeout_s is None and priority == NORMAL and key is None


class Gate:
    """Applies the rule. Lives on the event loop's thread.

    Args:
        limits: The bounds.
        forecast: Predicts when things are done.
        clock: Monotonic seconds.
        default_s: Deadline of requests that state none.
        max_hint_s: Longest hint.
        max_tickets: Most tickets.
        max_callers: Most callers told apart.
        chance: Returns a number from 0 to 1.
        on_hint_error: Told how many seconds after its promise a place came free.

    Attributes:
        load: What is accepted and not answered.
        callers: Who has it.
        tickets: The line of those who were refused.
        line: Whether anybody is in it.
        draining: Refuse everything new.
        on_idle: Called when the last accepted request is answered.
        refused: Reason → how often.
        arriving: Requests whose body was not there with the head → when they were let in.
        lapsed: How many of them gave up their places.
        calm_rows: So many accepted rows will be answered well within the default deadline, whatever their model.
        calm_bytes: So many accepted bytes break no bound.
    """

    def __init__(
        self,
        limits: Limits,
        forecast: Forecast,
        clock: Callable[[], float],
        *,
        default_s: float = 30.0,
        max_hint_s: float = MAX_HINT_S,
        max_tickets: int = 10_000,
        max_callers: int = 4096,
        chance: Callable[[], float] = random.random,
        on_hint_error: Callable[[float], None] | None = None,
    ) -> None:
        self.limits = limits
        self.load = Load()
        self.callers = Callers(max_callers)
        self.tickets = TicketTable(max_tickets, max(LEAST_TICKETS, min(max_tickets, 4 * limits.max_requests)), on_hint_error)
        self.line = False
        self.draining = False
        self.on_idle: Callable[[], None] | None = None
        self.refused: dict[str, int] = dict.fromkeys(("requests", "rows", "bytes", "share", "kept", "promised", "deadline", "draining"), 0)
        self.arriving: dict[Reservation, float] = {}
        self.lapsed = 0
        self.calm_rows = 0
        self._forecast = forecast
        self._clock = clock
        self._default_s = default_s
        self._max_hint_s = max_hint_s
        self._chance = chance
        self._normal = limits.without(KEPT)
        self._half = limits.shared(0.5)
        # Below half of everything neither a bound nor a fair share can be broken.
        self._calm_requests = limits.max_requests // 2
        self.calm_bytes = limits.max_bytes // 2

    # --- on the headers -----------------------------------------------------------------------------------------------

    def reserve(self, declared_bytes: int, caller: Caller, asked: Asked) -> Reservation:
        """Take a place for a request whose headers were read.

        Args:
            declared_bytes: Size of its body, as far as it was declared.
            caller: Whose it is.
            asked: What it asks for.

        Raises:
            Draining: The server is shutting down.
            Overloaded: A bound is met, or its deadline cannot be.
        """
        load = self.load
        if (
            load.requests >= self._calm_requests
            or load.rows > self.calm_rows
            or load.bytes + declared_bytes > self.calm_bytes
            or not asked.plain
            or self.draining
            or self.line
        ):
            self._reserve_with_care(declared_bytes, caller, asked)
        load.requests += 1
        load.bytes += declared_bytes
        caller.requests += 1
        caller.bytes += declared_bytes
        return Reservation(self, declared_bytes, caller, asked)

    def hold(self, declared_bytes: int, caller: Caller, asked: Asked) -> Reservation:
        """Count the body of a request that needs no place, because what it asks for is at work or done already.

        Raises:
            Draining: The server is shutting down.
            Overloaded: Its bytes do not fit, or too many have come so.
        """
        if self.draining:
            self.refused["draining"] += 1
            raise Draining
        self.check(asked, caller, size_bytes=declared_bytes)
        if self.lapsed >= self.limits.max_requests:
            self._refuse("requests", asked, caller, None)
        reservation = Reservation(self, declared_bytes, caller, asked)
        reservation.lapsed = True
        self.lapsed += 1
        self.load.bytes += declared_bytes
        caller.bytes += declared_bytes
        return reservation

    def _reserve_with_care(self, declared_bytes: int, caller: Caller, asked: Asked) -> None:
        if self.draining:
            self.refused["draining"] += 1
            raise Draining
        load, now = self.load, self._clock()
        ticket = self.tickets.find(caller.name, asked.key, now) if self.line else None
        self._take_back_places(now)
        self.check(asked, caller, requests=1, size_bytes=declared_bytes, ticket=ticket)
        if self.line and ticket is None and asked.priority != INTERACTIVE and self._all_promised(now):
            self._refuse("promised", asked, caller, None)
        if asked.timeout_s is not None or load.rows > self.calm_rows:
            self._check_deadline(asked, caller, 1, ticket)
        if ticket is not None:
            self.tickets.redeem(ticket, now)
        self.line = len(self.tickets) > 0

    def _all_promised(self, now: float) -> bool:
        """Whether the places that are free are for those who were refused before and may come for them any moment."""
        free = self._normal.max_requests - self.load.requests
        held = self.tickets.held(now)
        return free <= held and (free <= int(self.limits.max_requests * HELD) or free <= self.tickets.expected(now))

    def _take_back_places(self, now: float) -> None:
        """When places are scarce, those whose bodies do not arrive have to wait for theirs without one."""
        if self.load.requests < self._calm_requests or self.lapsed >= self.limits.max_requests:
            return
        while self.arriving:
            reservation, since = next(iter(self.arriving.items()))
            if now - since < BODY_PLACE_S:
                return
            reservation.lapse()

    # --- the rule -----------------------------------------------------------------------------------------------------

    def check(
        self, asked: Asked, caller: Caller, *, requests: int = 0, rows: int = 0, size_bytes: int = 0, ticket: Ticket | None = None
    ) -> None:
        """Raise Overloaded when that much more does not fit."""
        load = self.load
        reason = over(load, self.limits, requests=requests, rows=rows, size_bytes=size_bytes)
        if (
            reason is None
            and asked.priority != INTERACTIVE
            and over(load, self._normal, requests=requests, rows=rows, size_bytes=size_bytes)
        ):
            reason = "kept"
        if reason is None and self._others(caller) and over(caller, self._half, requests=requests, rows=rows, size_bytes=size_bytes):
            reason = "share"
        if reason is not None:
            self._refuse(reason, asked, caller, ticket)

    def _others(self, caller: Caller) -> bool:
        """Whether anybody else has work here or waits for his place."""
        return self.load.requests > caller.requests or self.tickets.owners > (1 if self.tickets.owned(caller.name) else 0)

    def confirm_with_care(self, reservation: Reservation, rows: int, more_bytes: int) -> None:
        """Check a request whose body was read; see `Reservation.confirm`."""
        caller, asked = reservation.caller, reservation.asked
        self.check(asked, caller, requests=1 if reservation.lapsed else 0, rows=rows, size_bytes=max(0, more_bytes))
        self._check_deadline(asked, caller, rows, None)
        if reservation.lapsed:
            reservation.lapsed = False
            self.lapsed -= 1
            self.load.requests += 1
            caller.requests += 1

    def _check_deadline(self, asked: Asked, caller: Caller, rows: int, ticket: Ticket | None) -> None:
        lane = asked.lane
        if lane is None:
            return
        timeout_s = self._default_s if asked.timeout_s is None else asked.timeout_s
        late_s = self.safe_finish_s(asked, caller, rows) - timeout_s
        if late_s > 0 and self.load.rows > 0:
            self._refuse("deadline", asked, caller, ticket, late_s)
        self.look_at_rates()

    def look_at_rates(self) -> None:
        """See how many rows are few: those that the slowest model alone gets through in a quarter of the default deadline."""
        rate = self._forecast.slowest_rate_per_s()
        few = self.limits.max_rows if rate is None else int(rate * self._default_s / 4)
        self.calm_rows = min(few, int(self._half.max_rows))

    def safe_finish_s(self, asked: Asked, caller: Caller, rows: int) -> float:
        """Return in how many seconds a request is answered at the latest; 0 as long as nothing was measured."""
        finish_s, batch_s = self.finish_s(asked, caller, rows)
        return finish_s + (SLACK if self.load.rows == caller.rows else 1 + SLACK) * batch_s if batch_s > 0 else 0.0

    def finish_s(self, asked: Asked, caller: Caller, rows: int) -> tuple[float, float]:
        """Return in how many seconds a request is predicted to be answered, and the seconds of a batch."""
        lane, load = asked.lane, self.load
        size, batch_s = lane.pace()
        waiting = lane.queue.rows + len(lane.items)
        ahead = waiting
        if caller.rows < load.rows:  # callers take turns: of each other as much runs before as of this one, and that may be still to come
            others = max(1, min(len(self.callers) - 1, load.requests - caller.requests))
            ahead = min(waiting + rows * others, caller.rows + (caller.rows + rows) * others + lane.queue.urgent)
        if asked.priority == INTERACTIVE:
            ahead = min(ahead, lane.queue.urgent + size // 8)
        last = max(0, ahead + rows - 1)
        return self._forecast.start_s(lane, last) + batch_s, batch_s

    # --- refusing -----------------------------------------------------------------------------------------------------

    def _refuse(self, reason: str, asked: Asked, caller: Caller, ticket: Ticket | None, late_s: float = 0.0) -> NoReturn:
        """Refuse a request with the moment its place comes free."""
        self.refused[reason] += 1
        now = self._clock()
        if ticket is None:
            ticket = self.tickets.find(caller.name, asked.key, now)
        position = self.tickets.position(ticket, caller.name)
        lane = asked.lane
        rate = None if lane is None else self._forecast.rate_per_s(lane)
        wait = self._forecast.pending_s() if lane is None else late_s + self._place_free_s(lane, position, late_s > 0)
        told = hint_s(wait, self._max_hint_s, self._chance())
        if asked.timeout_s is not None and self._too_late(asked, caller, told):
            told = max(told, asked.timeout_s)
            if ticket is not None:
                self.tickets.give_up(ticket, now)
        else:
            self.tickets.refuse(ticket, caller.name, asked.key, now, now + wait, now + told)
            self.line = len(self.tickets) > 0
        facts = {
            "ticket_position": position,
            "queue_depth": self.load.rows or self.load.requests,
            "service_rate_per_s": None if rate is None else round(rate, 3),
            "spread": True,
        }
        if reason == "deadline":
            raise DeadlineUnreachable(
                f"the answer is predicted to come after the deadline; try again in {told:.2f} s",
                reason=reason,
                retry_after_s=told,
                facts=facts,
            )
        raise Overloaded(f"{self._why(reason)}; try again in {told:.2f} s", reason=reason, retry_after_s=told, facts=facts)

    def _too_late(self, asked: Asked, caller: Caller, told: float) -> bool:
        """Whether even the promised place would come too late: it is at the end of a queue that is predicted to be as long as now."""
        timeout_s, lane = asked.timeout_s, asked.lane
        if timeout_s is None or lane is None or not self.load.rows:
            return timeout_s is not None and told > timeout_s
        return bool(told + self.safe_finish_s(asked, caller, 1) + SLACK * lane.pace()[1] > timeout_s)

    def _place_free_s(self, lane: Any, position: int, room: bool) -> float:
        """Return in how many seconds the place of the ticket at `position` comes free, with the slack.

        Args:
            lane: Where it is to run.
            position: How many in the line come before it.
            room: Whether there are places, so that how much is accepted at once is up to those who come.
        """
        rows_each = self.load.rows / self.load.requests if self.load.rows > self.load.requests > 0 else 1.0
        batch_s: float = lane.pace()[1]
        self.tickets.grace_s = max(0.1, batch_s)
        here = self.load.requests
        free = self._normal.max_requests - here  # those that were promised will be taken any moment
        accepted = self.limits.max_requests if room else here + max(0, min(free, self.tickets.held(self._clock())))
        slack_s = SLACK * batch_s
        return self._forecast.free_s(lane, int(position * rows_each), int(accepted * rows_each), slack_s) + slack_s

    def _why(self, reason: str) -> str:
        limits = self.limits
        bound = {"requests": limits.max_requests, "rows": limits.max_rows, "bytes": limits.max_bytes}.get(reason)
        if bound is not None:
            return f"the server has all the work it may accept ({bound} {reason})"
        return {
            "share": "this caller has half of all the work the server may accept, and others wait",
            "kept": "what is left of the work the server may accept is kept for interactive requests",
            "promised": "the places that are free were promised to callers who were refused before",
        }[reason]

    def place_freed(self, rows: int) -> None:
        """A place was given back while somebody waits for one."""
        self.tickets.freed(self._clock())

    # --- what callers are told ----------------------------------------------------------------------------------------

    def quota(self, caller: Caller) -> tuple[int, int]:
        """Return how many requests a caller may have here now, and how many more that is than he has."""
        load = self.load
        most = self._normal.max_requests
        free = most - load.requests
        if load.requests > caller.requests or self.line:
            if self._others(caller):
                most = self._half.max_requests
            free = min(free, most - caller.requests)
        return most, max(0, free)


def priority_of(text: str) -> int | None:
    """Return the class of a `samegraph-priority` header; None when it names none."""
    return _PRIORITIES.get(text.strip().lower())


_PRIORITIES = {
    "interactive": INTERACTIVE, "normal": NORMAL, "background": BACKGROUND, "0": NORMAL, "1": INTERACTIVE, "2": NORMAL, "3": BACKGROUND,
}  # fmt: skip
