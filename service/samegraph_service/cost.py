"""Predict how long an execution takes from how many rows it has: `t = a·n + b`, fitted while serving."""

from __future__ import annotations

import math


class CostModel:
    """Exponentially weighted least squares over observed executions.

    Predictions are in seconds, never negative, and never decrease with n.

    Args:
        memory: Weight an observation keeps per later observation; 0.98 remembers about the last fifty.

    Attributes:
        per_row_s: Seconds each row adds.
        fixed_s: Seconds of an execution before its first row.
        fastest_s: Seconds of the fastest execution ever observed; 0 before anything was.
    """

    def __init__(self, memory: float = 0.98) -> None:
        self._memory = memory
        self._w = self._n = self._nn = self._t = self._nt = 0.0
        self.per_row_s = 0.0
        self.fixed_s = 0.0
        self.fastest_s = 0.0

    @property
    def known(self) -> bool:
        """Whether anything was observed yet."""
        return self._w > 0

    def observe(self, n: int, seconds: float) -> None:
        """Take in one execution of `n` rows that took `seconds`."""
        self.fastest_s = min(self.fastest_s, seconds) if self.known else seconds
        m = self._memory
        self._w = self._w * m + 1
        self._n = self._n * m + n
        self._nn = self._nn * m + n * n
        self._t = self._t * m + seconds
        self._nt = self._nt * m + n * seconds
        self._fit()

    def predict_s(self, n: int) -> float:
        """Return the predicted seconds of one execution of `n` rows; 0 before anything was observed."""
        return self.per_row_s * n + self.fixed_s

    def efficient_size(self, largest: int, waste_ratio: float = 0.02) -> int:
        """Return the smallest batch whose time per row is within `waste_ratio` of what the largest batches reach.

        Where time is nearly linear in n (a CNN on a CPU) larger batches buy nothing and only make everyone wait for the last
        row; where a fixed cost dominates (a GPU, a tiny model) it is the largest batch.

        Args:
            largest: Upper bound, >= 1.
            waste_ratio: Share of a row's time that may be spent on fixed cost.

        Returns:
            Between 2 and `largest` (pairs cost nothing worth mentioning, and half the overhead of single rows); `largest` before
            anything was observed.
        """
        allowed = self.per_row_s * waste_ratio
        if self.fixed_s >= allowed * largest:
            return largest
        return min(largest, max(2, math.ceil(self.fixed_s / allowed)))

    def _fit(self) -> None:
        spread = self._w * self._nn - self._n * self._n
        if spread > 1e-9 * self._w * self._nn:
            slope = (self._w * self._nt - self._n * self._t) / spread
            slope = min(max(slope, 0.0), self._t / self._n)  # neither part may be negative
        else:  # every execution had the same size: one size tells nothing about the split
            slope = self._t / self._n
        self.per_row_s = slope
        self.fixed_s = max(0.0, (self._t - slope * self._n) / self._w)
