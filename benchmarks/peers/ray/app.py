"""Ray Serve: a proxy, a controller and replicas as Ray actors on a cluster of one node.

Tried on two cores (CPU ms a request, requests/s; a noisy hour, so read the CPU):

    rows        1 replica, @serve.batch of 64, 1 ms        8.3  118 at 1 client   5.5  258 at 16   4.7  329 at 64
                the same, Serve's throughput settings      8.7   96               5.2  288         5.0  275         chosen
                1 replica, no batching, the same settings  7.5  132               5.6  254         5.3  296
                2 replicas, no batching, the same          8.9  124               5.9  277         5.3  283
    images      2 replicas, no batching                    27.6  37 at 1 client   23.9  64 at 32 clients
    (MobileNet) the same, Serve's throughput settings      28.0  40               21.9  71                          chosen
                1 replica, @serve.batch of 8, the same     28.7  18               22.7  34

Serve's throughput settings are RAY_SERVE_THROUGHPUT_OPTIMIZED=1. Access logs and dashboard are off.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from typing import Any

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peers.model import CORES, IS_IMAGE, Model, encode

QUIET = {"enable_access_log": False, "log_level": "ERROR"}


@serve.deployment(num_replicas=CORES if IS_IMAGE else 1, max_ongoing_requests=1024, ray_actor_options={"num_cpus": 0}, logging_config=QUIET)
class Predict:
    """The model in a replica."""

    def __init__(self) -> None:
        self._model = Model()

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.001)
    async def run(self, requests: list[Any]) -> list[Any]:
        """Run what came within a millisecond as one batch."""
        return self._model.run(requests)

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        decoded = self._model.decode(await request.body())
        predictions = self._model.run([decoded])[0] if IS_IMAGE else await self.run(decoded)
        return Response(encode(predictions), media_type="application/json")


if __name__ == "__main__":
    stop = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)  # until the cluster is up, and then for sigwait
    with tempfile.TemporaryDirectory(prefix="ray-") as scratch:
        ray.init(num_cpus=CORES, include_dashboard=False, logging_level="warning", _temp_dir=scratch)
        serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])}, logging_config=QUIET)
        serve.run(Predict.bind(), route_prefix="/predict")  # type: ignore[attr-defined]  # the decorator made it a deployment
        signal.sigwait(stop)
        ray.shutdown()
