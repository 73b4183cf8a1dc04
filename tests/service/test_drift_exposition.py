"""What a scrape gets: every series from the start, bins that sum to rows, and a cap that says what it left out."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from drift_rows import FEEDS, FIELDS, answers_of, baseline_of, feeds_of, manifest, rows_of
from fake_time import FakeTime
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from samegraph_service.batching import Entry, Work
from samegraph_service.device import Segment
from samegraph_service.drift.distributions import normal_quantile
from samegraph_service.drift.exposition import DriftExposition, fixed_series, label_value, series_of
from samegraph_service.drift.monitor import DriftMonitor, DriftOptions
from samegraph_service.drift.statistics import STATES, AlarmRule
from samegraph_service.drift.tap import QueueLimits, Tap
from samegraph_service.drift.version import VersionDrift
from samegraph_service.drift.window_sizes import parse_windows
from samegraph_transforms.errors import InputError
from samegraph_transforms.manifest import Manifest, RawField
from samegraph_transforms.runtime import PackageRuntime
from samegraph_transforms.signature import Row

CLOCK = 60 * 1000.0


def runtime_of(of: Manifest) -> PackageRuntime:
    """Stand in for a loaded version: what the monitor reads of it."""
    facts = {
        "manifest": of,
        "digest": "d" * 64,
        "item_plan": None,
        "item_places": {},
        "shapes": None,
        "feed_columns": FEEDS,
        "tokenizers": {},
    }
    return cast(PackageRuntime, SimpleNamespace(**facts))


def monitor_of(clock: FakeTime | None = None, windows: str = "1h,24h") -> DriftMonitor:
    options = DriftOptions(AlarmRule(), parse_windows(windows), 1.0, QueueLimits())
    return DriftMonitor(options, clock or FakeTime(CLOCK))


def watch(monitor: DriftMonitor, of: Manifest | None = None, **options: Any) -> Tap:
    of = of or manifest()
    rows = rows_of(1000, 1)
    return monitor.add(runtime_of(of), baseline_of(of, rows, answers_of(1000, 1), **options), 32)


def put(tap: Tap, rows: Sequence[Row], seed: int = 0) -> None:
    """Hand rows over as an execution does."""
    work = Work(len(rows), 1e9, False, {}, lambda _: None)
    ran = Segment(0, len(rows), answers_of(len(rows), seed), None, feeds=feeds_of(rows))
    tap.executed([Entry(work, 0, rows)], [ran])


def families(exposition: DriftExposition) -> dict[str, Metric]:
    return {family.name: family for family in parse_text("".join(exposition.write(openmetrics=False)))}


def values(exposition: DriftExposition) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families(exposition).values() for s in family.samples}


def sums(exposition: DriftExposition, metric: str, label: str) -> dict[str, float]:
    """Return quantity → sum over its bins."""
    found: dict[str, float] = {}
    for (name, labels), value in values(exposition).items():
        if name == metric:
            quantity = dict(labels)[label]
            found[quantity] = found.get(quantity, 0.0) + value
    return found


class TestSeries:
    def test_all_are_there_before_the_first_row(self) -> None:
        """Every bin, moment, window, state and drop reason has its series at 0 or NaN, and none comes later but errors no one expects."""
        monitor = monitor_of()
        tap = watch(monitor)
        exposition = DriftExposition(monitor, 5000)
        before = values(exposition)
        put(tap, rows_of(400, 2))
        monitor.flush()
        monitor.look(CLOCK + 60)
        after = values(exposition)
        assert before.keys() == after.keys()
        assert {value for (name, _), value in before.items() if name.endswith("_total")} == {0.0}
        assert all(math.isnan(value) for (name, _), value in before.items() if name == "samegraph_drift_psi")
        assert not any(math.isnan(value) for value in after.values())

    def test_the_estimate_of_the_cap_is_their_number(self) -> None:
        """What is promised by `series_of` and `fixed_series`, and told as exported, is what a scrape holds."""
        monitor = monitor_of()
        watch(monitor)
        exposition = DriftExposition(monitor, 5000)
        (version,) = monitor.versions
        found = values(exposition)
        told = {dict(labels)["kind"]: value for (name, labels), value in found.items() if name == "samegraph_drift_series"}
        promised = fixed_series(version) + sum(series_of(slot, 2) for slot in version.slots)
        assert told == {"exported": promised, "capped": 0}
        assert len(found) == promised + len(told)

    def test_bins_sum_to_rows(self) -> None:
        """For inputs, outputs and the baseline, each quantity's bins sum to the rows."""
        monitor = monitor_of()
        tap = watch(monitor)
        put(tap, rows_of(700, 2))
        monitor.flush()
        exposition = DriftExposition(monitor, 5000)
        assert set(sums(exposition, "samegraph_input_bin_rows_total", "field").values()) == {700.0}
        assert set(sums(exposition, "samegraph_input_bin_rows_total", "field")) == {f.name for f in FIELDS}
        assert set(sums(exposition, "samegraph_output_bin_rows_total", "output").values()) == {700.0}
        assert set(sums(exposition, "samegraph_baseline_bin_rows", "field").values()) == {1000.0}
        assert set(sums(exposition, "samegraph_baseline_output_bin_rows", "output").values()) == {1000.0}
        assert sums(exposition, "samegraph_output_expected_total", "output")["chance"] == pytest.approx(2 * 700)  # two ways to say 700

    def test_mean_and_variance_follow_from_the_sums(self) -> None:
        """Count, offsets and squares give back the mean and variance of what was sent."""
        monitor = monitor_of()
        tap = watch(monitor)
        rows = rows_of(900, 3, distance=500.0)
        put(tap, rows)
        monitor.flush()
        found = values(DriftExposition(monitor, 5000))
        own = (("field", "distance"), ("model", "flights"), ("version", "1"))
        n = found["samegraph_input_value_count_total", own]
        above, below = (found["samegraph_input_value_offset_total", tuple(sorted((*own, ("side", side))))] for side in ("above", "below"))
        squared = found["samegraph_input_value_offset_squared_total", own]
        sent = np.array([row[0] for row in rows if row[0] is not None])
        mean = monitor.versions[0].baseline.field("distance").variables[0].mean
        assert mean is not None
        assert n == len(sent)
        assert mean + (above - below) / n == pytest.approx(sent.mean())
        assert squared / n - ((above - below) / n) ** 2 == pytest.approx(sent.var())

    def test_windows_say_what_the_comparison_said(self) -> None:
        """Statistics are those of the last look, one state of four is 1, and what needs an order is there for numbers only."""
        monitor = monitor_of()
        tap = watch(monitor)
        put(tap, rows_of(800, 4, distance=900.0))
        monitor.flush()
        monitor.look(CLOCK + 60)
        found = values(DriftExposition(monitor, 5000))
        (version,) = monitor.versions
        assert version.readings is not None
        for i, slot in enumerate(version.slots):
            said = version.readings.windows["1h"].comparisons[i]
            own = (("field", slot.variable.name), ("model", "flights"), ("side", slot.side), ("version", "1"), ("window", "1h"))
            assert found["samegraph_drift_psi", own] == said.psi
            assert found["samegraph_drift_sample_rows", own] == 800
            assert ("samegraph_drift_ks", own) in found or slot.variable.kind != "numeric"
            states = {state: found["samegraph_drift_state", tuple(sorted((*own, ("state", state))))] for state in STATES}
            assert states == {state: float(state == said.state) for state in STATES}
        assert version.readings.windows["1h"].comparisons[0].state == "drifted"

    def test_the_rule_is_told_for_prometheus(self) -> None:
        """The level each quantity is tested at, as a normal quantile, the tolerated PSI and the least rows."""
        monitor = monitor_of()
        watch(monitor)
        found = {name: value for (name, _), value in values(DriftExposition(monitor, 5000)).items()}
        assert found["samegraph_drift_level_z"] == normal_quantile(1 - 0.001 / len(monitor.versions[0].slots))
        assert (found["samegraph_drift_least_psi"], found["samegraph_drift_min_rows"]) == (0.1, 200)

    def test_errors_that_no_one_expects_appear(self) -> None:
        """A usual error has its series from the start, another one from its first time."""
        monitor = monitor_of()
        tap = watch(monitor)
        tap.refused([InputError("", code="wrong_type", field="hour"), InputError("", code="unknown_field", field="zip")])
        found = {
            (labels["field"], labels["kind"]): value
            for (name, pairs), value in values(DriftExposition(monitor, 5000)).items()
            if name == "samegraph_input_errors_total" and (labels := dict(pairs))
        }
        assert found["hour", "wrong_type"] == 1
        assert found["_unknown", "unknown_field"] == 1
        assert found["distance", "missing_field"] == 0
        assert not any(name == "zip" for name, _ in found)


class TestFormats:
    def test_both_formats_hold_the_same(self) -> None:
        """The strict OpenMetrics parser and the classic one read the same samples."""
        monitor = monitor_of()
        tap = watch(monitor)
        put(tap, rows_of(300, 1))
        monitor.flush()
        monitor.look(CLOCK + 60)
        exposition = DriftExposition(monitor, 5000)
        strict = {
            (s.name, tuple(sorted(s.labels.items()))): s.value
            for family in parse_openmetrics(  # type: ignore[no-untyped-call]
                "".join(exposition.write(openmetrics=True)) + "# EOF\n"
            )
            for s in family.samples
        }
        assert strict == values(exposition)

    def test_any_class_name_is_a_label(self) -> None:
        """A class called like a break-out comes back as it is."""
        name = 'a"} 1\nfake{x="\\'
        text = f'm{{bin="{label_value(name)}"}} 1\n'
        (family,) = parse_text(text)
        assert family.samples[0].labels == {"bin": name}

    def test_no_versions_no_series(self) -> None:
        """Without a baseline anywhere there is the count of series only, at 0."""
        assert {s.name: s.value for f in families(DriftExposition(monitor_of(), 5000)).values() for s in f.samples} == {
            "samegraph_drift_series": 0.0
        }


class TestTheCap:
    def shown(self, exposition: DriftExposition) -> set[str]:
        return set(sums(exposition, "samegraph_input_bin_rows_total", "field"))

    def test_the_least_important_fields_go_first(self) -> None:
        """Under a cap that holds half, outputs and the important fields stay; what is left out is told, and still counted."""
        monitor = monitor_of()
        tap = watch(monitor, importance={"wind": 9.0, "distance": 5.0, "hour": 0.1})
        (version,) = monitor.versions
        full = fixed_series(version) + sum(series_of(slot, 2) for slot in version.slots)
        exposition = DriftExposition(monitor, full - 1)
        assert self.shown(exposition) == {f.name for f in FIELDS} - {"hour"}
        tight = DriftExposition(monitor, full // 2)
        assert "wind" in self.shown(tight)
        assert not {"hour", "tail"} & self.shown(tight)
        put(tap, rows_of(300, 1))
        monitor.flush()
        found = values(tight)
        told = {dict(labels)["kind"]: value for (name, labels), value in found.items() if name == "samegraph_drift_series"}
        assert told["exported"] <= full // 2
        assert told["exported"] + told["capped"] == full
        assert len(found) - 2 == told["exported"]
        hour = next(i for i, slot in enumerate(version.slots) if slot.owner == "hour")
        assert not tight.is_exported(version, hour)
        assert version.slots[hour].counts(version.totals).sum() == 300

    def test_all_versions_share_it(self) -> None:
        """A second version takes room from the least important fields of both, and gives it back when it goes."""
        monitor = monitor_of()
        watch(monitor, importance={"wind": 9.0})
        one = fixed_series(monitor.versions[0]) + sum(series_of(slot, 2) for slot in monitor.versions[0].slots)
        exposition = DriftExposition(monitor, one)
        assert self.shown(exposition) == {f.name for f in FIELDS}
        second = watch(monitor, manifest(version=2), importance={"wind": 9.0})
        wind = [dict(labels)["version"] for (name, labels), _ in values(exposition).items() if ("field", "wind") in labels]
        assert set(wind) == {"1", "2"}
        assert self.shown(exposition) < {f.name for f in FIELDS}
        monitor.remove(second)
        assert self.shown(exposition) == {f.name for f in FIELDS}

    def test_a_cap_of_nothing_leaves_the_counters_of_versions(self) -> None:
        """Rows, drops and errors are always there: they are few, and say that something is counted at all."""
        monitor = monitor_of()
        watch(monitor)
        exposition = DriftExposition(monitor, 0)
        assert self.shown(exposition) == set()
        assert ("samegraph_input_rows_total", (("model", "flights"), ("version", "1"))) in values(exposition)


def wide(n: int) -> Manifest:
    """A version of many number fields."""
    return manifest([*FIELDS, *(RawField(name=f"x{i}", kind="number") for i in range(n))])


def test_a_scrape_beside_counting_is_of_one_moment() -> None:
    """While another thread counts, every scrape's bins sum to its own rows."""
    monitor = monitor_of()
    tap = watch(monitor)
    exposition = DriftExposition(monitor, 5000)
    stop = threading.Event()
    ready = rows_of(50, 1)

    def count() -> None:
        while not stop.is_set():
            put(tap, ready)
            monitor.flush()

    thread = threading.Thread(target=count)
    thread.start()
    try:
        for _ in range(30):
            found = values(exposition)
            rows = found["samegraph_input_rows_total", (("model", "flights"), ("version", "1"))]
            bins: dict[str, float] = {}
            for (name, labels), value in found.items():
                if name == "samegraph_input_bin_rows_total":
                    field = dict(labels)["field"]
                    bins[field] = bins.get(field, 0.0) + value
            assert set(bins.values()) == {rows}
    finally:
        stop.set()
        thread.join()


@pytest.fixture(scope="module")
def full() -> tuple[DriftExposition, VersionDrift]:
    """A version with more fields than the default cap has room for."""
    of = wide(100)
    rows = [(*row, *np.random.default_rng(i).normal(size=100).tolist()) for i, row in enumerate(rows_of(100, 1))]
    monitor = monitor_of()
    monitor.add(runtime_of(of), baseline_of(of, rows, answers_of(100)), 32)
    return DriftExposition(monitor, 5000), monitor.versions[0]


def test_the_default_cap_bites_at_a_hundred_fields(full: tuple[DriftExposition, VersionDrift]) -> None:
    """5,000 series at most, in pieces of one family each; which fields are in is told by the JSON document too."""
    exposition, version = full
    pieces = list(exposition.write(openmetrics=False))
    samples = [line for piece in pieces for line in piece.splitlines() if not line.startswith("#")]
    told = {s.labels["kind"]: s.value for s in families(exposition)["samegraph_drift_series"].samples}
    assert len(samples) - 2 == told["exported"] <= 5000
    assert told["capped"] > 0
    assert len(pieces) > 15
    assert 0 < sum(exposition.is_exported(version, i) for i in range(len(version.slots))) < len(version.slots)
