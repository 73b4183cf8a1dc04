"""How a load test judges: golden comparisons, quantiles, thresholds, and the page."""

from __future__ import annotations

import base64
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import checks
from loadtest.fleet import FleetError, existing
from loadtest.record import Burst, Item, Moment, Record, per_second, quantile
from loadtest.report import render, summary
from loadtest.samples import Sample, read_samples

EXACT = {"ulp": 0, "relative_to_max": 0.0, "atol": 0.0, "rtol": 0.0}


def sample(predictions: list[object], **tolerance: float) -> Sample:
    return Sample("s", "m", 1, [{"x": 1}], predictions, {**EXACT, **tolerance})


def item(at: float, *, role: str = "burst", late: float = 0.0, took: float = 0.1, ok: bool = True, **facts: object) -> Item:
    return Item(role, at, at + late, at + late + took, ok, **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("golden", "got", "tolerance", "wrong"),
    [
        ([1.5], [1.5], {}, ""),
        ([1.5], [1.6], {}, "instead of"),
        ([1.0], [1.0 + 1e-6], {"atol": 1e-5}, ""),
        ([1.0], [float(np.nextafter(np.float32(1), np.float32(2)))], {"ulp": 1}, ""),
        ([1.0], [float(np.float32(1) + np.float32(5e-7))], {"ulp": 1}, "instead of"),
        ([[0.1, 100.0]], [[0.1 + 5e-6, 100.0]], {"relative_to_max": 1e-7}, ""),
        ([{"label": "a", "p": [0.5]}], [{"label": "a", "p": [0.5]}], {}, ""),
        ([{"label": "a"}], [{"label": "b"}], {"atol": 9.0}, "s[0].label"),
        ([{"label": "a"}], [{"other": "a"}], {}, "another shape"),
        ([1], [True], {}, "instead of"),
        ([1.0], [None], {"atol": 1.0}, "instead of"),
        ([1, 2], [1], {}, "1 predictions instead of 2"),
        ([[1, 2]], [[1]], {}, "another number"),
        ([-0.0], [1e-45], {"ulp": 1}, ""),
    ],
)
def test_answers_are_held_to_the_promise(golden: list[object], got: list[object], tolerance: dict[str, float], wrong: str) -> None:
    """Integers, strings and shapes are exact; floats as promised."""
    found = sample(golden, **tolerance).wrong(got)
    assert (wrong in found) if wrong else not found


@given(st.floats(-(2.0**120), 2.0**120, width=32), st.integers(0, 5))
def test_units_in_the_last_place_are_counted_as_numpy_counts_them(value: float, steps: int) -> None:
    """So many steps to the next float32 are so many ULP, across zero too."""
    other = np.float32(value)
    for _ in range(steps):
        other = np.nextafter(other, np.float32(np.inf))
    assert sample([value], ulp=steps).wrong([float(other)]) == ""
    if steps and float(other) != value:
        assert sample([value], ulp=steps - 1).wrong([float(other)])


def test_exported_samples_are_read_and_what_cannot_be_sent_is_left_out(tmp_path: Path) -> None:
    """JSON rows with bytes inside, images, and neither text nor tensors."""
    line = {"name": "a", "model": "m", "version": 3, "path": "/v1/models/m:predict", "predictions": [1], "tolerance": EXACT}
    rows = {"instances": [{"x": 1.5, "photo": {"b64": base64.b64encode(b"jpg").decode()}}]}
    bodies = [
        ("application/json", json.dumps(rows).encode()),
        ("image/png", b"png"),
        ("text/plain", b"no"),
        ("application/json", b'{"inputs": 1}'),
    ]
    file = tmp_path / "samples.jsonl"
    lines = [{**line, "headers": {"content-type": kind}, "body": base64.b64encode(body).decode()} for kind, body in bodies]
    file.write_text("\n".join(map(json.dumps, lines)))
    assert [s.raw for s in read_samples(file)] == [[{"x": 1.5, "photo": b"jpg"}], b"png"]
    assert len(read_samples(file, most=1)) == 1
    file.write_text('{"name": 1}')
    with pytest.raises(ValueError, match="line 1"):
        read_samples(file)
    file.write_text("")
    with pytest.raises(ValueError, match="no sample"):
        read_samples(file)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_quantile_is_the_nearest_rank(values: list[float], q: float) -> None:
    """At least that share of the values is at most it, and it is one of them."""
    found = quantile(values, q)
    assert found in values
    assert sum(value <= found for value in values) >= q * len(values) - 1e-9


def test_latency_counts_from_when_an_item_was_due() -> None:
    """A generator that sends late does not make the server look fast."""
    record = Record([item(0.0, late=2.0, took=0.5)])
    assert record.latency(0.5) == pytest.approx(2.5)
    assert [c.met for c in checks.punctual(record, "burst", late_s=0.1)] == [False]
    assert math.isnan(Record().latency(0.5))
    assert [c.met for c in checks.answered(Record())] == [False, True, True]


def test_lost_and_wrong_items_miss_their_thresholds() -> None:
    """One of either is enough."""
    good = [item(i / 10) for i in range(20)]
    assert all(check.met for check in checks.answered(Record(list(good))))
    assert not all(check.met for check in checks.answered(Record([*good, item(1, ok=False, error="Refused")])))
    assert not all(check.met for check in checks.answered(Record([*good, item(1, wrong="row 1")])))
    record = Record(good, [Burst(20, 2.0, 1.9)])
    assert all(check.met for check in checks.bursts(record, attempts=1.1, makespan_ratio=1.1))
    assert not all(check.met for check in checks.bursts(Record(good, [Burst(20, 2.5, 1.9)]), attempts=1.1, makespan_ratio=1.1))
    assert not all(check.met for check in checks.bursts(Record(good), attempts=1.1, makespan_ratio=1.1))
    disturbed, calm = Burst(20, 2.5, 1.9), Burst(20, 2.0, 1.9)
    assert all(check.met for check in checks.bursts(Record(good, [disturbed, calm, calm]), attempts=1.1, makespan_ratio=1.1))
    assert not all(check.met for check in checks.bursts(Record(good, [disturbed, disturbed, calm]), attempts=1.1, makespan_ratio=1.1))


def test_a_unit_with_two_arms_and_unfair_shares_are_seen() -> None:
    """Stickiness is per unit, shares are of units and not of requests."""
    arms = {f"u{i}": "a" if i % 3 else "b" for i in range(900)}
    record = Record([item(i / 100, unit=unit, arm=arm) for i, (unit, arm) in enumerate(arms.items()) for _ in range(2)])
    assert all(check.met for check in checks.sticky(record))
    assert all(check.met for check in checks.shares(record, {"a": 2.0, "b": 1.0}))
    assert not any(check.met for check in checks.shares(record, {"a": 1.0, "b": 1.0}))
    record.add(item(9, unit="u0", arm="a"))
    assert [check.met for check in checks.sticky(record)] == [True, False]


def test_page_and_terminal_tell_the_same(tmp_path: Path) -> None:
    """Verdict, callers, bursts, plots, what was done, failures; names from outside are escaped."""
    record = Record(
        [item(i / 10, took=0.2, attempts=2, refusals=1) for i in range(50)]
        + [item(2, role="<b>", ok=False, error="Refused"), item(3, wrong="<i>")],
        [Burst(50, 5.0, 4.8, 10, 9, 0.1)],
        [Moment(float(i), 5.0 * i, 6.0, 3.0 if i else None, 1.0, 10.0, 3) for i in range(5)],
        [(1.5, "killed replica 0")],
    )
    found = [*checks.answered(record)]
    page = render("a & b", {"model": "<m>"}, record, found)
    assert "2 of 3 thresholds missed" in page
    assert "<b>" not in page.split("</style>")[1].replace('<b class="', "")
    assert "a &amp; b" in page
    assert "killed replica 0" in page
    assert page.count("<svg") == 7
    assert "nan" not in page
    assert Counter(line[:6] for line in summary(record, found))["MISSED"] == 2
    assert per_second([(0.5, 1.0), (0.7, 3.0), (2.1, 5.0)], 3.0, max) == [(0.5, 3.0), (2.5, 5.0)]
    assert len(render("t", {}, Record(), []).split("thresholds met")) == 2


def test_load_is_sent_to_this_machine_only() -> None:
    """By mistake or not."""
    for url in ("http://example.com:8000", "http://10.0.0.1:80", "http://127.0.0.1.example.com:80"):
        with pytest.raises(FleetError, match="not on this machine"), existing(url):
            pass
    with pytest.raises(FleetError, match="no samegraph server"), existing("http://127.0.0.1:9"):
        pass
