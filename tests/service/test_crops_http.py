"""A package of ten crops over HTTP: V1 and V2, alone and in batches, exact and refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crops_package as ten
import numpy as np
import pytest
from click.testing import CliRunner
from live_server import LiveServer, live_server
from samegraph_transforms.cli import cli
from samegraph_transforms.pack import pack


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the package."""
    models = tmp_path_factory.mktemp("models")
    pack(ten.draft(), [ten.sample(file, f"noise {i}") for i, file in enumerate(ten.files(6))], models)
    return models


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[LiveServer]:
    """A server of it."""
    with live_server(repository) as running:
        yield running


def assert_answers(logits: list[list[float]], labels: list[int], files: list[bytes]) -> None:
    """Compare with training, one by one."""
    assert len(logits) == len(labels) == len(files)
    for got, label, file in zip(logits, labels, files, strict=True):
        expected, decided = ten.answer(file)
        np.testing.assert_allclose(np.array(got, np.float32), expected, rtol=0, atol=2e-7 * float(np.abs(expected).max()))
        assert label == decided


@pytest.mark.parametrize("count", [1, 2, ten.LARGEST, 2 * ten.LARGEST + 1])
def test_v1_answers_batches_of_any_size(server: LiveServer, count: int) -> None:
    """One image, two, the largest batch, and more than fit in one."""
    files = ten.files(count, 20 + count)
    instances = [{"image": {"b64": base64.b64encode(file).decode()}} for file in files]
    predictions = server.predict("crops", {"instances": instances}).json()["predictions"]
    assert_answers([p["logits"] for p in predictions], [p["label"] for p in predictions], files)


def test_v1_answers_a_file_as_it_is(server: LiveServer) -> None:
    """The body is the file, as curl sends it."""
    (file,) = ten.files(1, 31)
    (prediction,) = server.request("POST", ten.PATH, file, {"content-type": "image/png"}).json()["predictions"]
    assert_answers([prediction["logits"]], [prediction["label"]], [file])


@pytest.mark.parametrize("count", [1, 2, ten.LARGEST])
def test_v2_answers_batches_too(server: LiveServer, count: int) -> None:
    """BYTES in JSON, base64; the outputs have one row an image, and the metadata says so."""
    files = ten.files(count, 40 + count)
    data = [base64.b64encode(file).decode() for file in files]
    image = {"name": "image", "datatype": "BYTES", "shape": [count, 1], "data": data, "parameters": {"content_type": "base64"}}
    reply = server.request("POST", "/v2/models/crops/infer", json.dumps({"inputs": [image]}), {"content-type": "application/json"})
    outputs: dict[str, Any] = {o["name"]: o for o in reply.json()["outputs"]}
    assert outputs["logits"]["shape"] == [count, 5]
    assert_answers(np.reshape(outputs["logits"]["data"], (count, 5)).tolist(), outputs["label"]["data"], files)
    described = {o["name"]: o["shape"] for o in server.get("/v2/models/crops").json()["outputs"]}
    assert described["logits"] == [-1, 5]


def test_verify_finds_the_server_exact(server: LiveServer, repository: Path) -> None:
    """The golden samples over HTTP, by the command."""
    result = CliRunner().invoke(cli, ["verify", str(repository / "crops" / "1"), "--url", server.url, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["ok"]
