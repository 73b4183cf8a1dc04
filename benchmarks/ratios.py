"""Medians with intervals, and what they say about a target."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 10_000
SEED: Final = 20131

#: Rounds below which an interval says nothing.
FEWEST: Final = 3

Verdict = Literal["met", "met at the median", "missed at the median", "missed", "not measured"]


@dataclass(frozen=True)
class Interval:
    """A median and where it would lie in most repetitions of the whole run.

    Attributes:
        median: Of the rounds.
        low: Lower end of the interval; equals the median where there was one round.
        high: Upper end.
        n: Rounds.
    """

    median: float
    low: float
    high: float
    n: int


def median_interval(values: Iterable[float]) -> Interval:
    """Return the median with its bootstrap percentile interval at 95 % confidence; the same values give the same interval.

    Few values make an interval of little worth: of three it is their whole range.

    Args:
        values: One per round, at least one.

    Raises:
        ValueError: There is none.

    Source: Efron and Tibshirani, An introduction to the bootstrap, chapter 13.
    """
    found = np.array(list(values), dtype=np.float64)
    if not len(found):
        raise ValueError("no round was measured")
    drawn = np.random.default_rng(SEED).choice(found, size=(RESAMPLES, len(found)))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(np.median(drawn, axis=1), [tail, 100 - tail])
    return Interval(statistics.median(found.tolist()), float(low), float(high), len(found))


def verdict(measured: Interval | None, *, at_most: float | None = None, at_least: float | None = None) -> Verdict:
    """Say whether a target is met: plainly when the whole interval is on one side, else (or with fewer than three rounds) "at the median".

    Args:
        measured: None when it was not measured.
        at_most: The target, or
        at_least: the target, in the other direction.
    """
    if (at_most is None) == (at_least is None):
        raise ValueError("a target is either at most or at least something")
    if measured is None:
        return "not measured"
    low, middle, high = measured.low, measured.median, measured.high
    if at_least is not None:  # the mirror image
        low, middle, high, bound = -high, -middle, -low, -at_least
    else:
        assert at_most is not None
        bound = at_most
    if measured.n >= FEWEST and high <= bound:
        return "met"
    if measured.n >= FEWEST and low > bound:
        return "missed"
    return "met at the median" if middle <= bound else "missed at the median"
