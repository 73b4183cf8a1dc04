"""The servers that are measured. A peer is one more `Server` here: how to start it, and where it answers.

Every contender gets the same bodies, the same load and the same check of its answers; what differs between them (the path, the shape of
the answer) is said here.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.workloads import Workload

START_S = 120.0


@dataclass(frozen=True)
class Server:
    """How one contender is run.

    Attributes:
        name: For tables.
        command: Port and repository → the command line.
        ready: Path that answers 200 once requests will be answered.
        path: Where a workload is sent.
        answers: The list of predictions in an answer's JSON document.
        environment: Variables it is started with.
    """

    name: str
    command: Callable[[int, Path], list[str]]
    ready: str
    path: Callable[[Workload], str]
    answers: Callable[[Any], list[Any]]
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Running:
    """A server that is up.

    Attributes:
        server: Which.
        pid: Of its first process.
        port: Where it listens, on 127.0.0.1.
        ready_s: Seconds from start to ready.
        command: What was started, for the record.
    """

    server: Server
    pid: int
    port: int
    ready_s: float
    command: list[str]

    def url(self, path: str) -> str:
        """Return an address of it."""
        return f"http://127.0.0.1:{self.port}{path}"


def _samegraph(port: int, repository: Path) -> list[str]:
    program = Path(sys.executable).with_name("samegraph")
    return [str(program), "serve", "--repository", str(repository), "--host", "127.0.0.1", "--port", str(port), "--no-access-log"]


SERVERS = {
    "samegraph": Server(
        name="samegraph",
        command=_samegraph,
        ready="/readyz",
        path=lambda workload: workload.path,
        answers=lambda document: list(document["predictions"]),
    ),
}


class ServerFailed(RuntimeError):
    """Raised when a server does not start or answers wrongly; says which and shows its last lines."""


@contextmanager
def running(server: Server, repository: Path, log: Path) -> Iterator[Running]:
    """Start a server on a free port, wait until it is ready, and stop it with SIGTERM at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = server.command(port, repository)
    began = time.monotonic()
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **dict(server.environment)})
    try:
        _wait_until_ready(process, f"http://127.0.0.1:{port}{server.ready}", server, log)
        shown = [Path(command[0]).name, *(word for word in command[1:])]
        shown = ["PORT" if word == str(port) else _relative(word) for word in shown]
        yield Running(server, process.pid, port, time.monotonic() - began, shown)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _relative(word: str) -> str:
    """Return a path below the working directory without the directory: a record should not name places on this machine."""
    return os.path.relpath(word) if word.startswith(str(Path.cwd())) else word


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, server: Server, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerFailed(f"{server.name} ended with exit code {process.returncode} before it was ready:\n{_last_lines(log)}")
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise ServerFailed(f"{server.name} was not ready after {START_S:g} s:\n{_last_lines(log)}")


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
