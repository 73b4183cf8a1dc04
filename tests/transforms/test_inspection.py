"""What `inspect` finds in a package and how it shows it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import ragged_models
from onnx import TensorProto, helper
from package_builders import classifier, draft, model_of, samples
from rich.console import Console
from samegraph_transforms.draft import DraftStage, PackageDraft
from samegraph_transforms.errors import DigestMismatch
from samegraph_transforms.inspection import Inspection, inspect
from samegraph_transforms.manifest import Missing, Output, RawField
from samegraph_transforms.pack import pack
from samegraph_transforms.package import open_version, write_package


def page(inspection: Inspection, width: int = 120) -> str:
    """Render the page as plain text."""
    console = Console(file=io.StringIO(), width=width)
    inspection.render(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def item_draft() -> PackageDraft:
    """A package with an item stage: the length of a byte string, computed per instance by a model-local function."""
    body = [helper.make_node("Shape", ["data"], ["shape"]), helper.make_node("Cast", ["shape"], ["length"], to=TensorProto.FLOAT)]
    function = helper.make_function("samegraph", "Length", ["data"], ["length"], body, [helper.make_opsetid("", 21)])
    item = model_of(
        [helper.make_node("Length", ["blob"], ["length"], domain="samegraph", name="measure")],
        [("blob", TensorProto.UINT8, ["k"])],
        [("length", TensorProto.FLOAT, [1])],
    )
    item.functions.append(function)
    model = model_of(
        [helper.make_node("Mul", ["length", "two"], ["y"])],
        [("length", TensorProto.FLOAT, ["n", 1])],
        [("y", TensorProto.FLOAT, ["n", 1])],
        two=np.array([2], np.float32),
    )
    return PackageDraft(
        name="lengths",
        version=1,
        fields=[RawField(name="blob", kind="bytes", max_bytes=5_000_000)],
        outputs=[Output(name="y", dtype="float32", shape=[1])],
        stages=[DraftStage("preprocess.item", item), DraftStage("model", model)],
    )


def test_page_shows_signature_stages_promises_and_files(tmp_path: Path) -> None:
    """Everything a person wants to know before using a package is on the page."""
    text = page(inspect(pack(draft(), samples(), tmp_path)))
    for wanted in (
        "plants version 1", "How tall a plant grows.",
        "-1000 to 1000", "known: moss, fern, oak", "null becomes NaN", "Size in cm.",
        "float32 [3]", "low, mid, high",
        "size float64[n, 1], kind string[n, 1]", "ai.onnx.ml::LabelEncoder", "9 parameters", "ai.onnx 21",
        "floats within 4 ULP or 1e-07 × the largest magnitude", "measured when packed, on 6 golden samples",
        "model.onnx", "golden/blobs/ (6 files)", "assets/labels.txt",
        "NumPy", "Made up.", "CC0",
    ):  # fmt: skip
        assert wanted in text, wanted


@pytest.mark.parametrize("width", [60, 80, 200])
def test_page_fits_the_terminal(tmp_path: Path, width: int) -> None:
    """No line is wider than the terminal, and nothing is cut off with an ellipsis."""
    package = write_package(draft(), samples(), tmp_path / "plants" / "1")
    text = page(inspect(package), width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "…" not in text


def test_digest_is_shown_whole_on_a_terminal_of_80_columns(tmp_path: Path) -> None:
    """The identity can be copied from the page."""
    package = write_package(draft(), samples(), tmp_path / "plants" / "1")
    assert package.digest in page(inspect(package), 80)


def test_stages_are_described_from_their_graphs(tmp_path: Path) -> None:
    """Sizes, operators and bindings come from the files, not from the manifest."""
    first, second, _ = inspect(write_package(draft(), samples(), tmp_path / "plants" / "1")).stages
    assert first.operators == {"IsNaN": 1, "Where": 1, "Cast": 1, "ai.onnx.ml::LabelEncoder": 1, "Concat": 1}
    assert (second.nodes, second.parameters, second.file) == (2, 9, "model.onnx")
    assert [(p.value, p.dtype, p.shape) for p in second.outputs] == [("probability", "float32", ("n", "3"))]


def test_item_steps_name_what_runs_them(tmp_path: Path) -> None:
    """A package with an item stage shows each step's engine on this machine."""
    found = inspect(write_package(item_draft(), [], tmp_path / "lengths" / "1"))
    assert found.steps is not None
    assert [step.engine for step in found.steps] == ["onnx"]
    assert found.stages[0].functions == {"samegraph::Length": 2}
    text = page(found)
    assert "Item stage, step by step" in text
    assert "up to 5.0 MB" in text


def test_package_that_does_not_load_here_is_still_shown(tmp_path: Path) -> None:
    """A reader can look at a package whose item stage this machine cannot run, and sees why."""
    broken = model_of(
        [helper.make_node("ImageDecoder", ["blob"], ["pixels"], name="decode")],
        [("blob", TensorProto.UINT8, ["k"])],
        [("pixels", TensorProto.UINT8, ["h", "w", 3])],
    )
    model = model_of(
        [helper.make_node("ReduceMax", ["pixels"], ["y"], keepdims=0)],
        [("pixels", TensorProto.UINT8, ["n", "h", "w", 3])],
        [("y", TensorProto.UINT8, [])],
    )
    whole = PackageDraft(
        name="lengths",
        version=1,
        fields=[RawField(name="blob", kind="image")],
        outputs=[Output(name="y", dtype="uint8")],
        stages=[DraftStage("preprocess.item", broken), DraftStage("model", model)],
    )
    found = inspect(write_package(whole, [], tmp_path / "lengths" / "1"))
    assert found.steps is None
    assert "it does not load here" in page(found)
    assert found.stages[0].host_nodes == ("ImageDecoder (decode)",)
    assert found.to_json()["item_steps_error"]


def test_json_holds_the_manifest_and_what_was_found(tmp_path: Path) -> None:
    """The JSON form is valid and complete."""
    package = pack(draft(), samples(), tmp_path)
    document = json.loads(json.dumps(inspect(package).to_json(), allow_nan=False))
    assert document["digest"] == package.digest
    assert document["manifest"] == package.manifest.model_dump(mode="json")
    assert document["stages"][1]["operators"] == {"Gemm": 1, "Softmax": 1}
    assert document["item_steps"] is None
    assert document["bytes"] == sum(p.stat().st_size for p in package.path.rglob("*") if p.is_file() and p.name != "manifest.json")


def test_bare_model_is_marked(tmp_path: Path) -> None:
    """A bare model.onnx says that nothing about it was proven."""
    (tmp_path / "plants" / "1").mkdir(parents=True)
    onnx.save(classifier(), tmp_path / "plants" / "1" / "model.onnx")
    text = page(inspect(open_version(tmp_path, "plants", 1)))
    assert "NOT PROVEN" in text
    assert "float32 [2]" in text


def test_changed_graph_is_not_described(tmp_path: Path) -> None:
    """A page never describes a file that is not what the manifest says."""
    package = write_package(draft(), samples(), tmp_path / "plants" / "1")
    (package.path / "model.onnx").write_bytes(classifier(np.zeros((2, 3), np.float32)).SerializeToString())
    with pytest.raises(DigestMismatch):
        inspect(package)


def test_rules_of_fields_are_words(tmp_path: Path) -> None:
    """Limits, sentinels, companions and defaults are readable."""
    fields = [
        RawField(name="size", kind="number", missing=Missing(rule="nan"), minimum=0),
        RawField(
            name="kind", kind="string", missing=Missing(rule="sentinel", sentinel="none"), required=False, default="oak", max_length=20
        ),
        RawField(name="rare", kind="boolean", missing=Missing(rule="companion")),
        RawField(name="colour", kind="string", allowed=[f"colour {i}" for i in range(12)]),
        RawField(name="vector", kind="tensor", dtype="float32", shape=[None, 4]),
    ]
    text = page(inspect(write_package(draft(fields=fields), [], tmp_path / "plants" / "1")), 200)
    for wanted in (
        "0 to ∞",
        "'none'",
        "optional, 'oak' when left out",
        "up to 20 characters",
        "the input rare__missing",
        "one of colour 0",
        "and 4 more",
        "float32 [any, 4]",
    ):
        assert wanted in text, wanted


def test_ragged_lengths_are_words(tmp_path: Path) -> None:
    """Who packs or serves a model sees what is padded to what, and what becomes of longer instances."""
    package = write_package(ragged_models.draft(tokens=True), [], tmp_path / "sentences" / "1")
    text = page(inspect(package), 200)
    assert "ids  axis 0 padded to 4, 8, 16; at most 50% of it padding; longer is refused; mask mask int64; cut off again in each" in text
