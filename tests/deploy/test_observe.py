"""`make observe` as its user meets it: a Prometheus that watches what runs, says so, and goes when told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_server import LiveServer, live_server
from package_builders import draft, samples
from prometheus import PATIENCE_S, Prometheus, free_port
from samegraph_transforms.pack import pack

ROOT = Path(__file__).parents[2]
OBSERVE = [sys.executable, str(ROOT / "scripts" / "observe.py")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    models = tmp_path_factory.mktemp("models")
    pack(draft(), samples(), models)
    with live_server(models) as live:
        yield live


def test_it_watches_until_interrupted(server: LiveServer, tmp_path: Path) -> None:
    """It names what is up and what is not, has our rules loaded, and an interrupt ends it and its Prometheus cleanly."""
    here, nowhere, port = server.url.removeprefix("http://"), f"127.0.0.1:{free_port()}", free_port()
    command = [*OBSERVE, "--port", str(port), "--data", str(tmp_path / "data"), "--scrape-interval", "1", here, nowhere]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            said = ""
            for line in process.stdout:
                said += line
                if "Ctrl-C" in line:
                    break
            assert f"{here:<24} up\n" in said
            assert f"{nowhere:<24} down: " in said
            assert f"http://127.0.0.1:{port}/alerts" in said
            running = Prometheus(port)
            assert running.value(f'samegraph_ready{{job="samegraph", instance="{here}"}}') == 1
            assert {"SamegraphInputDrifted", "field:samegraph_drift_psi:sum"} <= {rule["name"] for rule in running.rules()}
            os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C in a terminal does
            assert process.wait(PATIENCE_S) == 0
            assert not running.ready()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("target", ["http://127.0.0.1:8000", "127.0.0.1", "127.0.0.1:8000/metrics", "a b:1"])
def test_a_target_is_host_and_port(target: str) -> None:
    """What Prometheus would only fail at later is refused with the form it wants."""
    done = subprocess.run([*OBSERVE, target], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert repr(target) in done.stderr
    assert "host:port" in done.stderr


def test_a_taken_port_is_named(server: LiveServer) -> None:
    """It does not take somebody else's answers for its own."""
    done = subprocess.run([*OBSERVE, "--port", str(server.port)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "OBSERVE_PORT" in done.stderr


def test_without_prometheus_it_says_where_to_get_it(tmp_path: Path) -> None:
    """A machine without the program gets a sentence."""
    done = subprocess.run(OBSERVE, capture_output=True, text=True, check=False, env={"PATH": str(tmp_path)})
    assert done.returncode == 1
    assert "scripts/system-packages prometheus" in done.stderr
    assert "Traceback" not in done.stderr
