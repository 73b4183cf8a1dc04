"""From a model of XGBoost or LightGBM to a package, without importing either.

    draft = from_boosted(Path("model.json").read_bytes(), name="churn", version=1)      # XGBoost
    draft = from_boosted(Path("model.txt").read_bytes(), name="churn", version=1)       # LightGBM

The fields are the model's columns, in its order, all numbers; null is a missing value. A pipeline that ends with one of their
scikit-learn classes goes through `samegraph_transforms.tabular.from_sklearn` instead, with what comes before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ._boosted_files import Boosted, read_boosted
from ._sklearn_graph import Column, GraphWriter
from ._sklearn_trees import emit_trees
from .draft import DraftStage, PackageDraft
from .errors import AuthoringError
from .manifest import DEFAULT_TOLERANCES, Batching, Missing, Output, Provenance, RawField, Tolerance

__all__ = ["BoostedAnswer", "emit_boosted", "from_boosted"]

#: Beyond this a number becomes infinite in float32, and XGBoost refuses it.
_LARGEST_SINGLE: Final = float(np.finfo(np.float32).max)
#: XGBoost keeps exp in the logistic function finite in float32 with this.
_SINGLE_LIMIT: Final = 88.7


@dataclass(frozen=True)
class BoostedAnswer:
    """Tensors a model's graph has worked out; float32 for XGBoost, float64 for LightGBM.

    Attributes:
        value: A regression's answer, [n, 1].
        index: A classification's class index, int64 [n].
        probability: Its probabilities, [n, n_classes].
    """

    value: str = ""
    index: str = ""
    probability: str = ""


def from_boosted(
    source: bytes,
    *,
    name: str,
    version: int,
    classes: Sequence[str] | Sequence[int] | None = None,
    missing: float = math.nan,
    rounds: int | None = None,
    fields: Mapping[str, str] | None = None,
    description: str = "",
    batching: Batching | None = None,
    tolerances: Mapping[str, Tolerance] | None = None,
    provenance: Provenance | None = None,
) -> PackageDraft:
    """Make a package draft that computes what the model computes.

    Args:
        source: Content of a model file: XGBoost's JSON (`save_model("model.json")`, `save_raw("json")`) or LightGBM's text
            (`save_model("model.txt")`, `model_to_string()`).
        name: Model name.
        version: Model version, >= 1.
        classes: Labels of a classification in the model's order; 0, 1, … by default.
        missing: The number XGBoost was told to take for missing, as `DMatrix(missing=)`; NaN always is.
        rounds: How many boosting rounds answer; None for the best one if training stopped early, else all.
        fields: Column → description for callers.
        description: A sentence about the model.
        batching: Hints for the server.
        tolerances: Promises per device profile.
        provenance: Facts about the training.

    Returns:
        A draft with stages `preprocess.batch` (columns → `features`, float64 [n, k]) and `model`. Classifications answer `label` and
        `probability`, regressions `value`; floats are float32 for XGBoost and float64 for LightGBM, as the library's own.

    Raises:
        UnsupportedStep: Something in the model has no exact graph; the message names it.
        AuthoringError: The file is no model of the two, or `classes` does not fit it.
    """
    model = read_boosted(source, rounds=rounds)
    labels = _labels(model, classes)
    preprocess = GraphWriter("preprocess")
    columns = [Column(n, preprocess.input(n, "float64", 1), 0, 1, "float64") for n in model.features]
    preprocess.output(preprocess.matrix(columns, at="features"), "features", "float64", [len(columns)])
    graph = GraphWriter("model")
    answer = emit_boosted(graph, model, "model", graph.input("features", "float64", len(columns)), missing=missing)
    dtype: Any = "float32" if model.single else "float64"
    if model.classes:
        chosen = graph.node("Gather", [graph.constant(labels, at="label"), answer.index], at="label", axis=0)
        label_type: Any = "string" if labels.dtype.kind == "U" else "int64"
        graph.output(chosen, "label", label_type, [])
        graph.output(answer.probability, "probability", dtype, [len(labels)])
        outputs = [
            Output(name="label", dtype=label_type, description="The most probable class.", decided_by="probability"),
            Output(
                name="probability",
                dtype=dtype,
                shape=[len(labels)],
                description="The probability of each class.",
                element_names=[str(c) for c in labels],
            ),
        ]
    else:
        flat = graph.node("Squeeze", [answer.value, graph.constant(np.array([1], np.int64), at="value")], at="value")
        graph.output(flat, "value", dtype, [])
        outputs = [Output(name="value", dtype=dtype, description="The predicted value.")]
    said = fields or {}
    if unknown := [n for n in said if n not in model.features]:
        raise AuthoringError(f"fields: the model reads no column {unknown[0]!r}; it reads {', '.join(model.features)}")
    given = provenance or Provenance()
    return PackageDraft(
        name=name,
        version=version,
        fields=[_field(n, said.get(n, ""), single=model.single) for n in model.features],
        outputs=outputs,
        stages=[DraftStage("preprocess.batch", preprocess.build()), DraftStage("model", graph.build())],
        description=description,
        batching=batching or Batching(),
        tolerances=dict(tolerances or DEFAULT_TOLERANCES),
        provenance=given.model_copy(update={"framework": given.framework or f"{model.library} ({model.objective})"}),
    )


def _labels(model: Boosted, classes: Sequence[str] | Sequence[int] | None) -> np.ndarray:
    if classes is None:
        return np.arange(model.classes, dtype=np.int64)
    if len(classes) != model.classes:
        raise AuthoringError(f"classes: {len(classes)} labels for a model with {model.classes or 'no'} classes")
    labels = np.asarray(classes)
    if labels.dtype.kind not in "Ui":
        raise AuthoringError("classes: give strings or whole numbers, all of one kind")
    return labels if labels.dtype.kind == "U" else labels.astype(np.int64)


def _field(name: str, description: str, *, single: bool) -> RawField:
    limit = _LARGEST_SINGLE if single else None
    return RawField(
        name=name,
        kind="number",
        description=description,
        missing=Missing(rule="nan"),
        minimum=None if limit is None else -limit,
        maximum=limit,
        example=0.0,
    )


def emit_boosted(writer: GraphWriter, model: Boosted, at: str, features: str, *, missing: float = math.nan) -> BoostedAnswer:
    """Write the model's sums, its objective's function and, for a classification, its choice, as the library makes them.

    Args:
        writer: The graph.
        model: The model.
        at: Its path in the pipeline.
        features: float64 [n, k].
        missing: Number that stands for a missing value beside NaN.
    """
    if model.single:
        features = writer.cast(features, "float32", at=at)
        if not math.isnan(missing):
            marked = writer.node("Equal", [features, _number(writer, missing, at, np.float32)], at=at)
            features = writer.node("Where", [marked, _number(writer, math.nan, at, np.float32), features], at=at)
    elif model.categorical:
        features = _shifted_codes(writer, model, at, features)
    sums = emit_trees(writer, features, model.targets, at=at, single=model.single)
    if model.divisor != 1:
        sums = writer.node("Div", [sums, _number(writer, model.divisor, at, np.float64)], at=at)
    answers = _linked(writer, model, at, sums)
    if not model.classes:
        return BoostedAnswer(value=answers)
    if len(model.targets) == 1:
        return _two_classes(writer, model, at, answers)
    return BoostedAnswer(index=writer.node("ArgMax", [answers], at=at, axis=1, keepdims=0), probability=answers)


def _number(writer: GraphWriter, value: float, at: str, dtype: Any) -> str:
    return writer.constant(np.array(value, dtype=dtype), at=at)


def _shifted_codes(writer: GraphWriter, model: Boosted, at: str, features: str) -> str:
    """Cut category codes to whole numbers, as LightGBM does, and add 1; negative ones end at 0 or below, in no set. NaN stays."""
    marks = np.zeros((1, len(model.features)), dtype=np.bool_)
    marks[0, list(model.categorical)] = True
    zero, one = _number(writer, 0.0, at, np.float64), _number(writer, 1.0, at, np.float64)
    below = writer.node("Less", [features, zero], at=at)
    whole = writer.node("Where", [below, writer.node("Ceil", [features], at=at), writer.node("Floor", [features], at=at)], at=at)
    shifted = writer.node("Add", [whole, one], at=at)
    return writer.node("Where", [writer.constant(marks, at=at), shifted, features], at=at)


def _exp(writer: GraphWriter, model: Boosted, at: str, tensor: str) -> str:
    """exp; float32 ones by way of float64 and rounded, which is what a C library's are but for one in a thousand."""
    if not model.single:
        return writer.node("Exp", [tensor], at=at)
    return writer.cast(writer.node("Exp", [writer.cast(tensor, "float64", at=at)], at=at), "float32", at=at)


def _linked(writer: GraphWriter, model: Boosted, at: str, sums: str) -> str:
    dtype = np.float32 if model.single else np.float64
    if model.link == "exp":
        return _exp(writer, model, at, sums)
    if model.link == "square":
        return writer.node("Mul", [writer.node("Mul", [writer.node("Sign", [sums], at=at), sums], at=at), sums], at=at)
    if model.link == "logistic":
        slope = _number(writer, -model.slope, at, dtype)
        turned = writer.node("Mul", [sums, slope], at=at)
        if model.single:
            turned = writer.node("Min", [turned, _number(writer, _SINGLE_LIMIT, at, dtype)], at=at)
        one = _number(writer, 1.0, at, dtype)
        return writer.node("Div", [one, writer.node("Add", [_exp(writer, model, at, turned), one], at=at)], at=at)
    if model.link == "softmax":
        axis = writer.constant(np.array([1], dtype=np.int64), at=at)
        powers = _exp(writer, model, at, writer.node("Sub", [sums, writer.node("ReduceMax", [sums, axis], at=at)], at=at))
        # XGBoost adds in double and rounds the total.
        wide = writer.cast(powers, "float64", at=at) if model.single else powers
        total = writer.node("ReduceSum", [wide, axis], at=at)
        return writer.node("Div", [powers, writer.cast(total, "float32", at=at) if model.single else total], at=at)
    return sums


def _two_classes(writer: GraphWriter, model: Boosted, at: str, second: str) -> BoostedAnswer:
    dtype = np.float32 if model.single else np.float64
    first = writer.node("Sub", [_number(writer, 1.0, at, dtype), second], at=at)
    # XGBoost's classifier asks for more than one half, LightGBM's for more than the other class has.
    other = _number(writer, 0.5, at, dtype) if model.single else first
    chosen = writer.node("Greater", [second, other], at=at)
    axis = writer.constant(np.array([1], dtype=np.int64), at=at)
    index = writer.cast(writer.node("Squeeze", [chosen, axis], at=at), "int64", at=at)
    return BoostedAnswer(index=index, probability=writer.concat([first, second], at=at))
