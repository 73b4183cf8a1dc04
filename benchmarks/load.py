"""Drive a server: check its answers, then load it with wrk and count what it cost."""

from __future__ import annotations

import http.client
import json
import math
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import process_cpu_s, resident_bytes
from benchmarks.servers import Running, ServerFailed
from benchmarks.workloads import Workload

SCRIPT = Path(__file__).with_name("post.lua")
#: Floats may differ by what JSON text and another batch size do to them; labels may not differ at all.
RELATIVE, ABSOLUTE = 1e-5, 1e-6


@dataclass(frozen=True)
class Load:
    """What one run of wrk saw, and what the server spent on it.

    Attributes:
        per_s: Requests answered per second.
        p50_ms: Median latency.
        p99_ms: 99th percentile of the latency.
        cpu_ms: The server's CPU milliseconds per request, all its processes.
        resident_mib: Its resident memory at the end.
        requests: How many were answered.
        failed: Answers with a status over 399, broken connections and timeouts.
    """

    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    resident_mib: float
    requests: int
    failed: int


def check(running: Running, workload: Workload, bodies: Sequence[bytes], expected: Sequence[list[Any]]) -> None:
    """Send every body, sixteen at a time so that batches form, and compare each answer with plain Python's.

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


def load(running: Running, workload: Workload, bodies: Sequence[Path], clients: int, seconds: int) -> Load:
    """Load a server with so many clients, each sending its next request when it has its answer (a closed loop)."""
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "30s", "-s", str(SCRIPT)]
    command += [running.url(running.server.path(workload)), "--", workload.content_type, *map(str, bodies)]
    cpu = process_cpu_s(running.pid)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    cpu = process_cpu_s(running.pid) - cpu
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise ServerFailed(f"wrk failed against {running.server.name}: {done.stdout[-500:]}{done.stderr[-500:]}")
    seen = json.loads(lines[0].removeprefix("RESULT "))
    answered = max(seen["requests"], 1)
    return Load(
        per_s=seen["requests"] / seen["seconds"],
        p50_ms=seen["p50_ms"],
        p99_ms=seen["p99_ms"],
        cpu_ms=1e3 * cpu / answered,
        resident_mib=resident_bytes(running.pid) / 2**20,
        requests=seen["requests"],
        failed=seen["failed"],
    )
