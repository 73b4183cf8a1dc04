"""Queues and batch forming: which rows run together. Knows callbacks and a clock; no HTTP, no ONNX.

A *work* is one request's rows on one version. It is cut into *entries* (consecutive rows), which wait in the version's queue. A batch
is one or more entries; the last of them may be split, its rest stays in front. Entries of finished works (answered, expired,
cancelled) leave before a batch is formed and stop counting at once.

Where rows differ in shape there is a line for each shape, and a batch comes from the line whose first entry has waited longest.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from samegraph_transforms.errors import SamegraphError

from .turns import INTERACTIVE, NORMAL, Turns

Arrays = Sequence[np.ndarray]


class Outputs:
    """What one execution gave, shared by every work whose rows took part in it.

    Attributes:
        arrays: Per output, [rows of the batch, *shape].
        rows: All rows as an adapter's Python values, once one needed them.
    """

    __slots__ = ("arrays", "rows")

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays
        self.rows: list[Any] | None = None


class Part(msgspec.Struct, frozen=True, eq=False):
    """Consecutive rows of a work that one execution answered.

    Attributes:
        start: First row in its request.
        count: How many.
        outputs: What the execution gave.
        offset: Where in it these rows are.
    """

    start: int
    count: int
    outputs: Outputs
    offset: int

    def arrays(self) -> Arrays:
        """Return the rows' own share of every output."""
        arrays, low, high = self.outputs.arrays, self.offset, self.offset + self.count
        return arrays if low == 0 and all(len(a) == high for a in arrays) else [a[low:high] for a in arrays]


def joined(parts: Sequence[Part]) -> Arrays:
    """Return per output the rows of all parts, one after another.

    Raises:
        ValueError: Their shapes differ beyond the first dimension.
    """
    if len(parts) == 1:
        return parts[0].arrays()
    return [np.concatenate(pieces) for pieces in zip(*(part.arrays() for part in parts), strict=True)]


class Work:
    """One request's rows, collecting results until every row has an answer or an error.

    Args:
        n: Rows, in request order; those in `errors` are answered already.
        deadline: Loop time after which a waiting row is not worth running.
        partial: Whether one row's error leaves the others alone.
        errors: Rows that failed before they could wait.
        on_finish: Called exactly once with the work.

    Attributes:
        parts: What has been answered so far.
        errors: Row → error.
        failure: The error of the whole work, if it has one.
        waiting: Rows that are neither answered nor in an execution.
        counted: Whether its rows are traffic, for statistics of the inputs.
        rows: Its raw rows, where an item stage makes something else of them.
        caller: Whose it is; callers take turns where more waits than a batch takes.
        priority: Its class (see turns.py).
    """

    counted = True
    rows: Sequence[Any] = ()
    caller: object = None
    priority: int = NORMAL

    __slots__ = (
        "deadline",
        "entries",
        "errors",
        "failure",
        "finished",
        "n",
        "on_finish",
        "partial",
        "parts",
        "remaining",
        "waiting",
    )

    def __init__(
        self, n: int, deadline: float, partial: bool, errors: dict[int, SamegraphError], on_finish: Callable[[Work], None]
    ) -> None:
        self.n = n
        self.deadline = deadline
        self.partial = partial
        self.errors = errors
        self.on_finish = on_finish
        self.parts: list[Part] = []
        self.failure: SamegraphError | None = None
        self.finished = False
        self.remaining = n - len(errors)
        self.waiting = self.remaining
        self.entries: list[Entry] = []

    def answer(self, start: int, count: int, outputs: Outputs, offset: int = 0) -> None:
        """Record that rows `start` to `start + count` are those from `offset` on in what an execution gave."""
        if self.finished:
            return
        self.parts.append(Part(start, count, outputs, offset))
        self.remaining -= count
        if self.remaining == 0:
            self._finish()

    def fail_row(self, row: int, error: SamegraphError) -> None:
        """Record that one row failed; without `partial` that is the end of the work."""
        if self.finished:
            return
        self.errors[row] = error
        if self.partial:
            self._done(1)
        else:
            self.fail(error)

    def fail(self, error: SamegraphError) -> None:
        """End the work: its waiting rows leave their queue, its running rows are ignored when they come back."""
        if self.finished:
            return
        self.failure = error
        self._finish()

    def in_order(self) -> list[Part]:
        """Return what was answered, in request order."""
        if len(self.parts) > 1:
            self.parts.sort(key=lambda part: part.start)
        return self.parts

    def _done(self, count: int) -> None:
        self.remaining -= count
        if self.remaining == 0:
            self._finish()

    def _finish(self) -> None:
        self.finished = True
        if self.waiting:  # else none of them is in a queue
            for entry in self.entries:
                entry.leave()
        self.entries = []
        self.on_finish(self)


class Entry:
    """Consecutive rows of one work that wait together.

    Attributes:
        start: First row in its request.
        items: The rows after the item stage.
        bytes: What they weigh in the queue.
        queued_at: Loop time of joining the queue.
        key: What its rows share with those they may run with; only set where rows differ in shape.
        turn: Which entry of all lines it is; only set where rows differ in shape.
    """

    __slots__ = ("bytes", "items", "key", "queue", "queued_at", "start", "turn", "work")

    key: Hashable

    def __init__(self, work: Work, start: int, items: Sequence[Any], size_bytes: int = 0) -> None:
        self.work = work
        self.start = start
        self.items = items
        self.bytes = size_bytes
        self.queue: EntryQueue | None = None
        self.queued_at = 0.0
        self.turn = 0

    def leave(self) -> None:
        """Stop counting in the queue, if still in one, and let go of the rows: its place in the line may take long to come up."""
        if self.queue is not None:
            self.queue.discount(self)
            self.items = ()

    def part(self, first: int, last: int) -> Entry:
        """Return the rows from place `first` up to `last` as an entry of their own."""
        return Entry(self.work, self.start + first, self.items[first:last], self.bytes * (last - first) // len(self.items))

    def split(self, rows: int) -> Entry:
        """Return the first `rows` as an entry of their own and keep the rest."""
        head = self.part(0, rows)
        head.queued_at = self.queued_at
        head.turn = self.turn
        self.start += rows
        self.items = self.items[rows:]
        self.bytes -= head.bytes
        return head


class EntryQueue:
    """Waiting entries: put, pick, drop. First in, first out while all that waits fits into a batch; else callers take turns (turns.py).

    Attributes:
        rows: Rows waiting.
        bytes: Their weight.
        urgent: How many entries of the interactive class wait.
    """

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()
        self._turns: Turns[Entry] | None = None  # those that were there when more waited than a batch takes
        self.rows = 0
        self.bytes = 0
        self.urgent = 0

    def put(self, entry: Entry, now: float) -> None:
        """Add an entry at the end."""
        entry.queue = self
        entry.queued_at = now
        self._entries.append(entry)
        self.rows += len(entry.items)
        self.bytes += entry.bytes
        if entry.work.priority == INTERACTIVE:
            self.urgent += 1

    def discount(self, entry: Entry) -> None:
        """Take an entry out of the counts; its place in the line is dropped when it comes up."""
        entry.queue = None
        self.rows -= len(entry.items)
        self.bytes -= entry.bytes
        if entry.work.priority == INTERACTIVE:
            self.urgent -= 1

    def pick(self, max_rows: int) -> list[Entry]:
        """Take up to `max_rows`; an entry that does not fit is split if that fills a tenth of the batch or more.

        Below that a batch is as good as full, and pieces of one request cost more than they save.
        """
        if self.rows <= max_rows:
            return self.drop_all()
        turns = self._turns
        if turns is None:
            turns = self._turns = Turns(self._waits)
        for entry in self._entries:
            if entry.queue is self:
                turns.add(entry, entry.work.caller, entry.work.priority)
        self._entries.clear()
        picked = turns.take(max_rows, _rows_of, self._split)
        for entry in picked:
            if entry.queue is self:  # not a piece of one
                self.discount(entry)
        return picked

    def _waits(self, entry: Entry) -> bool:
        return entry.queue is self

    def _split(self, entry: Entry, rows: int) -> Entry:
        """Take the first rows of a waiting entry out of the line and the counts."""
        head = entry.split(rows)
        self.rows -= rows
        self.bytes -= head.bytes
        return head

    def first(self) -> Entry | None:
        """Return the entry that waits longest, or None when nothing waits."""
        if self._turns is not None:  # all of them came before the others
            front = min(self._turns.fronts(), key=_age, default=None)
            if front is not None:
                return front
        while self._entries and self._entries[0].queue is not self:
            self._entries.popleft()
        return self._entries[0] if self._entries else None

    def oldest(self) -> float | None:
        """Return when the entry that waits longest joined, or None when nothing waits."""
        first = self.first()
        return None if first is None else first.queued_at

    def drop_all(self) -> list[Entry]:
        """Empty the queue and return the living entries, in order."""
        alive = [e for e in self._entries if e.queue is self]
        if self._turns is not None:
            alive = [*sorted(self._turns.drop_all(), key=_age), *alive]
            self._turns = None
        self._entries.clear()
        for entry in alive:
            entry.queue = None
        self.rows = self.bytes = self.urgent = 0
        return alive


def _rows_of(entry: Entry) -> int:
    return len(entry.items)


def _age(entry: Entry) -> tuple[float, int]:
    return entry.queued_at, entry.turn


class ShapedQueue:
    """A line for every shape: put, pick from the line whose first entry has waited longest, drop.

    Attributes:
        rows: Rows waiting in all lines.
        bytes: Their weight.
        lines: Shape key → its line; lines that are empty may linger until they come up.
    """

    def __init__(self) -> None:
        self.lines: dict[Hashable, _Line] = {}
        self.rows = 0
        self.bytes = 0
        self.urgent = 0
        # (turn of the first entry of a line, or of one before it that is gone; key), one for each line
        self._order: list[tuple[int, Hashable]] = []
        self._turns = itertools.count()
        self._picks = 0

    def put(self, entry: Entry, now: float) -> None:
        """Add an entry, whose `key` is set, at the end of its line."""
        entry.turn = next(self._turns)
        line = self.lines.get(entry.key)
        if line is None:
            line = self.lines[entry.key] = _Line(self)
            heapq.heappush(self._order, (entry.turn, entry.key))
        line.put(entry, now)

    def front(self) -> tuple[Hashable, EntryQueue] | None:
        """Return the line that is next and its key, or None when nothing waits.

        It is that whose first entry has waited longest; where interactive rows wait, seven times of eight among their lines.
        """
        if self.urgent and self._picks % 8 != 7:
            return min(((key, line) for key, line in self.lines.items() if line.urgent), key=_turn_of)
        order = self._order
        while order:
            turn, key = order[0]
            line = self.lines[key]
            first = line.first()
            if first is None:
                heapq.heappop(order)
                del self.lines[key]
            elif first.turn > turn:
                heapq.heapreplace(order, (first.turn, key))
            else:
                return key, line
        return None

    def pick(self, max_rows: int) -> list[Entry]:
        """Take up to `max_rows` from the line that is next (see `EntryQueue.pick`)."""
        front = self.front()
        self._picks += 1
        return [] if front is None else front[1].pick(max_rows)

    def oldest(self) -> float | None:
        """Return when the entry that waits longest joined, or None when nothing waits."""
        front = self.front()
        return None if front is None else front[1].oldest()

    def drop_all(self) -> list[Entry]:
        """Empty the queue and return the living entries."""
        alive = [entry for line in self.lines.values() for entry in line.drop_all()]
        self.lines.clear()
        self._order.clear()
        return alive


def _turn_of(line: tuple[Hashable, EntryQueue]) -> int:
    first = line[1].first()
    assert first is not None
    return first.turn


class _Line(EntryQueue):
    """One line of a `ShapedQueue`, which also counts what waits in it."""

    def __init__(self, whole: ShapedQueue) -> None:
        super().__init__()
        self._whole = whole

    def put(self, entry: Entry, now: float) -> None:
        super().put(entry, now)
        self._whole.rows += len(entry.items)
        self._whole.bytes += entry.bytes
        if entry.work.priority == INTERACTIVE:
            self._whole.urgent += 1

    def drop_all(self) -> list[Entry]:
        self._whole.rows -= self.rows
        self._whole.bytes -= self.bytes
        self._whole.urgent -= self.urgent
        return super().drop_all()

    def discount(self, entry: Entry) -> None:
        super().discount(entry)
        self._whole.rows -= len(entry.items)
        self._whole.bytes -= entry.bytes
        if entry.work.priority == INTERACTIVE:
            self._whole.urgent -= 1

    def _split(self, entry: Entry, rows: int) -> Entry:
        head = super()._split(entry, rows)
        head.key = entry.key
        self._whole.rows -= rows
        self._whole.bytes -= head.bytes
        return head


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """How batches of one version are formed.

    Attributes:
        max_batch_size: Most rows in one execution.
        max_queue_delay_s: Opt-in wait for more rows; 0 starts at once.
    """

    max_batch_size: int
    max_queue_delay_s: float = 0.0

    def target(self, waiting_rows: int, idle_slots: int, efficient_size: int) -> int:
        """Return how many rows the next execution should take.

        All that wait, split evenly over the idle run slots (one execution of everything would leave the others idle), but no
        more than pays: beyond `efficient_size` a larger batch makes its rows wait for each other and saves nothing.
        """
        return min(self.max_batch_size, max(1, efficient_size), -(-waiting_rows // max(1, idle_slots)))


def cut(rows: Sequence[tuple[int, Any]], size: int) -> list[tuple[int, list[Any]]]:
    """Cut (row, item) pairs into runs of consecutive rows of at most `size`: (first row, items) each."""
    runs: list[tuple[int, list[Any]]] = []
    for row, item in rows:
        if runs and runs[-1][0] + len(runs[-1][1]) == row and len(runs[-1][1]) < size:
            runs[-1][1].append(item)
        else:
            runs.append((row, [item]))
    return runs
