"""A burst in simulated time: the client's own core against a model of a server, without sockets, threads or waiting."""

from __future__ import annotations

import heapq
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from samegraph_client.dispatch import BATCH, Answer, Attempt, Call, Dispatcher, Request
from samegraph_client.errors import ClientError
from samegraph_client.gate import Gate
from samegraph_client.policy import RetryBudget, RetryPolicy, Tries, wait_full_jitter, wait_hint

ROUND_TRIP_S = 0.02
FRONT_S = 0.003

Exchange = Generator[Request, Answer | ClientError, Answer]


def exchange(index: int) -> Exchange:
    """Send one request and return its answer."""
    reply = yield Request("POST", f"/{index}", {}, b"")
    if isinstance(reply, ClientError):
        raise reply
    return reply


@dataclass
class Slots:
    """A server of `n` one-at-a-time workers with a bounded queue.

    Attributes:
        n: Workers.
        service_s: Seconds one request takes, plus or minus five per cent.
        queue: Requests that may wait.
        hint: `none`; `slot`: when the next worker is free; `ticket`: when this caller's place in the line of the refused comes up;
            `late`: it has places enough, but refuses what would wait longer than `queue`, for the whole of its deadline.
        advertise: Requests in flight the caller is told it may have; None: it is told nothing.
        front_s: Seconds of one shared front door that every attempt costs.
    """

    n: int = 20
    service_s: float = 10.0
    queue: int = 0
    hint: str = "none"
    advertise: int | None = None
    front_s: float = FRONT_S
    busy: list[float] = field(default_factory=list)
    waiting: list[tuple[int, Callable[[], None]]] = field(default_factory=list)
    tickets: dict[int, int] = field(default_factory=dict)
    issued: int = 0
    redeemed: int = 0
    front_free: float = 0.0

    def headers(self, inside: int) -> dict[str, str]:
        if self.advertise is None:
            return {}
        free = max(0, self.advertise - inside)
        return {"ratelimit-policy": f'"inflight";q={self.advertise};qu="concurrent-requests"', "ratelimit": f'"inflight";r={free};t=1'}

    def hint_s(self, index: int, now: float) -> float | None:
        if self.hint == "none":
            return None
        if self.hint == "late":
            return (self.queue / self.n + 1.5) * self.service_s
        position = 0
        if self.hint == "ticket":
            if index not in self.tickets:
                self.tickets[index] = self.issued
                self.issued += 1
            position = max(0, self.tickets[index] - self.redeemed)
        ends = sorted(self.busy) or [now]
        took = position  # the queue's places come free as workers take from it
        return max(0.001, ends[took % len(ends)] + took // len(ends) * self.service_s - now)


class Simulation:
    """Plays a burst of `n` requests, all there at time 0, through one dispatcher.

    Attributes:
        sent: (time, index) of every attempt.
        refused: (time, index, hint) of every refusal.
        ended: Index → time and whether it was answered.
        most_in_flight: The most there ever were, and by how much that exceeded the gate's limit when they were sent.
    """

    def __init__(
        self, server: Slots, n: int = 300, seed: int = 0, deadline_s: float = 600.0, gate: Gate | None = None, ask: bool = False
    ) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.server, self.n = server, n
        self.sent: list[tuple[float, int]] = []
        self.refused: list[tuple[float, int, float]] = []
        self.ended: dict[int, tuple[float, bool]] = {}
        self.outcomes: Counter[int] = Counter()
        self.over_limit = 0
        self.hits = self.returns = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._policy = RetryPolicy(
            wait=wait_full_jitter(uniform=self.random.uniform), hint_wait=wait_hint(uniform=self.random.uniform), deadline_s=deadline_s
        )
        self.asked = 0
        self.dispatcher = Dispatcher(gate or Gate(), RetryBudget(), ask=Request("GET", "/limit", {}, b"") if ask else None)
        self._index: dict[Call, int] = {}
        for index in range(n):
            call = Call(exchange(index), Tries(self._policy, 0.0), BATCH, True, deadline_s, self._done)  # type: ignore[arg-type]
            self._index[call] = index
            call.begin()
            self.dispatcher.submit(call, 0.0)

    def run(self) -> None:
        """Play until every request has its outcome."""
        while len(self.ended) < self.n:
            self._pump()
            wake_at = self.dispatcher.wake_at()
            if self._events and self._events[0][0] <= wake_at:
                self.now, _, happen = heapq.heappop(self._events)
                happen()
            else:
                assert wake_at < float("inf"), "nothing will ever happen again"
                self.now = max(self.now, wake_at)

    @property
    def makespan_s(self) -> float:
        return max(at for at, _ in self.ended.values())

    @property
    def lost(self) -> int:
        return sum(not answered for _, answered in self.ended.values())

    def _at(self, time: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._order), happen))

    def _done(self, call: Call, now: float) -> None:
        self.outcomes[self._index[call]] += 1
        self.ended[self._index[call]] = (now, call.error is None)

    def _pump(self) -> None:
        for attempt in self.dispatcher.due(self.now):
            self.over_limit = max(self.over_limit, self.dispatcher.gate.in_flight - self.dispatcher.gate.limit)
            if attempt.call not in self._index:
                self._told(attempt)
                continue
            index = self._index[attempt.call]
            self.sent.append((self.now, index))
            server = self.server
            server.front_free = max(server.front_free, self.now + ROUND_TRIP_S / 2) + server.front_s
            self._at(server.front_free, lambda attempt=attempt, index=index: self._arrive(attempt, index))  # type: ignore[misc]

    def _told(self, attempt: Attempt) -> None:
        """Answer the question for the limit."""
        self.asked += 1
        inside = len(self.server.busy) + len(self.server.waiting)
        answer = Answer(200, self.server.headers(inside), b"")
        self._at(self.now + ROUND_TRIP_S, lambda: self.dispatcher.landed(attempt, answer, self.now))

    def _arrive(self, attempt: Attempt, index: int) -> None:
        server = self.server
        inside = len(server.busy) + len(server.waiting)
        if len(server.busy) < server.n:
            self._start(attempt, index)
        elif len(server.waiting) < server.queue:
            server.waiting.append((index, lambda: self._start(attempt, index)))
        else:
            hint_s = server.hint_s(index, self.now)
            members = {"error": "full", "retryable": True, "spread": server.hint == "ticket"}
            if server.hint == "late":
                members["code"] = "deadline_unreachable"
            headers = server.headers(inside) | ({} if hint_s is None else {"retry-after-ms": str(int(hint_s * 1000) + 1)})
            self._answer(attempt, Answer(429, headers, json.dumps(members).encode()), index)
            return
        if server.tickets.pop(index, None) is not None:
            server.redeemed += 1

    def _start(self, attempt: Attempt, index: int) -> None:
        end = self.now + self.server.service_s * self.random.uniform(0.95, 1.05)
        self.server.busy.append(end)
        self._at(end, lambda: self._finish(attempt, index, end))

    def _finish(self, attempt: Attempt, index: int, end: float) -> None:
        server = self.server
        server.busy.remove(end)
        inside = len(server.busy) + len(server.waiting)
        if server.waiting:
            server.waiting.pop(0)[1]()
        self._answer(attempt, Answer(200, server.headers(inside), b""), index)

    def _answer(self, attempt: Attempt, answer: Answer, index: int) -> None:
        def arrive() -> None:
            if answer.status == 429 and "retry-after-ms" in answer.headers:
                self.refused.append((self.now, index, int(answer.headers["retry-after-ms"]) / 1000))
            self.dispatcher.landed(attempt, answer, self.now)

        self._at(self.now + ROUND_TRIP_S / 2, arrive)
