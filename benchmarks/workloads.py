"""What is sent: real raw inputs, and what plain Python must do with each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from samegraph_transforms.golden import read_samples
from samegraph_transforms.package import read_package
from samegraph_transforms.runtime import PackageRuntime
from samegraph_transforms.wire import decode_request, predictions

from benchmarks.plain import Images, Rows
from models._fetch import fetch, unpack

ROOT = Path(__file__).resolve().parent.parent
#: Where the example packages are, and where those that `packages.py` builds.
EXAMPLES = ROOT / "models"
BUILT = ROOT / "benchmarks/.packages"

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
        clients: Numbers of concurrent clients to measure at; none for a burst.
        batches: Batch sizes, in requests, to try for the limit.
        home: The repository its package is in, unless another is given.
        sent: What `packages.py` wrote to send: a directory of bodies below `.plain`; empty for the example packages.
        rows: Instances in one request.
        burst: Frames that are sent at once; 0 for a closed loop.
    """

    name: str
    title: str
    model: str
    version: int
    content_type: str
    clients: tuple[int, ...]
    batches: tuple[int, ...]
    home: Path = field(default=BUILT, repr=False)
    sent: str = ""
    rows: int = 1
    burst: int = 0

    @property
    def path(self) -> str:
        """Where it is sent."""
        return f"/v1/models/{self.model}/versions/{self.version}:predict"

    @property
    def is_image(self) -> bool:
        """Whether a body is an image."""
        return self.content_type.startswith("image/")

    @property
    def in_flight(self) -> tuple[int, ...]:
        """How many requests the limit may work on at once, per case that is measured."""
        return self.clients or (self.burst,)

    @property
    def source(self) -> tuple[str, str]:
        """What is sent to what: workloads that have this in common differ in the number of clients only."""
        return self.model, self.sent

    def package(self, repository: Path | None = None) -> Path:
        """Return where its package lies."""
        return (repository or self.home) / self.model / str(self.version)

    def plain_model(self, repository: Path | None = None) -> Path | None:
        """Return the whole model as one ONNX file, or None where there is only the package."""
        return (repository or self.home) / ".plain" / f"{self.model}.onnx" if self.sent else None

    def columns(self, repository: Path | None = None) -> list[str]:
        """Return the names of the plain model's columns, in order."""
        found = json.loads(((repository or self.home) / ".plain" / f"{self.model}.json").read_text())
        return [str(name) for name in found["columns"]]

    def bodies(self, repository: Path | None = None) -> list[bytes]:
        """Return the request bodies, in a fixed order."""
        if self.sent:
            return [file.read_bytes() for file in sorted(((repository or self.home) / ".plain" / self.sent).iterdir())]
        return _photos() if self.is_image else _single_rows(self.package(repository))


_ROWS = "application/json"
_JPEG = "image/jpeg"
TREES = Workload("trees", "one JSON row of 30 numbers → boosted trees", "trees", 1, _ROWS, (1, 16, 64), (1, 8, 32, 64), sent="rows")
ROWS_1000 = Workload("rows1000", "a JSON body of 1,000 such rows", "trees", 1, _ROWS, (1,), (1,), sent="rows1000", rows=1000)
MOBILENET = Workload("mobilenet", "one 640×427 JPEG → MobileNetV2 (0.3 GFLOP)", "mobilenet", 1, _JPEG, (1, 8, 32), (1, 4), sent="frames")
BURST = Workload(
    "burst", "300 such JPEGs at once, each on its own connection → MobileNetV2", "mobilenet", 1, _JPEG, (), (1, 4), sent="frames", burst=300
)
RESNET50 = Workload("resnet50", "one 640×427 JPEG → ResNet-50 (4.1 GFLOP)", "resnet50", 1, _JPEG, (1, 32), (1, 4), sent="frames")
FLIGHTS = Workload(
    "rows", "one JSON row → boosted trees (`flights` 2)", "flights", 2, _ROWS, (1, 16, 64), (1, 8, 16, 32, 64), home=EXAMPLES
)
IMAGENET = Workload(
    "images", "one 640×427 JPEG → EfficientNet-Lite0 (`imagenet` 1)", "imagenet", 1, _JPEG, (1, 8, 32), (1, 4, 16), home=EXAMPLES
)
WORKLOADS = {workload.name: workload for workload in (TREES, ROWS_1000, MOBILENET, BURST, RESNET50, FLIGHTS, IMAGENET)}


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
    """A workload without HTTP, on the calling thread.

    Pipelines, by name: `plain` is what somebody writes who knows nothing of this project (`plain.py`), where there is a plain model;
    `package` is the code that serving uses, in this process; `pillow` is the training code's steps before the package's graphs, for
    `imagenet`.

    Args:
        workload: What to run.
        repository: Where its package lies; None for where it is built.

    Attributes:
        pipelines: Name → pipeline.
    """

    def __init__(self, workload: Workload, repository: Path | None = None) -> None:
        self._headers = {"content-type": workload.content_type}
        self._runtime = PackageRuntime.load(read_package(workload.package(repository)), intra_op_threads=1)
        self._plain: Images | Rows | None = None
        self.pipelines: dict[str, Pipeline] = {"package": self._package}
        model = workload.plain_model(repository)
        if model is not None:
            self._plain = Images(model) if workload.is_image else Rows(model, workload.columns(repository))
            self.pipelines["plain"] = self._plainly
        elif workload.is_image:
            self.pipelines["pillow"] = self._pillow

    def answers(self, body: bytes) -> list[Any]:
        """Return the predictions for one request as JSON values, in the shape V1 answers in: the plain model's where there is one."""
        match self._plain:
            case Rows() as rows:
                return rows.run(rows.decode(body))
            case Images() as images:
                return images.run(images.decode(body)[np.newaxis])
        return list(predictions(self._runtime.manifest.outputs, self._package([body])))

    def _plainly(self, bodies: Sequence[bytes]) -> list[np.ndarray]:
        """Run the plain pipeline on the plain model."""
        match self._plain:
            case Rows() as rows:
                return rows.outputs([row for body in bodies for row in rows.decode(body)])
            case Images() as images:
                return images.outputs(np.stack([images.decode(body) for body in bodies]))
        raise TypeError("there is no plain model")

    def _package(self, bodies: Sequence[bytes]) -> list[np.ndarray]:
        """Run the runtime that serving uses."""
        runtime = self._runtime
        items = []
        for body in bodies:
            for row in decode_request(runtime.signature, self._headers, body).rows:
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


def limiting(workload: Workload) -> tuple[str, ...]:
    """Return the pipelines a workload's limit is taken from: the plain one, or for an example package its own and the training code's."""
    if workload.sent:
        return ("plain",)
    return ("package", "pillow") if workload.is_image else ("package",)
