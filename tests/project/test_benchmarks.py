"""The benchmark measures what it says: answers are checked, failures counted, CPU time attributed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from scripted_server import Reply, predicted, scripted_server

from benchmarks.load import check, load, same
from benchmarks.machine import Times, process_cpu_s
from benchmarks.servers import SERVERS, Running, ServerFailed
from benchmarks.workloads import FLIGHTS, IMAGENET

BODY = b'{"instances": [{"x": 1}]}'


def up(url: str) -> Running:
    """Return a running server, as the benchmark sees it, for one in this process."""
    return Running(SERVERS["samegraph"], os.getpid(), int(url.rpartition(":")[2]), 0.1, ["samegraph"])


@pytest.mark.parametrize(
    ("expected", "got", "verdict"),
    [
        pytest.param({"p": 0.5, "label": "yes"}, {"p": 0.5 + 1e-9, "label": "yes"}, True, id="rounding"),
        pytest.param({"p": 0.5}, {"p": 0.501}, False, id="another number"),
        pytest.param({"label": "yes"}, {"label": "no"}, False, id="another label"),
        pytest.param([1.0, 2.0], [1, 2], True, id="JSON writes whole floats as it likes"),
        pytest.param(1.0, True, False, id="a boolean is no number"),
        pytest.param([1.0], [1.0, 2.0], False, id="length"),
        pytest.param({"a": 1.0}, {"b": 1.0}, False, id="names"),
        pytest.param(None, None, True, id="missing"),
    ],
)
def test_answers_are_equal_within_rounding(expected: object, got: object, verdict: bool) -> None:
    """Floats may differ by rounding, labels and shapes may not."""
    assert same(expected, got) is verdict


def test_wrong_answer_stops_the_measurement() -> None:
    """A server whose answer differs from plain Python's is not measured."""
    with scripted_server(predicted({"p": 0.4})) as server, pytest.raises(ServerFailed, match=r"plain Python says \[\{'p': 0.5\}\]"):
        check(up(server.url), FLIGHTS, [BODY], [[{"p": 0.5}]])


def test_refusal_stops_the_measurement() -> None:
    """A server that refuses a request is named with what it said."""
    with (
        scripted_server(Reply(status=503, document={"error": "not ready"})) as server,
        pytest.raises(ServerFailed, match=r"503.*not ready"),
    ):
        check(up(server.url), FLIGHTS, [BODY], [[1]])


def test_right_answers_pass_with_many_in_flight() -> None:
    """Every body is sent, and more than one at a time."""
    with scripted_server(predicted({"p": 0.5})) as server:
        check(up(server.url), FLIGHTS, [BODY] * 3, [[{"p": 0.5}]] * 3)
    assert len(server.received) == 64


def test_load_sends_the_bodies_in_turn_and_counts(tmp_path: Path) -> None:
    """Each file is posted with its media type to the workload's path, and every answer is counted."""
    files = [tmp_path / "0", tmp_path / "1"]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number, 0, 255]))  # not text: photos are not either
    with scripted_server(predicted(1)) as server:
        seen = load(up(server.url), IMAGENET, files, clients=2, seconds=1)
    assert seen.failed == 0
    assert 0 < seen.requests <= len(server.received)
    assert seen.per_s == pytest.approx(seen.requests, rel=0.5)
    assert seen.p50_ms <= seen.p99_ms
    assert {request.body for request in server.received} == {b"\x00\x00\xff", b"\x01\x00\xff"}
    assert {(request.path, request.headers["content-type"]) for request in server.received} == {(IMAGENET.path, "image/jpeg")}


def test_cpu_time_is_attributed_to_its_process() -> None:
    """Half a second of work shows as that much CPU time of this process, and as ours rather than others'."""
    before, ours = Times.now(), process_cpu_s(os.getpid())
    until = time.process_time() + 0.5
    while time.process_time() < until:
        pass
    assert process_cpu_s(os.getpid()) - ours == pytest.approx(0.5, abs=0.1)
    assert Times.now().ours - before.ours == pytest.approx(0.5, abs=0.1)
