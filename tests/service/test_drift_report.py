"""What a drift report says: counts added up over replicas, ranked, with a trend."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from drift_rows import answers_of, baseline_of, manifest, rows_of
from rich.console import Console
from samegraph_service.drift import statistics
from samegraph_service.drift.counting import RowCounter, Totals
from samegraph_service.drift.report import Found, Part, Report, found_in, make_report, pooled_moments
from samegraph_service.drift.report_html import render_report
from samegraph_service.drift.report_text import ReportText
from samegraph_service.drift.statistics import AlarmRule
from samegraph_service.drift.window_sizes import WindowSize
from samegraph_service.drift.windows import Windows, slices
from samegraph_transforms.baseline import Baseline

MANIFEST = manifest()
BASELINE = baseline_of(MANIFEST, rows_of(4000, 1), answers_of(4000, 1), importance={"hour": 0.1, "carrier": 5.0})
COUNTER = RowCounter(MANIFEST, BASELINE)


def counted(n: int, seed: int, **shifts: float) -> Totals:
    return COUNTER.count(rows_of(n, seed, **shifts), None, answers_of(n, seed))


def found_of(totals: Totals, baseline: Baseline = BASELINE, **more: Any) -> Found:
    slots = COUNTER.layout.slots
    moments = [slot.mean_and_std(totals) for slot in slots]
    counts = [slot.counts(totals) for slot in slots]
    return Found("a test", "flights", "1", "", baseline, AlarmRule(), "1h", counts, moments, **more)


def document(totals: Totals, trend: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Return the parts of a replica's document that reports read."""
    variables = []
    for slot in COUNTER.layout.slots:
        mean, std = slot.mean_and_std(totals)
        window = {"counts": slot.counts(totals).tolist(), "mean": mean, "std": std}
        variables.append({"bins": list(slot.variable.labels), "windows": {"1h": window}})
    whole: dict[str, Any] = {
        "model": "flights",
        "version": "1",
        "digest": "d",
        "rule": {"least_psi": 0.1, "alpha": 0.001, "min_rows": 200},
        "variables": variables,
        "expected": [],
        "errors": [],
        "dropped_rows": {"sampled": 0},
        "rows": totals.rows,
        **more,
    }
    return whole if trend is None else {**whole, "trend": trend}


def names(report: Report) -> list[str]:
    return [entry.variable.name for entry in report.entries]


class TestRanking:
    def test_what_drifted_stands_first_and_the_important_before_the_rest(self) -> None:
        """Of drifted variables the important come first, then the larger excess; a drifted unimportant one still precedes quiet ones."""
        totals = counted(3000, 2, distance=2500.0, wind=40.0)
        report = make_report(found_of(totals), "now")
        states = [entry.found.state for entry in report.entries]
        assert states == sorted(states, key=["drifted", "shifted", "quiet", "not_enough_data"].index)
        assert {names(report)[0], names(report)[1]} == {"distance", "wind"}
        assert report.entries[0].excess > report.entries[1].excess
        quiet = [entry for entry in report.entries if entry.found.state == "quiet"]
        assert quiet[0].importance == 5.0
        assert quiet[-1].variable.name == "hour"

    def test_answers_are_as_important_as_the_most_important_field(self) -> None:
        """Callers act on answers."""
        report = make_report(found_of(counted(300, 2)), "now")
        assert {entry.importance for entry in report.entries if entry.side == "output"} == {5.0}

    def test_each_entry_is_the_comparison_of_its_counts(self) -> None:
        """The report adds nothing to the statistics: they are those of `compare`, at the version's shared level."""
        totals = counted(3000, 2, distance=300.0)
        report = make_report(found_of(totals), "now")
        (slot,) = [slot for slot in COUNTER.layout.slots if slot.variable.name == "distance"]
        (entry,) = [entry for entry in report.entries if entry.variable.name == "distance"]
        expected = statistics.compare(slot.variable.counts, slot.counts(totals), AlarmRule(), tests=len(report.entries))
        assert replace(entry.found, ks=math.nan, w1_std=math.nan).__repr__() == expected.__repr__()
        assert entry.guilty is not None
        assert entry.guilty[0] == slot.variable.labels[entry.found.linf_bin or 0]
        assert entry.guilty[3] - entry.guilty[2] == pytest.approx(
            entry.found.linf if entry.guilty[3] > entry.guilty[2] else -entry.found.linf
        )

    def test_few_rows_say_nothing(self) -> None:
        """Neither drifted nor fine."""
        report = make_report(found_of(counted(50, 2, distance=9000.0)), "now")
        assert report.says_nothing
        assert not report.drifted
        assert report.to_json()["variables"][0]["psi"] is None


class TestReplicas:
    def test_counts_and_moments_are_those_of_the_pooled_rows(self) -> None:
        """Two uneven replicas say together what one would have said of all rows."""
        one, other = counted(3000, 2, distance=900.0), counted(500, 3)
        pooled = one + other
        found = found_in([document(one), document(other)], BASELINE, "1h", "two")
        alone = found_of(pooled)
        for (mean, std), expected in zip(found.moments, alone.moments, strict=True):
            assert (mean is None) == (expected[0] is None)
            if mean is not None:
                assert [mean, std] == pytest.approx(list(expected))
        assert [c.tolist() for c in found.counts] == [c.tolist() for c in alone.counts]
        assert [e.found.psi for e in make_report(found, "").entries] == [e.found.psi for e in make_report(alone, "").entries]

    def test_a_replica_that_has_not_looked_counts_for_nothing_and_is_told(self) -> None:
        """A replica started seconds ago has no windows."""
        fresh = document(counted(10, 1))
        for variable in fresh["variables"]:
            variable["windows"] = {}
        found = found_in([document(counted(400, 2)), fresh], BASELINE, "1h", "two")
        assert make_report(found, "").rows == 400
        assert any("1 of 2 replicas" in note for note in found.notes)

    def test_parts_add_up_by_their_age(self) -> None:
        """The newest parts of replicas belong together."""
        parts = [[slot.counts(counted(n, n)).tolist() for slot in COUNTER.layout.slots] for n in (300, 250)]
        trends = [
            {"window": "1h", "part_minutes": 3, "parts": [None, parts[0]]},
            {"window": "1h", "part_minutes": 3, "parts": [None, parts[1]]},
        ]
        documents = [document(counted(300, 1), trend) for trend in trends]
        report = make_report(found_in(documents, BASELINE, "1h", ""), "")
        assert [point.rows for point in report.entries[0].trend] == [0, 550]
        assert report.entries[0].trend[-1].label == "the last 3 min"
        assert math.isnan(report.entries[0].trend[0].psi)

    def test_what_was_dropped_is_told(self) -> None:
        """A sample is called a sample."""
        totals = counted(400, 2)
        found = found_in([document(totals, dropped_rows={"sampled": 100, "overflow": 0})], BASELINE, "1h", "")
        assert (
            found.notes == ("Since the start 100 answered rows were not counted (20.0%); those counted are a sample.",)
            or "20.0%" in found.notes[0]
        )

    @pytest.mark.parametrize("sizes", [(5, 5), (1, 99), (3, 0)])
    def test_moments_of_parts_are_those_of_the_whole(self, sizes: Sequence[int]) -> None:
        """Pooled mean and deviation equal those of all values together."""
        variable = next(v for _, v in BASELINE.inputs() if v.name == "distance")
        rng = np.random.default_rng(1)
        samples = [rng.normal(5, 2, n) for n in sizes]
        counts = [np.eye(1, len(variable.labels), 0, dtype=np.int64)[0] * len(sample) for sample in samples]
        parts = [(c, (float(s.mean()), float(s.std())) if len(s) else (None, None)) for c, s in zip(counts, samples, strict=True)]
        whole = np.concatenate(samples)
        assert list(pooled_moments(variable, parts)) == pytest.approx([whole.mean(), whole.std()])


class TestTrend:
    def test_parts_of_a_window_sum_to_it(self) -> None:
        """Every minute of the window is in exactly one part, the last in the last."""
        size = WindowSize("1h", 60)
        windows = Windows([size], counted(1, 1).minus(counted(1, 1)))
        total = counted(1, 1).minus(counted(1, 1))
        for minute in range(100, 190, 7):
            total += counted(minute - 90, minute)
            windows.advance(minute, total)
        last = 184
        length, parts = slices(windows.minutes(), last, size, 24)
        assert (length, len(parts)) == (3, 20)
        assert sum(int(part[0]) for part in parts if len(part)) == windows.sums()["1h"].rows
        assert int(parts[-1][0]) == last - 90

    def test_a_trend_compares_each_part_with_the_baseline(self) -> None:
        """PSI of a part is PSI of its counts, and its critical value is the closed form's."""
        slots = COUNTER.layout.slots
        part = counted(500, 4, distance=900.0)
        report = make_report(found_of(counted(900, 2), trend=[Part("a", []), Part("b", [slot.counts(part) for slot in slots])]), "")
        (entry,) = [entry for entry in report.entries if entry.variable.name == "distance"]
        (slot,) = [slot for slot in slots if slot.variable.name == "distance"]
        assert entry.trend[1].psi == pytest.approx(statistics.population_stability_index(slot.variable.counts, slot.counts(part)))
        n_eff = statistics.effective_rows(500, 4000)
        critical = statistics.psi_critical_closed_form(len(slot.variable.counts), n_eff, alpha=0.001 / len(slots))
        assert entry.trend[1].critical == pytest.approx(critical)


class TestPages:
    def test_the_page_loads_nothing_and_escapes_everything(self) -> None:
        """No script, no address of another host, and no value of the data as markup."""
        evil = "<script>alert(1)</script>"
        baseline = BASELINE.model_copy(update={"made_from": evil})
        found = replace(found_of(counted(900, 2, distance=2500.0), baseline), notes=[evil], errors={(evil, "wrong_type"): 3})
        html = render_report(make_report(found, "now"), [("./?a=1&b=2", evil)])
        assert "<script" not in html
        assert "http://" not in html
        assert "default-src 'none'" in html
        assert html.count('<article class="card"') == len(COUNTER.layout.slots)

    @pytest.mark.parametrize("width", [60, 80, 200])
    def test_the_terminal_names_what_moved_at_any_width(self, width: int) -> None:
        """Variable, state and bin are there on a narrow terminal too."""
        console = Console(width=width, force_terminal=False)
        with console.capture() as captured:
            console.print(ReportText(make_report(found_of(counted(3000, 2, distance=9000.0)), "now")))
        text = captured.get()
        assert "distance" in text
        assert "drifted" in text
        assert "above" in text, text
        assert "quiet: " in text
