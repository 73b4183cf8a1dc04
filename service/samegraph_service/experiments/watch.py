"""Watches the requests of experiments: counts them, and withdraws an arm that fails outright for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

from samegraph_service.logs import get_logger

from .assignment import Assignment
from .breaker import Breaker, BreakPolicy
from .counters import Counters, Experiment, Metric
from .routing_file import NOTHING, ExperimentSpec, RoutingFile

log = get_logger("samegraph.experiments")

#: A withdrawal lasts at most so many times as long as the first one, and a day.
LONGEST_HOLDS = 12
DAY_S = 86_400.0
#: What is added to a time whose timer fired before it.
EARLY_S = 0.005

#: Model, experiment, arm, version.
ArmKey = tuple[str, str, str, int]


class Timers(Protocol):
    """What is needed of an event loop."""

    def time(self) -> float:
        """Return seconds, monotonic."""
        ...

    def call_at(self, when: float, callback: Callable[..., object], *args: object) -> object:
        """Call back at that time."""
        ...


class Withdraw(Protocol):
    """Changes the routes."""

    def __call__(self, model: str, experiment: str, arm: str, *, withdrawn: bool, trial: Callable[[], None] | None = None) -> None:
        """Let the fallback answer for an arm, or the arm itself; `trial` is then called for each request it gets."""
        ...


class ExperimentWatch:
    """Counts what experiments decided and how it went. For the event loop's thread.

    Args:
        counters: What is counted.
        withdraw: Changes the routes.
        loop: The event loop.
    """

    def __init__(self, counters: Counters, withdraw: Withdraw, loop: Timers) -> None:
        self.counters = counters
        self._withdraw = withdraw
        self._loop = loop
        self._file: RoutingFile = NOTHING
        self._breakers: dict[ArmKey, Breaker] = {}

    def routes_changed(self, file: RoutingFile) -> None:
        """Take what the routing file in force says; what was counted and withdrawn stays as far as it is still there."""
        if file is self._file:
            return
        self._file = file
        self.counters.install(_experiments(file))
        policies = dict(_policies(file))
        for key, breaker in list(self._breakers.items()):
            if policies.get(key) != breaker.policy:
                del self._breakers[key]
                if breaker.withdrawn:
                    self._withdraw(*key[:3], withdrawn=False)
        for key, policy in policies.items():
            if key not in self._breakers:
                self._breakers[key] = Breaker(policy, self._loop.time, partial(self._changed, key))

    def count(self, assignment: Assignment, seconds: float, *, failed: bool) -> None:
        """Count a request that was answered, or failed through no fault of its caller, so many seconds after its head."""
        tally = assignment.counts
        if tally is None:
            tally = assignment.counts = self.counters.tally(
                assignment.model,
                assignment.experiment,
                assignment.revision,
                arm=assignment.arm,
                served=assignment.served_arm,
                bucket=assignment.bucket,
                reason=assignment.reason,
                breaker=self._breaker_of(assignment),
            )
        if failed:
            tally.failed(seconds)
        else:
            tally.answered(seconds)

    def withdrawn(self, model: str, experiment: str, arm: str) -> bool:
        """Whether this replica has withdrawn an arm."""
        return any(breaker.withdrawn for key, breaker in self._breakers.items() if key[:3] == (model, experiment, arm))

    def _breaker_of(self, assignment: Assignment) -> Breaker | None:
        if assignment.reason == "pinned":  # whoever asks for a version gets it, whatever becomes of it
            return None
        key = (assignment.model, assignment.experiment, assignment.served_arm, assignment.served_version)
        return self._breakers.get(key)

    def _changed(self, key: ArmKey, breaker: Breaker) -> None:
        if self._breakers.get(key) is not breaker:  # of routes that are no longer in force
            return
        model, experiment, arm, version = key
        facts: dict[str, Any] = {"model": model, "experiment": experiment, "arm": arm, "version": version}
        policy = breaker.policy
        if breaker.state == "open":
            log.error(
                "arm_withdrawn",
                **facts,
                reason=f"more than {policy.max_error_ratio:.3g} of its last {policy.min_requests} requests, or of its trial, failed here",
                hold_s=breaker.hold_s,
                times=breaker.opened,
            )
        elif breaker.state == "trying":
            log.info("arm_tried", **facts, requests=policy.trial_requests)
        elif breaker.state == "closed":
            log.info("arm_restored", **facts)
        self._withdraw(model, experiment, arm, withdrawn=not breaker.answers, trial=breaker.started if breaker.state == "trying" else None)
        if breaker.due is not None:
            self._loop.call_at(breaker.due, self._wake, breaker, breaker.due)

    def _wake(self, breaker: Breaker, due: float) -> None:
        """Wake a breaker when its time has come; a timer may fire a little before."""
        if breaker.due != due:
            return
        if self._loop.time() < due:
            self._loop.call_at(due + EARLY_S, self._wake, breaker, due)
        else:
            breaker.wake()


def _experiments(file: RoutingFile) -> Iterator[Experiment]:
    for model, routing in file.models.items():
        plan, enabled = routing.plan(model), routing.enabled
        if plan is None or enabled is None:
            continue
        spec = enabled[1]
        metrics = {name: Metric(name, metric.kind, *metric.bounds, metric.goal) for name, metric in spec.metrics.items()}
        slow_s = float("inf") if spec.slo_ms is None else spec.slo_ms / 1000
        yield Experiment(model, plan.experiment, plan.revision, {arm.name: arm.weight for arm in plan.arms}, metrics, slow_s)


def _policies(file: RoutingFile) -> Iterator[tuple[ArmKey, BreakPolicy]]:
    """Yield when each arm is withdrawn. The fallback never is: nothing else could answer for it for certain."""
    for model, routing in file.models.items():
        plan, enabled = routing.plan(model), routing.enabled
        if plan is None or enabled is None:
            continue
        for arm in plan.arms:
            if arm.name != plan.fallback:
                yield (model, plan.experiment, arm.name, arm.version), _policy(enabled[1])


def _policy(spec: ExperimentSpec) -> BreakPolicy:
    rails = spec.guardrails
    longest_s = max(rails.withdraw_s, min(LONGEST_HOLDS * rails.withdraw_s, DAY_S))
    return BreakPolicy(rails.max_error_ratio, rails.min_requests, rails.withdraw_s, longest_s)
