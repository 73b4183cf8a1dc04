"""Text through the tokenizer training used: authoring object, item plan and package give the library's own tokens."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from rich.console import Console
from samegraph_transforms.baseline_bins import Binner
from samegraph_transforms.baseline_build import field_tokenizers
from samegraph_transforms.baseline_extract import InputColumns
from samegraph_transforms.baseline_text import token_facts
from samegraph_transforms.draft import BaselineRows, DraftStage, GoldenSample, PackageDraft
from samegraph_transforms.errors import (
    AuthoringError,
    EnvironmentUnfit,
    InputError,
    ManifestInvalid,
    NotExact,
    SamegraphError,
)
from samegraph_transforms.executor import OrtExecutor
from samegraph_transforms.golden import write_samples
from samegraph_transforms.inspection import inspect
from samegraph_transforms.manifest import Batching, Output, RawField, Tokenizer
from samegraph_transforms.opsets import IR_VERSION, opset_imports
from samegraph_transforms.pack import pack, read_draft
from samegraph_transforms.package import Package, canonical_json, read_package
from samegraph_transforms.ragged import grouped
from samegraph_transforms.runtime import PackageRuntime
from samegraph_transforms.text import Tokenize, first_token, mean_pool
from samegraph_transforms.tokenization import TextTokenizer, token_counters

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "saw", "that", "this", "is", "good", "bad", "very", "not", "film", "day")


def engine() -> tokenizers.Tokenizer:
    """A tokenizer with everything a published one has: normaliser, unknown token, special tokens, truncation and padding in the file."""
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *"abcdefghijklmnopqrstuvwxyz.,!?"])}
    vocabulary |= {f"##{c}": len(vocabulary) + i for i, c in enumerate("abcdefghijklmnopqrstuvwxyz")}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    made.enable_truncation(max_length=40)
    made.enable_padding(pad_id=0, pad_token="[PAD]", length=40)
    return made


FILE = engine().to_str().encode()
TOKENIZE = Tokenize(FILE)


def expected(text: str, longest: int = 40) -> list[int]:
    """The tokens as the library gives them when it is asked directly."""
    own = tokenizers.Tokenizer.from_str(FILE.decode())
    own.no_padding()
    own.enable_truncation(max_length=longest)
    return list(own.encode(text).ids)


def model(weights: np.ndarray) -> onnx.ModelProto:
    """The sum of a number for every token that is there: float64 [n]."""
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["weights", "input_ids"], ["found"]),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.DOUBLE),
            helper.make_node("Mul", ["found", "mask"], ["kept"]),
            helper.make_node("ReduceSum", ["kept", "axes"], ["score"], keepdims=0),
        ],
        "scores",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "length"]) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("score", TensorProto.DOUBLE, ["n"])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([1]), "axes")],
    )
    return helper.make_model(graph, opset_imports=opset_imports(), ir_version=IR_VERSION)


WEIGHTS = np.random.default_rng(3).integers(-99, 99, engine().get_vocab_size()).astype(np.float64)
TEXTS = [
    "",
    "the cat",
    "This is GOOD!",
    "not a very good film, was it?",
    "Zürich 東京 🙂",
    "the mat sat on a cat and saw that this is bad " * 5,
]


def samples(texts: Sequence[str] = TEXTS) -> list[GoldenSample]:
    return [
        GoldenSample(
            f"text {i}",
            "/v1/models/words:predict",
            {"content-type": "application/json"},
            json.dumps({"instances": [{"text": text}]}).encode(),
            {"score": np.array([WEIGHTS[expected(text)].sum()])},
            {"input_ids": np.array([expected(text)], dtype=np.int64)},
        )
        for i, text in enumerate(texts)
    ]


def draft(tokenize: Tokenize = TOKENIZE, **changes: Any) -> PackageDraft:
    made = PackageDraft(
        name="words",
        version=1,
        fields=tokenize.fields("text", max_characters=2000),
        outputs=[Output(name="score", dtype="float64")],
        stages=[*tokenize.stages("text"), DraftStage("model", model(WEIGHTS))],
        tokenizers=tokenize.tokenizers(),
        assets=tokenize.assets(),
        batching=Batching(max_batch_size=8, ragged=[tokenize.ragged([4, 8, 16, 40], max_padding_ratio=0.9)]),
    )
    return replace(made, **changes)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return pack(draft(), samples(), tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="module")
def runtime(package: Package) -> PackageRuntime:
    return PackageRuntime.load(package)


@given(st.one_of(st.text(max_size=80), st.lists(st.sampled_from([*WORDS, "GOOD", ",", "ß", "é"]), max_size=60).map(" ".join)))
def test_tokens_are_the_librarys_own(runtime: PackageRuntime, text: str) -> None:
    """Called in training and run in the package, any text gives what the library gives, and the answer follows from it."""
    ids = expected(text)
    assert TOKENIZE(text)["input_ids"].tolist() == ids
    item = runtime.prepare((text,))
    assert [array.tolist() for array in item] == [ids, [1] * len(ids)]
    assert all(array.dtype == np.int64 for array in item)
    assert runtime.predict_each([item])[0]["score"].tolist() == WEIGHTS[ids].sum()


def test_texts_of_different_lengths_share_an_execution(runtime: PackageRuntime) -> None:
    """Padding of a bucket changes no answer."""
    texts = [*TEXTS, "cat", "the mat", "a film"]
    items = [runtime.prepare((text,)) for text in texts]
    assert runtime.shapes is not None
    together = grouped([runtime.shapes.key(item) for item in items])
    assert 1 < len(together) < len(texts)
    for key, places in together.items():
        answers = runtime.predict_each([items[place] for place in places], key)
        assert [answer["score"] for answer in answers] == [WEIGHTS[expected(texts[place])].sum() for place in places]


def test_padding_in_the_file_is_not_applied_and_truncation_is() -> None:
    """The file pads to 40 and cuts at 40: a short text keeps its own length, a long one ends with [SEP]."""
    assert len(TOKENIZE("the cat")["input_ids"]) == 4
    long = TOKENIZE("cat " * 100)["input_ids"]
    assert (len(long), long[-1]) == (40, 3)
    short = Tokenize(FILE, max_length=5)("cat " * 100)["input_ids"]
    assert short.tolist() == expected("cat " * 100, 5)


def test_batch_pads_as_training_feeds_it() -> None:
    """Ids with the file's own padding, masks and segments with zero."""
    tokenize = Tokenize(FILE, names={"type_ids": "segments", "ids": "ids", "mask": "mask"})
    batch = tokenize.batch(["the cat", "the cat sat on"])
    assert list(batch) == ["ids", "mask", "segments"]
    assert batch["mask"].tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6]
    assert batch["ids"][0].tolist() == [*expected("the cat"), 0, 0]
    assert not batch["segments"].any()
    assert tokenize.batch(["a"], length=9)["ids"].shape == (1, 9)
    with pytest.raises(ValueError, match="6 tokens"):
        tokenize.batch(["the cat sat on"], length=5)


def test_facts_count_what_the_vocabulary_lacks_and_what_was_cut() -> None:
    """For statistics: tokens, unknown ones, whether something is missing."""
    tokenizer = TextTokenizer(TOKENIZE.tokenizers()[0], FILE)
    assert tokenizer.longest == 40
    some = tokenizer.facts("the 東 cat")
    assert (some.tokens, some.unknown, some.truncated) == (5, 1, False)
    assert tokenizer.facts("cat " * 100).truncated
    byte_level = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, []))
    assert TextTokenizer(Tokenizer(node="t", library_version="1"), byte_level.to_str().encode()).facts("a").unknown == 0


def test_what_is_no_text_is_refused_with_its_field(runtime: PackageRuntime) -> None:
    """Half a surrogate pair reaches Python strings through JSON escapes; it is no character."""
    with pytest.raises(InputError, match="field 'text'") as refused:
        runtime.prepare(("good \ud83d",))
    assert (refused.value.code, refused.value.field) == ("wrong_type", "text")


def test_text_without_a_token_is_refused_where_nothing_is_added() -> None:
    """A batch of no tokens has no mean."""
    bare = Tokenize(FILE, add_special_tokens=False)
    assert bare("cat")["input_ids"].tolist() == expected("cat")[1:-1]
    with pytest.raises(InputError, match="no token"):
        bare("  ")


def test_package_says_how_it_tokenizes(package: Package, capsys: pytest.CaptureFixture[str]) -> None:
    """In the manifest, by `inspect`, and as a step of the item stage."""
    [tokenizer] = read_package(package.path).manifest.tokenizers
    assert tokenizer == TOKENIZE.tokenizers()[0]
    assert "assets/tokenizer.json" in package.manifest.files
    measured = {m.tensor: m for m in package.manifest.measured}
    assert measured["input_ids"].different == 0
    assert measured["input_ids"].elements > 0
    inspect(package).render(Console(width=120))
    shown = capsys.readouterr().out
    assert "samegraph::Tokenize" in shown
    assert f"trained with tokenizers {tokenizers.__version__}" in shown
    assert "Tokenizing" in shown


def test_manifest_without_text_keeps_its_spelling(package: Package) -> None:
    """Packages from before there were tokenizers keep their digest."""
    assert "tokenizers" in json.loads(canonical_json(package.manifest))
    assert "tokenizers" not in json.loads(canonical_json(package.manifest.model_copy(update={"tokenizers": []})))


def test_wrong_tokens_are_not_packed(tmp_path: Path) -> None:
    """A package whose tokenizer is not the trainer's is refused, and the tensor is named."""
    other = json.loads(FILE)
    other["normalizer"]["lowercase"] = False
    with pytest.raises(NotExact) as refused:
        pack(draft(Tokenize(json.dumps(other).encode())), samples(), tmp_path)
    assert refused.value.tensor == "input_ids"
    assert not (tmp_path / "words" / "1").exists()


def refusals() -> Sequence[Any]:
    declared = TOKENIZE.tokenizers()[0]
    number = RawField(name="text", kind="number")
    return [
        pytest.param({"tokenizers": []}, ManifestInvalid, "declares no tokenizer for node 'tokenize'", id="undeclared"),
        pytest.param({"fields": [number]}, ManifestInvalid, "must read a text field", id="not-a-text"),
        pytest.param({"assets": {}}, SamegraphError, "tokenizer.json", id="no-file"),
        pytest.param({"assets": {"tokenizer.json": b"{}"}}, ManifestInvalid, "no tokenizer that tokenizers", id="no-tokenizer"),
        pytest.param(
            {"tokenizers": [declared.model_copy(update={"arrays": ["ids"]})]}, ManifestInvalid, "2 outputs in the graph", id="other-arrays"
        ),
        pytest.param(
            {"tokenizers": [declared.model_copy(update={"max_length": 2})]}, ManifestInvalid, "no room beside 2 special", id="no-room"
        ),
    ]


@pytest.mark.parametrize(("changes", "error", "words"), refusals())
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], error: type[Exception], words: str) -> None:
    """With a sentence that says where to look, and nothing written."""
    with pytest.raises(error, match=words):
        pack(draft(**changes), samples(), tmp_path)


def test_author_is_told_what_is_missing() -> None:
    """A model without ids, an unknown array, and lengths without a bound."""
    with pytest.raises(AuthoringError, match="needs `ids`"):
        Tokenize(FILE, names={"mask": "m"})
    with pytest.raises(AuthoringError, match="not for words"):
        Tokenize(FILE, names={"ids": "i", "words": "w"})  # type: ignore[dict-item]
    endless = engine()
    endless.no_truncation()
    with pytest.raises(AuthoringError, match="nothing bounds"):
        Tokenize(endless.to_str().encode()).ragged()
    assert Tokenize(endless.to_str().encode()).ragged([8]).beyond == "exact"
    assert TOKENIZE.ragged().buckets == [8, 16, 32, 40]


def test_missing_library_is_named(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who serves such a package learns what to install."""
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(EnvironmentUnfit, match=r"samegraph-transforms\[text\]"):
        PackageRuntime.load(package)


def test_draft_directory_takes_tokenizers(tmp_path: Path) -> None:
    """draft.json for what another tool exported."""
    made = draft()
    for stage, name in zip(made.stages, ("item.onnx", "model.onnx"), strict=True):
        onnx.save(stage.model, tmp_path / name)
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "tokenizer.json").write_bytes(FILE)
    write_samples(tmp_path / "golden", samples())
    facts = {
        "name": "words",
        "version": 1,
        "fields": [f.model_dump(mode="json", exclude_defaults=True) for f in made.fields],
        "outputs": [o.model_dump(mode="json", exclude_defaults=True) for o in made.outputs],
        "stages": [{"name": "preprocess.item", "file": "item.onnx"}, {"name": "model", "file": "model.onnx"}],
        "tokenizers": [t.model_dump(mode="json") for t in made.tokenizers],
        "batching": made.batching.model_dump(mode="json"),
    }
    (tmp_path / "draft.json").write_text(json.dumps(facts))
    read, golden = read_draft(tmp_path)
    packed = pack(read, golden, tmp_path / "repository")
    assert packed.manifest.tokenizers == list(made.tokenizers)


HIDDEN = np.random.default_rng(5).normal(size=(3, 6, 4)).astype(np.float32)
MASK = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]], dtype=np.int64)


def run_both(stage: DraftStage, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """Run a head in ONNX Runtime and in the reference evaluator, and return the former once they agree."""
    onnx.checker.check_model(stage.model, full_check=True)
    [got] = OrtExecutor(stage.model).run(feeds)
    reference = np.asarray(next(iter(ReferenceEvaluator(stage.model).run(None, feeds))))
    np.testing.assert_allclose(got, reference, rtol=3e-7)
    return got


@pytest.mark.parametrize("normalize", [False, True])
def test_mean_pool_leaves_padding_out(normalize: bool) -> None:
    """The mean over the tokens that are there, computed in NumPy in double."""
    got = run_both(mean_pool("hidden", "mask", "embedding", size=4, normalize=normalize), {"hidden": HIDDEN, "mask": MASK})
    wide = HIDDEN.astype(np.float64)
    mean = np.stack([row[mask == 1].mean(axis=0) for row, mask in zip(wide, MASK, strict=True)])
    wanted = mean / np.linalg.norm(mean, axis=1, keepdims=True) if normalize else mean
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_first_token_is_the_first_token() -> None:
    """[CLS]."""
    got = run_both(first_token("hidden", "answer", size=4), {"hidden": HIDDEN})
    np.testing.assert_array_equal(got, HIDDEN[:, 0])


# --- what is measured of tokens -------------------------------------------------------------------------------------------


def test_token_statistics_are_the_tokenizers_own() -> None:
    """Length, unknown share and truncation of a text are those of the library's own encoding; no token, no statistic."""
    count = TextTokenizer(TOKENIZE.tokenizers()[0], FILE).facts
    assert token_facts("the cat sat on 東 mat", count) == {"tokens": 8, "unknown_share": round(1 / 8, 6), "truncated": False}
    assert token_facts("cat " * 100, count) == {"tokens": 40, "unknown_share": 0.0, "truncated": True}
    assert token_facts(None, count) == {"tokens": None, "unknown_share": None, "truncated": None}
    assert token_facts("\ud800", count) == {"tokens": None, "unknown_share": None, "truncated": None}


def test_a_baseline_has_them_where_a_tokenizer_reads_the_field(tmp_path: Path) -> None:
    """Packed with rows, a text field has its tokens' statistics too, and counting the same rows gives the baseline's own counts."""
    rng = np.random.default_rng(5)
    rows = [" ".join(rng.choice([*WORDS, "東京", "zebra"], rng.integers(1, 60))) for _ in range(150)]
    package = pack(draft(baseline=BaselineRows(rows)), samples(), tmp_path)
    baseline = package.baseline()
    assert baseline is not None
    (field,) = baseline.fields
    assert field.tokenizer == package.manifest.tokenizers[0].node
    by_name = {variable.name: variable for variable in field.variables}
    encoded = [expected(row) for row in rows]
    assert by_name["text.tokens"].mean == pytest.approx(np.mean([len(ids) for ids in encoded]))
    assert by_name["text.unknown_share"].mean == pytest.approx(np.mean([ids.count(1) / len(ids) for ids in encoded]), abs=1e-6)
    long = TextTokenizer(package.manifest.tokenizers[0].model_copy(update={"max_length": 10_000}), FILE)
    assert by_name["text.truncated"].counts[1] == sum(len(long(row)[0]) > 40 for row in rows) > 0
    columns = InputColumns(package.manifest, baseline.fields, token_counters(field_tokenizers(package))).read([(row,) for row in rows])
    for variable in field.variables:
        assert Binner(variable).count(columns[variable.name]).tolist() == variable.counts, variable.name
