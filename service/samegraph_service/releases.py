"""When places come free on a device whose every freed place is taken again: pure arithmetic on a clock of its own.

A server with room for fewer rows than its run slots turn over at full batches never runs full ones: what a batch frees has to come back
before it can run again. So the times are not those of a queue that is always long; the turns are played through one by one.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable

#: Executions that are played through; those after them are taken to keep the pace of the later half of these.
MOST_PLAYED = 64


class Releases:
    """The moments at which rows that were accepted are answered, and with that their places are free.

    Rows that wait are run as the device does: a free slot takes its share of them, at most `size`. A place that came free is taken again
    `back_s` later, the first of those who come find a free slot and start alone.

    Args:
        running: When each execution that runs is predicted to end, and its rows.
        idle: Run slots that are free.
        waiting: Rows that are accepted and do not run yet.
        size: Most rows of an execution.
        seconds: Returns what an execution of so many rows takes, > 0.
        back_s: From a place being free to its next row being there.
        now: The time, on the clock of `running`.
    """

    def __init__(
        self,
        running: Iterable[tuple[float, int]],
        idle: int,
        waiting: int,
        size: int,
        seconds: Callable[[int], float],
        back_s: float,
        now: float,
    ) -> None:
        self._running = [(max(now, end), rows) for end, rows in running]
        heapq.heapify(self._running)
        self._idle = idle
        self._waiting = waiting
        self._size = size
        self._seconds = seconds
        self._back_s = back_s
        self._now = now
        self._coming: deque[tuple[float, int]] = deque()
        self._freed = [0]  # rows answered by each of the moments in _at
        self._at = [now]

    def at(self, rows: int) -> float:
        """Return when the place that has `rows` others come free before it is free."""
        while self._freed[-1] <= rows and len(self._at) <= MOST_PLAYED and (self._running or self._waiting or self._coming):
            self._play()
        freed, at = self._freed, self._at
        if freed[-1] > rows:
            return at[bisect_right(freed, rows)]
        half = len(at) // 2
        turned = freed[-1] - freed[half]
        return at[-1] if turned <= 0 else at[-1] + (rows + 1 - freed[-1]) * (at[-1] - at[half]) / turned

    def _play(self) -> None:
        """Go on to the end of the next execution."""
        while True:
            while self._idle and self._waiting:
                self._start(min(self._size, -(-self._waiting // self._idle)))
            if not self._running or (self._coming and self._coming[0][0] < self._running[0][0]):
                self._now, rows = self._coming.popleft()
                self._waiting += rows
                while self._idle and self._waiting:
                    self._start(1)
                continue
            self._now, rows = heapq.heappop(self._running)
            self._idle += 1
            self._coming.append((self._now + self._back_s, rows))
            self._at.append(self._now)
            self._freed.append(self._freed[-1] + rows)
            return

    def _start(self, rows: int) -> None:
        self._idle -= 1
        self._waiting -= rows
        heapq.heappush(self._running, (self._now + self._seconds(rows), rows))
