"""Content encodings: request bodies that come compressed, and answers that go out so.

A body is inflated piece by piece under the limit of its inflated size, so a small one that would become a huge one is refused before it
has. zlib lets go of the interpreter lock meanwhile; callers do both on a host thread.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import Final, Literal

from samegraph_transforms.errors import InputError

from samegraph_service.errors import BodyTooLarge

Coding = Literal["gzip", "deflate"]

#: Bytes fed to zlib at once; what follows a member of a gzip body is copied, and this bounds the copy.
_PIECE: Final = 65536
#: Most members of one gzip body: each may be of twenty bytes and hold nothing.
MAX_MEMBERS: Final = 1024
#: Of zlib's nine levels the one that takes least time: 3 to 10 ms for a megabyte of JSON numbers, for most of the gain.
_LEVEL: Final = 1
_WBITS: dict[Coding, int] = {"gzip": 31, "deflate": 15}


@lru_cache(maxsize=64)
def coding_of(content_encoding: bytes) -> Coding | None:
    """Return how a body is compressed; None when it is not.

    Raises:
        InputError: `unsupported_media_type`: in a way this server does not read, or more than once.
    """
    name = content_encoding.strip().lower()
    if name in (b"identity", b""):
        return None
    if name in (b"gzip", b"x-gzip"):
        return "gzip"
    if name == b"deflate":
        return "deflate"
    raise InputError(
        f"content-encoding {content_encoding[:40].decode('latin-1')!r} is not supported; send gzip, deflate, or the body as it is",
        code="unsupported_media_type",
    )


@lru_cache(maxsize=256)
def accepted(accept_encoding: bytes) -> Coding | None:
    """Return how an answer may be compressed: the coding the caller likes best of those there are, gzip where he likes both alike."""
    weights: dict[str, float] = {}
    for part in accept_encoding.decode("latin-1").lower().split(","):
        name, _, parameters = part.partition(";")
        weights[name.strip()] = _weight(parameters)
    best = max(("gzip", "deflate"), key=lambda name: weights.get(name, weights.get("*", 0.0)))
    if weights.get(best, weights.get("*", 0.0)) <= 0:
        return None
    return "gzip" if best == "gzip" else "deflate"


def _weight(parameters: str) -> float:
    name, _, value = parameters.strip().partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0


def inflate(body: bytes, coding: Coding, limit: int) -> bytes:
    """Return a compressed body's content.

    Args:
        body: What was sent.
        coding: How it was compressed; deflate with or without zlib's head.
        limit: Most bytes its content may have.

    Raises:
        BodyTooLarge: It has more.
        InputError: `undecodable` or `truncated`: the bytes are not what the header says.
    """
    wbits = -15 if coding == "deflate" and not _has_zlib_head(body) else _WBITS[coding]
    pieces: list[bytes] = []
    size = members = 0
    stream = zlib.decompressobj(wbits)
    rest = memoryview(body)
    try:
        while True:
            data, rest = rest[:_PIECE], rest[_PIECE:]
            while True:
                piece = stream.decompress(data, limit + 1 - size)
                size += len(piece)
                if size > limit:
                    raise BodyTooLarge(
                        f"the body is larger than the limit of {limit} bytes once it is inflated; send fewer instances per request"
                    )
                pieces.append(piece)
                if not stream.eof:
                    break
                members += 1
                data = memoryview(stream.unused_data)
                if coding == "gzip" and not stream.unused_data and rest:
                    data, rest = rest[:_PIECE], rest[_PIECE:]
                if not data:
                    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
                if coding == "deflate" or members == MAX_MEMBERS:
                    raise InputError(f"bytes follow the end of the {coding} body", code="undecodable")
                stream = zlib.decompressobj(wbits)
            if not rest:
                raise InputError(f"the {coding} body ends too early; was it cut off?", code="truncated")
    except zlib.error as error:
        raise InputError(f"the body is not {coding}, as content-encoding says", code="undecodable") from error


def _has_zlib_head(body: bytes) -> bool:
    """Whether the first two bytes are zlib's (RFC 1950); many senders of `deflate` leave them out."""
    return len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0


def deflate(body: bytes, coding: Coding) -> bytes:
    """Return an answer's body compressed."""
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WBITS[coding])
    return stream.compress(body) + stream.flush()
