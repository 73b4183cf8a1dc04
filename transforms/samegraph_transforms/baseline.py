"""The baseline: statistics of held-out training rows and of the answers to them, kept in a package as baseline.json.

A baseline is a list of *variables*. A variable is one quantity of a row (the value of a number field, the width of an image, the
probability of the top class) with fixed bins, and every row falls into exactly one bin of every variable. So counts add up over rows,
over batches and over replicas, and the counts of a variable always sum to the rows counted.

    Baseline                  what baseline.json holds; `Package.baseline()` reads it
    Variable                  one quantity: its bins, and the training rows' counts in them
    baseline_bins.Binner      values → counts per bin: one function for building and for serving
    baseline_extract          raw rows and answers → values, likewise for both
    baseline_build            held-out rows → Baseline; `pack` does it

Bins are named by fixed labels that hold no value from the data: `00`, `01`, … and the specials below. What a label stands for is
`Variable.describe(label)`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import BaselineInvalid
from .manifest import Kind, Manifest, ValueName

#: Name of the file in a package.
BASELINE = "baseline.json"
#: Name of the file with the baseline that this one took the place of, where it is kept.
BASELINE_BEFORE = "baseline.before.json"
#: Changes with the file's schema and with the definition of any statistic: counts of two formats do not compare.
FORMAT: Literal[1] = 1
MAX_BASELINE_BYTES = 64 << 20
#: Most bins of a number between its training minimum and maximum.
MAX_NUMERIC_BINS = 10
#: Most values of a category that get a bin each.
MAX_CATEGORIES = 50
#: Most further known values, which share the bin `other`; values beyond them count as unseen.
MAX_RARE = 5_000
#: Longer strings are no categories: they count as unseen, in the baseline and while serving.
MAX_CATEGORY_LENGTH = 200

#: A number below the training minimum; above its maximum; null or left out; NaN; an infinity; no number at all.
NUMERIC_SPECIALS = ("below", "above", "missing", "nan", "inf", "invalid")
#: A known value without a bin of its own; one that training did not know; null or left out; no value of the type at all.
CATEGORICAL_SPECIALS = ("other", "unseen", "missing", "invalid")
BOOLEAN_SPECIALS = ("missing", "invalid")

VariableKind: TypeAlias = Literal["numeric", "categorical", "boolean"]
Monitored: TypeAlias = Literal["plain", "hashed", "off"]
Count = Annotated[int, Field(ge=0)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Variable(_Model):
    """One monitored quantity of a row: its bins, and how many of the baseline's rows fell into each.

    Numbers: with k edges there are k+1 bins `00` … and bin i holds edges[i-1] <= x < edges[i] (so an edge belongs to the bin on its
    right: `searchsorted(edges, x, side="right")`), the first from `minimum`, the last up to and including `maximum`. What lies
    outside [minimum, maximum] is `below` or `above`. Of computed numbers (scores), edges lie between the numbers that occurred and
    minimum and maximum a little beyond them, so that another processor's rounding moves no number into another bin.
    """

    name: str = Field(
        min_length=1,
        max_length=300,
        description=(
            "Unique among the fields' variables, or among the outputs'. A scalar field's variable has the field's name; others are "
            "`<field>.<statistic>`."
        ),
    )
    kind: VariableKind = Field(description="numeric: edges. categorical: categories. boolean: false is bin 00, true is bin 01.")
    description: str = Field(default="", description="What is measured, in a few words.")
    unit: str = Field(default="", description="Unit of a number, where it has one.")
    edges: list[float] = Field(
        default_factory=list, max_length=MAX_NUMERIC_BINS - 1, description="Inner edges of a number's bins, strictly increasing."
    )
    minimum: float | None = Field(default=None, description="Smallest finite number in the baseline; null when there was none.")
    maximum: float | None = Field(default=None, description="Largest finite number in the baseline; null when there was none.")
    categories: list[str] = Field(
        default_factory=list, max_length=MAX_CATEGORIES, description="Values with a bin each, in bin order: the most frequent first."
    )
    rare: list[str] = Field(default_factory=list, max_length=MAX_RARE, description="Further known values, sorted; they share `other`.")
    values: Literal["string", "integer"] = Field(
        default="string", description="What a category is while serving; integers are written as decimal strings here."
    )
    hashed: bool = Field(
        default=False, description="Whether `categories` and `rare` hold `category_digest(name, value)` instead of the values."
    )
    counts: list[Count] = Field(description="Rows per bin, in the order of `labels`; they sum to the baseline's rows.")
    n: int = Field(default=0, ge=0, description="Numbers only: how many were finite.")
    mean: float | None = Field(default=None, description="Numbers only: mean of the finite ones; null when there was none.")
    m2: float | None = Field(default=None, ge=0, description="Numbers only: sum of squared distances from the mean; variance is m2 / n.")

    @model_validator(mode="after")
    def _facts_fit_the_kind(self) -> Self:
        numbers = (self.minimum, self.maximum, self.mean, self.m2)
        if self.kind == "numeric":
            if any(v is None for v in numbers) != (self.n == 0) or len({v is None for v in numbers}) > 1:
                raise ValueError(f"variable {self.name!r}: minimum, maximum, mean and m2 are there exactly when n is not 0")
            self._check_edges()
        elif self.edges or self.n or any(v is not None for v in numbers):
            raise ValueError(f"variable {self.name!r}: edges and moments are for numbers")
        if self.kind != "categorical" and (self.categories or self.rare or self.hashed):
            raise ValueError(f"variable {self.name!r}: categories are for categorical variables")
        if len({*self.categories, *self.rare}) != len(self.categories) + len(self.rare):
            raise ValueError(f"variable {self.name!r}: a category is given twice")
        if len(self.counts) != len(self.labels):
            raise ValueError(f"variable {self.name!r}: {len(self.counts)} counts for {len(self.labels)} bins")
        return self

    def _check_edges(self) -> None:
        if any(not math.isfinite(v) for v in (*self.edges, self.minimum or 0.0, self.maximum or 0.0, self.mean or 0.0, self.m2 or 0.0)):
            raise ValueError(f"variable {self.name!r}: edges and moments must be finite")
        if any(a >= b for a, b in itertools.pairwise(self.edges)):
            raise ValueError(f"variable {self.name!r}: edges must increase")
        if self.minimum is None or self.maximum is None:
            inside = not self.edges
        else:
            inside = self.minimum <= self.maximum and all(self.minimum < edge <= self.maximum for edge in self.edges)
        if not inside:
            raise ValueError(f"variable {self.name!r}: edges must lie above the minimum and not above the maximum")

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The names of all bins, in the order of counts: `00` … and then the kind's specials."""
        specials = {"numeric": NUMERIC_SPECIALS, "categorical": CATEGORICAL_SPECIALS, "boolean": BOOLEAN_SPECIALS}[self.kind]
        return (*(f"{i:02d}" for i in range(self.n_bins)), *specials)

    @property
    def n_bins(self) -> int:
        """How many bins there are besides the specials."""
        if self.kind == "numeric":
            return len(self.edges) + 1
        return 2 if self.kind == "boolean" else len(self.categories)

    @property
    def rows(self) -> int:
        """How many rows the counts sum to."""
        return sum(self.counts)

    @property
    def std(self) -> float | None:
        """Standard deviation of the finite numbers (divisor n); None without any."""
        return None if self.m2 is None else math.sqrt(self.m2 / self.n)

    @property
    def bounds(self) -> list[tuple[float, float]]:
        """Lower and upper bound of each regular bin of a number; empty when the baseline holds no finite number."""
        if self.minimum is None or self.maximum is None:
            return []
        points = [self.minimum, *self.edges, self.maximum]
        return list(itertools.pairwise(points))

    def describe(self, label: str) -> str:
        """Return what the bin `label` holds, for people: `[10.5, 12)`, `EWR`, `below 3`; ValueError if there is no such bin."""
        place = self.labels.index(label)
        if place >= self.n_bins:
            return self._describe_special(label)
        if self.kind == "boolean":
            return ("false", "true")[place]
        if self.kind == "categorical":
            return self.categories[place]
        if not self.bounds:
            return "any number"
        low, high = self.bounds[place]
        return f"{low:.6g}" if low == high else f"[{low:.6g}, {high:.6g}{']' if place == self.n_bins - 1 else ')'}"

    def _describe_special(self, label: str) -> str:
        if label == "below" and self.minimum is not None:
            return f"below {self.minimum:.6g}"
        if label == "above" and self.maximum is not None:
            return f"above {self.maximum:.6g}"
        return f"other ({len(self.rare):,} known values)" if label == "other" and self.rare else label


class FieldBaseline(_Model):
    """What is monitored of one raw input field."""

    name: ValueName = Field(description="The field.")
    kind: Kind = Field(description="The field's kind in the manifest.")
    monitored: Monitored = Field(
        default="plain",
        description="off: nothing is, and there are no variables. hashed: categories are kept as digests, so that no value can be read.",
    )
    importance: float = Field(default=1.0, ge=0, description="How much drift here matters; reports rank by it and a cap drops the least.")
    pixels: ValueName | None = Field(
        default=None, description="Images: the item-stage value (uint8 [H, W, C] or [C, H, W]) that pixel statistics are taken from."
    )
    model_size: tuple[int, int] | None = Field(
        default=None, description="Images: height and width of `pixels`; a smaller short side was enlarged."
    )
    tokenizer: str | None = Field(
        default=None,
        exclude_if=lambda node: node is None,
        description="Texts: the Tokenize node whose tokens are counted. Left out: none are.",
    )
    variables: list[Variable] = Field(default_factory=list, description="In the order they are shown.")


class Expected(_Model):
    """What the model's own probabilities say about its accuracy: sums over rows, which add up like counts.

    With p the probability of the chosen class, `correct` is the sum of p and `wrong` the sum of 1 - p. For two classes also the four
    cells of the confusion matrix: a row answered positive adds p to `tp` and 1 - p to `fp`; one answered negative adds p to `tn` and
    1 - p to `fn`. Expected accuracy is correct / (correct + wrong). As good as the probabilities are calibrated, and blind to a change
    of what the right answer is.
    """

    positive: str | None = Field(default=None, description="Two classes: the one that counts as positive.")
    cells: dict[Literal["correct", "wrong", "tp", "fp", "fn", "tn"], float] = Field(description="The sums over the baseline's rows.")
    measured_accuracy: float | None = Field(
        default=None, ge=0, le=1, description="Share of the baseline's rows answered right, where the trainer gave the true answers."
    )

    @model_validator(mode="after")
    def _cells_are_complete(self) -> Self:
        wanted = {"correct", "wrong"} | ({"tp", "fp", "fn", "tn"} if self.positive is not None else set())
        if set(self.cells) != wanted or any(not math.isfinite(v) or v < 0 for v in self.cells.values()):
            raise ValueError(f"cells are {', '.join(sorted(wanted))}, finite and not negative")
        return self

    @property
    def accuracy(self) -> float:
        """Expected accuracy, 0 to 1; NaN without rows."""
        total = self.cells["correct"] + self.cells["wrong"]
        return self.cells["correct"] / total if total else math.nan


class OutputBaseline(_Model):
    """What is monitored of one output."""

    name: ValueName = Field(description="The output.")
    variables: list[Variable] = Field(default_factory=list, description="In the order they are shown.")
    expected: Expected | None = Field(default=None, description="For class probabilities: the accuracy they expect.")


class Baseline(_Model):
    """The whole of baseline.json."""

    format: Literal[1] = Field(default=FORMAT, description="Format number; a reader refuses any other than its own.")
    made_from: str = Field(default="", description="Which rows, in a sentence.")
    rows: int = Field(ge=1, description="How many rows.")
    sampled_from: str | None = Field(default=None, description="When the first of the rows was taken, ISO 8601.")
    sampled_to: str | None = Field(default=None, description="When the last of the rows was taken, ISO 8601.")
    signature: str = Field(
        pattern=r"^[0-9a-f]{64}$", description="`signature_digest` of the manifest: fields and outputs the variables were taken from."
    )
    replaces: str | None = Field(default=None, description="`<name>/<version> <digest>` of the package whose baseline this one replaced.")
    fields: list[FieldBaseline] = Field(description="One per raw field, in the manifest's order.")
    outputs: list[OutputBaseline] = Field(description="One per output, in the manifest's order.")

    @model_validator(mode="after")
    def _counts_sum_to_rows(self) -> Self:
        for what, owners in (("fields", self.fields), ("outputs", self.outputs)):
            variables = [v for owner in owners for v in owner.variables]
            if len({v.name for v in variables}) != len(variables):
                raise ValueError(f"two variables of the {what} have one name")
            for v in variables:
                if v.rows != self.rows:
                    raise ValueError(f"variable {v.name!r}: counts sum to {v.rows}, the baseline has {self.rows} rows")
        return self

    def inputs(self) -> Iterator[tuple[FieldBaseline, Variable]]:
        """Yield every variable of the raw fields with its field."""
        for field in self.fields:
            for variable in field.variables:
                yield field, variable

    def answers(self) -> Iterator[tuple[OutputBaseline, Variable]]:
        """Yield every variable of the outputs with its output."""
        for output in self.outputs:
            for variable in output.variables:
                yield output, variable

    def field(self, name: str) -> FieldBaseline:
        """Return what is monitored of the raw field `name`; KeyError if there is none."""
        return next((f for f in self.fields if f.name == name), None) or _absent(name)

    def output(self, name: str) -> OutputBaseline:
        """Return what is monitored of the output `name`; KeyError if there is none."""
        return next((o for o in self.outputs if o.name == name), None) or _absent(name)


def _absent(name: str) -> Any:
    raise KeyError(name)


def category_digest(variable: str, value: str) -> str:
    """Return what stands for a category of a hashed variable: 16 hex digits.

    It keeps values from being read, not from being guessed: who can name a value can check whether it is there.
    """
    return hashlib.sha256(f"{variable}\x1f{value}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


def signature_digest(manifest: Manifest) -> str:
    """Return the SHA-256 over names, kinds, types and shapes of a manifest's fields and outputs.

    Two versions with one digest have the same variables, so that one's counts can be held against the other's baseline.
    """
    fields = [[f.name, f.kind, f.dtype, f.shape] for f in manifest.fields]
    outputs = [[o.name, o.dtype, o.shape, o.element_names] for o in manifest.outputs]
    return hashlib.sha256(json.dumps([fields, outputs], separators=(",", ":")).encode()).hexdigest()


def baseline_bytes(baseline: Baseline) -> bytes:
    """Return the one spelling of `baseline`: UTF-8 JSON, sorted keys, every default written out, a final newline."""
    document = baseline.model_dump(mode="json")
    return (json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def parse_baseline(raw: bytes, manifest: Manifest, what: str = BASELINE) -> Baseline:
    """Return the baseline in `raw`.

    Raises:
        BaselineInvalid: It is not JSON, has another format number, breaks the schema, or was taken from other fields or outputs than
            the manifest's; says what.
    """
    if len(raw) > MAX_BASELINE_BYTES:
        raise BaselineInvalid(f"{what} is larger than {MAX_BASELINE_BYTES} bytes")
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BaselineInvalid(f"{what} is not valid JSON: {error}") from error
    found = document.get("format") if isinstance(document, dict) else None
    if found != FORMAT:
        raise BaselineInvalid(
            f"{what}: format is {found!r}; this samegraph reads format {FORMAT}, so make the baseline again or install it"
        )
    try:
        baseline = Baseline.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "document"
        raise BaselineInvalid(f"{what}: {place}: {first['msg'].removeprefix('Value error, ')}") from error
    if baseline.signature != signature_digest(manifest):
        raise BaselineInvalid(f"{what} was made from other fields or outputs than this package's; make it again with this version's rows")
    return baseline


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of baseline.json (published as docs/baseline.schema.json)."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Baseline.model_json_schema()}
