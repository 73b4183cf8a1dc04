"""Keras models with preprocessing layers answer as Keras did: 0 flips, floats to the last bits; what does not is refused by layer.

The references were written by scripts/references/keras_models.py: graphs as tf2onnx made them, and Keras' own answers.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from samegraph_transforms.cli import cli
from samegraph_transforms.draft import PackageDraft
from samegraph_transforms.errors import AuthoringError, UnsupportedStep
from samegraph_transforms.exactness import compare
from samegraph_transforms.executor import OrtExecutor
from samegraph_transforms.keras_import import from_converted, from_keras, from_saved_model
from samegraph_transforms.manifest import DEFAULT_TOLERANCES, Tolerance
from samegraph_transforms.onnx_import import from_onnx, golden_samples
from samegraph_transforms.pack import pack

REFERENCES = Path(__file__).parent / "references" / "keras"
LAYERS = sorted(p.stem for p in REFERENCES.glob("*.npz") if p.stem not in ("houses", "photos"))


def drafted(name: str, **how: Any) -> PackageDraft:
    return from_converted(REFERENCES / f"{name}.onnx", name=name, version=1, **how)


def calls(name: str) -> dict[str, dict[str, np.ndarray]]:
    """Return call → its inputs and `answer`."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for key, array in np.load(REFERENCES / f"{name}.npz").items():
        call, _, what = key.partition("/")
        found.setdefault(call, {})[what] = array
    return found


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_gives_every_bit_that_keras_gave(name: str) -> None:
    """Each preprocessing layer alone: in float32, on boundaries, on unseen words, on images larger and smaller than wanted."""
    model = drafted(name).stages[-1].model
    executor = OrtExecutor(model)
    for call in calls(name).values():
        given = call["x"].astype(object) if call["x"].dtype.kind == "U" else call["x"]
        graph_input = model.graph.input[0]
        wanted = onnx.helper.tensor_dtype_to_np_dtype(graph_input.type.tensor_type.elem_type)
        fed = given if given.dtype == object else given.astype(wanted)
        (answer,) = executor.run({graph_input.name: fed})
        result = compare(call["answer"], answer, Tolerance(), tensor=name)
        assert result.passed, result.detail
        assert result.different == 0


def instances(call: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return a call's rows as a caller sends them."""
    names = [n for n in call if n != "answer"]
    return [{n: call[n][i] if call[n].ndim > 2 else call[n][i, 0].item() for n in names} for i in range(len(call["answer"]))]


def test_columns_through_their_layers_are_packed_with_no_flip(tmp_path: Path) -> None:
    """Normalization, Discretization, StringLookup, IntegerLookup and CategoryEncoding in one model, split in front of the network."""
    call = calls("houses")["rows"]
    rows = instances(call)
    probe = drafted("houses")
    split = next(n.output[0] for n in probe.stages[-1].model.graph.node if n.op_type == "Concat" and "features" in n.name)
    draft = drafted("houses", rows=rows, split_at={split: "features"}, outputs={probe.stages[-1].model.graph.output[0].name: "probability"})
    samples = golden_samples(draft, rows, {"probability": call["answer"]}, rows_per_request=8)
    package = pack(draft, samples, tmp_path)
    manifest = package.manifest
    assert {f.name: f.kind for f in manifest.fields} == {"age": "number", "area": "number", "code": "integer", "town": "string"}
    assert [s.name for s in manifest.stages] == ["preprocess.batch", "model"]
    (measured,) = manifest.measured
    assert (measured.tensor, measured.flips) == ("probability", 0)
    assert measured.max_abs <= 3e-7
    assert manifest.provenance.importer is not None
    assert manifest.provenance.importer.proven
    assert manifest.provenance.libraries["tensorflow"] == "2.21.0"


def test_images_of_any_size_are_resized_as_keras_does(tmp_path: Path) -> None:
    rows = [row for call in calls("photos").values() for row in instances(call)]
    answers = np.concatenate([call["answer"] for call in calls("photos").values()])
    draft = drafted("photos")
    assert [(f.name, f.dtype, f.shape) for f in draft.fields] == [("image", "uint8", [None, None, 3])]
    samples = golden_samples(draft, rows, {draft.outputs[0].name: answers})
    (measured,) = pack(draft, samples, tmp_path).manifest.measured
    assert measured.max_abs <= 3e-7
    chosen = answers.argmax(axis=1)
    got = np.concatenate([OrtExecutor(draft.stages[-1].model).run({"image": row["image"][None]})[0] for row in rows])
    assert (got.argmax(axis=1) == chosen).all()
    assert compare(answers, got, DEFAULT_TOLERANCES["cpu.same"]).passed


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("refused-resizing-area", "layer 'resizing.*nearest pixel"),
        ("refused-resizing-bicubic", "layer 'resizing.*'bicubic'"),
        ("refused-resizing-antialias", r"layer 'resizing.*antialias=True"),
        ("refused-multi-hot-of-lookup", r"layer 'category_encoding.*one count over the whole batch.*Reshape"),
        ("refused-text-vectorization", "layer 'text_vectorization.*TextVectorization"),
        ("refused-hashing", "layer 'hashing.*Hashing: ONNX has no such hash"),
        ("refused-mask-token", "layer 'string_lookup.*mask_token"),
    ],
)
def test_a_layer_that_has_no_exact_graph_is_refused_by_name(name: str, said: str) -> None:
    with pytest.raises(UnsupportedStep, match=said):
        drafted(name)
    with pytest.raises(UnsupportedStep, match=said):  # the same for a file that tf2onnx wrote elsewhere
        from_onnx(REFERENCES / f"{name}.onnx", name=name, version=1)


def test_a_table_that_tf2onnx_left_out_is_asked_for() -> None:
    """As tf2onnx alone writes IntegerLookup: TensorFlow's operator, and a handle that nothing fills."""
    model = onnx.load(REFERENCES / "integer-lookup.onnx")
    (encoder,) = model.graph.node
    encoder.op_type, encoder.domain = "LookupTableFindV2", ""
    with pytest.raises(UnsupportedStep, match=r"layer 'codes_1'.*convert with keras_import"):
        from_onnx(model, name="x", version=1)


def test_other_versions_than_those_compared_are_unproven() -> None:
    model = onnx.load(REFERENCES / "rescaling.onnx")
    for entry in model.metadata_props:
        if entry.key == "tensorflow":
            entry.value = "2.16.1"
    importer = from_converted(model, name="x", version=1).provenance.importer
    assert importer is not None
    assert not importer.proven
    assert "this was converted with tensorflow 2.16.1" in importer.reference


def test_a_folded_division_is_told() -> None:
    """TensorFlow's folding, as tf2onnx alone does it: the last bit differs, and the layer is named."""
    model = onnx.load(REFERENCES / "normalization.onnx")
    division = next(n for n in model.graph.node if n.op_type == "Div")
    assert "truediv" in division.name
    division.op_type = "Mul"
    importer = from_converted(model, name="x", version=1).provenance.importer
    assert importer is not None
    assert "layer 'normalization" in importer.warnings[0]


def test_without_tensorflow_the_extra_is_named(tmp_path: Path) -> None:
    with pytest.raises(AuthoringError, match=r"tensorflow and tf2onnx not installed; pip install 'samegraph-transforms\[keras\]'"):
        from_saved_model(tmp_path, name="x", version=1)
    (tmp_path / "rows.jsonl").write_text('{"instance": {"x": 1}, "outputs": {"y": 1}}')
    asked = ["import", "saved-model", str(tmp_path), "--name", "x", "--rows", str(tmp_path / "rows.jsonl")]
    done = CliRunner().invoke(cli, asked)
    assert (done.exit_code, "tf2onnx not installed" in done.stderr) == (1, True)
    exported = SimpleNamespace(layers=[], export=lambda *_, **__: None)
    with pytest.raises(AuthoringError, match="tf2onnx not installed"):
        from_keras(exported, name="x", version=1)
