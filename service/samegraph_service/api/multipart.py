"""Split a multipart/form-data body into parts, in order, with bounds."""

from __future__ import annotations

import logging
from email.message import Message
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser
from samegraph_transforms.errors import InputError

# The parser logs a warning for every bad body. Its faults are told to the caller; callers must not be able to fill the log.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

MAX_PART_HEADERS = 16
MAX_HEADER_BYTES = 8192

Part = tuple[dict[str, str], bytes]


def parts(content_type: str, body: bytes, max_parts: int) -> list[Part]:
    """Return (lower-case headers, content) of each part.

    Raises:
        InputError: There is no boundary, the body is not multipart, it ends early, or holds more than `max_parts`.
    """
    collector = _Collector(max_parts)
    parser = MultipartParser(_boundary(content_type), collector.callbacks())
    try:
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise InputError(f"the body is not valid multipart/form-data: {error}", code="bad_body") from error
    if not collector.ended:
        raise InputError("the multipart body ends before its closing boundary; the upload was cut short", code="truncated")
    if not collector.parts:
        raise InputError("the multipart body holds no parts; send one part per instance", code="no_instances")
    return collector.parts


def _boundary(content_type: str) -> bytes:
    message = Message()
    message["content-type"] = content_type
    boundary = message.get_param("boundary")
    if not isinstance(boundary, str) or not 1 <= len(boundary) <= 70:
        raise InputError("the content-type multipart/form-data needs a `boundary` of 1 to 70 characters", code="bad_body")
    return boundary.encode("latin-1", "replace")


class _Collector:
    """Gathers the parser's callbacks into parts."""

    def __init__(self, max_parts: int) -> None:
        self.parts: list[Part] = []
        self.ended = False
        self._max_parts = max_parts
        self._headers: dict[str, str] = {}
        self._name = bytearray()
        self._value = bytearray()
        self._data: list[bytes] = []

    def callbacks(self) -> Any:
        """Return the callbacks in the shape the parser takes."""
        return {
            "on_part_begin": self._begin,
            "on_part_data": lambda data, start, end: self._data.append(data[start:end]),
            "on_part_end": lambda: self.parts.append((self._headers, b"".join(self._data))),
            "on_header_field": lambda data, start, end: self._grow(self._name, data[start:end]),
            "on_header_value": lambda data, start, end: self._grow(self._value, data[start:end]),
            "on_header_end": self._header,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.parts) >= self._max_parts:
            raise InputError(f"the request holds more than {self._max_parts} parts; send several requests", code="too_many_instances")
        self._headers, self._data = {}, []

    @staticmethod
    def _grow(buffer: bytearray, data: bytes) -> None:
        buffer += data
        if len(buffer) > MAX_HEADER_BYTES:
            raise InputError(f"a part header is longer than {MAX_HEADER_BYTES} bytes", code="bad_body")

    def _header(self) -> None:
        if len(self._headers) >= MAX_PART_HEADERS:
            raise InputError(f"a part has more than {MAX_PART_HEADERS} headers", code="bad_body")
        self._headers[self._name.decode("latin-1").lower()] = self._value.decode("latin-1").strip()
        self._name.clear()
        self._value.clear()

    def _end(self) -> None:
        self.ended = True
