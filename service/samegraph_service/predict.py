"""The one path of a prediction: route, decode and check, admit, item stage, batch, answer.

Sans-IO: `submit` is a plain function that may call back before it returns. It makes no task and no future; everything but
the item stage and long executions happens on the event loop's thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor as ThreadPool
from dataclasses import dataclass
from functools import partial
from typing import Any

from samegraph_transforms.errors import InputError, SamegraphError
from samegraph_transforms.manifest import Output
from samegraph_transforms.runtime import PackageRuntime
from samegraph_transforms.signature import Row, Signature
from samegraph_transforms.wire import Decoded

from .admission import Reservation
from .batching import Arrays, Entry, Work, cut
from .call import Answer, Call, Failure, Loop, OnDone
from .device import Device, Lane
from .errors import CallerGone, DeadlineExceeded, DeadlineTooShort, ExecutionFailed, Internal
from .logs import get_logger
from .metrics import VersionMetrics
from .routing import RouteTable

log = get_logger("samegraph.predict")


@dataclass(frozen=True)
class Served:
    """One version that takes traffic.

    Attributes:
        model: Model name.
        version: Version number.
        runtime: Runs its graphs.
        lane: Its queue on the device.
        metrics: What is counted about it.
        outputs: Its manifest's outputs.
        values_per_row: How many values one answered row holds (of an open dimension: one).
    """

    model: str
    version: int
    runtime: PackageRuntime
    lane: Lane
    metrics: VersionMetrics
    outputs: Sequence[Output]
    values_per_row: int


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Bounds of the time a request may take, in seconds."""

    default_s: float = 30.0
    longest_s: float = 300.0


class _CallWork(Work):
    """The work of one call, with what its answer needs."""

    __slots__ = ("call", "form", "on_done", "reservation", "rows", "served")

    def __init__(
        self,
        call: Call,
        served: Served,
        reservation: Reservation,
        on_done: OnDone,
        decoded: Decoded,
        errors: dict[int, SamegraphError],
        deadline: float,
        on_finish: Callable[[Work], None],
    ) -> None:
        super().__init__(len(decoded.rows), deadline, call.on_error == "partial", errors, on_finish)
        self.call = call
        self.served = served
        self.reservation = reservation
        self.on_done = on_done
        self.form = decoded.form
        self.rows: Sequence[Row | InputError] = ()  # what waits for the item stage

    @property
    def request_id(self) -> str:
        """The call's id, for the log."""
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
        items_in_slots: Whether the item stage runs in the device's slots (a CPU) or on the host's threads (a GPU).
    """

    def __init__(
        self,
        loop: Loop,
        device: Device,
        host: ThreadPool,
        deadlines: Deadlines,
        routes: Callable[[], RouteTable[Served]],
        *,
        items_in_slots: bool = False,
    ) -> None:
        self._items_in_slots = items_in_slots
        self._loop = loop
        self._device = device
        self._host = host
        self._deadlines = deadlines
        self._routes = routes
        self._live: set[Work] = set()

    def route(self, model: str, version: int | None = None, label: str | None = None) -> Served:
        """Return what answers a call; it goes on answering that call even when it is retired before.

        Raises:
            UnknownModel: The repository has no such model.
            UnknownVersion: The model has no such version or label.
            NotReady: It has, but it cannot answer now.
        """
        return self._routes().resolve(model, version, label)[1]

    def submit(self, served: Served, call: Call, reservation: Reservation, on_done: OnDone) -> Handle:
        """Run a call on the version `route` chose; `on_done` is called exactly once, perhaps before this returns.

        The reservation is released when the call is answered, whatever happens.
        """
        handle = Handle()
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
        served.metrics.decode.observe(seconds)
        call.decode = _decoded_already  # lets go of the body
        try:
            if handle.cancelled:
                raise CallerGone("the caller hung up")
            if isinstance(decoded, SamegraphError):
                raise decoded
            errors = _row_errors(decoded, call.on_error == "partial")
            deadline = self._deadline(call, served)
            reservation.confirm(len(decoded.rows), call.body_bytes)
        except SamegraphError as error:
            reservation.release()
            on_done(Failure(error, served.model, served.version))
            return
        work = _CallWork(call, served, reservation, on_done, decoded, errors, deadline, self._finished)
        handle.work = work
        self._run(work, decoded)

    def _deadline(self, call: Call, served: Served) -> float:
        timeout = self._deadlines.default_s
        if call.timeout_s is not None:
            timeout = min(call.timeout_s, self._deadlines.longest_s)
            # Not what executions take just now: refusing by that, nothing would run that could show it to be a passing moment.
            needed = served.lane.cost.fastest_s
            if timeout < needed:
                raise DeadlineTooShort(f"the deadline of {timeout:g} s is shorter than any execution of this model, at best {needed:.3g} s")
        deadline = call.received + timeout
        if deadline <= self._loop.time():
            raise DeadlineExceeded("the deadline passed before the request was read")
        return deadline

    # --- run ----------------------------------------------------------------------------------------------------------

    def _run(self, work: _CallWork, decoded: Decoded) -> None:
        served, rows, errors = work.served, decoded.rows, work.errors
        self._live.add(work)
        self._device.watch(served.lane, work)
        if served.runtime.item_plan is not None:
            work.rows = rows
            for index, row in enumerate(rows):
                if not isinstance(row, tuple):
                    continue
                if self._items_in_slots:
                    self._device.prepare(served.lane, partial(self._prepare, work, index))
                else:
                    self._host.submit(self._prepare_on_host, work, index)
        elif not errors and len(rows) <= served.lane.policy.max_batch_size:
            self._enqueue(work, Entry(work, 0, rows, work.call.body_bytes))
        else:
            bytes_each = work.call.body_bytes // len(rows)
            good = [(i, row) for i, row in enumerate(rows) if isinstance(row, tuple)]
            for start, items in cut(good, served.lane.policy.max_batch_size):
                self._enqueue(work, Entry(work, start, items, bytes_each * len(items)))

    def _prepare(self, work: _CallWork, index: int) -> Callable[[], None]:
        """Run the item stage of one instance, on a thread; return what to do with it on the loop."""
        rows = work.rows
        row = rows[index] if rows else None
        if not isinstance(row, tuple) or self._loop.time() > work.deadline:
            return _nothing  # answered or late: the deadline timer tells the caller, nobody needs the pixels
        started = time.perf_counter()
        served = work.served
        outcome: Any
        try:
            outcome = served.runtime.prepare(row)
        except InputError as error:
            outcome = error.at(index)
        except Exception as error:
            log.exception("item_stage_failed", model=served.model, version=served.version, instance=index)
            outcome = ExecutionFailed(index)
            outcome.__cause__ = error
        return partial(self._prepared, work, index, outcome, time.perf_counter() - started)

    def _prepare_on_host(self, work: _CallWork, index: int) -> None:
        self._loop.call_soon_threadsafe(self._prepare(work, index))

    def _prepared(self, work: _CallWork, index: int, outcome: Any, seconds: float) -> None:
        work.served.metrics.item.observe(seconds)
        if isinstance(outcome, SamegraphError):
            work.waiting -= 1
            work.fail_row(index, outcome)
        elif not work.finished:
            self._enqueue(work, Entry(work, index, (outcome,), sum(getattr(a, "nbytes", 8) for a in outcome)))

    def _enqueue(self, work: _CallWork, entry: Entry) -> None:
        work.entries.append(entry)
        self._device.put(work.served.lane, entry)

    # --- answer -------------------------------------------------------------------------------------------------------

    def _finished(self, work: Work) -> None:
        assert isinstance(work, _CallWork)
        served = work.served
        self._live.discard(work)
        self._device.unwatch(served.lane, work)
        work.rows = ()  # its place is given back, so what waits for a thread keeps no image of it
        work.reservation.release()
        failed = len(work.errors)
        failure = work.failure
        if failed:
            served.metrics.failed_instances += failed
            if failure is None and not work.parts:
                failure = work.errors[min(work.errors)]
        arrays = _joined(work) if failure is None else failure
        if isinstance(arrays, SamegraphError):
            work.on_done(Failure(arrays, served.model, served.version))
            return
        served.metrics.instances += work.n - failed
        work.on_done(
            Answer(
                served.model,
                served.version,
                served.runtime.digest,
                work.call.request_id,
                served.outputs,
                arrays,
                work.n,
                work.errors,
                work.form,
            )
        )


def _joined(work: _CallWork) -> Arrays | SamegraphError:
    """Return the answered rows of a work, or why they are no answer; an exception here would cost the rest of the batch theirs."""
    try:
        return work.outputs()
    except ValueError:
        return InputError(
            "the instances of this request give outputs of different shapes, which one answer cannot hold; send them in separate requests",
            code="wrong_shape",
        )
    except Exception:  # whatever NumPy makes of a model's outputs, the caller is answered
        log.exception("join_failed", model=work.served.model, version=work.served.version, request=work.request_id)
        return Internal()


def _decoded_already(_: Signature) -> Decoded:
    raise RuntimeError("the call was decoded already")


def _nothing() -> None:
    """Stand in for the result of an item nobody waits for."""


def _decode(call: Call, served: Served) -> tuple[Decoded | SamegraphError, float]:
    started = time.perf_counter()
    result: Decoded | SamegraphError
    try:
        result = call.decode(served.runtime.signature)
    except SamegraphError as error:
        result = error
    except Exception:  # a bug in a decoder must take neither the loop nor a host thread with it
        log.exception("decode_failed", model=served.model, request=call.request_id)
        result = Internal()
    return result, time.perf_counter() - started


def _row_errors(decoded: Decoded, partial: bool) -> dict[int, SamegraphError]:
    """Return the instances that broke the signature; raise the first when it decides the request."""
    errors: dict[int, SamegraphError] = {i: row for i, row in enumerate(decoded.rows) if not isinstance(row, tuple)}
    if errors and (not partial or len(errors) == len(decoded.rows)):
        raise errors[min(errors)]
    return errors


def served_version(runtime: PackageRuntime, lane: Lane, metrics: VersionMetrics) -> Served:
    """Put together what takes a version's traffic."""
    manifest = runtime.manifest
    values = sum(math.prod(d or 1 for d in output.shape) for output in manifest.outputs)
    return Served(manifest.name, manifest.version, runtime, lane, metrics, tuple(manifest.outputs), values)
