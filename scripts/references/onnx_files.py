"""Write ONNX files as skl2onnx makes them, with what scikit-learn itself answers: references of tests/transforms/test_onnx_import.py.

By hand, in an environment of its own:

    python3 -m venv /tmp/onnx-files && /tmp/onnx-files/bin/pip install -r scripts/references/requirements-onnx-files.txt
    /tmp/onnx-files/bin/python scripts/references/onnx_files.py

Writes tests/transforms/references/onnx-files/: each file as the converter makes it, and JSON Lines with raw rows, the
pipeline's answers and, where the file can be split, what its preprocessing gave. The rows of the trees lie on thresholds and beside them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from skl2onnx import convert_sklearn, to_onnx  # type: ignore[import-not-found,unused-ignore]
from skl2onnx.common.data_types import StringTensorType  # type: ignore[import-not-found,unused-ignore]
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

OUT = Path(__file__).parents[2] / "tests" / "transforms" / "references" / "onnx-files"
TRAINED, ASKED = 900, 240


def frame(seed: int, count: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Return seeded rows and a class to learn."""
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame(
        {
            "amount": np.round(rng.lognormal(6, 1.5, count), 2),
            "age": rng.integers(18, 90, count),
            "town": rng.choice(["Ulm", "Köln", "東京", "Oslo"], count),
        }
    )
    score = np.log(rows["amount"]) + rows["age"] / 30 + rows["town"].eq("Köln") * 2 + rng.normal(size=count) / 2
    return rows, np.where(score > 8.2, "yes", "no")


def write(name: str, model: Any, rows: list[dict[str, Any]], outputs: dict[str, np.ndarray], values: dict[str, np.ndarray]) -> None:
    """Write one file and its rows."""
    (OUT / f"{name}.onnx").write_bytes(model.SerializeToString(deterministic=True))
    with (OUT / f"{name}.jsonl").open("w", encoding="utf-8") as stream:
        for i, row in enumerate(rows):
            line = {"instance": row, "outputs": {k: v[i].tolist() if hasattr(v[i], "tolist") else v[i] for k, v in outputs.items()}}
            if values:
                line["values"] = {k: v[i].tolist() for k, v in values.items()}
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def columns_of_strings() -> None:
    """A ColumnTransformer with strings, one input a column, in double: converts exactly."""
    rows, target = frame(0, TRAINED)
    rows["age"] = rows["age"].astype(float)
    pipeline = Pipeline(
        [
            (
                "columns",
                ColumnTransformer(
                    [
                        ("numbers", StandardScaler(), ["amount", "age"]),
                        ("town", OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["town"]),
                    ]
                ),
            ),
            ("model", LogisticRegression(max_iter=1000)),
        ]
    ).fit(rows, target)
    asked, _ = frame(1, ASKED)
    asked["age"] = asked["age"].astype(float)
    asked.loc[::17, "town"] = "unseen"
    answers = {"output_label": pipeline.predict(asked), "output_probability": pipeline.predict_proba(asked)}
    features = {"transformed_column": pipeline[:-1].transform(asked)}
    write("columns", to_onnx(pipeline, rows[:1]), asked.to_dict("records"), answers, features)


def scaled_trees(name: str, *, scaled: bool) -> None:
    """A forest on a matrix; with a StandardScaler in front the float32 of the file crosses thresholds that training did not."""
    rows, target = frame(0, TRAINED)
    x = rows[["amount", "age"]].to_numpy()
    forest = RandomForestClassifier(12, random_state=0, max_depth=6)
    pipeline = (make_pipeline(StandardScaler(), forest) if scaled else make_pipeline(forest)).fit(x, target)
    asked, _ = frame(1, ASKED)
    near = at_thresholds(pipeline, asked[["amount", "age"]].to_numpy(), scaled=scaled)
    answers = {"label": pipeline.predict(near), "probabilities": pipeline.predict_proba(near)}
    model = to_onnx(pipeline, x[:1].astype(np.float32), options={"zipmap": False})
    write(name, model, [{"amount": float(a), "age": float(b)} for a, b in near], answers, {})


def at_thresholds(pipeline: Any, asked: np.ndarray, *, scaled: bool) -> np.ndarray:
    """Return rows of which half lie on thresholds of the trees, as near as float64 gets, and on the numbers next to them."""
    rng = np.random.default_rng(3)
    found = list(asked[: ASKED // 2])
    for tree in pipeline[-1].estimators_:
        inner = tree.tree_
        for feature, threshold in list(zip(inner.feature, inner.threshold, strict=True))[:8]:
            if feature < 0:
                continue
            raw = threshold * pipeline[0].scale_[feature] + pipeline[0].mean_[feature] if scaled else threshold
            for value in (raw, np.nextafter(raw, -np.inf), np.nextafter(raw, np.inf)):
                row = asked[rng.integers(len(asked))].copy()
                row[feature] = value
                found.append(row)
    return np.array(found)


def words(name: str, *, sublinear: bool) -> None:
    """A TfidfVectorizer: text in."""
    texts = ["a good film", "a bad film", "good good good", "so bad, so very bad", "une soirée bien gaie", "fine", "Good BAD fine film"] * 4
    target = [1, 0, 1, 0, 1, 1, 0] * 4
    pipeline = make_pipeline(TfidfVectorizer(sublinear_tf=sublinear), LogisticRegression()).fit(texts, target)
    asked = sorted({*texts, "", "xyz", "good", "GOOD film film film", "bad bad good, very very fine"})
    if not sublinear:  # words of letters that are not ASCII: what the converter's pattern drops
        asked = [text for text in asked if text.isascii()]
    answers = {"label": pipeline.predict(asked), "probabilities": pipeline.predict_proba(asked)}
    given = [("text", StringTensorType([None, 1]))]
    options: dict[int, dict[str, Any]] = {id(pipeline[-1]): {"zipmap": False}}
    if not sublinear:
        options[id(pipeline[0])] = {"tokenexp": "[a-zA-Z0-9_]{2,}"}
    model = convert_sklearn(pipeline, name, given, options=options)
    write(name, model, [{"text": text} for text in asked], answers, {})


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    columns_of_strings()
    scaled_trees("forest", scaled=False)
    scaled_trees("scaled-forest", scaled=True)
    words("words", sublinear=False)
    words("words-sublinear", sublinear=True)
