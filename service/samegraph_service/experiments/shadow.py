"""Shadows: a sample of a model's requests is run on another version after it was answered, and the difference is measured.

A copy is made of nothing: it is the rows the request was decoded to and the arrays it was answered with. Copies wait in one bounded line
and run on a lane of their own that the device serves only while no caller's queue holds anything, one execution at a time, each predicted
to take at most `batch_s`. What does not fit, waits too long or could not keep to that is shed and counted. No copy is ever traffic: not in
the counts of requests, instances or drift, not as an exposure.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor as ThreadPool
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias

import numpy as np
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from samegraph_transforms.errors import InputError, SamegraphError
from samegraph_transforms.signature import Row

from samegraph_service.batching import BatchPolicy, Entry, Work, joined
from samegraph_service.call import Answer, Call
from samegraph_service.clock import Loop
from samegraph_service.device import Device, Lane
from samegraph_service.logs import get_logger
from samegraph_service.metrics import DURATION_BUCKETS, SORT_AT, Histogram
from samegraph_service.predict import Served
from samegraph_service.routing import ShadowRoute

from .assignment import draw, fraction

log = get_logger("samegraph.shadow")

#: Why a copy was dropped without an answer to compare: too many wait; it waited too long; one row takes longer than an execution may; its
#: rows do not fit the shadow's fields; the shadow is not served any more; the server is shutting down.
REASONS: Final = ("queue_full", "late", "too_slow", "incompatible", "retired", "stopping")
#: Most copies that run and are compared together: the loop must not be held for longer than about half a millisecond.
TOGETHER: Final = 16
#: How long shadows rest after a turn, in turns, and its bounds in seconds. A turn that callers held up is followed by a longer rest, so
#: that shadows give way where the event loop is what is short and no queue shows it.
REST_TURNS: Final = 2.0
REST_S: Final = (0.002, 0.25)
#: Absolute differences of numbers; the first bucket holds those that are equal.
DIFFERENCE_BUCKETS: Final = (0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 10.0, 100.0, 1000.0)


OnFinish: TypeAlias = Callable[[Work], None]


@dataclass(frozen=True, slots=True)
class ShadowLimits:
    """Bounds of what shadows may take.

    Attributes:
        batch_s: Most predicted seconds of one execution, which is the most a caller can be delayed.
        max_copies: Most copies that wait.
        max_bytes: Most body bytes of the requests whose copies wait.
        late_s: Seconds after which a copy that still waits is dropped.
    """

    batch_s: float = 0.005
    max_copies: int = 256
    max_bytes: int = 64 << 20
    late_s: float = 10.0


class Tally:
    """What is counted about one shadow version beside one answering version.

    Attributes:
        compared: Requests and rows that both answered.
        rows: Rows of those.
        failed: Copies that the shadow failed on.
        shed: Reason → copies that were dropped.
        flips: Output that is a label → rows whose first value differs.
        differences: Output that is a number → largest absolute difference of each row.
        caller: Seconds from the request's headers to its answer, of compared requests.
        shadow: Seconds from a copy's leaving the line to its answer.
    """

    def __init__(self, model: str, version: int, shadow: int) -> None:
        self.labels = (model, str(version), str(shadow))
        self.compared = self.rows = self.failed = 0
        self.shed = dict.fromkeys(REASONS, 0)
        self.flips: dict[str, int] = {}
        self.differences: dict[str, Histogram] = {}
        self.caller = Histogram(DURATION_BUCKETS)
        self.shadow = Histogram(DURATION_BUCKETS)

    def compare(self, answer: Answer, names: Sequence[str], arrays: Sequence[np.ndarray]) -> None:
        """Count how the shadow's outputs `names` differ from a caller's answer; outputs that only one has are left out."""
        theirs = dict(zip(names, arrays, strict=True))
        for output, mine in zip(answer.origin.outputs, answer.arrays, strict=True):
            other = theirs.get(output.name)
            if other is None or other.dtype.kind != mine.dtype.kind:
                continue
            if mine.dtype.kind == "f":
                self._differ(output.name, mine, other)
            else:
                self.flips[output.name] = self.flips.get(output.name, 0) + _flips(mine, other)
        self.compared += 1
        self.rows += answer.n

    def _differ(self, name: str, mine: np.ndarray, other: np.ndarray) -> None:
        histogram = self.differences.get(name)
        if histogram is None:
            histogram = self.differences[name] = Histogram(DIFFERENCE_BUCKETS)
        histogram.pending.extend(_differences(mine, other))
        if len(histogram.pending) >= SORT_AT:
            histogram.sort()


def _flips(mine: np.ndarray, other: np.ndarray) -> int:
    """Return in how many rows the first value differs: of a list of labels, the most likely one."""
    first, second = (array.reshape(len(array), -1)[:, :1] for array in (mine, other))
    if first.shape != second.shape:
        return len(mine)
    return int(np.count_nonzero((first != second).any(axis=1)))


def _differences(mine: np.ndarray, other: np.ndarray) -> list[float]:
    """Return the largest absolute difference of each row; infinity where shapes differ or only one side is a number."""
    if mine.shape != other.shape:
        return [float("inf")] * len(mine)
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(mine.astype(np.float64) - other.astype(np.float64)).reshape(len(mine), -1)
    same = ((mine == other) | (np.isnan(mine) & np.isnan(other))).reshape(len(mine), -1)
    apart = np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))
    return [float(value) for value in apart.max(axis=1, initial=0.0)]


class Copy(Work):
    """One request's rows for a shadow, and what its caller was answered."""

    counted = False

    __slots__ = ("body_bytes", "caller_s", "fed_at", "given", "lane", "raw", "route", "signature", "since", "tally")

    def __init__(
        self, call: Call, answer: Answer, route: ShadowRoute[Served], tally: Tally, now: float, done: Callable[[Work], None]
    ) -> None:
        Work.__init__(self, answer.n, math.inf, False, {}, done)
        self.route = route
        self.given = answer
        self.raw: Sequence[Any] = call.copied
        self.signature = call.served.runtime.signature
        self.body_bytes = call.body_bytes
        self.caller_s = now - call.received
        self.tally = tally
        self.since = now
        self.fed_at = now
        self.lane: Lane | None = None


class _Silent:
    """The observer of a shadow's lane: its executions are nobody's traffic."""

    def executed(self, rows: int, seconds: float, queue_seconds: Sequence[float]) -> None:
        """Count nothing."""

    def expired(self, works: int) -> None:
        """Count nothing."""

    def backlogged(self, rows: int, wanted: int) -> None:
        """Count nothing."""

    def padded(self, elements: int, padding: int) -> None:
        """Count nothing."""

    def refused_poison(self) -> None:
        """Count nothing."""


class Shadows:
    """Runs copies behind everything else. For the event loop's thread only.

    Args:
        loop: The event loop.
        device: Where executions run.
        host: Threads of the item stage.
        limits: Bounds of what shadows may take.
        items_in_slots: Whether the item stage runs in the device's slots (a CPU) or on the host's threads (a GPU).

    Attributes:
        tallies: (model, answering version, shadow version) → what was counted.
        stopping: Whether copies are shed because the server is shutting down.
        running: Copies the device was given and has not answered.
    """

    def __init__(self, loop: Loop, device: Device, host: ThreadPool, limits: ShadowLimits, *, items_in_slots: bool) -> None:
        self.tallies: dict[tuple[str, int, int], Tally] = {}
        self.stopping = False
        self._loop = loop
        self._device = device
        self._host = host
        self._limits = limits
        self._items_in_slots = items_in_slots
        self._line: deque[Copy] = deque()
        self._bytes = 0
        self.running = 0
        self._fed_at = 0.0
        self._resting = False
        self._lanes: dict[Served, Lane] = {}
        self._on_finish = self._finished  # bound once

    @property
    def waiting(self) -> int:
        """Copies that wait."""
        return len(self._line)

    def offer(self, call: Call, answer: Answer) -> None:
        """Take a copy of an answered call for each of its shadows that it is in the sample of; never raises."""
        for route in call.shadows:
            if route.served is call.served or (route.share < 1.0 and fraction(draw(b"shadow", call.request_id.encode())) >= route.share):
                continue
            tally = self._tally(call.served, route)
            if self.stopping:
                tally.shed["stopping"] += 1
            elif len(self._line) >= self._limits.max_copies or self._bytes + call.body_bytes > self._limits.max_bytes:
                tally.shed["queue_full"] += 1
            else:
                self._line.append(Copy(call, answer, route, tally, self._loop.time(), self._on_finish))
                self._bytes += call.body_bytes
        self._feed()

    def retire(self, served: Served) -> None:
        """Let go of a version that no route names any more."""
        lane = self._lanes.pop(served, None)
        if lane is not None:
            self._device.remove(lane)
        if any(copy.route.served is served for copy in self._line):
            kept = deque(copy for copy in self._line if copy.route.served is not served)
            for copy in self._line:
                if copy.route.served is served:
                    self._bytes -= copy.body_bytes
                    copy.tally.shed["retired"] += 1
            self._line = kept

    def stop(self) -> None:
        """Shed everything that waits, and whatever comes."""
        self.stopping = True
        while self._line:
            self._line.popleft().tally.shed["stopping"] += 1
        self._bytes = 0

    def _tally(self, served: Served, route: ShadowRoute[Served]) -> Tally:
        key = (served.model, served.version, route.version)
        tally = self.tallies.get(key)
        if tally is None:
            tally = self.tallies[key] = Tally(*key)
        return tally

    # --- running ------------------------------------------------------------------------------------------------------

    def _feed(self) -> None:
        """Give the device the next copies when it has none: of one version, and no more than one execution may take."""
        if self.running or self._resting:
            return
        self._fed_at = self._loop.time()
        lane: Lane | None = None
        rows = copies = 0
        while self._line:
            copy = self._line[0]
            served = copy.route.served
            reason = self._why_not(copy)
            if reason:
                self._take().tally.shed[reason] += 1
                continue
            if lane is not None and (lane is not self._lanes.get(served) or lane.cost.predict_s(rows + copy.n) > self._limits.batch_s):
                return
            if copies == TOGETHER:
                return
            copies += 1
            lane = self._lane_of(served)
            rows += copy.n
            self._start(self._take(), lane)

    def _rest(self) -> None:
        """Let the loop be for a while after a turn."""
        now = self._loop.time()
        least, most = REST_S
        self._resting = True
        self._loop.call_at(now + min(most, max(least, REST_TURNS * (now - self._fed_at))), self._go_on)

    def _go_on(self) -> None:
        self._resting = False
        self._feed()

    def _take(self) -> Copy:
        copy = self._line.popleft()
        self._bytes -= copy.body_bytes
        return copy

    def _why_not(self, copy: Copy) -> str:
        """Return why a copy cannot be run, or ""."""
        lane = copy.route.served.lane
        if self._loop.time() - copy.since > self._limits.late_s:
            return "late"
        if lane.cost.known and max(lane.cost.predict_s(1), lane.item_s) > self._limits.batch_s:
            return "too_slow"
        return "" if self._fit(copy) else "incompatible"

    @staticmethod
    def _fit(copy: Copy) -> bool:
        """Make a copy's rows the shadow's; return whether they fit its fields."""
        mine, theirs = copy.signature, copy.route.served.runtime.signature
        if mine.fields == theirs.fields:
            return True
        try:
            copy.raw = [_row_for(theirs, mine.names, row) for row in copy.raw]
        except InputError:
            return False
        return True

    def _lane_of(self, served: Served) -> Lane:
        lane = self._lanes.get(served)
        if lane is None:
            own = served.lane
            lane = Lane(f"{own.name} shadow", served.runtime, BatchPolicy(own.policy.max_batch_size, 0.0), own.cost, _Silent(), own.canary)
            lane.background, lane.background_s = True, self._limits.batch_s
            self._lanes[served] = lane
            self._device.add(lane)
        return lane

    def _start(self, copy: Copy, lane: Lane) -> None:
        self.running += 1
        copy.lane = lane
        copy.fed_at = self._loop.time()
        served = copy.route.served
        if served.runtime.item_plan is None:
            self._put(copy, Entry(copy, 0, copy.raw))
            return
        for index in range(copy.n):
            if self._items_in_slots:
                self._device.prepare(lane, partial(self._prepare, copy, index))
            else:
                self._host.submit(self._prepare_on_host, copy, index)

    def _put(self, copy: Copy, entry: Entry) -> None:
        assert copy.lane is not None
        copy.entries.append(entry)
        self._device.put(copy.lane, entry)

    def _prepare(self, copy: Copy, index: int) -> Callable[[], None]:
        """Run the item stage of one row, on a thread."""
        outcome: Any
        try:
            outcome = copy.route.served.runtime.prepare(copy.raw[index])
        except Exception as error:  # noqa: BLE001 - whatever the item stage raises is the shadow's failure and nobody else's
            outcome = error
        return partial(self._prepared, copy, index, outcome)

    def _prepare_on_host(self, copy: Copy, index: int) -> None:
        self._loop.call_soon_threadsafe(self._prepare(copy, index))

    def _prepared(self, copy: Copy, index: int, outcome: Any) -> None:
        if isinstance(outcome, BaseException):
            copy.waiting -= 1
            copy.fail(outcome if isinstance(outcome, SamegraphError) else InputError("the shadow's item stage failed", code="bad_input"))
        elif not copy.finished:
            self._put(copy, Entry(copy, index, (outcome,)))

    def _finished(self, work: Work) -> None:
        assert isinstance(work, Copy)
        tally = work.tally
        if work.failure is not None or work.errors:
            tally.failed += 1
        else:
            try:
                names = [output.name for output in work.route.served.origin.outputs]
                tally.compare(work.given, names, joined(work.in_order()))
            except Exception:  # whatever two versions answer, no caller hears of it
                log.exception("shadow_comparison_failed", model=work.route.served.model, version=work.route.version)
                tally.failed += 1
            tally.caller.observe(work.caller_s)
            tally.shadow.observe(self._loop.time() - work.fed_at)
        self.running -= 1
        if not self.running:
            self._rest()
            for served in [served for served in self._lanes if not served.lane.attached]:  # came up again for a call that chose it before
                self.retire(served)


def _row_for(signature: Any, names: Sequence[str], row: Row) -> Row:
    """Return a row of one version as a row of another: by the names both have, defaults for the rest.

    Raises:
        InputError: A value breaks a rule of the other version, or it wants a field the row has not.
    """
    values = {name: value for name, value in zip(names, row, strict=True) if name in signature.names}
    made: Row = signature.row_of(values)
    return made


class ShadowMetrics(Collector):
    """Renders what shadows counted when somebody scrapes.

    Args:
        shadows: What counts.
    """

    def __init__(self, shadows: Shadows) -> None:
        self._shadows = shadows

    def collect(self) -> Iterable[Metric]:
        """Render everything (called by the Prometheus client at a scrape)."""
        tallies = list(self._shadows.tallies.values())
        names = ("model", "version", "shadow")
        for name, text, attribute in (
            ("samegraph_shadow_requests", "Requests that a shadow answered too, by the version that answered the caller.", "compared"),
            ("samegraph_shadow_instances", "Instances of those.", "rows"),
            ("samegraph_shadow_failed", "Copies that the shadow failed on.", "failed"),
        ):
            family = CounterMetricFamily(name, text, labels=names)
            for tally in tallies:
                family.add_metric(tally.labels, getattr(tally, attribute))
            yield family
        shed = CounterMetricFamily("samegraph_shadow_shed", "Copies dropped before the shadow ran them.", labels=(*names, "reason"))
        flips = CounterMetricFamily("samegraph_shadow_label_flips", "Instances the shadow gave another label.", labels=(*names, "output"))
        apart = HistogramMetricFamily(
            "samegraph_shadow_difference", "Largest absolute difference of a number in an instance's output.", labels=(*names, "output")
        )
        seconds = HistogramMetricFamily(
            "samegraph_shadow_duration_seconds", "Of compared requests: the caller's, and the shadow's own.", labels=(*names, "side")
        )
        for tally in tallies:
            for reason, n in tally.shed.items():
                shed.add_metric((*tally.labels, reason), n)
            for output, n in tally.flips.items():
                flips.add_metric((*tally.labels, output), n)
            for output, histogram in tally.differences.items():
                apart.add_metric((*tally.labels, output), histogram.buckets(), histogram.total)
            for side, histogram in (("caller", tally.caller), ("shadow", tally.shadow)):
                seconds.add_metric((*tally.labels, side), histogram.buckets(), histogram.total)
        yield from (shed, flips, apart, seconds)
