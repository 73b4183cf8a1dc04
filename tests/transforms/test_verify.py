"""Verifying a package again, here."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from package_builders import WEIGHTS, classifier, draft, sample, samples
from rich.console import Console
from samegraph_transforms.draft import DraftStage
from samegraph_transforms.errors import PackageError
from samegraph_transforms.manifest import Tolerance
from samegraph_transforms.pack import pack
from samegraph_transforms.package import Package, open_version, write_package
from samegraph_transforms.verify import Report, verify


def page(report: Report) -> str:
    """Render the report as plain text."""
    console = Console(file=io.StringIO(), width=160)
    report.render(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def wrong_package(directory: Path) -> Package:
    """A package that was written without its proof, with wrong weights."""
    stages = [draft().stages[0], DraftStage("model", classifier(-WEIGHTS)), draft().stages[2]]
    return write_package(draft(stages=stages), samples(), directory / "plants" / "1")


def test_proven_package_verifies_where_it_was_packed(tmp_path: Path) -> None:
    """The narrow promise applies on the machine of the proof, and everything passes."""
    report = verify(pack(draft(), samples(), tmp_path))
    assert report.ok
    assert report.profile == "cpu.same"
    assert report.batch_sizes == (1, 2, 8)
    assert [(t.tensor, t.source) for t in report.tensors] == [
        ("features", "preprocess.batch"),
        ("probability", "model"),
        ("label", "postprocess"),
        ("probability", "served"),
        ("label", "served"),
    ]
    assert "exact: the package answers as training did" in page(report)


def test_wrong_package_is_reported_with_sample_and_tensor(tmp_path: Path) -> None:
    """A difference names the first sample and tensor, and only what differs is marked."""
    report = verify(wrong_package(tmp_path))
    assert not report.ok
    first = report.failures[0]
    assert first.failure is not None
    assert (first.sample, first.failure.tensor) == ("row 0", "probability")
    assert [t.passed for t in report.tensors[:3]] == [True, False, False]
    text = page(report)
    assert "NOT EXACT" in text
    assert "golden sample 'row 0' (batch of 1): tensor 'probability'" in text


def test_json_report_holds_everything(tmp_path: Path) -> None:
    """The JSON form is valid JSON with the verdict, the figures and the failures."""
    document = json.loads(json.dumps(verify(wrong_package(tmp_path)).to_json(), allow_nan=False))
    assert document["ok"] is False
    assert document["failures"][0]["tensor"] == "probability"
    assert document["tensors"][0]["verdict"] == "equal"
    assert document["promised"]["atol"] == 1e-5
    assert document["profile"] == "cpu.other"


def test_lost_numbers_are_valid_json_too(tmp_path: Path) -> None:
    """NaN against a number is null in JSON and ∞ on the page, never an invalid document."""
    package = write_package(draft(), samples(), tmp_path / "plants" / "1")
    lost = replace(samples()[0], outputs={**samples()[0].outputs, "probability": np.full((1, 3), np.nan, np.float32)})
    report = verify(package, [lost], [1])
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    probability = next(t for t in document["tensors"] if t["tensor"] == "probability")
    assert (probability["max_abs"], probability["max_ulp"]) == (None, None)
    assert "∞" in page(report)


def test_other_samples_and_sizes_can_be_given(tmp_path: Path) -> None:
    """Held-out samples are verified like golden ones, at the sizes asked for."""
    package = write_package(draft(), samples(), tmp_path / "plants" / "1")
    report = verify(package, [sample("held out", [{"size": 2.5, "kind": "oak"}])], [3])
    assert report.ok
    assert (report.samples, report.batch_sizes) == (1, (3,))


def test_excused_flips_are_listed_once(tmp_path: Path) -> None:
    """A label that may differ is shown with its margin, not hidden."""
    first = samples()[0]
    order = np.argsort(first.outputs["probability"][0])
    flipped = replace(first, outputs={**first.outputs, "label": np.array([("low", "mid", "high")[order[-2]]], dtype=object)})
    package = write_package(draft(tolerances={"cpu.other": Tolerance(atol=1.0)}), samples(), tmp_path / "plants" / "1")
    report = verify(package, [flipped])
    assert report.ok
    assert [(s, t, f.index) for s, t, f in report.flips] == [("row 0", "label", (0,))]
    assert "allowed: label[0] of 'row 0'" in page(report)


def test_bare_model_has_nothing_to_verify(tmp_path: Path) -> None:
    """A bare model says why it cannot be verified."""
    (tmp_path / "plants" / "1").mkdir(parents=True)
    onnx.save(classifier(), tmp_path / "plants" / "1" / "model.onnx")
    with pytest.raises(PackageError, match="is a bare model, so there is nothing to verify it against"):
        verify(open_version(tmp_path, "plants", 1))
