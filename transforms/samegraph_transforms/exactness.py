"""How far apart two arrays are, and whether that is within what was promised.

Distances are counted in ULP (units in the last place): how many representable numbers lie between two floats of the same type.
NaN equals NaN whatever its payload, +0.0 and −0.0 are 0 apart, and an infinity is near nothing but itself.

An element of a float tensor passes when any one of the three bounds of `manifest.Tolerance` holds; integers, booleans and strings
must be equal. A label may differ only in a place where the reference itself was undecided: see `Deciding`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .manifest import Measured, Tolerance

#: The distance between values that no number of steps connects: NaN, or an infinity, and anything else.
UNREACHABLE = 2**64 - 1
_UNSIGNED: dict[int, Any] = {2: np.uint16, 4: np.uint32, 8: np.uint64}


def ulp_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Count the representable numbers between `a` and `b`, element by element.

    Args:
        a: float16, float32 or float64 of any shape.
        b: Same dtype and shape.

    Returns:
        uint64 of the same shape: 0 for equal values, for two NaN and for zeros of either sign; `UNREACHABLE` where exactly one is
        NaN, or the values differ and one is infinite.

    Raises:
        TypeError: Dtypes differ or are not floats.
    """
    if a.dtype != b.dtype or a.dtype.kind != "f" or a.dtype.itemsize not in _UNSIGNED:
        raise TypeError(f"ULP distance needs two float arrays of one type; got {a.dtype} and {b.dtype}")
    x, y = _ordered(a), _ordered(b)
    distance = np.where(x > y, x - y, y - x)
    same = (np.isnan(a) & np.isnan(b)) | (a == b)
    result: np.ndarray = np.where(same, np.uint64(0), np.where(np.isfinite(a) & np.isfinite(b), distance, np.uint64(UNREACHABLE)))
    return result


def _ordered(values: np.ndarray) -> np.ndarray:
    """Map floats to uint64 so that order and adjacency are kept and both zeros meet in the middle."""
    bits = values.dtype.itemsize * 8
    native = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
    raw = native.view(_UNSIGNED[values.dtype.itemsize]).astype(np.uint64).reshape(values.shape)
    sign = np.uint64(1 << (bits - 1))
    magnitude = raw & np.uint64((1 << (bits - 1)) - 1)
    ordered: np.ndarray = np.where(raw & sign != 0, sign - magnitude, sign + magnitude)
    return ordered


def bound(reference: np.ndarray, tolerance: Tolerance) -> np.ndarray:
    """Return the largest absolute difference `tolerance` allows at each element of the float array `reference`, as float64."""
    exact = np.nan_to_num(reference.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    magnitude = np.abs(exact)
    largest = float(magnitude.max(initial=0.0))
    limits = np.finfo(reference.dtype)
    # np.spacing of the largest finite number is infinite; half of float's range above it is not.
    step = np.spacing(np.minimum(np.abs(exact), float(limits.max) / 2).astype(reference.dtype)).astype(np.float64)
    allowed = np.maximum(tolerance.ulp * step, tolerance.atol + tolerance.rtol * magnitude)
    result: np.ndarray = np.maximum(allowed, tolerance.relative_to_max * largest)
    return result


@dataclass(frozen=True)
class Difference:
    """One element that differs.

    Attributes:
        index: Its place in the array.
        expected: The reference's value.
        got: The package's value.
        ulp: Steps between them; None when the elements are not floats.
    """

    index: tuple[int, ...]
    expected: Any
    got: Any
    ulp: int | None

    def __str__(self) -> str:
        place = f"element [{', '.join(map(str, self.index))}]"
        text = f"{place}: expected {_shown(self.expected)}, got {_shown(self.got)}"
        if self.ulp is None:
            return text
        return f"{text} ({'no number of' if self.ulp == UNREACHABLE else format(self.ulp, ',')} ULP apart)"


@dataclass(frozen=True)
class Flip:
    """A label that differs where the reference was undecided, which is allowed and counted.

    Attributes:
        index: Place in the label array; the first number is the instance.
        expected: The reference's label.
        got: The package's label.
        margin: How far the reference's score was from the next one.
        bound: How far a score may move under the promise.
    """

    index: tuple[int, ...]
    expected: Any
    got: Any
    margin: float
    bound: float


@dataclass(frozen=True)
class Comparison:
    """What came of comparing one tensor.

    Attributes:
        tensor: Its name.
        passed: Whether every element is within the promise.
        elements: How many were compared.
        different: How many are not equal.
        max_ulp: Largest distance in ULP (0 for other types than floats).
        max_abs: Largest absolute difference of numbers; infinite when a value is `UNREACHABLE`.
        first: The first element that breaks the promise, or else the first that differs.
        flips: Labels that differ within the margin rule.
        mismatch: Why the arrays cannot be compared at all (dtype or shape).
    """

    tensor: str
    passed: bool
    elements: int = 0
    different: int = 0
    max_ulp: int = 0
    max_abs: float = 0.0
    first: Difference | None = None
    flips: tuple[Flip, ...] = ()
    mismatch: str | None = None

    @property
    def detail(self) -> str:
        """One line: what differs first and how far apart things are; `equal` when nothing differs."""
        if self.mismatch:
            return self.mismatch
        if self.first is None:
            return "equal"
        return f"{self.first}; {self.different:,} of {self.elements:,} elements differ, at most {self.max_abs:.3g}"

    def at(self, rows: np.ndarray) -> Comparison:
        """Return the same comparison with the instance numbers of its places looked up in `rows`."""
        first = replace(self.first, index=_moved(self.first.index, rows)) if self.first else None
        return replace(self, first=first, flips=tuple(replace(f, index=_moved(f.index, rows)) for f in self.flips))


def _moved(index: tuple[int, ...], rows: np.ndarray) -> tuple[int, ...]:
    return (int(rows[index[0]]), *index[1:]) if index else index


@dataclass(frozen=True)
class Deciding:
    """The scores a label is chosen from, in the reference, and what is promised for them.

    A label may differ only where the reference's margin is **below** the bound of the scores it was chosen from:

    - labels [n, …] with scores [n, …, c]: the margin is the best score minus the second best;
    - labels [n, k] with scores [n, c], c ≥ k (the k best, in order): place by place, the margin is the distance to the nearest
      neighbour in rank, so that a tie may swap two places; when only the k best scores are there, nothing is known about what
      follows the last place and only its upper neighbour counts;
    - one score per instance (shape [n] or [n, 1]): it is read as the probability of the second of two classes, so the margin is
      |2·score − 1|.

    The bound is the largest that `tolerance` allows for any of the instance's scores.

    Attributes:
        scores: Reference scores, floats.
        tolerance: The promise for the scores.
    """

    scores: np.ndarray
    tolerance: Tolerance

    def margins(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Return margin and bound for every place of `labels`, or None when the shapes do not fit the rule."""
        scores = self.scores
        if scores.dtype.kind != "f" or scores.ndim == 0 or scores.size == 0:
            return None
        limits = bound(scores, self.tolerance)
        if (scores.shape == labels.shape and labels.ndim <= 1) or scores.shape == (*labels.shape, 1):
            flat = scores.astype(np.float64).reshape(labels.shape)
            return np.abs(2 * flat - 1), limits.reshape(labels.shape)
        widest = limits.max(axis=-1)
        gaps = _gaps(scores)
        if scores.shape[:-1] == labels.shape:
            return gaps[..., 0], widest
        if scores.shape[:-1] == labels.shape[:-1] and scores.shape[-1] >= labels.shape[-1]:
            return _nearest(gaps, labels.shape[-1]), np.broadcast_to(widest[..., None], labels.shape)
        return None


def _gaps(scores: np.ndarray) -> np.ndarray:
    """Return the distances between scores that follow each other in rank, best first: [..., c] → [..., c − 1]."""
    ranked = -np.sort(-scores.astype(np.float64), axis=-1)
    with np.errstate(invalid="ignore"):
        gaps: np.ndarray = ranked[..., :-1] - ranked[..., 1:]
    return gaps


def _nearest(gaps: np.ndarray, k: int) -> np.ndarray:
    """Return for each of the first `k` ranks the distance to its nearer neighbour in rank."""
    open_end = np.full((*gaps.shape[:-1], 1), np.inf)
    padded = np.concatenate([open_end, gaps, open_end], axis=-1)
    nearest: np.ndarray = np.minimum(padded[..., :k], padded[..., 1 : k + 1])
    return nearest


def compare(
    expected: np.ndarray, actual: np.ndarray, tolerance: Tolerance, *, tensor: str = "", decided_by: Deciding | None = None
) -> Comparison:
    """Compare `actual` with the reference `expected`.

    Args:
        expected: The training code's array: floats, integers, booleans, or strings (`str` dtype or objects).
        actual: The package's array.
        tolerance: The promise, used for floats only.
        tensor: Name for the result.
        decided_by: For labels, the reference scores they are chosen from.

    Returns:
        The comparison; a differing dtype or shape fails it with a reason.
    """
    mismatch = _mismatch(expected, actual)
    if mismatch:
        return Comparison(tensor, passed=False, elements=int(expected.size), different=int(expected.size), mismatch=mismatch)
    if expected.dtype.kind == "f":
        return _compare_floats(expected, actual, tolerance, tensor)
    return _compare_exact(expected, actual, tensor, decided_by)


def _mismatch(expected: np.ndarray, actual: np.ndarray) -> str | None:
    if _kind(expected) != _kind(actual):
        return f"expected dtype {_kind(expected)}, got {_kind(actual)}; capture the reference in the type the package promises"
    if expected.shape != actual.shape:
        return f"expected shape {list(expected.shape)}, got {list(actual.shape)}"
    return None


def _kind(array: np.ndarray) -> str:
    return "string" if array.dtype.kind in "OUT" else array.dtype.newbyteorder("=").name


def _compare_floats(expected: np.ndarray, actual: np.ndarray, tolerance: Tolerance, tensor: str) -> Comparison:
    distance = ulp_distance(expected, actual)
    different = distance != 0
    if not different.any():
        return Comparison(tensor, passed=True, elements=int(expected.size))
    reachable = distance != np.uint64(UNREACHABLE)
    # Differences only where both are finite: the rest is UNREACHABLE or equal already.
    safe_expected, safe_actual = (np.where(reachable & np.isfinite(a), a, 0).astype(np.float64) for a in (expected, actual))
    with np.errstate(over="ignore"):  # two huge float64 of opposite sign: an infinite difference is the truth
        gap = np.abs(safe_expected - safe_actual)
    within = ~different | (reachable & ((distance <= np.uint64(tolerance.ulp)) | (gap <= bound(expected, _without_ulp(tolerance)))))
    return Comparison(
        tensor,
        passed=bool(within.all()),
        elements=int(expected.size),
        different=int(different.sum()),
        max_ulp=int(distance.max()),
        max_abs=float(gap.max()) if reachable.all() else float("inf"),
        first=_first(different if within.all() else ~within, expected, actual, distance),
    )


def _without_ulp(tolerance: Tolerance) -> Tolerance:
    """Return `tolerance` without its ULP bound, which is counted in steps and not as a difference."""
    return tolerance.model_copy(update={"ulp": 0})


def _compare_exact(expected: np.ndarray, actual: np.ndarray, tensor: str, decided_by: Deciding | None) -> Comparison:
    different = np.asarray(expected != actual, dtype=np.bool_)
    if not different.any():
        return Comparison(tensor, passed=True, elements=int(expected.size))
    excused, flips = _excused(expected, actual, different, decided_by)
    broken = different & ~excused
    return Comparison(
        tensor,
        passed=not broken.any(),
        elements=int(expected.size),
        different=int(different.sum()),
        max_abs=_largest_integer_gap(expected, actual, different),
        first=_first(broken if broken.any() else different, expected, actual, None),
        flips=flips,
    )


def _excused(
    expected: np.ndarray, actual: np.ndarray, different: np.ndarray, decided_by: Deciding | None
) -> tuple[np.ndarray, tuple[Flip, ...]]:
    found = decided_by.margins(expected) if decided_by is not None else None
    if found is None:
        return np.zeros_like(different), ()
    margins, bounds = found
    excused = different & (margins < bounds)  # NaN margins are never below
    flips = tuple(
        Flip(index, _scalar(expected[index]), _scalar(actual[index]), float(margins[index]), float(bounds[index]))
        for index in (tuple(int(i) for i in place) for place in np.argwhere(excused))
    )
    return excused, flips


def _largest_integer_gap(expected: np.ndarray, actual: np.ndarray, different: np.ndarray) -> float:
    if expected.dtype.kind not in "iub":
        return 0.0
    return float(max(abs(int(a) - int(b)) for a, b in zip(expected[different].tolist(), actual[different].tolist(), strict=True)))


def _first(places: np.ndarray, expected: np.ndarray, actual: np.ndarray, distance: np.ndarray | None) -> Difference:
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(places)), places.shape))
    return Difference(index, _scalar(expected[index]), _scalar(actual[index]), None if distance is None else int(distance[index]))


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) and not isinstance(value, np.floating) else value


def _shown(value: Any) -> str:
    # repr(float) has the digits that tell two float64 apart; numpy's str has them for its narrower types.
    text = str(value) if isinstance(value, np.floating) else repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def merge(a: Measured, b: Comparison) -> Measured:
    """Return `a` with comparison `b` of the same tensor added."""
    return Measured(
        tensor=a.tensor,
        elements=a.elements + b.elements,
        different=a.different + b.different,
        max_ulp=max(a.max_ulp, b.max_ulp),
        max_abs=max(a.max_abs, b.max_abs),
        flips=a.flips + len(b.flips),
    )
