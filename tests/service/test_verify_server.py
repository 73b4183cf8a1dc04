"""`samegraph verify --url`: golden samples against a running server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from live_server import LiveServer, live_server
from package_builders import WEIGHTS, classifier, draft, sample, samples
from samegraph_transforms.cli import cli
from samegraph_transforms.draft import DraftStage
from samegraph_transforms.pack import pack
from samegraph_transforms.package import write_package

MORE = [*samples(), sample("nulls", [{"size": None, "kind": "oak"}, {"size": 9.5, "kind": "lichen"}])]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one package."""
    models = tmp_path_factory.mktemp("models")
    pack(draft(), MORE, models)
    return models


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[LiveServer]:
    """A server of that package."""
    with live_server(repository) as running:
        yield running


def verify(*arguments: object) -> Result:
    """Run the command."""
    return CliRunner().invoke(cli, ["verify", *map(str, arguments)])


def test_server_of_the_package_is_exact(server: LiveServer, repository: Path) -> None:
    """Every golden sample goes over HTTP and comes back as training had it; the digest is the package's."""
    result = verify(repository / "plants" / "1", "--url", server.url, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["ok"]
    assert document["samples"] == len(MORE)
    assert document["server"]["same_package"]
    assert document["server"]["digest"] == document["digest"]
    assert {(t["tensor"], t["source"], t["verdict"]) for t in document["tensors"]} <= {
        ("probability", "server", "equal"),
        ("probability", "server", "within"),
        ("label", "server", "equal"),
    }
    assert len(document["tensors"]) == 2


def test_server_of_another_package_fails_and_says_so(server: LiveServer, tmp_path: Path) -> None:
    """Other weights: the answers differ, the digest too, and the exit code is 1."""
    stages = [draft().stages[0], DraftStage("model", classifier(-WEIGHTS)), draft().stages[2]]
    write_package(draft(stages=stages), samples(-WEIGHTS), tmp_path / "plants" / "1")
    result = verify(tmp_path / "plants" / "1", "--url", server.url)
    assert result.exit_code == 1
    text = " ".join(result.stdout.split())
    assert "plants/1: ANOTHER package, digest" in text
    assert "NOT EXACT: this server does not answer as training did" in text


def test_same_answers_from_another_package_are_no_proof_of_this_one(server: LiveServer, tmp_path: Path) -> None:
    """Exact answers by a package with another digest: exit code 1, although nothing differs."""
    other = pack(draft(description="Others."), samples(), tmp_path)
    result = verify(other.path, "--url", server.url, "--json")
    document = json.loads(result.stdout)
    assert (result.exit_code, document["ok"], document["server"]["same_package"]) == (1, True, False)


def test_refused_samples_and_unknown_versions_are_told(server: LiveServer, repository: Path) -> None:
    """A version that is not served is an error, with the server's own words; so is no server at all."""
    result = verify(repository / "plants" / "1", "--url", server.url, "--version", 7)
    assert result.exit_code == 1
    assert "version 7" in result.stderr
    assert verify(repository / "plants" / "1", "--url", "http://127.0.0.1:1").exit_code == 1
    assert verify(repository / "plants" / "1", "--url", server.url, "--batch", 2).exit_code == 2
    assert verify(repository / "plants" / "1", "--model", "plants").exit_code == 2


def test_metadata_says_what_differs_from_the_proof(server: LiveServer) -> None:
    """The fingerprint of the server and of the proof, and the list of differences: none where the package was packed."""
    document = server.get("/v1/models/plants/versions/1/metadata").json()["environment"]
    assert document["differs"] == []
    assert document["here"] == document["proven"]
    assert document["here"]["threads"] == "1"
