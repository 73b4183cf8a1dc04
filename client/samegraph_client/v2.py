"""V2 (Open Inference Protocol): raw input + what the model's metadata says → body, answer → predictions. Sans-IO, without NumPy.

Arrays travel as the binary tensors of V2's extension where the server has it: their memory, not decimal text. What an array is, is asked of
the array itself (`dtype`, `shape`, `tobytes`), so NumPy need not be installed.
"""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeGuard

from .encoding import Body, content_of, is_binary, is_list, json_value
from .errors import AnswerNotUnderstood, RawInputInvalid

#: What arrays call their elements → what V2 calls them.
DATATYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8", "int16": "INT16",
    "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip
HEADER_LENGTH = "inference-header-content-length"


class Array(Protocol):
    """What is asked of an array; NumPy's are such."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""
        ...

    def tobytes(self) -> bytes:
        """Its elements, row-major."""
        ...

    def tolist(self) -> object:
        """Its elements as nested lists."""
        ...


@dataclass(frozen=True)
class Input:
    """One input of a model: its name, its V2 datatype, and the shape of one instance (-1: any)."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """What a V2 server says about a model.

    Attributes:
        inputs: Its inputs.
        binary: Whether the server takes binary tensors.
    """

    inputs: tuple[Input, ...]
    binary: bool

    @classmethod
    def parse(cls, server: object, model: object) -> Signature:
        """Read the metadata documents of a server (None: it has none) and of a model.

        Raises:
            AnswerNotUnderstood: The model's document has no inputs in V2's shape.
        """
        extensions = server.get("extensions") if isinstance(server, dict) else None
        inputs = model.get("inputs") if isinstance(model, dict) else None
        try:
            parsed = tuple(Input(i["name"], i["datatype"], tuple(int(d) for d in i["shape"][1:])) for i in inputs or ())
        except (KeyError, TypeError, ValueError) as error:
            raise AnswerNotUnderstood(f"the model's metadata does not describe its inputs as V2 does: {inputs!r:.200}") from error
        if not parsed:
            raise AnswerNotUnderstood("the model's metadata names no inputs")
        return cls(parsed, isinstance(extensions, list) and "binary_tensor_data" in extensions)


def holds_arrays(raw: object) -> bool:
    """Whether a raw input is made of arrays of at least one dimension, so that V2's binary tensors suit it."""
    instances = raw if is_list(raw) else [raw]
    return bool(instances) and all(
        _is_array(item) or (isinstance(item, Mapping) and any(_is_array(value) for value in item.values())) for item in instances
    )


def encode(raw: object, signature: Signature) -> Body:
    """Return the V2 body for a raw input; instances are stacked along the first dimension.

    Raises:
        RawInputInvalid: It does not fit the model's inputs.
    """
    single = not is_list(raw)
    instances: Sequence[object] = [raw] if single else raw  # type: ignore[assignment]
    if not instances:
        raise RawInputInvalid("there is no instance to predict: the list is empty")
    rows = [_row(item, signature, index) for index, item in enumerate(instances)]
    tensors = []
    tail = bytearray()
    for field in signature.inputs:
        column = [row[field.name] for row in rows]
        tensor, content = _tensor(field, column, binary=signature.binary)
        tensors.append(tensor)
        tail += content or b""
    header = json.dumps({"inputs": tensors}, allow_nan=False, separators=(",", ":")).encode()
    if not tail:
        return Body(header, "application/json", single)
    return Body(header + bytes(tail), "application/octet-stream", single, {HEADER_LENGTH: str(len(header))})


def predictions(document: object) -> list[object]:
    """Return one prediction per instance from a V2 answer in JSON.

    A model of one output predicts that output; one of several, a mapping of name → output: as in V1.

    Raises:
        AnswerNotUnderstood: It is not a V2 answer, or its tensors do not fit each other.
    """
    outputs = document.get("outputs") if isinstance(document, dict) else None
    if not isinstance(outputs, list) or not outputs:
        raise AnswerNotUnderstood("the answer has no list called `outputs`")
    try:
        columns = {str(output["name"]): _rows(output["data"], [int(d) for d in output["shape"]]) for output in outputs}
    except (KeyError, TypeError, ValueError) as error:
        raise AnswerNotUnderstood(f"an entry of `outputs` is not a V2 tensor: {error!r}") from error
    if len({len(column) for column in columns.values()}) != 1:
        raise AnswerNotUnderstood(f"the outputs differ in their first dimension: { {name: len(c) for name, c in columns.items()} }")
    if len(columns) == 1:
        return next(iter(columns.values()))
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _row(item: object, signature: Signature, index: int) -> Mapping[str, object]:
    if not isinstance(item, Mapping):
        if len(signature.inputs) != 1:
            names = ", ".join(field.name for field in signature.inputs)
            raise RawInputInvalid(f"instance {index} must be a mapping of the model's inputs {names}; got a {type(item).__name__}")
        return {signature.inputs[0].name: item}
    missing = [field.name for field in signature.inputs if field.name not in item]
    unknown = sorted(str(name) for name in item if name not in {field.name for field in signature.inputs})
    if missing or unknown:
        raise RawInputInvalid(f"instance {index} does not fit the model's inputs: missing {missing}, unknown {unknown}")
    return item


def _tensor(field: Input, column: Sequence[object], *, binary: bool) -> tuple[dict[str, object], bytes | None]:
    """Return one input of the request, and the bytes that follow the header for it (None: its data is in the header)."""
    shape = _shape(field, column)
    tensor: dict[str, object] = {"name": field.name, "datatype": field.datatype, "shape": [len(column), *shape]}
    if field.datatype == "BYTES" and any(is_binary(value) for value in column):
        contents = [content_of(value) if is_binary(value) else str(value).encode() for value in column]
        if binary:
            return _followed(tensor, b"".join(struct.pack("<I", len(content)) + content for content in contents))
        tensor["parameters"] = {"content_type": "base64"}
        tensor["data"] = [base64.b64encode(content).decode("ascii") for content in contents]
        return tensor, None
    if binary and all(_is_array(value) and _v2_dtype(value) == field.datatype for value in column):
        return _followed(tensor, b"".join(value.tobytes() for value in column if _is_array(value)))
    tensor["data"] = _flat(json_value(list(column), f"input {field.name!r}"))
    return tensor, None


def _followed(tensor: dict[str, object], content: bytes) -> tuple[dict[str, object], bytes]:
    return {**tensor, "parameters": {"binary_data_size": len(content)}}, content


def _shape(field: Input, column: Sequence[object]) -> list[int]:
    """Return the shape of one instance, which all must share."""
    shapes = {tuple(value.shape) if _is_array(value) else _list_shape(value) for value in column}
    if len(shapes) > 1:
        raise RawInputInvalid(f"input {field.name!r} differs in shape between instances: {sorted(shapes)}; send them apart")
    shape = list(shapes.pop())
    # A scalar for an input of shape [n, 1] has one element either way.
    return list(field.shape) if not shape and all(d == 1 for d in field.shape) else shape


def _list_shape(value: object) -> tuple[int, ...]:
    if not is_list(value):
        return ()
    return (len(value), *(_list_shape(value[0]) if value else ()))


def _flat(value: object) -> list[object]:
    return [leaf for item in value for leaf in _flat(item)] if isinstance(value, list) else [value]


def _rows(data: object, shape: list[int]) -> list[object]:
    """Return flat (or nested) row-major data as one value per instance."""
    flat = _flat(data)
    if not shape or math.prod(shape) != len(flat):
        raise ValueError(f"{len(flat)} elements do not fill shape {shape}")
    size = len(flat) // shape[0] if shape[0] else 0
    inner = shape[1:]
    return [_nested(flat[i * size : (i + 1) * size], inner) for i in range(shape[0])]


def _nested(flat: list[object], shape: list[int]) -> object:
    if not shape:
        return flat[0]
    if len(shape) == 1:
        return flat
    size = len(flat) // shape[0] if shape[0] else 0
    return [_nested(flat[i * size : (i + 1) * size], shape[1:]) for i in range(shape[0])]


def _is_array(value: object) -> TypeGuard[Array]:
    return bool(getattr(value, "shape", ())) and hasattr(value, "dtype") and hasattr(value, "tobytes")


def _v2_dtype(value: object) -> str | None:
    """Return the V2 datatype whose memory layout the array's elements have, if any (V2 is little-endian)."""
    dtype = getattr(value, "dtype", None)
    return None if getattr(dtype, "byteorder", ">") == ">" else DATATYPES.get(str(dtype))
