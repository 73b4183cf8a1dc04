"""Predict how long an execution takes from how many rows it has: `t = a·n + b`, fitted while serving."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

#: Most shapes whose execution times are kept apart; those used longest ago are estimated from all others by their size.
SHAPES_APART = 128


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


class BucketCost(CostModel):
    """The cost where batches are padded to few sizes: n rows take what the smallest of them that holds n takes.

    Args:
        sizes: Those sizes, ascending, at least one.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self._sizes = tuple(sizes)

    def observe(self, n: int, seconds: float) -> None:
        """See `CostModel.observe`."""
        super().observe(self._size(n), seconds)

    def predict_s(self, n: int) -> float:
        """See `CostModel.predict_s`."""
        return super().predict_s(self._size(n))

    def without_waste(self, rows: int) -> int:
        """Return how many of `rows` to run now: all, or the next size below if that and the rest after it take no longer than padding."""
        number = bisect_left(self._sizes, rows)
        if number in (0, len(self._sizes)) or self._sizes[number] == rows:
            return rows
        below = self._sizes[number - 1]
        return below if self.predict_s(below) + self.predict_s(rows - below) <= self.predict_s(rows) else rows

    def _size(self, n: int) -> int:
        number = bisect_left(self._sizes, n)
        return self._sizes[number] if number < len(self._sizes) else n


class ShapedCost(CostModel):
    """The cost where rows differ in shape: a fit for each shape, and one over elements for shapes that were not seen yet.

    As a `CostModel` itself it is the fit over rows of any shape.

    Args:
        elements: Returns how many elements one row of a shape has.
        make: Makes the fit of one shape.
    """

    def __init__(self, elements: Callable[[Any], int], make: Callable[[], CostModel] = CostModel) -> None:
        super().__init__()
        self._elements = elements
        self._make = make
        self._by_shape: OrderedDict[Hashable, CostModel] = OrderedDict()
        self._by_element = CostModel()

    def observe_shape(self, shape: Hashable, n: int, seconds: float) -> None:
        """Take in one execution of `n` rows of `shape` that took `seconds`."""
        self.observe(n, seconds)
        self._by_element.observe(n * max(1, self._elements(shape)), seconds)
        model = self._by_shape.get(shape)
        if model is None:
            model = self._by_shape[shape] = self._make()
            if len(self._by_shape) > SHAPES_APART:
                self._by_shape.popitem(last=False)
        else:
            self._by_shape.move_to_end(shape)
        model.observe(n, seconds)

    def of(self, shape: Hashable) -> CostModel:
        """Return the fit of `shape`; of one that was never seen, what rows with so many elements take by all that were."""
        model = self._by_shape.get(shape)
        if model is not None:
            return model
        estimate = self._make()
        whole = self._by_element
        if whole.known:
            # Two points on the line give the line back.
            each = max(1, self._elements(shape))
            for n in (1, 64):
                estimate.observe(n, whole.predict_s(n * each))
        return estimate


def cost_model(sizes: Sequence[int] = (), elements: Callable[[Any], int] | None = None) -> CostModel:
    """Return the model that fits how a version runs.

    Args:
        sizes: Batch sizes that others are padded to; empty where none are.
        elements: Returns how many elements one row of a shape has; None where all rows have one shape.
    """

    def make() -> CostModel:
        return BucketCost(sizes) if sizes else CostModel()

    return make() if elements is None else ShapedCost(elements, make)


def wave_s(ends_s: Sequence[float], batches: int, batch_s: float) -> float:
    """Return in how many seconds the batch that has `batches` full ones waiting before it starts.

    As well it is when the batch of that number ends, counting those that run now from 0.

    Exact for equal batches: unlike queue over rate it knows that slots which started together end together.

    Args:
        ends_s: In how many seconds each run slot is free, ascending, at least one.
        batches: Whole batches ahead, >= 0.
        batch_s: Seconds of a batch.
    """
    slots = len(ends_s)
    return ends_s[batches % slots] + batches // slots * batch_s
