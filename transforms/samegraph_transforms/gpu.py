"""Run batch stages on a GPU: every batch is padded to one of few sizes whose buffers are allocated, bound and warmed once.

    feeds ─ stage ─▶ page-locked buffer ─ copy in ─▶ device buffer ─ bind, run ─▶ page-locked buffer ─ copy out ─▶ rows
            pad with copies of the last row                                       slice back to the rows that came

The rules (which bucket, how rows are padded, in which order things happen, what is evicted, when memory is given back) are in
`GpuExecutor` and know a device only as a `Backend`. `OrtBackend` is ONNX Runtime's IO binding on a CUDA device or, for tests, on the CPU:
the same calls in the same order, so that a machine without a GPU checks everything but the device.
"""

from __future__ import annotations

import itertools
import math
import os
import queue
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import onnx
import onnxruntime as ort

from . import cuda
from .errors import ExecutionError
from .executor import first_line, session_options
from .manifest import Batching
from .ragged import Rows

#: ONNX Runtime's names of element types; strings are objects in NumPy.
_DTYPES: dict[str, np.dtype[Any]] = {
    f"tensor({theirs})": np.dtype(ours)
    for theirs, ours in {
        "float": "float32", "double": "float64", "float16": "float16", "string": "object", "bool": "bool",
        **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    }.items()
}  # fmt: skip
#: Operators that a GPU is for, whatever their size.
_HEAVY = frozenset(
    {"Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "DeformConv", "Attention", "MultiHeadAttention", "LSTM", "GRU", "RNN", "Einsum"}
)
_PRODUCTS = frozenset({"MatMul", "Gemm", "MatMulInteger", "QLinearMatMul", "MatMulNBits"})
#: Weights of matrix products, in numbers, from which the products of one row are worth the way to a GPU and back. A row meets each weight
#: once, so a CPU core is through with fewer than this in some tens of microseconds: what a launch and two copies take.
_WORTHWHILE = 100_000
#: Longest wait for a free binding set, in seconds; there are as many as there are run slots, so a longer one means that a run hangs.
INSTANCE_TIMEOUT_S = 120.0
#: A batch whose inputs are this much larger than the largest one warmed up gives its memory back.
OVERSIZED = 2

Shape: TypeAlias = tuple[int, ...]
#: The shapes a binding was made for, in the order of the graph's inputs.
Key: TypeAlias = tuple[Shape, ...]


@dataclass(frozen=True)
class GpuOptions:
    """How graphs run on a GPU. The defaults keep the answers within the promise for GPUs (docs/gpu.md).

    Attributes:
        device_id: Which GPU.
        memory_limit_bytes: Most device memory one graph's arena takes; None is all there is.
        buckets: Whether batches are padded to few sizes.
        bucket_sizes: Those sizes; None is the powers of two up to the largest batch, and that itself.
        max_batch_size: The largest batch, None for the package's own; a larger one runs, but leaves nothing behind.
        instances: Binding sets a graph has, so how many runs overlap; one per run slot of the device.
        bindings: Most bound shapes a set keeps; the one used longest ago goes first.
        tf32: Whether matrix products may round their inputs to 10 bits of mantissa.
        tensorrt: Whether TensorRT compiles the graph; CUDA takes what it leaves.
        engine_cache: Where TensorRT keeps compiled engines; None keeps them in memory only.
        half: Whether the model stage computes in half precision, for packages that promise a tolerance for `gpu.half`.
        arena_shrink: Whether an oversized batch gives its memory back to the device.
        small_on_cpu: Whether a package with too little to compute (`gains`) runs on the CPU instead.
    """

    device_id: int = 0
    memory_limit_bytes: int | None = None
    buckets: bool = True
    bucket_sizes: tuple[int, ...] | None = None
    max_batch_size: int | None = None
    instances: int = 2
    bindings: int = 16
    tf32: bool = False
    tensorrt: bool = False
    engine_cache: Path | None = None
    half: bool = False
    arena_shrink: bool = True
    small_on_cpu: bool = True

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "instances", "bindings"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.bucket_sizes is not None and (not self.bucket_sizes or min(self.bucket_sizes) < 1):
            raise ValueError(f"bucket_sizes must be positive numbers, at least one, not {self.bucket_sizes}")

    @property
    def largest(self) -> int:
        """Rows of the largest batch."""
        return self.max_batch_size or Batching().max_batch_size

    def sizes(self) -> tuple[int, ...]:
        """Return the batch sizes that are padded to, ascending; () when batches run as they come."""
        if not self.buckets:
            return ()
        wanted = self.bucket_sizes or tuple(1 << i for i in range(self.largest.bit_length()))
        return tuple(sorted({*(size for size in wanted if size < self.largest), self.largest}))


def gains(model: onnx.ModelProto) -> bool:
    """Whether a graph has enough to compute for a GPU: convolutions, attention, recurrence, or matrix products of some size.

    Encoders, scalers, boosted trees and small linear models have not: ONNX Runtime has CPU kernels only for most of their operators, and
    the rest would be copied to the GPU and back for a few numbers.
    """
    weights = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    bodies = [model.graph.node, *(function.node for function in model.functions)]
    products = 0
    for node in itertools.chain.from_iterable(map(_all_nodes, bodies)):
        if node.op_type in _HEAVY:
            return True
        if node.op_type in _PRODUCTS:
            products += max((weights.get(name, 0) for name in node.input), default=0) or _WORTHWHILE  # unknown: made by the graph itself
    return products >= _WORTHWHILE


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _all_nodes(graph.node)


def provider_options(options: GpuOptions) -> list[tuple[str, dict[str, str]]]:
    """Return ONNX Runtime's execution providers with their options, in order of preference.

    Convolutions are chosen by heuristics (a search costs seconds for every new shape, and may choose another algorithm, with other last
    bits, on the next start), TF32 is off, and the arena grows by what is asked for instead of doubling.
    """
    device = str(options.device_id)
    limit = {} if options.memory_limit_bytes is None else {"gpu_mem_limit": str(options.memory_limit_bytes)}
    compute = {
        "device_id": device,
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": str(int(options.tf32)),
        "arena_extend_strategy": "kSameAsRequested",
        **limit,
    }
    providers = [(cuda.PROVIDER, compute), ("CPUExecutionProvider", {})]
    return [("TensorrtExecutionProvider", _tensorrt_options(options)), *providers] if options.tensorrt else providers


def _tensorrt_options(options: GpuOptions) -> dict[str, str]:
    found = {"device_id": str(options.device_id), "trt_fp16_enable": str(int(options.half))}
    if options.memory_limit_bytes is not None:
        found["trt_max_workspace_size"] = str(options.memory_limit_bytes)
    if options.engine_cache is not None:
        place = str(options.engine_cache)
        found |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": place}
        found |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": place}
    return found


@dataclass(frozen=True)
class Port:
    """One input or output of a graph.

    Attributes:
        name: Its name.
        dtype: Its element type; object for strings.
        shape: What the graph declares: a number where it is fixed, a name or None where it is not.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]

    @property
    def is_text(self) -> bool:
        """Whether its elements are strings, which never leave the CPU."""
        return bool(self.dtype.hasobject)

    def fixed_rows(self, rows: int) -> Shape | None:
        """Return its shape for a batch of `rows`, or None when more than the batch is left open."""
        rest = tuple(d for d in self.shape[1:] if isinstance(d, int))
        return (rows, *rest) if self.shape and len(rest) == len(self.shape) - 1 else None


class Backend(Protocol):
    """A device that runs one graph. Buffers and bindings are the backend's own; the executor only carries them about.

    Attributes:
        inputs: The graph's inputs.
        outputs: Its outputs, in the order `copy_out` returns them.
        providers: What runs the graph, by ONNX Runtime's names.
    """

    @property
    def inputs(self) -> Sequence[Port]:
        """See the class."""
        ...

    @property
    def outputs(self) -> Sequence[Port]:
        """See the class."""
        ...

    @property
    def providers(self) -> Sequence[str]:
        """See the class."""
        ...

    def allocate_host(self, shape: Shape, dtype: np.dtype[Any]) -> np.ndarray:
        """Return host memory the device copies from and to quickly; of undefined content."""
        ...

    def allocate_device(self, port: Port, shape: Shape, host: np.ndarray) -> Any:
        """Return a device buffer for an input that is staged in `host`; for strings that is `host` itself."""
        ...

    def copy_in(self, buffer: Any, host: np.ndarray) -> None:
        """Fill a device buffer from host memory; done when it returns."""
        ...

    def bind(self, inputs: Mapping[str, Any], outputs: Mapping[str, np.ndarray]) -> Any:
        """Bind every input to its device buffer, and outputs to host memory; an output not named is allocated by every run."""
        ...

    def run(self, binding: Any, *, shrink: bool) -> None:
        """Run the graph on bound buffers; with `shrink`, give back what the device's arena does not need any more."""
        ...

    def copy_out(self, binding: Any) -> list[np.ndarray]:
        """Return the outputs of the last run; the next run with the same binding may overwrite them."""
        ...


@dataclass
class _Bound:
    """Buffers of one batch shape, and the binding that ties them to the graph."""

    staged: dict[str, np.ndarray]
    buffers: dict[str, Any]
    binding: Any
    outputs_bound: bool = False


@dataclass
class _Instance:
    """A binding set: used by one run at a time. The first entry of `bound` is the one used longest ago."""

    bound: OrderedDict[Key, _Bound] = field(default_factory=OrderedDict)


class GpuExecutor:
    """An `Executor` on a `Backend`. `run` may be called from several threads; `options.instances` of them run at the same time.

    A batch of n rows is padded with copies of its last row to the smallest bucket that holds it, and the answer is cut back to n rows. A
    graph whose rows depend on each other would see the padding: `pack` and the server replay samples in batches of several sizes and
    refuse a package for which that matters.

    Args:
        backend: The device.
        options: Buckets, instances and bounds.

    Attributes:
        input_names: Names of the graph's inputs.
        output_names: Names of its outputs.
        providers: What runs it.
        bucket_sizes: Batch sizes that are padded to, ascending; empty when batches run as they come.
        evictions: Bindings dropped because there were more than `options.bindings`.
    """

    def __init__(self, backend: Backend, options: GpuOptions | None = None) -> None:
        self._options = options or GpuOptions()
        self._backend = backend
        self._inputs = tuple(backend.inputs)
        self.input_names = tuple(port.name for port in self._inputs)
        self.output_names = tuple(port.name for port in backend.outputs)
        self.providers = tuple(backend.providers)
        self.bucket_sizes = self._options.sizes()
        self.evictions = 0
        self._largest_warmed = 0
        self._free: queue.SimpleQueue[_Instance] = queue.SimpleQueue()
        for _ in range(self._options.instances):
            self._free.put(_Instance())

    @property
    def warm_up_sizes(self) -> tuple[int, ...]:
        """Batch sizes to run before the first caller, in this order, each `warm_up_runs` times.

        The largest comes first, so that the arena has room for every other; then the smallest, between the two of which TensorRT has
        seen the whole range and compiles no more.
        """
        sizes = self.bucket_sizes
        return sizes if len(sizes) < 2 else (sizes[-1], sizes[0], *sizes[1:-1])

    @property
    def warm_up_runs(self) -> int:
        """Runs of one size that reach every binding set twice: once to learn the outputs' shapes, once as every later run will be."""
        return 2 * self._options.instances

    def bucket_of(self, rows: int) -> int:
        """Return the batch size that `rows` rows run as: the smallest bucket that holds them, else their own number."""
        return next((size for size in self.bucket_sizes if size >= rows), rows)

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """See `Executor.run`."""
        rows, key = self._shapes(feeds)
        with self._instance() as instance:
            try:
                return self._run(instance, feeds, rows, key)
            except Exception as error:
                instance.bound.pop(key, None)  # what failed once is built anew
                if isinstance(error, ExecutionError):
                    raise
                raise ExecutionError(f"the graph failed to run: {first_line(error)}") from error

    def warm_up(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Run `feeds` on every binding set, as `warm_up_runs` says, and take their size for usual.

        Raises:
            ExecutionError: As `run`.
        """
        for _ in range(self.warm_up_runs):
            self.run(feeds)
        self._largest_warmed = max(self._largest_warmed, self._bytes(self._shapes(feeds)[1]))

    # --- shapes -----------------------------------------------------------------------------------------------------

    def _shapes(self, feeds: Mapping[str, np.ndarray]) -> tuple[int | None, Key]:
        """Return how many rows come in (None: no common number, nothing is padded) and the shapes they run as.

        Raises:
            ExecutionError: An input is missing, unknown or of another element type than the graph's.
        """
        if feeds.keys() != set(self.input_names):
            raise ExecutionError(f"the graph's inputs are {', '.join(self.input_names)}; it was fed {', '.join(feeds) or 'nothing'}")
        for port in self._inputs:
            if feeds[port.name].dtype != port.dtype and not (port.is_text and feeds[port.name].dtype.kind == "U"):
                raise ExecutionError(f"input {port.name!r} has element type {feeds[port.name].dtype}; the graph's is {port.dtype}")
        shapes = [feeds[name].shape for name in self.input_names]
        counts = {shape[0] if shape else None for shape in shapes}
        rows = counts.pop() if len(counts) == 1 else None
        if not rows:
            return None, tuple(shapes)
        bucket = self.bucket_of(rows)
        return rows, tuple((bucket, *shape[1:]) for shape in shapes)

    def _bytes(self, key: Key) -> int:
        return sum(math.prod(shape) * port.dtype.itemsize for port, shape in zip(self._inputs, key, strict=True))

    def _is_oversized(self, rows: int | None, key: Key) -> bool:
        """Whether a batch is so much larger than usual that its memory should not stay taken."""
        if rows is not None and rows > self._options.largest:
            return True
        return 0 < self._largest_warmed * OVERSIZED < self._bytes(key)

    # --- running ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _instance(self) -> Iterator[_Instance]:
        """Lend a binding set; they go round, so that warming up in one thread reaches all of them."""
        try:
            instance = self._free.get(timeout=INSTANCE_TIMEOUT_S)
        except queue.Empty as error:
            raise ExecutionError(f"no execution on the GPU ended within {INSTANCE_TIMEOUT_S:g} s") from error
        try:
            yield instance
        finally:
            self._free.put(instance)

    def _run(self, instance: _Instance, feeds: Mapping[str, np.ndarray], rows: int | None, key: Key) -> list[np.ndarray]:
        oversized = self._is_oversized(rows, key)
        bound = self._allocate(key) if oversized else self._bound(instance, key)
        for name in self.input_names:
            _stage(bound.staged[name], feeds[name], rows)
        for name in self.input_names:
            self._backend.copy_in(bound.buffers[name], bound.staged[name])
        self._backend.run(bound.binding, shrink=oversized and self._options.arena_shrink)
        results = self._backend.copy_out(bound.binding)
        size = None if rows is None else key[0][0]
        answers = [_rows_of(result, rows, size) for result in results]
        if not (oversized or bound.outputs_bound):
            self._bind_outputs(bound, results, size)
        return answers

    def _bound(self, instance: _Instance, key: Key) -> _Bound:
        """Return the binding for these shapes, made if need be; the one used longest ago leaves when there are too many."""
        bound = instance.bound.get(key)
        if bound is None:
            while len(instance.bound) >= self._options.bindings:
                instance.bound.popitem(last=False)
                self.evictions += 1
            bound = instance.bound[key] = self._allocate(key)
        instance.bound.move_to_end(key)
        return bound

    def _allocate(self, key: Key) -> _Bound:
        shapes = list(zip(self._inputs, key, strict=True))
        staged = {port.name: self._backend.allocate_host(shape, port.dtype) for port, shape in shapes}
        buffers = {port.name: self._backend.allocate_device(port, shape, staged[port.name]) for port, shape in shapes}
        return _Bound(staged, buffers, self._backend.bind(buffers, {}))

    def _bind_outputs(self, bound: _Bound, results: Sequence[np.ndarray], rows: int | None) -> None:
        """Give outputs a place of their own from the second run on, where the first has shown that their shape is as declared."""
        bound.outputs_bound = True
        places: dict[str, np.ndarray] = {}
        for port, result in zip(self._backend.outputs, results, strict=True):
            shape = None if rows is None or port.is_text else port.fixed_rows(rows)
            if shape is not None and shape == result.shape and result.dtype == port.dtype and result.size:
                places[port.name] = self._backend.allocate_host(shape, port.dtype)
        if places:
            bound.binding = self._backend.bind(bound.buffers, places)


def _stage(staged: np.ndarray, feed: np.ndarray | Rows, rows: int | None) -> None:
    """Copy a feed into its staging buffer and repeat its last row to the end of it."""
    place = staged if rows is None else staged[:rows]
    if isinstance(feed, Rows):
        feed.write(place)
    else:
        place[...] = feed
    if rows is not None and len(staged) > rows:
        staged[rows:] = staged[rows - 1]


def _rows_of(result: np.ndarray, rows: int | None, size: int | None) -> np.ndarray:
    """Return the rows that were asked for, as an array of their own; what is not one row per padded row stays whole."""
    if rows is not None and result.ndim and len(result) == size:
        result = result[:rows]
    return result.copy()


# --- ONNX Runtime -----------------------------------------------------------------------------------------------------


class _Binding:
    """What a run needs: ONNX Runtime's IO binding or, for a graph that reads strings, its feeds.

    Attributes:
        io: The IO binding; None for a graph that reads strings, which the Python package cannot bind.
        inputs: Device buffers, or feeds, by name; held so that they live as long as the binding.
        outputs: Host memory by name; held for the same reason.
        results: What the last run returned, without an IO binding.
    """

    def __init__(self, io: Any, inputs: Mapping[str, Any], outputs: Mapping[str, np.ndarray]) -> None:
        self.io = io
        self.inputs = dict(inputs)
        self.outputs = dict(outputs)
        self.results: list[np.ndarray] = []


class OrtBackend:
    """`Backend` on an ONNX Runtime session by IO binding.

    A graph that reads strings runs by `session.run`: ONNX Runtime has no strings on a GPU, and its Python package cannot bind them on the
    CPU either. Such a graph's other inputs are copied by ONNX Runtime. Strings that a graph only returns are bound on the CPU.

    Args:
        session: The session; it may be used by several runs at once.
        device: Where inputs are put.
        device_id: Which of these devices.
        memory: Where staging buffers come from.
    """

    def __init__(self, session: Any, device: Literal["cpu", "cuda"], device_id: int = 0, memory: cuda.HostMemory | None = None) -> None:
        self._session = session
        self._device = device
        self._device_id = device_id
        self._memory = memory or cuda.PageableMemory()
        self.inputs = tuple(_port(i) for i in session.get_inputs())
        self.outputs = tuple(_port(o) for o in session.get_outputs())
        self.providers = tuple(session.get_providers())
        self._reads_text = any(port.is_text for port in self.inputs)
        self._shrink = ort.RunOptions()
        arena = "cpu:0" if device == "cpu" else f"gpu:{device_id}"
        self._shrink.add_run_config_entry("memory.enable_memory_arena_shrinkage", arena)

    def allocate_host(self, shape: Shape, dtype: np.dtype[Any]) -> np.ndarray:
        """See `Backend.allocate_host`."""
        return self._memory.empty(shape, dtype)

    def allocate_device(self, port: Port, shape: Shape, host: np.ndarray) -> Any:
        """See `Backend.allocate_device`; a graph that reads strings keeps all its inputs where they are staged."""
        if self._reads_text:
            return host
        return ort.OrtValue.ortvalue_from_shape_and_type(list(shape), port.dtype, self._device, self._device_id)

    def copy_in(self, buffer: Any, host: np.ndarray) -> None:
        """See `Backend.copy_in`."""
        if buffer is not host:
            buffer.update_inplace(host)

    def bind(self, inputs: Mapping[str, Any], outputs: Mapping[str, np.ndarray]) -> _Binding:
        """See `Backend.bind`."""
        if self._reads_text:
            return _Binding(None, inputs, {})
        io = self._session.io_binding()
        for name, buffer in inputs.items():
            io.bind_ortvalue_input(name, buffer)
        for port in self.outputs:
            place = outputs.get(port.name)
            if place is None:
                io.bind_output(port.name, "cpu")
            else:
                io.bind_output(port.name, "cpu", 0, place.dtype, list(place.shape), place.ctypes.data)
        return _Binding(io, inputs, outputs)

    def run(self, binding: _Binding, *, shrink: bool) -> None:
        """See `Backend.run`."""
        options = self._shrink if shrink else None
        if binding.io is None:
            binding.results = self._session.run([port.name for port in self.outputs], binding.inputs, options)
        else:
            self._session.run_with_iobinding(binding.io, options)

    def copy_out(self, binding: _Binding) -> list[np.ndarray]:
        """See `Backend.copy_out`."""
        if binding.io is None:
            return binding.results
        binding.io.synchronize_outputs()
        # Not `copy_outputs_to_cpu`: ONNX Runtime 1.31.1 crashes in it when an output holds strings.
        return [value.numpy() for value in binding.io.get_outputs()]


def cpu_backend(model: onnx.ModelProto, *, intra_op_threads: int = 1) -> OrtBackend:
    """Load a graph for the CPU behind the very calls a GPU gets; tests and the benchmark's self-check use it, the server does not.

    Raises:
        ExecutionError: The graph does not load.
    """
    return OrtBackend(_session(model, [("CPUExecutionProvider", {})], intra_op_threads), "cpu")


def cuda_backend(model: onnx.ModelProto, options: GpuOptions, *, intra_op_threads: int = 1) -> OrtBackend:
    """Load a graph on a GPU.

    Raises:
        ExecutionError: The graph does not load, or ONNX Runtime would run it without CUDA.
    """
    if options.tensorrt and not options.tf32:
        # TensorRT has no option for it in ONNX Runtime; NVIDIA's libraries all read this when they are first used.
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    if options.tensorrt and options.engine_cache is not None:
        try:
            options.engine_cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ExecutionError(f"the directory for TensorRT's engines cannot be made: {error}") from error
    cuda.preload_libraries()
    session = _session(model, provider_options(options), intra_op_threads)
    _require(session, cuda.PROVIDER)
    if options.tensorrt:
        _require(session, "TensorrtExecutionProvider")
    return OrtBackend(session, "cuda", options.device_id, cuda.host_memory())


def _session(model: onnx.ModelProto, providers: Sequence[tuple[str, dict[str, str]]], intra_op_threads: int) -> Any:
    try:
        session = ort.InferenceSession(model.SerializeToString(), session_options(intra_op_threads), providers=list(providers))
    except Exception as error:
        raise ExecutionError(f"the graph does not load in ONNX Runtime {ort.__version__}: {first_line(error)}") from error
    session.disable_fallback()  # a failing run is an error, never a new session on the CPU
    return session


def _require(session: Any, provider: str) -> None:
    """Refuse what ONNX Runtime does silently: go on without a provider whose libraries do not load."""
    if provider not in session.get_providers():
        raise ExecutionError(
            f"{provider} was asked for, but ONNX Runtime {ort.__version__} could not load it (its reason is on standard error); "
            "install NVIDIA's libraries for it (docs/gpu.md) or choose device=cpu"
        )


def _port(node: Any) -> Port:
    dtype = _DTYPES.get(node.type)
    if dtype is None:
        raise ExecutionError(f"{node.name!r} is a {node.type}, which cannot be passed to a GPU")
    return Port(node.name, dtype, tuple(node.shape))
