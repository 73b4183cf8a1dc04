"""Real images for tests: Pillow's own test images and packaged photos, out of pinned archives, never committed."""

from __future__ import annotations

import io
import tarfile
from functools import cache

import numpy as np
from PIL import Image

from models._fetch import fetch, read_member

_PREFIX = "pillow-13.0.0/Tests/images/"
_PHOTOS = {
    "coffee": ("scikit-image==0.26.0", "skimage/data/coffee.png"),
    "chelsea": ("scikit-image==0.26.0", "skimage/data/chelsea.png"),
    "astronaut": ("scikit-image==0.26.0", "skimage/data/astronaut.png"),
    "china": ("scikit-learn==1.9.1", "sklearn/datasets/images/china.jpg"),
    "flower": ("scikit-learn==1.9.1", "sklearn/datasets/images/flower.jpg"),
}


@cache
def pillow_images() -> dict[str, bytes]:
    """Return every file under Tests/images of the pinned Pillow sdist, by path, those above 3 MB left out."""
    found: dict[str, bytes] = {}
    with tarfile.open(fetch("pillow==13.0.0", "sdist"), "r:gz") as archive:
        for entry in archive:
            if entry.isfile() and entry.name.startswith(_PREFIX) and entry.size < 3_000_000:
                stream = archive.extractfile(entry)
                assert stream is not None
                found[entry.name.removeprefix(_PREFIX)] = stream.read()
    return found


@cache
def photos() -> dict[str, np.ndarray]:
    """Return five real photos, landscape and square, as uint8 [H, W, 3]."""
    return {
        name: np.asarray(Image.open(io.BytesIO(read_member(fetch(package), member))).convert("RGB"))
        for name, (package, member) in _PHOTOS.items()
    }


def noisy_picture(seed: int, height: int, width: int) -> Image.Image:
    """Make an RGB picture with smooth areas, edges and noise, the same for the same seed."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = 127 + 80 * np.sin(rows / 9 + seed) + 40 * np.cos(columns / 13)
    array = np.stack([waves, np.roll(waves, 7, 0), np.roll(waves, 5, 1)], axis=2) + rng.normal(0, 12, (height, width, 3))
    array[height // 3 : height // 2, width // 4 : width // 2] = rng.integers(0, 256, 3)
    return Image.fromarray(np.clip(array, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, format_: str, **options: object) -> bytes:
    """Return `image` as a file."""
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()
