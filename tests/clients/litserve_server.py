"""LitServe with a model that doubles what it is sent, in batches, under V1's path. Runs in .venv-clients, unmodified packages only.

python litserve_server.py PORT
"""
# No postponed annotations here: LitServe reads the type of `request` from the signature.

import sys
import time
from typing import Any

import litserve


class Double(litserve.LitAPI):
    """Two times its input; a batch takes twenty milliseconds."""

    def setup(self, device: str) -> None:
        """There is nothing to load."""

    def decode_request(self, request: dict[str, Any]) -> list[float]:
        """Take the instances of one request."""
        return [row["x"] for row in request["instances"]]

    def batch(self, inputs: list[list[float]]) -> list[list[float]]:
        """Keep a batch as a list."""
        return inputs

    def predict(self, x: list[list[float]]) -> list[list[float]]:
        """Run a batch."""
        time.sleep(0.02)
        return [[2 * value for value in values] for values in x]

    def unbatch(self, output: list[list[float]]) -> list[list[float]]:
        """Return an answer for each request of a batch."""
        return output

    def encode_response(self, output: list[float]) -> dict[str, list[float]]:
        """Encode one answer."""
        return {"predictions": output}


if __name__ == "__main__":
    double = Double(max_batch_size=16, batch_timeout=0.005, api_path="/v1/models/double:predict")
    server = litserve.LitServer(double, accelerator="cpu", timeout=60)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
