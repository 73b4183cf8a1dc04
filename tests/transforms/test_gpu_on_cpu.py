"""The GPU executor on ONNX Runtime's IO binding with the CPU as its device: the calls a GPU gets, and every answer checked."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import package_builders as build
import pytest
from gpu_models import CLASSES, SIDE, convnet, lengths, mean_of_batch, pixels
from hypothesis import given, settings
from hypothesis import strategies as st
from samegraph_transforms import golden
from samegraph_transforms.errors import ExecutionError
from samegraph_transforms.executor import CPU, CUDA, OrtExecutor
from samegraph_transforms.gpu import GpuExecutor, GpuOptions, cpu_backend
from samegraph_transforms.manifest import STAGE_FILES
from samegraph_transforms.merging import merge_stages
from samegraph_transforms.pack import pack
from samegraph_transforms.package import Package
from samegraph_transforms.runtime import PackageRuntime

MAX = 12


def on_cpu(model: onnx.ModelProto, **options: object) -> GpuExecutor:
    """Return the executor on the CPU backend."""
    return GpuExecutor(cpu_backend(model), replace(GpuOptions(max_batch_size=MAX), **options))  # type: ignore[arg-type]


def assert_equal(answers: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """Every bit, every string, every shape and element type."""
    assert len(answers) == len(expected)
    for answer, wanted in zip(answers, expected, strict=True):
        assert answer.dtype == wanted.dtype
        assert answer.shape == wanted.shape
        assert answer.tolist() == wanted.tolist() if answer.dtype == object else answer.tobytes() == wanted.tobytes()


@pytest.fixture(scope="module")
def plain() -> OrtExecutor:
    return OrtExecutor(convnet())


@pytest.fixture(scope="module")
def bound() -> GpuExecutor:
    return on_cpu(convnet())


@given(n=st.integers(1, MAX), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_any_batch_answers_what_plain_onnx_runtime_does_bit_for_bit(n: int, seed: int, plain: OrtExecutor, bound: GpuExecutor) -> None:
    """uint8 pixels in, floats and strings out, of any number of rows, in buffers full of other batches' rows."""
    feeds = {"pixels": pixels(n, seed)}
    assert_equal(bound.run(feeds), plain.run(feeds))


@pytest.mark.parametrize("buckets", [True, False], ids=["buckets", "as they come"])
def test_every_size_up_to_beyond_the_largest_is_answered(buckets: bool, plain: OrtExecutor) -> None:
    """0 rows, every bucket and its neighbours, and batches larger than any bucket, each three times."""
    executor = on_cpu(convnet(), buckets=buckets, instances=1)
    for n in range(MAX + 4):
        feeds = {"pixels": pixels(n, n)}
        for _ in range(3):
            assert_equal(executor.run(feeds), plain.run(feeds))


def test_two_threads_at_once_never_see_each_others_rows(plain: OrtExecutor) -> None:
    """200 runs a thread on two binding sets of one session, every answer compared with its own input's."""
    executor = on_cpu(convnet())
    start = threading.Barrier(2)

    def many(thread: int) -> int:
        start.wait(10)
        for i in range(200):
            n = 1 + (i * 7 + thread * 5) % MAX
            feeds = {"pixels": pixels(n, 1000 * thread + i)}
            assert_equal(executor.run(feeds), plain.run(feeds))
        return 200

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(many, range(2))) == [200, 200]
    finally:
        sys.setswitchinterval(interval)


def test_ragged_shapes_are_bound_each_on_its_own_and_bounded_in_number() -> None:
    """Lengths differ from batch to batch; the buffers kept do not grow with them."""
    executor, plain = on_cpu(lengths(), bindings=3, instances=1), OrtExecutor(lengths())
    for length in [*range(1, 12), *range(12, 0, -1)]:
        feeds = {"ids": np.arange(5 * length).reshape(5, length)}
        assert_equal(executor.run(feeds), plain.run(feeds))
    assert executor.evictions == 18  # 23 batches; two lengths are met again while they are kept, and the last three are still there


def test_oversized_batches_shrink_the_real_arena(plain: OrtExecutor) -> None:
    """The run option that gives memory back is one ONNX Runtime accepts, and the answer is right all the same."""
    executor = on_cpu(convnet(), instances=1)
    executor.warm_up({"pixels": pixels(MAX)})
    for n in (3 * MAX, 2, 5 * MAX):
        feeds = {"pixels": pixels(n, n)}
        assert_equal(executor.run(feeds), plain.run(feeds))


def test_onnx_runtime_cannot_bind_strings_which_is_why_they_are_fed(plain: OrtExecutor) -> None:
    """The limit this design works around; when a newer ONNX Runtime lifts it, graphs that read strings can be bound too."""
    session = ort.InferenceSession(build.preprocess().SerializeToString(), providers=["CPUExecutionProvider"])
    with pytest.raises(RuntimeError, match="string"):
        session.io_binding().bind_cpu_input("kind", np.array([["oak"]], dtype=object))
    with pytest.raises(RuntimeError, match="string"):
        ort.OrtValue.ortvalue_from_numpy(np.array([["oak"]], dtype=object))


def test_strings_stay_on_the_cpu_going_in_and_coming_out() -> None:
    """A graph that reads strings is padded and cut like any other; its feeds are the staged arrays themselves, never device buffers."""
    model = _merged_plants()
    backend = cpu_backend(model)
    staged = np.array([["oak"]], dtype=object)
    text = next(port for port in backend.inputs if port.is_text)
    assert backend.allocate_device(text, (1, 1), staged) is staged
    executor, plain = on_cpu(model), OrtExecutor(model)
    for n in range(1, MAX + 2):
        feeds = {"size": np.linspace(-3, 3, n)[:, None], "kind": np.array([[build.KINDS[i % 3]] for i in range(n)], dtype=object)}
        assert_equal(executor.run(feeds), plain.run(feeds))
        assert_equal(executor.run({**feeds, "kind": feeds["kind"].astype("U")}), plain.run(feeds))


def _merged_plants() -> onnx.ModelProto:
    from samegraph_transforms.manifest import Stage

    def stage(name: str, model: onnx.ModelProto) -> tuple[Stage, onnx.ModelProto]:
        inputs, outputs = ({v.name: v.name for v in values} for values in (model.graph.input, model.graph.output))
        return Stage(name=name, file=STAGE_FILES[name], inputs=inputs, outputs=outputs), model  # type: ignore[arg-type]

    stages = [stage("preprocess.batch", build.preprocess()), stage("model", build.classifier()), stage("postprocess", build.postprocess())]
    return merge_stages(stages, ["label", "probability"])


def test_text_that_is_only_answered_is_bound_on_the_cpu_beside_bound_floats(bound: GpuExecutor) -> None:
    """Float outputs get a staging buffer of their own; strings are allocated by every run."""
    for n in (4, 4, 3):
        probability, label = bound.run({"pixels": pixels(n)})
        assert probability.shape == (n, CLASSES)
        assert label.tolist() == [f"class {i}" for i in probability.argmax(axis=1)]


def test_an_output_that_is_not_one_row_per_row_is_left_whole() -> None:
    """The executor never invents rows: the runtime above it then refuses the answer, as it does on the CPU."""
    (mean,) = on_cpu(mean_of_batch()).run({"x": np.ones((3, 1), np.float32)})
    assert mean.shape == (1, 1)


@pytest.mark.parametrize("shape", [(2, SIDE, SIDE, 4), (2, SIDE, SIDE)], ids=["channels", "rank"])
def test_shapes_the_graph_refuses_are_an_execution_error(shape: tuple[int, ...], bound: GpuExecutor) -> None:
    """ONNX Runtime's message arrives in one line, and the next batch is answered."""
    with pytest.raises(ExecutionError, match="failed to run") as caught:
        bound.run({"pixels": np.zeros(shape, np.uint8)})
    assert "\n" not in str(caught.value)
    assert len(bound.run({"pixels": pixels(2)})[0]) == 2


def test_a_failing_run_never_starts_over_on_the_cpu() -> None:
    """ONNX Runtime's own remedy for a failing provider is a new session without it, which nobody would notice but by its slowness."""
    assert cpu_backend(convnet())._session._enable_fallback is False


def test_a_graph_that_does_not_load_says_so_in_one_line() -> None:
    """Foreign exceptions are translated where they enter."""
    broken = convnet()
    broken.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ExecutionError, match="does not load") as caught:
        cpu_backend(broken)
    assert "\n" not in str(caught.value)


# --- through the package runtime --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return pack(build.draft(), build.samples(), tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("merge", [True, False], ids=["one graph", "chain"])
def test_a_package_replays_its_golden_samples_through_the_gpu_path(package: Package, merge: bool) -> None:
    """The proof the server asks for before a version takes traffic, at every batch size, behind the GPU executor."""
    runtime = PackageRuntime.load(package, gpu=GpuOptions(), merge=merge)
    samples = golden.read_samples(package.golden_dir())
    results = golden.replay(runtime, samples, list(range(1, 9)), intermediates=False)
    assert results
    assert all(result.passed for result in results)


@pytest.mark.parametrize("merge", [True, False], ids=["one graph", "chain"])
def test_a_warmed_package_allocates_nothing_for_any_batch(package: Package, merge: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All buckets up to the package's own largest batch are made before the first caller, in every stage's executor."""
    from samegraph_transforms.gpu import OrtBackend

    made: list[tuple[int, ...]] = []
    allocate = OrtBackend.allocate_host

    def counting(self: OrtBackend, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> np.ndarray:
        made.append(shape)
        return allocate(self, shape, dtype)

    monkeypatch.setattr(OrtBackend, "allocate_host", counting)
    runtime = PackageRuntime.load(package, gpu=GpuOptions(), merge=merge)
    runtime.warm_up([(1.5, "moss"), (2.0, "oak")])
    assert {shape[0] for shape in made} == {1, 2, 4, 8}
    made.clear()
    for n in [*range(1, 9)] * 2:
        assert len(runtime.predict([(float(i), "oak") for i in range(n)])["label"]) == n
    assert made == []


def test_the_cpu_keeps_its_own_executor_and_needs_no_warm_up(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU nothing of this runs, not even at load."""
    import samegraph_transforms.gpu as module

    def refuse(*_: object) -> None:
        raise AssertionError("the GPU executor was made")

    monkeypatch.setattr(module.GpuExecutor, "__init__", refuse)
    runtime = PackageRuntime.load(package)
    runtime.warm_up([(1.5, "moss")])
    assert len(runtime.predict([(1.5, "moss")])["label"]) == 1


def test_asking_for_cuda_never_ends_on_the_cpu_unseen(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime goes on silently without a provider it cannot load; here the version does not load, and the error says what to do."""
    import samegraph_transforms.gpu as module

    monkeypatch.setattr(module, "provider_options", lambda _: [("CPUExecutionProvider", {})])  # what is left when CUDA is not there
    with pytest.raises(ExecutionError, match=r"CUDAExecutionProvider was asked for.*device=cpu"):
        PackageRuntime.load(package, providers=CUDA, gpu=GpuOptions(small_on_cpu=False))


def test_a_package_with_little_to_compute_stays_on_the_cpu_and_says_so(package: Package) -> None:
    """A GPU would make three classes from two numbers slower: the package runs as on a machine without one, by the CPU's promise."""
    runtime = PackageRuntime.load(package, providers=CUDA)
    assert runtime.providers == CPU
    assert golden.runtime_profile(runtime).startswith("cpu")
