"""Whose turn it is: callers one after another, classes in order, nobody starved, and order kept within a caller."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samegraph_service.batching import Entry, EntryQueue, ShapedQueue, Work
from samegraph_service.turns import BACKGROUND, INTERACTIVE, NORMAL, Turns


class Thing(NamedTuple):
    caller: str
    number: int
    rows: int = 1


def turns_of(*things: tuple[Thing, int]) -> Turns[Thing]:
    turns: Turns[Thing] = Turns(lambda _: True)
    for thing, priority in things:
        turns.add(thing, thing.caller, priority)
    return turns


def rows(thing: Thing) -> int:
    return thing.rows


def test_callers_take_turns_and_keep_their_own_order() -> None:
    """Of a hundred and of three, the three are out after six."""
    turns = turns_of(*((Thing("a", i), NORMAL) for i in range(100)), *((Thing("b", i), NORMAL) for i in range(3)))
    first = turns.take(6, rows)
    assert Counter(thing.caller for thing in first) == {"a": 3, "b": 3}
    assert [thing.number for thing in first if thing.caller == "b"] == [0, 1, 2]


def test_turns_are_counted_in_rows() -> None:
    """A caller of large requests gets no more than one of small ones."""
    turns = turns_of(*((Thing("large", i, 8), NORMAL) for i in range(20)), *((Thing("small", i), NORMAL) for i in range(100)))
    taken = [thing for _ in range(8) for thing in turns.take(16, rows)]
    counted = Counter[str]()
    for thing in taken:
        counted[thing.caller] += thing.rows
    assert abs(counted["large"] - counted["small"]) <= 8


def test_who_comes_new_starts_level() -> None:
    """A caller who was served long is not held up for it, nor is one who was away owed anything."""
    turns = turns_of(*((Thing("a", i), NORMAL) for i in range(100)))
    turns.take(50, rows)
    for i in range(50):
        turns.add(Thing("b", i), "b", NORMAL)
    assert Counter(thing.caller for thing in turns.take(20, rows)) == {"a": 10, "b": 10}


def test_classes_go_in_order_and_an_eighth_goes_below() -> None:
    """Over many batches the class below has its share, and no more."""
    turns = turns_of(*((Thing("i", i), INTERACTIVE) for i in range(1000)), *((Thing("b", i), BACKGROUND) for i in range(1000)))
    taken = Counter(thing.caller for _ in range(20) for thing in turns.take(16, rows))
    assert taken == {"i": 280, "b": 40}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3), st.integers(1, 20)), max_size=60), st.integers(1, 32))
def test_everything_put_in_comes_out_once_and_in_its_callers_order(put: list[tuple[str, int, int]], room: int) -> None:
    """Whatever the sizes and classes: no row is lost or doubled, and entries that are too large are split."""
    queue = EntryQueue()
    for number, (caller, priority, count) in enumerate(put):
        work = Work(count, 1e9, False, {}, lambda _: None)
        entry = Entry(_of(work, caller, priority), 0, [(number, row) for row in range(count)], count)
        queue.put(entry, float(number))
    out: list[tuple[int, int]] = []
    while queue.rows:
        picked = queue.pick(room)
        assert picked
        assert sum(len(entry.items) for entry in picked) <= room
        out.extend(item for entry in picked for item in entry.items)
    assert sorted(out) == [(number, row) for number, (_, _, count) in enumerate(put) for row in range(count)]
    assert (queue.bytes, queue.urgent) == (0, 0)
    for number in range(len(put)):
        assert [row for n, row in out if n == number] == sorted(row for n, row in out if n == number)


class _Owned(Work):
    """A work with a caller and a class, as a call has."""

    caller: object
    priority: int


def _of(work: Work, caller: str, priority: int) -> Work:
    owned = _Owned(work.n, work.deadline, work.partial, work.errors, work.on_finish)
    owned.caller, owned.priority = caller, priority
    return owned


@pytest.mark.parametrize("before", [False, True], ids=["in line", "taking turns"])
def test_who_left_is_never_picked(before: bool) -> None:
    """Entries of callers who are gone stop counting at once, wherever they stand."""
    queue = EntryQueue()
    entries = [Entry(_of(Work(1, 1e9, False, {}, lambda _: None), f"c{i % 3}", NORMAL), 0, [i]) for i in range(30)]
    for entry in entries:
        queue.put(entry, 0.0)
    gone = 0
    if before:
        gone = len(queue.pick(4))
    left = [entry for entry in entries if entry.queue is queue]
    for entry in left[::2]:
        entry.leave()
    stay = [entry.items[0] for entry in left[1::2]]
    assert queue.rows == len(stay) == (30 - gone) // 2
    picked = [item for _ in range(10) for entry in queue.pick(4) for item in entry.items]
    assert sorted(picked) == sorted(stay)


def test_interactive_rows_of_a_rare_shape_do_not_wait_for_the_common_ones_nor_starve_them() -> None:
    """Lines of shapes go by age, but for those with interactive rows; every eighth batch goes by age whatever waits."""
    queue = ShapedQueue()
    for number in range(200):
        shape = "rare" if number >= 100 else "common"
        entry = Entry(_of(Work(1, 1e9, False, {}, lambda _: None), "a", INTERACTIVE if shape == "rare" else NORMAL), 0, [shape])
        entry.key = shape
        queue.put(entry, float(number))
    picked = [queue.pick(4)[0].items[0] for _ in range(16)]
    assert picked == (["rare"] * 7 + ["common"]) * 2
    while queue.rows:
        assert queue.pick(4)
    assert queue.urgent == 0
