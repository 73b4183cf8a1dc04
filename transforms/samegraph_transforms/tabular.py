"""From a fitted scikit-learn pipeline and its training frame to a model package.

    draft = from_sklearn(pipeline, X_train, name="penguins", version=1)
    print_fields(draft)                                   # what callers may send, as inferred; override what should differ
    samples = capture(pipeline, X_train, edge_rows(pipeline, X_train, draft), draft=draft)
    pack(draft, samples, "models")

A pipeline that begins with a text vectorizer was fitted on texts, not on a frame: `X_train` is then the Series or list of them.

The graphs compute in float64 from the wire to the answer, as the pipeline does; where an estimator rounds to float32 (trees), the
graph rounds at the same place. A step that has no exact graph raises `UnsupportedStep` with its path: nothing is approximated.

Training extras are needed: `pip install "samegraph-transforms[train]"`.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Final, TypeAlias, cast

import numpy as np
import pandas as pd
import sklearn
from rich.console import Console
from rich.table import Table
from scipy import sparse as scipy_sparse
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import NotFittedError, check_is_fitted

from ._sklearn_fields import (
    ColumnFacts,
    FieldPlan,
    Instance,
    Reference,
    Scalar,
    choose_sentinel,
    inspect_column,
    plan_field,
    quiet,
    raw_field,
)
from ._sklearn_graph import NO_NULL, Block, Column, GraphWriter
from ._sklearn_models import (
    OutputNames,
    answer_dtype,
    build_model,
    class_table,
    emit_features,
    is_boosted,
    reference_features,
    reference_scores,
    refuse_unsupported,
)
from ._sklearn_site import StepContext
from ._sklearn_steps import emit_step
from ._sklearn_text import TEXT_TENSOR, item_graph, ragged_lengths, reads_text, refuse_costly, text_columns
from .draft import DraftStage, GoldenSample, PackageDraft
from .errors import AuthoringError, UnsupportedStep
from .manifest import DEFAULT_TOLERANCES, Batching, Provenance, RawField, Tolerance

__all__ = ["OutputNames", "capture", "describe_fields", "edge_rows", "from_sklearn", "print_fields", "rows_of", "varied_rows"]

#: Training rows that are sent through the pipeline to see what each step makes of them.
_SAMPLE_ROWS: Final = 200
#: A limit this far out says what the training code can compute with, not what makes sense.
_HUGE: Final = 1e15
#: What the open length of sparse features is called when their elements are those scipy keeps.
AS_SCIPY: Final = "elements as scipy"
#: What a pipeline was fitted on: a frame, or texts.
Training: TypeAlias = pd.DataFrame | pd.Series | Sequence[str]
_LIBRARIES: Final = ("scikit-learn", "pandas", "numpy", "scipy", "onnx", "onnxruntime", "onnxruntime-gpu")


# --- authoring --------------------------------------------------------------------------------------------------------


def from_sklearn(
    pipeline: Any,
    frame: Training,
    *,
    name: str,
    version: int,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    description: str = "",
    names: OutputNames | None = None,
    batching: Batching | None = None,
    tolerances: Mapping[str, Tolerance] | None = None,
    provenance: Provenance | None = None,
) -> PackageDraft:
    """Make a package draft that computes what `pipeline` computes.

    Args:
        pipeline: A fitted Pipeline, ColumnTransformer pipeline, search (its best estimator is taken) or bare estimator.
        frame: The raw training frame it was fitted on; kinds, values, ranges and missing rules are read from it. Texts, as a Series or a
            list, for a pipeline that begins with a text vectorizer; the field is called what the Series is, or `text`.
        name: Model name.
        version: Model version, >= 1.
        overrides: Column → attributes of `RawField` to use in place of what was inferred: `description`, `missing`, `allowed`,
            `minimum`, `maximum`, `required`, `default`, `kind`, `max_length`, `known`, `example`. What training would refuse cannot be
            let in. What training saw is added to a description.
        description: A sentence about the model.
        names: What outputs and the boundary value are called.
        batching: Hints for the server.
        tolerances: Promises per device profile.
        provenance: Facts about the training; library versions are filled in.

    Returns:
        A draft with stages `preprocess.batch` (raw columns → `features`, float64 [n, k]) and `model`; `preprocess.item` before them where
        there are texts. Classifiers answer `label` and `probability` (or `score`, without `predict_proba`), regressors `value`. A model
        that computes on a text vectorizer's sparse rows gets them as such: `features` [n, elements] and `features.columns`.

    Raises:
        UnsupportedStep: A step, parameter or column has no exact graph; `.step` is its path.
        AuthoringError: The frame does not fit the pipeline, or an override is not possible.
    """
    names = names or OutputNames()
    frame = _as_frame(frame)
    author = _Author(pipeline, frame, overrides or {}, names)
    batching = batching or Batching()
    if author.ragged and not batching.ragged:
        batching = batching.model_copy(update={"ragged": author.ragged})
    return PackageDraft(
        name=name,
        version=version,
        fields=author.fields,
        outputs=author.outputs,
        stages=author.stages,
        description=description,
        vectorizers=[one.vectorizer for one in author.context.counted],
        assets={one.vectorizer.file.removeprefix("assets/"): one.file for one in author.context.counted},
        batching=batching,
        tolerances=dict(tolerances or DEFAULT_TOLERANCES),
        provenance=_provenance(provenance or Provenance(), frame),
    )


class _Author:
    """The steps from a fitted pipeline to fields, outputs and stages."""

    def __init__(self, pipeline: Any, frame: pd.DataFrame, overrides: Mapping[str, Mapping[str, Any]], names: OutputNames) -> None:
        self.names, self.overrides = names, overrides
        self.steps, (self.at, self.estimator) = _taken_apart(pipeline)
        refuse_unsupported(self.estimator, self.at)
        self.reference = reference_of(pipeline, frame)
        self._refuse_bad_names()
        self.sentinel = choose_sentinel(frame, list(self.reference.facts))
        nullable = self.reference.nullable()
        self.plans = {
            name: plan_field(facts, nullable=nullable[name], sentinel=self.sentinel, override=overrides.get(name, {}))
            for name, facts in self.reference.facts.items()
        }
        preprocess, width, sparse = self._preprocess()
        model, self.outputs = build_model(self.estimator, self.at, width, names, rows=self.rows, sparse=sparse)
        counted = self.context.counted
        self.stages = [DraftStage("preprocess.batch", preprocess), DraftStage("model", model)]
        if counted:
            self.stages.insert(0, DraftStage("preprocess.item", item_graph(counted)))
        self.fields = self._fields()
        refuse_costly(self.fields, counted)
        self.ragged = ragged_lengths(counted, self.reference.training)

    def _refuse_bad_names(self) -> None:
        unknown = [n for n in self.overrides if n not in self.reference.facts]
        if unknown:
            raise AuthoringError(
                f"override of {unknown[0]!r}: the pipeline reads no such column; it reads {', '.join(self.reference.facts)}"
            )
        answers = (
            [self.names.label, self.names.probability, self.names.score] if hasattr(self.estimator, "classes_") else [self.names.value]
        )
        taken = [n for n in (*answers, self.names.features, self.names.columns) if n in self.reference.facts]
        if taken:
            raise AuthoringError(f"the column {taken[0]!r} has the name of an output; call the output otherwise: names=OutputNames(...)")

    def _preprocess(self) -> tuple[Any, int, bool]:
        """Write the graph from raw columns to the features matrix; return it, the matrix's width, and whether it is made of sparse rows."""
        self.context = StepContext(GraphWriter("preprocess"), self.sentinel)
        inputs = {name: _declare_input(self.context, plan) for name, plan in self.plans.items()}
        data: Any = self.reference.given(self.reference.training[self.reference.order].iloc[:_SAMPLE_ROWS])
        block: Block = [inputs.get(name) or _unused(name) for name in self.reference.order]
        for at, step in self.steps:
            block, data = emit_step(self.context, step, at, block, data)
        block = emit_features(self.context, self.estimator, self.at, block, data)
        self.rows = None if scipy_sparse.issparse(data) else reference_features(self.estimator, data)
        if not block:
            raise AuthoringError("the pipeline gives no feature to its estimator; nothing depends on the input")
        writer = self.context.writer
        sparse = scipy_sparse.issparse(data) and any(c.tensor in writer.sparse for c in block)
        if sparse:
            self._refuse_sparse()
            found = writer.elements(block, at=self.names.features)
            writer.output(found.values, self.names.features, "float64", [AS_SCIPY if found.as_scipy else "elements"])
            writer.output(found.columns, self.names.columns, "int64", ["elements"])
        else:
            writer.output(writer.matrix(block, at=self.names.features), self.names.features, "float64", [len(block)])
        self._refuse_text_as_category()
        return writer.build(), len(block), sparse

    def _refuse_sparse(self) -> None:
        if is_boosted(self.estimator):
            raise UnsupportedStep(
                f"{self.at} ({type(self.estimator).__name__}) was trained on sparse rows, of which it may take what is not there "
                "for missing; it has an exact graph on tables only",
                step=self.at,
            )

    def _refuse_text_as_category(self) -> None:
        read = {name for node in self.context.writer.nodes for name in node.input if name.startswith(TEXT_TENSOR)}
        for name in sorted(read):
            raise UnsupportedStep(
                f"column {name.removeprefix(TEXT_TENSOR)!r} is read by a text vectorizer and by another step; give the other step a "
                "copy of it under another name",
                step=f"columns.{name.removeprefix(TEXT_TENSOR)}",
            )

    def _fields(self) -> list[RawField]:
        closed = self.context.closed
        open_numbers = [n for n, p in self.plans.items() if p.kind in ("number", "integer") and n not in closed]
        floats = [n for n in open_numbers if self.reference.facts[n].kind == "number"]
        within = self.reference.refused_limits({n: ends for n, ends in self.context.limits.items() if n in open_numbers})
        limit = self.reference.magnitude_limit(floats, within)
        return [
            raw_field(
                plan,
                closed=closed.get(name),
                limit=limit if name in floats else None,
                override=self.overrides.get(name, {}),
                within=within.get(name, (-math.inf, math.inf)),
            )
            for name, plan in self.plans.items()
        ]


def _unused(name: str) -> Column:
    """Stand for a training column that no step may read; `_used` found that none does."""
    return Column(name, f"/unused/{name}", 0, 1, "float64")


def _declare_input(context: StepContext, plan: FieldPlan) -> Column:
    """Declare one raw field as graph input and return it as a column whose missing values are NaN or the sentinel."""
    writer, name = context.writer, plan.facts.name
    if plan.kind == "text":  # the item stage counts it, and it ends there
        return Column(name, f"{TEXT_TENSOR}{name}", 0, 1, "string", field=name)
    dtype: Any = {"number": "float64", "boolean": "bool", "string": "string"}.get(plan.kind) or (
        "float64" if plan.missing.rule == "nan" else "int64"
    )
    tensor = writer.input(name, dtype, 1)
    if plan.missing.rule == "companion":
        missing = writer.input(f"{name}__missing", "bool", 1)
        if dtype == "string":
            tensor = writer.node("Where", [missing, writer.constant([context.sentinel], at=name), tensor], at=name)
        else:
            as_float = tensor if dtype == "float64" else writer.cast(tensor, "float64", at=name)
            nan = writer.constant(np.array(np.nan), at=name)
            tensor, dtype = writer.node("Where", [missing, nan, as_float], at=name), "float64"
    return Column(name, tensor, 0, 1, dtype, field=name, null=plan.facts.null if plan.null_reaches_graph else NO_NULL)


def _taken_apart(pipeline: Any) -> tuple[list[tuple[str, Any]], tuple[str, Any]]:
    """Return the transformers, each with its path, and the estimator with its own.

    Raises:
        UnsupportedStep: There is no estimator at the end.
        AuthoringError: It is not fitted.
    """
    try:
        check_is_fitted(pipeline)
    except (NotFittedError, TypeError) as error:
        raise AuthoringError(f"the {type(pipeline).__name__} is not a fitted scikit-learn estimator; call fit first") from error
    if isinstance(pipeline, BaseSearchCV):
        return _taken_apart(pipeline.best_estimator_)
    if not isinstance(pipeline, Pipeline):
        return [], (type(pipeline).__name__, pipeline)
    *transformers, (last_name, last) = pipeline.steps
    steps = list(transformers)
    if isinstance(last, Pipeline):
        inner, (at, estimator) = _taken_apart(last)
        return steps + [(f"{last_name}.{n}", s) for n, s in inner], (f"{last_name}.{at}", estimator)
    if not hasattr(last, "predict"):
        raise UnsupportedStep(
            f"{last_name} ({type(last).__name__}) is the last step and does not predict; end the pipeline with an estimator", step=last_name
        )
    return steps, (last_name, last)


def _as_frame(given: Training) -> pd.DataFrame:
    """Return the training data as a frame; texts become its only column."""
    if isinstance(given, pd.Series):
        return given.to_frame(name=str(given.name) if given.name is not None else "text")
    if isinstance(given, list | tuple) and all(isinstance(text, str) for text in given):
        return pd.DataFrame({"text": pd.Series(list(given), dtype=object)})
    return cast(pd.DataFrame, given)


def reference_of(pipeline: Any, frame: Training) -> Reference:
    """Return the training code as a function of raw instances, its columns inspected.

    Raises:
        AuthoringError: The frame is empty or lacks columns the pipeline was fitted on.
    """
    steps, (_, estimator) = _taken_apart(pipeline)
    frame = _as_frame(frame)
    if not isinstance(frame, pd.DataFrame) or frame.empty:
        raise AuthoringError("from_sklearn needs the raw training frame (a pandas DataFrame with at least one row)")
    order = _column_names([*(step for _, step in steps), estimator], frame)
    lacking = [n for n in order if n not in frame.columns]
    if lacking:
        raise AuthoringError(
            f"the frame lacks {', '.join(map(repr, lacking))}, on which the pipeline was fitted; give the raw training frame"
        )
    twice = sorted(set(frame.columns[frame.columns.duplicated()]) & set(order))
    if twice:
        raise AuthoringError(f"the frame has several columns called {twice[0]!r}; rename them")
    first = steps[0][1] if steps else None
    reference = Reference(pipeline, frame.reset_index(drop=True), order, texts=text_columns(first, order), alone=reads_text(first))
    reference.use(_used(first, order))
    return reference


def _column_names(steps: Sequence[Any], frame: pd.DataFrame) -> list[str]:
    """Return the columns the pipeline was fitted on, in order."""
    if reads_text(steps[0]):
        if len(frame.columns) != 1:
            raise AuthoringError(
                f"the pipeline begins with a text vectorizer, which was fitted on texts; give those (a Series or a list), not a frame of "
                f"{len(frame.columns)} columns"
            )
        return [str(frame.columns[0])]
    for step in steps:
        found = getattr(step, "feature_names_in_", None)
        if found is not None:
            return [str(n) for n in found]
        if getattr(step, "n_features_in_", None) is not None:
            raise AuthoringError(
                "the pipeline was fitted on an array without column names; fit it on a pandas DataFrame whose columns are called what "
                "callers should send"
            )
    return [str(n) for n in frame.columns]


def _used(first: Any, order: Sequence[str]) -> list[str]:
    """Return the columns that anything reads; a ColumnTransformer may drop some, and those are not asked of callers."""
    while isinstance(first, Pipeline):
        first = first.steps[0][1]
    indices = getattr(first, "_transformer_to_input_indices", None)
    if indices is None:
        return list(order)
    dropped = {name for name, part, _ in first.transformers_ if isinstance(part, str) and part == "drop"}
    read = {i for name, places in indices.items() if name not in dropped and name in first.named_transformers_ for i in places}
    return [n for i, n in enumerate(order) if i in read]


def _provenance(given: Provenance, frame: pd.DataFrame) -> Provenance:
    libraries = {name: metadata.version(name) for name in _LIBRARIES if _installed(name)}
    filled = {
        "framework": given.framework or f"scikit-learn {sklearn.__version__}",
        "libraries": {**libraries, **given.libraries},
        "python": given.python or platform.python_version(),
        "machine": given.machine or platform.machine(),
        "data": given.data or f"{len(frame):,} rows, {len(frame.columns)} columns",
    }
    return given.model_copy(update=filled)


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


# --- showing ----------------------------------------------------------------------------------------------------------


def describe_fields(fields: PackageDraft | Sequence[RawField]) -> Table:
    """Return the raw fields as a rich table: what callers may send and what becomes of missing and unseen values."""
    table = Table(title="Raw fields", title_justify="left", header_style="bold", show_lines=False)
    for heading in ("field", "kind", "missing", "accepted", "training", "example"):
        table.add_column(heading, overflow="fold")
    for field in fields.fields if isinstance(fields, PackageDraft) else fields:
        table.add_row(field.name, field.kind, _missing_words(field), _accepted_words(field), field.description, _shown(field.example))
    return table


def print_fields(fields: PackageDraft | Sequence[RawField], console: Console | None = None) -> None:
    """Print `describe_fields` to `console`, or to the standard output."""
    (console or Console()).print(describe_fields(fields))


def _missing_words(field: RawField) -> str:
    rule = field.missing.rule
    if rule == "sentinel" and not (isinstance(field.missing.sentinel, str) and field.missing.sentinel.startswith("\ue000")):
        words = f"null becomes {_shown(field.missing.sentinel)}"
    else:
        words = "null is refused" if rule == "refuse" else "null is handled as in training"
    return words if field.required else f"{words}; may be left out ({_shown(field.default)})"


def _accepted_words(field: RawField) -> str:
    if field.allowed is not None:
        return "only " + ", ".join(map(_shown, field.allowed[:12])) + (f", … ({len(field.allowed)})" if len(field.allowed) > 12 else "")
    if field.minimum is not None or field.maximum is not None:
        low, high = ("…" if v is None else f"{v:g}" for v in (field.minimum, field.maximum))
        return f"any up to ±{high}" if field.maximum is not None and field.maximum >= _HUGE else f"{low} to {high}"
    return "any"


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


# --- golden samples ---------------------------------------------------------------------------------------------------


def rows_of(pipeline: Any, frame: Training, rows: Training) -> list[dict[str, Scalar | None]]:
    """Return frame rows as the instances a caller would send: plain values, None where missing.

    Args:
        pipeline: The fitted pipeline.
        frame: Its training frame.
        rows: Rows with the same columns and types.
    """
    return reference_of(pipeline, frame).instances(_as_frame(rows))


def capture(
    pipeline: Any,
    frame: Training,
    rows: pd.DataFrame | Sequence[Instance] | Mapping[str, Instance],
    *,
    draft: PackageDraft,
    rows_per_request: int = 1,
    prefix: str = "row",
) -> list[GoldenSample]:
    """Ask the *training* code for the answers to raw requests.

    Args:
        pipeline: The fitted pipeline.
        frame: Its training frame, which says which types the pipeline saw.
        rows: Frame rows, or raw instances (None is missing), or instances by name; a name becomes the sample's.
        draft: The package the requests are for.
        rows_per_request: Instances per request; named instances always go alone.
        prefix: Start of the names of unnamed samples.

    Returns:
        One sample per request: a V1 JSON body, the pipeline's outputs, and its `features`. The pipeline is asked once, for all rows.

    Raises:
        AuthoringError: The training code does not answer a row; the message names it.
    """
    reference = reference_of(pipeline, frame)
    if isinstance(rows, Mapping):
        groups = [(key, [row]) for key, row in rows.items()]
    else:
        instances: Sequence[Instance] = reference.instances(rows) if isinstance(rows, pd.DataFrame) else rows
        chunks = [instances[i : i + rows_per_request] for i in range(0, len(instances), rows_per_request)]
        groups = [(f"{prefix}-{i:04d}", list(chunk)) for i, chunk in enumerate(chunks)]
    together = [instance for _, group in groups for instance in group]
    try:
        outputs, values = reference_answers(reference, draft.fields, together, _names_of(draft), _elements_of(draft))
    except (ValueError, TypeError) as error:
        raise _unanswered(reference, draft, groups, error) from error
    elements = _elements_of(draft)
    samples, start = [], 0
    for key, group in groups:
        own = slice(start, start + len(group))
        # Sparse rows differ in length, so each is asked for alone.
        mine = {k: v[own] for k, v in values.items()} if elements is None else _sparse_values(reference, draft, group, elements)
        samples.append(_sample(draft, key, group, {k: v[own] for k, v in outputs.items()}, mine))
        start = own.stop
    return samples


def _sparse_values(reference: Reference, draft: PackageDraft, group: Sequence[Instance], elements: str) -> dict[str, np.ndarray]:
    if elements != AS_SCIPY or len(group) != 1:
        return {}
    return reference_answers(reference, draft.fields, group, _names_of(draft), elements)[1]


def _names_of(draft: PackageDraft) -> OutputNames:
    """Return the names the draft's graphs carry."""
    features = draft.stages[-1].model.graph.input[0].name
    label = next((o for o in draft.outputs if o.decided_by is not None), None)
    if label is None or label.decided_by is None:
        return OutputNames(label=draft.outputs[0].name, value=draft.outputs[0].name, features=features)
    return OutputNames(label=label.name, probability=label.decided_by, score=label.decided_by, features=features)


def _elements_of(draft: PackageDraft) -> str | None:
    """Return what the open length of a draft's sparse features is called; None when they are a table."""
    preprocess = next(stage.model for stage in draft.stages if stage.name == "preprocess.batch")
    return preprocess.graph.output[0].type.tensor_type.shape.dim[1].dim_param or None


def _sample(
    draft: PackageDraft, key: str, instances: Sequence[Instance], outputs: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]
) -> GoldenSample:
    return GoldenSample(
        name=key,
        path=f"/v1/models/{draft.name}:predict",
        headers={"content-type": "application/json"},
        body=json.dumps({"instances": list(instances)}, ensure_ascii=False, allow_nan=False).encode(),
        outputs=outputs,
        values=values,
    )


def _unanswered(
    reference: Reference, draft: PackageDraft, groups: Sequence[tuple[str, Sequence[Instance]]], error: Exception
) -> AuthoringError:
    """Return the error that names the first request the training code does not answer alone."""
    for key, group in groups:
        try:
            reference_answers(reference, draft.fields, group, _names_of(draft), _elements_of(draft))
        except (ValueError, TypeError) as alone:
            request = json.dumps(list(group), ensure_ascii=False)[:300]
            return AuthoringError(f"the training code does not answer {key!r} ({request}): {alone}")
    return AuthoringError(f"the training code does not answer the requests together: {error}")


def reference_answers(
    reference: Reference, fields: Sequence[RawField], instances: Sequence[Instance], names: OutputNames, elements: str | None = None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the training code's outputs for raw instances, and the values at the stage boundary.

    `elements` is what the open length of the draft's features is called, None when they are a table.
    """
    frame = reference.frame(instances, fields)
    with quiet():
        steps, (at, estimator) = _taken_apart(reference.pipeline)
        data: Any = reference.given(frame)
        frame = data
        for _, step in steps:
            data = data if step is None or step == "passthrough" else step.transform(data)
        values = _reference_values(estimator, data, names, elements)
        if not hasattr(estimator, "classes_"):
            return {names.value: np.asarray(reference.pipeline.predict(frame), dtype=answer_dtype(estimator))}, values
        dtype = class_table(estimator, at)[0].dtype
        label = np.asarray(reference.pipeline.predict(frame)).astype(np.str_ if dtype.kind == "U" else dtype)
        scores = reference_scores(estimator, reference.pipeline, frame, names)
    return {names.label: label, **scores}, values


def _reference_values(estimator: Any, data: Any, names: OutputNames, elements: str | None) -> dict[str, np.ndarray]:
    """Return the values at the stage boundary: the features matrix, or a single sparse row as scipy keeps it."""
    if elements is None:
        return {names.features: reference_features(estimator, data)}
    if elements != AS_SCIPY or data.shape[0] != 1:
        return {}
    row = scipy_sparse.csr_array(data)
    return {names.features: row.data.astype(np.float64)[None], names.columns: row.indices.astype(np.int64)[None]}


#: Texts that vectorizers read differently from what people expect; every text field gets them as edge rows.
EDGE_TEXTS: Final = {
    "spaces": " \t\r\n\u00a0\u2003 ",
    "dotted-capital-i": "İSTANBUL ISPARTA ıi",
    "sharp-s": "STRASSE Straße ẞ ﬁne",
    "combining": "cafe\u0301 nai\u0308ve a\u0300\u0323 \u0301",
    "emoji": "👩\u200d👩\u200d👧 👍🏽 good😀day",
    "zero-width": "go\u200bod go\u00adod go\ufeffod go\u2060od",
    "scripts": "это хорошо 这部电影 東京タワー ภาษาไทย हिन्दी عربي",
    "digits": "٣٤ ४५ ① ½ ² 1_000 x2",
    "control": "a\x00b a\x1fb a\x85b",
    "astral": "𝐁𝐎𝐋𝐃 𝔉𝔯𝔞𝔨 \U000e0041 \uffff",
    "ligature-long": "\ufdfa\ufdfb",
    "twice-the-same": "word word word word Word WORD",
    "long": "the same words and again " * 200,
}
_ODD: Final = ("\u0301", "\u200b", "İ", "ß", "😀", "'s", "-", "_", "\u00a0", "é", "ﬁ", "٣")


# --- rows at the edges ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Edges:
    """Produces the edge values of one field."""

    field: RawField
    low: float | int | None
    high: float | int | None

    def __iter__(self) -> Iterator[tuple[str, Scalar | None]]:
        field = self.field
        if field.missing.rule != "refuse":
            yield "null", None
        if field.allowed is not None:
            yield "first-allowed", field.allowed[0]
            yield "last-allowed", field.allowed[-1]
        elif field.kind == "boolean":
            yield "true", True
            yield "false", False
        elif field.kind in ("string", "text"):
            yield from self._strings()
            if field.kind == "text":
                yield from EDGE_TEXTS.items()
        else:
            yield from self._numbers()

    def _strings(self) -> Iterator[tuple[str, Scalar]]:
        limit = self.field.max_length
        for what, value in (
            ("empty", ""),
            ("unseen", "never seen in training"),
            ("non-ascii", "Ünïcødé 東京 🙂"),
            ("space", f" {self.field.example} "),
        ):
            if limit is None or len(value) <= limit:
                yield what, value
        if limit is not None:
            yield "longest", "長" * limit

    def _numbers(self) -> Iterator[tuple[str, Scalar]]:
        if self.low is None or self.high is None:
            return
        span = self.high - self.low or 1
        cast: Any = int if self.field.kind == "integer" else float
        wanted = {"min": self.low, "max": self.high, "zero": 0, "far-below": self.low - 10 * span, "far-above": self.high + 10 * span}
        if self.field.kind == "number":
            wanted["tiny"] = 5e-324
        for what, value in wanted.items():
            if (self.field.minimum is None or value >= self.field.minimum) and (self.field.maximum is None or value <= self.field.maximum):
                yield what, cast(value)
        for what, bound in (("least-accepted", self.field.minimum), ("most-accepted", self.field.maximum)):
            if bound is not None:
                yield what, cast(bound)


def edge_rows(pipeline: Any, frame: Training, draft: PackageDraft) -> dict[str, dict[str, Scalar | None]]:
    """Return one instance for every edge of every field, by a name that says which.

    A typical training row is changed in one field: null where it may be missing; least, largest, far outside and tiny numbers; empty,
    unseen, non-ASCII and padded strings; both booleans; the ends of a closed set; and one row with everything missing that may be.

    Args:
        pipeline: The fitted pipeline.
        frame: Its training frame.
        draft: The package.
    """
    reference = reference_of(pipeline, frame)
    typical = {f.name: cast(Scalar, f.example) for f in draft.fields}
    rows: dict[str, dict[str, Scalar | None]] = {"edge-typical": {**typical}}
    for field in draft.fields:
        facts = inspect_column(field.name, reference.training[field.name])
        for what, value in _Edges(field, facts.low, facts.high):
            rows[f"edge-{field.name}-{what}"] = {**typical, field.name: value}
    nullable = {f.name: None for f in draft.fields if f.missing.rule != "refuse"}
    if len(nullable) > 1:
        rows["edge-everything-missing"] = {**typical, **nullable}
    return rows


def varied_rows(
    pipeline: Any, frame: Training, draft: PackageDraft, rows: Training, *, count: int, seed: int
) -> list[dict[str, Scalar | None]]:
    """Return `count` instances near real rows: seeded noise on numbers, other known and unseen strings, and nulls.

    About one field in three of each row is changed, always to something the signature accepts.

    Args:
        pipeline: The fitted pipeline.
        frame: Its training frame.
        draft: The package.
        rows: Real rows to start from.
        count: How many instances.
        seed: Of the noise.
    """
    reference = reference_of(pipeline, frame)
    generator = np.random.default_rng(seed)
    chosen = reference.instances(_as_frame(rows).iloc[generator.integers(0, len(rows), size=count)])
    for instance in chosen:
        for field in draft.fields:
            if generator.random() < 1 / 3:
                instance[field.name] = _varied(reference.facts[field.name], field, instance[field.name], generator)
    return chosen


def _varied(facts: ColumnFacts, field: RawField, value: Scalar | None, generator: np.random.Generator) -> Scalar | None:
    """Return another value for one field that its signature accepts."""
    if field.missing.rule != "refuse" and generator.random() < 1 / 4:
        return None
    if field.allowed is not None:
        return field.allowed[int(generator.integers(len(field.allowed)))]
    if field.kind == "boolean":
        return bool(generator.random() < 1 / 2)
    if field.kind == "text":
        return _varied_text(str(value), generator)[: field.max_length]
    if field.kind == "string":
        known = field.known or [str(field.example)]
        unseen = generator.random() < 1 / 5 and field.max_length is None
        return f"unseen-{generator.integers(1000)}" if unseen else known[int(generator.integers(len(known)))]
    return _varied_number(facts, field, value, generator)


def _varied_text(text: str, generator: np.random.Generator) -> str:
    """Return a text with some of its words in capitals, doubled, left out, or followed by characters nobody trained on."""
    words = []
    for word in text.split(" "):
        change = generator.integers(8)
        words += [[word.upper()], [word, word], [], [word + _ODD[int(generator.integers(len(_ODD)))]]][change] if change < 4 else [word]
    return " ".join(words)


def _varied_number(facts: ColumnFacts, field: RawField, value: Scalar | None, generator: np.random.Generator) -> Scalar:
    assert facts.low is not None
    assert facts.high is not None
    start = facts.low + (facts.high - facts.low) * generator.random() if value is None else float(value)
    noisy = start + generator.normal() * (facts.high - facts.low) / 10
    least, most = (-math.inf if field.minimum is None else field.minimum), (math.inf if field.maximum is None else field.maximum)
    noisy = min(max(noisy, least), most)
    return round(noisy) if field.kind == "integer" else float(noisy)
