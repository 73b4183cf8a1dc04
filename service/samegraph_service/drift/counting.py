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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
from samegraph_transforms.baseline import Baseline, Variable
from samegraph_transforms.baseline_bins import Binner, Values, sum_reach
from samegraph_transforms.baseline_extract import InputColumns, OutputColumns, expected_cells
from samegraph_transforms.manifest import Manifest, Missing, Output
from samegraph_transforms.signature import Row
from samegraph_transforms.tokenization import CountsTokens, token_counters

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

    def mean_and_std(self, totals: Totals) -> tuple[float | None, float | None]:
        """Return mean and standard deviation of the counted numbers; None where there are none."""
        n = self.finite(totals) if self.moments is not None else 0
        if self.moments is None or n == 0:
            return None, None
        above, below, squared = totals.floats[self.moments : self.moments + 3].tolist()
        offset = (above - below) / n
        return (self.variable.mean or 0.0) + offset, math.sqrt(max(0.0, squared / n - offset * offset))


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
        feed_columns: Field → (feed, column) of the fields that can be read from the graph's inputs.
        tokenizers: Text field → what makes tokens or terms of it.

    Attributes:
        layout: What its results look like.
        pixels: Item-stage values that image statistics are taken from.
        feeds: The graph's inputs that `count_columns` reads; empty when they do not tell all about a row.
    """

    def __init__(
        self,
        manifest: Manifest,
        baseline: Baseline,
        feed_columns: Mapping[str, tuple[str, int]] | None = None,
        tokenizers: Mapping[str, CountsTokens] | None = None,
    ) -> None:
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
        self._read_inputs = InputColumns(manifest, fields, token_counters(tokenizers or {}))
        self._answers = [(s, Binner(s.variable)) for s in self.layout.slots if s.side == "output"]
        self._read_outputs = OutputColumns(manifest)
        self._outputs = [o.name for o in manifest.outputs]
        missing = {f.name: f.missing for f in manifest.fields}
        fed = feed_columns or {}
        self._fed_numbers = [fed[s.owner] for s in self._numbers.slots if s.owner in fed and missing[s.owner].rule != "sentinel"]
        self._fed_counted = [
            (*fed[slot.owner], missing[slot.owner].sentinel)
            for _, slot, binner in self._counted
            if slot.owner in fed and _stands_out(missing[slot.owner], binner)
        ]
        plain = len(self._fed_numbers) == len(self._numbers.slots) and len(self._fed_counted) == len(self._counted)
        self.feeds: tuple[str, ...] = ()
        if plain and not self._others:
            read = [name for name, _ in self._fed_numbers] + [name for name, _, _ in self._fed_counted]
            self.feeds = tuple(dict.fromkeys(read))
        self._place = {name: i for i, name in enumerate(self.feeds)}

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
        self._numbers.add_rows(columns, integers, floats, breathe)
        for place, slot, binner in self._counted:
            integers[slot.start : slot.stop] += _tally(binner, Counter(columns[place]))
        breathe()
        if self._others:
            _observe(self._others, self._read_others(rows, pixels, breathe), integers, floats)
            breathe()
        self._add_answers(arrays, integers, floats)
        return grown

    def count_columns(
        self, feeds: Sequence[np.ndarray], arrays: Sequence[np.ndarray], breathe: Callable[[], object] = lambda: None
    ) -> Totals:
        """Do what `count` does, from the graph's inputs.

        Args:
            feeds: The inputs named by `feeds`, in that order, [n, k].
            arrays: Per output [n, *shape].
            breathe: See `count`.
        """
        grown = self.layout.zero()
        integers, floats = grown
        integers[0] = len(arrays[0])
        if self._fed_numbers:
            X = np.empty((len(self._fed_numbers), len(arrays[0])))
            for row, (name, column) in zip(X, self._fed_numbers, strict=True):
                row[:] = feeds[self._place[name]][:, column]
            self._numbers.add(X, integers, floats)
            breathe()
        for (name, column, sentinel), (_, slot, binner) in zip(self._fed_counted, self._counted, strict=True):
            seen = Counter(feeds[self._place[name]][:, column].tolist())
            if sentinel is not None and sentinel in seen:
                seen[None] = seen.pop(sentinel)
            integers[slot.start : slot.stop] += _tally(binner, seen)
        breathe()
        self._add_answers(arrays, integers, floats)
        return grown

    def _add_answers(self, arrays: Sequence[np.ndarray], integers: np.ndarray, floats: np.ndarray) -> None:
        named = dict(zip(self._outputs, arrays, strict=True))
        if self._answers:
            _observe(self._answers, self._read_outputs.read(named), integers, floats)
        for expected in self.layout.expected:
            cells = expected_cells(expected.output, arrays[expected.place], expected.positive)
            floats[expected.start : expected.start + len(expected.cells)] += [cells[cell] for cell in expected.cells]

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
            integers[slot.start : slot.stop] += _tally(binner, Counter(values.tolist() if isinstance(values, np.ndarray) else values))
            continue
        seen = binner.observe(values)
        integers[slot.start : slot.stop] += seen.counts
        _add_moments(floats, slot.moments, seen.total, seen.square)


def _stands_out(missing: Missing, binner: Binner) -> bool:
    """Whether a missing value can be told from all that training knew once the missing rule was applied."""
    return missing.rule != "sentinel" or binner.bin([missing.sentinel])[0] == binner.labels.index("unseen")


def _tally(binner: Binner, seen: Counter[Any]) -> np.ndarray:
    """Return how many values of one type fell into each bin, looking every different value up once."""
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
        self.slots = [slot for _, slot in columns]
        self._binners = [Binner(slot.variable) for slot in self.slots]
        points = [_points(slot.variable) for slot in self.slots]
        most = max(map(len, points), default=0)
        self._points = np.full((most, len(points), 1), math.inf)
        self._bins = np.zeros((len(points), most + 1), dtype=np.int64)
        for i, (slot, own) in enumerate(zip(self.slots, points, strict=True)):
            self._points[: len(own), i, 0] = own
            n = slot.variable.n_bins
            below, above = slot.start + n, slot.start + n + 1
            self._bins[i, : len(own) + 1] = [below, *range(slot.start, slot.start + len(own) - 1), above]
        self._rows = np.arange(len(points), dtype=np.intp)[:, None]
        self._missing = np.array([s.start + s.variable.labels.index("missing") for s in self.slots], dtype=np.int64)[:, None]
        self._center = np.array([s.variable.mean or 0.0 for s in self.slots])[:, None]
        reach = np.array([sum_reach(s.variable) for s in self.slots]).reshape(-1, 2)
        self._low, self._high = reach[:, :1], reach[:, 1:]

    def add_rows(self, columns: Sequence[Sequence[Any]], integers: np.ndarray, floats: np.ndarray, breathe: Callable[[], object]) -> None:
        """Add the counts of all columns of some rows."""
        if not self.slots:
            return
        mine = [columns[place] for place in self._places]
        X = np.array(mine, dtype=np.float64)  # None becomes NaN
        breathe()
        strange = (~np.isfinite(X)).sum(axis=1).tolist()
        if any(n and n != column.count(None) for n, column in zip(strange, mine, strict=True)):
            self._add_one_by_one(mine, integers, floats)  # a NaN or an infinity, which checked rows do not hold
        else:
            self.add(X, integers, floats)

    def add(self, X: np.ndarray, integers: np.ndarray, floats: np.ndarray) -> None:
        """Add the counts of all columns: float64 [columns, n], NaN for a missing number."""
        missing = np.isnan(X)
        whole = not missing.any()
        below = np.zeros(X.shape, dtype=np.int8)
        for points in self._points:
            below += points <= X
        bins = self._bins[self._rows, below]
        if not whole:
            bins = np.where(missing, self._missing, bins)
        integers += np.bincount(bins.ravel(), minlength=len(integers))
        distance = np.clip(X, self._low, self._high) - self._center
        if not whole:
            distance[missing] = 0.0
        totals, squares = distance.sum(axis=1).tolist(), np.einsum("ij,ij->i", distance, distance).tolist()
        for slot, total, square in zip(self.slots, totals, squares, strict=True):
            assert slot.moments is not None
            _add_moments(floats, slot.moments, total, square)

    def _add_one_by_one(self, columns: Sequence[Sequence[Any]], integers: np.ndarray, floats: np.ndarray) -> None:
        named = {slot.variable.name: column for slot, column in zip(self.slots, columns, strict=True)}
        _observe(list(zip(self.slots, self._binners, strict=True)), named, integers, floats)


def _points(variable: Variable) -> list[float]:
    if variable.minimum is None or variable.maximum is None:
        return [-math.inf, -math.inf]  # training never saw a number, so each is above what it saw
    return [variable.minimum, *variable.edges, math.nextafter(variable.maximum, math.inf)]
