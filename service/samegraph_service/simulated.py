"""A model that takes as long as it is told to: for tests and load tests of what happens around it, never for serving."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from samegraph_transforms.ragged import ShapePlan

from .cost import CostModel, ShapedCost


@dataclass(frozen=True, slots=True)
class Pace:
    """How long executions are made to take at least.

    Attributes:
        batch_s: Seconds of an execution before its first row.
        row_s: Seconds each row adds.
    """

    batch_s: float = 0.0
    row_s: float = 0.0

    def __bool__(self) -> bool:
        return self.batch_s > 0 or self.row_s > 0

    def seconds(self, rows: int) -> float:
        """Return how long an execution of `rows` rows takes at least."""
        return self.batch_s + self.row_s * rows


class Paced:
    """Runs batches as `runner` does, with its answers, but no faster than `pace`.

    Args:
        runner: A `device.Runner`.
        pace: How long executions take at least.
        sleep: Waits, off the event loop.
    """

    def __init__(self, runner: Any, pace: Pace, sleep: Callable[[float], None] = time.sleep) -> None:
        self._runner = runner
        self._pace = pace
        self._sleep = sleep

    @property
    def shapes(self) -> ShapePlan | None:
        """See `device.Runner`."""
        shapes: ShapePlan | None = self._runner.shapes
        return shapes

    def collate(self, items: Sequence[Any]) -> dict[str, np.ndarray]:
        """See `device.Runner`."""
        feeds: dict[str, np.ndarray] = self._runner.collate(items)
        return feeds

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """See `device.Runner`."""
        started = time.perf_counter()
        arrays: list[np.ndarray] = self._runner.run(feeds)
        rows = len(arrays[0]) if arrays else 0
        left = self._pace.seconds(rows) - (time.perf_counter() - started)
        if left > 0:
            self._sleep(left)
        return arrays


class _AnyShape(ShapedCost):
    """The cost where rows differ in shape and all take the same."""

    def __init__(self) -> None:
        super().__init__(lambda _: 1)

    def observe_shape(self, shape: Hashable, n: int, seconds: float) -> None:
        """See `ShapedCost.observe_shape`."""
        self.observe(n, seconds)

    def of(self, shape: Hashable) -> CostModel:
        """See `ShapedCost.of`."""
        return self


def paced_cost(pace: Pace, max_batch_size: int, *, shaped: bool = False) -> CostModel:
    """Return the cost model that a warm-up at this pace leaves; `shaped` where rows differ in shape."""
    cost = _AnyShape() if shaped else CostModel()
    for rows in (1, max_batch_size):
        cost.observe(rows, pace.seconds(rows))
    return cost
