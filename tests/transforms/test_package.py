"""Reading, writing and listing packages."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from package_builders import classifier, draft, model_of, samples
from samegraph_transforms import external
from samegraph_transforms.draft import DraftStage
from samegraph_transforms.errors import (
    AuthoringError,
    DigestMismatch,
    ManifestInvalid,
    PackageError,
    PackageExists,
    SamegraphError,
    UnsafePath,
)
from samegraph_transforms.golden import read_samples
from samegraph_transforms.manifest import Measured
from samegraph_transforms.package import (
    Package,
    PackageWriter,
    list_models,
    list_versions,
    open_version,
    read_bare,
    read_package,
    version_path,
    write_package,
)
from samegraph_transforms.paths import check_relative


@pytest.fixture
def package(tmp_path: Path) -> Package:
    """A package written to a repository."""
    return write_package(draft(), samples(), tmp_path / "plants" / "1")


def edit_manifest(package: Package, change: Callable[[dict[str, object]], object]) -> None:
    """Rewrite manifest.json with `change` applied to its document."""
    path = package.path / "manifest.json"
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))


class TestReading:
    def test_written_package_reads_back_equal(self, package: Package) -> None:
        """What was written is what is read, with the same digest."""
        again = read_package(package.path)
        assert again == package
        assert again.proven
        assert sorted(again.manifest.files) == sorted(
            str(p.relative_to(package.path)) for p in package.path.rglob("*") if p.is_file() and p.name != "manifest.json"
        )

    def test_digest_is_the_hash_of_the_manifest(self, package: Package) -> None:
        """Anyone can compute the identity with sha256sum."""
        shown = subprocess.run(["sha256sum", package.path / "manifest.json"], capture_output=True, text=True, check=True).stdout
        assert shown.split()[0] == package.digest

    def test_stage_graphs_load(self, package: Package) -> None:
        """Every stage of the manifest gives its graph."""
        graphs = {s.name: package.load_stage(s.name) for s in package.manifest.stages}
        assert [n.op_type for n in graphs["model"].graph.node] == ["Gemm", "Softmax"]
        assert package.stage_path("model") == package.path / "model.onnx"

    def test_unknown_stage_is_refused_by_name(self, package: Package) -> None:
        """Asking for a stage that is not there says which are."""
        with pytest.raises(PackageError, match=r"no stage 'preprocess\.item'; it has preprocess\.batch, model, postprocess"):
            package.load_stage("preprocess.item")

    @pytest.mark.parametrize("name", ["model.onnx", "golden/requests.jsonl", "golden/expected.npz", "assets/labels.txt"])
    def test_changed_byte_is_refused(self, package: Package, name: str) -> None:
        """One flipped bit anywhere, at equal size, is a digest mismatch that names the file."""
        path = package.path / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(DigestMismatch, match=re.escape(name)):
            read_package(package.path)

    def test_other_size_is_refused_without_hashing(self, package: Package) -> None:
        """The quick check already sees another size."""
        with (package.path / "model.onnx").open("ab") as file:
            file.write(b"x")
        with pytest.raises(DigestMismatch, match=r"model\.onnx has \d+ bytes"):
            read_package(package.path, verify_digests=False)

    def test_file_changed_after_reading_is_refused_at_use(self, package: Package) -> None:
        """The bytes that run are the bytes that were verified, even if the file changes in between."""
        path = package.path / "model.onnx"
        path.write_bytes(path.read_bytes().replace(b"Softmax", b"Sigmoid"))
        with pytest.raises(DigestMismatch, match=r"model\.onnx is not what the manifest says"):
            package.load_stage("model")

    def test_missing_file_is_refused(self, package: Package) -> None:
        """A listed file that is gone is named."""
        (package.path / "postprocess.onnx").unlink()
        with pytest.raises(DigestMismatch, match=r"postprocess\.onnx is missing"):
            read_package(package.path)

    @pytest.mark.parametrize("name", ["notes.txt", "golden/blobs/extra", "assets/.hidden"])
    def test_extra_file_is_refused(self, package: Package, name: str) -> None:
        """A file the manifest does not list is named, wherever it lies."""
        (package.path / name).write_text("x")
        with pytest.raises(DigestMismatch, match=re.escape(name) + r" is not listed"):
            read_package(package.path)

    def test_directory_without_manifest_is_no_package(self, package: Package) -> None:
        """Without manifest.json nothing is a package."""
        (package.path / "manifest.json").unlink()
        with pytest.raises(ManifestInvalid, match=r"has no manifest\.json"):
            read_package(package.path)

    def test_path_that_is_no_directory_is_refused(self, tmp_path: Path) -> None:
        """A path to nothing says what a package is."""
        with pytest.raises(ManifestInvalid, match="a model package is a directory"):
            read_package(tmp_path / "nothing")


class TestManifestFile:
    @pytest.mark.parametrize(
        ("raw", "reason"),
        [
            pytest.param(b"{", "not valid JSON", id="broken"),
            pytest.param(b"[]", "is a JSON object", id="list"),
            pytest.param(b'{"format": 1, "format": 1}', "a key is given twice", id="key twice"),
            pytest.param(b'{"format": NaN}', "NaN is not JSON", id="nan"),
            pytest.param(b'{"format": 2}', "format is 2; this samegraph reads format 1", id="format"),
            pytest.param(b'{"format": 1, "name": "a"}', "version: Field required", id="schema"),
            pytest.param(b"\xff\xfe{}", "not valid JSON", id="not UTF-8"),
            pytest.param(b"[" * 100_000, "not valid JSON", id="too deep"),
        ],
    )
    def test_unreadable_manifest_is_refused_with_the_reason(self, package: Package, raw: bytes, reason: str) -> None:
        """Every way a manifest can be broken has its own sentence."""
        (package.path / "manifest.json").write_bytes(raw)
        with pytest.raises(ManifestInvalid, match=reason):
            read_package(package.path)

    @pytest.mark.parametrize("member", ["surprise", "fields"])
    def test_unknown_member_is_refused(self, package: Package, member: str) -> None:
        """Nothing unknown is silently ignored, at the top or inside."""
        edit_manifest(package, lambda d: d.update(surprise=1) if member == "surprise" else d["fields"][0].update(surprise=1))  # type: ignore[index]
        with pytest.raises(ManifestInvalid, match="surprise"):
            read_package(package.path)

    def test_types_are_not_guessed(self, package: Package) -> None:
        """A version in quotes is no number."""
        edit_manifest(package, lambda d: d.update(version="1"))
        with pytest.raises(ManifestInvalid, match="version"):
            read_package(package.path)

    @pytest.mark.parametrize("name", ["other", "plants2"])
    def test_name_must_be_the_directorys(self, package: Package, name: str) -> None:
        """In a repository a package under a wrong name is refused, not served under it."""
        edit_manifest(package, lambda d: d.update(name=name))
        with pytest.raises(ManifestInvalid, match=f"belongs in {name}/1"):
            read_package(package.path)

    def test_version_must_be_the_directorys(self, package: Package) -> None:
        """Renaming a version directory does not make another version."""
        package.path.rename(package.path.parent / "2")
        with pytest.raises(ManifestInvalid, match="holds plants version 1"):
            read_package(package.path.parent / "2")

    def test_copy_outside_a_repository_reads(self, package: Package, tmp_path: Path) -> None:
        """A directory whose name is no number may hold any package."""
        copy = shutil.copytree(package.path, tmp_path / "copy-to-look-at")
        assert read_package(copy).digest == package.digest

    @pytest.mark.parametrize(
        "path", ["../model.onnx", "/etc/passwd", "a//b", "a/./b", "a\\b", "a\0b", "C:/x", "", "a/../../b", "golden/..", "a\nb", "x" * 600]
    )
    def test_path_that_could_escape_is_refused(self, package: Package, path: str) -> None:
        """No listed path may leave the package."""
        edit_manifest(package, lambda d: d["files"].update({path: {"sha256": "0" * 64, "bytes": 0}}))  # type: ignore[attr-defined]
        with pytest.raises(UnsafePath):
            read_package(package.path)

    def test_stage_file_that_could_escape_is_refused(self, package: Package) -> None:
        """A stage's graph lies inside the package."""
        edit_manifest(package, lambda d: d["stages"][1].update(file="../../x.onnx"))  # type: ignore[index]
        with pytest.raises(UnsafePath, match="stage model"):
            read_package(package.path)

    def test_stage_file_must_be_listed(self, package: Package) -> None:
        """A graph without a digest is never loaded."""
        edit_manifest(package, lambda d: d["files"].pop("model.onnx"))  # type: ignore[attr-defined]
        with pytest.raises(ManifestInvalid, match=r"stage model names model\.onnx, which files does not list"):
            read_package(package.path)

    def test_stage_input_without_source_is_refused(self, package: Package) -> None:
        """A stage may only read raw fields and earlier values."""
        edit_manifest(package, lambda d: d["stages"][0].update(inputs={"size": "probability", "kind": "kind"}))  # type: ignore[index]
        with pytest.raises(ManifestInvalid, match=r"input 'size' wants the value 'probability'; there are only size, kind"):
            read_package(package.path)

    def test_output_without_source_is_refused(self, package: Package) -> None:
        """Every output is some stage's value."""
        edit_manifest(package, lambda d: d["stages"].pop())  # type: ignore[attr-defined]
        with pytest.raises(ManifestInvalid, match="output 'label' is no value of any stage"):
            read_package(package.path)

    def test_bindings_must_be_the_graphs(self, package: Package) -> None:
        """A manifest whose bindings do not fit the graph is caught when the graph is loaded."""
        edit_manifest(package, lambda d: d["stages"][1].update(inputs={"wrong": "features"}))  # type: ignore[index]
        with pytest.raises(ManifestInvalid, match="the graph's inputs are features; bound are wrong"):
            read_package(package.path).load_stage("model")


class TestLinks:
    @pytest.mark.parametrize("name", ["model.onnx", "golden/requests.jsonl", "manifest.json"])
    def test_linked_file_is_refused(self, package: Package, tmp_path: Path, name: str) -> None:
        """A file that is a link is refused even when its content is right."""
        outside = tmp_path / "outside"
        shutil.move(package.path / name, outside)
        (package.path / name).symlink_to(outside)
        with pytest.raises(UnsafePath, match="symbolic link"):
            read_package(package.path)

    def test_linked_directory_is_refused(self, package: Package, tmp_path: Path) -> None:
        """A directory that is a link is refused."""
        shutil.move(package.path / "golden", tmp_path / "golden")
        (package.path / "golden").symlink_to(tmp_path / "golden")
        with pytest.raises(UnsafePath, match="symbolic link"):
            read_package(package.path)

    def test_file_swapped_for_a_link_after_reading_is_not_followed(self, package: Package, tmp_path: Path) -> None:
        """Opening a file never follows a link, whenever it appeared."""
        shutil.move(package.path / "model.onnx", tmp_path / "model.onnx")
        (package.path / "model.onnx").symlink_to(tmp_path / "model.onnx")
        with pytest.raises(UnsafePath, match="symbolic link"):
            package.load_stage("model")

    def test_pipe_is_refused(self, package: Package) -> None:
        """Something that is no file does not block the reader."""
        os.mkfifo(package.path / "assets" / "pipe")
        with pytest.raises(UnsafePath, match="neither a file nor a directory"):
            read_package(package.path)

    def test_version_that_links_out_of_the_repository_is_refused(self, package: Package, tmp_path: Path) -> None:
        """A link out of the repository is not followed when a version is opened."""
        inside = tmp_path / "repository" / "plants"
        inside.mkdir(parents=True)
        (inside / "1").symlink_to(package.path)
        with pytest.raises(UnsafePath, match="link out of the repository"):
            open_version(tmp_path / "repository", "plants", 1)

    def test_model_that_links_out_of_the_repository_is_not_listed(
        self, package: Package, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The other models stay; the log says why this one is missing."""
        repository = tmp_path / "repository"
        shutil.copytree(package.path.parent, repository / "plants")
        (repository / "weeds").symlink_to(package.path.parent)
        assert list_models(repository) == ["plants"]
        assert "weeds is a link out of the repository" in caplog.text
        with pytest.raises(UnsafePath):
            list_versions(repository, "weeds")

    def test_repository_may_itself_be_a_link(self, package: Package, tmp_path: Path) -> None:
        """An operator may mount the whole repository through a link."""
        (tmp_path / "mounted").symlink_to(package.path.parent.parent)
        assert open_version(tmp_path / "mounted", "plants", 1).digest == package.digest


class TestWriting:
    def test_same_draft_gives_the_same_digest(self, tmp_path: Path) -> None:
        """Packing is deterministic: byte for byte the same files in two places."""
        first, second = (write_package(draft(), samples(), tmp_path / place / "plants" / "1") for place in "ab")
        assert first.digest == second.digest
        assert first.manifest == second.manifest

    def test_same_draft_gives_the_same_digest_in_another_process(self, tmp_path: Path) -> None:
        """Hash randomisation and the order of sets do not reach the files."""
        code = (
            "import sys; from pathlib import Path; from package_builders import *; from samegraph_transforms.package import write_package; "
        )
        code += "print(write_package(draft(), samples(), Path(sys.argv[1]) / 'plants' / '1').digest)"
        digests = {
            subprocess.run(
                [sys.executable, "-c", code, tmp_path / seed],
                env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for seed in ("1", "2")
        }
        assert len(digests) == 1

    def test_same_package_again_changes_nothing(self, package: Package) -> None:
        """Writing what is there already is no error and touches nothing."""
        before = (package.path / "manifest.json").stat().st_mtime_ns
        assert write_package(draft(), samples(), package.path) == package
        assert (package.path / "manifest.json").stat().st_mtime_ns == before

    def test_other_package_under_the_same_version_is_refused(self, package: Package) -> None:
        """A version is immutable."""
        with pytest.raises(PackageExists, match="versions are immutable"):
            write_package(draft(description="Another."), samples(), package.path)
        assert read_package(package.path) == package

    def test_other_measurements_are_another_package(self, package: Package) -> None:
        """What was measured belongs to the identity."""
        with pytest.raises(PackageExists):
            write_package(draft(), samples(), package.path, [Measured(tensor="label", elements=1, different=0, max_ulp=0, max_abs=0)])

    def test_something_else_in_its_place_is_not_overwritten(self, tmp_path: Path) -> None:
        """A directory that is no package is left alone."""
        (tmp_path / "plants" / "1").mkdir(parents=True)
        (tmp_path / "plants" / "1" / "thesis.txt").write_text("precious")
        with pytest.raises(PackageExists, match="is no package"):
            write_package(draft(), samples(), tmp_path / "plants" / "1")
        assert (tmp_path / "plants" / "1" / "thesis.txt").read_text() == "precious"

    def test_damaged_package_in_its_place_is_reported(self, package: Package) -> None:
        """Writing the same package over a damaged copy does not pass for success."""
        (package.path / "model.onnx").unlink()
        with pytest.raises(DigestMismatch):
            write_package(draft(), samples(), package.path)

    def test_failed_write_leaves_nothing(self, tmp_path: Path) -> None:
        """An exception between the first file and the last leaves an empty model directory."""
        directory = tmp_path / "plants" / "1"
        with pytest.raises(RuntimeError, match="power cut"), PackageWriter(directory) as writer:  # noqa: PT012 - the point is what is left behind
            writer.add("model.onnx", b"x")
            raise RuntimeError("power cut")
        assert list(directory.parent.iterdir()) == []
        assert list_models(tmp_path) == []

    def test_killed_writer_leaves_no_loadable_package(self, tmp_path: Path) -> None:
        """A process killed before the rename leaves files that nobody takes for a version."""
        code = "import os, sys; from pathlib import Path; from package_builders import *; from samegraph_transforms.package import *\n"
        code += "with PackageWriter(Path(sys.argv[1]) / 'plants' / '1') as writer:\n"
        code += "    write_files(draft(), samples(), writer)\n    os._exit(9)\n"
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        assert subprocess.run([sys.executable, "-c", code, tmp_path], env=env, check=False).returncode == 9
        (partial,) = (tmp_path / "plants").iterdir()
        assert list_models(tmp_path) == []
        assert list_versions(tmp_path, "plants") == []
        with pytest.raises(ManifestInvalid):
            read_package(partial)
        assert write_package(draft(), samples(), tmp_path / "plants" / "1").path.name == "1"

    def test_abandoned_partial_directory_is_removed_by_the_next_writer(self, tmp_path: Path) -> None:
        """What a killed writer left is cleaned up once it is a day old."""
        old, young = (tmp_path / "plants" / f".1.{word}.partial" for word in ("old", "young"))
        for path in (old, young):
            path.mkdir(parents=True)
        os.utime(old, (0, 0))
        write_package(draft(), samples(), tmp_path / "plants" / "1")
        assert not old.exists()
        assert young.exists()

    def test_two_writers_at_once_end_with_one_package(self, tmp_path: Path) -> None:
        """The slower of two equal writers finds the package there and agrees with it."""
        directory = tmp_path / "plants" / "1"
        from samegraph_transforms.package import write_files

        with PackageWriter(directory) as slow:
            manifest = write_files(draft(), samples(), slow)
            quick = write_package(draft(), samples(), directory)
            assert slow.commit(manifest) == quick
        assert [p.name for p in directory.parent.iterdir()] == ["1"]

    @pytest.mark.parametrize("name", ["../x", "/x", "a\\b", "manifest.json"])
    def test_asset_that_could_escape_is_refused(self, tmp_path: Path, name: str) -> None:
        """An asset lies under assets/, whatever it is called."""
        if name == "manifest.json":
            package = write_package(draft(assets={name: b"{}"}), [], tmp_path / "plants" / "1")
            assert "assets/manifest.json" in package.manifest.files
        else:
            with pytest.raises(UnsafePath):
                write_package(draft(assets={name: b"x"}), [], tmp_path / "plants" / "1")

    def test_draft_whose_bindings_do_not_fit_is_refused(self, tmp_path: Path) -> None:
        """A stage bound to an input its graph does not have is named."""
        stages = [DraftStage("model", classifier(), inputs={"feature": "features"})]
        with pytest.raises(AuthoringError, match="stage model: the graph's inputs are features; bound are feature"):
            write_package(draft(stages=stages), [], tmp_path / "plants" / "1")

    def test_draft_with_an_unmade_output_is_refused(self, tmp_path: Path) -> None:
        """An output nobody computes is named."""
        with pytest.raises(AuthoringError, match="output 'label' is no value of any stage"):
            write_package(draft(stages=draft().stages[:2]), [], tmp_path / "plants" / "1")

    def test_invalid_graph_is_refused(self, tmp_path: Path) -> None:
        """A graph that reads a value nobody makes is no ONNX."""
        broken = model_of(
            [helper.make_node("Relu", ["nowhere"], ["y"])],
            [("features", TensorProto.FLOAT, ["n", 2])],
            [("y", TensorProto.FLOAT, ["n", 2])],
        )
        with pytest.raises(AuthoringError, match="stage model: the graph is not valid ONNX"):
            write_package(draft(stages=[DraftStage("model", broken)]), [], tmp_path / "plants" / "1")

    @pytest.mark.parametrize(
        ("name", "version"), [("..", 1), ("a/b", 1), (".hidden", 1), ("", 1), ("x.", 1), ("plants", 0), ("plants", -1), ("plants", 2**31)]
    )
    def test_unsafe_name_or_version_is_refused(self, tmp_path: Path, name: str, version: int) -> None:
        """No name or number becomes a path outside the repository."""
        with pytest.raises(UnsafePath):
            version_path(tmp_path, name, version)


class TestExternalData:
    @pytest.fixture(autouse=True)
    def _small_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(external, "MAX_EMBEDDED_BYTES", 2000)

    def big_draft(self) -> DraftStage:
        """A model with weights above the (lowered) limit."""
        weights = {f"w{i}": np.arange(400, dtype=np.float32) + i for i in range(3)}
        nodes = [
            helper.make_node("Add", ["features" if i == 0 else f"t{i}", f"w{i}"], [f"t{i + 1}" if i < 2 else "probability"])
            for i in range(3)
        ]
        return DraftStage(
            "model",
            model_of(nodes, [("features", TensorProto.FLOAT, ["n", 400])], [("probability", TensorProto.FLOAT, ["n", 400])], **weights),
        )

    def write(self, directory: Path) -> Package:
        """Write a package with external weights."""
        from samegraph_transforms.manifest import Output, RawField

        return write_package(
            draft(
                fields=[RawField(name="features", kind="tensor", dtype="float32", shape=[400])],
                outputs=[Output(name="probability", dtype="float32", shape=[400])],
                stages=[self.big_draft()],
            ),
            [],
            directory,
        )

    def test_large_weights_go_to_a_digested_file_and_come_back(self, tmp_path: Path) -> None:
        """A model above the limit keeps its weights in assets/, covered by a digest, and loads whole."""
        package = read_package(self.write(tmp_path / "plants" / "1").path)
        assert "assets/model.weights" in package.manifest.files
        loaded = {t.name: onnx.numpy_helper.to_array(t) for t in package.load_stage("model").graph.initializer}
        np.testing.assert_array_equal(loaded["w2"], np.arange(400, dtype=np.float32) + 2)
        on_disk = onnx.load(package.stage_path("model"))  # as any other tool reads it
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(on_disk.graph.initializer[1]), loaded["w1"])

    def test_changed_weights_are_refused(self, tmp_path: Path) -> None:
        """Weights outside the graph are as well protected as the graph."""
        package = self.write(tmp_path / "plants" / "1")
        path = package.path / "assets" / "model.weights"
        path.write_bytes(bytes(len(path.read_bytes())))
        with pytest.raises(DigestMismatch, match=r"assets/model\.weights"):
            read_package(package.path)
        with pytest.raises(DigestMismatch):
            package.load_stage("model")

    @pytest.mark.parametrize(
        ("location", "error"),
        [("../../secret", UnsafePath), ("/etc/passwd", UnsafePath), ("assets/unlisted", DigestMismatch), ("", UnsafePath)],
    )
    def test_weights_outside_the_digests_are_refused(self, tmp_path: Path, location: str, error: type[SamegraphError]) -> None:
        """A graph cannot make the server read a file its package does not cover."""
        package = self.write(tmp_path / "plants" / "1")
        (tmp_path / "secret").write_bytes(bytes(10_000))
        model = onnx.load(package.stage_path("model"), load_external_data=False)
        for entry in model.graph.initializer[0].external_data:
            if entry.key == "location":
                entry.value = location
        data = model.SerializeToString()
        (package.path / "model.onnx").write_bytes(data)
        import hashlib

        entry_now = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        edit_manifest(package, lambda d: d["files"].update({"model.onnx": entry_now}))  # type: ignore[attr-defined]
        with pytest.raises(error):
            read_package(package.path)

    def test_reach_beyond_the_file_is_refused(self) -> None:
        """An offset past the end does not read anything."""
        model, _ = external.move_out(self.big_draft().model, "weights")
        with pytest.raises(DigestMismatch, match="reaches beyond weights"):
            external.embed(model, lambda _: b"short")

    def test_hidden_tensors_are_found(self) -> None:
        """Tensors in attributes, sub-graphs and functions count too."""
        inner = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "inner", [], [helper.make_tensor_value_info("y", 1, [1])])
        inner.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.float32), "deep"))
        constant = helper.make_node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(np.zeros(1, np.float32), "attribute"))
        branch = helper.make_node("If", ["p"], ["z"], then_branch=inner, else_branch=inner)
        model = model_of([constant, branch], [("p", TensorProto.BOOL, [])], [("z", TensorProto.FLOAT, [1])])
        function = helper.make_function(
            "samegraph", "F", [], ["o"], [helper.make_node("Constant", [], ["o"], value=constant.attribute[0].t)], []
        )
        model.functions.append(function)
        assert [t.name for t in external.tensors(model)] == ["attribute", "deep", "deep", "attribute"]
        model.functions[0].node[0].attribute[0].t.data_location = TensorProto.EXTERNAL
        model.functions[0].node[0].attribute[0].t.external_data.add(key="location", value="/etc/passwd")
        with pytest.raises(UnsafePath):
            external.locations(model)

    def test_draft_with_unread_external_data_is_refused(self, tmp_path: Path) -> None:
        """A draft is complete in memory."""
        model, _ = external.move_out(self.big_draft().model, "weights")
        with pytest.raises(AuthoringError, match="weights still lie in weights"):
            write_package(draft(stages=[DraftStage("model", model)]), [], tmp_path / "plants" / "1")


class TestRepository:
    def test_models_and_versions_are_listed(self, tmp_path: Path) -> None:
        """Versions are numbers in order; everything else in a repository is ignored."""
        for version in (10, 9, 1):
            write_package(draft(version=version), [], tmp_path / "plants" / str(version))
        write_package(draft("trees", 3), [], tmp_path / "trees" / "3")
        (tmp_path / "plants" / "train.py").write_text("")
        (tmp_path / "plants" / "02").mkdir()
        (tmp_path / "plants" / "7").mkdir()  # empty
        (tmp_path / "empty").mkdir()
        (tmp_path / ".heldout" / "plants" / "1").mkdir(parents=True)
        (tmp_path / "routing.yaml").write_text("")
        assert list_models(tmp_path) == ["plants", "trees"]
        assert list_versions(tmp_path, "plants") == [1, 9, 10]
        assert list_versions(tmp_path, "unknown") == []

    def test_missing_repository_is_named(self, tmp_path: Path) -> None:
        """A wrong path says what to do."""
        with pytest.raises(PackageError, match="there is no model repository at"):
            list_models(tmp_path / "nowhere")

    def test_version_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        """Opening nothing says so."""
        with pytest.raises(PackageError, match="plants has no version 4"):
            open_version(tmp_path, "plants", 4)

    @pytest.mark.parametrize("name", ["../plants", "a/b", "/etc", ".", ""])
    def test_unsafe_model_name_is_refused(self, tmp_path: Path, name: str) -> None:
        """A name from a URL never becomes a path."""
        with pytest.raises(UnsafePath):
            list_versions(tmp_path, name)
        with pytest.raises(UnsafePath):
            open_version(tmp_path, name, 1)


class TestBare:
    def write(self, directory: Path, model: onnx.ModelProto | None = None) -> Path:
        """Write a bare model.onnx."""
        directory.mkdir(parents=True)
        onnx.save(model or classifier(), directory / "model.onnx")
        return directory

    def test_bare_model_is_tensors_in_tensors_out(self, tmp_path: Path) -> None:
        """The graph's own inputs and outputs become the signature, and nothing counts as proven."""
        package = open_version(tmp_path, "plants", self.version(self.write(tmp_path / "plants" / "5")))
        assert not package.proven
        (field,), (output,) = package.manifest.fields, package.manifest.outputs
        assert (field.name, field.kind, field.dtype, field.shape) == ("features", "tensor", "float32", [2])
        assert (output.name, output.dtype, output.shape) == ("probability", "float32", [3])
        assert package.load_stage("model").graph.node
        assert package.digest == read_bare(package.path).digest

    @staticmethod
    def version(path: Path) -> int:
        """Return the version a path ends in."""
        return int(path.name)

    def test_changed_bare_model_has_another_digest(self, tmp_path: Path) -> None:
        """The identity of a bare model follows its bytes, and a change after reading is refused."""
        package = read_bare(self.write(tmp_path / "plants" / "5"))
        onnx.save(classifier(np.zeros((2, 3), np.float32)), package.path / "model.onnx")
        assert read_bare(package.path).digest != package.digest
        with pytest.raises(DigestMismatch):
            package.load_stage("model")

    def test_names_that_json_cannot_carry_are_mapped(self, tmp_path: Path) -> None:
        """Names such as `input/x:0` become request names, bound to the graph's own."""
        model = model_of(
            [helper.make_node("Add", ["in/x:0", "in/x;0"], ["out:0"])],
            [("in/x:0", TensorProto.FLOAT, ["n", 2]), ("in/x;0", TensorProto.FLOAT, ["n", 2])],
            [("out:0", TensorProto.FLOAT, ["n", 2])],
        )
        package = read_bare(self.write(tmp_path / "plants" / "5", model))
        assert package.manifest.stages[0].inputs == {"in/x:0": "in_x_0", "in/x;0": "in_x_0_"}
        assert package.manifest.outputs[0].name == "out_0"

    @pytest.mark.parametrize(
        ("shape", "reason"), [([], "no batch dimension"), ([4, 2], "fixes the batch at 4; export the model with a dynamic first dimension")]
    )
    def test_graph_without_a_batch_is_refused(self, tmp_path: Path, shape: list[int], reason: str) -> None:
        """A graph that cannot be batched says how to export it."""
        model = model_of([helper.make_node("Relu", ["x"], ["y"])], [("x", TensorProto.FLOAT, shape)], [("y", TensorProto.FLOAT, shape)])
        with pytest.raises(PackageError, match=reason):
            read_bare(self.write(tmp_path / "plants" / "5", model))

    def test_batch_fixed_at_one_is_served_one_by_one(self, tmp_path: Path) -> None:
        """A graph exported for one instance runs in batches of one."""
        model = model_of([helper.make_node("Relu", ["x"], ["y"])], [("x", TensorProto.FLOAT, [1, 2])], [("y", TensorProto.FLOAT, [1, 2])])
        assert read_bare(self.write(tmp_path / "plants" / "5", model)).manifest.batching.max_batch_size == 1

    def test_output_that_is_no_tensor_is_refused(self, tmp_path: Path) -> None:
        """A sequence output names itself and the remedy."""
        model = model_of([helper.make_node("SequenceConstruct", ["x"], ["y"])], [("x", TensorProto.FLOAT, ["n", 2])], [])
        model.graph.output.append(helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, ["n", 2]))
        with pytest.raises(PackageError, match=r"output 'y' is a sequence, not a tensor"):
            read_bare(self.write(tmp_path / "plants" / "5", model))

    def test_unfinished_copy_of_a_package_is_not_taken_for_bare(self, package: Package, tmp_path: Path) -> None:
        """A package whose manifest has not arrived yet is not served without its preprocessing."""
        (package.path / "manifest.json").unlink()
        with pytest.raises(PackageError, match=r"unfinished copy"):
            open_version(tmp_path, "plants", 1)

    def test_broken_file_is_refused(self, tmp_path: Path) -> None:
        """A file cut short is no model."""
        path = self.write(tmp_path / "plants" / "5")
        (path / "model.onnx").write_bytes((path / "model.onnx").read_bytes()[:100])
        with pytest.raises(PackageError, match="is not an ONNX model"):
            read_bare(path)


EDITS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 12), st.binary(max_size=6)), min_size=1, max_size=4)


def damaged(data: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    """Return `data` with pieces cut out and bytes put in: (where, how many go, what comes)."""
    for where, gone, new in edits:
        i = int(where * len(data))
        data = data[:i] + new + data[i + gone :]
    return data


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """One package for all examples of a property test."""
    return write_package(draft(), samples(), tmp_path_factory.mktemp("damage") / "plants" / "1")


class TestDamage:
    @given(edits=EDITS)
    @settings(max_examples=200, deadline=None)
    def test_damaged_manifest_is_refused_or_another_package(self, whole: Package, edits: list[tuple[float, int, bytes]]) -> None:
        """Whatever happens to manifest.json, the answer is a PackageError or a package with another digest, never another exception."""
        path = whole.path / "manifest.json"
        before = path.read_bytes()
        after = damaged(before, edits)
        path.write_bytes(after)
        try:
            read = read_package(whole.path)
            assert (read.digest == whole.digest) == (after == before)
            for stage in read.manifest.stages:
                read.load_stage(stage.name)
        except PackageError:
            pass
        finally:
            path.write_bytes(before)

    @pytest.mark.parametrize("name", ["requests.jsonl", "expected.npz"])
    @given(edits=EDITS)
    @settings(max_examples=200, deadline=None)
    def test_damaged_samples_are_refused_as_such(self, whole: Package, name: str, edits: list[tuple[float, int, bytes]]) -> None:
        """Damaged golden files give a PackageError or samples, never another exception."""
        path = whole.path / "golden" / name
        before = path.read_bytes()
        path.write_bytes(damaged(before, edits))
        try:
            read_samples(whole.golden_dir())
        except PackageError:
            pass
        finally:
            path.write_bytes(before)

    @given(edits=EDITS)
    @settings(max_examples=200, deadline=None)
    def test_damaged_bare_model_is_refused_as_such(
        self, tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[float, int, bytes]]
    ) -> None:
        """A damaged model.onnx gives a PackageError or a signature, never another exception."""
        directory = tmp_path_factory.getbasetemp() / "plants" / "7"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "model.onnx").write_bytes(damaged(classifier().SerializeToString(), edits))
        try:
            assert read_bare(directory).manifest.outputs
        except PackageError:
            pass

    @given(st.text(max_size=12) | st.lists(st.sampled_from(["..", ".", "", "a", "b.c", "\\", "\0", "C:"])).map("/".join))
    def test_accepted_path_stays_inside(self, path: str) -> None:
        """Any path that is accepted names something below its base, on every system."""
        try:
            check_relative(path)
        except UnsafePath:
            return
        base = Path("/base")
        assert Path(os.path.normpath(base / path)) == base / path
        assert (base / path).is_relative_to(base)
        assert base / path != base
        assert "\\" not in path


@pytest.mark.parametrize("path", ["model.onnx", "golden/blobs/ab", "assets/dir.with.dots/x-y_z", "ünïcode/名前"])
def test_plain_paths_pass(path: str) -> None:
    """Ordinary relative paths are accepted as they are."""
    assert check_relative(path) == path
