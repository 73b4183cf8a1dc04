"""baseline.json: its rules, its schema, and reading it from a package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from package_builders import draft, samples
from pydantic import ValidationError
from samegraph_transforms.baseline import (
    BASELINE,
    FORMAT,
    Baseline,
    Expected,
    FieldBaseline,
    OutputBaseline,
    Variable,
    baseline_bytes,
    json_schema,
    parse_baseline,
    signature_digest,
)
from samegraph_transforms.baseline_bins import categorical_variable, numeric_variable
from samegraph_transforms.errors import BaselineInvalid, DigestMismatch
from samegraph_transforms.manifest import Manifest, Output, RawField
from samegraph_transforms.package import Package, read_package, write_package

SCHEMA = Path(__file__).parents[2] / "docs" / "baseline.schema.json"
SIZES, KINDS = [float(x) for x in range(50)], ["moss"] * 30 + ["fern"] * 20


def made(manifest: Manifest, **changes: Any) -> Baseline:
    """Return a baseline of fifty plants."""
    facts: dict[str, Any] = {
        "made_from": "fifty plants",
        "rows": 50,
        "signature": signature_digest(manifest),
        "fields": [
            FieldBaseline(name="size", kind="number", variables=[numeric_variable("size", SIZES)]),
            FieldBaseline(name="kind", kind="string", variables=[categorical_variable("kind", KINDS)]),
        ],
        "outputs": [OutputBaseline(name="label"), OutputBaseline(name="probability")],
    }
    return Baseline(**{**facts, **changes})


@pytest.fixture
def package(tmp_path: Path) -> Package:
    """A package without a baseline."""
    return write_package(draft(), samples(), tmp_path / "plain" / "plants" / "1")


def variable(**facts: Any) -> Variable:
    """Return a variable of one number between 0 and 1."""
    numbers = {"name": "x", "kind": "numeric", "minimum": 0.0, "maximum": 1.0, "n": 2, "mean": 0.5, "m2": 0.5, "counts": [2, *[0] * 6]}
    return Variable.model_validate({**numbers, **facts})


class TestModel:
    def test_labels_are_fixed_and_hold_no_value(self) -> None:
        """Bins are numbered, then come the specials of the kind; what they hold is said elsewhere."""
        size = numeric_variable("size", SIZES)
        assert size.labels == (*(f"{i:02d}" for i in range(10)), "below", "above", "missing", "nan", "inf", "invalid")
        kind = categorical_variable("kind", KINDS)
        assert kind.labels == ("00", "01", "other", "unseen", "missing", "invalid")
        assert [kind.describe(label) for label in kind.labels] == ["moss", "fern", "other", "unseen", "missing", "invalid"]
        assert [size.describe(label) for label in ("00", "09", "below", "above")] == ["[0, 4)", "[44, 49]", "below 0", "above 49"]

    @pytest.mark.parametrize(
        ("facts", "reason"),
        [
            pytest.param({"counts": [2]}, "1 counts for 7 bins", id="a count is missing"),
            pytest.param({"counts": [2, -1, *[0] * 5]}, "greater than or equal to 0", id="negative count"),
            pytest.param({"edges": [0.5, 0.5], "counts": [0] * 9}, "edges must increase", id="edge twice"),
            pytest.param({"edges": [0.0], "counts": [0] * 8}, "above the minimum", id="edge at the minimum"),
            pytest.param({"edges": [1.5], "counts": [0] * 8}, "not above the maximum", id="edge outside"),
            pytest.param({"mean": None}, "exactly when n is not 0", id="half a moment"),
            pytest.param({"mean": float("nan")}, "finite", id="NaN"),
            pytest.param({"categories": ["a"]}, "categories are for categorical", id="category of a number"),
            pytest.param({"kind": "boolean", "counts": [0] * 4}, "edges and moments are for numbers", id="moments of a boolean"),
        ],
    )
    def test_facts_that_do_not_fit_are_refused(self, facts: dict[str, Any], reason: str) -> None:
        """A variable whose parts contradict each other cannot be made."""
        assert variable().counts[0] == 2
        with pytest.raises(ValidationError, match=reason):
            variable(**facts)

    def test_a_category_is_listed_once(self) -> None:
        """A value with a bin of its own is not among the rare ones."""
        with pytest.raises(ValidationError, match="given twice"):
            Variable(name="c", kind="categorical", categories=["a"], rare=["a"], counts=[0] * 5)

    def test_counts_sum_to_the_rows(self, package: Package) -> None:
        """A baseline whose variable counted other rows than the rest is refused, by name."""
        with pytest.raises(ValidationError, match="variable 'size': counts sum to 50, the baseline has 49 rows"):
            made(package.manifest, rows=49)

    def test_two_variables_never_share_a_name(self, package: Package) -> None:
        """A name is a label in metrics, so it stands for one thing."""
        twice = [FieldBaseline(name=name, kind="number", variables=[numeric_variable("size", SIZES)]) for name in ("size", "kind")]
        with pytest.raises(ValidationError, match="one name"):
            made(package.manifest, fields=twice)

    def test_expected_accuracy_is_what_the_cells_say(self) -> None:
        """The worked example of five rows: 2.3 + 1.5 right of 5."""
        cells = {"correct": 3.8, "wrong": 1.2, "tp": 2.3, "fp": 0.7, "fn": 0.5, "tn": 1.5}
        assert Expected.model_validate({"positive": "yes", "cells": cells}).accuracy == pytest.approx(0.76)
        with pytest.raises(ValidationError, match="cells are correct, fn, fp, tn, tp, wrong"):
            Expected.model_validate({"positive": "yes", "cells": {"correct": 1.0, "wrong": 0.0}})

    def test_signature_digest_follows_fields_and_outputs_only(self, package: Package) -> None:
        """Another description or weight is the same signature; another kind, name or class is not."""
        manifest = package.manifest
        same = signature_digest(manifest)
        assert signature_digest(manifest.model_copy(update={"version": 2, "description": "other"})) == same
        for change in (
            {"fields": [RawField(name="size", kind="integer"), manifest.fields[1]]},
            {"outputs": [manifest.outputs[0], Output(name="probability", dtype="float32", shape=[3], element_names=["a", "b", "c"])]},
        ):
            assert signature_digest(manifest.model_copy(update=change)) != same


class TestFile:
    def test_published_schema_is_up_to_date(self) -> None:
        """docs/baseline.schema.json is what `samegraph schema baseline` prints; write it anew after changing the classes."""
        assert json.loads(SCHEMA.read_text()) == json_schema()

    def test_bytes_keep_to_the_schema_and_read_back(self, package: Package) -> None:
        """What is written is valid by the published schema and the same baseline when read."""
        baseline = made(package.manifest)
        raw = baseline_bytes(baseline)
        jsonschema.validate(json.loads(raw), json.loads(SCHEMA.read_text()))
        again = parse_baseline(raw, package.manifest)
        assert again == baseline
        assert baseline_bytes(again) == raw

    def test_package_without_one_has_none(self, package: Package) -> None:
        """A baseline is optional."""
        assert package.baseline() is None

    def test_package_holds_it_under_its_digest(self, package: Package, tmp_path: Path) -> None:
        """baseline.json is listed with its SHA-256, read back whole, and part of the package's identity."""
        baseline = made(package.manifest)
        written = write_package(draft(), samples(), tmp_path / "with" / "plants" / "1", baseline=baseline)
        assert BASELINE in written.manifest.files
        assert written.digest != package.digest
        read = read_package(written.path)
        assert read.baseline() == baseline
        path = written.path / BASELINE
        path.write_bytes(path.read_bytes().replace(b"fifty", b"sixty"))
        with pytest.raises(DigestMismatch, match=r"baseline\.json is not what the manifest says"):
            read.baseline()

    @pytest.mark.parametrize(
        ("raw", "reason"),
        [
            pytest.param(b"{", "not valid JSON", id="cut short"),
            pytest.param(b"[]", "format is None", id="no object"),
            pytest.param(b'{"format": 2}', f"format is 2; this samegraph reads format {FORMAT}", id="another format"),
            pytest.param(b'{"format": 1, "rows": 1}', "Field required", id="incomplete"),
        ],
    )
    def test_what_is_no_baseline_is_refused_with_the_reason(self, package: Package, raw: bytes, reason: str) -> None:
        """The message names the file and what is wrong with it."""
        with pytest.raises(BaselineInvalid, match=f"baseline.json.*{reason}"):
            parse_baseline(raw, package.manifest)

    def test_baseline_of_another_signature_is_refused(self, package: Package, tmp_path: Path) -> None:
        """Counts of other fields mean nothing here, so neither reading nor writing lets them in."""
        other = package.manifest.model_copy(update={"fields": package.manifest.fields[:1]})
        with pytest.raises(BaselineInvalid, match="other fields or outputs"):
            parse_baseline(baseline_bytes(made(other)), package.manifest)
        with pytest.raises(BaselineInvalid, match="other fields or outputs"):
            write_package(draft(), samples(), tmp_path / "bad" / "plants" / "1", baseline=made(other))
        assert not (tmp_path / "bad" / "plants" / "1").exists()

    def test_lookups_name_what_is_there(self, package: Package) -> None:
        """Fields and outputs are found by name; another name is a KeyError."""
        baseline = made(package.manifest)
        assert baseline.field("kind").variables[0].name == "kind"
        assert baseline.output("label").variables == []
        assert [(f.name, v.name) for f, v in baseline.inputs()] == [("size", "size"), ("kind", "kind")]
        for look in (baseline.field, baseline.output):
            with pytest.raises(KeyError):
                look("nothing")

    def test_standard_deviation_is_that_of_the_numbers(self) -> None:
        """m2 over n, divisor n."""
        assert numeric_variable("size", SIZES).std == pytest.approx(np.std(SIZES))
        assert categorical_variable("kind", KINDS).std is None
