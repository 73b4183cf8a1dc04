"""From an ONNX file that already contains its preprocessing to a package draft.

    draft = from_onnx("pipeline.onnx", name="churn", version=1)
    samples = golden_samples(draft, rows, {"label": pipeline.predict(frame), "probabilities": pipeline.predict_proba(frame)})
    pack(draft, samples, "models")

The signature is read from the graph: a column is a scalar field, text a text field, anything larger a tensor. Numbers are float64 from the
request up to and into the graph; where the file takes float32, the cast is a node in front of it, so that a row which training computed in
float64 and the file does not is found, and the node named. The file may be split at a value, so that the preprocessing in it is a stage of
its own whose result is proven and watched for drift.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper
from pydantic import ValidationError

from ._lineage import reads
from ._onnx_file import (
    BATCH,
    OnnxFile,
    cut,
    declare,
    dims,
    identity,
    int64s,
    make_batchable,
    prepend,
    read_onnx,
    squeezed,
)
from .bare import ELEMENT_TYPES, safe_names
from .draft import DraftStage, GoldenSample, PackageDraft
from .errors import AuthoringError
from .image import Preprocess
from .manifest import DEFAULT_TOLERANCES, MAX_EXACT_INTEGER, Batching, Decoder, Importer, Missing, Output, Provenance, RawField, Tolerance
from .package import graph_names, validation_summary

__all__ = ["from_onnx", "golden_rows", "golden_samples"]

#: What a draft of this importer says about itself.
IMPORTER: Final = Importer(name="onnx_import", proven=True, reference="skl2onnx 1.20.0 with scikit-learn 1.9.1")

_FLOATS: Final = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE})
_WHOLE: Final = frozenset(
    {
        TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64,
        TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64,
    }
)  # fmt: skip
_TEXT_OPERATORS: Final = frozenset({"StringNormalizer", "Tokenizer", "TfIdfVectorizer", "StringSplit", "RegexFullMatch"})
#: Operators that leave strings as they are.
_MOVES: Final = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Gather", "Slice", "Concat"})
_CHANNELS: Final = (1, 3, 4)
_RGB: Final = 3


def from_onnx(
    source: bytes | Path | str | onnx.ModelProto,
    *,
    name: str,
    version: int,
    rows: Sequence[Mapping[str, Any]] = (),
    columns: Mapping[str, Sequence[str]] | None = None,
    images: Mapping[str, Preprocess] | None = None,
    shapes: Mapping[str, Sequence[int | None]] | None = None,
    batched: bool | None = None,
    split_at: str | Mapping[str, str] | None = None,
    outputs: Mapping[str, str] | None = None,
    decided_by: Mapping[str, str] | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    description: str = "",
    batching: Batching | None = None,
    tolerances: Mapping[str, Tolerance] | None = None,
    provenance: Provenance | None = None,
) -> PackageDraft:
    """Make a package draft that runs an ONNX file as it is, behind a signature read from its inputs.

    Args:
        source: The file's path (external data lies beside it), its bytes, or the model.
        name: Model name.
        version: Model version, >= 1.
        rows: Raw instances that occur, for examples and to see which numbers may be null.
        columns: Input of shape [n, k] → names of its k columns; they become k fields instead of one tensor.
        images: Input → our image steps in front of it; the field is then an image file.
        shapes: Input → shape of one instance, in place of what the file declares (None is any length).
        batched: Whether the inputs have a batch dimension. None: yes, but for a lone uint8 [H, W, C] or float32 [3, H, W].
        split_at: Value (→ its name in the package) where preprocessing ends and the model begins.
        outputs: Outputs to answer with (→ their names in answers), in order; all of them by default.
        decided_by: Label output → the scores it is chosen from; found where there is one of each.
        overrides: Field → attributes of `RawField` to use in place of what was derived.
        description: A sentence about the model.
        batching: Hints for the server.
        tolerances: Promises per device profile.
        provenance: Facts about the training.

    Returns:
        A draft with the stage `model` and, if split, `preprocess.batch`. A graph without a batch dimension is run instance by instance, as
        `preprocess.item`, up to the split or to its end. What the author should know is in `provenance.importer.warnings`.

    Raises:
        UnsupportedStep: An operator cannot run exactly, by its name.
        AuthoringError: The graph cannot be served, or an argument does not fit it.
        PackageError: It is no ONNX file.
    """
    file = read_onnx(source)
    author = _Author(file, columns or {}, images or {}, rows, overrides or {})
    author.check_names()
    author.choose_outputs(outputs)
    if shapes:
        declare(file.model, shapes)
    hints = batching or Batching()
    one_by_one = not (_looks_batched(file.model) if batched is None else batched)
    if not one_by_one:
        hints = _open_batch(file, hints)
    stages = author.instance_stages(split_at) if one_by_one else author.stages(split_at)
    given = provenance or Provenance()
    producer = f"{file.model.producer_name} {file.model.producer_version}".strip()
    framework = given.framework or producer
    importer = IMPORTER.model_copy(update={"warnings": list(dict.fromkeys(file.warnings))}) if given.importer is None else given.importer
    return PackageDraft(
        name=name,
        version=version,
        fields=list(author.fields.values()),
        outputs=author.answers(decided_by or {}, one_row=hints.max_batch_size == 1),
        stages=stages,
        description=description or file.model.doc_string,
        decoders=author.decoders,
        batching=hints,
        tolerances=dict(tolerances or DEFAULT_TOLERANCES),
        provenance=given.model_copy(update={"framework": framework, "importer": importer}),
    )


def _looks_batched(model: onnx.ModelProto) -> bool:
    """Whether the inputs have a batch dimension: all do but a lone uint8 [height, width, channels] or float32 [3, height, width]."""
    names = graph_names(model)[0]
    inputs = [i for i in model.graph.input if i.name in names]
    shape = dims(inputs[0]) if len(inputs) == 1 else None
    if shape is None or len(shape) != 3:
        return True
    elem = inputs[0].type.tensor_type.elem_type
    last = elem == TensorProto.UINT8 and shape[2] in _CHANNELS and shape[0] != 1
    return not (last or (elem == TensorProto.FLOAT and shape[0] == _RGB))


def _open_batch(file: OnnxFile, hints: Batching) -> Batching:
    """Make the graph take any number of rows, or return hints for batches of one.

    Raises:
        AuthoringError: It takes several rows, and only that many; or an input has no batch dimension.
    """
    names = graph_names(file.model)[0]
    for value in file.model.graph.input:
        if value.name in names and not dims(value):
            raise AuthoringError(
                f"input {value.name!r} has no batch dimension ({'unknown rank' if dims(value) is None else 'a scalar'}); export "
                "it as [n, …], say its shape in `shapes`, or that the graph takes one instance: batched=False"
            )
    fixed = {i.name: shape[0] for i in file.model.graph.input if i.name in names and (shape := dims(i)) and isinstance(shape[0], int)}
    why = make_batchable(file.model)
    if why is None:
        if fixed:
            file.warnings.append(f"the file fixed the batch at {next(iter(fixed.values()))}; it is open now, which the golden rows prove")
        return hints
    if set(fixed.values()) == {1}:
        file.warnings.append(f"the file fixes the batch at 1 and {why}: rows run one at a time")
        return hints.model_copy(update={"max_batch_size": 1})
    shown = ", ".join(f"{n!r} at {size}" for n, size in fixed.items())
    raise AuthoringError(f"the graph fixes the batch of {shown} and {why}; export it with a dynamic first dimension")


@dataclass
class _Author:
    """Derives fields, outputs and stages of one file."""

    file: OnnxFile
    columns: Mapping[str, Sequence[str]]
    images: Mapping[str, Preprocess]
    rows: Sequence[Mapping[str, Any]]
    overrides: Mapping[str, Mapping[str, Any]]
    fields: dict[str, RawField] = field(default_factory=dict)
    decoders: list[Decoder] = field(default_factory=list)
    #: Graph output → name in answers.
    answer_names: dict[str, str] = field(default_factory=dict)

    @property
    def model(self) -> onnx.ModelProto:
        return self.file.model

    @property
    def inputs(self) -> list[onnx.ValueInfoProto]:
        """The inputs a caller feeds."""
        names = graph_names(self.model)[0]
        return [i for i in self.model.graph.input if i.name in names]

    def check_names(self) -> None:
        """Refuse arguments that name inputs the file does not have, and inputs that are no tensors."""
        names = [i.name for i in self.inputs]
        if not names:
            raise AuthoringError("the graph takes no inputs")
        for what, given in (("columns", self.columns), ("images", self.images)):
            if unknown := [n for n in given if n not in names]:
                raise AuthoringError(f"{what}: the file has no input {unknown[0]!r}; it has {', '.join(names)}")
        for value in (*self.inputs, *self.model.graph.output):
            kind = value.type.WhichOneof("value")
            if kind != "tensor_type":
                raise AuthoringError(
                    f"{value.name!r} is a {str(kind).removesuffix('_type')}, not a tensor; export the model with tensors only"
                )
            if value.type.tensor_type.elem_type not in ELEMENT_TYPES:
                raise AuthoringError(f"{value.name!r} has an element type that cannot be served; export it with another")

    def choose_outputs(self, wanted: Mapping[str, str] | None) -> None:
        """Keep the outputs asked for and find names for them."""
        have = {o.name: o for o in self.model.graph.output}
        if wanted is None:
            self.answer_names = dict(zip(have, safe_names(list(have)), strict=True))
            return
        if unknown := [n for n in wanted if n not in have]:
            raise AuthoringError(f"outputs: the file has no output {unknown[0]!r}; it has {', '.join(have)}")
        self.answer_names = dict(wanted)
        kept = cut(self.model, (), list(wanted))
        self.model.CopyFrom(kept)

    # -- stages

    def stages(self, split_at: str | Mapping[str, str] | None) -> list[DraftStage]:
        """Return the stages of a graph with a batch dimension."""
        front, binding = self._image_stages()
        split = _split_names(split_at)
        if not split:
            given = dict(binding)
            self._adapt(self.model, given)
            return [*front, DraftStage("model", self.model, self._bound(self.model, given), dict(self.answer_names))]
        if any(stage.name == "preprocess.batch" for stage in front):
            raise AuthoringError("split_at: the image steps in front have a batch stage already; let them end with pixels, or do not split")
        before, after = cut(self.model, (), list(split)), cut(self.model, list(split), list(self.answer_names))
        self._refuse_useless(after, split)
        first, second = dict(binding), dict(binding)
        self._adapt(before, first)
        self._adapt(after, second, done=split)
        return [
            *front,
            DraftStage("preprocess.batch", before, self._bound(before, first), dict(split)),
            DraftStage("model", after, self._bound(after, second) | split, dict(self.answer_names)),
        ]

    def _refuse_useless(self, after: onnx.ModelProto, split: Mapping[str, str]) -> None:
        unread = [n for n in split if n not in graph_names(after)[0]]
        if unread:
            raise AuthoringError(f"split_at: no output depends on {unread[0]!r}, so there is nothing behind it")

    def instance_stages(self, split_at: str | Mapping[str, str] | None) -> list[DraftStage]:
        """Return the stages of a graph that takes one instance: what is before the split runs instance by instance."""
        if self.images:
            raise AuthoringError("images: the graph takes one instance; give it a batch dimension to put image steps in front of it")
        for value in self.inputs:
            shape = dims(value)
            if not shape:
                raise AuthoringError(
                    f"input {value.name!r}: the shape of an instance is not known; say it in `shapes` with a batch dimension"
                )
            self._declare(
                self._field(value.name, kind="tensor", dtype=ELEMENT_TYPES[value.type.tensor_type.elem_type], shape=_sizes(shape))
            )
        names = dict(zip((i.name for i in self.inputs), self.fields, strict=True))
        split = _split_names(split_at)
        ends = split or {output: f"{name} of one" for output, name in self.answer_names.items()}
        item = cut(self.model, (), list(ends))
        squeezed(item)
        if not split:
            model = identity(list(item.graph.output), self.model)
            binding = {f"{output}/instances": value for output, value in ends.items()}
            shapes = {o.name: dims(o) for o in model.graph.output}
            for output in self.model.graph.output:
                batch, *rest = shapes[output.name] or [None]
                output.CopyFrom(helper.make_tensor_value_info(output.name, output.type.tensor_type.elem_type, [batch, *rest]))
        else:
            model = cut(self.model, list(split), list(self.answer_names))
            self._refuse_useless(model, split)
            of_one = {o.name: dims(o) or [] for o in item.graph.output}
            inner = [n for n in graph_names(model)[0] if n not in split]
            if inner:
                raise AuthoringError(f"split_at: what is behind the split also reads {inner[0]!r}; split where everything passes")
            declare(model, {n: _sizes(of_one[n]) for n in split})
            for output in model.graph.output:
                if not (shape := dims(output)) or shape[0] != BATCH:
                    raise AuthoringError(
                        f"split_at: nothing shows that output {output.name!r} has a row per row of {', '.join(split)} (its shape is "
                        f"{shape or 'unknown'} then); export the model with a dynamic first dimension"
                    )
            for output, found in zip(self.model.graph.output, model.graph.output, strict=True):
                output.CopyFrom(found)
            binding = dict(split)
        return [
            DraftStage("preprocess.item", item, {n: names[n] for n in graph_names(item)[0]}, dict(ends)),
            DraftStage("model", model, binding, dict(self.answer_names)),
        ]

    def _image_stages(self) -> tuple[list[DraftStage], dict[str, str]]:
        """Return the stages of our image steps, and which of their values goes into which input."""
        if len(self.images) > 1:
            raise AuthoringError("images: one image field a package")
        stages: list[DraftStage] = []
        binding = {}
        for name, steps in self.images.items():
            public = safe_names([name])[0]
            self.fields |= {f.name: self._overridden(f) for f in steps.fields(public)}
            self.decoders = steps.decoders()
            stages = steps.stages(public)
            binding[name] = steps.output
            self._check_fits(name, steps)
        return stages, binding

    def _check_fits(self, name: str, steps: Preprocess) -> None:
        value = next(i for i in self.inputs if i.name == name)
        made = ["n", *steps.output_shape]
        wanted = dims(value) or []
        if len(made) != len(wanted) or any(isinstance(w, int) and w != m for w, m in zip(wanted[1:], made[1:], strict=True)):
            raise AuthoringError(
                f"images: the steps give {made}, the input {name!r} takes {wanted}; add or leave out a step (ToCHW, Resize)"
            )

    def _bound(self, model: onnx.ModelProto, given: Mapping[str, str]) -> dict[str, str]:
        return {name: given[name] for name in graph_names(model)[0] if name in given}

    # -- inputs

    def _adapt(self, model: onnx.ModelProto, binding: dict[str, str], done: Mapping[str, str] | None = None) -> None:
        """Put between the fields and each input of `model` what turns the one into the other; fills fields and binding."""
        names = [n for n in graph_names(model)[0] if n not in binding and n not in (done or {})]
        for name in names:
            value = next(i for i in model.graph.input if i.name == name)
            _Adapter(self, model, value, binding).write()

    def is_text(self, name: str) -> bool:
        """Whether a string input is split into words or normalised, and so is text rather than a category."""
        todo, seen = [name], set[str]()
        while todo:
            value = todo.pop()
            seen.add(value)
            for node in self.model.graph.node:
                if value in reads(node):
                    if node.op_type in _TEXT_OPERATORS:
                        return True
                    todo += [n for n in node.output if node.op_type in _MOVES and n not in seen]
        return False

    def add_scalar(self, name: str, elem: int, *, text: bool = False) -> str:
        """Declare the field of one column and return its name."""
        public = safe_names([name])[0]
        facts: dict[str, Any] = {"kind": "number"}
        if elem == TensorProto.STRING:
            facts = {"kind": "text" if text else "string"}
        elif elem == TensorProto.BOOL:
            facts = {"kind": "boolean"}
        elif elem in _WHOLE:
            facts = {"kind": "integer", **_limits(elem)}
        elif elem == TensorProto.FLOAT:
            facts |= {"minimum": -float(np.finfo(np.float32).max), "maximum": float(np.finfo(np.float32).max)}
        if public not in self.fields:
            self._declare(self._field(public, **facts))
        return public

    def add_tensor(self, name: str, dtype: str, shape: Sequence[int | str | None]) -> str:
        """Declare a tensor field and return its name."""
        public = safe_names([name])[0]
        if public not in self.fields:
            self._declare(self._field(public, kind="tensor", dtype=dtype, shape=_sizes(shape)))
        return public

    def _declare(self, made: RawField) -> None:
        self.fields[made.name] = made

    def _field(self, name: str, **facts: Any) -> RawField:
        values = [row[name] for row in self.rows if name in row]
        present = [v for v in values if not _is_missing(v)]
        if len(present) < len(values) and "missing" not in self.overrides.get(name, {}):
            if facts["kind"] != "number":
                raise AuthoringError(f"field {name!r} is null in a row; say in `overrides` what the graph is to get for it (missing=…)")
            facts["missing"] = Missing(rule="nan")
        if present and facts["kind"] != "tensor":
            facts["example"] = _plain(present[0])
        return self._overridden(RawField(name=name, **facts))

    def _overridden(self, made: RawField) -> RawField:
        if made.name not in self.overrides:
            return made
        try:
            return RawField.model_validate({**made.model_dump(), **self.overrides[made.name]})
        except ValidationError as error:
            raise AuthoringError(f"overrides: field {made.name!r}: {validation_summary(error)}") from error

    # -- outputs

    def answers(self, decided_by: Mapping[str, str], *, one_row: bool) -> list[Output]:
        """Return the outputs of the package; a leading 1 is the batch where executions have one row."""
        if unknown := [n for n in self.overrides if n not in self.fields]:
            raise AuthoringError(f"overrides: there is no field {unknown[0]!r}; there are {', '.join(self.fields)}")
        by_name = {o.name: o for o in self.model.graph.output}
        shapes = {n: dims(by_name[n]) for n in self.answer_names}
        for graph_name, shape in shapes.items():
            if not shape or (isinstance(shape[0], int) and not (one_row and shape[0] == 1)):
                raise AuthoringError(
                    f"output {graph_name!r} has no batch dimension (its shape is {shape or 'unknown'}): leave it out with `outputs`, "
                    "or export it as [n, …]"
                )
        scores = [n for n, o in by_name.items() if n in shapes and o.type.tensor_type.elem_type in _FLOATS and len(shapes[n] or []) == 2]
        labels = [
            n for n, o in by_name.items() if n in shapes and o.type.tensor_type.elem_type not in _FLOATS and len(shapes[n] or []) == 1
        ]
        found = {labels[0]: scores[0]} if len(labels) == len(scores) == 1 else {}
        public = self.answer_names
        return [
            Output(
                name=public[n],
                dtype=ELEMENT_TYPES[by_name[n].type.tensor_type.elem_type],
                shape=_sizes((shapes[n] or [])[1:]),
                element_names=self.file.element_names.get(n) or None,
                decided_by=decided_by.get(public[n], public[found[n]] if n in found else None),
            )
            for n in public
        ]


@dataclass
class _Adapter:
    """Writes what one input of the file needs in front of it: numbers become what it takes, columns become one matrix."""

    author: _Author
    model: onnx.ModelProto
    value: onnx.ValueInfoProto
    binding: dict[str, str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)

    def write(self) -> None:
        """Change the graph in place."""
        name, elem = self.value.name, self.value.type.tensor_type.elem_type
        shape = dims(self.value) or []
        columns = self.author.columns.get(name)
        if columns is not None:
            self._columns(columns, shape, elem)
        elif len(shape) == 1 or (len(shape) == 2 and shape[1] == 1):
            public = self.author.add_scalar(name, elem, text=self.author.is_text(name))
            self._chain([self._fed(public, elem, name)], elem, flat=len(shape) == 1)
        else:
            wide = len(shape) == 2 and elem == TensorProto.FLOAT
            carried = TensorProto.DOUBLE if wide else elem
            public = self.author.add_tensor(name, ELEMENT_TYPES[carried], shape[1:])
            if wide:
                fed = self._input(public, f"{name}/raw", carried, shape[1:])
                self._chain([(fed, carried)], elem, flat=False)
            else:
                self.binding[name] = public

    def _columns(self, columns: Sequence[str], shape: Sequence[int | str | None], elem: int) -> None:
        name = self.value.name
        if len(shape) != 2 or (isinstance(shape[1], int) and shape[1] != len(columns)):
            raise AuthoringError(f"columns: {len(columns)} names for the input {name!r} of shape {list(shape)}; one name a column")
        if len(set(columns)) != len(columns):
            raise AuthoringError(f"columns: a name is given twice for the input {name!r}")
        text = elem == TensorProto.STRING and len(columns) == 1 and self.author.is_text(name)
        fed = [self._fed(self.author.add_scalar(c, elem, text=text), elem, f"{name}/{c}") for c in columns]
        self._chain(fed, elem, flat=False)

    def _fed(self, public: str, elem: int, graph_name: str) -> tuple[str, int]:
        """Add the input for a scalar field; return it with the type it has as the request's rules make it."""
        made = self.author.fields[public]
        carried = int(helper.np_dtype_to_tensor_dtype(np.dtype(made.graph_dtype))) if elem != TensorProto.STRING else elem
        if made.companion is not None:
            raise AuthoringError(f"overrides: field {public!r}: the file has no input for a companion; use the rule nan or sentinel")
        return self._input(public, f"{graph_name}/raw", carried, [1]), carried

    def _input(self, public: str, graph_name: str, elem: int, shape: Sequence[int | str | None]) -> str:
        self.inputs.append(helper.make_tensor_value_info(graph_name, elem, [BATCH, *shape]))
        self.binding[graph_name] = public
        return graph_name

    def _chain(self, fed: Sequence[tuple[str, int]], elem: int, *, flat: bool) -> None:
        """Join, cast and flatten what is fed, and let the file read the result under its own name."""
        name = self.value.name
        if len(fed) == 1 and fed[0][1] == elem and not flat:  # nothing to change: the file's own input is fed
            self.binding[name] = self.binding.pop(fed[0][0])
            return
        steps: list[tuple[str, str, dict[str, Any], list[str]]] = []
        if len(fed) > 1:
            steps.append(("Concat", "columns", {"axis": 1}, [n for n, _ in fed]))
        if fed[0][1] != elem:
            steps.append(("Cast", f"to {ELEMENT_TYPES[elem]}", {"to": elem}, []))
        if flat:
            self.tensors.append(int64s(f"{name}/flat shape", [-1]))
            steps.append(("Reshape", "flat", {}, [f"{name}/flat shape"]))
        current = fed[0][0]
        for i, (operator, words, attributes, extra) in enumerate(steps):
            made = name if i == len(steps) - 1 else f"{name}/{words}"
            read = extra if operator == "Concat" else [current, *extra]
            self.nodes.append(helper.make_node(operator, read, [made], name=f"{name} {words}", **attributes))
            current = made
        kept = [i for i in self.model.graph.input if i.name != name]
        del self.model.graph.input[:]
        self.model.graph.input.extend([*kept, *self.inputs])
        prepend(self.model, self.nodes, self.tensors)


def _split_names(split_at: str | Mapping[str, str] | None) -> dict[str, str]:
    if split_at is None:
        return {}
    return {split_at: safe_names([split_at])[0]} if isinstance(split_at, str) else dict(split_at)


def _sizes(shape: Sequence[int | str | None]) -> list[int | None]:
    return [d if isinstance(d, int) else None for d in shape]


def _limits(elem: int) -> dict[str, float]:
    """Return the least and the largest whole number a type holds, unless a float64 cannot tell them from others."""
    limits = np.iinfo(helper.tensor_dtype_to_np_dtype(elem))
    found = {}
    if limits.min > -MAX_EXACT_INTEGER:
        found["minimum"] = float(limits.min)
    if limits.max < MAX_EXACT_INTEGER:
        found["maximum"] = float(limits.max)
    return found


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float | np.floating) and math.isnan(value))


# --- golden samples -----------------------------------------------------------------------------------------------------


def golden_samples(
    draft: PackageDraft,
    rows: Sequence[Mapping[str, Any]],
    outputs: Mapping[str, Any],
    *,
    values: Mapping[str, Any] | None = None,
    rows_per_request: int = 1,
    prefix: str = "row",
) -> list[GoldenSample]:
    """Make golden samples of rows and what the *training* code answered to them.

    Args:
        draft: The package they are for.
        rows: Raw instances: field → a number, string or boolean, None (or NaN) where missing, an array, or bytes of an image.
        outputs: Output → the training code's answers, [n, …]. float64 is rounded where the package answers float32; other types must fit.
        values: Value at a stage boundary → what the training code had there, [n, …].
        rows_per_request: Instances a request.
        prefix: Start of the samples' names.

    Raises:
        AuthoringError: An answer is missing, or does not have a row per row.
    """
    promised = {o.name: o.dtype for o in draft.outputs}
    if missing := [n for n in promised if n not in outputs]:
        raise AuthoringError(f"outputs: nothing says what training answered as {missing[0]!r}; the package answers {', '.join(promised)}")
    answers = {n: _typed_as(outputs[n], dtype, n) for n, dtype in promised.items()}
    inner = {n: np.asarray(v) for n, v in (values or {}).items()}
    for name, array in (answers | inner).items():
        if array.ndim == 0 or len(array) != len(rows):
            raise AuthoringError(f"{name!r} has {array.shape[0] if array.ndim else 'no'} rows for {len(rows)} instances")
    samples = []
    for start in range(0, len(rows), rows_per_request):
        own = slice(start, start + rows_per_request)
        instances = [{key: _plain(value) for key, value in row.items()} for row in rows[own]]
        samples.append(
            GoldenSample(
                name=f"{prefix}-{start:04d}",
                path=f"/v1/models/{draft.name}:predict",
                headers={"content-type": "application/json"},
                body=json.dumps({"instances": instances}, ensure_ascii=False, allow_nan=False).encode(),
                outputs={n: a[own] for n, a in answers.items()},
                values={n: a[own] for n, a in inner.items()},
            )
        )
    return samples


def _typed_as(given: Any, dtype: str, name: str) -> np.ndarray:
    """Return training's answers in the package's type, where that loses nothing but a float's last bits."""
    array = np.asarray(given)
    if dtype == "string":
        return array.astype(np.str_) if array.dtype.kind in "OUT" else array
    wanted = np.dtype(dtype)
    if array.dtype == object:
        array = np.array(array.tolist(), dtype=wanted)
    if array.dtype.kind == wanted.kind == "f":
        return array.astype(wanted)
    if wanted.kind in "iu" and array.dtype.kind in "iu":
        if array.size and (array.min() < np.iinfo(wanted).min or array.max() > np.iinfo(wanted).max):
            raise AuthoringError(f"{name!r}: training answered numbers that {dtype} cannot hold")
        return array.astype(wanted)
    return array


def _plain(value: Any) -> Any:
    """Return a value as JSON carries it."""
    if isinstance(value, bytes | bytearray | memoryview):
        return {"b64": base64.b64encode(value).decode("ascii")}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        value = value.item()
    return None if _is_missing(value) else value


def golden_rows(path: Path | str) -> tuple[list[dict[str, Any]], dict[str, list[Any]], dict[str, list[Any]]]:
    """Read rows and training's answers from JSON Lines: `{"instance": {…}, "outputs": {…}, "values": {…}}` a line.

    Returns:
        Instances, outputs by name, and intermediate values by name; a list with an element per line each.

    Raises:
        AuthoringError: A line is not of this form, or has other outputs than the first; says which.
    """
    instances: list[dict[str, Any]] = []
    outputs: dict[str, list[Any]] = {}
    values: dict[str, list[Any]] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)
        except json.JSONDecodeError as error:
            raise AuthoringError(f"{path}, line {number}: not JSON ({error})") from error
        _check_line(document, f"{path}, line {number}")
        for found, here in ((outputs, document["outputs"]), (values, document.get("values", {}))):
            if instances and set(found) != set(here):
                raise AuthoringError(
                    f"{path}, line {number}: has {', '.join(here) or 'nothing'} where the first line has {', '.join(found)}"
                )
            for name, value in here.items():
                found.setdefault(name, []).append(value)
        instances.append(document["instance"])
    if not instances:
        raise AuthoringError(f"{path} holds no rows")
    return instances, outputs, values


def _check_line(document: object, where: str) -> None:
    wanted = '{"instance": {field: value}, "outputs": {output: what training answered}}'
    if not isinstance(document, dict) or not isinstance(document.get("instance"), dict) or not isinstance(document.get("outputs"), dict):
        raise AuthoringError(f"{where}: must be {wanted}")
    if extra := set(document) - {"instance", "outputs", "values"}:
        raise AuthoringError(f"{where}: unknown member {min(extra)!r}; a line is {wanted}, and may have `values`")
