"""Drift statistics against pinned values: published formulas computed elsewhere, SciPy's distributions, and simulated samples."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samegraph_service.drift import distributions, statistics
from samegraph_service.drift.statistics import AlarmRule, Comparison, Scale, compare
from samegraph_service.errors import DriftInputError
from samegraph_transforms.baseline_bins import Binner, categorical_variable


class Case(NamedTuple):
    """Counts and what must come out of them."""

    baseline: list[int]
    window: list[int]
    psi: float
    js_bits: float  # without smoothing
    linf: float
    linf_bin: int
    ks: float
    w1: float  # unit bins
    n_eff: float
    null_mean: float
    p_null: float
    critical: float
    state: str


CASES = {
    "A": Case([100, 200, 400, 200, 100], [120, 180, 380, 210, 110], 0.0081709264, 0.0014812823, 0.02, 0, 0.02, 0.0456435465,
              500, 0.008, 0.394563, 0.213668, "quiet"),
    "B": Case([100, 200, 400, 200, 100], [50, 150, 350, 250, 200], 0.1352791185, 0.0241795381, 0.10, 4, 0.15, 0.3651483717,
              500, 0.008, 7.14632e-14, 0.213668, "shifted"),
    "C": Case([500, 300, 150, 50], [480, 310, 160, 50], 0.0017827120, 0.0003227201, 0.02, 0, 0.02, 0.0338061702,
              500, 0.006, 0.827513, 0.211281, "quiet"),
    "D": Case([500, 300, 200, 0], [450, 250, 200, 100], 0.5436051982, 0.0525912720, 0.10, 3, 0.10, 0.3200921998,
              500, 0.006, 1.25739e-58, 0.211281, "drifted"),
    "E": Case([500, 300, 200], [5, 3, 0], 0.2228360357, 0.1080315461, 0.20, 2, 0.20, 0.4161198598,
              7.9365079365, 0.252, 0.413016, 2.247990, "quiet"),
    "F": Case([9990, 10], [90, 10], 0.4840951204, 0.0483154606, 0.099, 0, 0.099, 3.1322213860,
              99.0099009901, 0.0101, 4.41664e-12, 0.392869, "drifted"),
}  # fmt: skip


def unit_scale(case: Case) -> Scale:
    """Bins one wide, as if each stood for the next whole number."""
    places = np.arange(len(case.baseline))
    shares = np.array(case.baseline) / sum(case.baseline)
    mean = float(shares @ places)
    return Scale(places.tolist(), [1.0] * len(places), math.sqrt(float(shares @ (places - mean) ** 2)))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_pinned_cases(case: Case) -> None:
    """Six cases from equal to a new category, on few rows and many, agree with their published values to all their digits."""
    found = compare(case.baseline, case.window, AlarmRule(least_psi=0.1, alpha=0.001, min_rows=1), scale=unit_scale(case))
    assert found.psi == pytest.approx(case.psi, rel=0, abs=6e-11)
    assert statistics.js_divergence_bits(case.baseline, case.window, smoothing=0) == pytest.approx(case.js_bits, rel=0, abs=6e-11)
    assert found.linf == pytest.approx(case.linf, rel=0, abs=6e-11)
    assert found.linf_bin == case.linf_bin
    assert found.ks == pytest.approx(case.ks, rel=0, abs=6e-11)
    assert found.w1_std == pytest.approx(case.w1, rel=0, abs=6e-11)
    n_eff = statistics.effective_rows(sum(case.window), sum(case.baseline))
    assert n_eff == pytest.approx(case.n_eff, rel=0, abs=6e-11)
    assert statistics.psi_null_mean(len(case.baseline), n_eff) == pytest.approx(case.null_mean, rel=1e-9)
    assert found.p_value == pytest.approx(case.p_null, rel=6e-6)
    assert statistics.psi_p_value(found.psi, len(case.baseline), n_eff) == pytest.approx(case.p_null, rel=6e-6)
    assert found.psi_critical == pytest.approx(case.critical, abs=6e-7)
    assert found.state == case.state
    assert (found.rows, found.baseline_rows) == (sum(case.window), sum(case.baseline))


def test_figures_that_prometheus_must_reach() -> None:
    """With smoothing, and by the closed form: what the recording rules are checked against."""
    case = CASES["B"]
    assert statistics.js_divergence_bits(case.baseline, case.window) == pytest.approx(0.0240214797, abs=6e-11)
    assert statistics.psi_critical_closed_form(5, 500.0) == pytest.approx(0.2197576862, abs=6e-8)


# --- critical values ------------------------------------------------------------------------------------------------------

ALARM_TABLE: dict[tuple[int, float], dict[int, tuple[float, float | None]]] = {
    (10, 0.10): {50: (0.8065, 0.8252), 100: (0.5038, 0.5190), 200: (0.3407, 0.3514), 500: (0.2297, 0.2353), 1000: (0.1854, 0.1886),
                 5000: (0.1393, 0.1402), 50_000: (0.1236, 0.1239)},
    (14, 0.10): {50: (0.9212, None), 100: (0.5582, None), 200: (0.3667, None), 500: (0.2397, None), 1000: (0.1905, None),
                 5000: (0.1406, None), 50_000: (0.1241, None)},
    (10, 0.25): {50: (1.0959, None), 100: (0.7588, None), 200: (0.5681, None), 500: (0.4307, None), 1000: (0.3726, None),
                 5000: (0.3089, None), 50_000: (0.2860, None)},
}  # fmt: skip


@pytest.mark.parametrize(
    ("bins", "least_psi", "n"),
    [(bins, least, n) for (bins, least), row in ALARM_TABLE.items() for n in row],
    ids=str,
)
def test_alarm_table(bins: int, least_psi: float, n: int) -> None:
    """Critical values for a baseline of 10,000 rows at alpha 0.001, exact and by the closed form."""
    exact, closed = ALARM_TABLE[bins, least_psi][n]
    n_eff = statistics.effective_rows(n, 10_000)
    found = statistics.psi_critical(bins, n_eff, least_psi=least_psi, alpha=0.001)
    formula = statistics.psi_critical_closed_form(bins, n_eff, least_psi=least_psi, alpha=0.001)
    assert found == pytest.approx(exact, abs=6e-5)
    assert closed is None or formula == pytest.approx(closed, abs=6e-5)
    assert found < formula < 1.04 * found


@pytest.mark.parametrize(("target", "rows"), [(0.30, 265), (0.25, 400), (0.20, 765), (0.15, 2825)])
def test_rows_until_the_critical_value_falls_to_a_target(target: float, rows: int) -> None:
    """The published numbers of rows, each known to about 1 %."""
    assert statistics.psi_critical(10, statistics.effective_rows(rows * 1.01, 10_000)) < target
    assert statistics.psi_critical(10, statistics.effective_rows(rows * 0.98, 10_000)) > target


@pytest.mark.parametrize("psi", [0.2, 0.5, 1.0])
def test_rows_to_detect_and_the_smallest_detectable_psi_are_two_sides_of_one_rule(psi: float) -> None:
    """On the rows that a drift needs, it is the smallest drift that is found."""
    rows = statistics.rows_to_detect(psi, 16, 20_000)
    assert rows is not None
    found = statistics.smallest_detectable_psi(16, statistics.effective_rows(rows, 20_000))
    assert found == pytest.approx(psi, rel=0.02)


def test_a_tolerated_drift_is_never_detected() -> None:
    """No number of rows makes an alarm of what the rule tolerates."""
    assert statistics.rows_to_detect(0.1, 10, 10_000) is None
    assert statistics.rows_to_detect(0.11, 10, 100) is None  # the baseline is too small to be sure


# --- distributions --------------------------------------------------------------------------------------------------------

CHI2_SF = [  # degrees of freedom, x, tail (SciPy 1.17.1)
    (1, 0.5, 0.47950012218695337),
    (1, 30.0, 4.3204630578274955e-08),
    (4, 0.01, 0.9999875415886458),
    (4, 6.59, 0.1592072534777219),
    (9, 27.877, 0.001000063357757273),
    (15, 400.0, 6.917357319112431e-76),
    (99, 60.0, 0.9993199970498485),
    (500, 620.5, 0.00018398401336704992),
    (2000, 1900.0, 0.9449453137692619),
]
NCX2_SF = [  # degrees of freedom, noncentrality, x, tail
    (1, 0.5, 3.0, 0.1600555730601739),
    (4, 50.0, 106.834, 0.0009999799755526291),
    (9, 10.0, 50.0, 0.0010173519085569201),
    (9, 1000.0, 1000.0, 0.550336720706995),
    (15, 3.0, 2.0, 0.9999921365933735),
    (50, 5000.0, 5600.0, 7.663684390057669e-05),
    (2000, 1e6, 1.006e6, 0.022885041683286124),
    (30, 0.001, 90.0, 6.574207054021728e-08),
]
NCX2_QUANTILE = [  # degrees of freedom, noncentrality, tail, x
    (1, 0.1, 0.05, 4.219430313122889),
    (4, 50.0, 0.001, 106.83387816046186),
    (9, 9.900990099009901, 0.001, 49.88293777562707),
    (9, 1000.0, 1e-06, 1331.8019511875455),
    (15, 20.0, 5e-06, 98.22897413778526),
    (49, 100000.0, 0.001, 102012.21789060545),
    (13, 0.8, 0.5, 13.102943323601853),
]


@pytest.mark.parametrize(("df", "x", "tail"), CHI2_SF)
def test_chi_square_tail(df: int, x: float, tail: float) -> None:
    """Tails from nearly one down to 1e-76."""
    assert distributions.chi2_sf(x, df) == pytest.approx(tail, rel=1e-11)


@pytest.mark.parametrize(("df", "nc", "x", "tail"), NCX2_SF)
def test_noncentral_chi_square_tail(df: int, nc: float, x: float, tail: float) -> None:
    """Near the centre and far out, up to a noncentrality of a million."""
    assert distributions.ncx2_sf(x, df, nc) == pytest.approx(tail, rel=1e-11)


@pytest.mark.parametrize(("df", "nc", "tail", "x"), NCX2_QUANTILE)
def test_noncentral_chi_square_quantile(df: int, nc: float, tail: float, x: float) -> None:
    """The critical values rest on these."""
    assert distributions.ncx2_quantile(tail, df, nc) == pytest.approx(x, rel=1e-11)


def test_edges_of_the_distributions() -> None:
    """Everything lies above zero, and nothing noncentral is central."""
    assert distributions.chi2_sf(0.0, 3) == 1.0
    assert distributions.ncx2_sf(-1.0, 3, 5.0) == 1.0
    assert distributions.ncx2_sf(5.0, 3, 0.0) == distributions.chi2_sf(5.0, 3)
    assert distributions.chi2_sf(1e6, 3) == 0.0
    assert distributions.poisson_pmf(0, 2.0) == pytest.approx(math.exp(-2))
    assert distributions.ncx2_noncentrality(1.0, 9, 0.5) == 0.0


# --- simulated samples ----------------------------------------------------------------------------------------------------


def simulate(shares: np.ndarray, n: int, m: int, runs: int, baseline_shares: np.ndarray | None = None) -> list[Comparison]:
    """Compare `runs` windows of n rows, each with a baseline of m rows of its own."""
    rng = np.random.default_rng(20260101)
    baselines = rng.multinomial(m, shares if baseline_shares is None else baseline_shares, size=runs)
    windows = rng.multinomial(n, shares, size=runs)
    rule = AlarmRule(min_rows=1)
    return [compare(b, w, rule) for b, w in zip(baselines, windows, strict=True)]


EQUAL = np.full(10, 0.1)
#: Ten full bins and six nearly or quite empty ones, as every number field has them.
WITH_SPECIALS = np.array([*EQUAL * (1 - 1.11e-3), 1e-3, 1e-4, 1e-5, 0, 0, 0])


@pytest.mark.parametrize("shares", [EQUAL, WITH_SPECIALS], ids=["full bins", "empty bins too"])
@pytest.mark.parametrize(("n", "m"), [(200, 10_000), (200, 1_000_000), (2_000, 10_000)])
def test_nothing_is_said_when_nothing_changes(shares: np.ndarray, n: int, m: int) -> None:
    """The p values are right (a hundredth of the windows below 0.01), and no window is called drifted."""
    found = simulate(shares, n, m, 2_000)
    below = sum(c.p_value < 0.01 for c in found)
    assert below <= 20 + 4 * math.sqrt(20)
    assert sum(c.p_value < 0.5 for c in found) >= 700  # and they are not all near one
    assert not any(c.state == "drifted" for c in found)


def test_long_tails_of_categories_stay_quiet() -> None:
    """Values chosen from the very rows they are counted in occur less often in others; that alone must not look like a change."""
    rng = np.random.default_rng(5)
    below = 0
    for _ in range(10):
        variable = categorical_variable("x", rng.zipf(1.8, 2000).clip(0, 60).astype(str).tolist())
        binner = Binner(variable)
        windows = [binner.count(rng.zipf(1.8, 4000).clip(0, 60).astype(str).tolist()) for _ in range(20)]
        below += sum(statistics.null_p_value(variable.counts, window) < 0.01 for window in windows)
    assert below <= 14  # 2 expected of 200; a baseline's own chance is in all of its windows, so they come in clusters


def tilted(psi: float) -> np.ndarray:
    """Return shares on ten bins whose true PSI against equal ones is `psi`."""
    slope = np.linspace(-1, 1, 10)
    low, high = 0.0, 0.999
    for _ in range(60):
        middle = (low + high) / 2
        q = 0.1 * (1 + middle * slope)
        low, high = (middle, high) if float(np.sum((q - 0.1) * np.log(q / 0.1))) < psi else (low, middle)
    return 0.1 * (1 + high * slope)


@pytest.mark.parametrize(("psi", "low", "high"), [(0.05, 0.0, 0.001), (0.1, 0.0, 0.003), (0.25, 0.70, 0.85), (0.5, 0.99, 1.0)])
def test_alarms_follow_the_true_drift(psi: float, low: float, high: float) -> None:
    """On 500 rows: none at half the tolerated drift, about 1 in 1000 at it, three in four at 0.25 and all at 0.5."""
    found = simulate(tilted(psi), 500, 10_000, 2_000, baseline_shares=EQUAL)
    assert low <= sum(c.state == "drifted" for c in found) / len(found) <= high


def test_one_outlier_hides_nothing() -> None:
    """Bins are the baseline's: one absurd value among shifted ones changes the PSI by a thousandth, not by everything."""
    rng = np.random.default_rng(1)
    baseline, window = rng.normal(size=5000), rng.normal(0.5, size=5000)
    edges = np.quantile(baseline, np.arange(1, 10) / 10)

    def counts(values: np.ndarray) -> np.ndarray:
        return np.bincount(np.searchsorted(edges, values, side="right"), minlength=10)

    shifted = statistics.population_stability_index(counts(baseline), counts(window))
    with_outlier = statistics.population_stability_index(counts(baseline), counts(np.append(window[1:], 1e4)))
    assert shifted > 0.2
    assert with_outlier == pytest.approx(shifted, abs=0.001)


# --- laws -----------------------------------------------------------------------------------------------------------------

pairs = st.integers(2, 12).flatmap(
    lambda bins: st.tuples(
        st.lists(st.integers(0, 10_000), min_size=bins, max_size=bins).filter(any),
        st.lists(st.integers(0, 10_000), min_size=bins, max_size=bins).filter(any),
    )
)


@given(pairs, st.randoms(use_true_random=False))
def test_laws_of_the_distances(pair: tuple[list[int], list[int]], random: object) -> None:
    """None is negative, equal shares are 0, all stay in their range, and the order of bins matters to those alone that need one."""
    baseline, window = pair
    psi = statistics.population_stability_index(baseline, window)
    js = statistics.js_divergence_bits(baseline, window)
    linf, guilty = statistics.l_infinity(baseline, window)
    ks = statistics.kolmogorov_smirnov(baseline, window)
    assert psi >= 0
    assert 0 <= js <= 1
    assert 0 <= linf <= 1
    assert 0 <= ks <= 1
    assert 0 <= guilty < len(baseline)
    assert 0 <= statistics.null_p_value(baseline, window) <= 1
    assert psi == pytest.approx(statistics.population_stability_index(window, baseline), rel=1e-9, abs=1e-12)
    assert statistics.population_stability_index(baseline, baseline) == 0
    order = list(range(len(baseline)))
    random.shuffle(order)  # type: ignore[attr-defined]
    again = [baseline[i] for i in order], [window[i] for i in order]
    assert statistics.population_stability_index(*again) == pytest.approx(psi, rel=1e-9, abs=1e-12)
    assert statistics.js_divergence_bits(*again) == pytest.approx(js, rel=1e-9, abs=1e-12)
    assert statistics.l_infinity(*again)[0] == pytest.approx(linf)


@given(pairs)
def test_earth_movers_distance_of_single_steps(pair: tuple[list[int], list[int]]) -> None:
    """Moving everything by one whole bin is one bin's width, and no move is farther than the whole range."""
    baseline, window = pair
    widths = [1.0] * len(baseline)
    moved = statistics.wasserstein_in_std([*baseline, 0], [0, *baseline], [*widths, 1.0], 1.0)
    assert moved == pytest.approx(1.0)
    assert 0 <= statistics.wasserstein_in_std(baseline, window, widths, 1.0) <= len(baseline)


def test_earth_movers_distance_where_the_curves_cross() -> None:
    """Half the mass moves inward from both sides: the two triangles inside the middle bin are counted, not their difference."""
    # Cumulative shares differ by -0.2 at one edge of the middle bin (2 wide) and +0.2 at the other.
    found = statistics.wasserstein_in_std([40, 20, 40], [20, 60, 20], [1.0, 2.0, 1.0], 1.0)
    assert found == pytest.approx(0.1 + 0.2 + 0.1)
    assert math.isnan(statistics.wasserstein_in_std([1, 1], [1, 1], [1.0, 1.0], 0.0))


@pytest.mark.parametrize(
    ("baseline", "window"),
    [([1, 2], [1, 2, 3]), ([1], [1]), ([0, 0], [1, 2]), ([1, 2], [0, 0]), ([3, -1], [1, 2]), ([[1, 2]], [[1, 2]])],
    ids=["other bins", "one bin", "empty baseline", "empty window", "negative", "two dimensions"],
)
def test_counts_that_cannot_be_compared_are_refused(baseline: list[int], window: list[int]) -> None:
    """Better no number than one that means nothing."""
    for function in (
        statistics.population_stability_index,
        statistics.js_divergence_bits,
        statistics.l_infinity,
        statistics.kolmogorov_smirnov,
        statistics.null_p_value,
    ):
        with pytest.raises(DriftInputError):
            function(baseline, window)


# --- the rule -------------------------------------------------------------------------------------------------------------


def test_too_few_rows_are_never_fine() -> None:
    """Below the minimum there is no statistic and no verdict, also with no rows at all."""
    for window in ([0, 0], [100, 99]):
        found = compare([500, 500], window, AlarmRule(min_rows=200))
        assert found.state == "not_enough_data"
        assert math.isnan(found.psi)
        assert found.rows == sum(window)


def test_no_change_is_in_no_bin() -> None:
    """Equal shares name no guilty bin."""
    assert compare([500, 300, 200], [250, 150, 100], AlarmRule()).linf_bin is None


def test_an_ordered_statistic_needs_values() -> None:
    """A window of missing values only has a PSI but nothing to order."""
    found = compare([500, 500, 10], [0, 0, 300], AlarmRule(), scale=Scale([0, 1], [1.0, 1.0], 0.5))
    assert found.state == "drifted"
    assert found.linf_bin == 2
    assert math.isnan(found.ks)
    assert math.isnan(found.w1_std)


def test_more_fields_need_more_evidence() -> None:
    """Each of many fields gets its part of the level, so its critical value is higher and a small change is no word."""
    baseline, window = [5000, 5000], [540, 460]
    alone, among = compare(baseline, window, AlarmRule(alpha=0.05)), compare(baseline, window, AlarmRule(alpha=0.05), tests=100)
    assert alone.state == "shifted"
    assert among.state == "quiet"
    assert among.psi_critical > alone.psi_critical
    assert among.psi_detectable > alone.psi_detectable > alone.psi_critical - 0.1


def test_false_discovery_rate() -> None:
    """The textbook example: 15 p values at 5 %, of which Bonferroni keeps three and Benjamini and Hochberg four."""
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    assert sum(value <= statistics.bonferroni(0.05, len(p)) for value in p) == 3
    assert statistics.benjamini_hochberg(p, 0.05) == [True] * 4 + [False] * 11
    assert statistics.benjamini_hochberg([math.nan, 0.001], 0.05) == [False, True]
    assert statistics.benjamini_hochberg([], 0.05) == []
