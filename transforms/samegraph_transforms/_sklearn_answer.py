"""What a model's graph works out, and the pieces that writers of estimators share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ._sklearn_graph import GraphWriter
from ._sklearn_sparse import sparse_dot


@dataclass(frozen=True)
class Answer:
    """Tensors a model's graph has worked out, float64 unless said otherwise.

    Attributes:
        value: A regressor's answer, [n, 1].
        index: A classifier's class index, int64 [n].
        probability: Its probabilities, [n, n_classes].
        score: Its `decision_function`, where it has one: [n, 1] for two classes, else [n, n_classes].
    """

    value: str = ""
    index: str = ""
    probability: str = ""
    score: str = ""


#: Writes one estimator: (graph, estimator, its path, its features) → its answer.
EmitModel: TypeAlias = Callable[[GraphWriter, Any, str, str], Answer]


def constant(writer: GraphWriter, value: Any, at: str) -> str:
    """Write a float64 constant."""
    return writer.constant(np.asarray(value, dtype=np.float64), at=at)


def last_axis(writer: GraphWriter, at: str) -> str:
    """Write the axes [1]."""
    return writer.constant(np.array([1], dtype=np.int64), at=at)


def logistic(writer: GraphWriter, score: str, at: str) -> str:
    """1 / (1 + exp(-score)).

    The operator `Sigmoid` is not used: ONNX Runtime's loses all relative precision for scores far below zero.
    """
    one = constant(writer, 1.0, at)
    decay = writer.node("Exp", [writer.node("Neg", [score], at=at)], at=at)
    return writer.node("Div", [one, writer.node("Add", [one, decay], at=at)], at=at)


def two_columns(writer: GraphWriter, second: str, at: str) -> str:
    """Return the probabilities of two classes from that of the second, [n, 1]."""
    return writer.concat([writer.node("Sub", [constant(writer, 1.0, at), second], at=at), second], at=at)


def above(writer: GraphWriter, score: str, at: str, *, comparison: str = "Greater", limit: float = 0.0) -> str:
    """Return the class index 1 where a score [n, 1] is above a limit, else 0: int64 [n]."""
    compared = writer.node(comparison, [score, constant(writer, limit, at)], at=at)
    return writer.cast(writer.node("Squeeze", [compared, last_axis(writer, at)], at=at), "int64", at=at)


def two_classes(writer: GraphWriter, score: str, at: str, *, comparison: str, doubled: bool = False) -> Answer:
    """Two probabilities from one score per row, [n, 1]: the logistic function and what is left of 1."""
    turned = writer.node("Mul", [score, constant(writer, 2.0, at)], at=at) if doubled else score
    probability = two_columns(writer, logistic(writer, turned, at), at)
    return Answer(index=above(writer, score, at, comparison=comparison), probability=probability, score=score)


def softmax(writer: GraphWriter, scores: str, at: str) -> str:
    """Softmax as training computes it: subtract the largest, exponentiate, divide by the sum."""
    axis = last_axis(writer, at)
    shifted = writer.node("Sub", [scores, writer.node("ReduceMax", [scores, axis], at=at)], at=at)
    powers = writer.node("Exp", [shifted], at=at)
    return writer.node("Div", [powers, writer.node("ReduceSum", [powers, axis], at=at)], at=at)


def many_classes(writer: GraphWriter, scores: str, at: str) -> Answer:
    """Softmax over one score a class."""
    return Answer(index=argmax(writer, scores, at), probability=softmax(writer, scores, at), score=scores)


def argmax(writer: GraphWriter, scores: str, at: str) -> str:
    """Return the first place of the largest score: int64 [n]."""
    return writer.node("ArgMax", [scores], at=at, axis=1, keepdims=0)


def linear_scores(writer: GraphWriter, estimator: Any, at: str, features: str) -> str:
    """Return features times `coef_` plus `intercept_`: [n, targets]."""
    product = product_of(writer, features, np.atleast_2d(np.asarray(estimator.coef_, dtype=np.float64)).T, at)
    return writer.node("Add", [product, constant(writer, np.atleast_1d(estimator.intercept_), at)], at=at)


def product_of(writer: GraphWriter, features: str, coefficients: np.ndarray, at: str) -> str:
    """Return features times a matrix [n_features, k]; sparse ones in scipy's order."""
    if features in writer.sparse:
        return sparse_dot(writer, writer.sparse[features], coefficients, at=at)
    return writer.product(features, constant(writer, coefficients, at), at=at)
