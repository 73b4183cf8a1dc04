"""Structured logs: one line per event, and an access log that costs a request next to nothing.

A log call names an *event* and gives *fields*; the sentence is for documents, not for logs:

    log = get_logger("samegraph.repository")
    log.info("version_ready", model="penguins", version=3, seconds=1.2)

Everything goes through the standard library's logging, so uvicorn, asyncio and third-party libraries end up in the same
stream and shape. Two looks exist: `json` (one object a line, ASCII only, so no client can smuggle a line break or a
terminal escape into the log) and `console` for people.

Nobody waits for the stream: lines go through the one thread of `log_writer.py`. The access log is apart only in that its lines are
made there too: `AccessLog.record` appends a tuple to a bounded queue.
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any, Literal, TextIO, TypeAlias

from .log_writer import LINES_AT_ONCE, PATIENCE_S, LogWriter

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

_Record: TypeAlias = tuple[float, str, str, int, float, str, str, int, int, str, int, int, str]
#: Everything of a record but its time, duration and request id.
_Facts: TypeAlias = tuple[str, str, int, str, int, int, str, int, int, str]


class AccessLog:
    """One line per answered request, made and written by the thread of its output.

    `record` appends a tuple and returns: no formatting, no lock, no system call beyond reading the clock and, when the writer
    sleeps, waking it (0.2 µs). Formatting goes in slices, between which the event loop gets the interpreter.

    The queue is bounded: when it is full the *new* record is dropped, counted in `dropped`, and the count is reported in
    the log itself. The bound may be exceeded by one record per recording thread.

    Attributes:
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
        clock: Callable[[], float] = time.time,
        rng: Callable[[], float] = random.random,
    ) -> None:
        """Prepare a log that is not running yet.

        Args:
            output: Where lines go; the one `configure_logging` returned.
            capacity: Most records waiting to be written, >= 1.
            sample_ratio: Share of answers below status 500 that is logged, 0 to 1; answers of 500 and above always are.
            clock: Seconds since the epoch.
            rng: Uniform numbers in [0, 1), for sampling.

        Raises:
            ValueError: A number is out of its range.
        """
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1; got {capacity}")
        if not 0.0 <= sample_ratio <= 1.0:
            raise ValueError(f"sample_ratio must be between 0 and 1; got {sample_ratio}")
        self._output = output
        self._capacity = capacity
        self._room = 0  # the capacity while running
        self._sample_ratio = sample_ratio
        self._samples = sample_ratio < 1.0
        self._clock = clock
        self._rng = rng
        self._queue: deque[_Record] = deque()
        self._lines = _AccessLines(sample_ratio) if output.render is json_line else None
        self._started_output = False
        self._drop_lock = threading.Lock()
        self.dropped = 0
        self.written = 0

    def record(
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
    ) -> None:
        """Note one answered request; never blocks and never raises.

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
        """
        if self._samples and status < 500 and self._rng() >= self._sample_ratio:
            return
        queue = self._queue
        if len(queue) >= self._room:
            self._drop(1)
            return
        queue.append(
            (
                self._clock(), method, path, status, duration_s, request_id, client, request_bytes, response_bytes, model, version,
                instances, code,
            )
        )  # fmt: skip
        if self._output.asleep:
            self._output.wake()

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
        self._drop(len(self._queue))
        self._queue.clear()
        return flowed

    def _drop(self, records: int) -> None:
        with self._drop_lock:
            self.dropped += records

    # --- for the writing thread (`log_writer.LineSource`) -------------------------------------------------------------

    def waiting(self) -> bool:
        """Whether anything was recorded that is not written."""
        return bool(self._queue)

    def slices(self) -> Iterator[tuple[str, int]]:
        """Yield what was recorded as text, a slice at a time."""
        lines = self._lines
        while records := self._take():
            if lines is not None:
                yield lines.text(records), len(records)
            else:
                yield "".join(self._output.render(_access_event(r, self._sample_ratio)) for r in records), len(records)

    def settled(self, lines: int, *, written: bool) -> None:
        """Count a slice."""
        if written:
            self.written += lines
        else:
            self._drop(lines)

    def _take(self) -> list[_Record]:
        records: list[_Record] = []
        try:
            while len(records) < LINES_AT_ONCE:
                records.append(self._queue.popleft())
        except IndexError:  # asked for forgiveness, since stop() may empty the queue of a writer that hangs
            pass
        return records


class _AccessLines:
    """Writes records as `json_line` would, in a sixteenth of the time (0.4 µs against 6.4).

    Most of a line is the same from request to request: it is made once per set of facts and kept, within bounds. What is left
    are the time (made once a millisecond), the duration and the request id.

    Args:
        sample_ratio: Share of answers that is logged, told in the lines when below 1.
    """

    KEPT = 4096
    LONGEST_PATH = 200

    def __init__(self, sample_ratio: float) -> None:
        self._sample_ratio = sample_ratio
        self._parts: dict[_Facts, tuple[str, str]] = {}
        self._micros = [f"{i:06d}" for i in range(10_000)]

    def text(self, records: Iterable[_Record]) -> str:
        """Write records, a line each."""
        lines: list[str] = []
        parts_of, short = self._parts.get, self._micros
        since = until = 0.0
        clock = ""
        for record in records:
            time_s, method, path, status, duration_s, request_id, client, received, sent, model, version, instances, code = record
            facts = (method, path, status, client, received, sent, model, version, instances, code)
            parts = parts_of(facts)
            if parts is None or not request_id or not 0.0 <= duration_s < 0.999:
                lines.append(self._slow_line(record, facts))
                continue
            if not since <= time_s < until:
                millis = int(time_s * 1000)
                since, until = millis / 1000, (millis + 1) / 1000
                clock = f'{{"time":"{_whole_second(millis // 1000)}.{millis % 1000:03d}000Z'
            micros = int(duration_s * 1e6 + 0.5)
            shown = short[micros] if micros < 10_000 else f"{micros:06d}"
            lines.append(f'{clock}{parts[0]}{shown},"request_id":{_quoted(request_id)}{parts[1]}')
        return "".join(lines)

    def _slow_line(self, record: _Record, facts: _Facts) -> str:
        """Write any record, and keep what the next one like it will share."""
        if len(facts[1]) <= self.LONGEST_PATH:
            if len(self._parts) >= self.KEPT:
                self._parts.clear()
            self._parts[facts] = self._shared(record)
        return json_line(_access_event(record, self._sample_ratio))

    def _shared(self, record: _Record) -> tuple[str, str]:
        """Return what stands between time and duration, and what stands behind the request id."""
        line = json_line(_access_event((0.0, *record[1:4], 0.0, "?", *record[6:]), self._sample_ratio))
        before, behind = line.split('"request_id":"?"')
        return before.removeprefix(f'{{"time":"{rfc3339(0.0)}').removesuffix("0.0,") + "0.", behind


_OPTIONAL = ("request_id", "client", "request_bytes", "response_bytes", "model", "version", "instances", "code")


def _access_event(record: _Record, sample_ratio: float) -> Event:
    time_s, method, path, status, duration_s, *optional = record
    event: Event = {
        "time": rfc3339(int(time_s * 1000) / 1000),
        "level": "error" if status >= 500 else "info",
        "event": "request",
        "logger": "samegraph.access",
        "method": method,
        "path": path,
        "status": status,
        "duration_s": round(duration_s, 6),
    }
    event.update((name, value) for name, value in zip(_OPTIONAL, optional, strict=True) if value)
    if sample_ratio < 1.0 and status < 500:
        event["sample_ratio"] = sample_ratio
    return event
