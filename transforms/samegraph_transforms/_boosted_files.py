"""Models of XGBoost and LightGBM, read from what the libraries write; neither library is imported.

How they answer, each held by tests against the libraries' own answers:

XGBoost     rounds features to float32, goes left where `x < threshold` (float32), adds leaves to the start value in float32, tree by
            tree, and applies the objective's function in float32.
LightGBM    keeps float64 (numbers within 1e-35 of 0 are 0), goes left where `x <= threshold`, adds leaves to 0 in float64, and applies
            the objective's function in float64.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ._sklearn_trees import Tree, constant_tree, depth_first
from .errors import AuthoringError, UnsupportedStep

Link: TypeAlias = Literal["identity", "logistic", "softmax", "exp", "square"]

_XGBOOST_LINKS: Final[dict[str, Link]] = {
    "reg:squarederror": "identity",
    "reg:squaredlogerror": "identity",
    "reg:absoluteerror": "identity",
    "reg:pseudohubererror": "identity",
    "reg:logistic": "logistic",
    "reg:gamma": "exp",
    "reg:tweedie": "exp",
    "count:poisson": "exp",
    "binary:logistic": "logistic",
    "multi:softprob": "softmax",
}
_LIGHTGBM_LINKS: Final[dict[str, Link]] = {
    "regression": "identity",
    "regression_l1": "identity",
    "huber": "identity",
    "fair": "identity",
    "quantile": "identity",
    "mape": "identity",
    "poisson": "exp",
    "gamma": "exp",
    "tweedie": "exp",
    "binary": "logistic",
    "cross_entropy": "logistic",
    "multiclass": "softmax",
    "multiclassova": "logistic",
}
_CLASSIFIERS: Final = frozenset({"binary:logistic", "multi:softprob", "binary", "multiclass", "multiclassova"})
#: LightGBM's bits of `decision_type`.
_CATEGORICAL, _DEFAULT_LEFT = 1, 2
_MISSING_NONE, _MISSING_ZERO = 0, 1
#: LightGBM reads numbers up to this as 0.
_ZERO: Final = float(np.float32(1e-35))


@dataclass(frozen=True)
class Boosted:
    """A model of boosted trees as its library computes it.

    Attributes:
        library: `xgboost` or `lightgbm`.
        objective: As the library calls it.
        features: Names of the columns, in order; made up (`f0`, `f1`, …) where the model has none.
        targets: For each sum the trees that add to it, in order, the start value first.
        link: The function between sum and answer.
        classes: 0 for a regression, 2 or more for a classification.
        slope: Factor of the logistic function.
        divisor: What sums are divided by (random forests of LightGBM).
        categorical: Places of columns that hold category codes; members of their tests are codes + 1.
    """

    library: Literal["xgboost", "lightgbm"]
    objective: str
    features: list[str]
    targets: list[list[Tree]]
    link: Link
    classes: int = 0
    slope: float = 1.0
    divisor: float = 1.0
    categorical: tuple[int, ...] = ()

    @property
    def single(self) -> bool:
        """Whether the library computes in float32."""
        return self.library == "xgboost"


def read_boosted(source: bytes, *, rounds: int | None = None, at: str = "model") -> Boosted:
    """Read a model file: XGBoost's JSON (`save_model("model.json")`) or LightGBM's text (`save_model("model.txt")`).

    Args:
        source: The content of the file.
        rounds: How many boosting rounds answer; None for those the library takes: all that LightGBM wrote, XGBoost's best if it stopped
            early (as its scikit-learn classes predict).
        at: What the model is called in errors.

    Raises:
        UnsupportedStep: The model has something that has no exact graph here.
        AuthoringError: It is neither of the two.
    """
    if source.lstrip()[:1] == b"{":
        return _read_xgboost(source, rounds, at)
    if source.startswith(b"tree"):
        return _read_lightgbm(source.decode(), rounds, at)
    raise AuthoringError(f"{at}: not a model of XGBoost in JSON (UBJSON is not read: save it as model.json) nor of LightGBM in text")


# --- XGBoost ----------------------------------------------------------------------------------------------------------


def _read_xgboost(source: bytes, rounds: int | None, at: str) -> Boosted:
    try:
        learner = json.loads(source)["learner"]
        booster, objective = learner["gradient_booster"], str(learner["objective"]["name"])
        parameters = learner["learner_model_param"]
    except (ValueError, KeyError, TypeError) as error:
        raise AuthoringError(f"{at}: not a model file of XGBoost ({error!r})") from error
    if booster["name"] != "gbtree":
        raise UnsupportedStep(f"{at}: booster={booster['name']!r} has no exact graph; train with booster='gbtree'", step=at)
    if objective not in _XGBOOST_LINKS:
        raise UnsupportedStep(f"{at}: objective {objective!r} has no exact graph; there is one for {', '.join(_XGBOOST_LINKS)}", step=at)
    link = _XGBOOST_LINKS[objective]
    model = booster["model"]
    # A number until XGBoost 3.0, a list with one number a target from then on.
    stated = json.loads(parameters["base_score"])
    base = np.array(stated if isinstance(stated, list) else [stated], dtype=np.float32)
    sums = max(int(parameters["num_class"]), 1)
    if int(parameters.get("num_target", "1")) > 1:
        raise UnsupportedStep(f"{at}: several targets have no graph; train one model a target", step=at)
    start = np.broadcast_to(_margin(base, link), [sums])
    targets = [[constant_tree(float(value))] for value in start]
    width = int(parameters["num_feature"])
    for tree, target in _used_trees(model, rounds, learner.get("attributes", {})):
        targets[target].append(_xgboost_tree(tree, at))
    return Boosted(
        library="xgboost",
        objective=objective,
        features=[str(n) for n in learner.get("feature_names", [])] or [f"f{i}" for i in range(width)],
        targets=targets,
        link=link,
        classes=max(sums, 2) if objective in _CLASSIFIERS else 0,
    )


def _used_trees(model: Mapping[str, Any], rounds: int | None, attributes: Mapping[str, str]) -> list[tuple[Mapping[str, Any], int]]:
    trees = list(zip(model["trees"], (int(t) for t in model["tree_info"]), strict=True))
    if rounds is None and "best_iteration" in attributes:
        rounds = int(attributes["best_iteration"]) + 1
    if rounds is None:
        return trees
    starts = model["iteration_indptr"]
    return trees[: starts[min(rounds, len(starts) - 1)]]


def _margin(base: NDArray[np.float32], link: Link) -> NDArray[np.float32]:
    """Return the sum that boosting starts from for a base score that is an answer."""
    one = np.float32(1)
    if link == "logistic":
        return np.array([-_logf(float(one / b - one)) for b in base], dtype=np.float32)
    return np.array([_logf(float(b)) for b in base], dtype=np.float32) if link == "exp" else base


def _logf(value: float) -> float:
    """Return the logarithm in float32 by the C library, as XGBoost takes it: it is not always the nearest float32."""
    found = ctypes.util.find_library("m")
    if found is None:
        return float(np.float32(math.log(value)))
    function = ctypes.CDLL(found).logf
    function.argtypes, function.restype = [ctypes.c_float], ctypes.c_float
    return float(function(value))


def _xgboost_tree(tree: Mapping[str, Any], at: str) -> Tree:
    if any(tree.get("split_type", [])):
        raise UnsupportedStep(
            f"{at}: a tree splits on categories (enable_categorical=True), which has no exact graph; encode categories before the model",
            step=at,
        )
    if int(tree["tree_param"].get("size_leaf_vector", "1")) > 1:
        raise UnsupportedStep(f"{at}: leaves are vectors (multi_strategy='multi_output_tree'), which has no exact graph", step=at)
    left = np.asarray(tree["left_children"], dtype=np.int64)
    leaf = left == -1
    values = np.asarray(tree["split_conditions"], dtype=np.float32).astype(np.float64)
    return depth_first(
        Tree(
            true=left,
            false=np.where(leaf, -1, np.asarray(tree["right_children"], dtype=np.int64)),
            feature=np.where(leaf, 0, np.asarray(tree["split_indices"], dtype=np.int64)),
            threshold=np.where(leaf, 0.0, values),
            missing_true=np.asarray(tree["default_left"], dtype=np.bool_) & ~leaf,
            value=np.where(leaf, values, 0.0),
        )
    )


# --- LightGBM ---------------------------------------------------------------------------------------------------------


def _read_lightgbm(text: str, rounds: int | None, at: str) -> Boosted:
    head, *blocks = text.split("\nend of trees", 1)[0].split("\nTree=")
    facts = _pairs(head)
    if facts.get("version") != "v4":
        raise UnsupportedStep(f"{at}: LightGBM's format {facts.get('version')!r}; v4 is read (save the model with LightGBM 4)", step=at)
    recoded = next((line for line in text.split("\n") if line.startswith("pandas_categorical:")), "")
    if recoded.removeprefix("pandas_categorical:") not in ("", "null", "[]"):
        raise UnsupportedStep(
            f"{at}: LightGBM encodes the category columns of the frame itself, which has no exact graph; put an OrdinalEncoder before "
            "the model and name its columns in categorical_feature",
            step=at,
        )
    name, *options = facts.get("objective", "").split()
    if name not in _LIGHTGBM_LINKS:
        shown = name or "none (a function of your own)"
        raise UnsupportedStep(f"{at}: objective {shown} has no exact graph; there is one for {', '.join(_LIGHTGBM_LINKS)}", step=at)
    sums = int(facts["num_tree_per_iteration"])
    targets: list[list[Tree]] = [[] for _ in range(sums)]
    categorical: set[int] = set()
    used = blocks if rounds is None else blocks[: rounds * sums]
    for i, block in enumerate(used):
        tree = _pairs(block)
        targets[i % sums].append(_lightgbm_tree(tree, categorical, f"{at}, tree {i}", at))
    return Boosted(
        library="lightgbm",
        objective=name,
        features=facts["feature_names"].split(" "),
        targets=targets,
        link="square" if "sqrt" in options else _LIGHTGBM_LINKS[name],
        classes=max(sums, 2) if name in _CLASSIFIERS else 0,
        slope=next((float(o.removeprefix("sigmoid:")) for o in options if o.startswith("sigmoid:")), 1.0),
        divisor=float(len(used) // sums) if "average_output" in head.split("\n") else 1.0,
        categorical=tuple(sorted(categorical)),
    )


def _pairs(block: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in block.split("\n") if "=" in line)


def _lightgbm_tree(facts: Mapping[str, str], categorical: set[int], where: str, at: str) -> Tree:
    if facts.get("is_linear", "0") != "0":
        raise UnsupportedStep(f"{where}: linear_tree=True has no exact graph", step=at)
    leaves = np.array(facts["leaf_value"].split(), dtype=np.float64)
    if int(facts["num_leaves"]) == 1:
        return constant_tree(float(leaves[0]))

    def whole(key: str) -> NDArray[np.int64]:
        return np.array(facts[key].split(), dtype=np.int64)

    inner, decision = len(leaves) - 1, whole("decision_type")
    threshold, feature = np.array(facts["threshold"].split(), dtype=np.float64), whole("split_feature")
    missing, by_category = (decision >> 2) & 3, (decision & _CATEGORICAL).astype(bool)
    if (missing == _MISSING_ZERO).any():
        raise UnsupportedStep(f"{where}: zero_as_missing=True has no exact graph; write the missing values as NaN", step=at)
    # Where training saw no NaN, one counts as 0; in a test of categories NaN is in no set.
    missing_true = np.where(missing == _MISSING_NONE, threshold >= 0, (decision & _DEFAULT_LEFT) != 0) & ~by_category
    members = {int(i): _codes(facts, int(threshold[i])) for i in np.flatnonzero(by_category)}
    categorical.update(int(f) for f in feature[by_category])
    nothing = np.zeros(len(leaves))

    def children(key: str) -> NDArray[np.int64]:
        found = whole(key)  # leaf j is written as -1 - j
        return np.concatenate([np.where(found < 0, inner - 1 - found, found), np.full(len(leaves), -1)])

    return depth_first(
        Tree(
            true=children("left_child"),
            false=children("right_child"),
            feature=np.concatenate([feature, nothing.astype(np.int64)]),
            threshold=np.concatenate([np.where(by_category, 0.0, _around_zero(threshold)), nothing]),
            missing_true=np.concatenate([missing_true, nothing.astype(np.bool_)]),
            value=np.concatenate([np.zeros(inner), leaves]),
            members=members,
        )
    )


def _around_zero(threshold: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return thresholds that sort numbers too small for LightGBM to the side where it has 0."""
    below = np.where((threshold >= -_ZERO) & (threshold < 0), np.nextafter(-_ZERO, -np.inf), threshold)
    return np.where((threshold >= 0) & (threshold < _ZERO), _ZERO, below)


def _codes(facts: Mapping[str, str], place: int) -> list[int]:
    """Return the category codes that go left, each plus 1: a set that holds 0 is not read everywhere."""
    bounds: Sequence[int] = [int(v) for v in facts["cat_boundaries"].split()]
    words = np.array(facts["cat_threshold"].split()[bounds[place] : bounds[place + 1]], dtype="<u4")
    return [int(i) + 1 for i in np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))]
