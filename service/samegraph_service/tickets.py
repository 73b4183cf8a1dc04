"""The line of those who were refused: each holds a ticket, and is told when *its* place comes free.

The line goes round by round: in every round each owner has one place, in the order in which they came (start-time fair queueing with the
ticket as the unit), so that who has one request is not told to come after the last of somebody else's three hundred. Every place that comes
free is that of the first in the line, and a ticket that is redeemed or expires lets everybody behind it move up. Pure bookkeeping with the
time as an argument.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass

#: A ticket lives so many times its hint, and at least so many seconds.
LIVES = 2.0
LEAST_LIFE_S = 2.0
#: Who comes back so many seconds before his moment, or less, has come in time.
EARLY_S = 0.002


@dataclass(slots=True)
class Ticket:
    """A refused request's place in the line.

    Attributes:
        place: Its round, and a number in order of first refusals: the line is sorted by it.
        owner: Whose it is.
        key: What the request is known by; None where it has no key of its own.
        promised: When its place was last predicted to be free (the time the caller was told, or would have been without a cap).
        told: When the caller was told to come back.
        expires: When it is void.
        freed: When a place for it really came free; None as long as it did not.
        first: What it was promised when it was refused for the first time.
    """

    place: tuple[int, int]
    owner: Hashable
    key: Hashable | None
    promised: float
    told: float
    expires: float
    first: float
    freed: float | None = None
    void: bool = False


@dataclass(slots=True)
class Seen:
    """What became of tickets so far, for metrics.

    Attributes:
        issued: Tickets given out.
        hits: Callers who came back in time and were let in.
        misses: Callers who came back in time and were refused again.
        early: Callers who came back before their moment.
        expired: Tickets whose callers did not come back.
        unticketed: Refusals without a ticket, because the table or the caller's share of it was full.
    """

    issued: int = 0
    hits: int = 0
    misses: int = 0
    early: int = 0
    expired: int = 0
    unticketed: int = 0


class TicketTable:
    """All tickets that are not void.

    Args:
        capacity: Most tickets.
        per_owner: Most tickets of one owner.
        on_error: Told how many seconds after its promise a place came free (negative: before).

    Attributes:
        seen: What became of them.
        grace_s: For how long after its moment a place that came free is kept for its ticket.
    """

    def __init__(self, capacity: int, per_owner: int, on_error: Callable[[float], None] | None = None) -> None:
        self.seen = Seen()
        self.grace_s = 0.1
        self._capacity = capacity
        self._per_owner = per_owner
        self._on_error = on_error or _unheard
        self._by_key: dict[tuple[Hashable, Hashable], Ticket] = {}
        self._keyless: dict[Hashable, deque[Ticket]] = {}
        self._of: dict[Hashable, int] = {}
        self._line: list[tuple[int, int]] = []  # places of those for which none came free yet, sorted; 10,000 move in 3 µs
        self._at: dict[tuple[int, int], Ticket] = {}
        self._rounds: dict[Hashable, int] = {}  # owner → round of his latest ticket
        self._round = 0
        self._deaths: list[tuple[float, int, Ticket]] = []
        self._holding: deque[tuple[float, Ticket]] = deque()
        self._issued = self._count = 0

    def __len__(self) -> int:
        return self._count

    def owned(self, owner: Hashable) -> int:
        """Return how many tickets `owner` holds."""
        return self._of.get(owner, 0)

    @property
    def owners(self) -> int:
        """How many owners hold tickets."""
        return len(self._of)

    def find(self, owner: Hashable, key: Hashable | None, now: float) -> Ticket | None:
        """Return the ticket a request comes back with; without a key that is its owner's oldest one whose moment has come."""
        self.sweep(now)
        if key is not None:
            return self._by_key.get((owner, key))
        mine = self._keyless.get(owner)
        while mine and mine[0].void:
            mine.popleft()
        return mine[0] if mine and mine[0].told <= now + EARLY_S else None

    def position(self, ticket: Ticket | None, owner: Hashable) -> int:
        """Return how many in the line come before this ticket, or before a new one of `owner`.

        Those whose place came free are in the line no more.
        """
        if ticket is not None:
            return bisect_left(self._line, ticket.place)
        return bisect_left(self._line, (self._next_round(owner), self._issued))

    def _next_round(self, owner: Hashable) -> int:
        return max(self._round, self._rounds.get(owner, -1) + 1)

    def refuse(self, ticket: Ticket | None, owner: Hashable, key: Hashable | None, now: float, promised: float, told: float) -> None:
        """Note a refusal and what was promised with it; a first one gets a ticket if there is room.

        Args:
            ticket: What `find` returned.
            owner: Whose request it is.
            key: What it is known by, or None.
            now: The time.
            promised: When its place is predicted to be free.
            told: When the caller was told to come back.
        """
        expires = now + max(LEAST_LIFE_S, LIVES * (told - now))
        if ticket is not None:
            self._came_back(ticket, now, admitted=False)
            came = now >= ticket.told - EARLY_S
            ticket.promised, ticket.told = promised, told
            if came and ticket.freed is not None:  # somebody else took its place: the next one is its own
                ticket.freed = None
                self._stand(ticket)
            ticket.expires = max(ticket.expires, expires)
            if key is None:  # the oldest that is due stands at the end of its owner's again
                self._keyless[owner].rotate(-1)
            return
        if self._count >= self._capacity or self._of.get(owner, 0) >= self._per_owner:
            self.seen.unticketed += 1
            return
        self._rounds[owner] = turn = self._next_round(owner)
        ticket = Ticket((turn, self._issued), owner, key, promised, told, expires, promised)
        self._issued += 1
        self._count += 1
        self.seen.issued += 1
        self._of[owner] = self._of.get(owner, 0) + 1
        self._stand(ticket)
        if key is None:
            self._keyless.setdefault(owner, deque()).append(ticket)
        else:
            self._by_key[owner, key] = ticket
        heapq.heappush(self._deaths, (expires, ticket.place[1], ticket))

    def _stand(self, ticket: Ticket) -> None:
        insort(self._line, ticket.place)
        self._at[ticket.place] = ticket

    def redeem(self, ticket: Ticket, now: float) -> None:
        """The request was let in."""
        self._came_back(ticket, now, admitted=True)
        self._drop(ticket)

    def give_up(self, ticket: Ticket, now: float) -> None:
        """The request was refused again, and what time it has left is too short to come once more."""
        self._came_back(ticket, now, admitted=False)
        self._drop(ticket)

    def freed(self, now: float, places: int = 1) -> None:
        """So many places came free: they were those of the first in the line for whom none had."""
        while places > 0 and self._line:
            ticket = self._at.pop(self._line.pop(0))
            self._round = max(self._round, ticket.place[0])
            ticket.freed = now
            self._on_error(now - ticket.first)
            self._holding.append((max(now, ticket.told) + self.grace_s, ticket))
            places -= 1

    def sweep(self, now: float) -> None:
        """Void the tickets whose time is over."""
        while self._deaths and (self._deaths[0][2].void or self._deaths[0][0] <= now):
            _, number, ticket = heapq.heappop(self._deaths)
            if ticket.void:
                continue
            if ticket.expires > now:
                heapq.heappush(self._deaths, (ticket.expires, number, ticket))
                continue
            self.seen.expired += 1
            self._drop(ticket)

    def held(self, now: float) -> int:
        """Return how many places came free for callers who may still come for them."""
        holding = self._holding
        while holding and (holding[0][1].void or holding[0][0] <= now):
            holding.popleft()
        return len(holding)

    def expected(self, now: float) -> int:
        """Return how many places came free, last of all, for callers whose moment is still to come."""
        expected = 0
        for _, ticket in reversed(self._holding):
            if ticket.told <= now:
                break
            expected += not ticket.void
        return expected

    def _came_back(self, ticket: Ticket, now: float, *, admitted: bool) -> None:
        if now < ticket.told - EARLY_S:
            self.seen.early += 1
        elif admitted:
            self.seen.hits += 1
        else:
            self.seen.misses += 1

    def _drop(self, ticket: Ticket) -> None:
        ticket.void = True
        if self._at.pop(ticket.place, None) is not None:
            del self._line[bisect_left(self._line, ticket.place)]
        self._count -= 1
        left = self._of[ticket.owner] - 1
        if left:
            self._of[ticket.owner] = left
        else:
            del self._of[ticket.owner]
            del self._rounds[ticket.owner]
        if ticket.key is not None:
            self._by_key.pop((ticket.owner, ticket.key), None)
        elif not left:
            self._keyless.pop(ticket.owner, None)
        if self._count == 0:
            self._issued = self._round = 0
            self._deaths.clear()
            self._holding.clear()
            self._keyless.clear()


def _unheard(_: float) -> None:
    """Stand in for nobody."""
