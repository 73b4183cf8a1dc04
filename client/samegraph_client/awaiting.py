"""The asyncio face: `AsyncClient`. It sends and awaits; `dispatch.py` and `many.py` decide, as for the blocking one."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from .core import Core, Options, Prediction, feedback, taken
from .dispatch import Answer, Attempt, Call, Dispatcher, Hook
from .encoding import Wire
from .gate import Gate
from .journal import JournalFile
from .many import Job, Outcome, Progress, requested
from .policy import RetryBudget, RetryPolicy
from .report import Report
from .transport import AsyncHttpxTransport, AsyncTransport
from .video import FrameFormat, Frames

T = TypeVar("T")


class AsyncClient:
    """The same as `Client`, to be awaited; one per server and event loop.

    Args:
        base_url: Where the server is.
        policy: When and how long to retry.
        headers: Sent with every request.
        wire: `auto` finds out what the server speaks; `v1` and `v2` speak that and nothing else.
        unit_header: The header that names the unit of an experiment.
        gate: The window; one of your own sets its start and its limit.
        budget: Retries without a hint that the client may make.
        hooks: Each is called with every `Event`; must be quick.
        transport: Sends the requests; closed with the client.
        clock: Monotonic seconds.
        sleep: Waits so many seconds.
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
        transport: AsyncTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] | None = None,
    ) -> None:
        self._core = Core(base_url, policy or RetryPolicy(), dict(headers or {}), wire, unit_header, clock)
        self._dispatcher = Dispatcher(gate or Gate(), budget or RetryBudget(), tuple(hooks), self._core.limit_asked())
        self._transport = transport or AsyncHttpxTransport()
        self._clock, self._sleep = clock, sleep or asyncio.sleep
        self._sending: dict[Call, asyncio.Task[Answer]] = {}
        self._readers: set[asyncio.Event] = set()  # of bursts that would read on if the window were wider
        self._timer: asyncio.Task[None] | None = None
        self._alarm = math.inf

    @property
    def gate(self) -> Gate:
        """The window of this client's server, to look at."""
        return self._dispatcher.gate

    async def predict(
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
        """Return the model's prediction for a raw input; arguments and errors are those of `Client.predict`.

        Cancelling the call cancels it: a cancellation is never retried.
        """
        return await self._run(
            self._core.predict(model, raw, Options(version, label, on_error, headers or {}, unit), deadline_s=deadline_s)
        )

    def predict_many(
        self,
        model: str,
        items: Iterable[object] | AsyncIterable[object],
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
    ) -> AsyncResults:
        """Return an async iterator over exactly one outcome per item; arguments and errors are those of `Client.predict_many`.

        The items may come from an async iterable, whose slowness then holds up no outcome.
        """
        options = Options(version, label, on_error, headers or {}, unit)
        job = self._job(model, options, ordered, item_deadline_s, deadline_s, journal, progress, {})
        return AsyncResults(self, job, items)

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
    ) -> AsyncResults:
        """Return an async iterator over one outcome per frame; arguments and errors are those of `Client.predict_frames`.

        Frames are decoded and encoded in a thread, one at a time.
        """
        options = Options(version, label, "fail", headers or {}, unit)
        frames = Frames(Path(video), image_format, jpeg_quality)
        job = self._job(model, options, ordered, item_deadline_s, deadline_s, journal, progress, frames.described())
        job.report.stream = frames.report
        frames.skip = job.is_answered
        return AsyncResults(self, job, _in_a_thread(iter(frames)))

    async def send_feedback(
        self,
        model: str,
        prediction_id: str,
        values: Mapping[str, bool | float] | None = None,
        *,
        label: str | float | bool | None = None,
        feedback_id: str | None = None,
        deadline_s: float | None = None,
    ) -> Mapping[str, object]:
        """Send what really happened after a prediction; arguments and errors are those of `Client.send_feedback`."""
        call = self._core.feedback(model, feedback(prediction_id, values, label, feedback_id), deadline_s)
        return taken((await self._run(call)).value)

    async def close(self) -> None:
        """Give up what is under way and close every connection."""
        self._dispatcher.shut(self._clock(), RuntimeError("the client was closed"))
        tasks: list[asyncio.Task[Any]] = [*self._sending.values(), *([self._timer] if self._timer else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    # -- inside ------------------------------------------------------------------------------------------------------------------------

    async def _run(self, call: Call) -> Prediction:
        call.begin()
        ended = asyncio.get_running_loop().create_future()
        call.on_done = lambda _call, _now: None if ended.done() else ended.set_result(None)
        self._submit(call)
        try:
            await ended
        except asyncio.CancelledError:
            self._give_up([call])
            raise
        if call.error is not None:
            raise call.error
        assert call.result is not None
        return call.result

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

    def _submit(self, call: Call) -> None:
        self._dispatcher.submit(call, self._clock())
        self._pump()

    def _give_up(self, calls: list[Call]) -> None:
        for call in calls:
            self._dispatcher.cancel(call)
            task = self._sending.get(call)
            if task is not None:
                task.cancel()
        self._pump()

    def _pump(self) -> None:
        """Send what is due, and set the timer for the rest."""
        for attempt in self._dispatcher.due(self._clock()):
            self._send(attempt)
        wake_at = self._dispatcher.wake_at()
        if wake_at < self._alarm:
            if self._timer is not None:
                self._timer.cancel()
            self._alarm = wake_at
            self._timer = asyncio.ensure_future(self._wake(wake_at))

    async def _wake(self, at: float) -> None:
        await self._sleep(max(0.0, at - self._clock()))
        self._alarm, self._timer = math.inf, None
        self._pump()

    def _send(self, attempt: Attempt) -> None:
        task = asyncio.ensure_future(self._transport.send(attempt.request, attempt.timeout_s))
        self._sending[attempt.call] = task
        task.add_done_callback(lambda task: self._landed(attempt, task))

    def _landed(self, attempt: Attempt, task: asyncio.Task[Answer]) -> None:
        """Take note of an attempt's end; a fault of the transport ends its call, whose caller gets it."""
        if self._sending.get(attempt.call) is task:
            del self._sending[attempt.call]
        reply: Answer | Exception | None
        if task.cancelled():
            reply = None if attempt.call.state == "done" else RuntimeError("the client was closed")
        else:
            error = task.exception()
            reply = error if isinstance(error, Exception) else None if error is not None else task.result()
        before, away = self.gate.limit, self.gate.away
        self._dispatcher.landed(attempt, reply, self._clock())
        self._pump()
        if (away or self.gate.follows_server) and self.gate.limit > before:
            for changed in self._readers:
                changed.set()


class AsyncResults(AsyncIterator[Outcome]):
    """The outcomes of a burst, one by one.

    Closing it, or leaving its `async with`, cancels what has not been handed out.

    Attributes:
        report: What the burst is like so far; complete after the last outcome.
    """

    def __init__(self, client: AsyncClient, job: Job, items: Iterable[object] | AsyncIterable[object]) -> None:
        self.report = job.report
        self._client, self._job = client, job
        self._later = aiter(items) if isinstance(items, AsyncIterable) else None
        self._now = iter(items) if not isinstance(items, AsyncIterable) else None
        self._reading: asyncio.Task[object] | None = None
        self._changed = asyncio.Event()
        self._broken: Exception | None = None
        self._over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome:
        """Return the next outcome; raises what reading the items raises, after the outcomes of those that were read."""
        if self._over:
            raise StopAsyncIteration
        try:
            outcome = await self._next()
        except BaseException:  # cancelled above all: what is on its way is given up, and what it held in the gate is freed
            await self.close()
            raise
        if outcome is None:
            await self.close()
            if self._broken is not None:
                raise self._broken
            raise StopAsyncIteration
        return outcome

    async def _next(self) -> Outcome | None:
        while True:
            self._fill()
            outcome = self._job.next_outcome()
            if outcome is not None or self._job.done:
                return outcome
            self._changed.clear()
            self._client._readers.add(self._changed)
            try:
                await self._changed.wait()
            finally:
                self._client._readers.discard(self._changed)

    def _fill(self) -> None:
        """Read items while there is room for them."""
        while self._reading is None and self._job.wants_item():
            if self._later is not None:
                self._reading = asyncio.ensure_future(anext(self._later))
                self._reading.add_done_callback(self._read)
                return
            assert self._now is not None
            try:
                item = next(self._now)
            except StopIteration:
                self._job.exhausted()
            except Exception as error:  # noqa: BLE001 - raised again once the items that were read have their outcomes
                self._end_items(error)
            else:
                self._add(item)

    def _read(self, task: asyncio.Task[object]) -> None:
        """Take what the async iterable gave."""
        self._reading = None
        if not task.cancelled() and not self._over:
            error = task.exception()
            if error is None:
                self._add(task.result())
            else:
                self._end_items(None if isinstance(error, StopAsyncIteration) else error)
        self._changed.set()

    def _end_items(self, error: BaseException | None) -> None:
        self._broken = error if isinstance(error, Exception) else None
        self._job.exhausted()

    def _add(self, item: object) -> None:
        try:
            call = self._job.add(item)
        except Exception as error:  # noqa: BLE001 - as when reading fails
            self._end_items(error)
            return
        if call is not None:
            ended = call.on_done

            def on_done(call: Call, now: float) -> None:
                ended(call, now)
                self._changed.set()

            call.on_done = on_done
            self._client._submit(call)

    async def close(self) -> None:
        """Cancel what is under way; what has been sent is answered to nobody."""
        if self._over:
            return
        self._over = True
        self._client._give_up(self._job.abandon())
        self._job.close()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        close_items = getattr(self._later, "aclose", None) or getattr(self._now, "close", None)
        if callable(close_items):
            closing = close_items()
            if closing is not None:
                await closing

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _in_a_thread(items: Iterator[T]) -> AsyncIterator[T]:
    """Read a blocking iterator one item at a time, each in a thread."""
    end = object()
    while True:
        item = await asyncio.to_thread(next, items, end)
        if item is end:
            return
        yield item  # type: ignore[misc]
