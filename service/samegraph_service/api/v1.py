"""V1 (the TF Serving and Vertex shape), raw bodies and multipart: body → decoder, answer → bytes. All answer in V1 shape."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec
from samegraph_transforms.errors import InputError
from samegraph_transforms.signature import Row, Signature
from samegraph_transforms.wire import Decoded, decode_raw, decode_v1, is_json, media_types, prediction_columns, predictions, raw_field

from samegraph_service.call import Answer, OnError

from .error_document import instance_document
from .multipart import parts

_encode = msgspec.json.Encoder().encode


@lru_cache(maxsize=256)
def protocol_of(content_type: str) -> str:
    """Return `v1`, `raw` or `multipart` for a request's content type."""
    media_type = content_type.partition(";")[0].strip().lower()
    if is_json(media_type):
        return "v1"
    return "multipart" if media_type == "multipart/form-data" else "raw"


def check_media_type(signature: Signature, content_type: str) -> None:
    """Refuse a body the model cannot take before it is read.

    Raises:
        InputError: `unsupported_media_type`, naming what the model takes.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if is_json(media_type) or raw_field(signature, media_type) is not None:
        return
    taken = media_types(signature)
    if media_type == "multipart/form-data" and media_type in taken:
        return
    raise InputError(
        f"this model does not take {media_type[:80] or 'an unnamed media type'}; it takes {', '.join(taken)}", code="unsupported_media_type"
    )


def default_on_error(protocol: str) -> OnError:
    """Return whether one bad instance fails the request unless the caller says otherwise."""
    return "partial" if protocol == "multipart" else "fail"


def decode(signature: Signature, content_type: str, body: bytes, max_instances: int) -> Decoded:
    """Decode a V1, raw or multipart body for a version's signature.

    Raises:
        InputError: The body as a whole cannot be read.
    """
    protocol = protocol_of(content_type)
    if protocol == "v1":
        return decode_v1(signature, body, max_instances=max_instances)
    if protocol == "multipart":
        return Decoded([_part(signature, i, headers, data) for i, (headers, data) in enumerate(parts(content_type, body, max_instances))])
    return Decoded([decode_raw(signature, content_type, body)])


def _part(signature: Signature, index: int, headers: Mapping[str, str], data: bytes) -> Row | InputError:
    """Decode one part as one instance; a part without a type is taken for the bytes the model wants."""
    content_type = headers.get("content-type", "application/octet-stream")
    try:
        row = decode_raw(signature, content_type, data)
    except InputError as error:
        row = error
    return row.at(index) if isinstance(row, InputError) else row


def encode(answer: Answer) -> bytes:
    """Write an answer as a V1 body; failed instances of a partial answer are null in `predictions` and listed in `errors`."""
    body: dict[str, Any] = {}
    if answer.form == "columns" and not answer.errors:
        body["outputs"] = prediction_columns(answer.signature_outputs, answer.arrays)
    else:
        rows = predictions(answer.signature_outputs, answer.arrays)
        body["predictions"] = _with_gaps(rows, answer) if answer.errors else rows
    if answer.errors:
        body["errors"] = [instance_document(error, i) for i, error in sorted(answer.errors.items())]
    body["model_name"] = answer.model
    body["model_version"] = str(answer.version)
    body["prediction_id"] = answer.request_id
    return _encode(body)


def _with_gaps(rows: list[Any], answer: Answer) -> list[Any]:
    answered = iter(rows)
    return [None if i in answer.errors else next(answered) for i in range(answer.n)]
