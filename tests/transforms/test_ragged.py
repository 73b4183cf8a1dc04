"""Rows of different shapes: which run together, what padding is declared and proven, and that it changes no answer."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import package_builders as build
import pytest
import ragged_models as models
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from pydantic import ValidationError
from samegraph_transforms import golden
from samegraph_transforms.draft import DraftStage, GoldenSample, PackageDraft
from samegraph_transforms.errors import AuthoringError, ExecutionError, InputError, NotExact
from samegraph_transforms.gpu import GpuExecutor, GpuOptions
from samegraph_transforms.manifest import Batching, Manifest, Output, Ragged, RaggedInput, RawField
from samegraph_transforms.pack import pack
from samegraph_transforms.package import Package, canonical_json, parse_manifest
from samegraph_transforms.ragged import ShapePlan
from samegraph_transforms.runtime import Item, PackageRuntime


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return pack(models.draft(), models.samples(), tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def runtime(package: Package) -> PackageRuntime:
    return PackageRuntime.load(package)


@pytest.fixture(scope="module")
def with_tokens(tmp_path_factory: pytest.TempPathFactory) -> PackageRuntime:
    return PackageRuntime.load(pack(models.draft(tokens=True), models.samples(tokens=True), tmp_path_factory.mktemp("models")))


#: What float32 sums of this size may differ by when their terms come in another order; a wrong token is off by far more.
ROUNDING = 1e-5


def plan(runtime: PackageRuntime) -> ShapePlan:
    assert runtime.shapes is not None
    return runtime.shapes


def item(ids: Sequence[int]) -> Item:
    return (np.asarray(ids, dtype=np.int64),)


# --- which rows run together -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "runs_as"),
    [(4, 4), (3, 4), (2, 4), (5, 8), (8, 8), (9, 16), (16, 16), (1, 1), (0, 0)],
    ids=str,
)
def test_a_row_runs_in_the_smallest_bucket_unless_that_wastes_too_much(runtime: PackageRuntime, length: int, runs_as: int) -> None:
    """Up to half a bucket may be padding; a row of one token would be three quarters of it and runs at its own length."""
    assert plan(runtime).key(item(models.sentence(length))) == ((runs_as,),)


def test_a_row_beyond_the_largest_bucket_is_refused_by_field_and_limit(runtime: PackageRuntime) -> None:
    """The caller is told what was too long and what goes."""
    with pytest.raises(InputError, match=r"field 'ids' has length 17; this model takes at most 16") as caught:
        plan(runtime).key(item(models.sentence(17)))
    assert (caught.value.code, caught.value.field) == ("wrong_shape", "ids")


def test_a_package_may_take_longer_rows_at_their_own_length(tmp_path: Path) -> None:
    """`beyond: exact` runs what no bucket holds as it is."""
    draft = models.draft(declared=models.ragged(beyond="exact"))
    runtime = PackageRuntime.load(pack(draft, models.samples(lengths=(2, 3, 5, 9, 40)), tmp_path))
    assert plan(runtime).key(item(models.sentence(40))) == ((40,),)
    np.testing.assert_allclose(
        runtime.predict([item(models.sentence(33))])["scores"][0], models.scores(models.sentence(33)), rtol=0, atol=ROUNDING
    )


def test_the_bound_on_padding_is_the_packages(tmp_path: Path) -> None:
    """With a bound of 1 every row that fits is padded; with 0 only rows that need none run in a bucket."""
    for ratio, want in ((1.0, 4), (0.0, 3)):
        draft = models.draft(declared=models.ragged(max_padding_ratio=ratio))
        runtime = PackageRuntime.load(pack(draft, models.samples(), tmp_path / str(want)))
        assert plan(runtime).key(item(models.sentence(3))) == ((want,),)


def test_inputs_of_one_length_must_be_equally_long(tmp_path: Path) -> None:
    """Two fields that share a length are padded together, and a row where they disagree names the one that differs."""
    model = build.model_of(
        [helper.make_node("Mul", ["a", "b"], ["products"]), helper.make_node("ReduceSum", ["products", "axis"], ["dot"], keepdims=0)],
        [("a", TensorProto.DOUBLE, ["n", "length"]), ("b", TensorProto.DOUBLE, ["n", "length"])],
        [("dot", TensorProto.DOUBLE, ["n"])],
        axis=np.array([1]),
    )
    draft = build.draft(
        name="dot",
        fields=[RawField(name=n, kind="tensor", dtype="float64", shape=[None]) for n in ("a", "b")],
        outputs=[Output(name="dot", dtype="float64")],
        stages=[DraftStage("model", model)],
        batching=Batching(ragged=[Ragged(inputs={"a": RaggedInput(), "b": RaggedInput()}, buckets=[4])]),
    )
    body = b'{"instances": [{"a": [1, 2], "b": [3, 4]}]}'
    one = GoldenSample("one", "/v1/models/dot:predict", models.JSON, body, {"dot": np.array([11.0])})
    runtime = PackageRuntime.load(pack(draft, [one], tmp_path))
    assert plan(runtime).key((np.ones(3), np.ones(3))) == ((4,), (4,))
    with pytest.raises(InputError, match="field 'b' has length 2 where field 'a' has 3") as caught:
        plan(runtime).key((np.ones(3), np.ones(2)))
    assert caught.value.field == "b"


def test_rows_whose_shapes_may_not_be_padded_run_in_executions_of_their_own(tmp_path: Path) -> None:
    """A tensor of open shape that nothing is declared about: every row gets what it would get alone."""
    model = build.model_of(
        [helper.make_node("Softmax", ["x"], ["y"], axis=1)],
        [("x", TensorProto.DOUBLE, ["n", "k"])],
        [("y", TensorProto.DOUBLE, ["n", "k"])],
    )
    draft = build.draft(
        name="lists",
        fields=[RawField(name="x", kind="tensor", dtype="float64", shape=[None])],
        outputs=[Output(name="y", dtype="float64", shape=[None])],
        stages=[DraftStage("model", model)],
    )
    lists = [[1.0, 2.0], [0.5], [3.0, 1.0], [0.25, 0.5, 0.75]]

    def softmax(x: Sequence[float]) -> np.ndarray:
        powers = np.exp(np.asarray(x) - max(x))
        return np.asarray(powers / powers.sum())

    golden_samples = [
        GoldenSample(f"{x}", "/v1/models/lists:predict", models.JSON, f'{{"instances": [{x}]}}'.encode(), {"y": softmax(x)[None]})
        for x in lists
    ]
    runtime = PackageRuntime.load(pack(draft, golden_samples, tmp_path))
    assert plan(runtime).bucket_keys((np.ones(2),)) == []
    answers = runtime.predict_each([(np.asarray(x),) for x in lists])
    for x, answer in zip(lists, answers, strict=True):
        np.testing.assert_allclose(answer["y"], [softmax(x)], rtol=1e-15)
    with pytest.raises(ExecutionError, match="outputs differ in shape"):
        runtime.predict([(np.asarray(x),) for x in lists])


def test_rows_of_another_shape_never_slip_into_a_batch(runtime: PackageRuntime) -> None:
    """Should anything put them together, the batch is an error, not a wrong answer."""
    with pytest.raises(ExecutionError, match=r"a row of shape \[9\] cannot run as one of shape \[4\]"):
        runtime.collate([item(models.sentence(3)), item(models.sentence(9))])


# --- exactness ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, models.VOCABULARY - 1), min_size=1, max_size=16), min_size=1, max_size=12))
def test_padding_and_company_change_no_answer(runtime: PackageRuntime, sentences: list[list[int]]) -> None:
    """Property: a row in a mixed batch gets what it gets alone and unpadded, within the promise."""
    answers = runtime.predict([item(ids) for ids in sentences])["scores"]
    for ids, answer in zip(sentences, answers, strict=True):
        alone = runtime.run(runtime.collate([item(ids)], ((len(ids),),)))[0][0]
        np.testing.assert_allclose(answer, alone, rtol=0, atol=ROUNDING)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, models.VOCABULARY - 1), min_size=1, max_size=16), min_size=1, max_size=12))
def test_outputs_that_follow_the_length_are_cut_back_to_each_rows_own(with_tokens: PackageRuntime, sentences: list[list[int]]) -> None:
    """Property: every sentence gets as many token scores as it has tokens, and they are its own."""
    for ids, answer in zip(sentences, with_tokens.predict_each([item(ids) for ids in sentences]), strict=True):
        assert answer["each"].shape == (1, len(ids), models.CLASSES)
        np.testing.assert_allclose(answer["each"][0], models.each(ids), rtol=0, atol=ROUNDING)


def test_the_replay_pads_every_sample_to_every_bucket_it_fits_into(package: Package, runtime: PackageRuntime) -> None:
    """Mixed lengths share executions, whatever their own bucket is."""
    results = golden.replay(runtime, golden.read_samples(package.golden_dir()), [1, 8], intermediates=False)
    assert all(r.passed for r in results)
    counts = {padded: len({r.sample for r in results if r.padded == padded}) for padded in {r.padded for r in results}}
    assert counts == {"": 4, "ids [4]": 3, "ids [8]": 6, "ids [16]": 9}


def test_packing_refuses_padding_that_changes_answers_and_names_bucket_and_row(tmp_path: Path) -> None:
    """A model that forgets its mask is right for full rows and wrong for padded ones."""
    with pytest.raises(NotExact, match=r"golden sample '3 tokens: .*padded to ids \[4\].*tensor 'scores'") as caught:
        pack(models.draft(masked=False), models.samples(lengths=(3, 4, 7, 8, 15, 16)), tmp_path)
    assert caught.value.sample.startswith("3 tokens")
    assert not (tmp_path / "sentences" / "1").exists()


def test_packing_refuses_padding_that_changes_the_answers_of_a_chain(tmp_path: Path) -> None:
    """Stages run apart are right because they run unpadded; that is no reason to serve them unmerged and padded."""
    draft = models.draft(masked=False)
    (stage,) = draft.stages
    last = build.model_of(
        [helper.make_node("Identity", ["raw"], ["scores"])],
        [("raw", TensorProto.FLOAT, ["n", 3])],
        [("scores", TensorProto.FLOAT, ["n", 3])],
    )
    stages = [DraftStage("model", stage.model, outputs={"scores": "raw"}), DraftStage("postprocess", last)]
    with pytest.raises(NotExact, match=r"padded to ids \[4\]"):
        pack(replace(draft, stages=stages), models.samples(), tmp_path)


def test_packing_refuses_a_bucket_that_no_sample_is_padded_to(tmp_path: Path) -> None:
    """Full rows prove nothing about padding."""
    with pytest.raises(AuthoringError, match=r"padding to ids \[4\] changes no answer; capture a golden sample that is shorter"):
        pack(models.draft(), models.samples(lengths=(4, 8, 16)), tmp_path)


def test_packing_refuses_an_output_that_keeps_its_padding(tmp_path: Path) -> None:
    """An output that follows the length has to be declared, or its padding would be part of the answer."""
    draft = models.draft(tokens=True, declared=models.ragged())
    with pytest.raises(NotExact, match="tensor 'each'"):
        pack(draft, models.samples(tokens=True), tmp_path)


# --- what an item stage makes -----------------------------------------------------------------------------------------


def without_zeros(*, declared: bool) -> PackageDraft:
    """A package whose item stage drops zeros, so that equally long rows differ behind it; sum and, with a mask, number come out."""
    itemwise = build.model_of(
        [
            helper.make_node("NonZero", ["x"], ["where"]),
            helper.make_node("Squeeze", ["where", "first"], ["places"]),
            helper.make_node("Gather", ["x", "places"], ["kept"]),
        ],
        [("x", TensorProto.INT64, [6])],
        [("kept", TensorProto.INT64, ["k"])],
        first=np.array([0]),
    )
    inputs: list[tuple[str, int, list[Any]]] = [("kept", TensorProto.INT64, ["n", "k"])]
    outputs: list[tuple[str, int, list[Any]]] = [("total", TensorProto.INT64, ["n"])]
    nodes = [helper.make_node("ReduceSum", ["kept", "axis"], ["total"], keepdims=0)]
    promised = [Output(name="total", dtype="int64")]
    ragged = []
    if declared:
        inputs.append(("real", TensorProto.FLOAT, ["n", "k"]))
        nodes.append(helper.make_node("ReduceSum", ["real", "axis"], ["count"], keepdims=0))
        outputs.append(("count", TensorProto.FLOAT, ["n"]))
        promised.append(Output(name="count", dtype="float32"))
        ragged.append(Ragged(inputs={"kept": RaggedInput()}, buckets=[4, 6], mask="real", mask_dtype="float32"))
    return build.draft(
        name="zeros",
        fields=[RawField(name="x", kind="tensor", dtype="int64", shape=[6])],
        outputs=promised,
        stages=[DraftStage("preprocess.item", itemwise), DraftStage("model", build.model_of(nodes, inputs, outputs, axis=np.array([1])))],
        batching=Batching(max_batch_size=8, ragged=ragged),
    )


@pytest.mark.parametrize("declared", [False, True], ids=["apart", "padded"])
def test_what_an_item_stage_makes_of_varying_length_runs_together_or_apart(tmp_path: Path, declared: bool) -> None:
    """Rows that look alike on the wire may differ behind the item stage; declared or not, each gets its own answer."""
    rows = [[1, 2, 3, 4, 5, 6], [0, 0, 7, 0, 0, 0], [1, 0, 1, 0, 1, 0], [2, 2, 0, 2, 2, 2], [0, 3, 3, 0, 3, 3]]
    golden_samples = []
    for row in rows:
        answer = {"total": np.array([sum(row)])} | ({"count": np.array([np.count_nonzero(row)], np.float32)} if declared else {})
        body = json.dumps({"instances": [row]}).encode()
        golden_samples.append(GoldenSample(f"{row}", "/v1/models/zeros:predict", models.JSON, body, answer))
    runtime = PackageRuntime.load(pack(without_zeros(declared=declared), golden_samples, tmp_path))
    items = [runtime.prepare(item(row)) for row in rows]
    assert [plan(runtime).key(i)[0] for i in items] == ([(6,), (1,), (4,), (6,), (4,)] if declared else [(6,), (1,), (3,), (5,), (4,)])
    answers = runtime.predict([item(row) for row in rows])
    assert answers["total"].tolist() == [sum(row) for row in rows]
    if declared:
        assert answers["count"].tolist() == [np.count_nonzero(row) for row in rows]


# --- the manifest ------------------------------------------------------------------------------------------------------


def document(ragged: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    whole = {
        "name": "m",
        "version": 1,
        "fields": [{"name": "ids", "kind": "tensor", "dtype": "int64", "shape": [None]}, {"name": "x", "kind": "number"}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": [None, 3]}],
        "stages": [{"name": "model", "file": "model.onnx", "inputs": {"ids": "ids", "m": "mask", "x": "x"}, "outputs": {"y": "y"}}],
        "batching": {"ragged": ragged},
    }
    return {**whole, **changes}


GOOD = {"inputs": {"ids": {"axis": 0}}, "buckets": [4, 8], "mask": "mask", "outputs": {"y": 0}}


def test_a_good_declaration_is_read() -> None:
    """The example the refusals below are changes of."""
    manifest = Manifest.model_validate(document([GOOD]))
    assert manifest.masks == ["mask"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"buckets": [8, 4]}, "ascending"),
        ({"buckets": [0, 4]}, "ascending"),
        ({"buckets": []}, "at least 1 item"),
        ({"inputs": {}}, "at least 1 item"),
        ({"inputs": {"ids": {"axis": 1}}}, "axis 1 of 'ids' is not open"),
        ({"inputs": {"x": {}}}, "'x' is neither a tensor field nor an output of the item stage"),
        ({"inputs": {"nobody": {}}}, "'nobody' is neither"),
        ({"inputs": {"ids": {"pad_value": "none"}}}, "pad_value of 'ids' must be a int64"),
        ({"mask": "ids"}, "the mask 'ids' has the name of another value"),
        ({"mask": "other"}, "no stage that sees a batch reads the mask 'other'"),
        ({"outputs": {"y": 1}}, "no output whose axis 1 is open"),
        ({"outputs": {"z": 0}}, "'z' is no output"),
        ({"max_padding_ratio": 1.5}, "less than or equal to 1"),
    ],
    ids=lambda value: re.sub(r"\W+", "-", str(value))[:40],
)
def test_a_declaration_that_cannot_be_kept_is_refused(change: dict[str, Any], reason: str) -> None:
    """The message says what is wrong with which name."""
    with pytest.raises(ValidationError, match=reason):
        Manifest.model_validate(document([{**GOOD, **change}]))


def test_an_axis_belongs_to_one_length_and_all_buckets_together_are_few() -> None:
    """Each shape is warmed up before a version is ready, so there cannot be thousands."""
    with pytest.raises(ValidationError, match="axis 0 of 'ids' is given twice"):
        Manifest.model_validate(document([GOOD, {**GOOD, "mask": None, "outputs": {}}]))
    many = [{"inputs": {"ids": {}}, "buckets": list(range(1, 10))}] * 2
    with pytest.raises(ValidationError, match="more than 64 shapes"):
        Manifest.model_validate(document(many))


def test_a_manifest_without_ragged_lengths_has_the_spelling_it_always_had(package: Package) -> None:
    """Packages from before keep their digest, and the declaration survives the way to disk and back."""
    plain = Manifest.model_validate(document([]))
    assert b"ragged" not in canonical_json(plain)
    raw = canonical_json(package.manifest)
    assert b'"ragged"' in raw
    assert parse_manifest(raw, "it").batching == package.manifest.batching


@pytest.mark.parametrize("pad_value", [0.5, 2**70], ids=["fraction", "too large"])
def test_a_pad_value_the_input_cannot_hold_is_refused_at_load(tmp_path: Path, pad_value: float) -> None:
    """Rounding it would pad with something else than was proven."""
    declared = models.ragged(inputs={"ids": RaggedInput(pad_value=pad_value)})
    with pytest.raises(ExecutionError, match=r"pads 'ids' with .*, which int64 cannot hold"):
        pack(models.draft(declared=declared), models.samples(), tmp_path)


# --- on a GPU ----------------------------------------------------------------------------------------------------------


def test_every_batch_size_in_every_bucket_is_warm_before_the_first_caller(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch sizes 8, 1, 2 and 4 with lengths 16, 8 and 4, the largest first; nothing is bound anew afterwards, and nothing is evicted."""
    runtime = PackageRuntime.load(package, gpu=GpuOptions())
    ((_, executor),) = runtime._chain
    assert isinstance(executor, GpuExecutor)
    made: list[Any] = []
    allocate = executor._allocate

    def noted(key: Any) -> Any:
        made.append(key[0])
        return allocate(key)

    monkeypatch.setattr(executor, "_allocate", noted)
    runtime.warm_up([item(models.sentence(n)) for n in (3, 7, 12)])
    assert list(dict.fromkeys(made)) == [(size, length) for length in (16, 8, 4) for size in (8, 1, 2, 4)]
    warm = len(made)
    for n in (1, 3, 5, 8):
        for length in (2, 4, 6, 9, 16):
            ids = [models.sentence(length, seed) for seed in range(n)]
            got = runtime.predict([item(i) for i in ids])["scores"]
            np.testing.assert_allclose(got, [models.scores(i) for i in ids], rtol=0, atol=ROUNDING)
    assert (len(made), executor.evictions) == (warm, 0)


def test_rows_are_copied_once_on_their_way_to_the_gpu(package: Package) -> None:
    """What `collate` returns is written straight into the staging buffer, padding included."""
    runtime = PackageRuntime.load(package, gpu=GpuOptions())
    feed: Any = runtime.collate([item([1, 2, 3]), item([4, 5])])["ids"]
    assert not isinstance(feed, np.ndarray)
    assert (feed.shape, feed.dtype, len(feed)) == ((2, 4), np.int64, 2)
    staged = np.full((2, 4), -1)
    feed.write(staged)
    assert staged.tolist() == [[1, 2, 3, 0], [4, 5, 0, 0]]
