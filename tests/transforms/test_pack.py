"""Packing: the proof, its refusals, and drafts from disk or from a trainer's script."""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from package_builders import BIAS, LABELS, WEIGHTS, classifier, draft, model_of, preprocess, reference, sample, samples
from samegraph_transforms import golden
from samegraph_transforms.draft import DraftStage, GoldenSample, PackageDraft
from samegraph_transforms.errors import AuthoringError, NotExact, PackageError, PackageExists, UnsafePath
from samegraph_transforms.manifest import Tolerance
from samegraph_transforms.pack import describe_tolerance, pack, packages_of, read_draft
from samegraph_transforms.package import list_models, read_package
from samegraph_transforms.runtime import PackageRuntime


def with_stage(name: str, model: onnx.ModelProto) -> PackageDraft:
    """Return the draft with one stage's graph replaced."""
    return draft(stages=[replace(s, model=model) if s.name == name else s for s in draft().stages])


class TestProof:
    def test_exact_package_is_written_with_what_was_measured(self, tmp_path: Path) -> None:
        """The package lies in the repository, reads back, and states its distances in data-flow order."""
        package = pack(draft(), samples(), tmp_path)
        assert package == read_package(tmp_path / "plants" / "1")
        assert [m.tensor for m in package.manifest.measured] == ["features", "probability", "label"]
        features, probability, label = package.manifest.measured
        assert (features.different, label.different) == (0, 0)
        assert probability.max_ulp <= 4
        assert package.manifest.golden_samples == len(samples())
        assert len(golden.read_samples(package.golden_dir())) == len(samples())

    def test_written_package_answers_like_training(self, tmp_path: Path) -> None:
        """Rows that were no golden samples get the reference's answers from the package read from disk."""
        pack(draft(), samples(), tmp_path)
        runtime = PackageRuntime.load(read_package(tmp_path / "plants" / "1"))
        rows: list[dict[str, Any]] = [{"size": s / 7, "kind": k} for s in range(-20, 20) for k in ("moss", "oak", "lichen")]
        answers = runtime.predict([runtime.signature.check_row(row) for row in rows])
        expected = reference(rows)
        np.testing.assert_allclose(answers["probability"], expected["probability"], rtol=1e-6)
        assert answers["label"].tolist() == expected["label"].tolist()

    def test_provenance_says_where_the_proof_ran(self, tmp_path: Path) -> None:
        """Processor, Python and ONNX Runtime are recorded; what the author stated is kept."""
        provenance = pack(draft(), samples(), tmp_path).manifest.provenance
        assert provenance.machine == golden.processor()
        assert provenance.python == platform.python_version()
        assert {"onnx", "onnxruntime"} <= set(provenance.libraries)
        assert provenance.framework == "NumPy"

    def test_packing_again_changes_nothing(self, tmp_path: Path) -> None:
        """The same draft gives the same digest, and packing twice is no error."""
        assert pack(draft(), samples(), tmp_path).digest == pack(draft(), samples(), tmp_path).digest
        assert pack(draft(), samples(), tmp_path / "elsewhere").digest == read_package(tmp_path / "plants" / "1").digest

    def test_other_package_under_the_same_version_is_refused(self, tmp_path: Path) -> None:
        """Another draft needs another version, and the old one stays as it was."""
        first = pack(draft(), samples(), tmp_path)
        with pytest.raises(PackageExists, match="pack under the next number"):
            pack(draft(description="New."), samples(), tmp_path)
        assert read_package(first.path) == first
        assert pack(draft(description="New.", version=2), samples(), tmp_path).manifest.version == 2

    def test_progress_tells_the_story(self, tmp_path: Path) -> None:
        """A caller that passes `print` sees the steps and the end."""
        lines: list[str] = []
        pack(draft(), samples(), tmp_path, progress=lines.append)
        assert "only 6 golden samples; 32 or more prove more" in lines[0]
        assert any("batches of 1, 2, 8" in line for line in lines)
        assert "exact; written to" in lines[-1]


class TestRefusal:
    def assert_refused(
        self, directory: Path, package_draft: PackageDraft, given: list[GoldenSample], sample_name: str, tensor: str
    ) -> NotExact:
        """Pack must refuse, name sample and tensor, and leave nothing."""
        with pytest.raises(NotExact) as caught:
            pack(package_draft, given, directory)
        assert (caught.value.sample, caught.value.tensor) == (sample_name, tensor)
        assert f"golden sample {sample_name!r}" in str(caught.value)
        assert f"tensor {tensor!r}" in str(caught.value)
        assert "Nothing was written" in str(caught.value)
        assert list_models(directory) == []
        assert list((directory / "plants").iterdir()) == []
        return caught.value

    def test_wrong_weights(self, tmp_path: Path) -> None:
        """A wrong model is refused by its first differing tensor."""
        found = self.assert_refused(tmp_path, with_stage("model", classifier(WEIGHTS * 1.001)), samples(), "row 0", "probability")
        assert "ULP apart" in found.detail

    def test_wrong_preprocessing(self, tmp_path: Path) -> None:
        """Skew in preprocessing is named where it arises, before what follows from it."""
        skewed = preprocess()
        skewed.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.array(0.5), "zero"))  # another stand-in for missing
        self.assert_refused(tmp_path, with_stage("preprocess.batch", skewed), samples(), "row 2", "features")

    def test_wrong_answer_to_an_unknown_category(self, tmp_path: Path) -> None:
        """The one sample with an unseen kind shows that the encoder treats it otherwise."""
        skewed = preprocess()
        encoder = next(n for n in skewed.graph.node if n.op_type == "LabelEncoder")
        next(a for a in encoder.attribute if a.name == "default_float").f = 0.0
        self.assert_refused(tmp_path, with_stage("preprocess.batch", skewed), samples(), "row 3", "features")

    def test_wrong_labels(self, tmp_path: Path) -> None:
        """Right probabilities under wrong names are refused by the label."""
        wrong = model_of(
            [
                helper.make_node("ArgMax", ["probability"], ["best"], axis=1, keepdims=0),
                helper.make_node(
                    "LabelEncoder", ["best"], ["label"], domain="ai.onnx.ml", keys_int64s=[0, 1, 2], values_strings=list(LABELS[::-1])
                ),
            ],
            [("probability", TensorProto.FLOAT, ["n", 3])],
            [("label", TensorProto.STRING, ["n"])],
        )
        found = self.assert_refused(tmp_path, with_stage("postprocess", wrong), samples(), "row 0", "label")
        assert "expected 'low', got 'high'" in found.detail or "expected 'high', got 'low'" in found.detail

    def test_one_ulp_too_many(self, tmp_path: Path) -> None:
        """The promise is held to the letter: with none stated, the last bit counts."""
        first = samples()[0]
        probability = np.nextafter(first.outputs["probability"], np.float32(1), dtype=np.float32)
        off = replace(first, outputs={**first.outputs, "probability": probability})
        self.assert_refused(tmp_path, draft(tolerances={"cpu.same": Tolerance()}), [off, *samples()[1:]], "row 0", "probability")

    def test_batch_dependence(self, tmp_path: Path) -> None:
        """An answer that is right alone and wrong in company is refused at the batch that shows it."""
        normalising = model_of(
            [
                helper.make_node("Gemm", ["features", "w", "b"], ["scores"]),
                helper.make_node("Softmax", ["scores"], ["alone"], axis=1),
                helper.make_node("ReduceMax", ["alone", "axes"], ["largest"], keepdims=1),
                helper.make_node("ReduceMax", ["alone", "row"], ["own"], keepdims=1),
                helper.make_node("Div", ["own", "largest"], ["share"]),
                helper.make_node("Mul", ["alone", "share"], ["probability"]),
            ],
            [("features", TensorProto.FLOAT, ["n", 2])],
            [("probability", TensorProto.FLOAT, ["n", 3])],
            w=WEIGHTS,
            b=BIAS,
            axes=np.array([0, 1]),
            row=np.array([1]),
        )
        found = self.assert_refused(
            tmp_path, with_stage("model", normalising), samples()[:2], "row 0" if self.smaller() == 0 else "row 1", "probability"
        )
        assert "batch of 2" in str(found)

    @staticmethod
    def smaller() -> int:
        """Return which of the first two rows has the smaller largest probability."""
        return int(np.argmin([s.outputs["probability"].max() for s in samples()[:2]]))

    def test_refused_request(self, tmp_path: Path) -> None:
        """A golden request that the signature refuses stops the packing."""
        bad = replace(samples()[0], name="bad", body=b'{"instances": [{"size": 5000, "kind": "oak"}]}')
        with pytest.raises(NotExact, match=r"golden sample 'bad': its request is refused: .*size"):
            pack(draft(), [bad], tmp_path)
        assert list_models(tmp_path) == []

    def test_label_flip_inside_the_promise_is_counted_not_refused(self, tmp_path: Path) -> None:
        """Where training itself was undecided the label may differ; it is listed and counted."""
        tie = sample("tie", [{"size": 0.0, "kind": "moss"}])
        scores = tie.outputs["probability"][0]
        label = LABELS[int(np.argsort(scores)[-2])]
        flipped = replace(tie, outputs={**tie.outputs, "label": np.array([label], dtype=object)})
        lines: list[str] = []
        package = pack(draft(tolerances={"cpu.same": Tolerance(atol=0.1)}), [flipped], tmp_path, progress=lines.append)
        assert next(m for m in package.manifest.measured if m.tensor == "label").flips > 0
        assert any("undecided there" in line for line in lines)
        with pytest.raises(NotExact, match="tensor 'label'"):
            pack(draft(), [flipped], tmp_path / "strict")


class TestSamples:
    def test_no_samples_prove_nothing(self, tmp_path: Path) -> None:
        """A package without golden samples is not packed."""
        with pytest.raises(AuthoringError, match="no golden samples, so nothing can be proven"):
            pack(draft(), [], tmp_path)

    @pytest.mark.parametrize(
        ("outputs", "reason"),
        [
            pytest.param({"label": np.array(["low"], object)}, "has no expected probability", id="output missing"),
            pytest.param({**samples()[0].outputs, "logits": np.zeros(1)}, "expects logits, which is no output", id="output unknown"),
            pytest.param(
                {**samples()[0].outputs, "probability": np.zeros((1, 3))},
                "'probability' was captured as float64, the package promises float32",
                id="dtype",
            ),
            pytest.param(
                {**samples()[0].outputs, "probability": np.zeros((1, 4), np.float32)},
                r"captured with shape \[1, 4\], the package promises \[n, 3\]",
                id="shape",
            ),
        ],
    )
    def test_sample_that_cannot_prove_the_outputs_is_refused(self, tmp_path: Path, outputs: dict[str, np.ndarray], reason: str) -> None:
        """Captured answers must be those the package promises, in its types."""
        with pytest.raises(AuthoringError, match=f"golden sample 'row 0'.*{reason}"):
            pack(draft(), [replace(samples()[0], outputs=outputs)], tmp_path)

    def test_unsafe_name_is_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        """A draft cannot be packed outside the repository."""
        with pytest.raises(UnsafePath):
            pack(draft("../plants"), samples(), tmp_path / "repository")
        assert list(tmp_path.iterdir()) == []


def write_draft(directory: Path, **changes: Any) -> Path:
    """Write the draft as a directory, the way an exporter would."""
    whole = draft()
    (directory / "assets").mkdir(parents=True)
    stages = []
    for stage in whole.stages:
        name = f"{stage.name}.onnx"
        onnx.save(stage.model, directory / name)
        stages.append({"name": stage.name} if stage.name != "model" else {"name": "model", "file": name})
    (directory / "assets" / "labels.txt").write_bytes(whole.assets["labels.txt"])
    document = {
        "name": whole.name,
        "version": whole.version,
        "description": whole.description,
        "fields": [f.model_dump(mode="json") for f in whole.fields],
        "outputs": [o.model_dump(mode="json") for o in whole.outputs],
        "stages": stages,
        "batching": {"max_batch_size": 8},
        "provenance": whole.provenance.model_dump(mode="json"),
    } | changes
    (directory / "draft.json").write_text(json.dumps(document))
    golden.write_samples(directory / "golden", samples())
    return directory


class TestDraftDirectory:
    def test_draft_directory_packs_to_the_same_package(self, tmp_path: Path) -> None:
        """What another tool exported is the same package as the one made in Python."""
        from_disk = pack(*read_draft(write_draft(tmp_path / "draft")), tmp_path / "a")
        assert from_disk.digest == pack(draft(), samples(), tmp_path / "b").digest

    def test_external_weights_come_along(self, tmp_path: Path) -> None:
        """A graph exported with its weights beside it is read whole, and the loose file is no asset of the package."""
        directory = write_draft(tmp_path / "draft")
        onnx.save(classifier(), directory / "model.onnx", save_as_external_data=True, location="assets/weights.bin", size_threshold=0)
        package = pack(*read_draft(directory), tmp_path / "a")
        assert "assets/weights.bin" not in package.manifest.files
        assert package.digest == pack(draft(), samples(), tmp_path / "b").digest

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"version": 0}, "version"),
            ({"surprise": 1}, "surprise"),
            ({"stages": []}, "stages"),
            ({"stages": [{"name": "model", "file": "nothing.onnx"}]}, r"nothing\.onnx is missing"),
        ],
    )
    def test_broken_draft_is_refused_with_the_reason(self, tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
        """A draft.json that does not fit says where."""
        with pytest.raises(AuthoringError, match=reason):
            read_draft(write_draft(tmp_path / "draft", **changes))

    def test_stage_file_outside_the_draft_is_refused(self, tmp_path: Path) -> None:
        """A draft from elsewhere cannot read this machine's files."""
        with pytest.raises(UnsafePath):
            read_draft(write_draft(tmp_path / "draft", stages=[{"name": "model", "file": "../../x.onnx"}]))

    def test_directory_without_a_draft_says_what_is_missing(self, tmp_path: Path) -> None:
        """An empty directory is no draft."""
        with pytest.raises(AuthoringError, match=r"draft\.json is missing"):
            read_draft(tmp_path)

    def test_draft_without_samples_says_how_to_write_them(self, tmp_path: Path) -> None:
        """Golden samples are part of a draft."""
        directory = write_draft(tmp_path / "draft")
        (directory / "golden").rename(tmp_path / "moved")
        with pytest.raises(AuthoringError, match=r"no golden/ directory; write it with .*write_samples"):
            read_draft(directory)

    def test_file_that_is_no_model_is_named(self, tmp_path: Path) -> None:
        """A stage file with something else in it is named."""
        directory = write_draft(tmp_path / "draft")
        (directory / "model.onnx").write_bytes(b"not a model")
        with pytest.raises(PackageError, match=r"model\.onnx is not an ONNX model"):
            read_draft(directory)


class TestScript:
    def test_pairs_of_a_script_are_packed(self, tmp_path: Path) -> None:
        """A script's packages() is run with its own directory importable."""
        (tmp_path / "helper_of_trainer.py").write_text("VERSION = 4\n")
        script = tmp_path / "train.py"
        script.write_text(
            "from helper_of_trainer import VERSION\nfrom package_builders import draft, samples\n"
            "def packages():\n    yield draft(version=VERSION), samples()\n"
        )
        ((found, given),) = packages_of(script)
        assert pack(found, given, tmp_path / "models").manifest.version == 4

    @pytest.mark.parametrize(
        ("source", "reason"),
        [
            ("x = 1", r"has no function packages\(\)"),
            ("1/0", "failed: ZeroDivisionError"),
            ("def packages():\n    yield 1", "yielded int"),
            ("def packages():\n    raise KeyError('data')\n    yield", "failed: KeyError: 'data'"),
            ("def packages(:", "failed: SyntaxError"),
        ],
    )
    def test_script_that_yields_nothing_useful_is_refused(self, tmp_path: Path, source: str, reason: str) -> None:
        """Whatever is wrong with a script, the message names the script and the fault."""
        script = tmp_path / "train.py"
        script.write_text(source)
        with pytest.raises(AuthoringError, match=rf"train\.py.*{reason}"):
            list(packages_of(script))


class TestDocumentation:
    def block(self, language: str) -> str:
        """Return the first block of `language` in docs/model-package.md."""
        text = (Path(__file__).parents[2] / "docs" / "model-package.md").read_text(encoding="utf-8")
        return text.split(f"```{language}\n", 1)[1].split("```", 1)[0]

    def test_script_of_the_page_packs(self, tmp_path: Path) -> None:
        """The whole example by hand is a package that answers."""
        script = tmp_path / "train.py"
        script.write_text(self.block("python"))
        ((found, given),) = packages_of(script)
        lines: list[str] = []
        package = pack(found, given, tmp_path / "models", progress=lines.append)
        assert package.manifest.golden_samples == 35
        assert not any("only" in line for line in lines)

    def test_draft_of_the_page_packs_to_the_same_answers(self, tmp_path: Path) -> None:
        """The draft directory the page describes, with the script's graph and samples, packs."""
        script = tmp_path / "train.py"
        script.write_text(self.block("python"))
        ((found, given),) = packages_of(script)
        directory = tmp_path / "exported"
        golden.write_samples(directory / "golden", given)
        onnx.save(found.stages[0].model, directory / "model.onnx")
        (directory / "draft.json").write_text(self.block("json"))
        package = pack(*read_draft(directory), tmp_path / "models")
        assert package.manifest.provenance.framework == "a ruler"
        assert package.manifest.stages[0].inputs == {"inches": "inches"}


@pytest.mark.parametrize(
    ("tolerance", "words"),
    [
        (Tolerance(), "everything bit-equal"),
        (Tolerance(ulp=4, relative_to_max=1e-7), "floats within 4 ULP or 1e-07 × the largest magnitude, all else equal"),
        (Tolerance(atol=1e-5, rtol=1e-5), "floats within 1e-05 + 1e-05 × |value|, all else equal"),
    ],
)
def test_promise_in_words(tolerance: Tolerance, words: str) -> None:
    """A promise reads as a sentence."""
    assert describe_tolerance(tolerance) == words


def test_stage_order_is_the_flow() -> None:
    """The builders describe one chain (a guard for the tests above)."""
    assert [s.name for s in draft().stages] == ["preprocess.batch", "model", "postprocess"]
    assert isinstance(draft().stages[0], DraftStage)
