"""The service as its users start it: a `samegraph serve` process over a directory of packages."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "models"
START_S = 120


class ServerProcess:
    """One `samegraph serve`, listening on a port of the system's choice unless one is given.

    Attributes:
        url: Where it answers.
        process: The process.
        lines: What it wrote to standard error so far.
    """

    def __init__(self, repository: Path, *, announced: str = "samegraph answers on ", port: int = 0, **settings: str) -> None:
        command = [
            str(Path(sys.executable).with_name("samegraph")),
            "serve",
            "--repository",
            str(repository),
            "--port",
            str(port),
            "--log-format",
            "json",
        ]
        environment = {**os.environ, **{f"SAMEGRAPH_{name}": value for name, value in settings.items()}}
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment)
        self.lines: list[str] = []
        self._announced = announced
        self._answers: queue.Queue[str] = queue.Queue()
        assert self.process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stderr,), daemon=True)
        self._reader.start()
        self.url = self._answers.get(timeout=START_S)

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self.lines.append(line.rstrip("\n"))
            if line.startswith(self._announced):
                self._answers.put(line.removeprefix(self._announced).split()[0].rstrip(","))
        if self._answers.empty():
            self._answers.put("")

    def events(self) -> list[dict[str, Any]]:
        """Return the log so far."""
        return [json.loads(line) for line in self.lines if line.startswith("{")]

    def get(self, path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def terminate(self) -> int:
        """Send SIGTERM and return the exit status, with everything it wrote in `lines`."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(60)
        self._reader.join(60)
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()
