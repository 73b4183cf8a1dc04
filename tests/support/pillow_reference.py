"""What plain Pillow makes of a fixed set of images: the reference that scripts/exactness.py compares samegraph with.

    python tests/support/pillow_reference.py CASES DIRECTORY

Needs Pillow and NumPy and nothing else, so it runs in an environment of any Pillow version. Pixels are made by integer arithmetic:
no random generator that could change between versions. For every step, `DIRECTORY/{step}.npy` holds the results of all cases,
flattened, one after the other; `DIRECTORY/about.json` says which Pillow made them and the order of its two passes, found by looking at
what it does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageOps

FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
LARGEST = 256
COLOUR = (114, 7, 200)
BOX = (40, 56)
Size = tuple[int, int]


def mixed(values: np.ndarray) -> np.ndarray:
    """Mix the bits of uint64 values (the finaliser of SplitMix64): the same noise everywhere."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def numbers(case: int, count: int) -> list[int]:
    """Return `count` numbers below 2^32 that belong to a case."""
    return [int(v >> np.uint64(32)) for v in mixed(np.uint64(case << 20) + np.arange(count, dtype=np.uint64))]


def cases(count: int) -> Iterator[tuple[np.ndarray, Size]]:
    """Yield images, uint8 [H, W, 4], with the (height, width) to resize them to.

    Sides are spread evenly over their logarithm up to `LARGEST`. Every fourth image is much taller than wanted, where Pillow's order of
    passes changed with version 13; every ninth is more than eighty times as high as wide, where it changed with 12.2. Some keep their
    height or their width.
    """
    for case in range(count):
        drawn = numbers(case, 6)
        height, width, to_height, to_width = (int(LARGEST ** (v / 2**32)) for v in drawn[:4])
        if case % 4 == 1:
            height, width = LARGEST - drawn[4] % 9, to_width + drawn[5] % 20
        if case % 9 == 7:
            height, width = LARGEST - drawn[4] % 9, 1 + drawn[5] % 3
        to_height = height if case % 17 == 3 else to_height
        to_width = width if case % 17 == 5 else to_width
        yield content(case, height, width), (to_height, to_width)


def content(case: int, height: int, width: int) -> np.ndarray:
    """Make uint8 [H, W, 4]: noise, black and white noise (overshoot clips), a gradient (ties), or flat patches."""
    places = np.arange(height * width * 4, dtype=np.uint64).reshape(height, width, 4)
    noise = (mixed(places + np.uint64((case + 1) << 32)) >> np.uint64(40)).astype(np.uint8)
    kind = (case + case // 4) % 4
    if kind == 0:
        return noise
    if kind == 1:
        return (noise & np.uint8(1)) * np.uint8(255)
    rows, columns, channels = np.indices((height, width, 4))
    if kind == 2:
        gradient: np.ndarray = (rows * (1 + case % 7) + columns * (1 + case % 5) + 60 * channels) % 256
        return gradient.astype(np.uint8)
    patches: np.ndarray = noise[rows // 8, columns // 8, channels]
    return patches


def rgb(array: np.ndarray) -> Image.Image:
    """Return the first three channels as a Pillow image."""
    return Image.fromarray(np.ascontiguousarray(array[:, :, :3]))


def _resized(name: str) -> Callable[[np.ndarray, Size], Image.Image]:
    return lambda array, size: rgb(array).resize((size[1], size[0]), Image.Resampling[name.upper()])


def _classic(array: np.ndarray, _: Size) -> Image.Image:
    """Do what torchvision's Resize(64) and CenterCrop(56) do with a Pillow image; long and narrow ones are cut first."""
    image = rgb(array[: 8 * array.shape[1], : 8 * array.shape[0]])
    width, height = image.size
    short, long = min(width, height), max(width, height)
    new_long = int(64 * long / short)
    image = image.resize((64, new_long) if width <= height else (new_long, 64), Image.Resampling.BILINEAR)
    top, left = round((image.height - 56) / 2.0), round((image.width - 56) / 2.0)
    return image.crop((left, top, left + 56, top + 56))


def _letterbox(array: np.ndarray, _: Size) -> Image.Image:
    return ImageOps.pad(rgb(array[: 8 * array.shape[1], : 8 * array.shape[0]]), (BOX[1], BOX[0]), Image.Resampling.BICUBIC, COLOUR)


def _pasted(array: np.ndarray, _: Size) -> Image.Image:
    image = Image.fromarray(array)
    background = Image.new("RGB", image.size, COLOUR)
    background.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return background


def _composited(array: np.ndarray, _: Size) -> Image.Image:
    image = Image.fromarray(array)
    return Image.alpha_composite(Image.new("RGBA", image.size, (*COLOUR, 255)), image).convert("RGB")


#: Step → what training code does for it.
REFERENCES: dict[str, Callable[[np.ndarray, Size], Image.Image]] = {
    **{f"resize_{name}": _resized(name) for name in FILTERS},
    "shorter_side_and_center_crop": _classic,
    "letterbox": _letterbox,
    "fixed_crop": lambda array, _: rgb(array).crop((-3, 5, 40, 31)),
    "border": lambda array, _: ImageOps.expand(rgb(array), (1, 2, 3, 4), COLOUR),
    "flip_horizontal": lambda array, _: rgb(array).transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "flip_vertical": lambda array, _: rgb(array).transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    "grey": lambda array, _: rgb(array).convert("L"),
    "grey_to_rgb": lambda array, _: rgb(array).convert("L").convert("RGB"),
    "background_paste": _pasted,
    "background_alpha_composite": _composited,
}


def order_of_passes() -> str:
    """Say which order the installed Pillow takes where the known ones differ, by its behaviour."""
    high, line = _is_vertical_first((90, 24), (20, 19)), _is_vertical_first((210, 2), (20, 7))
    known = {(False, False): "pillow<13", (False, True): "pillow>=12.2,<13", (True, True): "pillow>=13"}
    if (high, line) not in known:
        raise SystemExit(f"Pillow {PIL.__version__} resizes in an order that is none of {', '.join(known.values())}")
    return known[high, line]


def _is_vertical_first(size_in: Size, size: Size) -> bool:
    image = rgb(content(0, *size_in))
    bicubic = Image.Resampling.BICUBIC
    whole, by_height, by_width = (
        image.resize((size[1], size[0]), bicubic).tobytes(),
        image.resize((size_in[1], size[0]), bicubic).resize((size[1], size[0]), bicubic).tobytes(),
        image.resize((size[1], size_in[0]), bicubic).resize((size[1], size[0]), bicubic).tobytes(),
    )
    if by_height == by_width or whole not in (by_height, by_width):
        raise SystemExit(f"Pillow {PIL.__version__} resizes in passes we do not know")
    return whole == by_height


def main() -> None:
    """Write the results of every step."""
    count, directory = int(sys.argv[1]), Path(sys.argv[2])
    results: dict[str, list[np.ndarray]] = {name: [] for name in REFERENCES}
    for array, size in cases(count):
        for name, reference in REFERENCES.items():
            results[name].append(np.asarray(reference(array, size)).reshape(-1))
    for name, arrays in results.items():
        np.save(directory / f"{name}.npy", np.concatenate(arrays))
    about = {"pillow": PIL.__version__, "numpy": np.__version__, "semantics": order_of_passes(), "cases": count}
    (directory / "about.json").write_text(json.dumps(about))


if __name__ == "__main__":
    main()
