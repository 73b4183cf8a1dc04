"""Request bytes → checked rows, and answers → JSON values, shared by `pack`, `verify` and the server.

A golden sample is raw request bytes; it means the same everywhere because everyone reads it here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import msgspec
import numpy as np

from .errors import InputError
from .manifest import BINARY_KINDS, Output
from .signature import Row, Signature

Form = Literal["rows", "columns"]

_parse = msgspec.json.Decoder().decode

#: Most values in a JSON body. Python needs up to forty bytes of memory for a byte of `[],[],[],…`, and holds the interpreter lock
#: while it reads them: sixty megabytes of it took 1.5 GB, and 6 s in which nothing else was answered.
MAX_JSON_VALUES = 4_000_000


class Decoded(msgspec.Struct, eq=False):
    """The instances of one request.

    Attributes:
        rows: In request order; an instance that breaks the signature is its error instead.
        form: Whether the caller sent rows (`instances`) or columns (`inputs`); the answer takes the same form.
        clean: Every instance is known to be a row, not an error.
    """

    rows: Sequence[Row | InputError]
    form: Form = "rows"
    clean: bool = False


def decode_request(signature: Signature, headers: Mapping[str, str], body: bytes, *, max_instances: int = 1_000_000) -> Decoded:
    """Decode the body of a V1 predict request by its content type.

    Args:
        signature: The version's raw inputs.
        headers: Lower-case names; `content-type` decides, absent means JSON.
        body: The raw bytes.
        max_instances: More are refused.

    Raises:
        InputError: The body as a whole cannot be read.
    """
    content_type = headers.get("content-type", "application/json")
    media_type = content_type.partition(";")[0].strip().lower()
    if is_json(media_type):
        return decode_v1(signature, body, max_instances=max_instances)
    return Decoded([decode_raw(signature, content_type, body)])


def is_json(media_type: str) -> bool:
    """Whether a body of this media type is read as JSON (curl's form default too: its users mean JSON)."""
    return media_type in ("application/json", "", "text/json", "application/x-www-form-urlencoded") or media_type.endswith("+json")


def decode_v1(signature: Signature, body: bytes, *, max_instances: int = 1_000_000) -> Decoded:
    """Decode a V1 JSON body: `instances` (rows) or `inputs` (columns).

    Raises:
        InputError: The body is not JSON, too much of it, or its outer shape is wrong. Faults of single instances are in the result.
    """
    if len(body) > MAX_JSON_VALUES:
        _check_values(body)
    rows = signature.decode_rows(body)
    if rows is None:
        return _decode_v1_slowly(signature, body, max_instances)
    if not 0 < len(rows) <= max_instances:
        _check_count(len(rows), max_instances)
    return Decoded(rows, "rows", True)


def _decode_v1_slowly(signature: Signature, body: bytes, max_instances: int) -> Decoded:
    document = parse_json(body)
    if not isinstance(document, dict):
        raise InputError('the body must be a JSON object: {"instances": [...]} or {"inputs": {...}}', code="bad_body")
    _check_members(document)
    if "instances" in document:
        instances = document["instances"]
        if not isinstance(instances, list):
            raise InputError("`instances` must be a list, one entry per instance", code="bad_body", field="instances")
        _check_count(len(instances), max_instances)
        return Decoded([signature.try_row(instance, i) for i, instance in enumerate(instances)])
    return Decoded(_columns(signature, document["inputs"], max_instances), "columns")


def _check_members(document: Mapping[str, object]) -> None:
    if ("instances" in document) == ("inputs" in document):
        raise InputError("the body needs exactly one of `instances` (rows) and `inputs` (columns)", code="bad_body")
    for name, value in document.items():
        if name == "signature_name":
            if value not in (None, "serving_default"):
                raise InputError("this server has the one signature 'serving_default'", code="bad_body", field=name)
        elif name not in ("instances", "inputs"):
            raise InputError(f"unknown member {name[:100]!r}; a request holds `instances` or `inputs`", code="bad_body", field=name[:100])


def _columns(signature: Signature, inputs: object, max_instances: int) -> Sequence[Row | InputError]:
    single = signature.single
    if single is not None and isinstance(inputs, list):
        inputs = {single.name: inputs}
    if not isinstance(inputs, dict):
        raise InputError("`inputs` must be an object of one list per field", code="bad_body", field="inputs")
    for name, values in inputs.items():
        if not isinstance(values, list):
            raise InputError(f"`inputs.{name[:100]}` must be a list with one value per instance", code="wrong_shape", field=name[:100])
    _check_count(max((len(v) for v in inputs.values()), default=0), max_instances)
    return signature.check_columns(inputs)


def _check_values(body: bytes) -> None:
    # Counted without reading the JSON: a comma inside a string counts too, which a body of this size can bear.
    if len(body) > MAX_JSON_VALUES and body.count(b",") >= MAX_JSON_VALUES:
        raise InputError(
            f"the body holds more than {MAX_JSON_VALUES:,} JSON values; send several requests, or images and text as raw bodies",
            code="too_large",
        )


def _check_count(n: int, max_instances: int) -> None:
    if n == 0:
        raise InputError("the request holds no instances; send at least one", code="no_instances")
    if n > max_instances:
        raise InputError(f"the request holds {n} instances; the limit is {max_instances}: send several requests", code="too_many_instances")


def parse_json(body: bytes) -> Any:
    """Parse JSON strictly, with errors a person can act on.

    Raises:
        InputError: `malformed_json` with the byte where it breaks, `not_a_number` for bare NaN and Infinity, or `too_large`.
    """
    _check_values(body)
    if not body.strip():
        raise InputError("the body is empty; send a JSON object", code="malformed_json")
    try:
        return _parse(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # text that is not UTF-8 comes as Python's own error
        raise _explained(body, error) from error
    except RecursionError as error:
        raise InputError("the JSON is nested too deeply", code="malformed_json") from error


def _explained(body: bytes, error: msgspec.DecodeError | UnicodeDecodeError) -> InputError:
    text = str(error)
    where = text.rpartition("(byte ")[2].rstrip(")")
    if where.isdigit():
        at = body[max(0, int(where) - 1) : int(where) + 9]
        if any(token in at for token in (b"NaN", b"Inf", b"nan", b"inf")):
            return InputError(f"bare NaN or Infinity at byte {where} is not JSON; send null for a missing value", code="not_a_number")
    if "out of range" in text:
        return InputError("the body holds a number too large for a 64-bit float", code="out_of_range")
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as bad:
        return InputError(f"the body is not UTF-8 (byte {bad.start})", code="malformed_json")
    return InputError(f"the body is not valid JSON: {text.removeprefix('JSON is malformed: ')}", code="malformed_json")


def decode_raw(signature: Signature, content_type: str, body: bytes) -> Row | InputError:
    """Decode a raw body (`image/*`, `text/plain`, `application/octet-stream`) into one instance.

    Raises:
        InputError: `unsupported_media_type` when the model does not take such a body.
    """
    media_type, _, parameters = content_type.partition(";")
    media_type = media_type.strip().lower()
    name = raw_field(signature, media_type)
    if name is None:
        raise InputError(
            f"this model does not take {media_type or 'an unnamed media type'}; it takes {', '.join(media_types(signature))}",
            code="unsupported_media_type",
        )
    try:
        value: object = _text(body, parameters) if media_type == "text/plain" else body
        return signature.row_of({name: value})
    except InputError as error:
        return error.at(0)


def _text(body: bytes, parameters: str) -> str:
    charset = "utf-8"
    for parameter in parameters.split(";"):
        key, _, value = parameter.partition("=")
        if key.strip().lower() == "charset":
            charset = value.strip().strip('"').lower()
    if charset not in ("utf-8", "utf8", "us-ascii", "ascii"):
        raise InputError(f"charset {charset[:40]!r} is not supported; send UTF-8", code="unsupported_media_type")
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"the text is not UTF-8 (byte {error.start})", code="undecodable") from error


def raw_field(signature: Signature, media_type: str) -> str | None:
    """Return the field a raw body of this media type fills, or None when the model does not take it."""
    kinds: tuple[str, ...]
    if media_type.startswith("image/"):
        kinds = ("image",)
    elif media_type == "text/plain":
        kinds = ("text", "string")
    elif media_type == "application/octet-stream":
        kinds = ("image", "bytes")
    else:
        return None
    required = [f for f in signature.fields if f.required] or list(signature.fields)[:1]
    return required[0].name if len(required) == 1 and required[0].kind in kinds else None


def media_types(signature: Signature) -> list[str]:
    """Return the media types a predict request of this model may have."""
    accepted = ["application/json"]
    for media_type, shown in (
        ("image/jpeg", "image/*"),
        ("text/plain", "text/plain"),
        ("application/octet-stream", "application/octet-stream"),
    ):
        if raw_field(signature, media_type) is not None:
            accepted.append(shown)
    required = [f for f in signature.fields if f.required] or list(signature.fields)[:1]
    if len(required) == 1 and required[0].kind in BINARY_KINDS:
        accepted.append("multipart/form-data")
    return accepted


def predictions(outputs: Sequence[Output], arrays: Sequence[np.ndarray]) -> list[Any]:
    """Turn output arrays [n, ...] into V1 `predictions`: bare values for one output, else objects keyed by output name."""
    if len(outputs) == 1:
        return list(arrays[0].tolist())
    names = [o.name for o in outputs]
    return [dict(zip(names, values, strict=True)) for values in zip(*(a.tolist() for a in arrays), strict=True)]


def written_predictions(outputs: Sequence[Output], arrays: Sequence[np.ndarray]) -> list[Any]:
    """Return what `predictions` does for msgspec to write: the same JSON, from records in place of dicts, which take an eighth of the time.

    Args:
        outputs: The manifest's.
        arrays: Per output, [n, ...], equally many rows in each.
    """
    record = None if len(outputs) == 1 else _record(tuple([o.name for o in outputs]))
    return predictions(outputs, arrays) if record is None else list(map(record, *[array.tolist() for array in arrays]))


@lru_cache(maxsize=1024)
def _record(names: tuple[str, ...]) -> Callable[..., Any] | None:
    """Return the type of records that are written as objects with these keys; None when a key would need escapes, which msgspec refuses."""
    fields = {f"output_{i}": name for i, name in enumerate(names)}
    try:
        return msgspec.defstruct("Prediction", [(field, Any) for field in fields], rename=fields, gc=False)
    except ValueError:
        return None


def prediction_columns(outputs: Sequence[Output], arrays: Sequence[np.ndarray]) -> Any:
    """Turn output arrays [n, ...] into V1 `outputs` (the columnar form)."""
    if len(outputs) == 1:
        return arrays[0].tolist()
    return {o.name: a.tolist() for o, a in zip(outputs, arrays, strict=True)}
