"""Golden samples: raw requests with the training code's answers, on disk and run again.

    golden/
      requests.jsonl     one line a sample: name, path, headers, SHA-256 of the body, and the names of its arrays
      blobs/<sha256>     request bodies, each once
      expected.npz       arrays `<line>/output/<name>` and `<line>/value/<name>`; no pickle, no compression, so the same samples give
                         the same bytes everywhere

`replay` sends the samples through a loaded package the way a server does, at several batch sizes, and compares.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import platform
import zipfile
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import numpy as np
import onnxruntime
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from . import half
from .draft import GoldenSample
from .errors import AuthoringError, DigestMismatch, ExecutionError, InputError, NotExact, PackageError
from .exactness import Comparison, Deciding, compare
from .manifest import DEFAULT_TOLERANCES, Manifest, Sha256, Tolerance
from .paths import open_plain
from .signature import Signature
from .wire import decode_request

if TYPE_CHECKING:
    from .ragged import ShapeKey, ShapePlan
    from .runtime import PackageRuntime

__all__ = [
    "Checker",
    "GoldenSample",
    "SampleResult",
    "default_batch_sizes",
    "device_profile",
    "golden_files",
    "processor",
    "promised",
    "read_samples",
    "replay",
    "runtime_profile",
    "unproven_buckets",
    "write_samples",
]

REQUESTS, EXPECTED, BLOBS = "requests.jsonl", "expected.npz", "blobs"
#: Golden samples a package should have; `pack` says so below it.
RECOMMENDED_SAMPLES = 32
MAX_NAME = 200
#: Most bytes of results of the item stage that a replay keeps from one batch size for the next.
KEPT_ITEM_BYTES = 128 << 20
#: `map`, or something like it that may work on several things at the same time; gives results in order.
Spread: TypeAlias = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


# --- on disk ---------------------------------------------------------------------------------------------------------


class _Request(BaseModel):
    """One line of requests.jsonl."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
    path: Annotated[str, Field(pattern=r"^/")]
    headers: dict[str, str]
    body: Sha256
    outputs: list[str]
    values: list[str]


def write_samples(directory: Path | str, samples: Sequence[GoldenSample]) -> None:
    """Write `samples` into `directory` (made if missing) in the golden format.

    Raises:
        AuthoringError: Two samples share a name, or an array has a type that cannot be kept.
    """
    directory = Path(directory)
    for name, data in golden_files(samples):
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def golden_files(samples: Sequence[GoldenSample]) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of every file of the golden format; the same samples give the same bytes.

    Raises:
        AuthoringError: Two samples share a name, or an array has a type that cannot be kept.
    """
    if not samples:
        return
    _check_names(samples)
    bodies = {hashlib.sha256(s.body).hexdigest(): s.body for s in samples}
    yield from ((f"{BLOBS}/{digest}", bodies[digest]) for digest in sorted(bodies))
    yield EXPECTED, _npz(samples)
    yield REQUESTS, b"".join(_request_line(s) for s in samples)


def _check_names(samples: Sequence[GoldenSample]) -> None:
    twice = [name for name, count in Counter(s.name for s in samples).items() if count > 1]
    if twice:
        raise AuthoringError(f"golden samples need distinct names; given twice: {', '.join(twice[:5])}")
    for sample in samples:
        if not 1 <= len(sample.name) <= MAX_NAME or not sample.path.startswith("/"):
            raise AuthoringError(f"golden sample {sample.name[:80]!r}: a name has 1 to {MAX_NAME} characters and a path starts with /")


def _request_line(sample: GoldenSample) -> bytes:
    line = {
        "name": sample.name,
        "path": sample.path,
        "headers": {key.lower(): value for key, value in sample.headers.items()},
        "body": hashlib.sha256(sample.body).hexdigest(),
        "outputs": list(sample.outputs),
        "values": list(sample.values),
    }
    return (json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n").encode()


def _npz(samples: Sequence[GoldenSample]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for i, sample in enumerate(samples):
            for kind, arrays in (("output", sample.outputs), ("value", sample.values)):
                for name, array in arrays.items():
                    member = zipfile.ZipInfo(f"{i}/{kind}/{name}.npy")  # its time stamp is the constant 1980-01-01
                    archive.writestr(member, _npy(array, f"golden sample {sample.name!r}: {name!r}"))
    return buffer.getvalue()


def _npy(array: np.ndarray, what: str) -> bytes:
    array = np.asarray(array)
    if array.dtype.kind in "OUT":
        array = _strings(array, what)
    elif array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise AuthoringError(f"{what} has dtype {array.dtype}; golden arrays hold floats, integers, booleans or strings")
    buffer = io.BytesIO()
    little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False, order="C")
    np.lib.format.write_array(buffer, little_endian, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _strings(array: np.ndarray, what: str) -> np.ndarray:
    values = array.ravel().tolist()
    for value in values:
        if not isinstance(value, str):
            raise AuthoringError(f"{what} holds {type(value).__name__} among strings; give every element the output's type")
        if value.endswith("\0"):
            raise AuthoringError(f"{what} holds a string that ends in a NUL character, which the file format cannot keep")
    return np.array(values, dtype=np.str_).reshape(array.shape)


def read_samples(directory: Path | str) -> list[GoldenSample]:
    """Read the golden samples in `directory`; string arrays come back as arrays of Python strings.

    Raises:
        PackageError: A file is missing or not in the format.
        DigestMismatch: A body is not what its name says.
    """
    directory = Path(directory)
    requests = [_parse_line(line, i, directory) for i, line in enumerate(_read(directory / REQUESTS).splitlines()) if line.strip()]
    try:
        with np.load(io.BytesIO(_read(directory / EXPECTED)), allow_pickle=False) as arrays:
            return [_sample(request, i, directory, arrays) for i, request in enumerate(requests)]
    except PackageError:
        raise
    except Exception as error:  # a damaged archive makes zipfile and NumPy raise a dozen unrelated classes
        raise PackageError(f"{directory / EXPECTED} does not hold the arrays that {REQUESTS} names: {error}") from error


def _parse_line(line: bytes, number: int, directory: Path) -> _Request:
    try:
        return _Request.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "line"
        raise PackageError(f"{directory / REQUESTS}, line {number + 1}: {place}: {first['msg']}") from error


def _sample(request: _Request, number: int, directory: Path, arrays: Mapping[str, np.ndarray]) -> GoldenSample:
    body = _read(directory / BLOBS / request.body)
    if hashlib.sha256(body).hexdigest() != request.body:
        raise DigestMismatch(f"{directory / BLOBS / request.body}: the content does not match the name; copy the samples again")
    return GoldenSample(
        name=request.name,
        path=request.path,
        headers=request.headers,
        body=body,
        outputs={name: _load(arrays[f"{number}/output/{name}"]) for name in request.outputs},
        values={name: _load(arrays[f"{number}/value/{name}"]) for name in request.values},
    )


def _load(array: np.ndarray) -> np.ndarray:
    return array.astype(object) if array.dtype.kind == "U" else array


def _read(path: Path) -> bytes:
    with os.fdopen(open_plain(path), "rb") as file:
        return file.read()


# --- which promise applies -------------------------------------------------------------------------------------------


@cache
def processor() -> str:
    """Return this machine's architecture and processor model, for example `x86_64, AMD EPYC 9B14`."""
    model = platform.processor()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "CPU part"):
                model = value.strip()
                break
    except OSError:
        pass  # not Linux: platform.processor() is what there is
    return f"{platform.machine()}, {model}" if model and model != platform.machine() else platform.machine()


def device_profile(manifest: Manifest, providers: Sequence[str]) -> str:
    """Return which promise applies here: `gpu`, `cpu.same` (same processor and ONNX Runtime as the proof) or `cpu.other`."""
    if any(p != "CPUExecutionProvider" for p in providers):
        return "gpu"
    proof = manifest.provenance
    same = proof.machine == processor() and proof.libraries.get("onnxruntime") == onnxruntime.__version__
    return "cpu.same" if same else "cpu.other"


def runtime_profile(runtime: PackageRuntime) -> str:
    """Return which promise applies to a loaded package: `gpu.half` when it computes in half precision, else as `device_profile`."""
    return half.PROFILE if runtime.half else device_profile(runtime.manifest, runtime.providers)


def promised(manifest: Manifest, profile: str) -> Tolerance:
    """Return the tolerance `manifest` promises for floats on `profile`; what it does not state is the project's default."""
    return manifest.tolerances.get(profile) or DEFAULT_TOLERANCES.get(profile, Tolerance())


# --- replay ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SampleResult:
    """One sample, run once at one batch size.

    Attributes:
        sample: Its name.
        batch_size: How many instances ran together.
        comparisons: One a tensor, in the order the data flows (intermediates before outputs).
        error: Why the sample could not be run at all.
        merged: Whether this ran the stages as one graph; otherwise one by one.
        padded: What its first padded instance was padded to, in words; empty when nothing was padded.
    """

    sample: str
    batch_size: int
    comparisons: tuple[Comparison, ...] = ()
    error: str | None = None
    merged: bool = False
    padded: str = ""

    @property
    def passed(self) -> bool:
        """Whether everything is within the promise."""
        return self.error is None and all(c.passed for c in self.comparisons)

    @property
    def failure(self) -> Comparison | None:
        """The first tensor that breaks the promise, in data-flow order."""
        return next((c for c in self.comparisons if not c.passed), None)

    @property
    def reason(self) -> str:
        """One line naming sample, tensor and difference; empty when it passed."""
        batch = f" (batch of {self.batch_size}{f', padded to {self.padded}' if self.padded else ''})" if self.batch_size else ""
        where = f"golden sample {self.sample!r}{batch}"
        if self.error is not None:
            return f"{where}: {self.error}"
        return "" if self.failure is None else f"{where}: tensor {self.failure.tensor!r}: {self.failure.detail}"

    @property
    def max_ulp(self) -> int:
        """Largest distance of a float from the reference, in ULP."""
        return max((c.max_ulp for c in self.comparisons), default=0)

    def raise_for_difference(self) -> None:
        """Raise NotExact when something is beyond the promise."""
        if not self.passed:
            failure = self.failure
            detail = self.error or (failure.detail if failure is not None else "")
            raise NotExact(self.reason, sample=self.sample, tensor=failure.tensor if failure is not None else "", detail=detail)


def default_batch_sizes(manifest: Manifest) -> tuple[int, ...]:
    """Return the batch sizes a proof runs: 1, 2 and the largest."""
    largest = manifest.batching.max_batch_size
    return tuple(sorted({1, min(2, largest), largest}))


def replay(
    runtime: PackageRuntime,
    samples: Sequence[GoldenSample],
    batch_sizes: Sequence[int] | None = None,
    *,
    profile: str | None = None,
    intermediates: bool = True,
    progress: Callable[[int, int], None] | None = None,
    spread: Spread = map,
) -> list[SampleResult]:
    """Run golden samples through a loaded package and compare with what training gave.

    The requests are decoded by the server's own code. At every batch size all samples run; a batch larger than all of them together
    is filled by taking them round again. Instances of different shapes run together as far as the server would let them, padded as it
    would pad them. At the largest batch size, every bucket of `batching.ragged` is then run with all samples that fit into it, so that
    instances of every length share executions with padding of every extent.

    Args:
        runtime: The loaded package.
        samples: What to run.
        batch_sizes: Instances an execution; None is `default_batch_sizes`.
        profile: Which promise to hold floats to; None finds the one that applies here.
        intermediates: Also run the stages one by one and compare the captured intermediates; a server that only wants to know whether
            its answers are right leaves this out.
        progress: Called with instances done and instances in all.
        spread: Runs the executions of a round: `map`, one after another, or the `map` of a thread pool, several at the same time as a
            server does.

    Returns:
        One result per sample, batch size and way of running, in that order of nesting from the outside: batch size, way, sample.
    """
    manifest = runtime.manifest
    checker = Checker(manifest, promised(manifest, profile or runtime_profile(runtime)))
    results, ready = _decode(runtime.signature, samples)
    if runtime.shapes is not None:
        failed, ready = _prepare(runtime, ready)
        results += failed
    sizes = list(batch_sizes) if batch_sizes is not None else list(default_batch_sizes(manifest))
    ways = _ways(runtime, intermediates)
    runs = [(size, way, _placements(ready, size)) for size in sizes for way in ways]
    runs += [(max(sizes), way, _placements(fitting, max(sizes))) for way, fitting in _bucket_proofs(runtime, ready)]
    total = sum(len(rows) for _, _, plan in runs for _, rows in plan)
    done = 0
    for size, way, plan in runs:
        for result, instances in _run(way, plan, size, checker, spread):
            results.append(result)
            done += instances
            if progress is not None:
                progress(done, total)
    return results


#: What a way runs: a row or, for packages whose rows differ in shape, a row after the item stage.
_Instance = tuple[Any, ...]
_Ready = list[tuple[GoldenSample, list[_Instance]]]
_Values = dict[str, np.ndarray]


@dataclass(frozen=True)
class _Way:
    """A way of running instances: stage by stage with every boundary value, or as the server does.

    Attributes:
        run: Instances of one group → the values of each, [1, ...].
        group: What instances must have in common to share an execution.
        padding: What an instance is padded to, in words; empty when it is not.
    """

    run: Callable[[Sequence[_Instance]], list[_Values]]
    outputs_only: bool
    merged: bool
    group: Callable[[_Instance], Hashable] = lambda _: None
    padding: Callable[[_Instance], str] = lambda _: ""


def _ways(runtime: PackageRuntime, intermediates: bool) -> list[_Way]:
    shapes = runtime.shapes
    if shapes is None:
        items = _Prepared(runtime)
        served = _Way(lambda rows: runtime.predict_each(items(rows)), outputs_only=True, merged=runtime.merged)
        traced = _Way(lambda rows: _apart(runtime.trace_items(items(rows)), len(rows)), outputs_only=False, merged=False)
    else:
        served = _Way(runtime.predict_each, outputs_only=True, merged=runtime.merged, group=shapes.key, padding=partial(_padding, shapes))
        traced = _Way(lambda items: _apart(runtime.trace_items(items), len(items)), outputs_only=False, merged=False, group=shapes.own_key)
    return [traced, served] if intermediates else [served]


class _Prepared:
    """Runs the item stage on rows, once for each as long as the results stay within bounds: it is the same at every batch size."""

    def __init__(self, runtime: PackageRuntime) -> None:
        self._runtime = runtime
        self._kept: dict[int, _Instance] = {}
        self._room = KEPT_ITEM_BYTES if runtime.item_plan is not None else 0

    def __call__(self, rows: Sequence[_Instance]) -> list[_Instance]:
        return [self._item(row) for row in rows]

    def _item(self, row: _Instance) -> _Instance:
        item = self._kept.get(id(row))  # rows outlive this object: the samples' plan holds them
        if item is None:
            item = self._runtime.prepare(row)
            size = sum(value.nbytes for value in item if isinstance(value, np.ndarray))
            if size < self._room:
                self._room -= size
                self._kept[id(row)] = item
        return item


def _bucket_proofs(runtime: PackageRuntime, ready: _Ready) -> Iterator[tuple[_Way, _Ready]]:
    """Yield for every shape bucket the way that pads to it, with the samples that fit."""
    shapes = runtime.shapes
    if shapes is None or not ready:
        return
    for key in shapes.bucket_keys(ready[0][1][0]):
        way = _Way(
            partial(runtime.predict_each, key=key), outputs_only=True, merged=runtime.merged, padding=partial(_padding, shapes, key=key)
        )
        yield way, [(sample, items) for sample, items in ready if all(shapes.fits(item, key) for item in items)]


def _padding(shapes: ShapePlan, item: _Instance, key: ShapeKey | None = None) -> str:
    key = key or shapes.key(item)
    return shapes.describe(key) if shapes.is_padded(item, key) else ""


def unproven_buckets(runtime: PackageRuntime, samples: Sequence[GoldenSample]) -> list[str]:
    """Return the shape buckets for which no sample shows that padding changes nothing: none is shorter, or none fits."""
    _, ready = _decode(runtime.signature, samples)
    if runtime.shapes is None or not ready:
        return []
    shapes = runtime.shapes
    _, prepared = _prepare(runtime, ready)
    items = [item for _, mine in prepared for item in mine]
    keys = shapes.bucket_keys(items[0]) if items else []
    return [shapes.describe(k) for k in keys if not any(shapes.fits(item, k) and shapes.is_padded(item, k) for item in items)]


def _apart(values: _Values, n: int) -> list[_Values]:
    return [{name: array[i : i + 1] for name, array in values.items()} for i in range(n)]


def _decode(signature: Signature, samples: Sequence[GoldenSample]) -> tuple[list[SampleResult], _Ready]:
    """Decode every request; return results for those that are refused, and the others with their rows."""
    refused: list[SampleResult] = []
    ready: _Ready = []
    for sample in samples:
        try:
            rows = decode_request(signature, sample.headers, sample.body).rows
        except InputError as error:
            refused.append(SampleResult(sample.name, 0, error=f"its request is refused: {error}"))
            continue
        bad = next((row for row in rows if isinstance(row, InputError)), None)
        if bad is not None:
            refused.append(SampleResult(sample.name, 0, error=f"its request is refused: {bad}"))
        else:
            ready.append((sample, [row for row in rows if not isinstance(row, InputError)]))
    return refused, ready


def _prepare(runtime: PackageRuntime, ready: _Ready) -> tuple[list[SampleResult], _Ready]:
    """Run the item stage on every sample and find its shapes; return results for those that fail, and the others with their items."""
    assert runtime.shapes is not None
    failed: list[SampleResult] = []
    prepared: _Ready = []
    for sample, rows in ready:
        try:
            items = [runtime.prepare(row) for row in rows]
            for item in items:
                runtime.shapes.key(item)
        except (InputError, ExecutionError) as error:
            failed.append(SampleResult(sample.name, 0, error=f"it fails to run: {error}"))
        else:
            prepared.append((sample, items))
    return failed, prepared


def _placements(ready: _Ready, size: int) -> _Ready:
    """Return the samples, gone round again until they fill a batch of `size`."""
    plan = list(ready)
    count = sum(len(rows) for _, rows in ready)
    while ready and count < size:
        for sample, rows in ready:
            plan.append((sample, rows))
            count += len(rows)
            if count >= size:
                break
    return plan


def _run(way: _Way, plan: _Ready, size: int, checker: Checker, spread: Spread) -> Iterator[tuple[SampleResult, int]]:
    """Run the instances of `plan` in batches of `size`; yield each sample's result as soon as its last instance is through."""
    stream = _batched(way, [row for _, rows in plan for row in rows], size, spread)
    for sample, rows in plan:
        outcomes = [next(stream) for _ in rows]
        padded = next(filter(None, map(way.padding, rows)), "")
        error = next((o for o in outcomes if isinstance(o, str)), None)
        if error is not None:
            yield SampleResult(sample.name, size, error=error, merged=way.merged, padded=padded), len(rows)
            continue
        values = [o for o in outcomes if not isinstance(o, str)]
        compared = checker.compare(sample, values, way.outputs_only)
        yield SampleResult(sample.name, size, compared, merged=way.merged, padded=padded), len(rows)


def _batched(way: _Way, rows: Sequence[_Instance], size: int, spread: Spread) -> Iterator[_Values | str]:
    """Yield for every row its values, [1, ...] each, or why they could not be computed."""
    groups: dict[Hashable, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(way.group(row), []).append(place)
    together = partial(_together, way)
    if len(groups) == 1:  # row by row as they come, so that few values are kept at a time
        yield from itertools.chain.from_iterable(spread(together, [rows[start : start + size] for start in range(0, len(rows), size)]))
        return
    found: dict[int, _Values | str] = {}
    for places in groups.values():
        round_and_round = list(itertools.islice(itertools.cycle(places), max(size, len(places))))
        chunks = [round_and_round[start : start + size] for start in range(0, len(round_and_round), size)]
        for chunk, outcomes in zip(chunks, spread(together, [[rows[place] for place in chunk] for chunk in chunks]), strict=True):
            for place, outcome in zip(chunk, outcomes, strict=True):
                found.setdefault(place, outcome)  # what only fills a batch up was looked at where it came first
    yield from (found[place] for place in range(len(rows)))


def _together(way: _Way, chunk: Sequence[_Instance]) -> Sequence[_Values | str]:
    try:
        return way.run(chunk)
    except (InputError, ExecutionError) as error:
        return list(_one_by_one(way, chunk, error))


def _one_by_one(way: _Way, chunk: Sequence[_Instance], failure: InputError | ExecutionError) -> Iterator[_Values | str]:
    """Find out which rows of a failed batch are at fault; when none fails alone, the batch is."""
    alone: list[_Values | str] = []
    for row in chunk:
        try:
            alone += way.run([row])
        except (InputError, ExecutionError) as error:
            alone.append(f"it fails to run: {error}")
    if not any(isinstance(outcome, str) for outcome in alone):
        alone = [f"a batch of {len(chunk)} fails although each instance runs alone: {failure}"] * len(chunk)
    yield from alone


class Checker:
    """Compares one sample's values with its reference, in the order the data flows.

    Args:
        manifest: Says which label is decided by which scores.
        tolerance: The promise.
    """

    def __init__(self, manifest: Manifest, tolerance: Tolerance) -> None:
        self._tolerance = tolerance
        self._decided_by = {o.name: o.decided_by for o in manifest.outputs if o.decided_by is not None}

    def compare(self, sample: GoldenSample, rows: Sequence[Mapping[str, np.ndarray]], outputs_only: bool) -> tuple[Comparison, ...]:
        """Compare a sample with the values of its rows, [1, ...] each; one comparison per value that was captured, outputs last."""
        expected = {**({} if outputs_only else sample.values), **sample.outputs}
        order = [name for name in rows[0] if name in expected] + [name for name in expected if name not in rows[0]]
        # Outputs last: a label is looked at after the scores it is chosen from.
        order.sort(key=lambda name: (name in sample.outputs, name in self._decided_by))
        return tuple(self._compare_one(name, sample, rows, expected[name]) for name in order)

    def _compare_one(self, name: str, sample: GoldenSample, rows: Sequence[Mapping[str, np.ndarray]], expected: np.ndarray) -> Comparison:
        if name not in rows[0]:
            reason = f"the package computes no such value; it has {', '.join(rows[0])}"
            return Comparison(name, passed=False, elements=int(expected.size), different=int(expected.size), mismatch=reason)
        parts = [row[name] for row in rows]
        if len({part.shape for part in parts}) > 1:
            reason = f"its instances have different shapes: {', '.join(str(list(p.shape[1:])) for p in parts[:5])}"
            return Comparison(name, passed=False, elements=int(expected.size), different=int(expected.size), mismatch=reason)
        return compare(expected, np.concatenate(parts), self._tolerance, tensor=name, decided_by=self._deciding(name, sample))

    def _deciding(self, name: str, sample: GoldenSample) -> Deciding | None:
        source = self._decided_by.get(name)
        scores = sample.outputs.get(source, sample.values.get(source)) if source is not None else None
        return Deciding(scores, self._tolerance) if scores is not None else None
