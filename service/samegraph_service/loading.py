"""Load one version: read and verify the package, replay its golden samples on the device it will serve from, warm it up.

Runs on the threads of `loaders`, beside the serving of everything else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from samegraph_transforms import divergence, golden
from samegraph_transforms.baseline import Baseline
from samegraph_transforms.draft import GoldenSample
from samegraph_transforms.errors import ExecutionError, InputError, NotExact, SamegraphError
from samegraph_transforms.gpu import GpuOptions
from samegraph_transforms.manifest import BINARY_KINDS
from samegraph_transforms.package import Package, open_version
from samegraph_transforms.ragged import ShapeKey
from samegraph_transforms.runtime import Item, PackageRuntime
from samegraph_transforms.signature import Row
from samegraph_transforms.wire import decode_request

from .cost import CostModel, ShapedCost, cost_model
from .errors import NotReady

#: Longest time spent on measuring execution times at load, in seconds.
WARM_UP_S = 0.25
#: What a load is made of, in order.
PHASES = ("digest", "item_stage", "session", "golden", "warm_up")
#: Golden samples kept in memory to be shown as examples, and the largest body one may have.
SHOWN_EXAMPLES = 8
SHOWN_EXAMPLE_BYTES = 32768


@dataclass(frozen=True)
class LoadOptions:
    """How versions are loaded.

    Attributes:
        providers: Execution providers of the batch stages.
        intra_op_threads: Threads inside one execution.
        kernels: Whether host libraries may stand in for ONNX bodies.
        max_batch_size: Caps the package's own.
        memory_budget_bytes: Most bytes of packages loaded at once.
        max_image_bytes: Largest encoded image; a field may state less.
        max_pixels: Most pixels of an image; a field may state fewer.
        gpu: How batch stages run on a GPU; None on the CPU.
        spread: Runs the executions of a proof; `map` one after another.
    """

    providers: Sequence[str]
    intra_op_threads: int
    kernels: Literal["auto", "off"]
    max_batch_size: int | None
    memory_budget_bytes: int
    max_image_bytes: int
    max_pixels: int
    gpu: GpuOptions | None = None
    spread: golden.Spread = map


@dataclass(frozen=True)
class Loaded:
    """A version that passed.

    Attributes:
        package: What was read.
        runtime: Ready to run.
        cost: Execution times seen in the warm-up.
        max_batch_size: Largest batch it will be given.
        bytes: Size of its graphs and weights.
        golden_samples: How many samples were replayed.
        examples: The first small ones of them, without what lies between request and answer.
        max_ulp: Largest distance from the training code among them.
        phases: How long each of `PHASES` took, in seconds.
        canary: An instance that is known to run, after the item stage; None when there was none to try.
        baseline: Statistics of its training rows; None when its package has none.
    """

    package: Package
    runtime: PackageRuntime
    cost: CostModel
    max_batch_size: int
    bytes: int
    golden_samples: int
    examples: Sequence[GoldenSample]
    max_ulp: int
    phases: Mapping[str, float]
    canary: Item | None = None
    baseline: Baseline | None = None

    @property
    def seconds(self) -> float:
        """How long all this took."""
        return sum(self.phases.values())


class _Stopwatch:
    """Seconds by phase: what passed since the phase before ended."""

    def __init__(self) -> None:
        self.phases = dict.fromkeys(PHASES, 0.0)
        self._since = time.perf_counter()

    def lap(self, phase: str, *, other: str = "", of_it: float = 0.0) -> None:
        """Count the time since the last lap to `phase`, but for the seconds `of_it` that were `other`."""
        now = time.perf_counter()
        self.phases[phase] += now - self._since - of_it
        if other:
            self.phases[other] += of_it
        self._since = now


def load_version(repository: Path, name: str, version: int, options: LoadOptions, budget_left: int) -> Loaded:
    """Load, prove and warm one version.

    Args:
        repository: The model repository.
        name: Model name.
        version: Version number.
        options: How.
        budget_left: Bytes of the memory budget that are free.

    Raises:
        SamegraphError: Why the version cannot be served.
    """
    watch = _Stopwatch()
    package = _bounded(open_version(repository, name, version), options)
    size = _weight_bytes(package)
    if size > budget_left:
        raise NotReady(f"memory budget: the package needs {size} bytes and {budget_left} of {options.memory_budget_bytes} are free")
    baseline = package.baseline()
    watch.lap("digest")
    samples = golden.read_samples(package.golden_dir()) if package.manifest.golden_samples else []
    watch.lap("golden")
    max_batch_size = min(package.manifest.batching.max_batch_size, options.max_batch_size or package.manifest.batching.max_batch_size)
    runtime, max_ulp = _proven_runtime(package, samples, options, max_batch_size, watch)
    cost = cost_model(runtime.batch_sizes, None if runtime.shapes is None else runtime.shapes.elements)
    canary = _warm_up(runtime, _rows(runtime, samples), max_batch_size, cost)
    watch.lap("warm_up")
    examples = [replace(s, values={}) for s in samples if len(s.body) <= SHOWN_EXAMPLE_BYTES][:SHOWN_EXAMPLES]
    return Loaded(package, runtime, cost, max_batch_size, size, len(samples), examples, max_ulp, watch.phases, canary, baseline)


def _bounded(package: Package, options: LoadOptions) -> Package:
    """Put the server's own bounds on binary fields that state none or looser ones."""
    fields = [
        f
        if f.kind not in BINARY_KINDS
        else f.model_copy(
            update={
                "max_bytes": min(f.max_bytes or options.max_image_bytes, options.max_image_bytes),
                "max_pixels": min(f.max_pixels or options.max_pixels, options.max_pixels) if f.kind == "image" else None,
            }
        )
        for f in package.manifest.fields
    ]
    return replace(package, manifest=package.manifest.model_copy(update={"fields": fields}))


def _proven_runtime(
    package: Package, samples: Sequence[GoldenSample], options: LoadOptions, max_batch_size: int, watch: _Stopwatch
) -> tuple[PackageRuntime, int]:
    """Load merged if that still answers as promised, else as a chain; refuse when neither does."""
    failure: NotExact | ExecutionError | None = None
    for merge in (True, False):
        try:
            runtime = _runtime(package, options, merge)
            watch.lap("session", other="item_stage", of_it=runtime.item_stage_s)
            max_ulp = _replay(package, runtime, samples, max_batch_size, options.spread)
            watch.lap("golden")
            return runtime, max_ulp
        except (NotExact, ExecutionError) as error:
            watch.lap("golden")
            failure = failure or error
    assert failure is not None
    raise failure


def _runtime(package: Package, options: LoadOptions, merge: bool) -> PackageRuntime:
    return PackageRuntime.load(
        package,
        intra_op_threads=options.intra_op_threads,
        providers=options.providers,
        kernels=options.kernels,
        merge=merge,
        gpu=options.gpu,
    )


def _replay(package: Package, runtime: PackageRuntime, samples: Sequence[GoldenSample], max_batch_size: int, spread: golden.Spread) -> int:
    """Replay the golden samples alone, in pairs and in full batches; return the largest distance in ULP.

    Only answers are compared while they are right; when one is not, that sample runs again stage by stage to name tensor and node.
    """
    if not samples:
        return 0
    sizes = sorted({1, min(2, max_batch_size), max_batch_size})
    results = golden.replay(runtime, samples, sizes, intermediates=False, spread=spread)
    for result in results:
        if not result.passed:
            again = [s for s in samples if s.name == result.sample]
            apart = golden.replay(runtime, again, [1], intermediates=True)
            first = next((r for r in apart if not r.passed), result)
            guilty = divergence.diagnose(
                package, again, [first], golden.promised(package.manifest, golden.runtime_profile(runtime)), budget_s=2
            )
            raise NotExact(
                f"{first.reason}. First to diverge: {guilty}" if guilty is not None else first.reason,
                sample=first.sample,
                tensor=first.failure.tensor if first.failure else "",
                detail=first.failure.detail if first.failure else "",
                node=guilty.node if guilty is not None else "",
                kind=guilty.kind if guilty is not None else "",
            )
    return max((c.max_ulp for result in results for c in result.comparisons), default=0)


@dataclass(frozen=True)
class Check:
    """What came of replaying a version's golden samples.

    Attributes:
        at: When, in seconds since 1970.
        passed: Whether every answer was within the promise; also when nothing could be checked, see `unchecked`.
        max_ulp: Largest distance from the training code.
        reason: The first difference, or why nothing could be checked.
        unchecked: Whether the samples themselves could not be read, which says nothing about the answers.
    """

    at: float
    passed: bool
    max_ulp: int
    reason: str = ""
    unchecked: bool = False


def check_again(loaded: Loaded, now: Callable[[], float]) -> Check:
    """Replay the golden samples of a version that serves, one row at a time, through the very sessions that answer.

    A row at a time leaves the device to callers between any two, and takes no more memory than one request. The samples are read from
    disk again, where their digests are checked: a sample that somebody changed is no reason to doubt the answers.

    Args:
        loaded: The version.
        now: Seconds since 1970.
    """
    package, most = loaded.package, 0
    try:
        for name in (golden.REQUESTS, golden.EXPECTED):  # the bodies have their digests for names
            package.read_file(f"golden/{name}")
        samples = golden.read_samples(package.golden_dir())
    except (SamegraphError, OSError) as error:
        return Check(now(), passed=True, max_ulp=0, reason=str(error), unchecked=True)
    for sample in samples:
        for result in golden.replay(loaded.runtime, [sample], [1], intermediates=False):
            if not result.passed:
                return Check(now(), passed=False, max_ulp=result.max_ulp, reason=result.reason)
            most = max(most, result.max_ulp)
    return Check(now(), passed=True, max_ulp=most)


def _rows(runtime: PackageRuntime, samples: Sequence[GoldenSample]) -> list[Row]:
    rows: list[Row] = []
    for sample in samples:
        rows.extend(row for row in decode_request(runtime.signature, sample.headers, sample.body).rows if not isinstance(row, InputError))
    return rows or _zero_rows(runtime)


def _zero_rows(runtime: PackageRuntime) -> list[Row]:
    """Make one row of zeros for a model without golden samples; [] when its inputs cannot be made up."""
    values: list[object] = []
    for field in runtime.signature.fields:
        if field.kind != "tensor" or field.graph_dtype == "string":
            return []
        values.append(np.zeros([d or 1 for d in field.shape or []], dtype=field.graph_dtype))
    return [tuple(values)]


def _warm_up(runtime: PackageRuntime, rows: Sequence[Row], max_batch_size: int, cost: CostModel) -> Item | None:
    """Run batches of growing size until time is up, so that the first caller meets warm memory and a known cost.

    What a GPU keeps buffers for is run whole before, however long that takes: TensorRT compiles then. So is every bucket of ragged
    lengths, with one row and with the largest batch.

    Returns:
        An instance that ran, or None when there was none to try.
    """
    if not rows:
        return None
    items = _prepared(runtime, rows[:max_batch_size])
    runtime.warm_up(items)
    shapes = list(runtime.warm_shapes(items))
    for key, fitting in shapes if len(shapes) > 1 else ():
        for size in sorted({1, max_batch_size}):
            _measure(runtime, key, fitting, size, cost, runs=2)
    runtime.give_back(items[:1])  # what the largest batches took until here; serving takes what it needs
    started = time.perf_counter()
    size = 1
    while True:
        before = time.perf_counter()
        for key, fitting in shapes:
            if not _measure(runtime, key, fitting, size, cost, runs=4, until=started + WARM_UP_S):
                return items[0]
        now = time.perf_counter()
        if size >= max_batch_size or now + 4 * (now - before) > started + WARM_UP_S:
            return items[0]
        size = min(size * 4, max_batch_size)


def _prepared(runtime: PackageRuntime, rows: Sequence[Row]) -> list[Item]:
    """Run the item stage on some rows: all of them, or as many as half the time for the warm-up allows, at least one."""
    until = time.perf_counter() + WARM_UP_S / 2
    items: list[Item] = []
    for row in rows:
        items.append(runtime.prepare(row))
        if time.perf_counter() > until:
            break
    return items


def _measure(
    runtime: PackageRuntime, key: ShapeKey | None, items: Sequence[Item], size: int, cost: CostModel, *, runs: int, until: float = math.inf
) -> bool:
    """Run a batch a few times and take in how long all but the first took; return whether there is time left."""
    batch = [items[i % len(items)] for i in range(size)]
    for run in range(runs):
        started = time.perf_counter()
        runtime.run(runtime.collate(batch, key))
        seconds = time.perf_counter() - started
        if run > 0 and isinstance(cost, ShapedCost):
            cost.observe_shape(key, size, seconds)
        elif run > 0:
            cost.observe(size, seconds)
        if run > 0 and time.perf_counter() > until:
            return False
    return True


def _weight_bytes(package: Package) -> int:
    return sum(entry.bytes for name, entry in package.manifest.files.items() if not name.startswith("golden/"))
