"""What is asked of CUDA itself: whether it works here, and memory that its copy engine reads without a detour.

ONNX Runtime's Python package has no public way to its own pinned allocator (`OrtDevice.make` knows default memory only, and the
`memory_info` of `OrtValue.ortvalue_from_shape_and_type` wants a provider that is registered as a plug-in), so page-locked memory comes
from the CUDA runtime library that ONNX Runtime has loaded anyway.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import math
import weakref
from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

PROVIDER = "CUDAExecutionProvider"
#: Page-locked for every CUDA context, not only the calling thread's (cudaHostAllocPortable).
_PORTABLE = 1
#: Where the runtime library is looked for when ONNX Runtime does not say which one it was built with, newest first.
_MAJORS = (13, 12)


class CudaLibrary(Protocol):
    """The two functions of the CUDA runtime library that are used; both return 0 for success."""

    def cudaHostAlloc(self, address: Any, size: Any, flags: Any, /) -> int:  # noqa: N802 - CUDA's own name
        """Allocate page-locked host memory and store its address."""
        ...

    def cudaFreeHost(self, address: Any, /) -> int:  # noqa: N802 - CUDA's own name
        """Free what `cudaHostAlloc` gave."""
        ...


@cache
def usable() -> bool:
    """Whether ONNX Runtime can run a graph on the GPU of this machine; tried once, with a graph of one node.

    ONNX Runtime itself goes on silently on the CPU when a CUDA library is missing; its reason is on standard error.
    """
    if PROVIDER not in ort.get_available_providers():
        return False
    preload_libraries()
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "probe", value[:1], value[1:])
    probe = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    try:
        session = ort.InferenceSession(probe.SerializeToString(), providers=[PROVIDER])
        if PROVIDER not in session.get_providers():
            return False
        answer = session.run(None, {"x": np.ones(2, dtype=np.float32)})[0]
    except Exception:  # noqa: BLE001 - whatever ONNX Runtime or a driver raises, the answer is no
        return False
    return bool((answer == -1).all())


def preload_libraries() -> None:
    """Load the CUDA and cuDNN libraries that pip installed beside ONNX Runtime; those of the system need no help."""
    preload = getattr(ort, "preload_dlls", None)
    if preload is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find, and finding nothing is no error
            preload()


@cache
def runtime_library() -> CudaLibrary | None:
    """Return the CUDA runtime library, or None when there is none; the one ONNX Runtime has loaded is found first."""
    for name in (*(f"libcudart.so.{major}" for major in _majors()), "libcudart.so"):
        try:
            library = ctypes.CDLL(name)
            library.cudaHostAlloc.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_uint]
            library.cudaFreeHost.argtypes = [ctypes.c_void_p]
        except (OSError, AttributeError):
            continue
        return library
    return None


def built_with() -> str:
    """Return the CUDA version that ONNX Runtime was built with, for example `13.0`, or `unknown`."""
    try:
        from onnxruntime.capi import build_and_package_info
    except ImportError:
        return "unknown"
    return str(getattr(build_and_package_info, "cuda_version", "") or "unknown")


def _majors() -> tuple[int, ...]:
    built = built_with().partition(".")[0]
    return (int(built), *(major for major in _MAJORS if str(major) != built)) if built.isdigit() else _MAJORS


class HostMemory(Protocol):
    """Where staging buffers come from."""

    def empty(self, shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
        """Return an array of undefined content that the caller owns."""
        ...


class PageableMemory:
    """Ordinary memory."""

    def empty(self, shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
        """See `HostMemory.empty`."""
        return np.empty(shape, dtype=dtype)


class PageLockedMemory:
    """Memory the GPU reads and writes directly; ordinary memory when the system grants no more of it.

    Args:
        library: The CUDA runtime library.

    Attributes:
        refused: Arrays that had to do with ordinary memory.
    """

    def __init__(self, library: CudaLibrary) -> None:
        self._library = library
        self.refused = 0

    def empty(self, shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
        """See `HostMemory.empty`; the memory is freed with the last array that looks at it."""
        size = math.prod(shape) * dtype.itemsize
        address = ctypes.c_void_p()
        if dtype.hasobject or size == 0:
            return np.empty(shape, dtype=dtype)
        if self._library.cudaHostAlloc(ctypes.byref(address), size, _PORTABLE) != 0 or not address.value:
            self.refused += 1
            return np.empty(shape, dtype=dtype)
        block = (ctypes.c_char * size).from_address(address.value)
        # At exit the driver may be gone before the array: the process gives everything back then.
        weakref.finalize(block, self._library.cudaFreeHost, ctypes.c_void_p(address.value)).atexit = False
        return np.frombuffer(memoryview(block), dtype=dtype).reshape(shape)


def host_memory() -> HostMemory:
    """Return page-locked memory where there is a CUDA runtime library, else ordinary memory."""
    library = runtime_library()
    return PageableMemory() if library is None else PageLockedMemory(library)
