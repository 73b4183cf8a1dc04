"""Tests of samegraph_service.logs: events as lines, and an access log that never costs a request its time."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from samegraph_service.logs import (
    AccessLog,
    LogOutput,
    bind_request_id,
    configure_logging,
    console_line,
    get_logger,
    json_line,
    remove_logging,
    rfc3339,
)


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Claim to be a terminal."""
        return True


class BlockingStream(io.StringIO):
    """A stream whose writes wait for a gate, as a full pipe does; `entered` is set when a writer is at the gate."""

    def __init__(self) -> None:
        """Start with the gate closed."""
        super().__init__()
        self.gate = threading.Event()
        self.entered = threading.Event()

    def write(self, text: str) -> int:
        """Write once the gate is open."""
        self.entered.set()
        assert self.gate.wait(30)
        return super().write(text)


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """A stream that receives the process's JSON log during one test."""
    stream = io.StringIO()
    configure_logging("json", stream=stream)
    yield stream
    remove_logging()


def events(stream: io.StringIO) -> list[dict[str, Any]]:
    """Parse every line written so far."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def only(stream: io.StringIO) -> dict[str, Any]:
    """Parse the one line written so far."""
    (event,) = events(stream)
    return event


def wait_for(condition: Callable[[], bool]) -> bool:
    """Wait until something is true, for ten seconds at most; return whether it is."""
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        os.sched_yield()
    return condition()


def record_some(log: AccessLog, count: int, status: int = 200) -> None:
    """Record `count` requests whose paths are numbered."""
    for i in range(count):
        log.record("POST", f"/{i}", status, 0.001)


# --- events ------------------------------------------------------------------------------------------------------


def test_an_event_is_one_line_with_time_level_name_and_fields(stream: io.StringIO) -> None:
    """The keys come in a fixed order, the reader's first, and the time stamp is RFC 3339 in UTC with microseconds."""
    get_logger("samegraph.repository").info("version_ready", model="penguins", version=3)
    event = only(stream)
    assert list(event) == ["time", "level", "event", "logger", "model", "version"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", event["time"])
    assert (event["level"], event["event"], event["logger"]) == ("info", "version_ready", "samegraph.repository")
    assert (event["model"], event["version"]) == ("penguins", 3)


@pytest.mark.parametrize(
    ("time_s", "text"),
    [
        pytest.param(0.0, "1970-01-01T00:00:00.000000Z", id="epoch"),
        pytest.param(1_700_000_000.123456, "2023-11-14T22:13:20.123456Z", id="microseconds"),
        pytest.param(1_700_000_000.9999999, "2023-11-14T22:13:21.000000Z", id="rounds into the next second"),
    ],
)
def test_time_stamps_are_exact(time_s: float, text: str) -> None:
    """Known instants are written as they should be."""
    assert rfc3339(time_s) == text


def test_the_bound_request_id_is_on_every_event_of_that_request_only(stream: io.StringIO) -> None:
    """Two tasks that interleave keep their own ids, and an event outside has none."""
    log = get_logger("samegraph.test")

    async def handle(name: str, first: asyncio.Event, second: asyncio.Event) -> None:
        with bind_request_id(name):
            first.set()
            await second.wait()
            log.info("handled", name=name)

    async def both() -> None:
        a, b = asyncio.Event(), asyncio.Event()
        await asyncio.gather(handle("r-1", a, b), handle("r-2", b, a))

    asyncio.run(both())
    log.info("idle")
    *handled, idle = events(stream)
    assert {(e["name"], e["request_id"]) for e in handled} == {("r-1", "r-1"), ("r-2", "r-2")}
    assert "request_id" not in idle


def test_an_exception_is_written_as_type_message_and_traceback(stream: io.StringIO) -> None:
    """Both the raised exception and its cause are in the traceback, all inside one line."""
    log = get_logger("samegraph.test")
    try:
        try:
            int("x")
        except ValueError as error:
            raise subprocess.SubprocessError("child\nfailed") from error
    except subprocess.SubprocessError:
        log.exception("load_failed", model="m")
    event = only(stream)
    assert event["level"] == "error"
    assert event["exception"]["type"] == "subprocess.SubprocessError"
    assert event["exception"]["message"] == "child\nfailed"
    assert "ValueError: invalid literal" in event["exception"]["traceback"]
    assert "test_logs.py" in event["exception"]["traceback"]


def test_an_exception_can_be_logged_after_it_was_handled(stream: io.StringIO) -> None:
    """warning() and error() take the exception as a value."""
    get_logger("samegraph.test").warning("reload_failed", exc_info=OSError(2, "no such file"), path="x")
    event = only(stream)
    assert (event["level"], event["path"], event["exception"]["type"]) == ("warning", "x", "FileNotFoundError")


class Unprintable:
    """An object that cannot be turned into text."""

    def __str__(self) -> str:
        """Fail."""
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        pytest.param(float("nan"), None, id="nan"),
        pytest.param([1.0, float("inf")], [1.0, None], id="nested infinity"),
        pytest.param({1: {2}}, {"1": [2]}, id="set in a mapping with a number as key"),
        pytest.param({(1, 2): "x"}, {"(1, 2)": "x"}, id="tuple as key"),
        pytest.param(b"\xff", "b'\\xff'", id="bytes"),
        pytest.param(Unprintable(), "<unprintable Unprintable>", id="broken str"),
        pytest.param("\ud800", "\ud800", id="lone surrogate"),
        pytest.param(2**80, 2**80, id="large integer"),
    ],
)
def test_any_value_can_be_a_field(stream: io.StringIO, value: object, written: object) -> None:
    """Logging never fails because of a value; what JSON cannot hold is null or text."""
    get_logger("samegraph.test").info("odd", value=value)
    assert only(stream)["value"] == written


def test_a_value_that_contains_itself_is_cut_off(stream: io.StringIO) -> None:
    """A circular value ends in text instead of an exception."""
    circle: list[object] = []
    circle.append(circle)
    get_logger("samegraph.test").info("odd", value=circle)
    assert only(stream)["event"] == "odd"


def test_a_field_cannot_take_over_a_reserved_key(stream: io.StringIO) -> None:
    """A field called `time` or `level` is kept beside the event's own."""
    get_logger("samegraph.test").info("odd", time="noon", level=11, logger="x")
    event = only(stream)
    assert (event["time_"], event["level_"], event["logger_"]) == ("noon", 11, "x")
    assert event["level"] == "info"


def test_a_client_cannot_forge_a_line_or_paint_the_terminal() -> None:
    """Line breaks, escapes and non-ASCII separators in a value stay inside their line, in both looks."""
    event = {"time": rfc3339(0), "level": "info", "event": "x\nlevel=error", "logger": "l", "path": "/a\r\nb\x1b[31m\u2028c"}
    for line in (json_line(event), console_line(event)):
        assert len(line.splitlines()) == 1
        assert "\x1b" not in line
    assert json.loads(json_line(event))["path"] == event["path"]
    assert json_line(event).isascii()


def test_third_party_records_come_out_in_the_same_shape(stream: io.StringIO) -> None:
    """Arguments are filled in, `extra` becomes fields, and what is not an event of ours keeps its sentence."""
    logging.getLogger("vendor.lib").warning("pool %s is at %d %%", "a", 95, extra={"pool": "a"})
    event = only(stream)
    assert (event["event"], event["pool"], event["logger"]) == ("pool a is at 95 %", "a", "vendor.lib")


def test_uvicorn_is_routed_through_the_same_output(stream: io.StringIO) -> None:
    """Uvicorn's own handlers are gone, its misleading logger name too, and its access log is off."""
    logging.getLogger("uvicorn.error").setLevel(logging.NOTSET)  # a server that ran in this process has quietened it
    logging.getLogger("uvicorn.error").info("Started server process [%d]", 7, extra={"color_message": "\x1b[36mx"})
    logging.getLogger("uvicorn.access").info("GET /")
    event = only(stream)
    assert (event["event"], event["logger"], event["level"]) == ("Started server process [7]", "uvicorn", "info")
    assert "color_message" not in event


def test_python_warnings_are_logged(stream: io.StringIO) -> None:
    """A warning of a library becomes an event instead of loose text on standard error."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old call", UserWarning, stacklevel=1)
        logging.captureWarnings(False)
    event = only(stream)
    assert event["logger"] == "py.warnings"
    assert "old call" in event["event"]


def test_events_below_the_level_are_not_written() -> None:
    """The level is a floor for every logger."""
    stream = io.StringIO()
    configure_logging("json", level="warning", stream=stream)
    try:
        get_logger("samegraph.test").info("small")
        get_logger("samegraph.test").warning("large")
    finally:
        remove_logging()
    assert only(stream)["event"] == "large"


def test_configuring_twice_writes_each_event_once(stream: io.StringIO) -> None:
    """The second call replaces the first."""
    second = io.StringIO()
    configure_logging("json", stream=second)
    get_logger("samegraph.test").info("once")
    assert stream.getvalue() == ""
    assert only(second)["event"] == "once"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param({"log_format": "xml"}, "json, console, auto; got 'xml'", id="format"),
        pytest.param({"level": "loud"}, "critical; got 'loud'", id="level"),
    ],
)
def test_an_unknown_setting_is_refused_with_what_is_allowed(arguments: dict[str, Any], words: str) -> None:
    """The message names the allowed set and the value received."""
    with pytest.raises(ValueError, match=words):
        configure_logging(**arguments)


def test_a_closed_stream_costs_lines_but_raises_nothing() -> None:
    """A log that cannot be written must not take the request down with it."""
    stream = io.StringIO()
    output = configure_logging("json", stream=stream)
    try:
        stream.close()
        get_logger("samegraph.test").info("lost")
    finally:
        remove_logging()
    assert (output.written, output.dropped) == (0, 1)


def test_a_record_that_cannot_be_written_is_an_event_of_its_own(stream: io.StringIO) -> None:
    """A library's format string that does not fit its arguments costs its sentence, not its mention."""
    record = logging.LogRecord("vendor", logging.ERROR, __file__, 1, "%d apples", ("many",), None)
    (ours,) = (handler for handler in logging.getLogger().handlers if type(handler).__module__ == "samegraph_service.logs")
    ours.handle(record)
    event = only(stream)
    assert (event["event"], event["logger"], event["message"]) == ("log_record_unreadable", "vendor", "%d apples")
    assert "TypeError" in event["reason"]


# --- the console -------------------------------------------------------------------------------------------------


def test_auto_is_console_on_a_terminal_and_json_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """People get a readable line in colour, machines get JSON."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        configure_logging("auto", stream=stream)
        get_logger("samegraph.test").info("version_ready", model="penguins", reason="two words", seconds=0.123456789)
    remove_logging()
    assert only(pipe)["model"] == "penguins"
    plain = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    assert plain != terminal.getvalue()
    pattern = r'\d\d:\d\d:\d\d\.\d{3}Z info     version_ready model=penguins reason="two words" seconds=0.123457  \(samegraph\.test\)\n'
    assert re.fullmatch(pattern, plain)


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    """With NO_COLOR in the environment the console look has no escapes."""
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    configure_logging("console", stream=terminal)
    get_logger("samegraph.test").error("x")
    remove_logging()
    assert "\x1b" not in terminal.getvalue()


def test_the_console_shows_a_traceback_below_its_event() -> None:
    """A traceback is readable: one line each, indented."""
    stream = Terminal()
    configure_logging("console", stream=stream)
    get_logger("samegraph.test").error("failed", exc_info=ValueError("bad\x1b[2J"))
    remove_logging()
    assert "\n    ValueError: bad\\x1b[2J\n" in stream.getvalue()


# --- the access log ----------------------------------------------------------------------------------------------


@pytest.fixture
def sink() -> tuple[io.StringIO, LogOutput]:
    """A stream and a JSON output that writes to it."""
    stream = io.StringIO()
    return stream, LogOutput(stream, json_line, linger_s=0.0)


def test_a_record_becomes_one_line_with_every_fact(sink: tuple[io.StringIO, LogOutput]) -> None:
    """All arguments are in the line, under their names."""
    stream, output = sink
    log = AccessLog(output, clock=lambda: 1_700_000_000.5)
    log.start()
    log.record("POST", "/v1/models/m:predict", 400, 0.00123456, "r-1", "10.0.0.9", 120, 80, "m", 2, 3, "wrong_type")
    assert log.stop()
    assert only(stream) == {
        "time": "2023-11-14T22:13:20.500000Z", "level": "info", "event": "request", "logger": "samegraph.access",
        "method": "POST", "path": "/v1/models/m:predict", "status": 400, "duration_s": 0.001235, "request_id": "r-1",
        "client": "10.0.0.9", "request_bytes": 120, "response_bytes": 80, "model": "m", "version": 2, "instances": 3, "code": "wrong_type",
    }  # fmt: skip


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(("POST", "/v1/models/m:predict", 200, 0.00123, "r-1", "10.0.0.9", 120, 80, "m", 2, 3, ""), id="prediction"),
        pytest.param(("GET", "/livez", 200, 0.0), id="health check"),
        pytest.param(("GET", '/"request_id":"?"/\u2028\x1b', 404, 0.5, 'a"b\\\n', "::1", 0, 9, "", 0, 0, "no_such_route"), id="hostile"),
        pytest.param(("POST", "/x", 503, 12.5, "r", "", 1), id="slow failure"),
        pytest.param(("POST", "/x", 200, 0.9999999, "r"), id="almost a second"),
        pytest.param(("POST", "/x", 200, -0.001, "r"), id="a clock that went back"),
        pytest.param(("POST", "/" + "x" * 5000, 200, 0.01, "r"), id="long path"),
    ],
)
@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_a_line_made_from_kept_parts_is_the_line_made_whole(sink: tuple[io.StringIO, LogOutput], record: Any, ratio: float) -> None:
    """Most of a line is kept from the last one like it; nobody can tell by reading."""
    stream, output = sink
    log = AccessLog(output, sample_ratio=ratio, rng=lambda: 0.0, clock=lambda: 1_700_000_000.0009)
    log.start()
    for _ in range(3):
        log.record(*record)
    assert log.stop()
    first, *others = stream.getvalue().splitlines()
    assert len(others) == 2
    assert [json.loads(line) for line in others] == [json.loads(first)] * 2
    assert first.isascii()


def test_facts_that_do_not_apply_are_left_out(sink: tuple[io.StringIO, LogOutput]) -> None:
    """A health check's line has no empty model, version or code; a server error has level error."""
    stream, output = sink
    log = AccessLog(output)
    log.start()
    log.record("GET", "/livez", 200, 0.0001)
    log.record("GET", "/readyz", 503, 0.0001)
    assert log.stop()
    fine, failed = events(stream)
    assert set(fine) == {"time", "level", "event", "logger", "method", "path", "status", "duration_s"}
    assert (fine["level"], failed["level"]) == ("info", "error")


def test_no_record_is_lost_on_a_clean_stop(sink: tuple[io.StringIO, LogOutput]) -> None:
    """Records of several threads, made while the writer works, are all written, each thread's in order."""
    stream, output = sink
    log = AccessLog(output)
    log.start()

    def produce(name: int) -> None:
        for i in range(2_000):
            log.record("GET", f"/{name}/{i}", 200, 0.0)

    threads = [threading.Thread(target=produce, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.stop()
    paths = [e["path"] for e in events(stream)]
    assert len(paths) == 8_000
    assert (log.written, log.dropped) == (8_000, 0)
    for n in range(4):
        assert [p for p in paths if p.startswith(f"/{n}/")] == [f"/{n}/{i}" for i in range(2_000)]


def test_a_record_is_written_soon_without_stop() -> None:
    """The writer wakes by itself for a single record, again and again."""
    stream = BlockingStream()
    stream.gate.set()
    log = AccessLog(LogOutput(stream, json_line, linger_s=0.0))
    log.start()
    for i in range(200):
        stream.entered.clear()
        log.record("GET", f"/{i}", 200, 0.0)
        assert stream.entered.wait(10), f"record {i} woke nobody"
    assert log.stop()
    assert log.written == 200


def test_a_blocked_stream_never_blocks_the_caller() -> None:
    """While the writer hangs on a full pipe, recording goes on, the queue stays bounded, and the rest is counted."""
    stream = BlockingStream()
    log = AccessLog(LogOutput(stream, json_line, linger_s=0.0), capacity=100)
    log.start()
    log.record("GET", "/first", 200, 0.0)
    assert stream.entered.wait(10)
    started = time.perf_counter()
    record_some(log, 10_000)
    assert time.perf_counter() - started < 5
    assert log.dropped == 9_900
    stream.gate.set()
    assert log.stop()
    assert log.written == 101
    *_, report = events(stream)
    assert (report["event"], report["level"], report["records"], report["total"]) == ("access_log_dropped", "warning", 9_900, 9_900)


def test_stop_gives_up_on_a_stream_that_stays_blocked() -> None:
    """The shutdown is bounded; what could not be written is counted, not forgotten."""
    stream = BlockingStream()
    log = AccessLog(LogOutput(stream, json_line, linger_s=0.0))
    log.start()
    log.record("GET", "/first", 200, 0.0)
    assert stream.entered.wait(10)
    record_some(log, 70)
    assert not log.stop(timeout_s=0.05)
    assert log.dropped == 70
    stream.gate.set()


def test_drops_are_reported_while_running() -> None:
    """The operator hears of lost lines at once, not only at the end."""
    stream = BlockingStream()
    log = AccessLog(LogOutput(stream, json_line, linger_s=0.0, report_every_s=0.0), capacity=1)
    log.start()
    log.record("GET", "/first", 200, 0.0)
    assert stream.entered.wait(10)
    record_some(log, 5)
    stream.gate.set()
    deadline = time.monotonic() + 10
    while "access_log_dropped" not in stream.getvalue() and time.monotonic() < deadline:
        os.sched_yield()
    assert "access_log_dropped" in stream.getvalue()
    log.stop()
    reports = [e for e in events(stream) if e["event"] == "access_log_dropped"]
    assert [r["records"] for r in reports] == [4]


def test_a_broken_stream_is_counted_and_does_not_end_the_writer(sink: tuple[io.StringIO, LogOutput]) -> None:
    """Records that the stream refuses are drops; the thread lives on."""
    stream, output = sink
    log = AccessLog(output)
    log.start()
    stream.close()
    record_some(log, 3)
    assert log.stop()
    assert (log.written, log.dropped) == (0, 3)


def test_sampling_keeps_the_share_and_every_server_error(sink: tuple[io.StringIO, LogOutput]) -> None:
    """A quarter of the good answers and all of the 5xx are logged; a sampled line says its ratio, so counts can be scaled."""
    stream, output = sink
    draws = iter([0.1, 0.3, 0.9, 0.24] * 10)
    log = AccessLog(output, sample_ratio=0.25, rng=lambda: next(draws))
    log.start()
    record_some(log, 40)
    record_some(log, 7, status=500)
    assert log.stop()
    written = events(stream)
    assert [e["status"] for e in written].count(200) == 20
    assert [e["status"] for e in written].count(500) == 7
    assert {e.get("sample_ratio") for e in written if e["status"] == 200} == {0.25}
    assert {e.get("sample_ratio") for e in written if e["status"] == 500} == {None}
    assert log.dropped == 0


def test_beyond_the_rate_answers_share_lines_that_tell_how_many() -> None:
    """Ten times too many answers: every sixteenth gets a line, every server error still does, and it ends with the rush."""
    stream = BlockingStream()
    output = LogOutput(stream, json_line, linger_s=0.0)
    now = 0.0
    log = AccessLog(output, per_s=100, clock=lambda: now)
    log.start()
    log.record("GET", "/first", 200, 0.0)
    assert stream.entered.wait(10)
    now = 1.0
    record_some(log, 1000)  # while the writer is held up, so that it sees them all at once
    stream.gate.set()
    assert output.flush(10)
    assert log.written == 1001
    record_some(log, 160)
    record_some(log, 5, status=503)
    assert output.flush(10)
    rush = events(stream)[1001:]
    assert [e["path"] for e in rush if e["status"] == 200] == [f"/{i}" for i in range(0, 160, 16)]
    assert {e["sample_ratio"] for e in rush if e["status"] == 200} == {1 / 16}
    assert [e.get("sample_ratio") for e in rush if e["status"] == 503] == [None] * 5
    now = 1000.0
    assert wait_for(lambda: log.ask_again_in() is None)  # the writer looks by itself: answers that are passed over wake nobody
    record_some(log, 20)
    assert log.stop()
    assert [e.get("sample_ratio") for e in events(stream)[-20:]] == [None] * 20
    assert log.dropped == 0


def test_a_rush_is_seen_soon_after_a_long_calm(sink: tuple[io.StringIO, LogOutput]) -> None:
    """How long nothing came says nothing about how fast it comes: the first look ends the calm, the second sees the rush."""
    stream, output = sink
    now = 0.0
    log = AccessLog(output, per_s=100, clock=lambda: now)
    log.start()
    log.record("GET", "/before", 200, 0.0)
    assert output.flush(10)
    now = 1000.0
    record_some(log, 50)
    assert output.flush(10)
    now = 1000.1
    record_some(log, 1)
    now = 1000.15
    record_some(log, 100)  # more than belong in a second, in a twentieth of one
    assert output.flush(10)
    assert log.written == 152
    record_some(log, 64)
    assert log.stop()
    rush = events(stream)[152:]
    assert [e["path"] for e in rush] == ["/0", "/32"]
    assert {e["sample_ratio"] for e in rush} == {1 / 32}


def test_it_can_be_started_again_and_counts_what_came_in_between(sink: tuple[io.StringIO, LogOutput]) -> None:
    """A record made while it is stopped is a counted drop, and stopping twice is harmless."""
    stream, output = sink
    log = AccessLog(output)
    for path in ("/a", "/b"):
        log.start()
        log.record("GET", path, 200, 0.0)
        assert log.stop()
        assert log.stop()
    log.record("GET", "/late", 200, 0.0)
    assert [e["path"] for e in events(stream)] == ["/a", "/b"]
    assert log.dropped == 1


def test_starting_twice_is_refused(sink: tuple[io.StringIO, LogOutput]) -> None:
    """Two writers on one queue would mix the order of lines."""
    log = AccessLog(sink[1])
    log.start()
    with pytest.raises(RuntimeError, match="running already"):
        log.start()
    assert log.stop()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param({"capacity": 0}, "at least 1; got 0", id="capacity"),
        pytest.param({"sample_ratio": 1.5}, "between 0 and 1; got 1.5", id="sample ratio"),
        pytest.param({"per_s": 0}, "above 0; got 0", id="rate"),
    ],
)
def test_a_number_out_of_range_is_refused(sink: tuple[io.StringIO, LogOutput], arguments: dict[str, Any], words: str) -> None:
    """The message names the parameter, the range and the value."""
    with pytest.raises(ValueError, match=words):
        AccessLog(sink[1], **arguments)


def test_an_idle_writer_uses_no_processor_time() -> None:
    """A process whose access log is idle is not woken at all: its voluntary context switches stand still."""
    program = """
        import io, resource, threading
        from samegraph_service.logs import AccessLog, LogOutput, json_line
        log = AccessLog(LogOutput(io.StringIO(), json_line, linger_s=0.0))
        log.start()
        log.record("GET", "/", 200, 0.0)
        while not log.written:
            pass
        threading.Event().wait(0.2)
        before = resource.getrusage(resource.RUSAGE_SELF)
        threading.Event().wait(0.5)
        after = resource.getrusage(resource.RUSAGE_SELF)
        print(after.ru_nvcsw - before.ru_nvcsw)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) <= 3
