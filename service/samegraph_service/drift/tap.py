"""Where rows leave the path of a prediction to be counted: one call per execution, which keeps references and copies nothing.

The queue behind a tap is bounded in rows and bytes. As it fills up, executions are kept at random with a chance that halves with every
13th part of the queue: each row has the same chance whatever it holds, so shares stay what they are. What is not kept is
counted as dropped.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from samegraph_transforms.errors import InputError, SamegraphError
from samegraph_transforms.signature import Row

from samegraph_service.logs import get_logger

if TYPE_CHECKING:
    from samegraph_service.batching import Entry
    from samegraph_service.device import Segment

log = get_logger("samegraph.drift")

DropReason = Literal["sampled", "overflow", "failed"]
DROP_REASONS: tuple[DropReason, ...] = ("sampled", "overflow", "failed")
#: Up to this part of the queue everything is kept.
CALM = 0.25
#: How often the chance is halved between there and a full queue.
HALVINGS = 10
#: What waits should not take more than this when counting stays behind for long, in bytes: about what a core keeps near. With more, every
#: request pays for memory that was not in use a moment ago.
CLOSE_BYTES = 1 << 20
#: What a row takes in memory: as columns; and as Python's objects, besides what its request's body did. The second is more than it is, so
#: that fewer of them wait: what waits as objects slows the loop down.
COLUMNS_BYTES = 512
OBJECTS_BYTES = 2048

#: Stands for a field that is none of the model's, and for a request that is wrong as a whole.
UNKNOWN_FIELD = "_unknown"
WHOLE_REQUEST = "_request"


class Share(NamedTuple):
    """What one execution handed over.

    Attributes:
        feeds: The graph's inputs that tell all about the rows, in the order the tap was given: then there are no items.
        items: What ran, in pieces, in the order of the arrays.
        rows: The raw rows, when items are something else.
        arrays: Per output [n, *shape].
        n: Rows.
        bytes: What it takes in memory, about.
    """

    feeds: tuple[np.ndarray, ...] | None
    items: Sequence[Sequence[Any]]
    rows: Sequence[Row] | None
    arrays: Sequence[np.ndarray]
    n: int
    bytes: int


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Bounds of what waits to be counted."""

    max_rows: int = 50_000
    max_bytes: int = 64 << 20


class Tap:
    """One version's way to its counts. Written by the event loop's thread, emptied by the counting thread.

    Args:
        fields: The version's raw fields: the only names that errors are counted under.
        raw_rows: Whether what runs is not the raw row but what the item stage made of it.
        feeds: The feeds that tell all about a row; empty when none do. Holding on to rows costs the loop 1 µs each, as it then works on
            memory that was not in use a moment ago, and counting them three times what counting columns does.
        row_bytes: What the answer to a row takes in memory, about.
        limits: Bounds of its queue.
        wake: Called when rows wait and nobody seems to know.
        rng: Returns numbers from 0 to 1.

    Attributes:
        keep: Chance of an execution to be kept.
        handed: Rows handed over so far.
        dropped: Rows of them that were not counted, by reason.
        errors: (field, error code) → failed requests and instances.
        awake: Whether the counting thread knows that rows wait.
    """

    def __init__(
        self,
        *,
        fields: Sequence[str],
        raw_rows: bool,
        feeds: Sequence[str] = (),
        row_bytes: int,
        limits: QueueLimits,
        wake: Callable[[], None],
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._waiting: deque[tuple[Any, ...]] = deque()
        self.keep = 1.0
        self.handed = 0
        self.dropped: dict[DropReason, int] = dict.fromkeys(DROP_REASONS, 0)
        self.errors: dict[tuple[str, str], int] = {}
        self.awake = False
        self._max_rows, self._max_bytes = limits.max_rows, limits.max_bytes
        self._fields = frozenset(fields)
        self._raw_rows = raw_rows
        self._feeds = tuple(feeds)
        self._row_bytes = row_bytes + (COLUMNS_BYTES if feeds else OBJECTS_BYTES)
        self._wake = wake
        self._rng = rng
        self._failing = False
        self._handed_then = self._taken_then = 0  # when the chance was fitted last
        self._pace = 1.0
        # One writer each, so that no lock is needed: their difference is what waits.
        self._put_rows = self._put_bytes = 0
        self._taken_rows = self._taken_bytes = 0

    # --- the event loop's side ----------------------------------------------------------------------------------------

    def executed(self, batch: Sequence[Entry], segments: Sequence[Segment]) -> None:
        """Take the rows of one execution and their answers (see `device.LaneTap`); before the works are told of them."""
        try:
            segment = segments[0]
            whole = len(segments) == 1 and segment.arrays is not None
            for entry in batch:
                if entry.work.finished or not entry.work.counted:
                    whole = False
                    break
            if not whole:
                self._executed_in_part(batch, segments)
            elif self._feeds:
                self._put(self._columns(segment), (), None, segment.arrays, segment.stop, 0)
            else:
                rows = [entry.work.rows[entry.start] for entry in batch] if self._raw_rows else None
                size = sum([entry.bytes for entry in batch])
                self._put(None, [entry.items for entry in batch], rows, segment.arrays, segment.stop, size)
        except Exception:  # nobody's answer waits for drift, and none is lost to it
            self.handed += segments[-1].stop
            self.dropped["failed"] += segments[-1].stop
            if not self._failing:
                self._failing = True
                log.exception("drift_tap_failed")

    def _columns(self, segment: Segment) -> tuple[np.ndarray, ...]:
        feeds = segment.feeds
        assert feeds is not None
        return tuple([feeds[name] for name in self._feeds])

    def _executed_in_part(self, batch: Sequence[Entry], segments: Sequence[Segment]) -> None:
        """Take what counts: rows that were answered, of callers that still wait, and not of shadows."""
        flat = [(entry, place) for entry in batch for place in range(len(entry.items))]
        counts = [entry.work.counted and not entry.work.finished for entry, _ in flat]
        for segment in segments:
            chosen = [i for i in range(segment.start, segment.stop) if counts[i]]
            if segment.arrays is None or not chosen:
                continue
            picked = [flat[i] for i in chosen]
            places = np.array(chosen) - segment.start
            arrays = [array[places] for array in segment.arrays]
            if self._feeds:
                self._put(tuple([feed[places] for feed in self._columns(segment)]), (), None, arrays, len(chosen), 0)
            else:
                rows = [entry.work.rows[entry.start + place] for entry, place in picked] if self._raw_rows else None
                size = sum(entry.bytes // len(entry.items) for entry, _ in picked)
                self._put(None, [[entry.items[place] for entry, place in picked]], rows, arrays, len(chosen), size)

    def _put(
        self,
        feeds: tuple[np.ndarray, ...] | None,
        items: Sequence[Sequence[Any]],
        rows: Sequence[Row] | None,
        arrays: Sequence[np.ndarray] | None,
        n: int,
        size: int,
    ) -> None:
        size += n * self._row_bytes
        if rows is not None:
            size += sum(len(value) for row in rows for value in row if isinstance(value, bytes))
        self.handed += n
        if self.keep < 1.0 and self._rng() >= self.keep:
            self.dropped["sampled"] += n
            return
        waiting = self._put_rows - self._taken_rows
        # What is alone is always taken: an execution is bounded by itself, and a queue it could never enter would count none of its kind.
        if waiting and (waiting + n > self._max_rows or self._put_bytes - self._taken_bytes + size > self._max_bytes):
            self.dropped["overflow"] += n
            return
        self._put_rows += n
        self._put_bytes += size
        self._waiting.append((feeds, items, rows, arrays, n, size))  # a plain tuple is made in an eighth of a named one's time
        if not self.awake:
            self.awake = True
            self._wake()

    def refused(self, errors: Iterable[SamegraphError]) -> None:
        """Count requests and instances that broke the signature, by the field at fault."""
        for error in errors:
            if isinstance(error, InputError):
                named = error.field
                field = named if named in self._fields else UNKNOWN_FIELD if error.code == "unknown_field" else WHOLE_REQUEST
                key = (field, error.code)
                self.errors[key] = self.errors.get(key, 0) + 1

    def waiting(self) -> tuple[int, int]:
        """Return how many rows wait, and what they take in memory, about."""
        return self._put_rows - self._taken_rows, self._put_bytes - self._taken_bytes

    # --- the counting thread's side -----------------------------------------------------------------------------------

    def take(self, most: int) -> list[Share]:
        """Take shares from the queue until they hold `most` rows or more; at least one, when there is one."""
        taken: list[Share] = []
        rows = 0
        while self._waiting and rows < most:
            share = Share._make(self._waiting.popleft())
            taken.append(share)
            rows += share.n
            self._taken_bytes += share.bytes
        self._taken_rows += rows
        return taken

    def set_keep(self) -> None:
        """Fit the chance of being kept, after some were counted: to how full the queue is, and to how many come for one that is counted.

        A burst finds room in the queue and is counted after it. When more come than are counted again and again, only as many are kept as
        leave little waiting.
        """
        rows, size = self.waiting()
        full = max(rows / self._max_rows, size / self._max_bytes)
        room = 1.0 if full <= CALM else 2.0 ** (-HALVINGS * min(1.0, (full - CALM) / (1 - CALM)))
        came, counted = self.handed - self._handed_then, self._taken_rows - self._taken_then
        self._handed_then, self._taken_then = self.handed, self._taken_rows
        if counted:
            self._pace = min(1.0, counted / came * (CLOSE_BYTES / size if size > CLOSE_BYTES else 2.0)) if came > counted else 1.0
        self.keep = min(room, max(self._pace, 2.0**-HALVINGS))
