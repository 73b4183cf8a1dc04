"""Models of XGBoost and LightGBM answer as the libraries did: no label flips, floats to the last bits.

The references were written by scripts/references/boosters.py with the libraries themselves; half of their rows lie on thresholds or on
the numbers next to them.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from samegraph_transforms.boosted import from_boosted
from samegraph_transforms.draft import GoldenSample, PackageDraft
from samegraph_transforms.errors import AuthoringError, UnsupportedStep
from samegraph_transforms.exactness import compare
from samegraph_transforms.executor import OrtExecutor
from samegraph_transforms.manifest import DEFAULT_TOLERANCES
from samegraph_transforms.pack import pack

REFERENCES = Path(__file__).parent / "references" / "boosters"
MODELS = sorted(p.name for p in REFERENCES.iterdir() if p.suffix != ".npz")


def answers(draft: PackageDraft, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Run float64 rows [n, k] through the draft's model stage."""
    executor = OrtExecutor(draft.stages[-1].model)
    return dict(zip(executor.output_names, executor.run({"features": rows}), strict=True))


def expected_outputs(draft: PackageDraft, answer: np.ndarray, *, xgboost: bool) -> dict[str, np.ndarray]:
    """Return the outputs for what the library's `predict` answered, chosen as its scikit-learn class does."""
    if draft.outputs[0].name == "value":
        return {"value": answer}
    both = np.stack([1 - answer, answer], axis=1) if answer.ndim == 1 else answer
    chosen = (answer > 0.5).astype(np.int64) if xgboost and answer.ndim == 1 else both.argmax(axis=1)
    return {"label": chosen, "probability": both}


@pytest.mark.parametrize("file", MODELS)
def test_a_model_answers_as_its_library_does(file: str) -> None:
    reference = np.load(REFERENCES / f"{Path(file).stem}.npz")
    draft = from_boosted((REFERENCES / file).read_bytes(), name="m", version=1, missing=float(reference["missing"]))
    actual = answers(draft, reference["rows"])
    wanted = expected_outputs(draft, reference["answer"], xgboost=file.startswith("xgboost"))
    assert len(reference["rows"]) >= 500
    for name, array in wanted.items():
        result = compare(array, actual[name], DEFAULT_TOLERANCES["cpu.same"], tensor=name)
        assert actual[name].dtype == array.dtype
        assert result.passed, f"{name}: {result.detail}"
        if name == "label":
            assert result.different == 0


@pytest.mark.parametrize("file", ["xgboost-three.json", "lightgbm-categories.txt"])
def test_a_model_file_becomes_a_proven_package(file: str, tmp_path: Path) -> None:
    reference = np.load(REFERENCES / f"{Path(file).stem}.npz")
    classes = ["low", "middle", "hïgh"] if "three" in file else ["no", "yes"]
    draft = from_boosted((REFERENCES / file).read_bytes(), name="boosted", version=1, classes=classes, fields={"height": "In centimetres."})
    wanted = expected_outputs(draft, reference["answer"], xgboost=file.startswith("xgboost"))
    wanted["label"] = np.array(classes)[wanted["label"]]
    samples = []
    for i in range(0, 320, 8):
        instances = [
            {f.name: None if np.isnan(v) else float(v) for f, v in zip(draft.fields, row, strict=True)}
            for row in reference["rows"][i : i + 8]
        ]
        samples.append(
            GoldenSample(
                name=f"rows {i}",
                path="/v1/models/boosted:predict",
                headers={"content-type": "application/json"},
                body=json.dumps({"instances": instances}).encode(),
                outputs={name: array[i : i + 8] for name, array in wanted.items()},
            )
        )
    package = pack(draft, samples, tmp_path)
    assert {m.tensor: m.flips for m in package.manifest.measured} == {"label": 0, "probability": 0}
    assert package.manifest.fields[0].description == "In centimetres."


def test_fewer_rounds_answer_when_asked() -> None:
    source = (REFERENCES / "xgboost-squared.json").read_bytes()
    whole, two = (from_boosted(source, name="m", version=1, rounds=n) for n in (None, 2))
    rows = np.load(REFERENCES / "xgboost-squared.npz")["rows"]
    stopped = json.loads(source)
    stopped["learner"]["attributes"]["best_iteration"] = "1"
    early = from_boosted(json.dumps(stopped).encode(), name="m", version=1)
    assert not np.array_equal(answers(whole, rows)["value"], answers(two, rows)["value"])
    assert np.array_equal(answers(early, rows)["value"], answers(two, rows)["value"])


def edited(file: str, old: str, new: str) -> bytes:
    """Return a reference model with one place of its text changed."""
    text = (REFERENCES / file).read_text()
    assert old in text
    return text.replace(old, new).encode()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        pytest.param(
            edited("xgboost-squared.json", "reg:squarederror", "survival:cox"), "objective 'survival:cox'", id="xgboost objective"
        ),
        pytest.param(edited("xgboost-squared.json", '"gbtree"', '"dart"'), "booster='dart'", id="dart"),
        pytest.param(edited("xgboost-squared.json", '"split_type":[0', '"split_type":[1'), "splits on categories", id="xgboost categories"),
        pytest.param(edited("xgboost-squared.json", '"size_leaf_vector":"1"', '"size_leaf_vector":"2"'), "vectors", id="vector leaves"),
        pytest.param(edited("lightgbm-squared.txt", "objective=regression", "objective=lambdarank"), "lambdarank", id="lightgbm objective"),
        pytest.param(edited("lightgbm-squared.txt", "is_linear=0", "is_linear=1"), "linear_tree=True", id="linear leaves"),
        pytest.param(edited("lightgbm-squared.txt", "version=v4", "version=v2"), "'v2'", id="old format"),
        pytest.param(
            edited("lightgbm-squared.txt", "pandas_categorical:null", 'pandas_categorical:[["a"]]'), "OrdinalEncoder", id="categories"
        ),
    ],
)
def test_what_has_no_exact_graph_is_refused_by_name(source: bytes, said: str) -> None:
    with pytest.raises(UnsupportedStep, match=said):
        from_boosted(source, name="m", version=1)


def test_a_file_of_something_else_is_refused() -> None:
    with pytest.raises(AuthoringError, match="not a model of XGBoost"):
        from_boosted(b"\x80\x04", name="m", version=1)
    with pytest.raises(AuthoringError, match="not a model file of XGBoost"):
        from_boosted(b"{}", name="m", version=1)
    with pytest.raises(AuthoringError, match="2 labels for a model with 3 classes"):
        from_boosted((REFERENCES / "xgboost-three.json").read_bytes(), name="m", version=1, classes=["a", "b"])
    with pytest.raises(AuthoringError, match="reads no column 'hight'"):
        from_boosted((REFERENCES / "xgboost-three.json").read_bytes(), name="m", version=1, fields={"hight": ""})
