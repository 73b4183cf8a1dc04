"""Rows and answers of a version → how much its counts grow.

A version's counts are two flat vectors, so that adding, publishing, windows and rendering are one NumPy operation each whatever the
number of fields:

    integers   [rows, bins of the first variable, bins of the second, …]
    floats     [above, below, squared of the first number, …, cells of the first output with class probabilities, …]

What falls into which bin is decided by `samegraph_transforms.baseline_bins.Binner`, which the baseline was built with. Plain numbers,
most of what tabular rows hold, go through `_Numbers`, which does the same for all columns at once, and few different values are looked
up once each: with 17 fields and 4 variables of answers 1.4 µs a row where one column after another takes 2.9. A test holds the two equal.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
from samegraph_transforms.baseline import Baseline, Variable
from samegraph_transforms.baseline_bins import SUM_REACH, Binner, Values
from samegraph_transforms.baseline_extract import InputColumns, OutputColumns, expected_cells
from samegraph_transforms.manifest import Manifest, Output
from samegraph_transforms.signature import Row

Side = Literal["input", "output"]
#: The floats of a number, in order: sum of positive and of negative distances from the baseline's mean, sum of squared distances.
MOMENTS = ("above", "below", "squared")

#: Rows of images, texts and tensors that are looked at before others get the interpreter.
ROWS_READ_TOGETHER = 4

_PLAIN = frozenset({"number", "integer"})
_COUNTED = frozenset({"string", "boolean"})


class Totals(NamedTuple):
    """Counts of a version at one moment. Never changed in place, so that a reader sees rows and bins that fit together."""

    integers: np.ndarray
    floats: np.ndarray

    def __add__(self, other: object) -> Totals:
        assert isinstance(other, Totals)
        return Totals(self.integers + other.integers, self.floats + other.floats)

    def minus(self, other: Totals) -> Totals:
        """Return how much these counts grew since `other`."""
        return Totals(self.integers - other.integers, self.floats - other.floats)

    @property
    def rows(self) -> int:
        """Rows counted."""
        return int(self.integers[0])


@dataclass(frozen=True)
class Slot:
    """Where a variable's counts lie in the vectors.

    Attributes:
        side: Whether it is a quantity of the inputs or of the answers.
        owner: The raw field, or the output.
        variable: Its bins and the baseline's counts.
        importance: How much drift of it matters; of an output infinite.
        start: Its first bin among the integers.
        stop: The place after its last bin.
        moments: Its first moment among the floats; None unless it is a number.
    """

    side: Side
    owner: str
    variable: Variable
    importance: float
    start: int
    stop: int
    moments: int | None

    def counts(self, totals: Totals) -> np.ndarray:
        """Return its counts per bin."""
        return totals.integers[self.start : self.stop]

    def finite(self, totals: Totals) -> int:
        """Return how many finite numbers were counted: those within the training range, below and above."""
        return int(totals.integers[self.start : self.start + self.variable.n_bins + 2].sum())


@dataclass(frozen=True)
class ExpectedSlot:
    """Where the sums of an output's expected accuracy lie among the floats."""

    output: Output
    place: int
    positive: str | None
    cells: tuple[str, ...]
    start: int


class Layout:
    """The vectors of one version.

    Attributes:
        slots: One per variable, inputs first.
        expected: One per output with class probabilities.
        n_integers: Length of the integers.
        n_floats: Length of the floats.
    """

    def __init__(self, manifest: Manifest, baseline: Baseline) -> None:
        slots: list[Slot] = []
        self.n_integers, self.n_floats = 1, 0
        for field, variable in baseline.inputs():
            slots.append(self._slot("input", field.name, variable, field.importance))
        for output, variable in baseline.answers():
            slots.append(self._slot("output", output.name, variable, math.inf))
        self.slots: tuple[Slot, ...] = tuple(slots)
        self.expected: tuple[ExpectedSlot, ...] = tuple(self._expected(manifest, baseline))

    def _slot(self, side: Side, owner: str, variable: Variable, importance: float) -> Slot:
        start, moments = self.n_integers, None
        self.n_integers += len(variable.labels)
        if variable.kind == "numeric":
            moments = self.n_floats
            self.n_floats += len(MOMENTS)
        return Slot(side, owner, variable, importance, start, self.n_integers, moments)

    def _expected(self, manifest: Manifest, baseline: Baseline) -> list[ExpectedSlot]:
        found = []
        for place, (output, of) in enumerate(zip(manifest.outputs, baseline.outputs, strict=True)):
            if of.expected is not None:
                cells = tuple(of.expected.cells)
                found.append(ExpectedSlot(output, place, of.expected.positive, cells, self.n_floats))
                self.n_floats += len(cells)
        return found

    def zero(self) -> Totals:
        """Return the counts of no rows."""
        return Totals(np.zeros(self.n_integers, dtype=np.int64), np.zeros(self.n_floats))

    def baseline(self) -> np.ndarray:
        """Return the baseline's counts in the layout of the integers."""
        rows = self.slots[0].variable.rows if self.slots else 0
        return np.array([rows, *(n for slot in self.slots for n in slot.variable.counts)], dtype=np.int64)


class RowCounter:
    """Counts rows and answers of one version. For one thread at a time.

    Args:
        manifest: The version's manifest.
        baseline: Its baseline.

    Attributes:
        layout: What its results look like.
        pixels: Item-stage values that image statistics are taken from.
    """

    def __init__(self, manifest: Manifest, baseline: Baseline) -> None:
        self.layout = Layout(manifest, baseline)
        self.pixels: tuple[str, ...] = tuple(f.pixels for f in baseline.fields if f.monitored != "off" and f.pixels is not None)
        kinds = {f.name: f.kind for f in manifest.fields}
        places = {f.name: i for i, f in enumerate(manifest.fields)}
        inputs = [s for s in self.layout.slots if s.side == "input"]
        self._numbers = _Numbers([(places[s.owner], s) for s in inputs if kinds[s.owner] in _PLAIN])
        self._counted = [(places[s.owner], s, Binner(s.variable)) for s in inputs if kinds[s.owner] in _COUNTED]
        simple = _PLAIN | _COUNTED
        self._others = [(s, Binner(s.variable)) for s in inputs if kinds[s.owner] not in simple]
        fields = [f.model_copy(update={"monitored": "off"}) if f.kind in simple else f for f in baseline.fields]
        self._read_inputs = InputColumns(manifest, fields)
        self._answers = [(s, Binner(s.variable)) for s in self.layout.slots if s.side == "output"]
        self._read_outputs = OutputColumns(manifest)
        self._outputs = [o.name for o in manifest.outputs]

    def count(
        self,
        rows: Sequence[Row],
        pixels: Mapping[str, Sequence[np.ndarray | None]] | None,
        arrays: Sequence[np.ndarray],
        breathe: Callable[[], object] = lambda: None,
    ) -> Totals:
        """Return by how much some rows and their answers make the counts grow.

        Args:
            rows: Checked rows, at least one.
            pixels: For each name in `pixels` that value of each row.
            arrays: Per output [n, *shape].
            breathe: Called a few times on the way, for others to get the interpreter.
        """
        grown = self.layout.zero()
        integers, floats = grown
        integers[0] = len(rows)
        columns = list(zip(*rows, strict=True))
        self._numbers.add(columns, integers, floats, breathe)
        for place, slot, binner in self._counted:
            integers[slot.start : slot.stop] += _tally(binner, columns[place])
        breathe()
        if self._others:
            _observe(self._others, self._read_others(rows, pixels, breathe), integers, floats)
            breathe()
        named = dict(zip(self._outputs, arrays, strict=True))
        if self._answers:
            _observe(self._answers, self._read_outputs.read(named), integers, floats)
        for expected in self.layout.expected:
            cells = expected_cells(expected.output, arrays[expected.place], expected.positive)
            floats[expected.start : expected.start + len(expected.cells)] += [cells[cell] for cell in expected.cells]
        return grown

    def _read_others(
        self, rows: Sequence[Row], pixels: Mapping[str, Sequence[np.ndarray | None]] | None, breathe: Callable[[], object]
    ) -> Mapping[str, Any]:
        """Read what is not plain a few rows at a time: of images and texts one row takes as long as hundreds of plain ones."""
        if len(rows) <= ROWS_READ_TOGETHER:
            return self._read_inputs.read(rows, pixels)
        pieces = []
        for start in range(0, len(rows), ROWS_READ_TOGETHER):
            part = slice(start, start + ROWS_READ_TOGETHER)
            pieces.append(self._read_inputs.read(rows[part], None if pixels is None else {name: of[part] for name, of in pixels.items()}))
            breathe()
        return {name: _end_to_end([piece[name] for piece in pieces]) for name in pieces[0]}


def _end_to_end(pieces: Sequence[Values]) -> Values:
    if all(isinstance(piece, np.ndarray) for piece in pieces):
        return np.concatenate(pieces)
    return list(chain.from_iterable(pieces))


def _observe(slots: Sequence[tuple[Slot, Binner]], columns: Mapping[str, Any], integers: np.ndarray, floats: np.ndarray) -> None:
    for slot, binner in slots:
        values = columns[slot.variable.name]
        if slot.moments is None:
            integers[slot.start : slot.stop] += _tally(binner, values.tolist() if isinstance(values, np.ndarray) else values)
            continue
        seen = binner.observe(values)
        integers[slot.start : slot.stop] += seen.counts
        _add_moments(floats, slot.moments, seen.total, seen.square)


def _tally(binner: Binner, values: Iterable[Any]) -> np.ndarray:
    """Return how many values of one type fell into each bin, looking every different value up once."""
    seen = Counter(values)
    return np.bincount(binner.bin(list(seen)), list(seen.values()), len(binner.labels)).astype(np.int64)


def _add_moments(floats: np.ndarray, start: int, total: float, square: float) -> None:
    """Add a sum of distances to the part that rises: sums over many rows may fall, and what may fall is no counter."""
    floats[start + (total < 0)] += abs(total)
    floats[start + 2] += square


class _Numbers:
    """All plain number columns at once.

    A number's bin is how many of the points (minimum, edges, the number after the maximum) are not greater than it.
    """

    def __init__(self, columns: Sequence[tuple[int, Slot]]) -> None:
        self._places = [place for place, _ in columns]
        self._slots = [slot for _, slot in columns]
        self._binners = [Binner(slot.variable) for slot in self._slots]
        points = [_points(slot.variable) for slot in self._slots]
        most = max(map(len, points), default=0)
        self._points = np.full((most, len(points), 1), math.inf)
        self._bins = np.zeros((len(points), most + 1), dtype=np.int64)
        for i, (slot, own) in enumerate(zip(self._slots, points, strict=True)):
            self._points[: len(own), i, 0] = own
            n = slot.variable.n_bins
            below, above = slot.start + n, slot.start + n + 1
            self._bins[i, : len(own) + 1] = [below, *range(slot.start, slot.start + len(own) - 1), above]
        self._rows = np.arange(len(points), dtype=np.intp)[:, None]
        self._missing = np.array([s.start + s.variable.labels.index("missing") for s in self._slots], dtype=np.int64)[:, None]
        self._center = np.array([s.variable.mean or 0.0 for s in self._slots])[:, None]
        reach = np.array([_reach(s.variable) for s in self._slots]).reshape(-1, 2)
        self._low, self._high = reach[:, :1], reach[:, 1:]

    def add(self, columns: Sequence[Sequence[Any]], integers: np.ndarray, floats: np.ndarray, breathe: Callable[[], object]) -> None:
        """Add the counts of all columns."""
        if not self._slots:
            return
        mine = [columns[place] for place in self._places]
        X = np.array(mine, dtype=np.float64)  # None becomes NaN
        finite = np.isfinite(X)
        whole = bool(finite.all())
        breathe()
        if not whole and any(n and n != column.count(None) for n, column in zip((~finite).sum(axis=1).tolist(), mine, strict=True)):
            self._add_one_by_one(mine, integers, floats)  # a NaN or an infinity, which checked rows do not hold
            return
        below = np.zeros(X.shape, dtype=np.int8)
        for points in self._points:
            below += points <= X
        bins = self._bins[self._rows, below]
        if not whole:
            bins = np.where(finite, bins, self._missing)
        integers += np.bincount(bins.ravel(), minlength=len(integers))
        distance = np.clip(X, self._low, self._high) - self._center
        if not whole:
            distance[~finite] = 0.0
        totals, squares = distance.sum(axis=1).tolist(), np.einsum("ij,ij->i", distance, distance).tolist()
        for slot, total, square in zip(self._slots, totals, squares, strict=True):
            assert slot.moments is not None
            _add_moments(floats, slot.moments, total, square)

    def _add_one_by_one(self, columns: Sequence[Sequence[Any]], integers: np.ndarray, floats: np.ndarray) -> None:
        named = {slot.variable.name: column for slot, column in zip(self._slots, columns, strict=True)}
        _observe(list(zip(self._slots, self._binners, strict=True)), named, integers, floats)


def _points(variable: Variable) -> list[float]:
    if variable.minimum is None or variable.maximum is None:
        return [-math.inf, -math.inf]  # training never saw a number, so each is above what it saw
    return [variable.minimum, *variable.edges, math.nextafter(variable.maximum, math.inf)]


def _reach(variable: Variable) -> tuple[float, float]:
    """Return between which numbers a distance is taken as it is: as `Binner` does it."""
    if variable.minimum is None or variable.maximum is None:
        return -1.0, 1.0
    width = (variable.maximum - variable.minimum) or max(abs(variable.maximum), 1.0)
    return max(variable.minimum - SUM_REACH * width, -1e150), min(variable.maximum + SUM_REACH * width, 1e150)
