"""From a draft and golden samples to a package that is proven to answer like the training code, or no package at all."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import onnx
import onnxruntime
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from . import external
from .baseline_build import build_baseline
from .divergence import diagnose
from .draft import BaselineRows, DraftStage, GoldenSample, PackageDraft
from .edges import missing_edges
from .errors import AuthoringError, InputError, NotExact, PackageError, SamegraphError
from .exactness import merge
from .fingerprint import environment
from .golden import RECOMMENDED_SAMPLES, SampleResult, default_batch_sizes, processor, promised, read_samples, replay, unproven_buckets
from .manifest import (
    DEFAULT_TOLERANCES,
    STAGE_FILES,
    Batching,
    Decoder,
    Manifest,
    Measured,
    Name,
    Output,
    Provenance,
    RawField,
    StageName,
    Tokenizer,
    Tolerance,
    Vectorizer,
)
from .package import Package, PackageWriter, parse_model, validation_summary, version_path, write_baseline, write_files
from .paths import check_relative, open_plain, walk_files
from .runtime import PackageRuntime
from .signature import Signature
from .wire import parse_json

#: The promise a package is proven under where it is packed.
PROFILE = "cpu.same"

#: Edges of the signature without a golden sample that are named one by one.
SHOWN_EDGES = 8

Progress = Callable[[str], None]


def pack(draft: PackageDraft, samples: Sequence[GoldenSample], repository: Path | str, *, progress: Progress | None = None) -> Package:
    """Prove that `draft` answers like the training code and write it to `repository`.

    Runs every golden sample through the server's own code, alone, in pairs and in full batches, stage by stage and merged, and compares
    with the captured answers. Then, if the draft has held-out rows, runs them through the proven package and keeps their statistics as
    its baseline. Nothing is left behind when answers differ. Packing the same thing again changes nothing.

    Args:
        draft: Graphs and facts.
        samples: Raw requests with the training code's outputs (and, if captured, intermediates).
        repository: The model repository; the package becomes `<repository>/<name>/<version>`.
        progress: Gets a line of text now and then, for example `print`.

    Returns:
        The package as it now lies in the repository.

    Raises:
        NotExact: An answer differs by more than promised; names the sample and the first tensor, in the order the data flows.
        AuthoringError: Draft, samples and baseline rows do not fit together.
        PackageExists: Another package already has this name and version.
        ExecutionError: A graph does not load.
    """
    say = progress or (lambda _: None)
    directory = version_path(repository, draft.name, draft.version)
    _check_samples(draft, samples, say)
    for warning in warnings_of(draft):
        say(f"{draft.name}/{draft.version}: warning: {warning}")
    with PackageWriter(directory) as writer:
        manifest = _with_circumstances(write_files(draft, samples, writer))
        say(f"{draft.name}/{draft.version}: {len(samples)} golden samples, batches of {_listed(default_batch_sizes(manifest))}")
        _recommend_edges(manifest, samples, say)
        measured = prove(writer.provisional(manifest), samples, say)
        if draft.baseline is not None:
            baseline = build_baseline(
                writer.provisional(manifest), draft.baseline, _steps(f"{draft.name}/{draft.version}: baseline", say, "rows")
            )
            manifest = write_baseline(baseline, manifest, writer)
        package = writer.commit(manifest.model_copy(update={"measured": measured}))
    say(f"{draft.name}/{draft.version}: exact; written to {package.path} (digest {package.digest[:12]})")
    return package


def warnings_of(draft: PackageDraft) -> list[str]:
    """Return what the draft's importer has to say: that it is unproven, and what it found in the file."""
    importer = draft.provenance.importer
    if importer is None:
        return []
    unproven = f"the importer {importer.name} is unproven: {importer.reference or 'nothing was compared with the library it reads from'}"
    return [*([] if importer.proven else [f"{unproven}. The golden samples are all that speaks for this package"]), *importer.warnings]


def _check_samples(draft: PackageDraft, samples: Sequence[GoldenSample], say: Progress) -> None:
    """Refuse samples that cannot prove the draft."""
    if not samples:
        raise AuthoringError(f"{draft.name}: no golden samples, so nothing can be proven; capture some with the training code")
    if len(samples) < RECOMMENDED_SAMPLES:
        say(f"{draft.name}/{draft.version}: only {len(samples)} golden samples; {RECOMMENDED_SAMPLES} or more prove more")
    promised_outputs = {o.name: o for o in draft.outputs}
    for sample in samples:
        what = f"{draft.name}: golden sample {sample.name!r}"
        if missing := [name for name in promised_outputs if name not in sample.outputs]:
            raise AuthoringError(f"{what} has no expected {_listed(missing)}; capture every output the package promises")
        if extra := [name for name in sample.outputs if name not in promised_outputs]:
            raise AuthoringError(f"{what} expects {_listed(extra)}, which is no output of the package (intermediates go to `values`)")
        for output in promised_outputs.values():
            _check_shape(sample, output, what)


def _recommend_edges(manifest: Manifest, samples: Sequence[GoldenSample], say: Progress) -> None:
    """Say which edges of the signature no golden sample has."""
    if lacking := missing_edges(Signature(manifest), samples):
        shown = "; ".join(lacking[:SHOWN_EDGES]) + (f"; and {len(lacking) - SHOWN_EDGES} more" if len(lacking) > SHOWN_EDGES else "")
        say(f"{manifest.name}/{manifest.version}: no golden sample has {shown} (samegraph_transforms.edges.edge_instances makes such rows)")


def _check_shape(sample: GoldenSample, output: Output, what: str) -> None:
    array = sample.outputs[output.name]
    dtype = "string" if array.dtype.kind in "OUT" else array.dtype.name
    if dtype != output.dtype:
        raise AuthoringError(f"{what}: {output.name!r} was captured as {dtype}, the package promises {output.dtype}")
    if array.ndim != 1 + len(output.shape) or any(d not in (None, n) for d, n in zip(output.shape, array.shape[1:], strict=True)):
        shape = ["n", *("any" if d is None else d for d in output.shape)]
        raise AuthoringError(
            f"{what}: {output.name!r} was captured with shape {list(array.shape)}, the package promises {_brackets(shape)}"
        )


def _with_circumstances(manifest: Manifest) -> Manifest:
    """Fill in where and with what the proof runs."""
    given = manifest.provenance
    libraries = {"onnx": metadata.version("onnx"), **given.libraries, "onnxruntime": onnxruntime.__version__}
    known: dict[str, object] = {"machine": processor(), "libraries": libraries, "python": given.python or platform.python_version()}
    # The training environment's Python and libraries are the author's to state; these are those of the proof.
    known["environment"] = {name: value for name, value in environment().items() if name != "machine"}
    return manifest.model_copy(update={"provenance": given.model_copy(update=known)})


def prove(package: Package, samples: Sequence[GoldenSample], say: Progress | None = None) -> list[Measured]:
    """Run `samples` through `package` at batch 1, 2 and the largest, and return what was measured, per tensor in data-flow order.

    Raises:
        NotExact: A sample's answers differ by more than the package promises for the same CPU.
        AuthoringError: A bucket of `batching.ragged` has no sample that is padded to it.
        ExecutionError: A graph does not load.
    """
    say = say or (lambda _: None)
    with closing(PackageRuntime.load(package)) as runtime:
        _refuse_unproven_padding(package, runtime, samples)
        results = replay(runtime, samples, profile=PROFILE, progress=_steps(f"{package}: proving", say))
        kernels = runtime.item_plan is not None and any(step.engine == "kernel" for step in runtime.item_plan.steps)
    # Merging is the server's choice and it replays before it serves; what the package itself stands for is its stages.
    batch_stages = [s for s in package.manifest.stages if s.name != "preprocess.item"]
    _refuse_first_failure(package, samples, [r for r in results if not r.merged or len(batch_stages) == 1])
    if worse := next((r for r in results if not r.passed), None):
        say(f"{package}: its stages run apart pass, merged they do not, so it will be served unmerged: {worse.reason}")
        with closing(PackageRuntime.load(package, merge=False)) as runtime:
            served = replay(runtime, samples, profile=PROFILE, intermediates=False, progress=_steps(f"{package}: proving unmerged", say))
        _refuse_first_failure(package, samples, served)
        results += served
    if kernels:
        with closing(PackageRuntime.load(package, kernels="off", merge=False)) as runtime:
            bodies = replay(runtime, samples, [1], profile=PROFILE, progress=_steps(f"{package}: proving the graphs without kernels", say))
        _refuse_first_failure(package, samples, bodies)
        results += bodies
    _report_flips(package, results, say)
    return _measured(results)


def _refuse_unproven_padding(package: Package, runtime: PackageRuntime, samples: Sequence[GoldenSample]) -> None:
    if unproven := unproven_buckets(runtime, samples):
        raise AuthoringError(
            f"{package}: nothing proves that padding to {unproven[0]} changes no answer; capture a golden sample that is shorter "
            "(and no longer in any other length), or leave the bucket out"
        )


def _steps(what: str, say: Progress, unit: str = "instances") -> Callable[[int, int], None]:
    """Return a counter that says something about ten times in all."""
    said = 0

    def count(done: int, total: int) -> None:
        nonlocal said
        if done * 10 // total > said or done == total:
            said = done * 10 // total
            say(f"{what}: {done} of {total} {unit}")

    return count


def _refuse_first_failure(package: Package, samples: Sequence[GoldenSample], results: Sequence[SampleResult]) -> None:
    failed = next((r for r in results if not r.passed), None)
    if failed is None:
        return
    tensor = failed.failure.tensor if failed.failure else ""
    detail = failed.failure.detail if failed.failure else failed.error or ""
    promise = promised(package.manifest, PROFILE)
    found = diagnose(package, samples, results, promise)
    guilty = f" First to diverge: {found}." if found is not None else ""
    raise NotExact(
        f"{package} is refused: {failed.reason}.{guilty} Promised ({PROFILE}): {describe_tolerance(promise)}. Nothing was written: "
        "correct the graph, or state a wider tolerance if the difference is meant",
        sample=failed.sample,
        tensor=tensor,
        detail=detail,
        node=found.node if found is not None else "",
        kind=found.kind if found is not None else "",
    )


def describe_tolerance(tolerance: Tolerance) -> str:
    """Return the promise as words: `within 4 ULP or 1e-07 × the largest magnitude`."""
    parts = []
    if tolerance.ulp:
        parts.append(f"{tolerance.ulp} ULP")
    if tolerance.relative_to_max:
        parts.append(f"{tolerance.relative_to_max:g} × the largest magnitude")
    if tolerance.atol or tolerance.rtol:
        parts.append(f"{tolerance.atol:g} + {tolerance.rtol:g} × |value|")
    return f"floats within {' or '.join(parts)}, all else equal" if parts else "everything bit-equal"


def _report_flips(package: Package, results: Iterable[SampleResult], say: Progress) -> None:
    flips = sorted(
        {(r.sample, c.tensor, f.index, str(f.expected), str(f.got), f.margin) for r in results for c in r.comparisons for f in c.flips}
    )
    for sample, tensor, index, expected, got, margin in flips:
        place = f"{tensor}{list(index)} of sample {sample!r}"
        say(f"{package}: {place} is {got}, training said {expected}; it was undecided there (margin {margin:.3g})")


def _measured(results: Iterable[SampleResult]) -> list[Measured]:
    total: dict[str, Measured] = {}
    for result in results:
        if not result.passed:
            continue  # only merged results may be here; the server will not use them
        for comparison in result.comparisons:
            start = total.get(comparison.tensor) or Measured(tensor=comparison.tensor, elements=0, different=0, max_ulp=0, max_abs=0.0)
            total[comparison.tensor] = merge(start, comparison)
    return list(total.values())


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _brackets(values: Iterable[object]) -> str:
    return f"[{_listed(values)}]"


# --- drafts on disk --------------------------------------------------------------------------------------------------


class _StageFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: StageName
    file: str | None = Field(default=None, description="Path inside the draft; None is the stage's usual file name.")
    inputs: dict[str, str] | None = Field(default=None, description="Graph input → value; None binds by equal names.")
    outputs: dict[str, str] | None = Field(default=None, description="Graph output → value; None keeps the names.")


class _BaselineFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rows: str = Field(default="baseline.jsonl", description="Path inside the draft: an instance a line, as in a request.")
    made_from: str = ""
    sampled_from: str | None = None
    sampled_to: str | None = None
    truth: list[str | int] | None = Field(default=None, description="The right answer for each row.")
    off: list[str] = Field(default_factory=list)
    hashed: list[str] = Field(default_factory=list)
    importance: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    known: dict[str, list[str]] = Field(default_factory=dict)
    positive: dict[str, str] = Field(default_factory=dict)


class DraftFile(BaseModel):
    """draft.json: a package before it is proven, for models that any tool exported."""

    model_config = ConfigDict(extra="forbid")

    draft: Literal[1] = Field(default=1, description="Format number of the draft.")
    name: Name
    version: Annotated[int, Field(ge=1, le=2**31 - 1)]
    description: str = ""
    fields: list[RawField] = Field(min_length=1)
    outputs: list[Output] = Field(min_length=1)
    stages: list[_StageFile] = Field(min_length=1, description="Stages with their graphs, in order.")
    decoders: list[Decoder] = Field(default_factory=list)
    tokenizers: list[Tokenizer] = Field(default_factory=list)
    vectorizers: list[Vectorizer] = Field(default_factory=list)
    batching: Batching = Field(default_factory=Batching)
    tolerances: dict[str, Tolerance] = Field(default_factory=lambda: dict(DEFAULT_TOLERANCES))
    provenance: Provenance = Field(default_factory=Provenance)
    baseline: _BaselineFile | None = Field(default=None, description="Held-out training rows, for the package's baseline.")


def read_draft(directory: Path | str) -> tuple[PackageDraft, list[GoldenSample]]:
    """Read a draft directory: draft.json, the .onnx files it names, `assets/`, `golden/` and, if named, the rows of the baseline.

    Raises:
        AuthoringError: Something is missing or does not fit; says what.
        UnsafePath: A path would leave the directory.
    """
    directory = Path(directory)
    facts = _read_draft_file(directory / "draft.json")
    assets = directory / "assets"
    draft = PackageDraft(
        name=facts.name,
        version=facts.version,
        description=facts.description,
        fields=facts.fields,
        outputs=facts.outputs,
        stages=[_read_stage(directory, stage) for stage in facts.stages],
        decoders=facts.decoders,
        tokenizers=facts.tokenizers,
        vectorizers=facts.vectorizers,
        batching=facts.batching,
        tolerances=facts.tolerances,
        provenance=facts.provenance,
        assets={name: _read(assets / name) for name in walk_files(assets) if not _is_weights(directory, name, facts)}
        if assets.is_dir()
        else {},
        baseline=_read_baseline_rows(directory, facts.baseline) if facts.baseline is not None else None,
    )
    if not (directory / "golden").is_dir():
        raise AuthoringError(f"{directory} has no golden/ directory; write it with samegraph_transforms.golden.write_samples")
    return draft, read_samples(directory / "golden")


def _read_draft_file(path: Path) -> DraftFile:
    try:
        return DraftFile.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise AuthoringError(f"{path} is missing; a draft directory describes its package there (see docs/model-package.md)") from error
    except ValidationError as error:
        raise AuthoringError(f"{path}: {validation_summary(error)}") from error


def _read_baseline_rows(directory: Path, facts: _BaselineFile) -> BaselineRows:
    path = directory / check_relative(facts.rows, what="rows of the baseline")
    rows = []
    for number, line in enumerate(_read(path).splitlines(), 1):
        if line.strip():
            try:
                rows.append(parse_json(line))
            except InputError as error:
                raise AuthoringError(f"{path}, line {number}: {error}") from error
    return BaselineRows(rows=rows, **facts.model_dump(exclude={"rows"}))


def _read_stage(directory: Path, stage: _StageFile) -> DraftStage:
    name = check_relative(stage.file or STAGE_FILES[stage.name], what=f"file of stage {stage.name}")
    model = parse_model(_read(directory / name), str(directory / name))
    base = (directory / name).parent
    external.embed(model, lambda location: _read(base / location))
    return DraftStage(name=stage.name, model=model, inputs=stage.inputs, outputs=stage.outputs)


def _is_weights(directory: Path, asset: str, facts: DraftFile) -> bool:
    """Whether an asset only holds tensors of a graph; they were read into the graph and are written where the package keeps them."""
    for stage in facts.stages:
        name = stage.file or STAGE_FILES[stage.name]
        model = parse_model(_read(directory / name), name)
        base = Path(name).parent
        if any((base / location).as_posix() == f"assets/{asset}" for location in external.locations(model)):
            return True
    return False


def _read(path: Path) -> bytes:
    try:
        descriptor = open_plain(path)
    except PackageError as error:
        raise AuthoringError(str(error)) from error
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


# --- trainers' scripts -----------------------------------------------------------------------------------------------


def packages_of(script: Path | str) -> Iterator[tuple[PackageDraft, Sequence[GoldenSample]]]:
    """Run a trainer's script and yield what its function `packages()` yields: drafts with their golden samples.

    The script runs as Python runs it (with its own directory first on the path), except that `__name__` is not `__main__`.

    Raises:
        AuthoringError: The script has no such function, fails, or yields something else.
    """
    script = Path(script)
    with _import_path(script.resolve().parent):
        module = _run_script(script)
        make = getattr(module, "packages", None)
        if not callable(make):
            raise AuthoringError(f"{script} has no function packages(); write one that yields (PackageDraft, [GoldenSample, …]) pairs")
        try:
            yield from (_checked_pair(script, pair) for pair in make())
        except (SamegraphError, GeneratorExit, KeyboardInterrupt):
            raise
        except Exception as error:
            raise AuthoringError(f"{script}: packages() failed: {type(error).__name__}: {error}") from error


def _checked_pair(script: Path, pair: object) -> tuple[PackageDraft, Sequence[GoldenSample]]:
    if isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], PackageDraft) and not isinstance(pair[1], str):
        return pair[0], list(pair[1])
    raise AuthoringError(f"{script}: packages() yielded {type(pair).__name__}; it yields (PackageDraft, [GoldenSample, …]) pairs")


def _run_script(script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_samegraph_trainer_{script.stem}", script)
    if spec is None or spec.loader is None:
        raise AuthoringError(f"{script} is not a Python script; give a .py file or a draft directory")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses and pickling inside the script look their module up
    try:
        spec.loader.exec_module(module)
    except SamegraphError:
        raise
    except Exception as error:
        raise AuthoringError(f"{script} failed: {type(error).__name__}: {error}") from error
    return module


@contextmanager
def _import_path(directory: Path) -> Iterator[None]:
    sys.path.insert(0, str(directory))
    try:
        yield
    finally:
        sys.path.remove(str(directory))


def draft_model(path: Path | str) -> onnx.ModelProto:
    """Read an exported ONNX file with its external data, for a `DraftStage`.

    Raises:
        AuthoringError: The file is missing.
        PackageError: It is not an ONNX model.
    """
    path = Path(path)
    model = parse_model(_read(path), str(path))
    external.embed(model, lambda location: _read(path.parent / location))
    return model
