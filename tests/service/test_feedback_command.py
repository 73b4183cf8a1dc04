"""`samegraph feedback-key`: files that the server takes, and never a key on the screen by mistake."""

from __future__ import annotations

import stat
from pathlib import Path

from click.testing import CliRunner, Result
from samegraph_service.experiments.prediction_id import MAX_KEYS, read_keys
from samegraph_service.feedback_command import feedback_key


def run(*arguments: str) -> Result:
    return CliRunner().invoke(feedback_key, arguments)


def test_a_new_file_has_one_key_and_is_private(tmp_path: Path) -> None:
    """The server takes it as it is; what is shown is the key's id."""
    path = tmp_path / "feedback.keys"
    done = run("new", str(path))
    assert done.exit_code == 0, done.output
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (key,) = read_keys(path)
    assert done.output == f"{key.id.hex()}  signs\n"
    assert path.read_text().strip() not in done.output


def test_a_file_that_is_there_is_only_added_to(tmp_path: Path) -> None:
    """The key that signs stays the first; the new one comes last."""
    path = tmp_path / "feedback.keys"
    run("new", str(path))
    before = path.read_text()
    again = run("new", str(path))
    assert again.exit_code == 1
    assert "--append" in again.output
    assert path.read_text() == before
    path.write_text(before.strip())  # without the end of its line
    done = run("new", "--append", str(path))
    assert done.exit_code == 0, done.output
    assert path.read_text().startswith(before)
    first, second = read_keys(path)
    assert done.output == run("show", str(path)).output == f"{first.id.hex()}  signs\n{second.id.hex()}  accepted\n"


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    """No traceback: a file that is not there, full, or open to all."""
    path = tmp_path / "feedback.keys"
    assert "cannot be read" in run("show", str(path)).output
    assert "cannot be read" in run("new", "--append", str(path)).output
    assert "cannot be written" in run("new", str(tmp_path / "nowhere" / "keys")).output
    run("new", str(path))
    for _ in range(MAX_KEYS - 1):
        assert run("new", "--append", str(path)).exit_code == 0
    assert "the most that are accepted" in run("new", "--append", str(path)).output
    path.chmod(0o644)
    assert "mode 0644" in run("show", str(path)).output


def test_a_dash_writes_the_key_itself() -> None:
    """For a secret store, and for it alone."""
    done = run("new", "-")
    assert len(done.output.strip()) == 43
