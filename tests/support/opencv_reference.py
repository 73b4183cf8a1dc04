"""What plain OpenCV makes of a fixed set of images: the reference that samegraph is compared with.

    python tests/support/opencv_reference.py CASES DIRECTORY

Needs cv2 and NumPy and nothing else (the pixels are made by integer arithmetic), so it runs in an
environment of any OpenCV version. For every step, `DIRECTORY/{step}.npy` holds the results of all cases, flattened, one after the other;
`DIRECTORY/about.json` says which OpenCV made them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

LARGEST = 256
BOX = (40, 56)
SIDE = 64
Size = tuple[int, int]
_GAMMA, _M1, _M2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Mix the bits of uint64 values (the finaliser of SplitMix64): the same noise everywhere."""
    z = values + _GAMMA
    z = (z ^ (z >> np.uint64(30))) * _M1
    z = (z ^ (z >> np.uint64(27))) * _M2
    return z ^ (z >> np.uint64(31))


def cases(count: int) -> Iterator[tuple[np.ndarray, Size]]:
    """Yield images, uint8 [H, W, 1 or 3], with the (height, width) to resize them to.

    Sides are spread evenly over their logarithm. Every seventh image is smaller by whole numbers, every tenth exactly half, each the fast
    ways of OpenCV; some keep a side.
    """
    for case in range(count):
        drawn = [int(v >> np.uint64(32)) for v in _mixed(np.uint64((case + 7) << 20) + np.arange(6, dtype=np.uint64))]
        height, width, to_height, to_width = (int(LARGEST ** (v / 2**32)) for v in drawn[:4])
        to_height = height if case % 17 == 3 else to_height
        to_width = width if case % 17 == 5 else to_width
        if case % 7 == 2:
            to_height, to_width = min(to_height, 60), min(to_width, 60)
            height, width = to_height * (1 + drawn[4] % 5), to_width * (1 + drawn[5] % 5)
        if case % 10 == 4:
            height, width = 2 * to_height, 2 * to_width
        yield content(case, height, width, 1 if case % 4 == 1 else 3), (to_height, to_width)


def content(case: int, height: int, width: int, channels: int) -> np.ndarray:
    """Make an image: noise, black and white noise (overshoot clips), a gradient (ties), or flat patches."""
    places = np.arange(height * width * channels, dtype=np.uint64).reshape(height, width, channels)
    noise = (_mixed(places + np.uint64((case + 1) << 32)) >> np.uint64(40)).astype(np.uint8)
    kind = (case + case // 4) % 4
    if kind == 0:
        return noise
    if kind == 1:
        return (noise & np.uint8(1)) * np.uint8(255)
    rows, columns, planes = np.indices((height, width, channels))
    if kind == 2:
        gradient: np.ndarray = (rows * (1 + case % 7) + columns * (1 + case % 5) + 60 * planes) % 256
        return gradient.astype(np.uint8)
    patches: np.ndarray = noise[rows // 8, columns // 8, planes]
    return patches


def _resized(interpolation: int, *, ipp: bool) -> Callable[[np.ndarray, Size], np.ndarray]:
    def run(array: np.ndarray, size: Size) -> np.ndarray:
        cv2.ipp.setUseIPP(ipp)
        return np.asarray(cv2.resize(array, (size[1], size[0]), interpolation=interpolation))

    return run


def _letterbox(array: np.ndarray, _: Size) -> np.ndarray:
    """Do what detectors are trained with: the smaller ratio, round, half of the border on each side."""
    height, width = array.shape[:2]
    ratio = min(BOX[0] / height, BOX[1] / width)
    new_width, new_height = max(round(width * ratio), 1), max(round(height * ratio), 1)
    extra_width, extra_height = (BOX[1] - new_width) / 2, (BOX[0] - new_height) / 2
    if (width, height) != (new_width, new_height):
        array = np.asarray(cv2.resize(array, (new_width, new_height), interpolation=cv2.INTER_LINEAR))
    top, bottom = round(extra_height - 0.1), round(extra_height + 0.1)
    left, right = round(extra_width - 0.1), round(extra_width + 0.1)
    return np.asarray(cv2.copyMakeBorder(array, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(114, 7, 200)))


def _shorter(array: np.ndarray, _: Size) -> np.ndarray:
    """Bring the shorter side to SIDE, the ratio first and cut; long and narrow images are cut before."""
    array = np.ascontiguousarray(array[: 8 * array.shape[1], : 8 * array.shape[0]])
    height, width = array.shape[:2]
    ratio = SIDE / min(height, width)
    return np.asarray(cv2.resize(array, (int(width * ratio), int(height * ratio)), interpolation=cv2.INTER_AREA))


#: Step → what training code does for it.
REFERENCES: dict[str, Callable[[np.ndarray, Size], np.ndarray]] = {
    "nearest": _resized(cv2.INTER_NEAREST, ipp=True),
    "linear": _resized(cv2.INTER_LINEAR, ipp=True),
    "area": _resized(cv2.INTER_AREA, ipp=True),
    "cubic": _resized(cv2.INTER_CUBIC, ipp=False),
    "cubic_ipp": _resized(cv2.INTER_CUBIC, ipp=True),
    "lanczos4": _resized(cv2.INTER_LANCZOS4, ipp=True),
    "letterbox": _letterbox,
    "shorter_side": _shorter,
}


def main() -> None:
    """Write the results of every step."""
    count, directory = int(sys.argv[1]), Path(sys.argv[2])
    results: dict[str, list[np.ndarray]] = {name: [] for name in REFERENCES}
    for array, size in cases(count):
        for name, reference in REFERENCES.items():
            results[name].append(np.asarray(reference(array, size)).reshape(-1))
    for name, arrays in results.items():
        np.save(directory / f"{name}.npy", np.concatenate(arrays))
    about = {"opencv": cv2.__version__, "numpy": np.__version__, "ipp": cv2.ipp.getIppVersion(), "cases": count}
    (directory / "about.json").write_text(json.dumps(about))


if __name__ == "__main__":
    main()
