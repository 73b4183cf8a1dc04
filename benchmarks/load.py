"""Drive a server: check its answers, then load it and count what it cost.

Load comes from `sender.c`, one thread on the machine that the server runs on; how much CPU that takes is part of every result. Its answers
are sampled while they come, and compared with plain Python's afterwards.
"""

from __future__ import annotations

import http.client
import json
import math
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.native import compiled
from benchmarks.servers import Running, ServerFailed
from benchmarks.workloads import Workload

SENDER = Path(__file__).with_name("sender.c")
#: Floats may differ by what JSON text and another batch size do to them; labels may not differ at all.
RELATIVE, ABSOLUTE = 1e-5, 1e-6
#: Answers of each run that are compared, drawn evenly from all of them.
COMPARED = 200
#: Connections that open arrivals use: enough that requests queue in the server, where they would.
OPEN_CONNECTIONS = 256
#: Seconds after which a request is given up.
CLOSED_TIMEOUT_S, OPEN_TIMEOUT_S, BURST_TIMEOUT_S = 60.0, 10.0, 120.0


@dataclass(frozen=True)
class Load:
    """What a number of clients saw who each send their next request when they have an answer, and what the server spent on it.

    Attributes:
        per_s: Requests answered per second, up to the last answer.
        p50_ms: Median latency.
        p99_ms: 99th percentile of the latency.
        cpu_ms: The server's CPU milliseconds per answer, all its processes.
        resident_mib: Its memory at the end, pages that its processes share counted once.
        requests: How many were answered.
        failed: Requests that were not: another status than 2xx, a broken connection, no answer in time.
        refused: Of these, how many by status 429 or 503.
        compared: Answers that were compared with plain Python's.
        wrong: Of these, how many were different.
        own_cpu_ratio: CPUs that the load generator used itself.
    """

    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    resident_mib: float
    requests: int
    failed: int
    refused: int = 0
    compared: int = 0
    wrong: int = 0
    own_cpu_ratio: float = 0.0


@dataclass(frozen=True)
class OpenLoad:
    """What callers saw who come at a given rate, whatever the server does. Latency counts from when a request fell due.

    Attributes:
        offered_per_s: The rate at which requests fell due.
        per_s: Requests answered per second while they did.
        p50_ms: Median latency of those answered.
        p99_ms: 99th percentile of it.
        cpu_ms: The server's CPU milliseconds per answer, all its processes.
        failed: Requests without a good answer 10 s after the last fell due, or refused, or broken.
        refused: Of these, how many by status 429 or 503.
        compared: Answers that were compared with plain Python's.
        wrong: Of these, how many were different.
        own_cpu_ratio: CPUs that the load generator used itself.
    """

    offered_per_s: float
    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    failed: int
    refused: int
    compared: int
    wrong: int
    own_cpu_ratio: float


@dataclass(frozen=True)
class Burst:
    """What came of many requests at once, each on its own connection and sent again until it was answered.

    Attributes:
        requests: How many.
        makespan_s: From before the first connection was opened to the last good answer.
        p50_ms: Median time until a request was answered.
        cpu_ms: The server's CPU milliseconds per request, all its processes.
        refused: Answers 429 and 503; each was sent again.
        retries: Requests sent again, after refusals and broken connections.
        failed: Requests that never got a good answer.
        wrong: Answers that differ from plain Python's; all are compared.
        own_cpu_s: CPU seconds that the load generator used itself.
    """

    requests: int
    makespan_s: float
    p50_ms: float
    cpu_ms: float
    refused: int
    retries: int
    failed: int
    wrong: int
    own_cpu_s: float


def check(running: Running, workload: Workload, bodies: Sequence[bytes], expected: Sequence[list[Any]]) -> None:
    """Send every body, sixteen at a time so that batches form, and compare each answer with plain Python's.

    Of a server that answers a constant only the status is checked.

    Raises:
        ServerFailed: One answer is not the expected one.
    """

    def one(index: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
        try:
            connection.request("POST", running.server.path(workload), bodies[index], {"content-type": workload.content_type})
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise ServerFailed(f"{running.server.name} answers {workload.name} with status {response.status}: {text[:300]!r}")
        if not running.server.computes:
            return
        got = running.server.answers(json.loads(text))
        if not same(expected[index], got):
            raise ServerFailed(f"{running.server.name} answers {workload.name} {index} with {got!r}, plain Python says {expected[index]!r}")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, [i % len(bodies) for i in range(max(len(bodies), 64))]))


def same(expected: object, got: object) -> bool:
    """Whether two JSON values are equal, floats within rounding."""
    if isinstance(expected, bool) != isinstance(got, bool):
        return False  # Python's True equals 1
    if isinstance(expected, float) and isinstance(got, int | float):
        return math.isclose(expected, got, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    if isinstance(expected, dict) and isinstance(got, dict):
        return expected.keys() == got.keys() and all(same(value, got[name]) for name, value in expected.items())
    if isinstance(expected, list | tuple) and isinstance(got, list | tuple):
        return len(expected) == len(got) and all(same(a, b) for a, b in zip(expected, got, strict=True))
    return expected == got


def load(
    running: Running,
    workload: Workload,
    files: Sequence[Path],
    clients: int,
    seconds: float,
    expected: Sequence[list[Any]] | None = None,
) -> Load:
    """Load a server with so many clients, each sending its next request when it has its answer (a closed loop).

    Args:
        running: The server.
        workload: What is sent.
        files: Its bodies, sent in turn.
        clients: How many, each on a connection of its own.
        seconds: For how long requests are begun; those begun are waited for, so that all work is counted.
        expected: Plain Python's answer to each file, to compare a sample of the answers with.
    """
    sent = _Sent.by(running, workload, files, expected, "closed", connections=clients, seconds=seconds, timeout=CLOSED_TIMEOUT_S)
    return Load(
        per_s=sent.count("answered") / sent.number("seconds"),
        p50_ms=sent.number("p50_ms"),
        p99_ms=sent.number("p99_ms"),
        cpu_ms=sent.cpu_ms,
        resident_mib=running.processes.pss_bytes() / 2**20,
        requests=sent.count("answered"),
        failed=sent.failed,
        refused=sent.count("refused"),
        compared=sent.compared,
        wrong=sent.wrong,
        own_cpu_ratio=sent.number("cpu_s") / sent.number("seconds"),
    )


def open_load(
    running: Running,
    workload: Workload,
    files: Sequence[Path],
    rate: float,
    seconds: float,
    expected: Sequence[list[Any]] | None = None,
) -> OpenLoad:
    """Load a server at a given rate of arrivals (Poisson), however long it takes to answer (an open loop).

    Args:
        running: The server.
        workload: What is sent.
        files: Its bodies, sent in turn.
        rate: Requests that fall due per second.
        seconds: For how long.
        expected: Plain Python's answer to each file, to compare a sample of the answers with.
    """
    sent = _Sent.by(
        running, workload, files, expected, "open", connections=OPEN_CONNECTIONS, rate=rate, seconds=seconds, timeout=OPEN_TIMEOUT_S
    )
    return OpenLoad(
        offered_per_s=rate,
        per_s=sent.count("in_time") / seconds,
        p50_ms=sent.number("p50_ms"),
        p99_ms=sent.number("p99_ms"),
        cpu_ms=sent.cpu_ms,
        failed=sent.failed,
        refused=sent.count("refused"),
        compared=sent.compared,
        wrong=sent.wrong,
        own_cpu_ratio=sent.number("cpu_s") / seconds,
    )


def burst(running: Running, workload: Workload, files: Sequence[Path], expected: Sequence[list[Any]], requests: int = 300) -> Burst:
    """Send so many requests at once, each on a connection of its own; refused and broken ones are sent again.

    Args:
        running: The server.
        workload: What is sent.
        files: Its bodies, sent in turn.
        expected: Plain Python's answer to each file; every answer is compared.
        requests: How many.
    """
    sent = _Sent.by(running, workload, files, expected, "burst", keep=requests, connections=requests, timeout=BURST_TIMEOUT_S)
    return Burst(
        requests=requests,
        makespan_s=sent.number("seconds"),
        p50_ms=sent.number("p50_ms"),
        cpu_ms=sent.cpu_ms,
        refused=sent.count("refused"),
        retries=sent.count("retries"),
        failed=requests - sent.count("answered"),
        wrong=sent.wrong,
        own_cpu_s=sent.number("cpu_s"),
    )


@dataclass(frozen=True)
class _Sent:
    """What the load generator reports, with what the server spent meanwhile and how many of the sampled answers were wrong."""

    report: dict[str, Any]
    server_cpu_s: float
    compared: int
    wrong: int

    @classmethod
    def by(
        cls,
        running: Running,
        workload: Workload,
        files: Sequence[Path],
        expected: Sequence[list[Any]] | None,
        mode: str,
        keep: int = COMPARED,
        **options: float,
    ) -> _Sent:
        with tempfile.TemporaryDirectory() as scratch:
            answers = Path(scratch) / "answers"
            command = [str(compiled(SENDER)), mode, str(running.port), running.server.path(workload), workload.content_type]
            command += [f"{name}={value}" for name, value in options.items()]
            if expected is not None and running.server.computes:
                command += [f"keep={keep}", f"answers={answers}"]
            cpu_s = running.processes.cpu_s()
            done = subprocess.run([*command, "--", *map(str, files)], capture_output=True, text=True, check=False)
            cpu_s = running.processes.cpu_s() - cpu_s
            if done.returncode:
                raise ServerFailed(f"the load generator failed against {running.server.name}: {done.stderr[-500:]}")
            kept = list(_kept(answers.read_bytes())) if answers.exists() else []
        wrong = sum(not same(expected[turn % len(files)], _answer(running, body)) for turn, body in kept) if expected else 0
        return cls(json.loads(done.stdout), cpu_s, len(kept), wrong)

    def count(self, name: str) -> int:
        return int(self.report[name])

    def number(self, name: str) -> float:
        return float(self.report[name])

    @property
    def failed(self) -> int:
        """Requests that fell due and got no good answer."""
        return sum(self.count(name) for name in ("refused", "rejected", "broken", "timeouts", "unanswered"))

    @property
    def cpu_ms(self) -> float:
        return 1e3 * self.server_cpu_s / max(self.count("answered"), 1)


def _kept(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the number of the request and the answer's body, for each answer the load generator kept."""
    place = 0
    while place < len(data):
        end = data.index(b"\n", place)
        turn, _, size = map(int, data[place:end].split())
        place = end + 1 + size
        yield turn, data[end + 1 : place]


def _answer(running: Running, body: bytes) -> object:
    """Return the predictions in an answer, or what came instead."""
    try:
        return running.server.answers(json.loads(body))
    except (ValueError, KeyError, TypeError):
        return body
