"""Prove a package again, anywhere: replay its golden samples here and say how far its answers are from training's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import onnxruntime
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from .divergence import Divergence, diagnose
from .draft import GoldenSample
from .errors import PackageError
from .exactness import UNREACHABLE, Comparison, Flip
from .executor import CPU
from .golden import SampleResult, default_batch_sizes, processor, promised, read_samples, replay, runtime_profile
from .gpu import GpuOptions
from .half import PROFILE
from .inspection import add_row
from .manifest import Manifest, Tolerance, json_number
from .pack import describe_tolerance
from .package import Package
from .runtime import PackageRuntime

#: Flips and failures that the page lists one by one; the JSON form has them all.
SHOWN = 20
NOT_EXACT = ("this package does not answer as training did here", "this server does not answer as training did")


@dataclass(frozen=True)
class TensorReport:
    """One tensor over all samples and batch sizes.

    Attributes:
        tensor: Its name.
        source: The stage that computes it, or `merged` for an output of the stages run as one graph.
        comparisons: How many comparisons went into it.
        elements: How many elements were compared.
        different: How many are not equal.
        max_ulp: Largest distance in ULP.
        max_abs: Largest absolute difference.
        flips: Labels that differ where training was undecided, which is allowed.
        passed: Whether everything is within the promise.
    """

    tensor: str
    source: str
    comparisons: int
    elements: int
    different: int
    max_ulp: int
    max_abs: float
    flips: int
    passed: bool

    @property
    def verdict(self) -> str:
        """One word: equal, within the promise, or not."""
        if not self.passed:
            return "DIFFERS"
        return "equal" if self.different == 0 else "within"


@dataclass(frozen=True)
class ServedBy:
    """A running server's version that was asked.

    Attributes:
        url: The server.
        model: The model's name there.
        version: Its version there.
        digest: The digest of what it serves.
        same_package: Whether that is the digest of the package given.
        providers: What runs its batches.
        device: The machine it runs on, or the providers where it does not say.
        onnxruntime: Its ONNX Runtime, or nothing where it does not say.
    """

    url: str
    model: str
    version: int
    digest: str
    same_package: bool
    providers: str
    device: str
    onnxruntime: str


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        package: `<name>/<version>`.
        digest: The package's identity.
        profile: Which promise was applied.
        tolerance: That promise.
        environment: What the replay ran with.
        batch_sizes: Instances in one execution.
        samples: How many golden samples were replayed.
        tensors: Per tensor, in data-flow order.
        failures: Results that break the promise, first one first.
        flips: Sample name, tensor and flip, each once.
        divergence: The first node that diverges; None when nothing does, or it could not be found.
        server: The running server that answered; None when the package ran here.
    """

    package: str
    digest: str
    profile: str
    tolerance: Tolerance
    environment: dict[str, str]
    batch_sizes: tuple[int, ...]
    samples: int
    tensors: tuple[TensorReport, ...]
    failures: tuple[SampleResult, ...]
    flips: tuple[tuple[str, str, Flip], ...]
    divergence: Divergence | None = None
    server: ServedBy | None = None

    @property
    def ok(self) -> bool:
        """Whether every answer is within the promise."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """Return the whole report as JSON values."""
        return {
            "package": self.package,
            "digest": self.digest,
            "ok": self.ok,
            "profile": self.profile,
            "promised": self.tolerance.model_dump(),
            "environment": self.environment,
            "batch_sizes": list(self.batch_sizes),
            "samples": self.samples,
            "tensors": [_tensor_json(t) for t in self.tensors],
            "failures": [_failure_json(f) for f in self.failures],
            "flips": [_flip_json(*f) for f in self.flips],
            "server": None if self.server is None else dict(self.server.__dict__),
            "divergence": None if self.divergence is None else self.divergence.to_json(),
        }

    def render(self, console: Console) -> None:
        """Print the report as a page."""
        console.print(self)

    def _how(self) -> str:
        environment = self.environment
        if self.server is not None:
            same = "this package" if self.server.same_package else f"ANOTHER package, digest {self.server.digest[:12]}"
            return f"sent to {self.server.url}, which serves {self.server.model}/{self.server.version}: {same}"
        sizes = ", ".join(map(str, self.batch_sizes))
        return f"batches of {sizes}, on {environment['device']} with ONNX Runtime {environment['onnxruntime']}"

    def __rich__(self) -> RenderableType:
        head = Text.assemble(
            (f"{self.package}", "bold"), f"  {self.digest[:12]}\n",
            f"{self.samples} golden samples, {self._how()}\n",
            f"promised here ({self.profile}): {describe_tolerance(self.tolerance)}",
        )  # fmt: skip
        return Group(head, _table(self.tensors), *_notes(self))


def _tensor_json(report: TensorReport) -> dict[str, Any]:
    document = {**report.__dict__, "max_abs": json_number(report.max_abs), "verdict": report.verdict}
    return document | {"max_ulp": None if report.max_ulp == UNREACHABLE else report.max_ulp}


def _failure_json(result: SampleResult) -> dict[str, Any]:
    return {
        "sample": result.sample,
        "batch_size": result.batch_size,
        "merged": result.merged,
        "tensor": result.failure.tensor if result.failure else None,
        "detail": result.error or (result.failure.detail if result.failure else ""),
    }


def _flip_json(sample: str, tensor: str, flip: Flip) -> dict[str, Any]:
    return {
        "sample": sample,
        "tensor": tensor,
        "index": list(flip.index),
        "expected": flip.expected,
        "got": flip.got,
        "margin": json_number(flip.margin),
        "bound": json_number(flip.bound),
    }


def _table(tensors: Sequence[TensorReport]) -> Table:
    with_flips = any(t.flips for t in tensors)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    table.add_column("tensor", overflow="fold", min_width=11)
    table.add_column("from", no_wrap=True)
    for heading in ("elements", "differ", "max ULP", "max abs", *(["flips"] if with_flips else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for t in tensors:
        style = "red bold" if not t.passed else "green" if t.different == 0 else "yellow"
        ulp = "∞" if t.max_ulp == UNREACHABLE else f"{t.max_ulp:,}"
        numbers = [f"{t.elements:,}", f"{t.different:,}", ulp, f"{t.max_abs:.3g}", *([str(t.flips)] if with_flips else [])]
        add_row(table, t.tensor, t.source, *numbers, Text(t.verdict, style=style))
    return table


def _notes(report: Report) -> list[Text]:
    notes = [
        Text(f"allowed: {t}{list(f.index)} of {s!r} is {f.got}, training said {f.expected} (margin {f.margin:.3g})")
        for s, t, f in report.flips
    ]
    notes = notes[:SHOWN] + ([Text(f"… and {len(notes) - SHOWN} more such labels")] if len(notes) > SHOWN else [])
    if report.ok:
        who = "package" if report.server is None else "server"
        return [*notes, Text(f"exact: the {who} answers as training did", style="green")]
    failures = [Text(f.reason, style="red") for f in report.failures[:SHOWN]]
    if len(report.failures) > SHOWN:
        failures.append(Text(f"… and {len(report.failures) - SHOWN} more", style="red"))
    guilty = describe(report.divergence) if report.divergence is not None else []
    return [*notes, Text(f"NOT EXACT: {NOT_EXACT[report.server is not None]}", style="red bold"), *guilty, *failures]


def value_words(found: Divergence) -> str:
    """Return expected, got and how far apart, in words."""
    if found.got is None:
        return str(found.expected)
    apart = "" if found.ulp is None else " (no number of ULP apart)" if found.ulp == UNREACHABLE else f" ({found.ulp:,} ULP apart)"
    return f"expected {found.expected!s}, got {found.got!s}{apart}"


def describe(found: Divergence) -> list[Text]:
    """Return what is known about the first node that diverges, as lines."""
    head = "guilty" if found.proven else "first suspect"
    lines = [
        Text(f"{head}: node {found.node}  {found.operator}  in stage {found.stage}  [{found.kind}]", style="red bold"),
        Text(f"  {found.why}"),
        Text(f"  {found.tensor}{list(found.index) if found.got is not None else ''} of row {found.instance} of sample {found.sample!r}:"),
        Text(f"  {value_words(found)}; the reference is {found.reference}"),
    ]
    if found.raw:
        lines.append(Text("  raw: " + ", ".join(f"{name} = {value!r}" for name, value in found.raw.items())))
    if found.suspects:
        lines.append(Text(f"  it may also be: {', '.join(found.suspects)}"))
    if found.unchecked:
        lines.append(Text(f"  {found.unchecked} nodes were not held against the reference: no time left, or it has no such operator"))
    return lines


def verify(
    package: Package,
    samples: Sequence[GoldenSample] | None = None,
    batch_sizes: Sequence[int] | None = None,
    *,
    profile: str | None = None,
    providers: Sequence[str] = CPU,
    half: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Replay golden samples on this machine and compare with what the training code gave.

    Args:
        package: A read and verified package.
        samples: What to replay; None takes the package's own golden samples.
        batch_sizes: Instances in one execution; None is 1, 2 and the package's largest.
        profile: Which of the package's promises to apply; None finds out (`cpu.same`, `cpu.other` or `gpu`).
        providers: ONNX Runtime execution providers.
        half: Compute the model in half precision, which the CPU emulates; the profile then is `gpu.half`.
        progress: Called with instances done and instances in all.

    Raises:
        PackageError: There are no samples to replay, or no such promise.
        ExecutionError: A graph does not load here.
    """
    if samples is None:
        samples = golden_samples(package)
    if not samples:
        raise PackageError(f"{package}: there are no samples to replay")
    if half and PROFILE not in package.manifest.tolerances:
        raise PackageError(f"{package}: it promises nothing for half precision; state a tolerance for {PROFILE!r} and pack it again")
    sizes = tuple(batch_sizes) if batch_sizes is not None else default_batch_sizes(package.manifest)
    with closing(PackageRuntime.load(package, providers=providers, gpu=GpuOptions(half=True) if half else None)) as runtime:
        profile = profile or runtime_profile(runtime)
        results = replay(runtime, samples, sizes, profile=profile, progress=progress)
        used = runtime.providers
    promise = promised(package.manifest, profile)
    return Report(
        package=str(package),
        digest=package.digest,
        profile=profile,
        tolerance=promise,
        environment={
            "device": processor() if used == CPU else used[0],
            "onnxruntime": onnxruntime.__version__,
            "providers": ", ".join(used),
        },
        batch_sizes=sizes,
        samples=len(samples),
        tensors=tensors_of(package.manifest, results),
        failures=tuple(r for r in results if not r.passed),
        flips=flips_of(results),
        divergence=diagnose(package, samples, results, promise, providers=providers),
    )


def golden_samples(package: Package) -> list[GoldenSample]:
    """Return the package's own golden samples; PackageError if it has none."""
    if package.manifest.golden_samples == 0:
        what = "is a bare model" if not package.proven else "holds no golden samples"
        raise PackageError(f"{package} {what}, so there is nothing to verify it against; pack it with samples from its training code")
    return read_samples(package.golden_dir())


def tensors_of(manifest: Manifest, results: Sequence[SampleResult], *, source: str | None = None) -> tuple[TensorReport, ...]:
    """Gather comparisons by tensor, keeping the order of data flow; merged outputs come last. `source` names another maker for all."""
    grouped: dict[tuple[bool, str], list[Comparison]] = {}
    for result in sorted(results, key=lambda r: r.merged):
        for comparison in result.comparisons:
            grouped.setdefault((result.merged, comparison.tensor), []).append(comparison)
    sources = {value: stage.name for stage in manifest.stages for value in stage.outputs.values()}
    return tuple(
        _summary(name, source if source is not None else "served" if merged else sources.get(name, "raw field"), found)
        for (merged, name), found in grouped.items()
    )


def _summary(name: str, source: str, comparisons: Sequence[Comparison]) -> TensorReport:
    return TensorReport(
        tensor=name,
        source=source,
        comparisons=len(comparisons),
        elements=sum(c.elements for c in comparisons),
        different=sum(c.different for c in comparisons),
        max_ulp=max(c.max_ulp for c in comparisons),
        max_abs=max(c.max_abs for c in comparisons),
        flips=sum(len(c.flips) for c in comparisons),
        passed=all(c.passed for c in comparisons),
    )


def flips_of(results: Sequence[SampleResult]) -> tuple[tuple[str, str, Flip], ...]:
    """Return sample name, tensor and flip of every label that differs where that is allowed, each once."""
    found = {
        (result.sample, comparison.tensor, flip.index): flip
        for result in results
        for comparison in result.comparisons
        for flip in comparison.flips
    }  # fmt: skip
    return tuple((sample, tensor, flip) for (sample, tensor, _), flip in found.items())
