"""scikit-learn's text vectorizers and the models behind them, on 23,703 rated texts and on random characters, compared with scikit-learn.

It needs the training environment (scikit-learn); started in another one, it runs itself there.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SEED = 20251121
#: Random texts beside the rated ones.
ODD = 4000
ABOUT = """\
Terms are counted by the host node, weights and models by standard operators in ONNX Runtime, in batches of 64 padded to the longest text.
Texts: those of the example `sentiment` (tweets, reviews, editorials), and random ones: characters of all of Unicode, whole words among
them, combining marks, half of them in no order. Fitted on four of five rated texts; compared on all. An element is a column or a value of
a row that scikit-learn keeps, or a score or probability of a class. The converter skl2onnx gives weights that differ by up to 0.0107, and
other labels, where `sublinear_tf` is set, and other terms where a text is not ASCII."""


def measure(work: Path, scale: float) -> dict[str, Any]:
    """Compare counts, weights and answers."""
    if importlib.util.find_spec("sklearn") is None:
        python, result = ROOT / ".venv-build" / "bin" / "python", work / "vectorizers.json"
        paths = [*sys.path, str(ROOT)]
        code = "import sys; sys.path[:0] = sys.argv[3:]; from scripts.exactness_sections import vectorizers as v; v.main()"
        subprocess.run([str(python), "-c", code, str(result), str(scale), *_own(paths)], check=True, cwd=ROOT)
        return dict(json.loads(result.read_text(encoding="utf-8")))
    return _measured(scale)


def main() -> None:
    """Measure in the training environment: where to write the result, and the scale, are arguments."""
    Path(sys.argv[1]).write_text(json.dumps(_measured(float(sys.argv[2]))), encoding="utf-8")


def _own(paths: Sequence[str]) -> list[str]:
    """Return the paths that are this project's; another environment's libraries are of no use here."""
    return [path for path in paths if path.startswith(str(ROOT)) and "site-packages" not in path]


def odd_texts(count: int) -> list[str]:
    """Return seeded texts of 0 to 60 pieces: any character but surrogates, words, and marks that join what stands before them."""
    rng = np.random.default_rng(SEED)
    points = np.concatenate([np.arange(0x0, 0xD800), np.arange(0xE000, 0x30000), np.arange(0xE0000, 0xE01F0)])
    pieces = ["good", "BAD", "İ", "ß", "\u0301", "\u200d", "\u00a0", "  ", "\n", "don't", "re-read", "👍🏽", "٣", "_", "ﬁ", "the"]
    texts = []
    for _ in range(count):
        some = rng.random(int(rng.integers(0, 60)))
        texts.append("".join(f"{pieces[rng.integers(len(pieces))]} " if s < 0.5 else chr(rng.choice(points)) for s in some))
    return texts


def _measured(scale: float) -> dict[str, Any]:
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
    from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfTransformer, TfidfVectorizer
    from sklearn.linear_model import (
        LogisticRegression,
        Perceptron,
        Ridge,
        RidgeClassifier,
        RidgeClassifierCV,
        SGDClassifier,
        SGDRegressor,
    )
    from sklearn.naive_bayes import BernoulliNB, ComplementNB, MultinomialNB
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC, LinearSVR
    from sklearn.tree import DecisionTreeClassifier

    from models.sentiment.train import load
    from scripts.exactness_sections._counting import onnx_runtime, section, table

    rated = load()[:: max(1, round(1 / scale))]
    texts = [one.text for one in rated] + odd_texts(round(ODD * scale))
    fitted = [i for i in range(len(rated)) if i % 5]
    ratings = np.array([one.rating for one in rated])
    classes = np.digitize(ratings, [-0.5, 0.5])
    mood = np.array(["negative", "neither", "positive"])[classes]
    two = np.where(ratings > 0, "positive", "negative")

    weights = {
        "`CountVectorizer()`": [CountVectorizer()],
        "`CountVectorizer(lowercase=False, strip_accents='unicode', binary=True)`": [
            CountVectorizer(lowercase=False, strip_accents="unicode", binary=True)
        ],
        "`CountVectorizer(strip_accents='ascii', stop_words='english', ngram_range=(1, 3), min_df=2)`": [
            CountVectorizer(strip_accents="ascii", stop_words="english", ngram_range=(1, 3), min_df=2)
        ],
        '`CountVectorizer(token_pattern=r"[^\\W\\d_]+(?:[\'-][^\\W\\d_]+)*", max_features=5000)`': [
            CountVectorizer(token_pattern=r"[^\W\d_]+(?:['-][^\W\d_]+)*", max_features=5000)  # noqa: S106 - no password
        ],
        "`CountVectorizer(analyzer='char', ngram_range=(1, 4), max_features=20000)`": [
            CountVectorizer(analyzer="char", ngram_range=(1, 4), max_features=20_000)
        ],
        "`CountVectorizer(analyzer='char_wb', ngram_range=(2, 5), max_features=50000)`": [
            CountVectorizer(analyzer="char_wb", ngram_range=(2, 5), max_features=50_000)
        ],
        "`TfidfVectorizer()`": [TfidfVectorizer()],
        "`TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))`": [TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))],
        "`TfidfVectorizer(norm='l1', smooth_idf=False)`": [TfidfVectorizer(norm="l1", smooth_idf=False)],
        "`TfidfVectorizer(norm=None, use_idf=False, sublinear_tf=True)`": [TfidfVectorizer(norm=None, use_idf=False, sublinear_tf=True)],
        "`CountVectorizer()`, `TfidfTransformer(sublinear_tf=True)`": [CountVectorizer(), TfidfTransformer(sublinear_tf=True)],
        "`HashingVectorizer()`": [HashingVectorizer()],
        "`HashingVectorizer(n_features=1024, norm='l1', alternate_sign=False)`": [
            HashingVectorizer(n_features=1024, norm="l1", alternate_sign=False)
        ],
        "`HashingVectorizer(n_features=97, norm=None, ngram_range=(1, 2))`": [
            HashingVectorizer(n_features=97, norm=None, ngram_range=(1, 2))
        ],
    }
    rows = []
    for name, steps in weights.items():
        pipeline = make_pipeline(*steps, Perceptron(tol=None, max_iter=1, random_state=0))
        pipeline.fit([texts[i] for i in fitted], two[fitted])
        count = _compare_rows(pipeline, texts)
        rows.append([name, len(texts), count.elements, count.different, count.ulp])
    found = [table("Rows", ["vectorizer", "texts", "elements", "different", "largest ULP"], rows)]

    sublinear = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2)
    options = {"random_state": 0}
    models = {
        "text with `sublinear_tf`: `LogisticRegression`": ([sublinear], LogisticRegression(C=10, max_iter=500), mood),
        "text with `sublinear_tf`: `LinearSVC`": ([sublinear], LinearSVC(**options), mood),
        "`SGDClassifier`": ([TfidfVectorizer()], SGDClassifier(**options), two),
        "`SGDClassifier(loss='log_loss')`": ([HashingVectorizer()], SGDClassifier(loss="log_loss", **options), mood),
        "`SGDClassifier(loss='modified_huber')`": ([TfidfVectorizer()], SGDClassifier(loss="modified_huber", **options), mood),
        "`Perceptron`": ([TfidfVectorizer()], Perceptron(**options), mood),
        "`RidgeClassifier`": ([TfidfVectorizer(min_df=2)], RidgeClassifier(solver="sparse_cg"), mood),
        "`RidgeClassifierCV`": ([TfidfVectorizer(max_features=200)], RidgeClassifierCV(), two),
        "`MultinomialNB`": ([CountVectorizer(ngram_range=(1, 2))], MultinomialNB(), mood),
        "`ComplementNB`": ([TfidfVectorizer()], ComplementNB(), mood),
        "`BernoulliNB`": ([CountVectorizer()], BernoulliNB(), two),
        "`DecisionTreeClassifier`": ([TfidfVectorizer(sublinear_tf=True)], DecisionTreeClassifier(max_depth=40, **options), mood),
        "`RandomForestClassifier`": ([TfidfVectorizer()], RandomForestClassifier(10, max_depth=30, **options), two),
        "`GradientBoostingClassifier`": ([CountVectorizer()], GradientBoostingClassifier(n_estimators=10, **options), two),
        "`Ridge`": ([sublinear], Ridge(solver="sparse_cg"), ratings),
        "`LinearSVR`": ([TfidfVectorizer()], LinearSVR(**options), ratings),
        "`SGDRegressor`": ([TfidfVectorizer()], SGDRegressor(**options), ratings),
    }
    rows = []
    for name, (steps, model, target) in models.items():
        pipeline = make_pipeline(*steps, model).fit([texts[i] for i in fitted], np.asarray(target)[fitted])
        count, flipped, what = _compare_answers(pipeline, texts)
        steps_words = ", ".join(type(step).__name__ for step in steps)
        rows.append([name, steps_words, what, len(texts), count.elements, count.different, count.ulp, flipped])
    head = ["model", "after", "of", "texts", "elements", "different", "largest ULP", "labels flipped"]
    found.append(table("Models on sparse rows", head, rows))
    return section("Text vectorizers", ABOUT, found, ["scikit-learn", "scipy", "numpy", "onnx", onnx_runtime()])


def _batches(draft: Any, texts: Sequence[str]) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """Run texts in padded batches of 64; yield the rows' lengths and every value of the batch stages."""
    from samegraph_transforms.executor import OrtExecutor
    from samegraph_transforms.terms import TermCounter

    (declared,) = draft.vectorizers
    counter = TermCounter(declared, draft.assets[declared.file.removeprefix("assets/")])
    executors = [OrtExecutor(stage.model) for stage in draft.stages[1:]]
    for start in range(0, len(texts), 64):
        items = [counter(text) for text in texts[start : start + 64]]
        lengths = [len(columns) for columns, _ in items]
        columns = np.zeros((len(items), max(lengths)), dtype=np.int64)
        counts = np.zeros(columns.shape)
        for i, (mine, own) in enumerate(items):
            columns[i, : lengths[i]], counts[i, : lengths[i]] = mine, own
        values = {"text.terms": columns, "text.counts": counts}
        for executor in executors:
            results = executor.run({name: values[name] for name in executor.input_names})
            values.update(zip(executor.output_names, results, strict=True))
        yield lengths, values


def _compare_rows(pipeline: Any, texts: Sequence[str]) -> Any:
    from samegraph_transforms.tabular import from_sklearn
    from scipy import sparse

    from scripts.exactness_sections._counting import Count

    expected = sparse.csr_array(pipeline[:-1].transform(texts))
    count, row = Count(), 0
    for lengths, values in _batches(from_sklearn(pipeline, list(texts), name="text", version=1), texts):
        for i, length in enumerate(lengths):
            span = slice(expected.indptr[row], expected.indptr[row + 1])
            if length or span.stop > span.start:
                count.add(values["features.columns"][i, :length], expected.indices[span].astype(np.int64))
                count.add(values["features"][i, :length], expected.data[span].astype(np.float64))
            row += 1
    return count


def _compare_answers(pipeline: Any, texts: Sequence[str]) -> tuple[Any, int, str]:
    from samegraph_transforms.tabular import from_sklearn

    from scripts.exactness_sections._counting import Count

    draft = from_sklearn(pipeline, list(texts), name="text", version=1)
    labels = pipeline.predict(texts)
    if not hasattr(pipeline, "classes_"):
        what, expected = "value", labels
    elif hasattr(pipeline, "predict_proba"):
        what, expected = "probability", pipeline.predict_proba(texts)
    else:
        what, expected = "score", pipeline.decision_function(texts)
        expected = np.stack([-expected, expected], axis=1) if expected.ndim == 1 else expected
    count, flipped, row = Count(), 0, 0
    for lengths, values in _batches(draft, texts):
        span = slice(row, row + len(lengths))
        count.add(values[what], np.ascontiguousarray(expected[span]).reshape(-1))
        flipped += int(np.count_nonzero(values["label"] != labels[span])) if "label" in values else 0
        row = span.stop
    return count, flipped, what
