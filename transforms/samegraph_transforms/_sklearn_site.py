"""One fitted scikit-learn step at its place in a pipeline, and what the writers of all steps use."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from ._sklearn_graph import Block, Column, GraphWriter
from .errors import UnsupportedStep
from .manifest import Vectorizer


@dataclass(frozen=True)
class Counted:
    """A text field whose terms the item stage counts.

    Attributes:
        field: The raw field.
        vectorizer: How it is counted.
        file: Content of the vectorizer's file.
        columns: Value with the columns of the terms that are there, int64 [terms].
        counts: Value with their counts, float64 [terms].
    """

    field: str
    vectorizer: Vectorizer
    file: bytes
    columns: str
    counts: str


@dataclass
class StepContext:
    """What all steps of one pipeline share while its graph is written.

    Attributes:
        writer: The graph being written.
        sentinel: The string that stands for a missing string.
        closed: Raw field → the only values training accepts, found from encoders that raise on unknown categories.
        limits: Raw field → least and largest value for which every step has a finite answer.
        counted: What the item stage counts in texts, found from text vectorizers.
    """

    writer: GraphWriter
    sentinel: str
    closed: dict[str, list[Any]] = field(default_factory=dict)
    limits: dict[str, tuple[float, float]] = field(default_factory=dict)
    counted: list[Counted] = field(default_factory=list)


@dataclass(frozen=True)
class Site:
    """One fitted step at its place in the pipeline.

    Attributes:
        context: Shared state.
        step: The fitted transformer.
        at: Its path, for node names and messages.
        data: Training rows as the step sees them.
    """

    context: StepContext
    step: Any
    at: str
    data: Any

    @property
    def writer(self) -> GraphWriter:
        """The graph being written."""
        return self.context.writer

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Write one node of this step and return its output."""
        return self.writer.node(op, inputs, at=self.at, **attributes)

    def number(self, value: Any) -> str:
        """Write a float64 constant."""
        return self.writer.constant(np.asarray(value, dtype=np.float64), at=self.at)

    def unsupported(self, what: str) -> UnsupportedStep:
        """Return the error that says what at this place has no exact graph."""
        return UnsupportedStep(f"{self.at} ({type(self.step).__name__}): {what}", step=self.at)

    def close(self, column: Column, values: Sequence[Any]) -> None:
        """Record that training accepts only `values` in `column`.

        Raises:
            UnsupportedStep: The column is computed, so the rule cannot be put on a raw field.
        """
        if column.field is None:
            raise self.unsupported(
                f"handle_unknown='error' on {column.label!r}, which an earlier step computes, cannot be checked on the raw input; "
                "use handle_unknown='ignore' or 'use_encoded_value'"
            )
        accepted = [*values, *column.also_accepted]
        known = self.context.closed.get(column.field)
        self.context.closed[column.field] = accepted if known is None else [v for v in known if v in accepted]

    def limit(self, column: Column, *, low: float = -math.inf, high: float = math.inf) -> None:
        """Record that the step has a finite answer only from `low` to `high`.

        Raises:
            UnsupportedStep: The column is computed, so the rule cannot be put on a raw field.
        """
        if column.field is None:
            raise self.unsupported(
                f"it needs values from {low:g} to {high:g} in {column.label!r}, which an earlier step computes, so that cannot be checked "
                "on the raw input; put it first"
            )
        least, most = self.context.limits.get(column.field, (-math.inf, math.inf))
        self.context.limits[column.field] = max(low, least), min(high, most)


#: Writes one step: (where, its input columns) → its output columns.
Emit: TypeAlias = Callable[[Site, Block], Block]


def matrix_of(site: Site, block: Block) -> str:
    """Return the block as a float64 matrix.

    Raises:
        UnsupportedStep: It holds strings.
    """
    strings = [c.label for c in block if c.is_string]
    if strings:
        raise site.unsupported(f"it computes on the string column {strings[0]!r}; encode that first")
    return site.writer.matrix(block, at=site.at)


def clipped(site: Site, tensor: str, low: float, high: float) -> str:
    """Clip by comparison: NaN compares false and so stays NaN, as numpy.clip leaves it."""
    for op, limit in (("Less", site.number(low)), ("Greater", site.number(high))):
        tensor = site.node("Where", site.node(op, tensor, limit), limit, tensor)
    return tensor
