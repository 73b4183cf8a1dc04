"""Write image preprocessing once: the object trains, and the graphs it emits serve.

    preprocess = Preprocess([
        Decode(),
        ToRGB(),
        CenterCrop(fraction=224 / (224 + 32), rounding="ceil"),
        Resize((224, 224), "bicubic"),
        ToFloat(),
        Normalize(mean=127, std=128),
        ToCHW(),
    ])

    x = preprocess(jpeg_bytes)           # float32 [3, 224, 224], as training feeds it; also takes a PIL image
    stages = preprocess.stages()         # preprocess.item.onnx and preprocess.batch.onnx, as drafts for `pack`

Called, everything up to the resize is Pillow and everything after it NumPy: that is the reference. Served, it is an ONNX
graph with the same bits: the item stage (from the encoded bytes to uint8 [H, W, C], one image at a time) and the batch stage
(arithmetic and layout, float32, on the whole batch).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, get_args

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from .decode import DEFAULT_FORMATS, DEFAULT_MODES, ExifOrientation, convert_mode, open_image, pillow_decoder, to_array, upright
from .draft import DraftStage
from .errors import AuthoringError, InputError
from .functions import (
    FILTERS,
    PAD_MODES,
    PLACES,
    ROUNDINGS,
    SEMANTICS,
    SIZE_ROUNDINGS,
    FilterName,
    PadMode,
    Place,
    Rounding,
    Semantics,
    SizeRounding,
    called_functions,
    library,
    pad_mode_function,
    pad_to_function,
    resize_by_function,
    resize_function,
)
from .kernels import (
    EMPTY_IMAGE,
    canvas_window,
    center_offset,
    check_crops,
    five_windows,
    fraction_size,
    native_semantics,
    resize_image,
    shorter_side_size,
    size_by,
)
from .manifest import Decoder, Missing, RawField
from .opsets import DOMAIN, IR_VERSION, opset_imports

#: Pillow's own warning limit: what training code reads without a word, serving reads too.
DEFAULT_MAX_PIXELS: Final = 89_478_485
DEFAULT_MAX_BYTES: Final = 32 * 2**20

_DECODE_NODE: Final = "decode"

FlipAxis = Literal["horizontal", "vertical"]
SizeBy = Literal["shorter", "longer", "inside", "within", "cover", "contain"]


@dataclass(frozen=True)
class _Form:
    """What is known about the image at a point of the pipeline, before any image is seen. None: depends on the image."""

    height: int | None = None
    width: int | None = None
    channels: int | None = None
    square: bool = False
    dtype: str = "uint8"
    layout: str = "HWC"
    crops: int | None = None

    @property
    def shape(self) -> list[int]:
        """The fixed shape in the present layout."""
        assert self.height is not None
        assert self.width is not None
        assert self.channels is not None
        hwc = [self.height, self.width, self.channels]
        image = hwc if self.layout == "HWC" else [hwc[2], hwc[0], hwc[1]]
        return image if self.crops is None else [self.crops, *image]

    @property
    def rank(self) -> int:
        """Axes of a batch."""
        return 4 if self.crops is None else 5


class Step:
    """One step of a `Preprocess`; steps are small frozen values with a readable repr."""

    @abstractmethod
    def after(self, form: _Form) -> _Form:
        """Return what is known after this step; AuthoringError when it cannot come here."""


class _ImageStep(Step):
    """A step on a Pillow image; in the graph, one node from uint8 [H, W, C] to uint8 [h, w, c]."""

    @abstractmethod
    def apply(self, image: Image.Image) -> Image.Image:
        """Do the step with Pillow."""

    @abstractmethod
    def node(self, source: str, target: str) -> onnx.NodeProto:
        """Return the node that does the step."""


class _CropsStep(Step):
    """The step that makes several images of one; in the graph, one node from uint8 [H, W, C] to uint8 [K, h, w, C]."""

    size: int | tuple[int, int]

    @property
    @abstractmethod
    def count(self) -> int:
        """How many there are, K."""

    def after(self, form: _Form) -> _Form:
        """See `Step.after`."""
        height, width = _pair(self.size)
        if form.height is not None and form.width is not None and (form.height < height or form.width < width):
            raise AuthoringError(
                f"{type(self).__name__}: crops of {height} × {width} are larger than the image, which is {form.height} × {form.width} here"
            )
        return replace(form, height=height, width=width, square=height == width, crops=self.count)

    @abstractmethod
    def apply(self, image: Image.Image) -> list[Image.Image]:
        """Do the step with Pillow."""

    @abstractmethod
    def node(self, source: str, target: str) -> onnx.NodeProto:
        """Return the node that does the step."""


class _ArrayStep(Step):
    """A step on an array whose last three axes are the image; any number of axes may come before them."""

    @abstractmethod
    def apply(self, array: np.ndarray, form: _Form) -> np.ndarray:
        """Do the step with NumPy; `form` is what was known before it."""

    @abstractmethod
    def nodes(self, source: str, target: str, form: _Form) -> list[onnx.NodeProto]:
        """Return the nodes that do the step on a batch."""


@dataclass(frozen=True)
class Decode(Step):
    """Read an encoded image. Always the first step.

    Attributes:
        formats: Container formats accepted; others are refused. TIFF is possible and not on by default.
        exif_orientation: `ignore` (what `Image.open` gives) or `apply` (what `ImageOps.exif_transpose` gives).
        modes: Pixel mode → mode handed over; modes left out are refused.
    """

    formats: Sequence[str] = DEFAULT_FORMATS
    exif_orientation: ExifOrientation = "ignore"
    modes: Mapping[str, str] = field(default_factory=lambda: dict(DEFAULT_MODES))

    def after(self, form: _Form) -> _Form:
        """See `Step.after`."""
        return form

    def decoder(self) -> Decoder:
        """Return the manifest's description of this decoder."""
        return pillow_decoder(_DECODE_NODE, formats=self.formats, modes=self.modes, exif_orientation=self.exif_orientation)


@dataclass(frozen=True)
class ToRGB(_ImageStep):
    """Make it three channels, as `convert("RGB")` does: grey is copied, alpha is dropped."""

    def after(self, form: _Form) -> _Form:
        """See `Step.after`."""
        return replace(form, channels=3)

    def apply(self, image: Image.Image) -> Image.Image:
        """See `_ImageStep.apply`."""
        return image.convert("RGB")

    def node(self, source: str, target: str) -> onnx.NodeProto:
        """See `_ImageStep.node`."""
        return helper.make_node("ToRGB", [source], [target], domain=DOMAIN)


@dataclass(frozen=True)
class ToL(_ImageStep):
    """Make it grey, as `convert("L")` does with an RGB image: (19595 R + 38470 G + 7471 B + 32768) >> 16. Alpha is dropped."""

    def after(self, form: _Form) -> _Form:
        """See `Step.after`."""
        return replace(form, channels=1)

    def apply(self, image: Image.Image) -> Image.Image:
        """See `_ImageStep.apply`."""
        return image.convert("L")

    def node(self, source: str, target: str) -> onnx.NodeProto:
        """See `_ImageStep.node`."""
        return helper.make_node("ToL", [source], [target], domain=DOMAIN)


@dataclass(frozen=True)
class OnBackground(_ImageStep):
    """Put what has alpha on one colour and make it three channels; without alpha, the same as `ToRGB`.

    Pillow has two ways to do this, `background.paste(image, mask=image.getchannel("A"))` and `Image.alpha_composite` on an opaque RGBA
    background, and on an opaque background both give the same bytes, so there is no choice to make.

    Attributes:
        colour: Red, green and blue, 0 to 255; white by default.
    """

    colour: tuple[int, int, int] = (255, 255, 255)

    def __post_init__(self) -> None:
        _check_colour("OnBackground", self.colour)
        if len(self.colour) != 3:
            raise AuthoringError(f"OnBackground: colour is red, green and blue, for example (255, 255, 255); got {self.colour}")

    def after(self, form: _Form) -> _Form:
        """See `Step.after`."""
        return replace(form, channels=3)

    def apply(self, image: Image.Image) -> Image.Image:
        """See `_ImageStep.apply`."""
        if image.mode not in ("LA", "RGBA"):  # a transparent colour in `image.info` is Decode's affair
            return image.convert("RGB")
        background = Image.new("RGBA", image.size, (*self.colour, 255))
        return Image.alpha_composite(background, image.convert("RGBA")).convert("RGB")

    def node(self, source: str, target: str) -> onnx.NodeProto:
        """See `_ImageStep.node`."""
        return helper.make_node("OnBackground", [source], [target], domain=DOMAIN, colour=list(self.colour))


@dataclass(frozen=True)
class Crop(_ImageStep):
    """Cut out a fixed box, zeros where it reaches beyond the image: `image.crop((left, top, right, bottom))`.

    Attributes:
        box: Left, top, right, bottom in pixels, as Pillow counts them.
    """

    box: tuple[int, int, int, int]

    def __post_init__(self) -> None:
        if len(self.box) != 4:
            raise AuthoringError(f"Crop: the box is (left, top, right, bottom); got {self.box}")
        left, top, right, bottom = self.box
        if right <= left or bottom <= top:
            raise AuthoringError(f"Crop: the box is (left, top, right, bottom), with right > left and bottom > top; got {self.box}")
        if any(abs(edge) > 65_535 for edge in self.box):
            raise AuthoringError(f"Crop: an edge must lie within 65,535 pixels; got {self.box}")

    def after(self, form: _Form) -> _Form:
        """See `Step.after`."""
        left, top, right, bottom = self.box
        return replace(form, height=bottom - top, width=right - left, square=bottom - top == right - left)

    def apply(self, image: Image.Image) -> Image.Image:
        """See `_ImageStep.apply`."""
        return image.crop(self.box)

    def node(self, source: str, target: str) -> onnx.NodeProto:
        """See `_ImageStep.node`."""
        left, top, right, bottom = self.box
        return helper.make_node("CropBox", [source], [target], domain=DOMAIN, offset=[top, left], size=[bottom - top, right - left])


@dataclass(frozen=True)
class Pad(_ImageStep):
    """Put a border of one colour around the image: `ImageOps.expand(image, (left, top, right, bottom), colour)`.

    Attributes:
        border: One width for all four sides, or (left, top, right, bottom), in pixels.
        colour: One level for all channels, or one for each.
    """

    border: int | tuple[int, int, int, int]
    colour: int | Sequence[int] = 0

    def __post_init__(self) -> None:
        _check_colour("Pad", self.colour)
        _check_border("Pad", self.border)

    def after(self, form: _Form) -> _Form:
        """See `Step.after`."""
        _check_levels("Pad", self.colour, form)
        return _bordered(form, self.border)

    def apply(self, image: Image.Image) -> Image.Image:
        """See `_ImageStep.apply`."""
        left, top, right, bottom = _sides(self.border)
        canvas = Image.new(image.mode, (left + image.width + right, top + image.height + bottom), _fill(self.colour, image))
        canvas.paste(image, (left, top))
        return canvas

    def node(self, source: str, target: str) -> onnx.NodeProto:
        """See `_ImageStep.node`."""
        left, top, right, bottom = _sides(self.border)
        colour = _levels(self.colour)
        return helper.make_node("PadBy", [source], [target], domain=DOMAIN, amounts=[top, left, bottom, right], colour=colour)


@dataclass(frozen=True)
class PadTo(_ImageStep):
    """Put the image on a canvas of one colour and of a fixed size; what of a larger image does not fit is cut off.

    After `Resize(size, filter, by="contain")` this is Pillow's `ImageOps.pad`, a letterbox.

    Attributes:
        size: Side, or (height, width).
        colour: One level for all channels, or one for each.
        place: `center`, `top_left` or `bottom_right`.
        rounding: What happens to an odd number of missing rows or columns at the centre: `half_even` puts round(missing / 2) in front
            (Pillow), `floor` and `toward_zero` missing // 2, `ceil` one more.
    """

    size: int | tuple[int, int]
    colour: int | Sequence[int] = 0
    place: Place = "center"
    rounding: Rounding = "half_even"

    def __post_init__(self) -> None:
        _check_size("PadTo", _pair(self.size))
        _check_colour("PadTo", self.colour)
        _check_choice("PadTo", "place", self.place, PLACES)
        _check_choice("PadTo", "rounding", self.rounding, ROUNDINGS)

    def after(self, form: _Form) -> _Form:
        """See `Step.after`."""
        _check_levels("PadTo", self.colour, form)
        height, width = _pair(self.size)
        return replace(form, height=height, width=width, square=height == width)

    def apply(self, image: Image.Image) -> Image.Image:
        """See `_ImageStep.apply`."""
        height, width = _pair(self.size)
        top, left, _, _ = canvas_window((image.height, image.width), (height, width), self.place, self.rounding)
        canvas = Image.new(image.mode, (width, height), _fill(self.colour, image))
        canvas.paste(image, (-left, -top))
        return canvas

    def node(self, source: str, target: str) -> onnx.NodeProto:
        """See `_ImageStep.node`."""
        name = pad_to_function(self.place, self.rounding)
        return helper.make_node(name, [source], [target], domain=DOMAIN, size=list(_pair(self.size)), colour=_levels(self.colour))


@dataclass(frozen=True)
class Flip(_ImageStep):
    """Mirror the image.

    Attributes:
        axis: `horizontal` swaps left and right (`FLIP_LEFT_RIGHT`), `vertical` top and bottom (`FLIP_TOP_BOTTOM`).
    """

    axis: FlipAxis

    def __post_init__(self) -> None:
        _check_choice("Flip", "axis", self.axis, get_args(FlipAxis))

    def after(self, form: _Form) -> _Form:
        """See `Step.after`."""
        return form

    def apply(self, image: Image.Image) -> Image.Image:
        """See `_ImageStep.apply`."""
        horizontal = self.axis == "horizontal"
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT if horizontal else Image.Transpose.FLIP_TOP_BOTTOM)

    def node(self, source: str, target: str) -> onnx.NodeProto:
        """See `_ImageStep.node`."""
        return helper.make_node(f"Flip{self.axis.capitalize()}", [source], [target], domain=DOMAIN)


@dataclass(frozen=True)
class PadWith(_ImageStep):
    """Put a border around the image that continues it: `numpy.pad(image, …, mode)`, as torchvision's `Pad(…, padding_mode=mode)`.

    Attributes:
        border: One width for all four sides, or (left, top, right, bottom), in pixels.
        mode: `edge` repeats the outermost line, `reflect` mirrors the image at it, `symmetric` behind it, as often as the border is wide.
    """

    border: int | tuple[int, int, int, int]
    mode: PadMode

    def __post_init__(self) -> None:
        _check_border("PadWith", self.border)
        _check_choice("PadWith", "mode", self.mode, PAD_MODES)

    def after(self, form: _Form) -> _Form:
        """See `Step.after`."""
        return _bordered(form, self.border)

    def apply(self, image: Image.Image) -> Image.Image:
        """See `_ImageStep.apply`."""
        left, top, right, bottom = _sides(self.border)
        array = np.asarray(image)
        around = ((top, bottom), (left, right), (0, 0))
        return Image.fromarray(np.pad(array, around[: array.ndim], self.mode))

    def node(self, source: str, target: str) -> onnx.NodeProto:
        """See `_ImageStep.node`."""
        left, top, right, bottom = _sides(self.border)
        return helper.make_node(pad_mode_function(self.mode), [source], [target], domain=DOMAIN, amounts=[top, left, bottom, right])


@dataclass(frozen=True)
class FiveCrop(_CropsStep):
    """Cut out the four corners and the centre, as torchvision's `FiveCrop`: every image becomes five, [5, H, W, C].

    They are in torchvision's order: top left, top right, bottom left, bottom right, centre. It comes after all other steps on the image;
    steps on the array go on with all five. `folding.fold` makes the model take them and answer once.

    Attributes:
        size: Side, or (height, width); a smaller image is refused.
    """

    size: int | tuple[int, int]

    def __post_init__(self) -> None:
        _check_size("FiveCrop", _pair(self.size))

    @property
    def count(self) -> int:
        """See `_CropsStep.count`."""
        return 5

    def apply(self, image: Image.Image) -> list[Image.Image]:
        """See `_CropsStep.apply`."""
        return _five_crops(image, _pair(self.size))

    def node(self, source: str, target: str) -> onnx.NodeProto:
        """See `_CropsStep.node`."""
        return helper.make_node("FiveCrop", [source], [target], domain=DOMAIN, size=list(_pair(self.size)))


@dataclass(frozen=True)
class TenCrop(_CropsStep):
    """Do what `FiveCrop` does, then the same with the flipped image, as torchvision's `TenCrop`: [10, H, W, C].

    Attributes:
        size: Side, or (height, width); a smaller image is refused.
        vertical_flip: Whether top and bottom are swapped instead of left and right.
    """

    size: int | tuple[int, int]
    vertical_flip: bool = False

    def __post_init__(self) -> None:
        _check_size("TenCrop", _pair(self.size))

    @property
    def count(self) -> int:
        """See `_CropsStep.count`."""
        return 10

    def apply(self, image: Image.Image) -> list[Image.Image]:
        """See `_CropsStep.apply`."""
        flipped = Flip("vertical" if self.vertical_flip else "horizontal").apply(image)
        return _five_crops(image, _pair(self.size)) + _five_crops(flipped, _pair(self.size))

    def node(self, source: str, target: str) -> onnx.NodeProto:
        """See `_CropsStep.node`."""
        name = "TenCropVertical" if self.vertical_flip else "TenCropHorizontal"
        return helper.make_node(name, [source], [target], domain=DOMAIN, size=list(_pair(self.size)))


@dataclass(frozen=True)
class CenterCrop(_ImageStep):
    """Cut out the middle.

    Attributes:
        size: Side, or (height, width); where the image is smaller, it is surrounded with `colour`.
        fraction: Instead of `size`: a square of side int(fraction × the shorter side). EfficientNet-Lite: 224 / (224 + 32).
        rounding: What happens to an odd margin: `half_even` (torchvision), `floor` (margin // 2), `ceil` ((margin + 1) // 2) or
            `toward_zero` (int(margin / 2), Hugging Face's fast processors).
        colour: One level for all channels, or one for each; what surrounds an image that is smaller than `size`.
    """

    size: int | tuple[int, int] | None = None
    fraction: float | None = None
    rounding: Rounding = "half_even"
    colour: int | Sequence[int] = 0

    def __post_init__(self) -> None:
        if (self.size is None) == (self.fraction is None):
            raise AuthoringError("CenterCrop takes either size or fraction, for example CenterCrop(224) or CenterCrop(fraction=0.875)")
        if self.size is not None:
            _check_size("CenterCrop", _pair(self.size))
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise AuthoringError(f"CenterCrop: fraction must be above 0 and at most 1; got {self.fraction}")
        _check_choice("CenterCrop", "rounding", self.rounding, ROUNDINGS)
        _check_colour("CenterCrop", self.colour)
        if self.fraction is not None and self._coloured:
            raise AuthoringError("CenterCrop: a fraction never leaves the image, so that a colour has no say; leave it out")

    @property
    def _coloured(self) -> bool:
        return any(_levels(self.colour))

    def after(self, form: _Form) -> _Form:
        """See `Step.after`."""
        if self._coloured:
            _check_levels("CenterCrop", self.colour, form)
        if self.size is not None:
            height, width = _pair(self.size)
            return replace(form, height=height, width=width, square=height == width)
        assert self.fraction is not None
        if form.height is not None and form.width is not None:
            side, _ = fraction_size((form.height, form.width), self.fraction)
            return replace(form, height=side, width=side, square=True)
        return replace(form, square=True)

    def apply(self, image: Image.Image) -> Image.Image:
        """See `_ImageStep.apply`."""
        size_in = (image.height, image.width)
        height, width = _pair(self.size) if self.size is not None else fraction_size(size_in, float(self.fraction or 0))
        top, left = center_offset(size_in[0] - height, self.rounding), center_offset(size_in[1] - width, self.rounding)
        if not self._coloured:
            return image.crop((left, top, left + width, top + height))
        canvas = Image.new(image.mode, (width, height), _fill(self.colour, image))
        canvas.paste(image, (-left, -top))
        return canvas

    def node(self, source: str, target: str) -> onnx.NodeProto:
        """See `_ImageStep.node`."""
        if self.size is not None and self._coloured:
            name, size = f"CenterCropOn_{self.rounding}", list(_pair(self.size))
            return helper.make_node(name, [source], [target], domain=DOMAIN, size=size, colour=_levels(self.colour))
        if self.size is not None:
            return helper.make_node(f"CenterCrop_{self.rounding}", [source], [target], domain=DOMAIN, size=list(_pair(self.size)))
        fraction = numpy_helper.from_array(np.array([self.fraction], dtype=np.float64))
        return helper.make_node(f"CenterCropFraction_{self.rounding}", [source], [target], domain=DOMAIN, fraction=fraction)


@dataclass(frozen=True)
class Resize(_ImageStep):
    """Resize as Pillow does.

    Attributes:
        size: (height, width), or one number for the shorter side, keeping the aspect ratio as torchvision does.
        filter: `nearest`, `box`, `bilinear`, `hamming`, `bicubic` or `lanczos`, as Pillow's `Image.Resampling` has them.
        semantics: Whose order of passes, see `functions.Semantics`; None takes that of the Pillow installed now, found out by trying, which
            is then part of the package.
        by: How the size follows from that of the image. None: as said under `size`. `shorter` and `longer` bring that side to `size`,
            one number; `inside` brings the image into (height, width) by the smaller of the two ratios; `within` does so by dividing by
            the larger of the inverse ratios, as timm's `ResizeKeepRatio(longest=1)`, and `cover` by the smaller, so that the image covers
            (height, width); `contain` is the arithmetic of `ImageOps.contain`, where the ratio is that of the image's sides. Where a rule
            would leave no line, one is left.
        rounding: What makes a side a whole number: `int` (cut), `round` (half to even) or `ceil`. `contain` rounds as Pillow does.
        multiple_of: Both sides become a multiple of this number, rounded as `rounding` says, at least one.
        max_size: For the shorter side, by torchvision's rule: where the longer one would exceed this, it becomes this, and the shorter
            follows from the two.
    """

    size: int | tuple[int, int]
    filter: FilterName
    semantics: Semantics | None = None
    by: SizeBy | None = None
    rounding: SizeRounding = "int"
    multiple_of: int = 1
    max_size: int | None = None

    def __post_init__(self) -> None:
        _check_size("Resize", _pair(self.size))
        _check_choice("Resize", "filter", self.filter, FILTERS)
        self._check_rule()
        if self.semantics is None:
            probed = native_semantics()
            if probed is None:
                raise AuthoringError(
                    f"Resize: the installed Pillow resizes in an order we do not know; state semantics, one of {', '.join(SEMANTICS)}"
                )
            object.__setattr__(self, "semantics", probed)
        _check_choice("Resize", "semantics", self.semantics, SEMANTICS)

    def _check_rule(self) -> None:
        _check_choice("Resize", "rounding", self.rounding, SIZE_ROUNDINGS)
        _check_choice("Resize", "by", self.by, (None, *get_args(SizeBy)))
        if not 1 <= self.multiple_of <= 4_096:
            raise AuthoringError(f"Resize: multiple_of must be from 1 to 4,096; got {self.multiple_of}")
        if self.by in ("shorter", "longer") and not isinstance(self.size, int):
            raise AuthoringError(f"Resize: by={self.by!r} takes one number, the {self.by} side; got {self.size}")
        if self.by not in (None, "shorter", "longer") and isinstance(self.size, int):
            raise AuthoringError(f"Resize: by={self.by!r} takes (height, width), the box to stay inside; got {self.size}")
        if self.max_size is not None:
            self._check_max_size(self.max_size)
        keeps_ratio = self.by is not None or isinstance(self.size, int)
        if (not keeps_ratio or self.by == "contain") and (self.rounding != "int" or self.multiple_of != 1):
            raise AuthoringError(
                "Resize: rounding and multiple_of have no say where the size is exact or ImageOps.contain's; leave them out"
            )

    def _check_max_size(self, most: int) -> None:
        if not isinstance(self.size, int) or self.by not in (None, "shorter") or self.rounding != "int" or self.multiple_of != 1:
            raise AuthoringError("Resize: max_size goes with one number for the shorter side, cut to an integer, as torchvision has it")
        if not self.size < most <= 65_535:
            raise AuthoringError(f"Resize: max_size must be above the shorter side, {self.size}, and at most 65,535; got {most}")

    @property
    def _rule(self) -> str | None:
        """The rule of `functions.SIZE_RULES`; None for an exact size and for the shorter side cut to an integer."""
        by = self.by or ("shorter" if isinstance(self.size, int) else None)
        if self.max_size is not None:
            return "capped"
        if by is None or (by == "shorter" and self.rounding == "int" and self.multiple_of == 1):
            return None
        return by if by == "contain" else f"{by}_{self.rounding}"

    def _size(self, size_in: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) for an image of that (height, width)."""
        if self._rule is not None:
            return size_by(self._rule, size_in, self._wanted, self.multiple_of)
        return shorter_side_size(size_in, self.size) if isinstance(self.size, int) else self.size

    @property
    def _wanted(self) -> list[int]:
        sides = [self.size] if isinstance(self.size, int) else list(self.size)
        return sides if self.max_size is None else [*sides, self.max_size]

    @property
    def stated_semantics(self) -> Semantics:
        """The semantics, probed or given."""
        assert self.semantics is not None
        return self.semantics

    def after(self, form: _Form) -> _Form:
        """See `Step.after`."""
        if form.channels not in (1, 3):
            raise AuthoringError(
                "Resize comes after ToRGB: Pillow resizes alpha and palettes by other rules; put ToRGB() or ToL() before it"
            )
        if isinstance(self.size, tuple) and self.by is None:
            return replace(form, height=self.size[0], width=self.size[1], square=self.size[0] == self.size[1])
        if form.height is not None and form.width is not None:
            height, width = self._size((form.height, form.width))
            return replace(form, height=height, width=width, square=height == width)
        if form.square and isinstance(self.size, int):
            side, _ = self._size((1, 1))
            return replace(form, height=side, width=side)
        return replace(form, height=None, width=None, square=False)

    def apply(self, image: Image.Image) -> Image.Image:
        """See `_ImageStep.apply`."""
        if min(image.size) < 1:
            raise InputError(EMPTY_IMAGE, code="wrong_shape")
        return resize_image(image, self._size((image.height, image.width)), self.filter, self.stated_semantics)

    def node(self, source: str, target: str) -> onnx.NodeProto:
        """See `_ImageStep.node`."""
        if self._rule is not None:
            name = resize_by_function(self._rule, self.filter, self.stated_semantics)
            return helper.make_node(name, [source], [target], domain=DOMAIN, size=self._wanted, multiple=[self.multiple_of])
        name = resize_function(self.filter, self.stated_semantics, shorter_side=isinstance(self.size, int))
        size = self.size if isinstance(self.size, int) else list(self.size)
        return helper.make_node(name, [source], [target], domain=DOMAIN, size=size)


@dataclass(frozen=True)
class ToFloat(_ArrayStep):
    """uint8 0..255 to float32 0.0..255.0, values unchanged: `np.asarray(image).astype(np.float32)`."""

    def after(self, form: _Form) -> _Form:
        """See `Step.after`."""
        if form.dtype != "uint8":
            raise AuthoringError("ToFloat comes once")
        return replace(form, dtype="float32")

    def apply(self, array: np.ndarray, form: _Form) -> np.ndarray:
        """See `_ArrayStep.apply`."""
        return array.astype(np.float32)

    def nodes(self, source: str, target: str, form: _Form) -> list[onnx.NodeProto]:
        """See `_ArrayStep.nodes`."""
        return [helper.make_node("Cast", [source], [target], to=TensorProto.FLOAT)]


class _Arithmetic(_ArrayStep):
    """A step that is float32 operations with constants, one after the other, each rounded: as NumPy does it."""

    @abstractmethod
    def operations(self) -> list[tuple[str, float | Sequence[float]]]:
        """Return (ONNX operator, constant) in order; a constant is one number or one per channel."""

    def after(self, form: _Form) -> _Form:
        """See `Step.after`."""
        name = type(self).__name__
        if form.dtype != "float32":
            raise AuthoringError(f"{name} works on float32; put ToFloat() before it")
        for _, constant in self.operations():
            if not isinstance(constant, int | float) and len(constant) != form.channels:
                raise AuthoringError(f"{name}: give one number, or {form.channels} (one per channel); got {len(constant)}")
        return form

    def apply(self, array: np.ndarray, form: _Form) -> np.ndarray:
        """See `_ArrayStep.apply`."""
        for operator, constant in self.operations():
            array = _NUMPY[operator](array, _constant(constant, form))
        return array

    def nodes(self, source: str, target: str, form: _Form) -> list[onnx.NodeProto]:
        """See `_ArrayStep.nodes`."""
        nodes: list[onnx.NodeProto] = []
        operations = self.operations()
        for i, (operator, constant) in enumerate(operations):
            out = target if i == len(operations) - 1 else f"{target}_{operator.lower()}"
            value = numpy_helper.from_array(_constant(constant, form), name=f"{out}_constant")
            nodes.append(helper.make_node("Constant", [], [value.name], value=value))
            nodes.append(helper.make_node(operator, [source, value.name], [out]))
            source = out
        return nodes


_NUMPY: Final = {"Sub": np.subtract, "Div": np.divide, "Mul": np.multiply, "Add": np.add}


@dataclass(frozen=True)
class Normalize(_Arithmetic):
    """(x - mean) / std in float32: two operations, each rounded. Mean and std are one number or one per channel."""

    mean: float | Sequence[float]
    std: float | Sequence[float]

    def __post_init__(self) -> None:
        if 0 in np.ravel(self.std):
            raise AuthoringError("Normalize: std must not be zero")

    def operations(self) -> list[tuple[str, float | Sequence[float]]]:
        """See `_Arithmetic.operations`."""
        return [("Sub", self.mean), ("Div", self.std)]


@dataclass(frozen=True)
class Divide(_Arithmetic):
    """x / by in float32, for example Divide(255) for torchvision's ToTensor."""

    by: float | Sequence[float]

    def __post_init__(self) -> None:
        if 0 in np.ravel(self.by):
            raise AuthoringError("Divide: cannot divide by zero")

    def operations(self) -> list[tuple[str, float | Sequence[float]]]:
        """See `_Arithmetic.operations`."""
        return [("Div", self.by)]


@dataclass(frozen=True)
class Multiply(_Arithmetic):
    """x × by in float32. Multiply(1 / 255) and Divide(255) differ in the last bit of some values: use what training used."""

    by: float | Sequence[float]

    def operations(self) -> list[tuple[str, float | Sequence[float]]]:
        """See `_Arithmetic.operations`."""
        return [("Mul", self.by)]


@dataclass(frozen=True)
class Add(_Arithmetic):
    """x + by in float32."""

    by: float | Sequence[float]

    def operations(self) -> list[tuple[str, float | Sequence[float]]]:
        """See `_Arithmetic.operations`."""
        return [("Add", self.by)]


@dataclass(frozen=True)
class ScaleAndShift(_Arithmetic):
    """x × scale + shift in float32: two operations, each rounded. Scale and shift are one number or one per channel."""

    scale: float | Sequence[float]
    shift: float | Sequence[float]

    def operations(self) -> list[tuple[str, float | Sequence[float]]]:
        """See `_Arithmetic.operations`."""
        return [("Mul", self.scale), ("Add", self.shift)]


@dataclass(frozen=True)
class Rescale(_ArrayStep):
    """x × by in float64, then rounded to float32: `(array.astype(np.float64) * by).astype(np.float32)`, as Hugging Face's NumPy processors.

    On the 256 levels of a pixel Rescale(1 / 255) gives what Divide(255) gives; Multiply(1 / 255), a factor in float32, does not.
    """

    by: float

    def after(self, form: _Form) -> _Form:
        """See `Step.after`."""
        return replace(form, dtype="float32")

    def apply(self, array: np.ndarray, form: _Form) -> np.ndarray:
        """See `_ArrayStep.apply`."""
        result: np.ndarray = (array.astype(np.float64) * self.by).astype(np.float32)
        return result

    def nodes(self, source: str, target: str, form: _Form) -> list[onnx.NodeProto]:
        """See `_ArrayStep.nodes`."""
        by = numpy_helper.from_array(np.array(self.by, dtype=np.float64), name=f"{target}_constant")
        return [
            helper.make_node("Constant", [], [by.name], value=by),
            helper.make_node("Cast", [source], [f"{target}_double"], to=TensorProto.DOUBLE),
            helper.make_node("Mul", [f"{target}_double", by.name], [f"{target}_product"]),
            helper.make_node("Cast", [f"{target}_product"], [target], to=TensorProto.FLOAT),
        ]


@dataclass(frozen=True)
class ToBGR(_ArrayStep):
    """Channels the other way round, as networks trained on OpenCV's arrays want them: `array[..., ::-1]`."""

    def after(self, form: _Form) -> _Form:
        """See `Step.after`."""
        if form.channels != 3:
            raise AuthoringError("ToBGR turns three channels around; put ToRGB() before it")
        return form

    def apply(self, array: np.ndarray, form: _Form) -> np.ndarray:
        """See `_ArrayStep.apply`."""
        return np.ascontiguousarray(np.flip(array, -1 if form.layout == "HWC" else -3))

    def nodes(self, source: str, target: str, form: _Form) -> list[onnx.NodeProto]:
        """See `_ArrayStep.nodes`."""
        order = numpy_helper.from_array(np.array([2, 1, 0], dtype=np.int64), name=f"{target}_constant")
        return [
            helper.make_node("Constant", [], [order.name], value=order),
            helper.make_node("Gather", [source, order.name], [target], axis=form.rank - (1 if form.layout == "HWC" else 3)),
        ]


@dataclass(frozen=True)
class ToCHW(_ArrayStep):
    """Channels first: [H, W, C] to [C, H, W]."""

    def after(self, form: _Form) -> _Form:
        """See `Step.after`."""
        if form.layout != "HWC":
            raise AuthoringError("ToCHW comes once")
        return replace(form, layout="CHW")

    def apply(self, array: np.ndarray, form: _Form) -> np.ndarray:
        """See `_ArrayStep.apply`."""
        return np.ascontiguousarray(np.moveaxis(array, -1, -3))

    def nodes(self, source: str, target: str, form: _Form) -> list[onnx.NodeProto]:
        """See `_ArrayStep.nodes`."""
        leading = list(range(form.rank - 3))
        return [helper.make_node("Transpose", [source], [target], perm=[*leading, form.rank - 1, form.rank - 3, form.rank - 2])]


class Preprocess:
    """An image pipeline: callable for training, two ONNX stages for serving, the same bits.

    Attributes:
        steps: The steps in order: `Decode`, then steps on the image, then `FiveCrop` or `TenCrop` if at all, then steps on the array.
        pixels: Name of the value between the stages, uint8 [H, W, C], or [K, H, W, C] with crops.
        output: Name of the result, which the model reads; `pixels` itself when no array step is given.

    Raises:
        AuthoringError: The steps cannot follow one another, or the size of the result depends on the image.
    """

    def __init__(self, steps: Sequence[Step], *, pixels: str = "pixels", output: str = "input") -> None:
        if not steps or not isinstance(steps[0], Decode):
            raise AuthoringError("Preprocess starts with Decode()")
        self.steps = tuple(steps)
        self._decode = steps[0]
        self._image_steps = [s for s in steps if isinstance(s, _ImageStep)]
        self._crops = [s for s in steps if isinstance(s, _CropsStep)]
        self._array_steps = [s for s in steps if isinstance(s, _ArrayStep)]
        if [self._decode, *self._image_steps, *self._crops, *self._array_steps] != list(steps) or len(self._crops) > 1:
            raise AuthoringError(
                "Preprocess: Decode comes first and once, then steps on the image (ToRGB, CenterCrop, Resize), after them at most one of "
                "FiveCrop and TenCrop, then steps on the array"
            )
        _follow([*self._image_steps, *self._crops], self._array_steps)  # as written, for what it refuses
        # Constants per channel meet whole planes then, with the same result: 0.1 ms instead of 1.2 for 224 × 224.
        self._array_steps.sort(key=lambda step: not isinstance(step, ToCHW))
        self._forms = _follow([*self._image_steps, *self._crops], self._array_steps)
        self._decoder = self._decode.decoder()
        self.pixels = pixels
        self.output = output if self._array_steps else pixels

    def __repr__(self) -> str:
        return f"Preprocess([{', '.join(map(repr, self.steps))}])"

    @property
    def output_shape(self) -> list[int]:
        """Shape of the result for one image."""
        return self._forms[-1].shape

    @property
    def crops(self) -> int | None:
        """How many crops every image becomes, the first axis of the result; None without `FiveCrop` and `TenCrop`."""
        return self._forms[-1].crops

    def __call__(self, image: bytes | Image.Image) -> np.ndarray:
        """Return what training feeds the model for one image.

        Args:
            image: The encoded file, or a Pillow image.

        Returns:
            The array after the last step, float32 [C, H, W] for a pipeline that ends with ToCHW, [K, C, H, W] with crops.

        Raises:
            InputError: The image cannot be decoded or is not accepted.
        """
        return self.batch(self.item(image))

    def trace(self, image: bytes | Image.Image) -> dict[str, np.ndarray]:
        """Return the result with its named intermediate: {pixels: uint8 [H, W, C], output: the result}."""
        pixels = self.item(image)
        return {self.pixels: pixels, self.output: self.batch(pixels)}

    def item(self, image: bytes | Image.Image) -> np.ndarray:
        """Do the item stage with Pillow: uint8 [H, W, C], or [K, H, W, C] with crops."""
        loaded = self._load(image)
        for step in self._image_steps:
            loaded = step.apply(loaded)
        for crops in self._crops:
            return np.stack([to_array(crop) for crop in crops.apply(loaded)])
        return np.ascontiguousarray(to_array(loaded))

    def batch(self, pixels: np.ndarray) -> np.ndarray:
        """Do the batch stage with NumPy on uint8 [..., H, W, C]."""
        for step, form in zip(self._array_steps, self._forms, strict=False):
            pixels = step.apply(pixels, form)
        return pixels

    def stages(self, name: str = "image") -> list[DraftStage]:
        """Return the drafts of preprocess.item and, if there are array steps, preprocess.batch.

        Args:
            name: Name of the raw image field.
        """
        item = DraftStage("preprocess.item", self._item_model(name))
        return [item, DraftStage("preprocess.batch", self._batch_model())] if self._array_steps else [item]

    def fields(
        self, name: str = "image", *, description: str = "", max_bytes: int = DEFAULT_MAX_BYTES, max_pixels: int = DEFAULT_MAX_PIXELS
    ) -> list[RawField]:
        """Return the raw field of the package: one required image.

        Args:
            name: The field's name in requests.
            description: A sentence for callers; one that lists the formats by default.
            max_bytes: Largest accepted file.
            max_pixels: Largest accepted width × height.
        """
        text = description or f"An image file ({', '.join(self._decode.formats)})."
        return [RawField(name=name, kind="image", description=text, max_bytes=max_bytes, max_pixels=max_pixels, missing=Missing())]

    def decoders(self) -> list[Decoder]:
        """Return the manifest's decoder for the item stage."""
        return [self._decoder]

    def _load(self, image: bytes | Image.Image) -> Image.Image:
        if isinstance(image, Image.Image):
            turned = upright(image) if self._decode.exif_orientation == "apply" else image
            turned.load()
            return convert_mode(turned, self._decoder, "image")
        return open_image(image, self._decoder, max_pixels=DEFAULT_MAX_PIXELS, field="image")

    def _item_model(self, name: str) -> onnx.ModelProto:
        nodes = [helper.make_node("ImageDecoder", [name], ["decoded"], name=_DECODE_NODE, pixel_format="RGB")]
        steps: list[_ImageStep | _CropsStep] = [*self._image_steps, *self._crops]
        for i, step in enumerate(steps):
            last = i == len(steps) - 1
            node = step.node(nodes[-1].output[0], self.pixels if last else f"{_snake(step)}_{i}")
            node.name = f"{_snake(step)}_{i}"
            nodes.append(node)
        encoded = helper.make_tensor_value_info(name, TensorProto.UINT8, [f"{name}_bytes"])
        pixels = helper.make_tensor_value_info(self.pixels, TensorProto.UINT8, self._forms[0].shape)
        return _model(nodes, "preprocess.item", encoded, pixels)

    def _batch_model(self) -> onnx.ModelProto:
        nodes: list[onnx.NodeProto] = []
        source = self.pixels
        for i, (step, form) in enumerate(zip(self._array_steps, self._forms, strict=False)):
            target = self.output if i == len(self._array_steps) - 1 else f"{_snake(step)}_{i}"
            made = step.nodes(source, target, form)
            made[-1].name = f"{_snake(step)}_{i}"
            nodes += made
            source = target
        first, last = self._forms[0], self._forms[-1]
        pixels = helper.make_tensor_value_info(self.pixels, TensorProto.UINT8, ["n", *first.shape])
        output = helper.make_tensor_value_info(self.output, _TENSOR_TYPES[last.dtype], ["n", *last.shape])
        return _model(nodes, "preprocess.batch", pixels, output)


_TENSOR_TYPES: Final = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}


def _follow(image_steps: Sequence[Step], array_steps: Sequence[_ArrayStep]) -> list[_Form]:
    """Return what is known between the stages and after every array step."""
    form = _Form()
    for step in image_steps:
        form = step.after(form)
    if form.height is None or form.width is None or form.channels is None:
        raise AuthoringError(
            "the shape after the image steps depends on the image, and batches need one shape; use ToRGB() or ToL(), and end with "
            "Resize((height, width), …), CenterCrop(size), PadTo(size), FiveCrop(size) or TenCrop(size)"
        )
    forms = [form]
    for array_step in array_steps:
        forms.append(array_step.after(forms[-1]))
    return forms


def _model(nodes: list[onnx.NodeProto], name: str, source: onnx.ValueInfoProto, target: onnx.ValueInfoProto) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, name, [source], [target])
    functions = library(called_functions(nodes))
    model = helper.make_model(graph, functions=functions, opset_imports=opset_imports(), ir_version=IR_VERSION, producer_name="samegraph")
    onnx.checker.check_model(model, full_check=True)
    return model


def _constant(value: float | Sequence[float], form: _Form) -> np.ndarray:
    """Return a constant as float32, shaped to meet the channel axis."""
    array = np.asarray(value, dtype=np.float32)
    if array.ndim == 0:
        return array
    if form.layout == "CHW":
        return array[:, np.newaxis, np.newaxis]
    assert form.width is not None
    return np.tile(array, (form.width, 1))  # a row of pixels: ten times as fast as three numbers at a time


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _levels(colour: int | Sequence[int]) -> list[int]:
    return [colour] if isinstance(colour, int) else list(colour)


def _fill(colour: int | Sequence[int], image: Image.Image) -> int | tuple[int, ...]:
    """Return the colour as Pillow takes it for the image's mode."""
    bands = len(image.getbands())
    levels = tuple(_levels(colour)) * (bands if len(_levels(colour)) == 1 else 1)
    return levels[0] if bands == 1 else levels


def _sides(border: int | tuple[int, int, int, int]) -> Sequence[int]:
    """Return left, top, right and bottom of a border."""
    return (border,) * 4 if isinstance(border, int) else border


def _check_border(step: str, border: int | tuple[int, int, int, int]) -> None:
    sides = _sides(border)
    if len(sides) != 4 or not all(0 <= side <= 65_535 for side in sides):
        raise AuthoringError(f"{step}: the border is one width or (left, top, right, bottom), each from 0 to 65,535; got {border}")


def _bordered(form: _Form, border: int | tuple[int, int, int, int]) -> _Form:
    left, top, right, bottom = _sides(border)
    height = None if form.height is None else form.height + top + bottom
    width = None if form.width is None else form.width + left + right
    square = height == width if height is not None else form.square and left + right == top + bottom
    return replace(form, height=height, width=width, square=square)


def _five_crops(image: Image.Image, size: tuple[int, int]) -> list[Image.Image]:
    check_crops(size, (image.height, image.width))
    return [image.crop((left, top, right, bottom)) for top, left, bottom, right in five_windows((image.height, image.width), size)]


def _check_colour(step: str, colour: int | Sequence[int]) -> None:
    levels = _levels(colour)
    if not levels or not all(0 <= level <= 255 for level in levels):
        raise AuthoringError(f"{step}: a colour is one level or one for each channel, whole numbers from 0 to 255; got {colour!r}")


def _check_levels(step: str, colour: int | Sequence[int], form: _Form) -> None:
    if form.channels is None:
        raise AuthoringError(f"{step} comes after ToRGB or ToL: how many channels there are to colour depends on the image before that")
    if len(_levels(colour)) not in (1, form.channels):
        raise AuthoringError(f"{step}: give one level, or {form.channels} (one per channel); got {len(_levels(colour))}")


def _check_size(step: str, size: tuple[int, int]) -> None:
    if not all(1 <= side <= 65_535 for side in size):
        raise AuthoringError(f"{step}: a side must be from 1 to 65,535 pixels; got {size[0]} × {size[1]}")


def _check_choice(step: str, what: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise AuthoringError(f"{step}: {what} must be one of {', '.join(map(str, choices))}; got {value!r}")


def _snake(step: Step) -> str:
    return _NODE_NAMES.get(type(step).__name__, type(step).__name__.lower())


_NODE_NAMES: Final = {
    "ToRGB": "to_rgb",
    "ToL": "to_l",
    "ToBGR": "to_bgr",
    "ToFloat": "to_float",
    "ToCHW": "to_chw",
    "CenterCrop": "center_crop",
    "OnBackground": "on_background",
    "PadTo": "pad_to",
    "PadWith": "pad_with",
    "FiveCrop": "five_crop",
    "TenCrop": "ten_crop",
    "ScaleAndShift": "scale_and_shift",
    "TorchResize": "torch_resize",
}
