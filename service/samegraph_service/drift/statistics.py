"""How far a window has moved from the baseline: pure functions on arrays of counts, and the rule that makes an alarm of them.

    baseline, window   counts per bin, over the same bins in the same order; m and n are their sums
    p, q               shares: baseline / m, window / n
    p~, q~             smoothed shares: (count + 0.5) / (sum + 0.5 · bins), the Krichevsky-Trofimov estimate
    n_eff              n·m / (n + m): the rows a comparison of two samples is worth

Every formula, with its source and a worked example, stands in docs/drift.md; the recording rules under deploy/prometheus compute
the same from summed counters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samegraph_service.errors import DriftInputError

from .distributions import chi2_sf, ncx2_noncentrality, ncx2_quantile, ncx2_quantile_closed_form, ncx2_sf

Counts: TypeAlias = NDArray[np.float64]
State = Literal["quiet", "shifted", "drifted", "not_enough_data"]
STATES: tuple[State, ...] = ("quiet", "shifted", "drifted", "not_enough_data")

#: Added to every count before shares are taken: half a row, whatever the number of bins.
SMOOTHING = 0.5


# --- distances ------------------------------------------------------------------------------------------------------------


def smoothed_shares(counts: ArrayLike, smoothing: float = SMOOTHING) -> Counts:
    """Return (count + smoothing) / (sum + smoothing · bins) for each bin: never 0, adding up to 1.

    Source: Krichevsky and Trofimov, The performance of universal encoding, 1981 (smoothing 0.5).
    """
    counts = np.asarray(counts, dtype=np.float64)
    return (counts + smoothing) / (counts.sum() + smoothing * len(counts))  # type: ignore[no-any-return]


def population_stability_index(baseline: ArrayLike, window: ArrayLike, smoothing: float = SMOOTHING) -> float:
    """Measure how far `window` has moved from `baseline`, bin by bin: the sum of (q~ - p~) · ln(q~ / p~).

    Args:
        baseline: Counts per bin at training time, shape (n_bins,), n_bins >= 2.
        window: Counts per bin while serving, same bins.
        smoothing: Added to each count, > 0 where a bin may be empty.

    Returns:
        The index in nats, >= 0; 0 means equal smoothed shares. Exchanging the two gives the same.

    Raises:
        DriftInputError: The shapes differ, or either side is empty.

    Source: Yurdakul and Naranjo, Statistical properties of the population stability index, 2020.
    """
    baseline, window = _checked(baseline, window)
    p, q = smoothed_shares(baseline, smoothing), smoothed_shares(window, smoothing)
    return float(np.sum((q - p) * np.log(q / p)))


def js_divergence_bits(baseline: ArrayLike, window: ArrayLike, smoothing: float = SMOOTHING) -> float:
    """Return the Jensen-Shannon divergence (not its root, the distance) in bits, from 0 to 1.

    Args:
        baseline: Counts per bin at training time, shape (n_bins,), n_bins >= 2.
        window: Counts per bin while serving, same bins.
        smoothing: Added to each count; 0 gives the figure of TensorFlow Data Validation for equal bins.

    Raises:
        DriftInputError: The shapes differ, or either side is empty.

    Source: Lin, Divergence measures based on the Shannon entropy, 1991.
    """
    baseline, window = _checked(baseline, window)
    p, q = smoothed_shares(baseline, smoothing), smoothed_shares(window, smoothing)
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log2(p / middle), 0.0) + np.where(q > 0, q * np.log2(q / middle), 0.0)
    return max(0.0, float(terms.sum() / 2))


def l_infinity(baseline: ArrayLike, window: ArrayLike) -> tuple[float, int]:
    """Return the largest change of any bin's share, max |q - p|, and that bin's place (the first of several).

    Changes that differ by rounding alone count as equal.

    Raises:
        DriftInputError: The shapes differ, or either side is empty.
    """
    baseline, window = _checked(baseline, window)
    change = np.abs(window / window.sum() - baseline / baseline.sum())
    largest = float(change.max())
    return largest, int(np.argmax(change >= largest - 1e-12))


def kolmogorov_smirnov(baseline: ArrayLike, window: ArrayLike) -> float:
    """Return the largest distance of the two cumulative shares at the baseline's edges; for bins that have an order.

    A lower bound of the statistic of the values themselves.

    Raises:
        DriftInputError: The shapes differ, or either side is empty.
    """
    return float(np.abs(_cumulative_change(*_checked(baseline, window))).max())


def wasserstein_in_std(baseline: ArrayLike, window: ArrayLike, widths: ArrayLike, std: float) -> float:
    """Return the earth mover's distance W1, in standard deviations of the training values; for bins that have an order.

    Inside a bin the values are taken as spread evenly, so between two edges the cumulative shares are straight lines, and the area between
    them is exact. Bins of width 0 (beyond the training range) stand at their edge: the distance is then a lower bound.

    Args:
        baseline: Counts per bin at training time, in the order of their values.
        window: Counts per bin while serving, same bins.
        widths: Width of each bin in the field's unit, >= 0.
        std: Standard deviation of the training values, > 0; otherwise the result is NaN.

    Raises:
        DriftInputError: The shapes differ, or either side is empty.
    """
    baseline, window = _checked(baseline, window)
    widths = np.asarray(widths, dtype=np.float64)
    if not std > 0:
        return math.nan
    right = _cumulative_change(baseline, window)
    left = np.concatenate(([0.0], right[:-1]))
    same_side = left * right >= 0
    both = np.abs(left) + np.abs(right)
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = (left * left + right * right) / (2 * both)  # two triangles, where the lines cross inside the bin
    return float(np.sum(widths * np.where(same_side, both / 2, crossing)) / std)


def _cumulative_change(baseline: Counts, window: Counts) -> Counts:
    return np.cumsum(window / window.sum() - baseline / baseline.sum())


def _checked(baseline: ArrayLike, window: ArrayLike) -> tuple[Counts, Counts]:
    baseline, window = np.asarray(baseline, dtype=np.float64), np.asarray(window, dtype=np.float64)
    if baseline.ndim != 1 or baseline.shape != window.shape or len(baseline) < 2:
        raise DriftInputError(
            f"baseline and window need counts over the same two or more bins; got shapes {list(baseline.shape)} and {list(window.shape)}"
        )
    for name, counts in (("baseline", baseline), ("window", window)):
        if not counts.sum() > 0 or counts.min() < 0:
            raise DriftInputError(f"the {name}'s counts must be 0 or more and not all 0; got a sum of {counts.sum():g}")
    return baseline, window


# --- how much of that is chance -------------------------------------------------------------------------------------------


def effective_rows(n: float, m: float) -> float:
    """Return n·m / (n + m), the rows a comparison of samples of n and m rows is worth; 0 when either is empty."""
    return n * m / (n + m) if n > 0 and m > 0 else 0.0


def psi_null_mean(bins: int, n_eff: float) -> float:
    """Return the PSI to expect when nothing has changed: (bins - 1) / n_eff."""
    return (bins - 1) / n_eff


def psi_p_value(psi: float, bins: int, n_eff: float) -> float:
    """Return the probability of a PSI at least this large when nothing has changed: n_eff · PSI is chi-square with bins - 1."""
    return chi2_sf(n_eff * psi, bins - 1)


def null_p_value(baseline: ArrayLike, window: ArrayLike) -> float:
    """Return the probability of counts at least this unlike the baseline's when nothing has changed.

    `psi_p_value`, after the bins that promise less than one row of the window were put together into one (and left out when that holds no
    row on either side). Half a row added to each of many nearly empty bins is not small beside what they hold: with ten full bins, five
    empty ones, 200 rows and a baseline of a million, 7 % of unchanged windows would have a p below 0.001; put together it is 0.1 %.

    Args:
        baseline: Counts per bin at training time, shape (n_bins,), n_bins >= 2.
        window: Counts per bin while serving, same bins.

    Raises:
        DriftInputError: The shapes differ, or either side is empty.

    Source: Cochran, The chi-square test of goodness of fit, 1952 (the pooling).
    """
    baseline, window = _checked(baseline, window)
    n, m = float(window.sum()), float(baseline.sum())
    rare = baseline * n < m
    if rare.any():
        together = [baseline[rare].sum()], [window[rare].sum()]
        kept = slice(None) if together[0][0] + together[1][0] > 0 else slice(-1)
        baseline = np.append(baseline[~rare], together[0])[kept]
        window = np.append(window[~rare], together[1])[kept]
    bins = len(baseline)
    return 1.0 if bins < 2 else psi_p_value(population_stability_index(baseline, window), bins, effective_rows(n, m))


def psi_critical(bins: int, n_eff: float, *, least_psi: float = 0.1, alpha: float = 0.001) -> float:
    """Return the PSI above which a drift larger than `least_psi` is certain with confidence 1 - alpha.

    With a true PSI of d, n_eff · PSI is noncentral chi-square with bins - 1 degrees of freedom and noncentrality n_eff · d.

    Args:
        bins: Number of bins, >= 2.
        n_eff: See `effective_rows`, > 0.
        least_psi: The drift that is still tolerated, >= 0.
        alpha: Chance of an alarm when the true PSI is `least_psi` (far smaller when nothing has changed).

    Source: the idea of du Pisanie et al., A critical review of existing and new population stability testing procedures, 2023
    (arXiv 2307.11878), applied to the PSI.
    """
    return ncx2_quantile(alpha, bins - 1, n_eff * least_psi) / n_eff


def psi_critical_closed_form(bins: int, n_eff: float, *, least_psi: float = 0.1, alpha: float = 0.001) -> float:
    """Approximate `psi_critical` as the recording rules do, a little above the exact value (0 to 4 %)."""
    return ncx2_quantile_closed_form(alpha, bins - 1, n_eff * least_psi) / n_eff


def smallest_detectable_psi(bins: int, n_eff: float, *, least_psi: float = 0.1, alpha: float = 0.001, power: float = 0.8) -> float:
    """Return the true PSI that raises the alarm with probability `power` on that many rows."""
    critical = n_eff * psi_critical(bins, n_eff, least_psi=least_psi, alpha=alpha)
    return ncx2_noncentrality(critical, bins - 1, power) / n_eff


def rows_to_detect(psi: float, bins: int, m: float, *, least_psi: float = 0.1, alpha: float = 0.001, power: float = 0.8) -> int | None:
    """Return how many rows a window needs to raise the alarm with probability `power` when the true PSI is `psi`.

    Args:
        psi: The drift to find.
        bins: Number of bins.
        m: Rows of the baseline.
        least_psi: See `psi_critical`.
        alpha: See `psi_critical`.
        power: The probability wanted.

    Returns:
        The smallest such number, to 1 %; None when none would do: the drift is within `least_psi`, or the baseline is too small.
    """

    def detects(n: float) -> bool:
        n_eff = effective_rows(n, m)
        critical = n_eff * psi_critical(bins, n_eff, least_psi=least_psi, alpha=alpha)
        return ncx2_sf(critical, bins - 1, n_eff * psi) >= power

    high = 1.0
    while not detects(high):
        high *= 2
        if high > 1e9:
            return None
    low = high / 2
    while high - low > max(1.0, 0.01 * low):
        middle = (low + high) / 2
        low, high = (low, middle) if detects(middle) else (middle, high)
    return math.ceil(high)


# --- several fields at once -----------------------------------------------------------------------------------------------


def bonferroni(alpha: float, tests: int) -> float:
    """Return the level of each of `tests` tests for which any false alarm among all of them has at most the chance `alpha`."""
    return alpha / max(1, tests)


def benjamini_hochberg(p_values: Sequence[float], alpha: float) -> list[bool]:
    """Return which tests stand when at most the share `alpha` of those that do may be false on average; NaN never stands.

    Source: Benjamini and Hochberg, Controlling the false discovery rate, 1995.
    """
    usable = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    last = max((rank for rank, (p, _) in enumerate(usable, 1) if p <= alpha * rank / len(usable)), default=0)
    stand = {i for _, i in usable[:last]}
    return [i in stand for i in range(len(p_values))]


# --- the rule -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AlarmRule:
    """What makes an alarm.

    Attributes:
        least_psi: Drift that is tolerated; an alarm says that the true PSI is larger.
        alpha: Chance of a false word about any field of a version in one look; each of its fields gets an equal part.
        min_rows: Rows below which nothing is said.
    """

    least_psi: float = 0.1
    alpha: float = 0.001
    min_rows: int = 200


@dataclass(frozen=True, slots=True)
class Comparison:
    """A window against the baseline, for one field or output. NaN where it cannot be said.

    Attributes:
        rows: Rows of the window.
        baseline_rows: Rows of the baseline.
        psi: See `population_stability_index`.
        psi_critical: See `psi_critical`, at the field's share of the level.
        psi_detectable: See `smallest_detectable_psi`.
        p_value: See `null_p_value`.
        js_divergence_bits: See the function of that name.
        linf: See `l_infinity`.
        linf_bin: Place of the bin that moved most; None without one.
        ks: See `kolmogorov_smirnov`, over the bins that have an order.
        w1_std: See `wasserstein_in_std`, over the same.
        state: What the rule says.
    """

    rows: int
    baseline_rows: int
    psi: float = math.nan
    psi_critical: float = math.nan
    psi_detectable: float = math.nan
    p_value: float = math.nan
    js_divergence_bits: float = math.nan
    linf: float = math.nan
    linf_bin: int | None = None
    ks: float = math.nan
    w1_std: float = math.nan
    state: State = "not_enough_data"


@dataclass(frozen=True, slots=True)
class Scale:
    """The bins of a variable that have an order.

    Attributes:
        bins: Their places, in the order of their values.
        widths: Width of each in the variable's unit.
        std: Standard deviation of the training values.
    """

    bins: Sequence[int]
    widths: Sequence[float]
    std: float


def state_of(psi: float, critical: float, p_value: float, alpha: float) -> State:
    """Return what a PSI says: nothing new, a change that is real but small, or a drift."""
    if psi > critical:
        return "drifted"
    return "shifted" if p_value < alpha else "quiet"


def compare(baseline: ArrayLike, window: ArrayLike, rule: AlarmRule, *, tests: int = 1, scale: Scale | None = None) -> Comparison:
    """Compare a window with the baseline, and say what it means.

    Args:
        baseline: Counts per bin at training time, shape (n_bins,), n_bins >= 2, not all 0.
        window: Counts per bin of the window, same bins; too few rows give a comparison that says so.
        rule: What makes an alarm.
        tests: How many variables are looked at together; each gets its part of the level.
        scale: Which bins have an order; None when none have.

    Raises:
        DriftInputError: The shapes differ, or the baseline is empty.
    """
    baseline, window = np.asarray(baseline, dtype=np.float64), np.asarray(window, dtype=np.float64)
    n, m, bins = float(window.sum()), float(baseline.sum()), len(baseline)
    if n < max(rule.min_rows, 1):
        return Comparison(int(n), int(m))
    n_eff, alpha = effective_rows(n, m), bonferroni(rule.alpha, tests)
    psi = population_stability_index(baseline, window)
    critical = psi_critical(bins, n_eff, least_psi=rule.least_psi, alpha=alpha)
    p_value = null_p_value(baseline, window)
    linf, guilty = l_infinity(baseline, window)
    ks, w1 = _ordered(baseline, window, scale)
    return Comparison(
        rows=int(n),
        baseline_rows=int(m),
        psi=psi,
        psi_critical=critical,
        psi_detectable=smallest_detectable_psi(bins, n_eff, least_psi=rule.least_psi, alpha=alpha),
        p_value=p_value,
        js_divergence_bits=js_divergence_bits(baseline, window),
        linf=linf,
        linf_bin=guilty if linf > 0 else None,
        ks=ks,
        w1_std=w1,
        state=state_of(psi, critical, p_value, alpha),
    )


def _ordered(baseline: Counts, window: Counts, scale: Scale | None) -> tuple[float, float]:
    if scale is None or len(scale.bins) < 2:
        return math.nan, math.nan
    places = list(scale.bins)
    before, now = baseline[places], window[places]
    if not (before.sum() > 0 and now.sum() > 0):
        return math.nan, math.nan
    return kolmogorov_smirnov(before, now), wasserstein_in_std(before, now, scale.widths, scale.std)
