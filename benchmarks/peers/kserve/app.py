"""KServe's Python SDK, V1 protocol: FastAPI underneath, as many workers as CPUs, no batching (its batcher is a sidecar of Kubernetes).

Tried on two cores (CPU ms a request, requests/s; a noisy hour, so read the CPU):

    rows        2 workers, in the handler        0.42  2,200 at 1 client   0.47  2,200 at 16   0.46  3,300 at 64   chosen
                1 worker                         0.53  1,730               0.47  1,750         0.52  1,440
    images      2 workers, in threads            13.7   66                 13.4    101 at 32   p99   624 ms        chosen
    (MobileNet) 2 workers, in the handler        13.5   74                 13.4     90         p99 1,075 ms
                1 worker, in threads             13.9   69                 13.4     93         p99 1,006 ms

A JSON body arrives as the document that orjson made of it, any other as bytes. Its access and trace logs are off: they would be the only
ones in the table, at 0.1 ms a request.
"""

from __future__ import annotations

import asyncio
import sys
from functools import cached_property
from typing import Any

import kserve

from benchmarks.peers.model import COLUMNS, CORES, IS_IMAGE, Model

for name in ("kserve.trace", "uvicorn.access"):
    kserve.logging.KSERVE_LOG_CONFIG["loggers"][name]["level"] = "WARNING"


class Predict(kserve.Model):
    """The model. It is loaded by the worker that needs it: what goes to the workers is pickled, and a session cannot be."""

    def __init__(self) -> None:
        super().__init__("peer")
        self.ready = True

    @cached_property
    def _model(self) -> Model:
        return Model()

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> dict[str, list[Any]]:
        """Answer one request."""
        if IS_IMAGE:
            return await asyncio.to_thread(self._answer, payload)
        return {"predictions": self._model.run([[[row[name] for name in COLUMNS] for row in payload["instances"]]])[0]}

    def _answer(self, body: bytes) -> dict[str, list[Any]]:
        return {"predictions": self._model.run([self._model.decode(body)])[0]}


if __name__ == "__main__":
    options = {"workers": CORES, "enable_grpc": False, "enable_docs_url": False, "enable_latency_logging": False}
    kserve.ModelServer(http_port=int(sys.argv[1]), **options).start([Predict()])
