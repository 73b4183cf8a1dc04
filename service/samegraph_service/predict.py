"""The one path of a prediction: route, decode and check, admit, item stage, batch, answer.

Sans-IO: `submit` is a plain function that may call back before it returns. It makes no task and no future; everything but
the item stage and long executions happens on the event loop's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor as ThreadPool
from dataclasses import dataclass
from typing import Any

from samegraph_transforms.errors import InputError, SamegraphError
from samegraph_transforms.runtime import PackageRuntime
from samegraph_transforms.signature import Row
from samegraph_transforms.wire import Decoded

from .admission import Reservation
from .batching import Entry, Work, cut
from .call import Answer, Call, Failure, Loop, OnDone
from .device import Device, Lane
from .errors import CallerGone, DeadlineExceeded, DeadlineTooShort, ExecutionFailed, Internal
from .logs import get_logger
from .metrics import VersionMetrics
from .routing import RouteTable

log = get_logger("samegraph.predict")


@dataclass(frozen=True)
class Served:
    """One version that takes traffic."""

    model: str
    version: int
    runtime: PackageRuntime
    lane: Lane
    metrics: VersionMetrics


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Bounds of the time a request may take, in seconds."""

    default_s: float = 30.0
    longest_s: float = 300.0


class _Pending:
    """What has to be remembered of a call while its work runs."""

    __slots__ = ("call", "form", "on_done", "reservation", "served")

    def __init__(self, call: Call, served: Served, reservation: Reservation, on_done: OnDone, form: Any) -> None:
        self.call = call
        self.served = served
        self.reservation = reservation
        self.on_done = on_done
        self.form = form

    @property
    def request_id(self) -> str:
        return self.call.request_id


class Handle:
    """A submitted call, for its caller to cancel."""

    __slots__ = ("cancelled", "work")

    def __init__(self) -> None:
        self.work: Work | None = None
        self.cancelled = False

    def cancel(self) -> None:
        """The caller is gone: waiting rows leave their queue, running ones are ignored when they come back."""
        self.cancelled = True
        if self.work is not None:
            self.work.fail(CallerGone("the caller hung up"))


class Predictor:
    """Runs calls. For the event loop's thread only.

    Args:
        loop: The event loop.
        device: Where batches run.
        host: Threads of the item stage.
        deadlines: Bounds of the time a request may take.
        routes: Returns the table in force.
    """

    def __init__(
        self, loop: Loop, device: Device, host: ThreadPool, deadlines: Deadlines, routes: Callable[[], RouteTable[Served]]
    ) -> None:
        self._loop = loop
        self._device = device
        self._host = host
        self._deadlines = deadlines
        self._routes = routes
        self._live: set[Work] = set()

    def submit(self, call: Call, reservation: Reservation, on_done: OnDone) -> Handle:
        """Run a call; `on_done` is called exactly once, perhaps before this returns.

        The reservation is released when the call is answered, whatever happens.
        """
        handle = Handle()
        try:
            _, served = self._routes().resolve(call.model, call.version, call.label)
        except SamegraphError as error:
            self._refuse(reservation, on_done, error, None)
            return handle
        if call.heavy:
            self._host.submit(self._decode_on_host, call, served, reservation, on_done, handle)
        else:
            self._decoded(call, served, reservation, on_done, handle, *_decode(call, served))
        return handle

    def fail_all(self, error: SamegraphError) -> int:
        """Answer everything unfinished with `error` (the end of a drain's grace) and return how many there were."""
        works = list(self._live)
        for work in works:
            work.fail(error)
        return len(works)

    # --- decode -------------------------------------------------------------------------------------------------------

    def _decode_on_host(self, call: Call, served: Served, reservation: Reservation, on_done: OnDone, handle: Handle) -> None:
        result = _decode(call, served)
        self._loop.call_soon_threadsafe(self._decoded, call, served, reservation, on_done, handle, *result)

    def _decoded(
        self,
        call: Call,
        served: Served,
        reservation: Reservation,
        on_done: OnDone,
        handle: Handle,
        decoded: Decoded | SamegraphError,
        seconds: float,
    ) -> None:
        served.metrics.stages["decode"].observe(seconds)
        try:
            if handle.cancelled:
                raise CallerGone("the caller hung up")
            if isinstance(decoded, SamegraphError):
                raise decoded
            errors = _row_errors(decoded, call.on_error == "partial")
            deadline = self._deadline(call, served)
            reservation.confirm(len(decoded.rows), call.body_bytes)
        except SamegraphError as error:
            self._refuse(reservation, on_done, error, served)
            return
        self._run(_Pending(call, served, reservation, on_done, decoded.form), decoded, errors, deadline, handle)

    def _deadline(self, call: Call, served: Served) -> float:
        limits = self._deadlines
        timeout = limits.default_s if call.timeout_s is None else min(call.timeout_s, limits.longest_s)
        needed = served.lane.cost.predict_s(1)
        if call.timeout_s is not None and timeout < needed:
            raise DeadlineTooShort(f"the deadline of {timeout:g} s is shorter than one execution of this model, about {needed:.3g} s")
        deadline = call.received + timeout
        if deadline <= self._loop.time():
            raise DeadlineExceeded("the deadline passed before the request was read")
        return deadline

    # --- run ----------------------------------------------------------------------------------------------------------

    def _run(self, pending: _Pending, decoded: Decoded, errors: dict[int, SamegraphError], deadline: float, handle: Handle) -> None:
        call, served = pending.call, pending.served
        work = Work(len(decoded.rows), deadline, call.on_error == "partial", errors, self._finished)
        work.tag = pending
        handle.work = work
        self._live.add(work)
        self._device.watch(served.lane, work)
        good: list[tuple[int, Row]] = [(i, row) for i, row in enumerate(decoded.rows) if isinstance(row, tuple)]
        if served.runtime.item_plan is None:
            size = served.lane.policy.max_batch_size
            bytes_each = call.body_bytes // max(1, len(good))
            for start, rows in cut(good, size):
                self._enqueue(work, served, Entry(work, start, rows, bytes_each * len(rows)))
        else:
            for index, row in good:
                self._host.submit(self._prepare, work, served, index, row)

    def _prepare(self, work: Work, served: Served, index: int, row: Row) -> None:
        """Run the item stage of one instance (on a host thread)."""
        if work.finished or self._loop.time() > work.deadline:
            return  # answered or late: the deadline timer tells the caller, nobody needs the pixels
        started = time.perf_counter()
        outcome: Any
        try:
            outcome = served.runtime.prepare(row)
        except InputError as error:
            outcome = error.at(index)
        except Exception as error:
            log.exception("item_stage_failed", model=served.model, version=served.version, instance=index)
            outcome = ExecutionFailed(index)
            outcome.__cause__ = error
        self._loop.call_soon_threadsafe(self._prepared, work, served, index, outcome, time.perf_counter() - started)

    def _prepared(self, work: Work, served: Served, index: int, outcome: Any, seconds: float) -> None:
        served.metrics.stages["item"].observe(seconds)
        if isinstance(outcome, SamegraphError):
            work.waiting -= 1
            work.fail_row(index, outcome)
        elif not work.finished:
            self._enqueue(work, served, Entry(work, index, (outcome,), sum(getattr(a, "nbytes", 8) for a in outcome)))

    def _enqueue(self, work: Work, served: Served, entry: Entry) -> None:
        work.entries.append(entry)
        self._device.put(served.lane, entry)

    # --- answer -------------------------------------------------------------------------------------------------------

    def _finished(self, work: Work) -> None:
        pending: _Pending = work.tag
        call, served = pending.call, pending.served
        self._live.discard(work)
        self._device.unwatch(served.lane, work)
        pending.reservation.release()
        served.metrics.failed_instances += len(work.errors)
        if work.failure is None and not work.parts:
            work.failure = work.errors[min(work.errors)]
        if work.failure is not None:
            pending.on_done(Failure(work.failure, served.model, served.version))
            return
        served.metrics.instances += work.n - len(work.errors)
        pending.on_done(
            Answer(
                served.model,
                served.version,
                served.runtime.digest,
                call.request_id,
                served.runtime.manifest.outputs,
                work.outputs(),
                work.n,
                work.errors,
                pending.form,
            )
        )

    @staticmethod
    def _refuse(reservation: Reservation, on_done: OnDone, error: SamegraphError, served: Served | None) -> None:
        reservation.release()
        on_done(Failure(error, "" if served is None else served.model, None if served is None else served.version))


def _decode(call: Call, served: Served) -> tuple[Decoded | SamegraphError, float]:
    started = time.perf_counter()
    result: Decoded | SamegraphError
    try:
        result = call.decode(served.runtime.signature)
    except SamegraphError as error:
        result = error
    except Exception:
        log.exception("decode_failed", model=served.model, request=call.request_id)
        result = Internal()
    return result, time.perf_counter() - started


def _row_errors(decoded: Decoded, partial: bool) -> dict[int, SamegraphError]:
    """Return the instances that broke the signature; raise the first when it decides the request."""
    errors: dict[int, SamegraphError] = {i: row for i, row in enumerate(decoded.rows) if isinstance(row, InputError)}
    if errors and (not partial or len(errors) == len(decoded.rows)):
        raise errors[min(errors)]
    return errors
