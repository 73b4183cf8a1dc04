"""A real Prometheus on loopback that scrapes what a test gives it, often, and keeps nothing afterwards."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Labels, as sorted pairs → value.
Series = dict[tuple[tuple[str, str], ...], float]
PATIENCE_S = 60.0
#: Often enough for a test of seconds. Prometheus takes fractions of a second as milliseconds.
INTERVAL = "500ms"


def wait_for(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Ask again and again until `condition` holds; AssertionError that names `what` when it never does."""
    deadline = time.monotonic() + patience_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"after {patience_s:g} s still not: {what}"
        pause.wait(0.05)


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Prometheus:
    """Talks to the running Prometheus.

    Attributes:
        url: Where it answers.
        at: The moment queries are asked about, in seconds since the epoch; None is the moment they are asked.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.at: float | None = None

    def get(self, path: str, **parameters: str) -> Any:
        """Return `data` of an answer of the HTTP API; AssertionError with Prometheus' own words when it refuses."""
        query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        try:
            with urllib.request.urlopen(f"{self.url}{path}{query}", timeout=30) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters or path}: {json.load(error)['error']}") from error

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def query(self, expression: str) -> Series:
        """Return the series an expression gives."""
        data = self.get("/api/v1/query", query=expression, **({} if self.at is None else {"time": repr(self.at)}))
        if data["resultType"] == "scalar":
            return {(): float(data["result"][1])}
        return {tuple(sorted(one["metric"].items())): float(one["value"][1]) for one in data["result"]}

    def by(self, label: str, expression: str) -> dict[str, float]:
        """Return what an expression gives by one label, which must tell its series apart."""
        found = [(dict(labels)[label], value) for labels, value in self.query(expression).items()]
        assert len(dict(found)) == len(found), f"{expression}: {label} does not tell its series apart"
        return dict(found)

    def value(self, expression: str) -> float:
        """Return the one value an expression gives; NaN without one."""
        found = list(self.query(expression).values())
        assert len(found) <= 1, f"{expression} gives {len(found)} series"
        return found[0] if found else float("nan")

    def rules(self) -> Iterator[dict[str, Any]]:
        """Yield every rule as Prometheus has it, with its health."""
        for group in self.get("/api/v1/rules")["groups"]:
            yield from group["rules"]


@contextmanager
def prometheus(directory: Path, targets: Sequence[str], rule_files: Sequence[Path], **extra: Mapping[str, Any]) -> Iterator[Prometheus]:
    """Run Prometheus over `targets` (host:port), as the job `samegraph`, until the block ends."""
    scrape = {"job_name": "samegraph", "static_configs": [{"targets": list(targets)}]}
    config = {
        "global": {"scrape_interval": INTERVAL, "scrape_timeout": INTERVAL, "evaluation_interval": INTERVAL},
        "rule_files": [str(path) for path in rule_files],
        "scrape_configs": [scrape],
        **extra,
    }
    (directory / "prometheus.json").write_text(json.dumps(config), encoding="utf-8")
    port = free_port()
    command = ["prometheus", f"--config.file={directory / 'prometheus.json'}", f"--storage.tsdb.path={directory / 'series'}"]
    with (directory / "prometheus.log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"], stderr=log)
        try:
            running = Prometheus(port)
            wait_for(lambda: process.poll() is not None or running.ready(), "Prometheus is ready")
            assert process.poll() is None, (directory / "prometheus.log").read_text(encoding="utf-8")
            yield running
        finally:
            process.terminate()
            process.wait(PATIENCE_S)
