"""The counting thread: empties the taps, slides the windows, and takes no more of a CPU than it is given.

Python runs one thread at a time, so what this thread computes is taken from the event loop. It therefore works in pieces of a fraction of
a millisecond and rests after each, as long as its share of a CPU asks for. What does not fit into that share waits in the taps' bounded
queues, and is sampled there when they fill up.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samegraph_transforms.baseline import Baseline
from samegraph_transforms.runtime import PackageRuntime

from samegraph_service.logs import get_logger

from .counting import RowCounter
from .statistics import AlarmRule, State
from .tap import QueueLimits, Share, Tap
from .version import VersionDrift
from .window_sizes import WindowSize
from .windows import MINUTE_S

log = get_logger("samegraph.drift")

#: Seconds rows are gathered for before they are counted: a few large pieces cost less than many small ones.
GATHER_S = 0.2
#: A piece of work, in seconds of CPU, after which the thread rests.
PIECE_S = 0.0005
#: Most rows counted at once, and how long that may take.
MOST_ROWS = 4096
LONGEST_S = 0.01
#: Share of a CPU while windows are compared with their baselines, once a minute for a tenth of a millisecond or two a variable: at the
#: share of the counting it would take seconds, in which nothing was counted.
LOOK_RATIO = 0.2
#: Longest rest after a piece; a larger debt is forgiven, or a slow clock could stop the counting.
LONGEST_REST_S = 1.0


@dataclass(frozen=True, slots=True)
class DriftOptions:
    """How drift is watched.

    Attributes:
        rule: What makes an alarm.
        windows: Over how long.
        cpu_ratio: Most of one CPU that counting takes, above 0 to 1.
        queue: Bounds of what waits to be counted, per version.
    """

    rule: AlarmRule
    windows: Sequence[WindowSize]
    cpu_ratio: float
    queue: QueueLimits


class DriftMonitor:
    """Drift of all served versions. `add`, `remove`, `start` and `stop` are for the event loop's thread.

    Args:
        options: How.
        clock: Monotonic seconds.
    """

    def __init__(self, options: DriftOptions, clock: Callable[[], float] = time.monotonic) -> None:
        self.options = options
        self._clock = clock
        self._versions: tuple[VersionDrift, ...] = ()  # replaced as a whole, so that the thread needs no lock to walk it
        self._counting = threading.Lock()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._failing: set[VersionDrift] = set()

    @property
    def versions(self) -> tuple[VersionDrift, ...]:
        """The watched versions, in the order they came."""
        return self._versions

    def now(self) -> float:
        """Return seconds on the monitor's clock."""
        return self._clock()

    def find(self, model: str, version: int) -> VersionDrift | None:
        """Return what is kept about a version; None when it is not watched."""
        return next((v for v in self._versions if v.model == model and v.version == version), None)

    def add(self, runtime: PackageRuntime, baseline: Baseline, row_bytes: int) -> Tap:
        """Watch a version from now on; return where its executions are to be handed over.

        Args:
            runtime: Runs the version.
            baseline: Its baseline.
            row_bytes: What the answer to one row takes in memory.
        """
        manifest = runtime.manifest
        raw_rows = runtime.item_plan is not None
        plain = not raw_rows and runtime.shapes is None
        counter = RowCounter(manifest, baseline, runtime.feed_columns if plain else None, runtime.tokenizers)
        tap = Tap(
            fields=[f.name for f in manifest.fields],
            raw_rows=raw_rows,
            feeds=counter.feeds,
            row_bytes=row_bytes,
            limits=self.options.queue,
            wake=self._wake.set,
        )
        added = VersionDrift(
            manifest,
            runtime.digest,
            baseline,
            counter=counter,
            item_places=runtime.item_places,
            tap=tap,
            sizes=self.options.windows,
        )
        self._versions = (*self._versions, added)
        return tap

    def remove(self, tap: object) -> None:
        """Forget the version of a tap, if it is one of ours; what the tap is still handed is bounded and goes nowhere."""
        self._versions = tuple(v for v in self._versions if v.tap is not tap)

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the counting thread."""
        self._thread = threading.Thread(target=self._run, name="samegraph-drift", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Stop the thread; what waits is left uncounted. Harmless when it is not running."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stopping.set()
            self._wake.set()
            thread.join(timeout_s)

    def flush(self) -> None:
        """Count everything that waits, here and now."""
        with self._counting:
            for version in self._versions:
                while version.tap.waiting()[0]:
                    self._count(version, _no_rest)
                version.tap.set_keep()

    def look(self, now: float | None = None) -> None:
        """Compare the windows that end now with the baselines, if that was not done in this minute.

        Args:
            now: Seconds on the monitor's clock; None reads it.
        """
        with self._counting:
            self._look(self._clock() if now is None else now, _no_rest)

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        rest = Rest(self.options.cpu_ratio, self._stopping.wait)
        short_rest = Rest(max(self.options.cpu_ratio, LOOK_RATIO), self._stopping.wait)
        while not self._stopping.is_set():
            try:
                self._turn(rest, short_rest)
            except Exception:  # drift is looked at beside the predictions and must not end because of one of them
                log.exception("drift_failed")
                self._stopping.wait(1.0)

    def _turn(self, rest: Rest, short_rest: Rest) -> None:
        with self._counting:
            for version in self._versions:
                if version.tap.waiting()[0]:
                    self._count(version, rest)
                    version.tap.set_keep()
        rest()
        short_rest.begin()
        with self._counting:
            self._look(self._clock(), short_rest)
        rest.begin()
        self._gather()

    def _gather(self) -> None:
        """Wait for rows, or for the next minute, and then for more of them; not at all when many are there."""
        if any(version.tap.waiting()[0] >= _at_once(version) for version in self._versions):
            return
        self._wake.clear()
        if self._stopping.is_set():  # a stop that came before the flag fell would be waited out
            return
        for version in self._versions:
            version.tap.awake = False
        if not any(version.tap.waiting()[0] for version in self._versions):  # what came before the flags fell, nobody else would tell of
            minute_s = MINUTE_S - self._clock() % MINUTE_S
            if not self._wake.wait(minute_s if self._versions else None):
                return
        self._stopping.wait(GATHER_S)

    def _count(self, version: VersionDrift, breathe: Callable[[], object]) -> None:
        most = _at_once(version)
        shares = version.tap.take(most)
        n = sum(share.n for share in shares)
        started = time.thread_time()
        try:
            for piece in _pieces(shares, most):
                version.count(piece, breathe)
        except Exception:  # rows no one foresaw cost their counts, and one line in the log, but neither the thread nor other rows
            version.tap.dropped["failed"] += n
            if version not in self._failing:
                self._failing.add(version)
                log.exception("drift_count_failed", model=version.model, version=version.version, rows=n)
            return
        if n:
            seconds = (time.thread_time() - started) / n
            version.row_s = seconds if not version.row_s else version.row_s + 0.2 * (seconds - version.row_s)

    def _look(self, now: float, breathe: Callable[[], object]) -> None:
        minute = math.floor(now / MINUTE_S)
        for version in self._versions:
            before = version.readings
            if before is not None and minute <= math.floor(before.at / MINUTE_S):
                continue
            states = _states(version)
            version.look(minute, now, self.options.rule, breathe)
            _tell(version, states)


class Rest:
    """Rests after every piece of work so that work is `ratio` of the time.

    Args:
        ratio: Above 0, up to 1.
        sleep: Waits so many seconds, or until it is time to stop.
        cpu: Seconds of CPU the calling thread has used.
    """

    def __init__(self, ratio: float, sleep: Callable[[float], object], cpu: Callable[[], float] = time.thread_time) -> None:
        self._debt = (1 - ratio) / ratio
        self._sleep = sleep
        self._cpu = cpu
        self._since = cpu()

    def begin(self) -> None:
        """Forget what was done before."""
        self._since = self._cpu()

    def __call__(self) -> None:
        """Rest, if enough was done since the last rest."""
        worked = self._cpu() - self._since
        if worked >= PIECE_S:
            self._sleep(min(worked * self._debt, LONGEST_REST_S))
            self._since = self._cpu()


def _at_once(version: VersionDrift) -> int:
    """Return how many of a version's rows are counted at once."""
    return MOST_ROWS if version.row_s <= 0 else max(1, min(MOST_ROWS, int(LONGEST_S / version.row_s)))


def _no_rest() -> None:
    """Go on at once."""


def _pieces(shares: Sequence[Share], most: int) -> list[list[Share]]:
    """Return the shares as they are, or, when they hold far more rows than are counted at once, cut up."""
    if sum(share.n for share in shares) <= 2 * most:
        return [list(shares)] if shares else []
    pieces: list[list[Share]] = []
    for share in shares:
        items = [item for part in share.items for item in part]
        for start in range(0, share.n, most):
            part = slice(start, start + most)
            feeds = None if share.feeds is None else tuple(feed[part] for feed in share.feeds)
            rows = None if share.rows is None else share.rows[part]
            n = min(most, share.n - start)
            pieces.append([Share(feeds, [items[part]], rows, [array[part] for array in share.arrays], n, 0)])
    return pieces


# --- telling --------------------------------------------------------------------------------------------------------------


def _states(version: VersionDrift) -> dict[tuple[str, int], State]:
    if version.readings is None:
        return {}
    return {(label, i): c.state for label, window in version.readings.windows.items() for i, c in enumerate(window.comparisons)}


def _tell(version: VersionDrift, before: Mapping[tuple[str, int], State]) -> None:
    """Write a line for every variable that has begun or ceased to drift."""
    readings = version.readings
    assert readings is not None
    for label, window in readings.windows.items():
        for i, found in enumerate(window.comparisons):
            drifted, was = found.state == "drifted", before.get((label, i)) == "drifted"
            if drifted == was:
                continue
            slot = version.slots[i]
            facts: dict[str, Any] = {"model": version.model, "version": version.version, slot.side: slot.variable.name, "window": label}
            if drifted:
                moved = "" if found.linf_bin is None else slot.variable.labels[found.linf_bin]
                log.warning("drift_found", **facts, rows=found.rows, psi=round(found.psi, 4), above=round(found.psi_critical, 4), bin=moved)
            else:
                log.info("drift_over", **facts, rows=found.rows, state=found.state)
