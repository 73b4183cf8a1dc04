"""OpenCV's steps on images, for training code that reads and resizes with cv2.

    preprocess = Preprocess([
        *imread(),                              # EXIF applied, alpha dropped, BGR
        CvResize((224, 224), "linear"),         # cv2.resize(image, (224, 224))
        ToFloat(), Divide(255), ToCHW(),
    ])

    letterbox = Preprocess([*imread(), *letterbox((640, 640)), ToFloat(), Divide(255), ToCHW()])

Called, they run cv2 itself (`pip install "samegraph-transforms[opencv]"`); served, they are ONNX functions with the same bits: see
opencv_functions.py. Sizes are (height, width) as everywhere here; cv2 takes (width, height).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper
from PIL import Image

from .decode import DEFAULT_MODES
from .errors import AuthoringError, InputError
from .image import Decode, PadTo, Step, ToRGB, _check_choice, _check_size, _Form, _ImageStep, _pair
from .kernels import EMPTY_IMAGE, check_size
from .opencv_functions import (
    CV_FILTERS,
    CV_ROUNDINGS,
    CV_SEMANTICS,
    CV_SIZES_BY,
    IPP_BOUND,
    CvFilter,
    CvRounding,
    CvSemantics,
    CvSizeBy,
    opencv_kind,
    opencv_resize_function,
)
from .opencv_kernels import cv_resize, ipp_digest, opencv_size, require_cv2, stated_semantics
from .opsets import DOMAIN

#: Pixel modes that Pillow and cv2.imread(IMREAD_COLOR) read alike. CMYK and 16 bits become other colours in cv2, so they are refused.
IMREAD_MODES = {mode: to for mode, to in DEFAULT_MODES.items() if mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBX", "RGBA", "YCbCr")}


def imread() -> list[Step]:
    """Return the steps that read a file as `cv2.imread(path)` does: EXIF orientation applied, alpha dropped, channels in the order BGR.

    The decoder is Pillow's; on JPEG, PNG and BMP files it gives the pixels that cv2's gives, both being libjpeg-turbo for the first. CMYK
    and 16-bit files, of which cv2 makes other colours, are refused, and so are the other formats.
    """
    return [Decode(formats=("JPEG", "PNG", "BMP"), exif_orientation="apply", modes=IMREAD_MODES), ToRGB(), SwapChannels()]


def letterbox(size: int | tuple[int, int], colour: int | Sequence[int] = 114, *, center: bool = True) -> list[Step]:
    """Return the steps of a letterbox as object detectors are trained with: resize by the smaller ratio, then `cv2.copyMakeBorder`.

        r = min(height / h, width / w)
        image = cv2.resize(image, (round(w * r), round(h * r)), interpolation=cv2.INTER_LINEAR)
        image = cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=colour)

    Args:
        size: Side, or (height, width), of the result.
        colour: One level, or one for each channel in the order they have then.
        center: The border is shared, an odd line goes below or to the right (`round(d / 2 - 0.1)` before); else all of it does.
    """
    resized = CvResize(_pair(size), "linear", by="inside", rounding="round")
    return [resized, PadTo(_pair(size), colour, "center" if center else "top_left", "floor")]


@dataclass(frozen=True)
class SwapChannels(_ImageStep):
    """Turn RGB into BGR and back, on the image: `cv2.cvtColor(image, cv2.COLOR_RGB2BGR)`.

    Before a cubic resize the order matters: which of a line's last few values OpenCV sums in floats depends on where they lie.
    """

    def after(self, form: _Form) -> _Form:
        """See `Step.after`."""
        if form.channels != 3:
            raise AuthoringError("SwapChannels turns three channels around; put ToRGB() before it")
        return form

    def apply(self, image: Image.Image) -> Image.Image:
        """See `_ImageStep.apply`."""
        return Image.fromarray(np.ascontiguousarray(np.asarray(image)[:, :, ::-1]))

    def node(self, source: str, target: str) -> onnx.NodeProto:
        """See `_ImageStep.node`."""
        return helper.make_node("ReverseChannels", [source], [target], domain=DOMAIN)


@dataclass(frozen=True)
class CvResize(_ImageStep):
    """Resize as `cv2.resize` does.

    Attributes:
        size: (height, width); with `by`, the side or the box it says. cv2's own argument is (width, height).
        filter: `nearest`, `linear`, `area`, `cubic` or `lanczos4`: cv2.INTER_NEAREST and so on.
        by: How the size follows from that of the image, see `opencv_kernels.opencv_size`: `shorter`, `longer`, `shorter_ratio` and
            `longer_ratio` take one number, `inside` takes (height, width). None: `size` is exact.
        rounding: What makes a side a whole number: `int`, `round` (half to even), `ceil` or `half_up`, `int(x + 0.5)`.
        multiple_of: Both sides become a multiple of this number, rounded as `rounding` says, at least one.
        semantics: `opencv` for OpenCV's own sums, `opencv+ipp` for INTER_CUBIC as the wheels for x86-64 do it unless
            `cv2.ipp.setUseIPP(False)` was called; the latter needs cv2 where it is served. None finds out by trying.

    Raises:
        AuthoringError: A choice is unknown, or cv2 is needed to find something out and is not installed.
    """

    size: int | tuple[int, int]
    filter: CvFilter = "linear"
    by: CvSizeBy | None = None
    rounding: CvRounding = "int"
    multiple_of: int = 1
    semantics: CvSemantics | None = None

    def __post_init__(self) -> None:
        _check_size("CvResize", _pair(self.size))
        _check_choice("CvResize", "filter", self.filter, CV_FILTERS)
        _check_choice("CvResize", "by", self.by, (None, *CV_SIZES_BY))
        _check_choice("CvResize", "rounding", self.rounding, CV_ROUNDINGS)
        _check_choice("CvResize", "semantics", self.semantics, (None, *CV_SEMANTICS))
        if not 1 <= self.multiple_of <= 4_096:
            raise AuthoringError(f"CvResize: multiple_of must be from 1 to 4,096; got {self.multiple_of}")
        takes_box = self.by in (None, "inside")
        if takes_box == isinstance(self.size, int):
            wanted = "(height, width)" if takes_box else f"one number, the {self.by.split('_')[0]} side" if self.by else ""
            raise AuthoringError(f"CvResize: by={self.by!r} takes {wanted}; got {self.size}")
        if self.by is None and (self.rounding != "int" or self.multiple_of != 1):
            raise AuthoringError("CvResize: rounding and multiple_of have no say where the size is exact; leave them out")
        object.__setattr__(self, "semantics", stated_semantics(self.filter, self.semantics))

    @property
    def _kind(self) -> str:
        assert self.semantics is not None
        return opencv_kind(self.filter, self.semantics)

    @property
    def _wanted(self) -> list[int]:
        return [self.size] if isinstance(self.size, int) else list(self.size)

    def _size(self, size_in: tuple[int, int]) -> tuple[int, int]:
        if self.by is None:
            return _pair(self.size)
        return opencv_size(f"{self.by}_{self.rounding}", size_in, self._wanted, self.multiple_of)

    def after(self, form: _Form) -> _Form:
        """See `Step.after`."""
        if form.channels not in (1, 3):
            raise AuthoringError("CvResize comes after ToRGB or ToL: alpha is dropped before")
        if self.by is None or (form.height is not None and form.width is not None):
            height, width = self._size((form.height or 1, form.width or 1))
            return replace(form, height=height, width=width, square=height == width)
        if form.square and isinstance(self.size, int):
            side, _ = self._size((1, 1))
            return replace(form, height=side, width=side)
        return replace(form, height=None, width=None, square=False)

    def apply(self, image: Image.Image) -> Image.Image:
        """See `_ImageStep.apply`; cv2 itself, AuthoringError when it is not installed."""
        require_cv2("CvResize")
        if min(image.size) < 1:
            raise InputError(EMPTY_IMAGE, code="wrong_shape")
        size = self._size((image.height, image.width))
        check_size(size)
        array = np.asarray(image).reshape(image.height, image.width, -1)
        made = cv_resize(array, size, self._kind)
        return Image.fromarray(made[:, :, 0] if made.shape[2] == 1 else made)

    def node(self, source: str, target: str) -> onnx.NodeProto:
        """See `_ImageStep.node`."""
        attributes: dict[str, Any] = {"size": self._wanted}
        if self.by is not None:
            attributes["multiple"] = [self.multiple_of]
        if self._kind == "cubic_ipp":
            attributes |= {"digest": ipp_digest(), "bound": IPP_BOUND}
        name = opencv_resize_function(self._kind, None if self.by is None else f"{self.by}_{self.rounding}")
        return helper.make_node(name, [source], [target], domain=DOMAIN, **attributes)
