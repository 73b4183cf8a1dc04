"""Requests that come again under their idempotency key: joined to the computation that runs, or given the answer that was stored.

One `Repeat` a key. Its *leader* is the exchange whose computation runs; *parties* are all exchanges that wait for it, the leader among
them as long as his caller is there. Everything on the event loop's thread.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from samegraph_service.clock import Loop, Timer

if TYPE_CHECKING:
    from samegraph_service.api.front import Exchange, Response

#: A key, with whose it is.
Key = tuple[str, bytes]


class Repeat:
    """What is known of one key.

    Attributes:
        key: It.
        fingerprint: Of the request it stands for.
        leader: The exchange whose computation runs, or None once it is over.
        parties: The exchanges that wait for it → the timer of their deadline, if they have one apart from the computation's.
        response: The stored answer, once there is one.
        expires: When that is forgotten.
        abandoned: The model it is computed with although nobody waits for it; None while somebody does.
    """

    __slots__ = ("abandoned", "expires", "fingerprint", "key", "leader", "parties", "response")

    def __init__(self, key: Key, fingerprint: bytes, leader: Exchange) -> None:
        self.key = key
        self.fingerprint = fingerprint
        self.leader: Exchange | None = leader
        self.parties: dict[Exchange, Timer | None] = {leader: None}
        self.response: Response | None = None
        self.expires = 0.0
        self.abandoned: str | None = None


class Repeats:
    """All keys that are known.

    Args:
        loop: The event loop.
        keep_s: Seconds an answer is kept; 0 keeps none.
        max_keys: Most answers that are kept.
        max_bytes: Most bytes of their bodies.
        max_abandoned: Most computations of one model that go on although nobody waits for them.

    Attributes:
        joined: Requests that were joined to one that ran.
        stored: Requests that got a stored answer.
        reused: Requests that came under the key of another.
        evicted: Answers that were forgotten before their time, for want of room.
        bytes: Bytes of stored bodies.
        went_on: Computations whose last caller left: those that were `kept` going, and those that were `dropped`.
    """

    def __init__(self, loop: Loop, *, keep_s: float, max_keys: int, max_bytes: int, max_abandoned: int = 0) -> None:
        self._loop = loop
        self._keep_s = keep_s
        self._max_keys = max_keys
        self._max_bytes = max_bytes
        self._max_abandoned = max_abandoned
        self._abandoned: dict[str, int] = {}  # model → computations nobody waits for
        self.went_on = {"kept": 0, "dropped": 0}
        self._known: dict[Key, Repeat] = {}
        self._kept: OrderedDict[Key, Repeat] = OrderedDict()  # those with an answer, the oldest first
        self._timer: Timer | None = None
        self.joined = self.stored = self.reused = self.evicted = self.bytes = 0

    def __len__(self) -> int:
        return len(self._known)

    @property
    def kept(self) -> int:
        """Answers that are stored."""
        return len(self._kept)

    @property
    def abandoned(self) -> int:
        """Computations nobody waits for."""
        return sum(self._abandoned.values())

    def get(self, key: Key) -> Repeat | None:
        """Return what is known of a key."""
        repeat = self._known.get(key)
        if repeat is not None and repeat.response is not None and repeat.expires <= self._loop.time():
            self._forget(repeat)
            return None
        return repeat

    def lead(self, key: Key, fingerprint: bytes, leader: Exchange) -> Repeat:
        """Note that `leader` computes what stands under an unknown key."""
        repeat = self._known[key] = Repeat(key, fingerprint, leader)
        return repeat

    def join(self, repeat: Repeat, party: Exchange, deadline: float, late: Callable[[Repeat, Exchange], None]) -> None:
        """Let one more exchange wait for a computation; at its deadline `late` is called.

        The computation itself lasts as long as the last deadline of those who wait for it.
        """
        leader = repeat.leader
        assert leader is not None
        self.joined += 1
        self._claimed(repeat)
        repeat.parties[party] = self._loop.call_at(deadline, late, repeat, party)
        if leader.running and leader.deadline < deadline:
            if leader in repeat.parties and repeat.parties[leader] is None:
                repeat.parties[leader] = self._loop.call_at(leader.deadline, late, repeat, leader)
            leader.deadline = deadline

    def leave(self, repeat: Repeat, party: Exchange) -> bool:
        """An exchange no longer waits; return whether anybody else still does."""
        timer = repeat.parties.pop(party, None)
        if timer is not None:
            timer.cancel()
        return bool(repeat.parties)

    def abandon(self, repeat: Repeat, model: str) -> bool:
        """The last who waited for a computation that is under way has left; return whether it goes on, so that a repetition finds it."""
        here = self._abandoned.get(model, 0)
        kept = self._keep_s > 0 and here < self._max_abandoned and self.abandoned < self._max_keys
        self.went_on["kept" if kept else "dropped"] += 1
        if kept:
            self._abandoned[model] = here + 1
            repeat.abandoned = model
        return kept

    def _claimed(self, repeat: Repeat) -> None:
        """Somebody waits for it again, or it is over."""
        model, repeat.abandoned = repeat.abandoned, None
        if model is not None:
            left = self._abandoned[model] - 1
            if left:
                self._abandoned[model] = left
            else:
                del self._abandoned[model]

    def finish(self, repeat: Repeat, response: Response) -> list[Exchange]:
        """The computation is over: keep a good answer, and return who waits for it."""
        self._claimed(repeat)
        parties = list(repeat.parties)
        for timer in repeat.parties.values():
            if timer is not None:
                timer.cancel()
        repeat.parties.clear()
        repeat.leader = None
        size = len(response.body)
        if response.status != 200 or self._keep_s <= 0 or size > self._max_bytes:
            self._known.pop(repeat.key, None)
            return parties
        repeat.response = response.again("stored", "")  # without what it was made of
        repeat.expires = self._loop.time() + self._keep_s
        self._kept[repeat.key] = repeat
        self.bytes += size
        while len(self._kept) > self._max_keys or self.bytes > self._max_bytes:
            self.evicted += 1
            self._forget(next(iter(self._kept.values())))
        if self._timer is None:
            self._timer = self._loop.call_at(repeat.expires, self._sweep)
        return parties

    def _forget(self, repeat: Repeat) -> None:
        del self._known[repeat.key]
        del self._kept[repeat.key]
        assert repeat.response is not None
        self.bytes -= len(repeat.response.body)

    def _sweep(self) -> None:
        """Forget the answers whose time is over; one timer for all."""
        self._timer = None
        now = self._loop.time()
        while self._kept:
            oldest = next(iter(self._kept.values()))
            if oldest.expires > now:
                self._timer = self._loop.call_at(oldest.expires, self._sweep)
                return
            self._forget(oldest)


def fingerprint(head: bytes, body: bytes) -> bytes:
    """Return what tells two requests under one key apart; about a nanosecond a byte."""
    state = hashlib.blake2b(head, digest_size=16)
    state.update(b"\0")
    state.update(body)
    return state.digest()
