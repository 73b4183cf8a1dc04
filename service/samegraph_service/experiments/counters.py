"""What is counted about experiments: exposures, errors, slow answers and feedback, by arm and by bucket of units.

All of it is monotonic and adds up over replicas. A request costs a few additions to lists that its assignment leads to; `exposition` makes
text of them when somebody scrapes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from samegraph_service.metrics import DURATION_BUCKETS, SORT_AT, Histogram

from .assignment import BUCKETS, REASONS
from .breaker import Breaker

#: Revisions of an experiment whose counts are kept: the one in force and the one before.
KEPT_REVISIONS = 2
#: Experiments of all models that are kept; beyond that those that left the file longest ago are dropped.
KEPT_EXPERIMENTS = 64
#: Versions of a model whose feedback is counted.
KEPT_VERSIONS = 16
#: Why feedback was not counted.
REJECTIONS = (
    "malformed", "forged", "wrong_model", "late", "future", "unknown_instance", "unknown_experiment", "unknown_revision", "unknown_metric",
    "wrong_type", "out_of_range", "label_unchecked", "no_values", "duplicate",
)  # fmt: skip
#: The metric under which true labels are counted per version, whether or not an experiment asks for them.
LABEL_METRIC = "label"


@dataclass(frozen=True)
class Metric:
    """An outcome that feedback may report.

    Attributes:
        name: Its name.
        kind: `binary`, `count`, `number` or `label`.
        low: Least value.
        high: Largest value.
        goal: `increase` or `decrease`.
    """

    name: str
    kind: str
    low: float = 0.0
    high: float = 1.0
    goal: str = "increase"


@dataclass(frozen=True)
class Experiment:
    """What the routing file in force says of an experiment.

    Attributes:
        model: Model name.
        name: Its name.
        revision: Of what assigns.
        arms: Arm → weight.
        metrics: Its metrics by name.
        slow_s: Seconds over which an answer counts as slow, or infinity.
    """

    model: str
    name: str
    revision: str
    arms: Mapping[str, float]
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    slow_s: float = math.inf


class ArmCounts:
    """What is counted about one arm in one revision, on every replica on its own.

    Attributes:
        exposures: Per bucket.
        errors: Per bucket.
        slow: Per bucket.
        served: Arm that answered → requests.
        duration: Seconds from head to answer.
        feedback: Metric → values, sum and sum of squares, each per bucket.
    """

    __slots__ = ("duration", "errors", "exposures", "feedback", "served", "slow", "slow_s")

    def __init__(self, arms: Iterable[str], slow_s: float) -> None:
        self.slow_s = slow_s
        self.exposures = [0] * BUCKETS
        self.errors = [0] * BUCKETS
        self.slow = [0] * BUCKETS
        self.served = dict.fromkeys(arms, 0)
        self.duration = Histogram(DURATION_BUCKETS)
        self.feedback: dict[str, tuple[list[int], list[float], list[float]]] = {}

    def feedback_of(self, metric: str) -> tuple[list[int], list[float], list[float]]:
        """Return what is counted about a metric; it begins when it is new."""
        counts = self.feedback.get(metric)
        if counts is None:
            counts = self.feedback[metric] = ([0] * BUCKETS, [0.0] * BUCKETS, [0.0] * BUCKETS)
        return counts

    def value(self, metric: str, bucket: int, above: float) -> None:
        """Count a value of a metric, given as its distance from the metric's least."""
        n, total, squares = self.feedback_of(metric)
        n[bucket] += 1
        total[bucket] += above
        squares[bucket] += above * above


class RevisionCounts:
    """What is counted about one revision of an experiment.

    Attributes:
        revision: Which.
        weights: Arm → weight; empty when only feedback told of it.
        arms: Arm → its counts.
        unassigned: Reason → requests that count for no arm.
        minute: When it is last known to have been in force, in minutes since the epoch.
    """

    def __init__(self, revision: str, minute: int) -> None:
        self.revision = revision
        self.minute = minute
        self.weights: Mapping[str, float] = {}
        self.unassigned = dict.fromkeys(REASONS, 0)
        self.arms: dict[str, ArmCounts] = {}

    def extend(self, experiment: Experiment) -> None:
        """Begin the counts of arms and metrics that are new: Prometheus sees no increase in a series that begins with its first event."""
        self.weights = experiment.arms
        for arm in experiment.arms:
            counts = self.arm(arm)
            counts.slow_s = experiment.slow_s
            for other in experiment.arms:
                counts.served.setdefault(other, 0)
            for metric in experiment.metrics:
                counts.feedback_of(metric)

    def arm(self, name: str) -> ArmCounts:
        """Return the counts of an arm; they begin when it is new."""
        found = self.arms.get(name)
        if found is None:
            found = self.arms[name] = ArmCounts((name,), math.inf)
        return found


class ExperimentCounts:
    """What is counted about one experiment: the revision in force and one other.

    Attributes:
        experiment: What the file in force says, or said last.
        revisions: Revision → counts, the one in force last.
        current: Whether the file in force has the experiment.
    """

    def __init__(self, experiment: Experiment, minute: int) -> None:
        self.experiment = experiment
        self.revisions: dict[str, RevisionCounts] = {}
        self.current = True
        self.install(experiment, minute)

    def install(self, experiment: Experiment, minute: int) -> None:
        """Take what the file in force says; the revision before stays, older ones go."""
        if self.current and self.experiment.revision in self.revisions:
            self.revisions[self.experiment.revision].minute = minute
        self.experiment, self.current = experiment, True
        counts = self.revisions.pop(experiment.revision, None) or RevisionCounts(experiment.revision, minute)
        counts.extend(experiment)
        self.revisions[experiment.revision] = counts
        while len(self.revisions) > KEPT_REVISIONS:
            del self.revisions[next(iter(self.revisions))]

    def told_by(self, revision: str, minute: int) -> RevisionCounts | None:
        """Return the counts of a revision that a prediction id names, or None when it is too old to be kept.

        Another replica may be ahead of this one, or this one may have started after the change: so a revision this replica never served is
        taken in beside the one in force, unless one that was in force later is there.
        """
        found = self.revisions.get(revision)
        if found is not None:
            return found
        for name, other in list(self.revisions.items()):
            if name != self.experiment.revision:
                if other.minute >= minute:
                    return None
                del self.revisions[name]
        found = RevisionCounts(revision, minute)
        self.revisions = {revision: found, **self.revisions}
        return found


class Tally(Protocol):
    """Where the requests of one assignment are counted: made when the first of them is, and found through it by all others."""

    def answered(self, seconds: float) -> None:
        """Count a request that was answered, so many seconds after its head."""
        ...

    def failed(self, seconds: float) -> None:
        """Count a request that failed through no fault of the caller."""
        ...


class ArmTally:
    """Counts exposures of one arm and bucket. What it adds to was looked up once: a request costs 0.2 µs."""

    __slots__ = ("_arm", "_breaker", "_bucket", "_exposures", "_observe", "_pending", "_served", "_served_by", "_slow_s")

    def __init__(self, arm: ArmCounts, bucket: int, served: str, breaker: Breaker | None) -> None:
        self._arm = arm
        self._bucket = bucket
        self._exposures = arm.exposures
        self._pending = arm.duration.pending
        self._observe = arm.duration.observe
        self._slow_s = arm.slow_s
        self._served = arm.served
        self._served_by = served
        self._breaker = breaker
        arm.served.setdefault(served, 0)

    def answered(self, seconds: float) -> None:
        """Count a request that was answered."""
        self._count(seconds)
        breaker = self._breaker
        if breaker is not None:
            if breaker.tried:
                breaker.succeeded()
            else:
                breaker.requests += 1

    def _count(self, seconds: float) -> None:
        self._exposures[self._bucket] += 1
        self._served[self._served_by] += 1
        self._observe(seconds)
        if seconds > self._slow_s:
            self._arm.slow[self._bucket] += 1
        if len(self._pending) >= SORT_AT:
            self._arm.duration.sort()

    def failed(self, seconds: float) -> None:
        """Count a request that failed through no fault of the caller: an exposure too."""
        self._arm.errors[self._bucket] += 1
        self._count(seconds)
        if self._breaker is not None:
            self._breaker.failed()


class ReasonTally:
    """Counts requests that count for no arm, and why; how they go is told to the breaker of the arm that answers them."""

    __slots__ = ("_breaker", "_reason", "_unassigned")

    def __init__(self, revision: RevisionCounts, reason: str, breaker: Breaker | None) -> None:
        self._unassigned = revision.unassigned
        self._reason = reason
        self._breaker = breaker

    def answered(self, _: float) -> None:
        """Count a request that was answered."""
        self._unassigned[self._reason] += 1
        if self._breaker is not None:
            self._breaker.succeeded()

    def failed(self, _: float) -> None:
        """Count a request that failed through no fault of the caller."""
        self._unassigned[self._reason] += 1
        if self._breaker is not None:
            self._breaker.failed()


class Counters:
    """All counts about experiments and feedback. For the event loop's thread.

    Args:
        clock: Seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.experiments: dict[tuple[str, str], ExperimentCounts] = {}
        self.rejected: dict[str, dict[str, int]] = {}
        self.versions: dict[tuple[str, int], dict[str, list[float]]] = {}
        #: Values that were counted and forgotten before their time, so that a repeat would be counted again.
        self.forgotten = 0
        self.generation = 0

    def install(self, experiments: Iterable[Experiment]) -> None:
        """Take the experiments of the routes in force."""
        self.generation += 1
        minute = int(self._clock()) // 60
        installed = set()
        for experiment in experiments:
            key = (experiment.model, experiment.name)
            installed.add(key)
            known = self.experiments.pop(key, None)
            if known is None:
                known = ExperimentCounts(experiment, minute)
            else:
                known.install(experiment, minute)
            self.experiments[key] = known
        for key, counts in self.experiments.items():
            counts.current = key in installed
        for key in [key for key in self.experiments if key not in installed][: max(0, len(self.experiments) - KEPT_EXPERIMENTS)]:
            del self.experiments[key]

    def expect(self, model: str) -> None:
        """Begin the series of refused feedback of a model."""
        if model not in self.rejected:
            self.rejected[model] = dict.fromkeys(REJECTIONS, 0)
            self.generation += 1

    def expect_version(self, model: str, version: int, metrics: Iterable[str]) -> None:
        """Begin the series of a version's feedback."""
        for metric in metrics:
            self._version(model, version, metric)

    def tally(
        self,
        model: str,
        experiment: str,
        revision: str,
        *,
        arm: str,
        served: str,
        bucket: int,
        reason: str,
        breaker: Breaker | None = None,
    ) -> Tally:
        """Return where the requests of an assignment are counted."""
        known = self.experiments.get((model, experiment))
        counts = None if known is None else known.revisions.get(revision)
        if counts is None:  # in flight while the routes changed twice: what it counts is shown nowhere
            counts = RevisionCounts(revision, 0)
        if reason:
            return ReasonTally(counts, reason, breaker)
        of = counts.arm(arm)
        self.generation += served not in of.served
        return ArmTally(of, bucket, served, breaker)

    def experiment(self, model: str, name: str) -> ExperimentCounts | None:
        """Return what is counted about an experiment."""
        return self.experiments.get((model, name))

    def in_force(self, model: str) -> Experiment | None:
        """Return the experiment of a model that the file in force has."""
        return next((known.experiment for (of, _), known in self.experiments.items() if of == model and known.current), None)

    def value(self, counts: RevisionCounts, arm: str, metric: str, bucket: int, above: float) -> None:
        """Count a value that came back for an arm, given as its distance from the metric's least."""
        known = counts.arms.get(arm)
        if known is None or metric not in known.feedback:
            self.generation += 1
        counts.arm(arm).value(metric, bucket, above)

    def version_value(self, model: str, version: int, metric: str, above: float) -> None:
        """Count the same for the version that answered."""
        counts = self._version(model, version, metric)
        counts[0] += 1
        counts[1] += above

    def _version(self, model: str, version: int, metric: str) -> list[float]:
        of = self.versions.get((model, version))
        if of is None:
            own = sorted(v for m, v in self.versions if m == model)
            if len(own) >= KEPT_VERSIONS:
                del self.versions[model, own[0]]
            of = self.versions[model, version] = {}
            self.generation += 1
        if metric not in of:
            of[metric] = [0, 0.0]
            self.generation += 1
        return of[metric]

    def reject(self, model: str, reason: str) -> None:
        """Count feedback that was not counted."""
        self.expect(model)
        self.rejected[model][reason] += 1
