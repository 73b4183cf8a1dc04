"""Metrics: plain counters the hot path can afford, and one Prometheus collector that renders them.

A labelled `inc()` of the client library takes about 2 µs; adding to an attribute takes 30 ns. So everything a request touches
is an attribute of an object made when its version was loaded, and families are built only when somebody scrapes.
Everything is written on the event loop's thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from .tickets import Seen

UNKNOWN_MODEL = "_unknown"
STAGES = ("decode", "item", "queue", "batch", "encode")
#: Seconds; from the cheapest model on the loop to a slow one behind a queue.
DURATION_BUCKETS = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
#: Statuses that alerts are about; their series exist before the first such answer.
EXPECTED_FAILURES = (400, 429, 500, 503, 504)
#: So many values are sorted into their buckets together.
SORT_AT = 1024
BATCH_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


#: Name, help and attribute of `VersionMetrics` of what is counted about a version.
_VERSION_COUNTERS = (
    ("samegraph_instances", "Instances answered.", "instances"),
    ("samegraph_failed_instances", "Instances that failed alone.", "failed_instances"),
    ("samegraph_expired_requests", "Requests dropped because their deadline passed while they waited.", "expired_works"),
    ("samegraph_backlog_rows", "Rows of executions that started with others left waiting.", "backlog_rows"),
    ("samegraph_backlog_wanted_rows", "Rows the batch policy wanted in those executions.", "backlog_wanted_rows"),
    ("samegraph_input_elements", "Elements that executions read in inputs of varying shape, padding included.", "input_elements"),
    ("samegraph_padding_elements", "How many of those were padding.", "padding_elements"),
    ("samegraph_poison_refused_instances", "Instances refused because executions failed on them twice.", "poison_refused"),
)


class Histogram:
    """Counts per bucket (upper bounds inclusive, as Prometheus reads them) and a sum.

    Values are gathered and sorted into their buckets many at a time, which takes a quarter of doing it one by one; who observes calls
    `sort` now and then.

    Attributes:
        bounds: Upper bounds of the buckets but the last.
        pending: Values that are not in their buckets yet.
        observe: Counts one value.
    """

    __slots__ = ("_counts", "_total", "bounds", "observe", "pending")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self._counts = np.zeros(len(self.bounds) + 1, dtype=np.int64)
        self._total = 0.0
        self.pending: list[float] = []
        self.observe: Callable[[float], None] = self.pending.append

    @property
    def counts(self) -> list[int]:
        """How many values fell into each bucket, the last being above all bounds."""
        self.sort()
        return [int(count) for count in self._counts]

    @property
    def total(self) -> float:
        """The sum of all values."""
        self.sort()
        return self._total

    def cumulative(self) -> list[int]:
        """Return how many values were at most each bound, the last being all of them."""
        self.sort()
        return [int(count) for count in self._counts.cumsum()]

    def buckets(self) -> list[tuple[str, float]]:
        """Return cumulative (upper bound, count) pairs."""
        bounds = (*map(repr, self.bounds), "+Inf")
        return [(bound, float(count)) for bound, count in zip(bounds, self.cumulative(), strict=True)]

    def sort(self) -> None:
        """Put the pending values into their buckets."""
        if self.pending:
            self._counts += np.bincount(np.searchsorted(self.bounds, self.pending), minlength=len(self._counts))
            self._total += math.fsum(self.pending)
            self.pending.clear()


class VersionMetrics:
    """What is counted about one version. Also its lane's observer."""

    def __init__(self, model: str, version: int) -> None:
        self.model = model
        self.version = str(version)
        self.stages = {stage: Histogram(DURATION_BUCKETS) for stage in STAGES}
        self.batch_size = Histogram(BATCH_BUCKETS)
        self.duration = Histogram(DURATION_BUCKETS)
        self.instances = 0
        self.failed_instances = 0
        self.expired_works = 0
        self.backlog_rows = self.backlog_wanted_rows = 0
        self.input_elements = self.padding_elements = 0
        self.poison_refused = 0
        self.batches: dict[int, tuple[int, float]] = {}  # rows in an execution → executions and their seconds
        self.last_execution_ns = 0  # since the epoch
        self.decode, self.item, self._queue, self._batch, self.encode = (self.stages[stage] for stage in STAGES)

    def executed(self, rows: int, seconds: float, queue_seconds: Sequence[float]) -> None:
        """Count one execution (see `device.LaneObserver`)."""
        self.batch_size.observe(rows)
        self._batch.observe(seconds)
        n, total = self.batches.get(rows, (0, 0.0))  # of a key there is one per size up to the largest batch; 0.2 µs an execution
        self.batches[rows] = (n + 1, total + seconds)
        self.last_execution_ns = time.time_ns()
        self._queue.pending.extend(queue_seconds)
        if len(self._queue.pending) >= SORT_AT:
            self.sort()

    def decoded(self, seconds: float) -> None:
        """Count the reading of one body that went no further."""
        self.decode.observe(seconds)
        if len(self.decode.pending) >= SORT_AT:
            self.sort()

    def sort(self) -> None:
        """Put what was observed into buckets."""
        for histogram in (*self.stages.values(), self.batch_size, self.duration):
            histogram.sort()

    def expired(self, works: int) -> None:
        """Count works dropped from the queue because their deadline passed."""
        self.expired_works += works

    def backlogged(self, rows: int, wanted: int) -> None:
        """Count an execution that left others waiting (see `device.LaneObserver`)."""
        self.backlog_rows += rows
        self.backlog_wanted_rows += wanted

    def padded(self, elements: int, padding: int) -> None:
        """Count the elements of an execution in inputs of varying shape (see `device.LaneObserver`)."""
        self.input_elements += elements
        self.padding_elements += padding

    def refused_poison(self) -> None:
        """Count an instance that was refused because executions failed on it before."""
        self.poison_refused += 1


class AdmissionMetrics:
    """What is measured about hints.

    Attributes:
        early: By how many seconds places came free before they were promised.
        late: By how many after.
    """

    def __init__(self) -> None:
        self.early = Histogram(DURATION_BUCKETS)
        self.late = Histogram(DURATION_BUCKETS)

    def hint_error(self, seconds: float) -> None:
        """A place came free so many seconds after it was promised."""
        histogram = self.late if seconds > 0 else self.early
        histogram.observe(abs(seconds))
        if len(histogram.pending) >= SORT_AT:
            histogram.sort()

    def families(self, seen: Seen, replayed: Mapping[str, int], abandoned: Mapping[str, int]) -> Iterable[Metric | HistogramFamily]:
        """Give everything, with what became of tickets, of repeated requests and of those whose callers left."""
        yield HistogramFamily(
            "samegraph_hint_error_seconds",
            "Between the moment a refused caller was first promised and the one at which a place came free.",
            [((("side", "early"),), self.early), ((("side", "late"),), self.late)],
        )
        returns = (("hit", seen.hits), ("miss", seen.misses), ("early", seen.early))
        yield _counter("samegraph_hint_returns", "Refused callers who came back, by result.", ("result",), [((r,), n) for r, n in returns])
        tickets = (("issued", seen.issued), ("expired", seen.expired), ("none", seen.unticketed))
        yield _counter("samegraph_tickets", "Tickets of refused callers.", ("event",), [((e,), n) for e, n in tickets])
        yield _counter(
            "samegraph_replayed_requests",
            "Requests answered with the computation of another under the same key.",
            ("how",),
            [((how,), n) for how, n in replayed.items()],
        )
        yield _counter(
            "samegraph_abandoned_requests",
            "Requests with an idempotency key whose last caller left.",
            ("how",),
            [((how,), n) for how, n in abandoned.items()],
        )


@dataclass
class Reading:
    """What the collector asks the rest of the service for at a scrape."""

    versions: Callable[[], Iterable[VersionReading]]
    gauges: Callable[[], Iterable[tuple[str, str, float]]]
    refused: Callable[[], dict[str, int]]
    loads: Callable[[], dict[str, int]]
    more: Callable[[], Iterable[Metric | HistogramFamily]] = field(default=lambda: ())
    dropped_log_lines: Callable[[], int] = field(default=lambda: 0)


@dataclass(frozen=True)
class VersionReading:
    """State of one version at a scrape."""

    model: str
    version: str
    state: str
    digest: str
    proven: bool
    golden_samples: int
    max_ulp: int
    checked_at: float | None
    check_passed: bool
    engines: dict[str, int]
    queue_rows: int
    load_seconds: float
    metrics: VersionMetrics | None


#: (label, value) pairs.
Labels: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class HistogramFamily:
    """A metric that is a histogram for each set of labels.

    Attributes:
        name: Its name.
        help: A sentence.
        series: The labels and the histogram of each.
    """

    name: str
    help: str
    series: Sequence[tuple[Labels, Histogram]]

    def metric(self) -> HistogramMetricFamily:
        """Return it as the Prometheus client knows it."""
        family = HistogramMetricFamily(self.name, self.help, labels=[label for label, _ in self.series[0][0]] if self.series else ())
        for labels, histogram in self.series:
            family.add_metric([value for _, value in labels], histogram.buckets(), histogram.total)
        return family


class Metrics(Collector):
    """All counters of the process that are not a version's own, and the collector of everything."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, int, str, int], int] = {}
        self.errors: dict[tuple[str, str], int] = {}
        self.cancelled = 0
        self.expected_protocols = ["v1", "v2"]
        self.reading: Reading | None = None

    def request(self, model: str, version: int, protocol: str, status: int) -> None:
        """Count one answered request; `model` must be a known model or `_unknown`, `version` is 0 when none answered."""
        key = (model, version, protocol, status)
        self.requests[key] = self.requests.get(key, 0) + 1

    def expect(self, model: str, version: int) -> None:
        """Begin the series of a version's answers at 0: Prometheus sees no increase in a series that begins with its first event."""
        for protocol in self.expected_protocols:
            self.requests.setdefault((model, version, protocol, 200), 0)
            for status in EXPECTED_FAILURES:
                self.requests.setdefault((model, 0, protocol, status), 0)

    def error(self, model: str, code: str) -> None:
        """Count one failed request or instance."""
        pair = (model, code)
        self.errors[pair] = self.errors.get(pair, 0) + 1

    def collect(self) -> Iterable[Metric]:
        """Give everything to the Prometheus client; `exposition` does that faster."""
        return (family.metric() if isinstance(family, HistogramFamily) else family for family in self.families())

    def families(self) -> Iterable[Metric | HistogramFamily]:
        """Give everything."""
        yield from self._request_families()
        if self.reading is not None:
            versions = list(self.reading.versions())
            yield from _version_families(versions)
            yield from _timing_families([v.metrics for v in versions if v.metrics is not None])
            yield _counter(
                "samegraph_refused", "Requests refused by admission.", ("reason",), [((r,), n) for r, n in self.reading.refused().items()]
            )
            yield _counter(
                "samegraph_loads",
                "Attempts to load a version, by result.",
                ("result",),
                [((k,), n) for k, n in self.reading.loads().items()],
            )
            yield from self.reading.more()
            for name, text, value in self.reading.gauges():
                yield GaugeMetricFamily(name, text, value=value)
            yield CounterMetricFamily(
                "samegraph_access_log_dropped", "Access-log lines dropped because the writer fell behind.", self.reading.dropped_log_lines()
            )

    def _request_families(self) -> Iterable[Metric]:
        yield _counter(
            "samegraph_requests",
            "Requests answered, by HTTP status (499: the caller left first).",
            ("model", "version", "protocol", "status"),
            [((m, str(v) if v else "", p, str(s)), n) for (m, v, p, s), n in self.requests.items()],
        )
        yield _counter(
            "samegraph_errors", "Requests and instances that failed, by error code.", ("model", "code"), list(self.errors.items())
        )
        yield CounterMetricFamily("samegraph_cancelled_requests", "Requests whose caller left before the answer.", self.cancelled)


def _version_families(versions: Sequence[VersionReading]) -> Iterable[Metric]:
    info = GaugeMetricFamily("samegraph_model_info", "One for every known version.", labels=("model", "version", "digest", "proven"))
    state = GaugeMetricFamily("samegraph_model_state", "One for the state a version is in.", labels=("model", "version", "state"))
    golden = GaugeMetricFamily(
        "samegraph_golden_check", "One when the golden samples replayed within the promise.", labels=("model", "version")
    )
    ulp = GaugeMetricFamily(
        "samegraph_golden_max_ulp", "Largest distance from the training code seen in the replay.", labels=("model", "version")
    )
    checked = GaugeMetricFamily(
        "samegraph_golden_check_timestamp_seconds", "When the golden samples were last replayed, since 1970.", labels=("model", "version")
    )
    steps = GaugeMetricFamily(
        "samegraph_item_steps", "Item-stage steps by the engine that runs them.", labels=("model", "version", "engine")
    )
    queued = GaugeMetricFamily("samegraph_queue_rows", "Rows that wait for an execution.", labels=("model", "version"))
    load = GaugeMetricFamily(
        "samegraph_load_seconds", "How long loading, proving and warming the version took.", labels=("model", "version")
    )
    for v in versions:
        key = (v.model, v.version)
        info.add_metric((*key, v.digest, str(v.proven).lower()), 1)
        state.add_metric((*key, v.state), 1)
        if v.metrics is not None:
            if v.golden_samples:  # a version that never had any is `proven="false"` above, not a failed check
                golden.add_metric(key, v.check_passed)
                ulp.add_metric(key, v.max_ulp)
                if v.checked_at is not None:
                    checked.add_metric(key, v.checked_at)
            queued.add_metric(key, v.queue_rows)
            load.add_metric(key, v.load_seconds)
            for engine, n in v.engines.items():
                steps.add_metric((*key, engine), n)
    return (info, state, golden, ulp, checked, steps, queued, load)


def _timing_families(versions: Sequence[VersionMetrics]) -> Iterable[Metric | HistogramFamily]:
    keys = [(("model", v.model), ("version", v.version)) for v in versions]
    yield HistogramFamily(
        "samegraph_stage_duration_seconds",
        "Time in each stage of the path.",
        [((*key, ("stage", name)), histogram) for key, v in zip(keys, versions, strict=True) for name, histogram in v.stages.items()],
    )
    for name, text, attribute in (
        ("samegraph_request_duration_seconds", "From the request's headers to its answer.", "duration"),
        ("samegraph_batch_size", "Rows in one execution.", "batch_size"),
    ):
        yield HistogramFamily(name, text, [(key, getattr(v, attribute)) for key, v in zip(keys, versions, strict=True)])
    for name, text, attribute in _VERSION_COUNTERS:
        yield _counter(name, text, ("model", "version"), [((v.model, v.version), getattr(v, attribute)) for v in versions])


def _counter(name: str, text: str, labels: Sequence[str], rows: Iterable[tuple[tuple[Any, ...], int]]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, n in rows:
        family.add_metric(values, n)
    return family
