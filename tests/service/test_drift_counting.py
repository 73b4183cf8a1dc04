"""Counting whole columns gives what binning value by value gives, on both ways rows reach it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from drift_rows import FEEDS, FIELDS, answers_of, baseline_of, feeds_of, manifest, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_packages import image_file, tint_preprocess
from samegraph_service.drift.counting import RowCounter, Totals
from samegraph_transforms.baseline import Baseline
from samegraph_transforms.baseline_bins import Binner
from samegraph_transforms.baseline_build import BaselineBuilder, Pixels
from samegraph_transforms.baseline_extract import InputColumns, OutputColumns, expected_cells
from samegraph_transforms.draft import BaselineRows
from samegraph_transforms.manifest import Manifest, Missing, Output, RawField, Stage
from samegraph_transforms.signature import Row

MANIFEST = manifest()
BASELINE = baseline_of(MANIFEST, rows_of(500), answers_of(500))


def one_by_one(of: Manifest, baseline: Baseline, rows: Sequence[Row], arrays: Sequence[np.ndarray]) -> dict[tuple[str, str], list[int]]:
    """Return (side, variable) → counts, by the code that baselines are built with."""
    inputs = InputColumns(of, baseline.fields).read(rows)
    outputs = OutputColumns(of).read(dict(zip((o.name for o in of.outputs), arrays, strict=True)))
    found = {("input", v.name): Binner(v).count(inputs[v.name]).tolist() for _, v in baseline.inputs()}
    return found | {("output", v.name): Binner(v).count(outputs[v.name]).tolist() for _, v in baseline.answers()}


def by_variable(counter: RowCounter, totals: Totals) -> dict[tuple[str, str], list[int]]:
    return {(slot.side, slot.variable.name): slot.counts(totals).tolist() for slot in counter.layout.slots}


def fed(counter: RowCounter, rows: Sequence[Row]) -> list[np.ndarray]:
    """Return the graph's inputs that the counter reads."""
    feeds = feeds_of(rows)
    return [feeds[name] for name in counter.feeds]


NUMBER = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    # Around and on the baseline's own edges, where a bin begins.
    st.sampled_from([v for e in BASELINE.field("distance").variables[0].edges for v in (e, math.nextafter(e, 0), math.nextafter(e, 1e9))]),
)
ROW = st.tuples(
    st.none() | NUMBER,
    st.integers(-(2**53), 2**53),
    st.none() | st.sampled_from(["AA", "WN", "", "unseen before", "ü"]),
    st.text(max_size=4) | st.sampled_from(["N1", "N2"]),
    st.booleans(),
    st.none() | st.floats(0, 200),
)


@given(st.lists(ROW, min_size=1, max_size=30), st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_columns_at_once_are_counted_as_one_by_one(rows: list[Row], seed: int) -> None:
    """Rows and the graph's inputs made of them give the very counts of the baseline's own code, and the same sums."""
    counter = RowCounter(MANIFEST, BASELINE, FEEDS)
    arrays = answers_of(len(rows), seed)
    from_rows = counter.count(rows, None, arrays)
    from_feeds = counter.count_columns(fed(counter, rows), arrays)
    assert by_variable(counter, from_rows) == one_by_one(MANIFEST, BASELINE, rows, arrays)
    assert from_feeds.integers.tolist() == from_rows.integers.tolist()
    assert from_feeds.floats == pytest.approx(from_rows.floats)
    assert from_rows.rows == len(rows)
    for slot in counter.layout.slots:
        assert slot.counts(from_rows).sum() == len(rows), slot.variable.name
        if slot.moments is not None and slot.side == "input":
            values = [row[[f.name for f in FIELDS].index(slot.owner)] for row in rows]
            seen = Binner(slot.variable).observe(values)
            above, below, squared = from_rows.floats[slot.moments : slot.moments + 3]
            scale = max(1.0, abs(seen.total), math.sqrt(seen.square * len(rows)))
            assert above - below == pytest.approx(seen.total, abs=1e-9 * scale)
            assert squared == pytest.approx(seen.square, rel=1e-9)
            assert slot.finite(from_rows) == seen.n
            assert min(above, below) == 0  # of one piece; both only ever rise


def test_expected_accuracy_is_summed() -> None:
    """The cells are those the baseline's code gives for the same answers, and add up over pieces."""
    counter = RowCounter(MANIFEST, BASELINE)
    arrays = answers_of(100, 5)
    totals = counter.count(rows_of(100), None, arrays) + counter.count(rows_of(100), None, arrays)
    (slot,) = counter.layout.expected
    cells = dict(zip(slot.cells, totals.floats[slot.start : slot.start + len(slot.cells)], strict=True))
    assert slot.positive == "on time"
    once = expected_cells(MANIFEST.outputs[1], arrays[1], slot.positive)
    assert cells == pytest.approx({cell: 2 * value for cell, value in once.items()})
    assert cells["correct"] + cells["wrong"] == pytest.approx(200)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_a_number_that_is_none_gets_its_own_bin(value: float) -> None:
    """Checked rows hold no NaN and no infinity; if one ever did, it would be counted as what it is, not as missing."""
    counter = RowCounter(MANIFEST, BASELINE)
    rows = [(value, *rows_of(1)[0][1:]), (None, *rows_of(1)[0][1:])]
    found = counter.count(rows, None, answers_of(2))
    assert by_variable(counter, found) == one_by_one(MANIFEST, BASELINE, rows, answers_of(2))


class TestWhenTheGraphsInputsSayAll:
    def test_they_do_when_every_missing_value_stands_out(self) -> None:
        """A NaN, and a string no training value equals, can be told from everything else."""
        assert set(RowCounter(MANIFEST, BASELINE, FEEDS).feeds) == {"f", "i", "s", "b"}

    @pytest.mark.parametrize(
        "changed",
        [
            RawField(name="hour", kind="integer", missing=Missing(rule="sentinel", sentinel=-1)),
            RawField(name="carrier", kind="string", known=["AA"], missing=Missing(rule="sentinel", sentinel="AA")),
        ],
        ids=["a number stands in", "a known string stands in"],
    )
    def test_they_do_not_when_what_stands_in_could_be_real(self, changed: RawField) -> None:
        """A missing hour that becomes -1, or a missing carrier that becomes a real one, cannot be told: rows are counted instead."""
        of = manifest([changed if f.name == changed.name else f for f in FIELDS])
        baseline = baseline_of(of, rows_of(300), answers_of(300))
        assert RowCounter(of, baseline, FEEDS).feeds == ()

    def test_they_do_not_when_a_field_is_not_among_them(self) -> None:
        """A field the graph does not read, or reads as two inputs, is in the rows only."""
        assert RowCounter(MANIFEST, BASELINE, {k: v for k, v in FEEDS.items() if k != "tail"}).feeds == ()

    def test_what_is_not_monitored_is_not_missed(self) -> None:
        """A field that is off needs no column and has no counts."""
        baseline = baseline_of(MANIFEST, rows_of(300), answers_of(300), off={"tail"})
        counter = RowCounter(MANIFEST, baseline, {k: v for k, v in FEEDS.items() if k != "tail"})
        assert set(counter.feeds) == {"f", "i", "s", "b"}
        assert ("input", "tail") not in by_variable(counter, counter.count_columns(fed(counter, rows_of(9)), answers_of(9)))


def test_hashed_categories_are_found() -> None:
    """A baseline without readable values counts as the one with them does."""
    rows = [*rows_of(200, 1), (1.0, 9, "AA", "never seen", True, 0.0)]
    arrays = answers_of(201)
    found = []
    for hashed in (set(), {"tail"}):
        baseline = baseline_of(MANIFEST, rows_of(500), answers_of(500), hashed=hashed)
        counter = RowCounter(MANIFEST, baseline, FEEDS)
        found += [
            by_variable(counter, counter.count(rows, None, arrays)),
            by_variable(counter, counter.count_columns(fed(counter, rows), arrays)),
        ]
    assert found[0] == found[1] == found[2] == found[3]
    assert found[0]["input", "tail"][-3] >= 1  # unseen


# --- what is not plain ----------------------------------------------------------------------------------------------------


def image_version() -> tuple[Manifest, Baseline, list[Row], dict[str, list[Any]], list[np.ndarray]]:
    """Photos and captions in, the sum of each channel out, with a baseline of twenty rows."""
    of = Manifest(
        name="photos",
        version=1,
        fields=[
            RawField(name="photo", kind="image"),
            RawField(name="caption", kind="text"),
            RawField(name="weights", kind="tensor", dtype="float32", shape=[3]),
        ],
        outputs=[Output(name="tint", dtype="float32", shape=[3])],
        stages=[Stage(name="model", file="model.onnx", inputs={}, outputs={})],
    )
    rows: list[Row] = [(image_file(i, "JPEG" if i % 2 else "PNG"), f"picture {i}", np.arange(3, dtype=np.float32) + i) for i in range(20)]
    pixels = {"pixels": [tint_preprocess().item(row[0]) for row in rows]}
    arrays = [np.array([p.sum(axis=(0, 1)) for p in pixels["pixels"]], dtype=np.float32)]
    builder = BaselineBuilder(of, BaselineRows(rows=[]), {"photo": Pixels("pixels", (16, 16))})
    builder.add(rows, {"tint": arrays[0]}, pixels)
    return of, builder.finish(), rows, pixels, arrays


def test_images_texts_and_tensors_are_read_a_few_at_a_time() -> None:
    """Counting the baseline's own rows gives the baseline's own counts, and others get the interpreter many times on the way."""
    of, baseline, rows, pixels, arrays = image_version()
    counter = RowCounter(of, baseline, FEEDS)
    assert counter.pixels == ("pixels",)
    assert counter.feeds == ()
    breaths = []
    found = counter.count(rows, pixels, arrays, lambda: breaths.append(1))
    assert found.integers.tolist() == counter.layout.baseline().tolist()
    assert len(breaths) >= len(rows) / 4


def test_an_image_without_its_pixels_is_missing_there() -> None:
    """Facts of the file are counted, statistics of pixels nobody has count as missing: bins still sum to rows."""
    of, baseline, rows, _, arrays = image_version()
    counter = RowCounter(of, baseline)
    found = by_variable(counter, counter.count(rows, None, arrays))
    labels = next(v.labels for _, v in baseline.inputs() if v.name == "photo.brightness")
    assert dict(zip(labels, found["input", "photo.brightness"], strict=True))["missing"] == 20
    assert sum(found["input", "photo.format"]) == 20
