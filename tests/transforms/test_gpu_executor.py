"""The rules of the GPU executor, on a backend that writes down what it is asked to do: buckets, order, eviction, shrinking."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest
from gpu_models import FakeBackend
from samegraph_transforms import gpu
from samegraph_transforms.errors import ExecutionError
from samegraph_transforms.gpu import GpuExecutor, GpuOptions


def rows(n: int, start: float = 1.0) -> dict[str, np.ndarray]:
    """Return n rows whose first column counts up from `start`."""
    return {"x": np.stack([np.arange(start, start + n), np.zeros(n)], axis=1).astype(np.float32)}


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        (GpuOptions(max_batch_size=1), (1,)),
        (GpuOptions(max_batch_size=64), (1, 2, 4, 8, 16, 32, 64)),
        (GpuOptions(max_batch_size=48), (1, 2, 4, 8, 16, 32, 48)),
        (GpuOptions(max_batch_size=32, bucket_sizes=(24, 8, 8, 100)), (8, 24, 32)),
        (GpuOptions(max_batch_size=32, buckets=False), ()),
    ],
    ids=["one", "power of two", "between", "chosen", "off"],
)
def test_buckets_are_powers_of_two_and_the_largest_batch(options: GpuOptions, sizes: tuple[int, ...]) -> None:
    """The largest batch always has a bucket of its own, and no bucket is larger."""
    assert GpuExecutor(FakeBackend(), options).bucket_sizes == sizes


def test_a_batch_runs_in_the_smallest_bucket_that_holds_it() -> None:
    """Padding is never more than it has to be; what no bucket holds runs as it is."""
    executor = GpuExecutor(FakeBackend(), GpuOptions(max_batch_size=12))
    assert [executor.bucket_of(n) for n in (1, 2, 3, 4, 5, 8, 9, 12, 13)] == [1, 2, 4, 4, 8, 8, 12, 12, 13]
    assert GpuExecutor(FakeBackend(), GpuOptions(buckets=False)).bucket_of(3) == 3


def test_a_run_stages_copies_runs_and_copies_back_in_this_order() -> None:
    """The first run of a shape allocates and binds; the second gives outputs their place; from then on nothing is made any more."""
    backend = FakeBackend()
    executor = GpuExecutor(backend, GpuOptions(max_batch_size=4, instances=1))
    executor.run(rows(3))
    first = ["host (4, 2)", "device (4, 2)", "bind ['x'] []", "copy in [1.0, 2.0, 3.0, 3.0]", "run", "copy out"]
    assert backend.calls == [*first, "host (4, 2)", "bind ['x'] ['y']"]
    backend.calls.clear()
    executor.run(rows(4, 5.0))
    executor.run(rows(3, 1.0))
    assert backend.calls == ["copy in [5.0, 6.0, 7.0, 8.0]", "run", "copy out", "copy in [1.0, 2.0, 3.0, 3.0]", "run", "copy out"]


def test_padding_repeats_the_last_row_and_never_reaches_the_answer() -> None:
    """Rows out are rows in, whatever the batch before left in the buffers."""
    executor = GpuExecutor(FakeBackend(), GpuOptions(max_batch_size=8, instances=1))
    for n in (8, 5, 7, 6, 1, 8):
        (answer,) = executor.run(rows(n, 10.0 * n))
        assert answer[:, 0].tolist() == [2 * (10.0 * n + i) for i in range(n)]


def test_answers_stay_as_they_are_when_the_buffers_are_used_again() -> None:
    """A caller owns what it was given: the next batch does not write into it."""
    executor = GpuExecutor(FakeBackend(), GpuOptions(max_batch_size=2, instances=1))
    kept = [executor.run(rows(2, float(i)))[0] for i in range(5)]
    assert [answer[0, 0] for answer in kept] == [2.0 * i for i in range(5)]


def test_the_binding_used_longest_ago_is_evicted() -> None:
    """A set keeps as many bindings as it was told, and forgets the one least likely to come again."""
    backend = FakeBackend()
    executor = GpuExecutor(backend, GpuOptions(max_batch_size=4, instances=1, bindings=2))
    for n in (1, 2, 1, 4):  # 2 is the oldest when 4 comes
        executor.run(rows(n))
    assert executor.evictions == 1
    backend.calls.clear()
    executor.run(rows(1))
    assert "device (1, 2)" not in backend.calls
    executor.run(rows(2))
    assert "device (2, 2)" in backend.calls
    assert executor.evictions == 2


def test_warming_up_reaches_every_binding_set_and_leaves_nothing_to_allocate() -> None:
    """After the warm-up no batch of any size makes a buffer or a binding, whichever set it meets."""
    backend = FakeBackend()
    executor = GpuExecutor(backend, GpuOptions(max_batch_size=8, instances=2))
    for size in executor.warm_up_sizes:
        executor.warm_up(rows(size))
    assert sum(call.startswith("device") for call in backend.calls) == 2 * 4
    backend.calls.clear()
    for n in (*range(1, 9), *range(1, 9)):
        executor.run(rows(n))
    assert {call.partition(" ")[0] for call in backend.calls} == {"copy", "run"}
    assert executor.evictions == 0


def test_the_largest_bucket_is_warmed_first_and_the_smallest_next() -> None:
    """The arena then never grows twice, and TensorRT has seen the whole range of shapes after two builds."""
    assert GpuExecutor(FakeBackend(), GpuOptions(max_batch_size=16)).warm_up_sizes == (16, 1, 2, 4, 8)
    assert GpuExecutor(FakeBackend(), GpuOptions(max_batch_size=1)).warm_up_sizes == (1,)
    assert GpuExecutor(FakeBackend(), GpuOptions(buckets=False)).warm_up_sizes == ()


@pytest.mark.parametrize("shrinks", [True, False], ids=["on", "off"])
def test_an_oversized_batch_gives_its_memory_back_and_keeps_no_buffers(shrinks: bool) -> None:
    """A single huge batch must not hold device memory for ever; usual batches never pay for shrinking."""
    backend = FakeBackend()
    executor = GpuExecutor(backend, GpuOptions(max_batch_size=4, instances=1, arena_shrink=shrinks))
    executor.warm_up(rows(4))
    backend.runs.clear()
    for n in (4, 9, 9, 4):
        (answer,) = executor.run(rows(n))
        assert len(answer) == n
    assert backend.runs == [False, shrinks, shrinks, False]
    assert backend.calls.count("device (9, 2)") == 2


def test_runs_overlap_up_to_the_number_of_instances() -> None:
    """While one batch computes the next is copied: two runs are under way at once, a third waits for its turn."""
    backend = FakeBackend()
    backend.gate = threading.Event()
    executor = GpuExecutor(backend, GpuOptions(max_batch_size=2, instances=2))
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(executor.run, rows(2, float(i))) for i in range(3)]
        assert backend.running.acquire(timeout=10)
        assert backend.running.acquire(timeout=10)
        assert not backend.running.acquire(blocking=False)
        backend.gate.set()
        wait(futures, timeout=10)
    assert sorted(future.result()[0][0, 0] for future in futures) == [0.0, 2.0, 4.0]
    assert backend.calls.count("device (2, 2)") == 2


def test_a_hanging_device_is_an_error_after_a_bounded_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for ever for a run that does not end."""
    monkeypatch.setattr(gpu, "INSTANCE_TIMEOUT_S", 0.01)
    backend = FakeBackend()
    backend.gate = threading.Event()
    executor = GpuExecutor(backend, GpuOptions(max_batch_size=2, instances=1))
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(executor.run, rows(1))
        assert backend.running.acquire(timeout=10)
        with pytest.raises(ExecutionError, match=r"within 0\.01 s"):
            executor.run(rows(1))
        backend.gate.set()
        assert len(hanging.result(timeout=10)[0]) == 1


def test_what_the_device_raises_is_an_execution_error_and_the_set_serves_on() -> None:
    """A foreign exception is translated where it enters, its binding is made anew, and no binding set is lost."""
    backend = FakeBackend()
    executor = GpuExecutor(backend, GpuOptions(max_batch_size=2, instances=1))
    executor.run(rows(2))
    backend.fail = RuntimeError("CUDA failure 700: an illegal memory access\n  in gpu.cc")
    with pytest.raises(ExecutionError, match=r"failed to run: CUDA failure 700: an illegal memory access$") as caught:
        executor.run(rows(2))
    assert caught.value.__cause__ is backend.fail
    backend.fail = None
    backend.calls.clear()
    assert len(executor.run(rows(2))[0]) == 2
    assert backend.calls[0] == "host (2, 2)"


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "fed nothing"),
        ({"z": np.zeros((1, 2), np.float32)}, "inputs are x; it was fed z"),
        ({"x": np.zeros((1, 2), np.float64)}, "'x' has element type float64; the graph's is float32"),
    ],
    ids=["missing", "unknown", "element type"],
)
def test_wrong_feeds_are_refused_before_anything_is_copied(feeds: dict[str, np.ndarray], message: str) -> None:
    """ONNX Runtime's in-place copy does not look at element types, so bytes of another type must never reach it."""
    backend = FakeBackend()
    with pytest.raises(ExecutionError, match=message):
        GpuExecutor(backend).run(feeds)
    assert backend.calls == []


@pytest.mark.parametrize(
    "wrong", [{"instances": 0}, {"bindings": 0}, {"max_batch_size": 0}, {"bucket_sizes": ()}, {"bucket_sizes": (0, 4)}]
)
def test_options_out_of_bounds_are_refused_by_name(wrong: dict[str, int]) -> None:
    """The message names the option."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GpuOptions(**wrong)  # type: ignore[arg-type]
