"""A clock that only moves when somebody sleeps."""

from __future__ import annotations


class FakeTime:
    """Monotonic seconds and two sleepers that advance them; nothing ever really waits.

    Attributes:
        now: The time, seconds.
        slept: Every sleep so far, seconds.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self.slept: list[float] = []

    def __call__(self) -> float:
        """Return the time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Advance the time at once."""
        self.slept.append(seconds)
        self.now += seconds

    async def asleep(self, seconds: float) -> None:
        """Advance the time at once, for asyncio."""
        self.sleep(seconds)
