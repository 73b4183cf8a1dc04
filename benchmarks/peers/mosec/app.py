"""mosec: a Rust front that batches, and Python workers in processes of their own.

Tried on two cores (CPU ms a request, the steadier figure; requests/s in a calm minute):

    rows        workers × batch   1 client          16 clients         64 clients
                2 × 1             0.23   4,000      0.203   7,300      0.203   7,600     best for one client
                2 × 8             –                 0.070  13,400      0.063  16,500
                2 × 16            –                 0.054  17,800      0.049  31,300     the default here: best at 16
                2 × 32            –                 0.065   5,300      0.046  33,300     best at 64
                2 × 64            0.34     410      0.056   5,700      0.046  20,400
                1 × 64            0.33     340      0.057   3,200      0.044  11,500
                1 × 128           0.29     420      0.055   5,600      0.042  14,700
    images      2 × 1             12.3     81 /s    12.1 at 32 clients                   best for one client
    (MobileNet) 2 × 4             12.5     69       11.7                                 the default here
                2 × 1, preprocessing in 2 processes before it: 13.3; 1 × 4 so: 13.0; 1 × 8 so: 13.4

A batch that is not full waits 1 ms, the shortest wait mosec offers, so a batch size below the number of clients serves it best; hence three
entries in the table. Handing images from preprocessing to inference processes costs 1 ms of CPU each.
"""

from __future__ import annotations

import sys
from typing import Any

from mosec import Server, Worker

from benchmarks.peers.model import BATCH, CORES, IS_IMAGE, Model, encode

MAX_BATCH_SIZE = BATCH or (4 if IS_IMAGE else 16)
MAX_WAIT_MS = 1


class Predict(Worker):
    """Decoding, model and encoding in one stage."""

    def __init__(self) -> None:
        super().__init__()
        self._model = Model()

    def deserialize(self, data: bytes) -> Any:
        """Decode one request."""
        return self._model.decode(data)

    def forward(self, data: Any) -> Any:
        """Run a batch, or one request where batching is off: mosec then passes it bare."""
        return self._model.run([data])[0] if MAX_BATCH_SIZE == 1 else self._model.run(data)

    def serialize(self, data: Any) -> bytes:
        """Encode one answer."""
        return encode(data)


if __name__ == "__main__":
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", sys.argv[1], "--timeout", "60000", "--log-level", "warning"]
    server = Server()
    server.append_worker(Predict, num=CORES, max_batch_size=MAX_BATCH_SIZE, max_wait_time=MAX_WAIT_MS, route="/predict")
    server.run()
