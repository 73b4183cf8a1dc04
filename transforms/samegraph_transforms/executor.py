"""Run ONNX graphs: the one place that touches ONNX Runtime, so that packing and serving execute alike."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
import onnxruntime as ort

from . import cuda
from .errors import EnvironmentUnfit, ExecutionError
from .weights import Weights

CPU: tuple[str, ...] = ("CPUExecutionProvider",)
CUDA: tuple[str, ...] = (cuda.PROVIDER, "CPUExecutionProvider")

#: Distributions that all install a top-level module called `onnxruntime`; two at once overwrite each other's files.
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-silicon", "ort-nightly")


class Executor(Protocol):
    """One loaded graph. `run` may be called from several threads at once."""

    @property
    def input_names(self) -> Sequence[str]:
        """Names of the graph's inputs."""
        ...

    @property
    def output_names(self) -> Sequence[str]:
        """Names of the graph's outputs, in the order `run` returns them."""
        ...

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run the graph once.

        Args:
            feeds: One array per input name.

        Returns:
            One array per output, in order.

        Raises:
            ExecutionError: The runtime refused the inputs or failed.
        """
        ...


class OrtExecutor:
    """An ONNX Runtime session with the options every stage runs with.

    One intra-op thread by default: parallelism comes from concurrent `run` calls on one session, which keeps sums in one
    order (threads change the last bits of tree ensembles) and the weights in memory once.

    Args:
        model: The graph, in memory or as a path (a path lets external data be found).
        intra_op_threads: Threads inside one `run`; 1 keeps results independent of the machine's core count.
        providers: ONNX Runtime execution providers in order of preference.
        weights: Holds what was cut out of `model`, and gives it up; None when nothing was.

    Raises:
        ExecutionError: The graph does not load.
    """

    def __init__(
        self, model: onnx.ModelProto | Path, *, intra_op_threads: int = 1, providers: Sequence[str] = CPU, weights: Weights | None = None
    ) -> None:
        options = session_options(intra_op_threads)
        with _source(model, weights) as source:
            try:
                self._session = ort.InferenceSession(source, sess_options=options, providers=list(providers))
            except Exception as error:
                raise ExecutionError(f"the graph does not load in ONNX Runtime {ort.__version__}: {first_line(error)}") from error
        self.input_names: tuple[str, ...] = tuple(i.name for i in self._session.get_inputs())
        self.output_names: tuple[str, ...] = tuple(o.name for o in self._session.get_outputs())
        self._outputs = list(self.output_names)
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """See `Executor.run`."""
        try:
            return self._session.run(self._outputs, feeds)  # type: ignore[no-any-return]
        except Exception as error:
            raise ExecutionError(f"the graph failed to run: {first_line(error)}") from error

    def give_back(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Run once and hand the memory that larger runs before it left in the session's arena back.

        An arena only grows: a single batch of 32 images keeps 300 MB.

        Raises:
            ExecutionError: As `run`.
        """
        options = ort.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        try:
            self._session.run(self._outputs, feeds, options)
        except Exception as error:
            raise ExecutionError(f"the graph failed to run: {first_line(error)}") from error


def _source(model: onnx.ModelProto | Path, weights: Weights | None) -> AbstractContextManager[bytes | str]:
    if isinstance(model, Path):
        return nullcontext(os.fspath(model))
    return nullcontext(model.SerializeToString()) if weights is None else weights.whole(model)


def available_providers(device: str) -> tuple[str, ...]:
    """Choose execution providers for `device`.

    Args:
        device: `cpu`, `cuda` (an error without a GPU) or `auto` (a GPU when one is there and ONNX Runtime can use it).

    Returns:
        Provider names for ONNX Runtime.

    Raises:
        EnvironmentUnfit: `cuda` was asked for and cannot be had.
    """
    if device == "cpu":
        return CPU
    present = gpu_present() and cuda.usable()
    if not present and device == "cuda":
        raise EnvironmentUnfit(
            "device=cuda was asked for, but there is no NVIDIA device or ONNX Runtime cannot use it (what it misses is on standard error); "
            "use device=auto or cpu"
        )
    return CUDA if present else CPU


def gpu_present() -> bool:
    """Whether this machine has an NVIDIA device and the installed ONNX Runtime was built for one."""
    # The GPU wheel lists its provider on machines without a GPU too, and complains loudly when it is tried there.
    return cuda.PROVIDER in ort.get_available_providers() and Path("/dev/nvidiactl").exists()


def check_environment() -> str:
    """Check that exactly one distribution provides ONNX Runtime and return its name.

    Raises:
        EnvironmentUnfit: None or several are installed (they share files, and the last one installed wins silently).
    """
    found = [name for name in _DISTRIBUTIONS if _installed(name)]
    if len(found) != 1:
        what = (
            "no ONNX Runtime distribution is installed"
            if not found
            else f"several ONNX Runtime distributions are installed ({', '.join(found)})"
        )
        raise EnvironmentUnfit(
            f"{what}; keep exactly one: `pip uninstall {' '.join(_DISTRIBUTIONS[:2])}` and install samegraph-transforms again"
        )
    return found[0]


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def session_options(intra_op_threads: int) -> ort.SessionOptions:
    """Return the options every session runs with, on every device."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Errors reach the caller as exceptions. Written to standard error too, they would keep an event loop waiting for whoever reads it.
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # an idle server burns no CPU
    return options


def first_line(error: BaseException) -> str:
    """Return the first line of what a foreign exception says; the rest is C++ places."""
    text = str(error).strip().splitlines()
    return text[0][:400] if text else type(error).__name__
