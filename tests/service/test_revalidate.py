"""`samegraph revalidate`: captured requests run again through the package that answered them, through another, and against the baseline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from live_server import LiveServer, live_server
from odd_packages import image_file, pack_lists, pack_tint
from package_builders import ROWS, WEIGHTS, classifier, draft, samples
from samegraph_service.capture.package_commands import revalidate
from samegraph_transforms.draft import BaselineRows, DraftStage, GoldenSample
from samegraph_transforms.pack import pack

TRAINED: list[dict[str, Any]] = [{"size": float(i % 40) / 4, "kind": ("moss", "fern", "oak")[i % 3]} for i in range(600)]


def pack_plants(repository: Path, version: int, weights: np.ndarray = WEIGHTS) -> None:
    """Plants with a baseline; with other weights its golden samples are what they give."""
    base = draft(version=version, baseline=BaselineRows(rows=TRAINED))
    if weights is WEIGHTS:
        pack(base, samples(), repository)
        return
    stages = [DraftStage("model", classifier(weights)) if s.name == "model" else s for s in base.stages]
    changed = draft(version=version, baseline=BaselineRows(rows=TRAINED), stages=stages)
    pack(changed, [answered(changed, sample) for sample in samples()], repository)


def answered(changed: Any, sample: GoldenSample) -> GoldenSample:
    """Return the sample with the changed package's own answers: this test is not about training."""
    import tempfile
    from contextlib import closing

    from samegraph_transforms.package import PackageWriter, write_files
    from samegraph_transforms.runtime import PackageRuntime
    from samegraph_transforms.wire import decode_request

    with tempfile.TemporaryDirectory() as directory, PackageWriter(Path(directory) / "plants" / "9") as writer:
        package = writer.provisional(write_files(changed, [sample], writer))
        with closing(PackageRuntime.load(package)) as runtime:
            rows = decode_request(runtime.signature, sample.headers, sample.body).rows
            outputs = runtime.predict([row for row in rows if isinstance(row, tuple)])
    return GoldenSample(sample.name, sample.path, sample.headers, sample.body, outputs)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    pack_plants(models, 1)
    pack_tint(models)
    pack_lists(models)
    return models


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 with other weights, in a repository of its own."""
    other = tmp_path_factory.mktemp("other")
    pack_plants(other, 1, WEIGHTS * np.float32(-3))
    return other


def captured(server: LiveServer, rows: list[dict[str, Any]], together: int = 50) -> None:
    for start in range(0, len(rows), together):
        assert server.predict("plants", {"instances": rows[start : start + together]}).status == 200
    server.run(lambda: None)
    assert server.service.capture is not None
    server.service.capture.flush()


@pytest.fixture(scope="module")
def url(models: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("captured"))
    with live_server(models, capture={"url": url, "sample_ratio": 1}) as server:
        for seed in (1, 2, 3):
            server.request("POST", "/v1/models/tint:predict", image_file(seed), {"content-type": "image/png"})
        lists: list[list[list[float]]] = [[[1, 2], [3, 4]], [[0.1, 0.2, 0.3]], [[]]]
        for instances in lists:
            server.predict("lists", {"instances": instances})
        captured(server, [*TRAINED, *map(dict, ROWS)])
    return url


def run(*arguments: str) -> Result:
    return CliRunner().invoke(revalidate, list(arguments))


def reports(*arguments: str) -> tuple[int, list[dict[str, Any]]]:
    result = run(*arguments, "--json")
    assert result.stdout, result.exception
    return result.exit_code, json.loads(result.stdout)


def test_the_package_that_answered_gives_the_same_answers_bit_for_bit(url: str, models: Path) -> None:
    """Every captured version, images and answers of differing shapes among them."""
    status, found = reports(url, "--repository", str(models))
    assert status == 0
    assert [(one["model"], one["replayed"], one["same_answers"]) for one in found] == [
        ("lists", 4, True),
        ("plants", 600 + len(ROWS), True),
        ("tint", 3, True),
    ]
    assert all(output["different"] == 0 for one in found for output in one["outputs"])
    page = run(url, "--repository", str(models), "--model", "plants").stdout
    assert "the same answers, bit for bit" in page
    assert "drift of 605 rows" in page


def test_another_package_is_found_out_and_its_changes_are_named(url: str, models: Path, other: Path) -> None:
    """By output, with the first request that differs and what became of which answer."""
    status, (one,) = reports(url, "--package", str(other / "plants" / "1"))
    assert status == 1
    assert one["package_digest"] != one["captured_digest"]
    label, probability = sorted(one["outputs"], key=lambda output: output["output"])
    assert not label["within_promise"]
    assert not probability["within_promise"]
    assert label["flipped_rows"] == sum(change["rows"] for change in label["changes"]) > 0
    assert label["agreement"] == pytest.approx(1 - label["flipped_rows"] / label["rows"])
    assert label["first"].startswith("request ")
    assert "OTHER ANSWERS" in run(url, "--package", str(other / "plants" / "1")).stdout


def test_a_version_is_compared_without_being_blamed(url: str, models: Path, other: Path) -> None:
    """--against tells how many decisions would change; it fails only below the asked agreement."""
    arguments = (url, "--package", str(models / "plants" / "1"), "--against", str(other / "plants" / "1"))
    status, (one,) = reports(*arguments)
    assert status == 0
    assert 0 < one["against"]["agreement"] < 1
    by_name = {output["output"]: output for output in one["against"]["outputs"]}
    assert one["against"]["agreement"] == by_name["label"]["agreement"]
    assert reports(*arguments, "--min-agreement", "0.9999")[0] == 1
    assert "agreement" in run(*arguments).stdout
    assert run(url, "--min-agreement", "0.5").exit_code == 2


def test_data_that_moved_is_said_to_have_drifted(models: Path, tmp_path: Path) -> None:
    """Same answers, exit code 3, and the field by name."""
    url = str(tmp_path)
    with live_server(models, capture={"url": url, "sample_ratio": 1}) as server:
        captured(server, [{"size": row["size"] + 5, "kind": row["kind"]} for row in TRAINED])
    status, (one,) = reports(url, "--repository", str(models))
    assert status == 3
    assert one["same_answers"]
    assert next(v["name"] for v in one["drift"]["variables"] if v["state"] == "drifted") == "size"


def test_rows_with_an_excluded_field_are_counted_but_not_run(models: Path, tmp_path: Path) -> None:
    """Exit code 4, the reason, and drift of what was captured only."""
    url = str(tmp_path)
    with live_server(models, capture={"url": url, "sample_ratio": 1, "exclude": "kind"}) as server:
        captured(server, TRAINED)
    status, (one,) = reports(url, "--repository", str(models))
    assert status == 4
    assert "'kind'" in one["not_replayed"]
    assert one["same_answers"] is None
    names = {v["name"]: v["state"] for v in one["drift"]["variables"]}
    assert names["size"] == "quiet"
    assert "kind" not in names
    assert "not run again" in run(url, "--repository", str(models)).stdout


def test_deleted_images_are_left_out_and_counted(models: Path, tmp_path: Path) -> None:
    """What is gone cannot be run; the rest is."""
    url = str(tmp_path)
    with live_server(models, capture={"url": url, "sample_ratio": 1}) as server:
        for seed in (1, 2):
            server.request("POST", "/v1/models/tint:predict", image_file(seed), {"content-type": "image/png"})
        server.run(lambda: None)
    next(p for p in (tmp_path / "images").rglob("*") if p.is_file()).unlink()
    status, (one,) = reports(url, "--repository", str(models))
    assert status == 0
    assert (one["rows"], one["replayed"], one["images_gone"]) == (2, 1, 1)


def test_a_changed_image_is_refused(models: Path, tmp_path: Path) -> None:
    """Its name says what it must hold."""
    url = str(tmp_path)
    with live_server(models, capture={"url": url, "sample_ratio": 1}) as server:
        server.request("POST", "/v1/models/tint:predict", image_file(1), {"content-type": "image/png"})
        server.run(lambda: None)
    next(p for p in (tmp_path / "images").rglob("*") if p.is_file()).write_bytes(b"another")
    assert "is not what its name says" in str(run(url, "--repository", str(models)).exception)


def test_there_must_be_rows(url: str, models: Path, tmp_path: Path) -> None:
    """Said, for a directory without any and for a choice that fits none."""
    assert "holds no captured requests" in str(run(str(tmp_path)).exception)
    assert "holds no rows" in str(run(url, "--model", "nobody").exception)
