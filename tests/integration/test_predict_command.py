"""`samegraph predict` against the running server and against the package itself: one answer."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from samegraph_transforms.cli import cli
from samegraph_transforms.golden import read_samples
from server_process import ServerProcess


def predict(*arguments: str | Path) -> tuple[int, list[dict[str, Any]]]:
    """Run the command; return its exit code and its lines."""
    result = CliRunner().invoke(cli, ["predict", *(str(a) for a in arguments)])
    return result.exit_code, [json.loads(line) for line in result.stdout.splitlines()]


def test_table_of_penguins_is_answered_alike_by_server_and_package(server: ServerProcess, examples: Path, tmp_path: Path) -> None:
    """A CSV with text, numbers and empty cells, made of the golden rows, gives the reference's species both ways."""
    rows: list[dict[str, Any]] = []
    expected: list[str] = []
    for sample in read_samples(examples / "penguins" / "1" / "golden"):
        instances = json.loads(sample.body).get("instances")
        if isinstance(instances, list) and all(isinstance(i, dict) for i in instances):
            rows += instances
            expected += sample.outputs["label"].tolist()
    names = sorted({name for row in rows for name in row})
    whole = [(row, answer) for row, answer in zip(rows, expected, strict=True) if set(row) == set(names) and "" not in row.values()]
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows({k: "" if v is None else v for k, v in row.items()} for row, _ in whole)
    code, local = predict(tmp_path / "rows.csv", "--package", examples / "penguins")
    assert (code, len(local)) == (0, len(whole))
    assert [line["prediction"]["label"] for line in local] == [answer for _, answer in whole]
    assert predict(tmp_path / "rows.csv", "--url", server.url, "--model", "penguins") == (0, local)


def test_directory_of_photos_with_a_broken_one(server: ServerProcess, examples: Path, tmp_path: Path) -> None:
    """Every photo gets its own answer in order, the broken one an error with its code, by server and package alike."""
    photos = [s for s in read_samples(examples / "imagenet" / "1" / "golden") if s.headers.get("content-type") == "image/jpeg"][:6]
    assert len(photos) == 6
    for i, sample in enumerate(photos):
        (tmp_path / f"photo {i}.jpg").write_bytes(sample.body)
    (tmp_path / "broken.jpg").write_bytes(photos[0].body[: len(photos[0].body) // 2])
    code, local = predict(tmp_path, "--package", examples / "imagenet" / "1")
    assert code == 1
    assert [line["item"] for line in local] == ["broken.jpg", *(f"photo {i}.jpg" for i in range(6))]
    assert local[0]["code"] == "truncated"
    assert [line["prediction"]["label"] for line in local[1:]] == [s.outputs["label"][0].tolist() for s in photos]
    code, remote = predict(tmp_path, "--url", server.url, "--model", "imagenet")
    assert code == 1
    assert [line.get("prediction", {}).get("label") for line in remote] == [line.get("prediction", {}).get("label") for line in local]
    assert (remote[0]["code"], remote[0]["field"]) == (local[0]["code"], local[0]["field"])
