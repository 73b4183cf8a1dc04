"""Small videos for tests, written with PyAV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np


def pictures(n: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Return n pictures that all differ, uint8 of shape (n, height, width, 3)."""
    rng = np.random.default_rng(7)
    base = rng.integers(0, 255, (height // 8, width // 8, 3)).repeat(8, 0).repeat(8, 1)
    return np.stack([(base + 5 * index) % 256 for index in range(n)]).astype(np.uint8)


def write_clip(path: Path, n: int = 30, rate: int = 25, codec: str = "libx264", size: tuple[int, int] = (48, 64)) -> Path:
    """Write a clip of n frames and return its path."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for picture in pictures(n, *size):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path
