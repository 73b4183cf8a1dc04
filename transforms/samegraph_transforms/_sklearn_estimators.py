"""Estimators beside trees and plain linear models: support vectors, neighbours, naive Bayes, networks, further linear ones.

Each follows the estimator's own arithmetic in float64. Sums over features, support vectors and neurons are made in an order of their
own, as in any BLAS, so scores agree to the last bits; what is decided from them agrees where the margin is wider than that.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import (
    ARDRegression,
    GammaRegressor,
    LarsCV,
    LassoLarsCV,
    LassoLarsIC,
    OrthogonalMatchingPursuit,
    PoissonRegressor,
    QuantileRegressor,
    TheilSenRegressor,
    TweedieRegressor,
)
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.svm import SVC, SVR, NuSVC, NuSVR

from ._sklearn_answer import (
    Answer,
    EmitModel,
    above,
    argmax,
    constant,
    last_axis,
    linear_scores,
    logistic,
    many_classes,
    softmax,
    two_classes,
    two_columns,
)
from ._sklearn_graph import GraphWriter
from ._sklearn_numbers import log1p
from ._sklearn_site import Site, StepContext
from .errors import UnsupportedStep

MORE_LINEAR_REGRESSORS: Final = (
    ARDRegression, LarsCV, LassoLarsCV, LassoLarsIC, OrthogonalMatchingPursuit, QuantileRegressor, TheilSenRegressor,
)  # fmt: skip
LOG_LINEAR: Final = (GammaRegressor, PoissonRegressor, TweedieRegressor)
KERNEL_CLASSIFIERS: Final = (SVC, NuSVC)
KERNEL_REGRESSORS: Final = (SVR, NuSVR)
NEIGHBORS: Final = (KNeighborsClassifier, KNeighborsRegressor)
NETWORKS: Final = (MLPClassifier, MLPRegressor)
#: All that this module writes.
OTHER_ESTIMATORS: Final = (
    LinearDiscriminantAnalysis, GaussianNB, *MORE_LINEAR_REGRESSORS, *LOG_LINEAR, *KERNEL_CLASSIFIERS, *KERNEL_REGRESSORS, *NEIGHBORS,
    *NETWORKS,
)  # fmt: skip


def _unsupported(estimator: Any, at: str, what: str) -> UnsupportedStep:
    return UnsupportedStep(f"{at} ({type(estimator).__name__}): {what}", step=at)


def refuse_parameters(estimator: Any, at: str) -> None:
    """Refuse parameters of these estimators that have no exact graph.

    Raises:
        UnsupportedStep: The message names the parameter and what could be used instead.
    """
    if isinstance(estimator, (*KERNEL_CLASSIFIERS, *KERNEL_REGRESSORS)):
        _refuse_kernels(estimator, at)
    if isinstance(estimator, NEIGHBORS):
        _refuse_neighbours(estimator, at)
    if isinstance(estimator, MLPClassifier) and estimator._label_binarizer.y_type_ not in ("binary", "multiclass"):
        raise _unsupported(estimator, at, "it was trained on several labels a row; train it on one")


def _refuse_kernels(estimator: Any, at: str) -> None:
    if estimator.kernel not in ("linear", "rbf", "poly", "sigmoid"):
        raise _unsupported(estimator, at, "the kernel is Python code or precomputed; use 'linear', 'rbf', 'poly' or 'sigmoid'")
    if estimator._sparse:
        raise _unsupported(estimator, at, "it was fitted on sparse data, with which it computes otherwise; make the features dense")
    if isinstance(estimator, KERNEL_CLASSIFIERS):
        if estimator.probability is True:
            raise _unsupported(
                estimator, at, "probability=True finds its probabilities by iteration; leave it off, or calibrate: CalibratedClassifierCV"
            )
        if estimator.decision_function_shape != "ovr" and len(estimator.classes_) > 2:
            raise _unsupported(estimator, at, "decision_function_shape='ovo' has no score for each class; use 'ovr'")


def _refuse_neighbours(estimator: Any, at: str) -> None:
    metric = estimator.effective_metric_
    if metric not in ("euclidean", "manhattan"):
        raise _unsupported(estimator, at, f"the metric {metric!r} has no exact graph; use 'euclidean' or 'manhattan'")
    if callable(estimator.weights):
        raise _unsupported(estimator, at, "weights is Python code; use 'uniform' or 'distance'")
    if estimator.weights == "distance" and metric == "euclidean" and estimator._fit_method == "brute":
        raise _unsupported(
            estimator,
            at,
            "scikit-learn's brute-force search rounds distances near zero in its own way, and weights='distance' divides by them; "
            "use algorithm='kd_tree'",
        )
    if hasattr(estimator._fit_X, "toarray") or np.asarray(estimator._y).ndim != 1:
        raise _unsupported(estimator, at, "it was fitted on sparse data or on a table of targets; use dense features and one target")


# --- linear models -----------------------------------------------------------------------------------------------------------


def _emit_discriminant(writer: GraphWriter, estimator: Any, at: str, features: str) -> Answer:
    scores = linear_scores(writer, estimator, at, features)
    if len(estimator.classes_) == 2:
        return two_classes(writer, scores, at, comparison="Greater")
    return many_classes(writer, scores, at)


def _emit_linear_regressor(writer: GraphWriter, estimator: Any, at: str, features: str) -> Answer:
    return Answer(value=linear_scores(writer, estimator, at, features))


def _emit_log_linear(writer: GraphWriter, estimator: Any, at: str, features: str) -> Answer:
    raw = linear_scores(writer, estimator, at, features)
    link = type(estimator._base_loss.link).__name__
    if link == "IdentityLink":
        return Answer(value=raw)
    if link != "LogLink":
        raise _unsupported(estimator, at, f"it answers through {link}, which has no exact graph")
    return Answer(value=writer.node("Exp", [raw], at=at))


# --- support vectors and neighbours ------------------------------------------------------------------------------------------


def _distances(writer: GraphWriter, at: str, features: str, points: np.ndarray, *, squared: bool) -> str:
    """Return the sum over features of squared (or absolute) differences with every point, [n, points]: one feature after the other."""
    total = ""
    for j in range(points.shape[1]):
        column = writer.node("Gather", [features, writer.constant(np.array([j], dtype=np.int64), at=at)], at=at, axis=1)
        difference = writer.node("Sub", [column, constant(writer, points[:, j][None], at)], at=at)
        term = writer.node("Mul", [difference, difference], at=at) if squared else writer.node("Abs", [difference], at=at)
        total = writer.node("Add", [total, term], at=at) if total else term
    return total


def _kernel(writer: GraphWriter, estimator: Any, at: str, features: str) -> str:
    """Return the kernel of every row with every support vector, [n, n_support]."""
    vectors = np.asarray(estimator.support_vectors_, dtype=np.float64)
    gamma = float(estimator._gamma)
    if estimator.kernel == "rbf":
        distances = _distances(writer, at, features, vectors, squared=True)
        return writer.node("Exp", [writer.node("Mul", [constant(writer, -gamma, at), distances], at=at)], at=at)
    products = writer.product(features, constant(writer, vectors.T, at), at=at)
    if estimator.kernel == "linear":
        return products
    scaled = writer.node("Mul", [constant(writer, gamma, at), products], at=at)
    base = writer.node("Add", [scaled, constant(writer, estimator.coef0, at)], at=at)
    return writer.node("Tanh", [base], at=at) if estimator.kernel == "sigmoid" else _power(writer, base, int(estimator.degree), at)


def _power(writer: GraphWriter, base: str, exponent: int, at: str) -> str:
    """Raise to a whole power by repeated squaring, in libsvm's order."""
    result = ""
    while exponent > 0:
        if exponent % 2:
            result = writer.node("Mul", [result, base], at=at) if result else base
        exponent //= 2
        if exponent:
            base = writer.node("Mul", [base, base], at=at)
    return result or constant(writer, 1.0, at)


def _emit_kernel_regressor(writer: GraphWriter, estimator: Any, at: str, features: str) -> Answer:
    sums = writer.product(_kernel(writer, estimator, at, features), constant(writer, estimator._dual_coef_.T, at), at=at)
    return Answer(value=writer.node("Add", [sums, constant(writer, estimator._intercept_, at)], at=at))


def _emit_kernel_classifier(writer: GraphWriter, estimator: Any, at: str, features: str) -> Answer:
    """One decision for each pair of classes, then votes, as libsvm does it."""
    count = len(estimator.classes_)
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    owner = np.repeat(np.arange(count), estimator._n_support)
    weights = np.zeros((len(owner), len(pairs)))
    for place, (i, j) in enumerate(pairs):
        weights[owner == i, place] = estimator._dual_coef_[j - 1, owner == i]
        weights[owner == j, place] = estimator._dual_coef_[i, owner == j]
    sums = writer.product(_kernel(writer, estimator, at, features), constant(writer, weights, at), at=at)
    decisions = writer.node("Add", [sums, constant(writer, estimator._intercept_, at)], at=at)
    if count == 2:
        score = writer.node("Neg", [decisions], at=at)
        return Answer(index=above(writer, score, at, comparison="GreaterOrEqual"), score=score)
    first, second = np.zeros((len(pairs), count)), np.zeros((len(pairs), count))
    for place, (i, j) in enumerate(pairs):
        first[place, i], second[place, j] = 1.0, 1.0

    def votes(comparison: str) -> str:
        """Count a pair for its second class where the comparison with 0 holds, else for its first."""
        held = writer.cast(writer.node(comparison, [decisions, constant(writer, 0.0, at)], at=at), "float64", at=at)
        turned = writer.product(held, constant(writer, second - first, at), at=at)
        return writer.node("Add", [turned, constant(writer, first.sum(axis=0)[None], at)], at=at)

    confidence = writer.product(decisions, constant(writer, first - second, at), at=at)
    spread = writer.node("Add", [writer.node("Abs", [confidence], at=at), constant(writer, 1.0, at)], at=at)
    share = writer.node("Div", [confidence, writer.node("Mul", [constant(writer, 3.0, at), spread], at=at)], at=at)
    score = writer.node("Add", [votes("Less"), share], at=at)
    return Answer(index=argmax(writer, score if estimator.break_ties else votes("LessOrEqual"), at), score=score)


def _neighbours(writer: GraphWriter, estimator: Any, at: str, features: str) -> tuple[str, str]:
    """Return the rows of training that are nearest, int64 [n, k], and their weights [n, k]; of equal distances the first row is nearer."""
    squared = estimator.effective_metric_ == "euclidean"
    points = np.asarray(estimator._fit_X, dtype=np.float64)
    distances = _distances(writer, at, features, points, squared=squared)
    k = writer.constant(np.array([estimator.n_neighbors], dtype=np.int64), at=at)
    nearest, rows = writer.several("TopK", [distances, k], 2, at=at, axis=1, largest=0, sorted=1)
    if estimator.weights != "distance":
        ones = writer.node("Add", [writer.node("Sub", [nearest, nearest], at=at), constant(writer, 1.0, at)], at=at)
        return rows, ones
    distance = writer.node("Sqrt", [nearest], at=at) if squared else nearest
    inverse = writer.node("Reciprocal", [distance], at=at)
    met = writer.cast(writer.node("IsInf", [inverse], at=at), "float64", at=at)
    any_met = writer.node("Greater", [writer.node("ReduceMax", [met, last_axis(writer, at)], at=at), constant(writer, 0.0, at)], at=at)
    return rows, writer.node("Where", [any_met, met, inverse], at=at)


def _emit_neighbours_classifier(writer: GraphWriter, estimator: Any, at: str, features: str) -> Answer:
    rows, weights = _neighbours(writer, estimator, at, features)
    labels = np.eye(len(estimator.classes_))[np.asarray(estimator._y, dtype=np.int64)]
    chosen = writer.node("Gather", [constant(writer, labels, at), rows], at=at, axis=0)
    axis = last_axis(writer, at)
    wide = writer.node("Unsqueeze", [weights, writer.constant(np.array([2], dtype=np.int64), at=at)], at=at)
    votes = writer.node("ReduceSum", [writer.node("Mul", [chosen, wide], at=at), axis], at=at, keepdims=0)
    total = writer.node("ReduceSum", [votes, axis], at=at)
    return Answer(index=argmax(writer, votes, at), probability=writer.node("Div", [votes, total], at=at))


def _emit_neighbours_regressor(writer: GraphWriter, estimator: Any, at: str, features: str) -> Answer:
    rows, weights = _neighbours(writer, estimator, at, features)
    targets = writer.node("Gather", [constant(writer, estimator._y, at), rows], at=at, axis=0)
    axis = last_axis(writer, at)
    total = writer.node("ReduceSum", [writer.node("Mul", [targets, weights], at=at), axis], at=at)
    return Answer(value=writer.node("Div", [total, writer.node("ReduceSum", [weights, axis], at=at)], at=at))


# --- naive Bayes -------------------------------------------------------------------------------------------------------------


def bayes_answer(writer: GraphWriter, estimator: Any, at: str, likelihood: str) -> Answer:
    """Return the probabilities behind joint log likelihoods [n, n_classes]: exp(jll - logsumexp(jll)), the largest taken apart."""
    site, axis = Site(StepContext(writer, ""), estimator, at, None), last_axis(writer, at)
    largest = writer.node("ReduceMax", [likelihood, axis], at=at)
    is_largest = writer.node("Equal", [likelihood, largest], at=at)
    count = writer.node("ReduceSum", [writer.cast(is_largest, "float64", at=at), axis], at=at)
    powers = writer.node("Exp", [writer.node("Sub", [likelihood, largest], at=at)], at=at)
    others = writer.node("ReduceSum", [writer.node("Where", [is_largest, constant(writer, 0.0, at), powers], at=at), axis], at=at)
    share = log1p(site, writer.node("Div", [others, count], at=at))
    total = writer.node("Add", [writer.node("Add", [share, writer.node("Log", [count], at=at)], at=at), largest], at=at)
    probability = writer.node("Exp", [writer.node("Sub", [likelihood, total], at=at)], at=at)
    return Answer(index=argmax(writer, likelihood, at), probability=probability)


def _emit_gaussian(writer: GraphWriter, estimator: Any, at: str, features: str) -> Answer:
    columns = []
    for prior, mean, variance in zip(estimator.class_prior_, estimator.theta_, estimator.var_, strict=True):
        difference = writer.node("Sub", [features, constant(writer, mean, at)], at=at)
        square = writer.node("Div", [writer.node("Mul", [difference, difference], at=at), constant(writer, variance, at)], at=at)
        half = writer.node("Mul", [constant(writer, 0.5, at), writer.node("ReduceSum", [square, last_axis(writer, at)], at=at)], at=at)
        spread = writer.node("Sub", [constant(writer, -0.5 * np.sum(np.log(2.0 * math.pi * variance)), at), half], at=at)
        columns.append(writer.node("Add", [constant(writer, np.log(prior), at), spread], at=at))
    return bayes_answer(writer, estimator, at, writer.concat(columns, at=at))


# --- networks ----------------------------------------------------------------------------------------------------------------


def _activated(writer: GraphWriter, name: str, tensor: str, at: str) -> str:
    if name == "relu":
        return writer.node("Max", [tensor, constant(writer, 0.0, at)], at=at)
    if name == "logistic":
        return logistic(writer, tensor, at)
    if name == "softmax":
        return softmax(writer, tensor, at)
    return tensor if name == "identity" else writer.node({"tanh": "Tanh", "exp": "Exp"}[name], [tensor], at=at)


def _emit_network(writer: GraphWriter, estimator: Any, at: str, features: str) -> Answer:
    tensor = features
    for i, (weights, shift) in enumerate(zip(estimator.coefs_, estimator.intercepts_, strict=True)):
        product = writer.product(tensor, constant(writer, weights, at), at=at)
        last = i == len(estimator.coefs_) - 1
        name = estimator.out_activation_ if last else estimator.activation
        tensor = _activated(writer, name, writer.node("Add", [product, constant(writer, shift, at)], at=at), at)
    if not hasattr(estimator, "classes_"):
        return Answer(value=tensor)
    if estimator.n_outputs_ == 1:
        return Answer(index=above(writer, tensor, at, limit=0.5), probability=two_columns(writer, tensor, at))
    return Answer(index=argmax(writer, tensor, at), probability=tensor)


ESTIMATOR_EMITTERS: Final[tuple[tuple[tuple[type, ...], EmitModel], ...]] = (
    ((LinearDiscriminantAnalysis,), _emit_discriminant),
    (MORE_LINEAR_REGRESSORS, _emit_linear_regressor),
    (LOG_LINEAR, _emit_log_linear),
    (KERNEL_CLASSIFIERS, _emit_kernel_classifier),
    (KERNEL_REGRESSORS, _emit_kernel_regressor),
    ((KNeighborsClassifier,), _emit_neighbours_classifier),
    ((KNeighborsRegressor,), _emit_neighbours_regressor),
    ((GaussianNB,), _emit_gaussian),
    (NETWORKS, _emit_network),
)
