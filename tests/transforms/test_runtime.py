"""Running a package: stages merged or chained, the same answers; rows out equal rows in."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import package_builders as build
import pytest
from onnx import TensorProto, helper
from samegraph_transforms.draft import DraftStage
from samegraph_transforms.errors import EnvironmentUnfit, ExecutionError
from samegraph_transforms.executor import OrtExecutor, available_providers, check_environment
from samegraph_transforms.manifest import Output, RawField
from samegraph_transforms.pack import pack
from samegraph_transforms.package import Package
from samegraph_transforms.runtime import PackageRuntime
from samegraph_transforms.wire import decode_v1


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return pack(build.draft(), build.samples(), tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("merge", [True, False], ids=["one graph", "chain"])
def test_merged_and_chained_stages_answer_what_training_does(package: Package, merge: bool) -> None:
    """Merging changes how many sessions run, never an answer."""
    runtime = PackageRuntime.load(package, merge=merge)
    assert runtime.merged is merge
    sample = build.samples()[-1]
    rows = [row for row in decode_v1(runtime.signature, sample.body).rows if isinstance(row, tuple)]
    answer = runtime.predict(rows)
    assert answer["label"].tolist() == sample.outputs["label"].tolist()
    np.testing.assert_allclose(answer["probability"], sample.outputs["probability"], rtol=0, atol=1e-7)


def test_trace_shows_every_value_between_stages_in_order(package: Package) -> None:
    """Stage boundaries stay visible although serving merges them."""
    runtime = PackageRuntime.load(package)
    trace = runtime.trace([(1.5, "moss")])
    assert list(trace) == ["size", "kind", "features", "probability", "label"]
    assert trace["features"].tolist() == [[1.5, 0.0]]


MEMORY = """
    import sys
    from pathlib import Path
    import numpy as np
    from samegraph_transforms.package import read_package
    from samegraph_transforms.runtime import PackageRuntime

    def resident_mib():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20

    runtime = PackageRuntime.load(read_package(sys.argv[1]), merge=sys.argv[2] == "True")
    row = (np.ones(256, np.float32),)
    runtime.predict([row])
    small = resident_mib()
    runtime.predict([row] * 64)
    large = resident_mib()
    runtime.give_back([row])
    print(large - small, resident_mib() - small, runtime.predict([row])["y"].sum())
"""


@pytest.mark.parametrize("merge", [True, False], ids=["one graph", "chain"])
def test_memory_of_a_large_batch_is_given_back(tmp_path: Path, merge: bool) -> None:
    """What 64 rows took for their intermediates is the system's again after `give_back`, and answers go on."""
    square = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[n,256] x) => (float[n,256] y) '
        "<int64[3] column = {-1, 256, 1}, int64[3] line = {-1, 1, 256}, int64[1] axis = {2}> "
        "{ a = Reshape (x, column)  b = Reshape (x, line)  c = MatMul (a, b)  d = Exp (c)  y = ReduceMax <keepdims = 0> (d, axis) }"
    )
    again = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[n,256] y0) => (float[n,256] y) { y = Identity (y0) }'
    )
    field = RawField(name="x", kind="tensor", dtype="float32", shape=[256])
    stages = [DraftStage("model", square, outputs={"y": "y0"}), DraftStage("postprocess", again)]
    draft = build.draft(fields=[field], stages=stages, outputs=[Output(name="y", dtype="float32", shape=[256])])
    package = _unproven(draft, tmp_path)
    command = [sys.executable, "-c", textwrap.dedent(MEMORY), str(package.path), str(merge)]
    grown, left, total = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert int(grown) > 24  # two arrays of 16 MiB
    assert int(left) < 8
    assert float(total) == pytest.approx(256 * np.e)


def test_a_package_with_differing_opsets_runs_as_a_chain(tmp_path: Path) -> None:
    """What cannot be one graph is still served."""
    last = build.postprocess()
    last.opset_import[0].version = 20
    draft = build.draft(stages=[*build.draft().stages[:2], DraftStage("postprocess", last)])
    runtime = PackageRuntime.load(pack(draft, build.samples(), tmp_path))
    assert not runtime.merged


def test_renamed_stage_inputs_and_outputs_are_bound_by_name(tmp_path: Path) -> None:
    """A model keeps the names its exporter gave; the manifest binds them."""
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[n,2] X) => (float[n] s) '
        "<int64[1] axis = {1}> { s = ReduceSum <keepdims = 0> (X, axis) }"
    )
    draft = build.draft(
        outputs=[Output(name="total", dtype="float32")],
        stages=[build.draft().stages[0], DraftStage("model", model, inputs={"X": "features"}, outputs={"s": "total"})],
    )
    for merge in (True, False):
        runtime = PackageRuntime.load(_unproven(draft, tmp_path / str(merge)), merge=merge)
        assert runtime.predict([(1.5, "fern"), (2.0, "oak")])["total"].tolist() == [2.5, 4.0]


def _unproven(draft: object, repository: Path) -> Package:
    from samegraph_transforms.package import write_package

    return write_package(draft, [], repository / "plants" / "1", [])  # type: ignore[arg-type]


def test_rows_that_get_lost_in_a_graph_are_an_error(tmp_path: Path) -> None:
    """A graph that returns another number of rows never answers anyone."""
    node = helper.make_node("ReduceSum", ["size", "axis"], ["y"], keepdims=1)
    model = build.model_of([node], [("size", TensorProto.DOUBLE, ["n", 1])], [("y", TensorProto.DOUBLE, [1, 1])], axis=np.array([0]))
    draft = build.draft(outputs=[Output(name="y", dtype="float64", shape=[1])], stages=[DraftStage("model", model)])
    runtime = PackageRuntime.load(_unproven(draft, tmp_path))
    with pytest.raises(ExecutionError, match="batch of 2"):
        runtime.predict([(1.0, "fern"), (2.0, "oak")])


def test_a_graph_that_does_not_load_says_so_in_one_line() -> None:
    """Foreign exceptions are translated where they enter."""
    broken = build.model_of(
        [helper.make_node("NoSuchOperator", ["x"], ["y"])], [("x", TensorProto.FLOAT, [1])], [("y", TensorProto.FLOAT, [1])]
    )
    with pytest.raises(ExecutionError, match="does not load") as caught:
        OrtExecutor(broken)
    assert "\n" not in str(caught.value)


def test_wrong_feeds_are_an_execution_error(package: Package) -> None:
    """What ONNX Runtime refuses arrives as our own error, with its cause."""
    runtime = PackageRuntime.load(package)
    with pytest.raises(ExecutionError):
        runtime.run({"size": np.zeros((1, 1), np.float32), "kind": np.array([["oak"]], dtype=object)})


def test_this_environment_has_exactly_one_onnx_runtime() -> None:
    """Two distributions share files; the last one installed would win silently."""
    assert check_environment() in ("onnxruntime", "onnxruntime-gpu")


def test_a_gpu_that_is_not_there_is_refused_by_name_and_ignored_by_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` serves on the CPU without noise; `cuda` must not silently do so."""
    monkeypatch.setattr(Path, "exists", lambda _: False)
    assert available_providers("auto") == available_providers("cpu") == ("CPUExecutionProvider",)
    with pytest.raises(EnvironmentUnfit, match="device=auto"):
        available_providers("cuda")
