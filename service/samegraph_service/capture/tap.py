"""Where sampled requests leave the path: chosen by their id before they are decoded, handed over with their answer.

Whether a request is captured follows from its id alone, so that replicas agree without talking, and a request that is sent again under its
id is captured again or not again. A request that is not sampled costs a hash of its id; without capture there is no tap.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple
from zlib import crc32

from samegraph_transforms.errors import InputError
from samegraph_transforms.manifest import Manifest
from samegraph_transforms.signature import Row, Signature
from samegraph_transforms.wire import Decoded

if TYPE_CHECKING:
    from samegraph_service.batching import Part
    from samegraph_service.call import Answer, Call

DropReason = Literal["overflow", "failed", "unwritable", "refused"]
DROP_REASONS: tuple[DropReason, ...] = ("overflow", "failed", "unwritable", "refused")
#: What a row takes in memory as Python's objects, besides what its request's body did; rather too much than too little.
OBJECTS_BYTES = 2048
_ALL = 1 << 32


class Captured(NamedTuple):
    """One request on its way to a file.

    Attributes:
        manifest: Of the version that answered.
        digest: Of its package.
        rows: What was decoded: rows, and errors in the places of those that have no answer.
        parts: The answers, in request order.
        answered: Places in the request that have an answer; None when all do.
        time_s: When it was answered, in seconds since the epoch.
        request_id: From the call.
        prediction_id: What the answer called itself.
        protocol: How it came.
        experiment: `NAME@REVISION` of the experiment that decided about it, or None.
        arm: The arm it was assigned to, or None.
        n: Answered rows.
        bytes: What it takes in memory, about.
    """

    manifest: Manifest
    digest: str
    rows: Sequence[Row | InputError]
    parts: Sequence[Part]
    answered: Sequence[int] | None
    time_s: float
    request_id: str
    prediction_id: str
    protocol: str
    experiment: str | None
    arm: str | None
    n: int
    bytes: int


class Kept:
    """A request's decoder that holds on to the rows it gave: the mark of a sampled request."""

    __slots__ = ("decode", "rows")

    def __init__(self, decode: Callable[[Call, Signature], Decoded]) -> None:
        self.decode = decode
        self.rows: Sequence[Row | InputError] = ()

    def __call__(self, call: Call, signature: Signature) -> Decoded:
        """Decode as ever."""
        decoded = self.decode(call, signature)
        self.rows = decoded.rows
        return decoded


class CaptureTap:
    """The way from the requests to the writing thread. Written by the event loop's thread, emptied by the writing thread.

    Args:
        sample_ratio: Share of the requests.
        model_ratios: Model → its own share.
        max_rows: Most rows that are not yet in a file.
        max_bytes: The same in bytes, about.
        wake: Called when rows wait and nobody seems to know.
        clock: Seconds since the epoch.

    Attributes:
        sampled: (model, version) → rows handed over.
        overflowed: Rows that found the queue full.
        overflowed_at: When that last was.
        awake: Whether the writing thread knows that rows wait.
    """

    def __init__(
        self,
        *,
        sample_ratio: float,
        model_ratios: Mapping[str, float],
        max_rows: int,
        max_bytes: int,
        wake: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._below = int(sample_ratio * _ALL)
        self._below_of = {model: int(ratio * _ALL) for model, ratio in model_ratios.items()}
        self._max_rows, self._max_bytes = max_rows, max_bytes
        self._wake = wake
        self._clock = clock
        self._waiting: deque[Captured] = deque()
        self.sampled: dict[tuple[str, int], int] = {}
        self.overflowed = 0
        self.overflowed_at: float | None = None
        self.awake = False
        # One writer each, so that no lock is needed: their difference is what is not yet in a file.
        self._put_rows = self._put_bytes = 0
        self._done_rows = self._done_bytes = 0

    # --- the event loop's side ----------------------------------------------------------------------------------------

    def sample(self, call: Call) -> None:
        """Mark a call that is to be captured; before it is decoded."""
        below = self._below_of.get(call.served.model, self._below) if self._below_of else self._below
        if below and place_of(call.request_id) < below:
            call.decode = Kept(call.decode)

    def take(self, call: Call, answer: Answer, protocol: str) -> None:
        """Hand over an answered call that was marked; never waits, and never holds up the answer."""
        kept = call.decode
        if not isinstance(kept, Kept) or not call.counted or len(kept.rows) != answer.n:
            return  # the last: an answer to another request was given to this one, which was never decoded
        n = answer.n - len(answer.errors)
        key = (answer.origin.model, answer.origin.version)
        self.sampled[key] = self.sampled.get(key, 0) + n
        size = n * OBJECTS_BYTES + call.body_bytes + sum([a.nbytes for part in answer.parts for a in part.outputs.arrays])
        waiting = self._put_rows - self._done_rows
        # What is alone is always taken: a request is bounded by itself, and a queue it could never enter would capture none of its kind.
        if waiting and (waiting + n > self._max_rows or self._put_bytes - self._done_bytes + size > self._max_bytes):
            self.overflowed += n
            self.overflowed_at = self._clock()
            return
        answered = [i for i in range(answer.n) if i not in answer.errors] if answer.errors else None
        assigned = answer.assignment
        self._put_rows += n
        self._put_bytes += size
        self._waiting.append(
            Captured(
                call.served.runtime.manifest,
                answer.origin.digest,
                kept.rows,
                answer.parts,
                answered,
                self._clock(),
                answer.request_id,
                answer.prediction_id,
                protocol,
                None if assigned is None else f"{assigned.experiment}@{assigned.revision}",
                None if assigned is None else assigned.arm or None,
                n,
                size,
            )
        )
        if not self.awake:
            self.awake = True
            self._wake()

    def waiting(self) -> tuple[int, int]:
        """Return how many rows are not yet in a file, and what they take in memory, about."""
        return self._put_rows - self._done_rows, self._put_bytes - self._done_bytes

    # --- the writing thread's side ------------------------------------------------------------------------------------

    def has_new(self) -> bool:
        """Whether requests wait that were not drained."""
        return bool(self._waiting)

    def drain(self) -> list[Captured]:
        """Take everything from the queue; it goes on counting as waiting until `done`."""
        taken = []
        while self._waiting:
            taken.append(self._waiting.popleft())
        return taken

    def done(self, rows: int, size: int) -> None:
        """Say that rows are in a file, or lost."""
        self._done_rows += rows
        self._done_bytes += size


def place_of(request_id: str) -> int:
    """Return where a request stands among 2^32 by its id: evenly spread, and the same everywhere.

    CRC-32 alone puts ids that count up in a regular pattern (too nearly the same number of any thousand in a row); multiplying
    by 2^64 / golden ratio (Knuth, The Art of Computer Programming 3, 6.4) and taking the middle bits scatters them as chance would.
    """
    return (crc32(request_id.encode()) * 0x9E3779B97F4A7C15 >> 32) & 0xFFFFFFFF
