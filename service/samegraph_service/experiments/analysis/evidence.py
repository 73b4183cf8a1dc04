"""What is known of one experiment: the counters of one or many replicas, added up. Where they came from makes no difference."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, cast

from samegraph_service.errors import NoEvidence

from .clusters import BUCKETS, NONE, Counts, Moments

PREFIX = "samegraph_experiment_"
#: Families that are counters, by the rest of their names, and so are added up over replicas and restarts.
COUNTERS = (
    "exposures_total",
    "errors_total",
    "slow_total",
    "served_total",
    "unassigned_total",
    "feedback_total",
    "feedback_value_sum_total",
    "feedback_value_sumsq_total",
    "duration_seconds_bucket",
    "duration_seconds_sum",
    "duration_seconds_count",
)
#: Families that say how things stand; every replica says the same, so the largest is taken (of `withdrawn` the sum).
GAUGES = ("info", "arm_weight", "metric_info", "withdrawn")
#: Arms that stand for the base of comparison when nothing else says which one does.
USUAL_CONTROL = "control"

Kind = Literal["binary", "count", "number", "label"]
Goal = Literal["increase", "decrease"]
#: What can go wrong with a request, apart from its outcome.
Events = Literal["errors", "slow"]


class Sample(NamedTuple):
    """One line of a metrics page."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Metric:
    """What an outcome is.

    Attributes:
        kind: binary, count, number, or label (a true label, compared with the answered one: binary).
        minimum: Subtracted from each value before it is summed.
        goal: Which direction is better.
    """

    kind: Kind = "binary"
    minimum: float = 0.0
    goal: Goal = "increase"


@dataclass(frozen=True)
class Latency:
    """Answer times of an arm.

    Attributes:
        buckets: Upper bound in seconds → requests at most that slow.
        total_s: Sum of all times.
        count: Requests.
    """

    buckets: Mapping[float, float] = field(default_factory=dict)
    total_s: float = 0.0
    count: float = 0.0

    @property
    def mean_s(self) -> float | None:
        """Mean answer time; None without requests."""
        return self.total_s / self.count if self.count else None

    def quantile_s(self, q: float) -> float | None:
        """Return the quantile, straight between two bounds as PromQL does it; beyond the last bound that bound; None without requests."""
        bounds = sorted(self.buckets)
        if not bounds or not self.buckets[bounds[-1]]:
            return None
        rank, low, below = q * self.buckets[bounds[-1]], 0.0, 0.0
        for bound in bounds:
            here = self.buckets[bound]
            if here >= rank:
                return low if math.isinf(bound) else low + (bound - low) * ((rank - below) / (here - below) if here > below else 1.0)
            low, below = bound, here
        return low


@dataclass(frozen=True)
class ArmCounts:
    """The counters of one arm in one revision.

    Attributes:
        weight: Its planned weight; None when no replica says.
        exposures: Requests whose unit was assigned to the arm, by bucket of the unit.
        errors: Those that failed through no fault of the caller.
        slow: Those slower than the experiment's limit.
        served: Arm that really answered → requests.
        latency: Answer times.
        feedback: Metric → its moments.
    """

    weight: float | None = None
    exposures: Counts = NONE
    errors: Counts = NONE
    slow: Counts = NONE
    served: Mapping[str, float] = field(default_factory=dict)
    latency: Latency = field(default_factory=Latency)
    feedback: Mapping[str, Moments] = field(default_factory=dict)

    def share_of(self, events: Events) -> Moments:
        """Return a kind of event among the arm's exposures as the moments of zeros and ones."""
        counts = self.errors if events == "errors" else self.slow
        return Moments(self.exposures, counts, counts)


@dataclass(frozen=True)
class Revision:
    """Everything counted while one assignment was in force.

    Attributes:
        name: Eight hex digits of what decides assignment.
        current: Whether it is in force now.
        arms: In order of their names.
        unassigned: Reason → requests that were marked and not mixed in.
    """

    name: str
    current: bool
    arms: Mapping[str, ArmCounts]
    unassigned: Mapping[str, float] = field(default_factory=dict)

    @property
    def exposed(self) -> float:
        """Requests assigned to any arm."""
        return math.fsum(x for arm in self.arms.values() for x in arm.exposures)


@dataclass(frozen=True)
class Evidence:
    """All that is known of one experiment.

    Attributes:
        model: The model's name.
        experiment: The experiment's name.
        revisions: The current one last.
        metrics: Outcome → what it is.
        withdrawn: Arm → replicas that have taken it out by themselves (circuit-break).
        source: Where this was read, in words.
    """

    model: str
    experiment: str
    revisions: tuple[Revision, ...]
    metrics: Mapping[str, Metric]
    withdrawn: Mapping[str, float] = field(default_factory=dict)
    source: str = ""

    @property
    def current(self) -> Revision:
        """The revision in force; the last one known when none is."""
        return self.revisions[-1]

    @property
    def arms(self) -> list[str]:
        """Every arm of any revision, by name."""
        return sorted({name for revision in self.revisions for name in revision.arms})

    def control(self, asked: str | None = None) -> str:
        """Return the arm that others are compared with: the one asked for, else `control`, else the first by name.

        Raises:
            NoEvidence: There is no such arm.
        """
        known = self.arms
        if asked is not None and asked not in known:
            raise NoEvidence(f"experiment {self.experiment!r} has no arm {asked!r}; it has {', '.join(known) or 'none'}")
        return asked or (USUAL_CONTROL if USUAL_CONTROL in known else known[0])


def experiments_in(samples: Iterable[Sample]) -> list[tuple[str, str]]:
    """Return every (model, experiment) that some samples tell of, sorted."""
    found = {(s.labels["model"], s.labels["experiment"]) for s in samples if "experiment" in s.labels and s.name.startswith(PREFIX)}
    return sorted(found)


def gather(samples: Iterable[Sample], model: str, experiment: str, source: str = "") -> Evidence:
    """Add up the samples of any number of replicas.

    Args:
        samples: Lines of metrics pages, or a Prometheus server's answers; others than this experiment's are passed over.
        model: The model's name.
        experiment: The experiment's name.
        source: Where they were read.

    Raises:
        NoEvidence: Nothing among them is of this experiment.
    """
    sums = _Sums()
    for sample in samples:
        if sample.labels.get("model") == model and sample.labels.get("experiment") == experiment:
            sums.add(sample)
    return sums.evidence(model, experiment, source)


class _Sums:
    """Counters by family and labels, while they are being added up: exactly, so that the order of replicas makes no difference."""

    def __init__(self) -> None:
        self.counters: dict[tuple[str, ...], list[float]] = {}
        self.buckets: dict[tuple[str, ...], list[list[float]]] = {}
        self.current: dict[str, float] = {}
        self.weights: dict[tuple[str, str], float] = {}
        self.metrics: dict[str, Metric] = {}
        self.withdrawn: dict[str, float] = {}

    def add(self, sample: Sample) -> None:
        family, labels, value = sample.name.removeprefix(PREFIX), sample.labels, sample.value
        if family in COUNTERS:
            self._count(family, labels, value)
        elif family == "info":
            now = value * (labels.get("current", "1") not in ("0", "false"))
            self.current[labels["revision"]] = max(now, self.current.get(labels["revision"], 0.0))
        elif family == "arm_weight":
            key = (labels["revision"], labels["arm"])
            self.weights[key] = max(value, self.weights.get(key, 0.0))
        elif family == "metric_info":
            self.metrics[labels["metric"]] = Metric(
                kind=cast(Kind, labels.get("kind", "number")),
                minimum=_number(labels.get("min", "")) or 0.0,
                goal=cast(Goal, labels.get("goal") or "increase"),
            )
        elif family == "withdrawn":
            self.withdrawn[labels["arm"]] = self.withdrawn.get(labels["arm"], 0.0) + value

    def _count(self, family: str, labels: Mapping[str, str], value: float) -> None:
        key = (family, labels["revision"], labels.get("arm", ""), *(labels[n] for n in ("metric", "served", "reason", "le") if n in labels))
        if "bucket" in labels:
            bucket = int(labels["bucket"])
            if 0 <= bucket < BUCKETS:
                self.buckets.setdefault(key, [[] for _ in range(BUCKETS)])[bucket].append(value)
        else:
            self.counters.setdefault(key, []).append(value)

    def evidence(self, model: str, experiment: str, source: str) -> Evidence:
        names = {key[1] for key in (*self.counters, *self.buckets)} | set(self.current) | {revision for revision, _ in self.weights}
        if not names:
            raise NoEvidence(
                f"{source or 'the source'} knows nothing of experiment {experiment!r} of model {model!r}; is it in routing.yaml, and has a "
                "request been answered since?"
            )
        revisions = sorted((self._revision(name) for name in names), key=lambda r: (r.current, r.exposed, r.name))
        return Evidence(model, experiment, tuple(revisions), dict(sorted(self.metrics.items())), self.withdrawn, source)

    def _revision(self, name: str) -> Revision:
        arms = {key[2] for key in (*self.counters, *self.buckets) if key[1] == name and key[2]}
        arms |= {arm for revision, arm in self.weights if revision == name}
        reasons = {key[3]: math.fsum(parts) for key, parts in self.counters.items() if key[0] == "unassigned_total" and key[1] == name}
        return Revision(name, bool(self.current.get(name)), {arm: self._arm(name, arm) for arm in sorted(arms)}, reasons)

    def _arm(self, revision: str, arm: str) -> ArmCounts:
        def by_bucket(family: str, *more: str) -> Counts:
            parts = self.buckets.get((family, revision, arm, *more))
            return NONE if parts is None else tuple(map(math.fsum, parts))

        def by(family: str) -> dict[str, float]:
            return {k[3]: math.fsum(v) for k, v in self.counters.items() if k[:3] == (family, revision, arm)}

        def of_arm(family: str) -> float:
            return math.fsum(self.counters.get((family, revision, arm), ()))

        metrics = {k[3] for k in self.buckets if k[:3] == ("feedback_total", revision, arm)}
        return ArmCounts(
            weight=self.weights.get((revision, arm)),
            exposures=by_bucket("exposures_total"),
            errors=by_bucket("errors_total"),
            slow=by_bucket("slow_total"),
            served=by("served_total"),
            latency=Latency(
                buckets={float(bound): n for bound, n in by("duration_seconds_bucket").items()},
                total_s=of_arm("duration_seconds_sum"),
                count=of_arm("duration_seconds_count"),
            ),
            feedback={
                metric: Moments(
                    by_bucket("feedback_total", metric),
                    by_bucket("feedback_value_sum_total", metric),
                    by_bucket("feedback_value_sumsq_total", metric),
                )
                for metric in sorted(metrics)
            },
        )


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
