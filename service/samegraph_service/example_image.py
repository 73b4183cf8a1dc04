"""A small image made in code, for documentation pages: valid, tiny in base64, and nobody's property."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Sequence
from functools import lru_cache

_SIDE = 32
#: PNG colour type and bytes per pixel of the modes written by hand.
_PNG_MODES = {"RGB": (2, 3), "L": (0, 1), "RGBA": (6, 4), "LA": (4, 2)}


def example_image(formats: Sequence[str] = (), modes: Sequence[str] = (), *, max_pixels: int | None = None) -> bytes:
    """Return a small encoded colour gradient that a decoder of these formats and modes accepts.

    Args:
        formats: Container formats by Pillow's names, best first; empty means any. PNG is taken when it is among them.
        modes: Accepted pixel modes by Pillow's names; empty means any. RGB is taken when it is among them.
        max_pixels: Largest accepted width × height.

    Returns:
        The file's bytes: 32 × 32 pixels, or the largest square within `max_pixels`.
    """
    side = _SIDE if max_pixels is None else max(1, min(_SIDE, math.isqrt(max_pixels)))
    mode = next((m for m in _PNG_MODES if m in modes), "RGB")
    if not formats or "PNG" in formats:
        return _png(side, mode)
    return _reencoded(_png(side, mode), formats[0], mode)


def _pixel(x: int, y: int, side: int, mode: str) -> bytes:
    last = max(1, side - 1)
    red, green, blue = 255 * x // last, 255 * y // last, 128
    grey = (red + green) // 2
    return bytes({"RGB": (red, green, blue), "L": (grey,), "RGBA": (red, green, blue, 255), "LA": (grey, 255)}[mode])


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@lru_cache(maxsize=64)
def _png(side: int, mode: str) -> bytes:
    colour_type, size = _PNG_MODES[mode]
    lines = b""
    for y in range(side):
        line = b"".join(_pixel(x, y, side, mode) for x in range(side))
        # Filter 1 stores differences to the pixel on the left, which makes a gradient compress to almost nothing.
        differences = bytes((line[i] - (line[i - size] if i >= size else 0)) & 0xFF for i in range(len(line)))
        lines += b"\x01" + differences
    header = struct.pack(">IIBBBBB", side, side, 8, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(lines, 9)) + _chunk(b"IEND", b"")


@lru_cache(maxsize=64)
def _reencoded(png: bytes, image_format: str, mode: str) -> bytes:
    from PIL import Image  # only a package that refuses PNG needs it

    encoded = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        # JPEG holds no alpha; a decoder that lists an alpha mode lists it for other formats.
        image.convert(mode.removesuffix("A") if image_format == "JPEG" else mode).save(encoded, format=image_format)
    return encoded.getvalue()
