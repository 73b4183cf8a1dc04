"""The blocking face: `Client`, for threads (and gevent's greenlets). It sends and waits; `dispatch.py` and `many.py` decide.

Every thread in here waits on a condition of its own over one lock, and only one of them, the timekeeper, waits with a time limit: when a
pause of the gate ends, one thread wakes and lets go whoever may, instead of three hundred waking to look.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from .core import Core, Options, Prediction, feedback, taken
from .dispatch import Answer, Attempt, Call, Dispatcher, Hook
from .encoding import Wire
from .errors import TransportFailure
from .gate import Gate
from .journal import JournalFile
from .many import Job, Outcome, Progress, requested
from .policy import RetryBudget, RetryPolicy
from .report import Report
from .transport import HttpxTransport, Transport
from .video import FrameFormat, Frames

#: A thread that sends for bursts and has had nothing to do for so long ends.
_IDLE_S = 2.0
#: Closing waits so long for what is in flight; a blocking socket cannot be interrupted.
_CLOSE_S = 5.0


class Client:
    """Sends raw inputs to a model server and waits for the answers; may be shared by threads.

    Everything sent through one client shares one gate: the number of requests in flight follows what the server advertises (or learns it),
    and a refusal makes all of it wait. Make one client per server.

    Args:
        base_url: Where the server is, for example `http://127.0.0.1:8000`.
        policy: When and how long to retry; the default waits for a minute in total.
        headers: Sent with every request (an API key, say).
        wire: `auto` finds out what the server speaks; `v1` and `v2` speak that and nothing else.
        unit_header: The header that names the unit of an experiment.
        gate: The window; one of your own sets its start and its limit.
        budget: Retries without a hint that the client may make.
        hooks: Each is called with every `Event`, in whatever thread it happens; must be quick and must not use the client.
        transport: Sends the requests; closed with the client.
        clock: Monotonic seconds.
        sleep: Waits so many seconds; None waits on the condition itself, which an event can end early.
    """

    def __init__(
        self,
        base_url: str,
        *,
        policy: RetryPolicy | None = None,
        headers: Mapping[str, str] | None = None,
        wire: Wire = "auto",
        unit_header: str = "samegraph-unit",
        gate: Gate | None = None,
        budget: RetryBudget | None = None,
        hooks: Iterable[Hook] = (),
        transport: Transport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        self._core = Core(base_url, policy or RetryPolicy(), dict(headers or {}), wire, unit_header, clock)
        self._dispatcher = Dispatcher(gate or Gate(), budget or RetryBudget(), tuple(hooks), self._core.limit_asked())
        self._transport = transport or HttpxTransport()
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._own: dict[Call, _Mailbox] = {}  # calls whose caller's own thread sends them
        self._work: deque[Attempt] = deque()  # attempts of bursts
        self._idle: list[threading.Condition] = []
        self._threads: set[threading.Thread] = set()
        self._waiting: list[threading.Condition] = []
        self._readers: set[threading.Condition] = set()  # of bursts that would read on if the window were wider
        self._timekeeper: threading.Condition | None = None
        self._alarm = math.inf  # when the timekeeper wakes
        self._closed = False

    @property
    def gate(self) -> Gate:
        """The window of this client's server, to look at."""
        return self._dispatcher.gate

    def predict(
        self,
        model: str,
        raw: object,
        *,
        version: int | str | None = None,
        label: str | None = None,
        on_error: Literal["fail", "partial"] = "fail",
        headers: Mapping[str, str] | None = None,
        unit: str | None = None,
        deadline_s: float | None = None,
    ) -> Prediction:
        """Return the model's prediction for a raw input; overtakes bursts of the same client.

        Args:
            model: Name of the model.
            raw: One instance (a mapping of fields, a bare value, bytes, an array, or a path to a file), or a list of instances.
            version: Pins a version; None takes the server's default.
            label: Pins a label instead.
            on_error: `fail`: one bad instance fails the call. `partial`: it costs only its own place in the list.
            headers: Sent with this call.
            unit: Who it is about: decides the arm of an experiment.
            deadline_s: Overrides the policy's deadline for this call.

        Raises:
            RawInputInvalid: The raw input has no form on the wire; nothing was sent.
            ServerError: The server refused it for good, or kept refusing until the policy gave up.
            TransportFailure: No attempt got an answer.
            DeadlineExceeded: The deadline leaves no room for another attempt.
            AnswerNotUnderstood: The answer is not in V1's or V2's shape.
        """
        return self._run(self._core.predict(model, raw, Options(version, label, on_error, headers or {}, unit), deadline_s=deadline_s))

    def predict_many(
        self,
        model: str,
        items: Iterable[object],
        *,
        version: int | str | None = None,
        label: str | None = None,
        on_error: Literal["fail", "partial"] = "fail",
        headers: Mapping[str, str] | None = None,
        unit: str | None = None,
        ordered: bool = True,
        item_deadline_s: float | None = 600.0,
        deadline_s: float | None = None,
        journal: JournalFile | Path | str | None = None,
        progress: Progress | None = None,
    ) -> Results:
        """Return an iterator over exactly one outcome per item; the items are read as there is room to send them.

        Args:
            model: Name of the model.
            items: Raw inputs; read in the thread that iterates, and never far ahead.
            version: Pins a version.
            label: Pins a label instead.
            on_error: As in `predict`, for items that are lists.
            headers: Sent with every item.
            unit: Who all of them are about.
            ordered: Outcomes in the items' order, or else as they complete.
            item_deadline_s: Longest one item may take, waits included, from being read; None: no limit.
            deadline_s: Longest the whole burst may take; items that are left then fail with `DeadlineExceeded`. None: no limit, but a
                server that nobody has reached is waited for no longer than the policy's `wait_for_ready_s`.
            journal: A file that lets a killed process go on where it was, given the same items.
            progress: Called with the report after every outcome, in whatever thread it came in; must be quick.

        Raises:
            JournalError: The journal cannot be used.
        """
        options = Options(version, label, on_error, headers or {}, unit)
        job = self._job(model, options, ordered, item_deadline_s, deadline_s, journal, progress, {})
        return Results(self, job, iter(items))

    def predict_frames(
        self,
        model: str,
        video: Path | str,
        *,
        version: int | str | None = None,
        label: str | None = None,
        headers: Mapping[str, str] | None = None,
        unit: str | None = None,
        ordered: bool = True,
        image_format: FrameFormat = "bmp",
        jpeg_quality: int = 95,
        item_deadline_s: float | None = 600.0,
        deadline_s: float | None = None,
        journal: JournalFile | Path | str | None = None,
        progress: Progress | None = None,
    ) -> Results:
        """Return an iterator over one outcome per frame that the video's stream really decodes.

        `outcome.index` is the frame's place, `outcome.time_s` its presentation time; `results.report.stream` tells about the stream.

        Args:
            model: Name of the model.
            video: The file.
            version: Pins a version.
            label: Pins a label instead.
            headers: Sent with every frame.
            unit: Who all of them are about.
            ordered: Outcomes in the frames' order, or else as they complete.
            image_format: `bmp` and `png` send the decoded pixels unaltered, `png` in a third of the bytes and far more of
                both sides' time; `jpeg` alters them.
            jpeg_quality: 1 to 100, for `jpeg`; chroma is not subsampled.
            item_deadline_s: Longest one frame may take.
            deadline_s: Longest the whole video may take.
            journal: A file that lets a killed process go on where it was.
            progress: Called with the report after every outcome.

        Raises:
            ExtraMissing: PyAV is not installed (`samegraph-client[video]`).
            VideoUnreadable: The file holds no video that can be decoded.
            JournalError: The journal cannot be used.
        """
        options = Options(version, label, "fail", headers or {}, unit)
        frames = Frames(Path(video), image_format, jpeg_quality)
        job = self._job(model, options, ordered, item_deadline_s, deadline_s, journal, progress, frames.described())
        job.report.stream = frames.report
        frames.skip = job.is_answered
        return Results(self, job, iter(frames))

    def send_feedback(
        self,
        model: str,
        prediction_id: str,
        values: Mapping[str, bool | float] | None = None,
        *,
        label: str | float | bool | None = None,
        feedback_id: str | None = None,
        deadline_s: float | None = None,
    ) -> Mapping[str, object]:
        """Send what really happened after a prediction, and return what the server did with it (`counted`, `repeated`).

        Args:
            model: Name of the model that predicted.
            prediction_id: `Prediction.prediction_id`, or one instance of it (`id.index`).
            values: Metric → value.
            label: The true label.
            feedback_id: Yours; it comes back in the result.
            deadline_s: Overrides the policy's deadline.

        Raises:
            FeedbackRejected: The server does not take it: too late, or of no prediction of this server's, say.
            ServerError: The server takes no feedback at all.
            TransportFailure: No attempt got an answer.
            DeadlineExceeded: The deadline leaves no room for another attempt.
        """
        call = self._core.feedback(model, feedback(prediction_id, values, label, feedback_id), deadline_s)
        return taken(self._run(call).value)

    def close(self) -> None:
        """Close every connection, after what is in flight has landed (for five seconds at most)."""
        with self._lock:
            self._closed = True
            for condition in self._idle:
                condition.notify()
            threads = list(self._threads)
        patience = time.monotonic() + _CLOSE_S
        for thread in threads:
            thread.join(max(0.0, patience - time.monotonic()))
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # -- one call, sent by the caller's own thread ---------------------------------------------------------------------------------------

    def _run(self, call: Call) -> Prediction:
        call.begin()
        mailbox = _Mailbox(threading.Condition(self._lock))
        try:
            with self._lock:
                self._own[call] = mailbox
                call.on_done = lambda _call, _now: mailbox.condition.notify()
                self._dispatcher.submit(call, self._clock())
                self._pump()
            while (attempt := self._next_of(call, mailbox)) is not None:
                self._land(attempt, self._send(attempt))
        except BaseException:  # KeyboardInterrupt above all: the call is given up, and what it held in the gate is freed
            self._give_up([call])
            raise
        finally:
            with self._lock:
                self._own.pop(call, None)
        if call.error is not None:
            raise call.error
        assert call.result is not None
        return call.result

    def _next_of(self, call: Call, mailbox: _Mailbox) -> Attempt | None:
        """Wait for the call's next attempt, or for its end."""
        with self._lock:
            while mailbox.attempt is None and call.state != "done":
                self._wait(mailbox.condition)
                self._pump()
            attempt, mailbox.attempt = mailbox.attempt, None
            self._appoint()
            return attempt

    # -- bursts, sent by threads of the client's ----------------------------------------------------------------------------------------

    def _job(
        self,
        model: str,
        options: Options,
        ordered: bool,
        item_deadline_s: float | None,
        deadline_s: float | None,
        journal: JournalFile | Path | str | None,
        progress: Progress | None,
        described: Mapping[str, object],
    ) -> Job:
        opened = None if journal is None else JournalFile.of(journal).open(requested(model, options, described), self._clock)
        return Job(
            self._core,
            self._dispatcher,
            model,
            options,
            ordered=ordered,
            item_deadline_s=item_deadline_s,
            deadline_s=deadline_s,
            journal=opened,
            progress=progress,
            report=Report(),
        )

    def _worker(self) -> None:
        condition = threading.Condition(self._lock)
        while (attempt := self._next_work(condition)) is not None:
            self._land(attempt, self._send(attempt))
        with self._lock:
            self._threads.discard(threading.current_thread())

    def _next_work(self, condition: threading.Condition) -> Attempt | None:
        """Wait for something to send; None when there has been nothing for a while."""
        with self._lock:
            while True:
                while self._work:
                    attempt = self._work.popleft()
                    if attempt.call.state != "done":
                        return attempt
                    self._dispatcher.landed(attempt, None, self._clock())  # given up before it left
                if not self._rest(condition):
                    return None
                self._pump()

    def _rest(self, condition: threading.Condition) -> bool:
        """Wait for work, keeping time if nobody else does; returns whether to go on looking."""
        if self._closed:
            return False
        seconds = _IDLE_S
        if self._timekeeper is None and self._sleep is None:
            seconds = min(seconds, max(0.0, self._dispatcher.wake_at() - self._clock()))
        self._idle.append(condition)
        notified = condition.wait(seconds)
        if condition in self._idle:
            self._idle.remove(condition)
        return notified or bool(self._work) or seconds < _IDLE_S

    # -- what both share; all but `_send` and `_land` with the lock held -------------------------------------------------------------------

    def _send(self, attempt: Attempt) -> Answer | Exception:
        try:
            return self._transport.send(attempt.request, attempt.timeout_s)
        except TransportFailure as failure:
            return failure
        except Exception as error:  # noqa: BLE001 - a fault of the transport ends this call, not the thread that sends for others
            return error

    def _land(self, attempt: Attempt, reply: Answer | Exception) -> None:
        with self._lock:
            before, away = self.gate.limit, self.gate.away
            self._dispatcher.landed(attempt, reply, self._clock())
            self._pump()
            if (away or self.gate.follows_server) and self.gate.limit > before:
                for condition in self._readers:
                    condition.notify()

    def _pump(self) -> None:
        """Hand out what is due; wake the timekeeper if its time has changed."""
        for attempt in self._dispatcher.due(self._clock()):
            mailbox = self._own.get(attempt.call)
            if mailbox is not None:
                mailbox.attempt = attempt
                mailbox.condition.notify()
            else:
                self._work.append(attempt)
                if self._idle:
                    self._idle.pop().notify()
                else:
                    thread = threading.Thread(target=self._worker, name="samegraph-client", daemon=True)
                    self._threads.add(thread)
                    thread.start()
        if self._timekeeper is not None and self._dispatcher.wake_at() < self._alarm:
            self._timekeeper.notify()

    def _wait(self, condition: threading.Condition) -> None:
        """Wait to be notified; whoever finds nobody keeping time does."""
        if self._timekeeper is not None:
            self._waiting.append(condition)
            try:
                condition.wait()
            finally:
                if condition in self._waiting:
                    self._waiting.remove(condition)
            return
        self._timekeeper = condition
        try:
            self._alarm = self._dispatcher.wake_at()
            seconds = self._alarm - self._clock()
            if seconds > 0:
                self._idle_for(condition, seconds)
        finally:
            self._timekeeper = None

    def _idle_for(self, condition: threading.Condition, seconds: float) -> None:
        if self._sleep is None or seconds == math.inf:
            condition.wait(None if seconds == math.inf else min(seconds, threading.TIMEOUT_MAX))
            return
        self._lock.release()
        try:
            self._sleep(seconds)
        finally:
            self._lock.acquire()

    def _appoint(self) -> None:
        """Make sure that somebody keeps time while others wait."""
        if self._timekeeper is None and self._waiting:
            self._waiting[0].notify()

    def _give_up(self, calls: list[Call]) -> None:
        with self._lock:
            for call in calls:
                mailbox = self._own.get(call)
                handed_out = mailbox.attempt if mailbox is not None else None
                self._dispatcher.cancel(call)
                if mailbox is not None and handed_out is not None:
                    mailbox.attempt = None
                    self._dispatcher.landed(handed_out, None, self._clock())
            self._pump()
            self._appoint()


class _Mailbox:
    """Where a caller's thread finds its next attempt."""

    def __init__(self, condition: threading.Condition) -> None:
        self.condition = condition
        self.attempt: Attempt | None = None


class Results(Iterator[Outcome]):
    """The outcomes of a burst, one by one.

    Closing it, or leaving its `with`, cancels what has not been handed out.

    Attributes:
        report: What the burst is like so far; complete after the last outcome.
    """

    def __init__(self, client: Client, job: Job, items: Iterator[object]) -> None:
        self.report = job.report
        self._client, self._job, self._items = client, job, items
        self._condition = threading.Condition(client._lock)
        self._broken: Exception | None = None
        self._over = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Outcome:
        """Return the next outcome; raises what reading the items raises, after the outcomes of those that were read."""
        if self._over:
            raise StopIteration
        try:
            outcome = self._next()
        except BaseException:  # KeyboardInterrupt above all: what is on its way is given up, and what it held in the gate is freed
            self.close()
            raise
        if outcome is None:
            self.close()
            if self._broken is not None:
                raise self._broken
            raise StopIteration
        return outcome

    def _next(self) -> Outcome | None:
        client, job = self._client, self._job
        while True:
            self._fill()
            with client._lock:
                outcome = job.next_outcome()
                if outcome is not None or job.done:
                    client._appoint()
                    return outcome
                if not job.wants_item():
                    client._readers.add(self._condition)
                    try:
                        client._wait(self._condition)
                    finally:
                        client._readers.discard(self._condition)
                    client._pump()

    def _fill(self) -> None:
        """Read items while there is room for them, but no more than one while an outcome is there to be handed out."""
        client, job = self._client, self._job
        while True:
            with client._lock:
                if not job.wants_item():
                    return
            try:
                item = next(self._items)
            except StopIteration:
                job.exhausted()
                return
            except Exception as error:  # noqa: BLE001 - raised again once the items that were read have their outcomes
                self._broken = error
                job.exhausted()
                return
            with client._lock:
                call = job.add(item)
                if call is None:
                    return
                call.on_done = self._waking(call.on_done)
                client._dispatcher.submit(call, client._clock())
                client._pump()
                if job.has_outcome():
                    return

    def _waking(self, then: Callable[[Call, float], object]) -> Callable[[Call, float], object]:
        def on_done(call: Call, now: float) -> None:
            then(call, now)
            self._condition.notify()

        return on_done

    def close(self) -> None:
        """Cancel what is under way; what has been sent is answered to nobody."""
        if not self._over:
            self._over = True
            self._client._give_up(self._job.abandon())
            close_items = getattr(self._items, "close", None)
            if callable(close_items):
                close_items()
            with self._client._lock:
                self._job.close()
                self._client._appoint()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
