"""Held-out training rows → the baseline of a package.

build_baseline(package, given)      runs the rows through the package: what `pack` does
BaselineBuilder                     for rows whose answers are there already: captured traffic, say
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from pydantic import ValidationError

from .baseline import Baseline, Expected, FieldBaseline, Monitored, OutputBaseline, Variable, signature_digest
from .baseline_bins import Values, boolean_variable, categorical_variable, numeric_variable
from .baseline_extract import InputColumns, OutputColumns, Statistic, expected_cells, field_statistics, output_statistics, positive_class
from .baseline_images import CROPS
from .draft import BaselineRows
from .errors import AuthoringError, ExecutionError, InputError
from .itemplan import TextReader
from .manifest import Manifest, Output, RawField
from .package import Package
from .packing import names_read
from .runtime import Item, PackageRuntime
from .signature import Row
from .terms import term_counters
from .tokenization import token_counters, tokenizers_of

#: Rows that go through the package together; fixed, so that the same rows give the same baseline on any machine alike.
ROWS_TOGETHER = 256


def build_baseline(package: Package, given: BaselineRows, progress: Callable[[int, int], None] | None = None) -> Baseline:
    """Run held-out rows through a package and return their statistics.

    Args:
        package: A package whose graphs can be read; it need not be committed yet.
        given: The rows and how to treat them.
        progress: Called with rows done and rows in all.

    Raises:
        AuthoringError: There are no rows, a row is refused, or an option names what is not there; says which.
        ExecutionError: A graph does not load or run.
    """
    with closing(PackageRuntime.load(package)) as runtime:
        builder = BaselineBuilder(package.manifest, given, pixel_values(package), runtime.tokenizers)
        if not len(given.rows):
            raise AuthoringError(f"{package.manifest.name}: no rows for the baseline; give some, or no baseline")
        rows = _checked(runtime, given.rows, 0)
        together = _together(runtime)
        for start in range(0, len(rows), together):
            builder.run_rows(runtime, rows[start : start + together], start)
            if progress is not None:
                progress(min(start + together, len(rows)), len(rows))
    return builder.finish()


def _together(runtime: PackageRuntime) -> int:
    return min(ROWS_TOGETHER, runtime.manifest.batching.max_batch_size)


def _checked(runtime: PackageRuntime, instances: Sequence[object], start: int) -> list[Row]:
    rows = []
    for i, instance in enumerate(instances, start):
        try:
            rows.append(runtime.signature.check_row(instance))
        except InputError as error:
            raise AuthoringError(f"{runtime.manifest.name}: baseline row {i} is refused: {error}") from error
    return rows


def _prepared(runtime: PackageRuntime, rows: Sequence[Row], start: int) -> list[Item]:
    items = []
    for i, row in enumerate(rows, start):
        try:
            items.append(runtime.prepare(row))
        except (InputError, ExecutionError) as error:
            raise AuthoringError(f"{runtime.manifest.name}: baseline row {i} cannot be prepared: {error}") from error
    return items


def _named(runtime: PackageRuntime, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    return dict(zip((o.name for o in runtime.manifest.outputs), arrays, strict=True))


@dataclass(frozen=True)
class Pixels:
    """Where an image field's pixels can be looked at: an item-stage value, and its height and width where they are fixed."""

    value: str
    size: tuple[int, int] | None


def pixel_values(package: Package) -> dict[str, Pixels]:
    """Return, per image field, the item-stage value that holds its decoded and resized pixels, uint8 [H, W, C] or [C, H, W].

    It may also be the five or ten crops of an image, [K, H, W, C], of which the statistics look at the centre.

    A field has none when its item stage gives other arrays, or when the array depends on several images.
    """
    stage = package.manifest.stage("preprocess.item")
    images = {f.name for f in package.manifest.fields if f.kind == "image"}
    if stage is None or not images:
        return {}
    graph = package.load_stage(stage.name).graph
    found: dict[str, Pixels] = {}
    for info in graph.output:
        fed = {stage.inputs.get(name, name) for name in _sources(graph, info.name)} & images
        tensor = info.type.tensor_type
        dims = [d.dim_value for d in tensor.shape.dim]
        dims = dims[1:] if len(dims) == 4 and dims[0] in CROPS else dims
        if len(fed) != 1 or tensor.elem_type != onnx.TensorProto.UINT8 or len(dims) != 3:
            continue
        found.setdefault(fed.pop(), Pixels(stage.outputs.get(info.name, info.name), _size(dims)))
    return found


def field_tokenizers(package: Package) -> dict[str, TextReader]:
    """Return text field → what makes tokens or terms of it, for whoever counts rows without running them."""
    stage = package.manifest.stage("preprocess.item")
    if stage is None or not (package.manifest.tokenizers or package.manifest.vectorizers):
        return {}
    ready: dict[str, TextReader] = {
        **tokenizers_of(package.manifest.tokenizers, package.read_file),
        **term_counters(package.manifest.vectorizers, package.read_file),
    }
    found: dict[str, TextReader] = {}
    for node in package.load_stage(stage.name).graph.node:
        if node.name in ready:
            found.setdefault(stage.inputs.get(node.input[0], node.input[0]), ready[node.name])
    return found


def _sources(graph: onnx.GraphProto, value: str) -> set[str]:
    """Return the graph inputs that `value` is computed from."""
    makers = {name: node for node in graph.node for name in node.output}
    reached: set[str] = set()
    waiting = [value]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += names_read(makers[name]) if name in makers else ()
    return reached & {i.name for i in graph.input}


def _size(dims: Sequence[int]) -> tuple[int, int] | None:
    height, width = (dims[0], dims[1]) if dims[2] in (1, 3, 4) else (dims[1], dims[2])
    return (height, width) if height > 0 and width > 0 else None


class BaselineBuilder:
    """Gathers rows with their answers and makes the baseline of them.

    Args:
        manifest: The package's manifest.
        given: How to treat the rows; those in it are not looked at.
        pixels: Image field → where its pixels are, as `pixel_values` finds them.
        tokenizers: Text field → its tokenizer, as `ItemPlan.tokenizers` has them.

    Raises:
        AuthoringError: An option names a field or output that is not there, or cannot be what it asks for.
    """

    def __init__(
        self,
        manifest: Manifest,
        given: BaselineRows,
        pixels: Mapping[str, Pixels] | None = None,
        tokenizers: Mapping[str, TextReader] | None = None,
    ) -> None:
        self._manifest, self._given, self._pixels, self._tokenizers = manifest, given, pixels or {}, tokenizers or {}
        _check_options(manifest, given)
        self._fields = [self._empty_field(field) for field in manifest.fields]
        self._inputs, self._outputs = InputColumns(manifest, self._fields, token_counters(self._tokenizers)), OutputColumns(manifest)
        self._columns: dict[tuple[str, str], list[Values]] = {}
        self._cells = {output.name: _Cells(output, manifest, given.positive.get(output.name)) for output in manifest.outputs}
        self._right = 0
        self._rows = 0

    def _empty_field(self, field: RawField) -> FieldBaseline:
        given, pixels = self._given, self._pixels.get(field.name)
        monitored: Monitored = "off" if field.name in given.off else "hashed" if field.name in given.hashed else "plain"
        return FieldBaseline(
            name=field.name,
            kind=field.kind,
            monitored=monitored,
            importance=given.importance.get(field.name, 1.0),
            pixels=pixels.value if pixels is not None else None,
            model_size=pixels.size if pixels is not None else None,
            tokenizer=self._tokenizers[field.name].declared.node if field.name in self._tokenizers and field.kind == "text" else None,
        )

    def add(
        self, rows: Sequence[Row], outputs: Mapping[str, np.ndarray], pixels: Mapping[str, Sequence[np.ndarray | None]] | None = None
    ) -> None:
        """Take in some rows.

        Args:
            rows: Checked rows, as `Signature` returns them.
            outputs: Output → the answers to them, [n, *shape].
            pixels: Item-stage value → that value for each row, where a field's pixels are monitored.
        """
        columns = [("in", self._inputs.read(rows, pixels)), ("out", self._outputs.read(outputs))]
        for side, read in columns:
            for name, values in read.items():
                self._columns.setdefault((side, name), []).append(values)
        for output in self._manifest.outputs:
            self._cells[output.name].add(outputs[output.name])
        self._count_right(outputs, len(rows))
        self._rows += len(rows)

    def run(self, runtime: PackageRuntime, instances: Sequence[object], start: int = 0) -> None:
        """Run some instances through a package and take them in with its answers.

        Args:
            runtime: The package.
            instances: As a caller would send them.
            start: Number of the first of them, for messages.

        Raises:
            AuthoringError: One is refused; says which.
            ExecutionError: A graph does not run.
        """
        self.run_rows(runtime, _checked(runtime, instances, start), start)

    def run_rows(self, runtime: PackageRuntime, rows: Sequence[Row], start: int = 0) -> None:
        """Run some checked rows through a package and take them in with its answers (see `run`)."""
        together = _together(runtime)
        for first in range(0, len(rows), together):
            chunk = rows[first : first + together]
            items = _prepared(runtime, chunk, start + first)
            values = {name: [item[place] for item in items] for name, place in runtime.item_places.items()}
            if runtime.shapes is None:
                self.add(chunk, _named(runtime, runtime.run(runtime.collate(items))), values)
                continue
            for i, outputs in enumerate(runtime.predict_each(items)):
                self.add(chunk[i : i + 1], outputs, {name: column[i : i + 1] for name, column in values.items()})

    def _count_right(self, outputs: Mapping[str, np.ndarray], n: int) -> None:
        answer = next((o for o in self._manifest.outputs if o.decided_by is not None), None)
        if self._given.truth is None or answer is None:
            return
        first = outputs[answer.name].reshape(n, -1)[:, 0].tolist()
        self._right += sum(a == b for a, b in zip(first, self._given.truth[self._rows : self._rows + n], strict=True))

    def finish(self) -> Baseline:
        """Return the baseline of everything taken in.

        Raises:
            AuthoringError: Nothing was, or the statistics do not make a baseline.
        """
        if not self._rows:
            raise AuthoringError(f"{self._manifest.name}: no rows for the baseline; give some, or no baseline")
        given, manifest = self._given, self._manifest
        try:
            return Baseline(
                made_from=given.made_from,
                rows=self._rows,
                sampled_from=given.sampled_from,
                sampled_to=given.sampled_to,
                signature=signature_digest(manifest),
                fields=[self._field(field, empty) for field, empty in zip(manifest.fields, self._fields, strict=True)],
                outputs=[self._output(output) for output in manifest.outputs],
            )
        except ValidationError as error:
            raise AuthoringError(f"{manifest.name}: its rows make no baseline: {error.errors()[0]['msg']}") from error

    def _field(self, field: RawField, empty: FieldBaseline) -> FieldBaseline:
        if empty.monitored == "off":
            return empty
        statistics = field_statistics(field, pixels=empty.pixels is not None, tokens=empty.tokenizer is not None)
        if field.kind == "string" and field.name in self._given.known:
            statistics = [replace(s, known=tuple(self._given.known[field.name])) for s in statistics]
        hashed = empty.monitored == "hashed"
        return empty.model_copy(update={"variables": [self._variable("in", s, hashed=hashed) for s in statistics]})

    def _output(self, output: Output) -> OutputBaseline:
        statistics = output_statistics(output, self._manifest.outputs)
        if output.name in self._given.known:
            statistics = [replace(s, known=tuple(self._given.known[output.name])) if s.kind == "categorical" else s for s in statistics]
        decided = next((o for o in self._manifest.outputs if o.decided_by == output.name), None)
        accuracy = self._right / self._rows if self._given.truth is not None and decided is not None else None
        return OutputBaseline(
            name=output.name,
            variables=[self._variable("out", statistic, hashed=False) for statistic in statistics],
            expected=self._cells[output.name].expected(accuracy),
        )

    def _variable(self, side: str, statistic: Statistic, *, hashed: bool) -> Variable:
        values = _joined(self._columns[side, statistic.name])
        if statistic.kind == "numeric":
            return numeric_variable(
                statistic.name, values, computed=statistic.computed, description=statistic.description, unit=statistic.unit
            )
        if statistic.kind == "boolean":
            return boolean_variable(statistic.name, values, description=statistic.description)
        return categorical_variable(
            statistic.name,
            values,
            known=statistic.known,
            integers=statistic.integers,
            hashed=hashed,
            description=statistic.description,
        )


class _Cells:
    """Sums the expected accuracy of one output, as long as its values can be class probabilities."""

    def __init__(self, output: Output, manifest: Manifest, positive: str | None) -> None:
        self._output = output
        decides = any(o.decided_by == output.name for o in manifest.outputs)
        scores = len(output_statistics(output, manifest.outputs)) > 1 and output.dtype.startswith("float")
        self._possible = scores and (decides or output.element_names is not None) and len(output.shape) == 1
        self._positive = positive_class(output, manifest.outputs, positive)
        self._sums: dict[str, float] = {}

    def add(self, array: np.ndarray) -> None:
        if not self._possible:
            return
        finite = array[np.isfinite(array).all(axis=1)]
        # Beyond rounding, probabilities are neither negative nor more than one in all; scores of another kind expect nothing.
        self._possible = bool((finite >= -1e-6).all() and (finite.sum(axis=1) <= 1 + 1e-3).all())
        for cell, value in expected_cells(self._output, array, self._positive).items():
            self._sums[cell] = self._sums.get(cell, 0.0) + value

    def expected(self, accuracy: float | None) -> Expected | None:
        if not self._possible or not self._sums:
            return None
        return Expected.model_validate({"positive": self._positive, "cells": self._sums, "measured_accuracy": accuracy})


def _joined(parts: Sequence[Values]) -> Values:
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate([np.asarray(part) for part in parts])
    return [value for part in parts for value in _iterate(part)]


def _iterate(part: Values) -> Iterator[Any]:
    return iter(part.tolist() if isinstance(part, np.ndarray) else part)


def _check_options(manifest: Manifest, given: BaselineRows) -> None:
    fields, outputs = {f.name: f for f in manifest.fields}, {o.name: o for o in manifest.outputs}
    what = f"{manifest.name}: baseline"
    for option, names, known in (
        ("off", given.off, fields),
        ("hashed", given.hashed, fields),
        ("importance", given.importance, fields),
        ("known", given.known, {**fields, **outputs}),
        ("positive", given.positive, outputs),
    ):
        for name in names:
            if name not in known:
                raise AuthoringError(f"{what}: {option} names {name!r}; there are {', '.join(known)}")
    for name in given.hashed:
        if fields[name].kind != "string":
            raise AuthoringError(f"{what}: only strings can be hashed; {name!r} is a {fields[name].kind}, so turn it off instead")
        if fields[name].known is not None or fields[name].allowed is not None:
            raise AuthoringError(f"{what}: {name!r} is hashed but its values stand in the manifest; set the field's `known` to None first")
    for name, class_ in given.positive.items():
        if class_ not in (outputs[name].element_names or ()):
            raise AuthoringError(f"{what}: {name!r} has no class {class_!r}; it has {', '.join(outputs[name].element_names or ())}")
    if given.truth is not None and len(given.truth) != len(given.rows):
        raise AuthoringError(f"{what}: {len(given.truth)} right answers for {len(given.rows)} rows")
