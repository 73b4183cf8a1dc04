"""How a variable's counts are shown to people: equal-width columns, the few words beside them, and a line of block characters.

Deciles hold a tenth each, so drawing counts per bin would draw a flat line. Shown is how the rows lie along the axis: a bin's rows are
spread evenly between its bounds and gathered in columns of equal width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

from .baseline import Variable

#: An axis of positive numbers that spans more than this factor is logarithmic.
LOG_FROM = 100.0
_BLOCKS = " ▁▂▃▄▅▆▇█"


def is_log(variable: Variable) -> bool:
    """Whether the axis of a number is logarithmic."""
    low, high = variable.minimum, variable.maximum
    return low is not None and high is not None and low > 0 and high > max(1.0, LOG_FROM * low)  # shares and probabilities stay linear


def columns(variable: Variable, n: int, counts: Sequence[int] | None = None) -> list[float]:
    """Return how some rows lie along a number's axis: their share in each of `n` columns of equal width.

    Args:
        variable: A number; empty when its baseline holds none.
        n: How many columns.
        counts: Rows per bin, in the order of `labels`; None is the baseline's own.
    """
    counts = variable.counts if counts is None else counts
    total = sum(counts) or 1
    shares = [0.0] * (n if variable.bounds else 0)
    for (low, high), count in zip(_spans(variable), counts, strict=False):
        for column, part in _parts(low * n, high * n, n):
            shares[column] += count / total * part
    return shares


def _parts(low: float, high: float, n: int) -> list[tuple[int, float]]:
    """Return the columns that the stretch from `low` to `high` reaches, with the part of it in each."""
    reached = range(min(math.floor(low), n - 1), max(min(math.ceil(high), n), min(math.floor(low), n - 1) + 1))
    overlaps = [max(min(high, column + 1) - max(low, column), 0.0) for column in reached]
    whole = sum(overlaps)
    if not whole:  # too narrow for a float to tell its ends apart
        return [(reached[0], 1.0)]
    return [(column, overlap / whole) for column, overlap in zip(reached, overlaps, strict=True)]


def _spans(variable: Variable) -> list[tuple[float, float]]:
    """Return where each bin lies on an axis from 0 to 1."""
    at: Callable[[float], float] = math.log if is_log(variable) else float
    bounds = [(at(low) / 2, at(high) / 2) for low, high in variable.bounds]  # halved, or the range of the largest floats is infinite
    if len(bounds) < 2:
        return [(0.0, 1.0) for _ in bounds]
    if bounds[-1][0] == bounds[-1][1]:
        # The last bin is one number. It gets a width like the others, or it would stand like a needle beside them.
        bounds[-1] = (bounds[-1][0], bounds[-1][0] + median(high - low for low, high in bounds[:-1]))
    start, whole = bounds[0][0], bounds[-1][1] - bounds[0][0]
    return [((low - start) / whole, (high - start) / whole) for low, high in bounds]


def category_shares(variable: Variable) -> list[tuple[str, float]]:
    """Return every category (or false and true) with its share of all rows, most frequent first."""
    total = variable.rows or 1
    found = [(variable.describe(label), n / total) for label, n in zip(variable.labels, variable.counts[: variable.n_bins], strict=False)]
    return found if variable.kind == "boolean" else sorted(found, key=lambda pair: -pair[1])


def special_shares(variable: Variable) -> list[tuple[str, float]]:
    """Return the special bins that hold rows, with their share of all rows."""
    total = variable.rows or 1
    pairs = zip(variable.labels, variable.counts, strict=True)
    return [(label, n / total) for i, (label, n) in enumerate(pairs) if n and i >= variable.n_bins]


def sparkline(variable: Variable, width: int) -> str:
    """Return a histogram of block characters, at most `width` wide; what holds rows is never blank."""
    shares = columns(variable, width) if variable.kind == "numeric" else [share for _, share in category_shares(variable)][:width]
    tallest = max(shares, default=0.0)
    if not tallest:
        return ""
    return "".join(_BLOCKS[0 if not share else max(1, math.ceil(share / tallest * 8 - 1e-9))] for share in shares)


def percent(share: float) -> str:
    """Return a share as people write it, never 0 % for something or 100 % for less than all."""
    if 0 < share < 0.001:
        return "<0.1 %"
    return ">99.9 %" if 0.999 < share < 1 else f"{share * 100:.3g} %"


def words(variable: Variable, most: int = 4) -> str:
    """Return the facts beside a histogram: range, mean and deviation, or the most frequent values; then the special bins."""
    parts = []
    if variable.kind == "numeric" and variable.minimum is not None and variable.maximum is not None:
        parts.append(number_words(variable))
    elif variable.kind == "boolean":
        parts.append(f"true {percent(category_shares(variable)[1][1])}")
    elif variable.kind == "categorical":
        shares = [pair for pair in category_shares(variable) if pair[1]]
        listed = ", ".join(f"{value} {percent(share)}" for value, share in shares[:most])
        rest = f" and {len(shares) - most} more" if len(shares) > most else ""
        parts += [f"{listed}{rest}"] if shares else []
    parts += [f"{label} {percent(share)}" for label, share in special_shares(variable)]
    return "; ".join(parts) or "no rows"


def number_words(variable: Variable) -> str:
    """Return range, mean and deviation of a number."""
    assert variable.minimum is not None
    assert variable.maximum is not None
    assert variable.mean is not None
    span = f"{short(variable.minimum)} to {short(variable.maximum)}" if variable.minimum < variable.maximum else short(variable.minimum)
    scale = " (log scale)" if is_log(variable) else ""
    unit = f" {variable.unit}" if variable.unit and " " not in variable.unit and variable.unit != "share" else ""
    return f"{span}{unit}{scale}, mean {short(variable.mean)} ± {short(variable.std or 0.0)}"


def short(value: float) -> str:
    """Return a number in at most about seven characters."""
    size = abs(value)
    return f"{value:,.0f}" if 10_000 <= size < 1e7 else f"{value:.0f}" if 1000 <= size < 10_000 else f"{value:.4g}"
