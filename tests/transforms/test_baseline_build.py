"""Held-out rows and the answers to them become a baseline, through the package itself."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from package_builders import KINDS, draft, model_of, reference, samples
from PIL import Image
from samegraph_transforms.baseline import Baseline, FieldBaseline, Variable
from samegraph_transforms.baseline_bins import Binner
from samegraph_transforms.baseline_build import BaselineBuilder, build_baseline, pixel_values
from samegraph_transforms.baseline_extract import InputColumns, OutputColumns, expected_cells, field_statistics, output_statistics
from samegraph_transforms.baseline_images import pixel_facts
from samegraph_transforms.draft import BaselineRows, DraftStage, PackageDraft
from samegraph_transforms.errors import AuthoringError
from samegraph_transforms.golden import write_samples
from samegraph_transforms.image import Decode, Preprocess, Resize, ToCHW, ToFloat, ToRGB
from samegraph_transforms.manifest import Missing, Output, RawField
from samegraph_transforms.pack import pack, read_draft
from samegraph_transforms.package import Package, read_package, write_package
from samegraph_transforms.runtime import PackageRuntime

GENERATOR = np.random.default_rng(6)
ROWS: list[dict[str, Any]] = [
    {"size": None if i % 10 == 9 else round(float(size), 3), "kind": str(kind)}
    for i, (size, kind) in enumerate(zip(GENERATOR.normal(0, 2, 400), GENERATOR.choice([*KINDS, "bamboo"], 400), strict=True))
]


@pytest.fixture(scope="module")
def plants(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The small tabular package, without a baseline."""
    return write_package(draft(), [], tmp_path_factory.mktemp("plants") / "plants" / "1")


@pytest.fixture(scope="module")
def baseline(plants: Package) -> Baseline:
    """The baseline of all rows; a tenth of the right answers is not the package's."""
    truth = [str(label) for label in reference(ROWS)["label"]]
    truth[:40] = ["wrong"] * 40
    return build_baseline(plants, BaselineRows(ROWS, made_from="rows of a test", truth=truth, importance={"kind": 2.5}))


def filled(variable: Variable) -> dict[str, int]:
    """Return what the bins hold → how many rows, for the bins that have some."""
    return {variable.describe(label): n for label, n in zip(variable.labels, variable.counts, strict=True) if n}


class TestTabular:
    def test_fields_are_counted_as_they_were_sent(self, baseline: Baseline) -> None:
        """A number's nulls are missing, a category's values are counted by name, and what training did not know is unseen."""
        size, kind = (variable for _, variable in baseline.inputs())
        assert size.counts[size.labels.index("missing")] == 40
        assert size.n == 360
        assert size.mean == pytest.approx(np.mean([r["size"] for r in ROWS if r["size"] is not None]))
        known = [r["kind"] for r in ROWS]
        assert filled(kind) == {**{k: known.count(k) for k in KINDS}, "unseen": known.count("bamboo")}
        assert (baseline.field("kind").importance, baseline.field("size").importance) == (2.5, 1.0)

    def test_answers_are_those_of_the_package(self, baseline: Baseline) -> None:
        """Class shares, the largest score, its margin and every class's score are counted on the package's own answers."""
        answers = reference(ROWS)
        label = baseline.output("label").variables[0]
        assert filled(label) == {str(v): int(n) for v, n in zip(*np.unique(answers["label"].astype(str), return_counts=True), strict=True)}
        names = [v.name for v in baseline.output("probability").variables]
        assert names == ["probability.top", "probability.margin", "probability.low", "probability.mid", "probability.high"]
        top, margin, low = baseline.output("probability").variables[:3]
        ordered = np.sort(answers["probability"].astype(np.float64), axis=1)
        assert top.mean == pytest.approx(ordered[:, -1].mean(), rel=1e-6)
        assert margin.mean == pytest.approx((ordered[:, -1] - ordered[:, -2]).mean(), rel=1e-5)
        assert low.mean == pytest.approx(answers["probability"][:, 0].mean(), rel=1e-6)

    def test_expected_accuracy_stands_beside_the_measured_one(self, baseline: Baseline) -> None:
        """The sums are those of the largest probability; the share of right answers is the trainer's."""
        expected = baseline.output("probability").expected
        assert expected is not None
        top = reference(ROWS)["probability"].max(axis=1).astype(np.float64)
        assert expected.cells["correct"] == pytest.approx(top.sum(), rel=1e-6)
        assert expected.accuracy == pytest.approx(top.mean(), rel=1e-6)
        assert expected.measured_accuracy == pytest.approx(0.9)
        assert baseline.output("label").expected is None

    def test_serving_code_counts_the_same(self, plants: Package, baseline: Baseline) -> None:
        """The columns and binners a server uses give the baseline's counts for the baseline's rows, in any batches."""
        runtime = PackageRuntime.load(plants)
        rows = [runtime.signature.check_row(row) for row in ROWS]
        inputs, outputs = InputColumns(plants.manifest, baseline.fields), OutputColumns(plants.manifest)
        totals: dict[tuple[int, str], np.ndarray] = {}
        for start in range(0, len(rows), 77):
            part = rows[start : start + 77]
            read = [(0, inputs.read(part)), (1, outputs.read(runtime.predict(part)))]
            for side, variables in enumerate(([v for _, v in baseline.inputs()], [v for _, v in baseline.answers()])):
                for variable in variables:
                    counts = Binner(variable).count(read[side][1][variable.name])
                    totals[side, variable.name] = totals.get((side, variable.name), np.zeros_like(counts)) + counts
        for side, variables in enumerate(([v for _, v in baseline.inputs()], [v for _, v in baseline.answers()])):
            for variable in variables:
                assert totals[side, variable.name].tolist() == variable.counts, variable.name

    def test_same_rows_give_the_same_bytes(self, plants: Package, baseline: Baseline) -> None:
        """A baseline holds no time and no chance."""
        assert build_baseline(plants, BaselineRows(ROWS, made_from="rows of a test")).fields[0] == baseline.fields[0]

    def test_fields_can_be_left_out_or_hashed(self, tmp_path: Path) -> None:
        """Off: no variable. Hashed: counts without a readable value, once the manifest does not list the values itself."""
        fields = [draft().fields[0], draft().fields[1].model_copy(update={"known": None})]
        package = write_package(draft(fields=fields), [], tmp_path / "plants" / "1")
        baseline = build_baseline(package, BaselineRows(ROWS, off=["size"], hashed=["kind"]))
        assert baseline.field("size").variables == []
        assert baseline.field("size").monitored == "off"
        (kind,) = baseline.field("kind").variables
        assert kind.hashed
        assert not set(kind.categories) & {*KINDS, "bamboo"}
        assert sorted(filled(kind).values()) == sorted([r["kind"] for r in ROWS].count(k) for k in (*KINDS, "bamboo"))

    @pytest.mark.parametrize(
        ("given", "reason"),
        [
            pytest.param({"rows": []}, "no rows for the baseline", id="no rows"),
            pytest.param(
                {"rows": [{"size": 1.0, "kind": "oak"}, {"size": "1", "kind": "oak"}]}, "row 1 is refused: field 'size'", id="bad row"
            ),
            pytest.param({"off": ["weight"]}, "off names 'weight'; there are size, kind", id="no such field"),
            pytest.param({"hashed": ["size"]}, "only strings can be hashed; 'size' is a number", id="hashed number"),
            pytest.param({"hashed": ["kind"]}, "its values stand in the manifest", id="hashed but listed"),
            pytest.param({"positive": {"probability": "huge"}}, "no class 'huge'; it has low, mid, high", id="no such class"),
            pytest.param({"truth": ["low"]}, "1 right answers for 400 rows", id="too few answers"),
        ],
    )
    def test_what_cannot_be_is_refused_with_the_reason(self, plants: Package, given: dict[str, Any], reason: str) -> None:
        """The message names the option or the row and what is wrong."""
        with pytest.raises(AuthoringError, match=reason):
            build_baseline(plants, BaselineRows(**{"rows": ROWS, **given}))

    def test_a_builder_without_rows_makes_nothing(self, plants: Package) -> None:
        """Finishing before anything was added is refused."""
        with pytest.raises(AuthoringError, match="no rows"):
            BaselineBuilder(plants.manifest, BaselineRows([])).finish()


class TestPacking:
    def test_pack_writes_the_baseline_of_a_draft_that_has_rows(self, tmp_path: Path) -> None:
        """The package is proven, then gets its baseline, and packing again changes nothing."""
        whole = draft(baseline=BaselineRows(ROWS, made_from="rows of a test", sampled_from="2024-01-01"))
        said: list[str] = []
        package = pack(whole, samples(), tmp_path, progress=said.append)
        baseline = read_package(package.path).baseline()
        assert baseline is not None
        assert (baseline.rows, baseline.made_from, baseline.sampled_from) == (400, "rows of a test", "2024-01-01")
        assert any("baseline: 400 of 400 rows" in line for line in said)
        assert pack(whole, samples(), tmp_path) == package

    def test_rows_that_do_not_fit_leave_nothing_behind(self, tmp_path: Path) -> None:
        """A package is whole or not there."""
        with pytest.raises(AuthoringError, match="baseline row 0"):
            pack(draft(baseline=BaselineRows([{"size": 1.0}])), samples(), tmp_path)
        assert list((tmp_path / "plants").iterdir()) == []

    def test_draft_directory_names_its_rows(self, tmp_path: Path) -> None:
        """draft.json says where the rows lie, an instance a line, and how to treat them."""
        whole, directory = draft(), tmp_path / "draft"
        directory.mkdir()
        (directory / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
        for stage in whole.stages:
            (directory / f"{stage.name}.onnx").write_bytes(stage.model.SerializeToString())
        facts = {
            "name": whole.name, "version": 1, "fields": [f.model_dump() for f in whole.fields],
            "outputs": [o.model_dump() for o in whole.outputs],
            "stages": [{"name": s.name, "file": f"{s.name}.onnx"} for s in whole.stages],
            "baseline": {"rows": "rows.jsonl", "made_from": "a file", "off": ["size"]},
        }  # fmt: skip
        (directory / "draft.json").write_text(json.dumps(facts))
        write_samples(directory / "golden", samples())
        baseline = pack(*read_draft(directory), tmp_path / "models").baseline()
        assert baseline is not None
        assert (baseline.rows, baseline.made_from, baseline.field("size").monitored) == (400, "a file", "off")
        (directory / "rows.jsonl").write_text('{"size": NaN}\n')
        with pytest.raises(AuthoringError, match=r"rows\.jsonl, line 1"):
            read_draft(directory)


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (40, 30), **options: Any) -> bytes:
    """Return a one-coloured file, JPEG unless `format` says otherwise."""
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, **{"format": "JPEG", "quality": 90, **options})
    return stream.getvalue()


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Photos → the mean of each channel, as scores of three colours."""
    preprocess = Preprocess([Decode(), ToRGB(), Resize((32, 24), "bilinear"), ToFloat(), ToCHW()])
    model = model_of(
        [
            helper.make_node("ReduceMean", ["input", "axes"], ["means"], keepdims=0),
            helper.make_node("Softmax", ["means"], ["colour"], axis=1),
        ],
        [("input", TensorProto.FLOAT, ["n", 3, 32, 24])],
        [("colour", TensorProto.FLOAT, ["n", 3])],
        axes=np.array([2, 3]),
    )
    whole = PackageDraft(
        name="colours",
        version=1,
        fields=preprocess.fields("photo"),
        outputs=[Output(name="colour", dtype="float32", shape=[3], element_names=["red", "green", "blue"])],
        stages=[*preprocess.stages("photo"), DraftStage("model", model)],
        decoders=preprocess.decoders(),
    )
    return write_package(whole, [], tmp_path_factory.mktemp("colours") / "colours" / "1")


class TestImages:
    def test_file_and_pixels_are_counted(self, colours: Package) -> None:
        """Container facts come from the file, pixel statistics from the item stage's output, and each row is in every variable once."""
        photos = [picture((200, 40, 40))] * 6 + [picture((20, 20, 220), (20, 60), format="PNG")] * 4
        baseline = build_baseline(colours, BaselineRows([{"photo": photo} for photo in photos]))
        photo = baseline.field("photo")
        assert (photo.pixels, photo.model_size) == ("pixels", (32, 24))
        by_name = {v.name: v for v in photo.variables}
        assert filled(by_name["photo.format"]) == {"JPEG": 6, "PNG": 4}
        assert filled(by_name["photo.width"]) == {"[20, 40)": 4, "40": 6}
        assert filled(by_name["photo.upscaled"]) == {"false": 6, "true": 4}
        assert filled(by_name["photo.quality_estimate"]) == {"90": 6, "missing": 4}
        blue = by_name["photo.blue_share"]
        assert blue.maximum == pytest.approx(220 / 260, abs=0.01)
        assert filled(baseline.output("colour").variables[2]) == {"red": 6, "blue": 4}
        assert {v.rows for v in photo.variables} == {10}

    def test_pixels_are_what_the_model_sees(self, colours: Package) -> None:
        """The statistics are those of the decoded and resized image, not of the file's own pixels."""
        noise = Image.fromarray(GENERATOR.integers(0, 256, (300, 200, 3), dtype=np.uint8))
        stream = io.BytesIO()
        noise.save(stream, "PNG")
        baseline = build_baseline(colours, BaselineRows([stream.getvalue()]))
        seen = pixel_facts(np.asarray(noise.resize((24, 32), Image.Resampling.BILINEAR)))
        found = {v.name: v.minimum for v in baseline.field("photo").variables}
        assert found["photo.contrast"] == seen["contrast"]
        assert found["photo.sharpness"] == seen["sharpness"]

    def test_rows_of_a_draft_file_carry_base64(self, colours: Package) -> None:
        """An image in JSON is an object with b64, as in a request."""
        row = {"photo": {"b64": base64.b64encode(picture((1, 2, 3))).decode()}}
        assert build_baseline(colours, BaselineRows([row, row])).rows == 2

    def test_an_image_that_cannot_be_decoded_is_named(self, colours: Package) -> None:
        """The message says which row and why."""
        with pytest.raises(AuthoringError, match="baseline row 1 cannot be prepared: field 'photo'"):
            build_baseline(colours, BaselineRows([picture((1, 2, 3)), b"no image"]))

    def test_pixels_are_found_by_following_the_graph(self, colours: Package) -> None:
        """The value that depends on the photo is the one looked at; tables have none."""
        found = pixel_values(colours)
        assert {name: (p.value, p.size) for name, p in found.items()} == {"photo": ("pixels", (32, 24))}

    def test_each_of_two_images_has_pixels_of_its_own(self, tmp_path: Path) -> None:
        """Of two photos each is looked at where it alone is; a value made of both, or of no uint8 picture, belongs to none."""
        decoders = [helper.make_node("ImageDecoder", [name], [f"{name}_raw"], name=name) for name in ("left", "right")]
        item = model_of(
            [
                *decoders,
                helper.make_node("Slice", ["left_raw", "start", "end", "axis"], ["left_pixels"]),
                helper.make_node("Slice", ["right_raw", "start", "end", "axis"], ["right_pixels"]),
                helper.make_node("Concat", ["left_pixels", "right_pixels"], ["both"], axis=0),
                helper.make_node("Cast", ["right_raw"], ["right_floats"], to=TensorProto.FLOAT),
            ],
            [(name, TensorProto.UINT8, ["k"]) for name in ("left", "right")],
            [
                ("right_floats", TensorProto.FLOAT, ["h", "w", 3]),
                ("both", TensorProto.UINT8, [16, "w", 3]),
                ("right_pixels", TensorProto.UINT8, [8, "w", 3]),
                ("left_pixels", TensorProto.UINT8, [8, 6, 3]),
            ],
            start=np.array([0]),
            end=np.array([8]),
            axis=np.array([0]),
        )
        model = model_of(
            [helper.make_node("ReduceMax", ["both"], ["y"], keepdims=0)],
            [("both", TensorProto.UINT8, ["n", 16, "w", 3])],
            [("y", TensorProto.UINT8, [])],
        )
        whole = PackageDraft(
            name="pairs",
            version=1,
            fields=[RawField(name="left", kind="image"), RawField(name="right", kind="image")],
            outputs=[Output(name="y", dtype="uint8")],
            stages=[DraftStage("preprocess.item", item), DraftStage("model", model)],
        )
        found = pixel_values(write_package(whole, [], tmp_path / "pairs" / "1"))
        assert {name: (p.value, p.size) for name, p in found.items()} == {
            "left": ("left_pixels", (8, 6)), "right": ("right_pixels", None),
        }  # fmt: skip


class TestColumns:
    """Every kind of field and output: the statistics promised are the columns read, with one value a row."""

    FIELDS = (
        RawField(name="flag", kind="boolean", missing=Missing(rule="companion")),
        RawField(name="count", kind="integer"),
        RawField(name="code", kind="string", allowed=["x", "y"]),
        RawField(name="words", kind="text"),
        RawField(name="blob", kind="bytes"),
        RawField(name="vector", kind="tensor", dtype="float32", shape=[3]),
        RawField(name="field", kind="tensor", dtype="int64", shape=[None, 2]),
        RawField(name="names", kind="tensor", dtype="string", shape=[2]),
        RawField(name="one", kind="tensor", dtype="float64", shape=[]),
    )
    OUTPUTS = (
        Output(name="class", dtype="int64", decided_by="scores"),
        Output(name="scores", dtype="float32", shape=[2], element_names=["no", "yes"]),
        Output(name="free", dtype="float32", shape=[40], element_names=[f"c{i}" for i in range(40)]),
        Output(name="value", dtype="float64"),
        Output(name="sure", dtype="bool"),
        Output(name="embedding", dtype="float32", shape=[40]),
        Output(name="pair", dtype="float32", shape=[2]),
        Output(name="tokens", dtype="string", shape=[4]),
        Output(name="amount", dtype="int64", shape=[1]),
    )

    @pytest.fixture
    def manifest(self, plants: Package) -> Any:
        """A manifest of many kinds; its stages play no part."""
        return plants.manifest.model_copy(update={"fields": list(self.FIELDS), "outputs": list(self.OUTPUTS)})

    @pytest.mark.parametrize("nulls", [False, True], ids=["whole", "with nulls"])
    def test_fields(self, manifest: Any, nulls: bool) -> None:
        """Whatever the kind, the columns are the statistics by name, and nulls are None."""
        row = (
            True, 3, "x", "Hello 1", b"abcd", np.array([1, 2, 3], np.float32), np.array([[1, 2], [3, 4], [5, 6]]),
            np.array(["a", "b"], object), np.array(2.5),
        )  # fmt: skip
        rows = [row, tuple(None for _ in row)] if nulls else [row, row]
        empty = [FieldBaseline(name=field.name, kind=field.kind) for field in self.FIELDS]
        columns = InputColumns(manifest, empty).read(rows)
        assert list(columns) == [s.name for field in self.FIELDS for s in field_statistics(field)]
        assert {len(column) for column in columns.values()} == {2}
        first = {name: column[0] for name, column in columns.items()}
        expected = {
            "flag": True, "count": 3, "code": "x", "words.characters": 7, "words.digit_share": round(1 / 7, 6), "blob.bytes": 4,
            "vector.0": 1.0, "vector.2": 3.0, "field.mean": 3.5, "field.maximum": 6.0, "field.finite_share": 1.0, "one": 2.5,
        }  # fmt: skip
        assert {name: first[name] for name in expected} == expected
        if nulls:
            assert all(column[1] is None for column in columns.values())

    def test_outputs(self, manifest: Any) -> None:
        """Classes, scores, plain numbers and vectors each have their statistics, one value a row."""
        arrays = {
            "class": np.array([1, 0]), "scores": np.array([[0.25, 0.75], [0.5, 0.5]], np.float32),
            "free": np.eye(40, dtype=np.float32)[[3, 7]], "value": np.array([1.5, np.nan]), "sure": np.array([True, False]),
            "embedding": np.ones((2, 40), np.float32),
            "pair": np.array([[1, 2], [3, 4]], np.float32), "tokens": np.array([["a"] * 4] * 2, object), "amount": np.array([[5], [6]]),
        }  # fmt: skip
        columns = OutputColumns(manifest).read(arrays)
        statistics = [s for output in self.OUTPUTS for s in output_statistics(output, self.OUTPUTS)]
        assert list(columns) == [s.name for s in statistics]
        assert {len(column) for column in columns.values()} == {2}
        listed = {name: np.asarray(column).tolist() for name, column in columns.items()}
        assert listed["class"] == [1, 0]
        assert listed["scores.yes"] == [0.75, 0.5]
        assert listed["scores.margin"] == [0.5, 0.0]
        assert "scores.class" not in listed
        assert listed["free.class"] == ["c3", "c7"]
        assert listed["embedding.mean"] == [1.0, 1.0]
        assert (listed["pair.0"], listed["amount"], listed["tokens"]) == ([1.0, 3.0], [5, 6], ["a", "a"])
        assert {s.name: s.integers for s in statistics}["class"]
        assert next(s for s in statistics if s.name == "free.class").known == tuple(f"c{i}" for i in range(40))

    def test_expected_cells_of_the_worked_example(self) -> None:
        """Five probabilities cut at one half: 2.3 true positives, 0.7 false, 0.5 false negatives, 1.5 true."""
        p = np.array([0.9, 0.8, 0.3, 0.6, 0.2])
        cells = expected_cells(self.OUTPUTS[1], np.stack([1 - p, p], axis=1), "yes")
        assert {name: round(value, 12) for name, value in cells.items()} == {
            "correct": 3.8, "wrong": 1.2, "tp": 2.3, "fp": 0.7, "fn": 0.5, "tn": 1.5,
        }  # fmt: skip

    def test_scores_that_are_no_probabilities_expect_nothing(self, plants: Package) -> None:
        """Logits have margins and bins, but no expected accuracy."""
        manifest = plants.manifest
        builder = BaselineBuilder(manifest, BaselineRows([]))
        logits = {"label": np.array(["low"], object), "probability": np.array([[3.0, -1.0, 0.5]], np.float32)}
        builder.add([(1.0, "moss")], logits)
        assert builder.finish().output("probability").expected is None
