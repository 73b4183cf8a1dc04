"""Golden samples as JSON Lines, for programs that send them to a server and check what comes back without any library of ours.

    {"name": "row-3", "model": "flights", "version": 2, "path": "/v1/models/flights:predict",
     "headers": {"content-type": "application/json"}, "body": "eyJpbnN0YW5jZXMiOi…",
     "predictions": [{"label": "on_time", "probability": [0.97, 0.03]}],
     "tolerance": {"ulp": 4, "relative_to_max": 1e-07, "atol": 0.0, "rtol": 0.0}}

`body` is the request's body in base64; `predictions` are the rows a V1 answer has; `tolerance` is what the package promises for floats.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .draft import GoldenSample
from .golden import promised, read_samples
from .manifest import Tolerance
from .package import Package
from .wire import predictions


def export(package: Package, samples: Sequence[GoldenSample] | None = None, *, profile: str = "cpu.same") -> Iterator[dict[str, Any]]:
    """Yield one JSON document a sample, with the answer the training code gave.

    Args:
        package: The package.
        samples: Samples of it; None for its own.
        profile: Which promise to state.

    Raises:
        PackageError: The package's samples cannot be read.
    """
    manifest = package.manifest
    tolerance = _facts(promised(manifest, profile))
    for sample in read_samples(package.golden_dir()) if samples is None else samples:
        yield {
            "name": sample.name,
            "model": manifest.name,
            "version": manifest.version,
            "path": sample.path,
            "headers": dict(sample.headers),
            "body": base64.b64encode(sample.body).decode("ascii"),
            "predictions": predictions(manifest.outputs, [np.asarray(sample.outputs[o.name]) for o in manifest.outputs]),
            "tolerance": tolerance,
        }


def _facts(tolerance: Tolerance) -> dict[str, float]:
    return {"ulp": tolerance.ulp, "relative_to_max": tolerance.relative_to_max, "atol": tolerance.atol, "rtol": tolerance.rtol}
