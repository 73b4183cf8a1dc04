"""The circuit-break: an arm that fails outright is withdrawn for a while, and never flaps."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from samegraph_service.experiments.breaker import Breaker, BreakPolicy, State

POLICY = BreakPolicy(max_error_ratio=0.05, min_requests=200, hold_s=60.0, longest_s=600.0, trial_requests=20)


class Scene:
    """An arm, its breaker, and a clock set by hand."""

    def __init__(self, policy: BreakPolicy = POLICY) -> None:
        self.now = 1000.0
        self.changes: list[tuple[float, State]] = []
        self.breaker = Breaker(policy, lambda: self.now, lambda breaker: self.changes.append((self.now, breaker.state)))

    def start(self) -> bool:
        """Send one request to the arm if it answers."""
        self.breaker.wake()
        if not self.breaker.answers:
            return False
        if self.breaker.state == "trying":
            self.breaker.started()
        return True

    def send(self, failures: int, of: int) -> int:
        """Send requests, the failing ones last, as long as they go to the arm; return how many did."""
        sent = 0
        for i in range(of):
            if self.start():
                sent += 1
                (self.breaker.failed if i >= of - failures else self.breaker.succeeded)()
        return sent

    def state(self) -> State:
        return self.breaker.state


def test_a_broken_arm_is_withdrawn_at_the_least_number_of_requests() -> None:
    """Whatever fails before there were 200 requests is too little to go by; the 200th decides."""
    scene = Scene()
    scene.send(199, of=199)
    assert scene.state() == "closed"
    scene.send(1, of=1)
    assert scene.state() == "open"
    assert scene.send(0, of=50) == 0
    assert scene.breaker.withdrawn


def test_the_share_is_of_the_last_requests() -> None:
    """Ten failures among the last 200 are tolerated, the eleventh is not, however many requests went well before."""
    scene = Scene()
    scene.send(0, of=100_000)
    scene.send(10, of=10)
    assert scene.state() == "closed"
    scene.send(0, of=189)
    scene.send(1, of=1)  # the first of the ten is now the 200th last
    assert scene.state() == "open"


def test_old_failures_are_forgotten() -> None:
    """Ten failures in every 200 requests go on for ever without a withdrawal."""
    scene = Scene()
    for _ in range(50):
        scene.send(10, of=200)
    assert scene.state() == "closed"


def test_failures_far_below_the_limit_withdraw_nothing() -> None:
    """100,000 requests of which one in a hundred fails at random: eleven in some 200 of them never come together."""
    rng = random.Random(7)
    scene = Scene()
    for _ in range(100_000):
        (scene.breaker.failed if rng.random() < 0.01 else scene.breaker.succeeded)()
    assert scene.state() == "closed"


def test_it_is_tried_with_a_few_requests_and_restored() -> None:
    """When the time is up 20 requests go through and no more until they came back; then the arm is as new."""
    scene = Scene()
    scene.send(200, of=200)
    scene.now += 59.9
    assert not scene.start()
    scene.now += 0.1
    assert [scene.start() for _ in range(30)] == [True] * 20 + [False] * 10
    assert scene.state() == "waiting"
    assert scene.breaker.withdrawn
    for _ in range(20):
        scene.breaker.succeeded()
    assert scene.state() == "closed"
    scene.send(199, of=199)
    assert scene.state() == "closed"
    assert [state for _, state in scene.changes] == ["open", "trying", "waiting", "closed"]


def test_a_failed_trial_holds_twice_as_long_up_to_a_bound() -> None:
    """An arm that stays broken costs two requests each time it is tried, and is tried ever more seldom."""
    scene = Scene()
    scene.send(200, of=200)
    holds, costs = [scene.breaker.hold_s], []
    for _ in range(6):
        scene.now += scene.breaker.hold_s
        costs.append(scene.send(20, of=20))
        assert scene.state() == "open"
        holds.append(scene.breaker.hold_s)
    assert holds == [60, 120, 240, 480, 600, 600, 600]
    assert costs == [2] * 6


def test_an_arm_that_breaks_soon_again_is_held_longer_and_one_that_held_is_not() -> None:
    """That is why it never flaps: good trials alone do not make it trusted."""
    scene = Scene()
    scene.send(200, of=200)
    scene.now += 60
    scene.send(0, of=20)
    assert scene.state() == "closed"
    scene.now += 59
    scene.send(200, of=200)
    assert scene.breaker.hold_s == 120
    scene.now += 120
    scene.send(0, of=20)
    scene.now += 121
    scene.send(200, of=200)
    assert scene.breaker.hold_s == 60


def test_an_arm_that_always_breaks_after_its_trial_changes_ever_more_seldom() -> None:
    """A day of the worst: every trial goes well and then everything fails. Withdrawn at most once per longest hold in the end."""
    scene = Scene()
    end = scene.now + 86_400
    while scene.now < end:
        scene.send(0, of=20) if scene.state() != "closed" else scene.send(200, of=200)
        scene.now += 1
    opened = [at for at, state in scene.changes if state == "open"]
    assert len(opened) <= 4 + 86_400 / 600
    assert min(b - a for a, b in pairwise(opened[5:])) >= 600


def test_a_trial_whose_requests_never_come_back_is_made_again() -> None:
    """Callers may leave; the arm is not lost with them."""
    scene = Scene()
    scene.send(200, of=200)
    scene.now += 60
    assert sum(scene.start() for _ in range(25)) == 20
    scene.now += 59
    assert not scene.start()
    scene.now += 1
    assert sum(scene.start() for _ in range(25)) == 20


def test_a_trial_waits_for_traffic() -> None:
    """With few requests a trial lasts as long as it takes; what came back counts."""
    scene = Scene()
    scene.send(200, of=200)
    scene.now += 60
    for _ in range(20):
        scene.now += 600
        assert scene.send(0, of=1) == 1
    assert scene.state() == "closed"


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_the_ends_of_the_range(ratio: float) -> None:
    """At 0 the first failure is one too many; at 1 nothing ever is."""
    scene = Scene(BreakPolicy(max_error_ratio=ratio, min_requests=10, trial_requests=5))
    scene.send(0, of=9)
    scene.send(1, of=1)
    assert scene.state() == ("open" if ratio == 0 else "closed")
    scene.send(50, of=50)
    assert scene.breaker.withdrawn == (ratio == 0)
