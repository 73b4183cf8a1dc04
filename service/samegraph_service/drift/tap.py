"""Where rows leave the path of a prediction to be counted: one call per execution, which keeps references and copies nothing.

The queue behind a tap is bounded in rows and bytes. As it fills up, executions are kept at random with a chance that halves with every
13th part of the queue: each row has the same chance whatever it holds, so shares stay what they are. What is not kept is
counted as dropped.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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
#: What a row takes in memory besides what its request's body did: Python's objects.
ROW_OVERHEAD_BYTES = 512

#: Stands for a field that is none of the model's, and for a request that is wrong as a whole.
UNKNOWN_FIELD = "_unknown"
WHOLE_REQUEST = "_request"


class Share(NamedTuple):
    """What one execution handed over.

    Attributes:
        feeds: What the rows entered the graph as, when that tells all about them: then there are no items.
        items: What ran, in pieces, in the order of the arrays.
        rows: The raw rows, when items are something else.
        arrays: Per output [n, *shape].
        n: Rows.
        bytes: What it takes in memory, about.
    """

    feeds: Mapping[str, np.ndarray] | None
    items: Sequence[Sequence[Any]]
    rows: Sequence[Row] | None
    arrays: Sequence[np.ndarray]
    n: int
    bytes: int


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Bounds of what waits to be counted."""

    max_rows: int = 20_000
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
        queue: What waits.
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
        feeds: Collection[str] = (),
        row_bytes: int,
        limits: QueueLimits,
        wake: Callable[[], None],
        rng: Callable[[], float] = random.random,
    ) -> None:
        self.queue: deque[Share] = deque()
        self.keep = 1.0
        self.handed = 0
        self.dropped: dict[DropReason, int] = dict.fromkeys(DROP_REASONS, 0)
        self.errors: dict[tuple[str, str], int] = {}
        self.awake = False
        self.limits = limits
        self._fields = frozenset(fields)
        self._raw_rows = raw_rows
        self._feeds = tuple(feeds)
        self._row_bytes = row_bytes + ROW_OVERHEAD_BYTES
        self._wake = wake
        self._rng = rng
        # One writer each, so that no lock is needed: their difference is what waits.
        self._put_rows = self._put_bytes = 0
        self._taken_rows = self._taken_bytes = 0

    # --- the event loop's side ----------------------------------------------------------------------------------------

    def executed(self, batch: Sequence[Entry], segments: Sequence[Segment]) -> None:
        """Take the rows of one execution and their answers (see `device.LaneTap`); before the works are told of them."""
        try:
            self._executed(batch, segments)
        except Exception:  # nobody's answer waits for drift, and none is lost to it
            self.dropped["failed"] += segments[-1].stop
            log.exception("drift_tap_failed")

    def _executed(self, batch: Sequence[Entry], segments: Sequence[Segment]) -> None:
        arrays = segments[0].arrays
        if arrays is None or len(segments) > 1:
            self._executed_in_part(batch, segments)
            return
        raw = self._raw_rows
        for entry in batch:
            if not entry.work.counted or (raw and not entry.work.rows):
                self._executed_in_part(batch, segments)
                return
        feeds = self._columns(segments[0])
        size = 0 if feeds is not None else sum([entry.bytes for entry in batch])
        items = () if feeds is not None else [entry.items for entry in batch]
        self._put(feeds, items, [entry.work.rows[entry.start] for entry in batch] if raw else None, arrays, segments[0].stop, size)

    def _columns(self, segment: Segment) -> Mapping[str, np.ndarray] | None:
        """Return the feeds that tell all about the rows; None when there are no such, or a device's buffers stand in for them."""
        feeds = segment.feeds
        if feeds is None or not self._feeds:
            return None
        mine = {name: feeds[name] for name in self._feeds}
        return mine if all(isinstance(feed, np.ndarray) for feed in mine.values()) else None

    def _executed_in_part(self, batch: Sequence[Entry], segments: Sequence[Segment]) -> None:
        """Take what counts: rows that were answered, of callers that still wait, and not of shadows."""
        flat = [(entry, place) for entry in batch for place in range(len(entry.items))]
        for segment in segments:
            if segment.arrays is None:
                continue
            chosen = [
                i for i in range(segment.start, segment.stop) if flat[i][0].work.counted and (not self._raw_rows or flat[i][0].work.rows)
            ]
            if chosen:
                picked = [flat[i] for i in chosen]
                rows = [entry.work.rows[entry.start + place] for entry, place in picked] if self._raw_rows else None
                size = sum(entry.bytes // len(entry.items) for entry, _ in picked)
                places = np.array(chosen) - segment.start
                columns = self._columns(segment)
                feeds = None if columns is None else {name: feed[places] for name, feed in columns.items()}
                items = [] if columns is not None else [[entry.items[place] for entry, place in picked]]
                self._put(feeds, items, rows, [a[places] for a in segment.arrays], len(chosen), size)

    def _put(
        self,
        feeds: Mapping[str, np.ndarray] | None,
        items: Sequence[Sequence[Any]],
        rows: Sequence[Row] | None,
        arrays: Sequence[np.ndarray],
        n: int,
        size: int,
    ) -> None:
        self.handed += n
        if self.keep < 1.0 and self._rng() >= self.keep:
            self.dropped["sampled"] += n
            return
        size += n * self._row_bytes
        if rows is not None:
            size += sum(len(value) for row in rows for value in row if isinstance(value, bytes))
        waiting_rows, waiting_bytes = self._put_rows - self._taken_rows, self._put_bytes - self._taken_bytes
        # What is alone is always taken: an execution is bounded by itself, and a queue it could never enter would count none of its kind.
        if waiting_rows and (waiting_rows + n > self.limits.max_rows or waiting_bytes + size > self.limits.max_bytes):
            self.dropped["overflow"] += n
            return
        self.queue.append(Share(feeds, items, rows, arrays, n, size))
        self._put_rows += n
        self._put_bytes += size
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

    # --- the counting thread's side -----------------------------------------------------------------------------------

    def take(self, most: int) -> list[Share]:
        """Take shares from the queue until they hold `most` rows or more; at least one, when there is one."""
        taken: list[Share] = []
        rows = 0
        while self.queue and rows < most:
            share = self.queue.popleft()
            taken.append(share)
            rows += share.n
            self._taken_bytes += share.bytes
        self._taken_rows += rows
        return taken

    def set_keep(self) -> None:
        """Fit the chance of being kept to how full the queue is."""
        rows, size = self._put_rows - self._taken_rows, self._put_bytes - self._taken_bytes
        full = max(rows / self.limits.max_rows, size / self.limits.max_bytes)
        self.keep = 1.0 if full <= CALM else 2.0 ** (-HALVINGS * min(1.0, (full - CALM) / (1 - CALM)))
