"""The GPU benchmark checks what it measures, and says in one sentence when there is nothing to measure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from package_builders import draft, samples
from samegraph_transforms.executor import CPU
from samegraph_transforms.manifest import Tolerance
from samegraph_transforms.pack import pack

from benchmarks import gpu as benchmark

PROMISE = Tolerance(atol=1e-5, rtol=1e-5)


def test_without_a_gpu_it_says_so_in_one_sentence_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """No figures from a CPU ever pass for a GPU's."""
    monkeypatch.setattr(benchmark, "gpu_present", lambda: False)
    assert benchmark.main(["--output", str(tmp_path)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert "no GPU here" in output.err
    assert list(tmp_path.iterdir()) == []


def test_both_ways_are_checked_measured_in_turn_and_written_down(tmp_path: Path) -> None:
    """On the CPU's backend the whole program runs: every size and number of threads gets a figure a round, and the result says where."""
    package = pack(draft(), samples(), tmp_path / "models")
    figures = benchmark.measure(package, CPU, rounds=2, seconds=0.002)
    assert sorted({f.rows for f in figures}) == [1, 2, 3, 4, 5, 8]
    assert len(figures) == 6 * 2 * 2
    assert all(len(f.per_s) == 2 and min(f.per_s) > 0 for f in figures)
    found = benchmark.record(package, figures, benchmark._options([]), {"name": "Test GPU 1", "driver_version": "1.2"})
    data, text = benchmark.write(found, tmp_path / "results")
    assert data.name == f"{found['date']}-gpu-test-gpu-1.json"
    assert json.loads(data.read_text())["figures"][0]["way"] == "session.run"
    shown = text.read_text()
    assert "Test GPU 1" in shown
    assert "Driver 1.2" in shown
    assert shown.count("\n| ") == 6 * 2 + 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.array([1.0, 2.1], np.float32), r"0\.1 away"),
        (np.array([1.0, np.nan], np.float32), "away"),
        (np.array([1.0], np.float32), r"float32\[1\]"),
        (np.array([1.0, 2.0]), "float64"),
    ],
    ids=["number", "lost number", "rows", "type"],
)
def test_a_wrong_answer_stops_the_measurement(answer: np.ndarray, message: str) -> None:
    """What is fast and wrong is not measured."""
    with pytest.raises(benchmark.WrongAnswer, match=message):
        benchmark.check(2, [np.array([1.0, 2.0], np.float32)], [answer], PROMISE)


def test_labels_must_be_equal_and_floats_within_the_promise() -> None:
    """Rounding is allowed, another label is not."""
    words = np.array(["a", "b"], dtype=object)
    benchmark.check(2, [np.array([1.0], np.float32), words], [np.array([1.000001], np.float32), words.copy()], PROMISE)
    with pytest.raises(benchmark.WrongAnswer, match="other labels"):
        benchmark.check(2, [words], [np.array(["a", "c"], dtype=object)], PROMISE)
