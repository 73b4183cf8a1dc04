"""What is sent: real raw inputs of the example models, and what plain Python must do with each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from samegraph_transforms.golden import read_samples
from samegraph_transforms.package import read_package
from samegraph_transforms.runtime import PackageRuntime
from samegraph_transforms.wire import decode_request, predictions

from models._fetch import fetch, unpack

#: A way to turn encoded requests into outputs without HTTP: bodies → one array [n, ...] per output.
Pipeline = Callable[[Sequence[bytes]], list[np.ndarray]]


@dataclass(frozen=True)
class Workload:
    """One kind of request.

    Attributes:
        name: Short, for tables.
        title: What is sent, in words.
        model: Name of the model.
        version: Its version.
        content_type: Of the bodies.
        clients: Numbers of concurrent clients to measure at.
        batches: Batch sizes to try for the limit.
    """

    name: str
    title: str
    model: str
    version: int
    content_type: str
    clients: tuple[int, ...]
    batches: tuple[int, ...]

    @property
    def path(self) -> str:
        """Where it is sent."""
        return f"/v1/models/{self.model}/versions/{self.version}:predict"

    def package(self, repository: Path) -> Path:
        """Return where its package lies."""
        return repository / self.model / str(self.version)

    def bodies(self, repository: Path) -> list[bytes]:
        """Return the request bodies, one instance each, in a fixed order."""
        return _photos() if self.content_type.startswith("image/") else _single_rows(self.package(repository))


FLIGHTS = Workload("rows", "one JSON row → boosted trees (`flights` 2)", "flights", 2, "application/json", (1, 16, 64), (1, 8, 16, 32, 64))
IMAGENET = Workload("images", "one 640×427 JPEG → EfficientNet-Lite0 (`imagenet` 1)", "imagenet", 1, "image/jpeg", (1, 8, 32), (1, 4, 16))
WORKLOADS = {workload.name: workload for workload in (FLIGHTS, IMAGENET)}


def _photos() -> list[bytes]:
    names = ["sklearn/datasets/images/china.jpg", "sklearn/datasets/images/flower.jpg"]
    directory = unpack(fetch("scikit-learn==1.9.1"), names)
    return [(directory / name).read_bytes() for name in names]


def _single_rows(package: Path, most: int = 64) -> list[bytes]:
    """Return the distinct rows of the golden samples as requests of one row each."""
    rows: list[Any] = []
    for sample in read_samples(package / "golden"):
        document = json.loads(sample.body) if sample.headers.get("content-type", "").startswith("application/json") else {}
        rows.extend(document.get("instances", []))
    if not rows:
        raise ValueError(f"{package} has no golden samples of V1 rows to send")
    return list(dict.fromkeys(json.dumps({"instances": [row]}).encode() for row in rows))[:most]


class Plain:
    """A workload without HTTP: the package's own graphs in ONNX Runtime, on the calling thread.

    Args:
        workload: What to run.
        repository: Where its package lies.
    """

    def __init__(self, workload: Workload, repository: Path) -> None:
        self._headers = {"content-type": workload.content_type}
        self._runtime = PackageRuntime.load(read_package(workload.package(repository)), intra_op_threads=1)
        self.pipelines: dict[str, Pipeline] = {"package": self._package}
        if workload.content_type.startswith("image/"):
            self.pipelines["pillow"] = self._pillow

    def answers(self, body: bytes) -> list[Any]:
        """Return the predictions for one request as JSON values, in the shape V1 answers in."""
        return list(predictions(self._runtime.manifest.outputs, self._package([body])))

    def _package(self, bodies: Sequence[bytes]) -> list[np.ndarray]:
        """Run the runtime that serving uses."""
        runtime = self._runtime
        items = []
        for body in bodies:
            (row,) = decode_request(runtime.signature, self._headers, body).rows
            if isinstance(row, Exception):
                raise row
            items.append(runtime.prepare(row))
        return runtime.run(runtime.collate(items))

    def _pillow(self, bodies: Sequence[bytes]) -> list[np.ndarray]:
        """Run the training code's decode and preprocessing (Pillow, NumPy), then the package's graphs."""
        from models.imagenet.reference.preprocessing import pixels

        stage = self._runtime.manifest.stage("preprocess.item")
        assert stage is not None
        (name,) = stage.outputs.values()
        return self._runtime.run({name: np.stack([pixels(body) for body in bodies])})
