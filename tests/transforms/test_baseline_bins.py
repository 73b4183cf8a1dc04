"""Values fall into one bin each, by the edges the baseline fixed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samegraph_transforms.baseline import MAX_CATEGORIES, MAX_CATEGORY_LENGTH, MAX_NUMERIC_BINS, Variable, category_digest
from samegraph_transforms.baseline_bins import Binner, Observation, boolean_variable, categorical_variable, numeric_edges, numeric_variable

ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=3), st.just([1]), st.just(10**400),
    st.sampled_from([np.float32(1.5), np.int64(3), np.bool_(True), np.str_("a")]),
)  # fmt: skip
NUMBER = st.floats(allow_nan=False, allow_infinity=False)


def counts(variable: Variable, values: Any) -> dict[str, int]:
    """Count values and return the bins that got some, by label."""
    counted = Binner(variable).count(values)
    assert counted.dtype == np.int64
    return {label: int(n) for label, n in zip(variable.labels, counted, strict=True) if n}


def variables(values: list[Any]) -> list[Variable]:
    """One variable of each kind and way, made from the values."""
    return [
        numeric_variable("n", values),
        numeric_variable("c", values, computed=True),
        boolean_variable("b", values),
        categorical_variable("s", values),
        categorical_variable("k", values, known=["a", "b"]),
        categorical_variable("i", values, integers=True),
        categorical_variable("h", values, hashed=True),
    ]


class TestEveryValueHasOneBin:
    @given(st.lists(ANYTHING, max_size=40), st.lists(ANYTHING, max_size=40))
    @settings(max_examples=150, deadline=None)
    def test_bins_sum_to_rows_whatever_the_values(self, training: list[Any], serving: list[Any]) -> None:
        """For any values in training and any while serving, each variable's bins sum to the number of values."""
        for variable in variables(training):
            assert sum(variable.counts) == len(training)
            observed = Binner(variable).observe(serving)
            assert int(observed.counts.sum()) == len(serving)
            assert math.isfinite(observed.total)
            assert math.isfinite(observed.square)

    @given(st.lists(ANYTHING, max_size=30), st.lists(ANYTHING, max_size=30))
    @settings(max_examples=50, deadline=None)
    def test_counting_in_parts_adds_up(self, first: list[Any], second: list[Any]) -> None:
        """Counts of two batches sum to the counts of both together."""
        for variable in variables([1.0, 2, None, "a", "a", "b", True]):
            binner = Binner(variable)
            together = binner.observe(first + second)
            apart = binner.observe(first) + binner.observe(second)
            assert isinstance(apart, Observation)
            assert apart.counts.tolist() == together.counts.tolist()
            assert apart.n == together.n
            assert apart.total == pytest.approx(together.total, rel=1e-9, abs=1e-9)

    def test_every_special_of_a_number_is_told_apart(self) -> None:
        """Missing, NaN, infinities, values of other types and those outside the training range have bins of their own."""
        variable = numeric_variable("x", [1.0, 2.0, 3.0])
        values = [None, float("nan"), math.inf, -math.inf, 10**400, True, "2", 0.5, 3.5, 1, 2.0, np.float32(3), np.bool_(True)]
        expected = {"missing": 1, "nan": 1, "inf": 3, "invalid": 3, "below": 1, "above": 1, "00": 1, "01": 1, "02": 1}
        assert counts(variable, values) == expected

    def test_every_special_of_a_category_is_told_apart(self) -> None:
        """Rare known values share `other`; unseen, missing and invalid are apart from them."""
        known = [f"value {i:02d}" for i in range(MAX_CATEGORIES + 3)]
        variable = categorical_variable("c", [v for i, v in enumerate(known) for _ in range(100 - i)], known=known)
        assert variable.categories[0] == "value 00"
        assert variable.rare == known[MAX_CATEGORIES:]
        values = [
            "value 00",
            "value 49",
            "value 52",
            "never",
            None,
            3,
            True,
            float("nan"),
            "x" * (MAX_CATEGORY_LENGTH + 1),
            np.str_("value 00"),
        ]
        assert counts(variable, values) == {"00": 2, "49": 1, "other": 1, "unseen": 2, "missing": 1, "invalid": 3}

    def test_a_boolean_is_no_number_and_a_number_no_boolean(self) -> None:
        """To Python True is 1; here neither counts as the other."""
        assert counts(boolean_variable("b", []), [True, False, np.bool_(True), 1, 0, 1.0, "true", None]) == {
            "00": 1, "01": 2, "missing": 1, "invalid": 4,
        }  # fmt: skip
        assert counts(categorical_variable("i", [1, 1, 1], integers=True), [1, True, 1.0, "1", 2]) == {"00": 1, "unseen": 1, "invalid": 3}

    def test_arrays_count_like_lists(self) -> None:
        """A typed array, an array of objects and a list of the same values give the same counts."""
        numbers = numeric_variable("x", np.arange(100.0))
        for array in (np.array([1, 50, 200]), np.array([1, 50, 200], np.float32), np.array([1, 50, 200], object)):
            assert counts(numbers, array) == counts(numbers, [1, 50, 200])
        words = categorical_variable("s", ["a"] * 3 + ["b"] * 3)
        assert counts(words, np.array(["a", "c"])) == counts(words, np.array(["a", "c"], object)) == {"00": 1, "unseen": 1}
        flags = boolean_variable("b", [True])
        assert counts(flags, np.array([True, False])) == {"00": 1, "01": 1}


class TestEdges:
    def test_edges_are_left_closed(self) -> None:
        """A value that equals an edge is in the bin on its right; minimum and maximum are inside."""
        variable = numeric_variable("x", np.arange(1000.0))
        assert len(variable.edges) == MAX_NUMERIC_BINS - 1
        for i, edge in enumerate(variable.edges):
            assert counts(variable, [edge]) == {f"{i + 1:02d}": 1}
            assert counts(variable, [math.nextafter(edge, -math.inf)]) == {f"{i:02d}": 1}
        assert counts(variable, [0.0, 999.0]) == {"00": 1, "09": 1}
        assert counts(variable, [math.nextafter(0.0, -1), math.nextafter(999.0, math.inf)]) == {"below": 1, "above": 1}

    @given(st.lists(NUMBER, min_size=1, max_size=200), st.lists(NUMBER, max_size=50))
    @settings(max_examples=150, deadline=None)
    def test_bins_are_what_searchsorted_says(self, training: list[float], serving: list[float]) -> None:
        """Inside the training range the bin is searchsorted(edges, x, side="right")."""
        variable = numeric_variable("x", training)
        inside = [x for x in [*training, *serving, *variable.edges] if min(training) <= x <= max(training)]
        expected = np.searchsorted(np.array(variable.edges), np.array(inside), side="right")
        assert Binner(variable).bin(inside).tolist() == expected.tolist()

    @given(st.lists(NUMBER, min_size=1, max_size=300))
    @settings(max_examples=150, deadline=None)
    def test_edges_cut_the_training_range_into_at_most_ten_bins_and_none_is_empty(self, training: list[float]) -> None:
        """Edges increase, lie within (minimum, maximum], and every bin holds training rows."""
        variable = numeric_variable("x", training)
        assert variable.n_bins <= MAX_NUMERIC_BINS
        assert all(count > 0 for count in variable.counts[: variable.n_bins])
        assert variable.edges == sorted(set(variable.edges))
        assert all(min(training) < edge <= max(training) for edge in variable.edges)

    def test_deciles_hold_a_tenth_each(self) -> None:
        """Ten bins of many different numbers are equally full."""
        variable = numeric_variable("x", np.random.default_rng(1).normal(size=10_000))
        assert variable.n_bins == 10
        assert all(990 <= count <= 1010 for count in variable.counts[:10])

    def test_few_different_numbers_have_a_bin_each(self) -> None:
        """Seven weekdays are seven bins, named by their value."""
        variable = numeric_variable("weekday", [day for day in range(7) for _ in range(day + 1)])
        assert variable.counts[:7] == [1, 2, 3, 4, 5, 6, 7]
        assert [variable.describe(label) for label in variable.labels[:7]] == [
            "[0, 1)",
            "[1, 2)",
            "[2, 3)",
            "[3, 4)",
            "[4, 5)",
            "[5, 6)",
            "6",
        ]

    def test_zeros_that_fill_the_deciles_have_a_bin_of_their_own(self) -> None:
        """Of rain that falls in a tenth of all hours, dry hours and wet ones are apart, or none of them vanishing could be seen."""
        rain = [0.0] * 950 + [0.01 * i for i in range(1, 51)]
        variable = numeric_variable("rain", rain)
        assert variable.edges == [0.01]
        assert variable.counts[:2] == [950, 50]

    def test_a_peak_in_the_middle_has_a_bin_of_its_own(self) -> None:
        """A value that is several deciles is closed by the next value that occurs."""
        edges = numeric_edges(np.array([*range(300), *[500.0] * 500, *range(600, 800)], dtype=float))
        assert 500.0 in edges
        assert 600.0 in edges

    def test_without_a_number_in_training_every_number_is_above(self) -> None:
        """A column that was always null has no range; a number there is outside of what training saw."""
        variable = numeric_variable("x", [None, None])
        assert counts(variable, [-1e300, 0.0, None]) == {"above": 2, "missing": 1}

    @pytest.mark.parametrize("computed", [False, True], ids=["given", "computed"])
    @pytest.mark.parametrize("training", [[-1.7e308, 1.7e308, 1.0, 2.0] * 10, [-1e154], [1e200, 1.1e200]], ids=["all", "one", "far"])
    def test_largest_floats_do_not_overflow(self, training: list[float], computed: bool) -> None:
        """Numbers near the largest float have bins and finite sums, and so has ordinary traffic beside them."""
        variable = numeric_variable("x", training, computed=computed)
        assert variable.counts[variable.labels.index("above")] == 0
        for served in (training, [0.0, -1.7e308, 1.7e308] * 100):
            assert math.isfinite(Binner(variable).observe(served).square)


class TestComputedNumbers:
    SCORES = np.random.default_rng(2).choice([0.1, 0.2, 0.25, 0.9], 1000, p=[0.5, 0.3, 0.1, 0.1])

    @pytest.mark.parametrize("factor", [1 - 1e-6, 1 + 1e-6], ids=["a little less", "a little more"])
    def test_rounding_of_another_processor_moves_no_score(self, factor: float) -> None:
        """Scores of a few leaves, off by one part in a million, stay in their bins, at the ends too."""
        variable = numeric_variable("score", self.SCORES, computed=True)
        assert Binner(variable).count(self.SCORES * factor).tolist() == variable.counts

    def test_given_numbers_are_cut_at_their_own_values(self) -> None:
        """What a caller sends is exact, so a number as a decile is an edge to the last bit."""
        assert numeric_variable("x", self.SCORES).edges == [0.2, 0.25, 0.9]

    def test_scores_without_spread_have_one_bin(self) -> None:
        """Equal scores need no edge."""
        variable = numeric_variable("x", [0.5] * 10, computed=True)
        assert variable.edges == []
        assert variable.counts[0] == 10


class TestMoments:
    def test_moments_follow_from_the_sums(self) -> None:
        """Mean and variance of served numbers come out of n, total and square, also far from zero."""
        generator = np.random.default_rng(3)
        variable = numeric_variable("x", generator.normal(1e9, 2, 5000))
        assert variable.std == pytest.approx(2, rel=0.05)
        served = generator.normal(1e9 + 1, 3, 5000)
        observed = Binner(variable).observe(served)
        assert variable.mean is not None
        mean = observed.total / observed.n
        assert variable.mean + mean == pytest.approx(served.mean(), rel=1e-15)
        assert observed.square / observed.n - mean**2 == pytest.approx(served.var(), rel=1e-6)

    def test_one_absurd_number_does_not_drown_the_others(self) -> None:
        """Beyond ten training ranges a number counts as that far, so the sums keep their precision."""
        variable = numeric_variable("x", np.linspace(0, 1, 100))
        observed = Binner(variable).observe([0.5, 1e300])
        assert observed.total == pytest.approx(11 - 0.5)
        assert observed.n == 2


class TestCategories:
    def test_values_of_single_rows_are_not_kept_and_the_unseen_share_is_the_expected_one(self) -> None:
        """Without a list of known values the share counted as unseen is the share of new values in the next rows (within 4 sigma)."""
        weights = 1 / np.arange(1, 3001)
        draw = np.random.default_rng(4).choice(3000, size=(2, 20_000), p=weights / weights.sum())
        names = [[f"n{i}" for i in half] for half in draw]
        variable = categorical_variable("name", names[0])
        occurring = {v: names[0].count(v) for v in {*variable.categories, *variable.rare}}
        assert min(occurring.values()) == 2
        expected = dict(zip(variable.labels, variable.counts, strict=True))
        found = counts(variable, names[1])
        for label in ("unseen", "other", "00"):
            assert abs(found[label] - expected[label]) < 4 * math.sqrt(found[label] + expected[label]), label

    def test_known_values_make_the_bins_and_others_are_unseen(self) -> None:
        """With the training's values given, a value among the rows that is not one of them is unseen, however often it comes."""
        variable = categorical_variable("c", ["a", "a", "z", "z", "z"], known=["a", "b"])
        assert variable.categories == ["a", "b"]
        assert dict(zip(variable.labels, variable.counts, strict=True)) == {
            "00": 2, "01": 0, "other": 0, "unseen": 3, "missing": 0, "invalid": 0,
        }  # fmt: skip

    def test_hashed_values_are_counted_but_cannot_be_read(self) -> None:
        """The variable holds digests only and counts like the plain one."""
        values = ["anna"] * 5 + ["ben"] * 3 + ["carl"] * 4
        plain, hashed = (categorical_variable("who", values, hashed=hashed) for hashed in (False, True))
        assert hashed.counts == plain.counts
        assert not {"anna", "ben", "carl"} & {*hashed.categories, *hashed.rare}
        assert hashed.categories[0] == category_digest("who", "anna")
        assert counts(hashed, ["ben", "dora", None]) == counts(plain, ["ben", "dora", None])

    def test_values_of_few_rows_share_a_bin_where_there_are_even_rarer_ones(self) -> None:
        """Of a long tail the frequent values alone have bins of their own; of a closed set all have, however few their rows."""
        tail = ["a"] * 50 + ["b"] * 10 + ["c"] * 9 + ["d"] * 3 + ["e"] * 2 + ["f"]
        variable = categorical_variable("x", tail)
        assert variable.categories == ["a", "b"]
        assert counts(variable, tail) == {"00": 50, "01": 10, "other": 14, "unseen": 1}
        # In the baseline itself each row of two counts as if it had not been there when its value became known.
        assert variable.counts == [50, 10, 12, 3, 0, 0]
        assert categorical_variable("x", tail[:-3]).categories == ["a", "b", "c", "d"]

    def test_order_is_by_frequency_and_then_by_value(self) -> None:
        """The same rows in any order give the same variable."""
        values = ["b"] * 3 + ["a"] * 3 + ["c"] * 9
        assert categorical_variable("x", values) == categorical_variable("x", values[::-1])
        assert categorical_variable("x", values).categories == ["c", "a", "b"]
