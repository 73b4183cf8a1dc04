"""The one path of a prediction: route, decode and check, admit, item stage, batch, answer.

Sans-IO: `submit` is a plain function that may call back before it returns. It makes no task and no future; everything but
the item stage and long executions happens on the event loop's thread.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor as ThreadPool
from dataclasses import dataclass
from functools import partial
from typing import Any

from samegraph_transforms.errors import InputError, SamegraphError
from samegraph_transforms.runtime import PackageRuntime
from samegraph_transforms.signature import Row
from samegraph_transforms.wire import Decoded

from .admission import Asked
from .batching import Entry, Part, Work, cut
from .call import Answer, Call, Failure, Origin
from .clock import Loop
from .device import Device, Lane
from .errors import CallerGone, DeadlineExceeded, DeadlineTooShort, ExecutionFailed, Internal
from .experiments.assignment import unit_bytes
from .logs import get_logger
from .metrics import VersionMetrics
from .routing import Decision, Experiment, RouteTable
from .turns import NORMAL

log = get_logger("samegraph.predict")


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """One version that takes traffic.

    Attributes:
        model: Model name.
        version: Version number.
        runtime: Runs its graphs.
        lane: Its queue on the device.
        metrics: What is counted about it.
        origin: What its answers say about where they come from.
        values_per_row: How many values one answered row holds (of an open dimension: one).
        asked: What a request asks of the gate that asks for nothing in particular.
    """

    model: str
    version: int
    runtime: PackageRuntime
    lane: Lane
    metrics: VersionMetrics
    origin: Origin
    values_per_row: int
    asked: Asked


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Bounds of the time a request may take, in seconds."""

    default_s: float = 30.0
    longest_s: float = 300.0


class Predictor:
    """Runs calls. For the event loop's thread only.

    Args:
        loop: The event loop.
        device: Where batches run.
        host: Threads of the item stage.
        deadlines: Bounds of the time a request may take.
        routes: Returns the table in force.
        shadow: Called with an answered call that has shadows, and its answer.
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
        shadow: Callable[[Call, Answer], None] | None = None,
    ) -> None:
        self._shadow = shadow
        self._items_in_slots = items_in_slots
        self._loop = loop
        self._device = device
        self._host = host
        self._deadlines = deadlines
        self._routes = routes
        self._on_finish = self._finished  # bound once

    def route(self, model: str, version: int | None = None, label: str | None = None) -> Served:
        """Return what answers a call outside of any experiment; it goes on answering that call even when it is retired before.

        Raises:
            UnknownModel: The repository has no such model.
            UnknownVersion: The model has no such version or label.
            NotReady: It has, but it cannot answer now.
        """
        return self._routes().resolve(model, version, label)[1]

    def decide(self, model: str, version: int | None, label: str | None, headers: Mapping[bytes, bytes]) -> Decision[Served]:
        """Return what answers a call, as far as its head decides; it goes on answering that call even when it is retired before.

        Raises:
            UnknownModel: The repository has no such model.
            UnknownVersion: The model has no such version or label.
            NotReady: It has, but it cannot answer now.
        """
        return self._routes().decide(model, version, label, headers)

    def submit(self, served: Served, call: Call) -> None:
        """Run a call on the version `route` chose; its `on_done` is called exactly once, perhaps before this returns.

        Its reservation is released when it is answered, whatever happens.
        """
        call.served = served
        if call.heavy:
            self._host.submit(self._decode_on_host, call, served)
        else:
            started = self._loop.time()
            decoded = _decode_for(call, served) if call.undecided is None else _decode_and_decide(call, call.undecided)
            now = self._loop.time()
            if call.trace is not None:
                call.trace.span("decode", started, now)
            self._decoded(call, call.served, decoded, now - started, now)

    def fail_all(self, error: SamegraphError) -> int:
        """Answer everything unfinished with `error` (the end of a drain's grace) and return how many there were."""
        works = self._device.works()
        for work in works:
            work.fail(error)
        return len(works)

    # --- decode -------------------------------------------------------------------------------------------------------

    def _decode_on_host(self, call: Call, served: Served) -> None:
        started = self._loop.time()
        decoded = _decode(call, served)
        seconds = self._loop.time() - started
        if call.trace is not None:
            call.trace.span("decode", started, started + seconds)
        self._loop.call_soon_threadsafe(self._decoded, call, call.served, decoded, seconds, None)

    def _decoded(self, call: Call, served: Served, decoded: Decoded | SamegraphError, seconds: float, now: float | None) -> None:
        if now is None:
            now = self._loop.time()
        call.body = b""
        try:
            if call.cancelled:
                raise CallerGone("the caller hung up")
            if isinstance(decoded, SamegraphError):
                raise decoded
            rows = decoded.rows
            n = len(rows)
            errors = {} if decoded.clean else _row_errors(decoded, call.on_error == "partial")
            deadline = call.received + (self._deadlines.default_s if call.timeout_s is None else self._timeout_s(call.timeout_s, served))
            if deadline <= now:
                raise DeadlineExceeded("the deadline passed before the request was read")
            if call.reservation is not None:
                if call.priority != NORMAL or call.timeout_s is not None:
                    call.reservation.ask(None if call.timeout_s is None else deadline - now, call.priority)
                call.reservation.confirm(n, call.body_bytes)
        except SamegraphError as error:
            served.metrics.decoded(seconds)
            if served.lane.tap is not None:
                served.lane.tap.refused((error,))
            call.release()
            call.on_done(call, Failure(error, served.model, served.version))
            return
        served.metrics.decode.observe(seconds)
        Work.__init__(call, n, deadline, call.on_error == "partial", errors, self._on_finish)
        call.form = decoded.form
        if call.shadows:
            call.copied = rows
        call.running = True
        if call.assignment is not None and call.assignment.trial is not None:
            call.assignment.trial()
        lane = served.lane
        self._device.watch(lane, call)
        if served.runtime.item_plan is None and not errors and n <= lane.policy.max_batch_size:
            entry = Entry(call, 0, rows, call.body_bytes)
            call.entries.append(entry)
            self._device.put(lane, entry, now)
        else:
            self._run(call, rows)

    def deadline_of(self, call: Call) -> float:
        """Return the loop time until which a call's answer is wanted."""
        asked = self._deadlines.default_s if call.timeout_s is None else min(call.timeout_s, self._deadlines.longest_s)
        return call.received + asked

    def _timeout_s(self, asked: float, served: Served) -> float:
        """Return the caller's own deadline in seconds, within the server's bounds."""
        timeout = min(asked, self._deadlines.longest_s)
        # Not what executions take just now: refusing by that, nothing would run that could show it to be a passing moment.
        needed = served.lane.cost.fastest_s
        if timeout < needed:
            raise DeadlineTooShort(f"the deadline of {timeout:g} s is shorter than any execution of this model, at best {needed:.3g} s")
        return timeout

    # --- run ----------------------------------------------------------------------------------------------------------

    def _run(self, call: Call, rows: Sequence[Row | InputError]) -> None:
        """Send rows through the item stage, or, where there is none, cut them into batches."""
        served = call.served
        if served.runtime.item_plan is not None:
            call.rows = rows
            for index, row in enumerate(rows):
                if not isinstance(row, tuple):
                    continue
                if self._items_in_slots:
                    self._device.prepare(served.lane, partial(self._prepare, call, index), call)
                else:
                    self._host.submit(self._prepare_on_host, call, index)
            return
        bytes_each, size = call.body_bytes // len(rows), served.lane.policy.max_batch_size
        runs: Iterable[tuple[int, Sequence[Any]]]
        if call.errors:
            runs = cut([(i, row) for i, row in enumerate(rows) if isinstance(row, tuple)], size)
        else:
            runs = ((start, rows[start : start + size]) for start in range(0, len(rows), size))
        for start, items in runs:
            self._enqueue(call, Entry(call, start, items, bytes_each * len(items)))

    def _prepare(self, work: Call, index: int) -> Callable[[], None]:
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

    def _prepare_on_host(self, work: Call, index: int) -> None:
        self._loop.call_soon_threadsafe(self._prepare(work, index))

    def _prepared(self, work: Call, index: int, outcome: Any, seconds: float) -> None:
        work.served.metrics.item.observe(seconds)
        if work.trace is not None:
            now = self._loop.time()
            work.trace.span("item", now - seconds, now, **{"samegraph.instance": index})
        if isinstance(outcome, SamegraphError):
            work.waiting -= 1
            work.fail_row(index, outcome)
        elif not work.finished:
            self._enqueue(work, Entry(work, index, (outcome,), sum(getattr(a, "nbytes", 8) for a in outcome)))

    def _enqueue(self, work: Call, entry: Entry) -> None:
        work.entries.append(entry)
        self._device.put(work.served.lane, entry)

    # --- answer -------------------------------------------------------------------------------------------------------

    def _finished(self, work: Work) -> None:
        assert isinstance(work, Call)
        call, served = work, work.served
        self._device.unwatch(served.lane, call)
        call.rows = ()  # its place is given back, so what waits for a thread keeps no image of it
        if call.reservation is not None:
            call.reservation.release()
            call.reservation = None
        failed = len(call.errors)
        failure = call.failure
        if failed:
            served.metrics.failed_instances += failed
            if served.lane.tap is not None:
                served.lane.tap.refused(call.errors.values())
            if failure is None and not call.parts:
                failure = call.errors[min(call.errors)]
        parts = call.in_order()
        if failure is None and len(parts) > 1:
            failure = _mismatch(parts)
        if failure is not None:
            call.on_done(call, Failure(failure, served.model, served.version))
            return
        served.metrics.instances += call.n - failed
        name = call.request_id
        answer = Answer(served.origin, name, name, parts, call.n, call.errors, call.form, call.assignment)
        call.on_done(call, answer)
        if call.shadows and self._shadow is not None and not failed:
            self._shadow(call, answer)


def _mismatch(parts: Sequence[Part]) -> InputError | None:
    """Return why the answered rows of a call are no one answer: executions may give shapes that cannot be joined."""
    first = [array.shape[1:] for array in parts[0].outputs.arrays]
    if all([array.shape[1:] for array in part.outputs.arrays] == first for part in parts):
        return None
    return InputError(
        "the instances of this request give outputs of different shapes, which one answer cannot hold; send them in separate requests",
        code="wrong_shape",
    )


def _nothing() -> None:
    """Stand in for the result of an item nobody waits for."""


def _decode(call: Call, served: Served) -> Decoded | SamegraphError:
    if call.undecided is not None:
        return _decode_and_decide(call, call.undecided)
    return _decode_for(call, served)


def _decode_and_decide(call: Call, experiment: Experiment[Served]) -> Decoded | SamegraphError:
    """Read the unit out of the first row and let it decide what answers; the row is read by the first version that can read it."""
    unit, body, decoded = b"", call.body, None
    reader, field = experiment.candidates[0], experiment.plan.unit.field
    for candidate in experiment.candidates:
        if decoded is not None and _reads_alike(candidate, reader):
            continue
        reader, call.served, call.body = candidate, candidate, body
        decoded = _decode_for(call, candidate)
        names = candidate.runtime.signature.names
        if isinstance(decoded, Decoded) and decoded.rows and isinstance(decoded.rows[0], tuple) and field in names:
            unit = unit_bytes(decoded.rows[0][names.index(field)])
            break
    assert decoded is not None
    try:
        call.served, call.assignment = experiment.by_unit(unit) if unit else experiment.at_random(random.random(), random.random())
    except SamegraphError as error:
        return error
    if _reads_alike(call.served, reader):
        return decoded
    call.body = body  # a decoder may have replaced it by what was compressed in it
    return _decode_for(call, call.served)


def _reads_alike(one: Served, other: Served) -> bool:
    """Whether what was decoded for one version is what it would be for the other."""
    return one is other or (one.runtime.signature.fields == other.runtime.signature.fields and one.origin.outputs == other.origin.outputs)


def _decode_for(call: Call, served: Served) -> Decoded | SamegraphError:
    try:
        return call.decode(call, served.runtime.signature)
    except SamegraphError as error:
        return error
    except Exception:  # a bug in a decoder must take neither the loop nor a host thread with it
        log.exception("decode_failed", model=served.model, request=call.request_id)
        return Internal()


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
    origin = Origin(manifest.name, manifest.version, runtime.digest, manifest.outputs)
    return Served(manifest.name, manifest.version, runtime, lane, metrics, origin, values, Asked(lane))
