"""Raw input → request body. Sans-IO but for reading the file a path names.

| raw input | what is sent |
|---|---|
| mapping, number, boolean, text, None | V1 JSON, one instance |
| sequence of those | V1 JSON, one instance each |
| bytes, path to a file | the bytes as they are, with their media type: one instance (`wire="v1"`: V1 JSON with b64) |
| sequence of bytes or paths | V1 JSON with b64, one instance each |

Inside a mapping, bytes and paths become `{"b64": …}`, NaN becomes null (missing), arrays become lists.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .errors import RawInputInvalid

Wire = Literal["auto", "v1"]
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
    """

    content: bytes
    media_type: str
    single: bool


def encode(raw: object, wire: Wire = "auto") -> Body:
    """Return the body for a raw input.

    Raises:
        RawInputInvalid: It holds something that has no form on the wire, or names a file that cannot be read.
    """
    if _is_binary(raw) and wire == "auto":
        content = _content(raw)
        return Body(content, media_type(content), single=True)
    single = not isinstance(raw, Sequence) or isinstance(raw, str | bytes | bytearray | memoryview)
    instances = [raw] if single else raw
    if not instances:
        raise RawInputInvalid("there is no instance to predict: the list is empty")
    document = {"instances": [_json_value(item, f"instance {index}") for index, item in enumerate(instances)]}  # type: ignore[arg-type, var-annotated]
    return Body(json.dumps(document, allow_nan=False, separators=(",", ":")).encode(), "application/json", single)


def media_type(content: bytes) -> str:
    """Return the media type of encoded bytes, `application/octet-stream` when they are no image we know."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return next((name for start, name in _SIGNATURES if content.startswith(start)), "application/octet-stream")


def _is_binary(value: object) -> bool:
    return isinstance(value, bytes | bytearray | memoryview | Path)


def _content(value: object) -> bytes:
    if not isinstance(value, Path):
        return bytes(value)  # type: ignore[call-overload, no-any-return]
    try:
        return value.read_bytes()
    except OSError as error:
        raise RawInputInvalid(f"cannot read {value}: {error.strerror}") from error


def _json_value(value: object, where: str) -> object:
    """Return `value` in JSON's terms; `where` names the place for the error."""
    if _is_binary(value):
        return {"b64": base64.b64encode(_content(value)).decode("ascii")}
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if math.isinf(value):
            raise RawInputInvalid(f"{where} is infinite, which JSON cannot carry; send None for a missing value")
        return None if math.isnan(value) else value
    if isinstance(value, Mapping):
        return {_name(key, where): _json_value(item, f"{where}, field {key!r}") for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_json_value(item, f"{where}[{index}]") for index, item in enumerate(value)]
    to_list = getattr(value, "tolist", None)  # NumPy arrays and scalars, without importing NumPy
    if callable(to_list):
        return _json_value(to_list(), where)
    raise RawInputInvalid(
        f"{where} is a {type(value).__name__}; send a number, text, boolean, bytes, a path, None, or lists and dicts of those"
    )


def _name(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise RawInputInvalid(f"{where}: field names are text, not {type(key).__name__} ({key!r})")
    return key
