"""Two versions on the same raw inputs, before any traffic moves: how often and where they differ, and which is right more often."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from samegraph_transforms.errors import SamegraphError
from samegraph_transforms.manifest import BINARY_KINDS, Output, RawField
from samegraph_transforms.package import Package
from samegraph_transforms.predicting import Item, PackagePredictor, Predictor, Result, read_items

from . import paired
from .paired import Range
from .report import number

ALPHA = 0.05
#: Values of a text field that are a slice of their own; the others share one.
MAX_VALUES = 8
#: Slices of a number: quarters of the rows.
QUARTERS = 4
#: Rows below which a slice is not shown.
LEAST_ROWS = 20
#: Bins of confidence for calibration.
CALIBRATION_BINS = 10

State = Literal["better", "worse", "undecided", "same", "differs"]


class CompareError(SamegraphError):
    """Raised when two versions cannot be compared on this data; says why."""


@dataclass(frozen=True)
class Row:
    """One raw input and what both versions made of it.

    Attributes:
        fields: Its raw values; without images and other bytes.
        label: What is true; None when not given.
        first: The answer of the first version by output, or its error's code under "error".
        second: The same of the second.
    """

    fields: Mapping[str, Any]
    label: Any
    first: Mapping[str, Any]
    second: Mapping[str, Any]


@dataclass(frozen=True)
class Numbers:
    """How far one output of numbers differs: second minus first, over its elements.

    Attributes:
        output: The output.
        element: Which of its elements; empty for a single number.
        mean: Mean difference with its interval.
        absolute_mean: Mean of its absolute value.
        quantiles: Of the absolute value: 0.5, 0.95, 0.99 and 1 → value.
    """

    output: str
    element: str
    mean: Range
    absolute_mean: float
    quantiles: Mapping[float, float]


@dataclass(frozen=True)
class Calibration:
    """How a version's confidence in its answer compares with how often it is right.

    Attributes:
        bins: (lower edge, rows, mean confidence, share right) of each tenth that has rows.
        error: Expected calibration error: mean distance of the two, weighted by rows.
        brier: Mean squared distance of the probabilities from the truth, summed over classes.
        log_loss: Mean negative logarithm of the probability of what was true, cut at 1e-15.
    """

    bins: Sequence[tuple[float, int, float, float]]
    error: float
    brier: float
    log_loss: float


@dataclass(frozen=True)
class Accuracy:
    """Which version is right, over the same rows.

    Attributes:
        n: Rows with a label that both answered.
        first: Share right of the first.
        second: Share right of the second.
        difference: Second minus first.
        only_first: Rows that only the first has right.
        only_second: Rows that only the second has right.
        p: Exact McNemar p-value.
    """

    n: int
    first: Range
    second: Range
    difference: Range
    only_first: int
    only_second: int
    p: float


@dataclass(frozen=True)
class Errors:
    """How far predicted numbers lie from the true ones.

    Attributes:
        n: Rows.
        first: Mean absolute error of the first version.
        second: The same of the second.
        difference: Second minus first; below 0 the second is closer.
    """

    n: int
    first: Range
    second: Range
    difference: Range


@dataclass(frozen=True)
class Slice:
    """Some of the rows: those with one value, or one range, of a raw field.

    Attributes:
        field: The field.
        value: The value or range, in words.
        n: Rows that both answered.
        changed: Share of them that are answered differently; None when answers are numbers.
        shift: Mean of second minus first of the answer's number, or of the first class's probability; None without one.
        accuracy: With labels: which is right more often.
    """

    field: str
    value: str
    n: int
    changed: Range | None
    shift: Range | None
    accuracy: Accuracy | None


@dataclass(frozen=True)
class Comparison:
    """Everything `samegraph compare` tells.

    Attributes:
        model: The model's name.
        versions: First and second.
        rows: Rows that were read.
        both: Rows that both answered.
        refused: Code → rows only the first refused, rows only the second refused.
        answer: The output that decides; empty when there is none of a kind that can be compared.
        changed: Share of rows that are answered differently; None when answers are numbers.
        flips: (first's answer, second's answer) → rows, most frequent first; where they differ.
        numbers: How far outputs of numbers differ.
        accuracy: With labels of classes.
        errors: With labels that are numbers.
        calibration: With labels and probabilities: of the first and of the second.
        slices: By raw field, those where most changes first.
        state: The verdict in a word.
        verdict: The verdict in a sentence.
        notes: What a reader should know besides.
    """

    model: str
    versions: tuple[int, int]
    rows: int
    both: int
    refused: Mapping[str, tuple[int, int]]
    answer: str
    changed: Range | None
    flips: Sequence[tuple[str, str, int]]
    numbers: Sequence[Numbers]
    accuracy: Accuracy | None
    errors: Errors | None
    calibration: tuple[Calibration, Calibration] | None
    slices: Sequence[Slice]
    state: State
    verdict: str
    notes: Sequence[str] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values; what is not finite is null."""
        document: dict[str, Any] = _plain(self)
        return document


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- reading --------------------------------------------------------------------------------------------------------------


def compare(
    first: Package,
    second: Package,
    source: Path,
    *,
    label: str | None = None,
    limit: int | None = None,
    ignore_extra: bool = False,
    step: Callable[[int], object] = lambda _: None,
) -> Comparison:
    """Run the same raw inputs through two versions of a model.

    Args:
        first: The version in use.
        second: The one that might replace it.
        source: What `samegraph predict` reads, or a .parquet file with a column per field.
        label: A column or member that holds what is true.
        limit: Most rows to read.
        ignore_extra: Leave out columns that are fields of neither version.
        step: Told how many rows are done.

    Raises:
        CompareError: They are not versions of one model, or nothing could be compared.
    """
    if first.manifest.name != second.manifest.name:
        raise CompareError(f"{first} and {second} are two models; compare two versions of one")
    outputs = _common_outputs(first, second)
    rows = []
    for row in itertools.islice(_rows(first, second, source, label, ignore_extra=ignore_extra), limit):
        rows.append(row)
        step(len(rows))
    versions = (first.manifest.version, second.manifest.version)
    return compared(first.manifest.name, versions, rows, outputs, labelled=label is not None)


def _common_outputs(first: Package, second: Package) -> list[Output]:
    theirs = {o.name: o for o in second.manifest.outputs}
    found = [o for o in first.manifest.outputs if o.name in theirs and (theirs[o.name].dtype == "string") == (o.dtype == "string")]
    if not found:
        raise CompareError(f"{first} and {second} have no output in common")
    return found


def _rows(first: Package, second: Package, source: Path, label: str | None, *, ignore_extra: bool) -> Iterator[Row]:
    sides = []
    predictors = [PackagePredictor(first), PackagePredictor(second)]
    try:
        fields = {f.name: f for p in reversed(predictors) for f in p.fields}
        known = list(fields.values())
        if label is not None and label in fields:
            raise CompareError(f"{label!r} is a raw field of the model; a label is a column beside them")
        if label is not None:
            known.append(RawField(name=label, kind="string", required=False))
        items = _labelled(_items(source, known, ignore_extra=ignore_extra), label)
        for predictor, copies in zip(predictors, itertools.tee(items), strict=True):
            sides.append(_answers(predictor, copies))
        binary = {name for name, f in fields.items() if f.kind in BINARY_KINDS}
        for (item, truth, a), (_, _, b) in zip(*sides, strict=True):
            raw = item.value if isinstance(item.value, dict) else {}
            yield Row({k: v for k, v in raw.items() if k not in binary}, truth, a, b)
    finally:
        for predictor in predictors:
            predictor.close()


def _items(source: Path, fields: Sequence[RawField], *, ignore_extra: bool) -> Iterator[Item]:
    if source.suffix.lower() == ".parquet":
        return _parquet(source, {f.name for f in fields}, ignore_extra=ignore_extra)
    return read_items(source, fields, ignore_extra=ignore_extra)


def _parquet(source: Path, names: set[str], *, ignore_extra: bool) -> Iterator[Item]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise CompareError("reading .parquet needs pyarrow: pip install 'samegraph[capture]'") from error
    with parquet.ParquetFile(source) as file:
        unknown = [name for name in file.schema_arrow.names if name not in names]
        if unknown and not ignore_extra:
            raise CompareError(
                f"{source}: no field of the model is called {', '.join(unknown)}; leave such columns out with --ignore-extra"
            )
        columns = [name for name in file.schema_arrow.names if name in names]
        numbers = itertools.count(1)
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            for row in batch.to_pylist():
                yield Item(f"{source.name}[{next(numbers)}]", "application/json", {k: _finite(v) for k, v in row.items()})


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _labelled(items: Iterable[Item], label: str | None) -> Iterator[tuple[Item, Any]]:
    for item in items:
        if label is not None and isinstance(item.value, dict):
            rest = {k: v for k, v in item.value.items() if k != label}
            yield replace(item, value=rest), item.value.get(label)
        else:
            yield item, None


def _answers(predictor: Predictor, items: Iterable[tuple[Item, Any]]) -> Iterator[tuple[Item, Any, dict[str, Any]]]:
    """Yield each item with its label and the answer of a version, which sees the fields that are its own."""
    own = {f.name for f in predictor.fields}
    kept, seen = itertools.tee(items)
    results = predictor.predict(_only(item, own) for item, _ in seen)
    for (item, truth), result in zip(kept, results, strict=True):
        yield item, truth, _answer(result, predictor.output_names)


def _only(item: Item, names: set[str]) -> Item:
    if item.media_type != "application/json" or not isinstance(item.value, dict):
        return item
    return replace(item, value={k: v for k, v in item.value.items() if k in names})


def _answer(result: Result, names: Sequence[str]) -> dict[str, Any]:
    if result.error is not None:
        return {"error": result.code or "error"}
    return result.prediction if isinstance(result.prediction, dict) else {names[0]: result.prediction}


# --- comparing ------------------------------------------------------------------------------------------------------------


def compared(model: str, versions: tuple[int, int], rows: Sequence[Row], outputs: Sequence[Output], *, labelled: bool) -> Comparison:
    """Return what two versions' answers to the same rows say.

    Args:
        model: The model's name.
        versions: First and second.
        rows: Raw inputs with both answers.
        outputs: The outputs both have.
        labelled: Whether labels were asked for.

    Raises:
        CompareError: There are no rows, none was answered by both, or labels were asked for and there are none.
    """
    good = [r for r in rows if "error" not in r.first and "error" not in r.second]
    if not good:
        raise CompareError("no row was answered by both versions" if rows else "there are no rows to compare on")
    answer, chances = _deciding(outputs)
    truth = [r for r in good if r.label is not None and r.label != ""]
    if labelled and not truth:
        raise CompareError("no row has a label; is the column named right?")
    classes = answer is not None and not _is_number(answer)
    accuracy = _accuracy(truth, answer.name) if classes and truth and answer is not None else None
    errors = _errors(truth, answer.name) if answer is not None and not classes and truth else None
    calibration = None
    if accuracy is not None and chances is not None and answer is not None:
        calibration = (_calibration(truth, answer.name, chances, "first"), _calibration(truth, answer.name, chances, "second"))
    changed = _changed(good, answer.name) if classes and answer is not None else None
    numbers = [n for o in outputs if o.dtype not in ("string", "bool") for n in _numbers(good, o)]
    state, verdict = _verdict(versions, len(good), changed, accuracy, errors, numbers)
    return Comparison(
        model=model,
        versions=versions,
        rows=len(rows),
        both=len(good),
        refused=_refused(rows),
        answer="" if answer is None else answer.name,
        changed=changed,
        flips=_flips(good, answer.name) if classes and answer is not None else [],
        numbers=numbers,
        accuracy=accuracy,
        errors=errors,
        calibration=calibration,
        slices=_slices(good, answer, chances),
        state=state,
        verdict=verdict,
        notes=_notes(rows, good, truth, labelled=labelled),
    )


def _is_number(output: Output) -> bool:
    return output.dtype.startswith(("float", "double"))


def _deciding(outputs: Sequence[Output]) -> tuple[Output | None, Output | None]:
    """Return the output that is the answer (a class, else a single number), and the one with its classes' probabilities."""
    single = [o for o in outputs if not o.shape or list(o.shape) == [1]]
    answer = next((o for o in single if not _is_number(o)), None) or next(iter(single), None)
    chances = [o for o in outputs if _is_number(o) and o.element_names]
    if answer is not None and answer.decided_by:
        chances = [o for o in chances if o.name == answer.decided_by]
    return answer, chances[0] if chances and answer is not None else None


def _same(label: Any, answered: Any) -> bool:
    """Whether an answer is what a label says; files often hold numbers and booleans as text."""
    if label == answered:
        return True
    if isinstance(answered, bool):
        return str(label).strip().lower() in (("true", "1", "yes") if answered else ("false", "0", "no"))
    return str(label) == str(answered)


def _accuracy(rows: Sequence[Row], answer: str) -> Accuracy:
    table = Counter((_same(r.label, r.first[answer]), _same(r.label, r.second[answer])) for r in rows)
    both, one, two, neither = table[True, True], table[True, False], table[False, True], table[False, False]
    n = len(rows)
    return Accuracy(
        n=n,
        first=paired.wilson(both + one, n, ALPHA),
        second=paired.wilson(both + two, n, ALPHA),
        difference=paired.paired_difference(both, one, two, neither, ALPHA),
        only_first=one,
        only_second=two,
        p=paired.mcnemar_p_value(one, two),
    )


def _errors(rows: Sequence[Row], answer: str) -> Errors | None:
    pairs = []
    for row in rows:
        try:
            truth = float(row.label)
            pairs.append((abs(float(row.first[answer]) - truth), abs(float(row.second[answer]) - truth)))
        except (TypeError, ValueError):
            continue
    if not pairs:
        return None
    return Errors(
        n=len(pairs),
        first=paired.mean([a for a, _ in pairs]),
        second=paired.mean([b for _, b in pairs]),
        difference=paired.mean([b - a for a, b in pairs]),
    )


def _calibration(rows: Sequence[Row], answer: str, chances: Output, side: Literal["first", "second"]) -> Calibration:
    names = list(chances.element_names or ())
    bins: dict[int, list[tuple[float, bool]]] = {}
    brier, loss = [], []
    for row in rows:
        found = row.first if side == "first" else row.second
        given = [float(p or 0.0) for p in found[chances.name]]
        confidence, right = max(given), _same(row.label, found[answer])
        bins.setdefault(min(int(confidence * CALIBRATION_BINS), CALIBRATION_BINS - 1), []).append((confidence, right))
        brier.append(math.fsum((p - _same(row.label, name)) ** 2 for p, name in zip(given, names, strict=True)))
        true = math.fsum(p for p, name in zip(given, names, strict=True) if _same(row.label, name))
        loss.append(-math.log(max(true, 1e-15)))
    shown = [
        (i / CALIBRATION_BINS, len(pairs), math.fsum(c for c, _ in pairs) / len(pairs), sum(r for _, r in pairs) / len(pairs))
        for i, pairs in sorted(bins.items())
    ]
    error = math.fsum(n * abs(confidence - right) for _, n, confidence, right in shown) / len(rows)
    return Calibration(shown, error, math.fsum(brier) / len(rows), math.fsum(loss) / len(rows))


def _changed(rows: Sequence[Row], answer: str) -> Range:
    return paired.wilson(sum(r.first[answer] != r.second[answer] for r in rows), len(rows), ALPHA)


def _flips(rows: Sequence[Row], answer: str) -> list[tuple[str, str, int]]:
    found = Counter((str(r.first[answer]), str(r.second[answer])) for r in rows if r.first[answer] != r.second[answer])
    return [(a, b, n) for (a, b), n in found.most_common(20)]


def _numbers(rows: Sequence[Row], output: Output) -> Iterator[Numbers]:
    names = list(output.element_names or ())
    for i, name in enumerate(names or [""]):
        found = sorted((d for r in rows if (d := _difference(r.first.get(output.name), r.second.get(output.name), i)) is not None), key=abs)
        if found:
            sizes = [abs(d) for d in found]
            at = {q: sizes[min(len(sizes) - 1, int(q * len(sizes)))] for q in (0.5, 0.95, 0.99, 1.0)}
            yield Numbers(output.name, name, paired.mean(found), math.fsum(sizes) / len(sizes), at)


def _difference(first: Any, second: Any, element: int) -> float | None:
    a, b = (v[element] if isinstance(v, list) and len(v) > element else v for v in (first, second))
    if isinstance(a, bool | str | list) or isinstance(b, bool | str | list) or a is None or b is None:
        return None
    return float(b) - float(a)


def _refused(rows: Sequence[Row]) -> dict[str, tuple[int, int]]:
    one = Counter(r.first["error"] for r in rows if "error" in r.first and "error" not in r.second)
    two = Counter(r.second["error"] for r in rows if "error" in r.second and "error" not in r.first)
    return {code: (one[code], two[code]) for code in sorted({*one, *two})}


# --- slices ---------------------------------------------------------------------------------------------------------------


def _slices(rows: Sequence[Row], answer: Output | None, chances: Output | None) -> list[Slice]:
    found = []
    for name in sorted({k for r in rows for k in r.fields}):
        for value, part in _parts(rows, name):
            if LEAST_ROWS <= len(part) < len(rows):
                found.append(_slice(name, value, part, answer, chances))
    return sorted(found, key=lambda s: -_interest(s))


def _parts(rows: Sequence[Row], name: str) -> Iterator[tuple[str, list[Row]]]:
    values = [r.fields.get(name) for r in rows]
    known = [v for v in values if v is not None]
    missing = [r for r, v in zip(rows, values, strict=True) if v is None]
    if known and all(isinstance(v, int | float) and not isinstance(v, bool) for v in known) and len(set(known)) > MAX_VALUES:
        yield from _quarters(rows, name, sorted(known))
    elif all(isinstance(v, str | bool | int | float) for v in known):
        common = [v for v, _ in Counter(known).most_common(MAX_VALUES)]
        for value in common:
            yield str(value)[:60], [r for r, v in zip(rows, values, strict=True) if v == value]
        yield "(others)", [r for r, v in zip(rows, values, strict=True) if v is not None and v not in common]
    yield "(missing)", missing


def _quarters(rows: Sequence[Row], name: str, ordered: Sequence[float]) -> Iterator[tuple[str, list[Row]]]:
    edges = sorted({ordered[len(ordered) * i // QUARTERS] for i in range(1, QUARTERS)})
    for low, high in itertools.pairwise([-math.inf, *edges, math.inf]):
        part = [r for r in rows if r.fields.get(name) is not None and low <= r.fields[name] < high]
        words = (
            f"below {number(high)}"
            if low == -math.inf
            else f"from {number(low)}"
            if high == math.inf
            else f"{number(low)} to {number(high)}"
        )
        yield words, part


def _slice(name: str, value: str, rows: Sequence[Row], answer: Output | None, chances: Output | None) -> Slice:
    truth = [r for r in rows if r.label is not None and r.label != ""]
    classes = answer is not None and not _is_number(answer)
    numeric = chances if chances is not None else answer if answer is not None and not classes else None
    shifts = [d for r in rows if numeric is not None and (d := _difference(r.first[numeric.name], r.second[numeric.name], 0)) is not None]
    return Slice(
        field=name,
        value=value,
        n=len(rows),
        changed=_changed(rows, answer.name) if classes and answer is not None else None,
        shift=paired.mean(shifts) if shifts else None,
        accuracy=_accuracy(truth, answer.name) if classes and truth and answer is not None else None,
    )


def _interest(found: Slice) -> float:
    """Return how much a reader should see this slice: the difference in accuracy that is sure, else what changes surely."""
    if found.accuracy is not None:
        d = found.accuracy.difference
        return max(d.low, -d.high, 0.0) + 1e-3 * abs(d.estimate)
    if found.changed is not None:
        return found.changed.low
    return 0.0 if found.shift is None else max(found.shift.low, -found.shift.high, 0.0)


# --- the sentence ---------------------------------------------------------------------------------------------------------


def _verdict(
    versions: tuple[int, int], n: int, changed: Range | None, accuracy: Accuracy | None, errors: Errors | None, numbers: Sequence[Numbers]
) -> tuple[State, str]:
    one, two = versions
    if accuracy is not None:
        return _decided(f"Version {two} is", accuracy.difference, ("more often right", "less often right"), accuracy.n)
    if errors is not None:
        mirrored = Range(-errors.difference.estimate, -errors.difference.high, -errors.difference.low)
        return _decided(f"Version {two} is", mirrored, ("closer to the truth", "further from the truth"), errors.n)
    if changed is not None:
        if changed.estimate == 0:
            return (
                "same",
                f"Versions {one} and {two} give the same answer for all {n:,} rows; differences below {_percent(changed.high)} may hide.",
            )
        words = (
            f"Versions {one} and {two} answer {_percent(changed.estimate)} of {n:,} rows differently (between {_percent(changed.low)} and "
        )
        return "differs", f"{words}{_percent(changed.high)}); labels would say which is right (--label)."
    largest = max((m.quantiles[1.0] for m in numbers), default=0.0)
    state: State = "same" if largest == 0 else "differs"
    return state, f"The largest difference of any number over {n:,} rows is {number(largest)}; labels would say which is closer (--label)."


def _decided(subject: str, difference: Range, words: tuple[str, str], n: int) -> tuple[State, str]:
    if difference.low > 0:
        return (
            "better",
            f"{subject} {words[0]} by between {number(difference.low)} and {number(difference.high)} (95 %, {n:,} labelled rows).",
        )
    if difference.high < 0:
        return (
            "worse",
            f"{subject} {words[1]} by between {number(-difference.high)} and {number(-difference.low)} (95 %, {n:,} labelled rows).",
        )
    between = f"{number(difference.low)} and {number(difference.high)} (95 %, {n:,} labelled rows)"
    return "undecided", f"No difference is shown: {subject.lower().removesuffix(' is')} minus the first lies between {between}."


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _notes(rows: Sequence[Row], good: Sequence[Row], truth: Sequence[Row], *, labelled: bool) -> list[str]:
    notes = []
    neither = sum("error" in r.first and "error" in r.second for r in rows)
    if neither:
        notes.append(f"{neither:,} rows were refused by both versions and count for neither.")
    if labelled and len(truth) < len(good):
        notes.append(f"{len(good) - len(truth):,} rows have no label.")
    notes.append("Intervals hold for one look, each by itself; of twenty slices one is expected to stand out by chance.")
    return notes
