"""OpenCV itself as a host kernel for the functions of opencv_functions.py, and what is known about the cv2 that is installed.

cv2 is optional: `samegraph-transforms[opencv]`. As with Pillow, it stands in for a function only after the battery of kernels.py. One
function, `cubic_ipp`, is not exact as a graph: there cv2 must be installed and must make of the images of `ipp_digest` what it made of them
where training ran; else the package is refused, because no other answer would be the right one.

Whether cv2 hands a resize to IPP is a setting of each thread (`cv2.ipp.setUseIPP`); a call here states what it wants and puts it back.
"""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper

from .errors import AuthoringError, EnvironmentUnfit
from .opencv_functions import CV_KINDS, CV_ROUNDINGS, CV_SIZE_RULES, CvFilter, CvRounding, CvSemantics, needs_cv2, opencv_resize_function

Size = tuple[int, int]

INSTALL: Final = 'pip install "samegraph-transforms[opencv]"'
#: OpenCV's numbers of the filters (cv2.INTER_NEAREST …), by the names functions have.
_INTERPOLATION: Final = {"nearest": 0, "linear": 1, "cubic": 2, "cubic_ipp": 2, "area": 3, "lanczos4": 4}
#: Sizes (height, width) and what they become, whose cubic sums lie halfway between two levels often: there IPP's order of sums shows.
_TELLING: Final[Sequence[tuple[Size, Size]]] = (
    ((100, 100), (60, 60)),
    ((200, 300), (120, 180)),
    ((61, 47), (97, 31)),
    ((90, 120), (224, 224)),
    ((40, 131), (24, 79)),
    ((75, 50), (45, 30)),
    ((31, 31), (50, 50)),
    ((128, 96), (64, 48)),
)


@cache
def cv2_module() -> Any:
    """Return cv2; None where it is not installed or does not load."""
    try:
        return importlib.import_module("cv2")
    except ImportError:
        return None


def require_cv2(what: str) -> Any:
    """Return cv2.

    Raises:
        AuthoringError: It is not installed; says what wanted it and how to install it.
    """
    module = cv2_module()
    if module is None:
        raise AuthoringError(f"{what} trains with OpenCV, which is not installed: {INSTALL}")
    return module


def cv2_version() -> str:
    """Return the version of the installed cv2, `not installed` without one."""
    module = cv2_module()
    return "not installed" if module is None else str(module.__version__)


@cache
def cv2_identity() -> str:
    """Name everything about the installed cv2 that its results may depend on: version, build and IPP."""
    module = cv2_module()
    if module is None:
        return "not installed"
    ipp = getattr(module, "ipp", None)
    return f"{module.__version__} {module.getBuildInformation()} {ipp.getIppVersion() if ipp is not None else ''}"


def cv_resize(array: np.ndarray, size: Size, kind: str) -> np.ndarray:
    """Return `cv2.resize` of uint8 [H, W, C] to (height, width) by a filter of `CV_KINDS`: uint8 [height, width, C].

    Raises:
        AuthoringError: cv2 is not installed.
    """
    cv2 = require_cv2("a resize")
    ipp = getattr(cv2, "ipp", None)
    used = ipp is not None and bool(ipp.useIPP())
    wanted = kind == "cubic_ipp" if kind.startswith("cubic") else used
    if ipp is not None and used != wanted:
        ipp.setUseIPP(wanted)
    try:
        made: np.ndarray = cv2.resize(np.ascontiguousarray(array), (size[1], size[0]), interpolation=_INTERPOLATION[kind])
    finally:
        if ipp is not None and used != wanted:
            ipp.setUseIPP(used)
    return made.reshape(*size, array.shape[2])


def native_cv_semantics() -> CvSemantics:
    """Find out whether the installed cv2 computes `INTER_CUBIC` itself or hands it to IPP, by resizing noise as this thread is set now.

    Raises:
        AuthoringError: cv2 is not installed.
    """
    cv2 = require_cv2("CvResize")
    for size_in, size in _TELLING:
        noise = _noise(size_in)
        if not np.array_equal(cv2.resize(noise, (size[1], size[0]), interpolation=2), cv_resize(noise, size, "cubic")):
            return "opencv+ipp"
    return "opencv"


@cache
def ipp_digest() -> str:
    """Return the SHA-256 of what the installed cv2 makes by IPP of a fixed set of images, as a hexadecimal string.

    Raises:
        AuthoringError: cv2 is not installed.
    """
    digest = hashlib.sha256()
    for size_in, size in _TELLING:
        for channels in (1, 3):
            digest.update(cv_resize(_noise(size_in)[:, :, :channels], size, "cubic_ipp").tobytes())
    return digest.hexdigest()


def _noise(size: Size) -> np.ndarray:
    """Return uint8 [H, W, 3] made by integer arithmetic, the same everywhere."""
    places = np.arange(size[0] * size[1] * 3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (places ^ (places >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return (mixed >> np.uint64(52)).astype(np.uint8).reshape(*size, 3)


# ---------------------------------------------------------------- sizes


_WHOLE: Final[dict[CvRounding, Callable[[float], int]]] = {
    "int": int,
    "round": round,
    "ceil": math.ceil,
    "half_up": lambda side: math.floor(side + 0.5),
}


def opencv_size(rule: str, size_in: Size, size: Sequence[int], multiple: int = 1) -> Size:
    """Return the (height, width) that a rule of `CV_SIZE_RULES` makes of an image's, in the arithmetic of training code.

    `shorter` and `longer` multiply first, `side * size / reference`; `shorter_ratio` and `longer_ratio` divide first, `side * (size /
    reference)`, which gives another whole number now and then; `inside` is `side * min(h / H, w / W)`, as letterboxes do. The rest of the
    name rounds: `int`, `round` (half to even), `ceil` or `half_up` (`int(x + 0.5)`).

    Args:
        rule: One of the rules.
        size_in: Height and width of the image, each >= 1.
        size: The side, or height and width of the box.
        multiple: What both sides are to be a multiple of.
    """
    rounding = next(name for name in CV_ROUNDINGS if rule.endswith(f"_{name}"))
    by, whole = rule.removesuffix(f"_{rounding}"), _WHOLE[rounding]
    if by == "inside":
        ratio = min(size[0] / size_in[0], size[1] / size_in[1])
        exact = [side * ratio for side in size_in]
    else:
        reference = min(size_in) if by.startswith("shorter") else max(size_in)
        by_ratio = by.endswith("_ratio")
        exact = [side * (size[0] / reference) if by_ratio else side * size[0] / reference for side in size_in]
    height, width = (max(whole(side / multiple), 1) * multiple for side in exact)
    return height, width


# ---------------------------------------------------------------- kernels


def resizing(node: onnx.NodeProto) -> tuple[Callable[[Size], Size], str] | None:
    """Return how a call of a resize function makes its size out of the image's, and the filter; None for any other node.

    Raises:
        KeyError, TypeError, ValueError: The attributes are not those of the function.
    """
    found = _functions().get(node.op_type)
    if found is None:
        return None
    kind, rule = found
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    wanted = [int(v) for v in attributes["size"]]
    if rule is None:
        height, width = wanted
        return (lambda _: (height, width)), kind
    (multiple,) = (int(v) for v in attributes["multiple"])
    return (lambda size_in: opencv_size(rule, size_in, wanted, multiple) if min(size_in) else (1, 1)), kind


def resize_kernel(kind: str) -> Callable[[np.ndarray, Size], np.ndarray] | None:
    """Return cv2's resize by a filter of `CV_KINDS`; None without cv2."""
    return None if cv2_module() is None else partial(cv_resize, kind=kind)


@cache
def _functions() -> dict[str, tuple[str, str | None]]:
    return {opencv_resize_function(kind, rule): (kind, rule) for kind in CV_KINDS for rule in (None, *CV_SIZE_RULES)}


def is_opencv(op_type: str) -> bool:
    """Whether the function's kernel is OpenCV's."""
    return op_type in _functions()


def check_required(node: onnx.NodeProto) -> str:
    """Check that cv2 computes a function here as it did where training ran, for a function that is not exact as a graph.

    Returns:
        What was checked, as a sentence.

    Raises:
        EnvironmentUnfit: cv2 is missing, or computes something else; says what to install.
    """
    assert needs_cv2([node.op_type])
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    bound = int(attributes.get("bound", 0))
    why = f"{node.op_type} is OpenCV's INTER_CUBIC through Intel's IPP, which no graph computes exactly (up to {bound} level off)"
    if cv2_module() is None:
        raise EnvironmentUnfit(f"{why}, so cv2 has to be there, and is not installed: {INSTALL}")
    if ipp_digest().encode() != attributes.get("digest"):
        raise EnvironmentUnfit(
            f"{why}, and OpenCV {cv2_version()} on this machine gives other pixels than the one training ran with; install that one, serve "
            'on a processor of that kind, or train with `CvResize(..., semantics="opencv")` after `cv2.ipp.setUseIPP(False)`'
        )
    return f"required, equal to training's OpenCV on {2 * len(_TELLING)} images"


def required_nodes(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield the nodes that only cv2 computes exactly."""
    return (node for node in nodes if needs_cv2([node.op_type]))


def stated_semantics(filter: CvFilter, semantics: CvSemantics | None) -> CvSemantics:  # noqa: A002 - the field's word
    """Return the semantics given, or what the installed cv2 does where it matters."""
    if semantics is not None:
        return semantics
    return native_cv_semantics() if filter == "cubic" else "opencv"
