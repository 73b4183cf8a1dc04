"""Decoding on the host: the same pixels as Pillow, or a refusal that says what is wrong."""

from __future__ import annotations

import io
import itertools
import re
import struct
import threading
import warnings
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps, features
from pillow_images import encoded, noisy_picture, pillow_images
from samegraph_transforms.decode import DEFAULT_FORMATS, DEFAULT_MODES, FORMATS, check_decoder, decode_image, pillow_decoder
from samegraph_transforms.errors import AuthoringError, EnvironmentUnfit, InputError
from samegraph_transforms.kernels import Pixels, to_rgb
from samegraph_transforms.manifest import Decoder

PLAIN = pillow_decoder("decode", formats=FORMATS)
UPRIGHT = pillow_decoder("decode", formats=FORMATS, exif_orientation="apply")
LIMIT = 20_000_000


def _ours(data: bytes, decoder: Decoder = PLAIN, max_pixels: int | None = LIMIT) -> np.ndarray:
    """Decode and convert with our code."""
    return to_rgb(Pixels(array=decode_image(data, decoder, max_pixels=max_pixels, field="photo"))).array()


def _refusal(data: bytes, decoder: Decoder = PLAIN, max_pixels: int | None = LIMIT) -> InputError:
    """Decode what must be refused and return the error."""
    with pytest.raises(InputError) as caught:
        decode_image(data, decoder, max_pixels=max_pixels, field="photo")
    assert caught.value.field == "photo"
    assert "'photo'" in str(caught.value)
    return caught.value


def _pillow(data: bytes, *, upright: bool = False) -> np.ndarray | None:
    """Decode and convert as training code does with Pillow; None when Pillow refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            return np.asarray((ImageOps.exif_transpose(image) if upright else image).convert("RGB"))
        except Exception:  # noqa: BLE001 - Pillow refuses in many ways
            return None


@pytest.mark.parametrize("decoder", [PLAIN, UPRIGHT], ids=["exif_ignored", "exif_applied"])
def test_every_pillow_test_image_decodes_as_pillow_does_or_is_refused(decoder: Decoder) -> None:
    """Accepted files equal `convert("RGB")` bit for bit, just what Pillow cannot read is called broken, and nothing ever warns."""
    verdicts: Counter[str] = Counter()
    called_broken: dict[str, bytes] = {}
    for name, data in pillow_images().items():
        try:
            got = _ours(data, decoder)
        except InputError as error:
            verdicts[error.code] += 1
            if error.code in ("undecodable", "truncated"):
                called_broken[name] = data
            continue
        expected = _pillow(data, upright=decoder is UPRIGHT)
        assert expected is not None, f"{name} is accepted, and Pillow refuses it"
        np.testing.assert_array_equal(got, expected, err_msg=name)
        verdicts["equal"] += 1
    assert [name for name, data in called_broken.items() if _pillow(data, upright=decoder is UPRIGHT) is not None] == []
    assert verdicts["equal"] >= 600
    assert verdicts["truncated"] >= 5
    assert verdicts["unsupported_format"] >= 20


def test_no_accepted_mode_is_left_untested() -> None:
    """The images of Pillow and those written here cover the modes that files can have."""
    seen: set[str] = set()
    for data in [*pillow_images().values(), *_written_modes().values()]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                decode_image(data, PLAIN, max_pixels=LIMIT, field="photo")
                seen.add(Image.open(io.BytesIO(data), formats=FORMATS).mode)
            except InputError:
                continue
    # No file of these formats opens as one of the missing two; their conversion is tested on images below.
    assert set(DEFAULT_MODES) - seen == {"RGBX", "I;16L"}


def _written_modes() -> dict[str, bytes]:
    """Write one picture in every mode and format Pillow can write and we accept."""
    rgb = noisy_picture(3, 37, 53)
    grey = rgb.convert("L")
    rgba = rgb.copy()
    rgba.putalpha(grey)
    palette = rgb.quantize(17)
    wide = Image.fromarray(np.arange(37 * 53, dtype=np.uint16).reshape(37, 53) * np.uint16(33))
    return {
        "1.png": encoded(grey.convert("1"), "PNG"),
        "L.jpg": encoded(grey, "JPEG"),
        "LA.png": encoded(rgba.convert("LA"), "PNG"),
        "P.gif": encoded(palette, "GIF"),
        "P.png": encoded(palette, "PNG"),
        "P-transparent-index.gif": encoded(palette, "GIF", transparency=3),
        "P-transparent-index.png": encoded(palette, "PNG", transparency=3),
        "P-transparent-bytes.png": encoded(palette, "PNG", transparency=bytes(range(0, 170, 10))),
        "RGB-transparent.png": encoded(rgb, "PNG", transparency=(1, 2, 3)),
        "L-transparent.png": encoded(grey, "PNG", transparency=7),
        "RGB.bmp": encoded(rgb, "BMP"),
        "RGB.webp": encoded(rgb, "WEBP"),
        "RGBA.png": encoded(rgba, "PNG"),
        "RGBA.webp": encoded(rgba, "WEBP", lossless=True),
        "CMYK.jpg": encoded(rgb.convert("CMYK"), "JPEG"),
        "I16.png": encoded(wide, "PNG"),
        "I16.tif": encoded(wide, "TIFF"),
        "I.tif": encoded(wide.convert("I"), "TIFF"),
        "CMYK.tif": encoded(rgb.convert("CMYK"), "TIFF"),
        "YCbCr.tif": encoded(rgb.convert("YCbCr"), "TIFF"),
        "progressive.jpg": encoded(rgb, "JPEG", progressive=True, quality=60),
        "444.jpg": encoded(rgb, "JPEG", subsampling=0),
        "animated.gif": encoded(palette, "GIF", save_all=True, append_images=[palette.rotate(90, expand=False)]),
        "animated.webp": encoded(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(180)], duration=40),
        "animated.png": encoded(rgb, "PNG", save_all=True, append_images=[rgb.rotate(180)]),
    }


@pytest.mark.parametrize("name", list(_written_modes()))
def test_written_picture_decodes_as_pillow_does(name: str) -> None:
    """Modes, transparency, codecs and the first frame of animations give what `convert("RGB")` gives."""
    data = _written_modes()[name]
    np.testing.assert_array_equal(_ours(data), _pillow(data))


@pytest.mark.parametrize("mode", list(DEFAULT_MODES))
def test_accepted_mode_converts_as_pillow_does(mode: str) -> None:
    """For every listed mode, hand-over and ToRGB together are `convert("RGB")`, on any pixel value."""
    from samegraph_transforms.decode import convert_mode

    raw = np.random.default_rng(1).integers(0, 256, (16, 24, 4), dtype=np.uint8)
    image = Image.new(mode, (24, 16))
    if mode in ("P", "PA"):
        image.putpalette(list(range(255, -1, -1)) * 3, "RGB")
    image.frombytes(raw.tobytes()[: len(image.tobytes())])
    got = to_rgb(Pixels(image=convert_mode(image, PLAIN, "photo"))).array()
    np.testing.assert_array_equal(got, np.asarray(image.convert("RGB")))


def test_array_comes_in_the_mode_the_table_says() -> None:
    """Grey and alpha survive decoding, so that the graph decides what becomes of them."""
    files = _written_modes()
    shapes = {
        name: decode_image(files[name], PLAIN, max_pixels=None, field="photo").shape for name in ("L.jpg", "LA.png", "P.png", "RGBA.png")
    }
    assert shapes == {"L.jpg": (37, 53, 1), "LA.png": (37, 53, 2), "P.png": (37, 53, 3), "RGBA.png": (37, 53, 4)}


def test_array_is_the_decoders_own_buffer() -> None:
    """The array is a view of one buffer, uint8, contiguous and read-only."""
    array = decode_image(_written_modes()["L.jpg"], PLAIN, max_pixels=None, field="photo")
    assert array.dtype == np.uint8
    assert (array.flags.c_contiguous, array.flags.writeable, array.base is not None) == (True, False, True)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied_only_on_request(format_: str, orientation: int) -> None:
    """All eight orientations, in each container that carries EXIF."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noisy_picture(5, 24, 40), format_, exif=exif)
    np.testing.assert_array_equal(_ours(data, UPRIGHT), _pillow(data, upright=True))
    np.testing.assert_array_equal(_ours(data, PLAIN), _pillow(data))
    assert _ours(data, PLAIN).shape[:2] == (24, 40)
    assert _ours(data, UPRIGHT).shape[:2] == ((40, 24) if orientation >= 5 else (24, 40))


def _with_exif(block: bytes, **options: object) -> bytes:
    """Put an EXIF block, as it is, into a small JPEG."""
    data = encoded(noisy_picture(5, 6, 10), "JPEG", **options)
    segment = b"Exif\x00\x00" + block
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]


def _directory(*entries: tuple[int, int, int, bytes], head: bytes = b"II*\x00\x08\x00\x00\x00", count: int | None = None) -> bytes:
    """Write an EXIF block, little-endian: entries of tag, type, count and four bytes."""
    packed = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return head + struct.pack("<H", len(entries) if count is None else count) + packed + b"\x00\x00\x00\x00"


def _odd_exif_blocks() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "a maker with a long name"
    whole = exif.tobytes().removeprefix(b"Exif\x00\x00")
    turned = (0x0112, 3, 1, b"\x06\x00\x00\x00")
    odd = {f"cut at {cut}": whole[:cut] for cut in range(0, len(whole), 3)}
    odd |= {f"type {kind}": _directory((0x0112, kind, 1, b"\x06\x00\x00\x00")) for kind in range(17)}
    odd |= {f"count {count}": _directory((0x0112, 3, count, b"\x06\x00\x03\x00")) for count in (0, 2, 3, 1 << 31)}
    heads = (b"II\x00*", b"II+\x00", b"MM*\x00", b"MM\x00+", b"not ", b"II*\x01", b"\x00\x00\x00\x00")
    odd |= {f"head {head!r}": _directory(turned, head=head + b"\x08\x00\x00\x00") for head in heads}
    odd |= {
        "twice": _directory(turned, (0x0112, 3, 1, b"\x03\x00\x00\x00")),
        "the first of two has no type": _directory((0x0112, 99, 1, b"\x06\x00\x00\x00"), (0x0112, 3, 1, b"\x03\x00\x00\x00")),
        "behind a value that is not there": _directory((0x010F, 2, 40, b"\xf0\x00\x00\x00"), turned),
        "behind a value larger than the block": _directory((0x010F, 2, 1 << 24, b"\x08\x00\x00\x00"), turned),
        "behind a type that is not one": _directory((0x010F, 99, 1, b"abcd"), turned),
        "more entries than there are": _directory(turned, count=3),
        "directory outside": _directory(turned, head=b"II*\x00\xff\xff\x00\x00"),
        "a float": _directory((0x0112, 11, 1, struct.pack("<f", 6.0))),
        "9": _directory((0x0112, 3, 1, b"\x09\x00\x00\x00")),
    }
    generator = np.random.default_rng(8)
    for place in range(60):
        damaged = bytearray(whole)
        for _ in range(generator.integers(1, 4)):
            damaged[generator.integers(0, len(whole))] = generator.integers(0, 256)
        odd[f"damaged {place}"] = bytes(damaged)
    return odd


def test_an_odd_exif_block_turns_the_image_as_pillow_does_or_is_refused() -> None:
    """Cut, damaged or unusual blocks are read as Pillow reads them, without a warning; what it cannot read is refused, with the reason."""
    verdicts: Counter[str] = Counter()
    # Where a file states no resolution, Pillow has looked into the block before it turns the image, and takes it for empty if it failed.
    for (name, block), options in itertools.product(_odd_exif_blocks().items(), ({}, {"dpi": (72, 72)})):
        data = _with_exif(block, **options)
        expected = _pillow(data, upright=True)
        if expected is None:
            assert "EXIF" in str(_refusal(data, UPRIGHT)), name
            verdicts["refused"] += 1
        else:
            np.testing.assert_array_equal(_ours(data, UPRIGHT), expected, err_msg=name)
            verdicts["upright" if expected.shape[:2] == (10, 6) else "as it was"] += 1
        np.testing.assert_array_equal(_ours(data, PLAIN), _pillow(data), err_msg=name)
    assert all(verdicts[kind] >= 5 for kind in ("refused", "upright", "as it was")), verdicts


@pytest.mark.parametrize(
    ("broken", "accepted"),
    [("checksum of the first", False), ("checksum of the second", False), ("length", False), ("number of frames", True), ("second", True)],
    ids=str,
)
def test_a_broken_animation_header_is_what_it_is_to_pillow(broken: str, accepted: bool) -> None:
    """A PNG whose animation header makes no sense shows its still picture; one whose header is damaged is refused."""
    data = encoded(noisy_picture(3, 6, 10), "PNG")

    def header(frames: int, body: bytes = b"\x00\x00\x00\x00") -> bytes:
        chunk = b"acTL" + struct.pack(">I", frames) + body
        return struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))

    good = header(1)
    wrong = good[:-1] + bytes([good[-1] ^ 1])
    headers = {
        "checksum of the first": wrong + good,
        "checksum of the second": good + wrong,
        "length": header(1, b""),
        "number of frames": header(0),
        "second": good + good,
    }[broken]
    data = data[:33] + headers + data[33:]
    expected = _pillow(data)
    assert (expected is not None) == accepted
    if expected is None:
        assert _refusal(data).code == "undecodable"
    else:
        np.testing.assert_array_equal(_ours(data), expected)


@pytest.mark.parametrize("format_", DEFAULT_FORMATS)
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_file_that_ends_early_is_called_truncated(format_: str, kept: float) -> None:
    """A cut file of any format is refused as cut off, with the number of bytes that came."""
    data = encoded(noisy_picture(7, 90, 120), format_)
    cut = data[: int(len(data) * kept)]
    error = _refusal(cut)
    assert error.code == "truncated"
    assert f"{len(cut):,} bytes" in str(error)


@pytest.mark.parametrize("format_", FORMATS)
def test_damage_never_surprises(format_: str) -> None:
    """With any bytes overwritten or cut off, we give Pillow's pixels or an InputError, and accept nothing Pillow refuses."""
    rng = np.random.default_rng(11)
    data = encoded(noisy_picture(8, 40, 40), format_)
    outcomes: Counter[str] = Counter()
    for _ in range(60):
        damaged = bytearray(data[: int(rng.integers(1, len(data) + 1))] if rng.random() < 0.4 else data)
        for place in rng.integers(0, len(damaged), int(rng.integers(0, 6))):
            damaged[place] = int(rng.integers(0, 256))
        expected = _pillow(bytes(damaged))
        try:
            got = _ours(bytes(damaged))
        except InputError as error:
            outcomes[error.code] += 1
        else:
            assert expected is not None
            np.testing.assert_array_equal(got, expected)
            outcomes["equal"] += 1
    assert sum(outcomes.values()) == 60
    assert outcomes["equal"] < 60


@pytest.mark.parametrize(
    ("data", "code", "says"),
    [
        (b"", "undecodable", "is empty"),
        (b"hello, world", "undecodable", "is not an image"),
        (b"/9j/4AAQSkZJRgABAQ", "undecodable", "base64"),
        (b"\x00\x00\x00\x1cftypavif", "unsupported_format", "AVIF"),
        (b"\x00\x00\x00\x1cftypheic", "unsupported_format", "HEIC"),
        (b"%PDF-1.7", "unsupported_format", "PDF"),
        (b"<svg xmlns=''></svg>", "unsupported_format", "SVG"),
        (b"<!doctype html>", "unsupported_format", "HTML"),
        (b"II*\x00\x08\x00\x00\x00", "unsupported_format", "TIFF"),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 40, "truncated", "PNG"),
        (b"\xff\xd8\xff\xe0" + b"\x00" * 2000 + b"\xff\xd9", "undecodable", "damaged"),
    ],
    ids=["empty", "text", "base64", "avif", "heic", "pdf", "svg", "html", "tiff_not_allowed", "png_zeros", "jpeg_zeros"],
)
def test_refusal_names_what_arrived(data: bytes, code: str, says: str) -> None:
    """Each kind of wrong file gets its own code and a sentence that says what it is."""
    error = _refusal(data, pillow_decoder("decode"))
    assert error.code == code
    assert says in str(error)


def test_format_off_the_list_is_refused_with_the_list() -> None:
    """The message says what arrived and what is accepted."""
    error = _refusal(encoded(noisy_picture(1, 8, 8), "GIF"), pillow_decoder("decode", formats=["JPEG", "PNG"]))
    assert error.code == "unsupported_format"
    assert "a GIF" in str(error)
    assert "JPEG, PNG" in str(error)


def test_mode_off_the_list_is_refused_by_name() -> None:
    """A CMYK JPEG where only RGB is listed is refused before its pixels are read."""
    decoder = pillow_decoder("decode", modes={"RGB": "RGB"})
    error = _refusal(_written_modes()["CMYK.jpg"], decoder)
    assert error.code == "unsupported_format"
    assert "'CMYK'" in str(error)
    assert _refusal(pillow_images()["lab.tif"]).code == "unsupported_format"


def _png_header(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\x00" * 100)) + chunk(b"IEND", b"")


def _jpeg_header(width: int, height: int) -> bytes:
    """Return a small JPEG whose header claims another size."""
    data = encoded(noisy_picture(1, 16, 16), "JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def _bombs() -> dict[str, bytes]:
    webp_canvas = (16383).to_bytes(3, "little") * 2
    return {
        "png": _png_header(60_000, 60_000),
        "jpeg": _jpeg_header(65_000, 65_000),
        "webp": b"RIFF\x2a\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00\x10\x00\x00\x00" + webp_canvas + b"\x00" * 20,
        "webp_lossless": b"RIFF\x2a\x00\x00\x00WEBPVP8L\x0a\x00\x00\x00\x2f\xff\xff\xff\x0f" + b"\x00" * 20,
        "gif_frame": pillow_images()["decompression_bomb.gif"],
        "gif_screen": b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x00;",
        "bmp": pillow_images()["bmp/b/reallybig.bmp"],
    }


@pytest.mark.parametrize("max_pixels", [1_000_000, None], ids=["limit", "pillows_limit"])
@pytest.mark.parametrize("name", list(_bombs()))
def test_bomb_is_refused_from_its_header(name: str, max_pixels: int | None) -> None:
    """A file that claims billions of pixels is refused before anything is decoded, and without a warning."""
    error = _refusal(_bombs()[name], max_pixels=max_pixels)
    assert error.code == "too_many_pixels"
    assert "pixels" in str(error)


@pytest.mark.parametrize("name", ["gif_frame", "webp_extended", "webp_lossless", "webp_lossy"])
def test_canvas_is_measured_before_the_plugin_allocates_it(name: str) -> None:
    """GIF and WebP readers warn or allocate while they read the header, so their size is read by us, below Pillow's limits too."""
    side = (10_000 - 1).to_bytes(3, "little")
    frame = b"," + struct.pack("<HHHH", 100, 0, 9_900, 10_000) + b"\x00\x02\x00;"
    files = {
        "gif_frame": b"GIF89a"
        + struct.pack("<HH", 8, 8)
        + b"\x80\x00\x00"
        + b"\x01\x02\x03" * 2
        + b"!\xf9\x04\x00\x00\x00\x00\x00"
        + frame,
        "webp_extended": b"RIFF\x2a\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00\x10\x00\x00\x00" + side * 2 + b"\x00" * 20,
        "webp_lossless": b"RIFF\x2a\x00\x00\x00WEBPVP8L\x0a\x00\x00\x00\x2f" + (9_999 | 9_999 << 14).to_bytes(4, "little") + b"\x00" * 20,
        "webp_lossy": b"RIFF\x2a\x00\x00\x00WEBPVP8 \x0a\x00\x00\x00\x00\x00\x00\x9d\x01\x2a"
        + struct.pack("<HH", 10_000, 10_000)
        + b"\x00" * 9,
    }
    error = _refusal(files[name], max_pixels=1_000_000)
    assert error.code == "too_many_pixels"
    assert "10,000 × 10,000" in str(error)


def test_pixel_limit_is_inclusive_and_named() -> None:
    """Exactly the limit passes; one row more is refused with both numbers."""
    assert _ours(encoded(noisy_picture(1, 30, 40), "PNG"), max_pixels=1200).shape == (30, 40, 3)
    error = _refusal(encoded(noisy_picture(1, 31, 40), "PNG"), max_pixels=1200)
    assert error.code == "too_many_pixels"
    assert "40 × 31 = 1,240 pixels; the limit is 1,200" in str(error)


def test_image_over_pillows_warning_limit_does_not_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between Pillow's warning limit and ours an image is decoded in silence (warnings are errors in this suite)."""
    data = encoded(noisy_picture(1, 60, 60), "PNG"), encoded(noisy_picture(1, 60, 60), "WEBP"), encoded(noisy_picture(1, 60, 60), "GIF")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    assert [_ours(d).shape for d in data] == [(60, 60, 3)] * 3


def _scans(data: bytes) -> list[tuple[int, int]]:
    """Return start and stop of every scan of a JPEG, with the tables before it."""
    starts = [m.start() for m in re.finditer(rb"\xff\xda", data)]
    return list(zip(starts, [*starts[1:], data.rindex(b"\xff\xd9")], strict=True))


def test_jpeg_of_endless_scans_is_refused_before_they_are_decoded() -> None:
    """A last scan of a few bytes that is repeated costs a pass over all pixels each time: hours, for a small file."""
    data = encoded(Image.new("L", (4000, 4000)), "JPEG", progressive=True, quality=10)
    start, stop = _scans(data)[-1]
    bomb = data[:stop] + data[start:stop] * 20_000 + data[stop:]
    assert len(bomb) < 2_000_000
    refusal = _refusal(bomb)
    assert refusal.code == "undecodable"
    assert "scans" in str(refusal)


def test_progressive_jpeg_with_what_looks_like_scans_elsewhere_is_decoded() -> None:
    """Only the scans of the image itself count: not those of a thumbnail before it or of a film appended to it."""
    data = encoded(noisy_picture(5, 40, 60), "JPEG", progressive=True)
    comment = b"\xff\xda" * 1000
    dressed = data[:2] + b"\xff\xfe" + struct.pack(">H", 2 + len(comment)) + comment + data[2:] + b"\xff\xda\0\2" * 1000
    np.testing.assert_array_equal(_ours(dressed), _ours(data))


def test_no_global_state_of_pillow_changes() -> None:
    """Bomb limit, truncation switch and warning filters are what they were."""
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    for data in (d for d in pillow_images().values() if len(d) < 2000):
        with suppress(InputError):
            _ours(data)
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)) == before


def test_many_threads_get_their_own_pictures() -> None:
    """Concurrent decoding of good and bad files gives every caller his own answer."""
    files = list(_written_modes().values())
    alone = [_ours(data) for data in files]
    bad = files[1][:200]
    gate = threading.Barrier(4)

    def work(worker: int) -> bool:
        gate.wait(timeout=30)
        right = True
        for i in range(80):
            k = (worker * 7 + i) % len(files)
            right &= bool(np.array_equal(_ours(files[k]), alone[k]))
            right &= _refusal(bad).code == "truncated"
        return right

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_decoder_states_the_installed_library() -> None:
    """The manifest entry names Pillow and its codecs as they are here."""
    decoder = pillow_decoder("decode")
    import PIL

    assert (decoder.library, decoder.library_version) == ("Pillow", PIL.__version__)
    assert decoder.codecs["libjpeg_turbo"] == features.version_feature("libjpeg_turbo")
    assert {"zlib", "webp"} <= set(decoder.codecs)
    assert decoder.modes == dict(DEFAULT_MODES)
    assert decoder.formats == list(DEFAULT_FORMATS)


@pytest.mark.parametrize(("options", "says"), [({"formats": ["PCX"]}, "PCX"), ({"modes": {"RGB": "CMYK"}}, "CMYK")], ids=["format", "mode"])
def test_decoder_that_cannot_be_had_is_refused_when_written(options: dict[str, object], says: str) -> None:
    """An author learns at once what this library cannot do."""
    with pytest.raises(AuthoringError, match=says):
        pillow_decoder("decode", **options)  # type: ignore[arg-type]


def test_process_that_accepts_truncated_images_cannot_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch that makes Pillow accept cut files is noticed when a package is loaded."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(EnvironmentUnfit, match="LOAD_TRUNCATED_IMAGES"):
        check_decoder(PLAIN)
