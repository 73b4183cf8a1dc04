"""Distances in ULP, the promised bounds, and the margin rule for labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from samegraph_transforms.exactness import UNREACHABLE, Comparison, Deciding, bound, compare, merge, ulp_distance
from samegraph_transforms.manifest import Measured, Tolerance

EXACT = Tolerance()
FLOATS = ("float16", "float32", "float64")
dtypes = st.sampled_from(FLOATS)


def one(value: float, dtype: str) -> np.ndarray:
    """Return `value` as an array of one element."""
    return np.array([value], dtype=dtype)


class TestUlpDistance:
    @given(dtypes.flatmap(lambda d: hnp.arrays(d, (4,), elements=hnp.from_dtype(np.dtype(d)))))
    def test_everything_is_zero_apart_from_itself(self, values: np.ndarray) -> None:
        """NaN, infinities, subnormals and both zeros included."""
        assert (ulp_distance(values, values.copy()) == 0).all()

    @given(dtypes.flatmap(lambda d: st.tuples(*[hnp.arrays(d, (3,), elements=hnp.from_dtype(np.dtype(d)))] * 2)))
    def test_distance_is_symmetric_and_zero_only_for_equals(self, pair: tuple[np.ndarray, np.ndarray]) -> None:
        """The order of the arguments does not matter, and 0 means equal."""
        a, b = pair
        distance = ulp_distance(a, b)
        assert (distance == ulp_distance(b, a)).all()
        assert ((distance == 0) == ((a == b) | (np.isnan(a) & np.isnan(b)))).all()

    @given(dtypes, st.integers(0, 100), st.data())
    def test_n_steps_are_n_apart(self, dtype: str, steps: int, data: st.DataObject) -> None:
        """Walking with nextafter, across zero too, counts the steps."""
        limits = np.finfo(dtype)
        near_zero = st.integers(-20, 20).map(lambda n: n * float(limits.smallest_subnormal))
        anywhere = hnp.from_dtype(np.dtype(dtype), min_value=-float(limits.max) / 2, max_value=float(limits.max) / 2).map(float)
        start = one(data.draw(st.one_of(near_zero, anywhere)), dtype)
        end = start
        for _ in range(steps):
            end = np.nextafter(end, np.array(np.inf, dtype=dtype))
        assert ulp_distance(start, end).tolist() == [steps]

    @given(st.tuples(*[hnp.from_dtype(np.dtype("float16"), allow_nan=False, allow_infinity=False)] * 3))
    def test_distances_add_up(self, values: tuple[np.float16, np.float16, np.float16]) -> None:
        """Along the number line the whole is the sum of its parts."""
        a, b, c = (one(float(v), "float16") for v in sorted(values))
        assert int(ulp_distance(a, c)[0]) == int(ulp_distance(a, b)[0]) + int(ulp_distance(b, c)[0])

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_special_values(self, dtype: str) -> None:
        """Signed zeros meet; NaN equals NaN of any payload; infinity is near nothing but itself."""
        limits = np.finfo(dtype)
        tiny, largest = float(limits.smallest_subnormal), float(limits.max)
        cases = [
            (0.0, -0.0, 0), (tiny, -0.0, 1), (tiny, -tiny, 2), (math.nan, math.nan, 0), (math.nan, 1.0, UNREACHABLE),
            (math.inf, math.inf, 0),
            (math.inf, -math.inf, UNREACHABLE), (math.inf, largest, UNREACHABLE), (math.nan, math.inf, UNREACHABLE),
        ]  # fmt: skip
        for a, b, expected in cases:
            assert ulp_distance(one(a, dtype), one(b, dtype)).tolist() == [expected], (a, b)
        negative_nan = np.copysign(one(math.nan, dtype), np.array(-1, dtype))
        assert ulp_distance(one(math.nan, dtype), negative_nan).tolist() == [0]

    def test_known_values(self) -> None:
        """1 and the next float32 are one apart; the whole line of float64 fits without overflow."""
        assert ulp_distance(one(1.0, "float32"), one(1.0000001, "float32")).tolist() == [1]
        assert ulp_distance(one(1.0, "float16"), one(2.0, "float16")).tolist() == [1024]
        largest = float(np.finfo("float64").max)
        assert int(ulp_distance(one(-largest, "float64"), one(largest, "float64"))[0]) == 2 * 0x7FEFFFFFFFFFFFFF

    def test_big_endian_and_strided_arrays_are_read_as_values(self) -> None:
        """Memory layout is not part of a value."""
        values = np.arange(12, dtype=">f4").reshape(3, 4)[:, ::2]
        assert (ulp_distance(values, values.copy()) == 0).all()

    @pytest.mark.parametrize(("a", "b"), [("float32", "float64"), ("int32", "int32")])
    def test_other_types_are_refused(self, a: str, b: str) -> None:
        """A distance needs two floats of one type."""
        with pytest.raises(TypeError):
            ulp_distance(one(1, a), one(1, b))


class TestTolerance:
    reference = np.array([1.0, 100.0, -0.5, 0.0], dtype=np.float32)

    def nudged(self, place: int, steps: int) -> np.ndarray:
        """Return the reference with one element moved by `steps` ULP."""
        moved = self.reference.copy()
        for _ in range(steps):
            moved[place] = np.nextafter(moved[place], np.float32(np.inf))
        return moved

    @pytest.mark.parametrize(("steps", "passed"), [(0, True), (4, True), (5, False)])
    def test_ulp_bound(self, steps: int, passed: bool) -> None:
        """Four steps are within four ULP, five are not."""
        assert compare(self.reference, self.nudged(0, steps), Tolerance(ulp=4)).passed is passed

    @pytest.mark.parametrize(("difference", "passed"), [(0.9e-3, True), (1.2e-3, False)])
    def test_bound_relative_to_the_largest(self, difference: float, passed: bool) -> None:
        """A small element may move by a share of the tensor's largest magnitude (100 here)."""
        moved = self.reference + np.array([0, 0, 0, difference], dtype=np.float32)
        assert compare(self.reference, moved, Tolerance(relative_to_max=1e-5)).passed is passed

    @pytest.mark.parametrize(("difference", "passed"), [(1.9e-3, True), (2.2e-3, False)])
    def test_absolute_and_relative_bound_add(self, difference: float, passed: bool) -> None:
        """The bound at 100 is atol + rtol × 100."""
        moved = self.reference.astype(np.float64) + np.array([0, difference, 0, 0])
        assert compare(self.reference.astype(np.float64), moved, Tolerance(atol=1e-3, rtol=1e-5)).passed is passed

    def test_any_one_bound_is_enough(self) -> None:
        """An element passes by whichever bound is widest for it."""
        moved = self.nudged(3, 2)  # two subnormals above zero: far in relative terms, nothing in absolute ones
        assert compare(self.reference, moved, Tolerance(ulp=2)).passed
        assert compare(self.reference, moved, Tolerance(atol=1e-30)).passed
        assert not compare(self.reference, moved, Tolerance(rtol=1e-3)).passed

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_no_tolerance_excuses_a_lost_number(self, value: float) -> None:
        """NaN or an infinity where a number belongs, or the other way round, never passes."""
        generous = Tolerance(ulp=2**62, relative_to_max=1e9, atol=1e9, rtol=1e9)
        spoilt = self.reference.copy()
        spoilt[2] = value
        for expected, actual in ((self.reference, spoilt), (spoilt, self.reference)):
            found = compare(expected, actual, generous)
            assert not found.passed
            assert found.max_ulp == UNREACHABLE
            assert found.max_abs == math.inf
            assert found.first is not None
            assert found.first.index == (2,)

    def test_equal_special_values_pass_exactly(self) -> None:
        """NaN, infinities and zeros of either sign compare equal with no tolerance at all."""
        a = np.array([math.nan, math.inf, -math.inf, 0.0, -0.0])
        assert compare(a, np.array([math.nan, math.inf, -math.inf, -0.0, 0.0]), EXACT) == Comparison("", passed=True, elements=5)

    @given(
        dtypes.flatmap(lambda d: st.tuples(*[hnp.arrays(d, (5,), elements=hnp.from_dtype(np.dtype(d)))] * 2)),
        st.integers(0, 1 << 20),
        st.floats(0, 1),
    )
    def test_verdict_is_the_definition(self, pair: tuple[np.ndarray, np.ndarray], ulp: int, share: float) -> None:
        """On any values the vectorised verdict equals the promise spelled out element by element."""
        expected, actual = pair
        found = compare(expected, actual, Tolerance(ulp=ulp, relative_to_max=share, atol=share / 2, rtol=share))
        finite = [abs(float(v)) for v in expected if math.isfinite(v)]
        largest = max(finite, default=0.0)
        verdicts = []
        for e, a in zip(expected, actual, strict=True):
            if not (math.isfinite(e) and math.isfinite(a)):
                verdicts.append(bool(e == a) or (math.isnan(e) and math.isnan(a)))
                continue
            gap = abs(float(e) - float(a))
            steps = int(ulp_distance(np.array([e]), np.array([a]))[0])
            verdicts.append(steps <= ulp or gap <= share * largest or gap <= share / 2 + share * abs(float(e)))
        assert found.passed is all(verdicts)
        if not found.passed:
            assert found.first is not None
            assert found.first.index == (verdicts.index(False),)

    def test_bound_of_nothing_is_nothing(self) -> None:
        """Empty tensors compare and have bounds."""
        empty = np.zeros((0, 3), np.float32)
        assert bound(empty, Tolerance(relative_to_max=1)).shape == (0, 3)
        assert compare(empty, empty, EXACT).passed


class TestExactKinds:
    @pytest.mark.parametrize(
        ("expected", "actual"),
        [
            pytest.param(np.array([1, 2, 3]), np.array([1, 2, 4]), id="int"),
            pytest.param(np.array([2**63 - 1, 0, 0]), np.array([2**63 - 1, 0, -1]), id="int at its limits"),
            pytest.param(np.array([0, 0, 255], np.uint8), np.array([0, 0, 0], np.uint8), id="uint8 without wrapping"),
            pytest.param(np.array([True, True, True]), np.array([True, True, False]), id="bool"),
            pytest.param(np.array(["a", "b", "c"]), np.array(["a", "b", "C"], dtype=object), id="string"),
        ],
    )
    def test_no_tolerance_applies(self, expected: np.ndarray, actual: np.ndarray) -> None:
        """Integers, booleans and strings are equal or they are not, however wide the promise."""
        found = compare(expected, actual, Tolerance(ulp=100, atol=1e9, rtol=1e9, relative_to_max=1e9))
        assert not found.passed
        assert found.different == 1
        assert found.first is not None
        assert found.first.index == (2,)
        assert compare(expected, expected.copy(), EXACT).passed

    def test_difference_of_integers_is_measured_without_overflow(self) -> None:
        """The distance between 0 and 255 in uint8 is 255, from either side."""
        a, b = np.array([0, 255], np.uint8), np.array([255, 0], np.uint8)
        assert compare(a, b, EXACT).max_abs == 255
        assert compare(np.array([-(2**63)]), np.array([2**63 - 1]), EXACT).max_abs == float(2**64 - 1)

    @pytest.mark.parametrize(
        ("expected", "actual", "reason"),
        [
            (np.zeros(2, np.float64), np.zeros(2, np.float32), "expected dtype float64, got float32"),
            (np.zeros(2, np.int64), np.zeros(2, np.int32), "expected dtype int64, got int32"),
            (np.array(["1"]), np.array([1]), "expected dtype string, got int64"),
            (np.zeros((2, 1)), np.zeros(2), r"expected shape [2, 1], got [2]"),
        ],
    )
    def test_other_dtype_or_shape_fails_with_the_reason(self, expected: np.ndarray, actual: np.ndarray, reason: str) -> None:
        """Equal numbers in another type are not the same answer."""
        found = compare(expected, actual, EXACT)
        assert not found.passed
        assert found.mismatch is not None
        assert found.mismatch.startswith(reason)

    def test_detail_names_place_values_and_distance(self) -> None:
        """The one line in an error is enough to find the difference."""
        found = compare(np.array([[1.0, 2.0]], np.float32), np.array([[1.0, 2.0000002]], np.float32), EXACT)
        assert found.detail == "element [0, 1]: expected 2.0, got 2.0000002 (1 ULP apart); 1 of 2 elements differ, at most 2.38e-07"


class TestMarginRule:
    promise = Tolerance(atol=0.01)

    def labels(self, scores: list[list[float]], expected: list[str], got: list[str]) -> Comparison:
        """Compare labels decided by `scores`."""
        decided_by = Deciding(np.array(scores, np.float32), self.promise)
        return compare(np.array(expected), np.array(got), EXACT, tensor="label", decided_by=decided_by)

    def test_flip_below_the_bound_is_allowed_and_listed(self) -> None:
        """A label may change where the reference was undecided; the row is named with its margin."""
        found = self.labels([[0.9, 0.1], [0.504, 0.496]], ["a", "a"], ["a", "b"])
        assert found.passed
        assert found.different == 1
        (flip,) = found.flips
        assert (flip.index, flip.expected, flip.got) == ((1,), "a", "b")
        assert flip.margin == pytest.approx(0.008, abs=1e-6)
        assert flip.bound == pytest.approx(0.01)

    def test_flip_above_the_bound_is_refused(self) -> None:
        """A label that training was sure of may not change, even beside one that may."""
        found = self.labels([[0.504, 0.496], [0.52, 0.48]], ["a", "a"], ["b", "b"])
        assert not found.passed
        assert found.first is not None
        assert found.first.index == (1,)
        assert len(found.flips) == 1

    def test_margin_equal_to_the_bound_is_refused(self) -> None:
        """Only below the bound counts: an exact promise excuses nothing, not even a tie."""
        tie = Deciding(np.array([[0.5, 0.5]]), EXACT)
        assert not compare(np.array(["a"]), np.array(["b"]), EXACT, decided_by=tie).passed

    def test_nan_scores_excuse_nothing(self) -> None:
        """Without a margin there is no excuse."""
        assert not self.labels([[math.nan, 0.5]], ["a"], ["b"]).passed

    def test_without_scores_labels_are_exact(self) -> None:
        """No `decided_by`, no excuse."""
        assert not compare(np.array([1]), np.array([2]), Tolerance(atol=10)).passed

    @pytest.mark.parametrize(("p", "passed"), [(0.502, True), (0.498, True), (0.51, False), (0.0, False)])
    @pytest.mark.parametrize("shape", [(1,), (1, 1)])
    def test_single_score_is_read_as_a_probability(self, p: float, passed: bool, shape: tuple[int, ...]) -> None:
        """One score a row decides between two classes at one half."""
        decided_by = Deciding(np.full(shape, p), self.promise)
        assert compare(np.array([0]), np.array([1]), EXACT, decided_by=decided_by).passed is passed

    def top(self, scores: list[float], expected: list[int], got: list[int]) -> Comparison:
        """Compare one row of the best labels."""
        return compare(np.array([expected]), np.array([got]), EXACT, decided_by=Deciding(np.array([scores]), self.promise))

    def test_top_k_places_may_swap_where_they_tie(self) -> None:
        """Second and third are nearly equal: they may change places, and both places are listed."""
        found = self.top([0.5, 0.204, 0.2, 0.05], [7, 3, 9], [7, 9, 3])
        assert found.passed
        assert [f.index for f in found.flips] == [(0, 1), (0, 2)]

    def test_top_k_place_that_is_decided_may_not_change(self) -> None:
        """The rule is applied per place: the first one is beyond doubt."""
        found = self.top([0.5, 0.204, 0.2, 0.05], [7, 3, 9], [3, 7, 9])
        assert not found.passed
        assert found.first is not None
        assert found.first.index == (0, 0)

    def test_last_of_top_k_may_change_where_the_next_is_as_good(self) -> None:
        """With all scores known, the runner-up may take the last place."""
        assert self.top([0.5, 0.3, 0.1, 0.095], [7, 3, 9], [7, 3, 8]).passed
        assert not self.top([0.5, 0.3, 0.1, 0.05], [7, 3, 9], [7, 3, 8]).passed

    def test_last_of_top_k_has_no_excuse_when_nothing_is_known_about_the_next(self) -> None:
        """With only the k best scores, what follows the last is unknown and excuses nothing."""
        assert not self.top([0.5, 0.3, 0.1], [7, 3, 9], [7, 3, 8]).passed
        assert self.top([0.5, 0.104, 0.1], [7, 3, 9], [7, 9, 3]).passed

    def test_scores_need_not_be_sorted(self) -> None:
        """Ranks are found by sorting; class scores come in class order."""
        assert self.top([0.05, 0.2, 0.5, 0.204], [2, 3, 1], [2, 1, 3]).passed

    def test_scores_of_another_shape_excuse_nothing(self) -> None:
        """A rule that cannot be applied leaves labels exact."""
        assert not self.labels([[0.5, 0.5]], ["a", "a"], ["a", "b"]).passed

    @given(hnp.arrays("float64", (6, 4), elements=st.floats(0, 1)), st.integers(0, 5))
    def test_perturbation_within_the_bound_never_fails_when_margins_are_wide(self, scores: np.ndarray, seed: int) -> None:
        """Labels computed from scores moved by less than half the bound flip only where the rule allows it."""
        moved = scores + np.random.default_rng(seed).uniform(-0.0049, 0.0049, scores.shape)
        found = compare(scores.argmax(axis=1), moved.argmax(axis=1), EXACT, decided_by=Deciding(scores, self.promise))
        assert found.passed


def test_merge_adds_counts_and_keeps_extremes() -> None:
    """What was measured over many comparisons is the sum of counts and the worst of distances."""
    start = Measured(tensor="y", elements=2, different=0, max_ulp=0, max_abs=0)
    found = compare(np.array([1.0, 2.0]), np.array([1.0, 2.0000000000000004]), EXACT, tensor="y")
    merged = merge(merge(start, found), Comparison("y", passed=True, elements=3))
    assert merged == Measured(tensor="y", elements=7, different=1, max_ulp=1, max_abs=2.0**-51)
