"""Image files made to break decoders: over HTTP each is answered 200 with the right numbers or 4xx with a reason, quickly."""

from __future__ import annotations

import http.client
import io
import json
import random
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Iterator

import numpy as np
import odd_packages as odd
import pytest
from live_server import LiveServer, Reply, live_server
from PIL import Image

MUTATIONS = 30


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    repository = tmp_path_factory.mktemp("models")
    odd.pack_tint(repository)
    with live_server(repository) as live:
        yield live


def send(server: LiveServer, data: bytes, content_type: str = "application/octet-stream") -> Reply:
    return server.request("POST", "/v1/models/tint:predict", data, {"content-type": content_type})


# --- files ----------------------------------------------------------------------------------------------------------------


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (17, 23, 3), dtype=np.uint8))


def file_of(image: Image.Image, format_: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


def files() -> dict[str, bytes]:
    image, frames = picture(), [picture().rotate(90), picture().rotate(180)]
    few, profile = image.quantize(16), b"\0" * 200
    return {
        "jpeg": file_of(image, "JPEG"),
        "jpeg-progressive": file_of(image, "JPEG", progressive=True, exif=turned(), icc_profile=profile),
        "jpeg-cmyk": file_of(image.convert("CMYK"), "JPEG"),
        "jpeg-grey": file_of(image.convert("L"), "JPEG"),
        "png": file_of(image, "PNG", exif=turned(), icc_profile=profile),
        "png-palette": file_of(few, "PNG", transparency=3),
        "png-alpha": file_of(image.convert("LA"), "PNG"),
        "png-16": file_of(Image.fromarray(np.asarray(image)[:, :, 0].astype(np.uint16) * 100), "PNG"),
        "png-1": file_of(image.convert("1"), "PNG"),
        "png-animated": file_of(image, "PNG", save_all=True, append_images=frames),
        "gif": file_of(image, "GIF"),
        "gif-animated": file_of(image, "GIF", save_all=True, append_images=frames),
        "webp": file_of(image, "WEBP"),
        "webp-lossless": file_of(image, "WEBP", lossless=True, exif=turned(), icc_profile=profile),
        "webp-animated": file_of(image, "WEBP", save_all=True, append_images=frames),
        "bmp": file_of(image, "BMP"),
        "bmp-palette": file_of(few, "BMP"),
        "tiff": file_of(image, "TIFF"),
        "tiff-lzw": file_of(image, "TIFF", compression="tiff_lzw"),
        "tiff-jpeg": file_of(image, "TIFF", compression="jpeg"),
        "tiff-fax": file_of(image.convert("1"), "TIFF", compression="group4"),
    }


FILES = files()
#: Written over any four bytes, these are sizes, counts and offsets as files should not have them.
WORDS = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\1\0\0")


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return `data` with some bytes changed, cut off, doubled or taken out; headers more often than pixels."""
    file = bytearray(data)
    at = rng.randrange(len(file) if rng.random() < 0.5 else min(len(file), 120))
    how = rng.choice(("flip", "flip", "flip", "cut", "word", "double", "drop"))
    if how == "flip":
        for _ in range(rng.choice((1, 2, 16))):
            file[rng.randrange(len(file))] = rng.randrange(256)
        file[at] = rng.randrange(256)
    elif how == "cut":
        del file[at:]
    elif how == "word":
        file[at : at + 4] = rng.choice(WORDS)
    elif how == "double":
        file[at:at] = file[at : at + rng.randrange(64)]
    else:
        del file[at : at + rng.randrange(1, 9)]
    return bytes(file)


# --- tests ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_refused_or_decoded_as_training_would(server: LiveServer, name: str) -> None:
    """Whatever byte is wrong: never a 5xx, and a 200 only with the numbers training has for that very file."""
    rng = random.Random(name)
    statuses: Counter[int] = Counter()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    for data in [FILES[name], *(damaged(FILES[name], rng) for _ in range(MUTATIONS))]:
        connection.request("POST", "/v1/models/tint:predict", data, {"content-type": "image/x"})
        response = connection.getresponse()
        document = json.loads(response.read())
        statuses[response.status] += 1
        if response.status == 200:
            assert document["predictions"] == [odd.tint(data)]
        else:
            assert response.status in (400, 413)
            assert document["code"] in ("undecodable", "truncated", "unsupported_format", "too_many_pixels")
            assert document["field"] == "image"
    connection.close()
    assert sum(statuses.values()) == 1 + MUTATIONS
    assert statuses[200] >= 1


def png(width: int, height: int, *chunks: tuple[bytes, bytes], data: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    every = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in every
    )


def resized(name: str, at: int, layout: str, width: int, height: int) -> bytes:
    """Return a good file whose header says another size."""
    file = bytearray(FILES[name])
    struct.pack_into(layout, file, at, width, height)
    return bytes(file)


BOMBS = {
    "png": png(2**31 - 1, 2**31 - 1),
    "png-flat": png(1, 2**31 - 1),
    "jpeg": resized("jpeg", FILES["jpeg"].index(b"\xff\xc0") + 5, ">HH", 65535, 65535),
    "gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6) + b",",
    "gif-frame": b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6) + b"," + struct.pack("<HHHH", 65535, 65535, 65535, 65535),
    "webp": b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<IBBBB", 10, 0, 0, 0, 0) + b"\xff" * 6 + bytes(8),
    "bmp": resized("bmp", 18, "<ii", 2**31 - 1, 2**31 - 1),
    "tiff": file_of(Image.new("1", (30_000, 30_000)), "TIFF", compression="group4"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_that_says_it_is_huge_is_refused_by_its_header(server: LiveServer, name: str) -> None:
    """Nothing is decoded, and the answer names the limit."""
    reply = send(server, BOMBS[name])
    assert (reply.status, reply.json()["code"]) == (413, "too_many_pixels")


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"iTXt"])
def test_compressed_text_in_a_file_is_not_blown_up(server: LiveServer, kind: bytes) -> None:
    """A hundred megabytes of profile in a hundred kilobytes of file."""
    bomb = zlib.compress(bytes(100_000_000), 9)
    head = b"a\0\1\0\0\0" if kind == b"iTXt" else b"a\0\0"
    reply = send(server, png(1, 1, (kind, head + bomb), data=bytes(4)))
    assert (reply.status, reply.json()["code"]) == (400, "undecodable")


@pytest.mark.parametrize("size", [(1, 1), (1, 30_000), (30_000, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
def test_extreme_shapes_are_images_too(server: LiveServer, size: tuple[int, int], format_: str) -> None:
    """As long as the format can hold them and the pixels are within the limit."""
    if format_ == "WEBP":
        size = (min(size[0], 16_383), min(size[1], 16_383))  # the format holds no more
    data = odd.image_file(7, format_, size)
    assert send(server, data).json()["predictions"] == [odd.tint(data)]


@pytest.mark.parametrize(
    "extras",
    [
        {"exif": turned()},
        {"exif": b"Exif\0\0" + b"\xff" * 60_000},
        {"exif": b"Exif\0\0II*\0" + b"\xff\xff\xff\xff"},
        {"icc_profile": b"\xff" * 60_000},
        {"icc_profile": struct.pack(">I", 2**32 - 1) + b"lcms" * 1000},
    ],
    ids=["turned", "exif-noise", "exif-far-offset", "icc-noise", "icc-lying-about-its-size"],
)
@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
def test_what_a_file_says_about_itself_changes_no_pixel(server: LiveServer, format_: str, extras: dict[str, bytes]) -> None:
    """This package ignores orientation and colour profile, so damaged ones do no harm."""
    image = picture()
    plain, dressed = file_of(image, format_, quality=90), file_of(image, format_, quality=90, **extras)
    assert send(server, dressed).json()["predictions"] == [odd.tint(plain)]


@pytest.mark.parametrize("name", ["png-animated", "gif-animated", "webp-animated"])
def test_of_an_animation_the_first_picture_counts(server: LiveServer, name: str) -> None:
    """As in training, where Pillow opens it at the first frame."""
    first = Image.open(io.BytesIO(FILES[name])).convert("RGB")
    assert send(server, FILES[name]).json()["predictions"] == [odd.tint(file_of(first, "PNG"))]


@pytest.mark.parametrize("content_type", ["image/jpeg", "image/png", "image/svg+xml", "IMAGE/Anything; q=1", "application/octet-stream"])
def test_the_bytes_say_what_a_file_is_and_not_its_label(server: LiveServer, content_type: str) -> None:
    """A PNG that is called a JPEG is a PNG; something else that is called an image is not."""
    data = odd.image_file(9)
    assert send(server, data, content_type).json()["predictions"] == [odd.tint(data)]
    reply = send(server, b"<svg xmlns='http://www.w3.org/2000/svg'/>", content_type)
    assert (reply.status, reply.json()["code"]) == (400, "unsupported_format")


def test_the_server_is_as_it_was(server: LiveServer) -> None:
    """All its threads live, nothing is held, and no answer was a 5xx."""
    host = [t for t in threading.enumerate() if t.name.startswith(("samegraph-host", "samegraph-run"))]
    assert host
    assert all(t.is_alive() for t in host)
    assert server.metric("samegraph_in_flight_requests") == 0
    for status in ("500", "503", "504"):
        assert server.metric("samegraph_requests_total", status=status) == 0
