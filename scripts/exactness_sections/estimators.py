"""scikit-learn's steps and estimators, and flights through a scaler and trees: packages against the library itself."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ._counting import onnx_runtime, section, table

ROOT = Path(__file__).resolve().parents[2]
#: Scores closer than this share of the largest one are too close to call: what two orders of adding a thousand numbers may differ.
BOUND = 1e-12
#: Neighbours whose distances are closer than this share are too close to call.
_NEAR = 1e-9
HEAD = [
    "what", "reference library", "rows tried", "elements compared", "elements different", "largest ULP", "largest difference",
    "decisions flipped", "too close to call",
]  # fmt: skip
ABOUT = f"""\
Pipelines are fitted with the library, made into packages with `from_sklearn`, and asked the same raw rows: training's own, the same
with noise, unseen categories and nulls, the edges of every field, and for bins and quantiles every fitted edge with the numbers
next to it. *Steps* compares the features bit by bit; *estimators* compares labels, and probabilities, scores or values. *Largest
difference* is the share of the value, or of the tensor's median magnitude where the value is smaller: a ULP is tiny where a sum
ends near zero. Bounds stated beforehand: 0 for bins, uniform quantiles, encoders, imputers, scalers, polynomials, selections and
sums over trees; docs/scikit-learn.md for steps with exponentials, logarithms and sums over a row. *Decisions flipped* counts labels that
differ in rows whose two best scores are more than {BOUND:g} of the largest apart (for neighbours: whose last neighbour is more than
{_NEAR:g} nearer than the next one); the rows closer than that are *too close to call*. Rows with tied neighbours are left out of
the floats too. Measured in the environment that `make` builds for training, on one thread."""


def measure(work: Path, scale: float) -> dict[str, Any]:
    """Measure everything; where scikit-learn is not installed, in the environment that has it."""
    if importlib.util.find_spec("sklearn") is None:
        program = f"import json, pathlib, sys; from scripts.exactness_sections import estimators; \
print(json.dumps(estimators.measure(pathlib.Path({str(work)!r}), {scale})))"
        paths = ":".join(str(ROOT / p) for p in ("", "transforms", "tests", "tests/support"))
        done = subprocess.run(
            [ROOT / ".venv-build" / "bin" / "python", "-c", program],
            env={"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PATH": ""},
            check=True,
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    import warnings

    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seeds = max(1, round(4 * scale))
        tables = [
            table("Steps of scikit-learn", HEAD, step_rows(seeds)),
            table("Estimators of scikit-learn", HEAD, estimator_rows(max(1, round(2 * scale)))),
            *flight_tables(scale),
        ]
    return section("Steps and estimators of scikit-learn", ABOUT, tables, ["scikit-learn", "scipy", "numpy", onnx_runtime()])


@dataclass
class Tally:
    """How far a package's answers are from the library's."""

    rows: int = 0
    elements: int = 0
    different: int = 0
    ulp: int = 0
    difference: float = 0.0
    flipped: int | None = None
    close: int = 0

    def floats(self, got: np.ndarray, expected: np.ndarray) -> None:
        """Compare floats of one type and shape."""
        from samegraph_transforms.exactness import ulp_distance

        assert got.shape == expected.shape, f"{got.shape} for {expected.shape}"
        distance = ulp_distance(np.ascontiguousarray(got), np.ascontiguousarray(expected))
        self.elements += expected.size
        self.different += int(np.count_nonzero(distance))
        self.ulp = max(self.ulp, int(distance.max()))
        finite = np.isfinite(expected) & np.isfinite(got)
        magnitude = np.abs(expected[finite])
        usual = float(np.median(magnitude[magnitude > 0])) if (magnitude > 0).any() else 1.0
        gap = np.abs(got[finite] - expected[finite]) / np.maximum(magnitude, usual)
        self.difference = max(self.difference, float(gap.max(initial=0.0)))

    def labels(self, got: np.ndarray, expected: np.ndarray, close: np.ndarray) -> None:
        """Compare labels; `close` marks the rows that are too close to call."""
        self.elements += len(expected)
        self.flipped = (self.flipped or 0) + int(np.count_nonzero((got != expected) & ~close))
        self.close += int(np.count_nonzero(close))
        self.different += int(np.count_nonzero(got != expected))

    def row(self, what: str, reference: str) -> list[Any]:
        """Return the row of a table."""
        largest = f"{self.difference:.1e}" if self.difference else "0"
        counts = [self.rows, self.elements, self.different, self.ulp, largest]
        return [what, reference, *counts, self.flipped, self.close]


def _undecided(scores: np.ndarray | None, n: int) -> np.ndarray:
    if scores is None:
        return np.zeros(n, dtype=bool)
    ranked = np.sort(scores, axis=1)
    return np.asarray(ranked[:, -1] - ranked[:, -2] <= BOUND * np.maximum(np.abs(scores).max(axis=1), 1e-300))


# ---------------------------------------------------------------- scikit-learn


def _reference() -> str:
    import sklearn

    return f"scikit-learn {sklearn.__version__}, `from_sklearn`"


def _instances(pipeline: Any, frame: Any, draft: Any, edges: np.ndarray, seed: int) -> list[Any]:
    """Return raw rows: training's, noisy ones, edges of every field, and fitted edges with their neighbours in the number columns."""
    from samegraph_transforms.tabular import edge_rows, rows_of, varied_rows

    rows = [
        *rows_of(pipeline, frame, frame),
        *varied_rows(pipeline, frame, draft, frame, count=600, seed=seed),
        *edge_rows(pipeline, frame, draft).values(),
    ]
    typical = {f.name: f.example for f in draft.fields}
    for field in draft.fields:
        if field.kind == "number":
            low, high = (-np.inf if field.minimum is None else field.minimum), (np.inf if field.maximum is None else field.maximum)
            rows += [{**typical, field.name: float(v)} for v in edges if low <= v <= high]
    return rows


def _fitted_edges(step: Any) -> np.ndarray:
    """Return every edge of bins and quantiles inside a fitted step, with its neighbours."""
    found = [np.zeros(0)]
    for name in ("bin_edges_", "quantiles_"):
        found += [np.ravel(v) for v in getattr(step, name, ())]
    inside = [*getattr(step, "named_transformers_", {}).values(), *(part for _, part in getattr(step, "steps", ()))]
    found += [_fitted_edges(part) for part in inside]
    flat = np.unique(np.concatenate(found))
    return np.unique(np.concatenate([flat, np.nextafter(flat, np.inf), np.nextafter(flat, -np.inf)]))


def step_rows(seeds: int) -> Iterator[list[Any]]:
    """Yield a row for every step, fitted on `seeds` frames."""
    from samegraph_transforms.tabular import capture, from_sklearn
    from sklearn.base import clone
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import Pipeline
    from training.parity import make_frame, make_value, run_package

    from ._sklearn_cases import STEPS

    for what, columns in STEPS:
        tally = Tally()
        for seed in range(seeds):
            frame = make_frame(500, seed)
            pipeline = Pipeline([("columns", clone(columns)), ("model", LinearRegression())])
            if "MissingIndicator" in what or "StandardScaler` on" in what:
                frame = frame.assign(colour=frame["colour"].fillna("red"))
            pipeline.fit(frame, make_value(frame, seed))
            draft = from_sklearn(pipeline, frame, name="exact", version=1)
            rows = _instances(pipeline, frame, draft, _fitted_edges(pipeline["columns"]), seed)
            (expected,) = capture(pipeline, frame, rows, draft=draft, rows_per_request=len(rows))
            tally.rows += len(rows)
            tally.floats(run_package(draft, rows)["features"], expected.values["features"])
        print(what, tally, file=sys.stderr, flush=True)
        yield tally.row(what, _reference())


def _name(model: Any) -> str:
    """Return the class in code quotes, with what distinguishes the row from others of its class."""
    names = ("kernel", "loss", "activation", "voting") + (("method",) if hasattr(model, "cv") and hasattr(model, "ensemble") else ())
    told = [str(v) for k in names if (v := getattr(model, k, None)) and isinstance(v, str)]
    return f"`{type(model).__name__}`" + (f", {', '.join(told)}" if told else "")


def estimator_rows(seeds: int) -> Iterator[list[Any]]:
    """Yield a row for every estimator; classifiers are trained on two and on four classes."""
    from samegraph_transforms.tabular import capture, from_sklearn
    from sklearn.base import clone
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline, make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler
    from training.parity import NUMBERS, STRINGS, make_frame, make_target, make_value, run_package

    from ._sklearn_cases import CLASSIFIERS, COUNTING, POSITIVE, REGRESSORS

    def fitted(model: Any, frame: Any, target: Any, *, counts: bool) -> Any:
        scaled = ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), NUMBERS)
        hot = ("strings", OneHotEncoder(handle_unknown="ignore"), STRINGS)
        columns = ColumnTransformer([hot] if counts else [scaled, hot], sparse_threshold=0)
        return Pipeline([("columns", columns), ("model", clone(model))]).fit(frame, target)

    cases = [
        *((m, kind, False) for m in CLASSIFIERS for kind in (["two classes", "four classes"],)),
        *((m, ["two classes", "four classes"], True) for m in COUNTING),
        *((m, ["any number"], False) for m in REGRESSORS),
        *((m, ["positive numbers"], False) for m in POSITIVE),
    ]
    for model, kinds, counts in cases:
        tally = Tally()
        for kind in kinds:
            for seed in range(seeds):
                frame = make_frame(400, seed)
                value = make_value(frame, seed)
                target = {
                    "two classes": make_target(frame, ["no", "yes"], seed),
                    "four classes": make_target(frame, ["north", "south", "östlich", "west"], seed),
                    "any number": value,
                    "positive numbers": np.exp(value),
                }[kind]
                pipeline = fitted(model, frame, target, counts=counts)
                draft = from_sklearn(pipeline, frame, name="exact", version=1)
                rows = _instances(pipeline, frame, draft, np.zeros(0), seed)
                (expected,) = capture(pipeline, frame, rows, draft=draft, rows_per_request=len(rows))
                answers = run_package(draft, rows)
                tally.rows += len(rows)
                scores = next((v for n, v in expected.outputs.items() if n in ("probability", "score")), None)
                tied = _tied(pipeline, expected.values["features"])
                for name, array in expected.outputs.items():
                    if name == "label":
                        tally.labels(answers[name], array, tied | _undecided(scores, len(rows)))
                    else:
                        tally.floats(answers[name][~tied], array[~tied])
        print(_name(model), tally, file=sys.stderr, flush=True)
        yield tally.row(_name(model), _reference())


def _tied(pipeline: Any, features: np.ndarray) -> np.ndarray:
    """Mark rows whose last neighbour is hardly nearer than the next one: which of them it is, is no property of the model."""
    model = pipeline.steps[-1][1]
    if not hasattr(model, "kneighbors"):
        return np.zeros(len(features), dtype=bool)
    distances, _ = model.kneighbors(features, n_neighbors=model.n_neighbors + 1)
    return np.asarray(distances[:, -1] - distances[:, -2] <= _NEAR * np.maximum(distances[:, -1], 1.0))


# ---------------------------------------------------------------- flights


def flight_tables(scale: float) -> list[dict[str, Any]]:
    """Return flights through a scaler and trees: the package, and for comparison the same trees behind a float32 scaler."""
    from samegraph_transforms.tabular import capture, from_sklearn
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from training.parity import run_package

    from models.flights.train import NUMBERS, load, split

    data = split(load())
    count = max(500, round(20_000 * scale))
    train, target = data.X_train[NUMBERS][:20_000].reset_index(drop=True), data.y_train[:20_000]
    rows = data.X_test[NUMBERS][:count].reset_index(drop=True)
    exact, converted = [], []
    for title, model in (
        ("RandomForestClassifier", RandomForestClassifier(60, min_samples_leaf=5, random_state=0)),
        ("GradientBoostingClassifier", GradientBoostingClassifier(n_estimators=100, max_depth=5, random_state=0)),
    ):
        pipeline = make_pipeline(SimpleImputer(strategy="median"), StandardScaler(), model).fit(train, target)
        draft = from_sklearn(pipeline, train, name="flights", version=1)
        (expected,) = capture(pipeline, train, rows, draft=draft, rows_per_request=len(rows))
        instances = json.loads(expected.body)["instances"]
        answers = run_package(draft, instances)
        tally = Tally(rows=len(rows))
        tally.labels(answers["label"], expected.outputs["label"], np.zeros(len(rows), dtype=bool))
        tally.floats(answers["probability"], expected.outputs["probability"])
        what = f"flights: `StandardScaler` + `{title}`"
        exact.append(tally.row(what, _reference()))
        filled = pipeline[0].transform(rows)
        scaler, single = pipeline[1], np.float32
        narrow = (filled.astype(single) - scaler.mean_.astype(single)) / scaler.scale_.astype(single)
        probability = model.predict_proba(narrow)
        labels = model.classes_[probability.argmax(axis=1)]
        flips = int(np.count_nonzero(labels != expected.outputs["label"]))
        moved = np.abs(probability - expected.outputs["probability"]).max()
        converted.append([what, "the same trees behind a scaler in float32", len(rows), flips, f"{moved:.2f}"])
    head = ["what", "compared with", "rows", "labels flipped", "largest difference in probability"]
    return [
        table("Flights", HEAD, exact),
        table("Flights, as a converter that scales in float32 would answer", head, converted, control=True),
    ]
