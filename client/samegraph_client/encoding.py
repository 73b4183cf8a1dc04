"""Raw input → request body in V1's terms; V2's are in `v2.py`. Sans-IO but for reading the file a path names.

| raw input | what is sent |
|---|---|
| mapping, number, boolean, text, None | V1 JSON, one instance |
| sequence of those | V1 JSON, one instance each |
| bytes, path to a file | the bytes as they are, with their media type: one instance (`wire="v1"`: V1 JSON with b64) |
| sequence of bytes or paths | V1 JSON with b64, one instance each |
| array, mapping that holds arrays, sequence of those | V2 binary tensors where the server has them (`v2.py`), V1 JSON elsewhere |

Inside a mapping, bytes and paths become `{"b64": …}`, NaN becomes null (missing), arrays become lists.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeGuard

from .errors import RawInputInvalid

Wire = Literal["auto", "v1", "v2"]
#: First bytes → media type, of the image formats in use; the server looks for itself, this only picks the way in.
_SIGNATURES = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
)


@dataclass(frozen=True)
class Body:
    """A request body ready to send.

    Attributes:
        content: The bytes.
        media_type: Its Content-Type.
        single: Whether the raw input was one instance (and the caller wants one prediction back, not a list).
        headers: Others it needs.
    """

    content: bytes
    media_type: str
    single: bool
    headers: Mapping[str, str] = field(default_factory=dict)


def encode(raw: object, wire: Wire = "auto") -> Body:
    """Return the body for a raw input.

    Raises:
        RawInputInvalid: It holds something that has no form on the wire, or names a file that cannot be read.
    """
    if is_binary(raw) and wire == "auto":
        content = content_of(raw)
        return Body(content, media_type(content), single=True)
    instances = raw if is_list(raw) else [raw]
    if not instances:
        raise RawInputInvalid("there is no instance to predict: the list is empty")
    document = {"instances": [json_value(item, f"instance {index}") for index, item in enumerate(instances)]}
    return Body(json.dumps(document, allow_nan=False, separators=(",", ":")).encode(), "application/json", not is_list(raw))


def is_list(raw: object) -> TypeGuard[Sequence[object]]:
    """Whether a raw input is a sequence of instances, rather than one."""
    return isinstance(raw, Sequence) and not isinstance(raw, str | bytes | bytearray | memoryview)


def media_type(content: bytes) -> str:
    """Return the media type of encoded bytes, `application/octet-stream` when they are no image we know."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return next((name for start, name in _SIGNATURES if content.startswith(start)), "application/octet-stream")


def is_binary(value: object) -> bool:
    """Whether a value stands for bytes: bytes themselves, or a path to a file."""
    return isinstance(value, bytes | bytearray | memoryview | Path)


def content_of(value: object) -> bytes:
    """Return the bytes a value stands for.

    Raises:
        RawInputInvalid: It is a path to a file that cannot be read.
    """
    if not isinstance(value, Path):
        return bytes(value)  # type: ignore[call-overload, no-any-return]
    try:
        return value.read_bytes()
    except OSError as error:
        raise RawInputInvalid(f"cannot read {value}: {error.strerror}") from error


def json_value(value: object, where: str) -> object:
    """Return `value` in JSON's terms; `where` names the place for the error.

    Raises:
        RawInputInvalid: It has no form in JSON.
    """
    if is_binary(value):
        return {"b64": base64.b64encode(content_of(value)).decode("ascii")}
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if math.isinf(value):
            raise RawInputInvalid(f"{where} is infinite, which JSON cannot carry; send None for a missing value")
        return None if math.isnan(value) else value
    if isinstance(value, Mapping):
        return {_name(key, where): json_value(item, f"{where}, field {key!r}") for key, item in value.items()}
    if isinstance(value, Sequence):
        return [json_value(item, f"{where}[{index}]") for index, item in enumerate(value)]
    to_list = getattr(value, "tolist", None)  # NumPy arrays and scalars, without importing NumPy
    if callable(to_list):
        return json_value(to_list(), where)
    raise RawInputInvalid(
        f"{where} is a {type(value).__name__}; send a number, text, boolean, bytes, a path, None, or lists and dicts of those"
    )


def _name(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise RawInputInvalid(f"{where}: field names are text, not {type(key).__name__} ({key!r})")
    return key


def fingerprint(raw: object) -> str:
    """Return 16 hex digits that tell one raw input from another, whatever protocol it will be sent in.

    Raises:
        RawInputInvalid: It names a file that cannot be read.
    """
    digest = hashlib.sha256()
    for piece in _pieces(raw):
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    return digest.hexdigest()[:16]


def _pieces(raw: object) -> Iterator[bytes]:
    if is_binary(raw):
        yield content_of(raw)
    elif isinstance(raw, Mapping):
        for key, value in raw.items():
            yield str(key).encode("utf-8", "surrogatepass")
            yield from _pieces(value)
    elif is_list(raw):
        yield f"[{len(raw)}".encode()
        for item in raw:
            yield from _pieces(item)
    elif hasattr(raw, "tobytes") and hasattr(raw, "shape"):
        yield f"{getattr(raw, 'dtype', '')}{raw.shape}".encode()
        yield raw.tobytes()
    else:
        yield repr(raw).encode("utf-8", "surrogatepass")
