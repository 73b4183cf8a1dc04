"""When places come free, played through by hand."""

from __future__ import annotations

import pytest
from samegraph_service.releases import MOST_PLAYED, Releases


def batch_s(rows: int) -> float:
    """A second, and a quarter for every row."""
    return 1 + rows / 4


def test_a_long_queue_turns_over_in_full_batches() -> None:
    """What runs frees its rows when it ends, and from then on four come every two seconds."""
    releases = Releases([(10.5, 2)], 0, 100, 4, batch_s, 0.5, now=10.0)
    assert [releases.at(place) for place in (0, 1, 2, 5, 6)] == [10.5, 10.5, 12.5, 12.5, 14.5]


def test_room_for_one_batch_alternates_with_what_comes_back() -> None:
    """One runs, three wait; those who were freed come back while the others run, so that two part batches take turns."""
    releases = Releases([(1.25, 1)], 0, 3, 4, batch_s, 0.5, now=0.0)
    assert [releases.at(place) for place in (0, 1, 3, 4, 5, 7)] == [1.25, 3.0, 3.0, 4.25, 6.0, 6.0]


def test_a_slot_without_work_waits_for_the_first_who_comes_back() -> None:
    """He starts alone, the others after him."""
    releases = Releases([(1.0, 3)], 0, 0, 4, batch_s, 0.5, now=0.0)
    assert [releases.at(place) for place in (2, 3, 4, 5)] == [1.0, 2.75, 4.25, 4.25]


def test_slots_share_what_waits() -> None:
    """Two that are free take half of it each."""
    releases = Releases([], 2, 6, 4, batch_s, 0.5, now=0.0)
    assert [releases.at(place) for place in (0, 5)] == [1.75, 1.75]


def test_late_executions_are_over_now() -> None:
    """An end in the past is as good as now."""
    assert Releases([(3.0, 2)], 0, 4, 4, batch_s, 0.5, now=5.0).at(0) == 5.0


def test_the_far_future_keeps_the_pace() -> None:
    """Beyond what is played through, places come free at the rate of the end of it."""
    releases = Releases([(0.0, 4)], 0, 40, 4, batch_s, 0.5, now=0.0)
    far = 40 * MOST_PLAYED
    assert releases.at(far) == pytest.approx(2.0 * far / 4, rel=0.01)
    assert releases.at(far) < releases.at(far + 4)


def test_nothing_accepted_frees_nothing() -> None:
    """Without work the answer is now."""
    assert Releases([], 1, 0, 4, batch_s, 0.5, now=7.0).at(3) == 7.0
