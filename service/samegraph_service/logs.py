"""Structured logs: one line per event, and an access log that costs a request next to nothing.

A log call names an *event* and gives *fields*; the sentence is for documents, not for logs:

    log = get_logger("samegraph.repository")
    log.info("version_ready", model="penguins", version=3, seconds=1.2)

Everything goes through the standard library's logging, so uvicorn, asyncio and third-party libraries end up in the same
stream and shape. Two looks exist: `json` (one object a line, ASCII only, so no client can smuggle a line break or a
terminal escape into the log) and `console` for people.

Nobody waits for the stream: lines go through the one thread of `log_writer.py`. The access log is apart only in that its lines are made
ten times as fast, and wait in a queue of their own.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any, Literal, Protocol, TextIO, TypeAlias

from .log_writer import PATIENCE_S, LogWriter

LogFormat: TypeAlias = Literal["json", "console", "auto"]
Event: TypeAlias = dict[str, Any]

#: The id of the request being served, bound once at the edge; every event logged below it carries the id.
request_id: ContextVar[str | None] = ContextVar("samegraph_request_id", default=None)

#: Keys that a field may not take over; a field of that name is written with an underscore behind it.
RESERVED_KEYS = frozenset({"time", "level", "event", "logger", "exception", "stack"})
LEVELS: tuple[str, ...] = ("debug", "info", "warning", "error", "critical")

_FIELDS = "samegraph_fields"
_STANDARD_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message", _FIELDS}
#: uvicorn calls its ordinary messages `uvicorn.error`, which reads like a fault; asgi and access are its own tracing.
_LOGGER_NAMES = {"uvicorn.error": "uvicorn"}
_UVICORN_LOGGERS = ("uvicorn", "uvicorn.error", "uvicorn.asgi", "uvicorn.access")


@contextmanager
def bind_request_id(value: str) -> Iterator[None]:
    """Give every event logged inside the block, in this task or thread, the request id `value`."""
    token = request_id.set(value)
    try:
        yield
    finally:
        request_id.reset(token)


class EventLogger:
    """Logs named events with fields, on top of one standard logger.

    A field whose name is reserved (time, level, event, logger, exception, stack) is written with a trailing underscore.
    A field whose value JSON cannot hold is written as text; logging never raises for it.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, event: str, **fields: object) -> None:
        """Log what only a person chasing a fault wants to see."""
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Log something that happened as it should."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, *, exc_info: BaseException | None = None, **fields: object) -> None:
        """Log something that the operator may want to change."""
        self._log(logging.WARNING, event, fields, exc_info)

    def error(self, event: str, *, exc_info: BaseException | None = None, **fields: object) -> None:
        """Log something that failed."""
        self._log(logging.ERROR, event, fields, exc_info)

    def exception(self, event: str, **fields: object) -> None:
        """Log something that failed, with the exception being handled."""
        self._log(logging.ERROR, event, fields, sys.exception())

    def _log(self, level: int, event: str, fields: Mapping[str, object], exc_info: BaseException | None = None) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, extra={_FIELDS: fields}, exc_info=exc_info, stacklevel=3)


def get_logger(name: str) -> EventLogger:
    """Return the event logger called `name`; use `samegraph.<module>`."""
    return EventLogger(logging.getLogger(name))


@lru_cache(maxsize=4)
def _whole_second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def rfc3339(time_s: float) -> str:
    """Write a time stamp (seconds since the epoch) in UTC with microseconds, as `2026-01-31T12:00:00.000000Z`."""
    second, micros = divmod(round(time_s * 1_000_000), 1_000_000)
    return f"{_whole_second(second)}.{micros:06d}Z"


# --- from a log record to an event ---------------------------------------------------------------------------------


def _exception_document(error: BaseException) -> dict[str, str]:
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    text = "".join(traceback.format_exception(error))
    return {"type": name, "message": _text_of(error), "traceback": text.rstrip("\n")}


def _fields_of(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    yield from getattr(record, _FIELDS, {}).items()
    for name, value in vars(record).items():  # what a third party passed as `extra`
        if name not in _STANDARD_ATTRIBUTES and not name.startswith("_"):
            yield name, value


def event_of(record: logging.LogRecord) -> Event:
    """Turn a log record, ours or a third party's, into the event that is written."""
    event: Event = {
        "time": rfc3339(record.created),
        "level": record.levelname.lower(),
        "event": record.getMessage().strip(),
        "logger": _LOGGER_NAMES.get(record.name, record.name),
    }
    bound = request_id.get()
    if bound is not None:
        event["request_id"] = bound
    for name, value in _fields_of(record):
        event[f"{name}_" if name in RESERVED_KEYS else name] = value
    if record.exc_info and record.exc_info[1] is not None:
        event["exception"] = _exception_document(record.exc_info[1])
    if record.stack_info:
        event["stack"] = record.stack_info
    return event


# --- from an event to a line ---------------------------------------------------------------------------------------


def _text_of(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - a broken __str__ must not cost the event
        return f"<unprintable {type(value).__qualname__}>"


def _stand_in(value: object) -> object:
    return list(value) if isinstance(value, set | frozenset) else _text_of(value)


_encode = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"), default=_stand_in).encode


def _plain(value: object, depth: int = 0) -> object:
    """Return `value` as JSON can hold it: NaN and infinities null, odd keys as text, no endless nesting."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if depth < 8 and isinstance(value, Mapping):
        return {_text_of(k): _plain(v, depth + 1) for k, v in value.items()}
    if depth < 8 and isinstance(value, list | tuple | set | frozenset):
        return [_plain(v, depth + 1) for v in value]
    return _text_of(value)


def json_line(event: Event) -> str:
    """Write `event` as one line of ASCII JSON."""
    try:
        return _encode(event) + "\n"
    except (TypeError, ValueError, RecursionError):
        return _encode(_plain(event)) + "\n"


def _printable(text: str, keep: str = "") -> str:
    """Return `text` with control and other unprintable characters escaped, except those in `keep`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape", "backslashreplace").decode("ascii") for c in text)


def _console_value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):
        plain = value != "" and value.isprintable() and not any(c in ' ="' for c in value)
        return value if plain else json.dumps(value)
    return _printable(_text_of(value))


_DIM, _BOLD, _RESET = "\x1b[2m", "\x1b[1m", "\x1b[0m"
_LEVEL_COLOURS = {"debug": "\x1b[2m", "info": "\x1b[32m", "warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[1;31m"}


def console_line(event: Event, *, colour: bool = False) -> str:
    """Write `event` for a person: time, level, event, fields, logger; an exception's traceback on lines of its own."""

    def paint(code: str, text: str) -> str:
        return f"{code}{text}{_RESET}" if colour else text

    rest = {k: v for k, v in event.items() if k not in RESERVED_KEYS}
    clock, level = event["time"][11:23] + "Z", event["level"]
    line = f"{paint(_DIM, clock)} {paint(_LEVEL_COLOURS.get(level, ''), f'{level:<8}')} {paint(_BOLD, _printable(event['event']))}"
    line += "".join(f" {paint(_DIM, _printable(k) + '=')}{_console_value(v)}" for k, v in rest.items())
    line += paint(_DIM, f"  ({event['logger']})")
    for extra in (event.get("exception", {}).get("traceback"), event.get("stack")):
        if extra:
            line += "\n    " + _printable(extra, keep="\n\t").replace("\n", "\n    ")
    return line + "\n"


class LogOutput(LogWriter):
    """Where lines go and how they look; shared by the log handler and the access log, so that lines never mix.

    Args:
        stream: Where lines go.
        render: How an event looks.
        **bounds: Those of `LogWriter`.
    """

    def __init__(self, stream: TextIO, render: Callable[[Event], str], **bounds: float) -> None:
        super().__init__(stream, self._drops_line, **bounds)  # type: ignore[arg-type]
        self.render = render

    def _drops_line(self, kind: str, lines: int, total: int) -> str:
        event = {"time": rfc3339(time.time()), "level": "warning", "event": f"{kind}_dropped", "logger": "samegraph.logs"}
        return self.render({**event, "records": lines, "total": total})


class _EventHandler(logging.Handler):
    def __init__(self, output: LogOutput) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._output.put(self._output.render(event_of(record)))
        except Exception as error:  # noqa: BLE001 - for example a third party's format string that does not fit its arguments
            self._output.put(self._output.render(_unreadable(record, error)))


def _unreadable(record: logging.LogRecord, error: Exception) -> Event:
    """Tell of a record that cannot be written; the library's own way is a traceback straight to standard error, whoever waits for it."""
    return {
        "time": rfc3339(record.created),
        "level": "error",
        "event": "log_record_unreadable",
        "logger": record.name,
        "message": _text_of(record.msg),
        "reason": f"{type(error).__name__}: {_text_of(error)}",
    }


def _renderer(log_format: LogFormat, stream: TextIO) -> Callable[[Event], str]:
    terminal = stream.isatty()
    if log_format == "json" or (log_format == "auto" and not terminal):
        return json_line
    colour = terminal and "NO_COLOR" not in os.environ
    return lambda event: console_line(event, colour=colour)


def configure_logging(log_format: LogFormat = "auto", *, level: str = "info", stream: TextIO | None = None) -> LogOutput:
    """Send every log record of the process to `stream`, in one shape.

    Call it once, in the composition root, and start uvicorn with `log_config=None` and `access_log=False`. Calling it
    again replaces what the call before installed.

    Args:
        log_format: `json`, `console`, or `auto`: console when the stream is a terminal, else JSON.
        level: Least level that is written: debug, info, warning, error or critical.
        stream: Where lines go; standard error by default.

    Returns:
        The output, to be given to `AccessLog`.

    Raises:
        ValueError: The format or the level is not one of those listed.
    """
    if log_format not in ("json", "console", "auto"):
        raise ValueError(f"log format must be one of json, console, auto; got {log_format!r}")
    if level not in LEVELS:
        raise ValueError(f"log level must be one of {', '.join(LEVELS)}; got {level!r}")
    remove_logging()
    stream = sys.stderr if stream is None else stream
    output = LogOutput(stream, _renderer(log_format, stream))
    root = logging.getLogger()
    root.addHandler(_EventHandler(output))
    root.setLevel(level.upper())
    for name in _UVICORN_LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.disabled = name == "uvicorn.access"  # ours says more and blocks nobody
    logging.captureWarnings(True)
    return output


def remove_logging() -> None:
    """Undo `configure_logging`; harmless when it was never called."""
    root = logging.getLogger()
    ours = [h for h in root.handlers if isinstance(h, _EventHandler)]
    for handler in ours:
        root.removeHandler(handler)
    if ours:
        logging.captureWarnings(False)
        root.setLevel(logging.WARNING)
        logging.getLogger("uvicorn.access").disabled = False


@contextmanager
def report_crashes() -> Iterator[None]:
    """While the block runs, log what nobody caught in a thread or a finalizer.

    Python would write it to standard error itself, on the thread it happened on, and wait there for whoever reads.
    """
    log = get_logger("samegraph.crash")
    before = threading.excepthook, sys.unraisablehook

    def in_thread(crash: threading.ExceptHookArgs) -> None:
        if crash.exc_type is not SystemExit:
            log.error("thread_crashed", exc_info=crash.exc_value, thread=crash.thread.name if crash.thread else "")

    def in_finalizer(crash: sys.UnraisableHookArgs) -> None:
        log.error("exception_ignored", exc_info=crash.exc_value, where=_text_of(crash.object), reason=crash.err_msg or "")

    threading.excepthook, sys.unraisablehook = in_thread, in_finalizer
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = before


# --- the access log ------------------------------------------------------------------------------------------------

#: Longest path that is written; a longer one is cut.
MAX_PATH = 1024
#: Time over which the rate of answers is measured, in seconds; the end of it is not waited for once there are more than belong in it.
LOOK_S = 1.0
#: Least time between the first and the last of them that says anything about a rate, in seconds.
MIN_LOOK_S = 0.02
#: Time between two looks whether a rush is over, in seconds.
LOOK_AGAIN_S = 0.5
#: Lines handed to the system in one call.
_SLICE = 256
#: What many records have in common: method, path, status, client, model, version, instances, code, experiment, arm, unassigned.
_Facts: TypeAlias = tuple[str, str, int, str, str, int, int, str, str, str, str]
#: What a line has of them: before the duration, between request id and bytes received, and behind the bytes sent.
_Parts: TypeAlias = tuple[str, str, str]


class Recorder(Protocol):
    """Notes one answered request; never blocks and never raises."""

    def __call__(
        self,
        method: str,
        path: str,
        status: int,
        duration_s: float,
        request_id: str = "",
        client: str = "",
        request_bytes: int = 0,
        response_bytes: int = 0,
        model: str = "",
        version: int = 0,
        instances: int = 0,
        code: str = "",
        experiment: str = "",
        arm: str = "",
        unassigned: str = "",
    ) -> None:
        """Note one answered request.

        Args:
            method: HTTP method.
            path: Path without the query, which may hold what nobody wants in a log.
            status: Status of the answer.
            duration_s: From the first byte of the request to the last of the answer, in seconds.
            request_id: Id of the request; empty when it has none.
            client: Address of the caller; empty when unknown.
            request_bytes: Size of the body received.
            response_bytes: Size of the body sent.
            model: Model that answered; empty for other routes.
            version: Version that answered; 0 for other routes.
            instances: Instances in the request; 0 for other routes.
            code: Error code of the answer; empty for a success.
            experiment: The experiment that decided and its revision; empty for none.
            arm: The arm it assigned.
            unassigned: Why the request does not count for an arm.
        """
        ...


class AccessLog:
    """One line per answered request up to a rate, beyond it one per few of them, written by the thread of its output.

    A line takes 1.5 µs of CPU in all, most of it where `record` makes it. (Queueing the facts for the writing thread to format takes
    as much, and the interpreter from the event loop for a slice at a time.) That is a twentieth of what the smallest model's answer
    takes, and 30,000 lines a second are read by nobody: so the log keeps to `per_s` by writing every second, fourth, eighth line, which
    says so. What lines have in common is made once.

    The queue is bounded: when it is full the *new* record is dropped, counted in `dropped`, and the count is reported in
    the log itself. The bound may be exceeded by one record per recording thread.

    Attributes:
        record: Notes one answered request.
        pass_over: Answers below status 500 until the next line. Who finds it above 0 may count such an answer down here instead of telling
            `record` all about it, which then does no more than that: in a rush that is most of what the log costs.
        dropped: Records lost so far, because the queue was full, the log was not running, or the stream refused the lines.
        written: Records written so far.
    """

    name = "access_log"

    def __init__(
        self,
        output: LogOutput,
        *,
        capacity: int = 65_536,
        sample_ratio: float = 1.0,
        per_s: float = math.inf,
        clock: Callable[[], float] = time.time,
        rng: Callable[[], float] = random.random,
    ) -> None:
        """Prepare a log that is not running yet.

        Args:
            output: Where lines go; the one `configure_logging` returned.
            capacity: Most lines waiting to be written, >= 1.
            sample_ratio: Share of answers below status 500 that is logged, 0 to 1; answers of 500 and above always are.
            per_s: About how many of those are logged in a second at most, > 0.
            clock: Seconds since the epoch.
            rng: Uniform numbers in [0, 1), for sampling.

        Raises:
            ValueError: A number is out of its range.
        """
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1; got {capacity}")
        if not 0.0 <= sample_ratio <= 1.0:
            raise ValueError(f"sample_ratio must be between 0 and 1; got {sample_ratio}")
        if not per_s > 0:
            raise ValueError(f"per_s must be above 0; got {per_s}")
        self._output = output
        self._capacity = capacity
        self._room = 0  # the capacity while running
        self._sample_ratio = sample_ratio
        self._per_s = per_s
        self._clock = clock
        self._stride = 1
        self.pass_over = 0
        self._seen = 0  # since the rate was looked at
        self._since = 0.0  # from when on they are counted
        self._lines: deque[str] = deque()
        self._parts: dict[_Facts, _Parts] = {}
        self._started_output = False
        self._drop_lock = threading.Lock()
        self.dropped = 0
        self.written = 0
        self.record: Recorder = self._recorder(rng)

    def start(self) -> None:
        """Start logging; records made before are dropped. Raises RuntimeError when it is running already."""
        if self._room:
            raise RuntimeError("the access log is running already")
        self._output.attach(self)
        self._started_output = self._output.start()
        self._room = self._capacity

    def stop(self, timeout_s: float = PATIENCE_S) -> bool:
        """See to it that what was recorded is written, and stop; harmless when not running.

        Returns:
            True when every record is written or counted as dropped; False when the stream blocked for `timeout_s`
            seconds, in which case the records still waiting are counted as dropped.
        """
        if not self._room:
            return True
        self._room = 0
        flowed = self._output.flush(timeout_s)
        if self._started_output:
            flowed = self._output.stop(timeout_s if flowed else 0.0)
        self._output.detach(self)
        self._drop(len(self._lines))
        self._lines.clear()
        return flowed

    def _drop(self, records: int) -> None:
        with self._drop_lock:
            self.dropped += records

    # --- making lines -------------------------------------------------------------------------------------------------

    def _recorder(self, rng: Callable[[], float]) -> Recorder:
        """Return `record`: a closure, as its variables are found in a quarter of the time less than attributes."""
        output, lines, parts_of, clock, sample_ratio = self._output, self._lines, self._parts.get, self._clock, self._sample_ratio
        samples, micros, counts = sample_ratio < 1.0, _MICROS, _COUNTS
        now: tuple[float, float, str] = (0.0, 0.0, "")

        def record(
            method: str,
            path: str,
            status: int,
            duration_s: float,
            request_id: str = "",
            client: str = "",
            request_bytes: int = 0,
            response_bytes: int = 0,
            model: str = "",
            version: int = 0,
            instances: int = 0,
            code: str = "",
            experiment: str = "",
            arm: str = "",
            unassigned: str = "",
        ) -> None:
            nonlocal now
            if status < 500:
                left = self.pass_over
                if left:
                    self.pass_over = left - 1
                    return
                stride = self._stride
                self.pass_over = stride - 1
                if samples and rng() >= sample_ratio:
                    return
                if stride == 1 and not self._seen:
                    self._since = clock()  # nobody looked at the time while nothing came
                self._seen += stride
            if len(lines) >= self._room:
                self._drop(1)
                return
            time_s = clock()
            facts = (method, path, status, client, model, version, instances, code, experiment, arm, unassigned)
            parts = parts_of(facts)
            if parts is None or not (request_id and request_bytes and response_bytes and 0.0 <= duration_s < 0.999):
                lines.append(self._whole_line(time_s, duration_s, request_id, request_bytes, response_bytes, facts))
            else:
                since, until, begin = now
                if not since <= time_s < until:
                    now = _, _, begin = _beginning(time_s)
                before, middle, end = parts
                us = int(duration_s * 1e6 + 0.5)
                duration = micros[us] if us < 10_000 else f"{us:06d}"
                received = counts[request_bytes] if request_bytes < 4096 else request_bytes
                sent = counts[response_bytes] if response_bytes < 4096 else response_bytes
                lines.append(f'{begin}{before}{duration},"request_id":{_quoted(request_id)}{middle}{received},"response_bytes":{sent}{end}')
            if output.asleep:
                output.wake()

        return record

    def _whole_line(self, time_s: float, duration_s: float, request_id: str, received: int, sent: int, facts: _Facts) -> str:
        """Make any line from scratch, and keep what the next one like it will share."""
        begin, client, end = _events(facts, self._sample_ratio / self._stride)
        if self._output.render is json_line and len(facts[1]) <= MAX_PATH:
            if len(self._parts) >= _KEPT:
                self._parts.clear()
            self._parts[facts] = _shared_parts(begin, client, end)
        event: Event = {"time": rfc3339(int(time_s * 1000) / 1000), **begin, "duration_s": round(duration_s, 6)}
        if request_id:
            event["request_id"] = request_id
        event.update(client)
        event.update((name, size) for name, size in (("request_bytes", received), ("response_bytes", sent)) if size)
        return self._output.render({**event, **end})

    # --- for the writing thread (`log_writer.LineSource`) -------------------------------------------------------------

    def waiting(self) -> bool:
        """Whether anything was recorded that is not written."""
        return bool(self._lines)

    def ask_again_in(self) -> float | None:
        """Return when to see whether the rush is over, as answers that are passed over wake nobody; None when there is none."""
        return None if self._stride == 1 else LOOK_AGAIN_S

    def slices(self) -> Iterator[tuple[str, int]]:
        """Yield what was recorded as text, some lines at a time."""
        self._look_at_the_rate()
        take = self._lines.popleft
        while count := min(len(self._lines), _SLICE):
            try:
                lines = [take() for _ in range(count)]
            except IndexError:  # stop() emptied the queue of a writer that hung
                return
            yield "".join(lines), count

    def _look_at_the_rate(self) -> None:
        """Choose how many answers share a line from how many there were since the last look: a power of two, so that it seldom changes."""
        now = self._clock()
        seen, elapsed_s = self._seen, now - self._since
        if elapsed_s < LOOK_S and seen <= self._per_s * LOOK_S:
            return
        self._seen, self._since = 0, now
        wanted = seen / max(elapsed_s, MIN_LOOK_S) / self._per_s
        stride = 1 if wanted <= 1 else 1 << math.ceil(math.log2(wanted))
        if stride > self._stride or 2 * stride < self._stride or stride == 1 != self._stride:
            self._stride = stride
            self.pass_over = min(self.pass_over, stride - 1)
            self._parts.clear()  # lines tell the ratio

    def settled(self, lines: int, *, written: bool) -> None:
        """Count a slice."""
        if written:
            self.written += lines
        else:
            self._drop(lines)


#: Most sets of facts whose parts are kept.
_KEPT = 4096
#: Facts at the end of a line.
_END = ("model", "version", "instances", "code", "experiment", "arm", "unassigned")
#: Numbers as text, found faster than made.
_MICROS = [f"{i:06d}" for i in range(10_000)]
_COUNTS = [str(i) for i in range(4096)]


def _beginning(time_s: float) -> tuple[float, float, str]:
    """Return the first and the last moment of the millisecond that `time_s` is in, and how lines of that time begin."""
    millis = int(time_s * 1000)
    return millis / 1000, (millis + 1) / 1000, f'{{"time":"{_whole_second(millis // 1000)}.{millis % 1000:03d}000Z",'


def _events(facts: _Facts, sample_ratio: float) -> tuple[Event, Event, Event]:
    """Return what an event has of its facts: before the duration, behind the request id, and behind the sizes."""
    method, path, status, client, *rest = facts
    begin: Event = {
        "level": "error" if status >= 500 else "info",
        "event": "request",
        "logger": "samegraph.access",
        "method": method,
        "path": path[:MAX_PATH],
        "status": status,
    }
    end: Event = {name: value for name, value in zip(_END, rest, strict=True) if value}
    if sample_ratio < 1.0 and status < 500:
        end["sample_ratio"] = sample_ratio
    return begin, {"client": client} if client else {}, end


def _shared_parts(begin: Event, client: Event, end: Event) -> _Parts:
    """Return the same as text."""
    first, second, third = (_encode(event)[1:-1] for event in (begin, client, end))
    return f'{first},"duration_s":0.', f',{second},"request_bytes":' if client else ',"request_bytes":', f",{third}}}\n" if end else "}\n"
