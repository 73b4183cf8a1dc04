"""The statistics of experiments: every worked number, to the digits it was worked out to."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
from samegraph_service.experiments.analysis import clusters, sample_ratio, sequences
from samegraph_service.experiments.analysis.clusters import Moments


def digits(value: float, places: int) -> object:
    """Return what equals `value` as it is printed with so many places."""
    return pytest.approx(value, abs=0.5000001 * 10**-places)


def significant(value: float, figures: int) -> object:
    """Return what equals `value` to so many significant figures."""
    return pytest.approx(value, abs=0.5000001 * 10.0 ** (math.floor(math.log10(abs(value))) - figures + 1))


def rates(a: int, b: int, n: int) -> tuple[float, float, float]:
    """Return d, V and the observations of both arms for two rates, each variance with its own n."""
    pa, pb = a / n, b / n
    return pb - pa, (pa * (1 - pa) + pb * (1 - pb)) / n, 2.0 * n


# --- sample ratio ---------------------------------------------------------------------------------------------------------

CHI_SQUARES = [
    ([44000, 45000], [1, 1], 11.235955, 0.000802278),
    ([5000, 5200], [1, 1], 3.921569, 0.0476704),
    ([9000, 1100], [90, 10], 8.910891, 0.00283475),
    ([166080, 171180, 166300], [1, 1, 1], 99.040432, 3.1163e-22),
]


@pytest.mark.parametrize(("observed", "shares", "statistic", "p"), CHI_SQUARES)
def test_sample_ratio_chi_square(observed: list[int], shares: list[int], statistic: float, p: float) -> None:
    """Pearson's statistic and its p-value, for two and three arms, equal and unequal shares."""
    found, p_found = sample_ratio.chi_square(observed, shares)
    assert found == digits(statistic, 6)
    assert p_found == significant(p, 5 if p < 1e-10 else 6)


DIRICHLET = [
    ([44000, 45000], [1, 1], 10_000, 3.904352, 0.020154),
    ([5000, 5500], [1, 1], 10_000, 5.739531, 0.00321628),
    ([500, 500], [1, 1], 10_000, -0.047657, 1.0),
    ([9000, 1100], [90, 10], 10_000, 1.841241, 0.15862),
    ([5000, 5500], [1, 1], 100, 9.463748, 7.76152e-5),
    ([5000, 5500], [1, 1], 2, 7.504285, 0.00055072),
    ([10, 30], [1, 1], 2, 3.454324, 0.0316087),
    ([10, 30], [1, 1], 100, 1.274879, 0.279465),
    ([90, 30], [90, 10], 2, 8.193893, 0.000276336),
    ([1000, 1200], [1, 1], 100, 7.140302, 0.000792513),
]


@pytest.mark.parametrize(("observed", "shares", "concentration", "log_factor", "p"), DIRICHLET)
def test_sequential_sample_ratio(observed: list[int], shares: list[int], concentration: float, log_factor: float, p: float) -> None:
    """The Dirichlet form, for units and for events."""
    assert sample_ratio.log_bayes_factor(observed, shares, concentration) == digits(log_factor, 6)
    assert sample_ratio.sequential_p_value(observed, shares, concentration) == significant(p, 5)


# --- sequences ------------------------------------------------------------------------------------------------------------


def test_mixture_scales() -> None:
    """The scale rho for two sides and for one, at alpha 0.05."""
    assert sequences.mixture_scale(0.05) == digits(0.0398400668, 10)
    assert sequences.mixture_scale(0.1) == digits(0.0355776885, 10)


#: a, b, n per arm, d, z, fixed p, half, low, high, p
TWO_SIDED = [
    (1000, 1080, 10_000, 0.008, 1.8533, 0.0638419, 0.01349871, -0.005499, 0.021499, 1.0),
    (1000, 1200, 10_000, 0.020, 4.5222, 6.12e-6, 0.01383019, 0.006170, 0.033830, 0.000283495),
    (100, 150, 1_000, 0.050, 3.3903, 0.000698, 0.04606912, 0.003931, 0.096069, 0.0258383),
    (10_000, 10_600, 100_000, 0.006, 4.4141, 1.01e-5, 0.00466768, 0.001332, 0.010668, 0.00108103),
]


@pytest.mark.parametrize(("a", "b", "n", "d", "z", "fixed", "half", "low", "high", "p"), TWO_SIDED)
def test_two_sided_sequences(
    a: int, b: int, n: int, d: float, z: float, fixed: float, half: float, low: float, high: float, p: float
) -> None:
    """Difference, one-look z and p, and the asymptotic confidence sequence with its p-value; e is its inverse."""
    found, variance, both = rates(a, b, n)
    assert found == pytest.approx(d, abs=1e-12)
    assert found / math.sqrt(variance) == digits(z, 4)
    assert sequences.fixed_p_value(found, variance) == significant(fixed, 3)
    interval = sequences.confidence_sequence(found, variance, both)
    assert interval.half == digits(half, 8)
    assert interval.low == digits(low, 6)
    assert interval.high == digits(high, 6)
    assert sequences.p_value(found, variance, both) == significant(p, 6)
    assert min(1.0, 1 / sequences.e_value(found, variance, both)) == sequences.p_value(found, variance, both)
    assert interval.excludes_zero == (sequences.p_value(found, variance, both) < 0.05)


STATSIG = [(1000, 1080, 10_000, 0.01547315), (1000, 1200, 10_000, 0.01585312), (100, 150, 1_000, 0.05286401)]


@pytest.mark.parametrize(("a", "b", "n", "half"), STATSIG)
def test_statsig_sequences(a: int, b: int, n: int, half: float) -> None:
    """Z* is one constant for equal arms, and the half-widths are its multiples of the standard error."""
    _, variance, both = rates(a, b, n)
    z = sequences.statsig_z(variance, variance * n, both)
    assert z == digits(3.58451536, 8)
    assert z * math.sqrt(variance) == digits(half, 8)


@pytest.mark.parametrize(("b", "p"), [(1080, 0.5933012), (1200, 0.00047748)])
def test_johari_p_values(b: int, p: float) -> None:
    """The mixture test with a mixing variance of 1e-4."""
    d, variance, _ = rates(1000, b, 10_000)
    assert sequences.johari_p_value(d, variance, 1e-4) == significant(p, 5 if p < 0.001 else 7)


ONE_SIDED = [(100, 150, 10_000, 0.005, 0.0045054429, 0.0004945571), (10, 40, 1_000, 0.03, 0.0200572780, 0.0099427220)]


@pytest.mark.parametrize(("a", "b", "n", "d", "half", "lower"), ONE_SIDED)
def test_one_sided_bounds(a: int, b: int, n: int, d: float, half: float, lower: float) -> None:
    """The guardrail's lower bound on a harm, and a p-value below alpha exactly when the bound is above 0."""
    found, variance, both = rates(a, b, n)
    interval = sequences.lower_bound(found, variance, both)
    assert interval.estimate == pytest.approx(d, abs=1e-12)
    assert sequences.one_sided_half_width(variance, both) == digits(half, 10)
    assert interval.low == digits(lower, 10)
    assert sequences.one_sided_p_value(found, variance, both) < 0.05


@pytest.mark.parametrize("d", [0.001, 0.0044, 0.0046, 0.02])
def test_one_sided_p_value_agrees_with_its_bound(d: float) -> None:
    """A p-value below alpha and a lower bound above 0 are the same statement."""
    _, variance, both = rates(100, 150, 10_000)
    assert (sequences.one_sided_p_value(d, variance, both) < 0.05) == (sequences.lower_bound(d, variance, both).low > 0)


def test_nothing_seen_decides_nothing() -> None:
    """Without observations, or with a difference of nothing, there is no evidence."""
    assert sequences.confidence_sequence(0.0, 0.0, 0).low == -math.inf
    assert sequences.p_value(0.0, 0.0, 0) == 1.0
    assert sequences.p_value(0.0, 0.0, 100) == 1.0
    assert sequences.p_value(0.1, 0.0, 100) == 0.0
    assert sequences.one_sided_p_value(-0.1, 0.01, 100) == 1.0


def test_time_to_a_decision_is_when_the_sequence_excludes_zero() -> None:
    """At the number it names the bound passes 0, and a little before that it does not."""
    d, variance, both = rates(1000, 1080, 10_000)
    spread, n = variance * both, sequences.needed(d, variance, both)
    assert sequences.half_width(spread / n, n) <= d < sequences.half_width(spread / (n * 0.99), n * 0.99)
    assert sequences.needed(0.0, variance, both) == math.inf


@pytest.mark.parametrize(("lift", "n"), [(0.01, 14_749), (0.005, 57_760)])
def test_fixed_horizon_sizes(lift: float, n: int) -> None:
    """Observations per arm from a rate of 0.1, at 80 % power."""
    assert math.ceil(sequences.fixed_horizon_n(0.1, lift)) == n


# --- clusters -------------------------------------------------------------------------------------------------------------

NA, SA = (100, 120, 80, 100, 100), (10, 15, 6, 9, 12)
NB, SB = (110, 90, 100, 105, 95), (16, 10, 14, 17, 11)


def test_clustered_difference() -> None:
    """Means, variances, the t-test of five buckets, and the standard error requests alone would claim."""
    assert clusters.clustered_variance(NA, SA) == digits(8.2064e-5, 9)
    assert clusters.clustered_variance(NB, SB) == digits(8.672e-5, 8)
    t, p = clusters.t_test((NA, SA), (NB, SB))
    assert t == digits(2.463113, 6)
    assert p == digits(0.039128, 6)
    a, b = Moments(NA, SA, SA), Moments(NB, SB, SB)
    assert (a.mean, b.mean) == (0.104, 0.136)
    assert math.sqrt(a.clustered_variance + b.clustered_variance) == digits(0.01299169, 8)
    ra, rb = a.mean, b.mean
    assert math.sqrt((ra * (1 - ra) + rb * (1 - rb)) / 500) == digits(0.02052745, 8)


def test_variance_never_falls_below_that_of_requests() -> None:
    """Buckets that agree by chance, as these do, are no evidence of less noise."""
    found = clusters.difference(Moments(NA, SA, SA), Moments(NB, SB, SB))
    assert found is not None
    assert found.estimate == pytest.approx(0.032)
    assert found.design_effect == 1.0
    assert found.variance == pytest.approx(0.02052745**2, rel=3e-3)  # n - 1 instead of n


def test_units_that_repeat_widen_the_interval() -> None:
    """Every request counted ten times over is no more evidence: the interval stays, the design effect is ten."""
    n, a, b = (50,) * 64, tuple(5 + g % 3 for g in range(64)), tuple(7 + g % 4 for g in range(64))
    once = clusters.difference(Moments(n, a, a), Moments(n, b, b))
    ten = clusters.difference(*(Moments(tuple(10 * x for x in n), *[tuple(10 * x for x in s)] * 2) for s in (a, b)))
    assert once is not None
    assert ten is not None
    assert ten.variance >= once.variance * 0.1
    spread = [20 * (g % 2) for g in range(64)]  # a unit answers always the same way
    sticky = clusters.difference(Moments(n, tuple(spread), tuple(spread)), Moments(n, a, a))
    assert sticky is not None
    assert sticky.design_effect > 5
    assert sticky.effective_n == pytest.approx(sticky.n / sticky.design_effect)


def test_combined_of_one_revision_is_that_revision() -> None:
    """Combining changes nothing where there is nothing to combine."""
    pair = (Moments(NA, SA, SA), Moments(NB, SB, SB))
    assert clusters.combined([pair]) == clusters.difference(*pair)
    assert clusters.combined([pair, (Moments(), Moments())]) == clusters.difference(*pair)
    assert clusters.combined([]) is None


def test_changed_weights_do_not_pass_for_an_effect() -> None:
    """No effect in either revision, other rates and other weights in each: pooled means differ, the combined difference is 0."""
    g = 64
    few, many, rare, frequent = (10,) * g, (90,) * g, 0.1, 0.5

    def arm(n: tuple[int, ...], rate: float) -> Moments:
        sums = tuple(rate * x for x in n)
        return Moments(n, sums, sums)

    strata = [(arm(many, rare), arm(few, rare)), (arm(few, frequent), arm(many, frequent))]
    pooled = [sum(sum(s[side].total) for s in strata) / sum(s[side].count for s in strata) for side in (0, 1)]
    assert pooled[1] - pooled[0] > 0.3
    found = clusters.combined(strata)
    assert found is not None
    assert found.estimate == pytest.approx(0.0, abs=1e-12)


def test_units_seen_in_two_revisions_are_counted_once() -> None:
    """Buckets that are high in both revisions add their errors up before squaring: combining halves nothing."""
    n, a = (50,) * 64, tuple(20 * (g % 2) for g in range(64))
    b = tuple(20 * ((g + 1) % 2) for g in range(64))
    pair = (Moments(n, a, a), Moments(n, b, b))
    one, two = clusters.combined([pair]), clusters.combined([pair, pair])
    assert one is not None
    assert two is not None
    assert two.variance == pytest.approx(one.variance)


def test_shares_of_sticky_units() -> None:
    """Counts that a chi-square of requests would call broken are fine when a few heavy units explain them, and broken when not."""
    even = (100.0,) * 64
    heavy = tuple(100.0 + (2000.0 if g == 7 else 0.0) for g in range(64))
    assert sample_ratio.chi_square([sum(even), sum(heavy)], [1, 1])[1] < 1e-10
    found = clusters.check_shares([even, heavy], [0.5, 0.5])
    assert found.design_effect > 50
    assert not found.broken
    assert clusters.check_shares([even, tuple(1.4 * x for x in even)], [1, 1]).broken
    assert not clusters.check_shares([tuple(9 * x for x in even), even], [9, 1]).broken


@pytest.mark.parametrize(("t", "df", "p"), [(0.0, 8, 1.0), (2.306004, 8, 0.05), (12.706, 2, 0.00613715), (1.9790, 126, 0.05)])
def test_student_t(t: float, df: int, p: float) -> None:
    """Values of the tables; many degrees of freedom come close to the normal distribution."""
    assert clusters.two_sided_t(t, df) == pytest.approx(p, rel=1e-3)
    assert clusters.two_sided_t(1.5, 5000) == pytest.approx(2 - 2 * NormalDist().cdf(1.5), rel=1e-3)
