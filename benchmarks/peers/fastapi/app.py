"""FastAPI on uvicorn, as a team would write it that wants speed: as many workers as CPUs, no batching, msgspec instead of pydantic.

Tried on two cores (CPU ms a request, requests/s):

    rows        2 workers, in the handler           0.19  4,600 at 1 client   0.169  10,000 at 16   0.169  10,000 at 64   chosen
                1 worker                            0.20  4,400               0.194   5,000         0.180   5,400
                a pydantic body instead of msgspec costs 0.1 ms a request more
    images      2 workers, in the handler           12.3     81 at 1 client   12.5      156 at 32   p99 382 ms            chosen
    (MobileNet) 2 workers, in the thread pool       11.8     84               12.4      158         p99 444 ms, twice the memory
                1 worker, in the thread pool        12.2     81               12.6      150         p99 449 ms
"""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI, Request, Response

from benchmarks.peers.model import CORES, Model

app = FastAPI()
model = Model()


@app.get("/health")
async def health() -> dict[str, str]:
    """Answer once a worker is up."""
    return {}


@app.post("/predict")
async def predict(request: Request) -> Response:
    """Answer one request; the worker does nothing else meanwhile, as its model would keep the CPU busy anyway."""
    return Response(model.answer(await request.body()), media_type="application/json")


if __name__ == "__main__":
    uvicorn.run(
        "benchmarks.peers.fastapi.app:app",
        host="127.0.0.1",
        port=int(sys.argv[1]),
        workers=CORES,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
