"""Everything that drift keeps about one version: its tap, its counts, its windows and what was last made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from samegraph_transforms.baseline import Baseline, Variable
from samegraph_transforms.manifest import Manifest
from samegraph_transforms.signature import Row

from .counting import RowCounter, Slot, Totals
from .statistics import AlarmRule, Comparison, Scale, compare
from .tap import Share, Tap
from .window_sizes import WindowSize
from .windows import Windows


@dataclass(frozen=True, slots=True)
class WindowReading:
    """A window as it was when it was last looked at.

    Attributes:
        counts: What was counted in it.
        comparisons: One per variable, in the layout's order.
    """

    counts: Totals
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True, slots=True)
class Readings:
    """All windows of a version, looked at together.

    Attributes:
        at: When, on the monitor's clock, in seconds.
        sampled_ratio: Rows that were counted, as a share of those handed over since the look before; 1 when there were none.
        windows: Label → window.
        minutes: See `Windows.minutes`.
    """

    at: float
    sampled_ratio: float
    windows: Mapping[str, WindowReading]
    minutes: Sequence[tuple[int, Totals]] = ()


class VersionDrift:
    """Drift of one version. `count` and `look` are for one thread at a time; everything else may be read from any.

    Args:
        manifest: The version's manifest.
        digest: Its package digest.
        baseline: Its baseline.
        counter: Counts its rows.
        item_places: Item-stage value → its place in an item; empty for a version without an item stage.
        tap: Where its rows come from.
        sizes: Its windows.

    Attributes:
        totals: All rows counted so far; replaced as a whole.
        readings: What its windows last said; None before the first look; replaced as a whole.
    """

    def __init__(
        self,
        manifest: Manifest,
        digest: str,
        baseline: Baseline,
        *,
        counter: RowCounter,
        item_places: Mapping[str, int],
        tap: Tap,
        sizes: Sequence[WindowSize],
    ) -> None:
        self.model: str = manifest.name
        self.version: int = manifest.version
        self.manifest = manifest
        self.digest = digest
        self.baseline = baseline
        self.tap = tap
        self.counter = counter
        self.slots: tuple[Slot, ...] = self.counter.layout.slots
        self.totals: Totals = self.counter.layout.zero()
        self.readings: Readings | None = None
        self.row_s = 0.0
        self._pixels = {name: item_places[name] for name in self.counter.pixels if name in item_places}
        self._windows = Windows(sizes, self.totals)
        self._scales = [scale_of(slot.variable) for slot in self.slots]
        self._handed = self._lost = 0

    # --- counting -----------------------------------------------------------------------------------------------------

    def count(self, shares: Sequence[Share], breathe: Callable[[], object]) -> None:
        """Count what some executions handed over; the totals change once, at the end."""
        grown: Totals | None = None
        for feeds, rows, pixels, arrays in _gathered(shares, self._pixels):
            if feeds is not None:
                part = self.counter.count_columns(feeds, arrays, breathe)
            else:
                part = self.counter.count(rows, pixels, arrays, breathe)
            grown = part if grown is None else grown + part
        if grown is not None:
            self.totals = self.totals + grown

    # --- looking ------------------------------------------------------------------------------------------------------

    def look(self, minute: int, now: float, rule: AlarmRule, breathe: Callable[[], object]) -> None:
        """Compare the windows that end with `minute` with the baseline."""
        totals = self.totals
        if not self._windows.advance(minute, totals) and self.readings is not None and self._nothing_said():
            self.readings = Readings(now, 1.0, self.readings.windows)
            return
        windows = {}
        for label, counts in self._windows.sums().items():
            found = []
            for slot, scale in zip(self.slots, self._scales, strict=True):
                found.append(compare(slot.variable.counts, slot.counts(counts), rule, tests=len(self.slots), scale=scale))
                breathe()
            windows[label] = WindowReading(counts, tuple(found))
        self.readings = Readings(now, self._sampled_ratio(), windows, self._windows.minutes())

    def _nothing_said(self) -> bool:
        assert self.readings is not None
        return all(window.counts.rows == 0 for window in self.readings.windows.values())

    def _sampled_ratio(self) -> float:
        handed, lost = self.tap.handed, sum(self.tap.dropped.values())
        new_handed, new_lost = handed - self._handed, lost - self._lost
        self._handed, self._lost = handed, lost
        return 1.0 if new_handed <= 0 else min(1.0, max(0.0, 1.0 - new_lost / new_handed))


def scale_of(variable: Variable) -> Scale | None:
    """Return the bins of a number in the order of its values, from `below` to `above`; None for other variables."""
    if variable.kind != "numeric" or not variable.bounds:
        return None
    labels, n = variable.labels, variable.n_bins
    places = [labels.index("below"), *range(n), labels.index("above")]
    return Scale(places, [0.0, *(high - low for low, high in variable.bounds), 0.0], variable.std or 0.0)


class _Gathered(NamedTuple):
    """Rows of one or several shares as one."""

    feeds: Sequence[np.ndarray] | None
    rows: Sequence[Row]
    pixels: Mapping[str, Sequence[Any]] | None
    arrays: Sequence[np.ndarray]


def _gathered(shares: Sequence[Share], pixels: Mapping[str, int]) -> list[_Gathered]:
    """Return the rows of several shares as one, or one by one where they differ in kind or in the shape of their answers."""
    if len({(share.feeds is None, share.rows is None, *[array.shape[1:] for array in share.arrays]) for share in shares}) > 1:
        return [one for share in shares for one in _gathered([share], pixels)]
    if not shares:
        return []
    first = shares[0]
    arrays = first.arrays if len(shares) == 1 else [np.concatenate(of) for of in zip(*(share.arrays for share in shares), strict=True)]
    if first.feeds is not None:
        feeds = [np.concatenate(of) for of in zip(*(share.feeds or () for share in shares), strict=True)]
        return [_Gathered(feeds, (), None, arrays)]
    items = list(chain.from_iterable(chain.from_iterable(share.items for share in shares)))
    if first.rows is None:
        return [_Gathered(None, items, None, arrays)]
    rows = list(chain.from_iterable(share.rows or () for share in shares))
    return [_Gathered(None, rows, {name: [item[place] for item in items] for name, place in pixels.items()}, arrays)]
