"""V2 (Open Inference Protocol): request → decoder, answer → bytes, for JSON, the binary tensor extension and gRPC's messages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from struct import Struct
from typing import Any

import msgspec
import numpy as np
from samegraph_transforms.errors import InputError
from samegraph_transforms.manifest import BINARY_KINDS, MAX_EXACT_INTEGER, Manifest, Output, RawField
from samegraph_transforms.signature import Row, Signature
from samegraph_transforms.wire import MAX_JSON_VALUES, Decoded, parse_json

from samegraph_service.call import Answer
from samegraph_service.errors import UnsupportedExtension

from .v2_tensors import check_shape, classified, described, digits, numbers, strings, written

_encode = msgspec.json.Encoder().encode

DATATYPES = {
    "bool": "BOOL", "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64", "uint8": "UINT8", "uint16": "UINT16",
    "uint32": "UINT32", "uint64": "UINT64", "float16": "FP16", "float32": "FP32", "float64": "FP64", "string": "BYTES",
}  # fmt: skip
#: Integer datatypes and what they hold.
_RANGES = {name: (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)) for dtype, name in DATATYPES.items() if "INT" in name}
_INTEGERS = set(_RANGES)
#: Float datatypes that a JSON number is rounded to before it widens: it means what the same value means in bytes.
_ROUNDED: dict[str, tuple[Any, Struct]] = {"FP16": (np.float16, Struct("<e")), "FP32": (np.float32, Struct("<f"))}
#: So many are rounded one by one, in a third of a microsecond each; more are in NumPy, which takes five to begin.
_FEW_VALUES = 16
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
#: Parameters of features this server does not have: ignoring them would give a wrong answer.
_REFUSED_PARAMETERS = {
    "sequence_id": "sequences: every request is on its own here",
    "sequence_start": "sequences: every request is on its own here",
    "sequence_end": "sequences: every request is on its own here",
    "shared_memory_region": "shared memory: send the tensor's bytes in the request",
}


#: A year: more than any server allows, and small enough for a float.
_LONGEST_TIMEOUT_US = 365 * 86_400 * 1_000_000
#: Largest value of `priority`, an unsigned 64-bit number in gRPC.
_LARGEST_PRIORITY = 2**64 - 1

Parameters = dict[str, Any] | None


class _JsonTensor(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


class RequestedOutput(msgspec.Struct):
    """One entry of a V2 request's `outputs`."""

    name: str
    parameters: dict[str, Any] | None = None


class _JsonRequest(msgspec.Struct):
    inputs: list[_JsonTensor]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[RequestedOutput] | None = None


_parse_typed = msgspec.json.Decoder(_JsonRequest).decode


@dataclass(slots=True)
class InputTensor:
    """One input of a V2 request; exactly one of `data`, `raw` and `elements` holds its values.

    Attributes:
        data: JSON values, flat or nested.
        raw: The binary extension's bytes.
        elements: The elements of a BYTES tensor.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    parameters: Parameters = None
    data: list[Any] | None = None
    raw: memoryview | None = None
    elements: list[bytes] | None = None


@dataclass(slots=True)
class InferRequest:
    """A V2 request, whatever it came in.

    Attributes:
        inputs: Its tensors.
        id: The caller's name for it, or "".
        parameters: Of the whole request.
        outputs: The outputs asked for; none means all.
        body: The whole body of a raw binary request, which has nothing else.
        binary: Whether outputs are answered in bytes unless they say otherwise.
    """

    inputs: list[InputTensor]
    id: str = ""
    parameters: Parameters = None
    outputs: list[RequestedOutput] = field(default_factory=list)
    body: memoryview | None = None
    binary: bool = False


@dataclass(frozen=True, slots=True)
class Encoded:
    """An answer in bytes.

    Attributes:
        body: The JSON document and the binary tensors after it.
        json_bytes: How much of it is JSON when tensors follow, else None.
    """

    body: bytes
    json_bytes: int | None = None


def parse(body: bytes, header_length: bytes | None = None) -> InferRequest:
    """Read a V2 body.

    Args:
        body: JSON, binary tensors after it, or one input's bytes alone.
        header_length: What `Inference-Header-Content-Length` says, or None where it was not sent.

    Raises:
        InputError: It is not of the protocol's shape.
    """
    if header_length is None:
        return _from_json(body, memoryview(b""), tail=False)
    length = int(header_length) if header_length.isdigit() and len(header_length) < 19 else -1
    if not 0 <= length <= len(body):
        raise InputError(
            f"header inference-header-content-length must say how many of the body's {len(body)} bytes are JSON; "
            f"got {header_length[:40].decode('latin-1')!r}",
            code="bad_body",
        )
    if length == 0:
        return InferRequest([], body=memoryview(body), binary=True)
    return _from_json(body[:length], memoryview(body)[length:], tail=True)


def _from_json(body: bytes, rest: memoryview, *, tail: bool) -> InferRequest:
    document = _document(body)
    inputs = []
    for tensor in document.inputs:
        parameters = tensor.parameters
        raw = None
        if parameters is not None and "binary_data_size" in parameters:
            size = _binary_size(tensor, tail, len(rest))
            raw, rest = rest[:size], rest[size:]
        inputs.append(InputTensor(tensor.name, tensor.datatype, tensor.shape, parameters, tensor.data, raw))
    if len(rest):
        raise InputError(
            f"{len(rest)} bytes follow the binary tensors that `binary_data_size` declares; the sizes must add up to the body's",
            code="wrong_shape",
        )
    binary = _flag(document.parameters, "binary_data_output")
    return InferRequest(inputs, document.id or "", document.parameters, document.outputs or [], binary=bool(binary))


def _document(body: bytes) -> _JsonRequest:
    if len(body) <= MAX_JSON_VALUES:
        try:
            return _parse_typed(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass  # read again below, where it is said what is wrong
    document = parse_json(body)
    try:
        return msgspec.convert(document, _JsonRequest)
    except msgspec.ValidationError as error:
        raise InputError(f"the body is not a V2 inference request: {error}", code="bad_body") from error


def _binary_size(tensor: _JsonTensor, tail: bool, left: int) -> int:
    size = (tensor.parameters or {})["binary_data_size"]
    name = tensor.name[:100]
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise InputError(f"`binary_data_size` of input {name!r} must be a whole number of bytes", code="bad_body", field=name)
    if tensor.data is not None:
        raise InputError(f"input {name!r} has both `data` and `binary_data_size`; send one of them", code="bad_body", field=name)
    if not tail:
        raise InputError(
            f"input {name!r} has `binary_data_size`: the header Inference-Header-Content-Length must say where the JSON ends",
            code="bad_body",
            field=name,
        )
    if size > left:
        raise InputError(
            f"input {name!r} declares {digits(size)} bytes of binary data, but {left} are left in the body", code="truncated", field=name
        )
    return size


def _flag(parameters: Parameters, name: str) -> bool | None:
    """Return a boolean parameter, or None where it is not given."""
    value = None if parameters is None else parameters.get(name)
    if value is None or isinstance(value, bool):
        return value
    raise InputError(f"`parameters.{name}` must be true or false", code="bad_body", field=f"parameters.{name}")


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


def priority(request: InferRequest) -> int:
    """Return `parameters.priority`: 0 is the server's default, 1 the most urgent, larger numbers less so.

    Raises:
        InputError: It is not a whole number from 0 on.
    """
    value = (request.parameters or {}).get("priority", 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST_PRIORITY:
        raise InputError(
            "`parameters.priority` must be a whole number: 0 for the default, 1 for the most urgent, larger for less urgent",
            code="bad_body",
            field="parameters.priority",
        )
    return value


def check(request: InferRequest, outputs: Sequence[Output]) -> None:
    """Refuse what could not be answered, before the model runs.

    Raises:
        InputError: An output the model does not have, or a parameter that makes no sense.
        UnsupportedExtension: A parameter of a feature this server does not have.
    """
    if request.parameters:
        _refuse(request.parameters)
    for tensor in request.inputs:
        if tensor.parameters:
            _refuse(tensor.parameters)
    if request.outputs:
        _check_outputs(request.outputs, outputs)


def _refuse(parameters: dict[str, Any]) -> None:
    for name, what in _REFUSED_PARAMETERS.items():
        if parameters.get(name):
            raise UnsupportedExtension(f"`parameters.{name}`: this server does not have {what}")


def _check_outputs(asked: Sequence[RequestedOutput], outputs: Sequence[Output]) -> None:
    known = {o.name: o for o in outputs}
    seen: set[str] = set()
    for entry in asked:
        output, name = known.get(entry.name), entry.name[:100]
        if output is None:
            raise InputError(
                f"unknown output {name!r}; this model's outputs are {', '.join(sorted(known))}", code="unknown_field", field=name
            )
        if entry.name in seen:
            raise InputError(f"output {name!r} is asked for twice", code="bad_body", field=name)
        seen.add(entry.name)
        if entry.parameters:
            _refuse(entry.parameters)
            _flag(entry.parameters, "binary_data")
            if _classes(entry) and output.dtype == "string":
                raise InputError(
                    f"output {name!r} holds strings, which have no largest: classification needs numbers", code="bad_body", field=name
                )


def _classes(entry: RequestedOutput) -> int:
    """Return how many classes an output is asked for; 0 for the output itself."""
    value = (entry.parameters or {}).get("classification", 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError("`classification` must be a whole number: how many classes to answer", code="bad_body", field=entry.name[:100])
    return value


# --- inputs ---------------------------------------------------------------------------------------------------------------


def decode(signature: Signature, request: InferRequest, max_instances: int) -> Decoded:
    """Turn a V2 request into rows for a version's signature.

    Raises:
        InputError: A tensor does not fit its field as a whole. Faults of single instances are in the result.
    """
    inputs = request.inputs if request.body is None else [_whole_body(signature, request.body)]
    columns: dict[str, Sequence[object] | np.ndarray] = {}
    for tensor in inputs:
        if tensor.name in columns:
            raise InputError(f"input {tensor.name[:100]!r} is given twice", code="bad_body", field=tensor.name[:100])
        columns[tensor.name] = _column(_field(signature, tensor.name), tensor, max_instances)
    n = _count(columns)
    checked = signature.rows_of_columns(columns, n)
    if checked is not None:
        return Decoded(checked, clean=True)
    values = {name: column.tolist() if isinstance(column, np.ndarray) and column.ndim == 1 else column for name, column in columns.items()}
    rows: list[Row | InputError] = [signature.try_row({name: column[i] for name, column in values.items()}, i) for i in range(n)]
    return Decoded(rows)


def _whole_body(signature: Signature, body: memoryview) -> InputTensor:
    """Return the one input of a raw binary request: a body that is one instance of the model's one input, and nothing else."""
    required = [f for f in signature.fields if f.required] or list(signature.fields[:1])
    if len(required) != 1:
        raise InputError(
            f"a raw binary request holds one input's bytes; this model needs {', '.join(f.name for f in required)}: "
            "send JSON with binary_data_size for each",
            code="bad_body",
        )
    (own,) = required
    datatype = _datatype(own)
    if datatype == "BYTES":
        return InputTensor(own.name, datatype, [1], elements=[bytes(body)])
    if own.kind != "tensor":
        return InputTensor(own.name, datatype, [1], raw=body)
    open_dimensions = [d for d in own.shape or () if d is None]
    if len(open_dimensions) > 1:
        raise InputError(
            f"input {own.name!r} has more than one open dimension, so its bytes alone do not say its shape",
            code="wrong_shape",
            field=own.name,
        )
    fixed = math.prod(d for d in own.shape or () if d is not None)
    n = len(numbers(own.name, datatype, body))
    return InputTensor(own.name, datatype, [1, *((n // fixed if fixed else 0) if d is None else d for d in own.shape or ())], raw=body)


def _field(signature: Signature, name: str) -> RawField:
    try:
        return signature.field(name)
    except KeyError:
        names = ", ".join(signature.names)
        raise InputError(f"unknown input {name[:100]!r}; this model's inputs are {names}", code="unknown_field", field=name[:100]) from None


def _count(columns: dict[str, Sequence[object] | np.ndarray]) -> int:
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
            f"the request holds {digits(n)} instances; the limit is {max_instances}: send several requests", code="too_many_instances"
        )


def _column(own: RawField, tensor: InputTensor, max_instances: int) -> Sequence[object] | np.ndarray:
    """Return one value per instance: an array along its first dimension, or a sequence."""
    accepted = {DATATYPES[own.graph_dtype]} if own.kind == "tensor" else _ACCEPTED[own.kind]
    if tensor.datatype not in accepted and not (tensor.datatype == "BF16" and tensor.raw is not None and own.kind == "number"):
        raise InputError(
            f"input {own.name!r} must have datatype {' or '.join(sorted(accepted))}; got {tensor.datatype[:20]!r}"
            + ("; BF16 only in bytes" if tensor.datatype == "BF16" and own.kind == "number" else ""),
            code="wrong_dtype",
            field=own.name,
        )
    _check_rank(own, tensor.shape)
    if tensor.raw is not None and tensor.datatype == "BYTES":
        tensor.elements = strings(own.name, tensor.raw)
    if tensor.elements is not None:
        return _bytes_column(own, tensor.elements, tensor.shape, max_instances)
    if tensor.raw is not None:
        return _number_column(own, tensor.datatype, numbers(own.name, tensor.datatype, tensor.raw), tensor.shape, max_instances)
    if tensor.data is None:
        raise InputError(f"input {own.name!r} has neither `data` nor `binary_data_size`", code="bad_body", field=own.name)
    return _json_column(own, tensor, _flat(tensor.data), max_instances)


def _bytes_column(own: RawField, elements: list[bytes], shape: Sequence[int], max_instances: int) -> Sequence[object]:
    check_shape(own.name, shape, len(elements))
    _check_instances(shape[0], max_instances)
    if own.kind in BINARY_KINDS:
        return elements
    texts: list[object] = []
    for i, element in enumerate(elements):
        try:
            texts.append(element.decode())
        except UnicodeDecodeError as error:
            instance = i // max(1, len(elements) // max(1, shape[0]))
            raise InputError(
                f"input {own.name!r} holds text that is not UTF-8 (byte {error.start})",
                code="undecodable",
                field=own.name,
                instance=instance,
            ) from error
    return _instances(own, texts, shape) if own.kind == "tensor" else texts


def _number_column(own: RawField, datatype: str, values: np.ndarray, shape: Sequence[int], max_instances: int) -> np.ndarray:
    check_shape(own.name, shape, values.size)
    _check_instances(shape[0], max_instances)
    if own.kind == "tensor":
        return values.reshape(shape)
    if datatype in ("INT64", "UINT64"):
        far = (
            np.flatnonzero((values > MAX_EXACT_INTEGER) | (values < -MAX_EXACT_INTEGER))
            if datatype == "INT64"
            else np.flatnonzero(values > MAX_EXACT_INTEGER)
        )
        if far.size:
            raise _cannot_hold(own, datatype, str(values[far[0]]), int(far[0]))
    return values.astype(np.float64) if own.kind == "number" else values


def _json_column(own: RawField, tensor: InputTensor, values: list[object], max_instances: int) -> Sequence[object] | np.ndarray:
    shape = tensor.shape
    check_shape(own.name, shape, len(values))
    _check_instances(shape[0], max_instances)
    if own.kind == "tensor":
        return _instances(own, values, shape)
    if tensor.datatype in _RANGES:
        _check_integers(own, tensor.datatype, values)
    elif tensor.datatype in _ROUNDED:
        return _rounded(own, tensor.datatype, values)
    return [_encoded(own, tensor, v) for v in values] if own.kind in BINARY_KINDS else values


def _rounded(own: RawField, datatype: str, values: Sequence[Any]) -> list[object] | np.ndarray:
    """Return JSON numbers as the declared datatype holds them; other wrong types are left to the signature."""
    numpy_type, written = _ROUNDED[datatype]
    if len(values) > _FEW_VALUES:
        try:
            array: np.ndarray = np.array(msgspec.convert(values, list[float | None]), np.float64)
        except msgspec.ValidationError:
            pass
        else:
            with np.errstate(over="ignore"):
                widened = array.astype(numpy_type).astype(np.float64)
            if not np.isinf(widened).any():
                return widened  # null is NaN here, and so missing
    rounded: list[object] = []
    for i, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float):
            rounded.append(value)
            continue
        try:
            rounded.append(written.unpack(written.pack(value))[0])
        except OverflowError as error:
            raise _cannot_hold(own, datatype, digits(value) if isinstance(value, int) else repr(value), i) from error
    return rounded


def _check_integers(own: RawField, datatype: str, values: Sequence[object]) -> None:
    """Refuse numbers that the declared integer datatype cannot hold; other wrong types are left to the signature."""
    low, high = _RANGES[datatype]
    if own.kind == "number":  # it becomes a float64, which holds whole numbers exactly up to 2^53
        low, high = max(low, -MAX_EXACT_INTEGER), min(high, MAX_EXACT_INTEGER)
    for i, value in enumerate(values):
        if isinstance(value, int | float) and not (low <= value <= high and value == int(value)):
            raise _cannot_hold(own, datatype, digits(value) if isinstance(value, int) else repr(value), i)


def _cannot_hold(own: RawField, datatype: str, shown: str, instance: int) -> InputError:
    return InputError(
        f"input {own.name!r} is declared {datatype} for {own.kind} values and cannot hold {shown}",
        code="out_of_range",
        field=own.name,
        instance=instance,
    )


def _check_rank(own: RawField, shape: Sequence[int]) -> None:
    if own.kind == "tensor":
        rank = 1 + len(own.shape or ())
        if len(shape) != rank:
            raise InputError(
                f"input {own.name!r} must have {rank} dimensions, the first being the number of instances; got {described(shape)}",
                code="wrong_shape",
                field=own.name,
            )
    elif len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != 1):
        raise InputError(f"input {own.name!r} must have shape [n] or [n, 1]; got {described(shape)}", code="wrong_shape", field=own.name)


def _encoded(own: RawField, tensor: InputTensor, value: object) -> object:
    """Read bytes in a JSON tensor: only ever base64, and only when the caller says so."""
    if (tensor.parameters or {}).get("content_type") != "base64":
        raise InputError(
            f'input {own.name!r} holds bytes: send them as base64 and say so with "parameters": {{"content_type": "base64"}}',
            code="wrong_type",
            field=own.name,
        )
    return {"b64": value}


def _instances(own: RawField, values: list[object], shape: Sequence[int]) -> Sequence[object]:
    n, rest = shape[0], shape[1:]
    size = math.prod(rest)
    if size == 0:
        return [np.empty(rest, dtype=object if own.graph_dtype == "string" else own.graph_dtype)] * n
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


# --- outputs --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One output of an answer.

    Attributes:
        binary: Whether the caller wants it in bytes.
    """

    name: str
    datatype: str
    array: np.ndarray
    binary: bool


def outputs_of(answer: Answer, request: InferRequest) -> list[OutputTensor]:
    """Return the outputs the caller asked for, or all, in the model's order."""
    asked = {entry.name: entry for entry in request.outputs}
    tensors = []
    for output, array in zip(answer.origin.outputs, answer.arrays, strict=True):
        entry = asked.get(output.name)
        if asked and entry is None:
            continue
        datatype, binary = DATATYPES[output.dtype], request.binary
        if entry is not None and entry.parameters:
            own = _flag(entry.parameters, "binary_data")
            binary = request.binary if own is None else own
            classes = _classes(entry)
            if classes:
                datatype, array = "BYTES", classified(array, classes, output.element_names)
        tensors.append(OutputTensor(output.name, datatype, array, binary))
    return tensors


def parameters_of(answer: Answer) -> dict[str, str]:
    """Return what an answer says about itself beside its outputs: the experiment it belongs to, and its signed id, if there are any."""
    parameters = {} if answer.assignment is None else {name.replace("-", "_"): value for name, value in answer.assignment.facts().items()}
    if answer.prediction_id != answer.request_id:
        parameters["prediction_id"] = answer.prediction_id
    return parameters


def encode(answer: Answer, request: InferRequest) -> Encoded:
    """Write an answer as a V2 body; outputs asked for in bytes follow the JSON, in its order."""
    outputs, tail = [], []
    for tensor in outputs_of(answer, request):
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.array.shape)}
        if tensor.binary:
            data = written(tensor.array)
            entry["parameters"] = {"binary_data_size": len(data)}
            tail.append(data)
        else:
            entry["data"] = tensor.array.ravel().tolist()
        outputs.append(entry)
    origin = answer.origin
    document: dict[str, Any] = {
        "model_name": origin.model,
        "model_version": str(origin.version),
        "id": request.id or answer.request_id,
        "outputs": outputs,
    }
    parameters = parameters_of(answer)
    if parameters:
        document["parameters"] = parameters
    text = _encode(document)
    return Encoded(b"".join((text, *tail)), len(text)) if tail else Encoded(text)


# --- metadata -------------------------------------------------------------------------------------------------------------


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
