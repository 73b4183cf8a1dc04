"""One executor per device: k run slots, shared by the queues of all versions served from it.

A free slot starts at once with what waits (greedy batching): an idle device adds no delay, and while it is busy the queue,
and with it the next batch, grows. The queue with the least served time goes first. An execution predicted to take less
than `inline_below_s` runs on the event loop itself, where a hop to a thread would cost more than the model.

On a CPU the item stage (decoding, resizing) runs in the same slots: threads of its own beside them would only take turns with
them on the same cores, prepare rows long before they can run, and make callers finish in an order nobody chose. A slot runs a
batch when enough rows wait to make one that pays, or when nothing is left to prepare; otherwise it prepares the next row.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor as ThreadPool
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from samegraph_transforms.errors import ExecutionError

from .batching import BatchPolicy, Entry, EntryQueue, Outputs, Work
from .clock import Loop, Timer
from .cost import CostModel
from .errors import DeadlineExceeded, ExecutionFailed
from .logs import get_logger

log = get_logger("samegraph.device")

#: Seconds between two looks whether a retired lane is empty.
REMOVE_AGAIN_S = 0.5


class Runner(Protocol):
    """What runs a batch: `samegraph_transforms.runtime.PackageRuntime`, or a stand-in."""

    def collate(self, items: Sequence[Any]) -> dict[str, np.ndarray]:
        """Stack items into batch inputs."""
        ...

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run the batch stages once."""
        ...


@dataclass(slots=True)
class Segment:
    """Outcome of consecutive rows of a batch: their arrays, or the error of a single row."""

    start: int
    stop: int
    arrays: Sequence[np.ndarray] | None
    error: Exception | None


#: Prepares one row on a slot's thread and returns what to call on the event loop with the result.
ItemJob = Callable[[], Callable[[], None]]


class LaneObserver(Protocol):
    """Told of every execution of a lane, on the event loop."""

    def executed(self, rows: int, seconds: float, queue_seconds: Sequence[float]) -> None:
        """One execution of `rows` rows took `seconds`; each entry in it had waited `queue_seconds`."""
        ...

    def expired(self, works: int) -> None:
        """So many works were dropped because their deadline passed while they waited."""
        ...


class Lane:
    """One version's queue on the device, with its deadline timer.

    Args:
        name: For logs.
        runner: Runs its batches.
        policy: How its batches are formed.
        cost: Its execution-time model.
        observer: Told of every execution.
    """

    def __init__(self, name: str, runner: Runner, policy: BatchPolicy, cost: CostModel, observer: LaneObserver) -> None:
        self.name = name
        self.runner = runner
        self.policy = policy
        self.cost = cost
        self.observer = observer
        self.queue = EntryQueue()
        self.items: deque[ItemJob] = deque()
        self.item_s = 0.0
        self.attached = False
        self.served_s = 0.0
        self.running = 0
        self.live: dict[Work, None] = {}
        self.timer: Timer | None = None
        self.timer_at = float("inf")

    def pending_s(self) -> float:
        """Return the predicted seconds of work of everything that waits."""
        rows = self.queue.rows + len(self.items)
        if rows == 0:
            return 0.0
        size = self.policy.max_batch_size
        full, rest = divmod(rows, size)
        batches = full * self.cost.predict_s(size) + (self.cost.predict_s(rest) if rest else 0.0)
        return batches + len(self.items) * self.item_s

    @property
    def waits(self) -> bool:
        """Whether anything is left to prepare or to run."""
        return self.queue.rows > 0 or bool(self.items)

    def batch_is_due(self) -> bool:
        """Whether a free slot should run a batch rather than prepare one more row."""
        if not self.items:
            return True
        return self.queue.rows >= min(self.policy.max_batch_size, self.cost.efficient_size(self.policy.max_batch_size))


class Device:
    """Run slots over the lanes of one device. All methods are for the event loop's thread.

    Args:
        loop: The event loop.
        slots: Executions that may run at the same time.
        inline_below_s: Executions predicted to be shorter run on the loop.
        pool: Threads for the run slots; replaceable for tests.
    """

    def __init__(self, loop: Loop, slots: int, inline_below_s: float = 0.0005, pool: ThreadPool | None = None) -> None:
        self.slots = slots
        self._loop = loop
        self._inline_below_s = inline_below_s
        self._idle = slots
        self._lanes: list[Lane] = []
        self._woken = False
        self._delay: Timer | None = None
        self._pool = pool or ThreadPoolExecutor(slots, thread_name_prefix="samegraph-run")

    @property
    def busy_slots(self) -> int:
        """Run slots in use."""
        return self.slots - self._idle

    def add(self, lane: Lane) -> None:
        """Start serving a lane."""
        if not lane.attached:
            lane.attached = True
            self._lanes.append(lane)

    def remove(self, lane: Lane) -> None:
        """Stop serving a lane once it is empty; a call that chose it before puts it back for as long as it takes."""
        if not lane.live and not lane.waits and lane.running == 0:
            if lane.attached:
                lane.attached = False
                self._lanes.remove(lane)
        else:
            self._loop.call_at(self._loop.time() + REMOVE_AGAIN_S, self.remove, lane)

    def pending_s(self) -> float:
        """Return the predicted seconds until all waiting rows of all lanes have run."""
        return sum(lane.pending_s() for lane in self._lanes) / self.slots

    def put(self, lane: Lane, entry: Entry, now: float | None = None) -> None:
        """Let an entry of a watched work wait in its lane and see that it is run; `now` is the time, where the caller has just read it."""
        if len(self._lanes) > 1:
            self._level(lane)
        lane.queue.put(entry, self._loop.time() if now is None else now)
        if not self._woken and self._idle:
            self._woken = True
            self._loop.call_soon(self._dispatch)

    def prepare(self, lane: Lane, job: ItemJob) -> None:
        """Let a row wait for a slot that prepares it; the job must be quick to end when nobody wants its row any more."""
        self._level(lane)
        lane.items.append(job)
        self.wake()

    def wake(self) -> None:
        """See to it that free slots look for work in the next turn of the loop, after all requests that are already there."""
        if not self._woken and self._idle:
            self._woken = True
            self._loop.call_soon(self._dispatch)

    def close(self) -> None:
        """Wait for running executions and end the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    # --- choosing -----------------------------------------------------------------------------------------------------

    def _level(self, lane: Lane) -> None:
        """A lane that was idle starts level with the others: time it did not ask for is not owed to it."""
        if lane.running or lane.waits:
            return
        active = [other.served_s for other in self._lanes if other is not lane and (other.waits or other.running)]
        if active:
            lane.served_s = max(lane.served_s, min(active))

    def _next_lane(self) -> Lane | None:
        now = self._loop.time()
        best: Lane | None = None
        soonest = float("inf")
        for lane in self._lanes:
            if not lane.waits or (best is not None and lane.served_s >= best.served_s):
                continue
            ready_at = self._ready_at(lane)
            if ready_at <= now:
                best = lane
            else:
                soonest = min(soonest, ready_at)
        if best is None and soonest < float("inf"):
            self._wake_at(soonest)
        return best

    @staticmethod
    def _ready_at(lane: Lane) -> float:
        """Return when the lane may form a batch: at once, unless its owner opted into waiting for more rows."""
        delay = lane.policy.max_queue_delay_s
        if delay <= 0 or lane.items or lane.queue.rows >= lane.policy.max_batch_size:
            return 0.0
        oldest = lane.queue.oldest()
        return 0.0 if oldest is None else oldest + delay

    def _wake_at(self, when: float) -> None:
        if self._delay is not None:
            self._delay.cancel()
        self._delay = self._loop.call_at(when, self.wake)

    def _dispatch(self) -> None:
        self._woken = False
        while self._idle:
            lane = self._next_lane()
            if lane is None:
                return
            if not lane.batch_is_due():
                self._start_item(lane)
                continue
            batch = lane.queue.pick(self._target(lane))
            if not batch:
                continue
            if self._start(lane, batch):
                if any(other.waits for other in self._lanes):
                    self.wake()  # the loop turns once between two inline executions, so that sockets are served
                return

    # --- running ------------------------------------------------------------------------------------------------------

    def _target(self, lane: Lane) -> int:
        """Return how many rows to take: everything that waits when it is cheap enough to run here and now, else a slot's share."""
        rows = min(lane.queue.rows, lane.policy.max_batch_size)
        if lane.cost.known and lane.cost.predict_s(rows) < self._inline_below_s:
            return rows
        return lane.policy.target(lane.queue.rows, self._idle, lane.cost.efficient_size(lane.policy.max_batch_size))

    def _start(self, lane: Lane, batch: list[Entry]) -> bool:
        """Start one execution; return whether it ran inline and is already over."""
        items = batch[0].items if len(batch) == 1 else [item for entry in batch for item in entry.items]
        now = self._loop.time()
        queued = [now - entry.queued_at for entry in batch]
        for entry in batch:
            entry.work.waiting -= len(entry.items)
        lane.running += 1
        if lane.cost.known and lane.cost.predict_s(len(items)) < self._inline_below_s:
            segments, seconds = _timed(lane.runner, items)
            lane.served_s += seconds
            self._finish(lane, batch, queued, segments, seconds)
            return True
        self._idle -= 1
        self._pool.submit(self._run_in_thread, lane, batch, queued, items)
        return False

    def _start_item(self, lane: Lane) -> None:
        lane.running += 1
        self._idle -= 1
        self._pool.submit(self._run_item, lane, lane.items.popleft())

    def _run_item(self, lane: Lane, job: ItemJob) -> None:
        started = time.perf_counter()
        result = job()
        self._loop.call_soon_threadsafe(self._item_done, lane, result, time.perf_counter() - started)

    def _item_done(self, lane: Lane, result: Callable[[], None], seconds: float) -> None:
        self._idle += 1
        lane.running -= 1
        lane.served_s += seconds
        lane.item_s += 0.1 * (seconds - lane.item_s) if lane.item_s else seconds
        result()
        self._dispatch()

    def _run_in_thread(self, lane: Lane, batch: list[Entry], queued: list[float], items: Sequence[Any]) -> None:
        segments, seconds = _timed(lane.runner, items)
        self._loop.call_soon_threadsafe(self._finish_threaded, lane, batch, queued, segments, seconds)

    def _finish_threaded(self, lane: Lane, batch: list[Entry], queued: list[float], segments: list[Segment], seconds: float) -> None:
        self._idle += 1
        lane.served_s += seconds
        self._dispatch()  # the slot takes up its next batch before answers are written
        self._finish(lane, batch, queued, segments, seconds)

    def _finish(self, lane: Lane, batch: list[Entry], queued: list[float], segments: list[Segment], seconds: float) -> None:
        lane.running -= 1
        rows = segments[-1].stop
        whole = segments[0].arrays if len(segments) == 1 else None
        if whole is not None:
            lane.cost.observe(rows, seconds)
        lane.observer.executed(rows, seconds, queued)
        offset = 0
        outputs = None if whole is None else Outputs(whole)
        for entry in batch:
            count = len(entry.items)
            if outputs is not None:
                entry.work.answer(entry.start, count, outputs, offset)
            else:
                _deliver(entry, offset, count, segments, lane.name)
            offset += count

    # --- deadlines ----------------------------------------------------------------------------------------------------

    def watch(self, lane: Lane, work: Work) -> None:
        """Drop the work when its deadline passes while it waits. One timer serves the whole lane."""
        if not lane.attached:  # a call that chose the version before it was retired
            self.add(lane)
            self._loop.call_at(self._loop.time() + REMOVE_AGAIN_S, self.remove, lane)
        lane.live[work] = None
        if work.deadline < lane.timer_at:
            if lane.timer is not None:
                lane.timer.cancel()
            lane.timer_at = work.deadline
            lane.timer = self._loop.call_at(work.deadline, self._expire, lane)

    def works(self) -> list[Work]:
        """Return everything that is watched and not finished."""
        return [work for lane in self._lanes for work in lane.live]

    def unwatch(self, lane: Lane, work: Work) -> None:
        """Forget a finished work; the lane's timer finds out when it fires."""
        lane.live.pop(work, None)

    def _expire(self, lane: Lane) -> None:
        now = self._loop.time()
        lane.timer, lane.timer_at = None, float("inf")
        late = [work for work in lane.live if work.deadline <= now and work.waiting > 0]
        for work in late:
            work.fail(_deadline_passed())
        if late:
            lane.observer.expired(len(late))
        following = min((work.deadline for work in lane.live if work.deadline > now), default=None)
        if following is not None:
            lane.timer_at = following
            lane.timer = self._loop.call_at(following, self._expire, lane)


def _deadline_passed() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed while the request waited; nothing was computed for it")


def _timed(runner: Runner, items: Sequence[Any]) -> tuple[list[Segment], float]:
    started = time.perf_counter()
    segments = execute(runner, items)
    return segments, time.perf_counter() - started


def execute(runner: Runner, items: Sequence[Any], offset: int = 0) -> list[Segment]:
    """Run items as one batch; when that fails, bisect, so that only an offending item errors.

    Args:
        runner: Runs the batch.
        items: At least one.
        offset: Added to the segments' places.

    Returns:
        Segments that cover all items in order.
    """
    n = len(items)
    try:
        arrays = runner.run(runner.collate(items))
        for array in arrays:
            if len(array) != n:
                raise ExecutionError(f"{len(array)} rows came out of a batch of {n}")
        return [Segment(offset, offset + n, arrays, None)]
    except Exception as error:  # noqa: BLE001 - whatever a graph or its inputs raise belongs to these rows, not to the server
        if n == 1:
            return [Segment(offset, offset + 1, None, error)]
    middle = n // 2
    return execute(runner, items[:middle], offset) + execute(runner, items[middle:], offset + middle)


def _deliver(entry: Entry, offset: int, count: int, segments: list[Segment], lane: str) -> None:
    """Hand an entry its rows of the batch."""
    work = entry.work
    for segment in segments:
        start, stop = max(offset, segment.start), min(offset + count, segment.stop)
        if start >= stop:
            continue
        row = entry.start + start - offset
        if segment.error is not None:
            log.error("execution_failed", exc_info=segment.error, lane=lane, instance=row, request=getattr(work, "request_id", ""))
            work.fail_row(row, ExecutionFailed(row))
        elif segment.arrays is not None:
            work.answer(row, stop - start, Outputs(segment.arrays), start - segment.start)
