"""Experiments in Prometheus' text formats, written from prepared lines.

The part of a line before its value is written when the routes or what is counted changed; a scrape formats counts only: 0.3 µs a sample.
Names and labels are those of docs/metrics.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from samegraph_service.drift.exposition import Family, labels
from samegraph_service.metrics import Histogram

from .assignment import BUCKETS
from .counters import Counters, ExperimentCounts, RevisionCounts

#: Samples written at a stretch.
PIECE = 500

EXPOSURES = Family("samegraph_experiment_exposures", "counter", "Requests of assigned units that were answered or failed.")
ERRORS = Family("samegraph_experiment_errors", "counter", "Of those, requests that failed through no fault of the caller.")
SLOW = Family("samegraph_experiment_slow", "counter", "Of those, requests that took longer than the experiment's slo_ms.")
SERVED = Family("samegraph_experiment_served", "counter", "Requests by the arm that was assigned and the one that answered.")
UNASSIGNED = Family("samegraph_experiment_unassigned", "counter", "Requests that count for no arm, by reason.")
DURATION = Family("samegraph_experiment_duration_seconds", "histogram", "From the request's headers to its answer, by the assigned arm.")
FEEDBACK = Family("samegraph_experiment_feedback", "counter", "Values that came back for a metric.")
SUMS = Family("samegraph_experiment_feedback_value_sum", "counter", "Sum of those values above the metric's least.")
SQUARES = Family("samegraph_experiment_feedback_value_sumsq", "counter", "Sum of the squares of that.")
REJECTED = Family("samegraph_experiment_feedback_rejected", "counter", "Feedback that was not counted, by reason.")
INFO = Family("samegraph_experiment_info", "gauge", "One for every revision whose counts are kept.")
WEIGHT = Family("samegraph_experiment_arm_weight", "gauge", "Weight of each arm in the revision in force.")
METRIC_INFO = Family("samegraph_experiment_metric_info", "gauge", "One for every metric, with what it is.")
WITHDRAWN = Family("samegraph_experiment_withdrawn", "gauge", "One while this replica's circuit-break has withdrawn the arm.")
VERSION_FEEDBACK = Family("samegraph_version_feedback", "counter", "Values that came back for a metric, by the version that answered.")
VERSION_SUMS = Family("samegraph_version_feedback_value_sum", "counter", "Sum of those values above the metric's least.")
FORGOTTEN = Family("samegraph_feedback_forgotten", "counter", "Counted values forgotten before their time, so that a repeat counts again.")
SERIES = Family("samegraph_experiment_series", "gauge", "Series about experiments that are exported, and those that the cap leaves out.")


class _Block:
    """Lines of one family whose values lie in one list."""

    def __init__(self, family: Family, starts: Sequence[str], values: Sequence[float]) -> None:
        self.family = family
        self._starts = starts
        self._values = values

    def __len__(self) -> int:
        return len(self._starts)

    def write(self) -> str:
        return "".join(map("%s %s\n".__mod__, zip(self._starts, self._values, strict=True)))


class _Histogram(_Block):
    """Lines of one histogram."""

    def __init__(self, family: Family, own: Mapping[str, str], histogram: Histogram) -> None:
        bounds = (*map(repr, histogram.bounds), "+Inf")
        starts = [f"{family.name}_bucket{labels(**own, le=bound)}" for bound in bounds]
        super().__init__(family, [*starts, f"{family.name}_count{labels(**own)}", f"{family.name}_sum{labels(**own)}"], ())
        self._histogram = histogram

    def write(self) -> str:
        counts = self._histogram.cumulative()
        values = (*counts, counts[-1], self._histogram.total)
        return "".join(map("%s %s\n".__mod__, zip(self._starts, values, strict=True)))


class _Cells(_Block):
    """Lines whose values lie in a dictionary, in its order."""

    def __init__(self, family: Family, starts: Sequence[str], values: Mapping[str, float]) -> None:
        super().__init__(family, starts, ())
        self._cells = values

    def write(self) -> str:
        return "".join(map("%s %s\n".__mod__, zip(self._starts, self._cells.values(), strict=False)))


class _Version(_Block):
    """A line whose value is one place of a list that lives as long as its version is counted."""

    def __init__(self, family: Family, start: str, values: Sequence[float], place: int) -> None:
        super().__init__(family, [start], values)
        self._place = place

    def write(self) -> str:
        return f"{self._starts[0]} {self._values[self._place]}\n"


_ORDER = (
    EXPOSURES, ERRORS, SLOW, SERVED, UNASSIGNED, DURATION, FEEDBACK, SUMS, SQUARES, INFO, WEIGHT, METRIC_INFO, WITHDRAWN,
    VERSION_FEEDBACK, VERSION_SUMS, REJECTED,
)  # fmt: skip


class ExperimentExposition:
    """Writes the counts for a scrape. For the event loop's thread.

    Args:
        counters: What is counted.
        withdrawn: Whether this replica has withdrawn an arm (model, experiment, arm).
        max_series: Most series; beyond it feedback of the last metrics, then whole revisions are left out, the one before first.
    """

    def __init__(self, counters: Counters, withdrawn: Callable[[str, str, str], bool], max_series: int) -> None:
        self._counters = counters
        self._withdrawn = withdrawn
        self._max_series = max_series
        self._generation = -1
        self._blocks: dict[Family, list[_Block]] = {}
        self._series = {"exported": 0, "capped": 0}

    def write(self, *, openmetrics: bool) -> Iterator[str]:
        """Yield the text in pieces, for the event loop to turn in between."""
        if self._generation != self._counters.generation:
            yield from self._prepare()
        blocks = self._blocks
        for family in _ORDER:
            if family is WITHDRAWN:
                yield from self._withdrawals(openmetrics)
            if family not in blocks:
                continue
            yield family.head(openmetrics)
            text, size = [], 0
            for block in blocks[family]:
                text.append(block.write())
                size += len(block)
                if size >= PIECE:
                    yield "".join(text)
                    text, size = [], 0
            yield "".join(text)
        if self._counters.rejected:
            yield f"{FORGOTTEN.head(openmetrics)}{FORGOTTEN.sample} {self._counters.forgotten}\n"
        if self._blocks:
            yield SERIES.head(openmetrics) + "".join([f"{SERIES.sample}{labels(kind=kind)} {n}\n" for kind, n in self._series.items()])

    def _withdrawals(self, openmetrics: bool) -> Iterator[str]:
        lines = [
            f"{WITHDRAWN.sample}{labels(model=model, experiment=name, arm=arm)} {int(self._withdrawn(model, name, arm))}\n"
            for (model, name), known in self._counters.experiments.items()
            if known.current
            for arm in known.experiment.arms
        ]
        if lines:
            yield WITHDRAWN.head(openmetrics) + "".join(lines)

    def _prepare(self) -> Iterator[str]:
        """Prepare the lines, the most important first, up to the cap; yields nothing but turns."""
        counters = self._counters
        blocks: dict[Family, list[_Block]] = {}
        generation = counters.generation
        exported = capped = 0
        for block in _blocks(counters):
            if block is None:
                yield ""
            elif capped or exported + len(block) > self._max_series:
                capped += len(block)  # of this one and all after it: no smaller but less important one takes its place
            else:
                exported += len(block)
                blocks.setdefault(block.family, []).append(block)
        self._blocks, self._generation = blocks, generation
        self._series = {"exported": exported, "capped": capped}


def _blocks(counters: Counters) -> Iterator[_Block | None]:
    """Yield what there is to write, the most important first, and None where the loop may turn."""
    for model, reasons in counters.rejected.items():
        yield _Cells(REJECTED, [REJECTED.sample + labels(model=model, reason=reason) for reason in reasons], reasons)
    for (model, version), metrics in counters.versions.items():
        for metric, pair in metrics.items():
            of = labels(model=model, version=str(version), metric=metric)
            yield _Version(VERSION_FEEDBACK, VERSION_FEEDBACK.sample + of, pair, 0)
            yield _Version(VERSION_SUMS, VERSION_SUMS.sample + of, pair, 1)
    known = [(model, name, counts) for (model, name), counts in counters.experiments.items()]
    for model, name, counts in known:
        yield from _facts(model, name, counts)
    for in_force in (True, False):
        revisions = [
            ({"model": model, "experiment": name, "revision": revision.revision}, revision)
            for model, name, counts in known
            for revision in counts.revisions.values()
            if (counts.current and revision.revision == counts.experiment.revision) is in_force
        ]
        for own, revision in revisions:
            yield from _exposed(own, revision)
        for own, revision in revisions:
            yield from _fed_back(own, revision)


def _facts(model: str, name: str, counts: ExperimentCounts) -> Iterator[_Block]:
    own = {"model": model, "experiment": name}
    for revision in counts.revisions.values():
        current = "true" if counts.current and revision.revision == counts.experiment.revision else "false"
        yield _Block(INFO, [INFO.sample + labels(**own, revision=revision.revision, current=current)], (1,))
        starts = [WEIGHT.sample + labels(**own, revision=revision.revision, arm=arm) for arm in revision.weights]
        yield _Block(WEIGHT, starts, list(revision.weights.values()))
    for metric in counts.experiment.metrics.values():
        bounds = {"min": f"{metric.low:g}", "max": f"{metric.high:g}"}
        start = METRIC_INFO.sample + labels(**own, metric=metric.name, kind=metric.kind, **bounds, goal=metric.goal)
        yield _Block(METRIC_INFO, [start], (1,))


_BUCKETS = [str(bucket) for bucket in range(BUCKETS)]


def _exposed(own: Mapping[str, str], revision: RevisionCounts) -> Iterator[_Block | None]:
    yield _Cells(UNASSIGNED, [UNASSIGNED.sample + labels(**own, reason=reason) for reason in revision.unassigned], revision.unassigned)
    for arm, counts in revision.arms.items():
        yield _Cells(SERVED, [SERVED.sample + labels(**own, arm=arm, served=served) for served in counts.served], counts.served)
        yield _Histogram(DURATION, {**own, "arm": arm}, counts.duration)
    for arm, counts in list(revision.arms.items()):
        families = [(EXPOSURES, counts.exposures), (ERRORS, counts.errors)]
        if not math.isinf(counts.slow_s):
            families.append((SLOW, counts.slow))
        for family, values in families:
            yield _Block(family, [family.sample + labels(**own, arm=arm, bucket=bucket) for bucket in _BUCKETS], values)
        yield None


def _fed_back(own: Mapping[str, str], revision: RevisionCounts) -> Iterator[_Block | None]:
    metrics = dict.fromkeys(metric for counts in revision.arms.values() for metric in counts.feedback)
    for metric in metrics:
        for arm, counts in list(revision.arms.items()):
            if metric in counts.feedback:
                n, total, squares = counts.feedback[metric]
                kept: tuple[tuple[Family, Sequence[float]], ...] = ((FEEDBACK, n), (SUMS, total), (SQUARES, squares))
                for family, values in kept:
                    starts = [family.sample + labels(**own, arm=arm, metric=metric, bucket=bucket) for bucket in _BUCKETS]
                    yield _Block(family, starts, values)
                yield None
