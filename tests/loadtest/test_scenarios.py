"""Load tests as they are run: against real servers, small, with their verdicts and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def run(tmp_path: Path, module: str, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Run one to its end; return exit code, figures and what it printed."""
    figures = tmp_path / "figures.json"
    page = ["--report", str(tmp_path / "report.html")] if module == "loadtest" else []
    command = [sys.executable, "-m", module, *arguments, *page, "--json", str(figures)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, json.loads(figures.read_text()) if figures.exists() else {}, done.stdout + done.stderr


@pytest.mark.slow
def test_burst_is_answered_whole_through_the_gate(tmp_path: Path) -> None:
    """Every frame once, every answer the golden one, and a page to look at."""
    code, figures, text = run(tmp_path, "loadtest", "burst", "--model", "penguins", "--frames", "120", "--repeats", "1")
    assert (figures["items"], figures["lost"], figures["wrong"]) == (120, 0, 0), text
    assert figures["attempts_per_item"] <= 1.1
    assert code in (0, 1)  # the makespan's ratio is the machine's, which others may use too
    met = {check["what"]: check["met"] for check in figures["checks"]}
    assert sum(not value for value in met.values()) == code
    assert "<svg" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_replicas_lost_in_the_middle_lose_no_frame(tmp_path: Path) -> None:
    """One killed, one drained, one started again, behind a balancer."""
    code, figures, text = run(tmp_path, "loadtest", "replica-loss", "--frames", "500")
    assert code == 0, text
    assert [note.split()[0] for _, note in figures["notes"]] == ["killed", "asked", "started"]
    assert (figures["items"], figures["lost"], figures["wrong"]) == (500, 0, 0)


@pytest.mark.slow
def test_units_keep_their_arm(tmp_path: Path) -> None:
    """Open arrivals with units over two replicas: stickiness and shares are judged, and nothing is lost."""
    _, figures, text = run(tmp_path, "loadtest", "experiment", "--rate", "80", "--duration", "4")
    met = {check["what"]: check["met"] for check in figures["checks"]}
    assert met["units that saw more than one arm"], text
    assert met["share of units in arm treatment"], text
    assert figures["lost"] == 0


@pytest.mark.slow
def test_wrong_answers_set_the_exit_code(tmp_path: Path) -> None:
    """Golden answers of which one was changed: the run says which."""
    samples = tmp_path / "samples.jsonl"
    command = [str(Path(sys.executable).with_name("samegraph")), "golden", "export", str(ROOT / "models" / "penguins" / "1")]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    changed = json.loads(lines[0])
    changed["predictions"][0]["label"] = "Dodo"
    samples.write_text("\n".join([json.dumps(changed), *lines[1:20]]))
    code, figures, text = run(
        tmp_path, "loadtest", "burst", "--model", "penguins", "--frames", "40", "--repeats", "1", "--golden", str(samples)
    )
    assert code == 1, text
    assert figures["wrong"] == 2
    assert "Dodo" in (tmp_path / "report.html").read_text()


def test_what_cannot_be_run_says_why(tmp_path: Path) -> None:
    """A model that is not there, a server that is not ours to load."""
    code, _, text = run(tmp_path, "loadtest", "burst", "--model", "nothing")
    assert (code, "no model nothing" in text) == (3, True)
    code, _, text = run(tmp_path, "loadtest", "burst", "--url", "http://192.0.2.1:8000")
    assert (code, "not on this machine" in text) == (3, True)


@pytest.mark.slow
def test_founding_scenario_through_the_gate_needs_one_attempt_a_frame(tmp_path: Path) -> None:
    """The story in a fiftieth of its time: ours sends every frame once; the founders' backoff sends it again and again."""
    code, figures, text = run(tmp_path, "loadtest.founding", "--scale", "50", "--repeats", "1", "--callers", "founders", "samegraph")
    assert code == 0, text
    attempts = {(r["caller"], r["cold"]): r["attempts"] for r in figures["results"]}
    assert attempts["samegraph", False] <= 330
    assert attempts["samegraph", True] <= 330
    assert attempts["founders", False] > 600
    assert all(r["lost"] == r["wrong"] == 0 for r in figures["results"])
