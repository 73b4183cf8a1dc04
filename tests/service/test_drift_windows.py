"""Windows are exact sums of minutes, whatever comes when."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samegraph_service.drift.counting import Totals
from samegraph_service.drift.window_sizes import WindowSize, parse_windows
from samegraph_service.drift.windows import Windows

SIZES = (WindowSize("3m", 3), WindowSize("10m", 10))


def totals(rows: int, weight: float = 0.0) -> Totals:
    """Rows that all fell into one of two bins by their number, and a float sum."""
    return Totals(np.array([rows, rows // 3, rows - rows // 3], dtype=np.int64), np.array([weight]))


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 300)), max_size=40))
def test_a_window_is_the_sum_of_its_last_minutes(minutes: list[tuple[int, int]]) -> None:
    """At every minute, after any gaps, both windows hold exactly the rows of the minutes they span."""
    windows = Windows(SIZES, totals(0))
    counted: list[tuple[int, int]] = []
    minute, rows = 100, 0
    for gap, more in minutes:
        minute, rows = minute + gap, rows + more
        counted.append((minute, more))
        filled = windows.advance(minute, totals(rows, rows / 7))
        for size in SIZES:
            found = windows.sums()[size.label]
            inside = sum(n for at, n in counted if minute - size.minutes < at <= minute)
            assert found.rows == inside
            assert found.integers[1] + found.integers[2] == inside
            assert found.floats[0] == pytest.approx(inside / 7)
        assert filled == any(n for at, n in counted if minute - 10 < at)


def test_a_minute_is_looked_at_once() -> None:
    """Looking again in the same minute, or with a clock that went back, changes nothing; the rows are in the next minute."""
    windows = Windows(SIZES, totals(0))
    assert not windows.advance(5, totals(0))
    assert windows.advance(6, totals(40))
    assert windows.advance(6, totals(90))
    assert windows.advance(2, totals(95))
    assert windows.sums()["3m"].rows == 40
    windows.advance(7, totals(100))
    assert windows.sums()["3m"].rows == 100


def test_nothing_is_left_behind_after_the_last_minute() -> None:
    """Integers and floats of a window that everything has left are exactly 0, after a thousand uneven minutes."""
    windows = Windows(SIZES, totals(0))
    for minute in range(1, 1001):
        windows.advance(minute, totals(minute * 3, minute * 0.1))
    assert not windows.advance(2000, totals(3000, 100.0))
    for found in windows.sums().values():
        assert found.integers.tolist() == [0, 0, 0]
        assert found.floats.tolist() == [0.0]


@pytest.mark.parametrize("rows", [200, 60_000, 70_000, 2**32 + 5], ids=["a byte", "two bytes", "four bytes", "more"])
def test_large_minutes_are_kept_whole(rows: int) -> None:
    """Counts are kept in the smallest type that holds them, and lose nothing in it."""
    windows = Windows(SIZES, totals(0))
    windows.advance(1, totals(rows))
    assert windows.sums()["10m"].integers.tolist() == totals(rows).integers.tolist()
    windows.advance(50, totals(rows))
    assert windows.sums()["10m"].rows == 0


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("1h,24h", [60, 1440]), ("15m", [15]), (" 5m , 1h,1d,7d", [5, 60, 1440, 10080])],
)
def test_durations(text: str, minutes: list[int]) -> None:
    """Minutes, hours and days, and the labels are as written."""
    sizes = parse_windows(text)
    assert [size.minutes for size in sizes] == minutes
    assert [size.label for size in sizes] == [part.strip() for part in text.split(",")]


@pytest.mark.parametrize("text", ["", "1h,", "90s", "0h", "8d", "1h,60m", "1m,2m,3m,4m,5m", "1.5h", "-1h", "h"])
def test_durations_that_make_no_sense_are_refused(text: str) -> None:
    """The message shows how it is written."""
    with pytest.raises(ValueError, match=r"1h|different"):
        parse_windows(text)


def test_totals_tell_how_much_they_grew() -> None:
    """Growth and sum are each other's inverse."""
    grown = totals(10).minus(totals(4))
    assert (totals(4) + grown).integers.tolist() == totals(10).integers.tolist()
