"""Refuse image files made to keep Pillow's Python code busy, before Pillow sees them.

Pillow parses containers in Python, one step per byte of junk, per segment, chunk or block, and some steps cost what all before them
did. A 20 MB JPEG of 60-byte EXIF segments takes it 142 s, 20 MB of padding 6 s, a 5 KB run-length encoded BMP as long, and nothing else
gets the interpreter meanwhile. Each bound here is far above what encoders write, and looking costs microseconds for an ordinary file.
TIFF, which authors must ask for, has no bounds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from PIL import JpegImagePlugin

from .errors import InputError

#: Most bytes that belong to nothing, before the picture begins.
MAX_JUNK_BYTES: Final = 65_536
#: Most segments of a JPEG before its first scan, and extensions of a GIF before its first frame. ICC profiles have up to 255, others few.
MAX_SEGMENTS: Final = 4_000
#: Most of these that hold EXIF, all of which Pillow joins, one at a time. Cameras write one; one split into 64 KB pieces has a few.
MAX_EXIF_SEGMENTS: Final = 100
#: Most scans of a JPEG. Encoders write a dozen at most; each is a pass over all pixels for as little as 75 bytes of file, so
#: that without a bound a small file keeps a thread busy for hours.
MAX_JPEG_SCANS: Final = 100
#: Most blocks of a GIF's extensions before its first frame; XMP is read as blocks of some 80 bytes.
MAX_GIF_BLOCKS: Final = 100_000
#: Most chunks of a PNG; libpng writes the pixels in chunks of 8 KB.
MAX_PNG_CHUNKS: Final = 100_000
#: Most colour profiles of a PNG, each of which Pillow inflates to a megabyte. There may be one.
MAX_PNG_PROFILES: Final = 10
#: Most pixels and bytes, together, of a run-length encoded BMP, which Pillow decodes in Python: about a second.
MAX_RLE_BMP: Final = 2**24


def check_file(format_: str, data: bytes, field: str) -> None:
    """Check that reading `data` takes no more of Pillow's Python code than a real file would.

    Args:
        format_: Container format, as its signature tells.
        data: The file.
        field: Name of the raw field, for the message.

    Raises:
        InputError: `undecodable`; the message says what there is too much of.
    """
    check = _CHECKS.get(format_)
    excess = check(data) if check is not None else None
    if excess is not None:
        raise InputError(f"field {field!r}: the {format_} file has {excess}; save the image again", code="undecodable", field=field)


# ---------------------------------------------------------------- JPEG

#: A marker that is neither a stuffed byte nor a restart, which stand inside scans, with the bytes of padding before it.
_MARKER: Final = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)
_EOI, _SOS = 0xD9, 0xDA
#: Markers that Pillow takes to have a body. Where it sees one that has none, it looks for the next one right behind it.
_WITH_BODY: Final = frozenset(code & 0xFF for code, (_, _, handler) in JpegImagePlugin.MARKER.items() if handler is not None)
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE: Final = frozenset({0xC2, 0xC6, 0xCA, 0xCE})


def _jpeg_excess(data: bytes) -> str | None:
    at, segments, exif, junk, components, progressive = 2, 0, 0, 0, 0, False
    while (marker := _MARKER.search(data, at)) is not None:
        end = marker.end()
        junk += end - 2 - at
        segments += 1
        kind = data[end - 1]
        if junk > MAX_JUNK_BYTES or segments > MAX_SEGMENTS or exif > MAX_EXIF_SEGMENTS:
            break
        if kind == _SOS:
            # A scan of all components is the only one that libjpeg reads, unless the frame is progressive.
            return _scans_excess(data) if progressive or data[end + 2 : end + 3] != bytes([components]) else None
        if kind in _FRAMES:
            components, progressive = data[end + 7] if end + 7 < len(data) else 0, progressive or kind in _PROGRESSIVE
        exif += kind == 0xE1 and data.startswith(b"Exif\0\0", end + 2)
        at = _body_end(data, end) if kind in _WITH_BODY else end
    junk += len(data) - at if marker is None else 0
    if junk > MAX_JUNK_BYTES:
        return f"more than {MAX_JUNK_BYTES:,} bytes between its segments"
    if segments > MAX_SEGMENTS:
        return f"more than {MAX_SEGMENTS:,} segments"
    return f"more than {MAX_EXIF_SEGMENTS} EXIF segments" if exif > MAX_EXIF_SEGMENTS else None


def _scans_excess(data: bytes) -> str | None:
    """Count the scans up to the end-of-image marker, and no further than there may be."""
    if data.count(b"\xff\xda") <= MAX_JPEG_SCANS:
        return None  # the usual case: no scan begins without these bytes, though thumbnails and appended files hold them too
    at, scans = 2, 0
    while scans <= MAX_JPEG_SCANS and (marker := _MARKER.search(data, at)) is not None:
        end = marker.end()
        kind = data[end - 1]
        if kind == _EOI:
            break
        scans += kind == _SOS
        at = end if kind in (0x01, 0xD8) else _body_end(data, end)
    return f"more than {MAX_JPEG_SCANS} scans, which no encoder writes" if scans > MAX_JPEG_SCANS else None


def _body_end(data: bytes, at: int) -> int:
    """Return the place after the segment whose length, which counts itself, is written at `at`."""
    return at + max(2, int.from_bytes(data[at : at + 2], "big"))


# ---------------------------------------------------------------- GIF, PNG, BMP

_GIF_BLOCK: Final = re.compile(rb"[!,;]")
_COMMENT = 0xFE
_APPLICATION = 0xFF


def gif_first_frame(data: bytes) -> int | None:
    """Return where the first frame's header begins (its comma), or None when the file ends before one. Finds what Pillow finds.

    Raises:
        ValueError: There is too much before it; the message says of what.
    """
    at = 13 + (3 << ((data[10] & 7) + 1) if len(data) > 10 and data[10] & 128 else 0)
    extensions = blocks = junk = 0
    while (found := _GIF_BLOCK.search(data, at)) is not None and found[0] != b";":
        junk += found.start() - at
        if found[0] == b"," or junk > MAX_JUNK_BYTES:
            break
        at, count = _after_gif_extension(data, found.end())
        extensions, blocks = extensions + 1, blocks + count
        if blocks > MAX_GIF_BLOCKS or extensions > MAX_SEGMENTS:
            raise ValueError(f"more than {MAX_SEGMENTS:,} extensions or {MAX_GIF_BLOCKS:,} blocks of them before its first frame")
    junk += len(data) - at if found is None else 0
    if junk > MAX_JUNK_BYTES:
        raise ValueError(f"more than {MAX_JUNK_BYTES:,} bytes of nothing before its first frame")
    return found.start() if found is not None and found[0] == b"," else None


def _after_gif_extension(data: bytes, at: int) -> tuple[int, int]:
    """Return the place after the extension whose label is at `at`, and how many blocks it has, as far as they are counted.

    An empty block ends it; but where the first is empty, or the second of one that says how often to loop, Pillow reads on to the next.
    """
    label, start, count = data[at : at + 1], at + 1, 0
    at = _after_gif_block(data, start)
    if at == start + 1 and label == bytes([_COMMENT]):
        return at, 1
    if label == bytes([_APPLICATION]) and data.startswith(b"NETSCAPE2.0", start + 1):
        at = _after_gif_block(data, at)
    while at < len(data) and data[at] and count <= MAX_GIF_BLOCKS:
        at = _after_gif_block(data, at)
        count += 1
    return at + 1, count


def _after_gif_block(data: bytes, at: int) -> int:
    return at + 1 + (data[at] if at < len(data) else 0)


def _gif_excess(data: bytes) -> str | None:
    try:
        gif_first_frame(data)
    except ValueError as error:
        return str(error)
    return None


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (type, start, stop) of every complete PNG chunk."""
    at = 8
    while at + 12 <= len(data):
        stop = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if stop > len(data):
            return
        yield data[at + 4 : at + 8], at, stop
        at = stop


def _png_excess(data: bytes) -> str | None:
    if len(data) <= 12 * MAX_PNG_CHUNKS and data.count(b"iCCP") <= MAX_PNG_PROFILES:
        return None  # the usual case
    profiles = 0
    for place, (kind, _, _) in enumerate(png_chunks(data)):
        profiles += kind == b"iCCP"
        if place >= MAX_PNG_CHUNKS:
            return f"more than {MAX_PNG_CHUNKS:,} chunks"
        if profiles > MAX_PNG_PROFILES:
            return f"more than {MAX_PNG_PROFILES} colour profiles"
    return None


def _bmp_excess(data: bytes) -> str | None:
    if len(data) < 54 or data[30:34] not in (b"\1\0\0\0", b"\2\0\0\0") or int.from_bytes(data[14:18], "little") < 40:
        return None
    width, height = (abs(int.from_bytes(data[at : at + 4], "little", signed=True)) for at in (18, 22))
    return f"more than {MAX_RLE_BMP:,} run-length encoded pixels and bytes" if width * height + len(data) > MAX_RLE_BMP else None


_CHECKS: Final[Mapping[str, Callable[[bytes], str | None]]] = {
    "JPEG": _jpeg_excess,
    "GIF": _gif_excess,
    "PNG": _png_excess,
    "BMP": _bmp_excess,
}
