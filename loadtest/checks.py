"""Thresholds: what a run must have shown. Each is a sentence with a figure, a bound and a verdict; any that fails sets the exit code."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import NormalDist, median

from .record import Record


@dataclass(frozen=True)
class Check:
    """One threshold.

    Attributes:
        what: What was looked at.
        figure: What was seen, in words.
        bound: What was asked for, in words.
        met: Whether it was.
    """

    what: str
    figure: str
    bound: str
    met: bool


def at_most(what: str, value: float, bound: float, unit: str = "") -> Check:
    """Return a check that `value` is at most `bound`; NaN is never met."""
    return Check(what, _words(value, unit), f"≤ {_words(bound, unit)}", value <= bound)


def at_least(what: str, value: float, bound: float, unit: str = "") -> Check:
    """Return a check that `value` is at least `bound`; NaN is never met."""
    return Check(what, _words(value, unit), f"≥ {_words(bound, unit)}", value >= bound)


def answered(record: Record) -> Iterator[Check]:
    """Yield what every scenario must show: every item was answered, and rightly; the generator kept up."""
    yield at_least("items", len(record.items), 1)
    yield at_most("items without an answer", record.lost(), 0)
    yield at_most("answers that are not the golden ones", len(record.wrong()), 0)


def bursts(record: Record, *, attempts: float, makespan_ratio: float | None = None, hint_hits: float | None = None) -> Iterator[Check]:
    """Yield what a burst must show."""
    yield at_most("attempts an item of the burst", record.attempts_per_item("burst"), attempts)
    if hint_hits is not None:
        ratio = record.hint_hit_ratio
        yield at_least("returns after a hint that were let in", math.nan if ratio is None else ratio, hint_hits)
    if makespan_ratio is not None:
        ratios = [burst.makespan_s / burst.lower_bound_s for burst in record.bursts if burst.lower_bound_s]
        # The median: one burst in three meets whatever else the machine does in these two seconds.
        yield at_most("makespan over its lower bound, median burst", median(ratios) if ratios else math.nan, makespan_ratio)


def computed_in_vain(record: Record, most: int) -> Iterator[Check]:
    """Yield how many instances were computed more often than once, as the servers themselves count (for items of one instance)."""
    executed = math.nan if record.executed is None else record.executed
    yield at_most("instances computed beyond one an item", executed - len(record.items), most)


def punctual(record: Record, role: str, *, late_s: float) -> Iterator[Check]:
    """Yield whether open arrivals were sent when they were due; otherwise no latency in the report means anything."""
    late = [item.sent - item.due for item in record.of(role)]
    worst = sorted(late)[math.ceil(0.99 * len(late)) - 1] if late else math.nan
    yield at_most(f"generator late for {role}, 99th percentile", worst, late_s, "s")


def sticky(record: Record) -> Iterator[Check]:
    """Yield that every unit kept its arm."""
    arms: dict[str, Counter[str]] = defaultdict(Counter)
    for item in record.items:
        if item.ok and item.unit:
            arms[item.unit][item.arm] += 1
    yield at_least("units seen more than once", sum(sum(counts.values()) > 1 for counts in arms.values()), 1)
    yield at_most("units that saw more than one arm", sum(len(counts) > 1 for counts in arms.values()), 0)


def shares(record: Record, weights: Mapping[str, float], *, alpha: float = 1e-4) -> Iterator[Check]:
    """Yield that the arms' shares of *units* are their weights', within binomial bounds (normal approximation, Bonferroni)."""
    units = {item.unit: item.arm for item in record.items if item.ok and item.unit}
    n, total = len(units), sum(weights.values())
    z = NormalDist().inv_cdf(1 - alpha / (2 * len(weights)))
    counts = Counter(units.values())
    for arm, weight in weights.items():
        share = weight / total
        bound = z * math.sqrt(share * (1 - share) / n) if n else math.nan
        seen = counts[arm] / n if n else math.nan
        yield Check(f"share of units in arm {arm}", f"{seen:.4f}", f"{share:.4f} ± {bound:.4f}", abs(seen - share) <= bound)


def _words(value: float, unit: str) -> str:
    number = f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"
    return f"{number} {unit}".rstrip()
