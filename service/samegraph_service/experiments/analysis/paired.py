"""Two answers to the same question, many times: shares and their difference when both come from the same rows. Valid for one look."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Range:
    """An estimate with a confidence interval, both ends included."""

    estimate: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Return it as plain values."""
        return {"estimate": self.estimate, "low": self.low, "high": self.high}


def z_of(alpha: float) -> float:
    """Return the two-sided normal quantile."""
    return NormalDist().inv_cdf(1 - alpha / 2)


def wilson(successes: float, n: float, alpha: float = 0.05) -> Range:
    """Return a share with Wilson's score interval; without rows anything from 0 to 1.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, 1927.
    """
    if n <= 0:
        return Range(math.nan, 0.0, 1.0)
    p, z = successes / n, z_of(alpha)
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Range(p, max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half)))


def paired_difference(both: int, only_first: int, only_second: int, neither: int, alpha: float = 0.05) -> Range:
    """Return the share of the second minus that of the first, from the same rows, with Newcombe's square-and-add interval.

    Args:
        both: Rows where both are right.
        only_first: Where only the first is.
        only_second: Where only the second is.
        neither: Where neither is.
        alpha: Chance that the interval fails to hold the difference.

    Source: Newcombe, Improved confidence intervals for the difference between binomial proportions based on paired data, 1998, method 10.
    """
    n = both + only_first + only_second + neither
    if n == 0:
        return Range(math.nan, -1.0, 1.0)
    first, second = wilson(both + only_first, n, alpha), wilson(both + only_second, n, alpha)
    d = second.estimate - first.estimate
    phi = _phi(both, only_first, only_second, neither)
    below1, above1 = first.estimate - first.low, first.high - first.estimate
    below2, above2 = second.estimate - second.low, second.high - second.estimate
    low = math.sqrt(max(0.0, below2**2 - 2 * phi * below2 * above1 + above1**2))
    high = math.sqrt(max(0.0, above2**2 - 2 * phi * above2 * below1 + below1**2))
    return Range(d, max(-1.0, d - low), min(1.0, d + high))


def _phi(both: int, only_first: int, only_second: int, neither: int) -> float:
    """Return the correlation of the two, with Newcombe's correction for continuity where it is positive."""
    scale = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    if scale == 0:
        return 0.0
    n = both + only_first + only_second + neither
    product = float(both * neither - only_first * only_second)
    if product > 0:
        product = max(product - n / 2, 0.0)
    return product / math.sqrt(scale)


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value of "both are right equally often": the smaller of the two against a fair coin, mid-p not used.

    Source: McNemar, Note on the sampling error of the difference between correlated proportions, 1947 (exact binomial form).
    """
    n, k = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)]
    largest = max(logs)
    return min(1.0, 2 * math.exp(largest) * math.fsum(math.exp(x - largest) for x in logs))


def mean(values: Sequence[float], alpha: float = 0.05) -> Range:
    """Return a mean with the interval of the normal approximation; unbounded below two values."""
    n = len(values)
    if n < 2:
        return Range(values[0] if values else math.nan, -math.inf, math.inf)
    middle = math.fsum(values) / n
    spread = math.fsum((v - middle) ** 2 for v in values) / (n - 1)
    half = z_of(alpha) * math.sqrt(spread / n)
    return Range(middle, middle - half, middle + half)
