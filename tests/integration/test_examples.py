"""What the server answers over HTTP is what the training code answers, for raw inputs that were no golden samples."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from samegraph_transforms.draft import GoldenSample
from samegraph_transforms.exactness import compare
from samegraph_transforms.golden import read_samples, replay
from samegraph_transforms.manifest import Manifest
from samegraph_transforms.package import read_package
from samegraph_transforms.runtime import PackageRuntime
from server_process import ServerProcess

EXAMPLES = [("penguins", 1), ("flights", 1), ("flights", 2), ("imagenet", 1), ("sentiment", 1)]
IDS = [f"{name}-{version}" for name, version in EXAMPLES]


def answers(server: ServerProcess, samples: list[GoldenSample], name: str, version: int) -> list[dict[str, np.ndarray]]:
    """Send every request on one connection and return its outputs as arrays of the promised dtype."""
    manifest = json.loads(server.get(f"/v1/models/{name}/versions/{version}/metadata")[1])
    dtypes = {o["name"]: object if o["dtype"] == "string" else np.dtype(o["dtype"]) for o in manifest["outputs"]}
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    results = []
    for sample in samples:
        connection.request("POST", f"/v1/models/{name}/versions/{version}:predict", sample.body, dict(sample.headers))
        response = connection.getresponse()
        body = response.read()
        assert response.status == 200, (sample.name, body)
        predictions: list[dict[str, Any]] = json.loads(body)["predictions"]
        results.append({key: np.array([p[key] for p in predictions], dtype=dtype) for key, dtype in dtypes.items()})
    connection.close()
    return results


@pytest.mark.parametrize(("name", "version"), EXAMPLES, ids=IDS)
def test_held_out_raw_inputs_get_the_training_codes_answers(server: ServerProcess, examples: Path, name: str, version: int) -> None:
    """At least 200 requests: classes equal, floats within the promise, over HTTP."""
    manifest: Manifest = read_package(examples / name / str(version)).manifest
    promise = manifest.tolerances["cpu.same"]
    samples = read_samples(examples / ".heldout" / name / str(version))
    assert len(samples) >= 200
    floats_first = sorted(manifest.outputs, key=lambda o: not o.dtype.startswith("float"))
    for sample, answer in zip(samples, answers(server, samples, name, version), strict=True):
        for output in floats_first:
            comparison = compare(sample.outputs[output.name], answer[output.name], promise, tensor=output.name)
            assert comparison.passed, (sample.name, comparison.detail)


@pytest.mark.parametrize(("name", "version"), EXAMPLES, ids=IDS)
def test_held_out_intermediates_are_those_of_training(examples: Path, name: str, version: int) -> None:
    """Pixels are bit-equal and features within the promise, stage by stage."""
    package = read_package(examples / name / str(version))
    samples = read_samples(examples / ".heldout" / name / str(version))
    results = replay(PackageRuntime.load(package), samples, [min(16, package.manifest.batching.max_batch_size)])
    assert [r.reason for r in results if not r.passed] == []
    pixels = [c for r in results for c in r.comparisons if c.tensor == "pixels"]
    assert all(c.different == 0 for c in pixels)
    assert bool(pixels) == (name == "imagenet")


@pytest.mark.parametrize(("name", "version"), EXAMPLES, ids=IDS)
def test_held_out_inputs_are_not_golden_samples(examples: Path, name: str, version: int) -> None:
    """The comparison above is not with what `pack` already saw."""
    golden = {s.body for s in read_samples(read_package(examples / name / str(version)).golden_dir())}
    held_out = read_samples(examples / ".heldout" / name / str(version))
    assert not golden & {s.body for s in held_out}
