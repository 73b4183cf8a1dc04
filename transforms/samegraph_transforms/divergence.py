"""Where a package leaves the training code's way: the first node that diverges, with the element and the raw value that show it.

One row that differs runs again with every value of every graph kept. Three questions are then asked, in this order:

1. Is there a repair that makes the answer right? Another filter or order of passes for a resize, a cast that is left out, one of the
   normalisations that networks are trained with. A repair that gives the training code's values proves its node guilty.
2. Does the runtime compute what the operators mean? Every node between the last value known to be right and the first known to be
   wrong is computed again by `onnx.reference`, from the very inputs the runtime gave it, so that differences do not add up along the
   chain. A host kernel is held against the ONNX body it stands in for.
3. Else: which nodes can the differing element depend on at all? It is followed backwards through the graph, through `Concat`, `Gather`
   and the like by its place, past nodes that hand this row's value on unchanged. The first node left, in the order the data flows, is
   named; how many others it might also be is said.

What it costs is bounded: one row, one session at a time with the weights in memory once, and `BUDGET_S` for the reference.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import onnx
import PIL
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from ._lineage import Place, constants_of, hands_through, label, reads, sources
from .errors import ExecutionError, InputError
from .exactness import Comparison, Deciding, compare
from .executor import CPU, OrtExecutor
from .functions import function_names, library
from .golden import GoldenSample, SampleResult
from .itemplan import compile_item_plan
from .manifest import BINARY_KINDS, Manifest, Stage, Tolerance
from .opencv_functions import needs_cv2
from .opsets import DOMAIN, IR_VERSION
from .package import Package
from .runtime import PackageRuntime
from .signature import Row
from .weights import Weights
from .wire import decode_request

Kind: TypeAlias = Literal["decode", "resize", "dtype", "vocabulary", "missing rule", "accumulation", "arithmetic"]

#: Most seconds that `onnx.reference`, which is written in Python, computes nodes again; what is left then is counted.
BUDGET_S: Final = 20.0
#: Rows of the batch that is traced when a row is right alone and wrong in company.
MAX_TRACED_BATCH: Final = 32
#: Raw fields, other suspects and elements of a value that a report shows.
SHOWN: Final = 12
#: Relative to the tensor's largest value: smaller differences come from the order of sums, larger ones from other arithmetic.
ACCUMULATED: Final = 1e-4

#: What networks are usually fed: in words, and (pixel − mean) / std for pixels from 0 to 255.
NORMALISATIONS: Final[tuple[tuple[str, Any, Any], ...]] = (
    ("(x − 127) / 128", 127.0, 128.0),
    ("(x − 127.5) / 127.5", 127.5, 127.5),
    ("x / 255", 0.0, 255.0),
    ("x", 0.0, 1.0),
    ("(x − 128) / 128", 128.0, 128.0),
    ("ImageNet's mean and deviation", np.array([0.485, 0.456, 0.406]) * 255, np.array([0.229, 0.224, 0.225]) * 255),
    (
        "CLIP's mean and deviation",
        np.array([0.48145466, 0.4578275, 0.40821073]) * 255,
        np.array([0.26862954, 0.26130258, 0.27577711]) * 255,
    ),
)

_VOCABULARY = frozenset(
    {"LabelEncoder", "OneHotEncoder", "CategoryMapper", "DictVectorizer", "StringNormalizer", "StringSplit", "RegexFullMatch", "Tokenize"}
    | {"TfIdfVectorizer", "OneHot", "CountTerms"}
)
_MISSING = frozenset({"IsNaN", "Where", "Imputer"})
_DTYPE = frozenset({"Cast", "CastLike", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


@dataclass(frozen=True)
class Picture:
    """An image value that differs, for the page.

    Attributes:
        tensor: Which value.
        sample: Of which golden sample.
        expected: uint8 [height, width, 3].
        got: uint8 of the same shape.
    """

    tensor: str
    sample: str
    expected: np.ndarray
    got: np.ndarray


@dataclass(frozen=True)
class Divergence:
    """The first node that diverges.

    Attributes:
        node: Its name; that of the first value it makes where it has none.
        operator: `Div`, `ai.onnx.ml::LabelEncoder`, `samegraph::PillowResize_bicubic_since13`.
        stage: The stage it is in.
        tensor: The value compared: the node's own where there is a reference for it, else the first captured one behind it.
        kind: What kind of thing went wrong.
        sample: The golden sample that shows it.
        instance: Which row of it.
        index: The element, without the row; empty when the arrays cannot be compared.
        expected: The reference's element.
        got: The package's.
        ulp: Steps between them; None when they are no floats.
        raw: The row's raw fields that the element depends on.
        reference: What `expected` comes from.
        why: A sentence.
        proven: Whether a repair or the reference shows that it is this node and no other.
        suspects: Other nodes it might be, in order; empty when proven.
        unchecked: Nodes that the reference had no time or no implementation for.
        picture: The images, where the value is one.
    """

    node: str
    operator: str
    stage: str
    tensor: str
    kind: Kind
    sample: str
    instance: int
    index: tuple[int, ...]
    expected: Any
    got: Any
    ulp: int | None
    raw: Mapping[str, Any]
    reference: str
    why: str
    proven: bool
    suspects: tuple[str, ...] = ()
    unchecked: int = 0
    picture: Picture | None = field(default=None, compare=False)

    def __str__(self) -> str:
        place = f"node {self.node!r} ({self.operator}) of stage {self.stage!r}"
        return f"{self.kind}: {place}: {self.why}"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values, without the images."""
        document = {name: value for name, value in self.__dict__.items() if name != "picture"}
        numbers = {"expected": _plain(self.expected), "got": _plain(self.got), "raw": {k: _plain(v) for k, v in self.raw.items()}}
        return document | numbers | {"index": list(self.index), "suspects": list(self.suspects)}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return repr(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


# --- one row, every value -----------------------------------------------------------------------------------------------


@dataclass
class StageTrace:
    """One stage of one row (or batch), with every value.

    Attributes:
        stage: Which.
        model: Its graph, with its tensors.
        values: Value → array, the graph's inputs included; values that are no tensors are left out.
        constants: Constant → array, for those of the graph's initializers and `Constant` nodes that are small.
    """

    stage: Stage
    model: onnx.ModelProto
    values: dict[str, np.ndarray]
    constants: dict[str, np.ndarray]

    @property
    def is_item(self) -> bool:
        """Whether its values have no batch dimension."""
        return self.stage.name == "preprocess.item"

    def producer(self, name: str) -> onnx.NodeProto | None:
        """Return the node that makes a value."""
        return next((n for n in self.model.graph.node if name in n.output), None)


def trace(package: Package, rows: Sequence[Row], providers: Sequence[str] = CPU) -> list[StageTrace]:
    """Run rows of one shape as one batch, stage by stage, and keep every value of the main graphs.

    Host kernels are off: what is traced is what the graphs say. The values of the item stage are those of the first row.

    Raises:
        InputError: A row is refused by the item stage.
        ExecutionError: A graph fails.
    """
    found: list[StageTrace] = []
    with closing(PackageRuntime.load(package, providers=providers, kernels="off", merge=False)) as runtime:
        boundary = runtime.trace(rows)
        names = runtime.signature.names
    item = package.manifest.stage("preprocess.item")
    if item is not None:
        found.append(_trace_item(package, item, dict(zip(names, rows[0], strict=True))))
    batch = [stage for stage in package.manifest.stages if stage.name != "preprocess.item"]
    return found + [_trace_batch(package, stage, boundary, providers) for stage in batch]


def _trace_item(package: Package, stage: Stage, row: Mapping[str, object]) -> StageTrace:
    model = package.load_stage(stage.name)
    constants = constants_of(model)
    inner = [name for node in model.graph.node for name in node.output if name and name not in constants]
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    widened = stage.model_copy(update={"outputs": {name: name for name in inner}})
    stages = [widened if s.name == stage.name else s for s in package.manifest.stages]
    manifest = package.manifest.model_copy(update={"stages": stages})
    plan = compile_item_plan(shown, manifest, make_executor=OrtExecutor, kernels="off", read_file=package.read_file)
    values = plan(row)
    for name, value in stage.inputs.items():
        if not isinstance(row.get(value), bytes | bytearray | memoryview | None):
            values[name] = np.atleast_1d(np.asarray(row[value]))
    return StageTrace(stage, model, values, constants)


def _trace_batch(package: Package, stage: Stage, boundary: Mapping[str, np.ndarray], providers: Sequence[str]) -> StageTrace:
    model = package.load_stage(stage.name)
    weights = Weights()
    shown = package.load_stage(stage.name, weights)  # the session's weights are the only copy beside the graph's own
    constants = constants_of(model)
    known = {o.name for o in shown.graph.output}
    inner = [name for node in shown.graph.node for name in node.output if name and name not in known and name not in constants]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    executor = OrtExecutor(shown, providers=providers, weights=weights)
    feeds = {name: boundary[stage.inputs[name]] for name in executor.input_names}
    made: list[Any] = list(executor.run(feeds))  # sequences and maps too
    values = feeds | {name: value for name, value in zip(executor.output_names, made, strict=True) if isinstance(value, np.ndarray)}
    return StageTrace(stage, model, values, constants)


# --- the diagnosis ------------------------------------------------------------------------------------------------------


def diagnose(
    package: Package,
    samples: Sequence[GoldenSample],
    results: Sequence[SampleResult],
    tolerance: Tolerance,
    *,
    providers: Sequence[str] = CPU,
    budget_s: float = BUDGET_S,
) -> Divergence | None:
    """Find the node behind the first failure.

    Args:
        package: The package that failed.
        samples: The golden samples.
        results: What replaying them gave.
        tolerance: The promise that was broken.
        providers: Where to run.
        budget_s: Most seconds for `onnx.reference`.

    Returns:
        The node, or None when nothing failed, the failure is no difference of values, or the row answers rightly stage by stage.
    """
    failed = next((r for r in results if not r.passed and r.failure is not None and r.error is None), None)
    if failed is None or failed.failure is None:
        return None
    sample = next(s for s in samples if s.name == failed.sample)
    instance = failed.failure.first.index[0] if failed.failure.first is not None and failed.failure.first.index else 0
    try:
        with closing(PackageRuntime.load(package, providers=CPU, kernels="off", merge=False)) as runtime:
            signature = runtime.signature
        rows = [row for row in decode_request(signature, sample.headers, sample.body).rows if not isinstance(row, InputError)]
        detective = _Detective(package, sample, instance, rows[instance], signature.names, tolerance, providers, budget_s)
        return detective.first() or (detective.in_company(failed.batch_size) if failed.batch_size > 1 else None)
    except Exception:  # noqa: BLE001 - whatever a graph of strangers does to this search, the failure itself must be told
        return None


@dataclass(frozen=True)
class _Suspect:
    """A node that the differing element may depend on, and that element's place in what it makes."""

    at: int  # of the stage in the trace
    position: int  # of the node in its graph
    node: onnx.NodeProto
    place: Place


@dataclass(frozen=True)
class _Wrong:
    """The first captured value that is wrong."""

    at: int
    graph_name: str
    tensor: str
    comparison: Comparison
    expected: np.ndarray
    got: np.ndarray


class _Detective:
    """Looks for the node behind one wrong row."""

    def __init__(
        self,
        package: Package,
        sample: GoldenSample,
        instance: int,
        row: Row,
        names: Sequence[str],
        tolerance: Tolerance,
        providers: Sequence[str],
        budget_s: float,
    ) -> None:
        self.package = package
        self.manifest: Manifest = package.manifest
        self.sample = sample
        self.instance = instance
        self.row = row
        self.raw: dict[str, Any] = dict(zip(names, row, strict=True))
        self.tolerance = tolerance
        self.providers = providers
        self.until = time.monotonic() + budget_s
        self.unchecked = 0
        self.stages = trace(package, [row], providers)
        self.golden = {
            name: np.asarray(array)[instance : instance + 1] for name, array in {**sample.values, **sample.outputs}.items()
        }  # one row each
        self.right: set[str] = set()
        self.cleared: set[str] = set()  # casts without which the row comes out the same

    def first(self) -> Divergence | None:
        """Return the node behind the first value of this row that is wrong, run alone."""
        wrong = self._first_wrong()
        if wrong is None:
            return self._kernel()
        suspects, fields = self._suspects(wrong)
        if not suspects:
            return None
        for look in (self._repaired, self._runtime):
            found = look(wrong, suspects, fields)
            if found is not None:
                return found
        return self._likeliest(wrong, suspects, fields)

    def in_company(self, size: int) -> Divergence | None:
        """Return the first node that gives a row something else in a batch than alone."""
        many = trace(self.package, [self.row] * min(size, MAX_TRACED_BATCH), self.providers)
        for alone, together in zip(self.stages, many, strict=True):
            if alone.is_item:
                continue
            for node in alone.model.graph.node:
                for name in node.output:
                    if name not in alone.values or not _has_rows(alone.values[name], together.values[name]):
                        continue
                    found = compare(alone.values[name], together.values[name][:1], self.tolerance, tensor=name)
                    if not found.passed:
                        why = f"a row alone gives another value than in a batch of {size}"
                        return self._report(alone, node, found, "accumulation", "the same row alone", why, list(self.raw), proven=True)
        return None

    # -- which captured value is wrong first

    def _first_wrong(self) -> _Wrong | None:
        decided_by = {o.name: o.decided_by for o in self.manifest.outputs if o.decided_by is not None}
        for at, one in enumerate(self.stages):
            for graph_name, tensor in sorted(one.stage.outputs.items(), key=lambda pair: pair[1] in decided_by):
                expected, got = self.golden.get(tensor), one.values.get(graph_name)
                if expected is None or got is None:
                    continue
                got = got[None] if one.is_item else got[:1]
                scores = self.golden.get(decided_by.get(tensor, ""))
                deciding = Deciding(scores, self.tolerance) if scores is not None else None
                comparison = compare(expected, got, self.tolerance, tensor=tensor, decided_by=deciding)
                if not comparison.passed:
                    return _Wrong(at, graph_name, tensor, comparison, expected, got)
                self.right.add(tensor)
        return None

    # -- which nodes can be behind it

    def _suspects(self, wrong: _Wrong) -> tuple[list[_Suspect], list[str]]:
        """Follow the first differing element back to what is known to be right; return the nodes on the way and the raw fields."""
        makers = {value: (at, name) for at, one in enumerate(self.stages) for name, value in one.stage.outputs.items()}
        companions = {f.companion: f.name for f in self.manifest.fields if f.companion is not None}
        found: dict[tuple[int, str], _Suspect] = {}
        fields: dict[str, None] = {}
        start = wrong.comparison.first.index if wrong.comparison.first is not None else None
        if start is not None and self.stages[wrong.at].is_item:
            start = start[1:]
        seen: set[tuple[int, str, Place]] = set()
        todo: list[tuple[int, str, Place]] = [(wrong.at, wrong.graph_name, start)]
        while todo:
            here = at, name, place = todo.pop()
            if here in seen:
                continue
            seen.add(here)
            one = self.stages[at]
            node = one.producer(name)
            value = one.stage.outputs.get(name)
            if value in self.right and (at, name) != (wrong.at, wrong.graph_name):
                continue
            if node is None:
                entering = one.stage.inputs.get(name)
                if entering is None or entering in self.right:
                    continue
                if entering in makers and makers[entering][0] < at:
                    earlier, graph_name = makers[entering]
                    todo.append((earlier, graph_name, place[1:] if place is not None and self.stages[earlier].is_item else place))
                elif companions.get(entering, entering) in self.raw:
                    fields.setdefault(companions.get(entering, entering))
                continue
            position = next(i for i, n in enumerate(one.model.graph.node) if n is node or n == node)
            found.setdefault((at, node.output[0]), _Suspect(at, position, node, place))
            todo += [(at, source, where) for source, where in sources(node, name, place, one.values, one.constants)]
        return sorted(found.values(), key=lambda s: (s.at, s.position)), list(fields)

    # -- 2. the runtime against the meaning of the operators

    def _runtime(self, wrong: _Wrong, suspects: Sequence[_Suspect], fields: list[str]) -> Divergence | None:
        found = self._kernel()
        if found is not None:
            return found
        for suspect in suspects:
            one = self.stages[suspect.at]
            if _is_host(suspect.node):
                continue
            for name, expected in self._computed(one, suspect.node).items():
                got = one.values.get(name)
                if got is None:
                    continue
                comparison = compare(expected, got, self.tolerance, tensor=name)
                if not comparison.passed:
                    kind: Kind = "accumulation" if expected.dtype.kind == "f" else _kind_of(suspect.node)
                    why = "ONNX Runtime computes something else than the operator's definition from the same inputs"
                    return self._report(one, suspect.node, comparison, kind, "onnx.reference", why, fields, proven=True)
        return None

    def _kernel(self) -> Divergence | None:
        """Compare the item stage as it is served, host kernels and all, with its graph."""
        item = self.manifest.stage("preprocess.item")
        if item is None:
            return None
        one = self.stages[0]
        model = self.package.load_stage(item.name)
        plan = compile_item_plan(model, self.manifest, make_executor=OrtExecutor, read_file=self.package.read_file)
        kernels = [step for step in plan.steps if step.engine == "kernel"]
        if not kernels:
            return None
        served = plan(self.raw)
        for graph_name, value in item.outputs.items():
            comparison = compare(one.values[graph_name], served[value], self.tolerance, tensor=value)
            if not comparison.passed:
                node = next(n for n in one.model.graph.node if label(n) == kernels[-1].nodes[-1])
                why = f"the host kernel of {kernels[-1].library} gives something else than the node's own graph"
                return self._report(one, node, comparison, "resize", "the node's own graph", why, list(self.raw), proven=True)
        return None

    def _computed(self, one: StageTrace, node: onnx.NodeProto, given: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Return what `onnx.reference` makes of a node's inputs; {} (and counted) when it cannot, or time is up."""
        if time.monotonic() > self.until:
            self.unchecked += 1
            return {}
        try:
            return _evaluate(one, node, given or {})
        except Exception:  # noqa: BLE001 - the reference lacks operators and raises whatever NumPy raises
            self.unchecked += 1
            return {}

    # -- 1. repairs

    def _repaired(self, wrong: _Wrong, suspects: Sequence[_Suspect], fields: list[str]) -> Divergence | None:
        for suspect in suspects:
            one = self.stages[suspect.at]
            for what, kind, values in self._repairs(one, suspect):
                target = self._forward(suspect.at, values, wrong)
                if target is None or target.shape != wrong.expected.shape or target.dtype.kind != wrong.expected.dtype.kind:
                    continue
                if compare(wrong.expected, target.astype(wrong.expected.dtype), self.tolerance).passed:
                    reference = f"the training code's {wrong.tensor!r}"
                    return self._report(one, suspect.node, wrong.comparison, kind, reference, what, fields, proven=True, wrong=wrong)
                if kind == "dtype" and np.array_equal(target.astype(wrong.got.dtype), wrong.got):
                    self.cleared.add(label(suspect.node))
        return None

    def _repairs(self, one: StageTrace, suspect: _Suspect) -> Iterator[tuple[str, Kind, dict[str, np.ndarray]]]:
        """Yield ways to make a node right: a sentence, the kind, and what it would make then."""
        node = suspect.node
        if node.domain == DOMAIN and node.op_type in function_names() and any(word in node.op_type for word in ("Resize", "Crop", "Flip")):
            for other in _relatives(node.op_type):
                changed = onnx.NodeProto()
                changed.CopyFrom(node)
                changed.op_type = other
                try:
                    yield f"with {other} in its place the values are training's", "resize", _run_function(one, changed)
                except ExecutionError:
                    continue
        if node.op_type == "Cast" and _loses(node, one.values):
            source = one.values[node.input[0]]
            before, after = source.dtype.name, one.values[node.output[0]].dtype.name
            yield (
                f"casting {before} to {after} here changes the row; without it the values are training's",
                "dtype",
                {node.output[0]: source},
            )
        if node.op_type in ("Sub", "Div", "Mul", "Add"):
            yield from self._normalisations(one)

    def _normalisations(self, one: StageTrace) -> Iterator[tuple[str, Kind, dict[str, np.ndarray]]]:
        """Yield what the stage would make of pixels that are right with the normalisations that networks are trained with."""
        pixels = [one.values[name] for name, value in one.stage.inputs.items() if value in self.right]
        made = [name for name in one.stage.outputs if one.values[name].dtype == np.float32]
        if len(pixels) != 1 or len(made) != 1 or pixels[0].dtype != np.uint8 or pixels[0].ndim not in (4, 5):
            return
        got = one.values[made[0]]
        chw = got.shape == np.moveaxis(pixels[0], -1, -3).shape and got.shape != pixels[0].shape
        if not chw and got.shape != pixels[0].shape:
            return
        for words, mean, std in NORMALISATIONS:
            values = (pixels[0].astype(np.float32) - np.float32(mean)) / np.float32(std)
            why = f"with {words} instead of what this node begins the values are training's"
            yield why, "arithmetic", {made[0]: np.ascontiguousarray(np.moveaxis(values, -1, -3) if chw else values)}

    def _forward(self, at: int, changed: Mapping[str, np.ndarray], wrong: _Wrong) -> np.ndarray | None:
        """Return the wrong value as it would be if some earlier values were others."""
        known = dict(changed)
        crossing: dict[str, np.ndarray] = {}
        for here in range(at, wrong.at + 1):
            one = self.stages[here]
            if here > at:
                known = {name: crossing[value] for name, value in one.stage.inputs.items() if value in crossing}
            known |= (here > at and _stage_run(one, known)) or self._node_by_node(one, known)
            crossing |= {v: known[n][None] if one.is_item else known[n] for n, v in one.stage.outputs.items() if n in known}
        result = known.get(wrong.graph_name)
        return None if result is None else result[None] if self.stages[wrong.at].is_item else result

    def _node_by_node(self, one: StageTrace, changed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute with `onnx.reference`, which takes values of any type, what depends on values that were changed."""
        known = dict(changed)
        for node in one.model.graph.node:
            if any(name in known for name in reads(node)) and not any(name in known for name in node.output):
                known.update(self._computed(one, node, known))
        return known

    # -- 3. the likeliest

    def _likeliest(self, wrong: _Wrong, suspects: Sequence[_Suspect], fields: list[str]) -> Divergence | None:
        doing = [s for s in suspects if not self._innocent(s)]
        reference = f"the training code's {wrong.tensor!r}"
        missing = bool(fields) and all(_is_missing(self.raw[name]) for name in fields)
        rules = [s for s in doing if s.node.op_type in _MISSING]
        resizes = [s for s in doing if _kind_of(s.node) == "resize" and "Resize" in s.node.op_type]
        chosen = (_rules_first(rules) if missing and rules else resizes or doing or list(suspects))[0]
        kind: Kind = "missing rule" if missing else _kind_of(chosen.node)
        if kind == "arithmetic" and _is_close(wrong.comparison, wrong.expected):
            kind = "accumulation"
        others = tuple(label(s.node) for s in doing if s is not chosen)
        count = f"; {len(others)} more {'nodes lie' if len(others) > 1 else 'node lies'} on the way to it" if others else ""
        known = f"{', '.join(sorted(self.right))} is right, and " if self.right else ""
        why = f"{known}this is {'the first' if others else 'the only'} node after it that changes what the element comes from{count}"
        why = why if self.right else why.replace(" after it", "")
        one = self.stages[chosen.at]
        return self._report(
            one, chosen.node, wrong.comparison, kind, reference, why, fields, proven=not others, suspects=others[:SHOWN], wrong=wrong
        )

    def _innocent(self, suspect: _Suspect) -> bool:
        """Whether a node hands this row's element on unchanged, changes it to no effect, or is the decoder that training used."""
        one = self.stages[suspect.at]
        if suspect.node.op_type == "ImageDecoder":
            decoder = next((d for d in self.manifest.decoders if d.node == suspect.node.name), None)
            return decoder is not None and decoder.library_version == PIL.__version__
        if label(suspect.node) in self.cleared:
            return True
        return hands_through(suspect.node, suspect.place, one.values, one.constants)

    # -- the report

    def _report(
        self,
        one: StageTrace,
        node: onnx.NodeProto,
        comparison: Comparison,
        kind: Kind,
        reference: str,
        why: str,
        fields: Sequence[str],
        *,
        proven: bool,
        suspects: tuple[str, ...] = (),
        wrong: _Wrong | None = None,
    ) -> Divergence:
        first = comparison.first
        index = first.index if first is not None else ()
        return Divergence(
            node=label(node),
            operator=f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type,
            stage=one.stage.name,
            tensor=comparison.tensor,
            kind=kind,
            sample=self.sample.name,
            instance=self.instance,
            index=index[1:] if wrong is not None or not one.is_item else index,
            expected=first.expected if first is not None else comparison.mismatch,
            got=first.got if first is not None else None,
            ulp=first.ulp if first is not None else None,
            raw={name: self._shown(name) for name in list(fields)[:SHOWN]},
            reference=reference,
            why=why,
            proven=proven,
            suspects=suspects,
            unchecked=self.unchecked,
            picture=picture(wrong.tensor, self.sample.name, wrong.expected, wrong.got) if wrong is not None else None,
        )

    def _shown(self, name: str) -> Any:
        value = self.raw[name]
        declared = next(f for f in self.manifest.fields if f.name == name)
        if declared.kind in BINARY_KINDS and isinstance(value, bytes | bytearray | memoryview):
            return f"{len(value):,} bytes"
        if isinstance(value, np.ndarray):
            return f"{value.dtype} {list(value.shape)}"
        return value


def _has_rows(alone: np.ndarray, together: np.ndarray) -> bool:
    """Whether a value has a row per instance; a shape, say, is one thing for the whole batch."""
    if alone.ndim == 0 or together.ndim != alone.ndim:
        return False
    return alone.shape[0] == 1 and together.shape[0] > 1 and together.shape[1:] == alone.shape[1:]


# --- nodes, run apart -----------------------------------------------------------------------------------------------------


def _is_host(node: onnx.NodeProto) -> bool:
    return node.op_type == "ImageDecoder" or (node.domain == DOMAIN and node.op_type in ("Tokenize", "CountTerms"))


def _evaluate(one: StageTrace, node: onnx.NodeProto, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Compute one node, functions and all, with `onnx.reference`."""
    read = list(dict.fromkeys(reads(node)))
    tensors = {t.name: t for t in one.model.graph.initializer}
    known = dict(given) | {n: one.values[n] for n in read if n in one.values and n not in given}
    known |= {n: one.constants[n] for n in read if n in one.constants and n not in known}
    known |= {n: numpy_helper.to_array(tensors[n]) for n in read if n in tensors and n not in known}
    outputs = [name for name in node.output if name]
    graph = helper.make_graph([node], "one", [onnx.ValueInfoProto(name=n) for n in read], [onnx.ValueInfoProto(name=n) for n in outputs])
    model = helper.make_model(
        graph,
        functions=list(one.model.functions),
        opset_imports=list(one.model.opset_import),
        ir_version=one.model.ir_version or IR_VERSION,
    )
    feeds = {name: known[name].astype(object) if known[name].dtype.kind == "U" else known[name] for name in read}
    with np.errstate(all="ignore"):
        made = ReferenceEvaluator(model).run(None, feeds)
    return {name: np.asarray(value) for name, value in zip(outputs, made, strict=True)}


def _stage_run(one: StageTrace, changed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a whole stage in ONNX Runtime with some inputs changed; {} when it does not take them, for example in another type."""
    try:
        executor = OrtExecutor(one.model)
        feeds = {name: changed.get(name, one.values[name]) for name in executor.input_names}
        return dict(zip(executor.output_names, executor.run(feeds), strict=True))
    except (ExecutionError, KeyError):
        return {}


def _relatives(name: str) -> list[str]:
    """Return the functions that take and give what `name` does.

    Of a resize, other filters first, then the other order of passes; of a centre crop other roundings, of ten crops the other flip.
    """
    for one, other in (("Horizontal", "Vertical"), ("Vertical", "Horizontal")):
        if name.endswith(one):
            return [name.removesuffix(one) + other]
    head, _, rest = name.partition("_")
    order = rest.rpartition("_")[2]
    heads = next((alike for alike in _SAME_CALL if head in alike), (head,))
    found = [other for other in function_names() if other.partition("_")[0] in heads and other != name and not needs_cv2([other])]
    return sorted(found, key=lambda other: (other.partition("_")[0] != head, not other.endswith(order)))


#: Functions that take a size alike: (height, width), or the shorter side.
_SAME_CALL = (
    ("PillowResize", "OpenCVResize", "TorchResize", "TorchFloatResize"),
    ("PillowResizeShorterSide", "TorchResizeShorterSide", "TorchFloatResizeShorterSide"),
)


def _run_function(one: StageTrace, node: onnx.NodeProto) -> dict[str, np.ndarray]:
    """Run one call of one of our functions in ONNX Runtime, from the values of the trace."""
    read = [name for name in node.input if name]
    arrays = {name: one.values.get(name, one.constants.get(name)) for name in read}
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), list(a.shape))
        for n, a in arrays.items()
        if a is not None
    ]
    made = one.values[node.output[0]]
    output = helper.make_tensor_value_info(node.output[0], helper.np_dtype_to_tensor_dtype(made.dtype), [None] * made.ndim)
    model = helper.make_model(
        helper.make_graph([node], "one", inputs, [output]),
        functions=library([node.op_type]),
        opset_imports=list(one.model.opset_import),
        ir_version=one.model.ir_version or IR_VERSION,
    )
    executor = OrtExecutor(model)
    return dict(zip(executor.output_names, executor.run({n: a for n, a in arrays.items() if a is not None}), strict=True))


def _loses(node: onnx.NodeProto, values: Mapping[str, np.ndarray]) -> bool:
    """Whether a cast changes this row's values."""
    before, after = values.get(node.input[0]), values.get(node.output[0])
    if before is None or after is None or before.dtype.kind not in "fiu" or after.dtype.kind not in "fiu":
        return False
    with np.errstate(all="ignore"):
        return not np.array_equal(after.astype(before.dtype), before, equal_nan=before.dtype.kind == "f")


# --- what kind of thing it is -----------------------------------------------------------------------------------------------


def _kind_of(node: onnx.NodeProto) -> Kind:
    name = node.op_type
    if name == "ImageDecoder" or name == "ToRGB":
        return "decode"
    if name in _VOCABULARY:
        return "vocabulary"
    if name in _MISSING:
        return "missing rule"
    if name in _DTYPE:
        return "dtype"
    if name in ("Resize", "Upsample") or (node.domain == DOMAIN and any(word in name for word in ("Resize", "Crop", "Pad", "Resample"))):
        return "resize"
    return "arithmetic"


def _is_close(comparison: Comparison, expected: np.ndarray) -> bool:
    if expected.dtype.kind != "f" or not np.isfinite(comparison.max_abs):
        return False
    largest = float(np.abs(np.nan_to_num(expected, posinf=0.0, neginf=0.0)).max(initial=0.0))
    return comparison.max_abs <= ACCUMULATED * largest


def _rules_first(rules: Sequence[_Suspect]) -> list[_Suspect]:
    """Put what fills a gap before what finds it."""
    return sorted(rules, key=lambda s: s.node.op_type == "IsNaN")


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and value != value) or value == ""


def picture(tensor: str, sample: str, expected: np.ndarray, got: np.ndarray) -> Picture | None:
    """Return two values as images when they are ones: uint8 [1, h, w, 3], or floats [1, 3, h, w] stretched over one range.

    Of several crops, [1, k, …], it is the first that differs.
    """
    if expected.shape != got.shape or expected.ndim not in (4, 5):
        return None
    if expected.ndim == 5:
        crop = next((k for k in range(expected.shape[1]) if not np.array_equal(expected[:, k], got[:, k], equal_nan=True)), None)
        return None if crop is None else picture(f"{tensor}[{crop}]", sample, expected[:, crop], got[:, crop])
    if expected.dtype == np.uint8 and expected.shape[3] == 3:
        return Picture(tensor, sample, expected[0], got[0])
    if expected.dtype.kind == "f" and expected.shape[1] == 3 and expected.size and np.isfinite(expected).all() and np.isfinite(got).all():
        low, high = min(expected.min(), got.min()), max(expected.max(), got.max())
        stretch: Callable[[np.ndarray], np.ndarray] = lambda a: ((a[0] - low) / ((high - low) or 1) * 255).round().astype(np.uint8)  # noqa: E731
        return Picture(tensor, sample, stretch(expected).transpose(1, 2, 0), stretch(got).transpose(1, 2, 0))
    return None


# --- two versions of a package -------------------------------------------------------------------------------------------


def against(package: Package, other: Package, samples: Sequence[GoldenSample], tolerance: Tolerance) -> Divergence | None:
    """Return the first node that gives another value than the node of the same name in another version of the package.

    Every row of `samples` is looked at until one differs.

    Args:
        package: The package in question.
        other: What it is held against.
        samples: Requests that both take.
        tolerance: How far floats may be apart.

    Raises:
        InputError: A row is refused by one of them.
        ExecutionError: A graph fails.
    """
    with closing(PackageRuntime.load(package, merge=False)) as runtime:
        signature = runtime.signature
    for sample in samples:
        rows = [row for row in decode_request(signature, sample.headers, sample.body).rows if not isinstance(row, InputError)]
        for instance, row in enumerate(rows):
            detective = _Detective(package, sample, instance, row, signature.names, tolerance, CPU, 0.0)
            found = _apart(detective, trace(other, [row]), str(other))
            if found is not None:
                return found
    return None


def _apart(detective: _Detective, others: Sequence[StageTrace], other: str) -> Divergence | None:
    by_stage = {one.stage.name: one for one in others}
    for one in detective.stages:
        theirs = by_stage.get(one.stage.name)
        for node in one.model.graph.node if theirs is not None else ():
            for name in node.output:
                if theirs is None or name not in one.values or name not in theirs.values:
                    continue
                found = compare(theirs.values[name], one.values[name], detective.tolerance, tensor=name)
                if not found.passed:
                    suspects = [s for s in [name, *reads(node)] if s in one.stage.inputs]
                    fields = [one.stage.inputs[s] for s in suspects if one.stage.inputs[s] in detective.raw]
                    why = f"its inputs are those it has in {other}, what it makes of them is not"
                    report = detective._report(one, node, found, _kind_of(node), other, why, fields, proven=True)
                    return replace(report, picture=picture(name, report.sample, theirs.values[name], one.values[name]))
    return None
