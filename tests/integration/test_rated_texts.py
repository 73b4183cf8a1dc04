"""A scikit-learn pipeline on raw texts, packed in the training environment, answers over HTTP what the pipeline answered."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
from live_server import live_server

ROOT = Path(__file__).resolve().parents[2]


def test_a_server_answers_the_rated_texts_as_training_did(tmp_path: Path) -> None:
    """About two thousand texts nobody trained on: no label differs, probabilities by less than 1e-14."""
    script = ROOT / "tests" / "support" / "rated_texts.py"
    subprocess.run([str(ROOT / ".venv-build" / "bin" / "python"), str(script), str(tmp_path)], check=True, cwd=ROOT)
    expected = json.loads((tmp_path / "expected.json").read_text(encoding="utf-8"))
    texts, labels, probabilities = expected["texts"], [], []
    with live_server(tmp_path / "models") as server:
        for start in range(0, len(texts), 500):
            reply = server.predict("rated", {"instances": [{"text": text} for text in texts[start : start + 500]]})
            assert reply.status == 200, reply.body[:500]
            for answer in reply.json()["predictions"]:
                labels.append(answer["label"])
                probabilities.append(answer["probability"])
    assert len(labels) > 1900
    assert labels == expected["label"]
    np.testing.assert_allclose(probabilities, expected["probability"], rtol=1e-14, atol=0)
