"""`samegraph compare`: two real packages on the same rows, and its statistics against published examples."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import odd_packages as odd
import pytest
from click.testing import CliRunner, Result
from samegraph_service.experiments.analysis.commands import compare
from samegraph_service.experiments.analysis.compare import Row, compared
from samegraph_service.experiments.analysis.paired import mcnemar_p_value, paired_difference, wilson
from samegraph_transforms.golden import read_samples
from samegraph_transforms.manifest import Output

ROOT = Path(__file__).parents[2]
FLIGHTS = ROOT / "models" / "flights"
LABEL = Output(name="label", dtype="string", shape=[], decided_by="probability")
PROBABILITY = Output(name="probability", dtype="float64", shape=[2], element_names=["late", "on time"])


# --- statistics -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "n", "low", "high"), [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
)
def test_wilson_intervals(k: int, n: int, low: float, high: float) -> None:
    """The four examples of Newcombe 1998 (method 3)."""
    found = wilson(k, n)
    assert [found.low, found.high] == pytest.approx([low, high], abs=5.01e-5)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [((36, 12, 2, 0), -0.3404, -0.0569), ((1, 1, 97, 1), 0.8737, 0.9850), ((0, 0, 0, 100), -0.0370, 0.0370)],
    ids=["few", "nearly-all", "no-successes"],
)
def test_paired_differences(table: tuple[int, int, int, int], low: float, high: float) -> None:
    """The first two are Newcombe's own examples of 1998 (the first the other way round); the estimate is c - b over n."""
    found = paired_difference(*table)
    assert found.estimate == pytest.approx((table[2] - table[1]) / sum(table))
    assert [found.low, found.high] == pytest.approx([low, high], abs=5.01e-5)


def test_paired_differences_are_right_as_often_as_they_say() -> None:
    """Of 2,000 samples of 200 paired rows with a known difference about 95 % of the intervals hold it."""
    rng = random.Random(3)
    held = 0
    for _ in range(2000):
        table = [0, 0, 0, 0]
        for _ in range(200):
            u = rng.random()
            table[0 if u < 0.6 else 1 if u < 0.7 else 2 if u < 0.85 else 3] += 1
        found = paired_difference(*table)
        held += found.low <= 0.05 <= found.high
    assert 0.935 < held / 2000 < 0.975


@pytest.mark.parametrize(("b", "c", "p"), [(0, 0, 1.0), (5, 5, 1.0), (1, 8, 0.0390625), (0, 10, 0.001953125), (12, 2, 0.012939453125)])
def test_mcnemar(b: int, c: int, p: float) -> None:
    """Exact binomial probabilities, counted by hand."""
    assert mcnemar_p_value(b, c) == pytest.approx(p, rel=1e-12)
    assert mcnemar_p_value(c, b) == mcnemar_p_value(b, c)


# --- real packages --------------------------------------------------------------------------------------------------------


def held_out() -> list[dict[str, Any]]:
    """Return rows neither version was trained on; those with a value that is refused are among them."""
    return [row for s in read_samples(ROOT / "models" / ".heldout" / "flights" / "2") for row in json.loads(s.body)["instances"]]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(compare, [str(FLIGHTS / "1"), str(FLIGHTS / "2"), *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return held_out()


@pytest.fixture(scope="module")
def truth(rows: Sequence[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose labels are version 2's own answers, but for every tenth row."""
    from samegraph_transforms.package import read_latest
    from samegraph_transforms.predicting import Item, PackagePredictor

    predictor = PackagePredictor(read_latest(FLIGHTS / "2"))
    answers = list(predictor.predict(Item("", "application/json", row) for row in rows))
    predictor.close()
    path = tmp_path_factory.mktemp("data") / "labelled.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for i, (row, answer) in enumerate(zip(rows, answers, strict=True)):
            label = "late" if answer.error else answer.prediction["label"]
            wrong = "on time" if label == "late" else "late"
            file.write(json.dumps({**row, "arrived": wrong if i % 10 == 0 else label}) + "\n")
    return path


def test_agreement_without_labels(rows: Sequence[dict[str, Any]], tmp_path: Path) -> None:
    """Both versions see every row; what changes is counted, and the document is plain JSON."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    result = run("--data", path, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["rows"] == len(rows)
    assert found["state"] == "differs"
    assert found["verdict"].startswith("Versions 1 and 2 answer ")
    assert sum(n for _, _, n in found["flips"]) == round(found["changed"]["estimate"] * found["both"])
    assert [n["element"] for n in found["numbers"]] == ["late", "on time"]
    assert {s["field"] for s in found["slices"]} >= {"origin", "temp"}


def test_labels_decide(truth: Path, tmp_path: Path) -> None:
    """Version 2 is right for nine of ten rows by construction: the interval says so, slices and calibration come with it."""
    page = tmp_path / "compare.html"
    result = run("--data", truth, "--label", "arrived", "--json", "--html", page)
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["state"] == "better"
    assert found["verdict"].startswith("Version 2 is more often right by between 0.")
    assert found["accuracy"]["second"]["estimate"] == pytest.approx(0.9, abs=0.01)
    assert found["accuracy"]["only_second"] > found["accuracy"]["only_first"]
    first, second = found["calibration"]
    assert second["brier"] < first["brier"]
    assert sum(n for _, n, _, _ in second["bins"]) == found["accuracy"]["n"]
    text = page.read_text(encoding="utf-8")
    assert "Version 2 is more often right" in text
    assert "<script" not in text


def test_the_terminal_has_the_same(truth: Path) -> None:
    """Verdict first, then accuracy, what changes and where."""
    result = run("--data", truth, "--label", "arrived")
    lines = result.output.splitlines()
    assert lines[0].startswith("flights version 1 and version 2, ")
    assert lines[1].startswith("Version 2 is more often right by between 0.")
    for title in ("Accuracy", "Answers that change (label)", "Where they differ", "Calibration"):
        assert any(line.startswith(title) for line in lines), title


def test_a_worse_version_can_end_a_pipeline(truth: Path) -> None:
    """Compared the other way round the second is worse, and --fail-if-worse ends with 3."""
    result = CliRunner().invoke(
        compare, [str(FLIGHTS / "2"), str(FLIGHTS / "1"), "--data", str(truth), "--label", "arrived", "--fail-if-worse", "--json"]
    )
    assert result.exit_code == 3
    assert json.loads(result.output)["state"] == "worse"


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables_say_the_same_as_json_lines(truth: Path, tmp_path: Path, suffix: str) -> None:
    """The same rows as CSV or Parquet give the same comparison, label and all."""
    instances = [json.loads(line) for line in truth.read_text(encoding="utf-8").splitlines()]
    whole = [r for r in instances if all(isinstance(r.get(k), type(instances[0][k])) for k in instances[0])][:150]
    lines, path = tmp_path / "rows.jsonl", tmp_path / f"rows.{suffix}"
    lines.write_text("".join(json.dumps(r) + "\n" for r in whole), encoding="utf-8")
    if suffix == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(whole[0]))
            writer.writeheader()
            writer.writerows(whole)
    else:
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(whole), path)
    of_lines, of_table = (json.loads(run("--data", p, "--label", "arrived", "--json").output) for p in (lines, path))
    assert of_table["accuracy"] == of_lines["accuracy"]
    assert of_table["changed"] == of_lines["changed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label", "nothing"], "no row has a label; is the column named right?"),
        (["--label", "origin"], "'origin' is a raw field of the model"),
    ],
    ids=["no-label", "a-field"],
)
def test_what_cannot_be_compared_is_said(truth: Path, arguments: list[str], message: str) -> None:
    """The message says what to look at."""
    result = run("--data", truth, "--ignore-extra", *arguments)
    assert result.exit_code == 1
    assert message in str(result.exception)


def test_two_models_are_not_two_versions() -> None:
    """Comparing penguins with flights is refused before anything runs."""
    result = CliRunner().invoke(compare, [str(FLIGHTS / "1"), str(ROOT / "models" / "penguins" / "1"), "--data", "x.jsonl"])
    assert "are two models; compare two versions of one" in str(result.exception)


# --- made-up answers ------------------------------------------------------------------------------------------------------


def made(first: str, second: str, label: str | None = None, **fields: Any) -> Row:
    chances = {"late": [0.8, 0.2], "on time": [0.3, 0.7]}
    return Row(fields, label, {"label": first, "probability": chances[first]}, {"label": second, "probability": chances[second]})


def test_equal_answers_say_what_may_hide() -> None:
    """No difference over a hundred rows is no proof of none: the verdict has the upper bound."""
    found = compared("flights", (1, 2), [made("late", "late")] * 100, [LABEL, PROBABILITY], labelled=False)
    assert found.state == "same"
    assert found.verdict == "Versions 1 and 2 give the same answer for all 100 rows; differences below 3.7 % may hide."


def test_slices_come_with_the_surest_difference_first() -> None:
    """All the harm is at one airport: it leads, with its own interval."""
    rows = [
        made("late", "on time" if origin == "JFK" else "late", "late", origin=origin) for origin in ("JFK", "EWR", "LGA") for _ in range(60)
    ]
    found = compared("flights", (1, 2), rows, [LABEL, PROBABILITY], labelled=True)
    assert (found.slices[0].field, found.slices[0].value) == ("origin", "JFK")
    assert found.slices[0].accuracy is not None
    assert found.slices[0].accuracy.difference.high < -0.9
    assert found.state == "worse"


def test_rows_only_one_refuses_are_counted_apart() -> None:
    """A version that refuses what the other answers is a difference too; rows both refuse are a note."""
    refused = {"error": "bad_value"}
    rows = [made("late", "late")] * 30 + [Row({}, None, refused, made("late", "late").second)] + [Row({}, None, refused, refused)] * 2
    found = compared("flights", (1, 2), rows, [LABEL, PROBABILITY], labelled=False)
    assert (found.rows, found.both, found.refused) == (33, 30, {"bad_value": (1, 0)})
    assert found.notes[0] == "2 rows were refused by both versions and count for neither."


def test_numbers_are_compared_with_the_truth() -> None:
    """A model that answers one number: mean absolute errors, and which is closer."""
    delay = Output(name="delay", dtype="float32", shape=[])
    rows = [Row({}, str(float(i)), {"delay": i + 2.0 + i % 3}, {"delay": i + 1.0}) for i in range(100)]
    found = compared("flights", (1, 2), rows, [delay], labelled=True)
    assert found.errors is not None
    assert found.errors.second.estimate == pytest.approx(1.0)
    assert found.state == "better"
    assert found.verdict.startswith("Version 2 is closer to the truth by between 1.8")
    assert math.isclose(found.numbers[0].quantiles[1.0], 3.0)


def test_images_are_compared_through_their_own_item_stages(tmp_path: Path) -> None:
    """A directory of files, two packages that take images; version 2 reads channels as 1 does, and both refuse the file that is none."""
    for version in (1, 2):
        odd.pack_tint(tmp_path / "models", version)
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(12):
        (photos / f"{i:02}.png").write_bytes(odd.image_file(i))
    (photos / "broken.png").write_bytes(b"no image")
    versions = [str(tmp_path / "models" / "tint" / version) for version in ("1", "2")]
    result = CliRunner().invoke(compare, [*versions, "--data", str(photos), "--json"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert (found["rows"], found["both"]) == (13, 12)
    assert {value for number in found["numbers"] for value in number["quantiles"].values()} == {0.0}
