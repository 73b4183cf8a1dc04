"""The command line, and what it writes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from clips import write_clip
from prometheus_client import CollectorRegistry
from samegraph_client import Client
from samegraph_client.commands import samegraph_client
from samegraph_client.metrics import ClientMetrics
from scripted_server import predicted, refused, scripted_server


def run(*arguments: str, stdin: str | None = None) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(samegraph_client, list(arguments), input=stdin)


def test_predict_prints_the_prediction(tmp_path: Path) -> None:
    """JSON in, JSON out; a file is sent as its bytes, the pin and the unit go along."""
    image = tmp_path / "cat.jpg"
    image.write_bytes(b"\xff\xd8\xffcat")
    with scripted_server(predicted({"label": "cat"})) as server:
        row = run("predict", "m", '{"x": 1}', "--url", server.url, "--label", "canary", "--unit", "user-7", "--header", "x-key: abc")
        file = run("predict", "m", f"@{image}", "--url", server.url)
    assert (row.exit_code, json.loads(row.stdout)) == (0, {"label": "cat"})
    assert file.exit_code == 0
    first, second = server.received
    assert first.path == "/v1/models/m/labels/canary:predict"
    assert (first.headers["samegraph-unit"], first.headers["x-key"]) == ("user-7", "abc")
    assert second.body == b"\xff\xd8\xffcat"


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_burst_writes_every_outcome(tmp_path: Path, suffix: str) -> None:
    """Files and lines in, one row each out, in order, with their names."""
    (tmp_path / "a.bin").write_bytes(b"a")
    (tmp_path / "rows.jsonl").write_text('{"x": 1}\n\n{"x": 2}\n')
    output = tmp_path / f"out.{suffix}"
    inputs = [str(tmp_path / "a.bin"), str(tmp_path / "rows.jsonl")]
    with scripted_server(predicted({"label": "cat"}, samegraph_model="m", samegraph_model_version="3")) as server:
        result = run("burst", "m", *inputs, "--url", server.url, "-o", str(output), "--report", str(tmp_path / "report.json"))
    assert result.exit_code == 0, result.output
    if suffix == "parquet":
        rows = pq.read_table(output).to_pylist()
    elif suffix == "csv":
        rows = list(csv.DictReader(output.read_text().splitlines()))
    else:
        rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [int(row["index"]) for row in rows] == [0, 1, 2]
    assert [row["name"] for row in rows] == [inputs[0], f"{inputs[1]}:1", f"{inputs[1]}:3"]
    predictions = [row["prediction"] if suffix == "jsonl" else json.loads(row["prediction"]) for row in rows]
    assert predictions == [{"label": "cat"}] * 3
    assert [str(row["version"]) for row in rows] == ["3"] * 3
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["items"], report["answered"], report["attempts"]) == (3, 3, 3)
    assert "3 of 3 answered; 3 attempts (1.00 each), 0 refusals" in result.stderr


def test_lost_items_are_the_exit_code() -> None:
    """Standard input to standard output; an item without a prediction has its line, and the command fails."""
    with scripted_server(predicted(1), refused(400, "x is odd", code="bad", retryable=False)) as server:
        result = run("burst", "m", "-", "--url", server.url, "--quiet", stdin='{"x": 1}\n{"x": 2}\n')
    assert result.exit_code == 1
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["index"] for line in lines] == [0, 1]
    assert sorted(line["ok"] for line in lines) == [False, True]
    assert any("InputRejected: x is odd" in line.get("error", "") for line in lines)
    assert "1 of 2 have no prediction: 1 × InputRejected" in result.stderr


def test_server_that_never_came_is_named() -> None:
    """The burst waits until its deadline; then every input has its line, and the last words say where nobody was."""
    with scripted_server(predicted(1), listening=False) as server:
        result = run("burst", "m", "-", "--url", server.url, "--quiet", "--deadline", "0.3", stdin='{"x": 1}\n' * 20)
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 20
    assert "20 of 20 have no prediction: 20 × DeadlineExceeded; the first: no answer within 0." in result.stderr
    assert f"no connection to {server.url}" in result.stderr


def test_frames_of_a_video(tmp_path: Path) -> None:
    """One line per frame with its time; a damaged stream fails the command with a sentence."""
    clip = write_clip(tmp_path / "clip.avi", n=60, codec="mpeg4")
    cut = tmp_path / "cut.avi"
    cut.write_bytes(clip.read_bytes()[: int(clip.stat().st_size * 0.7)])
    with scripted_server(predicted("cat")) as server:
        whole = run("frames", "m", str(clip), "--url", server.url)
        damaged = run("frames", "m", str(cut), "--url", server.url)
    lines = [json.loads(line) for line in whole.stdout.splitlines()]
    assert (whole.exit_code, [line["index"] for line in lines], lines[2]["time_s"]) == (0, list(range(60)), 0.08)
    assert damaged.exit_code == 1
    assert "cut.avi is damaged: " in damaged.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "m", "not json"], "RAW is not JSON"),
        (["predict", "m", "1", "--version", "1", "--label", "a"], "not both"),
        (["predict", "m", "1", "--header", "nonsense"], "is not NAME:VALUE"),
        (["burst", "m", "x", "-o", "out.txt"], "ends in none of .jsonl"),
        (["burst", "m", "x", "--format", "parquet"], "give a file with --output"),
        (["burst", "m", "/nowhere/rows.jsonl"], "cannot read /nowhere/rows.jsonl"),
    ],
)
def test_wrong_use_is_a_sentence(arguments: list[str], words: str) -> None:
    """Exit code 2 and what to do, never a traceback."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr


def test_failure_is_a_sentence() -> None:
    """What the server says is what is shown."""
    with scripted_server(refused(404, "there is no model 'm'", code="unknown_model", retryable=False)) as server:
        result = run("predict", "m", "1", "--url", server.url)
    assert (result.exit_code, result.stderr) == (1, "there is no model 'm' (status 404)\n")


def test_missing_extra_is_a_sentence() -> None:
    """Without click the command says what to install."""
    program = "import sys; sys.modules['click'] = None; from samegraph_client.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "the samegraph-client command needs optional packages: pip install 'samegraph-client[cli]'\n"


def test_counters_for_prometheus() -> None:
    """Attempts, refusals, waits and calls are counted, in a registry of the caller's."""
    registry = CollectorRegistry()
    with (
        scripted_server(refused(headers={"retry-after-ms": "10"}), predicted(1), refused(400, code="bad", retryable=False)) as server,
        Client(server.url, hooks=[ClientMetrics(registry)]) as client,
    ):
        outcomes = list(client.predict_many("m", [{"x": 1}, {"x": 2}]))
    assert sum(outcome.ok for outcome in outcomes) == 1

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"samegraph_client_{name}", labels)

    assert [value("attempts_total", outcome=outcome) for outcome in ("answered", "refused", "failed")] == [1, 1, 1]
    assert [value("calls_total", outcome=outcome) for outcome in ("answered", "failed")] == [1, 1]
    assert value("attempt_duration_seconds_count") == 3
    assert (value("wait_seconds_total") or 0) >= 0.01
    assert value("in_flight") == 0
