"""Run the reference on raw requests, giving golden and held-out samples.

The reference is Pillow and NumPy preprocessing, the network, and NumPy's softmax. None of samegraph's preprocessing graphs takes part.
For the packaged photos the network's part is the committed logits of the published PyTorch network; for all other images it is
model.onnx alone in ONNX Runtime, which the photos have shown to be that network.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from samegraph_transforms.draft import GoldenSample
from samegraph_transforms.exactness import compare, merge
from samegraph_transforms.manifest import Measured

from models.imagenet.answer import reference_answer
from models.imagenet.published import TOLERANCE, PublishedLogits
from models.imagenet.reference.preprocessing import normalise, pixels
from models.imagenet.samples import PATH, RawRequest


class NetworkDiffers(RuntimeError):
    """Raised when the ONNX network's logits for a photo are not the published network's."""


class Reference:
    """The training side's answer to any image.

    Args:
        network: `input` float32 [n, 3, 224, 224] → `logits` float32 [n, 1000].
        labels: One name per class.
        published: The committed logits, by photo.
    """

    def __init__(self, network: onnx.ModelProto, labels: Sequence[str], published: Mapping[str, PublishedLogits]) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = ort.InferenceSession(network.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self._labels = labels
        self._published = {reference.source_sha256: reference for reference in published.values()}

    def run_network(self, pixel_values: np.ndarray) -> np.ndarray:
        """Return the ONNX network's logits, float32 [1000], for `pixels`."""
        logits: np.ndarray = self._session.run(["logits"], {"input": normalise(pixel_values)[None]})[0][0]
        return logits

    def logits(self, source: bytes, pixel_values: np.ndarray) -> np.ndarray:
        """Return float32 [1000]: the published network's where it is known for this file, else the ONNX network's."""
        known = self._published.get(_sha256(source))
        return self.run_network(pixel_values) if known is None else known.logits

    def sample(self, request: RawRequest) -> GoldenSample:
        """Return the request with its reference outputs and the intermediates `pixels` and `logits`."""
        cropped = np.stack([_quiet_pixels(image) for image in request.images])
        logits = np.stack([self.logits(image, p) for image, p in zip(request.images, cropped, strict=True)])
        return GoldenSample(
            name=request.name,
            path=PATH,
            headers=request.headers,
            body=request.body,
            outputs=reference_answer(logits, self._labels),
            values={"pixels": cropped, "logits": logits},
        )

    def check_network(self, photos: Mapping[str, bytes], published: Mapping[str, PublishedLogits]) -> Measured:
        """Compare the ONNX network with the published one on every photo and return how far apart they are.

        Raises:
            NetworkDiffers: They are further apart than rounding explains.
            ReferenceDoesNotApply: A photo or its pixels are not the reference's.
        """
        measured = Measured(tensor="logits", elements=0, different=0, max_ulp=0, max_abs=0)
        for name, reference in published.items():
            cropped = pixels(photos[name])
            reference.check(name, photos[name], cropped)
            comparison = compare(reference.logits, self.run_network(cropped), TOLERANCE, tensor="logits")
            if not comparison.passed:
                raise NetworkDiffers(f"{name}: the ONNX network is not the published network: {comparison.detail}")
            measured = merge(measured, comparison)
        return measured


def _quiet_pixels(source: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        # Pillow advises to look at the alpha channel of palette images; this network does not.
        warnings.filterwarnings("ignore", message="Palette images with Transparency", category=UserWarning)
        return pixels(source)


def _sha256(source: bytes) -> str:
    return hashlib.sha256(source).hexdigest()
