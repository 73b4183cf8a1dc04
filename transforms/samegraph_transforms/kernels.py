"""Host kernels: native code that may stand in for a function's ONNX body, once shown equal on this machine.

The ONNX body is the contract; Pillow's own resize is faster. A kernel is used for a node only after a fixed battery of
`BATTERY_CASES` images, run through the package's own function body and through the kernel, gave the same bytes every time.
The verdict is kept in a small file whose name is the hash of everything it depends on: the function bodies and attributes,
Pillow's version and its compiled core, NumPy, ONNX Runtime, the CPU and the battery itself. Losing the file costs a fraction
of a second; a changed library or CPU is another file.

A resize that only a crop reads is one kernel with it, which leaves out most of what the crop throws away: see `resize_window`.

Either order of Pillow's two passes can be had from any Pillow version by two calls that change one axis each, so a package
trained under Pillow 12 gets a fast kernel under Pillow 13. Which order the installed Pillow takes by itself is probed by
behaviour, never read off its version.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import onnx
import onnxruntime as ort
import PIL
from onnx import helper, numpy_helper
from PIL import Image, _imaging

from . import opencv_kernels
from .errors import InputError, SamegraphError
from .executor import Executor
from .functions import (
    FILTERS,
    PAD_MODES,
    PLACES,
    RADIUS,
    ROUNDINGS,
    SEMANTICS,
    SIZE_RULES,
    FilterName,
    PadMode,
    Place,
    Rounding,
    Semantics,
    pad_mode_function,
    pad_to_function,
    resize_by_function,
    resize_function,
)
from .opsets import DOMAIN, IR_VERSION, opset_imports
from .torch_functions import ARITHMETICS, TORCH_FILTERS, torch_resize_function

#: Raised whenever the cases or their comparison change, so that old verdicts are not taken for new ones.
BATTERY_VERSION: Final = 2
#: Images every kernel is compared on, per function and attributes.
BATTERY_CASES: Final = 48

#: Most pixels of a resized image: a shorter side of 256 makes 65,500 × 1 pixels, a file of 200 bytes, 16 GB. Pillow's own warning limit.
MAX_RESIZED_PIXELS: Final = 89_478_485
#: Pillow's crop warns above the same number: larger images are cropped as arrays, and resized whole.
_MOST_CROPPED: Final = 2**26
#: Above 32 MB the allocator takes every copy's memory anew from the system, which costs more than resizing what a copy would leave out.
_MOST_COPIED: Final = 2**23

T = TypeVar("T", int, float)
MakeExecutor = Callable[[onnx.ModelProto], Executor]
Size = tuple[int, int]
Window = tuple[int, int, int, int]  # top, left, bottom, right
Colour = tuple[int, int, int]

EMPTY_IMAGE: Final = "the image is too small: the crop before the resize leaves nothing of it"

_RESAMPLING: Final[dict[FilterName, Image.Resampling]] = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}


class Pixels:
    """An image on its way between host steps: a Pillow image, an array, or both, converted when first asked for.

    Decode, convert, crop and resize then go on with Pillow's own buffer instead of packing and unpacking it at every step.
    Not shared between threads: every call makes its own.
    """

    __slots__ = ("_array", "_image")

    def __init__(self, *, image: Image.Image | None = None, array: np.ndarray | None = None) -> None:
        assert (image is None) != (array is None)
        self._image = image
        self._array = array

    @property
    def size(self) -> Size:
        """Height and width."""
        if self._image is not None:
            return self._image.height, self._image.width
        assert self._array is not None
        return self._array.shape[0], self._array.shape[1]

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self._image.getbands()) if self._image is not None else self.array().shape[2]

    @property
    def held_image(self) -> Image.Image | None:
        """The Pillow image (L, LA, RGB or RGBA), if there is one already."""
        return self._image

    def array(self) -> np.ndarray:
        """Return uint8 [H, W, C], possibly read-only."""
        if self._array is None:
            assert self._image is not None
            array = np.asarray(self._image)
            self._array = array[:, :, np.newaxis] if array.ndim == 2 else array
        return self._array

    def image(self) -> Image.Image:
        """Return a Pillow image; the array must have 1 to 4 channels."""
        if self._image is None:
            array = self.array()
            self._image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
        return self._image


Kernel = Callable[[Pixels], Pixels]


@dataclass(frozen=True)
class Proof:
    """Whether a kernel may stand in for a function, and how that is known.

    Attributes:
        function: Name of the ONNX function.
        equal: Whether every case gave the same bytes.
        cases: How many images were compared; 0 when the battery could not run.
        battery: Version of the battery.
        key: Hash of everything the verdict depends on.
        detail: The first case that differed, or why the battery could not run; empty when equal.
    """

    function: str
    equal: bool
    cases: int
    battery: int
    key: str
    detail: str = ""


# ---------------------------------------------------------------- Pillow's resize in either order


def vertical_first(semantics: Semantics, size_in: Size, size_out: Size) -> bool:
    """Whether the stated Pillow runs the vertical pass first for these (height, width) sizes."""
    lost_height, lost_width = size_in[0] - size_out[0], size_in[1] - size_out[1]
    if semantics == "pillow>=12.2,<13":
        return lost_height > 0 and size_in[0] > 100 * size_in[1]
    return semantics == "pillow>=13" and lost_height > 0 and lost_height > 2 * lost_width


def check_size(size: Size) -> None:
    """Check that a resized image of this (height, width) may be made.

    Raises:
        InputError: `too_many_pixels`, it has more than `MAX_RESIZED_PIXELS`.
    """
    height, width = size
    if height * width > MAX_RESIZED_PIXELS:
        raise InputError(
            f"the image would be resized to {width:,} × {height:,} = {width * height:,} pixels, being so long and narrow; the limit is "
            f"{MAX_RESIZED_PIXELS:,}. Send a part of it",
            code="too_many_pixels",
        )


def resize_image(image: Image.Image, size: Size, filter: FilterName, semantics: Semantics) -> Image.Image:  # noqa: A002 - Pillow's word
    """Resize an L or RGB image with the installed Pillow so that the result is the stated Pillow's.

    Args:
        image: Mode L or RGB (modes with alpha would be premultiplied by Pillow).
        size: Height and width wanted, each >= 1.
        filter: Pillow's filter of that name.
        semantics: Whose order of passes.

    Raises:
        InputError: As `check_size`.
    """
    check_size(size)
    height, width = size
    size_in = (image.height, image.width)
    resample = _RESAMPLING[filter]
    first_vertical = vertical_first(semantics, size_in, size)
    native = native_semantics()
    one_pass = height == image.height or width == image.width or filter == "nearest"
    if one_pass or (native is not None and vertical_first(native, size_in, size) == first_vertical):
        return image.resize((width, height), resample)
    between = (image.width, height) if first_vertical else (width, image.height)
    return image.resize(between, resample).resize((width, height), resample)


def resize_window(image: Image.Image, size: Size, window: Window, filter: FilterName, semantics: Semantics) -> Image.Image:  # noqa: A002
    """Return the part of `resize_image`'s result inside `window`, with the same bits for less work.

    The passes are made one by one. A pass treats every line across it by itself, so the first is made only on the lines that the second
    needs for the window, and the second only on those inside it. Along its own axis a pass leaves out what the window does where Pillow's
    `box` says that exactly (see `_edges`), and makes the whole axis where it does not. 640×427 → 383×256 → 224×224, bilinear: 1.44 ms
    instead of 1.77.

    Args:
        image: Mode L or RGB.
        size: Height and width of the whole resized image, each >= 1.
        window: The part wanted, inside that size and not empty.
        filter: Pillow's filter of that name.
        semantics: Whose order of passes.

    Raises:
        InputError: As `check_size`.
    """
    check_size(size)
    top, left, bottom, right = window
    size_in = (image.height, image.width)
    largest = (max(a, b) for a, b in zip(size_in, size, strict=True))
    # Nearest neighbour costs no more than the pixels it makes, and a box would add its positions up from another place.
    if window == (0, 0, *size) or math.prod(largest) > _MOST_CROPPED or filter == "nearest":
        return resize_image(image, size, filter, semantics).crop((left, top, right, bottom))
    rows = _Axis(1, size_in[0], size[0], top, bottom, filter)
    columns = _Axis(0, size_in[1], size[1], left, right, filter)
    first, second = (rows, columns) if vertical_first(semantics, size_in, size) else (columns, rows)
    start, stop = second.reach() if math.prod(size_in) <= _MOST_COPIED else (0, second.size_in)
    return second.resize(first.resize(second.cut(image, start, stop), 0), start)


@dataclass(frozen=True)
class _Axis:
    """One axis of a windowed resize (0: width, 1: height): `size_in` positions become `size`, of which `start` to `stop` are wanted."""

    axis: int
    size_in: int
    size: int
    start: int
    stop: int
    filter: FilterName

    def reach(self) -> tuple[int, int]:
        """Return the first of the input positions that the wanted ones depend on, and the one after the last; one or two to spare."""
        if self.size == self.size_in:
            return self.start, self.stop
        scale = self.size_in / self.size
        support = RADIUS[self.filter] * max(scale, 1.0) + 2
        return max(0, int((self.start + 0.5) * scale - support)), min(self.size_in, int((self.stop - 0.5) * scale + support) + 1)

    def resize(self, image: Image.Image, origin: int) -> Image.Image:
        """Make the pass along this axis and keep what is wanted. The image's first position is `origin` of `size_in`."""
        if self.size == self.size_in:
            return self.cut(image, self.start - origin, self.stop - origin)
        resample = _RESAMPLING[self.filter]
        edges = _edges(self.size_in, self.size, self.start, self.stop)
        if edges is not None:
            box = self._box(image, edges[0] - origin, edges[1] - origin)
            return image.resize(self._sized(image, self.stop - self.start), resample, box)
        whole = self.cut(image, -origin, self.size_in - origin)  # what was left out becomes zeros, which only unwanted positions see
        return self.cut(whole.resize(self._sized(image, self.size), resample), self.start, self.stop)

    def cut(self, image: Image.Image, start: int, stop: int) -> Image.Image:
        """Return positions `start` to `stop` along this axis."""
        return image if (start, stop) == (0, image.size[self.axis]) else image.crop(self._box(image, start, stop))

    def _sized(self, image: Image.Image, size: int) -> tuple[int, int]:
        return (size, image.height) if self.axis == 0 else (image.width, size)

    def _box(self, image: Image.Image, start: T, stop: T) -> tuple[T | int, T | int, T | int, T | int]:
        return (start, 0, stop, image.height) if self.axis == 0 else (0, start, image.width, stop)


def _edges(size_in: int, size: int, start: int, stop: int) -> tuple[float, float] | None:
    """Return where output positions `start` to `stop` lie in the input, or None where Pillow would round that.

    Pillow takes a box in float32, and from it the scale and the centre of every tap in double. With p / q the scale in lowest terms, q a
    power of two and every position times p below 2^24, nothing in that is rounded, so a box gives the very weights that the whole axis has
    there. A shorter side of 256 is always such a case, below 65,536 pixels.
    """
    divisor = math.gcd(size_in, size)
    p, q = size_in // divisor, size // divisor
    if q & (q - 1) or stop * p >= 2**24:
        return None
    return start * p / q, stop * p / q


@cache
def native_semantics() -> Semantics | None:
    """Find out whose order of passes the installed Pillow takes, by resizing noise; None when it is neither we know."""
    # Tall to small, height down and width up, wide to small, both sides of the turn at twice the width lost, and a line of an image.
    shapes = [
        ((90, 24), (20, 19)),
        ((61, 40), (20, 60)),
        ((40, 90), (19, 20)),
        ((60, 40), (20, 20)),
        ((61, 40), (20, 20)),
        ((24, 20), (50, 41)),
        ((210, 2), (20, 7)),
    ]
    for semantics in SEMANTICS:
        if all(_takes_order(semantics, size_in, size_out) for size_in, size_out in shapes):
            return semantics
    return None


def _takes_order(semantics: Semantics, size_in: Size, size_out: Size) -> bool:
    image = Image.fromarray(np.random.default_rng(13).integers(0, 256, (*size_in, 3), dtype=np.uint8))
    height, width = size_out
    between = (image.width, height) if vertical_first(semantics, size_in, size_out) else (width, image.height)
    bicubic = Image.Resampling.BICUBIC
    two_calls = image.resize(between, bicubic).resize((width, height), bicubic)
    return two_calls.tobytes() == image.resize((width, height), bicubic).tobytes()


# ---------------------------------------------------------------- the kernels


def to_rgb(pixels: Pixels) -> Pixels:
    """Copy grey to three channels, drop alpha."""
    if pixels.held_image is not None:
        return pixels if pixels.held_image.mode == "RGB" else Pixels(image=pixels.held_image.convert("RGB"))
    array = pixels.array()
    if array.shape[2] >= 3:
        return Pixels(array=array[:, :, :3])
    return Pixels(array=np.repeat(array[:, :, :1], 3, axis=2))


def to_l(pixels: Pixels) -> Pixels:
    """Make it one channel, with Pillow's weights; alpha has no say."""
    return Pixels(image=_filled(pixels).convert("L"))


def on_background(pixels: Pixels, colour: Colour) -> Pixels:
    """Show what a background of one colour leaves visible through the alpha: three channels."""
    if pixels.channels in (1, 3):
        return to_rgb(pixels)
    image = _filled(pixels).convert("RGBA")
    background = Image.new("RGBA", image.size, (*colour, 255))
    return Pixels(image=Image.alpha_composite(background, image).convert("RGB"))


def flip(pixels: Pixels, axis: int) -> Pixels:
    """Turn the lines (axis 0) or the columns (axis 1) around."""
    if pixels.held_image is None:
        return Pixels(array=np.flip(pixels.array(), axis))
    how = Image.Transpose.FLIP_TOP_BOTTOM if axis == 0 else Image.Transpose.FLIP_LEFT_RIGHT
    return Pixels(image=pixels.held_image.transpose(how))


def cut(pixels: Pixels, window: Window, colour: Sequence[int]) -> Pixels:
    """Cut `window` out; `colour`, one level or one for each channel, where it reaches beyond the image."""
    top, left, bottom, right = window
    out = np.empty((bottom - top, right - left, pixels.channels), dtype=np.uint8)
    out[:] = colour
    part = pixels.array()[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    row, column = max(-top, 0), max(-left, 0)
    out[row : row + part.shape[0], column : column + part.shape[1]] = part
    return Pixels(array=out)


def pad_by(pixels: Pixels, amounts: Sequence[int], mode: PadMode) -> Pixels:
    """Put a border of (top, left, bottom, right) lines around the image that continues it, as `numpy.pad` does in that mode."""
    if min(pixels.size) < 1:
        raise InputError(EMPTY_IMAGE, code="wrong_shape")
    top, left, bottom, right = amounts
    return Pixels(array=np.pad(pixels.array(), ((top, bottom), (left, right), (0, 0)), mode))


def five_crop(pixels: Pixels, size: Size) -> Pixels:
    """Cut out the four corners and the centre: uint8 [5, h, w, C], top left and right, bottom left and right, centre.

    Raises:
        InputError: `wrong_shape`, the image is smaller than the crops.
    """
    check_crops(size, pixels.size)
    return Pixels(array=_five(pixels.array(), size))


def ten_crop(pixels: Pixels, size: Size, axis: int) -> Pixels:
    """Do what `five_crop` does, then the same with the image flipped (axis 0: top and bottom): uint8 [10, h, w, C].

    Raises:
        InputError: As `five_crop`.
    """
    check_crops(size, pixels.size)
    array = pixels.array()
    return Pixels(array=np.concatenate([_five(array, size), _five(np.flip(array, axis), size)]))


def check_crops(crops: Size, size: Sequence[int]) -> None:
    """Check that an image of (height, width) `size` is large enough for five or ten crops.

    Raises:
        InputError: `wrong_shape`, it is not.
    """
    (height, width), (image_height, image_width) = crops, size
    if image_height < height or image_width < width:
        raise InputError(
            f"the image is {image_width} × {image_height} pixels where crops of {width} × {height} are cut out of it (width × height); "
            "send one that is at least as large",
            code="wrong_shape",
        )


def five_windows(size_in: Size, size: Size) -> list[Window]:
    """Return where the five crops of `size` lie in an image that is large enough, in `five_crop`'s order."""
    height, width = size
    bottom, right = size_in[0] - height, size_in[1] - width
    center = (center_offset(bottom, "half_even"), center_offset(right, "half_even"))
    return [(top, left, top + height, left + width) for top, left in ((0, 0), (0, right), (bottom, 0), (bottom, right), center)]


def _five(array: np.ndarray, size: Size) -> np.ndarray:
    windows = five_windows((array.shape[0], array.shape[1]), size)
    return np.stack([array[top:bottom, left:right] for top, left, bottom, right in windows])


def canvas_window(size_in: Size, size: Size, place: Place, rounding: Rounding) -> Window:
    """Return where a canvas of `size` lies, seen from the image that is put on it."""
    missing = (size[0] - size_in[0], size[1] - size_in[1])
    before = {"top_left": (0, 0), "bottom_right": missing}.get(place)
    top, left = before or (center_offset(missing[0], rounding), center_offset(missing[1], rounding))
    return -top, -left, size[0] - top, size[1] - left


def _filled(pixels: Pixels) -> Image.Image:
    if min(pixels.size) < 1:
        raise InputError(EMPTY_IMAGE, code="wrong_shape")
    return pixels.image()


def size_by(rule: str, size_in: Size, size: Sequence[int], multiple: int = 1) -> Size:
    """Return the (height, width) that a rule of `functions.SIZE_RULES` makes of an image's; see the docstring there.

    Args:
        rule: One of the rules.
        size_in: Height and width of the image, each >= 1.
        size: The shorter or longer side, both of them, or height and width of the box.
        multiple: What both sides are to be a multiple of.
    """
    height, width = size_in
    if rule == "capped":
        free = shorter_side_size(size_in, size[0])
        long = max(free)
        return (max(int(size[1] * free[0] / long), 1), max(int(size[1] * free[1] / long), 1)) if long > size[1] else free
    if rule == "contain":
        box_height, box_width = size
        wider, taller = width / height > box_width / box_height, width / height < box_width / box_height
        contained = round(height / width * box_width) if wider else box_height, round(width / height * box_height) if taller else box_width
        return max(contained[0], 1), max(contained[1], 1)
    by, _, rounding = rule.partition("_")
    whole = _WHOLE[rounding]
    if by == "inside":
        scale = min(size[0] / height, size[1] / width)
        exact = (height * scale, width * scale)
    elif by in ("within", "cover"):
        scale = (max if by == "within" else min)(height / size[0], width / size[1])
        exact = (height / scale, width / scale)
    else:
        reference = min(size_in) if by == "shorter" else max(size_in)
        exact = (size[0] * height / reference, size[0] * width / reference)
    return max(whole(exact[0] / multiple), 1) * multiple, max(whole(exact[1] / multiple), 1) * multiple


_WHOLE: Final[dict[str, Callable[[float], int]]] = {"int": int, "round": round, "ceil": math.ceil}


def shorter_side_size(size_in: Size, shorter: int) -> Size:
    """Return the (height, width) whose shorter side is `shorter`; the longer one is cut to an integer, as torchvision does."""
    short = min(size_in)
    return int(size_in[0] * shorter / short), int(size_in[1] * shorter / short)


def fraction_size(size_in: Size, fraction: float) -> Size:
    """Return the square of side int(fraction × shorter side)."""
    side = int(fraction * min(size_in))
    return side, side


def center_offset(margin: int, rounding: Rounding) -> int:
    """Return where a centred crop starts when `margin` pixels are left over (negative: missing)."""
    if rounding == "floor":
        return margin // 2
    if rounding == "ceil" or margin < 0:
        return (margin + 1) // 2
    return margin // 2 if rounding == "toward_zero" else round(margin / 2)


def center_window(size_in: Size, size: Size, rounding: Rounding) -> Window:
    """Return where the centred `size` (height, width) lies; it begins before 0 where the image is smaller."""
    top, left = (center_offset(have - want, rounding) for have, want in zip(size_in, size, strict=True))
    return top, left, top + size[0], left + size[1]


def crop(pixels: Pixels, window: Window) -> Pixels:
    """Cut `window` out; zeros where the image is smaller."""
    top, left, bottom, right = window
    image = pixels.held_image
    if image is not None and 0 < (bottom - top) * (right - left) < _MOST_CROPPED:
        return Pixels(image=image.crop((left, top, right, bottom)))
    return Pixels(array=_crop_array(pixels.array(), top, left, bottom, right))


def resize(pixels: Pixels, size: Size, filter: FilterName, semantics: Semantics) -> Pixels:  # noqa: A002 - Pillow's word
    """Resize every channel by itself; see `resize_image`.

    Raises:
        InputError: As `resize_image`; or `wrong_shape`, the image is empty (a crop left nothing of it).
    """
    return _each_plane(pixels, lambda image: resize_image(image, size, filter, semantics))


def resize_and_crop(pixels: Pixels, size: Size, window: Window, filter: FilterName, semantics: Semantics) -> Pixels:  # noqa: A002
    """Resize, then crop, as `resize` and `crop` one after the other would.

    Raises:
        InputError: As `resize`.
    """
    top, left, bottom, right = window
    if not (0 <= top < bottom <= size[0] and 0 <= left < right <= size[1]):
        return crop(resize(pixels, size, filter, semantics), window)
    return _each_plane(pixels, lambda image: resize_window(image, size, window, filter, semantics))


def _each_plane(pixels: Pixels, change: Callable[[Image.Image], Image.Image]) -> Pixels:
    """Change a Pillow image of the pixels: one of all channels, or one for each where Pillow would see alpha in them."""
    if min(pixels.size) < 1:
        raise InputError(EMPTY_IMAGE, code="wrong_shape")
    if pixels.channels in (1, 3):
        return Pixels(image=change(pixels.image()))
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(pixels.array(), 2, 0)]
    return Pixels(array=np.stack([np.asarray(change(plane)) for plane in planes], axis=2))


def _crop_array(array: np.ndarray, top: int, left: int, bottom: int, right: int) -> np.ndarray:
    height, width = array.shape[:2]
    if top >= 0 and left >= 0 and bottom <= height and right <= width:
        return array[top:bottom, left:right]
    out = np.zeros((bottom - top, right - left, array.shape[2]), dtype=array.dtype)
    part = array[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    row, column = max(-top, 0), max(-left, 0)
    out[row : row + part.shape[0], column : column + part.shape[1]] = part
    return out


def host_kernel(node: onnx.NodeProto, then: onnx.NodeProto | None = None) -> Kernel | None:
    """Return the kernel that may compute `node` (a call of one of our functions), or None when there is none.

    Args:
        node: The call.
        then: A call that reads its result, where the kernel is to compute both: a crop after a resize.
    """
    try:
        if then is not None:
            resizing, window = _resizing(node), _cropping(then)
            return None if resizing is None or window is None else _resize_and_crop_kernel(resizing, window)
        if node.domain == DOMAIN and node.op_type in _PLAIN:
            return _PLAIN[node.op_type]
        if (resizing := _resizing(node)) is not None:
            return _resize_kernel(resizing)
        if (window := _cropping(node)) is not None:
            return _crop_kernel(window)
        if (crops := crops_of(node)) is not None:
            return _crops_kernel(node, crops[1])
        if is_opencv(node):
            return _opencv_kernel(node)
        if node.domain == DOMAIN and "colour" in _attributes(node):
            return _colour_kernel(node)
        if node.domain == DOMAIN and node.op_type in _pad_functions():
            mode, amounts = _pad_functions()[node.op_type], [int(amount) for amount in np.asarray(_attributes(node)["amounts"])]
            return lambda pixels: pad_by(pixels, amounts, mode)
    except (KeyError, TypeError, ValueError):  # attributes we would not write: the ONNX body decides what they mean
        pass
    return None


_PLAIN: Final[dict[str, Kernel]] = {
    "ToRGB": to_rgb,
    "ToL": to_l,
    "FlipVertical": partial(flip, axis=0),
    "FlipHorizontal": partial(flip, axis=1),
    "ReverseChannels": lambda pixels: Pixels(array=pixels.array()[:, :, ::-1]),
}


def is_opencv(node: onnx.NodeProto) -> bool:
    """Whether `node` calls a function that OpenCV computes, if it is installed."""
    return node.domain == DOMAIN and opencv_kernels.is_opencv(node.op_type)


def kernel_library(node: onnx.NodeProto) -> str:
    """Name the library behind the host kernel of `node`, with its version."""
    return f"OpenCV {opencv_kernels.cv2_version()}" if is_opencv(node) else f"Pillow {PIL.__version__}"


def _opencv_kernel(node: onnx.NodeProto) -> Kernel | None:
    found = opencv_kernels.resizing(node)
    kernel = None if found is None else opencv_kernels.resize_kernel(found[1])
    if found is None or kernel is None:
        return None
    size_of, resize_to = found[0], kernel

    def run(pixels: Pixels) -> Pixels:
        if min(pixels.size) < 1:
            raise InputError(EMPTY_IMAGE, code="wrong_shape")
        size = size_of(pixels.size)
        check_size(size)
        return Pixels(array=resize_to(pixels.array(), size))

    return run


def _colour_kernel(node: onnx.NodeProto) -> Kernel | None:
    """Return the kernel for a function with a colour: a background, or a border."""
    attributes = _attributes(node)
    colour = [int(level) for level in np.asarray(attributes["colour"])]
    if node.op_type == "OnBackground":
        red, green, blue = colour
        return lambda pixels: on_background(pixels, (red, green, blue))
    if node.op_type == "PadBy":
        top, left, bottom, right = (int(amount) for amount in np.asarray(attributes["amounts"]))
        return lambda pixels: cut(pixels, (-top, -left, pixels.size[0] + bottom, pixels.size[1] + right), colour)
    name, _, rounding = node.op_type.partition("_")
    if name == "CenterCropOn" and rounding in ROUNDINGS:
        crop_size = _size(attributes)
        return lambda pixels: cut(pixels, center_window(pixels.size, crop_size, rounding), colour)
    if (placed := _canvas_functions().get(node.op_type)) is not None:
        size = _size(attributes)
        return lambda pixels: cut(pixels, canvas_window(pixels.size, size, *placed), colour)
    return None


@cache
def _canvas_functions() -> dict[str, tuple[Place, Rounding]]:
    return {pad_to_function(place, rounding): (place, rounding) for place, rounding in itertools.product(PLACES, ROUNDINGS)}


@cache
def _pad_functions() -> dict[str, PadMode]:
    return {pad_mode_function(mode): mode for mode in PAD_MODES}


def _crops_kernel(node: onnx.NodeProto, size: Size) -> Kernel:
    axis = _FLIP_AXES.get(node.op_type)
    return partial(five_crop, size=size) if axis is None else partial(ten_crop, size=size, axis=axis)


_FLIP_AXES: Final = {"TenCropVertical": 0, "TenCropHorizontal": 1}


def crops_of(node: onnx.NodeProto) -> tuple[int, Size] | None:
    """Return how many crops a node makes of an image, and their (height, width); None for a node whose result is one image."""
    if node.domain != DOMAIN or (node.op_type != "FiveCrop" and node.op_type not in _FLIP_AXES):
        return None
    try:
        return 5 if node.op_type == "FiveCrop" else 10, _size(_attributes(node))
    except (KeyError, TypeError, ValueError):
        return None


@dataclass(frozen=True)
class _Resizing:
    """What a call of a resize function asks for."""

    size: Callable[[Size], Size]
    filter: FilterName
    semantics: Semantics


def _resize_kernel(r: _Resizing) -> Kernel:
    return lambda pixels: resize(pixels, r.size(pixels.size), r.filter, r.semantics)


def _crop_kernel(window: Callable[[Size], Window]) -> Kernel:
    return lambda pixels: crop(pixels, window(pixels.size))


def _resize_and_crop_kernel(r: _Resizing, window: Callable[[Size], Window]) -> Kernel:
    def kernel(pixels: Pixels) -> Pixels:
        size = r.size(pixels.size)
        return resize_and_crop(pixels, size, window(size), r.filter, r.semantics)

    return kernel


def _resizing(node: onnx.NodeProto) -> _Resizing | None:
    found = _resize_functions().get(node.op_type) if node.domain == DOMAIN else None
    if found is None:
        return None
    filter_, semantics, rule = found
    attributes = _attributes(node)
    if rule == "size":
        size = _size(attributes)
        return _Resizing(lambda _: size, filter_, semantics)
    # An empty image has no side to divide by; `resize` says what is wrong with it.
    if rule == "shorter":
        shorter = int(np.asarray(attributes["size"]))
        return _Resizing(lambda size_in: shorter_side_size(size_in, shorter) if min(size_in) else (1, 1), filter_, semantics)
    wanted = [int(v) for v in np.asarray(attributes["size"])]
    (multiple,) = (int(v) for v in np.asarray(attributes["multiple"]))
    return _Resizing(lambda size_in: size_by(rule, size_in, wanted, multiple) if min(size_in) else (1, 1), filter_, semantics)


@cache
def _resize_functions() -> dict[str, tuple[FilterName, Semantics, str]]:
    """Return filter, semantics and rule of every resize function; the rule is `size`, `shorter` or one of `SIZE_RULES`."""
    found: dict[str, tuple[FilterName, Semantics, str]] = {}
    for name, semantics in itertools.product(FILTERS, SEMANTICS):
        found[resize_function(name, semantics)] = (name, semantics, "size")
        found[resize_function(name, semantics, shorter_side=True)] = (name, semantics, "shorter")
        found |= {resize_by_function(rule, name, semantics): (name, semantics, rule) for rule in SIZE_RULES}
    return found


def _cropping(node: onnx.NodeProto) -> Callable[[Size], Window] | None:
    if node.domain == DOMAIN and node.op_type == "CropBox":
        box = _crop_box(node)
        return lambda _: box
    name, _, rounding = node.op_type.partition("_")
    if node.domain != DOMAIN or rounding not in ROUNDINGS:
        return None
    if name == "CenterCrop":
        size = _size(_attributes(node))
        return lambda size_in: center_window(size_in, size, rounding)
    if name == "CenterCropFraction":
        fraction = _fraction(_attributes(node))
        return lambda size_in: center_window(size_in, fraction_size(size_in, fraction), rounding)
    return None


def _crop_box(node: onnx.NodeProto) -> Window:
    attributes = _attributes(node)
    top, left = (int(v) for v in np.asarray(attributes["offset"]))
    height, width = _size(attributes)
    return top, left, top + height, left + width


def resized_size(node: onnx.NodeProto) -> Callable[[Size], Size] | None:
    """Return how a resize node makes its size out of the image's, None for any other node."""
    try:
        if is_opencv(node) and (found := opencv_kernels.resizing(node)) is not None:
            return found[0]
        resizing = _resizing(node)
        return _torch_size(node) if resizing is None else resizing.size
    except (KeyError, TypeError, ValueError):
        return None


def _torch_size(node: onnx.NodeProto) -> Callable[[Size], Size] | None:
    """Do the same for a resize as PyTorch's, which has no kernel: no native code of it is here to stand in."""
    if node.domain != DOMAIN or node.op_type not in _TORCH_FUNCTIONS:
        return None
    attributes = _attributes(node)
    if _TORCH_FUNCTIONS[node.op_type]:
        shorter = int(np.asarray(attributes["size"]))
        return lambda size_in: shorter_side_size(size_in, shorter)
    size = _size(attributes)
    return lambda _: size


#: Whether the attribute `size` is the shorter side.
_TORCH_FUNCTIONS: Final = {
    torch_resize_function(filter_, arithmetic, shorter_side=shorter): shorter
    for filter_, arithmetic, shorter in itertools.product(TORCH_FILTERS, ARITHMETICS, (False, True))
}


def size_after(node: onnx.NodeProto) -> Callable[[Size], Size] | None:
    """Return what (height, width) one of our functions makes of an image of a (height, width), None for a node that is none of them."""
    if node.domain != DOMAIN:
        return None
    if node.op_type in _SAME_SIZE:
        return lambda size: size
    try:
        if (resizing := _resizing(node)) is not None:
            return lambda size: resizing.size(size) if min(size) else size
        if is_opencv(node) and (found := opencv_kernels.resizing(node)) is not None:
            return found[0]
        if (window := _cropping(node)) is not None:
            return lambda size: _window_size(window(size))
        attributes = _attributes(node)
        if node.op_type == "PadBy" or node.op_type in _pad_functions():
            top, left, bottom, right = (int(amount) for amount in np.asarray(attributes["amounts"]))
            return lambda size: (size[0] + top + bottom, size[1] + left + right)
        if node.op_type in _canvas_functions() or node.op_type.startswith("CenterCropOn_"):
            fixed = _size(attributes)
            return lambda _: fixed
    except (KeyError, TypeError, ValueError):
        pass
    return None


_SAME_SIZE: Final = ("ToRGB", "ToL", "OnBackground", "FlipHorizontal", "FlipVertical", "ReverseChannels")


def _window_size(window: Window) -> Size:
    return window[2] - window[0], window[3] - window[1]


def crop_fraction(node: onnx.NodeProto) -> float | None:
    """Return the fraction of a CenterCropFraction node, None when it has none."""
    attributes = _attributes(node)
    return _fraction(attributes) if "fraction" in attributes else None


def _fraction(attributes: Mapping[str, object]) -> float:
    return float(np.ravel(np.asarray(attributes["fraction"]))[0])


def _size(attributes: Mapping[str, object]) -> Size:
    height, width = (int(v) for v in np.asarray(attributes["size"]))
    return height, width


def _attributes(node: onnx.NodeProto) -> dict[str, object]:
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {name: numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else v for name, v in values.items()}


# ---------------------------------------------------------------- the battery


def prove(
    node: onnx.NodeProto,
    functions: Sequence[onnx.FunctionProto],
    make_executor: MakeExecutor,
    *,
    then: onnx.NodeProto | None = None,
    cache_dir: Path | None = None,
) -> Proof:
    """Find out whether the host kernel for `node` gives what its function body gives on this machine.

    Args:
        node: A call of a function that has a host kernel.
        functions: The package's functions: the body the kernel is compared with, and what that calls.
        make_executor: How ONNX graphs are run.
        then: The call after it, where the kernel computes both; see `host_kernel`.
        cache_dir: Where verdicts are kept; None for `default_cache_dir()`.

    Returns:
        The verdict, from the cache when nothing it depends on has changed.
    """
    calls = _calls(node, then)
    key = _key(calls, functions)
    directory = cache_dir if cache_dir is not None else default_cache_dir()
    known = _read_verdict(directory / f"{key}.json", key)
    if known is not None:
        return known
    proof = _run_battery(node, then, calls, functions, make_executor, key)
    if proof.cases:
        _write_verdict(directory, proof)
    return proof


def default_cache_dir() -> Path:
    """Return this user's cache directory for kernel verdicts."""
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "samegraph" / "kernels"


def battery_images(node: onnx.NodeProto) -> Iterator[np.ndarray]:
    """Yield the `BATTERY_CASES` images `node` is tried on: noise, edges and gradients in sizes around its own, uint8 [H, W, C]."""
    attributes = _attributes(node)
    size = np.broadcast_to(np.asarray(attributes.get("size", 48)), (2,))
    near, height_out, width_out = int(size.max()), int(size[0]), int(size[1])
    channels = (1, 2, 3, 4) if node.op_type in ("ToRGB", "ToL", "OnBackground") else (3, 1, 3, 4)
    levels = np.asarray(attributes.get("colour", 0)).size
    if node.op_type.startswith(("Pad", "CenterCropOn")) and levels > 1:
        channels = (levels,) * 4
    rng = np.random.default_rng(BATTERY_VERSION)
    fixed = [(near, near), (near, 3 * near), (3 * near, near), (2 * near, 2 * near + 1), (1, 1), (near + 1, near), (near, near - 1 or 1)]
    # Both sides of the place where the order of the two passes turns, for a given size and for a given shorter side.
    fixed += [(height_out + 2 * near, width_out + near), (height_out + 2 * near + 1, width_out + near)]
    fixed += [(2 * near + 40, near + 20), (2 * near + 45, near + 20), (3 * near + 64, near + 24)]
    if node.op_type.endswith("since12_2") and np.size(np.asarray(attributes.get("size", 0))) == 2:
        fixed += [
            (101 * 2, 2),
            (101 * 2 - 1, 2),
            (max(202, 3 * near), 2),
            (max(101, near + 1), 1),
        ]  # around a hundred times as high as wide
    for case in range(BATTERY_CASES):
        longest = 2 * near + 40 if case % 6 == 0 else near // 2 + 40
        height, width = fixed[case] if case < len(fixed) else (int(v) for v in rng.integers(2, longest, 2))
        if crops_of(node) is not None:  # a smaller image is refused
            height, width = max(height, height_out), max(width, width_out)
        yield _content(rng, case, (height, width, channels[case % 4]))


def _content(rng: np.random.Generator, case: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Make one image: noise, black and white noise (overshoot clips), or gradients (ties in rounding)."""
    if case % 3 == 0:
        return rng.integers(0, 256, shape, dtype=np.uint8)
    if case % 3 == 1:
        return rng.integers(0, 2, shape, dtype=np.uint8) * np.uint8(255)
    rows, columns, channels = np.indices(shape)
    gradient: np.ndarray = (3 * rows + 5 * columns + 40 * channels) % 256
    return gradient.astype(np.uint8)


def _run_battery(
    node: onnx.NodeProto,
    then: onnx.NodeProto | None,
    calls: Sequence[onnx.NodeProto],
    functions: Sequence[onnx.FunctionProto],
    make_executor: MakeExecutor,
    key: str,
) -> Proof:
    kernel = host_kernel(node, then)
    assert kernel is not None
    name = " + ".join(call.op_type for call in calls)
    try:
        body = make_executor(_battery_model(calls, functions))
        differences = (_compare(body.run({"X": image})[0], kernel, image) for image in battery_images(node))
        detail = next((f"case {case}: {text}" for case, text in enumerate(differences) if text), "")
    except (SamegraphError, ValueError) as error:
        return Proof(name, equal=False, cases=0, battery=BATTERY_VERSION, key=key, detail=f"the battery could not run: {error}")
    return Proof(name, equal=not detail, cases=BATTERY_CASES, battery=BATTERY_VERSION, key=key, detail=detail)


def _compare(expected: np.ndarray, kernel: Kernel, image: np.ndarray) -> str:
    """Run the kernel on the array and on the Pillow image; return where it differs, or an empty string."""
    variants = [Pixels(array=image)]
    if image.shape[2] in (1, 3):
        variants.append(Pixels(image=Pixels(array=image).image()))
    for pixels in variants:
        got = kernel(pixels).array()
        if got.shape != expected.shape:
            return f"image {image.shape} gives {got.shape}, the ONNX body {expected.shape}"
        if not np.array_equal(got, expected):
            return f"image {image.shape}: {int(np.count_nonzero(got != expected))} of {got.size} values differ"
    return ""


def _calls(node: onnx.NodeProto, then: onnx.NodeProto | None) -> list[onnx.NodeProto]:
    """Return the calls as a chain from X to Y, without names of their own."""
    nodes = [node] if then is None else [node, then]
    values = ["X", *(f"X{place}" for place in range(1, len(nodes))), "Y"]
    calls: list[onnx.NodeProto] = []
    for place, original in enumerate(nodes):
        call = onnx.NodeProto()
        call.CopyFrom(original)
        call.ClearField("name")
        call.input[:], call.output[:] = [values[place]], [values[place + 1]]
        calls.append(call)
    return calls


def _battery_model(calls: Sequence[onnx.NodeProto], functions: Sequence[onnx.FunctionProto]) -> onnx.ModelProto:
    image = helper.make_tensor_value_info("X", onnx.TensorProto.UINT8, ["X_h", "X_w", "X_c"])
    crops = [] if crops_of(calls[-1]) is None else ["Y_k"]
    result = helper.make_tensor_value_info("Y", onnx.TensorProto.UINT8, [*crops, "Y_h", "Y_w", "Y_c"])
    graph = helper.make_graph(calls, "battery", [image], [result])
    return helper.make_model(graph, functions=list(functions), opset_imports=opset_imports(), ir_version=IR_VERSION)


def _key(calls: Sequence[onnx.NodeProto], functions: Sequence[onnx.FunctionProto]) -> str:
    digest = hashlib.sha256()
    for part in (*calls, *functions):
        digest.update(hashlib.sha256(part.SerializeToString(deterministic=True)).digest())
    digest.update(json.dumps(_environment(), sort_keys=True).encode())
    if any(map(is_opencv, calls)):
        digest.update(opencv_kernels.cv2_identity().encode())
    return digest.hexdigest()


@cache
def _environment() -> dict[str, str]:
    """Name everything outside the package that a verdict depends on."""
    core = Path(str(_imaging.__file__))
    return {
        "battery": f"{BATTERY_VERSION}/{BATTERY_CASES}",
        "pillow": PIL.__version__,
        "pillow_core": hashlib.sha256(core.read_bytes()).hexdigest(),
        "numpy": np.__version__,
        "onnxruntime": ort.__version__,
        "cpu": _cpu_identity(),
    }


def _cpu_identity() -> str:
    """Return the machine type with the CPU's model and instruction sets, as far as the system tells."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n", 1)[0]
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    telling = ("model name", "flags", "features", "cpu part", "cpu implementer")
    lines = [line for line in first.splitlines() if line.split(":")[0].strip().lower() in telling]
    return f"{platform.machine()} {hashlib.sha256(chr(10).join(lines).encode()).hexdigest()}"


def _read_verdict(path: Path, key: str) -> Proof | None:
    """Return a kept verdict; None when there is none or the file is not one."""
    try:
        proof = Proof(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return proof if proof.key == key and isinstance(proof.equal, bool) else None


def _write_verdict(directory: Path, proof: Proof) -> None:
    """Keep a verdict; a read-only or full disk only means that the battery runs again next time."""
    with contextlib.suppress(OSError):
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=directory, suffix=".tmp", delete=False, encoding="utf-8") as file:
            json.dump(asdict(proof), file, indent=1)
        Path(file.name).replace(directory / f"{proof.key}.json")
