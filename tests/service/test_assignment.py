"""Assignment of units to arms: pinned draws, weighted rendezvous, enrolment, and what changes a revision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samegraph_service.experiments.assignment import MAX_UNIT_BYTES, Arm, Plan, Unit, bucket_of, draw, fraction, header_unit, unit_bytes

#: Draws of experiment exp1 with salt s1 without an arm (enrolment), computed elsewhere.
ENROLMENT = {
    "user-1": 4756194768122941388,
    "user-2": 8606985716922236002,
    "user-3": 6053609419650352861,
    "42": 12334280084202693824,
    "ünï": 18146394952241353032,
}
#: The same per arm, and the unit's bucket.
ARMS = {
    "user-1": (4691794901401677032, 15649313112034747019, 5561873231589201966, 20),
    "user-2": (13907996083065171405, 17599580945478563704, 14954708237153754933, 5),
    "user-3": (16091404901137739225, 2740103032409408781, 16986307489861968347, 37),
    "42": (11746548221134868099, 15685236341328340020, 11337591139150428832, 10),
    "ünï": (5893167167690374487, 11319241311916233808, 6171464617073555339, 3),
}
NAMES = ("control", "treatment", "third")
#: Which arm each unit gets with equal weights, and when the first has four times the weight of the others.
EQUAL = {"user-1": "treatment", "user-2": "treatment", "user-3": "third", "42": "treatment", "ünï": "treatment"}
FOUR_TO_ONE = {"user-1": "treatment", "user-2": "treatment", "user-3": "control", "42": "control", "ünï": "control"}

units = st.text(min_size=1, max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass"))
weights = st.floats(min_value=0.001, max_value=1000.0)


def plan(
    given: Sequence[float] = (1, 1), *, experiment: str = "exp1", salt: str = "s1", share: float = 1.0, names: Sequence[str] = ()
) -> Plan:
    """Return an experiment with these weights; its arms stand for the versions 1, 2, …."""
    named = names or (NAMES if len(given) <= 3 else [f"arm{i}" for i in range(len(given))])
    arms = tuple(Arm(name, i, weight) for i, (name, weight) in enumerate(zip(named, given, strict=False), 1))
    return Plan("flights", experiment, salt, arms, Unit("samegraph-unit"), share, "e1", arms[0].name)


class TestPinned:
    @pytest.mark.parametrize(("unit", "number"), ENROLMENT.items())
    def test_enrolment_draws_are_those_of_the_published_vectors(self, unit: str, number: int) -> None:
        """Any language computes the same: SHA-256 over experiment, salt and unit, joined by 0x1F."""
        assert draw(b"exp1", b"s1", unit.encode()) == number

    def test_the_fraction_is_the_draw_over_two_to_the_64(self) -> None:
        """And 10,000 buckets of it are what other platforms would make of it."""
        assert fraction(ENROLMENT["user-1"]) == 0.25783383501815416
        assert [n % 10_000 for n in ENROLMENT.values()] == [1388, 6002, 2861, 3824, 3032]

    @pytest.mark.parametrize("unit", ARMS)
    def test_scores_are_those_of_the_table(self, unit: str) -> None:
        """-ln(u) over the weight, u from a digest over experiment, salt, unit and arm."""
        *numbers, bucket = ARMS[unit]
        found = plan((1, 2, 0.5)).scores(unit.encode())
        assert found == {n: -math.log(u / 2**64) / w for n, u, w in sorted(zip(NAMES, numbers, (1, 2, 0.5), strict=True))}
        assert bucket_of(unit.encode()) == bucket

    def test_arms_are_those_of_the_table(self) -> None:
        """The unit → arm table nobody may change: it would move users of running experiments."""
        assert {unit: plan((1, 1, 1)).arm_of(unit.encode()) for unit in ARMS} == EQUAL
        assert {unit: plan((4, 1, 1)).arm_of(unit.encode()) for unit in ARMS} == FOUR_TO_ONE

    def test_revision_is_pinned(self) -> None:
        """Replicas of different releases must agree on it."""
        assert plan((1, 1)).revision == "8953d4ce"


class TestRendezvous:
    @given(units, st.lists(weights, min_size=1, max_size=5), st.randoms(use_true_random=False))
    def test_the_order_of_arms_decides_nothing(self, unit: bytes, given: list[float], random: object) -> None:
        """The same unit gets the same arm on every replica, whatever order its file has."""
        own = plan(given)
        shuffled = list(own.arms)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        assert replace(own, arms=tuple(shuffled)).arm_of(unit) == own.arm_of(unit)

    @pytest.mark.parametrize("n", [2, 5])
    @given(data=st.data())
    def test_raising_one_weight_moves_units_only_to_that_arm(self, n: int, data: st.DataObject) -> None:
        """Nobody is moved between two other arms, for any number of arms."""
        before = data.draw(st.lists(weights, min_size=n, max_size=n))
        raised = data.draw(st.integers(0, n - 1))
        after = [w * data.draw(st.floats(1.0, 50.0)) if i == raised else w for i, w in enumerate(before)]
        name = plan(before).arms[raised].name
        for unit in data.draw(st.lists(units, min_size=1, max_size=30)):
            was, is_now = plan(before).arm_of(unit), plan(after).arm_of(unit)
            assert is_now in (was, name)

    def test_raising_a_weight_does_move_units(self) -> None:
        """The property above does not hold because nothing ever moves."""
        before, after = plan((1, 1)), plan((1, 3))
        moved = sum(before.arm_of(b"u%d" % i) != after.arm_of(b"u%d" % i) for i in range(2000))
        assert 0.2 < moved / 2000 < 0.3  # from a half to three quarters

    @pytest.mark.parametrize("given", [(1, 1), (1, 3), (5, 1, 1, 2, 1)], ids=str)
    def test_shares_are_those_of_the_weights(self, given: tuple[float, ...]) -> None:
        """Every arm's number of units lies within five standard deviations of the binomial."""
        n, own = 20_000, plan(given)
        counts = dict.fromkeys([arm.name for arm in own.arms], 0)
        for i in range(n):
            counts[own.arm_of(b"user-%d" % i)] += 1
        for arm in own.arms:
            p = arm.weight / sum(given)
            assert abs(counts[arm.name] - n * p) <= 5 * math.sqrt(n * p * (1 - p))

    @given(units)
    def test_weight_zero_is_nobody(self, unit: bytes) -> None:
        """An arm that is withdrawn by its weight gets no unit, however its draw fell."""
        assert plan((0, 1)).arm_of(unit) == "treatment"
        assert "control" not in plan((0, 1)).scores(unit)

    def test_salts_and_names_deal_anew(self) -> None:
        """Two experiments, or one with another salt, do not give their arms to the same units."""
        own = plan()
        for other in (plan(salt="s2"), plan(experiment="exp2")):
            same = sum(own.arm_of(b"u%d" % i) == other.arm_of(b"u%d" % i) for i in range(4000))
            assert abs(same - 2000) < 5 * math.sqrt(1000)

    def test_buckets_do_not_tell_the_arm(self) -> None:
        """Statistics vary over buckets within an arm, so both arms have units in all of them."""
        own = plan()
        seen = {(own.arm_of(b"u%d" % i), bucket_of(b"u%d" % i)) for i in range(4000)}
        assert len(seen) == 2 * 64

    @pytest.mark.parametrize("u", [0.0, 0.2499, 0.25, 0.9999999999999999])
    def test_a_request_without_a_unit_gets_an_arm_by_weight(self, u: float) -> None:
        """`u` walks along the summed weights; an arm without weight is never met."""
        assert plan((1, 3, 0)).arm_at(u) == ("control" if u < 0.25 else "treatment")


class TestEnrolment:
    @given(units, st.floats(0, 1), st.floats(0, 1))
    def test_growth_never_moves_an_enrolled_unit(self, unit: bytes, one: float, other: float) -> None:
        """Whoever takes part at a smaller share takes part at a larger one, in the same arm."""
        small, large = plan(share=min(one, other)), plan(share=max(one, other))
        if small.enrolled(unit):
            assert large.enrolled(unit)
            assert large.arm_of(unit) == small.arm_of(unit)

    @pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
    def test_the_share_is_kept_and_arms_within_it_too(self, share: float) -> None:
        """Enrolment has a salt of its own: among the enrolled both arms are as frequent as among all."""
        n, own = 10_000, plan(share=share)
        inside = [b"user-%d" % i for i in range(n) if own.enrolled(b"user-%d" % i)]
        assert abs(len(inside) - n * share) <= 5 * math.sqrt(n * share * (1 - share))
        controls = sum(own.arm_of(unit) == "control" for unit in inside)
        assert abs(controls - len(inside) / 2) <= 5 * math.sqrt(len(inside)) / 2


class TestRevision:
    @pytest.mark.parametrize(
        "other",
        [
            replace(plan(), salt="s2"),
            replace(plan(), unit=Unit(field="user")),
            replace(plan(), enrolment_share=0.5),
            replace(plan(), enrolment_salt="e2"),
            plan((1, 2)),
            replace(plan(), arms=(Arm("control", 1, 1), Arm("treatment", 3, 1))),
        ],
        ids=["salt", "unit", "share", "enrolment_salt", "weight", "version"],
    )
    def test_whatever_decides_assignment_changes_it(self, other: Plan) -> None:
        """Counts under one revision were all dealt by one rule."""
        assert other.revision != plan().revision

    def test_nothing_else_does(self) -> None:
        """The order of arms and what answers for one that cannot leave the rule as it is."""
        assert replace(plan(), arms=plan().arms[::-1], fallback="treatment").revision == plan().revision


class TestUnits:
    @pytest.mark.parametrize(
        ("value", "unit"),
        [
            ("ünï", "ünï".encode()),
            (42, b"42"),
            (42.0, b"42"),
            (4.5, b""),
            (float("nan"), b""),
            (True, b""),
            (None, b""),
            ("", b""),
            ("x" * MAX_UNIT_BYTES, b"x" * MAX_UNIT_BYTES),
            ("x" * (MAX_UNIT_BYTES + 1), b""),
            ([1], b""),
        ],
        ids=repr,
    )
    def test_a_field_value_names_a_unit_or_nobody(self, value: object, unit: bytes) -> None:
        """Text and whole numbers do; 42 and "42" are the same unit."""
        assert unit_bytes(value) == unit

    def test_a_header_names_a_unit_or_nobody(self) -> None:
        """Blanks around it do not count, and one that is too long is none."""
        assert header_unit({b"samegraph-unit": b" user-1 "}, b"samegraph-unit") == b"user-1"
        assert header_unit({}, b"samegraph-unit") == b""
        assert header_unit({b"u": b"x" * 257}, b"u") == b""
