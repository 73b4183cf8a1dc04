"""Estimators made of other estimators: votes, stacks, bags, calibrated classifiers, transformed targets.

What is inside is written by its own rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import (
    BaggingClassifier,
    BaggingRegressor,
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.isotonic import IsotonicRegression
from sklearn.preprocessing import FunctionTransformer

from ._sklearn_answer import Answer, EmitModel, argmax, constant, last_axis, logistic, two_columns
from ._sklearn_graph import GraphWriter
from ._sklearn_numbers import emit_function, emit_interpolation, function_name
from ._sklearn_site import Site, StepContext, clipped
from .errors import UnsupportedStep

_Write: TypeAlias = Callable[[GraphWriter, Any, str, str, EmitModel], Answer]


def _unsupported(estimator: Any, at: str, what: str) -> UnsupportedStep:
    return UnsupportedStep(f"{at} ({type(estimator).__name__}): {what}", step=at)


def parts(estimator: Any, at: str) -> Iterator[tuple[str, Any]]:
    """Yield the estimators inside one of these, each with its path.

    Raises:
        UnsupportedStep: A parameter of the ensemble itself has no exact graph.
    """
    if isinstance(estimator, CalibratedClassifierCV):
        if estimator.method not in ("sigmoid", "isotonic"):
            raise _unsupported(estimator, at, f"method={estimator.method!r} has no exact graph; use 'sigmoid' or 'isotonic'")
        for i, calibrated in enumerate(estimator.calibrated_classifiers_):
            yield (
                f"{at}.{i}",
                getattr(calibrated.estimator, "estimator", calibrated.estimator)
                if _is_frozen(calibrated.estimator)
                else calibrated.estimator,
            )
    elif isinstance(estimator, TransformedTargetRegressor):
        transformer = estimator.transformer_
        if type(transformer) is not FunctionTransformer or (
            transformer.inverse_func is not None and not function_name(transformer.inverse_func)
        ):
            raise _unsupported(
                estimator, at, "its targets are transformed by Python code; use inverse_func=numpy.expm1 or another that has a graph"
            )
        yield f"{at}.regressor", estimator.regressor_
    else:
        names = [name for name, part in getattr(estimator, "estimators", ()) if not (isinstance(part, str) and part == "drop")]
        for i, part in enumerate(estimator.estimators_):
            yield f"{at}.{names[i] if i < len(names) else i}", part
        if hasattr(estimator, "final_estimator_"):
            yield f"{at}.final", estimator.final_estimator_


def _is_frozen(estimator: Any) -> bool:
    return type(estimator).__name__ == "FrozenEstimator"


def _mean(writer: GraphWriter, at: str, tensors: Sequence[str], weights: Any = None) -> str:
    """Add one after the other, weighted where asked, and divide by the number or by the sum of weights: as numpy.average."""
    scaled = tensors
    if weights is not None:
        scaled = [writer.node("Mul", [t, constant(writer, w, at)], at=at) for t, w in zip(tensors, weights, strict=True)]
    total = scaled[0]
    for tensor in scaled[1:]:
        total = writer.node("Add", [total, tensor], at=at)
    return writer.node(
        "Div", [total, constant(writer, len(tensors) if weights is None else np.asarray(weights, dtype=np.float64).sum(), at)], at=at
    )


def _chosen(writer: GraphWriter, part: Any, at: str, index: str) -> str:
    """Return the class a part chose by its number in the ensemble's classes: parts are trained on such numbers."""
    return writer.node("Gather", [writer.constant(np.asarray(part.classes_, dtype=np.int64), at=at), index], at=at, axis=0)


def _emit_votes(writer: GraphWriter, estimator: Any, at: str, features: str, emit: EmitModel) -> Answer:
    places = list(parts(estimator, at))
    answers = [emit(writer, part, place, features) for place, part in places]
    weights = estimator._weights_not_none
    if estimator.voting == "soft":
        probability = _mean(writer, at, [a.probability for a in answers], weights)
        return Answer(index=argmax(writer, probability, at), probability=probability)
    numbers = constant(writer, np.eye(len(estimator.classes_)), at)
    ballots = [
        writer.node("Gather", [numbers, _chosen(writer, part, place, a.index)], at=at, axis=0)
        for (place, part), a in zip(places, answers, strict=True)
    ]
    return Answer(index=argmax(writer, _mean(writer, at, ballots, weights), at))


def _emit_mean_value(writer: GraphWriter, estimator: Any, at: str, features: str, emit: EmitModel) -> Answer:
    values = [emit(writer, part, place, features).value for place, part in parts(estimator, at)]
    return Answer(value=_mean(writer, at, values, estimator._weights_not_none))


def _emit_stack(writer: GraphWriter, estimator: Any, at: str, features: str, emit: EmitModel) -> Answer:
    *inside, (final_at, final) = parts(estimator, at)
    second = writer.constant(np.array([1], dtype=np.int64), at=at)
    columns = []
    for (place, part), method in zip(inside, [m for m in estimator.stack_method_ if m is not None], strict=True):
        answer = emit(writer, part, place, features)
        if method == "predict_proba":
            two = len(estimator.classes_) == 2
            columns.append(writer.node("Gather", [answer.probability, second], at=at, axis=1) if two else answer.probability)
        elif method == "decision_function":
            columns.append(answer.score)
        elif answer.value:
            columns.append(answer.value)
        else:
            number = writer.cast(_chosen(writer, part, place, answer.index), "float64", at=at)
            columns.append(writer.node("Unsqueeze", [number, last_axis(writer, at)], at=at))
    if estimator.passthrough:
        columns.append(features)
    answer = emit(writer, final, final_at, writer.concat(columns, at=at))
    if not hasattr(estimator, "classes_"):
        return answer
    return Answer(index=_chosen(writer, final, final_at, answer.index), probability=answer.probability, score=answer.score)


def _emit_calibrated(writer: GraphWriter, estimator: Any, at: str, features: str, emit: EmitModel) -> Answer:
    two = len(estimator.classes_) == 2
    found = []
    for (place, part), calibrated in zip(parts(estimator, at), estimator.calibrated_classifiers_, strict=True):
        if len(part.classes_) != len(estimator.classes_):
            raise _unsupported(estimator, place, "one of its folds did not see every class; use fewer folds or more rows")
        answer = emit(writer, part, place, features)
        scores = answer.score or (
            writer.node("Gather", [answer.probability, last_axis(writer, place)], at=place, axis=1) if two else answer.probability
        )
        columns = [
            _calibrated(
                writer, calibrator, place, scores if two else writer.node("Gather", [scores, _place(writer, k, place)], at=place, axis=1)
            )
            for k, calibrator in enumerate(calibrated.calibrators)
        ]
        probability = (
            two_columns(writer, columns[0], place) if two else _normalised(writer, writer.concat(columns, at=place), len(columns), place)
        )
        one, limit = constant(writer, 1.0, place), constant(writer, 1.0 + 1e-5, place)
        beyond = writer.node(
            "And",
            [writer.node("Greater", [probability, one], at=place), writer.node("LessOrEqual", [probability, limit], at=place)],
            at=place,
        )
        found.append(writer.node("Where", [beyond, one, probability], at=place))
    mean = _mean(writer, at, found)
    return Answer(index=argmax(writer, mean, at), probability=mean)


def _place(writer: GraphWriter, k: int, at: str) -> str:
    return writer.constant(np.array([k], dtype=np.int64), at=at)


def _normalised(writer: GraphWriter, columns: str, count: int, at: str) -> str:
    total = writer.node("ReduceSum", [columns, last_axis(writer, at)], at=at)
    none = writer.node("Equal", [total, constant(writer, 0.0, at)], at=at)
    return writer.node("Where", [none, constant(writer, 1 / count, at), writer.node("Div", [columns, total], at=at)], at=at)


def _calibrated(writer: GraphWriter, calibrator: Any, at: str, score: str) -> str:
    """Return one class's calibrated probability, [n, 1]."""
    if not isinstance(calibrator, IsotonicRegression):
        product = writer.node("Mul", [constant(writer, calibrator.a_, at), score], at=at)
        shifted = writer.node("Add", [product, constant(writer, calibrator.b_, at)], at=at)
        return logistic(writer, writer.node("Neg", [shifted], at=at), at)
    site = Site(StepContext(writer, ""), calibrator, at, None)
    x, y = np.asarray(calibrator.X_thresholds_, dtype=np.float64), np.asarray(calibrator.y_thresholds_, dtype=np.float64)
    if len(x) == 1:
        return writer.node("Add", [writer.node("Sub", [score, score], at=at), constant(writer, y[0], at)], at=at)
    inside = clipped(site, score, float(calibrator.X_min_), float(calibrator.X_max_))
    return emit_interpolation(site, inside, x, y)


def _emit_transformed(writer: GraphWriter, estimator: Any, at: str, features: str, emit: EmitModel) -> Answer:
    (place, part) = next(parts(estimator, at))
    value = emit(writer, part, place, features).value
    inverse = estimator.transformer_.inverse_func
    if inverse is None:
        return Answer(value=value)
    return Answer(value=emit_function(Site(StepContext(writer, ""), estimator.transformer_, at, None), inverse, value))


def _emit_bag(writer: GraphWriter, estimator: Any, at: str, features: str, emit: EmitModel) -> Answer:
    found = []
    for (place, part), columns in zip(parts(estimator, at), estimator.estimators_features_, strict=True):
        chosen = np.asarray(columns, dtype=np.int64)
        whole = len(chosen) == estimator.n_features_in_ and (chosen == np.arange(len(chosen))).all()
        own = features if whole else writer.node("Gather", [features, writer.constant(chosen, at=place)], at=place, axis=1)
        answer = emit(writer, part, place, own)
        if hasattr(estimator, "classes_") and (not answer.probability or len(part.classes_) != len(estimator.classes_)):
            raise _unsupported(estimator, place, "a part has no probabilities, or did not see every class")
        found.append(answer.probability or answer.value)
    mean = _mean(writer, at, found)
    return Answer(index=argmax(writer, mean, at), probability=mean) if hasattr(estimator, "classes_") else Answer(value=mean)


ENSEMBLE_WRITERS: Final[dict[type, _Write]] = {
    BaggingClassifier: _emit_bag,
    BaggingRegressor: _emit_bag,
    CalibratedClassifierCV: _emit_calibrated,
    StackingClassifier: _emit_stack,
    StackingRegressor: _emit_stack,
    TransformedTargetRegressor: _emit_transformed,
    VotingClassifier: _emit_votes,
    VotingRegressor: _emit_mean_value,
}
