"""Image preprocessing that training code wrote down for itself, as a `Preprocess`.

    preprocess = from_torchvision(weights.transforms())                     # or a Compose of v1 or v2
    preprocess = from_timm(resolve_data_config(model.pretrained_cfg))       # a dict
    preprocess = from_huggingface(Path("preprocessor_config.json").read_bytes(), processor="slow")

None of the three libraries is imported: objects are read by the names of their classes and attributes. The image they get in training is
a Pillow image in RGB, `Image.open(file).convert("RGB")`, or a uint8 tensor made of one; the imported pipeline makes it. What has no exact
step is refused by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np

from .errors import AuthoringError, UnsupportedStep
from .functions import PAD_MODES, FilterName, Rounding, Semantics
from .image import (
    CenterCrop,
    Decode,
    Divide,
    FiveCrop,
    Flip,
    Multiply,
    Normalize,
    Pad,
    PadWith,
    Preprocess,
    Rescale,
    Resize,
    SizeBy,
    Step,
    TenCrop,
    ToCHW,
    ToFloat,
    ToL,
    ToRGB,
)
from .torch_functions import TORCH_FILTERS, Arithmetic
from .torch_resize import TorchResize

__all__ = ["from_huggingface", "from_timm", "from_torchvision"]

#: Pillow's numbers, which preprocessor_config.json uses.
_PILLOW_FILTERS: Final[tuple[FilterName, ...]] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")


@dataclass
class _Pipeline:
    """Steps so far, and what is known of the image.

    Attributes:
        source: What is imported, for errors.
        semantics: Of resizes; None for those of the Pillow installed now.
        steps: The steps.
        shorter: The shorter side is at least this long.
        tensor: Whether the image has become a tensor: resizes are PyTorch's then.
        floating: Whether its values are floats.
        arithmetic: How a tensor is resized.
        channels: How many the image has.
        crops: What became of five or ten crops: they are a tuple until they are `stacked`; None without crops.
        plain: Whether the tensor is a plain one, not torchvision's `Image`.
        each: What transforms that cannot be read do with every crop, if that was said.
    """

    source: str
    semantics: Semantics | None
    steps: list[Step] = field(default_factory=lambda: [Decode(), ToRGB()])
    shorter: int = 0
    tensor: bool = False
    floating: bool = False
    arithmetic: Arithmetic = "integer"
    channels: int = 3
    crops: Literal["tuple", "stacked"] | None = None
    plain: bool = False
    each: Sequence[Any] | None = None

    def refuse(self, step: str, why: str) -> UnsupportedStep:
        """Return the error that refuses a step."""
        return UnsupportedStep(f"{self.source}: {step} {why}", step=step)

    def image(self, name: str, step: Step) -> None:
        """Add a step that moves pixels about and changes none.

        Of a tensor it is done before the arithmetic, which treats every value by itself.
        """
        if self.crops is not None:
            raise self.refuse(name, "comes after the crops and would change each of them; put it before them")
        if not self.tensor:
            self.steps.append(step)
            return
        at = next((i for i, one in enumerate(self.steps) if isinstance(one, _ELEMENTWISE)), len(self.steps))
        if not all(isinstance(one, _ELEMENTWISE) for one in self.steps[at:]):
            raise self.refuse(name, "comes after a resize of the tensor and has no exact step there; put it before the tensor")
        self.steps.insert(at, step)

    def resize(
        self, step: str, size: Sequence[int], name: str, *, by: SizeBy | None = None, rounded: bool = False, max_size: int | None = None
    ) -> None:
        """Add a resize to (height, width), or of the shorter side to the one number of `size`; see `Resize` for the other ways."""
        if self.crops is not None:
            raise self.refuse(step, "comes after the crops and would change each of them; put it before them")
        self.shorter = 0 if by is not None or max_size is not None else min(int(side) for side in size)
        if self.tensor:
            if by is not None or max_size is not None:
                raise self.refuse(
                    step, "makes a tensor of another size for every image by a rule that has no exact step; put it before the tensor"
                )
            self._resize_tensor(step, size, name)
            return
        known = {"nearest-exact": "nearest"}.get(name, name)
        if known not in _PILLOW_FILTERS:
            raise self.refuse(step, f"has interpolation {name!r}; exact are {', '.join(_PILLOW_FILTERS)}")
        sides = [int(s) for s in size]
        wanted = sides[0] if len(sides) == 1 else (sides[0], sides[1])
        rounding: Literal["round", "int"] = "round" if rounded else "int"
        self.steps.append(Resize(wanted, known, semantics=self.semantics, by=by, rounding=rounding, max_size=max_size))

    def _resize_tensor(self, step: str, size: Sequence[int], name: str) -> None:
        """Add the same for a tensor: what PyTorch's `interpolate(antialias=True)` makes of uint8."""
        if self.floating:
            raise self.refuse(step, "works on a float tensor here and has no exact step; put it before the conversion to float")
        if name not in TORCH_FILTERS:
            raise self.refuse(step, f"has interpolation {name!r} on a tensor; exact are {', '.join(TORCH_FILTERS)}")
        sides = [int(s) for s in size]
        self.steps.append(TorchResize(sides[0] if len(sides) == 1 else (sides[0], sides[1]), name, self.arithmetic))

    def center_crop(self, step: str, size: Sequence[int], rounding: Rounding, *, colour: int | Sequence[int] = 0) -> None:
        """Add a crop of (height, width), which puts `colour` around a smaller image."""
        height, width = _height_width(size)
        self.shorter = min(height, width)
        if any(isinstance(one, Normalize) for one in self.steps):
            raise self.refuse(step, "puts zeros around a smaller image, which are no pixels any more after Normalize; put it before")
        self.image(step, CenterCrop((height, width), rounding=rounding, colour=colour))

    def normalize(self, mean: Any, std: Any) -> None:
        """Add (x - mean) / std."""
        self.steps.append(Normalize(mean=_numbers(mean), std=_numbers(std)))

    def finish(self) -> Preprocess:
        """Return the pipeline, channels first."""
        return Preprocess([*self.steps, ToCHW()])


#: Steps on the array that treat every value by itself, and zero as zero but for Normalize.
_ELEMENTWISE: Final = (ToFloat, Divide, Multiply, Rescale, Normalize)


def _height_width(size: Sequence[int]) -> tuple[int, int]:
    return int(size[0]), int(size[-1])


def _numbers(value: Any) -> float | list[float]:
    array = np.asarray(value.tolist() if hasattr(value, "tolist") else value, dtype=np.float64)
    return float(array) if array.ndim == 0 else [float(v) for v in array]


# --- torchvision ------------------------------------------------------------------------------------------------------


def from_torchvision(
    transforms: Any,
    *,
    given: Literal["image", "tensor"] = "image",
    semantics: Semantics | None = None,
    each_crop: Sequence[Any] | None = None,
) -> Preprocess:
    """Read transforms of torchvision: a `Compose` of v1 or v2, a list, or what `weights.transforms()` gives for classification.

    Five and ten crops become the first axis of the result. What stacks them is read where it is `Lambda(torch.stack)`, or a lambda that
    calls `torch.stack` on the crops, or on what one transform makes of each: `lambda crops: torch.stack([ToTensor()(crop) for crop in
    crops])`. Other functions cannot be read.

    Args:
        transforms: The object, as it is applied to a picture in RGB.
        given: What it was applied to: a Pillow `image`, or a uint8 `tensor` with that image's pixels. Both resize, to other pixels.
        semantics: Which Pillow training ran, `pillow<13` or `pillow>=13`; None for the one installed now.
        each_crop: The transforms that functions or classes of your own after FiveCrop or TenCrop apply to every crop before they stack
            them, in order; empty where they only stack.

    Raises:
        UnsupportedStep: A transform has no exact step, or is random; `.step` is its class.
        AuthoringError: The transforms do not end in a float tensor of one shape.
    """
    pipeline = _Pipeline("torchvision", semantics, tensor=given == "tensor", plain=given == "tensor", each=each_crop)
    if type(transforms).__name__ == "ImageClassification":
        if pipeline.tensor and not getattr(transforms, "antialias", True):
            raise pipeline.refuse("ImageClassification.resize", "has antialias=False on a tensor, which has no exact step")
        pipeline.arithmetic = "float32"
        pipeline.resize("ImageClassification.resize", transforms.resize_size, _interpolation(transforms))
        pipeline.center_crop("ImageClassification.center_crop", transforms.crop_size, "half_even")
        pipeline.steps += [ToFloat(), Divide(255)]
        pipeline.normalize(transforms.mean, transforms.std)
        return pipeline.finish()
    _read_all(pipeline, transforms if isinstance(transforms, Sequence) else getattr(transforms, "transforms", [transforms]))
    if pipeline.each is not None:
        raise AuthoringError(
            "torchvision: each_crop says what nothing here needs said: every transform after the crops can be read; leave it out"
        )
    if pipeline.crops == "tuple":
        raise AuthoringError("torchvision: the crops are left as a tuple; stack them, add Lambda(torch.stack)")
    if not pipeline.floating:
        raise AuthoringError(
            "torchvision: the transforms do not end in a float tensor; add ToTensor(), or ToImage() and ToDtype(torch.float32, scale=True)"
        )
    return pipeline.finish()


def _read_all(pipeline: _Pipeline, listed: Sequence[Any]) -> None:
    said = False  # whether what was read last is what `each_crop` says
    for one in listed:
        name = type(one).__name__
        own = name not in _TORCHVISION or (name == "Lambda" and _stacking(one.lambd) is None)
        if said and own:
            continue
        said = own and pipeline.crops == "tuple" and pipeline.each is not None
        if said:
            each, pipeline.each = pipeline.each, None
            _stack(pipeline, name, each or [])
        elif own:
            raise _unreadable(pipeline, name)
        elif pipeline.crops == "tuple" and name not in ("Lambda", "Compose"):
            _read_each(pipeline, name, one)
        else:
            _TORCHVISION[name](pipeline, one)


def _unreadable(pipeline: _Pipeline, name: str) -> UnsupportedStep:
    if pipeline.crops == "tuple":
        return pipeline.refuse(
            name,
            "is a program of your own and cannot be read: say what it does with each crop before it stacks them, for example "
            "from_torchvision(…, each_crop=[ToTensor(), Normalize(mean, std)]), or each_crop=[] where it only stacks",
        )
    if name == "Lambda":
        return pipeline.refuse(name, "is a function, which cannot be read; only one that stacks the crops of FiveCrop or TenCrop can")
    return pipeline.refuse(
        name, f"has no exact step (or is random: leave augmentation out); there are steps for {', '.join(sorted(_TORCHVISION))}"
    )


def _read_each(pipeline: _Pipeline, name: str, one: Any) -> None:
    """Read a transform of a tuple of crops, each of which it changes."""
    if not _is_v2(one):
        raise pipeline.refuse(name, "of version 1 cannot take the tuple of crops; stack them first, Lambda(torch.stack)")
    if pipeline.plain:
        raise pipeline.refuse(name, "of version 2 changes only the first of several plain tensors; stack them first, Lambda(torch.stack)")
    _TORCHVISION[name](pipeline, one)


def _interpolation(transform: Any) -> str:
    value = transform.interpolation
    return str(getattr(value, "value", value))


def _sizes(value: Any) -> list[int]:
    return [int(value)] if isinstance(value, int) else [int(v) for v in value]


def _torchvision_resize(pipeline: _Pipeline, transform: Any) -> None:
    if pipeline.tensor and not getattr(transform, "antialias", True):
        raise pipeline.refuse("Resize", "has antialias=False on a tensor, which has no exact step")
    pipeline.arithmetic = "integer" if _is_v2(transform) else "float32"
    most = getattr(transform, "max_size", None)
    if transform.size is None:
        if most is None:
            raise pipeline.refuse("Resize", "has no size")
        pipeline.resize("Resize", [int(most)], _interpolation(transform), by="longer")
        return
    sizes = _sizes(transform.size)
    if most is not None and (len(sizes) != 1 or most <= sizes[0]):
        raise pipeline.refuse(
            "Resize", f"has max_size={most} with size={transform.size}: it goes with one smaller number for the shorter side"
        )
    pipeline.resize("Resize", sizes, _interpolation(transform), max_size=None if most is None else int(most))


def _torchvision_crop(pipeline: _Pipeline, transform: Any) -> None:
    pipeline.center_crop("CenterCrop", _sizes(transform.size), "half_even")


def _crops(pipeline: _Pipeline, transform: Any) -> None:
    size, name = _height_width(_sizes(transform.size)), type(transform).__name__
    pipeline.image(name, FiveCrop(size) if name == "FiveCrop" else TenCrop(size, vertical_flip=bool(transform.vertical_flip)))
    pipeline.crops = "tuple"
    pipeline.plain = pipeline.tensor and (pipeline.plain or not _is_v2(transform))


def _lambda(pipeline: _Pipeline, transform: Any) -> None:
    if pipeline.crops != "tuple":
        raise pipeline.refuse("Lambda", "is a function, which cannot be read; only one that stacks the crops of FiveCrop or TenCrop can")
    if _is_v2(transform):
        raise pipeline.refuse(
            "Lambda", "of version 2 is called with every crop alone and cannot stack them; take torchvision.transforms.Lambda"
        )
    _stack(pipeline, "Lambda", _stacking(transform.lambd) or ())


def _stack(pipeline: _Pipeline, name: str, each: Sequence[Any]) -> None:
    """Read what is done with every crop, and that they are stacked then."""
    pipeline.crops = "stacked"
    _read_all(pipeline, each)
    if not pipeline.tensor:
        raise pipeline.refuse(name, "stacks tensors, and the crops are Pillow images; put ToImage() before it, or ToTensor() inside")


_STACKS: Final = tuple(
    compile(f"lambda crops: torch.stack({inner})", "stack", "eval").co_consts[0]
    for inner in ("crops", "[each(crop) for crop in crops]", "[Each()(crop) for crop in crops]", "[module.Each()(crop) for crop in crops]")
)


def _stacking(function: Any) -> list[Any] | None:
    """Return the transforms that a function applies to every crop before it stacks them; None where it does something else.

    A lambda is compared, instruction by instruction, with the few that are known.
    """
    if getattr(function, "__name__", None) == "stack" and not hasattr(function, "__code__"):
        return []  # torch.stack itself, a function in C
    code, known = getattr(function, "__code__", None), getattr(function, "__globals__", {})
    if code is None or code.co_names[:2] != ("torch", "stack") or getattr(known.get("torch"), "__name__", None) != "torch":
        return None
    for kind, template in enumerate(_STACKS):
        mine, theirs = _instructions(code), _instructions(template)
        if [c.co_code for c in mine] != [c.co_code for c in theirs]:
            continue
        if kind == 0:
            return []
        names = mine[-1].co_names if len(mine) > 1 else mine[0].co_names[2:]
        found = getattr(known.get(names[0]), names[1]) if kind == 3 else known.get(names[0])
        return [found if kind == 1 or found is None else found()]
    return None


def _instructions(code: Any) -> list[Any]:
    return [code, *(inner for inner in code.co_consts if hasattr(inner, "co_code"))]


def _pad(pipeline: _Pipeline, transform: Any) -> None:
    amounts, mode = _sizes(transform.padding), transform.padding_mode
    if pipeline.tensor:
        raise pipeline.refuse("Pad", "works on a tensor here; put it before the tensor")
    if len(amounts) not in (1, 2, 4) or min(amounts) < 0:
        raise pipeline.refuse("Pad", f"has padding={transform.padding}; exact are one, two or four widths, none below 0")
    left, top, right, bottom = amounts * (4 // len(amounts))
    if mode in PAD_MODES:
        pipeline.image("Pad", PadWith((left, top, right, bottom), mode))
        return
    fill = 0 if transform.fill is None else transform.fill
    levels = [fill] if isinstance(fill, int | float) else list(fill) if isinstance(fill, Sequence) else []
    if mode != "constant" or not levels or any(level != int(level) for level in levels):
        raise pipeline.refuse("Pad", f"has padding_mode={mode!r}, fill={fill!r}; exact are whole levels, one or one for each channel")
    pipeline.image("Pad", Pad((left, top, right, bottom), [int(level) for level in levels] if len(levels) > 1 else int(levels[0])))


def _grayscale(pipeline: _Pipeline, transform: Any) -> None:
    _grey(pipeline, "Grayscale", int(transform.num_output_channels))


def _grey(pipeline: _Pipeline, name: str, channels: int) -> None:
    if pipeline.tensor:
        raise pipeline.refuse(name, "weighs the channels of a tensor in float32, otherwise than Pillow; put it before the tensor")
    pipeline.image(name, ToL())
    if channels == 3:
        pipeline.image(name, ToRGB())
    pipeline.channels = channels


def _three_channels(pipeline: _Pipeline, _: Any) -> None:
    if pipeline.channels != 3:
        pipeline.image("RGB", ToRGB())
        pipeline.channels = 3


def _perhaps(pipeline: _Pipeline, transform: Any) -> None:
    """Read a random transform that always or never does something."""
    name = type(transform).__name__
    if transform.p not in (0, 1):
        raise pipeline.refuse(name, f"is random (p={transform.p}): leave augmentation out")
    if transform.p == 0:
        return
    if name == "RandomGrayscale":
        _grey(pipeline, name, pipeline.channels)
    else:
        pipeline.image(name, Flip("horizontal" if name == "RandomHorizontalFlip" else "vertical"))


def _keep_ratio(pipeline: _Pipeline, transform: Any) -> None:
    if transform.random_scale_prob or transform.random_aspect_prob or transform.longest not in (0, 1):
        raise pipeline.refuse("ResizeKeepRatio", "is random, or between the shorter and the longer side; exact are longest=0 and longest=1")
    pipeline.resize(
        "ResizeKeepRatio", transform.size, _interpolation(transform), by="within" if transform.longest else "cover", rounded=True
    )


def _crop_or_pad(pipeline: _Pipeline, transform: Any) -> None:
    if transform.padding_mode != "constant":
        raise pipeline.refuse("CenterCropOrPad", f"has padding_mode={transform.padding_mode!r}; `constant` is exact")
    fill = transform.fill
    pipeline.center_crop("CenterCropOrPad", transform.size, "half_even", colour=fill if isinstance(fill, int) else [int(v) for v in fill])


def _is_v2(transform: Any) -> bool:
    return ".v2" in type(transform).__module__


def _to_tensor(pipeline: _Pipeline, _: Any) -> None:
    pipeline.tensor = pipeline.floating = pipeline.plain = True
    pipeline.steps += [ToFloat(), Divide(255)]


def _to_integer_tensor(pipeline: _Pipeline, transform: Any) -> None:
    pipeline.tensor = True
    pipeline.plain = type(transform).__name__ == "PILToTensor"


def _to_dtype(pipeline: _Pipeline, transform: Any) -> None:
    name = type(transform).__name__
    if str(transform.dtype) != "torch.float32":
        raise pipeline.refuse(name, f"to {transform.dtype} has no exact step; use torch.float32")
    if pipeline.floating:
        return
    if not pipeline.tensor:
        raise pipeline.refuse(name, "does nothing to a Pillow image; put ToImage() before it")
    pipeline.floating = True
    scaled = name == "ConvertImageDtype" or bool(transform.scale)
    # v1 divides by 255, v2 multiplies by the float32 next to 1 / 255: other last bits on half of the 256 levels.
    scaling: list[Step] = [Multiply(1 / 255) if _is_v2(transform) else Divide(255)] if scaled else []
    pipeline.steps += [ToFloat(), *scaling]


def _torchvision_normalize(pipeline: _Pipeline, transform: Any) -> None:
    if not pipeline.floating:
        raise pipeline.refuse("Normalize", "needs a float tensor before it")
    pipeline.normalize(transform.mean, transform.std)


def _to_plain_tensor(pipeline: _Pipeline, _: Any) -> None:
    pipeline.plain = True


def _nested(pipeline: _Pipeline, transform: Any) -> None:
    _read_all(pipeline, transform.transforms)


_TORCHVISION: Final[dict[str, Callable[[_Pipeline, Any], None]]] = {
    "Compose": _nested,
    "RGB": _three_channels,
    "Resize": _torchvision_resize,
    "CenterCrop": _torchvision_crop,
    "FiveCrop": _crops,
    "TenCrop": _crops,
    "Lambda": _lambda,
    "Pad": _pad,
    "Grayscale": _grayscale,
    "RandomHorizontalFlip": _perhaps,
    "RandomVerticalFlip": _perhaps,
    "RandomGrayscale": _perhaps,
    "ToTensor": _to_tensor,
    "ToImage": _to_integer_tensor,
    "PILToTensor": _to_integer_tensor,
    "ToDtype": _to_dtype,
    "ConvertImageDtype": _to_dtype,
    "ToPureTensor": _to_plain_tensor,
    "Normalize": _torchvision_normalize,
    # timm's
    "MaybeToTensor": _to_tensor,
    "ResizeKeepRatio": _keep_ratio,
    "CenterCropOrPad": _crop_or_pad,
}


# --- timm -------------------------------------------------------------------------------------------------------------


def from_timm(config: Mapping[str, Any], *, semantics: Semantics | None = None) -> Preprocess:
    """Read a data configuration of timm: what `resolve_data_config` returns, or a model's `pretrained_cfg`.

    Args:
        config: With `input_size` (channels, height, width), `interpolation`, `mean`, `std`, `crop_pct` and `crop_mode`.
        semantics: Which Pillow training ran, `pillow<13` or `pillow>=13`; None for the one installed now.

    Raises:
        UnsupportedStep: A crop mode, interpolation or shape that has no exact step.
        AuthoringError: Something is missing.
    """
    lacking = [key for key in ("input_size", "interpolation", "mean", "std") if key not in config]
    if lacking:
        raise AuthoringError(f"timm: the configuration has no {', '.join(lacking)}; give what resolve_data_config returns")
    pipeline = _Pipeline("timm", semantics)
    channels, height, width = (int(v) for v in config["input_size"])
    if channels != 3:
        raise pipeline.refuse("input_size", f"has {channels} channels; 3 are exact")
    if config.get("crop_border_pixels"):
        raise pipeline.refuse("crop_border_pixels", "has no exact step")
    fraction = float(config.get("crop_pct") or 0.875)
    mode = config.get("crop_mode") or "center"
    scaled = [math.floor(side / fraction) for side in (height, width)]
    colour: int | list[int] = 0
    if mode == "squash":
        pipeline.resize("resize", scaled, str(config["interpolation"]))
    elif mode == "border":
        pipeline.resize("resize", scaled, str(config["interpolation"]), by="within", rounded=True)
        colour = [round(255 * float(v)) for v in config["mean"]]
    elif mode == "center" and scaled[0] == scaled[1]:
        pipeline.resize("resize", scaled[:1], str(config["interpolation"]))
    elif mode == "center":
        pipeline.resize("resize", scaled, str(config["interpolation"]), by="cover", rounded=True)
    else:
        raise pipeline.refuse("crop_mode", f"{mode!r} has no exact step; there are `center`, `squash` and `border`")
    pipeline.center_crop("center_crop", [height, width], "half_even", colour=colour)
    pipeline.steps += [ToFloat(), Divide(255)]
    pipeline.normalize(config["mean"], config["std"])
    return pipeline.finish()


# --- Hugging Face -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Processor:
    """What a family of image processors does, and what it does where its file says nothing."""

    resample: int
    size: int | Mapping[str, int]
    square: bool  # whether one number for `size` means a square, not the shorter side
    crop: int | None = None
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)


_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_PROCESSORS: Final[dict[str, _Processor]] = {
    "ViT": _Processor(2, 224, square=True),
    "DeiT": _Processor(3, 256, square=True, crop=224, mean=_IMAGENET_MEAN, std=_IMAGENET_STD),
    "Siglip": _Processor(3, 224, square=True),
    "CLIP": _Processor(3, {"shortest_edge": 224}, square=False, crop=224, mean=_CLIP_MEAN, std=_CLIP_STD),
    "ConvNext": _Processor(2, {"shortest_edge": 384}, square=False, mean=_IMAGENET_MEAN, std=_IMAGENET_STD),
    "Detr": _Processor(2, {"shortest_edge": 800, "longest_edge": 1333}, square=False, mean=_IMAGENET_MEAN, std=_IMAGENET_STD),
}


def from_huggingface(
    config: bytes | str | Mapping[str, Any],
    *,
    processor: Literal["slow", "fast"] | None = None,
    semantics: Semantics | None = None,
) -> Preprocess:
    """Read a preprocessor_config.json of the ViT, DeiT, SigLIP, CLIP, ConvNeXT or DETR kind.

    Args:
        config: The file's content, or `image_processor.to_dict()`.
        processor: Which of the two programs training ran: `slow` (Pillow and NumPy; `use_fast=False`, the `…Pil` classes of version 5) or
            `fast` (torchvision tensors, on a CPU with AVX2 or AVX-512). They give other pixels, and the file alone does not always tell.
        semantics: Which Pillow training ran, `pillow<13` or `pillow>=13`; None for the one installed now.

    Raises:
        UnsupportedStep: A step has no exact counterpart; `.step` is its key in the file.
        AuthoringError: The file is not of one of these kinds, or does not tell which program ran.
    """
    facts: Mapping[str, Any] = config if isinstance(config, Mapping) else _parsed(config)
    stated = str(facts.get("image_processor_type") or facts.get("feature_extractor_type") or "")
    kind = stated.removesuffix("Fast").removesuffix("Pil").removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    pipeline = _Pipeline(stated or "Hugging Face", semantics)
    if kind not in _PROCESSORS:
        raise pipeline.refuse("image_processor_type", f"{stated!r} has no importer; there is one for {', '.join(_PROCESSORS)}")
    if processor is None and stated.endswith("Fast"):
        processor = "fast"
    if processor is None and not stated.endswith(("Pil", "FeatureExtractor")):
        raise AuthoringError(
            f"{stated}: the file does not tell whether training ran the slow (Pillow) or the fast (torchvision) processor, and they "
            "give other pixels; say processor='slow' or 'fast' (type(image_processor).__name__ ends with Fast for the latter)"
        )
    known = _PROCESSORS[kind]
    pipeline.tensor = processor == "fast"
    if pipeline.tensor:  # null stands for the class's own value there, and one number for a shorter side in one class more
        facts = {key: value for key, value in facts.items() if value is not None}
        known = replace(known, square=False) if kind == "Siglip" else known
    if kind == "ConvNext":
        _convnext(pipeline, facts, known)
    else:
        _resized(pipeline, facts, known)
    if pipeline.tensor:
        if known.crop is None and kind != "Detr" and facts.get("do_center_crop"):
            pipeline.center_crop("center_crop", _size(pipeline, "crop_size", facts.get("crop_size"), square=True), "toward_zero")
        _fast_arithmetic(pipeline, facts, known)
        return pipeline.finish()
    rescale = bool(facts.get("do_rescale", True))
    pipeline.steps.append(Rescale(float(facts.get("rescale_factor", 1 / 255))) if rescale else ToFloat())
    if facts.get("do_normalize", True):
        pipeline.normalize(facts.get("image_mean") or known.mean, facts.get("image_std") or known.std)
    return pipeline.finish()


def _fast_arithmetic(pipeline: _Pipeline, facts: Mapping[str, Any], known: _Processor) -> None:
    """Add what fast processors do to the values: rescaling goes into mean and std, which are float32 by then."""
    if facts.get("pad_size") and facts.get("do_pad", True):
        raise pipeline.refuse("pad_size", "has no exact step")
    rescale, factor = bool(facts.get("do_rescale", True)), float(facts.get("rescale_factor", 1 / 255))
    pipeline.steps.append(ToFloat())
    if facts.get("do_normalize", True):
        by = np.float32(1 / factor if rescale else 1)
        mean, std = (
            np.asarray(facts.get(key) or usual, dtype=np.float32) * by
            for key, usual in (("image_mean", known.mean), ("image_std", known.std))
        )
        pipeline.normalize(mean, std)
    elif rescale:
        pipeline.steps.append(Multiply(factor))
    else:
        raise pipeline.refuse("do_rescale", "and do_normalize are both off: the tensor would be of uint8, and float32 is exact here")


def _parsed(content: bytes | str) -> Mapping[str, Any]:
    try:
        facts = json.loads(content)
    except ValueError as error:
        raise AuthoringError(f"not a preprocessor_config.json: {error}") from error
    if not isinstance(facts, dict):
        raise AuthoringError("not a preprocessor_config.json: it holds no object")
    return facts


def _filter(pipeline: _Pipeline, facts: Mapping[str, Any], known: _Processor) -> FilterName:
    number = facts.get("resample", known.resample)
    if not isinstance(number, int) or not 0 <= number < len(_PILLOW_FILTERS):
        raise pipeline.refuse("resample", f"{number!r} is none of Pillow's filters, 0 to {len(_PILLOW_FILTERS) - 1}")
    return _PILLOW_FILTERS[number]


def _size(pipeline: _Pipeline, key: str, value: Any, *, square: bool) -> list[int]:
    """Return (height, width), or the shorter side alone."""
    if isinstance(value, int):
        return [value, value] if square else [value]
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2:
        return [int(v) for v in value]
    if isinstance(value, Mapping) and set(value) == {"height", "width"}:
        return [int(value["height"]), int(value["width"])]
    if isinstance(value, Mapping) and set(value) == {"shortest_edge"}:
        return [int(value["shortest_edge"])]
    raise pipeline.refuse(key, f"{value!r} gives every image another shape, and batches need one; give height and width")


def _resized(pipeline: _Pipeline, facts: Mapping[str, Any], known: _Processor) -> None:
    if facts.get("do_resize", True):
        size = _size(pipeline, "size", facts.get("size", known.size), square=known.square)
        pipeline.resize("resize", size, _filter(pipeline, facts, known))
    if known.crop is not None and facts.get("do_center_crop", True):
        size = _size(pipeline, "crop_size", facts.get("crop_size", known.crop), square=True)
        pipeline.center_crop("center_crop", size, "toward_zero" if pipeline.tensor else "floor")


def _convnext(pipeline: _Pipeline, facts: Mapping[str, Any], known: _Processor) -> None:
    if not facts.get("do_resize", True):
        return
    (side,) = _size(pipeline, "size", facts.get("size", known.size), square=False)[:1]
    used = _filter(pipeline, facts, known)
    if side >= 384:
        pipeline.resize("resize", [side, side], used)
        return
    pipeline.resize("resize", [int(side / float(facts.get("crop_pct") or 224 / 256))], used)
    pipeline.center_crop("center_crop", [side, side], "half_even" if pipeline.tensor else "floor")  # torchvision's, or NumPy's
