#!/usr/bin/env python3
"""A bare process that runs a model in ONNX Runtime: what a server's memory is compared with.

    .venv/bin/python benchmarks/footprint.py MODEL.onnx      prints its resident memory in bytes

It imports NumPy and ONNX Runtime and nothing else, loads the model and runs it once on each core, side by side and one thread each, as the
limit does.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import numpy as np
import onnxruntime as ort

DTYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64}


def main(model: str) -> int:
    """Load, run, print; return the exit code."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    instance = np.zeros([1, *source.shape[1:]], DTYPES[source.type])
    threads = [threading.Thread(target=session.run, args=(None, {source.name: instance})) for _ in os.sched_getaffinity(0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    print(sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
