"""Fitted scikit-learn classifiers and regressors as graphs from `features` (float64 [n, k]) to their answer, in double.

Each writer follows the estimator's own `predict` and `predict_proba`, including where it compares with zero by > and where by >=,
and casts to float32 exactly where the estimator does (trees do, histogram gradient boosting does not).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import onnx
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (
    BaggingClassifier,
    BaggingRegressor,
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import (
    BayesianRidge,
    ElasticNet,
    ElasticNetCV,
    HuberRegressor,
    Lars,
    Lasso,
    LassoCV,
    LassoLars,
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    Perceptron,
    Ridge,
    RidgeClassifier,
    RidgeClassifierCV,
    RidgeCV,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.naive_bayes import BernoulliNB, ComplementNB, MultinomialNB
from sklearn.pipeline import Pipeline
from sklearn.svm import LinearSVC, LinearSVR
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor, ExtraTreeClassifier, ExtraTreeRegressor

from ._boosted_files import Boosted, read_boosted
from ._sklearn_answer import (
    Answer,
    EmitModel,
    above,
    argmax,
    constant,
    linear_scores,
    logistic,
    many_classes,
    product_of,
    two_classes,
    two_columns,
)
from ._sklearn_ensembles import ENSEMBLE_WRITERS, parts
from ._sklearn_estimators import ESTIMATOR_EMITTERS, MORE_LINEAR_REGRESSORS, NETWORKS, OTHER_ESTIMATORS, bayes_answer, refuse_parameters
from ._sklearn_graph import Block, Column, GraphWriter, Sparse
from ._sklearn_site import StepContext
from ._sklearn_steps import emit_step
from ._sklearn_trees import Tree, constant_tree, emit_trees, from_histogram_tree, from_sklearn_tree
from .boosted import emit_boosted
from .errors import UnsupportedStep
from .manifest import Output

LINEAR_REGRESSORS: Final = (
    LinearRegression, Ridge, RidgeCV, Lasso, LassoCV, LassoLars, Lars, ElasticNet, ElasticNetCV, BayesianRidge, HuberRegressor,
    SGDRegressor, LinearSVR,
)  # fmt: skip
LINEAR_CLASSIFIERS: Final = (LogisticRegression, LogisticRegressionCV)
#: Linear classifiers whose probabilities, if they have any, are made of one score per class.
SCORERS: Final = (LinearSVC, RidgeClassifier, RidgeClassifierCV, SGDClassifier, Perceptron)
NAIVE_BAYES: Final = (MultinomialNB, ComplementNB, BernoulliNB)
TREES: Final = (DecisionTreeClassifier, DecisionTreeRegressor, ExtraTreeClassifier, ExtraTreeRegressor)
FORESTS: Final = (RandomForestClassifier, RandomForestRegressor, ExtraTreesClassifier, ExtraTreesRegressor)
BOOSTERS: Final = (GradientBoostingClassifier, GradientBoostingRegressor)
HISTOGRAM_BOOSTERS: Final = (HistGradientBoostingClassifier, HistGradientBoostingRegressor)
SUPPORTED: Final = (
    *LINEAR_CLASSIFIERS, *SCORERS, *NAIVE_BAYES, *LINEAR_REGRESSORS, *TREES, *FORESTS, *BOOSTERS, *HISTOGRAM_BOOSTERS,
    *OTHER_ESTIMATORS, *ENSEMBLE_WRITERS,
)  # fmt: skip


#: Classes of other libraries by module and name: they are recognised without being imported.
BOOSTED: Final = frozenset(
    {
        *(("xgboost.sklearn", name) for name in ("XGBClassifier", "XGBRegressor", "XGBRFClassifier", "XGBRFRegressor")),
        *(("lightgbm.sklearn", name) for name in ("LGBMClassifier", "LGBMRegressor")),
    }
)


@dataclass(frozen=True)
class OutputNames:
    """What the answers and the boundary value are called.

    Attributes:
        label: The class a classifier chooses.
        probability: Its probabilities.
        score: What a classifier without probabilities decides by: its `decision_function`, one column a class.
        value: A regressor's answer.
        features: The matrix between preprocessing and model.
    """

    label: str = "label"
    probability: str = "probability"
    score: str = "score"
    value: str = "value"
    features: str = "features"

    @property
    def columns(self) -> str:
        """Name of the columns that the elements of sparse features are in."""
        return f"{self.features}.columns"


def reads_float32(estimator: Any) -> bool:
    """Whether the estimator rounds its features to float32 before it looks at them."""
    return isinstance(estimator, (*TREES, *FORESTS, *BOOSTERS))


def is_boosted(estimator: Any) -> bool:
    """Whether it is one of XGBoost's or LightGBM's scikit-learn classes that have a graph."""
    return (type(estimator).__module__, type(estimator).__name__) in BOOSTED


def boosted_model(estimator: Any, at: str) -> Boosted:
    """Read the model behind one of XGBoost's or LightGBM's scikit-learn classes.

    Raises:
        UnsupportedStep: Something in it has no exact graph.
    """
    if type(estimator).__module__.startswith("xgboost"):
        return read_boosted(bytes(estimator.get_booster().save_raw("json")), at=at)
    return read_boosted(estimator.booster_.model_to_string().encode(), at=at)


def answer_dtype(estimator: Any) -> type[np.float32 | np.float64]:
    """Return the element type of the estimator's values and probabilities."""
    return np.float32 if type(estimator).__module__.startswith("xgboost") else np.float64


def refuse_unsupported(estimator: Any, at: str) -> None:
    """Refuse an estimator that has no exact graph.

    Raises:
        UnsupportedStep: Its type, its targets or one of its parts is not supported.
    """
    if is_boosted(estimator):
        boosted_model(estimator, at)
        return
    if type(estimator) not in SUPPORTED:
        names = ", ".join(sorted([*(t.__name__ for t in SUPPORTED), *(name for _, name in BOOSTED)]))
        raise UnsupportedStep(f"{at} is a {type(estimator).__name__}, which has no exact graph; supported are {names}", step=at)
    tables = isinstance(estimator, (*LINEAR_REGRESSORS, *MORE_LINEAR_REGRESSORS)) and np.ndim(estimator.coef_) != 1
    networks = isinstance(estimator, NETWORKS) and hasattr(estimator, "classes_")
    if tables or (getattr(estimator, "n_outputs_", 1) != 1 and not networks):
        raise UnsupportedStep(
            f"{at} ({type(estimator).__name__}) was trained on a table of targets; train it on one, as a 1-D array", step=at
        )
    if isinstance(estimator, BOOSTERS) and not (
        isinstance(estimator.init_, str) or type(estimator.init_) in (DummyClassifier, DummyRegressor)
    ):
        raise UnsupportedStep(f"{at}: init={type(estimator.init_).__name__} is a model of its own; leave init at None or 'zero'", step=at)
    refuse_parameters(estimator, at)
    if type(estimator) in ENSEMBLE_WRITERS:
        for place, part in parts(estimator, at):
            _refuse_inside(part, place)


def _refuse_other_precision(estimator: Any, at: str) -> None:
    for name in ("coef_", "theta_", "_fit_X", "feature_log_prob_"):
        found = getattr(estimator, name, None)
        if getattr(found, "dtype", np.float64) != np.float64:
            raise UnsupportedStep(f"{at}: was trained in {found.dtype}; train it on float64", step=at)  # type: ignore[union-attr]
    if isinstance(estimator, NETWORKS) and estimator.coefs_[0].dtype != np.float64:
        raise UnsupportedStep(f"{at}: was trained in {estimator.coefs_[0].dtype}; train it on float64", step=at)


def _refuse_inside(part: Any, at: str) -> None:
    """Refuse an estimator inside another one that cannot be written there."""
    if type(part) is Pipeline:
        _refuse_inside(part.steps[-1][1], f"{at}.{part.steps[-1][0]}")
        return
    if type(part).__module__.startswith("xgboost"):
        raise UnsupportedStep(f"{at}: {type(part).__name__} answers in float32, which is not exact inside another estimator", step=at)
    if isinstance(part, HISTOGRAM_BOOSTERS) and getattr(part, "_preprocessor", None) is not None:
        raise UnsupportedStep(f"{at}: native categories inside another estimator have no graph; encode them in a step before", step=at)
    refuse_unsupported(part, at)


def emit_features(context: StepContext, estimator: Any, at: str, block: Block, data: Any) -> Block:
    """Write what the estimator itself does to its columns before the model proper: histogram boosters encode categories.

    Raises:
        UnsupportedStep: A string column reaches an estimator that computes on it.
    """
    preprocessor = getattr(estimator, "_preprocessor", None) if isinstance(estimator, HISTOGRAM_BOOSTERS) else None
    if preprocessor is not None:
        # A ColumnTransformer of the booster's own: an encoder of categories, then the other columns as float64.
        encoder = preprocessor.named_transformers_["encoder"]
        indices = preprocessor._transformer_to_input_indices
        encoded, _ = emit_step(
            context, encoder, f"{at}.categories", [block[i] for i in indices["encoder"]], _select(data, indices["encoder"])
        )
        block = encoded + [block[i] for i in indices["numerical"]]
    strings = [c.label for c in block if c.is_string]
    if strings:
        raise UnsupportedStep(f"{at}: the string column {strings[0]!r} reaches {type(estimator).__name__} unencoded", step=at)
    return block


def _select(data: Any, indices: Sequence[int]) -> Any:
    return data.iloc[:, list(indices)] if hasattr(data, "iloc") else data[:, list(indices)]


def reference_features(estimator: Any, data: Any) -> np.ndarray:
    """Return the float64 matrix the training code gives to the model proper."""
    if isinstance(estimator, HISTOGRAM_BOOSTERS):
        data = estimator._preprocess_X(data, reset=False)
    dense = data.toarray() if hasattr(data, "toarray") else data
    return np.ascontiguousarray(np.asarray(dense, dtype=np.float64))


def build_model(
    estimator: Any, at: str, n_features: int, names: OutputNames, *, rows: np.ndarray | None = None, sparse: bool = False
) -> tuple[onnx.ModelProto, list[Output]]:
    """Write the model stage.

    Args:
        estimator: A fitted, supported estimator.
        at: Its path in the pipeline.
        n_features: Columns of the features matrix.
        names: What inputs and outputs are called.
        rows: Training rows of the features matrix, for pipelines inside the estimator.
        sparse: Whether the features are sparse rows: values [n, elements] and their columns.

    Returns:
        The graph and the manifest's description of its outputs.

    Raises:
        UnsupportedStep: It was trained in another precision, or its loss or classes have no exact graph.
    """
    writer = GraphWriter("model", rows=rows)
    if sparse:
        features = writer.input(names.features, "float64", "elements")
        writer.sparse[features] = Sparse(writer.input(names.columns, "int64", "elements"), features, n_features)
    else:
        features = writer.input(names.features, "float64", n_features)
    answer = emit_estimator(writer, estimator, at, features)
    outputs = (
        _give_classes(writer, estimator, at, answer, names)
        if hasattr(estimator, "classes_")
        else _give_value(writer, estimator, answer, names)
    )
    return writer.build(), outputs


def emit_estimator(writer: GraphWriter, estimator: Any, at: str, features: str) -> Answer:
    """Write one estimator, alone or inside another one.

    Raises:
        UnsupportedStep: Something in it has no exact graph.
    """
    _refuse_other_precision(estimator, at)
    if is_boosted(estimator):
        return _emit_boosted(writer, estimator, at, features)
    if type(estimator) is Pipeline:
        return _emit_inner_pipeline(writer, estimator, at, features)
    ensemble = type(estimator) in ENSEMBLE_WRITERS
    whole = isinstance(estimator, (BaggingClassifier, BaggingRegressor)) or getattr(estimator, "passthrough", False)
    if features in writer.sparse and (whole if ensemble else not isinstance(estimator, _READ_SPARSE)):
        sparse = writer.sparse[features]
        features = writer.dense(sparse, list(range(sparse.width)), at=at)
    if ensemble:
        return ENSEMBLE_WRITERS[type(estimator)](writer, estimator, at, features, emit_estimator)
    emit: EmitModel = next(emit for types, emit in _EMITTERS if isinstance(estimator, types))
    return emit(writer, estimator, at, features)


def _emit_inner_pipeline(writer: GraphWriter, pipeline: Any, at: str, features: str) -> Answer:
    """Write a pipeline that is part of an estimator: its steps read the features."""
    if writer.rows is None or features != writer.inputs[0].name:
        raise UnsupportedStep(f"{at}: a pipeline here has no exact graph; put its steps before the whole estimator", step=at)
    rows: Any = writer.rows
    block: Block = [Column(f"feature {i}", features, i, rows.shape[1], "float64") for i in range(rows.shape[1])]
    context = StepContext(writer, "")
    for name, step in pipeline.steps[:-1]:
        block, rows = emit_step(context, step, f"{at}.{name}", block, rows)
    last_name, last = pipeline.steps[-1]
    return emit_estimator(writer, last, f"{at}.{last_name}", writer.matrix(block, at=f"{at}.{last_name}"))


def _give_value(writer: GraphWriter, estimator: Any, answer: Answer, names: OutputNames) -> list[Output]:
    dtype: Any = np.dtype(answer_dtype(estimator)).name
    flat = writer.node("Squeeze", [answer.value, writer.constant(np.array([1], dtype=np.int64), at=names.value)], at=names.value)
    writer.output(flat, names.value, dtype, [])
    return [Output(name=names.value, dtype=dtype, description="The predicted value.")]


def _give_classes(writer: GraphWriter, estimator: Any, at: str, answer: Answer, names: OutputNames) -> list[Output]:
    classes, dtype = class_table(estimator, at)
    label = writer.node("Gather", [writer.constant(classes, at=names.label), answer.index], at=names.label, axis=0)
    writer.output(label, names.label, dtype, [])
    number: Any = np.dtype(answer_dtype(estimator)).name
    if answer.probability:
        deciding, tensor, words = names.probability, answer.probability, "The probability of each class."
    elif answer.score:
        deciding, words = names.score, "The score of each class; the largest decides."
        tensor = answer.score
        if len(classes) == 2:
            tensor = writer.concat([writer.node("Neg", [tensor], at=names.score), tensor], at=names.score)
    else:
        return [Output(name=names.label, dtype=dtype, description="The class with the most votes.")]  # type: ignore[arg-type]
    writer.output(tensor, deciding, number, [len(classes)])
    return [
        Output(name=names.label, dtype=dtype, description="The most probable class.", decided_by=deciding),  # type: ignore[arg-type]
        Output(name=deciding, dtype=number, shape=[len(classes)], description=words, element_names=[str(c) for c in classes]),
    ]


def reference_scores(estimator: Any, pipeline: Any, frame: Any, names: OutputNames) -> dict[str, np.ndarray]:
    """Return what the training code decides by, under the name it has in the package: probabilities, else scores, else nothing."""
    if hasattr(estimator, "predict_proba"):
        return {names.probability: np.asarray(pipeline.predict_proba(frame), dtype=answer_dtype(estimator))}
    if not hasattr(estimator, "decision_function"):
        return {}
    scores = np.asarray(pipeline.decision_function(frame), dtype=np.float64)
    return {names.score: np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores}


def class_table(estimator: Any, at: str) -> tuple[np.ndarray, str]:
    """Return the classes as an array the graph can hold, and its manifest dtype.

    Raises:
        UnsupportedStep: The classes are neither strings, integers, booleans nor float64.
    """
    classes = np.asarray(estimator.classes_)
    if classes.dtype.kind in "OUT" and all(isinstance(c, str) for c in classes):
        return classes.astype(np.str_), "string"
    if classes.dtype.kind in "iu":
        return classes.astype(np.int64), "int64"
    if classes.dtype.kind == "b" or classes.dtype == np.float64:
        return classes, classes.dtype.name
    raise UnsupportedStep(f"{at}: classes of type {classes.dtype} have no label; train on strings, integers or booleans", step=at)


# --- pieces -----------------------------------------------------------------------------------------------------------


def _as_float32(writer: GraphWriter, tensor: str, at: str) -> str:
    """Round to float32 as trees do in training; thresholds stay double and are compared with the rounded value."""
    return writer.cast(writer.cast(tensor, "float32", at=at), "float64", at=at)


def _for_trees(writer: GraphWriter, features: str, targets: list[list[Tree]], at: str) -> tuple[str, list[list[Tree]]]:
    """Return what trees read: of sparse features a table of the columns that some tree tests."""
    if features not in writer.sparse:
        return features, targets
    used = np.unique(np.concatenate([tree.feature for target in targets for tree in target] + [np.zeros(1, dtype=np.int64)]))
    dense = writer.dense(writer.sparse[features], used.tolist(), at=at)
    return dense, [[replace(tree, feature=np.searchsorted(used, tree.feature)) for tree in target] for target in targets]


# --- estimators -------------------------------------------------------------------------------------------------------


def _emit_linear_classifier(writer: GraphWriter, estimator: Any, at: str, features: str) -> Answer:
    scores = linear_scores(writer, estimator, at, features)
    if len(estimator.classes_) == 2:
        return two_classes(writer, scores, at, comparison="Greater")
    return many_classes(writer, scores, at)


def _emit_scorer(writer: GraphWriter, estimator: Any, at: str, features: str) -> Answer:
    scores = linear_scores(writer, estimator, at, features)
    two = len(estimator.classes_) == 2
    if hasattr(estimator, "predict_proba"):
        return _two_of_a_score(writer, estimator, scores, at) if two else _one_versus_rest(writer, estimator, scores, at)
    if not two:
        return Answer(index=argmax(writer, scores, at), score=scores)
    return Answer(index=above(writer, scores, at), score=scores)


def _two_of_a_score(writer: GraphWriter, estimator: Any, scores: str, at: str) -> Answer:
    if estimator.loss == "log_loss":
        return two_classes(writer, scores, at, comparison="Greater")
    second = _half_clipped(writer, scores, at)
    return Answer(index=above(writer, scores, at), probability=two_columns(writer, second, at), score=scores)


def _one_versus_rest(writer: GraphWriter, estimator: Any, scores: str, at: str) -> Answer:
    """Each class's own probability by their sum; where all are 0, as likely as one another."""
    one = constant(writer, 1.0, at)
    each = logistic(writer, scores, at) if estimator.loss == "log_loss" else _half_clipped(writer, scores, at)
    axis = writer.constant(np.array([1], dtype=np.int64), at=at)
    none = writer.node("Equal", [writer.node("ReduceSum", [each, axis], at=at), constant(writer, 0.0, at)], at=at)
    each = writer.node("Where", [none, one, each], at=at)
    total = writer.node("ReduceSum", [each, axis], at=at)
    return Answer(index=argmax(writer, scores, at), probability=writer.node("Div", [each, total], at=at), score=scores)


def _half_clipped(writer: GraphWriter, scores: str, at: str) -> str:
    """(clip(score, -1, 1) + 1) / 2, the probability of the modified Huber loss."""
    bounded = writer.node("Max", [writer.node("Min", [scores, constant(writer, 1.0, at)], at=at), constant(writer, -1.0, at)], at=at)
    return writer.node("Div", [writer.node("Add", [bounded, constant(writer, 1.0, at)], at=at), constant(writer, 2.0, at)], at=at)


def _emit_naive_bayes(writer: GraphWriter, estimator: Any, at: str, features: str) -> Answer:
    """Joint log likelihoods of counts, and the probabilities behind them."""
    table = np.asarray(estimator.feature_log_prob_, dtype=np.float64)
    prior: Any = estimator.class_log_prior_
    if isinstance(estimator, BernoulliNB):
        absent = np.log(1 - np.exp(table))
        table, prior = table - absent, prior + absent.sum(axis=1)
        if estimator.binarize is not None:
            features = _binarized(writer, features, float(estimator.binarize), at)
    joint = product_of(writer, features, table.T, at)
    if not isinstance(estimator, ComplementNB) or len(estimator.classes_) == 1:
        joint = writer.node("Add", [joint, constant(writer, prior, at)], at=at)
    return bayes_answer(writer, estimator, at, joint)


def _binarized(writer: GraphWriter, features: str, threshold: float, at: str) -> str:
    found = writer.cast(writer.node("Greater", [features, constant(writer, threshold, at)], at=at), "float64", at=at)
    if features in writer.sparse:
        writer.sparse[found] = replace(writer.sparse[features], values=found)
    return found


def _emit_linear_regressor(writer: GraphWriter, estimator: Any, at: str, features: str) -> Answer:
    return Answer(value=linear_scores(writer, estimator, at, features))


def _emit_forest(writer: GraphWriter, estimator: Any, at: str, features: str) -> Answer:
    trees = [part.tree_ for part in estimator.estimators_] if isinstance(estimator, FORESTS) else [estimator.tree_]
    width = trees[0].value.shape[2]
    targets = [[from_sklearn_tree(tree, tree.value[:, 0, k]) for tree in trees] for k in range(width)]
    features, targets = _for_trees(writer, features, targets, at)
    total = emit_trees(writer, _as_float32(writer, features, at), targets, at=at)
    mean = writer.node("Div", [total, constant(writer, float(len(trees)), at)], at=at) if isinstance(estimator, FORESTS) else total
    if hasattr(estimator, "classes_"):
        return Answer(index=argmax(writer, mean, at), probability=mean)
    return Answer(value=mean)


def _emit_booster(writer: GraphWriter, estimator: Any, at: str, features: str) -> Answer:
    start = np.asarray(estimator._raw_predict_init(np.zeros((1, estimator.n_features_in_))), dtype=np.float64)[0]
    targets = [
        [constant_tree(float(start[k])), *(from_sklearn_tree(e.tree_, estimator.learning_rate * e.tree_.value[:, 0, 0]) for e in column)]
        for k, column in enumerate(np.asarray(estimator.estimators_).T)
    ]
    features, targets = _for_trees(writer, features, targets, at)
    raw = emit_trees(writer, _as_float32(writer, features, at), targets, at=at)
    if not hasattr(estimator, "classes_"):
        return Answer(value=raw)
    if len(targets) == 1:
        return two_classes(writer, raw, at, comparison="GreaterOrEqual", doubled=estimator.loss == "exponential")
    return many_classes(writer, raw, at)


def _emit_histogram_booster(writer: GraphWriter, estimator: Any, at: str, features: str) -> Answer:
    start = np.asarray(estimator._baseline_prediction, dtype=np.float64).reshape(-1)
    raw = emit_trees(writer, features, histogram_targets(estimator, start), at=at)
    if hasattr(estimator, "classes_"):
        return two_classes(writer, raw, at, comparison="Greater") if len(start) == 1 else many_classes(writer, raw, at)
    link = type(estimator._loss.link).__name__
    if link == "IdentityLink":
        return Answer(value=raw)
    if link == "LogLink":
        return Answer(value=writer.node("Exp", [raw], at=at))
    raise UnsupportedStep(f"{at}: loss={estimator.loss!r} answers through {link}, which has no exact graph", step=at)


def histogram_targets(estimator: Any, start: np.ndarray) -> list[list[Tree]]:
    """Return, per target, the start value and the trees of a histogram gradient booster, in the order it adds them."""
    n_categories: dict[int, int] = {}
    if estimator._preprocessor is not None:
        encoder = estimator._preprocessor.named_transformers_["encoder"]
        n_categories = {i: len(categories) for i, categories in enumerate(encoder.categories_)}
    return [
        [constant_tree(float(start[k])), *(from_histogram_tree(stage[k], n_categories) for stage in estimator._predictors)]
        for k in range(len(start))
    ]


def _emit_boosted(writer: GraphWriter, estimator: Any, at: str, features: str) -> Answer:
    missing = getattr(estimator, "missing", None)
    answer = emit_boosted(writer, boosted_model(estimator, at), at, features, missing=math.nan if missing is None else float(missing))
    return Answer(value=answer.value, index=answer.index, probability=answer.probability)


#: These read sparse rows as they are; all others get a table.
_READ_SPARSE: Final = (*LINEAR_CLASSIFIERS, *SCORERS, *NAIVE_BAYES, *LINEAR_REGRESSORS, *TREES, *FORESTS, *BOOSTERS)

_EMITTERS: Final[tuple[tuple[tuple[type, ...], EmitModel], ...]] = (
    (LINEAR_CLASSIFIERS, _emit_linear_classifier),
    (SCORERS, _emit_scorer),
    (NAIVE_BAYES, _emit_naive_bayes),
    (LINEAR_REGRESSORS, _emit_linear_regressor),
    ((*TREES, *FORESTS), _emit_forest),
    (BOOSTERS, _emit_booster),
    (HISTOGRAM_BOOSTERS, _emit_histogram_booster),
    *ESTIMATOR_EMITTERS,
)
