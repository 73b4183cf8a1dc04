"""The proof of the Dockerfile reads what Docker would read."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def proof() -> ModuleType:
    """The script as a module."""
    from scripts import prove_dockerfile

    return prove_dockerfile


@pytest.mark.parametrize(
    ("path", "let_in"),
    [
        ("pyproject.toml", True),
        ("constraints.txt", True),
        ("service/samegraph_service/app.py", True),
        ("service/samegraph_service/static/page.js", True),
        ("service/samegraph_service/__pycache__/app.cpython-311.pyc", False),
        ("transforms/samegraph_transforms/manifest.py", True),
        ("scripts/requirements.py", True),
        ("scripts/check.py", False),
        ("models/penguins/1/manifest.json", True),
        ("models/penguins/12/golden/blobs/ab", True),
        ("models/penguins/train.py", False),
        ("models/.downloads/weights.whl", False),
        ("models/.heldout/penguins/1/requests.jsonl", False),
        ("models/routing.yaml", True),
        ("tests/client/test_client_faces.py", False),
        (".git/config", False),
        (".venv/bin/python", False),
        ("client/samegraph_client/core.py", False),
    ],
)
def test_build_context_is_small(proof: ModuleType, path: str, let_in: bool) -> None:
    """The build context holds what the image needs and nothing else."""
    rules = proof.ignore_rules((ROOT / ".dockerignore").read_text())
    assert bool(rules.fullmatch(path)) is let_in


def test_instructions_are_joined_and_comments_left_out(proof: ModuleType) -> None:
    """Continuation lines make one instruction, as in Docker, even with a comment between them."""
    text = '# syntax\nFROM a AS b\nRUN one \\\n    # why\n    && two\n\ncmd ["x"]\n'
    assert list(proof.instructions(text)) == [("FROM", "a AS b"), ("RUN", "one && two"), ("CMD", '["x"]')]


def test_image_paths_are_moved_and_others_are_not(proof: ModuleType, tmp_path: Path) -> None:
    """Only the image's own absolute paths are moved under the clean directory."""
    image = proof.Image(root=tmp_path)
    assert image.move("/opt/samegraph/bin/pip ./src /usr/bin/env a/src x=/src") == (
        f"{tmp_path}/opt/samegraph/bin/pip ./src /usr/bin/env a/src x={tmp_path}/src"
    )
