"""`samegraph baseline update`: a new version whose baseline is captured data, and nothing else about it is new."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from live_server import LiveServer, live_server
from odd_packages import image_file, pack_tint
from package_builders import draft, samples
from samegraph_service.capture.package_commands import baseline, revalidate
from samegraph_transforms.cli import cli
from samegraph_transforms.draft import BaselineRows
from samegraph_transforms.pack import pack
from samegraph_transforms.package import read_package

TRAINED: list[dict[str, Any]] = [{"size": float(i % 40) / 4, "kind": ("moss", "fern", "oak")[i % 3]} for i in range(600)]
#: What callers send: larger plants, and a kind that training did not know.
SENT: list[dict[str, Any]] = [{"size": float(i % 40) / 4 + 7, "kind": ("moss", "fern", "reed")[i % 3]} for i in range(1200)]


def send(server: LiveServer, rows: list[dict[str, Any]]) -> list[Any]:
    answers = []
    for start in range(0, len(rows), 100):
        reply = server.predict("plants", {"instances": rows[start : start + 100]})
        assert reply.status == 200
        answers += reply.json()["predictions"]
    return answers


@pytest.fixture
def models(tmp_path: Path) -> Path:
    models = tmp_path / "models"
    rows = BaselineRows(rows=TRAINED, made_from="the plants of 2025", importance={"size": 3.0})
    pack(draft(baseline=rows), samples(), models)
    return models


@pytest.fixture
def url(models: Path, tmp_path: Path) -> str:
    url = str(tmp_path / "captured")
    with live_server(models, capture={"url": url, "sample_ratio": 1}) as server:
        send(server, SENT)
    return url


def update(models: Path, url: str, *more: str) -> Result:
    return CliRunner().invoke(baseline, ["update", str(models / "plants" / "1"), "--from", url, *more])


def test_only_the_baseline_is_new(models: Path, url: str) -> None:
    """Graphs and golden samples byte for byte, every digest right, the old baseline kept, the new one says what it is of."""
    result = update(models, url)
    assert result.exit_code == 0, result.exception
    old, new = read_package(models / "plants" / "1"), read_package(models / "plants" / "2")
    assert new.digest in result.stdout
    assert new.digest != old.digest
    changed = {"baseline.json", "baseline.before.json"}
    assert {n: e for n, e in new.manifest.files.items() if n not in changed} == {
        n: e for n, e in old.manifest.files.items() if n not in changed
    }
    assert new.read_file("baseline.before.json") == old.read_file("baseline.json")
    made, before = new.baseline(), new.baseline_before()
    assert made is not None
    assert before == old.baseline()
    assert (made.rows, made.made_from) == (1200, "captured requests to plants/1")
    assert made.replaces == f"plants/1 {old.digest}"
    assert made.sampled_from is not None
    assert made.field("size").importance == 3.0
    (size,) = made.field("size").variables
    assert size.minimum == 7.0
    (kind,) = made.field("kind").variables
    assert "reed" not in kind.categories, "known is what training knew"
    assert kind.counts[kind.labels.index("unseen")] == 400
    assert made.output("label").variables[0].rows == 1200


def test_it_serves_the_same_answers_and_the_data_no_longer_drifts(models: Path, url: str) -> None:
    """The server proves the new version like any other; drift against it is quiet where it alarmed against the old one."""
    assert update(models, url).exit_code == 0
    with live_server(models) as server:
        assert server.service.repository.routes.models["plants"].default == 2
        answers = send(server, SENT[:200])
        old = server.predict("plants", {"instances": SENT[:200]}, "/versions/1").json()["predictions"]
    assert answers == old
    one = CliRunner().invoke(revalidate, [url, "--package", str(models / "plants" / "1"), "--json"])
    two = CliRunner().invoke(revalidate, [url, "--package", str(models / "plants" / "2"), "--version", "1", "--json"])
    assert (one.exit_code, two.exit_code) == (3, 0)
    assert json.loads(two.stdout)[0]["drift"]["states"]["drifted"] == 0


def test_inspect_shows_both_baselines(models: Path, url: str, tmp_path: Path) -> None:
    """Which data it came from, what it replaces, and what each line was before; in the terminal, as JSON, and on the page."""
    assert update(models, url).exit_code == 0
    path = str(models / "plants" / "2")
    shown = CliRunner().invoke(cli, ["inspect", path]).stdout
    flat = " ".join(shown.split())
    assert "1,200 rows; captured requests to plants/1" in flat
    assert "before: 600 rows; the plants of 2025" in flat
    assert json.loads(CliRunner().invoke(cli, ["inspect", path, "--json"]).stdout)["baseline_before"]["rows"] == 600
    page = tmp_path / "page.html"
    assert CliRunner().invoke(cli, ["inspect", path, "--html", str(page)]).exit_code == 0
    assert "The baseline before: 600 rows; the plants of 2025" in page.read_text()


def test_few_rows_are_refused_unless_asked_for(models: Path, url: str) -> None:
    """Nothing is written."""
    result = update(models, url, "--min-rows", "5000")
    assert "1,200 captured rows are too few" in str(result.exception)
    assert not (models / "plants" / "2").exists()
    assert update(models, url, "--max-rows", "300", "--min-rows", "100", "--to-version", "7").exit_code == 0
    made = read_package(models / "plants" / "7").baseline()
    assert made is not None
    assert 200 < made.rows < 400


def test_rows_of_another_version_are_refused_unless_asked_for(models: Path, url: str) -> None:
    """They were answered by something else; what they say about the inputs may still be wanted."""
    assert update(models, url).exit_code == 0
    second = ["update", str(models / "plants" / "2"), "--from", url]
    result = CliRunner().invoke(baseline, second)
    assert "holds no rows that plants/2" in str(result.exception)
    assert "--any-version" in str(result.exception)
    assert CliRunner().invoke(baseline, [*second, "--any-version"]).exit_code == 0
    third = read_package(models / "plants" / "3")
    assert third.baseline_before() == read_package(models / "plants" / "2").baseline()


def test_a_version_that_is_there_is_never_overwritten(models: Path, url: str) -> None:
    """Versions are immutable."""
    assert update(models, url, "--to-version", "1").exit_code == 1
    assert "versions are immutable" in str(update(models, url, "--to-version", "1").exception)


def test_a_field_that_was_not_captured_is_named(models: Path, tmp_path: Path) -> None:
    """A package cannot be run without one of its inputs, so its answers have no baseline then."""
    url = str(tmp_path / "without")
    with live_server(models, capture={"url": url, "sample_ratio": 1, "exclude": "plants:kind"}) as server:
        send(server, SENT)
    assert "field 'kind' of plants/1 was excluded" in str(update(models, url).exception)


def test_pictures_and_packages_without_a_baseline(tmp_path: Path) -> None:
    """Pixels are looked at as `pack` does it; where there was no baseline there is none to keep."""
    models, url = tmp_path / "models", str(tmp_path / "captured")
    pack_tint(models)
    with live_server(models, capture={"url": url, "sample_ratio": 1}) as server:
        for seed in (1, 2, 3, 1):
            server.request("POST", "/v1/models/tint:predict", image_file(seed), {"content-type": "image/png"})
    arguments = ["update", "tint/1", "--repository", str(models), "--from", url, "--min-rows", "4"]
    result = CliRunner().invoke(baseline, arguments)
    assert result.exit_code == 0, result.exception
    new = read_package(models / "tint" / "2")
    made = new.baseline()
    assert made is not None
    assert made.rows == 4
    assert any(v.name == "image.brightness" for v in made.field("image").variables)
    assert new.baseline_before() is None
