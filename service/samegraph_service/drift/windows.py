"""Sliding windows over counts: exact to the minute, and as small in memory as the traffic allows.

Once a minute the growth of a version's counts since the last time is kept; a window is the sum of those of its last so many minutes.
Minutes without traffic take no room, the others the smallest type that holds their largest count.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np

from .counting import Totals
from .window_sizes import WindowSize

MINUTE_S = 60.0


class _Window:
    """The minutes of one window."""

    def __init__(self, size: WindowSize, zero: Totals) -> None:
        self.size = size
        self._minutes: deque[tuple[int, Totals]] = deque()
        self._integers = zero.integers.copy()
        self._floats = len(zero.floats)

    def add(self, minute: int, grown: Totals) -> None:
        self._minutes.append((minute, grown))
        self._integers += grown.integers

    def forget(self, minute: int) -> None:
        """Drop the minutes that are over for a window that ends with `minute`."""
        while self._minutes and self._minutes[0][0] <= minute - self.size.minutes:
            self._integers -= self._minutes.popleft()[1].integers

    def sum(self) -> Totals:
        # Floats are added up anew: taking away what was added would leave rounding behind that grows from minute to minute.
        floats = np.zeros(self._floats)
        for _, grown in self._minutes:
            floats += grown.floats
        return Totals(self._integers.copy(), floats)


class Windows:
    """The windows of one version. For one thread at a time.

    Args:
        sizes: How long they are.
        zero: Counts of no rows, for their length.
    """

    def __init__(self, sizes: Iterable[WindowSize], zero: Totals) -> None:
        self._windows = [_Window(size, zero) for size in sizes]
        self._last = zero
        self._minute: int | None = None

    def advance(self, minute: int, totals: Totals) -> bool:
        """Take note of the counts at the end of `minute`; a minute that is not after the last one changes nothing.

        Returns:
            Whether any minute is in any window.
        """
        if self._minute is not None and minute <= self._minute:
            return self._filled
        self._minute = minute
        if totals.rows != self._last.rows:
            grown = _narrow(totals.minus(self._last))
            for window in self._windows:
                window.add(minute, grown)
            self._last = totals
        for window in self._windows:
            window.forget(minute)
        return self._filled

    @property
    def _filled(self) -> bool:
        return any(window._minutes for window in self._windows)

    def sums(self) -> dict[str, Totals]:
        """Return label → counts of the rows of that window."""
        return {window.size.label: window.sum() for window in self._windows}

    def minutes(self) -> tuple[tuple[int, Totals], ...]:
        """Return (minute, growth of the counts in it) of the longest window, oldest first; minutes without traffic are not among them."""
        return tuple(max(self._windows, key=lambda window: window.size.minutes)._minutes) if self._windows else ()


def slices(minutes: Sequence[tuple[int, Totals]], last: int, size: WindowSize, most: int) -> tuple[int, list[np.ndarray]]:
    """Cut a window into equal parts.

    Args:
        minutes: As `Windows.minutes` gives them.
        last: The minute the window ends with.
        size: The window.
        most: Most parts.

    Returns:
        Minutes of a part, and the integers of each, oldest first; the oldest may reach beyond the window's beginning.
    """
    length = -(-size.minutes // most)
    parts = -(-size.minutes // length)
    found: list[np.ndarray | None] = [None] * parts
    for minute, grown in minutes:
        place = parts - 1 - (last - minute) // length
        if 0 <= place < parts:
            before = found[place]
            found[place] = grown.integers.astype(np.int64) if before is None else before + grown.integers
    return length, [np.zeros(0, dtype=np.int64) if part is None else part for part in found]


def _narrow(grown: Totals) -> Totals:
    """Return the same counts in the smallest type that holds them: most minutes fit a byte or two a bin."""
    most = int(grown.integers.max())
    return Totals(grown.integers.astype(np.min_scalar_type(most) if most < 2**32 else np.int64), grown.floats)
