"""Prove a running server: send it a package's golden requests as they are, and compare its answers with what training gave.

What is compared went through everything a caller's request goes through: the protocol, the queue, batches with strangers, JSON. Floats
come back as the shortest decimals that name them, so nothing is lost on the way; NaN and infinities come back as null, and are compared as
NaN.
"""

from __future__ import annotations

import time
import urllib.parse
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np

from .draft import GoldenSample
from .errors import RemoteError
from .golden import Checker, SampleResult, promised
from .manifest import Manifest, Output
from .package import Package
from .predicting import ServerConnection
from .verify import Report, ServedBy, flips_of, golden_samples, tensors_of


def verify_server(
    package: Package,
    url: str,
    *,
    model: str | None = None,
    version: int | None = None,
    samples: Sequence[GoldenSample] | None = None,
    profile: str | None = None,
    concurrency: int = 8,
    timeout_s: float = 60.0,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Replay golden samples against a running server and compare with what the training code gave.

    Args:
        package: The package the answers are held against.
        url: The server, for example `http://127.0.0.1:8000`.
        model: Its name there; None is the package's own.
        version: The version there; None is the package's own.
        samples: What to replay; None takes the package's own golden samples.
        profile: Which of the package's promises to apply; None finds out from what the server says it runs on.
        concurrency: Requests under way at once.
        timeout_s: Longest wait for one answer.
        progress: Called with requests done and requests in all.

    Raises:
        PackageError: There are no samples to replay.
        RemoteError: The server cannot be reached, does not serve that version, or is no samegraph server.
    """
    samples = samples if samples is not None else golden_samples(package)
    manifest = package.manifest
    name, number = model or manifest.name, version or manifest.version
    path = f"/v1/models/{urllib.parse.quote(name, safe='')}/versions/{number}"
    with closing(ServerConnection(url, timeout_s, time.sleep)) as connection:
        metadata = connection.get_json(f"{path}/metadata")
        server = _served_by(connection.url, name, number, package, metadata)
        profile = profile or _profile(manifest, metadata)
        tolerance = promised(manifest, profile)
        checker = Checker(manifest, tolerance)
        results: list[SampleResult] = []
        with ThreadPoolExecutor(concurrency, thread_name_prefix="verify") as pool:
            for result in pool.map(lambda s: _replayed(connection, path, s, manifest, checker), samples):
                results.append(result)
                if progress is not None:
                    progress(len(results), len(samples))
    proof = metadata.get("provenance", {})
    return Report(
        package=str(package),
        digest=package.digest,
        profile=profile,
        tolerance=tolerance,
        environment={
            "device": server.device,
            "onnxruntime": server.onnxruntime or str(proof.get("libraries", {}).get("onnxruntime", "unknown")),
            "providers": server.providers,
        },
        batch_sizes=(),
        samples=len(samples),
        tensors=tensors_of(manifest, results, source="server"),
        failures=tuple(r for r in results if not r.passed),
        flips=flips_of(results),
        server=server,
    )


def _served_by(url: str, name: str, number: int, package: Package, metadata: dict[str, Any]) -> ServedBy:
    try:
        digest = str(metadata["digest"])
        providers = ", ".join(metadata["execution"]["providers"])
    except (KeyError, TypeError) as error:
        raise RemoteError(f"{url} does not describe {name}/{number} the way samegraph does; is it a samegraph server?") from error
    here = metadata.get("environment", {}).get("here", {})
    return ServedBy(
        url=url,
        model=name,
        version=number,
        digest=digest,
        same_package=digest == package.digest,
        providers=providers,
        device=str(here.get("machine", providers)),
        onnxruntime=str(here.get("onnxruntime", "")),
    )


def _profile(manifest: Manifest, metadata: dict[str, Any]) -> str:
    """Return which promise applies where the server runs; the wider one when it does not say."""
    if any(provider != "CPUExecutionProvider" for provider in metadata["execution"]["providers"]):
        return "gpu"
    here = metadata.get("environment", {}).get("here", {})
    proof = manifest.provenance
    same = here.get("machine") == proof.machine and here.get("onnxruntime") == proof.libraries.get("onnxruntime")
    return "cpu.same" if here and same else "cpu.other"


def _replayed(connection: ServerConnection, path: str, sample: GoldenSample, manifest: Manifest, checker: Checker) -> SampleResult:
    media_type = next((value for key, value in sample.headers.items() if key.lower() == "content-type"), "application/json")
    status, answer = connection.post(f"{path}:predict", sample.body, media_type)
    if status != 200:
        return SampleResult(sample.name, 0, error=f"the server refuses it: {answer.get('error', f'status {status}')}")
    predictions = answer.get("predictions", answer.get("outputs"))
    expected = len(next(iter(sample.outputs.values())))
    try:
        rows = _rows(manifest.outputs, answer, expected)
    except (KeyError, TypeError, ValueError) as error:
        return SampleResult(sample.name, 0, error=f"its answer cannot be read as the package's outputs: {error} in {str(predictions)[:80]}")
    return SampleResult(sample.name, 0, checker.compare(sample, rows, outputs_only=True))


def _rows(outputs: Sequence[Output], answer: dict[str, Any], expected: int) -> list[dict[str, np.ndarray]]:
    """Turn an answer back into the arrays it was made of, a row at a time: [1, ...] each."""
    if "outputs" in answer:  # the columnar form
        columns = answer["outputs"] if len(outputs) > 1 else {outputs[0].name: answer["outputs"]}
        count = len(columns[outputs[0].name])
        rows = [{o.name: columns[o.name][i] for o in outputs} for i in range(count)]
    else:
        rows = [row if len(outputs) > 1 else {outputs[0].name: row} for row in answer["predictions"]]
    if len(rows) != expected:
        raise ValueError(f"{expected} rows were expected, got {len(rows)}")
    return [{o.name: _array(row[o.name], o)[None] for o in outputs} for row in rows]


def _array(value: Any, output: Output) -> np.ndarray:
    if output.dtype == "string":
        return np.array(value, dtype=object)
    if output.dtype.startswith("float"):
        return np.array(value, dtype=np.float64).astype(output.dtype)
    return np.array(value, dtype=output.dtype)
