"""The one thread that writes to one stream, so that a reader who stalls stalls nobody else.

Writing to a pipe blocks once the pipe is full, for as long as its reader pleases. So whoever has something to say leaves it in a
bounded queue, and a thread of its own does the writing. What finds the queue full is dropped, counted, and told of in the
stream itself as soon as it flows again.

Before `start`, and after a `stop` that got everything out, lines are written by whoever brings them: nothing said at either end
of a process's life is lost. The thread writes to the stream's file descriptor, past Python's buffers: a buffer that is locked by a
blocked thread would keep the interpreter from ending.
"""

from __future__ import annotations

import atexit
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol, TextIO

#: Told of drops: what kind of line, how many since the last report, how many in all; returns the line that says so.
DropReport = Callable[[str, int, int], str]
#: Longest wait for a stream that does not flow, in seconds, where somebody waits for it at all.
PATIENCE_S = 2.0
#: Lines handed to the system in one call.
LINES_AT_ONCE = 100


class LineSource(Protocol):
    """Something with a queue of its own, whose lines are made by the writing thread."""

    name: str

    @property
    def dropped(self) -> int:
        """Lines lost so far."""
        ...

    def waiting(self) -> bool:
        """Whether there is anything to write."""
        ...

    def ask_again_in(self) -> float | None:
        """Return the seconds after which to ask for slices although nothing waits; None when that is never needed."""
        ...

    def slices(self) -> Iterator[tuple[str, int]]:
        """Yield what waits: some whole lines as one text, and how many they are."""
        ...

    def settled(self, lines: int, *, written: bool) -> None:
        """Hear what became of a slice."""
        ...


class _Bell:
    """Wakes one thread; rung any number of times it wakes it once. Safe to ring from signal handlers and finalizers.

    `threading.Event` is not: its lock is held while Python code runs, and a finalizer that logs could meet it on the same thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def ring(self) -> None:
        try:
            self._lock.release()
        except RuntimeError:  # rung already
            pass

    def wait(self, timeout_s: float | None) -> None:
        self._lock.acquire(timeout=-1 if timeout_s is None else timeout_s)


class LogWriter:
    """Writes whole lines to `stream`, in the order they came.

    Args:
        stream: Where lines go.
        report: Makes the line that tells of dropped ones.
        capacity: Most lines waiting, >= 1.
        capacity_chars: Most characters waiting, >= 1.
        linger_s: How long lines of sources may gather after the first one, in seconds, so that a busy server wakes the thread at most
            1 / `linger_s` times a second. Lines that were put are written at once.
        report_every_s: Least time between two reports of drops, in seconds.

    Attributes:
        dropped: Lines lost so far: the queue was full, or the stream refused them.
        written: Lines written so far, those of sources left out.
    """

    name = "events"

    def __init__(
        self,
        stream: TextIO,
        report: DropReport,
        *,
        capacity: int = 10_000,
        capacity_chars: int = 8 << 20,
        linger_s: float = 0.05,
        report_every_s: float = 10.0,
    ) -> None:
        for name, value in (("capacity", capacity), ("capacity_chars", capacity_chars)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        self._stream = stream
        self._report = report
        self._capacity = capacity
        self._capacity_chars = capacity_chars
        self._linger_s = linger_s
        self._report_every_s = report_every_s
        self._lock = threading.RLock()  # a finalizer may log while its thread is in here
        self._lines: list[str] = []
        self._chars = 0
        self._sources: list[LineSource] = []
        self._flushes: list[threading.Event] = []
        self._bell = _Bell()
        self._thread: threading.Thread | None = None
        self._life = 0  # goes on at every start and stop; a thread writes during one of them
        self._stuck = False
        self._reported: dict[str, int] = {}
        self._next_report = 0.0
        self.asleep = False  # read by sources: somebody has to ring
        self.dropped = 0
        self.written = 0

    # --- saying something ---------------------------------------------------------------------------------------------

    def put(self, text: str) -> bool:
        """Leave one or more whole lines to be written; never waits for the stream while the thread runs.

        Returns:
            False when they were dropped, which is counted.
        """
        with self._lock:
            if self._thread is None and not self._stuck:
                return self._put_directly(text)
            full = len(self._lines) >= self._capacity or self._chars + len(text) > self._capacity_chars
            if self._stuck or full:
                self.dropped += 1
                return False
            self._lines.append(text)
            self._chars += len(text)
        self._bell.ring()
        return True

    def wake(self) -> None:
        """Tell a sleeping thread that a source has something."""
        self.asleep = False
        self._bell.ring()

    def attach(self, source: LineSource) -> None:
        """Ask `source` for lines from now on, and tell of its drops."""
        with self._lock:
            self._sources.append(source)

    def detach(self, source: LineSource) -> None:
        """Forget `source`. What it still has is its own; `flush` before."""
        with self._lock:
            self._sources.remove(source)

    # --- life ---------------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the thread does the writing."""
        return self._thread is not None

    def start(self) -> bool:
        """Hand the writing to a thread; return False when it has it already."""
        with self._lock:
            if self._thread is not None:
                return False
            self._stuck = False
            self._life += 1
            self._thread = threading.Thread(target=self._write_until_stopped, args=(self._life,), name="samegraph-log", daemon=True)
            self._thread.start()
        atexit.register(self._stop_at_exit)
        return True

    def flush(self, timeout_s: float = PATIENCE_S) -> bool:
        """Wait until all that was said before is written, and all drops told; False when the stream did not take it in `timeout_s`."""
        if self._thread is None:
            return not self._stuck
        done = threading.Event()
        with self._lock:
            self._flushes.append(done)
        self._bell.ring()
        return done.wait(timeout_s)

    def stop(self, timeout_s: float = PATIENCE_S) -> bool:
        """Write what waits and end the thread; harmless when it does not run.

        Returns:
            False when the stream blocked for `timeout_s` seconds: what waits is counted as dropped, and so is all that comes later.
        """
        thread = self._thread
        if thread is None:
            return not self._stuck
        self._life += 1
        self._bell.ring()
        thread.join(timeout_s)
        atexit.unregister(self._stop_at_exit)
        with self._lock:
            self._thread = None
            self._stuck = thread.is_alive()
            if self._stuck:
                self.dropped += len(self._lines)
                self._lines, self._chars = [], 0
                return False
            self._write_all()  # what came while the thread was ending
            self._tell_drops()
        return True

    def _stop_at_exit(self) -> None:
        self.stop()

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _write_until_stopped(self, life: int) -> None:
        while self._life == life:
            self.asleep = True
            if not self._something_waits():  # what came before the flag was up woke nobody
                self._bell.wait(self._nap())
            self.asleep = False
            if not (self._lines or self._flushes) and self._life == life:
                self._bell.wait(self._linger_s)  # sources gather a batch; a line that was put, a flush and the end cut it short
            with self._lock:
                flushes, self._flushes = self._flushes, []
            self._write_all()
            if flushes or time.monotonic() >= self._next_report:
                self._tell_drops()
            for done in flushes:
                done.set()

    def _nap(self) -> float | None:
        """Return how long to sleep when nobody rings; None for ever."""
        return min(
            (s for s in (self._report_due_in(), *(source.ask_again_in() for source in self._sources)) if s is not None), default=None
        )

    def _something_waits(self) -> bool:
        return bool(self._lines or self._flushes) or any(source.waiting() for source in self._sources)

    def _write_all(self) -> None:
        with self._lock:
            lines, self._lines, self._chars = self._lines, [], 0
            sources = list(self._sources)
        for start in range(0, len(lines), LINES_AT_ONCE):
            some = lines[start : start + LINES_AT_ONCE]
            self._settle(len(some), written=self._write("".join(some)))
        for source in sources:
            for text, count in source.slices():
                source.settled(count, written=self._write(text))

    def _settle(self, lines: int, *, written: bool) -> None:
        with self._lock:
            if written:
                self.written += lines
            else:
                self.dropped += lines

    def _put_directly(self, text: str) -> bool:
        written = self._write(text)
        self._settle(1, written=written)
        return written

    # --- drops --------------------------------------------------------------------------------------------------------

    def _report_due_in(self) -> float | None:
        """Return the seconds until drops that nobody was told of may be told; None when there are none."""
        if all(kind.dropped == self._reported.get(kind.name, 0) for kind in self._kinds()):
            return None
        return max(0.0, self._next_report - time.monotonic())

    def _kinds(self) -> list[LogWriter | LineSource]:
        return [self, *self._sources]

    def _tell_drops(self) -> None:
        for kind in self._kinds():
            dropped, known = kind.dropped, self._reported.get(kind.name, 0)
            if dropped != known and self._write(self._report(kind.name, dropped - known, dropped)):
                self._reported[kind.name] = dropped
                self._next_report = time.monotonic() + self._report_every_s

    # --- the stream ---------------------------------------------------------------------------------------------------

    def _write(self, text: str) -> bool:
        """Write `text` whole; return False when the stream refused it (a closed pipe, a full disk)."""
        try:
            descriptor = self._descriptor()
            if descriptor is None:
                self._stream.write(text)
                self._stream.flush()
            else:
                _write_bytes(descriptor, text.encode(getattr(self._stream, "encoding", None) or "utf-8", "backslashreplace"))
        except (OSError, ValueError):  # ValueError: the stream was closed
            return False
        return True

    def _descriptor(self) -> int | None:
        try:
            return self._stream.fileno()
        except OSError:  # a stream in memory has none; a closed one raises ValueError
            return None


def _write_bytes(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:  # somebody made the pipe non-blocking for their own end
            waiter = select.poll()
            waiter.register(descriptor, select.POLLOUT)
            waiter.poll()
