"""Rows of different shapes: which may run together, padded to one shape, and how the padding is cut off their answers again.

Every row has a *shape key*: the shapes of its open inputs as they will run, padded where the manifest allows it (`batching.ragged`) and
the row's own everywhere else. Rows with equal keys may share an execution; rows with different keys never do, so none of them can make
another fail or be read at the wrong place.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from .errors import ExecutionError, InputError
from .manifest import Manifest, Ragged

Shape: TypeAlias = tuple[int, ...]
#: Per open input, in the order of `ShapePlan.inputs`, the shape one row runs with.
ShapeKey: TypeAlias = tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class OpenInput:
    """An input of the batch stages whose shape may differ between rows.

    Attributes:
        name: Its value's name.
        place: Where it is in an item.
        dtype: Element type; None for an item-stage output, which brings its own.
        field: Raw field to blame for a wrong length; None when an item stage made it of several.
    """

    name: str
    place: int
    dtype: np.dtype[Any] | None
    field: str | None


@dataclass(frozen=True, slots=True)
class Rows:
    """An input of a batch that is not stacked yet, so that it can be written to where it is wanted with one copy.

    Attributes:
        arrays: One array a row.
        row_shape: Shape of every row in the batch.
        pad_value: What stands beyond a row's own end; None where nothing may be padded.
    """

    arrays: Sequence[np.ndarray]
    row_shape: Shape
    pad_value: Any = None

    def __len__(self) -> int:
        return len(self.arrays)

    @property
    def shape(self) -> Shape:
        """Shape of the batch, [rows, *row_shape]."""
        return (len(self.arrays), *self.row_shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type of the batch."""
        return self.arrays[0].dtype

    def write(self, out: np.ndarray) -> None:
        """Fill `out`, of this batch's shape.

        Raises:
            ExecutionError: A row does not fit, or is shorter where nothing may be padded.
        """
        for row, array in zip(out, self.arrays, strict=True):
            if array.shape == self.row_shape:
                row[...] = array
                continue
            if (
                self.pad_value is None
                or array.ndim != len(self.row_shape)
                or any(a > b for a, b in zip(array.shape, self.row_shape, strict=True))
            ):
                raise ExecutionError(f"a row of shape {list(array.shape)} cannot run as one of shape {list(self.row_shape)}")
            row[...] = self.pad_value
            row[tuple(slice(length) for length in array.shape)] = array

    def stacked(self) -> np.ndarray:
        """Return the batch as an array of its own; ExecutionError as `write`."""
        out = np.empty(self.shape, dtype=self.dtype)
        self.write(out)
        return out


class _Axis:
    """One ragged length: where it is found in an item, and what it is padded to."""

    def __init__(self, declared: Ragged, inputs: Sequence[OpenInput]) -> None:
        self.declared = declared
        self.buckets = list(declared.buckets)
        self.members = [(number, one, declared.inputs[one.name].axis) for number, one in enumerate(inputs) if one.name in declared.inputs]

    def length(self, item: Sequence[Any]) -> int:
        """Return the row's own length; InputError when its inputs disagree."""
        _, first, axis = self.members[0]
        length = int(item[first.place].shape[axis])
        for _, other, place in self.members[1:]:
            found = item[other.place].shape[place]
            if found != length:
                raise InputError(
                    f"{_named(other)} has length {found} where {_named(first)} has {length}; they must be equally long",
                    code="wrong_shape",
                    field=other.field,
                )
        return length

    def target(self, length: int) -> int:
        """Return the length a row of `length` runs with; InputError when it is too long."""
        number = bisect_left(self.buckets, length)
        if number == len(self.buckets):
            if self.declared.beyond == "exact":
                return length
            first = self.members[0][1]
            raise InputError(
                f"{_named(first)} has length {length}; this model takes at most {self.buckets[-1]}", code="wrong_shape", field=first.field
            )
        bucket = self.buckets[number]
        return bucket if bucket - length <= self.declared.max_padding_ratio * bucket else length

    def mask(self, items: Sequence[Sequence[Any]], length: int) -> np.ndarray:
        mask = np.zeros((len(items), length), dtype=self.declared.mask_dtype)
        for row, item in zip(mask, items, strict=True):
            row[: self.length(item)] = 1
        return mask


class ShapePlan:
    """How the rows of one package run together although their shapes differ.

    Args:
        manifest: The package's manifest.
        inputs: The inputs that may differ in shape, at least one.

    Attributes:
        inputs: The same.
        cuts: Whether answers have padding that must be cut off.
    """

    def __init__(self, manifest: Manifest, inputs: Sequence[OpenInput]) -> None:
        self.inputs = tuple(inputs)
        known = {one.name for one in self.inputs}
        for axis in manifest.batching.ragged:
            if fixed := sorted(set(axis.inputs) - known):
                raise ExecutionError(f"batching.ragged names {fixed[0]!r}, whose shape the item stage's graph fixes")
        self._axes = [_Axis(axis, self.inputs) for axis in manifest.batching.ragged]
        # Per input, what may be padded: (its axis, number of the ragged length).
        self._padded: list[list[tuple[int, int]]] = [[] for _ in self.inputs]
        for number, ragged in enumerate(self._axes):
            for place, _, position in ragged.members:
                self._padded[place].append((position, number))
        self._pad_values = [self._pad_value(one) for one in self.inputs]
        outputs = [o.name for o in manifest.outputs]
        self._cut_axes = [(outputs.index(name), axis, ragged) for ragged in self._axes for name, axis in ragged.declared.outputs.items()]
        self.cuts = bool(self._cut_axes)

    def _pad_value(self, one: OpenInput) -> Any:
        """Return what fills up an input, in its element type; None when nothing may be padded."""
        values = {ragged.declared.inputs[one.name].pad_value for ragged in self._axes if one.name in ragged.declared.inputs}
        if not values:
            return None
        if len(values) > 1:
            raise ExecutionError(f"batching.ragged gives {one.name!r} several pad values: {', '.join(map(repr, values))}")
        value = values.pop()
        if one.dtype is not None and one.dtype.kind in "iub" and not _holds(one.dtype, value):
            raise ExecutionError(f"batching.ragged pads {one.name!r} with {value!r}, which {one.dtype} cannot hold")
        return value

    # --- keys -------------------------------------------------------------------------------------------------------

    def key(self, item: Sequence[Any]) -> ShapeKey:
        """Return the shape key of one item.

        Raises:
            InputError: A length is beyond the largest bucket, or inputs that must be equally long are not; it names the field.
        """
        targets = [axis.target(axis.length(item)) for axis in self._axes]
        return self._key(item, targets)

    def own_key(self, item: Sequence[Any]) -> ShapeKey:
        """Return the key the item would have if nothing were ever padded."""
        return tuple(item[one.place].shape for one in self.inputs)

    def bucket_keys(self, item: Sequence[Any]) -> list[ShapeKey]:
        """Return the key of every bucket (every combination of them when there are several lengths), smallest first.

        Args:
            item: Any item: what is not padded is as it is there.
        """
        if not self._axes:
            return []
        return [self._key(item, targets) for targets in itertools.product(*(axis.buckets for axis in self._axes))]

    def fits(self, item: Sequence[Any], key: ShapeKey) -> bool:
        """Whether an item may be padded to `key`, whatever that wastes."""
        if not self._padded_only(item, key):
            return False
        return all(a <= b for mine, wanted in zip(self.own_key(item), key, strict=True) for a, b in zip(mine, wanted, strict=True))

    def is_padded(self, item: Sequence[Any], key: ShapeKey) -> bool:
        """Whether an item runs with padding under `key`."""
        return self.own_key(item) != key

    def cropped(self, item: Sequence[Any], key: ShapeKey) -> tuple[Any, ...]:
        """Return the item with what exceeds `key` cut away: of no meaning, but of the shape a warm-up needs."""
        values = list(item)
        for one, shape in zip(self.inputs, key, strict=True):
            values[one.place] = np.ascontiguousarray(values[one.place][tuple(slice(length) for length in shape)])
        return tuple(values)

    def _padded_only(self, item: Sequence[Any], key: ShapeKey) -> bool:
        """Whether `item` and `key` agree in everything that may not be padded."""
        for mine, wanted, padded in zip(self.own_key(item), key, self._padded, strict=True):
            if len(mine) != len(wanted):
                return False
            open_axes = {axis for axis, _ in padded}
            if any(a != b for axis, (a, b) in enumerate(zip(mine, wanted, strict=True)) if axis not in open_axes):
                return False
        return True

    def _key(self, item: Sequence[Any], targets: Sequence[int]) -> ShapeKey:
        shapes = []
        for one, padded in zip(self.inputs, self._padded, strict=True):
            shape = item[one.place].shape
            if padded:
                wanted = list(shape)
                for axis, number in padded:
                    wanted[axis] = targets[number]
                shape = tuple(wanted)
            shapes.append(shape)
        return tuple(shapes)

    # --- batches ----------------------------------------------------------------------------------------------------

    def feeds(self, items: Sequence[Sequence[Any]], key: ShapeKey) -> dict[str, Rows | np.ndarray]:
        """Return the open inputs of a batch, and the masks that say what in them is padding.

        Args:
            items: Rows that share `key`, or at least fit into it.
            key: The shapes they run with.
        """
        feeds: dict[str, Rows | np.ndarray] = {}
        for one, shape, value in zip(self.inputs, key, self._pad_values, strict=True):
            feeds[one.name] = Rows([item[one.place] for item in items], shape, value)
        for ragged in self._axes:
            if ragged.declared.mask is not None:
                number, _, axis = ragged.members[0]
                feeds[ragged.declared.mask] = ragged.mask(items, key[number][axis])
        return feeds

    def cut(self, arrays: Sequence[np.ndarray], items: Sequence[Sequence[Any]]) -> list[tuple[int, list[np.ndarray]]]:
        """Cut the padding off the outputs of a batch.

        Args:
            arrays: Per output [rows, *shape], as the batch gave them.
            items: Its rows.

        Returns:
            (how many rows, their outputs) for each run of consecutive rows whose outputs have one shape.
        """
        lengths = [tuple(ragged.length(item) for _, _, ragged in self._cut_axes) for item in items]
        pieces: list[tuple[int, list[np.ndarray]]] = []
        start = 0
        for same, run in itertools.groupby(lengths):
            stop = start + len(list(run))
            mine = [array[start:stop] for array in arrays]
            for (output, axis, _), length in zip(self._cut_axes, same, strict=True):
                mine[output] = mine[output][(slice(None),) * (axis + 1) + (slice(length),)]
            pieces.append((stop - start, mine))
            start = stop
        return pieces

    # --- counting ---------------------------------------------------------------------------------------------------

    @staticmethod
    def elements(key: ShapeKey) -> int:
        """Return how many elements one row has in its open inputs when it runs under `key`."""
        return sum(map(math.prod, key))

    def own_elements(self, item: Sequence[Any]) -> int:
        """Return how many elements a row has in its open inputs of its own."""
        return sum(int(item[one.place].size) for one in self.inputs)

    def describe(self, key: ShapeKey) -> str:
        """Return a key as words: `ids [64]`."""
        return ", ".join(f"{one.name} {list(shape)}" for one, shape in zip(self.inputs, key, strict=True))


def grouped(keys: Iterable[ShapeKey]) -> dict[ShapeKey, list[int]]:
    """Return key → places of the rows that have it, keys in order of their first row."""
    groups: dict[ShapeKey, list[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(key, []).append(place)
    return groups


def _holds(dtype: np.dtype[Any], value: Any) -> bool:
    try:
        return bool(dtype.type(value) == value)
    except OverflowError:
        return False


def _named(one: OpenInput) -> str:
    return f"field {one.field!r}" if one.field is not None else f"{one.name!r}, made of this instance by the item stage,"
