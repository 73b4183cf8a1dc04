"""BentoML: uvicorn workers, each with its own adaptive batching.

Tried on two cores (CPU ms a request, requests/s; a noisy hour, so read the CPU):

    rows        2 workers, adaptive batching         1.50  390-690 at 1 client   1.15  1,030 at 16   1.03  1,200 at 64   chosen
                1 worker, adaptive batching          1.38  505                   1.05    630         1.14    475
                2 workers, async, no batching        1.33  383                   1.32    373         1.26    600
                1 worker, async, no batching         1.34  424                   1.19    540         1.14    580
    images      2 workers × 2 threads, no batching   16.0   62                   16.7     86 at 32 clients               chosen
    (MobileNet) 2 workers × 1 thread                 15.4   65                   16.4     63
                1 worker × 2 threads                 17.2   58                   17.8     87

Its metrics are off, and tracing has no exporter. A batched method takes and returns bare lists, so its answers are not wrapped as the
others' are. An image as the whole body becomes a Pillow image that is not decoded yet, from which the plain pipeline takes its bytes. A
batch may not have to wait longer than `max_latency_ms`: BentoML refuses what would, so it is set to the request timeout.
"""
# No postponed annotations here: BentoML reads the types from the signature.

from typing import Any

import bentoml
from PIL import Image

from benchmarks.peers.model import COLUMNS, CORES, IS_IMAGE, Model

service = bentoml.service(
    workers=CORES, threads=2, traffic={"timeout": 60}, logging={"access": {"enabled": False}}, metrics={"enabled": False}
)

if IS_IMAGE:

    @service
    class Predict:
        """The model of images."""

        def __init__(self) -> None:
            self._model = Model()

        @bentoml.api
        def predict(self, image: Image.Image, /) -> list[Any]:
            """Answer one request, in the thread pool."""
            file: Any = image.fp  # type: ignore[attr-defined]  # of the subclass that a file gives
            file.seek(0)
            return self._model.run([self._model.decode(file.read())])[0]

else:

    @service
    class Predict:  # type: ignore[no-redef]
        """The model of rows."""

        def __init__(self) -> None:
            self._model = Model()

        @bentoml.api(batchable=True, max_batch_size=1024, max_latency_ms=60_000)
        def predict(self, instances: list[dict[str, float]]) -> list[Any]:
            """Answer a batch: the rows of all its requests, one after another."""
            return self._model.run([[[row[name] for name in COLUMNS] for row in instances]])[0]
