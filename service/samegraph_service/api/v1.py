"""V1 (the TF Serving and Vertex shape), raw bodies and multipart: body → decoder, answer → bytes. All answer in V1 shape."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import msgspec
from samegraph_transforms.errors import InputError
from samegraph_transforms.signature import Row, Signature
from samegraph_transforms.wire import (
    Decoded,
    decode_raw,
    decode_v1,
    is_json,
    media_types,
    prediction_columns,
    raw_field,
    written_predictions,
)

from samegraph_service.call import Answer, OnError, Origin

from .error_document import instance_document
from .multipart import parts

_encode = msgspec.json.Encoder().encode
#: Executions with more values than this are written request by request: the loop must not wait for all of them at once.
SHARED_VALUES = 4096


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


def ending(origin: Origin, facts: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """Return the end of every V1 body of a version, up to where the prediction id goes; `facts` say what an experiment decided."""
    more = b"".join(b"%b:%b," % (_encode(name.replace("-", "_")), _encode(value)) for name, value in facts.items())
    return b',"model_name":%b,"model_version":"%d",%b"prediction_id":"' % (_encode(origin.model), origin.version, more)


def encode(answer: Answer, ending: bytes) -> bytes:
    """Write an answer as a V1 body; failed instances of a partial answer are null in `predictions` and listed in `errors`.

    Args:
        answer: The answer; its prediction id holds nothing that JSON would escape.
        ending: What `ending` returns for its version.
    """
    identifier = answer.prediction_id.encode()
    if not answer.errors:
        if answer.form == "rows":
            return b"".join((b'{"predictions":', _encode(_rows(answer)), ending, identifier, b'"}'))
        return b"".join((b'{"outputs":', _encode(prediction_columns(answer.origin.outputs, answer.arrays)), ending, identifier, b'"}'))
    rows = _encode(_with_gaps(_rows(answer), answer))
    failures = _encode([instance_document(error, i) for i, error in sorted(answer.errors.items())])
    return b"".join((b'{"predictions":', rows, b',"errors":', failures, ending, identifier, b'"}'))


def _rows(answer: Answer) -> list[Any]:
    """Return the answered rows as JSON values.

    Those of a small execution are taken out of NumPy together, by the first request that needs his: that takes a fifth of each on its own.
    """
    origin, parts = answer.origin, answer.parts
    if len(parts) == 1:
        part = parts[0]
        outputs = part.outputs
        if outputs.rows is None and sum([a.size for a in outputs.arrays]) <= SHARED_VALUES:
            outputs.rows = written_predictions(origin.outputs, outputs.arrays)
        if outputs.rows is not None:
            return outputs.rows[part.offset : part.offset + part.count]
    return written_predictions(origin.outputs, answer.arrays)


def _with_gaps(rows: list[Any], answer: Answer) -> list[Any]:
    answered = iter(rows)
    return [None if i in answer.errors else next(answered) for i in range(answer.n)]
