"""The manifest of a bare model.onnx: what the graph itself says, and nothing more."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from pydantic import ValidationError

from .errors import PackageError
from .manifest import VALUE_PATTERN, Batching, Dtype, FileEntry, Manifest, Output, Provenance, RawField, Stage

_DTYPES: tuple[Dtype, ...] = (
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool",
)  # fmt: skip
#: ONNX element type → the manifest's word.
ELEMENT_TYPES: dict[int, Dtype] = {
    **{int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(name))): name for name in _DTYPES},
    int(onnx.TensorProto.STRING): "string",
}
NOTE = "A bare model.onnx: tensors in, tensors out. Nothing about it was proven."


def bare_manifest(name: str, version: int, model: onnx.ModelProto, files: Mapping[str, FileEntry]) -> Manifest:
    """Return a manifest for `model` with one tensor field per graph input.

    The first dimension of every input and output is the batch. When a graph fixes it at 1, batches hold one instance.

    Raises:
        PackageError: An input or output is not a dense tensor of known rank with a leading batch dimension, or has a fixed batch above 1.
    """
    fixed = {t.name for t in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in fixed]
    outputs = list(_inferred(model).graph.output)
    values = [_Value(i, f"{name}/{version}: input") for i in inputs] + [_Value(o, f"{name}/{version}: output") for o in outputs]
    names = safe_names([v.name for v in values[: len(inputs)]]), safe_names([v.name for v in values[len(inputs) :]])
    if not inputs:
        raise PackageError(f"{name}/{version}: the graph takes no inputs")
    single = any(v.batch == 1 for v in values[: len(inputs)])
    try:
        return Manifest(
            name=name,
            version=version,
            description=model.doc_string or NOTE,
            fields=[
                RawField(name=n, kind="tensor", dtype=v.dtype, shape=v.shape) for n, v in zip(names[0], values[: len(inputs)], strict=True)
            ],
            outputs=[Output(name=n, dtype=v.dtype, shape=v.shape) for n, v in zip(names[1], values[len(inputs) :], strict=True)],
            stages=[
                Stage(
                    name="model",
                    file="model.onnx",
                    inputs={v.name: n for n, v in zip(names[0], values[: len(inputs)], strict=True)},
                    outputs={v.name: n for n, v in zip(names[1], values[len(inputs) :], strict=True)},
                )
            ],
            batching=Batching(max_batch_size=1) if single else Batching(),
            tolerances={},
            provenance=Provenance(framework=f"{model.producer_name} {model.producer_version}".strip(), notes=NOTE),
            files=dict(files),
        )
    except ValidationError as error:
        raise PackageError(f"{name}/{version}: the graph cannot be described: {error.errors()[0]['msg']}") from error


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model` with inferred shapes where the outputs declare none."""
    if all(o.type.tensor_type.HasField("shape") for o in model.graph.output):
        return model
    try:
        return onnx.shape_inference.infer_shapes(model)
    except (onnx.shape_inference.InferenceError, ValueError):
        return model


class _Value:
    """One graph input or output: name, element type, batch dimension (None is dynamic), shape of one instance."""

    def __init__(self, info: onnx.ValueInfoProto, what: str) -> None:
        what = f"{what} {info.name!r}"
        if not isinstance(info.name, str):  # protobuf hands over bytes when a name is not UTF-8
            raise PackageError(f"{what} has a name that is not UTF-8")
        self.name = info.name
        kind = info.type.WhichOneof("value")
        if kind != "tensor_type":
            raise PackageError(
                f"{what} is a {str(kind).removesuffix('_type')}, not a tensor; export the model with tensors only (no ZipMap)"
            )
        tensor = info.type.tensor_type
        if tensor.elem_type not in ELEMENT_TYPES:
            names = {number: name for name, number in onnx.TensorProto.DataType.items()}
            raise PackageError(f"{what} has element type {names.get(tensor.elem_type, tensor.elem_type)}, which cannot be served")
        if not tensor.HasField("shape") or not tensor.shape.dim:
            raise PackageError(f"{what} has no batch dimension (its rank is 0 or unknown); export it as [n, …]")
        self.dtype: Dtype = ELEMENT_TYPES[tensor.elem_type]
        self.batch, *self.shape = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
        if self.batch not in (None, 1):
            raise PackageError(f"{what} fixes the batch at {self.batch}; export the model with a dynamic first dimension")


def safe_names(names: Sequence[str]) -> list[str]:
    """Return request names for graph names: characters that a JSON key or URL may not hold become `_`, kept unique."""
    result: list[str] = []
    for name in names:
        safe = name if re.fullmatch(VALUE_PATTERN, name) else re.sub(r"[^A-Za-z0-9_.\- ]", "_", name)[:100].lstrip(".- ") or "value"
        while safe in result:
            safe += "_"
        result.append(safe)
    return result
