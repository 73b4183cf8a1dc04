"""Means of units that come more than once: variances over 64 buckets of units instead of over requests.

A unit (a user, say) always falls into the same bucket, so buckets are independent of each other even where requests of one unit are not.

    N_g, S_g, Q_g   observations in bucket g, the sum of their values and of the squared values
    R               mean of an arm: sum S_g / sum N_g
    design effect   how many requests are worth one independent observation: clustered variance / variance over requests
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from . import sample_ratio, sequences

BUCKETS = 64
#: Of the prior around planned shares. Divided by the design effect counts are small, and 10,000 would find nothing for long:
#: of 870 units 41 % instead of 50 % gives p = 0.36 with 10,000 and 3e-5 with 100; of 100,000 both ask for about the same.
CONCENTRATION = 100.0
Counts = tuple[float, ...]
NONE: Counts = (0.0,) * BUCKETS


@dataclass(frozen=True)
class Moments:
    """The counters of one arm and metric in one revision, by bucket.

    Attributes:
        n: Observations.
        total: Sums of their values.
        squares: Sums of their squared values; for values of 0 and 1 these are the sums.
    """

    n: Counts = NONE
    total: Counts = NONE
    squares: Counts = NONE

    @cached_property
    def count(self) -> float:
        """Observations of the arm."""
        return math.fsum(self.n)

    @cached_property
    def mean(self) -> float:
        """R; NaN without observations."""
        return math.fsum(self.total) / self.count if self.count else math.nan

    @cached_property
    def residuals(self) -> Counts:
        """(S_g - R N_g) / sum N: what each bucket adds to the error of the mean."""
        return tuple((s - self.mean * n) / self.count for n, s in zip(self.n, self.total, strict=True)) if self.count else self.n

    @property
    def occupied(self) -> int:
        """Buckets with observations."""
        return sum(n > 0 for n in self.n)

    @cached_property
    def request_variance(self) -> float:
        """Variance of the mean as if every observation were a unit of its own: s²/n, s² with n - 1; 0 below two observations.

        Of zeros and ones that are all the same it is that of the share (S + 1)/(n + 2) (Laplace), since none so far is not never.
        """
        if self.count < 2:
            return 0.0
        total, squares = math.fsum(self.total), math.fsum(self.squares)
        if squares == total and total in (0.0, self.count):
            share = (total + 1) / (self.count + 2)
            return share * (1 - share) / self.count
        return max(squares - self.mean * total, 0.0) / (self.count - 1) / self.count

    @property
    def clustered_variance(self) -> float:
        """Variance of the mean over buckets; see `clustered_variance`."""
        return _over_buckets(self.residuals, self.occupied)


def clustered_variance(n: Sequence[float], total: Sequence[float]) -> float:
    """Return G/(G-1) · sum (S_g - R N_g)² / (sum N_g)², G the buckets that hold observations.

    Args:
        n: N_g, observations per bucket.
        total: S_g, sums per bucket.

    Source: the linearised variance of a ratio over clusters: Cochran, Sampling Techniques, 1977, section 6; for online experiments Deng,
    Knoblich, Lu, Applying the delta method in metric analytics, 2018.
    """
    return Moments(tuple(n), tuple(total), tuple(total)).clustered_variance


def _over_buckets(residuals: Sequence[float], occupied: int) -> float:
    return occupied / (occupied - 1) * math.fsum(e * e for e in residuals) if occupied > 1 else 0.0


@dataclass(frozen=True)
class Difference:
    """Treatment minus control, with what is known of its error.

    Attributes:
        estimate: d.
        variance: V: over buckets, and never below that over requests (buckets that happen to agree are no evidence of less noise).
        n: Observations of both arms.
        design_effect: V / the variance over requests, >= 1.
        buckets: Occupied buckets of the arm that has fewer.
    """

    estimate: float
    variance: float
    n: float
    design_effect: float
    buckets: int

    @property
    def effective_n(self) -> float:
        """Independent observations these are worth: n / design effect. The sequences' time."""
        return self.n / self.design_effect

    def sequence(self, alpha: float = 0.05) -> sequences.Interval:
        """Return the two-sided confidence sequence."""
        return sequences.confidence_sequence(self.estimate, self.variance, self.effective_n, alpha)

    def lower(self, alpha: float = 0.05) -> sequences.Interval:
        """Return the one-sided sequence with a lower bound."""
        return sequences.lower_bound(self.estimate, self.variance, self.effective_n, alpha)

    def e_value(self, alpha: float = 0.05) -> float:
        """Return the evidence against no difference."""
        return sequences.e_value(self.estimate, self.variance, self.effective_n, alpha)

    def p_value(self, alpha: float = 0.05) -> float:
        """Return the two-sided p-value that holds at every look."""
        return sequences.p_value(self.estimate, self.variance, self.effective_n, alpha)

    def one_sided_p_value(self, alpha: float = 0.05) -> float:
        """Return the look-proof p-value against "not above 0"."""
        return sequences.one_sided_p_value(self.estimate, self.variance, self.effective_n, alpha)

    def needed(self, alpha: float = 0.05) -> float:
        """Return how many observations (as they come, not effective ones) a decision takes if the difference stays; inf if never."""
        return sequences.needed(self.estimate, self.variance, self.effective_n, alpha) * self.design_effect


def difference(control: Moments, treatment: Moments) -> Difference | None:
    """Compare two arms of one revision; None while either has observations in fewer than two buckets."""
    return combined([(control, treatment)])


def combined(strata: Sequence[tuple[Moments, Moments]]) -> Difference | None:
    """Compare two arms over several revisions; None when no revision has both arms in two buckets or more.

    d = sum w_r d_r / sum w_r with Mantel-Haenszel weights w_r = n_a n_b / (n_a + n_b): differences are taken inside a revision, so weights
    that changed between two revisions cannot pass for an effect (Simpson's paradox). These are the inverse variances of the revisions
    while the spread of one observation is the same, so the sums grow like one random walk on which the sequence holds, and unlike
    inverse variances that are estimated they do not lean towards the revision that looks quieter by chance. A unit stays in its bucket
    across revisions, so what buckets add to the error is summed over revisions before it is squared.

    Args:
        strata: (control, treatment) of each revision.

    Source: Mantel and Haenszel, 1959; for differences of rates Greenland and Robins, Estimation of a common effect parameter from sparse
    follow-up data, 1985.
    """
    used = [(a, b) for a, b in strata if a.occupied > 1 and b.occupied > 1]
    if not used:
        return None
    weights = [a.count * b.count / (a.count + b.count) for a, b in used]
    whole = math.fsum(weights)
    weights = [w / whole for w in weights]
    estimate = math.fsum(w * (b.mean - a.mean) for w, (a, b) in zip(weights, used, strict=True))
    clustered = math.fsum(_arm_variance(weights, [pair[side] for pair in used]) for side in (0, 1))
    plain = math.fsum(w * w * (a.request_variance + b.request_variance) for w, (a, b) in zip(weights, used, strict=True))
    variance = max(clustered, plain)
    return Difference(
        estimate=estimate,
        variance=variance,
        n=math.fsum(a.count + b.count for a, b in used),
        design_effect=variance / plain if plain else 1.0,
        buckets=min(min(a.occupied, b.occupied) for a, b in used),
    )


def _arm_variance(weights: Sequence[float], arms: Sequence[Moments]) -> float:
    """Return the variance of one arm's weighted mean over revisions."""
    residuals = [
        math.fsum(w * e for w, e in zip(weights, column, strict=True)) for column in zip(*(a.residuals for a in arms), strict=True)
    ]
    return _over_buckets(residuals, max(a.occupied for a in arms))


def t_test(control: tuple[Sequence[float], Sequence[float]], treatment: tuple[Sequence[float], Sequence[float]]) -> tuple[float, float]:
    """Return t = d / sqrt(V) and its two-sided p-value with 2 (G - 1) degrees of freedom; valid for one look.

    Args:
        control: N_g and S_g.
        treatment: The same, as many buckets.
    """
    a, b = (Moments(tuple(n), tuple(s), tuple(s)) for n, s in (control, treatment))
    t = (b.mean - a.mean) / math.sqrt(a.clustered_variance + b.clustered_variance)
    return t, two_sided_t(t, 2 * (len(a.n) - 1))


def two_sided_t(t: float, df: int) -> float:
    """Return P(|T| > |t|) of Student's t with an even number of degrees of freedom.

    Source: Abramowitz and Stegun 26.7.4.
    """
    assert df > 0
    assert df % 2 == 0
    angle = math.atan(abs(t) / math.sqrt(df))
    term = total = 1.0
    for k in range(1, df // 2):
        term *= (2 * k - 1) / (2 * k) * math.cos(angle) ** 2
        total += term
    return max(0.0, 1 - math.sin(angle) * total)


# --- shares ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SampleRatio:
    """Whether the arms got their shares, judged over buckets.

    Attributes:
        exposures: Requests of each arm.
        shares: Planned share of each arm, in the same order, adding up to 1.
        design_effect: Requests worth one independent assignment, >= 1.
        chi_square: Pearson's statistic over the design effect.
        fixed_p: Its p-value, valid for one look.
        p: The p-value that holds at every look.
    """

    exposures: Counts
    shares: Counts
    design_effect: float
    chi_square: float
    fixed_p: float
    p: float

    @property
    def broken(self) -> bool:
        """Whether the shares are not the planned ones (p < 0.001, look-proof)."""
        return self.p < sample_ratio.SRM_ALPHA


def share_design_effect(exposures: Sequence[Counts]) -> float:
    """Return how much more the arms' counts of requests spread than counts of independent units would, at least 1.

    The mean of V_i / (n p_i (1 - p_i)) over arms, weighted by 1 - p_i, where V_i = G/(G-1) sum_g (X_gi - p_i X_g)² and p_i is the arm's
    share as it came out, so that a broken ratio does not excuse itself.

    Args:
        exposures: Requests per bucket, for each arm.

    Source: Rao and Scott, The analysis of categorical data from complex sample surveys, 1981 (first-order correction).
    """
    buckets = [math.fsum(column) for column in zip(*exposures, strict=True)]
    n, occupied = math.fsum(buckets), sum(b > 0 for b in buckets)
    if occupied < 2:
        return 1.0
    effect = 0.0
    for arm in exposures:
        p = math.fsum(arm) / n
        if p > 0:
            spread = occupied / (occupied - 1) * math.fsum((x - p * whole) ** 2 for x, whole in zip(arm, buckets, strict=True))
            effect += spread / (n * p)
    return max(1.0, effect / (len(exposures) - 1))


def check_shares(exposures: Sequence[Counts], shares: Sequence[float]) -> SampleRatio:
    """Compare what the arms got with their planned shares; counts are divided by the design effect first.

    Args:
        exposures: Requests per bucket, for each arm (two or more).
        shares: Planned share of each, > 0.
    """
    effect = share_design_effect(exposures)
    whole = math.fsum(shares)
    counts = tuple(math.fsum(arm) for arm in exposures)
    worth = [c / effect for c in counts]
    statistic, fixed = sample_ratio.chi_square(worth, shares)
    return SampleRatio(
        exposures=counts,
        shares=tuple(s / whole for s in shares),
        design_effect=effect,
        chi_square=statistic,
        fixed_p=fixed,
        p=sample_ratio.sequential_p_value(worth, shares, CONCENTRATION),
    )
