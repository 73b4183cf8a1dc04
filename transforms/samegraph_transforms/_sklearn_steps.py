"""Fitted scikit-learn transformers as graph nodes, each computing in float64 exactly what `transform` computes.

Every step is written from its fitted attributes; encoders are read out by asking them (`transform` of every category), so that
dropped, infrequent, missing and unknown categories come out as the encoder itself maps them. What has no exact graph raises
`UnsupportedStep`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.compose import ColumnTransformer
from sklearn.feature_selection import SelectorMixin
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import (
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    RobustScaler,
    StandardScaler,
    TargetEncoder,
)
from sklearn.utils import _safe_indexing

from ._sklearn_fields import quiet
from ._sklearn_graph import NO_NULL, Block, Column
from ._sklearn_numbers import NUMBER_EMITTERS
from ._sklearn_site import Emit, Site, StepContext, clipped, matrix_of
from ._sklearn_text import SPARSE_EMITTERS, TEXT_EMITTERS, scaled_rows

#: A value no training frame holds; encoders show with it what they do with unknown categories.
_UNSEEN: Final = "\ue000unseen"


def emit_step(context: StepContext, step: Any, at: str, block: Block, data: Any) -> tuple[Block, Any]:
    """Write one fitted transformer.

    Args:
        context: Shared state.
        step: The transformer, or "passthrough".
        at: Its path in the pipeline.
        block: Its input columns.
        data: The same columns' training rows as the step sees them.

    Returns:
        Its output columns, and the training rows after it.

    Raises:
        UnsupportedStep: It has no exact graph.
    """
    if step is None or (isinstance(step, str) and step == "passthrough"):
        return block, data
    site = Site(context, step, at, data)
    on_sparse = SPARSE_EMITTERS.get(type(step)) if any(c.tensor in context.writer.sparse for c in block) else None
    emit = on_sparse or _EMITTERS.get(type(step)) or (_emit_selector if isinstance(step, SelectorMixin) else None)
    if emit is None:
        raise site.unsupported(f"this transformer has no exact graph; supported are {', '.join(supported_steps())}")
    result = emit(site, block)
    with quiet():
        after = step.transform(data)
    _check_against_training(site, result, after)
    return result, after


def supported_steps() -> list[str]:
    """Names of the transformers that have an exact graph."""
    return [*sorted(t.__name__ for t in _EMITTERS), "feature selectors", "'passthrough'", "'drop'"]


def _check_against_training(site: Site, block: Block, after: Any) -> None:
    """Hold the graph's columns to what training made of the same rows: their number, and float64."""
    if after.shape[1] != len(block):
        raise site.unsupported(f"gives {after.shape[1]} columns in training, but its graph gives {len(block)}")
    for dtype in after.dtypes if isinstance(after, pd.DataFrame) else [after.dtype]:
        if getattr(dtype, "kind", "") == "f" and dtype.itemsize != 8:
            raise site.unsupported(f"gives {dtype}, in which later steps would compute; leave its dtype at float64")


# --- composites -------------------------------------------------------------------------------------------------------


def _emit_inside(site: Site, step: Any, name: str, block: Block, data: Any) -> tuple[Block, Any]:
    """Write a step inside another one."""
    return emit_step(site.context, step, f"{site.at}.{name}", block, data)


def _emit_pipeline(site: Site, block: Block) -> Block:
    data = site.data
    for name, part in site.step.steps:
        block, data = _emit_inside(site, part, name, block, data)
    return block


def _emit_column_transformer(site: Site, block: Block) -> Block:
    joined: Block = []
    for name, part, chosen in site.step.transformers_:
        indices = list(site.step._transformer_to_input_indices[name])
        if indices and not (isinstance(part, str) and part == "drop"):
            data = _safe_indexing(site.data, indices[0] if isinstance(chosen, str | int) else indices, axis=1)
            joined += _weighted(site, name, _emit_inside(site, part, name, [block[i] for i in indices], data)[0])
    return joined


def _weighted(site: Site, name: str, block: Block) -> Block:
    """Multiply what one part of a composite gave with its weight, if it has one."""
    weight = (site.step.transformer_weights or {}).get(name)
    if weight is None or not block:
        return block
    if any(c.tensor in site.writer.sparse for c in block):
        return scaled_rows(site, block, site.number(weight))
    return site.writer.columns_of(site.node("Mul", matrix_of(site, block), site.number(weight)), block)


def _emit_feature_union(site: Site, block: Block) -> Block:
    joined: Block = []
    for name, part in site.step.transformer_list:
        if not (isinstance(part, str) and part == "drop"):
            joined += _weighted(site, name, _emit_inside(site, part, name, block, site.data)[0])
    return joined


def _emit_selector(site: Site, block: Block) -> Block:
    return [block[i] for i in site.step.get_support(indices=True)]


# --- scalers ----------------------------------------------------------------------------------------------------------


def _divide(site: Site, tensor: str, scale: Any) -> str:
    """Divide as scalers do: dense data by the scale, sparse data times its reciprocal, which rounds differently."""
    if sparse.issparse(site.data):
        return site.node("Mul", tensor, site.number(1.0 / scale))
    return site.node("Div", tensor, site.number(scale))


def _emit_standard_scaler(site: Site, block: Block) -> Block:
    tensor, step = matrix_of(site, block), site.step
    if step.with_mean:
        tensor = site.node("Sub", tensor, site.number(step.mean_))
    if step.with_std:
        tensor = _divide(site, tensor, step.scale_)
    return site.writer.columns_of(tensor, block) if step.with_mean or step.with_std else block


def _emit_robust_scaler(site: Site, block: Block) -> Block:
    tensor, step = matrix_of(site, block), site.step
    if step.with_centering:
        tensor = site.node("Sub", tensor, site.number(step.center_))
    if step.with_scaling:
        tensor = _divide(site, tensor, step.scale_)
    return site.writer.columns_of(tensor, block) if step.with_centering or step.with_scaling else block


def _emit_max_abs_scaler(site: Site, block: Block) -> Block:
    tensor = _divide(site, matrix_of(site, block), site.step.scale_)
    return site.writer.columns_of(clipped(site, tensor, -1.0, 1.0) if getattr(site.step, "clip", False) else tensor, block)


def _emit_min_max_scaler(site: Site, block: Block) -> Block:
    scaled = site.node("Mul", matrix_of(site, block), site.number(site.step.scale_))
    tensor = site.node("Add", scaled, site.number(site.step.min_))
    return site.writer.columns_of(clipped(site, tensor, *site.step.feature_range) if site.step.clip else tensor, block)


# --- imputing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Imputed:
    """One column after imputing, and where its mask of filled places is: tensor, index, width."""

    column: Column
    mask: tuple[str, int, int]


def _emit_imputer(site: Site, block: Block) -> Block:
    fills = [_fill_value(site.step, j) for j in range(len(block))]
    numeric = [j for j, c in enumerate(block) if not c.is_string]
    done = dict(zip(numeric, _impute_numbers(site, [block[j] for j in numeric], [fills[j] for j in numeric]), strict=True))
    for j, column in enumerate(block):
        if column.is_string:
            done[j] = _impute_string(site, column, fills[j])
    kept = [done[j].column for j in range(len(block)) if fills[j] is not None]
    shown = [int(j) for j in site.step.indicator_.features_] if site.step.add_indicator else []
    return kept + [Column(f"{block[j].label} is missing", *done[j].mask, dtype="bool") for j in shown]


def _fill_value(step: Any, j: int) -> Any:
    """Return what fills column `j`, or None when the imputer drops the column (it was empty in training)."""
    statistic = step.statistics_[j]
    if not step.keep_empty_features and isinstance(statistic, float) and math.isnan(statistic):
        return None
    return np.asarray([statistic], dtype=object).astype(step._fill_dtype)[0]


def _is_null(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float | np.floating) and math.isnan(value))


def _replaces_null(step: Any, null: object) -> bool:
    """Whether a missing value as training sees it is one that the imputer fills."""
    marker = step.missing_values
    if null is NO_NULL or not _is_null(marker):
        return False
    if marker is pd.NA:
        return True
    if marker is None:
        return null is None
    # mean and median turn the column into floats first, and None and NA with it into NaN
    return (isinstance(null, float) and math.isnan(null)) or step.strategy in ("mean", "median")


def _marker_value(step: Any) -> Any:
    """Return the ordinary value (such as -1 or "?") that stands for missing, or None when it is a null."""
    return None if _is_null(step.missing_values) else step.missing_values


def _imputed_column(step: Any, column: Column, tensor: str, index: int, width: int) -> Column:
    marker = _marker_value(step)
    return replace(
        column,
        tensor=tensor,
        index=index,
        width=width,
        dtype="string" if column.is_string else "float64",
        null=NO_NULL if _replaces_null(step, column.null) else column.null,
        also_accepted=column.also_accepted if marker is None else (*column.also_accepted, marker),
    )


def _impute_numbers(site: Site, columns: Block, fills: Sequence[Any]) -> list[_Imputed]:
    """Fill all number columns of a block at once."""
    if not columns:
        return []
    for column, fill in zip(columns, fills, strict=True):
        if fill is not None and not isinstance(fill, numbers.Real | np.bool_):
            raise site.unsupported(f"it fills the number column {column.label!r} with {fill!r}; fill numbers with numbers")
    matrix = site.writer.matrix(columns, at=site.at)
    mask, width = _number_mask(site, matrix, columns), len(columns)
    filled = site.node("Where", mask, site.number([[0.0 if f is None else float(f) for f in fills]]), matrix)
    return [_Imputed(_imputed_column(site.step, c, filled, i, width), (mask, i, width)) for i, c in enumerate(columns)]


def _number_mask(site: Site, matrix: str, columns: Block) -> str:
    marker = _marker_value(site.step)
    if marker is not None:
        if not isinstance(marker, numbers.Real):
            raise site.unsupported(f"missing_values={marker!r} on the number column {columns[0].label!r}")
        return site.node("Equal", matrix, site.number(float(marker)))
    mask = site.node("IsNaN", matrix)
    filled = np.array([[c.null is NO_NULL or _replaces_null(site.step, c.null) for c in columns]])
    return mask if filled.all() else site.node("And", mask, site.writer.constant(filled, at=site.at))


def _impute_string(site: Site, column: Column, fill: Any) -> _Imputed:
    """Fill one string column."""
    if fill is not None and not isinstance(fill, str):
        raise site.unsupported(f"it fills the string column {column.label!r} with {fill!r}, which is not a string; set fill_value to one")
    tensor, marker = site.writer.single(column, at=site.at), _marker_value(site.step)
    if marker is None and _replaces_null(site.step, column.null):
        marker = site.context.sentinel
    if not isinstance(marker, str):  # nothing to fill: a mask that is false everywhere, for the indicator
        mask = site.node("Not", site.node("Equal", tensor, tensor))
        return _Imputed(_imputed_column(site.step, column, tensor, 0, 1), (mask, 0, 1))
    mask = site.node("Equal", tensor, site.writer.constant([marker], at=site.at))
    filled = site.node("Where", mask, site.writer.constant([fill or ""], at=site.at), tensor)
    return _Imputed(_imputed_column(site.step, column, filled, 0, 1), (mask, 0, 1))


def _emit_missing_indicator(site: Site, block: Block) -> Block:
    matrix, marker = matrix_of(site, block), site.step.missing_values
    if _is_null(marker):
        mask = site.node("IsNaN", matrix)
    elif isinstance(marker, numbers.Real):
        mask = site.node("Equal", matrix, site.number(float(marker)))
    else:
        raise site.unsupported(f"missing_values={marker!r} on number columns")
    return [Column(f"{block[j].label} is missing", mask, int(j), len(block), "bool") for j in site.step.features_]


# --- encoders ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Lookup:
    """What an encoder does with one column: a number for each key, and one for everything else."""

    keys: list[Any]
    values: list[float]
    default: float


def _probe(site: Site, j: int, values: Sequence[Any]) -> np.ndarray:
    """Return `transform` of rows that hold `values` in column `j` and a known category in every other, dense [len(values), k]."""
    rows = np.empty((len(values), len(site.step.categories_)), dtype=object)
    rows[:] = [[categories[0] for categories in site.step.categories_]]
    rows[:, j] = values
    with quiet():
        try:
            out = site.step.transform(rows)
        except ValueError as error:
            raise site.unsupported(f"it refuses a value it should know: {error}") from error
    return np.asarray(out.toarray() if sparse.issparse(out) else out)


def _key(site: Site, column: Column, category: Any) -> str | float:
    """Return how the graph sees a category: strings as they are, numbers as float64, a missing value as sentinel or NaN."""
    if _is_null(category):
        return site.context.sentinel if column.is_string else math.nan
    if column.is_string != isinstance(category, str):
        raise site.unsupported(f"column {column.label!r} mixes strings and other values in its categories ({category!r}); use one type")
    if category == site.context.sentinel:
        raise site.unsupported(f"the category {category!r} is the stand-in for a missing string; rename the category")
    return category if isinstance(category, str) else float(category)


def _lookup(site: Site, j: int, column: Column, read: Callable[[np.ndarray], list[float]]) -> _Lookup:
    """Ask the encoder for every category of column `j`, for a missing value, and for an unknown one.

    Args:
        site: A fitted OneHotEncoder or OrdinalEncoder.
        j: The column's place in the encoder.
        column: The column itself.
        read: Makes one number of each probed output row.
    """
    categories = [c for c in site.step.categories_[j] if not _is_null(c)]
    known: list[Any] = list(categories) if column.null is NO_NULL else [*categories, column.null]
    keys = [_key(site, column, category) for category in known]
    if site.step.handle_unknown == "error":
        site.close(column, categories)
        answers = read(_probe(site, j, known))
        return _Lookup(keys, answers, answers[0])  # the signature lets nothing else in
    *answers, default = read(_probe(site, j, [*known, _UNSEEN]))
    return _Lookup(keys, answers, default)


def _emit_lookup(site: Site, column: Column, lookup: _Lookup, dtype: str) -> str:
    """Write one LabelEncoder: [n, 1] strings or float64 → [n, 1] of `dtype`."""
    tensor = site.writer.single(column, at=site.at) if column.is_string else site.writer.matrix([column], at=site.at)
    keys = np.array(lookup.keys, dtype=np.str_ if column.is_string else np.float64)
    return site.writer.label_encoder(
        tensor, keys, np.array(lookup.values, dtype=dtype), np.array([lookup.default], dtype=dtype), at=site.at
    )


def _emit_one_hot(site: Site, block: Block) -> Block:
    """Each column becomes the number of the output column it switches on (or -1); one comparison then makes all outputs."""
    widths = [int(w) for w in site.step._n_features_outs]
    ends = np.cumsum(widths)
    spans = [slice(int(end) - width, int(end)) for end, width in zip(ends, widths, strict=True)]
    codes = [_emit_lookup(site, c, _one_hot_lookup(site, j, c, spans[j]), "int64") for j, c in enumerate(block)]
    if ends[-1] == 0:
        return []
    code = site.writer.concat(codes, at=site.at)
    if len(codes) > 1:
        owner = np.repeat(np.arange(len(codes), dtype=np.int64), widths)
        code = site.node("Gather", code, site.writer.constant(owner, at=site.at), axis=1)
    places = site.writer.constant(np.arange(ends[-1], dtype=np.int64).reshape(1, -1), at=site.at)
    tensor = site.writer.cast(site.node("Equal", code, places), "float64", at=site.at)
    labels = _repeated((c.label for c in block), widths)
    return [Column(label, tensor, i, len(labels), "float64") for i, label in enumerate(labels)]


def _repeated(labels: Iterable[str], counts: Sequence[int]) -> list[str]:
    return [label for label, count in zip(labels, counts, strict=True) for _ in range(count)]


def _one_hot_lookup(site: Site, j: int, column: Column, span: slice) -> _Lookup:
    """Read, for each value, which output column within `span` is 1, or -1 for none."""

    def switched_on(out: np.ndarray) -> list[float]:
        part = out[:, span]
        if not (np.isin(part, (0, 1)).all() and (part.sum(axis=1) <= 1).all()):
            raise site.unsupported("its output is not one-hot")
        return [float(span.start + row.argmax()) if row.any() else -1.0 for row in part]

    return _lookup(site, j, column, switched_on)


def _emit_ordinal(site: Site, block: Block) -> Block:
    lookups = [_ordinal_lookup(site, j, column) for j, column in enumerate(block)]
    codes = [_emit_lookup(site, column, lookup, "float64") for column, lookup in zip(block, lookups, strict=True)]
    tensor = site.writer.concat(codes, at=site.at)
    nulls = [np.nan if any(map(math.isnan, (*lookup.values, lookup.default))) else NO_NULL for lookup in lookups]
    return [Column(c.label, tensor, i, len(block), "float64", null=null) for i, (c, null) in enumerate(zip(block, nulls, strict=True))]


def _ordinal_lookup(site: Site, j: int, column: Column) -> _Lookup:
    return _lookup(site, j, column, lambda out: [float(v) for v in out[:, j]])


def _emit_target(site: Site, block: Block) -> Block:
    """Each category becomes a row of a table: its mean target, or one for each class; the last row is for all others."""
    joined: Block = []
    width = len(site.step.encodings_) // len(block)
    for j, column in enumerate(block):
        categories = [c for c in site.step.categories_[j] if not _is_null(c)]
        known = categories if column.null is NO_NULL else [*categories, column.null]
        keys = [_key(site, column, category) for category in known]
        table = _probe(site, j, [*known, _UNSEEN if column.is_string else _other_number(categories)])[:, j * width : (j + 1) * width]
        places = _emit_lookup(site, column, _Lookup(keys, [float(i) for i in range(len(keys))], float(len(keys))), "int64")
        axis = site.writer.constant(np.array([1], dtype=np.int64), at=site.at)
        row = site.node("Gather", site.number(table), site.node("Squeeze", places, axis), axis=0)
        joined += [Column(column.label, row, i, width, "float64") for i in range(width)]
    return joined


def _other_number(categories: Sequence[Any]) -> float:
    """Return a number that is no category."""
    return float(max(map(float, categories), default=0.0)) + 1.5


_EMITTERS: Final[dict[type, Emit]] = {
    Pipeline: _emit_pipeline,
    ColumnTransformer: _emit_column_transformer,
    FeatureUnion: _emit_feature_union,
    SimpleImputer: _emit_imputer,
    StandardScaler: _emit_standard_scaler,
    RobustScaler: _emit_robust_scaler,
    MaxAbsScaler: _emit_max_abs_scaler,
    MinMaxScaler: _emit_min_max_scaler,
    OneHotEncoder: _emit_one_hot,
    OrdinalEncoder: _emit_ordinal,
    TargetEncoder: _emit_target,
    MissingIndicator: _emit_missing_indicator,
    **NUMBER_EMITTERS,
    **TEXT_EMITTERS,
}
