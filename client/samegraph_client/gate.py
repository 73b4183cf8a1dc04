"""The gate: how many requests may be in flight to one server, and when nothing may be sent. Numbers in, verdict out; no clock, no socket.

Everything sent through one client shares one gate, because the server has one queue: a window that fits it needs one attempt per request,
where independent senders need two with honest hints and eight with backoff (docs/client.md has the simulation).

Two sources say how wide the window is. A samegraph server states a limit in every answer (`RateLimit`), and the window follows it. About
any other server the window learns by AIMD: one more per answer until the first refusal, then one more per round, and a
cut per round with a refusal.

A server that has places may still refuse what it cannot answer by its deadline. What it accepted is then what fits, and the window is that
wide until answers in time widen it again.
"""

from __future__ import annotations

import math

from .hints import Advertised

#: A round of evidence cuts the window to this part of it.
CUT_RATIO = 0.7
#: What one more answer in time widens a window that was found too wide for everybody's deadline by, at least one for a whole window.
WIDEN_RATIO = 0.05


class Gate:
    """The window and the pause of one server.

    Args:
        start: Requests in flight before the server has said or shown anything.
        most: Never more in flight than this, whatever the server says; each one is a connection.

    Attributes:
        in_flight: Requests sent and not answered.
        paused_until: Nothing is sent before this time (monotonic seconds).
        cuts: Times the window was cut.
        pauses: Times the gate was paused.
    """

    def __init__(self, start: int = 8, most: int = 128) -> None:
        if not 1 <= start <= most:
            raise ValueError(f"a gate starts with at least 1 and at most `most` requests in flight, got start={start}, most={most}")
        self.in_flight = 0
        self.paused_until = -math.inf
        self.cuts = 0
        self.pauses = 0
        self._most = most
        self._window = float(start)
        self._advertised = False
        self._probing = False
        self._fits = math.inf  # requests that are answered by their deadlines, as far as refusals have shown
        self._evidence_from = -math.inf  # refusals of requests sent before this time are evidence already acted on

    @property
    def limit(self) -> int:
        """Requests that may be in flight now, >= 1."""
        return 1 if self._probing else max(1, int(min(self._window, self._most, self._fits)))

    @property
    def follows_server(self) -> bool:
        """Whether the window is the server's own figure, rather than learned."""
        return self._advertised

    @property
    def away(self) -> bool:
        """Whether the server could not be connected to when that was last tried."""
        return self._probing

    def has_room(self) -> bool:
        """Whether the window has a free place, pause or not."""
        return self.in_flight < self.limit

    def is_open(self, now: float) -> bool:
        """Whether a request may be sent now."""
        return self.has_room() and now >= self.paused_until

    def sent(self) -> None:
        """Count a request that was sent."""
        self.in_flight += 1

    def landed(self) -> None:
        """Count a request that came back, in whatever way."""
        self.in_flight -= 1

    def accepted(self, said: Advertised | None, sent_at: float) -> None:
        """Learn from a request the server accepted, after it has landed.

        An answer gives its own place back, so it never narrows a window below what is in flight plus one; the server's quota may.
        """
        if sent_at >= self._evidence_from:
            self._probing = False
        fewer = self._fits < math.inf  # the pause was for what was in flight, of which this is one less
        has_places = fewer if said is None else said.remaining > 0
        if has_places and (fewer or sent_at >= self._evidence_from) and not self._probing:
            self.paused_until = -math.inf  # it has room for us after all
        if fewer and self.in_flight + 1 >= self.limit:
            self._fits += max(WIDEN_RATIO, 1.0 / self._fits)
            self._fits = self._fits if self._fits < self._most else math.inf
        if said is not None:
            self._follow(said, at_least=1)
        elif not self._advertised and self.in_flight + 1 >= self.limit:  # growing an unused window would measure nothing
            self._window = min(self._window + (1.0 / self._window if self.cuts else 1.0), float(self._most))

    @property
    def wants_limit(self) -> bool:
        """Whether to ask the server: the window is full, may be wider, and is not the server's own figure yet."""
        return not self._advertised and not self.has_room() and self._window < self._most

    def told(self, said: Advertised | None) -> None:
        """Learn that the server is there, and follow what it says to somebody who only asks."""
        if self._probing:
            self._probing = False
            self.paused_until = -math.inf
        if said is not None:
            self._follow(said, at_least=1)

    def refused(self, said: Advertised | None, sent_at: float, now: float, wait_s: float, *, late: bool = False) -> None:
        """Learn from a request the server refused or let time out, after it has landed; pauses the gate once per round.

        Args:
            said: What the refusal advertises.
            sent_at: When the refused request was sent.
            now: Monotonic seconds.
            wait_s: How long the refused request will wait.
            late: Whether there was a place, and too little time: the others that are in flight are what can be answered in time.
        """
        if sent_at >= self._evidence_from:
            self._probing = False
        if said is not None:
            self._follow(said, at_least=0)
        if late:
            self._fits = float(max(1, min(self._fits, self.in_flight)))
        elif said is None and not self._advertised and sent_at >= self._evidence_from:
            self._window = max(1.0, self._window * CUT_RATIO)
            self.cuts += 1
        self.pause(sent_at, now, wait_s)

    def unreachable(self, sent_at: float, now: float, wait_s: float) -> None:
        """Learn that no connection could be made: one request at a time looks whether the server is there again."""
        self._probing = True
        self.pause(sent_at, now, wait_s)

    def pause(self, sent_at: float, now: float, wait_s: float) -> None:
        """Send nothing for so long, unless it was for this round already; what was sent before now is no further evidence."""
        if sent_at < self._evidence_from:
            return
        self._evidence_from = now
        self.pauses += 1
        self.paused_until = max(self.paused_until, now + wait_s)

    def _follow(self, said: Advertised, at_least: int) -> None:
        self._advertised = True
        window = self.in_flight + max(said.remaining, at_least)
        self._window = float(max(1, min(window, said.quota if said.quota is not None else window)))
