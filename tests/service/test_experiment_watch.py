"""Watching experiments: withdrawals follow the routes, timers may be early, and what does not concern an arm is left out."""

from __future__ import annotations

from collections.abc import Callable

from fakes import FakeLoop
from samegraph_service.experiments.assignment import Assignment
from samegraph_service.experiments.counters import Counters
from samegraph_service.experiments.routing_file import RoutingFile, parse
from samegraph_service.experiments.watch import ExperimentWatch

ROUTING = """
models:
  plants:
    experiments:
      taller:
        salt: s1
        arms:
          control: {version: 1}
          treatment: {version: %d, weight: %g}
        guardrails: {max_error_ratio: 0.1, min_requests: 10, withdraw_s: 60}
"""


def routing(version: int = 2, weight: float = 1) -> RoutingFile:
    return parse((ROUTING % (version, weight)).encode())


class Scene:
    """A watch, a loop whose clock is set by hand, and what it does to the routes."""

    def __init__(self) -> None:
        self.loop = FakeLoop()
        self.withdrawn: dict[str, bool] = {}
        self.trial: Callable[[], None] | None = None
        self.watch = ExperimentWatch(Counters(), self.withdraw, self.loop)
        self.file = routing()
        self.watch.routes_changed(self.file)

    def withdraw(self, model: str, experiment: str, arm: str, *, withdrawn: bool, trial: Callable[[], None] | None = None) -> None:
        assert (model, experiment) == ("plants", "taller")
        self.withdrawn[arm] = withdrawn
        self.trial = trial

    def assignment(self, arm: str = "treatment", served: str = "", reason: str = "", version: int = 2) -> Assignment:
        plan = self.file.models["plants"].plan("plants")
        assert plan is not None
        served = served or arm
        number = version if served == "treatment" else 1
        bucket = -1 if reason else 3
        return Assignment(
            "plants",
            "taller",
            plan.revision,
            arm=arm,
            served_arm=served,
            served_version=number,
            bucket=bucket,
            reason=reason,  # type: ignore[arg-type]
        )

    def send(self, n: int, *, failed: bool, **facts: object) -> None:
        assignment = self.assignment(**facts)  # type: ignore[arg-type]
        for _ in range(n):
            if self.trial is not None and assignment.served_arm == "treatment":
                self.trial()
            self.watch.count(assignment, 0.01, failed=failed)

    def is_withdrawn(self) -> bool:
        return self.watch.withdrawn("plants", "taller", "treatment")

    def on_trial(self) -> bool:
        return self.trial is not None

    def tried(self) -> None:
        assert self.trial is not None
        self.trial()

    def exposures(self, arm: str = "treatment") -> int:
        known = self.watch.counters.experiment("plants", "taller")
        assert known is not None
        return sum(known.revisions[known.experiment.revision].arm(arm).exposures)


def test_an_arm_is_withdrawn_tried_and_restored_by_timers() -> None:
    """The routes are changed three times, and the trial is of twenty requests."""
    scene = Scene()
    scene.send(10, failed=True)
    assert scene.withdrawn == {"treatment": True}
    assert scene.is_withdrawn()
    scene.loop.advance(59.9)
    assert scene.withdrawn == {"treatment": True}
    scene.loop.advance(0.2)
    assert scene.withdrawn == {"treatment": False}
    assert scene.is_withdrawn()
    scene.send(20, failed=False)
    assert scene.withdrawn == {"treatment": False}
    assert not scene.is_withdrawn()
    assert not scene.on_trial()


def test_a_trial_stops_by_itself_after_twenty_requests() -> None:
    """However many come at once, the others get the fallback until those are back."""
    scene = Scene()
    scene.send(10, failed=True)
    scene.loop.advance(61)
    for _ in range(20):
        scene.tried()
    assert scene.withdrawn == {"treatment": True}
    assert not scene.on_trial()
    scene.send(3, failed=True)
    assert scene.withdrawn == {"treatment": True}
    scene.loop.advance(100)
    assert scene.withdrawn == {"treatment": True}
    scene.loop.advance(21)
    assert scene.withdrawn == {"treatment": False}


def test_the_fallback_and_pinned_requests_withdraw_nothing() -> None:
    """Nothing could stand in for the fallback; who pins a version gets it; requests without a unit tell of their arm all the same."""
    scene = Scene()
    scene.send(100, failed=True, arm="control")
    scene.send(100, failed=True, served="treatment", reason="pinned")
    assert scene.withdrawn == {}
    assert scene.exposures("control") == 100
    scene.send(10, failed=True, reason="no_unit")
    assert scene.withdrawn == {"treatment": True}
    assert scene.exposures() == 0


def test_failures_of_the_stand_in_are_not_the_arms() -> None:
    """They are counted for the arm that was assigned, but only what answered can be broken."""
    scene = Scene()
    scene.send(100, failed=True, served="control")
    assert scene.withdrawn == {}
    assert scene.exposures() == 100


def test_new_weights_keep_a_withdrawal_and_a_new_version_ends_it() -> None:
    """A rollout's step does not bring a broken arm back; another version under the arm's name is another thing."""
    scene = Scene()
    scene.send(10, failed=True)
    scene.file = routing(weight=5)
    scene.watch.routes_changed(scene.file)
    assert scene.is_withdrawn()
    scene.file = routing(version=3)
    scene.watch.routes_changed(scene.file)
    assert scene.withdrawn == {"treatment": False}
    assert not scene.is_withdrawn()
    scene.loop.advance(1000)  # the timer of the old one does nothing any more
    assert scene.withdrawn == {"treatment": False}
    scene.send(9, failed=True, version=3)
    assert not scene.is_withdrawn()
    scene.send(1, failed=True, version=3)
    assert scene.is_withdrawn()


def test_a_file_without_the_experiment_ends_a_withdrawal() -> None:
    """What is no longer decided can no longer be withdrawn."""
    scene = Scene()
    scene.send(10, failed=True)
    scene.watch.routes_changed(parse(b"models: {}"))
    assert scene.withdrawn == {"treatment": False}
    assert not scene.is_withdrawn()
