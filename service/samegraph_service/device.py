"""One executor per device: k run slots, shared by the queues of all versions served from it.

A free slot starts at once with what waits (greedy batching): an idle device adds no delay, and while it is busy the queue,
and with it the next batch, grows. The queue with the least served time goes first. An execution predicted to take less
than `inline_below_s` runs on the event loop itself, where a hop to a thread would cost more than the model.

On a CPU the item stage (decoding, resizing) runs in the same slots: threads of its own beside them would only take turns with
them on the same cores, prepare rows long before they can run, and make callers finish in an order nobody chose. A slot runs a
batch when enough rows wait to make one that pays, or when nothing is left to prepare; otherwise it prepares the next row.

Where rows differ in shape (`Runner.shapes`), a batch holds rows of one shape key. An instance that made executions fail twice is refused
when it comes again (poison.py). Lanes whose rows all have one shape and that nothing was lost on pay for neither.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor as ThreadPool
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from typing import Any, Protocol

import msgspec
import numpy as np
from samegraph_transforms.errors import ExecutionError, InputError, SamegraphError
from samegraph_transforms.ragged import ShapePlan

from .batching import BatchPolicy, Entry, EntryQueue, Outputs, ShapedQueue, Work
from .clock import Loop, Timer
from .cost import BucketCost, CostModel, ShapedCost, wave_s
from .errors import DeadlineExceeded, ExecutionFailed, PoisonInstance
from .logs import get_logger
from .poison import REMEMBERED_S, Quarantine
from .releases import Releases
from .turns import NORMAL, Turns

log = get_logger("samegraph.device")

#: Seconds between two looks whether a retired lane is empty.
REMOVE_AGAIN_S = 0.5
#: Seconds by which a lane where interactive rows wait may get ahead of the others: they go first, and cannot starve anybody.
URGENT_AHEAD_S = 1.0
#: So many full batches of every run slot are as good as a queue without end.
PLENTY = 4
#: Lines of different shapes whose work is predicted one by one.
LINES_LOOKED_AT = 64


class Runner(Protocol):
    """What runs a batch: `samegraph_transforms.runtime.PackageRuntime`, or a stand-in.

    Attributes:
        shapes: How rows of different shapes run together; None when every row has the same.
    """

    @property
    def shapes(self) -> ShapePlan | None:
        """See the class."""
        ...

    def collate(self, items: Sequence[Any]) -> dict[str, np.ndarray]:
        """Stack items, all of one shape key, into batch inputs."""
        ...

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run the batch stages once."""
        ...


class Segment(msgspec.Struct, eq=False):
    """Outcome of consecutive rows of a batch: their arrays, or the error of a single row and whether it is to blame itself.

    `feeds` is what the rows entered the graph as, where that is known of exactly these rows.
    """

    start: int
    stop: int
    arrays: Sequence[np.ndarray] | None
    error: BaseException | None
    blamed: bool = False
    feeds: Mapping[str, np.ndarray] | None = None


#: Prepares one row on a slot's thread and returns what to call on the event loop with the result.
ItemJob = Callable[[], Callable[[], None]]


class ItemQueue:
    """Rows that wait to be prepared: first in, first out while there is one, else callers take turns (turns.py)."""

    def __init__(self) -> None:
        self._fresh: deque[tuple[ItemJob, Work | None]] = deque()
        self._turns: Turns[tuple[ItemJob, Work | None]] = Turns(_wanted)
        self._settled = 0

    def __len__(self) -> int:
        return len(self._fresh) + self._settled

    def __iter__(self) -> Iterator[ItemJob]:
        return (job for job, _ in (*self._turns, *self._fresh))

    def put(self, job: ItemJob, work: Work | None) -> None:
        """Let a row wait; without a work it belongs to nobody."""
        self._fresh.append((job, work))

    def pop(self) -> ItemJob | None:
        """Return the next job whose row somebody waits for, or None when there is none."""
        if not self._settled and len(self._fresh) == 1:
            waiting = self._fresh.popleft()
            return waiting[0] if _wanted(waiting) else None
        for waiting in self._fresh:
            work = waiting[1]
            self._turns.add(waiting, None if work is None else work.caller, NORMAL if work is None else work.priority)
        self._settled += len(self._fresh)
        self._fresh.clear()
        taken = self._turns.take(1, _one)
        self._settled = self._settled - 1 if taken else 0  # those nobody waits for are forgotten as they come up
        if not taken:
            self._turns.drop_all()
            return None
        return taken[0][0]


def _wanted(waiting: tuple[ItemJob, Work | None]) -> bool:
    work = waiting[1]
    return work is None or not work.finished


def _one(_: object) -> int:
    return 1


class LaneObserver(Protocol):
    """Told of every execution of a lane, on the event loop."""

    def executed(self, rows: int, seconds: float, queue_seconds: Sequence[float]) -> None:
        """One execution of `rows` rows took `seconds`; each entry in it had waited `queue_seconds`."""
        ...

    def expired(self, works: int) -> None:
        """So many works were dropped because their deadline passed while they waited."""
        ...

    def backlogged(self, rows: int, wanted: int) -> None:
        """An execution of `rows` rows started with others left waiting, where the policy wanted `wanted`."""
        ...

    def padded(self, elements: int, padding: int) -> None:
        """An execution read `elements` elements in inputs of varying shape, `padding` of which were padding."""
        ...

    def refused_poison(self) -> None:
        """An instance was refused because executions failed on it before."""
        ...


class LaneTap(Protocol):
    """Given the rows of every execution of a lane and their answers, on the event loop; must neither block nor raise."""

    def executed(self, batch: Sequence[Entry], segments: Sequence[Segment]) -> None:
        """`batch` ran with this outcome; its works have not been told yet."""
        ...

    def refused(self, errors: Iterable[SamegraphError]) -> None:
        """Requests or instances failed with these."""
        ...


class Lane:
    """One version's queue on the device, with its deadline timer.

    Args:
        name: For logs.
        runner: Runs its batches.
        policy: How its batches are formed.
        cost: Its execution-time model; a `ShapedCost` where rows differ in shape.
        observer: Told of every execution.
        canary: An instance known to be good, which tells a broken model from a bad instance; None takes the first that runs after a
            failure.

    Attributes:
        shapes: How rows of different shapes run together; None when every row has the same.
        quarantine: The instances that made executions fail; None while there are none.
        plain: Whether rows go into the queue as they come, unlooked at.
        tap: Where its rows are handed on to be counted; None for nowhere.
        traced: Told of executions, so that traced requests know of theirs (see `tracing.Tracer.executed`); None for nobody.
        background: Whether it runs only while nothing else waits, one execution of at most `background_s` predicted seconds at a time.
    """

    background = False
    background_s = 0.0
    traced: Callable[[Sequence[Entry], Sequence[float], float], None] | None = None

    def __init__(self, name: str, runner: Runner, policy: BatchPolicy, cost: CostModel, observer: LaneObserver, canary: Any = None) -> None:
        self.name = name
        self.runner = runner
        self.policy = policy
        self.cost = cost
        self.observer = observer
        self.canary = canary
        self.shapes = runner.shapes
        self.queue: EntryQueue | ShapedQueue = EntryQueue() if self.shapes is None else ShapedQueue()
        self.quarantine: Quarantine | None = None
        self.plain = self.shapes is None
        self.items = ItemQueue()
        self.item_s = 0.0
        self.around_s = 0.0  # what passes around an execution on a thread, from its start to the next one's
        self.attached = False
        self.served_s = 0.0
        self.running = 0
        self.live: dict[Work, None] = {}
        self.timer: Timer | None = None
        self.timer_at = float("inf")
        self.tap: LaneTap | None = None

    def pace(self) -> tuple[int, float]:
        """Return the rows of a batch under load, and the seconds one takes, the preparing of its rows included."""
        size = self.cost.efficient_size(self.policy.max_batch_size)
        return size, self.seconds(size)

    def seconds(self, rows: int) -> float:
        """Return the predicted seconds of an execution, the preparing of its rows included; 0 before anything was observed."""
        seconds = self.cost.predict_s(rows)
        return seconds + self.around_s + rows * self.item_s if seconds else 0.0

    def pending_s(self) -> float:
        """Return the predicted seconds of work of everything that waits."""
        items = len(self.items)
        if isinstance(self.queue, ShapedQueue):
            return self._shaped_pending_s(self.queue) + self._batches_s(items, self.cost) + items * self.item_s
        return self._batches_s(self.queue.rows + items, self.cost) + items * self.item_s

    def _batches_s(self, rows: int, cost: CostModel) -> float:
        full, rest = divmod(rows, self.policy.max_batch_size)
        return full * cost.predict_s(self.policy.max_batch_size) + (cost.predict_s(rest) if rest else 0.0)

    def _shaped_pending_s(self, queue: ShapedQueue) -> float:
        """Return the predicted seconds of what waits in the lines; beyond the first `LINES_LOOKED_AT` the rest is taken to be like them."""
        looked_at, seconds = 0, 0.0
        assert isinstance(self.cost, ShapedCost)
        for key, line in islice(queue.lines.items(), LINES_LOOKED_AT):
            looked_at += line.rows
            seconds += self._batches_s(line.rows, self.cost.of(key))
        return seconds * queue.rows / looked_at if looked_at else 0.0

    def cost_of(self, entry: Entry) -> CostModel:
        """Return the execution-time model of an entry's rows."""
        return self.cost.of(entry.key) if isinstance(self.cost, ShapedCost) else self.cost

    def front(self) -> tuple[int, CostModel]:
        """Return how many rows the next execution could hold, and its execution-time model."""
        if not isinstance(self.queue, ShapedQueue):
            return self.queue.rows, self.cost
        front = self.queue.front()
        if front is None:
            return 0, self.cost
        key, line = front
        return line.rows, self.cost.of(key) if isinstance(self.cost, ShapedCost) else self.cost

    @property
    def waits(self) -> bool:
        """Whether anything is left to prepare or to run."""
        return self.queue.rows > 0 or bool(self.items)

    def batch_is_due(self) -> bool:
        """Whether a free slot should run a batch rather than prepare one more row."""
        if not self.items:
            return True
        rows, cost = self.front()
        largest = self.policy.max_batch_size
        # Rows of a rare shape do not wait for company for ever: as soon as a whole batch waits, whatever its shapes, the oldest go.
        return rows >= min(largest, cost.efficient_size(largest)) or self.queue.rows >= largest


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
        self._background: list[Lane] = []
        # Those of `_lanes` with something to do, and some that had until lately: what a request costs must not grow with the models loaded.
        self._active: dict[Lane, None] = {}
        self._woken = False
        self._delay: Timer | None = None
        # Executions on a thread → when they started, when they are predicted to be over, and their rows.
        self._started: dict[int, tuple[float, float, int]] = {}
        self._turns = 0  # executions that started or ended
        self._releases: tuple[tuple[Lane, int, float, int], float, Releases] | None = None  # for what, until when, and the times
        self._pool = pool or ThreadPoolExecutor(slots, thread_name_prefix="samegraph-run")

    @property
    def busy_slots(self) -> int:
        """Run slots in use."""
        return self.slots - self._idle

    def add(self, lane: Lane) -> None:
        """Start serving a lane."""
        if not lane.attached:
            lane.attached = True
            (self._background if lane.background else self._lanes).append(lane)

    def remove(self, lane: Lane) -> None:
        """Stop serving a lane once it is empty; a call that chose it before puts it back for as long as it takes."""
        if not lane.live and not lane.waits and lane.running == 0:
            if lane.attached:
                lane.attached = False
                (self._background if lane.background else self._lanes).remove(lane)
                self._active.pop(lane, None)
        else:
            self._loop.call_at(self._loop.time() + REMOVE_AGAIN_S, self.remove, lane)

    def pending_s(self) -> float:
        """Return the predicted seconds until all waiting rows of all lanes have run."""
        return sum(lane.pending_s() for lane in self._active) / self.slots

    # --- predicting ---------------------------------------------------------------------------------------------------

    def ends_s(self) -> list[float]:
        """Return in how many seconds each run slot is predicted to be free, ascending."""
        now = self._loop.time()
        running = [max(0.0, end - now) for _, end, _ in self._started.values()]
        return sorted(running + [0.0] * (self.slots - len(running)))

    def start_s(self, lane: Lane, ahead: int) -> float:
        """Return in how many seconds the row that has `ahead` rows of its lane before it is predicted to start.

        Of the other lanes that much counts as runs meanwhile: lanes get equal shares of the device's time.
        """
        size, batch_s = lane.pace()
        batches = ahead // size
        own_s = (batches + 1) * batch_s
        others_s = sum(min(other.pending_s(), own_s) for other in self._active if other is not lane and other.waits)
        return wave_s(self.ends_s(), batches, batch_s) + others_s / self.slots

    def free_s(self, lane: Lane, rows: int, accepted: int, back_s: float) -> float:
        """Return in how many seconds the place of a row is free that has `rows` others come free before it.

        Args:
            lane: Where those who wait for places will run, while what is busy goes on being busy.
            rows: Places that come free before.
            accepted: Rows that are accepted, or will be any moment: those who run and those who wait.
            back_s: Seconds from a place being free to its next row being there.
        """
        size, batch_s = lane.pace()
        if batch_s <= 0:
            return 0.0
        now = self._loop.time()
        accepted = min(accepted, PLENTY * self.slots * size)
        asked = lane, accepted, back_s, self._turns
        if self._releases is None or self._releases[0] != asked or self._releases[1] <= now:
            ends = [(end, n) for _, end, n in self._started.values()]
            until = min((end for end, _ in ends), default=now)
            self._releases = asked, until, self._played(lane, ends, accepted, back_s)
        return max(0.0, self._releases[2].at(rows) - now)

    def _played(self, lane: Lane, ends: list[tuple[float, int]], accepted: int, back_s: float) -> Releases:
        """Return what is to come, as if executions of all lanes that are busy were like this one's at their common pace."""
        size, batch_s = lane.pace()
        busy = [lane.pace(), *(other.pace() for other in self._active if other is not lane and (other.waits or other.running))]
        shared = max(1, round(batch_s * sum(n / s for n, s in busy if s > 0) / len(busy)))
        waiting = max(0, accepted - sum(n for _, n in ends))
        return Releases(
            ends, self.slots - len(ends), waiting, shared, lambda n: lane.seconds(max(1, n * size // shared)), back_s, self._loop.time()
        )

    def rate_per_s(self, lane: Lane) -> float | None:
        """Return the rows a second of a lane that has the device to itself; None before anything was measured."""
        size, batch_s = lane.pace()
        return self.slots * size / batch_s if batch_s > 0 else None

    def slowest_rate_per_s(self) -> float | None:
        """Return the least rate of all lanes; None before anything was measured."""
        return min((rate for lane in self._lanes if (rate := self.rate_per_s(lane)) is not None), default=None)

    def put(self, lane: Lane, entry: Entry, now: float | None = None) -> None:
        """Let an entry of a watched work wait in its lane and see that it is run; `now` is the time, where the caller has just read it."""
        if lane not in self._active:
            self._activate(lane)
        if lane.plain:
            lane.queue.put(entry, self._loop.time() if now is None else now)
        else:
            self._put_looked_at(lane, entry)
        if not self._woken and self._idle:
            self._woken = True
            self._loop.call_soon(self._dispatch)

    def _put_looked_at(self, lane: Lane, entry: Entry) -> None:
        """Put an entry's rows into the lines of their shapes; those that cannot run or are refused fail here."""
        now = self._loop.time()
        work, runs = entry.work, list(_runs(entry, _keys(lane, entry, now)))
        for key, part in runs:
            if isinstance(key, SamegraphError):
                work.waiting -= 1
                work.fail_row(part.start, key)
        for key, part in runs:
            if not work.finished and not isinstance(key, SamegraphError):
                part.key = key
                work.entries.append(part)
                lane.queue.put(part, now)

    def prepare(self, lane: Lane, job: ItemJob, work: Work | None = None) -> None:
        """Let a row of `work` wait for a slot that prepares it; the job must be quick to end when nobody wants its row any more."""
        if lane not in self._active:
            self._activate(lane)
        lane.items.put(job, work)
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

    def _activate(self, lane: Lane) -> None:
        """A lane that was idle starts level with the others: time it did not ask for is not owed to it."""
        if lane.background:
            return
        served = [other.served_s for other in self._active if other.waits or other.running]
        if served:
            lane.served_s = max(lane.served_s, min(served))
        self._active[lane] = None

    def _next_lane(self) -> Lane | None:
        best: Lane | None = None
        idle: list[Lane] = []
        least = soonest = float("inf")
        for lane in self._active:
            if not lane.waits:
                if not lane.running:
                    idle.append(lane)
                continue
            served_s = lane.served_s - URGENT_AHEAD_S if lane.queue.urgent else lane.served_s
            if served_s >= least:
                continue
            ready_at = self._ready_at(lane)
            if ready_at <= 0.0 or ready_at <= self._loop.time():
                best, least = lane, served_s
            else:
                soonest = min(soonest, ready_at)
        for lane in idle:
            del self._active[lane]
        if best is None and soonest < float("inf"):
            self._wake_at(soonest)
        elif best is None and self._background and not any(lane.running for lane in self._background):
            best = next((lane for lane in self._background if lane.waits), None)
        return best

    def _anything_waits(self) -> bool:
        for lane in self._active:
            if lane.waits:
                return True
        return any(lane.waits for lane in self._background) if self._background else False

    @staticmethod
    def _ready_at(lane: Lane) -> float:
        """Return when the lane may form a batch: at once, unless its owner opted into waiting for more rows."""
        delay = lane.policy.max_queue_delay_s
        if delay <= 0 or lane.items or lane.queue.urgent or lane.queue.rows >= lane.policy.max_batch_size:
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
            if lane.timer_at <= self._loop.time():
                self._expire(lane)  # what is late leaves before a batch is formed, however late the timer itself is
                continue
            wanted, inline = self._plan(lane)
            batch = lane.queue.pick(wanted)
            if not batch:
                continue
            if self._start(lane, batch, wanted, inline):
                if self._anything_waits():
                    self.wake()  # the loop turns once between two inline executions, so that sockets are served
                return

    # --- running ------------------------------------------------------------------------------------------------------

    def _plan(self, lane: Lane) -> tuple[int, bool]:
        """Return how many rows to take, and whether to run them here and now: all that wait when that is cheap, else a slot's share."""
        if lane.shapes is None:
            waiting = lane.queue.rows
            cost = lane.cost
        else:
            waiting, cost = lane.front()
        largest = lane.policy.max_batch_size
        rows = min(waiting, largest)
        if lane.background:
            while rows > 1 and cost.predict_s(rows) > lane.background_s:
                rows //= 2
            return rows, cost.known and cost.predict_s(rows) < self._inline_below_s
        if cost.known and cost.predict_s(rows) < self._inline_below_s:
            return rows, True
        share = lane.policy.target(lane.queue.rows, self._idle, cost.efficient_size(largest))
        if lane.shapes is not None:
            share = min(share, rows)
        return cost.without_waste(share) if isinstance(cost, BucketCost) else share, False

    def _start(self, lane: Lane, batch: list[Entry], wanted: int, inline: bool) -> bool:
        """Start one execution; return whether it ran inline and is already over."""
        items = batch[0].items if len(batch) == 1 else [item for entry in batch for item in entry.items]
        now = self._loop.time()
        queued = [now - entry.queued_at for entry in batch]
        for entry in batch:
            entry.work.waiting -= len(entry.items)
        lane.running += 1
        if not inline:
            cost = lane.cost_of(batch[0])
            inline = cost.known and cost.predict_s(len(items)) < self._inline_below_s
        if lane.queue.rows and (inline or self._idle == 1):  # what waits on waits for this execution
            _note_backlog(lane, batch[0], len(items), wanted)
        if inline:
            segments, seconds = _timed(lane.runner, items, lane.canary)
            lane.served_s += seconds
            self._finish(lane, batch, queued, segments, seconds)
            return True
        self._idle -= 1
        self._turns += 1
        self._started[id(batch)] = now, now + lane.cost_of(batch[0]).predict_s(len(items)) + lane.around_s, len(items)
        self._pool.submit(self._run_in_thread, lane, batch, queued, items)
        return False

    def _start_item(self, lane: Lane) -> None:
        job = lane.items.pop()
        if job is None:
            return
        lane.running += 1
        self._idle -= 1
        self._pool.submit(self._run_item, lane, job)

    def _run_item(self, lane: Lane, job: ItemJob) -> None:
        started = time.perf_counter()
        try:
            result = job()
        except BaseException:  # the slot must come back; the row's caller is told by his deadline
            log.exception("item_job_crashed", lane=lane.name)
            result = _nothing
        self._loop.call_soon_threadsafe(self._item_done, lane, result, time.perf_counter() - started)

    def _item_done(self, lane: Lane, result: Callable[[], None], seconds: float) -> None:
        self._idle += 1
        lane.running -= 1
        lane.served_s += seconds
        lane.item_s += 0.1 * (seconds - lane.item_s) if lane.item_s else seconds
        result()
        self._dispatch()

    def _run_in_thread(self, lane: Lane, batch: list[Entry], queued: list[float], items: Sequence[Any]) -> None:
        segments, seconds = _timed(lane.runner, items, lane.canary)
        self._loop.call_soon_threadsafe(self._finish_threaded, lane, batch, queued, segments, seconds)

    def _finish_threaded(self, lane: Lane, batch: list[Entry], queued: list[float], segments: list[Segment], seconds: float) -> None:
        self._idle += 1
        self._turns += 1
        started = self._started.pop(id(batch))[0]
        around_s = max(0.0, self._loop.time() - started - seconds)
        lane.around_s += 0.1 * (around_s - lane.around_s)
        lane.served_s += seconds
        self._dispatch()  # the slot takes up its next batch before answers are written
        self._finish(lane, batch, queued, segments, seconds)

    def _finish(self, lane: Lane, batch: list[Entry], queued: list[float], segments: list[Segment], seconds: float) -> None:
        lane.running -= 1
        rows = segments[-1].stop
        if lane.shapes is None:
            whole = segments[0].arrays if len(segments) == 1 else None
            if whole is not None:
                lane.cost.observe(rows, seconds)
        else:
            whole = None
            self._count_shape(lane, lane.shapes, batch, segments, seconds)
        lane.observer.executed(rows, seconds, queued)
        if lane.traced is not None:
            lane.traced(batch, queued, seconds)
        if lane.tap is not None:
            lane.tap.executed(batch, segments)
        if whole is not None:
            if lane.quarantine is not None and lane.canary is None:
                lane.canary = batch[0].items[0]
            outputs = Outputs(whole)
            offset = 0
            for entry in batch:
                count = len(entry.items)
                entry.work.answer(entry.start, count, outputs, offset)
                offset += count
        else:
            self._note_losses(lane, batch, segments)
            _deliver(batch, segments, lane.name)

    @staticmethod
    def _count_shape(lane: Lane, shapes: ShapePlan, batch: list[Entry], segments: list[Segment], seconds: float) -> None:
        key: Any = batch[0].key
        rows = segments[-1].stop
        if all(segment.error is None for segment in segments) and isinstance(lane.cost, ShapedCost):
            lane.cost.observe_shape(key, rows, seconds)
        elements = rows * shapes.elements(key)
        lane.observer.padded(elements, elements - sum([shapes.own_elements(item) for entry in batch for item in entry.items]))

    def _note_losses(self, lane: Lane, batch: list[Entry], segments: list[Segment]) -> None:
        """Remember the instances that made the execution fail although the model works."""
        if all(segment.error is None for segment in segments):
            if lane.canary is None and lane.quarantine is not None:
                lane.canary = batch[0].items[0]
            return
        if lane.quarantine is None:
            lane.quarantine = Quarantine()
        items = [item for entry in batch for item in entry.items]
        for segment in segments:
            if segment.blamed:
                lane.quarantine.lost(items[segment.start], self._loop.time())
        lane.plain = lane.shapes is None and not lane.quarantine.refusing

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


def _note_backlog(lane: Lane, first: Entry, rows: int, wanted: int) -> None:
    """Count an execution that leaves others waiting; where rows differ in shape, if all that wait could have filled it."""
    if lane.shapes is not None:
        largest = lane.policy.max_batch_size
        wanted = min(largest, lane.cost_of(first).efficient_size(largest))
        if rows + lane.queue.rows < wanted:
            return
    lane.observer.backlogged(rows, wanted)


def _remembered(lane: Lane, now: float) -> Quarantine | None:
    """Return the lane's quarantine if it refuses anything still; when it does not, rows need not be looked at any more."""
    quarantine = lane.quarantine
    if quarantine is None:
        return None
    quarantine.forget(now)
    if quarantine.refusing:
        return quarantine
    lane.plain = lane.shapes is None
    return None


def _keys(lane: Lane, entry: Entry, now: float) -> Iterator[Hashable]:
    """Yield for every row its shape key, or the error it is refused with."""
    quarantine = _remembered(lane, now)
    for row, item in enumerate(entry.items, entry.start):
        if quarantine is not None and quarantine.refuses(item):
            lane.observer.refused_poison()
            yield PoisonInstance(row, REMEMBERED_S)
            continue
        try:
            yield None if lane.shapes is None else lane.shapes.key(item)
        except InputError as error:
            yield error.at(row)
        except Exception as error:  # whatever a value makes NumPy raise belongs to this row
            log.exception("shape_failed", lane=lane.name, instance=row)
            failed = ExecutionFailed(row)
            failed.__cause__ = error
            yield failed


def _runs(entry: Entry, keys: Iterable[Hashable]) -> Iterator[tuple[Hashable, Entry]]:
    """Yield the consecutive rows of an entry that have equal keys."""
    start = 0
    for key, run in groupby(keys):
        stop = start + len(list(run))
        yield key, entry.part(start, stop)
        start = stop


def _nothing() -> None:
    """Stand in for the result of an item job that has none."""


def _timed(runner: Runner, items: Sequence[Any], canary: Any) -> tuple[list[Segment], float]:
    """Run items as `execute` does and find out who is to blame for failures; never raises."""
    started = time.perf_counter()
    segments = execute(runner, items)
    seconds = time.perf_counter() - started
    if len(segments) > 1 or segments[0].error is not None:
        works = any(s.error is None for s in segments) or (canary is not None and _runs_alone(runner, canary))
        for segment in segments:
            segment.blamed = works and segment.error is not None
    return segments, seconds


def _runs_alone(runner: Runner, item: Any) -> bool:
    return execute(runner, [item])[0].error is None


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
        feeds = runner.collate(items)
        arrays = runner.run(feeds)
        for array in arrays:
            if len(array) != n:
                raise ExecutionError(f"{len(array)} rows came out of a batch of {n}")
        if runner.shapes is None or not runner.shapes.cuts:
            return [Segment(offset, offset + n, arrays, None, feeds=feeds)]
        return _cut(runner.shapes, arrays, items, offset)
    except BaseException as error:  # noqa: BLE001 - whatever a graph or its inputs raise belongs to these rows, not to the server
        if n == 1:
            return [Segment(offset, offset + 1, None, error)]
    middle = n // 2
    return execute(runner, items[:middle], offset) + execute(runner, items[middle:], offset + middle)


def _cut(shapes: ShapePlan, arrays: Sequence[np.ndarray], items: Sequence[Any], offset: int) -> list[Segment]:
    """Return the rows' outputs without padding."""
    segments = []
    for count, piece in shapes.cut(arrays, items):
        segments.append(Segment(offset, offset + count, piece, None))
        offset += count
    return segments


def _deliver(batch: Sequence[Entry], segments: Sequence[Segment], lane: str) -> None:
    """Hand every entry its rows of the batch."""
    outputs = [None if s.arrays is None else Outputs(s.arrays) for s in segments]
    number = offset = 0
    for entry in batch:
        stop = offset + len(entry.items)
        while offset < stop:
            segment, given = segments[number], outputs[number]
            row, last = entry.start + len(entry.items) - (stop - offset), min(stop, segment.stop)
            if given is not None:
                entry.work.answer(row, last - offset, given, offset - segment.start)
            else:
                request = getattr(entry.work, "request_id", "")
                log.error("execution_failed", exc_info=segment.error, lane=lane, instance=row, request=request)
                entry.work.fail_row(row, ExecutionFailed(row))
            offset = last
            number += offset == segment.stop
