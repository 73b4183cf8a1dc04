"""A server whose standard error nobody reads goes on answering, and accounts for every line afterwards."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import package_builders as build
import pytest
from prometheus_client.parser import text_string_to_metric_families
from raw_http import Wire
from samegraph_transforms.pack import pack

SMALL_PIPE_BYTES = 4096
#: Lines that may wait; far fewer than there are requests.
QUEUE = 200
REQUESTS = 1500
BROKEN = 200
BODY = json.dumps({"instances": [{"size": 1.5, "kind": "moss"}]}).encode()
PREDICT = b"POST /v1/models/plants:predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(BODY),
    BODY,
)


class Stalled:
    """A `samegraph serve` behind a pipe that is read only on request."""

    def __init__(self, models: Path, **settings: str) -> None:
        self._pipe, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, SMALL_PIPE_BYTES)
        command = [str(Path(sys.executable).with_name("samegraph")), "serve", "--repository", str(models), "--port", "0"]
        environment = {**os.environ, **{f"SAMEGRAPH_{name}": value for name, value in settings.items()}, "SAMEGRAPH_LOG__FORMAT": "json"}
        self.process = subprocess.Popen(command, stderr=writing, env=environment)
        os.close(writing)
        self._read = b""
        self.read_until(b"samegraph answers on http://127.0.0.1:")
        self.port = int(self.read_until(b"\n"))
        self.read_until(b"drains and stops.\n\n")

    def read_until(self, end: bytes) -> bytes:
        """Read the log up to and with `end`."""
        while end not in self._read:
            piece = os.read(self._pipe, 65536)
            assert piece, self._read[-500:]
            self._read += piece
        found, _, self._read = self._read.partition(end)
        return found + end

    def read_on(self) -> list[dict[str, Any]]:
        """Read the log to its end, in the background of whatever ends the process; return its lines."""
        while piece := os.read(self._pipe, 65536):
            self._read += piece
        return [json.loads(line) for line in self._read.decode().splitlines() if line.startswith("{")]

    def metric(self, name: str) -> float:
        """Return one sample of /metrics."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return sum(sample.value for family in text_string_to_metric_families(text) for sample in family.samples if sample.name == name)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._pipe)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    pack(build.draft(), build.samples(), tmp_path)
    return tmp_path


@contextmanager
def stalled(models: Path, **settings: str) -> Iterator[Stalled]:
    """Start a server and stop reading its log once it is ready."""
    server = Stalled(models, **settings)
    try:
        yield server
    finally:
        server.close()


def send_all(port: int) -> list[int]:
    """Send the requests down one connection as fast as they go, and return the statuses."""
    with Wire(port) as wire:
        sender = threading.Thread(target=wire.send, args=[PREDICT] * REQUESTS)
        sender.start()
        statuses = [wire.reply().status for _ in range(REQUESTS)]
        sender.join()
    return statuses


def test_a_full_pipe_stalls_no_answer_and_every_line_is_written_or_counted(models: Path) -> None:
    """Answers go on while nobody reads the log; when somebody reads again, nothing is unaccounted for."""
    with stalled(models, LOG__ACCESS_QUEUE=str(QUEUE), LOG__ACCESS_PER_S="1000000") as server:
        assert send_all(server.port) == [200] * REQUESTS
        # Beside the queue, lines may be in the pipe (a dozen) and in the hands of the writer (256).
        assert server.metric("samegraph_access_log_dropped_total") >= REQUESTS - QUEUE - 280
        server.process.send_signal(signal.SIGTERM)
        lines = server.read_on()
        assert server.process.wait(20) == 0
        written = [line for line in lines if line["event"] == "request"]
        lost = max(line["total"] for line in lines if line["event"] == "access_log_dropped")
        assert len(written) + lost == REQUESTS + 1  # the scrape is a request, too


def test_events_stall_nobody_either(models: Path) -> None:
    """Every broken request is a warning that is logged on the event loop; far more of them than the pipe holds stop nothing."""
    with stalled(models, SERVER__HTTP="asgi") as server:
        for _ in range(BROKEN):
            with Wire(server.port) as wire:
                wire.send(b"this is no HTTP\r\n\r\n")
                assert wire.reply().status == 400
        with Wire(server.port) as wire:
            wire.send(PREDICT)
            assert wire.reply().status == 200
        assert server.metric("samegraph_log_events_dropped_total") == 0  # they wait
        server.process.send_signal(signal.SIGTERM)
        lines = server.read_on()
        assert server.process.wait(20) == 0
        assert [line["event"] for line in lines].count("Invalid HTTP request received.") == BROKEN
        assert not any("dropped" in line["event"] for line in lines)


def test_a_log_that_nobody_reads_again_does_not_keep_the_server_from_stopping(models: Path) -> None:
    """SIGTERM drains and ends, although the last lines reach nobody."""
    with stalled(models, LOG__ACCESS_QUEUE=str(QUEUE), LOG__ACCESS_PER_S="1000000") as server:
        assert send_all(server.port) == [200] * REQUESTS
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
