"""What a burst must outlive: a killed client, killed and drained replicas, a proxy less patient than the burst is long."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from loadtest.fleet import Fleet
from loadtest.samples import read_samples

ROOT = Path(__file__).parents[2]
COMMANDS = Path(sys.executable).parent
N = 300


def start_client(directory: Path, url: str, name: str) -> subprocess.Popen[str]:
    """Start `samegraph-client burst` with the journal; it writes its report when it is over."""
    command = [str(COMMANDS / "samegraph-client"), "burst", "penguins", str(directory / "items.jsonl"), "--url", url, "--quiet"]
    command += ["--journal", str(directory / "journal"), "--output", str(directory / f"{name}.jsonl")]
    command += ["--report", str(directory / f"{name}.json"), "--header", "x-caller:burst"]
    return subprocess.Popen(command, cwd=directory, stderr=subprocess.PIPE, text=True, env=dict(os.environ))


def entries(journal: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal."""
    text = journal.read_text() if journal.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def await_answers(client: subprocess.Popen[str], journal: Path, count: int) -> None:
    """Wait until the journal has so many answers."""
    deadline = time.monotonic() + 120
    while sum("answer" in entry for entry in entries(journal)) < count:
        assert client.poll() is None, client.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_client_goes_on_over_replicas_that_are_lost(tmp_path: Path) -> None:
    """SIGKILL of client and replica, SIGTERM of another: every item once in the journal, and right; none again after its answer."""
    samples = tmp_path / "samples.jsonl"
    export = [str(COMMANDS / "samegraph"), "golden", "export", str(ROOT / "models" / "penguins" / "1"), "--output", str(samples)]
    subprocess.run(export, check=True, capture_output=True)
    chosen = [sample for sample in read_samples(samples) if isinstance(sample.raw, list) and len(sample.raw) == 1]
    chosen = [chosen[index % len(chosen)] for index in range(N)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(sample.raw[0]) + "\n" for sample in chosen))
    repository, journal = tmp_path / "models", tmp_path / "journal"
    shutil.copytree(ROOT / "models" / "penguins" / "1", repository / "penguins" / "1")
    slow = {"EXECUTION__SIMULATED_BATCH_S": "0.3", "EXECUTION__RUN_SLOTS": "1", "EXECUTION__MAX_BATCH_SIZE": "8"}
    clients: list[subprocess.Popen[str]] = []
    try:
        with Fleet(repository, 3, slow) as fleet:
            clients.append(start_client(tmp_path, fleet.url, "first"))
            await_answers(clients[0], journal, N // 6)
            clients[0].send_signal(signal.SIGKILL)
            clients[0].communicate(timeout=60)
            known = entries(journal)
            fleet.replicas[0].kill()
            clients.append(start_client(tmp_path, fleet.url, "second"))
            await_answers(clients[1], journal, N // 2)
            fleet.replicas[1].terminate()
            _, told = clients[1].communicate(timeout=120)
    finally:
        for client in clients:
            client.kill()
            client.communicate()
    assert clients[1].returncode == 0, told
    report = json.loads((tmp_path / "second.json").read_text())
    before = {entry["i"] for entry in known if "answer" in entry}
    assert N // 6 <= len(before) < N
    assert (report["items"], report["answered"], report["failed"]) == (N, N, 0)
    assert (report["replayed"], report["sent"]) == (len(before), N - len(before))
    assert Counter(entry["i"] for entry in entries(journal) if "answer" in entry) == Counter(range(N))
    after = entries(journal)[len(known) :]
    assert not before & {entry["i"] for entry in after if "i" in entry}
    written = [json.loads(line) for line in (tmp_path / "second.jsonl").read_text().splitlines()]
    assert [line["index"] for line in written] == list(range(N))
    assert [wrong for sample, line in zip(chosen, written, strict=True) if (wrong := sample.wrong([line["prediction"]]))] == []


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["proxy", "proxy-unaware"])
def test_burst_longer_than_a_proxys_patience_is_answered_whole(tmp_path: Path, scenario: str) -> None:
    """Four seconds of work behind a proxy that waits for two: nothing is lost, and who knows of it has nothing computed twice."""
    figures = tmp_path / "figures.json"
    command = [
        sys.executable,
        "-m",
        "loadtest",
        scenario,
        "--frames",
        "160",
        "--report",
        str(tmp_path / "page.html"),
        "--json",
        str(figures),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    found = json.loads(figures.read_text())
    assert done.returncode == 0, done.stdout + done.stderr
    assert (found["items"], found["lost"], found["wrong"]) == (160, 0, 0)
    if scenario == "proxy":
        assert found["executed"] == 160
