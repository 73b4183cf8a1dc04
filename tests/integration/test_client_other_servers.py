"""Servers of other makers, unmodified from PyPI: a burst through our client loses nothing, and nothing is sent again after its answer."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from samegraph_client import Client, Report, RetryPolicy
from samegraph_client.dispatch import Event
from server_process import ROOT

PYTHON = ROOT / ".venv-clients" / "bin" / "python"
N = 300
#: Requests that the one server takes at a time before it answers 503.
MOST = 12


@contextmanager
def running(directory: Path, script: str, ready: str, *arguments: object) -> Iterator[str]:
    """Start a server of tests/clients on a free port; yield its address, and end it."""
    assert PYTHON.is_file(), "there is no .venv-clients; run `make test`, or `python3 scripts/environment.py clients`"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(PYTHON), str(ROOT / "tests" / "clients" / script), str(port), *map(str, arguments)]
    written = directory / "server.log"
    with written.open("wb") as log:
        process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log, env=alone, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while not answers(url + ready):
            assert process.poll() is None, written.read_text()[-4000:]
            assert time.monotonic() < deadline, written.read_text()[-4000:]
            time.sleep(0.05)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # LitServe's own end leaves its workers behind
        process.wait()


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (OSError, urllib.error.URLError):
        return False


@pytest.fixture(scope="module")
def kserve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """KServe's Python server, which refuses the thirteenth request at a time with a bare 503."""
    with running(tmp_path_factory.mktemp("kserve"), "kserve_server.py", "/v2/health/ready", MOST) as url:
        yield url


@pytest.fixture(scope="module")
def litserve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """LitServe, which queues everything and answers in batches."""
    with running(tmp_path_factory.mktemp("litserve"), "litserve_server.py", "/health") as url:
        yield url


def burst(url: str, wire: Literal["auto", "v1", "v2"], items: list[object]) -> tuple[list[object], Report, Counter[str]]:
    """Send everything at once; return values (None where there is none), the report and how often what happened."""
    happened: Counter[str] = Counter()

    def watch(event: Event) -> None:
        happened[event.kind] += 1

    policy = RetryPolicy(deadline_s=60.0)
    with Client(url, wire=wire, policy=policy, hooks=[watch]) as client:
        results = client.predict_many("double", items, item_deadline_s=60.0)
        values = [outcome.value if outcome.ok else None for outcome in results]
    return values, results.report, happened


@pytest.mark.slow
@pytest.mark.parametrize("server", ["kserve", "litserve"])
def test_v1_burst_is_answered_whole(server: str, request: pytest.FixtureRequest) -> None:
    """Rows, to whoever speaks TensorFlow Serving's protocol."""
    values, report, happened = burst(request.getfixturevalue(server), "auto", [{"x": float(i)} for i in range(N)])
    assert values == [2.0 * i for i in range(N)]
    assert (report.answered, report.failed, happened["finished"]) == (N, 0, N)
    assert happened["answered"] == N  # an item that has its answer is never sent again
    assert report.attempts <= 1.5 * N  # the gate learned from the first refusals how much is too much
    assert (report.retries > 0) == (server == "kserve")


@pytest.mark.slow
@pytest.mark.parametrize("raw", ["rows", "arrays"])
def test_v2_burst_is_answered_whole(kserve: str, raw: str) -> None:
    """The same over the Open Inference Protocol; the model is described once, and every item is answered once."""
    items: list[object] = [{"x": float(i)} if raw == "rows" else {"x": np.float64(i)} for i in range(N)]
    values, report, happened = burst(kserve, "v2", items)
    assert [np.asarray(value).item() if not isinstance(value, dict) else value["y"] for value in values] == [2.0 * i for i in range(N)]
    assert (report.answered, report.failed, happened["finished"]) == (N, 0, N)
    assert N <= happened["answered"] <= N + 4 * MOST  # those that were sent first asked for the model's description too
    assert report.attempts <= 1.5 * N
