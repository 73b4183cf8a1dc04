"""Train scikit-learn on the rated texts of the example `sentiment` and pack it; runs in the training environment.

.venv-build/bin/python tests/support/rated_texts.py DIR    makes DIR/models/rated/1 and DIR/expected.json, its answers
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from samegraph_transforms.pack import pack
from samegraph_transforms.tabular import capture, edge_rows, from_sklearn, rows_of
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from models.sentiment.train import EDGES, load

#: Every so-manieth text is trained on, and another is asked.
STRIDE = 12


def main(directory: Path) -> None:
    """Fit, pack and write what the pipeline answers."""
    rated = load()
    known, asked = rated[::STRIDE], rated[1::STRIDE]
    texts = [one.text for one in known]
    pipeline = make_pipeline(TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2)), LogisticRegression(C=10, max_iter=500))
    pipeline.fit(texts, np.where([one.rating > 0 for one in known], "positive", "negative"))
    draft = from_sklearn(pipeline, texts, name="rated", version=1)
    rows = edge_rows(pipeline, texts, draft) | {f"row-{i}": row for i, row in enumerate(rows_of(pipeline, texts, texts[:24]))}
    pack(draft, capture(pipeline, texts, rows, draft=draft), directory / "models")
    questions = [*EDGES.values(), *(one.text for one in asked)]
    answers = {"texts": questions, "label": pipeline.predict(questions).tolist(), "probability": pipeline.predict_proba(questions).tolist()}
    (directory / "expected.json").write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
