"""Golden samples on disk, and replayed through a package."""

from __future__ import annotations

import io
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper
from package_builders import ROWS, WEIGHTS, classifier, draft, model_of, sample, samples
from samegraph_transforms import golden
from samegraph_transforms.draft import DraftStage, GoldenSample, PackageDraft
from samegraph_transforms.errors import AuthoringError, DigestMismatch, NotExact, PackageError, UnsafePath
from samegraph_transforms.manifest import Batching, Output, RawField, Tolerance
from samegraph_transforms.package import read_package, write_package
from samegraph_transforms.runtime import PackageRuntime


def load(package_draft: PackageDraft, directory: Path, *, merge: bool = True) -> PackageRuntime:
    """Write a draft unproven and load it."""
    return PackageRuntime.load(write_package(package_draft, [], directory / package_draft.name / "1"), merge=merge)


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[PackageRuntime]:
    """The whole package, loaded."""
    with closing(load(draft(), tmp_path)) as loaded:
        yield loaded


def same(a: GoldenSample, b: GoldenSample) -> bool:
    """Whether two samples are equal to the bit."""
    arrays = [({**s.outputs}, {**s.values}) for s in (a, b)]
    return replace(a, outputs={}, values={}) == replace(b, outputs={}, values={}) and all(
        list(x) == list(y)
        and all((x[n].dtype.kind == y[n].dtype.kind and x[n].tobytes() == y[n].tobytes()) or list(x[n]) == list(y[n]) for n in x)
        for x, y in zip(*arrays, strict=True)
    )


class TestOnDisk:
    def test_samples_read_back_equal(self, tmp_path: Path) -> None:
        """Requests, headers and arrays survive."""
        golden.write_samples(tmp_path / "golden", samples())
        again = golden.read_samples(tmp_path / "golden")
        assert [s.name for s in again] == [s.name for s in samples()]
        assert all(same(a, b) for a, b in zip(again, samples(), strict=True))

    @given(
        st.sampled_from(["float16", "float32", "float64", "int8", "int64", "uint8", "uint64", "bool"]).flatmap(
            lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, min_side=0))
        )
    )
    @settings(max_examples=50)
    def test_arrays_keep_every_bit(self, array: np.ndarray) -> None:
        """Every dtype and shape comes back bit for bit (NaN payloads too)."""
        files = dict(golden.golden_files([replace(samples()[0], outputs={"x": array}, values={})]))
        with np.load(io.BytesIO(files["expected.npz"]), allow_pickle=False) as arrays:
            again = arrays["0/output/x"]
        assert (again.dtype, again.shape, again.tobytes()) == (array.dtype, array.shape, array.tobytes())

    @given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"])).filter(lambda s: not s.endswith("\0")), max_size=5))
    @settings(max_examples=50)
    def test_strings_of_any_length_and_script_survive(self, texts: list[str]) -> None:
        """Strings come back as Python strings."""
        files = dict(golden.golden_files([replace(samples()[0], outputs={"x": np.array(texts, dtype=object)}, values={})]))
        with np.load(io.BytesIO(files["expected.npz"]), allow_pickle=False) as arrays:
            assert arrays["0/output/x"].tolist() == texts

    def test_equal_bodies_are_kept_once(self, tmp_path: Path) -> None:
        """Two samples that send the same bytes share a blob."""
        golden.write_samples(tmp_path, [samples()[0], replace(samples()[0], name="again")])
        assert len(list((tmp_path / "blobs").iterdir())) == 1

    def test_nothing_is_pickled_or_stamped(self) -> None:
        """The archive holds plain arrays with a constant date, so equal samples are equal bytes."""
        files = dict(golden.golden_files(samples()))
        with zipfile.ZipFile(io.BytesIO(files["expected.npz"])) as archive:
            assert {i.date_time for i in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
            assert all(b"|O" not in archive.read(i)[:128] for i in archive.infolist())

    @pytest.mark.parametrize(
        ("array", "reason"),
        [
            (np.array(["a", None], dtype=object), "holds NoneType among strings"),
            (np.array(["a\0"]), "ends in a NUL"),
            (np.zeros(1, np.complex64), "has dtype complex64"),
            (np.array(["2024-01-01"], "M8[D]"), "has dtype datetime64"),
        ],
    )
    def test_array_that_cannot_be_kept_is_refused(self, array: np.ndarray, reason: str) -> None:
        """What the format cannot hold exactly is refused by name, never rounded."""
        if array.dtype.kind == "U":
            array = np.array(["a\0"], dtype=object)
        with pytest.raises(AuthoringError, match=rf"'row 0': 'x' .*{reason}"):
            list(golden.golden_files([replace(samples()[0], outputs={"x": array})]))

    def test_names_must_be_distinct(self) -> None:
        """An error message that names a sample must mean one."""
        with pytest.raises(AuthoringError, match="given twice: row 0"):
            list(golden.golden_files([samples()[0], samples()[0]]))

    def test_changed_body_is_refused(self, tmp_path: Path) -> None:
        """A blob is what its name says."""
        golden.write_samples(tmp_path, samples())
        next((tmp_path / "blobs").iterdir()).write_bytes(b"other")
        with pytest.raises(DigestMismatch):
            golden.read_samples(tmp_path)

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (b"nonsense\n", "line 1"),
            (b'{"name": "a"}\n', "path: Field required"),
            (b'{"name": "a", "path": "/", "headers": {}, "body": "../x", "outputs": [], "values": []}\n', "body"),
        ],
    )
    def test_broken_line_is_refused_with_its_number(self, tmp_path: Path, line: bytes, reason: str) -> None:
        """A requests.jsonl that is not in the format says where."""
        golden.write_samples(tmp_path, samples())
        (tmp_path / "requests.jsonl").write_bytes(line)
        with pytest.raises(PackageError, match=reason):
            golden.read_samples(tmp_path)

    def test_pickled_arrays_are_never_loaded(self, tmp_path: Path) -> None:
        """An expected.npz with objects in it is refused, not unpickled."""
        golden.write_samples(tmp_path, [samples()[0]])
        arrays: Any = {"0/output/label": np.array([object()]), "0/output/probability": np.zeros(1), "0/value/features": np.zeros(1)}
        np.savez(tmp_path / "expected.npz", **arrays)
        with pytest.raises(PackageError, match="does not hold the arrays"):
            golden.read_samples(tmp_path)

    def test_missing_array_is_refused(self, tmp_path: Path) -> None:
        """Every array a request names must be there."""
        golden.write_samples(tmp_path, [samples()[0]])
        np.savez(tmp_path / "expected.npz", x=np.zeros(1))
        with pytest.raises(PackageError, match="does not hold the arrays"):
            golden.read_samples(tmp_path)

    def test_linked_body_is_not_followed(self, tmp_path: Path) -> None:
        """Samples are plain files too."""
        golden.write_samples(tmp_path, [samples()[0]])
        (blob,) = (tmp_path / "blobs").iterdir()
        blob.rename(tmp_path / "elsewhere")
        blob.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(UnsafePath):
            golden.read_samples(tmp_path)


class TestReplay:
    def test_right_package_passes_at_every_batch_size(self, runtime: PackageRuntime) -> None:
        """Alone, in pairs, in full batches, apart and merged, every sample is compared."""
        results = golden.replay(runtime, samples())
        assert all(r.passed for r in results), [r.reason for r in results if not r.passed]
        assert {(r.batch_size, r.merged) for r in results} == {(size, merged) for size in (1, 2, 8) for merged in (True, False)}
        assert {r.sample for r in results} == {s.name for s in samples()}
        apart = next(r for r in results if not r.merged)
        assert [c.tensor for c in apart.comparisons] == ["features", "probability", "label"]

    def test_full_batch_is_filled_by_going_round(self, tmp_path: Path) -> None:
        """Three instances fill a batch of eight: the graph sees eight rows, and all of them are compared."""
        seen: list[int] = []
        with closing(load(draft(), tmp_path)) as runtime:
            run = runtime.run
            runtime.run = lambda feeds: (seen.append(len(next(iter(feeds.values())))), run(feeds))[1]  # type: ignore[method-assign,func-returns-value]
            results = golden.replay(runtime, samples()[:3], [8], intermediates=False)
        assert seen == [8]
        assert len(results) == 8
        assert all(r.passed for r in results)

    @pytest.mark.parametrize("room", [golden.KEPT_ITEM_BYTES, 0], ids=["room", "no room"])
    def test_the_item_stage_runs_once_a_row_as_long_as_there_is_room(
        self, runtime: PackageRuntime, monkeypatch: pytest.MonkeyPatch, room: int
    ) -> None:
        """It gives the same at every batch size; results that do not fit into the memory set aside are made again."""
        prepared: list[Any] = []
        monkeypatch.setattr(golden, "KEPT_ITEM_BYTES", room)
        runtime.item_plan = object()  # type: ignore[assignment]
        runtime.prepare = lambda row: (prepared.append(row), row)[1]  # type: ignore[method-assign,func-returns-value]
        results = golden.replay(runtime, samples(), [1, 2], intermediates=False)
        assert all(result.passed for result in results)
        assert len(prepared) == 2 * len(ROWS) * (1 if room else 2)  # every row alone and in the sample of all

    def test_executions_may_run_side_by_side(self, runtime: PackageRuntime) -> None:
        """A pool's map in place of Python's gives the same results in the same order, and its threads did the work."""
        workers: set[str] = set()
        run = runtime.run

        def watched(feeds: Any) -> list[np.ndarray]:
            workers.add(threading.current_thread().name)
            return run(feeds)

        runtime.run = watched  # type: ignore[method-assign]
        with ThreadPoolExecutor(2, thread_name_prefix="prover") as pool:
            together = golden.replay(runtime, samples(), [1, 4], intermediates=False, spread=pool.map)
        assert workers <= {"prover_0", "prover_1"}
        assert together == golden.replay(runtime, samples(), [1, 4], intermediates=False)

    def test_progress_counts_every_instance(self, runtime: PackageRuntime) -> None:
        """Progress ends at its total."""
        steps: list[tuple[int, int]] = []
        golden.replay(runtime, samples(), [1, 4], progress=lambda done, total: steps.append((done, total)))
        assert steps[-1] == (40, 40)
        assert [done for done, _ in steps] == sorted({done for done, _ in steps})

    def test_wrong_weights_name_the_first_tensor_in_flow_order(self, tmp_path: Path) -> None:
        """A wrong model differs in its probability first, however the outputs are ordered."""
        stages = [draft().stages[0], DraftStage("model", classifier(-WEIGHTS)), draft().stages[2]]
        with closing(load(draft(stages=stages), tmp_path)) as runtime:
            failed = next(r for r in golden.replay(runtime, samples()) if not r.passed)
        assert failed.failure is not None
        assert failed.failure.tensor == "probability"
        with pytest.raises(NotExact, match=r"golden sample 'row 0' .*tensor 'probability'") as caught:
            failed.raise_for_difference()
        assert (caught.value.sample, caught.value.tensor) == ("row 0", "probability")

    def test_wrong_intermediate_comes_before_the_outputs(self, runtime: PackageRuntime) -> None:
        """When preprocessing differs, its tensor is named and not what follows from it."""
        wrong = replace(samples()[0], values={"features": samples()[0].values["features"] + 1}, outputs=samples()[1].outputs)
        failed = golden.replay(runtime, [wrong], [1])[0]
        assert failed.failure is not None
        assert failed.failure.tensor == "features"

    def test_refused_request_is_a_failure_with_the_reason(self, runtime: PackageRuntime) -> None:
        """A golden request the signature refuses is no proof."""
        bad = replace(samples()[0], body=b'{"instances": [{"size": "big", "kind": "oak"}]}')
        broken = replace(samples()[0], name="broken", body=b"{")
        results = golden.replay(runtime, [bad, broken, samples()[1]], [1])
        assert "its request is refused" in results[0].reason
        assert "size" in results[0].reason
        assert "its request is refused" in results[1].reason
        assert all(r.passed for r in results[2:])

    def test_value_the_package_does_not_compute_is_a_failure(self, runtime: PackageRuntime) -> None:
        """A captured intermediate with an unknown name is not ignored."""
        odd = replace(samples()[0], values={"embedding": np.zeros((1, 2))})
        assert "computes no such value; it has size, kind, features" in golden.replay(runtime, [odd], [1])[0].reason

    def test_count_of_instances_must_agree(self, runtime: PackageRuntime) -> None:
        """Answers for two rows do not fit a request of one."""
        odd = replace(samples()[0], outputs=sample("two", ROWS[:2]).outputs)
        assert "expected shape [2" in golden.replay(runtime, [odd], [1])[0].reason

    def test_batch_that_depends_on_its_neighbours_is_caught(self, tmp_path: Path) -> None:
        """A graph that normalises over the batch answers right alone and wrong in company."""
        centred = model_of(
            [
                helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=1),
                helper.make_node("Sub", ["x", "mean"], ["y"]),
            ],
            [("x", TensorProto.FLOAT, ["n", 1])],
            [("y", TensorProto.FLOAT, ["n", 1])],
            axes=np.array([0]),
        )
        whole = PackageDraft(
            name="centred",
            version=1,
            fields=[RawField(name="x", kind="tensor", dtype="float32", shape=[1])],
            outputs=[Output(name="y", dtype="float32", shape=[1])],
            stages=[DraftStage("model", centred)],
            batching=Batching(max_batch_size=4),
        )
        lonely = [
            GoldenSample(f"x = {x}", "/v1/models/centred:predict", {}, b'{"instances": [[%d]]}' % x, {"y": np.zeros((1, 1), np.float32)})
            for x in (1, 2, 5)
        ]
        with closing(load(whole, tmp_path)) as runtime:
            results = golden.replay(runtime, lonely)
        assert {r.batch_size for r in results if not r.passed} == {2, 4}

    def test_graph_that_fails_on_one_instance_names_that_one(self, tmp_path: Path) -> None:
        """When a batch fails, the sample at fault fails and its neighbours do not."""
        picky = model_of(
            [helper.make_node("Gather", ["table", "x"], ["y"])], [("x", TensorProto.INT64, ["n"])], [("y", TensorProto.FLOAT, ["n"])],
            table=np.arange(3, dtype=np.float32),
        )  # fmt: skip
        whole = PackageDraft(
            name="picky",
            version=1,
            fields=[RawField(name="x", kind="tensor", dtype="int64", shape=[])],
            outputs=[Output(name="y", dtype="float32")],
            stages=[DraftStage("model", picky)],
            batching=Batching(max_batch_size=4),
        )
        wanted = [GoldenSample(str(x), "/p", {}, b'{"instances": [%d]}' % x, {"y": np.array([x], np.float32)}) for x in (0, 9, 2)]
        with closing(load(whole, tmp_path)) as runtime:
            results = golden.replay(runtime, wanted, [4])
        assert {r.sample for r in results if not r.passed} == {"9"}
        assert "it fails to run" in next(r.reason for r in results if not r.passed)

    def test_promise_of_the_profile_is_applied(self, runtime: PackageRuntime) -> None:
        """The same difference passes a wide promise and fails a narrow one."""
        first = samples()[0]
        off = replace(first, outputs={**first.outputs, "probability": first.outputs["probability"] + np.float32(5e-6)})
        assert not golden.replay(runtime, [off], [1], profile="cpu.same")[-1].passed
        assert golden.replay(runtime, [off], [1], profile="cpu.other")[-1].passed


class TestProfiles:
    def test_profile_follows_processor_and_runtime(self, tmp_path: Path) -> None:
        """Only the processor and ONNX Runtime of the proof get its narrow promise."""
        import onnxruntime

        manifest = read_package(write_package(draft(), [], tmp_path / "plants" / "1").path).manifest
        here = {"machine": golden.processor(), "libraries": {"onnxruntime": onnxruntime.__version__}}
        same = manifest.model_copy(update={"provenance": manifest.provenance.model_copy(update=here)})
        assert golden.device_profile(manifest, ["CPUExecutionProvider"]) == "cpu.other"
        assert golden.device_profile(same, ["CPUExecutionProvider"]) == "cpu.same"
        assert golden.device_profile(same, ["CUDAExecutionProvider", "CPUExecutionProvider"]) == "gpu"

    def test_unstated_promise_is_the_default(self, tmp_path: Path) -> None:
        """A package that states one profile keeps the project's promise on the others."""
        manifest = write_package(draft(tolerances={"gpu": Tolerance(atol=0.5)}), [], tmp_path / "plants" / "1").manifest
        assert golden.promised(manifest, "gpu") == Tolerance(atol=0.5)
        assert golden.promised(manifest, "cpu.same") == Tolerance(ulp=4, relative_to_max=1e-7)
