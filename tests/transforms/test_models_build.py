"""Building the example packages: when there is something to do, and what happens when one fails."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from models import _stamp, build

TRAINS = """
import argparse, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("--repository", type=pathlib.Path)
parser.add_argument("--force", action="store_true")
options = parser.parse_args()
package = options.repository / NAME / "1"
if package.exists() and not options.force:
    raise SystemExit("another package has this name and version")
package.mkdir(parents=True, exist_ok=True)
(package / "manifest.json").write_text("{}")
held_out = options.repository / ".heldout" / NAME / "1"
held_out.mkdir(parents=True, exist_ok=True)
(held_out / "requests.jsonl").write_text("")
with (options.repository / "log").open("a") as log:
    log.write(NAME + (" forced" if options.force else "") + "\\n")
"""


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models/ directory with two examples that build in no time."""
    models = tmp_path / "checkout" / "models"
    for name in ("first", "second"):
        (models / name).mkdir(parents=True)
        (models / name / "train.py").write_text(f'NAME = "{name}"\n{TRAINS}')
    monkeypatch.setattr(build, "MODELS", models)
    monkeypatch.setattr(_stamp, "MODELS", models)
    monkeypatch.setattr(_stamp, "LIBRARY", tmp_path / "checkout" / "library")
    return models


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Where the packages go."""
    directory = tmp_path / "repository"
    directory.mkdir()
    return directory


def _build(monkeypatch: pytest.MonkeyPatch, repository: Path, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["build.py", "--repository", str(repository), *arguments])
    return build.main()


def _log(repository: Path) -> list[str]:
    log = repository / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


def test_what_is_up_to_date_is_left_alone(
    examples: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first run builds every example, the second none."""
    assert _build(monkeypatch, repository) == 0
    assert _log(repository) == ["first", "second"]
    assert _build(monkeypatch, repository) == 0
    assert _log(repository) == []
    assert "up to date: first, second" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["source", "committed data", "package", "held-out requests", "stamp"])
def test_a_change_rebuilds_just_the_example_it_belongs_to(
    examples: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Another source, another committed file, a package that is not the recorded one, or lost held-out requests: each is noticed."""
    assert _build(monkeypatch, repository) == 0
    _log(repository)
    match change:
        case "source":
            path = examples / "second" / "train.py"
            path.write_text(path.read_text() + "# changed\n")
        case "committed data":
            (examples / "second" / "reference").mkdir()
            (examples / "second" / "reference" / "logits.npz").write_bytes(b"new")
        case "package":
            (repository / "second" / "1" / "manifest.json").write_text('{"other": 1}')
        case "held-out requests":
            (repository / ".heldout" / "second" / "1" / "requests.jsonl").unlink()
        case _:
            (repository / ".heldout" / "second" / "built.json").write_text("not JSON")
    assert _build(monkeypatch, repository) == 0
    assert _log(repository) == ["second forced"]


def test_a_failure_is_named_and_the_other_examples_are_built(
    examples: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is 1, the message names the script, and the next run tries only the failed one again."""
    (examples / "first" / "train.py").write_text("raise SystemExit(3)\n")
    assert _build(monkeypatch, repository) == 1
    assert "models/first/train.py ended with exit code 3" in capsys.readouterr().err
    assert _log(repository) == ["second"]
    (examples / "first" / "train.py").write_text(f'NAME = "first"\n{TRAINS}')
    assert _build(monkeypatch, repository) == 0
    assert _log(repository) == ["first"]


def test_a_script_that_writes_nothing_has_failed(
    examples: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An exit code of 0 without a package is not taken for success."""
    (examples / "first" / "train.py").write_text("")
    assert _build(monkeypatch, repository, "first") == 1
    assert "wrote no package" in capsys.readouterr().err


def test_force_builds_what_is_up_to_date(examples: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A named example is built from scratch on demand, and only that one."""
    assert _build(monkeypatch, repository) == 0
    _log(repository)
    assert _build(monkeypatch, repository, "second", "--force") == 0
    assert _log(repository) == ["second forced"]


def test_an_unknown_example_is_refused_with_the_known_ones(
    examples: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A misspelt name ends with usage and builds nothing."""
    with pytest.raises(SystemExit):
        _build(monkeypatch, repository, "thrid")
    assert "first, second" in capsys.readouterr().err
    assert _log(repository) == []


def test_built_versions_do_not_count_as_inputs(examples: Path) -> None:
    """Packages lie beside their train.py in the default repository; building them must not make them out of date."""
    before = _stamp.inputs_digest("first")
    (examples / "first" / "2" / "golden").mkdir(parents=True)
    (examples / "first" / "2" / "manifest.json").write_text("{}")
    assert _stamp.inputs_digest("first") == before
    assert len(before) == hashlib.sha256().digest_size * 2
