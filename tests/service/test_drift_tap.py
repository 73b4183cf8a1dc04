"""Every row that is handed over is counted or counted as dropped, in bounded memory, and nobody's answer waits for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samegraph_service.batching import Entry, Work
from samegraph_service.device import Segment
from samegraph_service.drift.tap import CLOSE_BYTES, QueueLimits, Tap
from samegraph_service.errors import CallerGone, ExecutionFailed
from samegraph_transforms.errors import InputError


class Request(Work):
    """A request as the tap sees it."""

    def __init__(self, rows: Sequence[Any]) -> None:
        super().__init__(len(rows), 1e9, False, {}, lambda _: None)
        self.rows = rows


class Shadow(Request):
    """A request whose answer nobody gets."""

    counted = False


def entry(values: Sequence[float], kind: type[Request] = Request, size: int = 0) -> Entry:
    rows = [(v,) for v in values]
    return Entry(kind(rows), 0, rows, size)


def outcome(n: int, start: int = 0, *, feeds: bool = True) -> Segment:
    values = np.arange(start, start + n, dtype=np.float64)
    return Segment(start, start + n, [values], None, feeds={"x": values[:, None], "other": values} if feeds else None)


def tap_of(limits: QueueLimits | None = None, **options: Any) -> Tap:
    made: dict[str, Any] = {"fields": ["size", "kind"], "raw_rows": False, "row_bytes": 100, "wake": lambda: None, **options}
    return Tap(limits=limits or QueueLimits(), **made)


def values_in(tap: Tap) -> list[float]:
    """Empty the tap and return the first value of every row, having checked that answers stand beside their rows."""
    found: list[float] = []
    for share in tap.take(10**9):
        rows = [item[0] for part in share.items for item in part] if share.feeds is None else share.feeds[0][:, 0].tolist()
        assert rows == share.arrays[0].tolist()
        assert share.n == len(rows)
        found += rows
    return found


@pytest.mark.parametrize("feeds", [(), ("x",)], ids=["rows", "columns"])
class TestWhatIsTaken:
    def test_a_whole_execution_by_reference(self, feeds: Sequence[str]) -> None:
        """Nothing is copied: what waits are the very rows, columns and answers."""
        tap = tap_of(feeds=feeds)
        one, two, ran = entry([0, 1]), entry([2]), outcome(3)
        tap.executed([one, two], [ran])
        (share,) = tap.take(1)
        assert share.arrays is ran.arrays
        if feeds:
            assert ran.feeds is not None
            assert share.feeds is not None
            assert share.feeds[0] is ran.feeds["x"]
            assert len(share.feeds) == 1
        else:
            assert [part is e.items for part, e in zip(share.items, (one, two), strict=True)] == [True, True]
        assert tap.handed == 3

    def test_rows_that_failed_are_not(self, feeds: Sequence[str]) -> None:
        """When one row made the execution fail, its neighbours count and it does not."""
        tap = tap_of(feeds=feeds)
        failed = Segment(1, 2, None, ExecutionFailed(1))
        tap.executed([entry([0, 1]), entry([2, 3])], [outcome(1), failed, outcome(2, 2)])
        assert values_in(tap) == [0, 2, 3]
        assert tap.handed == 3

    def test_shadows_are_not(self, feeds: Sequence[str]) -> None:
        """A shadow's rows run beside real ones and count nowhere."""
        tap = tap_of(feeds=feeds)
        tap.executed([entry([0]), entry([1, 2], Shadow), entry([3])], [outcome(4)])
        tap.executed([entry([0], Shadow)], [outcome(1)])
        assert values_in(tap) == [0, 3]
        assert tap.handed == 2

    def test_rows_nobody_waits_for_are_not(self, feeds: Sequence[str]) -> None:
        """Rows whose caller left while they ran, or whose request failed on another row, were never answered."""
        tap = tap_of(feeds=feeds)
        gone = entry([1, 2])
        gone.work.fail(CallerGone("he hung up"))
        tap.executed([entry([0]), gone, entry([3])], [outcome(4)])
        assert values_in(tap) == [0, 3]
        assert tap.handed == 2

    def test_an_execution_that_failed_whole_is_not(self, feeds: Sequence[str]) -> None:
        """No answers, nothing to count."""
        tap = tap_of(feeds=feeds)
        tap.executed([entry([0])], [Segment(0, 1, None, ExecutionFailed(0))])
        assert tap.handed == 0
        assert tap.waiting() == (0, 0)


def test_raw_rows_come_along_where_an_item_stage_runs() -> None:
    """What ran are pixels; the file is in the request, as long as its caller waits."""
    tap = tap_of(raw_rows=True)
    batch = [Entry(Request([(b"file a",), (b"file b",)]), i, [(float(i),)], 10) for i in range(2)]
    gone = Entry(Request([(b"file c",)]), 0, [(2.0,)], 10)
    gone.work.fail(CallerGone("he hung up"))
    tap.executed(batch, [outcome(2)])
    tap.executed([*batch, gone], [outcome(3)])
    whole, part = tap.take(10)
    assert whole.rows == [(b"file a",), (b"file b",)]
    assert part.rows == whole.rows
    assert part.arrays[0].tolist() == [0, 1]
    assert whole.bytes == part.bytes == 2 * (10 + 2048 + 100 + len(b"file a"))


def test_it_never_raises() -> None:
    """Whatever goes wrong here, the caller gets his answer: it is counted and logged."""
    tap = tap_of(feeds=["gone"])
    tap.executed([entry([0, 1])], [outcome(2)])
    tap.executed([entry([0, 1])], [outcome(2, feeds=False)])
    assert tap.dropped["failed"] == tap.handed == 4
    assert tap.waiting() == (0, 0)


# --- bounds ---------------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.one_of(st.tuples(st.just("put"), st.integers(1, 40)), st.tuples(st.just("take"), st.integers(1, 100))), max_size=80),
    st.integers(1, 200),
    st.integers(1_000, 50_000),
)
def test_rows_are_waiting_counted_or_dropped(actions: list[tuple[str, int]], max_rows: int, max_bytes: int) -> None:
    """In any order of handing over and counting, no row is lost sight of, and the queue keeps to both of its bounds."""
    rng = np.random.default_rng(0)
    tap = tap_of(QueueLimits(max_rows, max_bytes), rng=rng.random)
    counted = 0
    for action, n in actions:
        if action == "put":
            tap.executed([entry([0.0] * n, size=n * 50)], [outcome(n)])
        else:
            counted += sum(share.n for share in tap.take(n))
            tap.set_keep()
        waiting, size = tap.waiting()
        assert counted + waiting + sum(tap.dropped.values()) == tap.handed
        # Each bound holds, but for one execution that came alone.
        assert waiting <= max(max_rows, 40)
        assert size <= max(max_bytes, 40 * (100 + 2048 + 50))


def test_one_execution_is_always_taken() -> None:
    """An execution larger than the whole queue is counted when it comes alone: there is no size that is never counted."""
    tap = tap_of(QueueLimits(max_rows=10, max_bytes=1000))
    tap.executed([entry([float(i) for i in range(50)])], [outcome(50)])
    tap.executed([entry([0.0])], [outcome(1)])
    assert tap.dropped["overflow"] == 1
    assert values_in(tap) == list(range(50))
    tap.executed([entry([0.0])], [outcome(1)])
    assert tap.waiting()[0] == 1


def test_the_chance_to_be_kept_follows_the_queue() -> None:
    """Everything is kept while the queue is calm, half of it a thirteenth part further, a thousandth when it is full; and back again."""
    tap = tap_of(QueueLimits(max_rows=4000), rng=lambda: 0.0)
    chances = []
    for _ in range(40):
        tap.executed([entry([0.0] * 100)], [outcome(100)])
        tap.set_keep()
        chances.append(tap.keep)
    assert chances[:10] == [1.0] * 10  # up to a quarter
    assert chances == sorted(chances, reverse=True)
    assert chances[12] == pytest.approx(0.5)
    assert chances[-1] == pytest.approx(2**-10)
    tap.take(3000)
    tap.set_keep()
    assert tap.keep == 1.0


def test_heavy_traffic_leaves_little_waiting_and_is_counted_at_full_pace() -> None:
    """Six times as many rows come as are counted, for long: about what a core keeps near waits, and the counting never runs dry."""
    tap = tap_of(QueueLimits(), rng=np.random.default_rng(5).random)
    waiting, counted = [], []
    for _ in range(300):
        for _ in range(60):
            tap.executed([entry([0.0] * 60)], [outcome(60)])
        counted.append(sum(share.n for share in tap.take(600)))
        tap.set_keep()
        waiting.append(tap.waiting()[1])
    assert max(waiting[50:]) < 4 * CLOSE_BYTES
    assert np.mean(counted[50:]) > 0.85 * 600
    assert tap.dropped["overflow"] == 0


def test_a_burst_is_counted_whole_and_what_follows_it_too() -> None:
    """Ten thousand rows at once wait for their turn; a few rows later on are all kept, although the burst still waits."""
    tap = tap_of(QueueLimits(max_bytes=1 << 30), rng=lambda: 0.999)
    for _ in range(200):
        tap.executed([entry([0.0] * 50)], [outcome(50)])
    tap.take(600)
    tap.set_keep()
    assert tap.keep < 0.1  # should it go on like this
    for _ in range(3):
        tap.take(600)
        tap.set_keep()
        tap.executed([entry([0.0] * 50)], [outcome(50)])
    assert sum(tap.dropped.values()) == 0
    assert tap.waiting()[0] > 5_000


def test_sampling_is_blind_to_what_it_samples() -> None:
    """Of executions that alternate between two kinds, both keep their half: every n-th would have kept one kind only."""
    tap = tap_of(QueueLimits(max_rows=10**6), rng=np.random.default_rng(3).random)
    tap.keep = 0.25
    for i in range(4000):
        ran = outcome(1)
        ran.arrays = [np.array([float(i % 2)])]
        tap.executed([entry([float(i % 2)])], [ran])
    kept = Counter(values_in(tap))
    n = sum(kept.values())
    assert abs(n - 1000) < 4 * np.sqrt(4000 * 0.25 * 0.75)
    assert abs(kept[0.0] - n / 2) < 4 * np.sqrt(n / 4)
    assert tap.dropped["sampled"] == 4000 - n


def test_the_thread_is_woken_once() -> None:
    """Waking costs a lock; whoever is awake already is left alone."""
    woken: list[int] = []
    tap = tap_of(wake=lambda: woken.append(1))
    for _ in range(5):
        tap.executed([entry([0.0])], [outcome(1)])
    assert len(woken) == 1
    tap.awake = False
    tap.executed([entry([0.0])], [outcome(1)])
    assert len(woken) == 2


# --- errors ---------------------------------------------------------------------------------------------------------------


def test_errors_are_counted_under_names_of_the_manifest() -> None:
    """Whatever a caller sent, the names that come out are the manifest's or one of two of our own."""
    tap = tap_of()
    tap.refused(
        [
            InputError("", code="wrong_type", field="size"),
            InputError("", code="wrong_type", field="size").at(3),
            InputError("", code="unknown_field", field="my secret"),
            InputError("", code="bad_body", field="instances"),
            InputError("", code="malformed_json"),
            ExecutionFailed(1),
        ]
    )
    assert tap.errors == {
        ("size", "wrong_type"): 2,
        ("_unknown", "unknown_field"): 1,
        ("_request", "bad_body"): 1,
        ("_request", "malformed_json"): 1,
    }
