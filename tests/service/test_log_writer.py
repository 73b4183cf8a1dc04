"""Tests of samegraph_service.log_writer: a stream that stalls stalls nobody, and what is lost is counted and told."""

from __future__ import annotations

import fcntl
import io
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator

import pytest
from samegraph_service.log_writer import LogWriter

#: The smallest pipe Linux makes: full after one page.
SMALL_PIPE_BYTES = 4096
WAIT_S = 20.0


def told(kind: str, lines: int, total: int) -> str:
    """Say what was lost, as the log does in its own words."""
    return f"lost {kind} {lines} of {total}\n"


class Gated(io.StringIO):
    """A stream whose writes wait for a gate, as those to a full pipe do; `entered` is set while one waits."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.entered = threading.Event()

    def write(self, text: str) -> int:
        """Write once the gate is open."""
        self.entered.set()
        assert self.gate.wait(WAIT_S)
        return super().write(text)


class Pipe:
    """A small pipe with a text stream on its writing end."""

    def __init__(self) -> None:
        self.reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, SMALL_PIPE_BYTES)
        self.stream = os.fdopen(writing, "w")

    def read_until(self, end: bytes) -> bytes:
        """Read up to and with `end`."""
        found = b""
        while not found.endswith(end):
            piece = os.read(self.reading, 65536)
            assert piece, found[-200:]
            found += piece
        return found


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    os.close(pipe.reading)
    pipe.stream.close()


def test_lines_before_the_start_and_after_the_end_are_written_at_once() -> None:
    """Nothing said at the edges of a process's life waits for a thread that is not there."""
    stream = io.StringIO()
    writer = LogWriter(stream, told)
    assert writer.put("before\n")
    assert stream.getvalue() == "before\n"
    assert writer.start()
    assert writer.put("during\n")
    assert writer.stop()
    assert writer.put("after\n")
    assert stream.getvalue() == "before\nduring\nafter\n"
    assert (writer.written, writer.dropped) == (3, 0)


def test_a_blocked_stream_blocks_nobody_who_has_something_to_say() -> None:
    """Lines wait in order up to the bound, what is beyond it is counted, and the stream tells of it when it flows again."""
    stream = Gated()
    writer = LogWriter(stream, told, capacity=3)
    writer.start()
    writer.put("first\n")
    assert stream.entered.wait(WAIT_S)
    kept = [writer.put(f"{i}\n") for i in range(10)]
    assert kept == [True] * 3 + [False] * 7
    stream.gate.set()
    assert writer.stop()
    lines = stream.getvalue().splitlines()
    assert lines.count("lost events 7 of 7") == 1
    assert [line for line in lines if not line.startswith("lost")] == ["first", "0", "1", "2"]
    assert (writer.written, writer.dropped) == (4, 7)


def test_the_bound_holds_for_characters_too() -> None:
    """A few enormous lines (tracebacks) cannot fill the memory either."""
    stream = Gated()
    writer = LogWriter(stream, told, capacity_chars=100)
    writer.start()
    writer.put("first\n")
    assert stream.entered.wait(WAIT_S)
    assert [writer.put("x" * 60 + "\n"), writer.put("y" * 60 + "\n"), writer.put("z\n")] == [True, False, True]
    stream.gate.set()
    assert writer.stop()
    assert writer.dropped == 1


def test_flush_waits_until_everything_said_before_is_written() -> None:
    """What follows a flush finds the lines in the stream; while the stream is blocked it gives up in time and says so."""
    stream = Gated()
    writer = LogWriter(stream, told)
    writer.start()
    writer.put("a\n")
    assert not writer.flush(timeout_s=0.01)
    stream.gate.set()
    assert writer.flush(WAIT_S)
    assert stream.getvalue() == "a\n"
    assert writer.stop()
    assert writer.flush()


def test_the_end_is_bounded_and_what_is_left_is_counted() -> None:
    """A reader who never comes back costs the shutdown its timeout and no more; later lines are drops, not a second wait."""
    stream = Gated()
    writer = LogWriter(stream, told)
    writer.start()
    writer.put("first\n")
    assert stream.entered.wait(WAIT_S)
    for i in range(5):
        writer.put(f"{i}\n")
    assert not writer.stop(timeout_s=0.05)
    assert not writer.put("late\n")
    assert not writer.stop()
    assert not writer.flush()
    assert writer.dropped == 6
    stream.gate.set()


def test_many_threads_lose_and_mix_nothing(pipe: Pipe) -> None:
    """Lines of several threads come out whole, each thread's in its order, through a pipe far smaller than they are."""
    writer = LogWriter(pipe.stream, told)
    writer.start()

    def say(name: int) -> None:
        for i in range(500):
            assert writer.put(f"{name} {i} {'x' * 50}\n")

    threads = [threading.Thread(target=say, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_until(b"end\n")))
    reader.start()
    for thread in threads:
        thread.join()
    writer.put("end\n")
    assert writer.stop(WAIT_S)
    reader.join(WAIT_S)
    *lines, _ = received[0].decode().splitlines()
    assert len(lines) == 2000
    for n in range(4):
        assert [line for line in lines if line.startswith(f"{n} ")] == [f"{n} {i} {'x' * 50}" for i in range(500)]


def test_a_pipe_somebody_made_non_blocking_is_waited_for(pipe: Pipe) -> None:
    """The flag belongs to the pipe, so whoever shares it may set it; lines must not be lost to it."""
    os.set_blocking(pipe.stream.fileno(), False)
    writer = LogWriter(pipe.stream, told)
    writer.start()
    text = "y" * 20_000 + "\n"
    writer.put(text)
    assert pipe.read_until(b"\n").decode() == text
    assert writer.stop()
    assert writer.dropped == 0


def test_a_reader_who_left_is_a_counted_loss(pipe: Pipe) -> None:
    """A closed pipe ends neither the thread nor the process."""
    writer = LogWriter(pipe.stream, told)
    writer.start()
    reading, pipe.reading = pipe.reading, os.open(os.devnull, os.O_RDONLY)
    os.close(reading)
    writer.put("lost\n")
    assert writer.flush(WAIT_S)
    assert writer.dropped == 1
    assert writer.stop()


def test_starting_twice_keeps_the_one_thread() -> None:
    """The second start says that there was nothing to do."""
    writer = LogWriter(io.StringIO(), told)
    assert [writer.start(), writer.start()] == [True, False]
    assert writer.stop()


@pytest.mark.parametrize("bound", ["capacity", "capacity_chars"])
def test_a_bound_below_one_is_refused(bound: str) -> None:
    """The message names the parameter and the value."""
    with pytest.raises(ValueError, match=f"{bound} must be at least 1; got 0"):
        LogWriter(io.StringIO(), told, **{bound: 0})


# --- at the end of the process ------------------------------------------------------------------------------------------

PROGRAM = """
    import sys
    from samegraph_service.logs import configure_logging, get_logger, report_crashes
    output = configure_logging("json")
    output.start()
    log = get_logger("samegraph.test")
"""


def run(program: str, **options: object) -> subprocess.Popen[str]:
    """Start Python with the log of the process writing to a pipe."""
    code = textwrap.dedent(PROGRAM) + textwrap.dedent(program)
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload,no-any-return]


def test_a_crash_loses_no_line() -> None:
    """What was logged before an exception nobody caught comes out, and so does its traceback."""
    process = run('log.info("last_words")\nraise RuntimeError("fell over")')
    _, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 1
    assert '"event":"last_words"' in errors
    assert "RuntimeError: fell over" in errors


def test_a_process_whose_log_nobody_reads_still_ends() -> None:
    """A megabyte in front of a full pipe delays the end by the bound, and does not turn it into an abort."""
    process = run("""
        for i in range(3000):
            log.info("much", text="x" * 300)
        print("done", flush=True)
    """, stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "done\n"
    assert process.wait(WAIT_S) == 0
    process.communicate(timeout=WAIT_S)


def test_crashes_of_threads_and_finalizers_are_events() -> None:
    """Python would write them to standard error itself, on the thread that serves."""
    process = run("""
        import threading
        class Bad:
            def __del__(self):
                raise ValueError("in a finalizer")
        def fail():
            raise KeyError("in a thread")
        with report_crashes():
            thread = threading.Thread(target=fail, name="worker")
            thread.start()
            thread.join()
            Bad()
    """)  # fmt: skip
    _, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0
    assert [line.partition('"event":"')[2].partition('"')[0] for line in errors.splitlines()] == ["thread_crashed", "exception_ignored"]
    assert "in a thread" in errors
    assert "in a finalizer" in errors
