"""V2 (Open Inference Protocol) in JSON: body → decoder, answer → bytes, and the metadata documents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from samegraph_transforms.errors import InputError
from samegraph_transforms.manifest import BINARY_KINDS, MAX_EXACT_INTEGER, Manifest, Output, RawField
from samegraph_transforms.signature import Row, Signature
from samegraph_transforms.wire import Decoded, parse_json

from samegraph_service.call import Answer

_encode = msgspec.json.Encoder().encode

DATATYPES = {
    "bool": "BOOL", "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64", "uint8": "UINT8", "uint16": "UINT16",
    "uint32": "UINT32", "uint64": "UINT64", "float16": "FP16", "float32": "FP32", "float64": "FP64", "string": "BYTES",
}  # fmt: skip
#: Integer datatypes and what they hold.
_RANGES = {name: (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)) for dtype, name in DATATYPES.items() if "INT" in name}
_INTEGERS = set(_RANGES)
#: Datatypes that widen into a field kind without loss (64-bit integers are checked value by value against 2^53).
_ACCEPTED = {
    "number": _INTEGERS | {"FP16", "FP32", "FP64"},
    "integer": _INTEGERS,
    "boolean": {"BOOL"},
    "string": {"BYTES"},
    "text": {"BYTES"},
    "image": {"BYTES"},
    "bytes": {"BYTES"},
}


#: A year: more than any server allows, and small enough for a float.
_LONGEST_TIMEOUT_US = 365 * 86_400 * 1_000_000
#: Largest dimension of a tensor without elements. Nothing else bounds it, since no data has to be sent for it.
_MAX_EMPTY_DIMENSION = 4096


class InputTensor(msgspec.Struct):
    """One input of a V2 request."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


class RequestedOutput(msgspec.Struct):
    """One entry of a V2 request's `outputs`."""

    name: str
    parameters: dict[str, Any] | None = None


class InferRequest(msgspec.Struct):
    """A V2 request."""

    inputs: list[InputTensor]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[RequestedOutput] | None = None


def parse(body: bytes) -> InferRequest:
    """Read a V2 JSON body.

    Raises:
        InputError: It is not JSON or not of the protocol's shape.
    """
    document = parse_json(body)
    try:
        return msgspec.convert(document, InferRequest)
    except msgspec.ValidationError as error:
        raise InputError(f"the body is not a V2 inference request: {error}", code="bad_body") from error


def timeout_s(request: InferRequest) -> float | None:
    """Return the caller's deadline from `parameters.timeout`, which is in microseconds.

    Raises:
        InputError: It is not a positive whole number.
    """
    value = (request.parameters or {}).get("timeout")
    if value is None or value == 0:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(
            "`parameters.timeout` must be a positive whole number of microseconds", code="bad_body", field="parameters.timeout"
        )
    return min(value, _LONGEST_TIMEOUT_US) / 1e6


def decode(signature: Signature, request: InferRequest, max_instances: int) -> Decoded:
    """Turn a V2 request into rows for a version's signature.

    Raises:
        InputError: A tensor does not fit its field as a whole. Faults of single instances are in the result.
    """
    columns: dict[str, Sequence[object]] = {}
    for tensor in request.inputs:
        if tensor.name in columns:
            raise InputError(f"input {tensor.name[:100]!r} is given twice", code="bad_body", field=tensor.name[:100])
        columns[tensor.name] = _column(_field(signature, tensor.name), tensor, max_instances)
    n = _count(columns)
    rows: list[Row | InputError] = [signature.try_row({name: values[i] for name, values in columns.items()}, i) for i in range(n)]
    return Decoded(rows)


def _field(signature: Signature, name: str) -> RawField:
    try:
        return signature.field(name)
    except KeyError:
        names = ", ".join(signature.names)
        raise InputError(f"unknown input {name[:100]!r}; this model's inputs are {names}", code="unknown_field", field=name[:100]) from None


def _count(columns: dict[str, Sequence[object]]) -> int:
    lengths = {name: len(values) for name, values in columns.items()}
    if not lengths or max(lengths.values()) == 0:
        raise InputError("the request holds no instances; send at least one input with at least one row", code="no_instances")
    if len(set(lengths.values())) > 1:
        described = ", ".join(f"{name}: {n}" for name, n in lengths.items())
        raise InputError(f"the inputs differ in their first dimension ({described}); it is the number of instances", code="wrong_shape")
    return next(iter(lengths.values()))


def _check_instances(n: int, max_instances: int) -> None:
    if n > max_instances:
        raise InputError(
            f"the request holds {_digits(n)} instances; the limit is {max_instances}: send several requests", code="too_many_instances"
        )


def _column(field: RawField, tensor: InputTensor, max_instances: int) -> Sequence[object]:
    """Return one value per instance of a tensor in JSON."""
    accepted = {DATATYPES[field.graph_dtype]} if field.kind == "tensor" else _ACCEPTED[field.kind]
    if tensor.datatype not in accepted:
        raise InputError(
            f"input {field.name!r} must have datatype {' or '.join(sorted(accepted))}; got {tensor.datatype[:20]!r}",
            code="wrong_dtype",
            field=field.name,
        )
    if tensor.data is None:
        raise InputError(
            f"input {field.name!r} has no `data`; the binary tensor extension is not enabled for this request",
            code="bad_body",
            field=field.name,
        )
    shape = tensor.shape
    _check_rank(field, shape)
    values = _flat(tensor.data)
    # In this order: a product of absurd dimensions is never formed, and nothing is built for instances that were only declared.
    if any(not 0 <= d <= max(len(values), _MAX_EMPTY_DIMENSION) for d in shape) or len(values) != math.prod(shape):
        raise InputError(
            f"input {field.name!r} has shape {_described(shape)} but holds {len(values)} values", code="wrong_shape", field=field.name
        )
    _check_instances(shape[0], max_instances)
    if field.kind == "tensor":
        return _instances(field, values, shape)
    if tensor.datatype in _RANGES:
        _check_integers(field, tensor.datatype, values)
    return [_encoded(field, tensor, v) for v in values] if field.kind in BINARY_KINDS else values


def _check_integers(field: RawField, datatype: str, values: Sequence[object]) -> None:
    """Refuse numbers that the declared integer datatype cannot hold; other wrong types are left to the signature."""
    low, high = _RANGES[datatype]
    if field.kind == "number":  # it becomes a float64, which holds whole numbers exactly up to 2^53
        low, high = max(low, -MAX_EXACT_INTEGER), min(high, MAX_EXACT_INTEGER)
    for i, value in enumerate(values):
        if isinstance(value, int | float) and not (low <= value <= high and value == int(value)):
            shown = _digits(value) if isinstance(value, int) else repr(value)
            raise InputError(
                f"input {field.name!r} is declared {datatype} for {field.kind} values and cannot hold {shown}",
                code="out_of_range",
                field=field.name,
                instance=i,
            )


def _check_rank(field: RawField, shape: Sequence[int]) -> None:
    if field.kind == "tensor":
        rank = 1 + len(field.shape or ())
        if len(shape) != rank:
            raise InputError(
                f"input {field.name!r} must have {rank} dimensions, the first being the number of instances; got {_described(shape)}",
                code="wrong_shape",
                field=field.name,
            )
    elif len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != 1):
        raise InputError(
            f"input {field.name!r} must have shape [n] or [n, 1]; got {_described(shape)}", code="wrong_shape", field=field.name
        )


def _described(shape: Sequence[int]) -> str:
    shown = ", ".join(_digits(d) for d in shape[:8])
    return f"[{shown}, …]" if len(shape) > 8 else f"[{shown}]"


def _digits(number: int) -> str:
    return str(number) if abs(number) < 10**18 else "a number of more than 18 digits"


def _encoded(field: RawField, tensor: InputTensor, value: object) -> object:
    """Read bytes in a JSON tensor: only ever base64, and only when the caller says so."""
    if (tensor.parameters or {}).get("content_type") != "base64":
        raise InputError(
            f'input {field.name!r} holds bytes: send them as base64 and say so with "parameters": {{"content_type": "base64"}}',
            code="wrong_type",
            field=field.name,
        )
    return {"b64": value}


def _instances(field: RawField, values: list[object], shape: Sequence[int]) -> Sequence[object]:
    n, rest = shape[0], shape[1:]
    size = math.prod(rest)
    if size == 0:
        return [np.empty(rest, dtype=object if field.graph_dtype == "string" else field.graph_dtype)] * n
    return [_nested(values[i * size : (i + 1) * size], rest) for i in range(n)]


def _nested(values: list[object], shape: Sequence[int]) -> object:
    """Fold a flat list into nested lists of `shape`, so that the signature's own tensor check sees what V1 callers send."""
    if not shape:
        return values[0]
    if len(shape) == 1:
        return values
    size = len(values) // shape[0]
    return [_nested(values[i * size : (i + 1) * size], shape[1:]) for i in range(shape[0])]


def _flat(data: list[Any]) -> list[object]:
    """Flatten nested row-major data; flat data is returned as it is."""
    while data and isinstance(data[0], list):
        if not all(isinstance(d, list) for d in data):
            raise InputError("`data` mixes lists and values at one depth", code="wrong_shape")
        if len({len(d) for d in data}) > 1:
            raise InputError("`data` holds lists of different lengths at one depth", code="wrong_shape")
        data = [value for inner in data for value in inner]
    return data


def encode(answer: Answer, request: InferRequest) -> bytes:
    """Write an answer as a V2 body with the outputs the caller asked for, or all."""
    chosen = _chosen(answer.origin.outputs, request)
    outputs = [
        {
            "name": output.name,
            "datatype": DATATYPES[output.dtype],
            "shape": list(array.shape),
            "data": array.ravel().tolist(),
        }
        for output, array in zip(answer.origin.outputs, answer.arrays, strict=True)
        if output.name in chosen
    ]
    origin = answer.origin
    document: dict[str, Any] = {
        "model_name": origin.model,
        "model_version": str(origin.version),
        "id": request.id or answer.request_id,
        "outputs": outputs,
    }
    if answer.assignment is not None:
        document["parameters"] = {name.replace("-", "_"): value for name, value in answer.assignment.facts().items()}
    return _encode(document)


def _chosen(outputs: Sequence[Output], request: InferRequest) -> set[str]:
    return {o.name for o in outputs} if not request.outputs else {o.name for o in request.outputs}


def check_outputs(outputs: Sequence[Output], request: InferRequest) -> None:
    """Refuse a request for an output the model does not have.

    Raises:
        InputError: `unknown_field`, naming the outputs there are.
    """
    names = {o.name for o in outputs}
    for asked in request.outputs or ():
        if asked.name not in names:
            raise InputError(
                f"unknown output {asked.name[:100]!r}; this model's outputs are {', '.join(sorted(names))}",
                code="unknown_field",
                field=asked.name[:100],
            )


def model_metadata(manifest: Manifest, versions: Sequence[int]) -> dict[str, Any]:
    """Return the V2 metadata document of one version."""
    return {
        "name": manifest.name,
        "versions": [str(v) for v in versions],
        "platform": "onnx_samegraph",
        "inputs": [{"name": f.name, "datatype": _datatype(f), "shape": _shape(f)} for f in manifest.fields],
        "outputs": [
            {"name": o.name, "datatype": DATATYPES[o.dtype], "shape": [-1, *(-1 if d is None else d for d in o.shape)]}
            for o in manifest.outputs
        ],
    }


def _datatype(field: RawField) -> str:
    if field.kind in BINARY_KINDS:
        return "BYTES"
    # A nullable integer is a float64 in the graph and still a whole number on the wire.
    return "INT64" if field.kind == "integer" else DATATYPES[field.graph_dtype]


def _shape(field: RawField) -> list[int]:
    return [-1, *(-1 if d is None else d for d in field.shape)] if field.shape is not None else [-1, 1]
