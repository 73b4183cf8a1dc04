"""Stand-ins shared by the tests: a clock and loop that move only when told, threads that run only when told, a scripted model."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
from samegraph_transforms.errors import ExecutionError


class FakeTimer:
    """A timer of `FakeLoop`."""

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeLoop:
    """The part of an event loop the core uses; time passes in `advance` only."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now
        self._ready: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()
        self._timers: list[tuple[float, int, FakeTimer, Callable[..., object], tuple[object, ...]]] = []
        self._order = itertools.count()

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[..., object], *args: object) -> object:
        self._ready.append((callback, args))
        return None

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: object) -> object:
        return self.call_soon(callback, *args)

    def call_at(self, when: float, callback: Callable[..., object], *args: object) -> FakeTimer:
        timer = FakeTimer()
        heapq.heappush(self._timers, (when, next(self._order), timer, callback, args))
        return timer

    @property
    def armed(self) -> int:
        """Timers that are set."""
        return sum(not t[2].cancelled for t in self._timers)

    def run(self) -> None:
        """Run everything that is ready now, and what that makes ready."""
        while True:
            while self._timers and (self._timers[0][0] <= self.now or self._timers[0][2].cancelled):
                _, _, timer, callback, args = heapq.heappop(self._timers)
                if not timer.cancelled:
                    self.call_soon(callback, *args)
            if not self._ready:
                return
            callback, args = self._ready.popleft()
            callback(*args)

    def advance(self, seconds: float) -> None:
        """Let time pass and run what falls due."""
        self.now += seconds
        self.run()


class ManualPool(Executor):
    """Threads whose jobs run when the test says so."""

    def __init__(self) -> None:
        self.jobs: deque[Callable[[], Any]] = deque()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.jobs.append(lambda: fn(*args, **kwargs))
        return Future()

    def run_one(self) -> None:
        self.jobs.popleft()()

    def run_all(self) -> None:
        while self.jobs:
            self.run_one()


class Doubler:
    """A model that doubles numbers; records its batches and fails on the values in `poison`."""

    shapes = None

    def __init__(self, poison: Sequence[float] = (), lose_a_row: bool = False) -> None:
        self.batches: list[list[float]] = []
        self.poison = set(poison)
        self.lose_a_row = lose_a_row

    def collate(self, items: Sequence[Any]) -> dict[str, np.ndarray]:
        return {"x": np.array([item[0] for item in items], dtype=np.float64)}

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        values = feeds["x"].tolist()
        self.batches.append(values)
        if self.poison & set(values):
            raise ExecutionError("poison")
        result = feeds["x"] * 2
        return [result[:-1] if self.lose_a_row and len(values) > 1 else result]


class Recorder:
    """A lane observer that remembers."""

    def __init__(self) -> None:
        self.executions: list[tuple[int, list[float]]] = []
        self.expired_works = 0
        self.backlog: list[tuple[int, int]] = []
        self.elements: list[tuple[int, int]] = []
        self.refused = 0

    def executed(self, rows: int, seconds: float, queue_seconds: Sequence[float]) -> None:
        self.executions.append((rows, list(queue_seconds)))

    def expired(self, works: int) -> None:
        self.expired_works += works

    def backlogged(self, rows: int, wanted: int) -> None:
        self.backlog.append((rows, wanted))

    def padded(self, elements: int, padding: int) -> None:
        self.elements.append((elements, padding))

    def refused_poison(self) -> None:
        self.refused += 1
