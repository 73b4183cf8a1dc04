"""The event loop as the core sees it, with a clock that is fine enough to measure with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """What `Loop.call_at` returns."""

    def cancel(self) -> None:
        """Make the timer not fire."""


class Loop(Protocol):
    """The few calls the sans-IO core makes on an event loop (asyncio's has them; tests bring their own)."""

    def time(self) -> float:
        """Return monotonic seconds."""
        ...

    def call_soon(self, callback: Callable[..., object], *args: object) -> object:
        """Run the callback in the next turn of the loop; only from the loop's own thread."""
        ...

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: object) -> object:
        """Run the callback in the loop's thread; from any thread."""
        ...

    def call_at(self, when: float, callback: Callable[..., object], *args: object) -> Timer:
        """Run the callback at loop time `when`."""
        ...


class PreciseLoop:
    """An asyncio loop whose `time()` is the monotonic clock itself.

    uvloop's own moves in steps of a millisecond and stands still within a turn of the loop, which would make every short
    queue wait and every quick request take exactly 0 s.

    Args:
        loop: The running loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.time = time.monotonic
        self.call_soon = loop.call_soon
        self.call_soon_threadsafe = loop.call_soon_threadsafe
        self._call_later = loop.call_later

    def call_at(self, when: float, callback: Callable[..., object], *args: object) -> Timer:
        """Run the callback at monotonic time `when`, to the millisecond."""
        return self._call_later(max(0.0, when - time.monotonic()), callback, *args)
