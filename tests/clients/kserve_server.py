"""KServe's Python server with a model that doubles what it is sent, over V1 and V2. Runs in .venv-clients, unmodified packages only.

python kserve_server.py PORT MOST

More than MOST requests at a time are answered 503, without a word on when to come back.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import kserve
from fastapi import HTTPException
from kserve.protocol.infer_type import InferOutput, InferRequest, InferResponse
from kserve.utils.utils import generate_uuid

for name in ("kserve.trace", "uvicorn.access"):
    kserve.logging.KSERVE_LOG_CONFIG["loggers"][name]["level"] = "ERROR"


class Double(kserve.Model):
    """Two times its input, after twenty milliseconds."""

    def __init__(self, most: int) -> None:
        super().__init__("double")
        self.ready = True
        self._most, self._now = most, 0

    def get_input_types(self) -> list[dict[str, Any]]:
        """Describe the input, for V2's metadata."""
        return [{"name": "x", "datatype": "FP64", "shape": [-1]}]

    def get_output_types(self) -> list[dict[str, Any]]:
        """Describe the output."""
        return [{"name": "y", "datatype": "FP64", "shape": [-1]}]

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        """Answer one request."""
        if self._now >= self._most:
            raise HTTPException(503, "busy")
        self._now += 1
        try:
            await asyncio.sleep(0.02)
        finally:
            self._now -= 1
        if isinstance(payload, InferRequest):
            values = [2 * float(x) for x in payload.inputs[0].data]
            return InferResponse(payload.id or generate_uuid(), self.name, [InferOutput("y", [len(values)], "FP64", values)])
        return {"predictions": [2 * row["x"] for row in payload["instances"]]}


if __name__ == "__main__":
    server = kserve.ModelServer(
        http_port=int(sys.argv[1]), workers=1, enable_grpc=False, enable_docs_url=False, enable_latency_logging=False
    )
    server.start([Double(int(sys.argv[2]))])
