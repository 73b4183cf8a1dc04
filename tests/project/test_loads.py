"""The load generator and what is made of its reports: wrong answers, refusals and broken connections are counted, nothing is lost."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from byte_server import Answer, byte_server, http

from benchmarks.load import SENDER, burst, load, open_load
from benchmarks.native import CompilerFailed, compiled
from benchmarks.servers import SERVERS, Running, ServerFailed
from benchmarks.workloads import FLIGHTS

Files = list[Path]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Two bodies to send in turn: the server's answer is which of them came."""
    found = [tmp_path / "0", tmp_path / "1"]
    for number, file in enumerate(found):
        file.write_bytes(b'{"n": %d}' % number)
    return found


EXPECTED = [[0], [1]]


def up(port: int) -> Running:
    """Return a running server, as the benchmark sees it, for one in this process."""
    return Running(SERVERS["samegraph"], os.getpid(), port, 0.1, ["samegraph"])


async def right(number: int, request: bytes) -> bytes:
    """Answer which body came."""
    return http(json.dumps({"predictions": [json.loads(request.partition(b"\r\n\r\n")[2])["n"]]}))


def sent(mode: str, port: int, files: Files, **options: object) -> dict[str, Any]:
    """Run the load generator by hand and return its report."""
    words = [f"{name}={value}" for name, value in options.items()]
    command = [str(compiled(SENDER)), mode, str(port), "/x", "application/json", *words, "--", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def every(turn: int, otherwise: bytes) -> Answer:
    """Return a server that answers right, but every so many requests something else."""

    async def answer(number: int, request: bytes) -> bytes:
        return otherwise if number % turn == 0 else await right(number, request)

    return answer


def test_closed_loop_counts_every_answer_and_compares_a_sample(files: Files) -> None:
    """What was sent was answered, on as many connections as there are clients, and the sampled answers are right."""
    with byte_server(right) as port:
        seen = load(up(port), FLIGHTS, files, clients=3, seconds=0.3, expected=EXPECTED)
    assert seen.failed == seen.refused == seen.wrong == 0
    assert 0 < seen.compared <= seen.requests
    assert 0 < seen.p50_ms <= seen.p99_ms
    assert seen.own_cpu_ratio > 0


def test_closed_loop_waits_for_the_last_answers(files: Files) -> None:
    """No request is abandoned when the time is up: the server saw exactly as many as were answered."""
    seen = 0

    async def count(number: int, request: bytes) -> bytes:
        nonlocal seen
        seen += 1
        return await right(number, request)

    with byte_server(count) as port:
        report = sent("closed", port, files, connections=8, seconds=0.2)
    assert report["sent"] == report["answered"] == seen
    assert report["opened"] == 8


def test_wrong_answers_are_found_in_the_sample(files: Files) -> None:
    """An answer to another caller's body is wrong, whatever its status."""
    with byte_server(every(2, http('{"predictions": [7]}'))) as port:
        seen = load(up(port), FLIGHTS, files, clients=2, seconds=0.3, expected=EXPECTED)
    assert seen.failed == 0
    assert 0 < seen.wrong < seen.compared


def test_answer_that_is_no_json_is_wrong(files: Files) -> None:
    """It does not end the measurement with a traceback."""
    with byte_server(every(1, http("oh"))) as port:
        seen = load(up(port), FLIGHTS, files, clients=1, seconds=0.1, expected=EXPECTED)
    assert seen.wrong == seen.compared > 0


@pytest.mark.parametrize(
    ("otherwise", "counted"),
    [
        pytest.param(http("{}", "429 Too Many Requests"), "refused", id="429"),
        pytest.param(http("{}", "503 Service Unavailable", "connection: close"), "refused", id="503 and the connection closed"),
        pytest.param(http("{}", "302 Found"), "rejected", id="another status than 2xx"),
        pytest.param(b"", "broken", id="hung up"),
        pytest.param(b"SSH-2.0-nothing\r\n\r\n", "broken", id="no HTTP"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\n{}", "broken", id="cut short"),
    ],
)
def test_everything_but_a_good_answer_is_a_failure(files: Files, otherwise: bytes, counted: str) -> None:
    """Each third request fails; each failure is counted once, and the load goes on."""
    with byte_server(every(3, otherwise)) as port:
        report = sent("closed", port, files, connections=2, seconds=0.3)
    assert report[counted] > 0
    assert report["answered"] > 0
    assert report["answered"] + report[counted] == report["sent"]
    assert all(report[name] == 0 for name in ("refused", "rejected", "broken", "timeouts") if name != counted)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n11\r\n" + b'{"predictions": [' + b"\r\n2\r\n0]\r\n1\r\n}\r\n0\r\n\r\n",
            id="chunked",
        ),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" + http('{"predictions": [0]}'), id="after a 100"),
        pytest.param(http('{"predictions": [0]}', "200 OK", "connection: close"), id="the connection closed after it"),
        pytest.param(b'HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{"predictions": [0]}', id="until the connection ends"),
    ],
)
def test_every_way_to_end_an_answer_is_understood(files: Files, answer: bytes) -> None:
    """The body is read whole, however its end is told."""
    with byte_server(every(1, answer)) as port:
        seen = load(up(port), FLIGHTS, files[:1], clients=2, seconds=0.2, expected=EXPECTED)
    assert seen.failed == seen.wrong == 0
    assert seen.compared > 0


def test_large_bodies_go_out_whole(tmp_path: Path) -> None:
    """A body larger than a socket's buffer is sent in pieces, and nothing of it is lost."""
    file = tmp_path / "large"
    file.write_bytes(os.urandom(3_000_000))

    async def compare(number: int, request: bytes) -> bytes:
        return http(json.dumps({"predictions": [request.partition(b"\r\n\r\n")[2] == file.read_bytes()]}))

    with byte_server(compare) as port:
        seen = load(up(port), FLIGHTS, [file], clients=3, seconds=0.2, expected=[[True]])
    assert seen.failed == seen.wrong == 0
    assert seen.compared > 0


def test_answer_before_the_body_is_sent_is_taken(tmp_path: Path) -> None:
    """A server may refuse without reading: that is a refusal, not a broken connection."""
    file = tmp_path / "large"
    file.write_bytes(bytes(8_000_000))
    refusal = http("{}", "503 Service Unavailable")
    with byte_server(every(1, refusal), reads_body=False) as port:
        report = sent("closed", port, [file], connections=1, seconds=0.02)
    assert report["refused"] == report["sent"] > 0


def test_server_that_is_not_there_is_counted(files: Files) -> None:
    """Refused connections are failures, and neither spin nor hang."""
    with byte_server(right) as port:
        pass
    report = sent("closed", port, files, connections=2, seconds=0.1)
    assert report["answered"] == 0
    assert report["broken"] == report["sent"] > 0


def test_request_without_an_answer_is_given_up(files: Files) -> None:
    """A server that goes silent costs the timeout, once."""
    never = asyncio.Event()  # held here: a task that waits for what nothing else holds is collected

    async def silent(number: int, request: bytes) -> bytes:
        await never.wait()
        return b""

    with byte_server(silent) as port:
        report = sent("closed", port, files, connections=2, seconds=0.1, timeout=0.2)
    assert report["timeouts"] == report["sent"] == 2


def test_open_arrivals_do_not_wait_for_answers(files: Files) -> None:
    """The server holds every answer back until the last request has come: latency counts from when each fell due."""
    rate, seconds = 200, 0.5
    due = int(rate * seconds)
    arrived = 0
    last = asyncio.Event()

    async def hold(number: int, request: bytes) -> bytes:
        nonlocal arrived
        arrived += 1
        if arrived == due:
            last.set()
        await last.wait()
        return await right(number, request)

    with byte_server(hold) as port:
        report = sent("open", port, files, connections=due, rate=rate, seconds=seconds, arrivals="constant")
    assert report["sent"] == report["answered"] == due
    assert report["max_ms"] >= 1e3 * (due - 1) / rate
    assert report["p50_ms"] >= 1e3 * (due / 2 - 1) / rate


def test_open_arrivals_charge_a_stall_to_everybody_it_kept_waiting(files: Files) -> None:
    """With one connection and a stall of 0.3 s, those that fell due behind it are late too: nobody is left out of the percentiles."""

    async def stall(number: int, request: bytes) -> bytes:
        if number == 0:
            free = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(0.3, free.set_result, None)
            await free
        return await right(number, request)

    with byte_server(stall) as port:
        report = sent("open", port, files, connections=1, rate=100, seconds=0.3, arrivals="constant")
    assert report["answered"] == report["sent"] == 30
    assert report["p50_ms"] >= 100


def test_open_arrivals_are_offered_at_the_rate(files: Files) -> None:
    """As many fall due as the rate says, give or take what chance does; what is answered in time is the rate achieved."""
    with byte_server(right) as port:
        seen = open_load(up(port), FLIGHTS, files, rate=400, seconds=0.5, expected=EXPECTED)
        report = sent("open", port, files, connections=16, rate=400, seconds=0.5)
    assert seen.offered_per_s == 400
    assert seen.failed == seen.wrong == 0
    assert seen.compared > 0
    assert 120 < report["sent"] < 280  # 200 expected, a standard deviation of 14


def test_open_arrivals_without_an_answer_are_failures(files: Files) -> None:
    """Requests still waiting for a connection at the end count as well as those on one."""
    never = asyncio.Event()  # held here: a task that waits for what nothing else holds is collected

    async def silent(number: int, request: bytes) -> bytes:
        await never.wait()
        return b""

    with byte_server(silent) as port:
        report = sent("open", port, files, connections=2, rate=100, seconds=0.2, arrivals="constant", timeout=0.3)
    assert report["answered"] == 0
    assert report["timeouts"] + report["unanswered"] == 20


def test_burst_opens_all_connections_at_once_and_compares_every_answer(files: Files) -> None:
    """No answer is given before all requests are there, so all must be under way together."""
    requests, arrived = 60, 0
    complete = asyncio.Event()

    async def gather(number: int, request: bytes) -> bytes:
        nonlocal arrived
        arrived += 1
        if arrived == requests:
            complete.set()
        await complete.wait()
        return await right(number, request)

    with byte_server(gather) as port:
        seen = burst(up(port), FLIGHTS, files, EXPECTED, requests)
    assert (seen.requests, seen.failed, seen.wrong, seen.retries) == (requests, 0, 0, 0)
    assert seen.makespan_s > 0
    assert seen.p50_ms <= 1e3 * seen.makespan_s
    assert 0 < seen.own_cpu_s < seen.makespan_s + 1


@pytest.mark.parametrize(
    "headers", [("retry-after-ms: 200",), ("retry-after: 1", "retry-after-ms: 200"), ("retry-after-ms: 200", "connection: close")]
)
def test_burst_comes_back_when_it_is_told_to(files: Files, headers: tuple[str, ...]) -> None:
    """Refused requests are sent again, not before the server said, and all are answered in the end."""
    refusals = 5

    async def first_refuse(number: int, request: bytes) -> bytes:
        return http("{}", "429 Too Many Requests", *headers) if number < refusals else await right(number, request)

    with byte_server(first_refuse) as port:
        seen = burst(up(port), FLIGHTS, files, EXPECTED, 8)
    assert (seen.refused, seen.retries, seen.failed, seen.wrong) == (refusals, refusals, 0, 0)
    assert seen.makespan_s >= 0.2


def test_burst_sends_broken_requests_again_and_counts_wrong_answers(files: Files) -> None:
    """A connection that breaks costs a retry; an answer that is wrong or another error stays one."""
    scripted = {0: b"", 1: http('{"predictions": [9]}'), 2: http("{}", "500 Internal Server Error")}

    async def odd(number: int, request: bytes) -> bytes:
        return scripted[number] if number in scripted else await right(number, request)

    with byte_server(odd) as port:
        seen = burst(up(port), FLIGHTS, files, EXPECTED, 6)
    assert (seen.retries, seen.wrong, seen.failed, seen.refused) == (1, 1, 1, 0)


def test_wrong_use_is_refused(files: Files) -> None:
    """The load generator says how it is used; the benchmark says that it failed."""
    done = subprocess.run([compiled(SENDER), "opened", "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: sender closed|open|burst")
    with byte_server(right) as port, pytest.raises(ServerFailed, match="load generator failed against samegraph"):
        load(up(port), FLIGHTS, [files[0].with_name("absent")], clients=1, seconds=0.1)


def test_answers_of_the_floor_are_not_compared(files: Files) -> None:
    """It answers a constant, so only its statuses count."""
    with byte_server(every(1, http("{}"))) as port:
        constant = replace(up(port), server=SERVERS["floor"])
        seen = load(constant, FLIGHTS, files, clients=1, seconds=0.1, expected=EXPECTED)
    assert seen.requests > 0
    assert (seen.compared, seen.wrong) == (0, 0)


def test_program_that_does_not_compile_says_why(tmp_path: Path) -> None:
    """The compiler's own words are in the message."""
    source = tmp_path / "broken.c"
    source.write_text("int main(void) { return nothing; }\n")
    with pytest.raises(CompilerFailed, match=r"(?s)broken\.c.*nothing"):
        compiled(source)


def test_machine_without_a_compiler_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sentence, not a traceback of subprocess."""
    source = tmp_path / "new.c"
    source.write_text("int main(void) { return 0; }\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompilerFailed, match="no C compiler"):
        compiled(source)


def test_program_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same source is the same file; another source is another."""
    monkeypatch.setattr("benchmarks.native.COMPILED", tmp_path / "compiled")
    source = tmp_path / "tiny.c"
    source.write_text("int main(void) { return 3; }\n")
    program = compiled(source)
    assert subprocess.run([program], check=False).returncode == 3
    assert compiled(source) == program
    assert program.stat().st_mtime_ns == compiled(source).stat().st_mtime_ns
    source.write_text("int main(void) { return 4; }\n")
    assert compiled(source) != program
