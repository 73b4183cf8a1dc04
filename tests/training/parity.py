"""Compare packages with scikit-learn: seeded frames, and both sides run on the same raw instances.

The package's side goes the server's way: the signature checks every instance and makes the columns, ONNX Runtime runs the stages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from samegraph_transforms.draft import PackageDraft
from samegraph_transforms.errors import InputError
from samegraph_transforms.exactness import Comparison, compare
from samegraph_transforms.executor import OrtExecutor
from samegraph_transforms.manifest import DEFAULT_TOLERANCES, Manifest, Stage
from samegraph_transforms.signature import Signature
from samegraph_transforms.tabular import capture, edge_rows, from_sklearn, rows_of, varied_rows

TOLERANCE = DEFAULT_TOLERANCES["cpu.same"]
NUMBERS = ["amount", "height", "count"]
STRINGS = ["colour", "town"]


def make_frame(n: int = 400, seed: int = 0) -> pd.DataFrame:
    """Return seeded rows with numbers, integers, booleans and strings, with missing values and non-ASCII text."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "amount": rng.lognormal(3, 2, size=n),
            "height": rng.normal(170.3, 11.7, size=n),
            "count": rng.integers(0, 60, size=n),
            "flag": rng.random(n) < 0.3,
            "colour": rng.choice(["red", "grün", "青い", "", "RED"], size=n, p=[0.4, 0.3, 0.2, 0.05, 0.05]),
            "town": rng.choice([f"town {i}" for i in range(25)], size=n),
        }
    )
    frame.loc[rng.random(n) < 0.15, "amount"] = np.nan
    frame.loc[rng.random(n) < 0.15, "colour"] = None
    return frame


def make_target(frame: pd.DataFrame, classes: Sequence[Any], seed: int = 1) -> np.ndarray:
    """Return a class per row that depends on the columns, with noise."""
    chosen: np.ndarray = np.asarray(classes)[np.digitize(make_value(frame, seed), np.linspace(-0.6, 0.9, len(classes) - 1))]
    return chosen


def make_value(frame: pd.DataFrame, seed: int = 1) -> np.ndarray:
    """Return a number per row that depends on the columns, with noise."""
    rng = np.random.default_rng(seed)
    amount = np.log(frame["amount"].fillna(20.0).to_numpy()) - 3
    return np.asarray(
        0.3 * amount + (frame["height"].to_numpy() - 170) / 20 + (frame["colour"] == "red").to_numpy() + rng.normal(size=len(frame)) / 2
    )


@dataclass(frozen=True)
class Parity:
    """What came of running package and training code on the same rows.

    Attributes:
        draft: The package.
        comparisons: Tensor → comparison: `features` and every output.
        rows: How many instances were compared.
    """

    draft: PackageDraft
    comparisons: dict[str, Comparison]
    rows: int

    def assert_exact(self) -> None:
        """Features bit-equal, labels equal, floats within the promise."""
        for name, comparison in self.comparisons.items():
            assert comparison.passed, f"{name}: {comparison.detail}"
        assert self.comparisons["features"].different == 0, self.comparisons["features"].detail
        if "label" in self.comparisons:
            assert self.comparisons["label"].different == 0, self.comparisons["label"].detail


def manifest_of(draft: PackageDraft) -> Manifest:
    """Return a manifest with the draft's fields and outputs."""
    stages = [Stage(name=s.name, file=f"{s.name}.onnx", inputs={}, outputs={}) for s in draft.stages]
    return Manifest(name=draft.name, version=draft.version, fields=list(draft.fields), outputs=list(draft.outputs), stages=stages)


def run_package(draft: PackageDraft, instances: Sequence[Mapping[str, object]]) -> dict[str, np.ndarray]:
    """Run instances through the signature and the stages as one batch; return `features` and the outputs."""
    signature = Signature(manifest_of(draft))
    values: dict[str, np.ndarray] = dict(signature.columns([signature.check_row(instance, i) for i, instance in enumerate(instances)]))
    for stage in draft.stages:
        executor = OrtExecutor(stage.model)
        results = executor.run({name: values[name] for name in executor.input_names})
        values.update(zip(executor.output_names, results, strict=True))
    names = [o.name for o in draft.outputs]
    return {name: values[name] for name in ("features", *names)}


def compare_with_training(
    pipeline: Any, frame: pd.DataFrame, *, overrides: Mapping[str, Mapping[str, Any]] | None = None, extra: Sequence[Mapping[str, Any]] = ()
) -> Parity:
    """Make a package of a fitted pipeline and compare it on training rows, seeded variations of them, and the edges of every field.

    Rows that narrowing overrides refuse are left out; at least a hundred must remain.
    """
    draft = from_sklearn(pipeline, frame, name="parity", version=1, overrides=overrides)
    instances: list[Mapping[str, Any]] = [
        *rows_of(pipeline, frame, frame.iloc[:150]),
        *varied_rows(pipeline, frame, draft, frame, count=150, seed=7),
        *edge_rows(pipeline, frame, draft).values(),
        *extra,
    ]
    if overrides:
        signature = Signature(manifest_of(draft))
        instances = [i for i in instances if not isinstance(signature.try_row(i, 0), InputError)]
        assert len(instances) >= 100, "the overrides refuse nearly everything"
    (expected,) = capture(pipeline, frame, instances, draft=draft, rows_per_request=len(instances))
    actual = run_package(draft, instances)
    wanted = {**expected.values, **expected.outputs}
    comparisons = {name: compare(array, actual[name], TOLERANCE, tensor=name) for name, array in wanted.items()}
    return Parity(draft, comparisons, len(instances))
