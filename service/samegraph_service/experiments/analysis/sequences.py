"""Differences that may be looked at as often as one likes: confidence sequences, e-values and p-values valid at any time.

    d         difference of two means, treatment - control
    variance  estimated variance V of d; its root is the standard error
    n         how much was seen, in independent observations of both arms together
    alpha     the chance that the sequence ever, over all looks, fails to hold the truth
    rho       where the sequence is tightest, as a mixture's scale: chosen from alpha and a number of observations

A fixed interval holds the truth with chance 1 - alpha at one look; a confidence sequence at all looks together. docs/ab-testing.md derives
each figure by hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

#: Observations at which the two-sided sequence is tightest, unless said otherwise.
TUNED_FOR = 5000.0
#: exp() beyond this is more than any p-value can tell.
_MOST = 700.0


@dataclass(frozen=True)
class Interval:
    """A difference with bounds that hold at every look.

    Attributes:
        estimate: The difference itself.
        low: Lower bound; -inf where only the upper one is asked for.
        high: Upper bound; inf where only the lower one is asked for.
    """

    estimate: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the width of a two-sided interval."""
        return (self.high - self.low) / 2

    @property
    def excludes_zero(self) -> bool:
        """Whether the sign of the difference is decided."""
        return self.low > 0 or self.high < 0


def mixture_scale(alpha: float, tuned_for: float = TUNED_FOR) -> float:
    """Return rho = sqrt((-2 ln alpha + ln(-2 ln alpha + 1)) / N*).

    Args:
        alpha: In (0, 1); for a one-sided bound give twice its alpha.
        tuned_for: N*, the number of observations at which the sequence is about tightest, > 0.

    Source: Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, Time-uniform central limit theory and asymptotic confidence sequences,
    2021 (arXiv 2103.06476), appendix on the choice of rho.
    """
    spent = -2 * math.log(alpha)
    return math.sqrt((spent + math.log(spent + 1)) / tuned_for)


def half_width(variance: float, n: float, alpha: float = 0.05, tuned_for: float = TUNED_FOR) -> float:
    """Return half the width of the two-sided asymptotic confidence sequence.

    sqrt(V n) · sqrt(2 (n rho² + 1) / (n rho)² · ln(sqrt(n rho² + 1) / alpha)); infinite while nothing was seen.

    Args:
        variance: V, of the difference, >= 0.
        n: Observations of both arms, >= 0.
        alpha: Chance of ever being wrong, in (0, 1).
        tuned_for: N*.

    Source: Waudby-Smith et al., arXiv 2103.06476, theorem 2.2.
    """
    if n <= 0:
        return math.inf
    rho = mixture_scale(alpha, tuned_for)
    grown = n * rho * rho + 1
    return math.sqrt(variance * n) * math.sqrt(2 * grown / (n * rho) ** 2 * math.log(math.sqrt(grown) / alpha))


def one_sided_half_width(variance: float, n: float, alpha: float = 0.05, tuned_for: float = TUNED_FOR) -> float:
    """Return how far the one-sided sequence's bound lies from the difference.

    sqrt(V n) · sqrt(2 (n rho² + 1) / (n rho)² · ln(1 + sqrt(n rho² + 1) / (2 alpha))), rho from 2 alpha.

    Args and source: as `half_width` (its one-sided form); alpha in (0, 0.5).
    """
    if n <= 0:
        return math.inf
    rho = mixture_scale(2 * alpha, tuned_for)
    grown = n * rho * rho + 1
    return math.sqrt(variance * n) * math.sqrt(2 * grown / (n * rho) ** 2 * math.log1p(math.sqrt(grown) / (2 * alpha)))


def confidence_sequence(d: float, variance: float, n: float, alpha: float = 0.05, tuned_for: float = TUNED_FOR) -> Interval:
    """Return the two-sided sequence around a difference, as it stands after n observations."""
    half = half_width(variance, n, alpha, tuned_for)
    return Interval(d, d - half, d + half)


def lower_bound(d: float, variance: float, n: float, alpha: float = 0.05, tuned_for: float = TUNED_FOR) -> Interval:
    """Return the one-sided sequence: the difference is above `low` at every look with chance 1 - alpha."""
    return Interval(d, d - one_sided_half_width(variance, n, alpha, tuned_for), math.inf)


def e_value(d: float, variance: float, n: float, alpha: float = 0.05, tuned_for: float = TUNED_FOR) -> float:
    """Return the evidence against "no difference": 1 is none, and 1/alpha is reached exactly when the sequence excludes 0.

    exp(rho² n d²/V / (2 (n rho² + 1))) / sqrt(n rho² + 1). A difference without any variance is infinite evidence, no difference is none.

    Source: as `half_width`, solved for alpha with rho kept.
    """
    if n <= 0 or d == 0:
        return 1.0 if n <= 0 else 1 / math.sqrt(n * mixture_scale(alpha, tuned_for) ** 2 + 1)
    if variance <= 0:
        return math.inf
    grown = n * mixture_scale(alpha, tuned_for) ** 2
    exponent = grown * d * d / variance / (2 * (grown + 1))
    return math.exp(exponent) / math.sqrt(grown + 1) if exponent < _MOST else math.inf


def p_value(d: float, variance: float, n: float, alpha: float = 0.05, tuned_for: float = TUNED_FOR) -> float:
    """Return the p-value that holds at every look: min(1, 1/e)."""
    return min(1.0, 1 / e_value(d, variance, n, alpha, tuned_for))


def one_sided_p_value(d: float, variance: float, n: float, alpha: float = 0.05, tuned_for: float = TUNED_FOR) -> float:
    """Return the look-proof p-value of "the difference is not above 0": the least alpha whose lower bound, with rho kept, is above 0."""
    if n <= 0 or d <= 0:
        return 1.0
    if variance <= 0:
        return 0.0
    grown = n * mixture_scale(2 * alpha, tuned_for) ** 2
    exponent = grown * d * d / variance / (2 * (grown + 1))
    return 0.0 if exponent > _MOST else min(1.0, math.sqrt(grown + 1) / (2 * math.expm1(exponent)))


def needed(d: float, variance: float, n: float, alpha: float = 0.05, tuned_for: float = TUNED_FOR, most: float = 1e12) -> float:
    """Return at how many observations the sequence would exclude 0 if difference and spread stay as they are; inf beyond `most`."""
    if d == 0 or n <= 0:
        return math.inf
    spread = variance * n  # of one observation; V = spread / n
    low, high = 1.0, most
    if half_width(spread / high, high, alpha, tuned_for) >= abs(d):
        return math.inf
    while high / low > 1.0001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if half_width(spread / middle, middle, alpha, tuned_for) < abs(d) else (middle, high)
    return high


# --- other sequences, to compare with ---------------------------------------------------------------------------------------


def statsig_z(variance: float, spread: float, n: float, alpha: float = 0.05) -> float:
    """Return Z*, by which Statsig's mSPRT multiplies the standard error at every look.

    sqrt((V + tau)/tau · (-2 ln(alpha/2) - ln(V/(V + tau)))), tau = z² · spread / n. With equal arms V/tau is constant and so is Z*.

    Args:
        variance: V.
        spread: Sum of the variances of one observation in each arm.
        n: Observations of both arms.
        alpha: In (0, 1).

    Source: Zhao, Chen, Liu, Wang, Bojinov et al., Safely and quickly deploying new features with a staged rollout framework using
    sequential test and adaptive experimental design, 2019 (arXiv 1905.10493), in Statsig's form.
    """
    tau = NormalDist().inv_cdf(1 - alpha / 2) ** 2 * spread / n
    return math.sqrt((variance + tau) / tau * (-2 * math.log(alpha / 2) - math.log(variance / (variance + tau))))


def johari_p_value(d: float, variance: float, mixing_variance: float) -> float:
    """Return 1/L of the mixture sequential probability ratio test, at most 1.

    L = sqrt(V/(V + t²)) · exp(d² t² / (2 V (V + t²))), t² fixed beforehand.

    Source: Johari, Koomen, Pekelis, Walsh, Always valid inference: continuous monitoring of A/B tests, 2022.
    """
    both = variance + mixing_variance
    exponent = d * d * mixing_variance / (2 * variance * both)
    return min(1.0, math.exp(-exponent) / math.sqrt(variance / both))


def fixed_p_value(d: float, variance: float) -> float:
    """Return the two-sided p-value of one look planned beforehand; wrong when looked at more often, and shown for comparison only."""
    if variance <= 0:
        return 1.0 if d == 0 else 0.0
    return math.erfc(abs(d) / math.sqrt(2 * variance))


def fixed_horizon_n(rate: float, lift: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Return the observations per arm a test with one look needs to find `rate` → `rate + lift`.

    (z(1 - alpha/2) + z(power))² · (p1 (1 - p1) + p2 (1 - p2)) / lift².
    """
    z = NormalDist().inv_cdf(1 - alpha / 2) + NormalDist().inv_cdf(power)
    other = rate + lift
    return z * z * (rate * (1 - rate) + other * (1 - other)) / (lift * lift)
