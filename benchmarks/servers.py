"""The servers that are measured. A peer is one more `Server` here: how to start it, and where it answers.

Every contender gets the same bodies, the same load and the same check of its answers; what differs between them (the path, the shape of
the answer) is said here. What each peer runs, and which configurations were tried, stands in peers/<name>/app.py.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.machine import cores
from benchmarks.native import CompilerFailed, compiled
from benchmarks.peers.install import missing, pins, program, python
from benchmarks.processes import MARK, Processes
from benchmarks.workloads import Workload

ROOT = Path(__file__).resolve().parent.parent
PEERS = Path(__file__).resolve().parent / "peers"
START_S = 120.0


def _nothing_more(_workload: Workload, _repository: Path | None) -> Mapping[str, str]:
    return {}


def _no_reason(_workload: Workload, _repository: Path | None) -> str | None:
    return None


@dataclass(frozen=True)
class Server:
    """How one contender is run.

    Attributes:
        name: For tables.
        command: Port and a repository with the workload's model → the command line.
        ready: Path that answers 200 once the server is up.
        path: Where a workload is sent.
        answers: The list of predictions in an answer's JSON document.
        environment: Workload and repository → variables it is started with, beside those of this process.
        reason: Why it cannot run a workload, or None.
        version: What is measured, in words; empty when that is unknown.
        computes: Whether its answers depend on what is sent; the floor's do not, so they cannot be checked.
    """

    name: str
    command: Callable[[int, Path], list[str]]
    ready: str
    path: Callable[[Workload], str]
    answers: Callable[[Any], list[Any]]
    environment: Callable[[Workload, Path | None], Mapping[str, str]] = _nothing_more
    reason: Callable[[Workload, Path | None], str | None] = _no_reason
    version: Callable[[], str] = str
    computes: bool = True

    def unavailable(self, workload: Workload, repository: Path | None = None) -> str | None:
        """Return why this server cannot be measured with a workload, for the table, or None when it can.

        Args:
            workload: What would be sent.
            repository: Where its package is, if not where it is built.
        """
        return self.reason(workload, repository)


@dataclass(frozen=True)
class Running:
    """A server that is up.

    Attributes:
        server: Which.
        pid: Of its first process.
        port: Where it listens, on 127.0.0.1.
        ready_s: Seconds from start until the first request of the workload was answered.
        command: What was started, for the record.
        mark: What all its processes have in their environment; empty when there is none.
    """

    server: Server
    pid: int
    port: int
    ready_s: float
    command: list[str]
    mark: str = ""

    def url(self, path: str) -> str:
        """Return an address of it."""
        return f"http://127.0.0.1:{self.port}{path}"

    @cached_property
    def processes(self) -> Processes:
        """All its processes."""
        return Processes(self.pid, self.mark)


def _predictions(document: Any) -> list[Any]:
    return list(document["predictions"])


def _samegraph(port: int, repository: Path) -> list[str]:
    serve = Path(sys.executable).with_name("samegraph")
    return [str(serve), "serve", "--repository", str(repository), "--host", "127.0.0.1", "--port", str(port), "--no-access-log"]


def _own_version() -> str:
    return f"samegraph {metadata.version('samegraph')}"


def _app(name: str) -> Callable[[int, Path], list[str]]:
    """Return the command of a peer that is one Python program."""
    return lambda port, _repository: [str(python(name)), str(PEERS / name / "app.py"), str(port)]


def _bentoml(port: int, _repository: Path) -> list[str]:
    app = ["--working-dir", str(PEERS / "bentoml"), "app:Predict"]
    return [str(program("bentoml", "bentoml")), "serve", "--host", "127.0.0.1", "--port", str(port), *app]


def _peer_environment(workload: Workload, repository: Path | None) -> dict[str, str]:
    """Tell a peer's app what `peers/model.py` reads, and let it import that."""
    model = workload.plain_model(repository)
    assert model is not None
    columns = [] if workload.is_image else workload.columns(repository)
    return {
        "PYTHONPATH": str(ROOT),
        "PEER_MODEL": str(model),
        "PEER_COLUMNS": json.dumps(columns),
        "PEER_CORES": str(cores()),
    }


def _peer_reason(name: str) -> Callable[[Workload, Path | None], str | None]:
    def reason(workload: Workload, repository: Path | None) -> str | None:
        if workload.plain_model(repository) is None:
            return f"{workload.model} has no plain form that peers could load"
        return missing(name)

    return reason


def _peer(
    name: str,
    *,
    path: str = "/predict",
    label: str = "",
    ready: str = "/health",
    command: Callable[[int, Path], list[str]] | None = None,
    answers: Callable[[Any], list[Any]] = _predictions,
    variables: Mapping[str, str] | None = None,
) -> Server:
    """Return a peer below `peers/`.

    Args:
        name: Of its directory, and of the distribution whose version is shown.
        path: Where requests are sent.
        label: Its name in tables, when that is another.
        ready: Path that answers 200 once it is up.
        command: How it is started, when not as a Python program.
        answers: The list of predictions in its answers.
        variables: More environment.
    """
    return Server(
        name=label or name,
        command=command or _app(name),
        ready=ready,
        path=lambda _workload: path,
        answers=answers,
        environment=lambda workload, repository: {**_peer_environment(workload, repository), **(variables or {})},
        reason=_peer_reason(name),
        version=lambda: f"{name} {pins(name)[name]}",
    )


def _floor_reason(_workload: Workload, _repository: Path | None) -> str | None:
    try:
        compiled(PEERS / "floor.c")
    except CompilerFailed as error:
        return f"not compiled: {error}"
    return None


_ALL = (
    Server("samegraph", _samegraph, "/readyz", lambda workload: workload.path, _predictions, version=_own_version),
    _peer("mosec", ready="/"),
    _peer("mosec", label="mosec-1", ready="/", variables={"PEER_BATCH": "1"}),
    _peer("mosec", label="mosec-32", ready="/", variables={"PEER_BATCH": "32"}),
    _peer("litserve"),
    _peer("bentoml", ready="/readyz", command=_bentoml, answers=list),
    _peer("ray", ready="/-/healthz", variables={"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}),
    _peer("fastapi"),
    _peer("kserve", path="/v1/models/peer:predict", ready="/v2/health/ready"),
    Server(
        name="floor",
        command=lambda port, _repository: [str(compiled(PEERS / "floor.c")), str(port)],
        ready="/",
        path=lambda _workload: "/",
        answers=_predictions,
        reason=_floor_reason,
        version=lambda: "an HTTP server in C that answers a constant",
        computes=False,
    ),
)
#: Name → server, in the order of tables.
SERVERS = {server.name: server for server in _ALL}


class ServerFailed(RuntimeError):
    """Raised when a server does not start or answers wrongly; says which and shows its last lines."""


@contextmanager
def running(server: Server, workload: Workload, log: Path, repository: Path | None = None) -> Iterator[Running]:
    """Start a server on a free port, wait until it answers, and end all its processes in the end.

    Args:
        server: Which.
        workload: What it will be asked; it gets this model and no other, so that memory and start compare.
        log: Where what it prints goes.
        repository: Where the workload's package is, if not where it is built.

    Raises:
        ServerFailed: It did not start, or not in time.
        ProcessesLeft: It cannot be ended.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="sg-", ignore_cleanup_errors=True) as scratch:  # a short name: Ray puts sockets below it
        repository_of_one, temporary = Path(scratch) / "models", Path(scratch) / "t"
        temporary.mkdir()
        package = workload.package(repository)
        shutil.copytree(package, repository_of_one / workload.model / package.name, copy_function=_link)
        command = server.command(port, repository_of_one)
        mark = uuid.uuid4().hex
        variables = {**os.environ, **server.environment(workload, repository), "TMPDIR": str(temporary), MARK: mark}
        began = time.monotonic()
        with log.open("w") as out:  # a session of its own: Ctrl-C is for the benchmark, which then ends the server
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=variables, start_new_session=True)
        processes = Processes(process.pid, mark)
        try:
            _wait_until_ready(process, server, port, workload.bodies(repository)[0], workload, log)
            shown = [Path(command[0]).name, *("PORT" if word == str(port) else _shown(word, repository_of_one) for word in command[1:])]
            yield Running(server, process.pid, port, time.monotonic() - began, shown, mark)
        finally:
            try:
                processes.end()
            finally:
                process.poll()  # reaps it


def _link(source: str, target: str) -> None:
    """Give a file a second name, or copy it where it cannot have one: a repository serves no symbolic link that leads out of it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _shown(word: str, repository: Path) -> str:
    """Return a word of a command line without the places of this machine."""
    return os.path.relpath(word, ROOT) if word.startswith(str(ROOT)) else word.replace(str(repository), "REPOSITORY")


def _wait_until_ready(process: subprocess.Popen[bytes], server: Server, port: int, first: bytes, workload: Workload, log: Path) -> None:
    """Wait until the path that says so answers 200, and then a first request: some fronts are up before their workers are."""
    deadline = time.monotonic() + START_S
    said = "nothing"
    up = urllib.request.Request(f"http://127.0.0.1:{port}{server.ready}")
    asked = urllib.request.Request(f"http://127.0.0.1:{port}{server.path(workload)}", first, {"content-type": workload.content_type})
    waiting = [up, asked]
    while waiting:
        if process.poll() is not None:
            raise ServerFailed(f"{server.name} ended with exit code {process.returncode} before it was ready:\n{_last_lines(log)}")
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise ServerFailed(f"{server.name} was not ready after {START_S:g} s; it said {said}:\n{_last_lines(log)}")
        try:
            with urllib.request.urlopen(waiting[0], timeout=left_s) as answer:
                waiting = waiting[answer.status == 200 :]
        except urllib.error.HTTPError as error:
            with error:
                said = f"{error.code} {error.read(300)!r}"
            time.sleep(0.02)
        except OSError as error:
            said = str(error)
            time.sleep(0.02)


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
