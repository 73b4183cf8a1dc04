"""Looking 200 times at experiments with and without an effect: how often each method is wrong, and how soon it is right.

PEEKING_RUNS=2000 repeats each simulation that often; docs/ab-testing.md has the figures of such a run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from samegraph_service.experiments.analysis import clusters, sample_ratio, sequences
from samegraph_service.experiments.analysis.clusters import Difference, Moments, check_shares, difference
from samegraph_service.experiments.analysis.report import LEAST_BUCKETS, LEAST_EFFECTIVE_N

RUNS = int(os.environ.get("PEEKING_RUNS", "40"))
LOOKS = 200
G = clusters.BUCKETS


def at_most(share: float, runs: int) -> float:
    """Return the share of `runs` that a true share stays below, but for one time in ten thousand."""
    return share + 3.72 * math.sqrt(share * (1 - share) / runs)


def at_least(share: float, runs: int) -> float:
    return share - 3.72 * math.sqrt(share * (1 - share) / runs)


def shown(**figures: float) -> None:
    """Print what a long run found, for the page that cites it."""
    print(f"\n{RUNS} runs:", ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))


# --- independent requests, as the tables have them -----------------------------------------------------------------------


@dataclass
class Independent:
    """One run of 20,000 requests per arm: successes at each of 200 looks."""

    n: np.ndarray
    a: np.ndarray
    b: np.ndarray


def independent(rate: float, other: float, seed: int) -> Iterator[Independent]:
    rng = np.random.default_rng(seed)
    n = np.arange(1, LOOKS + 1) * (20_000 // LOOKS)
    for _ in range(RUNS):
        a, b = (np.cumsum(rng.binomial(20_000 // LOOKS, p, LOOKS)) for p in (rate, other))
        yield Independent(n, a, b)


def stopped(run: Independent) -> dict[str, int]:
    """Return method → requests per arm at which it first calls the arms different; 0 for never."""
    first = {"fixed": 0, "sequence": 0, "count_2": 0, "count_100": 0}
    for n, a, b in zip(run.n.tolist(), run.a.tolist(), run.b.tolist(), strict=True):
        pa, pb = a / n, b / n
        variance = (pa * (1 - pa) + pb * (1 - pb)) / n
        called = {
            "fixed": sequences.fixed_p_value(pb - pa, variance) < 0.05,
            "sequence": sequences.p_value(pb - pa, variance, 2 * n) < 0.05,
            "count_2": sample_ratio.sequential_p_value([a, b], [1, 1], 2) < 0.05,
            "count_100": sample_ratio.sequential_p_value([a, b], [1, 1], 100) < 0.05,
        }
        for method, found in called.items():
            if found and not first[method]:
                first[method] = n
    return first


def test_200_looks_at_no_effect() -> None:
    """The fixed test calls a difference in about 41 % of experiments that have none; sequences in fewer than 5 %."""
    found = [stopped(run) for run in independent(0.1, 0.1, 1)]
    wrong = {method: sum(one[method] > 0 for one in found) / RUNS for method in found[0]}
    shown(**wrong)
    assert wrong["fixed"] > at_least(0.41, RUNS)
    for method, share in (("sequence", 0.024), ("count_2", 0.009), ("count_100", 0.015)):
        assert wrong[method] <= min(at_most(share, RUNS), at_most(0.05, RUNS)), method
    assert wrong["sequence"] <= at_most(0.05, RUNS)


def test_200_looks_at_a_planted_effect() -> None:
    """From 0.10 to 0.12: power and the median number of requests per arm are those of the tables, within a few per cent."""
    found = [stopped(run) for run in independent(0.1, 0.12, 2)]
    tables = {"sequence": (0.999, 3900), "count_2": (0.996, 6200), "count_100": (0.999, 4500)}
    for method, (power, median) in tables.items():
        stops = [one[method] for one in found if one[method]]
        shown(**{f"{method}_power": len(stops) / RUNS, f"{method}_median": float(np.median(stops))})
        assert len(stops) / RUNS >= at_least(power, RUNS) - 0.01, method
        assert np.median(stops) == pytest.approx(median, rel=0.04 + 2.5 / math.sqrt(RUNS)), method


# --- sticky units with heavy-tailed numbers of requests -----------------------------------------------------------------


@dataclass
class Sticky:
    """One run: cumulative counts by look, arm and bucket."""

    n: np.ndarray
    s: np.ndarray

    def moments(self, look: int, arm: int) -> Moments:
        n, s = (tuple(x[look, arm].astype(float).tolist()) for x in (self.n, self.s))
        return Moments(n, s, s)


def sticky(lift: float, seed: int, *, units: int = 3000, runs: int = RUNS, unit_spread: float = 4.0) -> Iterator[Sticky]:
    """Yield runs in which a unit keeps its arm, has a rate of its own and comes a Pareto-tailed number of times, in random order."""
    rng = np.random.default_rng(seed)
    for _ in range(runs):
        times = np.minimum(300, np.ceil(3 * (1 + rng.pareto(1.7, units)))).astype(int)
        arm, bucket = rng.integers(0, 2, units), rng.integers(0, G, units)
        rate = np.clip(rng.beta(0.3 * unit_spread, 0.7 * unit_spread, units) + lift * arm, 0, 1)
        unit = rng.permutation(np.repeat(np.arange(units), times))
        outcome = rng.random(len(unit)) < rate[unit]
        look = np.arange(len(unit)) * LOOKS // len(unit)
        place = (look * 2 + arm[unit]) * G + bucket[unit]
        n = np.bincount(place, minlength=LOOKS * 2 * G).reshape(LOOKS, 2, G)
        s = np.bincount(place, outcome, minlength=LOOKS * 2 * G).reshape(LOOKS, 2, G)
        yield Sticky(n.cumsum(0), s.cumsum(0))


def decides(found: Difference | None) -> bool:
    """Whether the report would call it decided."""
    if found is None or found.effective_n < LEAST_EFFECTIVE_N or found.buckets < LEAST_BUCKETS:
        return False
    return found.p_value() < 0.05


def naive(a: Moments, b: Moments) -> bool:
    """Whether the usual test, over requests and made for one look, calls a difference."""
    variance = a.request_variance + b.request_variance
    return min(a.count, b.count) > 30 and sequences.fixed_p_value(b.mean - a.mean, variance) < 0.05


def test_sticky_units_and_200_looks_at_no_effect() -> None:
    """The usual test is wrong nearly always, a sequence over requests often, the report in at most 5 %; one-sided and ratio likewise."""
    usual = requests = reported = harmful = ratio = 0
    for run in sticky(0.0, 3):
        pairs = [(run.moments(look, 0), run.moments(look, 1)) for look in range(LOOKS)]
        found = [difference(a, b) for a, b in pairs]
        usual += any(naive(a, b) for a, b in pairs)
        requests += any(
            sequences.p_value(b.mean - a.mean, a.request_variance + b.request_variance, a.count + b.count) < 0.05
            for a, b in pairs
            if min(a.count, b.count) > 200
        )
        reported += any(map(decides, found))
        harmful += any(d is not None and d.buckets >= LEAST_BUCKETS and d.n >= 400 and d.one_sided_p_value() < 0.05 for d in found)
        ratio += any(check_shares([a.n, b.n], [1, 1]).p < 0.05 for a, b in pairs[1:])
    shown(usual=usual / RUNS, requests=requests / RUNS, reported=reported / RUNS, harmful=harmful / RUNS, ratio=ratio / RUNS)
    assert usual / RUNS > 0.5
    for count in (reported, harmful, ratio):
        assert count / RUNS <= at_most(0.05, RUNS)


def test_sticky_units_and_a_planted_effect() -> None:
    """In units of the design effect a planted effect is found about as soon as among independent requests."""
    stops, effects, runs = [], [], max(40, RUNS // 4)
    for run in sticky(0.03, 4, units=12_000, runs=runs, unit_spread=6.0):
        for look in range(LOOKS):
            found = difference(run.moments(look, 0), run.moments(look, 1))
            if decides(found):
                assert found is not None
                stops.append(found.effective_n / 2)
                effects.append(found.design_effect)
                break
    expected = median_stop(0.30, 0.33, seed=5)
    shown(power=len(stops) / runs, median=float(np.median(stops)), expected=expected, design_effect=float(np.median(effects)))
    assert len(stops) / runs >= 0.9
    assert np.median(effects) > 1.2
    assert np.median(stops) == pytest.approx(expected, rel=0.2 + 2 / math.sqrt(runs))


def median_stop(rate: float, other: float, seed: int) -> float:
    """Return the median of independent observations per arm at which the sequence decides."""
    return float(np.median([s for run in independent(rate, other, seed) if (s := stopped(run)["sequence"])]))
