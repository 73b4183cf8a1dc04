"""Files made to keep Pillow's Python code busy are refused before it starts; odd but honest ones are decoded."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from PIL import Image
from pillow_images import encoded, noisy_picture, pillow_images
from samegraph_transforms import filebounds
from samegraph_transforms.decode import decode_image, pillow_decoder
from samegraph_transforms.errors import InputError
from samegraph_transforms.filebounds import gif_first_frame

DECODER = pillow_decoder("decode")
MANY = 200_000


def _jpeg() -> bytes:
    return encoded(noisy_picture(1, 30, 40), "JPEG")


def _segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", 2 + len(body)) + body


def _gif(before_frame: bytes) -> bytes:
    """Return a GIF with `before_frame` between its palette and its first frame."""
    data = _plain_gif()
    at = gif_first_frame(data)
    assert at is not None
    return data[:at] + before_frame + data[at:]


@cache
def _plain_gif() -> bytes:
    return encoded(noisy_picture(1, 30, 40).quantize(16), "GIF")


def _chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(chunks: bytes) -> bytes:
    data = encoded(noisy_picture(1, 30, 40), "PNG")
    return data[:33] + chunks + data[33:]


def _rle_bmp(width: int, height: int, data: bytes) -> bytes:
    palette = b"".join(bytes([i, i, i, 0]) for i in range(256))
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 256, 0)
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + header + palette + data


def _jpeg_with(extra: bytes) -> bytes:
    data = _jpeg()
    return data[:2] + extra + data[2:]


EXIF = _segment(0xE1, b"Exif\0\0" + b"x" * 52)
BUSY: dict[str, tuple[Callable[[], bytes], str]] = {
    "jpeg-zeros": (lambda: _jpeg_with(_segment(0xE0, b"") + b"\0" * MANY), "65,536 bytes between its segments"),
    "jpeg-only-zeros": (lambda: b"\xff\xd8\xff\xe0\0\2" + b"\0" * MANY, "65,536 bytes between its segments"),
    "jpeg-padding": (lambda: _jpeg_with(b"\xff" * MANY), "65,536 bytes between its segments"),
    "jpeg-stuffing": (lambda: _jpeg_with(b"\xff\0" * MANY), "65,536 bytes between its segments"),
    "jpeg-restarts": (lambda: _jpeg_with(b"\xff\xd3" * MANY), "65,536 bytes between its segments"),
    "jpeg-segments": (lambda: _jpeg_with(_segment(0xE5, b"") * 5_000), "4,000 segments"),
    "jpeg-no-length": (lambda: _jpeg_with(_segment(0xFE, b"")[:2] + b"\0\0" + b"\0" * MANY), "65,536 bytes between its segments"),
    "jpeg-behind-a-bodyless-marker": (lambda: _jpeg_with(b"\xff\xf0" + EXIF * 101), "100 EXIF segments"),
    "jpeg-exif": (lambda: _jpeg_with(EXIF * 101), "100 EXIF segments"),
    "gif-zeros": (lambda: _gif(b"\0" * MANY), "65,536 bytes of nothing"),
    "gif-only-zeros": (lambda: _gif(b"")[:13] + b"\0" * MANY, "65,536 bytes of nothing"),
    "gif-extensions": (lambda: _gif(b"!\xfe\1a\0" * 5_000), "4,000 extensions"),
    "gif-comment": (lambda: _gif(b"!\xfe" + b"\1a" * MANY + b"\0"), "100,000 blocks"),
    "gif-application": (lambda: _gif(b"!\xff" + b"\1a" * MANY + b"\0"), "100,000 blocks"),
    "gif-first-block-empty": (lambda: _gif(b"!\xf9\0" + b"\1a" * MANY + b"\0"), "100,000 blocks"),
    "gif-loop-block-empty": (lambda: _gif(b"!\xff\x0bNETSCAPE2.0\0" + b"\1," * MANY + b"\0"), "100,000 blocks"),
    "png-chunks": (lambda: _png(_chunk(b"abCd") * 110_000), "100,000 chunks"),
    "png-profiles": (lambda: _png(_chunk(b"iCCP", b"a\0\0" + zlib.compress(b"x" * 1_000_000)) * 20), "10 colour profiles"),
    "bmp-many-bytes": (lambda: _rle_bmp(100, 100, b"\0\0" * 9_000_000), "16,777,216 run-length"),
    "bmp-many-pixels": (lambda: _rle_bmp(60_000, 1_000, b"\1\5\0\0" * 1_000), "16,777,216 run-length"),
    "bmp-upside-down": (lambda: _rle_bmp(60_000, -1_000, b"\1\5\0\0" * 1_000), "16,777,216 run-length"),
}


@pytest.mark.parametrize("name", BUSY)
def test_file_that_only_keeps_the_parser_busy_is_refused(name: str) -> None:
    """The refusal names the field and what there is too much of."""
    make, says = BUSY[name]
    with pytest.raises(InputError, match=says) as caught:
        decode_image(make(), DECODER, max_pixels=None, field="photo")
    assert (caught.value.code, caught.value.field) == ("undecodable", "photo")
    assert "'photo'" in str(caught.value)


def _xmp_gif() -> bytes:
    """XMP in a GIF is plain text read as blocks, with 257 bytes behind it that lead any reader out of it."""
    trailer = bytes([1, *range(255, -1, -1), 0])
    return _gif(b"!\xff\x0bXMP DataXMP" + b"<x:xmpmeta>" * 20_000 + trailer)


PROFILE = b"".join(_segment(0xE2, b"ICC_PROFILE\0" + bytes([i, 255]) + b"p" * 9) for i in range(255))
HONEST: dict[str, Callable[[], bytes]] = {
    "jpeg-profile-of-255-segments": lambda: _jpeg_with(PROFILE),
    "jpeg-exif-in-pieces": lambda: _jpeg_with(EXIF * 20),
    "jpeg-some-junk": lambda: _jpeg_with(_segment(0xE0, b"") + b"\0" * 9_000 + b"\xff" * 9_000),
    "jpeg-one-large-segment": lambda: _jpeg_with(_segment(0xE5, b"\xff\xd0" * 30_000) * 300),
    "jpeg-progressive": lambda: encoded(noisy_picture(1, 30, 40), "JPEG", progressive=True),
    "gif-loop-and-comment": lambda: _gif(b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0!\xfe\5hello\0!\xf9\4\0\0\0\0\0"),
    "gif-xmp": _xmp_gif,
    "gif-some-junk": lambda: _gif(b"\0" * 9_000),
    "png-small-chunks": lambda: _png(_chunk(b"tEXt", b"a\0b") * 20_000),
    "png-that-names-profiles": lambda: _png(_chunk(b"tEXt", b"a\0" + b"iCCP" * 20)),
    "png-animated-by-50,000-headers": lambda: _png(_chunk(b"acTL", b"\0" * 8) * 50_000),
    "bmp-run-length": lambda: _rle_bmp(40, 30, (b"\x28\x07\0\0" * 30) + b"\0\1"),
}


@pytest.mark.parametrize("name", HONEST)
def test_odd_but_honest_file_is_decoded_as_pillow_decodes_it(name: str) -> None:
    """Bounds are far above what encoders and cameras write."""
    data = HONEST[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's of an invalid animation, which ours must not give
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    got = decode_image(data, DECODER, max_pixels=None, field="photo")
    np.testing.assert_array_equal(np.broadcast_to(got[:, :, :3], expected.shape), expected)


def test_none_of_pillows_own_test_images_is_refused() -> None:
    """Its corpus holds every odd file somebody ever reported."""
    refusals = []
    for name, data in pillow_images().items():
        try:
            decode_image(data, DECODER, max_pixels=None, field=name)
        except InputError as refusal:
            refusals.append(str(refusal))
    assert [text for text in refusals if "save the image again" in text] == []


def test_first_frame_is_where_pillow_finds_it() -> None:
    """On 3,000 GIFs with random extensions and junk before the frame, damaged ones included, both see the same frame or none."""
    rng = np.random.default_rng(3)
    found = 0
    for _ in range(3_000):
        length = int(rng.integers(0, 60))
        before = bytes(rng.choice(np.frombuffer(b"!,;\0\0\1\2\4\xf9\xfe\xff\x01N", np.uint8), length))
        if rng.random() < 0.3:
            before += b"!\xff\x0bNETSCAPE2.0" + bytes(rng.integers(0, 4, 5, dtype=np.uint8))
        data = _gif(before)
        try:
            with Image.open(io.BytesIO(data)) as image:
                place: int | None = image.tile[0].offset
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            continue
        except (OSError, IndexError, struct.error):
            place = None
        at = gif_first_frame(data)
        if place is not None and at is not None:
            palette = 3 << ((data[at + 9] & 7) + 1) if data[at + 9] & 128 else 0
            assert at + 11 + palette == place
            found += 1
        else:
            assert place is None
    assert found > 500


def test_scans_are_counted_only_where_there_can_be_several() -> None:
    """A frame whose first scan has all components has no second one that a decoder would read, whatever its data look like."""
    baseline = _jpeg()
    start = baseline.index(b"\xff\xda")
    assert filebounds._jpeg_excess(baseline + b"\xff\xda\0\2" * 1_000) is None
    one_component = baseline[: start + 4] + b"\1" + baseline[start + 5 :]
    assert "scans" in str(filebounds._jpeg_excess(one_component[:-2] + b"\xff\xda\0\2" * 1_000 + b"\xff\xd9"))
