"""The client against the real server: the raw inputs a caller has, the answers training gave, the errors he can act on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from samegraph_client import AsyncClient, Client, InputRejected, NotFound
from samegraph_transforms.golden import read_samples
from server_process import ServerProcess


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    """A blocking client of the server."""
    with Client(server.url) as made:
        yield made


def test_rows_get_trainings_answers(client: Client, examples: Path) -> None:
    """Rows in, the labels of the training code out, and the package that answered is named."""
    samples = [s for s in read_samples(examples / "penguins/1/golden") if b'"instances"' in s.body][:20]
    assert samples
    for sample in samples:
        result = client.predict("penguins", json.loads(sample.body)["instances"])
        labels = [prediction["label"] for prediction in result.predictions if isinstance(prediction, dict)]
        assert labels == sample.outputs["label"].tolist()
        assert (result.model, result.version, result.attempts) == ("penguins", "1", 1)
        assert result.package_digest


def test_image_goes_out_as_it_is(client: Client, examples: Path, tmp_path: Path) -> None:
    """A path to an image is enough; raw body and V1 JSON give the same prediction."""
    sample = next(s for s in read_samples(examples / "imagenet/1/golden") if s.headers["content-type"] == "image/jpeg")
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(sample.body)
    raw = client.predict("imagenet", photo).value
    assert isinstance(raw, dict)
    assert raw["label"] == sample.outputs["label"][0].tolist()
    assert client.predict("imagenet", [photo]).value == [raw]


def test_bad_instance_costs_only_its_own_place(client: Client, examples: Path) -> None:
    """With `partial` the neighbours are answered and the failed place is named."""
    sample = next(s for s in read_samples(examples / "imagenet/1/golden") if s.headers["content-type"] == "image/jpeg")
    result = client.predict("imagenet", [sample.body, sample.body[:500]], on_error="partial")
    assert isinstance(result.predictions[0], dict)
    assert result.predictions[1] is None
    assert [(error.instance, error.field) for error in result.errors] == [(1, "image")]


def test_refusals_carry_the_servers_document(client: Client) -> None:
    """The error names field, instance and request, so that a caller can find it in the server's log."""
    with pytest.raises(InputRejected) as rejected:
        client.predict("penguins", [{"nope": 1}])
    assert (rejected.value.code, rejected.value.field, rejected.value.instance) == ("unknown_field", "nope", 0)
    assert rejected.value.request_id
    with pytest.raises(NotFound) as unknown:
        client.predict("nobody", {})
    assert (unknown.value.code, unknown.value.retryable) == ("unknown_model", False)


def test_many_awaited_calls_each_get_their_own_answer(server: ServerProcess, examples: Path) -> None:
    """A hundred rows sent at once come back complete and in place; only the last digits know which batch they were in."""
    samples = [s for s in read_samples(examples / "flights/2/golden") if b'"instances"' in s.body]
    rows = [row for s in samples for row in json.loads(s.body)["instances"]][:100]

    async def together() -> list[object]:
        async with AsyncClient(server.url) as client:
            return [result.value for result in await asyncio.gather(*(client.predict("flights", row, version=2) for row in rows))]

    with Client(server.url) as client:
        in_one_request = client.predict("flights", rows, version=2).predictions
    assert len({str(prediction) for prediction in in_one_request}) > 20, "the rows must differ for their places to show"
    for alone, expected in zip(asyncio.run(together()), in_one_request, strict=True):
        assert isinstance(alone, dict)
        assert isinstance(expected, dict)
        assert alone["label"] == expected["label"]
        assert alone["probability"] == pytest.approx(expected["probability"], rel=1e-12)
