"""A resize as PyTorch makes it of uint8 tensors: what torchvision v2 and the fast image processors of Hugging Face do.

    preprocess = Preprocess([Decode(), ToRGB(), TorchResize(224, "bicubic"), CenterCrop(224, rounding="floor"), ToFloat(), ...])

The step gives what `torch.nn.functional.interpolate(x, size, mode, antialias=True)` gives on uint8, without PyTorch: called, it is NumPy,
served, an ONNX function with the same bits. See `torch_functions` for how it differs from Pillow's resize.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import helper
from PIL import Image

from .errors import AuthoringError, InputError
from .functions import RADIUS
from .image import _Form, _ImageStep
from .kernels import EMPTY_IMAGE, Size, check_size, shorter_side_size
from .opsets import DOMAIN
from .torch_functions import ARITHMETICS, TORCH_FILTERS, Arithmetic, TorchFilter, torch_resize_function

__all__ = ["TorchResize", "resize_uint8"]

#: Output rows per matrix product of `resize_uint8`.
_BLOCK = 16


@dataclass(frozen=True)
class TorchResize(_ImageStep):
    """Resize as PyTorch resizes uint8 tensors with `antialias=True`, on a CPU with AVX2 or AVX-512, whatever the memory layout.

    Attributes:
        size: (height, width), or one number for the shorter side, keeping the aspect ratio as torchvision does.
        filter: `bilinear` or `bicubic`.
        arithmetic: `integer` is what PyTorch does with uint8 itself, and so torchvision v2's `Resize` and Hugging Face's fast processors.
            `float32` is what version 1 of torchvision's functions (and `weights.transforms()`) do with a uint8 tensor: to float32, resized,
            rounded to the nearest level. Sides are at least 2 then: PyTorch mixes up its loops where the width is 1.
    """

    size: int | tuple[int, int]
    filter: TorchFilter
    arithmetic: Arithmetic = "integer"

    def __post_init__(self) -> None:
        sides = (self.size, self.size) if isinstance(self.size, int) else self.size
        if not all(1 <= side <= 65_535 for side in sides):
            raise AuthoringError(f"TorchResize: a side must be from 1 to 65,535 pixels; got {self.size}")
        if self.filter not in TORCH_FILTERS:
            raise AuthoringError(f"TorchResize: filter must be one of {', '.join(TORCH_FILTERS)}; got {self.filter!r}")
        if self.arithmetic not in ARITHMETICS:
            raise AuthoringError(f"TorchResize: arithmetic must be one of {', '.join(ARITHMETICS)}; got {self.arithmetic!r}")
        if self.arithmetic == "float32" and min(sides) < 2:
            raise AuthoringError(f"TorchResize: a side must be at least 2 pixels in float32; got {self.size}")

    def _size(self, size_in: Size) -> Size:
        return shorter_side_size(size_in, self.size) if isinstance(self.size, int) else self.size

    def after(self, form: _Form) -> _Form:
        """See `Step.after`."""
        if form.channels not in (1, 3):
            raise AuthoringError("TorchResize comes after ToRGB() or ToL(): how many channels there are depends on the image before that")
        if isinstance(self.size, tuple):
            return replace(form, height=self.size[0], width=self.size[1], square=self.size[0] == self.size[1])
        if form.height is not None and form.width is not None:
            height, width = self._size((form.height, form.width))
            return replace(form, height=height, width=width, square=height == width)
        if form.square:
            return replace(form, height=self.size, width=self.size)
        return replace(form, height=None, width=None, square=False)

    def apply(self, image: Image.Image) -> Image.Image:
        """See `_ImageStep.apply`."""
        if min(image.size) < 1:
            raise InputError(EMPTY_IMAGE, code="wrong_shape")
        size = self._size((image.height, image.width))
        return Image.fromarray(resize_uint8(np.asarray(image), size, self.filter, self.arithmetic))

    def node(self, source: str, target: str) -> onnx.NodeProto:
        """See `_ImageStep.node`."""
        name = torch_resize_function(self.filter, self.arithmetic, shorter_side=isinstance(self.size, int))
        size = self.size if isinstance(self.size, int) else list(self.size)
        return helper.make_node(name, [source], [target], domain=DOMAIN, size=size)


def resize_uint8(array: np.ndarray, size: Size, filter: TorchFilter, arithmetic: Arithmetic = "integer") -> np.ndarray:  # noqa: A002
    """Resize uint8 [H, W] or [H, W, C] to (height, width) with the bits of PyTorch's `interpolate(antialias=True)`.

    Args:
        array: The image.
        size: Height and width wanted.
        filter: `bilinear` or `bicubic`.
        arithmetic: As in `TorchResize`.

    Raises:
        InputError: As `kernels.check_size`.
    """
    check_size(size)
    resampled = _resampled
    if arithmetic == "float32":
        array, resampled = array.astype(np.float32), _resampled_float
    height, width = size
    if width != array.shape[1]:
        array = np.swapaxes(resampled(np.swapaxes(array, 0, 1), width, filter), 0, 1)
    if height != array.shape[0]:
        array = resampled(array, height, filter)
    if arithmetic == "float32":
        array = np.rint(np.clip(array, 0, 255)).astype(np.uint8)
    return np.ascontiguousarray(array)


def _resampled(array: np.ndarray, n_out: int, filter: TorchFilter) -> np.ndarray:  # noqa: A002
    """Make one pass along the first axis. The products are integers below 2^31, which float64 multiplies and adds exactly."""
    first, weights, precision = _weights(array.shape[0], n_out, filter)
    rows = np.ascontiguousarray(array).reshape(array.shape[0], -1)
    out = np.empty((n_out, rows.shape[1]), dtype=np.uint8)
    taps = weights.shape[1]
    for start in range(0, n_out, _BLOCK):
        stop = min(start + _BLOCK, n_out)
        low, high = int(first[start]), min(int(first[stop - 1]) + taps, len(rows))
        band = np.zeros((stop - start, high - low + taps))
        for line, row in enumerate(range(start, stop)):
            offset = int(first[row]) - low
            band[line, offset : offset + taps] = weights[row]
        sums = (band[:, : high - low] @ rows[low:high].astype(np.float64)).astype(np.int64)
        out[start:stop] = np.clip((sums + (1 << (precision - 1))) >> precision, 0, 255)
    return out.reshape(n_out, *array.shape[1:])


def _weights(n_in: int, n_out: int, filter: TorchFilter) -> tuple[np.ndarray, np.ndarray, int]:  # noqa: A002
    """Return the first tap of each output row, int64 [n_out], its integer weights, int64 [n_out, taps], and their fractional bits."""
    scale = n_in / n_out
    support = RADIUS[filter] * max(scale, 1.0)
    center = scale * (np.arange(n_out) + 0.5)
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    count = np.minimum(np.minimum((center + support + 0.5).astype(np.int64), n_in) - first, math.ceil(support) * 2 + 1)
    tap = np.arange(int(count.max()))
    x = (tap + first[:, np.newaxis] - center[:, np.newaxis] + 0.5) * (1.0 / max(scale, 1.0))
    raw = np.where(tap < count[:, np.newaxis], _kernel(np.abs(x), filter), 0.0)
    exact = raw / np.cumsum(raw, axis=1)[:, -1:]  # a running sum: PyTorch adds tap by tap
    largest = float(exact.max())
    precision = sum(int(0.5 + largest * (1 << bits)) < 1 << 15 for bits in range(1, 23))
    fixed = exact * (1 << precision)
    return first, np.trunc(fixed + np.where(fixed < 0, -0.5, 0.5)).astype(np.int64), precision


def _kernel(x: np.ndarray, filter: TorchFilter) -> np.ndarray:  # noqa: A002
    """Return the filter at distances `x`; the order of operations is PyTorch's."""
    if filter == "bilinear":
        return np.where(x < 1, 1.0 - x, 0.0)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


# ---------------------------------------------------------------- in float32


def _resampled_float(array: np.ndarray, n_out: int, filter: TorchFilter) -> np.ndarray:  # noqa: A002
    """Make one pass of float32 along the first axis, in the order and with the roundings of PyTorch's loop; see `torch_functions`."""
    first, count, weights = _float_weights(array.shape[0], n_out, filter)
    rows = np.ascontiguousarray(array).reshape(array.shape[0], -1)
    by_fours = (count - 1) // 4 * 4
    sums: np.ndarray = rows[first] * weights[:, :1]
    for tap in range(1, weights.shape[1]):
        plain, fused = (tap < count) & (tap <= by_fours), (tap < count) & (tap > by_fours)
        sums[plain] += rows[first[plain] + tap] * weights[plain, tap : tap + 1]
        sums[fused] = _fused(rows[first[fused] + tap], weights[fused, tap : tap + 1], sums[fused])
    return sums.reshape(n_out, *array.shape[1:])


def _float_weights(n_in: int, n_out: int, filter: TorchFilter) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # noqa: A002
    """Return the first tap and the number of taps of each output row, int64 [n_out], and the weights, float32 [n_out, taps]."""
    scale = np.float32(n_in) / np.float32(n_out)
    at_least_1 = max(scale, np.float32(1))
    support = np.float32(RADIUS[filter]) * at_least_1
    center = (np.float64(scale) * (np.arange(n_out) + 0.5)).astype(np.float32)
    first = np.maximum(((center - support).astype(np.float64) + 0.5).astype(np.int64), 0)
    stop = np.minimum(((center + support).astype(np.float64) + 0.5).astype(np.int64), n_in)
    count = np.minimum(stop - first, 2 * math.ceil(support) + 1)
    tap = np.arange(int(count.max()))
    from_center = (first[:, np.newaxis] + tap).astype(np.float32) - center[:, np.newaxis]
    inverse = np.float64(np.float32(1.0 / np.float64(at_least_1)))
    x = np.abs(((from_center.astype(np.float64) + 0.5) * inverse).astype(np.float32))
    raw = np.where(tap < count[:, np.newaxis], _float_kernel(x, filter), np.float32(0))
    return first, count, raw / np.cumsum(raw, axis=1, dtype=np.float32)[:, -1:]


def _float_kernel(x: np.ndarray, filter: TorchFilter) -> np.ndarray:  # noqa: A002
    one, two = np.float32(1), np.float32(2)
    if filter == "bilinear":
        return np.asarray(np.where(x < one, one - x, np.float32(0)))
    near = _fused(_fused(np.float32(1.5), x, np.float32(-2.5)) * x, x, one)
    far = _fused(_fused(_fused(np.float32(-0.5), x, np.float32(2.5)), x, np.float32(-4)), x, two)
    return np.where(x < one, near, np.where(x < two, far, np.float32(0)))


def _fused(a: np.ndarray | np.float32, b: np.ndarray, c: np.ndarray | np.float32) -> np.ndarray:
    """Return a × b + c of float32, rounded once.

    The product is exact in double. Where their sum in double is next to the middle of two floats, what it lost decides between them.
    """
    product = a.astype(np.float64) * b.astype(np.float64)
    addend = c.astype(np.float64)
    total = product + addend
    addend_part = total - product
    error = (product - (total - addend_part)) + (addend - addend_part)
    step = np.abs(total) * 2.0**-50
    below, above = (total - step).astype(np.float32), (total + step).astype(np.float32)
    middle = (below.astype(np.float64) + above.astype(np.float64)) / 2
    beyond = (total - middle) + error
    return np.where(beyond > 0, above, np.where(beyond < 0, below, middle.astype(np.float32)))
