"""The committed logits of the published PyTorch network (reference/logits.npz), and how near a network must come to them.

Two correct float32 implementations of this network do not give the same bits: each rounds after every one of fifty layers, in its own
order. Against the same network in float64, PyTorch's logits are off by up to 7.6e-6 and ONNX Runtime's by up to 1.2e-5, depending on
its optimisation level; against each other they are within 1.2e-5, at most 1.8e-6 of an image's largest logit. What is promised leaves
room for other processors: 5e-6 of the largest magnitude. That is not what guards the preprocessing: a single pixel that is wrong by a
single level typically moves a logit ten times as far, and pixels are compared bit by bit besides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from samegraph_transforms.manifest import Tolerance

PATH = Path(__file__).resolve().parent / "reference" / "logits.npz"

#: Promised on every device: what the project promises between devices, and room for what rounding does to a logit near zero.
TOLERANCE = Tolerance(ulp=4, relative_to_max=5e-6, atol=1e-5, rtol=1e-5)


class ReferenceDoesNotApply(RuntimeError):
    """Raised when a photo, or the pixels this Pillow makes of it, are not those the committed logits belong to."""


@dataclass(frozen=True)
class PublishedLogits:
    """What the published network gave for one photo.

    Attributes:
        source_sha256: Of the photo's file.
        pixels_sha256: Of its 224×224×3 bytes after cropping and resizing.
        logits: float32 [1000].
        logits_float64: The same network run in float64.
    """

    source_sha256: str
    pixels_sha256: str
    logits: np.ndarray
    logits_float64: np.ndarray

    def check(self, name: str, source: bytes, pixels: np.ndarray) -> None:
        """Raise `ReferenceDoesNotApply` unless file and pixels are the reference's."""
        if hashlib.sha256(source).hexdigest() != self.source_sha256:
            raise ReferenceDoesNotApply(f"{name} is not the file the reference logits were computed for")
        if hashlib.sha256(pixels.tobytes()).hexdigest() != self.pixels_sha256:
            raise ReferenceDoesNotApply(
                f"the pixels of {name} are not those of the reference: this environment's Pillow decodes or resizes differently from "
                "Pillow 13.0 (see models/imagenet/reference/versions.txt); install the pinned version"
            )


def published_logits(path: Path = PATH) -> Mapping[str, PublishedLogits]:
    """Return the committed reference, by photo."""
    with np.load(path, allow_pickle=False) as arrays:
        columns = [arrays[key] for key in ("names", "source_sha256", "pixels_sha256", "logits", "logits_float64")]
        return {str(n): PublishedLogits(str(s), str(p), row, wide) for n, s, p, row, wide in zip(*columns, strict=True)}
