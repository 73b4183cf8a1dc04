"""Text vectorizers count and weigh as scikit-learn does, on any text, and models on their sparse rows answer as in training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from samegraph_transforms._sklearn_text import describe
from samegraph_transforms.draft import BaselineRows
from samegraph_transforms.errors import AuthoringError, UnsupportedStep
from samegraph_transforms.pack import pack
from samegraph_transforms.package import Package
from samegraph_transforms.runtime import PackageRuntime
from samegraph_transforms.tabular import capture, edge_rows, from_sklearn, varied_rows
from samegraph_transforms.terms import TermCounter, murmurhash3
from scipy import sparse
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import TruncatedSVD
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfTransformer, TfidfVectorizer
from sklearn.feature_selection import SelectKBest, chi2
from sklearn.linear_model import LogisticRegression, Perceptron, Ridge, RidgeClassifier, SGDClassifier
from sklearn.naive_bayes import BernoulliNB, ComplementNB, MultinomialNB
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import MaxAbsScaler, Normalizer, OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils import murmurhash3_32

WORDS = [
    "good", "bad", "film", "the", "a", "not", "naïve", "Straße", "STRASSE", "истина", "東京", "wow😀", "it's", "x2", "of", "day", "night",
    "awful", "lovely", "İstanbul", "cafe\u0301", "ﬁne", "go\u200bod", "well-made", "re-read", "1_000", "٣٤", "very",
]  # fmt: skip


def make_texts(n: int = 240, seed: int = 0) -> list[str]:
    """Return seeded texts of 0 to 40 words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(0, 40))) for _ in range(n)]


TEXTS = make_texts()
TWO = np.array(["pos" if t.count("good") + t.count("lovely") > t.count("bad") + t.count("awful") else "neg" for t in TEXTS])
THREE = np.array([len(t) % 3 for t in TEXTS])
FRAME = pd.DataFrame(
    {
        "text": TEXTS,
        "age": np.random.default_rng(1).normal(40, 10, len(TEXTS)),
        "town": np.random.default_rng(2).choice(["a", "b", "c"], len(TEXTS)),
        "title": [t[:20] for t in TEXTS],
    }
)

#: Every option people use, once; the property test runs all of them on each text.
VECTORIZERS = [
    CountVectorizer(),
    CountVectorizer(lowercase=False, strip_accents="unicode", token_pattern=r"\S+", binary=True),
    CountVectorizer(strip_accents="ascii", stop_words="english", ngram_range=(1, 3)),
    CountVectorizer(token_pattern=r"[a-zA-Z]+(?:['-]([a-zA-Z]+))*", ngram_range=(2, 2), max_features=60, min_df=2),
    CountVectorizer(vocabulary=["good", "the", "bad", "day night"], stop_words=["a"], ngram_range=(1, 2)),
    CountVectorizer(token_pattern=r"(?i)\b[^\W\d_]+\b|[\U0001F300-\U0001FAFF]"),
    CountVectorizer(analyzer="char", ngram_range=(1, 4), max_features=300),
    CountVectorizer(analyzer="char", ngram_range=(2, 2), strip_accents="unicode"),
    CountVectorizer(analyzer="char_wb", ngram_range=(1, 5), max_features=300),
    CountVectorizer(analyzer="char_wb", ngram_range=(3, 3), lowercase=False, strip_accents="ascii"),
    HashingVectorizer(norm=None),
    HashingVectorizer(norm=None, n_features=7, ngram_range=(1, 2)),
    HashingVectorizer(norm=None, n_features=97, alternate_sign=False, analyzer="char_wb", ngram_range=(2, 4)),
    HashingVectorizer(norm=None, n_features=13, binary=True),
]
for _one in VECTORIZERS:
    _one.fit(TEXTS)
COUNTERS = [TermCounter(*describe(one, "count", AuthoringError)) for one in VECTORIZERS]


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=60) | st.lists(st.sampled_from(WORDS) | st.text(max_size=5), max_size=20).map(" ".join))
def test_counts_of_any_text_are_those_of_the_vectorizer(text: str) -> None:
    """Whatever characters come: columns, their order and counts are equal, for every option."""
    for vectorizer, counter in zip(VECTORIZERS, COUNTERS, strict=True):
        row = sparse.csr_array(vectorizer.transform([text]))
        columns, counts = counter(text)
        np.testing.assert_array_equal(columns, row.indices)
        np.testing.assert_array_equal(counts, row.data)


@given(st.text(max_size=40))
def test_murmurhash_is_that_of_scikit_learn(term: str) -> None:
    """All lengths modulo 4, all bytes."""
    assert murmurhash3(term) == murmurhash3_32(term.encode(), seed=0)


def packed(tmp_path: Path, pipeline: Any, data: Any, *, overrides: Any = None, baseline: BaselineRows | None = None) -> Package:
    """Pack a fitted pipeline with its edge rows, odd variations and training rows as golden samples."""
    draft = from_sklearn(pipeline, data, name="texts", version=1, overrides=overrides)
    rows = edge_rows(pipeline, data, draft) | {
        f"varied-{i}": row for i, row in enumerate(varied_rows(pipeline, data, draft, data, count=12, seed=3))
    }
    samples = capture(pipeline, data, rows, draft=draft)
    if isinstance(data, pd.DataFrame):
        samples += capture(pipeline, data, data.iloc[:24], draft=draft, rows_per_request=8, prefix="training")
    return pack(replace(draft, baseline=baseline), samples, tmp_path)


def columns() -> ColumnTransformer:
    """Two text columns beside a number and a category."""
    return ColumnTransformer(
        [
            ("text", TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), "text"),
            ("age", StandardScaler(), ["age"]),
            ("town", OneHotEncoder(handle_unknown="ignore"), ["town"]),
            ("title", CountVectorizer(analyzer="char_wb", ngram_range=(2, 3)), "title"),
        ]
    )


PIPELINES: dict[str, tuple[list[Any], Any, Any]] = {
    "sublinear logistic": ([TfidfVectorizer(sublinear_tf=True)], LogisticRegression(), TWO),
    "l1 without idf, three classes": ([TfidfVectorizer(norm="l1", use_idf=False)], LogisticRegression(), THREE),
    "no norm, rough idf": ([TfidfVectorizer(norm=None, smooth_idf=False)], LinearSVC(), TWO),
    "counts, then tf-idf": ([CountVectorizer(binary=True), TfidfTransformer(sublinear_tf=True)], LinearSVC(), THREE),
    "hashed": ([HashingVectorizer(n_features=2**12)], SGDClassifier(loss="log_loss", random_state=0), TWO),
    "hashed by l1, three classes": (
        [HashingVectorizer(n_features=64, norm="l1")],
        SGDClassifier(loss="modified_huber", random_state=0),
        THREE,
    ),
    "Huber": ([CountVectorizer()], SGDClassifier(loss="modified_huber", random_state=0), TWO),
    "ovr": ([CountVectorizer(), MaxAbsScaler()], SGDClassifier(loss="log_loss", random_state=0), THREE),
    "perceptron": ([CountVectorizer(), StandardScaler(with_mean=False)], Perceptron(), TWO),
    "multinomial": ([CountVectorizer(ngram_range=(1, 2))], MultinomialNB(), THREE),
    "complement": ([TfidfVectorizer()], ComplementNB(), TWO),
    "bernoulli": ([CountVectorizer()], BernoulliNB(), TWO),
    "selected": ([CountVectorizer(), SelectKBest(chi2, k=12), TfidfTransformer()], RidgeClassifier(), TWO),
    "SVD": ([TfidfVectorizer(), TruncatedSVD(5, random_state=0)], LogisticRegression(), TWO),
    "tree": ([HashingVectorizer(n_features=2**12)], DecisionTreeClassifier(random_state=0), TWO),
    "boosted": ([TfidfVectorizer()], GradientBoostingClassifier(n_estimators=5, random_state=0), THREE),
    "regression": ([TfidfVectorizer(sublinear_tf=True)], Ridge(), np.array([float(len(t)) for t in TEXTS])),
    "normalised": ([CountVectorizer(), Normalizer(norm="l1")], LinearSVC(), TWO),
    "union": (
        [
            FeatureUnion(
                [("words", TfidfVectorizer(stop_words="english")), ("runs", TfidfVectorizer(analyzer="char", ngram_range=(1, 3)))],
                transformer_weights={"words": 0.3},
            )
        ],
        LinearSVC(),
        TWO,
    ),
}


@pytest.mark.parametrize("name", [n for n in PIPELINES if n != "selected"])
def test_pipeline_answers_as_in_training(name: str, tmp_path: Path) -> None:
    """Rows before the model and linear scores are bit-equal, labels too; probabilities within the promise."""
    steps, model, target = PIPELINES[name]
    pipeline = make_pipeline(*steps, model).fit(TEXTS, target)
    measured = {m.tensor: m for m in packed(tmp_path, pipeline, TEXTS).manifest.measured}
    assert {"features", "features.columns"} <= measured.keys() or name == "SVD"
    for tensor in measured.keys() & {"features", "features.columns", "score", "label"}:
        assert measured[tensor].different == 0, (tensor, measured[tensor])
    assert measured.keys() & {"label", "value"}


def test_reduced_columns_cannot_be_weighted(tmp_path: Path) -> None:
    """A tf-idf of selected columns has another norm than one of all; it is refused by name."""
    steps, model, target = PIPELINES["selected"]
    pipeline = make_pipeline(*steps, model).fit(TEXTS, target)
    with pytest.raises(UnsupportedStep, match="whole count matrix"):
        from_sklearn(pipeline, TEXTS, name="texts", version=1)
    chosen = make_pipeline(CountVectorizer(), SelectKBest(chi2, k=12), model).fit(TEXTS, target)
    assert all(m.different == 0 for m in packed(tmp_path, chosen, TEXTS).manifest.measured if m.tensor in ("label", "score"))


@pytest.mark.parametrize(
    ("options", "model"),
    [
        ({}, LogisticRegression(max_iter=500)),
        ({"sparse_threshold": 0.0}, LogisticRegression(max_iter=500)),
        ({}, RandomForestClassifier(5, random_state=0)),
    ],
    ids=["sparse", "dense", "forest"],
)
def test_texts_beside_other_columns(options: dict[str, Any], model: Any, tmp_path: Path) -> None:
    """Two text columns, a number and a category: as one sparse row, or as a table where training made one."""
    pipeline = Pipeline([("columns", columns().set_params(**options)), ("model", model)]).fit(FRAME, TWO)
    package = packed(tmp_path, pipeline, FRAME)
    measured = {m.tensor: m for m in package.manifest.measured}
    assert measured["label"].different == 0
    assert ("features" in measured) == bool(options)
    assert [(f.name, f.kind) for f in package.manifest.fields] == [
        ("text", "text"), ("age", "number"), ("town", "string"), ("title", "text"),
    ]  # fmt: skip
    assert all(f.known is None for f in package.manifest.fields if f.kind == "text")


def test_standard_operators_give_the_same_in_the_reference_evaluator(tmp_path: Path) -> None:
    """The batch stages run under onnx.reference with the rows of scikit-learn bit for bit."""
    pipeline = make_pipeline(TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2)), LinearSVC()).fit(TEXTS, THREE)
    draft = from_sklearn(pipeline, TEXTS, name="texts", version=1)
    counter = TermCounter(draft.vectorizers[0], draft.assets[f"{draft.vectorizers[0].node}.terms.json"])
    stages = [ReferenceEvaluator(stage.model) for stage in draft.stages[1:]]
    for text in ["", "good", *make_texts(40, seed=9)]:
        found = counter(text)
        values: dict[str, Any] = {"text.terms": found[0][None], "text.counts": found[1][None]}
        for stage in stages:
            values.update(zip(stage.output_names, stage.run(None, {n: values[n] for n in stage.input_names}), strict=True))
        row = sparse.csr_array(pipeline[:-1].transform([text]))
        np.testing.assert_array_equal(values["features"][0], row.data)
        np.testing.assert_array_equal(values["score"], pipeline.decision_function([text]))
        np.testing.assert_array_equal(values["label"], pipeline.predict([text]))


def test_operators_are_standard(tmp_path: Path) -> None:
    """Beside the one host node nothing asks for more than ONNX."""
    draft = from_sklearn(make_pipeline(TfidfVectorizer(), LinearSVC()).fit(TEXTS, TWO), TEXTS, name="texts", version=1)
    assert [n.op_type for n in draft.stages[0].model.graph.node] == ["CountTerms"]
    assert {n.domain for stage in draft.stages[1:] for n in stage.model.graph.node} == {""}


def test_padding_and_company_change_nothing(tmp_path: Path) -> None:
    """Any texts together, padded to any bucket, answer as each alone."""
    pipeline = make_pipeline(TfidfVectorizer(sublinear_tf=True), LinearSVC()).fit(TEXTS, THREE)
    package = packed(tmp_path, pipeline, TEXTS)
    assert [one.buckets for one in package.manifest.batching.ragged] == [[16, 64]]
    runtime = PackageRuntime.load(package)
    assert runtime.shapes is not None
    rows = [runtime.signature.check_row({"text": text}, 0) for text in ["", *make_texts(30, seed=4), "good " * 2000]]
    items = [runtime.prepare(row) for row in rows]
    expected = pipeline.decision_function(["", *make_texts(30, seed=4), "good " * 2000])
    for key in runtime.shapes.bucket_keys(items[0]):
        for item, score in zip(items, expected, strict=True):
            if runtime.shapes.fits(item, key):
                (answer,) = runtime.predict_each([item], key)
                np.testing.assert_array_equal(answer["score"][0], score)
    together = runtime.predict(rows)
    np.testing.assert_array_equal(together["score"], expected)


def test_counts_beyond_the_table_of_logarithms(tmp_path: Path) -> None:
    """A word said ten thousand times is weighted within a bit."""
    pipeline = make_pipeline(TfidfVectorizer(sublinear_tf=True, norm=None), LinearSVC()).fit(TEXTS, TWO)
    runtime = PackageRuntime.load(packed(tmp_path, pipeline, TEXTS))
    for count in (4095, 4096, 4097, 9999):
        text = "day " * count + "good"
        values = runtime.trace([runtime.signature.check_row({"text": text[:20_000]}, 0)]) if len(text) <= 20_000 else {}
        if values:
            row = sparse.csr_array(pipeline[:-1].transform([text]))
            np.testing.assert_array_max_ulp(values["features"][0], row.data, 1)


def test_fifty_thousand_terms_cost_a_short_text_nothing(tmp_path: Path) -> None:
    """What crosses between the stages is as long as the text, not as the vocabulary."""
    texts = [f"word{i} word{i + 1} common" for i in range(0, 50_000, 25)] + ["common"] * 2
    vocabulary = [f"word{i}" for i in range(50_000)] + ["common"]
    pipeline = make_pipeline(TfidfVectorizer(vocabulary=vocabulary), Perceptron(tol=None, max_iter=5)).fit(
        texts, [i % 2 for i in range(len(texts))]
    )
    runtime = PackageRuntime.load(packed(tmp_path, pipeline, texts))
    values = runtime.trace([runtime.signature.check_row({"text": "word7 word8 word49999 common"}, 0)])
    assert sum(v.nbytes for v in values.values() if v.dtype.kind in "if") < 500
    np.testing.assert_array_equal(values["score"][0, 1], pipeline.decision_function(["word7 word8 word49999 common"])[0])


def test_another_reader_of_the_column_is_refused() -> None:
    """A column is a text or a category."""
    twice = ColumnTransformer([("text", CountVectorizer(), "text"), ("codes", OneHotEncoder(handle_unknown="ignore"), ["text"])])
    pipeline = make_pipeline(twice, LogisticRegression()).fit(FRAME, TWO)
    with pytest.raises(UnsupportedStep, match="give the other step a copy"):
        from_sklearn(pipeline, FRAME, name="texts", version=1)


def test_null_is_refused_and_length_is_bounded(tmp_path: Path) -> None:
    """A text is required, and 20,000 characters are the most unless the author says otherwise."""
    pipeline = make_pipeline(CountVectorizer(), LinearSVC()).fit(TEXTS, TWO)
    (field,) = from_sklearn(pipeline, TEXTS, name="texts", version=1).fields
    assert (field.kind, field.max_length, field.missing.rule) == ("text", 20_000, "refuse")
    (field,) = from_sklearn(pipeline, TEXTS, name="texts", version=1, overrides={"text": {"max_length": 280}}).fields
    assert field.max_length == 280
    runs = make_pipeline(CountVectorizer(analyzer="char", ngram_range=(1, 60), vocabulary=["a", "b"]), LinearSVC()).fit(TEXTS, TWO)
    with pytest.raises(AuthoringError, match="max_length"):
        from_sklearn(runs, TEXTS, name="texts", version=1)


def test_series_and_frame_of_one_column_are_the_same() -> None:
    """What the field is called is what the Series is."""
    pipeline = make_pipeline(CountVectorizer(), LinearSVC()).fit(TEXTS, TWO)
    drafts = [from_sklearn(pipeline, data, name="t", version=1) for data in (pd.Series(TEXTS, name="body"), pd.DataFrame({"body": TEXTS}))]
    assert [d.fields[0].name for d in drafts] == ["body", "body"]
    with pytest.raises(AuthoringError, match="not a frame of 4 columns"):
        from_sklearn(pipeline, FRAME, name="t", version=1)


def test_terms_are_part_of_the_baseline(tmp_path: Path) -> None:
    """How many terms a text has and which share the vocabulary lacks are watched for drift."""
    pipeline = make_pipeline(TfidfVectorizer(), LinearSVC()).fit(TEXTS, TWO)
    package = packed(tmp_path, pipeline, TEXTS, baseline=BaselineRows(rows=[{"text": t} for t in TEXTS[:60]]))
    baseline = package.baseline()
    assert baseline is not None
    names = {variable.name for _, variable in baseline.inputs()}
    assert {"text.tokens", "text.unknown_share", "text.characters"} <= names
