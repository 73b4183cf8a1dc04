"""The model a peer serves: the plain pipelines every contender shares, chosen by what the benchmark says in the environment.

PEER_MODEL      the whole model as one ONNX file
PEER_COLUMNS    JSON list of the columns of a row; empty for a model of images
PEER_CORES      how many CPUs there are
PEER_BATCH      the largest batch, where a peer is measured with several; 0: what its app finds best
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from benchmarks.plain import Images, Rows

COLUMNS: list[str] = json.loads(os.environ.get("PEER_COLUMNS", "[]"))
IS_IMAGE = not COLUMNS
CORES = int(os.environ.get("PEER_CORES", "1"))
BATCH = int(os.environ.get("PEER_BATCH", "0"))

#: Predictions → the body of an answer, in the shape of V1.
_encode = msgspec.json.Encoder().encode


def encode(predictions: list[Any]) -> bytes:
    """Return the body of an answer."""
    return _encode({"predictions": predictions})


class Model:
    """The model on the calling process's CPUs, one thread an execution.

    A request may hold several rows, so a batch of requests is flattened before the model and divided after it.
    """

    def __init__(self) -> None:
        path = os.environ["PEER_MODEL"]
        self._rows = None if IS_IMAGE else Rows(path, COLUMNS)
        self._images = Images(path) if IS_IMAGE else None

    def decode(self, body: bytes) -> Any:
        """Return what `run` takes for one request: its rows, or one image's array."""
        if self._images is not None:
            return self._images.decode(body)
        assert self._rows is not None
        return self._rows.decode(body)

    def run(self, requests: Sequence[Any]) -> list[list[Any]]:
        """Return the predictions of each request, all run as one batch."""
        if self._images is not None:
            return [[one] for one in self._images.run(np.stack(requests))]
        assert self._rows is not None
        found = self._rows.run([row for rows in requests for row in rows])
        answers, begin = [], 0
        for rows in requests:
            answers.append(found[begin : begin + len(rows)])
            begin += len(rows)
        return answers

    def answer(self, body: bytes) -> bytes:
        """Return the body of the answer to one request."""
        return encode(self.run([self.decode(body)])[0])
