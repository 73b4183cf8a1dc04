"""What ONNX Runtime and CUDA are asked for on a GPU: provider options, libraries, page-locked memory."""

from __future__ import annotations

import ctypes
import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import package_builders as build
import pytest
from gpu_models import convnet, lengths
from onnx import TensorProto, helper
from samegraph_transforms import cuda, executor, gpu
from samegraph_transforms.errors import EnvironmentUnfit, ExecutionError
from samegraph_transforms.executor import CPU, CUDA, available_providers
from samegraph_transforms.gpu import GpuOptions, provider_options


def test_the_defaults_keep_the_promise_of_exactness() -> None:
    """No TF32, no search that may choose another algorithm at the next start, an arena that grows by what is asked for."""
    assert provider_options(GpuOptions()) == [
        (
            "CUDAExecutionProvider",
            {
                "device_id": "0",
                "cudnn_conv_algo_search": "HEURISTIC",
                "use_tf32": "0",
                "arena_extend_strategy": "kSameAsRequested",
            },
        ),
        ("CPUExecutionProvider", {}),
    ]


def test_the_memory_limit_and_tf32_reach_cuda() -> None:
    """What the operator sets is what the provider is told."""
    (name, options), _ = provider_options(GpuOptions(memory_limit_bytes=2 << 30, tf32=True, device_id=1))
    assert name == "CUDAExecutionProvider"
    assert options["gpu_mem_limit"] == "2147483648"
    assert options["use_tf32"] == "1"
    assert options["device_id"] == "1"


def test_tensorrt_comes_before_cuda_and_keeps_its_engines(tmp_path: Path) -> None:
    """TensorRT takes what it can, CUDA the rest; engines and timings are kept in the one directory."""
    providers = provider_options(GpuOptions(tensorrt=True, engine_cache=tmp_path, memory_limit_bytes=1 << 30))
    assert [name for name, _ in providers] == ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    assert providers[0][1] == {
        "device_id": "0",
        "trt_fp16_enable": "0",
        "trt_max_workspace_size": str(1 << 30),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(tmp_path),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(tmp_path),
    }
    assert provider_options(GpuOptions(tensorrt=True, half=True))[0][1] == {"device_id": "0", "trt_fp16_enable": "1"}


def test_every_option_is_one_the_installed_library_knows() -> None:
    """A misspelt option would only be noticed on a GPU: the names and values are looked up in the provider libraries themselves."""
    directory = Path(ort.__file__).parent / "capi"
    libraries = {
        "CUDAExecutionProvider": "libonnxruntime_providers_cuda.so",
        "TensorrtExecutionProvider": "libonnxruntime_providers_tensorrt.so",
    }
    asked = provider_options(GpuOptions(tensorrt=True, engine_cache=Path("engines"), memory_limit_bytes=1))
    for provider, options in asked:
        library = directory / libraries.get(provider, "")
        if not library.is_file():
            continue  # a build of ONNX Runtime without GPUs has nothing to be asked
        content = library.read_bytes()
        for name, value in options.items():
            assert name.encode() in content, name
            assert not value.isalpha() or value == "engines" or value.encode() in content, value


@pytest.mark.parametrize(
    "wrong", [{"instances": 0}, {"bindings": 0}, {"max_batch_size": 0}, {"bucket_sizes": ()}, {"bucket_sizes": (0, 4)}]
)
def test_options_out_of_bounds_are_refused_by_name(wrong: dict[str, Any]) -> None:
    """The message names the option."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GpuOptions(**wrong)


def product(weights: int) -> onnx.ModelProto:
    """Return a graph of one matrix product with so many weights."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    shapes = [("x", TensorProto.FLOAT, ["n", weights // 100])], [("y", TensorProto.FLOAT, ["n", 100])]
    return build.model_of([node], *shapes, w=np.zeros((weights // 100, 100), np.float32))


@pytest.mark.parametrize(
    ("model", "worth_it"),
    [
        (convnet(), True),
        (product(1_000_000), True),
        (product(10_000), False),
        (build.classifier(), False),
        (build.preprocess(), False),
        (lengths(), False),
    ],
    ids=["convolutions", "large product", "small product", "linear model", "encoders", "sums"],
)
def test_a_gpu_is_for_convolutions_and_large_products(model: onnx.ModelProto, worth_it: bool) -> None:
    """What a CPU core does faster than the way to the GPU takes is left to it."""
    assert gpu.gains(model) is worth_it


def test_products_inside_functions_and_of_two_computed_values_count() -> None:
    """Attention written out multiplies what the graph itself computes, and may sit in a model-local function."""
    square = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21, "local" : 1]> g (float[n,4] x) => (float[n,n] y) { y = local.Square(x) } '
        '<opset_import: ["" : 21], domain: "local"> Square (a) => (b) { t = Transpose(a) b = MatMul(a, t) }'
    )
    assert gpu.gains(square)


@pytest.fixture
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ONNX Runtime does when its CUDA provider does not load: it goes on with the rest."""
    monkeypatch.setattr(gpu, "provider_options", lambda _: [("CPUExecutionProvider", {})])


@pytest.mark.usefixtures("without_cuda")
@pytest.mark.parametrize(("tf32", "already", "left"), [(False, None, "0"), (False, "1", "1"), (True, None, None)], ids=["off", "set", "on"])
def test_tensorrt_is_kept_from_tf32_by_the_variable_nvidia_reads(
    tf32: bool, already: str | None, left: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT uses TF32 unless told otherwise, and its provider has no option for it; what the operator has set stays."""
    monkeypatch.setattr(os, "environ", {} if already is None else {"NVIDIA_TF32_OVERRIDE": already})
    with pytest.raises(ExecutionError, match="CUDAExecutionProvider"):
        gpu.cuda_backend(build.classifier(), GpuOptions(tensorrt=True, tf32=tf32))
    assert os.environ.get("NVIDIA_TF32_OVERRIDE") == left


@pytest.mark.usefixtures("without_cuda")
def test_the_engine_cache_is_made_or_the_reason_given(tmp_path: Path) -> None:
    """A directory that cannot be made stops the load with a sentence, not a traceback."""
    with pytest.raises(ExecutionError, match="CUDAExecutionProvider"):
        gpu.cuda_backend(build.classifier(), GpuOptions(tensorrt=True, tf32=True, engine_cache=tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(ExecutionError, match="engines cannot be made"):
        gpu.cuda_backend(build.classifier(), GpuOptions(tensorrt=True, tf32=True, engine_cache=tmp_path / "file" / "b"))


# --- page-locked memory -----------------------------------------------------------------------------------------------


class FakeCuda:
    """Grants blocks of ordinary memory up to a number, by the same C calling convention, and keeps account of them."""

    def __init__(self, grants: int = 100) -> None:
        self.grants = grants
        self.held: dict[int, Any] = {}
        self.flags: list[int] = []

    def cudaHostAlloc(self, address: Any, size: int, flags: int) -> int:  # noqa: N802 - CUDA's own name
        if not self.grants:
            return 2  # cudaErrorMemoryAllocation
        self.grants -= 1
        block = (ctypes.c_char * size)()
        self.held[ctypes.addressof(block)] = block
        address._obj.value = ctypes.addressof(block)
        self.flags.append(flags)
        return 0

    def cudaFreeHost(self, address: Any) -> int:  # noqa: N802 - CUDA's own name
        del self.held[address.value]
        return 0


def test_page_locked_arrays_live_as_long_as_somebody_looks_at_them() -> None:
    """The memory is the library's, is written like any array, and is given back with the last view of it."""
    library = FakeCuda()
    memory = cuda.PageLockedMemory(library)
    array = memory.empty((3, 4), np.dtype("float32"))
    array[...] = np.arange(12, dtype=np.float32).reshape(3, 4)
    view = array[1:]
    assert list(library.held) == [array.ctypes.data]
    assert library.flags == [1]
    del array
    gc.collect()
    assert view.tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
    del view
    gc.collect()
    assert library.held == {}


def test_ordinary_memory_stands_in_when_no_more_can_be_locked() -> None:
    """A limit on locked memory costs speed, never an answer; how often it happened can be read."""
    memory = cuda.PageLockedMemory(FakeCuda(grants=1))
    kept = [memory.empty((2, 2), np.dtype("uint8")) for _ in range(3)]
    assert memory.refused == 2
    assert [array.shape for array in kept] == [(2, 2)] * 3


def test_strings_and_empty_arrays_are_never_locked() -> None:
    """Objects are pointers that only Python can follow; nothing needs no memory."""
    library = FakeCuda()
    memory = cuda.PageLockedMemory(library)
    assert memory.empty((2, 1), np.dtype(object)).tolist() == [[None], [None]]
    assert memory.empty((0, 4), np.dtype("float32")).shape == (0, 4)
    assert library.held == {}


def test_staging_buffers_are_page_locked_in_every_run_and_answers_are_not() -> None:
    """Inputs are staged and outputs received in locked memory; callers get ordinary arrays, so that nothing locked escapes."""
    library = FakeCuda()
    model = build.classifier()
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    bound = gpu.GpuExecutor(
        gpu.OrtBackend(session, "cpu", memory=cuda.PageLockedMemory(library)), GpuOptions(max_batch_size=4, instances=1)
    )
    features = np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2)
    expected = session.run(None, {"features": features})[0]
    for _ in range(3):
        (answer,) = bound.run({"features": features})
        assert answer.tobytes() == expected.tobytes()
        assert answer.base is None
    assert len(library.held) == 2
    del bound
    gc.collect()
    assert library.held == {}


# --- choosing a device ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("present", "usable"), [(True, True), (True, False), (False, True)], ids=["works", "libraries missing", "no GPU"])
def test_auto_takes_a_gpu_that_works_and_cuda_insists_on_one(present: bool, usable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU whose libraries are missing does not keep `auto` from serving; `cuda` refuses by name."""
    monkeypatch.setattr(executor, "gpu_present", lambda: present)
    monkeypatch.setattr(cuda, "usable", lambda: usable)
    if present and usable:
        assert available_providers("auto") == available_providers("cuda") == CUDA
    else:
        assert available_providers("auto") == CPU
        with pytest.raises(EnvironmentUnfit, match="device=auto or cpu"):
            available_providers("cuda")
    assert available_providers("cpu") == CPU


def test_a_gpu_is_usable_only_if_a_graph_really_runs_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider's name alone proves nothing: the wheel lists it on every machine."""
    monkeypatch.setattr(cuda, "preload_libraries", lambda: None)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    real = ort.InferenceSession

    def without_cuda(model: bytes, providers: list[str]) -> Any:
        assert providers == ["CUDAExecutionProvider"]
        return real(model, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "InferenceSession", without_cuda)
    cuda.usable.cache_clear()
    try:
        assert not cuda.usable()
        monkeypatch.setattr(cuda, "PROVIDER", "CPUExecutionProvider")
        monkeypatch.setattr(ort, "InferenceSession", real)
        cuda.usable.cache_clear()
        assert cuda.usable()
    finally:
        cuda.usable.cache_clear()
