"""What a package is, as a page for people and as JSON: signature, stages, what runs them, files, promises, provenance."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import onnx
from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from . import external
from .bare import ELEMENT_TYPES
from .baseline import Baseline, Expected, Variable
from .baseline_view import sparkline, words
from .errors import BaselineInvalid, SamegraphError
from .fingerprint import deviations, environment, proven_environment
from .itemplan import Step
from .manifest import Decoder, Importer, Manifest, Output, Ragged, RawField, Stage, Tokenizer, Vectorizer
from .pack import describe_tolerance
from .package import Package, graph_names, parse_model
from .runtime import PackageRuntime

#: Operators that ONNX Runtime does not run and the item stage does itself.
HOST_NODES = frozenset({"ImageDecoder", "samegraph::Tokenize", "samegraph::CountTerms"})
SHOWN_VALUES = 8


@dataclass(frozen=True)
class Port:
    """One graph input or output: its name in the graph, the value it is bound to, element type and shape (`n` is the batch)."""

    name: str
    value: str
    dtype: str
    shape: tuple[str, ...]


@dataclass(frozen=True)
class StageView:
    """One graph of the chain.

    Attributes:
        name: The stage.
        file: Where the graph lies in the package.
        bytes: Size of the graph and of the data it keeps in other files.
        nodes: How many nodes the graph has, without those inside functions.
        operators: Operator (with its domain unless it is ai.onnx) → how often.
        functions: Model-local function → how many nodes its body has.
        host_nodes: Nodes that the item stage runs itself, as `operator (name)`.
        parameters: How many numbers the graph holds.
        opsets: Domain → version.
        inputs: What goes in.
        outputs: What comes out.
    """

    name: str
    file: str
    bytes: int
    nodes: int
    operators: dict[str, int]
    functions: dict[str, int]
    host_nodes: tuple[str, ...]
    parameters: int
    opsets: dict[str, int]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(frozen=True)
class Inspection:
    """Everything `inspect` shows.

    Attributes:
        package: The package.
        stages: Its graphs.
        steps: What runs each step of the item stage on this machine; None when there is no such stage or it does not load here.
        steps_error: Why it does not load here.
        baseline: Statistics of held-out training rows; None when the package has none, or one that cannot be read.
        baseline_error: Why it cannot be read.
        before: The baseline that it took the place of, where it is kept.
    """

    package: Package
    stages: tuple[StageView, ...]
    steps: tuple[Step, ...] | None
    steps_error: str = ""
    baseline: Baseline | None = None
    baseline_error: str = ""
    before: Baseline | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the page as JSON values: the manifest, and what was found by looking at the graphs."""
        return {
            "package": str(self.package),
            "digest": self.package.digest,
            "proven": self.package.proven,
            "bytes": total_bytes(self.package.manifest),
            "manifest": self.package.manifest.model_dump(mode="json"),
            "stages": [asdict(stage) for stage in self.stages],
            "item_steps": None if self.steps is None else [asdict(step) for step in self.steps],
            "item_steps_error": self.steps_error or None,
            "environment": {
                "here": (here := environment()),
                "proven": proven_environment(self.package.manifest),
                "differs": [asdict(d) for d in deviations(self.package.manifest, here)],
            },
            "baseline": None if self.baseline is None else self.baseline.model_dump(mode="json"),
            "baseline_error": self.baseline_error or None,
            "baseline_before": None if self.before is None else self.before.model_dump(mode="json"),
        }

    def render(self, console: Console) -> None:
        """Print the page."""
        console.print(self)

    def __rich__(self) -> RenderableType:
        manifest = self.package.manifest
        sections: list[tuple[str, RenderableType]] = [
            ("Raw inputs", _fields(manifest)),
            ("Outputs", _outputs(manifest)),
            ("Baseline", _baseline(self.baseline, self.baseline_error, self.before)),
            ("Stages", _stages(self.stages)),
        ]
        if self.steps is not None or self.steps_error:
            sections.append(("Item stage, step by step (on this machine)", _steps(self.steps or (), self.steps_error)))
        if manifest.batching.ragged:
            sections.append(("Instances of different lengths", _ragged(manifest)))
        if manifest.decoders:
            sections.append(("Image decoding", _decoders(manifest)))
        if manifest.tokenizers:
            sections.append(("Tokenizing", _tokenizers(manifest)))
        if manifest.vectorizers:
            sections.append(("Counting terms", _vectorizers(manifest)))
        sections += [("Exactness", _exactness(self.package)), ("Files", _files(manifest)), ("Provenance", _provenance(manifest))]
        return Group(_head(self.package), *(_section(title, body) for title, body in sections))


def inspect(package: Package) -> Inspection:
    """Look at a package's graphs and at what would run them here.

    Raises:
        DigestMismatch: A graph differs from its digest.
        PackageError: A graph is no ONNX model.
    """
    stages = tuple(_stage_view(package, stage) for stage in package.manifest.stages)
    steps, steps_error = _item_steps(package)
    baseline, baseline_error, before = _read_baseline(package)
    return Inspection(package, stages, steps, steps_error, baseline, baseline_error, before)


def _item_steps(package: Package) -> tuple[tuple[Step, ...] | None, str]:
    if package.manifest.stage("preprocess.item") is None:
        return None, ""
    try:
        with closing(PackageRuntime.load(package)) as runtime:
            return (runtime.item_plan.steps if runtime.item_plan is not None else None), ""
    except SamegraphError as error:
        return None, str(error)


def _read_baseline(package: Package) -> tuple[Baseline | None, str, Baseline | None]:
    try:
        return package.baseline(), "", package.baseline_before()
    except BaselineInvalid as error:
        return None, str(error), None


def total_bytes(manifest: Manifest) -> int:
    """Return the size of all files but manifest.json."""
    return sum(entry.bytes for entry in manifest.files.values())


# --- looking at graphs -----------------------------------------------------------------------------------------------


def _stage_view(package: Package, stage: Stage) -> StageView:
    model = parse_model(package.read_file(stage.file), f"{package}: {stage.file}")
    outside = [location for location in external.locations(model) if location in package.manifest.files]
    inputs, outputs = graph_names(model)
    infos = {info.name: info for info in (*model.graph.input, *model.graph.output)}
    return StageView(
        name=stage.name,
        file=stage.file,
        bytes=sum(package.manifest.files[name].bytes for name in (stage.file, *outside)),
        nodes=len(model.graph.node),
        operators=dict(Counter(_operator(node) for node in model.graph.node).most_common()),
        functions={f"{f.domain}::{f.name}": len(f.node) for f in model.functions},
        host_nodes=tuple(f"{_operator(node)} ({node.name or 'no name'})" for node in model.graph.node if _operator(node) in HOST_NODES),
        parameters=sum(_count(t.dims) for t in model.graph.initializer),
        opsets={opset.domain or "ai.onnx": opset.version for opset in model.opset_import},
        inputs=tuple(_port(infos[name], stage.inputs.get(name, name)) for name in inputs),
        outputs=tuple(_port(infos[name], stage.outputs.get(name, name)) for name in outputs),
    )


def _operator(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def _count(dims: Iterable[int]) -> int:
    total = 1
    for dim in dims:
        total *= dim
    return total


def _port(info: onnx.ValueInfoProto, value: str) -> Port:
    tensor = info.type.tensor_type
    shape = tuple(str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim)
    return Port(info.name, value, ELEMENT_TYPES.get(tensor.elem_type, "?"), shape)


# --- the page --------------------------------------------------------------------------------------------------------


def _head(package: Package) -> RenderableType:
    manifest = package.manifest
    text = Text.assemble((f"{manifest.name} ", "bold"), f"version {manifest.version}")
    size = f"{size_words(total_bytes(manifest))} in {len(manifest.files)} files"
    text.append(f"\ndigest {package.digest}\n{size}, format {manifest.format}\n{package.path}")
    if manifest.description:
        text.append(f"\n{manifest.description}", "italic")
    if not package.proven:
        text.append("\nNOT PROVEN: a bare model.onnx, served as tensors in and out; nobody compared it with training code", "yellow bold")
    return text


def _section(title: str, body: RenderableType) -> RenderableType:
    return Group(Text(f"\n{title}", "bold cyan"), Padding(body, (0, 0, 0, 2)))


def _grid(*headings: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    return table


def add_row(table: Table, *cells: RenderableType) -> None:
    """Add a row whose strings are shown as they are: `[3]` is a shape, not markup."""
    table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))


def _fields(manifest: Manifest) -> Table:
    table = Table.grid(padding=(0, 2))
    for field in manifest.fields:
        table.add_row(Text(field.name, "bold"), _described(field_facts(field), field.description))
    return table


def field_facts(field: RawField) -> str:
    """Return what a raw field takes, in a line: kind, whether it is needed, what null becomes, what is accepted."""
    facts = [_kind(field), _needed(field), f"null becomes {_missing(field)}", _accepted(field)]
    return "; ".join(f for f in facts if f)


def _described(facts: str, description: str) -> Text:
    return Text.assemble(facts, ("\n" + description if description else "", "dim"))


def _kind(field: RawField) -> str:
    return field.kind if field.kind != "tensor" else f"{field.dtype} {_brackets(field.shape or [])}"


def _needed(field: RawField) -> str:
    if field.required:
        return "required"
    return "optional" if field.default is None else f"optional, {field.default!r} when left out"


def _missing(field: RawField) -> str:
    words = {"refuse": "an error", "nan": "NaN", "companion": f"the input {field.companion}"}
    return repr(field.missing.sentinel) if field.missing.rule == "sentinel" else words[field.missing.rule]


def _accepted(field: RawField) -> str:
    parts = []
    if field.allowed is not None:
        parts.append(f"one of {some(field.allowed)}")
    if field.known is not None:
        parts.append(f"known: {some(field.known)}")
    if field.minimum is not None or field.maximum is not None:
        parts.append(
            f"{'-∞' if field.minimum is None else f'{field.minimum:g}'} to {'∞' if field.maximum is None else f'{field.maximum:g}'}"
        )
    if field.max_length is not None:
        parts.append(f"up to {field.max_length:,} characters")
    if field.max_bytes is not None:
        parts.append(f"up to {size_words(field.max_bytes)}")
    if field.max_pixels is not None:
        parts.append(f"up to {field.max_pixels / 1e6:g} megapixels")
    return "; ".join(parts)


def some(values: Sequence[object]) -> str:
    """Return the first values and how many more there are."""
    shown = ", ".join(str(v) for v in values[:SHOWN_VALUES])
    return shown + (f" and {len(values) - SHOWN_VALUES} more" if len(values) > SHOWN_VALUES else "")


def _outputs(manifest: Manifest) -> Table:
    table = Table.grid(padding=(0, 2))
    for output in manifest.outputs:
        table.add_row(Text(output.name, "bold"), _described(output_facts(output), output.description))
    return table


def output_facts(output: Output) -> str:
    """Return what an output is, in a line: type and shape, what its places mean, what it is chosen from."""
    facts = [f"{output.dtype} {_brackets(output.shape)}" if output.shape else output.dtype]
    facts += [f"places: {some(output.element_names)}"] if output.element_names else []
    facts += [f"chosen from {output.decided_by}"] if output.decided_by else []
    return "; ".join(facts)


class _Histograms:
    """Variables, a line each: name, histogram, facts; below it, where there is one, what it was before.

    The histograms get the width the terminal can spare.
    """

    def __init__(self, variables: Sequence[Variable], before: Sequence[Variable] = ()) -> None:
        self._variables = variables
        self._before = {variable.name: variable for variable in before}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        width = 24 if options.max_width >= 100 else 12 if options.max_width >= 60 else 8
        table = Table.grid(padding=(0, 2))
        table.add_column(overflow="fold")
        table.add_column(width=width, no_wrap=True, overflow="crop")
        table.add_column(overflow="fold")
        for variable in self._variables:
            table.add_row(Text(variable.name, "bold"), Text(sparkline(variable, width), "green"), Text(words(variable)))
            old = self._before.get(variable.name)
            if old is not None:
                table.add_row(Text("  before", "dim"), Text(sparkline(old, width), "dim"), Text(words(old), "dim"))
        yield table


def _baseline(baseline: Baseline | None, error: str, before: Baseline | None) -> RenderableType:
    if error:
        return Text(error, "yellow")
    if baseline is None:
        return Text("none; pack with held-out training rows to have drift measured against them", "dim")
    parts: list[RenderableType] = [Text(baseline_words(baseline))]
    if before is not None:
        parts.append(Text(f"before: {baseline_words(before)}", "dim"))
    inputs = [] if before is None else [v for _, v in before.inputs()]
    answers = [] if before is None else [v for _, v in before.answers()]
    parts.append(_Histograms([v for _, v in baseline.inputs()], inputs))
    if off := [field.name for field in baseline.fields if field.monitored == "off"]:
        parts.append(Text(f"not monitored: {some(off)}", "dim"))
    parts += [Text("\nanswers to these rows:"), _Histograms([v for _, v in baseline.answers()], answers)]
    parts += [Text(expected_words(o.name, o.expected)) for o in baseline.outputs if o.expected is not None]
    return Group(*parts)


def baseline_words(baseline: Baseline) -> str:
    """Return which rows a baseline was made from, in a line."""
    period = " to ".join(part for part in (baseline.sampled_from, baseline.sampled_to) if part)
    facts = [f"{baseline.rows:,} rows", baseline.made_from, period, f"replaces {baseline.replaces}" if baseline.replaces else ""]
    return "; ".join(fact for fact in facts if fact)


def expected_words(output: str, expected: Expected) -> str:
    """Return what the probabilities of `output` say about accuracy, beside what was measured."""
    measured = "" if expected.measured_accuracy is None else f"; measured {expected.measured_accuracy:.4f}"
    return f"accuracy that {output} expects of itself: {expected.accuracy:.4f}{measured}"


def _stages(stages: Sequence[StageView]) -> RenderableType:
    parts: list[RenderableType] = []
    for stage in stages:
        title, rows = stage_facts(stage)
        table = Table.grid(padding=(0, 2))
        for label, value in rows:
            add_row(table, label, value)
        parts += [Text.assemble((stage.name, "bold"), f"  {title}"), Padding(table, (0, 0, 0, 2))]
    return Group(*parts)


def stage_facts(stage: StageView) -> tuple[str, list[tuple[str, str]]]:
    """Return a stage's title without its name, and its facts as label and value."""
    rows = [
        ("in", ", ".join(_shown_port(p) for p in stage.inputs)),
        ("out", ", ".join(_shown_port(p) for p in stage.outputs)),
        ("operators", ", ".join(f"{name} ×{n}" if n > 1 else name for name, n in stage.operators.items())),
        ("functions", ", ".join(f"{name} ({n} nodes)" for name, n in stage.functions.items())),
        ("host nodes", ", ".join(stage.host_nodes)),
        ("opsets", ", ".join(f"{domain} {version}" for domain, version in stage.opsets.items())),
    ]
    title = f"{stage.file}, {size_words(stage.bytes)}, {stage.nodes} nodes, {stage.parameters:,} parameters"
    return title, [(label, value) for label, value in rows if value]


def _shown_port(port: Port) -> str:
    name = port.value if port.name == port.value else f"{port.value} (as {port.name})"
    return f"{name} {port.dtype}[{', '.join(port.shape)}]"


def _steps(steps: Sequence[Step], error: str) -> RenderableType:
    if error:
        return Text(f"it does not load here: {error}", "yellow")
    table = _grid("step", "nodes", "engine", "library", "note", right=("step",))
    styles = {"kernel": "green", "host": "cyan"}
    for i, step in enumerate(steps, 1):
        add_row(table, str(i), some(step.nodes), Text(step.engine, styles.get(step.engine, "")), step.library, step.note)
    return table


def _ragged(manifest: Manifest) -> Table:
    table = Table.grid(padding=(0, 2))
    for axis in manifest.batching.ragged:
        add_row(table, ", ".join(axis.inputs), "; ".join(ragged_facts(axis)))
    return table


def ragged_facts(axis: Ragged) -> list[str]:
    """Return how instances of different lengths run together: what is padded to what, and what becomes of the rest."""
    places = sorted({place.axis for place in axis.inputs.values()})
    where = f"axis {places[0]} " if len(places) == 1 else ""
    facts = [f"{where}padded to {', '.join(map(str, axis.buckets))}", f"at most {axis.max_padding_ratio:.0%} of it padding"]
    facts.append("longer is refused" if axis.beyond == "refuse" else "longer runs at its own length")
    facts += [f"mask {axis.mask} {axis.mask_dtype}"] if axis.mask else []
    facts += [f"cut off again in {', '.join(axis.outputs)}"] if axis.outputs else []
    return facts


def _decoders(manifest: Manifest) -> RenderableType:
    parts: list[RenderableType] = []
    for decoder in manifest.decoders:
        table = Table.grid(padding=(0, 2))
        for label, value in decoder_facts(decoder):
            add_row(table, label, value)
        parts += [Text(decoder.node, "bold"), Padding(table, (0, 0, 0, 2))]
    return Group(*parts)


def decoder_facts(decoder: Decoder) -> list[tuple[str, str]]:
    """Return what a decoder accepts and hands over, as label and value."""
    libraries = [f"{decoder.library} {decoder.library_version}", *(f"{name} {version}" for name, version in decoder.codecs.items())]
    return [
        ("trained with", ", ".join(libraries)),
        ("formats", ", ".join(decoder.formats)),
        ("modes", ", ".join(mode if mode == to else f"{mode}→{to}" for mode, to in decoder.modes.items())),
        ("EXIF", f"orientation: {decoder.exif_orientation}"),
        ("cut short", decoder.truncated),
    ]


def _tokenizers(manifest: Manifest) -> RenderableType:
    parts: list[RenderableType] = []
    for tokenizer in manifest.tokenizers:
        table = Table.grid(padding=(0, 2))
        for label, value in tokenizer_facts(tokenizer):
            add_row(table, label, value)
        parts += [Text(tokenizer.node, "bold"), Padding(table, (0, 0, 0, 2))]
    return Group(*parts)


def tokenizer_facts(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Return what a tokenizer reads and gives, as label and value."""
    return [
        ("trained with", f"{tokenizer.library} {tokenizer.library_version}"),
        ("file", tokenizer.file),
        ("gives", ", ".join(tokenizer.arrays)),
        ("special tokens", "added" if tokenizer.add_special_tokens else "not added"),
        ("at most", f"{tokenizer.max_length} tokens" if tokenizer.max_length is not None else "what the file says"),
    ]


def _vectorizers(manifest: Manifest) -> RenderableType:
    parts: list[RenderableType] = []
    for vectorizer in manifest.vectorizers:
        table = Table.grid(padding=(0, 2))
        for label, value in vectorizer_facts(vectorizer):
            add_row(table, label, Text(value))
        parts += [Text(vectorizer.node, "bold"), Padding(table, (0, 0, 0, 2))]
    return Group(*parts)


def vectorizer_facts(vectorizer: Vectorizer) -> list[tuple[str, str]]:
    """Return what a vectorizer counts, as label and value."""
    low, high = vectorizer.ngram_range
    terms = {"word": "words", "char": "characters", "char_wb": "characters within words"}[vectorizer.analyzer]
    columns = f"{vectorizer.n_features:,}" + (" hashed" + (", signed" if vectorizer.alternate_sign else "") if vectorizer.hashed else "")
    return [
        ("terms", f"{low} {terms}" if low == high else f"{low} to {high} {terms}"),
        *([("pattern", vectorizer.token_pattern)] if vectorizer.token_pattern is not None else []),
        ("lower case", "yes" if vectorizer.lowercase else "no"),
        ("accents", f"stripped ({vectorizer.strip_accents})" if vectorizer.strip_accents is not None else "kept"),
        ("counts", "1 each" if vectorizer.binary else "as often as there"),
        ("columns", columns),
        ("file", vectorizer.file),
        ("Unicode", vectorizer.unicode_version),
    ]


def _exactness(package: Package) -> RenderableType:
    manifest = package.manifest
    parts: list[RenderableType] = []
    if manifest.tolerances:
        promised = _grid("where", "promised")
        for profile, tolerance in manifest.tolerances.items():
            add_row(promised, profile, Text(describe_tolerance(tolerance)))
        parts.append(promised)
    if not manifest.measured:
        return Group(*parts, Text("nothing was measured when this was written", "yellow"))
    measured = _grid(
        "tensor", "compared", "not equal", "max ULP", "max abs", "flips", right=("compared", "not equal", "max ULP", "max abs", "flips")
    )
    for m in manifest.measured:
        add_row(measured, Text(m.tensor), f"{m.elements:,}", f"{m.different:,}", f"{m.max_ulp:,}", f"{m.max_abs:.3g}", str(m.flips))
    parts += [Text(f"\nmeasured when packed, on {manifest.golden_samples} golden samples:"), measured]
    return Group(*parts)


def _files(manifest: Manifest) -> Table:
    table = _grid("file", "size", "sha256", right=("size",))
    for row in file_rows(manifest):
        add_row(table, *row)
    return table


def file_rows(manifest: Manifest) -> list[tuple[str, str, str]]:
    """Return name, size and start of the digest, a row a file; request bodies, of which there may be hundreds, share one."""
    blobs = [entry for name, entry in manifest.files.items() if name.startswith("golden/blobs/")]
    rows = [
        (name, size_words(entry.bytes), entry.sha256[:12])
        for name, entry in sorted(manifest.files.items())
        if not name.startswith("golden/blobs/")
    ]
    return [*rows, (f"golden/blobs/ ({len(blobs)} files)", size_words(sum(e.bytes for e in blobs)), "")] if blobs else rows


def _provenance(manifest: Manifest) -> Table:
    table = Table.grid(padding=(0, 2))
    for label, value in provenance_rows(manifest):
        add_row(table, label, value)
    return table


def provenance_rows(manifest: Manifest) -> list[tuple[str, str]]:
    """Return where a package came from, as label and value."""
    facts = manifest.provenance
    rows = [
        ("trainer", facts.trainer),
        ("framework", facts.framework),
        ("libraries", ", ".join(f"{name} {version}" for name, version in facts.libraries.items())),
        ("python", facts.python),
        ("proven on", facts.machine),
        ("data", facts.data),
        ("license", facts.license),
        ("importer", importer_words(facts.importer)),
        ("notes", facts.notes),
        ("here", f"Python {platform.python_version()}, {platform.machine()}"),
        ("differs here", "; ".join(f"{d.what}: proven with {d.proven}, here {d.here}" for d in deviations(manifest, environment()))),
    ]
    return [(label, value) for label, value in rows if value]


def importer_words(importer: Importer | None) -> str:
    """Return which importer made a package and whether it is proven, with its warnings."""
    if importer is None:
        return ""
    state = f"proven against {importer.reference}" if importer.proven else f"UNPROVEN: {importer.reference or 'compared with nothing'}"
    return ". ".join([f"{importer.name}, {state}", *importer.warnings])


def _brackets(shape: Sequence[int | None]) -> str:
    return f"[{', '.join('any' if d is None else str(d) for d in shape)}]"


def size_words(n: int) -> str:
    """Return a size in bytes as people write it."""
    value = float(n)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"
