"""The photographs the example is measured on: real ones that scikit-image and scikit-learn ship."""

from __future__ import annotations

from pathlib import Path

from models._fetch import DOWNLOADS, fetch, unpack

_SCIKIT_IMAGE = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
_SCIKIT_LEARN = ("china.jpg", "flower.jpg")

#: File names, in the order of the committed reference logits. Eleven are RGB, six grey.
PHOTOS = (*_SCIKIT_IMAGE, *_SCIKIT_LEARN)


def photo_paths(downloads: Path = DOWNLOADS) -> dict[str, Path]:
    """Return where each of `PHOTOS` lies on this machine, fetching the packages that hold them when they are not there yet."""
    images = unpack(fetch("scikit-image==0.26.0", downloads=downloads), [f"skimage/data/{name}" for name in _SCIKIT_IMAGE])
    learn = unpack(fetch("scikit-learn==1.9.1", downloads=downloads), [f"sklearn/datasets/images/{name}" for name in _SCIKIT_LEARN])
    paths = {name: images / "skimage/data" / name for name in _SCIKIT_IMAGE}
    return paths | {name: learn / "sklearn/datasets/images" / name for name in _SCIKIT_LEARN}
