"""The servers under test, started here on loopback: one replica, or several behind Debian's HAProxy. Everything started is ended."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self

START_S = 120.0
#: Name of the header that says who a caller is; the replicas are told to read it.
CALLER_HEADER = "x-caller"

_HAPROXY = """\
global
    maxconn 4096
    nbthread 1
defaults
    mode http
    timeout connect 2s
    timeout client {timeout_s}s
    timeout server {timeout_s}s
    option redispatch
    retries 3
    retry-on conn-failure empty-response
    default-server inter 200ms fall 1 rise 1
frontend door
    bind 127.0.0.1:{port}
    default_backend replicas
backend replicas
    balance leastconn
    option httpchk GET /readyz
{servers}
"""


class FleetError(RuntimeError):
    """Raised when a server does not start; says what it wrote."""


def free_port() -> int:
    """Return a port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Replica:
    """One `samegraph serve` process.

    Args:
        repository: Model repository.
        port: Where it listens.
        settings: Variables without their `SAMEGRAPH_` prefix.

    Attributes:
        url: Its address.
    """

    def __init__(self, repository: Path, port: int, settings: Mapping[str, str]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        command = [str(Path(sys.executable).with_name("samegraph")), "serve", "--repository", str(repository), "--port", str(port)]
        command += ["--no-access-log", "--log-format", "json"]
        environment = {**os.environ, **{f"SAMEGRAPH_{name}": value for name, value in settings.items()}}
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.lines: list[str] = []
        assert self._process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stderr,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self.lines.append(line.rstrip("\n"))
            del self.lines[:-200]

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process.poll() is None

    def await_ready(self) -> None:
        """Wait until it answers predictions.

        Raises:
            FleetError: It ended, or is not ready after two minutes.
        """
        deadline = time.monotonic() + START_S
        while not answers(f"{self.url}/readyz"):
            if not self.running or time.monotonic() > deadline:
                raise FleetError(f"the server at {self.url} did not become ready:\n" + "\n".join(self.lines[-20:]))
            time.sleep(0.05)

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        self._process.kill()
        self._process.wait()

    def terminate(self) -> None:
        """Ask it to drain and end (SIGTERM); does not wait."""
        self._process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """Make sure that it is gone."""
        if self.running:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
        self._reader.join(5)
        if self._process.stderr is not None:
            self._process.stderr.close()


class Fleet:
    """Replicas of one repository, behind a balancer when there are several.

    Args:
        repository: Model repository.
        replicas: How many.
        settings: Variables for each, without their prefix.
        balanced: Whether a balancer stands in front even of one.
        timeout_s: After how long the balancer gives up on an answer.

    Attributes:
        url: Where callers send.
        replicas: The processes, ended ones included.
    """

    def __init__(
        self,
        repository: Path,
        replicas: int = 1,
        settings: Mapping[str, str] | None = None,
        *,
        balanced: bool | None = None,
        timeout_s: int = 60,
    ) -> None:
        self._repository = repository
        self._settings = {"ADMISSION__CALLER_HEADER": CALLER_HEADER, **(settings or {})}
        self._balanced = replicas > 1 if balanced is None else balanced
        self._timeout_s = timeout_s
        self._directory = Path(tempfile.mkdtemp(prefix="samegraph-load-"))
        self._ports = [free_port() for _ in range(replicas)]
        self._proxy: subprocess.Popen[bytes] | None = None
        self.replicas: list[Replica] = []
        self.url = f"http://127.0.0.1:{self._ports[0]}"

    def __enter__(self) -> Self:
        try:
            for port in self._ports:
                self.replicas.append(Replica(self._repository, port, self._settings))
            for replica in self.replicas:
                replica.await_ready()
            if self._balanced:
                self._start_balancer()
        except BaseException:  # KeyboardInterrupt as well: no replica may be left running
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def addresses(self) -> list[str]:
        """Addresses of the replicas themselves."""
        return [f"http://127.0.0.1:{port}" for port in self._ports]

    def start_again(self, number: int) -> None:
        """Start the replica of that number anew, after it has ended; does not wait for it."""
        self.replicas[number].close()
        self.replicas[number] = Replica(self._repository, self._ports[number], self._settings)

    def close(self) -> None:
        """End everything."""
        if self._proxy is not None:
            self._proxy.terminate()
            self._proxy.wait(20)
            self._proxy = None
        for replica in self.replicas:
            replica.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _start_balancer(self) -> None:
        program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
        if program is None:
            raise FleetError("several replicas need a balancer in front; install Debian's package haproxy")
        port = free_port()
        servers = "\n".join(f"    server replica{i} 127.0.0.1:{p} check" for i, p in enumerate(self._ports))
        configuration = self._directory / "haproxy.cfg"
        configuration.write_text(_HAPROXY.format(port=port, servers=servers, timeout_s=self._timeout_s))
        self.url = f"http://127.0.0.1:{port}"
        self._proxy = subprocess.Popen([program, "-f", str(configuration), "-db"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _until(lambda: answers(f"{self.url}/readyz"), 30.0, "the balancer does not answer")


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


@contextlib.contextmanager
def existing(url: str) -> Iterator[str]:
    """Use a server that runs already.

    Raises:
        FleetError: It is not on loopback, or not ready: load is never sent to somebody else's machine by mistake.
    """
    host = url.partition("://")[2].partition("/")[0].rpartition(":")[0].strip("[]")
    if host not in ("127.0.0.1", "localhost", "::1"):
        raise FleetError(f"{url} is not on this machine; start the load test there, or reach the server through a tunnel on 127.0.0.1")
    if not answers(f"{url.rstrip('/')}/readyz"):
        raise FleetError(f"no samegraph server is ready at {url}")
    yield url.rstrip("/")


def _until(condition: Callable[[], bool], seconds: float, problem: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise FleetError(problem)
        time.sleep(0.05)
