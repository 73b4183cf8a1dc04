"""Many items through one gate, sans-IO: which item is read next, exactly one outcome for each, in which order they come out, the journal.

A face reads items while `wants_item`, hands each to `add`, submits the call it gets back, and passes on what `next_outcome` returns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from .core import Core, InstanceError, Options, Prediction
from .dispatch import BATCH, Call, Dispatcher
from .encoding import fingerprint
from .errors import DeadlineExceeded, JournalError, Unreachable
from .report import Report

#: Outcomes that may wait for an earlier item in ordered results. They are predictions; the items' bodies are gone by then.
MOST_HELD = 1024
#: Items read ahead of the window, so that a free place is never waited for.
READ_AHEAD = 4


class Journal(Protocol):
    """What is asked of a journal (`journal.py`)."""

    answers: dict[int, dict[str, Any]]

    def key(self, index: int) -> str:
        """Return the idempotency key of an item."""
        ...

    def sending(self, index: int, fingerprint: str) -> None:
        """Note that an item is about to be sent."""
        ...

    def answered(self, index: int, answer: Mapping[str, object]) -> None:
        """Note an item's answer."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


@dataclass(frozen=True)
class Frame:
    """One frame of a video as it is sent.

    Attributes:
        index: Its place among the frames the stream really decodes, from 0.
        time_s: Its presentation time in seconds; None when the stream gives none.
        content: The encoded image.
        corrupt: Whether the decoder says the picture is damaged.
    """

    index: int
    time_s: float | None
    content: bytes
    corrupt: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of one item: a prediction or an error, never both and never neither.

    Attributes:
        index: The item's place in what was given, from 0.
        prediction: The server's answer; None when there is an error.
        error: Why there is none; None when there is.
        attempts: Times it was sent (in this run).
        refusals: Refusals with a hint among them.
        waited_s: Seconds between its attempts.
        queued_s: Seconds it waited for the gate before the first.
        elapsed_s: From being read to its end.
        replayed: Whether it was answered in an earlier run, and taken from the journal.
        time_s: Of a video frame, its presentation time in seconds.
        corrupt: Of a video frame, whether the decoder says the picture is damaged.
    """

    index: int
    prediction: Prediction | None = None
    error: Exception | None = None
    attempts: int = 0
    refusals: int = 0
    waited_s: float = 0.0
    queued_s: float = 0.0
    elapsed_s: float = 0.0
    replayed: bool = False
    time_s: float | None = None
    corrupt: bool = False

    @property
    def ok(self) -> bool:
        """Whether there is a prediction."""
        return self.error is None

    @property
    def value(self) -> object:
        """The prediction's value; raises the error when there is one."""
        if self.error is not None:
            raise self.error
        assert self.prediction is not None
        return self.prediction.value


Progress = Callable[[Report], None]


class Job:
    """One burst.

    Args:
        core: How the server is spoken to.
        dispatcher: Where the calls go.
        model: Name of the model.
        options: How it is asked.
        ordered: Whether outcomes come out in the items' order, or as they complete.
        item_deadline_s: Longest an item may take, from being read.
        deadline_s: Longest the burst may take as a whole.
        journal: Makes it resumable.
        progress: Called with the report after every outcome.
        report: Counts up.
    """

    def __init__(
        self,
        core: Core,
        dispatcher: Dispatcher,
        model: str,
        options: Options,
        *,
        ordered: bool,
        item_deadline_s: float | None,
        deadline_s: float | None,
        journal: Journal | None,
        progress: Progress | None,
        report: Report,
    ) -> None:
        for name, value in (("item_deadline_s", item_deadline_s), ("deadline_s", deadline_s)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be > 0 seconds or None, got {value}")
        self.report = report
        self._core, self._dispatcher, self._model, self._options = core, dispatcher, model, options
        self._ordered, self._journal, self._progress = ordered, journal, progress
        self._item_deadline_s = item_deadline_s
        self._started = core.clock()
        self._deadline = None if deadline_s is None else self._started + deadline_s
        self._first_sent: float | None = None
        self._pauses_before = dispatcher.gate.pauses
        absence = dispatcher.absence
        self._absence_before = absence.times - dispatcher.gate.away, absence.probes, absence.total_s(self._started)
        self._unreached: Unreachable | None = None
        self._running: dict[int, Call] = {}
        self._finished: dict[int, Outcome] = {}
        self._completed: deque[int] = deque()
        self._next_in = self._next_out = 0
        self._exhausted = False
        self._failure: Exception | None = None

    @property
    def done(self) -> bool:
        """Whether every item has been read and every outcome handed out."""
        return self._exhausted and not self._running and not self._finished

    def wants_item(self) -> bool:
        """Whether another item should be read: few enough are under way, and few enough outcomes wait for an earlier one."""
        if self._exhausted or len(self._finished) >= MOST_HELD:
            return False
        limit = self._dispatcher.gate.limit
        return len(self._running) < limit + READ_AHEAD or self._all_delayed(limit)

    def add(self, item: object) -> Call | None:
        """Take the next item, and return the call to submit; None when it needs none.

        Raises:
            JournalError: The journal cannot take it; the burst is over.
        """
        index = self._next_in
        self._next_in += 1
        self.report.items += 1
        frame = item if isinstance(item, Frame) else None
        answer = self._journal.answers.pop(index, None) if self._journal else None
        if answer is not None:
            self._put(_replayed(index, answer, frame))
            return None
        raw = frame.content if frame is not None else item
        remaining_s = self._remaining_s()
        if remaining_s is not None and remaining_s <= 0:
            away = self._dispatcher.absence.last
            why = "" if away is None else f"; the server could not be reached: {away}"
            late = DeadlineExceeded(f"the burst's deadline passed before the item was sent{why}", last=away)
            self._put(_outcome(index, frame, error=late))
            return None
        if self._unreached is not None:
            error = Unreachable(str(self._unreached))
            error.waited_s = self._unreached.waited_s
            self._put(_outcome(index, frame, error=error))
            return None
        try:
            if self._journal is not None:
                self._journal.sending(index, fingerprint(raw))
            return self._call(index, raw, frame, remaining_s)
        except JournalError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever is wrong with an item is that item's outcome
            self._put(_outcome(index, frame, error=error))
            return None

    def is_answered(self, index: int) -> bool:
        """Whether the journal has this item's answer, so that it need not even be encoded."""
        return self._journal is not None and index in self._journal.answers

    def exhausted(self) -> None:
        """Note that there are no more items."""
        self._exhausted = True

    def has_outcome(self) -> bool:
        """Whether there is an outcome to hand out, or a failure to raise."""
        return self._failure is not None or (self._next_out in self._finished if self._ordered else bool(self._completed))

    def next_outcome(self) -> Outcome | None:
        """Return the next outcome to hand out, if it is there.

        Raises:
            JournalError: An answer could not be noted.
        """
        if self._failure is not None:
            raise self._failure
        if not self._finished:
            return None
        index = self._next_out if self._ordered else self._completed.popleft()
        outcome = self._finished.pop(index, None)
        if outcome is not None:
            self._next_out += 1
        return outcome

    def abandon(self) -> list[Call]:
        """Give the burst up: return the calls to cancel."""
        calls = list(self._running.values())
        self._running.clear()
        self._exhausted = True
        return calls

    def close(self) -> None:
        """Let go of the journal."""
        if self._journal is not None:
            self._journal.close()

    def _all_delayed(self, limit: int) -> bool:
        """Whether what is under way waits for its hints, so that the window would stay empty; at most two windows are read ahead."""
        if len(self._running) >= 2 * limit + READ_AHEAD:
            return False
        return sum(call.state == "waiting" and call.tries.attempts > 0 for call in self._running.values()) > READ_AHEAD

    def _remaining_s(self) -> float | None:
        left = None if self._deadline is None else self._deadline - self._core.clock()
        limits = [limit for limit in (left, self._item_deadline_s) if limit is not None]
        return min(limits) if limits else None

    def _call(self, index: int, raw: object, frame: Frame | None, deadline_s: float | None) -> Call:
        key = self._journal.key(index) if self._journal is not None else None
        call = self._core.predict(
            self._model,
            raw,
            self._options,
            key=key,
            deadline_s=float("inf") if deadline_s is None else deadline_s,
            priority=BATCH,
            patient=True,
        )
        self._first_sent = call.tries.started if self._first_sent is None else self._first_sent
        patience_s = self._core.policy.wait_for_ready_s
        if self._deadline is None and patience_s is not None:
            call.ready_within_s, call.waits_from = patience_s, self._first_sent
        note = None if frame is None else replace(frame, content=b"")  # the picture itself is in the request; it need not live longer
        call.on_done = lambda call, now: self._ended(index, note, call, now)
        call.begin()
        self._running[index] = call
        return call

    def _ended(self, index: int, frame: Frame | None, call: Call, now: float) -> None:
        self._running.pop(index, None)
        tries = call.tries
        if isinstance(call.error, Unreachable) and call.error.waited_s is not None:
            self._unreached = call.error  # what is not read yet would only wait for the same server again
        outcome = replace(
            _outcome(index, frame, call.result, call.error),
            attempts=tries.attempts,
            refusals=tries.refusals,
            waited_s=tries.waited_s,
            queued_s=tries.queued_s,
            elapsed_s=now - tries.started,
        )
        if self._journal is not None and call.result is not None:
            try:
                self._journal.answered(index, _answer(call.result))
            except JournalError as error:
                self._failure = error
        self.report.sent += tries.attempts > 0
        self.report.attempts += tries.attempts
        self.report.refusals += tries.refusals
        self.report.retries += max(0, tries.attempts - 1)
        self.report.waited_s += tries.waited_s
        self.report.queued_s += tries.queued_s
        self.report.hint_returns += tries.hint_returns
        self.report.hint_hits += tries.hint_hits
        self.report.hint_error_s += tries.hint_error_s
        if call.error is None:
            self.report.finished_at(now)
        self._put(outcome)

    def _put(self, outcome: Outcome) -> None:
        report = self.report
        report.answered += outcome.ok
        report.failed += not outcome.ok
        report.replayed += outcome.replayed
        if outcome.error is not None:
            name = type(outcome.error).__name__
            report.errors[name] = report.errors.get(name, 0) + 1
        report.makespan_s = self._core.clock() - self._started
        report.gate_pauses = self._dispatcher.gate.pauses - self._pauses_before
        self._count_absence(report)
        self._finished[outcome.index] = outcome
        if not self._ordered:
            self._completed.append(outcome.index)
        if self._progress is not None:
            self._progress(report)

    def _count_absence(self, report: Report) -> None:
        absence, (times, probes, total_s) = self._dispatcher.absence, self._absence_before
        report.unreachable_waits = absence.times - times
        report.readiness_probes = absence.probes - probes
        report.unreachable_s = absence.total_s(self._core.clock()) - total_s


def requested(model: str, options: Options, described: Mapping[str, object]) -> dict[str, object]:
    """Return what tells one burst from another in a journal: what is asked of which model, and about what, as far as that is known."""
    version = None if options.version is None else str(options.version)
    asked = {"model": model, "version": version, "label": options.label, "on_error": options.on_error, "unit": options.unit}
    return {name: value for name, value in {**asked, **described}.items() if value is not None}


def _outcome(index: int, frame: Frame | None, prediction: Prediction | None = None, error: Exception | None = None) -> Outcome:
    if frame is None:
        return Outcome(index, prediction, error)
    return Outcome(index, prediction, error, time_s=frame.time_s, corrupt=frame.corrupt)


_KEPT = ("model", "version", "package_digest", "arm", "experiment", "prediction_id", "request_id")


def _answer(prediction: Prediction) -> dict[str, object]:
    """Return what the journal keeps of a prediction."""
    kept = {name: getattr(prediction, name) for name in _KEPT if getattr(prediction, name) is not None}
    failed = [[e.instance, e.code, e.field, e.error, e.retryable] for e in prediction.errors]
    return {"predictions": prediction.predictions, "single": prediction.single, **kept, **({"errors": failed} if failed else {})}


def _replayed(index: int, answer: Mapping[str, Any], frame: Frame | None) -> Outcome:
    errors = tuple(InstanceError(*fields) for fields in answer.get("errors", ()))
    known: dict[str, Any] = {name: answer.get(name) for name in _KEPT}
    prediction = Prediction(predictions=answer["predictions"], single=answer["single"], errors=errors, attempts=0, **known)
    return replace(_outcome(index, frame, prediction), replayed=True)
