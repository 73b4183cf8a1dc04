"""The item stage, compiled: host nodes, host kernels and ONNX Runtime subgraphs in turn.

`preprocess.item.onnx` is one ordinary ONNX graph. ONNX Runtime cannot run all of it (it has no kernel for `ImageDecoder`),
and some of it Pillow runs faster with the same result. `compile_item_plan` cuts the graph once, when a package is loaded:

    host      ai.onnx::ImageDecoder, run by decode.py as the manifest's `Decoder` of that node says
    host      samegraph::Tokenize, run by the `tokenizers` library as the manifest's `Tokenizer` of that node says
    host      samegraph::CountTerms, run by Python's `re` and `unicodedata` as the manifest's `Vectorizer` of that node says
    kernel    a call of one of our functions, or a resize and the crop of it, for which kernels.py has proven native code equal here
    onnx      everything else, in runs as long as the order of the data allows, each an ONNX Runtime session of its own

A call then walks a short list of prepared steps over a dictionary of values. Plans keep no state between calls and may be
called from any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np
import onnx
import onnxruntime as ort
import PIL
from onnx import helper, shape_inference

from .decode import check_decoder, open_image
from .errors import ExecutionError, InputError, ManifestInvalid
from .executor import Executor
from .functions import called_functions
from .kernels import (
    EMPTY_IMAGE,
    Kernel,
    MakeExecutor,
    Pixels,
    Proof,
    check_crops,
    check_size,
    crop_fraction,
    crops_of,
    host_kernel,
    is_opencv,
    kernel_library,
    prove,
    resized_size,
    size_after,
)
from .manifest import BINARY_KINDS, Decoder, Manifest, RawField, Stage
from .opencv_functions import needs_cv2
from .opencv_kernels import check_required
from .opsets import DOMAIN, IR_VERSION
from .terms import OP_TYPE as COUNT_TERMS
from .terms import TermCounter, term_counters
from .tokenization import OP_TYPE as TOKENIZE
from .tokenization import TextTokenizer, tokenizers_of

Engine = Literal["host", "kernel", "onnx"]
#: What reads a text field.
TextReader: TypeAlias = TextTokenizer | TermCounter
Values = dict[str, object]

_STAGE: Final = "preprocess.item"
_ONNX_DOMAINS: Final = ("", "ai.onnx")


@dataclass(frozen=True)
class Step:
    """One step of a plan, for people and for metrics.

    Attributes:
        nodes: Names of the graph's nodes it runs (the operator's name where a node has none), in order.
        engine: What runs it.
        library: The library and its version.
        note: For a decoder what training used; for a kernel (or a node that could have had one) what the battery showed.
    """

    nodes: tuple[str, ...]
    engine: Engine
    library: str
    note: str = ""


@dataclass(frozen=True)
class _Compiled:
    """A step with what it does to the values: reads some by name, adds others."""

    step: Step
    run: Callable[[Values], None]


@dataclass(frozen=True)
class _Input:
    """How a value arrives: its name among the raw fields, and the element type its graph input has."""

    graph_name: str
    value_name: str
    dtype: np.dtype[np.generic]
    encoded: bool


class ItemPlan:
    """A compiled item stage: raw values of one instance in, fixed-shape arrays out.

    Attributes:
        inputs: Names of the values it reads (raw fields and companions).
        outputs: Names of the values it makes, in graph order.
        steps: What runs what.
        tokenizers: Text field → what makes tokens or terms of it.
    """

    def __init__(
        self,
        inputs: Sequence[_Input],
        outputs: Sequence[tuple[str, str]],
        steps: Sequence[_Compiled],
        tokenizers: Mapping[str, TextReader],
    ) -> None:
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self._runs = tuple(s.run for s in steps)
        self.inputs: tuple[str, ...] = tuple(i.value_name for i in inputs)
        self.outputs: tuple[str, ...] = tuple(value for _, value in outputs)
        self.steps: tuple[Step, ...] = tuple(s.step for s in steps)
        self.tokenizers: Mapping[str, TextReader] = dict(tokenizers)

    def __call__(self, values: Mapping[str, object]) -> dict[str, np.ndarray]:
        """Run the stage for one instance.

        Args:
            values: One Python value per name in `inputs`: bytes for images and byte strings, a number, bool or str for
                scalar fields, an array for tensors.

        Returns:
            One array per name in `outputs`, without a batch dimension.

        Raises:
            InputError: The image is refused, or this instance makes a step fail; `field` names it.
        """
        env: Values = {i.graph_name: _arrive(i, values) for i in self._inputs}
        for run in self._runs:
            run(env)
        return {value: np.ascontiguousarray(_as_array(env[graph])) for graph, value in self._outputs}


def compile_item_plan(
    model: onnx.ModelProto,
    manifest: Manifest,
    *,
    make_executor: MakeExecutor,
    kernels: Literal["auto", "off"] = "auto",
    cache_dir: Path | None = None,
    read_file: Callable[[str], bytes] | None = None,
) -> ItemPlan:
    """Compile the item stage of a package.

    Args:
        model: preprocess.item.onnx.
        manifest: Names the stage's inputs and outputs, the decoders and the fields' limits.
        make_executor: How ONNX subgraphs are run.
        kernels: `auto` uses host kernels where they are proven equal on this machine; `off` runs every function's ONNX body, but for
            those that are not exact as a graph (see opencv_kernels.py).
        cache_dir: Where kernel verdicts are kept; None for the user's cache directory.
        read_file: Returns the content of a file of the package; only needed where there are tokenizers.

    Raises:
        ManifestInvalid: The graph and the manifest do not fit: a decoder or tokenizer is missing, or reads what is no raw field.
        EnvironmentUnfit: A decoder asks for a format that is not supported here, the tokenizers' library is missing, or a kernel that is
            required is missing or not equal to training's.
        ExecutionError: A subgraph does not load.
    """
    stage = manifest.stage(_STAGE)
    if stage is None:
        raise ManifestInvalid(f"{manifest.name}: the manifest has no {_STAGE} stage, so there is nothing to compile")
    tokenizers: dict[str, TextReader] = {
        **tokenizers_of(manifest.tokenizers, read_file or _no_file),
        **term_counters(manifest.vectorizers, read_file or _no_file),
    }
    return _Compiler(model, manifest, stage, make_executor, kernels, cache_dir, tokenizers).compile()


def _no_file(name: str) -> bytes:
    raise ManifestInvalid(f"there is no package to read {name} from")


class _Compiler:
    """Cuts one graph into steps."""

    def __init__(
        self,
        model: onnx.ModelProto,
        manifest: Manifest,
        stage: Stage,
        make_executor: MakeExecutor,
        kernels: str,
        cache_dir: Path | None,
        tokenizers: Mapping[str, TextReader],
    ) -> None:
        self.manifest = manifest
        self.tokenizers = tokenizers
        self.read_by: dict[str, TextReader] = {}
        self.stage = stage
        self.make_executor = make_executor
        self.kernels = kernels
        self.cache_dir = cache_dir
        self.model = model
        self.graph = model.graph
        self.functions = {f.name: f for f in model.functions if f.domain == DOMAIN}
        self.types = _value_types(model)
        self.constants: dict[str, onnx.NodeProto | onnx.TensorProto] = {t.name: t for t in self.graph.initializer}
        self.constants.update({n.output[0]: n for n in self.graph.node if n.op_type == "Constant" and n.domain in _ONNX_DOMAINS})
        self.decoders = {d.node: d for d in manifest.decoders}
        self.proofs: dict[tuple[str, ...], Proof] = {}  # by the outputs of the nodes

    def compile(self) -> ItemPlan:
        inputs = [self._input(i) for i in self.graph.input if i.name not in self.constants]
        outputs = [(o.name, self.stage.outputs[o.name]) for o in self.graph.output if o.name in self.stage.outputs]
        for graph, value in outputs:
            if graph in self.constants:
                raise self._invalid(f"output {value!r} of {_STAGE} is a constant; put it into the stage that uses it")
        available = {i.name for i in self.graph.input} | set(self.constants)
        pending = self._needed_nodes([graph for graph, _ in outputs])
        steps: list[_Compiled] = []
        while pending:
            made = self._host_steps(pending, available) or self._onnx_step(pending, available, [graph for graph, _ in outputs])
            steps += made
        return ItemPlan(inputs, outputs, steps, self.read_by)

    def _invalid(self, text: str) -> ManifestInvalid:
        return ManifestInvalid(f"{self.manifest.name}: {text}")

    # -- what there is to run

    def _needed_nodes(self, outputs: Sequence[str]) -> list[onnx.NodeProto]:
        """Return the nodes that the outputs depend on, in graph order, constants aside."""
        wanted = set(outputs)
        needed: list[onnx.NodeProto] = []
        for node in reversed(self.graph.node):
            if wanted.intersection(node.output) and node.output[0] not in self.constants:
                needed.append(node)
                wanted.update(_reads(node))
        return needed[::-1]

    def _input(self, info: onnx.ValueInfoProto) -> _Input:
        value_name = self.stage.inputs.get(info.name, info.name)
        field = self._field(value_name)
        dtype = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        return _Input(info.name, value_name, dtype, encoded=field is not None and field.kind in BINARY_KINDS)

    def _field(self, name: str) -> RawField | None:
        return next((f for f in self.manifest.fields if f.name == name), None)

    # -- host steps

    def _host_steps(self, pending: list[onnx.NodeProto], available: set[str]) -> list[_Compiled]:
        """Take out of `pending` the nodes the host can run now, and compile them."""
        steps: list[_Compiled] = []
        for node in list(pending):
            found = self._host_step(node, pending) if node in pending and available.issuperset(_reads(node)) else None
            if found is not None:
                step, nodes = found
                steps.append(step)
                for done in nodes:
                    pending.remove(done)
                    available.update(done.output)
        return steps

    def _host_step(self, node: onnx.NodeProto, pending: Sequence[onnx.NodeProto]) -> tuple[_Compiled, list[onnx.NodeProto]] | None:
        """Compile what the host can do from `node` on: the step and the nodes it does, or None."""
        if _is_decoder(node):
            return self._decoder_step(node), [node]
        if _is_tokenizer(node):
            return self._tokenizer_step(node), [node]
        if _is_counter(node):
            return self._counter_step(node), [node]
        then = self._only_reader(node, pending)
        for nodes in ([node, then], [node]) if then is not None else ([node],):
            step = self._kernel_step(nodes)
            if step is not None:
                return step, nodes
        return None

    def _only_reader(self, node: onnx.NodeProto, pending: Sequence[onnx.NodeProto]) -> onnx.NodeProto | None:
        """Return the node that reads the result of `node`, if nothing else does."""
        readers = [other for other in pending if node.output[0] in _reads(other)]
        return readers[0] if len(readers) == 1 and node.output[0] not in self.stage.outputs else None

    def _decoder_step(self, node: onnx.NodeProto) -> _Compiled:
        decoder = self.decoders.get(node.name)
        if decoder is None:
            raise self._invalid(f"the manifest declares no decoder for node {node.name!r} of {_STAGE}; add one to `decoders`")
        field = self._field(self.stage.inputs.get(node.input[0], node.input[0]))
        if field is None or field.kind != "image" or node.input[0] not in {i.name for i in self.graph.input}:
            raise self._invalid(f"decoder {node.name!r} must read an image field directly; it reads {node.input[0]!r}")
        if any(a.name == "pixel_format" and a.s != b"RGB" for a in node.attribute):
            raise self._invalid(
                f"decoder {node.name!r} asks for another pixel_format than RGB, the only one supported; convert in the graph"
            )
        check_decoder(decoder)
        note = f"trained with {decoder.library} {decoder.library_version}"
        step = Step((_label(node),), "host", f"Pillow {PIL.__version__}", note)
        return _Compiled(step, partial(_decode, node.input[0], node.output[0], decoder, field.max_pixels, field.name))

    def _tokenizer_step(self, node: onnx.NodeProto) -> _Compiled:
        tokenizer = self.tokenizers.get(node.name)
        if not isinstance(tokenizer, TextTokenizer):
            raise self._invalid(f"the manifest declares no tokenizer for node {node.name!r} of {_STAGE}; add one to `tokenizers`")
        field = self._text_field(node, "tokenizer")
        if len(node.output) != len(tokenizer.declared.arrays):
            arrays = ", ".join(tokenizer.declared.arrays)
            raise self._invalid(f"tokenizer {node.name!r} has {len(node.output)} outputs in the graph, and the manifest names {arrays}")
        self.read_by.setdefault(field.name, tokenizer)
        step = Step((_label(node),), "host", tokenizer.library, f"trained with tokenizers {tokenizer.declared.library_version}")
        return _Compiled(step, partial(_tokenize, node.input[0], tuple(node.output), tokenizer, field.name))

    def _counter_step(self, node: onnx.NodeProto) -> _Compiled:
        counter = self.tokenizers.get(node.name)
        if not isinstance(counter, TermCounter):
            raise self._invalid(f"the manifest declares no vectorizer for node {node.name!r} of {_STAGE}; add one to `vectorizers`")
        field = self._text_field(node, "vectorizer")
        if len(node.output) != 2:
            raise self._invalid(f"vectorizer {node.name!r} has {len(node.output)} outputs in the graph; it gives columns and counts")
        self.read_by.setdefault(field.name, counter)
        step = Step((_label(node),), "host", counter.library, f"trained with Unicode {counter.declared.unicode_version}")
        return _Compiled(step, partial(_tokenize, node.input[0], tuple(node.output), counter, field.name))

    def _text_field(self, node: onnx.NodeProto, what: str) -> RawField:
        """Return the raw field that a tokenizer or vectorizer reads; it must be one, and a text."""
        field = self._field(self.stage.inputs.get(node.input[0], node.input[0]))
        if field is None or field.kind not in ("text", "string") or node.input[0] not in {i.name for i in self.graph.input}:
            raise self._invalid(f"{what} {node.name!r} must read a text field directly; it reads {node.input[0]!r}")
        return field

    def _kernel_step(self, nodes: Sequence[onnx.NodeProto]) -> _Compiled | None:
        """Compile `nodes`, one or two, as a host kernel if there is one and it is proven equal here."""
        first, last = nodes[0], nodes[-1]
        if first.domain == DOMAIN and needs_cv2([first.op_type]):
            return self._required_step(first) if len(nodes) == 1 else None
        kernel = host_kernel(*nodes) if self.kernels == "auto" and all(n.op_type in self.functions for n in nodes) else None
        if kernel is None or any(len(n.input) != 1 for n in nodes) or first.input[0] in self.constants:
            return None
        place = tuple(n.output[0] for n in nodes)
        if place not in self.proofs:
            then = last if len(nodes) > 1 else None
            self.proofs[place] = prove(first, self._closure(nodes), self.make_executor, then=then, cache_dir=self.cache_dir)
        proof = self.proofs[place]
        if not proof.equal:
            return None
        step = Step(tuple(map(_label, nodes)), "kernel", kernel_library(first), _verdict(proof))
        return _Compiled(step, partial(_run_kernel, first.input[0], last.output[0], kernel, self._fields_behind(first)))

    def _required_step(self, node: onnx.NodeProto) -> _Compiled:
        """Compile a node whose function is not exact as a graph: its library runs it, `kernels="off"` or not."""
        note = check_required(node)
        kernel = host_kernel(node)
        if kernel is None:
            raise self._invalid(f"node {_label(node)!r} of {_STAGE}: {node.op_type} has other attributes than it takes")
        step = Step((_label(node),), "kernel", kernel_library(node), note)
        return _Compiled(step, partial(_run_kernel, node.input[0], node.output[0], kernel, self._fields_behind(node)))

    # -- ONNX steps

    def _onnx_step(self, pending: list[onnx.NodeProto], available: set[str], outputs: Sequence[str]) -> list[_Compiled]:
        """Take the longest run of nodes that need no host step in between, and compile it to one session."""
        made: set[str] = set()
        run: list[onnx.NodeProto] = []
        for node in pending:
            if not _is_host_node(node) and (available | made).issuperset(_reads(node)) and self._host_step(node, pending) is None:
                run.append(node)
                made.update(node.output)
        if not run:
            raise self._invalid(f"{_STAGE} cannot be ordered: node {_label(pending[0])!r} reads a value nothing makes")
        for node in run:
            pending.remove(node)
        available.update(made)
        later = {name for node in pending for name in _reads(node)} | set(outputs)
        model = self._submodel(run, [name for node in run for name in node.output if name in later])
        step = Step(tuple(_label(n) for n in run), "onnx", f"ONNX Runtime {ort.__version__}", self._refused(run))
        return [_Compiled(step, partial(_run_onnx, self.make_executor(model), _guards(run), self._fields_behind(*run)))]

    def _submodel(self, nodes: list[onnx.NodeProto], outputs: list[str]) -> onnx.ModelProto:
        """Make a model of its own out of `nodes`, with the constants and functions they use."""
        made = {name for node in nodes for name in node.output}
        read = dict.fromkeys(name for node in nodes for name in _reads(node) if name not in made)
        constants = [self.constants[name] for name in read if name in self.constants]
        graph = helper.make_graph(
            [c for c in constants if isinstance(c, onnx.NodeProto)] + nodes,
            "item_part",
            [self._typed(name) for name in read if name not in self.constants],
            [self._typed(name) for name in outputs],
            initializer=[c for c in constants if isinstance(c, onnx.TensorProto)],
        )
        imports, ir_version = list(self.model.opset_import), self.model.ir_version or IR_VERSION
        return helper.make_model(graph, functions=self._closure(nodes), opset_imports=imports, ir_version=ir_version)

    def _typed(self, name: str) -> onnx.ValueInfoProto:
        """Return `name` with its element type and rank; shapes stay open, since every instance has its own."""
        if name not in self.types:
            raise self._invalid(f"the type of value {name!r} in {_STAGE} cannot be inferred; add it to the graph's value_info")
        return self.types[name]

    def _closure(self, nodes: Sequence[onnx.NodeProto]) -> list[onnx.FunctionProto]:
        """Return the package's own functions that `nodes` need, callees first."""
        found: dict[str, onnx.FunctionProto] = {}

        def add(name: str) -> None:
            if name not in self.functions or name in found:
                return
            for callee in called_functions(self.functions[name].node):
                add(callee)
            found[name] = self.functions[name]

        for name in called_functions(nodes):
            add(name)
        return list(found.values())

    def _refused(self, nodes: Sequence[onnx.NodeProto]) -> str:
        """Say which nodes of an ONNX step a host kernel was refused for, and why."""
        proofs = [(n, self.proofs[n.output[0],]) for n in nodes if (n.output[0],) in self.proofs]
        return "; ".join(f"{_label(n)}: {_verdict(p)}" for n, p in proofs if not p.equal)

    def _fields_behind(self, *nodes: onnx.NodeProto) -> str | None:
        """Name the raw field that `nodes` depend on, if it is a single one: errors can then be laid at its door."""
        wanted = {name for node in nodes for name in _reads(node)}
        for node in reversed(self.graph.node):
            if wanted.intersection(node.output):
                wanted.update(_reads(node))
        names = {self.stage.inputs.get(i.name, i.name) for i in self.graph.input if i.name in wanted}
        fields = {f.name for f in self.manifest.fields if f.name in names or f.companion in names}
        return fields.pop() if len(fields) == 1 else None


# ---------------------------------------------------------------- what the steps do


def _arrive(expected: _Input, values: Mapping[str, object]) -> object:
    """Turn a raw value into what the graph input takes; encoded bytes stay bytes for the decoders."""
    try:
        value = values[expected.value_name]
    except KeyError:
        raise InputError(f"field {expected.value_name!r} is missing", code="missing_field", field=expected.value_name) from None
    if value is None:
        raise InputError(f"field {expected.value_name!r} is required", code="missing_field", field=expected.value_name)
    if expected.encoded or isinstance(value, np.ndarray):
        return value
    return np.array([value], dtype=expected.dtype)


def _as_array(value: object) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, Pixels):
        return value.array()
    assert isinstance(value, bytes | bytearray | memoryview)
    return np.frombuffer(value, dtype=np.uint8)


def _decode(source: str, target: str, decoder: Decoder, max_pixels: int | None, field: str, env: Values) -> None:
    data = env[source]
    assert isinstance(data, bytes | bytearray | memoryview)
    env[target] = Pixels(image=open_image(bytes(data), decoder, max_pixels=max_pixels, field=field))


def _tokenize(source: str, targets: Sequence[str], tokenizer: TextReader, field: str, env: Values) -> None:
    text = _as_array(env[source])[0]
    env.update(zip(targets, tokenizer(text, field), strict=True))


def _run_kernel(source: str, target: str, kernel: Kernel, field: str | None, env: Values) -> None:
    value = env[source]
    pixels = value if isinstance(value, Pixels) else Pixels(array=_as_array(value))
    try:
        env[target] = kernel(pixels)
    except InputError as error:
        raise _at_field(error, field) from error


def _run_onnx(executor: Executor, guards: Sequence[_Guard], field: str | None, env: Values) -> None:
    feeds = {name: _as_array(env[name]) for name in executor.input_names}
    try:
        for name, check in guards:
            check(feeds[name].shape[:2])
        results = executor.run(feeds)
    except InputError as error:
        raise _at_field(error, field) from error
    except ExecutionError as error:
        raise _at_field(InputError(f"preprocessing failed: {error}", code="execution_failed"), field) from error
    env.update(zip(executor.output_names, results, strict=True))


def _at_field(error: InputError, field: str | None) -> InputError:
    """Return `error` with the field's name in front."""
    if field is None or error.field is not None:
        return error
    return InputError(f"field {field!r}: {error}", code=error.code, field=field)


# ---------------------------------------------------------------- reading graphs


def _is_decoder(node: onnx.NodeProto) -> bool:
    return node.op_type == "ImageDecoder" and node.domain in _ONNX_DOMAINS


def _is_tokenizer(node: onnx.NodeProto) -> bool:
    return node.op_type == TOKENIZE and node.domain == DOMAIN


def _is_counter(node: onnx.NodeProto) -> bool:
    return node.op_type == COUNT_TERMS and node.domain == DOMAIN


def _is_host_node(node: onnx.NodeProto) -> bool:
    return _is_decoder(node) or _is_tokenizer(node) or _is_counter(node)


#: An input of an ONNX step, and what its (height, width) must pass before the step runs.
_Guard = tuple[str, Callable[[Sequence[int]], None]]
_Sizes = Callable[[tuple[int, int]], tuple[int, int]]


def _guards(nodes: Sequence[onnx.NodeProto]) -> list[_Guard]:
    """Find the inputs of an ONNX step whose size decides whether it can run; kernels check the same by themselves.

    A crop of a one-pixel image can leave nothing, which makes the resize after it fail without telling why. A resize by the shorter side
    makes a long and narrow image enormous. Five crops are taken of an image that is large enough for them.
    """
    sources: dict[str, tuple[str, tuple[_Sizes, ...]]] = {}
    guards: list[_Guard] = []
    for node in nodes:
        source, before = sources.get(node.input[0], (node.input[0], ())) if node.input else ("", ())
        if (after := size_after(node)) is not None:
            sources[node.output[0]] = (source, (*before, after))
        fraction = crop_fraction(node) if node.domain == DOMAIN and node.op_type.startswith("CenterCropFraction_") else None
        checks = [] if fraction is None else [partial(_check_crop, fraction)]
        checks += [] if (resized := resized_size(node)) is None else [partial(_check_resized, resized)]
        checks += [] if (crops := crops_of(node)) is None else [partial(check_crops, crops[1])]
        guards += [(source, partial(_check_later, before, check)) for check in checks]
    made = {name for node in nodes for name in node.output}
    return [guard for guard in guards if guard[0] not in made]


def _check_later(steps: Sequence[_Sizes], check: Callable[[Sequence[int]], None], size: Sequence[int]) -> None:
    """Check the size that an image has after `steps`; one that becomes empty on the way is the affair of the step that empties it."""
    height, width = size
    for after in steps:
        if min(height, width) < 1:
            return
        height, width = after((height, width))
    check((height, width))


def _check_crop(fraction: float, size: Sequence[int]) -> None:
    if int(fraction * min(size)) < 1:
        raise InputError(EMPTY_IMAGE, code="wrong_shape")


def _check_resized(resized: Callable[[tuple[int, int]], tuple[int, int]], size: Sequence[int]) -> None:
    height, width = size
    if min(height, width) > 0:
        check_size(resized((height, width)))


def _label(node: onnx.NodeProto) -> str:
    return node.name or node.op_type


def _verdict(proof: Proof) -> str:
    if proof.equal:
        return f"equal to the ONNX body on {proof.cases} of {proof.cases} images (battery {proof.battery})"
    return f"no host kernel, {proof.detail} (battery {proof.battery})"


def _reads(node: onnx.NodeProto) -> list[str]:
    """Name the outer values `node` reads, those its subgraphs capture included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            names += _captured(graph)
    return names


def _captured(graph: onnx.GraphProto) -> list[str]:
    """Name what `graph` reads from outside itself."""
    own = {i.name for i in graph.input} | {t.name for t in graph.initializer} | {name for node in graph.node for name in node.output}
    read = [name for node in graph.node for name in _reads(node)] + [o.name for o in graph.output]
    return [name for name in read if name not in own]


def _value_types(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """Infer element type and rank of every value; dimensions are left open."""
    graph = shape_inference.infer_shapes(model).graph
    known = {v.name: _open_shape(v) for v in (*graph.value_info, *graph.input, *graph.output) if v.type.tensor_type.elem_type}
    for node in model.graph.node:
        if _is_decoder(node) or is_opencv(node) or host_kernel(node) is not None or resized_size(node) is not None:
            rank = 3 if crops_of(node) is None else 4
            known[node.output[0]] = helper.make_tensor_value_info(node.output[0], onnx.TensorProto.UINT8, _open_dims(node.output[0], rank))
        elif _is_tokenizer(node):
            for output in node.output:
                known[output] = helper.make_tensor_value_info(output, onnx.TensorProto.INT64, _open_dims(output, 1))
        elif _is_counter(node):
            for output, dtype in zip(node.output, (onnx.TensorProto.INT64, onnx.TensorProto.DOUBLE), strict=False):
                known[output] = helper.make_tensor_value_info(output, dtype, _open_dims(output, 1))
    return known


def _open_shape(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    tensor = value.type.tensor_type
    dims = _open_dims(value.name, len(tensor.shape.dim)) if tensor.HasField("shape") else None
    return helper.make_tensor_value_info(value.name, tensor.elem_type, dims)


def _open_dims(name: str, rank: int) -> list[str]:
    return [f"{name}_{axis}" for axis in range(rank)]


def describe(steps: Iterable[Step]) -> str:
    """Return the steps as lines of text, one a step: engine, nodes, library, note."""
    return "\n".join(f"{s.engine:<6} {', '.join(s.nodes)}  [{s.library}{'; ' + s.note if s.note else ''}]" for s in steps)
