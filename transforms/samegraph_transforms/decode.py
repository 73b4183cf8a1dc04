"""Decode images on the host: what an `ai.onnx::ImageDecoder` node stands for.

ONNX Runtime has no kernel for ImageDecoder, and the standard does not say what a palette or a CMYK file becomes. So the
manifest's `Decoder` declares it: which container formats are accepted, and for every pixel mode of the library the mode it
is handed over in. Whatever is not listed is refused. With the default table, decode followed by `ToRGB` gives what
`PIL.Image.open(file).convert("RGB")` gives, bit for bit.

Format plug-ins are called directly instead of through `Image.open`, because `Image.open` warns about large images (a warning
filter is process-wide, so it cannot be silenced from one thread) and tries formats one after another. Sizes are read from
the header and checked before a pixel is decoded or a canvas allocated, and files that only keep Pillow's parser busy are refused
before it starts (filebounds.py). No global state of Pillow is changed.
"""

from __future__ import annotations

import io
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Final, Literal

import numpy as np
import PIL
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

from .errors import AuthoringError, EnvironmentUnfit, InputError
from .filebounds import check_file, gif_first_frame, png_chunks
from .manifest import Decoder

#: Formats accepted unless an author says otherwise.
DEFAULT_FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

#: Pixel mode → mode handed over, such that decode + ToRGB equals `convert("RGB")`. Grey and alpha stay as they are (the
#: graph drops alpha, visibly); the other modes have no array form of their own and are converted by Pillow. Not listed, so
#: refused: F (the conversion of NaN is undefined), LAB (depends on a colour engine), La, RGBa and HSV (no file gives them).
DEFAULT_MODES: Final[Mapping[str, str]] = {
    "1": "L",
    "L": "L",
    "LA": "LA",
    "P": "RGB",
    "PA": "RGB",
    "RGB": "RGB",
    "RGBX": "RGB",
    "RGBA": "RGBA",
    "CMYK": "RGB",
    "YCbCr": "RGB",
    "I": "RGB",
    "I;16": "RGB",
    "I;16B": "RGB",
    "I;16L": "RGB",
}

#: Modes with an array form [H, W, C] of uint8.
HANDOVER_MODES: Final = ("L", "LA", "RGB", "RGBA")

#: Above this many pixels Pillow itself refuses to open a file (twice the number it warns at), so training never saw one.
PILLOW_MAX_PIXELS: Final = 2 * 89_478_485

ExifOrientation = Literal["ignore", "apply"]


class _Jpeg(JpegImagePlugin.JpegImageFile):
    """The JPEG reader without its look at EXIF for a print resolution, which warns when the EXIF block is damaged.

    Used instead of the plug-in's factory too: that one opens multi-picture files as such, whose first picture is the same.
    """

    def _read_dpi_from_exif(self) -> None:
        return


_PLUGINS: Final[dict[str, type[ImageFile.ImageFile]]] = {
    "JPEG": _Jpeg,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}

#: Formats that can be accepted.
FORMATS: Final = tuple(_PLUGINS)

#: First bytes of files people send, for the message that names what arrived; the first six are also how a format is chosen.
_SIGNATURES: Final[tuple[tuple[str, re.Pattern[bytes]], ...]] = (
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("WEBP", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("BMP", re.compile(rb"BM")),
    ("TIFF", re.compile(rb"II\*\x00|MM\x00\*|II\+\x00|MM\x00\+")),
    ("JPEG 2000", re.compile(rb"\xff\x4f\xff\x51|\x00\x00\x00\x0cjP  ")),
    ("AVIF", re.compile(rb"....ftypavi[fs]", re.DOTALL)),
    ("HEIC", re.compile(rb"....ftyp(hei|hev|mif1|msf1)", re.DOTALL)),
    ("MP4 video", re.compile(rb"....ftyp", re.DOTALL)),
    ("PPM", re.compile(rb"P[1-7]\s")),
    ("QOI", re.compile(rb"qoif")),
    ("ICO", re.compile(rb"\x00\x00\x01\x00")),
    ("PSD", re.compile(rb"8BPS")),
    ("PDF", re.compile(rb"%PDF")),
    ("SVG", re.compile(rb"\s*(<\?xml[^>]*>\s*)?<svg", re.IGNORECASE)),
    ("HTML or XML", re.compile(rb"\s*<")),
    ("zip archive", re.compile(rb"PK\x03\x04")),
    ("gzip data", re.compile(rb"\x1f\x8b")),
    ("base64 text", re.compile(rb"/9j/|iVBORw0KGgo|R0lGOD|UklGR|data:image/")),
)

#: What a plug-in raises for "this is not a file of my format", as in PIL.Image.open.
_NOT_THIS_FORMAT = (SyntaxError, IndexError, TypeError, struct.error)

#: Only TIFF headers and odd EXIF blocks can still warn; catch_warnings changes process-wide state, so one thread at a time may do it.
_QUIET_LOCK = threading.Lock()


def pillow_decoder(
    node: str,
    *,
    formats: Sequence[str] = DEFAULT_FORMATS,
    modes: Mapping[str, str] = DEFAULT_MODES,
    exif_orientation: ExifOrientation = "ignore",
) -> Decoder:
    """Describe the installed Pillow as the decoder behind the ImageDecoder node called `node`.

    Args:
        node: Name of the node in preprocess.item.onnx.
        formats: Container formats accepted, some of `FORMATS`.
        modes: Pixel mode → mode handed over, one of `HANDOVER_MODES`; modes left out are refused.
        exif_orientation: Whether the EXIF orientation tag turns the image, as `PIL.ImageOps.exif_transpose` does.

    Raises:
        AuthoringError: A format or a hand-over mode is not supported.
    """
    decoder = Decoder(
        node=node,
        library_version=PIL.__version__,
        codecs=codec_versions(),
        formats=list(formats),
        modes=dict(modes),
        exif_orientation=exif_orientation,
    )
    try:
        check_decoder(decoder)
    except EnvironmentUnfit as error:
        raise AuthoringError(str(error)) from error
    return decoder


def codec_versions() -> dict[str, str]:
    """Return the versions of the codec libraries inside the installed Pillow: libjpeg_turbo (or jpeg), zlib, webp, libtiff."""
    known = [name for name in _CODECS if name not in _FEATURES or name in features.features]
    found = {name: features.version_feature(name) if name in _FEATURES else features.version(name) for name in known}
    if found["libjpeg_turbo"] is None:
        found["jpeg"] = features.version_codec("jpg")
    return {name: version for name, version in found.items() if version}


_CODECS: Final = ("libjpeg_turbo", "zlib", "zlib_ng", "webp", "libtiff")
_FEATURES: Final = ("libjpeg_turbo", "zlib_ng")  # Pillow keeps these in another table; the second one came with 11.1


def check_decoder(decoder: Decoder) -> None:
    """Check that this environment can do what `decoder` declares; call once when a package is loaded.

    Raises:
        EnvironmentUnfit: A format or mode is not supported here, or Pillow was told to accept truncated files.
    """
    for name in decoder.formats:
        if name not in _PLUGINS:
            raise EnvironmentUnfit(f"decoder of node {decoder.node!r}: format {name!r} is not supported; use some of {', '.join(FORMATS)}")
    for mode, handover in decoder.modes.items():
        if handover not in HANDOVER_MODES:
            raise EnvironmentUnfit(
                f"decoder of node {decoder.node!r}: mode {mode!r} cannot be handed over as {handover!r}; "
                f"use one of {', '.join(HANDOVER_MODES)}"
            )
    if "WEBP" in decoder.formats and not features.check("webp"):
        raise EnvironmentUnfit("the installed Pillow was built without WebP; install a Pillow wheel, or author the package without WEBP")
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise EnvironmentUnfit("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set in this process, so truncated images would pass; leave it False")


def decode_image(data: bytes, decoder: Decoder, *, max_pixels: int | None, field: str) -> np.ndarray:
    """Decode one image to the array its pixel mode is declared to give.

    Args:
        data: The encoded file.
        decoder: Formats, modes and EXIF rule; see `pillow_decoder`.
        max_pixels: Largest width × height, checked from the header before anything is decoded; None for `PILLOW_MAX_PIXELS`.
        field: Name of the raw field, for error messages.

    Returns:
        uint8 [H, W, C], C = 1 (L), 2 (LA), 3 (RGB) or 4 (RGBA); read-only, since it is the decoder's own buffer.

    Raises:
        InputError: `unsupported_format` (container or pixel mode), `too_many_pixels`, `truncated` or `undecodable`.
    """
    return to_array(open_image(data, decoder, max_pixels=max_pixels, field=field))


def open_image(data: bytes, decoder: Decoder, *, max_pixels: int | None, field: str) -> Image.Image:
    """Do what `decode_image` does, but return the Pillow image (mode L, LA, RGB or RGBA), so that host kernels can go on with it."""
    data = bytes(data)
    limit = PILLOW_MAX_PIXELS if max_pixels is None else max_pixels
    format_ = _choose_format(data, decoder, field)
    check_file(format_, data, field)
    _check_pixels(_early_size(format_, data), limit, field)
    with _quiet() if format_ == "TIFF" else nullcontext():
        image: Image.Image = _read_header(data, format_, field)
        _check_pixels(image.size, limit, field)
        _check_mode(image.mode, format_, decoder, field)
        try:
            image.load()
            if decoder.exif_orientation == "apply":
                image = _upright(image)
        except MemoryError:
            raise
        except Exception as error:
            raise _broken(error, format_, data, field) from error
        return convert_mode(image, decoder, field)


def convert_mode(image: Image.Image, decoder: Decoder, field: str) -> Image.Image:
    """Turn a loaded image into the mode that `decoder` declares for its pixel mode.

    Raises:
        InputError: `unsupported_format`, the mode is not listed.
    """
    _check_mode(image.mode, image.format or "this file", decoder, field)
    handover = decoder.modes[image.mode]
    if image.mode == handover:
        return image
    if "transparency" in image.info and handover not in ("LA", "RGBA"):
        # A transparent colour has no say in these conversions, but Pillow warns about some of them.
        image = image.copy()
        del image.info["transparency"]
    return image.convert(handover)


def to_array(image: Image.Image) -> np.ndarray:
    """Return a loaded L, LA, RGB or RGBA image as uint8 [H, W, C], read-only."""
    array = np.asarray(image)
    return array[:, :, np.newaxis] if array.ndim == 2 else array


def upright(image: Image.Image) -> Image.Image:
    """Turn `image` as its EXIF orientation says, with the result of `PIL.ImageOps.exif_transpose`."""
    image.load()
    return _upright(image)


def open_header(data: bytes) -> ImageFile.ImageFile | None:
    """Return a file as its format's plug-in reads the header, no pixel decoded; None when it is of none of `FORMATS`, or damaged.

    For files that `open_image` has accepted: sizes are not checked again.
    """
    format_ = next((name for name, signature in _SIGNATURES if signature.match(data)), None)
    if format_ not in _PLUGINS:
        return None
    try:
        with _quiet() if format_ == "TIFF" else nullcontext():
            return _read_header(data, format_, "image")
    except InputError:
        return None


def exif_orientation(image: Image.Image) -> int | None:
    """Return the orientation tag of the EXIF block as it stands there, or None when there is none."""
    return _exif_orientation(_exif_block(image))


def _choose_format(data: bytes, decoder: Decoder, field: str) -> str:
    """Return the accepted format whose signature `data` starts with."""
    arrived = next((name for name, signature in _SIGNATURES if signature.match(data)), None)
    if arrived in decoder.formats:
        assert arrived is not None
        return arrived
    accepted = f"this model accepts {', '.join(decoder.formats)}"
    if arrived is None:
        what = "is empty" if not data else f"is not an image (it starts with the bytes {data[:8].hex(' ')})"
        raise InputError(f"field {field!r} {what}; {accepted}", code="undecodable", field=field)
    if arrived == "base64 text":
        raise InputError(
            f"field {field!r} is base64 text, not the image itself; decode it before sending; {accepted}", code="undecodable", field=field
        )
    raise InputError(f"field {field!r} holds {_article(arrived)} {arrived}; {accepted}", code="unsupported_format", field=field)


def _article(word: str) -> str:
    return "an" if word[0] in "AHI" and word != "HEIC" else "a"


def _read_header(data: bytes, format_: str, field: str) -> ImageFile.ImageFile:
    """Let the format's plug-in parse the header."""
    try:
        return _PLUGINS[format_](io.BytesIO(_without_bad_animation(data) if format_ == "PNG" else data), "")
    except Image.DecompressionBombError as error:
        raise InputError(f"field {field!r} has too many pixels: {error}", code="too_many_pixels", field=field) from error
    except MemoryError:
        raise
    except Exception as error:
        raise _broken(error, format_, data, field) from error


def _check_pixels(size: tuple[int, int] | None, max_pixels: int, field: str) -> None:
    if size is None or size[0] * size[1] <= max_pixels:
        return
    width, height = size
    raise InputError(
        f"field {field!r} is {width:,} × {height:,} = {width * height:,} pixels; the limit is {max_pixels:,}. Send a smaller image",
        code="too_many_pixels",
        field=field,
    )


def _check_mode(mode: str, format_: str, decoder: Decoder, field: str) -> None:
    if mode not in decoder.modes:
        raise InputError(
            f"field {field!r}: {_article(format_)} {format_} with pixel mode {mode!r} is not accepted by this model; accepted modes are "
            f"{', '.join(decoder.modes)}. Convert it to RGB before sending",
            code="unsupported_format",
            field=field,
        )


def _broken(error: Exception, format_: str, data: bytes, field: str) -> InputError:
    """Say whether the file ends early or is damaged."""
    if _ends_early(format_, data) or _says_truncated(error):
        return InputError(
            f"field {field!r}: the {format_} file is cut off after {len(data):,} bytes; send all of it", code="truncated", field=field
        )
    reason = str(error).strip() or type(error).__name__
    return InputError(
        f"field {field!r}: the {format_} file is damaged and cannot be decoded ({reason[:200]})", code="undecodable", field=field
    )


def _says_truncated(error: Exception) -> bool:
    return (
        isinstance(error, EOFError | struct.error)
        or re.search(r"truncat|unexpected end|not enough|short read", str(error), re.IGNORECASE) is not None
    )


def _ends_early(format_: str, data: bytes) -> bool:
    """Whether the container says that it goes on after the last byte. Asked only once decoding has failed."""
    if format_ == "WEBP":
        return len(data) < 12 or len(data) < 8 + int.from_bytes(data[4:8], "little")
    if format_ == "BMP":
        return len(data) < 26 or len(data) < int.from_bytes(data[2:6], "little")
    if format_ == "PNG":
        return not any(kind == b"IEND" for kind, _, _ in png_chunks(data))
    if format_ == "JPEG":
        return b"\xff\xd9" not in data[-1024:]
    if format_ == "GIF":
        return b"\x3b" not in data[-16:]
    return False


def _early_size(format_: str, data: bytes) -> tuple[int, int] | None:
    """Read width and height for the plug-ins that allocate or warn while they read the header; None when it cannot be told."""
    if format_ == "WEBP":
        return _webp_size(data)
    if format_ == "GIF":
        return _gif_size(data)
    return None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Read the canvas size of a WebP file; its plug-in allocates the canvas before anyone can ask for the size."""
    kind = data[12:16]
    if kind == b"VP8 " and len(data) >= 30 and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
    if kind == b"VP8X" and len(data) >= 30:
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    return None


def _gif_size(data: bytes) -> tuple[int, int] | None:
    """Read the size of a GIF's first picture: the screen, or more when the first frame sticks out (Pillow then enlarges it)."""
    if len(data) < 13:
        return None
    width, height = struct.unpack_from("<HH", data, 6)
    at = gif_first_frame(data)
    if at is None or at + 9 > len(data):
        return width, height
    left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, at + 1)
    return max(width, left + frame_width), max(height, top + frame_height)


def _without_bad_animation(data: bytes) -> bytes:
    """Drop the animation header of a PNG when it is invalid: Pillow then shows the still picture too, but warns.

    Raises:
        SyntaxError: It is too short or its checksum is wrong, which Pillow refuses.
    """
    if b"acTL" not in data:
        return data
    headers = []
    begun = False
    for kind, start, stop in png_chunks(data):
        begun |= kind == b"IDAT"  # from here on Pillow checks no chunk
        if kind == b"acTL":
            is_broken = zlib.crc32(data[start + 4 : stop - 4]) != int.from_bytes(data[stop - 4 : stop], "big")
            if stop - start < 20 or (is_broken and not begun):
                raise SyntaxError("its animation header is broken")
            headers.append((start, stop))
    counts = [int.from_bytes(data[start + 8 : start + 12], "big") for start, _ in headers]
    if len(headers) == 1 and 0 < counts[0] <= 0x80000000:
        return data
    kept = zip([0, *(stop for _, stop in headers)], [*(start for start, _ in headers), len(data)], strict=True)
    return b"".join(data[start:stop] for start, stop in kept)


_TRANSPOSES: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image) -> Image.Image:
    method = _TRANSPOSES.get(_orientation(image))
    return image if method is None else image.transpose(method)


def _orientation(image: Image.Image) -> int:
    """Find the orientation where Pillow looks for it: the EXIF block, or else XMP. 1 when there is none.

    Raises:
        ValueError: Pillow cannot read the EXIF block.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return 1  # Pillow turns TIFF files itself while it loads them
    block = _exif_block(image)
    if block and not _is_ordinary(block):
        return _pillows_orientation(image)
    found = _exif_orientation(block)
    return found if found is not None else _xmp_orientation(image)


def _pillows_orientation(image: Image.Image) -> int:
    """Let Pillow read a block that is damaged or odd. It warns about many of them, so one thread at a time may."""
    with _quiet():
        try:
            if isinstance(image, _Jpeg):
                # What a look for a resolution finds damaged, Pillow takes for an empty block from then on.
                JpegImagePlugin.JpegImageFile._read_dpi_from_exif(image)
            found: int = image.getexif().get(0x0112, 1)
        except MemoryError:
            raise
        except Exception as error:
            raise ValueError(f"how to turn it cannot be told from its EXIF block: {error}") from error
    return found


def _exif_block(image: Image.Image) -> bytes:
    block = image.info.get("exif")
    if block is None and "Raw profile type exif" in image.info:
        block = bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
    return re.sub(b"^(Exif\x00\x00){1,2}", b"", block or b"")


#: Bytes of a value by its type, in a directory of TIFF or EXIF.
_TYPE_BYTES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}


def _is_ordinary(block: bytes) -> bool:
    """Whether the first directory of a TIFF structure is whole, lies with all of its values in `block`, and has at most one orientation.

    Only then is there one way to read it; versions of Pillow differ about others.
    """
    order: Literal["little", "big"] = "little" if block[:2] == b"II" else "big"
    if block[:4] not in (b"II*\x00", b"MM\x00*") or len(block) < 8:
        return False
    at = int.from_bytes(block[4:8], order)
    stop = at + 2 + 12 * int.from_bytes(block[at : at + 2], order)
    if at + 2 > len(block) or stop > len(block):
        return False
    seen, total = 0, 0
    for start in range(at + 2, stop, 12):
        entry = block[start : start + 12]
        kind, count = int.from_bytes(entry[2:4], order), int.from_bytes(entry[4:8], order)
        size = count * _TYPE_BYTES.get(kind, len(block) + 1)
        total += size if size > 4 else 0
        if count == 0 or total > len(block) or (size > 4 and int.from_bytes(entry[8:12], order) + size > len(block)):
            return False
        if int.from_bytes(entry[:2], order) == 0x0112:
            seen += 1
            if seen > 1 or _integer_entry(entry, order) is None:
                return False
    return True


def _exif_orientation(block: bytes) -> int | None:
    """Return tag 0x0112 of the first directory of a TIFF structure, or None."""
    order: Literal["little", "big"] = "little" if block[:2] == b"II" else "big"
    if block[:4] not in (b"II*\x00", b"MM\x00*"):
        return None
    at = int.from_bytes(block[4:8], order)
    entries = int.from_bytes(block[at : at + 2], order)
    for start in range(at + 2, min(at + 2 + 12 * entries, len(block) - 11), 12):
        if int.from_bytes(block[start : start + 2], order) == 0x0112:
            return _integer_entry(block[start : start + 12], order)
    return None


def _integer_entry(entry: bytes, order: Literal["little", "big"]) -> int | None:
    """Return the value of a directory entry that holds one integer: type 3 (16 bits) or 4 (32 bits)."""
    kind, count = int.from_bytes(entry[2:4], order), int.from_bytes(entry[4:8], order)
    if count != 1 or kind not in (3, 4):
        return None
    return int.from_bytes(entry[8 : 10 if kind == 3 else 12], order)


def _xmp_orientation(image: Image.Image) -> int:
    xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or b""
    text = xmp if isinstance(xmp, bytes) else str(xmp).encode("utf-8", "replace")
    found = re.search(rb'tiff:Orientation(="|>)([0-9])', text)
    return int(found[2]) if found else 1


@contextmanager
def _quiet() -> Iterator[None]:
    """Swallow warnings. Process-wide while it lasts, hence the lock, and hence only for TIFF, which authors must ask for, and odd EXIF."""
    with _QUIET_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
