"""LitServe: uvicorn in front, workers in processes behind a queue.

Tried on two cores (CPU ms a request, requests/s; a noisy hour, so read the CPU):

    rows        workers × batch, wait, API servers   1 client        16 clients      64 clients
                1 × 1                                1.17    980     1.08    910     1.14    810
                2 × 1                                1.28    800     1.26    980     1.12    760
                1 × 1, ZeroMQ queue                  1.18    600     1.22  1,000     1.38    650
                1 × 16, 1 ms                         1.53    580     1.05    970     1.01  1,335
                2 × 16, 1 ms, 2 API servers          1.45    370     1.12  1,290     1.03  1,440    chosen
                1 × 16, no wait                      1.26    790     1.30    930     1.40  1,145
                1 × 64, 2 ms, 2 API servers          2.51    320     1.29  1,240     1.10  1,380
    images      2 × 1                                15.5            15.4 at 32 clients             chosen
    (MobileNet) 2 × 1, ZeroMQ queue                  16.0            15.6
                2 × 4, no wait                       43.5            16.2     (a batching worker that does not wait, spins)

LitServe reads JSON or forms; a raw body gets in as a FastAPI dependency, which it hands to the workers as it is.
"""
# No postponed annotations here: LitServe reads the type of `request` from the signature.

import sys
from typing import Annotated, Any

import litserve
from fastapi import Depends, Request, Response

from benchmarks.peers.model import CORES, IS_IMAGE, Model, encode

MAX_BATCH_SIZE = 1 if IS_IMAGE else 16
WAIT_S = 0.0 if IS_IMAGE else 0.001


async def body_of(request: Request) -> bytes:
    """Return the body as it came."""
    return await request.body()


class Predict(litserve.LitAPI):
    """The model behind LitServe's steps."""

    def setup(self, device: str) -> None:
        """Load the model, once a worker."""
        self._model = Model()

    def decode_request(self, request: Annotated[bytes, Depends(body_of)]) -> Any:
        """Decode one request."""
        return self._model.decode(request)

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Keep a batch as the list that the model takes."""
        return inputs

    def predict(self, x: Any) -> Any:
        """Run a batch, or one request where batching is off: LitServe then passes it bare."""
        return self._model.run([x])[0] if MAX_BATCH_SIZE == 1 else self._model.run(x)

    def unbatch(self, output: Any) -> Any:
        """Return an answer for each request of a batch."""
        return output

    def encode_response(self, output: Any) -> Response:
        """Encode one answer."""
        return Response(encode(output), media_type="application/json")


if __name__ == "__main__":
    predict = Predict(max_batch_size=MAX_BATCH_SIZE, batch_timeout=WAIT_S)
    server = litserve.LitServer(predict, accelerator="cpu", workers_per_device=CORES, timeout=60)
    api_servers = 1 if IS_IMAGE else CORES
    server.run(host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=api_servers, generate_client_file=False, log_level="warning")
