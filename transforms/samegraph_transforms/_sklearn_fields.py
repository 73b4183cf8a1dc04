"""Raw fields of a tabular model: inferred from the training frame, and turned back into frames the pipeline can read.

The two directions live together because they must agree: a `RawField` says what a caller may send, and `Reference.frame` is
what the training code sees when exactly that is sent.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, TypeVar, cast

import numpy as np
import pandas as pd
from pydantic import BaseModel, ValidationError

from .errors import AuthoringError, UnsupportedStep
from .manifest import MAX_EXACT_INTEGER, Missing, RawField
from .patterns import MAX_CHARACTERS

Scalar: TypeAlias = float | int | bool | str
Instance: TypeAlias = Mapping[str, Scalar | None]
TabularKind: TypeAlias = Literal["number", "integer", "boolean", "string", "text"]

_Model = TypeVar("_Model", bound=BaseModel)

#: Stands for a missing string inside the graph. It starts with a private-use character, so that no real value is likely to be it.
_SENTINEL: Final = "\ue000missing"
_MAX_KNOWN_VALUES: Final = 10_000
#: Characters an example of a text has, as nearly as training has one.
_EXAMPLE: Final = 40
#: What an author may say about a field in place of what was inferred.
OVERRIDABLE: Final = frozenset(
    {"kind", "description", "required", "default", "missing", "allowed", "known", "minimum", "maximum", "max_length", "example"}
)
#: Magnitudes tried, largest first, to find where the training code stops accepting numbers.
_MAGNITUDES: Final = (1.7e308, 1e300, 1e200, 1e100, 1e50, 1e38, 1e35, 1e30, 1e25, 1e20, 1e15, 1e10)


@dataclass(frozen=True)
class ColumnFacts:
    """What the training frame says about one raw column.

    Attributes:
        name: Column name.
        kind: What a caller sends for it.
        dtype: The pandas dtype it was trained with.
        null: What a missing value is to the steps that read the column: None, NaN or pandas.NA.
        missing: How many of the training values are missing.
        rows: How many training values there are.
        values: The distinct non-missing values as plain Python scalars, sorted; None when there are more than 10,000.
        low: Smallest number seen; None for strings and booleans.
        high: Largest number seen.
        example: The value training saw most often.
        longest: Most characters of a value; 0 but for texts.
    """

    name: str
    kind: TabularKind
    dtype: Any
    null: object
    missing: int
    rows: int
    values: tuple[Scalar, ...] | None
    low: float | int | None
    high: float | int | None
    example: Scalar
    longest: int = 0

    @property
    def description(self) -> str:
        """A sentence about the training values, for people who call the model."""
        if self.kind == "text":
            seen = f"texts of up to {self.longest:,} characters"
        elif self.low is not None:
            seen = f"{self.low:g} to {self.high:g}"
        elif self.values is None:
            seen = f"more than {_MAX_KNOWN_VALUES:,} different values"
        else:
            seen = ", ".join(map(str, self.values)) if len(self.values) <= 8 else f"{len(self.values):,} different values"
        gaps = f", missing in {self.missing:,} of {self.rows:,} rows" if self.missing else ""
        return f"Training saw {seen}{gaps}."


def inspect_column(name: str, series: pd.Series, *, text: bool = False) -> ColumnFacts:
    """Read kind, missing marker, values and range of one training column.

    Args:
        name: Column name.
        series: The column.
        text: Whether a text vectorizer reads it; of texts no list is kept.

    Raises:
        UnsupportedStep: The column's type has no exact raw field (float32, dates, mixed types), or all of it is missing.
    """
    present = series.dropna()
    if present.empty:
        raise _bad_column(name, "has no value at all in the training frame; drop it from the pipeline")
    kind = _kind(name, present)
    if text:
        if kind != "string":
            raise _bad_column(name, f"holds {kind} values, and a text vectorizer reads it; convert it to strings before training")
        kind = "text"
    counts = present.value_counts()
    values = sorted({plain(v, kind) for v in counts.index[counts > 0]})
    numeric = kind in ("number", "integer")
    if numeric and not all(math.isfinite(v) for v in (values[0], values[-1])):
        raise _bad_column(name, "holds infinite numbers, which JSON cannot carry; replace them before training")
    return ColumnFacts(
        name=name,
        kind=kind,
        dtype=series.dtype,
        null=_null(name, series),
        missing=int(series.isna().sum()),
        rows=len(series),
        values=tuple(values) if len(values) <= _MAX_KNOWN_VALUES and not text else None,
        low=values[0] if numeric else None,
        high=values[-1] if numeric else None,
        example=min(values, key=lambda value: (abs(len(value) - _EXAMPLE), value)) if text else plain(counts.index[0], kind),
        longest=max(map(len, values)) if text else 0,
    )


def plain(value: Any, kind: str) -> Any:
    """Return a frame's non-missing value as the plain Python scalar a caller sends."""
    convert: Any = {"number": float, "integer": int, "boolean": bool, "string": str, "text": str}[kind]
    return convert(value)


def _bad_column(name: str, what: str) -> UnsupportedStep:
    return UnsupportedStep(f"column {name!r} {what}", step=f"columns.{name}")


def _kind(name: str, present: pd.Series) -> TabularKind:
    dtype = present.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return _kind(name, pd.Series(dtype.categories))
    if pd.api.types.is_bool_dtype(dtype):
        return "boolean"
    if pd.api.types.is_integer_dtype(dtype):
        return "integer"
    if pd.api.types.is_float_dtype(dtype):
        if str(dtype).lower() == "float64":
            return "number"
        raise _bad_column(
            name,
            f"is {dtype}: training then computes in {dtype} while requests carry float64; train on frame.astype({{{name!r}: 'float64'}})",
        )
    found = pd.api.types.infer_dtype(present, skipna=True)
    if found == "boolean":
        return "boolean"
    if found == "string":
        return "string"
    raise _bad_column(
        name,
        f"holds {found} values ({dtype}); a raw field is a number, an integer, a boolean or a string: convert the column before training",
    )


def _null(name: str, series: pd.Series) -> object:
    """What steps see in place of a missing value: only object and NA-backed string columns keep their own marker."""
    if isinstance(series.dtype, pd.StringDtype):
        return series.dtype.na_value
    if series.dtype != np.dtype(object):
        return np.nan
    markers = [m for m in (None, pd.NA) if any(v is m for v in series)]
    if any(isinstance(v, float) and math.isnan(v) for v in series):
        markers.append(np.nan)
    if len(markers) > 1:
        raise _bad_column(
            name,
            f"marks missing values in several ways ({', '.join(map(repr, markers))}), which encoders tell apart and JSON null cannot; "
            "use one, for example column.where(column.notna(), None)",
        )
    return markers[0] if markers else np.nan


def choose_sentinel(frame: pd.DataFrame, names: Sequence[str]) -> str:
    """Return a string that stands for a missing string and that no training value equals."""
    taken = {v for name in names for v in frame[name].dropna().unique() if isinstance(v, str)}
    sentinel = _SENTINEL
    while sentinel in taken:
        sentinel += "_"
    return sentinel


# --- the training code as a function of raw instances -----------------------------------------------------------------


class Reference:
    """The training code, answering raw instances: the frame it would have seen, and what it makes of it.

    Args:
        pipeline: The fitted pipeline, search or estimator.
        frame: The training frame.
        order: Names of the columns the pipeline was fitted on, in order.
        texts: Columns that text vectorizers read.
        alone: Whether the pipeline was fitted on its only column, not on a frame of one.
    """

    def __init__(
        self, pipeline: Any, frame: pd.DataFrame, order: Sequence[str], *, texts: Collection[str] = (), alone: bool = False
    ) -> None:
        self._texts, self._alone = frozenset(texts), alone
        self.pipeline = pipeline
        self.training = frame
        self.order = list(order)
        self.facts: dict[str, ColumnFacts] = {}

    def use(self, names: Sequence[str]) -> None:
        """Inspect the columns that become raw fields; every other column is filled with its first training value."""
        self.facts = {name: inspect_column(name, self.training[name], text=name in self._texts) for name in names}

    def given(self, frame: pd.DataFrame) -> Any:
        """Return a frame as the pipeline takes it: itself, or its only column."""
        return frame[self.order[0]] if self._alone else frame

    def instances(self, rows: pd.DataFrame) -> list[dict[str, Scalar | None]]:
        """Return frame rows as callers would send them."""
        missing = {name: rows[name].isna().to_numpy() for name in self.facts}
        values = {name: list(rows[name]) for name in self.facts}
        return [
            {name: None if missing[name][i] else plain(values[name][i], facts.kind) for name, facts in self.facts.items()}
            for i in range(len(rows))
        ]

    def frame(self, instances: Sequence[Instance], fields: Sequence[RawField] = ()) -> pd.DataFrame:
        """Return the frame the training code sees for raw instances.

        Args:
            instances: Values by field name; None is missing. A field that is left out takes its default.
            fields: The package's fields, whose defaults and numeric stand-ins apply; none for the training columns as they are.
        """
        by_name = {f.name: f for f in fields}
        columns: dict[str, pd.Series] = {}
        for name in self.order:
            if name not in self.facts:
                columns[name] = pd.Series([self.training[name].iloc[0]] * len(instances), dtype=self.training[name].dtype)
                continue
            values = [_after_rules(instance, name, by_name.get(name)) for instance in instances]
            columns[name] = reference_series(self.facts[name], values)
        return pd.DataFrame(columns)

    def accepts(self, instances: Sequence[Instance]) -> bool:
        """Whether the training code answers these instances at all."""
        try:
            with quiet():
                self.pipeline.predict(self.given(self.frame(instances)))
        except Exception:  # noqa: BLE001 - whatever training raises means that it does not take the value
            return False
        return True

    def typical(self) -> dict[str, Scalar | None]:
        """Return one training row, the one with the fewest missing values."""
        fullest = int(self.training[list(self.facts)].isna().sum(axis=1).to_numpy().argmin())
        return self.instances(self.training.iloc[[fullest]])[0]

    def nullable(self) -> dict[str, bool]:
        """Find, per column, whether the training code answers a row in which it is missing.

        It must do so with this column missing alone and together with the others that may be: a missing value can change the
        type of a whole block. Columns that were missing in training are asked first.
        """
        typical = self.typical()
        together: dict[str, None] = {}
        for name in sorted(self.facts, key=lambda n: self.facts[n].missing == 0):
            if self.accepts([{**typical, name: None}]) and self.accepts([{**typical, **together, name: None}]):
                together[name] = None
        return {name: name in together for name in self.facts}

    def refused_limits(self, limits: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        """Keep of the ends of each column's range those beyond which the training code does not answer; the others become infinite."""
        typical = self.typical()
        kept = {}
        for name, (least, high) in limits.items():
            # At the very end an answer may still be too large: a negative power of the smallest number.
            inner = (least + 10.0**-k for k in (300, 200, 100, 50, 20, 10, 7, 5, 3))
            low = least if math.isinf(least) else next((v for v in (least, *inner) if self.accepts([{**typical, name: v}])), least)
            below, above = (math.nextafter(low, -math.inf), -1e9), (math.nextafter(high, math.inf), 1e9)
            refused = [not all(self.accepts([{**typical, name: v}]) for v in beyond if math.isfinite(v)) for beyond in (below, above)]
            kept[name] = (low if refused[0] else -math.inf, high if refused[1] else math.inf)
        return kept

    def magnitude_limit(self, names: Sequence[str], within: Mapping[str, tuple[float, float]] | None = None) -> float | None:
        """Find the largest magnitude at which the training code still answers, all of `names` at once.

        Args:
            names: Columns of numbers.
            within: Ranges of some of them that are known already; no value outside is tried.

        Returns:
            None when it takes every float64, else a power of ten with a thousandfold margin. Trees that read float32, for
            example, refuse what float32 cannot hold; the graph could not refuse it, so the signature must.
        """
        if not names:
            return None
        typical = self.typical()
        open_ends = (-math.inf, math.inf)
        for magnitude in _MAGNITUDES:
            signs = (1.0, -1.0)
            patterns = []
            for s, flip in ((s, flip) for s in signs for flip in (0, 1)):
                values = {n: s * magnitude * (-1) ** (i * flip) for i, n in enumerate(names)}
                ends = {n: (within or {}).get(n, open_ends) for n in names}
                patterns.append({**typical, **{n: min(max(v, ends[n][0]), ends[n][1]) for n, v in values.items()}})
            if all(self.accepts([p]) for p in patterns):
                return None if magnitude == _MAGNITUDES[0] else magnitude / 1000
        raise AuthoringError(
            f"the pipeline fails on every large number in {', '.join(names)}; set minimum and maximum for them in overrides"
        )


def _after_rules(instance: Instance, name: str, field: RawField | None) -> Scalar | None:
    value = instance.get(name) if field is None or name in instance else cast(Scalar | None, field.default)
    if value is None and field is not None and field.missing.rule == "sentinel" and not is_internal_sentinel(field.missing.sentinel):
        return field.missing.sentinel
    return value


def is_internal_sentinel(value: object) -> bool:
    """Whether a sentinel is the one the graph reads as missing (and not a value the author put in place of null)."""
    return isinstance(value, str) and value.rstrip("_") == _SENTINEL


def reference_series(facts: ColumnFacts, values: Sequence[Scalar | None]) -> pd.Series:
    """Build the column the training code would have had for `values`, None standing for missing."""
    dtype, gaps = facts.dtype, any(v is None for v in values)
    if isinstance(dtype, pd.CategoricalDtype):
        unseen = sorted({v for v in values if v is not None} - set(dtype.categories.tolist()), key=str)
        categories = [*dtype.categories.tolist(), *unseen] if unseen else dtype.categories
        return pd.Series(pd.Categorical([np.nan if v is None else v for v in values], categories=categories, ordered=dtype.ordered))
    if isinstance(dtype, pd.StringDtype):
        return pd.Series(list(values), dtype=dtype)
    if dtype == np.dtype(object) or (dtype == np.dtype(bool) and gaps):
        return pd.Series([facts.null if v is None else v for v in values], dtype=object)
    if pd.api.types.is_integer_dtype(dtype):
        extension = pd.api.types.is_extension_array_dtype(dtype)
        return pd.Series(list(values), dtype="Int64" if extension else "float64" if gaps else "int64")
    return pd.Series(list(values), dtype=dtype)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings of probes: they send values on purpose that training did not see."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


# --- the raw fields ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FieldPlan:
    """One raw field before the graph is written: enough to declare its graph input.

    Attributes:
        facts: The training column.
        kind: The kind in force (an author may call an integral float column an integer).
        missing: The missing rule in force.
        nullable: Whether the training code takes a missing value here.
    """

    facts: ColumnFacts
    kind: TabularKind
    missing: Missing
    nullable: bool

    @property
    def null_reaches_graph(self) -> bool:
        """Whether the graph can meet a missing value in this field."""
        return self.missing.rule in ("nan", "companion") or is_internal_sentinel(self.missing.sentinel)


def plan_field(facts: ColumnFacts, *, nullable: bool, sentinel: str, override: Mapping[str, Any]) -> FieldPlan:
    """Decide kind and missing rule of one field.

    Raises:
        AuthoringError: The override names something unknown, or asks for what the training code does not do.
    """
    unknown = sorted(set(override) - OVERRIDABLE)
    if unknown:
        raise AuthoringError(f"override of {facts.name!r}: {unknown[0]!r} cannot be set; choose from {', '.join(sorted(OVERRIDABLE))}")
    kind = _overridden_kind(facts, override.get("kind"))
    missing = _inferred_missing(kind, nullable, sentinel)
    if override.get("missing") is not None:
        missing = _overridden_missing(facts, kind, nullable, sentinel, override["missing"])
    return FieldPlan(facts, kind, missing, nullable)


def _overridden_kind(facts: ColumnFacts, kind: object) -> TabularKind:
    if kind is None or kind == facts.kind:
        return facts.kind
    integral = facts.kind == "number" and facts.values is not None and all(float(v).is_integer() for v in facts.values)
    if kind == "integer" and integral:
        return "integer"
    if kind == "number" and facts.kind == "integer":
        return "number"
    why = "it has values that are not whole numbers" if kind == "integer" and facts.kind == "number" else f"training had a {facts.kind}"
    raise AuthoringError(f"override of {facts.name!r}: kind cannot become {kind!r}, because {why}")


def _inferred_missing(kind: TabularKind, nullable: bool, sentinel: str) -> Missing:
    if not nullable or kind == "text":
        return Missing()
    if kind == "string":
        return Missing(rule="sentinel", sentinel=sentinel)
    return Missing(rule="companion" if kind == "boolean" else "nan")


def _overridden_missing(facts: ColumnFacts, kind: TabularKind, nullable: bool, sentinel: str, given: Any) -> Missing:
    data = {"rule": given} if isinstance(given, str) else given
    if isinstance(data, Mapping) and data.get("rule") == "sentinel" and kind == "string":
        data = {"sentinel": sentinel, **data}
    missing = validated(Missing, data, f"override of {facts.name!r}: missing")
    stands_for_null = missing.rule in ("nan", "companion") or missing.sentinel == sentinel
    if stands_for_null and not nullable:
        raise AuthoringError(
            f"override of {facts.name!r}: the training code fails when it is missing, so missing.rule cannot be {missing.rule!r}; "
            "keep 'refuse', or give a 'sentinel' value that stands in for null"
        )
    if missing.rule == "sentinel" and not _is_a(kind, missing.sentinel):
        raise AuthoringError(f"override of {facts.name!r}: the sentinel {missing.sentinel!r} is not a {kind}")
    return missing


def _is_a(kind: TabularKind, value: object) -> bool:
    return type(value) in {"number": (float, int), "integer": (int,), "boolean": (bool,), "string": (str,), "text": (str,)}[kind]


def validated(model: type[_Model], data: Any, where: str) -> _Model:
    """Build a manifest object, turning a schema error into one that names the place.

    Raises:
        AuthoringError: The data breaks the schema.
    """
    try:
        return model.model_validate(data.model_dump() if hasattr(data, "model_dump") else data)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'value'}: {e['msg']}" for e in error.errors())
        raise AuthoringError(f"{where}: {problems}") from error


def raw_field(
    plan: FieldPlan,
    *,
    closed: Sequence[Scalar] | None,
    limit: float | None,
    override: Mapping[str, Any],
    within: tuple[float, float] = (-math.inf, math.inf),
) -> RawField:
    """Describe one raw field, with the author's overrides on top of what was inferred.

    Args:
        plan: Kind and missing rule.
        closed: The only values the training code accepts, or None when the set is open.
        limit: Largest magnitude the training code accepts, or None.
        override: The author's wishes.
        within: Least and largest number the training code accepts beside that.

    Raises:
        AuthoringError: An override widens what the training code accepts, or breaks the schema.
    """
    facts = plan.facts
    if closed is not None or (plan.kind == "integer" and limit is not None and limit >= MAX_EXACT_INTEGER):
        limit = None  # a closed set needs none, and integers end at 2^53 anyway
    ends = [max(within[0], -math.inf if limit is None else -limit), min(within[1], math.inf if limit is None else limit)]
    if plan.kind == "integer":
        ends = [round_end(e) if math.isfinite(e) else e for round_end, e in zip((math.ceil, math.floor), ends, strict=True)]
    low, high = (e if math.isfinite(e) and closed is None else None for e in ends)
    both = plan.kind == "boolean" and closed is not None and len(closed) == 2
    inferred: dict[str, Any] = {
        "name": facts.name,
        "kind": plan.kind,
        "description": facts.description,
        "missing": plan.missing,
        "allowed": None if closed is None or both else [plain(v, plan.kind) for v in closed],
        "known": list(facts.values) if plan.kind == "string" and closed is None and facts.values is not None else None,
        "minimum": low,
        "maximum": high,
        "example": plain(facts.example, plan.kind),
    }
    if plan.kind == "text":
        inferred["max_length"] = max(MAX_CHARACTERS, facts.longest)
    wishes = {k: v for k, v in override.items() if k not in ("kind", "missing")}
    if wishes.get("description"):
        wishes["description"] = f"{wishes['description']} {facts.description}"
    field = validated(RawField, {**inferred, **wishes}, f"field {facts.name!r}")
    _refuse_wider(field, inferred)
    return field if "example" in wishes else field.model_copy(update={"example": _fitting_example(field)})


def _fitting_example(field: RawField) -> Scalar:
    """Return the example, or the nearest value that narrower limits still accept."""
    example = cast(Scalar, field.example)
    if field.allowed is not None:
        return example if example in field.allowed else field.allowed[0]
    if isinstance(example, str) and field.max_length is not None:
        return example[: field.max_length]
    if field.minimum is not None and example < field.minimum:  # type: ignore[operator]  # only numbers have limits
        return cast(Scalar, plain(math.ceil(field.minimum) if field.kind == "integer" else field.minimum, field.kind))
    if field.maximum is not None and example > field.maximum:  # type: ignore[operator]
        return cast(Scalar, plain(math.floor(field.maximum) if field.kind == "integer" else field.maximum, field.kind))
    return example


def _refuse_wider(field: RawField, inferred: Mapping[str, Any]) -> None:
    """Refuse overrides that let in what the training code would refuse."""
    allowed = inferred["allowed"]
    if allowed is not None and (field.allowed is None or not set(field.allowed) <= set(allowed)):
        raise AuthoringError(
            f"override of {field.name!r}: training accepts only {', '.join(map(repr, allowed[:20]))}; `allowed` can only be narrower"
        )
    low, high = inferred["minimum"], inferred["maximum"]
    if (low is not None and (field.minimum is None or field.minimum < low)) or (
        high is not None and (field.maximum is None or field.maximum > high)
    ):
        raise AuthoringError(
            f"override of {field.name!r}: the training code fails beyond {_range_words(low, high)}; minimum and maximum can only be "
            "narrower"
        )


def _range_words(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"±{high:g}" if low == -high else f"{low:g} to {high:g}"
    return f"{low if high is None else high:g}"
