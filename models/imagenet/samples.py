"""The raw requests the package is proven with: real photos, decoder corner cases, and seeded variations of both.

Golden requests go into the package and are replayed by every server that loads it, so they are few and small. Held-out requests stay
outside; the integration tests send them over HTTP.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from models._fetch import DOWNLOADS, fetch, unpack

PATH = "/v1/models/imagenet:predict"
SEED = 20240607
N_VARIATIONS = 170
MEDIA_TYPES = {
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".bmp": "image/bmp",
}

#: Photos that become golden requests as they are, and so are held against the published network's logits directly.
GOLDEN_PHOTOS = ("coffee.png", "chelsea.png", "camera.png", "rocket.jpg", "china.jpg", "flower.jpg", "coins.png", "cell.png", "moon.png")

#: Files of Pillow's own test suite, each for the corner of a decoder it exercises.
GOLDEN_CORNERS = {
    "hopper_gray.jpg": "grey JPEG",
    "pil_sample_cmyk.jpg": "CMYK JPEG with Adobe's inverted inks",
    "hopper_orientation_6.jpg": "JPEG that EXIF says to rotate",
    "truncated_app14.jpg": "JPEG with a damaged Adobe marker",
    "hopper_16bit_qtables.jpg": "JPEG with 16-bit quantisation tables",
    "hopper_bw_500.png": "PNG of one bit a pixel",
    "transparent.png": "PNG with alpha",
    "uncompressed_la.png": "grey PNG with alpha",
    "pil123p.png": "PNG with a palette",
    "i_trns.png": "grey PNG of 16 bits",
    "p_trns_single.png": "PNG with a palette and one transparent colour",
    "l_trns.png": "grey PNG with one transparent shade",
    "hopper.webp": "lossy WebP",
    "transparent.webp": "WebP with alpha",
    "hopper.gif": "GIF",
    "hopper.bmp": "BMP",
}
#: More of them, held out.
HELD_OUT_CORNERS = (
    "1_trns.png", "7x13.png", "a_fli.png", "app13.jpg", "app13-multiple.jpg", "ati1.png", "bc5_unorm.png", "bmp/g/pal1.bmp",
    "bmp/g/pal4.bmp", "bmp/g/pal8.bmp", "bmp/g/rgb24.bmp", "bmp/g/rgb32.bmp", "bw_gradient.png", "chi.gif", "color_snakes.png",
    "cross_scan_line.png", "empty_gps_ifd.jpg", "exif-200dpcm.jpg", "exif-72dpi-int.jpg", "exif.png", "exif_imagemagick_orientation.png",
    "flower.jpg", "flower.webp", "flower2.jpg", "flower2.webp", "hopper.jpg", "hopper.png", "hopper_45.png", "hopper_bad_exif.jpg",
    "hopper_mask.png", "hopper_orientation_2.jpg", "hopper_orientation_3.jpg", "hopper_orientation_5.webp", "hopper_orientation_8.jpg",
    "hopper_orientation_8.webp", "hopper_resized.gif", "hopper_rle8.bmp", "icc_profile.png", "icc_profile_big.jpg", "iptc.jpg",
    "iss634.webp", "jpeg_ff00_header.jpg", "linear_gradient.png",
    "padded_idat.png", "pil123rgba.png", "pil_sample_rgb.jpg", "radial_gradient.png", "rgb.jpg", "rgb_trns.png",
    "tga/common/200x32_la.png", "tga/common/200x32_p.png", "tga/common/200x32_rgba.png", "tiny.png", "uncompressed_rgb.png", "xmp_test.jpg",
)  # fmt: skip


#: An image and a quality → the end of its name and the file.
Encoding: TypeAlias = Callable[[Image.Image, int], tuple[str, bytes]]


@dataclass(frozen=True)
class RawRequest:
    """One request, and the encoded images in it in the order of its instances."""

    name: str
    headers: Mapping[str, str]
    body: bytes
    images: tuple[bytes, ...]


def raw_request(name: str, image: bytes) -> RawRequest:
    """Return a request whose body is the encoded image itself; the end of `name` decides its media type."""
    return RawRequest(name, {"content-type": MEDIA_TYPES[Path(name).suffix]}, image, (image,))


def json_request(name: str, images: Mapping[str, bytes], make: Callable[[list[dict[str, str]]], object]) -> RawRequest:
    """Return a V1 JSON request of several images; `make` puts their base64 objects into the document."""
    document = make([{"b64": base64.b64encode(image).decode("ascii")} for image in images.values()])
    body = json.dumps(document, separators=(",", ":")).encode()
    return RawRequest(name, {"content-type": "application/json"}, body, tuple(images.values()))


def pillow_test_images(names: list[str], downloads: Path = DOWNLOADS) -> dict[str, bytes]:
    """Return files of Pillow's test suite by name, fetching its source archive when it is not there yet."""
    root = "pillow-13.0.0/Tests/images"
    directory = unpack(fetch("pillow==13.0.0", "sdist", downloads=downloads), [f"{root}/{name}" for name in names])
    return {name: (directory / root / name).read_bytes() for name in names}


def golden_requests(photos: Mapping[str, Path]) -> list[RawRequest]:
    """Return the requests that travel in the package: photos, decoder corners, odd sizes, and each way of writing a JSON body."""
    requests = [raw_request(name, photos[name].read_bytes()) for name in GOLDEN_PHOTOS]
    corners = pillow_test_images(list(GOLDEN_CORNERS))
    requests += [raw_request(f"pillow-{name}", data) for name, data in corners.items()]
    sizes = odd_sizes(photos["coffee.png"])
    requests += [raw_request(name, data) for name, data in sizes.items()]
    two = {name: corners[name] for name in ("hopper_gray.jpg", "transparent.webp")}
    one = {name: corners[name] for name in ("pil_sample_cmyk.jpg",)}
    requests.append(json_request("json-two-rows", two, lambda b64: {"instances": [{"image": image} for image in b64]}))
    requests.append(json_request("json-two-columns", two, lambda b64: {"inputs": {"image": b64}}))
    requests.append(json_request("json-bare-value", one, lambda b64: {"instances": b64}))
    return requests


def odd_sizes(photo: Path) -> dict[str, bytes]:
    """Return one photo at sizes where cropping and resizing go wrong first, as small JPEG and PNG files."""
    with Image.open(photo) as opened:
        image = opened.convert("RGB")
    exact = image.crop((60, 40, 316, 296))  # its central crop is 224 pixels wide: nothing is left to resize
    return {
        "two-pixels.png": encode(image.resize((2, 2)), "PNG"),
        "very-tall.png": encode(image.resize((3, 901)), "PNG"),
        "very-wide.png": encode(image.resize((901, 3)), "PNG"),
        "tall.jpg": encode(image.crop((250, 0, 350, 400)), "JPEG", quality=85),
        "odd-both.jpg": encode(image.crop((0, 0, 257, 255)), "JPEG", quality=85),
        "enlarged.jpg": encode(image.resize((41, 30)), "JPEG", quality=90),
        "crop-needs-no-resize.jpg": encode(exact, "JPEG", quality=85),
        "progressive.jpg": encode(image.resize((300, 200)), "JPEG", quality=85, progressive=True),
    }


def held_out_requests(photos: Mapping[str, Path]) -> list[RawRequest]:
    """Return over 200 requests that are not golden: the other photos, more decoder corners, and seeded variations of everything."""
    golden = set(GOLDEN_PHOTOS)
    requests = [raw_request(name, path.read_bytes()) for name, path in photos.items() if name not in golden]
    corners = pillow_test_images([*HELD_OUT_CORNERS])
    requests += [raw_request(f"pillow-{name.replace('/', '-')}", data) for name, data in corners.items()]
    requests += [raw_request(name, data) for name, data in variations(photos)]
    return requests


def variations(photos: Mapping[str, Path]) -> Iterator[tuple[str, bytes]]:
    """Yield `N_VARIATIONS` named files: seeded crops of the photos, rescaled, converted and encoded in the usual ways."""
    generator = np.random.default_rng(SEED)
    names = sorted(photos)
    for number in range(N_VARIATIONS):
        name = names[number % len(names)]
        image = _load_rgb(photos[name])
        image = _scaled(_cropped(image, generator), generator)
        suffix, data = _ENCODINGS[number % len(_ENCODINGS)](image, int(generator.integers(50, 97)))
        yield f"variation-{number:03d}-{Path(name).stem}-{image.width}x{image.height}{suffix}", data


def everyday_images(photos: Mapping[str, Path], count: int, *, seed: int = SEED + 1) -> Iterator[tuple[str, bytes]]:
    """Yield `count` named files that look like traffic: large crops of random photos, in random everyday sizes and encodings.

    Two seeds give two samples of the same traffic.
    """
    generator = np.random.default_rng(seed)
    names = sorted(photos)
    loaded = {name: _load_rgb(photos[name]) for name in names}
    for number in range(count):
        name = names[int(generator.integers(len(names)))]
        image = _cropped(loaded[name], generator, least=0.5)
        factor = min(float(np.exp(generator.uniform(-0.7, 0.3))), 1024 / max(image.size))
        image = image.resize((max(64, round(image.width * factor)), max(64, round(image.height * factor))), Image.Resampling.LANCZOS)
        suffix, data = EVERYDAY_ENCODINGS[int(generator.integers(len(EVERYDAY_ENCODINGS)))](image, int(generator.integers(70, 97)))
        yield f"everyday-{number:04d}-{Path(name).stem}-{image.width}x{image.height}{suffix}", data


def _load_rgb(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        return opened.convert("RGB")


def _cropped(image: Image.Image, generator: np.random.Generator, least: float = 0.0) -> Image.Image:
    width, height = (int(generator.integers(max(min(48, n), int(least * n)), n + 1)) for n in image.size)
    left, top = int(generator.integers(image.width - width + 1)), int(generator.integers(image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def _scaled(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Rescale each axis by itself, so that both orders of the two resize passes occur; at most 640 pixels a side."""
    width, height = (int(np.clip(n * np.exp(generator.uniform(-1, 0.5)), 24, 640)) for n in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    """Return the image as a file of the given format, with Pillow's own option names."""
    stream = BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def _jpeg(subsampling: str, *, mode: str = "RGB", progressive: bool = False) -> Encoding:
    def make(image: Image.Image, quality: int) -> tuple[str, bytes]:
        return ".jpg", encode(image.convert(mode), "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)

    return make


def _png(mode: str) -> Encoding:
    return lambda image, _quality: (".png", encode(image.convert(mode), "PNG", compress_level=3))


def _png_with_alpha(image: Image.Image, _quality: int) -> tuple[str, bytes]:
    transparent = image.convert("RGBA")
    ramp = np.linspace(0, 255, image.width * image.height).astype(np.uint8).reshape(image.height, image.width)
    transparent.putalpha(Image.fromarray(ramp))
    return ".png", encode(transparent, "PNG", compress_level=3)


def _webp(*, lossless: bool) -> Encoding:
    return lambda image, quality: (".webp", encode(image, "WEBP", quality=quality, lossless=lossless, method=0))


#: Thirteen, so that over the seventeen photos every photo meets every encoding.
_ENCODINGS = (
    _jpeg("4:2:0"),
    _jpeg("4:4:4"),
    _png("RGB"),
    _webp(lossless=False),
    _jpeg("4:2:2"),
    _jpeg("4:2:0", progressive=True),
    _png("P"),
    _jpeg("4:2:0", mode="L"),
    _png_with_alpha,
    _jpeg("4:4:4", mode="CMYK"),
    _png("L"),
    _webp(lossless=True),
    _jpeg("4:4:4", progressive=True),
)
#: Weighted by repetition: mostly JPEG with subsampled colours, as cameras and the web have it.
EVERYDAY_ENCODINGS = (*(_jpeg("4:2:0"),) * 5, *(_jpeg("4:4:4"),) * 2, _jpeg("4:2:0", progressive=True), _png("RGB"), _webp(lossless=False))
