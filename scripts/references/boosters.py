"""Write what XGBoost and LightGBM themselves answer: the references that tests/transforms/test_boosted.py compares with.

By hand, in an environment of its own:

    python3 -m venv /tmp/boosters && /tmp/boosters/bin/pip install -r scripts/references/requirements-boosters.txt -e transforms
    /tmp/boosters/bin/python scripts/references/boosters.py

Writes tests/transforms/references/boosters/: each model as its library saves it, and rows with the library's answers. Then fits pipelines
that end with the libraries' scikit-learn classes, makes packages of them and compares those with the pipelines, and prints how far apart
they are, as JSON; ends with 1 when an answer differs by more than promised. With `--pipelines` it does this only.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import lightgbm  # type: ignore[import-not-found,unused-ignore]
import numpy as np
import pandas as pd
import xgboost  # type: ignore[import-not-found,unused-ignore]
from samegraph_transforms.pack import pack
from samegraph_transforms.tabular import capture, edge_rows, from_sklearn
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

OUT = Path(__file__).parents[2] / "tests" / "transforms" / "references" / "boosters"
COLUMNS = ["height", "weight", "age", "income", "colour"]
ROWS = 900


def table(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return seeded columns (the last holds codes 0..39; every ninth value of the others is missing) and a number to learn."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, len(COLUMNS))) * [1, 10, 1e-3, 1e5, 1]
    x[:, 4] = rng.integers(0, 40, ROWS)
    y = x[:, 0] + np.sin(x[:, 1]) + 1e3 * x[:, 2] * (x[:, 3] > 0) + np.isin(x[:, 4], [3, 7, 33]) + rng.normal(size=ROWS) / 3
    holes = rng.random(x.shape) < 1 / 9
    holes[:, 4] = False
    x[holes] = np.nan
    return x, y


def at_thresholds(x: np.ndarray, thresholds: dict[int, list[float]]) -> np.ndarray:
    """Return rows that hit thresholds: on each, and on the numbers next to it in float64 and in float32."""
    rows = []
    rng = np.random.default_rng(5)
    for feature, values in thresholds.items():
        for value in values:
            single = np.float32(value)
            near = [value, np.nextafter(value, -np.inf), np.nextafter(value, np.inf)]
            near += [float(np.nextafter(single, np.float32(side))) for side in (-np.inf, np.inf)]
            for one in near:
                row = x[rng.integers(len(x))].copy()
                row[feature] = one
                rows.append(row)
    return np.array(rows)


def xgboost_models() -> dict[str, Any]:
    """Return name → (objective parameters, target)."""
    _, y = table(0)
    rng = np.random.default_rng(1)
    return {
        "binary": ({"objective": "binary:logistic"}, (y > 0.4).astype(int)),
        "binary-base": ({"objective": "binary:logistic", "base_score": 0.9, "scale_pos_weight": 3}, (y > 0.4).astype(int)),
        "three": ({"objective": "multi:softprob", "num_class": 3}, np.digitize(y, [-0.5, 1])),
        "squared": ({"objective": "reg:squarederror"}, y),
        "absolute": ({"objective": "reg:absoluteerror"}, y),
        "logistic": ({"objective": "reg:logistic"}, 1 / (1 + np.exp(-y))),
        "poisson": ({"objective": "count:poisson"}, rng.poisson(np.exp(np.clip(y, -2, 2)))),
        "gamma": ({"objective": "reg:gamma"}, np.exp(y)),
        "tweedie": ({"objective": "reg:tweedie"}, np.maximum(y, 0)),
        "huber": ({"objective": "reg:pseudohubererror"}, y),
        "forest": ({"objective": "reg:squarederror", "num_parallel_tree": 5, "subsample": 0.7, "learning_rate": 0.8}, y),
        "minus-nine": ({"objective": "reg:squarederror", "missing": -9.0}, y),
    }


def write_xgboost() -> None:
    """Train, save and answer with XGBoost."""
    x, _ = table(0)
    for name, (given, target) in xgboost_models().items():
        parameters = {"max_depth": 4, "nthread": 1, "seed": 0, **given}
        missing = parameters.pop("missing", np.nan)
        data = np.where(np.isnan(x), missing, x)
        trained = xgboost.DMatrix(data, target, feature_names=COLUMNS, missing=missing)
        booster = xgboost.train(parameters, trained, 4 if name == "forest" else 12)
        content = bytes(booster.save_raw("json"))
        thresholds: dict[int, list[float]] = {}
        for tree in json.loads(content)["learner"]["gradient_booster"]["model"]["trees"]:
            for left, feature, value in zip(tree["left_children"], tree["split_indices"], tree["split_conditions"], strict=True):
                if left >= 0:
                    thresholds.setdefault(feature, []).append(float(np.float32(value)))
        rows = np.concatenate([data[:300], at_thresholds(data, {k: v[:16] for k, v in thresholds.items()})])
        asked = xgboost.DMatrix(rows, feature_names=COLUMNS, missing=missing)
        answer = booster.predict(asked)
        (OUT / f"xgboost-{name}.json").write_bytes(content)
        np.savez_compressed(OUT / f"xgboost-{name}.npz", rows=rows, answer=answer, missing=missing, version=xgboost.__version__)


def lightgbm_models() -> dict[str, Any]:
    """Return name → (parameters, target)."""
    _, y = table(0)
    rng = np.random.default_rng(1)
    forest = {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.6, "feature_fraction": 0.7}
    return {
        "binary": ({"objective": "binary"}, (y > 0.4).astype(int)),
        "binary-slope": ({"objective": "binary", "sigmoid": 0.7, "is_unbalance": True}, (y > 0.4).astype(int)),
        "three": ({"objective": "multiclass", "num_class": 3}, np.digitize(y, [-0.5, 1])),
        "three-ova": ({"objective": "multiclassova", "num_class": 3}, np.digitize(y, [-0.5, 1])),
        "squared": ({"objective": "regression"}, y),
        "squared-root": ({"objective": "regression", "reg_sqrt": True}, y),
        "absolute": ({"objective": "regression_l1"}, y),
        "quantile": ({"objective": "quantile", "alpha": 0.9}, y),
        "huber": ({"objective": "huber"}, y),
        "poisson": ({"objective": "poisson"}, rng.poisson(np.exp(np.clip(y, -2, 2)))),
        "gamma": ({"objective": "gamma"}, np.exp(y)),
        "tweedie": ({"objective": "tweedie"}, np.maximum(y, 0)),
        "entropy": ({"objective": "cross_entropy"}, 1 / (1 + np.exp(-y))),
        "forest": ({"objective": "binary", **forest}, (y > 0.4).astype(int)),
        "categories": ({"objective": "binary", "categorical": [4]}, (y > 0.4).astype(int)),
        "without-missing": ({"objective": "regression", "filled": True}, y),
    }


def write_lightgbm() -> None:
    """Train, save and answer with LightGBM."""
    x, _ = table(0)
    for name, (given, target) in lightgbm_models().items():
        parameters = {"num_leaves": 12, "num_threads": 1, "seed": 0, "verbose": -1, "deterministic": True, "min_data_in_leaf": 8, **given}
        codes = parameters.pop("categorical", [])
        trained_on = np.nan_to_num(x) if parameters.pop("filled", False) else x
        data = lightgbm.Dataset(trained_on, target, feature_name=COLUMNS, categorical_feature=codes)
        booster = lightgbm.train(parameters, data, 12)
        content = booster.model_to_string()
        thresholds: dict[int, list[float]] = {}
        for block in content.split("\nTree=")[1:]:
            facts = dict(line.split("=", 1) for line in block.split("\n") if "=" in line)
            splits = zip(facts["split_feature"].split(), facts["threshold"].split(), facts["decision_type"].split(), strict=True)
            for feature, value, decision in splits:
                if not int(decision) & 1:
                    thresholds.setdefault(int(feature), []).append(float(value))
        odd = x[:12].copy()
        odd[:, 4] = [np.nan, -1, -0.5, 0, 0.5, 3.99, 7, 40, 1000, -7, 33, 39.5]
        rows = np.concatenate([x[:300], odd, at_thresholds(x, {k: v[:16] for k, v in thresholds.items()})])
        answer = booster.predict(rows)
        (OUT / f"lightgbm-{name}.txt").write_text(content)
        np.savez_compressed(OUT / f"lightgbm-{name}.npz", rows=rows, answer=answer, missing=np.nan, version=lightgbm.__version__)


def frame() -> tuple[pd.DataFrame, np.ndarray]:
    """Return the table as a frame with a column of strings, and the number to learn."""
    x, y = table(3)
    made = pd.DataFrame(x, columns=COLUMNS)
    made["colour"] = [f"colour {int(c) % 9}" for c in made["colour"]]
    return made, y


def pipelines(repository: str) -> list[Compared]:
    """Pack pipelines that end with the libraries' classes, which proves them."""
    rows, y = frame()
    two = np.where(y > 0.4, "yes", "no")
    one_hot = ColumnTransformer(
        [("numbers", StandardScaler(), COLUMNS[:4]), ("colour", OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["colour"])]
    )
    codes = ColumnTransformer(
        [
            ("numbers", "passthrough", COLUMNS[:4]),
            ("colour", OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), ["colour"]),
        ]
    )
    quiet = {"verbose": -1, "n_jobs": 1, "n_estimators": 15}
    small = {"n_estimators": 15, "n_jobs": 1}
    cases = {
        "xgb-classifier": (one_hot, xgboost.XGBClassifier(**small), (two == "yes").astype(int)),
        "xgb-classifier-3": (one_hot, xgboost.XGBClassifier(**small), np.digitize(y, [-0.5, 1])),
        "xgb-regressor": (one_hot, xgboost.XGBRegressor(**small), y),
        "xgb-poisson": (one_hot, xgboost.XGBRegressor(objective="count:poisson", **small), np.round(np.maximum(y, 0))),
        "xgb-forest": (one_hot, xgboost.XGBRFRegressor(n_estimators=8, n_jobs=1), y),
        "xgb-forest-classifier": (one_hot, xgboost.XGBRFClassifier(n_estimators=8, n_jobs=1), (two == "yes").astype(int)),
        "lgbm-classifier": (one_hot, lightgbm.LGBMClassifier(**quiet), two),
        "lgbm-classifier-3": (one_hot, lightgbm.LGBMClassifier(**quiet), np.array(["a", "b", "ü"])[np.digitize(y, [-0.5, 1])]),
        "lgbm-regressor": (one_hot, lightgbm.LGBMRegressor(**quiet), y),
        "lgbm-categories": (codes, lightgbm.LGBMClassifier(categorical_feature=[4], min_data_per_group=5, **quiet), two),
    }
    compared = []
    for name, (columns, model, target) in cases.items():
        pipeline = Pipeline([("columns", columns), ("model", model)]).fit(rows, target)
        compared.append(packed(pipeline, rows, name, repository))
    alone = xgboost.XGBRegressor(**small).fit(rows[COLUMNS[:4]], y)
    compared.append(packed(alone, rows[COLUMNS[:4]], "xgb-alone", repository))
    nested = make_pipeline(StandardScaler(), lightgbm.LGBMRegressor(**quiet)).fit(rows[COLUMNS[:4]], y)
    return [*compared, packed(nested, rows[COLUMNS[:4]], "lgbm-scaled", repository)]


class Compared(NamedTuple):
    """How far a pipeline's package is from the pipeline: `estimator` is its last step's class, a ULP the largest."""

    name: str
    estimator: str
    rows: int
    elements: int
    different: int
    ulp: int
    flips: int


def packed(pipeline: Any, rows: pd.DataFrame, name: str, repository: str) -> Compared:
    """Pack one pipeline, which proves it."""
    draft = from_sklearn(pipeline, rows, name=name, version=1)
    edges = edge_rows(pipeline, rows, draft)
    samples = [
        *capture(pipeline, rows, edges, draft=draft),
        *capture(pipeline, rows, rows, draft=draft, rows_per_request=16, prefix="training"),
    ]
    m = pack(draft, samples, repository).manifest.measured
    last = pipeline[-1] if isinstance(pipeline, Pipeline) else pipeline
    elements, different, flips = (sum(getattr(one, what) for one in m) for what in ("elements", "different", "flips"))
    return Compared(name, type(last).__name__, len(rows) + len(edges), elements, different, max(one.max_ulp for one in m), flips)


if __name__ == "__main__":
    if "--pipelines" not in sys.argv:
        OUT.mkdir(parents=True, exist_ok=True)
        write_xgboost()
        write_lightgbm()
    with tempfile.TemporaryDirectory() as packages:
        print(json.dumps(pipelines(packages)))
