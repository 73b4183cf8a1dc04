"""Whose turn it is: waiting things in classes of priority, and inside a class callers one after another.

A class goes before those below it, which get a fixed share of every batch while they wait, so that none starves. Inside a class the
caller who had the least rows so far is next (start-time fair queueing: who comes new starts level with the others), and each caller's
things keep their order. Only queues that hold more than a batch come here; see `batching.EntryQueue`.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

#: Classes of priority, as V2 numbers them: 1 is served first.
INTERACTIVE, NORMAL, BACKGROUND = 1, 2, 3
#: Share of the rows of every batch that goes to a class below while it waits.
LOWER_SHARE = 0.125

T = TypeVar("T")


class _Line(Generic[T]):
    """What one caller has waiting in one class, in order."""

    __slots__ = ("served", "things")

    def __init__(self, served: float) -> None:
        self.served = served
        self.things: deque[T] = deque()


class _Class(Generic[T]):
    """The lines of one class."""

    __slots__ = ("_heap", "_level", "_order", "lines")

    def __init__(self) -> None:
        self.lines: dict[object, _Line[T]] = {}
        self._heap: list[tuple[float, int, object]] = []
        self._order = itertools.count()
        self._level = 0.0

    def add(self, thing: T, caller: object) -> None:
        line = self.lines.get(caller)
        if line is None:
            line = self.lines[caller] = _Line(self._level)
            heapq.heappush(self._heap, (self._level, next(self._order), caller))
        line.things.append(thing)

    def next(self, alive: Callable[[T], bool]) -> _Line[T] | None:
        """Return the line whose turn it is, its first thing alive; lines without any are forgotten."""
        while self._heap:
            caller = self._heap[0][2]
            line = self.lines[caller]
            while line.things and not alive(line.things[0]):
                line.things.popleft()
            if line.things:
                self._level = line.served
                return line
            heapq.heappop(self._heap)
            del self.lines[caller]
        return None

    def charge(self, rows: float) -> None:
        """The line whose turn it was has had `rows`."""
        _, order, caller = self._heap[0]
        line = self.lines[caller]
        line.served += rows
        heapq.heapreplace(self._heap, (line.served, order, caller))


class Turns(Generic[T]):
    """Waiting things, by class and caller.

    Args:
        alive: Whether a thing still waits; others are dropped when they come up.
    """

    def __init__(self, alive: Callable[[T], bool]) -> None:
        self._alive = alive
        self._classes: tuple[_Class[T], ...] = (_Class(), _Class(), _Class())
        self._owed = [0.0, 0.0, 0.0]

    def add(self, thing: T, caller: object, priority: int) -> None:
        """Let a thing wait at the end of its caller's line."""
        self._classes[priority - 1].add(thing, caller)

    def take(self, room: int, size: Callable[[T], int], split: Callable[[T, int], T] | None = None) -> list[T]:
        """Take what is next, up to `room` rows.

        Args:
            room: Most rows, at least one.
            size: Returns the rows of a thing.
            split: Takes the first rows off a thing that does not fit whole, which stays in its line with the rest; None never splits.
                Less than a tenth of `room` is not worth it.
        """
        taken: list[T] = []
        left = self._take_owed(room, size, taken)
        for level in self._classes:
            while left > 0 and (line := level.next(self._alive)) is not None:
                rows = size(line.things[0])
                if rows > left:
                    if split is None or left * 10 < room:
                        return taken
                    taken.append(split(line.things[0], left))
                    level.charge(left)
                    return taken
                taken.append(line.things.popleft())
                level.charge(rows)
                left -= rows
        return taken

    def _take_owed(self, room: int, size: Callable[[T], int], taken: list[T]) -> int:
        """Take what classes below one that waits are owed; return the room that is left."""
        left, above = room, False
        for number, level in enumerate(self._classes):
            line = level.next(self._alive)
            if line is None or not above:
                self._owed[number] = 0.0
                above = above or line is not None
                continue
            self._owed[number] += room * LOWER_SHARE
            while line is not None and size(line.things[0]) <= min(self._owed[number], left):
                rows = size(line.things[0])
                taken.append(line.things.popleft())
                level.charge(rows)
                self._owed[number] -= rows
                left -= rows
                line = level.next(self._alive)
        return left

    def __iter__(self) -> Iterator[T]:
        return (thing for level in self._classes for line in level.lines.values() for thing in line.things)

    def fronts(self) -> Iterator[T]:
        """Yield the first living thing of every line."""
        for level in self._classes:
            for line in level.lines.values():
                while line.things and not self._alive(line.things[0]):
                    line.things.popleft()
                if line.things:
                    yield line.things[0]

    def drop_all(self) -> list[T]:
        """Empty everything and return what is alive."""
        alive = [thing for level in self._classes for line in level.lines.values() for thing in line.things if self._alive(thing)]
        self.__init__(self._alive)  # type: ignore[misc]
        return alive
