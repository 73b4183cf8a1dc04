"""Training scripts end quickly when nothing changed, replace when asked to, and keep golden and held-out requests apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from samegraph_transforms.golden import read_samples
from samegraph_transforms.package import read_package

ROOT = Path(__file__).resolve().parents[2]


def train(repository: Path, *arguments: str) -> str:
    """Run the penguins script as a person does and return what it printed."""
    command = [sys.executable, str(ROOT / "models" / "penguins" / "train.py"), "--repository", str(repository), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository into which penguins was trained once."""
    directory = tmp_path_factory.mktemp("models")
    assert "accuracy 0.9884 on 86 others" in train(directory)
    return directory


def test_script_packs_with_enough_samples(repository: Path) -> None:
    """At least 32 golden and 200 held-out requests, with features captured, and none in both."""
    package = read_package(repository / "penguins" / "1")
    golden, held_out = read_samples(package.path / "golden"), read_samples(repository / ".heldout" / "penguins" / "1")
    assert len(golden) >= 32
    assert len(held_out) >= 200
    assert not {s.body for s in golden} & {s.body for s in held_out}
    assert all("features" in s.values for s in [*golden, *held_out])
    assert next(m for m in package.manifest.measured if m.tensor == "features").different == 0


def test_baseline_is_of_rows_the_training_never_saw(repository: Path) -> None:
    """The penguins held out, with their measured accuracy, and none of the 258 trained on."""
    baseline = read_package(repository / "penguins" / "1").baseline()
    assert baseline is not None
    assert baseline.rows == 86
    assert {variable.name for _, variable in baseline.inputs()} >= {"island", "sex", "bill_length_mm", "year"}
    expected = baseline.output("probability").expected
    assert expected is not None
    assert expected.measured_accuracy == pytest.approx(85 / 86)


def test_second_run_does_nothing(repository: Path) -> None:
    """When nothing has changed the package stays as it is."""
    manifest = repository / "penguins" / "1" / "manifest.json"
    before = manifest.stat().st_mtime_ns
    assert "up to date" in train(repository)
    assert manifest.stat().st_mtime_ns == before


def test_forced_run_gives_the_same_package(repository: Path) -> None:
    """Training again is deterministic, down to the digest."""
    digest = read_package(repository / "penguins" / "1").digest
    assert "golden samples answered as in training" in train(repository, "--force")
    assert read_package(repository / "penguins" / "1").digest == digest
