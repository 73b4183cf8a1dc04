"""`samegraph capture`: what it lists and shows is what was captured, and what it exports is accepted again."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live_server import LiveServer, live_server
from odd_packages import image_file, pack_lists, pack_tensors, pack_tint
from package_builders import draft, samples
from PIL import Image
from samegraph_service.capture.commands import capture
from samegraph_service.capture.reader import Capture, Choice, parse_time
from samegraph_transforms.pack import pack

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    pack(draft(), samples(), models)
    pack_tint(models)
    pack_tensors(models)
    pack_lists(models)
    return models


def flush(server: LiveServer) -> None:
    sink = server.service.capture
    assert sink is not None
    server.run(lambda: None)
    sink.flush()


@pytest.fixture(scope="module")
def url(models: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Nine rows of plants in four requests and two files, and two pictures in three requests."""
    url = str(tmp_path_factory.mktemp("captured"))
    with live_server(models, capture={"url": url, "sample_ratio": 1}) as server:
        for n in (1, 3):
            rows = [{"size": i / 4, "kind": "moss"} for i in range(n)]
            assert server.predict("plants", {"instances": rows}, **{"x-request-id": "same"}).status == 200
        flush(server)
        for n in (4, 1):
            assert server.predict("plants", {"instances": [{"size": None, "kind": "oak"}] * n}).status == 200
        for seed in (1, 2, 1):
            assert server.request("POST", "/v1/models/tint:predict", image_file(seed), {"content-type": "image/png"}).status == 200
        flush(server)
    return url


def run(*arguments: str) -> Result:
    return CliRunner().invoke(capture, list(arguments), catch_exceptions=False)


def out(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


# --- ls and show --------------------------------------------------------------------------------------------------------


def test_ls_counts_files_rows_and_images(url: str) -> None:
    """By model, version and digest."""
    document = json.loads(out("ls", url, "--json"))
    assert [(v["model"], v["version"], v["files"], v["rows"]) for v in document["versions"]] == [("plants", 1, 2, 9), ("tint", 1, 1, 3)]
    assert document["images"]["files"] == 2
    assert document["unreadable"] == []
    table = out("ls", url, "--files")
    assert "plants/1" in table
    assert table.count(".parquet") >= 3


def test_ls_names_files_it_cannot_read(tmp_path: Path) -> None:
    """A stranger's Parquet file is none of ours, and a damaged one hides no other."""
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    result = CliRunner().invoke(capture, ["ls", str(tmp_path)])
    assert result.exit_code != 0
    assert "holds no captured requests" in str(result.exception)


def test_show_gives_rows_as_json_and_as_a_table(url: str) -> None:
    """With who answered what, when."""
    rows = [json.loads(line) for line in out("show", url, "--model", "plants", "--limit", "2", "--json").splitlines()]
    assert [row["inputs"] for row in rows] == [{"size": 0.0, "kind": "moss"}] * 2
    assert rows[0]["outputs"]["label"] in ("low", "mid", "high")
    assert "moss" in out("show", url, "--model", "plants")


def test_rows_are_chosen_by_time_confidence_and_number(url: str) -> None:
    """Alone and together."""
    everything = [b.meta["time"][i] for b in Capture(url).batches(Choice(model="plants")) for i in range(b.n)]
    middle = everything[4]

    def count(**chosen: Any) -> int:
        return sum(b.n for b in Capture(url).batches(Choice(model="plants", **chosen)))

    assert count(until=middle) + count(since=middle) == 9
    assert count(until=middle) == 4
    assert count(below=2.0) == 9
    assert count(above=2.0) == 0
    assert count(below=0.4) + count(above=0.4) == 9
    assert count(most=5) == 5
    assert count(arm="treatment") == 0


def test_a_model_without_scores_has_no_confidence(url: str) -> None:
    """Said, with what it has."""
    result = CliRunner().invoke(capture, ["show", url, "--model", "tint", "--below", "0.5"])
    assert result.exit_code != 0
    assert "no class scores" in str(result.exception)


def test_times_are_dates_moments_and_ages() -> None:
    """UTC where no zone is given."""
    now = parse_time("2026-11-21T12:00:00Z")
    assert parse_time("2h", now) == parse_time("2026-11-21T10:00:00+00:00")
    assert parse_time("2026-11-21") == parse_time("2026-11-21T00:00:00Z")
    assert run("ls", ".", "--since", "yesterday").exit_code == 2


# --- export -------------------------------------------------------------------------------------------------------------


def test_requests_come_back_as_they_were_cut(url: str) -> None:
    """A line a request, also where two of them in a row had one id."""
    lines = [json.loads(line)["instances"] for line in out("export", url, "--model", "plants").splitlines()]
    assert [len(line) for line in lines] == [1, 3, 4, 1]
    assert lines[2][0] == {"size": None, "kind": "oak"}


def test_instances_feed_the_predict_command(url: str, models: Path, tmp_path: Path) -> None:
    """An instance a line, images inside."""
    from samegraph_transforms.cli import cli

    file = tmp_path / "rows.jsonl"
    out("export", url, "--model", "tint", "--format", "instances", "--output", str(file))
    result = CliRunner().invoke(cli, ["predict", str(file), "--package", str(models / "tint" / "1"), "--format", "jsonl"])
    assert result.exit_code == 0, result.output
    assert len([line for line in result.stdout.splitlines() if "prediction" in line]) == 3


def test_csv_and_parquet_hold_the_same_rows(url: str, tmp_path: Path) -> None:
    """One table with a header, for a spreadsheet or for anything else."""
    table = list(csv.DictReader(io.StringIO(out("export", url, "--model", "plants", "--format", "csv"))))
    file = tmp_path / "plants.parquet"
    out("export", url, "--model", "plants", "--format", "parquet", "--output", str(file))
    rows = pq.read_table(file).to_pylist()
    assert len(table) == len(rows) == 9
    assert [float(r["inputs.size"]) if r["inputs.size"] else None for r in table] == [r["inputs"]["size"] for r in rows]
    assert [json.loads(r["outputs.probability"]) for r in table] == [pytest.approx(r["outputs"]["probability"]) for r in rows]
    mixed = CliRunner().invoke(capture, ["export", url, "--format", "csv"])
    assert "different columns" in str(mixed.exception)


def test_rows_without_a_field_cannot_be_exported_as_requests(models: Path, tmp_path: Path) -> None:
    """The field is named; looking at them and exporting tables goes on."""
    url = str(tmp_path)
    with live_server(models, capture={"url": url, "sample_ratio": 1, "exclude": "kind"}) as server:
        server.predict("plants", {"instances": [{"size": 1, "kind": "moss"}]})
        flush(server)
    result = CliRunner().invoke(capture, ["export", url])
    assert "field 'kind' of plants/1 was excluded" in str(result.exception)
    assert "inputs.kind" not in out("export", url, "--format", "csv")
    assert "plants/1: kind excluded" in out("ls", url)


def test_unsure_pictures_become_a_coco_data_set(tmp_path: Path) -> None:
    """Each picture once, upright size, with the answer about all of it: ids fit together and every file opens."""
    from samegraph_transforms.golden import read_samples

    url, target = str(tmp_path / "captured"), tmp_path / "to-label"
    models = tmp_path / "models"
    shutil.copytree(ROOT / "models/imagenet/1", models / "imagenet/1")
    photos = [s for s in read_samples(models / "imagenet/1/golden") if s.headers["content-type"] == "image/jpeg"][:3]
    with live_server(models, capture={"url": url, "model_ratios": "imagenet=1"}) as server:
        answers = {}
        for sample in [*photos, photos[0]]:
            reply = server.request("POST", "/v1/models/imagenet:predict", sample.body, {"content-type": "image/jpeg"})
            best = reply.json()["predictions"][0]
            answers[sample.body] = (best["label"][0], best["probability"][0])
        flush(server)
    out("export", url, "--coco", str(target), "--below", "1.1")
    document = json.loads((target / "annotations" / "instances_default.json").read_text())
    names = {c["id"]: c["name"] for c in document["categories"]}
    assert len(document["images"]) == len(document["annotations"]) == 3
    for image, annotation in zip(document["images"], document["annotations"], strict=True):
        file = target / "images" / image["file_name"]
        with Image.open(file) as opened:
            assert sorted(opened.size) == sorted((image["width"], image["height"]))
        assert annotation["image_id"] == image["id"]
        assert annotation["bbox"] == [0, 0, image["width"], image["height"]]
        assert annotation["area"] == image["width"] * image["height"]
        label, score = answers[file.read_bytes()]
        assert (names[annotation["category_id"]], annotation["score"]) == (label, pytest.approx(score, rel=1e-6))


# --- the promise --------------------------------------------------------------------------------------------------------


numbers = st.one_of(st.none(), st.floats(-1e6, 1e6), st.sampled_from([-0.0, 5e-324, 0.1, 1 / 3]))
plants = st.lists(
    st.fixed_dictionaries({"size": st.one_of(st.none(), st.floats(0, 100)), "kind": st.text(max_size=8)}), min_size=1, max_size=6
)
any_length = st.integers(0, 5).flatmap(
    lambda k: st.lists(st.lists(st.floats(-1e300, 1e300), min_size=k, max_size=k), min_size=1, max_size=4)
)
pictures = st.lists(st.integers(1, 6), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def twice(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveServer, str]]:
    url = str(tmp_path_factory.mktemp("twice"))
    with live_server(models, capture={"url": url, "sample_ratio": 1}) as server:
        yield server, url


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), model=st.sampled_from(["plants", "lists", "tint"]))
def test_what_is_exported_gives_the_same_answers_bit_for_bit(twice: tuple[LiveServer, str], data: Any, model: str) -> None:
    """Sent, captured, exported, sent again: the predictions are the same text."""
    import base64

    server, url = twice
    if model == "tint":
        instances: Any = [{"b64": base64.b64encode(image_file(seed)).decode()} for seed in data.draw(pictures)]
    else:
        instances = data.draw(plants if model == "plants" else any_length)
    since = parse_time("0s")
    first = server.predict(model, {"instances": instances})
    if first.status != 200:
        return  # refused, so there is nothing to export
    flush(server)
    exported = io.StringIO()
    from samegraph_service.capture.export import export_requests

    captured = Capture(url)
    export_requests(captured, captured.batches(Choice(model=model, since=since)), exported)
    (line,) = exported.getvalue().rstrip("\n").split("\n")
    second = server.predict(model, line.encode())
    flush(server)
    shutil.rmtree(url)
    assert second.status == 200, second.body
    assert second.json()["predictions"] == first.json()["predictions"]
    assert not any(isinstance(value, float) and math.isnan(value) for value in second.json()["predictions"])
