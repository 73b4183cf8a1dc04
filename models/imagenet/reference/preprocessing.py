"""The preprocessing EfficientNet-Lite0 was trained with, in plain Pillow and NumPy.

This is the reference that the package's graphs are held against, so it shares no code with samegraph: it is written from the
recipe of the network's authors (tensorflow/tpu, models/official/efficientnet: `preprocessing.py`, `lite/efficientnet_lite_builder.py`).
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

IMAGE_SIZE = 224
CROP_PADDING = 32
MEAN = 127.0
SCALE = 128.0


def pixels(data: bytes) -> np.ndarray:
    """Return the central square of an encoded image at the network's size: uint8 [224, 224, 3], RGB.

    The crop's side is 224/256 of the shorter edge, rounded down; an odd remainder leaves one pixel more at the top and on the left.
    EXIF orientation is not applied and transparency is dropped, as in training.

    Raises:
        ValueError: The image is one pixel wide or high, so that the crop is empty. (Pillow would make a black square of nothing.)
    """
    with Image.open(BytesIO(data)) as opened:
        image = opened.convert("RGB")
    width, height = image.size
    side = int(IMAGE_SIZE / (IMAGE_SIZE + CROP_PADDING) * min(height, width))
    if side == 0:
        raise ValueError(f"the image is {width}x{height} pixels: its central crop is empty")
    top = ((height - side) + 1) // 2
    left = ((width - side) + 1) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))


def normalise(pixel_values: np.ndarray) -> np.ndarray:
    """Return what the network takes, float32 [3, 224, 224], for `pixels`. Exact: both constants and all results are dyadic."""
    return ((pixel_values.astype(np.float32) - np.float32(MEAN)) / np.float32(SCALE)).transpose(2, 0, 1)
