"""The host node that counts terms: what it gives, what it refuses, and what a package with one says about itself."""

from __future__ import annotations

import io
import json
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_server import live_server
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from samegraph_transforms.draft import BaselineRows, DraftStage, GoldenSample, PackageDraft
from samegraph_transforms.errors import InputError, ManifestInvalid, NotExact
from samegraph_transforms.fingerprint import deviations, environment
from samegraph_transforms.inspection import inspect
from samegraph_transforms.inspection_html import render
from samegraph_transforms.manifest import Batching, Output, Ragged, RaggedInput, RawField, Vectorizer
from samegraph_transforms.opsets import DOMAIN, IR_VERSION, opset_imports
from samegraph_transforms.pack import pack
from samegraph_transforms.runtime import PackageRuntime
from samegraph_transforms.terms import TermCounter, murmurhash3, terms_file

VOCABULARY = ["bad", "good", "istanbul", "very good"]
SCORES = np.array([-1.0, 1.0, 0.25, 0.5])


def declared(**changes: Any) -> Vectorizer:
    """Return how words and pairs of words are counted."""
    facts: dict[str, Any] = {
        "node": "count", "file": "assets/terms.json", "n_features": 4, "ngram_range": (1, 2), "token_pattern": r"\w+",
        "strip_accents": "unicode", "unicode_version": unicodedata.unidata_version,
    }  # fmt: skip
    return Vectorizer(**facts | changes)


def counter(vocabulary: list[str] | None = VOCABULARY, stop_words: tuple[str, ...] = (), **changes: Any) -> TermCounter:
    """Return it ready to run."""
    return TermCounter(declared(**changes), terms_file(vocabulary, stop_words))


def counted(one: TermCounter, text: str) -> dict[int, float]:
    """Return column → count."""
    columns, counts = one(text)
    assert columns.dtype == np.int64
    assert counts.dtype == np.float64
    assert sorted(columns) == list(columns)
    return dict(zip(columns.tolist(), counts.tolist(), strict=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("unheard of", {}),
        ("Very good, very GOOD; bad?", {0: 1.0, 1: 2.0, 3: 2.0}),
        ("İstanbul", {2: 1.0}),
        ("go\u200bod good\u0301", {1: 1.0}),
    ],
)
def test_words_and_pairs_of_words(text: str, expected: dict[int, float]) -> None:
    """Lower case first, then accents, then the pattern."""
    assert counted(counter(), text) == expected


def test_stop_words_go_before_pairs_are_made() -> None:
    """What stood on both sides of one becomes a pair."""
    assert counted(counter(stop_words=("not",)), "very not good") == {1: 1.0, 3: 1.0}


def test_known_hashes() -> None:
    """MurmurHash3_x86_32 with seed 0: published vectors."""
    known = {"": 0, "test": 0xBA6BD213, "Hello, world!": 0xC0363E43, "The quick brown fox jumps over the lazy dog": 0x2E4FF723}
    assert {text: murmurhash3(text) & 0xFFFFFFFF for text in known} == known


def test_half_of_a_surrogate_pair_is_refused_where_it_must_be_hashed() -> None:
    """A vocabulary simply does not have it."""
    assert counted(counter(), "good \ud800") == {1: 1.0}
    hashed = counter(None, hashed=True, token_pattern=r"\S+")
    with pytest.raises(InputError, match="field 'text': the text is not valid Unicode") as caught:
        hashed("good \ud800", "text")
    assert caught.value.field == "text"


def test_facts_count_terms_and_unknown_ones() -> None:
    """For drift: four terms, of which the vocabulary has two."""
    facts = counter(ngram_range=(1, 1)).facts("good bad ugly good")
    assert (facts.tokens, facts.unknown, facts.truncated) == (4, 1, False)


@pytest.mark.parametrize(
    ("changes", "file", "words"),
    [
        ({"token_pattern": "("}, terms_file(VOCABULARY, []), "no regular expression"),
        ({"token_pattern": "(a)(b)"}, terms_file(VOCABULARY, []), "2 groups"),
        ({}, b"[]", "no file of terms"),
        ({}, b"\xff", "no file of terms"),
        ({}, terms_file(None, []), "does not hold 4"),
        ({}, terms_file([*VOCABULARY[:3], "bad"], []), "does not hold 4"),
        ({}, json.dumps({"vocabulary": [1, 2, 3, 4], "stop_words": []}).encode(), "lists of strings"),
        ({"hashed": True}, terms_file(VOCABULARY, []), "does not hold"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], file: bytes, words: str) -> None:
    """A damaged package says what is wrong with it."""
    with pytest.raises(ManifestInvalid, match=words):
        TermCounter(declared(**changes), file)


@pytest.mark.parametrize(
    "changes", [{"analyzer": "char"}, {"token_pattern": None}, {"ngram_range": (2, 1)}, {"ngram_range": (0, 1)}, {"n_features": 0}]
)
def test_impossible_manifests(changes: dict[str, Any]) -> None:
    """The schema refuses what no vectorizer is."""
    with pytest.raises(ValueError, match=r"token_pattern|ngram_range|n_features"):
        declared(**changes)


# --- a package --------------------------------------------------------------------------------------------------------


def make_draft() -> PackageDraft:
    """Return a model that adds the scores of a text's terms."""
    item = helper.make_graph(
        [helper.make_node("CountTerms", ["text"], ["columns", "counts"], name="count", domain=DOMAIN)],
        "item",
        [helper.make_tensor_value_info("text", TensorProto.STRING, [1])],
        [
            helper.make_tensor_value_info("columns", TensorProto.INT64, ["terms"]),
            helper.make_tensor_value_info("counts", TensorProto.DOUBLE, ["terms"]),
        ],
    )
    nodes = [
        helper.make_node("Gather", ["scores", "columns"], ["found"]),
        helper.make_node("Mul", ["found", "counts"], ["each"]),
        helper.make_node("ReduceSum", ["each", "axis"], ["score"], keepdims=0),
    ]
    model = helper.make_graph(
        nodes,
        "model",
        [
            helper.make_tensor_value_info("columns", TensorProto.INT64, ["n", "terms"]),
            helper.make_tensor_value_info("counts", TensorProto.DOUBLE, ["n", "terms"]),
        ],
        [helper.make_tensor_value_info("score", TensorProto.DOUBLE, ["n"])],
        [numpy_helper.from_array(SCORES, "scores"), numpy_helper.from_array(np.array([1]), "axis")],
    )
    graphs = [helper.make_model(graph, opset_imports=opset_imports(), ir_version=IR_VERSION) for graph in (item, model)]
    return PackageDraft(
        name="mood",
        version=1,
        fields=[RawField(name="text", kind="text", max_length=1000, example="very good")],
        outputs=[Output(name="score", dtype="float64")],
        stages=[DraftStage("preprocess.item", graphs[0]), DraftStage("model", graphs[1])],
        vectorizers=[declared()],
        assets={"terms.json": terms_file(VOCABULARY, [])},
        batching=Batching(
            ragged=[
                Ragged(
                    inputs={"columns": RaggedInput(), "counts": RaggedInput(pad_value=0.0)},
                    buckets=[2, 8],
                    max_padding_ratio=1.0,
                    beyond="exact",
                )
            ]
        ),
        baseline=BaselineRows(rows=[{"text": text} for text in ("good", "bad", "", "very good indeed", "İstanbul")]),
    )


def make_samples(scores: np.ndarray = SCORES) -> list[GoldenSample]:
    """Return requests with the scores that training gave."""
    expected = {"": 0.0, "good": scores[1], "Very good, not bad": scores[0] + scores[1] + scores[3], "İstanbul 東京": scores[2]}
    headers = {"content-type": "application/json"}
    bodies = {text: json.dumps({"instances": [{"text": text}]}).encode() for text in expected}
    return [
        GoldenSample(f"text {i}", "/v1/models/mood:predict", headers, bodies[text], {"score": np.array([score])}, {})
        for i, (text, score) in enumerate(expected.items())
    ]


def test_package_serves_over_http_and_watches_its_terms(tmp_path: Path) -> None:
    """Packed, proven, loaded by a real server; odd texts are answered, half a surrogate pair and a long text are refused by field."""
    package = pack(make_draft(), make_samples(), tmp_path)
    baseline = package.baseline()
    assert baseline is not None
    assert {"text.tokens", "text.unknown_share"} <= {variable.name for _, variable in baseline.inputs()}
    texts = ["Very good!", "", "bad " * 20, "\u0000İSTANBUL"]
    with live_server(tmp_path) as server:
        reply = server.predict("mood", {"instances": [{"text": text} for text in texts]})
        assert reply.status == 200
        assert reply.json()["predictions"] == [1.5, 0.0, -20.0, 0.25]
        refused = server.predict("mood", {"instances": [{"text": "x" * 1001}]})
        assert refused.status == 400
        assert "'text'" in refused.body.decode()


def test_inspection_tells_how_terms_are_counted(tmp_path: Path) -> None:
    """On the terminal and on the page, with the Unicode version training had."""
    package = pack(make_draft(), make_samples(), tmp_path)
    inspection = inspect(package)
    console = Console(record=True, width=160, file=io.StringIO())
    console.print(inspection)
    page, text = render(inspection), console.export_text()
    for shown in (text, page):
        assert "Counting terms" in shown
        assert "1 to 2 words" in shown
        assert unicodedata.unidata_version in shown
    assert inspection.steps is not None
    assert [(step.engine, step.nodes) for step in inspection.steps] == [("host", ("count",))]


def test_another_unicode_is_a_deviation(tmp_path: Path) -> None:
    """Characters that are new since may be read differently; the package says so where it is loaded."""
    manifest = pack(make_draft(), make_samples(), tmp_path).manifest
    here = environment()
    assert deviations(manifest, here) == []
    (found,) = deviations(manifest, here | {"unicode": "99.0.0"})
    assert (found.what, found.here) == ("unicode", "99.0.0")
    plain = manifest.model_copy(update={"vectorizers": []})
    assert deviations(plain, here | {"unicode": "99.0.0"}) == []


def test_shuffled_vocabulary_is_refused(tmp_path: Path) -> None:
    """The wrong package does not get past its golden samples."""
    wrong = replace(make_draft(), assets={"terms.json": terms_file(["good", "bad", *VOCABULARY[2:]], [])})
    with pytest.raises(NotExact, match="score"):
        pack(wrong, make_samples(), tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vectorizers": []}, "declares no vectorizer for node 'count'"),
        ({"fields": [RawField(name="text", kind="bytes")]}, "must read a text field directly"),
    ],
)
def test_plan_says_what_does_not_fit(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    """A node without its description, or in front of something else than a text."""
    with pytest.raises(ManifestInvalid, match=words):
        pack(replace(make_draft(), baseline=None, **changes), make_samples(), tmp_path)


def test_host_step_is_the_same_in_a_loaded_package(tmp_path: Path) -> None:
    """What the item stage gives is what the counter gives."""
    runtime = PackageRuntime.load(pack(make_draft(), make_samples(), tmp_path))
    item = runtime.prepare(runtime.signature.check_row({"text": "very good, bad"}, 0))
    for mine, direct in zip(item, counter()("very good, bad"), strict=True):
        np.testing.assert_array_equal(mine, direct)
