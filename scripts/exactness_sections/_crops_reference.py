"""What torchvision and timm cut out of images and put around them; run by section `crops` in an environment of its own.

    python scripts/exactness_sections/_crops_reference.py 2000 DIRECTORY

Knows nothing of samegraph. Writes DIRECTORY/<step>.npy, the results of all cases one after the other, and DIRECTORY/versions.json. `cases`
needs NumPy alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

CROP, CENTRE, BORDER, COLOUR = (7, 11), (40, 31), (3, 29, 14, 5), (124, 7, 200)


def cases(count: int) -> Iterator[np.ndarray]:
    """Yield images, uint8 [H, W, 3], none smaller than `CROP`: noise and gradients by turns, sides of up to 100."""
    rng = np.random.default_rng(61)
    for case in range(count):
        shape = (*(least + int(rng.integers(0, 90)) * (case % 13 > 0) for least in CROP), 3)
        if case % 2:
            yield rng.integers(0, 256, shape, dtype=np.uint8)
        else:
            rows, columns, depth = np.indices(shape)
            yield np.asarray((3 * rows + 5 * columns + 60 * depth) % 256, dtype=np.uint8)


def steps() -> dict[str, Callable[[Any], Any]]:
    """Return name → the library's transform, which gives one image or several."""
    import torchvision.transforms as v1  # type: ignore[import-not-found,unused-ignore]
    from timm.data.transforms import CenterCropOrPad  # type: ignore[import-not-found,unused-ignore]

    return {
        "five_crop": v1.FiveCrop(CROP),
        "ten_crop": v1.TenCrop(CROP),
        "ten_crop_vertical": v1.TenCrop(CROP, vertical_flip=True),
        "center_crop": v1.CenterCrop(CENTRE),
        "center_crop_or_pad": CenterCropOrPad(CENTRE, fill=COLOUR),
        **{f"pad_{mode}": v1.Pad(BORDER, padding_mode=mode) for mode in ("edge", "reflect", "symmetric")},
    }


def main() -> None:
    """Write what every step makes of every case."""
    from PIL import Image

    count, directory = int(sys.argv[1]), Path(sys.argv[2])
    for name, step in steps().items():
        made = []
        for array in cases(count):
            result = step(Image.fromarray(array))
            made += [np.asarray(one).ravel() for one in (result if isinstance(result, tuple) else (result,))]
        np.save(directory / f"{name}.npy", np.concatenate(made))
    versions = {name: metadata.version(name) for name in ("torchvision", "timm", "pillow", "numpy")}
    (directory / "versions.json").write_text(json.dumps(versions))


if __name__ == "__main__":
    main()
