"""The counting thread: all versions in turn, no row lost, windows by the clock, and a bounded share of a CPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from fake_time import FakeTime
from package_builders import KINDS, draft
from prometheus import wait_for
from samegraph_service.batching import Entry, Work
from samegraph_service.device import execute
from samegraph_service.drift.monitor import DriftMonitor, DriftOptions, Rest
from samegraph_service.drift.statistics import AlarmRule
from samegraph_service.drift.tap import QueueLimits, Tap
from samegraph_service.drift.window_sizes import parse_windows
from samegraph_transforms.baseline import Baseline
from samegraph_transforms.baseline_build import build_baseline
from samegraph_transforms.draft import BaselineRows
from samegraph_transforms.package import write_package
from samegraph_transforms.runtime import PackageRuntime

MINUTE = 60.0


def plants(n: int, seed: int, *, moved: float = 0.0) -> list[dict[str, Any]]:
    """Return plants whose sizes are normal and whose kinds are not equally frequent."""
    rng = np.random.default_rng(seed)
    sizes = rng.normal(moved, 2.0, n)
    kinds = rng.choice([*KINDS, "bamboo"], n, p=[0.5, 0.3, 0.15, 0.05])
    return [{"size": None if rng.random() < 0.03 else float(s), "kind": str(k)} for s, k in zip(sizes, kinds, strict=True)]


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PackageRuntime, Baseline]]:
    package = write_package(draft(), [], tmp_path_factory.mktemp("plants") / "plants" / "1")
    runtime = PackageRuntime.load(package)
    yield runtime, build_baseline(package, BaselineRows(rows=plants(3000, 1)))
    runtime.close()


def monitor_of(clock: FakeTime | None = None, **options: Any) -> DriftMonitor:
    made: dict[str, Any] = {
        "rule": AlarmRule(),
        "windows": parse_windows("5m,1h"),
        "cpu_ratio": 1.0,
        "queue": QueueLimits(),
        **options,
    }
    return DriftMonitor(DriftOptions(**made), clock or FakeTime(6000.0))


def run(runtime: PackageRuntime, tap: Tap, instances: Sequence[dict[str, Any]], together: int = 50) -> None:
    """Run instances through the real model, as many at a time, and hand them over as the device does."""
    rows = [runtime.signature.check_row(instance) for instance in instances]
    for start in range(0, len(rows), together):
        batch = rows[start : start + together]
        work = Work(len(batch), 1e9, False, {}, lambda _: None)
        tap.executed([Entry(work, 0, batch, 100)], execute(runtime, batch))


class TestCounting:
    def test_counts_are_those_of_the_rows(self, version: tuple[PackageRuntime, Baseline]) -> None:
        """Through the tap and in pieces, the baseline's own rows give the baseline's own counts."""
        runtime, baseline = version
        monitor = monitor_of()
        tap = monitor.add(runtime, baseline, 32)
        run(runtime, tap, plants(3000, 1))
        monitor.flush()
        (watched,) = monitor.versions
        assert watched.totals.integers.tolist() == watched.counter.layout.baseline().tolist()

    def test_one_huge_execution_is_cut_up(self, version: tuple[PackageRuntime, Baseline]) -> None:
        """A batch far larger than what is counted at once is counted whole."""
        runtime, baseline = version
        monitor = monitor_of()
        tap = monitor.add(runtime, baseline, 32)
        run(runtime, tap, plants(3000, 1) * 4, together=12_000)
        (watched,) = monitor.versions
        watched.row_s = 0.001  # as if a row took a millisecond
        monitor.flush()
        assert (watched.totals.integers == 4 * watched.counter.layout.baseline()).all()

    def test_answers_of_different_shapes_are_counted_apart(self, version: tuple[PackageRuntime, Baseline]) -> None:
        """Executions that cannot be put end to end are counted one by one."""
        runtime, baseline = version
        monitor = monitor_of()
        tap = monitor.add(runtime, baseline, 32)
        run(runtime, tap, plants(100, 1))
        rows = [runtime.signature.check_row(plant) for plant in plants(50, 1)]
        (ran,) = execute(runtime, rows)
        assert ran.arrays is not None
        ran.arrays = [array[:, None] for array in ran.arrays]
        tap.executed([Entry(Work(50, 1e9, False, {}, lambda _: None), 0, rows, 100)], [ran])
        monitor.flush()
        assert monitor.versions[0].totals.rows == 150

    def test_what_cannot_be_counted_is_dropped_and_said_once(
        self, version: tuple[PackageRuntime, Baseline], caplog: pytest.LogCaptureFixture
    ) -> None:
        """Rows no one foresaw cost their own counts only; the log has the reason once, not for every row."""
        runtime, baseline = version
        monitor = monitor_of()
        tap = monitor.add(runtime, baseline, 32)
        rows = [runtime.signature.check_row(plant) for plant in plants(10, 1)]
        for _ in range(3):
            (ran,) = execute(runtime, rows)
            assert ran.feeds is not None
            ran.feeds = {name: feed[:, :0] for name, feed in ran.feeds.items()}
            tap.executed([Entry(Work(10, 1e9, False, {}, lambda _: None), 0, rows, 100)], [ran])
            monitor.flush()
        run(runtime, tap, plants(20, 1))
        monitor.flush()
        assert tap.dropped["failed"] == 30
        assert monitor.versions[0].totals.rows == 20
        assert [record.getMessage() for record in caplog.records] == ["drift_count_failed"]

    def test_a_removed_version_is_forgotten(self, version: tuple[PackageRuntime, Baseline]) -> None:
        """What is still answered by it is counted nowhere and keeps within the queue's bounds."""
        runtime, baseline = version
        monitor = monitor_of(queue=QueueLimits(max_rows=100))
        gone, stays = monitor.add(runtime, baseline, 32), monitor.add(runtime, baseline, 32)
        monitor.remove(gone)
        monitor.remove(None)
        run(runtime, gone, plants(500, 1))
        run(runtime, stays, plants(50, 1))
        monitor.flush()
        assert [v.totals.rows for v in monitor.versions] == [50]
        assert gone.waiting()[0] <= 100


class TestLooking:
    def test_windows_follow_the_clock(self, version: tuple[PackageRuntime, Baseline]) -> None:
        """Rows enter both windows at the next look and leave the shorter one five minutes later."""
        runtime, baseline = version
        clock = FakeTime(6000.0)
        monitor = monitor_of(clock)
        tap = monitor.add(runtime, baseline, 32)
        monitor.look()
        run(runtime, tap, plants(500, 2))
        monitor.flush()
        rows, states = [], []
        for _ in range(7):
            clock.sleep(MINUTE)
            monitor.look()
            readings = monitor.versions[0].readings
            assert readings is not None
            rows.append([window.counts.rows for window in readings.windows.values()])
            states.append([{c.state for c in window.comparisons} for window in readings.windows.values()])
        assert rows == [[500, 500]] * 5 + [[0, 500]] * 2
        assert states == [[{"quiet"}, {"quiet"}]] * 5 + [[{"not_enough_data"}, {"quiet"}]] * 2

    def test_one_look_a_minute(self, version: tuple[PackageRuntime, Baseline]) -> None:
        """However often the thread turns, a minute's windows are looked at once."""
        runtime, baseline = version
        clock = FakeTime(6000.0)
        monitor = monitor_of(clock)
        monitor.add(runtime, baseline, 32)
        monitor.look()
        first = monitor.versions[0].readings
        clock.sleep(59)
        monitor.look()
        assert monitor.versions[0].readings is first
        clock.sleep(1)
        monitor.look()
        assert monitor.versions[0].readings is not first

    def test_drift_is_found_named_and_over(self, version: tuple[PackageRuntime, Baseline], caplog: pytest.LogCaptureFixture) -> None:
        """Plants that grew are found by the field that shows it and by its bin, the others stay quiet; it ends; the log tells both."""
        caplog.set_level("INFO", "samegraph.drift")
        runtime, baseline = version
        clock = FakeTime(6000.0)
        monitor = monitor_of(clock)
        tap = monitor.add(runtime, baseline, 32)
        watched = monitor.versions[0]
        states = []
        for moved in (0.0, 4.0, 0.0):
            run(runtime, tap, plants(600, 3, moved=moved))
            monitor.flush()
            clock.sleep(MINUTE)
            monitor.look()
            assert watched.readings is not None
            found = dict(zip((s.variable.name for s in watched.slots), watched.readings.windows["5m"].comparisons, strict=True))
            states.append((found["size"].state, found["kind"].state))
            if moved:
                assert found["size"].linf_bin is not None
                assert watched.slots[0].variable.labels[found["size"].linf_bin] == "09"
                assert found["size"].w1_std > 0.5
            clock.sleep(10 * MINUTE)
        assert states == [("quiet", "quiet"), ("drifted", "quiet"), ("quiet", "quiet")]
        told = [record.getMessage() for record in caplog.records]
        assert told.count("drift_found") >= 2  # in both windows
        assert "drift_over" in told

    def test_the_sampled_share_is_that_of_the_last_minute(self, version: tuple[PackageRuntime, Baseline]) -> None:
        """Half of the rows dropped is a ratio of a half until the next look, which has dropped none."""
        runtime, baseline = version
        clock = FakeTime(6000.0)
        monitor = monitor_of(clock, queue=QueueLimits(max_rows=100))
        tap = monitor.add(runtime, baseline, 32)
        ratios = []
        for n in (200, 100, 0):
            run(runtime, tap, plants(n, 1))
            monitor.flush()
            clock.sleep(MINUTE)
            monitor.look()
            readings = monitor.versions[0].readings
            assert readings is not None
            ratios.append(readings.sampled_ratio)
        assert ratios == [0.5, 1.0, 1.0]


class TestTheThread:
    def test_a_burst_is_counted_or_dropped_to_the_last_row(self, version: tuple[PackageRuntime, Baseline]) -> None:
        """50,000 rows as fast as they can be handed over, to two versions beside the running thread: none is lost sight of."""
        runtime, baseline = version
        monitor = monitor_of(cpu_ratio=0.5, queue=QueueLimits(max_rows=2_000))
        taps = [monitor.add(runtime, baseline, 32) for _ in range(2)]
        rows = [runtime.signature.check_row(plant) for plant in plants(50, 1)]
        batch = [Entry(Work(50, 1e9, False, {}, lambda _: None), 0, rows, 5000)]
        segments = execute(runtime, rows)
        monitor.start()
        try:
            for i in range(1000):
                taps[i % 2].executed(batch, segments)
            wait_for(lambda: not any(tap.waiting()[0] for tap in taps), "the queues to be empty")
        finally:
            monitor.stop()
        monitor.flush()
        for tap, watched in zip(taps, monitor.versions, strict=True):
            assert tap.handed == 25_000
            assert watched.totals.rows + sum(tap.dropped.values()) == 25_000
            assert watched.totals.rows >= 2_000
            for slot in watched.slots:
                assert slot.counts(watched.totals).sum() == watched.totals.rows

    def test_rows_that_come_while_it_falls_asleep_are_counted(self, version: tuple[PackageRuntime, Baseline]) -> None:
        """Handed over one at a time, each after the one before was counted: the thread never sleeps through one."""
        runtime, baseline = version
        monitor = monitor_of(FakeTime(6000.0))
        tap = monitor.add(runtime, baseline, 32)
        monitor.start()
        try:
            for n in range(1, 6):
                run(runtime, tap, plants(1, n))
                wait_for(lambda n=n: monitor.versions[0].totals.rows == n, f"row {n} to be counted")  # type: ignore[misc]
        finally:
            monitor.stop()
        monitor.stop()  # harmless

    def test_it_outlives_what_goes_wrong(self, version: tuple[PackageRuntime, Baseline], monkeypatch: pytest.MonkeyPatch) -> None:
        """A look that crashes is logged, and counting goes on after it."""
        runtime, baseline = version
        monitor = monitor_of()
        tap = monitor.add(runtime, baseline, 32)
        crashed = threading.Event()

        def crash(*_: object) -> None:
            crashed.set()
            monkeypatch.undo()
            raise ZeroDivisionError

        monkeypatch.setattr(monitor.versions[0], "look", crash)
        monitor.start()
        try:
            assert crashed.wait(30)
            run(runtime, tap, plants(10, 1))
            wait_for(lambda: monitor.versions[0].totals.rows == 10, "rows to be counted")
        finally:
            monitor.stop()


def test_it_rests_as_long_as_its_share_asks_for() -> None:
    """With 3 % of a CPU, a millisecond of work is followed by 32 of rest; too little work by none, and no rest is longer than a second."""
    cpu = FakeTime(0.0)
    rests: list[float] = []
    rest = Rest(0.03, rests.append, cpu)
    for worked in (0.001, 0.0003, 0.0001, 0.0002, 10.0):
        cpu.now += worked
        rest()
    assert rests == pytest.approx([0.001 * 97 / 3, 0.0006 * 97 / 3, 1.0])
    cpu.now += 5.0  # somebody else's work on this thread
    rest.begin()
    rest()
    assert len(rests) == 3
