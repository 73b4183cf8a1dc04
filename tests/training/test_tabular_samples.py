"""Golden samples come from the training code, and packages proven with them answer like it, or are refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from onnx import numpy_helper
from samegraph_transforms.draft import GoldenSample, PackageDraft
from samegraph_transforms.errors import AuthoringError, NotExact
from samegraph_transforms.pack import pack
from samegraph_transforms.package import read_package
from samegraph_transforms.runtime import PackageRuntime
from samegraph_transforms.signature import Signature
from samegraph_transforms.tabular import capture, edge_rows, from_sklearn, rows_of, varied_rows
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from training.parity import NUMBERS, STRINGS, make_frame, make_target, make_value, manifest_of

FRAME = make_frame()


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    """A fitted classifier over numbers, strings and a boolean."""
    columns = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), NUMBERS),
            ("strings", make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")), STRINGS),
            ("flag", "passthrough", ["flag"]),
        ]
    )
    return Pipeline([("columns", columns), ("model", LogisticRegression(max_iter=2000))]).fit(FRAME, make_target(FRAME, ["no", "yes"]))


@pytest.fixture(scope="module")
def draft(pipeline: Pipeline) -> PackageDraft:
    """Its package."""
    return from_sklearn(pipeline, FRAME, name="samples", version=1)


@pytest.fixture(scope="module")
def samples(pipeline: Pipeline, draft: PackageDraft) -> list[GoldenSample]:
    """Edges and training rows."""
    return [
        *capture(pipeline, FRAME, edge_rows(pipeline, FRAME, draft), draft=draft),
        *capture(pipeline, FRAME, FRAME.iloc[:20], draft=draft, rows_per_request=5, prefix="rows"),
    ]


def test_sample_is_the_raw_request_with_the_answers_of_training(pipeline: Pipeline, draft: PackageDraft) -> None:
    """The body is V1 JSON with null for missing; outputs are the pipeline's own, features those before its last step."""
    rows = FRAME.iloc[[3, 4]]
    (sample,) = capture(pipeline, FRAME, rows, draft=draft, rows_per_request=2)
    assert sample.path == "/v1/models/samples:predict"
    assert sample.headers == {"content-type": "application/json"}
    instances = json.loads(sample.body)["instances"]
    assert pd.DataFrame(instances, columns=list(FRAME.columns)).astype(FRAME.dtypes).equals(rows.reset_index(drop=True))
    np.testing.assert_array_equal(sample.outputs["label"], pipeline.predict(rows))
    np.testing.assert_array_equal(sample.outputs["probability"], pipeline.predict_proba(rows))
    features = pipeline[:-1].transform(rows)
    np.testing.assert_array_equal(sample.values["features"], features.toarray() if hasattr(features, "toarray") else features)


def test_edges_cover_every_field(pipeline: Pipeline, draft: PackageDraft) -> None:
    """Null, least, largest, unseen, empty, non-ASCII and both booleans are among the edges, and all are accepted."""
    rows = edge_rows(pipeline, FRAME, draft)
    for name in (
        "edge-typical",
        "edge-amount-null",
        "edge-height-min",
        "edge-height-max",
        "edge-height-far-above",
        "edge-count-zero",
        "edge-colour-null",
        "edge-colour-empty",
        "edge-colour-unseen",
        "edge-town-non-ascii",
        "edge-flag-true",
        "edge-flag-false",
        "edge-everything-missing",
    ):
        assert name in rows
    assert rows["edge-height-max"]["height"] == FRAME["height"].max()
    signature = Signature(manifest_of(draft))
    for row in rows.values():
        assert signature.check_row(row)


def test_varied_rows_are_seeded_and_accepted(pipeline: Pipeline, draft: PackageDraft) -> None:
    """The same seed gives the same rows, another gives others; all pass the signature, some hold nulls and unseen strings."""
    first, again, other = (varied_rows(pipeline, FRAME, draft, FRAME, count=80, seed=seed) for seed in (5, 5, 6))
    assert first == again
    assert first != other
    signature = Signature(manifest_of(draft))
    for row in first:
        assert signature.check_row(row)
    assert any(row["amount"] is None for row in first)
    assert any(str(row["town"]).startswith("unseen") for row in first)


def test_package_is_proven_and_read_again(tmp_path: Path, draft: PackageDraft, samples: list[GoldenSample], pipeline: Pipeline) -> None:
    """Pack accepts the draft; the package read from disk answers 200 other rows like the training code."""
    package = pack(draft, samples, tmp_path)
    measured = {m.tensor: m for m in package.manifest.measured}
    assert measured["features"].different == 0
    assert measured["label"].different == 0
    runtime = PackageRuntime.load(read_package(package.path))
    rows = FRAME.iloc[100:300]
    answers = runtime.predict([runtime.signature.check_row(row) for row in rows_of(pipeline, FRAME, rows)])
    assert (answers["label"] == pipeline.predict(rows)).all()
    np.testing.assert_allclose(answers["probability"], pipeline.predict_proba(rows), rtol=0, atol=1e-15)
    runtime.close()


def test_changed_preprocessing_is_refused_by_sample_and_tensor(tmp_path: Path, draft: PackageDraft, samples: list[GoldenSample]) -> None:
    """A scale that is off by one in a million is caught at `features`, the first tensor that differs."""
    altered = from_altered_scale(draft)
    with pytest.raises(NotExact) as caught:
        pack(altered, samples, tmp_path)
    assert caught.value.tensor == "features"
    assert caught.value.sample == "edge-typical"
    assert not (tmp_path / "samples" / "1" / "manifest.json").exists()


def from_altered_scale(draft: PackageDraft) -> PackageDraft:
    """Return the draft with the first divisor of its preprocessing changed a little."""
    model = type(draft.stages[0].model)()
    model.CopyFrom(draft.stages[0].model)
    divisor = next(n.input[1] for n in model.graph.node if n.op_type == "Div")
    initializer = next(i for i in model.graph.initializer if i.name == divisor)
    initializer.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(initializer) * (1 + 1e-6), divisor))
    stages = [type(draft.stages[0])("preprocess.batch", model), draft.stages[1]]
    return PackageDraft(draft.name, draft.version, draft.fields, draft.outputs, stages)


def test_row_that_training_cannot_answer_is_named(pipeline: Pipeline, draft: PackageDraft) -> None:
    """Capture names the sample that the pipeline fails on."""
    rows = {"good": {f.name: f.example for f in draft.fields}, "bad": {f.name: f.example for f in draft.fields} | {"height": "tall"}}
    with pytest.raises(AuthoringError, match="does not answer 'bad'"):
        capture(pipeline, FRAME, rows, draft=draft)


def test_regressor_samples_hold_its_value() -> None:
    """A regressor's sample has one output."""
    frame = FRAME[["height", "count"]]
    model = make_pipeline(StandardScaler(), Ridge()).fit(frame, make_value(FRAME))
    draft = from_sklearn(model, frame, name="ridge", version=2)
    (sample, *_) = capture(model, frame, frame.iloc[:3], draft=draft)
    assert list(sample.outputs) == ["value"]
    assert sample.outputs["value"].shape == (1,)


def test_same_training_gives_the_same_package(tmp_path: Path, pipeline: Pipeline, samples: list[GoldenSample]) -> None:
    """Nothing in a package depends on the time or the run."""
    digests = {pack(from_sklearn(pipeline, FRAME, name="samples", version=1), samples, tmp_path / str(i)).digest for i in range(2)}
    assert len(digests) == 1


def test_provenance_tells_library_versions(draft: PackageDraft) -> None:
    """What was trained with what stands in the package."""
    assert draft.provenance.framework.startswith("scikit-learn ")
    assert {"scikit-learn", "pandas", "numpy"} <= set(draft.provenance.libraries)
    assert "400 rows" in draft.provenance.data
